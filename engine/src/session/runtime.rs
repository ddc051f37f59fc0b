//! The control thread's runtime: one thread of tokio-uring.
//!
//! Leaves to others: what runs on it. Invariant: a kernel or a machine that
//! gives no ring is an error here, never a panic.

use crate::error::{Error, Result};
use crate::kernel::ring::{RUNTIME_ENTRIES, Ring, refused, when_memory_is_there};

/// Runs `work` on this thread's own ring and runtime.
///
/// # Errors
/// A kernel or a machine that gives no ring, or not what a runtime needs.
pub(crate) fn start_runtime(work: impl Future<Output = ()>) -> Result<()> {
    // The workers' rings need a newer kernel than this runtime's.
    drop(Ring::new(1)?);
    // tokio_uring::start would panic where this tells.
    let build = || tokio_uring::Runtime::new(&tokio_uring::builder());
    let runtime = when_memory_is_there(RUNTIME_ENTRIES, build).map_err(|error| refused(&error))?;
    let run = std::panic::AssertUnwindSafe(|| runtime.block_on(work));
    std::panic::catch_unwind(run)
        .map_err(|_| Error::local("cannot go on", "the control thread panicked"))
}
