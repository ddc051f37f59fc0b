//! Manifests of others, and directories that hold to them or do not.
//!
//! Leaves to others: how lines are read in every detail (the command's unit
//! tests). Invariant: the digests come from other programs than haul.

use crate::support::{Folder, Ran, bytes, can_limit, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// What b3sum writes of a file with a harmless name.
fn b3(content: &[u8], path: &str) -> String {
    format!("{}  {path}\n", blake3::hash(content))
}

/// Lines on standard error that are no summary.
fn failures(ran: &Ran) -> Vec<&str> {
    let lines = ran.stderr.lines();
    let mut lines: Vec<_> = lines
        .filter(|line| !line.starts_with("haul: checked "))
        .collect();
    lines.sort_unstable();
    lines
}

/// What `sha256sum` writes of all files below `dir`.
fn sha256sum(folder: &Folder) -> Option<Vec<u8>> {
    let script = "cd dir && find . -type f -print0 | xargs -0 sha256sum";
    let done = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder.path("."))
        .output()
        .expect("sh");
    if !done.status.success() {
        skip("there is no sha256sum(1) here");
        return None;
    }
    Some(done.stdout)
}

#[test]
fn what_holds_passes_in_both_formats() {
    let folder = Folder::new();
    folder.directory("dir");
    folder.directory("dir/sub");
    let large = bytes(5_000_001);
    folder.write("dir/large", &large);
    folder.write("dir/sub/empty", b"");
    folder.write("dir/other", b"nobody lists it");
    let json = json!({
        "path": "sub/empty", "bytes": 0, "mtime": "-1.250000000",
        "blake3": blake3::hash(b"").to_string(),
    });
    let text = b3(&large, "./large") + &json.to_string() + "\n";
    folder.write("manifest", text.as_bytes());
    let ran = folder.must("verify --manifest manifest dir");
    assert!(ran.stdout.is_empty());
    assert!(
        ran.stderr.starts_with("haul: checked 2 files, 4.8 MiB in "),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.ends_with(": all hold, 1 touched\n"),
        "{}",
        ran.stderr
    );
    let set = File::options()
        .write(true)
        .open(folder.path("dir/sub/empty"));
    let time = SystemTime::UNIX_EPOCH - Duration::from_millis(750);
    set.and_then(|file| file.set_modified(time))
        .expect("a time before 1970");
    let ran = folder.must("verify --manifest manifest --json dir");
    let json = ran.json();
    let want = json!({
        "exit_code": 0, "files": 2, "bytes": 5_000_001, "held": 2, "touched": 0, "differing": 0,
        "missing": 0, "unreadable": 0, "bad_lines": 0, "failed": [],
        "seconds": json["seconds"], "bytes_per_second": json["bytes_per_second"],
    });
    assert_eq!(json, want);
    assert!(json["bytes_per_second"].as_f64().expect("a number") > 0.0);
    let quiet = folder.haul_with("verify -q --manifest - dir", text.into_bytes());
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    assert!(quiet.stdout.is_empty());
}

#[test]
fn what_sha256sum_wrote_is_understood_whatever_the_names() {
    let folder = Folder::new();
    folder.directory("dir");
    let names: [&[u8]; 6] = [b"plain", b"a b", b"a\\b", b"a\nb", b"\xff\xfe", b"* star"];
    for name in names {
        let path = folder.path("dir").join(OsStr::from_bytes(name));
        std::fs::write(path, [name, b" it is"].concat()).expect("written");
    }
    folder.write("dir/large", &bytes(3_000_000));
    let Some(manifest) = sha256sum(&folder) else {
        return;
    };
    let line = "verify --digest sha256 --manifest - dir";
    let ran = folder.haul_with(line, manifest.clone());
    assert_eq!((ran.code, failures(&ran)), (0, vec![]), "{}", ran.stderr);
    assert!(ran.stderr.contains("checked 7 files"), "{}", ran.stderr);
    // As BLAKE3 nothing of it holds.
    let other = folder.haul_with("verify --json --manifest - dir", manifest);
    assert_eq!((other.code, &other.json()["differing"]), (5, &json!(7)));
    let told: Vec<_> = other.json()["failed"].as_array().expect("a list").clone();
    let odd = told.iter().find(|failed| failed["path"] == "./\\xff\\xfe");
    assert_eq!(odd.expect("it is told")["what"], "differs", "{told:?}");
}

