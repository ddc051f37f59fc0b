//! From a full block to landed chunks: the writes, and what becomes of them;
//! and what was received into its file, which needs none.
//!
//! Leaves to others: receiving and checking. Invariants: of a block only
//! chunks whose check held are written, and of a file's own bytes only those
//! count; a chunk lands when all writes of its block were reaped and the part of
//! it that belongs to files that still count was written; a grant is given back
//! without landing only when nothing of the block is in flight.

use super::block::{Landing, Write};
use super::counts::WriteMethod;
use super::frame::{Filling, Good, Room};
use super::segment::{
    chunk_range, descriptor, direct_descriptor, ledger, note_pieces, payload_bytes, target,
    write_failed,
};
use super::state::{RING_ROOM_MIN, ReceiveWorker};
use super::token;
use crate::data::{ReceiveEvent, ReceiveSegment};
use crate::error::Error;
use crate::files::DIRECT_ALIGN_BYTES;
use crate::files::target::{Sink, Target};
use crate::kernel::memory::Block;
use crate::kernel::ring::{Handle, Owner, Slice};
use crate::limits::DIRECT_BYTES_AHEAD_MAX;
use crate::protocol::{ChunkId, ConnectionId, FileId};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;

/// A piece below this is written in this thread: handing it to a kernel
/// worker would cost more than the copy into the page cache.
const RING_WRITE_BYTES_MIN: usize = 64 * 1024;
/// Chunks that came in: on which connection, for what, and in which block,
/// where they were not received into their file.
type Came<'a> = (ConnectionId, &'a Arc<ReceiveSegment>, Option<&'a Block>);

impl ReceiveWorker {
    /// All that belongs into the connection's filling is there: reject what is
    /// damaged, write the rest where it came into a block.
    pub(super) fn land(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let Some(mut filling) = connection.filling.take() else {
            return;
        };
        connection.bytes += filling.bytes as u64;
        let frame = connection.frame.as_ref();
        let segment = frame.and_then(|frame| frame.landing().cloned());
        let number = connection.number;
        let block = match (std::mem::replace(&mut filling.room, Room::Lent), &segment) {
            (Room::Block(block), Some(_)) => block,
            (Room::Block(block), None) => return self.pool.give(block),
            (Room::InPlace(_), Some(segment)) => {
                let segment = segment.clone();
                return self.land_in_place(number, &segment, &filling);
            }
            (Room::InPlace(_) | Room::Lent, _) => return,
        };
        let Some(segment) = segment else { return };
        self.reject_damaged(number, &segment, &filling);
        let good = filling.good(&segment);
        if self.is_over(&segment) {
            let mut ledger = ledger(&segment);
            for good in &good {
                let _ = ledger.reject(number, good.chunks.clone());
            }
            drop(ledger);
            return self.pool.give(block);
        }
        if let Some(stream) = self.ordered_of(&segment) {
            self.hold(slot, stream, &block, &good);
            return self.pool.give(block);
        }
        connection_landings(self, slot, 1);
        let landing = self.landings.insert(Landing {
            slot,
            number,
            segment: segment.clone(),
            block,
            good: good.clone(),
            outstanding: 1,
            direct: false,
        });
        for good in &good {
            self.write_pieces(landing, &segment, good);
        }
        self.write_ended(landing);
    }

    /// The filling's bytes are in their file already.
    fn land_in_place(
        &mut self,
        number: ConnectionId,
        segment: &Arc<ReceiveSegment>,
        filling: &Filling,
    ) {
        self.counts.used(WriteMethod::InPlace);
        self.reject_damaged(number, segment, filling);
        let over = self.is_over(segment);
        for good in &filling.good(segment) {
            self.settle_chunks((number, segment, None), good, over);
        }
    }

    /// The file that the connection receives into was cut off under it. The
    /// file fails; the connection ends, so that the other files' chunks of its
    /// frame are sent again.
    pub(super) fn fail_cut_off(&mut self, slot: usize) {
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        let (Some(filling), Some(frame)) = (&connection.filling, &connection.frame) else {
            return;
        };
        let (Room::InPlace(spot), Some(segment)) = (&filling.room, frame.landing().cloned()) else {
            return;
        };
        let file = spot.file;
        let Some(target) = target(&segment, file) else {
            return;
        };
        let doing = format!("cannot write {}", target.display());
        let error = Error::local(doing, "its temporary file was cut off by somebody else");
        self.fail(&segment, file, error.clone());
        self.leave(slot, Some(error));
    }

