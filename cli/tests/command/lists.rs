//! What a list names (`--files-from`), and what links lead to (`--follow`).
//!
//! Leaves to others: whole trees (trees.rs). Invariant: exactly what was named is
//! copied, and what cannot be is said.

use crate::support::{Folder, Ran, Server};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;

/// A tree of files that hold their own names.
fn tree(folder: &Folder, names: &[&str]) {
    for name in names {
        let path = folder.path("source").join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(&path, name).expect("written");
    }
}

/// Everything below `root`: directories with a slash, links with what they say.
fn found(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).expect("listed") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            let name = path
                .strip_prefix(root)
                .expect("below")
                .display()
                .to_string();
            let kind = entry.file_type().expect("a type");
            names.push(match (kind.is_dir(), kind.is_symlink()) {
                (true, _) => format!("{name}/"),
                (_, true) => format!("{name}@"),
                _ => name,
            });
            if kind.is_dir() {
                left.push(path);
            }
        }
    }
    names.sort();
    names
}

/// Each way to copy the folder's "source" to "target", anew.
fn each_way(folder: &Folder, options: &str, input: &[u8], judge: impl Fn(&str, &Ran)) {
    for way in ["here", "push", "pull"] {
        let _ = std::fs::remove_dir_all(folder.path("target"));
        let server = (way != "here").then(|| Server::start(folder, "--root ."));
        let url = |name: &str| {
            server
                .as_ref()
                .map_or_else(String::new, |server| server.url(name))
        };
        let ends = match way {
            "here" => "source target".to_owned(),
            "push" => format!("source {}", url("target")),
            _ => format!("{} target", url("source")),
        };
        let ran = folder.haul_with(&format!("copy {options} {ends}"), input.to_vec());
        judge(way, &ran);
    }
}

#[test]
fn what_a_list_names_is_copied_and_nothing_else() {
    let folder = Folder::new();
    tree(
        &folder,
        &[
            "a/b/x", "a/b/not", "a/y", "c/z", "d/e/f", "d/g", "top", "no",
        ],
    );
    let list = b"top\nd/\n./a//b/x\nc\ntop\nd/g\n";
    each_way(&folder, "--files-from -", list, |way, ran| {
        assert_eq!(ran.code, 0, "{way}: {}", ran.stderr);
        let wanted = [
            "a/", "a/b/", "a/b/x", "c/", "d/", "d/e/", "d/e/f", "d/g", "top",
        ];
        assert_eq!(found(&folder.path("target")), wanted, "{way}");
        assert_eq!(folder.read("target/a/b/x"), b"a/b/x");
        for said in [
            "2 names that stand in the list twice",
            "1 directory of the list was copied without what is in it",
        ] {
            assert!(ran.stderr.contains(said), "{way}: {}", ran.stderr);
        }
        let times = ["source/a/b", "target/a/b"].map(|name| {
            let looked = folder.path(name).metadata().expect("there");
            looked.modified().expect("a time")
        });
        assert_eq!(
            times[0], times[1],
            "{way}: the way to a name is copied, too"
        );
    });
}

#[test]
fn a_list_of_every_name_is_the_whole_tree() {
    let folder = Folder::new();
    let names: Vec<String> = (0..3000).map(|n| format!("d{}/f{n}", n % 7)).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    tree(&folder, &all);
    std::fs::create_dir(folder.path("source/empty")).expect("made");
    let odd = std::ffi::OsString::from_vec(b"odd \xff\n name".to_vec());
    std::fs::write(folder.path("source").join(odd), "x").expect("written");
    let mut find = std::process::Command::new("find");
    find.args([".", "-print0"])
        .current_dir(folder.path("source"));
    let list = find.output().expect("find").stdout;
    each_way(&folder, "--files-from - -0", &list, |way, ran| {
        assert_eq!(ran.code, 0, "{way}: {}", ran.stderr);
        assert!(!ran.stderr.contains("the list"), "{way}: {}", ran.stderr);
        assert_eq!(
            found(&folder.path("source")),
            found(&folder.path("target")),
            "{way}"
        );
    });
    // All of it, in one word.
    each_way(&folder, "--files-from -", b"./\n", |way, ran| {
        assert_eq!(ran.code, 0, "{way}: {}", ran.stderr);
        assert_eq!(
            found(&folder.path("source")),
            found(&folder.path("target")),
            "{way}"
        );
    });
}

#[test]
fn names_of_a_list_that_are_not_there_fail_and_the_others_are_copied() {
    let folder = Folder::new();
    tree(&folder, &["a/x", "plain", "z"]);
    symlink("a", folder.path("source/link")).expect("linked");
    let list = b"gone\ngone/too\na/nothing\nplain/below\nlink/x\nz\na/x\n";
    each_way(&folder, "--files-from -", list, |way, ran| {
        assert_eq!(ran.code, 23, "{way}: {}", ran.stderr);
        assert_eq!(found(&folder.path("target")), ["a/", "a/x", "z"], "{way}");
        for said in [
            "source/gone: no such file",
            "source/a/nothing: no such file",
            "source/plain: it is a regular file",
            "source/link: it is a symbolic link",
        ] {
            let said = if way == "pull" {
                said.trim_start_matches("source/")
            } else {
                said
            };
            assert!(ran.stderr.contains(said), "{way}: {said}: {}", ran.stderr);
        }
        assert!(ran.stderr.contains("4 of "), "{way}: {}", ran.stderr);
    });
}

