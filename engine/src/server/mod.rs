//! The server: it accepts sessions below one root.
//!
//! Leaves to others: what both ends of a session share. Invariant: nothing is
//! opened or kept for a peer that proved nothing, beyond its greeting.

mod greet;
pub mod house;
pub mod listen;
mod serving;
