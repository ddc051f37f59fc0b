//! A session's data connections and the worker threads that drive them.
//!
//! Leaves to others: what is sent, and dialling. Invariant: a connection is in
//! the table from its attachment until its worker's `Detached`, and its number
//! is never used again.

use crate::data::{self, Clock, Parting, ReceiveCommand, ReceiveEvent, SendCommand, SendEvent};
use crate::error::{Error, Result};
use crate::kernel::queue::{self, Reader, Writer};
use crate::kernel::socket::{self, SocketOptions};
use crate::limits;
use crate::protocol::frame::{FRAME_BYTES_MIN, FrameHeader};
use crate::protocol::wire::Flow;
use crate::protocol::{ConnectionId, Nanos, Run};
use crate::report::ConnectionProgress;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Commands that wait for one worker, at most: runs ahead of every connection,
/// and a few that attach, detach and ask.
const COMMANDS_MAX: usize = limits::CONNECTIONS_MAX as usize * (limits::RUNS_AHEAD_MAX + 2) + 64;
/// Events that wait for the control plane; a full queue slows the workers down.
const EVENTS_MAX: usize = 4096;

/// Why a dialled connection is given up whose peer never said Joined.
const NOT_TAKEN_IN: &str = "the peer did not take it in (has it reached its limit of open files?)";

/// Why one goes that the peer gave up.
pub(super) const PEER_LOST_IT: &str = "the peer has lost it";

/// Which way a connection carries frames, seen from this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

impl Way {
    /// Seen from the dialler or from the accepter.
    pub(super) fn of(flow: Flow, dialled: bool) -> Self {
        if (flow == Flow::FromDialler) == dialled {
            Self::Out
        } else {
            Self::In
        }
    }
}

/// One data connection.
struct Link {
    way: Way,
    /// A second descriptor: to read TCP_INFO while the worker owns the first.
    socket: OwnedFd,
    bytes: u64,
    answer: Answer,
}

/// What the peer said to a connection that was dialled here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Joined, or it was accepted here.
    Given,
    /// Nothing since then.
    Awaited(Nanos),
    /// Nothing in time.
    Missed,
}

/// Fills the first window of a fresh connection with padding: its congestion
/// window opens while the Answer is on its way, a round trip earlier. With the
/// data connections dialled a round trip earlier, too, so that there is time
/// for it, 587 MiB over 1 Gbit/s and 50 ms took 5.58 s against 5.67 s (medians
/// of 6, interleaved; the ideal is 5.20 s).
fn fill_first_window(socket: BorrowedFd<'_>) -> Result<()> {
    let room = socket::first_window_bytes(socket).min(limits::PADDING_BYTES_MAX);
    let Some(payload_bytes) = room.checked_sub(FRAME_BYTES_MIN) else {
        return Ok(());
    };
    let mut frame = FrameHeader::padding(payload_bytes as u64).encode().to_vec();
    frame.resize(room, 0);
    let now = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let doing = "cannot use a data connection";
    match rustix::net::send(socket, &frame, now) {
        Ok(sent) if sent == room => Ok(()),
        // Half a frame cannot be taken back: it is dialled again.
        Ok(_) => Err(Error::peer(doing, "its buffer was full")),
        // Nothing was sent, and nothing has to be.
        Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(Error::peer(doing, errno)),
    }
}

/// True where a round trip takes so long that slow start is felt.
fn is_long(socket: BorrowedFd<'_>) -> bool {
    socket::tcp_info(socket).is_some_and(|info| info.rtt_us >= limits::LONG_PATH_US)
}

/// Threads with their command queues.
type Workers<C> = Vec<(Writer<C>, JoinHandle<()>)>;

/// The workers of one way.
struct Crew<C, E> {
    workers: Workers<C>,
    events: AsyncFd<Reader<E>>,
}

/// What starts a worker: its name, its commands, its events, the clock.
type Spawn<C, E> = fn(&str, Reader<C>, Writer<E>, Clock) -> Result<JoinHandle<()>>;

