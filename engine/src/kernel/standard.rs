//! Which of the standard descriptors were closed when the process began.
//!
//! Leaves to others: what that means for what was asked. Invariant: it is looked
//! at before the language's runtime starts, which puts /dev/null in place of
//! each that is closed; afterwards nothing tells such a one from a /dev/null
//! that somebody gave, as Python's `subprocess.DEVNULL` is opened alike.

use std::sync::atomic::{AtomicU8, Ordering};

/// A standard descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// Standard input.
    Input = 0,
    /// Standard output.
    Output = 1,
    /// Standard error.
    Error = 2,
}

/// A bit for each that was closed.
static CLOSED: AtomicU8 = AtomicU8::new(0);

extern "C" fn look() {
    let mut closed = 0;
    for descriptor in 0..3 {
        // SAFETY: F_GETFD takes no third argument and changes nothing; a
        // descriptor that is not open is EBADF.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } == -1 {
            closed |= 1 << descriptor;
        }
    }
    CLOSED.store(closed, Ordering::Relaxed);
}

// SAFETY: the loader calls each function of this section once, before `main` and
// so before any thread; `look` uses nothing that the runtime sets up.
#[unsafe(link_section = ".init_array")]
#[used]
static LOOK: extern "C" fn() = look;

/// True where this process was started without it.
#[must_use]
pub fn was_closed(standard: Standard) -> bool {
    CLOSED.load(Ordering::Relaxed) & (1 << standard as u8) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_was_not_closed() {
        // The test's own runner gives it an output.
        assert!(!was_closed(Standard::Output));
        look();
        assert!(!was_closed(Standard::Output));
    }
}
