//! Temporary files: their names, and the lock that tells whose they are.
//!
//! Leaves to others: what is written to them, and when they go. Invariant: while
//! somebody writes to a temporary file it is locked, and the lock goes with its
//! process, however that ends; what can be locked is nobody's.

use crate::error::{Error, Result, Side, why};
use crate::kernel::descriptors;
use crate::kernel::random::random;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What their names begin with; 16 hexadecimal digits follow.
const PREFIX: &str = ".haul-";
const DIGITS: usize = 16;
/// Random names that are tried before giving up; one is enough.
const NAMES_TRIED_MAX: u32 = 16;

/// True exactly of the names that [`create`] makes.
#[must_use]
pub fn is_temporary(name: &[u8]) -> bool {
    name.strip_prefix(PREFIX.as_bytes()).is_some_and(|digits| {
        digits.len() == DIGITS
            && digits
                .iter()
                .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit))
    })
}

/// Why nothing was made.
pub(super) enum NotMade {
    /// The call's own reason.
    Errno(Errno),
    /// There is no name.
    Error(Error),
}

/// A name that nobody has, for what `make` makes under it.
///
/// # Errors
/// It cannot be made.
pub(super) fn named(
    make: impl Fn(&str) -> rustix::io::Result<()>,
) -> std::result::Result<String, NotMade> {
    let mut errno = Errno::EXIST;
    for _ in 0..NAMES_TRIED_MAX {
        let name = new_name().map_err(NotMade::Error)?;
        match make(&name) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => {}
            Err(failed) => {
                errno = failed;
                break;
            }
        }
    }
    Err(NotMade::Errno(errno))
}

/// Numbers that are asked of the kernel at once: a call each is a hundredth of the cost
/// of a small file.
const NUMBERS_AT_ONCE: usize = 32;

thread_local! {
    static NUMBERS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

fn new_name() -> Result<String> {
    let number = NUMBERS.with_borrow_mut(|numbers| {
        if numbers.is_empty() {
            let bytes = random::<{ 8 * NUMBERS_AT_ONCE }>()?;
            let (parts, _) = bytes.as_chunks();
            numbers.extend(parts.iter().map(|part| u64::from_ne_bytes(*part)));
        }
        // Just filled, where it was empty.
        Ok::<_, Error>(numbers.pop().unwrap_or_default())
    })?;
    Ok(format!("{PREFIX}{number:016x}"))
}

/// A new file in `directory` under a name that nobody has, locked, for what sentences
/// call `display`.
///
/// # Errors
/// Nothing can be created there.
pub(super) fn create(directory: BorrowedFd<'_>, display: &str) -> Result<(OwnedFd, String)> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut errno = Errno::EXIST;
    for _ in 0..NAMES_TRIED_MAX {
        let name = new_name()?;
        let open = || rustix::fs::openat(directory, &name, flags, Mode::RUSR | Mode::WUSR);
        match descriptors::patiently(open) {
            Ok(fd) if is_ours(&fd) => return Ok((fd, name)),
            // Somebody cleaned up between the two calls: it was nobody's then.
            Ok(_) | Err(Errno::EXIST) => {}
            Err(failed) => {
                errno = failed;
                break;
            }
        }
    }
    let error = Error::local(
        format!("cannot write {display}: no file can be created in its directory"),
        why(errno),
    );
    Err(error.at(Side::Receiver))
}

/// Locks a file that was just made; false where somebody else had it first, or
/// removed it.
fn is_ours(fd: &OwnedFd) -> bool {
    match lock(fd) {
        Ok(true) => rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink > 0),
        Ok(false) => false,
        // A file system without locks: nobody cleans up there.
        Err(_) => true,
    }
}

/// Locks a temporary file until its descriptor is closed; false where somebody
/// else has it.
///
/// # Errors
/// The errno of a file system that has no locks.
pub(super) fn lock(fd: impl AsFd) -> rustix::io::Result<bool> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_names_are_temporary() {
        assert!(is_temporary(b".haul-0123456789abcdef"));
        for name in [
            &b".haul-0123456789abcde"[..],
            b".haul-0123456789abcdef0",
            b".haul-0123456789ABCDEF",
            b".haul-0123456789abcdeg",
            b"haul-0123456789abcdef",
            b".haul-",
            b"",
        ] {
            assert!(!is_temporary(name), "{}", name.escape_ascii());
        }
    }
}
