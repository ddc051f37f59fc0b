//! The operations of a ring, one function each.
//!
//! Leaves to others: submitting and reaping. Invariant: each function lends
//! exactly what its entry points to.

use super::super::huge::HugeWindow;
use super::super::memory::{Block, Window};
use super::Ring;
use super::loan::{Handle, IoMessage, Loan, Slice, writable};
use io_uring::{opcode, squeue, types};
use std::ops::Range;
use std::sync::Arc;

/// IORING_SEND_ZC_REPORT_USAGE, which the crate does not export: the
/// notification says whether the bytes were copied.
const REPORT_USAGE: u16 = 8;
/// Bytes of one read, write or receive, at most: results are 31 bits, and the
/// kernel cuts larger requests at this anyway.
const OPERATION_BYTES_MAX: usize = 0x7fff_f000;

/// How a send goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendMode {
    /// Without a copy where the kernel can; completes twice.
    pub zero_copy: bool,
    /// More follows at once: a last short packet may wait for it.
    pub more: bool,
}

impl Ring {
    /// Makes the operation queued next wait for the one queued after this
    /// call: call it before each operation of a chain but the last. An
    /// operation that fails or comes up short cancels what waits for it.
    pub fn link(&mut self) {
        self.link_next = true;
    }

    /// Sends all of `message`, unless the stream ends (MSG_WAITALL); a short
    /// count is exact. Gives the message back.
    pub fn send(
        &mut self,
        socket: &Handle,
        mut message: Box<IoMessage>,
        mode: SendMode,
        token: u64,
    ) {
        let header = message.prepare();
        let mut flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        if mode.more {
            flags |= libc::MSG_MORE;
        }
        let fd = types::Fd(socket.raw());
        let entry = if mode.zero_copy {
            opcode::SendMsgZc::new(fd, header)
                .ioprio(REPORT_USAGE)
                .flags(flags as u32)
                .build()
        } else {
            opcode::SendMsg::new(fd, header).flags(flags as u32).build()
        };
        // SAFETY: the header, its vector and the owners of all slices are in
        // the boxed message, which does not move while it is lent.
        unsafe { self.queue(entry, token, true, Loan::Message(message), one(socket)) }
    }

    /// Receives into `range` of `block`; with `wait_all`, all of it unless the
    /// stream ends. 0 is the stream's end. Gives the block back.
    ///
    /// # Panics
    /// If the block has another holder or the range is outside it.
    pub fn receive(
        &mut self,
        socket: &Handle,
        mut block: Arc<Block>,
        range: Range<usize>,
        wait_all: bool,
        token: u64,
    ) {
        let pointer = writable(&mut block, &range);
        let flags = if wait_all { libc::MSG_WAITALL } else { 0 };
        let entry = opcode::Recv::new(types::Fd(socket.raw()), pointer, cut(range.len()))
            .flags(flags)
            .build();
        // SAFETY: the block has no other holder and is kept.
        unsafe { self.queue(entry, token, true, Loan::Block(block), one(socket)) }
    }

    /// As [`Ring::receive`], into `range` of a window, where nobody else
    /// receives or fills meanwhile. EFAULT where its file was cut off. Gives
    /// the window back.
    ///
    /// # Panics
    /// If the range is outside the window.
    pub fn receive_in_place(
        &mut self,
        socket: &Handle,
        window: Arc<HugeWindow>,
        range: &Range<usize>,
        wait_all: bool,
        token: u64,
    ) {
        let pointer = window.pointer(range);
        let flags = if wait_all { libc::MSG_WAITALL } else { 0 };
        let entry = opcode::Recv::new(types::Fd(socket.raw()), pointer, cut(range.len()))
            .flags(flags)
            .build();
        // SAFETY: the window stays mapped while it is kept, and no reference
        // to its bytes is ever taken for more than a look (see its `bytes`).
        unsafe { self.queue(entry, token, true, Loan::HugeWindow(window), one(socket)) }
    }

    /// Gathers `range` of the window's file, whole huge pages, into such
    /// (MADV_COLLAPSE, which no setting but `deny` overrules), on a kernel
    /// worker. A huge page's part of the file that holds nothing at all is
    /// refused with EINVAL.
    ///
    /// # Panics
    /// If the range is not inside the window (own invariant).
    pub fn gather(&mut self, window: Arc<HugeWindow>, range: &Range<usize>, token: u64) {
        let entry = opcode::Madvise::new(
            window.pointer(range).cast_const().cast(),
            // The crate cuts lengths to 32 bits.
            libc::off_t::from(cut(range.len())),
            libc::MADV_COLLAPSE,
        )
        .build()
        // Without the flag one kernel worker does all of a ring's, in turn.
        .flags(squeue::Flags::ASYNC);
        // SAFETY: the window stays mapped while it is kept; gathering changes
        // no content.
        unsafe { self.queue(entry, token, true, Loan::HugeWindow(window), [None, None]) }
    }

    /// Reads into `range` of `block` from `offset` of `file`; through the
    /// registered arena where the block is of it. Gives the block back.
    ///
    /// # Panics
    /// If the block has another holder or the range is outside it.
    pub fn read(
        &mut self,
        file: &Handle,
        mut block: Arc<Block>,
        range: Range<usize>,
        offset: u64,
        token: u64,
    ) {
        let pointer = writable(&mut block, &range);
        let (fd, bytes) = (types::Fd(file.raw()), cut(range.len()));
        let entry = if self.is_registered(&block) {
            opcode::ReadFixed::new(fd, pointer, bytes, 0)
                .offset(offset)
                .build()
        } else {
            opcode::Read::new(fd, pointer, bytes).offset(offset).build()
        };
        // SAFETY: the block has no other holder and is kept.
        unsafe { self.queue(entry, token, true, Loan::Block(block), one(file)) }
    }

