//! When the client dials, and how many data connections.
//!
//! Leaves to others: connecting, and which connections there are. Invariant: a
//! round of dials follows a wait that grows from round to round, and after the
//! last round, or by what no wait can cure, the transfer is given up once no
//! connection is left.

use crate::error::{Error, Result};
use crate::limits;
use crate::protocol::wire::Flow;
use crate::protocol::{ConnectionId, Nanos};

const MILLI: Nanos = 1_000_000;
/// The wait before a first redial; it doubles with each in a row.
const REDIAL_WAIT_NANOS: Nanos = 100 * MILLI;
/// The longest wait before a redial.
const REDIAL_WAIT_NANOS_MAX: Nanos = 5_000 * MILLI;
/// The wait before a peer that takes no more connections in is tried again.
const FULL_WAIT_NANOS: Nanos = 30_000 * MILLI;

/// The connections that there are, of the way that is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Here {
    pub count: usize,
    /// Those of them that the peer is known to have, too.
    pub answered: usize,
}

/// What is to be done about those that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub dials: usize,
    /// Sockets that were dialled before and join now.
    pub joins: usize,
}

/// The dialling end's part.
#[derive(Debug)]
pub(super) struct Dialling {
    /// Connections that are wanted.
    connections: usize,
    next_connection: ConnectionId,
    /// Dialled before it was known which way they are to carry.
    spares: usize,
    /// Dials under way.
    pending: usize,
    /// Rounds of dials in a row without a landed chunk.
    rounds: u32,
    next_round: Option<Nanos>,
    /// The peer left a connection waiting, and has taken none in since.
    is_full: bool,
    /// Which way the running transfer wants its connections.
    flow: Option<Flow>,
}

impl Dialling {
    /// `pending` dials are under way already.
    pub fn new(connections: usize, pending: usize) -> Self {
        Self {
            connections,
            next_connection: 0,
            spares: 0,
            pending,
            rounds: 0,
            next_round: None,
            is_full: false,
            flow: None,
        }
    }

    pub fn flow(&self) -> Option<Flow> {
        self.flow
    }

    /// How many connections a transfer wants.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// A transfer begins. What failed before says nothing of now.
    pub fn begin(&mut self, flow: Flow) {
        self.flow = Some(flow);
        self.rounds = 0;
        self.next_round = None;
    }

    /// It is over: nothing is missing any more.
    pub fn end(&mut self) {
        self.flow = None;
        self.next_round = None;
    }

    /// Bytes land: connections that were lost had been of use.
    pub fn landed(&mut self) {
        self.rounds = 0;
    }

    /// The peer took a connection in: it has room for those that are missing.
    pub fn taken_in(&mut self, now: Nanos) {
        if std::mem::take(&mut self.is_full) && self.flow.is_some() {
            self.next_round.get_or_insert(now);
        }
    }

    /// Sees to as many connections as are wanted.
    pub fn want(&mut self, here: Here) -> Wanted {
        let missing = self.connections.saturating_sub(here.count);
        let most = match self.is_full && here.count > 0 {
            true => 1,
            false => self.numbers_left(),
        };
        let dials = missing.saturating_sub(self.spares + self.pending).min(most);
        self.pending += dials;
        let joins = self.spares.min(missing);
        Wanted { dials, joins }
    }

    /// A dial is through: its socket waits to be joined.
    pub fn dialled(&mut self) {
        self.pending = self.pending.saturating_sub(1);
        self.spares += 1;
    }

    /// A dial failed.
    ///
    /// # Errors
    /// The reason to give the transfer up: at once by what no wait can cure.
    pub fn dial_failed(&mut self, now: Nanos, error: Error, here: Here, peer: &str) -> Result<()> {
        self.pending = self.pending.saturating_sub(1);
        self.failed(now, error, here, peer)
    }

    /// What was dialled could not be used.
    ///
    /// # Errors
    /// As [`Dialling::dial_failed`].
    pub fn failed(&mut self, now: Nanos, error: Error, here: Here, peer: &str) -> Result<()> {
        if self.flow.is_some() && !error.passes {
            return Err(error);
        }
        self.lost(now, &error.to_string(), false, here, peer)
    }

    /// The number under which a socket joins; `None` where no socket waits.
    pub fn join(&mut self) -> Option<ConnectionId> {
        self.spares = self.spares.checked_sub(1)?;
        let connection = self.next_connection;
        self.next_connection += 1;
        Some(connection)
    }

    /// A connection is gone, or a dial failed: after a wait all that are missing
    /// by then are dialled, which is one round. `missed` says that the peer took
    /// it not in: while others carry, such a peer is tried now and then, with one.
    ///
    /// # Errors
    /// The rounds are through, and nothing is left to wait for.
    pub fn lost(
        &mut self,
        now: Nanos,
        why: &str,
        missed: bool,
        here: Here,
        peer: &str,
    ) -> Result<()> {
        self.is_full |= missed;
        // Between transfers nothing is missing.
        if self.flow.is_none() || self.next_round.is_some() {
            return Ok(());
        }
        if self.rounds == limits::REDIALS_MAX || self.numbers_left() == 0 {
            if here.count + self.pending > 0 {
                return Ok(());
            }
            let tried = match self.numbers_left() {
                0 => "the session has had all its connections".to_owned(),
                _ => format!("{} redials in a row failed", limits::REDIALS_MAX),
            };
            return Err(Error::peer(
                format!("lost all data connections to {peer}"),
                format!("{why} ({tried})"),
            ));
        }
        let wait = if self.is_full && here.answered > 0 {
            FULL_WAIT_NANOS
        } else {
            (REDIAL_WAIT_NANOS << self.rounds.min(10)).min(REDIAL_WAIT_NANOS_MAX)
        };
        self.rounds += 1;
        self.next_round = Some(now.saturating_add(wait));
        Ok(())
    }

