//! The receiving half of a transfer: carries the state machine's outputs to
//! the workers, the hands and the peer, and their answers back.
//!
//! Leaves to others: every decision (protocol's receiver). Invariant: a
//! segment is open in every worker before its answer is sent, and a transfer
//! ends only when no worker writes to its targets any more.

use super::core::Core;
use super::destination::{Asked, Destination, EntryFound, Making, PreparedTarget};
use super::inbox::Done;
use super::owed::Owed;
use super::tally::Tally;
use crate::data::{ReceiveCommand, ReceiveEvent, ReceiveSegment};
use crate::error::{Error, Result, Side};
use crate::files::settle::{ToSettle, Whole, settle_all};
use crate::files::target::Target;
use crate::kernel::descriptors::Share;
use crate::limits;
use crate::options::DigestKind;
use crate::protocol::ledger::Ledger;
use crate::protocol::names::Saying;
use crate::protocol::receiver::{FileToSettle, Receiver, ReceiverConfig, ReceiverOutput};
use crate::protocol::wire::{Digests, Message, Offer, Sources, Verdict};
use crate::protocol::{ConnectionId, FileId, SegmentId, TransferId};
use crate::report::{Digest, Latency, Level};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

/// What bytes land in, by file; nothing for the others.
fn bytes_of(taken: &[Option<PreparedTarget>]) -> impl Iterator<Item = Option<&Arc<Target>>> {
    taken.iter().map(|taken| match taken {
        Some(PreparedTarget::Bytes(target)) => Some(target),
        Some(PreparedTarget::Node(_)) | None => None,
    })
}

/// What those hold that were settled; what cannot be told fails.
fn digests_of(
    files: &[Settling],
    results: &mut [Result<Level>],
    kind: DigestKind,
) -> Vec<(SegmentId, FileId, Digest)> {
    let mut digests = Vec::new();
    for (one, result) in files.iter().zip(results) {
        if result.is_err() {
            continue;
        }
        match one.digest(kind) {
            Ok(Some(digest)) => {
                digests.push((one.data.segment, one.to_settle.file, digest));
            }
            Ok(None) => {}
            Err(error) => *result = Err(error),
        }
    }
    digests
}

/// A fault of haul: without its targets a segment's bytes would be drained.
fn never_prepared(segment: SegmentId) -> Error {
    let why = format!("segment {segment} was opened before its targets were there");
    Error::local("cannot go on with the transfer", why)
}

/// Hands that settle small files at once.
const SETTLES_TOGETHER_MAX: usize = 2;

/// A file that is to be settled.
struct Settling {
    data: Arc<ReceiveSegment>,
    taken: PreparedTarget,
    to_settle: FileToSettle,
}

impl Settling {
    fn whole(&self) -> ToSettle<'_> {
        let FileToSettle {
            file,
            size,
            touched,
        } = self.to_settle;
        match &self.taken {
            PreparedTarget::Bytes(target) => ToSettle::File(Whole {
                target,
                size,
                touched,
                pieces: (&self.data.plan, file),
            }),
            PreparedTarget::Node(node) => ToSettle::Node(node),
        }
    }

    /// What it holds now that it is settled.
    fn digest(&self, kind: DigestKind) -> Result<Option<Digest>> {
        match &self.taken {
            PreparedTarget::Bytes(target) => Ok(target.digest()),
            PreparedTarget::Node(node) => node.digest(kind),
        }
    }
}

/// A transfer that receives.
pub(crate) struct ReceivingHalf {
    transfer: TransferId,
    machine: Receiver,
    destination: Arc<Destination>,
    /// Offers whose targets are not made yet; the first is with the hands.
    preparing: VecDeque<Arc<Offer>>,
    /// What a pull has not named yet.
    saying: Saying,
    /// This end's descriptors, until the end.
    _share: Share,
    taken: BTreeMap<SegmentId, Vec<Option<PreparedTarget>>>,
    segments: BTreeMap<SegmentId, Arc<ReceiveSegment>>,
    /// Files that wait for a hand that settles them.
    to_settle: Vec<Settling>,
    /// Hands that settle small files.
    settles_together: usize,
    reports_due: Option<Owed>,
    /// Workers that have not yet forgotten the transfer, once it ended.
    forgets_due: Option<usize>,
    end: Option<Result<()>>,
}

