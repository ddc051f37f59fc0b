//! Parts of files in memory (tmpfs), mapped on huge pages, to receive into.
//!
//! Leaves to others: which bytes go where, and asking for the huge pages (the
//! ring's `gather`). Invariant: a window's bytes are filled by the kernel and
//! by [`HugeWindow::fill`] only, and user code looks at them inside a watch
//! only, since a file that is cut off would answer with SIGBUS.
//!
//! A fresh page of a memory file costs more than what is copied into it: its
//! allocation, its accounting and its place in the page cache, 4 KiB at a time,
//! under a lock of the whole file. MADV_COLLAPSE gathers 2 MiB of a file into
//! one huge page whatever the mount says, and a huge page is entered once.
//! Measured (587 MiB, 2 cores, Linux 6.18, medians of 6): writing a fresh file
//! 0.22 s; gathering 0.036 s and writing through the mapping 0.037 s.

use super::fault::Watch;
use super::page::{HUGE_PAGE_BYTES, PAGE_BYTES};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// A part of a file, mapped shared and writable, where huge pages fit.
#[derive(Debug)]
pub struct HugeWindow {
    /// What was reserved, and is unmapped at the end.
    reserved: NonNull<u8>,
    reserved_bytes: usize,
    /// Where the file's part begins, at a huge page's boundary.
    base: NonNull<u8>,
    bytes: usize,
    offset: u64,
}

// SAFETY: a window is plain memory without thread affinity, and nothing in it
// is reached but through the methods below.
unsafe impl Send for HugeWindow {}
// SAFETY: as above; its bytes may change under a reader, which `bytes` says.
unsafe impl Sync for HugeWindow {}

