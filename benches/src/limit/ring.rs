//! The ends of the bare movers that work on a ring: one thread and one ring
//! for all connections, as haul's workers do it.
//!
//! Leaves to others: the ring's own rules (`haul_engine::kernel::ring`).
//! Invariant: a socket has one send, or one receive, in progress at a time.

use super::share::{BLOCK_BYTES, STRIPE_BYTES, ended_early, stripes};
use haul_engine::kernel::memory::{Arena, Block, Window};
use haul_engine::kernel::ring::{
    Completion, Handle, IoMessage, Loan, Outcome, Owner, Ring, SendMode, Slice,
};
use rustix::fs::{FallocateFlags, OFlags};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

/// Tokens from here on belong to operations that are only waited for.
const BACKGROUND: u64 = 1 << 32;
/// Direct writes want whole blocks of the device.
const DIRECT_BYTES: usize = 4096;

fn handle(socket: &TcpStream) -> io::Result<Handle> {
    Ok(OwnedFd::from(socket.try_clone()?).into())
}

fn ring(in_flight_max: u32) -> io::Result<Ring> {
    Ring::new(in_flight_max).map_err(io::Error::other)
}

/// Submits, waits for one completion at least, and takes all that came.
fn turn(ring: &mut Ring, completions: &mut Vec<Completion>) -> io::Result<()> {
    ring.submit_and_wait(1, None)?;
    ring.reap(completions);
    Ok(())
}

/// What the operation moved.
fn moved(completion: &Completion) -> io::Result<usize> {
    match completion.outcome {
        Outcome::Done(result) | Outcome::Sent(result) => Ok(result? as usize),
        Outcome::Released { .. } => Ok(0),
    }
}

/// One connection that sends: its stripes ahead, mapped and being populated.
struct RingSender {
    socket: Handle,
    stripes: VecDeque<(u64, u64)>,
    next: Option<Slice>,
}

impl RingSender {
    /// Maps the next stripe and lets a kernel worker bring its pages in.
    fn fetch(&mut self, ring: &mut Ring, source: &File) -> io::Result<()> {
        self.next = match self.stripes.pop_front() {
            None => None,
            Some((offset, length)) => {
                let window = Arc::new(Window::map(source.as_fd(), offset, length as usize)?);
                ring.populate(window.clone(), 0..length as usize, BACKGROUND);
                Some(Slice::new(Owner::Window(window), 0..length as usize))
            }
        };
        Ok(())
    }

    /// Sends the stripe that was fetched and fetches the one behind it.
    fn send(&mut self, ring: &mut Ring, source: &File, token: u64) -> io::Result<()> {
        let Some(slice) = self.next.take() else {
            return Ok(());
        };
        let mut message = Box::<IoMessage>::default();
        message.slices.push(slice);
        ring.send(&self.socket, message, SendMode::default(), token);
        self.fetch(ring, source)
    }
}

/// Sends the source from its mapping, stripe by stripe.
pub(super) fn send(sockets: &[TcpStream], source: &File, bytes: u64) -> io::Result<()> {
    let count = sockets.len();
    // A send and a populate for each connection, and late completions of some.
    let mut ring = ring(8 * count as u32)?;
    let mut senders = Vec::new();
    for (index, socket) in sockets.iter().enumerate() {
        let mut sender = RingSender {
            socket: handle(socket)?,
            stripes: stripes(bytes, index, count).collect(),
            next: None,
        };
        sender.fetch(&mut ring, source)?;
        sender.send(&mut ring, source, index as u64)?;
        senders.push(sender);
    }
    let mut completions = Vec::new();
    while ring.in_flight() > 0 {
        turn(&mut ring, &mut completions)?;
        for completion in completions.drain(..) {
            let sent = moved(&completion)?;
            let (token, message) = (completion.token, completion.loan.into_message());
            let (Some(mut message), Some(sender)) = (message, senders.get_mut(token as usize))
            else {
                continue;
            };
            message.advance(sent);
            if message.bytes() == 0 {
                sender.send(&mut ring, source, token)?;
            } else if sent == 0 {
                return Err(ended_early("the source"));
            } else {
                ring.send(&sender.socket, message, SendMode::default(), token);
            }
        }
    }
    Ok(())
}

/// One connection that receives: where its next block goes, and how much of it
/// is there.
struct RingReceiver {
    socket: Handle,
    stripes: VecDeque<(u64, u64)>,
    wanted: usize,
    filled: usize,
    idle: bool,
}