    /// Writes `slice` at `offset` of `file`; through the registered arena
    /// where it is of a block there. Gives the slice back.
    pub fn write(&mut self, file: &Handle, slice: Slice, offset: u64, token: u64) {
        let (fd, bytes) = (types::Fd(file.raw()), cut(slice.len()));
        let registered = slice
            .as_block()
            .is_some_and(|block| self.is_registered(block));
        let entry = if registered {
            opcode::WriteFixed::new(fd, slice.pointer(), bytes, 0)
                .offset(offset)
                .build()
        } else {
            opcode::Write::new(fd, slice.pointer(), bytes)
                .offset(offset)
                .build()
        };
        // SAFETY: the slice's owner is kept, and it is only read.
        unsafe { self.queue(entry, token, true, Loan::Slice(slice), one(file)) }
    }

    /// Moves up to `bytes` from one descriptor to another, one of which is a
    /// pipe. An offset of `None` is the descriptor's own place. Always done by
    /// a kernel worker thread.
    pub fn splice(
        &mut self,
        from: (&Handle, Option<u64>),
        to: (&Handle, Option<u64>),
        bytes: usize,
        more: bool,
        token: u64,
    ) {
        // The kernel's -1: files never reach such offsets.
        let offset = |offset: Option<u64>| offset.map_or(-1, |offset| offset as i64);
        let mut flags = libc::SPLICE_F_MOVE;
        if more {
            flags |= libc::SPLICE_F_MORE;
        }
        let entry = opcode::Splice::new(
            types::Fd(from.0.raw()),
            offset(from.1),
            types::Fd(to.0.raw()),
            offset(to.1),
            cut(bytes),
        )
        .flags(flags)
        .build();
        let handles = [Some(from.0.clone()), Some(to.0.clone())];
        // SAFETY: no address is in the entry.
        unsafe { self.queue(entry, token, true, Loan::None, handles) }
    }

    /// Brings the pages of `range` into the page cache and the page table, on
    /// a kernel worker (MADV_POPULATE_READ). EFAULT past the file's end.
    ///
    /// # Panics
    /// If the range is not inside the window.
    pub fn populate(&mut self, window: Arc<Window>, range: Range<usize>, token: u64) {
        let pointer = window.pointer(&range);
        let entry = opcode::Madvise::new(
            pointer.cast_const().cast(),
            // The crate cuts lengths to 32 bits.
            libc::off_t::from(cut(range.len())),
            libc::MADV_POPULATE_READ,
        )
        .build();
        // SAFETY: the window stays mapped while it is kept; populating changes
        // no content.
        unsafe { self.queue(entry, token, true, Loan::Window(window), [None, None]) }
    }

    /// Takes a window's pages out of the page table, on a kernel worker
    /// (MADV_DONTNEED): unmapping it costs nothing to speak of then.
    pub fn unpopulate(&mut self, window: Arc<Window>, token: u64) {
        let all = 0..window.len();
        let entry = opcode::Madvise::new(
            window.pointer(&all).cast_const().cast(),
            // The crate cuts lengths to 32 bits.
            libc::off_t::from(cut(all.len())),
            libc::MADV_DONTNEED,
        )
        .build();
        // SAFETY: the window stays mapped while it is kept; a shared mapping of
        // a file loses no content, and is faulted in again where it is read.
        unsafe { self.queue(entry, token, true, Loan::Window(window), [None, None]) }
    }

    /// Tells the page cache that `bytes` of `file` from `offset` are not
    /// needed again (POSIX_FADV_DONTNEED).
    pub fn forget_pages(&mut self, file: &Handle, offset: u64, bytes: u64, token: u64) {
        let entry = opcode::Fadvise::new(
            types::Fd(file.raw()),
            cut(usize::try_from(bytes).unwrap_or(usize::MAX)).into(),
            libc::POSIX_FADV_DONTNEED,
        )
        .offset(offset)
        .build();
        // SAFETY: no address is in the entry.
        unsafe { self.queue(entry, token, true, Loan::None, one(file)) }
    }

    /// Completes once `descriptor` is readable, with the poll bits.
    pub fn poll_readable(&mut self, descriptor: &Handle, token: u64) {
        let entry = opcode::PollAdd::new(types::Fd(descriptor.raw()), libc::POLLIN as u32).build();
        // SAFETY: no address is in the entry.
        unsafe { self.queue(entry, token, true, Loan::None, one(descriptor)) }
    }

    /// Cancels the operations that bear `token`, where they can be; they
    /// complete all the same. Operations whose cancelling finds no room go on.
    pub fn cancel(&mut self, token: u64) {
        let places: Vec<usize> = (0..self.flights.len())
            .filter(|place| {
                self.flights[*place]
                    .as_ref()
                    .is_some_and(|flight| flight.told && flight.token == token)
            })
            .collect();
        for place in places.into_iter().take(self.room()) {
            let entry: squeue::Entry = opcode::AsyncCancel::new(place as u64).build();
            // SAFETY: no address is in the entry.
            unsafe { self.queue(entry, token, false, Loan::None, [None, None]) }
        }
    }

    fn is_registered(&self, block: &Block) -> bool {
        self.registered
            .as_ref()
            .is_some_and(|region| block.is_in(region))
    }
}

fn one(handle: &Handle) -> [Option<Handle>; 2] {
    [Some(handle.clone()), None]
}

fn cut(bytes: usize) -> u32 {
    bytes.min(OPERATION_BYTES_MAX) as u32
}
