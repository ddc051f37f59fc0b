//! The sending side of one transfer, as a state machine.
//!
//! Leaves to others: reading sources, sockets, clocks and the receiver's side.
//! Invariant: a chunk is in at most one place: not yet handed out, in one run,
//! called back and waiting, or landed.

use super::check::{Check, CheckSeed};
use super::plan::Plan;
use super::wire::{ChunkRange, Entry, Message};
use super::{ChunkId, ConnectionId, FileId, Nanos, Run, SegmentId, TransferId, Violation};
use crate::error::Error;
use crate::report::{Bytes, Level, SideReport};

/// What a sender needs to know before the first word.
#[derive(Clone, Copy, Debug)]
pub struct SenderConfig {
    /// The transfer.
    pub transfer: TransferId,
    /// A power of two within the limits.
    pub chunk_bytes: u32,
    /// As in `Begin::window_bytes`.
    pub window_bytes: Option<u64>,
}

/// What the sender's caller is to do.
#[derive(Clone, Debug)]
pub enum SenderOutput {
    /// Say this on the control connection.
    Message(Message),
    /// The receiver's answer was accepted: open the sources. Comes before any
    /// run of the segment.
    Segment {
        /// The segment.
        segment: SegmentId,
        /// Where its bytes lie.
        plan: Plan,
        /// What its checks have in common.
        seed: CheckSeed,
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
    /// Look at the held descriptor again; answered by [`Sender::looked`].
    Look {
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
    },
    /// Compute this chunk's check from the source again; answered by
    /// [`Sender::rechecked`].
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
        /// How.
        result: Result<Level, Error>,
    },
    /// All its files ended and no run of it is left: sources can be closed.
    SegmentDone {
        /// The segment.
        segment: SegmentId,
    },
    /// All files ended: collect this end's report, then [`Sender::finish`].
    Finish,
    /// The receiver's report; the last output on success.
    Done {
        /// The receiver's measurements.
        report: Box<SideReport>,
    },
    /// The last output on failure.
    Failed(Error),
}

/// The sending side of one transfer.
pub struct Sender {
    config: SenderConfig,
}

#[allow(missing_docs, unused_variables)]
impl Sender {
    #[must_use]
    pub fn new(config: SenderConfig) -> Self {
        Self { config }
    }
    #[must_use]
    pub fn can_offer(&self) -> bool {
        true
    }
    pub fn offer(&mut self, entries: Vec<Entry>, last: bool) -> SegmentId {
        0
    }
    pub fn set_window(&mut self, window_bytes: Option<u64>) {
        self.config.window_bytes = window_bytes;
    }
    pub fn connection_joined(&mut self, now: Nanos, connection: ConnectionId) {}
    pub fn connection_retiring(&mut self, connection: ConnectionId) {}
    pub fn connection_lost(&mut self, now: Nanos, connection: ConnectionId) {}
    pub fn run_sent(
        &mut self,
        now: Nanos,
        connection: ConnectionId,
        run: Run,
        submitted: Nanos,
        checks: Vec<Check>,
        frozen: bool,
    ) {
    }
    pub fn chunks_void(
        &mut self,
        segment: SegmentId,
        file: FileId,
        chunks: ChunkRange,
        error: Option<Error>,
    ) {
    }
    pub fn looked(&mut self, segment: SegmentId, file: FileId, result: Result<u64, Error>) {}
    pub fn rechecked(&mut self, segment: SegmentId, chunk: ChunkId, result: Result<Check, Error>) {}
    pub fn stream_available(
        &mut self,
        segment: SegmentId,
        complete_chunks: u64,
        end_bytes: Option<u64>,
    ) {
    }
    /// Ends a stream whose bytes are made on the fly behind the last chunk
    /// that was handed to a connection (its size is then whole chunks); the
    /// driver calls it when the user or the peer (`EndStreams`) has enough.
    pub fn end_stream(&mut self, segment: SegmentId) {}
    pub fn file_failed(&mut self, segment: SegmentId, file: FileId, error: Error) {}
    pub fn finish(&mut self, report: SideReport) {}
    pub fn handle_message(&mut self, now: Nanos, message: Message) -> Result<(), Violation> {
        Ok(())
    }
    pub fn stop(&mut self, error: Error) {}
    pub fn poll(&mut self, now: Nanos) -> Option<SenderOutput> {
        None
    }
    #[must_use]
    pub fn counts(&self) -> Bytes {
        Bytes::default()
    }
}
