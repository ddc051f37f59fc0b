//! What the operations of a sending worker are for.
//!
//! Leaves to others: queueing them, and what follows from their results.
//! Invariant: a job names all that its completion needs to be understood.

use super::pipe::SpliceStep;
use crate::protocol::Nanos;
use rustix::io::Errno;

/// Room that reads leave to sends, splices and watches.
pub(super) const ROOM_KEPT: usize = 768;

/// What an operation is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// The command queue's eventfd became readable.
    Wake,
    /// The peer ended the connection at this place.
    Watch { place: usize },
    /// A part of a load is read.
    Read { load: usize, part: usize },
    /// A stretch of a load's mapping gets its page tables.
    Populate { load: usize },
    /// A frame, or its rest, is sent.
    Send {
        place: usize,
        load: usize,
        bytes: u64,
        submitted: Nanos,
        zero_copy: bool,
        /// Bytes that it pins, until its last completion.
        pinned: usize,
        /// It could not: its message comes back with the last completion.
        refused: Option<Errno>,
    },
    /// A step of a chain of splices.
    Splice { place: usize, step: SpliceStep },
    /// Nobody waits for the result.
    Aside,
}
