//! The client's role in a session: it dials, starts transfers and reports them.
//!
//! Leaves to others: the transfer itself. Invariant: a caller who started a
//! transfer gets exactly one report.

use super::dial;
use crate::error::{Error, ErrorKind, Result};
use crate::files::generated::Generated;
use crate::files::source::{self, FileSource, Source};
use crate::files::stream::StreamSource;
use crate::files::target::TargetOptions;
use crate::kernel::random::random;
use crate::limits;
use crate::options::{CopyOptions, LocalSource, LocalTarget, PoolOptions};
use crate::protocol::handshake::{self, ClientHandshake};
use crate::protocol::wire::{Begin, CheckKind, ConnectionRole, Flow, Message, Preamble, Task};
use crate::protocol::{ConnectionId, TransferId};
use crate::session::core::Core;
use crate::session::event::Update;
use crate::session::inbox::{Done, Inner, Opened, Start, StartTask};
use crate::session::links::Way;
use crate::session::receiving_half::Asked;
use crate::session::role::Role;
use crate::session::running::{Active, Running};
use crate::session::sending_half::SendingOptions;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// The wait before a first redial; it doubles with each in a row.
const REDIAL_WAIT_MS: u64 = 100;
/// The longest wait before a redial.
const REDIAL_WAIT_MS_MAX: u64 = 5_000;
/// The wait before a peer that takes no more connections in is tried again.
const FULL_WAIT_MS: u64 = 30_000;

/// What a client keeps besides the session.
pub(super) struct Client {
    /// Until the server proved itself.
    handshake: Option<ClientHandshake>,
    session: handshake::Session,
    address: SocketAddr,
    options: PoolOptions,
    next_connection: ConnectionId,
    /// Dialled before it was known which way they are to carry.
    spares: Vec<OwnedFd>,
    /// Dials under way.
    dialling: usize,
    /// Rounds of dials in a row without a landed chunk.
    redials: u32,
    /// The next round waits for its time.
    redialling: bool,
    /// The peer left a connection waiting, and has taken none in since.
    is_full: bool,
    /// That a limited rate takes fewer connections than were asked for.
    paced: Option<String>,
    /// Which way the current transfer wants its connections.
    flow: Option<Flow>,
    /// The target of the push whose sources are being opened.
    starting: Option<(Task, CopyOptions)>,
}

impl Client {
    pub(super) fn new(
        handshake: ClientHandshake,
        session: handshake::Session,
        address: SocketAddr,
        options: PoolOptions,
        paced: Option<String>,
    ) -> Self {
        Self {
            handshake: Some(handshake),
            session: handshake::Session {
                authenticated: false,
                ..session
            },
            address,
            options,
            next_connection: 0,
            spares: Vec::new(),
            dialling: 0,
            redials: 0,
            redialling: false,
            is_full: false,
            paced,
            flow: None,
            starting: None,
        }
    }

    /// So many dials are under way already.
    pub(super) fn expect_dials(&mut self, count: usize) {
        self.dialling += count;
    }

    /// Dials `count` connections; each comes as `Inner::Dialled`.
    fn dial(&mut self, core: &Core, count: usize) {
        self.dialling += count;
        let (from, sockets) = (self.options.bind, core.links.sockets());
        dial::dial_all(self.address, from, sockets, count, &core.inner);
    }

