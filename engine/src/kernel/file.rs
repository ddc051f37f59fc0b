//! What the kernel knows of a file's pages: how much of it is in the cache.
//!
//! Leaves to others: what a cold file means. Invariant: looking neither reads
//! the file nor changes what is cached, where cachestat(2) exists.

use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// cachestat(2) has the same number on every architecture that haul builds for.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct CachestatRange {
    off: u64,
    len: u64,
}

/// `struct cachestat` of linux/mman.h.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    nr_cache: u64,
    nr_dirty: u64,
    nr_writeback: u64,
    nr_evicted: u64,
    nr_recently_evicted: u64,
}

/// Pages of `offset..offset + bytes` that are in the page cache, and pages
/// that were asked about.
///
/// cachestat(2) is asked first: it counts a range in one call, needs no
/// mapping and starts no reading. mincore(2) would need a mapping and says
/// "resident" of everything that the caller does not own. Where cachestat is
/// missing (before Linux 6.5) or not allowed, one byte is read with
/// RWF_NOWAIT, which answers for its page only and may start readahead.
///
/// # Errors
/// The errno, as EOPNOTSUPP where the file system can do neither.
pub fn cached_pages(
    file: BorrowedFd<'_>,
    offset: u64,
    bytes: u64,
) -> rustix::io::Result<(u64, u64)> {
    let page = rustix::param::page_size() as u64;
    if bytes == 0 {
        return Ok((0, 0));
    }
    let asked = (offset + bytes).div_ceil(page) - offset / page;
    match cachestat(file, offset, bytes) {
        Ok(cached) => Ok((cached.min(asked), asked)),
        Err(_) => Ok((u64::from(byte_is_cached(file, offset)?), 1)),
    }
}

fn cachestat(file: BorrowedFd<'_>, off: u64, len: u64) -> rustix::io::Result<u64> {
    let range = CachestatRange { off, len };
    let mut counts = Cachestat::default();
    // SAFETY: both structures are laid out as the kernel's and outlive the
    // call, which reads the one and writes the other and keeps neither.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            &raw const range,
            &raw mut counts,
            0,
        )
    };
    if result == 0 {
        return Ok(counts.nr_cache);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

fn byte_is_cached(file: BorrowedFd<'_>, offset: u64) -> rustix::io::Result<bool> {
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file.as_fd(), &mut buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_just_written_is_cached() {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(&[7; 64 * 1024]).expect("write");
        let (cached, asked) = cached_pages(file.as_fd(), 0, 64 * 1024).expect("asks");
        assert!(asked >= 1 && cached == asked, "{cached} of {asked}");
        assert!(byte_is_cached(file.as_fd(), 4096).expect("asks"));
        assert_eq!(cached_pages(file.as_fd(), 0, 0).expect("asks"), (0, 0));
    }
}
