//! What a caller hears of a transfer: events while it runs, a report at the end.
//!
//! Leaves to others: the report's content. Invariant: no event follows the
//! report.

use crate::report::{ConnectionProgress, FileReport, Report};

/// What happens while a transfer runs.
#[derive(Clone, Debug)]
pub enum Event {
    /// What the plan holds so far; said again when it grows.
    Planned {
        /// Files offered.
        files: u64,
        /// Their bytes; `None` while a stream has no known end.
        bytes: Option<u64>,
    },
    /// About every 100 ms.
    Progress(Progress),
    /// A file is sealed, placed, delivered or failed.
    FileEnded(FileReport),
    /// Something went from the target that its source has not; its path, as in
    /// [`FileReport::name`].
    Deleted(String),
    /// A data connection is gone; its unacknowledged chunks will go elsewhere.
    ConnectionLost {
        /// Its number.
        connection: u32,
        /// What was seen.
        why: String,
    },
    /// A data connection is in use.
    ConnectionJoined {
        /// Its number.
        connection: u32,
    },
    /// Something that was left to haul, and what it decided.
    Note(String),
}

/// How far a transfer is: acknowledged bytes, never queued ones.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Landed at the receiver.
    pub landed_bytes: u64,
    /// `None` while that grows: a stream has no known end, or a tree is still read.
    pub planned_bytes: Option<u64>,
    /// Bytes to be moved that are known so far.
    pub found_bytes: u64,
    /// Files offered so far.
    pub files: u64,
    /// Those of them that are sealed, placed, delivered or failed.
    pub ended_files: u64,
    /// What was deleted at the target; nothing before everything else has ended.
    pub deleted: Option<u64>,
    /// Since the transfer was asked for.
    pub seconds: f64,
    /// This end's view of each data connection.
    pub connections: Vec<ConnectionProgress>,
}

impl Progress {
    /// True while all that is to land has landed, and files are still being synced,
    /// read back and renamed.
    #[must_use]
    pub fn is_sealing(&self) -> bool {
        self.planned_bytes == Some(self.landed_bytes) && self.ended_files < self.files
    }

    /// True while a tree is still read, so that more files may come.
    #[must_use]
    pub fn is_scanning(&self) -> bool {
        self.planned_bytes.is_none() && self.files > 1
    }
}

/// What the control thread sends to the caller.
pub(crate) enum Update {
    Event(Event),
    Report(Box<Report>),
}
