//! What one end counts of a transfer, and the report it comes to.
//!
//! Leaves to others: the data plane's own counts, which come as `SideReport`s.
//! Invariant: bytes count when they are acknowledged, never when queued.

use super::event::{Event, Update};
use super::past::{FileEnd, Past, Unsent};
use crate::data::Clock;
use crate::error::Error;
use crate::limits;
use crate::protocol::plan::Plan;
use crate::protocol::wire::{Deletions, Digests, EntryKind, Offer, path_in};
use crate::protocol::{FileId, Nanos};
use crate::report::{
    Bytes, Digest, EntryReportKind, ErrorReport, FileReport, Latencies, Level, Report, Seconds,
    SideReport, told_path,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};

/// A segment's files: what is told of them is made of the offer when it is wanted.
struct Planned {
    offer: Arc<Offer>,
    ends: Vec<Option<FileEnd>>,
    /// Those that share their blocks with their sources, once they are sealed.
    held: BTreeSet<usize>,
    /// Those that did not end.
    open: usize,
    /// What those hold that it was told of.
    digests: BTreeMap<FileId, Digest>,
    /// The only source has another name at the receiver.
    is_renamed: bool,
}

/// Counts of one transfer at one end.
pub(crate) struct Tally {
    clock: Clock,
    started: Nanos,
    first_sent: Option<Nanos>,
    first_landed: Option<Nanos>,
    last_landed: Option<Nanos>,
    /// By segment, then file, while one of a segment's files has not ended.
    files: BTreeMap<u32, Planned>,
    segments: u32,
    /// Files of all segments.
    file_count: u64,
    ended_count: u64,
    /// Segments of a stream that did not end.
    streams: BTreeSet<u32>,
    past: Past,
    /// The caller wants to hear of each file.
    tells_files: bool,
    pub(crate) latencies: Latencies,
    pub(crate) notes: Vec<String>,
    /// This end's data plane, once it was asked.
    own: SideReport,
    peer: Option<SideReport>,
    /// The caller, where there is one (a client's transfer).
    updates: Option<mpsc::Sender<Update>>,
}

impl Tally {
    pub(crate) fn new(clock: Clock, started: Nanos, updates: Option<mpsc::Sender<Update>>) -> Self {
        Self {
            clock,
            started,
            first_sent: None,
            first_landed: None,
            last_landed: None,
            files: BTreeMap::new(),
            segments: 0,
            file_count: 0,
            ended_count: 0,
            streams: BTreeSet::new(),
            past: Past::default(),
            tells_files: true,
            latencies: Latencies::default(),
            notes: Vec::new(),
            own: SideReport::default(),
            peer: None,
            updates,
        }
    }

    /// Tells the caller; one that is gone does not matter.
    pub(crate) fn tell(&self, event: Event) {
        if let Some(updates) = &self.updates {
            let _ = updates.send(Update::Event(event));
        }
    }

