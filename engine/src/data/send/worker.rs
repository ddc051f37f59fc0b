//! The worker's loop: commands in, operations round by round, events out.
//!
//! Leaves to others: reading (`reading`), sending (`sending`, `splice`).
//! Invariant: every operation in the ring has its entry in `jobs`, under the
//! token that it bears.

use super::connection::{Ending, SendConnection};
use super::job::{Job, ROOM_KEPT};
use super::load::Load;
use super::pins::{Pins, TRY_AGAIN_NANOS, is_refusal};
use super::pool::SendPool;
use crate::data::slab::Slab;
use crate::data::thread;
use crate::data::window::Windows;
use crate::data::{Clock, SendCommand, SendEvent, SendEvents};
use crate::error::{Error, Result};
use crate::kernel::memory::Arena;
use crate::kernel::queue::Reader;
use crate::kernel::ring::{Completion, Handle, IoMessage, Outcome, Ring};
use crate::kernel::socket;
use crate::protocol::{ConnectionId, Nanos};
use crate::report::{ConnectionReport, SideReport};
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Operations in flight in one worker, at most. What does not fit waits.
const IN_FLIGHT_MAX: u32 = 2048;
/// While sends take less than this on average, their completions wake the
/// worker soon enough for new commands, and it spares itself the eventfd: four
/// connections over loopback took 19 ms a run, and a wake-up for each new run
/// was a quarter of all system calls.
const BRISK_NANOS: u64 = 40_000_000;
/// … for this long at a time.
const BRISK_WAIT: Duration = Duration::from_millis(10);

/// What waits for memory that other processes of the user pin is tried again after
/// this: nobody tells when they let it go.
const STARVED_WAIT: Duration = Duration::from_nanos(TRY_AGAIN_NANOS);

/// A worker that has had nothing to send for this long lets its windows go.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// A worker thread's state.
pub(super) struct SendWorker {
    pub ring: Ring,
    pub pool: SendPool,
    /// The blocks' memory until it is first needed: registering it makes all
    /// of it resident, and warm files are sent from mappings.
    pub unregistered: Option<Arena>,
    pub windows: Windows,
    pub connections: Slab<SendConnection>,
    pub loads: Slab<Load>,
    /// Loads that wait for blocks, oldest first.
    pub waiting: VecDeque<usize>,
    /// Loads with reads that were not queued yet for want of room.
    pub unread: VecDeque<usize>,
    /// Loads whose bytes are all there.
    pub arrived: VecDeque<usize>,
    /// What zero-copy sends pin.
    pub pins: Pins,
    /// A connection waits until more can be pinned, which others may hold.
    pub starved: bool,
    /// Empty ones, boxed as they are lent, with what they allocated.
    #[expect(clippy::vec_box)]
    pub messages: Vec<Box<IoMessage>>,
    pub now: Nanos,
    pub report: SideReport,
    pub methods: BTreeSet<&'static str>,
    pub knows_zero_copy: bool,
    /// Operations queued in this round that are done at once.
    pub done_at_once: usize,
    jobs: Slab<Job>,
    commands: Arc<Reader<SendCommand>>,
    wake: Handle,
    /// A poll of `wake` is in flight.
    armed: bool,
    /// Writers of commands were told to signal.
    asleep: bool,
    events: SendEvents,
    clock: Clock,
    ended: Vec<ConnectionReport>,
    cpu_before: u64,
    stopping: bool,
}

impl SendWorker {
    /// A worker for the calling thread.
    pub fn new(commands: Reader<SendCommand>, events: SendEvents, clock: Clock) -> Result<Self> {
        let ring = Ring::new(IN_FLIGHT_MAX)?;
        let (arena, pool) = SendPool::new()
            .map_err(|errno| Error::local("cannot map the sending buffers", errno))?;
        let commands = Arc::new(commands);
        Ok(Self {
            knows_zero_copy: ring.knows_zero_copy(),
            ring,
            pool,
            windows: Windows::default(),
            connections: Slab::default(),
            loads: Slab::default(),
            waiting: VecDeque::new(),
            unread: VecDeque::new(),
            arrived: VecDeque::new(),
            pins: Pins::default(),
            starved: false,
            messages: Vec::new(),
            now: clock.now(),
            report: SideReport::default(),
            unregistered: Some(arena),
            methods: BTreeSet::new(),
            done_at_once: 0,
            jobs: Slab::default(),
            wake: Handle::of(&commands, |commands| commands.as_fd()),
            commands,
            armed: false,
            asleep: false,
            events,
            clock,
            ended: Vec::new(),
            cpu_before: thread::cpu_nanos(),
            stopping: false,
        })
    }

