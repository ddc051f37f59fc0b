//! The digest of one file while it lands.
//!
//! Leaves to others: when it has all landed, and who is told. Invariant: what is found
//! is of the bytes that were checked as they landed, or else of the file as it is read
//! back before it gets its name.

use super::digest::{DigestFault, TreeDigest, digest_to_the_end};
use crate::options::DigestKind;
use crate::report::Digest;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What is known of it so far.
#[derive(Debug)]
pub struct LandedDigest {
    kind: DigestKind,
    tree: Mutex<TreeDigest>,
    found: OnceLock<Digest>,
}

impl LandedDigest {
    /// Nothing landed yet.
    #[must_use]
    pub fn new(kind: DigestKind) -> Self {
        Self {
            kind,
            tree: Mutex::default(),
            found: OnceLock::new(),
        }
    }

    /// True where pieces are wanted as they land: SHA-256 takes bytes in order alone.
    #[must_use]
    pub fn takes_pieces(&self) -> bool {
        self.kind == DigestKind::Blake3
    }

    /// A piece of the file landed.
    pub fn add(&self, offset: u64, bytes: &[u8]) {
        if self.takes_pieces() {
            // Hashed outside the lock: several workers may land one file.
            let leaf = TreeDigest::leaf(offset, bytes);
            let mut tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
            tree.add(leaf);
        }
    }

    /// All of it landed in `file`: what is missing, as holes are, is read back.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn find(&self, file: BorrowedFd<'_>, size: u64) -> Result<(), DigestFault> {
        let tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = tree.finish(size).filter(|_| self.takes_pieces());
        drop(tree);
        let digest = match joined {
            Some(digest) => digest,
            None => digest_to_the_end(file, size, self.kind)?,
        };
        // It is found once.
        let _ = self.found.set(digest);
        Ok(())
    }

    /// What was found.
    #[must_use]
    pub fn found(&self) -> Option<Digest> {
        self.found.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn what_did_not_land_in_pieces_is_read_back() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("written");
        let size = bytes.len() as u64;
        for kind in [DigestKind::Blake3, DigestKind::Sha256] {
            let wanted = digest_to_the_end(file.as_fd(), size, kind).expect("read");
            for landed in [0, 1, 3] {
                let digest = LandedDigest::new(kind);
                let pieces = bytes.chunks(131_072).enumerate();
                for (number, piece) in pieces.take(landed) {
                    digest.add(number as u64 * 131_072, piece);
                }
                assert_eq!(digest.found(), None);
                digest.find(file.as_fd(), size).expect("found");
                assert_eq!(digest.found(), Some(wanted), "{kind}, {landed} pieces");
            }
        }
        // Joined from what landed, it is not read at all.
        let digest = LandedDigest::new(DigestKind::Blake3);
        digest.add(0, &bytes[..100]);
        file.set_len(0).expect("cut");
        digest.find(file.as_fd(), 100).expect("found");
        let wanted = *blake3::hash(&bytes[..100]).as_bytes();
        assert_eq!(digest.found().map(|digest| digest.bytes), Some(wanted));
        let digest = LandedDigest::new(DigestKind::Blake3);
        assert_eq!(digest.find(file.as_fd(), 100), Err(DigestFault::Short));
    }
}
