//! What of a tree was passed over, counted by kind.
//!
//! Leaves to others: finding it. Invariant: nothing in here is a failure.

/// What of a tree was not copied, and is no failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// Sockets, which mean nothing without who listens.
    pub sockets: u64,
    /// Directories that a list means alone, though something is in them.
    pub bare_directories: u64,
}

impl std::ops::AddAssign for PassedOver {
    fn add_assign(&mut self, other: Self) {
        self.sockets += other.sockets;
        self.bare_directories += other.bare_directories;
    }
}

impl PassedOver {
    /// A sentence for each kind.
    #[must_use]
    pub fn sentences(self) -> Vec<String> {
        let mut sentences = Vec::new();
        if self.sockets > 0 {
            let (sockets, were) = match self.sockets {
                1 => ("socket", "was"),
                _ => ("sockets", "were"),
            };
            sentences.push(format!("{} {sockets} {were} passed over", self.sockets));
        }
        if self.bare_directories > 0 {
            let (directories, them) = match self.bare_directories {
                1 => ("directory of the list was", "it"),
                _ => ("directories of the list were", "them"),
            };
            sentences.push(format!(
                "{} {directories} copied without what is in {them}: a slash behind a name takes that along",
                self.bare_directories
            ));
        }
        sentences
    }
}
