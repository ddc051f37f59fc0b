//! The server's role in a session: it takes connections in and opens what its
//! peer names, below the root only.
//!
//! Leaves to others: the transfer itself. Invariant: nothing is opened for a
//! peer before its proof held, or the server said that it needs none.

use super::house::{House, ServerEvent};
use crate::error::{Error, Result, Side};
use crate::files::generated::Generated;
use crate::files::source::{self, FileSource, Source};
use crate::files::target::TargetOptions;
use crate::kernel::random::random;
use crate::options::{RemoteSource, RemoteTarget};
use crate::protocol::handshake;
use crate::protocol::session::{SessionOutput, Way};
use crate::protocol::wire::{Begin, Join, Message, Task};
use crate::protocol::{ConnectionId, TransferId};
use crate::session::inbox::{Done, Inner, Opened};
use crate::session::receiving_half::Asked;
use crate::session::role::Role;
use crate::session::running::{Active, Running};
use crate::session::sending_half::SendingOptions;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// What a server keeps besides the session.
pub(super) struct Serving {
    house: Rc<House>,
    peer: SocketAddr,
    session: handshake::Session,
    /// What the pull whose sources are being opened asked for.
    starting: Option<Begin>,
}

impl Serving {
    /// The role for one peer that proved itself, or need not.
    pub(super) fn new(house: Rc<House>, peer: SocketAddr, session: handshake::Session) -> Self {
        Self {
            house,
            peer,
            session,
            starting: None,
        }
    }

    fn begin(&mut self, running: &mut Running, begin: Begin) {
        let (core, now) = (&running.core, running.core.clock.now());
        let active = Active::new(core, begin.transfer, begin.chunk_bytes, now, None);
        running.begin(active);
        let (side, result) = match begin.task.clone() {
            Task::Push { target } => (Side::Receiver, self.push(running, &begin, target)),
            Task::Pull { sources } => (Side::Sender, self.pull(running, begin, sources)),
        };
        if let Err(error) = result {
            running.refuse(error.at(side));
        }
    }

    fn push(&mut self, running: &mut Running, begin: &Begin, target: RemoteTarget) -> Result<()> {
        let asked = match (target, &self.house.local_target) {
            (RemoteTarget::Path { .. }, Some(target)) => Asked::from(target.clone()),
            (RemoteTarget::Path { path, directory }, None) => Asked::Beneath {
                root: self.house.root.clone(),
                path,
                directory,
            },
            (RemoteTarget::Null, _) if self.house.allow_null => Asked::Null,
            (RemoteTarget::Null, _) => return Err(null_refused(Side::Receiver)),
        };
        let options = TargetOptions {
            fsync: begin.fsync,
            verify: begin.verify,
            drop_cache: begin.drop_cache,
            special_bits: self.session.authenticated,
        };
        running.receive(asked, options)?;
        begun(running, begin.transfer);
        Ok(())
    }

    fn pull(
        &mut self,
        running: &mut Running,
        begin: Begin,
        sources: Vec<RemoteSource>,
    ) -> Result<()> {
        let generated = |source: &RemoteSource| matches!(source, RemoteSource::Generated { .. });
        if sources.iter().any(generated) && !self.house.allow_null {
            return Err(null_refused(Side::Sender));
        }
        let (root, transfer) = (self.house.root.clone(), begin.transfer);
        let drop_cache = begin.drop_cache;
        self.starting = Some(begin);
        let open = move || Done::Opened(open_all(&root, &sources, drop_cache));
        let failed = |error| Done::Opened(Err(error));
        running.core.hand(transfer, open, failed);
        Ok(())
    }

