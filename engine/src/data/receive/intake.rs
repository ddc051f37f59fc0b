//! What happens with one connection: receive, find out what a frame is for,
//! fill blocks or files, and leave.
//!
//! Leaves to others: what becomes of what is full. Invariants: the ledger is
//! asked once for each frame, before a byte of its payload is anywhere; a
//! connection that breaks the protocol or ends inside a frame leaves with the
//! reason; grants return only when nothing of it is in flight.

use super::connection::InFlight;
use super::frame::{Filling, Frame, Purpose, Room, check_header};
use super::in_place::SpotFound;
use super::segment::{chunk_range, ledger};
use super::state::{ReceiveWorker, cannot_receive};
use super::token;
use crate::data::ReceiveEvent;
use crate::error::{Error, why};
use crate::kernel::memory::Block;
use crate::kernel::socket;
use crate::protocol::check::Check;
use crate::protocol::frame::FrameHeader;
use crate::protocol::ledger::Admission;
use crate::protocol::{ConnectionId, Violation};
use rustix::io::Errno;
use std::sync::Arc;

impl ReceiveWorker {
    /// Goes on with the connection as far as possible.
    pub(super) fn advance(&mut self, slot: usize) {
        while self.step(slot) {}
    }

    /// One step; false when it must wait for something.
    fn step(&mut self, slot: usize) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else {
            return false;
        };
        let lent = connection.in_flight != InFlight::Nothing;
        if connection.leaving.is_some() || lent || connection.waiting {
            return false;
        }
        let Some(frame) = &connection.frame else {
            return self.step_head(slot);
        };
        if connection.filling.is_none() {
            if frame.is_done() {
                self.end_frame(slot);
                return true;
            }
            return self.step_room(slot);
        }
        connection.drain_head();
        let Some(filling) = &mut connection.filling else {
            return false;
        };
        if filling.cut_off {
            self.fail_cut_off(slot);
            return false;
        }
        if filling.is_full() {
            self.land(slot);
            return true;
        }
        self.receive_payload(slot);
        false
    }

    fn receive_payload(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let (Some(filling), Some(frame)) = (&mut connection.filling, &connection.frame) else {
            return;
        };
        let range = filling.filled..filling.bytes;
        // The first receive takes what is there, so that it is checked
        // while the rest comes (measured 1.14–1.18 of `cp -a`, against
        // 1.23 with MSG_WAITALL always). The second waits for all of the
        // rest: where the sender is the slower side, receives of whatever
        // came took up to 1.9 calls a chunk, waiting for all 0.3.
        let wait_for_all = std::mem::replace(&mut filling.came_short, true);
        let (token, socket) = (token::receive(slot), &connection.socket);
        match std::mem::replace(&mut filling.room, Room::Lent) {
            Room::Lent => {}
            Room::Block(block) => {
                connection.in_flight = InFlight::Payload;
                self.ring.receive(socket, block, range, wait_for_all, token);
            }
            Room::InPlace(spot) => {
                connection.in_flight = InFlight::InPlace((frame.transfer, frame.segment));
                let range = spot.start + range.start..spot.start + range.end;
                let window = spot.window.clone();
                filling.room = Room::InPlace(spot);
                self.ring
                    .receive_in_place(socket, window, &range, wait_for_all, token);
            }
        }
    }

    fn step_head(&mut self, slot: usize) -> bool {
        let Some(connection) = self.connections.get_mut(slot) else {
            return false;
        };
        match connection.next_frame() {
            Ok(Some((header, checks))) => self.begin_frame(slot, &header, checks),
            Ok(None) => {
                if let Some((head, range)) = connection.lend_head() {
                    connection.in_flight = InFlight::Head;
                    let token = token::receive(slot);
                    self.ring
                        .receive(&connection.socket, head, range, false, token);
                }
                false
            }
            Err(violation) => {
                self.leave_violated(slot, &violation);
                false
            }
        }
    }

    /// Decides what becomes of a frame's payload: once, before a byte of it.
    fn begin_frame(&mut self, slot: usize, header: &FrameHeader, checks: Vec<Check>) -> bool {
        let key = (header.transfer, header.segment);
        let Some(number) = self
            .connections
            .get(slot)
            .map(|connection| connection.number)
        else {
            return false;
        };
        if !self.segments.contains_key(&key) {
            // Its Open was queued before the peer heard that it may send.
            self.obey_all();
        }
        let purpose = match self.purpose(number, header) {
            Ok(purpose) => purpose,
            Err(violation) => {
                self.leave_violated(slot, &violation);
                return false;
            }
        };
        match self.connections.get_mut(slot) {
            // A command may have detached it meanwhile; its grants returned
            // then, or return when it goes.
            Some(connection) if connection.number == number => {
                connection.frame = Some(Frame::new(header, checks, purpose));
                true
            }
            _ => {
                if let Purpose::Land(segment) = purpose {
                    ledger(&segment).release(number);
                }
                false
            }
        }
    }

    fn purpose(&self, number: ConnectionId, header: &FrameHeader) -> Result<Purpose, Violation> {
        if header.is_padding() {
            return Ok(Purpose::Forget);
        }
        let key = (header.transfer, header.segment);
        let Some(open) = self.segments.get(&key) else {
            let was_open = self
                .opened
                .get(&header.transfer)
                .is_some_and(|highest| header.segment <= *highest);
            if was_open || self.is_forgotten(header.transfer) {
                return Ok(Purpose::Forget);
            }
            let got = format!("segment {} of {:02x?}", key.1, key.0.0);
            return Err(Violation::new("a segment that was answered", got));
        };
        check_header(&open.segment, header)?;
        let chunks = header.first..header.first + u64::from(header.count);
        Ok(match ledger(&open.segment).admit(number, chunks) {
            Admission::Write => Purpose::Land(open.segment.clone()),
            Admission::Drain => Purpose::Drain,
        })
    }

    fn end_frame(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let Some(frame) = connection.end_frame() else {
            return;
        };
        let drained = matches!(frame.purpose, Purpose::Drain).then(|| ReceiveEvent::Drained {
            transfer: frame.transfer,
            segment: frame.segment,
            chunks: chunk_range(&frame.chunks),
        });
        connection.recycle(frame.into_checks());
        if let Some(event) = drained {
            self.tell(event);
        }
    }

    /// Finds room for the payload, or stands in the queue for some.
    fn step_room(&mut self, slot: usize) -> bool {
        let found = self.find_spot(slot);
        let Some(connection) = self.connections.get_mut(slot) else {
            return false;
        };
        let Some(frame) = &mut connection.frame else {
            return false;
        };
        match found {
            SpotFound::At(spot, chunks, bytes) => {
                connection.filling = Some(frame.fill_in_place(spot, chunks, bytes));
                return true;
            }
            SpotFound::Soon => {
                connection.waiting = true;
                self.queue.push_back(slot);
                return false;
            }
            SpotFound::Not => {}
        }
        match self.pool.take(frame.block_bytes()) {
            Ok(Some(block)) => {
                connection.filling = Some(frame.fill(block));
                true
            }
            Ok(None) => {
                connection.waiting = true;
                self.queue.push_back(slot);
                false
            }
            Err(errno) => {
                let error = Error::local(cannot_receive(connection.number), why(errno));
                // Memory may be given back, and the others go on.
                self.leave(slot, Some(error.passing_when(errno == Errno::NOMEM)));
                false
            }
        }
    }

    /// Lets those go on that waited for room, while there is some.
    pub(super) fn serve_queue(&mut self) {
        for _ in 0..self.queue.len() {
            let Some(slot) = self.queue.pop_front() else {
                return;
            };
            if let Some(connection) = self.connections.get_mut(slot)
                && std::mem::take(&mut connection.waiting)
            {
                self.advance(slot);
            }
        }
    }

    /// A receive into a block completed.
    pub(super) fn received(&mut self, slot: usize, block: Arc<Block>, result: Result<u32, Errno>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let bytes = result.unwrap_or(0) as usize;
        match std::mem::replace(&mut connection.in_flight, InFlight::Nothing) {
            InFlight::Payload => match (&mut connection.filling, &connection.frame) {
                (Some(filling), Some(frame)) => {
                    filling.room = Room::Block(block);
                    filling.advance(frame, bytes);
                }
                // It left meanwhile.
                _ => self.pool.give(block),
            },
            _ => connection.head_came(block, bytes),
        }
        self.go_on(slot, result);
    }

    /// A receive into a file completed.
    pub(super) fn received_in_place(&mut self, slot: usize, result: Result<u32, Errno>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let receiving = std::mem::replace(&mut connection.in_flight, InFlight::Nothing);
        let InFlight::InPlace(key) = receiving else {
            return;
        };
        let over = !self.segments.contains_key(&key);
        if let (Some(filling), Some(frame)) = (&mut connection.filling, &connection.frame) {
            filling.advance(frame, result.unwrap_or(0) as usize);
            filling.cut_off |= result == Err(Errno::FAULT);
            if over {
                connection.forget_payload();
            } else if filling.cut_off {
                self.fail_cut_off(slot);
            }
        }
        self.go_on(slot, result);
        self.answer_forget(key.0);
    }

    /// What a receive's result means for its connection.
    fn go_on(&mut self, slot: usize, result: Result<u32, Errno>) {
        let Some(connection) = self.connections.get(slot) else {
            return;
        };
        if connection.leaving.is_some() {
            return self.go_if_idle(slot);
        }
        let number = connection.number;
        let doing = || cannot_receive(number);
        match result {
            Ok(0) if connection.is_between_frames() => self.leave(slot, None),
            Ok(0) => {
                let error = Error::peer(doing(), "it ended in the middle of a frame");
                self.leave(slot, Some(error));
            }
            // FAULT is the file's, and was told.
            Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::CANCELED | Errno::FAULT) => {
                self.advance(slot);
            }
            Err(errno) => self.leave(slot, Some(Error::peer(doing(), why(errno)))),
        }
    }

    fn leave_violated(&mut self, slot: usize, violation: &Violation) {
        let number = self
            .connections
            .get(slot)
            .map(|connection| connection.number);
        let doing = cannot_receive(number.unwrap_or(0));
        self.leave(slot, Some(Error::peer(doing, violation)));
    }

    /// Shuts the connection down; it goes once nothing of it is in flight.
    pub(super) fn leave(&mut self, slot: usize, cause: Option<Error>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        if connection.leaving.is_some() {
            return;
        }
        connection.leaving = Some(cause);
        connection.waiting = false;
        self.counts.system_calls += 1;
        socket::shutdown(&connection.socket);
        // A block that is lent comes back with its receive.
        if let Some(Filling {
            room: Room::Block(block),
            ..
        }) = connection.filling.take()
        {
            self.pool.give(block);
        }
        connection.frame = None;
        let number = connection.number;
        for stream in self.streams.values_mut() {
            stream.drop_held(number);
        }
        self.go_if_idle(slot);
    }

    /// A leaving connection with nothing in flight is gone: its grants return.
    pub(super) fn go_if_idle(&mut self, slot: usize) {
        let gone = self
            .connections
            .get(slot)
            .is_some_and(|connection| connection.leaving.is_some() && connection.is_idle());
        if !gone {
            return;
        }
        let Some(mut connection) = self.connections.remove(slot) else {
            return;
        };
        self.counts.gone(connection.report());
        for open in self.segments.values() {
            ledger(&open.segment).release(connection.number);
        }
        let cause = connection.leaving.take().flatten();
        let connection = connection.number;
        self.tell(ReceiveEvent::Detached { connection, cause });
    }
}
