//! The client's part of a session: it dials, starts transfers and reports them.
//!
//! Leaves to others: the transfer itself. Invariant: a caller who started a
//! transfer gets exactly one report.

use super::core::{Core, Done, Inner};
use super::dial;
use super::links::Way;
use super::pool::{Start, StartTask};
use super::receiving::{Destination, Receiving};
use super::role::Role;
use super::sending::{Sending, SendingOptions};
use super::session::{Active, Half, Session};
use super::tally::Tally;
use super::transfer::Update;
use crate::error::{Error, ErrorKind, Result};
use crate::files::generated::Generated;
use crate::files::source::{self, FileSource, Source};
use crate::files::stream::StreamSource;
use crate::files::target::TargetOptions;
use crate::kernel::random::random;
use crate::limits;
use crate::options::{CopyOptions, LocalSource, LocalTarget, PoolOptions};
use crate::protocol::handshake::{self, ClientHandshake};
use crate::protocol::wire::Role as ConnectionRole;
use crate::protocol::wire::{Begin, CheckKind, Entry, Flow, Message, Preamble, Task};
use crate::protocol::{ConnectionId, TransferId};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
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

    /// The error where the server has not proved itself yet.
    pub(super) fn unproved(&self, peer: &str, why: &str) -> Option<Error> {
        self.handshake.as_ref()?;
        let kind = match self.options.token {
            Some(_) => ErrorKind::Unauthorised,
            None => ErrorKind::Peer,
        };
        Some(Error::new(kind, format!("cannot go on with {peer}: {why}")))
    }

    /// So many dials are under way already.
    pub(super) fn expect_dials(&mut self, count: usize) {
        self.dialling += count;
    }

    pub(super) fn worked(&mut self) {
        self.redials = 0;
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
    pub(super) fn connection_lost(&mut self, core: &Core, why: &str, missed: bool) -> Result<()> {
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
    pub(super) fn taken_in(&mut self, core: &Core) {
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

    pub(super) fn transfer_ended(&mut self, active: Active, end: Result<()>) {
        self.flow = None;
        self.starting = None;
        let (bytes, chunk_bytes, sends) = (active.bytes(), active.chunk_bytes, active.sends());
        let caller = active.tally.caller();
        let report =
            active
                .tally
                .report(end, bytes, chunk_bytes, sends, self.session.authenticated);
        if let Some(caller) = caller {
            // A caller who is gone wants no report.
            let _ = caller.send(Update::Report(Box::new(report)));
        }
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
}

impl Session {
    fn client(&mut self) -> Option<&mut Client> {
        match &mut self.role {
            Role::Client(client) => Some(client),
            Role::Server(_) => None,
        }
    }

    pub(super) fn client_message(&mut self, message: Message) -> Result<()> {
        let peer = self.core.peer.clone();
        let unexpected = |what: String| Error::peer(format!("cannot go on with {peer}"), what);
        match message {
            Message::Ready(proof) => {
                let Some(client) = self.client() else {
                    return Ok(());
                };
                let Some(handshake) = client.handshake.take() else {
                    return Err(unexpected("it greeted twice".to_owned()));
                };
                client.session = handshake.ready(proof)?;
                self.core.channel.trust();
                Ok(())
            }
            message => {
                tracing::debug!(?message, "an unexpected message");
                Err(unexpected(
                    "it sent a message that belongs to no transfer".to_owned(),
                ))
            }
        }
    }

    /// A caller's transfer begins.
    pub(super) fn client_start(&mut self, start: Start) -> Result<()> {
        let Start {
            transfer,
            task,
            options,
            updates,
            asked,
        } = start;
        let mut tally = Tally::new(self.core.clock, asked, Some(updates.clone()));
        if let Some(note) = self.client().and_then(|client| client.paced.clone()) {
            tally.note(note);
        }
        let active = Active {
            transfer,
            tally,
            chunk_bytes: options.chunk_bytes,
            half: Half::Opening,
            stopped: None,
            early: None,
            finished_early: false,
        };
        if self.active.is_some() {
            let busy = Error::usage("cannot start a transfer: the pool's last one still runs");
            let report = active
                .tally
                .report(Err(busy), Default::default(), 0, true, false);
            let _ = updates.send(Update::Report(Box::new(report)));
            return Ok(());
        }
        self.active = Some(active);
        self.core.links.reset_counts();
        if let Some(client) = self.client() {
            // What failed before says nothing of now.
            client.redials = 0;
        }
        match task {
            StartTask::Push { sources, target } => {
                if let Some(client) = self.client() {
                    client.starting = Some((Task::Push { target }, options.clone()));
                }
                let inner = self.core.inner.clone();
                let open = move || Done::Opened(open_all(&sources, transfer, &options, &inner));
                self.core
                    .hand(transfer, open, |error| Done::Opened(Err(error)));
                self.want_connections(Flow::FromDialler);
            }
            StartTask::Pull { sources, target } => {
                let begin = self.begin(transfer, Task::Pull { sources }, &options);
                let window_bytes =
                    (target == LocalTarget::Stdout).then_some(limits::STREAM_WINDOW_BYTES);
                self.core.channel.send(&Message::Begin(Begin {
                    window_bytes,
                    ..begin
                }));
                self.receive(transfer, target, &options);
                self.want_connections(Flow::ToDialler);
            }
        }
        Ok(())
    }

    fn receive(&mut self, transfer: TransferId, target: LocalTarget, options: &CopyOptions) {
        let destination = Destination::from(target);
        let targets = TargetOptions {
            fsync: options.fsync,
            verify: options.verify,
            drop_cache: options.drop_cache,
            // Only a peer with a proof may set them.
            special_bits: self
                .client()
                .is_some_and(|client| client.options.token.is_some()),
        };
        match Receiving::start(
            &mut self.core,
            transfer,
            options.chunk_bytes,
            destination,
            targets,
        ) {
            Ok(receiving) => {
                if let Some(active) = &mut self.active {
                    active.half = Half::Receiving(receiving);
                }
            }
            Err(error) => {
                self.core.channel.send(&Message::Abort {
                    transfer,
                    error: error.clone(),
                });
                self.transfer_ended(Err(error));
            }
        }
    }

    fn begin(&mut self, transfer: TransferId, task: Task, options: &CopyOptions) -> Begin {
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
            rate_limit_bytes_per_second: self
                .client()
                .and_then(|client| client.options.rate_limit_bytes_per_second),
        }
    }

    /// The sources of a push are open: the peer hears of it.
    pub(super) fn client_opened(&mut self, files: Vec<(Entry, Arc<Source>)>) {
        let Some((task, options)) = self.client().and_then(|client| client.starting.take()) else {
            return;
        };
        let Some(transfer) = self.active.as_ref().map(|active| active.transfer) else {
            return;
        };
        let begin = self.begin(transfer, task, &options);
        self.core.channel.send(&Message::Begin(begin));
        let sending = SendingOptions {
            chunk_bytes: options.chunk_bytes,
            transmit: options.transmit,
            drop_cache: options.drop_cache,
            window_bytes: None,
        };
        if let Some(active) = &mut self.active {
            let sending = Sending::start(&self.core, &mut active.tally, transfer, sending, files);
            active.half = Half::Sending(sending);
            if let (Some(news), Half::Sending(sending)) = (active.early.take(), &mut active.half) {
                sending.stream(news);
            }
            if let (true, Half::Sending(sending)) = (active.finished_early, &mut active.half) {
                sending.finish_streams();
            }
        }
    }

    /// Sees to as many connections of that way as were asked for.
    fn want_connections(&mut self, flow: Flow) {
        let here = self.core.links.of_way(Way::of(flow, true)).len();
        let Role::Client(client) = &mut self.role else {
            return;
        };
        client.flow = Some(flow);
        let missing = (client.options.connections as usize).saturating_sub(here);
        let wanted = missing.saturating_sub(client.spares.len() + client.dialling);
        let most = match client.is_full && here > 0 {
            true => 1,
            false => client.numbers_left(),
        };
        let more = wanted.min(most);
        client.dial(&self.core, more);
        let spares: Vec<_> = client.spares.drain(..).take(missing).collect();
        for socket in spares {
            self.join_dialled(socket, flow);
        }
    }

    /// Dials what is missing.
    pub(super) fn client_redial(&mut self) {
        let Role::Client(client) = &mut self.role else {
            return;
        };
        client.redialling = false;
        // Between transfers nothing is missing.
        if let Some(flow) = client.flow {
            self.want_connections(flow);
        }
    }

    /// A connection was dialled, or failed to.
    pub(super) fn client_dialled(&mut self, dialled: Result<OwnedFd>) -> Result<()> {
        let Role::Client(client) = &mut self.role else {
            return Ok(());
        };
        client.dialling = client.dialling.saturating_sub(1);
        match (dialled, client.flow) {
            (Ok(socket), Some(flow)) => self.join_dialled(socket, flow),
            (Ok(socket), None) => client.spares.push(socket),
            (Err(error), _) => self.dial_failed(&error.to_string()),
        }
        Ok(())
    }

    fn join_dialled(&mut self, socket: OwnedFd, flow: Flow) {
        let waits = self.waits_for_answer();
        let Role::Client(client) = &mut self.role else {
            return;
        };
        let way = Way::of(flow, true);
        let joined = client.join(&socket, flow).and_then(|connection| {
            let notes = self.core.links.attach(connection, way, socket, waits)?;
            self.core.links.await_answer(connection);
            Ok((connection, notes))
        });
        match joined {
            Ok((connection, notes)) => self.joined(connection, way, notes),
            Err(error) if error.kind == ErrorKind::Peer => self.dial_failed(&error.to_string()),
            Err(error) => {
                // A choice by name that cannot be had fails every connection alike.
                if let Some(active) = &mut self.active {
                    active.stop(error);
                }
            }
        }
    }

    fn dial_failed(&mut self, why: &str) {
        let Some(active) = &mut self.active else {
            return;
        };
        if let Err(error) = self.role.connection_lost(&self.core, why, false) {
            active.stop(error);
        }
    }
}

/// Opens what a push sends.
fn open_all(
    sources: &[LocalSource],
    transfer: TransferId,
    options: &CopyOptions,
    inner: &UnboundedSender<Inner>,
) -> Result<Vec<(Entry, Arc<Source>)>> {
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
