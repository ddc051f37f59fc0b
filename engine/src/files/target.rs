//! What is written: a temporary file beside its final name, standard output,
//! or nothing.
//!
//! Leaves to others: writing the bytes, and knowing that all of them landed.
//! Invariant (guarantee 1): the final name shows the old file or the whole new
//! one; a target that is dropped before it was settled leaves nothing behind.

use super::folder::HeldFolder;
use super::landed_digest::LandedDigest;
use super::metadata::Metadata;
use super::nameless::{self, NAMELESS_BYTES_MAX};
use super::place::Place;
use super::reflink::CloneSource;
use super::replace::Replaced;
use super::temporary;
use super::{DIRECT_ALIGN_BYTES, FileSystem, Identity, direct_is_possible, require_space};
use crate::error::{Error, ErrorKind, Result, Side, why};
use crate::kernel::descriptors::Held;
use crate::limits;
use crate::options::DigestKind;
use crate::protocol::FileId;
use crate::protocol::check::FileSum;
use crate::protocol::plan::Plan;
use crate::protocol::wire::{Data, Entry, EntryKind};
use crate::report::Digest;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Files below this are not preallocated: they are one extent anyway.
const ALLOCATE_BYTES_MIN: u64 = 1024 * 1024;
/// Files in memory below this are not received in place: for a few huge pages
/// the window costs as much as it saves.
const IN_PLACE_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// Where verified bytes go.
#[derive(Debug)]
pub enum Sink {
    /// The temporary file.
    File {
        /// Through the page cache; readable as well.
        fd: OwnedFd,
        /// The same file with O_DIRECT, where that was measured to win:
        /// offsets, lengths and memory aligned to
        /// [`super::DIRECT_ALIGN_BYTES`]. The last block may be written padded
        /// (settling cuts it) or through `fd`.
        direct: Option<OwnedFd>,
    },
    /// In order.
    Stdout(OwnedFd),
    /// Counted and forgotten.
    Null,
}

/// How a target is made and settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetOptions {
    /// fsync before the rename, and the directory after it.
    pub fsync: bool,
    /// Read it back from its disk before the rename.
    pub verify: bool,
    /// Leave none of its pages in the page cache.
    pub drop_cache: bool,
    /// Take files with setuid or setgid bits: never from a peer without proof.
    pub special_bits: bool,
    /// Find its digest.
    pub digest: Option<DigestKind>,
}

impl TargetOptions {
    /// Refuses what cannot be had of `entry` at `place`.
    ///
    /// # Errors
    /// As [`Target::create`].
    pub fn check(&self, place: &Place, entry: &Entry) -> Result<()> {
        let display = place.display();
        if self.verify && place.folder().file_system() == FileSystem::Memory {
            return Err(no_disk(display, "its file system is memory"));
        }
        if !self.special_bits && entry.mode & SPECIAL_BITS != 0 {
            return Err(unproved(display));
        }
        Ok(())
    }
}

/// Which pieces of a plan a file has: the plan, and its number there.
pub type Pieces<'a> = (&'a Plan, FileId);

/// setuid and setgid.
pub(super) const SPECIAL_BITS: u32 = 0o6000;

/// One file while it is received.
#[derive(Debug)]
pub struct Target {
    sink: Sink,
    options: TargetOptions,
    /// `None` where nothing is renamed.
    held: Option<NamedTarget>,
    metadata: Option<Metadata>,
    /// What was received, piece by piece, for the verification.
    sum: Mutex<FileSum>,
    /// See [`Target::in_place_bytes`].
    in_place_bytes: AtomicU64,
    /// Its file system is memory.
    in_memory: bool,
    /// What it is called where it has no place.
    display: String,
    /// The sink's descriptors.
    descriptors: Held,
    /// Targets are counted as they are made: see [`Target::number`].
    number: u64,
    is_held: bool,
    digest: Option<LandedDigest>,
}

/// Targets that were made in this process.
static MADE: AtomicU64 = AtomicU64::new(0);

/// The temporary file's place.
#[derive(Debug)]
struct NamedTarget {
    place: Place,
    /// Nothing while it has no name at all.
    temporary: OnceLock<String>,
    /// True until it has its final name, or is given up.
    present: AtomicBool,
}

impl Target {
    /// Creates the temporary file for `entry` in its final directory.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] when there is no room or the directory cannot be
    /// written; [`ErrorKind::Usage`] when verification is asked for where
    /// there is no disk; [`ErrorKind::Unauthorised`] for privileged bits that
    /// are not taken. Nothing is left behind.
    pub fn create(
        place: Place,
        entry: &Entry,
        metadata: Metadata,
        options: TargetOptions,
    ) -> Result<Self> {
        Self::create_from(place, entry, metadata, options, None, false)
    }

