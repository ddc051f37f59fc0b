//! Receiving straight into targets in memory: windows on huge pages, made a
//! little ahead of the payload that comes into them.
//!
//! Leaves to others: receiving and checking; what does not lie in a window goes
//! through blocks and writes. Invariants: payload is received in place only
//! under the ledger's grant, so no two receives fill the same bytes; making a
//! window changes nothing that the file holds; a window lives while a receive
//! into it is in flight.
//!
//! ```text
//!  target (tmpfs) ─ map ─ one page for each huge page ─ gather ─→ ready
//!                                  (fallocate)       (a kernel worker)
//! ```

use super::connection::Receiving;
use super::landing::{RING_ROOM_MIN, target};
use super::why;
use super::worker::{Worker, token};
use crate::data::ReceiveSegment;
use crate::files::target::{Sink, Target};
use crate::kernel::huge::{HUGE_PAGE_BYTES, HugeWindow};
use crate::limits;
use crate::protocol::{ChunkId, FileId};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Bytes of one window.
const WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// Windows that are kept beside those that connections need.
const WINDOWS_MIN: usize = 4;
/// Gathering is asked for again this often where a page was busy.
const GATHERED_AGAIN_MAX: u8 = 3;

const _: () = assert!(WINDOW_BYTES.is_multiple_of(HUGE_PAGE_BYTES as u64));

/// Where in a window a filling lies.
#[derive(Clone)]
pub struct Spot {
    /// The window.
    pub window: Arc<HugeWindow>,
    /// Where in the window its first byte goes.
    pub start: usize,
    /// The file, which is the only one in it.
    pub file: FileId,
}

/// Whether the next of a frame can be received in place.
pub enum Found {
    /// It goes through a block.
    Not,
    /// Its window is being made.
    Soon,
    /// These chunks and bytes, there.
    At(Spot, Range<ChunkId>, usize),
}

/// A window, and whether it may be received into.
struct Entry {
    number: usize,
    target: Arc<Target>,
    window: Arc<HugeWindow>,
    /// How often gathering was asked for, while it is in flight.
    gathering: Option<u8>,
}

/// A worker's windows; the one used last is the last.
#[derive(Default)]
pub struct Windows {
    entries: Vec<Entry>,
    numbers: usize,
}

impl Windows {
    fn place_of(&self, target: &Arc<Target>, offset: u64) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| Arc::ptr_eq(&entry.target, target) && entry.window.offset() == offset)
    }
}

impl Worker {
    /// Whether the next of the connection's frame can be received in place;
    /// starts making the window that it needs, and the one behind that.
    pub(super) fn find_spot(&mut self, slot: usize) -> Found {
        let Some((segment, frame)) = self
            .connections
            .get(slot)
            .and_then(|connection| connection.frame.as_ref())
            .and_then(|frame| Some((frame.landing()?.clone(), frame)))
        else {
            return Found::Not;
        };
        if segment.verify || self.is_over(&segment) {
            return Found::Not;
        }
        let (chunks, bytes) = frame.fitting(&segment, limits::BLOCK_BYTES);
        // A block holds at most RUN_CHUNKS_MAX chunks.
        let count = (chunks.end - chunks.start) as u32;
        let mut pieces = segment.plan.pieces(chunks.start, count);
        let (Some(piece), None) = (pieces.next(), pieces.next()) else {
            return Found::Not;
        };
        let Some(target) = self.wanted(&segment, piece.file) else {
            return Found::Not;
        };
        let (start, most) = (piece.file_offset, target.in_place_bytes());
        let offset = start - start % WINDOW_BYTES;
        let end = most.min(offset + WINDOW_BYTES);
        // Up to the window's end; what is behind goes into the next.
        let (chunks, bytes) = match end.checked_sub(start) {
            Some(room) if room < bytes as u64 => frame.fitting(&segment, room as usize),
            Some(_) => (chunks, bytes),
            None => return Found::Not,
        };
        if bytes == 0 {
            return Found::Not;
        }
        let target = target.clone();
        let Some(window) = self.window(&target, offset, most) else {
            return Found::Not;
        };
        if end < most && self.windows.place_of(&target, end).is_none() {
            self.make_window(&target, end, most);
        }
        match window {
            Some(window) => {
                let start = (start - offset) as usize;
                let file = piece.file;
                Found::At(
                    Spot {
                        window,
                        start,
                        file,
                    },
                    chunks,
                    bytes,
                )
            }
            None => Found::Soon,
        }
    }

