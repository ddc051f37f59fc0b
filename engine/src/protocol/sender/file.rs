//! One file of an answered segment: how far it is from its end.
//!
//! Leaves to others: its chunks. Invariant: it is looked at only while all its
//! bytes are read for good, and a look that began before a chunk was called
//! back closes nothing.

use crate::protocol::wire::Touched;

/// Where a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendingFileState {
    /// Chunks are still to be read, or were called back.
    /// From: the answer, Looking, Closed. To: Looking, Ended.
    Moving {
        /// A look that closes nothing is still out; the next waits for it, so
        /// that two are never mistaken for each other.
        stale_look: bool,
    },
    /// All bytes are read for good; the hands look at the source again.
    /// From: Moving. To: Closed, Moving, Ended.
    Looking,
    /// Unchanged, and the receiver knows. From: Looking. To: Moving, Ended.
    Closed,
    /// Settled, failed, skipped or refused. From: any. To: none.
    Ended,
}

pub(super) struct SendingFile {
    /// Its size; a stream's once its end is known.
    pub size: Option<u64>,
    /// What counts as sealed once it is.
    pub wanted_bytes: u64,
    /// Shares of chunks (see `Plan::shares`); `None` while a stream goes on.
    pub shares: Option<u64>,
    /// Shares that are read for good: sent, or landed.
    pub read: u64,
    /// Shares that landed.
    pub landed: u64,
    /// `Damaged` and `Drained` heard of its chunks.
    pub recalls: u32,
    /// See `EntryKind::comes_last`.
    pub comes_last: bool,
    /// What the last look that counted found of its inode.
    pub touched: Option<Touched>,
    pub state: SendingFileState,
}

impl SendingFile {
    pub fn has_ended(&self) -> bool {
        self.state == SendingFileState::Ended
    }

    /// A chunk of it is to be read again.
    pub fn reopen(&mut self) {
        self.state = match self.state {
            SendingFileState::Looking => SendingFileState::Moving { stale_look: true },
            SendingFileState::Closed => SendingFileState::Moving { stale_look: false },
            other => other,
        };
    }

    /// True, once, when it is time to look at the source again.
    pub fn start_look(&mut self) -> bool {
        let ready = self.state == (SendingFileState::Moving { stale_look: false })
            && self.shares == Some(self.read);
        if ready {
            self.state = SendingFileState::Looking;
        }
        ready
    }

    /// A look came back; true when it counts.
    pub fn end_look(&mut self) -> bool {
        match self.state {
            SendingFileState::Looking => true,
            SendingFileState::Moving { .. } => {
                self.state = SendingFileState::Moving { stale_look: false };
                false
            }
            SendingFileState::Closed | SendingFileState::Ended => false,
        }
    }
}
