//! Tests of targets: what is left, what is renamed, what is found on the disk.
//!
//! Leaves to others: the code under test. Invariant: fresh directories and
//! mounts of the test's own.

use super::*;
use crate::files::metadata::Keeping;
use crate::files::place::resolve_local;
use crate::files::scratch::{self, Mount, bytes, entry, names, plan};
use crate::files::settle::{ToSettle, Whole, settle_all};
use crate::protocol::wire::{Touched, Verdict};
use crate::report::{Latency, Level};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const CHUNK: u32 = 65_536;
const PLAIN: TargetOptions = TargetOptions {
    fsync: true,
    verify: false,
    drop_cache: false,
    special_bits: false,
    digest: None,
};
const VERIFIED: TargetOptions = TargetOptions {
    verify: true,
    ..PLAIN
};

fn create(path: &Path, entry: &Entry, options: TargetOptions) -> Result<Target> {
    let place = resolve_local(path, false, false)?.place(&entry.name)?;
    let metadata = Metadata::plain(entry, &Keeping::new(options.special_bits));
    Target::create(place, entry, metadata, options)
}

/// Writes `contents` as a worker does, through the direct descriptor where
/// there is one, and notes each chunk's piece.
fn land(target: &Target, contents: &[u8]) {
    let Sink::File { fd, direct } = target.sink() else {
        panic!("a file");
    };
    if let Some(direct) = direct {
        let align = DIRECT_ALIGN_BYTES;
        let padded = contents.len().next_multiple_of(align);
        let mut buffer = vec![0; padded + align];
        let base = buffer.as_ptr().align_offset(align);
        buffer[base..base + contents.len()].copy_from_slice(contents);
        let file = File::from(direct.try_clone().expect("descriptor"));
        file.write_all_at(&buffer[base..base + padded], 0)
            .expect("writes");
    } else {
        let file = File::from(fd.try_clone().expect("descriptor"));
        file.write_all_at(contents, 0).expect("writes");
    }
    for (at, piece) in contents.chunks(CHUNK as usize).enumerate() {
        target.note_piece(at as u64 * u64::from(CHUNK), piece);
    }
}

/// One file, settled alone.
fn settled(
    target: &Target,
    size: u64,
    touched: Option<Touched>,
    pieces: Pieces<'_>,
    sync: &mut Latency,
) -> Result<Level> {
    let whole = Whole {
        target,
        size,
        touched,
        pieces,
    };
    let (all, mut left_over) = ([ToSettle::File(whole)], Vec::new());
    let mut results = settle_all(&all, target.options().fsync, sync, &mut left_over);
    assert_eq!(left_over, [""; 0]);
    results.remove(0)
}

fn settle(target: &Target, size: u64) -> Result<Level> {
    let mut sync = Latency::default();
    let level = settled(
        target,
        size,
        None,
        (&plan(&[Some(size)], CHUNK), 0),
        &mut sync,
    );
    assert_eq!(
        sync.is_empty(),
        level != Ok(Level::Sealed) && sync.is_empty()
    );
    level
}

fn copies(directory: &Path, options: TargetOptions, level: Level) {
    for size in [0, 1, 4095, 4096, 4097, 65_536, 5_000_001] {
        let path = directory.join(format!("file{size}"));
        std::fs::write(&path, "old").expect("write");
        let contents = bytes(size);
        let target = create(&path, &entry("x", size as u64), options).expect("creates");
        land(&target, &contents);
        assert_eq!(std::fs::read(&path).expect("reads"), b"old");
        assert_eq!(settle(&target, size as u64), Ok(level), "{size}");
        assert!(std::fs::read(&path).expect("reads") == contents, "{size}");
        let facts = std::fs::metadata(&path).expect("metadata");
        assert_eq!(facts.mode() & 0o7777, 0o640);
        assert_eq!(
            (facts.mtime(), facts.mtime_nsec()),
            (1_234_567_890, 123_456_789)
        );
        drop(target);
        assert!(path.exists());
        assert_eq!(names(directory), [format!("file{size}")]);
        std::fs::remove_file(&path).expect("removes");
    }
}

#[test]
fn every_size_is_sealed_exactly() {
    let directory = tempfile::tempdir().expect("directory");
    copies(directory.path(), PLAIN, Level::Sealed);
    let options = TargetOptions {
        fsync: false,
        ..PLAIN
    };
    copies(directory.path(), options, Level::Placed);
    for kind in ["ext4", "xfs"] {
        let Some(mount) = Mount::disk(kind, 512) else {
            continue;
        };
        for drop_cache in [false, true] {
            let options = TargetOptions {
                drop_cache,
                ..VERIFIED
            };
            copies(&mount.path(), options, Level::Sealed);
        }
    }
    if let Some(mount) = Mount::tmpfs(32 << 20) {
        copies(&mount.path(), PLAIN, Level::Sealed);
    }
}