#[test]
fn what_does_not_hold_is_named_and_the_worst_is_the_code() {
    let folder = Folder::new();
    folder.directory("dir");
    let content = bytes(2_500_000);
    let mut changed = content.clone();
    changed[2_400_000] ^= 0x40;
    folder.write("dir/good", &content);
    folder.write("dir/changed", &changed);
    folder.write("dir/longer", &[&content[..], b"x"].concat());
    symlink("good", folder.path("dir/link")).expect("linked");
    symlink(".", folder.path("dir/way")).expect("linked");
    let longer = json!({
        "path": "longer", "bytes": content.len(), "blake3": blake3::hash(&content).to_string(),
    });
    let line = |path: &str| b3(&content, path);
    let run = |lines: &[String]| {
        folder.haul_with("verify --json --manifest - dir", lines.concat().into())
    };
    let ran = run(&[
        line("good"),
        line("changed"),
        line("link"),
        line("way/good"),
        longer.to_string() + "\n",
        line("none"),
    ]);
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert_eq!(
        failures(&ran),
        [
            "haul: changed differs: its BLAKE3 digest is not the manifest's",
            "haul: link differs: it is a symbolic link",
            "haul: longer differs: it has 2500001 bytes, and the manifest says 2500000",
            "haul: none is missing",
            "haul: way/good differs: a symbolic link is in the way, and links are not followed there",
        ]
    );
    assert!(
        ran.stderr.contains(": 1 hold, 4 differ, 1 missing\n"),
        "{}",
        ran.stderr
    );
    let mut what: Vec<_> = ran.json()["failed"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|failed| format!("{} {}", failed["path"], failed["what"]).replace('"', ""))
        .collect();
    what.sort_unstable();
    assert_eq!(
        what,
        [
            "changed differs",
            "link not_regular",
            "longer other_size",
            "none missing",
            "way/good not_regular"
        ]
    );
    let missing = run(&[line("good"), line("none")]);
    assert_eq!(
        (missing.code, missing.json()["exit_code"].clone()),
        (23, json!(23))
    );
}

