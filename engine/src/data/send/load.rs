//! One run on its way: its parts in memory, its checks, its frame.
//!
//! Leaves to others: operations (reading, sending) and events. Invariant: the
//! parts lie end to end from `from` to the payload's end, each inside one
//! block or one kept chunk, and a part that came up short holds zeros and is
//! named in `voids`.

use super::layout::{Cursor, Part, is_direct, kept_parts};
use super::pool::{BLOCK_BYTES, SendPool};
use crate::Side;
use crate::data::SendSegment;
use crate::data::window::Stretch;
use crate::error::Error;
use crate::files::DIRECT_ALIGN_BYTES;
use crate::files::regular::FileSource;
use crate::files::source::Source;
use crate::kernel::fault::watched;
use crate::kernel::memory::Block;
use crate::kernel::ring::{Handle, IoMessage, Owner, Slice};
use crate::protocol::check::Check;
use crate::protocol::frame::{CHECK_BYTES, FrameHeader, HEADER_BYTES};
use crate::protocol::plan::Piece;
use crate::protocol::wire::ChunkRange;
use crate::protocol::{FileId, Nanos, Run};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// How a run's bytes leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// SENDMSG: the kernel copies into the socket.
    Copy,
    /// SENDMSG_ZC.
    ZeroCopy,
    /// Through a pipe, page-cache pages by reference.
    Splice,
}

impl Path {
    /// As reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::ZeroCopy => "zerocopy",
            Self::Splice => "splice",
        }
    }
}

/// Where a load's payload is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not chosen yet.                        From: start. To: Mapping, Blocks, Rest.
    Open,
    /// Mapping windows, which it is checked and sent from.
    /// From: Open. To: Blocks, Rest.
    Mapping,
    /// Blocks and kept chunks, also as a mapping could not be populated or read.
    /// From: Open, Mapping. To: Rest.
    Blocks,
    /// A part of the frame went already, or its operation failed: what is left is
    /// read afresh, into blocks.              From: any. To: none.
    Rest,
}

/// A stretch of the payload that holds filler.
pub struct Void {
    /// The file that was short.
    pub file: FileId,
    /// Where in the payload.
    pub start: u64,
    /// One past its end.
    pub end: u64,
    /// Why; `None` at the end of the file.
    pub error: Option<Error>,
}

/// Where a load stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// For blocks.                           From: start, Sending. To: Reading.
    Waiting,
    /// Reads are in flight or to be queued.  From: Waiting. To: Read.
    Reading,
    /// All bytes are in memory.              From: Reading. To: Ready.
    Read,
    /// The frame (or its rest) can go.       From: Read, Sending. To: Sending.
    Ready,
    /// The socket has it.                    From: Ready. To: gone, Ready, Waiting.
    Sending,
}

/// A run that was handed to a connection.
pub struct Load {
    /// The connection's place in the worker; `None` once it is gone.
    pub place: Option<usize>,
    /// What it is part of.
    pub segment: Arc<SendSegment>,
    /// Which chunks.
    pub run: Run,
    /// Payload bytes.
    pub payload_bytes: u64,
    /// Where each chunk ends in the payload.
    ends: Vec<u64>,
    /// The files' pieces, cut to the payload.
    pub pieces: Vec<Piece>,
    /// Where it stands.
    pub stage: Stage,
    /// How it goes.
    pub path: Path,
    /// Where its bytes come from.
    pub origin: Origin,
    /// Where in the payload the parts begin: 0, or where a rest begins.
    from: u64,
    /// The stretches to read.
    pub parts: Vec<Part>,
    /// Blocks that `parts` are laid in.
    blocks: usize,
    /// Reads in flight.
    pub reading: usize,
    /// The first part whose read was not queued yet.
    pub next_read: usize,
    /// One for each chunk, once computed.
    pub checks: Vec<Check>,
    /// Header and table.
    pub head: Vec<u8>,
    /// Bytes of the frame that the socket has.
    pub frame_sent: u64,
    /// What is to be sent of it, in order, once it was written; not what is being
    /// sent.
    pub left: VecDeque<Box<IoMessage>>,
    /// When its first operation was submitted.
    pub submitted: Option<Nanos>,
    /// What holds filler and was not told yet.
    pub voids: Vec<Void>,
    /// The mapping windows that stand for the payload.
    pub mapping: Vec<Stretch>,
}

