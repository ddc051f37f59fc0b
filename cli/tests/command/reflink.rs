//! Copies that share blocks with their sources, on file systems of the tests' own.
//!
//! Leaves to others: what a clone is compared with when its source was touched (the
//! engine's tests). Invariant: that blocks are shared is asked of the file system.

use crate::mount::Mount;
use crate::support::{Folder, Ran, bytes, skip};
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: usize = 5_000_000;

fn xfs() -> Option<Mount> {
    Mount::made_with("xfs", &["-m", "reflink=1"])
}

/// True where every block of the file is shared; false where none is.
fn is_shared(path: &Path) -> bool {
    let done = Command::new("filefrag").arg("-v").arg(path).output();
    let done = done.expect("filefrag");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let extents = text.lines().filter(|line| {
        let number = line.split(':').next().unwrap_or_default().trim();
        number.parse::<u32>().is_ok()
    });
    let (shared, own): (Vec<_>, Vec<_>) = extents.partition(|line| line.contains("shared"));
    assert!(shared.is_empty() != own.is_empty(), "{text}");
    own.is_empty()
}

/// True where filefrag(8) is here.
fn can_ask() -> bool {
    let can = Command::new("filefrag").output().is_ok();
    if !can {
        skip("filefrag(8) is not here");
    }
    can
}

fn shared_of(ran: &Ran) -> (u64, u64) {
    let entries = &ran.json()["entries"];
    let count = |name: &str| entries[name].as_u64().expect("a count");
    (count("shared"), count("shared_bytes"))
}

#[test]
fn a_file_shares_its_blocks_and_is_a_file_of_its_own() {
    let Some(mount) = xfs().filter(|_| can_ask()) else {
        return;
    };
    let folder = &mount.0;
    folder.write("mount/source", &bytes(SIZE));
    let ran = folder.must("copy --json mount/source mount/auto");
    assert_eq!(shared_of(&ran), (1, SIZE as u64));
    let json = ran.json();
    assert_eq!(json["level"], "sealed");
    assert_eq!(json["bytes"]["landed"], 0, "nothing moved");
    assert_eq!(json["goodput_bytes_per_second"], 0.0);
    assert_eq!(json["files"][0]["shared_bytes"], SIZE);
    let told = folder.must("copy --reflink always mount/source mount/always");
    let beneath = "1 file shares its blocks with its source: its 4.8 MiB were not sent";
    assert!(told.stderr.contains(beneath), "{}", told.stderr);
    for name in ["mount/auto", "mount/always"] {
        assert!(is_shared(&folder.path(name)), "{name}");
        assert!(folder.read(name) == bytes(SIZE), "{name}");
    }
    // The second finds nothing to do.
    let ran = folder.must("copy --json --reflink always mount/source mount/auto");
    assert_eq!(shared_of(&ran), (0, 0));
    assert_eq!(ran.json()["level"], "unchanged");
    let file = File::options()
        .write(true)
        .open(folder.path("mount/source"));
    file.expect("opens")
        .write_all_at(&[0; SIZE], 0)
        .expect("written");
    for name in ["mount/auto", "mount/always"] {
        assert!(folder.read(name) == bytes(SIZE), "{name} has the old bytes");
    }
    for options in ["--reflink never", "--verify"] {
        let ran = folder.must(&format!("copy --json -I {options} mount/source mount/auto"));
        assert_eq!(shared_of(&ran), (0, 0), "{options}");
        assert_eq!(ran.json()["bytes"]["landed"], SIZE, "{options}");
        assert!(!is_shared(&folder.path("mount/auto")), "{options}");
        assert!(folder.read("mount/auto") == [0; SIZE], "{options}");
    }
}

/// Files of many kinds: empty, small, large, with holes, with several names.
fn make_tree(folder: &Folder) {
    folder.directory("mount/tree");
    folder.directory("mount/tree/inner");
    folder.write("mount/tree/large", &bytes(SIZE));
    folder.write("mount/tree/empty", b"");
    for number in 0..50 {
        folder.write(
            &format!("mount/tree/inner/{number}"),
            &bytes(10 + number * 500),
        );
    }
    let holes = File::create(folder.path("mount/tree/holes")).expect("made");
    holes.set_len(50_000_000).expect("sized");
    holes
        .write_all_at(&[1; 300_000], 20_000_000)
        .expect("written");
    let path = |name: &str| folder.path(&format!("mount/tree/{name}"));
    File::create(path("hole"))
        .and_then(|file| file.set_len(1 << 20))
        .expect("sized");
    std::fs::hard_link(path("large"), path("inner/again")).expect("linked");
    symlink("large", path("link")).expect("linked");
    std::fs::set_permissions(path("large"), Permissions::from_mode(0o750)).expect("chmod");
    let attribute = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path("large"), "user.note", b"kept", attribute).expect("set");
    rustix::fs::sync();
}

