//! Stub.
/// Stub.
pub struct Target;
