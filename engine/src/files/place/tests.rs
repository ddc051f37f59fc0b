//! Tests of places: cp's habits, what is refused, what cannot be escaped.
//!
//! Leaves to others: the code under test. Invariant: fresh directories only.

use super::*;
use crate::error::ErrorKind;
use crate::files::scratch::Mount;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// A directory with a file, a directory, and links to both and to nothing.
fn furnished() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("dir")).expect("directory");
    std::fs::create_dir(at("dir/taken")).expect("directory");
    std::fs::write(at("file"), "old").expect("write");
    symlink("dir", at("todir")).expect("link");
    symlink("file", at("tofile")).expect("link");
    symlink("nothing", at("dangling")).expect("link");
    directory
}

/// What became of it: "directory/name" relative to `base`, or the error.
fn outcome(base: &Path, destination: Result<ResolvedTarget>, entry: &str) -> String {
    match destination.and_then(|destination| destination.place(entry.as_bytes())) {
        Ok(place) => {
            use std::os::fd::AsRawFd;
            let link = format!("/proc/self/fd/{}", place.directory().as_raw_fd());
            let directory = std::fs::read_link(link).expect("link");
            let base = base.canonicalize().expect("base");
            let directory = directory.strip_prefix(&base).expect("inside").to_path_buf();
            let path = directory.join(shown(place.name()));
            path.display().to_string()
        }
        Err(error) => {
            assert_eq!(error.side, Side::Receiver);
            format!("{:?}: {error}", error.kind)
        }
    }
}

#[test]
fn local_targets_follow_cps_habits() {
    let base = furnished();
    // Target, several sources, what becomes of a source called "new".
    let table = [
        ("dir", false, "dir/new"),
        ("dir/", false, "dir/new"),
        ("dir/.", false, "dir/new"),
        ("dir", true, "dir/new"),
        ("todir", false, "dir/new"),
        ("todir/", true, "dir/new"),
        ("file", false, "file"),
        ("fresh", false, "fresh"),
        ("dir/fresh", false, "dir/fresh"),
        ("todir/fresh", false, "dir/fresh"),
        ("tofile", false, "tofile"),
        ("dangling", false, "dangling"),
        ("dir/..", false, "new"),
        (
            "fresh/",
            false,
            "Local: cannot write BASE/fresh/: there is no such directory; create it first",
        ),
        (
            "fresh",
            true,
            "Local: cannot write BASE/fresh: there is no such directory; create it first",
        ),
        (
            "file/",
            false,
            "Local: cannot write BASE/file/: it is not a directory",
        ),
        (
            "file",
            true,
            "Local: cannot write BASE/file: it is not a directory",
        ),
        (
            "no/fresh",
            false,
            "Local: cannot write BASE/no/fresh: its directory BASE/no: no such file or directory",
        ),
        (
            "file/fresh",
            false,
            "Local: cannot write BASE/file/fresh: its directory BASE/file: not a directory",
        ),
    ];
    for (target, several, wanted) in table {
        let path = base.path().join(target);
        let mut text = base.path().to_str().expect("text").to_owned() + "/" + target;
        let destination = resolve_local(&PathBuf::from(&text), several, false);
        text = outcome(base.path(), destination, "new");
        let wanted = wanted.replace("BASE", base.path().to_str().expect("text"));
        assert_eq!(text, wanted, "{}", path.display());
    }
    let taken = outcome(
        base.path(),
        resolve_local(&base.path().join("dir"), false, false),
        "taken",
    );
    assert!(
        taken.starts_with("Local: ") && taken.ends_with("it is a directory"),
        "{taken}"
    );
    let empty = resolve_local(Path::new(""), false, false).expect_err("empty");
    assert_eq!(empty.kind, ErrorKind::Usage);
    let here = resolve_local(Path::new("fresh-name-of-no-file"), false, false).expect("here");
    assert!(!here.is_directory());
}