impl ReceivingHalf {
    pub(crate) fn start(
        core: &mut Core,
        transfer: TransferId,
        chunk_bytes: u32,
        asked: Asked,
        making: Making,
        share: Share,
        saying: Saying,
    ) -> Result<Self> {
        core.links.start_receiving()?;
        Ok(Self {
            transfer,
            machine: Receiver::new(ReceiverConfig {
                transfer,
                chunk_bytes,
                descriptors_max: share.count(),
                deletes: making.rules.deletes.is_some(),
            }),
            destination: Arc::new(Destination::new(asked, making)),
            preparing: VecDeque::new(),
            saying,
            _share: share,
            taken: BTreeMap::new(),
            segments: BTreeMap::new(),
            to_settle: Vec::new(),
            settles_together: 0,
            reports_due: None,
            forgets_due: None,
            end: None,
        })
    }

    /// What the machine counted.
    pub(crate) fn machine(&self) -> &Receiver {
        &self.machine
    }

    /// Ends the transfer with `error`.
    pub(crate) fn stop(&mut self, error: Error) {
        self.machine.stop(error);
    }

    /// The peer works on what it owes.
    pub(crate) fn peer_works(&mut self) {
        self.machine.peer_works();
    }

    /// True while it waits for workers that let go of its files.
    pub(crate) fn is_leaving(&self) -> bool {
        self.forgets_due.is_some()
    }

    /// The worker has let go of the connection, and its grants are back.
    pub(crate) fn reaped(&mut self, connection: ConnectionId) {
        self.machine.connection_reaped(connection);
    }

    /// A message of this transfer.
    pub(crate) fn message(&mut self, core: &Core, tally: &mut Tally, message: Message) {
        if let Message::Offer(offer) = &message {
            tally.planned(offer);
        }
        if let Message::More { transfer } = message {
            let (sources, last) = self.saying.next_part();
            return core.channel.send(&Message::Sources(Sources {
                transfer,
                sources,
                last,
            }));
        }
        if let Err(violation) = self.machine.handle_message(core.clock.now(), message) {
            let error = Error::peer(format!("cannot go on with {}", core.peer), violation);
            self.machine.stop(error);
        }
    }

    /// A worker's event, except `Detached`, which is the session's.
    pub(crate) fn event(&mut self, core: &mut Core, tally: &mut Tally, event: ReceiveEvent) {
        match event {
            ReceiveEvent::Landed {
                transfer,
                segment,
                connection,
                chunks,
                bytes,
            } => {
                if transfer == self.transfer {
                    core.links.count(connection, bytes);
                    self.machine
                        .chunks_landed(connection, segment, chunks, bytes);
                }
            }
            ReceiveEvent::Damaged {
                transfer,
                segment,
                chunk,
            } => {
                if transfer == self.transfer {
                    self.machine.chunk_damaged(segment, chunk);
                }
            }
            ReceiveEvent::Drained {
                transfer,
                segment,
                chunks,
            } => {
                if transfer == self.transfer {
                    self.machine.chunks_drained(segment, chunks);
                }
            }
            ReceiveEvent::Failed {
                transfer,
                segment,
                file,
                error,
            } => {
                if transfer == self.transfer {
                    self.machine
                        .write_failed(segment, file, error.at(Side::Receiver));
                }
            }
            ReceiveEvent::Forgotten(transfer) => {
                if transfer == self.transfer {
                    self.forgets_due = self.forgets_due.map(|due| due.saturating_sub(1));
                    self.discard_when_forgotten(core);
                }
            }
            ReceiveEvent::Report(report) => {
                tally.add_own(*report);
                if let Some(due) = &mut self.reports_due {
                    due.came();
                }
                self.finish_when_told(core, tally);
            }
            ReceiveEvent::Detached { .. } => {}
        }
    }

