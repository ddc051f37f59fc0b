//! Tests of looking once more: what is seen to have changed, and what is not held
//! against a source.
//!
//! Leaves to others: what a receiver makes of it. Invariant: fresh directories
//! only.

use super::*;
use crate::error::ErrorKind;
use crate::files::generated::Generated;
use crate::files::scratch::{bytes, plan, plan_of};
use crate::options::Pattern;
use crate::protocol::TransferId;
use crate::protocol::check::FileSum;
use crate::protocol::wire::Verdict;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const SIZE: usize = 150_000;
const CHUNK: u32 = 65_536;

/// A file in a fresh directory.
struct Made {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Made {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("file");
        std::fs::write(&path, bytes(SIZE)).expect("write");
        let made = Self {
            _directory: directory,
            path,
        };
        made.set_time_back();
        made
    }

    fn open(&self) -> File {
        let mut options = File::options();
        options.append(true).open(&self.path).expect("opens")
    }

    /// So that every change of the bytes moves the time, whatever the clock's tick;
    /// and as whoever forges does it.
    fn set_time_back(&self) {
        let old = SystemTime::UNIX_EPOCH;
        self.open().set_modified(old).expect("mtime");
        // The next change of the inode is in another tick of the clock.
        std::thread::sleep(Duration::from_millis(10));
    }

    fn source(&self) -> Source {
        Source::File(FileSource::open_local(&self.path).expect("opens"))
    }

    /// What a look finds after `change`.
    fn after(&self, change: impl FnOnce(&Path)) -> Result<Looked> {
        let source = self.source();
        change(&self.path);
        let sizes = [Some(SIZE as u64)];
        let sent = look(&source, &plan(&sizes, CHUNK), 0);
        // What shares its blocks is held to the same, though none of it is sent.
        let held = look(&source, &plan_of(&sizes, CHUNK, &Verdict::Held), 0);
        assert_eq!(held, sent);
        sent
    }
}

fn sum_of(contents: &[u8]) -> FileSum {
    let mut sum = FileSum::default();
    for (at, piece) in contents.chunks(CHUNK as usize).enumerate() {
        sum.add(at as u64 * u64::from(CHUNK), piece);
    }
    sum
}

#[test]
fn a_source_that_changes_is_seen() {
    let look = |change: &dyn Fn(&Made)| {
        let made = Made::new();
        let error = made.after(|_| change(&made)).expect_err("is seen");
        assert_eq!(error.kind, ErrorKind::Integrity);
        assert!(
            error.sentence.contains("changed while it was read"),
            "{error}"
        );
    };
    look(&|made| made.open().set_len(9_999).expect("truncate"));
    look(&|made| made.open().write_all(b"more").expect("append"));
    look(&|made| std::fs::write(&made.path, bytes(SIZE)).expect("rewrite"));

    let made = Made::new();
    let Source::File(source) = made.source() else {
        unreachable!("it is a file");
    };
    made.open().set_len(5_000).expect("truncate");
    let error = source.read_at(0, &mut vec![0; SIZE]).expect_err("is short");
    assert_eq!(error.kind, ErrorKind::Integrity);
    assert!(error.sentence.contains("ends at byte 5000"), "{error}");
}

#[test]
fn an_inode_that_changed_alone_tells_what_the_file_holds() {
    let mode = |path: &Path, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).expect("chmod");
    };
    type Change<'a> = (&'a dyn Fn(&Path), u32);
    let looks: [Change<'_>; 4] = [
        (&|path| mode(path, 0o4711), 0o4711),
        (
            &|path| std::fs::rename(path, path.with_extension("new")).expect("rename"),
            0o644,
        ),
        (
            &|path| std::fs::hard_link(path, path.with_extension("link")).expect("link"),
            0o644,
        ),
        (&|path| std::fs::remove_file(path).expect("unlink"), 0o644),
    ];
    for (change, mode_now) in looks {
        let made = Made::new();
        mode(&made.path, 0o644);
        std::thread::sleep(Duration::from_millis(10));
        let looked = made.after(change).expect("can be sealed");
        let touched = Touched {
            mode: mode_now,
            sum: sum_of(&bytes(SIZE)),
        };
        assert_eq!(
            looked,
            Looked {
                size: SIZE as u64,
                touched: Some(touched)
            }
        );
    }
    let untouched = Made::new().after(|_| ()).expect("can be sealed");
    assert_eq!(untouched.touched, None);
}

