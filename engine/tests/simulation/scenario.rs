//! What a seed stands for: files, connections, delays and faults.
//!
//! Leaves to others: playing it. Invariant: everything random about a run that
//! is not a delay is decided here, before it starts.

use crate::rng::{MILLI, Rng};
use haul_engine::protocol::wire::{ByteRange, Data, EntryKind};

/// Something that goes wrong, or is asked for, in the middle of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A data connection breaks, and both ends notice soon.
    Cut,
    /// It breaks, and the sender's end notices long after.
    CutUnseenBySender,
    /// It breaks, and the receiver's end learns it from the sender only.
    CutUnseenByReceiver,
    /// The control connection breaks.
    ControlLost,
    /// A byte of the next payload is flipped.
    FlipPayload,
    /// A byte of the next table of checks is flipped.
    FlipTable,
    /// A byte of the next header is flipped.
    FlipHeader,
    /// Two chunks of the next run change places, checks and all.
    SwapChunks,
    /// A source's bytes change.
    SourceChanged,
    /// A source gets shorter.
    SourceTruncated,
    /// A source's inode changes, and nothing else.
    SourceTouched,
    /// A source's bytes change, and size and modification time are set back.
    SourceForged,
    /// The next write fails.
    WriteError,
    /// The next settling fails.
    SettleError,
    /// The next run is drained.
    DrainRun,
    /// A connection goes, and another joins in its place.
    Join,
    /// The sender's user stops.
    AbortSender,
    /// The receiver's user stops.
    AbortReceiver,
    /// The next writes take seconds.
    SlowWrites,
    /// What is said on the control connection is heard by nobody, and nobody is
    /// told.
    Silence,
    /// The client's proof never comes.
    NoProof,
    /// The server's never comes.
    NoReady,
    /// A connection goes, and the next dials are refused.
    DialsRefused,
    /// All connections go, and every dial is refused.
    NobodyListens,
    /// A connection goes, and the next dial fails by what no wait can cure.
    DialImpossible,
    /// A connection goes, and the next one is never taken in.
    JoinUnanswered,
    /// A connection goes, and for a while none is taken in.
    FullPeer,
    /// The hands take minutes.
    SlowHands,
    /// A word that is owed is not said.
    WordDropped,
    /// A file is gone when it is to be opened.
    Vanishes,
    /// More is superfluous than may be deleted.
    DeletesTooMuch,
}

pub const FAULTS: [Fault; 31] = [
    Fault::Cut,
    Fault::CutUnseenBySender,
    Fault::CutUnseenByReceiver,
    Fault::ControlLost,
    Fault::FlipPayload,
    Fault::FlipTable,
    Fault::FlipHeader,
    Fault::SwapChunks,
    Fault::SourceChanged,
    Fault::SourceTruncated,
    Fault::SourceTouched,
    Fault::SourceForged,
    Fault::WriteError,
    Fault::SettleError,
    Fault::DrainRun,
    Fault::Join,
    Fault::AbortSender,
    Fault::AbortReceiver,
    Fault::SlowWrites,
    Fault::Silence,
    Fault::NoProof,
    Fault::NoReady,
    Fault::DialsRefused,
    Fault::NobodyListens,
    Fault::DialImpossible,
    Fault::JoinUnanswered,
    Fault::FullPeer,
    Fault::SlowHands,
    Fault::WordDropped,
    Fault::Vanishes,
    Fault::DeletesTooMuch,
];

/// Faults that end by a deadline of the session, or by the last round of dials.
pub const DEADLINES: [Fault; 6] = [
    Fault::Silence,
    Fault::NoProof,
    Fault::NoReady,
    Fault::NobodyListens,
    Fault::JoinUnanswered,
    Fault::WordDropped,
];

