//! The sender's end: its machine's outputs, a fake worker, and the hands that
//! look at sources.
//!
//! Leaves to others: the receiver's end. Invariant: as in the real worker,
//! a void is told before the run is told as sent, and events keep their order.

use crate::planted::Bug;
use crate::rng::MILLI;
use crate::scenario::{Fault, FileSpec};
use crate::stations::End;
use crate::wire::{FileKey, Item, Payload};
use crate::world::{Event, SendNews, TRANSFER, World};
use haul_engine::error::{Error, ErrorKind, Side};
use haul_engine::limits;
use haul_engine::protocol::check::{Check, FileSum};
use haul_engine::protocol::frame::FrameHeader;
use haul_engine::protocol::plan::Plan;
use haul_engine::protocol::sender::{Looked, Rechecked, SenderOutput};
use haul_engine::protocol::wire::{ChunkRange, Message, Touched};
use haul_engine::protocol::{ChunkId, ConnectionId, FileId, Run, SegmentId};
use std::collections::BTreeSet;

/// A run on its way into the socket.
pub struct Outgoing {
    run: Run,
    bytes: u64,
    /// Chunks of it that are out.
    done: u32,
    checks: Vec<Check>,
    submitted: u64,
    /// Its bytes are copied as they leave; else they are read on the way.
    copied: bool,
    /// The first two chunks change places.
    swapped: bool,
    void: BTreeSet<(FileId, ChunkId)>,
}

impl World {
    pub fn carry_sender(&mut self, output: SenderOutput) {
        match output {
            SenderOutput::Message(message) => self.carry_sender_message(message),
            SenderOutput::Segment {
                segment,
                plan,
                seed,
                ..
            } => {
                self.seen.answered += 1;
                self.plans.insert(segment, (plan, seed));
                let delay = self.hand(End::Sender, 90);
                self.queue.after(delay, Event::SourcesOpened(segment));
            }
            SenderOutput::Run {
                connection,
                run,
                bytes,
            } => self.hand_over(connection, run, bytes),
            SenderOutput::Look { segment, files } => {
                for file in files {
                    self.seen.looks += 1;
                    let delay = self.hand(End::Sender, 120);
                    let key = (segment, file);
                    // It may see the source when it starts, or just before it ends.
                    let early = self.rng.once_in(2).then(|| self.look(key));
                    self.queue.after(delay, Event::Looked(key, early));
                }
            }
            SenderOutput::Recheck { segment, chunk } => {
                let delay = self.hand(End::Sender, 60);
                self.queue.after(delay, Event::Rechecked(segment, chunk));
            }
            SenderOutput::CloseConnection { connection } => {
                if let Some(link) = self.links.get_mut(&connection) {
                    link.up = false;
                }
                self.notice_sender(connection);
            }
            SenderOutput::Landed {
                segment, chunks, ..
            } => {
                for chunk in chunks.first..chunks.first + chunks.count {
                    if !self.seen.landed.insert((segment, chunk)) {
                        self.found(format!("chunk {chunk} landed twice"));
                    }
                }
            }
            SenderOutput::FileEnded {
                segment,
                file,
                size,
                result,
            } => {
                if result.is_ok() && size.is_none() {
                    self.found(format!("file {segment}/{file} was sent without a size"));
                }
                self.seen.closed.remove(&(segment, file));
                let twice = self.ends.sender_files.insert((segment, file), result);
                if twice.is_some() {
                    self.found(format!("file {segment}/{file} ended twice at the sender"));
                }
            }
            SenderOutput::Deleted(deletions) => {
                if deletions.count != 1 {
                    self.found("another count of deletions was told");
                }
            }
            SenderOutput::SegmentDone { segment } => {
                if !self.plans.contains_key(&segment) {
                    self.found("a segment was done before it was answered");
                }
            }
            SenderOutput::Finish => {
                self.seen.reporting = true;
                let delay = self.report_delay();
                self.queue.after(delay, Event::FinishSender);
            }
            SenderOutput::Done { .. } => self.sender_ends(Ok(())),
            SenderOutput::Failed(error) => self.sender_ends(Err(error)),
        }
    }

