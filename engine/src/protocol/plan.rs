//! The plan of a segment: wanted extents laid end to end and cut into chunks.
//!
//! Leaves to others: opening files and moving bytes. Invariant: both sides
//! compute the same plan from the same offer and answer, every wanted byte
//! belongs to exactly one chunk, and a chunk is never longer than the
//! transfer's chunk size.
//!
//! What is wanted of a file is what the answer names of its data: holes are in no
//! chunk, nor is what the receiver holds already. An extent of at least one chunk starts a chunk of its own and fills chunks
//! until its end; smaller extents are packed, whole, into a shared chunk until
//! the next does not fit. A stream is alone in its segment, and its chunks
//! are counted without an end.

#[cfg(test)]
mod tests;

use super::wire::{Answer, ByteRange, Data, Entry, EntryKind, Offer, Verdict};
use super::{ChunkId, FileId, Violation};
use crate::limits;
use serde::Serialize;
use std::ops::Range;

/// One wanted extent and the place it got.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    file: FileId,
    range: ByteRange,
    /// The chunk that its first byte is in.
    first_chunk: ChunkId,
    /// Where in that chunk; 0 for extents that fill chunks.
    chunk_offset: u32,
}

impl Extent {
    fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A piece of one file inside a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file.
    pub file: FileId,
    /// Where in the file.
    pub file_offset: u64,
    /// Where in the run's payload.
    pub run_offset: u64,
    /// How long.
    pub bytes: u64,
}

/// A segment's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    chunk_bytes: u32,
    extents: Vec<Extent>,
    /// Data that the receiver holds already, by file: see [`Verdict::Held`].
    held: Vec<(FileId, ByteRange)>,
    /// `None` for a stream.
    chunk_count: Option<u64>,
    wanted_bytes: u64,
    digest: [u8; 16],
}

impl Plan {
    /// Lays out what `answer` wants of `offer`.
    ///
    /// # Errors
    /// A verdict count that differs, ranges that are unordered, touching or
    /// outside their file, or something held that is no file.
    pub fn new(offer: &Offer, answer: &Answer, chunk_bytes: u32) -> Result<Self, Violation> {
        assert!(
            chunk_bytes.is_power_of_two(),
            "chunk sizes are checked where they enter"
        );
        if offer.entries.len() != answer.verdicts.len() {
            return Err(Violation::new(
                format!("{} verdicts", offer.entries.len()),
                format!("{}", answer.verdicts.len()),
            ));
        }
        let digest = digest(offer, &answer.verdicts);
        if let [entry] = offer.entries.as_slice()
            && entry.kind == EntryKind::Stream
        {
            return Self::of_stream(&answer.verdicts[0], chunk_bytes, digest);
        }
        let mut layout = Layout {
            chunk_bytes,
            extents: Vec::new(),
            held: Vec::new(),
            next: 0,
            filled: 0,
            wanted: 0,
        };
        for (file, (entry, verdict)) in offer.entries.iter().zip(&answer.verdicts).enumerate() {
            if entry.kind == EntryKind::Stream {
                return Err(Violation::new(
                    "a stream alone in its segment",
                    "a stream among files",
                ));
            }
            let file = file as FileId;
            match verdict {
                Verdict::Skip | Verdict::Refused(_) | Verdict::Would(_) => {}
                Verdict::Whole => {
                    let whole = ByteRange {
                        start: 0,
                        end: entry.size,
                    };
                    layout.lay_data(file, whole, &entry.data);
                }
                Verdict::Ranges(ranges) => {
                    check_ranges(ranges, entry.size)?;
                    for range in ranges {
                        layout.lay_data(file, *range, &entry.data);
                    }
                }
                Verdict::Held if entry.kind == EntryKind::File => layout.hold(file, entry),
                Verdict::Held => {
                    return Err(Violation::new("a file that is held", "another entry"));
                }
            }
        }
        layout.close_shared();
        // Each size was bounded by itself where it was decoded; a caller's own
        // entries were not, and sums must not wrap.
        if layout.wanted > limits::SEGMENT_BYTES_MAX {
            return Err(Violation::new(
                format!("at most {} bytes in a segment", limits::SEGMENT_BYTES_MAX),
                format!("{} bytes", layout.wanted),
            ));
        }
        Ok(Self {
            chunk_bytes,
            extents: layout.extents,
            held: layout.held,
            chunk_count: Some(layout.next),
            wanted_bytes: layout.wanted,
            digest,
        })
    }