impl HugeWindow {
    /// Maps `bytes` of `file` from `offset`, a multiple of [`HUGE_PAGE_BYTES`].
    ///
    /// # Errors
    /// The errno of mmap(2), or EINVAL where huge pages do not begin.
    pub fn map(file: BorrowedFd<'_>, offset: u64, bytes: usize) -> Result<Self, Errno> {
        if bytes == 0 || !offset.is_multiple_of(HUGE_PAGE_BYTES as u64) {
            return Err(Errno::INVAL);
        }
        // Room to begin at a huge page's boundary.
        let reserved_bytes = bytes + HUGE_PAGE_BYTES;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches
        // no memory that exists.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                reserved_bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let reserved: NonNull<u8> = NonNull::new(reserved.cast()).ok_or(Errno::NOMEM)?;
        let ahead = reserved.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `ahead` is below HUGE_PAGE_BYTES, so this is inside.
        let base = unsafe { reserved.add(ahead) };
        let window = Self {
            reserved,
            reserved_bytes,
            base,
            bytes,
            offset,
        };
        // SAFETY: the range was reserved above for nobody else.
        unsafe {
            rustix::mm::mmap(
                base.as_ptr().cast(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                offset,
            )?
        };
        Ok(window)
    }

    /// The file offset that it starts at.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How long it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: an empty range cannot be mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// How much of it whole huge pages can hold.
    #[must_use]
    pub fn huge_bytes(&self) -> usize {
        self.bytes - self.bytes % HUGE_PAGE_BYTES
    }

    /// Looks at one byte of each huge page, and of each page behind the last of
    /// them: pages that the file lacks come into being, filled with zeros, and
    /// what is there stays. Where the file system is full the watch tells.
    ///
    /// This and not fallocate(2): a huge page that fallocate left unfilled is
    /// mapped as it is by MADV_COLLAPSE, and what is received into it then reads
    /// as zeros (seen on tmpfs mounted with `huge=always`, Linux 6.18).
    pub fn touch(&self, _watch: &Watch) {
        let huge = (0..self.huge_bytes()).step_by(HUGE_PAGE_BYTES);
        let pages = (self.huge_bytes()..self.bytes).step_by(PAGE_BYTES);
        for at in huge.chain(pages) {
            let byte = self.pointer(&(at..at + 1));
            // SAFETY: inside the mapping; the value does not matter, and a
            // volatile read may race with whoever writes there.
            let _ = unsafe { byte.read_volatile() };
        }
    }

    /// The bytes of `range`, which the kernel or somebody else may change while
    /// they are looked at: good for a check, which then fails, and for nothing
    /// that trusts them.
    ///
    /// # Panics
    /// If the range is not inside the window (own invariant).
    #[must_use]
    pub fn bytes<'a>(&'a self, range: &Range<usize>, _watch: &'a Watch) -> &'a [u8] {
        // SAFETY: the range lies in the mapping, which lives as long as `self`;
        // a page that the file has lost is replaced while `_watch` lives.
        unsafe { std::slice::from_raw_parts(self.pointer(range), range.len()) }
    }

    /// Copies `bytes` to `at`, where no receive is in flight.
    ///
    /// # Panics
    /// If they do not fit there (own invariant).
    pub fn fill(&self, at: usize, bytes: &[u8], _watch: &Watch) {
        let to = self.pointer(&(at..at + bytes.len()));
        // SAFETY: the target lies in the mapping; `bytes` may lie there, too. A
        // lost page is replaced while `_watch` lives.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
    }

    /// The address of `range`, for the kernel.
    ///
    /// # Panics
    /// If the range is not inside the window (own invariant).
    pub(super) fn pointer(&self, range: &Range<usize>) -> *mut u8 {
        assert!(
            range.start <= range.end && range.end <= self.bytes,
            "a range of a window lies inside it"
        );
        // SAFETY: the start is inside the mapping, or at its end.
        unsafe { self.base.as_ptr().add(range.start) }
    }
}

impl Drop for HugeWindow {
    fn drop(&mut self) {
        // SAFETY: this is what `map` reserved; whoever lent a part of it to
        // the kernel held the window until that came back.
        let _ = unsafe { rustix::mm::munmap(self.reserved.as_ptr().cast(), self.reserved_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::watched;
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    const BYTES: usize = 2 * HUGE_PAGE_BYTES;

    fn memory_file() -> std::fs::File {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
        file.set_len(BYTES as u64).expect("sized");
        file
    }

    #[test]
    fn what_is_filled_is_in_the_file() {
        let file = memory_file();
        let window = HugeWindow::map(file.as_fd(), 0, BYTES).expect("mapped");
        assert_eq!((window.offset(), window.len()), (0, BYTES));
        assert_eq!(window.base.as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
        let filled = watched(|watch| {
            window.fill(HUGE_PAGE_BYTES - 2, b"abcd", watch);
            window.bytes(&(HUGE_PAGE_BYTES - 3..HUGE_PAGE_BYTES + 3), watch) == b"\0abcd\0"
        });
        assert_eq!(filled, Some((true, false)));
        let mut found = [0; 4];
        file.read_exact_at(&mut found, HUGE_PAGE_BYTES as u64 - 2)
            .expect("read");
        assert_eq!(&found, b"abcd");
    }

    #[test]
    fn a_file_that_is_cut_off_is_told_by_filling_and_by_looking() {
        let file = memory_file();
        let window = HugeWindow::map(file.as_fd(), 0, BYTES).expect("mapped");
        file.set_len(0).expect("cut off");
        let filled = watched(|watch| window.fill(5, b"abc", watch));
        assert_eq!(filled, Some(((), true)));
        let looked = watched(|watch| {
            window
                .bytes(&(HUGE_PAGE_BYTES..HUGE_PAGE_BYTES + 9), watch)
                .to_vec()
        });
        assert_eq!(looked, Some((vec![0; 9], true)));
    }

    #[test]
    fn a_window_begins_where_a_huge_page_does() {
        let file = memory_file();
        assert!(HugeWindow::map(file.as_fd(), 4096, BYTES).is_err());
        let small = HugeWindow::map(file.as_fd(), 0, HUGE_PAGE_BYTES + 5).expect("mapped");
        assert_eq!(small.huge_bytes(), HUGE_PAGE_BYTES);
        assert!(HugeWindow::map(file.as_fd(), 0, 0).is_err());
    }
}
