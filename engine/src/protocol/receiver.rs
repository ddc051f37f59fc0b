//! The receiving side of one transfer, as a state machine.
//!
//! Leaves to others: writing targets, the ledger's grants, sockets and clocks.
//! Invariant: a file is settled only when all its chunks landed and a current
//! `Closed` is held, and every file ends exactly once.

use super::check::CheckSeed;
use super::plan::Plan;
use super::wire::{ChunkRange, Message, Offer, Verdict};
use super::{ChunkId, ConnectionId, FileId, Nanos, SegmentId, TransferId, Violation};
use crate::error::Error;
use crate::report::{Bytes, Level, SideReport};

/// What a receiver needs to know before the first word.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverConfig {
    /// The transfer.
    pub transfer: TransferId,
    /// A power of two within the limits.
    pub chunk_bytes: u32,
}

/// What the receiver's caller is to do.
#[derive(Clone, Debug)]
pub enum ReceiverOutput {
    /// Say this on the control connection.
    Message(Message),
    /// Create the targets; answered by [`Receiver::prepared`].
    Prepare {
        /// The files.
        offer: Offer,
    },
    /// Frames of this segment may come: tell every worker before the message
    /// that follows is sent.
    Open {
        /// The segment.
        segment: SegmentId,
        /// Where its bytes go.
        plan: Plan,
        /// What its checks have in common.
        seed: CheckSeed,
    },
    /// The peer lost it: detach it; answered by [`Receiver::connection_reaped`],
    /// at once where there is no such connection (any more).
    CloseConnection {
        /// Which.
        connection: ConnectionId,
    },
    /// Progress.
    Landed {
        /// The segment.
        segment: SegmentId,
        /// Which chunks.
        chunks: ChunkRange,
        /// Their payload bytes.
        bytes: u64,
    },
    /// Sync, name and so on; answered by [`Receiver::settled`].
    Settle {
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// Its size.
        size: u64,
    },
    /// Remove its temporary file, if there (still) is one.
    Discard {
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
    },
    /// The file's end; exactly one for each file.
    FileEnded {
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// How.
        result: Result<Level, Error>,
    },
    /// All its files ended: targets can be closed.
    SegmentDone {
        /// The segment.
        segment: SegmentId,
    },
    /// The sender is done: collect this end's report, then [`Receiver::finish`].
    Finish,
    /// The sender's report; the last output on success.
    Done {
        /// The sender's measurements.
        report: Box<SideReport>,
    },
    /// The last output on failure.
    Failed(Error),
}

/// The receiving side of one transfer.
pub struct Receiver {
    #[allow(dead_code)]
    config: ReceiverConfig,
}

#[allow(missing_docs, unused_variables)]
impl Receiver {
    #[must_use]
    pub fn new(config: ReceiverConfig) -> Self {
        Self { config }
    }
    pub fn prepared(&mut self, segment: SegmentId, verdicts: Vec<Verdict>) {}
    pub fn chunks_landed(
        &mut self,
        connection: ConnectionId,
        segment: SegmentId,
        chunks: ChunkRange,
        bytes: u64,
    ) {
    }
    pub fn chunk_damaged(&mut self, segment: SegmentId, chunk: ChunkId) {}
    pub fn chunks_drained(&mut self, segment: SegmentId, chunks: ChunkRange) {}
    pub fn write_failed(&mut self, segment: SegmentId, file: FileId, error: Error) {}
    pub fn connection_reaped(&mut self, connection: ConnectionId) {}
    pub fn settled(&mut self, segment: SegmentId, file: FileId, result: Result<Level, Error>) {}
    pub fn finish(&mut self, report: SideReport) {}
    pub fn handle_message(&mut self, now: Nanos, message: Message) -> Result<(), Violation> {
        Ok(())
    }
    pub fn stop(&mut self, error: Error) {}
    pub fn poll(&mut self, now: Nanos) -> Option<ReceiverOutput> {
        None
    }
    #[must_use]
    pub fn counts(&self) -> Bytes {
        Bytes::default()
    }
}
