//! What killed transfers leave behind, and who removes it.
//!
//! Leaves to others: the walk itself (the engine's tests). Invariant: a running
//! transfer's file is never touched.

use crate::support::{Folder, Server, bytes};
use rustix::process::Signal;
use std::process::{Child, Stdio};
use std::time::Duration;

fn temporaries(folder: &Folder, name: &str) -> Vec<String> {
    let mut names = folder.names(name);
    names.retain(|name| name.starts_with(".haul-"));
    names
}

/// A copy into `to` that goes on for a while, once its temporary file is there.
fn slow(folder: &Folder, to: &str) -> Child {
    let before = temporaries(folder, to).len();
    let mut command = folder.command(&format!("copy --limit-rate 1MB long {to}/long"));
    let child = command.stderr(Stdio::null()).spawn().expect("started");
    while temporaries(folder, to).len() == before {
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

#[test]
fn what_a_killed_copy_left_goes_and_a_running_one_keeps_its_own() {
    let folder = Folder::new();
    folder.write("long", &bytes(30_000_000));
    folder.directory("to");
    let mut killed = slow(&folder, "to");
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    let left = temporaries(&folder, "to");
    assert_eq!(left.len(), 1);
    let mut running = slow(&folder, "to");

    let young = folder.must("clean --older-than 1h to");
    assert!(young.stdout.is_empty());
    assert!(
        young
            .stderr
            .contains("removed 0 temporary files, 1 in use, 1 too young"),
        "{}",
        young.stderr
    );
    let dry = folder.must("clean --dry-run to");
    assert_eq!(
        String::from_utf8_lossy(&dry.stdout),
        format!("to/{}\n", left[0])
    );
    let json = folder.must("clean --json .").json();
    assert_eq!(
        (&json["removed"], &json["held"]),
        (&1.into(), &1.into()),
        "{json}"
    );
    let now = temporaries(&folder, "to");
    assert_eq!(now.len(), 1);
    assert!(!now.contains(&left[0]));
    running.kill().expect("killed");
    running.wait().expect("ended");
}

#[test]
fn a_server_cleans_below_its_root_when_it_starts() {
    let folder = Folder::new();
    folder.directory("root");
    folder.directory("root/sub");
    folder.write("root/sub/.haul-0123456789abcdef", &bytes(10_000));
    folder.write("root/.haul-not-ours", b"x");
    let server = Server::start(&folder, "--root root");
    let line = server.wait_for("below the root");
    assert!(line.contains("removed 1 temporary file of"), "{line}");
    assert_eq!(folder.names("root"), [".haul-not-ours", "sub"]);
    assert!(folder.names("root/sub").is_empty());
    server.stop(Signal::TERM);
}

#[test]
fn what_cannot_be_cleaned_is_said() {
    let folder = Folder::new();
    folder.write("file", b"x");
    for (line, code, words) in [
        (
            "clean none",
            1,
            "cannot clean none: no such file or directory",
        ),
        ("clean file", 1, "cannot clean file: not a directory"),
        ("clean", 2, "<DIR>"),
        ("clean --older-than soon .", 2, "is not an age"),
        ("clean --older-than -3d .", 2, ""),
    ] {
        let ran = folder.haul(line);
        assert_eq!(ran.code, code, "{line}: {}", ran.stderr);
        assert!(ran.error().contains(words), "{line}: {}", ran.stderr);
    }
}
