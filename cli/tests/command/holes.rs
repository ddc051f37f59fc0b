//! Files with holes, on memory and on disks, every way there is.
//!
//! Leaves to others: which ranges there are (the engine's own tests). Invariant:
//! neither end has more storage after a copy than its data takes.

use crate::mount::Mount;
use crate::support::{Folder, Ran, Server, run};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const MIB: u64 = 1 << 20;

/// 100 MiB with three stretches of data: at the front, odd in the middle, at the
/// end. Or none at all.
fn make(path: &Path, has_data: bool) {
    let file = File::create(path).expect("made");
    file.set_len(100 * MIB).expect("sized");
    if has_data {
        file.write_all_at(&[1; 300_000], 0).expect("written");
        file.write_all_at(&[2; 5 << 20], 40 * MIB + 12_345)
            .expect("written");
        file.write_all_at(&[3; 10], 100 * MIB - 10)
            .expect("written");
    }
    file.sync_all().expect("synced");
}

fn blocks(path: &Path) -> u64 {
    path.metadata().expect("looked at").blocks()
}

/// haul on paths that hold no blank.
fn haul(folder: &Folder, line: &str) -> Ran {
    let ran = run(folder.command(line), Vec::new());
    assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    ran
}

fn copies_keep_holes(kind: &str, options: &[&str]) {
    let Some(mount) = Mount::new(kind) else {
        return;
    };
    let folder = &mount.0;
    let server = Server::start(folder, "--root mount");
    for has_data in [true, false] {
        let source = folder.path("mount/source");
        make(&source, has_data);
        let before = blocks(&source);
        for options in options {
            for line in [
                // A clone has the source's holes, and nothing of it is sent.
                format!("copy --json --reflink never {options} mount/source mount/local"),
                format!(
                    "copy --json {options} mount/source {}",
                    server.url("pushed")
                ),
                format!(
                    "copy --json {options} {} mount/pulled",
                    server.url("source")
                ),
            ] {
                let json = haul(folder, &line).json();
                let holes = json["files"][0]["hole_bytes"].as_u64().expect("a count");
                let planned = json["bytes"]["planned"].as_u64().expect("a count");
                assert_eq!(holes + planned, 100 * MIB, "{kind}: {line}");
                assert!(
                    planned < 7 * MIB,
                    "{kind}: {line}: {planned} bytes were sent"
                );
            }
            assert_eq!(
                blocks(&source),
                before,
                "{kind} {options}: the source changed"
            );
            let content = std::fs::read(&source).expect("read");
            // Reading a file in memory as a whole may have filled it.
            make(&source, has_data);
            for name in ["local", "pushed", "pulled"] {
                let target = folder.path(&format!("mount/{name}"));
                // A block of the file system's own records may come to each stretch.
                let (stored, most) = (blocks(&target), before + 3 * 16);
                assert!(
                    stored <= most,
                    "{kind} {options} {name}: {stored} blocks of {before}"
                );
                assert!(
                    std::fs::read(&target).expect("read") == content,
                    "{kind} {name}"
                );
                std::fs::remove_file(target).expect("removed");
            }
        }
        let whole = haul(folder, &format!("copy -q {} -", server.url("source")));
        assert!(
            whole.stdout == std::fs::read(&source).expect("read"),
            "{kind}: to a pipe"
        );
    }
    drop(server);
}

#[test]
fn holes_stay_holes_in_memory() {
    copies_keep_holes(
        "tmpfs",
        &["", "-n 4 --transmit splice", "--transmit zerocopy"],
    );
}

#[test]
fn holes_stay_holes_on_ext4() {
    copies_keep_holes("ext4", &["", "--no-fsync", "--verify", "--drop-cache"]);
}

#[test]
fn holes_stay_holes_on_xfs() {
    copies_keep_holes("xfs", &["", "--no-fsync", "--verify"]);
}

#[test]
fn a_hole_that_is_filled_meanwhile_is_a_change() {
    let folder = Folder::new();
    make(&folder.path("source"), true);
    let mut command = folder.command("copy --limit-rate 2MB source target");
    let child = command.spawn().expect("started");
    while !folder
        .names(".")
        .iter()
        .any(|name| name.starts_with(".haul-"))
    {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let file = File::options()
        .write(true)
        .open(folder.path("source"))
        .expect("opened");
    file.write_all_at(&[9; 10], 20 * MIB).expect("written");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(
        output.status.code(),
        Some(5),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(folder.names("."), ["source"]);
}
