//! What has no bytes: directories, links and special files at the receiver.
//!
//! Leaves to others: when each is made, and the sync of its name. Invariant: a name
//! shows what was there or the whole new thing; a directory gives way only where its
//! place lets it, and another name is given only to the file that was copied.

use super::Identity;
use super::attributes::Bearer;
use super::beneath::DIRECTORY;
use super::content::digest_of_name;
use super::folder::HeldFolder;
use super::metadata::{Failed, Metadata};
use super::place::Place;
use super::replace::Replaced;
use super::temporary;
use crate::error::{Error, ErrorKind, Result, Side, why};
use crate::options::DigestKind;
use crate::protocol::wire::{Entry, EntryKind};
use crate::report::{Digest, Level};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// What is to be made.
#[derive(Debug)]
enum NodeKind {
    Directory,
    Symlink(Vec<u8>),
    /// The place of the file's first name, and the file's size.
    HardLink(Place, u64),
    Special(FileType, u64),
}

/// One of them, until it is settled.
#[derive(Debug)]
pub struct Node {
    place: Place,
    kind: NodeKind,
    metadata: Metadata,
}

/// What making one came to.
pub struct Made {
    /// The directory that is to be synced besides its parent.
    pub own: Option<OwnedFd>,
    /// The directory that gave way to it.
    pub replaced: Option<Replaced>,
}

impl Node {
    /// The node that `entry` is, at `place`; `first` is where the first name of a hard
    /// link is. Nothing where it is there as it is to be.
    ///
    /// # Errors
    /// What is there cannot be replaced by it.
    pub fn new(
        place: Place,
        entry: &Entry,
        first: Option<Place>,
        metadata: Metadata,
    ) -> Result<Option<Self>> {
        Self::of(place, entry, first, metadata).prepare()
    }

    fn of(place: Place, entry: &Entry, first: Option<Place>, metadata: Metadata) -> Self {
        let kind = match (&entry.kind, first) {
            (EntryKind::Directory, _) => NodeKind::Directory,
            (EntryKind::Symlink(text), _) => NodeKind::Symlink(text.clone()),
            (EntryKind::HardLink(_, size), Some(first)) => NodeKind::HardLink(first, *size),
            (EntryKind::CharacterDevice(major, minor), _) => {
                let number = rustix::fs::makedev(*major, *minor);
                NodeKind::Special(FileType::CharacterDevice, number)
            }
            (EntryKind::BlockDevice(major, minor), _) => {
                let number = rustix::fs::makedev(*major, *minor);
                NodeKind::Special(FileType::BlockDevice, number)
            }
            _ => NodeKind::Special(FileType::Fifo, 0),
        };
        Self {
            place,
            kind,
            metadata,
        }
    }

    /// Refuses what must not be replaced by it.
    fn refuse(&self, stat: &Stat) -> Result<()> {
        let there = FileType::from_raw_mode(stat.st_mode);
        let display = self.place.display();
        match (&self.kind, there == FileType::Directory) {
            (NodeKind::Directory, false) => {
                let judged = self.place.judge_file(there);
                judged.map_err(|stays| stays.error(format!("cannot make the directory {display}")))
            }
            (NodeKind::Directory, true) | (_, false) => Ok(()),
            (_, true) => {
                let judged = self.place.judge_directory();
                judged.map_err(|stays| stays.error(format!("cannot make {display}")))
            }
        }
    }

