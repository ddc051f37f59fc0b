//! How a server's log tells of connections that were turned away.
//!
//! Leaves to others: writing the lines. Invariant: every refusal is in a line, by
//! itself or as one of a count, and a crowd costs a few lines a minute whatever
//! its size.

use haul_engine::Error;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Refusals for one reason are counted this long before they are told again, and
/// twice as long each time, …
const PERIOD_MIN: Duration = Duration::from_secs(5);
/// … up to this. After a period without any the next is told at once.
const PERIOD_MAX: Duration = Duration::from_secs(60);
/// Reasons that are kept apart; the others are counted together.
const REASONS_MAX: usize = 8;
/// Addresses that are told apart in one count.
const ADDRESSES_MAX: usize = 1024;

/// What is counted for one reason.
struct Count {
    since: Duration,
    period: Duration,
    refused: u64,
    addresses: BTreeSet<IpAddr>,
    /// More came than are told apart.
    is_crowd: bool,
}

/// Refusals that were not told yet.
#[derive(Default)]
pub struct Refusals {
    counts: BTreeMap<String, Count>,
}

impl Refusals {
    /// One more, `now`; the line where it is told at once.
    pub fn refused(&mut self, now: Duration, peer: SocketAddr, error: &Error) -> Option<String> {
        // Its own address would make every sentence another reason.
        let mut reason = error.to_string().replace(&peer.to_string(), "a peer");
        if !self.counts.contains_key(&reason) && self.counts.len() >= REASONS_MAX {
            reason = "for several reasons".to_owned();
        }
        let Some(count) = self.counts.get_mut(&reason) else {
            let count = Count {
                since: now,
                period: PERIOD_MIN,
                refused: 0,
                addresses: BTreeSet::new(),
                is_crowd: false,
            };
            self.counts.insert(reason, count);
            return Some(format!("{peer}: refused: {error}"));
        };
        count.refused += 1;
        if count.addresses.len() < ADDRESSES_MAX {
            count.addresses.insert(peer.ip());
        } else {
            count.is_crowd |= !count.addresses.contains(&peer.ip());
        }
        None
    }

    /// The lines that are due `now`; all that is left where that is the `end`.
    pub fn due(&mut self, now: Duration, end: bool) -> Vec<String> {
        let mut lines = Vec::new();
        self.counts.retain(|reason, count| {
            let passed = now.saturating_sub(count.since);
            if passed < count.period && !end {
                return true;
            }
            let went_on = count.refused > 0;
            if went_on {
                lines.push(count.line(reason, passed));
                count.refused = 0;
                count.addresses.clear();
                count.is_crowd = false;
                count.since = now;
                count.period = (count.period * 2).min(PERIOD_MAX);
            }
            went_on
        });
        lines
    }
}

impl Count {
    fn line(&self, reason: &str, passed: Duration) -> String {
        let from = match (self.addresses.first(), self.addresses.len(), self.is_crowd) {
            (Some(only), 1, _) => format!("from {only}"),
            (_, many, false) => format!("from {many} addresses"),
            (_, many, true) => format!("from more than {many} addresses"),
        };
        format!(
            "refused {} more in {} s, {from}: {reason}",
            self.refused,
            passed.as_secs().max(1)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn peer(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    fn silent(peer: SocketAddr) -> Error {
        Error::peer(format!("cannot greet {peer}"), "it said nothing")
    }

    #[test]
    fn a_crowd_is_a_first_line_and_counts() {
        let mut refusals = Refusals::default();
        let (mut lines, mut counted) = (Vec::new(), 0);
        for number in 0..30_000_u32 {
            // 100 a second for five minutes, from two hosts.
            let now = Duration::from_millis(u64::from(number) * 10);
            let peer = peer(1 + (number % 2) as u8, 1024 + number as u16);
            lines.extend(refusals.refused(now, peer, &silent(peer)));
            lines.extend(refusals.due(now, false));
        }
        lines.extend(refusals.due(SECOND * 300, true));
        assert!(lines[0].starts_with("10.0.0.1:1024: refused: cannot greet 10.0.0.1:1024"));
        for line in &lines[1..] {
            let count = line
                .strip_prefix("refused ")
                .and_then(|line| line.split(' ').next());
            counted += count
                .and_then(|count| count.parse::<u64>().ok())
                .expect("a count");
            assert!(
                line.contains("from 2 addresses: cannot greet a peer: it said nothing"),
                "{line}"
            );
        }
        assert_eq!(counted, 29_999, "none is lost");
        assert!(lines.len() <= 10, "{} lines", lines.len());
    }

    #[test]
    fn one_now_and_then_is_told_at_once() {
        let mut refusals = Refusals::default();
        for number in 0..5 {
            let now = SECOND * 20 * number;
            assert!(refusals.due(now, false).is_empty());
            let peer = peer(1, 5000);
            assert!(
                refusals.refused(now, peer, &silent(peer)).is_some(),
                "{number}"
            );
        }
    }

    #[test]
    fn reasons_without_end_are_counted_together() {
        let mut refusals = Refusals::default();
        let mut lines = Vec::new();
        for number in 0..1000 {
            let error = Error::peer("cannot greet", format!("nonsense {number}"));
            lines.extend(refusals.refused(SECOND, peer(1, 1), &error));
        }
        lines.extend(refusals.due(SECOND, true));
        assert!(lines.len() <= REASONS_MAX + 2, "{}", lines.len());
        assert!(
            lines.iter().any(|line| line.contains("991 more")),
            "{lines:?}"
        );
    }
}
