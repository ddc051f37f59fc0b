//! Whether the peer is there, proved itself and gets on, and when it has to
//! hear from this end.
//!
//! Leaves to others: what is said instead of a heartbeat, and what the words
//! are that are owed. Invariant: a peer that says nothing, or proves nothing,
//! is given up at its deadline, and never for what it said while this process
//! was stopped and could not read it.

use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::protocol::Nanos;

/// The time that a connection has to say who it is.
#[derive(Clone, Copy, Debug)]
pub struct GreetingTime(Nanos);

impl GreetingTime {
    /// Of a connection that was opened now.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self(now.saturating_add(limits::GREETING_WAIT_NANOS_MAX))
    }

    /// When it is through, or given up.
    #[must_use]
    pub fn due(&self) -> Nanos {
        self.0
    }

    /// The error where the time is over, for who said nothing that is haul's.
    #[must_use]
    pub fn overdue(&self, now: Nanos, peer: &str) -> Option<Error> {
        (now >= self.0).then(|| {
            let seconds = limits::GREETING_WAIT_NANOS_MAX / 1_000_000_000;
            let why = format!("it did not greet within {seconds} s");
            Error::peer(format!("cannot greet {peer}"), why)
                .cure("check that `haul serve` listens on that port")
        })
    }
}

/// What is known of both ends' voices.
#[derive(Debug)]
pub(super) struct Liveness {
    /// Until the peer proved itself, and what it is if it does not.
    unproved: Option<(GreetingTime, ErrorKind)>,
    /// When the time was last looked at.
    looked: Nanos,
    /// When the peer was last heard.
    heard: Nanos,
    /// When this end last spoke.
    spoke: Nanos,
    /// How far this end's work is, as it was told, and when.
    told: (u64, Nanos),
    worked: u64,
    /// How far the peer's is, as it was heard.
    peer_worked: u64,
}

impl Liveness {
    /// `unproved` says that the peer owes a proof, and what it is without one.
    pub fn new(now: Nanos, unproved: Option<ErrorKind>) -> Self {
        Self {
            unproved: unproved.map(|kind| (GreetingTime::new(now), kind)),
            looked: now,
            heard: now,
            spoke: now,
            told: (0, now),
            worked: 0,
            peer_worked: 0,
        }
    }

    /// The peer's proof holds.
    pub fn proved(&mut self) {
        self.unproved = None;
    }

    /// The error for a peer that has not proved itself, for this reason; `None`
    /// once it has.
    pub fn unproved(&self, peer: &str, why: &str) -> Option<Error> {
        let (_, kind) = self.unproved?;
        let error = Error::new(kind, format!("cannot go on with {peer}: {why}"));
        Some(error.cure("check that it is the server you mean, and its token"))
    }

    pub fn heard(&mut self, now: Nanos) {
        self.heard = now;
    }

    pub fn spoke(&mut self, now: Nanos) {
        self.spoke = now;
    }

    /// How far this end's work is.
    pub fn worked(&mut self, count: u64) {
        self.worked = count;
    }

    /// How far the peer's work is; true where that is news.
    pub fn peer_worked(&mut self, count: u64) -> bool {
        std::mem::replace(&mut self.peer_worked, count) != count
    }

    /// Looks at the time; true where this process was stopped since the last
    /// look: what the peer said meanwhile is not read yet, and it has its time
    /// again.
    pub fn was_stopped(&mut self, now: Nanos) -> bool {
        let away = now.saturating_sub(self.looked);
        self.looked = now;
        if away <= limits::SILENCE_NANOS_MAX / 4 {
            return false;
        }
        self.heard = now;
        if let Some((greeting, _)) = &mut self.unproved {
            *greeting = GreetingTime::new(now);
        }
        true
    }

    /// The count to be told now: nothing else was said for long, or the work got
    /// further, whatever else is said.
    pub fn heartbeat(&mut self, now: Nanos) -> Option<u64> {
        if now < self.heartbeat_due() {
            return None;
        }
        self.spoke = now;
        self.told = (self.worked, now);
        Some(self.worked)
    }

