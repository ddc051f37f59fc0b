//! The names that a pull asks for, said a part at a time.
//!
//! Leaves to others: what they name. Invariant: whoever is asked holds two
//! parts at most, however many names there are: the next one is said when it
//! was asked for, and it is asked for when the last one is begun.

use super::Violation;
use crate::limits;
use crate::options::RemoteSource;
use std::collections::VecDeque;

/// The end that asks: what it has not said yet.
#[derive(Debug)]
pub struct Saying {
    left: VecDeque<RemoteSource>,
}

impl Saying {
    /// Nothing was said of these.
    #[must_use]
    pub fn new(sources: Vec<RemoteSource>) -> Self {
        Self {
            left: sources.into(),
        }
    }

    /// The next part, and whether it is the last: at most what one message
    /// holds.
    pub fn next_part(&mut self) -> (Vec<RemoteSource>, bool) {
        let mut names_bytes = 0;
        let mut fits = |source: &RemoteSource| {
            names_bytes += name_bytes(source);
            names_bytes <= limits::SEGMENT_NAMES_BYTES_MAX
        };
        let sources = self.left.iter().take(limits::SEGMENT_ENTRIES_MAX);
        let count = sources.take_while(|source| fits(source)).count();
        // A name is far shorter than a message.
        let part = self.left.drain(..count).collect();
        (part, self.left.is_empty())
    }
}

/// Bytes of a source's name; those that have none count as little.
pub(super) fn name_bytes(source: &RemoteSource) -> usize {
    match source {
        RemoteSource::Path(path) => path.len(),
        RemoteSource::Generated { .. } => 0,
    }
}

/// The end that is asked: whether more is to come.
#[derive(Debug)]
pub struct Hearing {
    is_last: bool,
    /// More was asked for, and did not come yet.
    is_due: bool,
}

impl Hearing {
    /// The first part came with the question.
    #[must_use]
    pub fn new(is_last: bool) -> Self {
        Self {
            is_last,
            is_due: false,
        }
    }

    /// A further part came.
    ///
    /// # Errors
    /// It was not asked for.
    pub fn heard(&mut self, is_last: bool) -> Result<(), Violation> {
        if !self.is_due {
            return Err(Violation::new("names that were asked for", "more of them"));
        }
        self.is_due = false;
        self.is_last = is_last;
        Ok(())
    }

    /// The part that came last is begun, or nothing is left of it: true once,
    /// where the next is to be asked for now.
    pub fn wants_more(&mut self) -> bool {
        let wants = !self.is_last && !self.is_due;
        self.is_due |= wants;
        wants
    }

    /// True when every name was heard.
    #[must_use]
    pub fn has_all(&self) -> bool {
        self.is_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_said_once_in_order_and_in_parts_that_fit() {
        let long = |number: usize| {
            let mut name = format!("{number:05}").into_bytes();
            name.resize(if number.is_multiple_of(3) { 4000 } else { 5 }, b'x');
            RemoteSource::Path(name)
        };
        let sources: Vec<_> = (0..10_000).map(long).collect();
        let mut saying = Saying::new(sources.clone());
        let mut said = Vec::new();
        loop {
            let (part, is_last) = saying.next_part();
            assert!(!part.is_empty() && part.len() <= limits::SEGMENT_ENTRIES_MAX);
            let bytes: usize = part.iter().map(name_bytes).sum();
            assert!(bytes <= limits::SEGMENT_NAMES_BYTES_MAX);
            said.extend(part);
            if is_last {
                break;
            }
        }
        assert_eq!(said, sources);
        assert_eq!(saying.next_part(), (Vec::new(), true));
    }

    #[test]
    fn more_comes_only_when_it_was_asked_for() {
        let mut hearing = Hearing::new(false);
        assert!(hearing.heard(false).is_err());
        assert!(hearing.wants_more());
        assert!(!hearing.wants_more(), "one at a time");
        assert_eq!(hearing.heard(false), Ok(()));
        assert!(hearing.wants_more() && !hearing.has_all());
        assert_eq!(hearing.heard(true), Ok(()));
        assert!(!hearing.wants_more() && hearing.has_all());
        assert!(hearing.heard(true).is_err());
        assert!(!Hearing::new(true).wants_more());
    }
}