impl Fault {
    /// What an error says by which a transfer with this fault may fail as a whole;
    /// nothing where it may not.
    pub fn reasons(self) -> &'static [&'static str] {
        const LOST: &[&str] = &["was lost", "was closed"];
        match self {
            Self::ControlLost => LOST,
            Self::AbortSender | Self::AbortReceiver => &["the user stopped it", "was closed"],
            Self::Silence => &[
                "silent for 20 s",
                "proved nothing in time",
                "did not greet",
                "closed",
            ],
            Self::NoProof => &[
                "did not greet within 10 s",
                "proved nothing in time",
                "closed",
            ],
            Self::NoReady => &["proved nothing in time", "without a proof", "closed"],
            Self::NobodyListens => &["8 redials in a row", "was closed"],
            Self::DeletesTooMuch => &["more would go", "was closed"],
            Self::DialImpossible => &["it is refused for good", "was closed"],
            Self::WordDropped => &[
                "got no further with what it owes",
                "broke the protocol",
                "was closed",
            ],
            _ => &[],
        }
    }

    /// True when a transfer with this fault may fail as a whole.
    pub fn may_end_it(self) -> bool {
        !self.reasons().is_empty()
    }

    /// True when words on the control connection may be heard by nobody.
    pub fn silences(self) -> bool {
        matches!(
            self,
            Self::Silence | Self::ControlLost | Self::NoReady | Self::NoProof
        )
    }

    /// True when files may fail by it.
    pub fn may_fail_files(self) -> bool {
        matches!(
            self,
            Self::SourceChanged
                | Self::SourceTruncated
                | Self::SourceForged
                | Self::WriteError
                | Self::SettleError
                | Self::Vanishes
        )
    }
}

/// What a side is doing, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// The sender has a segment that is not answered.
    Offering,
    /// It has chunks that did not land.
    Moving,
    /// It waits for a look at a source.
    Looking,
    /// It said `Closed` of a file that did not end.
    Closed,
    /// It said `Finish`.
    Reporting,
    /// The receiver's hands create targets.
    Preparing,
    /// It has chunks that did not land.
    Receiving,
    /// Its hands settle a file.
    Settling,
    /// It heard `Finish`.
    Finishing,
    /// The sender says names, by which it deletes.
    Deleting,
}

pub const PHASES: [Phase; 10] = [
    Phase::Offering,
    Phase::Moving,
    Phase::Looking,
    Phase::Closed,
    Phase::Reporting,
    Phase::Preparing,
    Phase::Receiving,
    Phase::Settling,
    Phase::Finishing,
    Phase::Deleting,
];

/// When a fault strikes.
#[derive(Clone, Copy, Debug)]
pub enum When {
    Start,
    Never,
    At(u64),
    /// So long after the phase began for the first time.
    In(Phase, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Whole,
    Ranges,
    /// It is there already, as it shares the source's blocks.
    Held,
    Skip,
    Refuse,
}

/// One file of the scenario.
#[derive(Clone, Debug)]
pub struct FileSpec {
    pub bytes: Vec<u8>,
    /// Where it is no hole; elsewhere its bytes are zeros.
    pub data: Data,
    pub want: Want,
    /// A stream, whose end is learnt late.
    pub stream: bool,
    /// Made on the fly: ended by the user.
    pub endless: bool,
    /// A directory: it has no bytes, and comes last.
    pub folder: bool,
}

impl FileSpec {
    /// As a file system has it where nothing was written: holes are zeros.
    pub fn punch(&self, bytes: &mut [u8]) {
        let Data::Ranges(ranges) = &self.data else {
            return;
        };
        let mut end = 0;
        for range in ranges {
            bytes[end..range.start as usize].fill(0);
            end = range.end as usize;
        }
        bytes[end..].fill(0);
    }