impl<C, E> Crew<C, E> {
    fn start(name: &str, count: usize, clock: Clock, spawn: Spawn<C, E>) -> Result<Self> {
        let failed = |error: std::io::Error| Error::local("cannot start worker threads", error);
        let (writer, reader) = queue::bounded(EVENTS_MAX).map_err(failed)?;
        let mut workers = Vec::new();
        for number in 0..count {
            let (commands, inbox) = queue::bounded(COMMANDS_MAX).map_err(failed)?;
            let thread = spawn(&format!("{name}-{number}"), inbox, writer.clone(), clock)?;
            workers.push((commands, thread));
        }
        Ok(Self {
            workers,
            events: watch(reader)?,
        })
    }

    fn of(&self, connection: ConnectionId) -> &Writer<C> {
        &self.workers[connection as usize % self.workers.len()].0
    }

    fn tell_all(&self, command: impl Fn() -> C) -> usize {
        self.workers
            .iter()
            .filter(|(commands, _)| commands.send(command()).is_ok())
            .count()
    }
}

/// The reader, so that its descriptor can be awaited.
#[allow(
    deprecated,
    reason = "its successor is unsafe, and unsafe code stays in kernel/; what it asks for holds, as a \
              reader owns one eventfd for its whole life"
)]
fn watch<E>(reader: Reader<E>) -> Result<AsyncFd<Reader<E>>> {
    AsyncFd::new(reader).map_err(|error| Error::local("cannot wait for worker threads", error))
}

/// The table.
pub(super) struct Links {
    clock: Clock,
    worker_count: usize,
    sockets: SocketOptions,
    /// Of all sending connections together.
    rate_limit_bytes_per_second: Option<u64>,
    links: BTreeMap<ConnectionId, Link>,
    used: BTreeSet<ConnectionId>,
    out: Option<Crew<SendCommand, SendEvent>>,
    inn: Option<Crew<ReceiveCommand, ReceiveEvent>>,
}

impl Links {
    /// No connection and no thread yet. `worker_count` is for each way.
    pub(super) fn new(clock: Clock, workers: Option<usize>, sockets: SocketOptions) -> Self {
        let worker_count = workers.unwrap_or_else(workers_by_cores).max(1);
        Self {
            clock,
            worker_count,
            sockets,
            rate_limit_bytes_per_second: None,
            links: BTreeMap::new(),
            used: BTreeSet::new(),
            out: None,
            inn: None,
        }
    }

    /// The options of data sockets.
    pub(super) fn sockets(&self) -> &SocketOptions {
        &self.sockets
    }

    /// Limits what all connections together send, those that come later, too.
    pub(super) fn pace(&mut self, bytes_per_second: Option<u64>) -> Result<()> {
        let was = std::mem::replace(&mut self.rate_limit_bytes_per_second, bytes_per_second);
        if was.is_none() && bytes_per_second.is_none() {
            return Ok(());
        }
        self.share_rate()
    }

    /// What all connections together may send, where that is limited.
    pub(super) fn rate_limit_bytes_per_second(&self) -> Option<u64> {
        self.rate_limit_bytes_per_second
    }

    /// Each sending connection gets the same share of the rate.
    fn share_rate(&self) -> Result<()> {
        let out = || self.links.values().filter(|link| link.way == Way::Out);
        let count = out().count().max(1) as u64;
        let share = self
            .rate_limit_bytes_per_second
            .map(|rate| (rate / count).max(1));
        out().try_for_each(|link| socket::set_pacing(link.socket.as_fd(), share))
    }

