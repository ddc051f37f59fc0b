//! The sending side of one transfer, as a state machine.
//!
//! Leaves to others: reading sources, sockets, clocks and the receiver's side.
//! Invariant: a chunk is in at most one place: not yet handed out, in one run,
//! called back and waiting, or landed.

mod allowance;
mod file;
mod hear;
mod output;
mod schedule;
mod steps;
#[cfg(test)]
mod tests;
mod work;

use super::check::Check;
use super::credit::{Credit, descriptors_of_all};
use super::ranges::RangeSet;
use super::wire::{ChunkRange, Entry, Folder, IdName, Listing, Message, Names, Offer};
use super::word::WordDue;
use super::{ChunkId, ConnectionId, FileId, Nanos, Run, SegmentId, TransferId};
use crate::error::{Error, ErrorKind, Side};
use crate::limits;
use crate::report::{Bytes, SideReport};
use allowance::Allowance;
use file::SendingFileState;
pub use output::{Looked, Rechecked, SenderOutput};
use schedule::{ConnectionState, Connections, ScheduledConnection};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use work::{RecallState, RunKey, SendingWork, Sent, StreamState};

/// What a sender needs to know before the first word.
#[derive(Clone, Copy, Debug)]
pub struct SenderConfig {
    /// The transfer.
    pub transfer: TransferId,
    /// A power of two within the limits.
    pub chunk_bytes: u32,
    /// As in `Begin::window_bytes`.
    pub window_bytes: Option<u64>,
    /// Descriptors that this end's files may take at once.
    pub descriptors_max: u32,
    /// The receiver's, as far as it said so: see [`Sender::allow`].
    pub peer_descriptors_max: u32,
    /// What all connections together may send, where that is limited: runs last
    /// no longer at that rate either, from the first on.
    pub bytes_per_second_max: Option<u64>,
    /// What is superfluous at the receiver goes in the end.
    pub deletes: bool,
    /// The receiver was given the sources to share their blocks: see
    /// [`super::wire::Verdict::Held`].
    pub may_hold: bool,
}

/// Where the whole transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendingState {
    /// Files are offered, sent and settled. From: start. To: Finishing, Ended.
    Moving,
    /// All files ended; what the directories hold is told, and the receiver deletes
    /// what they do not. From: Moving. To: Finishing, Ended.
    Deleting(Telling),
    /// All files ended; our own report is being collected.
    /// From: Moving, Deleting. To: Reporting, Ended.
    Finishing,
    /// Our report was sent; the receiver's is awaited.
    /// From: Finishing. To: Ended.
    Reporting,
    /// Done or Failed is the last output. From: any. To: none.
    Ended,
}

/// How far the names are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Telling {
    /// Parts that were said, and those that were answered.
    said: u32,
    answered: u32,
    is_last_said: bool,
}

/// Where a segment is; once all its files ended it is forgotten.
enum SendingSegment {
    /// The receiver thinks about it. From: offered. To: Moving.
    Offered(Arc<Offer>),
    /// Its chunks move. From: Offered. To: forgotten.
    Moving(Box<SendingWork>),
}

/// What was learnt of a segment before its answer came.
#[derive(Default)]
struct Early {
    failed: Vec<(FileId, Error)>,
    stream: StreamState,
}

/// What one segment offers: see [`Offer`].
#[derive(Clone, Debug, Default)]
pub struct Offered {
    /// Directories that the entries lie in.
    pub folders: Vec<Folder>,
    /// The entries.
    pub entries: Vec<Entry>,
    /// Names of users.
    pub users: Vec<IdName>,
    /// Names of groups.
    pub groups: Vec<IdName>,
}

impl From<Vec<Entry>> for Offered {
    /// Entries that lie where the transfer's files go.
    fn from(entries: Vec<Entry>) -> Self {
        Self {
            entries,
            ..Self::default()
        }
    }
}

