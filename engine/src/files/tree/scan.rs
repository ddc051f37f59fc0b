//! A tree as it is read: directory by directory, each in parts, in the order of its
//! inodes, which spares a disk with a head most of its seeks.
//!
//! Leaves to others: opening files, and how many entries a segment takes. Invariant:
//! a directory comes behind everything in it; no link is followed; of a directory one
//! part of its names is kept, and of a path its last few directories are held.

use super::filter::PathFilter;
use super::offered::OfferedFolders;
use crate::error::{Error, Result, Side, why};
use crate::files::Identity;
use crate::files::attributes::{self, Bearer};
use crate::files::beneath::DIRECTORY;
use crate::files::folder::HeldFolder;
use crate::files::later::Later;
use crate::files::missing::Missing;
use crate::files::place::display_in;
use crate::files::source::Source;
use crate::kernel::descriptors::patiently;
use crate::limits;
use crate::protocol::wire::{Attribute, Entry, EntryKind, FolderId, NamedIn, Ownership};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Names that are taken from a directory at once, about: sorted by inode, they are
/// read with few seeks, and a directory of millions is not kept whole.
const PART_NAMES: usize = 8192;
/// What getdents64(2) fills at once.
const LISTING_BYTES: usize = 64 * 1024;
/// Directories on the way down that are held; the others are opened again from below.
const LEVELS_HELD_MAX: usize = 8;

/// What of a tree is read.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// To whom entries belong.
    pub owners: bool,
    /// Extended attributes.
    pub attributes: bool,
    /// Directories of other file systems are copied empty.
    pub one_file_system: bool,
    /// What is left out.
    pub filter: Option<Arc<PathFilter>>,
}

/// A name as a directory lists it.
struct Listed {
    inode: u64,
    /// Directories come behind the others of their part.
    is_directory: bool,
    name: Vec<u8>,
}

/// A directory on the way down.
struct ScanLevel {
    /// Its own name at the target: empty where its contents alone are copied.
    name: Vec<u8>,
    /// From where the transfer's files go, with a slash at its end.
    path: Vec<u8>,
    display: String,
    /// Nothing while a deep part of it is read.
    held: Option<Arc<HeldFolder>>,
    stat: Stat,
    names: std::vec::IntoIter<Listed>,
    /// Nothing is left to list.
    is_listed: bool,
    /// Why it could not be read to its end.
    failed: Option<Error>,
}

/// One directory that was named, and all below it.
pub struct TreeScan {
    options: ScanOptions,
    device: u64,
    levels: Vec<ScanLevel>,
    /// Files with several names, by the path of the first; forgotten with the last.
    links: HashMap<Identity, FirstName>,
    /// How deep the deepest of them lies.
    deepest_link: usize,
    sockets: u64,
}

struct FirstName {
    path: Vec<u8>,
    /// Names that are still to come, as far as they are in this tree.
    left: u64,
}

