//! What the kernel gives: rings, memory, sockets, what it can do. The only
//! folder with `unsafe` and libc.
//!
//! Leaves to others: all meaning; results are errnos and counts. Invariant:
//! safe functions here reach no memory but what they own, and what is lent to
//! the kernel is kept until the last completion. Bytes of mapped files may
//! change while they are looked at, by whoever has the file; nothing here or
//! above trusts them before a check held, which reads them once more or fails.

pub mod descriptors;
pub mod fault;
pub mod file;
pub mod huge;
pub mod memory;
pub mod page;
pub mod probe;
pub mod queue;
pub mod random;
pub mod ring;
pub mod socket;
pub mod standard;
pub mod thread;
pub mod xattr;

#[cfg(test)]
mod skipped;
#[cfg(test)]
pub(crate) use skipped::skip;
