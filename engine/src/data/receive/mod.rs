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
//! Measured before this was built (587 MiB over loopback, tmpfs, one
//! connection, 2 cores, both ends in one process, checks on, kernel 6.18; wall
//! and CPU as ratios to `cp -a`, the sender reading with pread): receiving with
//! the ring and writing with pwrite in this thread 1.12 / 1.87, ring writes
//! 1.18 / 1.96 (from the mapping 1.20 / 1.93 and 1.60 / 2.16), splice and
//! reading back 1.43 / 2.33. Blocks of 1 MiB were best (256 KiB: 1.29 / 2.21),
//! and blocks on huge pages. On ext4, O_DIRECT blocks of 1 MiB, 4 to 8 in
//! flight, took 0.54–0.66 of `cp -a` and a sync (buffered and synced 2.4).
//!
//! With the whole of haul around it the order of the first two turned: a tmpfs
//! write by the ring goes to a kernel worker, which takes it off the thread
//! that receives and checks. (Files on tmpfs have been received in place since:
//! see `in_place` and `kernel::huge`.) On one connection 1.36 / 2.29 by the ring against
//! 1.34 / 2.32 by pwrite here, on four 1.50 / 2.59 against 1.66 / 2.57 (the
//! sender from the mapping, medians of 15 interleaved rounds), at two thirds
//! of the system calls. So: the ring everywhere, direct where the target has
//! such a descriptor, pwrite only for small pieces.
//!
//! This worker with pwrite (same machine and file, fed from memory, runs of 4 MiB), CPU
//! seconds of its thread and all its system calls for each chunk as strace
//! counted them, on 1 and on 4 connections: null sink 0.07 / 0.6 and 0.18 /
//! 0.25 (7.2 and 2.5 GiB/s), tmpfs 0.3 / 0.65 and 0.4 / 0.4. More connections
//! cost more because their bytes leave the cache before they are checked;
//! receives or blocks of 256 KiB did not better that (0.24 and 0.5).

mod connection;
mod frame;
mod in_place;
mod intake;
mod landing;
mod ordered;
mod pool;
mod slab;
mod tally;
#[cfg(test)]
mod tests;
mod worker;

use super::{Clock, ReceiveCommand, ReceiveEvents};
use crate::error::{Error, Result};
use crate::kernel::queue::Reader;
use crate::kernel::thread::block_write_signals;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

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
) -> Result<JoinHandle<()>> {
    // A ring belongs to the thread that creates it, so the thread reports back.
    let (made, making) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            block_write_signals();
            let mut worker = match worker::Worker::new(commands, events, clock) {
                Ok(worker) => worker,
                Err(error) => {
                    // The maker waits for this below.
                    let _ = made.send(Err(error));
                    return;
                }
            };
            let _ = made.send(Ok(()));
            let ended = catch_unwind(AssertUnwindSafe(|| worker.run())).unwrap_or_else(|_| {
                let why = "the receiving worker failed, which is a fault of haul";
                Err(Error::local("cannot receive on a data connection", why))
            });
            if let Err(error) = ended {
                worker.give_up(&error);
            }
        })
        .map_err(|error| Error::local("cannot start a receiving thread", error))?;
    match making.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::local(
            "cannot start a receiving thread",
            "it ended at once",
        )),
    }
}
