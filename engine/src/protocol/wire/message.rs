//! The messages of a control connection, as values.
//!
//! Leaves to others: their bytes (the codec) and what each makes a side do.
//! Invariant: a message names transfer, segment and file where it concerns
//! one, so that it means the same whenever it arrives.

use super::entry::{ByteRange, Offer};
use super::list::bounded;
use super::names::{Deletions, Names};
use crate::error::Error;
use crate::limits;
use crate::options::{DigestKind, RemoteSource, RemoteTarget};
use crate::protocol::check::FileSum;
use crate::protocol::ranges::RangeSet;
use crate::protocol::{ChunkId, ConnectionId, FileId, SegmentId, TransferId};
use crate::report::{Digest, Level, SideReport};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A source whose inode was changed while it was read (a rename, a link, another
/// mode), which says nothing of its bytes: they were read again, and the receiver
/// holds what it has against them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its permission bits now.
    pub mode: u32,
    /// Over all of its pieces in the segment's plan, as they are now.
    pub sum: FileSum,
}

/// Which way a data connection carries frames; fixed when it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flow {
    /// From whoever dialled.
    FromDialler,
    /// To whoever dialled.
    ToDialler,
}

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Feature bits that the client speaks.
    pub features: u64,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
    /// The client has a token to prove.
    pub has_token: bool,
    /// Name and version, for people.
    pub software: String,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Feature bits that both speak.
    pub features: u64,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
    /// The server will not go on without a proof.
    pub needs_token: bool,
    /// The session's number; valid once the proofs are.
    pub session: u64,
    /// Name and version, for people.
    pub software: String,
}

/// How chunk checks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckKind {
    /// XXH3-128, seeded with the chunk's place.
    Xxh3,
}

/// Which way the bytes of a transfer go, seen from who begins it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// The beginner sends.
    Push {
        /// Where to.
        target: RemoteTarget,
    },
    /// The beginner receives.
    Pull {
        /// What.
        #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_ENTRIES_MAX }>")]
        sources: Vec<RemoteSource>,
        /// No more of them follow.
        last: bool,
    },
}

/// Further sources of a pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The transfer.
    pub transfer: TransferId,
    /// What.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_ENTRIES_MAX }>")]
    pub sources: Vec<RemoteSource>,
    /// No more of them follow.
    pub last: bool,
}

/// Starts a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Its name from now on.
    pub transfer: TransferId,
    /// Which way.
    pub task: Task,
    /// The chunk size of all its segments.
    pub chunk_bytes: u32,
    /// How its chunks are checked.
    pub check: CheckKind,
    /// fsync before the rename.
    pub fsync: bool,
    /// Read the target back from its disk.
    pub verify: bool,
    /// Leave no end's page cache full.
    pub drop_cache: bool,
    /// Each regular file's digest is told by the receiver.
    pub digest: Option<DigestKind>,
    /// How the sender transmits (matters when the peer sends).
    pub transmit: crate::options::Transmit,
    /// Chunks further than this ahead of the landed prefix must not be sent;
    /// for receivers that hand bytes on in order.
    pub window_bytes: Option<u64>,
    /// Descriptors that the beginner's files may take at once; where the
    /// beginner sends, more are of no use at the other end: see [`crate::protocol::credit`].
    pub descriptors_max: Option<u32>,
    /// What of trees and entries.
    pub tree: crate::options::TreeOptions,
    /// What is written, by what the target has.
    pub rules: crate::options::TargetRules,
    /// Payload bytes per second over all connections (matters when the peer sends).
    pub rate_limit_bytes_per_second: Option<u64>,
}

/// What the receiver wants of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Nothing: it has it.
    Skip,
    /// All of it.
    Whole,
    /// These ranges, ascending, not touching.
    Ranges(
        #[serde(deserialize_with = "bounded::<_, _, { limits::VERDICT_RANGES_MAX }>")]
        Vec<ByteRange>,
    ),
    /// It cannot take it.
    Refused(Error),
    /// Nothing: this is what it would do.
    Would(Level),
    /// Nothing: all of its bytes are there, as it shares them with the source. It is
    /// settled when the source was looked at again.
    Held,
}

