//! A regular file that is read, held open.
//!
//! Leaves to others: moving bulk bytes (the data plane reads or maps the held
//! descriptor), and looking at it once more at the end (`look.rs`). Invariant: a file
//! is opened once by name and judged afterwards by that descriptor alone, so a name
//! that is replaced meanwhile changes nothing, and only regular files are opened for
//! reading.

use super::beneath::{check_path, kind_name, no_openat2, open_below_root, open_beneath, unfit};
use super::extents::data_of;
use super::{FileSystem, Identity, direct_is_possible, reopening, shown};
use crate::error::{Error, ErrorKind, Result, Side, why};
use crate::kernel::descriptors::{Exhaustion, Held};
use crate::kernel::file::cached_pages;
use crate::limits;
use crate::protocol::wire::{Data, Entry, EntryKind, Ownership};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Files below this are not asked how much of them is cached.
const COLD_BYTES_MIN: u64 = 64 * 1024;

/// Why a source is not open.
#[derive(Debug)]
pub enum NotOpened {
    /// Every descriptor is in use: later it may be.
    Exhausted(Error),
    /// It cannot be.
    Refused(Error),
    /// It is a directory.
    Directory(Error),
}

impl From<Error> for NotOpened {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<NotOpened> for Error {
    fn from(not_opened: NotOpened) -> Self {
        match not_opened {
            NotOpened::Exhausted(error)
            | NotOpened::Refused(error)
            | NotOpened::Directory(error) => error,
        }
    }
}

impl Exhaustion for NotOpened {
    fn is_exhaustion(&self) -> bool {
        matches!(self, Self::Exhausted(_))
    }
}

/// What is remembered of a file to see later whether it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
}

impl Stamp {
    #[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            // Regular files have no negative size.
            size: stat.st_size as u64,
            // Nanoseconds are below a thousand million.
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
        }
    }
}

impl Stamp {
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// True of a file that has the same size and modification time. Its inode may
    /// have been changed: that says nothing of its bytes.
    pub(super) fn is_of(&self, stat: &Stat) -> bool {
        let other = Self::of(stat);
        (self.size, self.mtime) == (other.size, other.mtime)
    }
}

/// What became of a file whose size and modification time are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Nothing.
    Unchanged,
    /// Its inode was changed, which a rename, a link or another mode does, and also
    /// who writes to it and sets its times back.
    Touched(Touch),
}

/// The inode of a file that was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    ctime: (i64, u32),
    /// Permission bits.
    pub mode: u32,
}

impl Touch {
    /// An inode that a test made up.
    #[cfg(test)]
    pub(super) fn of(ctime_seconds: i64, mode: u32) -> Self {
        Self {
            ctime: (ctime_seconds, 0),
            mode,
        }
    }
}

/// A regular file, held open.
#[derive(Debug)]
pub struct FileSource {
    fd: OwnedFd,
    direct: Option<OwnedFd>,
    cold: bool,
    file_system: FileSystem,
    stamp: Stamp,
    /// Where it had data when it was opened.
    data: Data,
    /// See [`FileSource::filled_bytes`].
    filled_bytes: u64,
    mode: u32,
    owner: Ownership,
    identity: Identity,
    name: Vec<u8>,
    display: String,
    /// Dropped last, when the descriptors are closed.
    held: Held,
}

impl FileSource {
    /// Opens what the user typed; symbolic links are followed.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] when it is missing or unreadable,
    /// [`ErrorKind::Usage`] when it is no regular file.
    pub fn open_local(path: &Path) -> Result<Self> {
        Ok(Self::try_local(path)?)
    }

