//! Lists that hold and lists that do not, on several threads.
//!
//! Leaves to others: how lists are written. Invariant: every entry is told once,
//! or the test fails.

use super::*;
use crate::files::scratch::bytes;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicUsize;

fn digest(kind: DigestKind, content: &[u8]) -> Digest {
    use sha2::Digest as _;
    let bytes = match kind {
        DigestKind::Blake3 => blake3::hash(content).into(),
        DigestKind::Sha256 => sha2::Sha256::digest(content).into(),
    };
    Digest { kind, bytes }
}

fn entry(path: impl AsRef<[u8]>, content: &[u8]) -> VerifyEntry {
    VerifyEntry {
        number: 0,
        path: path.as_ref().to_vec(),
        digest: digest(DigestKind::Blake3, content),
        bytes: None,
        mtime: None,
    }
}

/// What became of each path.
fn verified(
    threads: usize,
    root: &Path,
    entries: Vec<VerifyEntry>,
) -> (Verified, BTreeMap<Vec<u8>, VerifyOutcome>) {
    let mut outcomes = BTreeMap::new();
    let go_on = AtomicBool::new(false);
    let count = entries.len();
    let verified = verify_on(
        threads,
        root,
        entries.into_iter(),
        &go_on,
        |entry, outcome| {
            let before = outcomes.insert(entry.path.clone(), outcome.clone());
            assert_eq!(before, None, "{entry:?} is told once");
        },
    );
    assert_eq!(outcomes.len(), count);
    (verified.expect("a directory"), outcomes)
}

fn one(root: &Path, entry: VerifyEntry) -> VerifyOutcome {
    let (_, outcomes) = verified(2, root, vec![entry]);
    outcomes.into_values().next().expect("one is told")
}

#[test]
fn files_of_any_size_hold_on_any_number_of_threads() {
    let root = tempfile::tempdir().expect("a folder");
    let mib = STRETCH_BYTES_MIN as usize;
    let sizes = [0, 1, 1025, 70_001, mib, mib + 1, 3 * mib, 9 * mib + 4097];
    for threads in [1, 2, 7] {
        let mut entries = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            let content = bytes(size);
            // SHA-256 has no tree, and is slow where it is not optimized.
            let kinds = [DigestKind::Blake3, DigestKind::Sha256];
            for kind in kinds.into_iter().take(if size > mib + 1 { 1 } else { 2 }) {
                let name = format!("{number}.{}", kind.word());
                fs::write(root.path().join(&name), &content).expect("written");
                let mut entry = entry(&name, b"");
                entry.digest = digest(kind, &content);
                entry.bytes = Some(size as u64);
                entries.push(entry);
            }
        }
        let (verified, outcomes) = verified(threads, root.path(), entries);
        assert_eq!((verified.files, verified.held), (14, 14), "{outcomes:?}");
        let total: usize = sizes.iter().chain(&sizes[..6]).sum();
        assert_eq!(verified.bytes, total as u64);
    }
}

#[test]
fn one_byte_anywhere_in_a_large_file_is_found() {
    let root = tempfile::tempdir().expect("a folder");
    let mut content = bytes(5 * STRETCH_BYTES_MIN as usize + 9);
    let entry = entry("large", &content);
    for at in [0, content.len() / 2, content.len() - 1] {
        content[at] ^= 1;
        fs::write(root.path().join("large"), &content).expect("written");
        content[at] ^= 1;
        assert_eq!(one(root.path(), entry.clone()), VerifyOutcome::Differs);
    }
    fs::write(root.path().join("large"), &content).expect("written");
    let (bytes, touched) = (content.len() as u64, false);
    let holds = VerifyOutcome::Holds { bytes, touched };
    assert_eq!(one(root.path(), entry), holds);
}

#[test]
fn what_is_not_as_it_was_is_told_by_kind() {
    let root = tempfile::tempdir().expect("a folder");
    let path = |name: &str| root.path().join(name);
    fs::create_dir(path("dir")).expect("made");
    fs::write(path("dir/file"), b"content").expect("written");
    symlink("dir/file", path("link")).expect("linked");
    symlink("dir", path("way")).expect("linked");
    let _socket = UnixListener::bind(path("socket")).expect("bound");
    let fifo = path("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("made");
    let what = |name: &str| one(root.path(), entry(name, b"content"));
    let (bytes, touched) = (7, false);
    for name in ["dir/file", "./dir/file", "dir//./file"] {
        assert_eq!(
            what(name),
            VerifyOutcome::Holds { bytes, touched },
            "{name}"
        );
    }
    for (name, clause) in [
        ("link", "it is a symbolic link"),
        ("way/file", "a symbolic link is in the way"),
        ("dir", "it is a directory"),
        ("dir/file/below", "no directory"),
        ("socket", "it is a socket"),
        ("fifo", "it is a FIFO"),
    ] {
        match what(name) {
            VerifyOutcome::NotRegular(why) => assert!(why.contains(clause), "{name}: {why}"),
            other => unreachable!("{name}: {other:?}"),
        }
    }
    assert_eq!(what("none"), VerifyOutcome::Missing);
    assert_eq!(what("none/file"), VerifyOutcome::Missing);
    let mut listed = entry("dir/file", b"content");
    listed.bytes = Some(8);
    let other_size = VerifyOutcome::OtherSize {
        found: 7,
        listed: 8,
    };
    assert_eq!(one(root.path(), listed.clone()), other_size);
    listed.bytes = Some(7);
    listed.mtime = Some((-2, 500_000_000));
    let touched = VerifyOutcome::Holds {
        bytes,
        touched: true,
    };
    assert_eq!(one(root.path(), listed.clone()), touched);
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: -2,
            tv_nsec: 500_000_000,
        },
    };
    let set = rustix::fs::utimensat(CWD, path("dir/file"), &times, rustix::fs::AtFlags::empty());
    set.expect("a time before 1970");
    let untouched = VerifyOutcome::Holds {
        bytes,
        touched: false,
    };
    assert_eq!(one(root.path(), listed), untouched);
}

