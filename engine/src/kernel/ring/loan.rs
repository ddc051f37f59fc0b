//! What an operation lends to the kernel: descriptors, bytes to read, blocks
//! to fill, and the message headers that name them.
//!
//! Leaves to others: when it is given back (the ring). Invariant: an address
//! is taken from its owner at submission, and the owner is inside the loan.

use super::super::fault::Watch;
use super::super::huge::HugeWindow;
use super::super::memory::{Block, Window};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A descriptor that stays open while an operation may use it, because the
/// operation holds whoever owns it.
#[derive(Clone)]
pub struct Handle {
    raw: RawFd,
    owner: Arc<dyn Send + Sync>,
}

impl Handle {
    /// The descriptor that `choose` finds in `owner`.
    pub fn of<T, F>(owner: &Arc<T>, choose: F) -> Self
    where
        T: Send + Sync + 'static,
        F: FnOnce(&T) -> BorrowedFd<'_>,
    {
        let raw = choose(owner).as_raw_fd();
        let owner = owner.clone();
        Self { raw, owner }
    }

    /// The number, valid while this handle lives.
    #[must_use]
    pub fn raw(&self) -> RawFd {
        self.raw
    }
}

impl From<OwnedFd> for Handle {
    fn from(descriptor: OwnedFd) -> Self {
        Self::of(&Arc::new(descriptor), |descriptor| descriptor.as_fd())
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the owner is held by `self` and keeps the descriptor open.
        unsafe { BorrowedFd::borrow_raw(self.raw) }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Handle({}, {} owners)",
            self.raw,
            Arc::strong_count(&self.owner)
        )
    }
}

/// Who owns bytes that the kernel reads.
#[derive(Clone, Debug)]
pub enum Owner {
    /// A block of an arena.
    Block(Arc<Block>),
    /// A mapped part of a file.
    Window(Arc<Window>),
    /// Bytes of their own.
    Vector(Arc<Vec<u8>>),
}

impl Owner {
    fn bytes(&self) -> usize {
        match self {
            Self::Block(block) => block.len(),
            Self::Window(window) => window.len(),
            Self::Vector(vector) => vector.len(),
        }
    }
}

/// A range of bytes that the kernel reads, with their owner.
#[derive(Clone, Debug)]
pub struct Slice {
    owner: Owner,
    range: Range<usize>,
}

impl Slice {
    /// The bytes `range` of `owner`.
    ///
    /// # Panics
    /// If the range is not inside its owner (own invariant).
    #[must_use]
    pub fn new(owner: Owner, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= owner.bytes(),
            "a slice lies inside its owner"
        );
        Self { owner, range }
    }

    /// How long it is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True when it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Cuts it in two.
    ///
    /// # Panics
    /// If a half would be empty, or it is of a block with another holder (own
    /// invariants).
    #[must_use]
    pub fn split(self, at: usize) -> (Self, Self) {
        assert!(0 < at && at < self.len(), "neither half is empty");
        let Range { start, end } = self.range;
        match self.owner {
            Owner::Block(block) => {
                let (first, second) = Block::split(block, start + at);
                let first = Self::new(Owner::Block(first), start..start + at);
                (first, Self::new(Owner::Block(second), 0..end - start - at))
            }
            owner => {
                let second = Self::new(owner.clone(), start + at..end);
                (Self::new(owner, start..start + at), second)
            }
        }
    }

    /// Its bytes; `None` for a mapped file's, which only the kernel reads.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        let bytes = match &self.owner {
            Owner::Block(block) => block.as_slice(),
            Owner::Window(_) => return None,
            Owner::Vector(vector) => vector.as_slice(),
        };
        Some(&bytes[self.range.clone()])
    }

    /// Its bytes, a mapped file's too, which may change while they are looked
    /// at: good for a check, which then fails, and for nothing that trusts them.
    #[must_use]
    pub fn bytes<'a>(&'a self, _watch: &'a Watch) -> &'a [u8] {
        match (self.as_bytes(), &self.owner) {
            // SAFETY: the range lies inside the window, which stays mapped
            // while the slice is borrowed; a page that the file has lost is
            // replaced by zeros while `_watch` lives.
            (None, Owner::Window(window)) => unsafe {
                std::slice::from_raw_parts(window.pointer(&self.range), self.range.len())
            },
            (bytes, _) => bytes.unwrap_or(&[]),
        }
    }

    /// Gives the owner back.
    #[must_use]
    pub fn into_owner(self) -> Owner {
        self.owner
    }

    pub(super) fn pointer(&self) -> *const u8 {
        match &self.owner {
            Owner::Block(block) => block.pointer().wrapping_add(self.range.start),
            Owner::Window(window) => window.pointer(&self.range),
            Owner::Vector(vector) => vector.as_ptr().wrapping_add(self.range.start),
        }
    }

    pub(super) fn as_block(&self) -> Option<&Arc<Block>> {
        match &self.owner {
            Owner::Block(block) => Some(block),
            _ => None,
        }
    }
}

