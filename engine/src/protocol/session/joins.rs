//! Which data connections a session has, and which of them its peer has, too.
//!
//! Leaves to others: their sockets and the workers that drive them. Invariant:
//! a number joins once, and a connection is here from its joining until it is
//! told to be gone.

use crate::error::{Error, Result};
use crate::limits;
use crate::protocol::wire::Flow;
use crate::protocol::{ConnectionId, Nanos};
use std::collections::{BTreeMap, BTreeSet};

/// Which way a connection carries frames, seen from this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From here.
    Out,
    /// To here.
    In,
}

impl Way {
    /// Seen from the dialler or from the accepter.
    #[must_use]
    pub fn of(flow: Flow, dialled: bool) -> Self {
        if (flow == Flow::FromDialler) == dialled {
            Self::Out
        } else {
            Self::In
        }
    }
}

/// What the peer said to a connection that was dialled here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JoinAnswer {
    /// Joined, or it was accepted here.
    Given,
    /// Nothing since then.
    Awaited(Nanos),
    /// Nothing in time.
    Missed,
}

/// The connections of one session.
#[derive(Debug, Default)]
pub(super) struct Joins {
    here: BTreeMap<ConnectionId, (Way, JoinAnswer)>,
    used: BTreeSet<ConnectionId>,
    /// Of those that are here, the ones that the peer has lost.
    leaving: BTreeSet<ConnectionId>,
}

impl Joins {
    /// True where one more may be here.
    pub fn has_room(&self) -> bool {
        self.here.len() < limits::CONNECTIONS_MAX as usize
    }

    /// One joins, under a number that no other had.
    ///
    /// # Errors
    /// The number is used up, or there are as many as there may be.
    pub fn enter(&mut self, connection: ConnectionId, way: Way) -> Result<()> {
        if !self.has_room()
            || self.used.len() >= limits::JOINS_MAX as usize
            || !self.used.insert(connection)
        {
            return Err(Error::peer(
                format!("cannot take data connection {connection} in"),
                "its number was used before, or there are too many",
            ));
        }
        self.here.insert(connection, (way, JoinAnswer::Given));
        Ok(())
    }

    /// From now on the peer has to say Joined to it in time: a kernel takes
    /// connections in for a process that has no descriptor left for them.
    pub fn await_answer(&mut self, now: Nanos, connection: ConnectionId) {
        if let Some((_, answer)) = self.here.get_mut(&connection) {
            *answer = JoinAnswer::Awaited(now);
        }
    }

    /// The peer took it in.
    pub fn answered(&mut self, connection: ConnectionId) {
        if let Some((_, answer @ JoinAnswer::Awaited(_))) = self.here.get_mut(&connection) {
            *answer = JoinAnswer::Given;
        }
    }

    /// One, once, that the peer did not take in in time.
    pub fn missed(&mut self, now: Nanos) -> Option<ConnectionId> {
        let overdue = |(_, (_, answer)): &(&ConnectionId, &mut (Way, JoinAnswer))| match answer {
            JoinAnswer::Awaited(since) => now >= answer_due(*since),
            JoinAnswer::Given | JoinAnswer::Missed => false,
        };
        let (connection, (_, answer)) = self.here.iter_mut().find(overdue)?;
        *answer = JoinAnswer::Missed;
        Some(*connection)
    }

    /// Gives those that are awaited their time again.
    pub fn excuse(&mut self, now: Nanos) {
        for (_, answer) in self.here.values_mut() {
            if let JoinAnswer::Awaited(since) = answer {
                *since = now;
            }
        }
    }

    /// Sees to it that the connection cannot join any more: its peer has lost it,
    /// and what it carries is sent again by another. True where it did: it is to be
    /// let go of.
    pub fn bar(&mut self, connection: ConnectionId) -> bool {
        // More than may join are refused without being known.
        if self.used.len() < limits::JOINS_MAX as usize {
            self.used.insert(connection);
        }
        let is_here = self.here.contains_key(&connection);
        if is_here {
            self.leaving.insert(connection);
        }
        is_here
    }

    /// True while one is here that the peer has lost.
    pub fn is_letting_go(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// It is gone; true where the peer never took it in.
    pub fn leave(&mut self, connection: ConnectionId) -> bool {
        self.leaving.remove(&connection);
        let left = self.here.remove(&connection);
        left.is_some_and(|(_, answer)| answer == JoinAnswer::Missed)
    }

    /// Those of one way, ascending.
    pub fn of_way(&self, way: Way) -> impl Iterator<Item = ConnectionId> {
        let of_way = self.here.iter().filter(move |(_, (own, _))| *own == way);
        of_way.map(|(connection, _)| *connection)
    }

    pub fn count(&self, way: Way) -> usize {
        self.of_way(way).count()
    }

    /// How many of one way the peer is known to have, too.
    pub fn answered_count(&self, way: Way) -> usize {
        let answered =
            |&&(own, answer): &&(Way, JoinAnswer)| own == way && answer == JoinAnswer::Given;
        self.here.values().filter(answered).count()
    }

    /// When the next answer is overdue.
    pub fn deadline(&self) -> Nanos {
        let due = self.here.values().filter_map(|(_, answer)| match answer {
            JoinAnswer::Awaited(since) => Some(answer_due(*since)),
            JoinAnswer::Given | JoinAnswer::Missed => None,
        });
        due.min().unwrap_or(Nanos::MAX)
    }
}

fn answer_due(since: Nanos) -> Nanos {
    since.saturating_add(limits::JOINED_WAIT_NANOS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_joins_once_and_a_barred_one_never() {
        let mut joins = Joins::default();
        assert!(!joins.bar(3) && !joins.is_letting_go());
        assert!(joins.enter(3, Way::In).is_err(), "its chunks are another's");
        joins.enter(4, Way::In).expect("a fresh number");
        assert!(joins.enter(4, Way::In).is_err());
        assert!(joins.bar(4) && joins.is_letting_go());
        joins.leave(4);
        assert!(!joins.is_letting_go());
        assert!(joins.enter(4, Way::In).is_err(), "its number is used up");
        let full = limits::CONNECTIONS_MAX;
        (10..10 + full).for_each(|number| joins.enter(number, Way::In).expect("room"));
        assert!(joins.enter(10 + full, Way::In).is_err(), "too many at once");
    }

    #[test]
    fn who_is_not_taken_in_in_time_is_missed_once() {
        let mut joins = Joins::default();
        for connection in 0..2 {
            joins.enter(connection, Way::Out).expect("a fresh number");
            joins.await_answer(0, connection);
        }
        let due = limits::JOINED_WAIT_NANOS_MAX;
        joins.answered(0);
        assert_eq!((joins.answered_count(Way::Out), joins.deadline()), (1, due));
        assert_eq!(joins.missed(due - 1), None);
        assert_eq!(joins.missed(due), Some(1));
        assert_eq!(joins.missed(due), None);
        // A word that comes too late mends nothing.
        joins.answered(1);
        assert!(joins.leave(1) && !joins.leave(0));
    }

    #[test]
    fn ways_are_seen_from_either_end() {
        assert_eq!(Way::of(Flow::FromDialler, true), Way::Out);
        assert_eq!(Way::of(Flow::FromDialler, false), Way::In);
        assert_eq!(Way::of(Flow::ToDialler, true), Way::In);
        assert_eq!(Way::of(Flow::ToDialler, false), Way::Out);
    }
}
