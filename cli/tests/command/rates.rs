//! A limited rate holds from the first byte on.
//!
//! Leaves to others: how the bytes are paced. Invariant: what is compared are
//! bytes with the time that haul itself gives for them.

use crate::support::{Folder, Ran, Server, bytes};
use serde_json::Value;

const RATE: f64 = 4_000_000.0;
/// 100 ms of the rate, and a chunk that is on its way as a whole.
const BURST: f64 = RATE / 10.0 + 262_144.0;

fn check(ran: &Ran, what: &str) {
    let text = String::from_utf8_lossy(&ran.stdout);
    let mut seen = 0;
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        let (Some(landed), Some(seconds)) =
            (event["landed_bytes"].as_f64(), event["seconds"].as_f64())
        else {
            continue;
        };
        seen += 1;
        let most = RATE * seconds + BURST;
        assert!(landed <= most, "{what}: {landed} bytes in {seconds} s");
    }
    assert!(seen > 3, "{what}: {text}");
}

#[test]
fn no_more_lands_than_the_rate_and_a_burst_allow() {
    let folder = Folder::new();
    folder.directory("root");
    folder.write("root/source", &bytes(3_000_000));
    let server = Server::start(&folder, "--root root");
    let from = server.url("source");
    let to = server.url("target");
    for line in [
        format!("copy -I --events --limit-rate 4MB root/source {to}"),
        format!("copy -I --events --limit-rate 4MB {from} target"),
        "copy -I --events --limit-rate 4MB root/source local".to_owned(),
        format!("copy -I --events --limit-rate 4MB -n 16 root/source {to}"),
        format!("copy -I --events --limit-rate 4MB -n 16 {from} target"),
    ] {
        check(&folder.must(&line), &line);
    }
    let line = format!("copy -I --events --limit-rate 4MB - {to}");
    let ran = folder.haul_with(&line, bytes(3_000_000));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    check(&ran, &line);
}
