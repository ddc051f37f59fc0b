//! Whole trees, every way there is, judged by tools that nobody here wrote.
//!
//! Leaves to others: single files. Invariant: after a copy `rsync`, `find`, `getfattr`
//! and `getfacl` find nothing that differs between the two trees.

use crate::mount::Mount;
use crate::support::{Folder, Ran, Server, bytes, run, skip};
use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// What `script` prints in `path`; it must succeed.
fn shell(path: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(path);
    let done = command.output().expect("sh");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script}: {wrong}");
    text
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// True where the judges are here.
fn can_judge() -> bool {
    let can = ["rsync", "getfattr", "getfacl"].into_iter().all(has);
    if !can {
        skip("rsync(1), getfattr(1) or getfacl(1) is not here");
    }
    can
}

/// One of everything that a tree can hold: as root also devices and owners.
fn furnish(root: &Path) {
    let at = |name: &str| root.join(name);
    for folder in ["a/b/c", "empty", "shut", "many", "a/.hidden"] {
        std::fs::create_dir_all(at(folder)).expect("made");
    }
    for (name, size) in [
        ("a/none", 0),
        ("a/one", 1),
        ("a/chunk", 262_144),
        ("a/b/some", 700_001),
        ("a/b/c/large", 5_000_000),
        ("shut/inside", 10),
        ("a/.hidden/file", 100),
        ("set", 3),
    ] {
        std::fs::write(at(name), bytes(size)).expect("written");
    }
    for number in 0..600 {
        let path = root.join(format!("many/f{number}"));
        std::fs::write(path, bytes(number * 7)).expect("written");
    }
    let odd = OsString::from_vec(b"odd \xff\\ \n name".to_vec());
    std::fs::write(root.join(odd), "x").expect("written");
    std::fs::write(root.join("n".repeat(255)), "x").expect("written");
    symlink("one", at("a/link")).expect("linked");
    symlink("no/such/file", at("dangling")).expect("linked");
    symlink(".", at("a/b/loop")).expect("linked");
    std::fs::hard_link(at("a/one"), at("a/b/c/also one")).expect("linked");
    std::fs::hard_link(at("a/one"), at("zz one")).expect("linked");
    shell(
        root,
        "truncate -s 3M a/hole && printf x | dd of=a/hole bs=1 seek=1000000 conv=notrunc status=none
         mkfifo fifo
         chmod 1777 empty; chmod 2750 a/b; chmod 0400 set
         touch -d '1931-01-01 12:00:00.123456789' a/one
         touch -h -d '2001-01-01 12:00:00.5' dangling
         touch -d '2100-01-01 12:00:00.000000001' a/b/some
         touch -d '1999-09-09 09:09:09.9' empty",
    );
    if rustix::process::geteuid().is_root() {
        shell(
            root,
            "mknod null c 1 3; mknod block b 7 99; chown 1234:4321 a/chunk; chown -h 7:8 dangling
             chmod 6755 a/none; chown 1:2 a/none; chmod 6755 a/none; chown 99:99 empty",
        );
    }
    // In the end, for whom it keeps out.
    std::fs::set_permissions(at("shut"), PermissionsExt::from_mode(0o555)).expect("chmod");
}

/// Attributes and lists, where the file system of `root` has them.
fn adorn(root: &Path) {
    let try_it = |script: &str| {
        let done = Command::new("sh")
            .args(["-c", script])
            .current_dir(root)
            .output();
        done.is_ok_and(|done| done.status.success())
    };
    try_it("setfattr -n user.colour -v blue a/one && setfattr -n user.empty -v '' a/b");
    try_it("setfacl -m u:77:rwx a/chunk && setfacl -d -m g:88:rx a/b && setfacl -m u:5:x empty");
    try_it("setfattr -h -n trusted.mark -v here dangling");
    try_it("setcap cap_net_raw+ep a/b/some");
}

/// Everything of a tree that `find` and its kin tell, a line an entry.
fn told(root: &Path) -> String {
    let mut all = shell(
        root,
        "find . \\( -type d -printf '%p|%y|%m|%U|%G|%T@\\0' \\) -o \\
            -printf '%p|%y|%m|%U|%G|%T@|%s|%n|%l\\0' | sort -z | tr '\\0' '\\n'",
    );
    all += &shell(
        root,
        "find . -print0 | sort -z | xargs -0 getfattr -h -d -m- 2>/dev/null || true",
    );
    all += &shell(
        root,
        "find . ! -type l -print0 | sort -z | xargs -0 getfacl -n 2>/dev/null || true",
    );
    all
}

