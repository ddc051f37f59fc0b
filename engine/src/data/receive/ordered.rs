//! Sinks that take bytes only in order: standard output.
//!
//! Leaves to others: the window that bounds what is sent ahead. Invariants:
//! bytes leave in the order of their chunks, over all workers, one write at a
//! time; a chunk whose write began is written to its end, whatever becomes of
//! its connection, since what a pipe took cannot be taken back.
//!
//! Verified chunks are copied out of their block: a hole would otherwise hold
//! all blocks that came after it, and its own chunks would find none.

use super::counts::WriteMethod;
use super::frame::Good;
use super::segment::{chunk_range, ledger, note_pieces, target, write_failed};
use super::state::{ReceiveWorker, cannot_receive};
use super::stream::HeldChunks;
use super::token;
use crate::data::ReceiveEvent;
use crate::error::Error;
use crate::kernel::memory::Block;
use crate::kernel::ring::{Owner, Slice};
use crate::limits;
use crate::protocol::{FileId, TransferId};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The position that means "where the descriptor stands".
const CURRENT_POSITION: u64 = u64::MAX;
/// What may be held: the window that the sender was given, and what a run adds
/// to it.
const HELD_BYTES_MAX: u64 = limits::STREAM_WINDOW_BYTES + limits::RUN_BYTES_MAX;

impl ReceiveWorker {
    /// Takes verified chunks out of their block, to be written in their turn.
    pub(super) fn hold(&mut self, slot: usize, stream: usize, block: &Block, good: &[Good]) {
        let Some(number) = self
            .connections
            .get(slot)
            .map(|connection| connection.number)
        else {
            return;
        };
        let Some(ordered) = self.streams.get_mut(stream) else {
            return;
        };
        if ordered.closed {
            // Its reader is gone, which was said.
            let segment = ordered.segment.clone();
            for good in good {
                let _ = ledger(&segment).reject(number, good.chunks.clone());
            }
            return;
        }
        for good in good {
            let bytes = block.as_slice()[good.bytes.clone()].to_vec();
            ordered.held_bytes += bytes.len() as u64;
            ordered.held.insert(
                good.chunks.start,
                HeldChunks {
                    slot,
                    number,
                    chunks: good.chunks.clone(),
                    bytes: Arc::new(bytes),
                    written: 0,
                    submitted: 0,
                },
            );
        }
        if ordered.held_bytes > HELD_BYTES_MAX {
            let why = format!("{} bytes are ahead of their turn", ordered.held_bytes);
            return self.leave(slot, Some(Error::peer(cannot_receive(number), why)));
        }
        self.write_next(stream);
    }

    /// Starts the next write, if it is this worker's turn.
    pub(super) fn write_next(&mut self, stream: usize) {
        let Some(ordered) = self.streams.get_mut(stream) else {
            return;
        };
        if ordered.writing.is_some() || ordered.closed {
            return;
        }
        let turn = ordered.segment.in_order.load(Ordering::Acquire);
        let Some(entry) = ordered.held.first_entry() else {
            return;
        };
        if *entry.key() != turn {
            return;
        }
        let held = entry.remove();
        ordered.held_bytes -= held.bytes.len() as u64;
        if let Some(connection) = self.connections.get_mut(held.slot) {
            connection.landings += 1;
        }
        ordered.writing = Some(held);
        self.queue_ordered(stream);
    }

    fn queue_ordered(&mut self, stream: usize) {
        let Some(ordered) = self.streams.get_mut(stream) else {
            return;
        };
        let Some(held) = &mut ordered.writing else {
            return;
        };
        held.submitted = self.clock.now();
        let slice = Slice::new(
            Owner::Vector(held.bytes.clone()),
            held.written..held.bytes.len(),
        );
        self.ring.write(
            &ordered.sink,
            slice,
            CURRENT_POSITION,
            token::ordered(stream),
        );
    }

