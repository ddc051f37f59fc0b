//! The bytes on every connection: greeting, envelopes, data frames.
//!
//! Leaves to others: what a message makes a side do. Invariant: decoding never
//! allocates more than the bytes at hand justify, never panics, and what
//! encodes decodes back; a decoded message is within every limit.

mod bounds;
mod codec;
mod greeting;
mod message;
#[cfg(test)]
mod tests;

pub use bounds::cut;
pub use codec::{MessageReader, encode};
pub use greeting::{
    JOIN_BYTES, Join, PREAMBLE_BYTES, Preamble, PreambleReply, Role, VERSION_MAX, VERSION_MIN,
    choose_version,
};
pub use message::*;