    fn reject_damaged(
        &mut self,
        number: ConnectionId,
        segment: &Arc<ReceiveSegment>,
        filling: &Filling,
    ) {
        for &chunk in &filling.damaged {
            // It was not written, or received into its file and that is over:
            // nothing of it is outstanding.
            let _ = ledger(segment).reject(number, chunk..chunk + 1);
            if self.counts(segment, chunk) && !self.is_over(segment) {
                self.tell(ReceiveEvent::Damaged {
                    transfer: segment.transfer,
                    segment: segment.segment,
                    chunk,
                });
            }
        }
    }

    /// True when some file with bytes in `chunk` has not failed.
    fn counts(&self, segment: &ReceiveSegment, chunk: ChunkId) -> bool {
        segment
            .plan
            .files_of(chunk..chunk + 1)
            .any(|file| self.is_wanted(segment, file))
    }

    fn write_pieces(&mut self, landing: usize, segment: &Arc<ReceiveSegment>, good: &Good) {
        // A block holds at most RUN_CHUNKS_MAX chunks.
        let count = (good.chunks.end - good.chunks.start) as u32;
        for piece in segment.plan.pieces(good.chunks.start, count) {
            let from = good.bytes.start + piece.run_offset as usize;
            // A stream's last chunk is shorter than the plan says.
            let to = (from as u64 + piece.bytes).min(good.bytes.end as u64) as usize;
            self.write_piece(landing, segment, piece.file, piece.file_offset, from..to);
        }
    }

    /// Writes `range` of the landing's block at `offset` of `file`, by
    /// whichever call suits both.
    fn write_piece(
        &mut self,
        landing: usize,
        segment: &Arc<ReceiveSegment>,
        file: FileId,
        offset: u64,
        mut range: Range<usize>,
    ) {
        if range.is_empty() || !self.is_wanted(segment, file) {
            return;
        }
        let Some(target) = target(segment, file) else {
            return;
        };
        let Sink::File { direct, .. } = target.sink() else {
            return self.counts.used(WriteMethod::Null);
        };
        let mut offset = offset;
        if direct.is_some()
            && !self.direct_refused
            && goes_direct(target.must_reach_disk(), self.direct_bytes)
            && self.ring.room() > RING_ROOM_MIN
            && is_aligned(offset, range.start)
        {
            // The page of the unaligned tail goes through the page cache; no
            // direct write touches that page.
            let bytes = range.len() / DIRECT_ALIGN_BYTES * DIRECT_ALIGN_BYTES;
            if bytes > 0 {
                let handle = Handle::of(target, direct_descriptor);
                let part = range.start..range.start + bytes;
                self.queue_write(landing, &handle, file, offset, part, true);
                range.start += bytes;
                offset += bytes as u64;
            }
        }
        if range.is_empty() {
            return;
        }
        let by_ring = range.len() >= RING_WRITE_BYTES_MIN && self.ring.room() > RING_ROOM_MIN;
        if by_ring {
            let handle = Handle::of(target, descriptor);
            self.queue_write(landing, &handle, file, offset, range, false);
        } else {
            self.write_here(landing, target, file, offset, range);
        }
    }

    fn queue_write(
        &mut self,
        landing: usize,
        handle: &Handle,
        file: FileId,
        offset: u64,
        range: Range<usize>,
        direct: bool,
    ) {
        let Some(of) = self.landings.get_mut(landing) else {
            return;
        };
        of.outstanding += 1;
        if direct && !of.direct {
            of.direct = true;
            self.direct_bytes += of.block.len();
        }
        let slice = Slice::new(Owner::Block(of.block.clone()), range.clone());
        let write = self.writes.insert(Write {
            landing,
            file,
            offset,
            range,
            submitted: self.clock.now(),
            direct,
        });
        self.ring.write(handle, slice, offset, token::write(write));
    }