    /// The hands' answer.
    pub(crate) fn done(&mut self, core: &mut Core, tally: &mut Tally, done: Done) {
        match done {
            Done::Prepared {
                segment,
                verdicts,
                taken,
                digests,
            } => {
                self.tell_digests(core, tally, segment, digests);
                self.preparing.pop_front();
                self.prepare_next(core);
                for note in bytes_of(&taken)
                    .flatten()
                    .filter_map(|target| target.note())
                {
                    tally.note(note.to_owned());
                }
                self.taken.insert(segment, taken);
                self.machine.prepared(segment, verdicts);
            }
            Done::Settled {
                files,
                digests,
                sync,
                left_over,
                together,
            } => {
                for same in digests.chunk_by(|one, next| one.0 == next.0) {
                    let found = same.iter().map(|(_, file, digest)| (*file, *digest));
                    self.tell_digests(core, tally, same[0].0, found.collect());
                }
                tally.leave_over(left_over);
                tally.latencies.sync.merge(&sync);
                for (segment, file, result) in files {
                    let result = result.map_err(|error| error.at(Side::Receiver));
                    self.machine.settled(segment, file, result);
                }
                self.settles_together -= usize::from(together);
                self.settle_next(core);
            }
            Done::Deleted { number, result } => {
                if let Ok(deletions) = &result {
                    tally.deleted(deletions);
                }
                self.machine.deleted(number, result);
            }
            Done::Discarded => self.machine.discarded(),
            _ => {}
        }
    }

    /// Carries all outputs out; the result is there once nothing is left.
    pub(crate) fn pump(&mut self, core: &mut Core, tally: &mut Tally) -> Option<Result<()>> {
        self.finish_when_told(core, tally);
        while let Some(output) = self.machine.poll(core.clock.now()) {
            self.carry(core, tally, output);
        }
        let over = core.hands_empty() && self.forgets_due.is_none();
        if over { self.end.take() } else { None }
    }

