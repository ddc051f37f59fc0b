//! Tests of the cloning: what is cloned, what is not tried again, and what is told.
//!
//! Leaves to others: whole copies (cli/tests). Invariant: a file system that shares
//! blocks is the test's own.

use super::*;
use crate::files::folder::HeldFolder;
use crate::files::later::Later;
use crate::files::metadata::{Keeping, Metadata};
use crate::files::place::resolve_local;
use crate::files::regular::FileSource;
use crate::files::scratch::{Mount, bytes, contents, entry, names};
use crate::files::target::{Sink, Target, TargetOptions};
use rustix::fs::AtFlags;
use std::path::Path;

const TRANSFER: TransferId = TransferId([5; 16]);
const SIZE: usize = 100_000;

fn opened(directory: &Path) -> Source {
    Source::File(FileSource::open_local(&directory.join("source")).expect("opens"))
}

fn later(directory: &Path) -> Source {
    let folder = std::fs::File::open(directory).expect("opened");
    let folder = Arc::new(HeldFolder::found(folder.into()));
    let stat = rustix::fs::statat(&folder, "source", AtFlags::SYMLINK_NOFOLLOW).expect("there");
    let later = Later::new(folder, b"source", "source".to_owned(), &stat);
    Source::Later(later.expect("looked at"))
}

fn lend(reflinks: &Reflinks, how: Reflink, source: Source) -> (Lending, Vec<Arc<Source>>) {
    let lending = Lending::new(Some(reflinks.clone()), TRANSFER, how).expect("it is lent");
    let sources = vec![Arc::new(source)];
    lending.offer(0, &sources);
    (lending, sources)
}

/// The target beside the source, made as a receiver makes it.
fn made(reflinks: &Reflinks, directory: &Path) -> Result<(Target, bool)> {
    let place = resolve_local(&directory.join("target"), false, false)?.place(b"target")?;
    let entry = entry("target", SIZE as u64);
    let cloning = reflinks.of(TRANSFER, 0);
    let source = cloning.as_ref();
    let source = source.and_then(|cloning| cloning.source(0, &entry, place.folder()));
    let was_tried = source.is_some();
    let metadata = Metadata::plain(&entry, &Keeping::new(true));
    let options = TargetOptions {
        fsync: false,
        verify: false,
        drop_cache: false,
        special_bits: false,
        digest: None,
    };
    Ok((
        Target::create_from(place, &entry, metadata, options, source, false)?,
        was_tried,
    ))
}

fn content_of(target: &Target) -> Vec<u8> {
    match target.sink() {
        Sink::File { fd, direct } => {
            assert!(direct.is_none());
            contents(fd)
        }
        _ => unreachable!("it is a file"),
    }
}

#[test]
fn what_is_lent_is_cloned_and_looked_at_by_the_descriptor_that_was_cloned() {
    let Some(mount) = Mount::disk("xfs", 400) else {
        return;
    };
    let directory = mount.path();
    std::fs::write(directory.join("source"), bytes(SIZE)).expect("written");
    for source in [opened, later] {
        let reflinks = Reflinks::default();
        let (lending, mut sources) = lend(&reflinks, Reflink::Auto, source(&directory));
        let (target, _) = made(&reflinks, &directory).expect("made");
        assert!(target.is_held());
        assert_eq!(target.in_place_bytes(), 0);
        assert!(content_of(&target) == bytes(SIZE));
        lending.take_back(0, &mut sources);
        assert!(matches!(&*sources[0], Source::File(_)));
        let (target, was_tried) = made(&reflinks, &directory).expect("made");
        assert!(!was_tried && !target.is_held(), "it is lent no more");
    }
    // A source that another has replaced is left to the sender, who says so.
    let reflinks = Reflinks::default();
    let (_lending, _) = lend(&reflinks, Reflink::Auto, later(&directory));
    std::fs::write(directory.join("source"), "other").expect("written");
    let (target, was_tried) = made(&reflinks, &directory).expect("made");
    assert!(was_tried && !target.is_held());
    drop(target);
    assert_eq!(names(&directory), ["source"]);
}

#[test]
fn where_blocks_cannot_be_shared_one_file_at_most_finds_out() {
    let old = Mount::disk_made_with("xfs", 400, &["-m", "reflink=0"]);
    let (Some(old), Some(memory)) = (old, Mount::tmpfs(1 << 24)) else {
        return;
    };
    let (old, memory) = (old.path(), memory.path());
    std::fs::write(old.join("source"), bytes(SIZE)).expect("written");
    std::fs::write(memory.join("source"), bytes(SIZE)).expect("written");
    let (apart, cannot) = ("they lie on different", "their file system cannot share");
    for (from, to, is_tried, why) in [
        (&old, &old, true, cannot),
        (&memory, &old, false, apart),
        (&old, &memory, false, apart),
        (&memory, &memory, false, cannot),
    ] {
        let reflinks = Reflinks::default();
        let (lending, _) = lend(&reflinks, Reflink::Auto, later(from));
        for is_first in [true, false] {
            let (target, was_tried) = made(&reflinks, to).expect("made");
            assert!(!target.is_held());
            assert_eq!(was_tried, is_tried && is_first);
        }
        drop(lending);
        assert!(reflinks.of(TRANSFER, 0).is_none(), "all was taken back");
        let (_lending, _) = lend(&reflinks, Reflink::Always, later(from));
        let error = made(&reflinks, to).expect_err("it must");
        assert!(error.sentence.contains(why), "{error}");
        assert!(error.cure.is_some());
        assert_eq!(names(to), ["source"]);
    }
}

#[test]
fn nothing_is_lent_where_none_is_to_be_shared() {
    let reflinks = Reflinks::default();
    assert!(Lending::new(Some(reflinks.clone()), TRANSFER, Reflink::Never).is_none());
    assert!(Lending::new(None, TRANSFER, Reflink::Always).is_none());
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("source"), "some").expect("written");
    let (_lending, _) = lend(&reflinks, Reflink::Auto, opened(directory.path()));
    let other = TransferId([6; 16]);
    assert!(reflinks.of(other, 0).is_none() && reflinks.of(TRANSFER, 1).is_none());
    let cloning = reflinks.of(TRANSFER, 0).expect("lent");
    let empty = entry("empty", 0);
    let folder = std::fs::File::open(directory.path()).expect("opened");
    let folder = HeldFolder::found(folder.into());
    assert!(cloning.source(0, &empty, &folder).is_none(), "no block");
    assert!(cloning.source(9, &entry("none", 4), &folder).is_none());
}
