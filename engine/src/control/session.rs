//! One session: its control channel, its data connections, and the transfer
//! that runs on them, one after another.
//!
//! Leaves to others: greeting (before) and the transfer's halves. Invariant:
//! every wait ends: by a message, an event, the tick, or the peer's silence.

use super::channel::Incoming;
use super::core::{Core, Done, Inner};
use super::hands::blocking;
use super::links::{PEER_LOST_IT, Way};
use super::receiving::Receiving;
use super::role::Role;
use super::sending::Sending;
use super::tally::Tally;
use super::transfer::{Event, Progress, Stop};
use crate::data::{ReceiveEvent, SendEvent};
use crate::error::{Error, ErrorKind, Result, Side};
use crate::files::stream::StreamNews;
use crate::limits;
use crate::protocol::wire::Message;
use crate::protocol::{ConnectionId, Nanos, TransferId};
use crate::report::Bytes;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often progress is told and deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a closing session waits for its last words to be taken.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// What an active transfer is doing.
pub(super) enum Half {
    /// The hands open the sources.
    Opening,
    Sending(Sending),
    Receiving(Receiving),
}

/// The transfer that runs.
pub(super) struct Active {
    pub(super) transfer: TransferId,
    pub(super) tally: Tally,
    pub(super) chunk_bytes: u32,
    pub(super) half: Half,
    /// Asked to end while its sources were being opened.
    pub(super) stopped: Option<Error>,
    /// What a stream's reader told meanwhile; each telling replaces the last.
    pub(super) early: Option<StreamNews>,
    /// Asked to end its generated streams before they began.
    pub(super) finished_early: bool,
}

impl Active {
    pub(super) fn sends(&self) -> bool {
        !matches!(self.half, Half::Receiving(_))
    }

    pub(super) fn stop(&mut self, error: Error) {
        match &mut self.half {
            Half::Opening => self.stopped = Some(error),
            Half::Sending(sending) => sending.stop(error),
            Half::Receiving(receiving) => receiving.stop(error),
        }
    }

    pub(super) fn bytes(&self) -> Bytes {
        match &self.half {
            Half::Opening => Bytes::default(),
            Half::Sending(sending) => sending.machine().counts(),
            Half::Receiving(receiving) => receiving.machine().counts(),
        }
    }

    fn planned(&self) -> Option<u64> {
        match &self.half {
            Half::Opening => None,
            Half::Receiving(receiving) if !receiving.machine().is_planned() => None,
            Half::Sending(_) | Half::Receiving(_) if self.tally.has_open_stream() => None,
            Half::Sending(_) | Half::Receiving(_) => Some(self.bytes().planned),
        }
    }
}

/// A session after its greeting.
pub(super) struct Session {
    pub(super) core: Core,
    pub(super) role: Role,
    pub(super) active: Option<Active>,
    pub(super) messages: mpsc::Receiver<Incoming>,
    pub(super) inner: mpsc::UnboundedReceiver<Inner>,
    began: Nanos,
    /// When deadlines were last looked at.
    ticked: Nanos,
    /// When the peer was last heard.
    heard: Nanos,
    /// When this end last spoke.
    spoke: Nanos,
    /// What was planned when it was last told.
    told_planned: Option<(u64, Option<u64>)>,
    /// The control channel is gone; the session ends with its transfer.
    closing: Option<Option<Error>>,
}

impl Session {
    pub(super) fn new(
        core: Core,
        role: Role,
        messages: mpsc::Receiver<Incoming>,
        inner: mpsc::UnboundedReceiver<Inner>,
    ) -> Self {
        let now = core.clock.now();
        Self {
            core,
            role,
            active: None,
            messages,
            inner,
            began: now,
            ticked: now,
            heard: now,
            spoke: now,
            told_planned: None,
            closing: None,
        }
    }

