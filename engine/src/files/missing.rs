//! A source that could not be opened, among others that could.
//!
//! Leaves to others: which faults are a file's own. Invariant: it is offered
//! like an empty file and fails when it is looked at, so it never is a target.

use super::beneath::check_path;
use crate::error::{Error, Result};
use crate::protocol::wire::Entry;

/// What is left of it: its name and the reason.
#[derive(Debug)]
pub struct Missing {
    entry: Entry,
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
        let entry = Entry {
            name: name.to_vec(),
            mode: 0o600,
            ..Entry::default()
        };
        Ok(Self::of_entry(entry, super::shown(path), error))
    }

    /// The entry of a tree that `error` keeps from being copied; it has no bytes.
    #[must_use]
    pub fn of_entry(entry: Entry, display: String, error: Error) -> Self {
        Self {
            entry,
            display,
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
    pub fn entry(&self) -> &Entry {
        &self.entry
    }
}