/// Files of a segment that wait to be put out together.
#[derive(Default)]
struct Gathered {
    /// To be looked at again.
    looks: Vec<FileId>,
    /// To be said to be closed, where they still are.
    closed: RangeSet,
}

/// The sending side of one transfer.
pub struct Sender {
    config: SenderConfig,
    state: SendingState,
    /// The receiver's report, where it came before ours was said.
    heard: Option<Box<SideReport>>,
    last_offered: bool,
    next_segment: SegmentId,
    next_run: RunKey,
    /// Offers that wait until fewer segments are open.
    held: VecDeque<Arc<Offer>>,
    early: BTreeMap<SegmentId, Early>,
    segments: BTreeMap<SegmentId, SendingSegment>,
    /// What `segments` take.
    credit: Credit,
    connections: Connections,
    /// Connections that the receiver freed; their numbers are used up.
    freed: RangeSet,
    /// Those of which it was said twice.
    freed_again: RangeSet,
    outputs: VecDeque<SenderOutput>,
    /// What is put out for many files at once.
    gathered: BTreeMap<SegmentId, Gathered>,
    counts: Bytes,
    word_due: WordDue,
    names_are_due: bool,
    /// Where the rate is limited.
    allowance: Option<Allowance>,
    /// When the next run may go that waits for the rate alone.
    allowed_at: Option<Nanos>,
}

impl Sender {
    /// A sender that knows no file and no connection yet.
    #[must_use]
    pub fn new(config: SenderConfig) -> Self {
        Self {
            config,
            state: SendingState::Moving,
            heard: None,
            last_offered: false,
            next_segment: 0,
            next_run: 0,
            held: VecDeque::new(),
            early: BTreeMap::new(),
            segments: BTreeMap::new(),
            credit: Credit::new(config.descriptors_max, config.peer_descriptors_max),
            connections: Connections::default(),
            freed: RangeSet::new(),
            freed_again: RangeSet::new(),
            outputs: VecDeque::new(),
            gathered: BTreeMap::new(),
            counts: Bytes::default(),
            word_due: WordDue::default(),
            names_are_due: false,
            allowance: config
                .bytes_per_second_max
                .map(|rate| Allowance::new(rate, config.chunk_bytes.into())),
            allowed_at: None,
        }
    }

