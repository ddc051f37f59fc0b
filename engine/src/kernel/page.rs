//! How large the pages of memory are.
//!
//! Leaves to others: mapping, and who is given huge ones. Invariant: these are
//! numbers of the machine, and import nothing.

/// Alignment and granularity of everything that is mapped or lent, in bytes.
/// Direct reads and writes want the device's block size, which never exceeds
/// it in practice.
pub const PAGE_BYTES: usize = 4096;
/// A huge page of x86-64 and the common arm64 kernels, in bytes.
pub const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;
