//! Held directories: of a tree that is read, and where targets go.
//!
//! Leaves to others: what is in them. Invariant: a directory that this transfer made
//! is known as such, and until its own name is durable it holds the directory that
//! the name is in.

use super::{FileSystem, Identity};
use crate::kernel::descriptors::Held;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A directory, held open.
#[derive(Debug)]
pub struct HeldFolder {
    fd: OwnedFd,
    file_system: OnceLock<FileSystem>,
    identity: OnceLock<Identity>,
    hands_acls_on: OnceLock<bool>,
    /// Where its name is, which may not be durable yet.
    unsynced: Mutex<Option<Arc<HeldFolder>>>,
    is_fresh: bool,
    _held: Held,
}

impl HeldFolder {
    /// A directory that was there.
    #[must_use]
    pub fn found(fd: OwnedFd) -> Self {
        Self {
            fd,
            file_system: OnceLock::new(),
            identity: OnceLock::new(),
            hands_acls_on: OnceLock::new(),
            unsynced: Mutex::new(None),
            is_fresh: false,
            _held: Held::new(1),
        }
    }

    /// A directory that was just made in `parent`.
    #[must_use]
    pub fn made(fd: OwnedFd, parent: Arc<HeldFolder>) -> Self {
        Self {
            unsynced: Mutex::new(Some(parent)),
            is_fresh: true,
            ..Self::found(fd)
        }
    }

    /// True where this transfer made it: nothing that it did not put there is in it.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// What it lies on.
    #[must_use]
    pub fn file_system(&self) -> FileSystem {
        *self
            .file_system
            .get_or_init(|| FileSystem::of(self.fd.as_fd()))
    }

    /// The number of its file system.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.identity().device()
    }

    /// Which directory it is, whatever descriptor holds it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        *self.identity.get_or_init(|| {
            let looked = rustix::fs::fstat(&self.fd);
            looked.map_or(Identity::UNKNOWN, |stat| Identity::of(&stat))
        })
    }

    /// True where what is made in it gets an access control list of its own.
    #[must_use]
    pub fn hands_acls_on(&self) -> bool {
        *self.hands_acls_on.get_or_init(|| {
            let mut list = [0; 4096];
            rustix::fs::fgetxattr(&self.fd, "system.posix_acl_default", &mut list[..])
                .is_ok_and(|bytes| bytes > 0)
        })
    }

    /// Makes the names of the directories that lead here durable, as far as they
    /// were made and are not.
    ///
    /// # Errors
    /// The errno of the sync that failed.
    pub fn sync_names(&self) -> rustix::io::Result<()> {
        let take = |folder: &Self| {
            let mut unsynced = folder
                .unsynced
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            unsynced.take()
        };
        let mut next = take(self);
        while let Some(parent) = next {
            if let Err(errno) = rustix::fs::fsync(&parent.fd) {
                // Whoever comes next finds out for itself.
                let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
                *unsynced = Some(parent);
                return Err(errno);
            }
            next = take(&parent);
        }
        Ok(())
    }

    /// Everything of its file system was synced.
    pub fn all_is_synced(&self) {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        *unsynced = None;
    }
}

impl AsFd for HeldFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
