//! The data connections as the sender sees them: who takes the next run, and
//! how large it is.
//!
//! Leaves to others: which chunks it holds. Invariant: a connection has at
//! most [`limits::RUNS_AHEAD_MAX`] runs that are not sent, and at most
//! [`limits::RUNS_UNLANDED_MAX`] that are not landed.

use super::work::RunKey;
use crate::limits;
use crate::protocol::{ConnectionId, Nanos, SegmentId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A run's size before anything is known of the connection.
const RUN_BYTES_FIRST: u64 = 1024 * 1024;
/// Rates are taken over at least this long, so that one batch of
/// acknowledgements is not mistaken for speed.
const RATE_NANOS: Nanos = 20_000_000;

/// What a connection may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// Takes runs. From: joined. To: Retiring, Lost, gone.
    Active,
    /// Finishes what it has. From: Active. To: Lost, gone.
    Retiring,
    /// The receiver was told; its runs wait for `Freed`.
    /// From: Active, Retiring. To: gone.
    Lost,
}

pub(super) struct Connection {
    pub state: ConnectionState,
    /// Runs handed over and not sent, in order.
    pub unsent: VecDeque<(SegmentId, RunKey)>,
    /// All runs of it that are not forgotten, the unsent ones included.
    pub runs: BTreeSet<(SegmentId, RunKey)>,
    /// When the last run was reported as sent.
    pub last_sent: Nanos,
    rate: Rate,
}

/// Landed bytes per second, as they come in.
struct Rate {
    since: Nanos,
    bytes: u64,
    bytes_per_second: Option<f64>,
}

impl Connection {
    pub fn new(now: Nanos) -> Self {
        Self {
            state: ConnectionState::Active,
            unsent: VecDeque::new(),
            runs: BTreeSet::new(),
            last_sent: now,
            rate: Rate {
                since: now,
                bytes: 0,
                bytes_per_second: None,
            },
        }
    }

    fn has_room(&self, ahead: usize) -> bool {
        self.state == ConnectionState::Active
            && self.unsent.len() < ahead
            && self.runs.len() < limits::RUNS_UNLANDED_MAX
    }

    /// A run is handed over.
    pub fn take(&mut self, now: Nanos, segment: SegmentId, key: RunKey) {
        if self.runs.is_empty() {
            // It was idle: what passed since does not count against its rate.
            self.rate.since = now;
            self.rate.bytes = 0;
        }
        self.unsent.push_back((segment, key));
        self.runs.insert((segment, key));
    }

    /// Bytes of it landed.
    pub fn landed(&mut self, now: Nanos, bytes: u64) {
        let rate = &mut self.rate;
        rate.bytes += bytes;
        let elapsed = now.saturating_sub(rate.since).max(1);
        if rate.bytes_per_second.is_some() && elapsed < RATE_NANOS {
            return;
        }
        let sample = rate.bytes as f64 * 1e9 / elapsed as f64;
        // Up at once, so that slow start is followed; down by halves.
        rate.bytes_per_second = Some(match rate.bytes_per_second {
            Some(old) if sample < old => (old + sample) / 2.0,
            _ => sample,
        });
        rate.since = now;
        rate.bytes = 0;
    }
}

/// All connections that joined and are not gone.
#[derive(Default)]
pub(super) struct Connections(pub BTreeMap<ConnectionId, Connection>);

impl Connections {
    /// Who takes the next run: the one with the fewest at hand.
    pub fn next(&self) -> Option<ConnectionId> {
        let ahead = self.ahead();
        let able = self
            .0
            .iter()
            .filter(|(_, connection)| connection.has_room(ahead));
        able.min_by_key(|(_, connection)| (connection.unsent.len(), connection.runs.len()))
            .map(|(&id, _)| id)
    }

    /// How many bytes the next run of `id` should have, at most. `left_bytes`
    /// is what was not handed out in the whole transfer, where that is known;
    /// `window_bytes` as in `Begin`.
    pub fn run_bytes(
        &self,
        id: ConnectionId,
        left_bytes: Option<u64>,
        window_bytes: Option<u64>,
    ) -> u64 {
        let active = || self.active();
        let count = active().count().max(1) as u64;
        let total: f64 = active().filter_map(Connection::bytes_per_second).sum();
        let own = self.0.get(&id).and_then(Connection::bytes_per_second);
        let known = active().filter_map(Connection::bytes_per_second).count() as u64;
        let share = match (own, known == count) {
            (Some(own), true) if total > 0.0 => own / total,
            _ => 1.0 / count as f64,
        };
        let bytes = run_bytes(own, share, left_bytes);
        match window_bytes {
            // All connections' runs at hand have to fit into the window.
            Some(window) => bytes.min(window / (count * self.ahead() as u64)),
            None => bytes,
        }
    }