    pub fn kind(&self) -> EntryKind {
        if self.folder {
            EntryKind::Directory
        } else if self.stream {
            EntryKind::Stream
        } else {
            EntryKind::File
        }
    }
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub chunk_bytes: u32,
    /// What is scanned, a batch after another; each is cut into segments by
    /// what there is room for.
    pub batches: Vec<Vec<FileSpec>>,
    /// Descriptors that the sender's and the receiver's files may take.
    pub descriptors: [u32; 2],
    pub connections: u32,
    /// The sender's end dials; else the receiver's.
    pub sender_dials: bool,
    /// The client asks for another transfer as soon as this one ended for it.
    pub asks_again: bool,
    /// What is superfluous is deleted in the end, by so many parts of names.
    pub name_parts: Option<u32>,
    pub window_bytes: Option<u64>,
    pub faults: Vec<(When, Fault)>,
    /// Bytes leave without a copy once in so many runs; 0 is never.
    pub zero_copy_once_in: u64,
    pub nanos_per_byte: u64,
}

impl Scenario {
    pub fn of(rng: &mut Rng) -> Self {
        let chunk_bytes = rng.pick(&[16, 64, 256]);
        let count = rng.pick(&[1, 1, 2, 3, 12]);
        let batches = (0..count).map(|_| batch(rng, chunk_bytes, count)).collect();
        let faults = (0..rng.pick(&[0, 1, 1, 2, 2, 3, 5]))
            .map(|_| {
                let when = match rng.within(0..4) {
                    0 => When::At(rng.within(0..2000) * MILLI),
                    _ => When::In(rng.pick(&PHASES), rng.within(0..60) * MILLI),
                };
                match rng.pick(&FAULTS) {
                    fault @ (Fault::NoProof | Fault::NoReady) => (When::Start, fault),
                    fault => (when, fault),
                }
            })
            .collect();
        Self {
            chunk_bytes,
            batches,
            descriptors: [(); 2].map(|()| rng.pick(&[0, 5, 9, 30, 400, 400])),
            connections: rng.pick(&[1, 2, 2, 3, 4]),
            sender_dials: rng.once_in(2),
            asks_again: rng.once_in(3),
            name_parts: rng.once_in(2).then(|| rng.within(1..9) as u32),
            window_bytes: rng
                .once_in(4)
                .then(|| u64::from(chunk_bytes) * rng.within(1..12)),
            faults,
            zero_copy_once_in: rng.pick(&[0, 1, 3]),
            nanos_per_byte: rng.within(2_000..400_000),
        }
    }

    pub fn has(&self, test: impl Fn(Fault) -> bool) -> bool {
        self.faults.iter().any(|(_, fault)| test(*fault))
    }
}

fn batch(rng: &mut Rng, chunk_bytes: u32, count: u64) -> Vec<FileSpec> {
    let chunk = u64::from(chunk_bytes);
    if rng.once_in(4) {
        let endless = rng.once_in(3);
        let chunks = if rng.once_in(5) { 0 } else { rng.within(0..24) };
        let tail = rng.pick(&[0, 1, chunk - 1, chunk / 2]);
        let bytes = if endless {
            200 * chunk
        } else {
            chunks * chunk + tail
        };
        return vec![FileSpec {
            bytes: rng.bytes(bytes as usize),
            data: Data::Everywhere,
            want: if rng.once_in(12) {
                Want::Refuse
            } else {
                Want::Whole
            },
            stream: true,
            endless,
            folder: false,
        }];
    }
    let files = if count > 3 { 2 } else { 8 };
    (0..rng.within(0..files + 1))
        .map(|_| {
            let folder = rng.once_in(6);
            let bytes = match rng.within(0..6) {
                _ if folder => 0,
                0 => rng.pick(&[0, 1, chunk - 1, chunk, chunk + 1]),
                1 | 2 => rng.within(0..chunk),
                3 | 4 => rng.within(0..12 * chunk),
                _ => rng.within(0..40 * chunk),
            };
            let mut bytes = rng.bytes(bytes as usize);
            let data = match !folder && rng.once_in(5) {
                true => with_holes(rng, &mut bytes),
                false => Data::Everywhere,
            };
            FileSpec {
                bytes,
                data,
                want: match rng.within(0..16) {
                    0 => Want::Skip,
                    1 => Want::Refuse,
                    2..5 => Want::Ranges,
                    5 | 6 if !folder => Want::Held,
                    _ => Want::Whole,
                },
                stream: false,
                endless: false,
                folder,
            }
        })
        .collect()
}

/// Makes some of `bytes` holes; where the rest lies.
fn with_holes(rng: &mut Rng, bytes: &mut [u8]) -> Data {
    let size = bytes.len() as u64;
    let (mut ranges, mut end) = (Vec::new(), 0);
    while end < size {
        // From one end to the other in some ten steps, the first often a hole.
        let start = (end + rng.within(u64::from(!ranges.is_empty())..size / 8 + 2)).min(size);
        bytes[end as usize..start as usize].fill(0);
        end = (start + rng.within(1..size / 8 + 2)).min(size);
        if start < end {
            ranges.push(ByteRange { start, end });
        }
    }
    Data::Ranges(ranges)
}