#[test]
fn a_list_that_is_none_is_refused_before_anything_is_made() {
    let folder = Folder::new();
    tree(&folder, &["a", "b"]);
    folder.write("list", b"a\nb\n");
    for (options, input, code, said) in [
        ("--files-from -", &b"a\n/etc/passwd\n"[..], 2, "name 2"),
        ("--files-from -", b"../a\n", 2, "leads outside"),
        ("--files-from -", b"a\0b\0", 2, "add -0"),
        ("--files-from list -0", b"", 2, "no NUL ends"),
        ("--files-from nothing", b"", 1, "no such file"),
        ("--files-from list --delete", b"", 2, "cannot be used with"),
        ("-0", b"", 2, "--files-from"),
        ("--files-from list source", b"", 2, "one directory"),
        ("--files-from list -", b"", 2, "one directory"),
    ] {
        let ran = folder.haul_with(&format!("copy {options} source target"), input.to_vec());
        assert_eq!(ran.code, code, "{options}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{options}: {}", ran.stderr);
        assert!(!folder.path("target").exists(), "{options}");
    }
    let cut = folder.haul_with("copy --files-from - source target", b"a\nb".to_vec());
    assert_eq!(cut.code, 0, "{}", cut.stderr);
    assert!(cut.stderr.contains("no newline ends"), "{}", cut.stderr);
    assert_eq!(found(&folder.path("target")), ["a", "b"]);
    let dry = folder.must("copy --files-from list --dry-run source other");
    assert!(String::from_utf8_lossy(&dry.stdout).contains('a'));
    assert!(!folder.path("other").exists());
}

#[test]
fn what_links_lead_to_is_copied_in_their_place() {
    let folder = Folder::new();
    tree(&folder, &["a/x", "b/y", "top"]);
    for (text, name) in [
        ("../b", "a/directory"),
        ("../top", "a/file"),
        ("file", "a/again"),
        ("../..", "b/loop"),
        ("nowhere", "dangling"),
        ("circle", "circle"),
    ] {
        symlink(text, folder.path("source").join(name)).expect("linked");
    }
    each_way(&folder, "--follow", b"", |way, ran| {
        assert_eq!(ran.code, 23, "{way}: {}", ran.stderr);
        let wanted = [
            "a/",
            "a/again",
            "a/directory/",
            "a/directory/y",
            "a/file",
            "a/x",
            "b/",
            "b/y",
            "top",
        ];
        // What the loop leads to is its own root: the server's has the target in it.
        let mut there = found(&folder.path("target"));
        there.retain(|name| !name.contains("loop"));
        assert_eq!(there, wanted, "{way}");
        assert_eq!(folder.read("target/a/again"), b"top");
        for said in [
            "it leads to \"nowhere\": there is nothing",
            "it leads in a circle",
        ] {
            assert!(ran.stderr.contains(said), "{way}: {said}: {}", ran.stderr);
        }
        assert!(!ran.stderr.contains("panicked"));
    });
    // Below a served root none leads outside.
    std::fs::create_dir(folder.path("root")).expect("made");
    symlink("../source/top", folder.path("root/out")).expect("linked");
    symlink("/etc/passwd", folder.path("root/absolute")).expect("linked");
    let server = Server::start(&folder, "--root root");
    let ran = folder.haul(&format!("copy -L {} pulled", server.url("")));
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert!(ran.stderr.contains("outside of the root"), "{}", ran.stderr);
    assert!(found(&folder.path("pulled")).is_empty());
}

#[test]
fn a_loop_of_links_ends_where_it_began() {
    let folder = Folder::new();
    tree(&folder, &["a/b/c/x"]);
    symlink("../..", folder.path("source/a/b/up")).expect("linked");
    symlink("../../a", folder.path("source/a/b/again")).expect("linked");
    let ran = folder.haul("copy --follow source target");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert_eq!(
        found(&folder.path("target")),
        ["a/", "a/b/", "a/b/c/", "a/b/c/x"]
    );
    assert_eq!(
        ran.stderr.matches("leads back to").count(),
        2,
        "{}",
        ran.stderr
    );
    // What deleting is told of goes along the same links.
    std::fs::remove_file(folder.path("source/a/b/up")).expect("removed");
    std::fs::remove_file(folder.path("source/a/b/again")).expect("removed");
    symlink("b/c", folder.path("source/a/way")).expect("linked");
    folder.must("copy --follow source/ target");
    folder.write("target/a/way/superfluous", b"x");
    folder.must("copy --follow --delete source/ target");
    let wanted = ["a/", "a/b/", "a/b/c/", "a/b/c/x", "a/way/", "a/way/x"];
    assert_eq!(found(&folder.path("target")), wanted);
}
