//! The client: a control connection and a pool of data connections to one
//! peer, reused from transfer to transfer.
//!
//! Leaves to others: what happens inside a session. Invariant: calls block the
//! caller, never the control thread, and a dropped pool leaves no thread.

use super::role::Client;
use super::transfer::Transfer;
use super::{dial, greet};
use crate::data::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::files::reflink::Reflinks;
use crate::kernel::descriptors::{self, Share};
use crate::kernel::random::random;
use crate::kernel::socket::SocketOptions;
use crate::limits;
use crate::options::{
    CopyOptions, LocalSource, LocalTarget, PeerAddress, PoolOptions, Reflink, RemoteSource,
    RemoteTarget,
};
use crate::protocol::TransferId;
use crate::protocol::handshake::ClientHandshake;
use crate::protocol::session::{SessionEnd, SessionMachine};
use crate::protocol::wire::Message;
use crate::session::channel::{Channel, Incoming};
use crate::session::core::Core;
use crate::session::greeting::Deadline;
use crate::session::inbox::{Inner, Start, StartTask};
use crate::session::life::Session;
use crate::session::links::Links;
use crate::session::running::Running;
use crate::session::runtime::start_runtime;
use crate::session::software;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Connections to one peer. One transfer runs at a time; the next uses the
/// same connections.
pub struct Pool {
    peer: PeerAddress,
    clock: Clock,
    inner: UnboundedSender<Inner>,
    thread: Option<JoinHandle<()>>,
    /// Why the session ended.
    ended: Arc<Mutex<Option<Error>>>,
    /// Shared with the peer, where that is a server in this process.
    reflinks: Option<Reflinks>,
}

