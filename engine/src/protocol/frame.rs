//! The header of a data frame: 64 bytes with a check of their own.
//!
//! Leaves to others: the table of checks and the payload behind it, and
//! whether the plan has such chunks. Invariant: a header that decodes was
//! encoded by this layout, names 1 to [`limits::RUN_CHUNKS_MAX`] chunks and at
//! most [`limits::RUN_BYTES_MAX`] payload bytes.
//!
//! ```text
//!  offset  bytes  field (little endian)
//!       0      4  magic  "HLRN"
//!       4      1  version  1
//!       5      1  check kind  0: XXH3-128
//!       6      2  flags  0; a receiver refuses bits that it does not know
//!       8     16  transfer; zeros make the frame padding
//!      24      4  segment
//!      28      4  count of chunks
//!      32      8  first chunk
//!      40      8  payload bytes
//!      48      8  reserved  0
//!      56      8  XXH3-64 of bytes 0..56
//!      64  16 × count  checks, one for each chunk
//!       …  payload bytes  the chunks' payloads, back to back
//! ```

use super::{ChunkId, Run, SegmentId, TransferId, Violation};
use crate::limits;
use twox_hash::XxHash3_64;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of an encoded header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of one check in the table.
pub const CHECK_BYTES: usize = 16;
/// Bytes of the shortest frame: one chunk's, without payload.
pub const FRAME_BYTES_MIN: usize = HEADER_BYTES + CHECK_BYTES;
const MAGIC: [u8; 4] = *b"HLRN";
const VERSION: u8 = 1;
const CHECK_XXH3: u8 = 0;

/// The layout on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FrameLayout {
    magic: [u8; 4],
    version: u8,
    check_kind: u8,
    flags: U16,
    transfer: [u8; 16],
    segment: U32,
    count: U32,
    first: U64,
    payload_bytes: U64,
    reserved: U64,
    own_check: U64,
}

const _: () = assert!(size_of::<FrameLayout>() == HEADER_BYTES);

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The transfer.
    pub transfer: TransferId,
    /// The segment.
    pub segment: SegmentId,
    /// The first chunk.
    pub first: ChunkId,
    /// How many chunks.
    pub count: u32,
    /// Bytes behind the table.
    pub payload_bytes: u64,
}

impl FrameHeader {
    /// Padding, [`FRAME_BYTES_MIN`] and so many bytes long.
    #[must_use]
    pub fn padding(payload_bytes: u64) -> Self {
        Self {
            transfer: TransferId::PADDING,
            segment: 0,
            first: 0,
            count: 1,
            payload_bytes,
        }
    }

    /// True when the frame is padding: it is read and forgotten.
    #[must_use]
    pub fn is_padding(&self) -> bool {
        self.transfer == TransferId::PADDING
    }

    /// The run that the frame carries.
    #[must_use]
    pub fn run(&self) -> Run {
        Run {
            segment: self.segment,
            first: self.first,
            count: self.count,
        }
    }

    /// Bytes of the table behind the header.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.count as usize * CHECK_BYTES
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut layout = FrameLayout {
            magic: MAGIC,
            version: VERSION,
            check_kind: CHECK_XXH3,
            flags: U16::new(0),
            transfer: self.transfer.0,
            segment: self.segment.into(),
            count: self.count.into(),
            first: self.first.into(),
            payload_bytes: self.payload_bytes.into(),
            reserved: U64::new(0),
            own_check: U64::new(0),
        };
        layout.own_check = own_check(&layout).into();
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(layout.as_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// A wrong magic, version, kind, flag or check, or counts beyond the limits.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Violation> {
        let layout: FrameLayout = zerocopy::transmute!(*bytes);
        if layout.magic != MAGIC {
            return Err(Violation::new(
                "a data frame",
                format!("bytes {:02x?}", &bytes[..4]),
            ));
        }
        if layout.own_check.get() != own_check(&layout) {
            return Err(Violation::new(
                "a frame header whose check holds",
                "a damaged header",
            ));
        }
        if (
            layout.version,
            layout.check_kind,
            layout.flags.get(),
            layout.reserved.get(),
        ) != (VERSION, CHECK_XXH3, 0, 0)
        {
            return Err(Violation::new(
                "a frame of version 1, check kind 0, no flags",
                format!(
                    "version {}, kind {}, flags {:#x}",
                    layout.version, layout.check_kind, layout.flags
                ),
            ));
        }
        let header = Self {
            transfer: TransferId(layout.transfer),
            segment: layout.segment.get(),
            first: layout.first.get(),
            count: layout.count.get(),
            payload_bytes: layout.payload_bytes.get(),
        };
        let count_fits = (1..=limits::RUN_CHUNKS_MAX).contains(&header.count);
        if !count_fits || header.payload_bytes > limits::RUN_BYTES_MAX {
            return Err(Violation::new(
                "a run within the limits",
                format!("{} chunks, {} bytes", header.count, header.payload_bytes),
            ));
        }
        Ok(header)
    }
}

fn own_check(layout: &FrameLayout) -> u64 {
    XxHash3_64::oneshot(&layout.as_bytes()[..HEADER_BYTES - 8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decodes_what_it_encodes_and_refuses_any_flipped_bit(
            transfer: [u8; 16], segment: u32, first: u64,
            count in 1..=limits::RUN_CHUNKS_MAX, payload_bytes in 0..=limits::RUN_BYTES_MAX,
            bit in 0usize..HEADER_BYTES * 8,
        ) {
            let header = FrameHeader { transfer: TransferId(transfer), segment, first, count, payload_bytes };
            let mut bytes = header.encode();
            prop_assert_eq!(FrameHeader::decode(&bytes), Ok(header));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(FrameHeader::decode(&bytes).is_err());
        }
    }
}
