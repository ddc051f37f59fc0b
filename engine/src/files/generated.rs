//! Bytes made on the fly, for measuring without a disk.
//!
//! Leaves to others: when to make them and where they go. Invariant: a byte is
//! a function of seed, pattern and offset alone, so that a chunk made again
//! has the same check.

use crate::options::Pattern;
use crate::protocol::wire::{Data, Entry, EntryKind};
use std::sync::Arc;

/// Random bytes that every page is mixed from: they stay in the second-level
/// cache, so that filling runs at the speed of a copy.
const BLOCK_BYTES: usize = 256 * 1024;
/// Each page has a mix of its own, so that no window of a compressor or a
/// deduplicating disk finds the block again.
const PAGE_BYTES: usize = 4096;
const WORD_BYTES: usize = 8;

/// A source that has no file.
#[derive(Clone, Debug)]
pub struct Generated {
    pattern: Pattern,
    bytes: Option<u64>,
    seed: u64,
    block: Arc<[u64]>,
    /// When it was made: what the target's mtime becomes.
    made: (i64, u32),
}

impl Generated {
    /// `bytes` bytes of `pattern`, or endless ones; equal seeds give equal bytes.
    #[must_use]
    pub fn new(pattern: Pattern, bytes: Option<u64>, seed: u64) -> Self {
        let words = match pattern {
            Pattern::Random => BLOCK_BYTES / WORD_BYTES,
            Pattern::Zero => 0,
        };
        let block = (0..words as u64)
            .map(|word| mix(seed ^ mix(word)))
            .collect();
        Self {
            pattern,
            bytes,
            seed,
            block,
            made: super::now(),
        }
    }

    /// How many there are; `None` is endless.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// As it is offered: a file where the length is known, else a stream.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry {
            name: match self.pattern {
                Pattern::Random => b"random".to_vec(),
                Pattern::Zero => b"zero".to_vec(),
            },
            kind: if self.bytes.is_some() {
                EntryKind::File
            } else {
                EntryKind::Stream
            },
            size: self.bytes.unwrap_or(0),
            mode: 0o644,
            mtime_seconds: self.made.0,
            mtime_nanos: self.made.1,
            data: Data::Everywhere,
            ..Entry::default()
        }
    }

    /// Makes the bytes at `offset`. The end is not looked at.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        match self.pattern {
            Pattern::Zero => buffer.fill(0),
            Pattern::Random => self.fill_random(offset, buffer),
        }
    }

    fn fill_random(&self, offset: u64, buffer: &mut [u8]) {
        let (mut offset, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            // Below PAGE_BYTES.
            let inside = (offset % PAGE_BYTES as u64) as usize;
            let (piece, later) = rest.split_at_mut(rest.len().min(PAGE_BYTES - inside));
            self.fill_page(offset / PAGE_BYTES as u64, inside, piece);
            offset += piece.len() as u64;
            rest = later;
        }
    }

    /// Fills `piece`, which lies `inside` bytes into page number `page`.
    fn fill_page(&self, page: u64, inside: usize, piece: &mut [u8]) {
        let mixed = mix(self
            .seed
            .wrapping_add(page.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let pages = (BLOCK_BYTES / PAGE_BYTES) as u64;
        // The remainder fits: it is below the block's pages.
        let first = (page % pages) as usize * (PAGE_BYTES / WORD_BYTES);
        let words = &self.block[first..first + PAGE_BYTES / WORD_BYTES];
        if inside == 0 && piece.len() == PAGE_BYTES {
            for (bytes, word) in piece.chunks_exact_mut(WORD_BYTES).zip(words) {
                bytes.copy_from_slice(&(word ^ mixed).to_le_bytes());
            }
            return;
        }
        for (at, byte) in piece.iter_mut().enumerate() {
            let at = inside + at;
            *byte = (words[at / WORD_BYTES] ^ mixed).to_le_bytes()[at % WORD_BYTES];
        }
    }
}

/// splitmix64's finisher: every bit of the result depends on every bit of `x`.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_depend_on_their_offset_alone() {
        let source = Generated::new(Pattern::Random, None, 7);
        let mut whole = vec![0; 3 * BLOCK_BYTES / 2];
        source.fill(0, &mut whole);
        for (start, bytes) in [(0, 1), (1, 7), (4095, 2), (4096, 4096), (5000, 300_000)] {
            let mut part = vec![0; bytes];
            source.fill(start as u64, &mut part);
            assert!(part == whole[start..start + bytes], "{start}+{bytes}");
        }
        let mut far = vec![0; 9];
        source.fill(u64::MAX - 20, &mut far);
    }

    #[test]
    fn random_bytes_do_not_repeat_and_zeros_are_zeros() {
        let source = Generated::new(Pattern::Random, None, 7);
        let mut bytes = vec![0; 4 * BLOCK_BYTES];
        source.fill(0, &mut bytes);
        let mut words: Vec<_> = bytes.chunks_exact(8).collect();
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
        let ones: u64 = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
        let half = bytes.len() as u64 * 4;
        assert!(ones.abs_diff(half) < half / 100);
        let mut other = vec![0; 64];
        Generated::new(Pattern::Random, None, 8).fill(0, &mut other);
        assert_ne!(other, bytes[..64]);

        let zeros = Generated::new(Pattern::Zero, Some(10), 7);
        zeros.fill(3, &mut other);
        assert_eq!(other, [0; 64]);
        assert_eq!(zeros.entry().size, 10);
        assert_eq!(zeros.entry().kind, EntryKind::File);
        assert_eq!(source.entry().kind, EntryKind::Stream);
    }
}