    /// The connections that were not detached.
    pub fn connections(&self) -> Vec<ConnectionId> {
        let attached = self.connections.values();
        attached.map(|connection| connection.id).collect()
    }

    /// Works until it is stopped and everything is detached.
    ///
    /// # Errors
    /// When the ring itself breaks; connections may be left then.
    pub fn run(&mut self) -> Result<()> {
        let mut completions = Vec::new();
        loop {
            self.start_all();
            // One that is told to leave may have nothing to wait for.
            self.look_for_ends();
            self.retire_windows();
            if self.stopping && self.connections.is_empty() {
                return Ok(());
            }
            self.wait()
                .map_err(|errno| Error::local("cannot go on sending: io_uring_enter", errno))?;
            self.ring.reap(&mut completions);
            self.now = self.clock.now();
            for completion in completions.drain(..) {
                self.completed(completion);
            }
            if std::mem::take(&mut self.asleep) {
                // Something else woke it.
                self.commands.awake();
            }
        }
    }

    /// Starts all that can be started before something completes.
    fn start_all(&mut self) {
        loop {
            self.take_commands();
            self.prepare_loads();
            // Loads that need no operation to be read are there at once, and
            // nothing would wake the worker for them; nor for one that goes
            // another way than it was read for.
            if !self.arrived.is_empty() {
                self.seal_loads();
            } else if self.start_sends() {
                return;
            }
        }
    }

    /// A message to write a frame into.
    pub fn message(&mut self) -> Box<IoMessage> {
        self.messages.pop().unwrap_or_default()
    }

    /// The session's time.
    pub fn clock_now(&self) -> Nanos {
        self.clock.now()
    }

    /// Queues an operation's job and gives the token for it.
    pub fn token(&mut self, job: Job) -> u64 {
        self.jobs.insert(job) as u64
    }

    /// Sends an event; a control plane that is gone wants nothing more.
    pub fn tell(&mut self, event: SendEvent) {
        if self.events.send(event).is_err() {
            self.stopping = true;
        }
    }

    /// Ends a connection at once: nothing more is sent, what is in flight is
    /// awaited.
    pub fn close(&mut self, place: usize, cause: Option<Error>) {
        let Some(connection) = self.connections.get_mut(place) else {
            return;
        };
        if !connection.is_open() {
            // It was leaving at its own pace.
            if connection.operations > 0 {
                let _ = crate::kernel::ring::reset_socket(&connection.socket);
                self.report.system_calls += 1;
            }
            return;
        }
        connection.ending = Ending::Closing(cause);
        socket::shutdown(&connection.socket);
        self.report.system_calls += 1;
        let queue = std::mem::take(&mut connection.queue);
        let busy = connection.busy;
        let mut unreleased = connection.operations;
        if let Some(watch) = connection.watch.take() {
            self.ring.cancel(watch);
            unreleased -= 1;
        }
        if unreleased > 0 {
            // Notifications of zero-copy sends come only once the peer has
            // acknowledged, or after a reset.
            let _ = crate::kernel::ring::reset_socket(&connection.socket);
            self.report.system_calls += 1;
        }
        for (index, load) in queue.into_iter().enumerate() {
            if index > 0 || !busy {
                self.drop_load(load);
            } else if let Some(load) = self.loads.get_mut(load) {
                // Its operation gives it back.
                load.place = None;
            }
        }
    }

    /// Forgets a load; blocks that are being read come back later.
    pub fn drop_load(&mut self, index: usize) {
        let Some(load) = self.loads.get_mut(index) else {
            return;
        };
        load.place = None;
        self.waiting.retain(|waiting| *waiting != index);
        self.unread.retain(|unread| *unread != index);
        self.arrived.retain(|arrived| *arrived != index);
        if load.reading == 0 {
            load.release(&mut self.pool);
            self.loads.remove(index);
        }
    }

    /// Gives a message's blocks back to the pool and keeps the message.
    pub fn recycle(&mut self, mut message: Box<IoMessage>) {
        self.pool.put_all(message.slices.drain(..));
        message.clear();
        self.messages.push(message);
    }

