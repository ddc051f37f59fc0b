//! `haul copy --manifest`: judged by `haul verify`, sha256sum and BLAKE3 itself.
//!
//! Leaves to others: what is wrong with a manifest (verify.rs). Invariant: fresh folders.

use crate::support::{Folder, Server, bytes};
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

/// A tree with files of every size that matters, holes and another name.
fn furnish(folder: &Folder) {
    std::fs::create_dir_all(folder.path("source/a/b")).expect("made");
    for (name, size) in [
        ("none", 0),
        ("one", 1),
        ("a/most of a chunk", 65_535),
        ("a/chunk", 65_536),
        ("a/more than a chunk", 65_537),
        ("a/b/odd \\ \n name", 1_000),
        ("a/b/many chunks", 64 * 1024 * 7),
        ("large", 5_000_001),
    ] {
        folder.write(&format!("source/{name}"), &bytes(size));
    }
    for number in 0..300 {
        folder.write(&format!("source/a/f{number}"), &bytes(number * 31));
    }
    let hole = std::fs::File::create(folder.path("source/hole")).expect("made");
    hole.set_len(3_000_000).expect("sized");
    std::os::unix::fs::FileExt::write_all_at(&hole, b"data", 1_234_567).expect("written");
    std::fs::hard_link(folder.path("source/large"), folder.path("source/a/large")).expect("linked");
    symlink("one", folder.path("source/link")).expect("linked");
}

/// Path and digest of each line, escapes left as they are.
fn lines(text: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8(text.to_vec()).expect("text");
    let line = |line: &str| {
        let (digest, path) = line
            .trim_start_matches('\\')
            .split_once("  ")
            .expect("two parts");
        (path.to_owned(), digest.to_owned())
    };
    text.lines().map(line).collect()
}

#[test]
fn a_manifest_lists_what_the_target_holds() {
    let folder = Folder::new();
    furnish(&folder);
    for way in ["here", "push", "pull"] {
        let _ = std::fs::remove_dir_all(folder.path("target"));
        let server = Server::start(&folder, "--root .");
        let ends = match way {
            "here" => "source/ target".to_owned(),
            "push" => format!("source/ {}", server.url("target")),
            _ => format!("{} target", server.url("source/")),
        };
        let copy = format!("copy -n 3 --chunk-size 64KiB --manifest list {ends}");
        let ran = folder.must(&copy);
        assert!(
            ran.stderr.contains("list lists 310 files"),
            "{}",
            ran.stderr
        );
        let first = lines(&folder.read("list"));
        assert_eq!(first.len(), 310, "{way}");
        for (name, digest) in &first {
            let path = name.replace("\\\\", "\\").replace("\\n", "\n");
            let wanted = blake3::hash(&folder.read(&format!("target/{path}")));
            assert_eq!(digest, wanted.to_hex().as_str(), "{way}: {name}");
        }
        folder.must("verify --manifest list target");
        // What is passed over is listed as well.
        let again = folder.must(&copy);
        assert!(again.stderr.contains("unchanged"), "{}", again.stderr);
        assert_eq!(lines(&folder.read("list")), first, "{way}");
        folder.must(&format!("copy --checksum --manifest list {ends}"));
        assert_eq!(lines(&folder.read("list")), first, "{way}");
    }
}

#[test]
fn sha256_is_read_back_and_holds_for_sha256sum() {
    let folder = Folder::new();
    furnish(&folder);
    let ran = folder.must("copy --manifest list --digest sha256 source new");
    assert!(ran.stderr.contains("each was read back"), "{}", ran.stderr);
    let mut sum = std::process::Command::new("sha256sum");
    sum.args(["--check", "--quiet", "../list"])
        .current_dir(folder.path("new"));
    let done = sum.output().expect("sha256sum");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stdout)
    );
    folder.must("verify --digest sha256 --manifest list new");
}

#[test]
fn paths_in_a_manifest_begin_at_the_target() {
    let folder = Folder::new();
    folder.directory("source");
    folder.directory("there");
    folder.write("source/file", b"file");
    for (copy, path) in [
        ("source there", "source/file"),
        ("source new", "file"),
        ("source/ newer", "file"),
        ("source/file there", "file"),
        ("source/file there/renamed", "renamed"),
    ] {
        folder.must(&format!("copy --manifest list {copy}"));
        let names: Vec<String> = lines(&folder.read("list")).into_keys().collect();
        assert_eq!(names, [path], "{copy}");
    }
    let ran = folder.haul_with("copy --manifest list.jsonl - stream", b"text".to_vec());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = String::from_utf8(folder.read("list.jsonl")).expect("text");
    let line: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&line["path"], &line["bytes"]),
        (&"stream".into(), &4.into())
    );
    assert_eq!(line["blake3"], blake3::hash(b"text").to_hex().as_str());
    folder.must("verify --manifest list.jsonl .");
}

#[test]
fn a_manifest_of_a_copy_that_fails_lists_what_is_sealed() {
    let folder = Folder::new();
    folder.directory("source");
    folder.write("source/good", b"good");
    folder.write("list", b"an older one");
    let ran = folder.haul("copy --manifest list source/good missing target/");
    assert_ne!(ran.code, 0);
    assert_eq!(folder.read("list"), b"an older one", "nothing was sealed");
    folder.directory("target");
    let ran = folder.haul("copy --manifest list source/good missing target/");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let names: Vec<String> = lines(&folder.read("list")).into_keys().collect();
    assert_eq!(names, ["good"]);
    for (options, said) in [
        (
            "--manifest no/such/list source/good target",
            "cannot write the manifest",
        ),
        (
            "--manifest source/good source/good target",
            "used otherwise",
        ),
        ("--manifest list source/good -", "carries the data"),
        ("--manifest - --json source/good target", "both write"),
        (
            "--manifest list --dry-run source/good target",
            "cannot be used",
        ),
        ("--digest sha256 source/good target", "--manifest"),
    ] {
        let ran = folder.haul(&format!("copy {options}"));
        assert!(ran.code == 2 || ran.code == 1, "{options}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{options}: {}", ran.stderr);
    }
    assert!(!folder.path("list.part").exists());
    let ran = folder.must("copy -q --manifest - source/ elsewhere");
    assert_eq!(lines(&ran.stdout).len(), 1);
}
