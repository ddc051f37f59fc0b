//! The data connections that a session wants: dialled, joined, taken in, given up.
//!
//! Leaves to others: what they carry. Invariant: nothing is dialled, joined or
//! given up but by the word of a session's machine.

use crate::planted::Bug;
use crate::rng::MILLI;
use crate::scenario::Fault;
use crate::stations::End;
use crate::world::{Event, Link, World};
use haul_engine::error::Error;
use haul_engine::limits;
use haul_engine::protocol::ConnectionId;
use haul_engine::protocol::wire::Flow;

impl World {
    pub fn dial(&mut self, end: End, count: usize) {
        let now = self.queue.now;
        let station = self.station(end);
        station.is_missing = false;
        // The first round is the transfer's own.
        let wait = match station.rounds.len() {
            0 => 0,
            redials => (100 << (redials - 1).min(10)).min(5_000) * MILLI,
        };
        if station.rounds.back().is_some_and(|last| now < last + wait) {
            self.found("a round of dials came too soon after the last one");
        }
        self.station(end).rounds.push_back(now);
        if self.bug == Some(Bug::DialForgotten) && self.next_link > 0 {
            return;
        }
        for _ in 0..count {
            let delay = self.rng.within(0..40) * MILLI;
            self.queue.after(delay, Event::Dialled(end));
        }
    }

    /// A dial is through, or failed.
    pub fn dialled(&mut self, end: End) {
        let now = self.queue.now;
        let refused = || Err(Error::peer("cannot connect", "connection refused"));
        let result = if self.disarm(Fault::DialImpossible) {
            Err(Error::local(
                "cannot set a buffer",
                "it is refused for good",
            ))
        } else if self.nobody_listens {
            self.note(Fault::NobodyListens);
            refused()
        } else if self.refusals > 0 {
            self.refusals -= 1;
            self.note(Fault::DialsRefused);
            refused()
        } else {
            Ok(())
        };
        let station = self.station(end);
        station.is_missing |= result.is_err();
        if let Some(machine) = &mut station.machine {
            machine.dialled(now, result);
        }
    }

    pub fn join(&mut self, end: End, connection: ConnectionId) {
        let now = self.queue.now;
        let latency = self.rng.within(MILLI / 10..60 * MILLI);
        self.next_link = connection + 1;
        if connection >= self.scenario.connections {
            self.disarm(Fault::Join);
        }
        let link = Link::new(latency, end, now);
        if self.links.insert(connection, link).is_some() {
            self.found(format!("connection {connection} joins twice"));
        }
        if let Some(machine) = self.machine(end) {
            machine.joined(now, connection);
        }
        if end == End::Sender {
            self.sender_joined(connection);
        }
        self.queue.after(latency, Event::Accept(connection));
    }

    /// A connection reaches the end that did not dial it.
    pub fn accept(&mut self, connection: ConnectionId) {
        let now = self.queue.now;
        let end = self.client().other();
        if self.links.get(&connection).is_none_or(|link| !link.up) || self.station(end).is_over {
            return;
        }
        let is_full = now < self.full_until;
        if is_full {
            self.note(Fault::FullPeer);
        }
        if is_full || self.disarm(Fault::JoinUnanswered) {
            // Its kernel took it in, and nobody else will.
            return;
        }
        let flow = match end {
            End::Receiver => Flow::FromDialler,
            End::Sender => Flow::ToDialler,
        };
        let station = self.station(end);
        let Some(machine) = &mut station.machine else {
            station.early_joins.push(connection);
            return;
        };
        if machine.take_in(connection, flow).is_err() {
            return self.hang_up(connection);
        }
        machine.joined(now, connection);
        if let Some(link) = self.links.get_mut(&connection) {
            link.taken_in_at = Some(now);
            match end {
                End::Sender => link.sender_has = true,
                End::Receiver => link.receiver_has = true,
            }
        }
        if end == End::Sender {
            self.sender_joined(connection);
        }
    }

    /// Both ends notice soon that it is gone.
    pub fn hang_up(&mut self, connection: ConnectionId) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.up = false;
        }
        for event in [
            Event::NoticeSender(connection),
            Event::NoticeReceiver(connection),
        ] {
            let delay = self.rng.within(1..50) * MILLI;
            self.queue.after(delay, event);
        }
    }

    pub fn give_up(&mut self, end: End, connection: ConnectionId, why: &str) {
        let now = self.queue.now;
        if why.contains("did not take it in") {
            let quiet = self.scenario.has(Fault::silences);
            if let Some(link) = self.links.get(&connection) {
                let waited = now - link.joined_at;
                let due = limits::JOINED_WAIT_NANOS_MAX;
                if !(due..=due + 1_000 * MILLI).contains(&waited) {
                    self.found(format!("a join was given up after {waited} ns"));
                } else if link.taken_in_at.is_some() && !quiet {
                    self.found("a connection was given up that was taken in");
                }
            }
            self.seen_deadline(Fault::JoinUnanswered);
        }
        if self.bug == Some(Bug::DetachForgotten) {
            return;
        }
        self.hang_up(connection);
        match end {
            End::Sender => self.notice_sender(connection),
            End::Receiver => self.close_receiver_end(connection),
        }
    }

    /// An end's session hears that its worker let go of a connection.
    pub fn detached(&mut self, end: End, connection: ConnectionId) {
        let now = self.queue.now;
        let station = self.station(end);
        station.is_missing = station.is_client;
        if let Some(machine) = &mut station.machine {
            machine.detached(now, connection, None);
        }
    }

    /// A sending worker's or receiving worker's last word on a connection.
    pub fn send_detached(&mut self, connection: ConnectionId) {
        let now = self.queue.now;
        let joined = self
            .links
            .get(&connection)
            .is_some_and(|link| link.sender_joined);
        if joined {
            self.sender.connection_lost(now, connection);
        }
        self.detached(End::Sender, connection);
    }
}
