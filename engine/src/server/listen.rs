//! The server: accepts sessions below one root.
//!
//! Leaves to others: what happens inside a session. Invariant: what has proved
//! nothing holds one descriptor and a little memory, until its deadline, and
//! an accept is never dropped while the kernel works on it.

use super::greet::{self, Greeting, Greetings, Wish};
use super::house::{House, ServerEvent};
use super::serving::Serving;
use crate::data::Clock;
use crate::data::receive::Stock;
use crate::error::{Error, ErrorKind, Result};
use crate::files::place;
use crate::files::reflink::Reflinks;
use crate::kernel::descriptors::{self, Exhaustion, Share};
use crate::kernel::queue::{Reader, Writer, bounded};
use crate::kernel::random::random;
use crate::kernel::socket::{self, SocketOptions};
use crate::limits;
use crate::options::{ServeOptions, Token};
use crate::protocol::handshake::{FirstBytes, ServerHandshake, SessionSecret};
use crate::protocol::session::{SessionEnd, SessionMachine};
use crate::protocol::wire::{Join, Message};
use crate::session::channel::{Channel, Incoming};
use crate::session::core::Core;
use crate::session::greeting::Deadline;
use crate::session::inbox::Inner;
use crate::session::life::Session;
use crate::session::links::Links;
use crate::session::running::Running;
use crate::session::runtime::start_runtime;
use crate::session::software;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio_uring::net::TcpStream;

/// Events that wait for the caller; further ones are dropped, since a caller
/// who does not look must not cost memory.
const EVENTS_MAX: usize = 1024;
/// How long a session waits for descriptors that others give back.
const LEAST_WAIT: Duration = Duration::from_secs(2);
/// The wait after an accept that failed for want of descriptors or memory.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// A running server. Dropping it stops it.
pub struct Server {
    addresses: Vec<SocketAddr>,
    events: Reader<ServerEvent>,
    stop: ServerStopHandle,
    thread: Option<JoinHandle<()>>,
    cut: Arc<AtomicU64>,
    missed: Arc<AtomicU64>,
}

/// Stops a server from any thread.
#[derive(Clone)]
pub struct ServerStopHandle(Arc<watch::Sender<bool>>);

impl ServerStopHandle {
    /// Ends all sessions and the server.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Opens the root and listens.
    ///
    /// # Errors
    /// The root cannot be opened, an address cannot be listened on, or
    /// io_uring cannot be used.
    pub fn bind(options: ServeOptions) -> Result<Self> {
        Self::bind_sharing(options, None)
    }

    /// The same; files that a pool in this process pushes, which was given the same
    /// `reflinks`, share their blocks with their sources where that is possible.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn bind_sharing(options: ServeOptions, reflinks: Option<Reflinks>) -> Result<Self> {
        if options.token.is_none() && !options.allow_unauthenticated {
            return Err(Error::usage(
                "cannot serve: there is neither a token nor leave to go without one",
            ));
        }
        let root = Arc::new(place::open_root(&options.root)?);
        let sockets = SocketOptions {
            send_buffer_bytes: options.socket_buffer_bytes,
            receive_buffer_bytes: options.socket_buffer_bytes,
            congestion: options.congestion.clone(),
            pacing_bytes_per_second: None,
        };
        let listeners = socket::listen(&options.listen, &sockets)?;
        let failed = |error: std::io::Error| Error::local("cannot start the server", error);
        let addresses = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let (tell, events) = bounded(EVENTS_MAX).map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let cut = Arc::new(AtomicU64::new(0));
        let missed = Arc::new(AtomicU64::new(0));
        let counts = [cut.clone(), missed.clone()];
        let (ready, result) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("haul-control".to_owned())
            .spawn(move || {
                let told = ready.clone();
                let serve = serve(
                    options,
                    (root, reflinks),
                    sockets,
                    listeners,
                    (tell, counts),
                    stopped,
                    ready,
                );
                if let Err(error) = start_runtime(serve) {
                    let _ = told.send(Err(error));
                }
            })
            .map_err(failed)?;
        let ended = || Err(Error::local("cannot start the server", "its thread ended"));
        let server = Self {
            addresses,
            events,
            stop: ServerStopHandle(Arc::new(stop)),
            thread: Some(thread),
            cut,
            missed,
        };
        result.recv().unwrap_or_else(|_| ended())?;
        Ok(server)
    }

    /// Where it listens; the port the kernel chose in place of 0.
    #[must_use]
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A handle that stops it.
    #[must_use]
    pub fn stop_handle(&self) -> ServerStopHandle {
        self.stop.clone()
    }

    /// The next event; `None` after `timeout` or when the server ended.
    pub fn next_event(&self, timeout: Option<Duration>) -> Option<ServerEvent> {
        self.events.recv_timeout(timeout)
    }

    /// True once the server ended and all its events were read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.events.is_closed()
    }

    /// Transfers that were running when it was stopped, and failed by that.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Events that were dropped since the start, because nobody took them in time.
    #[must_use]
    pub fn missed_events(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Waits until the server was stopped and its sessions have ended; gives what
    /// [`Server::cut`] does then.
    pub fn wait(mut self) -> u64 {
        self.join();
        self.cut()
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.stop();
        self.join();
    }
}