    fn heartbeat_due(&self) -> Nanos {
        let quiet = self.spoke.saturating_add(limits::HEARTBEAT_NANOS);
        let (told, at) = self.told;
        if told == self.worked {
            return quiet;
        }
        quiet.min(at.saturating_add(limits::HEARTBEAT_NANOS))
    }

    fn silence_due(&self) -> Nanos {
        self.heard.saturating_add(limits::SILENCE_NANOS_MAX)
    }

    /// Why the peer is given up now.
    pub fn overdue(&self, now: Nanos, peer: &str) -> Option<Error> {
        if now >= self.silence_due() {
            let seconds = limits::SILENCE_NANOS_MAX / 1_000_000_000;
            let why = format!("it was silent for {seconds} s");
            return Some(Error::peer(format!("lost the connection to {peer}"), why));
        }
        let (greeting, _) = self.unproved?;
        if now < greeting.due() {
            return None;
        }
        self.unproved(peer, "it proved nothing in time")
    }

    /// When something is due here next.
    pub fn deadline(&self) -> Nanos {
        let proof = self.unproved.map_or(Nanos::MAX, |(due, _)| due.due());
        self.heartbeat_due().min(self.silence_due()).min(proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn a_silent_peer_is_lost_and_one_that_speaks_is_not() {
        let mut liveness = Liveness::new(0, None);
        let due = limits::SILENCE_NANOS_MAX;
        assert_eq!(liveness.overdue(due - 1, "x"), None);
        let error = liveness.overdue(due, "x").expect("it is lost");
        assert!(error.sentence.contains("silent for 20 s"), "{error}");
        assert_eq!(error.kind, ErrorKind::Peer);
        liveness.heard(due);
        assert_eq!(liveness.overdue(2 * due - 1, "x"), None);
    }

    #[test]
    fn a_proof_comes_in_time_or_never() {
        let due = limits::GREETING_WAIT_NANOS_MAX;
        let mut liveness = Liveness::new(0, Some(ErrorKind::Unauthorised));
        liveness.heard(due - 1);
        assert_eq!(liveness.overdue(due - 1, "x"), None);
        let error = liveness.overdue(due, "x").expect("it is overdue");
        assert_eq!(error.kind, ErrorKind::Unauthorised);
        assert!(error.sentence.contains("proved nothing in time"), "{error}");
        liveness.proved();
        assert_eq!(liveness.overdue(due, "x"), None);
        let greeting = GreetingTime::new(5);
        assert_eq!(greeting.overdue(due + 4, "x"), None);
        let error = greeting.overdue(due + 5, "x").expect("it is overdue");
        assert!(error.sentence.contains("within 10 s"), "{error}");
    }

    #[test]
    fn who_was_stopped_blames_nobody() {
        let mut liveness = Liveness::new(0, Some(ErrorKind::Peer));
        for second in 1..5 {
            assert!(!liveness.was_stopped(second * SECOND));
        }
        let later = 4 * SECOND + 2 * limits::SILENCE_NANOS_MAX;
        assert!(liveness.was_stopped(later));
        assert_eq!(liveness.overdue(later, "x"), None);
        assert!(!liveness.was_stopped(later + SECOND));
    }

    #[test]
    fn a_heartbeat_comes_when_it_is_quiet_or_work_got_further() {
        let mut liveness = Liveness::new(0, None);
        let beat = limits::HEARTBEAT_NANOS;
        assert_eq!(liveness.heartbeat(beat - 1), None);
        assert_eq!(liveness.heartbeat(beat), Some(0));
        liveness.spoke(beat + SECOND);
        assert_eq!(liveness.heartbeat(2 * beat), None);
        // Other words do not tell how far the work is.
        liveness.worked(7);
        assert_eq!(liveness.deadline(), 2 * beat);
        assert_eq!(liveness.heartbeat(2 * beat), Some(7));
        assert_eq!(liveness.heartbeat(2 * beat + 1), None);
        assert!(liveness.peer_worked(7) && !liveness.peer_worked(7));
    }
}
