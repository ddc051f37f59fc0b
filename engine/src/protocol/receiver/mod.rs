//! The receiving side of one transfer, as a state machine.
//!
//! Leaves to others: writing targets, the ledger's grants, sockets and clocks.
//! Invariant: a file is settled only when all its chunks landed and a current
//! `Closed` is held, and every file ends exactly once.

mod hear;
mod steps;
#[cfg(test)]
mod tests;
mod work;

use super::check::CheckSeed;
use super::credit::Credit;
use super::plan::{Plan, digest};
use super::ranges::RangeSet;
use super::wire::{Answer, ChunkRange, Deletions, Message, Names, Offer, Touched, Verdict, cut};
use super::word::WordDue;
use super::{ChunkId, ConnectionId, FileId, Nanos, SegmentId, TransferId};
use crate::error::{Error, Side};
use crate::limits;
use crate::report::{Bytes, Level, SideReport};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use work::{ReceivingFileState, ReceivingWork};

/// What a receiver needs to know before the first word.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverConfig {
    /// The transfer.
    pub transfer: TransferId,
    /// A power of two within the limits.
    pub chunk_bytes: u32,
    /// Descriptors that this end's files may take at once, as in
    /// `Begin::descriptors_max`.
    pub descriptors_max: u32,
    /// What is superfluous goes in the end.
    pub deletes: bool,
}

/// What the receiver's caller is to do.
#[derive(Clone, Debug)]
pub enum ReceiverOutput {
    /// Say this on the control connection.
    Message(Message),
    /// Create the targets; answered by [`Receiver::prepared`].
    Prepare {
        /// The files.
        offer: Arc<Offer>,
    },
    /// Frames of this segment may come: tell every worker before the message
    /// that follows is sent.
    Open {
        /// The segment.
        segment: SegmentId,
        /// Where its bytes go.
        plan: Plan,
        /// What its checks have in common.
        seed: CheckSeed,
    },
    /// The peer lost it: detach it; answered by [`Receiver::connection_reaped`],
    /// at once where there is no such connection (any more).
    CloseConnection {
        /// Which.
        connection: ConnectionId,
    },
    /// Progress.
    Landed {
        /// The segment.
        segment: SegmentId,
        /// Which chunks.
        chunks: ChunkRange,
        /// Their payload bytes.
        bytes: u64,
    },
    /// Sync, name and so on; each is answered by [`Receiver::settled`].
    Settle {
        /// The segment.
        segment: SegmentId,
        /// The files.
        files: Vec<FileToSettle>,
    },
    /// Remove its temporary file, if there (still) is one; answered by
    /// [`Receiver::discarded`].
    Discard {
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
    },
    /// The file's end; exactly one for each file.
    FileEnded {
        /// The segment.
        segment: SegmentId,
        /// The file.
        file: FileId,
        /// Its size, once that is known.
        size: Option<u64>,
        /// How.
        result: Result<Level, Error>,
    },
    /// Delete what these show to be superfluous; answered by [`Receiver::deleted`].
    Delete(Box<Names>),
    /// All its files ended: targets can be closed.
    SegmentDone {
        /// The segment.
        segment: SegmentId,
    },
    /// Every file ended and nothing temporary is left: collect this end's
    /// report, then [`Receiver::finish`].
    Finish,
    /// The sender's report; the last output on success.
    Done {
        /// The sender's measurements.
        report: Box<SideReport>,
    },
    /// The last output on failure.
    Failed(Error),
}

/// A file that is whole and closed.
#[derive(Clone, Copy, Debug)]
pub struct FileToSettle {
    /// The file.
    pub file: FileId,
    /// Its size.
    pub size: u64,
    /// What it is to be held against first, where its source was touched.
    pub touched: Option<Touched>,
}

/// Where the whole transfer is.
enum ReceivingState {
    /// Files are prepared, received and settled.
    /// From: start. To: Finishing, Ending.
    Moving,
    /// Every file ended; what is superfluous goes, by the names that the sender says.
    /// From: Moving. To: Finishing, Ending.
    Deleting {
        /// Parts that were heard.
        heard: u32,
        /// The hands are at one; those that follow wait, since a directory is complete
        /// only with all its parts.
        is_at_work: bool,
        waiting: VecDeque<Box<Names>>,
        is_last_heard: bool,
    },
    /// Every file ended; our own report is being collected, the sender's may
    /// be here already. From: Moving, Deleting. To: Reporting, Ended, Ending.
    Finishing(Option<Box<SideReport>>),
    /// Our report was said; the sender's is awaited.
    /// From: Finishing. To: Ended, Ending.
    Reporting,
    /// It failed; hands that are at work on a file are waited for, so that no
    /// temporary file stays. From: Moving, Finishing, Reporting. To: Ended.
    Ending(Error),
    /// Done or Failed is the last output.
    /// From: Finishing, Reporting, Ending. To: none.
    Ended,
}