#[test]
fn a_peers_target_stays_below_the_root() {
    let outside = tempfile::tempdir().expect("directory");
    let base = furnished();
    symlink(outside.path(), base.path().join("away")).expect("link");
    let root = open_root(base.path()).expect("root");
    let of = |path: &str, several| {
        let found = resolve_beneath(root.as_fd(), path.as_bytes(), several, false);
        outcome(base.path(), found, "new")
    };
    for (target, several, wanted) in [
        ("", false, "new"),
        ("/", false, "new"),
        ("dir", false, "dir/new"),
        ("dir/", true, "dir/new"),
        ("file", false, "file"),
        ("dir/fresh", false, "dir/fresh"),
    ] {
        assert_eq!(of(target, several), wanted, "{target}");
    }
    for target in ["todir", "away", "away/x", "todir/x", "tofile", "dangling"] {
        let said = of(target, false);
        assert!(
            said.starts_with("Local") && said.contains("symbolic link"),
            "{said}"
        );
    }
    for target in [
        "..",
        "../x",
        "dir/../file",
        "/etc",
        "//",
        "a//b",
        "./a",
        "a\0b",
    ] {
        let said = of(target, false);
        assert!(
            said.starts_with("Usage") && said.contains("below the root"),
            "{target} {said}"
        );
    }
    // A link is replaced, not followed.
    for link in ["tofile", "dangling", "todir"] {
        let found = resolve_beneath(root.as_fd(), b"", true, false);
        assert_eq!(outcome(base.path(), found, link), link);
    }
    assert!(of("fresh/", false).contains("no such directory"));
    assert!(of("no/fresh", false).contains("no such file"));
    assert!(of(&"n".repeat(256), false).contains("more than 255"));
    let outside = std::fs::read_dir(outside.path()).expect("lists").count();
    assert_eq!(outside, 0);
}

#[test]
fn a_peers_entry_names_are_judged_component_by_component() {
    let base = furnished();
    let destination = resolve_local(&base.path().join("dir"), false, false).expect("resolves");
    let of = |name: &str| outcome(base.path(), Ok(destination.clone()), name);
    assert_eq!(of("new"), "dir/new");
    for name in [
        ".", "..", "../new", "sub/..", "sub/new", "/new", "sub//new", "new/", "n\0",
    ] {
        let said = of(name);
        assert!(
            said.starts_with("Peer: cannot write a file called"),
            "{name:?}: {said}"
        );
    }
    assert!(of(&"n".repeat(256)).contains("more than 255"));
}

#[test]
fn a_missing_directory_is_made_where_contents_go() {
    let base = furnished();
    let path = base.path().join("fresh");
    let made = resolve_local(&path, true, true).expect("made");
    assert!(made.is_directory() && made.folder().is_fresh() && path.is_dir());
    let again = resolve_local(&path, false, true).expect("found");
    assert!(again.is_directory() && !again.folder().is_fresh());
    let root = open_root(base.path()).expect("root");
    let made = resolve_beneath(root.as_fd(), b"dir/newer", false, true).expect("made");
    assert!(made.is_directory() && base.path().join("dir/newer").is_dir());
    for occupied in ["file", "tofile"] {
        let error = resolve_local(&base.path().join(occupied), true, true).expect_err("a file");
        assert!(
            error.sentence.contains("cannot open the directory"),
            "{error}"
        );
    }
    assert!(resolve_local(&base.path().join("no/fresh"), true, true).is_err());
}

#[test]
fn special_files_are_not_replaced() {
    let base = furnished();
    let fifo = base.path().join("fifo");
    assert!(crate::files::scratch::run(
        "mkfifo",
        &[fifo.to_str().expect("text")]
    ));
    let error = resolve_local(&fifo, false, false).expect_err("a FIFO");
    assert!(error.to_string().contains("it is a FIFO"), "{error}");
    let error = resolve_local(Path::new("/dev/null"), false, false).expect_err("a device");
    assert!(error.to_string().contains("a character device"), "{error}");
}

#[test]
fn space_is_counted_first() {
    let Some(mount) = Mount::tmpfs(1 << 20) else {
        return;
    };
    let destination = resolve_local(&mount.path(), true, false).expect("resolves");
    assert_eq!(destination.require_space(1 << 19), Ok(()));
    let error = destination.require_space(3 << 20).expect_err("too large");
    assert_eq!(error.kind, ErrorKind::Local);
    assert!(
        error.sentence.contains("3145728 bytes are needed and"),
        "{error}"
    );
    assert!(error.sentence.contains("too few"), "{error}");
}
