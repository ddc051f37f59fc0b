//! Tests of sources: what is refused, what is seen to change, what is cold.
//!
//! Leaves to others: the code under test. Invariant: fresh directories only.

use super::*;
use crate::files::place::open_root;
use crate::files::scratch::{self, Mount, bytes};
use std::os::unix::fs::symlink;

fn local(path: &Path) -> Result<FileSource> {
    FileSource::open_local(path)
}

fn refused(result: Result<FileSource>, kind: ErrorKind, words: &str) {
    let error = result.expect_err("is refused");
    let sentence = error.to_string();
    assert_eq!((error.kind, error.side), (kind, Side::Sender), "{sentence}");
    assert!(sentence.contains(words), "{sentence:?} lacks {words:?}");
}

#[test]
fn an_entry_tells_name_size_mode_and_time() {
    let directory = tempfile::tempdir().expect("directory");
    for size in [0, 1, 4095, 4096, 4097] {
        let path = directory.path().join(format!("f{size}"));
        std::fs::write(&path, bytes(size)).expect("write");
        let source = local(&path).expect("opens");
        let entry = source.entry();
        assert_eq!(entry.name, format!("f{size}").into_bytes());
        assert_eq!((entry.size, source.size()), (size as u64, size as u64));
        assert_eq!(entry.kind, EntryKind::File);
        let mut back = vec![0; size];
        source.read_at(0, &mut back).expect("reads");
        assert_eq!(back, bytes(size));
        assert_eq!(source.state(), Ok(SourceState::Unchanged));
        assert!(!source.is_cold() && source.direct().is_none());
    }
}

#[test]
fn what_is_no_readable_file_is_refused_in_a_sentence() {
    let directory = tempfile::tempdir().expect("directory");
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("file"), "x").expect("write");
    refused(
        local(&at("missing")),
        ErrorKind::Local,
        "missing: no such file or directory",
    );
    refused(
        local(&at("file/below")),
        ErrorKind::Local,
        "not a directory",
    );
    refused(
        local(directory.path()),
        ErrorKind::Usage,
        "it is a directory",
    );
    refused(local(Path::new("")), ErrorKind::Usage, "empty");
    refused(local(Path::new("..")), ErrorKind::Usage, "is a directory");
    refused(
        local(Path::new("/dev/null")),
        ErrorKind::Usage,
        "a character device",
    );
    refused(
        local(Path::new("/proc/cpuinfo")),
        ErrorKind::Usage,
        "does not tell its size",
    );
    symlink("loop", at("loop")).expect("link");
    refused(local(&at("loop")), ErrorKind::Local, "symbolic link");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("socket");
    refused(local(&at("socket")), ErrorKind::Usage, "a socket");
}

#[test]
fn a_fifo_does_not_hang_either_way_of_opening() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("fifo");
    assert!(scratch::run("mkfifo", &[path.to_str().expect("text")]));
    refused(local(&path), ErrorKind::Usage, "a FIFO");
    let root = open_root(directory.path()).expect("root");
    refused(
        FileSource::open_beneath(root.as_fd(), b"fifo"),
        ErrorKind::Usage,
        "a FIFO",
    );
}

#[test]
fn links_are_followed_for_the_user_and_never_below_a_root() {
    let outside = tempfile::tempdir().expect("directory");
    let inside = tempfile::tempdir().expect("directory");
    std::fs::write(outside.path().join("secret"), "x").expect("write");
    let at = |name: &str| inside.path().join(name);
    std::fs::create_dir(at("sub")).expect("directory");
    std::fs::write(at("sub/file"), "inside").expect("write");
    symlink(outside.path().join("secret"), at("escape")).expect("link");
    symlink(outside.path(), at("away")).expect("link");
    symlink("sub/file", at("near")).expect("link");
    symlink("/proc/self/fd", at("magic")).expect("link");

    assert_eq!(local(&at("near")).expect("follows").size(), 6);
    assert_eq!(
        local(&at("escape")).expect("follows").entry().name,
        b"escape"
    );

    let root = open_root(inside.path()).expect("root");
    let below = |path: &[u8]| FileSource::open_beneath(root.as_fd(), path);
    let source = below(b"sub/file").expect("opens");
    assert_eq!((source.size(), source.entry().name), (6, b"file".to_vec()));
    for path in ["escape", "away/secret", "near", "magic/0"] {
        refused(below(path.as_bytes()), ErrorKind::Local, "symbolic link");
    }
    for path in [
        "",
        "/etc/passwd",
        "../x",
        "sub/../sub/file",
        "sub//file",
        "./sub",
        "a\0b",
    ] {
        refused(below(path.as_bytes()), ErrorKind::Usage, "below the root");
    }
    refused(below(&[b'n'; 256]), ErrorKind::Local, "more than 255");
    refused(below(&[b'/'; 5000]), ErrorKind::Local, "too long");
    refused(below(b"sub"), ErrorKind::Usage, "is a directory");
    refused(below(b"gone"), ErrorKind::Local, "no such file");
}

#[test]
fn a_file_whose_pages_were_dropped_is_cold_and_gets_a_direct_descriptor() {
    for kind in ["ext4", "xfs"] {
        let Some(mount) = Mount::disk(kind, 512) else {
            continue;
        };
        let path = mount.path().join("file");
        std::fs::write(&path, bytes(20 << 20)).expect("write");
        let mut warm = local(&path).expect("opens");
        assert!(!warm.is_cold() && warm.direct().is_none());
        warm.prefer_direct();
        assert!(warm.direct().is_some());
        rustix::fs::fsync(warm.fd()).expect("fsync");
        warm.forget_pages();
        let cold = local(&path).expect("opens");
        assert!(cold.is_cold(), "{kind}");
        let direct = cold.direct().expect("direct");
        let flags = rustix::fs::fcntl_getfl(direct).expect("flags");
        assert!(flags.contains(OFlags::DIRECT));
        // Small files are left to the page cache.
        std::fs::write(mount.path().join("small"), bytes(4096)).expect("write");
        let small = local(&mount.path().join("small")).expect("opens");
        assert!(small.direct().is_none());
    }
}

#[test]
fn a_file_in_memory_is_never_cold() {
    let Some(mount) = Mount::tmpfs(16 << 20) else {
        return;
    };
    let path = mount.path().join("file");
    let file = std::fs::File::create(&path).expect("file");
    // A hole has no pages, as a cold file has none.
    file.set_len(8 << 20).expect("length");
    let source = local(&path).expect("opens");
    assert!(!source.is_cold() && source.direct().is_none());
}
