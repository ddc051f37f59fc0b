//! A directory held against a list of what its files hold, by several threads.
//!
//! Leaves to others: where the list comes from, and what is told of a file.
//! Invariant: each entry of the list is told once; nothing outside the directory
//! is opened and no link below it is followed; of the list only what is under
//! way is held.

use super::beneath::{DIRECTORY, check_name, kind_name, no_openat2, open_beneath, why_beneath};
use super::digest::{DigestFault, LeafHasher, READ_BYTES, TreeDigest, digest_with, read_range};
use super::shown;
use crate::error::{Error, Result, why};
use crate::limits;
use crate::options::DigestKind;
use crate::report::Digest;
use rustix::fs::{Advice, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that one thread reads of a file while others read of it, at most …
const STRETCH_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// … and at least: less costs more to hand out than it gains.
const STRETCH_BYTES_MIN: u64 = 1024 * 1024;
/// Threads, at least and at most: a disk answers several reads at once faster,
/// also where there are few cores.
const THREADS_MIN: usize = 4;
const THREADS_MAX: usize = 64;

/// What a file is to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyEntry {
    /// Where it stands in its list, for who is told of it.
    pub number: u64,
    /// Its path from the directory, "." components and double slashes included.
    pub path: Vec<u8>,
    /// The digest of all its bytes.
    pub digest: Digest,
    /// How many those are, where the list says so.
    pub bytes: Option<u64>,
    /// Its modification time, where the list says so: seconds, rounded down, and
    /// nanoseconds.
    pub mtime: Option<(i64, u32)>,
}

/// What became of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyOutcome {
    /// It holds what it is to hold.
    Holds {
        /// Its size.
        bytes: u64,
        /// Its modification time is another than the list says.
        touched: bool,
    },
    /// Its digest is another.
    Differs,
    /// It has another size, and was not read.
    OtherSize {
        /// The bytes that it has.
        found: u64,
        /// Those that it is to have.
        listed: u64,
    },
    /// It, or a directory on the way, is no longer one: what is there instead, as a
    /// clause.
    NotRegular(String),
    /// There is no such file.
    Missing,
    /// It cannot be read.
    Unreadable(Error),
    /// Its path is none below a directory: why, as a clause. Nothing was looked for.
    Unfit(&'static str),
}

/// What a verification came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries that were told.
    pub files: u64,
    /// Bytes of the files that were read whole.
    pub bytes: u64,
    /// Files that hold what they are to hold …
    pub held: u64,
    /// … and those of them whose modification time is another.
    pub touched: u64,
    /// Files that hold something else, have another size, or are none.
    pub differing: u64,
    /// Files that are not there.
    pub missing: u64,
    /// Files that cannot be read.
    pub unreadable: u64,
    /// Entries whose path is none below a directory.
    pub unfit: u64,
}

/// Holds the files of `root` against `entries`, which are taken one by one as
/// threads are free, on as many threads as the machine reads and sums fast with;
/// `tell` hears what became of each, in no order, on any of these threads. BLAKE3 of
/// a large file is summed by all of them. When `stop` is set, what is not told yet
/// never is.
///
/// # Errors
/// `root` is no directory that can be opened, or the kernel lacks what is needed
/// to stay below it.
pub fn verify_tree(
    root: &Path,
    entries: impl Iterator<Item = VerifyEntry> + Send,
    stop: &AtomicBool,
    tell: impl FnMut(&VerifyEntry, &VerifyOutcome) + Send,
) -> Result<Verified> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // One reads while another sums.
    let threads = (2 * cores).clamp(THREADS_MIN, THREADS_MAX);
    verify_on(threads, root, entries, stop, tell)
}

