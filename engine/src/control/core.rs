//! What the sending and the receiving half of a session have in common: the
//! channel, the connections, and work handed to blocking threads.
//!
//! Leaves to others: the transfer itself. Invariant: everything handed to the
//! hands comes back as one [`Done`], so a transfer knows when none is left.

use super::channel::Channel;
use super::hands::blocking;
use super::links::Links;
use super::pool::Start;
use super::transfer::Stop;
use crate::data::Clock;
use crate::error::{Error, Result};
use crate::files::source::Source;
use crate::files::stream::StreamNews;
use crate::files::target::Target;
use crate::protocol::check::Check;
use crate::protocol::wire::{Entry, Join, Verdict};
use crate::protocol::{ChunkId, FileId, Nanos, SegmentId, TransferId};
use crate::report::{Latency, Level};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Blocking calls of one session under way at once.
const HANDS_MAX: usize = 4;

/// What comes to a session from this process.
pub(super) enum Inner {
    /// A caller asks for a transfer.
    Start(Box<Start>),
    /// A caller stops one.
    Stop(TransferId, Stop),
    /// The pool or the server closes.
    Close,
    /// A data connection was dialled, or could not be.
    Dialled(Result<OwnedFd>),
    /// The wait before a round of dials is over.
    Redial,
    /// A data connection joins; its proof holds.
    Joining(Join, OwnedFd),
    /// The hands are done.
    Hands(TransferId, Done),
    /// A stream's reader: complete chunks, and the end once it is known.
    Stream(TransferId, StreamNews),
}

/// A worker that was asked for its counts gives them within this time, or died
/// between the question and the answer.
const REPORT_WAIT_NANOS: Nanos = 10_000_000_000;

/// Reports that workers owe.
pub(super) struct Owed {
    count: usize,
    until: Nanos,
}

impl Owed {
    /// Of `count` workers that were asked now.
    pub(super) fn new(count: usize, now: Nanos) -> Self {
        let until = now.saturating_add(REPORT_WAIT_NANOS);
        Self { count, until }
    }

    /// One came.
    pub(super) fn came(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    /// Takes the debt away where nothing more comes; true where it did so.
    pub(super) fn take_paid(owed: &mut Option<Self>, now: Nanos) -> bool {
        let is_paid = |owed: &mut Self| owed.count == 0 || now >= owed.until;
        owed.take_if(is_paid).is_some()
    }
}

/// What the hands did.
pub(super) enum Done {
    Opened(Result<Vec<(Entry, Arc<Source>)>>),
    Prepared {
        segment: SegmentId,
        verdicts: Vec<Verdict>,
        targets: Vec<Option<Arc<Target>>>,
    },
    Settled {
        segment: SegmentId,
        file: FileId,
        result: Result<Level>,
        sync: Latency,
    },
    /// One temporary file is gone, which the machine asked for.
    Discarded,
    /// Whatever was left of a transfer's files is gone, or of a segment's in the
    /// page cache.
    Emptied,
    Looked {
        segment: SegmentId,
        file: FileId,
        result: Result<u64>,
    },
    Rechecked {
        segment: SegmentId,
        chunk: ChunkId,
        result: Result<Check>,
    },
}

/// The parts of a session that every transfer uses.
pub(super) struct Core {
    pub(super) clock: Clock,
    /// The peer, as sentences name it.
    pub(super) peer: String,
    pub(super) channel: Channel,
    pub(super) links: Links,
    pub(super) inner: mpsc::UnboundedSender<Inner>,
    hands: Arc<Semaphore>,
    hands_pending: usize,
}

impl Core {
    pub(super) fn new(
        clock: Clock,
        peer: String,
        channel: Channel,
        links: Links,
        inner: mpsc::UnboundedSender<Inner>,
    ) -> Self {
        let hands = Arc::new(Semaphore::new(HANDS_MAX));
        Self {
            clock,
            peer,
            channel,
            links,
            inner,
            hands,
            hands_pending: 0,
        }
    }

    /// Runs `work` on a blocking thread; its result comes back as `Inner::Hands`,
    /// or what `failed` makes of the reason why there is none.
    pub(super) fn hand(
        &mut self,
        transfer: TransferId,
        work: impl FnOnce() -> Done + Send + 'static,
        failed: impl FnOnce(Error) -> Done + 'static,
    ) {
        self.hands_pending += 1;
        let (hands, inner) = (self.hands.clone(), self.inner.clone());
        tokio_uring::spawn(async move {
            // The semaphore is never closed.
            let permit = hands.acquire_owned().await;
            let done = blocking(work).await.unwrap_or_else(failed);
            drop(permit);
            // A session that ended needs no answer.
            let _ = inner.send(Inner::Hands(transfer, done));
        });
    }

    /// One piece of work came back.
    pub(super) fn hand_returned(&mut self) {
        self.hands_pending = self.hands_pending.saturating_sub(1);
    }

    /// True when nothing is with the hands.
    pub(super) fn hands_empty(&self) -> bool {
        self.hands_pending == 0
    }
}
