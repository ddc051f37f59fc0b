//! The worker's loop: commands in, completions in, the next operations out.
//!
//! Leaves to others: connections (intake), blocks (landing) and standard output
//! (ordered).
//! Invariants: the worker waits for nothing but its ring (and the write of a
//! small piece); `Detached` is a connection's last event, after its
//! last operation was reaped and its grants were released.

use super::connection::{Connection, Receiving};
use super::in_place::Windows;
use super::landing::{Landing, RING_ROOM_MIN, Write, ledger};
use super::ordered::Ordered;
use super::pool::Pool;
use super::slab::Slab;
use super::tally::Tally;
use crate::data::{Clock, Parting, ReceiveCommand, ReceiveEvent, ReceiveEvents, ReceiveSegment};
use crate::error::{Error, Result, why};
use crate::kernel::queue::Reader;
use crate::kernel::ring::{Completion, Handle, Loan, Outcome, Ring};
use crate::limits;
use crate::protocol::{ConnectionId, FileId, Nanos, SegmentId, TransferId};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Operations in flight, at most: a receive and a cancellation for each
/// connection, and the writes of all blocks.
const IN_FLIGHT_MAX: u32 = 1024;
/// Connections of one worker, those that are leaving included, at most: each
/// may have a receive in the ring.
const CONNECTIONS_MAX: usize = 2 * limits::CONNECTIONS_MAX as usize;
/// Transfers that are remembered as forgotten: frames of them may still be on
/// their way, those of older ones are not.
const FORGOTTEN_MAX: usize = 1024;
/// How often something that waits for another worker, or for a non-blocking
/// standard output, is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Inside a frame landed chunks are told this much later at most: each telling
/// wakes the other end of the queue and costs both sides' control connections a
/// message. 2 GiB onto tmpfs over one connection: 0.51 to 0.73 system calls a
/// chunk, and 0.80 to 1.00 where what did not complete at once was told at once.
const TELL_WAIT_NANOS_MAX: Nanos = 4_000_000;

/// Names of operations: the kind above, the place's number below.
pub mod token {
    const KIND: u32 = 56;
    /// The command queue became readable.
    pub const COMMANDS: u64 = 0;

    /// What an operation was.
    pub enum Of {
        /// [`COMMANDS`].
        Commands,
        /// A receive of the connection in that place.
        Receive(usize),
        /// That write of a block.
        Write(usize),
        /// A write of that stream.
        Ordered(usize),
        /// The gathering of that window.
        Gather(usize),
    }

    /// A receive.
    pub fn receive(slot: usize) -> u64 {
        1 << KIND | slot as u64
    }
    /// A write of a block.
    pub fn write(number: usize) -> u64 {
        2 << KIND | number as u64
    }
    /// A write of a stream.
    pub fn ordered(number: usize) -> u64 {
        3 << KIND | number as u64
    }
    /// The gathering of a window.
    pub fn gather(number: usize) -> u64 {
        4 << KIND | number as u64
    }
    /// What it names.
    pub fn of(token: u64) -> Of {
        let number = (token & ((1 << KIND) - 1)) as usize;
        match token >> KIND {
            1 => Of::Receive(number),
            2 => Of::Write(number),
            3 => Of::Ordered(number),
            4 => Of::Gather(number),
            _ => Of::Commands,
        }
    }
}

/// A segment that frames may come for.
pub struct Open {
    /// The segment.
    pub segment: Arc<ReceiveSegment>,
    /// Its place in `streams`, where its sink takes bytes only in order.
    stream: Option<usize>,
}