impl TreeScan {
    /// The directory `fd`, which is called `name` at the target; its contents alone
    /// where `name` is empty.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn new(fd: OwnedFd, name: &[u8], display: String, options: ScanOptions) -> Result<Self> {
        let looked = rustix::fs::fstat(&fd);
        let stat = looked.map_err(|errno| unreadable(&display, errno))?;
        let mut path = name.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        let level = ScanLevel {
            name: name.to_vec(),
            path,
            display,
            held: Some(Arc::new(HeldFolder::found(fd))),
            stat,
            names: Vec::new().into_iter(),
            is_listed: false,
            failed: None,
        };
        Ok(Self {
            options,
            device: Identity::of(&stat).device(),
            levels: vec![level],
            links: HashMap::new(),
            deepest_link: 0,
            sockets: 0,
        })
    }

    /// Directories that the next entry may have to be told with, at most.
    #[must_use]
    pub fn depth(&self) -> usize {
        // A link's first name may be as deep elsewhere.
        self.levels.len() + 1 + self.deepest_link
    }

    /// Sockets that were passed over.
    #[must_use]
    pub fn sockets(&self) -> u64 {
        self.sockets
    }

    /// The next entry; nothing when the tree was read.
    pub fn next(&mut self, folders: &mut OfferedFolders) -> Option<(Entry, Source)> {
        loop {
            let level = self.levels.last_mut()?;
            if let Some(listed) = level.names.next() {
                if let Some(found) = self.found(listed, folders) {
                    return Some(found);
                }
            } else if level.is_listed {
                return Some(self.leave(folders));
            } else {
                list(level, PART_NAMES);
            }
        }
    }

    /// What a listed name is; nothing where it is gone, passed over, or a directory
    /// that is gone into.
    fn found(&mut self, listed: Listed, folders: &mut OfferedFolders) -> Option<(Entry, Source)> {
        let level = self.levels.last()?;
        let held = level.held.clone()?;
        let display = display_in(&level.display, &listed.name);
        let looked = rustix::fs::statat(&held, &listed.name[..], AtFlags::SYMLINK_NOFOLLOW);
        let stat = match looked {
            Ok(stat) => stat,
            // It went between the listing and the look.
            Err(Errno::NOENT) => return None,
            Err(errno) => {
                let error = unreadable(&display, errno);
                return Some(self.fails(listed.name, EntryKind::File, error, folders));
            }
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if self.leaves_out(&listed.name, is_directory) {
            return None;
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.enter(&held, listed.name, display, stat, folders),
            FileType::Socket => {
                self.sockets += 1;
                None
            }
            _ => Some(self.entry(&held, listed.name, display, &stat, folders)),
        }
    }

    /// True where a name in the directory that is read is left out.
    fn leaves_out(&self, name: &[u8], is_directory: bool) -> bool {
        let Some(filter) = &self.options.filter else {
            return false;
        };
        // From the directory that was named, whose own name is the first of its path.
        let top = self.levels.first().map_or(0, |level| level.path.len());
        let mut path = self
            .levels
            .last()
            .map_or(Vec::new(), |level| level.path[top..].to_vec());
        path.extend_from_slice(name);
        filter.excludes(&path, is_directory)
    }

    /// A file, link or special file.
    fn entry(
        &mut self,
        held: &Arc<HeldFolder>,
        name: Vec<u8>,
        display: String,
        stat: &Stat,
        folders: &mut OfferedFolders,
    ) -> (Entry, Source) {
        if let Some(link) = self.another_name(&name, stat, folders) {
            let entry = self.with_metadata(link, stat, Vec::new());
            return (entry, Source::Node(display));
        }
        let made = self.made_of(held, &name, &display, stat);
        let (kind, attributes) = match made {
            Ok(made) => made,
            Err(error) => return self.fails(name, EntryKind::File, error, folders),
        };
        let mut entry = Entry {
            folder: self.here(folders),
            name,
            kind,
            ..Entry::default()
        };
        if entry.kind != EntryKind::File {
            return (
                self.with_metadata(entry, stat, attributes),
                Source::Node(display),
            );
        }
        match Later::new(held.clone(), &entry.name, display, stat) {
            Ok(later) => {
                entry.size = later.size();
                entry.data = later.data().clone();
                let entry = self.with_metadata(entry, stat, attributes);
                (entry, Source::Later(later))
            }
            Err(error) => self.fails(entry.name, EntryKind::File, error, folders),
        }
    }

    /// What it is, and its attributes.
    fn made_of(
        &self,
        held: &Arc<HeldFolder>,
        name: &[u8],
        display: &str,
        stat: &Stat,
    ) -> Result<(EntryKind, Vec<Attribute>)> {
        let bearer = Bearer::Name(held.as_fd(), name);
        let attributes = match self.options.attributes {
            true => attributes::read(bearer, display).map_err(|error| error.at(Side::Sender))?,
            false => Vec::new(),
        };
        #[allow(clippy::unnecessary_cast)] // The field differs in type between architectures.
        let device = stat.st_rdev as u64;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(held, name, Vec::new());
                EntryKind::Symlink(
                    text.map_err(|errno| unreadable(display, errno))?
                        .into_bytes(),
                )
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => EntryKind::CharacterDevice(major, minor),
            FileType::BlockDevice => EntryKind::BlockDevice(major, minor),
            _ => return Err(unreadable(display, Errno::INVAL)),
        };
        Ok((kind, attributes))
    }

    /// Another name of a file that was met before.
    fn another_name(
        &mut self,
        name: &[u8],
        stat: &Stat,
        folders: &mut OfferedFolders,
    ) -> Option<Entry> {
        if stat.st_nlink < 2 {
            return None;
        }
        let identity = Identity::of(stat);
        let Some(first) = self.links.get_mut(&identity) else {
            let mut path = self.levels.last()?.path.clone();
            path.extend_from_slice(name);
            #[allow(clippy::unnecessary_cast)] // The field differs in type between architectures.
            let left = stat.st_nlink as u64 - 1;
            self.deepest_link = self.deepest_link.max(depth_of(&path));
            self.links.insert(identity, FirstName { path, left });
            return None;
        };
        first.left = first.left.saturating_sub(1);
        let (folder, first_name) = folders.place_of(&first.path);
        if first.left == 0 {
            self.links.remove(&identity);
        }
        let first = NamedIn {
            folder,
            name: first_name,
        };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        // Regular files have no negative size.
        let size = if is_file { stat.st_size as u64 } else { 0 };
        Some(Entry {
            folder: self.here(folders),
            name: name.to_vec(),
            kind: EntryKind::HardLink(first, size),
            ..Entry::default()
        })
    }

    fn with_metadata(&self, entry: Entry, stat: &Stat, attributes: Vec<Attribute>) -> Entry {
        let owner = Ownership {
            user: stat.st_uid,
            group: stat.st_gid,
        };
        #[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
        Entry {
            mode: stat.st_mode & 0o7777,
            mtime_seconds: stat.st_mtime as i64,
            // Nanoseconds are below a thousand million.
            mtime_nanos: stat.st_mtime_nsec as u32,
            owner: self.options.owners.then_some(owner),
            attributes: self.options.attributes.then_some(attributes),
            ..entry
        }
    }

    /// Goes into a directory; an entry where that is not done.
    fn enter(
        &mut self,
        held: &Arc<HeldFolder>,
        name: Vec<u8>,
        display: String,
        stat: Stat,
        folders: &mut OfferedFolders,
    ) -> Option<(Entry, Source)> {
        if self.levels.len() >= limits::SEGMENT_FOLDERS_MAX {
            let error = Error::local(
                format!("cannot read the directory {display}"),
                format!("it lies {} directories deep", self.levels.len()),
            );
            return Some(self.fails(name, EntryKind::Directory, error, folders));
        }
        let is_elsewhere = Identity::of(&stat).device() != self.device;
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let opened = patiently(|| rustix::fs::openat(held, &name[..], flags, Mode::empty()));
        let (held, failed) = match opened {
            Ok(fd) => (Some(Arc::new(HeldFolder::found(fd))), None),
            Err(errno) if errno == Errno::NOENT => return None,
            Err(errno) => (None, Some(unreadable(&display, errno))),
        };
        self.let_go_above();
        let mut path = self.levels.last()?.path.clone();
        path.extend_from_slice(&name);
        path.push(b'/');
        self.levels.push(ScanLevel {
            name,
            path,
            display,
            is_listed: failed.is_some() || is_elsewhere && self.options.one_file_system,
            held,
            stat,
            names: Vec::new().into_iter(),
            failed,
        });
        None
    }

    /// The directories far above are listed and let go of.
    fn let_go_above(&mut self) {
        let Some(above) = self.levels.len().checked_sub(LEVELS_HELD_MAX) else {
            return;
        };
        let level = &mut self.levels[above];
        if level.held.is_some() {
            let rest: Vec<Listed> = level.names.by_ref().collect();
            let mut all = rest;
            while !level.is_listed {
                list(level, usize::MAX);
                all.extend(level.names.by_ref());
            }
            level.names = all.into_iter();
            level.held = None;
        }
    }

    /// The directory was read: it is an entry itself.
    fn leave(&mut self, folders: &mut OfferedFolders) -> (Entry, Source) {
        let level = self.levels.pop().expect("the one that was looked at");
        self.hold_again(&level);
        let folder = match self.levels.len() {
            0 => 0,
            _ => self.here(folders),
        };
        let entry = Entry {
            folder,
            name: level.name.clone(),
            kind: EntryKind::Directory,
            ..Entry::default()
        };
        let held = level.held.as_ref().filter(|_| self.options.attributes);
        let attributes = held.map(|held| attributes::read(attributes::of(held), &level.display));
        let (attributes, failed) = match attributes.transpose() {
            Ok(attributes) => (attributes.unwrap_or_default(), level.failed),
            Err(error) => (Vec::new(), level.failed.or(Some(error))),
        };
        let entry = self.with_metadata(entry, &level.stat, attributes);
        let source = match failed {
            Some(error) => Source::Missing(Missing::of_entry(
                entry.clone(),
                level.display,
                error.at(Side::Sender),
            )),
            None => Source::Node(level.display),
        };
        (entry, source)
    }

    /// Holds the directory above one that was left, from there.
    fn hold_again(&mut self, below: &ScanLevel) {
        let Some(level) = self.levels.last_mut().filter(|level| level.held.is_none()) else {
            return;
        };
        let from = below.held.as_ref();
        let opened = from.map(|held| {
            let fd = patiently(|| rustix::fs::openat(held, "..", DIRECTORY, Mode::empty()))?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok::<_, Errno>((fd, Identity::of(&stat)))
        });
        match opened {
            Some(Ok((fd, identity))) if identity == Identity::of(&level.stat) => {
                level.held = Some(Arc::new(HeldFolder::found(fd)));
            }
            _ => {
                let why = "a directory below it was moved away while it was read";
                let doing = format!("cannot read the directory {}", level.display);
                level.failed.get_or_insert(Error::local(doing, why));
                level.names = Vec::new().into_iter();
            }
        }
    }

    /// An entry that fails when it is looked at.
    fn fails(
        &mut self,
        name: Vec<u8>,
        kind: EntryKind,
        error: Error,
        folders: &mut OfferedFolders,
    ) -> (Entry, Source) {
        let display = self
            .levels
            .last()
            .map(|level| display_in(&level.display, &name));
        let entry = Entry {
            folder: self.here(folders),
            name,
            kind,
            mode: 0o700,
            ..Entry::default()
        };
        let missing = Missing::of_entry(
            entry.clone(),
            display.unwrap_or_default(),
            error.at(Side::Sender),
        );
        (entry, Source::Missing(missing))
    }

    /// The number of the directory that is read.
    fn here(&self, folders: &mut OfferedFolders) -> FolderId {
        self.levels
            .last()
            .map_or(0, |level| folders.number_of(&level.path))
    }
}

