//! haul measured: the bare movers that are the limit reference.
//!
//! Leaves to others: haul itself and its rivals (scripts/). Invariant: nothing
//! here is linked into haul, and nothing here asserts a time.

pub mod limit;
