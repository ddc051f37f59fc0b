//! One data connection as its worker sees it.
//!
//! Leaves to others: the ring, the ledger and the files. Invariant: at most
//! one receive is in flight, into the head or into what is being filled, and
//! `landings` counts the blocks of this connection that still have a write to
//! be reaped.

use super::frame::{Filling, Frame};
use crate::error::Error;
use crate::kernel::memory::{Arena, Block};
use crate::kernel::page::PAGE_BYTES;
use crate::kernel::ring::Handle;
use crate::kernel::socket;
use crate::limits;
use crate::protocol::check::Check;
use crate::protocol::frame::{CHECK_BYTES, FrameHeader, HEADER_BYTES};
use crate::protocol::{ConnectionId, SegmentId, TransferId};
use crate::report::ConnectionReport;
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;

/// The longest header and table: what is read ahead of a payload. A payload's
/// first bytes come with it and are copied into their block; of a run of 8 MiB
/// that is a two-thousandth, and it saves a receive.
const HEAD_BYTES_MAX: usize = HEADER_BYTES + CHECK_BYTES * limits::RUN_CHUNKS_MAX as usize;

/// What a receive in flight fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// Nothing is in flight.
    Nothing,
    /// The head.
    Head,
    /// The filling's block.
    Payload,
    /// A window of that segment's target.
    InPlace((TransferId, SegmentId)),
}

/// One data connection.
pub struct ReceiveConnection {
    /// Its number in the session.
    pub number: ConnectionId,
    /// Its socket.
    pub socket: Handle,
    /// What is in flight.
    pub in_flight: InFlight,
    /// The frame that is coming in; `None` between frames.
    pub frame: Option<Frame>,
    /// What its payload comes into.
    pub filling: Option<Filling>,
    /// True while it stands in the queue for a block.
    pub waiting: bool,
    /// Blocks of it with a write that was not reaped.
    pub landings: u32,
    /// It was shut down, and why, where that was not asked for; it goes when
    /// nothing of it is in flight.
    pub leaving: Option<Option<Error>>,
    /// Payload bytes since the last report.
    pub bytes: u64,
    /// What comes before payloads; `None` while it is lent to the ring.
    pub head: Option<Arc<Block>>,
    /// The part of the head that was received and not used.
    unread: Range<usize>,
    /// Memory for the next frame's table.
    spare: Vec<Check>,
}

impl ReceiveConnection {
    /// A connection that nothing came from yet.
    ///
    /// # Errors
    /// The errno when there is no memory for its head.
    pub fn new(number: ConnectionId, socket: Handle) -> Result<Self, Errno> {
        let (_, mut blocks) = Arena::new(HEAD_BYTES_MAX.next_multiple_of(PAGE_BYTES), 1, false)?;
        Ok(Self {
            number,
            socket,
            in_flight: InFlight::Nothing,
            frame: None,
            filling: None,
            waiting: false,
            landings: 0,
            leaving: None,
            bytes: 0,
            head: blocks.pop(),
            unread: 0..0,
            spare: Vec::new(),
        })
    }

    /// True when nothing of it is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight == InFlight::Nothing && self.landings == 0
    }

    /// True when the last byte that came ended a frame, or none came.
    pub fn is_between_frames(&self) -> bool {
        self.frame.is_none() && self.unread.is_empty()
    }

    /// The next header and its table, once both are there.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn next_frame(
        &mut self,
    ) -> Result<Option<(FrameHeader, Vec<Check>)>, crate::protocol::Violation> {
        let Some(head) = &self.head else {
            return Ok(None);
        };
        let unread = &head.as_slice()[self.unread.clone()];
        let Some(header) = unread.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header)?;
        // At most RUN_CHUNKS_MAX: decoding checked it.
        let end = HEADER_BYTES + CHECK_BYTES * header.count as usize;
        let Some(table) = unread.get(HEADER_BYTES..end) else {
            return Ok(None);
        };
        let mut checks = std::mem::take(&mut self.spare);
        checks.clear();
        checks.extend(table.as_chunks::<CHECK_BYTES>().0);
        self.unread.start += end;
        Ok(Some((header, checks)))
    }

    /// Moves what is unread to the front; gives the head and the range to
    /// receive into, which is never empty: a whole header and table fit.
    pub fn lend_head(&mut self) -> Option<(Arc<Block>, Range<usize>)> {
        let mut head = self.head.take()?;
        let block = Arc::get_mut(&mut head).expect("a head has one holder");
        block.as_mut_slice().copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        Some((head, self.unread.end..HEAD_BYTES_MAX))
    }

    /// `bytes` came into the head.
    pub fn head_came(&mut self, head: Arc<Block>, bytes: usize) {
        self.head = Some(head);
        self.unread.end += bytes;
    }

    /// Copies what is unread to where the payload comes, as much as belongs there.
    pub fn drain_head(&mut self) {
        let (Some(head), Some(filling), Some(frame)) = (&self.head, &mut self.filling, &self.frame)
        else {
            return;
        };
        let bytes = self.unread.len().min(filling.bytes - filling.filled);
        if bytes == 0 {
            return;
        }
        let from = self.unread.start..self.unread.start + bytes;
        if filling.copy_in(&head.as_slice()[from]) {
            self.unread.start += bytes;
            filling.advance(frame, bytes);
        }
    }

    /// The rest of the frame is read and forgotten; nothing of it may be in
    /// flight.
    pub fn forget_payload(&mut self) {
        if let (Some(filling), Some(frame)) = (self.filling.take(), &mut self.frame) {
            frame.forget(filling.bytes - filling.filled);
        }
    }

    /// The frame is over: its table's memory serves the next.
    pub fn end_frame(&mut self) -> Option<Frame> {
        self.frame.take()
    }

    /// Takes a table's memory back.
    pub fn recycle(&mut self, checks: Vec<Check>) {
        self.spare = checks;
    }

    /// What the report tells of it; the bytes are since the last report.
    pub fn report(&mut self) -> ConnectionReport {
        let facts = socket::facts(&self.socket);
        ConnectionReport {
            connection: self.number,
            bytes: std::mem::take(&mut self.bytes),
            path: String::new(),
            send_buffer_bytes: facts.send_buffer_bytes,
            receive_buffer_bytes: facts.receive_buffer_bytes,
            congestion_control: facts.congestion_control,
            tcp: socket::tcp_info(&self.socket),
            lost: match &self.leaving {
                Some(Some(error)) => Some(error.sentence.clone()),
                _ => None,
            },
        }
    }
}
