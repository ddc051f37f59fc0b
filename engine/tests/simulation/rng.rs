//! Chance and time of the simulated world.
//!
//! Leaves to others: what happens. Invariant: the same seed gives the same
//! numbers and the same order of events, on every machine.

use std::collections::BTreeMap;
use std::ops::Range;

/// SplitMix64: small, seeded, and good enough to mix faults.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of `range`, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.within(0..choices.len() as u64) as usize]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// One millisecond of simulated time.
pub const MILLI: u64 = 1_000_000;

/// Events by time; at one time, by the order in which they were scheduled.
pub struct Queue<E> {
    pub now: u64,
    next: u64,
    events: BTreeMap<(u64, u64), E>,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self {
            now: 0,
            next: 0,
            events: BTreeMap::new(),
        }
    }

    pub fn at(&mut self, time: u64, event: E) {
        self.next += 1;
        self.events.insert((time.max(self.now), self.next), event);
    }

    pub fn after(&mut self, delay: u64, event: E) {
        self.at(self.now + delay, event);
    }

    pub fn pop(&mut self) -> Option<E> {
        let ((time, _), event) = self.events.pop_first()?;
        self.now = time;
        Some(event)
    }
}
