//! One session: its control channel, its data connections, and the transfer
//! that runs on them, one after another.
//!
//! Leaves to others: greeting (before), the transfer's halves, and what a client
//! and a server do differently. Invariant: every wait ends: by a message, an
//! event, the tick, or the peer's silence.

use super::channel::Incoming;
use super::hands::blocking;
use super::inbox::Inner;
use super::role::Role;
use super::running::Running;
use crate::data::{ReceiveEvent, SendEvent};
use crate::error::{Error, Result, Side};
use crate::limits;
use crate::protocol::wire::Message;
use crate::protocol::{ConnectionId, Nanos, TransferId};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often progress is told and deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a closing session waits for its last words to be taken.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// A session after its greeting.
pub(crate) struct Session<R> {
    running: Running,
    role: R,
    messages: mpsc::Receiver<Incoming>,
    inner: mpsc::UnboundedReceiver<Inner>,
    began: Nanos,
    /// When deadlines were last looked at.
    ticked: Nanos,
    /// When the peer was last heard.
    heard: Nanos,
    /// When this end last spoke.
    spoke: Nanos,
    /// The control channel is gone; the session ends with its transfer.
    closing: Option<Option<Error>>,
}

impl<R: Role> Session<R> {
    /// A session that goes on from its greeting.
    pub(crate) fn new(
        running: Running,
        role: R,
        messages: mpsc::Receiver<Incoming>,
        inner: mpsc::UnboundedReceiver<Inner>,
    ) -> Self {
        let now = running.core.clock.now();
        Self {
            running,
            role,
            messages,
            inner,
            began: now,
            ticked: now,
            heard: now,
            spoke: now,
            closing: None,
        }
    }

    /// Where this process asks it for things.
    pub(crate) fn inbox(&self) -> mpsc::UnboundedSender<Inner> {
        self.running.core.inner.clone()
    }

    /// Runs until the session ends; `ended` hears why, before anybody can see
    /// that it takes no more: an error, unless it was closed between transfers.
    pub(crate) async fn run(mut self, ended: impl FnOnce(Option<Error>)) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.drain();
            if self.closing.is_some() && !self.running.is_busy() {
                break;
            }
            // Nothing that is dropped here is a ring operation.
            tokio::select! {
                incoming = self.messages.recv(), if self.closing.is_none() => self.incoming(incoming),
                inner = self.inner.recv() => {
                    if let Some(inner) = inner { self.inner(inner) }
                }
                () = self.running.core.links.ready() => {}
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
        while !self.running.core.channel.is_flushed() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if !clean {
            // Half a close, so that the peer reads the last words; its own close,
            // or the deadline, is the end.
            self.running.core.channel.close_writing();
            let last = async {
                while !matches!(self.messages.recv().await, None | Some(Incoming::Closed(_))) {}
            };
            let _ = tokio::time::timeout_at(deadline, last).await;
        }
        let join = self.running.core.links.stop();
        // A panicked joiner has logged itself; without a thread the workers, which
        // were told to stop, end by themselves.
        let _ = blocking(join).await;
    }

    /// Ends the session, and the transfer with it.
    fn close(&mut self, error: Option<Error>) {
        if self.closing.is_some() {
            return;
        }
        let peer = &self.running.core.peer;
        let gone = || Error::peer(format!("lost the connection to {peer}"), "it was closed");
        let why = error.clone().unwrap_or_else(gone);
        if let Some(active) = self.running.active() {
            active.stop(why);
        }
        self.closing = Some(error);
    }

    /// Handles worker events, carries the machine's outputs out, and tells what
    /// ended.
    fn drain(&mut self) {
        self.tell_ended();
        while let Some(event) = self.running.core.links.next_sent() {
            match event {
                SendEvent::Detached { connection, cause } => self.detached(connection, cause),
                event => self.running.sent(event),
            }
        }
        while let Some(event) = self.running.core.links.next_received() {
            match event {
                ReceiveEvent::Detached { connection, cause } => self.detached(connection, cause),
                event => {
                    if matches!(event, ReceiveEvent::Landed { .. }) {
                        self.role.worked();
                    }
                    self.running.received(event);
                }
            }
        }
        self.running.pump();
        self.tell_ended();
    }

    /// What ended is told; the role may begin the next transfer meanwhile.
    fn tell_ended(&mut self) {
        while let Some((active, end)) = self.running.take_ended() {
            self.role.ended(&mut self.running, active, end);
        }
    }