    /// A write into the sink completed.
    pub(super) fn wrote_ordered(&mut self, stream: usize, result: Result<u32, Errno>) {
        let Some(ordered) = self.streams.get_mut(stream) else {
            return;
        };
        let Some(held) = &mut ordered.writing else {
            return;
        };
        let nanos = self.clock.now().saturating_sub(held.submitted);
        match result {
            Ok(count) if count > 0 => {
                self.counts.wrote(WriteMethod::Ordered, nanos);
                held.written += count as usize;
                if held.written < held.bytes.len() && !ordered.closed {
                    return self.queue_ordered(stream);
                }
            }
            Err(Errno::INTR) if !ordered.closed => return self.queue_ordered(stream),
            Err(Errno::AGAIN) if !ordered.closed => {
                // A non-blocking descriptor that others share: its flags are
                // theirs, so it is tried again a little later.
                return self.retries.push(stream);
            }
            failed => {
                let errno = failed.err();
                return self.ordered_failed(stream, errno);
            }
        }
        self.ordered_landed(stream);
    }

    /// Tries again what a non-blocking sink refused.
    pub(super) fn retry_ordered(&mut self) {
        for stream in std::mem::take(&mut self.retries) {
            let closed = self.streams.get(stream).is_none_or(|stream| stream.closed);
            if closed {
                self.ordered_failed(stream, None);
            } else {
                self.queue_ordered(stream);
            }
        }
    }

    fn ordered_landed(&mut self, stream: usize) {
        let Some(ordered) = self.streams.get_mut(stream) else {
            return;
        };
        let Some(held) = ordered.writing.take() else {
            return;
        };
        let (segment, closed) = (ordered.segment.clone(), ordered.closed);
        let landed = held.written == held.bytes.len()
            && ledger(&segment).land(held.number, held.chunks.clone());
        if landed {
            if segment.keeps_sums {
                note_pieces(&segment, held.chunks.clone(), &held.bytes);
            }
            segment.in_order.store(held.chunks.end, Ordering::Release);
        }
        if landed && !closed {
            self.tell(ReceiveEvent::Landed {
                transfer: segment.transfer,
                segment: segment.segment,
                connection: held.number,
                chunks: chunk_range(&held.chunks),
                bytes: held.bytes.len() as u64,
            });
        }
        self.ordered_reaped(stream, held.slot, segment.transfer, closed);
    }

    /// The sink takes no more: its files fail, what is held is let go.
    fn ordered_failed(&mut self, stream: usize, errno: Option<Errno>) {
        let Some(ordered) = self.streams.get_mut(stream) else {
            return;
        };
        let Some(held) = ordered.writing.take() else {
            return;
        };
        let (segment, closed) = (ordered.segment.clone(), ordered.closed);
        ordered.clear();
        let _ = ledger(&segment).reject(held.number, held.chunks.clone());
        if !closed {
            // Nothing behind it can be written either.
            ordered.closed = true;
            for (file, of) in segment.targets.iter().enumerate() {
                if of.is_some() {
                    let file = file as FileId;
                    let Some(of) = target(&segment, file) else {
                        continue;
                    };
                    let mut error = write_failed(of, errno);
                    if errno == Some(Errno::PIPE) {
                        error = error.cure("let its reader read to the end");
                    }
                    self.fail(&segment, file, error);
                }
            }
        }
        self.ordered_reaped(stream, held.slot, segment.transfer, closed);
    }

    fn ordered_reaped(&mut self, stream: usize, slot: usize, transfer: TransferId, closed: bool) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.landings = connection.landings.saturating_sub(1);
        }
        if closed {
            self.streams.remove(stream);
            self.answer_forget(transfer);
        } else {
            self.write_next(stream);
        }
        self.go_if_idle(slot);
    }

    /// Nothing more is wanted of the stream: what is in flight is cancelled.
    pub(super) fn close_ordered(&mut self, stream: usize) {
        let Some(ordered) = self.streams.get_mut(stream) else {
            return;
        };
        ordered.clear();
        ordered.closed = true;
        if ordered.is_writing() {
            // A reader that never reads must not keep the transfer alive.
            self.ring.cancel(token::ordered(stream));
        } else {
            self.streams.remove(stream);
        }
    }
}
