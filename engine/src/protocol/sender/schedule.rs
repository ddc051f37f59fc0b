//! The data connections as the sender sees them: who takes the next run, and
//! how large it is.
//!
//! Leaves to others: which chunks it holds. Invariant: a connection has at
//! most [`limits::RUNS_AHEAD_MAX`] runs that are not sent, and at most
//! [`limits::RUNS_UNLANDED_MAX`] that are not landed.

use super::work::RunKey;
use crate::limits;
use crate::protocol::{ConnectionId, Nanos, SegmentId};
use std::collections::{BTreeMap, VecDeque};

/// A run's size before anything is known of the connection.
const RUN_BYTES_FIRST: u64 = 1024 * 1024;
/// Rates are taken over at least this long, so that one batch of
/// acknowledgements is not mistaken for speed.
const RATE_NANOS: Nanos = 20_000_000;

/// What a connection may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// Takes runs. From: joined. To: Lost, gone.
    Active,
    /// The receiver was told; its runs wait for `Freed`. From: Active. To: gone.
    Lost,
}

pub(super) struct ScheduledConnection {
    pub state: ConnectionState,
    /// Runs handed over and not sent, in order.
    pub unsent: VecDeque<(SegmentId, RunKey)>,
    /// All runs of it that are not forgotten, the unsent ones included, with
    /// the bytes of each that did not land.
    pub runs: BTreeMap<(SegmentId, RunKey), u64>,
    /// When the last run was reported as sent.
    pub last_sent: Nanos,
    rate: ConnectionRate,
}

/// Landed bytes per second, as they come in.
struct ConnectionRate {
    since: Nanos,
    bytes: u64,
    bytes_per_second: Option<f64>,
}

