//! The sending half of a transfer: carries the state machine's outputs to the
//! workers, the hands and the peer, and their answers back.
//!
//! Leaves to others: every decision (protocol's sender). Invariant: a run is
//! handed to a worker only together with the sources that its plan names.

mod jobs;

use super::core::Core;
use super::inbox::{Done, Opened, OpenedSegment};
use super::owed::Owed;
use super::tally::Tally;
use crate::data::{SendCommand, SendEvent, SendSegment};
use crate::error::{Error, Result, Side};
use crate::files::reflink::Lending;
use crate::files::source::Source;
use crate::files::stream::{StreamNews, StreamSource};
use crate::files::tree::passed_over::PassedOver;
use crate::files::walk::{Batch, Naming, Walk};
use crate::kernel::descriptors::Share;
use crate::options::{DeleteRules, RemoteSource, Transmit};
use crate::protocol::names::Hearing;
use crate::protocol::sender::{Sender, SenderConfig, SenderOutput};
use crate::protocol::session::{PEER_LOST_IT, Way};
use crate::protocol::wire::{Message, Sources};
use crate::protocol::{ConnectionId, FileId, SegmentId, TransferId, Violation};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a sending transfer is made with.
pub(crate) struct SendingOptions {
    pub(crate) chunk_bytes: u32,
    pub(crate) transmit: Transmit,
    pub(crate) drop_cache: bool,
    /// The receiver's, where it hands bytes on in order.
    pub(crate) window_bytes: Option<u64>,
    /// The receiver's files may take so many descriptors, as far as it said so.
    pub(crate) peer_descriptors_max: u32,
    /// What is superfluous at the receiver goes in the end.
    pub(crate) deletes: Option<DeleteRules>,
    /// Offers the sources to a receiver beside it, to share their blocks.
    pub(crate) lending: Option<Lending>,
}

/// What it sends.
pub(crate) struct Supply {
    /// Descriptors for all sources.
    pub(crate) share: Share,
    /// Whether more are to be named.
    pub(crate) hearing: Hearing,
    /// The first of them.
    pub(crate) opened: Opened,
}

const RAN_OUT: &str = "every descriptor was in use: fewer files are open at once";

/// A transfer that sends.
pub(crate) struct SendingHalf {
    transfer: TransferId,
    machine: Sender,
    options: SendingOptions,
    /// What is not open yet; the hands have it while they open more.
    walk: Option<Box<Walk>>,
    /// What was named meanwhile.
    heard: Vec<RemoteSource>,
    hearing: Hearing,
    /// Not even one descriptor was left: none is tried before some come back.
    is_starved: bool,
    /// What tells the names in the end, unless the hands have it.
    naming: Option<Box<Naming>>,
    /// The hands read names.
    is_naming: bool,
    passed_over: PassedOver,
    /// This end's descriptors, until the end.
    _share: Share,
    sources: BTreeMap<SegmentId, Vec<Arc<Source>>>,
    segments: BTreeMap<SegmentId, Arc<SendSegment>>,
    reports_due: Option<Owed>,
    end: Option<Result<()>>,
}

impl SendingHalf {
    /// Offers the first sources over the connections that are there.
    pub(crate) fn start(
        core: &Core,
        tally: &mut Tally,
        transfer: TransferId,
        options: SendingOptions,
        supply: Supply,
    ) -> Self {
        let Supply {
            share,
            hearing,
            opened,
        } = supply;
        let config = SenderConfig {
            transfer,
            chunk_bytes: options.chunk_bytes,
            window_bytes: options.window_bytes,
            bytes_per_second_max: core.links.rate_limit_bytes_per_second(),
            deletes: options.deletes.is_some(),
            may_hold: options.lending.is_some(),
            descriptors_max: share.count(),
            peer_descriptors_max: options.peer_descriptors_max,
        };
        let mut sending = Self {
            transfer,
            machine: Sender::new(config),
            options,
            walk: None,
            heard: Vec::new(),
            hearing,
            is_starved: false,
            naming: None,
            is_naming: false,
            passed_over: PassedOver::default(),
            _share: share,
            sources: BTreeMap::new(),
            segments: BTreeMap::new(),
            reports_due: None,
            end: None,
        };
        sending.offer(tally, opened);
        let now = core.clock.now();
        for connection in core.links.of_way(Way::Out) {
            sending.machine.connection_joined(now, connection);
        }
        sending
    }

