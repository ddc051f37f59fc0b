//! A session's data connections and the worker threads that drive them.
//!
//! Leaves to others: what is sent, dialling, and which numbers may join
//! (protocol's session). Invariant: a connection is in the table from its
//! attachment until its worker's `Detached`.

use super::crew::{Crew, Joiner, workers_by_cores};
use super::first_window;
use crate::data::receive::Stock;
use crate::data::{self, Clock, ReceiveCommand, ReceiveEvent, SendCommand, SendEvent};
use crate::error::{Error, Result};
use crate::kernel::socket::{self, SocketOptions};
use crate::protocol::session::Way;
use crate::protocol::{ConnectionId, Run};
use crate::report::ConnectionProgress;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// One data connection.
struct Link {
    way: Way,
    /// A second descriptor: to read TCP_INFO while the worker owns the first.
    socket: OwnedFd,
    bytes: u64,
}

type SendingCrew = Crew<SendCommand, SendEvent>;
type ReceivingCrew = Crew<ReceiveCommand, ReceiveEvent>;

/// The table.
pub(crate) struct Links {
    clock: Clock,
    worker_count: usize,
    sockets: SocketOptions,
    stock: Arc<Stock>,
    /// Of all sending connections together.
    rate_limit_bytes_per_second: Option<u64>,
    links: BTreeMap<ConnectionId, Link>,
    outgoing: Option<SendingCrew>,
    incoming: Option<ReceivingCrew>,
}

impl Links {
    /// No connection and no thread yet. `worker_count` is for each way.
    /// `stock` has the receive blocks that other sessions left.
    pub(crate) fn new(
        clock: Clock,
        workers: Option<usize>,
        sockets: SocketOptions,
        stock: Arc<Stock>,
    ) -> Self {
        let worker_count = workers.unwrap_or_else(workers_by_cores).max(1);
        Self {
            clock,
            worker_count,
            sockets,
            stock,
            rate_limit_bytes_per_second: None,
            links: BTreeMap::new(),
            outgoing: None,
            incoming: None,
        }
    }

    /// The options of data sockets.
    pub(crate) fn sockets(&self) -> &SocketOptions {
        &self.sockets
    }

    /// Limits what all connections together send, those that come later, too.
    pub(crate) fn pace(&mut self, bytes_per_second: Option<u64>) -> Result<()> {
        let was = std::mem::replace(&mut self.rate_limit_bytes_per_second, bytes_per_second);
        if was.is_none() && bytes_per_second.is_none() {
            return Ok(());
        }
        self.share_rate()
    }

