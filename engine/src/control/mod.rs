//! The control plane: one thread of tokio-uring for each pool or server.
//!
//! Leaves to others: file work (blocking threads) and bulk bytes (the data
//! plane). Invariant: it waits for nothing but sockets, timers and queues.

mod channel;
mod client;
mod core;
mod dial;
mod greet;
mod links;
pub mod pool;
mod receiving;
mod role;
mod sending;
pub mod server;
mod serving;
mod session;
mod tally;
pub mod transfer;

use crate::error::{Error, Result};
use crate::kernel::ring::Ring;

/// This software, as the peer is told.
fn software() -> String {
    concat!("haul ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Runs `work` on this thread's own ring and runtime.
///
/// # Errors
/// A kernel or a machine that gives no ring: tokio-uring would panic.
fn start_runtime(work: impl Future<Output = ()>) -> Result<()> {
    // The smallest ring there is: it tells what tokio-uring would panic about.
    drop(Ring::new(1)?);
    let run = std::panic::AssertUnwindSafe(|| tokio_uring::start(work));
    std::panic::catch_unwind(run)
        .map_err(|_| Error::local("cannot go on", "the control thread panicked"))
}
