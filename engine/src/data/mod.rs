//! The data plane: worker threads, one ring each, that move runs between
//! sources or targets and sockets.
//!
//! Leaves to others: which run goes where, and all messages. Invariant: a
//! worker never waits for anything but its ring, and a connection's
//! `Detached` is its last event, after its last operation was reaped.

pub mod receive;
pub mod send;
mod slab;
mod thread;
mod window;

use crate::error::Error;
use crate::files::source::Source;
use crate::files::target::Target;
use crate::kernel::queue::Writer;
use crate::options::Transmit;
use crate::protocol::check::{Check, CheckSeed};
use crate::protocol::ledger::Ledger;
use crate::protocol::plan::Plan;
use crate::protocol::wire::ChunkRange;
use crate::protocol::{ChunkId, ConnectionId, FileId, Nanos, Run, SegmentId, TransferId};
use crate::report::SideReport;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The clock that every thread of one session shares.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub fn now(&self) -> Nanos {
        // 584 years fit.
        self.0.elapsed().as_nanos() as Nanos
    }
}

/// What a sending worker needs to know of a segment.
pub struct SendSegment {
    /// The transfer.
    pub transfer: TransferId,
    /// The segment.
    pub segment: SegmentId,
    /// Where its bytes lie.
    pub plan: Plan,
    /// What its checks have in common.
    pub seed: CheckSeed,
    /// By `FileId`; `None` where nothing is wanted.
    pub sources: Vec<Option<Arc<Source>>>,
    /// The path that was asked for.
    pub transmit: Transmit,
    /// Pages read for this transfer leave the page cache behind it.
    pub drop_cache: bool,
}

/// What a receiving worker needs to know of a segment.
pub struct ReceiveSegment {
    /// The transfer.
    pub transfer: TransferId,
    /// The segment.
    pub segment: SegmentId,
    /// Where its bytes go.
    pub plan: Plan,
    /// What its checks have in common.
    pub seed: CheckSeed,
    /// Locked once for each run and once for each landed block, never longer.
    pub ledger: Mutex<Ledger>,
    /// By `FileId`; `None` where nothing is wanted.
    pub targets: Vec<Option<Arc<Target>>>,
    /// What lands is summed for its targets ([`Target::notes_pieces`]).
    pub keeps_sums: bool,
    /// Where the sink takes bytes only in order (standard output): the first
    /// chunk that was not written yet, over all workers. Starts at 0.
    pub in_order: AtomicU64,
}

/// To a sending worker.
pub enum SendCommand {
    /// This connection is yours.
    Attach {
        /// Its number.
        connection: ConnectionId,
        /// Its socket.
        socket: OwnedFd,
    },
    /// Send this run behind what you have for the connection.
    Run {
        /// Where.
        connection: ConnectionId,
        /// What it is part of.
        segment: Arc<SendSegment>,
        /// What.
        run: Run,
        /// For a stream's last chunk: payload bytes of the run, when shorter
        /// than the plan says.
        bytes: Option<u64>,
    },
    /// End it.
    Detach {
        /// Which.
        connection: ConnectionId,
        /// Why.
        cause: Error,
    },
    /// Send a [`SendEvent::Report`] with the counts since the last one.
    Report,
    /// Detach everything at once and end.
    Stop,
}

/// From a sending worker.
pub enum SendEvent {
    /// The run's last byte is in the socket (and, for zero-copy, its pages are
    /// the kernel's until the notification).
    Sent {
        /// Where.
        connection: ConnectionId,
        /// What.
        run: Run,
        /// The transfer it belongs to.
        transfer: TransferId,
        /// Payload bytes.
        bytes: u64,
        /// When its first operation was submitted.
        submitted: Nanos,
        /// The checks that went with it, one for each chunk: a chunk that is
        /// reported damaged is computed again and compared with these.
        checks: Vec<Check>,
    },
    /// The source was short there: zeros went instead (see `Message::Void`).
    Void {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// The file that was short.
        file: FileId,
        /// The chunks that hold filler.
        chunks: ChunkRange,
        /// What was seen, with the source's name; `None` where it is gone.
        error: Option<Error>,
    },
    /// Reaped and closed; runs not reported as sent were not.
    Detached {
        /// Which.
        connection: ConnectionId,
        /// `None` when it was asked for.
        cause: Option<Error>,
    },
    /// Counts since the last report.
    Report(Box<SideReport>),
}

/// To a receiving worker.
pub enum ReceiveCommand {
    /// This connection is yours.
    Attach {
        /// Its number.
        connection: ConnectionId,
        /// Its socket.
        socket: OwnedFd,
    },
    /// Frames of this segment may come from now on.
    Open(Arc<ReceiveSegment>),
    /// Every file of the segment ended: its targets are let go, and its frames
    /// are read and forgotten from now on. Not answered; [`Self::Forget`] does
    /// this for a whole transfer, but a long one would keep all targets open.
    Close {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
    },
    /// Frames of this transfer are drained from now on; answered by
    /// [`ReceiveEvent::Forgotten`] when no operation on its targets is left.
    Forget(TransferId),
    /// End it.
    Detach {
        /// Which.
        connection: ConnectionId,
        /// Why.
        cause: Error,
    },
    /// Send a [`ReceiveEvent::Report`] with the counts since the last one.
    Report,
    /// Detach everything at once and end.
    Stop,
}

/// From a receiving worker.
pub enum ReceiveEvent {
    /// Verified and written.
    Landed {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// Where it came in.
        connection: ConnectionId,
        /// Which chunks.
        chunks: ChunkRange,
        /// Payload bytes in them.
        bytes: u64,
    },
    /// The check failed; nothing of it counts.
    Damaged {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// Which chunk.
        chunk: ChunkId,
    },
    /// Read and forgotten.
    Drained {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// Which chunks.
        chunks: ChunkRange,
    },
    /// A write failed; the file cannot be sealed. The chunks count neither as
    /// landed nor as damaged; later frames of the file are drained silently.
    Failed {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// Why.
        error: Error,
    },
    /// No operation on the transfer's targets is left in this worker.
    Forgotten(TransferId),
    /// Reaped, its grants released, closed.
    Detached {
        /// Which.
        connection: ConnectionId,
        /// `None` when it was asked for, or the peer closed between frames.
        cause: Option<Error>,
    },
    /// Counts since the last report.
    Report(Box<SideReport>),
}

/// Where a worker's events go.
pub type SendEvents = Writer<SendEvent>;
/// Where a worker's events go.
pub type ReceiveEvents = Writer<ReceiveEvent>;
