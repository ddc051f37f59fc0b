//! What the source's directories hold, said once more in the end, so that the receiver
//! can delete what they do not.
//!
//! Leaves to others: listing, and deleting. Invariant: a directory is only called
//! complete when it was read to its end without an error.

use super::entry::{Folder, FolderId};
use super::list::bounded;
use crate::error::Error;
use crate::limits;
use crate::protocol::TransferId;
use serde::{Deserialize, Serialize};

/// Names of one directory, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The directory, by the message's numbers.
    pub folder: FolderId,
    /// Components of its path that lead to the directory that was named, from which
    /// patterns count.
    pub above: u32,
    /// Names in it, each once, those that are left out by patterns included where
    /// they are to be kept.
    #[serde(deserialize_with = "bounded::<_, _, { limits::NAMES_MAX }>")]
    pub names: Vec<Vec<u8>>,
    /// These were the last, and no error kept others away.
    pub complete: bool,
}

/// Directories' names, a part of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The transfer.
    pub transfer: TransferId,
    /// This part's number, counted from 0 without a gap.
    pub number: u32,
    /// The directories that the listings are of.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_FOLDERS_MAX }>")]
    pub folders: Vec<Folder>,
    /// Their names.
    #[serde(deserialize_with = "bounded::<_, _, { limits::NAMES_MAX }>")]
    pub listings: Vec<Listing>,
    /// No part follows.
    pub last: bool,
}

/// What was deleted for one part of the names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletions {
    /// How many files and directories went, those in deleted directories included.
    pub count: u64,
    /// What went, by path from where the files go.
    #[serde(deserialize_with = "bounded::<_, _, { limits::NAMES_MAX }>")]
    pub paths: Vec<Vec<u8>>,
    /// What could not be deleted, and why.
    #[serde(deserialize_with = "bounded::<_, _, { limits::NAMES_MAX }>")]
    pub failed: Vec<Error>,
    /// More of the same part follows.
    pub more: bool,
}

impl Deletions {
    /// The same in parts that each fit into a message, at least one; `more` of all but
    /// the last.
    #[must_use]
    pub fn in_parts(self) -> Vec<Self> {
        let text_bytes = |error: &Error| {
            let cure = error.cure.as_ref().map_or(0, String::len);
            error.sentence.len() + cure
        };
        let mut parts = vec![Self {
            count: self.count,
            ..Self::default()
        }];
        let mut bytes = 0;
        // The part that takes so many bytes more.
        let mut at = |parts: &mut Vec<Self>, wanted: usize| {
            bytes += wanted + 16;
            if bytes > limits::NAMES_BYTES_MAX {
                bytes = wanted + 16;
                parts.push(Self::default());
            }
            parts.len() - 1
        };
        for path in self.paths {
            let at = at(&mut parts, path.len());
            parts[at].paths.push(path);
        }
        for error in self.failed {
            let at = at(&mut parts, text_bytes(&error));
            parts[at].failed.push(error);
        }
        let last = parts.len() - 1;
        for part in &mut parts[..last] {
            part.more = true;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_much_is_told_in_parts() {
        let all = Deletions {
            count: 7,
            paths: vec![vec![b'x'; 4000]; 2000],
            failed: vec![Error::usage("y".repeat(5000)); 1000],
            more: false,
        };
        let parts = all.in_parts();
        assert!(parts.len() > 5);
        assert_eq!(parts.iter().map(|part| part.count).sum::<u64>(), 7);
        assert_eq!(
            parts.iter().map(|part| part.paths.len()).sum::<usize>(),
            2000
        );
        assert_eq!(
            parts.iter().map(|part| part.failed.len()).sum::<usize>(),
            1000
        );
        for (number, part) in parts.iter().enumerate() {
            assert_eq!(part.more, number + 1 < parts.len());
            let bytes = postcard::to_stdvec(part).expect("serializes").len();
            assert!(bytes < limits::MESSAGE_BYTES_MAX, "{bytes}");
        }
        assert_eq!(Deletions::default().in_parts(), [Deletions::default()]);
    }
}
