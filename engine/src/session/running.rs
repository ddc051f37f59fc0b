//! The transfer that runs in a session, and what it runs on.
//!
//! Leaves to others: starting it and telling its end (the roles), and when the
//! session ends. Invariant: one transfer runs at a time, and each that began is
//! handed out once with its end.

use super::core::Core;
use super::destination::{Asked, Making};
use super::event::{Event, Progress, Update};
use super::inbox::{Done, Opened, StopHow};
use super::receiving_half::ReceivingHalf;
use super::sending_half::{SendingHalf, SendingOptions, Supply};
use super::tally::Tally;
use crate::data::{ReceiveEvent, SendEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::files::stream::StreamNews;
use crate::kernel::descriptors::Share;
use crate::protocol::names::Saying;
use crate::protocol::session::Way;
use crate::protocol::wire::Message;
use crate::protocol::{ConnectionId, Nanos, TransferId};
use crate::report::{Bytes, Report};
use std::collections::VecDeque;
use std::sync::mpsc;

/// What is asked of a transfer while its sources are being opened.
#[derive(Default)]
pub(crate) struct Opening {
    /// To end.
    stopped: Option<Error>,
    /// What a stream's reader told; each telling replaces the last.
    news: Option<StreamNews>,
    /// To end its generated streams before they began.
    finished: bool,
}

/// What an active transfer is doing.
enum Half {
    /// The hands open the sources.                      To: Sending, Receiving.
    Opening(Opening),
    /// Segments go out.                                  From: Opening.
    Sending(Box<SendingHalf>),
    /// Segments come in.                                 From: Opening.
    Receiving(Box<ReceivingHalf>),
}

/// The transfer that runs.
pub(crate) struct Active {
    pub(crate) transfer: TransferId,
    pub(crate) tally: Tally,
    chunk_bytes: u32,
    half: Half,
}

impl Active {
    /// One that was asked for at `asked`, by `updates` where a caller follows it.
    pub(crate) fn new(
        core: &Core,
        transfer: TransferId,
        chunk_bytes: u32,
        asked: Nanos,
        updates: Option<mpsc::Sender<Update>>,
    ) -> Self {
        Self {
            transfer,
            tally: Tally::new(core.clock, asked, updates),
            chunk_bytes,
            half: Half::Opening(Opening::default()),
        }
    }

    /// True unless it receives.
    pub(crate) fn sends(&self) -> bool {
        !matches!(self.half, Half::Receiving(_))
    }

    /// Ends it with `error`; its end follows.
    pub(crate) fn stop(&mut self, error: Error) {
        match &mut self.half {
            Half::Opening(opening) => opening.stopped = Some(error),
            Half::Sending(sending) => sending.stop(error),
            Half::Receiving(receiving) => receiving.stop(error),
        }
    }

    /// Ends its generated streams where they are; false where the peer makes them.
    pub(crate) fn finish_streams(&mut self) -> bool {
        match &mut self.half {
            Half::Opening(opening) => opening.finished = true,
            Half::Sending(sending) => sending.finish_streams(),
            Half::Receiving(_) => return false,
        }
        true
    }

    fn bytes(&self) -> Bytes {
        match &self.half {
            Half::Opening(_) => Bytes::default(),
            Half::Sending(sending) => sending.machine().counts(),
            Half::Receiving(receiving) => receiving.machine().counts(),
        }
    }

    fn is_deleting(&self) -> bool {
        match &self.half {
            Half::Opening(_) => false,
            Half::Sending(sending) => sending.machine().is_deleting(),
            Half::Receiving(receiving) => receiving.machine().is_deleting(),
        }
    }

    fn planned(&self) -> Option<u64> {
        match &self.half {
            Half::Opening(_) => None,
            Half::Receiving(receiving) if !receiving.machine().is_planned() => None,
            Half::Sending(sending) if !sending.machine().is_planned() => None,
            Half::Sending(_) | Half::Receiving(_) if self.tally.has_open_stream() => None,
            Half::Sending(_) | Half::Receiving(_) => Some(self.bytes().planned),
        }
    }

    /// Its report, and the caller who waits for it.
    pub(crate) fn report(
        self,
        end: Result<()>,
        authenticated: bool,
    ) -> (Report, Option<mpsc::Sender<Update>>) {
        let (bytes, sends) = (self.bytes(), self.sends());
        let caller = self.tally.caller();
        let report = self
            .tally
            .report(end, bytes, self.chunk_bytes, sends, authenticated);
        (report, caller)
    }
}

/// What runs in a session.
pub(crate) struct Running {
    pub(crate) core: Core,
    active: Option<Active>,
    /// Transfers whose end the role has not heard yet.
    ended: VecDeque<(Active, Result<()>)>,
    /// What was planned when it was last told.
    told_planned: Option<(u64, Option<u64>)>,
}

impl Running {
    /// Nothing yet.
    pub(crate) fn new(core: Core) -> Self {
        Self {
            core,
            active: None,
            ended: VecDeque::new(),
            told_planned: None,
        }
    }

    /// The transfer that runs.
    pub(crate) fn active(&mut self) -> Option<&mut Active> {
        self.active.as_mut()
    }

    /// True while one runs.
    pub(crate) fn is_busy(&self) -> bool {
        self.active.is_some()
    }

    /// The active transfer, if it is that one.
    pub(crate) fn of(&mut self, transfer: TransferId) -> Option<&mut Active> {
        self.active
            .as_mut()
            .filter(|active| active.transfer == transfer)
    }

    /// A transfer begins; none runs.
    pub(crate) fn begin(&mut self, active: Active) {
        self.active = Some(active);
        self.core.links.reset_counts();
    }

    /// Its first sources are open: it sends them, as was asked of it meanwhile.
    pub(crate) fn send(&mut self, options: SendingOptions, supply: Supply) {
        let Some(active) = &mut self.active else {
            return;
        };
        let transfer = active.transfer;
        let mut sending =
            SendingHalf::start(&self.core, &mut active.tally, transfer, options, supply);
        if let Half::Opening(opening) = &mut active.half {
            if let Some(news) = opening.news.take() {
                sending.stream(news);
            }
            if opening.finished {
                sending.finish_streams();
            }
        }
        active.half = Half::Sending(Box::new(sending));
    }

    /// It receives, to where was asked.
    ///
    /// # Errors
    /// No worker thread can be started.
    pub(crate) fn receive(
        &mut self,
        asked: Asked,
        making: Making,
        share: Share,
        saying: Saying,
    ) -> Result<()> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let (transfer, chunk_bytes) = (active.transfer, active.chunk_bytes);
        let core = &mut self.core;
        let receiving =
            ReceivingHalf::start(core, transfer, chunk_bytes, asked, making, share, saying)?;
        active.half = Half::Receiving(Box::new(receiving));
        Ok(())
    }

    /// The active transfer is over.
    pub(crate) fn end(&mut self, end: Result<()>) {
        self.tell_progress();
        self.told_planned = None;
        if let Some(active) = self.active.take() {
            self.ended.push_back((active, end));
            self.core.machine.transfer_ended();
        }
    }

    /// Tells the peer that the active transfer ends, and ends it.
    pub(crate) fn refuse(&mut self, error: Error) {
        if let Some(active) = &self.active {
            let message = Message::Abort {
                transfer: active.transfer,
                error: error.clone(),
            };
            self.core.channel.send(&message);
        }
        self.end(Err(error));
    }

    /// The next transfer whose end is to be told.
    pub(crate) fn take_ended(&mut self) -> Option<(Active, Result<()>)> {
        self.ended.pop_front()
    }

    /// Carries the machine's outputs out.
    pub(crate) fn pump(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let end = match &mut active.half {
            Half::Opening(_) => None,
            Half::Sending(sending) => sending.pump(&mut self.core, &mut active.tally),
            Half::Receiving(receiving) => receiving.pump(&mut self.core, &mut active.tally),
        };
        if let Some(end) = end {
            self.end(end);
        }
    }

    /// A sending worker's event, except `Detached`.
    pub(crate) fn sent(&mut self, event: SendEvent) {
        if let Some(active) = &mut self.active
            && let Half::Sending(sending) = &mut active.half
        {
            sending.event(&mut self.core, &mut active.tally, event);
        }
    }

    /// A receiving worker's event, except `Detached`.
    pub(crate) fn received(&mut self, event: ReceiveEvent) {
        if let Some(active) = &mut self.active
            && let Half::Receiving(receiving) = &mut active.half
        {
            receiving.event(&mut self.core, &mut active.tally, event);
        }
    }

    /// The worker has let go of a connection, `why`.
    pub(crate) fn detached(&mut self, connection: ConnectionId, why: &str) {
        let Some(active) = &mut self.active else {
            return;
        };
        match &mut active.half {
            Half::Sending(sending) => sending.lost(&self.core, connection),
            Half::Receiving(receiving) => receiving.reaped(connection),
            Half::Opening(_) => {}
        }
        active.tally.tell(Event::ConnectionLost {
            connection,
            why: why.to_owned(),
        });
    }

    /// True while nothing may be sent, as no segment was answered.
    pub(crate) fn waits_for_answer(&self) -> bool {
        match self.active.as_ref().map(|active| &active.half) {
            None | Some(Half::Opening(_)) => true,
            Some(Half::Sending(sending)) => !sending.machine().is_answered(),
            Some(Half::Receiving(_)) => false,
        }
    }

    /// A data connection is in; what was left to haul is noted.
    pub(crate) fn joined(&mut self, connection: ConnectionId, way: Way, notes: Vec<String>) {
        tracing::debug!(connection, ?way, "a data connection joined");
        let Some(active) = &mut self.active else {
            return;
        };
        notes.into_iter().for_each(|note| active.tally.note(note));
        active.tally.tell(Event::ConnectionJoined { connection });
        if let (Half::Sending(sending), Way::Out) = (&mut active.half, way) {
            sending.joined(&self.core, connection);
        }
    }

    /// The peer began its half of the transfer.
    pub(crate) fn begun(&mut self, window_bytes: Option<u64>, descriptors_max: Option<u32>) {
        if let Some(Half::Sending(sending)) = self.active.as_mut().map(|active| &mut active.half) {
            sending.begun(window_bytes, descriptors_max);
        }
    }

    /// What the peer says of a data connection.
    pub(crate) fn connection_message(&mut self, message: Message) {
        let half = self
            .active
            .as_mut()
            .map(|active| (&mut active.half, &mut active.tally));
        match (half, message) {
            (Some((Half::Sending(sending), tally)), message @ Message::Freed { .. }) => {
                sending.message(&self.core, tally, message);
            }
            (Some((Half::Receiving(receiving), tally)), message @ Message::Lost { .. }) => {
                receiving.message(&self.core, tally, message);
            }
            // Nothing of it is awaited here.
            (_, Message::Lost { connection } | Message::Freed { connection }) => {
                self.core.machine.bar(connection);
            }
            _ => {}
        }
    }

    /// A message of the transfer that runs.
    pub(crate) fn message(&mut self, message: Message) {
        let Some(active) = &mut self.active else {
            return;
        };
        match &mut active.half {
            Half::Sending(sending) => sending.message(&self.core, &mut active.tally, message),
            Half::Receiving(receiving) => receiving.message(&self.core, &mut active.tally, message),
            Half::Opening(opening) => {
                if let Message::Abort { error, .. } = message {
                    opening.stopped = Some(error);
                }
            }
        }
    }

    /// The peer works on what it owes.
    pub(crate) fn peer_works(&mut self) {
        match self.active.as_mut().map(|active| &mut active.half) {
            Some(Half::Sending(sending)) => sending.peer_works(),
            Some(Half::Receiving(receiving)) => receiving.peer_works(),
            Some(Half::Opening(_)) | None => {}
        }
    }

    /// True while workers do what the peer's next word waits for: runs that go out,
    /// and files of an ended transfer that are let go of.
    pub(crate) fn is_working(&self) -> bool {
        match self.active.as_ref().map(|active| &active.half) {
            Some(Half::Sending(sending)) => sending.machine().is_sending(),
            Some(Half::Receiving(receiving)) => receiving.is_leaving(),
            Some(Half::Opening(_)) | None => false,
        }
    }

    /// A caller stops a transfer.
    pub(crate) fn stop(&mut self, transfer: TransferId, stop: StopHow) {
        let Some(active) = self.of(transfer) else {
            return;
        };
        match stop {
            StopHow::Interrupt => active.stop(Error::new(
                ErrorKind::Interrupted,
                "the transfer was interrupted",
            )),
            StopHow::Finish if active.finish_streams() => {}
            StopHow::Finish => self.core.channel.send(&Message::EndStreams { transfer }),
        }
    }

    /// A stream's reader got further.
    pub(crate) fn stream(&mut self, transfer: TransferId, news: StreamNews) {
        match self.of(transfer).map(|active| &mut active.half) {
            Some(Half::Sending(sending)) => sending.stream(news),
            Some(Half::Opening(opening)) => opening.news = Some(news),
            Some(Half::Receiving(_)) | None => {}
        }
    }

    /// The hands' answer; its sources, where they were opened for the active
    /// transfer.
    pub(crate) fn done(&mut self, transfer: TransferId, done: Done) -> Option<Result<Opened>> {
        let active = self
            .active
            .as_mut()
            .filter(|active| active.transfer == transfer)?;
        match (&mut active.half, done) {
            (Half::Opening(opening), Done::Opened(files)) => {
                return Some(opening.stopped.take().map_or(files, Err));
            }
            (Half::Opening(_), _) => {}
            (Half::Sending(sending), done) => sending.done(&mut active.tally, done),
            (Half::Receiving(receiving), done) => {
                receiving.done(&mut self.core, &mut active.tally, done);
            }
        }
        None
    }

    /// When the transfer goes on by itself, as it waits for a limited rate.
    pub(crate) fn wakes_at(&self) -> Option<Nanos> {
        match self.active.as_ref().map(|active| &active.half) {
            Some(Half::Sending(sending)) => sending.machine().wakes_at(),
            _ => None,
        }
    }

    /// Tells how far the transfer is.
    pub(crate) fn tell_progress(&mut self) {
        let Some(active) = &self.active else { return };
        let way = if active.sends() { Way::Out } else { Way::In };
        let (bytes, planned_bytes) = (active.bytes(), active.planned());
        let planned = (active.tally.file_count(), planned_bytes);
        if self.told_planned != Some(planned) {
            self.told_planned = Some(planned);
            active.tally.tell(Event::Planned {
                files: planned.0,
                bytes: planned.1,
            });
        }
        if active.tally.is_watched() {
            active.tally.tell(Event::Progress(Progress {
                landed_bytes: bytes.landed,
                planned_bytes,
                found_bytes: bytes.planned,
                deleted: active.is_deleting().then(|| active.tally.deleted_count()),
                files: active.tally.file_count(),
                ended_files: active.tally.ended_count(),
                seconds: active.tally.seconds(),
                connections: self.core.links.progress(way),
            }));
        }
    }
}
