//! Files compared by what they hold (`--checksum`).
//!
//! Leaves to others: comparing by size and time (rules.rs). Invariant: fresh folders.

use crate::support::{Folder, Server, bytes};
use std::fs::File;
use std::time::{Duration, SystemTime};

/// Gives a file a modification time, so many seconds after 2001.
fn date(folder: &Folder, name: &str, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(978_307_200 + seconds);
    let file = File::options().append(true).open(folder.path(name));
    file.expect("opened").set_modified(time).expect("dated");
}

fn time(folder: &Folder, name: &str) -> SystemTime {
    let looked = folder.path(name).metadata().expect("there");
    looked.modified().expect("a time")
}

#[test]
fn what_holds_the_same_is_passed_over_whatever_its_time() {
    for way in ["here", "push", "pull"] {
        let folder = Folder::new();
        for tree in ["source", "target"] {
            folder.directory(tree);
            folder.write(&format!("{tree}/same"), &bytes(700_000));
            folder.write(&format!("{tree}/changed in secret"), &bytes(300_000));
            folder.write(&format!("{tree}/empty"), b"");
        }
        let mut changed = bytes(300_000);
        changed[299_999] ^= 1;
        folder.write("target/changed in secret", &changed);
        folder.write("source/longer", &bytes(20));
        folder.write("target/longer", &bytes(10));
        for (name, seconds) in [("same", 5), ("changed in secret", 0), ("empty", 9)] {
            date(&folder, &format!("source/{name}"), seconds);
            date(&folder, &format!("target/{name}"), 0);
        }
        let server = Server::start(&folder, "--root .");
        let ends = match way {
            "here" => "source/ target".to_owned(),
            "push" => format!("source/ {}", server.url("target")),
            _ => format!("{} target", server.url("source/")),
        };
        // By size and time the change is not seen, and what is the same is sent.
        let dry = folder.must(&format!("copy --dry-run {ends}"));
        let told = String::from_utf8_lossy(&dry.stdout).into_owned();
        assert!(told.contains("same (its time differs)"), "{told}");
        assert!(!told.contains("secret"), "{told}");
        let dry = folder.must(&format!("copy --dry-run --checksum {ends}"));
        let told = String::from_utf8_lossy(&dry.stdout).into_owned();
        for line in [
            "send     changed in secret (its content differs)",
            "send     longer (its size differs)",
            "correct  same",
            "correct  empty",
        ] {
            assert!(told.contains(line), "{way}: {line}: {told}");
        }
        let ran = folder.must(&format!("copy --checksum --json {ends}"));
        let json = ran.json();
        assert_eq!(json["bytes"]["landed"], 300_020, "{way}: {json}");
        assert_eq!(json["entries"]["unchanged"], 2, "{way}: {json}");
        for name in ["same", "changed in secret", "empty", "longer"] {
            let (source, target) = (format!("source/{name}"), format!("target/{name}"));
            assert_eq!(folder.read(&source), folder.read(&target), "{way}: {name}");
            assert_eq!(
                time(&folder, &source),
                time(&folder, &target),
                "{way}: {name}"
            );
        }
        let again = folder.must(&format!("copy -c --json {ends}")).json();
        assert_eq!(again["bytes"]["landed"], 0, "{way}: {again}");
    }
}

#[test]
fn a_source_that_cannot_be_read_is_not_taken_for_the_same() {
    let folder = Folder::new();
    folder.directory("source");
    folder.write("source/a", b"a");
    folder.write("source/b", b"b");
    folder.must("copy source/ target");
    std::fs::remove_file(folder.path("source/a")).expect("removed");
    std::os::unix::fs::symlink("b", folder.path("source/a")).expect("linked");
    folder.must("copy --checksum source/ target");
    let link = folder.path("target/a").symlink_metadata().expect("there");
    assert!(link.is_symlink());
    let ran = folder.haul("copy --checksum --ignore-times source/ target");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
}
