//! Whole trees: read directory by directory, and made the same way.
//!
//! Leaves to others: single files (source, target). Invariant: memory is by the depth
//! of a tree and by one directory's part, never by what is in all of it.

pub mod delete;
pub mod filter;
pub mod follow;
mod level;
pub mod make;
pub mod names;
pub mod offered;
pub mod passed_over;
pub mod remove;
pub mod scan;
pub mod wanted;