/// Where a segment is; once all its files ended it is forgotten.
enum ReceivingSegment {
    /// The hands create its targets. From: offered. To: Open.
    Preparing(Arc<Offer>),
    /// Its frames may come. From: Preparing. To: forgotten.
    Open(Box<ReceivingWork>),
}

/// The receiving side of one transfer.
pub struct Receiver {
    config: ReceiverConfig,
    state: ReceivingState,
    next_segment: SegmentId,
    last_offered: bool,
    segments: BTreeMap<SegmentId, ReceivingSegment>,
    /// What they take.
    credit: Credit,
    /// Landed, and not yet said: neighbours become one range.
    unsaid: BTreeMap<SegmentId, RangeSet>,
    /// Settled, and not yet said.
    unsaid_settled: BTreeMap<(SegmentId, Level), RangeSet>,
    /// To be settled together.
    to_settle: BTreeMap<SegmentId, Vec<FileToSettle>>,
    /// Connections that were reaped here; their numbers are used up.
    reaped: RangeSet,
    /// Files that the hands settle now, of segments that are open.
    settling: usize,
    /// Temporary files that the hands remove now.
    discarding: usize,
    outputs: VecDeque<ReceiverOutput>,
    counts: Bytes,
    word_due: WordDue,
}

impl Receiver {
    /// A receiver that was offered nothing yet.
    #[must_use]
    pub fn new(config: ReceiverConfig) -> Self {
        Self {
            config,
            state: ReceivingState::Moving,
            next_segment: 0,
            last_offered: false,
            segments: BTreeMap::new(),
            credit: Credit::new(config.descriptors_max, u32::MAX),
            unsaid: BTreeMap::new(),
            unsaid_settled: BTreeMap::new(),
            to_settle: BTreeMap::new(),
            reaped: RangeSet::new(),
            settling: 0,
            discarding: 0,
            outputs: VecDeque::new(),
            counts: Bytes::default(),
            word_due: WordDue::default(),
        }
    }

    /// What [`ReceiverOutput::Prepare`] came to: one verdict for each file. A
    /// target exists (under its temporary name) for those that are wanted.
    pub fn prepared(&mut self, segment: SegmentId, verdicts: Vec<Verdict>) {
        let Some(ReceivingSegment::Preparing(offer)) = self.segments.get(&segment) else {
            return;
        };
        assert_eq!(
            offer.entries.len(),
            verdicts.len(),
            "the hands give one verdict for each file"
        );
        if matches!(self.state, ReceivingState::Ending(_)) {
            self.discard_prepared(segment, &verdicts);
            self.segments.remove(&segment);
            self.end_if_quiet();
            return;
        }
        let verdicts = fit(verdicts);
        let answer = Answer {
            transfer: self.config.transfer,
            segment,
            digest: digest(offer, &verdicts),
            verdicts,
        };
        let plan = match Plan::new(offer, &answer, self.config.chunk_bytes) {
            Ok(plan) => plan,
            Err(violation) => {
                // The hands asked for ranges that the file does not have. The
                // segment stays until its targets are discarded.
                let error = Error::local("cannot ask for the files", violation.got);
                self.stop(error.at(Side::Receiver));
                self.discard_prepared(segment, &answer.verdicts);
                self.segments.remove(&segment);
                self.end_if_quiet();
                return;
            }
        };
        self.credit.answered(offer, &answer.verdicts);
        let seed = CheckSeed::new(self.config.transfer, segment, plan.digest());
        let work = ReceivingWork::new(offer, plan.clone());
        self.counts.planned += plan.wanted_bytes();
        self.segments
            .insert(segment, ReceivingSegment::Open(Box::new(work)));
        self.outputs.push_back(ReceiverOutput::Open {
            segment,
            plan,
            seed,
        });
        let verdicts = answer.verdicts.clone();
        self.say(Message::Answer(answer));
        for (file, verdict) in verdicts.into_iter().enumerate() {
            // Entries are counted by FileId.
            let file = file as FileId;
            match verdict {
                Verdict::Skip => self.end_file(segment, file, Ok(Level::Unchanged)),
                Verdict::Would(level) => self.end_file(segment, file, Ok(level)),
                Verdict::Refused(error) => self.end_file(segment, file, Err(error)),
                Verdict::Whole | Verdict::Ranges(_) | Verdict::Held => {}
            }
        }
        self.forget_if_done(segment);
    }