    fn sender_ends(&mut self, end: Result<(), Error>) {
        if self.ends.sender.replace(end).is_some() {
            self.found("the sender ended twice");
        }
        self.transfer_ended(End::Sender);
    }

    fn carry_sender_message(&mut self, message: Message) {
        if let Message::Closed { segment, files, .. } = &message {
            for file in files.iter().flat_map(|files| files.files()) {
                self.seen.closed.insert((*segment, file));
                self.seen.ever_closed.insert((*segment, file));
            }
        }
        if let (Some(Bug::RequeueBeforeFreed), Message::Lost { connection }) = (self.bug, &message)
        {
            let connection = *connection;
            self.tell_receiver(&message);
            self.sender_hears(Message::Freed { connection });
            return;
        }
        self.tell_receiver(&message);
    }

    fn hand_over(&mut self, id: ConnectionId, run: Run, bytes: Option<u64>) {
        self.check_run(id, run);
        let again = (run.first..run.first + u64::from(run.count))
            .any(|chunk| !self.seen.handed.insert((run.segment, chunk)));
        if let Some(source) = self.sources.get(&(run.segment, 0))
            && source.endless
            && (run.first > 60 || self.rng.once_in(12))
        {
            self.sender.end_stream(run.segment);
        }
        if self.bug == Some(Bug::RequeueSkipped) && again {
            return;
        }
        let Some(link) = self.links.get_mut(&id) else {
            self.found("a run for a connection that never was");
            return;
        };
        link.unsent += 1;
        if link.unsent > limits::RUNS_AHEAD_MAX {
            self.found("more runs ahead than allowed");
        } else if link.sender_has {
            link.queue.push_back((run, bytes));
            self.step_soon(id, 0);
        }
    }

    /// What must hold of every run that the machine hands out.
    fn check_run(&mut self, id: ConnectionId, run: Run) {
        if self.links.get(&id).is_none_or(|link| !link.sender_joined) {
            self.found("a run for a connection that takes none");
        }
        if let (Some(window), true) = (
            self.scenario.window_bytes,
            self.ends.sender_files.is_empty(),
        ) {
            let ahead = (window / u64::from(self.scenario.chunk_bytes)).max(1);
            let landed = &self.seen.landed;
            let prefix = (0..).find(|chunk| !landed.contains(&(run.segment, *chunk)));
            if run.first + u64::from(run.count) > prefix.unwrap_or(0) + ahead {
                self.found("a run beyond the window");
            }
        }
    }

    fn step_soon(&mut self, id: ConnectionId, delay: u64) {
        if let Some(link) = self.links.get_mut(&id)
            && !link.stepping
        {
            link.stepping = true;
            self.queue.after(delay, Event::SendStep(id));
        }
    }

    /// The worker does the next thing for this connection.
    pub fn send_step(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.stepping = false;
        if !link.sender_has {
            return;
        }
        if let Some(outgoing) = link.current.take() {
            self.send_chunk(id, outgoing);
        } else if let Some((run, bytes)) = link.queue.pop_front() {
            self.send_head(id, run, bytes);
        }
    }

