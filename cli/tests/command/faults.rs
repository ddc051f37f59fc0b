//! The same fault has the same code, and is said alike, at either end.
//!
//! Leaves to others: faults of connections. Invariant: every error names its
//! file, and no number of the system's is said.

use crate::support::{Folder, Server, bytes, run};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::process::Command;

/// What is in the way, by name; most are made in `root`, where the server is.
fn make(folder: &Folder) {
    folder.directory("root");
    folder.directory("root/directory");
    folder.write("root/good", &bytes(1000));
    folder.write("root/file", b"x");
    let made = Command::new("mkfifo")
        .arg(folder.path("root/fifo"))
        .status();
    assert!(made.expect("mkfifo").success());
    symlink("loop2", folder.path("root/loop1")).expect("linked");
    symlink("loop1", folder.path("root/loop2")).expect("linked");
}

/// The code and the error of one command line.
fn fault(folder: &Folder, line: &str) -> (i32, String) {
    let ran = folder.haul(line);
    let error = ran.error().to_owned();
    assert!(!ran.stderr.contains("os error"), "{line}: {}", ran.stderr);
    assert!(ran.stdout.is_empty(), "{line}");
    (ran.code, error)
}

#[test]
fn a_source_that_cannot_be_read_has_one_code_everywhere() {
    let folder = Folder::new();
    make(&folder);
    let long = "n".repeat(300);
    let server = Server::start(&folder, "--root root");
    for (name, code, words) in [
        ("missing", 1, "no such file or directory"),
        ("missing/below", 1, "no such file or directory"),
        ("file/below", 1, "not a directory"),
        ("fifo", 2, "it is a FIFO"),
        (long.as_str(), 1, "too long"),
        ("loop1", 1, "link"),
    ] {
        let server_name = server.url(name);
        for line in [
            format!("copy root/{name} out"),
            format!("copy root/{name} {}", server.url("out")),
            format!("copy {server_name} out"),
        ] {
            let (ended, error) = fault(&folder, &line);
            assert_eq!(ended, code, "{line}: {error}");
            assert!(error.contains(words), "{line}: {error}");
            assert!(error.contains(name), "{line}: {error}");
        }
    }
    // The user's own links are followed, and so it is a loop and said to be one.
    for target in ["out".to_owned(), server.url("out")] {
        let (_, error) = fault(&folder, &format!("copy root/loop1 {target}"));
        assert!(error.contains("loop of symbolic links"), "{error}");
    }
}

#[test]
fn a_target_that_cannot_be_has_one_code_everywhere() {
    let folder = Folder::new();
    make(&folder);
    let long = "n".repeat(300);
    let server = Server::start(&folder, "--root root");
    for (name, code, words) in [
        ("missing/out", 1, "no such file or directory"),
        ("file/out", 1, "not a directory"),
        ("file/", 1, "not a directory"),
        ("fifo", 1, "FIFO"),
        (long.as_str(), 1, "too long"),
    ] {
        for line in [
            format!("copy root/good root/{name}"),
            format!("copy root/good {}", server.url(name)),
            format!("copy {} root/{name}", server.url("good")),
        ] {
            let (ended, error) = fault(&folder, &line);
            assert_eq!(ended, code, "{line}: {error}");
            assert!(error.contains(words), "{line}: {error}");
            assert!(
                error.contains(name.trim_end_matches('/')),
                "{line}: {error}"
            );
        }
    }
    assert_eq!(
        folder
            .names("root")
            .iter()
            .filter(|name| name.starts_with(".haul-"))
            .count(),
        0
    );
}

#[test]
fn the_longest_path_is_named_whole_with_its_reason() {
    let folder = Folder::new();
    folder.directory("root");
    let server = Server::start(&folder, "--root root");
    let part = "p".repeat(200);
    let path = vec![part.as_str(); 19].join("/");
    let mut command = folder.command("copy");
    command.arg(server.url(&path)).arg("out");
    let ran = run(command, Vec::new());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(&path), "the whole name");
    assert!(
        ran.stderr.contains("no such file or directory"),
        "{}",
        ran.stderr
    );
    let mut odd = folder.command("copy");
    odd.arg(std::ffi::OsStr::from_bytes(b"no\x1b[31m\nfile\xff"))
        .arg("out");
    let ran = run(odd, Vec::new());
    assert_eq!(ran.code, 1);
    assert!(!ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{:?}", ran.stderr);
}