#[test]
fn disks_get_extents_and_a_direct_descriptor_and_memory_does_not() {
    let size = 8 << 20;
    let probe = |path: &Path, options| {
        let target = create(path, &entry("x", size), options).expect("creates");
        let Sink::File { fd, direct } = target.sink() else {
            panic!("a file");
        };
        let stat = rustix::fs::fstat(fd).expect("stat");
        let extents = stat.st_blocks as u64 * 512 >= size;
        (extents, direct.is_some(), target.must_reach_disk())
    };
    let placed = TargetOptions {
        fsync: false,
        ..PLAIN
    };
    for kind in ["ext4", "xfs"] {
        let Some(mount) = Mount::disk(kind, 512) else {
            continue;
        };
        assert_eq!(probe(&mount.path(), PLAIN), (true, true, true), "{kind}");
        assert_eq!(probe(&mount.path(), placed), (true, true, false), "{kind}");
        // The direct descriptor's writes are checked in every_size_is_sealed.
        assert!(names(&mount.path()).is_empty());
    }
    if let Some(mount) = Mount::tmpfs(32 << 20) {
        assert_eq!(probe(&mount.path(), PLAIN), (false, false, true));
    }
}

#[test]
fn an_unsettled_target_leaves_nothing_and_the_old_file() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("file");
    std::fs::write(&path, "old").expect("write");
    let target = create(&path, &entry("x", 10), PLAIN).expect("creates");
    let all = names(directory.path());
    let [temporary, name] = all.as_slice() else {
        panic!("{all:?}");
    };
    assert_eq!(name, "file");
    let digits = temporary.strip_prefix(".haul-").expect("the prefix");
    assert!(digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    let facts = std::fs::metadata(directory.path().join(temporary)).expect("metadata");
    assert_eq!(facts.mode() & 0o7777, 0o600);
    land(&target, &bytes(10));
    drop(target);
    assert_eq!(names(directory.path()), ["file"]);

    let target = create(&path, &entry("x", 10), PLAIN).expect("creates");
    target.discard();
    target.discard();
    assert_eq!(names(directory.path()), ["file"]);
    // A file that takes the name meanwhile is not ours to remove.
    std::fs::write(directory.path().join(temporary), "theirs").expect("write");
    drop(target);
    assert_eq!(names(directory.path()).len(), 2);
    assert_eq!(std::fs::read(&path).expect("reads"), b"old");
}

#[test]
fn a_settled_target_removes_nothing_any_more() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("file");
    let target = create(&path, &entry("x", 3), PLAIN).expect("creates");
    let temporary = names(directory.path()).remove(0);
    land(&target, b"new");
    settle(&target, 3).expect("seals");
    std::fs::write(directory.path().join(&temporary), "theirs").expect("write");
    drop(target);
    assert_eq!(names(directory.path()), [temporary.as_str(), "file"]);
}

#[test]
fn a_file_that_is_too_short_is_not_sealed() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("file");
    let target = create(&path, &entry("x", 100), PLAIN).expect("creates");
    land(&target, &bytes(99));
    let error = settle(&target, 100).expect_err("is short");
    assert_eq!(error.kind, ErrorKind::Integrity);
    assert!(error.sentence.contains("99 of 100 bytes"), "{error}");
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_reader_of_the_final_name_sees_whole_files_only() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("file");
    let of = |round: u8| vec![round; 100_000];
    std::fs::write(&path, of(0)).expect("write");
    let done = AtomicBool::new(false);
    let options = TargetOptions {
        fsync: false,
        ..PLAIN
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Acquire) {
                let seen = std::fs::read(&path).expect("always there");
                assert_eq!(seen.len(), 100_000);
                assert!(seen.iter().all(|byte| *byte == seen[0]), "mixed");
                rounds += 1;
            }
            rounds
        });
        for round in 1..=100 {
            let target = create(&path, &entry("x", 100_000), options).expect("creates");
            land(&target, &of(round));
            assert_eq!(settle(&target, 100_000), Ok(Level::Placed));
        }
        done.store(true, Ordering::Release);
        assert!(reader.join().expect("reader") > 0);
    });
    assert_eq!(std::fs::read(&path).expect("reads"), of(100));
}

#[test]
fn a_link_under_the_last_name_is_replaced_not_followed() {
    let directory = tempfile::tempdir().expect("directory");
    let (link, other) = (
        directory.path().join("link"),
        directory.path().join("other"),
    );
    std::fs::write(&other, "other").expect("write");
    std::os::unix::fs::symlink("other", &link).expect("link");
    let target = create(&link, &entry("x", 3), PLAIN).expect("creates");
    land(&target, b"new");
    assert_eq!(settle(&target, 3), Ok(Level::Sealed));
    assert_eq!(std::fs::read(&other).expect("reads"), b"other");
    assert!(
        std::fs::symlink_metadata(&link)
            .expect("metadata")
            .is_file()
    );
}

