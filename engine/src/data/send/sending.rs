//! Sending frames: one operation for each, and what follows from its result.
//!
//! Leaves to others: how bytes came into memory. Invariant: `frame_sent` of
//! the load at the front of a connection's queue is exactly what its socket
//! took of that frame.

use super::job::Job;
use super::load::{Origin, Path, Stage};
use super::pins::is_refusal;
use super::pipe::STEPS_MAX;
use super::worker::SendWorker;
use crate::data::SendEvent;
use crate::kernel::ring::{Completion, IoMessage, Outcome, SendMode};
use crate::options::Transmit;
use crate::protocol::Nanos;
use rustix::io::Errno;

/// Room in the ring that a frame needs at most: the longest chain of splices,
/// and its cancellation.
const ROOM_MIN: usize = 2 + 2 * STEPS_MAX;

impl SendWorker {
    /// Gives every connection that can send its next frame, or its rest. False
    /// when one of them has to be read again first.
    pub fn start_sends(&mut self) -> bool {
        let mut started = true;
        self.now = self.clock_now();
        let open = self.connections.values();
        let open = open.filter(|connection| connection.is_open()).count();
        for place in 0..self.connections.places() {
            let Some(connection) = self.connections.get(place) else {
                continue;
            };
            if connection.busy || !connection.is_open() || self.ring.room() < ROOM_MIN {
                continue;
            }
            let Some(index) = connection.queue.front().copied() else {
                continue;
            };
            let Some(load) = self.loads.get_mut(index) else {
                continue;
            };
            if load.stage != Stage::Ready {
                continue;
            }
            load.submitted.get_or_insert(self.now);
            if load.path == Path::Splice {
                load.stage = Stage::Sending;
                started &= self.start_splice(place, index);
                continue;
            }
            self.start_send(place, index, open);
        }
        started
    }

    /// Sends the next piece of a load: all that is left of its frame, or as much as
    /// may be pinned.
    fn start_send(&mut self, place: usize, index: usize, open: usize) {
        let left = self
            .loads
            .get_mut(index)
            .and_then(|load| load.left.pop_front());
        let written = left.is_some();
        let mut message = left.unwrap_or_else(|| self.message());
        let Some(load) = self.loads.get_mut(index) else {
            return self.recycle(message);
        };
        if !written {
            load.write_message(&mut message);
        }
        let whole = message.bytes();
        let piece = match load.path {
            Path::ZeroCopy => self.pins.piece(self.now, whole, open),
            Path::Copy | Path::Splice => Some(whole),
        };
        let Some(bytes) = piece else {
            load.left.push_front(message);
            self.starved = true;
            return;
        };
        load.stage = Stage::Sending;
        if bytes < whole {
            let mut rest = self.message();
            message.cut(bytes, &mut rest);
            if let Some(load) = self.loads.get_mut(index) {
                load.left.push_front(rest);
            }
        }
        self.send(place, index, message);
    }