    fn send_head(&mut self, id: ConnectionId, run: Run, bytes: Option<u64>) {
        let (plan, _) = &self.plans[&run.segment];
        let chunk_bytes = u64::from(self.scenario.chunk_bytes);
        let planned = if plan.is_stream() {
            u64::from(run.count) * chunk_bytes
        } else {
            plan.run_bytes(run.first, run.count)
        };
        let once_in = self.scenario.zero_copy_once_in;
        let mut outgoing = Outgoing {
            run,
            bytes: bytes.unwrap_or(planned),
            done: 0,
            checks: Vec::new(),
            submitted: self.queue.now,
            copied: once_in == 0 || !self.rng.once_in(once_in),
            swapped: false,
            void: BTreeSet::new(),
        };
        let lens: Vec<u64> = (0..run.count)
            .map(|place| self.len_of(&outgoing, place))
            .collect();
        if run.count >= 2 && lens[0] == lens[1] && self.disarm(Fault::SwapChunks) {
            outgoing.swapped = true;
        }
        for (place, len) in (0..).zip(&lens) {
            let chunk = run.first + place;
            let bytes = self.read_chunk(run.segment, chunk, *len, Some(&mut outgoing.void));
            outgoing.checks.push(self.check(run.segment, chunk, &bytes));
        }
        let header = FrameHeader {
            transfer: TRANSFER,
            segment: run.segment,
            first: run.first,
            count: run.count,
            payload_bytes: outgoing.bytes,
        };
        let mut head = header.encode();
        if self.disarm(Fault::FlipHeader) {
            head[21] ^= 4;
        }
        let mut table = outgoing.checks.clone();
        if outgoing.swapped {
            table.swap(0, 1);
        }
        if self.disarm(Fault::FlipTable) {
            table[0][3] ^= 64;
        }
        self.put_on_wire(id, Item::Head(head, table));
        if let Some(link) = self.links.get_mut(&id) {
            link.current = Some(outgoing);
        }
        let cost = 64 * self.scenario.nanos_per_byte;
        self.step_soon(id, cost);
    }

    fn send_chunk(&mut self, id: ConnectionId, mut outgoing: Outgoing) {
        let run = outgoing.run;
        let place = match (outgoing.swapped, outgoing.done) {
            (true, 0) => 1,
            (true, 1) => 0,
            (_, place) => place,
        };
        let len = self.len_of(&outgoing, place);
        let chunk = run.first + u64::from(place);
        let flip = self.disarm(Fault::FlipPayload);
        let payload = if outgoing.copied || flip {
            let mut bytes = self.read_chunk(run.segment, chunk, len, Some(&mut outgoing.void));
            if flip && !bytes.is_empty() {
                let at = self.rng.within(0..bytes.len() as u64) as usize;
                bytes[at] ^= 16;
            }
            Payload::Frozen(bytes)
        } else {
            Payload::Borrowed {
                segment: run.segment,
                chunk,
                bytes: len as u32,
            }
        };
        self.put_on_wire(id, Item::Payload(payload));
        outgoing.done += 1;
        let cost = len * self.scenario.nanos_per_byte;
        if outgoing.done < run.count {
            if let Some(link) = self.links.get_mut(&id) {
                link.current = Some(outgoing);
            }
        } else {
            self.tell_sent(id, outgoing);
        }
        self.step_soon(id, cost);
    }

    fn tell_sent(&mut self, id: ConnectionId, outgoing: Outgoing) {
        for (file, chunk) in outgoing.void {
            let chunks = ChunkRange {
                first: chunk,
                count: 1,
            };
            self.send_news(SendNews::Void((outgoing.run.segment, file), chunks));
        }
        let Outgoing {
            run,
            submitted,
            checks,
            ..
        } = outgoing;
        self.send_news(SendNews::Sent(id, run, submitted, checks));
    }

    /// Payload bytes of the run's chunk at `place`.
    fn len_of(&self, outgoing: &Outgoing, place: u32) -> u64 {
        let (plan, _) = &self.plans[&outgoing.run.segment];
        let chunk_bytes = u64::from(self.scenario.chunk_bytes);
        if plan.is_stream() {
            let before = u64::from(place) * chunk_bytes;
            (outgoing.bytes - before).min(chunk_bytes)
        } else {
            u64::from(plan.chunk_len(outgoing.run.first + u64::from(place)))
        }
    }

