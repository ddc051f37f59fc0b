//! What is of one kind, where something of another kind is to go.
//!
//! Leaves to others: how one gives way to the other (the engine's tests). Invariant:
//! fresh folders.

use crate::mount::{Bound, Mount};
use crate::support::{Folder, Server, can_limit};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;

/// What is no directory.
const FILES: [&str; 4] = ["file", "link", "dangling", "fifo"];
const DIRECTORIES: [&str; 2] = ["empty", "full"];

/// Makes what is of `kind` there.
fn make(path: &Path, kind: &str) {
    let parent = path.parent().expect("a folder");
    std::fs::create_dir_all(parent).expect("made");
    std::fs::write(parent.join("beside"), "x").expect("written");
    match kind {
        "file" => std::fs::write(path, "a file").expect("written"),
        "link" => symlink("beside", path).expect("linked"),
        "dangling" => symlink("nowhere", path).expect("linked"),
        "fifo" => mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).expect("made"),
        "empty" => std::fs::create_dir(path).expect("made"),
        _ => {
            std::fs::create_dir_all(path.join("in")).expect("made");
            std::fs::write(path.join("in/file"), "in a directory").expect("written");
        }
    }
}

/// What is there now.
fn found(path: &Path) -> &'static str {
    let Ok(stat) = path.symlink_metadata() else {
        return "nothing";
    };
    let kind = stat.file_type();
    let text = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
    if kind.is_symlink() {
        let to = std::fs::read_link(path).expect("read");
        return if to == Path::new("beside") {
            "link"
        } else {
            "dangling"
        };
    }
    if kind.is_fifo() {
        return "fifo";
    }
    if kind.is_file() {
        assert_eq!(std::fs::read(path).expect("read"), b"a file");
        return "file";
    }
    match std::fs::read_dir(path).expect("listed").count() {
        0 => "empty",
        _ => {
            assert_eq!(text("in/file"), "in a directory");
            "full"
        }
    }
}

/// Puts `new` over `old` with `options`, from `from` to `to`, which is called `there`
/// here; it replaces that, or is refused.
fn meets(folder: &Folder, (new, old): (&str, &str), options: &str, replaces: bool) {
    for name in ["tree", "there"] {
        let _ = std::fs::remove_dir_all(folder.path(name));
    }
    make(&folder.path("tree/name"), new);
    make(&folder.path("there/name"), old);
    let what = format!("{new} over {old} {options}");
    let level = folder.haul(&format!("copy --dry-run {options} tree/ there"));
    let told = String::from_utf8_lossy(&level.stdout).into_owned();
    assert_eq!(found(&folder.path("there/name")), old, "{what}");
    let ran = folder.haul(&format!("copy -q {options} tree/ there"));
    assert!(
        folder
            .names("there")
            .iter()
            .all(|name| !name.starts_with(".haul-")),
        "{what}"
    );
    assert_eq!(folder.read("there/beside"), b"x");
    if replaces {
        assert_eq!((level.code, ran.code), (0, 0), "{what}: {}", ran.stderr);
        assert_eq!(found(&folder.path("there/name")), new, "{what}");
        let line = "replace  name (something else is there)";
        assert!(told.lines().any(|told| told == line), "{what}: {told}");
    } else {
        assert_eq!((level.code, ran.code), (23, 23), "{what}: {}", ran.stderr);
        assert_eq!(found(&folder.path("there/name")), old, "{what}");
        assert!(!told.contains("replace"), "{what}: {told}");
        assert!(
            ran.stderr.contains("there/name: "),
            "{what}: {}",
            ran.stderr
        );
        assert!(ran.stderr.contains("--force"), "{what}: {}", ran.stderr);
    }
}

#[test]
fn a_directory_gives_way_where_that_was_asked_for() {
    let folder = Folder::new();
    for new in FILES {
        for old in DIRECTORIES {
            let count = if old == "full" { 3 } else { 1 };
            let fits = format!("--delete --max-delete {count}");
            let less = format!("--delete --max-delete {}", count - 1);
            meets(&folder, (new, old), "", false);
            meets(&folder, (new, old), "--force", true);
            meets(&folder, (new, old), "--delete", true);
            meets(&folder, (new, old), &fits, true);
            meets(&folder, (new, old), &less, false);
            let forced = format!("--force {less}");
            meets(&folder, (new, old), &forced, true);
        }
    }
    // What patterns leave alone may be in it.
    meets(&folder, ("file", "full"), "--delete --exclude *.log", false);
    let all = "--delete --delete-excluded --exclude *.log";
    meets(&folder, ("file", "full"), all, true);
}

#[test]
fn anything_gives_way_to_a_directory_where_that_was_asked_for() {
    let folder = Folder::new();
    for new in DIRECTORIES {
        for old in FILES {
            meets(&folder, (new, old), "", false);
            meets(&folder, (new, old), "--force", true);
            meets(&folder, (new, old), "--delete", true);
            meets(&folder, (new, old), "--delete --max-delete 1", true);
            meets(&folder, (new, old), "--delete --max-delete 0", false);
        }
    }
}

#[test]
fn what_was_replaced_counts_among_what_is_deleted() {
    let folder = Folder::new();
    let fresh = || {
        let _ = std::fs::remove_dir_all(folder.path("there"));
        make(&folder.path("there/name"), "full");
        std::fs::write(folder.path("there/old"), "x").expect("written");
    };
    make(&folder.path("tree/name"), "file");
    fresh();
    let ran = folder.haul("copy -q --delete --max-delete 3 tree/ there");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert!(
        ran.error().contains("nothing was deleted"),
        "{}",
        ran.stderr
    );
    assert_eq!(found(&folder.path("there/name")), "file");
    assert!(folder.path("there/old").exists());
    fresh();
    folder.must("copy -q --delete --max-delete 4 tree/ there");
    assert_eq!(folder.names("there"), ["beside", "name"]);
}

