//! Blocks on their way to their files.
//!
//! Leaves to others: making the writes, and what becomes of them. Invariant: a
//! block is kept until its last write was reaped.

use super::frame::Good;
use crate::data::ReceiveSegment;
use crate::kernel::memory::Block;
use crate::protocol::{ConnectionId, FileId, Nanos};
use std::ops::Range;
use std::sync::Arc;

/// A block whose writes are being made.
pub struct Landing {
    /// The connection that it came in on.
    pub slot: usize,
    /// The same, by number.
    pub number: ConnectionId,
    /// Where it belongs.
    pub segment: Arc<ReceiveSegment>,
    pub block: Arc<Block>,
    pub good: Vec<Good>,
    /// Writes that were not reaped, and one while they are being queued.
    pub outstanding: u32,
    /// One of them went, or goes, past the page cache.
    pub direct: bool,
}

/// One piece of a block on its way to its file.
pub struct Write {
    pub landing: usize,
    pub file: FileId,
    pub offset: u64,
    /// Where in the block.
    pub range: Range<usize>,
    pub submitted: Nanos,
    pub direct: bool,
}