impl Load {
    /// A load of `run`; `bytes` is a stream's short tail.
    pub fn new(place: usize, segment: Arc<SendSegment>, run: Run, bytes: Option<u64>) -> Self {
        let mut ends = Vec::with_capacity(run.count as usize);
        let mut end = 0;
        let planned: u64 = segment.plan.run_bytes(run.first, run.count);
        let payload_bytes = bytes.map_or(planned, |bytes| bytes.min(planned));
        for chunk in run.first..run.first + u64::from(run.count) {
            end = payload_bytes.min(end + u64::from(segment.plan.chunk_len(chunk)));
            ends.push(end);
        }
        let pieces = segment
            .plan
            .pieces(run.first, run.count)
            .filter(|piece| piece.run_offset < payload_bytes)
            .map(|mut piece| {
                piece.bytes = piece.bytes.min(payload_bytes - piece.run_offset);
                piece
            })
            .collect();
        Self {
            place: Some(place),
            segment,
            run,
            payload_bytes,
            ends,
            pieces,
            stage: Stage::Waiting,
            path: Path::Copy,
            origin: Origin::Open,
            from: 0,
            parts: Vec::new(),
            blocks: 0,
            reading: 0,
            next_read: 0,
            checks: Vec::new(),
            head: Vec::new(),
            frame_sent: 0,
            left: VecDeque::new(),
            submitted: None,
            voids: Vec::new(),
            mapping: Vec::new(),
        }
    }

    /// True when this sends the end of a frame whose beginning went before.
    pub fn is_rest(&self) -> bool {
        self.origin == Origin::Rest
    }

    /// True when it is checked and sent from mapping windows.
    pub fn is_mapped(&self) -> bool {
        self.origin == Origin::Mapping
    }

    /// Its windows could not be populated or read: blocks serve instead.
    pub fn leave_mapping(&mut self) {
        if self.is_mapped() {
            self.origin = Origin::Blocks;
        }
    }

    /// Blocks that the parts want.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// True when the part's pages have to come from a disk.
    pub fn is_cold(&self, part: &Part) -> bool {
        match self.source(part.file).map(Arc::as_ref) {
            Some(Source::File(file)) => file.is_cold(),
            _ => false,
        }
    }

    /// A failed read, as a sentence.
    pub fn read_error(&self, part: usize, errno: Errno) -> Error {
        let part = &self.parts[part];
        let name = self
            .source(part.file)
            .map_or("a source", |source| source.display());
        let offset = part.file_offset + part.filled as u64;
        let doing = format!("cannot read {name} at byte {offset}");
        Error::local(doing, std::io::Error::from(errno)).at(Side::Sender)
    }

