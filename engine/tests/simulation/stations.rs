//! The two ends' sessions: their greeting, and what their machines put out.
//!
//! Leaves to others: the connections that it wants (dials), and the transfer's two
//! machines (sending, receiving). Invariant: everything that an end hears passes
//! its session first.

use crate::planted::Bug;
use crate::rng::MILLI;
use crate::scenario::Fault;
use crate::world::{Event, NEXT, TRANSFER, World};
use haul_engine::error::{Error, ErrorKind};
use haul_engine::limits;
use haul_engine::options::{RemoteSource, RemoteTarget, Transmit};
use haul_engine::protocol::session::{GreetingTime, SessionEnd, SessionMachine, SessionOutput};
use haul_engine::protocol::wire::{Begin, CheckKind, Flow, Message, Task};
use haul_engine::protocol::{ConnectionId, TransferId};
use std::collections::VecDeque;

/// What a peer without a proof is; no other error is of this kind here.
pub const UNPROVED: ErrorKind = ErrorKind::Unauthorised;

/// Which side of the data an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Sender,
    Receiver,
}

pub const ENDS: [End; 2] = [End::Sender, End::Receiver];

impl End {
    pub fn other(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }
}

/// One end of the session.
pub struct Station {
    /// A server's is there once its client has proved itself.
    pub machine: Option<SessionMachine>,
    greeting: Option<GreetingTime>,
    pub is_client: bool,
    /// Its half of the transfer runs.
    pub runs: bool,
    pub is_over: bool,
    /// When it last heard the other end, and was last told that it works.
    pub heard_at: u64,
    pub worked_at: u64,
    /// Work that its hands have, and the count that it tells.
    hands: u32,
    worked: u64,
    /// Connections that came before its session was open.
    pub early_joins: Vec<ConnectionId>,
    /// Rounds of dials in a row without success.
    pub rounds: VecDeque<u64>,
    /// A connection is missing, and no round was put out since.
    pub is_missing: bool,
    /// The client asked for the next transfer, and the server took it up.
    pub asked_again: bool,
    pub runs_next: bool,
}

impl Station {
    pub fn new(is_client: bool, connections: u32) -> Self {
        let client = SessionEnd::Client {
            connections: connections as usize,
            dialling: 0,
            unproved: UNPROVED,
        };
        Self {
            machine: is_client.then(|| SessionMachine::new(0, client, "the server".to_owned())),
            greeting: (!is_client).then(|| GreetingTime::new(0)),
            is_client,
            runs: false,
            is_over: false,
            heard_at: 0,
            worked_at: 0,
            hands: 0,
            worked: 0,
            early_joins: Vec::new(),
            rounds: VecDeque::new(),
            is_missing: false,
            asked_again: false,
            runs_next: false,
        }
    }
}

impl World {
    pub fn station(&mut self, end: End) -> &mut Station {
        match end {
            End::Sender => &mut self.at_sender,
            End::Receiver => &mut self.at_receiver,
        }
    }

    pub fn machine(&mut self, end: End) -> Option<&mut SessionMachine> {
        self.station(end).machine.as_mut()
    }

    pub fn client(&self) -> End {
        match self.scenario.sender_dials {
            true => End::Sender,
            false => End::Receiver,
        }
    }

    /// The client proves itself, and its caller asks for the transfer.
    pub fn greet(&mut self) {
        let client = self.client();
        self.tell(client, &Message::Proof([0; 32]));
        let delay = self.rng.within(0..200) * MILLI;
        self.queue.after(delay, Event::Start);
    }

    pub fn start_transfer(&mut self, transfer: TransferId) {
        let client = self.client();
        let flow = match client {
            End::Sender => Flow::FromDialler,
            End::Receiver => Flow::ToDialler,
        };
        let started = self
            .machine(client)
            .map(|machine| machine.start(transfer, flow));
        assert_eq!(started, Some(true), "nothing runs now");
        self.station(client).rounds.clear();
    }

