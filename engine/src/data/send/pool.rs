//! The sending worker's read buffers: a fixed number of blocks.
//!
//! Leaves to others: what is read into them. Invariant: a block is either here
//! or in exactly one load, and a block that was cut comes back only whole.

use crate::kernel::memory::{Arena, Block};
use crate::kernel::page::PAGE_BYTES;
use crate::kernel::ring::{Owner, Slice};
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of one block. One read fills one block, and one default chunk fills
/// one: 256 KiB × 32 in flight read a cold disk at 1.5 times the best `dd`,
/// 2 MiB × 8 at 1.57 (4 GiB of ext4, O_DIRECT, huge pages), and the smaller
/// block wastes less on short runs.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// Blocks of one worker: 34 MiB, a full run on each of the default connections;
/// warm files need none.
pub const BLOCKS: usize = 136;
/// Blocks that one run takes, at most: pieces of its own of 64 KiB and more may
/// begin and end a page each.
pub const RUN_BLOCKS_MAX: usize = crate::limits::RUN_BYTES_MAX as usize / BLOCK_BYTES * 5 / 4;

const _: () = {
    assert!(BLOCK_BYTES.is_multiple_of(PAGE_BYTES));
    // The only connection reads as far ahead as it is handed runs, and leaves
    // what the next in turn may want.
    assert!(
        crate::limits::RUNS_AHEAD_MAX * crate::limits::RUN_BYTES_MAX as usize / BLOCK_BYTES
            + RUN_BLOCKS_MAX
            <= BLOCKS
    );
};

/// The free blocks.
pub struct SendPool {
    free: Vec<Arc<Block>>,
    /// Parts of blocks that were cut, by the block's position.
    parts: HashMap<usize, Vec<Arc<Block>>>,
}

impl SendPool {
    /// Maps the blocks; huge pages, because direct reads into them took 0.6 of
    /// the time.
    ///
    /// # Errors
    /// The errno of mmap(2).
    pub fn new() -> Result<(Arena, Self), Errno> {
        let (arena, mut free) = Arena::new(BLOCK_BYTES, BLOCKS, true)?;
        // The block given back last is taken first (its bytes are in the
        // cache), so the arena's end stays untouched while little is needed.
        free.reverse();
        Ok((
            arena,
            Self {
                free,
                parts: HashMap::new(),
            },
        ))
    }

    /// How many can be taken.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Takes one.
    pub fn take(&mut self) -> Option<Arc<Block>> {
        self.free.pop()
    }

    /// Gives the blocks among `slices` back.
    pub fn put_all(&mut self, slices: impl IntoIterator<Item = Slice>) {
        for slice in slices {
            if let Owner::Block(block) = slice.into_owner() {
                self.put(block);
            }
        }
    }

    /// Gives a block, or a part of one, back.
    pub fn put(&mut self, block: Arc<Block>) {
        if block.len() == BLOCK_BYTES {
            self.free.push(block);
            return;
        }
        assert!(
            block.len() < BLOCK_BYTES,
            "only parts of one block are joined"
        );
        let whole = block.position() / BLOCK_BYTES;
        let parts = self.parts.entry(whole).or_default();
        parts.push(block);
        if parts.iter().map(|part| part.len()).sum::<usize>() < BLOCK_BYTES {
            return;
        }
        let mut parts = self.parts.remove(&whole).unwrap_or_default();
        parts.sort_unstable_by_key(|part| part.position());
        self.free.extend(parts.into_iter().reduce(Block::join));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_block_comes_back_whole() {
        let (_arena, mut pool) = SendPool::new().expect("mapped");
        assert_eq!(pool.len(), BLOCKS);
        let (first, rest) = Block::split(pool.take().expect("free"), 10);
        let (second, third) = Block::split(rest, 20);
        pool.put(second);
        pool.put(third);
        assert_eq!(pool.len(), BLOCKS - 1);
        pool.put(first);
        assert_eq!(pool.len(), BLOCKS);
        assert_eq!(pool.take().expect("free").len(), BLOCK_BYTES);
    }
}