    /// True, once, when it is time for the next round.
    pub fn round_due(&mut self, now: Nanos) -> bool {
        self.next_round.take_if(|due| now >= *due).is_some()
    }

    /// When the next round is due.
    pub fn deadline(&self) -> Nanos {
        self.next_round.unwrap_or(Nanos::MAX)
    }

    /// Connection numbers that the session still has.
    fn numbers_left(&self) -> usize {
        let used = self.next_connection as usize + self.spares + self.pending;
        (limits::JOINS_MAX as usize).saturating_sub(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const NOBODY: Here = Here {
        count: 0,
        answered: 0,
    };

    fn refused() -> Error {
        Error::peer("cannot connect to x", "connection refused")
    }

    /// A transfer runs, and its first dials are under way.
    fn dialling(connections: usize) -> Dialling {
        let mut dialling = Dialling::new(connections, 0);
        dialling.begin(Flow::FromDialler);
        let wanted = dialling.want(NOBODY);
        assert_eq!((wanted.dials, wanted.joins), (connections, 0));
        dialling
    }

    #[test]
    fn waits_grow_and_the_rounds_end() {
        let mut dialling = dialling(1);
        let mut now = 0;
        let mut waits = Vec::new();
        let error = loop {
            if let Err(error) = dialling.dial_failed(now, refused(), NOBODY, "x") {
                break error;
            }
            waits.push((dialling.deadline() - now) / MILLI);
            assert!(!dialling.round_due(dialling.deadline() - 1));
            now = dialling.deadline();
            assert!(dialling.round_due(now) && !dialling.round_due(now));
            assert_eq!(dialling.want(NOBODY).dials, 1);
        };
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert!(error.sentence.contains("8 redials in a row"), "{error}");
        assert!(error.sentence.contains("connection refused"), "{error}");
    }

    #[test]
    fn what_no_wait_can_cure_ends_it_at_once() {
        let mut dialling = dialling(4);
        let own = Error::local("cannot set a send buffer", "the kernel refuses it");
        let ended = dialling.dial_failed(0, own.clone(), NOBODY, "x");
        assert_eq!(ended, Err(own.clone()), "its own sentence and code");
        // Between transfers nobody asked for it.
        dialling.end();
        assert_eq!(dialling.dial_failed(0, own, NOBODY, "x"), Ok(()));
        assert_eq!(dialling.deadline(), Nanos::MAX);
    }

    #[test]
    fn landed_bytes_let_the_rounds_begin_anew() {
        let mut dialling = dialling(1);
        for _ in 0..3 * limits::REDIALS_MAX {
            dialling
                .dial_failed(0, refused(), NOBODY, "x")
                .expect("it goes on");
            assert_eq!(dialling.deadline(), REDIAL_WAIT_NANOS);
            assert!(dialling.round_due(REDIAL_WAIT_NANOS));
            dialling.want(NOBODY);
            dialling.landed();
        }
    }

    #[test]
    fn one_round_dials_all_that_are_missing_by_then() {
        let mut dialling = dialling(4);
        for _ in 0..4 {
            dialling.dialled();
            assert!(dialling.join().is_some());
        }
        assert_eq!(dialling.join(), None, "no socket waits");
        for left in (2..4).rev() {
            let here = Here {
                count: left,
                answered: left,
            };
            dialling.lost(0, "cut", false, here, "x").expect("others");
        }
        let here = Here {
            count: 2,
            answered: 2,
        };
        assert!(dialling.round_due(REDIAL_WAIT_NANOS));
        assert_eq!(dialling.want(here).dials, 2);
    }

    #[test]
    fn a_full_peer_is_tried_now_and_then_with_one() {
        let mut dialling = dialling(4);
        (0..4).for_each(|_| dialling.dialled());
        while dialling.join().is_some() {}
        let here = Here {
            count: 2,
            answered: 2,
        };
        for _ in 0..2 {
            dialling.lost(0, "missed", true, here, "x").expect("others");
        }
        assert_eq!(dialling.deadline(), FULL_WAIT_NANOS);
        assert!(dialling.round_due(FULL_WAIT_NANOS));
        assert_eq!(dialling.want(here).dials, 1);
        dialling.dialled();
        dialling.join();
        // It takes one in: there is room for the rest.
        dialling.taken_in(FULL_WAIT_NANOS);
        assert!(dialling.round_due(FULL_WAIT_NANOS));
        let here = Here {
            count: 3,
            answered: 3,
        };
        assert_eq!(dialling.want(here).dials, 1);
    }

    #[test]
    fn a_peer_that_takes_nobody_in_is_pressed_as_one_that_refuses() {
        let mut dialling = dialling(2);
        dialling.lost(0, "missed", true, NOBODY, "x").expect("on");
        assert_eq!(dialling.deadline(), REDIAL_WAIT_NANOS);
    }

    #[test]
    fn numbers_are_used_up() {
        let most = limits::JOINS_MAX as usize;
        let mut dialling = Dialling::new(1, 0);
        dialling.begin(Flow::ToDialler);
        for _ in 0..most {
            assert_eq!(dialling.want(NOBODY).dials, 1);
            dialling.dialled();
            dialling.join();
            dialling.landed();
        }
        assert_eq!(dialling.want(NOBODY).dials, 0);
        let error = dialling
            .lost(0, "cut", false, NOBODY, "x")
            .expect_err("no more");
        assert_eq!(error.kind, ErrorKind::Peer);
        assert!(
            error.sentence.contains("had all its connections"),
            "{error}"
        );
    }
}
