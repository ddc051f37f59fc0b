//! Memory that is lent to the kernel: anonymous blocks and windows of files.
//!
//! Leaves to others: lending itself (the ring keeps what it lent). Invariant:
//! bytes of a block can be touched only through the borrow rules of the block
//! that owns them, and bytes of a file's window are looked at inside a watch
//! only (`fault`), since a file that is truncated under its mapping answers with
//! SIGBUS; the kernel, which sends from there, with a short count or EFAULT.

use super::page::{HUGE_PAGE_BYTES, PAGE_BYTES};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// An anonymous mapping; gone when the last block of it is.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a region is plain memory without thread affinity; its bytes are
// reached only through blocks, which do not overlap and obey borrow rules.
unsafe impl Send for Region {}
// SAFETY: as above; a shared region gives out no reference by itself.
unsafe impl Sync for Region {}

impl Region {
    fn new(bytes: usize, huge: bool) -> Result<Self, Errno> {
        let align = if huge { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        let mapped = bytes + align - PAGE_BYTES;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's
        // choice touches no memory that exists.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )?
        };
        let ahead = start.align_offset(align);
        let behind = mapped - ahead - bytes;
        // SAFETY: both ranges lie in the mapping that was just made, and
        // nothing points into them.
        unsafe {
            if ahead > 0 {
                let _ = rustix::mm::munmap(start, ahead);
            }
            if behind > 0 {
                let _ = rustix::mm::munmap(start.byte_add(ahead + bytes), behind);
            }
        }
        // SAFETY: `ahead` is inside the mapping.
        let base: *mut u8 = unsafe { start.byte_add(ahead) }.cast();
        if huge {
            // SAFETY: the advice changes no content. It is a wish: a kernel
            // without huge pages refuses and nothing is lost.
            let _ = unsafe {
                rustix::mm::madvise(base.cast(), bytes, rustix::mm::Advice::LinuxHugepage)
            };
        }
        Ok(Self {
            base: NonNull::new(base).ok_or(Errno::NOMEM)?,
            bytes,
        })
    }

    pub(super) fn as_iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.base.as_ptr().cast(),
            iov_len: self.bytes,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the last owner unmaps exactly what `new` kept; every block
        // held an Arc of this region, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A page-aligned anonymous region that was cut into equal blocks.
#[derive(Debug)]
pub struct Arena {
    region: Arc<Region>,
}

impl Arena {
    /// Maps `count` blocks of `block_bytes` (a multiple of [`PAGE_BYTES`])
    /// each, zeroed; none is resident before it is touched or registered.
    /// `huge` asks for huge pages, which make copies into and out of the
    /// blocks cheaper where the machine has them.
    ///
    /// # Errors
    /// The errno of mmap(2), or EINVAL for sizes that make no region.
    pub fn new(
        block_bytes: usize,
        count: usize,
        huge: bool,
    ) -> Result<(Self, Vec<Arc<Block>>), Errno> {
        let bytes = block_bytes.checked_mul(count).ok_or(Errno::INVAL)?;
        if bytes == 0 || !block_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::INVAL);
        }
        let region = Arc::new(Region::new(bytes, huge && bytes >= HUGE_PAGE_BYTES)?);
        let blocks = (0..count)
            .map(|index| {
                Arc::new(Block {
                    region: region.clone(),
                    start: index * block_bytes,
                    bytes: block_bytes,
                })
            })
            .collect();
        Ok((Self { region }, blocks))
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

/// One block of an arena. Its holder reads it; whoever holds the only `Arc`
/// of it may write it (`Arc::get_mut`), and only such a block can be lent to
/// an operation that writes into it.
#[derive(Debug)]
pub struct Block {
    region: Arc<Region>,
    start: usize,
    bytes: usize,
}

impl Block {
    /// How long it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: an arena has no empty blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the range is this block's own part of a live, initialised
        // mapping, and no writer exists while the block is shared.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.bytes) }
    }

