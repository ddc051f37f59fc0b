//! What the sending and the receiving half of a transfer have in common: the
//! channel, the connections, and work handed to blocking threads.
//!
//! Leaves to others: the transfer itself. Invariant: everything handed to the
//! hands comes back as one [`Done`], so a transfer knows when none is left.

use super::channel::Channel;
use super::hands::{Hands, done_or_panicked};
use super::inbox::{Done, Inner};
use super::links::Links;
use crate::data::Clock;
use crate::error::Error;
use crate::kernel::descriptors::Share;
use crate::limits;
use crate::protocol::TransferId;
use crate::protocol::session::SessionMachine;
use tokio::sync::mpsc;

/// The parts of a session that every transfer uses.
pub(crate) struct Core {
    pub(crate) clock: Clock,
    /// The peer, as sentences name it.
    pub(crate) peer: String,
    pub(crate) channel: Channel,
    pub(crate) links: Links,
    /// Decides what the session does.
    pub(crate) machine: SessionMachine,
    pub(crate) inner: mpsc::UnboundedSender<Inner>,
    /// Descriptors that the files of a transfer have in any case.
    least: Share,
    hands: Hands,
    hands_pending: usize,
    /// How far the hands are with what the peer waits for.
    worked: u64,
}

impl Core {
    pub(crate) fn new(
        clock: Clock,
        peer: String,
        channel: Channel,
        links: Links,
        machine: SessionMachine,
        inner: mpsc::UnboundedSender<Inner>,
        least: Share,
    ) -> Self {
        Self {
            clock,
            peer,
            channel,
            links,
            machine,
            inner,
            least,
            hands: Hands::default(),
            hands_pending: 0,
            worked: 0,
        }
    }

    /// Runs `work` on a blocking thread; its result comes back as `Inner::Hands`,
    /// or what `failed` makes of the reason why there is none.
    pub(crate) fn hand(
        &mut self,
        transfer: TransferId,
        work: impl FnOnce() -> Done + Send + 'static,
        failed: impl FnOnce(Error) -> Done + Send + 'static,
    ) {
        self.hands_pending += 1;
        let inner = self.inner.clone();
        self.hands.give(move |refused| {
            let done = match refused {
                None => done_or_panicked(work).unwrap_or_else(failed),
                Some(error) => failed(error),
            };
            // A session that ended needs no answer.
            let _ = inner.send(Inner::Hands(transfer, done));
        });
    }

    /// Descriptors for a transfer's files, `want` at most, besides those of
    /// `connections` in all that may still come.
    pub(crate) fn share(&self, want: usize, connections: usize) -> Share {
        let missing = connections.saturating_sub(self.links.count_all());
        let ahead = missing * limits::DESCRIPTORS_OF_CONNECTION;
        self.least.grown(want, ahead)
    }

    /// One piece of work came back.
    pub(crate) fn hand_returned(&mut self) {
        self.hands_pending = self.hands_pending.saturating_sub(1);
        self.worked += 1;
    }

    /// How far this end is with what its peer waits for. It goes on while a hand
    /// is inside a call, too, whether that makes 4096 targets, syncs or reads back:
    /// the kernel tells nobody how far such a call is, and whether it is slow or
    /// stuck, but a word that nobody works on moves nothing.
    pub(crate) fn count_work(&mut self, workers_are_busy: bool) -> u64 {
        if workers_are_busy || !self.hands_empty() {
            self.worked += 1;
        }
        self.worked
    }

    /// True when nothing is with the hands.
    pub(crate) fn hands_empty(&self) -> bool {
        self.hands_pending == 0
    }
}
