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