    fn of_stream(verdict: &Verdict, chunk_bytes: u32, digest: [u8; 16]) -> Result<Self, Violation> {
        let wanted = match verdict {
            Verdict::Whole => true,
            Verdict::Skip | Verdict::Refused(_) | Verdict::Would(_) => false,
            Verdict::Ranges(_) | Verdict::Held => {
                return Err(Violation::new("a whole stream", "a part of a stream"));
            }
        };
        let extent = Extent {
            file: 0,
            range: ByteRange {
                start: 0,
                end: u64::MAX,
            },
            first_chunk: 0,
            chunk_offset: 0,
        };
        Ok(Self {
            chunk_bytes,
            extents: if wanted { vec![extent] } else { Vec::new() },
            held: Vec::new(),
            chunk_count: if wanted { None } else { Some(0) },
            wanted_bytes: 0,
            digest,
        })
    }

    /// The transfer's chunk size.
    #[must_use]
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    /// How many chunks there are; `None` while a stream has no known end.
    #[must_use]
    pub fn chunk_count(&self) -> Option<u64> {
        self.chunk_count
    }

    /// True when this is a wanted stream.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.chunk_count.is_none()
    }

    /// Wanted bytes of all files; 0 for a stream.
    #[must_use]
    pub fn wanted_bytes(&self) -> u64 {
        self.wanted_bytes
    }

    /// Digest of offer and verdicts: equal digests mean equal plans.
    #[must_use]
    pub fn digest(&self) -> &[u8; 16] {
        &self.digest
    }

    /// True when `first..first + count` are chunks of this plan.
    #[must_use]
    pub fn contains(&self, first: ChunkId, count: u64) -> bool {
        let end = first.checked_add(count);
        // A stream's byte offsets must not wrap either.
        let limit = self
            .chunk_count
            .unwrap_or(u64::MAX / u64::from(self.chunk_bytes));
        count > 0 && end.is_some_and(|end| end <= limit)
    }

    /// Payload bytes of one chunk. A stream's last chunk may be shorter: its
    /// frame tells.
    #[must_use]
    pub fn chunk_len(&self, chunk: ChunkId) -> u32 {
        let mut bytes = 0;
        for extent in self.extents_of(chunk..chunk + 1) {
            let (start, end) = self.cut(extent, chunk..chunk + 1);
            bytes += end - start;
        }
        // At most chunk_bytes by the layout.
        bytes as u32
    }

    /// Payload bytes of a run.
    #[must_use]
    pub fn run_bytes(&self, first: ChunkId, count: u32) -> u64 {
        self.pieces(first, count).map(|piece| piece.bytes).sum()
    }

    /// The files and offsets of a run's payload, in order; neighbouring chunks
    /// of one extent come as one piece.
    pub fn pieces(&self, first: ChunkId, count: u32) -> impl Iterator<Item = Piece> + '_ {
        self.pieces_of(first..first + u64::from(count))
    }

    /// As [`Plan::pieces`], for any series of chunks.
    pub fn pieces_of(&self, chunks: Range<ChunkId>) -> impl Iterator<Item = Piece> + '_ {
        let mut run_offset = 0;
        self.extents_of(chunks.clone()).iter().map(move |extent| {
            let (start, end) = self.cut(extent, chunks.clone());
            let piece = Piece {
                file: extent.file,
                file_offset: start,
                run_offset,
                bytes: end - start,
            };
            run_offset += piece.bytes;
            piece
        })
    }

    /// The chunks that hold bytes of `file`: one range for each extent.
    pub fn chunks_of(&self, file: FileId) -> impl Iterator<Item = Range<ChunkId>> + '_ {
        let start = self.extents.partition_point(|extent| extent.file < file);
        self.extents[start..]
            .iter()
            .take_while(move |extent| extent.file == file)
            .map(|extent| {
                if self.is_stream() {
                    0..u64::MAX
                } else {
                    extent.first_chunk..self.end_chunk(extent)
                }
            })
    }

    /// For each extent with bytes in `chunks`: its file, and in how many of
    /// them. A file with several extents comes several times, and its shares
    /// of all chunks add up to [`Plan::shares_of`].
    pub fn shares(&self, chunks: Range<ChunkId>) -> impl Iterator<Item = (FileId, u64)> + '_ {
        self.extents_of(chunks.clone()).iter().map(move |extent| {
            let first = extent.first_chunk.max(chunks.start);
            let end = self.end_chunk(extent).min(chunks.end);
            (extent.file, end - first)
        })
    }

    /// All shares of `file`; `None` while a stream has no known end.
    #[must_use]
    pub fn shares_of(&self, file: FileId) -> Option<u64> {
        if self.is_stream() {
            return None;
        }
        Some(
            self.chunks_of(file)
                .map(|range| range.end - range.start)
                .sum(),
        )
    }

    /// Wanted bytes of `file`; 0 for a stream.
    #[must_use]
    pub fn bytes_of(&self, file: FileId) -> u64 {
        if self.is_stream() {
            return 0;
        }
        let start = self.extents.partition_point(|extent| extent.file < file);
        let own = self.extents[start..].iter();
        own.take_while(|extent| extent.file == file)
            .map(Extent::bytes)
            .sum()
    }

    /// True of a file whose data the receiver holds already: none of it is sent.
    #[must_use]
    pub fn is_held(&self, file: FileId) -> bool {
        self.held.binary_search_by_key(&file, |held| held.0).is_ok()
    }

    /// The data of a file that [`Plan::is_held`], in pieces of one chunk at most.
    pub fn held_pieces(&self, file: FileId) -> impl Iterator<Item = ByteRange> + '_ {
        let chunk_bytes = u64::from(self.chunk_bytes);
        let first = self.held.partition_point(|held| held.0 < file);
        let own = self.held[first..].iter();
        let own = own.take_while(move |held| held.0 == file);
        own.flat_map(move |(_, range)| {
            let (end, pieces) = (range.end, (range.end - range.start).div_ceil(chunk_bytes));
            (0..pieces).map(move |piece| {
                let start = range.start + piece * chunk_bytes;
                ByteRange {
                    start,
                    end: end.min(start.saturating_add(chunk_bytes)),
                }
            })
        })
    }

    /// The files that have bytes in `chunks`, ascending, each once.
    pub fn files_of(&self, chunks: Range<ChunkId>) -> impl Iterator<Item = FileId> + '_ {
        let mut last = None;
        self.extents_of(chunks).iter().filter_map(move |extent| {
            let new = last != Some(extent.file);
            last = Some(extent.file);
            new.then_some(extent.file)
        })
    }

    /// One past the extent's last chunk.
    fn end_chunk(&self, extent: &Extent) -> ChunkId {
        let chunk_bytes = u64::from(self.chunk_bytes);
        extent.first_chunk + (u64::from(extent.chunk_offset) + extent.bytes()).div_ceil(chunk_bytes)
    }

    /// Extents with bytes in `chunks`, which ascend by first chunk.
    fn extents_of(&self, chunks: Range<ChunkId>) -> &[Extent] {
        if self.is_stream() {
            return &self.extents;
        }
        let start = self
            .extents
            .partition_point(|extent| self.end_chunk(extent) <= chunks.start);
        let end = self
            .extents
            .partition_point(|extent| extent.first_chunk < chunks.end);
        &self.extents[start..end.max(start)]
    }

    /// The bytes of the extent's file that lie in `chunks`.
    fn cut(&self, extent: &Extent, chunks: Range<ChunkId>) -> (u64, u64) {
        let chunk_bytes = u64::from(self.chunk_bytes);
        let place = |chunk: ChunkId| match chunk.checked_sub(extent.first_chunk) {
            None | Some(0) => extent.range.start,
            Some(ahead) => extent
                .range
                .start
                .saturating_add(ahead.saturating_mul(chunk_bytes))
                .min(extent.range.end),
        };
        (place(chunks.start), place(chunks.end))
    }
}

