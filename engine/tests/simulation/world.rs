//! The simulated world: four shipped state machines, and everything around them.
//!
//! Leaves to others: the sessions (stations), the workers (sending, receiving),
//! what goes wrong
//! (faults) and what must hold (judge). Invariant: nothing happens but by an
//! event of the queue, so a seed tells the whole story.

use crate::planted::Bug;
use crate::receiving::{Landing, Opened};
use crate::rng::{MILLI, Queue, Rng};
use crate::scenario::{Fault, FileSpec, Phase, Scenario, When};
use crate::sending::Outgoing;
use crate::stations::{ENDS, End, Station};
use crate::wire::{ControlPipe, FileKey, Item, Source, Target};
use haul_engine::error::Error;
use haul_engine::limits;
use haul_engine::protocol::check::CheckSeed;
use haul_engine::protocol::credit::Cut;
use haul_engine::protocol::plan::Plan;
use haul_engine::protocol::receiver::{Receiver, ReceiverConfig};
use haul_engine::protocol::sender::{Looked, Sender, SenderConfig};
use haul_engine::protocol::wire::{ChunkRange, Entry, EntryKind, Message, Touched};
use haul_engine::protocol::{ChunkId, ConnectionId, FileId, Run, SegmentId, TransferId};
use haul_engine::report::Level;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const TRANSFER: TransferId = TransferId([7; 16]);
/// The one that the client may ask for behind it, which the server does not want.
pub const NEXT: TransferId = TransferId([8; 16]);
/// More events than any honest run needs.
const STEPS_MAX: u64 = 400_000;
/// More time than any of them takes.
const TIME_MAX: u64 = 3_600_000 * MILLI;

/// Everything that can happen.
#[derive(Debug)]
pub enum Event {
    /// Control bytes arrive, or none any more.
    Hear(End, Vec<u8>),
    Closed(End, Option<Error>),
    /// The caller asks for the transfer, and lets go of the session.
    Start,
    Close(End),
    SourcesOpen,
    /// A dial of that end is through.
    Dialled(End),
    /// Time passes.
    Tick,
    /// The sending worker goes on with this connection.
    SendStep(ConnectionId),
    Arrive(ConnectionId, Item),
    WriteDone(u64),
    /// A worker's event reaches its control thread.
    SendNews(SendNews),
    ReceiveNews(ReceiveNews),
    /// The hands are done.
    Prepared(SegmentId),
    /// They read a part of the names in the end.
    NamesRead,
    /// The receiving hands deleted by a part of these.
    Deleted(u32),
    /// The sending hands opened what is wanted of a segment.
    SourcesOpened(SegmentId),
    SettleDone(FileKey, u64, Option<Touched>),
    Looked(FileKey, Option<Result<Looked, Error>>),
    Rechecked(SegmentId, ChunkId),
    DiscardDone(FileKey),
    FinishSender,
    FinishReceiver,
    /// The world goes on.
    Offer,
    Come(SegmentId),
    Accept(ConnectionId),
    NoticeSender(ConnectionId),
    NoticeReceiver(ConnectionId),
    Strike(usize),
    OpenLate(SegmentId),
    Pump,
}

#[derive(Debug)]
pub enum SendNews {
    Sent(ConnectionId, Run, u64, Vec<[u8; 16]>),
    Void(FileKey, ChunkRange),
    Detached(ConnectionId),
}

#[derive(Debug)]
pub enum ReceiveNews {
    Landed(ConnectionId, SegmentId, ChunkRange, u64),
    Damaged(SegmentId, ChunkId),
    Drained(SegmentId, ChunkRange),
    Failed(FileKey),
    Detached(ConnectionId),
}