/// What a server's one thread keeps.
struct ServerShared {
    house: Rc<House>,
    token: Option<Token>,
    allow_unauthenticated: bool,
    workers: Option<usize>,
    sockets: SocketOptions,
    /// Receive blocks, from session to session.
    stock: Arc<Stock>,
    sessions: RefCell<BTreeMap<u64, Known>>,
    greetings: Greetings,
    stopped: watch::Receiver<bool>,
}

/// A session that was greeted, or is being.
struct Known {
    inner: UnboundedSender<Inner>,
    secret: SessionSecret,
    /// Its client proved itself; others do not count.
    proved: bool,
    /// Data connections that wait until it runs.
    waiting: Cell<Option<u32>>,
}

async fn serve(
    options: ServeOptions,
    (root, reflinks): (Arc<OwnedFd>, Option<Reflinks>),
    sockets: SocketOptions,
    listeners: Vec<TcpListener>,
    (events, [cut, missed]): (Writer<ServerEvent>, [Arc<AtomicU64>; 2]),
    mut stopped: watch::Receiver<bool>,
    ready: std::sync::mpsc::Sender<Result<()>>,
) {
    let shared = Rc::new(ServerShared {
        house: Rc::new(House {
            root,
            local_target: options.local_target,
            allow_null: options.allow_null,
            reflinks,
            events,
            stopped: stopped.clone(),
            cut,
            missed,
        }),
        token: options.token,
        allow_unauthenticated: options.allow_unauthenticated,
        workers: options.workers,
        sockets,
        stock: Arc::default(),
        sessions: RefCell::default(),
        greetings: Greetings::default(),
        stopped: stopped.clone(),
    });
    let mut accepting = Vec::new();
    let mut shut = Vec::new();
    for listener in listeners {
        // The second descriptor is how the accept is woken at the end.
        match listener.try_clone() {
            Ok(clone) => shut.push(clone),
            Err(error) => {
                let _ = ready.send(Err(Error::local("cannot start the server", error)));
                return;
            }
        }
        accepting.push(tokio_uring::spawn(accept(listener, shared.clone())));
    }
    let _ = ready.send(Ok(()));
    // A sender that is gone counts as stopped, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
    shut.iter()
        .for_each(|listener| socket::shutdown(listener.as_fd()));
    for accept in accepting {
        let _ = accept.await;
    }
    for session in shared.sessions.borrow().values() {
        // One that ended needs no telling.
        let _ = session.inner.send(Inner::Close);
    }
    while !shared.sessions.borrow().is_empty() || !shared.greetings.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn accept(listener: TcpListener, shared: Rc<ServerShared>) {
    let another = listener.try_clone().ok();
    let listener = tokio_uring::net::TcpListener::from_std(listener);
    // The descriptor that is given away where no other is left, so that who
    // waits hears why: the kernel takes connections in without this process.
    let mut spare = another.as_ref().and_then(|one| one.try_clone().ok());
    while !*shared.stopped.borrow() {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if *shared.stopped.borrow() {
                    break;
                }
                if spare.is_none() {
                    spare = another.as_ref().and_then(|one| one.try_clone().ok());
                }
                // An IPv4 peer of a socket for both is shown as one.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                let stream = Rc::new(stream);
                let Some(greeting) = shared.greetings.enter(peer.ip(), &stream) else {
                    let why = "too many connections have not greeted yet";
                    let error = Error::peer("cannot greet", why);
                    shared.house.tell(ServerEvent::Refused { peer, error });
                    continue;
                };
                let is_last = spare.is_none();
                let greeted = greeted(stream, peer, greeting, shared.clone(), is_last);
                if is_last {
                    greeted.await;
                } else {
                    tokio_uring::spawn(greeted);
                }
            }
            Err(_) if *shared.stopped.borrow() => break,
            Err(error) => {
                let errno = Errno::from_io_error(&error);
                let error = Error::local("cannot accept a connection", error);
                tracing::warn!("{error}");
                if !(errno.is_some_and(|errno| errno.is_exhaustion()) && spare.take().is_some()) {
                    tokio::time::sleep(ACCEPT_WAIT).await;
                }
            }
        }
    }
}

