//! The fake wire: control bytes and data frames, each in order, with delays.
//!
//! Leaves to others: what the ends do. Invariant: one connection never
//! reorders; different connections know nothing of each other.

use crate::rng::Rng;
use crate::scenario::FileSpec;
use haul_engine::protocol::check::Check;
use haul_engine::protocol::frame::HEADER_BYTES;
use haul_engine::protocol::wire::{Message, MessageReader, encode};
use haul_engine::protocol::{ChunkId, FileId, SegmentId};

/// What travels on a data connection.
#[derive(Clone, Debug)]
pub enum Item {
    /// A frame's header and its table.
    Head([u8; HEADER_BYTES], Vec<Check>),
    /// One chunk's payload.
    Payload(Payload),
}

#[derive(Clone, Debug)]
pub enum Payload {
    /// Copied when it was sent.
    Frozen(Vec<u8>),
    /// Read from the source when it arrives.
    Borrowed {
        segment: SegmentId,
        chunk: ChunkId,
        bytes: u32,
    },
}

/// One direction of the control connection.
pub struct ControlPipe {
    pub reader: MessageReader,
    /// When the last byte that was sent arrives.
    pub last_at: u64,
    pub broken: bool,
}

impl ControlPipe {
    pub fn new() -> Self {
        Self {
            reader: MessageReader::new(),
            last_at: 0,
            broken: false,
        }
    }

    pub fn bytes(message: &Message) -> Vec<u8> {
        encode(message)
    }

    /// Feeds the bytes in random pieces; gives what came out.
    pub fn read(&mut self, rng: &mut Rng, mut bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        while !bytes.is_empty() && !self.broken {
            let piece = rng.within(1..bytes.len() as u64 + 1) as usize;
            self.reader.push(&bytes[..piece]);
            bytes = &bytes[piece..];
            while let Some(message) = self.reader.next().expect("an honest peer's bytes") {
                messages.push(message);
            }
        }
        messages
    }
}

/// A source as the fake hands see it.
pub struct Source {
    pub original: Vec<u8>,
    pub bytes: Vec<u8>,
    /// When it was changed first.
    pub changed_at: Option<u64>,
    /// Its inode changed, which is all that tells of what was forged.
    pub touched: bool,
    pub is_forged: bool,
    /// What it was when it was looked at last.
    pub seen: Vec<u8>,
    /// When it was read last for a chunk that counts.
    pub last_read_at: u64,
    pub stream: bool,
    pub endless: bool,
    /// Bytes of a stream that have come so far.
    pub come: usize,
}

impl Source {
    pub fn of(spec: &FileSpec) -> Self {
        Self {
            original: spec.bytes.clone(),
            bytes: spec.bytes.clone(),
            changed_at: None,
            touched: false,
            is_forged: false,
            seen: Vec::new(),
            last_read_at: 0,
            stream: spec.stream,
            endless: spec.endless,
            come: 0,
        }
    }

    /// The bytes at `offset`; what is missing comes as zeros, and false.
    pub fn read(&self, offset: u64, bytes: u64) -> (Vec<u8>, bool) {
        let start = (offset as usize).min(self.bytes.len());
        let end = ((offset + bytes) as usize).min(self.bytes.len());
        let mut read = self.bytes[start..end].to_vec();
        let whole = read.len() as u64 == bytes;
        read.resize(bytes as usize, 0);
        (read, whole)
    }
}

/// A target as the fake disks hold it.
#[derive(Default)]
pub struct Target {
    /// Under its temporary name.
    pub temporary: Option<Vec<u8>>,
    /// Under its final name.
    pub sealed: Option<Vec<u8>>,
    /// Writes that were submitted and not reaped.
    pub outstanding: u32,
    pub failed: bool,
}

pub type FileKey = (SegmentId, FileId);
