//! Tests of what gives way to what.
//!
//! Leaves to others: files and links on their way (the command's tests). Invariant:
//! fresh directories.

use super::*;
use crate::files::scratch::{Mount, names};
use crate::options::DeleteRules;
use std::fs::{self, File};
use std::path::Path;

fn forced() -> TargetRules {
    TargetRules {
        force: true,
        ..TargetRules::default()
    }
}

fn deleting(count_max: Option<u64>) -> TargetRules {
    TargetRules {
        deletes: Some(DeleteRules {
            count_max,
            ..DeleteRules::default()
        }),
        ..TargetRules::default()
    }
}

fn held(path: &Path) -> File {
    File::open(path).expect("a folder")
}

/// A file called "new" and a directory called "old" with a file in it.
fn prepared() -> (tempfile::TempDir, File) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("new"), "new").expect("written");
    fs::create_dir(folder.path().join("old")).expect("made");
    fs::write(folder.path().join("old/file"), "old").expect("written");
    let open = held(folder.path());
    (folder, open)
}

#[test]
fn a_directory_gives_way_in_one_step_and_goes_afterwards() {
    let (folder, open) = prepared();
    let replacing = Replacing::new(&forced(), true, true);
    let replaced = take_name(open.as_fd(), "new", b"old", Some(&replacing));
    let replaced = replaced.expect("named").expect("a directory");
    assert_eq!(fs::read(folder.path().join("old")).expect("read"), b"new");
    assert_eq!(replaced.temporary(), "new");
    // Whole until it is removed, and nobody's to clean up.
    assert!(folder.path().join("new/file").exists());
    assert_eq!(lock(held(&folder.path().join("new"))), Ok(false));
    assert_eq!(replaced.remove(open.as_fd()), Ok(()));
    assert_eq!(names(folder.path()), ["old"]);
}

#[test]
fn without_the_right_a_directory_stays() {
    let (folder, open) = prepared();
    let nothing = Replacing::new(&TargetRules::default(), false, true);
    let few = Replacing::new(&deleting(Some(1)), false, true);
    let filtered = Replacing::new(&deleting(None), true, true);
    for (replacing, why) in [
        (None, "is a directory"),
        (Some(&nothing), "it is a directory"),
        (Some(&few), "more than 1 files and directories would go"),
        (Some(&filtered), "--exclude"),
    ] {
        let stays = take_name(open.as_fd(), "new", b"old", replacing).expect_err("it stays");
        assert!(stays.why.contains(why), "{stays:?}");
        let judged = replacing.map(|replacing| replacing.judge_directory(open.as_fd(), b"old"));
        assert!(judged.is_none_or(|judged| judged == Err(stays)));
        assert_eq!(names(folder.path()), ["new", "old"]);
        assert!(folder.path().join("old/file").exists());
    }
}

#[test]
fn what_gives_way_is_counted_over_a_whole_transfer() {
    let (folder, open) = prepared();
    fs::create_dir(folder.path().join("empty")).expect("made");
    let replacing = Replacing::new(&deleting(Some(3)), false, true);
    assert_eq!(replacing.judge_directory(open.as_fd(), b"old"), Ok(()));
    assert_eq!(replacing.count_file(FileType::Symlink), Ok(()));
    assert_eq!(replacing.gone(), 3);
    for stays in [
        replacing.judge_directory(open.as_fd(), b"empty"),
        replacing.count_file(FileType::RegularFile),
    ] {
        assert_eq!(stays, Err(too_much(3)));
    }
    let everything = Replacing::new(&forced(), false, true);
    assert_eq!(everything.judge_directory(open.as_fd(), b"old"), Ok(()));
}

