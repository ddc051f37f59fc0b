//! The receiver's ledger of a segment: what landed, and who may write what.
//!
//! Leaves to others: the writing. Invariant (guarantee 2): a chunk is granted
//! to at most one connection at a time, never when it has landed, and a
//! connection's grants return only by [`Ledger::release`], which is called
//! after its last operation was reaped.

use super::ranges::RangeSet;
use super::{ChunkId, ConnectionId};
use std::collections::BTreeMap;
use std::ops::Range;

/// What is to be done with a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Granted: verify and write it.
    Write,
    /// Landed or granted elsewhere, all or in part: read it and forget it.
    Drain,
}

/// What landed and who may write what, in chunks of one segment.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    landed: RangeSet,
    grants: BTreeMap<ConnectionId, RangeSet>,
}

impl Ledger {
    /// Nothing landed, nothing granted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A frame for `chunks` arrives on `connection`. Whether the plan has such
    /// chunks is the caller's to check.
    pub fn admit(&mut self, connection: ConnectionId, chunks: Range<ChunkId>) -> Admission {
        let taken = self.landed.overlaps(chunks.clone())
            || self
                .grants
                .values()
                .any(|grant| grant.overlaps(chunks.clone()));
        if taken {
            return Admission::Drain;
        }
        self.grants.entry(connection).or_default().insert(chunks);
        Admission::Write
    }

    /// The chunks are verified and their writes were reaped.
    /// Returns false, and changes nothing, when they were not granted to
    /// `connection`.
    #[must_use]
    pub fn land(&mut self, connection: ConnectionId, chunks: Range<ChunkId>) -> bool {
        if !self.ungrant(connection, chunks.clone()) {
            return false;
        }
        self.landed.insert(chunks);
        true
    }

    /// The chunks' check failed, or their write did, and nothing of theirs is
    /// outstanding: they may be granted again.
    #[must_use]
    pub fn reject(&mut self, connection: ConnectionId, chunks: Range<ChunkId>) -> bool {
        self.ungrant(connection, chunks)
    }

    /// The connection's last operation was reaped: its grants return.
    pub fn release(&mut self, connection: ConnectionId) -> RangeSet {
        self.grants.remove(&connection).unwrap_or_default()
    }

    /// What landed.
    #[must_use]
    pub fn landed(&self) -> &RangeSet {
        &self.landed
    }

    /// Chunks granted and not yet landed, over all connections.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.grants.values().map(RangeSet::len).sum()
    }

    fn ungrant(&mut self, connection: ConnectionId, chunks: Range<ChunkId>) -> bool {
        match self.grants.get_mut(&connection) {
            Some(grant) if grant.contains(chunks.clone()) => {
                grant.remove(chunks);
                true
            }
            _ => false,
        }
    }
}
