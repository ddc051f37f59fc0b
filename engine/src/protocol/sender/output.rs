//! What the sender has its caller do, and what comes back from the hands.
//!
//! Leaves to others: doing it. Invariant: whatever is answered says by which call.

use crate::error::Error;
use crate::protocol::check::{Check, CheckSeed};
use crate::protocol::plan::Plan;
use crate::protocol::wire::{ChunkRange, Deletions, Message, Touched};
use crate::protocol::{ChunkId, ConnectionId, FileId, Nanos, Run, SegmentId};
use crate::report::{Level, SideReport};

/// What a look at a source found that can still be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Its size; a stream's so far.
    pub size: u64,
    /// Where only its inode was changed: what it holds now.
    pub touched: Option<Touched>,
}

/// A chunk that was called back, as its sources have it now.
#[derive(Clone, Debug)]
pub struct Rechecked {
    /// Its check.
    pub check: Check,
    /// Where it is another than was sent: the files of it that this can be laid to,
    /// as they are seen to have changed, cannot be read, or were at least touched.
    pub suspects: Vec<(FileId, Error)>,
}

/// What the sender's caller is to do.
#[derive(Clone, Debug)]
pub enum SenderOutput {
    /// Say this on the control connection.
    Message(Message),
    /// The receiver's answer was accepted: open the sources that are wanted;
    /// answered by [`super::Sender::opened`]. Comes before any run of the segment.
    Segment {
        /// The segment.
        segment: SegmentId,
        /// Where its bytes lie.
        plan: Plan,
        /// What its checks have in common.
        seed: CheckSeed,
        /// Files of which nothing is wanted: they are to be let go of.
        unwanted: Vec<FileId>,
    },
    /// Hand this run to the connection's worker.
    Run {
        /// Where.
        connection: ConnectionId,
        /// What.
        run: Run,
        /// Payload bytes, where a stream's end makes them fewer than planned.
        bytes: Option<u64>,
    },
    /// Look at the held descriptors again; each is answered by
    /// [`super::Sender::looked`].
    Look {
        /// The segment.
        segment: SegmentId,
        /// The files.
        files: Vec<FileId>,
    },
    /// Compute this chunk's check from the source again; answered by
    /// [`super::Sender::rechecked`].
    Recheck {
        /// The segment.
        segment: SegmentId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The peer freed it: detach yours, if it is still attached.
    CloseConnection {
        /// Which.
        connection: ConnectionId,
    },
    /// Acknowledged: one for each contiguous part of one run.
    Landed {
        /// What brought them; `None` where their run was given up meanwhile.
        connection: Option<ConnectionId>,
        /// The segment.
        segment: SegmentId,
        /// Which chunks.
        chunks: ChunkRange,
        /// Their payload bytes.
        bytes: u64,
        /// When the run was submitted, as far as that is known.
        submitted: Nanos,
        /// When the acknowledgement was heard.
        acknowledged: Nanos,
    },
    /// The file's end; exactly one for each file.
    FileEnded {
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// Its size, once that is known.
        size: Option<u64>,
        /// How.
        result: Result<Level, Error>,
    },
    /// All its files ended and no run of it is left: sources can be closed.
    SegmentDone {
        /// The segment.
        segment: SegmentId,
    },
    /// So much was deleted at the receiver.
    Deleted(Box<Deletions>),
    /// All files ended: collect this end's report, then [`super::Sender::finish`].
    Finish,
    /// The receiver's report; the last output on success.
    Done {
        /// The receiver's measurements.
        report: Box<SideReport>,
    },
    /// The last output on failure.
    Failed(Error),
}