/// The layout while it grows.
struct Layout {
    chunk_bytes: u32,
    extents: Vec<Extent>,
    held: Vec<(FileId, ByteRange)>,
    /// The next chunk that nothing is in.
    next: ChunkId,
    /// Bytes in the shared chunk `next`, which is counted only when closed.
    filled: u32,
    wanted: u64,
}

impl Layout {
    /// Lays what `range` holds of a file's data.
    fn lay_data(&mut self, file: FileId, range: ByteRange, data: &Data) {
        let Data::Ranges(ranges) = data else {
            return self.lay(file, range);
        };
        let first = ranges.partition_point(|stretch| stretch.end <= range.start);
        for stretch in &ranges[first..] {
            if stretch.start >= range.end {
                break;
            }
            let part = ByteRange {
                start: stretch.start.max(range.start),
                end: stretch.end.min(range.end),
            };
            self.lay(file, part);
        }
    }

    /// Keeps where a file has data that is in no chunk.
    fn hold(&mut self, file: FileId, entry: &Entry) {
        let whole = ByteRange {
            start: 0,
            end: entry.size,
        };
        match &entry.data {
            Data::Everywhere if entry.size == 0 => {}
            Data::Everywhere => self.held.push((file, whole)),
            Data::Ranges(ranges) => {
                self.held.extend(ranges.iter().map(|range| (file, *range)));
            }
        }
    }

