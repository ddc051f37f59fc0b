//! What a client and a server do differently in a session.
//!
//! Leaves to others: everything that is the same for both, and every decision
//! (protocol's session). Invariant: a role is told of what happened and acts on
//! what runs; it never runs the session.

use super::inbox::{Inner, Opened};
use super::running::{Active, Running};
use crate::error::Result;
use crate::protocol::ConnectionId;
use crate::protocol::session::SessionOutput;

/// One end of a session, besides what both ends share.
pub(crate) trait Role {
    /// The peer's proof, which only a server sends so late.
    ///
    /// # Errors
    /// It does not hold, which ends the session.
    fn proof(&mut self, running: &mut Running, proof: [u8; 32]) -> Result<()>;

    /// Carries out what the session decided and only this role can do.
    fn carry(&mut self, running: &mut Running, output: SessionOutput);

    /// What only this role is asked by its process.
    fn asked(&mut self, running: &mut Running, inner: Inner);

    /// The sources of the active transfer are open, or could not be opened.
    fn opened(&mut self, running: &mut Running, files: Result<Opened>);

    /// A data connection broke: told in the log where no caller hears it.
    fn connection_broke(&self, connection: ConnectionId, why: &str);

    /// A transfer's end, to be told.
    fn ended(&mut self, running: &mut Running, active: Active, end: Result<()>);
}
