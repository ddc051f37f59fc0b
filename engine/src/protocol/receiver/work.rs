//! One open segment: what landed of it, and how far each file is.
//!
//! Leaves to others: who may write what (the ledger). Invariant: a file is
//! ready exactly when all its chunks landed and the sender said `Closed` after
//! it had heard every word of ours that could make it read the file again.

use crate::protocol::plan::Plan;
use crate::protocol::ranges::RangeSet;
use crate::protocol::wire::{Offer, Touched};
use crate::protocol::{ChunkId, FileId};
use std::ops::Range;

/// Where a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceivingFileState {
    /// Chunks, or the sender's word, are missing. From: the answer.
    /// To: Settling, Ended.
    Moving,
    /// The hands sync and name it. From: Moving. To: Ended.
    Settling,
    /// Settled, failed, skipped or refused. From: any. To: none.
    Ended,
}

/// The sender's word that a source is unchanged.
#[derive(Clone, Copy)]
pub(super) struct Closed {
    pub size: u64,
    pub recalls: u32,
    pub touched: Option<Touched>,
}

pub(super) struct ReceivingFile {
    /// As offered; `None` for a stream.
    pub size: Option<u64>,
    /// What counts as sealed once it is.
    pub wanted_bytes: u64,
    /// Shares of chunks (see `Plan::shares`); a stream's once it is closed.
    pub shares: Option<u64>,
    /// Shares that landed.
    pub landed: u64,
    /// `Damaged` and `Drained` said of its chunks.
    pub recalls: u32,
    pub closed: Option<Closed>,
    /// See [`EntryKind::comes_last`].
    ///
    /// [`EntryKind::comes_last`]: crate::protocol::wire::EntryKind::comes_last
    pub comes_last: bool,
    pub state: ReceivingFileState,
}

pub(super) struct ReceivingWork {
    pub plan: Plan,
    pub files: Vec<ReceivingFile>,
    /// Files that did not end.
    pub files_open: usize,
    /// Those of them that do not come last.
    first_open: usize,
    /// `Freed` said since the answer.
    pub freed: u32,
    pub landed: RangeSet,
    /// Payload bytes that landed.
    pub landed_bytes: u64,
}

impl ReceivingWork {
    pub fn new(offer: &Offer, plan: Plan) -> Self {
        let entries = (0..).zip(&offer.entries);
        let files: Vec<ReceivingFile> = entries
            .map(|(file, entry)| ReceivingFile {
                size: (!plan.is_stream()).then_some(entry.size),
                wanted_bytes: plan.bytes_of(file),
                shares: plan.shares_of(file),
                landed: 0,
                recalls: 0,
                closed: None,
                comes_last: entry.kind.comes_last(),
                state: ReceivingFileState::Moving,
            })
            .collect();
        Self {
            plan,
            files_open: files.len(),
            first_open: files.iter().filter(|file| !file.comes_last).count(),
            files,
            freed: 0,
            landed: RangeSet::new(),
            landed_bytes: 0,
        }
    }

    /// The file ended; true where those that come last waited for it alone.
    pub fn end(&mut self, file: FileId) -> bool {
        let entry = &mut self.files[file as usize];
        entry.state = ReceivingFileState::Ended;
        self.files_open -= 1;
        self.first_open -= usize::from(!entry.comes_last);
        self.first_open == 0 && !entry.comes_last
    }

    /// Counts what landed; false, and nothing is counted, when some of it had
    /// landed before.
    pub fn land(&mut self, chunks: Range<ChunkId>, bytes: u64) -> bool {
        if self.landed.overlaps(chunks.clone()) {
            return false;
        }
        self.landed.insert(chunks.clone());
        self.landed_bytes = self.landed_bytes.saturating_add(bytes);
        for (file, count) in self.plan.shares(chunks) {
            self.files[file as usize].landed += count;
        }
        true
    }

    /// The sender is asked to read these chunks again; false when no file
    /// needs them.
    pub fn recall(&mut self, chunks: Range<ChunkId>) -> bool {
        let mut needed = false;
        for file in self.plan.files_of(chunks) {
            let file = &mut self.files[file as usize];
            file.recalls = file.recalls.wrapping_add(1);
            needed |= file.state != ReceivingFileState::Ended;
        }
        needed
    }

    /// The count that makes a `Closed` of the file current.
    pub fn recalls_of(&self, file: &ReceivingFile) -> u32 {
        file.recalls.wrapping_add(self.freed)
    }

    /// True when the file can be settled; `is_front` says that no segment before
    /// its own is open.
    pub fn is_ready(&self, file: &ReceivingFile, is_front: bool) -> bool {
        let may_be_last = is_front && self.first_open == 0;
        file.state == ReceivingFileState::Moving
            && (!file.comes_last || may_be_last)
            && file.shares == Some(file.landed)
            && file
                .closed
                .is_some_and(|closed| closed.recalls == self.recalls_of(file))
    }
}
