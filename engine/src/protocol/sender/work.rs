//! One answered segment: where each of its chunks is.
//!
//! Leaves to others: which connection takes a run, and what is said to whom.
//! Invariant: a chunk is in exactly one of these places: ahead of the cursor,
//! in `requeue`, open in one run, in `recalled` and being judged, `landed`, or
//! `dropped` because none of its files can be sealed any more. Memory is by
//! the number of gaps and of runs in flight, never by the number of chunks.

use super::file::{SendingFile, SendingFileState};
use crate::limits;
use crate::protocol::check::Check;
use crate::protocol::plan::Plan;
use crate::protocol::ranges::RangeSet;
use crate::protocol::wire::{FileRange, Touched};
use crate::protocol::{ChunkId, ConnectionId, FileId, Nanos, Run, SegmentId};
use std::collections::BTreeMap;
use std::ops::Range;

/// A run's number in its transfer; used once.
pub(super) type RunKey = u64;

/// A run that was handed to a connection and has chunks that did not land.
pub(super) struct Flight {
    pub connection: ConnectionId,
    pub run: Run,
    /// When it was handed over.
    pub handed: Nanos,
    /// Chunks of it that neither landed nor were taken back.
    pub open_chunks: u64,
    /// Set once its last byte is in the socket.
    pub sent: Option<Sent>,
}

/// What is known of a run once it was sent.
pub(super) struct Sent {
    pub submitted: Nanos,
    pub checks: Vec<Check>,
}

impl Flight {
    pub fn chunks(&self) -> Range<ChunkId> {
        self.run.first..self.run.first + u64::from(self.run.count)
    }

    fn check_of(&self, chunk: ChunkId) -> Option<Check> {
        let place = usize::try_from(chunk - self.run.first).ok()?;
        self.sent.as_ref()?.checks.get(place).copied()
    }
}

/// A chunk that the receiver called back and that did not land since.
pub(super) struct Recalled {
    /// How often it was called back.
    pub times: u32,
    pub state: RecallState,
}

/// What happens to a chunk that was called back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RecallState {
    /// Its run was not reported as sent yet, so its check is unknown.
    /// From: in a run. To: Judging, Again.
    Unsent(RunKey),
    /// Its check is being computed again, to be compared with this.
    /// From: in a run, Unsent. To: Again, or its files fail.
    Judging(Check),
    /// It is sent again, or waits for that.
    /// From: in a run, Unsent, Judging. To: in a run, landed.
    Again,
}

/// A stream's end as it becomes known.
#[derive(Clone, Copy, Default)]
pub(super) struct StreamState {
    pub complete_chunks: u64,
    pub end_bytes: Option<u64>,
}

pub(super) struct SendingWork {
    pub segment: SegmentId,
    pub plan: Plan,
    pub files: Vec<SendingFile>,
    /// Files that did not end.
    pub files_open: usize,
    /// What is wanted of it is open at this end: nothing of it is handed out or
    /// looked at before.
    pub is_open: bool,
    /// `Freed` heard since the answer.
    pub freed: u32,
    pub stream: StreamState,
    /// The first chunk that was never handed out.
    cursor: ChunkId,
    /// Chunks to be handed out again.
    requeue: RangeSet,
    landed: RangeSet,
    dropped: RangeSet,
    /// Chunks open in runs: start → (end, run); ranges do not overlap.
    open: BTreeMap<ChunkId, (ChunkId, RunKey)>,
    pub flights: BTreeMap<RunKey, Flight>,
    recalled: BTreeMap<ChunkId, Recalled>,
}

/// A `Closed`, before it is said.
pub(super) struct ClosedWord {
    pub files: Vec<FileRange>,
    pub stream_bytes: Option<u64>,
    pub recalls: u32,
    pub touched: Option<Touched>,
}

/// A part of a run that was taken out of it.
pub(super) struct RunPart {
    pub chunks: Range<ChunkId>,
    pub run: RunKey,
}

impl SendingWork {
    pub fn new(
        segment: SegmentId,
        plan: Plan,
        files: Vec<SendingFile>,
        stream: StreamState,
    ) -> Self {
        Self {
            segment,
            plan,
            files_open: files.len(),
            files,
            is_open: false,
            freed: 0,
            stream,
            cursor: 0,
            requeue: RangeSet::new(),
            landed: RangeSet::new(),
            dropped: RangeSet::new(),
            open: BTreeMap::new(),
            flights: BTreeMap::new(),
            recalled: BTreeMap::new(),
        }
    }

