//! The server's part of a session: it takes connections in and opens what its
//! peer names, below the root only.
//!
//! Leaves to others: the transfer itself. Invariant: nothing is opened for a
//! peer before its proof held, or the server said that it needs none.

use super::core::{Core, Done};
use super::links::Way;
use super::receiving::{Destination, Receiving};
use super::role::Role;
use super::sending::{Sending, SendingOptions};
use super::server::{ServerEvent, Shared};
use super::session::{Active, Half, Session};
use super::tally::Tally;
use crate::error::{Error, Result, Side};
use crate::files::generated::Generated;
use crate::files::source::{self, FileSource, Source};
use crate::files::target::TargetOptions;
use crate::kernel::random::random;
use crate::limits;
use crate::options::{RemoteSource, RemoteTarget};
use crate::protocol::TransferId;
use crate::protocol::handshake;
use crate::protocol::wire::{Begin, Entry, Flow, Join, Message, Task};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// What a server keeps besides the session.
pub(super) struct Serving {
    pub(super) shared: Rc<Shared>,
    pub(super) peer: SocketAddr,
    pub(super) session: handshake::Session,
    /// What the pull whose sources are being opened asked for.
    pub(super) starting: Option<Begin>,
    /// The next transfer, begun by a peer that heard the end of the last one
    /// before this end had let go of it, and what was said of it since.
    pub(super) next: Option<(Begin, Vec<Message>)>,
}

/// Messages that are kept for the next transfer: its offers, and an end.
const NEXT_MESSAGES_MAX: usize = limits::SEGMENTS_OPEN_MAX + 2;

impl Serving {
    pub(super) fn transfer_ended(&mut self, core: &Core, active: Active, end: Result<()>) {
        self.starting = None;
        let (bytes, chunk_bytes, sends) = (active.bytes(), active.chunk_bytes, active.sends());
        let report =
            active
                .tally
                .report(end, bytes, chunk_bytes, sends, self.session.authenticated);
        tracing::info!(
            peer = core.peer,
            landed_bytes = report.bytes.landed,
            "a transfer ended"
        );
        self.shared.tell(ServerEvent::TransferEnded {
            peer: self.peer,
            bytes: report.bytes.landed,
            error: report.error,
        });
    }
}