/// One receiving worker.
pub struct Worker {
    pub(super) ring: Ring,
    commands: Arc<Reader<ReceiveCommand>>,
    commands_handle: Handle,
    /// True while a poll of the command queue is in flight.
    polling: bool,
    events: ReceiveEvents,
    pub(super) clock: Clock,
    pub(super) connections: Slab<Connection>,
    pub(super) segments: HashMap<(TransferId, SegmentId), Open>,
    /// The highest segment that was opened, by transfer.
    pub(super) opened: HashMap<TransferId, SegmentId>,
    forgotten: VecDeque<TransferId>,
    /// Forgotten, and not yet answered.
    forgetting: Vec<TransferId>,
    pub(super) pool: Pool,
    pub(super) windows: Windows,
    /// Connections that wait for a block or a window, first come first served.
    pub(super) queue: VecDeque<usize>,
    pub(super) landings: Slab<Landing>,
    pub(super) writes: Slab<Write>,
    pub(super) streams: Slab<Ordered>,
    /// Streams whose sink said "not now".
    pub(super) retries: Vec<usize>,
    /// Files whose write failed.
    pub(super) failed: HashSet<(TransferId, SegmentId, FileId)>,
    /// A file system refused a direct write that should have been possible.
    pub(super) direct_refused: bool,
    /// Of the blocks that wait for direct writes.
    pub(super) direct_bytes: usize,
    pub(super) tally: Tally,
    /// What landed and was not told yet, and since when.
    untold: Vec<ReceiveEvent>,
    untold_since: Nanos,
    pub(super) stopping: bool,
}

const _: () = assert!(IN_FLIGHT_MAX as usize > 2 * RING_ROOM_MIN);

/// How each sentence about a connection begins.
pub fn cannot_receive(connection: ConnectionId) -> String {
    format!("cannot receive on data connection {connection}")
}

impl Worker {
    /// A worker for the calling thread.
    ///
    /// # Errors
    /// No ring on this machine.
    pub fn new(
        commands: Reader<ReceiveCommand>,
        events: ReceiveEvents,
        clock: Clock,
    ) -> Result<Self> {
        let commands = Arc::new(commands);
        Ok(Self {
            ring: Ring::new(IN_FLIGHT_MAX)?,
            commands_handle: Handle::of(&commands, |commands| commands.as_fd()),
            commands,
            polling: false,
            events,
            clock,
            connections: Slab::default(),
            segments: HashMap::new(),
            opened: HashMap::new(),
            forgotten: VecDeque::new(),
            forgetting: Vec::new(),
            pool: Pool::default(),
            windows: Windows::default(),
            queue: VecDeque::new(),
            landings: Slab::default(),
            writes: Slab::default(),
            streams: Slab::default(),
            retries: Vec::new(),
            failed: HashSet::new(),
            direct_refused: false,
            direct_bytes: 0,
            tally: Tally::default(),
            untold: Vec::new(),
            untold_since: 0,
            stopping: false,
        })
    }

    /// Works until it is stopped and everything was reaped.
    ///
    /// # Errors
    /// When the ring itself breaks; connections may be left then.
    pub fn run(&mut self) -> Result<()> {
        let mut completions = Vec::new();
        loop {
            self.obey_all();
            if self.stopping && self.connections.is_empty() && self.streams.is_empty() {
                self.flush();
                return Ok(());
            }
            self.wait(&mut completions)
                .map_err(|errno| Error::local("cannot wait for the ring", why(errno)))?;
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.retry_ordered();
            self.serve_queue();
        }
    }

    /// Submits and reaps; sleeps when there is nothing to reap, no command
    /// came, and nothing is left to be told.
    fn wait(&mut self, completions: &mut Vec<Completion>) -> Result<(), Errno> {
        if !self.polling {
            self.polling = true;
            self.ring
                .poll_readable(&self.commands_handle, token::COMMANDS);
        }
        let told_in = self.told_in();
        if told_in.is_none() {
            self.flush();
        }
        let held_back = |(_, stream): (usize, &Ordered)| stream.is_held_back();
        let soon = !self.retries.is_empty() || self.streams.iter().any(held_back);
        let timeout = soon.then_some(LOOK_AGAIN).or(told_in);
        let asleep = !self.stopping && self.commands.sleep();
        let wanted = usize::from(asleep || self.stopping);
        let waited = self.ring.submit_and_wait(wanted, timeout);
        self.ring.reap(completions);
        if asleep {
            self.commands.awake();
        }
        if soon {
            for stream in 0..self.streams.places() {
                self.write_next(stream);
            }
        }
        waited
    }

    /// How long what landed may still wait to be told; `None`: no longer, or
    /// there is nothing. Only inside a frame is there more to come that can be
    /// told with it.
    fn told_in(&self) -> Option<Duration> {
        if self.untold.is_empty() {
            return None;
        }
        let waited = self.clock.now().saturating_sub(self.untold_since);
        let left = TELL_WAIT_NANOS_MAX.checked_sub(waited)?;
        let more = self
            .connections
            .iter()
            .any(|(_, connection)| connection.frame.is_some());
        more.then(|| Duration::from_nanos(left))
    }