    /// Takes a connection in; returns what was left to haul about its socket.
    /// `waits` says that no Answer allows it to carry anything yet.
    pub(super) fn attach(
        &mut self,
        connection: ConnectionId,
        way: Way,
        socket: OwnedFd,
        waits: bool,
    ) -> Result<Vec<String>> {
        if self.links.len() >= limits::CONNECTIONS_MAX as usize
            || self.used.len() >= limits::JOINS_MAX as usize
            || self.used.contains(&connection)
        {
            return Err(Error::peer(
                format!("cannot take data connection {connection} in"),
                "its number was used before, or there are too many",
            ));
        }
        let notes = socket::prepare_data(socket.as_fd(), &self.sockets)?;
        if waits && way == Way::Out && is_long(socket.as_fd()) {
            fill_first_window(socket.as_fd())?;
        }
        let second = rustix::io::fcntl_dupfd_cloexec(&socket, 3)
            .map_err(|error| Error::local("cannot duplicate a descriptor", error))?;
        let link = Link {
            way,
            socket: second,
            bytes: 0,
            answer: Answer::Given,
        };
        self.links.insert(connection, link);
        let paced = match self.rate_limit_bytes_per_second {
            Some(_) if way == Way::Out => self.share_rate(),
            _ => Ok(()),
        };
        // It carries nothing before its share is set.
        let attached = paced.and_then(|()| self.hand_over(connection, way, socket));
        if let Err(error) = attached {
            self.links.remove(&connection);
            return Err(error);
        }
        self.used.insert(connection);
        Ok(notes)
    }

    fn hand_over(&mut self, connection: ConnectionId, way: Way, socket: OwnedFd) -> Result<()> {
        let gone = || Error::local("cannot use a worker thread", "it ended");
        match way {
            Way::Out => {
                if self.out.is_none() {
                    let crew = Crew::start(
                        "haul-send",
                        self.worker_count,
                        self.clock,
                        data::send::spawn,
                    )?;
                    self.out = Some(crew);
                }
                let crew = self.out.as_ref().ok_or_else(gone)?;
                let attach = SendCommand::Attach { connection, socket };
                crew.of(connection).send(attach).map_err(|_| gone())
            }
            Way::In => {
                self.start_receiving()?;
                let crew = self.inn.as_ref().ok_or_else(gone)?;
                let attach = ReceiveCommand::Attach { connection, socket };
                crew.of(connection).send(attach).map_err(|_| gone())
            }
        }
    }

    /// Starts the receiving workers, so that segments can be opened in them
    /// before the first connection joins.
    pub(super) fn start_receiving(&mut self) -> Result<()> {
        if self.inn.is_none() {
            let crew = Crew::start(
                "haul-recv",
                self.worker_count,
                self.clock,
                data::receive::spawn,
            )?;
            self.inn = Some(crew);
        }
        Ok(())
    }

    /// The connections of one way, ascending.
    pub(super) fn of_way(&self, way: Way) -> Vec<ConnectionId> {
        self.links
            .iter()
            .filter(|(_, link)| link.way == way)
            .map(|(id, _)| *id)
            .collect()
    }

    /// How many of one way the peer is known to have, too.
    pub(super) fn answered_count(&self, way: Way) -> usize {
        let answered = |link: &&Link| link.way == way && link.answer == Answer::Given;
        self.links.values().filter(answered).count()
    }

    /// True while the connection's worker has it.
    pub(super) fn has(&self, connection: ConnectionId) -> bool {
        self.links.contains_key(&connection)
    }

    /// Asks the connection's worker to end it at once, `why`; `Detached` follows.
    pub(super) fn detach(&self, connection: ConnectionId, why: &str) {
        let doing = format!("gave data connection {connection} up");
        let parting = Parting::AtOnce(Error::peer(doing, why));
        // A worker that ended has told `Detached` for all it had.
        match (
            self.links.get(&connection).map(|link| link.way),
            &self.out,
            &self.inn,
        ) {
            (Some(Way::Out), Some(crew), _) => {
                let _ = crew.of(connection).send(SendCommand::Detach {
                    connection,
                    parting,
                });
            }
            (Some(Way::In), _, Some(crew)) => {
                let _ = crew.of(connection).send(ReceiveCommand::Detach {
                    connection,
                    parting,
                });
            }
            _ => {}
        }
    }

