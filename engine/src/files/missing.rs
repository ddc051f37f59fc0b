//! A source that could not be opened, among others that could.
//!
//! Leaves to others: which faults are a file's own. Invariant: it is offered
//! like an empty file and fails when it is looked at, so it never is a target.

use super::beneath::check_path;
use crate::error::{Error, Result};
use crate::protocol::wire::{Data, Entry, EntryKind};

/// What is left of it: its name and the reason.
#[derive(Debug)]
pub struct Missing {
    name: Vec<u8>,
    display: String,
    error: Error,
}

impl Missing {
    /// The file of that path, which `error` keeps from being opened.
    ///
    /// # Errors
    /// `error` itself, where the path ends in nothing that can be offered.
    pub fn new(path: &[u8], error: Error) -> Result<Self> {
        let end = path
            .iter()
            .rposition(|byte| *byte != b'/')
            .map_or(0, |last| last + 1);
        let path = &path[..end];
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        if check_path(name).is_err() {
            return Err(error);
        }
        Ok(Self {
            name: name.to_vec(),
            display: super::shown(path),
            error,
        })
    }

    /// What sentences call it.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.display
    }

    /// Why it is not there.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// As it is offered.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry {
            name: self.name.clone(),
            kind: EntryKind::File,
            size: 0,
            mode: 0o600,
            mtime_seconds: 0,
            mtime_nanos: 0,
            data: Data::Everywhere,
        }
    }
}