    /// A data connection joins, which proved that it may.
    fn joining(&mut self, running: &mut Running, join: Join, socket: OwnedFd) {
        let (connection, way) = (join.connection, Way::of(join.flow, false));
        let waits = running.waits_for_answer();
        let core = &mut running.core;
        let now = core.clock.now();
        let attached = match core.machine.take_in(connection, join.flow) {
            Ok(()) => core.links.attach(connection, way, socket, waits),
            Err(error) => return self.refused(error),
        };
        match attached {
            Ok(notes) => {
                core.machine.joined(now, connection);
                running.joined(connection, way, notes);
            }
            Err(error) => {
                core.machine.join_failed(now, connection, error.clone());
                self.refused(error);
            }
        }
    }

    fn refused(&self, error: Error) {
        tracing::warn!(%error, "a data connection was refused");
        self.house.tell(ServerEvent::Refused {
            peer: self.peer,
            error,
        });
    }
}

impl Role for Serving {
    /// A server's peer has proved itself before.
    fn proof(&mut self, _running: &mut Running, _proof: [u8; 32]) -> Result<()> {
        Ok(())
    }

    fn carry(&mut self, running: &mut Running, output: SessionOutput) {
        // A server does not dial.
        if let SessionOutput::Begin(begin) = output {
            self.begin(running, begin);
        }
    }

    fn asked(&mut self, running: &mut Running, inner: Inner) {
        // Nothing else is asked of a session that does not dial.
        if let Inner::Joining(join, socket) = inner {
            self.joining(running, join, socket);
        }
    }

    /// The sources of a pull.
    fn opened(&mut self, running: &mut Running, files: Result<Opened>) {
        let files = match files {
            Ok(files) => files,
            Err(error) => return running.refuse(error),
        };
        let Some(begin) = self.starting.take() else {
            return;
        };
        let rate = begin.rate_limit_bytes_per_second;
        if let Err(error) = running.core.links.pace(rate) {
            // Nothing is silently weaker than asked.
            return running.refuse(error.at(Side::Sender));
        }
        begun(running, begin.transfer);
        let options = SendingOptions {
            chunk_bytes: begin.chunk_bytes,
            transmit: begin.transmit,
            drop_cache: begin.drop_cache,
            window_bytes: begin.window_bytes,
        };
        running.send(options, files);
    }

    fn connection_broke(&self, connection: ConnectionId, why: &str) {
        tracing::info!(connection, why, "lost a data connection");
    }

    fn ended(&mut self, running: &mut Running, active: Active, end: Result<()>) {
        self.starting = None;
        let (report, _) = active.report(end, self.session.authenticated);
        tracing::info!(
            peer = running.core.peer,
            landed_bytes = report.bytes.landed,
            "a transfer ended"
        );
        self.house.tell(ServerEvent::TransferEnded {
            peer: self.peer,
            bytes: report.bytes.landed,
            error: report.error,
        });
    }
}

/// Says that this end's half of the transfer runs.
fn begun(running: &Running, transfer: TransferId) {
    let begun = Message::Begun {
        transfer,
        window_bytes: None,
    };
    running.core.channel.send(&begun);
}

fn null_refused(side: Side) -> Error {
    Error::usage(
        "the server takes part in no measurement: it has neither null sinks nor generated sources",
    )
    .at(side)
    .cure("start it with `haul serve --allow-null`")
}

/// Opens what a pull asks for.
fn open_all(root: &OwnedFd, sources: &[RemoteSource], drop_cache: bool) -> Result<Opened> {
    let open = |source: &RemoteSource| -> Result<Source> {
        Ok(match source {
            RemoteSource::Path(path) => {
                let mut file = FileSource::open_beneath(root.as_fd(), path)?;
                if drop_cache {
                    file.prefer_direct();
                }
                Source::File(file)
            }
            RemoteSource::Generated { pattern, bytes } => {
                let seed = u64::from_le_bytes(random()?);
                Source::Generated(Generated::new(*pattern, *bytes, seed))
            }
        })
    };
    source::open_each(sources, open, |source| match source {
        RemoteSource::Path(path) => Some(path),
        RemoteSource::Generated { .. } => None,
    })
}