    /// Windows that the sources slid out of leave the page table before they
    /// are unmapped, by a kernel worker.
    pub fn retire_windows(&mut self) {
        while self.ring.room() > ROOM_KEPT
            && let Some(window) = self.windows.take_retired()
        {
            let token = self.token(Job::Aside);
            self.ring.unpopulate(window, token);
            self.done_at_once += 1;
        }
    }

    fn take_commands(&mut self) {
        while let Some(command) = self.commands.try_recv() {
            match command {
                SendCommand::Attach { connection, socket } => self.attach(connection, socket),
                SendCommand::Run {
                    connection,
                    segment,
                    run,
                    bytes,
                } => {
                    // A connection that is gone: its runs were not sent.
                    if let Some(place) = self.place_of(connection) {
                        let load = Load::new(place, segment, run, bytes);
                        let index = self.loads.insert(load);
                        self.waiting.push_back(index);
                        if let Some(connection) = self.connections.get_mut(place) {
                            connection.queue.push_back(index);
                        }
                    }
                }
                SendCommand::Detach { connection, cause } => self.detach(connection, cause),
                SendCommand::Report => self.send_report(),
                SendCommand::Stop => self.stop(),
            }
        }
        if self.commands.is_closed() && !self.stopping {
            self.stop();
        }
    }

    fn attach(&mut self, id: ConnectionId, socket: OwnedFd) {
        let connection = SendConnection::new(id, socket, self.knows_zero_copy);
        // fcntl, getsockname, getpeername.
        self.report.system_calls += 4;
        let socket = connection.socket.clone();
        let place = self.connections.insert(connection);
        if self.stopping {
            return self.close(place, None);
        }
        if self.ring.room() > 0 {
            let token = self.token(Job::Watch { place });
            self.ring.poll_readable(&socket, token);
            if let Some(connection) = self.connections.get_mut(place) {
                connection.watch = Some(token);
                connection.operations += 1;
            }
        }
    }