    /// Ends every sending connection whose peer's kernel said nothing for
    /// longer than `wait`: a slow reader answers probes, a dead one does not.
    pub(super) fn detach_silent(&self, wait: Duration) {
        for (connection, link) in self.links.iter().filter(|(_, link)| link.way == Way::Out) {
            if socket::silence(link.socket.as_fd()).is_some_and(|silence| silence > wait) {
                self.detach(*connection, "the peer's machine does not answer");
            }
        }
    }

    /// From now on the peer has to say Joined to it in time: a kernel takes
    /// connections in for a process that has no descriptor left for them.
    pub(super) fn await_answer(&mut self, connection: ConnectionId) {
        let now = self.clock.now();
        if let Some(link) = self.links.get_mut(&connection) {
            link.answer = Answer::Awaited(now);
        }
    }

    /// The peer took it in.
    pub(super) fn answered(&mut self, connection: ConnectionId) {
        if let Some(link) = self.links.get_mut(&connection)
            && let Answer::Awaited(_) = link.answer
        {
            link.answer = Answer::Given;
        }
    }

    /// Ends every connection that the peer did not take in in time.
    pub(super) fn detach_unanswered(&mut self) {
        let now = self.clock.now();
        let mut missed = Vec::new();
        for (connection, link) in &mut self.links {
            if let Answer::Awaited(since) = link.answer
                && now.saturating_sub(since) > limits::JOINED_WAIT_NANOS_MAX
            {
                link.answer = Answer::Missed;
                missed.push(*connection);
            }
        }
        missed
            .into_iter()
            .for_each(|connection| self.detach(connection, NOT_TAKEN_IN));
    }

    /// Gives those that are awaited their time again.
    pub(super) fn excuse_unanswered(&mut self) {
        let now = self.clock.now();
        for link in self.links.values_mut() {
            if let Answer::Awaited(since) = &mut link.answer {
                *since = now;
            }
        }
    }

    /// Sees to it that the connection cannot join any more: its peer has lost it,
    /// and what it carries is sent again by another.
    pub(super) fn bar(&mut self, connection: ConnectionId) {
        // More than may join are refused without being known.
        if self.used.len() < limits::JOINS_MAX as usize {
            self.used.insert(connection);
        }
    }

    /// The worker said `Detached`; true where the peer never took it in.
    pub(super) fn detached(&mut self, connection: ConnectionId) -> bool {
        let left = self.links.remove(&connection);
        let missed = left
            .as_ref()
            .is_some_and(|link| link.answer == Answer::Missed);
        if self.rate_limit_bytes_per_second.is_some()
            && left.is_some_and(|link| link.way == Way::Out)
        {
            // The others may send more now; where that fails they stay below.
            let _ = self.share_rate();
        }
        missed
    }

    /// Hands a run to its connection's worker.
    pub(super) fn send_run(
        &self,
        connection: ConnectionId,
        segment: Arc<data::SendSegment>,
        run: Run,
        bytes: Option<u64>,
    ) {
        if let Some(crew) = &self.out {
            // A worker that ended has told `Detached` for all it had.
            let _ = crew.of(connection).send(SendCommand::Run {
                connection,
                segment,
                run,
                bytes,
            });
        }
    }

    /// Tells every receiving worker; returns how many there are.
    pub(super) fn tell_receivers(&self, command: impl Fn() -> ReceiveCommand) -> usize {
        self.inn.as_ref().map_or(0, |crew| crew.tell_all(command))
    }

    /// Tells every sending worker; returns how many there are.
    pub(super) fn tell_senders(&self, command: impl Fn() -> SendCommand) -> usize {
        self.out.as_ref().map_or(0, |crew| crew.tell_all(command))
    }

    /// The next event of a sending worker.
    pub(super) fn next_sent(&self) -> Option<SendEvent> {
        self.out
            .as_ref()
            .and_then(|crew| crew.events.get_ref().try_recv())
    }

    /// The next event of a receiving worker.
    pub(super) fn next_received(&self) -> Option<ReceiveEvent> {
        self.inn
            .as_ref()
            .and_then(|crew| crew.events.get_ref().try_recv())
    }