/// As [`verify_tree`], on so many threads.
fn verify_on(
    threads: usize,
    root: &Path,
    entries: impl Iterator<Item = VerifyEntry> + Send,
    stop: &AtomicBool,
    tell: impl FnMut(&VerifyEntry, &VerifyOutcome) + Send,
) -> Result<Verified> {
    let cannot = |errno: Errno| {
        let name = shown(root.as_os_str().as_bytes());
        Error::local(format!("cannot verify {name}"), why(errno))
    };
    let directory = rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty()).map_err(cannot)?;
    match open_beneath(directory.as_fd(), b".", OFlags::PATH | OFlags::CLOEXEC) {
        Err(Errno::NOSYS) => return Err(no_openat2()),
        Err(errno) => return Err(cannot(errno)),
        Ok(_) => {}
    }
    let verification = Verification {
        directory: directory.as_fd(),
        threads,
        stop,
        entries: Mutex::new(entries),
        shared: Mutex::default(),
        changed: Condvar::new(),
        told: Mutex::new((Verified::default(), tell)),
    };
    std::thread::scope(|scope| {
        for number in 1..threads {
            let builder = std::thread::Builder::new().name(format!("haul-verify-{number}"));
            // Where no more threads are to be had, fewer do.
            if builder.spawn_scoped(scope, || verification.work()).is_err() {
                break;
            }
        }
        verification.work();
    });
    let told = verification.told.into_inner();
    Ok(told.unwrap_or_else(PoisonError::into_inner).0)
}

/// A large file, whose stretches are read by several threads.
struct SharedFile {
    entry: VerifyEntry,
    file: OwnedFd,
    bytes: u64,
    touched: bool,
    stretch_bytes: u64,
    progress: Mutex<SharedProgress>,
}

/// How far its threads are.
struct SharedProgress {
    tree: TreeDigest,
    /// Stretches that are not read yet.
    left: u64,
    fault: Option<DigestFault>,
}

/// What the threads share.
#[derive(Default)]
struct SharedWork {
    /// Files with stretches that nobody has taken, and the next of each.
    files: VecDeque<(Arc<SharedFile>, u64)>,
    /// A thread asks the list for its next entry.
    asking: bool,
    /// Threads that have an entry, which may turn out to be a large file.
    looking: usize,
    /// The list has no more entries.
    ended: bool,
}

/// What a thread does next.
enum VerifyStep {
    /// One stretch of a large file.
    Stretch(Arc<SharedFile>, u64),
    /// Whatever the next entry needs.
    Entry(VerifyEntry),
}

/// What an entry's file is found to be.
enum LookedAt {
    /// This, without reading it.
    Known(VerifyOutcome),
    /// A regular file that is to be read.
    File(OwnedFd, Stat),
}

struct Verification<'a, I, T> {
    directory: BorrowedFd<'a>,
    threads: usize,
    stop: &'a AtomicBool,
    entries: Mutex<I>,
    shared: Mutex<SharedWork>,
    /// Something of `shared` changed that a waiting thread may wait for.
    changed: Condvar,
    told: Mutex<(Verified, T)>,
}