    /// The sender works on what it owes: the wait for it begins anew.
    pub fn peer_works(&mut self) {
        self.word_due.heard();
    }

    /// The chunks are verified and their writes were reaped; each chunk once.
    /// A chunk lands when it is written to all its files that did not fail.
    pub fn chunks_landed(
        &mut self,
        _connection: ConnectionId,
        segment: SegmentId,
        chunks: ChunkRange,
        bytes: u64,
    ) {
        let Some(work) = self.work(segment) else {
            return;
        };
        let range = chunks.first..chunks.first + chunks.count;
        assert!(
            work.land(range.clone(), bytes),
            "a chunk lands once, by the ledger"
        );
        let files: Vec<FileId> = work.plan.files_of(range.clone()).collect();
        if work.plan.is_stream() {
            self.counts.planned += bytes;
        }
        self.counts.landed += bytes;
        self.unsaid.entry(segment).or_default().insert(range);
        self.outputs.push_back(ReceiverOutput::Landed {
            segment,
            chunks,
            bytes,
        });
        for file in files {
            self.settle_if_ready(segment, file);
        }
    }

    /// The chunk's check failed, and nothing of it is being written.
    pub fn chunk_damaged(&mut self, segment: SegmentId, chunk: ChunkId) {
        let transfer = self.config.transfer;
        if let Some(work) = self.work(segment)
            && work.recall(chunk..chunk + 1)
        {
            self.say(Message::Damaged {
                transfer,
                segment,
                chunk,
            });
        }
    }

    /// The ledger did not admit these chunks, and they were read and forgotten.
    pub fn chunks_drained(&mut self, segment: SegmentId, chunks: ChunkRange) {
        let transfer = self.config.transfer;
        if let Some(work) = self.work(segment)
            && work.recall(chunks.first..chunks.first + chunks.count)
        {
            self.say(Message::Drained {
                transfer,
                segment,
                chunks,
            });
        }
    }

    /// A write to the file failed; it ends here.
    pub fn write_failed(&mut self, segment: SegmentId, file: FileId, error: Error) {
        self.fail_file(segment, file, error, true);
    }

    /// The connection's last operation was reaped and its grants were
    /// released: whether the peer asked for it or it broke here.
    pub fn connection_reaped(&mut self, connection: ConnectionId) {
        if matches!(self.state, ReceivingState::Ended)
            || self.reaped.insert(number(connection)) == 0
        {
            return;
        }
        // Before this word is said, all that landed is.
        self.say(Message::Freed { connection });
        for segment in self.segments.values_mut() {
            if let ReceivingSegment::Open(work) = segment {
                work.freed = work.freed.wrapping_add(1);
            }
        }
    }

    /// What [`ReceiverOutput::Settle`] came to.
    pub fn settled(&mut self, segment: SegmentId, file: FileId, result: Result<Level, Error>) {
        let transfer = self.config.transfer;
        let is_settling = self
            .work(segment)
            .is_some_and(|work| work.files[file as usize].state == ReceivingFileState::Settling);
        if !is_settling {
            return;
        }
        self.settling -= 1;
        // A transfer that failed meanwhile hears no more of its files.
        if matches!(self.state, ReceivingState::Moving) {
            match &result {
                Ok(level) => {
                    let unsaid = self.unsaid_settled.entry((segment, *level)).or_default();
                    unsaid.insert(u64::from(file)..u64::from(file) + 1);
                }
                Err(error) => self.say(Message::Failed {
                    transfer,
                    segment,
                    file,
                    error: error.clone(),
                }),
            }
        }
        self.end_file(segment, file, result);
        self.end_if_quiet();
    }

    /// One [`ReceiverOutput::Discard`] was done: nothing of the file is left.
    pub fn discarded(&mut self) {
        assert!(self.discarding > 0, "each discard is answered once");
        self.discarding -= 1;
        if self.discarding == 0 && matches!(self.state, ReceivingState::Finishing(_)) {
            self.outputs.push_back(ReceiverOutput::Finish);
        }
        self.end_if_quiet();
    }

