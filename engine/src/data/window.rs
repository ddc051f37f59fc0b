//! Mapping windows that slide over the sources that are being sent.
//!
//! Leaves to others: which bytes are sent. Invariant: at most [`WINDOWS`]
//! windows are mapped by this cache, whatever the size or number of the
//! sources; those behind are unmapped as soon as no send holds them.

use crate::files::source::Source;
use crate::kernel::memory::Window;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Bytes of one window: mapping and unmapping cost 3–6 % of the wall time at
/// 4 MiB and nothing to speak of from 16 MiB on. Its page tables take 64 KiB.
pub const WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// Windows kept for the next run: runs of several connections lie near each
/// other in the same few files. What is kept is unmapped at the end, at 1.2 ms
/// a window that was all sent: eight were 4 % of 587 MiB on tmpfs.
pub const WINDOWS: usize = 3;

/// A range of a window.
pub type Stretch = (Arc<Window>, Range<usize>);

/// The windows mapped last.
#[derive(Default)]
pub struct Windows {
    mapped: VecDeque<(Arc<Source>, Arc<Window>)>,
    /// Behind the sources, and still mapped.
    retired: Vec<Arc<Window>>,
    /// mmap and munmap calls since they were last asked for.
    system_calls: u64,
}

impl Windows {
    /// The windows that hold `bytes` of `source` from `offset`, each with the
    /// range of it, in order. `file` is the source's descriptor.
    ///
    /// # Errors
    /// The errno of mmap(2).
    pub fn cover(
        &mut self,
        source: &Arc<Source>,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<Stretch>, Errno> {
        let end = offset + bytes;
        let mut covered = Vec::new();
        let mut next = offset;
        while next < end {
            let start = next - next % WINDOW_BYTES;
            let stop = end.min(start + WINDOW_BYTES);
            let window = self.window(source, file, start)?;
            covered.push((window, (next - start) as usize..(stop - start) as usize));
            next = stop;
        }
        Ok(covered)
    }

    fn window(
        &mut self,
        source: &Arc<Source>,
        file: BorrowedFd<'_>,
        start: u64,
    ) -> Result<Arc<Window>, Errno> {
        let found = self
            .mapped
            .iter()
            .position(|(of, window)| Arc::ptr_eq(of, source) && window.offset() == start);
        if let Some(entry) = found.and_then(|place| self.mapped.remove(place)) {
            let window = entry.1.clone();
            self.mapped.push_back(entry);
            return Ok(window);
        }
        if self.mapped.len() == WINDOWS
            && let Some((_, window)) = self.mapped.pop_front()
        {
            self.system_calls += 1;
            self.retired.push(window);
        }
        self.system_calls += 1;
        let window = Arc::new(Window::map(file, start, WINDOW_BYTES as usize)?);
        self.mapped.push_back((source.clone(), window.clone()));
        Ok(window)
    }

    /// True when none is mapped.
    pub fn is_empty(&self) -> bool {
        self.mapped.is_empty()
    }

    /// A window that is behind. Its pages should leave the page table by a
    /// kernel worker: unmapping 32 MiB of single pages takes 1.2 ms here. 1.7
    /// GiB from tmpfs to a null sink over one connection took 0.52 s like that
    /// against 0.57 s (medians of 9).
    pub fn take_retired(&mut self) -> Option<Arc<Window>> {
        self.retired.pop()
    }

    /// Unmaps all that no send holds; for when a transfer is over.
    pub fn clear(&mut self) {
        self.system_calls += self.mapped.len() as u64;
        self.mapped.clear();
        self.retired.clear();
    }

    /// System calls made since the last time this was asked.
    pub fn take_system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.system_calls)
    }
}