#[test]
fn kinds_meet_both_ways_and_alone() {
    let folder = Folder::new();
    folder.directory("root");
    let server = Server::start(&folder, "--root root");
    for (new, old) in [("file", "full"), ("full", "file"), ("full", "link")] {
        for (from, to, source, target) in [
            ("tree/", server.url("there"), "tree/name", "root/there/name"),
            ("", "here".to_owned(), "root/tree/name", "here/name"),
        ] {
            for name in ["tree", "root/there", "root/tree", "here"] {
                let _ = std::fs::remove_dir_all(folder.path(name));
            }
            make(&folder.path(source), new);
            make(&folder.path(target), old);
            let from = match from {
                "" => server.url("tree/"),
                from => from.to_owned(),
            };
            let ran = folder.haul(&format!("copy -q {from} {to}"));
            assert_eq!(ran.code, 23, "{}", ran.stderr);
            assert_eq!(found(&folder.path(target)), old);
            folder.must(&format!("copy -q --force {from} {to}"));
            assert_eq!(found(&folder.path(target)), new, "{from} {to}");
        }
    }
    // One file alone is code 1.
    let _ = std::fs::remove_dir_all(folder.path("here"));
    make(&folder.path("here/name"), "full");
    folder.write("name", b"a file");
    let ran = folder.haul("copy -q name here/");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let told = "cannot write here/name: it is a directory";
    assert!(ran.error().contains(told), "{}", ran.stderr);
    folder.must("copy -q --force name here/");
    assert_eq!(found(&folder.path("here/name")), "file");
    // A directory takes a file's name, and never that of what the user typed with a slash.
    make(&folder.path("tree"), "full");
    let ran = folder.haul("copy -q --force tree/ here/name");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert_eq!(found(&folder.path("here/name")), "file");
    folder.must("copy -q --force tree here/name");
    assert_eq!(found(&folder.path("here/name")), "full");
}

#[test]
fn what_the_rules_leave_alone_does_not_give_way() {
    let folder = Folder::new();
    for options in ["--ignore-existing", "--update", "--existing"] {
        for (new, old) in [("file", "full"), ("full", "file")] {
            for name in ["tree", "there"] {
                let _ = std::fs::remove_dir_all(folder.path(name));
            }
            make(&folder.path("tree/name"), new);
            let source = std::fs::File::open(folder.path("tree/name")).expect("opened");
            let past = std::time::SystemTime::UNIX_EPOCH;
            source.set_modified(past).expect("set");
            make(&folder.path("there/name"), old);
            let ran = folder.haul(&format!("copy -q --force {options} tree/ there"));
            let left = if (options, old) == ("--existing", "full") {
                // There is something, which is replaced.
                new
            } else {
                old
            };
            let what = format!("{options} {new} over {old}");
            assert_eq!(found(&folder.path("there/name")), left, "{what}");
            let code = if old == "file" { 23 } else { 0 };
            assert_eq!(ran.code, code, "{what}: {}", ran.stderr);
        }
    }
}

#[test]
fn a_source_is_not_replaced_by_its_own_copy() {
    let folder = Folder::new();
    make(&folder.path("there/name"), "empty");
    make(&folder.path("there/name/name"), "file");
    for line in [
        "copy --force there/name/name there/",
        "copy --force there/name/ there",
    ] {
        let ran = folder.haul(line);
        assert_eq!(ran.code, 2, "{line}: {}", ran.stderr);
        assert!(ran.error().contains("--force"), "{line}: {}", ran.stderr);
    }
    assert_eq!(found(&folder.path("there/name/name")), "file");
}

#[test]
fn what_something_is_mounted_in_does_not_give_way() {
    let Some(mount) = Mount::new("tmpfs") else {
        return;
    };
    let folder = &mount.0;
    make(&folder.path("tree/name"), "file");
    make(&folder.path("there/name"), "full");
    folder.write("mount/precious", b"x");
    for at in ["there/name/in", "there/name"] {
        let bound = Bound::new(&folder.path("mount"), folder.path(at));
        for options in ["--force", "--delete"] {
            let ran = folder.haul(&format!("copy -q {options} tree/ there"));
            assert_eq!(ran.code, 23, "{}", ran.stderr);
            let told = "cannot write there/name: a file system is mounted in it";
            assert!(ran.error().contains(told), "{}", ran.stderr);
            assert_eq!(folder.read("mount/precious"), b"x");
        }
        drop(bound);
    }
    assert_eq!(found(&folder.path("there/name")), "full");
}

#[test]
fn what_cannot_be_removed_of_a_replaced_directory_is_told_and_cleaned() {
    if !can_limit() {
        return;
    }
    let folder = Folder::new();
    make(&folder.path("tree/name"), "file");
    make(&folder.path("there/name"), "full");
    for name in ["", "there", "there/name", "there/name/in"] {
        std::os::unix::fs::chown(folder.path(name), Some(65534), Some(65534)).expect("chown");
    }
    let mode = |name: &str, mode| {
        let bits = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(folder.path(name), bits).expect("chmod");
    };
    mode("there/name/in", 0o555);
    let mut user = std::process::Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let ran = folder.haul_by(user, "copy --force tree/name there/");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(found(&folder.path("there/name")), "file");
    let names = folder.names("there");
    let left = names.iter().find(|name| name.starts_with(".haul-"));
    let left = left.expect("it could not be removed");
    let told = format!(
        "the directory that there/name replaced could not be removed: permission denied; what is left of it is called {left}"
    );
    assert!(ran.stderr.contains(&told), "{}", ran.stderr);
    folder.must("clean there");
    assert_eq!(folder.names("there"), ["beside", "name"]);
}
