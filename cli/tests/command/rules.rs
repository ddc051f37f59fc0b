//! What of a tree is copied, by patterns and by what the target has.
//!
//! Leaves to others: how it is copied (trees). Invariant: fresh folders.

use crate::support::{Folder, Server};

/// A tree of some names, each a file that holds its own.
fn make(folder: &Folder, tree: &str, names: &[&str]) {
    for name in names {
        let path = folder.path(tree).join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, name).expect("written");
    }
}

/// The files of a tree, by path.
fn files(folder: &Folder, tree: &str) -> Vec<String> {
    let (mut files, mut left) = (Vec::new(), vec![folder.path(tree)]);
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let path = path.strip_prefix(folder.path(tree)).expect("below");
                files.push(path.to_string_lossy().into_owned());
            }
        }
    }
    files.sort();
    files
}

#[test]
fn patterns_leave_out_what_they_fit_both_ways() {
    let folder = Folder::new();
    let names = [
        "a.log",
        "keep.log",
        "deep/b.log",
        "deep/c.txt",
        "cache/x",
        "deep/cache/y",
        "top",
        "deep/top",
    ];
    make(&folder, "root/tree", &names);
    folder.write("rules", b"# of a file\n/top\n!keep.log\n");
    let server = Server::start(&folder, "--root root");
    let rules = "--exclude *.log --exclude cache/ --exclude-from rules";
    for (from, to, target) in [
        ("root/tree".to_owned(), "local".to_owned(), "local"),
        ("root/tree/".to_owned(), "contents".to_owned(), "contents"),
        ("root/tree".to_owned(), server.url("pushed"), "root/pushed"),
        (server.url("tree"), "pulled".to_owned(), "pulled"),
    ] {
        folder.must(&format!("copy -q {rules} {from} {to}"));
        let found = files(&folder, target);
        assert_eq!(found, ["deep/c.txt", "deep/top", "keep.log"], "{from} {to}");
    }
    let ran = folder.haul("copy --exclude [z-a] root/tree other");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.error().contains("is not a pattern"), "{}", ran.stderr);
    let ran = folder.haul("copy --exclude-from missing root/tree other");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(!folder.path("other").exists());
}

#[test]
fn what_the_target_has_decides() {
    let folder = Folder::new();
    make(
        &folder,
        "tree",
        &["both", "new", "folder/new", "in/both", "in/new"],
    );
    let fresh = || {
        let _ = std::fs::remove_dir_all(folder.path("there"));
        make(&folder, "there", &["both", "in/both"]);
        for name in ["there/both", "there/in/both"] {
            folder.write(name, b"an older one");
        }
    };
    fresh();
    folder.must("copy -q --existing tree/ there");
    assert_eq!(files(&folder, "there"), ["both", "in/both"]);
    assert_eq!(folder.read("there/both"), b"both");
    fresh();
    folder.must("copy -q --ignore-existing tree/ there");
    assert_eq!(files(&folder, "there").len(), 5);
    assert_eq!(folder.read("there/in/both"), b"an older one");
    fresh();
    // Its target was written later.
    folder.must("copy -q --update tree/ there");
    assert_eq!(files(&folder, "there").len(), 5);
    assert_eq!(folder.read("there/both"), b"an older one");
    make(&folder, "tree", &["both"]);
    let file = std::fs::File::options()
        .write(true)
        .open(folder.path("tree/both"));
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    file.and_then(|file| file.set_modified(later)).expect("set");
    folder.must("copy -q --update tree/ there");
    assert_eq!(folder.read("there/both"), b"both");
}

/// Both trees hold the same, and the first did before, too.
fn mirrored(folder: &Folder, tree: &str, target: &str, names: &[&str]) {
    let mut wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wanted.sort();
    assert_eq!(files(folder, tree), wanted);
    assert_eq!(files(folder, target), wanted, "{target}");
}

