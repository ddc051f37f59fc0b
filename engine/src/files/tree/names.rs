//! The names in the directories of a tree, without a look at what they are.
//!
//! Leaves to others: what is deleted by them. Invariant: a directory that could not be
//! read to its end is not called complete, and one that cannot be opened is not told.

use super::filter::PathFilter;
use super::follow::Following;
use super::offered::OfferedFolders;
use crate::files::Identity;
use crate::files::beneath::DIRECTORY;
use crate::files::folder::HeldFolder;
use crate::limits;
use crate::protocol::wire::{Folder, Listing};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What getdents64(2) fills at once.
const LISTING_BYTES: usize = 64 * 1024;

/// One part of the names.
#[derive(Default)]
pub struct NamesPart {
    /// The directories that the listings are of.
    pub folders: Vec<Folder>,
    /// Their names.
    pub listings: Vec<Listing>,
}

/// What is gone into, and how.
#[derive(Clone)]
pub struct NamesOptions {
    /// Other file systems are not gone into.
    pub one_file_system: bool,
    /// Directories that links lead to are gone into.
    pub follow: Option<Following>,
    /// What is left out: it is told, and not gone into.
    pub filter: Option<Arc<PathFilter>>,
    /// What is left out is not even told.
    pub hides_left_out: bool,
}

/// A directory whose names are told.
struct NamedFolder {
    held: Arc<HeldFolder>,
    identity: Identity,
    /// From where the files go, with a slash at its end.
    path: Vec<u8>,
    /// Directories in it that are still to be gone into.
    inside: Vec<Vec<u8>>,
    is_listed: bool,
}

/// One tree's names.
pub struct NameScan {
    options: NamesOptions,
    device: u64,
    /// Bytes of the path that lead to the directory that was named.
    above_bytes: usize,
    above: u32,
    open: Vec<NamedFolder>,
}

impl NameScan {
    /// The names in `fd` and below, which is called `name` at the target; its contents
    /// alone where that is empty.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn new(fd: OwnedFd, name: &[u8], options: NamesOptions) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let mut path = name.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        Ok(Self {
            options,
            device: Identity::of(&stat).device(),
            above_bytes: path.len(),
            above: u32::from(!path.is_empty()),
            open: vec![NamedFolder {
                held: Arc::new(HeldFolder::found(fd)),
                identity: Identity::of(&stat),
                path,
                inside: Vec::new(),
                is_listed: false,
            }],
        })
    }

    /// The next part, as much as one message takes; nothing when all was told.
    pub fn next_part(&mut self) -> Option<NamesPart> {
        let (above_bytes, following) = (self.above_bytes, self.options.follow.as_ref());
        let following = following.cloned();
        let following = following.as_ref();
        let mut folders = OfferedFolders::default();
        let mut part = NamesPart::default();
        let (mut names, mut bytes) = (0, 0);
        while names < limits::NAMES_MAX / 2
            && bytes < limits::NAMES_BYTES_MAX / 4
            && folders.count() + self.open.len() < limits::SEGMENT_FOLDERS_MAX
        {
            let Some(open) = self.open.last_mut() else {
                break;
            };
            if open.is_listed {
                match open.inside.pop() {
                    Some(name) => self.enter(&name),
                    None => drop(self.open.pop()),
                }
                continue;
            }
            let (found, is_at_end) = read(open);
            let known = folders.count();
            let mut listing = Listing {
                folder: folders.number_of(&open.path),
                above: self.above,
                names: Vec::with_capacity(found.len()),
                complete: is_at_end == Ok(true),
            };
            for folder in folders.since(known) {
                bytes += folder.name.len();
            }
            open.is_listed = is_at_end != Ok(false);
            for (name, kind) in found {
                let is_directory = match kind {
                    FileType::Unknown | FileType::Symlink => {
                        directory(open, &name, above_bytes, following).is_some()
                    }
                    kind => kind == FileType::Directory,
                };
                let is_left_out = self.options.filter.as_ref().is_some_and(|filter| {
                    let mut path = open.path[self.above_bytes..].to_vec();
                    path.extend_from_slice(&name);
                    filter.excludes(&path, is_directory)
                });
                if is_directory && !is_left_out {
                    open.inside.push(name.clone());
                }
                if !is_left_out || !self.options.hides_left_out {
                    bytes += name.len();
                    listing.names.push(name);
                }
            }
            names += listing.names.len() + 1;
            part.listings.push(listing);
        }
        part.folders = folders.into_folders();
        (!part.listings.is_empty()).then_some(part)
    }

    /// Goes into a directory; one that cannot be opened is passed over, and nothing is
    /// deleted in it.
    fn enter(&mut self, name: &[u8]) {
        let Some(open) = self.open.last() else {
            return;
        };
        let following = self.options.follow.as_ref();
        let Some((folder, own_name)) = directory(open, name, self.above_bytes, following) else {
            return;
        };
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let Ok(fd) = rustix::fs::openat(&folder, &own_name[..], flags, Mode::empty()) else {
            return;
        };
        let Ok(stat) = rustix::fs::fstat(&fd) else {
            return;
        };
        let identity = Identity::of(&stat);
        if self.options.one_file_system && identity.device() != self.device
            || self.open.iter().any(|above| above.identity == identity)
        {
            return;
        }
        let mut path = open.path.clone();
        path.extend_from_slice(name);
        path.push(b'/');
        self.open.push(NamedFolder {
            held: Arc::new(HeldFolder::found(fd)),
            identity,
            path,
            inside: Vec::new(),
            is_listed: false,
        });
    }
}

/// A name and what the listing says that it is.
type Found = (Vec<u8>, FileType);

/// Some names of a directory, and whether they were the last.
fn read(open: &NamedFolder) -> (Vec<Found>, rustix::io::Result<bool>) {
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut listing = RawDir::new(open.held.as_fd(), buffer.spare_capacity_mut());
    let mut names = Vec::new();
    loop {
        match listing.next() {
            None => return (names, Ok(true)),
            Some(Err(errno)) => return (names, Err(errno)),
            Some(Ok(entry)) => {
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    names.push((name.to_vec(), entry.file_type()));
                }
            }
        }
        if listing.is_buffer_empty() && names.len() >= limits::NAMES_MAX / 8 {
            return (names, Ok(false));
        }
    }
}

/// Where the directory of that name is, by the link of that name where they are
/// followed; nothing where it is none.
fn directory(
    open: &NamedFolder,
    name: &[u8],
    above_bytes: usize,
    following: Option<&Following>,
) -> Option<(Arc<HeldFolder>, Vec<u8>)> {
    let looked = rustix::fs::statat(&open.held, name, AtFlags::SYMLINK_NOFOLLOW);
    match (FileType::from_raw_mode(looked.ok()?.st_mode), following) {
        (FileType::Directory, _) => Some((open.held.clone(), name.to_vec())),
        (FileType::Symlink, Some(following)) => {
            let path = &open.path[above_bytes..];
            let followed = following.follow(&open.held, path, name, "");
            let followed = followed.ok()?;
            let kind = FileType::from_raw_mode(followed.stat.st_mode);
            (kind == FileType::Directory).then_some((followed.folder, followed.name))
        }
        _ => None,
    }
}
