//! Sending frames: one operation for each, and what follows from its result.
//!
//! Leaves to others: how bytes came into memory. Invariant: `frame_sent` of
//! the load at the front of a connection's queue is exactly what its socket
//! took of that frame.

use super::job::Job;
use super::load::{Path, Stage};
use super::pipe::STEPS_MAX;
use super::worker::Worker;
use crate::data::SendEvent;
use crate::kernel::ring::{Completion, Message, Outcome, SendMode};
use crate::options::Transmit;
use crate::protocol::Nanos;
use rustix::io::Errno;

/// Room in the ring that a frame needs at most: the longest chain of splices,
/// and its cancellation.
const ROOM_MIN: usize = 2 + 2 * STEPS_MAX;

impl Worker {
    /// Gives every connection that can send its next frame, or its rest. False
    /// when one of them has to be read again first.
    pub fn start_sends(&mut self) -> bool {
        let mut started = true;
        self.now = self.clock_now();
        for place in 0..self.connections.len() {
            let Some(connection) = self.connections[place].as_ref() else {
                continue;
            };
            if connection.busy || !connection.is_open() || self.ring.room() < ROOM_MIN {
                continue;
            }
            let Some(index) = connection.queue.front().copied() else {
                continue;
            };
            let Some(load) = self.loads[index].as_mut() else {
                continue;
            };
            if load.stage != Stage::Ready {
                continue;
            }
            load.stage = Stage::Sending;
            load.submitted.get_or_insert(self.now);
            if load.path == Path::Splice {
                started &= self.start_splice(place, index);
                continue;
            }
            let mut message = self.message();
            if let Some(load) = self.loads[index].as_mut() {
                load.write_message(&mut message);
            }
            self.send(place, index, message);
        }
        started
    }

    /// Queues the send of a message.
    fn send(&mut self, place: usize, index: usize, message: Box<Message>) {
        let (Some(connection), Some(load)) =
            (self.connections[place].as_mut(), self.loads[index].as_mut())
        else {
            return self.recycle(message);
        };
        let zero_copy = load.path == Path::ZeroCopy;
        connection.busy = true;
        connection.sending_since = self.now;
        connection.operations += 1;
        connection.path = load.path;
        let alone = self.unreleased == 0;
        self.unreleased += usize::from(zero_copy);
        let socket = connection.socket.clone();
        let token = self.token(Job::Send {
            place,
            load: index,
            bytes: message.bytes() as u64,
            submitted: self.now,
            zero_copy,
            alone,
        });
        let mode = SendMode {
            zero_copy,
            more: false,
        };
        self.ring.send(&socket, message, mode, token);
    }

    /// A send's result, its notification, or both at once.
    pub fn send_completed(&mut self, job: Job, completion: Completion) {
        let Job::Send {
            place,
            load,
            bytes,
            submitted,
            zero_copy,
            alone,
        } = job
        else {
            return;
        };
        let message = completion.loan.into_message();
        match completion.outcome {
            Outcome::Released { copied } => {
                if zero_copy {
                    self.released(place, bytes, submitted, copied);
                }
                message
                    .into_iter()
                    .for_each(|message| self.recycle(message));
            }
            Outcome::Done(result) => {
                if zero_copy {
                    // No notification follows.
                    self.unpinned(result.is_ok());
                }
                let of = (bytes, submitted, zero_copy, alone);
                self.sent(place, load, of, result, message);
            }
            Outcome::Sent(result) => {
                if result.unwrap_or(0) == 0 {
                    // Nothing of it is pinned, and no one may wait for that.
                    self.unpinned(false);
                }
                let of = (bytes, submitted, zero_copy, alone);
                self.sent(place, load, of, result, None);
            }
        }
    }

