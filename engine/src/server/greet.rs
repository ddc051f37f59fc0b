//! The first bytes of the connections that a server accepts, and how many may
//! take their time with them.
//!
//! Leaves to others: their deadline, and messages. Invariant: nothing is read
//! beyond what the greeting holds, and those that say nothing are bounded.

use crate::error::{Error, ErrorKind, Result};
use crate::limits;
use crate::protocol::handshake::FirstBytes;
use crate::protocol::wire::{
    ConnectionRole, JOIN_BYTES, Join, PREAMBLE_BYTES, Preamble, PreambleReply, VERSION_MAX,
    VERSION_MIN,
};
use crate::session::greeting::read_exact;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Shutdown};
use std::rc::Rc;
use tokio_uring::net::TcpStream;

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
    /// A session's; the first bytes are under its proof.
    Control(FirstBytes),
    Data(Join),
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
    if preamble.role == ConnectionRole::Control || reply.version.is_none() {
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
        ConnectionRole::Control => Ok(Wish::Control(FirstBytes {
            preamble: bytes,
            reply: reply.encode(),
        })),
        ConnectionRole::Data => {
            let bytes: [u8; JOIN_BYTES] = read_exact(stream)
                .await
                .map_err(|error| Error::peer(doing(), error))?;
            let join = Join::decode(&bytes).map_err(|violation| Error::peer(doing(), violation))?;
            Ok(Wish::Data(join))
        }
    }
}