    /// A connection is gone, or a dial failed: after a wait all that are missing
    /// by then are dialled, which is one round. `missed` says that the peer took
    /// it not in: while others carry, such a peer is tried now and then, with one.
    /// An error when rounds are through and nothing is left to wait for.
    fn lost(&mut self, core: &Core, why: &str, missed: bool) -> Result<()> {
        self.is_full |= missed;
        if self.redialling {
            return Ok(());
        }
        let way = self.flow.map(|flow| Way::of(flow, true));
        let left = way.map_or(0, |way| core.links.of_way(way).len());
        if self.redials == limits::REDIALS_MAX || self.numbers_left() == 0 {
            if left + self.dialling > 0 {
                return Ok(());
            }
            let tried = match self.numbers_left() {
                0 => "the session has had all its connections".to_owned(),
                _ => format!("{} redials in a row failed", limits::REDIALS_MAX),
            };
            return Err(Error::peer(
                format!("lost all data connections to {}", core.peer),
                format!("{why} ({tried})"),
            ));
        }
        let carries = way.is_some_and(|way| core.links.answered_count(way) > 0);
        let wait = if self.is_full && carries {
            FULL_WAIT_MS
        } else {
            (REDIAL_WAIT_MS << self.redials.min(10)).min(REDIAL_WAIT_MS_MAX)
        };
        self.redials += 1;
        self.redialling = true;
        let inner = core.inner.clone();
        tokio_uring::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // A session that ended wants no connection.
            let _ = inner.send(Inner::Redial);
        });
        Ok(())
    }

    /// The peer took a connection in: it has room for those that are missing.
    fn taken_in(&mut self, core: &Core) {
        if std::mem::take(&mut self.is_full) && !self.redialling {
            // A session that ended wants no connection.
            let _ = core.inner.send(Inner::Redial);
        }
    }

    /// Connection numbers that the session still has.
    fn numbers_left(&self) -> usize {
        let used = self.next_connection as usize + self.spares.len() + self.dialling;
        (limits::JOINS_MAX as usize).saturating_sub(used)
    }

    /// Joins a dialled socket to the session: its number and its way.
    fn join(&mut self, socket: &OwnedFd, flow: Flow) -> Result<ConnectionId> {
        let connection = self.next_connection;
        self.next_connection += 1;
        let join = self
            .session
            .secret
            .join(self.session.id, connection, flow, random()?);
        let mut bytes = Preamble::ours(ConnectionRole::Data).encode().to_vec();
        bytes.extend_from_slice(&join.encode());
        // A fresh socket's buffer takes these few bytes at once.
        let sent = rustix::net::send(socket, &bytes, rustix::net::SendFlags::NOSIGNAL);
        match sent {
            Ok(count) if count == bytes.len() => Ok(connection),
            Ok(_) => Err(Error::peer(
                "cannot join a data connection",
                "its buffer was full",
            )),
            Err(errno) => Err(Error::peer("cannot join a data connection", errno)),
        }
    }

    /// A caller's transfer begins.
    fn start(&mut self, running: &mut Running, start: Start) {
        let Start {
            transfer,
            task,
            options,
            updates,
            asked,
        } = start;
        let chunk_bytes = options.chunk_bytes;
        let mut active = Active::new(&running.core, transfer, chunk_bytes, asked, Some(updates));
        if let Some(note) = &self.paced {
            active.tally.note(note.clone());
        }
        if running.is_busy() {
            let busy = Error::usage("cannot start a transfer: the pool's last one still runs");
            return self.report(active, Err(busy));
        }
        running.begin(active);
        // What failed before says nothing of now.
        self.redials = 0;
        match task {
            StartTask::Push { sources, target } => {
                self.starting = Some((Task::Push { target }, options.clone()));
                let inner = running.core.inner.clone();
                let open = move || Done::Opened(open_all(&sources, transfer, &options, &inner));
                let failed = |error| Done::Opened(Err(error));
                running.core.hand(transfer, open, failed);
                self.want_connections(running, Flow::FromDialler);
            }
            StartTask::Pull { sources, target } => {
                let begin = self.begin(transfer, Task::Pull { sources }, &options);
                let window_bytes =
                    (target == LocalTarget::Stdout).then_some(limits::STREAM_WINDOW_BYTES);
                running.core.channel.send(&Message::Begin(Begin {
                    window_bytes,
                    ..begin
                }));
                let targets = TargetOptions {
                    fsync: options.fsync,
                    verify: options.verify,
                    drop_cache: options.drop_cache,
                    // Only a peer with a proof may set them.
                    special_bits: self.options.token.is_some(),
                };
                if let Err(error) = running.receive(Asked::from(target), targets) {
                    running.refuse(error);
                }
                self.want_connections(running, Flow::ToDialler);
            }
        }
    }

    /// Tells the caller how it ended.
    fn report(&self, active: Active, end: Result<()>) {
        let (report, caller) = active.report(end, self.session.authenticated);
        if let Some(caller) = caller {
            // A caller who is gone wants no report.
            let _ = caller.send(Update::Report(Box::new(report)));
        }
    }

    fn begin(&self, transfer: TransferId, task: Task, options: &CopyOptions) -> Begin {
        Begin {
            transfer,
            task,
            chunk_bytes: options.chunk_bytes,
            check: CheckKind::Xxh3,
            fsync: options.fsync,
            verify: options.verify,
            drop_cache: options.drop_cache,
            transmit: options.transmit,
            window_bytes: None,
            rate_limit_bytes_per_second: self.options.rate_limit_bytes_per_second,
        }
    }

    /// Sees to as many connections of that way as were asked for.
    fn want_connections(&mut self, running: &mut Running, flow: Flow) {
        let here = running.core.links.of_way(Way::of(flow, true)).len();
        self.flow = Some(flow);
        let missing = (self.options.connections as usize).saturating_sub(here);
        let wanted = missing.saturating_sub(self.spares.len() + self.dialling);
        let most = match self.is_full && here > 0 {
            true => 1,
            false => self.numbers_left(),
        };
        self.dial(&running.core, wanted.min(most));
        let spares: Vec<_> = self.spares.drain(..).take(missing).collect();
        for socket in spares {
            self.join_dialled(running, socket, flow);
        }
    }

    /// A connection was dialled, or failed to.
    fn dialled(&mut self, running: &mut Running, dialled: Result<OwnedFd>) {
        self.dialling = self.dialling.saturating_sub(1);
        match (dialled, self.flow) {
            (Ok(socket), Some(flow)) => self.join_dialled(running, socket, flow),
            (Ok(socket), None) => self.spares.push(socket),
            (Err(error), _) => self.dial_failed(running, &error),
        }
    }

    fn join_dialled(&mut self, running: &mut Running, socket: OwnedFd, flow: Flow) {
        let waits = running.waits_for_answer();
        let way = Way::of(flow, true);
        let joined = self.join(&socket, flow).and_then(|connection| {
            let links = &mut running.core.links;
            let notes = links.attach(connection, way, socket, waits)?;
            links.await_answer(connection);
            Ok((connection, notes))
        });
        match joined {
            Ok((connection, notes)) => running.joined(connection, way, notes),
            Err(error) if error.kind == ErrorKind::Peer => self.dial_failed(running, &error),
            Err(error) => {
                // A choice by name that cannot be had fails every connection alike.
                if let Some(active) = running.active() {
                    active.stop(error);
                }
            }
        }
    }

    fn dial_failed(&mut self, running: &mut Running, error: &Error) {
        if !running.is_busy() {
            return;
        }
        let lost = self.lost(&running.core, &error.to_string(), false);
        if let (Err(error), Some(active)) = (lost, running.active()) {
            active.stop(error);
        }
    }
}

