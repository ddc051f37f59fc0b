//! What the sender does when something is ready: hand out a run, look at a
//! file, end a file, forget a segment.
//!
//! Leaves to others: noticing. Invariant: a file ends once, a segment is
//! forgotten once its last file ended and its last run is gone, and nothing is
//! put out after the end of the transfer.

use super::file::SendingFileState;
use super::work::{Flight, RecallState, RunKey, SendingWork};
use super::{Gathered, Sender, SenderOutput, SendingSegment, SendingState, Telling};
use crate::error::{Error, ErrorKind, Side};
use crate::limits;
use crate::protocol::check::Check;
use crate::protocol::wire::Message;
use crate::protocol::{ChunkId, ConnectionId, FileId, Nanos, Run, SegmentId};
use crate::report::Level;

impl Sender {
    pub(super) fn say(&mut self, message: Message) {
        self.outputs.push_back(SenderOutput::Message(message));
    }

    /// The segment, if it was answered and is not done.
    pub(super) fn work(&mut self, segment: SegmentId) -> Option<&mut SendingWork> {
        match self.segments.get_mut(&segment) {
            Some(SendingSegment::Moving(work)) => Some(work),
            _ => None,
        }
    }

    /// True when the segment is kept or offered, and was not answered.
    pub(super) fn awaits_answer(&self, segment: SegmentId) -> bool {
        matches!(
            self.segments.get(&segment),
            Some(SendingSegment::Offered(_))
        ) || self.held.iter().any(|offer| offer.segment == segment)
    }

    /// Offers what was kept, as far as the limit on open segments and the
    /// receiver's credit allow.
    pub(super) fn offer_held(&mut self) {
        while let Some(offer) = self.held.front()
            && self.credit.allows(offer)
            && let Some(offer) = self.held.pop_front()
        {
            self.credit.take(&offer);
            self.segments
                .insert(offer.segment, SendingSegment::Offered(offer.clone()));
            self.say(Message::Offer(offer));
        }
    }

    /// Gives the next run to the connection that needs it most.
    pub(super) fn hand_out(&mut self, now: Nanos) -> Option<SenderOutput> {
        if self.state != SendingState::Moving {
            return None;
        }
        let left_bytes = self.left_bytes();
        let connection = self.connections.next(left_bytes)?;
        self.allowed_at = None;
        let allowed = self.allowance.as_mut();
        let allowed = match allowed.map(|allowance| allowance.at(now, left_bytes)) {
            Some(Err(then)) => {
                self.allowed_at = Some(then);
                return None;
            }
            Some(Ok(bytes)) => bytes,
            None => u64::MAX,
        };
        let window_bytes = self.config.window_bytes;
        let chunk_bytes = u64::from(self.config.chunk_bytes);
        let run_bytes = self.connections.run_bytes(
            connection,
            left_bytes,
            window_bytes,
            self.config.bytes_per_second_max,
        );
        let run_bytes = run_bytes.min(allowed);
        let count_max = (run_bytes / chunk_bytes).clamp(1, u64::from(limits::RUN_CHUNKS_MAX));
        let window_chunks = window_bytes.map(|bytes| (bytes / chunk_bytes).max(1));
        let mut found = None;
        for segment in self.segments.values_mut() {
            let landed = match segment {
                SendingSegment::Offered(_) => false,
                SendingSegment::Moving(work) => {
                    let handed = work.handed_end();
                    let taken = work.take_next(count_max, window_chunks);
                    if let Some(chunks) = &taken
                        && work.plan.is_stream()
                        && chunks.start >= handed
                    {
                        // A stream's plan is what was handed out of it.
                        self.counts.planned += work.bytes(chunks.clone());
                    }
                    found = taken.map(|chunks| (work.segment, chunks));
                    work.is_landed()
                }
            };
            // A window counts over the whole transfer: what comes later waits
            // until all before it landed.
            if found.is_some() || (window_bytes.is_some() && !landed) {
                break;
            }
        }
        let (segment, chunks) = found?;
        let run = Run {
            segment,
            first: chunks.start,
            count: (chunks.end - chunks.start) as u32,
        };
        Some(self.launch(now, connection, run))
    }

