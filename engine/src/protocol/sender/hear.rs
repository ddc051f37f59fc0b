//! What the sender makes of the receiver's words.
//!
//! Leaves to others: decoding them. Invariant: a word that an honest receiver
//! cannot say is a violation and changes nothing that is not the liar's loss;
//! a word that crossed one of ours on the way is none.

use super::file::{SendingFile, SendingFileState};
use super::work::{RunPart, SendingWork, StreamState};
use super::{ConnectionState, Sender, SenderOutput, SendingSegment, SendingState, number};
use crate::error::Error;
use crate::limits;
use crate::protocol::check::CheckSeed;
use crate::protocol::plan::Plan;
use crate::protocol::wire::{Answer, ChunkRange, Deletions, FileRange, Message, Offer, Verdict};
use crate::protocol::{ChunkId, ConnectionId, FileId, Nanos, SegmentId, Violation};
use crate::report::Level;
use crate::report::SideReport;
use std::ops::Range;

impl Sender {
    /// Takes a message of this transfer, or a `Freed`.
    ///
    /// # Errors
    /// What an honest receiver cannot say now. The caller then stops the
    /// transfer and closes the session.
    pub fn handle_message(&mut self, now: Nanos, message: Message) -> Result<(), Violation> {
        if self.state == SendingState::Ended {
            return Ok(());
        }
        if let Some(transfer) = message.transfer()
            && transfer != self.config.transfer
        {
            return Err(Violation::new("a message of this transfer", "another's"));
        }
        self.word_due.heard();
        match message {
            Message::Freed { connection } => self.hear_freed(connection),
            Message::Answer(answer) => self.hear_answer(answer),
            Message::Landed {
                segment, chunks, ..
            } => chunks
                .into_iter()
                .try_for_each(|chunks| self.hear_landed(now, segment, chunks)),
            Message::Damaged { segment, chunk, .. } => self.hear_damaged(segment, chunk),
            Message::Drained {
                segment, chunks, ..
            } => self.hear_drained(segment, chunks),
            Message::Settled {
                segment,
                files,
                level,
                ..
            } => {
                let mut files = files.into_iter().flat_map(FileRange::files);
                files.try_for_each(|file| self.hear_settled(segment, file, level))
            }
            Message::Failed {
                segment,
                file,
                error,
                ..
            } => self.hear_failed(segment, file, error),
            Message::Deleted {
                number, deletions, ..
            } => self.hear_deleted(number, deletions),
            Message::Finished { report, .. } => self.hear_finished(report),
            // Which streams are made on the fly, and can end anywhere, is
            // known to the caller; it calls `end_stream`.
            Message::EndStreams { .. } => Ok(()),
            Message::Abort { error, .. } => {
                self.fail(error);
                Ok(())
            }
            _ => Err(unexpected("a message that only a sender says")),
        }
    }

    fn hear_answer(&mut self, answer: Answer) -> Result<(), Violation> {
        let segment = answer.segment;
        let Some(SendingSegment::Offered(offer)) = self.segments.get(&segment) else {
            return Err(unexpected("an answer to what was not offered"));
        };
        if !self.config.may_hold && answer.verdicts.contains(&Verdict::Held) {
            return Err(Violation::new(
                "a file that is wanted, passed over or refused",
                "one that shares its blocks with ours",
            ));
        }
        let plan = Plan::new(offer, &answer, self.config.chunk_bytes)?;
        if *plan.digest() != answer.digest {
            return Err(Violation::new(
                "an answer whose digest is that of our offer",
                "another digest",
            ));
        }
        self.credit.answered(offer, &answer.verdicts);
        let files = files_of(offer, &plan);
        let early = self.early.remove(&segment).unwrap_or_default();
        let seed = CheckSeed::new(self.config.transfer, segment, plan.digest());
        self.counts.planned += plan.wanted_bytes();
        let is_stream = plan.is_stream();
        let verdicts = (0..).zip(&answer.verdicts);
        let unwanted = verdicts.filter(|(_, verdict)| !verdict.is_wanted());
        self.outputs.push_back(SenderOutput::Segment {
            segment,
            plan: plan.clone(),
            seed,
            unwanted: unwanted.map(|(file, _)| file).collect(),
        });
        let work = SendingWork::new(segment, plan, files, StreamState::default());
        self.segments
            .insert(segment, SendingSegment::Moving(Box::new(work)));
        for (file, error) in early.failed {
            self.fail_file(segment, file, error);
        }
        if is_stream {
            let StreamState {
                complete_chunks,
                end_bytes,
            } = early.stream;
            self.stream_available(segment, complete_chunks, end_bytes);
        }
        for (file, verdict) in answer.verdicts.into_iter().enumerate() {
            // Entries are counted by FileId.
            let file = file as FileId;
            match verdict {
                // The receiver has it as it would be after sealing.
                Verdict::Skip => self.end_file(segment, file, Ok(Level::Unchanged)),
                Verdict::Would(level) => self.end_file(segment, file, Ok(level)),
                Verdict::Refused(error) => self.end_file(segment, file, Err(error)),
                // It is looked at when it is open.
                Verdict::Whole | Verdict::Ranges(_) | Verdict::Held => {}
            }
        }
        self.forget_if_done(segment);
        Ok(())
    }

