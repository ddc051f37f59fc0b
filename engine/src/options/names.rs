//! A list of names in a directory, as `--files-from` takes it.
//!
//! Leaves to others: reading the list, and what its names are. Invariant: every name
//! is relative and plain, without "." or ".." in it, and stands once; a directory's
//! name stands before those in it, so that a tree is read along the list.

use crate::error::{Error, Result};
use crate::limits;
use serde::{Deserialize, Serialize};

/// What ends a name in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameEnd {
    /// A line's end.
    Newline,
    /// A NUL byte, which no name holds.
    Nul,
}

/// Names, each with a NUL behind it, in the order of a tree. One that ends in a slash
/// means a directory with all that is in it, else it is the directory alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameList {
    text: Vec<u8>,
}

/// A list as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadNames {
    /// What is to be copied.
    pub names: NameList,
    /// All of the directory, whatever else is named.
    pub is_whole: bool,
    /// Names that stood there more than once, or lie in a directory that is copied
    /// with all that is in it.
    pub repeated: u64,
    /// The last name had no end.
    pub is_cut: bool,
}

impl ReadNames {
    /// The names in `text`, which sentences call `display`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Usage`]: a name that is absolute, leads outside, or is none.
    pub fn new(text: &[u8], end: NameEnd, display: &str) -> Result<Self> {
        let byte = match end {
            NameEnd::Newline => b'\n',
            NameEnd::Nul => 0,
        };
        let mut read = Self {
            is_cut: text.last().is_some_and(|last| *last != byte),
            ..Self::default()
        };
        let ended = text.strip_suffix(&[byte]).unwrap_or(text);
        // Each name where it lies, without what means nothing in it.
        let mut plain = Vec::with_capacity(ended.len());
        let mut places: Vec<(u64, u32)> = Vec::new();
        let lines = ended.split(|found| *found == byte);
        for (number, name) in (1_u64..).zip(lines) {
            if name.is_empty() {
                continue;
            }
            let start = plain.len();
            if let Err(why) = add_plain(name, &mut plain) {
                return Err(unfit(display, number, name, why, end));
            }
            match &plain[start..] {
                // The directory itself, which is copied in any case.
                b"" => {}
                b"/" => read.is_whole = true,
                // A path is far shorter than 4 GiB.
                name => places.push((start as u64, name.len() as u32)),
            }
        }
        let name_at = |(start, bytes): (u64, u32)| {
            let start = start as usize;
            &plain[start..start + bytes as usize]
        };
        places.sort_unstable_by(|one, other| in_order(name_at(*one), name_at(*other)));
        let mut sorted = Vec::with_capacity(plain.len() + places.len());
        let mut last: &[u8] = b"";
        for (at, place) in places.iter().enumerate() {
            let name = name_at(*place);
            let next = places.get(at + 1).map(|next| name_at(*next));
            let is_covered = last.ends_with(b"/") && name.starts_with(last);
            // "dir/" comes behind "dir", which it includes.
            let is_included =
                next.is_some_and(|next| next == name || next.strip_suffix(b"/") == Some(name));
            if is_covered || is_included {
                read.repeated += 1;
                continue;
            }
            sorted.extend_from_slice(name);
            sorted.push(0);
            last = name;
        }
        read.names = NameList { text: sorted };
        Ok(read)
    }
}

/// Adds `name` without what means nothing in it; says what keeps it from being one.
fn add_plain(name: &[u8], plain: &mut Vec<u8>) -> std::result::Result<(), &'static str> {
    if name.first() == Some(&b'/') {
        return Err("it is absolute, and names are taken from SOURCE on");
    }
    if name.contains(&0) {
        return Err("it holds a NUL byte");
    }
    let start = plain.len();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("it leads outside"),
            part => {
                plain.extend_from_slice(part);
                plain.push(b'/');
            }
        }
    }
    let is_whole = name.ends_with(b"/") || name.ends_with(b"/.");
    let is_empty = plain.len() == start;
    match (is_whole, is_empty) {
        (true, true) => plain.push(b'/'),
        (false, false) => drop(plain.pop()),
        _ => {}
    }
    if plain.len() - start >= limits::PATH_BYTES_MAX {
        return Err("it is longer than a path can be");
    }
    Ok(())
}

fn unfit(display: &str, number: u64, name: &[u8], why: &str, end: NameEnd) -> Error {
    let shown: String = name.escape_ascii().take(200).map(char::from).collect();
    let sentence = format!("cannot use name {number} in {display}, \"{shown}\": {why}");
    let error = Error::usage(sentence);
    match end {
        NameEnd::Newline if name.contains(&0) => error.cure("add -0 for names that end in NUL"),
        _ => error,
    }
}

/// A directory before what is in it, and that before everything else.
fn in_order(one: &[u8], other: &[u8]) -> std::cmp::Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    one.iter().map(key).cmp(other.iter().map(key))
}