impl Verdict {
    /// True where the receiver has a target for it: its bytes come, or are there.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        matches!(self, Self::Whole | Self::Ranges(_) | Self::Held)
    }
}

/// A segment, answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The transfer.
    pub transfer: TransferId,
    /// The segment.
    pub segment: SegmentId,
    /// One for each entry, in order.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_ENTRIES_MAX }>")]
    pub verdicts: Vec<Verdict>,
    /// The receiver's digest of offer and verdicts; the sender compares it
    /// with its own, and it seeds every chunk check.
    pub digest: [u8; 16],
}

/// Chunks `first..first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRange {
    /// First chunk.
    pub first: ChunkId,
    /// How many.
    pub count: u64,
}

/// Files `first..first + count` of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRange {
    /// First file.
    pub first: FileId,
    /// How many.
    pub count: u32,
}

impl FileRange {
    /// One file.
    #[must_use]
    pub fn one(file: FileId) -> Self {
        Self {
            first: file,
            count: 1,
        }
    }

    /// Its files, each once.
    pub fn files(self) -> impl Iterator<Item = FileId> {
        self.first..self.first.saturating_add(self.count)
    }

    /// The files of a set, which holds numbers of files.
    pub(crate) fn all_of(set: &RangeSet) -> Vec<Self> {
        let range = |range: std::ops::Range<u64>| Self {
            // They were numbers of files when they were put in.
            first: range.start as FileId,
            count: (range.end - range.start) as u32,
        };
        set.iter().map(range).collect()
    }
}

/// Digests of a segment's files, as they are at the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// The transfer.
    pub transfer: TransferId,
    /// The segment.
    pub segment: SegmentId,
    /// The only source has another name there: that of the target.
    pub is_renamed: bool,
    /// Of files, by their numbers.
    #[serde(deserialize_with = "bounded::<_, _, { limits::SEGMENT_ENTRIES_MAX }>")]
    pub digests: Vec<(FileId, Digest)>,
}

