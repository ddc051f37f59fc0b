//! The directories that one offer names.
//!
//! Leaves to others: which entries are in it. Invariant: each is named once, behind
//! the one that it lies in.

use crate::protocol::wire::{Folder, FolderId};
use std::collections::HashMap;

/// The directories of the offer that is being made.
#[derive(Default)]
pub struct OfferedFolders {
    folders: Vec<Folder>,
    by_path: HashMap<Vec<u8>, FolderId>,
    /// Of the last one that was asked for: neighbours mostly lie in the same.
    last: Option<(Vec<u8>, FolderId)>,
}

impl OfferedFolders {
    /// The number of the directory of that path, which ends in a slash unless it is
    /// empty: then it is where the transfer's files go.
    pub fn number_of(&mut self, path: &[u8]) -> FolderId {
        if let Some((known, number)) = &self.last
            && known == path
        {
            return *number;
        }
        let mut parent = 0;
        let mut start = 0;
        while let Some(length) = path[start..].iter().position(|byte| *byte == b'/') {
            let end = start + length;
            parent = match self.by_path.get(&path[..=end]) {
                Some(number) => *number,
                None => {
                    let name = path[start..end].to_vec();
                    self.folders.push(Folder { parent, name });
                    // At most SEGMENT_FOLDERS_MAX.
                    let number = self.folders.len() as FolderId;
                    self.by_path.insert(path[..=end].to_vec(), number);
                    number
                }
            };
            start = end + 1;
        }
        self.last = Some((path.to_vec(), parent));
        parent
    }

    /// The directory and the name of a file of that path.
    pub fn place_of(&mut self, path: &[u8]) -> (FolderId, Vec<u8>) {
        let end = path.iter().rposition(|byte| *byte == b'/');
        let (folder, name) = path.split_at(end.map_or(0, |end| end + 1));
        (self.number_of(folder), name.to_vec())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.folders.len()
    }

    /// Those from `first` on.
    #[must_use]
    pub fn since(&self, first: usize) -> &[Folder] {
        &self.folders[first..]
    }

    /// All of them.
    #[must_use]
    pub fn into_folders(self) -> Vec<Folder> {
        self.folders
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::wire::path_in;

    #[test]
    fn each_directory_is_named_once_behind_its_parent() {
        let mut folders = OfferedFolders::default();
        assert_eq!(folders.number_of(b""), 0);
        assert_eq!(folders.number_of(b"a/b/"), 2);
        assert_eq!(folders.number_of(b"a/"), 1);
        assert_eq!(folders.place_of(b"a/b/c/name"), (3, b"name".to_vec()));
        assert_eq!(folders.place_of(b"name"), (0, b"name".to_vec()));
        let folders = folders.into_folders();
        assert_eq!(path_in(&folders, 3, b"name"), b"a/b/c/name");
        assert_eq!(path_in(&folders, 0, b"name"), b"name");
        assert_eq!(path_in(&folders, 0, b""), b"");
    }
}