/// A data connection, both ends.
pub struct Link {
    pub up: bool,
    pub latency: u64,
    pub last_arrival: u64,
    // The sender's end.
    pub sender_has: bool,
    pub sender_joined: bool,
    pub queue: VecDeque<(Run, Option<u64>)>,
    pub current: Option<Outgoing>,
    pub stepping: bool,
    /// Runs handed over and not told as sent.
    pub unsent: usize,
    // The receiver's end.
    pub receiver_has: bool,
    pub closing: bool,
    pub landing: Option<Landing>,
    pub outstanding: usize,
    /// When it was joined where it was dialled, and taken in at the other end.
    pub joined_at: u64,
    pub taken_in_at: Option<u64>,
}

impl Link {
    /// One that `end` dialled.
    pub fn new(latency: u64, end: End, now: u64) -> Self {
        Self {
            up: true,
            latency,
            last_arrival: 0,
            sender_has: end == End::Sender,
            sender_joined: false,
            queue: VecDeque::new(),
            current: None,
            stepping: false,
            unsent: 0,
            receiver_has: end == End::Receiver,
            closing: false,
            landing: None,
            outstanding: 0,
            joined_at: now,
            taken_in_at: None,
        }
    }
}

/// What became of the two machines.
#[derive(Default)]
pub struct Ends {
    pub sender: Option<Result<(), Error>>,
    pub receiver: Option<Result<(), Error>>,
    pub sender_files: BTreeMap<FileKey, Result<Level, Error>>,
    pub receiver_files: BTreeMap<FileKey, Result<Level, Error>>,
}

/// What the driver has seen, for phases and checks.
#[derive(Default)]
pub struct Seen {
    pub offered: u32,
    pub answered: u32,
    pub looks: u32,
    pub closed: BTreeSet<FileKey>,
    pub ever_closed: BTreeSet<FileKey>,
    pub reporting: bool,
    pub preparing: u32,
    pub settling: BTreeSet<FileKey>,
    /// Descriptors of the segments that the receiver has open.
    pub taken: BTreeMap<SegmentId, u32>,
    pub finishing: bool,
    /// Parts of the names that were read, and that the receiver is at.
    pub name_parts: u32,
    pub is_naming: bool,
    pub deleting: u32,
    /// Chunks that the sender's machine told as landed.
    pub landed: BTreeSet<(SegmentId, ChunkId)>,
    /// Words of the receiver that make a `Closed` stale, by file and in all.
    pub recalls: BTreeMap<FileKey, u32>,
    pub freed: BTreeMap<SegmentId, u32>,
    /// Chunks handed to a connection at any time, for planted bugs.
    pub handed: BTreeSet<(SegmentId, ChunkId)>,
}

pub struct World {
    pub rng: Rng,
    pub queue: Queue<Event>,
    pub scenario: Scenario,
    pub bug: Option<Bug>,
    pub sender: Sender,
    pub receiver: Receiver,
    pub at_sender: Station,
    pub at_receiver: Station,
    pub to_sender: ControlPipe,
    pub to_receiver: ControlPipe,
    pub sources: BTreeMap<FileKey, Source>,
    pub targets: BTreeMap<FileKey, Target>,
    pub plans: BTreeMap<SegmentId, (Plan, CheckSeed)>,
    pub opened: BTreeMap<SegmentId, Opened>,
    pub links: BTreeMap<ConnectionId, Link>,
    pub next_link: ConnectionId,
    pub writes: BTreeMap<u64, crate::receiving::Write>,
    pub next_write: u64,
    pub send_news_at: u64,
    pub receive_news_at: u64,
    pub armed: BTreeSet<Fault>,
    pub pending: Vec<(usize, Phase, u64)>,
    pub struck: BTreeSet<(Fault, Phase)>,
    pub struck_ever: BTreeSet<Fault>,
    /// What is not scanned yet, and the rest of the batch that is.
    pub batches_due: VecDeque<VecDeque<FileSpec>>,
    /// The files of each segment.
    pub specs: BTreeMap<SegmentId, Vec<FileSpec>>,
    pub entries: BTreeMap<SegmentId, Vec<Entry>>,
    pub ends: Ends,
    pub seen: Seen,
    pub held_landed: Vec<Message>,
    pub findings: Vec<String>,
    /// Dials that are still to be refused, or all of them.
    pub refusals: u32,
    pub nobody_listens: bool,
    /// Until then nobody is taken in.
    pub full_until: u64,
    /// What all work of the hands takes, where chance does not say.
    pub hands_take: Option<u64>,
    /// No such word is said.
    pub drops: Option<fn(&Message) -> bool>,
    /// When an end gave a word up that is owed.
    pub gave_up_at: Option<u64>,
    /// Deadlines that passed, by the fault that they belong to.
    pub deadlines: BTreeSet<Fault>,
    pump_due: bool,
    ticks_at: u64,
}