    /// The window there, where it is ready; `None` where there can be none.
    fn window(
        &mut self,
        target: &Arc<Target>,
        offset: u64,
        most: u64,
    ) -> Option<Option<Arc<HugeWindow>>> {
        let place = match self.windows.place_of(target, offset) {
            Some(place) => place,
            None => {
                self.make_window(target, offset, most);
                self.windows.place_of(target, offset)?
            }
        };
        let entry = self.windows.entries.remove(place);
        let ready = entry.gathering.is_none().then(|| entry.window.clone());
        self.windows.entries.push(entry);
        Some(ready)
    }

    /// Starts making a window, if there is room for it.
    fn make_window(&mut self, target: &Arc<Target>, offset: u64, most: u64) {
        let Sink::File { fd, .. } = target.sink() else {
            return;
        };
        if self.ring.room() <= RING_ROOM_MIN {
            return;
        }
        // At most WINDOW_BYTES.
        let bytes = (most - offset).min(WINDOW_BYTES) as usize;
        let fd: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(fd);
        self.tally.system_calls += 2 + bytes.div_ceil(HUGE_PAGE_BYTES) as u64;
        let made = HugeWindow::map(fd, offset, bytes).and_then(|window| {
            // Gathering passes over huge pages that hold nothing at all. Bytes
            // that are there already stay as they are.
            for start in (offset..offset + bytes as u64).step_by(HUGE_PAGE_BYTES) {
                rustix::fs::fallocate(fd, FallocateFlags::KEEP_SIZE, start, 1)?;
            }
            Ok(Arc::new(window))
        });
        let window = match made {
            Ok(window) => window,
            Err(errno) => return self.refuse_in_place(target, errno),
        };
        let connections = self.connections.iter().count();
        if self.windows.entries.len() >= WINDOWS_MIN + 2 * connections {
            self.windows.entries.remove(0);
            self.tally.system_calls += 1;
        }
        let number = self.windows.numbers;
        self.windows.numbers += 1;
        self.ring.gather(window.clone(), token::gather(number));
        self.windows.entries.push(Entry {
            number,
            target: target.clone(),
            window,
            gathering: Some(1),
        });
    }

    /// A window was gathered, or could not be.
    pub(super) fn gathered(&mut self, number: usize, result: Result<u32, Errno>) {
        let entries = &mut self.windows.entries;
        let Some(place) = entries.iter().position(|entry| entry.number == number) else {
            // Let go meanwhile.
            return;
        };
        let entry = &mut entries[place];
        match (result, entry.gathering) {
            (Ok(_), _) => entry.gathering = None,
            (Err(Errno::AGAIN | Errno::BUSY | Errno::INTR), Some(times))
                if times < GATHERED_AGAIN_MAX && self.ring.room() > RING_ROOM_MIN =>
            {
                entry.gathering = Some(times + 1);
                self.ring
                    .gather(entry.window.clone(), token::gather(number));
            }
            (Err(errno), _) => {
                let entry = entries.remove(place);
                self.tally.system_calls += 1;
                self.refuse_in_place(&entry.target, errno);
            }
        }
    }

    /// No further window of the target is tried: its bytes are written.
    fn refuse_in_place(&mut self, target: &Target, errno: Errno) {
        target.refuse_in_place();
        let why = why(errno);
        self.tally.note(format!(
            "no huge pages could be had for a target in memory ({why}), so its bytes were received in buffers and written"
        ));
    }

    /// Lets the segment's windows go, and ends receives into them.
    pub(super) fn abandon_in_place(&mut self, segment: &ReceiveSegment) {
        let of_it = |target: &Arc<Target>| {
            let mut targets = segment.targets.iter().flatten();
            targets.any(|other| Arc::ptr_eq(other, target))
        };
        let before = self.windows.entries.len();
        self.windows.entries.retain(|entry| !of_it(&entry.target));
        self.tally.system_calls += (before - self.windows.entries.len()) as u64;
        let key = (segment.transfer, segment.segment);
        for (slot, connection) in self.connections.iter() {
            if connection.receiving == Receiving::InPlace(key) {
                // It completes with what came until now.
                self.ring.cancel(token::receive(slot));
            }
        }
    }

    fn wanted<'a>(&self, segment: &'a ReceiveSegment, file: FileId) -> Option<&'a Arc<Target>> {
        if self.is_wanted(segment, file) {
            target(segment, file)
        } else {
            None
        }
    }
}
