//! The control plane: one thread of tokio-uring for each pool or server.
//!
//! Leaves to others: file work (blocking threads) and bulk bytes (the data
//! plane). Invariant: it waits for nothing but sockets, timers and queues.

mod channel;
mod client;
mod core;
mod dial;
mod greet;
mod hands;
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
use crate::kernel::ring::{Ring, refused};

/// This software, as the peer is told.
fn software() -> String {
    concat!("haul ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Runs `work` on this thread's own ring and runtime.
///
/// # Errors
/// A kernel or a machine that gives no ring, or not what a runtime needs.
fn start_runtime(work: impl Future<Output = ()>) -> Result<()> {
    // The workers' rings need a newer kernel than this runtime's.
    drop(Ring::new(1)?);
    // tokio_uring::start would panic where this tells.
    let runtime =
        tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(|error| refused(&error))?;
    let run = std::panic::AssertUnwindSafe(|| runtime.block_on(work));
    std::panic::catch_unwind(run)
        .map_err(|_| Error::local("cannot go on", "the control thread panicked"))
}
