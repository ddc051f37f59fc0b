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
    #[cfg(test)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Where a chunk is, in the model.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Place {
        Granted(ConnectionId),
        Landed,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit(ConnectionId, Range<ChunkId>),
        Land(ConnectionId, Range<ChunkId>),
        Reject(ConnectionId, Range<ChunkId>),
        Release(ConnectionId),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0u64..20, 1u64..8).prop_map(|(first, count)| first..first + count);
        (0..5, 0u32..3, range).prop_map(|(kind, connection, chunks)| match kind {
            0 | 1 => Step::Admit(connection, chunks),
            2 => Step::Land(connection, chunks),
            3 => Step::Reject(connection, chunks),
            _ => Step::Release(connection),
        })
    }

    proptest! {
        #[test]
        fn a_chunk_has_at_most_one_writer_and_lands_once(
            steps in prop::collection::vec(step(), 0..80),
        ) {
            let (mut ledger, mut model) = (Ledger::new(), BTreeMap::<ChunkId, Place>::new());
            for step in steps {
                match step {
                    Step::Admit(connection, chunks) => {
                        let free = chunks.clone().all(|chunk| !model.contains_key(&chunk));
                        let admission = ledger.admit(connection, chunks.clone());
                        prop_assert_eq!(admission == Admission::Write, free);
                        if free {
                            model.extend(chunks.map(|chunk| (chunk, Place::Granted(connection))));
                        }
                    }
                    Step::Land(connection, chunks) => {
                        let own = Some(&Place::Granted(connection));
                        let granted = chunks.clone().all(|chunk| model.get(&chunk) == own);
                        prop_assert_eq!(ledger.land(connection, chunks.clone()), granted);
                        if granted {
                            model.extend(chunks.map(|chunk| (chunk, Place::Landed)));
                        }
                    }
                    Step::Reject(connection, chunks) => {
                        let own = Some(&Place::Granted(connection));
                        let granted = chunks.clone().all(|chunk| model.get(&chunk) == own);
                        prop_assert_eq!(ledger.reject(connection, chunks.clone()), granted);
                        if granted {
                            model.retain(|chunk, _| !chunks.contains(chunk));
                        }
                    }
                    Step::Release(connection) => {
                        let own = Place::Granted(connection);
                        let back: Vec<ChunkId> = ledger.release(connection).iter().flatten().collect();
                        let expected: Vec<ChunkId> =
                            model.iter().filter(|(_, place)| **place == own).map(|(chunk, _)| *chunk).collect();
                        prop_assert_eq!(back, expected);
                        model.retain(|_, place| *place != own);
                    }
                }
                let landed: Vec<ChunkId> = ledger.landed().iter().flatten().collect();
                let expected: Vec<ChunkId> =
                    model.iter().filter(|(_, place)| **place == Place::Landed).map(|(chunk, _)| *chunk).collect();
                prop_assert_eq!(landed, expected.clone());
                prop_assert_eq!(ledger.granted(), (model.len() - expected.len()) as u64);
            }
        }
    }

    #[test]
    fn a_run_is_granted_whole_or_not_at_all() {
        let mut ledger = Ledger::new();
        assert_eq!(ledger.admit(1, 0..4), Admission::Write);
        assert!(ledger.land(1, 0..2));
        assert_eq!(ledger.admit(2, 1..6), Admission::Drain);
        // Not even to the connection that has it.
        assert_eq!(ledger.admit(1, 3..5), Admission::Drain);
        assert_eq!(ledger.admit(2, 4..6), Admission::Write);
        assert!(!ledger.land(2, 2..4));
        assert!(ledger.release(1).iter().eq(std::iter::once(2..4)));
        assert_eq!(ledger.admit(2, 2..4), Admission::Write);
        assert_eq!(ledger.admit(3, 0..1), Admission::Drain);
    }
}
