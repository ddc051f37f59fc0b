//! One data frame on its way in: what its header means for the plan, and what
//! its payload fills.
//!
//! Leaves to others: receiving, admission and writing. Invariant: a filling
//! holds whole chunks, in order and back to back, and a chunk is checked when
//! its last byte is there and never again.

use crate::data::ReceiveSegment;
use crate::kernel::fault::watched;
use crate::kernel::huge::HugeWindow;
use crate::kernel::memory::Block;
use crate::limits;
use crate::protocol::check::Check;
use crate::protocol::frame::FrameHeader;
use crate::protocol::{ChunkId, FileId, SegmentId, TransferId, Violation};
use std::ops::Range;
use std::sync::Arc;

/// What becomes of a frame's payload.
pub enum Purpose {
    /// Granted: verify and write it.
    Land(Arc<ReceiveSegment>),
    /// Landed or granted elsewhere: read it, forget it and say so.
    Drain,
    /// Nobody wants to hear of it: read it and forget it.
    Forget,
}

/// A frame whose header and table were read.
pub struct Frame {
    /// The transfer.
    pub transfer: TransferId,
    /// The segment.
    pub segment: SegmentId,
    /// What becomes of it.
    pub purpose: Purpose,
    /// All of its chunks.
    pub chunks: Range<ChunkId>,
    /// One for each chunk.
    checks: Vec<Check>,
    /// The first chunk that is not in a block yet.
    next: ChunkId,
    /// Payload bytes that are not in a block yet.
    left: u64,
}

/// Where in a window a filling lies.
#[derive(Clone)]
pub struct Spot {
    /// The window.
    pub window: Arc<HugeWindow>,
    /// Where in the window its first byte goes.
    pub start: usize,
    /// The file, which is the only one in it.
    pub file: FileId,
}

/// Where a filling's payload comes.
pub enum Room {
    /// Into a block, which is lent to the ring.
    Lent,
    /// Into this block, to be written to its files.
    Block(Arc<Block>),
    /// Into its file.
    InPlace(Spot),
}

/// Whole chunks of a frame while they come in.
pub struct Filling {
    /// Where to.
    pub room: Room,
    /// The chunks that it holds; empty when the payload is only drained.
    pub chunks: Range<ChunkId>,
    /// Payload bytes that belong into it.
    pub bytes: usize,
    /// Payload bytes that came.
    pub filled: usize,
    /// True once it was received into: what is missing had not come by then.
    pub came_short: bool,
    /// The chunk to be checked next, and where it starts in the block.
    next: (ChunkId, usize),
    /// Chunks whose check failed, ascending.
    pub damaged: Vec<ChunkId>,
    /// The file that it lies in was cut off meanwhile: nothing of it counts.
    pub cut_off: bool,
}

/// Chunks of a filling that were found good, and where they lie in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Good {
    /// Neighbouring chunks.
    pub chunks: Range<ChunkId>,
    /// Their bytes in the filling.
    pub bytes: Range<usize>,
}

/// Refuses a header that does not fit the segment's plan.
///
/// # Errors
/// Chunks outside the plan, or a payload of another length than it says.
pub fn check_header(segment: &ReceiveSegment, header: &FrameHeader) -> Result<(), Violation> {
    let plan = &segment.plan;
    let (first, count) = (header.first, header.count);
    if !plan.contains(first, u64::from(count)) {
        return Err(Violation::new(
            "chunks of the plan",
            format!("{count} chunks from {first}"),
        ));
    }
    if plan.is_stream() {
        // All chunks are full but the last, which holds at least one byte.
        let most = u64::from(count) * u64::from(plan.chunk_bytes());
        let least = most - u64::from(plan.chunk_bytes()) + 1;
        if !(least..=most).contains(&header.payload_bytes) {
            return Err(Violation::new(
                format!("{least} to {most} payload bytes"),
                format!("{}", header.payload_bytes),
            ));
        }
        return Ok(());
    }
    let planned = plan.run_bytes(first, count);
    if planned != header.payload_bytes {
        return Err(Violation::new(
            format!("{planned} payload bytes"),
            format!("{}", header.payload_bytes),
        ));
    }
    Ok(())
}

/// The size of the blocks that a transfer's payload is received into.
pub fn block_bytes(chunk_bytes: u32) -> usize {
    limits::BLOCK_BYTES.max(chunk_bytes as usize)
}

impl Frame {
    /// A frame by its header, which was checked, and its table.
    pub fn new(header: &FrameHeader, checks: Vec<Check>, purpose: Purpose) -> Self {
        Self {
            transfer: header.transfer,
            segment: header.segment,
            purpose,
            chunks: header.first..header.first + u64::from(header.count),
            checks,
            next: header.first,
            left: header.payload_bytes,
        }
    }

    /// True when all payload is in blocks.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// The size of the block that the payload needs next.
    pub fn block_bytes(&self) -> usize {
        match &self.purpose {
            Purpose::Land(segment) => block_bytes(segment.plan.chunk_bytes()),
            Purpose::Drain | Purpose::Forget => limits::BLOCK_BYTES,
        }
    }

    /// Starts filling `block` with the next of the payload.
    pub fn fill(&mut self, block: Arc<Block>) -> Filling {
        let room = block.len();
        let (chunks, bytes) = match &self.purpose {
            Purpose::Land(segment) => self.fitting(segment, room),
            Purpose::Drain | Purpose::Forget => (
                self.next..self.next,
                usize::try_from(self.left).map_or(room, |left| left.min(room)),
            ),
        };
        self.filling(Room::Block(block), chunks, bytes)
    }