    /// The caller's transfer starts.
    pub fn start(&mut self) {
        let client = self.client();
        if self.station(client).is_over {
            return;
        }
        self.start_transfer(TRANSFER);
        match client {
            // A push begins once its sources are open.
            End::Sender => self.open_sources(),
            End::Receiver => {
                self.station(client).runs = true;
                let sources = vec![RemoteSource::Path(b"f".to_vec())];
                let task = Task::Pull {
                    sources,
                    last: true,
                };
                let begin = begin(TRANSFER, task, self.receiver_descriptors());
                self.tell(client, &begin);
            }
        }
    }

    /// What the receiver says that its files may take, which a planted bug makes
    /// more of.
    fn receiver_descriptors(&self) -> u32 {
        match self.bug {
            Some(Bug::CreditInflated) => 400,
            _ => self.scenario.descriptors[1],
        }
    }

    fn open_sources(&mut self) {
        let delay = self.hand(End::Sender, 50);
        self.queue.after(delay, Event::SourcesOpen);
    }

    /// The sender's sources are open: its half runs.
    pub fn sources_open(&mut self) {
        self.hand_returned(End::Sender);
        if self.at_sender.is_over {
            return;
        }
        self.at_sender.runs = true;
        let message = match self.at_sender.is_client {
            true => {
                let target = RemoteTarget::Null;
                begin(
                    TRANSFER,
                    Task::Push { target },
                    self.scenario.descriptors[0],
                )
            }
            false => begun(None),
        };
        self.tell(End::Sender, &message);
        self.queue.after(0, Event::Offer);
    }

    /// Some work is with an end's hands: how long it takes, `usual_ms` at most
    /// where they are not slow.
    pub fn hand(&mut self, end: End, usual_ms: u64) -> u64 {
        self.station(end).hands += 1;
        if let Some(nanos) = self.hands_take {
            return nanos;
        }
        if self.disarm(Fault::SlowHands) {
            return self.rng.within(40..400) * 1000 * MILLI;
        }
        self.rng.within(0..usual_ms) * MILLI
    }

    /// How long an end takes to collect its report: workers may be slow to tell.
    pub fn report_delay(&mut self) -> u64 {
        let most = if self.rng.once_in(4) { 2_000 } else { 50 };
        self.rng.within(0..most) * MILLI
    }

    pub fn hand_returned(&mut self, end: End) {
        let station = self.station(end);
        station.hands -= 1;
        station.worked += 1;
    }

    /// Says something to the other end.
    pub fn tell(&mut self, end: End, message: &Message) {
        let now = self.queue.now;
        if self.station(end).is_over {
            return;
        }
        if let Message::Abort { error, .. } = message {
            self.judge_abort(end, error);
        }
        if let Some(machine) = self.machine(end) {
            machine.spoke(now);
        }
        if self.is_swallowed(message) {
            return;
        }
        let delay = self.rng.within(MILLI..90 * MILLI);
        let pipe = self.pipe(end.other());
        if !pipe.broken {
            pipe.last_at = pipe.last_at.max(now + delay);
            let (at, bytes) = (pipe.last_at, crate::wire::ControlPipe::bytes(message));
            self.queue.at(at, Event::Hear(end.other(), bytes));
        }
    }

    /// True when the word does not arrive, by a fault or a planted bug.
    fn is_swallowed(&mut self, message: &Message) -> bool {
        let forgotten = match message {
            Message::Heartbeat { .. } => self.bug == Some(Bug::HeartbeatForgotten),
            Message::Joined { .. } => self.bug == Some(Bug::JoinedForgotten),
            _ => false,
        };
        if self.drops.is_some_and(|drops| drops(message)) {
            return true;
        }
        let fault = match message {
            // Noted when it is missed.
            Message::Proof(_) => return self.armed.remove(&Fault::NoProof),
            Message::Ready(_) => return self.armed.contains(&Fault::NoReady),
            Message::Offer(_)
            | Message::Answer(_)
            | Message::Freed { .. }
            | Message::Closed { .. }
            | Message::Settled { .. }
            | Message::Names(_)
            | Message::Deleted { .. }
            | Message::Finish { .. }
            | Message::Finished { .. }
                if message.transfer() != Some(NEXT) =>
            {
                Fault::WordDropped
            }
            _ => return forgotten,
        };
        forgotten || self.disarm(fault)
    }

