//! The worker's loop: commands in, completions in, the next operations out.
//!
//! Leaves to others: connections (intake), blocks (landing) and standard output
//! (ordered).
//! Invariants: the worker waits for nothing but its ring (and the write of a
//! small piece); `Detached` is a connection's last event, after its
//! last operation was reaped and its grants were released.

use super::connection::{InFlight, ReceiveConnection};
use super::segment::ledger;
use super::state::{Open, ReceiveWorker, cannot_receive};
use super::stream::Ordered;
use super::token;
use crate::data::{ReceiveCommand, ReceiveEvent, ReceiveSegment};
use crate::error::{Error, Result, why};
use crate::kernel::ring::{Completion, Handle, Loan, Outcome};
use crate::limits;
use crate::protocol::{ConnectionId, Nanos, SegmentId, TransferId};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Connections of one worker, those that are leaving included, at most: each
/// may have a receive in the ring.
const CONNECTIONS_MAX: usize = 2 * limits::CONNECTIONS_MAX as usize;
/// Transfers that are remembered as forgotten: frames of them may still be on
/// their way, those of older ones are not.
const FORGOTTEN_MAX: usize = 1024;
/// How often something that waits for another worker, or for a non-blocking
/// standard output, is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Inside a frame landed chunks are told this much later at most: each telling
/// wakes the other end of the queue and costs both sides' control connections a
/// message. 2 GiB onto tmpfs over one connection: 0.51 to 0.73 system calls a
/// chunk, and 0.80 to 1.00 where what did not complete at once was told at once.
const TELL_WAIT_NANOS_MAX: Nanos = 4_000_000;

impl ReceiveWorker {
    /// Works until it is stopped and everything was reaped.
    ///
    /// # Errors
    /// When the ring itself breaks; connections may be left then.
    pub fn run(&mut self) -> Result<()> {
        let mut completions = Vec::new();
        loop {
            self.obey_all();
            if self.stopping && self.connections.is_empty() && self.streams.is_empty() {
                self.flush();
                return Ok(());
            }
            self.wait(&mut completions)
                .map_err(|errno| Error::local("cannot wait for the ring", why(errno)))?;
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.retry_ordered();
            self.serve_queue();
        }
    }

    /// Submits and reaps; sleeps when there is nothing to reap, no command
    /// came, and nothing is left to be told.
    fn wait(&mut self, completions: &mut Vec<Completion>) -> Result<(), Errno> {
        if !self.polling {
            self.polling = true;
            self.ring
                .poll_readable(&self.commands_handle, token::COMMANDS);
        }
        let told_in = self.told_in();
        if told_in.is_none() {
            self.flush();
        }
        let held_back = |(_, stream): (usize, &Ordered)| stream.is_held_back();
        let soon = !self.retries.is_empty() || self.streams.iter().any(held_back);
        let timeout = soon.then_some(LOOK_AGAIN).or(told_in);
        let asleep = !self.stopping && self.commands.sleep();
        let wanted = usize::from(asleep || self.stopping);
        let waited = self.ring.submit_and_wait(wanted, timeout);
        self.ring.reap(completions);
        if asleep {
            self.commands.awake();
        }
        if soon {
            for stream in 0..self.streams.places() {
                self.write_next(stream);
            }
        }
        waited
    }

    /// How long what landed may still wait to be told; `None`: no longer, or
    /// there is nothing. Only inside a frame is there more to come that can be
    /// told with it.
    fn told_in(&self) -> Option<Duration> {
        if self.untold.is_empty() {
            return None;
        }
        let waited = self.clock.now().saturating_sub(self.untold_since);
        let left = TELL_WAIT_NANOS_MAX.checked_sub(waited)?;
        let more = self
            .connections
            .iter()
            .any(|(_, connection)| connection.frame.is_some());
        more.then(|| Duration::from_nanos(left))
    }

    fn complete(&mut self, completion: Completion) {
        let Completion {
            token,
            outcome,
            loan,
        } = completion;
        let Outcome::Done(result) = outcome else {
            // Only zero-copy sends complete otherwise.
            return;
        };
        match token::of(token) {
            token::Of::Commands => {
                self.polling = false;
                self.counts.system_calls += 1;
                self.commands.woken();
            }
            token::Of::Receive(slot) => match loan {
                Loan::Block(block) => self.received(slot, block, result),
                Loan::HugeWindow(_) => self.received_in_place(slot, result),
                _ => {}
            },
            token::Of::Gather(number) => {
                if let Loan::HugeWindow(window) = loan {
                    self.gathered(number, window, result);
                }
            }
            // A written block may be filled again at once: the loan goes first.
            token::Of::Write(number) => {
                drop(loan);
                self.wrote(number, result);
            }
            token::Of::Ordered(stream) => {
                drop(loan);
                self.wrote_ordered(stream, result);
            }
        }
    }

    pub(super) fn obey_all(&mut self) {
        while let Some(command) = self.commands.try_recv() {
            self.obey(command);
        }
        if self.commands.is_closed() && !self.stopping {
            self.stop();
        }
    }

