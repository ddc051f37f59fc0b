//! Second descriptors of sockets, and pacing of those in use.
//!
//! Leaves to others: who drives the first descriptor. Invariant: a descriptor
//! made here is owned by the caller alone.

use crate::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A second descriptor of a socket whose owner shows only its number, as
/// tokio-uring's do.
///
/// # Errors
/// No descriptor is left.
pub fn duplicate(socket: &impl AsRawFd) -> Result<OwnedFd> {
    // SAFETY: the owner is borrowed for the length of this call, so its
    // descriptor stays open while it is duplicated.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
        .map_err(|errno| Error::local("cannot duplicate a connection's descriptor", errno))
}

/// Sets the most that a connection sends, bytes per second; `None` lifts it.
///
/// # Errors
/// A kernel that does not pace.
pub fn set_pacing(socket: impl AsFd, bytes_per_second: Option<u64>) -> Result<()> {
    // All ones is the kernel's own "no limit".
    let rate = bytes_per_second.unwrap_or(u64::MAX);
    super::set_option(
        socket.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_MAX_PACING_RATE,
        rate,
    )
    .map_err(|errno| Error::local("cannot limit a data connection's rate", errno))
}