#[test]
fn a_directory_that_appears_under_the_name_fails_the_rename_cleanly() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("file");
    let target = create(&path, &entry("x", 3), PLAIN).expect("creates");
    land(&target, b"new");
    std::fs::create_dir(&path).expect("directory");
    let error = settle(&target, 3).expect_err("cannot rename");
    assert_eq!(error.kind, ErrorKind::Local);
    assert!(error.sentence.contains("is a directory"), "{error}");
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn privileged_bits_need_a_proven_peer() {
    let directory = tempfile::tempdir().expect("directory");
    for (special_bits, bits) in [(false, 0o4755), (false, 0o2755), (true, 0o6755)] {
        let path = directory.path().join("file");
        let mut entry = entry("x", 3);
        entry.mode = 0o100_000 | bits;
        let options = TargetOptions {
            special_bits,
            ..PLAIN
        };
        let created = create(&path, &entry, options);
        if !special_bits {
            let error = created.expect_err("refused");
            assert_eq!(error.kind, ErrorKind::Unauthorised, "{error}");
            assert!(names(directory.path()).is_empty());
            continue;
        }
        let target = created.expect("creates");
        land(&target, b"new");
        settle(&target, 3).expect("seals");
        let facts = std::fs::metadata(&path).expect("metadata");
        assert_eq!(facts.mode() & 0o7777, bits);
    }
}

#[test]
fn a_file_that_its_owner_cannot_read_is_verified_all_the_same() {
    let Some(mount) = Mount::disk("ext4", 64) else {
        return;
    };
    let mut entry = entry("x", 5000);
    entry.mode = 0;
    entry.mtime_nanos = u32::MAX;
    let target = create(&mount.path().join("file"), &entry, VERIFIED).expect("creates");
    land(&target, &bytes(5000));
    assert_eq!(settle(&target, 5000), Ok(Level::Sealed));
}

#[test]
fn verification_finds_a_byte_that_the_disk_turned_over() {
    const SIZE: usize = 6 << 20;
    for (kind, verify) in [("ext4", true), ("xfs", true), ("ext4", false)] {
        let Some(mount) = Mount::disk(kind, 320) else {
            continue;
        };
        let path = mount.path().join("file");
        std::fs::write(&path, "old").expect("write");
        let mut contents = bytes(SIZE);
        let marker = b"this sector is turned over by the test";
        contents[3 << 20..][..marker.len()].copy_from_slice(marker);
        let options = TargetOptions { verify, ..PLAIN };
        let target = create(&path, &entry("x", SIZE as u64), options).expect("creates");
        land(&target, &contents);
        let Sink::File { fd, .. } = target.sink() else {
            panic!("a file");
        };
        rustix::fs::fsync(fd).expect("fsync");
        // The page cache holds the good bytes: it must not be believed.
        assert!(scratch::contents(fd) == contents);
        mount.damage(marker);
        let result = settle(&target, SIZE as u64);
        if !verify {
            assert_eq!(result, Ok(Level::Sealed));
            continue;
        }
        let error = result.expect_err("is found");
        assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
        assert!(error.sentence.contains("not those that arrived"), "{error}");
        assert_eq!(std::fs::read(&path).expect("reads"), b"old");
        assert_eq!(names(&mount.path()), ["file"]);
    }
}

#[test]
fn verification_without_a_disk_is_a_usage_error() {
    let refused = |target: Result<Target>| {
        let error = target.expect_err("is refused");
        assert_eq!(error.kind, ErrorKind::Usage, "{error}");
        assert!(error.sentence.contains("cannot verify"), "{error}");
    };
    refused(Target::null(VERIFIED));
    refused(Target::stdout(VERIFIED));
    if let Some(mount) = Mount::tmpfs(1 << 20) {
        let path = mount.path().join("file");
        refused(create(&path, &entry("x", 3), VERIFIED));
        assert!(names(&mount.path()).is_empty());
    }
}

#[test]
fn a_disk_without_room_is_told_before_the_first_byte() {
    let table = [
        (Mount::tmpfs(1 << 20), 2 << 20),
        (Mount::disk("ext4", 16), 64 << 20),
    ];
    for (mount, size) in table {
        let Some(mount) = mount else {
            continue;
        };
        let path = mount.path().join("file");
        let error = create(&path, &entry("x", size), PLAIN).expect_err("no room");
        assert_eq!(error.kind, ErrorKind::Local);
        assert!(error.sentence.contains("too few"), "{error}");
        assert!(names(&mount.path()).is_empty());
    }
}