    fn write_here(
        &mut self,
        landing: usize,
        target: &Target,
        file: FileId,
        offset: u64,
        range: Range<usize>,
    ) {
        let Sink::File { fd, .. } = target.sink() else {
            return;
        };
        let Some(of) = self.landings.get(landing) else {
            return;
        };
        let (segment, block) = (of.segment.clone(), of.block.clone());
        let (mut offset, mut bytes) = (offset, &block.as_slice()[range]);
        while !bytes.is_empty() {
            let started = self.clock.now();
            self.counts.system_calls += 1;
            match rustix::io::pwrite(fd, bytes, offset) {
                Ok(0) => return self.fail(&segment, file, write_failed(target, None)),
                Ok(count) => {
                    self.counts
                        .wrote(WriteMethod::Here, self.clock.now().saturating_sub(started));
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return self.fail(&segment, file, write_failed(target, Some(errno))),
            }
        }
    }

    /// A queued write completed.
    pub(super) fn wrote(&mut self, number: usize, result: Result<u32, Errno>) {
        let Some(write) = self.writes.remove(number) else {
            return;
        };
        let Some(landing) = self.landings.get(write.landing) else {
            return;
        };
        let segment = landing.segment.clone();
        let rest = match result {
            Ok(count) if count > 0 => {
                let nanos = self.clock.now().saturating_sub(write.submitted);
                let method = if write.direct {
                    WriteMethod::Direct
                } else {
                    WriteMethod::Ring
                };
                self.counts.wrote(method, nanos);
                write.range.start + count as usize..write.range.end
            }
            Err(Errno::INTR | Errno::AGAIN) => write.range.clone(),
            Err(Errno::INVAL | Errno::OPNOTSUPP) if write.direct => {
                self.direct_refused = true;
                self.counts.note(
                    "direct writes were refused by the file system, so the page cache was used"
                        .to_owned(),
                );
                write.range.clone()
            }
            failed => {
                let errno = failed.err();
                if let Some(target) = target(&segment, write.file) {
                    self.fail(&segment, write.file, write_failed(target, errno));
                }
                write.range.end..write.range.end
            }
        };
        // A short write goes on where it ended.
        let offset = write.offset + (rest.start - write.range.start) as u64;
        self.write_piece(write.landing, &segment, write.file, offset, rest);
        self.write_ended(write.landing);
    }

    /// One thing less is outstanding; the last one lands the block.
    fn write_ended(&mut self, landing: usize) {
        let Some(of) = self.landings.get_mut(landing) else {
            return;
        };
        of.outstanding -= 1;
        if of.outstanding > 0 {
            return;
        }
        let Some(of) = self.landings.remove(landing) else {
            return;
        };
        if of.direct {
            self.direct_bytes -= of.block.len();
        }
        let over = self.is_over(&of.segment);
        for good in &of.good {
            self.settle_chunks((of.number, &of.segment, Some(&of.block)), good, over);
        }
        let (slot, transfer) = (of.slot, of.segment.transfer);
        self.pool.give(of.block);
        connection_landings(self, slot, -1);
        if over {
            self.answer_forget(transfer);
        }
        self.go_if_idle(slot);
    }

    /// Lands the chunks that count and gives back the grants of the others.
    fn settle_chunks(&mut self, came: Came<'_>, good: &Good, over: bool) {
        let (number, segment, _) = came;
        let failed = |worker: &Self, chunk: ChunkId| !worker.counts(segment, chunk);
        let mut start = good.chunks.start;
        while start < good.chunks.end {
            let lost = !self.failed.is_empty() && failed(self, start);
            let mut end = if self.failed.is_empty() {
                good.chunks.end
            } else {
                start + 1
            };
            while end < good.chunks.end && failed(self, end) == lost {
                end += 1;
            }
            if lost {
                let _ = ledger(segment).reject(number, start..end);
            } else {
                self.land_chunks(came, good, start..end, over);
            }
            start = end;
        }
    }

    fn land_chunks(&mut self, came: Came<'_>, good: &Good, chunks: Range<ChunkId>, over: bool) {
        let (number, segment, block) = came;
        let ahead = payload_bytes(segment, good, good.chunks.start..chunks.start);
        let bytes = payload_bytes(segment, good, chunks.clone());
        if segment.keeps_sums
            && let Some(block) = block
        {
            // Before the event, which may be followed by the verification.
            let from = good.bytes.start + ahead;
            let bytes = &block.as_slice()[from..from + bytes];
            note_pieces(segment, chunks.clone(), bytes);
        }
        let landed = ledger(segment).land(number, chunks.clone());
        debug_assert!(landed, "a grant lasts until its block is reaped");
        if landed && !over {
            self.tell(ReceiveEvent::Landed {
                transfer: segment.transfer,
                segment: segment.segment,
                connection: number,
                chunks: chunk_range(&chunks),
                bytes: bytes as u64,
            });
        }
    }
}

/// Counts the connection's blocks that are being written.
fn connection_landings(worker: &mut ReceiveWorker, slot: usize, change: i32) {
    if let Some(connection) = worker.connections.get_mut(slot) {
        connection.landings = connection.landings.saturating_add_signed(change);
    }
}

/// Whether an aligned piece goes past the page cache: one that has to be on its
/// disk always does, another only while the disk keeps up.
pub fn goes_direct(must_reach_disk: bool, direct_bytes: usize) -> bool {
    must_reach_disk || direct_bytes < DIRECT_BYTES_AHEAD_MAX
}

fn is_aligned(offset: u64, start: usize) -> bool {
    offset.is_multiple_of(DIRECT_ALIGN_BYTES as u64) && start.is_multiple_of(DIRECT_ALIGN_BYTES)
}
