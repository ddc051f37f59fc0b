//! Work that blocks, on threads of the runtime's own.
//!
//! Leaves to others: what the work is and what its result means. Invariant:
//! whoever waits for work hears of it, even where no thread can be started or
//! the work panics; work whose failure was told is never done later.

use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::spawn_blocking;

/// Does `work` on a blocking thread.
///
/// # Errors
/// No thread can be started, or the work panicked (our own invariant broke).
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let doing = "cannot go on with a file's work";
    let work = Arc::new(Mutex::new(Some(work)));
    let held = work.clone();
    let take = move || {
        let work = held.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.map(|work| work())
    };
    // The runtime panics where it has no thread, and keeps what it was given.
    let Ok(started) = catch_unwind(AssertUnwindSafe(|| spawn_blocking(take))) else {
        drop(work.lock().unwrap_or_else(PoisonError::into_inner).take());
        return Err(Error::local(doing, "no thread can be started")
            .cure("raise the limits of processes and of memory (`ulimit -u`, `ulimit -v`)"));
    };
    match started.await {
        Ok(Some(done)) => Ok(done),
        // Nobody else takes it out.
        Ok(None) => Err(Error::local(doing, "it was given up")),
        Err(error) => Err(Error::local(doing, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told() {
        tokio_uring::start(async {
            assert_eq!(blocking(|| 5).await, Ok(5));
            let error = blocking(|| panic!("as the test wants")).await;
            let error: Error = error.map(|(): ()| ()).expect_err("told");
            assert!(error.sentence.contains("a file's work"), "{error}");
        });
    }
}
