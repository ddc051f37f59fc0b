//! `haul bench` with small amounts: its figures, not its speed.
//!
//! Leaves to others: measuring anything. Invariant: every file that a bench
//! made is gone afterwards.

use crate::support::Folder;
use serde_json::Value;

fn bench(folder: &Folder, options: &str) -> Value {
    folder
        .must(&format!("bench --json --directory . {options}"))
        .json()
}

#[test]
fn file_to_file_is_compared_and_leaves_nothing() {
    let folder = Folder::new();
    for reverse in ["", "--reverse"] {
        let json = bench(&folder, &format!("--bytes 3000001 --runs 2 {reverse}"));
        assert_eq!(json["outcome"], "complete");
        let runs = json["runs"].as_array().expect("runs");
        assert_eq!(runs.len(), 2);
        for run in runs {
            assert_eq!(run["compared"], true);
            assert_eq!(run["bytes"]["landed"], 3_000_001);
            assert_eq!(run["level"], "sealed");
        }
        assert_eq!(json["summary"]["runs"], 2);
    }
    assert!(folder.names(".").is_empty(), "{:?}", folder.names("."));
}

#[test]
fn a_sweep_runs_every_combination() {
    let folder = Folder::new();
    let json = bench(
        &folder,
        "--bytes 1MiB --source zero --sink null --sweep connections=1,3:chunk=64KiB,256KiB",
    );
    let configurations = json["configurations"].as_array().expect("configurations");
    assert_eq!(configurations.len(), 4);
    for run in json["runs"].as_array().expect("runs") {
        let asked = run["configuration"]["connections"].as_u64();
        let used = run["connections"].as_array().map(|all| all.len() as u64);
        assert_eq!(asked, used);
        assert_eq!(run["chunk_bytes"], run["configuration"]["chunk_bytes"]);
        assert_eq!(run["level"], "delivered");
    }
}

#[test]
fn a_time_gives_intervals_that_add_up() {
    let folder = Folder::new();
    for reverse in ["", "--reverse"] {
        let json = bench(
            &folder,
            &format!("--seconds 0.5 --interval 200ms --limit-rate 20MB {reverse}"),
        );
        assert_eq!(json["outcome"], "complete");
        let landed = json["runs"][0]["bytes"]["landed"].as_u64();
        let intervals = json["intervals"].as_array().expect("intervals");
        assert!(intervals.len() > 1, "{json}");
        let sum: u64 = intervals
            .iter()
            .map(|one| one["bytes"].as_u64().expect("bytes"))
            .sum();
        assert_eq!(Some(sum), landed);
        assert!(intervals[0]["connections"][0]["tcp"]["rtt_us"].is_u64());
    }
}

#[test]
fn a_file_of_the_user_s_stays() {
    let folder = Folder::new();
    folder.write("mine", &crate::support::bytes(500_000));
    for reverse in ["", "--reverse"] {
        let json = bench(&folder, &format!("--source mine {reverse}"));
        assert_eq!(json["runs"][0]["compared"], true, "{json}");
    }
    assert_eq!(folder.names("."), ["mine"]);
}

#[test]
fn the_human_report_is_the_result() {
    let folder = Folder::new();
    let ran = folder.must("bench --directory . --bytes 1MiB");
    let text = String::from_utf8(ran.stdout).expect("text");
    assert!(
        text.contains("latency µs") && text.contains("compared"),
        "{text}"
    );
}