    /// The same; it shares the blocks of `source` where that is possible: see
    /// [`Target::is_held`]. `is_new` says that nothing was seen under its name.
    ///
    /// # Errors
    /// As [`Target::create`]; where the blocks must be shared and cannot.
    pub fn create_from(
        place: Place,
        entry: &Entry,
        metadata: Metadata,
        options: TargetOptions,
        source: Option<CloneSource<'_>>,
        is_new: bool,
    ) -> Result<Self> {
        let file_system = place.folder().file_system();
        options.check(&place, entry)?;
        if source.is_none() {
            require_room(&place, entry)?;
        }
        let is_small = entry.kind == EntryKind::File && entry.size < NAMELESS_BYTES_MAX;
        let nameless = (is_new && is_small).then(|| nameless::create(place.folder()));
        let (fd, temporary) = match nameless.flatten() {
            Some(fd) => (fd, OnceLock::new()),
            None => {
                let (fd, name) = temporary::create(place.directory(), place.display())?;
                (fd, OnceLock::from(name))
            }
        };
        // From here on the drop removes the temporary file.
        let mut target = Self {
            sink: Sink::File { fd, direct: None },
            options,
            held: Some(NamedTarget {
                place,
                temporary,
                present: AtomicBool::new(true),
            }),
            metadata: Some(metadata),
            sum: Mutex::default(),
            in_place_bytes: AtomicU64::new(0),
            in_memory: file_system == FileSystem::Memory,
            display: String::new(),
            descriptors: Held::new(1),
            number: MADE.fetch_add(1, Ordering::Relaxed),
            is_held: false,
            digest: options.digest.map(LandedDigest::new),
        };
        if let (Some(source), Sink::File { fd, .. }, Some(held)) =
            (source, &target.sink, &target.held)
        {
            target.is_held = source.clone_into(fd.as_fd(), &held.place)?;
            if !target.is_held {
                require_room(&held.place, entry)?;
            }
        }
        // What shares its blocks has its size, and extents that are not its own.
        if entry.kind == EntryKind::File && !target.is_held {
            match entry.data {
                Data::Everywhere => {
                    target.allocate(file_system, entry.size)?;
                    target.size_in_memory(file_system, entry.size)?;
                }
                // Reserved extents and huge pages would fill its holes.
                Data::Ranges(_) => target.be_a_hole(entry.size)?,
            }
            target.open_direct(file_system, entry.size);
        }
        Ok(target)
    }

