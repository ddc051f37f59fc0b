//! What real runs report.
//!
//! Leaves to others: the schema's every field (the unit tests). Invariant:
//! figures agree with each other and with the file.

use crate::support::{Folder, bytes, skip};
use serde_json::Value;
use std::process::Command;

#[test]
fn a_real_run_s_json_adds_up() {
    let folder = Folder::new();
    folder.write("a", &bytes(3_000_000));
    let ran = folder.must("copy --json --report r.json a b");
    let json = ran.json();
    assert_eq!(ran.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(json["outcome"], "complete");
    assert_eq!(json["exit_code"], 0);
    assert_eq!(json["level"], "sealed");
    assert_eq!(json["authenticated"], true);
    for count in ["planned", "landed", "sealed"] {
        assert_eq!(json["bytes"][count], 3_000_000, "{count}");
    }
    let number = |path: &str| {
        json.pointer(path)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| unreachable!("{path} in {json}"))
    };
    let goodput = 3_000_000.0 / number("/seconds/total");
    assert!((number("/goodput_bytes_per_second") / goodput - 1.0).abs() < 1e-6);
    assert!(number("/system_calls/sender") > 0.0 && number("/system_calls/receiver") > 0.0);
    let connections = json["connections"].as_array().expect("connections");
    let carried: u64 = connections
        .iter()
        .map(|one| one["bytes"].as_u64().expect("bytes"))
        .sum();
    assert_eq!(carried, 3_000_000);
    for one in connections {
        assert!(one["send_buffer_bytes"].as_u64() > Some(0), "{one}");
        assert!(one["receive_buffer_bytes"].as_u64() > Some(0), "{one}");
        assert!(one["tcp"]["rtt_us"].is_u64(), "{one}");
    }
    assert_eq!(json["latency"]["landed"]["count"], 12, "a value is a chunk");
    assert!(json["latency"]["sync"]["count"].as_u64() > Some(0));
    assert_eq!(
        json["latency"]["release"],
        Value::Null,
        "nothing was zero-copy"
    );
    let report: Value = serde_json::from_slice(&folder.read("r.json")).expect("JSON");
    assert_eq!(report, json);
}

#[test]
fn without_being_asked_standard_output_is_empty() {
    let folder = Folder::new();
    folder.write("a", &bytes(100_000));
    let ran = folder.must("copy a b");
    assert!(ran.stdout.is_empty());
    assert_eq!(
        ran.stderr.lines().count(),
        1,
        "the headline: {}",
        ran.stderr
    );
    let ran = folder.must("copy -I -vv --progress always a b");
    assert!(ran.stdout.is_empty());
    assert!(
        ran.stderr.contains("one chunk, submitted to"),
        "{}",
        ran.stderr
    );
    let ran = folder.must("copy -q a b");
    assert!(
        ran.stdout.is_empty() && ran.stderr.is_empty(),
        "{}",
        ran.stderr
    );
}

#[test]
fn no_sync_is_placed_and_has_no_sync_stage() {
    let folder = Folder::new();
    folder.write("a", &bytes(100_000));
    let json = folder.must("copy --json --no-fsync a b").json();
    assert_eq!(json["level"], "placed");
    assert_eq!(json["latency"]["sync"], Value::Null);
}

#[test]
fn zero_copy_over_loopback_is_called_a_copy() {
    let folder = Folder::new();
    folder.write("a", &bytes(4_000_000));
    let ran = folder.must("copy --json -v --transmit zerocopy a b");
    let json = ran.json();
    assert_eq!(json["zero_copy"]["sent_bytes"], 0, "{json}");
    if json["zero_copy"]["copied_bytes"].as_u64() > Some(0) {
        assert!(ran.stderr.contains("the kernel copied"), "{}", ran.stderr);
        assert!(json["latency"]["release"].is_object());
    }
}

