//! What a client's and a server's session do differently.
//!
//! Leaves to others: everything that is the same for both. Invariant: only the
//! client dials, only the server opens what a peer names.

use super::client::Client;
use super::core::{Core, Done, Inner};
use super::serving::Serving;
use super::session::{Active, Session};
use crate::error::{Error, Result};
use crate::protocol::wire::Message;

/// Which end of the session this is.
pub(super) enum Role {
    Client(Box<Client>),
    Server(Box<Serving>),
}

impl Role {
    /// Bytes land: connections that were lost had been of use.
    pub(super) fn worked(&mut self) {
        if let Self::Client(client) = self {
            client.worked();
        }
    }

    /// A data connection is gone; `missed` says that the peer never took it in.
    /// An error ends the transfer.
    pub(super) fn connection_lost(&mut self, core: &Core, why: &str, missed: bool) -> Result<()> {
        match self {
            Self::Client(client) => client.connection_lost(core, why, missed),
            Self::Server(_) => Ok(()),
        }
    }

    /// The transfer's end, to be told.
    pub(super) fn transfer_ended(&mut self, core: &Core, active: Active, end: Result<()>) {
        match self {
            Self::Client(client) => client.transfer_ended(active, end),
            Self::Server(serving) => serving.transfer_ended(core, active, end),
        }
    }
}

impl Session {
    /// A message that belongs to no transfer that runs.
    pub(super) fn role_message(&mut self, message: Message) -> Result<()> {
        match (message, &mut self.role) {
            (Message::Joined { connection }, _) => {
                self.core.links.answered(connection);
                if let Role::Client(client) = &mut self.role {
                    client.taken_in(&self.core);
                }
                Ok(())
            }
            // Requests to dial and to let go are followed by nobody yet.
            (Message::Dial { .. } | Message::Retire { .. }, _) => Ok(()),
            (message, Role::Client(_)) => self.client_message(message),
            (message, Role::Server(_)) => self.serving_message(message),
        }
    }

    /// What only one of the roles gets from this process.
    pub(super) fn role_inner(&mut self, inner: Inner) -> Result<()> {
        match inner {
            Inner::Start(start) => self.client_start(*start),
            Inner::Dialled(result) => self.client_dialled(result),
            Inner::Redial => {
                self.client_redial();
                Ok(())
            }
            Inner::Joining(join, socket) => self.serving_joining(join, socket),
            _ => Ok(()),
        }
    }

    /// The sources are open, or could not be opened.
    pub(super) fn opened(&mut self, done: Done) {
        let result = match done {
            Done::Opened(result) => result,
            _ => return,
        };
        let stopped = self
            .active
            .as_mut()
            .and_then(|active| active.stopped.take());
        let result = match stopped {
            Some(error) => Err(error),
            None => result,
        };
        match (&self.role, result) {
            (Role::Client(_), Ok(files)) => self.client_opened(files),
            (Role::Server(_), Ok(files)) => self.serving_opened(files),
            (Role::Client(_), Err(error)) => self.transfer_ended(Err(error)),
            (Role::Server(_), Err(error)) => self.refuse_active(error),
        }
    }

    /// Tells the peer that the active transfer ends, and ends it.
    pub(super) fn refuse_active(&mut self, error: Error) {
        if let Some(active) = &self.active {
            let message = Message::Abort {
                transfer: active.transfer,
                error: error.clone(),
            };
            self.core.channel.send(&message);
        }
        self.transfer_ended(Err(error));
    }
}