    /// Bytes arrive at an end.
    pub fn hear(&mut self, end: End, bytes: &[u8]) {
        let (rng, pipe) = match end {
            End::Sender => (&mut self.rng, &mut self.to_sender),
            End::Receiver => (&mut self.rng, &mut self.to_receiver),
        };
        let messages = pipe.read(rng, bytes);
        for message in messages {
            self.hear_message(end, message);
        }
    }

    fn hear_message(&mut self, end: End, message: Message) {
        let now = self.queue.now;
        let lets_go_early = self.bug == Some(Bug::EndToldEarly);
        let station = self.station(end);
        if station.is_over {
            return;
        }
        station.heard_at = now;
        if matches!(message, Message::Joined { .. }) {
            station.rounds.clear();
        }
        if let (true, Some(machine), Message::Begin(_)) =
            (lets_go_early, &mut station.machine, &message)
        {
            machine.transfer_ended();
        }
        match (&mut station.machine, message) {
            (None, Message::Proof(_)) => self.open_session(end),
            // Nobody listens before the proof.
            (None, _) => {}
            (Some(machine), message) => {
                if let Some(message) = machine.handle_message(now, message) {
                    self.hear_transfer(end, message);
                }
            }
        }
    }

    fn open_session(&mut self, end: End) {
        let now = self.queue.now;
        let station = self.station(end);
        station.greeting = None;
        let machine = SessionMachine::new(now, SessionEnd::Server, "the client".to_owned());
        station.machine = Some(machine);
        let early = std::mem::take(&mut station.early_joins);
        self.tell(end, &Message::Ready([0; 32]));
        for connection in early {
            self.accept(connection);
        }
    }

    /// A word for the transfer, or a proof.
    fn hear_transfer(&mut self, end: End, message: Message) {
        if message.transfer() == Some(NEXT) {
            return self.hear_next(end, &message);
        }
        match &message {
            Message::Ready(_) => {
                if let Some(machine) = self.machine(end) {
                    machine.proved();
                }
                return;
            }
            Message::Begun {
                descriptors_max, ..
            } => {
                if let Some(most) = descriptors_max {
                    self.sender.allow(*most);
                }
                return;
            }
            Message::Landed { .. } => self.landed(end),
            _ => {}
        }
        self.station(end).worked_at = self.queue.now;
        match end {
            End::Sender => self.sender_hears(message),
            End::Receiver => self.receiver_hears(message),
        }
    }

    /// Chunks landed: rounds of dials begin anew.
    pub fn landed(&mut self, end: End) {
        let station = self.station(end);
        station.rounds.clear();
        if let Some(machine) = &mut station.machine {
            machine.landed();
        }
    }

    /// An end's half of the transfer is over; the client's caller has what it
    /// wanted, and closes.
    pub fn transfer_ended(&mut self, end: End) {
        let asks_again = self.scenario.asks_again;
        let station = self.station(end);
        let closes = station.is_client;
        if let Some(machine) = &mut station.machine {
            machine.transfer_ended();
        }
        if closes && asks_again && !station.is_over && !station.asked_again {
            self.ask_again(end);
        } else if closes {
            let delay = match self.drops {
                // Nothing else is to end what the other end waits for.
                Some(_) => 2 * limits::WORD_WAIT_NANOS_MAX,
                None => self.rng.within(0..3000) * MILLI,
            };
            self.queue.after(delay, Event::Close(end));
        }
    }