    /// Queues the send of a message.
    fn send(&mut self, place: usize, index: usize, message: Box<IoMessage>) {
        let (Some(connection), Some(load)) =
            (self.connections.get_mut(place), self.loads.get_mut(index))
        else {
            return self.recycle(message);
        };
        let zero_copy = load.path == Path::ZeroCopy;
        connection.busy = true;
        connection.sending_since = self.now;
        connection.operations += 1;
        connection.path = load.path;
        let pinned = if zero_copy { message.bytes() } else { 0 };
        self.pins.take(pinned);
        let socket = connection.socket.clone();
        let token = self.token(Job::Send {
            place,
            load: index,
            bytes: message.bytes() as u64,
            submitted: self.now,
            zero_copy,
            pinned,
            refused: None,
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
            pinned,
            refused,
        } = job
        else {
            return;
        };
        let message = completion.loan.into_message();
        match completion.outcome {
            Outcome::Released { copied } => {
                if let Some(errno) = refused {
                    return self.refused((place, load), (pinned, errno), message);
                }
                if zero_copy {
                    self.released(place, bytes, submitted, copied);
                    self.pins.release(pinned);
                } else {
                    self.pins.give_back(pinned);
                }
                message
                    .into_iter()
                    .for_each(|message| self.recycle(message));
            }
            Outcome::Done(Err(errno)) if pinned > 0 && is_refusal(errno) => {
                self.refused((place, load), (pinned, errno), message);
            }
            Outcome::Done(result) => {
                // No notification follows.
                self.pins.give_back(pinned);
                self.sent(place, load, (bytes, submitted), result, message);
            }
            // Its message comes with the notification.
            Outcome::Sent(Err(errno)) if is_refusal(errno) => {}
            Outcome::Sent(result) => self.sent(place, load, (bytes, submitted), result, None),
        }
    }

    /// What the socket took.
    fn sent(
        &mut self,
        place: usize,
        index: usize,
        (bytes, submitted): (u64, Nanos),
        result: Result<u32, Errno>,
        message: Option<Box<IoMessage>>,
    ) {
        let nanos = self.now.saturating_sub(submitted);
        self.report.latencies.send.record(nanos, 1);
        let Some(connection) = self.connections.get_mut(place) else {
            return;
        };
        connection.busy = false;
        connection.timed(nanos);
        let lost = self
            .loads
            .get(index)
            .is_none_or(|load| load.place.is_none());
        if lost {
            message
                .into_iter()
                .for_each(|message| self.recycle(message));
            return self.drop_load(index);
        }
        let count = u64::from(result.unwrap_or(0));
        if let Some(load) = self.loads.get_mut(index) {
            load.frame_sent += count;
        }
        match result {
            Ok(_) if count == bytes => {
                message
                    .into_iter()
                    .for_each(|message| self.recycle(message));
                match self.loads.get_mut(index) {
                    Some(load) if !load.left.is_empty() => load.stage = Stage::Ready,
                    _ => self.finish(place, index),
                }
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
        let Some(mut load) = self.loads.remove(index) else {
            return;
        };
        load.release(&mut self.pool);
        self.forget_pages(&load);
        let Some(connection) = self.connections.get_mut(place) else {
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
        if let Some(load) = self.loads.get_mut(index) {
            load.release(&mut self.pool);
            load.mapping.clear();
            load.stage = Stage::Waiting;
            load.origin = Origin::Rest;
            self.waiting.push_front(index);
        }
    }

    /// The kernel could not pin a piece: nothing of it went. It is cut smaller and
    /// tried again; where not even the smallest can be had, a send that haul chose
    /// goes by copy, and one that was asked for fails its files.
    fn refused(
        &mut self,
        (place, index): (usize, usize),
        (pinned, errno): (usize, Errno),
        message: Option<Box<IoMessage>>,
    ) {
        let may_go = self.pins.refuse(self.now, pinned) && errno != Errno::OPNOTSUPP;
        if let Some(connection) = self.connections.get_mut(place) {
            connection.busy = false;
        }
        let (Some(load), Some(message)) = (self.loads.get_mut(index), message) else {
            return;
        };
        load.left.push_front(message);
        load.stage = Stage::Ready;
        if load.place.is_none() {
            return self.drop_load(index);
        }
        let asked = load.segment.transmit == Transmit::Zerocopy;
        if may_go && (asked || !self.pins.is_refused()) {
            return;
        }
        load.path = Path::Copy;
        if let Some(connection) = self.connections.get_mut(place) {
            connection.refused_zero_copy = true;
            connection.auto = Path::Copy;
        }
        if !asked {
            return self.note(
                "zero-copy sends were refused for want of lockable memory and went by copy: raise RLIMIT_MEMLOCK (`ulimit -l`)",
            );
        }
        // Its frame goes on, or the connection would be lost with it.
        if let Some(mut load) = self.loads.lend(index) {
            self.refuse_zero_copy(&mut load);
            self.tell_voids(&mut load);
            self.loads.give_back(index, load);
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
        let left = self
            .connections
            .get_mut(place)
            .is_some_and(|connection| connection.released(bytes, copied));
        if left {
            self.note("the kernel copied most zero-copy sends on this route: there `--transmit auto` goes on by copy");
        }
    }
}

fn connection_error(worker: &SendWorker, place: usize, errno: Errno) -> Option<crate::Error> {
    let why = std::io::Error::from(errno);
    worker
        .connections
        .get(place)
        .map(|connection| connection.error(why))
}