    fn detach(&mut self, id: ConnectionId, cause: Error) {
        let place = self.place_where(|connection| connection.id == id);
        if let Some(place) = place {
            self.close(place, Some(cause));
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        for place in 0..self.connections.places() {
            self.close(place, None);
        }
    }

    /// The place of an open connection.
    fn place_of(&self, id: ConnectionId) -> Option<usize> {
        self.place_where(|connection| connection.id == id && connection.is_open())
    }

    fn place_where(&self, is_it: impl Fn(&SendConnection) -> bool) -> Option<usize> {
        let mut all = self.connections.iter();
        all.find_map(|(place, connection)| is_it(connection).then_some(place))
    }

    /// Tells of connections whose last operation was reaped.
    fn look_for_ends(&mut self) {
        for place in 0..self.connections.places() {
            let Some(connection) = self.connections.get_mut(place) else {
                continue;
            };
            if connection.is_open() || connection.operations > 0 {
                continue;
            }
            let report = connection.report();
            self.ended.push(report);
            // getsockopt: facts and TCP_INFO; close.
            self.report.system_calls += 6;
            let id = connection.id;
            let cause = match std::mem::replace(&mut connection.ending, Ending::No) {
                Ending::Closing(cause) => cause,
                Ending::No => None,
            };
            // Closed before it is told.
            self.connections.remove(place);
            self.tell(SendEvent::Detached {
                connection: id,
                cause,
            });
        }
    }

    /// True when a send is in flight and sends take so little time that their
    /// completions wake the worker soon enough for everything else.
    fn is_brisk(&self) -> bool {
        let open = self.connections.values();
        let mut busy = open.filter(|connection| connection.busy).peekable();
        busy.peek().is_some()
            && busy.all(|connection| {
                let waited = self.now.saturating_sub(connection.sending_since);
                connection.send_nanos.max(waited) < BRISK_NANOS
            })
    }

    /// Submits the round and waits for the first completions that matter.
    fn wait(&mut self) -> Result<(), rustix::io::Errno> {
        let at_once = std::mem::take(&mut self.done_at_once);
        let open = || self.connections.values();
        let busy = || open().filter(|connection| connection.busy);
        let brisk = self.is_brisk();
        // What the page cache answers is done when the submission returns, so
        // a send's completion is one more, and a chain of splices is looked at
        // only at its end; but a connection that has nothing on the wire must
        // not wait for another's.
        let preparing = open().any(|connection| !connection.busy && !connection.queue.is_empty());
        let due = busy().map(SendConnection::completions_due).min();
        let wanted = match due {
            // Sends are short: half of them together cost one call, and what
            // their sockets hold meanwhile keeps the peer busy.
            Some(due) if !preparing && brisk => at_once + due.max(busy().count().div_ceil(2)),
            Some(_) if !preparing => at_once + 1,
            _ => at_once.max(1),
        };
        if std::mem::take(&mut self.starved) {
            return self.ring.submit_and_wait(wanted, Some(STARVED_WAIT));
        }
        if brisk {
            return self.ring.submit_and_wait(wanted, Some(BRISK_WAIT));
        }
        if !self.armed && self.ring.room() > 0 {
            self.armed = true;
            let token = self.token(Job::Wake);
            let wake = self.wake.clone();
            self.ring.poll_readable(&wake, token);
        }
        self.asleep = self.commands.sleep();
        if !self.asleep {
            return self.ring.submit_and_wait(0, None);
        }
        if self.windows.is_empty() || !self.loads.is_empty() {
            return self.ring.submit_and_wait(wanted, None);
        }
        // Between two runs there is often nothing to send for a moment.
        let started = self.clock.now();
        self.ring.submit_and_wait(wanted, Some(IDLE_WAIT))?;
        if self.clock.now().saturating_sub(started) >= IDLE_WAIT.as_nanos() as Nanos {
            self.windows.clear();
        }
        Ok(())
    }

    fn completed(&mut self, completion: Completion) {
        let token = completion.token as usize;
        let Some(job) = self.jobs.get(token).copied() else {
            return;
        };
        let last = match completion.outcome {
            Outcome::Sent(result) => {
                // Its notification will be judged by what really went.
                if let Some(Job::Send {
                    bytes,
                    zero_copy,
                    refused,
                    ..
                }) = self.jobs.get_mut(token)
                {
                    *bytes = u64::from(result.unwrap_or(0));
                    *zero_copy = *bytes > 0;
                    *refused = result.err().filter(|errno| is_refusal(*errno));
                }
                false
            }
            Outcome::Done(_) | Outcome::Released { .. } => {
                self.jobs.remove(token);
                true
            }
        };
        match job {
            Job::Wake => {
                self.armed = false;
                self.asleep = false;
                self.commands.woken();
                self.report.system_calls += 1;
            }
            Job::Watch { place } => self.watched(place),
            Job::Read { load, part } => self.part_read(load, part, completion),
            Job::Send { place, .. } | Job::Splice { place, .. } => {
                if last && let Some(connection) = self.connections.get_mut(place) {
                    connection.operations -= 1;
                }
                match job {
                    Job::Send { .. } => self.send_completed(job, completion),
                    Job::Splice { step, .. } => self.splice_completed(place, step, completion),
                    _ => {}
                }
            }
            Job::Populate { load } => self.populated(load, completion),
            Job::Aside => {}
        }
    }

    /// The peer said or closed something; nothing is expected from it here.
    fn watched(&mut self, place: usize) {
        let Some(connection) = self.connections.get_mut(place) else {
            return;
        };
        connection.operations -= 1;
        connection.watch = None;
        if !connection.is_open() {
            return;
        }
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        self.report.system_calls += 1;
        let why = match rustix::net::recv(&connection.socket, &mut [0u8; 1][..], flags) {
            Ok((0, _)) => "the peer closed it".to_owned(),
            Ok(_) => "the peer broke the protocol: expected nothing from the receiver, got bytes"
                .to_owned(),
            Err(errno) => std::io::Error::from(errno).to_string(),
        };
        let error = connection.error(why);
        self.close(place, Some(error));
    }

    fn send_report(&mut self) {
        // A transfer is over: its sources are let go.
        if self.loads.is_empty() {
            self.windows.clear();
        }
        if let Some(note) = self.pins.take_note() {
            self.note(&note);
        }
        let cpu = thread::cpu_nanos();
        let mut report = std::mem::take(&mut self.report);
        report.cpu_nanos = cpu.saturating_sub(std::mem::replace(&mut self.cpu_before, cpu));
        report.connections = std::mem::take(&mut self.ended);
        for connection in self.connections.values_mut() {
            report.system_calls += 6;
            report.connections.push(connection.report());
        }
        report.system_calls += self.ring.take_system_calls()
            + self.windows.take_system_calls()
            + self.events.take_signals();
        let methods: Vec<_> = std::mem::take(&mut self.methods).into_iter().collect();
        report.method = methods.join(", ");
        self.tell(SendEvent::Report(Box::new(report)));
    }
}
