//! Digests of whole files: of one that is read from its first byte to its last,
//! and BLAKE3's tree joined from pieces that come in any order.
//!
//! Leaves to others: where the pieces come from, on which threads they are
//! summed, and what a digest is held against. Invariant: a digest is told only
//! where every byte of the file went into it once.

use crate::error::why;
use crate::limits;
use crate::options::DigestKind;
use crate::report::Digest;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, max_subtree_len, merge_subtrees_non_root,
    merge_subtrees_root,
};
use blake3::{CHUNK_LEN, Hasher, OUT_LEN};
use rustix::fs::Advice;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// One read of a file.
pub(super) const READ_BYTES: usize = limits::BLOCK_BYTES;

/// The root's bytes, and the value of a subtree that is no root.
type Root = [u8; OUT_LEN];

/// One piece of a file, summed: what [`TreeDigest::add`] takes.
#[derive(Clone, Debug)]
pub struct TreeLeaf {
    offset: u64,
    bytes: u64,
    sum: LeafSum,
}

/// What a piece may be within its file's tree.
#[derive(Clone, Copy, Debug)]
enum LeafSum {
    /// No byte, so nothing.
    Empty,
    /// The file's start, which is the whole file if nothing follows.
    First { inner: ChainingValue, root: Root },
    /// A piece behind it.
    Inner(ChainingValue),
    /// No part of the tree can lie there.
    Unaligned,
}

/// A piece while its bytes are read.
pub(super) struct LeafHasher {
    offset: u64,
    bytes: u64,
    /// Bytes that one part of the tree has from this offset on, at most.
    bytes_max: u64,
    hasher: Hasher,
}

impl LeafHasher {
    /// The piece from `offset` on.
    pub(super) fn new(offset: u64) -> Self {
        let mut hasher = Hasher::new();
        let mut bytes_max = 0;
        if offset.is_multiple_of(CHUNK_LEN as u64) {
            hasher.set_input_offset(offset);
            bytes_max = max_subtree_len(offset).unwrap_or(u64::MAX);
        }
        Self {
            offset,
            bytes: 0,
            bytes_max,
            hasher,
        }
    }

    /// The piece's next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes <= self.bytes_max {
            self.hasher.update(bytes);
        }
    }

    /// The piece, when all of its bytes were given.
    pub(super) fn finish(&self) -> TreeLeaf {
        let sum = match (self.bytes, self.offset) {
            (0, _) => LeafSum::Empty,
            (bytes, _) if bytes > self.bytes_max => LeafSum::Unaligned,
            (_, 0) => LeafSum::First {
                inner: self.hasher.finalize_non_root(),
                root: self.hasher.finalize().into(),
            },
            _ => LeafSum::Inner(self.hasher.finalize_non_root()),
        };
        TreeLeaf {
            offset: self.offset,
            bytes: self.bytes,
            sum,
        }
    }
}

/// The BLAKE3 digest of one file, from pieces that come in any order: all of one
/// length, a power of two of 1 KiB or more, at multiples of it, and a shorter last
/// one; or one piece that is the whole file, of any length.
///
/// Neighbours are joined as soon as both are there. What begins with the file's
/// first byte is not, since only the end tells whether that is the root; so of
/// pieces in order there is one value for each doubling of what is there.
#[derive(Clone, Debug, Default)]
pub struct TreeDigest {
    /// Parts of the tree by their offset, with their lengths.
    parts: BTreeMap<u64, (u64, ChainingValue)>,
    /// The first piece as a root, and its length.
    first: Option<(u64, Root)>,
    /// Bytes of all pieces.
    bytes: u64,
    /// A piece was no part of the tree, or came twice.
    spoilt: bool,
}