    /// Something that was left to haul: told now, and in the report.
    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.tell(Event::Note(note.clone()));
            self.notes.push(note);
        }
    }

    /// What of the entries was not kept, a sentence a kind.
    pub(crate) fn lose(&mut self, lost: Vec<String>) {
        for what in &lost {
            self.tell(Event::Note(what.clone()));
        }
        // They are few, and first where a list is cut.
        self.own.lost.splice(0..0, lost);
    }

    /// What of directories that gave way could not be removed, a sentence each.
    pub(crate) fn leave_over(&mut self, left: Vec<String>) {
        let room = limits::NOTES_MAX.saturating_sub(self.own.lost.len());
        for what in left.into_iter().take(room) {
            self.tell(Event::Note(what.clone()));
            self.own.lost.push(what);
        }
    }

    /// Files planned so far.
    pub(crate) fn file_count(&self) -> u64 {
        self.file_count
    }

    /// Files that ended so far.
    pub(crate) fn ended_count(&self) -> u64 {
        self.ended_count
    }

    /// What was deleted so far.
    pub(crate) fn deleted_count(&self) -> u64 {
        self.past.counts.deleted
    }

    /// True while a stream has no known end.
    pub(crate) fn has_open_stream(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Files' ends are told only in the report.
    pub(crate) fn tell_no_files(&mut self) {
        self.tells_files = false;
    }

    /// True when somebody follows the transfer.
    pub(crate) fn is_watched(&self) -> bool {
        self.updates.is_some()
    }

    /// The caller, to be told the report.
    pub(crate) fn caller(&self) -> Option<mpsc::Sender<Update>> {
        self.updates.clone()
    }

    /// Seconds since the transfer was asked for.
    pub(crate) fn seconds(&self) -> f64 {
        seconds(self.started, self.clock.now())
    }

    /// A segment's files, in order.
    pub(crate) fn planned(&mut self, offer: &Arc<Offer>) {
        let entries = &offer.entries;
        if entries.iter().any(|entry| entry.kind == EntryKind::Stream) {
            self.streams.insert(self.segments);
        }
        if !entries.is_empty() {
            let planned = Planned {
                ends: entries.iter().map(|_| None).collect(),
                held: BTreeSet::new(),
                open: entries.len(),
                digests: BTreeMap::new(),
                is_renamed: false,
                offer: offer.clone(),
            };
            self.files.insert(self.segments, planned);
            self.file_count += entries.len() as u64;
        }
        self.segments = self.segments.wrapping_add(1);
    }

    /// What the receiver holds of a segment, as it shares blocks.
    pub(crate) fn held(&mut self, segment: u32, plan: &Plan) {
        if let Some(planned) = self.files.get_mut(&segment) {
            let files = 0..planned.ends.len();
            // Entries are counted by FileId.
            let held = files.filter(|file| plan.is_held(*file as FileId));
            planned.held = held.collect();
        }
    }

    /// The file's end; `size` corrects what was not known before.
    pub(crate) fn ended(
        &mut self,
        segment: u32,
        file: u32,
        size: Option<u64>,
        result: &Result<Level, Error>,
    ) {
        let known = self.files.get(&segment);
        let entry = known.and_then(|planned| planned.offer.entries.get(file as usize));
        let bytes = match entry.map(|entry| (&entry.kind, entry.size)) {
            Some((EntryKind::HardLink(_, bytes), _)) => Some(*bytes),
            Some((EntryKind::File, bytes)) => size.or(Some(bytes)),
            _ => size,
        };
        self.end(segment, file, FileEnd::new(bytes, result));
    }

    /// What files hold that are about to end.
    pub(crate) fn digests(&mut self, told: &Digests) {
        if let Some(planned) = self.files.get_mut(&told.segment) {
            let count = planned.offer.entries.len();
            let digests = told.digests.iter().copied();
            // A peer may say anything.
            let digests = digests.filter(|(file, _)| (*file as usize) < count);
            planned.digests.extend(digests);
            planned.is_renamed = told.is_renamed;
        }
    }

    /// The end of a file that could not be opened: its size is not known.
    pub(crate) fn missing(&mut self, segment: u32, file: u32, error: Error) {
        self.end(segment, file, FileEnd::new(None, &Err(error)));
    }

    fn end(&mut self, segment: u32, file: u32, end: FileEnd) {
        let number = file as usize;
        let planned = self.files.get_mut(&segment);
        let Some(planned) = planned.filter(|planned| number < planned.ends.len()) else {
            return;
        };
        if planned.ends[number].is_none() {
            planned.open -= 1;
            self.ended_count += 1;
        }
        // A stream is alone in its segment.
        self.streams.remove(&segment);
        let is_told = self.tells_files && self.updates.is_some();
        let report = is_told.then(|| planned.report_of(number, &end));
        planned.ends[number] = Some(end);
        let is_over = planned.open == 0;
        if let Some(report) = report {
            self.tell(Event::FileEnded(report));
        }
        if is_over && let Some(planned) = self.files.remove(&segment) {
            let is_told = self.is_watched();
            add_all(&mut self.past, segment, planned, is_told);
        }
    }

    /// What was deleted at the receiver.
    pub(crate) fn deleted(&mut self, deletions: &Deletions) {
        self.past.counts.deleted += deletions.count;
        for error in &deletions.failed {
            self.past.fail(ErrorReport::from(error));
            if self.notes.len() < limits::NOTES_MAX {
                self.note(error.to_string());
            }
        }
        if self.tells_files && self.is_watched() {
            for path in &deletions.paths {
                self.tell(Event::Deleted(told_path(path)));
            }
        }
    }

    /// A run left for a socket, submitted then.
    pub(crate) fn sent(&mut self, submitted: Nanos) {
        self.first_sent.get_or_insert(submitted);
    }

    /// Bytes landed just now.
    pub(crate) fn landed(&mut self) {
        let now = self.clock.now();
        self.first_landed.get_or_insert(now);
        self.last_landed = Some(now);
    }

    /// One worker's counts.
    pub(crate) fn add_own(&mut self, report: SideReport) {
        merge(&mut self.own, report);
    }

    /// The other end's counts.
    pub(crate) fn set_peer(&mut self, report: SideReport) {
        self.peer = Some(report);
    }

    /// This end's counts, to be told to the other.
    pub(crate) fn own(&self) -> SideReport {
        let mut own = self.own.clone();
        own.latencies.merge(&self.latencies);
        own.notes.extend(self.notes.iter().cloned());
        own
    }

    /// The report of a transfer that ended now.
    pub(crate) fn report(
        self,
        end: Result<(), Error>,
        bytes: Bytes,
        chunk_bytes: u32,
        sends: bool,
        authenticated: bool,
    ) -> Report {
        let now = self.clock.now();
        let own = self.own();
        let is_told = self.updates.is_some();
        let mut past = self.past;
        for (segment, planned) in self.files {
            add_all(&mut past, segment, planned, is_told);
        }
        let (sender, receiver) = if sends {
            (Some(own), self.peer)
        } else {
            (self.peer, Some(own))
        };
        let moving_from = self.first_sent.or(self.first_landed);
        Report {
            error: end.err().or_else(|| past.failure()),
            level: past.level(),
            entries: past.counts,
            files: past.into_told(),
            bytes,
            seconds: Seconds {
                total: seconds(self.started, now),
                first_byte: self.first_landed.map(|at| seconds(self.started, at)),
                moving: match (moving_from, self.last_landed) {
                    (Some(from), Some(to)) => seconds(from, to),
                    _ => 0.0,
                },
                sealing: self.last_landed.map_or(0.0, |at| seconds(at, now)),
            },
            chunk_bytes,
            sender,
            receiver,
            authenticated,
        }
    }
}

