//! The client's role in a session: it dials, starts transfers and reports them.
//!
//! Leaves to others: when to dial (protocol's session), and the transfer itself.
//! Invariant: a caller who started a
//! transfer gets exactly one report.

use super::dial;
use crate::error::{Error, ErrorKind, Result};
use crate::files::metadata::Keeping;
use crate::files::reflink::{Lending, Reflinks};
use crate::files::target::TargetOptions;
use crate::files::walk::{Reach, Walk};
use crate::kernel::descriptors::Share;
use crate::kernel::random::random;
use crate::limits;
use crate::options::{
    CopyOptions, LocalSource, LocalTarget, PassOver, PoolOptions, RemoteSource, RemoteTarget,
    is_contents,
};
use crate::protocol::credit::Credit;
use crate::protocol::handshake::{self, ClientHandshake};
use crate::protocol::names::{Hearing, Saying};
use crate::protocol::session::{SessionOutput, Way};
use crate::protocol::wire::{Begin, CheckKind, ConnectionRole, Flow, Message, Preamble, Task};
use crate::protocol::{ConnectionId, TransferId};
use crate::session::destination::{Asked, Making};
use crate::session::event::Update;
use crate::session::inbox::{Done, Inner, Opened, Start, StartTask};
use crate::session::role::Role;
use crate::session::running::{Active, Running};
use crate::session::sending_half::{SendingOptions, Supply};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// What a client keeps besides the session.
pub(super) struct Client {
    /// Until the server proved itself.
    handshake: Option<ClientHandshake>,
    session: handshake::ProvenSession,
    address: SocketAddr,
    options: PoolOptions,
    /// Dialled, and not joined yet; the oldest first.
    dialled: VecDeque<OwnedFd>,
    /// Why there are fewer connections than were asked for.
    fewer: Vec<String>,
    /// The target of the push whose first sources are being opened, and the
    /// descriptors for all of them.
    starting: Option<(Task, CopyOptions, Share)>,
    /// Of that push, where its receiver is in this process.
    reflinks: Option<Reflinks>,
}

impl Client {
    pub(super) fn new(
        handshake: ClientHandshake,
        session: handshake::ProvenSession,
        address: SocketAddr,
        options: PoolOptions,
        fewer: Vec<String>,
    ) -> Self {
        Self {
            handshake: Some(handshake),
            session: handshake::ProvenSession {
                authenticated: false,
                ..session
            },
            address,
            options,
            dialled: VecDeque::new(),
            fewer,
            starting: None,
            reflinks: None,
        }
    }

    /// Joins the oldest socket that was dialled to the session, as this number and
    /// this way.
    fn join(&mut self, running: &mut Running, connection: ConnectionId, flow: Flow) {
        let Some(socket) = self.dialled.pop_front() else {
            return;
        };
        let (way, waits) = (Way::of(flow, true), running.waits_for_answer());
        let core = &mut running.core;
        let joined = self
            .say_join(&socket, connection, flow)
            .and_then(|()| core.links.attach(connection, way, socket, waits));
        let now = core.clock.now();
        match joined {
            Ok(notes) => {
                core.machine.joined(now, connection);
                running.joined(connection, way, notes);
            }
            // What this process lacks is its user's to give.
            Err(error) if error.kind == ErrorKind::Local => {
                core.machine.join_failed(now, connection, error.lasting());
            }
            Err(error) => core.machine.join_failed(now, connection, error),
        }
    }

    fn say_join(&self, socket: &OwnedFd, connection: ConnectionId, flow: Flow) -> Result<()> {
        let (id, secret) = (self.session.id, &self.session.secret);
        let join = secret.join(id, connection, flow, random()?);
        let mut bytes = Preamble::ours(ConnectionRole::Data).encode().to_vec();
        bytes.extend_from_slice(&join.encode());
        // A fresh socket's buffer takes these few bytes at once.
        let doing = "cannot join a data connection";
        match rustix::net::send(socket, &bytes, rustix::net::SendFlags::NOSIGNAL) {
            Ok(count) if count == bytes.len() => Ok(()),
            Ok(_) => Err(Error::peer(doing, "its buffer was full")),
            Err(errno) => Err(Error::peer(doing, errno)),
        }
    }