impl NameList {
    /// True where there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The name that begins at byte `at`, and where the next one does.
    #[must_use]
    pub fn name_at(&self, at: usize) -> Option<(&[u8], usize)> {
        let rest = self.text.get(at..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some((&rest[..end], at + end + 1))
    }

    /// Names of about `bytes` from byte `at` on, at least one where there is one, and
    /// where the next ones begin.
    #[must_use]
    pub fn part(&self, at: usize, bytes: usize) -> (Self, usize) {
        let mut end = at;
        while let Some((_, next)) = self.name_at(end) {
            if end > at && next - at > bytes {
                break;
            }
            end = next;
        }
        let text = self.text.get(at..end).unwrap_or_default().to_vec();
        (Self { text }, end)
    }

    /// Why a list that came from a peer is none.
    ///
    /// # Errors
    /// A name that leads anywhere else, or is too long; something behind the last name.
    pub fn check(&self) -> std::result::Result<(), &'static str> {
        let mut at = 0;
        while let Some((name, next)) = self.name_at(at) {
            let path = name.strip_suffix(b"/").unwrap_or(name);
            let mut parts = path.split(|byte| *byte == b'/');
            if name.len() >= limits::PATH_BYTES_MAX
                || parts.any(|part| matches!(part, b"" | b"." | b".."))
            {
                return Err("a name that leads elsewhere");
            }
            at = next;
        }
        match at == self.text.len() {
            true => Ok(()),
            false => Err("a name without an end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    fn all(list: &NameList) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = 0;
        while let Some((name, next)) = list.name_at(at) {
            names.push(String::from_utf8_lossy(name).into_owned());
            at = next;
        }
        names
    }

    fn read(text: &str) -> ReadNames {
        ReadNames::new(text.as_bytes(), NameEnd::Newline, "the list").expect("names")
    }

    #[test]
    fn a_directory_stands_before_what_is_in_it() {
        let read = read("b/x\n./b\na-c\na//b/./c\n\n.\na\nb/x\n");
        assert_eq!(all(&read.names), ["a", "a/b/c", "a-c", "b", "b/x"]);
        assert_eq!(
            (read.repeated, read.is_whole, read.is_cut),
            (1, false, false)
        );
        assert_eq!(read.names.check(), Ok(()));
    }

    #[test]
    fn a_slash_at_the_end_takes_everything_along() {
        let whole = read("d/x\nd\nd/\nd/y/z\ne\n");
        assert_eq!(all(&whole.names), ["d/", "e"]);
        assert_eq!(whole.repeated, 3);
        assert!(read("./\na\n").is_whole);
        assert!(read("a\nb").is_cut);
        assert_eq!(read(""), ReadNames::default());
    }

    #[test]
    fn what_is_no_name_is_said_with_its_number() {
        for (text, why) in [
            ("a\n/etc/passwd\n", "absolute"),
            ("a\nb/../../c\n", "leads outside"),
            ("a\n..\n", "leads outside"),
            ("a\nb\0c\0", "NUL byte"),
        ] {
            let error = ReadNames::new(text.as_bytes(), NameEnd::Newline, "the list");
            let error = error.expect_err(text);
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.sentence.contains("name 2 in the list"), "{error}");
            assert!(error.sentence.contains(why), "{error}");
        }
        let long = "x/".repeat(limits::PATH_BYTES_MAX / 2);
        assert!(ReadNames::new(long.as_bytes(), NameEnd::Nul, "the list").is_err());
    }

    #[test]
    fn names_of_any_bytes_are_taken_where_a_nul_ends_them() {
        let text = b"a\nb\0\xff\xfe/c\0";
        let read = ReadNames::new(text, NameEnd::Nul, "the list").expect("names");
        assert_eq!(read.names.text, b"a\nb\0\xff\xfe/c\0");
        assert!(!read.is_cut);
    }

    #[test]
    fn a_peers_list_is_judged() {
        for bad in [&b"a/../b\0"[..], b"/a\0", b"a//b\0", b"\0", b"a\0b", b".\0"] {
            let list = NameList { text: bad.to_vec() };
            assert!(list.check().is_err(), "{}", bad.escape_ascii());
        }
        let long = [vec![b'x'; limits::PATH_BYTES_MAX], vec![0]].concat();
        assert!(NameList { text: long }.check().is_err());
    }

    proptest! {
        #[test]
        fn parts_make_up_the_list(
            names in prop::collection::vec("[a-c/.]{1,9}", 0..40),
            bytes in 0usize..40,
        ) {
            let text = names.join("\n");
            if let Ok(read) = ReadNames::new(text.as_bytes(), NameEnd::Newline, "it") {
                prop_assert_eq!(read.names.check(), Ok(()));
                let wanted = all(&read.names);
                let mut sorted = wanted.clone();
                sorted.sort_by(|one, other| in_order(one.as_bytes(), other.as_bytes()));
                sorted.dedup();
                prop_assert_eq!(&sorted, &wanted);
                let mut found = Vec::new();
                let mut at = 0;
                while at < read.names.bytes() {
                    let (part, next) = read.names.part(at, bytes);
                    prop_assert!(next > at);
                    found.extend(all(&part));
                    at = next;
                }
                prop_assert_eq!(found, wanted);
            }
        }
    }
}