    /// Waits until a worker has an event. May be dropped at any time.
    pub(super) async fn ready(&self) {
        tokio::select! {
            () = wait(self.out.as_ref().map(|crew| &crew.events)) => {}
            () = wait(self.inn.as_ref().map(|crew| &crew.events)) => {}
        }
    }

    /// Counts payload bytes for progress.
    pub(super) fn count(&mut self, connection: ConnectionId, bytes: u64) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.bytes += bytes;
        }
    }

    /// Forgets what was counted, at the start of a transfer.
    pub(super) fn reset_counts(&mut self) {
        self.links.values_mut().for_each(|link| link.bytes = 0);
    }

    /// Every connection of one way, as it is now.
    pub(super) fn progress(&self, way: Way) -> Vec<ConnectionProgress> {
        let of_way = self.links.iter().filter(|(_, link)| link.way == way);
        of_way
            .map(|(connection, link)| ConnectionProgress {
                connection: *connection,
                bytes: link.bytes,
                tcp: socket::tcp_info(link.socket.as_fd()),
            })
            .collect()
    }

    /// Stops all workers. Awaiting them is the returned closure's work, which
    /// blocks: a write to a slow disk has to end first.
    pub(super) fn stop(&mut self) -> impl FnOnce() + Send + 'static {
        self.tell_senders(|| SendCommand::Stop);
        self.tell_receivers(|| ReceiveCommand::Stop);
        self.links.clear();
        // The readers go first: a worker must not wait on a full queue.
        let out = self.out.take().map(|crew| crew.workers);
        let inn = self.inn.take().map(|crew| crew.workers);
        move || {
            out.into_iter().for_each(join);
            inn.into_iter().for_each(join);
        }
    }
}

fn join<C>(workers: Workers<C>) {
    for (commands, thread) in workers {
        // A worker without a writer has nobody to serve and ends, too.
        drop(commands);
        if thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
}

async fn wait<E>(events: Option<&AsyncFd<Reader<E>>>) {
    let Some(events) = events else {
        return std::future::pending().await;
    };
    if !events.get_ref().sleep() {
        if events.get_ref().is_closed() {
            // All its workers have ended, and told so: nothing more comes.
            return std::future::pending().await;
        }
        return;
    }
    // Only a runtime that shuts down makes this fail; then nothing is awaited.
    if let Ok(mut ready) = events.readable().await {
        ready.clear_ready();
    }
    events.get_ref().awake();
}

/// More than two connections, and so more than one worker, never helped on two
/// cores; a worker saturates one core and a peer's work needs others.
fn workers_by_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 4).clamp(1, 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::HEADER_BYTES;
    use std::io::Read;
    use std::net::{Shutdown, TcpListener, TcpStream};

    #[test]
    fn a_first_window_is_one_whole_frame_of_padding() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let dialled =
            TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let (mut accepted, _) = listener.accept().expect("accepts");
        assert!(!is_long(dialled.as_fd()), "a loopback");
        fill_first_window(dialled.as_fd()).expect("sent");
        dialled.shutdown(Shutdown::Write).expect("shut down");
        let mut bytes = Vec::new();
        accepted.read_to_end(&mut bytes).expect("read");
        let header = bytes.first_chunk::<HEADER_BYTES>().expect("a header");
        let header = FrameHeader::decode(header).expect("it decodes");
        assert!(header.is_padding());
        let length = HEADER_BYTES + header.table_bytes() + header.payload_bytes as usize;
        assert_eq!(bytes.len(), length);
        assert!(length <= limits::PADDING_BYTES_MAX);
    }

    #[test]
    fn a_connection_that_its_peer_has_lost_does_not_join() {
        let mut links = Links::new(Clock::start(), Some(1), SocketOptions::default());
        links.bar(3);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let dialled =
            TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let joined = links.attach(3, Way::In, dialled.into(), false);
        assert!(joined.is_err(), "its chunks may be another's by now");
        assert!(!links.has(3));
    }
}
