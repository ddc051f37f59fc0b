//! What the sessions of one server share.
//!
//! Leaves to others: who comes in. Invariant: a caller who does not look at what
//! is told costs no memory.

use crate::error::Error;
use crate::files::reflink::Reflinks;
use crate::kernel::queue::Writer;
use crate::options::LocalTarget;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// What a server tells of.
#[derive(Clone, Debug)]
pub enum ServerEvent {
    /// A peer's session is open.
    SessionOpened {
        /// Its address.
        peer: SocketAddr,
        /// It proved the token.
        authenticated: bool,
    },
    /// A session ended; with an error unless the peer closed it between transfers.
    SessionClosed {
        /// Its address.
        peer: SocketAddr,
        /// Why.
        error: Option<Error>,
    },
    /// A transfer ended.
    TransferEnded {
        /// The session's peer.
        peer: SocketAddr,
        /// Bytes that landed.
        bytes: u64,
        /// Why it failed.
        error: Option<Error>,
    },
    /// A connection was turned away.
    Refused {
        /// Its address.
        peer: SocketAddr,
        /// Why.
        error: Error,
    },
}

/// What a server lets its peers have.
pub(super) struct House {
    pub(super) root: Arc<OwnedFd>,
    /// Where everything goes instead of what a peer names.
    pub(super) local_target: Option<LocalTarget>,
    pub(super) allow_null: bool,
    /// Shared with a pool in this process.
    pub(super) reflinks: Option<Reflinks>,
    pub(super) events: Writer<ServerEvent>,
    /// Whether the server was told to stop.
    pub(super) stopped: watch::Receiver<bool>,
    /// Transfers that the stop ended before their time.
    pub(super) cut: Arc<AtomicU64>,
    /// Events that found no room, because the caller does not look.
    pub(super) missed: Arc<AtomicU64>,
}

impl House {
    /// Tells the caller, unless the caller does not look.
    pub(super) fn tell(&self, event: ServerEvent) {
        if self.events.try_send(event).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A transfer failed: it counts where that is the stop's doing.
    pub(super) fn failed(&self) {
        if *self.stopped.borrow() {
            self.cut.fetch_add(1, Ordering::Relaxed);
        }
    }
}