    /// What would become of it; nothing is made.
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn would(
        place: Place,
        entry: &Entry,
        first: Option<Place>,
        metadata: Metadata,
    ) -> Result<Level> {
        let node = Self::of(place, entry, first, metadata);
        let Some(stat) = node.place.occupant()? else {
            return Ok(Level::WouldMake);
        };
        node.refuse(&stat)?;
        let (directory, name) = (node.place.directory(), node.place.name());
        Ok(match &node.kind {
            NodeKind::Directory if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
                Level::WouldReplace
            }
            NodeKind::Directory => {
                let bearer = match name {
                    b"" => Bearer::Open(directory),
                    name => Bearer::Name(directory, name),
                };
                let is_kept = node.metadata.is_kept_by(bearer, &stat);
                match is_kept && node.metadata.has_time_of(&stat) {
                    true => Level::Unchanged,
                    false => Level::WouldCorrect,
                }
            }
            NodeKind::HardLink(first, _) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let other = rustix::fs::statat(first.directory(), first.name(), flags);
                let is_it = other.is_ok_and(|other| Identity::of(&other) == Identity::of(&stat));
                if is_it {
                    Level::Unchanged
                } else {
                    Level::WouldReplace
                }
            }
            _ if node.is_there(&stat) => Level::Unchanged,
            _ => Level::WouldReplace,
        })
    }

    /// Looks at what is there; makes a directory.
    fn prepare(self) -> Result<Option<Self>> {
        let found = self.place.occupant()?;
        match (&self.kind, found) {
            (NodeKind::Directory, None) => {
                self.place.make_directory()?;
            }
            (NodeKind::Directory, Some(stat))
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory =>
            {
                self.place.clone().claimed()?.give_way_to_directory()?;
            }
            (_, Some(stat)) => {
                self.refuse(&stat)?;
                if self.is_there(&stat) {
                    return Ok(None);
                }
            }
            (_, None) => {}
        }
        Ok(Some(self))
    }

    /// True where what has `stat` is this already.
    fn is_there(&self, stat: &Stat) -> bool {
        let (directory, name) = (self.place.directory(), self.place.name());
        let is_it = match &self.kind {
            NodeKind::Directory | NodeKind::HardLink(..) => return false,
            NodeKind::Symlink(text) => {
                FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
                    && rustix::fs::readlinkat(directory, name, Vec::new())
                        .is_ok_and(|found| found.as_bytes() == &text[..])
            }
            NodeKind::Special(kind, number) => {
                FileType::from_raw_mode(stat.st_mode) == *kind
                    && (*kind == FileType::Fifo || stat.st_rdev == *number)
            }
        };
        is_it
            && self.metadata.has_time_of(stat)
            && self
                .metadata
                .is_kept_by(Bearer::Name(directory, name), stat)
    }

    /// The digest of the file that it names, once it is made, where it is another name
    /// of one.
    ///
    /// # Errors
    /// As [`digest_of_name`].
    pub fn digest(&self, kind: DigestKind) -> Result<Option<Digest>> {
        let is_file = match &self.kind {
            NodeKind::HardLink(first, _) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let looked = rustix::fs::statat(first.directory(), first.name(), flags);
                let kind = |stat: Stat| FileType::from_raw_mode(stat.st_mode);
                looked.is_ok_and(|stat| kind(stat) == FileType::RegularFile)
            }
            _ => false,
        };
        let (directory, name) = (self.place.directory(), self.place.name());
        let digest = || digest_of_name(directory, name, kind, self.place.display());
        is_file.then(digest).transpose()
    }

    /// The directory that its name is in.
    #[must_use]
    pub fn folder(&self) -> &HeldFolder {
        self.place.folder()
    }

    /// What sentences call it.
    #[must_use]
    pub fn display(&self) -> &str {
        self.place.display()
    }

    /// Makes it what it is to be, under its name; nothing where it was so.
    ///
    /// # Errors
    /// It cannot be made; then what was there is there.
    pub fn make(&self) -> Result<Option<Made>> {
        match &self.kind {
            NodeKind::Directory => self.finish_directory(),
            NodeKind::HardLink(first, size) => self.link(first, *size),
            NodeKind::Symlink(text) => self.replace(false, |name| {
                rustix::fs::symlinkat(&text[..], self.place.directory(), name)
            }),
            NodeKind::Special(kind, number) => self.replace(true, |name| {
                let bits = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(self.place.directory(), name, *kind, bits, *number)
            }),
        }
    }

    /// Gives a directory its own: everything in it has ended.
    fn finish_directory(&self) -> Result<Option<Made>> {
        let opened = match self.place.name() {
            b"" => rustix::fs::openat(self.place.directory(), ".", DIRECTORY, Mode::empty()),
            name => {
                let flags = DIRECTORY | OFlags::NOFOLLOW;
                rustix::fs::openat(self.place.directory(), name, flags, Mode::empty())
            }
        };
        let fd = opened.map_err(|errno| self.cannot("open the directory", why(errno)))?;
        let look = rustix::fs::fstat(&fd);
        let stat = look.map_err(|errno| self.cannot("look at", why(errno)))?;
        let is_kept = self.metadata.is_kept_by(Bearer::Open(fd.as_fd()), &stat);
        if is_kept && self.metadata.has_time_of(&stat) {
            return Ok(None);
        }
        self.metadata
            .apply(fd.as_fd(), &stat, self.metadata.mode(), true)
            .map_err(|failed| self.failed(failed))?;
        Ok(Some(Made {
            own: Some(fd),
            replaced: None,
        }))
    }

    /// Gives the file that was copied another name.
    fn link(&self, first: &Place, size: u64) -> Result<Option<Made>> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let look = rustix::fs::statat(first.directory(), first.name(), flags);
        let copied = look.ok().filter(|stat| self.was_copied(stat, size));
        let Some(copied) = copied else {
            let first = first.display();
            let why = format!("its first name, {first}, is not there as it was copied");
            return Err(self.cannot("link", why));
        };
        let there = self.place.occupant()?;
        if there.is_some_and(|stat| (stat.st_dev, stat.st_ino) == (copied.st_dev, copied.st_ino)) {
            return Ok(None);
        }
        let link = |name: &str| {
            let (from, to) = (first.directory(), self.place.directory());
            rustix::fs::linkat(from, first.name(), to, name, AtFlags::empty())
        };
        let temporary = self.make_temporary(link)?;
        self.rename(&temporary)
    }

    /// True of the file that was copied, and not of one that was there before.
    fn was_copied(&self, stat: &Stat, wanted: u64) -> bool {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let has_size = kind != FileType::RegularFile || size == wanted;
        kind != FileType::Directory && has_size && self.metadata.has_time_of(stat)
    }

    /// Makes it by `make` under a temporary name, then gives it its own.
    fn replace(
        &self,
        has_bits: bool,
        make: impl Fn(&str) -> rustix::io::Result<()>,
    ) -> Result<Option<Made>> {
        let temporary = self.make_temporary(make)?;
        let directory = self.place.directory();
        let given = self
            .metadata
            .apply_to_name(directory, temporary.as_bytes(), has_bits);
        given.map_err(|failed| {
            let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
            self.failed(failed)
        })?;
        self.rename(&temporary)
    }

    fn make_temporary(&self, make: impl Fn(&str) -> rustix::io::Result<()>) -> Result<String> {
        let make = |name: &str| {
            make(name).inspect_err(|errno| {
                if *errno != Errno::EXIST {
                    // exFAT in user space makes an empty file of a FIFO, and then fails.
                    let _ = rustix::fs::unlinkat(self.place.directory(), name, AtFlags::empty());
                }
            })
        };
        temporary::named(make).map_err(|error| match error {
            temporary::NotMade::Errno(errno) => self.cannot("make", self.why_not_made(errno)),
            temporary::NotMade::Error(error) => error,
        })
    }

    /// What a file system without such things says is about calls, not about itself.
    fn why_not_made(&self, errno: Errno) -> String {
        let what = match &self.kind {
            NodeKind::Symlink(_) => "symbolic links",
            NodeKind::HardLink(..) => "further names of a file",
            NodeKind::Special(..) => "FIFOs and devices",
            NodeKind::Directory => "directories",
        };
        match errno {
            Errno::NOSYS | Errno::OPNOTSUPP => format!("its file system has no {what}"),
            Errno::PERM => format!("{}, or its file system has no {what}", why(errno)),
            errno => why(errno),
        }
    }

    fn rename(&self, temporary: &str) -> Result<Option<Made>> {
        let directory = self.place.directory();
        let named = self.place.take_name(temporary);
        let replaced = named.map_err(|stays| {
            let _ = rustix::fs::unlinkat(directory, temporary, AtFlags::empty());
            let display = self.place.display();
            stays.error(format!("cannot rename a temporary name to {display}"))
        })?;
        if replaced.is_none() {
            // Between two names of one file a rename does nothing.
            let _ = rustix::fs::unlinkat(directory, temporary, AtFlags::empty());
        }
        Ok(Some(Made {
            own: None,
            replaced,
        }))
    }

    fn failed(&self, (doing, errno): Failed) -> Error {
        self.cannot(doing, why(errno))
    }

    /// The refusal of it.
    pub fn cannot(&self, doing: &str, why: impl std::fmt::Display) -> Error {
        let display = self.place.display();
        Error::local(format!("cannot {doing} {display}"), why).at(Side::Receiver)
    }
}

/// Devices are made for those alone who proved who they are.
///
/// # Errors
/// [`ErrorKind::Unauthorised`].
pub fn refuse_unproved_device(entry: &Entry, is_proved: bool, display: &str) -> Result<()> {
    use EntryKind::{BlockDevice, CharacterDevice};
    match entry.kind {
        CharacterDevice(..) | BlockDevice(..) if !is_proved => Err(Error::new(
            ErrorKind::Unauthorised,
            format!(
                "cannot make {display}: it is a device, which is not taken from a peer that proved no token"
            ),
        )
        .at(Side::Receiver)),
        _ => Ok(()),
    }
}

/// The errno of what is missing.
#[must_use]
pub fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::STALE)
}
