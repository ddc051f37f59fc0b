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
    /// Bytes of the first one that were said, where it is a list.
    said_bytes: usize,
}

impl Saying {
    /// Nothing was said of these.
    #[must_use]
    pub fn new(sources: Vec<RemoteSource>) -> Self {
        Self {
            left: sources.into(),
            said_bytes: 0,
        }
    }

    /// The next part, and whether it is the last: at most what one message
    /// holds.
    pub fn next_part(&mut self) -> (Vec<RemoteSource>, bool) {
        let (mut part, mut names_bytes) = (Vec::new(), 0);
        while let Some(next) = self.left.front() {
            if let RemoteSource::Names(list) = next {
                let (names, said) = list.part(self.said_bytes, limits::LIST_PART_BYTES);
                let is_over = said == list.bytes();
                part.push(RemoteSource::Names(names));
                self.said_bytes = if is_over { 0 } else { said };
                if is_over {
                    self.left.pop_front();
                }
                break;
            }
            names_bytes += name_bytes(next);
            let fits = names_bytes <= limits::SEGMENT_NAMES_BYTES_MAX / 2;
            // A name is far shorter than a message.
            if part.len() == limits::SEGMENT_ENTRIES_MAX - 1 || !fits {
                break;
            }
            part.extend(self.left.pop_front());
        }
        (part, self.left.is_empty())
    }
}

/// Bytes of a source's name; those that have none count as little.
pub(super) fn name_bytes(source: &RemoteSource) -> usize {
    match source {
        RemoteSource::Path(path) => path.len(),
        RemoteSource::Names(list) => list.bytes(),
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
    use crate::options::names::{NameEnd, ReadNames};

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
    fn a_list_is_said_in_parts_as_well() {
        let text: String = (0..200_000)
            .map(|number| format!("name {number}\n"))
            .collect();
        let read = ReadNames::new(text.as_bytes(), NameEnd::Newline, "it").expect("names");
        let base = RemoteSource::Path(b"d/".to_vec());
        let list = RemoteSource::Names(read.names.clone());
        let mut saying = Saying::new(vec![base.clone(), list]);
        let (mut bytes, mut parts) = (0, 0);
        loop {
            let (part, is_last) = saying.next_part();
            assert_eq!(part[0] == base, parts == 0);
            let Some(RemoteSource::Names(names)) = part.last() else {
                panic!("names come with what they lie in: {part:?}");
            };
            assert!(!names.is_empty() && names.bytes() <= limits::LIST_PART_BYTES);
            let (expected, next) = read.names.part(bytes, limits::LIST_PART_BYTES);
            assert_eq!(&expected, names);
            (bytes, parts) = (next, parts + 1);
            if is_last {
                break;
            }
        }
        assert_eq!(bytes, read.names.bytes());
        assert!(parts > 5);
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
