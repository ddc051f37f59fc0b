//! How a run's payload is laid into blocks: one part for each read.
//!
//! Leaves to others: taking the blocks and reading. Invariant: parts lie in
//! the payload's order and inside one block each; a part that is read past the
//! page cache begins on a page, and nothing lies on the page that it ends on.

use super::pool::BLOCK_BYTES;
use crate::files::DIRECT_ALIGN_BYTES;
use crate::files::stream::StreamSource;
use crate::kernel::memory::Block;
use crate::kernel::ring::{Owner, Slice};
use crate::protocol::FileId;
use crate::protocol::plan::Piece;
use std::sync::Arc;

/// Pieces below this are cheaper read through the page cache.
const DIRECT_PIECE_BYTES_MIN: u64 = 64 * 1024;

/// A stretch of a run's payload that is read by one operation.
pub struct Part {
    /// Whose bytes.
    pub file: FileId,
    /// Where in the file.
    pub file_offset: u64,
    /// Where in the payload.
    pub run_offset: u64,
    /// How long.
    pub bytes: usize,
    /// How much of it is there.
    pub filled: usize,
    /// Read past the page cache.
    pub direct: bool,
    /// Which of the load's blocks it is laid in, and where; then where in the
    /// block (or its cut part) that it holds.
    pub laid: Option<(usize, usize)>,
    /// Where in its block it begins.
    pub start: usize,
    /// `None` while it is lent, or kept elsewhere.
    pub block: Option<Arc<Block>>,
    /// Bytes that are kept by their source.
    pub kept: Option<Slice>,
}

impl Part {
    /// What is read next: where in the block, where in the file.
    pub fn missing(&self) -> (std::ops::Range<usize>, u64) {
        let start = self.start + self.filled;
        let mut end = self.start + self.bytes;
        if self.direct {
            // Blocks are whole pages, so the rounding stays inside.
            end = end.next_multiple_of(DIRECT_ALIGN_BYTES);
        }
        (start..end, self.file_offset + self.filled as u64)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match (&self.kept, &self.block) {
            (Some(kept), _) => kept.as_bytes().unwrap_or(&[]),
            (None, Some(block)) => &block.as_slice()[self.start..self.start + self.bytes],
            // All reads are back when bytes are looked at.
            (None, None) => &[],
        }
    }
}

/// True when a piece can be read past the page cache.
pub fn is_direct(piece: &Piece) -> bool {
    piece.file_offset.is_multiple_of(DIRECT_ALIGN_BYTES as u64)
        && piece.bytes >= DIRECT_PIECE_BYTES_MIN
}

/// A stream's kept chunks as parts.
pub fn kept_parts(stream: &StreamSource, piece: Piece, chunk_bytes: u64) -> Vec<Part> {
    let end = piece.file_offset + piece.bytes;
    let mut parts = Vec::new();
    let mut next = piece.file_offset;
    while next < end {
        let chunk = next / chunk_bytes;
        let stop = end.min((chunk + 1) * chunk_bytes);
        // Inside a chunk, which is at most CHUNK_BYTES_MAX.
        let (start, bytes) = (
            (next - chunk * chunk_bytes) as usize,
            (stop - next) as usize,
        );
        let kept = stream.chunk(chunk).map(Arc::<Vec<u8>>::from);
        let kept = kept
            .filter(|kept| kept.len() >= start + bytes)
            .map(|kept| Slice::new(Owner::Vector(kept), start..start + bytes));
        parts.push(Part {
            file: piece.file,
            file_offset: next,
            run_offset: piece.run_offset + (next - piece.file_offset),
            bytes,
            filled: if kept.is_some() { bytes } else { 0 },
            direct: false,
            laid: None,
            start: 0,
            block: None,
            kept,
        });
        next = stop;
    }
    parts
}

/// Where the next part is laid.
#[derive(Default)]
pub struct Cursor {
    block: usize,
    at: usize,
}

impl Cursor {
    /// Blocks begun so far.
    pub fn blocks(&self) -> usize {
        self.block + usize::from(self.at > 0)
    }

    /// Lays a piece behind what was laid.
    pub fn lay(&mut self, piece: Piece, direct: bool, parts: &mut Vec<Part>) {
        if direct {
            self.at = self.at.next_multiple_of(DIRECT_ALIGN_BYTES);
        }
        let mut done = 0;
        while done < piece.bytes {
            if self.at == BLOCK_BYTES {
                self.block += 1;
                self.at = 0;
            }
            let left = usize::try_from(piece.bytes - done).unwrap_or(usize::MAX);
            let bytes = left.min(BLOCK_BYTES - self.at);
            parts.push(Part {
                file: piece.file,
                file_offset: piece.file_offset + done,
                run_offset: piece.run_offset + done,
                bytes,
                filled: 0,
                direct,
                laid: Some((self.block, self.at)),
                start: 0,
                block: None,
                kept: None,
            });
            self.at += bytes;
            done += bytes as u64;
        }
        if direct {
            // The read of its end is rounded up, and nothing may lie there.
            self.at = self.at.next_multiple_of(DIRECT_ALIGN_BYTES);
        }
    }
}
