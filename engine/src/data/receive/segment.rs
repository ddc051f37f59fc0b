//! What a worker asks of a segment that is open: its ledger, its targets, the
//! bytes of its chunks.
//!
//! Leaves to others: when to ask. Invariant: the ledger is locked for one
//! question at a time.

use super::frame::Good;
use crate::data::ReceiveSegment;
use crate::error::Error;
use crate::files::target::{Sink, Target};
use crate::protocol::ledger::Ledger;
use crate::protocol::wire::ChunkRange;
use crate::protocol::{ChunkId, FileId};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, MutexGuard, PoisonError};

/// The ledger; a thread that panicked while it held the lock left it whole,
/// because each of its methods changes it in one step.
pub fn ledger(segment: &ReceiveSegment) -> MutexGuard<'_, Ledger> {
    segment
        .ledger
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// As messages say it.
pub fn chunk_range(chunks: &Range<ChunkId>) -> ChunkRange {
    ChunkRange {
        first: chunks.start,
        count: chunks.end - chunks.start,
    }
}

/// The target of a wanted file.
pub fn target(segment: &ReceiveSegment, file: FileId) -> Option<&Arc<Target>> {
    segment.targets.get(file as usize)?.as_ref()
}

/// The descriptor that buffered writes go to.
///
/// # Panics
/// If the sink has none: callers looked.
pub fn descriptor(target: &Target) -> BorrowedFd<'_> {
    match target.sink() {
        Sink::File { fd, .. } | Sink::Stdout(fd) => fd.as_fd(),
        Sink::Null => unreachable!("nothing is written to a null sink"),
    }
}

/// The descriptor that direct writes go to.
pub fn direct_descriptor(target: &Target) -> BorrowedFd<'_> {
    match target.sink() {
        Sink::File {
            direct: Some(fd), ..
        } => fd.as_fd(),
        _ => descriptor(target),
    }
}

/// Payload bytes of `chunks`, a part of `good`.
pub fn payload_bytes(segment: &ReceiveSegment, good: &Good, chunks: Range<ChunkId>) -> usize {
    if chunks == good.chunks {
        return good.bytes.len();
    }
    // At most RUN_CHUNKS_MAX chunks, RUN_BYTES_MAX bytes.
    let count = (chunks.end - chunks.start) as u32;
    let planned = segment.plan.run_bytes(chunks.start, count) as usize;
    planned.min(good.bytes.len())
}

/// Adds each chunk's pieces to their files' sums, as reading back will.
pub fn note_pieces(segment: &ReceiveSegment, chunks: Range<ChunkId>, bytes: &[u8]) {
    let mut start = 0;
    for chunk in chunks {
        let chunk_start = start;
        for piece in segment.plan.pieces(chunk, 1) {
            let from = chunk_start + piece.run_offset as usize;
            let to = (from as u64 + piece.bytes).min(bytes.len() as u64) as usize;
            if let Some(target) = target(segment, piece.file) {
                target.note_piece(piece.file_offset, &bytes[from..to]);
            }
            start = to;
        }
    }
}

/// The sentence for a write that failed; `None`: the system wrote nothing and
/// gave no reason.
pub fn write_failed(target: &Target, errno: Option<Errno>) -> Error {
    let doing = format!("cannot write {}", target.display());
    let Some(errno) = errno else {
        return Error::local(doing, "the system wrote nothing");
    };
    Error::local(doing, errno)
}