    fn launch(&mut self, now: Nanos, connection: ConnectionId, run: Run) -> SenderOutput {
        let key = self.next_run;
        self.next_run += 1;
        let full_bytes = u64::from(run.count) * u64::from(self.config.chunk_bytes);
        let mut bytes = None;
        let mut open_bytes = 0;
        if let Some(work) = self.work(run.segment) {
            let flight = Flight {
                connection,
                run,
                handed: now,
                open_chunks: u64::from(run.count),
                sent: None,
            };
            open_bytes = work.bytes(flight.chunks());
            bytes = Some(open_bytes).filter(|_| work.plan.is_stream() && open_bytes < full_bytes);
            work.launch(key, flight);
        }
        if let Some(known) = self.connections.0.get_mut(&connection) {
            known.take(now, run.segment, key, open_bytes);
        }
        if let Some(allowance) = &mut self.allowance {
            allowance.take(open_bytes);
        }
        SenderOutput::Run {
            connection,
            run,
            bytes,
        }
    }

    /// Bytes that were not handed out; `None` while more may come.
    fn left_bytes(&self) -> Option<u64> {
        if !self.last_offered || !self.held.is_empty() {
            return None;
        }
        let mut left: u64 = 0;
        for segment in self.segments.values() {
            match segment {
                SendingSegment::Offered(_) => return None,
                SendingSegment::Moving(work) => left = left.saturating_add(work.unsent_bytes()?),
            }
        }
        Some(left)
    }

    pub(super) fn look_if_ready(&mut self, segment: SegmentId, file: FileId) {
        let Some(work) = self.work(segment) else {
            return;
        };
        if work.is_open && work.files[file as usize].start_look() {
            self.gathered.entry(segment).or_default().looks.push(file);
        }
    }

    /// Says that the file is unchanged, with what was heard by then.
    pub(super) fn say_closed(&mut self, segment: SegmentId, file: FileId) {
        let closed = &mut self.gathered.entry(segment).or_default().closed;
        closed.insert(u64::from(file)..u64::from(file) + 1);
    }

    pub(super) fn put_out_gathered(&mut self) {
        for (segment, gathered) in std::mem::take(&mut self.gathered) {
            let Gathered { looks, closed } = gathered;
            if !looks.is_empty() {
                let look = SenderOutput::Look {
                    segment,
                    files: looks,
                };
                self.outputs.push_back(look);
            }
            let transfer = self.config.transfer;
            let closed = self.work(segment).map(|work| work.closed_words(closed));
            for words in closed.into_iter().flatten() {
                self.say(Message::Closed {
                    transfer,
                    segment,
                    files: words.files,
                    stream_bytes: words.stream_bytes,
                    recalls: words.recalls,
                    touched: words.touched,
                });
            }
        }
    }

    /// A chunk that was called back: computed again where it is known what was
    /// sent, else simply sent again.
    pub(super) fn judge(&mut self, segment: SegmentId, chunk: ChunkId, check: Option<Check>) {
        let Some(work) = self.work(segment) else {
            return;
        };
        match check {
            Some(check) => {
                work.set_recall_state(chunk, RecallState::Judging(check));
                self.outputs
                    .push_back(SenderOutput::Recheck { segment, chunk });
            }
            None => {
                work.send_again(chunk);
            }
        }
    }

    /// All files in the chunk fail.
    pub(super) fn fail_chunk(&mut self, segment: SegmentId, chunk: ChunkId, error: &Error) {
        let files: Vec<FileId> = self.work(segment).map_or_else(Vec::new, |work| {
            work.plan.files_of(chunk..chunk + 1).collect()
        });
        for file in files {
            self.fail_file(segment, file, error.clone());
        }
    }

    /// The chunk was called back too often.
    pub(super) fn fail_worn_out(&mut self, segment: SegmentId, chunk: ChunkId) {
        let error = Error::new(
            ErrorKind::Integrity,
            format!(
                "chunk {chunk} was damaged on the way more than {} times",
                limits::RESENDS_MAX
            ),
        )
        .at(Side::Sender)
        .cure("check the memory and the network hardware of both machines");
        self.fail_chunk(segment, chunk, &error);
    }