    /// One past the last chunk that could be sent now.
    fn known_end(&self) -> ChunkId {
        match (self.plan.chunk_count(), self.stream.end_bytes) {
            (Some(count), _) => count,
            (None, Some(bytes)) => bytes.div_ceil(u64::from(self.plan.chunk_bytes())),
            (None, None) => self.stream.complete_chunks,
        }
    }

    /// Payload bytes of `chunks`, a stream's short end considered.
    pub fn bytes(&self, chunks: Range<ChunkId>) -> u64 {
        if let Some(end_bytes) = self.stream.end_bytes.filter(|_| self.plan.is_stream()) {
            let chunk_bytes = u64::from(self.plan.chunk_bytes());
            let place = |chunk: ChunkId| chunk.saturating_mul(chunk_bytes).min(end_bytes);
            return place(chunks.end) - place(chunks.start);
        }
        self.plan
            .pieces_of(chunks)
            .map(|piece| piece.bytes)
            .fold(0, u64::saturating_add)
    }

    /// One past the last chunk that was ever handed out.
    pub fn handed_end(&self) -> ChunkId {
        self.cursor
    }

    /// How many ranges and chunks are kept in all, for tests of memory.
    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.requeue.gaps()
            + self.landed.gaps()
            + self.dropped.gaps()
            + self.open.len()
            + self.recalled.len()
    }

    /// Bytes that were not handed out, about; `None` while nobody knows.
    pub fn unsent_bytes(&self) -> Option<u64> {
        if self.plan.is_stream() && self.stream.end_bytes.is_none() && self.files_open > 0 {
            return None;
        }
        let ahead = self.known_end().saturating_sub(self.cursor);
        let ahead = match self.dropped.range_at(self.cursor) {
            Some(dropped) => self.known_end().saturating_sub(dropped.end),
            None => ahead,
        };
        Some((ahead + self.requeue.len()).saturating_mul(u64::from(self.plan.chunk_bytes())))
    }

    /// What is to be said of those of `files` that are closed: as few words as
    /// there are counts of what was heard.
    pub fn closed_words(&self, files: RangeSet) -> Vec<ClosedWord> {
        let mut by_recalls: BTreeMap<u32, RangeSet> = BTreeMap::new();
        let mut words = Vec::new();
        for number in files.iter().flatten() {
            // They were numbers of files when they were put in.
            let file = number as FileId;
            let entry = &self.files[file as usize];
            let recalls = entry.recalls.wrapping_add(self.freed);
            let stream_bytes = entry.size.filter(|_| self.plan.is_stream());
            if entry.state != SendingFileState::Closed {
                continue;
            }
            if stream_bytes.is_none() && entry.touched.is_none() {
                let plain = by_recalls.entry(recalls).or_default();
                plain.insert(number..number + 1);
                continue;
            }
            words.push(ClosedWord {
                files: vec![FileRange::one(file)],
                stream_bytes,
                recalls,
                touched: entry.touched,
            });
        }
        let plain = by_recalls.into_iter().map(|(recalls, files)| ClosedWord {
            files: FileRange::all_of(&files),
            stream_bytes: None,
            recalls,
            touched: None,
        });
        words.extend(plain);
        words
    }

    /// True when every chunk landed or was dropped, and no more will come.
    pub fn is_landed(&self) -> bool {
        let ended = !self.plan.is_stream() || self.stream.end_bytes.is_some();
        self.files_open == 0 || (ended && self.prefix_end() >= self.known_end())
    }

    /// True where some of its files are said to be unchanged and have not ended,
    /// though they need not wait for others.
    pub fn is_closed_in_part(&self) -> bool {
        let is_closed =
            |file: &SendingFile| file.state == SendingFileState::Closed && !file.comes_last;
        self.files.iter().any(is_closed)
    }

    /// True where all of its files that have not ended are said to be unchanged.
    pub fn is_closed(&self) -> bool {
        let is_closed =
            |file: &SendingFile| file.has_ended() || file.state == SendingFileState::Closed;
        self.files.iter().all(is_closed)
    }

    /// The first chunk that neither landed nor was dropped.
    fn prefix_end(&self) -> ChunkId {
        let mut end = 0;
        while let Some(next) = self
            .landed
            .range_at(end)
            .or_else(|| self.dropped.range_at(end))
        {
            end = next.end;
        }
        end
    }

    /// The next chunks to hand out, at most `count_max`, none further than
    /// `window_chunks` ahead of the landed prefix. They are counted as handed
    /// out.
    pub fn take_next(
        &mut self,
        count_max: u64,
        window_chunks: Option<u64>,
    ) -> Option<Range<ChunkId>> {
        if !self.is_open {
            return None;
        }
        let window_end =
            window_chunks.map_or(u64::MAX, |chunks| self.prefix_end().saturating_add(chunks));
        if let Some(first) = self.requeue.first()
            && first.start < window_end
        {
            let end = first.end.min(first.start.saturating_add(count_max));
            let chunks = first.start..end.min(window_end);
            self.requeue.remove(chunks.clone());
            return Some(chunks);
        }
        while let Some(dropped) = self.dropped.range_at(self.cursor) {
            self.cursor = dropped.end;
        }
        let start = self.cursor;
        let end = self
            .known_end()
            .min(window_end)
            .min(self.dropped.next_start(start).unwrap_or(u64::MAX))
            .min(start.saturating_add(count_max));
        if start >= end {
            return None;
        }
        self.cursor = end;
        Some(start..end)
    }

    /// `chunks` go to a connection as run `key`.
    pub fn launch(&mut self, key: RunKey, flight: Flight) {
        let chunks = flight.chunks();
        self.open.insert(chunks.start, (chunks.end, key));
        self.flights.insert(key, flight);
    }

    /// The part of a run that starts at `at` and is still open, up to `end`.
    pub fn open_at(&self, at: ChunkId, end: ChunkId) -> Option<RunPart> {
        let (_, &(open_end, run)) = self.open.range(..=at).next_back()?;
        (at < open_end).then(|| RunPart {
            chunks: at..end.min(open_end),
            run,
        })
    }

    /// Where `at` lies in what was dropped, where that ends.
    pub fn dropped_until(&self, at: ChunkId) -> Option<ChunkId> {
        self.dropped.range_at(at).map(|range| range.end)
    }

    /// Where `at` lies in what landed, where that ends.
    pub fn landed_until(&self, at: ChunkId) -> Option<ChunkId> {
        self.landed.range_at(at).map(|range| range.end)
    }

    /// Takes an open part out of its run. Whether the run was sent.
    fn close(&mut self, part: &RunPart) -> bool {
        let Range { start, end } = part.chunks.clone();
        if let Some((&open_start, &(open_end, run))) = self.open.range(..=start).next_back() {
            debug_assert!(run == part.run && open_end >= end, "a part lies in its run");
            self.open.remove(&open_start);
            if open_start < start {
                self.open.insert(open_start, (start, run));
            }
            if end < open_end {
                self.open.insert(end, (open_end, run));
            }
        }
        self.flights.get_mut(&part.run).is_some_and(|flight| {
            flight.open_chunks -= end - start;
            flight.sent.is_some()
        })
    }

    /// The part landed.
    pub fn land(&mut self, part: &RunPart) {
        let was_sent = self.close(part);
        self.landed.insert(part.chunks.clone());
        let settled: Vec<ChunkId> = self
            .recalled
            .range(part.chunks.clone())
            .map(|(&chunk, _)| chunk)
            .collect();
        for chunk in settled {
            self.recalled.remove(&chunk);
        }
        for (file, count) in self.plan.shares(part.chunks.clone()) {
            let file = &mut self.files[file as usize];
            file.landed += count;
            if !was_sent {
                file.read += count;
            }
        }
    }

    /// The part will not land from this run: its bytes are to be read again.
    /// Gives the files that have to be looked at again.
    pub fn take_back(&mut self, part: &RunPart) {
        let was_sent = self.close(part);
        for (file, count) in self.plan.shares(part.chunks.clone()) {
            let file = &mut self.files[file as usize];
            if was_sent {
                file.read -= count;
            }
            file.reopen();
        }
    }

    /// `chunks`, which were taken back, are handed out again.
    pub fn hand_out_again(&mut self, chunks: Range<ChunkId>) {
        self.requeue.insert(chunks);
    }

    /// A chunk that was called back is sent again.
    pub fn send_again(&mut self, chunk: ChunkId) {
        self.set_recall_state(chunk, RecallState::Again);
        self.hand_out_again(chunk..chunk + 1);
    }

    /// True while a file of the chunk did not end.
    pub fn is_needed(&self, chunk: ChunkId) -> bool {
        let mut files = self.plan.files_of(chunk..chunk + 1);
        files.any(|file| !self.files[file as usize].has_ended())
    }

    /// The run's last byte is in the socket. Gives the chunks that were called
    /// back before this was known, with the checks that went with them.
    pub fn sent(&mut self, key: RunKey, sent: Sent) -> Vec<(ChunkId, Option<Check>)> {
        let Some(flight) = self.flights.get_mut(&key) else {
            return Vec::new();
        };
        let chunks = flight.chunks();
        flight.sent = Some(sent);
        for part in parts_of(&self.open, key, chunks.clone()) {
            for (file, count) in self.plan.shares(part.chunks) {
                self.files[file as usize].read += count;
            }
        }
        let flight = &self.flights[&key];
        let waiting = self.recalled.range(chunks);
        waiting
            .filter(|(_, recalled)| recalled.state == RecallState::Unsent(key))
            .map(|(&chunk, _)| (chunk, flight.check_of(chunk)))
            .collect()
    }

    /// The open parts of a run.
    pub fn open_parts(&self, key: RunKey) -> Vec<RunPart> {
        self.flights.get(&key).map_or_else(Vec::new, |flight| {
            parts_of(&self.open, key, flight.chunks())
        })
    }

    /// Forgets the run if it was sent and nothing of it is open; gives the
    /// connection that it was on.
    pub fn retire_flight(&mut self, key: RunKey) -> Option<ConnectionId> {
        let flight = self.flights.get(&key)?;
        if flight.sent.is_none() || flight.open_chunks > 0 {
            return None;
        }
        self.flights.remove(&key).map(|flight| flight.connection)
    }

    /// The chunk, which was taken back, is being called back by the receiver:
    /// from run `key`. Gives how often, and the check it was sent with where
    /// that is known.
    pub fn recall(&mut self, chunk: ChunkId, key: RunKey) -> (u32, Option<Check>) {
        let flight = self.flights.get(&key);
        let check = flight.and_then(|flight| flight.check_of(chunk));
        let unsent = flight.is_some_and(|flight| flight.sent.is_none());
        let recalled = self.recalled.entry(chunk).or_insert(Recalled {
            times: 0,
            state: RecallState::Again,
        });
        recalled.times += 1;
        recalled.state = match check {
            Some(check) => RecallState::Judging(check),
            None if unsent => RecallState::Unsent(key),
            None => RecallState::Again,
        };
        (recalled.times, check)
    }

    /// True when so much was called back that the path carries nothing whole.
    pub fn recalls_too_many(&self) -> bool {
        self.recalled.len() > limits::RECALLED_CHUNKS_MAX
    }

    pub fn recall_state(&self, chunk: ChunkId) -> Option<RecallState> {
        self.recalled.get(&chunk).map(|recalled| recalled.state)
    }

    pub fn set_recall_state(&mut self, chunk: ChunkId, state: RecallState) {
        if let Some(recalled) = self.recalled.get_mut(&chunk) {
            recalled.state = state;
        }
    }

    /// The chunks that were called back from a run that is gone before anybody
    /// could say what it had sent.
    pub fn orphans_of(&self, key: RunKey, chunks: Range<ChunkId>) -> Vec<ChunkId> {
        let recalled = self.recalled.range(chunks);
        recalled
            .filter(|(_, recalled)| recalled.state == RecallState::Unsent(key))
            .map(|(&chunk, _)| chunk)
            .collect()
    }

    /// The file ended without being sealed: its chunks, where no other file
    /// needs them, need neither be sent nor acknowledged. Gives the runs that
    /// lost chunks by that.
    pub fn drop_file(&mut self, file: FileId) -> Vec<RunKey> {
        let mut runs = Vec::new();
        let ranges: Vec<Range<ChunkId>> = self.plan.chunks_of(file).collect();
        for chunks in ranges {
            // More than one chunk: an extent that shares with nobody.
            let needed = chunks.end - chunks.start == 1 && self.is_needed(chunks.start);
            if needed {
                continue;
            }
            self.requeue.remove(chunks.clone());
            while let Some(part) = first_open(&self.open, &chunks) {
                self.close(&part);
                runs.push(part.run);
            }
            let gone: Vec<ChunkId> = self
                .recalled
                .range(chunks.clone())
                .map(|(&chunk, _)| chunk)
                .collect();
            for chunk in gone {
                self.recalled.remove(&chunk);
            }
            self.dropped.insert(chunks);
        }
        runs
    }
}

/// The first open part that lies in `chunks`.
fn first_open(
    open: &BTreeMap<ChunkId, (ChunkId, RunKey)>,
    chunks: &Range<ChunkId>,
) -> Option<RunPart> {
    let before = open.range(..=chunks.start).next_back();
    let before = before.filter(|(_, (end, _))| *end > chunks.start);
    let (&start, &(end, run)) = before.or_else(|| open.range(chunks.clone()).next())?;
    Some(RunPart {
        chunks: start.max(chunks.start)..end.min(chunks.end),
        run,
    })
}

/// The open parts of run `key`, which lie in `chunks`.
fn parts_of(
    open: &BTreeMap<ChunkId, (ChunkId, RunKey)>,
    key: RunKey,
    chunks: Range<ChunkId>,
) -> Vec<RunPart> {
    open.range(chunks)
        .filter(|(_, (_, run))| *run == key)
        .map(|(&start, &(end, run))| RunPart {
            chunks: start..end,
            run,
        })
        .collect()
}
