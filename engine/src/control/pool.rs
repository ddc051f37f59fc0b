//! The client: a control connection and a pool of data connections to one
//! peer, reused from transfer to transfer.
//!
//! Leaves to others: what happens inside a session. Invariant: calls block the
//! caller, never the control thread.

use super::transfer::Transfer;
use crate::error::{Error, Result};
use crate::options::{
    CopyOptions, LocalSource, LocalTarget, PoolOptions, RemoteSource, RemoteTarget,
};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Connections to one peer.
pub struct Pool {
    peer: PeerAddress,
}

impl Pool {
    /// Connects and greets.
    ///
    /// # Errors
    /// The name does not resolve, nobody answers, or the peer is not haul's.
    pub fn connect(peer: &PeerAddress, options: PoolOptions) -> Result<Self> {
        let _ = options;
        Ok(Self { peer: peer.clone() })
    }

    /// Sends local sources to the peer.
    ///
    /// # Errors
    /// The pool's session has ended.
    pub fn push(
        &mut self,
        sources: Vec<LocalSource>,
        target: RemoteTarget,
        options: &CopyOptions,
    ) -> Result<Transfer> {
        let _ = (sources, target, options);
        Err(Error::peer(
            format!("cannot use the pool to {}", self.peer.host),
            "not connected",
        ))
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
        let _ = (sources, target, options);
        Err(Error::peer(
            format!("cannot use the pool to {}", self.peer.host),
            "not connected",
        ))
    }

    /// Closes the connections and waits for the control thread.
    pub fn close(self) {}
}