    /// What the socket took.
    fn sent(
        &mut self,
        place: usize,
        index: usize,
        (bytes, submitted, zero_copy, alone): (u64, Nanos, bool, bool),
        result: Result<u32, Errno>,
        message: Option<Box<Message>>,
    ) {
        let nanos = self.now.saturating_sub(submitted);
        self.report.latencies.send.record(nanos, 1);
        let Some(connection) = self.connections[place].as_mut() else {
            return;
        };
        connection.busy = false;
        connection.timed(nanos);
        let lost = self.loads[index]
            .as_ref()
            .is_none_or(|load| load.place.is_none());
        if lost {
            message
                .into_iter()
                .for_each(|message| self.recycle(message));
            return self.drop_load(index);
        }
        let count = u64::from(result.unwrap_or(0));
        if let Some(load) = self.loads[index].as_mut() {
            load.frame_sent += count;
        }
        match result {
            Ok(_) if count == bytes => {
                message
                    .into_iter()
                    .for_each(|message| self.recycle(message));
                self.finish(place, index);
            }
            Ok(1..) | Err(Errno::INTR | Errno::AGAIN) => match message {
                Some(mut message) => {
                    // The exact count is known: what is left goes next.
                    message.advance(count as usize);
                    self.send(place, index, message);
                }
                None => self.send_rest(index),
            },
            // The mapping has a hole where the file was cut off.
            Ok(0) | Err(Errno::FAULT) => {
                message
                    .into_iter()
                    .for_each(|message| self.recycle(message));
                self.send_rest(index);
            }
            Err(Errno::NOMEM | Errno::NOBUFS | Errno::OPNOTSUPP) if zero_copy => {
                message
                    .into_iter()
                    .for_each(|message| self.recycle(message));
                self.zero_copy_refused(place, index, alone);
            }
            Err(errno) => {
                message
                    .into_iter()
                    .for_each(|message| self.recycle(message));
                let error = connection_error(self, place, errno);
                self.close(place, error);
            }
        }
    }

    /// The whole frame is in the socket.
    pub fn finish(&mut self, place: usize, index: usize) {
        let Some(mut load) = self.loads[index].take() else {
            return;
        };
        load.release(&mut self.pool);
        self.forget_pages(&load);
        let Some(connection) = self.connections[place].as_mut() else {
            return;
        };
        connection.queue.pop_front();
        connection.bytes += load.payload_bytes;
        let connection = connection.id;
        self.tell(SendEvent::Sent {
            connection,
            run: load.run,
            transfer: load.segment.transfer,
            bytes: load.payload_bytes,
            submitted: load.submitted.unwrap_or(self.now),
            checks: load.checks,
        });
    }

    /// Reads what is left of a frame afresh and sends it by copy.
    pub fn send_rest(&mut self, index: usize) {
        if let Some(load) = self.loads[index].as_mut() {
            load.release(&mut self.pool);
            load.mapping.clear();
            load.stage = Stage::Waiting;
            load.rest = true;
            self.waiting.push_front(index);
        }
    }

    /// The kernel pins no more memory for zero-copy sends: where that was only
    /// haul's choice, the connection copies from now on; where it was asked
    /// for, the load waits while notifications are due, and is refused only when
    /// nothing else was pinned as it was tried.
    fn zero_copy_refused(&mut self, place: usize, index: usize, alone: bool) {
        let Some(load) = self.loads[index].as_mut() else {
            return;
        };
        let asked = load.segment.transmit == Transmit::Zerocopy;
        load.release(&mut self.pool);
        load.mapping.clear();
        load.stage = Stage::Waiting;
        if asked && !alone && self.unreleased > 0 {
            return self.paused.push(index);
        }
        // Chosen again from the start: by copy, or with an error, or, where
        // others' pages were in its way, once more without a copy.
        self.waiting.push_front(index);
        if asked && !alone {
            return;
        }
        if let Some(connection) = self.connections[place].as_mut() {
            connection.refused_zero_copy = true;
            connection.auto = Path::Copy;
        }
        if !asked {
            self.note(
                "zero-copy sends were refused for want of lockable memory and went by copy: raise RLIMIT_MEMLOCK (`ulimit -l`)",
            );
        }
    }

    /// A notification came: its pages are no longer the kernel's.
    fn released(&mut self, place: usize, bytes: u64, submitted: Nanos, copied: bool) {
        let nanos = self.now.saturating_sub(submitted);
        self.report.latencies.release.record(nanos, 1);
        if copied {
            self.report.zero_copy_copied_bytes += bytes;
        } else {
            self.report.zero_copy_sent_bytes += bytes;
        }
        let left = self.connections[place]
            .as_mut()
            .is_some_and(|connection| connection.released(bytes, copied));
        if left {
            self.note("the kernel copied most zero-copy sends on this route: they go by copy now");
        }
        self.unpinned(true);
    }

    /// A zero-copy send holds no pages any more. Where it never did (`freed` is
    /// false) paused loads would only fail again, unless nothing else is left
    /// that could wake them.
    fn unpinned(&mut self, freed: bool) {
        self.unreleased -= 1;
        if freed || self.unreleased == 0 {
            let paused = std::mem::take(&mut self.paused);
            self.waiting.extend(paused);
        }
    }
}

fn connection_error(worker: &Worker, place: usize, errno: Errno) -> Option<crate::Error> {
    let why = std::io::Error::from(errno);
    worker.connections[place]
        .as_ref()
        .map(|connection| connection.error(why))
}
