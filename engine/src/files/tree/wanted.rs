//! What lists name of a directory, while it is read along them.
//!
//! Leaves to others: reading it. Invariant: a name is given until it was taken, and
//! those below one that is not there are passed over with it.

use crate::options::names::NameList;
use std::collections::VecDeque;

/// Names that are still to come.
#[derive(Debug, Default)]
pub struct WantedNames {
    lists: VecDeque<NameList>,
    /// Where the next name begins in the first of them.
    at: usize,
    /// No further list comes.
    has_all: bool,
    /// What is not there, with a slash at its end.
    passed_over: Option<Vec<u8>>,
}

/// What is wanted next.
#[derive(Debug, PartialEq, Eq)]
pub enum NextWanted<'a> {
    /// This name, from the directory that was named.
    Name(&'a [u8]),
    /// It was not told yet.
    Later,
    /// Nothing more.
    Nothing,
}

/// Where the next name leads from a directory.
#[derive(Debug, PartialEq, Eq)]
pub enum ListStep {
    /// To this name in it, alone.
    Alone(Vec<u8>),
    /// To this directory in it, with all that it holds.
    Whole(Vec<u8>),
    /// Through this directory in it.
    Through(Vec<u8>),
    /// Out of it: nothing more of it is wanted.
    Out,
    /// It was not told yet.
    Later,
}

impl WantedNames {
    /// Further names.
    pub fn add(&mut self, list: NameList) {
        if !list.is_empty() {
            self.lists.push_back(list);
        }
    }

    /// No further list comes.
    pub fn has_all(&mut self) {
        self.has_all = true;
    }

    /// Bytes of names that are left.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let all: usize = self.lists.iter().map(NameList::bytes).sum();
        all - self.at
    }

    fn peek(&self) -> NextWanted<'_> {
        match self.lists.front().and_then(|list| list.name_at(self.at)) {
            Some((name, _)) => NextWanted::Name(name),
            None if self.has_all => NextWanted::Nothing,
            None => NextWanted::Later,
        }
    }

    /// Takes the next name away.
    pub fn take(&mut self) {
        let Some(list) = self.lists.front() else {
            return;
        };
        if let Some((_, next)) = list.name_at(self.at) {
            self.at = next;
        }
        if self.at >= list.bytes() {
            self.lists.pop_front();
            self.at = 0;
        }
    }

    /// Where it goes on from the directory of that path, which ends in a slash unless
    /// it is the one that was named.
    pub fn step(&mut self, directory: &[u8]) -> ListStep {
        loop {
            let name = match self.peek() {
                NextWanted::Name(name) => name,
                NextWanted::Later => return ListStep::Later,
                NextWanted::Nothing => return ListStep::Out,
            };
            if let Some(gone) = &self.passed_over
                && name.starts_with(gone)
            {
                self.take();
                continue;
            }
            let Some(rest) = name.strip_prefix(directory) else {
                return ListStep::Out;
            };
            let slash = rest.iter().position(|byte| *byte == b'/');
            return match slash {
                None => ListStep::Alone(rest.to_vec()),
                Some(at) if at + 1 == rest.len() => ListStep::Whole(rest[..at].to_vec()),
                Some(at) => ListStep::Through(rest[..at].to_vec()),
            };
        }
    }

    /// What is not there, or no directory: nothing below it is looked for.
    pub fn pass_over(&mut self, directory: &[u8], name: &[u8]) {
        self.passed_over = Some([directory, name, b"/"].concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::names::{NameEnd, ReadNames};

    fn list(text: &str) -> NameList {
        let read = ReadNames::new(text.as_bytes(), NameEnd::Newline, "it");
        read.expect("names").names
    }

    #[test]
    fn it_leads_along_the_tree() {
        let mut wanted = WantedNames::default();
        wanted.add(list("a/b\na/c/\nd\n"));
        assert_eq!(wanted.step(b""), ListStep::Through(b"a".to_vec()));
        assert_eq!(wanted.step(b"a/"), ListStep::Alone(b"b".to_vec()));
        wanted.take();
        assert_eq!(wanted.step(b"a/"), ListStep::Whole(b"c".to_vec()));
        wanted.take();
        assert_eq!(wanted.step(b"a/c/"), ListStep::Out);
        assert_eq!(wanted.step(b"a/"), ListStep::Out);
        assert_eq!(wanted.step(b""), ListStep::Alone(b"d".to_vec()));
        wanted.take();
        assert_eq!(wanted.step(b""), ListStep::Later);
        assert_eq!(wanted.bytes(), 0);
        wanted.add(list("e\n"));
        assert_eq!(wanted.step(b""), ListStep::Alone(b"e".to_vec()));
        wanted.take();
        wanted.has_all();
        assert_eq!(wanted.step(b""), ListStep::Out);
    }

    #[test]
    fn nothing_is_looked_for_below_what_is_not_there() {
        let mut wanted = WantedNames::default();
        wanted.add(list("a\na/b\na/c/d\nab\n"));
        wanted.take();
        wanted.pass_over(b"", b"a");
        assert_eq!(wanted.step(b""), ListStep::Alone(b"ab".to_vec()));
    }
}
