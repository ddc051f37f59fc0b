//! Whole copies within one machine.
//!
//! Leaves to others: servers. Invariant: what arrived is compared byte for byte.

use crate::support::{Folder, bytes, on_disk};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

const CHUNK: usize = 65_536;

#[test]
fn sizes_around_every_boundary_arrive() {
    let folder = Folder::new();
    let block = 1024 * 1024;
    for size in [
        0,
        1,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        4 * CHUNK - 1,
        4 * CHUNK + 1,
        block - 1,
        block,
        block + 1,
        5 * block + 4_097,
    ] {
        let content = bytes(size);
        folder.write("a", &content);
        folder.must("copy -q --chunk-size 64KiB a b");
        assert!(folder.read("b") == content, "{size} bytes");
        folder.must("copy -q -n 1 a b");
        assert!(folder.read("b") == content, "{size} bytes, one connection");
    }
    assert_eq!(folder.names("."), ["a", "b"], "no temporary file is left");
}

#[test]
fn every_way_of_sending_gives_the_same_file() {
    let folder = Folder::new();
    let content = bytes(3_000_001);
    folder.write("a", &content);
    for options in [
        "--transmit copy",
        "--transmit zerocopy",
        "--transmit splice",
        "--no-fsync",
        "--drop-cache",
        "--limit-rate 20MB",
        "--socket-buffer 256KiB",
        "--congestion reno",
        "-n 16",
        "--chunk-size 4MiB",
    ] {
        folder.must(&format!("copy -q {options} a b"));
        assert!(folder.read("b") == content, "{options}");
    }
}

#[test]
fn several_files_go_into_a_directory() {
    let folder = Folder::new();
    folder.directory("d");
    for (name, size) in [("one", 1), ("two", 200_000), ("none", 0)] {
        folder.write(name, &bytes(size));
    }
    folder.must("copy one two none d");
    assert_eq!(folder.names("d"), ["none", "one", "two"]);
    assert!(folder.read("d/two") == folder.read("two"));
    // A single source goes inside an existing directory, too.
    folder.must("copy two d/");
    folder.must("copy one .//d");
    assert_eq!(folder.names("d").len(), 3);
}

#[test]
fn mode_and_time_are_kept_and_a_target_is_replaced() {
    let folder = Folder::new();
    folder.write("a", &bytes(10_000));
    folder.write("b", b"old and longer than nothing");
    let source = folder.path("a");
    std::fs::set_permissions(&source, PermissionsExt::from_mode(0o640)).expect("chmod");
    folder.must("copy a b");
    let (a, b) = (
        source.metadata().expect("source"),
        folder.path("b").metadata().expect("target"),
    );
    assert_eq!(a.mode(), b.mode());
    assert_eq!(
        (a.mtime(), a.mtime_nsec()),
        (b.mtime(), b.mtime_nsec()),
        "the time is kept to the nanosecond"
    );
    assert!(folder.read("b") == folder.read("a"));
}

#[test]
fn a_link_as_a_source_means_what_it_points_to() {
    let folder = Folder::new();
    folder.directory("elsewhere");
    folder.write("elsewhere/real", &bytes(70_000));
    symlink("elsewhere/real", folder.path("link")).expect("linked");
    folder.must("copy link b");
    assert!(folder.read("b") == folder.read("elsewhere/real"));
    let output = folder.must("copy -q link -").stdout;
    assert!(output == folder.read("elsewhere/real"));
}

#[test]
fn names_that_are_odd_are_names() {
    let folder = Folder::new();
    folder.write("a:b", &bytes(10));
    folder.must("copy ./a:b %20");
    assert!(folder.read("%20") == folder.read("a:b"));
}

#[test]
fn standard_input_and_output_carry_bytes_in_order() {
    let folder = Folder::new();
    for size in [0, 1, CHUNK, 5_000_003] {
        let content = bytes(size);
        let ran = folder.haul_with("copy -q --chunk-size 64KiB - b", content.clone());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(folder.read("b") == content, "{size} bytes in");
        let ran = folder.must("copy -q b -");
        assert!(ran.stdout == content, "{size} bytes out");
    }
    assert_eq!(folder.names("."), ["b"]);
}

