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
//!  target (tmpfs) ─ map ─ one page for each huge page ─ gather one ─ the rest ─→ ready
//!                                (a look at it)          (a kernel worker)
//!                                                        └ slow: its bytes are written
//! ```

use super::connection::InFlight;
use super::frame::Spot;
use super::segment::target;
use super::state::{RING_ROOM_MIN, ReceiveWorker};
use super::token;
use super::windows::{Gathering, LandingWindows, MadeWindow, WindowState};
use crate::data::ReceiveSegment;
use crate::error::why;
use crate::files::target::{Sink, Target};
use crate::kernel::fault::watched;
use crate::kernel::huge::HugeWindow;
use crate::kernel::page::HUGE_PAGE_BYTES;
use crate::protocol::{ChunkId, FileId};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Bytes of one window: 8, 16 and 32 MiB did the same.
const WINDOW_BYTES: u64 = 16 * 1024 * 1024;
/// Windows that are made ahead of the one that payload comes into, each by a
/// kernel worker of its own: gathering then keeps up where memory is slow to get.
const WINDOWS_AHEAD: u64 = 2;
/// Windows that are kept beside those that connections need.
const WINDOWS_MIN: usize = 4;
/// Gathering is asked for again this often where a page was busy.
const GATHERED_AGAIN_MAX: u8 = 3;

const _: () = assert!(WINDOW_BYTES.is_multiple_of(HUGE_PAGE_BYTES as u64));

/// Whether the next of a frame can be received in place.
pub enum SpotFound {
    /// It goes through a block.
    Not,
    /// Its window is being made.
    Soon,
    /// These chunks and bytes, there.
    At(Spot, Range<ChunkId>, usize),
}

impl ReceiveWorker {
    /// Whether the next of the connection's frame can be received in place;
    /// starts making the window that it needs, and those behind that.
    pub(super) fn find_spot(&mut self, slot: usize) -> SpotFound {
        let Some((segment, frame)) = self
            .connections
            .get(slot)
            .and_then(|connection| connection.frame.as_ref())
            .and_then(|frame| Some((frame.landing()?.clone(), frame)))
        else {
            return SpotFound::Not;
        };
        if segment.keeps_sums || self.is_over(&segment) {
            return SpotFound::Not;
        }
        let (chunks, bytes) = frame.fitting(&segment, frame.block_bytes());
        // A block holds at most RUN_CHUNKS_MAX chunks.
        let count = (chunks.end - chunks.start) as u32;
        let mut pieces = segment.plan.pieces(chunks.start, count);
        let (Some(piece), None) = (pieces.next(), pieces.next()) else {
            return SpotFound::Not;
        };
        let Some(target) = self.wanted(&segment, piece.file) else {
            return SpotFound::Not;
        };
        let (start, most) = (piece.file_offset, target.in_place_bytes());
        let offset = start - start % WINDOW_BYTES;
        let end = most.min(offset + WINDOW_BYTES);
        // Up to the window's end; what is behind goes into the next.
        let (chunks, bytes) = match end.checked_sub(start) {
            Some(room) if room < bytes as u64 => frame.fitting(&segment, room as usize),
            Some(_) => (chunks, bytes),
            None => return SpotFound::Not,
        };
        if bytes == 0 {
            return SpotFound::Not;
        }
        let target = target.clone();
        let state = self.window(&target, offset, most);
        for ahead in 1..=WINDOWS_AHEAD {
            let next = offset + ahead * WINDOW_BYTES;
            if next < most && self.windows.place_of(&target, next).is_none() {
                self.make_window(&target, next, most);
            }
        }
        match state {
            Some(WindowState::Ready(window)) => {
                let spot = Spot {
                    window,
                    start: (start - offset) as usize,
                    file: piece.file,
                };
                SpotFound::At(spot, chunks, bytes)
            }
            Some(WindowState::Gathering(..)) => SpotFound::Soon,
            Some(WindowState::Written) | None => SpotFound::Not,
        }
    }

    /// The window there; `None` where there can be none now.
    fn window(&mut self, target: &Arc<Target>, offset: u64, most: u64) -> Option<WindowState> {
        let place = match self.windows.place_of(target, offset) {
            Some(place) => place,
            None => {
                self.make_window(target, offset, most);
                self.windows.place_of(target, offset)?
            }
        };
        let entry = self.windows.entries.remove(place);
        let state = match &entry.state {
            WindowState::Ready(window) => WindowState::Ready(window.clone()),
            WindowState::Gathering(gathering) => WindowState::Gathering(*gathering),
            WindowState::Written => WindowState::Written,
        };
        self.windows.entries.push(entry);
        Some(state)
    }