    /// A caller's transfer begins.
    fn start(&mut self, running: &mut Running, start: Start) {
        let Start {
            transfer,
            task,
            options,
            reflinks,
            updates,
            asked,
        } = start;
        let chunk_bytes = options.chunk_bytes;
        let mut active = Active::new(&running.core, transfer, chunk_bytes, asked, Some(updates));
        if !options.file_events {
            active.tally.tell_no_files();
        }
        for note in &self.fewer {
            active.tally.note(note.clone());
        }
        let flow = match &task {
            StartTask::Push { .. } => Flow::FromDialler,
            StartTask::Pull { .. } => Flow::ToDialler,
        };
        if !running.core.machine.start(transfer, flow) {
            let busy = Error::usage("cannot start a transfer: the pool's last one still runs");
            return self.report(active, Err(busy));
        }
        running.begin(active);
        match task {
            StartTask::Push { sources, target } => {
                self.reflinks = reflinks;
                self.push(running, transfer, sources, target, options);
            }
            StartTask::Pull { sources, target } => {
                if let Err(error) = self.pull(running, transfer, sources, target, &options) {
                    running.refuse(error);
                }
            }
        }
    }

    fn push(
        &mut self,
        running: &mut Running,
        transfer: TransferId,
        sources: Vec<LocalSource>,
        target: RemoteTarget,
        options: CopyOptions,
    ) {
        let is_path = |source: &LocalSource| matches!(source, LocalSource::Path(_));
        let may_be_tree = sources.iter().any(is_path);
        let share = self.share(running, sources.len(), may_be_tree);
        let mut target = target;
        if let RemoteTarget::Path { make, .. } = &mut target {
            *make |= sources.iter().any(|source| match source {
                LocalSource::Path(path) => is_contents(path.as_os_str().as_bytes()),
                _ => false,
            });
        }
        let inner = running.core.inner.clone();
        let tell = move |news| drop(inner.send(Inner::Stream(transfer, news)));
        let (drop_cache, chunk_bytes) = (options.drop_cache, options.chunk_bytes);
        let walk = match Walk::new(
            Reach::User,
            sources,
            true,
            options.tree.clone(),
            drop_cache,
            chunk_bytes,
        ) {
            Ok(walk) => walk,
            Err(error) => return running.end(Err(error)),
        };
        let walk = walk.telling_content(options.rules.pass_over == PassOver::SameContent);
        let walk = Box::new(walk.telling(Box::new(tell)));
        // The receiver has not said yet how many it has.
        let room = Credit::new(share.count(), 0).room(0);
        self.starting = Some((Task::Push { target }, options, share));
        let open = move || Done::Opened(Opened::next(walk, room, true));
        let failed = |error| Done::Opened(Err(error));
        running.core.hand(transfer, open, failed);
    }

