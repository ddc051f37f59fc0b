//! A whole file read once more, to compare it: for `--verify` from its disk, past
//! the page cache; for a source that was touched as it is.
//!
//! Leaves to others: what it is compared with, and what a difference means.
//! Invariant: a byte that is summed for `--verify` came from the device at that
//! time, either by O_DIRECT or after its page was dropped.

use super::{DIRECT_ALIGN_BYTES, direct_is_possible, reopening};
use crate::kernel::file::cached_pages;
use crate::limits;
use crate::protocol::FileId;
use crate::protocol::check::FileSum;
use crate::protocol::plan::Plan;
use rustix::fs::{Advice, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One read from the disk: several small chunks, or one of the largest with
/// room to align both of its ends.
const WINDOW_BYTES: usize = limits::CHUNK_BYTES_MAX as usize + 2 * DIRECT_ALIGN_BYTES;

/// Where the bytes come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadFrom {
    /// The device, by O_DIRECT.
    Direct,
    /// The device, as its pages leave the page cache before.
    Dropped,
    /// The page cache, too: whatever a reader of the file sees.
    AsItIs,
}

/// A file while it is read back.
pub(super) struct ReadBack {
    file: OwnedFd,
    way: ReadFrom,
    buffer: Vec<u8>,
    /// Where in `buffer` the aligned window starts.
    base: usize,
    /// The file's bytes that are in the window.
    start: u64,
    filled: usize,
}

impl ReadBack {
    /// Reads what is on `target`'s disk, and opens it once more for that: to be
    /// called while its mode still allows it.
    ///
    /// # Errors
    /// The errno of the opening, where neither way is possible.
    pub(super) fn from_disk(target: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        Self::open_with(target, direct_is_possible(target))
    }

    /// Reads what `file` holds, wherever that is.
    ///
    /// # Errors
    /// The errno of one more descriptor.
    pub(super) fn as_it_is(file: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        Ok(Self::of(
            rustix::io::fcntl_dupfd_cloexec(file, 0)?,
            ReadFrom::AsItIs,
        ))
    }

    /// As [`ReadBack::from_disk`], by O_DIRECT or by dropped pages.
    fn open_with(target: BorrowedFd<'_>, direct: bool) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = reopening(target);
        let direct = if direct {
            rustix::fs::open(&path, flags | OFlags::DIRECT, Mode::empty()).ok()
        } else {
            None
        };
        Ok(match direct {
            Some(file) => Self::of(file, ReadFrom::Direct),
            None => Self::of(
                rustix::io::fcntl_dupfd_cloexec(target, 0)?,
                ReadFrom::Dropped,
            ),
        })
    }

    fn of(file: OwnedFd, way: ReadFrom) -> Self {
        let buffer = vec![0; WINDOW_BYTES + DIRECT_ALIGN_BYTES];
        let base = buffer.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
        Self {
            file,
            way,
            base: base.min(DIRECT_ALIGN_BYTES),
            buffer,
            start: 0,
            filled: 0,
        }
    }

    /// The sum of the pieces of `file` that `plan` has, up to `size`, whether they
    /// were sent or held; from a disk after the fsync.
    ///
    /// # Errors
    /// The errno of a read, [`Errno::BUSY`] when its pages would not leave the
    /// page cache; `None` when the file ends before `size`.
    pub(super) fn sum(
        &mut self,
        plan: &Plan,
        file: FileId,
        size: u64,
    ) -> Result<FileSum, Option<Errno>> {
        if self.way == ReadFrom::Dropped {
            // The fsync cleaned the pages, so that all of them can go.
            rustix::fs::fadvise(self.file.as_fd(), 0, None, Advice::DontNeed)?;
            // The advice may be refused silently, for a page that is in use
            // and wherever the page cache is the storage itself.
            let (cached, _) = cached_pages(self.file.as_fd(), 0, size)?;
            if cached > 0 {
                return Err(Some(Errno::BUSY));
            }
        }
        let mut sum = FileSum::default();
        for piece in plan.held_pieces(file) {
            // At most one chunk.
            let bytes = (piece.end - piece.start) as usize;
            sum.add(piece.start, self.read(piece.start, bytes)?);
        }
        let mut next = 0;
        for chunk in plan.chunks_of(file).flatten() {
            // Several stretches of one file may share a chunk.
            if chunk < next {
                continue;
            }
            next = chunk + 1;
            for piece in plan.pieces(chunk, 1).filter(|piece| piece.file == file) {
                if piece.file_offset >= size {
                    // A stream's plan has no end of its own.
                    return Ok(sum);
                }
                let bytes = piece.bytes.min(size - piece.file_offset);
                // At most one chunk.
                sum.add(
                    piece.file_offset,
                    self.read(piece.file_offset, bytes as usize)?,
                );
            }
        }
        Ok(sum)
    }

    /// True when everything of `file` that `plan` has not reads as zeros, up to
    /// `size`.
    ///
    /// # Errors
    /// As [`ReadBack::sum`].
    pub(super) fn has_holes_between(
        &mut self,
        plan: &Plan,
        file: FileId,
        size: u64,
    ) -> Result<bool, Option<Errno>> {
        let mut end = 0;
        let sent = plan
            .chunks_of(file)
            .flat_map(|chunks| plan.pieces_of(chunks).filter(|piece| piece.file == file));
        let sent = sent.map(|piece| {
            let start = piece.file_offset;
            (start, start.saturating_add(piece.bytes))
        });
        let held = plan.held_pieces(file);
        for (start, stop) in sent.chain(held.map(|piece| (piece.start, piece.end))) {
            if !self.is_zero(end..start.min(size))? {
                return Ok(false);
            }
            end = end.max(stop);
        }
        self.is_zero(end..size)
    }

    /// Holes of the target's own are not read at all.
    fn is_zero(&mut self, range: Range<u64>) -> Result<bool, Option<Errno>> {
        let mut at = range.start;
        while at < range.end {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) if start < range.end => start,
                Ok(_) | Err(Errno::NXIO) => return Ok(true),
                // Who cannot tell has data everywhere.
                Err(_) => at,
            };
            let bytes = (range.end - start).min(limits::CHUNK_BYTES_MAX.into());
            if self
                .read(start, bytes as usize)?
                .iter()
                .any(|byte| *byte != 0)
            {
                return Ok(false);
            }
            at = start + bytes;
        }
        Ok(true)
    }

    /// The `bytes` at `offset`, from the window or by one more read.
    fn read(&mut self, offset: u64, bytes: usize) -> Result<&[u8], Option<Errno>> {
        let end = offset + bytes as u64;
        if offset < self.start || end > self.start + self.filled as u64 {
            let align = DIRECT_ALIGN_BYTES as u64;
            self.start = offset / align * align;
            self.filled = 0;
            while end > self.start + self.filled as u64 {
                self.fill_more()?;
            }
        }
        // Inside the window, whose length is a usize.
        let from = self.base + (offset - self.start) as usize;
        Ok(&self.buffer[from..from + bytes])
    }

    fn fill_more(&mut self) -> Result<(), Option<Errno>> {
        let from = self.base + self.filled;
        let window = &mut self.buffer[from..self.base + WINDOW_BYTES];
        match rustix::io::pread(&self.file, window, self.start + self.filled as u64) {
            Ok(0) => Err(None),
            Ok(bytes) => {
                self.filled += bytes;
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Some(errno)),
        }
    }
}

#[cfg(test)]
mod tests;