#[test]
fn events_are_objects_that_end_with_the_report() {
    let folder = Folder::new();
    folder.write("a", &bytes(2_000_000));
    let ran = folder.must("copy --events --json --limit-rate 4MB a b");
    let lines: Vec<Value> = String::from_utf8(ran.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object"))
        .collect();
    let (report, events) = lines.split_last().expect("lines");
    assert_eq!(report["outcome"], "complete");
    let names: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().expect("a name"))
        .collect();
    assert_eq!(names.last(), Some(&"finished"));
    for name in ["planned", "progress", "file"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let landed: Vec<u64> = events
        .iter()
        .filter_map(|event| event["landed_bytes"].as_u64())
        .collect();
    assert!(landed.is_sorted(), "{landed:?}");
    assert_eq!(landed.last(), Some(&2_000_000));
}

#[test]
fn latencies_are_written_in_both_formats() {
    let folder = Folder::new();
    folder.write("a", &bytes(1_000_000));
    folder.must("copy --hdr-log x.hlog a b");
    let text = String::from_utf8(folder.read("x.hlog")).expect("text");
    assert!(text.starts_with("#[Histogram log format version "));
    assert!(text.contains("\"StartTimestamp\",\"Interval_Length\""));
    for stage in ["send", "landed", "write", "sync"] {
        assert!(text.contains(&format!("\nTag={stage},")), "{stage}");
    }
    folder.must("copy -I --hdr-log x.hgrm a b");
    let text = String::from_utf8(folder.read("x.hgrm")).expect("text");
    assert!(text.contains("1/(1-Percentile)") && text.contains("#[Mean"));
}

#[test]
fn a_failure_is_in_the_json_too() {
    let folder = Folder::new();
    let ran = folder.haul("copy --json --report r.json missing b");
    assert_eq!(ran.code, 1);
    let json = ran.json();
    assert_eq!(json["outcome"], "failed");
    assert_eq!(json["error"]["kind"], "local");
    assert_eq!(json["latency"]["send"], Value::Null);
    assert!(folder.path("r.json").exists());
}

/// What a thread makes for itself, its memory and its end, which no report counts.
const OF_THREADS: [&str; 16] = [
    "mmap",
    "munmap",
    "mprotect",
    "madvise",
    "futex",
    "exit",
    "gettid",
    "getrandom",
    "prctl",
    "prlimit64",
    "sched_getaffinity",
    "sigaltstack",
    "rt_sigaction",
    "rt_sigprocmask",
    "clock_gettime",
    "set_robust_list",
];

#[test]
fn the_system_calls_that_are_told_are_those_that_strace_sees() {
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("there is no strace(1) here");
    }
    let folder = Folder::new();
    folder.write("a", &bytes(64_000_000));
    for options in [
        "",
        "--transmit copy -n 4",
        "--transmit splice",
        "--chunk-size 64KiB",
    ] {
        let mut strace = Command::new("strace");
        strace.args(["-f", "--decode-pids=comm", "-o", "trace"]);
        let ran = folder.haul_by(
            strace,
            &format!("copy -I -q --json --no-fsync {options} a b"),
        );
        assert_eq!(ran.code, 0, "{options}: {}", ran.stderr);
        let json = ran.json();
        let trace = String::from_utf8_lossy(&folder.read("trace")).into_owned();
        for (side, thread) in [("sender", "<haul-send"), ("receiver", "<haul-recv")] {
            let seen = trace.lines().filter(|line| line.contains(thread));
            // A call that another thread's line cuts in two is told once.
            let calls = seen.filter_map(|line| line.split_once("> ")?.1.split_once('('));
            let calls = calls.filter(|(name, _)| !OF_THREADS.contains(name));
            let seen = calls.filter(|(name, _)| !name.starts_with("<...")).count() as u64;
            let told = json["system_calls"][side].as_u64().expect("a count");
            assert!(seen > 20, "{options}, {side}: {trace}");
            assert!(
                told.abs_diff(seen) <= 12 + seen / 8,
                "{options}, {side}: told {told}, seen {seen}"
            );
        }
    }
}