    fn active(&self) -> impl Iterator<Item = &Connection> {
        let all = self.0.values();
        all.filter(|connection| connection.state == ConnectionState::Active)
    }

    /// Runs that each may have and not have sent.
    fn ahead(&self) -> usize {
        match self.active().count() {
            1 => limits::RUNS_AHEAD_MAX,
            _ => limits::RUNS_AHEAD,
        }
    }
}

impl Connection {
    fn bytes_per_second(&self) -> Option<f64> {
        self.rate.bytes_per_second
    }
}

/// A run's size from the connection's rate, its share of all rates, and what
/// is left to hand out.
fn run_bytes(bytes_per_second: Option<f64>, share: f64, left_bytes: Option<u64>) -> u64 {
    let base = bytes_per_second.map_or(RUN_BYTES_FIRST, |rate| {
        let bytes = rate * limits::RUN_TIME_MAX_NANOS as f64 / 1e9;
        // A cast of a float saturates.
        (bytes as u64).min(limits::RUN_BYTES_MAX)
    });
    let Some(left) = left_bytes else {
        return base;
    };
    let own_left = left as f64 * share;
    // Halves of what is left let all connections finish together. System calls
    // are counted per run, so a fast connection, to which half a run is a few
    // milliseconds, is not cut up further.
    let near_end = match bytes_per_second {
        None => own_left as u64,
        Some(_) if base == limits::RUN_BYTES_MAX => {
            ((own_left / 2.0) as u64).max(limits::RUN_BYTES_MAX / 2)
        }
        Some(_) => (own_left / 2.0) as u64,
    };
    base.min(near_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn runs_follow_the_rate_and_shrink_towards_the_end() {
        assert_eq!(run_bytes(None, 0.25, None), RUN_BYTES_FIRST);
        // A saturated loopback: full runs, and never below half of one.
        assert_eq!(
            run_bytes(Some(1e9), 0.25, Some(500 * MIB)),
            limits::RUN_BYTES_MAX
        );
        assert_eq!(
            run_bytes(Some(1e9), 0.25, Some(MIB)),
            limits::RUN_BYTES_MAX / 2
        );
        // 10 MB/s: 100 ms are 1 MB, and the last bytes are shared finely.
        assert_eq!(run_bytes(Some(1e7), 0.25, Some(500 * MIB)), 1_000_000);
        assert_eq!(run_bytes(Some(1e7), 0.25, Some(MIB)), MIB / 8);
        assert_eq!(run_bytes(None, 0.25, Some(2 * MIB)), MIB / 2);
    }

    #[test]
    fn a_rate_rises_at_once_and_falls_by_halves() {
        let mut connection = Connection::new(0);
        connection.landed(1_000_000, 1_000);
        assert_eq!(connection.bytes_per_second(), Some(1e6));
        connection.landed(2_000_000, 9_999_000);
        assert_eq!(connection.bytes_per_second(), Some(1e6), "too soon to tell");
        connection.landed(101_000_000, 1_000);
        assert_eq!(connection.bytes_per_second(), Some(1e8));
        connection.landed(201_000_000, 0);
        assert_eq!(connection.bytes_per_second(), Some(5e7));
    }

    #[test]
    fn the_next_run_goes_to_who_has_least_and_a_window_fits_all() {
        let filled = |count: u32| {
            let mut connections = Connections::default();
            for id in 0..count {
                connections.0.insert(id, Connection::new(0));
            }
            let mut key = 0;
            while let Some(id) = connections.next() {
                key += 1;
                let connection = connections.0.get_mut(&id).expect("it was named");
                connection.take(0, 0, key);
            }
            connections
        };
        let counts = |connections: &Connections| -> Vec<usize> {
            let all = connections.0.values();
            all.map(|connection| connection.unsent.len()).collect()
        };
        let four = filled(4);
        assert_eq!(counts(&four), [limits::RUNS_AHEAD; 4]);
        assert_eq!(four.run_bytes(0, None, Some(MIB)), MIB / 8);
        assert_eq!(counts(&filled(1)), [limits::RUNS_AHEAD_MAX]);
    }
}