#[test]
fn a_read_only_file_system_is_one_sentence() {
    let Some(mount) = Mount::tmpfs(1 << 20) else {
        return;
    };
    assert!(mount.freeze());
    let path = mount.path().join("file");
    let error = create(&path, &entry("x", 3), PLAIN).expect_err("read-only");
    assert_eq!(error.kind, ErrorKind::Local);
    assert!(
        error.sentence.ends_with("the file system is read-only") && error.cure.is_some(),
        "{error}"
    );
}

#[test]
fn a_touched_source_is_sealed_only_if_it_holds_what_landed() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("file");
    let size = 100_000;
    let contents = bytes(size);
    let sum_of = |contents: &[u8]| {
        let mut sum = FileSum::default();
        for (at, piece) in contents.chunks(CHUNK as usize).enumerate() {
            sum.add(at as u64 * u64::from(CHUNK), piece);
        }
        sum
    };
    let settle = |target: &Target, mode: u32, sum, verdict: &Verdict| {
        let plan = scratch::plan_of(&[Some(size as u64)], CHUNK, verdict);
        let touched = Some(Touched { mode, sum });
        settled(
            target,
            size as u64,
            touched,
            (&plan, 0),
            &mut Latency::default(),
        )
    };
    let other = [&contents[..size - 1], b"!"].concat();
    let placed = TargetOptions {
        fsync: false,
        ..PLAIN
    };
    // What shares its blocks has no chunk, and is compared as a whole.
    let all =
        [PLAIN, placed].map(|options| [Verdict::Whole, Verdict::Held].map(|one| (options, one)));
    for (options, verdict) in all.into_iter().flatten() {
        std::fs::write(&path, "old").expect("write");
        let made = || {
            let target = create(&path, &entry("x", size as u64), options).expect("creates");
            land(&target, &contents);
            target
        };
        let error = settle(&made(), 0o600, sum_of(&other), &verdict).expect_err("differs");
        assert_eq!(
            (error.kind, error.side),
            (ErrorKind::Integrity, Side::Sender)
        );
        let error = settle(&made(), 0o4711, sum_of(&contents), &verdict).expect_err("no proof");
        assert_eq!(error.kind, ErrorKind::Unauthorised);
        assert_eq!(std::fs::read(&path).expect("reads"), b"old");
        settle(&made(), 0o604, sum_of(&contents), &verdict).expect("seals");
        assert!(std::fs::read(&path).expect("reads") == contents);
        let mode = std::fs::metadata(&path).expect("metadata").mode();
        assert_eq!(mode & 0o7777, 0o604);
    }
    assert_eq!(names(directory.path()), ["file"]);

    // What was written in order cannot be read again: its sum was kept.
    let target = Target::stdout(PLAIN).expect("creates");
    target.note_piece(0, &contents[..CHUNK as usize]);
    target.note_piece(CHUNK.into(), &contents[CHUNK as usize..]);
    let delivered = settle(&target, 0o600, sum_of(&contents), &Verdict::Whole);
    assert_eq!(delivered, Ok(Level::Delivered));
    settle(&target, 0o600, sum_of(&other), &Verdict::Whole).expect_err("differs");
}

#[test]
fn sinks_without_a_name_are_delivered() {
    for target in [Target::null(PLAIN), Target::stdout(PLAIN)] {
        let target = target.expect("creates");
        target.note_piece(0, b"x");
        assert_eq!(settle(&target, 1), Ok(Level::Delivered));
        target.discard();
    }
}

#[test]
fn a_name_is_claimed_until_its_target_is_settled_or_gone() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("name");
    let writer = std::sync::Arc::new(crate::files::claim::Claimant::default());
    let create = || {
        let resolved = resolve_local(&path, false, false)?.written_by(writer.clone());
        let place = resolved.place(b"name")?.claimed()?;
        let metadata = Metadata::plain(&entry("name", 1), &Keeping::new(true));
        Target::create(place, &entry("name", 1), metadata, PLAIN)
    };
    let refused = || create().expect_err("claimed").sentence;
    let target = create().expect("free");
    assert!(refused().contains("another source of this copy has that name"));
    drop(target);
    let discarded = create().expect("dropped");
    discarded.discard();
    let settled = create().expect("discarded");
    discarded.discard();
    assert!(
        refused().contains("has that name"),
        "it is not its any more"
    );
    land(&settled, b"x");
    assert_eq!(settle(&settled, 1), Ok(Level::Sealed));
    assert!(create().is_ok(), "settled");
    assert_eq!(names(directory.path()), ["name"]);
}
