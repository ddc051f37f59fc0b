//! The windows of a worker, and whether huge pages are worth asking for.
//!
//! Leaves to others: making and gathering them. Invariant: each part of a target
//! has one window at most.

use crate::files::target::Target;
use crate::kernel::huge::HugeWindow;
use crate::kernel::page::HUGE_PAGE_BYTES;
use crate::protocol::Nanos;
use std::ops::Range;
use std::sync::Arc;

/// A window's first huge page is slow to get from here on, and the window is
/// written instead. A page takes 0.1 ms and up to 2 ms of waiting for
/// processors, but 3 ms and more where the host of a virtual machine took back
/// what was free, or memory in pieces has to be compacted first. 587 MiB into
/// memory that the host had taken took 0.33 to 0.44 s like this and 0.52 to
/// 0.62 s on huge pages throughout (medians of 9, runs 3 s apart).
const FIRST_NANOS_MAX: u64 = 4_000_000;
/// So many windows are written without trying when two in a row were slow;
/// twice as many each time that the next is slow again, …
const WRITTEN_WINDOWS_MIN: u32 = 8;
/// … up to this.
const WRITTEN_WINDOWS_MAX: u32 = 64;
/// Whether a window may be received into.
pub(super) enum WindowState {
    /// Gathering is in flight.
    Gathering(Gathering),
    /// It may.
    Ready(Arc<HugeWindow>),
    /// It has no window: what lies there is written.
    Written,
}

/// What is being gathered of a window: its first huge page, which tells how
/// slow it is, then the rest.
#[derive(Clone, Copy)]
pub(super) struct Gathering {
    /// False once the rest is.
    pub(super) first: bool,
    /// How often it was asked for.
    pub(super) times: u8,
    pub(super) since: Nanos,
}

impl Gathering {
    pub(super) fn range(&self, window: &HugeWindow) -> Range<usize> {
        let end = window.huge_bytes();
        if self.first {
            0..HUGE_PAGE_BYTES.min(end)
        } else {
            HUGE_PAGE_BYTES.min(end)..end
        }
    }
}

/// A window's part of a target.
pub(super) struct MadeWindow {
    pub(super) number: usize,
    pub(super) target: Arc<Target>,
    pub(super) offset: u64,
    pub(super) state: WindowState,
}

/// A worker's windows; the one used last is the last.
pub(super) struct LandingWindows {
    pub(super) entries: Vec<MadeWindow>,
    pub(super) numbers: usize,
    pub(super) pace: Pace,
}

impl LandingWindows {
    /// None yet.
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            entries: Vec::new(),
            numbers: 0,
            pace,
        }
    }

    /// Where the window of that part of the target stands.
    pub(super) fn place_of(&self, target: &Arc<Target>, offset: u64) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| Arc::ptr_eq(&entry.target, target) && entry.offset == offset)
    }
}

/// Whether huge pages are worth asking for at present.
pub struct Pace {
    /// A first huge page that took longer is slow.
    first_nanos_max: Nanos,
    /// Windows that are still to be written without asking.
    writing: u32,
    /// How many it was last; 0 where the last window was not slow.
    before: u32,
    /// The last window was slow, for the first time.
    doubts: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self::with(FIRST_NANOS_MAX)
    }
}

impl Pace {
    /// One that calls a first huge page slow from there on.
    pub fn with(first_nanos_max: Nanos) -> Self {
        Self {
            first_nanos_max,
            writing: 0,
            before: 0,
            doubts: false,
        }
    }

    /// Whether the next window is to be gathered.
    pub(super) fn gathers(&mut self) -> bool {
        let gathers = self.writing == 0;
        self.writing = self.writing.saturating_sub(1);
        gathers
    }

    /// The first huge page of a window took `nanos`: whether it is worth the rest.
    pub(super) fn first(&mut self, nanos: Nanos) -> bool {
        let slow = nanos > self.first_nanos_max;
        if !slow {
            (self.before, self.doubts) = (0, false);
        } else if !self.doubts {
            // A worker that had to wait for a processor looks the same.
            self.doubts = true;
        } else if self.writing == 0 {
            // Windows that were asked for together count once.
            self.before = (self.before * 2).clamp(WRITTEN_WINDOWS_MIN, WRITTEN_WINDOWS_MAX);
            self.writing = self.before;
        }
        !slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_memory_is_tried_ever_less_often_and_fast_makes_good() {
        let mut pace = Pace::default();
        let until_gathers = |pace: &mut Pace| (0..).take_while(|_| !pace.gathers()).count();
        let slow = FIRST_NANOS_MAX + 1;
        assert_eq!(until_gathers(&mut pace), 0);
        assert!(pace.first(FIRST_NANOS_MAX));
        assert!(!pace.first(slow));
        assert_eq!(until_gathers(&mut pace), 0, "once is chance");
        assert!(!pace.first(slow));
        // Asked for together with the last: it counts once.
        assert!(!pace.first(slow));
        assert_eq!(until_gathers(&mut pace), 8);
        assert!(!pace.first(slow));
        assert_eq!(until_gathers(&mut pace), 16);
        for _ in 0..9 {
            pace.first(slow);
            until_gathers(&mut pace);
        }
        pace.first(slow);
        assert_eq!(until_gathers(&mut pace), 64);
        assert!(pace.first(1000));
        pace.first(slow);
        pace.first(slow);
        assert_eq!(until_gathers(&mut pace), 8);
    }
}
