//! What the kernel gives: rings, memory, sockets, what it can do. The only
//! folder with `unsafe` and libc.
//!
//! Leaves to others: all meaning; results are errnos and counts. Invariant:
//! safe functions here cannot be misused into undefined behaviour, and what is
//! lent to the kernel is kept until the last completion.

pub mod fault;
pub mod file;
pub mod huge;
pub mod memory;
pub mod probe;
pub mod queue;
pub mod ring;
pub mod socket;
pub mod thread;
