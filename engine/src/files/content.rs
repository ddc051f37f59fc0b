//! What files hold, told by digest: what `--checksum` compares without sending it.
//!
//! Leaves to others: reading a file to its end (digest.rs), and what is passed over
//! for it. Invariant: a digest is that of the file that was looked at, unchanged until
//! it was opened.

use super::Identity;
use super::digest::{DigestFault, digest_to_the_end};
use super::place::Place;
use super::source::Source;
use crate::error::{Error, Result, Side, why};
use crate::kernel::descriptors::patiently;
use crate::options::DigestKind;
use crate::report::Digest;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Files that are read at once: more than the cores of most disks' hosts need.
const THREADS_MAX: usize = 8;

/// The BLAKE3 of each of `sources` that is a regular file, on a few threads; nothing
/// for the others.
#[must_use]
pub fn contents(sources: &[Arc<Source>]) -> Vec<Option<Result<[u8; 32]>>> {
    let is_file = |source: &&Arc<Source>| matches!(***source, Source::File(_) | Source::Later(_));
    let files = sources.iter().filter(is_file).count();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(THREADS_MAX).min(files).max(1);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some((at, source)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            sources.get(at).map(|source| (at, source))
        } {
            if let Some(content) = content(source) {
                found.push((at, content));
            }
        }
        found
    };
    let mut all: Vec<_> = sources.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut found = work();
        for other in others {
            // What a thread lost with a panic is missing below, and said there.
            found.extend(other.join().unwrap_or_default());
        }
        for (at, content) in found {
            all[at] = Some(content);
        }
    });
    all
}

fn content(source: &Source) -> Option<Result<[u8; 32]>> {
    let opened;
    let file = match source {
        Source::File(file) => file,
        Source::Later(later) => match patiently(|| later.open()) {
            Ok(file) => {
                opened = file;
                &opened
            }
            Err(not_opened) => return Some(Err(not_opened.into())),
        },
        _ => return None,
    };
    let read = read_all(file.fd(), file.size());
    Some(read.map_err(|fault| unreadable(file.display(), fault)))
}

fn read_all(file: BorrowedFd<'_>, size: u64) -> Result<[u8; 32], DigestFault> {
    digest_to_the_end(file, size, DigestKind::Blake3).map(|digest| digest.bytes)
}

fn unreadable(display: &str, fault: DigestFault) -> Error {
    Error::local(format!("cannot read {display}"), fault).at(Side::Sender)
}

/// The digest of the regular file that has that name in a directory.
///
/// # Errors
/// It cannot be read, or is none.
pub fn digest_of_name(
    directory: BorrowedFd<'_>,
    name: &[u8],
    kind: DigestKind,
    display: &str,
) -> Result<Digest> {
    let cannot = |why: &dyn std::fmt::Display| {
        let doing = format!("cannot read {display} back for its digest");
        Error::local(doing, why).at(Side::Receiver)
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = patiently(|| rustix::fs::openat(directory, name, flags, Mode::empty()));
    let file = opened.map_err(|errno| cannot(&why(errno)))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| cannot(&why(errno)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(cannot(&"it is no regular file any more"));
    }
    // Regular files have no negative size.
    let size = stat.st_size as u64;
    digest_to_the_end(file.as_fd(), size, kind).map_err(|fault| cannot(&fault))
}

/// True where the file at `place`, which was seen with `stat`, holds what has that
/// digest; false also where it cannot be read, since it is replaced then.
#[must_use]
pub fn holds(place: &Place, stat: &Stat, wanted: &[u8; 32]) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(place.directory(), place.name(), flags, Mode::empty());
    let Ok(file) = patiently(open) else {
        return false;
    };
    let is_it = rustix::fs::fstat(&file).is_ok_and(|now| {
        Identity::of(&now) == Identity::of(stat)
            && FileType::from_raw_mode(now.st_mode) == FileType::RegularFile
            && now.st_size == stat.st_size
    });
    // Regular files have no negative size.
    is_it && read_all(file.as_fd(), stat.st_size as u64).is_ok_and(|found| found == *wanted)
}
