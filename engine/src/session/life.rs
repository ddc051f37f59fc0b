//! One session: its control channel, its data connections, and the transfer
//! that runs on them, one after another.
//!
//! Leaves to others: greeting (before), every decision (protocol's session), the
//! transfer's halves, and what a client and a server do differently. Invariant:
//! whatever happens is told to the machine that decides, and what it puts out is
//! carried out before anything else is heard.

use super::channel::Incoming;
use super::hands::blocking;
use super::inbox::Inner;
use super::role::Role;
use super::running::{Active, Running};
use crate::data::{Clock, ReceiveEvent, SendEvent};
use crate::error::Error;
use crate::limits;
use crate::protocol::session::SessionOutput;
use crate::protocol::wire::Message;
use crate::protocol::{ConnectionId, Nanos};
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
        Self {
            running,
            role,
            messages,
            inner,
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
            let deadline = self.deadline();
            // Nothing that is dropped here is a ring operation.
            tokio::select! {
                incoming = self.messages.recv(), if self.closing.is_none() => self.incoming(incoming),
                inner = self.inner.recv() => {
                    if let Some(inner) = inner { self.inner(inner) }
                }
                () = self.running.core.links.ready() => {}
                () = due(self.running.core.clock, deadline) => {}
                _ = tick.tick() => self.tick(),
            }
        }
        let error = self.closing.take().flatten();
        let clean = error.is_none();
        ended(error);
        self.end(clean).await;
    }

    /// When something is to be decided or sent though nothing happens.
    fn deadline(&self) -> Nanos {
        let own = self.running.core.machine.deadline();
        self.running.wakes_at().map_or(own, |then| own.min(then))
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

    /// Handles worker events, and carries out what the machines decide, until
    /// nothing is left to do now.
    fn drain(&mut self) {
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
                        self.running.core.machine.landed();
                    }
                    self.running.received(event);
                }
            }
        }
        loop {
            self.running.pump();
            while let Some((active, end)) = self.running.take_ended() {
                self.role.ended(&mut self.running, active, end);
            }
            let core = &mut self.running.core;
            match core.machine.poll(core.clock.now()) {
                Some(output) => self.carry(output),
                None => return,
            }
        }
    }

    fn carry(&mut self, output: SessionOutput) {
        match output {
            SessionOutput::Message(message) => self.running.core.channel.send(&message),
            SessionOutput::Detach { connection, why } => {
                self.running.core.links.detach(connection, why);
            }
            SessionOutput::Transfer(message) => self.message(message),
            SessionOutput::PeerWorks => self.running.peer_works(),
            SessionOutput::Stop(error) => {
                if let Some(active) = self.running.active() {
                    active.stop(error);
                }
            }
            SessionOutput::End(error) => self.closing = Some(error),
            SessionOutput::Dial { .. } | SessionOutput::Join { .. } | SessionOutput::Begin(_) => {
                self.role.carry(&mut self.running, output);
            }
        }
    }

    fn detached(&mut self, connection: ConnectionId, cause: Option<Error>) {
        let broke = cause.is_some();
        // By its peer, between two frames.
        let closed = || "closed".to_owned();
        let why = cause.as_ref().map_or_else(closed, Error::to_string);
        tracing::debug!(connection, why, "a data connection ended");
        if broke && self.running.is_busy() {
            self.role.connection_broke(connection, &why);
        }
        let core = &mut self.running.core;
        core.links.detached(connection);
        core.machine.detached(core.clock.now(), connection, cause);
        self.running.detached(connection, &why);
    }

    fn incoming(&mut self, incoming: Option<Incoming>) {
        let core = &mut self.running.core;
        match incoming {
            Some(Incoming::Message(message)) => {
                let now = core.clock.now();
                if let Some(message) = core.machine.handle_message(now, *message) {
                    self.message(message);
                }
            }
            Some(Incoming::Closed(error)) => core.machine.closed_by_peer(error),
            None => core.machine.closed_by_peer(None),
        }
    }

    /// A message that is not the session's own.
    fn message(&mut self, message: Message) {
        match message {
            Message::Ready(proof) => match self.role.proof(&mut self.running, proof) {
                Ok(()) => self.running.core.machine.proved(),
                Err(error) => self.running.core.machine.refuse(error),
            },
            Message::Begun {
                window_bytes,
                descriptors_max,
                ..
            } => self.running.begun(window_bytes, descriptors_max),
            Message::Lost { .. } | Message::Freed { .. } => {
                self.running.connection_message(message);
            }
            Message::EndStreams { .. } => {
                // Where this end receives, the streams are the peer's own.
                let _ = self.running.active().map(Active::finish_streams);
            }
            message => {
                if matches!(message, Message::Landed { .. }) {
                    self.running.core.machine.landed();
                }
                self.running.message(message);
            }
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
            Inner::Close => self.running.core.machine.close(),
            inner => self.role.asked(&mut self.running, inner),
        }
    }

    fn tick(&mut self) {
        let is_working = self.running.is_working() || self.running.core.machine.is_letting_go();
        let core = &mut self.running.core;
        if core.channel.take_sent() {
            core.machine.spoke(core.clock.now());
        }
        let worked = core.count_work(is_working);
        core.machine.worked(worked);
        let silence_max = Duration::from_millis(u64::from(limits::TCP_USER_TIMEOUT_MILLIS));
        core.links.detach_silent(silence_max);
        self.running.tell_progress();
    }
}

/// Waits for a deadline that comes before the next tick.
async fn due(clock: Clock, deadline: Nanos) {
    let wait = Duration::from_nanos(deadline.saturating_sub(clock.now()));
    if wait >= TICK {
        return std::future::pending().await;
    }
    tokio::time::sleep(wait).await;
}