impl<I, T> Verification<'_, I, T>
where
    I: Iterator<Item = VerifyEntry> + Send,
    T: FnMut(&VerifyEntry, &VerifyOutcome) + Send,
{
    /// Does what is to be done until nothing is.
    fn work(&self) {
        let mut buffer = vec![0; READ_BYTES];
        while let Some(step) = self.next() {
            match step {
                VerifyStep::Stretch(file, number) => self.sum(&file, number, &mut buffer),
                VerifyStep::Entry(entry) => {
                    self.check(entry, &mut buffer);
                    let mut shared = self.shared();
                    shared.looking -= 1;
                    if shared.ended && shared.looking == 0 {
                        self.changed.notify_all();
                    }
                }
            }
        }
    }

    /// The next step: of files that are open first, so that few are.
    fn next(&self) -> Option<VerifyStep> {
        let mut shared = self.shared();
        while !self.stop.load(Ordering::Relaxed) {
            if let Some((file, number)) = shared.files.front_mut() {
                let step = VerifyStep::Stretch(file.clone(), *number);
                *number += 1;
                if *number * file.stretch_bytes >= file.bytes {
                    shared.files.pop_front();
                }
                return Some(step);
            }
            if shared.ended && shared.looking == 0 {
                return None;
            }
            if shared.ended || shared.asking {
                shared = self
                    .changed
                    .wait(shared)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            shared.asking = true;
            drop(shared);
            // A list may come slowly, and others have stretches to read meanwhile.
            let entry = locked(&self.entries).next();
            shared = self.shared();
            shared.asking = false;
            let Some(entry) = entry else {
                shared.ended = true;
                self.changed.notify_all();
                continue;
            };
            shared.looking += 1;
            self.changed.notify_one();
            return Some(VerifyStep::Entry(entry));
        }
        self.changed.notify_all();
        None
    }

    fn shared(&self) -> MutexGuard<'_, SharedWork> {
        locked(&self.shared)
    }

    /// Checks an entry, or shares it with the other threads.
    fn check(&self, entry: VerifyEntry, buffer: &mut [u8]) {
        let (file, stat) = match self.look(&entry) {
            LookedAt::Known(outcome) => return self.tell(&entry, &outcome, 0),
            LookedAt::File(file, stat) => (file, stat),
        };
        // Regular files have no negative size.
        let bytes = stat.st_size as u64;
        let touched = entry.mtime.is_some_and(|mtime| mtime != mtime_of(&stat));
        if let Some(listed) = entry.bytes.filter(|listed| *listed != bytes) {
            let found = bytes;
            return self.tell(&entry, &VerifyOutcome::OtherSize { found, listed }, 0);
        }
        if entry.digest.kind == DigestKind::Blake3 && bytes > STRETCH_BYTES_MIN {
            let stretch_bytes = stretch_bytes(bytes, self.threads);
            let progress = SharedProgress {
                tree: TreeDigest::default(),
                left: bytes.div_ceil(stretch_bytes),
                fault: None,
            };
            let file = SharedFile {
                entry,
                file,
                bytes,
                touched,
                stretch_bytes,
                progress: Mutex::new(progress),
            };
            self.shared().files.push_back((Arc::new(file), 0));
            self.changed.notify_all();
            return;
        }
        let digest = digest_with(file.as_fd(), bytes, entry.digest.kind, buffer, self.stop);
        self.judge(&entry, digest, bytes, touched);
    }

    /// Finds what `entry` names, without opening what is no regular file.
    fn look(&self, entry: &VerifyEntry) -> LookedAt {
        let path = match plain_path(&entry.path) {
            Ok(path) => path,
            Err(why) => return LookedAt::Known(VerifyOutcome::Unfit(why)),
        };
        match self.open(&path) {
            Ok(found) => found,
            Err(errno) => LookedAt::Known(match errno {
                Errno::NOENT => VerifyOutcome::Missing,
                Errno::NOTDIR => {
                    VerifyOutcome::NotRegular("a part of its path is no directory".to_owned())
                }
                Errno::LOOP => VerifyOutcome::NotRegular(why_beneath(errno)),
                errno => {
                    let doing = format!("cannot read {}", shown(&entry.path));
                    VerifyOutcome::Unreadable(Error::local(doing, why_beneath(errno)))
                }
            }),
        }
    }

    fn open(&self, path: &[u8]) -> rustix::io::Result<LookedAt> {
        let (deep, path) = descended(self.directory, path)?;
        let directory = deep.as_ref().map_or(self.directory, AsFd::as_fd);
        let open = |flags| open_beneath(directory, path, flags | OFlags::NOFOLLOW);
        let not_regular = |stat: &Stat| {
            let kind = FileType::from_raw_mode(stat.st_mode);
            let clause = format!("it is {}", kind_name(kind));
            (kind != FileType::RegularFile)
                .then(|| LookedAt::Known(VerifyOutcome::NotRegular(clause)))
        };
        // A mere place first: opening a device may wake it.
        let place = open(OFlags::PATH | OFlags::CLOEXEC)?;
        if let Some(known) = not_regular(&rustix::fs::fstat(place)?) {
            return Ok(known);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = open(flags)?;
        let stat = rustix::fs::fstat(&file)?;
        Ok(not_regular(&stat).unwrap_or(LookedAt::File(file, stat)))
    }

    /// Reads one stretch of a large file, and tells of the file after the last.
    fn sum(&self, file: &SharedFile, number: u64, buffer: &mut [u8]) {
        let start = number * file.stretch_bytes;
        let range = start..file.bytes.min(start + file.stretch_bytes);
        let mut leaf = LeafHasher::new(start);
        // Of a file that cannot be read no more is.
        let read = match locked(&file.progress).fault {
            Some(fault) => Err(fault),
            None => Ok(()),
        };
        let read = read.and_then(|()| {
            // Who cannot follow the advice reads all the same.
            let length = NonZeroU64::new(range.end - range.start);
            let _ = rustix::fs::fadvise(&file.file, start, length, Advice::WillNeed);
            read_range(file.file.as_fd(), range, buffer, self.stop, |bytes| {
                leaf.update(bytes);
            })
        });
        let leaf = leaf.finish();
        let mut progress = locked(&file.progress);
        match read {
            Ok(()) => progress.tree.add(leaf),
            Err(fault) => progress.fault = Some(fault),
        }
        progress.left -= 1;
        if progress.left > 0 {
            return;
        }
        let digest = match (progress.fault, progress.tree.finish(file.bytes)) {
            (None, Some(digest)) => Ok(digest),
            (Some(fault), _) => Err(fault),
            // Stretches are aligned, and each was added.
            (None, None) => Err(DigestFault::Short),
        };
        drop(progress);
        self.judge(&file.entry, digest, file.bytes, file.touched);
    }

    /// Tells what a file's digest, or the lack of one, means.
    fn judge(
        &self,
        entry: &VerifyEntry,
        digest: std::result::Result<Digest, DigestFault>,
        bytes: u64,
        touched: bool,
    ) {
        let unreadable = |why: String| {
            let doing = format!("cannot read {}", shown(&entry.path));
            VerifyOutcome::Unreadable(Error::local(doing, why))
        };
        let (outcome, read) = match digest {
            Ok(digest) if digest == entry.digest => {
                (VerifyOutcome::Holds { bytes, touched }, bytes)
            }
            Ok(_) => (VerifyOutcome::Differs, bytes),
            Err(DigestFault::Stopped) => return,
            Err(DigestFault::Short) => (
                unreadable("it became shorter while it was read".to_owned()),
                0,
            ),
            Err(DigestFault::Read(errno)) => (unreadable(why(errno)), 0),
        };
        self.tell(entry, &outcome, read);
    }

    fn tell(&self, entry: &VerifyEntry, outcome: &VerifyOutcome, read: u64) {
        let mut told = locked(&self.told);
        let (verified, tell) = &mut *told;
        verified.files += 1;
        verified.bytes += read;
        *match outcome {
            VerifyOutcome::Holds { touched, .. } => {
                verified.touched += u64::from(*touched);
                &mut verified.held
            }
            VerifyOutcome::Differs
            | VerifyOutcome::OtherSize { .. }
            | VerifyOutcome::NotRegular(_) => &mut verified.differing,
            VerifyOutcome::Missing => &mut verified.missing,
            VerifyOutcome::Unreadable(_) => &mut verified.unreadable,
            VerifyOutcome::Unfit(_) => &mut verified.unfit,
        } += 1;
        tell(entry, outcome);
    }
}

/// A panic elsewhere leaves plain values behind.
fn locked<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
fn mtime_of(stat: &Stat) -> (i64, u32) {
    // Nanoseconds are below a thousand million.
    (stat.st_mtime as i64, stat.st_mtime_nsec as u32)
}

/// The power of two by which a file is shared: a few for each thread, as long as
/// they are not small.
fn stretch_bytes(bytes: u64, threads: usize) -> u64 {
    let share = bytes / (4 * threads.max(1) as u64);
    1 << share.clamp(STRETCH_BYTES_MIN, STRETCH_BYTES_MAX).ilog2()
}

/// `path` without "." components and double slashes, each of its names judged.
fn plain_path(path: &[u8]) -> std::result::Result<Vec<u8>, &'static str> {
    match path {
        [] => return Err("the path is empty"),
        [b'/', ..] => return Err("the path is absolute"),
        b"." | [.., b'/'] | [.., b'/', b'.'] => return Err("the path names a directory"),
        _ => {}
    }
    let mut plain = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        if matches!(name, b"" | b".") {
            continue;
        }
        check_name(name)?;
        if !plain.is_empty() {
            plain.push(b'/');
        }
        plain.extend_from_slice(name);
    }
    Ok(plain)
}

/// The directory from which the rest of `path` is short enough for the kernel.
fn descended<'a>(
    directory: BorrowedFd<'_>,
    mut path: &'a [u8],
) -> rustix::io::Result<(Option<OwnedFd>, &'a [u8])> {
    let mut held: Option<OwnedFd> = None;
    while path.len() >= limits::PATH_BYTES_MAX {
        let fits = &path[..limits::PATH_BYTES_MAX - 1];
        let slash = fits.iter().rposition(|byte| *byte == b'/');
        let slash = slash.ok_or(Errno::NAMETOOLONG)?;
        let from = held.as_ref().map_or(directory, AsFd::as_fd);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        held = Some(open_beneath(from, &path[..slash], flags)?);
        path = &path[slash + 1..];
    }
    Ok((held, path))
}

#[cfg(test)]
mod tests;
