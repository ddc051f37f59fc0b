//! The receiver's end: its machine's outputs, a fake worker with the shipped
//! ledger, and the hands that keep targets.
//!
//! Leaves to others: the sender's end. Invariant: as in the real worker, a run
//! is admitted at its header, a chunk lands when its write was reaped, and a
//! connection's grants are released after its last write was.

use crate::planted::Bug;
use crate::rng::MILLI;
use crate::scenario::{Fault, Want};
use crate::sending::sum_of;
use crate::stations::End;
use crate::wire::{FileKey, Item, Payload, Target};
use crate::world::{Event, ReceiveNews, World};
use haul_engine::error::{Error, ErrorKind};
use haul_engine::limits;
use haul_engine::protocol::check::{Check, CheckSeed};
use haul_engine::protocol::credit::descriptors_of_all;
use haul_engine::protocol::frame::FrameHeader;
use haul_engine::protocol::ledger::{Admission, Ledger};
use haul_engine::protocol::plan::Plan;
use haul_engine::protocol::receiver::ReceiverOutput;
use haul_engine::protocol::wire::{
    ByteRange, ChunkRange, Deletions, Message, Offer, Touched, Verdict,
};
use haul_engine::protocol::{ChunkId, ConnectionId, FileId, SegmentId};
use haul_engine::report::Level;

/// A segment as the worker knows it.
pub struct Opened {
    pub plan: Plan,
    pub seed: CheckSeed,
    pub ledger: Ledger,
    /// The worker was told.
    pub known: bool,
}

/// A frame that is coming in.
pub struct Landing {
    header: FrameHeader,
    table: Vec<Check>,
    done: u32,
    admission: Admission,
}

/// A write that the disk works on.
pub struct Write {
    link: ConnectionId,
    segment: SegmentId,
    pub chunk: ChunkId,
    bytes: u64,
    parts: Vec<(FileId, u64, Vec<u8>)>,
    fails: bool,
}

impl World {
    pub fn carry_receiver(&mut self, output: ReceiverOutput) {
        match output {
            ReceiverOutput::Message(message) => self.carry_receiver_message(message),
            ReceiverOutput::Prepare { offer } => self.prepare(&offer),
            ReceiverOutput::Open {
                segment,
                plan,
                seed,
            } => {
                let late = self.bug == Some(Bug::AnswerOvertakesOpen);
                if late {
                    self.queue.after(400 * MILLI, Event::OpenLate(segment));
                }
                let opened = Opened {
                    plan,
                    seed,
                    ledger: Ledger::new(),
                    known: !late,
                };
                self.opened.insert(segment, opened);
            }
            ReceiverOutput::CloseConnection { connection } => {
                let machine = self.at_receiver.machine.as_mut();
                if machine.is_none_or(|machine| !machine.bar(connection)) {
                    // It never came, or went before.
                    self.receiver.connection_reaped(connection);
                }
            }
            ReceiverOutput::Landed { .. } => {}
            ReceiverOutput::Settle { segment, files } => {
                for file in files {
                    self.settle((segment, file.file), file.size, file.touched);
                }
            }
            ReceiverOutput::Delete(names) => {
                let last = self.specs.keys().next_back().copied();
                let is_over = last.is_none_or(|last| self.all_ended(last));
                if !is_over || !self.batches_due.is_empty() {
                    self.found("something is deleted before every file ended");
                }
                self.seen.deleting += 1;
                let delay = self.hand(End::Receiver, 200);
                if self.bug != Some(Bug::DeletionForgotten) {
                    self.queue.after(delay, Event::Deleted(names.number));
                }
            }
            ReceiverOutput::Discard { segment, file } => {
                if let Some(target) = self.targets.get_mut(&(segment, file)) {
                    target.failed = true;
                }
                let delay = self.hand(End::Receiver, 150);
                self.queue.after(delay, Event::DiscardDone((segment, file)));
            }
            ReceiverOutput::FileEnded {
                segment,
                file,
                size,
                result,
            } => {
                if result.is_ok() && size.is_none() {
                    self.found(format!("file {segment}/{file} ended without a size"));
                }
                let twice = self.ends.receiver_files.insert((segment, file), result);
                if twice.is_some() {
                    self.found(format!("file {segment}/{file} ended twice at the receiver"));
                }
            }
            ReceiverOutput::SegmentDone { segment } => {
                self.seen.taken.remove(&segment);
            }
            ReceiverOutput::Finish => {
                self.seen.finishing = true;
                let delay = self.report_delay();
                self.queue.after(delay, Event::FinishReceiver);
            }
            ReceiverOutput::Done { .. } => self.receiver_ends(Ok(())),
            ReceiverOutput::Failed(error) => self.receiver_ends(Err(error)),
        }
    }