/// Nothing differs between the two trees.
fn same(source: &Path, target: &Path, what: &str) {
    let mut rsync = Command::new("rsync");
    rsync.args(["-aHAXnc", "--numeric-ids", "--delete", "--itemize-changes"]);
    rsync.arg(source.join("")).arg(target.join(""));
    let done = rsync.output().expect("rsync");
    let wrong = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{what}: {wrong}");
    let differs = String::from_utf8_lossy(&done.stdout);
    assert_eq!(differs, "", "{what}: rsync would change");
    let (one, other) = (told(source), told(target));
    for (one, other) in one.lines().zip(other.lines()) {
        assert_eq!(one, other, "{what}");
    }
    assert_eq!(one.len(), other.len(), "{what}");
}

fn must(folder: &Folder, line: &str) -> Ran {
    let ran = run(folder.command(line), Vec::new());
    assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    ran
}

/// Below `base` in `folder`: local, pushed and pulled, by name and by contents, and
/// again, when nothing moves.
fn each_way(folder: &Folder, base: &str, options: &str) {
    let root = folder.path(base);
    std::fs::create_dir(root.join("tree")).expect("made");
    furnish(&root.join("tree"));
    adorn(&root.join("tree"));
    let server = Server::start(folder, &format!("--root {base}"));
    std::fs::create_dir(root.join("into")).expect("made");
    let source = root.join("tree");
    let (tree, contents) = (format!("{base}/tree"), format!("{base}/tree/"));
    let (named, drawn) = (server.url("tree"), server.url("tree/"));
    let there = |name: &str| format!("{base}/{name}");
    for (first, again, target, name) in [
        (&tree, &contents, there("local"), "local"),
        (&contents, &contents, there("contents"), "contents"),
        (&tree, &tree, there("into"), "into/tree"),
        (&tree, &contents, server.url("pushed"), "pushed"),
        (&named, &drawn, there("pulled"), "pulled"),
        (&drawn, &drawn, there("drawn"), "drawn"),
    ] {
        for (from, is_again) in [(first, false), (again, true)] {
            let what = format!("copy --json {options} {from} {target}");
            let ran = must(folder, &what);
            same(&source, &root.join(name), &what);
            let json = ran.json();
            assert_eq!(json["entries"]["failed"], 0, "{what}: {json}");
            if is_again {
                assert_eq!(json["bytes"]["planned"], 0, "{what}: {json}");
            } else {
                assert_eq!(json["level"], "sealed", "{what}: {json}");
            }
        }
        shell(&root, &format!("chmod -R u+w {name} && rm -rf {name}"));
    }
    let left = shell(&root, "find . -name '.haul-*'");
    assert_eq!(left, "", "temporary files");
}

#[test]
fn a_tree_arrives_as_it_is_in_a_folder() {
    if can_judge() {
        let folder = Folder::new();
        folder.directory("base");
        each_way(&folder, "base", "");
    }
}

#[test]
fn a_tree_arrives_as_it_is_on_every_file_system() {
    if !can_judge() {
        return;
    }
    std::thread::scope(|scope| {
        for kind in ["ext4", "xfs", "tmpfs"] {
            scope.spawn(move || {
                if let Some(mount) = Mount::new(kind) {
                    each_way(&mount.0, "mount", "-n 3");
                }
            });
        }
    });
}

#[test]
fn an_ordinary_user_copies_what_it_may() {
    if !can_judge() || !crate::support::can_limit() {
        return;
    }
    let folder = Folder::new();
    folder.directory("base");
    furnish(&folder.path("base"));
    adorn(&folder.path("base"));
    shell(
        &folder.path(""),
        "chmod 777 . && chmod u+w base/shut && chmod 644 base/set && chmod 2755 base/a/b",
    );
    shell(&folder.path("base"), "chmod 555 shut && rm -f null block");
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let ran = folder.haul_by(user, "copy --json --no-xattrs base copied");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let json = ran.json();
    let lost = json["lost"].to_string();
    // Only root had anything to give away.
    if rustix::process::geteuid().is_root() {
        assert!(lost.contains("owners"), "{json}");
    }
    let tells = "find . -printf '%p|%y|%m|%T@\\0' | sort -z | tr '\\0' '\\n'";
    let one = shell(&folder.path("base"), tells);
    let other = shell(&folder.path("copied"), tells);
    for (one, other) in one.lines().zip(other.lines()) {
        // Bits of a file that is another's now would mean another.
        assert_eq!(
            one.replace("|6755|", "|755|"),
            other.replace("|6755|", "|755|")
        );
    }
    // And again, into the directory that keeps its owner out.
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    std::fs::remove_file(folder.path("copied/shut/inside")).expect("root may");
    let ran = folder.haul_by(user, "copy --json --no-xattrs base/ copied");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.json()["bytes"]["planned"], 10);
    assert_eq!(shell(&folder.path("copied"), "stat -c %a shut"), "555\n");
}