    /// The chunk's bytes as the sources have them now, filled up with zeros;
    /// what was short is put into `void`.
    pub fn read_chunk(
        &mut self,
        segment: SegmentId,
        chunk: ChunkId,
        len: u64,
        mut void: Option<&mut BTreeSet<(FileId, ChunkId)>>,
    ) -> Vec<u8> {
        let (plan, _) = &self.plans[&segment];
        let mut bytes = Vec::new();
        for piece in plan.pieces(chunk, 1) {
            let want = piece.bytes.min(len - bytes.len() as u64);
            let Some(source) = self.sources.get_mut(&(segment, piece.file)) else {
                continue;
            };
            source.last_read_at = self.queue.now;
            if source.endless {
                let size = source.bytes.len() as u64;
                let byte = |at: u64| source.bytes[((piece.file_offset + at) % size) as usize];
                bytes.extend((0..want).map(byte));
                continue;
            }
            let (read, whole) = source.read(piece.file_offset, want);
            bytes.extend(read);
            if !whole && let Some(void) = void.as_deref_mut() {
                void.insert((piece.file, chunk));
            }
        }
        bytes
    }

    pub fn check(&self, segment: SegmentId, chunk: ChunkId, bytes: &[u8]) -> Check {
        let (_, seed) = &self.plans[&segment];
        let chunk = if self.bug == Some(Bug::CheckWithoutPosition) {
            0
        } else {
            chunk
        };
        seed.check(chunk, bytes)
    }

    fn put_on_wire(&mut self, id: ConnectionId, item: Item) {
        let now = self.queue.now;
        let jitter = self.rng.within(0..MILLI);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.last_arrival = link.last_arrival.max(now + link.latency + jitter);
        let at = link.last_arrival;
        self.queue.at(at, Event::Arrive(id, item));
    }

    pub fn send_news(&mut self, news: SendNews) {
        let delay = self.rng.within(0..3 * MILLI);
        self.send_news_at = self.send_news_at.max(self.queue.now + delay);
        self.queue.at(self.send_news_at, Event::SendNews(news));
    }

    pub fn send_news_heard(&mut self, news: SendNews) {
        let now = self.queue.now;
        match news {
            SendNews::Sent(id, run, submitted, checks) => {
                if let Some(link) = self.links.get_mut(&id) {
                    link.unsent -= 1;
                }
                self.sender.run_sent(now, id, run, submitted, checks);
            }
            SendNews::Void((segment, file), chunks) => {
                self.sender.chunks_void(segment, file, chunks, None);
            }
            SendNews::Detached(id) => self.send_detached(id),
        }
    }

    pub fn read_names(&mut self) {
        self.seen.is_naming = true;
        let delay = self.hand(End::Sender, 200);
        self.queue.after(delay, Event::NamesRead);
    }

    pub fn names_read(&mut self) {
        self.hand_returned(End::Sender);
        self.seen.is_naming = false;
        self.seen.name_parts += 1;
        let last = self.scenario.name_parts.unwrap_or(0);
        let is_last = self.seen.name_parts >= last;
        self.sender.names(Vec::new(), Vec::new(), is_last);
    }

    /// What is wanted of the segment is open; a file that vanished is not.
    pub fn sources_opened(&mut self, segment: SegmentId) {
        self.hand_returned(End::Sender);
        let mut failed = Vec::new();
        let specs = &self.specs[&segment];
        let is_file = |spec: &FileSpec| !spec.stream && !spec.folder && !spec.bytes.is_empty();
        if let Some(file) = specs.iter().position(is_file)
            && self.disarm(Fault::Vanishes)
        {
            let error = Error::new(ErrorKind::Vanished, "cannot open a source: it is gone");
            failed.push((file as FileId, error.at(Side::Sender)));
        }
        if self.bug != Some(Bug::OpeningForgotten) {
            self.sender.opened(segment, failed);
        }
    }

    pub fn looked(&mut self, key: FileKey, early: Option<Result<Looked, Error>>) {
        self.seen.looks -= 1;
        self.hand_returned(End::Sender);
        let result = early.unwrap_or_else(|| self.look(key));
        self.sender.looked(key.0, key.1, result);
    }