    /// As [`FileSource::open_local`].
    ///
    /// # Errors
    /// The same, and whether only a descriptor was missing.
    pub fn try_local(path: &Path) -> Result<Self, NotOpened> {
        let display = shown(path.as_os_str().as_bytes());
        if path.as_os_str().is_empty() {
            return Err(Error::usage("the source's path is empty")
                .at(Side::Sender)
                .into());
        }
        let open = |flags| rustix::fs::openat(CWD, path, flags, Mode::empty());
        let name = match path.file_name() {
            Some(name) => name.as_bytes().to_vec(),
            // ".", ".." and "/" are directories, which the opening refuses.
            None => Vec::new(),
        };
        // The user's links are followed, so that only a loop of them is in the way.
        let refused = |display: &str, errno| {
            Error::local(format!("cannot open {display}"), errno).at(Side::Sender)
        };
        Self::open_by(open, refused, name, display)
    }

    /// Opens a peer's `path` below `root`: no link is followed, nothing above
    /// the root is reached, and a FIFO or a device is never opened.
    ///
    /// # Errors
    /// As [`FileSource::open_local`]; [`ErrorKind::Usage`] for a path that is
    /// absolute or has empty, "." or ".." components.
    pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<Self> {
        Ok(Self::try_beneath(root, path, false)?)
    }

    /// As [`FileSource::open_beneath`]; `follow` takes links that stay below the root.
    ///
    /// # Errors
    /// The same, and whether only a descriptor was missing.
    pub fn try_beneath(root: BorrowedFd<'_>, path: &[u8], follow: bool) -> Result<Self, NotOpened> {
        let display = shown(path);
        check_path(path)
            .map_err(|why| unfit(&format!("cannot read {display:?}"), why).at(Side::Sender))?;
        let open = |flags| match follow {
            true => open_below_root(root, path, flags),
            false => open_beneath(root, path, flags | OFlags::NOFOLLOW),
        };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        Self::open_by(open, refusal, name.to_vec(), display)
    }

