//! The server's role in a session: it takes connections in and opens what its
//! peer names, below the root only.
//!
//! Leaves to others: the transfer itself. Invariant: nothing is opened for a
//! peer before its proof held, or the server said that it needs none.

use super::house::{House, ServerEvent};
use crate::error::{Error, Result, Side};
use crate::files::metadata::Keeping;
use crate::files::target::TargetOptions;
use crate::files::walk::{Reach, Walk};
use crate::kernel::descriptors::{self, Share};
use crate::limits;
use crate::options::{PassOver, RemoteSource, RemoteTarget};
use crate::protocol::credit::Credit;
use crate::protocol::handshake;
use crate::protocol::names::{Hearing, Saying};
use crate::protocol::session::{SessionOutput, Way};
use crate::protocol::wire::{Begin, Join, Message, Task};
use crate::protocol::{ConnectionId, TransferId};
use crate::session::destination::{Asked, Making};
use crate::session::inbox::{Done, Inner, Opened};
use crate::session::role::Role;
use crate::session::running::{Active, Running};
use crate::session::sending_half::{SendingOptions, Supply};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// What a server keeps besides the session.
pub(super) struct Serving {
    house: Rc<House>,
    peer: SocketAddr,
    session: handshake::ProvenSession,
    /// What the pull whose first sources are being opened asked for, and the
    /// descriptors for all of them.
    starting: Option<(Begin, Share, Hearing)>,
}

impl Serving {
    /// The role for one peer that proved itself, or need not.
    pub(super) fn new(
        house: Rc<House>,
        peer: SocketAddr,
        session: handshake::ProvenSession,
    ) -> Self {
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
            Task::Pull { sources, last } => {
                (Side::Sender, self.pull(running, begin, sources, last))
            }
        };
        if let Err(error) = result {
            running.refuse(error.at(side));
        }
    }

    fn push(&mut self, running: &mut Running, begin: &Begin, target: RemoteTarget) -> Result<()> {
        let asked = match (target, &self.house.local_target) {
            (RemoteTarget::Path { .. }, Some(target)) => Asked::from(target.clone()),
            (
                RemoteTarget::Path {
                    path,
                    directory,
                    make,
                },
                None,
            ) => Asked::Beneath {
                root: self.house.root.clone(),
                path,
                directory,
                make,
            },
            (RemoteTarget::Null, _) if self.house.allow_null => Asked::Null,
            (RemoteTarget::Null, _) => return Err(null_refused(Side::Receiver)),
        };
        let options = TargetOptions {
            fsync: begin.fsync,
            verify: begin.verify,
            drop_cache: begin.drop_cache,
            special_bits: self.session.authenticated,
            digest: begin.digest,
        };
        let share = share(running, begin);
        let descriptors_max = Some(share.count());
        let making = Making {
            options,
            rules: begin.rules,
            filters: begin.tree.filters.clone(),
            keeping: Keeping::new(self.session.authenticated),
            reflinks: self.house.reflinks.clone(),
        };
        running.receive(asked, making, share, Saying::new(Vec::new()))?;
        begun(running, begin.transfer, descriptors_max);
        Ok(())
    }

    fn pull(
        &mut self,
        running: &mut Running,
        begin: Begin,
        sources: Vec<RemoteSource>,
        last: bool,
    ) -> Result<()> {
        let share = share(running, &begin);
        let (reach, transfer) = (Reach::Beneath(self.house.root.clone()), begin.transfer);
        let (drop_cache, chunk_bytes) = (begin.drop_cache, begin.chunk_bytes);
        let tree = begin.tree.clone();
        let mut walk = Walk::new(reach, sources, last, tree, drop_cache, chunk_bytes)?
            .in_order(begin.window_bytes.is_some())
            .telling_content(begin.rules.pass_over == PassOver::SameContent);
        if !self.house.allow_null {
            walk = walk.refusing_generated(null_refused(Side::Sender));
        }
        let peer = begin.descriptors_max.unwrap_or(0);
        let room = Credit::new(share.count(), peer).room(0);
        self.starting = Some((begin, share, Hearing::new(last)));
        let walk = Box::new(walk);
        let open = move || Done::Opened(Opened::next(walk, room, true));
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
            Ok(()) => room_for_another(core.links.count_all())
                .and_then(|()| core.links.attach(connection, way, socket, waits)),
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

    /// The first sources of a pull.
    fn opened(&mut self, running: &mut Running, opened: Result<Opened>) {
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => return running.refuse(error),
        };
        let Some((begin, share, hearing)) = self.starting.take() else {
            return;
        };
        let rate = begin.rate_limit_bytes_per_second;
        if let Err(error) = running.core.links.pace(rate) {
            // Nothing is silently weaker than asked.
            return running.refuse(error.at(Side::Sender));
        }
        begun(running, begin.transfer, None);
        let options = SendingOptions {
            chunk_bytes: begin.chunk_bytes,
            transmit: begin.transmit,
            drop_cache: begin.drop_cache,
            window_bytes: begin.window_bytes,
            peer_descriptors_max: begin.descriptors_max.unwrap_or(0),
            deletes: begin.rules.deletes,
            lending: None,
        };
        let supply = Supply {
            share,
            hearing,
            opened,
        };
        running.send(options, supply);
    }

    fn connection_broke(&self, connection: ConnectionId, why: &str) {
        tracing::info!(connection, why, "lost a data connection");
    }

    fn ended(&mut self, running: &mut Running, active: Active, end: Result<()>) {
        self.starting = None;
        if end.is_err() {
            self.house.failed();
        }
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

/// Refuses a data connection besides `count` others that would leave too few
/// descriptors for files.
fn room_for_another(count: usize) -> Result<()> {
    if count == 0 || descriptors::free() > 0 {
        return Ok(());
    }
    // Those that are in go on.
    Err(descriptors::exhausted("cannot take another data connection in").passing_when(true))
}

/// Descriptors for a transfer's files, no more than its peer has, and besides
/// those of the connections that may still come.
fn share(running: &Running, begin: &Begin) -> Share {
    let want = begin
        .descriptors_max
        .map_or(usize::MAX, |most| most as usize);
    running
        .core
        .share(want, limits::CONNECTIONS_DEFAULT as usize)
}

/// Says that this end's half of the transfer runs.
fn begun(running: &Running, transfer: TransferId, descriptors_max: Option<u32>) {
    let begun = Message::Begun {
        transfer,
        window_bytes: None,
        descriptors_max,
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
