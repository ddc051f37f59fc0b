//! What the movers share: stripes, threads, clocks.
//!
//! Leaves to others: the calls that move. Invariant: every byte is in one
//! stripe, and every stripe belongs to one connection.

use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::thread;

/// What neighbouring connections take in turn, as they do haul's runs.
pub(super) const STRIPE_BYTES: u64 = 4 * 1024 * 1024;
/// What one call moves: receive and write calls of 1 MiB cost half of those of
/// 64 KiB, and larger ones gained nothing more.
pub(super) const BLOCK_BYTES: usize = 1024 * 1024;

/// The stripes of connection `index` of `count`, as offset and length.
pub(super) fn stripes(bytes: u64, index: usize, count: usize) -> impl Iterator<Item = (u64, u64)> {
    let step = STRIPE_BYTES * count as u64;
    (STRIPE_BYTES * index as u64..bytes)
        .step_by(step as usize)
        .map(move |offset| (offset, STRIPE_BYTES.min(bytes - offset)))
}

pub(super) fn clock_seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

pub(super) fn died(what: &str) -> io::Error {
    io::Error::other(format!("a {what} thread panicked"))
}

pub(super) fn ended_early(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("{what} ended early"))
}

/// Runs `work` for every connection on a thread of its own and adds up what
/// each returns.
pub(super) fn on_threads<T: Sync>(
    connections: &[T],
    work: impl Fn(usize, &T) -> io::Result<f64> + Sync,
) -> io::Result<f64> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = connections
            .iter()
            .enumerate()
            .map(|(index, connection)| scope.spawn(move || work(index, connection)))
            .collect();
        threads.into_iter().try_fold(0.0, |sum, thread| {
            Ok(sum + thread.join().unwrap_or_else(|_| Err(died("moving")))?)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_cover_every_byte_once() {
        for bytes in [0, 1, STRIPE_BYTES - 1, STRIPE_BYTES, 9 * STRIPE_BYTES + 5] {
            for count in [1, 2, 4] {
                let mut all: Vec<_> = (0..count)
                    .flat_map(|index| stripes(bytes, index, count))
                    .collect();
                all.sort_unstable();
                let mut end = 0;
                for (offset, length) in all {
                    assert_eq!(offset, end);
                    end += length;
                }
                assert_eq!(end, bytes);
            }
        }
    }
}