fn merge(into: &mut SideReport, other: SideReport) {
    into.system_calls += other.system_calls;
    into.cpu_nanos += other.cpu_nanos;
    into.latencies.merge(&other.latencies);
    into.zero_copy_sent_bytes += other.zero_copy_sent_bytes;
    into.zero_copy_copied_bytes += other.zero_copy_copied_bytes;
    into.connections.extend(other.connections);
    if into.method.is_empty() {
        into.method = other.method;
    }
    let join = |into: &mut Vec<String>, other: Vec<String>| {
        for sentence in other {
            if !into.contains(&sentence) {
                into.push(sentence);
            }
        }
    };
    join(&mut into.notes, other.notes);
    join(&mut into.lost, other.lost);
}

/// Counts the files of a segment that is over.
fn add_all(past: &mut Past, segment: u32, mut planned: Planned, is_told: bool) {
    for (number, end) in std::mem::take(&mut planned.ends).into_iter().enumerate() {
        let end = end.unwrap_or_default();
        let place = (segment, number);
        past.add(place, planned.unsent(number, &end), &end, is_told, || {
            planned.report_of(number, &end)
        });
    }
}

impl Planned {
    /// What of a file has no part in what is sent.
    fn unsent(&self, number: usize, end: &FileEnd) -> Unsent {
        let entry = &self.offer.entries[number];
        let shares = end.level.is_some() && self.held.contains(&number);
        Unsent {
            hole_bytes: entry.size - entry.data_bytes(),
            shared_bytes: if shares { entry.data_bytes() } else { 0 },
        }
    }

