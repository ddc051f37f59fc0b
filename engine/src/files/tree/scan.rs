//! A tree as it is read: directory by directory, each in parts, in the order of its
//! inodes, which spares a disk with a head most of its seeks.
//!
//! Leaves to others: opening files, and how many entries a segment takes. Invariant:
//! a directory comes behind everything in it; no link is followed unless that was
//! asked for; of a directory one part of its names is kept, and of a path its last few
//! directories are held.

use super::filter::PathFilter;
use super::follow::{Following, LinkEnd};
use super::level::{PART_NAMES, ScanLevel, unreadable};
use super::offered::OfferedFolders;
use super::passed_over::PassedOver;
use super::wanted::{ListStep, WantedNames};
use crate::error::{Error, Result, Side};
use crate::files::Identity;
use crate::files::attributes::{self, Bearer};
use crate::files::beneath::{DIRECTORY, kind_name};
use crate::files::folder::HeldFolder;
use crate::files::later::Later;
use crate::files::missing::Missing;
use crate::files::place::display_in;
use crate::files::source::Source;
use crate::kernel::descriptors::patiently;
use crate::limits;
use crate::protocol::wire::{Attribute, Entry, EntryKind, FolderId, NamedIn, Ownership};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Directories on the way down that are held; the others are opened again from below.
const LEVELS_HELD_MAX: usize = 8;
/// Directories on the way down that a link led to, each of which keeps the one above
/// it held: as many as the kernel follows in one path.
const LINKS_DEEP_MAX: usize = 40;

/// What of a tree is read.
#[derive(Clone)]
pub struct ScanOptions {
    /// To whom entries belong.
    pub owners: bool,
    /// Extended attributes.
    pub attributes: bool,
    /// Directories of other file systems are copied empty.
    pub one_file_system: bool,
    /// What links lead to is read in their place.
    pub follow: Option<Following>,
    /// Of the directory that is named, what lists name.
    pub listed: bool,
    /// What is left out.
    pub filter: Option<Arc<PathFilter>>,
}

/// Who names what is found in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NamedBy {
    /// Its own listing: what is gone by now is none of it.
    Directory,
    /// A list, which means this alone.
    List,
    /// A list, which means it with all that is in it.
    ListWhole,
    /// A list, which means something in it.
    ListThrough,
}

