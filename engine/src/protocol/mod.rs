//! The protocol, sans-io: what the bytes mean and what each side does next.
//!
//! Leaves to others: sockets, files, clocks and threads; the callers bring
//! events and the time in and carry outputs out. Invariant: nothing below
//! this folder names a descriptor, a clock, a thread or `unsafe`.

pub mod check;
pub mod credit;
pub mod frame;
pub mod handshake;
pub mod ledger;
pub mod names;
pub mod plan;
pub mod ranges;
pub mod receiver;
pub mod sender;
pub mod session;
pub mod wire;

mod word;

use serde::{Deserialize, Serialize};

/// A point in time: nanoseconds since a start that the caller chose.
pub type Nanos = u64;
/// A data connection's number in its session; a number is used once.
pub type ConnectionId = u32;
/// A segment's number in its transfer, counted from 0.
pub type SegmentId = u32;
/// A file's place in its segment.
pub type FileId = u32;
/// A chunk's place in its segment; means nothing outside it.
pub type ChunkId = u64;

/// A transfer's name: 16 random bytes chosen by whoever starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransferId(pub [u8; 16]);

impl TransferId {
    /// No transfer: the frames that name it are padding.
    pub const PADDING: Self = Self([0; 16]);
}

/// A series of neighbouring chunks, sent as one data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The segment that the chunks belong to.
    pub segment: SegmentId,
    /// The first of them.
    pub first: ChunkId,
    /// How many; at least one.
    pub count: u32,
}

/// The peer broke the protocol: what was expected and what came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the protocol: expected {expected}, got {got}")]
pub struct Violation {
    /// What the protocol allows here.
    pub expected: String,
    /// What came.
    pub got: String,
}

impl Violation {
    /// A violation told by both halves of its sentence.
    pub fn new(expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self {
            expected: expected.into(),
            got: got.into(),
        }
    }
}
