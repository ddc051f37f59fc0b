//! What a receiving worker has, and what all of its parts ask of it.
//!
//! Leaves to others: the loop (worker), connections (intake), blocks (landing)
//! and standard output (ordered). Invariant: an event is told in the order in
//! which it happened; only what landed waits a little for its neighbours.

use super::block::{Landing, Write};
use super::connection::ReceiveConnection;
use super::counts::Counts;
use super::pool::ReceivePool;
use super::segment::target;
use super::stock::Stock;
use super::stream::Ordered;
use super::windows::{LandingWindows, Pace};
use crate::data::slab::Slab;
use crate::data::{Clock, ReceiveCommand, ReceiveEvent, ReceiveEvents, ReceiveSegment};
use crate::error::{Error, Result, Side};
use crate::kernel::queue::Reader;
use crate::kernel::ring::{Handle, Ring};
use crate::limits;
use crate::protocol::{ConnectionId, FileId, Nanos, SegmentId, TransferId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Operations in flight, at most: a receive and a cancellation for each
/// connection, and the writes of all blocks.
const IN_FLIGHT_MAX: u32 = 1024;
/// Room that writes leave in the ring for receives and cancellations.
pub const RING_ROOM_MIN: usize = 2 * limits::CONNECTIONS_MAX as usize + 32;

/// A segment that frames may come for.
pub struct Open {
    /// The segment.
    pub segment: Arc<ReceiveSegment>,
    /// Its place in `streams`, where its sink takes bytes only in order.
    pub(super) stream: Option<usize>,
}

/// One receiving worker.
pub struct ReceiveWorker {
    pub(super) ring: Ring,
    pub(super) commands: Arc<Reader<ReceiveCommand>>,
    pub(super) commands_handle: Handle,
    /// True while a poll of the command queue is in flight.
    pub(super) polling: bool,
    pub(super) events: ReceiveEvents,
    pub(super) clock: Clock,
    pub(super) connections: Slab<ReceiveConnection>,
    pub(super) segments: HashMap<(TransferId, SegmentId), Open>,
    /// The highest segment that was opened, by transfer.
    pub(super) opened: HashMap<TransferId, SegmentId>,
    pub(super) forgotten: VecDeque<TransferId>,
    /// Forgotten, and not yet answered.
    pub(super) forgetting: Vec<TransferId>,
    pub(super) pool: ReceivePool,
    pub(super) windows: LandingWindows,
    /// Connections that wait for a block or a window, first come first served.
    pub(super) queue: VecDeque<usize>,
    pub(super) landings: Slab<Landing>,
    pub(super) writes: Slab<Write>,
    pub(super) streams: Slab<Ordered>,
    /// Streams whose sink said "not now".
    pub(super) retries: Vec<usize>,
    /// Files whose write failed.
    pub(super) failed: HashSet<(TransferId, SegmentId, FileId)>,
    /// A file system refused a direct write that should have been possible.
    pub(super) direct_refused: bool,
    /// Of the blocks that wait for direct writes.
    pub(super) direct_bytes: usize,
    pub(super) counts: Counts,
    /// What landed and was not told yet, and since when.
    pub(super) untold: Vec<ReceiveEvent>,
    pub(super) untold_since: Nanos,
    pub(super) stopping: bool,
}

const _: () = assert!(IN_FLIGHT_MAX as usize > 2 * RING_ROOM_MIN);

/// How each sentence about a connection begins.
pub fn cannot_receive(connection: ConnectionId) -> String {
    format!("cannot receive on data connection {connection}")
}

impl ReceiveWorker {
    /// A worker for the calling thread.
    ///
    /// # Errors
    /// No ring on this machine.
    pub fn new(
        commands: Reader<ReceiveCommand>,
        events: ReceiveEvents,
        clock: Clock,
        stock: Arc<Stock>,
        pace: Pace,
    ) -> Result<Self> {
        let commands = Arc::new(commands);
        Ok(Self {
            ring: Ring::new(IN_FLIGHT_MAX)?,
            commands_handle: Handle::of(&commands, |commands| commands.as_fd()),
            commands,
            polling: false,
            events,
            clock,
            connections: Slab::default(),
            segments: HashMap::new(),
            opened: HashMap::new(),
            forgotten: VecDeque::new(),
            forgetting: Vec::new(),
            pool: ReceivePool::new(stock),
            windows: LandingWindows::new(pace),
            queue: VecDeque::new(),
            landings: Slab::default(),
            writes: Slab::default(),
            streams: Slab::default(),
            retries: Vec::new(),
            failed: HashSet::new(),
            direct_refused: false,
            direct_bytes: 0,
            counts: Counts::default(),
            untold: Vec::new(),
            untold_since: 0,
            stopping: false,
        })
    }

    /// Tells what happened; what landed is told a little later, together with
    /// what lands meanwhile, but before anything else.
    pub(super) fn tell(&mut self, event: ReceiveEvent) {
        if matches!(event, ReceiveEvent::Landed { .. }) {
            if self.untold.is_empty() {
                self.untold_since = self.clock.now();
            }
            if let Some(event) = joined(self.untold.last_mut(), event) {
                self.untold.push(event);
            }
            return;
        }
        self.flush();
        self.send(event);
    }

    /// Tells what landed.
    pub(super) fn flush(&mut self) {
        let mut untold = std::mem::take(&mut self.untold);
        untold.drain(..).for_each(|event| self.send(event));
        self.untold = untold;
    }

    fn send(&mut self, event: ReceiveEvent) {
        // Nobody listens any more: the command queue is closed as well, or
        // will be, and that stops the worker.
        let _ = self.events.send(event);
    }

    /// True when nobody wants to hear of the segment any more.
    pub(super) fn is_over(&self, segment: &ReceiveSegment) -> bool {
        let key = (segment.transfer, segment.segment);
        !self.segments.contains_key(&key)
    }

    pub(super) fn is_forgotten(&self, transfer: TransferId) -> bool {
        self.forgotten.contains(&transfer)
    }

    pub(super) fn ordered_of(&self, segment: &ReceiveSegment) -> Option<usize> {
        let key = (segment.transfer, segment.segment);
        self.segments.get(&key)?.stream
    }

    pub(super) fn is_wanted(&self, segment: &ReceiveSegment, file: FileId) -> bool {
        target(segment, file).is_some()
            && (self.failed.is_empty()
                || !self
                    .failed
                    .contains(&(segment.transfer, segment.segment, file)))
    }

    /// The file cannot be completed: said once, later pieces are skipped.
    pub(super) fn fail(&mut self, segment: &ReceiveSegment, file: FileId, error: Error) {
        let key = (segment.transfer, segment.segment, file);
        if self.failed.insert(key) && !self.is_over(segment) {
            self.tell(ReceiveEvent::Failed {
                transfer: segment.transfer,
                segment: segment.segment,
                file,
                error: error.at(Side::Receiver),
            });
        }
    }
}

/// Joins what landed to what landed just before it on the same connection;
/// gives it back where they are no neighbours.
fn joined(last: Option<&mut ReceiveEvent>, event: ReceiveEvent) -> Option<ReceiveEvent> {
    let (
        Some(ReceiveEvent::Landed {
            transfer,
            segment,
            connection,
            chunks,
            bytes,
        }),
        ReceiveEvent::Landed {
            transfer: next_transfer,
            segment: next_segment,
            connection: next_connection,
            chunks: next,
            bytes: more,
        },
    ) = (last, &event)
    else {
        return Some(event);
    };
    let same =
        (*transfer, *segment, *connection) == (*next_transfer, *next_segment, *next_connection);
    if !same || chunks.first + chunks.count != next.first {
        return Some(event);
    }
    chunks.count += next.count;
    *bytes += more;
    None
}