    fn obey(&mut self, command: ReceiveCommand) {
        match command {
            ReceiveCommand::Attach { connection, socket } => self.attach(connection, socket),
            ReceiveCommand::Open(segment) => self.open(segment),
            ReceiveCommand::Close { transfer, segment } => self.close((transfer, segment)),
            ReceiveCommand::Forget(transfer) => self.forget(transfer),
            ReceiveCommand::Detach { connection, cause } => {
                let found = self
                    .connections
                    .iter()
                    .find_map(|(slot, candidate)| (candidate.number == connection).then_some(slot));
                if let Some(slot) = found {
                    self.leave(slot, Some(cause));
                }
            }
            ReceiveCommand::Report => {
                let calls = self.ring.take_system_calls() + self.events.take_signals();
                let report = {
                    let connections = self.connections.values_mut().map(ReceiveConnection::report);
                    self.counts.take(calls, connections)
                };
                self.tell(ReceiveEvent::Report(report));
            }
            ReceiveCommand::Stop => self.stop(),
        }
    }

    fn attach(&mut self, number: ConnectionId, socket: OwnedFd) {
        if self.connections.iter().count() >= CONNECTIONS_MAX {
            let why = format!("{CONNECTIONS_MAX} others were not closed yet");
            return self.refuse(number, Error::peer(cannot_receive(number), why));
        }
        // O_NONBLOCK would turn the ring's waits into EAGAIN.
        self.counts.system_calls += 1;
        let blocking = rustix::io::ioctl_fionbio(&socket, false);
        match blocking.and_then(|()| ReceiveConnection::new(number, Handle::from(socket))) {
            Ok(connection) => {
                let slot = self.connections.insert(connection);
                self.advance(slot);
                if self.stopping {
                    self.leave(slot, None);
                }
            }
            Err(errno) => {
                let error = Error::local(cannot_receive(number), why(errno));
                self.refuse(number, error.passing_when(errno == Errno::NOMEM));
            }
        }
    }

    fn refuse(&mut self, connection: ConnectionId, error: Error) {
        let cause = Some(error);
        self.tell(ReceiveEvent::Detached { connection, cause });
    }

    fn open(&mut self, segment: Arc<ReceiveSegment>) {
        let stream = Ordered::of(&segment).map(|ordered| self.streams.insert(ordered));
        let highest = self.opened.entry(segment.transfer).or_default();
        *highest = segment.segment.max(*highest);
        let key = (segment.transfer, segment.segment);
        self.segments.insert(key, Open { segment, stream });
    }

    fn close(&mut self, key: (TransferId, SegmentId)) {
        if let Some(open) = self.segments.remove(&key) {
            self.abandon_in_place(&open.segment);
            if let Some(stream) = open.stream {
                self.close_ordered(stream);
            }
        }
        self.failed
            .retain(|(transfer, segment, _)| (*transfer, *segment) != key);
    }

    fn forget(&mut self, transfer: TransferId) {
        let keys: Vec<_> = self
            .segments
            .keys()
            .filter(|key| key.0 == transfer)
            .copied()
            .collect();
        keys.into_iter().for_each(|key| self.close(key));
        self.opened.remove(&transfer);
        self.forgotten.push_back(transfer);
        if self.forgotten.len() > FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgetting.push(transfer);
        self.answer_forget(transfer);
    }

    /// Answers a forgotten transfer once nothing writes for it any more.
    pub(super) fn answer_forget(&mut self, transfer: TransferId) {
        let of_it = |segment: &ReceiveSegment| segment.transfer == transfer;
        let busy = self
            .landings
            .iter()
            .any(|(_, landing)| of_it(&landing.segment))
            || self
                .streams
                .iter()
                .any(|(_, stream)| of_it(&stream.segment))
            || self.connections.iter().any(|(_, connection)| {
                matches!(connection.in_flight, InFlight::InPlace((of, _)) if of == transfer)
            });
        if busy {
            return;
        }
        if let Some(place) = self.forgetting.iter().position(|asked| *asked == transfer) {
            self.forgetting.swap_remove(place);
            self.tell(ReceiveEvent::Forgotten(transfer));
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        let slots: Vec<_> = self.connections.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.leave(slot, None));
        let streams: Vec<_> = self.streams.iter().map(|(stream, _)| stream).collect();
        streams
            .into_iter()
            .for_each(|stream| self.close_ordered(stream));
    }

    /// It cannot go on: every connection ends with the reason, after the ring's
    /// drop reaped what was in flight.
    pub fn give_up(mut self, error: &Error) {
        self.flush();
        let Self {
            ring,
            connections,
            segments,
            events,
            ..
        } = self;
        drop(ring);
        for (_, connection) in connections.iter() {
            for open in segments.values() {
                ledger(&open.segment).release(connection.number);
            }
            let _ = events.send(ReceiveEvent::Detached {
                connection: connection.number,
                cause: Some(error.clone()),
            });
        }
    }
}