#[test]
fn what_changed_alone_is_sent() {
    let folder = Folder::new();
    folder.directory("tree");
    for name in ["same", "longer", "older", "mode", "touched"] {
        folder.write(&format!("tree/{name}"), &bytes(1000));
    }
    folder.must("copy -q tree there");
    folder.write("tree/longer", &bytes(1001));
    folder.write("tree/new", &bytes(7));
    let shut = PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.path("tree/mode"), shut).expect("chmod");
    shell(&folder.path("tree"), "touch -d '2001-01-01' older");
    // A target that is shorter than its source is no beginning of it.
    folder.write("there/same", &bytes(500));
    let json = folder.must("copy --json tree/ there").json();
    assert_eq!(json["bytes"]["landed"], 1001 + 7 + 1000 + 1000, "{json}");
    for name in ["same", "longer", "older", "mode", "touched", "new"] {
        let (source, target) = (format!("tree/{name}"), format!("there/{name}"));
        assert!(folder.read(&source) == folder.read(&target), "{name}");
        let look = |name| folder.path(name).metadata().expect("there");
        let (source, target) = (look(&source), look(&target));
        assert_eq!(source.mode(), target.mode(), "{name}");
        assert_eq!(source.mtime_nsec(), target.mtime_nsec(), "{name}");
    }
    let json = folder.must("copy --json -I tree/ there").json();
    assert_eq!(json["bytes"]["landed"], 5001 + 7);
}

#[test]
fn what_lies_in_the_way_is_replaced_or_named() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("tree/folder")).expect("made");
    for name in ["over-link", "over-folder", "fine", "folder/in"] {
        folder.write(&format!("tree/{name}"), b"new");
    }
    symlink("fine", folder.path("tree/link")).expect("linked");
    std::fs::create_dir_all(folder.path("there/over-folder")).expect("made");
    folder.write("there/precious", b"older");
    symlink("precious", folder.path("there/over-link")).expect("linked");
    folder.write("there/link", b"a file");
    folder.write("there/folder", b"a file where a directory goes");
    std::fs::hard_link(folder.path("there/precious"), folder.path("there/fine")).expect("linked");
    let ran = folder.haul("copy --json tree/ there");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let json = ran.json();
    // The file, the directory, and what lies in it.
    assert_eq!(json["entries"]["failed"], 3, "{json}");
    assert_eq!(
        folder.read("there/precious"),
        b"older",
        "nothing is written through"
    );
    assert_eq!(folder.read("there/over-link"), b"new");
    assert_eq!(folder.read("there/fine"), b"new");
    let link = std::fs::read_link(folder.path("there/link")).expect("a link");
    assert_eq!(link, Path::new("fine"));
    assert!(folder.path("there/over-folder").is_dir());
    assert!(folder.path("there/folder").is_file());
    assert!(ran.stderr.contains("over-folder"), "{}", ran.stderr);
}