    fn lay(&mut self, file: FileId, range: ByteRange) {
        let bytes = range.end - range.start;
        if bytes == 0 {
            return;
        }
        self.wanted = self.wanted.saturating_add(bytes);
        let chunk_bytes = u64::from(self.chunk_bytes);
        if bytes >= chunk_bytes || u64::from(self.filled) + bytes > chunk_bytes {
            self.close_shared();
        }
        self.extents.push(Extent {
            file,
            range,
            first_chunk: self.next,
            chunk_offset: self.filled,
        });
        if bytes >= chunk_bytes {
            self.next = self.next.saturating_add(bytes.div_ceil(chunk_bytes));
        } else {
            // Fits: it was compared above.
            self.filled += bytes as u32;
        }
    }

    fn close_shared(&mut self) {
        if self.filled > 0 {
            self.next += 1;
            self.filled = 0;
        }
    }
}

fn check_ranges(ranges: &[ByteRange], size: u64) -> Result<(), Violation> {
    let ordered = ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
    let inside = ranges
        .iter()
        .all(|range| range.start < range.end && range.end <= size);
    if ordered && inside && ranges.len() <= limits::VERDICT_RANGES_MAX {
        Ok(())
    } else {
        Err(Violation::new(
            "ascending ranges inside the file",
            format!("{} ranges", ranges.len()),
        ))
    }
}

/// BLAKE3 over everything that the layout depends on, cut to 16 bytes.
#[must_use]
pub fn digest(offer: &Offer, verdicts: &[Verdict]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key("haul 1 plan digest");
    hasher.update(&offer.transfer.0);
    hasher.update(&offer.segment.to_le_bytes());
    // As they go over the wire: nothing that is said of an entry can be another
    // at the other end.
    let around = (&offer.folders, &offer.users, &offer.groups);
    let mut bytes = hash_said(&mut hasher, &around, Vec::new());
    for (entry, verdict) in offer.entries.iter().zip(verdicts) {
        bytes = hash_said(&mut hasher, entry, bytes);
        match verdict {
            Verdict::Skip => drop(hasher.update(&[0])),
            Verdict::Whole => drop(hasher.update(&[1])),
            Verdict::Refused(_) => drop(hasher.update(&[2])),
            Verdict::Would(_) => drop(hasher.update(&[4])),
            Verdict::Held => drop(hasher.update(&[5])),
            Verdict::Ranges(ranges) => {
                hasher.update(&[3]);
                hash_ranges(&mut hasher, ranges);
            }
        }
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

/// Adds what is said, by way of `buffer`, which is given back.
fn hash_said<T: Serialize>(hasher: &mut blake3::Hasher, said: &T, mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.clear();
    // Writing to memory does not fail, and none of our types refuses.
    let bytes = postcard::to_extend(said, buffer).expect("an offer is plain data");
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(&bytes);
    bytes
}

fn hash_ranges(hasher: &mut blake3::Hasher, ranges: &[ByteRange]) {
    hasher.update(&(ranges.len() as u64).to_le_bytes());
    for range in ranges {
        hasher.update(&range.start.to_le_bytes());
        hasher.update(&range.end.to_le_bytes());
    }
}
