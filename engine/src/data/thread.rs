//! Worker threads: starting one, and its CPU time.
//!
//! Leaves to others: what it does. Invariant: whoever starts a worker knows
//! whether it runs, and hears why it ended by itself.

use crate::error::{Error, Result};
use rustix::time::{ClockId, clock_gettime};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// What a worker does, in sentences: "receive", "receiving".
pub struct Words {
    /// Behind "cannot".
    pub cannot: &'static str,
    /// Before "thread" and "worker".
    pub doing: &'static str,
}

/// Starts a worker's thread. It is made there, since a ring belongs to the
/// thread that creates it, then runs; `give_up` takes it where that failed, or
/// panicked.
///
/// # Errors
/// No thread, or what `make` could not get.
pub fn spawn<W: 'static>(
    name: &str,
    words: &'static Words,
    make: impl FnOnce() -> Result<W> + Send + 'static,
    run: impl Fn(&mut W) -> Result<()> + Send + 'static,
    give_up: impl FnOnce(W, &Error) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let (made, making) = mpsc::sync_channel(1);
    let doing = format!("cannot start a {} thread", words.doing);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let mut worker = match make() {
                Ok(worker) => worker,
                Err(error) => {
                    // The maker waits for this below.
                    let _ = made.send(Err(error));
                    return;
                }
            };
            let _ = made.send(Ok(()));
            let ended = catch_unwind(AssertUnwindSafe(|| run(&mut worker)));
            let failed = |_| {
                let why = format!(
                    "the {} worker failed, which is a fault of haul",
                    words.doing
                );
                Err(Error::local(
                    format!("cannot {} on a data connection", words.cannot),
                    why,
                ))
            };
            if let Err(error) = ended.unwrap_or_else(failed) {
                give_up(worker, &error);
            }
        })
        .map_err(|error| Error::local(&doing, error))?;
    match making.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::local(doing, "it ended at once")),
    }
}

/// CPU time of this thread, nanoseconds.
pub fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // 584 years fit, and it is never negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
