//! A source that could not be opened, among others that could.
//!
//! Leaves to others: which faults are a file's own. Invariant: it is offered
//! like an empty file and fails when it is looked at, so it never is a target.

use crate::error::Error;
use crate::protocol::wire::{Entry, EntryKind};

/// What is left of it: its name and the reason.
#[derive(Debug)]
pub struct Missing {
    name: Vec<u8>,
    display: String,
    error: Error,
}

impl Missing {
    /// The file of that path, which `error` keeps from being opened.
    #[must_use]
    pub fn new(path: &[u8], error: Error) -> Self {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        Self {
            name: name.to_vec(),
            display: super::shown(path),
            error,
        }
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
        }
    }
}