impl ScheduledConnection {
    pub fn new(now: Nanos) -> Self {
        Self {
            state: ConnectionState::Active,
            unsent: VecDeque::new(),
            runs: BTreeMap::new(),
            last_sent: now,
            rate: ConnectionRate {
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

    /// A run of `bytes` is handed over.
    pub fn take(&mut self, now: Nanos, segment: SegmentId, key: RunKey, bytes: u64) {
        if self.runs.is_empty() {
            // It was idle: what passed since does not count against its rate.
            self.rate.since = now;
            self.rate.bytes = 0;
        }
        self.unsent.push_back((segment, key));
        self.runs.insert((segment, key), bytes);
    }

    /// Bytes of one of its runs landed.
    pub fn landed(&mut self, now: Nanos, segment: SegmentId, key: RunKey, bytes: u64) {
        if let Some(open_bytes) = self.runs.get_mut(&(segment, key)) {
            *open_bytes = open_bytes.saturating_sub(bytes);
        }
        let rate = &mut self.rate;
        rate.bytes += bytes;
        let elapsed = now.saturating_sub(rate.since).max(1);
        if rate.bytes_per_second.is_some() && elapsed < RATE_NANOS {
            return;
        }
        let sample = rate.bytes as f64 * 1e9 / elapsed as f64;
        // Up to twice, so that slow start is followed, and what lands at once
        // behind a packet that was lost is not mistaken for speed; down by halves.
        rate.bytes_per_second = Some(match rate.bytes_per_second {
            Some(old) if sample < old => (old + sample) / 2.0,
            Some(old) => sample.min(2.0 * old),
            None => sample,
        });
        rate.since = now;
        rate.bytes = 0;
    }
}

/// All connections that joined and are not gone.
#[derive(Default)]
pub(super) struct Connections(pub BTreeMap<ConnectionId, ScheduledConnection>);

impl Connections {
    /// True while one is lost that the receiver did not say to be free.
    pub fn has_lost(&self) -> bool {
        let is_lost = |connection: &ScheduledConnection| connection.state == ConnectionState::Lost;
        self.0.values().any(is_lost)
    }

    /// Who takes the next run: the one with the fewest at hand, of those that
    /// have less than their share of what is to land. `left_bytes` as below.
    pub fn next(&self, left_bytes: Option<u64>) -> Option<ConnectionId> {
        let ahead = self.ahead();
        let able = self.0.iter().filter(|(_, connection)| {
            let wants = || left_bytes.is_none_or(|left| self.wanted_bytes(connection, left) > 0);
            connection.has_room(ahead) && wants()
        });
        able.min_by_key(|(_, connection)| (connection.unsent.len(), connection.runs.len()))
            .map(|(&id, _)| id)
    }

    /// How many bytes the next run of `id` should have, at most. `left_bytes`
    /// is what was not handed out in the whole transfer, where that is known;
    /// `window_bytes` as in `Begin`; `bytes_per_second_max` is of all together.
    pub fn run_bytes(
        &self,
        id: ConnectionId,
        left_bytes: Option<u64>,
        window_bytes: Option<u64>,
        bytes_per_second_max: Option<u64>,
    ) -> u64 {
        let own = self.0.get(&id);
        let wanted = own.zip(left_bytes);
        let wanted = wanted.map(|(connection, left)| self.wanted_bytes(connection, left));
        let mut bytes = run_bytes(own.and_then(ScheduledConnection::bytes_per_second), wanted);
        if let Some(most) = bytes_per_second_max {
            let each = most / self.active().count().max(1) as u64;
            bytes = bytes.min((each as f64 * limits::RUN_TIME_MAX_NANOS as f64 / 1e9) as u64);
        }
        match window_bytes {
            // All connections' runs at hand have to fit into the window.
            Some(window) => {
                let count = self.active().count().max(1) as u64;
                bytes.min(window / (count * self.ahead() as u64))
            }
            None => bytes,
        }
    }

    /// What the connection should get of the `left_bytes` that were not handed
    /// out, for all to finish together: its share of these and of what is on
    /// its way, by the connections' rates, less what it has already.
    fn wanted_bytes(&self, connection: &ScheduledConnection, left_bytes: u64) -> u64 {
        let (mut count, mut known, mut rates, mut open_bytes) = (0u64, 0, 0.0, 0);
        for other in self.active() {
            count += 1;
            known += u64::from(other.bytes_per_second().is_some());
            rates += other.bytes_per_second().unwrap_or(0.0);
            open_bytes += other.open_bytes();
        }
        let share = match connection.bytes_per_second() {
            Some(own) if known == count && rates > 0.0 => own / rates,
            _ => 1.0 / count.max(1) as f64,
        };
        // A cast of a float saturates. Rounded up, so that one wants the last byte.
        let bytes = (left_bytes.saturating_add(open_bytes) as f64 * share).ceil() as u64;
        bytes.saturating_sub(connection.open_bytes())
    }

    fn active(&self) -> impl Iterator<Item = &ScheduledConnection> {
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

impl ScheduledConnection {
    fn bytes_per_second(&self) -> Option<f64> {
        self.rate.bytes_per_second
    }

    /// Bytes handed over that did not land.
    fn open_bytes(&self) -> u64 {
        self.runs.values().sum()
    }
}

/// A run's size from the connection's rate, and from what it should still get
/// where that is known.
fn run_bytes(bytes_per_second: Option<f64>, wanted_bytes: Option<u64>) -> u64 {
    let base = bytes_per_second.map_or(RUN_BYTES_FIRST, |rate| {
        let bytes = rate * limits::RUN_TIME_MAX_NANOS as f64 / 1e9;
        // A cast of a float saturates.
        (bytes as u64).min(limits::RUN_BYTES_MAX)
    });
    let Some(wanted) = wanted_bytes else {
        return base;
    };
    // Halves of that let all connections finish together. System calls
    // are counted per run, so a fast connection, to which half a run is a few
    // milliseconds, is not cut up further.
    let near_end = match bytes_per_second {
        None => wanted,
        Some(_) if base == limits::RUN_BYTES_MAX => (wanted / 2).max(limits::RUN_BYTES_MAX / 2),
        Some(_) => wanted / 2,
    };
    base.min(near_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    /// Connections with rates, in bytes a second, and bytes on their way.
    fn connections(known: &[(Option<f64>, u64)]) -> Connections {
        let mut all = Connections::default();
        for (id, &(bytes_per_second, open_bytes)) in known.iter().enumerate() {
            let mut connection = ScheduledConnection::new(0);
            connection.rate.bytes_per_second = bytes_per_second;
            connection.runs.insert((0, id as RunKey), open_bytes);
            all.0.insert(id as ConnectionId, connection);
        }
        all
    }

    #[test]
    fn runs_follow_the_rate_and_shrink_towards_the_end() {
        assert_eq!(run_bytes(None, None), RUN_BYTES_FIRST);
        // A saturated loopback: full runs, and never below half of one.
        assert_eq!(run_bytes(Some(1e9), Some(125 * MIB)), limits::RUN_BYTES_MAX);
        assert_eq!(
            run_bytes(Some(1e9), Some(MIB / 4)),
            limits::RUN_BYTES_MAX / 2
        );
        // 10 MB/s: 100 ms are 1 MB, and the last bytes are shared finely.
        assert_eq!(run_bytes(Some(1e7), Some(125 * MIB)), 1_000_000);
        assert_eq!(run_bytes(Some(1e7), Some(MIB / 4)), MIB / 8);
        assert_eq!(run_bytes(None, Some(MIB / 2)), MIB / 2);
    }

    #[test]
    fn what_is_left_is_shared_by_rate_and_by_what_each_has() {
        // The fast one gets three quarters of all 16, of which it has 8.
        let two = connections(&[(Some(3e7), 8 * MIB), (Some(1e7), 0)]);
        let wanted = |id, left| two.wanted_bytes(&two.0[&id], left);
        assert_eq!((wanted(0, 8 * MIB), wanted(1, 8 * MIB)), (4 * MIB, 4 * MIB));
        // One that is behind gets nothing more, however few runs it has.
        assert_eq!((wanted(0, 2 * MIB), wanted(1, 2 * MIB)), (0, 5 * MIB / 2));
        assert_eq!(two.next(Some(2 * MIB)), Some(1));
        // Without all rates the shares are equal.
        let unknown = connections(&[(Some(3e7), 0), (None, 0)]);
        assert_eq!(unknown.wanted_bytes(&unknown.0[&0], 8 * MIB), 4 * MIB);
        // Whatever the rates and the last bytes, somebody takes them.
        for open_bytes in [0, 1, 3, 1000, MIB] {
            for rate in [1.0, 1e3, 1e9] {
                let three =
                    connections(&[(Some(rate), open_bytes), (Some(7.0), 0), (Some(1e5), MIB)]);
                assert!(three.next(Some(1)).is_some(), "{open_bytes} {rate}");
            }
        }
    }

    #[test]
    fn a_rate_rises_by_twice_and_falls_by_halves() {
        let mut connection = ScheduledConnection::new(0);
        connection.take(0, 0, 0, 20_000_000);
        let mut landed = |now, bytes| {
            connection.landed(now, 0, 0, bytes);
            connection.bytes_per_second()
        };
        assert_eq!(landed(1_000_000, 1_000), Some(1e6));
        assert_eq!(landed(2_000_000, 9_999_000), Some(1e6), "too soon to tell");
        assert_eq!(landed(101_000_000, 1_000), Some(2e6), "a burst");
        assert_eq!(landed(201_000_000, 0), Some(1e6));
        assert_eq!(connection.open_bytes(), 20_000_000 - 10_001_000);
    }

    #[test]
    fn the_next_run_goes_to_who_has_least_and_a_window_fits_all() {
        let filled = |count: usize| {
            let mut connections = connections(&vec![(None, 0); count]);
            let mut key = count as RunKey;
            while let Some(id) = connections.next(None) {
                key += 1;
                let connection = connections.0.get_mut(&id).expect("it was named");
                connection.take(0, 0, key, 1);
            }
            connections
        };
        let counts = |connections: &Connections| -> Vec<usize> {
            let all = connections.0.values();
            all.map(|connection| connection.unsent.len()).collect()
        };
        let four = filled(4);
        assert_eq!(counts(&four), [limits::RUNS_AHEAD; 4]);
        assert_eq!(four.run_bytes(0, None, Some(MIB), None), MIB / 8);
        // A limited rate holds from the first run on: 100 ms of a quarter of it.
        assert_eq!(four.run_bytes(0, None, None, Some(4_000_000)), 100_000);
        assert_eq!(counts(&filled(1)), [limits::RUNS_AHEAD_MAX]);
    }
}
