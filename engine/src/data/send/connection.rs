//! One data connection of a sending worker: its queue, its path, its counts.
//!
//! Leaves to others: operations. Invariant: at most one operation writes to
//! the socket at a time (`busy`), and the connection is forgotten only when
//! `operations` is 0.

use super::load::Path;
use super::pipe::Pipe;
use crate::error::Error;
use crate::kernel::ring::Handle;
use crate::kernel::socket::{self, SocketFacts};
use crate::protocol::{ConnectionId, Nanos};
use crate::report::ConnectionReport;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Bytes of zero-copy sends after which their notifications are judged.
const JUDGED_BYTES: u64 = 8 * 1024 * 1024;
/// Weight of the newest send in the average of their times: 1/8.
const AVERAGE_SHIFT: u32 = 3;

/// Whether it is leaving.
pub enum Ending {
    /// No.
    No,
    /// Shut down; only completions are awaited.
    Closing(Option<Error>),
}

/// A connection.
pub struct SendConnection {
    /// Its number in the session.
    pub id: ConnectionId,
    /// Its socket.
    pub socket: Handle,
    /// The peer's address, for sentences.
    pub peer: String,
    /// Loads in the order handed over; the first is the one that is sent.
    pub queue: VecDeque<usize>,
    /// An operation writes to the socket.
    pub busy: bool,
    /// Operations in flight that concern it.
    pub operations: usize,
    /// The operation that watches for the peer's end.
    pub watch: Option<u64>,
    /// Whether it is leaving.
    pub ending: Ending,
    /// What `auto` uses now.
    pub auto: Path,
    /// The kernel refused to pin memory for zero-copy sends.
    pub refused_zero_copy: bool,
    /// The last path used.
    pub path: Path,
    /// Its pipe for splices, made when first needed.
    pub pipe: Option<Pipe>,
    /// Payload bytes sent since the last report.
    pub bytes: u64,
    /// Bytes sent by zero-copy operations, and those that were copied all the
    /// same, since it was attached.
    pub zero_copy_bytes: (u64, u64),
    /// How long its sends take, on average.
    pub send_nanos: u64,
    /// When the operation in flight was submitted.
    pub sending_since: Nanos,
    /// What its socket is set to; asked once, since the kernel's limits for
    /// autotuning stand in files.
    facts: Option<SocketFacts>,
}

impl SendConnection {
    /// Takes a socket over.
    pub fn new(id: ConnectionId, socket: OwnedFd, knows_zero_copy: bool) -> Self {
        let socket = Handle::from(socket);
        // On a non-blocking socket the ring would answer EAGAIN for a full
        // buffer instead of waiting.
        let _ = rustix::io::ioctl_fionbio(&socket, false);
        let auto = if knows_zero_copy && !socket::is_local(&socket) {
            Path::ZeroCopy
        } else {
            Path::Copy
        };
        Self {
            id,
            peer: peer_of(&socket),
            socket,
            queue: VecDeque::new(),
            busy: false,
            operations: 0,
            watch: None,
            ending: Ending::No,
            auto,
            refused_zero_copy: false,
            path: auto,
            pipe: None,
            bytes: 0,
            zero_copy_bytes: (0, 0),
            send_nanos: 0,
            sending_since: 0,
            facts: None,
        }
    }

    /// True when new runs may go to it.
    pub fn is_open(&self) -> bool {
        !matches!(self.ending, Ending::Closing(_))
    }

    /// Completions until its frame is sent, if all goes well.
    pub fn completions_due(&self) -> usize {
        self.pipe.as_ref().map_or(1, |pipe| pipe.due().max(1))
    }

    /// Counts a finished send.
    pub fn timed(&mut self, nanos: u64) {
        let old = self.send_nanos;
        self.send_nanos = old - (old >> AVERAGE_SHIFT) + (nanos >> AVERAGE_SHIFT);
    }

    /// Counts a notification, and leaves zero-copy when most were copies:
    /// there it costs a quarter to a half more than a plain send. True when it
    /// left just now.
    pub fn released(&mut self, bytes: u64, copied: bool) -> bool {
        self.zero_copy_bytes.0 += bytes;
        self.zero_copy_bytes.1 += if copied { bytes } else { 0 };
        let (all, copied) = self.zero_copy_bytes;
        let leaves = self.auto == Path::ZeroCopy && all >= JUDGED_BYTES && copied > all / 2;
        if leaves {
            self.auto = Path::Copy;
        }
        leaves
    }

    /// What is told of it; counts since the last time.
    pub fn report(&mut self) -> ConnectionReport {
        let facts = self
            .facts
            .get_or_insert_with(|| socket::facts(&self.socket));
        ConnectionReport {
            connection: self.id,
            bytes: std::mem::take(&mut self.bytes),
            path: self.path.name().to_owned(),
            send_buffer_bytes: facts.send_buffer_bytes,
            receive_buffer_bytes: facts.receive_buffer_bytes,
            congestion_control: facts.congestion_control.clone(),
            tcp: socket::tcp_info(&self.socket),
            lost: match &self.ending {
                Ending::Closing(Some(error)) => Some(error.to_string()),
                _ => None,
            },
        }
    }

    /// A failure of this connection.
    pub fn error(&self, why: impl std::fmt::Display) -> Error {
        let doing = format!(
            "cannot send on data connection {} to {}",
            self.id, self.peer
        );
        Error::peer(doing, why).at(crate::Side::Sender)
    }
}

/// The peer's address, or what stands for it.
fn peer_of(socket: &Handle) -> String {
    rustix::net::getpeername(socket)
        .ok()
        .flatten()
        .and_then(|address| SocketAddr::try_from(address).ok())
        .map_or_else(|| "the peer".to_owned(), |address| address.to_string())
}
