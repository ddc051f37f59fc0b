//! How many bytes may go under a limited rate, as a token bucket.
//!
//! Leaves to others: which bytes. Invariant: until any time after its start no
//! more was taken than the rate allows by then and one burst; nothing is taken
//! that was not there.

use crate::limits;
use crate::protocol::Nanos;

/// What may be taken at once: 100 ms of the rate, or 64 KiB, whichever is more.
const BURST_NANOS: u128 = 100_000_000;
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// A run is worth its system calls from this much time of the rate on.
const RUN_NANOS: u128 = 10_000_000;
const SECOND: u128 = 1_000_000_000;

/// Bytes that may go, and more with time.
#[derive(Debug)]
pub(super) struct Allowance {
    bytes_per_second: u64,
    /// The most that gathers while nothing goes.
    most: u64,
    /// What a run is worth waiting for.
    run: u64,
    left: u64,
    /// Up to when `left` is counted; none before it is first asked.
    counted: Option<Nanos>,
}

impl Allowance {
    /// A bucket that holds one burst. A chunk goes as a whole, so that at least
    /// one gathers.
    pub fn new(bytes_per_second: u64, chunk_bytes: u64) -> Self {
        let bytes_per_second = bytes_per_second.max(1);
        let in_time = |nanos: u128| {
            // A hundredth of a u64 fits.
            (u128::from(bytes_per_second) * nanos / SECOND) as u64
        };
        let burst = in_time(BURST_NANOS).max(BURST_BYTES_MIN);
        let run = in_time(RUN_NANOS)
            .min(limits::RUN_BYTES_MAX)
            .max(chunk_bytes);
        Self {
            bytes_per_second,
            most: burst.max(run),
            run,
            left: burst,
            counted: None,
        }
    }

    /// What may go now, where it is worth a run; `left_bytes` is what is left to
    /// go, where that is known.
    ///
    /// # Errors
    /// When it will be.
    pub fn at(&mut self, now: Nanos, left_bytes: Option<u64>) -> Result<u64, Nanos> {
        let counted = *self.counted.get_or_insert(now);
        let rate = u128::from(self.bytes_per_second);
        let elapsed = now.saturating_sub(counted);
        let came = u128::from(elapsed) * rate / SECOND;
        if u128::from(self.left) + came >= u128::from(self.most) {
            self.left = self.most;
            self.counted = Some(now);
        } else {
            // Below `most`. What is less than a byte is counted the next time.
            self.left += came as u64;
            self.counted = Some(counted + (came * SECOND).div_ceil(rate) as Nanos);
        }
        let wanted = left_bytes.map_or(self.run, |left| left.min(self.run));
        match wanted.checked_sub(self.left) {
            None | Some(0) => Ok(self.left),
            Some(missing) => {
                let wait = (u128::from(missing) * SECOND).div_ceil(rate);
                let from = self.counted.unwrap_or(now);
                // A run at a byte a second comes within a year.
                Err(from.saturating_add(wait as Nanos))
            }
        }
    }

    /// So many go.
    pub fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MILLI: Nanos = 1_000_000;

    #[test]
    fn a_burst_goes_at_once_and_the_rest_in_time() {
        // 10 MB/s: a burst of 1 MB, then a run of 256 KiB each 26 ms.
        let mut allowance = Allowance::new(10_000_000, 256 * 1024);
        let (mut now, mut gone) = (5, 0);
        while now < 1_000 * MILLI {
            match allowance.at(now, None) {
                Ok(_) => {
                    allowance.take(256 * 1024);
                    gone += 256 * 1024;
                }
                Err(then) => {
                    assert!(then > now, "it has to be waited for");
                    now = then;
                }
            }
        }
        assert!((10_500_000..=11_000_000).contains(&gone), "{gone}");
    }

    #[test]
    fn a_chunk_that_is_larger_than_the_burst_waits_for_its_bytes() {
        let mut allowance = Allowance::new(1_000_000, 4 << 20);
        let then = allowance.at(0, None).expect_err("100 kB are there");
        assert_eq!(then / MILLI, 4_094);
        assert_eq!(allowance.at(then, None), Ok(4 << 20));
        // The last bytes wait for no more than themselves.
        let mut allowance = Allowance::new(1_000_000, 4 << 20);
        assert_eq!(allowance.at(0, Some(100_000)), Ok(100_000));
        assert_eq!(allowance.at(0, Some(200_000)), Err(100 * MILLI));
    }

    proptest! {
        #[test]
        fn no_more_goes_than_the_rate_and_a_burst(
            rate in 1_000u64..5_000_000_000,
            chunk in 16u32..23,
            steps in prop::collection::vec((0u64..300 * MILLI, 1u64..9 << 20), 1..200),
        ) {
            let chunk_bytes = 1 << chunk;
            let mut allowance = Allowance::new(rate, chunk_bytes);
            let (mut now, mut gone) = (0, 0u128);
            let burst = u128::from(rate / 10).max(64 * 1024);
            for (wait, wish) in steps {
                now += wait;
                if let Ok(left) = allowance.at(now, None) {
                    let taken = wish.min(left);
                    allowance.take(taken);
                    gone += u128::from(taken);
                }
                let most = u128::from(rate) * u128::from(now) / SECOND + burst;
                prop_assert!(gone <= most + 1, "{gone} of {most} at {now}");
            }
        }
    }
}
