//! What the receiver does when something is ready: settle a file, end a file,
//! forget a segment, end the transfer.
//!
//! Leaves to others: noticing. Invariant: a file ends once, `Landed` is said
//! before every later word, and `Failed` comes only when no hand is at work on
//! a file any more.

use super::work::{Closed, ReceivingFileState, ReceivingWork};
use super::{FileToSettle, Receiver, ReceiverOutput, ReceivingSegment, ReceivingState};
use crate::error::Error;
use crate::limits;
use crate::protocol::wire::{ChunkRange, FileRange, Message, Verdict};
use crate::protocol::{FileId, Nanos, SegmentId};
use crate::report::Level;
use std::collections::VecDeque;

impl Receiver {
    /// Says what landed, then the message: nothing overtakes an
    /// acknowledgement.
    pub(super) fn say(&mut self, message: Message) {
        self.say_what_is_unsaid();
        self.outputs.push_back(ReceiverOutput::Message(message));
    }

    /// What landed and what was settled, in this order.
    pub(super) fn say_what_is_unsaid(&mut self) {
        self.say_landed();
        let transfer = self.config.transfer;
        for ((segment, level), files) in std::mem::take(&mut self.unsaid_settled) {
            self.outputs
                .push_back(ReceiverOutput::Message(Message::Settled {
                    transfer,
                    segment,
                    files: FileRange::all_of(&files),
                    level,
                }));
        }
    }

    fn say_landed(&mut self) {
        let transfer = self.config.transfer;
        for (segment, landed) in std::mem::take(&mut self.unsaid) {
            let chunks: Vec<ChunkRange> = landed
                .iter()
                .map(|range| ChunkRange {
                    first: range.start,
                    count: range.end - range.start,
                })
                .collect();
            for part in chunks.chunks(limits::LANDED_RANGES_MAX) {
                self.outputs
                    .push_back(ReceiverOutput::Message(Message::Landed {
                        transfer,
                        segment,
                        chunks: part.to_vec(),
                    }));
            }
        }
    }

    /// The segment, if it is open.
    pub(super) fn work(&mut self, segment: SegmentId) -> Option<&mut ReceivingWork> {
        match self.segments.get_mut(&segment) {
            Some(ReceivingSegment::Open(work)) => Some(work),
            _ => None,
        }
    }

    pub(super) fn settle_if_ready(&mut self, segment: SegmentId, file: FileId) {
        if !matches!(self.state, ReceivingState::Moving) {
            return;
        }
        let is_front = self.segments.keys().next() == Some(&segment);
        let Some(work) = self.work(segment) else {
            return;
        };
        let entry = &work.files[file as usize];
        if !work.is_ready(entry, is_front) {
            return;
        }
        let Some(Closed { size, touched, .. }) = entry.closed else {
            return;
        };
        if work.plan.is_stream() && work.landed_bytes != size {
            let error = Error::new(
                crate::error::ErrorKind::Integrity,
                format!(
                    "cannot settle a stream: {} bytes landed and its sender says {size}",
                    work.landed_bytes
                ),
            );
            self.fail_file(segment, file, error, true);
            return;
        }
        work.files[file as usize].state = ReceivingFileState::Settling;
        self.settling += 1;
        let to_settle = self.to_settle.entry(segment).or_default();
        to_settle.push(FileToSettle {
            file,
            size,
            touched,
        });
    }

    /// The file fails; `tell` the sender unless it said so itself. A file that
    /// the hands settle now is left to them: it was whole and closed.
    pub(super) fn fail_file(&mut self, segment: SegmentId, file: FileId, error: Error, tell: bool) {
        let transfer = self.config.transfer;
        let is_moving = self
            .work(segment)
            .and_then(|work| work.files.get(file as usize))
            .is_some_and(|file| file.state == ReceivingFileState::Moving);
        if !is_moving {
            return;
        }
        if tell {
            self.say(Message::Failed {
                transfer,
                segment,
                file,
                error: error.clone(),
            });
        }
        self.end_file(segment, file, Err(error));
    }

    /// Ends the file and discards what is left of it.
    pub(super) fn end_file(
        &mut self,
        segment: SegmentId,
        file: FileId,
        result: Result<Level, Error>,
    ) {
        let Some(work) = self.work(segment) else {
            return;
        };
        let entry = &mut work.files[file as usize];
        if entry.state == ReceivingFileState::Ended {
            return;
        }
        let size = entry.closed.map(|closed| closed.size).or(entry.size);
        let wanted_bytes = entry.wanted_bytes;
        let was_last_wait = work.end(file);
        match &result {
            Ok(_) if work.plan.is_stream() => self.counts.sealed += work.landed_bytes,
            Ok(_) => self.counts.sealed += wanted_bytes,
            Err(_) => self.discard(segment, file),
        }
        self.outputs.push_back(ReceiverOutput::FileEnded {
            segment,
            file,
            size,
            result,
        });
        self.forget_if_done(segment);
        if was_last_wait {
            self.settle_the_last();
        }
    }