#[test]
fn a_byte_that_changed_in_secret_changes_the_sum() {
    let made = Made::new();
    let forge = |path: &Path| {
        let file = File::options().write(true).open(path).expect("opens");
        file.write_all_at(b"!", 70_000).expect("writes");
        made.set_time_back();
    };
    let touched = made.after(forge).expect("nothing tells").touched;
    let sum = touched.expect("its inode tells").sum;
    assert_ne!(sum, sum_of(&bytes(SIZE)));
    assert_eq!(sum, sum_of(&std::fs::read(&made.path).expect("reads")));
}

#[test]
fn an_inode_that_does_not_come_to_rest_is_given_up() {
    let mode = |mode: u32| SourceState::Touched(Touch::of(0, mode));
    let play = |states: &[SourceState]| {
        let (mut next, mut reads) = (states.iter().copied(), Vec::new());
        let found = come_to_rest(
            || Ok(next.next().expect("not more looks than that")),
            |touch| {
                reads.push(touch.mode);
                Ok(touch.mode)
            },
        );
        (found, reads)
    };
    assert_eq!(play(&[SourceState::Unchanged]), (Ok(Some(None)), vec![]));
    assert_eq!(play(&[mode(1), mode(1)]), (Ok(Some(Some(1))), vec![1]));
    let settles = [mode(1), mode(2), mode(3), mode(3)];
    assert_eq!(play(&settles), (Ok(Some(Some(3))), vec![1, 2, 3]));
    let restless: Vec<SourceState> = (0..=limits::LOOKS_MAX).map(mode).collect();
    let (found, reads) = play(&restless);
    assert_eq!((found, reads.len()), (Ok(None), limits::LOOKS_MAX as usize));
}

#[test]
fn a_chunk_is_checked_again_over_all_its_files() {
    let directory = tempfile::tempdir().expect("directory");
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    std::fs::write(&one, bytes(1000)).expect("write");
    std::fs::write(&two, bytes(2000)).expect("write");
    let held = |path: &Path| {
        let file = FileSource::open_local(path).expect("opens");
        Some(Arc::new(Source::File(file)))
    };
    let made = Generated::new(Pattern::Random, Some(70_000), 1);
    let mut payload = vec![0; 70_000];
    made.fill(0, &mut payload);
    let sources = [
        held(&one),
        held(&two),
        Some(Arc::new(Source::Generated(made))),
    ];
    let plan = plan(&[Some(1000), Some(2000), Some(70_000)], CHUNK);
    let seed = CheckSeed::new(TransferId([1; 16]), 0, plan.digest());
    let shared = [bytes(1000), bytes(2000)].concat();
    let suspects = |now: &Rechecked| -> Vec<FileId> {
        assert!(
            now.suspects
                .iter()
                .all(|(_, error)| !error.sentence.is_empty())
        );
        now.suspects.iter().map(|(file, _)| *file).collect()
    };
    let now = recheck(&plan, seed, &sources, 0);
    assert_eq!(now.check, seed.check(0, &shared));
    assert!(now.suspects.is_empty());
    let tail = recheck(&plan, seed, &sources, 2);
    assert_eq!(tail.check, seed.check(2, &payload[65_536..]));

    // One that was touched is under suspicion, until another is seen to have changed.
    std::thread::sleep(Duration::from_millis(10));
    std::fs::hard_link(&one, directory.path().join("link")).expect("link");
    assert_eq!(suspects(&recheck(&plan, seed, &sources, 0)), [0]);
    std::fs::write(&two, bytes(1999)).expect("rewrite");
    let now = recheck(&plan, seed, &sources, 0);
    assert_ne!(now.check, seed.check(0, &shared));
    assert_eq!(suspects(&now), [1]);
    let closed = [None, None, None];
    assert_eq!(suspects(&recheck(&plan, seed, &closed, 0)), [0, 1]);
}
