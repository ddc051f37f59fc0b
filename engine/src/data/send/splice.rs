//! Sending by splice: head, then page-cache pages through a pipe.
//!
//! Leaves to others: the check (computed from bytes that were read) and what
//! follows from a chain that stopped. Invariant: a chain is one linked series
//! of operations; when its last completion is in, the bytes that went out are
//! exactly known, and a pipe with bytes left in it is never used again.

use super::job::Job;
use super::load::{Load, cached};
use super::pipe::{Chain, Pipe, STEPS_MAX, SpliceStep};
use super::worker::SendWorker;
use crate::kernel::ring::{Completion, Handle, Outcome, SendMode};
use rustix::io::Errno;

/// What one step moves: from where in which file, and how much.
type Stride = (Handle, u64, usize);

/// The steps of a load through `pipe`, [`STEPS_MAX`] at most; whether all of it
/// is in them.
fn strides(load: &Load, pipe: &Pipe) -> (Vec<Stride>, bool) {
    let mut steps = Vec::new();
    for (source, _, piece) in load.files().unwrap_or_default() {
        let mut done = 0;
        while done < piece.bytes {
            if steps.len() == STEPS_MAX {
                return (steps, false);
            }
            let offset = piece.file_offset + done;
            let bytes = pipe.step_bytes(offset, piece.bytes - done);
            steps.push((cached(source), offset, bytes));
            done += bytes as u64;
        }
    }
    (steps, true)
}

impl SendWorker {
    /// Queues the chain of a load whose checks are known. False when it has to
    /// be read again, to go by copy.
    pub fn start_splice(&mut self, place: usize, index: usize) -> bool {
        let Some(connection) = self.connections.get_mut(place) else {
            return true;
        };
        if connection.pipe.is_none() {
            self.report.system_calls += 3;
            connection.pipe = Pipe::new().ok();
        }
        let Some(pipe) = connection.pipe.take() else {
            // No descriptor is left: the plain way needs none.
            self.note("no pipe could be made for splice: runs went by copy");
            self.send_rest(index);
            return false;
        };
        self.queue_chain(place, index, pipe);
        true
    }

    fn queue_chain(&mut self, place: usize, index: usize, mut pipe: Pipe) {
        let mut message = self.message();
        let (Some(connection), Some(load)) =
            (self.connections.get_mut(place), self.loads.get_mut(index))
        else {
            return self.recycle(message);
        };
        load.write_head(&mut message);
        connection.path = load.path;
        let socket = connection.socket.clone();
        let (steps, whole) = strides(load, &pipe);
        let due = 1 + 2 * steps.len();
        pipe.chain = Chain {
            load: index,
            due,
            ..Chain::default()
        };
        connection.busy = true;
        connection.sending_since = self.now;
        connection.operations += due;
        if !whole {
            self.note("small pipes held splice back, and parts of runs went by copy: raise fs.pipe-user-pages-soft and fs.pipe-max-size");
        }
        let job = |step| Job::Splice { place, step };
        let mode = SendMode {
            zero_copy: false,
            more: true,
        };
        let token = self.token(job(SpliceStep::Head));
        self.ring.link();
        self.ring.send(&socket, message, mode, token);
        let last = steps.len() - 1;
        for (number, (file, offset, bytes)) in steps.into_iter().enumerate() {
            let into = self.token(job(SpliceStep::In));
            self.ring.link();
            self.ring.splice(
                (&file, Some(offset)),
                (&pipe.writing, None),
                bytes,
                false,
                into,
            );
            let out = self.token(job(SpliceStep::Out));
            if number < last {
                self.ring.link();
            }
            self.ring.splice(
                (&pipe.reading, None),
                (&socket, None),
                bytes,
                number < last,
                out,
            );
        }
        if let Some(connection) = self.connections.get_mut(place) {
            connection.pipe = Some(pipe);
        }
    }

    /// One step completed; the last decides.
    pub fn splice_completed(&mut self, place: usize, step: SpliceStep, completion: Completion) {
        if let Some(message) = completion.loan.into_message() {
            self.recycle(message);
        }
        let Outcome::Done(result) = completion.outcome else {
            return;
        };
        let Some(pipe) = self
            .connections
            .get_mut(place)
            .and_then(|connection| connection.pipe.as_mut())
        else {
            return;
        };
        let chain = &mut pipe.chain;
        let count = u64::from(result.unwrap_or(0));
        match step {
            SpliceStep::Head => chain.head += count,
            SpliceStep::In => chain.taken += count,
            SpliceStep::Out => chain.given += count,
        }
        match result {
            // Reading the rest again tells what is wrong with the source.
            Ok(_) | Err(Errno::CANCELED | Errno::AGAIN | Errno::INTR | Errno::INVAL) => {}
            Err(_) if step == SpliceStep::In => {}
            Err(errno) => chain.error = chain.error.or(Some(errno)),
        }
        chain.due -= 1;
        if chain.due == 0 {
            let chain = std::mem::take(chain);
            self.chain_ended(place, chain);
        }
    }

    fn chain_ended(&mut self, place: usize, chain: Chain) {
        let index = chain.load;
        let Some(connection) = self.connections.get_mut(place) else {
            return;
        };
        connection.busy = false;
        if chain.taken != chain.given {
            connection.pipe = None;
        }
        let gone = self
            .loads
            .get(index)
            .is_none_or(|load| load.place.is_none());
        if gone {
            return self.drop_load(index);
        }
        if let Some(errno) = chain.error {
            let error = connection.error(std::io::Error::from(errno));
            return self.close(place, Some(error));
        }
        let Some(load) = self.loads.get_mut(index) else {
            return;
        };
        load.frame_sent += chain.head + chain.given;
        let nanos = self.now.saturating_sub(load.submitted.unwrap_or(self.now));
        self.report.latencies.send.record(nanos, 1);
        connection.timed(nanos);
        if load.frame_sent == load.frame_bytes() {
            self.finish(place, index);
        } else {
            self.send_rest(index);
        }
    }
}