    /// Its bytes, to be written.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the exclusive borrow of the block is an
        // exclusive borrow of its bytes, which no other block covers.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.bytes) }
    }

    /// Where it begins in its arena: neighbours are told apart and joined by it.
    #[must_use]
    pub fn position(&self) -> usize {
        self.start
    }

    /// Cuts the block in two, so that each can be lent on its own.
    ///
    /// # Panics
    /// If the block has another holder, or a half would be empty (own
    /// invariants).
    #[must_use]
    pub fn split(block: Arc<Self>, at: usize) -> (Arc<Self>, Arc<Self>) {
        let mut first = Arc::into_inner(block).expect("a block that is cut has one holder");
        assert!(0 < at && at < first.bytes, "neither half is empty");
        let second = Self {
            region: first.region.clone(),
            start: first.start + at,
            bytes: first.bytes - at,
        };
        first.bytes = at;
        (Arc::new(first), Arc::new(second))
    }

    /// Undoes [`Block::split`].
    ///
    /// # Panics
    /// If a half has another holder, or `second` does not begin where `first`
    /// ends (own invariants).
    #[must_use]
    pub fn join(first: Arc<Self>, second: Arc<Self>) -> Arc<Self> {
        let mut first = Arc::into_inner(first).expect("a block that is joined has one holder");
        let second = Arc::into_inner(second).expect("a block that is joined has one holder");
        assert!(
            Arc::ptr_eq(&first.region, &second.region) && first.start + first.bytes == second.start,
            "joined blocks are neighbours"
        );
        first.bytes += second.bytes;
        Arc::new(first)
    }

    pub(super) fn pointer(&self) -> *mut u8 {
        // SAFETY: `start` is inside the region by construction.
        unsafe { self.region.base.as_ptr().add(self.start) }
    }

    pub(super) fn is_in(&self, region: &Arc<Region>) -> bool {
        Arc::ptr_eq(&self.region, region)
    }
}

/// A part of a file, mapped shared and read-only, to be populated, checked
/// inside a watch, and sent.
#[derive(Debug)]
pub struct Window {
    map: memmap2::MmapRaw,
    offset: u64,
}

impl Window {
    /// Maps `bytes` of `file` from `offset`, a multiple of [`PAGE_BYTES`].
    /// The end may lie past the file's: operations there come up short.
    ///
    /// # Errors
    /// The errno of mmap(2): EACCES, ENODEV (a file that cannot be mapped),
    /// ENOMEM.
    pub fn map(file: BorrowedFd<'_>, offset: u64, bytes: usize) -> Result<Self, Errno> {
        memmap2::MmapOptions::new()
            .offset(offset)
            .len(bytes)
            .map_raw_read_only(file.as_raw_fd())
            .map(|map| Self { map, offset })
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
    }

    /// The file offset that it starts at.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How long it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: an empty range cannot be mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// The address of `range`, for the kernel only.
    ///
    /// # Panics
    /// If the range is not inside the window (own invariant).
    pub(super) fn pointer(&self, range: &Range<usize>) -> *mut u8 {
        assert!(
            range.start <= range.end && range.end <= self.map.len(),
            "a range of a window lies inside it"
        );
        self.map.as_mut_ptr().wrapping_add(range.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn blocks_are_aligned_zeroed_and_apart() {
        for huge in [false, true] {
            let (_arena, mut blocks) = Arena::new(PAGE_BYTES * 256, 4, huge).expect("mapped");
            for (index, block) in blocks.iter_mut().enumerate() {
                let block = Arc::get_mut(block).expect("unshared");
                assert_eq!(block.as_slice().as_ptr().align_offset(PAGE_BYTES), 0);
                assert!(block.as_slice().iter().all(|byte| *byte == 0));
                block.as_mut_slice().fill(index as u8 + 1);
            }
            for (index, block) in blocks.iter().enumerate() {
                assert!(block.as_slice().iter().all(|byte| *byte == index as u8 + 1));
            }
        }
    }

    #[test]
    fn a_cut_block_joins_again() {
        let (_arena, mut blocks) = Arena::new(PAGE_BYTES, 2, false).expect("mapped");
        let (mut first, second) = Block::split(blocks.remove(1), 10);
        assert_eq!((first.len(), second.len()), (10, PAGE_BYTES - 10));
        Arc::get_mut(&mut first)
            .expect("unshared")
            .as_mut_slice()
            .fill(1);
        assert_eq!(second.as_slice()[0], 0);
        let whole = Block::join(first, second);
        assert_eq!((whole.position(), whole.len()), (PAGE_BYTES, PAGE_BYTES));
        assert_eq!(whole.as_slice()[9..11], [1, 0]);
    }

    #[test]
    fn a_block_outlives_its_arena() {
        let (arena, blocks) = Arena::new(PAGE_BYTES, 2, false).expect("mapped");
        drop(arena);
        assert_eq!(blocks[1].as_slice()[PAGE_BYTES - 1], 0);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Arena::new(100, 1, false).is_err());
        assert!(Arena::new(PAGE_BYTES, 0, false).is_err());
        assert!(Arena::new(PAGE_BYTES, usize::MAX, false).is_err());
    }

    #[test]
    fn a_window_reaches_past_the_end_of_its_file() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(10).expect("sized");
        let window = Window::map(file.as_fd(), 0, PAGE_BYTES * 4).expect("mapped");
        assert_eq!((window.offset(), window.len()), (0, PAGE_BYTES * 4));
    }
}