    fn pull(
        &mut self,
        running: &mut Running,
        transfer: TransferId,
        sources: Vec<RemoteSource>,
        target: LocalTarget,
        options: &CopyOptions,
    ) -> Result<()> {
        let is_path = |source: &RemoteSource| matches!(source, RemoteSource::Path(_));
        let may_be_tree = target != LocalTarget::Stdout && sources.iter().any(is_path);
        let share = self.share(running, sources.len(), may_be_tree);
        let mut target = target;
        if let LocalTarget::Path { make, .. } = &mut target {
            *make |= sources.iter().any(|source| match source {
                RemoteSource::Path(path) => is_contents(path),
                RemoteSource::Names(_) | RemoteSource::Generated { .. } => false,
            });
        }
        let mut saying = Saying::new(sources);
        let (sources, last) = saying.next_part();
        let begin = self.begin(transfer, Task::Pull { sources, last }, options, &share);
        let window_bytes = (target == LocalTarget::Stdout).then_some(limits::STREAM_WINDOW_BYTES);
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
            digest: options.digest,
        };
        let keeping = Keeping::new(self.options.token.is_some());
        let making = Making {
            options: targets,
            rules: options.rules,
            keeping,
            filters: options.tree.filters.clone(),
            reflinks: None,
        };
        running.receive(Asked::from(target), making, share, saying)
    }

    /// Descriptors for a transfer of so many files, or of directories.
    fn share(&self, running: &Running, files: usize, may_be_tree: bool) -> Share {
        let of_tree = if may_be_tree {
            limits::TREE_DESCRIPTORS
        } else {
            0
        };
        let want = files.saturating_mul(limits::ENTRY_DESCRIPTORS_MAX as usize);
        let want = want.max(of_tree);
        let connections = self.options.connections as usize;
        running.core.share(want, connections)
    }

    /// Tells the caller how it ended.
    fn report(&self, active: Active, end: Result<()>) {
        let (report, caller) = active.report(end, self.session.authenticated);
        if let Some(caller) = caller {
            // A caller who is gone wants no report.
            let _ = caller.send(Update::Report(Box::new(report)));
        }
    }

    fn begin(
        &self,
        transfer: TransferId,
        task: Task,
        options: &CopyOptions,
        share: &Share,
    ) -> Begin {
        Begin {
            transfer,
            task,
            chunk_bytes: options.chunk_bytes,
            check: CheckKind::Xxh3,
            fsync: options.fsync,
            verify: options.verify,
            drop_cache: options.drop_cache,
            digest: options.digest,
            transmit: options.transmit,
            tree: options.tree.clone(),
            rules: options.rules,
            window_bytes: None,
            descriptors_max: Some(share.count()),
            rate_limit_bytes_per_second: self.options.rate_limit_bytes_per_second,
        }
    }

    /// A connection was dialled, or failed to.
    fn dialled(&mut self, running: &mut Running, dialled: Result<OwnedFd>) {
        let now = running.core.clock.now();
        let result = dialled.map(|socket| self.dialled.push_back(socket));
        running.core.machine.dialled(now, result);
    }
}

impl Role for Client {
    fn proof(&mut self, running: &mut Running, proof: [u8; 32]) -> Result<()> {
        if let Some(handshake) = self.handshake.take() {
            self.session = handshake.ready(proof)?;
            running.core.channel.trust();
        }
        Ok(())
    }

    fn carry(&mut self, running: &mut Running, output: SessionOutput) {
        match output {
            SessionOutput::Dial { count } => {
                let (from, core) = (self.options.bind, &running.core);
                dial::dial_all(self.address, from, core.links.sockets(), count, &core.inner);
            }
            SessionOutput::Join { connection, flow } => self.join(running, connection, flow),
            // Nobody begins a transfer with a client.
            _ => {}
        }
    }

    fn asked(&mut self, running: &mut Running, inner: Inner) {
        match inner {
            Inner::Start(start) => self.start(running, *start),
            Inner::Dialled(result) => self.dialled(running, result),
            // Nobody joins a session that dials.
            _ => {}
        }
    }

    /// The first sources of a push: the peer hears of it.
    fn opened(&mut self, running: &mut Running, opened: Result<Opened>) {
        let opened = match opened {
            Ok(opened) => opened,
            // The peer has not heard of the transfer.
            Err(error) => return running.end(Err(error)),
        };
        let Some((task, options, share)) = self.starting.take() else {
            return;
        };
        let Some(transfer) = running.active().map(|active| active.transfer) else {
            return;
        };
        let begin = self.begin(transfer, task, &options, &share);
        running.core.channel.send(&Message::Begin(begin));
        let sending = SendingOptions {
            chunk_bytes: options.chunk_bytes,
            transmit: options.transmit,
            drop_cache: options.drop_cache,
            window_bytes: None,
            peer_descriptors_max: 0,
            deletes: options.rules.deletes,
            lending: match options.verify {
                true => None,
                false => Lending::new(self.reflinks.take(), transfer, options.reflink),
            },
        };
        let supply = Supply {
            share,
            hearing: Hearing::new(true),
            opened,
        };
        running.send(sending, supply);
    }

    fn connection_broke(&self, _connection: ConnectionId, _why: &str) {
        // Its caller hears it as an event.
    }

    fn ended(&mut self, _running: &mut Running, active: Active, end: Result<()>) {
        self.starting = None;
        self.report(active, end);
    }
}
