//! The first bytes of a connection, and the deadline that they have.
//!
//! Leaves to others: messages. Invariant: a peer that says nothing is closed
//! at its deadline by shutting its socket down, so that the pending read
//! completes and is awaited; nothing is read beyond what the greeting holds.

use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::protocol::wire::{
    self, Hello, JOIN_BYTES, Join, Message, PREAMBLE_BYTES, Preamble, PreambleReply, Role,
    VERSION_MAX, VERSION_MIN,
};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Shutdown};
use std::rc::Rc;
use std::time::Duration;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

const GREETING_WAIT: Duration = Duration::from_nanos(limits::GREETING_WAIT_NANOS_MAX);

/// Shuts a socket down unless the greeting is through in time.
pub(super) struct Deadline {
    passed: Rc<Cell<bool>>,
    timer: tokio::task::JoinHandle<()>,
}

impl Deadline {
    pub(super) fn start(stream: Rc<TcpStream>) -> Self {
        let passed = Rc::new(Cell::new(false));
        let mark = passed.clone();
        let timer = tokio_uring::spawn(async move {
            tokio::time::sleep(GREETING_WAIT).await;
            mark.set(true);
            let _ = stream.shutdown(Shutdown::Both);
        });
        Self { passed, timer }
    }

    /// The greeting is through.
    pub(super) fn met(&self) {
        self.timer.abort();
    }

