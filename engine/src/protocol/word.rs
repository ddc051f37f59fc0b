//! How long a side waits for a word that its peer says as soon as it can.
//!
//! Leaves to others: which words these are. Invariant: a wait that began and
//! was not ended by a word is over after [`limits::WORD_WAIT_NANOS_MAX`].

use super::Nanos;
use crate::error::Error;
use crate::limits;

/// When the peer's next word is overdue, while one is awaited.
#[derive(Debug, Default)]
pub(super) struct WordDue(Option<Nanos>);

impl WordDue {
    /// The peer said something: the wait begins anew.
    pub fn heard(&mut self) {
        self.0 = None;
    }

    /// The error where a word has been awaited for too long.
    pub fn overdue(&mut self, now: Nanos, awaits: bool, peer: &str) -> Option<Error> {
        if !awaits {
            self.0 = None;
            return None;
        }
        let due = *self
            .0
            .get_or_insert(now.saturating_add(limits::WORD_WAIT_NANOS_MAX));
        (now >= due).then(|| {
            let seconds = limits::WORD_WAIT_NANOS_MAX / 1_000_000_000;
            let why = format!("the {peer} did not say what comes next for {seconds} s");
            Error::peer("cannot go on with the transfer", why)
        })
    }
}