impl Pool {
    /// Connects and greets.
    ///
    /// # Errors
    /// The name does not resolve, nobody answers, the peer is not haul's or of
    /// another version, or io_uring cannot be used here. A token that the peer
    /// does not know ends the first transfer, as its proof is still under way.
    pub fn connect(peer: &PeerAddress, options: PoolOptions) -> Result<Self> {
        if !(1..=limits::CONNECTIONS_MAX).contains(&options.connections) {
            return Err(Error::usage(format!(
                "cannot open {} data connections: 1 to {} are possible",
                options.connections,
                limits::CONNECTIONS_MAX
            )));
        }
        let clock = Clock::start();
        let (connected, result) = mpsc::channel();
        let address = peer.clone();
        let ended = Arc::new(Mutex::new(None));
        let end = ended.clone();
        let thread = std::thread::Builder::new()
            .name("haul-control".to_owned())
            .spawn(move || control(&address, options, clock, &connected, &end))
            .map_err(|error| Error::local("cannot start the control thread", error))?;
        let gone = || {
            Error::local(
                format!("cannot connect to {peer}"),
                "the control thread ended",
            )
        };
        match result.recv().unwrap_or_else(|_| Err(gone())) {
            Ok(inner) => Ok(Self {
                peer: peer.clone(),
                clock,
                inner,
                thread: Some(thread),
                ended,
                reflinks: None,
            }),
            Err(error) => {
                // It has said all it had to say.
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// Says that the peer is the server in this process that was given the same
    /// `reflinks` (by [`Server::bind_sharing`](crate::Server::bind_sharing)): files that
    /// are pushed share their blocks with their sources, as [`CopyOptions::reflink`] says.
    pub fn share_blocks(&mut self, reflinks: Reflinks) {
        self.reflinks = Some(reflinks);
    }

    /// Sends local sources to the peer.
    ///
    /// # Errors
    /// The pool's session has ended; blocks must be shared where that cannot be meant.
    pub fn push(
        &mut self,
        sources: Vec<LocalSource>,
        target: RemoteTarget,
        options: &CopyOptions,
    ) -> Result<Transfer> {
        self.start(StartTask::Push { sources, target }, options)
    }

    /// Fetches the peer's sources.
    ///
    /// # Errors
    /// The pool's session has ended.
    pub fn pull(
        &mut self,
        sources: Vec<RemoteSource>,
        target: LocalTarget,
        options: &CopyOptions,
    ) -> Result<Transfer> {
        self.start(StartTask::Pull { sources, target }, options)
    }

    fn start(&mut self, task: StartTask, options: &CopyOptions) -> Result<Transfer> {
        check(options)?;
        if options.reflink == Reflink::Always {
            self.check_always(&task, options)?;
        }
        let (updates, follow) = mpsc::channel();
        let transfer = TransferId(random()?);
        let asked = self.clock.now();
        let start = Start {
            transfer,
            task,
            options: options.clone(),
            reflinks: self.reflinks.clone(),
            updates,
            asked,
        };
        if self.inner.send(Inner::Start(Box::new(start))).is_err() {
            let ended = self
                .ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            return Err(ended.unwrap_or_else(|| {
                let doing = format!("cannot use the connections to {}", self.peer);
                Error::peer(doing, "the session has ended")
            }));
        }
        Ok(Transfer::new(
            follow,
            transfer,
            self.inner.clone(),
            self.ended.clone(),
        ))
    }

    /// Refuses to share blocks where there can be none to share.
    fn check_always(&self, task: &StartTask, options: &CopyOptions) -> Result<()> {
        let is_path = |source: &LocalSource| matches!(source, LocalSource::Path(_));
        let is_of_files = match task {
            StartTask::Push { sources, target } => {
                matches!(target, RemoteTarget::Path { .. }) && sources.iter().all(is_path)
            }
            StartTask::Pull { .. } => false,
        };
        if self.reflinks.is_none() || !is_of_files {
            return Err(Error::usage(
                "only a copy within this machine can share blocks",
            ));
        }
        if options.verify {
            return Err(Error::usage(
                "what shares its blocks cannot be verified: nothing of it is written",
            ));
        }
        Ok(())
    }

    /// Closes the connections and waits for the control thread.
    pub fn close(self) {}
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = self.inner.send(Inner::Close);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

fn check(options: &CopyOptions) -> Result<()> {
    let sizes = limits::CHUNK_BYTES_MIN..=limits::CHUNK_BYTES_MAX;
    if !options.chunk_bytes.is_power_of_two() || !sizes.contains(&options.chunk_bytes) {
        return Err(Error::usage(format!(
            "a chunk of {} bytes is not possible: it is a power of two from {} KiB to {} KiB",
            options.chunk_bytes,
            limits::CHUNK_BYTES_MIN / 1024,
            limits::CHUNK_BYTES_MAX / 1024
        )));
    }
    Ok(())
}

/// The control thread's life.
fn control(
    peer: &PeerAddress,
    options: PoolOptions,
    clock: Clock,
    connected: &mpsc::Sender<Result<UnboundedSender<Inner>>>,
    ended: &Mutex<Option<Error>>,
) {
    let started = start_runtime(async {
        match open(peer, options, clock).await {
            Ok(session) => {
                let _ = connected.send(Ok(session.inbox()));
                session
                    .run(|error| *ended.lock().unwrap_or_else(PoisonError::into_inner) = error)
                    .await;
            }
            Err(error) => drop(connected.send(Err(error))),
        }
    });
    if let Err(error) = started {
        let _ = connected.send(Err(error));
    }
}

/// Leaves as many connections as a limited rate feeds; a note where these are
/// fewer than were asked for.
fn pace(options: &mut PoolOptions) -> Option<String> {
    let rate = options.rate_limit_bytes_per_second?;
    let fed = u32::try_from(rate / limits::PACED_BYTES_PER_SECOND_MIN).unwrap_or(u32::MAX);
    let fed = fed.max(1);
    let asked = options.connections;
    options.connections = asked.min(fed);
    (asked > fed).then(|| {
        format!("{fed} of {asked} connections: the rate limit feeds no more at 2 MB/s each")
    })
}

/// Leaves as many connections as descriptors are there for, the other end's
/// included where it is in this process; half of them are for files.
fn fit(options: &mut PoolOptions) -> Option<String> {
    let of_all = 2 * 2 * limits::DESCRIPTORS_OF_CONNECTION;
    let fit = u32::try_from(descriptors::free() / of_all).unwrap_or(u32::MAX);
    let fit = fit.max(1);
    let asked = options.connections;
    options.connections = asked.min(fit);
    (asked > fit).then(|| {
        let limit = descriptors::limit();
        format!("{fit} of {asked} connections: this process may open {limit} files")
    })
}

/// Connects, says hello, and proves: the session goes on from the welcome.
async fn open(
    peer: &PeerAddress,
    mut options: PoolOptions,
    clock: Clock,
) -> Result<Session<Client>> {
    let addresses = dial::resolve(peer).await?;
    let plain = SocketOptions::default();
    let (socket, address) = dial::connect(addresses, options.bind, plain).await?;
    crate::kernel::socket::prepare_control(socket.as_fd())?;
    let rtt_us = crate::kernel::socket::tcp_info(&socket).map_or(0, |info| info.rtt_us);
    if let (Some(connections), limits::LONG_PATH_US..) = (options.connections_on_long_paths, rtt_us)
    {
        options.connections = connections.clamp(1, limits::CONNECTIONS_MAX);
    }
    let least = Share::least()?;
    let fewer = [pace(&mut options), fit(&mut options)];
    let fewer = fewer.into_iter().flatten().collect();
    let sockets = SocketOptions {
        send_buffer_bytes: options.socket_buffer_bytes,
        receive_buffer_bytes: options.socket_buffer_bytes,
        congestion: options.congestion.clone(),
        pacing_bytes_per_second: options
            .rate_limit_bytes_per_second
            .map(|rate| (rate / u64::from(options.connections)).max(1)),
    };
    let (inner_out, inner) = unbounded_channel();
    // The data connections' handshakes pass the time until the welcome is here.
    let (count, bind) = (options.connections as usize, options.bind);
    dial::dial_all(address, bind, &sockets, count, &inner_out);
    let mut links = Links::new(clock, options.workers, sockets, Arc::default());
    links.pace(options.rate_limit_bytes_per_second)?;
    let stream = Rc::new(tokio_uring::net::TcpStream::from_std(socket.into()));
    let deadline = Deadline::start(stream.clone(), clock);
    let name = peer.to_string();
    let token = options.token.as_ref().map(|token| token.0);
    let (mut handshake, hello) = ClientHandshake::new(token, random()?, software());
    let first = greet::say_hello(&stream, &name, hello)
        .await
        .map_err(|error| deadline.explain(error, &name))?;
    let (channel, mut messages) = Channel::start(stream, &name);
    let end = SessionEnd::Client {
        connections: count,
        dialling: count,
        unproved: match options.token {
            Some(_) => ErrorKind::Unauthorised,
            None => ErrorKind::Peer,
        },
    };
    let welcome = match messages.recv().await {
        Some(Incoming::Message(message)) => match *message {
            Message::Welcome(welcome) => welcome,
            Message::Refuse(error) => return Err(error),
            _ => {
                return Err(Error::peer(
                    format!("cannot greet {name}"),
                    "it does not speak haul's protocol",
                ));
            }
        },
        Some(Incoming::Closed(Some(error))) => return Err(deadline.explain(error, &name)),
        Some(Incoming::Closed(None)) | None => {
            let error = Error::peer(format!("cannot greet {name}"), "it closed the connection");
            return Err(deadline.explain(error, &name));
        }
    };
    deadline.met();
    let proof = handshake.welcomed(&first, welcome)?;
    channel.send(&Message::Proof(proof));
    let Some(session) = handshake.session().cloned() else {
        return Err(Error::peer(
            format!("cannot greet {name}"),
            "it gave no session",
        ));
    };
    let machine = SessionMachine::new(clock.now(), end, name.clone());
    let core = Core::new(clock, name, channel, links, machine, inner_out, least);
    let client = Client::new(handshake, session, address, options, fewer);
    Ok(Session::new(Running::new(core), client, messages, inner))
}
