//! What waits to be written to a sink that takes bytes only in order.
//!
//! Leaves to others: writing it. Invariant: what is being written stays until
//! its write was reaped.

use super::segment::descriptor;
use crate::data::ReceiveSegment;
use crate::files::target::Sink;
use crate::kernel::ring::Handle;
use crate::protocol::{ChunkId, ConnectionId, Nanos};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// One segment's way into such a sink.
pub struct Ordered {
    /// The segment.
    pub segment: Arc<ReceiveSegment>,
    pub(super) sink: Handle,
    /// Verified and not written, by first chunk.
    pub(super) held: BTreeMap<ChunkId, HeldChunks>,
    pub(super) held_bytes: u64,
    /// What is being written.
    pub(super) writing: Option<HeldChunks>,
    /// True once nothing more is wanted of it; it goes when nothing is written.
    pub closed: bool,
}

/// Verified chunks, copied out of their block.
pub struct HeldChunks {
    pub(super) slot: usize,
    pub(super) number: ConnectionId,
    pub(super) chunks: Range<ChunkId>,
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) written: usize,
    pub(super) submitted: Nanos,
}

impl Ordered {
    /// For a segment with a sink of that kind; `None` for others.
    pub fn of(segment: &Arc<ReceiveSegment>) -> Option<Self> {
        let sink = segment.targets.iter().flatten().find_map(|target| {
            let ordered = matches!(target.sink(), Sink::Stdout(_));
            ordered.then(|| Handle::of(target, descriptor))
        })?;
        Some(Self {
            segment: segment.clone(),
            sink,
            held: BTreeMap::new(),
            held_bytes: 0,
            writing: None,
            closed: false,
        })
    }

    /// True when it must be looked at again soon: the chunk before the first
    /// that is held may be written by another worker.
    pub fn is_held_back(&self) -> bool {
        self.writing.is_none() && !self.held.is_empty()
    }

    /// True while a write is in flight.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Lets go what came in on a connection that is leaving; its grants return
    /// with all others of that connection. What is being written stays.
    pub fn drop_held(&mut self, number: ConnectionId) {
        let held_bytes = &mut self.held_bytes;
        self.held.retain(|_, held| {
            let stays = held.number != number;
            if !stays {
                *held_bytes -= held.bytes.len() as u64;
            }
            stays
        });
    }

    /// Lets everything go that is not being written.
    pub fn clear(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
    }
}
