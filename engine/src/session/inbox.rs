//! What comes to a session from this process, as plain values.
//!
//! Leaves to others: acting on it. Invariant: nothing here knows who sent it.

use super::destination::PreparedTarget;
use super::event::Update;
use crate::data::SendSegment;
use crate::error::{Error, Result};
use crate::files::reflink::Reflinks;
use crate::files::stream::StreamNews;
use crate::files::tree::names::NamesPart;
use crate::files::walk::{Batch, Naming, Walk};
use crate::options::{CopyOptions, LocalSource, LocalTarget, RemoteSource, RemoteTarget};
use crate::protocol::sender::{Looked, Rechecked};
use crate::protocol::wire::{Deletions, Join, Verdict};
use crate::protocol::{ChunkId, FileId, Nanos, SegmentId, TransferId};
use crate::report::{Digest, Latency, Level};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

/// What comes to a session from this process.
pub(crate) enum Inner {
    /// A caller asks for a transfer.
    Start(Box<Start>),
    /// A caller stops one.
    Stop(TransferId, StopHow),
    /// The pool or the server closes.
    Close,
    /// A data connection was dialled, or could not be.
    Dialled(Result<OwnedFd>),
    /// A data connection joins; its proof holds.
    Joining(Join, OwnedFd),
    /// The hands are done.
    Hands(TransferId, Done),
    /// A stream's reader: complete chunks, and the end once it is known.
    Stream(TransferId, StreamNews),
}

/// A transfer that a caller asks for.
pub(crate) struct Start {
    pub(crate) transfer: TransferId,
    pub(crate) task: StartTask,
    pub(crate) options: CopyOptions,
    /// Shared with a receiver in this process.
    pub(crate) reflinks: Option<Reflinks>,
    pub(crate) updates: mpsc::Sender<Update>,
    pub(crate) asked: Nanos,
}

/// Which way it goes.
pub(crate) enum StartTask {
    Push {
        sources: Vec<LocalSource>,
        target: RemoteTarget,
    },
    Pull {
        sources: Vec<RemoteSource>,
        target: LocalTarget,
    },
}

/// How a transfer is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopHow {
    Interrupt,
    Finish,
}

/// Some of a transfer's sources, open, and the walk that opens the others.
pub(crate) struct Opened {
    pub(crate) walk: Box<Walk>,
    pub(crate) batch: Box<Batch>,
}

impl Opened {
    /// Opens the next that `room` descriptors take; blocks, and `waits` for one.
    ///
    /// # Errors
    /// Those of [`Walk::next_batch`].
    pub(crate) fn next(mut walk: Box<Walk>, room: u32, waits: bool) -> Result<Self> {
        let batch = Box::new(walk.next_batch(room, waits)?);
        Ok(Self { walk, batch })
    }
}

/// A segment whose sources are open, and those that could not be opened.
pub(crate) struct OpenedSegment {
    pub(crate) data: Box<SendSegment>,
    pub(crate) failed: Vec<(FileId, Error)>,
}

/// What the hands did.
pub(crate) enum Done {
    Opened(Result<Opened>),
    Prepared {
        segment: SegmentId,
        verdicts: Vec<Verdict>,
        taken: Vec<Option<PreparedTarget>>,
        /// What those that are passed over hold, where that was asked for.
        digests: Vec<(FileId, Digest)>,
    },
    /// What is wanted of a segment is open, except what failed.
    SegmentOpened {
        segment: SegmentId,
        opened: Result<OpenedSegment>,
    },
    Settled {
        files: Vec<(SegmentId, FileId, Result<Level>)>,
        /// What those of them hold, where that was asked for.
        digests: Vec<(SegmentId, FileId, Digest)>,
        sync: Latency,
        /// What could not be removed of directories that gave way.
        left_over: Vec<String>,
        /// Other than a large file on its own.
        together: bool,
    },
    /// One temporary file is gone, which the machine asked for.
    Discarded,
    /// Whatever was left of a transfer's files is gone, or of a segment's in the
    /// page cache.
    Emptied,
    /// Some names of the source's directories; none where all were told.
    Named {
        naming: Box<Naming>,
        part: Option<NamesPart>,
    },
    /// What was superfluous by that part of the names is gone.
    Deleted {
        number: u32,
        result: Result<Deletions>,
    },
    Looked {
        segment: SegmentId,
        files: Vec<(FileId, Result<Looked>)>,
    },
    Rechecked {
        segment: SegmentId,
        chunk: ChunkId,
        result: Result<Rechecked>,
    },
}
