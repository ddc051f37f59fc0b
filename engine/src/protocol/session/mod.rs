//! A session after its greeting, as a state machine: who is there, who dials,
//! which transfer is next, and when it is over.
//!
//! Leaves to others: sockets, clocks, proofs, and the two sides of a transfer.
//! Invariant: every wait of a session has an end here, and nothing is put out
//! once it is over.

mod dialling;
mod joins;
mod liveness;
#[cfg(test)]
mod tests;
mod transfers;

pub use joins::Way;
pub use liveness::GreetingTime;

use super::wire::{Begin, Flow, Message};
use super::{ConnectionId, Nanos, TransferId};
use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use dialling::{Dialling, Here};
use joins::Joins;
use liveness::Liveness;
use std::collections::VecDeque;
use transfers::{Taken, Transfers};

/// Why a dialled connection is given up whose peer never said Joined.
const NOT_TAKEN_IN: &str = "the peer did not take it in (has it reached its limit of open files?)";
/// Why one goes that the peer gave up.
pub const PEER_LOST_IT: &str = "the peer has lost it";

/// Which end of the session this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// It dials.
    Client {
        /// Data connections that a transfer wants.
        connections: usize,
        /// Dials that are under way already.
        dialling: usize,
        /// What a server is that does not prove itself in time.
        unproved: ErrorKind,
    },
    /// It was dialled, and the client has proved what it had to.
    Server,
}

/// What the session's caller is to do.
#[derive(Clone, Debug)]
pub enum SessionOutput {
    /// Say this on the control connection.
    Message(Message),
    /// Dial so many data connections; each answered by [`SessionMachine::dialled`].
    Dial {
        /// How many.
        count: usize,
    },
    /// Join a socket that was dialled, the oldest first; where that fails,
    /// [`SessionMachine::join_failed`] says so.
    Join {
        /// Its number from now on.
        connection: ConnectionId,
        /// Which way it carries.
        flow: Flow,
    },
    /// End this connection at once; [`SessionMachine::detached`] follows.
    Detach {
        /// Which.
        connection: ConnectionId,
        /// Why.
        why: &'static str,
    },
    /// Take this transfer up; [`SessionMachine::transfer_ended`] follows some day.
    Begin(Begin),
    /// A word for the running transfer that came before it ran.
    Transfer(Message),
    /// The peer works on what it owes: whatever is awaited has its time again.
    PeerWorks,
    /// The running transfer ends with this.
    Stop(Error),
    /// The last output: the session is over, by this error, or because it was
    /// closed. A transfer that runs was stopped before.
    End(Option<Error>),
}

/// One session, seen from one end.
pub struct SessionMachine {
    peer: String,
    liveness: Liveness,
    joins: Joins,
    transfers: Transfers,
    /// The client's.
    dialling: Option<Dialling>,
    is_over: bool,
    outputs: VecDeque<SessionOutput>,
}

impl SessionMachine {
    /// A session that begins now with `peer`, as sentences name it.
    #[must_use]
    pub fn new(now: Nanos, end: SessionEnd, peer: String) -> Self {
        let (dialling, unproved) = match end {
            SessionEnd::Client {
                connections,
                dialling,
                unproved,
            } => (Some(Dialling::new(connections, dialling)), Some(unproved)),
            SessionEnd::Server => (None, None),
        };
        Self {
            peer,
            liveness: Liveness::new(now, unproved),
            joins: Joins::default(),
            transfers: Transfers::default(),
            dialling,
            is_over: false,
            outputs: VecDeque::new(),
        }
    }