#[test]
fn a_tree_shares_its_blocks_and_keeps_the_rest() {
    let Some(mount) = xfs().filter(|_| can_ask()) else {
        return;
    };
    let folder = &mount.0;
    make_tree(folder);
    let ran = folder.must("copy --json --reflink always mount/tree mount/copied");
    let (files, shared) = shared_of(&ran);
    // The empty one has no block, nor that which is one hole.
    assert_eq!(files, 52);
    let small: usize = (0..50).map(|number| 10 + number * 500).sum();
    let of_files = (SIZE + small) as u64;
    assert!(
        (of_files + 300_000..of_files + 500_000).contains(&shared),
        "{shared}"
    );
    assert_eq!(ran.json()["bytes"]["planned"], 0);
    let same = Command::new("diff")
        .args(["-r", "mount/tree", "mount/copied"])
        .current_dir(folder.path("."))
        .status();
    assert!(same.expect("diff").success());
    let facts = |name: &str| folder.path(name).symlink_metadata().expect("there");
    for name in ["large", "holes", "inner/7"] {
        assert!(
            is_shared(&folder.path(&format!("mount/copied/{name}"))),
            "{name}"
        );
    }
    for name in ["large", "holes", "hole", "empty", "inner/7", "inner"] {
        let (from, to) = (
            facts(&format!("mount/tree/{name}")),
            facts(&format!("mount/copied/{name}")),
        );
        let of = |facts: &std::fs::Metadata| (facts.mode(), facts.mtime_nsec(), facts.mtime());
        assert_eq!(of(&from), of(&to), "{name}");
    }
    assert_eq!(
        facts("mount/copied/holes").blocks(),
        facts("mount/tree/holes").blocks()
    );
    assert_eq!(facts("mount/copied/hole").blocks(), 0);
    assert_eq!(
        facts("mount/copied/large").ino(),
        facts("mount/copied/inner/again").ino()
    );
    let mut value = [0; 16];
    let read = rustix::fs::getxattr(folder.path("mount/copied/large"), "user.note", &mut value);
    assert_eq!(&value[..read.expect("kept")], b"kept");
    let again = folder.must("copy --json --reflink always mount/tree/ mount/copied");
    assert_eq!(shared_of(&again), (0, 0), "all is there");
}

#[test]
fn few_descriptors_are_enough_to_share_the_blocks_of_many_files() {
    let Some(mount) = xfs() else {
        return;
    };
    let folder = &mount.0;
    make_tree(folder);
    for number in 0..400 {
        folder.write(&format!("mount/tree/{number}"), &bytes(100));
    }
    let mut limited = Command::new("prlimit");
    if limited.output().is_err() {
        return skip("prlimit(1) is not here");
    }
    limited.arg("--nofile=64");
    let line = "copy --json --reflink always mount/tree mount/copied";
    let ran = folder.haul_by(limited, line);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(shared_of(&ran).0, 452);
}

#[test]
fn where_there_is_no_block_to_share_always_fails_and_auto_copies() {
    let (Some(mount), Some(other)) = (xfs(), Mount::new("tmpfs")) else {
        return;
    };
    let (folder, to) = (&mount.0, other.0.path("mount"));
    folder.write("mount/source", &bytes(SIZE));
    folder.write("mount/second", &bytes(7));
    std::fs::write(to.join("second"), "old").expect("written");
    let to = to.to_string_lossy();
    let line = format!("copy --reflink always mount/source {to}");
    let ran = folder.haul(&line);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let error = ran.error();
    for part in [
        "cannot share the blocks of mount/source",
        "different file systems",
        "--reflink auto",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let ran = folder.haul(&format!(
        "copy --reflink always mount/source mount/second {to}"
    ));
    assert_eq!(ran.code, 1, "both failed: {}", ran.stderr);
    assert_eq!(other.0.names("mount"), ["second"]);
    assert_eq!(other.0.read("mount/second"), b"old");
    // What is there already is no failure: one of two.
    folder.must(&format!("copy mount/second {to}"));
    let ran = folder.haul(&line.replace("mount/source", "mount/source mount/second"));
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let ran = folder.must(&format!("copy --json mount/source {to}"));
    assert_eq!(shared_of(&ran), (0, 0));
    assert!(other.0.read("mount/source") == bytes(SIZE));
}

#[test]
fn a_full_file_system_has_room_for_what_shares_its_blocks() {
    let Some(mount) = xfs() else {
        return;
    };
    let folder = &mount.0;
    // More than half of it.
    folder.write("mount/source", &bytes(220 << 20));
    let ran = folder.haul("copy --reflink never mount/source mount/target");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    folder.must("copy mount/source mount/target");
    assert_eq!(folder.names("mount"), ["source", "target"]);
}

#[test]
fn what_cannot_be_meant_with_always_is_refused() {
    let folder = Folder::new();
    folder.write("source", b"some");
    for line in [
        "source haul://localhost/",
        "haul://localhost/source target",
        "source -",
        "- target",
        "--verify source target",
    ] {
        let ran = folder.haul(&format!("copy --reflink always {line}"));
        assert_eq!(ran.code, 2, "{line}: {}", ran.stderr);
        assert!(ran.error().contains("--reflink always"), "{}", ran.stderr);
    }
    assert_eq!(folder.names("."), ["source"]);
}

#[test]
fn a_source_that_is_written_all_the_while_is_never_sealed_torn() {
    let Some(mount) = xfs() else {
        return;
    };
    let folder = &mount.0;
    folder.write("mount/source", &vec![b'a'; 1 << 20]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options()
                .write(true)
                .open(folder.path("mount/source"));
            let file = file.expect("opens");
            for letter in (b'a'..=b'z').cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&vec![letter; 1 << 20], 0)
                    .expect("written");
                // Some copies fall between two writes, others meet several.
                let pause = 3 * u64::from(letter - b'a');
                std::thread::sleep(std::time::Duration::from_millis(pause));
            }
        });
        for _ in 0..30 {
            let ran = folder.haul("copy -I --reflink always mount/source mount/target");
            assert!([0, 5].contains(&ran.code), "{}", ran.stderr);
            if ran.code == 0 {
                let whole = folder.read("mount/target");
                assert!(whole.iter().all(|letter| *letter == whole[0]));
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    // What the last of them left alone is copied.
    folder.must("copy -I --reflink always mount/source mount/target");
    assert!(folder.read("mount/target") == folder.read("mount/source"));
}