    /// The segment to which a word about chunks or files applies: `None` when
    /// it is done already, and the word came late.
    fn heard_of(&mut self, segment: SegmentId) -> Result<Option<&mut SendingWork>, Violation> {
        let known = segment < self.next_segment;
        match self.segments.get_mut(&segment) {
            Some(SendingSegment::Moving(work)) => Ok(Some(work)),
            None if known && self.held.iter().all(|offer| offer.segment != segment) => Ok(None),
            _ => Err(unexpected("a word about a segment before its answer")),
        }
    }

    fn hear_landed(
        &mut self,
        now: Nanos,
        segment: SegmentId,
        chunks: ChunkRange,
    ) -> Result<(), Violation> {
        let Some(work) = self.heard_of(segment)? else {
            return Ok(());
        };
        let chunks = known_chunks(work, chunks)?;
        let mut at = chunks.start;
        while at < chunks.end {
            // The segment may be done in the middle of it.
            let Some(work) = self.work(segment) else {
                return Ok(());
            };
            if let Some(part) = work.open_at(at, chunks.end) {
                at = part.chunks.end;
                self.land(now, segment, part);
            } else if let Some(end) = work.dropped_until(at) {
                at = end;
            } else {
                return Err(Violation::new(
                    "landed chunks that are on their way",
                    format!("chunk {at}"),
                ));
            }
        }
        Ok(())
    }

    fn land(&mut self, now: Nanos, segment: SegmentId, part: RunPart) {
        let Some(work) = self.work(segment) else {
            return;
        };
        let bytes = work.bytes(part.chunks.clone());
        let flight = work.flights.get(&part.run);
        let connection = flight.map(|flight| flight.connection);
        let submitted = flight.and_then(|flight| flight.sent.as_ref().map(|sent| sent.submitted));
        let handed = flight.map_or(now, |flight| flight.handed);
        work.land(&part);
        let files: Vec<FileId> = work.plan.files_of(part.chunks.clone()).collect();
        self.counts.landed += bytes;
        let known = connection.and_then(|connection| self.connections.0.get_mut(&connection));
        let mut last_sent = 0;
        if let Some(known) = known {
            last_sent = known.last_sent;
            known.landed(now, segment, part.run, bytes);
        }
        self.outputs.push_back(SenderOutput::Landed {
            connection,
            segment,
            chunks: ChunkRange {
                first: part.chunks.start,
                count: part.chunks.end - part.chunks.start,
            },
            bytes,
            // A run that is not told as sent was begun when the one before it
            // was done, or when it was handed over.
            submitted: submitted.unwrap_or(handed.max(last_sent)),
            acknowledged: now,
        });
        for file in files {
            self.look_if_ready(segment, file);
        }
        self.retire_runs(segment, vec![part.run]);
        self.forget_if_done(segment);
    }

    fn hear_damaged(&mut self, segment: SegmentId, chunk: ChunkId) -> Result<(), Violation> {
        let Some(work) = self.heard_of(segment)? else {
            return Ok(());
        };
        let chunks = known_chunks(
            work,
            ChunkRange {
                first: chunk,
                count: 1,
            },
        )?;
        let Some(part) = work.open_at(chunk, chunks.end) else {
            if work.dropped_until(chunk).is_some() {
                return Ok(());
            }
            return Err(Violation::new(
                "a damaged chunk that is on its way",
                format!("chunk {chunk}"),
            ));
        };
        count_recall(work, &chunks);
        self.counts.resent += self.call_back(segment, &part);
        let Some(work) = self.work(segment) else {
            return Ok(());
        };
        let (times, check) = work.recall(chunk, part.run);
        if times > limits::RESENDS_MAX || work.recalls_too_many() {
            self.fail_worn_out(segment, chunk);
        } else if check.is_some() {
            self.judge(segment, chunk, check);
        }
        self.retire_runs(segment, vec![part.run]);
        self.forget_if_done(segment);
        Ok(())
    }

