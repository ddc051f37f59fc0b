//! Chunk checks: 16 bytes that bind payload, place and length.
//!
//! Leaves to others: when to compute and what a mismatch means. Invariant: two
//! chunks of different transfer, segment, plan, position or length never share
//! a seed by construction, so a misplaced chunk fails like a flipped bit.
//!
//! XXH3-128 because one core does 9–11 GB/s from memory where blake3 does 3;
//! it finds damage, not forgery: a keyed kind is the same 16 bytes on the wire.

use super::{ChunkId, SegmentId, TransferId};
use serde::{Deserialize, Serialize};
use twox_hash::{XxHash3_64, XxHash3_128};

/// One chunk's check as it stands in a frame's table.
pub type Check = [u8; 16];

/// What all checks of a segment have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckSeed(u64);

impl CheckSeed {
    /// The seed of a segment; `digest` is the plan's, which both sides confirmed.
    #[must_use]
    pub fn new(transfer: TransferId, segment: SegmentId, digest: &[u8; 16]) -> Self {
        let mut place = [0; 36];
        place[..16].copy_from_slice(&transfer.0);
        place[16..32].copy_from_slice(digest);
        place[32..].copy_from_slice(&segment.to_le_bytes());
        Self(XxHash3_64::oneshot(&place))
    }

    fn of_chunk(self, chunk: ChunkId, bytes: u32) -> u64 {
        let mut place = [0; 20];
        place[..8].copy_from_slice(&self.0.to_le_bytes());
        place[8..16].copy_from_slice(&chunk.to_le_bytes());
        place[16..].copy_from_slice(&bytes.to_le_bytes());
        XxHash3_64::oneshot(&place)
    }

    /// The check of a chunk whose payload lies in one piece.
    #[must_use]
    pub fn check(self, chunk: ChunkId, payload: &[u8]) -> Check {
        // A chunk is at most CHUNK_BYTES_MAX, so its length fits.
        let seed = self.of_chunk(chunk, payload.len() as u32);
        XxHash3_128::oneshot_with_seed(seed, payload).to_le_bytes()
    }

    /// The check of a chunk of `bytes` whose payload comes in pieces, in order.
    #[must_use]
    pub fn check_pieces<'a>(
        self,
        chunk: ChunkId,
        bytes: u32,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Check {
        let mut hasher = XxHash3_128::with_seed(self.of_chunk(chunk, bytes));
        for piece in pieces {
            hasher.write(piece);
        }
        hasher.finish_128().to_le_bytes()
    }
}

/// A sum over a file's pieces that does not depend on the order they come in,
/// for `--verify` and for a source that was touched: each piece's hash is bound to
/// its offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum(u128);

impl FileSum {
    /// Adds the piece at `offset`.
    pub fn add(&mut self, offset: u64, piece: &[u8]) {
        let seed = offset ^ (piece.len() as u64).rotate_left(40);
        self.0 = self
            .0
            .wrapping_add(XxHash3_128::oneshot_with_seed(seed, piece));
    }

    /// Adds what `other` summed.
    pub fn merge(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_length_and_payload_all_count() {
        let seed = CheckSeed::new(TransferId([7; 16]), 1, &[3; 16]);
        let check = seed.check(5, b"payload");
        assert_eq!(check, seed.check_pieces(5, 7, [&b"pay"[..], &b"load"[..]]));
        assert_ne!(check, seed.check(6, b"payload"));
        assert_ne!(check, seed.check(5, b"paylord"));
        assert_ne!(check, seed.check(5, b"payload\0"));
        assert_ne!(
            check,
            CheckSeed::new(TransferId([7; 16]), 2, &[3; 16]).check(5, b"payload")
        );
        assert_ne!(
            check,
            CheckSeed::new(TransferId([8; 16]), 1, &[3; 16]).check(5, b"payload")
        );
        assert_ne!(
            check,
            CheckSeed::new(TransferId([7; 16]), 1, &[4; 16]).check(5, b"payload")
        );
    }

    #[test]
    fn a_file_sum_finds_swapped_pieces_but_not_their_order() {
        let (mut a, mut b, mut swapped) =
            (FileSum::default(), FileSum::default(), FileSum::default());
        a.add(0, b"one");
        a.add(3, b"two");
        b.add(3, b"two");
        b.add(0, b"one");
        swapped.add(0, b"two");
        swapped.add(3, b"one");
        assert_eq!(a, b);
        assert_ne!(a, swapped);
    }
}