#[test]
fn a_file_that_cannot_be_read_fails_alone() {
    if !crate::support::can_limit() {
        return;
    }
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path("tree/shut")).expect("made");
    for name in ["a", "b", "c", "shut/x"] {
        folder.write(&format!("tree/{name}"), &bytes(100));
    }
    shell(
        &folder.path(""),
        "chmod 777 . && chmod 000 tree/b tree/shut",
    );
    let mut user = Command::new("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let ran = folder.haul_by(user, "copy --json tree there");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let json = ran.json();
    assert_eq!(json["outcome"], "partial");
    let files = json["files"].as_array().expect("a list");
    let failed = files.iter().filter(|file| !file["error"].is_null());
    let failed: Vec<_> = failed
        .map(|file| file["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        failed,
        ["there/b", "there/shut"].map(|name| name.replace("there", "tree"))
    );
    for name in ["a", "c"] {
        assert!(folder.read(&format!("there/{name}")) == bytes(100));
    }
    assert!(!folder.path("there/b").exists());
}

#[test]
fn a_link_is_never_made_to_a_file_that_was_there_before() {
    let folder = Folder::new();
    folder.directory("tree");
    folder.write("tree/first", b"new bytes");
    std::fs::hard_link(folder.path("tree/first"), folder.path("tree/second")).expect("linked");
    // The first name cannot be written.
    std::fs::create_dir_all(folder.path("there/first")).expect("made");
    let ran = folder.haul("copy --json tree/ there");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert_eq!(ran.json()["entries"]["failed"], 2);
    assert!(!folder.path("there/second").exists());
    std::fs::remove_dir(folder.path("there/first")).expect("removed");
    folder.must("copy tree/ there");
    let inode = |name| folder.path(name).metadata().expect("there").ino();
    assert_eq!(inode("there/first"), inode("there/second"));
}

#[test]
fn a_tree_may_be_deeper_than_a_path() {
    let folder = Folder::new();
    folder.directory("tree");
    // 60 times 100 bytes are more than PATH_MAX.
    let deep = "d".repeat(99);
    let at = |base: &str| {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(folder.path(base), flags, Mode::empty()).expect("opened")
    };
    let below = |held: OwnedFd| {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(held, &*deep, flags, Mode::empty()).expect("opened")
    };
    let mut held = at("tree");
    for _ in 0..60 {
        rustix::fs::mkdirat(&held, &*deep, Mode::RWXU).expect("made");
        held = below(held);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&held, "file", flags, Mode::RUSR).expect("made");
    rustix::io::write(file, b"deep").expect("written");
    let json = folder.must("copy --json tree there").json();
    assert_eq!(json["entries"]["entries"], 62, "{json}");
    let held = (0..60).fold(at("there"), |held, _| below(held));
    let file = rustix::fs::openat(&held, "file", OFlags::RDONLY, Mode::empty()).expect("there");
    let mut text = [0; 9];
    assert_eq!(rustix::io::read(file, &mut text), Ok(4));
    assert_eq!(&text[..4], b"deep");
    shell(&folder.path(""), "rm -rf tree there");
}

#[test]
fn a_time_that_a_file_system_rounds_is_told_and_is_no_change() {
    // Inodes of the old size have seconds of 32 bits.
    let Some(mount) = Mount::made_with("ext4", &["-I", "128"]) else {
        return;
    };
    let folder = &mount.0;
    folder.directory("tree");
    let files = [
        ("fraction", "@1700000000.123456789"),
        ("second", "@1700000000"),
        ("late", "@5000000000.5"),
    ];
    for (name, time) in files {
        let path = folder.path("tree").join(name);
        std::fs::write(&path, name).expect("a file");
        let mut touch = Command::new("touch");
        touch.args(["-d", time]).arg(&path);
        assert!(touch.status().expect("touch").success());
    }
    let mut touch = Command::new("touch");
    touch.args(["-d", "@1700000000"]).arg(folder.path("tree"));
    assert!(touch.status().expect("touch").success());
    let ran = must(folder, "copy tree/ mount/there");
    let told = |what: &str| assert!(ran.stderr.contains(what), "{what}: {}", ran.stderr);
    told("the exact modification times (the file system rounds them) of 1 entry were not kept");
    told("the modification times (out of the file system's range) of 1 entry were not kept");
    let again = must(folder, "copy tree/ mount/there");
    assert!(
        again.stderr.contains("2 of them unchanged"),
        "{}",
        again.stderr
    );
}

#[test]
fn a_file_system_without_links_and_owners_says_so_and_keeps_the_rest() {
    if !Path::new("/dev/fuse").exists() {
        // Where the kernel has none, nothing that is installed brings it.
        return;
    }
    let Some(mount) = Mount::new("exfat") else {
        return;
    };
    let folder = &mount.0;
    folder.directory("tree");
    folder.directory("tree/inside");
    for (name, size) in [("tree/file", 3), ("tree/inside/large", 3_000_000)] {
        folder.write(name, &bytes(size));
    }
    shell(
        &folder.path("tree"),
        "ln -s file link; ln file hard; mkfifo fifo; mknod null c 1 3; chown 1234:5678 file
         echo x > 'not:allowed'; truncate -s 2M hole",
    );
    let ran = folder.haul("copy tree mount/");
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    for said in [
        "cannot make mount/tree/link: its file system has no symbolic links",
        "cannot make mount/tree/fifo",
        "cannot make mount/tree/null",
        "mount/tree/not:allowed",
        "mount/tree/hard",
        "the owners",
    ] {
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
    let mut names = folder.names("mount/tree");
    names.sort();
    assert_eq!(names, ["file", "hole", "inside"], "no name is left over");
    for name in ["file", "hole", "inside/large"] {
        let (source, target) = (format!("tree/{name}"), format!("mount/tree/{name}"));
        assert!(folder.read(&source) == folder.read(&target), "{name}");
    }
    folder.must("copy tree/file tree/inside mount/");
}