    fn hear_drained(&mut self, segment: SegmentId, chunks: ChunkRange) -> Result<(), Violation> {
        let Some(work) = self.heard_of(segment)? else {
            return Ok(());
        };
        let chunks = known_chunks(work, chunks)?;
        count_recall(work, &chunks);
        let mut at = chunks.start;
        while at < chunks.end {
            let Some(work) = self.work(segment) else {
                return Ok(());
            };
            if let Some(part) = work.open_at(at, chunks.end) {
                at = part.chunks.end;
                self.send_drained_again(segment, &part);
            } else if let Some(end) = work.dropped_until(at).or_else(|| work.landed_until(at)) {
                at = end;
            } else {
                return Err(Violation::new(
                    "drained chunks that were sent",
                    format!("chunk {at}"),
                ));
            }
        }
        self.say_closed_again(segment);
        Ok(())
    }

    fn send_drained_again(&mut self, segment: SegmentId, part: &RunPart) {
        self.counts.resent += self.call_back(segment, part);
        for chunk in part.chunks.clone() {
            let Some(work) = self.work(segment) else {
                return;
            };
            let (times, _) = work.recall(chunk, part.run);
            if times > limits::RESENDS_MAX || work.recalls_too_many() {
                self.fail_worn_out(segment, chunk);
            } else {
                self.judge(segment, chunk, None);
            }
        }
        self.retire_runs(segment, vec![part.run]);
        self.forget_if_done(segment);
    }

    /// Takes the part back from its run; gives its bytes.
    fn call_back(&mut self, segment: SegmentId, part: &RunPart) -> u64 {
        self.work(segment).map_or(0, |work| {
            work.take_back(part);
            work.bytes(part.chunks.clone())
        })
    }

    fn hear_freed(&mut self, connection: ConnectionId) -> Result<(), Violation> {
        let is_new = self.freed.insert(number(connection)) > 0;
        // It is said twice where it went between two transfers: for the last one
        // unasked, and for this one as the answer to Lost, which counts.
        let is_known = !is_new && self.freed_again.insert(number(connection)) == 0;
        if is_known || self.freed.gaps() > limits::JOINS_MAX as usize {
            return Err(Violation::new(
                "a connection freed once",
                format!("connection {connection} freed again"),
            ));
        }
        if let Some(known) = self.connections.0.remove(&connection) {
            if known.state != ConnectionState::Lost {
                self.outputs
                    .push_back(SenderOutput::CloseConnection { connection });
            }
            let begun = known.unsent.front().copied();
            for (segment, key) in known.runs.into_keys() {
                self.free_run(segment, key, begun == Some((segment, key)));
            }
        }
        let segments: Vec<SegmentId> = self.segments.keys().copied().collect();
        for segment in segments {
            if let Some(work) = self.work(segment) {
                work.freed = work.freed.wrapping_add(1);
                self.say_closed_again(segment);
                self.forget_if_done(segment);
            }
        }
        Ok(())
    }

    /// The run's connection is gone at both ends: what did not land of it is
    /// sent again.
    fn free_run(&mut self, segment: SegmentId, key: super::RunKey, begun: bool) {
        let Some(work) = self.work(segment) else {
            return;
        };
        let mut resent: u64 = 0;
        for part in work.open_parts(key) {
            resent += work.bytes(part.chunks.clone());
            work.take_back(&part);
            work.hand_out_again(part.chunks);
        }
        let Some(flight) = work.flights.remove(&key) else {
            return;
        };
        let orphans = work.orphans_of(key, flight.chunks());
        if begun || flight.sent.is_some() {
            self.counts.resent += resent;
        }
        for chunk in orphans {
            self.judge(segment, chunk, None);
        }
    }