#[test]
fn nothing_outside_is_looked_at() {
    let folder = Folder::new();
    folder.directory("dir");
    folder.write("outside", b"content");
    folder.write("dir/inside", b"content");
    let absolute = folder.path("outside");
    let absolute = absolute.to_str().expect("text");
    let paths = ["../outside", absolute, "a/../inside", "inside/", "inside"];
    let text: String = paths.iter().map(|path| b3(b"content", path)).collect();
    folder.write("m", text.as_bytes());
    let ran = folder.haul("verify --manifest m dir");
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let told = failures(&ran);
    let line = |number, why| format!("haul: line {number} of m is no line of a manifest: {why}");
    assert_eq!(
        told,
        [
            line(1, "\"..\" is not followed"),
            line(2, "the path is absolute"),
            line(3, "\"..\" is not followed"),
            line(4, "the path names a directory"),
        ]
    );
    assert!(ran.stderr.contains("checked 1 file,"), "{}", ran.stderr);
    assert!(
        ran.stderr.contains(": 1 hold, 4 bad lines"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_manifest_that_is_cut_off_does_not_pass() {
    let folder = Folder::new();
    folder.directory("dir");
    let mut whole = String::new();
    for name in ["one", "two"] {
        folder.write(&format!("dir/{name}"), name.as_bytes());
        whole += &b3(name.as_bytes(), name);
    }
    let code = |text: &str| {
        folder
            .haul_with("verify --manifest - dir", text.into())
            .code
    };
    assert_eq!(code(&whole), 0);
    let second = whole.find('\n').expect("a line") + 1;
    for cut in second + 1..whole.len() {
        let text = &whole[..cut];
        assert_eq!(code(text), 2, "{text:?}");
    }
    let mixed = format!("words\n{}{}", b3(b"one", "one"), b3(b"x", "two"));
    let ran = folder.haul_with("verify --manifest - dir", mixed.into());
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert_eq!(failures(&ran).len(), 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("line 1 of standard input is no line"),
        "{}",
        ran.stderr
    );
    for nothing in ["", "\n# nothing\n"] {
        let ran = folder.haul_with("verify --manifest - dir", nothing.into());
        let want = "haul: there is nothing to check: standard input lists no file";
        assert_eq!((ran.code, ran.error()), (2, want));
    }
}

#[test]
fn what_cannot_be_opened_is_said() {
    let folder = Folder::new();
    folder.directory("dir");
    folder.write("m", b3(b"", "file").as_bytes());
    for (line, code, words) in [
        (
            "verify --manifest none dir",
            1,
            "cannot open none: no such file or directory",
        ),
        (
            "verify --manifest dir dir",
            1,
            "cannot read dir: is a directory",
        ),
        (
            "verify --manifest m none",
            1,
            "cannot verify none: no such file or directory",
        ),
        (
            "verify --manifest m m",
            1,
            "cannot verify m: not a directory",
        ),
        ("verify dir", 2, "--manifest"),
        ("verify --manifest m --digest md5 dir", 2, "md5"),
    ] {
        let ran = folder.haul(line);
        assert_eq!(ran.code, code, "{line}: {}", ran.stderr);
        assert!(failures(&ran)[0].contains(words), "{line}: {}", ran.stderr);
    }
}

#[test]
fn a_file_that_may_not_be_read_is_partial() {
    if !can_limit() {
        return;
    }
    let folder = Folder::new();
    folder.directory("dir");
    folder.write("dir/mine", b"content");
    folder.write("m", b3(b"content", "mine").as_bytes());
    let closed = Permissions::from_mode(0o000);
    std::fs::set_permissions(folder.path("dir/mine"), closed).expect("closed");
    let ran = if rustix::process::geteuid().is_root() {
        let opened = Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path("."), opened).expect("opened");
        let mut user = Command::new("setpriv");
        user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        folder.haul_by(user, "verify --manifest m dir")
    } else {
        folder.haul("verify --manifest m dir")
    };
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let told = failures(&ran);
    assert!(
        told[0].starts_with("haul: cannot read mine: permission denied"),
        "{told:?}"
    );
}

#[test]
fn holes_and_odd_sizes_have_the_digests_of_their_bytes() {
    let folder = Folder::new();
    folder.directory("dir");
    let size = 40 * 1024 * 1024 + 12_345;
    let sparse = File::create(folder.path("dir/sparse")).expect("made");
    sparse.set_len(size).expect("sized");
    sparse
        .write_all_at(b"in the middle", 21_000_001)
        .expect("written");
    drop(sparse);
    let mut text = b3(&folder.read("dir/sparse"), "sparse");
    for size in [1, 1023, 1024, 1025, (1 << 20) + 1, (1 << 21) - 1, 1 << 22] {
        let (content, name) = (bytes(size), format!("of-{size}"));
        folder.write(&format!("dir/{name}"), &content);
        text += &b3(&content, &name);
    }
    let ran = folder.haul_with("verify --manifest - dir", text.clone().into());
    assert_eq!((ran.code, failures(&ran)), (0, vec![]));
    let sparse = File::options().write(true).open(folder.path("dir/sparse"));
    sparse
        .and_then(|file| file.write_all_at(b"I", 21_000_001))
        .expect("written");
    let ran = folder.haul_with("verify --manifest - dir", text.into());
    assert_eq!((ran.code, failures(&ran).len()), (5, 1), "{}", ran.stderr);
}

#[test]
fn a_signal_ends_it_while_the_manifest_does_not_come() {
    let folder = Folder::new();
    folder.directory("dir");
    folder.write("dir/file", b"content");
    let mut command = folder.command("verify --json --manifest - dir");
    let mut child = command.stdin(Stdio::piped()).spawn().expect("started");
    let mut input = child.stdin.take().expect("a pipe");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    // What it says of the first line shows that it is at work.
    let text = format!("words\n{}", b3(b"content", "file"));
    input.write_all(text.as_bytes()).expect("written");
    let first = said.next().expect("a line").expect("text");
    assert!(first.contains("line 1 of standard input"), "{first}");
    kill_process(Pid::from_child(&child), Signal::INT).expect("signalled");
    let done = child.wait_with_output().expect("ended");
    assert_eq!(done.status.code(), Some(130));
    let rest: Vec<String> = said.map(|line| line.expect("text")).collect();
    assert!(
        rest[0].contains("stopped before every file was checked"),
        "{rest:?}"
    );
    assert!(rest[1].contains("bad line"), "{rest:?}");
    let result: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(result["exit_code"], 130);
    drop(input);
}