    fn complete(&mut self, completion: Completion) {
        let Completion {
            token,
            outcome,
            loan,
        } = completion;
        let Outcome::Done(result) = outcome else {
            // Only zero-copy sends complete otherwise.
            return;
        };
        match token::of(token) {
            token::Of::Commands => {
                self.polling = false;
                self.tally.system_calls += 1;
                self.commands.woken();
            }
            token::Of::Receive(slot) => match loan {
                Loan::Block(block) => self.received(slot, block, result),
                Loan::HugeWindow(_) => self.received_in_place(slot, result),
                _ => {}
            },
            token::Of::Gather(number) => {
                if let Loan::HugeWindow(window) = loan {
                    self.gathered(number, window, result);
                }
            }
            // A written block may be filled again at once: the loan goes first.
            token::Of::Write(number) => {
                drop(loan);
                self.wrote(number, result);
            }
            token::Of::Ordered(stream) => {
                drop(loan);
                self.wrote_ordered(stream, result);
            }
        }
    }

    pub(super) fn obey_all(&mut self) {
        while let Some(command) = self.commands.try_recv() {
            self.obey(command);
        }
        if self.commands.is_closed() && !self.stopping {
            self.stop();
        }
    }

    fn obey(&mut self, command: ReceiveCommand) {
        match command {
            ReceiveCommand::Attach { connection, socket } => self.attach(connection, socket),
            ReceiveCommand::Open(segment) => self.open(segment),
            ReceiveCommand::Close { transfer, segment } => self.close((transfer, segment)),
            ReceiveCommand::Forget(transfer) => self.forget(transfer),
            ReceiveCommand::Detach {
                connection,
                parting,
            } => {
                let found = self
                    .connections
                    .iter()
                    .find_map(|(slot, candidate)| (candidate.number == connection).then_some(slot));
                // Graceful is what happens anyway once the peer closes.
                if let (Some(slot), Parting::AtOnce(cause)) = (found, parting) {
                    self.leave(slot, Some(cause));
                }
            }
            ReceiveCommand::Report => {
                let calls = self.ring.take_system_calls() + self.events.take_signals();
                let report = self.tally.take(calls, &mut self.connections);
                self.tell(ReceiveEvent::Report(report));
            }
            ReceiveCommand::Stop => self.stop(),
        }
    }

    fn attach(&mut self, number: ConnectionId, socket: OwnedFd) {
        if self.connections.iter().count() >= CONNECTIONS_MAX {
            let why = format!("{CONNECTIONS_MAX} others were not closed yet");
            return self.refuse(number, Error::peer(cannot_receive(number), why));
        }
        // O_NONBLOCK would turn the ring's waits into EAGAIN.
        self.tally.system_calls += 1;
        let blocking = rustix::io::ioctl_fionbio(&socket, false);
        match blocking.and_then(|()| Connection::new(number, Handle::from(socket))) {
            Ok(connection) => {
                let slot = self.connections.insert(connection);
                self.advance(slot);
                if self.stopping {
                    self.leave(slot, None);
                }
            }
            Err(errno) => {
                self.refuse(number, Error::local(cannot_receive(number), why(errno)));
            }
        }
    }

    fn refuse(&mut self, connection: ConnectionId, error: Error) {
        let cause = Some(error);
        self.tell(ReceiveEvent::Detached { connection, cause });
    }

    fn open(&mut self, segment: Arc<ReceiveSegment>) {
        let stream = Ordered::of(&segment).map(|ordered| self.streams.insert(ordered));
        let highest = self.opened.entry(segment.transfer).or_default();
        *highest = segment.segment.max(*highest);
        let key = (segment.transfer, segment.segment);
        self.segments.insert(key, Open { segment, stream });
    }

    fn close(&mut self, key: (TransferId, SegmentId)) {
        if let Some(open) = self.segments.remove(&key) {
            self.abandon_in_place(&open.segment);
            if let Some(stream) = open.stream {
                self.close_ordered(stream);
            }
        }
        self.failed
            .retain(|(transfer, segment, _)| (*transfer, *segment) != key);
    }

