//! The file hands: all path work, on held descriptors, in blocking calls.
//!
//! Leaves to others: threads to block on, and the moving of bulk bytes.
//! Invariant: nothing here opens, creates or renames outside the directory
//! that it holds, and no final name ever shows a partial file.

pub mod generated;
pub mod place;
pub mod source;
pub mod stream;
pub mod target;