    /// Takes a message. What comes back is for the running transfer, or a
    /// `Ready`, whose proof the caller judges.
    pub fn handle_message(&mut self, now: Nanos, message: Message) -> Option<Message> {
        self.liveness.heard(now);
        if self.is_over {
            return None;
        }
        let greets = matches!(
            message,
            Message::Ready(_) | Message::Refuse(_) | Message::Heartbeat { .. }
        );
        if !greets
            && let Some(error) = self
                .liveness
                .unproved(&self.peer, "it goes on without a proof")
        {
            // Not a byte of payload before: who it is stands on this alone.
            self.refuse(error);
            return None;
        }
        match message {
            Message::Heartbeat { worked } => {
                if self.liveness.peer_worked(worked) {
                    self.outputs.push_back(SessionOutput::PeerWorks);
                }
                None
            }
            Message::Refuse(error) => {
                let error = self.transfers.told(error);
                self.end(Some(error));
                None
            }
            Message::Ready(_) => {
                if self.liveness.unproved(&self.peer, "").is_some() {
                    return Some(message);
                }
                self.refuse_message("it greeted twice");
                None
            }
            Message::Joined { connection } => {
                self.joins.answered(connection);
                if let Some(dialling) = &mut self.dialling {
                    dialling.taken_in(now);
                }
                None
            }
            Message::Lost { connection } | Message::Freed { connection } => {
                if self.transfers.is_busy() {
                    return self.behind_begin(message);
                }
                // Between transfers nothing of it is awaited.
                self.bar(connection);
                None
            }
            message => self.handle_transfer_message(message),
        }
    }

    /// A message that names a transfer, or none that it may.
    fn handle_transfer_message(&mut self, message: Message) -> Option<Message> {
        let serves = self.dialling.is_none();
        match (message, serves) {
            (Message::Begin(begin), true) => {
                let transfer = begin.transfer;
                match self.transfers.begin(begin) {
                    Taken::Now(begin) => self.outputs.push_back(SessionOutput::Begin(begin)),
                    Taken::Kept => {}
                    Taken::Refused(error) => self.say(Message::Abort { transfer, error }),
                }
                None
            }
            (Message::Begin(_) | Message::EndStreams { .. }, false) => {
                self.refuse_message("it sent a message that belongs to no transfer");
                None
            }
            (message, _) => {
                let Some(transfer) = message.transfer() else {
                    self.refuse_message("it sent a message that belongs to no transfer");
                    return None;
                };
                let message = match message {
                    Message::Abort { transfer, error } => Message::Abort {
                        transfer,
                        error: self.transfers.told(error),
                    },
                    message => message,
                };
                // Messages of a transfer that is over are late, not wrong.
                if self.transfers.runs(transfer) {
                    return self.behind_begin(message);
                }
                if let Some(answer) = self.transfers.keep(transfer, message) {
                    self.say(answer);
                }
                None
            }
        }
    }

    /// The message, or nothing where it has to wait behind what was not put out yet
    /// of its transfer's begin.
    fn behind_begin(&mut self, message: Message) -> Option<Message> {
        let begins = |output: &SessionOutput| {
            matches!(output, SessionOutput::Begin(_) | SessionOutput::Transfer(_))
        };
        if self.outputs.iter().any(begins) {
            self.outputs.push_back(SessionOutput::Transfer(message));
            return None;
        }
        Some(message)
    }

    /// The server's proof holds.
    pub fn proved(&mut self) {
        self.liveness.proved();
    }

    /// Nothing more comes on the control connection: a clean end has no error.
    pub fn closed_by_peer(&mut self, error: Option<Error>) {
        match error {
            // Where it is what was said that ends it, the peer hears why.
            Some(error) => self.refuse(error),
            None => self.end(None),
        }
    }

    /// What the peer said makes no sense, or does not hold: it hears why.
    pub fn refuse(&mut self, error: Error) {
        if !self.is_over {
            self.say(Message::Refuse(error.clone()));
            self.end(Some(error));
        }
    }

    /// This end closes; a server that does so with a transfer running says that
    /// it was stopped.
    pub fn close(&mut self) {
        if self.is_over {
            return;
        }
        if self.dialling.is_none() && self.transfers.is_busy() {
            let error = Error::peer("cannot finish the transfer", "the server was stopped");
            self.outputs.push_back(SessionOutput::Stop(error.clone()));
            self.say(Message::Refuse(error));
        }
        self.end(None);
    }

    /// Something was said on the control connection.
    pub fn spoke(&mut self, now: Nanos) {
        self.liveness.spoke(now);
    }

    /// How far this end's work is on words that it owes: any count that changes
    /// while it gets further.
    pub fn worked(&mut self, count: u64) {
        self.liveness.worked(count);
    }