    fn receiver_ends(&mut self, end: Result<(), Error>) {
        if self.ends.receiver.replace(end).is_some() {
            self.found("the receiver ended twice");
        }
        self.transfer_ended(End::Receiver);
    }

    pub fn discard_done(&mut self, key: FileKey) {
        self.hand_returned(End::Receiver);
        if self.bug != Some(Bug::DiscardForgotten)
            && let Some(target) = self.targets.get_mut(&key)
        {
            target.temporary = None;
        }
        self.receiver.discarded();
    }

    fn carry_receiver_message(&mut self, message: Message) {
        self.count_recalls(&message);
        if matches!(message, Message::Finished { .. })
            && self
                .targets
                .values()
                .any(|target| target.temporary.is_some())
        {
            self.found("the receiver's last word comes before its temporary files are gone");
        }
        match (self.bug, &message) {
            (Some(Bug::FreedOvertakesLanded), Message::Landed { .. })
                if self.held_landed.len() < 3 =>
            {
                self.held_landed.push(message);
                return;
            }
            (Some(Bug::RequeueBeforeFreed), Message::Freed { connection })
                if self
                    .links
                    .get(connection)
                    .is_some_and(|link| !link.sender_has) =>
            {
                // The sender was told long before.
                return;
            }
            (Some(Bug::LandedTwice), Message::Landed { .. }) if self.rng.once_in(8) => {
                self.tell_sender(&message);
            }
            _ => {}
        }
        self.tell_sender(&message);
        for held in std::mem::take(&mut self.held_landed) {
            self.tell_sender(&held);
        }
    }

    /// Keeps count as the two machines should, for planted bugs.
    fn count_recalls(&mut self, message: &Message) {
        let (segment, chunks) = match message {
            Message::Freed { .. } => {
                for segment in self.opened.keys() {
                    *self.seen.freed.entry(*segment).or_default() += 1;
                }
                return;
            }
            Message::Damaged { segment, chunk, .. } => (*segment, *chunk..*chunk + 1),
            Message::Drained {
                segment, chunks, ..
            } => (*segment, chunks.first..chunks.first + chunks.count),
            _ => return,
        };
        for file in self.opened[&segment].plan.files_of(chunks) {
            *self.seen.recalls.entry((segment, file)).or_default() += 1;
        }
    }

    fn prepare(&mut self, offer: &Offer) {
        self.seen.preparing += 1;
        let taken = descriptors_of_all(&offer.entries);
        self.seen.taken.insert(offer.segment, taken);
        let most = self.scenario.descriptors[1].max(limits::DESCRIPTORS_FIRST);
        if self.seen.taken.values().sum::<u32>() > most {
            self.found("more descriptors are taken than the receiver has");
        }
        let delay = self.hand(End::Receiver, 150);
        self.queue.after(delay, Event::Prepared(offer.segment));
    }

    pub fn prepared(&mut self, segment: SegmentId) {
        self.seen.preparing -= 1;
        self.hand_returned(End::Receiver);
        let specs = self.specs[&segment].clone();
        let mut verdicts = Vec::new();
        for (file, spec) in (0..).zip(&specs) {
            // What is not written is found by its filler.
            let mut temporary = vec![0xee; if spec.stream { 0 } else { spec.bytes.len() }];
            verdicts.push(match spec.want {
                Want::Skip => Verdict::Skip,
                Want::Refuse => {
                    Verdict::Refused(Error::new(ErrorKind::Local, "no place for this file"))
                }
                Want::Whole => Verdict::Whole,
                Want::Ranges => {
                    let ranges = self.ranges(spec.bytes.len() as u64);
                    temporary.copy_from_slice(&spec.bytes);
                    for range in &ranges {
                        temporary[range.start as usize..range.end as usize].fill(0xee);
                    }
                    Verdict::Ranges(ranges)
                }
                Want::Held => {
                    // As the source is when it is cloned; another size is its change.
                    let source = &self.sources[&(segment, file)].bytes;
                    let both = source.len().min(temporary.len());
                    temporary[..both].copy_from_slice(&source[..both]);
                    Verdict::Held
                }
            });
            if spec.want != Want::Held {
                spec.punch(&mut temporary);
            }
            let is_wanted = matches!(spec.want, Want::Whole | Want::Ranges | Want::Held);
            if !is_wanted && spec.kind().has_bytes() {
                // Its file is closed, or was never opened; none here is large.
                let taken = self.seen.taken.entry(segment).or_default();
                *taken = taken.saturating_sub(1);
            }
            if is_wanted {
                let target = Target {
                    temporary: Some(temporary),
                    ..Target::default()
                };
                self.targets.insert((segment, file), target);
            }
        }
        self.receiver.prepared(segment, verdicts);
    }