    /// What waited for everything before it: the front segment's last ones.
    fn settle_the_last(&mut self) {
        let Some((&segment, ReceivingSegment::Open(work))) = self.segments.iter().next() else {
            return;
        };
        let last = (0..).zip(&work.files);
        let last = last.filter(|(_, file)| file.comes_last && work.is_ready(file, true));
        let last: Vec<FileId> = last.map(|(file, _)| file).collect();
        for file in last {
            self.settle_if_ready(segment, file);
        }
    }

    pub(super) fn forget_if_done(&mut self, segment: SegmentId) {
        if self.work(segment).is_some_and(|work| work.files_open == 0) {
            self.segments.remove(&segment);
            self.credit.give_back(segment);
            self.outputs
                .push_back(ReceiverOutput::SegmentDone { segment });
            self.settle_the_last();
            if self.last_offered
                && self.segments.is_empty()
                && matches!(self.state, ReceivingState::Moving)
            {
                match self.config.deletes {
                    true => {
                        self.state = ReceivingState::Deleting {
                            heard: 0,
                            is_at_work: false,
                            waiting: VecDeque::new(),
                            is_last_heard: false,
                        }
                    }
                    false => self.start_finish(),
                }
            }
        }
    }

    /// Nothing more can come: our report need not wait for the sender's, which saves
    /// a round trip. It waits for what is being removed: who hears it may look for
    /// what is left.
    pub(super) fn start_finish(&mut self) {
        self.state = ReceivingState::Finishing(None);
        if self.discarding == 0 {
            self.outputs.push_back(ReceiverOutput::Finish);
        }
    }

    fn discard(&mut self, segment: SegmentId, file: FileId) {
        self.discarding += 1;
        self.outputs
            .push_back(ReceiverOutput::Discard { segment, file });
    }

    /// The transfer failed: every file that no hand is at work on ends now.
    pub(super) fn fail(&mut self, error: Error) {
        self.state = ReceivingState::Ending(error.clone());
        self.outputs.retain(|output| {
            !matches!(
                output,
                ReceiverOutput::Finish | ReceiverOutput::Landed { .. }
            )
        });
        self.unsaid.clear();
        self.unsaid_settled.clear();
        let mut moving = Vec::new();
        for (&segment, state) in &self.segments {
            let ReceivingSegment::Open(work) = state else {
                continue;
            };
            let files = (0..).zip(&work.files);
            moving.extend(
                files
                    .filter(|(_, file)| file.state == ReceivingFileState::Moving)
                    .map(|(file, _)| (segment, file)),
            );
        }
        for (segment, file) in moving {
            self.end_file(segment, file, Err(error.clone()));
        }
        self.end_if_quiet();
    }

    /// Targets that were created for a transfer that failed meanwhile.
    pub(super) fn discard_prepared(&mut self, segment: SegmentId, verdicts: &[Verdict]) {
        let ReceivingState::Ending(error) = &self.state else {
            return;
        };
        let error = error.clone();
        for (file, verdict) in (0..).zip(verdicts) {
            if verdict.is_wanted() {
                self.discard(segment, file);
            }
            self.outputs.push_back(ReceiverOutput::FileEnded {
                segment,
                file,
                size: None,
                result: Err(error.clone()),
            });
        }
    }

    /// The last output on failure, once no hand is at work on a file.
    pub(super) fn end_if_quiet(&mut self) {
        let preparing = self
            .segments
            .values()
            .any(|segment| matches!(segment, ReceivingSegment::Preparing(_)));
        if preparing || self.settling > 0 || self.discarding > 0 {
            return;
        }
        if let ReceivingState::Ending(error) = &self.state {
            self.outputs
                .push_back(ReceiverOutput::Failed(error.clone()));
            self.state = ReceivingState::Ended;
        }
    }

    /// Ends the transfer where the peer's next word is overdue.
    pub(super) fn see_to_deadline(&mut self, now: Nanos) {
        if !self.word_due.is_time(now) {
            return;
        }
        let is_owed = self.is_owed();
        if let Some(error) = self.word_due.overdue(now, is_owed, "sender") {
            self.stop(error);
        }
    }

    /// True while only a word is missing that the sender works on: the next
    /// offer, that what landed was the file, its report. Chunks take what they
    /// take, and a stream's end comes when it comes.
    fn is_owed(&self) -> bool {
        let is_whole = |segment: &ReceivingSegment| match segment {
            ReceivingSegment::Preparing(_) => false,
            ReceivingSegment::Open(work) => !work.plan.is_stream(),
        };
        match self.state {
            ReceivingState::Moving => {
                self.settling == 0
                    && self.counts.landed == self.counts.planned
                    && self.segments.values().all(is_whole)
            }
            ReceivingState::Deleting { is_at_work, .. } => !is_at_work,
            ReceivingState::Reporting => true,
            ReceivingState::Finishing(_) | ReceivingState::Ending(_) | ReceivingState::Ended => {
                false
            }
        }
    }
}