impl TreeDigest {
    /// Sums a piece of a file: the expensive step, which needs nothing but its
    /// bytes, and so no lock.
    #[must_use]
    pub fn leaf(offset: u64, bytes: &[u8]) -> TreeLeaf {
        let mut hasher = LeafHasher::new(offset);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Adds a piece: the cheap step.
    pub fn add(&mut self, leaf: TreeLeaf) {
        let value = match leaf.sum {
            LeafSum::Empty => return,
            LeafSum::First { inner, root } => {
                self.first = Some((leaf.bytes, root));
                inner
            }
            LeafSum::Inner(value) => value,
            LeafSum::Unaligned => {
                self.spoilt = true;
                return;
            }
        };
        self.bytes = self.bytes.saturating_add(leaf.bytes);
        let (offset, bytes, value) = self.joined(leaf.offset, leaf.bytes, value);
        self.spoilt |= self.parts.insert(offset, (bytes, value)).is_some();
    }

    /// The largest part that the new one and those that are there make.
    fn joined(
        &mut self,
        mut offset: u64,
        mut bytes: u64,
        mut value: ChainingValue,
    ) -> (u64, u64, ChainingValue) {
        // Only what is whole has a sibling of its own length.
        while bytes.is_power_of_two() && bytes >= CHUNK_LEN as u64 && offset & !bytes != 0 {
            let sibling = offset ^ bytes;
            let Some((_, other)) = self.parts.get(&sibling).filter(|part| part.0 == bytes) else {
                break;
            };
            value = match sibling < offset {
                true => merge_subtrees_non_root(other, &value, Mode::Hash),
                false => merge_subtrees_non_root(&value, other, Mode::Hash),
            };
            self.parts.remove(&sibling);
            offset &= !bytes;
            bytes *= 2;
        }
        (offset, bytes, value)
    }

    /// The digest of the file, which has `size` bytes; `None` where a piece is
    /// missing, came twice or was not aligned: then only reading the file tells.
    #[must_use]
    pub fn finish(&self, size: u64) -> Option<Digest> {
        if self.spoilt || self.bytes != size {
            return None;
        }
        let bytes = match self.first {
            _ if size == 0 => *blake3::hash(b"").as_bytes(),
            Some((first_bytes, root)) if first_bytes == size => root,
            _ if size <= CHUNK_LEN as u64 => return None,
            _ => {
                let (left, right) = self.children(0, size)?;
                merge_subtrees_root(&left, &right, Mode::Hash).into()
            }
        };
        Some(Digest {
            kind: DigestKind::Blake3,
            bytes,
        })
    }

    /// The value of the part of the tree at `offset` that has `bytes`.
    fn part(&self, offset: u64, bytes: u64) -> Option<ChainingValue> {
        if let Some((found, value)) = self.parts.get(&offset)
            && *found == bytes
        {
            return Some(*value);
        }
        let (left, right) = self.children(offset, bytes)?;
        Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
    }

    /// The values of its two halves; one chunk of BLAKE3's has none.
    fn children(&self, offset: u64, bytes: u64) -> Option<(ChainingValue, ChainingValue)> {
        if bytes <= CHUNK_LEN as u64 {
            return None;
        }
        let left = left_subtree_len(bytes);
        Some((
            self.part(offset, left)?,
            self.part(offset + left, bytes - left)?,
        ))
    }

    /// Values that are kept.
    #[cfg(test)]
    fn part_count(&self) -> usize {
        self.parts.len()
    }
}

/// Why a file has no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestFault {
    /// A read failed.
    Read(Errno),
    /// The file ends before the size that was asked for.
    Short,
    /// It was stopped.
    Stopped,
}

impl std::fmt::Display for DigestFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(errno) => f.write_str(&why(*errno)),
            Self::Short => f.write_str("it became shorter while it was read"),
            Self::Stopped => f.write_str("it was stopped"),
        }
    }
}

/// The digest of the first `size` bytes of the open regular `file`, read in order
/// on the calling thread, until `stop` is set.
///
/// # Errors
/// See [`DigestFault`].
pub fn digest_of(
    file: BorrowedFd<'_>,
    size: u64,
    kind: DigestKind,
    stop: &AtomicBool,
) -> Result<Digest, DigestFault> {
    let mut buffer = vec![0; usize::try_from(size).map_or(READ_BYTES, |size| size.min(READ_BYTES))];
    digest_with(file, size, kind, &mut buffer, stop)
}

/// The same, which nobody stops: a transfer's own end waits for it.
///
/// # Errors
/// See [`DigestFault`].
pub fn digest_to_the_end(
    file: BorrowedFd<'_>,
    size: u64,
    kind: DigestKind,
) -> Result<Digest, DigestFault> {
    digest_of(file, size, kind, &AtomicBool::new(false))
}

/// As [`digest_of`], through `buffer`, which is not empty where `size` is not 0.
pub(super) fn digest_with(
    file: BorrowedFd<'_>,
    size: u64,
    kind: DigestKind,
    buffer: &mut [u8],
    stop: &AtomicBool,
) -> Result<Digest, DigestFault> {
    if size > buffer.len() as u64 {
        // Who cannot follow the advice reads all the same.
        let _ = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
    }
    let bytes = match kind {
        DigestKind::Blake3 => {
            let mut hasher = Hasher::new();
            read_range(file, 0..size, buffer, stop, |bytes| {
                hasher.update(bytes);
            })?;
            hasher.finalize().into()
        }
        DigestKind::Sha256 => {
            let mut hasher = Sha256::new();
            read_range(file, 0..size, buffer, stop, |bytes| hasher.update(bytes))?;
            hasher.finalize().into()
        }
    };
    Ok(Digest { kind, bytes })
}

/// Reads `range` of `file` in order through `buffer`, which is not empty where the
/// range is not; `take` is given all of it.
pub(super) fn read_range(
    file: BorrowedFd<'_>,
    range: Range<u64>,
    buffer: &mut [u8],
    stop: &AtomicBool,
    mut take: impl FnMut(&[u8]),
) -> Result<(), DigestFault> {
    let mut at = range.start;
    while at < range.end {
        if stop.load(Ordering::Relaxed) {
            return Err(DigestFault::Stopped);
        }
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let room = left.min(buffer.len());
        match rustix::io::pread(file, &mut buffer[..room], at) {
            Ok(0) => return Err(DigestFault::Short),
            Ok(bytes) => {
                take(&buffer[..bytes]);
                at += bytes as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(DigestFault::Read(errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
