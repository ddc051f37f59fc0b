//! Files that share their blocks with their sources: what a sender in this process
//! offers for that, and the cloning of it into a fresh target.
//!
//! Leaves to others: looking at the source again, and settling the target, which are
//! as for any file. Invariant: only what this process's own sender opened or looked at
//! is cloned, by that descriptor, into a file that nobody else writes to; nothing that
//! came over a wire names a source.

use super::FileSystem;
use super::folder::HeldFolder;
use super::place::Place;
use super::source::Source;
use crate::error::{Error, Result, Side, why};
use crate::kernel::descriptors;
use crate::options::Reflink;
use crate::protocol::plan::Plan;
use crate::protocol::wire::{Entry, EntryKind};
use crate::protocol::{FileId, SegmentId, TransferId};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a pool and a server of one process are both given, so that files pushed from
/// one to the other share their blocks where the file system can: see
/// [`Pool::share_blocks`](crate::Pool::share_blocks). Clones are the same.
#[derive(Clone, Default)]
pub struct Reflinks(Arc<ReflinkState>);

impl std::fmt::Debug for Reflinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reflinks(..)")
    }
}

#[derive(Default)]
struct ReflinkState {
    offered: Mutex<BTreeMap<(TransferId, SegmentId), Arc<OfferedSources>>>,
    /// Whether files of one device were cloned to another, by the first that was tried.
    pairs: Mutex<BTreeMap<(u64, u64), bool>>,
}

/// The sources of one segment.
struct OfferedSources {
    sources: Vec<Arc<Source>>,
    /// A file that cannot be cloned fails.
    is_must: bool,
    /// What was opened here, which the sender looks at again.
    opened: Mutex<BTreeMap<FileId, Arc<Source>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a sending transfer offers to the receiver beside it; all of it is taken back
/// with this.
pub struct Lending {
    reflinks: Reflinks,
    transfer: TransferId,
    is_must: bool,
}

impl Lending {
    /// Offers nothing yet; `None` where no block is to be shared, or nobody is beside.
    #[must_use]
    pub fn new(reflinks: Option<Reflinks>, transfer: TransferId, how: Reflink) -> Option<Self> {
        (how != Reflink::Never).then_some(Self {
            reflinks: reflinks?,
            transfer,
            is_must: how == Reflink::Always,
        })
    }

    /// Offers a segment's sources: to be called before the receiver hears of it.
    pub fn offer(&self, segment: SegmentId, sources: &[Arc<Source>]) {
        let offered = Arc::new(OfferedSources {
            sources: sources.to_vec(),
            is_must: self.is_must,
            opened: Mutex::default(),
        });
        let mut all = locked(&self.reflinks.0.offered);
        all.insert((self.transfer, segment), offered);
    }

    /// The receiver answered, and the segment is not offered any more; what was opened
    /// to be cloned takes its place in `sources`, as it is that which is looked at again.
    pub fn take_back(&self, segment: SegmentId, sources: &mut [Arc<Source>]) {
        let offered = locked(&self.reflinks.0.offered).remove(&(self.transfer, segment));
        let Some(offered) = offered else { return };
        for (file, opened) in std::mem::take(&mut *locked(&offered.opened)) {
            if let Some(source) = sources.get_mut(file as usize) {
                *source = opened;
            }
        }
    }

    /// Holds what the receiver answered against what must be.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Usage`] where blocks must be shared, and the receiver wants
    /// bytes: it was not given the same [`Reflinks`].
    pub fn check(&self, plan: &Plan) -> Result<()> {
        if !self.is_must || plan.wanted_bytes() == 0 {
            return Ok(());
        }
        let error = Error::usage("only a copy within this machine can share blocks");
        Err(error.at(Side::Sender))
    }
}

impl Drop for Lending {
    fn drop(&mut self) {
        let mut all = locked(&self.reflinks.0.offered);
        all.retain(|(transfer, _), _| *transfer != self.transfer);
    }
}

/// What a receiver may clone of one segment.
pub struct Cloning {
    reflinks: Reflinks,
    offered: Arc<OfferedSources>,
}

/// One file that a target is to be cloned from.
#[derive(Clone, Copy)]
pub struct CloneSource<'a> {
    cloning: &'a Cloning,
    file: FileId,
}

impl Reflinks {
    /// What the sender beside offers of this segment.
    #[must_use]
    pub fn of(&self, transfer: TransferId, segment: SegmentId) -> Option<Cloning> {
        let offered = locked(&self.0.offered).get(&(transfer, segment)).cloned()?;
        Some(Cloning {
            reflinks: self.clone(),
            offered,
        })
    }
}