    fn ranges(&mut self, size: u64) -> Vec<ByteRange> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while size > 0 && self.rng.within(0..6) > 0 {
            let start = at + self.rng.within(0..size);
            let end = start + 1 + self.rng.within(0..size);
            if end > size {
                break;
            }
            ranges.push(ByteRange { start, end });
            at = end + 1;
        }
        ranges
    }

    /// Something comes in on a data connection.
    pub fn arrive(&mut self, id: ConnectionId, item: Item) {
        let over = self.ends.receiver.is_some();
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if !link.up || !link.receiver_has || link.closing || over {
            return;
        }
        match item {
            Item::Head(head, table) => match FrameHeader::decode(&head) {
                Ok(header) => self.admit(id, header, table),
                Err(_) => {
                    link.up = false;
                    self.queue.after(30 * MILLI, Event::NoticeSender(id));
                    self.close_receiver_end(id);
                }
            },
            Item::Payload(payload) => self.take_payload(id, payload),
        }
    }

    fn admit(&mut self, id: ConnectionId, header: FrameHeader, table: Vec<Check>) {
        let drain = self.disarm(Fault::DrainRun);
        let Some(opened) = self.opened.get_mut(&header.segment) else {
            self.found("a frame of a segment that nobody answered");
            return;
        };
        if !opened.known {
            self.found("a frame of a segment that the worker does not know");
            return;
        }
        let chunks = header.first..header.first + u64::from(header.count);
        let whole = opened.plan.contains(header.first, u64::from(header.count))
            && (opened.plan.is_stream()
                || opened.plan.run_bytes(header.first, header.count) == header.payload_bytes);
        if !whole {
            self.found("a frame that does not fit the plan");
            return;
        }
        let admission = if drain {
            Admission::Drain
        } else {
            opened.ledger.admit(id, chunks)
        };
        if admission == Admission::Drain && !drain {
            self.found("a chunk was sent that landed or that another may write");
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.landing = Some(Landing {
                header,
                table,
                done: 0,
                admission,
            });
        }
    }

    fn take_payload(&mut self, id: ConnectionId, payload: Payload) {
        let Some(mut landing) = self.links.get_mut(&id).and_then(|link| link.landing.take()) else {
            return;
        };
        let bytes = match payload {
            Payload::Frozen(bytes) => bytes,
            Payload::Borrowed {
                segment,
                chunk,
                bytes,
            } => self.read_chunk(segment, chunk, u64::from(bytes), None),
        };
        let header = landing.header;
        let chunk = header.first + u64::from(landing.done);
        let expected = landing.table[landing.done as usize];
        landing.done += 1;
        let last = landing.done == header.count;
        let admission = landing.admission;
        if !last && let Some(link) = self.links.get_mut(&id) {
            link.landing = Some(landing);
        }
        if admission == Admission::Drain {
            if last {
                let chunks = ChunkRange {
                    first: header.first,
                    count: u64::from(header.count),
                };
                self.receive_news(ReceiveNews::Drained(header.segment, chunks));
            }
            return;
        }
        let good = self.check_at_receiver(header.segment, chunk, &bytes) == expected;
        if !good && self.bug != Some(Bug::CheckIgnored) {
            let opened = self
                .opened
                .get_mut(&header.segment)
                .expect("it was admitted");
            assert!(opened.ledger.reject(id, chunk..chunk + 1));
            self.receive_news(ReceiveNews::Damaged(header.segment, chunk));
            return;
        }
        self.write(id, header.segment, chunk, &bytes);
    }

    fn check_at_receiver(&self, segment: SegmentId, chunk: ChunkId, bytes: &[u8]) -> Check {
        let position = if self.bug == Some(Bug::CheckWithoutPosition) {
            0
        } else {
            chunk
        };
        self.opened[&segment].seed.check(position, bytes)
    }

    /// Submits the chunk's write.
    fn write(&mut self, id: ConnectionId, segment: SegmentId, chunk: ChunkId, bytes: &[u8]) {
        let mut parts = Vec::new();
        let mut at = 0;
        for piece in self.opened[&segment].plan.pieces(chunk, 1) {
            let end = (at + piece.bytes as usize).min(bytes.len());
            parts.push((piece.file, piece.file_offset, bytes[at..end].to_vec()));
            at = end;
        }
        let same = |write: &Write| (write.segment, write.chunk) == (segment, chunk);
        if self.writes.values().any(same) {
            self.found(format!("two writers at chunk {chunk} of segment {segment}"));
        }
        for (file, ..) in &parts {
            if let Some(target) = self.targets.get_mut(&(segment, *file)) {
                target.outstanding += 1;
            }
        }
        let slow = self.armed.contains(&Fault::SlowWrites);
        let delay = match self.rng.within(0..40) {
            0 => self.rng.within(0..1500) * MILLI,
            _ if slow => self.rng.within(1000..4000) * MILLI,
            _ => self.rng.within(0..40 * MILLI),
        };
        if slow {
            self.note(Fault::SlowWrites);
        }
        let number = self.next_write;
        self.next_write += 1;
        let write = Write {
            link: id,
            segment,
            chunk,
            bytes: bytes.len() as u64,
            parts,
            fails: self.disarm(Fault::WriteError),
        };
        if self.bug == Some(Bug::LandedBeforeWritten) {
            self.tell_landed(&write);
        }
        self.writes.insert(number, write);
        self.queue.after(delay, Event::WriteDone(number));
        if let Some(link) = self.links.get_mut(&id) {
            link.outstanding += 1;
        }
    }

    /// The disk is done with a write, and it is reaped.
    pub fn write_done(&mut self, number: u64) {
        let Some(write) = self.writes.remove(&number) else {
            return;
        };
        let fails = write.fails && self.bug != Some(Bug::WriteErrorIgnored);
        let mut needed = false;
        for (place, (file, offset, bytes)) in write.parts.iter().enumerate() {
            let Some(target) = self.targets.get_mut(&(write.segment, *file)) else {
                continue;
            };
            target.outstanding -= 1;
            if place == 0 && write.fails {
                if fails && !target.failed {
                    target.failed = true;
                    self.receive_news(ReceiveNews::Failed((write.segment, *file)));
                }
                continue;
            }
            needed |= !target.failed;
            // A rename keeps the file: a late write reaches it all the same.
            if let Some(disk) = target.temporary.as_mut().or(target.sealed.as_mut()) {
                let end = *offset as usize + bytes.len();
                disk.resize(disk.len().max(end), 0xee);
                disk[*offset as usize..end].copy_from_slice(bytes);
            }
        }
        needed |= self.bug == Some(Bug::WriteErrorIgnored);
        let chunks = write.chunk..write.chunk + 1;
        let opened = self
            .opened
            .get_mut(&write.segment)
            .expect("it was admitted");
        if !needed {
            let _ = opened.ledger.reject(write.link, chunks);
        } else if opened.ledger.land(write.link, chunks) {
            if self.bug != Some(Bug::LandedBeforeWritten) {
                self.tell_landed(&write);
            }
        } else if self.bug.is_none() {
            self.found("a chunk landed that was not granted");
        }
        if let Some(link) = self.links.get_mut(&write.link) {
            link.outstanding -= 1;
            if link.closing && link.outstanding == 0 && link.receiver_has {
                self.reap(write.link);
            }
        }
    }

    fn tell_landed(&mut self, write: &Write) {
        let chunks = ChunkRange {
            first: write.chunk,
            count: 1,
        };
        let news = ReceiveNews::Landed(write.link, write.segment, chunks, write.bytes);
        self.receive_news(news);
    }

    /// The receiver's end of the connection is shut; its writes go on.
    pub fn close_receiver_end(&mut self, id: ConnectionId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if !link.receiver_has || link.closing {
            return;
        }
        link.closing = true;
        link.landing = None;
        if link.outstanding == 0 || self.bug == Some(Bug::ReleaseBeforeReaped) {
            self.reap(id);
        }
    }

    fn reap(&mut self, id: ConnectionId) {
        for opened in self.opened.values_mut() {
            opened.ledger.release(id);
        }
        if let Some(link) = self.links.get_mut(&id) {
            link.receiver_has = false;
        }
        self.receive_news(ReceiveNews::Detached(id));
    }

    fn receive_news(&mut self, news: ReceiveNews) {
        let delay = self.rng.within(0..3 * MILLI);
        self.receive_news_at = self.receive_news_at.max(self.queue.now + delay);
        self.queue
            .at(self.receive_news_at, Event::ReceiveNews(news));
    }

    pub fn receive_news_heard(&mut self, news: ReceiveNews) {
        match news {
            ReceiveNews::Landed(id, segment, chunks, bytes) => {
                self.landed(End::Receiver);
                self.receiver.chunks_landed(id, segment, chunks, bytes);
                self.close_without_word(segment);
            }
            ReceiveNews::Damaged(segment, chunk) => self.receiver.chunk_damaged(segment, chunk),
            ReceiveNews::Drained(segment, chunks) => self.receiver.chunks_drained(segment, chunks),
            ReceiveNews::Failed((segment, file)) => {
                let error = Error::local("cannot write", "no space left");
                self.receiver.write_failed(segment, file, error);
            }
            ReceiveNews::Detached(id) => {
                self.receiver.connection_reaped(id);
                self.detached(End::Receiver, id);
            }
        }
    }

    fn settle(&mut self, key: FileKey, size: u64, touched: Option<Touched>) {
        self.seen.settling.insert(key);
        if self
            .targets
            .get(&key)
            .is_none_or(|target| target.outstanding > 0)
        {
            self.found("a file is settled while a write to it is outstanding");
        }
        if !self.seen.ever_closed.contains(&key) {
            self.found("a file is settled that was never closed");
        }
        if self.specs[&key.0][key.1 as usize].folder && !self.all_before_ended(key.0) {
            self.found("a directory is settled before what lies in it");
        }
        let delay = self.hand(End::Receiver, 150);
        self.queue
            .after(delay, Event::SettleDone(key, size, touched));
    }

    /// True when every file up to that segment ended at the receiver.
    fn all_ended(&self, segment: SegmentId) -> bool {
        let mut segments = self.specs.range(..=segment);
        segments.all(|(id, specs)| {
            let mut files = 0..specs.len() as FileId;
            files.all(|file| self.ends.receiver_files.contains_key(&(*id, file)))
        })
    }

    pub fn deleted(&mut self, number: u32) {
        self.hand_returned(End::Receiver);
        let result = match self.disarm(Fault::DeletesTooMuch) {
            true => Err(Error::new(
                ErrorKind::Partial,
                "nothing was deleted: more would go",
            )),
            false => Ok(Deletions {
                count: 1,
                ..Deletions::default()
            }),
        };
        self.seen.deleting -= 1;
        self.receiver.deleted(number, result);
    }

    /// True when every file before that segment's directories ended at the receiver.
    fn all_before_ended(&self, segment: SegmentId) -> bool {
        let mut segments = self.specs.range(..=segment);
        segments.all(|(id, specs)| {
            let mut files = (0..).zip(specs);
            files.all(|(file, spec)| {
                let comes_last = spec.folder && *id == segment;
                comes_last || self.ends.receiver_files.contains_key(&(*id, file))
            })
        })
    }

    pub fn settle_done(&mut self, key: FileKey, size: u64, touched: Option<Touched>) {
        self.seen.settling.remove(&key);
        self.hand_returned(End::Receiver);
        let fails = self.disarm(Fault::SettleError);
        let Some(target) = self.targets.get_mut(&key) else {
            return;
        };
        let differs = touched.is_some_and(|touched| {
            let landed = target.temporary.as_deref().unwrap_or_default();
            sum_of(&self.opened[&key.0].plan, key.1, landed) != touched.sum
        });
        let result = if fails {
            Err(Error::local("cannot sync", "input/output error"))
        } else if differs && self.bug != Some(Bug::SumIgnored) {
            Err(Error::new(ErrorKind::Integrity, "the source changed"))
        } else {
            target.sealed = target.temporary.take();
            let stream = self.sources[&key].stream;
            if stream
                && target
                    .sealed
                    .as_ref()
                    .is_none_or(|disk| disk.len() as u64 != size)
            {
                self.found("a stream is settled that is shorter or longer than it was");
            }
            Ok(Level::Sealed)
        };
        self.receiver.settled(key.0, key.1, result);
    }
}
