//! Stops while a disk does not answer.
//!
//! Leaves to others: stops that are clean. Invariant: the disk answers again before
//! a process is waited for, since the kernel lets none end before.

use crate::mount::Mount;
use crate::support::bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::sync::mpsc;
use std::time::Duration;

/// What `line` says on standard output after a signal while the disk is frozen.
fn stopped(line: &str) -> Option<Value> {
    let mount = Mount::new("ext4")?;
    let folder = &mount.0;
    folder.write("source", &bytes(30_000_000));
    let mut child = folder.command(line).spawn().expect("started");
    let at_work = || {
        folder
            .names("mount")
            .iter()
            .any(|name| name.starts_with(".haul-"))
    };
    while !at_work() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let frozen = mount.freeze();
    kill_process(Pid::from_child(&child), Signal::TERM).expect("signalled");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let (line_read, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = String::new();
        output.read_line(&mut said).expect("read");
        // Nobody hears it who waited too long for it.
        let _ = line_read.send(said);
    });
    let said = said.recv_timeout(Duration::from_secs(60));
    drop(frozen);
    let said = said.unwrap_or_default();
    let status = child.wait().expect("ended");
    assert_eq!(status.code(), Some(143), "{line}: {said}");
    Some(
        serde_json::from_str(&said).unwrap_or_else(|error| unreachable!("{line}: {error}: {said}")),
    )
}

#[test]
fn a_disk_that_does_not_answer_keeps_no_report_back() {
    std::thread::scope(|scope| {
        for line in [
            "copy -q --json --limit-rate 4MB source mount/target",
            "copy -q --json --no-fsync --limit-rate 4MB source mount/target",
        ] {
            scope.spawn(move || {
                if let Some(report) = stopped(line) {
                    assert_eq!(report["exit_code"], 143, "{line}: {report}");
                    assert_eq!(report["error"]["kind"], "interrupted", "{line}: {report}");
                }
            });
        }
    });
}
