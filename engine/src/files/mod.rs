//! The file hands: all path work, on held descriptors, in blocking calls.
//!
//! Leaves to others: threads to block on, and the moving of bulk bytes.
//! Invariant: nothing here opens, creates or renames outside the directory
//! that it holds, and no final name ever shows a partial file.

mod attributes;
mod beneath;
pub mod claim;
pub mod clean;
pub mod content;
pub mod digest;
pub mod extents;
pub mod folder;
pub mod generated;
pub mod landed_digest;
pub mod later;
pub mod look;
pub mod metadata;
pub mod missing;
mod nameless;
pub mod node;
pub mod owners;
pub mod place;
pub mod reflink;
pub mod replace;
pub mod settle;
pub mod source;
pub mod stream;
pub mod target;
pub mod tree;
pub mod verify;
pub mod walk;

mod read_back;
pub mod regular;
mod temporary;

#[cfg(test)]
mod scratch;

use crate::error::{Error, Result, Side};
use rustix::fs::{FsWord, Stat};
use std::os::fd::BorrowedFd;

/// What O_DIRECT wants of offsets, lengths and memory on every disk that haul
/// uses it on; a file that asks for more gets no direct descriptor.
pub const DIRECT_ALIGN_BYTES: usize = 4096;

/// A file's identity on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// That of what cannot be looked at.
    const UNKNOWN: Self = Self {
        device: 0,
        inode: 0,
    };

    #[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
        }
    }

    /// The number of its file system.
    fn device(self) -> u64 {
        self.device
    }
}

/// The file systems that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext2, ext3 or ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// tmpfs or ramfs: memory, no disk below.
    Memory,
    /// procfs, sysfs and the like: files whose size is not told.
    Kernel,
    /// Anything else.
    Other,
}

impl FileSystem {
    /// What `file` lies on; [`FileSystem::Other`] where the kernel does not tell.
    #[must_use]
    pub fn of(file: BorrowedFd<'_>) -> Self {
        rustix::fs::fstatfs(file).map_or(Self::Other, |facts| Self::from_magic(facts.f_type))
    }

    /// By the magic numbers of linux/magic.h.
    #[allow(clippy::unnecessary_cast)] // FsWord differs between architectures.
    fn from_magic(magic: FsWord) -> Self {
        match magic as u32 {
            0xEF53 => Self::Ext4,
            0x5846_5342 => Self::Xfs,
            0x0102_1994 | 0x8584_58F6 | 0x9584_58F6 => Self::Memory,
            // proc, sysfs, debugfs, tracefs, cgroup, cgroup2.
            0x9FA0 | 0x6265_6572 | 0x6462_6720 | 0x7472_6163 | 0x0027_E0EB | 0x6367_7270 => {
                Self::Kernel
            }
            _ => Self::Other,
        }
    }
}

/// Bytes that this user may still write to the file system of `directory`;
/// `None` where it does not count them: a tmpfs without a limit, and some
/// network file systems.
#[must_use]
pub fn free_bytes(directory: BorrowedFd<'_>) -> Option<u64> {
    let facts = rustix::fs::fstatvfs(directory).ok()?;
    if facts.f_blocks == 0 {
        return None;
    }
    // The reserve is for root.
    let blocks = if rustix::process::geteuid().is_root() {
        facts.f_bfree
    } else {
        facts.f_bavail
    };
    Some(blocks.saturating_mul(facts.f_frsize))
}

/// Refuses `bytes` that the file system of `directory` has no room for.
fn require_space(directory: BorrowedFd<'_>, display: &str, bytes: u64) -> Result<()> {
    let Some(free) = free_bytes(directory).filter(|free| *free < bytes) else {
        return Ok(());
    };
    let why = format!(
        "{bytes} bytes are needed and {free} are free, {} too few",
        bytes - free
    );
    Err(Error::local(format!("cannot write {display}"), why)
        .cure("free some space there")
        .at(Side::Receiver))
}

/// A name as a sentence shows it: what is not text is replaced, and control
/// characters are escaped, so that a peer's names cannot drive a terminal.
fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    show(name, &mut text);
    text
}

/// The same, behind what is there.
fn show(name: &[u8], text: &mut String) {
    // Nearly all names are so.
    let is_plain = name.iter().all(|byte| (b' '..=b'~').contains(byte));
    if let (true, Ok(plain)) = (is_plain, std::str::from_utf8(name)) {
        return text.push_str(plain);
    }
    for letter in String::from_utf8_lossy(name).chars() {
        if letter.is_control() {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
}

/// The path by which this process opens its own descriptor again, with other
/// flags and without walking the name a second time.
fn reopening(file: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The time of day as seconds and nanoseconds, for sources that have no mtime.
fn now() -> (i64, u32) {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    // Below a thousand million.
    (time.tv_sec, time.tv_nsec as u32)
}

/// False where the file system says that O_DIRECT is not possible on `file` or
/// asks for more than [`DIRECT_ALIGN_BYTES`].
fn direct_is_possible(file: BorrowedFd<'_>) -> bool {
    use rustix::fs::{AtFlags, StatxFlags};
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(facts) if facts.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let (memory, offset) = (facts.stx_dio_mem_align, facts.stx_dio_offset_align);
            let fits = |align: u32| align != 0 && DIRECT_ALIGN_BYTES.is_multiple_of(align as usize);
            fits(memory) && fits(offset)
        }
        // Before Linux 6.1, and on file systems that do not say: opening tries.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_harmless() {
        assert_eq!(shown(b"a\x1b[2Jb\n\xff"), "a\\u{1b}[2Jb\\n\u{fffd}");
    }

    #[test]
    fn file_systems_are_told_apart() {
        let proc = std::fs::File::open("/proc/self/status").expect("procfs");
        assert_eq!(
            FileSystem::of(std::os::fd::AsFd::as_fd(&proc)),
            FileSystem::Kernel
        );
        assert_eq!(FileSystem::from_magic(0xEF53), FileSystem::Ext4);
        assert_eq!(FileSystem::from_magic(0x0102_1994), FileSystem::Memory);
    }
}