    /// Runs until the session ends; `ended` hears why, before anybody can see
    /// that it takes no more: an error, unless it was closed between transfers.
    pub(super) async fn run(mut self, ended: impl FnOnce(Option<Error>)) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.drain();
            if self.closing.is_some() && self.active.is_none() {
                break;
            }
            // Nothing that is dropped here is a ring operation.
            tokio::select! {
                incoming = self.messages.recv(), if self.closing.is_none() => self.incoming(incoming),
                inner = self.inner.recv() => {
                    if let Some(inner) = inner { self.inner(inner) }
                }
                () = self.core.links.ready() => {}
                _ = tick.tick() => self.tick(),
            }
        }
        let error = self.closing.take().flatten();
        let clean = error.is_none();
        ended(error);
        self.end(clean).await;
    }

    /// Closes the channel and ends the workers.
    async fn end(mut self, clean: bool) {
        self.inner.close();
        let deadline = tokio::time::Instant::now() + FLUSH_WAIT;
        while !self.core.channel.is_flushed() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !clean {
            // Half a close, so that the peer reads the last words; its own close,
            // or the deadline, is the end.
            self.core.channel.close_writing();
            let last = async {
                while !matches!(self.messages.recv().await, None | Some(Incoming::Closed(_))) {}
            };
            let _ = tokio::time::timeout_at(deadline, last).await;
        }
        let join = self.core.links.stop();
        // A panicked joiner has logged itself; without a thread the workers, which
        // were told to stop, end by themselves.
        let _ = blocking(join).await;
    }

    /// Ends the session, and the transfer with it.
    pub(super) fn close(&mut self, error: Option<Error>) {
        if self.closing.is_some() {
            return;
        }
        if let Some(active) = &mut self.active {
            let gone = || {
                Error::peer(
                    format!("lost the connection to {}", self.core.peer),
                    "it was closed",
                )
            };
            active.stop(error.clone().unwrap_or_else(gone));
        }
        self.closing = Some(error);
    }

    /// Handles worker events and carries the machine's outputs out.
    fn drain(&mut self) {
        while let Some(event) = self.core.links.next_sent() {
            self.sent(event);
        }
        while let Some(event) = self.core.links.next_received() {
            self.received(event);
        }
        let Some(active) = &mut self.active else {
            return;
        };
        let end = match &mut active.half {
            Half::Opening => None,
            Half::Sending(sending) => sending.pump(&mut self.core, &mut active.tally),
            Half::Receiving(receiving) => receiving.pump(&mut self.core, &mut active.tally),
        };
        if let Some(end) = end {
            self.transfer_ended(end);
        }
    }

    fn sent(&mut self, event: SendEvent) {
        if let SendEvent::Detached { connection, cause } = event {
            self.detached(connection, cause);
        } else if let Some(active) = &mut self.active
            && let Half::Sending(sending) = &mut active.half
        {
            sending.event(&mut self.core, &mut active.tally, event);
        }
    }

    fn received(&mut self, event: ReceiveEvent) {
        if let ReceiveEvent::Detached { connection, cause } = event {
            self.detached(connection, cause);
        } else if let Some(active) = &mut self.active
            && let Half::Receiving(receiving) = &mut active.half
        {
            if matches!(event, ReceiveEvent::Landed { .. }) {
                self.role.worked();
            }
            receiving.event(&mut self.core, &mut active.tally, event);
        }
    }

    fn detached(&mut self, connection: ConnectionId, cause: Option<Error>) {
        let missed = self.core.links.detached(connection);
        let Some(active) = &mut self.active else {
            return;
        };
        match &mut active.half {
            Half::Sending(sending) => sending.lost(&self.core, connection),
            Half::Receiving(receiving) => receiving.reaped(connection),
            Half::Opening => {}
        }
        let broke = cause.is_some();
        // By its peer, between two frames.
        let why = cause.map_or_else(|| "closed".to_owned(), |error| error.to_string());
        // A client's caller hears it as an event.
        if broke && matches!(self.role, Role::Server(_)) {
            tracing::info!(connection, why, "lost a data connection");
        } else {
            tracing::debug!(connection, why, "a data connection ended");
        }
        active.tally.tell(Event::ConnectionLost {
            connection,
            why: why.clone(),
        });
        if let Err(error) = self.role.connection_lost(&self.core, &why, missed) {
            active.stop(error);
        }
    }

    /// True while nothing may be sent, as no segment was answered.
    pub(super) fn waits_for_answer(&self) -> bool {
        match self.active.as_ref().map(|active| &active.half) {
            None | Some(Half::Opening) => true,
            Some(Half::Sending(sending)) => !sending.machine().is_answered(),
            Some(Half::Receiving(_)) => false,
        }
    }

    /// A data connection is in; what was left to haul is noted.
    pub(super) fn joined(&mut self, connection: ConnectionId, way: Way, notes: Vec<String>) {
        tracing::debug!(connection, ?way, "a data connection joined");
        let Some(active) = &mut self.active else {
            return;
        };
        notes.into_iter().for_each(|note| active.tally.note(note));
        active.tally.tell(Event::ConnectionJoined { connection });
        if let (Half::Sending(sending), Way::Out) = (&mut active.half, way) {
            sending.joined(&self.core, connection);
        }
    }

    fn incoming(&mut self, incoming: Option<Incoming>) {
        self.heard = self.core.clock.now();
        match incoming {
            Some(Incoming::Message(message)) => {
                if let Err(error) = self.message(*message) {
                    self.core.channel.send(&Message::Refuse(error.clone()));
                    self.close(Some(error));
                }
            }
            Some(Incoming::Closed(error)) => {
                if let Some(error) = &error {
                    // Where it is what was said that ends it, the peer hears why.
                    self.core.channel.send(&Message::Refuse(error.clone()));
                }
                self.close(error);
            }
            None => self.close(None),
        }
    }

    /// An error that the peer told: at its side, unless it says where.
    fn told(&self, error: Error) -> Error {
        let sends = self.active.as_ref().is_none_or(Active::sends);
        let peer = if sends { Side::Receiver } else { Side::Sender };
        match error.side {
            Side::Caller => error.at(peer),
            Side::Sender | Side::Receiver => error,
        }
    }

    fn message(&mut self, message: Message) -> Result<()> {
        let greeting = matches!(
            message,
            Message::Ready(_) | Message::Refuse(_) | Message::Heartbeat
        );
        if !greeting && let Some(error) = self.unproved("it goes on without a proof") {
            // Not a byte of payload before: who it is stands on this alone.
            return Err(error);
        }
        match message {
            Message::Heartbeat => Ok(()),
            Message::Refuse(error) => {
                let error = self.told(error);
                self.close(Some(error));
                Ok(())
            }
            Message::Abort { transfer, error } => {
                let error = self.told(error);
                self.transfer_message(transfer, Message::Abort { transfer, error });
                Ok(())
            }
            Message::Begun {
                transfer,
                window_bytes,
            } => {
                if let Some(Active {
                    half: Half::Sending(sending),
                    transfer: own,
                    ..
                }) = &mut self.active
                    && transfer == *own
                {
                    sending.begun(window_bytes);
                }
                Ok(())
            }
            Message::Lost { .. } | Message::Freed { .. } => {
                self.connection_message(message);
                Ok(())
            }
            // They make a transfer, or may come before the one that they mean runs.
            Message::Begin(_) | Message::EndStreams { .. } => self.role_message(message),
            message => match message.transfer() {
                Some(transfer) => {
                    self.transfer_message(transfer, message);
                    Ok(())
                }
                None => self.role_message(message),
            },
        }
    }

    /// The error for a server that has not proved itself; `None` once it has,
    /// and at the server, whose sessions begin with the proof.
    fn unproved(&self, why: &str) -> Option<Error> {
        let Role::Client(client) = &self.role else {
            return None;
        };
        let error = client.unproved(&self.core.peer, why)?;
        Some(error.cure("check that it is the server you mean, and its token"))
    }

    fn connection_message(&mut self, message: Message) {
        match (&mut self.active, message) {
            (
                Some(Active {
                    half: Half::Sending(sending),
                    ..
                }),
                message @ Message::Freed { .. },
            ) => {
                sending.message(&self.core, message);
            }
            (
                Some(Active {
                    half: Half::Receiving(receiving),
                    tally,
                    ..
                }),
                message @ Message::Lost { .. },
            ) => {
                receiving.message(&self.core, tally, message);
            }
            // Between transfers nothing of it is awaited.
            (_, Message::Lost { connection } | Message::Freed { connection }) => {
                self.core.links.bar(connection);
                self.core.links.detach(connection, PEER_LOST_IT);
            }
            _ => {}
        }
    }

    /// Messages of a transfer that is over are late, not wrong.
    pub(super) fn transfer_message(&mut self, transfer: TransferId, message: Message) {
        let Some(active) = self
            .active
            .as_mut()
            .filter(|active| active.transfer == transfer)
        else {
            return self.keep_for_next(transfer, message);
        };
        match &mut active.half {
            Half::Sending(sending) => {
                if matches!(message, Message::Landed { .. }) {
                    self.role.worked();
                }
                sending.message(&self.core, message);
            }
            Half::Receiving(receiving) => receiving.message(&self.core, &mut active.tally, message),
            Half::Opening => {
                if let Message::Abort { error, .. } = message {
                    active.stopped = Some(error);
                }
            }
        }
    }

    fn inner(&mut self, inner: Inner) {
        match inner {
            Inner::Stop(transfer, stop) => self.stop(transfer, stop),
            Inner::Hands(transfer, done) => {
                self.core.hand_returned();
                self.hands(transfer, done);
            }
            Inner::Stream(transfer, news) => {
                let active = self
                    .active
                    .as_mut()
                    .filter(|active| active.transfer == transfer);
                match active {
                    Some(Active {
                        half: Half::Sending(sending),
                        ..
                    }) => sending.stream(news),
                    Some(active) => active.early = Some(news),
                    None => {}
                }
            }
            Inner::Close => {
                if let (Some(active), Role::Server(_)) = (&mut self.active, &self.role) {
                    let doing = "cannot finish the transfer";
                    let error = Error::peer(doing, "the server was stopped");
                    active.stop(error.clone());
                    self.core.channel.send(&Message::Refuse(error));
                }
                self.close(None);
            }
            inner => {
                if let Err(error) = self.role_inner(inner) {
                    self.close(Some(error));
                }
            }
        }
    }

    fn stop(&mut self, transfer: TransferId, stop: Stop) {
        let Some(active) = self
            .active
            .as_mut()
            .filter(|active| active.transfer == transfer)
        else {
            return;
        };
        match (stop, &mut active.half) {
            (Stop::Finish, Half::Sending(sending)) => sending.finish_streams(),
            (Stop::Finish, Half::Opening) => active.finished_early = true,
            // The peer makes the bytes.
            (Stop::Finish, _) => self.core.channel.send(&Message::EndStreams { transfer }),
            (Stop::Interrupt, _) => {
                active.stop(Error::new(
                    ErrorKind::Interrupted,
                    "the transfer was interrupted",
                ));
            }
        }
    }

    fn hands(&mut self, transfer: TransferId, done: Done) {
        let Some(active) = self
            .active
            .as_mut()
            .filter(|active| active.transfer == transfer)
        else {
            return;
        };
        match (&mut active.half, done) {
            (Half::Opening, done) => self.opened(done),
            (Half::Sending(sending), done) => sending.done(done),
            (Half::Receiving(receiving), done) => receiving.done(&mut active.tally, done),
        }
    }

    fn tick(&mut self) {
        let now = self.core.clock.now();
        if now.saturating_sub(self.ticked) > limits::SILENCE_NANOS_MAX / 4 {
            // This process was stopped meanwhile: what the peer said is not read yet.
            self.heard = now;
            self.core.links.excuse_unanswered();
        }
        self.ticked = now;
        if self.core.channel.take_sent() {
            self.spoke = now;
        } else if now.saturating_sub(self.spoke) > limits::HEARTBEAT_NANOS && self.closing.is_none()
        {
            self.core.channel.send(&Message::Heartbeat);
        }
        if now.saturating_sub(self.heard) > limits::SILENCE_NANOS_MAX {
            let error = Error::peer(
                format!("lost the connection to {}", self.core.peer),
                format!(
                    "it was silent for {} s",
                    limits::SILENCE_NANOS_MAX / 1_000_000_000
                ),
            );
            self.close(Some(error));
        }
        if now.saturating_sub(self.began) > limits::GREETING_WAIT_NANOS_MAX
            && let Some(error) = self.unproved("it proved nothing in time")
        {
            self.close(Some(error));
        }
        let silence_max = Duration::from_millis(u64::from(limits::TCP_USER_TIMEOUT_MILLIS));
        self.core.links.detach_silent(silence_max);
        self.core.links.detach_unanswered();
        self.tell_progress();
    }

    fn tell_progress(&mut self) {
        let Some(active) = &self.active else { return };
        let way = if active.sends() { Way::Out } else { Way::In };
        let (bytes, planned_bytes) = (active.bytes(), active.planned());
        let planned = (active.tally.file_count(), planned_bytes);
        if self.told_planned != Some(planned) {
            self.told_planned = Some(planned);
            active.tally.tell(Event::Planned {
                files: planned.0,
                bytes: planned.1,
            });
        }
        if active.tally.is_watched() {
            active.tally.tell(Event::Progress(Progress {
                landed_bytes: bytes.landed,
                planned_bytes,
                seconds: active.tally.seconds(),
                connections: self.core.links.progress(way),
            }));
        }
    }

    /// The transfer is over: its report goes to whoever asked for it.
    pub(super) fn transfer_ended(&mut self, end: Result<()>) {
        self.tell_progress();
        if let Some(active) = self.active.take() {
            self.told_planned = None;
            self.role.transfer_ended(&self.core, active, end);
            self.serving_next();
        }
    }
}
