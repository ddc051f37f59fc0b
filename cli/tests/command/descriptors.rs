//! More sources than descriptors: in one process, to a server and from one.
//!
//! Leaves to others: other limits. Invariant: the number of files has no bound
//! but time, and whatever is short, a command ends, with the files or with a
//! sentence. The limit is set by prlimit(1), for haul alone.

use crate::support::{Folder, Ran, Server, can_limit, run};
use std::process::Command;

/// Enough to be more than one message names and many times what 64 descriptors
/// hold.
const SOURCES: usize = 5000;
const FEW: &str = "--nofile=64:64";

/// `command` under `limit` of prlimit(1).
fn under(limit: &str, command: &Command) -> Command {
    let mut limited = Command::new("prlimit");
    limited
        .arg(limit)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// A folder with `SOURCES` small files in `s`, each with its own content, and
/// an empty `d`.
fn many() -> Folder {
    let folder = Folder::new();
    folder.directory("s");
    folder.directory("d");
    for number in 0..SOURCES {
        folder.write(&format!("s/{number}"), &content(number));
    }
    folder
}

fn content(number: usize) -> Vec<u8> {
    format!("{number} ").repeat(number % 50).into_bytes()
}

/// Their names, each behind `prefix`.
fn named(prefix: &str) -> String {
    let names: Vec<String> = (0..SOURCES).map(|n| format!("{prefix}{n}")).collect();
    names.join(" ")
}

/// Every file of `d` is its source, but `missing`, and nothing else is there.
fn is_whole(folder: &Folder, missing: &[usize]) {
    let names = folder.names("d");
    assert_eq!(names.len(), SOURCES - missing.len(), "{:?}", names.first());
    for number in (0..SOURCES).filter(|number| !missing.contains(number)) {
        assert!(folder.read(&format!("d/{number}")) == content(number));
    }
}

fn must(ran: &Ran) {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn many_sources_under_few_descriptors_are_copied() {
    if !can_limit() {
        return;
    }
    let folder = many();
    let copy = folder.command(&format!("copy -q --no-fsync {} d/", named("s/")));
    must(&run(under(FEW, &copy), Vec::new()));
    is_whole(&folder, &[]);
}

#[test]
fn many_sources_are_pushed_between_ends_of_few_descriptors() {
    if !can_limit() {
        return;
    }
    let folder = many();
    let serve = folder.command("serve --listen 127.0.0.1:0 --root .");
    let server = Server::start_by(under(FEW, &serve));
    let target = server.url("d/");
    let copy = folder.command(&format!("copy -q --no-fsync {} {target}", named("s/")));
    must(&run(under(FEW, &copy), Vec::new()));
    is_whole(&folder, &[]);
}

#[test]
fn many_sources_are_pulled_between_ends_of_few_descriptors() {
    if !can_limit() {
        return;
    }
    let folder = many();
    let serve = folder.command("serve --listen 127.0.0.1:0 --root .");
    let server = Server::start_by(under(FEW, &serve));
    let sources = named(&server.url("s/"));
    let copy = folder.command(&format!("copy -q --no-fsync {sources} d/"));
    must(&run(under(FEW, &copy), Vec::new()));
    is_whole(&folder, &[]);
}

#[test]
fn those_that_are_missing_among_many_fail_alone() {
    if !can_limit() {
        return;
    }
    let folder = many();
    let missing = [0, 1234, SOURCES - 1];
    for number in missing {
        std::fs::remove_file(folder.path(&format!("s/{number}"))).expect("removed");
    }
    let copy = folder.command(&format!("copy -q --no-fsync {} d/", named("s/")));
    let ran = run(under(FEW, &copy), Vec::new());
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let told = |number| ran.stderr.contains(&format!("cannot open s/{number}:"));
    assert!(missing.into_iter().all(told), "{}", ran.stderr);
    assert!(ran.stderr.contains("3 of 5000 files"), "{}", ran.stderr);
    is_whole(&folder, &missing);
}

#[test]
fn names_that_meet_in_the_target_are_refused_before_anything_moves() {
    let folder = many();
    folder.directory("other");
    folder.write("other/4321", b"another");
    let ran = folder.haul(&format!("copy -q {} other/4321 d/", named("s/")));
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.error().contains("same name"), "{}", ran.stderr);
    assert_eq!(folder.names("d"), Vec::<String>::new());
}

#[test]
fn fewer_connections_are_told() {
    if !can_limit() {
        return;
    }
    let folder = many();
    let copy = folder.command("copy -n 16 --no-fsync --json s/1 s/2 d/");
    let ran = run(under(FEW, &copy), Vec::new());
    must(&ran);
    let json = ran.json().to_string();
    assert!(
        json.contains("of 16 connections: this process may open 64 files"),
        "{json}"
    );
}

#[test]
fn a_server_that_can_open_nothing_more_says_so() {
    if !can_limit() {
        return;
    }
    let folder = Folder::new();
    folder.write("a", b"some");
    let mut told = 0;
    for limit in 18..28 {
        let serve = folder.command("serve --listen 127.0.0.1:0 --root .");
        let server = Server::start_by(under(&format!("--nofile={limit}:{limit}"), &serve));
        let ran = folder.haul(&format!("copy -q a {}", server.url("b")));
        // How many are open at once at the server hangs on its threads' order,
        // so near the limit a copy may still go through: then it did so whole.
        if ran.code == 0 {
            assert_eq!(folder.read("b"), b"some", "{limit}");
            std::fs::remove_file(folder.path("b")).expect("it is there");
            continue;
        }
        assert_eq!(ran.code, 1, "{limit}: {}", ran.stderr);
        told += usize::from(ran.error().contains(&format!("may open {limit} files")));
    }
    assert!(told > 4, "it says how many it may open");
}