    fn carry(&mut self, core: &mut Core, tally: &mut Tally, output: ReceiverOutput) {
        match output {
            ReceiverOutput::Message(message) => core.channel.send(&message),
            ReceiverOutput::Prepare { offer } => {
                self.preparing.push_back(offer);
                if self.preparing.len() == 1 {
                    self.prepare_next(core);
                }
            }
            ReceiverOutput::Open {
                segment,
                plan,
                seed,
            } => {
                let Some(taken) = self.taken.get(&segment) else {
                    return self.machine.stop(never_prepared(segment));
                };
                let targets: Vec<Option<Arc<Target>>> =
                    bytes_of(taken).map(|target| target.cloned()).collect();
                // Who reads a stream once cannot find it touched.
                let mut sinks = targets.iter().flatten();
                let options = self.destination.making().options;
                let keeps_sums = options.verify
                    || options.digest.is_some()
                    || !plan.is_stream() && sinks.any(|target| target.notes_pieces());
                let data = Arc::new(ReceiveSegment {
                    transfer: self.transfer,
                    segment,
                    plan,
                    seed,
                    ledger: Mutex::new(Ledger::new()),
                    targets,
                    keeps_sums,
                    in_order: AtomicU64::new(0),
                });
                core.links
                    .tell_receivers(|| ReceiveCommand::Open(data.clone()));
                self.segments.insert(segment, data);
            }
            ReceiverOutput::CloseConnection { connection } => {
                // It may still be on its way here.
                if !core.machine.bar(connection) {
                    // Already reaped, perhaps between two transfers.
                    self.machine.connection_reaped(connection);
                }
            }
            ReceiverOutput::Landed { .. } => tally.landed(),
            ReceiverOutput::Settle { segment, files } => {
                let Some(data) = self.segments.get(&segment).cloned() else {
                    return self.machine.stop(never_prepared(segment));
                };
                for to_settle in files {
                    if let Some(taken) = self.taken(segment, to_settle.file) {
                        self.to_settle.push(Settling {
                            data: data.clone(),
                            taken,
                            to_settle,
                        });
                    }
                }
                self.settle_next(core);
            }
            ReceiverOutput::Discard { segment, file } => self.discard(core, segment, file),
            ReceiverOutput::FileEnded {
                segment,
                file,
                size,
                result,
            } => {
                tally.ended(segment, file, size, &result);
            }
            ReceiverOutput::Delete(names) => {
                let (destination, number) = (self.destination.clone(), names.number);
                let delete = move || Done::Deleted {
                    number,
                    result: destination.delete(&names),
                };
                let failed = move |error| Done::Deleted {
                    number,
                    result: Err(error),
                };
                core.hand(self.transfer, delete, failed);
            }
            ReceiverOutput::SegmentDone { segment } => {
                let transfer = self.transfer;
                core.links
                    .tell_receivers(|| ReceiveCommand::Close { transfer, segment });
                self.taken.remove(&segment);
                self.segments.remove(&segment);
            }
            ReceiverOutput::Finish => {
                tally.lose(self.destination.making().keeping.lost());
                self.ask_for_reports(core);
                self.finish_when_told(core, tally);
            }
            ReceiverOutput::Done { report } => {
                tally.set_peer(*report);
                self.finished(core, Ok(()));
            }
            ReceiverOutput::Failed(error) => {
                // What ran until then is told, too: before a worker forgets.
                self.ask_for_reports(core);
                self.finished(core, Err(error));
            }
        }
    }

    /// Has the hands settle what waits: a large file on its own, as its sync may
    /// take long, and all small ones together, so that one sync serves whatever came
    /// during the last.
    fn settle_next(&mut self, core: &mut Core) {
        let is_large = |file: &Settling| file.to_settle.size >= limits::DIRECT_BYTES_MIN;
        let (large, small) = std::mem::take(&mut self.to_settle)
            .into_iter()
            .partition::<Vec<_>, _>(is_large);
        for file in large {
            self.settle(core, vec![file], false);
        }
        if small.is_empty() || self.settles_together == SETTLES_TOGETHER_MAX {
            self.to_settle = small;
            return;
        }
        self.settles_together += 1;
        self.settle(core, small, true);
    }

    fn settle(&mut self, core: &mut Core, files: Vec<Settling>, together: bool) {
        let all: Vec<_> = files
            .iter()
            .map(|file| (file.data.segment, file.to_settle.file))
            .collect();
        let kind = self.destination.making().options.digest;
        let settled = move |results: Vec<Result<Level>>, digests, sync, left_over| {
            let files = all.into_iter().zip(results);
            let files = files.map(|((segment, file), result)| (segment, file, result));
            Done::Settled {
                files: files.collect(),
                digests,
                sync,
                left_over,
                together,
            }
        };
        let (count, refused) = (files.len(), settled.clone());
        let fsync = self.destination.making().options.fsync;
        let settle = move || {
            let mut sync = Latency::default();
            let all: Vec<ToSettle<'_>> = files.iter().map(Settling::whole).collect();
            let mut left_over = Vec::new();
            let mut results = settle_all(&all, fsync, &mut sync, &mut left_over);
            let digests = kind.map(|kind| digests_of(&files, &mut results, kind));
            settled(results, digests.unwrap_or_default(), sync, left_over)
        };
        let failed = move |error| {
            let results = vec![Err(error); count];
            refused(results, Vec::new(), Latency::default(), Vec::new())
        };
        core.hand(self.transfer, settle, failed);
    }