    /// What was asked for and means nothing here.
    #[must_use]
    pub fn note(&self) -> Option<&'static str> {
        (self.in_memory && self.options.drop_cache)
            .then_some("--drop-cache: the target lies in memory, where nothing can be dropped")
    }

    /// This process's standard output.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] with verification, which needs a disk.
    pub fn stdout(options: TargetOptions) -> Result<Self> {
        let fd = std::io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| {
                Error::local("cannot write standard output", error).at(Side::Receiver)
            })?;
        Self::diskless(Sink::Stdout(fd), options, "standard output")
    }

    /// A sink that forgets.
    ///
    /// # Errors
    /// As [`Target::stdout`].
    pub fn null(options: TargetOptions) -> Result<Self> {
        Self::diskless(Sink::Null, options, "the null sink")
    }

    /// A target around a sink that a test made.
    #[cfg(test)]
    pub(crate) fn of_sink(sink: Sink, display: &str) -> Self {
        let options = TargetOptions {
            fsync: false,
            verify: false,
            drop_cache: false,
            special_bits: false,
            digest: None,
        };
        let mut target = Self::diskless(Sink::Null, options, display).expect("nothing asked");
        target.sink = sink;
        target
    }

    /// As [`Target::of_sink`], for a file in memory that has its size.
    #[cfg(test)]
    pub(crate) fn in_memory(sink: Sink, size: u64, display: &str) -> Self {
        let target = Self::of_sink(sink, display);
        target
            .size_in_memory(FileSystem::Memory, size)
            .expect("sized");
        target
    }

    fn diskless(sink: Sink, options: TargetOptions, display: &str) -> Result<Self> {
        if options.verify {
            return Err(no_disk(display, "it has no disk"));
        }
        Ok(Self {
            sink,
            options,
            held: None,
            metadata: None,
            sum: Mutex::default(),
            in_place_bytes: AtomicU64::new(0),
            in_memory: false,
            display: display.to_owned(),
            descriptors: Held::new(0),
            number: MADE.fetch_add(1, Ordering::Relaxed),
            is_held: false,
            digest: None,
        })
    }

    /// Where the bytes go.
    #[must_use]
    pub fn sink(&self) -> &Sink {
        &self.sink
    }

    /// What sentences call it.
    #[must_use]
    pub fn display(&self) -> &str {
        match &self.held {
            Some(held) => held.place.display(),
            None => &self.display,
        }
    }

    /// How many of the first bytes may be received straight into the file,
    /// which has its size then: all of a file in memory that huge pages are
    /// worth it for. 0 elsewhere, and once that was refused.
    #[must_use]
    pub fn in_place_bytes(&self) -> u64 {
        self.in_place_bytes.load(Ordering::Relaxed)
    }

    /// Whether all of its bytes are on its disk once it is settled; if not, the
    /// page cache may keep them.
    #[must_use]
    pub fn must_reach_disk(&self) -> bool {
        let options = &self.options;
        options.fsync || options.verify || options.drop_cache
    }

    /// True where it shares the blocks of its source: all that it is to hold is there.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Its bytes are written from now on.
    pub fn refuse_in_place(&self) {
        self.in_place_bytes.store(0, Ordering::Relaxed);
    }

    /// Whether [`Target::note_piece`] is to be called.
    #[must_use]
    pub fn notes_pieces(&self) -> bool {
        let digest = self.digest.as_ref();
        self.keeps_sum() || digest.is_some_and(LandedDigest::takes_pieces)
    }

    /// Whether what lands is summed: with verification, and where what was written
    /// cannot be read again.
    #[must_use]
    pub(super) fn keeps_sum(&self) -> bool {
        self.options.verify || matches!(self.sink, Sink::Stdout(_))
    }

    /// The piece at `offset` landed. Where [`Target::notes_pieces`], call it exactly
    /// once for the part of each landed chunk that belongs to this file, with
    /// the bytes that were checked.
    pub fn note_piece(&self, offset: u64, bytes: &[u8]) {
        if let Some(digest) = &self.digest {
            digest.add(offset, bytes);
        }
        if !self.keeps_sum() {
            return;
        }
        let mut sum = FileSum::default();
        sum.add(offset, bytes);
        // Hashed outside the lock: several workers may land one file.
        let mut all = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
        all.merge(sum);
    }

    /// Removes the temporary file; what is settled stays. Operations on the sink
    /// that are outstanding go to a file without a name.
    pub fn discard(&self) {
        if let Some(held) = &self.held
            && held.present.swap(false, Ordering::AcqRel)
        {
            if let Some(temporary) = held.temporary.get() {
                // Whoever removed it already did what is wanted here.
                let directory = held.place.directory();
                let _ = rustix::fs::unlinkat(directory, temporary, AtFlags::empty());
            }
            held.place.let_go();
        }
    }

    /// Reserves the extents where that costs nothing and keeps them in one
    /// piece; the size is set as well, so that direct writes do not extend the
    /// file. Never in memory, where it would touch every page.
    fn allocate(&self, file_system: FileSystem, size: u64) -> Result<()> {
        let disk = matches!(file_system, FileSystem::Ext4 | FileSystem::Xfs);
        let Sink::File { fd, .. } = &self.sink else {
            return Ok(());
        };
        if !disk || size < ALLOCATE_BYTES_MIN {
            return Ok(());
        }
        // Room for a padded last block, which settling cuts.
        let bytes = size.next_multiple_of(DIRECT_ALIGN_BYTES as u64);
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(self.failed("reserve space for", errno)),
        }
    }

    /// Gives a file in memory its size, as a hole, so that it can be mapped.
    fn size_in_memory(&self, file_system: FileSystem, size: u64) -> Result<()> {
        if file_system != FileSystem::Memory || size < IN_PLACE_BYTES_MIN {
            return Ok(());
        }
        self.be_a_hole(size)?;
        self.in_place_bytes.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the file its size, all of it a hole until something is written.
    fn be_a_hole(&self, size: u64) -> Result<()> {
        let Sink::File { fd, .. } = &self.sink else {
            return Ok(());
        };
        rustix::fs::ftruncate(fd, size).map_err(|errno| self.failed("size", errno))
    }

    /// Opens the direct descriptor where it was measured to win: with an fsync
    /// at the end it takes 0.54–0.66 of the time of `cp -a` and `sync -f`,
    /// where buffered writes and fsync take 2.41. With `drop_cache` it leaves
    /// no pages to drop. Without either see [`crate::limits::DIRECT_BYTES_AHEAD_MAX`].
    fn open_direct(&mut self, file_system: FileSystem, size: u64) {
        let disk = matches!(file_system, FileSystem::Ext4 | FileSystem::Xfs);
        let (Sink::File { fd, direct }, Some(held)) = (&mut self.sink, &self.held) else {
            return;
        };
        if !disk || size < limits::DIRECT_BYTES_MIN || !direct_is_possible(fd.as_fd()) {
            return;
        }
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Some(temporary) = held.temporary.get() else {
            return;
        };
        let directory = held.place.directory();
        let opened = rustix::fs::openat(directory, temporary, flags, Mode::empty());
        // Where it is refused, or the name is another file's by now, the page
        // cache serves.
        *direct = opened
            .ok()
            .filter(|direct| is_same(fd.as_fd(), direct.as_fd()));
        if direct.is_some() {
            self.descriptors.add();
        }
    }

    /// Gives it its final name; the directory that gave way to it, if so.
    pub(super) fn rename(&self) -> Result<Option<Replaced>> {
        let (Some(held), Sink::File { fd, .. }) = (&self.held, &self.sink) else {
            return Ok(None);
        };
        let temporary = match held.temporary.get() {
            Some(temporary) => temporary,
            None => match self.link(held, fd.as_fd())? {
                Some(temporary) => held.temporary.get_or_init(|| temporary),
                None => {
                    held.place.let_go();
                    held.present.store(false, Ordering::Release);
                    return Ok(None);
                }
            },
        };
        let replaced = held.place.take_name(temporary).map_err(|stays| {
            stays.error(format!(
                "cannot rename a temporary file to {}",
                self.display()
            ))
        })?;
        held.present.store(false, Ordering::Release);
        Ok(replaced)
    }

    /// Links a file without a name to its final one; to a temporary one, which is given,
    /// where something got that meanwhile.
    fn link(&self, held: &NamedTarget, file: BorrowedFd<'_>) -> Result<Option<String>> {
        let directory = held.place.directory();
        match nameless::link(file, directory, held.place.name()) {
            Ok(()) => return Ok(None),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed("link", errno)),
        }
        // What is nobody's may be cleaned up; file systems without locks are not.
        let _ = temporary::lock(file);
        let link = |name: &str| nameless::link(file, directory, name.as_bytes());
        let linked = temporary::named(link).map_err(|error| match error {
            temporary::NotMade::Errno(errno) => self.failed("link", errno),
            temporary::NotMade::Error(error) => error,
        });
        linked.map(Some)
    }

    /// The directory of its name, where it has one.
    pub(super) fn folder(&self) -> Option<&HeldFolder> {
        self.held.as_ref().map(|held| held.place.folder())
    }

    /// Lower than that of every target that was made after it.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What its whole content is, where that was asked for and it was settled.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest.as_ref().and_then(LandedDigest::found)
    }

    /// Finds its digest, where that was asked for: all of it landed in `file`.
    pub(super) fn find_digest(&self, file: BorrowedFd<'_>, size: u64) -> Result<()> {
        let Some(digest) = &self.digest else {
            return Ok(());
        };
        digest.find(file, size).map_err(|fault| {
            let doing = format!("cannot read {} back for its digest", self.display());
            Error::local(doing, fault).at(Side::Receiver)
        })
    }

    pub(super) fn options(&self) -> &TargetOptions {
        &self.options
    }

    /// What it is to get besides its bytes, where it is a file.
    pub(super) fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// What was received so far.
    pub(super) fn sum(&self) -> FileSum {
        *self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failed(&self, doing: &str, errno: Errno) -> Error {
        let display = self.display();
        Error::local(format!("cannot {doing} {display}"), why(errno)).at(Side::Receiver)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Refuses a file that is sure to find no room.
fn require_room(place: &Place, entry: &Entry) -> Result<()> {
    match entry.data_bytes() {
        ..ALLOCATE_BYTES_MIN => Ok(()),
        bytes => require_space(place.directory(), place.display(), bytes),
    }
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let identity = |fd| rustix::fs::fstat(fd).map(|stat| Identity::of(&stat));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

pub(super) fn unproved(display: &str) -> Error {
    let sentence = format!(
        "cannot write {display}: it is set-user-ID or set-group-ID, which is not taken from a peer that proved no token"
    );
    Error::new(ErrorKind::Unauthorised, sentence)
        .cure("give both ends a token, or take the bits away with chmod ug-s")
        .at(Side::Receiver)
}

fn no_disk(display: &str, why: &str) -> Error {
    Error::usage(format!("cannot verify {display}: {why}"))
        .cure("leave --verify out, or write to a disk")
        .at(Side::Receiver)
}

#[cfg(test)]
mod tests;