impl RingReceiver {
    /// Receives the next block, if a block is free and bytes are left.
    fn start(&mut self, ring: &mut Ring, free: &mut Vec<Arc<Block>>, token: u64) {
        let Some((_, left)) = self.stripes.front() else {
            return;
        };
        if let Some(block) = self.idle.then(|| free.pop()).flatten() {
            self.wanted = (*left).min(BLOCK_BYTES as u64) as usize;
            self.filled = 0;
            self.idle = false;
            ring.receive(&self.socket, block, 0..self.wanted, true, token);
        }
    }

    /// Takes the full block's offset and moves on behind it.
    fn finish(&mut self) -> u64 {
        self.idle = true;
        let wanted = self.wanted as u64;
        match self.stripes.front_mut() {
            Some((offset, left)) => {
                let at = *offset;
                *offset += wanted;
                *left -= wanted;
                if *left == 0 {
                    self.stripes.pop_front();
                }
                at
            }
            None => 0,
        }
    }
}

/// Where full blocks go.
struct RingTarget<'a> {
    file: Option<&'a File>,
    handle: Option<Handle>,
    direct: bool,
}

impl<'a> RingTarget<'a> {
    fn new(file: Option<&'a File>, direct: bool, bytes: u64) -> io::Result<Self> {
        let handle = match file {
            None => None,
            Some(file) if direct => {
                // A direct write beyond the end would have to extend the file.
                rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes)?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let flags = OFlags::DIRECT.bits() as i32;
                let file = File::options().write(true).custom_flags(flags).open(path)?;
                Some(OwnedFd::from(file).into())
            }
            Some(file) => Some(OwnedFd::from(file.try_clone()?).into()),
        };
        Ok(Self {
            file,
            handle,
            direct,
        })
    }

    /// Writes a full block, or gives it straight back without a target.
    fn land(
        &self,
        ring: &mut Ring,
        block: Arc<Block>,
        wanted: usize,
        offset: u64,
    ) -> io::Result<Option<Arc<Block>>> {
        let (Some(handle), Some(file)) = (&self.handle, self.file) else {
            return Ok(Some(block));
        };
        if self.direct && !wanted.is_multiple_of(DIRECT_BYTES) {
            // The file's tail: a direct write of it would be refused.
            file.write_all_at(&block.as_slice()[..wanted], offset)?;
            return Ok(Some(block));
        }
        let slice = Slice::new(Owner::Block(block), 0..wanted);
        ring.write(handle, slice, offset, BACKGROUND);
        Ok(None)
    }
}

/// Receives into registered blocks and writes each at its offset; `direct`
/// goes past the page cache.
pub(super) fn receive(
    sockets: &[TcpStream],
    target: Option<&File>,
    bytes: u64,
    direct: bool,
) -> io::Result<()> {
    let count = sockets.len();
    // One block that fills and one that is written for each connection.
    let blocks = (2 * count).max(4);
    let mut ring = ring((blocks + count) as u32)?;
    let (arena, mut free) = Arena::new(BLOCK_BYTES, blocks, true)?;
    ring.register(&arena)?;
    let target = RingTarget::new(target, direct, bytes)?;
    let mut receivers = Vec::new();
    for (index, socket) in sockets.iter().enumerate() {
        receivers.push(RingReceiver {
            socket: handle(socket)?,
            stripes: stripes(bytes, index, count).collect(),
            wanted: 0,
            filled: 0,
            idle: true,
        });
    }
    let mut completions = Vec::new();
    loop {
        for (token, receiver) in receivers.iter_mut().enumerate() {
            receiver.start(&mut ring, &mut free, token as u64);
        }
        if ring.in_flight() == 0 {
            return Ok(());
        }
        turn(&mut ring, &mut completions)?;
        for completion in completions.drain(..) {
            let count = moved(&completion)?;
            if completion.token == BACKGROUND {
                free.extend(written(completion, count)?);
                continue;
            }
            let receiver = &mut receivers[completion.token as usize];
            let token = completion.token;
            let Some(block) = completion.loan.into_block().filter(|_| count > 0) else {
                return Err(ended_early("a connection"));
            };
            receiver.filled += count;
            if receiver.filled < receiver.wanted {
                let range = receiver.filled..receiver.wanted;
                ring.receive(&receiver.socket, block, range, true, token);
                continue;
            }
            let wanted = receiver.wanted;
            let offset = receiver.finish();
            free.extend(target.land(&mut ring, block, wanted, offset)?);
        }
    }
}

/// The block of a finished write.
fn written(completion: Completion, count: usize) -> io::Result<Option<Arc<Block>>> {
    let Loan::Slice(slice) = completion.loan else {
        return Ok(None);
    };
    if slice.len() != count {
        return Err(ended_early("a write to the target"));
    }
    Ok(match slice.into_owner() {
        Owner::Block(block) => Some(block),
        _ => None,
    })
}

const _: () = assert!(STRIPE_BYTES.is_multiple_of(DIRECT_BYTES as u64));