    /// An end's caller closes its session.
    pub fn close(&mut self, end: End) {
        if let Some(machine) = self.machine(end) {
            machine.close();
        }
    }

    /// The other end, or the network, closed the control connection.
    pub fn closed(&mut self, end: End, error: Option<Error>) {
        match self.machine(end) {
            Some(machine) => machine.closed_by_peer(error),
            None => self.session_over(end, error),
        }
    }

    /// What the session's machine is told as the time, which a planted bug gets
    /// wrong.
    fn time_at(&mut self, end: End) -> u64 {
        let now = self.queue.now;
        let is_missing = self.station(end).is_missing;
        match self.bug {
            Some(Bug::ClockStandsStill) => 0,
            Some(Bug::RoundsAhead) if is_missing => now + 5_000 * MILLI,
            _ => now,
        }
    }

    /// Carries one thing out that an end's session wants; false where there is
    /// nothing.
    pub fn pump_station(&mut self, end: End) -> bool {
        let time = self.time_at(end);
        let station = self.station(end);
        if station.is_over {
            return false;
        }
        if let Some(error) = station
            .greeting
            .and_then(|greeting| greeting.overdue(time, "the client"))
        {
            self.miss_greeting(Fault::NoProof);
            self.session_over(end, Some(error));
            return true;
        }
        let output = self.machine(end).and_then(|machine| machine.poll(time));
        let some = output.is_some();
        if let Some(output) = output {
            self.carry_session(end, output);
        }
        some
    }

    /// When an end has to be polled at the latest.
    pub fn deadline(&mut self, end: End) -> u64 {
        let station = self.station(end);
        if station.is_over {
            return u64::MAX;
        }
        let greeting = station.greeting.map_or(u64::MAX, |greeting| greeting.due());
        let machine = station.machine.as_ref();
        machine.map_or(greeting, SessionMachine::deadline)
    }

    /// A second passed, or something is due.
    pub fn tick(&mut self) {
        for end in ENDS {
            let forgotten = self.bug == Some(Bug::CountForgotten);
            let sends = end == End::Sender && self.sender.is_sending();
            let station = self.station(end);
            let lets_go = station
                .machine
                .as_ref()
                .is_some_and(SessionMachine::is_letting_go);
            if station.hands > 0 || lets_go || sends {
                station.worked += 1;
            }
            let worked = if forgotten { 0 } else { station.worked };
            if let Some(machine) = &mut station.machine {
                machine.worked(worked);
            }
        }
    }

    fn carry_session(&mut self, end: End, output: SessionOutput) {
        match output {
            SessionOutput::Message(message) => self.tell(end, &message),
            SessionOutput::Dial { count } => self.dial(end, count),
            SessionOutput::Join { connection, .. } => self.join(end, connection),
            SessionOutput::Detach { connection, why } => self.give_up(end, connection, why),
            SessionOutput::Begin(begin) if begin.transfer == NEXT => self.begin_next(end),
            SessionOutput::Begin(begin) => match end {
                End::Sender => {
                    self.sender.allow(begin.descriptors_max.unwrap_or(0));
                    self.open_sources();
                }
                End::Receiver => {
                    self.station(end).runs = true;
                    let begun = begun(Some(self.receiver_descriptors()));
                    self.tell(end, &begun);
                }
            },
            SessionOutput::Transfer(message) => self.hear_transfer(end, message),
            SessionOutput::PeerWorks => {
                self.station(end).worked_at = self.queue.now;
                match end {
                    End::Sender => self.sender.peer_works(),
                    End::Receiver => self.receiver.peer_works(),
                }
            }
            SessionOutput::Stop(error) => {
                if error.sentence.contains("proved nothing in time") {
                    self.miss_greeting(Fault::NoReady);
                }
                match end {
                    End::Sender => self.sender.stop(error),
                    End::Receiver => self.receiver.stop(error),
                }
            }
            SessionOutput::End(error) => self.session_over(end, error),
        }
    }

