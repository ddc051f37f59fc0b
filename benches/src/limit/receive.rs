//! The receiving ends of the bare movers.
//!
//! Leaves to others: creating, syncing and comparing the target. Invariant:
//! each byte goes to its own offset in the target, or, without a target, is
//! read and forgotten.

use super::method::LimitLanding;
use super::ring;
use super::share::{BLOCK_BYTES, ended_early, on_threads, stripes};
use rustix::net::RecvFlags;
use rustix::pipe::SpliceFlags;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Receives `bytes` over all sockets into the target, or discards them.
pub(super) fn run(
    landing: LimitLanding,
    sockets: &[TcpStream],
    target: Option<&File>,
    bytes: u64,
) -> io::Result<()> {
    let count = sockets.len();
    match landing {
        LimitLanding::RingWrite => ring::receive(sockets, target, bytes, false),
        LimitLanding::RingDirect => ring::receive(sockets, target, bytes, true),
        LimitLanding::Splice => on_threads(sockets, |index, socket| {
            let pipe = pipe()?;
            // Without a target the pipe empties into the null device.
            let null = File::options().write(true).open("/dev/null")?;
            for (offset, length) in stripes(bytes, index, count) {
                splice(socket, &pipe, target, &null, offset, length)?;
            }
            Ok(0.0)
        })
        .map(drop),
        LimitLanding::Pwrite => on_threads(sockets, |index, socket| {
            let mut block = vec![0; BLOCK_BYTES];
            for (offset, length) in stripes(bytes, index, count) {
                receive(socket, target, offset, length, &mut block)?;
            }
            Ok(0.0)
        })
        .map(drop),
    }
}

/// A pipe as deep as one call moves, or as deep as this user may have it.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let pipe = rustix::pipe::pipe()?;
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe.1, BLOCK_BYTES);
    Ok(pipe)
}

fn splice(
    socket: &TcpStream,
    (out, into): &(OwnedFd, OwnedFd),
    target: Option<&File>,
    null: &File,
    mut offset: u64,
    length: u64,
) -> io::Result<()> {
    let end = offset + length;
    while offset < end {
        let wanted = (end - offset).min(BLOCK_BYTES as u64) as usize;
        let mut held = rustix::pipe::splice(socket, None, into, None, wanted, SpliceFlags::MOVE)?;
        if held == 0 {
            return Err(ended_early("a connection"));
        }
        while held > 0 {
            // Into a file the call moves `offset` on by what it wrote.
            let moved = match target {
                Some(file) => rustix::pipe::splice(
                    out,
                    None,
                    file,
                    Some(&mut offset),
                    held,
                    SpliceFlags::MOVE,
                )?,
                None => {
                    let moved =
                        rustix::pipe::splice(out, None, null, None, held, SpliceFlags::MOVE)?;
                    offset += moved as u64;
                    moved
                }
            };
            if moved == 0 {
                return Err(ended_early("the target"));
            }
            held -= moved;
        }
    }
    Ok(())
}

fn receive(
    socket: &TcpStream,
    target: Option<&File>,
    mut offset: u64,
    length: u64,
    block: &mut [u8],
) -> io::Result<()> {
    let end = offset + length;
    while offset < end {
        let wanted = (end - offset).min(block.len() as u64) as usize;
        let mut filled = 0;
        while filled < wanted {
            let (_, count) =
                rustix::net::recv(socket, &mut block[filled..wanted], RecvFlags::WAITALL)?;
            if count == 0 {
                return Err(ended_early("a connection"));
            }
            filled += count;
        }
        if let Some(file) = target {
            file.write_all_at(&block[..wanted], offset)?;
        }
        offset += wanted as u64;
    }
    Ok(())
}
