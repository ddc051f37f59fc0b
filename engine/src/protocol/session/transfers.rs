//! Which transfer runs in a session, and which is next.
//!
//! Leaves to others: running it. Invariant: one runs at a time, and what is
//! said of the next one is neither lost nor heard before the last one is over.

use crate::error::{Error, Side};
use crate::limits;
use crate::protocol::TransferId;
use crate::protocol::wire::{Begin, Message, Task};
use std::collections::VecDeque;

/// Words that are kept for the next transfer: its offers, and an end.
const NEXT_WORDS_MAX: usize = limits::SEGMENTS_AT_WORK + 2;

/// The transfer that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RunningTransfer {
    transfer: TransferId,
    /// This end sends.
    sends: bool,
}

/// The transfers of one session.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    running: Option<RunningTransfer>,
    /// Begun by a peer that heard the end of the last one before this end had
    /// let go of it, and what was said of it since.
    next: Option<(Begin, VecDeque<Message>)>,
}

/// What comes of a peer's `Begin`.
#[derive(Debug)]
pub(super) enum Taken {
    /// It runs from now on.
    Now(Begin),
    /// It waits for the last one's end.
    Kept,
    /// There are two already.
    Refused(Error),
}

impl Transfers {
    /// True while one runs.
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// True when this is the one that runs.
    pub fn runs(&self, transfer: TransferId) -> bool {
        self.running.is_some_and(|own| own.transfer == transfer)
    }

    /// One that was asked for here runs from now on.
    pub fn start(&mut self, transfer: TransferId, sends: bool) {
        self.running = Some(RunningTransfer { transfer, sends });
    }

    /// The peer begins one.
    pub fn begin(&mut self, begin: Begin) -> Taken {
        if self.running.is_none() {
            self.start(begin.transfer, matches!(begin.task, Task::Pull { .. }));
            return Taken::Now(begin);
        }
        if self.next.is_some() {
            return Taken::Refused(Error::peer(
                "cannot begin a transfer",
                "the session's last one still runs",
            ));
        }
        self.next = Some((begin, VecDeque::new()));
        Taken::Kept
    }

    /// Keeps a word of a transfer that does not run, where it is the next one's;
    /// else what is to be answered.
    pub fn keep(&mut self, transfer: TransferId, message: Message) -> Option<Message> {
        // Nothing else can be meant: no segment of it was answered yet.
        let kept = matches!(
            message,
            Message::Offer(_) | Message::Abort { .. } | Message::EndStreams { .. }
        );
        if let Some((begin, words)) = &mut self.next
            && kept
            && begin.transfer == transfer
            && words.len() < NEXT_WORDS_MAX
        {
            words.push_back(message);
            return None;
        }
        // Late words of a transfer that was given up are no fault, and its peer
        // has forgotten it; who waits for an answer must not wait for ever.
        matches!(message, Message::Offer(_)).then(|| Message::Abort {
            transfer,
            error: Error::peer("cannot take an offer", "no such transfer runs"),
        })
    }

    /// The one that ran is over; the next one, and what was said of it.
    pub fn end(&mut self) -> Option<(Begin, VecDeque<Message>)> {
        self.running = None;
        let (begin, words) = self.next.take()?;
        self.start(begin.transfer, matches!(begin.task, Task::Pull { .. }));
        Some((begin, words))
    }

    /// An error of this end, which receives or sends.
    pub fn own(&self, error: Error) -> Error {
        match self.running {
            Some(running) if running.sends => error.at(Side::Sender),
            _ => error.at(Side::Receiver),
        }
    }

    /// An error that the peer told: at its side, unless it says where.
    pub fn told(&self, error: Error) -> Error {
        let sends = self.running.is_none_or(|running| running.sends);
        let peer = if sends { Side::Receiver } else { Side::Sender };
        match error.side {
            Side::Caller => error.at(peer),
            Side::Sender | Side::Receiver => error,
        }
    }
}