#[test]
fn a_directory_comes_in_place_of_anything_but_one() {
    let (folder, open) = prepared();
    let replacing = Replacing::new(&forced(), false, true);
    let put = |replacing: &Replacing, name: &str, kind| {
        replacing.by_directory(open.as_fd(), name.as_bytes(), kind)
    };
    for rules in [
        TargetRules::default(),
        deleting(Some(0)),
        TargetRules {
            only_older: true,
            ..forced()
        },
    ] {
        let stays = put(
            &Replacing::new(&rules, false, true),
            "new",
            FileType::RegularFile,
        );
        assert!(
            stays.expect_err("it stays").cure.is_some(),
            "{rules:?} names a cure"
        );
    }
    assert_eq!(put(&replacing, "new", FileType::RegularFile), Ok(()));
    assert!(folder.path().join("new").is_dir());
    // One that came meanwhile is no file, and stays as it was.
    assert!(put(&replacing, "old", FileType::RegularFile).is_err());
    assert!(folder.path().join("old/file").exists());
    std::os::unix::fs::symlink("old", folder.path().join("link")).expect("linked");
    assert_eq!(put(&replacing, "link", FileType::Symlink), Ok(()));
    assert_eq!(names(&folder.path().join("link")), [""; 0]);
    assert_eq!(names(folder.path()), ["link", "new", "old"]);
}

#[test]
fn what_something_is_mounted_in_or_at_does_not_give_way() {
    let Some(mount) = Mount::tmpfs(1 << 20) else {
        return;
    };
    let (folder, open) = prepared();
    let outer = mount.path();
    let outer = outer.parent().expect("a folder");
    fs::write(mount.path().join("precious"), "x").expect("written");
    let replacing = Replacing::new(&forced(), false, true);
    let (above, inside) = (held(outer), b"mount");
    let judged = replacing.judge_directory(above.as_fd(), inside);
    assert_eq!(judged, Err(Stays::errno(Errno::XDEV)));
    fs::write(outer.join("new"), "new").expect("written");
    let taken = take_name(above.as_fd(), "new", inside, Some(&replacing));
    assert!(taken.expect_err("it stays").why.contains("is mounted"));
    // The same one level up, and of a file over a file.
    let up = held(outer.parent().expect("a folder"));
    let name = outer.file_name().expect("a name").as_encoded_bytes();
    let judged = replacing.judge_directory(up.as_fd(), name);
    assert_eq!(judged, Err(Stays::errno(Errno::XDEV)));
    let (from, to) = (folder.path().join("new"), folder.path().join("old/file"));
    let (from, to) = (from.to_str().expect("text"), to.to_str().expect("text"));
    assert!(crate::files::scratch::run("mount", &["--bind", from, to]));
    let judged = replacing.judge_directory(open.as_fd(), b"old");
    assert!(crate::files::scratch::run("umount", &[to]));
    assert_eq!(judged, Err(Stays::errno(Errno::XDEV)));
    assert!(mount.path().join("precious").exists());
}

#[test]
fn a_file_system_that_cannot_exchange_names_says_so() {
    let (lower, open) = prepared();
    drop(open);
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for name in ["upper", "work", "union"] {
        fs::create_dir(at(name)).expect("made");
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=off",
        lower.path().display(),
        at("upper").display(),
        at("work").display()
    );
    let (union, run) = (at("union"), crate::files::scratch::run);
    let point = union.to_str().expect("text");
    if !run(
        "mount",
        &["-t", "overlay", "-o", &options, "overlay", point],
    ) {
        return crate::kernel::skip("no union can be mounted here");
    }
    let replacing = Replacing::new(&forced(), false, true);
    let open = held(&union);
    let taken = take_name(open.as_fd(), "new", b"old", Some(&replacing));
    let (names, file) = (names(&union), fs::read(union.join("old/file")));
    drop(open);
    assert!(run("umount", &[point]));
    let stays = taken.expect_err("it stays");
    assert!(stays.why.contains("cannot exchange two names"), "{stays:?}");
    assert!(stays.cure.is_some());
    assert_eq!(names, ["new", "old"]);
    assert_eq!(file.expect("whole"), b"old");
}