#[test]
fn a_reader_that_leaves_ends_the_copy() {
    let folder = Folder::new();
    folder.write("a", &bytes(20_000_000));
    let mut child = folder.command("copy a -").spawn().expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn verify_reads_back_where_there_is_a_disk() {
    let folder = Folder::new();
    folder.write("a", &bytes(1_000_000));
    let ran = folder.haul("copy --verify a b");
    if on_disk(&folder.path(".")) {
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(folder.read("b") == folder.read("a"));
    } else {
        assert_eq!(ran.code, 2, "{}", ran.stderr);
    }
}

/// True for an event that tells of landed bytes: the copy is in its middle.
fn has_landed(event: &str) -> bool {
    event.contains("\"progress\"") && !event.contains("\"landed_bytes\":0,")
}

#[test]
fn a_signal_interrupts_and_leaves_no_partial_target() {
    use rustix::process::{Pid, Signal, kill_process};
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let folder = Folder::new();
        folder.write("a", &bytes(4_000_000));
        folder.write("b", b"old");
        let mut child = folder
            .command("copy --limit-rate 500kB --progress always --events --report r a b")
            .spawn()
            .expect("started");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            child.stdout.take().expect("a pipe"),
        ));
        assert!(lines.any(|line| line.is_ok_and(|line| has_landed(&line))));
        kill_process(Pid::from_child(&child), signal).expect("signalled");
        let last = lines.map_while(Result::ok).last().expect("a last event");
        assert!(last.contains("\"interrupted\""), "{last}");
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(folder.read("b"), b"old", "the target is untouched");
        // What ran until then is in the report.
        let report: serde_json::Value =
            serde_json::from_slice(&folder.read("r")).expect("a report");
        assert_eq!(report["connections"].as_array().map(Vec::len), Some(1));
        assert!(
            report["system_calls"]["sender"].as_u64() > Some(0),
            "{report}"
        );
        assert!(
            report["latency"]["send"]["count"].as_u64() > Some(0),
            "{report}"
        );
        assert_eq!(report["system_calls"]["receiver"], serde_json::Value::Null);
    }
}

#[test]
fn a_source_that_changes_is_not_sealed() {
    let folder = Folder::new();
    for shrinks in [false, true] {
        // More than the sockets hold: most of it is not read yet.
        folder.write("a", &bytes(16_000_000));
        folder.write("b", b"old");
        let mut child = folder
            .command("copy --limit-rate 10MB --events a b")
            .spawn()
            .expect("started");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            child.stdout.take().expect("a pipe"),
        ));
        assert!(lines.any(|line| line.is_ok_and(|line| has_landed(&line))));
        let source = std::fs::OpenOptions::new()
            .write(true)
            .open(folder.path("a"))
            .expect("opened");
        if shrinks {
            source.set_len(1_000).expect("cut");
        } else {
            std::os::unix::fs::FileExt::write_at(&source, b"new", 10).expect("written");
        }
        while lines.next().is_some() {}
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(5), "shrinks: {shrinks}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            told.contains("changed") && told.lines().count() == 1,
            "{told}"
        );
        assert_eq!(folder.read("b"), b"old", "the target is untouched");
        assert_eq!(folder.names("."), ["a", "b"]);
    }
}

#[test]
fn a_full_disk_is_one_error_and_no_file() {
    let folder = Folder::new();
    folder.write("a", &bytes(300_000));
    // A limit on file sizes stands in for a full disk.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -f 100; exec \"$0\" copy a b"])
        .arg(env!("CARGO_BIN_EXE_haul"))
        .current_dir(folder.path("."))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ran = crate::support::run(command, Vec::new());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.error().contains('b'), "{}", ran.stderr);
    assert_eq!(folder.names("."), ["a"]);
}