    fn discard(&mut self, core: &mut Core, segment: SegmentId, file: FileId) {
        match self.taken(segment, file) {
            Some(PreparedTarget::Bytes(target)) => {
                let discard = move || {
                    target.discard();
                    Done::Discarded
                };
                // It goes with the transfer's targets.
                core.hand(self.transfer, discard, |_| Done::Discarded);
            }
            // It was refused before there was one, or is made only in the end.
            Some(PreparedTarget::Node(_)) | None => self.machine.discarded(),
        }
    }

    fn taken(&self, segment: SegmentId, file: FileId) -> Option<PreparedTarget> {
        self.taken.get(&segment)?.get(file as usize)?.clone()
    }

    /// Creates the targets of the first offer that waits, one after another, on
    /// a blocking thread. One segment at a time: who waits for a descriptor there
    /// keeps no hand from settling what gives one back.
    fn prepare_next(&mut self, core: &mut Core) {
        let Some(offer) = self.preparing.front().cloned() else {
            return;
        };
        let destination = self.destination.clone();
        let (segment, count) = (offer.segment, offer.entries.len());
        let prepare = move || {
            let (mut verdicts, mut taken, mut digests) = (Vec::new(), Vec::new(), Vec::new());
            for (file, (verdict, found)) in (0..).zip(destination.prepare(&offer)) {
                verdicts.push(verdict);
                taken.push(match found {
                    Some(EntryFound::Target(target)) => Some(target),
                    Some(EntryFound::Known(digest)) => {
                        digests.push((file, digest));
                        None
                    }
                    None => None,
                });
            }
            Done::Prepared {
                segment,
                verdicts,
                taken,
                digests,
            }
        };
        let failed = move |error: Error| Done::Prepared {
            segment,
            verdicts: vec![Verdict::Refused(error.at(Side::Receiver)); count],
            taken: vec![None; count],
            digests: Vec::new(),
        };
        core.hand(self.transfer, prepare, failed);
    }

    /// Says what files hold before the word that ends them.
    fn tell_digests(
        &self,
        core: &Core,
        tally: &mut Tally,
        segment: SegmentId,
        digests: Vec<(FileId, Digest)>,
    ) {
        if digests.is_empty() {
            return;
        }
        let digests = Digests {
            transfer: self.transfer,
            segment,
            is_renamed: self.destination.is_renamed(),
            digests,
        };
        tally.digests(&digests);
        core.channel.send(&Message::Digests(digests));
    }

    fn finished(&mut self, core: &mut Core, end: Result<()>) {
        self.end = Some(end);
        let transfer = self.transfer;
        self.forgets_due = Some(
            core.links
                .tell_receivers(|| ReceiveCommand::Forget(transfer)),
        );
        self.discard_when_forgotten(core);
    }

    /// Whatever was not settled goes, once nobody writes to it.
    fn discard_when_forgotten(&mut self, core: &mut Core) {
        if self.forgets_due != Some(0) {
            return;
        }
        self.forgets_due = None;
        let taken: Vec<_> = std::mem::take(&mut self.taken)
            .into_values()
            .flatten()
            .collect();
        let discard = move || {
            let targets = bytes_of(&taken).flatten();
            targets.for_each(|target| target.discard());
            Done::Emptied
        };
        // What could not be handed over was dropped, and the files with it.
        core.hand(self.transfer, discard, |_| Done::Emptied);
    }

    /// The peer wants this end's report once every worker gave its own.
    fn finish_when_told(&mut self, core: &Core, tally: &Tally) {
        if Owed::take_paid(&mut self.reports_due, core.clock.now()) {
            self.machine.finish(tally.own());
        }
    }

    fn ask_for_reports(&mut self, core: &Core) {
        if self.reports_due.is_none() {
            let asked = core.links.tell_receivers(|| ReceiveCommand::Report);
            self.reports_due = Some(Owed::new(asked, core.clock.now()));
        }
    }
}
