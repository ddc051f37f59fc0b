//! The receiving worker: one thread, one ring, a share of the data
//! connections; frames come in, verified bytes go to their targets.
//!
//! Leaves to others: which connections and segments there are, and all
//! messages. Invariants: a chunk is written, or received into its file, only
//! under the ledger's grant, which is asked for once for each run before a byte
//! of it is there (guarantee 2); it lands only after its check held and its last
//! write was reaped (guarantee 3); a connection's grants return after its last
//! operation.
//!
//! ```text
//!  socket ─ recv → head (header, table, first bytes) ─ copy ─┐
//!         ─ recv → block of whole chunks ←───────────────────┘
//!                    │ each chunk checked as soon as it is whole
//!                    └→ landing: one write for each piece → ledger → Landed
//!         ─ recv → the target itself, on tmpfs (in_place) → ledger → Landed
//! ```
//!
//! Blocks of 1 MiB on huge pages, written by the ring, which takes a write off
//! the thread that receives and checks; direct where the target has such a
//! descriptor; pwrite only for small pieces. What was measured on the way is in
//! `benches/results/decisions.md`.

mod block;
mod connection;
mod counts;
mod frame;
mod in_place;
mod intake;
mod landing;
mod ordered;
mod pool;
mod segment;
mod state;
mod stock;
mod stream;
#[cfg(test)]
mod tests;
mod token;
mod windows;
mod worker;

use super::{Clock, ReceiveCommand, ReceiveEvents, thread};
use crate::error::Result;
use crate::kernel::queue::Reader;
use crate::kernel::thread::block_write_signals;
use state::ReceiveWorker;
use std::sync::Arc;
use std::thread::JoinHandle;
pub use stock::Stock;
use windows::Pace;

/// Starts a receiving worker. It ends on [`ReceiveCommand::Stop`], and when
/// the other end of either queue is gone; its ring is created before this
/// returns.
///
/// # Errors
/// No thread, no memory, or no ring on this machine.
pub fn spawn(
    name: &str,
    commands: Reader<ReceiveCommand>,
    events: ReceiveEvents,
    clock: Clock,
    stock: &Arc<Stock>,
) -> Result<JoinHandle<()>> {
    let stock = stock.clone();
    spawn_with(name, commands, events, clock, stock, Pace::default())
}

/// The same, where a first huge page is slow from another time on.
fn spawn_with(
    name: &str,
    commands: Reader<ReceiveCommand>,
    events: ReceiveEvents,
    clock: Clock,
    stock: Arc<Stock>,
    pace: Pace,
) -> Result<JoinHandle<()>> {
    thread::spawn(
        name,
        &WORDS,
        move || {
            block_write_signals();
            ReceiveWorker::new(commands, events, clock, stock, pace)
        },
        ReceiveWorker::run,
        ReceiveWorker::give_up,
    )
}

const WORDS: thread::Words = thread::Words {
    cannot: "receive",
    doing: "receiving",
};