/// Greets one connection and gives it to its session, or makes it one; where it
/// has the last descriptor, it is only told so.
async fn greeted(
    stream: Rc<TcpStream>,
    peer: SocketAddr,
    greeting: Greeting,
    shared: Rc<ServerShared>,
    is_last: bool,
) {
    let clock = Clock::start();
    let deadline = Deadline::start(stream.clone(), clock);
    let mut stopped = shared.stopped.clone();
    let closer = {
        // A server that stops does not wait for who says nothing.
        let stream = stream.clone();
        tokio_uring::spawn(async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
            let _ = stream.shutdown(std::net::Shutdown::Both);
        })
    };
    let name = peer.to_string();
    let result = match greet::hear_hello(&stream, &name).await {
        Ok(wish) if is_last => Err(turn_away(wish, stream.clone(), &name).await),
        Ok(Wish::Data(join)) => take_in(&join, &stream, &name, &shared).map(|()| None),
        Ok(Wish::Control(first)) => open(stream.clone(), &first, peer, &name, clock, &shared)
            .await
            .map(Some),
        Err(error) => Err(error),
    };
    let result = result
        .map_err(|error| deadline.explain(error, &name))
        .map_err(|error| greeting.explain(error, &name));
    deadline.met();
    closer.abort();
    shared.greetings.leave(&greeting);
    drop(greeting);
    match result {
        Ok(Some((_registration, session))) => {
            session
                .run(|error| {
                    shared
                        .house
                        .tell(ServerEvent::SessionClosed { peer, error })
                })
                .await;
        }
        Ok(None) => {}
        Err(error) => shared.house.tell(ServerEvent::Refused { peer, error }),
    }
}

/// Tells who wants a session that there is no descriptor for it; a data
/// connection is closed, and its session goes on with the others.
async fn turn_away(wish: Wish, stream: Rc<TcpStream>, name: &str) -> Error {
    let error = descriptors::exhausted(&format!("cannot take a connection of {name} in"));
    match wish {
        Wish::Data(_) => error,
        Wish::Control(_) => {
            let (channel, mut messages) = Channel::start(stream, name);
            refuse(&channel, &mut messages, error).await
        }
    }
}

/// Gives a data connection to its session, if it proves that it belongs there:
/// nothing is kept of one that does not.
fn take_in(join: &Join, stream: &TcpStream, name: &str, shared: &ServerShared) -> Result<()> {
    let doing = || format!("cannot take a data connection of {name} in");
    let sessions = shared.sessions.borrow();
    let Some(session) = sessions.get(&join.session) else {
        return Err(Error::peer(doing(), "it names no session"));
    };
    if !session.secret.verify_join(join) {
        let sentence = format!("{}: its proof does not hold", doing());
        return Err(Error::new(ErrorKind::Unauthorised, sentence));
    }
    let waiting = session.waiting.get();
    let least = limits::DESCRIPTORS_FIRST as usize;
    if waiting.is_some_and(|count| count > 0 && descriptors::free() < least) {
        // The session itself needs what is left, before it can judge.
        return Err(descriptors::exhausted(&doing()));
    }
    session.waiting.set(waiting.map(|count| count + 1));
    let socket = socket::duplicate(stream)?;
    // A session that ended wants no connection.
    let _ = session.inner.send(Inner::Joining(*join, socket));
    Ok(())
}