    /// Opens by `open` twice: first as a mere place, to see what it is without
    /// waking a device or hanging on a FIFO, then for reading.
    fn open_by(
        open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
        refusal: impl Fn(&str, Errno) -> Error,
        name: Vec<u8>,
        display: String,
    ) -> Result<Self, NotOpened> {
        let refused = |errno: Errno| match refusal(&display, errno) {
            error if errno.is_exhaustion() => NotOpened::Exhausted(error),
            error => NotOpened::Refused(error),
        };
        let place = open(OFlags::PATH | OFlags::CLOEXEC).map_err(refused)?;
        let stat = rustix::fs::fstat(&place).map_err(refused)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let error = Error::usage(format!("cannot copy {display}: it is a directory"));
            return Err(NotOpened::Directory(error.at(Side::Sender)));
        }
        require_regular(&stat, &display)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let fd = open(flags).map_err(refused)?;
        let stat = rustix::fs::fstat(&fd).map_err(refused)?;
        require_regular(&stat, &display)?;
        // It is a regular file, where the flag would only make the ring give
        // up on reads that have to wait for the disk.
        rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map_err(refused)?;
        // Only what takes less storage than its size can have holes.
        let data = match may_have_holes(&stat) {
            true => data_of(fd.as_fd(), Stamp::of(&stat).size),
            false => (Data::Everywhere, 0),
        };
        let file_system = FileSystem::of(fd.as_fd());
        let mut source = Self::hold_as_it_is(fd, &stat, file_system, data, name, display)?;
        source.ask_the_cache();
        Ok(source)
    }

    /// The open file `fd`, which has `stat` and lies on `file_system`; where it has
    /// `data`, and how many bytes of holes count as such. It counts as warm.
    pub(super) fn hold_as_it_is(
        fd: OwnedFd,
        stat: &Stat,
        file_system: FileSystem,
        (data, filled_bytes): (Data, u64),
        name: Vec<u8>,
        display: String,
    ) -> Result<Self> {
        let stamp = Stamp::of(stat);
        if file_system == FileSystem::Kernel {
            return Err(Error::usage(format!(
                "cannot copy {display}: the kernel makes it while it is read and does not tell its size"
            ))
            .cure("pipe it through standard input: cat FILE | haul copy - TARGET")
            .at(Side::Sender));
        }
        Ok(Self {
            fd,
            held: Held::new(1),
            direct: None,
            cold: false,
            file_system,
            stamp,
            data,
            filled_bytes,
            mode: stat.st_mode & 0o7777,
            owner: Ownership {
                user: stat.st_uid,
                group: stat.st_gid,
            },
            identity: Identity::of(stat),
            name,
            display,
        })
    }

    /// Finds out whether it is cold, and opens the direct descriptor where it is.
    pub(super) fn ask_the_cache(&mut self) {
        // Small files are read through buffers whether they are cached or not.
        self.cold = self.stamp.size >= COLD_BYTES_MIN
            && self.file_system != FileSystem::Memory
            && is_cold(self.fd.as_fd(), self.stamp.size, &self.data);
        if self.cold {
            self.prefer_direct();
        }
    }

    /// The held descriptor, for reading and mapping.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens the direct descriptor even where the file is warm, as
    /// `--drop-cache` wants; nothing where the file is small, in memory, or its
    /// file system refuses.
    pub fn prefer_direct(&mut self) {
        if self.direct.is_some()
            || self.stamp.size < limits::DIRECT_BYTES_MIN
            || self.file_system == FileSystem::Memory
            || !direct_is_possible(self.fd.as_fd())
        {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        // Without /proc, or where the file system refuses, the page cache serves.
        let path = reopening(self.fd.as_fd());
        self.direct = rustix::fs::open(path, flags, Mode::empty()).ok();
        if self.direct.is_some() {
            self.held.add();
        }
    }

    /// The same file opened with O_DIRECT, where it was found cold and large
    /// (or [`FileSource::prefer_direct`] asked) and its file system can: offsets, lengths and memory aligned to
    /// [`super::DIRECT_ALIGN_BYTES`]; the read that reaches the end is short.
    #[must_use]
    pub fn direct(&self) -> Option<BorrowedFd<'_>> {
        self.direct.as_ref().map(AsFd::as_fd)
    }

    /// Bytes when it was opened.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.stamp.size
    }

    /// True when most of it was not in the page cache when it was opened.
    #[must_use]
    pub fn is_cold(&self) -> bool {
        self.cold
    }

    /// True where its file system is memory, which no `--drop-cache` empties.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.file_system == FileSystem::Memory
    }

    /// True where it has holes: a mapping of it is never looked at, because that
    /// gives a hole in memory storage.
    #[must_use]
    pub fn has_holes(&self) -> bool {
        self.data != Data::Everywhere
    }

    /// Bytes of holes that are read and sent, because it has more holes than can
    /// be told.
    #[must_use]
    pub fn filled_bytes(&self) -> u64 {
        self.filled_bytes
    }

    /// Which file it is on this machine.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What sentences call it: the path as it was given.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.display
    }

    /// As it is offered: the last component of its path.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry {
            name: self.name.clone(),
            kind: EntryKind::File,
            size: self.stamp.size,
            mode: self.mode,
            mtime_seconds: self.stamp.mtime.0,
            mtime_nanos: self.stamp.mtime.1,
            owner: Some(self.owner),
            data: self.data.clone(),
            ..Entry::default()
        }
    }

    /// What became of it since it was opened, by its held descriptor.
    ///
    /// What this cannot see: a change within one tick of the kernel's clock
    /// before Linux 6.13, and stores through a shared mapping that the kernel
    /// has not yet noticed.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] when its size or its modification time is another.
    pub fn state(&self) -> Result<SourceState> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|errno| refusal(&self.display, errno))?;
        let now = Stamp::of(&stat);
        if now.size != self.stamp.size {
            let (before, now) = (self.stamp.size, now.size);
            return Err(self.changed(&format!("its size went from {before} to {now} bytes")));
        }
        if now.mtime != self.stamp.mtime {
            return Err(self.changed("its modification time moved"));
        }
        if now.ctime == self.stamp.ctime {
            return Ok(SourceState::Unchanged);
        }
        Ok(SourceState::Touched(Touch {
            ctime: now.ctime,
            mode: stat.st_mode & 0o7777,
        }))
    }

    /// Reads `buffer.len()` bytes at `offset` through the page cache.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] when the file ends before, [`ErrorKind::Local`]
    /// when the read fails.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&self.fd, &mut buffer[done..], offset + done as u64) {
                Ok(0) => {
                    let end = offset + done as u64;
                    return Err(self.changed(&format!("it ends at byte {end}")));
                }
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let doing = format!("cannot read {} at byte {offset}", self.display);
                    return Err(Error::local(doing, why(errno)).at(Side::Sender));
                }
            }
        }
        Ok(())
    }

    /// Lets its clean pages leave the page cache, for `--drop-cache`.
    pub fn forget_pages(&self) {
        // Advice only: a file system without a page cache may refuse it.
        let _ = rustix::fs::fadvise(&self.fd, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// Says that it changed, and how.
    pub(super) fn changed(&self, what: &str) -> Error {
        let display = &self.display;
        Error::new(
            ErrorKind::Integrity,
            format!("{display} changed while it was read: {what}"),
        )
        .cure("copy it again when nothing writes to it")
        .at(Side::Sender)
    }
}

fn refusal(display: &str, errno: Errno) -> Error {
    let why = match errno {
        Errno::LOOP => "a symbolic link is in the way".to_owned(),
        Errno::XDEV => "it leads outside the root".to_owned(),
        Errno::NOSYS => return no_openat2().at(Side::Sender),
        errno => why(errno),
    };
    Error::local(format!("cannot open {display}"), why).at(Side::Sender)
}

/// Refuses what is no regular file, by what it is.
fn require_regular(stat: &Stat, display: &str) -> Result<()> {
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => {
            return Err(
                Error::usage(format!("cannot copy {display}: it is a directory")).at(Side::Sender),
            );
        }
        FileType::Symlink => {
            return Err(Error::local(
                format!("cannot open {display}"),
                "it is a symbolic link, and links are not followed below the root",
            )
            .at(Side::Sender));
        }
        other => kind_name(other),
    };
    Err(Error::usage(format!(
        "cannot copy {display}: it is {what}, no regular file"
    ))
    .cure("pipe its bytes through standard input: haul copy - TARGET")
    .at(Side::Sender))
}

