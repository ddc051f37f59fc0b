//! Bringing a load's bytes into memory, ahead of its turn to be sent.
//!
//! Leaves to others: sending. Invariant: a load waits in exactly one of
//! `waiting`, `unread` and `arrived`, or its reads are in flight, until it is
//! ready; it never holds a part of the blocks that it needs.

use super::job::{Job, ROOM_KEPT};
use super::layout::Part;
use super::load::{Load, Origin, Path, Stage, cached};
use super::pool::RUN_BLOCKS_MAX;
use super::worker::SendWorker;
use crate::data::SendEvent;
use crate::error::{Error, why};
use crate::files::regular::FileSource;
use crate::files::source::Source;
use crate::kernel::ring::{Completion, Outcome};
use crate::options::Transmit;
use crate::protocol::plan::Piece;
use crate::{ErrorKind, Side};
use rustix::io::Errno;
use std::sync::Arc;

/// Pieces below this are read: a mapping for each small file would cost more.
const MAPPED_PIECE_BYTES_MIN: u64 = 64 * 1024;
/// The blocks are registered for the first load that wants so many: it makes
/// all of them resident, which was a third of a small file's CPU time.
const REGISTERED_BLOCKS_MIN: usize = 2;
/// Pieces that one chain of splices moves, at most: each costs two operations
/// by a kernel worker.
const SPLICE_PIECES_MAX: usize = 16;

impl SendWorker {
    /// Starts reading for as many loads as there are blocks.
    pub fn prepare_loads(&mut self) {
        while let Some(index) = self.unread.pop_front() {
            if !self.queue_reads(index) {
                self.unread.push_front(index);
                return;
            }
        }
        while let Some((at, kept)) = self.next_waiting() {
            let index = self.waiting[at];
            let Some(mut load) = self.loads.lend(index) else {
                self.waiting.remove(at);
                continue;
            };
            if load.parts.is_empty() && load.mapping.is_empty() {
                self.choose_path(&mut load);
                if load.is_mapped() && !self.map(&mut load) {
                    load.leave_mapping();
                }
                if !load.is_mapped() {
                    load.lay();
                }
            }
            let fits = load.blocks() + kept <= self.pool.len() || load.blocks() == 0;
            if fits {
                if load.blocks() >= REGISTERED_BLOCKS_MIN {
                    self.register_blocks();
                }
                load.take_blocks(&mut self.pool);
                load.fill();
                self.note_method(&load);
            }
            self.loads.give_back(index, load);
            if !fits {
                return;
            }
            self.waiting.remove(at);
            if !self.queue_reads(index) {
                self.unread.push_back(index);
                return;
            }
        }
    }

    /// Where in `waiting` the load is that is read next, and how many blocks it
    /// has to leave. Loads that their connections send next come first, and the
    /// others leave what one of those may want: blocks of loads behind one that
    /// waits for blocks itself would never come back.
    fn next_waiting(&self) -> Option<(usize, usize)> {
        let is_next = |index: &usize| {
            let load = self.loads.get(*index);
            let connection = load
                .and_then(|load| load.place)
                .and_then(|place| self.connections.get(place));
            connection.is_none_or(|connection| connection.queue.front() == Some(index))
        };
        match self.waiting.iter().position(is_next) {
            Some(at) => Some((at, 0)),
            None if self.waiting.is_empty() => None,
            None => Some((0, RUN_BLOCKS_MAX)),
        }
    }

    /// Registers the blocks with the ring, once.
    fn register_blocks(&mut self) {
        let Some(arena) = self.unregistered.take() else {
            return;
        };
        self.report.system_calls += 1;
        if let Err(errno) = self.ring.register(&arena) {
            // Plain reads do the same with more work for each.
            self.note(&format!(
                "the sending buffers could not be registered with the kernel ({}): raise RLIMIT_MEMLOCK (`ulimit -l`) for cheaper reads",
                why(errno)
            ));
        }
    }

    /// Queues the reads of a load that were not queued yet. False when the
    /// ring has no room for all of them.
    fn queue_reads(&mut self, index: usize) -> bool {
        loop {
            let Some(load) = self.loads.get_mut(index) else {
                return true;
            };
            let next = load.next_read;
            if next == load.reads() {
                break;
            }
            let is_full = |part: &Part| part.filled == part.bytes;
            if load.parts.get(next).is_some_and(is_full) {
                load.next_read += 1;
                continue;
            }
            if self.ring.room() <= ROOM_KEPT {
                return false;
            }
            load.next_read += 1;
            match load.mapping.get(next).cloned() {
                Some((window, range)) => {
                    load.reading += 1;
                    let token = self.token(Job::Populate { load: index });
                    self.ring.populate(window, range, token);
                    self.done_at_once += 1;
                }
                None => self.queue_read(index, next),
            }
        }
        self.look_whether_read(index);
        true
    }