impl Session {
    pub(super) fn serving_message(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Begin(begin) => {
                self.serving_begin(begin);
                Ok(())
            }
            Message::EndStreams { transfer } => {
                match self
                    .active
                    .as_mut()
                    .filter(|active| active.transfer == transfer)
                {
                    Some(Active {
                        half: Half::Sending(sending),
                        ..
                    }) => sending.finish_streams(),
                    Some(active) => active.finished_early = true,
                    // It is over, or waits for the last one's end.
                    None => self.keep_for_next(transfer, Message::EndStreams { transfer }),
                }
                Ok(())
            }
            message => {
                tracing::debug!(?message, "an unexpected message");
                let why = "it sent a message that belongs to no transfer";
                Err(Error::peer(
                    format!("cannot go on with {}", self.core.peer),
                    why,
                ))
            }
        }
    }

    fn serving_begin(&mut self, begin: Begin) {
        let transfer = begin.transfer;
        if let (Some(_), Role::Server(serving)) = (&self.active, &mut self.role) {
            if serving.next.is_none() {
                serving.next = Some((begin, Vec::new()));
                return;
            }
            let error = Error::peer(
                "cannot begin a transfer",
                "the session's last one still runs",
            );
            self.core.channel.send(&Message::Abort { transfer, error });
            return;
        }
        self.core.links.reset_counts();
        let now = self.core.clock.now();
        self.active = Some(Active {
            transfer,
            tally: Tally::new(self.core.clock, now, None),
            chunk_bytes: begin.chunk_bytes,
            half: Half::Opening,
            stopped: None,
            early: None,
            finished_early: false,
        });
        let (side, result) = match begin.task.clone() {
            Task::Push { target } => (Side::Receiver, self.serving_push(&begin, target)),
            Task::Pull { sources } => (Side::Sender, self.serving_pull(begin, sources)),
        };
        if let Err(error) = result.map_err(|error| error.at(side)) {
            self.core.channel.send(&Message::Abort {
                transfer,
                error: error.clone(),
            });
            self.transfer_ended(Err(error));
        }
    }

    /// Keeps what is said of a transfer that waits for the last one's end.
    pub(super) fn keep_for_next(&mut self, transfer: TransferId, message: Message) {
        // Nothing else can be meant: no segment of it was answered yet.
        let kept = matches!(
            message,
            Message::Offer(_) | Message::Abort { .. } | Message::EndStreams { .. }
        );
        if kept
            && let Role::Server(serving) = &mut self.role
            && let Some((begin, messages)) = &mut serving.next
            && begin.transfer == transfer
            && messages.len() < NEXT_MESSAGES_MAX
        {
            messages.push(message);
        } else if matches!(message, Message::Offer(_)) {
            // Late words of a transfer that was given up are no fault, and its peer
            // has forgotten it; who waits for an answer must not wait for ever.
            let error = Error::peer("cannot take an offer", "no such transfer runs");
            self.core.channel.send(&Message::Abort { transfer, error });
        }
    }

    /// The last transfer is over: the next goes on from where it was kept.
    pub(super) fn serving_next(&mut self) {
        let Role::Server(serving) = &mut self.role else {
            return;
        };
        if let Some((begin, messages)) = serving.next.take() {
            let transfer = begin.transfer;
            self.serving_begin(begin);
            for message in messages {
                if matches!(message, Message::EndStreams { .. }) {
                    // It is expected at this end, so it breaks nothing.
                    let _ = self.serving_message(message);
                } else {
                    self.transfer_message(transfer, message);
                }
            }
        }
    }

    fn serving_push(&mut self, begin: &Begin, target: RemoteTarget) -> Result<()> {
        let Role::Server(serving) = &self.role else {
            return Ok(());
        };
        let destination = match (target, &serving.shared.local_target) {
            (RemoteTarget::Path { .. }, Some(target)) => Destination::from(target.clone()),
            (RemoteTarget::Path { path, directory }, None) => Destination::Beneath {
                root: serving.shared.root.clone(),
                path,
                directory,
            },
            (RemoteTarget::Null, _) if serving.shared.allow_null => Destination::Null,
            (RemoteTarget::Null, _) => return Err(null_refused(Side::Receiver)),
        };
        let options = TargetOptions {
            fsync: begin.fsync,
            verify: begin.verify,
            drop_cache: begin.drop_cache,
            special_bits: serving.session.authenticated,
        };
        let (transfer, chunk_bytes) = (begin.transfer, begin.chunk_bytes);
        let receiving =
            Receiving::start(&mut self.core, transfer, chunk_bytes, destination, options)?;
        self.core.channel.send(&Message::Begun {
            transfer,
            window_bytes: None,
        });
        if let Some(active) = &mut self.active {
            active.half = Half::Receiving(receiving);
        }
        Ok(())
    }

    fn serving_pull(&mut self, begin: Begin, sources: Vec<RemoteSource>) -> Result<()> {
        let Role::Server(serving) = &mut self.role else {
            return Ok(());
        };
        let generated = |source: &RemoteSource| matches!(source, RemoteSource::Generated { .. });
        if sources.iter().any(generated) && !serving.shared.allow_null {
            return Err(null_refused(Side::Sender));
        }
        let (root, transfer) = (serving.shared.root.clone(), begin.transfer);
        let drop_cache = begin.drop_cache;
        serving.starting = Some(begin);
        let open = move || Done::Opened(open_all(&root, &sources, drop_cache));
        self.core
            .hand(transfer, open, |error| Done::Opened(Err(error)));
        Ok(())
    }

    /// The sources of a pull are open.
    pub(super) fn serving_opened(&mut self, files: Vec<(Entry, Arc<Source>)>) {
        let Role::Server(serving) = &mut self.role else {
            return;
        };
        let Some(begin) = serving.starting.take() else {
            return;
        };
        let transfer = begin.transfer;
        if let Err(error) = self.core.links.pace(begin.rate_limit_bytes_per_second) {
            // Nothing is silently weaker than asked.
            return self.refuse_active(error.at(Side::Sender));
        }
        self.core.channel.send(&Message::Begun {
            transfer,
            window_bytes: None,
        });
        let options = SendingOptions {
            chunk_bytes: begin.chunk_bytes,
            transmit: begin.transmit,
            drop_cache: begin.drop_cache,
            window_bytes: begin.window_bytes,
        };
        if let Some(active) = &mut self.active {
            let sending = Sending::start(&self.core, &mut active.tally, transfer, options, files);
            active.half = Half::Sending(sending);
            if let (true, Half::Sending(sending)) = (active.finished_early, &mut active.half) {
                sending.finish_streams();
            }
        }
    }

    /// A data connection joins, which proved that it may.
    pub(super) fn serving_joining(&mut self, join: Join, socket: OwnedFd) -> Result<()> {
        let Role::Server(serving) = &self.role else {
            return Ok(());
        };
        let way = Way::of(join.flow, false);
        debug_assert!(matches!(join.flow, Flow::FromDialler | Flow::ToDialler));
        let waits = self.waits_for_answer();
        match self.core.links.attach(join.connection, way, socket, waits) {
            Ok(notes) => {
                self.core.channel.send(&Message::Joined {
                    connection: join.connection,
                });
                self.joined(join.connection, way, notes);
            }
            Err(error) => {
                tracing::warn!(%error, "a data connection was refused");
                serving.shared.tell(ServerEvent::Refused {
                    peer: serving.peer,
                    error,
                });
            }
        }
        Ok(())
    }
}

fn null_refused(side: Side) -> Error {
    Error::usage(
        "the server takes part in no measurement: it has neither null sinks nor generated sources",
    )
    .at(side)
    .cure("start it with `haul serve --allow-null`")
}

/// Opens what a pull asks for.
fn open_all(
    root: &OwnedFd,
    sources: &[RemoteSource],
    drop_cache: bool,
) -> Result<Vec<(Entry, Arc<Source>)>> {
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
