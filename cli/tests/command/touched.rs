//! Sources whose inode changes while they are copied.
//!
//! Leaves to others: sources whose bytes visibly change. Invariant: the change
//! comes after the first bytes landed, and a limited rate keeps the last from
//! having gone out by then.

use crate::support::{Folder, Ran, Server, bytes};
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

const SIZE: usize = 4_000_000;

/// `haul copy` of `line` at 2 MB/s, with `change` done to the source at `path` once
/// something landed.
fn copy(folder: &Folder, line: &str, path: &Path, change: &dyn Fn(&Path)) -> Ran {
    std::fs::write(path, bytes(SIZE)).expect("written");
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("chmod");
    let file = File::options().write(true).open(path).expect("opens");
    file.set_modified(SystemTime::UNIX_EPOCH).expect("mtime");
    let to_output = line.ends_with(" -");
    let events = if to_output { "" } else { "--events" };
    let line = format!("copy -I -q {events} --chunk-size 64KiB --limit-rate 2MB {line}");
    let mut child = folder.command(&line).spawn().expect("started");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut stdout = Vec::new();
    loop {
        let seen = stdout.len();
        let read = match to_output {
            true => output.by_ref().take(1).read_to_end(&mut stdout),
            false => output.read_until(b'\n', &mut stdout),
        };
        assert!(read.expect("reads") > 0, "{line}: it ended too early");
        let event = serde_json::from_slice(&stdout[seen..]).unwrap_or(serde_json::Value::Null);
        if to_output || event["landed_bytes"].as_u64() > Some(0) {
            break;
        }
    }
    change(path);
    output.read_to_end(&mut stdout).expect("reads");
    let ended = child.wait_with_output().expect("ended");
    Ran {
        code: ended.status.code().unwrap_or(-1),
        stdout,
        stderr: String::from_utf8_lossy(&ended.stderr).into_owned(),
    }
}

/// Each way that a file goes, side by side in folders of their own: the line, and
/// where the file arrives.
fn each_way(check: impl Fn(&Folder, &str, &str) + Sync) {
    std::thread::scope(|scope| {
        for way in 0..4 {
            let check = &check;
            scope.spawn(move || {
                let folder = Folder::new();
                folder.directory("root");
                let server = Server::start(&folder, "--root root");
                let (from, to) = (server.url("source"), server.url("pushed"));
                match way {
                    0 => check(&folder, "root/source local", "local"),
                    1 => check(&folder, &format!("root/source {to}"), "root/pushed"),
                    2 => check(&folder, &format!("{from} pulled"), "pulled"),
                    _ => check(&folder, "root/source -", "-"),
                }
            });
        }
    });
}

#[test]
fn a_change_of_the_inode_alone_costs_nothing_and_is_taken() {
    type Change = (&'static str, fn(&Path), u32);
    const CHANGES: [Change; 3] = [
        (
            "chmod",
            |path| std::fs::set_permissions(path, Permissions::from_mode(0o640)).expect("chmod"),
            0o640,
        ),
        (
            "a hard link",
            |path| std::fs::hard_link(path, path.with_extension("link")).expect("linked"),
            0o644,
        ),
        (
            "a rename",
            |path| std::fs::rename(path, path.with_extension("moved")).expect("renamed"),
            0o644,
        ),
    ];
    each_way(|folder, line, arrives| {
        let path = folder.path("root/source");
        for (what, change, mode) in CHANGES {
            let _ = std::fs::remove_file(path.with_extension("link"));
            let ran = copy(folder, line, &path, &change);
            assert_eq!(ran.code, 0, "{line}, {what}: {}", ran.stderr);
            if arrives == "-" {
                assert!(ran.stdout == bytes(SIZE), "{line}, {what}");
                continue;
            }
            assert!(folder.read(arrives) == bytes(SIZE), "{line}, {what}");
            let facts = std::fs::metadata(folder.path(arrives)).expect("metadata");
            let mode_now = facts.permissions().mode() & 0o7777;
            assert_eq!(mode_now, mode, "{line}, {what}");
            let mtime = facts.modified().expect("mtime");
            assert_eq!(mtime, SystemTime::UNIX_EPOCH, "{line}, {what}");
        }
    });
}

#[test]
fn a_byte_that_changed_in_secret_is_code_5() {
    let forge = |path: &Path| {
        let file = File::options().write(true).open(path).expect("opens");
        // The first byte went out long ago.
        file.write_all_at(b"!", 0).expect("written");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("mtime");
    };
    each_way(|folder, line, arrives| {
        let ran = copy(folder, line, &folder.path("root/source"), &forge);
        assert_eq!(ran.code, 5, "{line}: {}", ran.stderr);
        let error = ran.error();
        assert!(error.contains("changed while it was read"), "{error}");
        assert!(error.contains("modification time are as before"), "{error}");
        assert!(!folder.path(arrives).exists(), "{line}");
        assert_eq!(folder.names("root"), ["source"]);
    });
}