    /// What was heard since makes earlier words stale, though nothing of these
    /// files has to be read again: the word is said anew.
    fn say_closed_again(&mut self, segment: SegmentId) {
        let closed: Vec<FileId> = self.work(segment).map_or_else(Vec::new, |work| {
            let files = work.files.iter().enumerate();
            files
                .filter(|(_, file)| file.state == SendingFileState::Closed)
                // Entries are counted by FileId.
                .map(|(file, _)| file as FileId)
                .collect()
        });
        for file in closed {
            self.say_closed(segment, file);
        }
    }

    fn hear_deleted(&mut self, number: u32, deletions: Box<Deletions>) -> Result<(), Violation> {
        match &mut self.state {
            SendingState::Deleting(telling)
                if number == telling.answered && number < telling.said =>
            {
                telling.answered += u32::from(!deletions.more);
                let is_over = telling.is_last_said && telling.answered == telling.said;
                self.outputs.push_back(SenderOutput::Deleted(deletions));
                if is_over {
                    self.start_finish();
                }
                Ok(())
            }
            _ => Err(unexpected("an answer to names that were not said")),
        }
    }

    /// The receiver's report: it may come before ours was collected.
    fn hear_finished(&mut self, report: Box<SideReport>) -> Result<(), Violation> {
        let ended = |segment: &SendingSegment| match segment {
            SendingSegment::Moving(work) => work.files_open == 0,
            SendingSegment::Offered(_) => false,
        };
        let all_ended = self.last_offered && self.segments.values().all(ended);
        match self.state {
            SendingState::Reporting => {
                self.state = SendingState::Ended;
                self.outputs.push_back(SenderOutput::Done { report });
            }
            SendingState::Moving | SendingState::Finishing if all_ended && self.heard.is_none() => {
                self.heard = Some(report);
            }
            _ => return Err(unexpected("Finished before every file ended")),
        }
        Ok(())
    }

    fn hear_settled(
        &mut self,
        segment: SegmentId,
        file: FileId,
        level: Level,
    ) -> Result<(), Violation> {
        let Some(work) = self.heard_of(segment)? else {
            return Ok(());
        };
        let entry = known_file(work, file)?;
        match entry.state {
            SendingFileState::Ended => return Ok(()),
            SendingFileState::Closed if entry.shares == Some(entry.landed) => {}
            state => {
                return Err(Violation::new(
                    "a settled file that is closed and whole",
                    format!("file {file}, {state:?} with {} landed", entry.landed),
                ));
            }
        }
        self.end_file(segment, file, Ok(level));
        Ok(())
    }

    fn hear_failed(
        &mut self,
        segment: SegmentId,
        file: FileId,
        error: Error,
    ) -> Result<(), Violation> {
        let Some(work) = self.heard_of(segment)? else {
            return Ok(());
        };
        known_file(work, file)?;
        self.end_file(segment, file, Err(error));
        Ok(())
    }
}

fn unexpected(got: &str) -> Violation {
    Violation::new("what a receiver says at this point", got)
}

fn files_of(offer: &Offer, plan: &Plan) -> Vec<SendingFile> {
    let entries = offer.entries.iter().enumerate();
    entries
        .map(|(file, entry)| SendingFile {
            size: (!plan.is_stream()).then_some(entry.size),
            wanted_bytes: plan.bytes_of(file as FileId),
            shares: plan.shares_of(file as FileId),
            read: 0,
            landed: 0,
            recalls: 0,
            comes_last: entry.kind.comes_last(),
            touched: None,
            state: SendingFileState::Moving { stale_look: false },
        })
        .collect()
}

fn known_chunks(work: &SendingWork, chunks: ChunkRange) -> Result<Range<ChunkId>, Violation> {
    if !work.plan.contains(chunks.first, chunks.count) {
        return Err(Violation::new(
            "chunks of the plan",
            format!("{} from {}", chunks.count, chunks.first),
        ));
    }
    Ok(chunks.first..chunks.first + chunks.count)
}

fn known_file(work: &SendingWork, file: FileId) -> Result<&SendingFile, Violation> {
    let entry = work.files.get(file as usize);
    entry.ok_or_else(|| Violation::new("a file of the segment", format!("file {file}")))
}

fn count_recall(work: &mut SendingWork, chunks: &Range<ChunkId>) {
    for file in work.plan.files_of(chunks.clone()) {
        let entry = &mut work.files[file as usize];
        entry.recalls = entry.recalls.wrapping_add(1);
    }
}