    /// When it is to be polled again though nothing happens, as a run waits for
    /// the limited rate.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Nanos> {
        self.allowed_at
    }

    /// The descriptors that the next segment may take: more than none when it
    /// would be offered at once. Offers beyond that are kept, so a caller that
    /// opens files ahead waits for this.
    #[must_use]
    pub fn room(&self) -> u32 {
        let is_wanted = self.state == SendingState::Moving
            && !self.last_offered
            && self.segments.len() + self.held.len() < self.credit.segments_max();
        let kept = self.held.iter();
        let kept = kept.map(|offer| descriptors_of_all(&offer.entries)).sum();
        if is_wanted { self.credit.room(kept) } else { 0 }
    }

    /// True once it is known what all the files come to.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        let is_moving = |segment: &SendingSegment| matches!(segment, SendingSegment::Moving(_));
        self.last_offered && self.held.is_empty() && self.segments.values().all(is_moving)
    }

    /// True while the receiver deletes what is superfluous there.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        matches!(self.state, SendingState::Deleting(_))
    }

    /// True while a segment was answered and is not done.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        let moving = |segment| matches!(segment, &SendingSegment::Moving(_));
        self.segments.values().any(moving)
    }

    /// True while runs are on their way into sockets: whatever the receiver waits
    /// for waits for them, also where their file failed meanwhile.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        let sends = |connection: &ScheduledConnection| !connection.unsent.is_empty();
        self.connections.0.values().any(sends)
    }

    /// Offers a segment; `last` says that none follows. The entries are within
    /// [`limits::SEGMENT_ENTRIES_MAX`] and [`limits::SEGMENT_NAMES_BYTES_MAX`],
    /// and a stream is alone.
    pub fn offer(&mut self, offered: Offered, last: bool) -> Arc<Offer> {
        let Offered {
            folders,
            entries,
            users,
            groups,
        } = offered;
        assert!(!self.last_offered, "nothing follows the last segment");
        assert!(
            entries.len() <= limits::SEGMENT_ENTRIES_MAX,
            "segments are cut to size by who scans"
        );
        let segment = self.next_segment;
        self.next_segment += 1;
        self.last_offered = last;
        let offer = Arc::new(Offer {
            transfer: self.config.transfer,
            segment,
            last,
            folders,
            entries,
            users,
            groups,
        });
        if self.state == SendingState::Moving {
            self.held.push_back(offer.clone());
            self.offer_held();
        }
        offer
    }

    /// The receiver's own limit, from `Begun`; the smaller one holds.
    pub fn set_window(&mut self, window_bytes: Option<u64>) {
        let limits = [self.config.window_bytes, window_bytes];
        self.config.window_bytes = limits.into_iter().flatten().min();
    }

    /// The receiver was asked for further names, or said them.
    pub fn names_are_due(&mut self, are_due: bool) {
        self.names_are_due = are_due;
        self.word_due.heard();
    }

    /// The receiver works on what it owes: the wait for it begins anew.
    pub fn peer_works(&mut self) {
        self.word_due.heard();
    }

    /// The receiver's files may take so many descriptors at once, from `Begun`.
    pub fn allow(&mut self, descriptors_max: u32) {
        self.credit.allow(descriptors_max);
        self.offer_held();
    }

    /// This end has no more descriptors than are in use: what is open is all
    /// that will be.
    pub fn ran_out_of_descriptors(&mut self) {
        self.credit.shrink();
    }

    /// The connection joined and can take runs.
    pub fn connection_joined(&mut self, now: Nanos, connection: ConnectionId) {
        if self.state == SendingState::Ended {
            return;
        }
        if self.freed.contains(number(connection)) {
            self.outputs
                .push_back(SenderOutput::CloseConnection { connection });
            return;
        }
        let connections = &mut self.connections.0;
        connections
            .entry(connection)
            .or_insert_with(|| ScheduledConnection::new(now));
    }

    /// The connection broke at this end. Its runs wait until the receiver says
    /// that it has reaped it.
    pub fn connection_lost(&mut self, _now: Nanos, connection: ConnectionId) {
        if self.state == SendingState::Ended {
            return;
        }
        if let Some(known) = self.connections.0.get_mut(&connection)
            && known.state != ConnectionState::Lost
        {
            known.state = ConnectionState::Lost;
            self.say(Message::Lost { connection });
        }
    }

    /// What [`SenderOutput::Segment`] came to: all that is wanted of the segment is
    /// open, except these.
    pub fn opened(&mut self, segment: SegmentId, failed: Vec<(FileId, Error)>) {
        let Some(work) = self.work(segment) else {
            return;
        };
        work.is_open = true;
        let count = work.files.len() as FileId;
        for (file, error) in failed {
            self.fail_file(segment, file, error);
        }
        (0..count).for_each(|file| self.look_if_ready(segment, file));
    }

    /// The run's last byte is in the socket. Its file may be looked at now, also
    /// where its pages are still the kernel's: what changes from here on fails
    /// the checks that were computed before the look.
    pub fn run_sent(
        &mut self,
        now: Nanos,
        connection: ConnectionId,
        run: Run,
        submitted: Nanos,
        checks: Vec<Check>,
    ) {
        // A connection that was freed is forgotten, and its runs with it.
        let Some(known) = self.connections.0.get_mut(&connection) else {
            return;
        };
        let Some(SendingSegment::Moving(work)) = self.segments.get_mut(&run.segment) else {
            return;
        };
        let is_it = |(segment, key): &(SegmentId, RunKey)| {
            *segment == run.segment
                && work
                    .flights
                    .get(key)
                    .is_some_and(|flight| flight.run == run)
        };
        let Some(place) = known.unsent.iter().position(is_it) else {
            return;
        };
        let Some((_, key)) = known.unsent.remove(place) else {
            return;
        };
        known.last_sent = now;
        let sent = Sent { submitted, checks };
        let waiting = work.sent(key, sent);
        let chunks = run.first..run.first + u64::from(run.count);
        let files: Vec<FileId> = work.plan.files_of(chunks).collect();
        for (chunk, check) in waiting {
            self.judge(run.segment, chunk, check);
        }
        for file in files {
            self.look_if_ready(run.segment, file);
        }
        self.retire_runs(run.segment, vec![key]);
        self.forget_if_done(run.segment);
    }

    /// The source was short or unreadable there, and filler went instead. Has
    /// to be told before the run is told as sent.
    pub fn chunks_void(
        &mut self,
        segment: SegmentId,
        file: FileId,
        chunks: ChunkRange,
        error: Option<Error>,
    ) {
        let Some(work) = self.work(segment) else {
            return;
        };
        if work.files[file as usize].has_ended() {
            return;
        }
        let error = error.unwrap_or_else(|| {
            Error::new(
                ErrorKind::Integrity,
                "a source was cut short: it changed while it was read",
            )
            .at(Side::Sender)
        });
        self.say(Message::Void {
            transfer: self.config.transfer,
            segment,
            file,
            chunks,
            error: error.clone(),
        });
        self.end_file(segment, file, Err(error));
    }

    /// What [`SenderOutput::Look`] found, or why the file can not be sealed.
    pub fn looked(&mut self, segment: SegmentId, file: FileId, result: Result<Looked, Error>) {
        let Some(work) = self.work(segment) else {
            return;
        };
        let entry = &mut work.files[file as usize];
        if !entry.end_look() {
            self.look_if_ready(segment, file);
            return;
        }
        let result = match (result, entry.size) {
            (Ok(Looked { size: seen, .. }), Some(size))
                if seen != size && !work.plan.is_stream() =>
            {
                Err(Error::new(
                    ErrorKind::Integrity,
                    format!(
                        "a source had {size} bytes and has {seen}: it changed while it was read"
                    ),
                )
                .at(Side::Sender))
            }
            (result, _) => result,
        };
        match result {
            Ok(looked) => {
                entry.state = SendingFileState::Closed;
                entry.touched = looked.touched;
                self.say_closed(segment, file);
            }
            Err(error) => self.fail_file(segment, file, error),
        }
    }

    /// What [`SenderOutput::Recheck`] found: the chunk's check as the source
    /// has it now.
    ///
    /// Where it differs, the suspects fail, and the other files of the chunk go on;
    /// without a suspect all of them fail: nobody can tell which it was.
    pub fn rechecked(
        &mut self,
        segment: SegmentId,
        chunk: ChunkId,
        result: Result<Rechecked, Error>,
    ) {
        let Some(work) = self.work(segment) else {
            return;
        };
        let Some(RecallState::Judging(sent)) = work.recall_state(chunk) else {
            return;
        };
        let error = match result {
            Ok(now) if now.check == sent => return work.send_again(chunk),
            Ok(now) if !now.suspects.is_empty() => {
                for (file, error) in now.suspects {
                    self.fail_file(segment, file, error);
                }
                if let Some(work) = self.work(segment)
                    && work.is_needed(chunk)
                {
                    work.send_again(chunk);
                }
                return;
            }
            Ok(_) => Error::new(
                ErrorKind::Integrity,
                "a source's bytes are not those that were sent: it changed while it was read",
            )
            .at(Side::Sender),
            Err(error) => error,
        };
        self.fail_chunk(segment, chunk, &error);
    }

    /// A stream's first `complete_chunks` chunks can be sent; `end_bytes` is
    /// its size once its end is known, and then its last, short chunk can be
    /// sent too.
    pub fn stream_available(
        &mut self,
        segment: SegmentId,
        complete_chunks: u64,
        end_bytes: Option<u64>,
    ) {
        let chunk_bytes = u64::from(self.config.chunk_bytes);
        let Some(work) = self.work(segment) else {
            if self.awaits_answer(segment) {
                let early = self.early.entry(segment).or_default();
                early.stream = StreamState {
                    complete_chunks,
                    end_bytes,
                };
            }
            return;
        };
        if !work.plan.is_stream() || work.stream.end_bytes.is_some() {
            return;
        }
        work.stream = StreamState {
            complete_chunks,
            end_bytes,
        };
        if let Some(bytes) = end_bytes {
            let file = &mut work.files[0];
            file.size = Some(bytes);
            file.wanted_bytes = bytes;
            file.shares = Some(bytes.div_ceil(chunk_bytes));
        }
        self.look_if_ready(segment, 0);
    }

    /// Ends a stream whose bytes are made on the fly behind the last chunk
    /// that was handed to a connection: its size is then whole chunks. The
    /// caller does so when the user has enough, or the peer said `EndStreams`.
    pub fn end_stream(&mut self, segment: SegmentId) {
        let handed_chunks = self.work(segment).map_or(0, |work| work.handed_end());
        let end_bytes = handed_chunks.saturating_mul(u64::from(self.config.chunk_bytes));
        self.stream_available(segment, handed_chunks, Some(end_bytes));
    }

    /// The source cannot be read; the file ends here.
    pub fn file_failed(&mut self, segment: SegmentId, file: FileId, error: Error) {
        if self.work(segment).is_some() {
            self.fail_file(segment, file, error);
        } else if self.awaits_answer(segment) {
            let early = self.early.entry(segment).or_default();
            early.failed.push((file, error));
        }
    }

    /// True while a part of what the directories hold is to be handed in: see
    /// [`Sender::names`].
    #[must_use]
    pub fn wants_names(&self) -> bool {
        match self.state {
            SendingState::Deleting(telling) => {
                !telling.is_last_said && telling.said - telling.answered < limits::NAMES_AHEAD_MAX
            }
            _ => false,
        }
    }

    /// A part of what the directories hold; `last` says that none follows.
    pub fn names(&mut self, folders: Vec<Folder>, listings: Vec<Listing>, last: bool) {
        let SendingState::Deleting(telling) = &mut self.state else {
            return;
        };
        let number = telling.said;
        telling.said += 1;
        telling.is_last_said = last;
        self.say(Message::Names(Box::new(Names {
            transfer: self.config.transfer,
            number,
            folders,
            listings,
            last,
        })));
    }

    /// This end's measurements, which [`SenderOutput::Finish`] asked for.
    pub fn finish(&mut self, report: SideReport) {
        if self.state == SendingState::Finishing {
            self.state = SendingState::Reporting;
            self.say(Message::Finish {
                transfer: self.config.transfer,
                report: Box::new(report),
            });
            if let Some(report) = self.heard.take() {
                self.state = SendingState::Ended;
                self.outputs.push_back(SenderOutput::Done { report });
            }
        }
    }

    /// Ends the transfer from this side; the peer is told. Also for a
    /// violation that [`Sender::handle_message`] returned.
    pub fn stop(&mut self, error: Error) {
        if self.state != SendingState::Ended {
            self.say(Message::Abort {
                transfer: self.config.transfer,
                error: error.clone(),
            });
            self.fail(error);
        }
    }

    /// What to do next; `None` until something is handed in. Call it once all that
    /// happened was handed in: what concerns many files is put out in one.
    pub fn poll(&mut self, now: Nanos) -> Option<SenderOutput> {
        self.see_to_deadline(now);
        if self.outputs.is_empty() {
            self.put_out_gathered();
        }
        let output = self.outputs.pop_front();
        output.or_else(|| self.hand_out(now))
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