fn depth_of(path: &[u8]) -> usize {
    path.iter().filter(|byte| **byte == b'/').count()
}

fn unreadable(display: &str, errno: Errno) -> Error {
    Error::local(format!("cannot read {display}"), why(errno)).at(Side::Sender)
}

/// Takes the next part of a directory's names, at least `most` or all.
fn list(level: &mut ScanLevel, most: usize) {
    let Some(held) = &level.held else {
        level.is_listed = true;
        return;
    };
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut names = Vec::new();
    let mut listing = RawDir::new(held.as_fd(), buffer.spare_capacity_mut());
    loop {
        match listing.next() {
            None => {
                level.is_listed = true;
                break;
            }
            Some(Err(errno)) => {
                level.failed = Some(unreadable(&level.display, errno));
                level.is_listed = true;
                break;
            }
            Some(Ok(entry)) => {
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.push(Listed {
                        inode: entry.ino(),
                        is_directory: entry.file_type() == FileType::Directory,
                        name: name.to_vec(),
                    });
                }
            }
        }
        // What the buffer holds is lost with it.
        if names.len() >= most && listing.is_buffer_empty() {
            break;
        }
    }
    names.sort_by(|one, other| {
        (one.is_directory, one.inode, &one.name).cmp(&(
            other.is_directory,
            other.inode,
            &other.name,
        ))
    });
    level.names = names.into_iter();
}
