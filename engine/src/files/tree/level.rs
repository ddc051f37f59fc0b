//! A directory of a tree on the way down, while its names are read.
//!
//! Leaves to others: what its names are. Invariant: of its names one part is kept,
//! unless it is let go of; it is held again only if it is the same directory.

use crate::error::{Error, Side, why};
use crate::files::Identity;
use crate::files::beneath::DIRECTORY;
use crate::files::folder::HeldFolder;
use crate::kernel::descriptors::patiently;
use rustix::fs::{FileType, Mode, RawDir, Stat};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Names that are taken from a directory at once, about: sorted by inode, they are
/// read with few seeks, and a directory of millions is not kept whole.
pub(super) const PART_NAMES: usize = 8192;
/// What getdents64(2) fills at once.
const LISTING_BYTES: usize = 64 * 1024;

/// A name as a directory lists it.
pub(super) struct Listed {
    inode: u64,
    /// Directories come behind the others of their part.
    is_directory: bool,
    pub(super) name: Vec<u8>,
}

/// A directory on the way down.
pub(super) struct ScanLevel {
    /// Its own name at the target: empty where its contents alone are copied.
    pub(super) name: Vec<u8>,
    /// From where the transfer's files go, with a slash at its end.
    pub(super) path: Vec<u8>,
    pub(super) display: String,
    /// Nothing while a deep part of it is read.
    pub(super) held: Option<Arc<HeldFolder>>,
    pub(super) stat: Stat,
    pub(super) names: std::vec::IntoIter<Listed>,
    /// Nothing is left to list.
    pub(super) is_listed: bool,
    /// A list means it alone, and nothing in it so far.
    pub(super) is_bare: bool,
    /// A link led here, so that what is above it is not the directory before it.
    pub(super) is_linked: bool,
    /// Why it could not be read to its end.
    pub(super) failed: Option<Error>,
}

impl ScanLevel {
    /// The directory `held` that nothing was read of.
    pub(super) fn new(held: Option<Arc<HeldFolder>>, stat: Stat, name: Vec<u8>) -> Self {
        Self {
            name,
            path: Vec::new(),
            display: String::new(),
            held,
            stat,
            names: Vec::new().into_iter(),
            is_listed: false,
            is_bare: false,
            is_linked: false,
            failed: None,
        }
    }

    /// Which directory it is.
    pub(super) fn identity(&self) -> Identity {
        Identity::of(&self.stat)
    }

    /// Takes the next part of a directory's names, at least `most` or all.
    pub(super) fn list(&mut self, most: usize) {
        let Some(held) = &self.held else {
            self.is_listed = true;
            return;
        };
        let mut buffer = Vec::with_capacity(LISTING_BYTES);
        let mut names = Vec::new();
        let mut listing = RawDir::new(held.as_fd(), buffer.spare_capacity_mut());
        loop {
            match listing.next() {
                None => {
                    self.is_listed = true;
                    break;
                }
                Some(Err(errno)) => {
                    self.failed = Some(unreadable(&self.display, errno));
                    self.is_listed = true;
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
        self.names = names.into_iter();
    }

    /// Lists what is left of it and lets go of it.
    pub(super) fn let_go(&mut self) {
        if self.held.is_none() {
            return;
        }
        let mut all: Vec<Listed> = self.names.by_ref().collect();
        while !self.is_listed {
            self.list(usize::MAX);
            all.extend(self.names.by_ref());
        }
        self.names = all.into_iter();
        self.held = None;
    }

    /// Holds it again, from a directory in it that was left.
    pub(super) fn hold_again(&mut self, below: &Self) {
        if self.held.is_some() {
            return;
        }
        let from = below.held.as_ref();
        let opened = from.map(|held| {
            let fd = patiently(|| rustix::fs::openat(held, "..", DIRECTORY, Mode::empty()))?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok::<_, Errno>((fd, Identity::of(&stat)))
        });
        match opened {
            Some(Ok((fd, identity))) if identity == self.identity() => {
                self.held = Some(Arc::new(HeldFolder::found(fd)));
            }
            _ => {
                let why = "a directory below it was moved away while it was read";
                let doing = format!("cannot read the directory {}", self.display);
                self.failed.get_or_insert(Error::local(doing, why));
                self.names = Vec::new().into_iter();
            }
        }
    }
}

/// Says that it cannot be read.
pub(super) fn unreadable(display: &str, errno: Errno) -> Error {
    Error::local(format!("cannot read {display}"), why(errno)).at(Side::Sender)
}