    /// The file fails at this end, and the receiver is told.
    pub(super) fn fail_file(&mut self, segment: SegmentId, file: FileId, error: Error) {
        let transfer = self.config.transfer;
        let entry = self
            .work(segment)
            .and_then(|work| work.files.get(file as usize));
        if entry.is_some_and(|entry| !entry.has_ended()) {
            self.say(Message::Changed {
                transfer,
                segment,
                file,
                error: error.clone(),
            });
            self.end_file(segment, file, Err(error));
        }
    }

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
        if entry.has_ended() {
            return;
        }
        entry.state = SendingFileState::Ended;
        work.files_open -= 1;
        let (sealed, size) = (entry.wanted_bytes, entry.size);
        let mut runs = Vec::new();
        match result {
            Ok(_) => self.counts.sealed += sealed,
            Err(_) => runs = work.drop_file(file),
        }
        self.outputs.push_back(SenderOutput::FileEnded {
            segment,
            file,
            size,
            result,
        });
        self.retire_runs(segment, runs);
        self.forget_if_done(segment);
    }

    /// Forgets those of the runs that are sent and have nothing open.
    pub(super) fn retire_runs(&mut self, segment: SegmentId, runs: Vec<RunKey>) {
        for key in runs {
            let gone = self
                .work(segment)
                .and_then(|work| work.retire_flight(key))
                .and_then(|connection| self.connections.0.get_mut(&connection));
            if let Some(connection) = gone {
                connection.runs.remove(&(segment, key));
            }
        }
    }

    pub(super) fn forget_if_done(&mut self, segment: SegmentId) {
        let done = self
            .work(segment)
            .is_some_and(|work| work.files_open == 0 && work.flights.is_empty());
        if !done {
            return;
        }
        self.segments.remove(&segment);
        self.early.remove(&segment);
        self.credit.give_back(segment);
        self.outputs
            .push_back(SenderOutput::SegmentDone { segment });
        self.offer_held();
        if self.last_offered && self.segments.is_empty() && self.state == SendingState::Moving {
            match self.config.deletes {
                true => self.state = SendingState::Deleting(Telling::default()),
                false => self.start_finish(),
            }
        }
    }

    pub(super) fn start_finish(&mut self) {
        self.state = SendingState::Finishing;
        self.outputs.push_back(SenderOutput::Finish);
    }

    /// The last outputs on failure. What is said already is still said; what
    /// the hands and the workers were to do is not done any more.
    pub(super) fn fail(&mut self, error: Error) {
        self.state = SendingState::Ended;
        self.outputs.retain(|output| {
            !matches!(
                output,
                SenderOutput::Run { .. }
                    | SenderOutput::Look { .. }
                    | SenderOutput::Recheck { .. }
                    | SenderOutput::Finish
            )
        });
        // What was kept ends too: each file that was handed in ends once.
        let held = self.held.drain(..);
        self.segments
            .extend(held.map(|offer| (offer.segment, SendingSegment::Offered(offer))));
        for (&segment, state) in &self.segments {
            let open = match state {
                SendingSegment::Offered(offer) => vec![true; offer.entries.len()],
                SendingSegment::Moving(work) => {
                    work.files.iter().map(|file| !file.has_ended()).collect()
                }
            };
            let open = open.into_iter().enumerate().filter(|(_, open)| *open);
            self.outputs
                .extend(open.map(|(file, _)| SenderOutput::FileEnded {
                    segment,
                    // Entries are counted by FileId.
                    file: file as FileId,
                    size: None,
                    result: Err(error.clone()),
                }));
        }
        self.segments.clear();
        self.early.clear();
        self.gathered.clear();
        self.connections.0.clear();
        self.outputs.push_back(SenderOutput::Failed(error));
    }

    /// Ends the transfer where the peer's next word is overdue.
    pub(super) fn see_to_deadline(&mut self, now: Nanos) {
        if !self.word_due.is_time(now) {
            return;
        }
        let is_owed = self.is_owed();
        if let Some(error) = self.word_due.overdue(now, is_owed, "receiver") {
            self.stop(error);
        }
    }

    /// True while a word is missing that the receiver works on, and that waits
    /// for nothing here: an Answer, names that it was asked for, that it let go of a
    /// lost connection, the end of a file all of which landed (of what comes last once
    /// everything before it is closed), its report. What lands takes what it takes.
    fn is_owed(&self) -> bool {
        let is_offered = |segment: &SendingSegment| matches!(segment, SendingSegment::Offered(_));
        let owes_ends = |segment: &SendingSegment| match segment {
            SendingSegment::Offered(_) => false,
            SendingSegment::Moving(work) => work.is_closed_in_part(),
        };
        let is_closed = |segment: &SendingSegment| match segment {
            SendingSegment::Offered(_) => false,
            SendingSegment::Moving(work) => work.is_closed(),
        };
        let is_landed = |segment: &SendingSegment| match segment {
            SendingSegment::Offered(_) => false,
            SendingSegment::Moving(work) => work.is_landed(),
        };
        let segments = || self.segments.values();
        let first_is_closed = || segments().next().is_some_and(is_closed);
        match self.state {
            SendingState::Moving => {
                self.names_are_due
                    || self.connections.has_lost()
                    || segments().any(is_offered)
                    || segments().all(is_landed) && (segments().any(owes_ends) || first_is_closed())
            }
            SendingState::Reporting => true,
            SendingState::Deleting(telling) => telling.said > telling.answered,
            SendingState::Finishing | SendingState::Ended => false,
        }
    }
}
