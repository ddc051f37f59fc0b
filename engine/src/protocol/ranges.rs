//! Sets of chunk numbers as ascending ranges.
//!
//! Leaves to others: what membership means. Invariant: ranges are ascending,
//! not empty and do not touch, so memory is by the number of gaps, not chunks.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of `u64` kept as disjoint ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// start → end (exclusive).
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True when nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it is kept as.
    #[must_use]
    pub fn gaps(&self) -> usize {
        self.ranges.len()
    }

    /// How many numbers are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Adds `range`; returns how many of its numbers are new.
    pub fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut known = 0;
        // Everything that overlaps or touches melts into one.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            known += e.min(range.end).saturating_sub(s.max(range.start));
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
        (range.end - range.start) - known
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.ranges.remove(&s);
            if s < range.start {
                self.ranges.insert(s, range.start);
            }
            if e > range.end {
                self.ranges.insert(range.end, e);
            }
        }
    }

    /// True when all of `range` is in it.
    #[must_use]
    pub fn contains(&self, range: Range<u64>) -> bool {
        range.is_empty()
            || self
                .ranges
                .range(..=range.start)
                .next_back()
                .is_some_and(|(_, &end)| end >= range.end)
    }

    /// True when any of `range` is in it.
    #[must_use]
    pub fn overlaps(&self, range: Range<u64>) -> bool {
        !range.is_empty()
            && self
                .ranges
                .range(..range.end)
                .next_back()
                .is_some_and(|(_, &end)| end > range.start)
    }

    /// The range that holds `number`, if it is in the set.
    #[must_use]
    pub fn range_at(&self, number: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.ranges.range(..=number).next_back()?;
        (end > number).then_some(start..end)
    }

    /// Where the first range behind `number` starts.
    #[must_use]
    pub fn next_start(&self, number: u64) -> Option<u64> {
        let (&start, _) = self.ranges.range(number.checked_add(1)?..).next()?;
        Some(start)
    }

    /// The end of the range that starts at 0, or 0.
    #[must_use]
    pub fn prefix_end(&self) -> u64 {
        self.ranges.get(&0).copied().unwrap_or(0)
    }

    /// The first range, if any.
    #[must_use]
    pub fn first(&self) -> Option<Range<u64>> {
        self.ranges.iter().next().map(|(&start, &end)| start..end)
    }

    /// All ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// The parts of `range` that are not in it, ascending.
    #[must_use]
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut rest = Self::new();
        rest.insert(range.clone());
        let from = self
            .ranges
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(&s, _)| s);
        for (&start, &end) in self.ranges.range(from..range.end.max(from)) {
            rest.remove(start..end);
        }
        rest.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60)) {
            let (mut set, mut model) = (RangeSet::new(), BTreeSet::new());
            for (add, start, len) in steps {
                let range = start..start + len;
                if add {
                    let new = range.clone().filter(|n| model.insert(*n)).count() as u64;
                    prop_assert_eq!(set.insert(range.clone()), new);
                } else {
                    set.remove(range.clone());
                    model.retain(|n| !range.contains(n));
                }
                prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.len(), model.len() as u64);
                prop_assert_eq!(set.contains(range.clone()), range.clone().all(|n| model.contains(&n)));
                let at = range.start;
                prop_assert_eq!(set.range_at(at).is_some(), model.contains(&at));
                prop_assert!(set.range_at(at).is_none_or(|found| set.contains(found)));
                let starts = |n: &&u64| **n > at && !model.contains(&(**n - 1));
                prop_assert_eq!(set.next_start(at), model.iter().find(starts).copied());
                prop_assert_eq!(set.overlaps(range.clone()), range.clone().any(|n| model.contains(&n)));
                prop_assert_eq!(
                    set.missing(range.clone()).into_iter().flatten().collect::<Vec<_>>(),
                    range.filter(|n| !model.contains(n)).collect::<Vec<_>>()
                );
                let ranges: Vec<_> = set.iter().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