    /// What one [`ReceiverOutput::Delete`] came to.
    pub fn deleted(&mut self, number: u32, result: Result<Deletions, Error>) {
        let ReceivingState::Deleting {
            is_at_work,
            waiting,
            is_last_heard,
            ..
        } = &mut self.state
        else {
            return self.end_if_quiet();
        };
        let next = waiting.pop_front();
        *is_at_work = next.is_some();
        let is_over = *is_last_heard && next.is_none();
        match result {
            Ok(deletions) => {
                for part in deletions.in_parts() {
                    self.say(Message::Deleted {
                        transfer: self.config.transfer,
                        number,
                        deletions: Box::new(part),
                    });
                }
            }
            Err(error) => return self.stop(error),
        }
        self.outputs.extend(next.map(ReceiverOutput::Delete));
        if is_over {
            self.start_finish();
        }
    }

    /// This end's measurements, which [`ReceiverOutput::Finish`] asked for.
    pub fn finish(&mut self, report: SideReport) {
        let ReceivingState::Finishing(heard) = &mut self.state else {
            return;
        };
        let heard = heard.take();
        self.say(Message::Finished {
            transfer: self.config.transfer,
            report: Box::new(report),
        });
        self.state = ReceivingState::Reporting;
        if let Some(report) = heard {
            self.done(report);
        }
    }

    /// Both reports were said.
    pub(super) fn done(&mut self, report: Box<SideReport>) {
        self.state = ReceivingState::Ended;
        self.outputs.push_back(ReceiverOutput::Done { report });
    }

    /// Ends the transfer from this side; the peer is told. Also for a
    /// violation that [`Receiver::handle_message`] returned.
    pub fn stop(&mut self, error: Error) {
        if matches!(
            self.state,
            ReceivingState::Moving
                | ReceivingState::Deleting { .. }
                | ReceivingState::Finishing(_)
                | ReceivingState::Reporting
        ) {
            self.say(Message::Abort {
                transfer: self.config.transfer,
                error: error.clone(),
            });
            self.fail(error);
        }
    }

    /// What to do next; `None` until something is handed in. Call it once all
    /// that happened was handed in: what landed or is to be settled meanwhile is
    /// put out in one.
    pub fn poll(&mut self, now: Nanos) -> Option<ReceiverOutput> {
        self.see_to_deadline(now);
        if self.outputs.is_empty() {
            self.say_what_is_unsaid();
            let to_settle = std::mem::take(&mut self.to_settle).into_iter();
            let settles =
                to_settle.map(|(segment, files)| ReceiverOutput::Settle { segment, files });
            self.outputs.extend(settles);
        }
        self.outputs.pop_front()
    }

    /// True once it is known what all the files come to.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        let is_open = |segment: &ReceivingSegment| matches!(segment, ReceivingSegment::Open(_));
        self.last_offered && self.segments.values().all(is_open)
    }

    /// True while what is superfluous is deleted.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        matches!(self.state, ReceivingState::Deleting { .. })
    }

    /// How far the transfer is.
    #[must_use]
    pub fn counts(&self) -> Bytes {
        self.counts
    }
}

/// A connection's number as a set holds it.
fn number(connection: ConnectionId) -> Range<u64> {
    u64::from(connection)..u64::from(connection) + 1
}

/// Cuts the verdicts down to what one message holds: texts are shortened, and
/// files whose ranges are too many are asked for whole.
fn fit(mut verdicts: Vec<Verdict>) -> Vec<Verdict> {
    let text_bytes_max = limits::MESSAGE_BYTES_MAX / 4 / verdicts.len().max(1);
    let mut ranges_left = limits::ANSWER_RANGES_MAX;
    for verdict in &mut verdicts {
        match verdict {
            Verdict::Refused(error) => {
                cut(&mut error.sentence, text_bytes_max);
                if let Some(cure) = &mut error.cure {
                    cut(cure, text_bytes_max);
                }
            }
            Verdict::Ranges(ranges)
                if ranges.len() > ranges_left.min(limits::VERDICT_RANGES_MAX) =>
            {
                *verdict = Verdict::Whole;
            }
            Verdict::Ranges(ranges) => ranges_left -= ranges.len(),
            Verdict::Skip | Verdict::Whole | Verdict::Would(_) | Verdict::Held => {}
        }
    }
    verdicts
}