#[test]
fn what_the_source_has_not_is_deleted_both_ways() {
    let folder = Folder::new();
    let names = ["a", "in/b", "in/deep/c", "empty/.kept"];
    make(&folder, "root/tree", &names);
    std::fs::remove_file(folder.path("root/tree/empty/.kept")).expect("removed");
    let names = &names[..3];
    let server = Server::start(&folder, "--root root");
    let outside = ["precious"];
    make(&folder, "outside", &outside);
    for (from, to, target, above) in [
        ("root/tree/".to_owned(), "local".to_owned(), "local", ""),
        (
            "root/tree".to_owned(),
            "named".to_owned(),
            "named/tree",
            "named",
        ),
        (
            "root/tree/".to_owned(),
            server.url("pushed"),
            "root/pushed",
            "",
        ),
        (server.url("tree/"), "pulled".to_owned(), "pulled", ""),
    ] {
        folder.must(&format!("copy -q {from} {to}"));
        if !above.is_empty() {
            // Into the directory that is there by now, and beside something else.
            folder.must(&format!("copy -q {from} {to}"));
            folder.write(&format!("{above}/beside"), b"x");
        }
        make(
            &folder,
            target,
            &["extra", "in/more", "in/gone/deep/x", "gone/y", "empty/z"],
        );
        let link = folder.path(target).join("in/link");
        std::os::unix::fs::symlink(folder.path("outside"), link).expect("linked");
        std::fs::write(folder.path(target).join(".haul-0123456789abcdef"), "").expect("written");
        let before = folder
            .path("root/tree/in")
            .metadata()
            .expect("there")
            .modified();
        let ran = folder.must(&format!("copy --json --delete {from} {to}"));
        let json = ran.json();
        // The files, their directories and the link.
        assert_eq!(json["entries"]["deleted"], 5 + 3 + 1, "{json}");
        let temporary = folder.path(target).join(".haul-0123456789abcdef");
        std::fs::remove_file(temporary).expect("it is haul clean's");
        mirrored(&folder, "root/tree", target, names);
        assert_eq!(files(&folder, "outside"), outside, "no link is followed");
        let after = folder
            .path(target)
            .join("in")
            .metadata()
            .expect("there")
            .modified();
        assert_eq!(before.expect("a time"), after.expect("a time"), "{target}");
        if !above.is_empty() {
            assert!(
                folder.path(above).join("beside").exists(),
                "beside the tree"
            );
        }
    }
}

#[test]
fn nothing_is_deleted_on_a_guess() {
    let folder = Folder::new();
    make(&folder, "tree", &["a", "in/b", "skip/c", "x.log"]);
    let fresh = || {
        let _ = std::fs::remove_dir_all(folder.path("there"));
        make(&folder, "there", &["old", "in/old", "skip/old", "old.log"]);
    };
    let all = [
        "a", "in/b", "in/old", "old", "old.log", "skip/c", "skip/old", "x.log",
    ];
    // More than was allowed: nothing at all.
    fresh();
    let ran = folder.haul("copy -q --delete --max-delete 3 tree/ there");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert!(
        ran.error().contains("nothing was deleted"),
        "{}",
        ran.stderr
    );
    assert_eq!(files(&folder, "there"), all);
    fresh();
    folder.must("copy -q --delete --max-delete 4 tree/ there");
    assert_eq!(files(&folder, "there"), ["a", "in/b", "skip/c", "x.log"]);
    // What is left out stays, unless that is asked for.
    fresh();
    folder.must("copy -q --delete --exclude skip --exclude *.log tree/ there");
    assert_eq!(
        files(&folder, "there"),
        ["a", "in/b", "old.log", "skip/old"]
    );
    fresh();
    folder.must("copy -q --delete --delete-excluded --exclude skip --exclude *.log tree/ there");
    assert_eq!(files(&folder, "there"), ["a", "in/b"]);
    // A source that is not mounted is empty.
    std::fs::create_dir(folder.path("empty")).expect("made");
    fresh();
    let ran = folder.haul("copy -q --delete empty/ there");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert!(
        ran.error().contains("--delete-everything"),
        "{}",
        ran.stderr
    );
    assert_eq!(files(&folder, "there").len(), 4);
    folder.must("copy -q --delete --delete-everything empty/ there");
    assert_eq!(files(&folder, "there").len(), 0);
    // Each of two would delete the other's.
    for line in [
        "copy --delete tree/ empty/ there",
        "copy --delete tree -",
        "copy --max-delete 1 tree there",
    ] {
        assert_eq!(folder.haul(line).code, 2, "{line}");
    }
    // A directory that cannot be read may hold anything.
    if crate::support::can_limit() {
        fresh();
        folder.must("copy -q tree/ there");
        let mode = |path: &str, mode| {
            let bits = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(folder.path(path), bits).expect("chmod");
        };
        mode("tree/in", 0);
        mode("", 0o777);
        for path in ["there", "there/in", "there/skip"] {
            mode(path, 0o777);
        }
        let mut user = std::process::Command::new("setpriv");
        user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        let ran = folder.haul_by(user, "copy --delete tree/ there");
        assert_eq!(ran.code, 23, "{}", ran.stderr);
        assert_eq!(
            files(&folder, "there"),
            ["a", "in/b", "in/old", "skip/c", "x.log"]
        );
        mode("tree/in", 0o755);
    }
}