/// The server's half of a handshake.
async fn open(
    stream: Rc<TcpStream>,
    first: &FirstBytes,
    peer: SocketAddr,
    name: &str,
    clock: Clock,
    shared: &Rc<ServerShared>,
) -> Result<(Registration, Session<Serving>)> {
    let prepared =
        socket::duplicate(&*stream).and_then(|socket| socket::prepare_control(socket.as_fd()));
    let (channel, mut messages) = Channel::start(stream, name);
    if let Err(error) = prepared {
        return Err(refuse(&channel, &mut messages, error).await);
    }
    let doing = || format!("cannot greet {name}");
    let (inner_out, inner) = unbounded_channel();
    let id = u64::from_le_bytes(random()?);
    let token = shared.token.as_ref().map(|token| token.0);
    let mut handshake = ServerHandshake::new(
        token,
        shared.allow_unauthenticated,
        random()?,
        id,
        software(),
    );
    let welcome = match next(&mut messages, &doing).await? {
        Message::Hello(hello) => match handshake.hello(first, hello) {
            Ok(welcome) => welcome,
            Err(error) => return Err(refuse(&channel, &mut messages, error).await),
        },
        _ => return Err(Error::peer(doing(), "it did not say hello")),
    };
    let Some(secret) = handshake.session().map(|session| session.secret.clone()) else {
        return Err(Error::peer(doing(), "it did not say hello"));
    };
    let mut registration = Registration::new(id, inner_out.clone(), secret, shared);
    channel.send(&Message::Welcome(welcome));
    let (answer, session) = match next(&mut messages, &doing).await? {
        Message::Proof(proof) => match handshake.proof(proof) {
            Ok(proved) => proved,
            Err(error) => return Err(refuse(&channel, &mut messages, error).await),
        },
        Message::Refuse(error) => return Err(error),
        _ => return Err(Error::peer(doing(), "it did not prove anything")),
    };
    if !registration.proved() {
        let error = Error::peer(doing(), "the server has as many sessions as it takes");
        return Err(refuse(&channel, &mut messages, error).await);
    }
    let least = match least().await {
        Ok(least) => least,
        Err(error) => return Err(refuse(&channel, &mut messages, error).await),
    };
    channel.send(&Message::Ready(answer));
    channel.trust();
    shared.house.tell(ServerEvent::SessionOpened {
        peer,
        authenticated: session.authenticated,
    });
    let links = Links::new(
        clock,
        shared.workers,
        shared.sockets.clone(),
        shared.stock.clone(),
    );
    let machine = SessionMachine::new(clock.now(), SessionEnd::Server, name.to_owned());
    let core = Core::new(
        clock,
        name.to_owned(),
        channel,
        links,
        machine,
        inner_out,
        least,
    );
    let serving = Serving::new(shared.house.clone(), peer, session);
    let session = Session::new(Running::new(core), serving, messages, inner);
    registration.runs();
    Ok((registration, session))
}

/// Descriptors for the files of a session: those that greet meanwhile give some
/// back soon.
async fn least() -> Result<Share> {
    let until = tokio::time::Instant::now() + LEAST_WAIT;
    loop {
        match Share::least() {
            Err(_) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            result => return result,
        }
    }
}

/// A session's entry, taken out again when this is dropped.
struct Registration {
    id: u64,
    shared: Rc<ServerShared>,
}

impl Registration {
    fn new(
        id: u64,
        inner: UnboundedSender<Inner>,
        secret: SessionSecret,
        shared: &Rc<ServerShared>,
    ) -> Self {
        let known = Known {
            inner,
            secret,
            proved: false,
            waiting: Cell::new(Some(0)),
        };
        shared.sessions.borrow_mut().insert(id, known);
        Self {
            id,
            shared: shared.clone(),
        }
    }

    /// From now on the session judges its data connections.
    fn runs(&self) {
        if let Some(known) = self.shared.sessions.borrow().get(&self.id) {
            known.waiting.set(None);
        }
    }

    /// Counts the session, whose client proved itself; false when there are as
    /// many as there may be.
    fn proved(&mut self) -> bool {
        let mut sessions = self.shared.sessions.borrow_mut();
        let proved = sessions.values().filter(|known| known.proved).count();
        if proved >= limits::SESSIONS_MAX {
            return false;
        }
        if let Some(known) = sessions.get_mut(&self.id) {
            known.proved = true;
        }
        true
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.sessions.borrow_mut().remove(&self.id);
    }
}

/// Tells the peer why not, and lets it read that before the connection closes.
async fn refuse(
    channel: &Channel,
    messages: &mut tokio::sync::mpsc::Receiver<Incoming>,
    error: Error,
) -> Error {
    channel.send(&Message::Refuse(error.clone()));
    // What waits behind a refused proof is read and forgotten.
    channel.trust();
    let heard = async {
        while !channel.is_flushed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        channel.close_writing();
        while let Some(Incoming::Message(_)) = messages.recv().await {}
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), heard).await;
    error
}

async fn next(
    messages: &mut tokio::sync::mpsc::Receiver<Incoming>,
    doing: &impl Fn() -> String,
) -> Result<Message> {
    match messages.recv().await {
        Some(Incoming::Message(message)) => Ok(*message),
        Some(Incoming::Closed(Some(error))) => Err(error),
        Some(Incoming::Closed(None)) | None => {
            Err(Error::peer(doing(), "it closed the connection"))
        }
    }
}
