//! How much memory zero-copy sends may pin at once.
//!
//! Leaves to others: sending, and what is done where nothing can be pinned.
//! Invariant: what is held is what notifications are due for; a refusal lowers
//! the budget below what was tried, and no refusal is final while anything is held.
//!
//! The kernel charges each send in flight to RLIMIT_MEMLOCK, over all connections
//! and processes of a user, and tells nobody what is left of it: only a send that
//! is refused (ENOMEM) does. So the budget is found as TCP finds a path's: halved
//! by a refusal, and raised a little by every notification.

use crate::protocol::Nanos;
use rustix::io::Errno;

/// The smallest piece of a frame that is sent on its own.
pub const PIECE_BYTES_MIN: usize = 64 * 1024;
/// What a notification adds to the budget: the next refusal, which costs one
/// operation, is some 100 pieces away.
const RAISE_BYTES: usize = 16 * 1024;
/// The smallest piece, refused while nothing of ours is pinned, is tried for so
/// long: others of the user have all there is, and their notifications come.
const REFUSED_NANOS_MAX: Nanos = 2_000_000_000;
/// … this often.
pub const TRY_AGAIN_NANOS: Nanos = 2_000_000;

/// What one worker's zero-copy sends hold and may hold.
#[derive(Debug, Default)]
pub struct Pins {
    /// Bytes that may be pinned; `None` until a send was refused.
    budget: Option<usize>,
    /// Bytes whose notification is due.
    held: usize,
    /// The lowest budget since it was asked for.
    least: Option<usize>,
    /// Since when not even the smallest piece goes.
    refused_since: Option<Nanos>,
    /// … and when it is tried the next time.
    tried_again_at: Nanos,
}

impl Pins {
    /// How many of `wanted` bytes may go now, for one of `connections` that send;
    /// `None` while it has to wait for a notification.
    pub fn piece(&self, now: Nanos, wanted: usize, connections: usize) -> Option<usize> {
        let Some(budget) = self.budget else {
            return Some(wanted);
        };
        if now < self.tried_again_at {
            return None;
        }
        // Two pieces each: one goes while the other's notification is due.
        let share = budget / (2 * connections.max(1));
        let piece = share.max(PIECE_BYTES_MIN).min(wanted);
        let fits = self.held == 0 || self.held + piece <= budget;
        fits.then_some(piece)
    }

    /// A piece is submitted.
    pub fn take(&mut self, bytes: usize) {
        self.held += bytes;
    }

    /// A piece that went is pinned no longer.
    pub fn release(&mut self, bytes: usize) {
        self.held -= bytes;
        self.refused_since = None;
        self.budget = self.budget.map(|budget| budget.saturating_add(RAISE_BYTES));
    }

    /// A piece could not be pinned. False when not even the smallest ever can.
    pub fn refuse(&mut self, now: Nanos, bytes: usize) -> bool {
        self.held -= bytes;
        let budget = ((self.held + bytes) / 2).max(PIECE_BYTES_MIN);
        self.budget = Some(budget);
        self.least = Some(self.least.map_or(budget, |least| least.min(budget)));
        if self.held > 0 || bytes > PIECE_BYTES_MIN {
            return true;
        }
        self.tried_again_at = now + TRY_AGAIN_NANOS;
        let since = *self.refused_since.get_or_insert(now);
        now.saturating_sub(since) < REFUSED_NANOS_MAX
    }

    /// A piece came back that was never sent.
    pub fn give_back(&mut self, bytes: usize) {
        self.held -= bytes;
    }

    /// True while it is a matter of time whether anything can be pinned.
    pub fn is_refused(&self) -> bool {
        self.refused_since.is_some()
    }

    /// What was in force, for the report, where anything was.
    pub fn take_note(&mut self) -> Option<String> {
        let least = self.least.take()?;
        Some(format!(
            "zero-copy sends went in pieces, at times with no more than {} KiB in flight at once: RLIMIT_MEMLOCK (`ulimit -l`) allows no more memory to be pinned",
            least / 1024
        ))
    }
}

/// True where not enough memory could be pinned, or the socket cannot do it.
pub fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::NOMEM | Errno::NOBUFS | Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn without_a_refusal_frames_go_whole() {
        let mut pins = Pins::default();
        assert_eq!(pins.piece(0, 8 * MIB, 4), Some(8 * MIB));
        pins.take(8 * MIB);
        assert_eq!(pins.piece(0, 8 * MIB, 4), Some(8 * MIB));
        assert_eq!(pins.take_note(), None);
    }

    #[test]
    fn a_piece_that_never_goes_is_given_up_in_time() {
        let mut pins = Pins::default();
        let mut refuse = |now, bytes| {
            pins.take(bytes);
            pins.refuse(now, bytes)
        };
        assert!(refuse(0, 8 * MIB), "smaller may go");
        assert!(refuse(5, PIECE_BYTES_MIN));
        assert!(refuse(4 + REFUSED_NANOS_MAX, PIECE_BYTES_MIN));
        assert!(!refuse(5 + REFUSED_NANOS_MAX, PIECE_BYTES_MIN));
        // One that goes begins the wait anew.
        pins.take(PIECE_BYTES_MIN);
        pins.release(PIECE_BYTES_MIN);
        pins.take(PIECE_BYTES_MIN);
        assert!(pins.refuse(2 * REFUSED_NANOS_MAX, PIECE_BYTES_MIN));
    }

    proptest! {
        /// Whatever a user's limit is, and whoever else pins of it, all is sent,
        /// and most of what is tried goes.
        #[test]
        fn the_budget_comes_to_what_is_there(
            limit in MIB..64 * MIB,
            workers in 1usize..4,
            connections in 1usize..9,
        ) {
            let mut all: Vec<(Pins, Vec<usize>)> = (0..workers).map(|_| Default::default()).collect();
            let (mut sent, mut refused) = (0u32, 0u32);
            for turn in 0..4000usize {
                // Notifications come when they come.
                for (number, (pins, flying)) in (1usize..).zip(&mut all) {
                    let noise = (turn * number).wrapping_mul(2_654_435_761) >> 9;
                    if noise % 3 == 0 {
                        flying.drain(..).for_each(|bytes| pins.release(bytes));
                    }
                }
                let worker = turn % workers;
                let others: usize = all.iter().map(|(pins, _)| pins.held).sum();
                let (pins, flying) = &mut all[worker];
                let now = turn as Nanos * TRY_AGAIN_NANOS;
                let Some(bytes) = pins.piece(now, 8 * MIB, connections) else { continue };
                pins.take(bytes);
                if others + bytes <= limit {
                    flying.push(bytes);
                    sent += 1;
                } else {
                    refused += 1;
                    prop_assert!(pins.refuse(now, bytes), "others hold all of it");
                }
            }
            prop_assert!(sent > refused, "{sent} went, {refused} were refused");
        }
    }
}