    /// What all connections together may send, where that is limited.
    pub(crate) fn rate_limit_bytes_per_second(&self) -> Option<u64> {
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
    pub(crate) fn attach(
        &mut self,
        connection: ConnectionId,
        way: Way,
        socket: OwnedFd,
        waits: bool,
    ) -> Result<Vec<String>> {
        let notes = socket::prepare_data(socket.as_fd(), &self.sockets)?;
        let is_limited = self.rate_limit_bytes_per_second.is_some();
        if waits && way == Way::Out && !is_limited && first_window::is_long(socket.as_fd()) {
            first_window::fill(socket.as_fd())?;
        }
        let second = rustix::io::fcntl_dupfd_cloexec(&socket, 3)
            // Another session may give one back.
            .map_err(|error| {
                Error::local("cannot duplicate a descriptor", error).passing_when(true)
            })?;
        let link = Link {
            way,
            socket: second,
            bytes: 0,
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
        Ok(notes)
    }

    fn hand_over(&mut self, connection: ConnectionId, way: Way, socket: OwnedFd) -> Result<()> {
        let taken = match way {
            Way::Out => {
                let attach = SendCommand::Attach { connection, socket };
                self.sending_crew()?.tell(connection, attach)
            }
            Way::In => {
                let attach = ReceiveCommand::Attach { connection, socket };
                self.receiving_crew()?.tell(connection, attach)
            }
        };
        match taken {
            true => Ok(()),
            false => Err(Error::local("cannot use a worker thread", "it ended")),
        }
    }

    fn sending_crew(&mut self) -> Result<&SendingCrew> {
        let crew = match self.outgoing.take() {
            Some(crew) => crew,
            None => Crew::start(
                "haul-send",
                self.worker_count,
                self.clock,
                data::send::spawn,
            )?,
        };
        Ok(self.outgoing.insert(crew))
    }

    fn receiving_crew(&mut self) -> Result<&ReceivingCrew> {
        let crew = match self.incoming.take() {
            Some(crew) => crew,
            None => Crew::start(
                "haul-recv",
                self.worker_count,
                self.clock,
                |name, commands, events, clock| {
                    data::receive::spawn(name, commands, events, clock, &self.stock)
                },
            )?,
        };
        Ok(self.incoming.insert(crew))
    }

    /// Starts the receiving workers, so that segments can be opened in them
    /// before the first connection joins.
    pub(crate) fn start_receiving(&mut self) -> Result<()> {
        self.receiving_crew().map(|_| ())
    }

    /// The connections of one way, ascending.
    pub(crate) fn of_way(&self, way: Way) -> Vec<ConnectionId> {
        self.links
            .iter()
            .filter(|(_, link)| link.way == way)
            .map(|(id, _)| *id)
            .collect()
    }

    /// How many there are, of either way.
    pub(crate) fn count_all(&self) -> usize {
        self.links.len()
    }

    /// Asks the connection's worker to end it at once, `why`; `Detached` follows.
    pub(crate) fn detach(&self, connection: ConnectionId, why: &str) {
        let doing = format!("gave data connection {connection} up");
        let cause = Error::peer(doing, why);
        let way = self.links.get(&connection).map(|link| link.way);
        match (way, &self.outgoing, &self.incoming) {
            (Some(Way::Out), Some(crew), _) => {
                crew.tell(connection, SendCommand::Detach { connection, cause })
            }
            (Some(Way::In), _, Some(crew)) => {
                crew.tell(connection, ReceiveCommand::Detach { connection, cause })
            }
            _ => false,
        };
    }

    /// Ends every sending connection whose peer's kernel said nothing for
    /// longer than `wait`: a slow reader answers probes, a dead one does not.
    pub(crate) fn detach_silent(&self, wait: Duration) {
        for (connection, link) in self.links.iter().filter(|(_, link)| link.way == Way::Out) {
            if socket::silence(link.socket.as_fd()).is_some_and(|silence| silence > wait) {
                self.detach(*connection, "the peer's machine does not answer");
            }
        }
    }

    /// The worker said `Detached`.
    pub(crate) fn detached(&mut self, connection: ConnectionId) {
        let left = self.links.remove(&connection);
        if self.rate_limit_bytes_per_second.is_some()
            && left.is_some_and(|link| link.way == Way::Out)
        {
            // The others may send more now; where that fails they stay below.
            let _ = self.share_rate();
        }
    }

    /// Hands a run to its connection's worker.
    pub(crate) fn send_run(
        &self,
        connection: ConnectionId,
        segment: Arc<data::SendSegment>,
        run: Run,
        bytes: Option<u64>,
    ) {
        if let Some(crew) = &self.outgoing {
            let run = SendCommand::Run {
                connection,
                segment,
                run,
                bytes,
            };
            crew.tell(connection, run);
        }
    }

    /// Tells every receiving worker; returns how many there are.
    pub(crate) fn tell_receivers(&self, command: impl Fn() -> ReceiveCommand) -> usize {
        self.incoming
            .as_ref()
            .map_or(0, |crew| crew.tell_all(command))
    }

    /// Tells every sending worker; returns how many there are.
    pub(crate) fn tell_senders(&self, command: impl Fn() -> SendCommand) -> usize {
        self.outgoing
            .as_ref()
            .map_or(0, |crew| crew.tell_all(command))
    }

    /// The next event of a sending worker.
    pub(crate) fn next_sent(&self) -> Option<SendEvent> {
        self.outgoing.as_ref().and_then(Crew::next)
    }

    /// The next event of a receiving worker.
    pub(crate) fn next_received(&self) -> Option<ReceiveEvent> {
        self.incoming.as_ref().and_then(Crew::next)
    }

    /// Waits until a worker has an event. May be dropped at any time.
    pub(crate) async fn ready(&self) {
        tokio::select! {
            () = ready(&self.outgoing) => {}
            () = ready(&self.incoming) => {}
        }
    }

    /// Counts payload bytes for progress.
    pub(crate) fn count(&mut self, connection: ConnectionId, bytes: u64) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.bytes += bytes;
        }
    }

    /// Forgets what was counted, at the start of a transfer.
    pub(crate) fn reset_counts(&mut self) {
        self.links.values_mut().for_each(|link| link.bytes = 0);
    }

    /// Every connection of one way, as it is now.
    pub(crate) fn progress(&self, way: Way) -> Vec<ConnectionProgress> {
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
    pub(crate) fn stop(&mut self) -> impl FnOnce() + Send + 'static {
        self.tell_senders(|| SendCommand::Stop);
        self.tell_receivers(|| ReceiveCommand::Stop);
        self.links.clear();
        let outgoing = self.outgoing.take().map(Crew::into_joiner);
        let incoming = self.incoming.take().map(Crew::into_joiner);
        move || {
            outgoing.into_iter().for_each(Joiner::join);
            incoming.into_iter().for_each(Joiner::join);
        }
    }
}

async fn ready<C, E>(crew: &Option<Crew<C, E>>) {
    match crew {
        Some(crew) => crew.ready().await,
        None => std::future::pending().await,
    }
}
