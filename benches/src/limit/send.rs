//! The sending ends of the bare movers.
//!
//! Leaves to others: connecting, and what the other end does. Invariant: each
//! connection carries its stripes in ascending order and nothing else.

use super::method::Sending;
use super::ring;
use super::share::{BLOCK_BYTES, clock_seconds, ended_early, on_threads, stripes};
use rustix::net::SendFlags;
use rustix::time::ClockId;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

/// Sends the source's `bytes` over all sockets; returns the CPU seconds of the
/// threads that did it.
pub(super) fn run(
    sending: Sending,
    sockets: &[TcpStream],
    source: &File,
    bytes: u64,
) -> io::Result<f64> {
    let count = sockets.len();
    match sending {
        Sending::Mapping => {
            ring::send(sockets, source, bytes)?;
            Ok(clock_seconds(ClockId::ThreadCPUTime))
        }
        Sending::Sendfile | Sending::Buffer => on_threads(sockets, |index, socket| {
            let mut block = vec![0; BLOCK_BYTES];
            for (offset, length) in stripes(bytes, index, count) {
                if sending == Sending::Sendfile {
                    send_file(socket, source, offset, length)?;
                } else {
                    send_buffer(socket, source, offset, length, &mut block)?;
                }
            }
            Ok(clock_seconds(ClockId::ThreadCPUTime))
        }),
    }
}

fn send_file(socket: &TcpStream, source: &File, mut offset: u64, length: u64) -> io::Result<()> {
    let end = offset + length;
    while offset < end {
        let left = (end - offset) as usize;
        // The call moves `offset` on by what it sent.
        if rustix::fs::sendfile(socket, source, Some(&mut offset), left)? == 0 {
            return Err(ended_early("the source"));
        }
    }
    Ok(())
}

fn send_buffer(
    socket: &TcpStream,
    source: &File,
    mut offset: u64,
    length: u64,
    block: &mut [u8],
) -> io::Result<()> {
    let end = offset + length;
    while offset < end {
        let count = (end - offset).min(block.len() as u64) as usize;
        source.read_exact_at(&mut block[..count], offset)?;
        let mut sent = 0;
        while sent < count {
            sent += rustix::net::send(socket, &block[sent..count], SendFlags::NOSIGNAL)?;
        }
        offset += count as u64;
    }
    Ok(())
}