impl World {
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::of(&mut rng);
        Self::of(rng, scenario, bug)
    }

    /// A world for one scenario.
    pub fn of(rng: Rng, scenario: Scenario, bug: Option<Bug>) -> Self {
        let mut world = Self {
            sender: Sender::new(SenderConfig {
                transfer: TRANSFER,
                chunk_bytes: scenario.chunk_bytes,
                window_bytes: None,
                bytes_per_second_max: None,
                descriptors_max: scenario.descriptors[0],
                peer_descriptors_max: 0,
                deletes: scenario.name_parts.is_some(),
                may_hold: true,
            }),
            receiver: Receiver::new(ReceiverConfig {
                transfer: TRANSFER,
                chunk_bytes: scenario.chunk_bytes,
                descriptors_max: scenario.descriptors[1],
                deletes: scenario.name_parts.is_some(),
            }),
            at_sender: Station::new(scenario.sender_dials, scenario.connections),
            at_receiver: Station::new(!scenario.sender_dials, scenario.connections),
            queue: Queue::new(),
            bug,
            to_sender: ControlPipe::new(),
            to_receiver: ControlPipe::new(),
            sources: BTreeMap::new(),
            targets: BTreeMap::new(),
            plans: BTreeMap::new(),
            opened: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 0,
            writes: BTreeMap::new(),
            next_write: 0,
            send_news_at: 0,
            receive_news_at: 0,
            armed: BTreeSet::new(),
            pending: Vec::new(),
            struck: BTreeSet::new(),
            struck_ever: BTreeSet::new(),
            batches_due: scenario
                .batches
                .iter()
                .cloned()
                .map(VecDeque::from)
                .collect(),
            specs: BTreeMap::new(),
            entries: BTreeMap::new(),
            ends: Ends::default(),
            seen: Seen::default(),
            held_landed: Vec::new(),
            findings: Vec::new(),
            refusals: 0,
            nobody_listens: false,
            full_until: 0,
            hands_take: None,
            drops: None,
            gave_up_at: None,
            deadlines: BTreeSet::new(),
            pump_due: false,
            ticks_at: 0,
            rng,
            scenario,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.sender.set_window(self.scenario.window_bytes);
        for (index, (when, _)) in self.scenario.faults.clone().into_iter().enumerate() {
            match when {
                When::Never => {}
                When::Start => self.strike(index),
                When::At(time) => self.queue.at(time, Event::Strike(index)),
                When::In(phase, delay) => self.pending.push((index, phase, delay)),
            }
        }
        self.greet();
        self.queue.after(0, Event::Tick);
    }

    /// Plays until both ends are over and nothing is left to happen.
    pub fn play(&mut self) {
        let mut steps = 0;
        while let Some(event) = self.queue.pop() {
            steps += 1;
            if steps > STEPS_MAX || self.queue.now > TIME_MAX {
                self.found("the transfer goes on and on");
                return;
            }
            let ticks = matches!(event, Event::Tick);
            self.happen(event);
            if ticks || self.rng.once_in(2) {
                self.pump();
            } else if !self.pump_due {
                self.pump_due = true;
                let delay = self.rng.within(0..4 * MILLI);
                self.queue.after(delay, Event::Pump);
            }
            self.tick_later();
            self.arm_by_phase();
            if !self.findings.is_empty() {
                return;
            }
        }
    }

    /// Sees to it that time passes while a session is there: a second at a time, or
    /// until something is due.
    fn tick_later(&mut self) {
        if self.at_sender.is_over && self.at_receiver.is_over {
            return;
        }
        let now = self.queue.now;
        let due = ENDS.map(|end| self.deadline(end)).into_iter().min();
        let at = due
            .unwrap_or(u64::MAX)
            .clamp(now + MILLI, now + 1_000 * MILLI);
        if self.ticks_at <= now || at < self.ticks_at {
            self.ticks_at = at;
            self.queue.at(at, Event::Tick);
        }
    }

    /// A deadline passed, as it should where this fault strikes.
    pub fn seen_deadline(&mut self, fault: Fault) {
        self.deadlines.insert(fault);
    }

    pub fn pipe(&mut self, end: End) -> &mut ControlPipe {
        match end {
            End::Sender => &mut self.to_sender,
            End::Receiver => &mut self.to_receiver,
        }
    }

    pub fn found(&mut self, what: impl Into<String>) {
        self.findings.push(what.into());
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Hear(end, bytes) => self.hear(end, &bytes),
            Event::Closed(end, error) => self.closed(end, error),
            Event::Start => self.start(),
            Event::Close(end) => self.close(end),
            Event::SourcesOpen => self.sources_open(),
            Event::Dialled(end) => self.dialled(end),
            Event::Tick => self.tick(),
            Event::SendStep(link) => self.send_step(link),
            Event::Arrive(link, item) => self.arrive(link, item),
            Event::WriteDone(write) => self.write_done(write),
            Event::SendNews(news) => self.send_news_heard(news),
            Event::ReceiveNews(news) => self.receive_news_heard(news),
            Event::Prepared(segment) => self.prepared(segment),
            Event::SettleDone(file, size, touched) => self.settle_done(file, size, touched),
            Event::DiscardDone(file) => self.discard_done(file),
            Event::Looked(file, early) => self.looked(file, early),
            Event::NamesRead => self.names_read(),
            Event::Deleted(number) => self.deleted(number),
            Event::SourcesOpened(segment) => self.sources_opened(segment),
            Event::Rechecked(segment, chunk) => self.rechecked(segment, chunk),
            Event::FinishSender => self.sender.finish(Default::default()),
            Event::FinishReceiver => self.receiver.finish(Default::default()),
            Event::Offer => self.offer(),
            Event::Come(segment) => self.come(segment),
            Event::Accept(link) => self.accept(link),
            Event::NoticeSender(link) => self.notice_sender(link),
            Event::NoticeReceiver(link) => self.close_receiver_end(link),
            Event::Strike(index) => self.strike(index),
            Event::OpenLate(segment) => {
                if let Some(opened) = self.opened.get_mut(&segment) {
                    opened.known = true;
                }
            }
            Event::Pump => {
                self.pump_due = false;
                self.pump();
            }
        }
    }

    // Files.

    fn offer(&mut self) {
        if self.ends.sender.is_some() {
            return;
        }
        let delay = self.rng.within(0..80) * MILLI;
        if self.rng.once_in(20) {
            self.sender.ran_out_of_descriptors();
        }
        let mut room = self.sender.room();
        if room == 0 && self.rng.once_in(3) {
            // Every third scan does not wait until it may offer.
            room = limits::ENTRY_DESCRIPTORS_MAX;
        }
        if room == 0 {
            if self.ends.sender.is_none() {
                self.queue.after(delay + MILLI, Event::Offer);
            }
            return;
        }
        let Some(batch) = self.batches_due.front_mut() else {
            return;
        };
        let next_segment = self.entries.len() as SegmentId;
        let (mut cut, mut entries, mut specs) = (Cut::new(room), Vec::new(), Vec::new());
        while let Some(spec) = batch.front()
            && cut.takes(&spec.kind(), 0)
        {
            let entry = entry_of(self.bug, next_segment, entries.len() as FileId, spec);
            cut.add(&entry);
            entries.push(entry);
            specs.extend(batch.pop_front());
        }
        if batch.is_empty() {
            self.batches_due.pop_front();
        }
        let last = self.batches_due.is_empty();
        let segment = self.sender.offer(entries.clone().into(), last).segment;
        assert_eq!(segment, next_segment);
        for (file, spec) in (0..).zip(&specs) {
            self.sources.insert((segment, file), Source::of(spec));
        }
        self.entries.insert(segment, entries);
        self.specs.insert(segment, specs);
        self.seen.offered += 1;
        if let Some(source) = self.sources.get(&(segment, 0))
            && source.stream
        {
            if source.endless {
                self.sender.stream_available(segment, u64::MAX, None);
            } else {
                let delay = self.rng.within(0..300) * MILLI;
                self.queue.after(delay, Event::Come(segment));
            }
        }
        if !last {
            self.queue.after(delay, Event::Offer);
        }
    }

    /// Some more of a stream comes; that it ended is learnt later still.
    fn come(&mut self, segment: SegmentId) {
        let chunk = u64::from(self.scenario.chunk_bytes);
        let step = self.rng.within(0..4 * chunk) as usize;
        let delay = self.rng.within(0..100) * MILLI;
        let Some(source) = self.sources.get_mut(&(segment, 0)) else {
            return;
        };
        let ended = source.come == source.bytes.len();
        source.come = (source.come + step).min(source.bytes.len());
        let come = source.come as u64;
        self.sender
            .stream_available(segment, come / chunk, ended.then_some(come));
        if !ended {
            self.queue.after(delay, Event::Come(segment));
        }
    }

    // Data connections.

    pub fn sender_joined(&mut self, id: ConnectionId) {
        let now = self.queue.now;
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.sender_joined = true;
        let gone = !link.sender_has;
        self.sender.connection_joined(now, id);
        if gone {
            self.sender.connection_lost(now, id);
        }
    }

    pub fn notice_sender(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get_mut(&id)
            && link.sender_has
        {
            link.sender_has = false;
            link.queue.clear();
            link.current = None;
            self.send_news(SendNews::Detached(id));
        }
    }

    // Control connection.

    pub fn tell_sender(&mut self, message: &Message) {
        self.tell(End::Receiver, message);
    }

    pub fn tell_receiver(&mut self, message: &Message) {
        self.tell(End::Sender, message);
    }

    pub fn sender_hears(&mut self, message: Message) {
        let now = self.queue.now;
        if let Err(violation) = self.sender.handle_message(now, message) {
            self.broken(End::Sender, &violation.to_string());
        }
    }

    pub fn receiver_hears(&mut self, message: Message) {
        let message = self.spoil_for_receiver(message);
        let now = self.queue.now;
        if let Err(violation) = self.receiver.handle_message(now, message) {
            self.broken(End::Receiver, &violation.to_string());
        }
    }

    /// An end calls the other one a liar, which is no wonder where a word was
    /// dropped on purpose.
    fn broken(&mut self, end: End, violation: &str) {
        if !self.has_struck(Fault::WordDropped) {
            self.found(format!("{end:?} calls an honest peer a liar: {violation}"));
        }
        let error = Error::peer("cannot go on", violation);
        match end {
            End::Sender => self.sender.stop(error),
            End::Receiver => self.receiver.stop(error),
        }
    }
}

fn entry_of(bug: Option<Bug>, segment: SegmentId, file: FileId, spec: &FileSpec) -> Entry {
    Entry {
        name: format!("s{segment}-f{file}").into_bytes(),
        kind: match bug == Some(Bug::FolderTakenForFile) && spec.folder {
            true => EntryKind::File,
            false => spec.kind(),
        },
        size: if spec.stream {
            0
        } else {
            spec.bytes.len() as u64
        },
        mode: 0o644,
        mtime_seconds: 0,
        mtime_nanos: 0,
        data: spec.data.clone(),
        ..Entry::default()
    }
}
