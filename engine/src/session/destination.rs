//! Where a transfer's files go, and the making of its targets there.
//!
//! Leaves to others: when they are made. Invariant: the directory is looked up
//! once and held from then on, so that all files of a transfer go to the same
//! one, by one descriptor.

use crate::error::{Error, Result};
use crate::files::place;
use crate::files::target::{Target, TargetOptions};
use crate::options::LocalTarget;
use crate::protocol::wire::{Entry, EntryKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a transfer's files go, as it was asked for.
pub(crate) enum Asked {
    /// Below a server's root.
    Beneath {
        root: Arc<OwnedFd>,
        path: Vec<u8>,
        directory: bool,
    },
    /// Where the local user said.
    Local {
        path: PathBuf,
        directory: bool,
    },
    Stdout,
    Null,
}

impl From<LocalTarget> for Asked {
    fn from(target: LocalTarget) -> Self {
        match target {
            LocalTarget::Path { path, directory } => Self::Local { path, directory },
            LocalTarget::Stdout => Self::Stdout,
            LocalTarget::Null => Self::Null,
        }
    }
}

/// The same, as it was found.
pub(super) struct Destination {
    asked: Asked,
    resolved: Mutex<Option<place::ResolvedTarget>>,
}

impl Destination {
    /// Nothing is looked up yet.
    pub(super) fn new(asked: Asked) -> Self {
        Self {
            asked,
            resolved: Mutex::default(),
        }
    }

    /// What `resolve` finds, the first time.
    fn resolved(
        &self,
        resolve: impl FnOnce() -> Result<place::ResolvedTarget>,
    ) -> Result<place::ResolvedTarget> {
        let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = &*resolved {
            return Ok(place.clone());
        }
        let place = resolve()?;
        Ok(resolved.insert(place).clone())
    }

    /// Creates the targets of one segment, in order; blocks.
    pub(super) fn create_all(
        &self,
        entries: &[Entry],
        options: TargetOptions,
    ) -> Vec<Result<Target>> {
        let place = match &self.asked {
            Asked::Beneath {
                root,
                path,
                directory,
            } => self.resolved(|| place::resolve_beneath(root.as_fd(), path, *directory)),
            Asked::Local { path, directory } => {
                self.resolved(|| place::resolve_local(path, *directory))
            }
            Asked::Stdout => return entries.iter().map(|_| Target::stdout(options)).collect(),
            Asked::Null => return entries.iter().map(|_| Target::null(options)).collect(),
        };
        // Each file alone may fit where all of them do not.
        let bytes = entries
            .iter()
            .map(Entry::data_bytes)
            .fold(0, u64::saturating_add);
        let place = place.and_then(|place| place.require_space(bytes).map(|()| place));
        let create = |entry: &Entry| match &place {
            // What its peer calls it is no name that anybody typed.
            Ok(place) if place.is_directory() && entry.kind == EntryKind::Stream => Err(
                Error::usage("cannot copy standard input into a directory: it has no name there")
                    .cure("name the file"),
            ),
            Ok(place) => Target::create(place.place(&entry.name)?, entry, options),
            Err(error) => Err(error.clone()),
        };
        entries.iter().map(create).collect()
    }
}