    fn detached(&mut self, connection: ConnectionId, cause: Option<Error>) {
        let missed = self.running.core.links.detached(connection);
        if !self.running.is_busy() {
            return;
        }
        let broke = cause.is_some();
        // By its peer, between two frames.
        let why = cause.map_or_else(|| "closed".to_owned(), |error| error.to_string());
        if broke {
            self.role.connection_broke(connection, &why);
        }
        tracing::debug!(connection, why, "a data connection ended");
        self.running.detached(connection, &why);
        let lost = self.role.connection_lost(&self.running, &why, missed);
        if let (Err(error), Some(active)) = (lost, self.running.active()) {
            active.stop(error);
        }
    }

    fn incoming(&mut self, incoming: Option<Incoming>) {
        self.heard = self.running.core.clock.now();
        match incoming {
            Some(Incoming::Message(message)) => {
                if let Err(error) = self.message(*message) {
                    self.say_why(&error);
                    self.close(Some(error));
                }
            }
            Some(Incoming::Closed(error)) => {
                if let Some(error) = &error {
                    // Where it is what was said that ends it, the peer hears why.
                    self.say_why(error);
                }
                self.close(error);
            }
            None => self.close(None),
        }
    }

    fn say_why(&self, error: &Error) {
        let refuse = Message::Refuse(error.clone());
        self.running.core.channel.send(&refuse);
    }

    /// An error that the peer told: at its side, unless it says where.
    fn told(&self, error: Error) -> Error {
        let peer = match self.running.sends() {
            true => Side::Receiver,
            false => Side::Sender,
        };
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
            // Requests to dial and to let go are followed by nobody yet.
            Message::Heartbeat | Message::Dial { .. } | Message::Retire { .. } => {}
            Message::Refuse(error) => {
                let error = self.told(error);
                self.close(Some(error));
            }
            Message::Abort { transfer, error } => {
                let error = self.told(error);
                self.transfer_message(transfer, Message::Abort { transfer, error });
            }
            Message::Begun {
                transfer,
                window_bytes,
            } => self.running.begun(transfer, window_bytes),
            Message::Lost { .. } | Message::Freed { .. } => {
                self.running.connection_message(message);
            }
            // They make a transfer, or may come before the one that they mean runs.
            Message::Begin(_) | Message::EndStreams { .. } => {
                return self.role.message(&mut self.running, message);
            }
            message => match message.transfer() {
                Some(transfer) => self.transfer_message(transfer, message),
                None => return self.role.message(&mut self.running, message),
            },
        }
        Ok(())
    }

    /// The error for a peer that has not proved itself; `None` once it has.
    fn unproved(&self, why: &str) -> Option<Error> {
        let error = self.role.unproved(&self.running.core.peer, why)?;
        Some(error.cure("check that it is the server you mean, and its token"))
    }

    /// Messages of a transfer that is over are late, not wrong.
    fn transfer_message(&mut self, transfer: TransferId, message: Message) {
        if matches!(message, Message::Landed { .. }) && self.running.of(transfer).is_some() {
            self.role.worked();
        }
        if let Some(message) = self.running.message(transfer, message) {
            self.role.late(&mut self.running, transfer, message);
        }
    }

    fn inner(&mut self, inner: Inner) {
        match inner {
            Inner::Stop(transfer, stop) => self.running.stop(transfer, stop),
            Inner::Hands(transfer, done) => {
                self.running.core.hand_returned();
                if let Some(files) = self.running.done(transfer, done) {
                    self.role.opened(&mut self.running, files);
                }
            }
            Inner::Stream(transfer, news) => self.running.stream(transfer, news),
            Inner::Close => {
                if let (Some(error), Some(active)) = (self.role.closing(), self.running.active()) {
                    active.stop(error.clone());
                    self.say_why(&error);
                }
                self.close(None);
            }
            inner => self.role.asked(&mut self.running, inner),
        }
    }

    fn tick(&mut self) {
        let now = self.running.core.clock.now();
        if now.saturating_sub(self.ticked) > limits::SILENCE_NANOS_MAX / 4 {
            // This process was stopped meanwhile: what the peer said is not read yet.
            self.heard = now;
            self.running.core.links.excuse_unanswered();
        }
        self.ticked = now;
        if self.running.core.channel.take_sent() {
            self.spoke = now;
        } else if now.saturating_sub(self.spoke) > limits::HEARTBEAT_NANOS && self.closing.is_none()
        {
            self.running.core.channel.send(&Message::Heartbeat);
        }
        if now.saturating_sub(self.heard) > limits::SILENCE_NANOS_MAX {
            let error = Error::peer(
                format!("lost the connection to {}", self.running.core.peer),
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
        self.running.core.links.detach_silent(silence_max);
        self.running.core.links.detach_unanswered();
        self.running.tell_progress();
    }
}
