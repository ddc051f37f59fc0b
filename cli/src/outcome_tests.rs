//! Tests of the JSON report against its written schema.
//!
//! Leaves to others: real runs (cli/tests). Invariant: SCHEMA.md's tables and
//! the JSON name the same fields, in both directions.

use super::*;
use haul_engine::Side;
use haul_engine::report::{EntryReportKind, TcpInfo};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// A report in which everything occurred.
pub fn full_report() -> Report {
    let mut sender = SideReport {
        system_calls: 10,
        cpu_nanos: 1_500_000_000,
        method: "mapping".to_owned(),
        notes: vec!["cubic on loopback".to_owned()],
        lost: vec!["the owners of 2 entries were not kept".to_owned()],
        zero_copy_copied_bytes: 1_024,
        ..SideReport::default()
    };
    sender.latencies.send.record(1_500, 3);
    sender.latencies.release.record(2_500, 3);
    sender.latencies.landed.record(3_500, 3);
    sender.connections = vec![ConnectionReport {
        connection: 1,
        bytes: 1_024,
        path: "copy".to_owned(),
        send_buffer_bytes: 5,
        receive_buffer_bytes: 6,
        congestion_control: "cubic".to_owned(),
        tcp: Some(TcpInfo::default()),
        lost: None,
    }];
    let mut receiver = sender.clone();
    receiver.latencies = Latencies::default();
    receiver.latencies.write.record(4_500, 1);
    receiver.latencies.sync.record(5_500, 1);
    receiver.connections[0].receive_buffer_bytes = 77;
    let error = Error::new(ErrorKind::Partial, "cannot do it").at(Side::Receiver);
    Report {
        files: vec![FileReport {
            name: "a".to_owned(),
            kind: EntryReportKind::File,
            bytes: Some(1_024),
            hole_bytes: 0,
            shared_bytes: 0,
            level: Some(Level::Sealed),
            error: Some(ErrorReport::from(&error)),
            digest: None,
            mtime: None,
            is_renamed: false,
        }],
        bytes: Bytes {
            planned: 2_048,
            landed: 1_024,
            sealed: 1_024,
            resent: 0,
        },
        seconds: Seconds {
            total: 0.5,
            first_byte: Some(0.1),
            moving: 0.3,
            sealing: 0.1,
        },
        chunk_bytes: 262_144,
        sender: Some(sender),
        receiver: Some(receiver),
        level: Some(Level::Sealed),
        authenticated: true,
        ..Report::failed(error, Duration::ZERO)
    }
}

/// Every path of `value`, with [] for a list's members.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let below = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                paths(field, &below, found);
            }
        }
        Value::Array(members) if members.iter().any(Value::is_object) => {
            for member in members {
                paths(member, &format!("{path}[]"), found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// The fields in the rows of SCHEMA.md's section `heading`: `a.{b,c}` is two,
/// and `*` is every stage.
fn documented(heading: &str) -> BTreeSet<String> {
    let text = include_str!("../SCHEMA.md");
    let section = text
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .expect("the section");
    let mut found = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let field = row.split('`').nth(1).expect("a field in back quotes");
        for one in expand(field) {
            found.insert(one);
        }
    }
    found
}

/// `a.{b,c}.d` → `a.b.d`, `a.c.d`.
fn expand(field: &str) -> Vec<String> {
    let Some((head, rest)) = field.split_once('{') else {
        return vec![field.to_owned()];
    };
    let (list, tail) = rest.split_once('}').expect("a closed brace");
    list.split(',')
        .flat_map(|name| expand(&format!("{head}{name}{tail}")))
        .collect()
}

#[test]
fn the_schema_and_the_json_name_the_same_fields() {
    let json: Value =
        serde_json::from_str(&ReportJson::new(&full_report(), None).to_line()).expect("JSON");
    let mut found = BTreeSet::new();
    paths(&json, "", &mut found);
    assert_eq!(found, documented("The report"));
}

#[test]
fn what_was_not_measured_is_null() {
    let report = Report::failed(
        Error::peer("cannot connect to h", "refused"),
        Duration::from_secs(3),
    );
    let json: Value =
        serde_json::from_str(&ReportJson::new(&report, None).to_line()).expect("JSON");
    assert_eq!(json["outcome"], "failed");
    assert_eq!(json["exit_code"], 3);
    assert_eq!(json["seconds"]["total"], 3.0);
    assert_eq!(json["error"]["kind"], "peer");
    for path in [
        "/latency/send",
        "/latency/sync",
        "/system_calls/sender",
        "/cpu_seconds/receiver",
        "/zero_copy/sent_bytes",
        "/goodput_bytes_per_second",
        "/chunk_bytes",
        "/level",
    ] {
        assert_eq!(json.pointer(path), Some(&Value::Null), "{path}");
    }
}

#[test]
fn figures_are_in_their_units() {
    let json: Value =
        serde_json::from_str(&ReportJson::new(&full_report(), None).to_line()).expect("JSON");
    assert_eq!(json["outcome"], "partial");
    assert_eq!(json["goodput_bytes_per_second"], 2_048.0);
    assert_eq!(json["cpu_seconds"]["sender"], 1.5);
    assert_eq!(json["latency"]["send"]["count"], 3);
    let p50 = json["latency"]["send"]["p50_us"]
        .as_f64()
        .expect("a number");
    assert!((1.48..=1.52).contains(&p50), "{p50}");
    assert_eq!(json["connections"][0]["send_buffer_bytes"], 5);
    assert_eq!(
        json["connections"][0]["receive_buffer_bytes"], 77,
        "the receive buffer is the receiver's"
    );
}

#[test]
fn exit_codes_by_error_and_signal() {
    let interrupted = Error::new(ErrorKind::Interrupted, "stopped");
    let lost = Error::peer("cannot go on", "lost");
    assert_eq!(exit_code(None, None), 0);
    // It was complete before the signal could stop it.
    assert_eq!(exit_code(None, Some(130)), 0);
    assert_eq!(exit_code(Some(&interrupted), None), 130);
    assert_eq!(exit_code(Some(&interrupted), Some(143)), 143);
    assert_eq!(exit_code(Some(&lost), Some(130)), 3);
}
