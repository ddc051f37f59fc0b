//! Bugs planted into the world around the machines, to see that it finds them.
//!
//! Leaves to others: finding. Invariant: a bug is in a driver, a worker, the
//! hands or on the way between them, never in shipped code.

use crate::world::{TRANSFER, World};
use haul_engine::protocol::SegmentId;
use haul_engine::protocol::wire::{FileRange, Message};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A lost connection's chunks are sent again before it was reaped.
    RequeueBeforeFreed,
    /// Grants return while writes are outstanding.
    ReleaseBeforeReaped,
    /// The sender's word is made up once all chunks are there.
    ClosedMadeUp,
    /// A word that was said before damage is taken as current.
    StaleClosedTaken,
    /// An acknowledgement is said twice.
    LandedTwice,
    /// Checks do not know a chunk's place.
    CheckWithoutPosition,
    /// What was called back is never sent again.
    RequeueSkipped,
    /// Acknowledgements are overtaken by the word that ends their connection.
    FreedOvertakesLanded,
    /// The answer is sent before the workers know the segment.
    AnswerOvertakesOpen,
    /// The worker does not compare checks.
    CheckIgnored,
    /// A failed write counts as landed.
    WriteErrorIgnored,
    /// A chunk counts as landed when its write is submitted.
    LandedBeforeWritten,
    /// Temporary files of failed files stay.
    DiscardForgotten,
    /// The second look at a source is not taken.
    LookSkipped,
    /// A change of the inode is taken for none.
    TouchIgnored,
    /// What landed is not held against a source that was touched.
    SumIgnored,
    /// The receiver is said to have more descriptors than it has.
    CreditInflated,
    /// The session is never told that time passes: no deadline fires.
    ClockStandsStill,
    /// While a connection is missing the clock runs ahead: waits do not grow.
    RoundsAhead,
    /// Heartbeats are not sent.
    HeartbeatForgotten,
    /// Heartbeats do not tell how far the hands are.
    CountForgotten,
    /// Who takes a connection in does not say so.
    JoinedForgotten,
    /// A connection that is to be given up is not.
    DetachForgotten,
    /// Only the first round is dialled.
    DialForgotten,
    /// A transfer is said to be over when the next one begins.
    EndToldEarly,
    /// Nobody says that the sources are open.
    OpeningForgotten,
    /// A directory is offered as a file, which comes when it comes.
    FolderTakenForFile,
    /// Nobody says what was deleted.
    DeletionForgotten,
}

pub const BUGS: [Bug; 28] = [
    Bug::RequeueBeforeFreed,
    Bug::ReleaseBeforeReaped,
    Bug::ClosedMadeUp,
    Bug::StaleClosedTaken,
    Bug::LandedTwice,
    Bug::CheckWithoutPosition,
    Bug::RequeueSkipped,
    Bug::FreedOvertakesLanded,
    Bug::AnswerOvertakesOpen,
    Bug::CheckIgnored,
    Bug::WriteErrorIgnored,
    Bug::LandedBeforeWritten,
    Bug::DiscardForgotten,
    Bug::LookSkipped,
    Bug::TouchIgnored,
    Bug::SumIgnored,
    Bug::CreditInflated,
    Bug::ClockStandsStill,
    Bug::RoundsAhead,
    Bug::HeartbeatForgotten,
    Bug::CountForgotten,
    Bug::JoinedForgotten,
    Bug::DetachForgotten,
    Bug::DialForgotten,
    Bug::EndToldEarly,
    Bug::OpeningForgotten,
    Bug::FolderTakenForFile,
    Bug::DeletionForgotten,
];

impl World {
    /// Changes a word to the receiver as the planted bug would.
    pub fn spoil_for_receiver(&mut self, message: Message) -> Message {
        match message {
            Message::Closed {
                transfer,
                segment,
                files,
                stream_bytes,
                touched,
                ..
            } if self.bug == Some(Bug::StaleClosedTaken) => Message::Closed {
                transfer,
                segment,
                recalls: self.recalls_now(segment, files[0].first),
                files,
                stream_bytes,
                touched,
            },
            other => other,
        }
    }

    fn recalls_now(&self, segment: SegmentId, file: u32) -> u32 {
        let own = self.seen.recalls.get(&(segment, file)).copied();
        let freed = self.seen.freed.get(&segment).copied();
        own.unwrap_or(0) + freed.unwrap_or(0)
    }

    /// With [`Bug::ClosedMadeUp`]: says what the sender did not.
    pub fn close_without_word(&mut self, segment: SegmentId) {
        if self.bug != Some(Bug::ClosedMadeUp) {
            return;
        }
        let entries = self.entries[&segment].clone();
        for (file, _) in (0..).zip(&entries) {
            if self.sources[&(segment, file)].stream {
                continue;
            }
            let message = Message::Closed {
                transfer: TRANSFER,
                segment,
                files: vec![FileRange::one(file)],
                stream_bytes: None,
                recalls: self.recalls_now(segment, file),
                touched: None,
            };
            let now = self.queue.now;
            if let Err(violation) = self.receiver.handle_message(now, message) {
                self.found(violation.to_string());
            }
        }
    }
}
