//! What the target has and its source has not, deleted in the end.
//!
//! Leaves to others: when that is, and what the source has. Invariant: nothing is
//! deleted but in a directory whose source was read to its end without an error; a
//! whole target is emptied, and more than was allowed deleted, only if that was asked
//! for; nothing outside the target is touched, no link is followed, and no other file
//! system that is mounted in it is gone into.

use super::filter::PathFilter;
use super::remove::{count, list, remove, why_not_removed};
use crate::error::{Error, ErrorKind, Result, Side, why};
use crate::files::beneath::{DIRECTORY, open_beneath};
use crate::files::place::{ResolvedTarget, display_in};
use crate::files::temporary::is_temporary;
use crate::kernel::descriptors::patiently;
use crate::limits;
use crate::options::DeleteRules;
use crate::protocol::wire::{Deletions, Listing, Names, path_in};
use rustix::fs::{FileType, Mode, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Names of 255 bytes that fit into one path of the kernel's.
const PATH_NAMES_MAX: usize = 15;

/// The deleting of one transfer.
pub struct Deleting {
    rules: DeleteRules,
    filter: Option<PathFilter>,
    /// Names of directories of which a part was told, by path.
    parts: HashMap<Vec<u8>, HashSet<Vec<u8>>>,
    parts_bytes: usize,
    /// What is to go, where it is counted first.
    waiting: Vec<Superfluous>,
    waiting_count: u64,
}

/// A name that the source has not.
struct Superfluous {
    folder: Arc<TargetFolder>,
    name: Vec<u8>,
    path: Vec<u8>,
    display: String,
}

/// Where a directory of the source is in the target. None is held open between two
/// looks, as there may be more of them than descriptors.
struct TargetFolder {
    /// Its names from the target's directory, which no link replaces.
    names: Vec<Vec<u8>>,
    display: String,
}

impl TargetFolder {
    fn of(target: &ResolvedTarget, path: &[u8]) -> Self {
        let mut folder = Self {
            names: Vec::new(),
            display: target.display().to_owned(),
        };
        let parts = path.split(|byte| *byte == b'/');
        for name in parts.filter(|name| !name.is_empty()) {
            match target.name().filter(|_| folder.names.is_empty()) {
                // It has another name there, which the target's words have already.
                Some(own) => folder.names.push(own.to_vec()),
                None => {
                    folder.display = display_in(&folder.display, name);
                    folder.names.push(name.to_vec());
                }
            }
        }
        folder
    }

    fn open(&self, target: &ResolvedTarget) -> rustix::io::Result<OwnedFd> {
        let top = || rustix::fs::openat(target.folder(), ".", DIRECTORY, Mode::empty());
        let mut at = patiently(top)?;
        for names in self.names.chunks(PATH_NAMES_MAX) {
            let path = names.join(&b'/');
            at = patiently(|| open_beneath(at.as_fd(), &path, DIRECTORY))?;
        }
        Ok(at)
    }
}

impl Deleting {
    /// Nothing is deleted yet. `filter` says what is left alone.
    #[must_use]
    pub fn new(rules: DeleteRules, filter: Option<PathFilter>) -> Self {
        Self {
            rules,
            filter,
            parts: HashMap::new(),
            parts_bytes: 0,
            waiting: Vec::new(),
            waiting_count: 0,
        }
    }

    /// The same; `gone` of those that may go went before.
    #[must_use]
    pub fn besides(mut self, gone: u64) -> Self {
        self.waiting_count = gone;
        self
    }

    /// Deletes what these names show to be superfluous in `target`.
    ///
    /// # Errors
    /// [`ErrorKind::Partial`]: more would go than was allowed; nothing of it went.
    pub fn part(&mut self, target: &ResolvedTarget, names: &Names) -> Result<Deletions> {
        let mut done = Deletions::default();
        for listing in &names.listings {
            let path = path_in(&names.folders, listing.folder, b"");
            let Some(all) = self.all_names(&path, listing)? else {
                continue;
            };
            // A file's name at the target is no directory.
            if listing.folder == 0 && !target.is_directory() {
                continue;
            }
            let folder = Arc::new(TargetFolder::of(target, &path));
            let display = &folder.display;
            let found = folder.open(target).and_then(|open| {
                let is_kept =
                    |path: &[u8], is_directory| self.is_kept(path, listing.above, is_directory);
                let found = superfluous(&open, &folder, &path, &all, is_kept)?;
                Ok((open, found))
            });
            let (open, found) = match found {
                Ok(found) => found,
                // What is missing there has nothing that could be deleted.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => {
                    let doing = format!("cannot list {display} to delete what is superfluous");
                    fail(&mut done, Error::local(doing, why(errno)));
                    continue;
                }
            };
            let depth = path
                .split(|byte| *byte == b'/')
                .filter(|part| !part.is_empty());
            let is_top = depth.count() == listing.above as usize;
            if is_top && all.is_empty() && !found.is_empty() && !self.rules.everything {
                return Err(Error::new(
                    ErrorKind::Partial,
                    format!(
                        "cannot delete in {display}: its source is empty, and all of it would go"
                    ),
                )
                .cure("look whether the source is mounted, or add --delete-everything")
                .at(Side::Receiver));
            }
            match self.rules.count_max {
                Some(most) => self.gather(&open, found, most)?,
                None => {
                    for one in found {
                        self.delete(open.as_fd(), &one, &mut done);
                    }
                }
            }
        }
        if names.last {
            self.delete_waiting(target, &mut done);
        }
        Ok(done)
    }

    /// Deletes what was counted.
    fn delete_waiting(&mut self, target: &ResolvedTarget, done: &mut Deletions) {
        let waiting = std::mem::take(&mut self.waiting);
        for inside in waiting.chunk_by(|one, next| Arc::ptr_eq(&one.folder, &next.folder)) {
            let folder = &inside[0].folder;
            match folder.open(target) {
                Ok(open) => inside
                    .iter()
                    .for_each(|one| self.delete(open.as_fd(), one, done)),
                // Somebody else did what is wanted.
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    let doing = format!("cannot delete what is superfluous in {}", folder.display);
                    fail(done, Error::local(doing, why(errno)));
                }
            }
        }
    }

    /// All names of the directory, once the last of them was told; nothing before, and
    /// nothing where not all could be read.
    fn all_names(&mut self, path: &[u8], listing: &Listing) -> Result<Option<HashSet<Vec<u8>>>> {
        let bytes: usize = listing.names.iter().map(|name| name.len() + 48).sum();
        self.parts_bytes += bytes;
        if self.parts_bytes > limits::NAMES_KEPT_BYTES_MAX {
            let doing = "cannot delete what is superfluous";
            let why = "a directory of the source has too many names to be kept";
            return Err(Error::local(doing, why).at(Side::Receiver));
        }
        let known = self.parts.entry(path.to_vec()).or_default();
        known.extend(listing.names.iter().cloned());
        if !listing.complete {
            return Ok(None);
        }
        let all = self.parts.remove(path).unwrap_or_default();
        let bytes: usize = all.iter().map(|name| name.len() + 48).sum();
        self.parts_bytes = self.parts_bytes.saturating_sub(bytes);
        Ok(Some(all))
    }

    /// True of what patterns leave alone.
    fn is_kept(&self, path: &[u8], above: u32, is_directory: bool) -> bool {
        let mut from = 0;
        for _ in 0..above {
            let slash = path[from..].iter().position(|byte| *byte == b'/');
            from += slash.map_or(0, |slash| slash + 1);
        }
        let filter = self.filter.as_ref().filter(|_| !self.rules.left_out);
        filter.is_some_and(|filter| filter.excludes(&path[from..], is_directory))
    }

    /// Keeps them until all is counted.
    fn gather(&mut self, folder: &OwnedFd, found: Vec<Superfluous>, most: u64) -> Result<()> {
        for one in found {
            let inside = count(folder.as_fd(), &one.name, most, 0);
            self.waiting_count = self.waiting_count.saturating_add(inside);
            if self.waiting_count > most {
                self.waiting.clear();
                return Err(Error::new(
                    ErrorKind::Partial,
                    format!("nothing was deleted: more than {most} files and directories would go"),
                )
                .cure("look what --dry-run lists, or raise --max-delete")
                .at(Side::Receiver));
            }
            self.waiting.push(one);
        }
        Ok(())
    }

    fn delete(&self, folder: BorrowedFd<'_>, one: &Superfluous, done: &mut Deletions) {
        if self.rules.only_tell {
            let inside = count(folder, &one.name, u64::MAX, 0);
            done.count += inside;
            done.paths.push(one.path.clone());
            return;
        }
        // The directory keeps the time that it got from its source.
        let before = rustix::fs::fstat(folder);
        let mut removed = 0;
        match remove(folder, &one.name, &mut removed, 0) {
            Ok(()) => done.paths.push(one.path.clone()),
            Err(errno) => {
                let doing = format!("cannot delete {}", one.display);
                fail(done, Error::local(doing, why_not_removed(errno)));
            }
        }
        done.count += removed;
        if let Ok(stat) = before {
            let times = Timestamps {
                last_access: Timespec {
                    tv_sec: 0,
                    tv_nsec: UTIME_OMIT,
                },
                last_modification: Timespec {
                    tv_sec: stat.st_mtime as _,
                    tv_nsec: stat.st_mtime_nsec as _,
                },
            };
            let _ = rustix::fs::futimens(folder, &times);
        }
    }
}

fn fail(done: &mut Deletions, error: Error) {
    if done.failed.len() < limits::FILES_TOLD_MAX {
        done.failed.push(error.at(Side::Receiver));
    }
}

/// What is in a directory and not among `names`, except what `is_kept`.
fn superfluous(
    open: &OwnedFd,
    folder: &Arc<TargetFolder>,
    path: &[u8],
    names: &HashSet<Vec<u8>>,
    is_kept: impl Fn(&[u8], bool) -> bool,
) -> rustix::io::Result<Vec<Superfluous>> {
    let mut found = Vec::new();
    for (name, kind) in list(open)? {
        // Temporary files are those of a transfer, or `haul clean`'s.
        if names.contains(&name) || is_temporary(&name) {
            continue;
        }
        let mut own_path = path.to_vec();
        if !own_path.is_empty() {
            own_path.push(b'/');
        }
        own_path.extend_from_slice(&name);
        if is_kept(&own_path, kind == FileType::Directory) {
            continue;
        }
        found.push(Superfluous {
            folder: folder.clone(),
            display: display_in(&folder.display, &name),
            name,
            path: own_path,
        });
    }
    Ok(found)
}