    /// What is told of one of the files.
    fn report_of(&self, number: usize, end: &FileEnd) -> FileReport {
        let entry = &self.offer.entries[number];
        let Unsent {
            hole_bytes,
            shared_bytes,
        } = self.unsent(number, end);
        FileReport {
            name: told_path(&path_in(&self.offer.folders, entry.folder, &entry.name)),
            kind: kind_of(&entry.kind),
            bytes: end.bytes,
            hole_bytes,
            shared_bytes,
            level: end.level,
            error: end.error.clone(),
            // Numbers of files fit.
            digest: self.digests.get(&(number as FileId)).copied(),
            mtime: (entry.kind != EntryKind::Stream)
                .then_some((entry.mtime_seconds, entry.mtime_nanos)),
            is_renamed: self.is_renamed,
        }
    }
}

fn kind_of(kind: &EntryKind) -> EntryReportKind {
    match kind {
        EntryKind::File => EntryReportKind::File,
        EntryKind::Stream => EntryReportKind::Stream,
        EntryKind::Directory => EntryReportKind::Directory,
        EntryKind::Symlink(_) => EntryReportKind::Symlink,
        EntryKind::HardLink(..) => EntryReportKind::HardLink,
        EntryKind::Fifo => EntryReportKind::Fifo,
        EntryKind::CharacterDevice(..) | EntryKind::BlockDevice(..) => EntryReportKind::Device,
    }
}

fn seconds(from: Nanos, to: Nanos) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::protocol::TransferId;
    use crate::protocol::wire::Entry;

    fn offer(kinds: &[EntryKind]) -> Arc<Offer> {
        let entry = |kind: &EntryKind| Entry {
            name: b"file".to_vec(),
            kind: kind.clone(),
            ..Entry::default()
        };
        Arc::new(Offer {
            transfer: TransferId([1; 16]),
            segment: 0,
            last: false,
            folders: Vec::new(),
            entries: kinds.iter().map(entry).collect(),
            users: Vec::new(),
            groups: Vec::new(),
        })
    }

    #[test]
    fn ended_files_are_only_counted_where_nobody_is_told() {
        let mut tally = Tally::new(Clock::start(), 0, None);
        let failed = Err(Error::local("cannot write file", "as the test wants"));
        for segment in 0..100 {
            tally.planned(&offer(&[EntryKind::File, EntryKind::File]));
            tally.ended(segment, 0, Some(0), &Ok(Level::Sealed));
            let second = if segment == 7 {
                &failed
            } else {
                &Ok(Level::Placed)
            };
            tally.ended(segment, 1, Some(0), second);
        }
        assert!(tally.files.is_empty());
        assert_eq!(tally.file_count(), 200);
        tally.planned(&offer(&[EntryKind::Stream]));
        assert!(tally.has_open_stream());
        tally.ended(100, 0, Some(5), &Ok(Level::Sealed));
        assert!(!tally.has_open_stream());
        let report = tally.report(Ok(()), Bytes::default(), 1, false, true);
        let error = report.error.expect("one failed");
        assert_eq!(error.kind, ErrorKind::Partial);
        assert!(error.sentence.starts_with("1 of 201 files"), "{error}");
        assert_eq!((report.level, report.files.len()), (None, 0));
    }
}