    /// An end's session is over: its connections go, and the other end hears it
    /// where anything is heard.
    fn session_over(&mut self, end: End, error: Option<Error>) {
        let now = self.queue.now;
        if self.station(end).is_over {
            return;
        }
        self.judge_session_end(end, error.as_ref());
        let station = self.station(end);
        station.is_over = true;
        let never_ran = !station.runs;
        let pipe = self.pipe(end.other());
        if !pipe.broken {
            let at = pipe.last_at.max(now);
            self.queue.at(at, Event::Closed(end.other(), None));
        }
        let links: Vec<ConnectionId> = self.links.keys().copied().collect();
        for connection in links {
            if self.links[&connection].up {
                self.hang_up(connection);
            }
        }
        if never_ran {
            let closed = || Error::peer("cannot go on", "the session was closed");
            let end_of_it = Err(error.unwrap_or_else(closed));
            match end {
                End::Sender => self.ends.sender = Some(end_of_it),
                End::Receiver => self.ends.receiver = Some(end_of_it),
            }
        }
    }

    /// A greeting did not come in time: whichever fault that was took effect.
    fn miss_greeting(&mut self, deadline: Fault) {
        self.seen_deadline(deadline);
        for fault in [Fault::NoProof, Fault::NoReady] {
            if self.scenario.has(|own| own == fault) {
                self.note(fault);
            }
        }
    }

    /// A transfer that ends as nothing came of what is owed does so on time.
    fn judge_abort(&mut self, end: End, error: &Error) {
        let now = self.queue.now;
        if error.sentence.contains("redials in a row failed") {
            self.seen_deadline(Fault::NobodyListens);
        }
        let blamed = match end {
            End::Sender => "the receiver got no further",
            End::Receiver => "the sender got no further",
        };
        if !error.sentence.contains(blamed) {
            return;
        }
        let waited = now - self.station(end).worked_at;
        if waited < limits::WORD_WAIT_NANOS_MAX {
            self.found(format!("{end:?} gave up after {waited} ns: {error}"));
        }
        self.gave_up_at = Some(now);
        self.seen_deadline(Fault::WordDropped);
    }

    /// A session that ends by a deadline does so on time.
    fn judge_session_end(&mut self, end: End, error: Option<&Error>) {
        let Some(error) = error else { return };
        let now = self.queue.now;
        let heard_at = self.station(end).heard_at;
        let (since, due, fault) = if error.sentence.contains("silent for") {
            (heard_at, limits::SILENCE_NANOS_MAX, Fault::Silence)
        } else if error.sentence.contains("proved nothing in time") {
            (0, limits::GREETING_WAIT_NANOS_MAX, Fault::NoReady)
        } else {
            return;
        };
        if !(since + due..=since + due + 1_000 * MILLI).contains(&now) {
            self.found(format!(
                "it ended at {now} and not {due} after {since}: {error}"
            ));
        }
        self.seen_deadline(fault);
    }
}

pub fn begin(transfer: TransferId, task: Task, descriptors_max: u32) -> Message {
    Message::Begin(Begin {
        tree: haul_engine::options::TreeOptions::default(),
        rules: haul_engine::options::TargetRules::default(),
        transfer,
        task,
        chunk_bytes: limits::CHUNK_BYTES_MIN,
        check: CheckKind::Xxh3,
        fsync: true,
        verify: false,
        drop_cache: false,
        digest: None,
        transmit: Transmit::Auto,
        window_bytes: None,
        descriptors_max: Some(descriptors_max),
        rate_limit_bytes_per_second: None,
    })
}

fn begun(descriptors_max: Option<u32>) -> Message {
    Message::Begun {
        transfer: TRANSFER,
        window_bytes: None,
        descriptors_max,
    }
}
