//! Receive blocks that one session leaves to the next.
//!
//! Leaves to others: what is received into them. Invariant: never more than
//! [`limits::BLOCKS_BYTES_MAX`] wait here, whatever the number of sessions.

use crate::kernel::memory::Block;
use crate::limits;
use std::sync::{Arc, Mutex, PoisonError};

/// Blocks that nobody uses, of all sizes. Memory that was touched before costs
/// neither a page fault nor its zeroing: a server takes 0.88 of the CPU time so
/// (15 pushes of 587 MiB onto tmpfs in turn, one connection each).
#[derive(Debug, Default)]
pub struct Stock(Mutex<Vec<Arc<Block>>>);

impl Stock {
    /// One of `block_bytes`, the one that was left last.
    pub(super) fn take(&self, block_bytes: usize) -> Option<Arc<Block>> {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = blocks
            .iter()
            .rposition(|block| block.len() == block_bytes)?;
        Some(blocks.remove(place))
    }

    /// Leaves blocks, as far as there is room.
    pub(super) fn leave(&self, left: impl Iterator<Item = Arc<Block>>) {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes: usize = blocks.iter().map(|block| block.len()).sum();
        for block in left {
            // Whoever else holds it may still write to it.
            if bytes + block.len() <= limits::BLOCKS_BYTES_MAX && Arc::strong_count(&block) == 1 {
                bytes += block.len();
                blocks.push(block);
            }
        }
    }
}