    /// Queues the read of what a part misses.
    fn queue_read(&mut self, index: usize, number: usize) {
        let token = self.token(Job::Read {
            load: index,
            part: number,
        });
        let Some(load) = self.loads.get_mut(index) else {
            return;
        };
        let part = &load.parts[number];
        let (range, offset) = part.missing();
        let at_once = !part.direct && !load.is_cold(part);
        let handle = load.handle(part);
        let part = &mut load.parts[number];
        if let (Some(handle), Some(block)) = (handle, part.block.take()) {
            load.reading += 1;
            self.done_at_once += usize::from(at_once);
            self.ring.read(&handle, block, range, offset, token);
        }
    }

    /// A read completed.
    pub fn part_read(&mut self, index: usize, number: usize, completion: Completion) {
        let (Outcome::Done(result), Some(block)) =
            (completion.outcome, completion.loan.into_block())
        else {
            return;
        };
        let Some(load) = self.loads.get_mut(index) else {
            return self.pool.put(block);
        };
        load.reading -= 1;
        let part = &mut load.parts[number];
        part.block = Some(block);
        if load.place.is_none() {
            if load.reading == 0 {
                load.release(&mut self.pool);
                self.loads.remove(index);
            }
            return;
        }
        let again = match result {
            Ok(0) => {
                load.void(number, None);
                false
            }
            Ok(count) => {
                // A direct read is rounded up and may bring more than the part.
                part.filled = part.bytes.min(part.filled + count as usize);
                part.filled < part.bytes
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(Errno::INVAL | Errno::OPNOTSUPP) if part.direct => {
                part.direct = false;
                true
            }
            Err(errno) => {
                let error = load.read_error(number, errno);
                load.void(number, Some(error));
                false
            }
        };
        if again {
            self.queue_read(index, number);
        } else {
            self.look_whether_read(index);
        }
    }

    fn look_whether_read(&mut self, index: usize) {
        if let Some(load) = self.loads.get_mut(index)
            && load.stage == Stage::Reading
            && load.reading == 0
            && load.next_read == load.reads()
        {
            load.stage = Stage::Read;
            self.arrived.push_back(index);
        }
    }

    /// Computes the checks of what arrived.
    pub fn seal_loads(&mut self) {
        while let Some(index) = self.arrived.pop_front() {
            let Some(mut load) = self.loads.lend(index) else {
                continue;
            };
            let cut_off = !load.is_mapped() && !load.mapping.is_empty();
            if cut_off || load.checks.is_empty() && !load.seal() {
                // What its windows showed may be filler by now.
                self.windows.clear();
                load.leave_mapping();
                load.mapping.clear();
                load.stage = Stage::Waiting;
                self.loads.give_back(index, load);
                self.waiting.push_front(index);
                continue;
            }
            load.stage = Stage::Ready;
            let whole = load.voids.is_empty() && !load.is_rest();
            if load.path == Path::Splice {
                if whole {
                    load.release(&mut self.pool);
                    load.mapping.clear();
                } else {
                    // Filler is not in the file.
                    load.path = Path::Copy;
                }
            }
            self.tell_voids(&mut load);
            self.loads.give_back(index, load);
        }
    }

    /// Lays the payload in mapping windows. False when a file cannot be mapped.
    fn map(&mut self, load: &mut Load) -> bool {
        let mut mapping = Vec::new();
        let Some(files) = load.files() else {
            return false;
        };
        for (source, file, piece) in files {
            match self
                .windows
                .cover(source, file.fd(), piece.file_offset, piece.bytes)
            {
                Ok(stretches) => mapping.extend(stretches),
                Err(_) => return false,
            }
        }
        load.mapping = mapping;
        load.next_read = 0;
        true
    }

    /// A stretch of a mapping has its page tables, or cannot get them.
    pub fn populated(&mut self, index: usize, completion: Completion) {
        let Outcome::Done(result) = completion.outcome else {
            return;
        };
        let Some(load) = self.loads.get_mut(index) else {
            return;
        };
        load.reading -= 1;
        // Past the file's end it is EFAULT: the file was cut off. A call that
        // was only interrupted leaves its pages to be faulted in.
        if !matches!(result, Ok(_) | Err(Errno::INTR | Errno::AGAIN)) {
            load.leave_mapping();
        }
        if load.place.is_some() {
            self.look_whether_read(index);
        } else if load.reading == 0 {
            load.release(&mut self.pool);
            self.loads.remove(index);
        }
    }

    /// Tells what of a load is filler, before it is told to be sent.
    pub fn tell_voids(&mut self, load: &mut Load) {
        for void in std::mem::take(&mut load.voids) {
            let chunks = load.void_chunks(&void);
            let error = void.error.or_else(|| {
                let name = load.source(void.file)?.display();
                let sentence = format!("{name} was cut short: it changed while it was read");
                Some(Error::new(ErrorKind::Integrity, sentence).at(Side::Sender))
            });
            self.tell(SendEvent::Void {
                transfer: load.segment.transfer,
                segment: load.run.segment,
                file: void.file,
                chunks,
                error,
            });
        }
    }

    /// Decides how a load goes, by what was asked for, what its sources are
    /// and what its connection found out.
    fn choose_path(&mut self, load: &mut Load) {
        let connection = load.place.and_then(|place| self.connections.get(place));
        let Some(connection) = connection.filter(|_| !load.is_rest()) else {
            load.path = Path::Copy;
            return;
        };
        let (direct, warm, files) = match load.files() {
            Some(files) => {
                let direct = files.iter().any(|(_, file, _)| file.direct().is_some());
                // A look through a mapping gives a hole in memory storage.
                let aside = |file: &FileSource| file.is_cold() || file.has_holes();
                let aside = files.iter().any(|(_, file, _)| aside(file));
                (direct, !direct && !aside, true)
            }
            None => (false, false, false),
        };
        let transmit = load.segment.transmit;
        load.path = match transmit {
            Transmit::Copy => Path::Copy,
            Transmit::Splice if files && (1..=SPLICE_PIECES_MAX).contains(&load.pieces.len()) => {
                Path::Splice
            }
            Transmit::Splice => Path::Copy,
            Transmit::Zerocopy if connection.refused_zero_copy => Path::Copy,
            Transmit::Zerocopy => Path::ZeroCopy,
            // Blocks would be bound for a round trip, and a cold disk is
            // slower than the copy.
            Transmit::Auto if !files || direct || connection.refused_zero_copy => Path::Copy,
            Transmit::Auto => connection.auto,
        };
        let large = |piece: &Piece| piece.bytes >= MAPPED_PIECE_BYTES_MIN;
        if load.origin == Origin::Open {
            load.origin = match warm && load.pieces.iter().all(large) {
                true => Origin::Mapping,
                false => Origin::Blocks,
            };
        }
        if transmit == Transmit::Splice && !files {
            let sources: Vec<_> = load.pieces.iter().map(|piece| piece.file).collect();
            for file in sources {
                let refused = load
                    .source(file)
                    .and_then(|source| super::refuses(transmit, source));
                if let Some(error) = refused {
                    load.void_file(file, error);
                }
            }
        }
        if transmit == Transmit::Splice && files && load.path == Path::Copy {
            self.note("small files that share a chunk were copied: splice pays for large ones");
        }
        if transmit == Transmit::Zerocopy && load.path == Path::Copy {
            self.refuse_zero_copy(load);
        }
    }

    /// Zero-copy was asked for and cannot be had: the files fail, because
    /// nothing is silently weaker than asked.
    pub fn refuse_zero_copy(&self, load: &mut Load) {
        let sources: Vec<_> = load.pieces.iter().map(|piece| piece.file).collect();
        for file in sources {
            let name = load
                .source(file)
                .map_or("a source", |source| source.display());
            let why = if self.knows_zero_copy {
                "the kernel may not pin enough memory for it"
            } else {
                "this kernel does not know SENDMSG_ZC"
            };
            let error = Error::new(
                ErrorKind::Incompatible,
                format!("cannot send {name} without a copy: {why}"),
            )
            .cure("raise RLIMIT_MEMLOCK (`ulimit -l`), or use --transmit auto")
            .at(Side::Sender);
            load.void_file(file, error);
        }
    }

    /// Adds a note to the report, once.
    pub fn note(&mut self, note: &str) {
        if !self.report.notes.iter().any(|old| old == note) {
            self.report.notes.push(note.to_owned());
        }
    }

    fn note_method(&mut self, load: &Load) {
        let method = match load
            .pieces
            .first()
            .and_then(|piece| load.source(piece.file))
        {
            Some(source) => match source.as_ref() {
                Source::Generated(_) => "generated",
                Source::Stream(_) => "stream",
                Source::Missing(_) | Source::Later(_) | Source::Node(_) => return,
                Source::File(_) if load.is_mapped() => "mapping",
                Source::File(_) if load.parts.iter().any(|part| part.direct) => "direct read",
                Source::File(_) => "buffered read",
            },
            None => return,
        };
        self.methods.insert(method);
    }

    /// With `--drop-cache`: what went leaves the page cache.
    pub fn forget_pages(&mut self, load: &Load) {
        if !load.segment.drop_cache {
            return;
        }
        for piece in &load.pieces {
            let Some(source) = load.source(piece.file) else {
                continue;
            };
            let cached_by_us =
                matches!(source.as_ref(), Source::File(file) if file.direct().is_none());
            if cached_by_us && self.ring.room() > ROOM_KEPT {
                let handle = cached(&Arc::clone(source));
                let token = self.token(Job::Aside);
                self.ring
                    .forget_pages(&handle, piece.file_offset, piece.bytes, token);
            }
        }
    }
}