    /// What a look at the source shows now.
    fn look(&mut self, key: FileKey) -> Result<Looked, Error> {
        if let Some(source) = self.sources.get_mut(&key) {
            source.seen.clone_from(&source.bytes);
        }
        let source = &self.sources[&key];
        let unchanged = |size: usize| Looked {
            size: size as u64,
            touched: None,
        };
        if self.bug == Some(Bug::LookSkipped) {
            return Ok(unchanged(source.original.len()));
        }
        if source.changed_at.is_some() {
            return Err(Error::new(ErrorKind::Integrity, "the source changed"));
        }
        if source.stream {
            return Ok(unchanged(source.come));
        }
        let looked = unchanged(source.bytes.len());
        let (plan, _) = &self.plans[&key.0];
        if !source.touched || plan.is_stream() || self.bug == Some(Bug::TouchIgnored) {
            return Ok(looked);
        }
        let mut outside = source.bytes.clone();
        outside.resize(source.original.len(), 0);
        for piece in plan.held_pieces(key.1) {
            let own = piece.start as usize..piece.end as usize;
            outside[own.clone()].copy_from_slice(&source.original[own]);
        }
        for piece in plan.chunks_of(key.1).flat_map(|own| plan.pieces_of(own)) {
            if piece.file == key.1 {
                let own = piece.file_offset as usize..(piece.file_offset + piece.bytes) as usize;
                outside[own.clone()].copy_from_slice(&source.original[own]);
            }
        }
        if outside != source.original {
            return Err(Error::new(ErrorKind::Integrity, "a hole was written to"));
        }
        let touched = Touched {
            mode: 0o600,
            sum: sum_of(plan, key.1, &source.bytes),
        };
        Ok(Looked {
            touched: Some(touched),
            ..looked
        })
    }

    pub fn rechecked(&mut self, segment: SegmentId, chunk: ChunkId) {
        self.hand_returned(End::Sender);
        let (plan, _) = &self.plans[&segment];
        let len = if plan.is_stream() {
            let source = &self.sources[&(segment, 0)];
            let chunk_bytes = u64::from(self.scenario.chunk_bytes);
            let come = if source.endless {
                u64::MAX
            } else {
                source.come as u64
            };
            (come - chunk * chunk_bytes).min(chunk_bytes)
        } else {
            u64::from(plan.chunk_len(chunk))
        };
        let bytes = self.read_chunk(segment, chunk, len, None);
        let check = self.check(segment, chunk, &bytes);
        let files: Vec<FileId> = self.plans[&segment].0.files_of(chunk..chunk + 1).collect();
        let is_changed = |file: &FileId| self.sources[&(segment, *file)].changed_at.is_some();
        let is_touched = |file: &FileId| self.sources[&(segment, *file)].touched;
        let mut suspects: Vec<FileId> = files.iter().copied().filter(is_changed).collect();
        if suspects.is_empty() {
            suspects = files.into_iter().filter(is_touched).collect();
        }
        let error = Error::new(ErrorKind::Integrity, "the source changed");
        let suspects = suspects.into_iter().map(|file| (file, error.clone()));
        let now = Rechecked {
            check,
            suspects: suspects.collect(),
        };
        self.sender.rechecked(segment, chunk, Ok(now));
    }
}

/// The sum of a file's pieces, as reading them back gives it.
pub fn sum_of(plan: &Plan, file: FileId, bytes: &[u8]) -> FileSum {
    let mut sum = FileSum::default();
    for piece in plan.held_pieces(file) {
        sum.add(
            piece.start,
            &bytes[piece.start as usize..piece.end as usize],
        );
    }
    let chunks: BTreeSet<ChunkId> = plan.chunks_of(file).flatten().collect();
    for chunk in chunks {
        for piece in plan.pieces(chunk, 1).filter(|piece| piece.file == file) {
            let start = piece.file_offset as usize;
            sum.add(
                piece.file_offset,
                &bytes[start..start + piece.bytes as usize],
            );
        }
    }
    sum
}
