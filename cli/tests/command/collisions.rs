//! Copies that want the same name at the same time.
//!
//! Leaves to others: who holds a name (the engine's tests). Invariant: each test asks
//! a server of its own.

use crate::support::{Folder, Server, bytes};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A push of `long` to `name` that goes on for a while, once its file is there.
fn slow(folder: &Folder, server: &Server, name: &str) -> Child {
    let temporaries = || {
        let names = folder.names("root");
        names
            .iter()
            .filter(|name| name.starts_with(".haul-"))
            .count()
    };
    let before = temporaries();
    let line = format!("copy --limit-rate 5MB long {}", server.url(name));
    let mut command = folder.command(&line);
    let child = command.stderr(Stdio::null()).spawn().expect("started");
    while temporaries() == before {
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("signalled");
}

#[test]
fn a_name_that_another_copy_writes_is_refused_and_free_afterwards() {
    let folder = Folder::new();
    folder.directory("root");
    folder.directory("in");
    let content = bytes(10_000_000);
    folder.write("long", &content);
    folder.write("name", b"another");
    folder.write("other", b"other");
    folder.write("in/more", b"more");
    std::os::unix::fs::symlink("nowhere", folder.path("in/name")).expect("linked");
    let server = Server::start(&folder, "--root root");
    let mut first = slow(&folder, &server, "name");
    // It has the name as long as this takes.
    signal(&first, Signal::STOP);
    folder.must(&format!("copy -q other {}", server.url("")));
    assert_eq!(folder.read("root/other"), b"other");
    let refused = "cannot write name: another transfer is writing it";
    for (line, code) in [
        (format!("copy -q name {}", server.url("name")), 1),
        // Among others, by something without bytes.
        (format!("copy -q in/ {}", server.url("")), 23),
    ] {
        let ran = folder.haul(&line);
        assert_eq!(ran.code, code, "{line}: {}", ran.stderr);
        assert!(ran.error().contains(refused), "{line}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("copy it again when that one is over"),
            "{}",
            ran.stderr
        );
        assert!(!folder.path("root/name").exists());
    }
    signal(&first, Signal::CONT);
    assert_eq!(first.wait().expect("ended").code(), Some(0));
    assert!(folder.read("root/name") == content);
    folder.must(&format!("copy -q name {}", server.url("name")));
    assert_eq!(folder.read("root/name"), b"another");
    assert_eq!(folder.names("root"), ["more", "name", "other"]);
}

#[test]
fn a_copy_that_was_killed_is_begun_again_at_once() {
    let folder = Folder::new();
    folder.directory("root");
    let content = bytes(10_000_000);
    folder.write("long", &content);
    let server = Server::start(&folder, "--root root");
    for _ in 0..3 {
        let mut killed = slow(&folder, &server, "name");
        killed.kill().expect("killed");
        folder.must(&format!("copy -q long {}", server.url("name")));
        killed.wait().expect("ended");
        assert!(folder.read("root/name") == content);
        std::fs::remove_file(folder.path("root/name")).expect("removed");
    }
}

#[test]
fn one_copy_writes_a_name_once_at_a_time() {
    let folder = Folder::new();
    for tree in ["one", "two"] {
        folder.directory(tree);
        folder.write(&format!("{tree}/same"), tree.as_bytes());
        folder.write(&format!("{tree}/{tree}"), b"x");
    }
    let ran = folder.haul("copy -q one/ two/ there");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let told = "cannot write there/same: another source of this copy has that name";
    assert!(ran.error().contains(told), "{}", ran.stderr);
    assert_eq!(folder.names("there"), ["one", "same", "two"]);
    assert_eq!(folder.read("there/same"), b"one");
}
