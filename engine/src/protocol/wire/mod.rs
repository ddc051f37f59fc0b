//! The bytes on every connection: the wire specification, version 1.
//!
//! Leaves to others: what a message makes a side do (the two state machines).
//! Invariant: decoding never allocates more than the bytes at hand justify,
//! never panics, and what encodes decodes back; a decoded message is within
//! every limit of [`crate::limits`].
//!
//! All fixed integers are little endian. MUST and MAY are meant as in RFC 2119.
//!
//! # 1. A connection starts
//! Every TCP connection starts with the dialler's preamble. Its last byte, and
//! every byte that is called zero below, MUST be zero.
//! ```text
//!  preamble, from the dialler            reply, on a control connection only
//!  offset bytes                          offset bytes
//!       0   4  "HAUL"                         0   4  "HAUL"
//!       4   1  oldest version spoken          4   1  version chosen; 0: refused
//!       5   1  newest version spoken          5   1  oldest version spoken
//!       6   1  role: 0 control, 1 data        6   1  newest version spoken
//!       7   1  zero                           7   1  zero
//! ```
//! The version chosen is the newest that both speak. A refused dialler knows
//! from the reply what the other speaks, and says so.
//!
//! On a control connection Hello, Welcome, Proof and Ready come first (see
//! [`super::handshake`]). The client MAY go on behind its Proof without a wait;
//! the server says nothing but Refuse and Heartbeat before Ready, and a client
//! that hears anything else before it, or no Ready within 10 s, MUST close the
//! session. So payload, which waits for an Answer, waits for both proofs, and
//! nothing is received from who proved nothing; names and sizes in an Offer may
//! be said before.
//!
//! A data connection's dialler sends preamble and join (72 bytes) at once. If
//! frames flow from it, they follow without a wait: a connection costs one
//! round trip. The accepter says `Joined` on the control connection, or closes.
//! A dialler that gets neither within 5 s has lost the connection: it says so, and
//! what comes of it to the accepter later is closed unread.
//! ```text
//!  join          offset bytes
//!                     0   8  session
//!                     8   4  connection number, used once in a session
//!                    12   1  flow: 0 frames from the dialler, 1 to the dialler
//!                    13   3  zero
//!                    16  16  nonce
//!                    32  32  proof: keyed BLAKE3 of bytes 0..32 and 32 zeros
//! ```
//!
//! # 2. Control messages
//! Behind preamble and reply, each direction of a control connection is a
//! series of envelopes:
//! ```text
//!  ┌───────────────┬──────────┬───────────┬──────────────────────────┐
//!  │ body bytes u32│ tag   u16│ flags  u16│ body                     │
//!  └───────────────┴──────────┴───────────┴──────────────────────────┘
//! ```
//! Flag bit 0, *optional*: whoever does not know the tag skips the message.
//! Without it an unknown tag ends the session. Other bits are sent as zero and
//! ignored. A body is at most 4 MiB, and 8 KiB before the peer proved itself;
//! a longer one is refused by its announcement.
//!
//! A body is its fields, one behind the other, in postcard's format: `u8`,
//! `bool` and byte arrays as they are; other unsigned integers as LEB128
//! varints, signed ones zigzagged first; text and lists by their varint length
//! and content; an option by 0, or 1 and its value; a choice by the varint of
//! its alternative, counted from 0 in the order of its type here, and that
//! alternative's fields. A body that does not end with its last field is a
//! violation.
//!
//! | tag | message | fields | who says it |
//! | ---: | --- | --- | --- |
//! | 1 | Hello | features u64, nonce 32 bytes, has_token bool, software text | client |
//! | 2 | Welcome | features u64, nonce 32 bytes, needs_token bool, session u64, software text | server |
//! | 3 | Proof | 32 bytes | client |
//! | 4 | Ready | 32 bytes | server |
//! | 5 | Refuse | [`Error`](crate::error::Error) | either |
//! | 6 | Heartbeat | worked u64 | either |
//! | 16 | Joined | connection u32 | who accepted it |
//! | 19 | Lost | connection u32 | sender |
//! | 20 | Freed | connection u32 | receiver |
//! | 32 | Begin | [`Begin`] | who starts it |
//! | 33 | Begun | transfer, window_bytes u64?, descriptors_max u32? | who takes it up |
//! | 34 | Offer | [`Offer`] | sender |
//! | 35 | Answer | [`Answer`] | receiver |
//! | 36 | Landed | transfer, segment u32, list of (first u64, count u64) | receiver |
//! | 37 | Damaged | transfer, segment u32, chunk u64 | receiver |
//! | 38 | Drained | transfer, segment u32, first u64, count u64 | receiver |
//! | 39 | Void | transfer, segment u32, file u32, first u64, count u64, error | sender |
//! | 40 | Closed | transfer, segment u32, list of (first u32, count u32), stream_bytes u64?, recalls u32, touched | sender |
//! | 41 | Changed | transfer, segment u32, file u32, error | sender |
//! | 42 | Settled | transfer, segment u32, list of (first u32, count u32), level | receiver |
//! | 43 | Failed | transfer, segment u32, file u32, error | receiver |
//! | 44 | Finish | transfer, [`SideReport`](crate::report::SideReport) | sender |
//! | 45 | Finished | transfer, [`SideReport`](crate::report::SideReport) | receiver |
//! | 46 | Abort | transfer, error | either |
//! | 47 | EndStreams | transfer | receiver |
//! | 48 | Sources | [`Sources`] | receiver |
//! | 49 | More | transfer | sender |
//! | 50 | Names | [`Names`] | sender |
//! | 51 | Deleted | transfer, number u32, [`Deletions`] | receiver |
//! | 52 | Digests | [`Digests`] | receiver |
//!
//! A transfer is 16 bytes, not all of them zero, a level one of [`Level`](crate::report::Level); `?`
//! marks an option. For example, `Lost` of connection 300 is `02 00 00 00  13 00  00 00  ac 02`.
//! Nothing has been released: until the first release tags, fields and meanings of
//! version 1 may change with any commit (as the JSON and the library's API may),
//! and both ends are of one commit. Tests pin the bytes, so that a change is meant.
//!
//! # 3. Data frames
//! A joined data connection carries frames one behind the other, in one
//! direction, until it closes between two of them:
//! ```text
//!  ┌──────────────┬───────────────────────┬──────────────────────────────┐
//!  │ header, 64 B │ checks, 16 B a chunk  │ payloads, back to back       │
//!  └──────────────┴───────────────────────┴──────────────────────────────┘
//! ```
//! The header's layout is in [`crate::protocol::frame`]. How long each chunk
//! is, and which file and offset it belongs to, stands in no frame: both sides
//! compute it from offer and answer ([`crate::protocol::plan`]) and have
//! compared digests. Only a stream's last chunk may be shorter; it is what
//! remains of the header's payload bytes. What a check covers is in
//! [`crate::protocol::check`].
//!
//! A frame whose transfer is 16 zeros is *padding*: a receiver reads and forgets
//! it, whatever the rest of its header says. A sender MAY say some before the
//! first Answer, so that the congestion window of a long path opens meanwhile.
//!
//! # 4. Who says what when
//! The sides of the data are S and R; who dialled decides only who says Begin.
//! ```text
//!  push: the client sends                 pull: the client receives
//!  C=S                         R          C=R                         S
//!   │ Begin{Push} ────────────▶│           │ Begin{Pull, window} ────▶│
//!   │ ◀──────── Begun{window}  │           │ ◀─────────────── Begun   │
//!   │ Offer 0 ────────────────▶│           │ ◀─────────────── Offer 0 │
//!   │ Offer 1, last ──────────▶│           │ Answer 0 ───────────────▶│
//!   │ ◀────────────── Answer 0 │           │ ◀═══════════════ frames  │
//!   │ frames ═════════════════▶│           │ Landed ─────────────────▶│
//!   │ ◀──────── Landed, Landed │           │ ◀─────────────── Closed  │
//!   │ Closed (many files) ────▶│           │ Settled ────────────────▶│
//!   │ ◀── Settled (many files) │           │ Finished ───────────────▶│
//!   │ ◀────────────── Finished │           │ ◀─────────────── Finish  │
//!   │ Finish ─────────────────▶│
//! ```
//! Each end's files take descriptors, which are counted from what an Offer says of
//! them ([`super::credit`]). R says in Begin or Begun how many it has, 4 at
//! least, and the segments that are open never take more; before it said so, 4. An
//! Answer gives those back of files that it does not want, but for their directories.
//!
//! A pull names its first sources in Begin, at most 4096. S says More when it
//! begins to open what was named last, unless that was all, and R answers it
//! with the next Sources; what was not asked for is a violation.
//!
//! An Offer stands for itself: it names the directories that its entries lie in, each
//! by the number of the one that it lies in itself and its last component, and its
//! entries by a number and a last component. Number 0 is where the transfer's files
//! go. A directory is an entry of its own, behind all that lies in it, and so is each
//! further name of a file (a hard link): R settles them when everything before them
//! in this segment and the earlier ones has ended. The digest of the Answer covers
//! all that an Offer says.
//!
//! Where Begin says so in its rules, S lists its directories once more when every file
//! has ended, and says their names in parts, at most two of them ahead of the answers.
//! R deletes what is not among the names of a directory that was said to be complete,
//! and answers each part by Deleted. Finish and Finished come behind the last.
//!
//! Where Begin asks for digests, R tells those of regular files ahead of the Settled, or
//! of the Answer that skips them.
//!
//! S sends no frame of a segment before its Answer, only padding. Offers do not wait for
//! earlier segments; at most 64 are open, 8 before Begun, of 32 MiB in all (what they take
//! is counted by `bytes_of` in credit.rs). An empty file has no chunks: it is
//! looked at, Closed and Settled. `Closed` MAY come before the last `Landed`:
//! what changes after the look no longer matches the checks sent before it.
//! Where S finds only the inode changed, it reads the file again and says in
//! `touched` what it holds now; R settles it with that mode, and only if what
//! landed has the same sum.
//! Who owes a word (Offer, Sources, Answer, Freed, Closed, Settled or Failed, Finish
//! and Finished) and works on it says how far it is, in Heartbeats not more than
//! 10 s apart: `worked` changes while targets are made, sources looked at, files
//! synced, read back or removed, runs sent, connections let go, and as long as the kernel holds one such call.
//! Where neither a word of the transfer nor another `worked` came for 30 s, the
//! transfer is aborted. An Offer of a transfer that does not run is answered by
//! Abort.
//! Finish and Finished do not wait for each other: each side says its own when
//! every file ended for it, and is done when it said its own and heard the other.
//! ```text
//!  a lost data connection                 damage on the way
//!  S                           R          S                          R
//!   │ frame, half of it ══▶ ✂  │           │ frame ══════════════════▶│ check fails
//!   │ Lost{c} ────────────────▶│ shut down │ ◀─────── Damaged{chunk}  │
//!   │ ◀───────────────  Landed │ reap all  │ computes the check again:│
//!   │ ◀──────────────  Freed{c}│ of c      │ the same: frame ════════▶│
//!   │ what did not land goes   │           │ another: Changed ───────▶│
//!   │ over other connections ═▶│
//! ```
//! R says Freed also unasked, when its end breaks first or the connection
//! retired, and exactly once for a connection in a transfer (one that went
//! between two transfers may have been said for the first, too); everything that
//! landed of it was said before. Only Freed lets S send those chunks again, so a chunk never has
//! two writers.
//! ```text
//!  a stream                               a source that came up short
//!  S                           R          S                          R
//!   │ frames of what is there ▶│           │ frame, filled with zeros▶│
//!   │ … within the window      │           │ Void{file, chunks} ─────▶│ discards it
//!   │ ◀──────────────  Landed  │           │ the other files go on    │
//!   │ frame, short last chunk ▶│
//!   │ Closed{stream_bytes} ───▶│ now R knows the end
//!   │ ◀──────────────  Settled │
//! ```
//!
//! # 5. Invariants
//! 1. R settles a file only when all its chunks landed and it holds a `Closed`
//!    whose `recalls` equals the words it said that could make S read the file
//!    again: `Damaged` and `Drained` of its chunks, and every `Freed` since the
//!    segment's Answer. So a word that was said before bytes were read again is
//!    stale, and S says it anew. A greater count is a violation.
//! 2. A chunk is said to have landed exactly once.
//! 3. Each file ends once, by Skip, Refused, Settled, Failed, Changed or Void.
//!    Words about a file that ended, or a segment that is done, crossed its end
//!    on the way and are ignored.
//! 4. `Finish` and `Finished` come after every file ended, and `Finished` when
//!    R has removed the temporary files of those that failed. `Abort` comes at
//!    any time; nothing is answered to it. Frames of an ended transfer are
//!    drained.
//! 5. Messages keep their order; data connections know no order between them,
//!    nor between them and the control connection, save that an Answer is said
//!    after its segment is open.
//! 6. An offset, name or size in a message is never used before it was checked
//!    against the limits: see the bounds of this module.
//!
//! # 6. How it grows without a new version
//! - **Feature bits.** Hello offers, Welcome confirms what both speak; both are
//!   covered by the proofs. Version 1 defines none. A bit allows new tags, new
//!   alternatives at the end of a choice, and new frame flags or check kinds;
//!   fields never change, so a longer message gets a new tag.
//! - **Optional messages** need no bit: the flag lets others skip them.
//! - **Many transfers**: every message names its transfer; several follow one
//!   another in a session. With a bit they may overlap, and then a `Freed` is
//!   said once for all of them, after what landed in each.
//! - **Either side dials**: Join names the flow, not the dialler.
//! - **Join at any time**: connections are numbered, not counted.
//! - **Byte ranges**: an Answer asks for ranges of the data that an Offer tells of,
//!   so resuming and skipping are answers; **changed blocks** are ranges plus an optional message with
//!   the receiver's sums.
//! - **A third party** starts a transfer by Begin in a session of its own with
//!   either end; the proof that the ends show each other is a token for it.
//! - **Keyed checks**: the frame's check kind and `Begin::check` name MACs or
//!   AEAD tags of 16 bytes, keyed from the session's secret.

mod bounds;
mod codec;
mod entry;
mod greeting;
mod list;
mod message;
mod names;
#[cfg(test)]
mod tests;

pub use bounds::cut;
pub use codec::{MessageReader, encode};
pub use entry::*;
pub use greeting::{
    ConnectionRole, JOIN_BYTES, Join, PREAMBLE_BYTES, Preamble, PreambleReply, VERSION_MAX,
    VERSION_MIN, choose_version,
};
pub use message::*;
pub use names::*;