    /// Chunks landed, here or there.
    pub fn landed(&mut self) {
        if let Some(dialling) = &mut self.dialling {
            dialling.landed();
        }
    }

    /// A caller's transfer begins, and wants connections that carry this way;
    /// false where another still runs.
    pub fn start(&mut self, transfer: TransferId, flow: Flow) -> bool {
        if self.transfers.is_busy() {
            return false;
        }
        self.transfers.start(transfer, flow == Flow::FromDialler);
        if let Some(dialling) = &mut self.dialling {
            dialling.begin(flow);
            let wanted = dialling.connections();
            self.make_room(Way::of(flow, true), wanted);
        }
        self.want_connections();
        true
    }

    /// The running transfer is over at this end.
    pub fn transfer_ended(&mut self) {
        if let Some(dialling) = &mut self.dialling {
            dialling.end();
        }
        if let Some((begin, words)) = self.transfers.end()
            && !self.is_over
        {
            self.outputs.push_back(SessionOutput::Begin(begin));
            let words = words.into_iter().map(SessionOutput::Transfer);
            self.outputs.extend(words);
        }
    }

    /// A connection was dialled, or could not be.
    pub fn dialled(&mut self, now: Nanos, result: Result<()>) {
        let here = self.here();
        let Some(dialling) = &mut self.dialling else {
            return;
        };
        match result {
            Ok(()) => {
                dialling.dialled();
                if dialling.flow().is_some() {
                    self.join();
                }
            }
            Err(error) => {
                let failed = dialling.dial_failed(now, error, here, &self.peer);
                self.stop_where(failed);
            }
        }
    }

    /// A connection that the peer dialled wants to join; its proof holds. What
    /// comes of it is told as of a dialled one.
    ///
    /// # Errors
    /// Its number is used up, or there are as many as there may be.
    pub fn take_in(&mut self, connection: ConnectionId, flow: Flow) -> Result<()> {
        self.joins.enter(connection, Way::of(flow, false))
    }

    /// A connection is in the session at this end. The end that dialled gives the
    /// other one time to take it in, too; the other one says that it did.
    pub fn joined(&mut self, now: Nanos, connection: ConnectionId) {
        match self.dialling {
            Some(_) => self.joins.await_answer(now, connection),
            None => self.say(Message::Joined { connection }),
        }
    }

    /// A connection could not be used. Where no wait can cure that, the running
    /// transfer ends, at whichever end it is.
    pub fn join_failed(&mut self, now: Nanos, connection: ConnectionId, error: Error) {
        self.joins.leave(connection);
        let here = self.here();
        let failed = match &mut self.dialling {
            Some(dialling) => dialling.failed(now, error, here, &self.peer),
            None if error.passes || !self.transfers.is_busy() => Ok(()),
            None => Err(self.transfers.own(error)),
        };
        self.stop_where(failed);
    }

    /// The connection's worker has let go of it: by an error, or because the peer
    /// closed it between two frames.
    pub fn detached(&mut self, now: Nanos, connection: ConnectionId, cause: Option<Error>) {
        let missed = self.joins.leave(connection);
        let here = self.here();
        let is_busy = self.transfers.is_busy();
        let why = match cause {
            // What is missing here, the next one would miss, too.
            Some(error) if !error.passes && is_busy => {
                return self.stop_where(Err(self.transfers.own(error)));
            }
            Some(error) => error.to_string(),
            None => "it was closed".to_owned(),
        };
        if let Some(dialling) = &mut self.dialling {
            let lost = dialling.lost(now, &why, missed, here, &self.peer);
            self.stop_where(lost);
            self.join();
        }
    }

    /// Sees to it that the connection cannot join any more, and ends it where it
    /// did; true in that case.
    pub fn bar(&mut self, connection: ConnectionId) -> bool {
        let is_here = self.joins.bar(connection);
        if is_here {
            self.outputs.push_back(SessionOutput::Detach {
                connection,
                why: PEER_LOST_IT,
            });
        }
        is_here
    }

    /// True while a connection that the peer has lost is not let go of: its last
    /// writes may take what a disk takes, and the peer waits for it.
    #[must_use]
    pub fn is_letting_go(&self) -> bool {
        self.joins.is_letting_go()
    }

