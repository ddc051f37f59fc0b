//! Envelopes: how a message becomes bytes and bytes become messages.
//!
//! Leaves to others: reading and writing sockets. Invariant: a tag's number
//! and its fields' order never change; a body is refused by its announced
//! length before a byte of it is kept, and what decodes is within the limits.

use super::Message;
use super::bounds::check_bounds;
use crate::limits;
use crate::protocol::Violation;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes in front of each body: length u32, tag u16, flags u16.
const ENVELOPE_BYTES: usize = 8;
/// Flag bit: a peer that does not know the tag skips the message.
const OPTIONAL: u16 = 1;

/// Writes the numeric tag table down once, for both directions: the fields
/// stand in their order on the wire.
macro_rules! tag_table {
    ($($tag:literal => $name:ident $(($whole:ident))? $({ $($field:ident),+ })?;)+) => {
        /// The message's tag and its body.
        fn encode_body(message: &Message, body: Vec<u8>) -> (u16, Vec<u8>) {
            match message {
                $(Message::$name $(($whole))? $({ $($field),+ })? => {
                    ($tag, append(&($($whole,)? $($($field,)+)?), body))
                })+
            }
        }

        /// True when this version has a message of that tag.
        pub(super) fn is_known(tag: u16) -> bool {
            matches!(tag, $($tag)|+)
        }

        /// The message of a known tag; `None` for an unknown one.
        fn decode_body(tag: u16, body: &[u8]) -> Option<Result<Message, Violation>> {
            Some(match tag {
                $($tag => read(tag, body).map(|($($whole,)? $($($field,)+)?)| {
                    Message::$name $(($whole))? $({ $($field),+ })?
                }),)+
                _ => return None,
            })
        }
    };
}

tag_table! {
    1 => Hello(hello);
    2 => Welcome(welcome);
    3 => Proof(proof);
    4 => Ready(ready);
    5 => Refuse(error);
    6 => Heartbeat { worked };
    16 => Joined { connection };
    19 => Lost { connection };
    20 => Freed { connection };
    32 => Begin(begin);
    33 => Begun { transfer, window_bytes, descriptors_max };
    34 => Offer(offer);
    35 => Answer(answer);
    36 => Landed { transfer, segment, chunks };
    37 => Damaged { transfer, segment, chunk };
    38 => Drained { transfer, segment, chunks };
    39 => Void { transfer, segment, file, chunks, error };
    40 => Closed { transfer, segment, files, stream_bytes, recalls, touched };
    41 => Changed { transfer, segment, file, error };
    42 => Settled { transfer, segment, files, level };
    43 => Failed { transfer, segment, file, error };
    44 => Finish { transfer, report };
    45 => Finished { transfer, report };
    46 => Abort { transfer, error };
    47 => EndStreams { transfer };
    48 => Sources(sources);
    49 => More { transfer };
    50 => Names(names);
    51 => Deleted { transfer, number, deletions };
    52 => Digests(digests);
}

/// The message as it goes over the wire, envelope included.
#[must_use]
pub fn encode(message: &Message) -> Vec<u8> {
    let (tag, mut bytes) = encode_body(message, vec![0; ENVELOPE_BYTES]);
    // Whoever builds a message keeps it within the limits, so the length fits.
    let body_bytes = (bytes.len() - ENVELOPE_BYTES) as u32;
    bytes[..4].copy_from_slice(&body_bytes.to_le_bytes());
    bytes[4..6].copy_from_slice(&tag.to_le_bytes());
    bytes
}

fn append<T: Serialize>(value: &T, body: Vec<u8>) -> Vec<u8> {
    // Writing to memory does not fail, and none of our types refuses.
    postcard::to_extend(value, body).expect("a message is plain data")
}

fn read<T: DeserializeOwned>(tag: u16, body: &[u8]) -> Result<T, Violation> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Violation::new(
            format!("the body of message {tag} to end"),
            format!("{} more bytes", rest.len()),
        )),
        // The decoder's own words name its types, which say nothing to a user.
        Err(_) => Err(Violation::new(
            format!("a body of message {tag}"),
            format!("{} bytes that make none", body.len()),
        )),
    }
}

/// A buffer that grew beyond this for one large message is given back.
const BUFFER_BYTES_KEPT: usize = 64 * 1024;

/// Cuts a stream of bytes into messages.
#[derive(Debug)]
pub struct MessageReader {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were consumed.
    consumed: usize,
    /// Bytes of a skipped body that are still to come.
    skip_bytes: usize,
    body_bytes_max: usize,
}

impl Default for MessageReader {
    fn default() -> Self {
        Self::new()
    }
}

impl MessageReader {
    /// A reader for a peer that has proved itself.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            skip_bytes: 0,
            body_bytes_max: limits::MESSAGE_BYTES_MAX,
        }
    }

    /// A reader for a peer that has proved nothing yet: bodies are small until
    /// [`MessageReader::trust`].
    #[must_use]
    pub fn greeting() -> Self {
        Self {
            body_bytes_max: limits::GREETING_MESSAGE_BYTES_MAX,
            ..Self::new()
        }
    }

    /// The peer proved itself: bodies up to [`limits::MESSAGE_BYTES_MAX`].
    pub fn trust(&mut self) {
        self.body_bytes_max = limits::MESSAGE_BYTES_MAX;
    }

    /// Takes what a read brought. Call [`MessageReader::next`] until it gives
    /// `None` before the next push; then no more than one message is kept.
    pub fn push(&mut self, bytes: &[u8]) {
        let skipped = self.skip_bytes.min(bytes.len());
        self.skip_bytes -= skipped;
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(&bytes[skipped..]);
    }

    /// The next whole message, if it is there. Unknown optional ones are
    /// skipped.
    ///
    /// # Errors
    /// A body that is too long or does not decode, an unknown tag that is not
    /// optional, or a value beyond a limit. The connection is of no use then.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator that ends may not go on later"
    )]
    pub fn next(&mut self) -> Result<Option<Message>, Violation> {
        loop {
            let rest = &self.buffer[self.consumed..];
            let Some((envelope, rest)) = rest.split_first_chunk::<ENVELOPE_BYTES>() else {
                return Ok(None);
            };
            let [a, b, c, d, tag_low, tag_high, flags_low, flags_high] = *envelope;
            let body_bytes = u32::from_le_bytes([a, b, c, d]) as usize;
            let tag = u16::from_le_bytes([tag_low, tag_high]);
            let optional = u16::from_le_bytes([flags_low, flags_high]) & OPTIONAL != 0;
            if body_bytes > self.body_bytes_max {
                return Err(Violation::new(
                    format!("a message of at most {} bytes", self.body_bytes_max),
                    format!("message {tag} of {body_bytes} bytes"),
                ));
            }
            let known = is_known(tag);
            if !known && !optional {
                return Err(Violation::new(
                    "a message of this version",
                    format!("message {tag}"),
                ));
            }
            if !known {
                let here = body_bytes.min(rest.len());
                self.skip_bytes = body_bytes - here;
                self.consumed += ENVELOPE_BYTES + here;
                continue;
            }
            let Some(body) = rest.get(..body_bytes) else {
                return Ok(None);
            };
            let message = decode_body(tag, body).transpose()?;
            self.consumed += ENVELOPE_BYTES + body_bytes;
            return message.map(check_bounds).transpose();
        }
    }
}