/// Everything that is said on a control connection.
#[derive(Clone, Debug)]
pub enum Message {
    /// Client's greeting.
    Hello(Hello),
    /// Server's greeting.
    Welcome(Welcome),
    /// Knowledge of the token, over both nonces (32 bytes; zeros without a token).
    Proof([u8; 32]),
    /// The server's proof: the session is open.
    Ready([u8; 32]),
    /// The session, or a data connection, is not wanted.
    Refuse(Error),
    /// I am alive.
    Heartbeat {
        /// How far this end is with what it owes: it changes while it gets
        /// further, and only then.
        worked: u64,
    },
    /// A data connection is in the session (said by who accepted it).
    Joined {
        /// Its number.
        connection: ConnectionId,
    },
    /// Sender to receiver: the connection is gone; reap it.
    Lost {
        /// Its number.
        connection: ConnectionId,
    },
    /// Receiver to sender: the connection's last operation was reaped, and
    /// every `Landed` of it was said before this.
    Freed {
        /// Its number.
        connection: ConnectionId,
    },
    /// Start a transfer.
    Begin(Begin),
    /// The transfer is taken up.
    Begun {
        /// Which.
        transfer: TransferId,
        /// The peer's own limit, as in [`Begin::window_bytes`].
        window_bytes: Option<u64>,
        /// The same, as in [`Begin::descriptors_max`].
        descriptors_max: Option<u32>,
    },
    /// A segment's files.
    Offer(Arc<Offer>),
    /// What is wanted of them.
    Answer(Answer),
    /// These chunks are written and verified.
    Landed {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// Which chunks.
        chunks: Vec<ChunkRange>,
    },
    /// This chunk's check failed.
    Damaged {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// Which.
        chunk: ChunkId,
    },
    /// These chunks were drained, not written: send again what did not land.
    Drained {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// Which.
        chunks: ChunkRange,
    },
    /// The file's source came up short or unreadable in the middle of a run;
    /// what was sent of it there is filler, and the file is never sealed.
    Void {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// The chunks that hold filler.
        chunks: ChunkRange,
        /// What was seen.
        error: Error,
    },
    /// Looked at again after their last chunk: unchanged, or only the inode is.
    /// Lets them be sealed.
    Closed {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// The files.
        files: Vec<FileRange>,
        /// A stream's size; nothing for files, which have that of their offer.
        stream_bytes: Option<u64>,
        /// How many words that may make the sender read these files again it
        /// had heard: `Damaged` and `Drained` of the file's chunks, and every
        /// `Freed` since the segment's `Answer`. An older count is stale.
        recalls: u32,
        /// The only file's inode was changed, its size and modification time were not.
        touched: Option<Touched>,
    },
    /// It changed while it was read: never sealed.
    Changed {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// What was seen.
        error: Error,
    },
    /// The files reached their level.
    Settled {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// The files.
        files: Vec<FileRange>,
        /// Which level.
        level: Level,
    },
    /// The file failed at the receiver (at the sender: `Changed`).
    Failed {
        /// The transfer.
        transfer: TransferId,
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// Why.
        error: Error,
    },
    /// Sender to receiver: every file is settled or failed.
    Finish {
        /// The transfer.
        transfer: TransferId,
        /// What the sender measured.
        report: Box<SideReport>,
    },
    /// Receiver to sender: and here is mine.
    Finished {
        /// The transfer.
        transfer: TransferId,
        /// What the receiver measured.
        report: Box<SideReport>,
    },
    /// The transfer ends here.
    Abort {
        /// Which.
        transfer: TransferId,
        /// Why.
        error: Error,
    },
    /// Receiver to sender: what a pull asks for besides, when the sender said
    /// `More`.
    Sources(Sources),
    /// Sender to receiver: the sources that were named so far are being opened.
    More {
        /// The transfer.
        transfer: TransferId,
    },
    /// Sender to receiver: what its directories hold.
    Names(Box<Names>),
    /// Receiver to sender: what was deleted by a part of these.
    Deleted {
        /// The transfer.
        transfer: TransferId,
        /// Which part.
        number: u32,
        /// What went.
        deletions: Box<Deletions>,
    },
    /// Receiver to sender, ahead of the word that ends these files: what they hold.
    Digests(Digests),
    /// Receiver to sender: end generated streams where they are.
    EndStreams {
        /// Which.
        transfer: TransferId,
    },
}

impl Message {
    /// The transfer that the message belongs to; `None` for what concerns the
    /// session and its connections.
    #[must_use]
    pub fn transfer(&self) -> Option<TransferId> {
        match self {
            Self::Hello(_)
            | Self::Welcome(_)
            | Self::Proof(_)
            | Self::Ready(_)
            | Self::Refuse(_)
            | Self::Heartbeat { .. }
            | Self::Joined { .. }
            | Self::Lost { .. }
            | Self::Freed { .. } => None,
            Self::Begin(begin) => Some(begin.transfer),
            Self::Offer(offer) => Some(offer.transfer),
            Self::Sources(sources) => Some(sources.transfer),
            Self::Names(names) => Some(names.transfer),
            Self::Digests(digests) => Some(digests.transfer),
            Self::Answer(answer) => Some(answer.transfer),
            Self::Begun { transfer, .. }
            | Self::More { transfer }
            | Self::Landed { transfer, .. }
            | Self::Damaged { transfer, .. }
            | Self::Drained { transfer, .. }
            | Self::Void { transfer, .. }
            | Self::Closed { transfer, .. }
            | Self::Changed { transfer, .. }
            | Self::Settled { transfer, .. }
            | Self::Failed { transfer, .. }
            | Self::Finish { transfer, .. }
            | Self::Finished { transfer, .. }
            | Self::Abort { transfer, .. }
            | Self::Deleted { transfer, .. }
            | Self::EndStreams { transfer } => Some(*transfer),
        }
    }
}