    /// Offers what the hands opened: one segment, the last where no name is left.
    fn offer(&mut self, tally: &mut Tally, opened: Opened) {
        let Opened { mut walk, batch } = opened;
        walk.add(self.heard.drain(..));
        if self.hearing.has_all() {
            walk.has_all();
        }
        let is_last = walk.is_over() && self.hearing.has_all();
        self.walk = Some(walk);
        let Batch {
            offered,
            sources,
            ran_out,
            passed_over,
        } = *batch;
        self.passed_over += passed_over;
        self.tell_of(tally, &sources);
        if ran_out {
            self.machine.ran_out_of_descriptors();
            tally.note(RAN_OUT.to_owned());
        }
        self.is_starved = ran_out && sources.is_empty() && !self.sources.is_empty();
        if sources.is_empty() && !is_last {
            return;
        }
        let offer = self.machine.offer(offered, is_last);
        tally.planned(&offer);
        let segment = offer.segment;
        for source in &sources {
            // Generated bytes are there already, all of them.
            if matches!(&**source, Source::Generated(generated) if generated.bytes().is_none()) {
                self.machine.stream_available(segment, u64::MAX, None);
            }
        }
        if let Some(lending) = &self.options.lending {
            lending.offer(segment, &sources);
        }
        self.sources.insert(segment, sources);
    }

    /// What is to be noted of these sources.
    fn tell_of(&self, tally: &mut Tally, sources: &[Arc<Source>]) {
        let mut is_in_memory = false;
        for source in sources {
            let (display, filled_bytes) = match &**source {
                Source::File(file) => {
                    is_in_memory |= file.is_in_memory();
                    (file.display(), file.filled_bytes())
                }
                Source::Later(later) => (later.display(), later.filled_bytes()),
                _ => continue,
            };
            if filled_bytes > 0 {
                tally.note(format!(
                    "{display} has more holes than are kept apart: {filled_bytes} bytes of the smallest were sent as zeros"
                ));
            }
        }
        if self.options.drop_cache && is_in_memory {
            let note = "--drop-cache: the source lies in memory, where nothing can be dropped";
            tally.note(note.to_owned());
        }
    }

    /// Has the hands open what there is room for, and asks for further names
    /// before they run out.
    fn open_next(&mut self, core: &mut Core) {
        let (transfer, room) = (self.transfer, self.machine.room());
        let Some(walk) = self.walk.as_ref().filter(|_| room > 0 && !self.is_starved) else {
            return;
        };
        if walk.runs_out() && self.hearing.wants_more() {
            core.channel.send(&Message::More { transfer });
            self.machine.names_are_due(true);
        }
        if walk.is_empty() && !self.hearing.has_all() {
            return;
        }
        if let Some(walk) = self.walk.take() {
            // While anything moves its end gives some back.
            let waits = self.sources.is_empty();
            let open = move || Done::Opened(Opened::next(walk, room, waits));
            core.hand(transfer, open, |error| Done::Opened(Err(error)));
        }
    }

    /// Has the hands read what the directories hold, where that is wanted.
    fn name_next(&mut self, core: &mut Core) {
        if self.is_naming || !self.machine.wants_names() {
            return;
        }
        let hides_left_out = self.options.deletes.is_some_and(|rules| rules.left_out);
        let walk = &mut self.walk;
        let naming = self.naming.take().or_else(|| {
            let naming = walk.as_mut()?.naming(hides_left_out);
            Some(Box::new(naming))
        });
        let Some(mut naming) = naming else {
            return;
        };
        self.is_naming = true;
        let name = move || {
            let part = naming.next_part();
            Done::Named { naming, part }
        };
        core.hand(self.transfer, name, |error| Done::Opened(Err(error)));
    }

    /// Further names of a pull.
    fn hear_names(&mut self, sources: Sources) -> Result<(), Violation> {
        self.hearing.heard(sources.last)?;
        self.machine.names_are_due(false);
        match &mut self.walk {
            Some(walk) => {
                walk.add(sources.sources);
                if sources.last {
                    walk.has_all();
                }
            }
            None => self.heard.extend(sources.sources),
        }
        Ok(())
    }

    /// What the machine counted.
    pub(crate) fn machine(&self) -> &Sender {
        &self.machine
    }

    /// Ends an endless generated stream where it is.
    pub(crate) fn finish_streams(&mut self) {
        for (segment, sources) in &self.sources {
            if sources
                .iter()
                .any(|source| matches!(&**source, Source::Generated(_)))
            {
                self.machine.end_stream(*segment);
            }
        }
    }

    /// The peer works on what it owes.
    pub(crate) fn peer_works(&mut self) {
        self.machine.peer_works();
    }

    /// Ends the transfer with `error`.
    pub(crate) fn stop(&mut self, error: Error) {
        self.machine.stop(error);
    }