    /// Starts filling a part of a file with the next of the payload, which
    /// [`Frame::fitting`] said.
    pub fn fill_in_place(&mut self, spot: Spot, chunks: Range<ChunkId>, bytes: usize) -> Filling {
        self.filling(Room::InPlace(spot), chunks, bytes)
    }

    fn filling(&mut self, room: Room, chunks: Range<ChunkId>, bytes: usize) -> Filling {
        self.next = chunks.end;
        self.left -= bytes as u64;
        Filling {
            next: (chunks.start, 0),
            room,
            chunks,
            bytes,
            filled: 0,
            came_short: false,
            damaged: Vec::new(),
            cut_off: false,
        }
    }

    /// The segment, where the frame was granted.
    pub fn landing(&self) -> Option<&Arc<ReceiveSegment>> {
        match &self.purpose {
            Purpose::Land(segment) => Some(segment),
            Purpose::Drain | Purpose::Forget => None,
        }
    }

    /// Nobody wants the rest any more, nor `bytes` that were to fill something.
    pub fn forget(&mut self, bytes: usize) {
        self.left += bytes as u64;
        self.purpose = Purpose::Forget;
    }

    /// The next chunks that fit together into `room` bytes, and their bytes.
    pub fn fitting(&self, segment: &ReceiveSegment, room: usize) -> (Range<ChunkId>, usize) {
        let (mut end, mut bytes) = (self.next, 0);
        while end < self.chunks.end {
            let chunk = chunk_bytes(segment, &self.chunks, end, self.left - bytes as u64);
            if bytes + chunk > room {
                break;
            }
            bytes += chunk;
            end += 1;
        }
        (self.next..end, bytes)
    }

    fn expected(&self, chunk: ChunkId) -> &Check {
        // The table has one for each chunk, at most RUN_CHUNKS_MAX.
        &self.checks[(chunk - self.chunks.start) as usize]
    }

    /// Gives the table's memory back.
    pub fn into_checks(self) -> Vec<Check> {
        self.checks
    }
}

/// Payload bytes of `chunk`; of a stream's last one, what is `left`.
fn chunk_bytes(segment: &ReceiveSegment, run: &Range<ChunkId>, chunk: ChunkId, left: u64) -> usize {
    let plan = &segment.plan;
    if plan.is_stream() && chunk + 1 == run.end {
        // At most a chunk: the header was checked.
        return left as usize;
    }
    plan.chunk_len(chunk) as usize
}

impl Filling {
    /// Copies `bytes` behind what came. False while the room is lent.
    pub fn copy_in(&mut self, bytes: &[u8]) -> bool {
        match &mut self.room {
            Room::Lent => return false,
            Room::Block(block) => {
                let block = Arc::get_mut(block).expect("a filling block has one holder");
                block.as_mut_slice()[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
            }
            Room::InPlace(spot) => {
                let at = spot.start + self.filled;
                let copied = watched(|watch| spot.window.fill(at, bytes, watch));
                self.cut_off |= !matches!(copied, Some(((), false)));
            }
        }
        true
    }

    /// `bytes` more came: checks the chunks that are whole now, while they are
    /// in the cache.
    pub fn advance(&mut self, frame: &Frame, bytes: usize) {
        self.filled += bytes;
        let Purpose::Land(segment) = &frame.purpose else {
            return;
        };
        while self.next.0 < self.chunks.end {
            let (chunk, start) = self.next;
            let left = (self.bytes - start) as u64 + frame.left;
            let end = start + chunk_bytes(segment, &frame.chunks, chunk, left);
            if end > self.filled {
                return;
            }
            let check = match &self.room {
                Room::Lent => return,
                Room::Block(block) => segment.seed.check(chunk, &block.as_slice()[start..end]),
                Room::InPlace(spot) => {
                    let range = spot.start + start..spot.start + end;
                    let looked = watched(|watch| {
                        let bytes = spot.window.bytes(&range, watch);
                        segment.seed.check(chunk, bytes)
                    });
                    let Some((check, false)) = looked else {
                        self.cut_off = true;
                        return;
                    };
                    check
                }
            };
            if check != *frame.expected(chunk) {
                self.damaged.push(chunk);
            }
            self.next = (chunk + 1, end);
        }
    }

    /// True when all that belongs into it is there.
    pub fn is_full(&self) -> bool {
        self.filled == self.bytes
    }

    /// The neighbouring chunks that are good, in order.
    pub fn good(&self, segment: &ReceiveSegment) -> Vec<Good> {
        if self.damaged.is_empty() {
            return vec![Good {
                chunks: self.chunks.clone(),
                bytes: 0..self.bytes,
            }];
        }
        let mut all: Vec<Good> = Vec::new();
        let mut start = 0;
        for chunk in self.chunks.clone() {
            let bytes = chunk_bytes(segment, &self.chunks, chunk, (self.bytes - start) as u64);
            let end = start + bytes;
            if self.damaged.binary_search(&chunk).is_err() {
                match all.last_mut() {
                    Some(last) if last.chunks.end == chunk => {
                        last.chunks.end = chunk + 1;
                        last.bytes.end = end;
                    }
                    _ => all.push(Good {
                        chunks: chunk..chunk + 1,
                        bytes: start..end,
                    }),
                }
            }
            start = end;
        }
        all
    }
}
