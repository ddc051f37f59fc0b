//! What a sender offers: entries of every kind, in the directories that they lie in.
//!
//! Leaves to others: finding them, and making them at the other end. Invariant: an
//! offer stands for itself: it names every directory that its entries lie in, so
//! that neither side keeps one for the next.

use super::list::bounded;
use crate::limits;
use crate::protocol::{SegmentId, TransferId};
use serde::{Deserialize, Serialize};

/// The number of a directory in its offer: 0 is where the transfer's files go, and
/// number `n` is the `n`th of the offer, counted from 1.
pub type FolderId = u32;

/// A directory that entries of an offer lie in, or other such directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// The one that it lies in, whose number is lower than its own.
    pub parent: FolderId,
    /// One component.
    pub name: Vec<u8>,
}

/// A place in an offer: a name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedIn {
    /// The directory.
    pub folder: FolderId,
    /// One component.
    pub name: Vec<u8>,
}

/// What an entry is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file of known size.
    #[default]
    File,
    /// Bytes without an end yet known: alone in its segment.
    Stream,
    /// A directory. It comes behind everything that lies in it, and gets its mode,
    /// owner and time when all of that has ended.
    Directory,
    /// A symbolic link, and what it says.
    Symlink(Vec<u8>),
    /// Another name of a file that was offered before, by its first one, and that
    /// file's size: with the time it tells the file that was copied from another.
    HardLink(NamedIn, u64),
    /// A FIFO.
    Fifo,
    /// A character device: its number's major and minor part.
    CharacterDevice(u32, u32),
    /// A block device, the same.
    BlockDevice(u32, u32),
}

impl EntryKind {
    /// True where it is made only when everything before it has ended.
    #[must_use]
    pub fn comes_last(&self) -> bool {
        matches!(self, Self::Directory | Self::HardLink(..))
    }

    /// True where it has bytes: a file, or a stream.
    #[must_use]
    pub fn has_bytes(&self) -> bool {
        matches!(self, Self::File | Self::Stream)
    }
}

/// To whom an entry belongs, by the numbers of the sender's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// One extended attribute: also an access control list, or a file's capabilities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribute {
    /// With its class, such as "user.".
    pub name: Vec<u8>,
    /// As the kernel gives it.
    pub value: Vec<u8>,
}

/// One file, directory, link or special file as the sender offers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The directory that it lies in.
    pub folder: FolderId,
    /// One component: never empty, "." or "..", no '/' and no NUL. Empty for the
    /// directory that is folder 0 itself.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file; 0 for everything else, a stream as well.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, whole seconds since 1970.
    pub mtime_seconds: i64,
    /// … and nanoseconds.
    pub mtime_nanos: u32,
    /// To whom it belongs; nothing where that is not to be kept.
    pub owner: Option<Ownership>,
    /// Its extended attributes, all of them; nothing where they are not to be kept.
    #[serde(deserialize_with = "some_attributes")]
    pub attributes: Option<Vec<Attribute>>,
    /// BLAKE3 of all bytes of a file, where its content is compared.
    pub content: Option<[u8; 32]>,
    /// Where a file has data; the rest are holes, which are neither read nor sent.
    pub data: Data,
}

fn some_attributes<'de, D>(deserializer: D) -> Result<Option<Vec<Attribute>>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    #[derive(Deserialize)]
    struct Some(
        #[serde(deserialize_with = "bounded::<_, _, { limits::ENTRY_ATTRIBUTES_MAX }>")]
        Vec<Attribute>,
    );
    let some: Option<Some> = Option::deserialize(deserializer)?;
    Ok(some.map(|Some(attributes)| attributes))
}

impl Entry {
    /// Bytes that are no hole.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        match &self.data {
            Data::Everywhere => self.size,
            // They are disjoint, and inside the file.
            Data::Ranges(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
        }
    }

    /// Bytes of all its names and texts, of which a segment takes
    /// [`limits::SEGMENT_NAMES_BYTES_MAX`].
    #[must_use]
    pub fn names_bytes(&self) -> usize {
        let told = match &self.kind {
            EntryKind::Symlink(text) => text.len(),
            EntryKind::HardLink(first, _) => first.name.len(),
            _ => 0,
        };
        let attributes = self.attributes.iter().flatten();
        // And their lengths.
        let attributes = attributes.map(|one| one.name.len() + one.value.len() + 8);
        self.name.len() + told + attributes.sum::<usize>()
    }
}

/// Bytes `start..end` of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Where a file has data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// It has no holes, or nobody can tell.
    #[default]
    Everywhere,
    /// In these ranges, ascending, not touching; possibly in none.
    Ranges(
        #[serde(deserialize_with = "bounded::<_, _, { limits::DATA_RANGES_MAX }>")] Vec<ByteRange>,
    ),
}

/// The name of a user or a group on the sender's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdName {
    /// Its number there.
    pub id: u32,
    /// What it is called there.
    pub name: Vec<u8>,
}

/// A segment, offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The transfer.
    pub transfer: TransferId,
    /// This segment's number, counted from 0 without a gap.
    pub segment: SegmentId,
    /// No segment follows.
    pub last: bool,
    /// The directories that the entries lie in.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_FOLDERS_MAX }>")]
    pub folders: Vec<Folder>,
    /// The entries.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_ENTRIES_MAX }>")]
    pub entries: Vec<Entry>,
    /// Names of the entries' users; who has none, or whose is not to be used, is
    /// known by number.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_IDS_MAX }>")]
    pub users: Vec<IdName>,
    /// The same of groups.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_IDS_MAX }>")]
    pub groups: Vec<IdName>,
}

/// The path of `name` in `folder` from where the transfer's files go.
#[must_use]
pub fn path_in(folders: &[Folder], folder: FolderId, name: &[u8]) -> Vec<u8> {
    let mut parts = vec![name];
    let mut at = folder;
    // Parents have lower numbers, so that this ends.
    while let Some(next) = (at as usize).checked_sub(1).and_then(|at| folders.get(at)) {
        parts.push(&next.name);
        at = next.parent.min(at.saturating_sub(1));
    }
    parts.reverse();
    parts.retain(|part| !part.is_empty());
    parts.join(&b'/')
}

#[cfg(test)]
pub(super) mod tests;
