//! How long a side waits for a word that its peer owes.
//!
//! Leaves to others: which words these are, and what tells that the peer works
//! on one. Invariant: a wait that began, and that neither a word nor a sign of
//! work ended, is over after [`limits::WORD_WAIT_NANOS_MAX`].

use super::Nanos;
use crate::error::Error;
use crate::limits;

/// How often it is asked whether a word is owed: that can take a look at every
/// file.
const LOOK_NANOS: Nanos = 100_000_000;

/// When the peer's next word is overdue, while one is owed.
#[derive(Debug, Default)]
pub(super) struct WordDue {
    due: Option<Nanos>,
    next_look: Nanos,
}

impl WordDue {
    /// The peer said something, or works on what it owes: the wait begins anew.
    pub fn heard(&mut self) {
        self.due = None;
    }

    /// True when it is time to say by [`WordDue::overdue`] what is owed.
    pub fn is_time(&self, now: Nanos) -> bool {
        now >= self.next_look || self.due.is_some_and(|due| now >= due)
    }

    /// The error where a word has been owed for too long.
    pub fn overdue(&mut self, now: Nanos, is_owed: bool, peer: &str) -> Option<Error> {
        self.next_look = now.saturating_add(LOOK_NANOS);
        if !is_owed {
            self.due = None;
            return None;
        }
        let due = *self
            .due
            .get_or_insert(now.saturating_add(limits::WORD_WAIT_NANOS_MAX));
        (now >= due).then(|| {
            let seconds = limits::WORD_WAIT_NANOS_MAX / 1_000_000_000;
            let why = format!("for {seconds} s the {peer} got no further with what it owes");
            Error::peer("cannot go on with the transfer", why)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_overdue_unless_something_was_heard() {
        let wait = limits::WORD_WAIT_NANOS_MAX;
        let mut word = WordDue::default();
        assert_eq!(word.overdue(0, true, "sender"), None);
        assert!(!word.is_time(LOOK_NANOS - 1) && word.is_time(LOOK_NANOS));
        assert_eq!(word.overdue(wait - 1, true, "sender"), None);
        assert!(word.is_time(wait), "to the nanosecond");
        assert!(word.overdue(wait, true, "sender").is_some());
        word.heard();
        assert_eq!(word.overdue(wait, true, "sender"), None);
        assert_eq!(word.overdue(2 * wait - 1, true, "sender"), None);
        // Nothing is owed meanwhile: a wait that begins later is a new one.
        assert_eq!(word.overdue(2 * wait - 1, false, "sender"), None);
        assert_eq!(word.overdue(2 * wait, true, "sender"), None);
    }
}
