//! What a client and a server do differently in a session.
//!
//! Leaves to others: everything that is the same for both. Invariant: a role is
//! told of what happened and acts on what runs; it never runs the session.

use super::inbox::{Inner, Opened};
use super::running::{Active, Running};
use crate::error::{Error, Result};
use crate::protocol::wire::Message;
use crate::protocol::{ConnectionId, TransferId};

/// One end of a session, besides what both ends share.
pub(crate) trait Role {
    /// The error for a peer that has not proved itself, `why` it is told now;
    /// `None` once it has.
    fn unproved(&self, peer: &str, why: &str) -> Option<Error>;

    /// A message that belongs to no transfer that runs.
    ///
    /// # Errors
    /// What it breaks of the protocol, which ends the session.
    fn message(&mut self, running: &mut Running, message: Message) -> Result<()>;

    /// What only this role is asked by its process.
    fn asked(&mut self, running: &mut Running, inner: Inner);

    /// The sources of the active transfer are open, or could not be opened.
    fn opened(&mut self, running: &mut Running, files: Result<Opened>);

    /// Something landed: connections that were lost had been of use.
    fn worked(&mut self);

    /// A data connection broke: told in the log where no caller hears it.
    fn connection_broke(&self, connection: ConnectionId, why: &str);

    /// A data connection is gone; `missed` says that the peer never took it in.
    ///
    /// # Errors
    /// What ends the transfer.
    fn connection_lost(&mut self, running: &Running, why: &str, missed: bool) -> Result<()>;

    /// A message of a transfer that does not run: over, or not yet begun.
    fn late(&mut self, running: &mut Running, transfer: TransferId, message: Message);

    /// A transfer's end, to be told.
    fn ended(&mut self, running: &mut Running, active: Active, end: Result<()>);

    /// What the peer and the active transfer are told when this process closes
    /// the session; `None` where a transfer just ends with its session.
    fn closing(&self) -> Option<Error>;
}