impl Role for Client {
    fn unproved(&self, peer: &str, why: &str) -> Option<Error> {
        self.handshake.as_ref()?;
        let kind = match self.options.token {
            Some(_) => ErrorKind::Unauthorised,
            None => ErrorKind::Peer,
        };
        Some(Error::new(kind, format!("cannot go on with {peer}: {why}")))
    }

    fn message(&mut self, running: &mut Running, message: Message) -> Result<()> {
        let peer = &running.core.peer;
        let unexpected = |what| Err(Error::peer(format!("cannot go on with {peer}"), what));
        match message {
            Message::Ready(proof) => {
                let Some(handshake) = self.handshake.take() else {
                    return unexpected("it greeted twice");
                };
                self.session = handshake.ready(proof)?;
                running.core.channel.trust();
                Ok(())
            }
            Message::Joined { connection } => {
                running.core.links.answered(connection);
                self.taken_in(&running.core);
                Ok(())
            }
            message => {
                tracing::debug!(?message, "an unexpected message");
                unexpected("it sent a message that belongs to no transfer")
            }
        }
    }

    fn asked(&mut self, running: &mut Running, inner: Inner) {
        match inner {
            Inner::Start(start) => self.start(running, *start),
            Inner::Dialled(result) => self.dialled(running, result),
            Inner::Redial => {
                self.redialling = false;
                // Between transfers nothing is missing.
                if let Some(flow) = self.flow {
                    self.want_connections(running, flow);
                }
            }
            // Nobody joins a session that dials.
            _ => {}
        }
    }

    /// The sources of a push: the peer hears of it.
    fn opened(&mut self, running: &mut Running, files: Result<Opened>) {
        let files = match files {
            Ok(files) => files,
            // The peer has not heard of the transfer.
            Err(error) => return running.end(Err(error)),
        };
        let Some((task, options)) = self.starting.take() else {
            return;
        };
        let Some(transfer) = running.active().map(|active| active.transfer) else {
            return;
        };
        let begin = self.begin(transfer, task, &options);
        running.core.channel.send(&Message::Begin(begin));
        let sending = SendingOptions {
            chunk_bytes: options.chunk_bytes,
            transmit: options.transmit,
            drop_cache: options.drop_cache,
            window_bytes: None,
        };
        running.send(sending, files);
    }

    fn worked(&mut self) {
        self.redials = 0;
    }

    fn connection_broke(&self, _connection: ConnectionId, _why: &str) {
        // Its caller hears it as an event.
    }

    fn connection_lost(&mut self, running: &Running, why: &str, missed: bool) -> Result<()> {
        self.lost(&running.core, why, missed)
    }

    fn late(&mut self, running: &mut Running, transfer: TransferId, message: Message) {
        running.disown(transfer, &message);
    }

    fn ended(&mut self, _running: &mut Running, active: Active, end: Result<()>) {
        self.flow = None;
        self.starting = None;
        self.report(active, end);
    }

    fn closing(&self) -> Option<Error> {
        None
    }
}

/// Opens what a push sends.
fn open_all(
    sources: &[LocalSource],
    transfer: TransferId,
    options: &CopyOptions,
    inner: &UnboundedSender<Inner>,
) -> Result<Opened> {
    let open = |source: &LocalSource| -> Result<Source> {
        Ok(match source {
            LocalSource::Path(path) => {
                let mut file = FileSource::open_local(path)?;
                if options.drop_cache {
                    file.prefer_direct();
                }
                Source::File(file)
            }
            LocalSource::Stdin => {
                let inner = inner.clone();
                let tell = move |news| drop(inner.send(Inner::Stream(transfer, news)));
                Source::Stream(StreamSource::stdin(options.chunk_bytes, tell)?)
            }
            LocalSource::Generated { pattern, bytes } => Source::Generated(Generated::new(
                *pattern,
                *bytes,
                u64::from_le_bytes(random()?),
            )),
        })
    };
    source::open_each(sources, open, |source| match source {
        LocalSource::Path(path) => Some(path.as_os_str().as_bytes()),
        LocalSource::Stdin | LocalSource::Generated { .. } => None,
    })
}
