//! The client: it dials a peer, starts transfers and reports them.
//!
//! Leaves to others: what both ends of a session share. Invariant: a caller who
//! started a transfer gets exactly one report.

mod dial;
mod greet;
pub mod pool;
mod role;
pub mod transfer;