#[test]
fn no_path_leads_outside() {
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("file"), b"content").expect("written");
    let root = outside.path().join("root");
    fs::create_dir(&root).expect("made");
    let absolute = outside.path().join("file");
    symlink(outside.path(), root.join("up")).expect("linked");
    for path in [
        b"../file".as_slice(),
        b"a/../../file",
        b"",
        b".",
        b"./",
        b"a/",
        b"a/.",
        b"a\0b",
        absolute.as_os_str().as_bytes(),
    ] {
        let outcome = one(&root, entry(path, b"content"));
        let unfit = matches!(outcome, VerifyOutcome::Unfit(_));
        assert!(unfit, "{}: {outcome:?}", shown(path));
    }
    let through = one(&root, entry("up/file", b"content"));
    assert!(
        matches!(through, VerifyOutcome::NotRegular(_)),
        "{through:?}"
    );
}

#[test]
fn a_path_of_any_depth_is_found() {
    let root = tempfile::tempdir().expect("a folder");
    let name = "d".repeat(250);
    let mut directory = rustix::fs::open(root.path(), DIRECTORY, Mode::empty()).expect("opened");
    let mut path = String::new();
    for _ in 0..40 {
        rustix::fs::mkdirat(&directory, &name, Mode::RWXU).expect("made");
        directory =
            rustix::fs::openat(&directory, &name, DIRECTORY, Mode::empty()).expect("opened");
        path += &format!("{name}/");
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = rustix::fs::openat(&directory, "file", flags, Mode::RWXU).expect("made");
    rustix::io::write(&file, b"content").expect("written");
    let holds = one(root.path(), entry(format!("{path}file"), b"content"));
    assert!(matches!(holds, VerifyOutcome::Holds { .. }), "{holds:?}");
    let missing = one(root.path(), entry(format!("{path}none"), b"content"));
    assert_eq!(missing, VerifyOutcome::Missing);
}

#[test]
fn what_cannot_be_read_is_told_with_its_reason() {
    let missing = Path::new("/nonexistent/directory");
    let go_on = AtomicBool::new(false);
    let error = verify_tree(missing, std::iter::empty(), &go_on, |_, _| ());
    let error = error.expect_err("it is not there");
    assert!(error.sentence.contains("no such file"), "{error}");
    // A file of the kernel's that holds less than its size.
    let sysfs = Path::new("/sys/kernel");
    if fs::metadata(sysfs.join("uevent_seqnum")).is_ok_and(|found| found.len() > 100) {
        match one(sysfs, entry("uevent_seqnum", b"content")) {
            VerifyOutcome::Unreadable(error) => {
                assert!(error.sentence.contains("became shorter"), "{error}");
            }
            other => unreachable!("{other:?}"),
        }
    } else {
        crate::kernel::skip("there is no sysfs here");
    }
}

#[test]
fn of_the_list_only_what_is_under_way_is_held() {
    let root = tempfile::tempdir().expect("a folder");
    let content = bytes(2 * STRETCH_BYTES_MIN as usize);
    for name in 0..50 {
        fs::write(root.path().join(name.to_string()), &content).expect("written");
    }
    let [taken, told, ahead] = [const { AtomicUsize::new(0) }; 3];
    let entries = (0..50).map(|name: u32| {
        let now = taken.fetch_add(1, Ordering::SeqCst) - told.load(Ordering::SeqCst);
        ahead.fetch_max(now, Ordering::SeqCst);
        entry(name.to_string(), &content)
    });
    let go_on = AtomicBool::new(false);
    let verified = verify_on(3, root.path(), entries, &go_on, |_, _| {
        told.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(verified.expect("a directory").held, 50);
    let ahead = ahead.into_inner();
    assert!(ahead <= 2 * 3, "{ahead} were under way at once");
}

#[test]
fn after_a_stop_nothing_more_is_told() {
    let root = tempfile::tempdir().expect("a folder");
    fs::write(root.path().join("file"), b"content").expect("written");
    let stop = AtomicBool::new(false);
    let endless = std::iter::repeat_with(|| entry("file", b"content"));
    let mut told = 0;
    let verified = verify_on(3, root.path(), endless, &stop, |_, _| {
        told += 1;
        stop.store(told >= 100, Ordering::Relaxed);
    });
    let files = verified.expect("a directory").files;
    // What the other threads have in hand may still be told.
    assert!((100..=102).contains(&files), "{files}");
}