    /// What to do next; `None` until something is handed in, or time passed.
    pub fn poll(&mut self, now: Nanos) -> Option<SessionOutput> {
        if !self.is_over {
            self.see_to_deadlines(now);
        }
        self.outputs.pop_front()
    }

    /// When to poll again at the latest.
    #[must_use]
    pub fn deadline(&self) -> Nanos {
        if self.is_over {
            return Nanos::MAX;
        }
        let dialling = self
            .dialling
            .as_ref()
            .map_or(Nanos::MAX, Dialling::deadline);
        let due = self.liveness.deadline().min(self.joins.deadline());
        due.min(dialling)
    }

    fn see_to_deadlines(&mut self, now: Nanos) {
        if self.liveness.was_stopped(now) {
            self.joins.excuse(now);
            self.outputs.push_back(SessionOutput::PeerWorks);
        }
        if let Some(error) = self.liveness.overdue(now, &self.peer) {
            return self.end(Some(error));
        }
        if let Some(worked) = self.liveness.heartbeat(now) {
            self.say(Message::Heartbeat { worked });
        }
        while let Some(connection) = self.joins.missed(now) {
            self.outputs.push_back(SessionOutput::Detach {
                connection,
                why: NOT_TAKEN_IN,
            });
        }
        let is_due = |dialling: &mut Dialling| dialling.round_due(now);
        if self.dialling.as_mut().is_some_and(is_due) {
            self.want_connections();
        }
    }

    /// Connections that carry the other way go where they take the places of
    /// those that are wanted.
    fn make_room(&mut self, way: Way, wanted: usize) {
        let other = match way {
            Way::Out => Way::In,
            Way::In => Way::Out,
        };
        let most = (limits::CONNECTIONS_MAX as usize).saturating_sub(wanted);
        let surplus = self.joins.of_way(other).skip(most);
        let detach = surplus.map(|connection| SessionOutput::Detach {
            connection,
            why: "its place is needed for one that carries the other way",
        });
        self.outputs.extend(detach);
    }

    fn want_connections(&mut self) {
        let here = self.here();
        let Some(dialling) = &mut self.dialling else {
            return;
        };
        let wanted = dialling.want(here);
        if wanted.dials > 0 {
            let count = wanted.dials;
            self.outputs.push_back(SessionOutput::Dial { count });
        }
        for _ in 0..wanted.joins {
            self.join();
        }
    }

    /// A dialled socket joins the running transfer's connections.
    fn join(&mut self) {
        let Some(dialling) = &mut self.dialling else {
            return;
        };
        // Without room it waits until another is gone.
        if let Some(flow) = dialling.flow()
            && self.joins.has_room()
            && let Some(connection) = dialling.join()
            && self.joins.enter(connection, Way::of(flow, true)).is_ok()
        {
            self.outputs
                .push_back(SessionOutput::Join { connection, flow });
        }
    }

    /// The connections of the running transfer's way.
    fn here(&self) -> Here {
        let flow = self.dialling.as_ref().and_then(Dialling::flow);
        let Some(way) = flow.map(|flow| Way::of(flow, true)) else {
            return Here::default();
        };
        Here {
            count: self.joins.count(way),
            answered: self.joins.answered_count(way),
        }
    }

    fn say(&mut self, message: Message) {
        self.outputs.push_back(SessionOutput::Message(message));
    }

    fn refuse_message(&mut self, why: &str) {
        let error = Error::peer(format!("cannot go on with {}", self.peer), why);
        self.refuse(error);
    }

    fn stop_where(&mut self, failed: Result<()>) {
        if let Err(error) = failed {
            self.outputs.push_back(SessionOutput::Stop(error));
        }
    }

    fn end(&mut self, error: Option<Error>) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        if self.transfers.is_busy() {
            let gone = || {
                let doing = format!("lost the connection to {}", self.peer);
                Error::peer(doing, "it was closed")
            };
            let error = error.clone().unwrap_or_else(gone);
            self.outputs.push_back(SessionOutput::Stop(error));
        }
        self.outputs.push_back(SessionOutput::End(error));
    }
}