    /// The error, or that the peer was too slow where that caused it.
    pub(super) fn explain(&self, error: Error, peer: &str) -> Error {
        if self.passed.get() {
            let why = format!("it did not greet within {} s", GREETING_WAIT.as_secs());
            return Error::peer(format!("cannot greet {peer}"), why)
                .cure("check that `haul serve` listens on that port");
        }
        error
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// Connections that have not greeted yet. When there are too many, the oldest
/// goes of the address that has most of them, so that a crowd which says
/// nothing keeps out itself and not those who greet at once.
#[derive(Default)]
pub(super) struct Greetings {
    waiting: RefCell<VecDeque<Waiting>>,
    /// Those that were pushed out and have not noticed, too.
    alive: Rc<Cell<usize>>,
}

struct Waiting {
    address: IpAddr,
    stream: Rc<TcpStream>,
    pushed_out: Rc<Cell<bool>>,
}

/// One of them, until this is dropped.
pub(super) struct Greeting {
    alive: Rc<Cell<usize>>,
    pushed_out: Rc<Cell<bool>>,
}

impl Greetings {
    /// True where nobody is left.
    pub(super) fn is_empty(&self) -> bool {
        self.alive.get() == 0
    }

    /// Takes one in; `None` where too many were pushed out just now.
    pub(super) fn enter(&self, address: IpAddr, stream: &Rc<TcpStream>) -> Option<Greeting> {
        if self.alive.get() >= 2 * limits::GREETINGS_MAX {
            return None;
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= limits::GREETINGS_MAX {
            push_out(&mut waiting);
        }
        let pushed_out = Rc::new(Cell::new(false));
        waiting.push_back(Waiting {
            address,
            stream: stream.clone(),
            pushed_out: pushed_out.clone(),
        });
        self.alive.set(self.alive.get() + 1);
        Some(Greeting {
            alive: self.alive.clone(),
            pushed_out,
        })
    }

    /// It has greeted, or failed to.
    pub(super) fn leave(&self, greeting: &Greeting) {
        let same = |other: &Waiting| Rc::ptr_eq(&other.pushed_out, &greeting.pushed_out);
        self.waiting.borrow_mut().retain(|other| !same(other));
    }
}

fn push_out(waiting: &mut VecDeque<Waiting>) {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for one in waiting.iter() {
        *counts.entry(one.address).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    let oldest = waiting
        .iter()
        .position(|one| counts.get(&one.address) == Some(&most));
    if let Some(gone) = oldest.and_then(|place| waiting.remove(place)) {
        gone.pushed_out.set(true);
        // Its pending read ends with that.
        let _ = gone.stream.shutdown(Shutdown::Both);
    }
}

impl Greeting {
    /// The error, or that it was pushed out where that caused it.
    pub(super) fn explain(&self, error: Error, peer: &str) -> Error {
        if self.pushed_out.get() {
            let why = "too many connections have not greeted yet";
            return Error::peer(format!("cannot greet {peer}"), why);
        }
        error
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

/// What a connection that was accepted wants to be.
pub(super) enum Wish {
    Control,
    Data(Join),
}

/// The dialler's preamble on a control connection, its hello right behind,
/// which saves a round trip, and the answer to the preamble.
pub(super) async fn say_hello(stream: &TcpStream, peer: &str, hello: Hello) -> Result<()> {
    let doing = || format!("cannot greet {peer}");
    let mut words = Preamble::ours(Role::Control).encode().to_vec();
    words.extend_from_slice(&wire::encode(&Message::Hello(hello)));
    let (sent, _) = stream.write_all(words).await;
    sent.map_err(|error| Error::peer(doing(), error))?;
    let bytes: [u8; PREAMBLE_BYTES] = read_exact(stream).await.map_err(|error| {
        Error::peer(doing(), error).cure("check that `haul serve` listens on that port")
    })?;
    let reply = PreambleReply::decode(&bytes).map_err(|_| {
        Error::peer(doing(), "what answers there is not haul")
            .cure("check that `haul serve` listens on that port")
    })?;
    if reply
        .version
        .is_none_or(|version| !(VERSION_MIN..=VERSION_MAX).contains(&version))
    {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!(
                "cannot talk to {peer}: it speaks protocol versions {} to {}, this haul {VERSION_MIN} to {VERSION_MAX}",
                reply.version_min, reply.version_max
            ),
        )
        .cure("install the same version at both ends"));
    }
    Ok(())
}

/// The accepter's half: reads what the dialler wants, and answers a preamble
/// on a control connection.
pub(super) async fn hear_hello(stream: &TcpStream, peer: &str) -> Result<Wish> {
    let doing = || format!("cannot greet {peer}");
    let bytes: [u8; PREAMBLE_BYTES] = read_exact(stream)
        .await
        .map_err(|error| Error::peer(doing(), error))?;
    let preamble = Preamble::decode(&bytes).map_err(|violation| Error::peer(doing(), violation))?;
    let reply = PreambleReply::to(&preamble);
    if preamble.role == Role::Control || reply.version.is_none() {
        let (sent, _) = stream.write_all(reply.encode().to_vec()).await;
        sent.map_err(|error| Error::peer(doing(), error))?;
    }
    if reply.version.is_none() {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!(
                "cannot talk to {peer}: it speaks protocol versions {} to {}, this haul {VERSION_MIN} to {VERSION_MAX}",
                preamble.version_min, preamble.version_max
            ),
        ));
    }
    match preamble.role {
        Role::Control => Ok(Wish::Control),
        Role::Data => {
            let bytes: [u8; JOIN_BYTES] = read_exact(stream)
                .await
                .map_err(|error| Error::peer(doing(), error))?;
            let join = Join::decode(&bytes).map_err(|violation| Error::peer(doing(), violation))?;
            Ok(Wish::Data(join))
        }
    }
}

/// Reads `N` bytes and not one more: what follows on a data connection is the
/// worker's.
async fn read_exact<const N: usize>(stream: &TcpStream) -> std::io::Result<[u8; N]> {
    let mut buffer = vec![0; N];
    let mut filled = 0;
    while filled < N {
        let (result, slice) = stream.read(buffer.slice(filled..N)).await;
        buffer = slice.into_inner();
        match result? {
            0 => return Err(std::io::Error::other("it closed the connection")),
            count => filled += count,
        }
    }
    let mut bytes = [0; N];
    bytes.copy_from_slice(&buffer);
    Ok(bytes)
}