#[test]
fn a_link_that_is_a_local_target_is_replaced() {
    let folder = Folder::new();
    folder.write("a", &bytes(1000));
    folder.write("real", b"old");
    symlink("real", folder.path("link")).expect("a link");
    folder.must("copy -q a link");
    assert!(folder.read("link") == folder.read("a"));
    assert!(!folder.path("link").is_symlink());
    assert_eq!(folder.read("real"), b"old", "what it pointed to stays");
}

#[test]
fn local_targets_are_named_as_they_were_typed() {
    let folder = Folder::new();
    folder.write("a", &bytes(1000));
    folder.directory("there");
    let long = "n".repeat(256);
    let ran = folder.haul(&format!("copy a there/{long}"));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.error().contains("there/nnn"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("the root"), "{}", ran.stderr);
}

#[test]
fn a_closed_terminal_leaves_no_temporary_file() {
    use std::io::Write;
    let folder = Folder::new();
    folder.directory("there");
    let mut command = folder.command("copy -q - there/x");
    command.stdin(Stdio::piped());
    let mut child = command.spawn().expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(&bytes(1_000_000)).expect("written");
    while folder.names("there").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signalled");
    assert_eq!(child.wait().expect("ended").code(), Some(129));
    assert!(folder.names("there").is_empty(), "nothing is left");
}

#[test]
fn a_closed_standard_input_is_no_empty_file() {
    let folder = Folder::new();
    folder.write("b", b"old");
    let haul = env!("CARGO_BIN_EXE_haul");
    let shell = |words: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {haul} copy -q - b {words}")]);
        command.current_dir(folder.path("."));
        command.output().expect("ran").status.code()
    };
    assert_eq!(shell("<&-"), Some(1));
    assert_eq!(folder.read("b"), b"old");
    assert_eq!(shell("</dev/null"), Some(0));
    assert!(folder.read("b").is_empty());
}

#[test]
fn one_of_several_that_fails_is_told_once() {
    let folder = Folder::new();
    for name in ["a", "b", "c"] {
        folder.write(name, &bytes(1000));
    }
    folder.directory("d");
    folder.directory("d/b");
    let ran = folder.haul("copy -q a b c d");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert!(
        ran.error().contains("1 of 3 files failed"),
        "{}",
        ran.stderr
    );
    assert_eq!(folder.names("d"), ["a", "b", "c"]);
}

#[test]
fn one_of_several_that_is_missing_fails_alone() {
    let folder = Folder::new();
    folder.write("a", &bytes(300_000));
    folder.write("c", b"");
    folder.directory("d");
    folder.write("d/b", b"old");
    let ran = folder.haul("copy -q --json a b c d");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let told = "haul: 1 of 3 files failed; the first: cannot open b: no such file or directory\n";
    assert_eq!(ran.stderr, told);
    let json = ran.json();
    assert_eq!(json["outcome"], "partial");
    assert_eq!(json["files"][1]["error"]["side"], "sender");
    assert_eq!(json["files"][1]["bytes"], serde_json::Value::Null);
    assert_eq!(folder.names("d"), ["a", "b", "c"]);
    assert_eq!(folder.read("d/b"), b"old", "it is left as it was");
    assert!(folder.read("d/a") == bytes(300_000));
    // It is not the target's fault, whatever lies in its place.
    folder.directory("d/e");
    for name in ["e", "e/"] {
        let ran = folder.haul(&format!("copy -q a {name} d"));
        assert_eq!(ran.code, 23, "{}", ran.stderr);
        assert!(
            ran.error()
                .contains(&format!("{name}: no such file or directory")),
            "{}",
            ran.stderr
        );
    }
    std::fs::remove_dir(folder.path("d/e")).expect("removed");
    // What names nothing is told before anything moves.
    for name in ["no/..", "no/.", &"x".repeat(300)] {
        let ran = folder.haul(&format!("copy -q a {name} d"));
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(
            ran.error().contains(&format!("cannot open {name}")),
            "{}",
            ran.stderr
        );
    }
    // Nothing of what was meant can be had.
    let ran = folder.haul("copy -q no nowhere d");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(folder.names("d"), ["a", "b", "c"]);
}