    /// The receiver's window and its descriptors came with `Begun`.
    pub(crate) fn begun(&mut self, window_bytes: Option<u64>, descriptors_max: Option<u32>) {
        self.machine.set_window(window_bytes);
        if let Some(descriptors_max) = descriptors_max {
            self.machine.allow(descriptors_max);
        }
    }

    pub(crate) fn joined(&mut self, core: &Core, connection: ConnectionId) {
        self.machine.connection_joined(core.clock.now(), connection);
    }

    pub(crate) fn lost(&mut self, core: &Core, connection: ConnectionId) {
        self.machine.connection_lost(core.clock.now(), connection);
    }

    /// A message of this transfer.
    pub(crate) fn message(&mut self, core: &Core, tally: &mut Tally, message: Message) {
        let heard = match message {
            Message::Digests(digests) => {
                tally.digests(&digests);
                Ok(())
            }
            Message::Sources(sources) => self.hear_names(sources),
            message => self.machine.handle_message(core.clock.now(), message),
        };
        if let Err(violation) = heard {
            let error = Error::peer(format!("cannot go on with {}", core.peer), violation);
            self.machine.stop(error);
        }
    }

    /// A worker's event, except `Detached`, which is the session's.
    pub(crate) fn event(&mut self, core: &mut Core, tally: &mut Tally, event: SendEvent) {
        match event {
            SendEvent::Sent {
                connection,
                run,
                transfer,
                submitted,
                checks,
                ..
            } => {
                if transfer == self.transfer {
                    tally.sent(submitted);
                    let now = core.clock.now();
                    self.machine
                        .run_sent(now, connection, run, submitted, checks);
                }
            }
            SendEvent::Void {
                transfer,
                segment,
                file,
                chunks,
                error,
            } => {
                if transfer == self.transfer {
                    let error = error.map(|error| error.at(Side::Sender));
                    self.machine.chunks_void(segment, file, chunks, error);
                }
            }
            SendEvent::Report(report) => {
                tally.add_own(*report);
                if let Some(due) = &mut self.reports_due {
                    due.came();
                }
                self.finish_when_told(core, tally);
            }
            SendEvent::Detached { .. } => {}
        }
    }

    /// The hands' answer.
    pub(crate) fn done(&mut self, tally: &mut Tally, done: Done) {
        match done {
            Done::Opened(Ok(opened)) => self.offer(tally, opened),
            Done::Opened(Err(error)) => self.machine.stop(error.at(Side::Sender)),
            Done::SegmentOpened { segment, opened } => match opened {
                Ok(OpenedSegment { data, failed }) => {
                    self.segments.insert(segment, Arc::from(data));
                    self.machine.opened(segment, failed);
                }
                Err(error) => self.machine.stop(error.at(Side::Sender)),
            },
            Done::Named { naming, part } => {
                self.is_naming = false;
                self.naming = Some(naming);
                let is_last = part.is_none();
                let part = part.unwrap_or_default();
                self.machine.names(part.folders, part.listings, is_last);
            }
            Done::Looked { segment, files } => {
                for (file, result) in files {
                    let result = result.map_err(|error| error.at(Side::Sender));
                    self.machine.looked(segment, file, result);
                }
            }
            Done::Rechecked {
                segment,
                chunk,
                result,
            } => {
                let result = result.map_err(|error| error.at(Side::Sender));
                self.machine.rechecked(segment, chunk, result);
            }
            _ => {}
        }
    }

    /// A stream's reader got further.
    pub(crate) fn stream(&mut self, news: StreamNews) {
        let Some(segment) = self.stream_segment() else {
            return;
        };
        match news.error {
            Some(error) => self.machine.file_failed(segment, 0, error.at(Side::Sender)),
            None => self
                .machine
                .stream_available(segment, news.complete_chunks, news.end_bytes),
        }
    }

    fn stream_segment(&self) -> Option<SegmentId> {
        let is_stream = |source: &Arc<Source>| matches!(**source, Source::Stream(_));
        self.sources
            .iter()
            .find(|(_, sources)| sources.iter().any(is_stream))
            .map(|(id, _)| *id)
    }

    /// Carries all outputs out; the result is there once nothing is left.
    pub(crate) fn pump(&mut self, core: &mut Core, tally: &mut Tally) -> Option<Result<()>> {
        self.finish_when_told(core, tally);
        while let Some(output) = self.machine.poll(core.clock.now()) {
            self.carry(core, tally, output);
        }
        self.open_next(core);
        self.name_next(core);
        if core.hands_empty() && self.reports_due.is_none() {
            self.end.take()
        } else {
            None
        }
    }