    /// Declares all of a file's bytes here void.
    pub fn void_file(&mut self, file: FileId, error: Error) {
        let pieces = self.pieces.iter().filter(|piece| piece.file == file);
        let start = pieces.clone().map(|piece| piece.run_offset).min();
        let end = pieces.map(|piece| piece.run_offset + piece.bytes).max();
        if let (Some(start), Some(end)) = (start, end) {
            self.void_range(file, start, end, Some(error));
        }
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> u64 {
        (HEADER_BYTES + self.run.count as usize * CHECK_BYTES) as u64 + self.payload_bytes
    }

    /// The source of `file`, which is open while chunks of it are in a run.
    pub fn source(&self, file: FileId) -> Option<&Arc<Source>> {
        self.segment.sources.get(file as usize)?.as_ref()
    }

    /// The file behind every piece, where all are regular files.
    pub fn files(&self) -> Option<Vec<(&Arc<Source>, &FileSource, Piece)>> {
        self.pieces
            .iter()
            .map(|piece| {
                let source = self.source(piece.file)?;
                match source.as_ref() {
                    Source::File(file) => Some((source, file, *piece)),
                    _ => None,
                }
            })
            .collect()
    }

    /// Lays parts for the payload that is still to go, and says how many
    /// blocks they want.
    pub fn lay(&mut self) -> usize {
        let head_bytes = (HEADER_BYTES + self.run.count as usize * CHECK_BYTES) as u64;
        self.from = self.frame_sent.saturating_sub(head_bytes);
        self.parts.clear();
        let mut cursor = Cursor::default();
        for index in 0..self.pieces.len() {
            let mut piece = self.pieces[index];
            let skip = self.from.saturating_sub(piece.run_offset).min(piece.bytes);
            piece.file_offset += skip;
            piece.run_offset += skip;
            piece.bytes -= skip;
            match self.source(piece.file).map(Arc::as_ref) {
                Some(Source::Stream(stream)) => {
                    let chunk_bytes = u64::from(self.segment.plan.chunk_bytes());
                    let parts = kept_parts(stream, piece, chunk_bytes);
                    self.parts.extend(parts);
                }
                Some(Source::File(file)) => {
                    let direct =
                        self.path != Path::Splice && file.direct().is_some() && is_direct(&piece);
                    cursor.lay(piece, direct, &mut self.parts);
                }
                // What is not open is filled with zeros.
                Some(_) | None => cursor.lay(piece, false, &mut self.parts),
            }
        }
        self.next_read = 0;
        self.blocks = cursor.blocks();
        self.blocks
    }

    /// Takes the blocks that [`Load::lay`] asked for; the pool has them.
    pub fn take_blocks(&mut self, pool: &mut SendPool) {
        let mut index = 0;
        for number in 0..self.blocks {
            let mut rest = pool.take();
            let mut taken = 0;
            while let Some(part) = self.parts.get(index)
                && part.laid.is_none_or(|(block, _)| block == number)
            {
                let next = self.parts[index + 1..].iter().find_map(|next| next.laid);
                let part = &mut self.parts[index];
                index += 1;
                let Some((_, at)) = part.laid else { continue };
                part.start = at - taken;
                part.block = match next {
                    // Another part in the same block: each is lent on its own.
                    Some((block, next_at)) if block == number => rest.take().map(|whole| {
                        let (own, behind) = Block::split(whole, next_at - taken);
                        taken = next_at;
                        rest = Some(behind);
                        own
                    }),
                    _ => rest.take(),
                };
            }
            rest.into_iter().for_each(|block| pool.put(block));
        }
        self.stage = Stage::Reading;
    }

    /// Fills what needs no operation: generated bytes, sources that are gone.
    pub fn fill(&mut self) {
        for index in 0..self.parts.len() {
            let part = &self.parts[index];
            if part.filled == part.bytes {
                continue;
            }
            let source = self.source(part.file).cloned();
            match source.as_deref() {
                Some(Source::File(_)) => {}
                Some(Source::Generated(generated)) => {
                    let part = &mut self.parts[index];
                    let (start, bytes, offset) = (part.start, part.bytes, part.file_offset);
                    if let Some(block) = part.block.as_mut().and_then(Arc::get_mut) {
                        generated.fill(offset, &mut block.as_mut_slice()[start..start + bytes]);
                    }
                    part.filled = part.bytes;
                }
                Some(Source::Stream(_)) => {
                    self.void(index, Some(gone("its chunk was forgotten")));
                }
                Some(Source::Missing(missing)) => {
                    self.void(index, Some(missing.error().clone()));
                }
                // It failed when it was opened, which was told.
                Some(Source::Later(_) | Source::Node(_)) => {
                    self.void(index, Some(gone("its source is not open")));
                }
                None => self.void(index, Some(gone("its source is closed"))),
            }
        }
    }

    /// Fills the missing end of a part with zeros and remembers why.
    pub fn void(&mut self, index: usize, error: Option<Error>) {
        let part = &mut self.parts[index];
        let (filled, bytes) = (part.start + part.filled, part.start + part.bytes);
        match part.block.as_mut().and_then(Arc::get_mut) {
            Some(block) => block.as_mut_slice()[filled..bytes].fill(0),
            None => {
                let zeros = Arc::new(vec![0; part.bytes]);
                part.kept = Some(Slice::new(Owner::Vector(zeros), 0..part.bytes));
            }
        }
        let (start, end) = (
            part.run_offset + part.filled as u64,
            part.run_offset + part.bytes as u64,
        );
        part.filled = part.bytes;
        let file = part.file;
        self.void_range(file, start, end, error);
    }

    /// Remembers that `start..end` of the payload holds filler of `file`.
    pub fn void_range(&mut self, file: FileId, start: u64, end: u64, error: Option<Error>) {
        match self.voids.iter_mut().find(|void| void.file == file) {
            Some(void) => {
                void.start = void.start.min(start);
                void.end = void.end.max(end);
                void.error = void.error.take().or(error);
            }
            None => self.voids.push(Void {
                file,
                start,
                end,
                error,
            }),
        }
    }

    /// The chunks that `void` touches.
    pub fn void_chunks(&self, void: &Void) -> ChunkRange {
        let first = self.ends.partition_point(|end| *end <= void.start);
        let last = self.ends.partition_point(|end| *end < void.end);
        let last = last.min(self.ends.len() - 1);
        ChunkRange {
            first: self.run.first + first as u64,
            count: (last - first + 1) as u64,
        }
    }

    /// How many reads (of windows: populations) bring the bytes here.
    pub fn reads(&self) -> usize {
        if self.mapping.is_empty() {
            self.parts.len()
        } else {
            self.mapping.len()
        }
    }

    /// Computes the checks and the head, once all bytes are there. False when
    /// a mapped file was cut off meanwhile: nothing is computed then.
    pub fn seal(&mut self) -> bool {
        if self.mapping.is_empty() {
            let stretches = self.parts.iter().map(Part::as_bytes).collect();
            self.checks = self.compute(stretches);
        } else {
            let slices: Vec<_> = self.mapping.iter().cloned().map(mapped_slice).collect();
            let computed = watched(|watch| {
                self.compute(slices.iter().map(|slice| slice.bytes(watch)).collect())
            });
            match computed {
                Some((checks, false)) => self.checks = checks,
                _ => return false,
            }
        }
        self.write_frame_head();
        true
    }

    /// The checks of all chunks, whose payload lies end to end in `stretches`.
    fn compute(&self, stretches: Vec<&[u8]>) -> Vec<Check> {
        let seed = self.segment.seed;
        let mut checks = Vec::with_capacity(self.ends.len());
        let mut stretches = stretches.into_iter();
        let (mut rest, mut start): (&[u8], _) = (&[], 0);
        for (index, &end) in self.ends.iter().enumerate() {
            let chunk = self.run.first + index as u64;
            // A chunk's length fits: it is at most CHUNK_BYTES_MAX.
            let bytes = (end - start) as usize;
            if rest.is_empty() {
                rest = stretches.next().unwrap_or(&[]);
            }
            if let Some((own, behind)) = rest.split_at_checked(bytes) {
                checks.push(seed.check(chunk, own));
                rest = behind;
            } else {
                let mut pieces = Vec::new();
                let mut missing = bytes;
                while missing > 0 {
                    let (own, behind) = rest.split_at(missing.min(rest.len()));
                    pieces.push(own);
                    missing -= own.len();
                    rest = behind;
                    if missing > 0 {
                        let Some(next) = stretches.next() else { break };
                        rest = next;
                    }
                }
                checks.push(seed.check_pieces(chunk, bytes as u32, pieces));
            }
            start = end;
        }
        checks
    }

    fn write_frame_head(&mut self) {
        let header = FrameHeader {
            transfer: self.segment.transfer,
            segment: self.run.segment,
            first: self.run.first,
            count: self.run.count,
            payload_bytes: self.payload_bytes,
        };
        self.head.extend_from_slice(&header.encode());
        self.head.extend(self.checks.iter().flatten());
    }

    /// Writes what is left of the frame into `message`, from the parts.
    pub fn write_message(&mut self, message: &mut IoMessage) {
        self.write_head(message);
        let mapping = self.mapping.drain(..);
        message.slices.extend(mapping.map(mapped_slice));
        let mut run: Option<(Arc<Block>, Range<usize>)> = None;
        for part in self.parts.drain(..) {
            let range = part.start..part.start + part.bytes;
            let follows = |(block, before): &(Arc<Block>, Range<usize>), next: &Arc<Block>| {
                block.position() / BLOCK_BYTES == next.position() / BLOCK_BYTES
                    && before.end == block.len()
                    && range.start == 0
                    && block.position() + block.len() == next.position()
            };
            match (part.kept, part.block) {
                (Some(kept), _) => {
                    message.slices.extend(run.take().map(as_slice));
                    message.slices.push(kept);
                }
                // The parts of a cut block become one slice again: a message
                // takes 1,024 of them, and a chunk may hold more files.
                (None, Some(next)) if run.as_ref().is_some_and(|run| follows(run, &next)) => {
                    run = run.map(|(block, before)| {
                        let end = before.end + range.end;
                        (Block::join(block, next), before.start..end)
                    });
                }
                (None, Some(next)) => {
                    message
                        .slices
                        .extend(run.replace((next, range)).map(as_slice));
                    continue;
                }
                (None, None) => {}
            }
        }
        message.slices.extend(run.map(as_slice));
    }

    /// Writes what is left of the head.
    pub fn write_head(&self, message: &mut IoMessage) {
        message.clear();
        let sent = (self.frame_sent as usize).min(self.head.len());
        message.head.extend_from_slice(&self.head[sent..]);
    }

    /// Gives all blocks that are here back.
    pub fn release(&mut self, pool: &mut SendPool) {
        for part in self.parts.drain(..) {
            part.block.into_iter().for_each(|block| pool.put(block));
        }
        for message in self.left.drain(..) {
            pool.put_all(message.slices);
        }
    }

    /// The descriptor that a part is read from.
    pub fn handle(&self, part: &Part) -> Option<Handle> {
        let source = self.source(part.file)?;
        let Source::File(_) = source.as_ref() else {
            return None;
        };
        let direct = part.direct && part.filled.is_multiple_of(DIRECT_ALIGN_BYTES);
        Some(Handle::of(source, |source| descriptor(source, direct)))
    }
}

/// A stretch of a window, as the kernel takes it.
fn mapped_slice((window, range): Stretch) -> Slice {
    Slice::new(Owner::Window(window), range)
}

/// A file's descriptor. Only files have one; the caller looked.
fn descriptor(source: &Source, direct: bool) -> BorrowedFd<'_> {
    let Source::File(file) = source else {
        unreachable!("only files are read by descriptor");
    };
    match file.direct() {
        Some(descriptor) if direct => descriptor,
        _ => file.fd(),
    }
}

/// A file's page-cache descriptor, held with its source.
pub fn cached(source: &Arc<Source>) -> Handle {
    Handle::of(source, |source| descriptor(source, false))
}

fn as_slice((block, range): (Arc<Block>, Range<usize>)) -> Slice {
    Slice::new(Owner::Block(block), range)
}

fn gone(why: &str) -> Error {
    Error::local("cannot read what is to be sent", why)
}