/// What reading on came to.
pub enum Scanned {
    /// This is next.
    Entry(Box<(Entry, Source)>),
    /// A list that is not there yet says what is.
    Waits,
    /// The tree was read.
    Over,
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
    passed_over: PassedOver,
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
        let held = Arc::new(HeldFolder::found(fd));
        let level = ScanLevel {
            path,
            display,
            is_listed: options.listed,
            ..ScanLevel::new(Some(held), stat, name.to_vec())
        };
        Ok(Self {
            options,
            device: Identity::of(&stat).device(),
            levels: vec![level],
            links: HashMap::new(),
            deepest_link: 0,
            passed_over: PassedOver::default(),
        })
    }

    /// Directories that the next entry may have to be told with, at most.
    #[must_use]
    pub fn depth(&self) -> usize {
        // A link's first name may be as deep elsewhere.
        self.levels.len() + 1 + self.deepest_link
    }

    /// What was passed over.
    #[must_use]
    pub fn passed_over(&self) -> PassedOver {
        self.passed_over
    }

    /// The next entry; `wanted` says what is, where lists do.
    pub fn next(
        &mut self,
        folders: &mut OfferedFolders,
        mut wanted: Option<&mut WantedNames>,
    ) -> Scanned {
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Scanned::Over;
            };
            let found = if let Some(listed) = level.names.next() {
                self.found(listed.name, NamedBy::Directory, folders)
            } else if !level.is_listed {
                level.list(PART_NAMES);
                None
            } else {
                match wanted.as_deref_mut() {
                    Some(wanted) => match self.follow_list(wanted, folders) {
                        Ok(found) => found,
                        Err(waits) => return waits,
                    },
                    None => Some(self.leave(folders)),
                }
            };
            if let Some(found) = found {
                return Scanned::Entry(Box::new(found));
            }
        }
    }

    /// Goes where the list leads from the directory that is read.
    fn follow_list(
        &mut self,
        wanted: &mut WantedNames,
        folders: &mut OfferedFolders,
    ) -> Result<Option<(Entry, Source)>, Scanned> {
        let here = self.path_here().to_vec();
        let (name, by) = match wanted.step(&here) {
            ListStep::Later => return Err(Scanned::Waits),
            ListStep::Out => return Ok(Some(self.leave(folders))),
            ListStep::Alone(name) => (name, NamedBy::List),
            ListStep::Whole(name) => (name, NamedBy::ListWhole),
            ListStep::Through(name) => (name, NamedBy::ListThrough),
        };
        if by != NamedBy::ListThrough {
            wanted.take();
        }
        if let Some(level) = self.levels.last_mut() {
            level.is_bare = false;
        }
        let depth = self.levels.len();
        let found = self.found(name.clone(), by, folders);
        let is_there = self.levels.len() > depth
            || by == NamedBy::List && !matches!(found, None | Some((_, Source::Missing(_))));
        if !is_there {
            wanted.pass_over(&here, &name);
        }
        Ok(found)
    }

    /// The directory that is read, from the one that was named.
    fn path_here(&self) -> &[u8] {
        // Whose own name is the first of each path.
        let top = self.levels.first().map_or(0, |level| level.path.len());
        self.levels.last().map_or(&[], |level| &level.path[top..])
    }

    /// What has that name in the directory that is read; nothing where it is gone,
    /// passed over, or a directory that is gone into.
    fn found(
        &mut self,
        name: Vec<u8>,
        by: NamedBy,
        folders: &mut OfferedFolders,
    ) -> Option<(Entry, Source)> {
        let level = self.levels.last()?;
        let held = level.held.clone()?;
        let display = display_in(&level.display, &name);
        let looked = rustix::fs::statat(&held, &name[..], AtFlags::SYMLINK_NOFOLLOW);
        let stat = match looked {
            Ok(stat) => stat,
            // It went between the listing and the look.
            Err(Errno::NOENT) if by == NamedBy::Directory => return None,
            Err(errno) => {
                let error = unreadable(&display, errno);
                return Some(self.fails(name, EntryKind::File, error, folders));
            }
        };
        let mut at = LinkEnd {
            folder: held,
            name: Vec::new(),
            stat,
        };
        let mut is_linked = false;
        if let (Some(following), FileType::Symlink) = (&self.options.follow, kind_of(&stat)) {
            match following.follow(&at.folder, self.path_here(), &name, &display) {
                Ok(followed) => (at, is_linked) = (followed, true),
                Err(error) => return Some(self.fails(name, EntryKind::File, error, folders)),
            }
        }
        let kind = kind_of(&at.stat);
        if self.leaves_out(&name, kind == FileType::Directory) {
            return None;
        }
        match kind {
            FileType::Directory => self.enter(at, is_linked, name, display, by, folders),
            kind if matches!(by, NamedBy::ListWhole | NamedBy::ListThrough) => {
                let error = no_directory(&display, kind);
                Some(self.fails(name, EntryKind::File, error, folders))
            }
            FileType::Socket => {
                self.passed_over.sockets += 1;
                None
            }
            _ => Some(self.entry(at, name, display, folders)),
        }
    }

    /// True where a name in the directory that is read is left out.
    fn leaves_out(&self, name: &[u8], is_directory: bool) -> bool {
        let Some(filter) = &self.options.filter else {
            return false;
        };
        let path = [self.path_here(), name].concat();
        filter.excludes(&path, is_directory)
    }

    /// A file, link or special file.
    fn entry(
        &mut self,
        at: LinkEnd,
        name: Vec<u8>,
        display: String,
        folders: &mut OfferedFolders,
    ) -> (Entry, Source) {
        let stat = &at.stat;
        if let Some(link) = self.another_name(&name, stat, folders) {
            let entry = self.with_metadata(link, stat, Vec::new());
            return (entry, Source::Node(display));
        }
        let own_name = if at.name.is_empty() { &name } else { &at.name };
        let made = self.made_of(&at.folder, own_name, &display, stat);
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
        let own_name = if at.name.is_empty() {
            &entry.name
        } else {
            &at.name
        };
        match Later::new(at.folder, own_name, display, stat) {
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
        let kind = match kind_of(stat) {
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
        let is_file = kind_of(stat) == FileType::RegularFile;
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
        at: LinkEnd,
        is_linked: bool,
        name: Vec<u8>,
        display: String,
        by: NamedBy,
        folders: &mut OfferedFolders,
    ) -> Option<(Entry, Source)> {
        let stat = at.stat;
        if let Some(why) = self.refuses_depth(&stat, is_linked) {
            let error = Error::local(format!("cannot read the directory {display}"), why);
            return Some(self.fails(name, EntryKind::File, error, folders));
        }
        let is_elsewhere = Identity::of(&stat).device() != self.device;
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let own_name = if at.name.is_empty() { &name } else { &at.name };
        let opened =
            patiently(|| rustix::fs::openat(&at.folder, &own_name[..], flags, Mode::empty()));
        let (held, failed) = match opened {
            Ok(fd) => (Some(Arc::new(HeldFolder::found(fd))), None),
            Err(Errno::NOENT) if by == NamedBy::Directory => return None,
            Err(errno) => (None, Some(unreadable(&display, errno))),
        };
        let is_read = matches!(by, NamedBy::Directory | NamedBy::ListWhole);
        self.let_go_above();
        let mut path = self.levels.last()?.path.clone();
        path.extend_from_slice(&name);
        path.push(b'/');
        self.levels.push(ScanLevel {
            path,
            display,
            is_listed: !is_read || failed.is_some() || is_elsewhere && self.options.one_file_system,
            is_bare: by == NamedBy::List,
            is_linked,
            failed,
            ..ScanLevel::new(held, stat, name)
        });
        None
    }

    /// Why a directory is not gone into.
    fn refuses_depth(&self, stat: &Stat, is_linked: bool) -> Option<String> {
        if self.levels.len() >= limits::SEGMENT_FOLDERS_MAX {
            return Some(format!("it lies {} directories deep", self.levels.len()));
        }
        if !is_linked {
            return None;
        }
        let is_it = |level: &&ScanLevel| level.identity() == Identity::of(stat);
        if let Some(level) = self.levels.iter().find(is_it) {
            let back = &level.display;
            return Some(format!("its link leads back to {back}, which it lies in"));
        }
        let links = self.levels.iter().filter(|level| level.is_linked).count();
        (links >= LINKS_DEEP_MAX).then(|| format!("it lies {links} links deep"))
    }

    /// The directories far above are listed and let go of, unless what is below one
    /// does not lead back to it.
    fn let_go_above(&mut self) {
        let Some(above) = self.levels.len().checked_sub(LEVELS_HELD_MAX) else {
            return;
        };
        if self.levels[above + 1].is_linked {
            return;
        }
        self.levels[above].let_go();
    }

    /// The directory was read: it is an entry itself.
    fn leave(&mut self, folders: &mut OfferedFolders) -> (Entry, Source) {
        let mut level = self.levels.pop().expect("the one that was looked at");
        if let Some(above) = self.levels.last_mut() {
            above.hold_again(&level);
        }
        if level.is_bare {
            level.list(1);
            self.passed_over.bare_directories += u64::from(level.names.len() > 0);
        }
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

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What a list names something in is none that has anything in it.
fn no_directory(display: &str, kind: FileType) -> Error {
    let why = format!("it is {}, and no directory", kind_name(kind));
    let error = Error::local(format!("cannot read what lies in {display}"), why);
    match kind {
        FileType::Symlink => error.cure("add --follow to copy what links lead to"),
        _ => error,
    }
}

fn depth_of(path: &[u8]) -> usize {
    path.iter().filter(|byte| **byte == b'/').count()
}