    /// Starts making a window, if there is room for it.
    fn make_window(&mut self, target: &Arc<Target>, offset: u64, most: u64) {
        let Sink::File { fd, .. } = target.sink() else {
            return;
        };
        if self.ring.room() <= RING_ROOM_MIN {
            return;
        }
        if !self.windows.pace.gathers() {
            return self.keep_window(target, offset, |_, _| WindowState::Written);
        }
        // At most WINDOW_BYTES.
        let bytes = (most - offset).min(WINDOW_BYTES) as usize;
        let fd: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(fd);
        self.counts.system_calls += 2;
        // Gathering passes over huge pages that hold nothing at all.
        let made = HugeWindow::map(fd, offset, bytes).and_then(|window| {
            match watched(|watch| window.touch(watch)) {
                Some(((), false)) => Ok(Arc::new(window)),
                _ => Err(Errno::NOSPC),
            }
        });
        let window = match made {
            Ok(window) => window,
            Err(errno) => return self.refuse_in_place(target, errno),
        };
        self.keep_window(target, offset, |worker, number| {
            if window.huge_bytes() == 0 {
                return WindowState::Ready(window);
            }
            let since = worker.clock.now();
            worker.gather(
                number,
                window,
                Gathering {
                    first: true,
                    times: 1,
                    since,
                },
            )
        });
    }

    /// Starts gathering a part of a window.
    fn gather(
        &mut self,
        number: usize,
        window: Arc<HugeWindow>,
        gathering: Gathering,
    ) -> WindowState {
        let range = gathering.range(&window);
        self.ring.gather(window, &range, token::gather(number));
        WindowState::Gathering(gathering)
    }

    /// Keeps what `begin` makes of a window's number; the one that was not used
    /// for the longest time goes where there are too many.
    fn keep_window(
        &mut self,
        target: &Arc<Target>,
        offset: u64,
        begin: impl FnOnce(&mut Self, usize) -> WindowState,
    ) {
        let connections = self.connections.iter().count();
        if self.windows.entries.len() >= WINDOWS_MIN + (1 + WINDOWS_AHEAD as usize) * connections {
            self.windows.entries.remove(0);
            self.counts.system_calls += 1;
        }
        let number = self.windows.numbers;
        self.windows.numbers += 1;
        let state = begin(self, number);
        self.windows.entries.push(MadeWindow {
            number,
            target: target.clone(),
            offset,
            state,
        });
    }

    /// A window was gathered, or could not be.
    pub(super) fn gathered(
        &mut self,
        number: usize,
        window: Arc<HugeWindow>,
        result: Result<u32, Errno>,
    ) {
        let now = self.clock.now();
        let LandingWindows { entries, pace, .. } = &mut self.windows;
        let Some(place) = entries.iter().position(|entry| entry.number == number) else {
            // Let go meanwhile.
            return;
        };
        let WindowState::Gathering(gathering) = entries[place].state else {
            return;
        };
        let room = self.ring.room() > RING_ROOM_MIN;
        let state = match result {
            Ok(_) if gathering.first && !pace.first(now.saturating_sub(gathering.since)) => {
                WindowState::Written
            }
            Ok(_) if gathering.first && window.huge_bytes() > HUGE_PAGE_BYTES && room => {
                let rest = Gathering {
                    first: false,
                    times: 1,
                    since: now,
                };
                self.gather(number, window, rest)
            }
            // Without room for the rest it is received into what is there.
            Ok(_) => WindowState::Ready(window),
            Err(Errno::AGAIN | Errno::BUSY | Errno::INTR)
                if gathering.times < GATHERED_AGAIN_MAX && room =>
            {
                let again = Gathering {
                    times: gathering.times + 1,
                    ..gathering
                };
                self.gather(number, window, again)
            }
            Err(errno) => {
                let entry = self.windows.entries.remove(place);
                self.counts.system_calls += 1;
                return self.refuse_in_place(&entry.target, errno);
            }
        };
        self.windows.entries[place].state = state;
    }

    /// No further window of the target is tried: its bytes are written.
    fn refuse_in_place(&mut self, target: &Target, errno: Errno) {
        target.refuse_in_place();
        let why = why(errno);
        self.counts.note(format!(
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
        self.counts.system_calls += (before - self.windows.entries.len()) as u64;
        let key = (segment.transfer, segment.segment);
        for (slot, connection) in self.connections.iter() {
            if connection.in_flight == InFlight::InPlace(key) {
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
