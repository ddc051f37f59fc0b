//! Stub.
/// Stub.
pub struct Source;
