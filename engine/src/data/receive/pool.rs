//! The blocks that payload is received into.
//!
//! Leaves to others: lending them to the ring. Invariant: never more than
//! [`BLOCKS_BYTES_MAX`] exist, and a block that was given back is the next to
//! be taken, because it is still in the cache.

use super::stock::Stock;
use crate::kernel::memory::{Arena, Block};
use crate::limits::BLOCKS_BYTES_MAX;
use rustix::io::Errno;
use std::sync::Arc;

/// Blocks come from arenas of one huge page, so that a worker that needs one
/// block has one huge page resident.
const ARENA_BYTES: usize = 2 * 1024 * 1024;

/// A worker's blocks, made as they are needed.
pub struct ReceivePool {
    stock: Arc<Stock>,
    idle: Vec<Arc<Block>>,
    /// Bytes of all arenas that have a block left.
    bytes: usize,
}

impl Drop for ReceivePool {
    fn drop(&mut self) {
        self.stock.leave(self.idle.drain(..));
    }
}

impl ReceivePool {
    /// Without a block yet; those that others left are taken first.
    pub fn new(stock: Arc<Stock>) -> Self {
        Self {
            stock,
            idle: Vec::new(),
            bytes: 0,
        }
    }

    /// A block of `block_bytes`, a power of two; `None` while as many as may
    /// exist are in use, at least one of which is then given back later.
    ///
    /// # Errors
    /// The errno of mmap(2) when memory is short and no block is in use.
    pub fn take(&mut self, block_bytes: usize) -> Result<Option<Arc<Block>>, Errno> {
        let fitting = |block: &Arc<Block>| block.len() == block_bytes;
        if let Some(place) = self.idle.iter().rposition(fitting) {
            return Ok(Some(self.idle.remove(place)));
        }
        if self.bytes + block_bytes <= BLOCKS_BYTES_MAX
            && let Some(block) = self.stock.take(block_bytes)
        {
            self.bytes += block_bytes;
            return Ok(Some(block));
        }
        let arena_bytes = ARENA_BYTES.max(block_bytes);
        let map = || Arena::new(block_bytes, arena_bytes / block_bytes, true);
        let mut made = None;
        if self.bytes + arena_bytes <= BLOCKS_BYTES_MAX {
            made = map().ok();
        }
        if made.is_none() {
            // Idle blocks here are of another size: a transfer with other
            // chunks went before.
            self.bytes -= self.idle.drain(..).map(|block| block.len()).sum::<usize>();
            if self.bytes + arena_bytes > BLOCKS_BYTES_MAX {
                return Ok(None);
            }
            made = match map() {
                Err(errno) if self.bytes == 0 => return Err(errno),
                // Blocks that are in use come back.
                made => made.ok(),
            };
        }
        let Some((_, blocks)) = made else {
            return Ok(None);
        };
        self.bytes += arena_bytes;
        self.idle.extend(blocks);
        Ok(self.idle.pop())
    }

    /// Takes a block back.
    pub fn give(&mut self, block: Arc<Block>) {
        self.idle.push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn blocks_are_bounded_and_reused() {
        let mut pool = ReceivePool::new(Arc::default());
        let mut taken = Vec::new();
        while let Some(block) = pool.take(MIB).expect("memory") {
            taken.push(block);
        }
        assert_eq!(taken.len() * MIB, BLOCKS_BYTES_MAX);
        pool.give(taken.remove(3));
        assert!(pool.take(MIB).expect("memory").is_some());
        assert!(pool.take(MIB).expect("memory").is_none());
    }

    #[test]
    fn what_one_pool_leaves_the_next_takes_first() {
        let stock = Arc::new(Stock::default());
        let position = |block: &Arc<Block>| block.as_slice().as_ptr();
        let mut first = ReceivePool::new(stock.clone());
        let block = first.take(MIB).expect("memory").expect("room");
        let seen = position(&block);
        first.give(block);
        drop(first);
        let mut second = ReceivePool::new(stock.clone());
        let mut other = second.take(4 * MIB).expect("memory").expect("room");
        assert_eq!(other.len(), 4 * MIB, "of another size");
        other = second.take(MIB).expect("memory").expect("room");
        assert_eq!(position(&other), seen);
        // However many leave theirs, the stock is bounded.
        let mut pools: Vec<_> = (0..4).map(|_| ReceivePool::new(stock.clone())).collect();
        for pool in &mut pools {
            let mut taken = Vec::new();
            while let Some(block) = pool.take(MIB).expect("memory") {
                taken.push(block);
            }
            // Those that were left come singly, the others two at a time.
            let bounds = BLOCKS_BYTES_MAX - MIB..=BLOCKS_BYTES_MAX;
            assert!(bounds.contains(&(taken.len() * MIB)), "{}", taken.len());
            taken.into_iter().for_each(|block| pool.give(block));
        }
        drop(pools);
        let left = std::iter::from_fn(|| stock.take(MIB)).count();
        assert_eq!(left * MIB, BLOCKS_BYTES_MAX);
    }

    #[test]
    fn blocks_of_another_size_make_room() {
        let mut pool = ReceivePool::new(Arc::default());
        let mut taken = Vec::new();
        while let Some(block) = pool.take(MIB).expect("memory") {
            taken.push(block);
        }
        taken.into_iter().for_each(|block| pool.give(block));
        let large = pool.take(4 * MIB).expect("memory").expect("room");
        assert_eq!(large.len(), 4 * MIB);
        assert!(pool.bytes <= BLOCKS_BYTES_MAX);
    }
}