impl Cloning {
    /// The source of `entry`, `file` of the segment, where it may be cloned into
    /// `folder`: it has data, the file system there is none that cannot share blocks,
    /// and no file before it showed that this one does not.
    #[must_use]
    pub fn source(
        &self,
        file: FileId,
        entry: &Entry,
        folder: &HeldFolder,
    ) -> Option<CloneSource<'_>> {
        if entry.kind != EntryKind::File || entry.data_bytes() == 0 {
            return None;
        }
        let source = CloneSource {
            cloning: self,
            file,
        };
        if self.offered.is_must {
            return Some(source);
        }
        let pair = (source.device()?, folder.device());
        let is_possible = match folder.file_system() {
            FileSystem::Ext4 | FileSystem::Memory | FileSystem::Kernel => false,
            FileSystem::Xfs => pair.0 == pair.1,
            // Subvolumes of btrfs have numbers of their own.
            FileSystem::Other => true,
        };
        let pairs = locked(&self.reflinks.0.pairs);
        (is_possible && pairs.get(&pair) != Some(&false)).then_some(source)
    }
}

impl<'a> CloneSource<'a> {
    /// Gives `target`, the fresh temporary file of `place`, all that the source has, by
    /// sharing its blocks; false where it is to be copied instead, and is empty still.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Local`] where it must share them and cannot, or where the
    /// disk is full or broken.
    pub(super) fn clone_into(self, target: BorrowedFd<'_>, place: &Place) -> Result<bool> {
        let is_must = self.cloning.offered.is_must;
        let source = match self.open() {
            Ok(Some(source)) => source,
            Ok(None) if is_must => return Err(self.refused(place, "it is no file")),
            Err(error) if is_must => return Err(error),
            // The sender says why it cannot be read, if it still cannot.
            Ok(None) | Err(_) => return Ok(false),
        };
        let Source::File(held) = &*source else {
            return Ok(false);
        };
        let cloned = rustix::io::retry_on_intr(|| rustix::fs::ioctl_ficlone(target, held.fd()));
        let pair = (held.identity().device(), place.folder().device());
        match cloned {
            Ok(()) => {
                locked(&self.cloning.reflinks.0.pairs).insert(pair, true);
                locked(&self.cloning.offered.opened).insert(self.file, source);
                return Ok(true);
            }
            Err(errno) if is_of_disk(errno) => {
                let doing = format!("cannot share the blocks of {}", self.display());
                return Err(place.failed(&doing, errno));
            }
            Err(errno) if is_must => return Err(self.refused(place, &reason_of(errno))),
            Err(errno) if is_of_file_systems(errno) => {
                // What one file is refused for another may be, where others were taken.
                locked(&self.cloning.reflinks.0.pairs)
                    .entry(pair)
                    .or_insert(false);
            }
            Err(_) => {}
        }
        // A clone that was broken off may have left a part.
        rustix::fs::ftruncate(target, 0).map_err(|errno| place.failed("empty", errno))?;
        Ok(false)
    }

    /// The source, open; nothing where it has no descriptor.
    fn open(self) -> Result<Option<Arc<Source>>> {
        let Some(source) = self.source() else {
            return Ok(None);
        };
        match &**source {
            Source::File(_) => Ok(Some(source.clone())),
            Source::Later(later) => {
                let opened = descriptors::patiently(|| later.open_as_it_is())?;
                Ok(Some(Arc::new(Source::File(opened))))
            }
            _ => Ok(None),
        }
    }

    fn source(self) -> Option<&'a Arc<Source>> {
        self.cloning.offered.sources.get(self.file as usize)
    }

    /// The number of the source's device.
    fn device(self) -> Option<u64> {
        match &**self.source()? {
            Source::File(held) => Some(held.identity().device()),
            Source::Later(later) => Some(later.device()),
            _ => None,
        }
    }

    fn display(self) -> &'a str {
        self.source().map_or("a source", |source| source.display())
    }

    fn refused(self, place: &Place, why: &str) -> Error {
        let (from, to) = (self.display(), place.display());
        Error::local(format!("cannot share the blocks of {from} with {to}"), why)
            .cure("copy its bytes with --reflink auto, or write to the file system that it is on")
            .at(Side::Receiver)
    }
}

/// What ends a copy as well.
fn is_of_disk(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::NOMEM | Errno::FBIG | Errno::ROFS
    )
}

/// What every file between two file systems is refused for.
fn is_of_file_systems(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL
    )
}

fn reason_of(errno: Errno) -> String {
    match errno {
        Errno::XDEV => "they lie on different file systems".to_owned(),
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL => {
            "their file system cannot share them".to_owned()
        }
        errno => why(errno),
    }
}

#[cfg(test)]
mod tests;