    fn carry(&mut self, core: &mut Core, tally: &mut Tally, output: SenderOutput) {
        match output {
            SenderOutput::Message(message) => core.channel.send(&message),
            SenderOutput::Segment {
                segment,
                plan,
                seed,
                unwanted,
            } => {
                let Some(known) = self.sources.get_mut(&segment) else {
                    return self.machine.stop(never_offered(segment));
                };
                let_go(known, unwanted);
                let mut sources = known.clone();
                if let Some(lending) = &self.options.lending {
                    tally.held(segment, &plan);
                    lending.take_back(segment, &mut sources);
                    if let Err(error) = lending.check(&plan) {
                        return self.machine.stop(error);
                    }
                }
                let data = SendSegment {
                    transfer: self.transfer,
                    segment,
                    plan,
                    seed,
                    sources: sources.into_iter().map(Some).collect(),
                    transmit: self.options.transmit,
                    drop_cache: self.options.drop_cache,
                };
                self.open_wanted(core, data);
            }
            SenderOutput::Run {
                connection,
                run,
                bytes,
            } => {
                if let Some(segment) = self.segments.get(&run.segment) {
                    core.links.send_run(connection, segment.clone(), run, bytes);
                }
            }
            SenderOutput::Look { segment, files } => self.look(core, segment, files),
            SenderOutput::Recheck { segment, chunk } => self.recheck(core, segment, chunk),
            SenderOutput::CloseConnection { connection } => {
                core.links.detach(connection, PEER_LOST_IT);
            }
            SenderOutput::Landed {
                connection,
                segment,
                chunks,
                bytes,
                submitted,
                acknowledged,
            } => {
                if let Some(connection) = connection {
                    core.links.count(connection, bytes);
                }
                tally.landed();
                let took = acknowledged.saturating_sub(submitted);
                tally.latencies.landed.record(took, chunks.count);
                let sources = self.sources.get(&segment).into_iter().flatten();
                streams(sources).for_each(|stream| stream.release(chunks));
            }
            SenderOutput::FileEnded {
                segment,
                file,
                size,
                result,
            } => match self.missing(segment, file) {
                // Whatever became of what was offered in its place.
                Some(error) => tally.missing(segment, file, error),
                None => tally.ended(segment, file, size, &result),
            },
            SenderOutput::SegmentDone { segment } => {
                self.is_starved = false;
                self.sources.remove(&segment);
                let data = self.segments.remove(&segment);
                self.forget_pages(core, data);
            }
            SenderOutput::Deleted(deletions) => tally.deleted(&deletions),
            SenderOutput::Finish => {
                self.ask_for_reports(core);
                self.finish_when_told(core, tally);
            }
            SenderOutput::Done { report } => {
                tally.set_peer(*report);
                self.end = Some(Ok(()));
            }
            SenderOutput::Failed(error) => {
                // Its reader may wait for input that never comes.
                streams(self.sources.values().flatten()).for_each(StreamSource::stop);
                self.end = Some(Err(error));
                // What ran until then is told, too.
                self.ask_for_reports(core);
                self.finish_when_told(core, tally);
            }
        }
    }

    /// Why the file was not there to be sent.
    fn missing(&self, segment: SegmentId, file: FileId) -> Option<Error> {
        match &**self.sources.get(&segment)?.get(file as usize)? {
            Source::Missing(missing) => Some(missing.error().clone()),
            _ => None,
        }
    }

    /// The peer wants this end's report once every worker gave its own.
    fn finish_when_told(&mut self, core: &Core, tally: &mut Tally) {
        if Owed::take_paid(&mut self.reports_due, core.clock.now()) {
            tally.lose(self.passed_over.sentences());
            self.machine.finish(tally.own());
        }
    }

    fn ask_for_reports(&mut self, core: &Core) {
        if self.reports_due.is_none() {
            let asked = core.links.tell_senders(|| SendCommand::Report);
            self.reports_due = Some(Owed::new(asked, core.clock.now()));
        }
    }
}

/// Closes files of which nothing is wanted: their descriptors are for others.
fn let_go(sources: &mut [Arc<Source>], unwanted: Vec<FileId>) {
    for file in unwanted {
        if let Some(source) = sources.get_mut(file as usize)
            && let Source::File(open) = &**source
        {
            *source = Arc::new(Source::Node(open.display().to_owned()));
        }
    }
}

/// A fault of haul: without its sources a segment's bytes cannot be read.
fn never_offered(segment: SegmentId) -> Error {
    let why = format!("segment {segment} was answered and never offered");
    Error::local("cannot go on with the transfer", why)
}

/// Those of `sources` that are streams.
fn streams<'a>(
    sources: impl Iterator<Item = &'a Arc<Source>>,
) -> impl Iterator<Item = &'a StreamSource> {
    sources.filter_map(|source| match &**source {
        Source::Stream(stream) => Some(stream),
        _ => None,
    })
}
