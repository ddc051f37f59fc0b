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
    /// What went, by path from where the files go; of many the first.
    #[serde(deserialize_with = "bounded::<_, _, { limits::NAMES_MAX }>")]
    pub paths: Vec<Vec<u8>>,
    /// What could not be deleted, and why; of many the first.
    #[serde(deserialize_with = "bounded::<_, _, { limits::NAMES_MAX }>")]
    pub failed: Vec<Error>,
}