/// What one send takes: bytes of its own in front, then slices, in order.
/// Box it once and use it again: sending allocates nothing then.
#[derive(Default)]
pub struct IoMessage {
    /// The bytes in front, such as a frame's header and table.
    pub head: Vec<u8>,
    /// What follows.
    pub slices: Vec<Slice>,
    /// Bytes at the front that went already.
    skip: usize,
    iovecs: Vec<libc::iovec>,
    header: Option<libc::msghdr>,
}

impl IoMessage {
    /// Bytes that are still to go.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let all = self.head.len() + self.slices.iter().map(Slice::len).sum::<usize>();
        all - self.skip
    }

    /// Forgets the first `bytes` of what is still to go: they went.
    ///
    /// # Panics
    /// If fewer are left (own invariant).
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes(), "no more is sent than there was");
        self.skip += bytes;
    }

    /// Moves all but the first `bytes` of what is to go into `rest`, which is empty.
    ///
    /// # Panics
    /// If not even as many are to go, or some went before (own invariants).
    pub fn cut(&mut self, bytes: usize, rest: &mut Self) {
        assert!(
            self.skip == 0 && bytes < self.bytes() && rest.bytes() == 0,
            "a message is cut before any of it goes"
        );
        if bytes < self.head.len() {
            rest.head.extend(self.head.drain(bytes..));
        }
        let mut left = bytes.saturating_sub(self.head.len());
        let whole = self.slices.iter().take_while(|slice| {
            let fits = slice.len() <= left;
            left -= if fits { slice.len() } else { 0 };
            fits
        });
        let whole = whole.count();
        rest.slices.extend(self.slices.drain(whole..));
        if left > 0 {
            let (front, behind) = rest.slices.remove(0).split(left);
            self.slices.push(front);
            rest.slices.insert(0, behind);
        }
    }

    /// Empties it, keeping its allocations.
    pub fn clear(&mut self) {
        self.head.clear();
        self.slices.clear();
        self.iovecs.clear();
        self.skip = 0;
        self.header = None;
    }

    /// Writes the kernel's view of it and returns that view's address, good
    /// until the message is touched or dropped.
    pub(super) fn prepare(&mut self) -> *const libc::msghdr {
        let mut skip = self.skip;
        let parts = std::iter::once((self.head.as_ptr(), self.head.len())).chain(
            self.slices
                .iter()
                .map(|slice| (slice.pointer(), slice.len())),
        );
        self.iovecs.clear();
        for (pointer, bytes) in parts {
            let skipped = skip.min(bytes);
            skip -= skipped;
            if bytes > skipped {
                self.iovecs.push(libc::iovec {
                    iov_base: pointer.wrapping_add(skipped).cast_mut().cast(),
                    iov_len: bytes - skipped,
                });
            }
        }
        let header = self.header.insert(empty_header());
        header.msg_iov = self.iovecs.as_mut_ptr();
        header.msg_iovlen = self.iovecs.len() as _;
        header
    }
}

/// The address of `range` of a block that nobody else holds.
///
/// # Panics
/// If the block is shared or the range is not inside it (own invariants): the
/// kernel would write where others read.
pub(super) fn writable(block: &mut Arc<Block>, range: &Range<usize>) -> *mut u8 {
    let block = Arc::get_mut(block).expect("a block that the kernel fills has one holder");
    block.as_mut_slice()[range.clone()].as_mut_ptr()
}

/// A message header that names nothing.
fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeros mean "nothing".
    unsafe { std::mem::zeroed() }
}

/// What an operation borrowed, on its way back to the caller.
#[derive(Default)]
pub enum Loan {
    /// Nothing, or not yet.
    #[default]
    None,
    /// Of a send.
    Message(Box<IoMessage>),
    /// Of a receive or read into one block.
    Block(Arc<Block>),
    /// Of a write.
    Slice(Slice),
    /// Of populating a window.
    Window(Arc<Window>),
    /// Of a receive into a window, or of gathering its pages.
    HugeWindow(Arc<HugeWindow>),
}

impl Loan {
    /// The message, where it was one.
    #[must_use]
    pub fn into_message(self) -> Option<Box<IoMessage>> {
        match self {
            Self::Message(message) => Some(message),
            _ => None,
        }
    }

    /// The block, where it was one.
    #[must_use]
    pub fn into_block(self) -> Option<Arc<Block>> {
        match self {
            Self::Block(block) => Some(block),
            _ => None,
        }
    }
}