#[test]
fn a_dry_run_tells_what_the_next_run_does_and_touches_nothing() {
    let folder = Folder::new();
    folder.directory("root");
    make(
        &folder,
        "root/tree",
        &["same", "size", "time", "mode", "new", "fresh/in", "kind"],
    );
    std::os::unix::fs::symlink("same", folder.path("root/tree/link")).expect("linked");
    let server = Server::start(&folder, "--root root");
    for (from, to, target) in [
        ("root/tree/".to_owned(), "local".to_owned(), "local"),
        ("root/tree/".to_owned(), server.url("pushed"), "root/pushed"),
        (server.url("tree/"), "pulled".to_owned(), "pulled"),
    ] {
        // Of a target that is missing all would be made.
        let ran = folder.must(&format!("copy --dry-run {from} {to}"));
        let told = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert_eq!(told.lines().count(), 10, "{told}");
        assert!(
            told.lines().all(|line| line.starts_with("make     ")),
            "{told}"
        );
        assert!(
            ran.stderr.contains("10 to make, 0 to send"),
            "{}",
            ran.stderr
        );
        assert!(!folder.path(target).exists());
        folder.must(&format!("copy -q {from} {to}"));
        let at = |name: &str| folder.path(target).join(name);
        std::fs::write(at("size"), "longer").expect("written");
        let file = std::fs::File::options().write(true).open(at("time"));
        let past = std::time::SystemTime::UNIX_EPOCH;
        file.and_then(|file| file.set_modified(past)).expect("set");
        let bits = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(at("mode"), bits).expect("chmod");
        std::fs::remove_file(at("new")).expect("removed");
        std::fs::remove_dir_all(at("fresh")).expect("removed");
        std::fs::remove_file(at("link")).expect("removed");
        std::fs::write(at("link"), "a file").expect("written");
        make(&folder, target, &["gone"]);
        let before = files(&folder, target);
        let line = format!("{from} {to}");
        let ran = folder.must(&format!("copy --dry-run --delete {line}"));
        let told = String::from_utf8_lossy(&ran.stdout).into_owned();
        let mut lines: Vec<&str> = told.lines().collect();
        lines.sort_unstable();
        let wanted = [
            "correct  . (mode, owner, time or attributes)",
            "correct  mode (mode, owner, time or attributes)",
            "delete   gone",
            "make     fresh",
            "make     fresh/in",
            "make     new",
            "replace  link (something else is there)",
            "send     size (its size differs)",
            "send     time (its time differs)",
        ];
        assert_eq!(lines, wanted, "{line}");
        assert!(
            ran.stderr
                .contains("3 to make, 2 to send, 1 to replace, 2 to correct, 1 to delete"),
            "{}",
            ran.stderr
        );
        assert_eq!(files(&folder, target), before, "{line}");
        assert!(at("gone").exists() && !at("new").exists());
        folder.must(&format!("copy -q --delete {line}"));
        let ran = folder.must(&format!("copy --dry-run --delete {line}"));
        assert_eq!(String::from_utf8_lossy(&ran.stdout), "", "{line}");
    }
    assert_eq!(folder.haul("copy --dry-run root/tree/same -").code, 2);
}

#[test]
fn what_is_mounted_in_the_target_is_never_deleted() {
    let Some(mount) = crate::mount::Mount::new("tmpfs") else {
        return;
    };
    let folder = &mount.0;
    make(folder, "mount", &["precious"]);
    make(folder, "tree", &["a"]);
    make(folder, "there", &["old", "gone/inner/x"]);
    make(folder, "beside", &["precious"]);
    let inner = folder.path("there/gone/inner");
    std::fs::remove_file(inner.join("x")).expect("removed");
    // Another file system, and a part of this one.
    for mounted in ["mount", "beside"] {
        let _bound = crate::mount::Bound::new(&folder.path(mounted), inner.clone());
        let ran = folder.haul("copy -q --delete tree/ there");
        assert_eq!(ran.code, 23, "{}", ran.stderr);
        let told = "cannot delete there/gone: a file system is mounted in it";
        assert!(ran.error().contains(told), "{}", ran.stderr);
        assert_eq!(files(folder, "there"), ["a", "gone/inner/precious"]);
    }
}

#[test]
fn a_source_is_not_deleted_by_its_own_copy() {
    let folder = Folder::new();
    make(&folder, "there/tree", &["a"]);
    make(&folder, "there", &["b"]);
    for line in [
        "copy --delete there/tree/ there",
        "copy --delete there/tree there/../there/",
    ] {
        let ran = folder.haul(line);
        assert_eq!(ran.code, 2, "{line}: {}", ran.stderr);
    }
    assert_eq!(files(&folder, "there"), ["b", "tree/a"]);
}

#[test]
fn deleting_holds_no_descriptor_a_directory() {
    let folder = Folder::new();
    for number in 0..300 {
        let inside = format!("d{number}/");
        make(&folder, "tree", &[&format!("{inside}kept")]);
        make(
            &folder,
            "there",
            &[&format!("{inside}kept"), &format!("{inside}old")],
        );
    }
    for options in ["--max-delete 300", ""] {
        let mut limited = std::process::Command::new("prlimit");
        limited.arg("--nofile=128");
        let ran = folder.haul_by(limited, &format!("copy -q --delete {options} tree/ there"));
        assert_eq!(ran.code, 0, "{options}: {}", ran.stderr);
        assert_eq!(files(&folder, "there"), files(&folder, "tree"));
        for number in 0..300 {
            make(&folder, "there", &[&format!("d{number}/old")]);
        }
    }
}