/// True where less is stored than its size: holes, or compression.
#[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
pub(super) fn may_have_holes(stat: &Stat) -> bool {
    (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64
}

/// Windows of the file that are asked about, and bytes of each.
const SAMPLES: u64 = 16;
const SAMPLE_BYTES: u64 = 1024 * 1024;

/// True when less than half of the sampled pages are in the page cache. The
/// samples are spread evenly and hold both ends; a file that is not larger
/// than all samples together is asked about whole.
///
/// Of a file with holes the first stretches of data are asked about: what is not
/// there cannot be cached.
fn is_cold(file: BorrowedFd<'_>, size: u64, data: &Data) -> bool {
    let (mut cached, mut asked) = (0, 0);
    let mut count = |offset, bytes| {
        // Where the kernel does not tell, the file counts as warm: the page
        // cache serves every file.
        let (c, a) = cached_pages(file, offset, bytes).unwrap_or((1, 1));
        cached += c;
        asked += a;
    };
    if let Data::Ranges(ranges) = data {
        for range in ranges.iter().take(SAMPLES as usize) {
            count(range.start, (range.end - range.start).min(SAMPLE_BYTES));
        }
    } else if size <= SAMPLES * SAMPLE_BYTES {
        count(0, size);
    } else {
        let last = size - SAMPLE_BYTES;
        for sample in 0..SAMPLES {
            // Multiplied as u128: sizes go up to 2^63.
            let offset = u128::from(last) * u128::from(sample) / u128::from(SAMPLES - 1);
            count(offset as u64, SAMPLE_BYTES);
        }
    }
    cached * 2 < asked
}

#[cfg(test)]
mod tests;