    fn forget(&mut self, transfer: TransferId) {
        let keys: Vec<_> = self
            .segments
            .keys()
            .filter(|key| key.0 == transfer)
            .copied()
            .collect();
        keys.into_iter().for_each(|key| self.close(key));
        self.opened.remove(&transfer);
        self.forgotten.push_back(transfer);
        if self.forgotten.len() > FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgetting.push(transfer);
        self.answer_forget(transfer);
    }

    /// Answers a forgotten transfer once nothing writes for it any more.
    pub(super) fn answer_forget(&mut self, transfer: TransferId) {
        let of_it = |segment: &ReceiveSegment| segment.transfer == transfer;
        let busy = self
            .landings
            .iter()
            .any(|(_, landing)| of_it(&landing.segment))
            || self
                .streams
                .iter()
                .any(|(_, stream)| of_it(&stream.segment))
            || self.connections.iter().any(|(_, connection)| {
                matches!(connection.receiving, Receiving::InPlace((of, _)) if of == transfer)
            });
        if busy {
            return;
        }
        if let Some(place) = self.forgetting.iter().position(|asked| *asked == transfer) {
            self.forgetting.swap_remove(place);
            self.tell(ReceiveEvent::Forgotten(transfer));
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        let slots: Vec<_> = self.connections.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.leave(slot, None));
        let streams: Vec<_> = self.streams.iter().map(|(stream, _)| stream).collect();
        streams
            .into_iter()
            .for_each(|stream| self.close_ordered(stream));
    }

    /// It cannot go on: every connection ends with the reason, after the ring's
    /// drop reaped what was in flight.
    pub fn give_up(mut self, error: &Error) {
        self.flush();
        let Self {
            ring,
            connections,
            segments,
            events,
            ..
        } = self;
        drop(ring);
        for (_, connection) in connections.iter() {
            for open in segments.values() {
                ledger(&open.segment).release(connection.number);
            }
            let _ = events.send(ReceiveEvent::Detached {
                connection: connection.number,
                cause: Some(error.clone()),
            });
        }
    }

    /// Tells what happened; what landed is told a little later, together with
    /// what lands meanwhile, but before anything else.
    pub(super) fn tell(&mut self, event: ReceiveEvent) {
        if matches!(event, ReceiveEvent::Landed { .. }) {
            if self.untold.is_empty() {
                self.untold_since = self.clock.now();
            }
            if let Some(event) = joined(self.untold.last_mut(), event) {
                self.untold.push(event);
            }
            return;
        }
        self.flush();
        self.send(event);
    }

    /// Tells what landed.
    fn flush(&mut self) {
        let mut untold = std::mem::take(&mut self.untold);
        untold.drain(..).for_each(|event| self.send(event));
        self.untold = untold;
    }

    fn send(&mut self, event: ReceiveEvent) {
        // Nobody listens any more: the command queue is closed as well, or
        // will be, and that stops the worker.
        let _ = self.events.send(event);
    }

    /// True when nobody wants to hear of the segment any more.
    pub(super) fn is_over(&self, segment: &ReceiveSegment) -> bool {
        let key = (segment.transfer, segment.segment);
        !self.segments.contains_key(&key)
    }

    pub(super) fn is_forgotten(&self, transfer: TransferId) -> bool {
        self.forgotten.contains(&transfer)
    }

    pub(super) fn ordered_of(&self, segment: &ReceiveSegment) -> Option<usize> {
        let key = (segment.transfer, segment.segment);
        self.segments.get(&key)?.stream
    }
}

/// Joins what landed to what landed just before it on the same connection;
/// gives it back where they are no neighbours.
fn joined(last: Option<&mut ReceiveEvent>, event: ReceiveEvent) -> Option<ReceiveEvent> {
    let (
        Some(ReceiveEvent::Landed {
            transfer,
            segment,
            connection,
            chunks,
            bytes,
        }),
        ReceiveEvent::Landed {
            transfer: next_transfer,
            segment: next_segment,
            connection: next_connection,
            chunks: next,
            bytes: more,
        },
    ) = (last, &event)
    else {
        return Some(event);
    };
    let same =
        (*transfer, *segment, *connection) == (*next_transfer, *next_segment, *next_connection);
    if !same || chunks.first + chunks.count != next.first {
        return Some(event);
    }
    chunks.count += next.count;
    *bytes += more;
    None
}
