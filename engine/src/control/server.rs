//! The server: accepts sessions below one root.
//!
//! Leaves to others: what happens inside a session. Invariant: what has proved
//! nothing holds one descriptor and a few hundred bytes, until its deadline.

use crate::error::{Error, Result};
use crate::options::ServeOptions;
use std::net::SocketAddr;
use std::time::Duration;

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

/// A running server.
pub struct Server {
    addresses: Vec<SocketAddr>,
}

/// Stops a server from any thread.
#[derive(Clone)]
pub struct ServerStopHandle;

impl ServerStopHandle {
    /// Ends all sessions and the server.
    pub fn stop(&self) {}
}

impl Server {
    /// Opens the root and listens.
    ///
    /// # Errors
    /// The root cannot be opened, an address cannot be listened on, or
    /// io_uring cannot be used.
    pub fn bind(options: ServeOptions) -> Result<Self> {
        Ok(Self {
            addresses: options.listen,
        })
    }

    /// Where it listens; the port the kernel chose in place of 0.
    #[must_use]
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// A handle that stops it.
    #[must_use]
    pub fn stop_handle(&self) -> ServerStopHandle {
        ServerStopHandle
    }

    /// The next event; `None` after `timeout` or when the server ended.
    pub fn next_event(&self, timeout: Option<Duration>) -> Option<ServerEvent> {
        let _ = timeout;
        None
    }

    /// Waits until the server was stopped.
    pub fn wait(self) {}
}
