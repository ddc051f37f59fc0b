//! TCP_INFO: what the kernel knows of a connection.
//!
//! Leaves to others: judging it. Invariant: a field that this kernel does not
//! fill is 0, never what happened to lie behind the end of its answer.

use crate::report::TcpInfo;
use rustix::net::sockopt;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Room for the structure of any kernel so far; a longer one is cut.
const INFO_BYTES: usize = 256;

/// The kernel's answer, read by offset: the structure only grows at its end,
/// and libc's has not all of the fields.
struct Raw {
    bytes: [u8; INFO_BYTES],
    length: usize,
}

impl Raw {
    fn of(socket: impl AsFd) -> Option<Self> {
        let mut bytes = [0u8; INFO_BYTES];
        let mut length = INFO_BYTES as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `bytes`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        (result == 0).then_some(Self {
            bytes,
            length: (length as usize).min(INFO_BYTES),
        })
    }

    fn u8(&self, offset: usize) -> u8 {
        if offset < self.length {
            self.bytes[offset]
        } else {
            0
        }
    }

    fn u32(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        if offset + 4 <= self.length {
            word.copy_from_slice(&self.bytes[offset..offset + 4]);
        }
        u32::from_ne_bytes(word)
    }

    fn u64(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        if offset + 8 <= self.length {
            word.copy_from_slice(&self.bytes[offset..offset + 8]);
        }
        u64::from_ne_bytes(word)
    }
}

/// Offsets in `struct tcp_info` of linux/tcp.h.
mod offset {
    pub const BACKOFF: usize = 4;
    pub const RETRANSMIT_TIMEOUT_US: usize = 8;
    pub const SEND_MSS: usize = 16;
    pub const UNACKED: usize = 24;
    pub const LAST_ACK_RECEIVED_MS: usize = 56;
    pub const RTT_US: usize = 68;
    pub const CONGESTION_WINDOW: usize = 80;
    pub const RETRANSMITS: usize = 100;
    pub const RTT_MIN_US: usize = 148;
    pub const DELIVERY_RATE: usize = 160;
    pub const BUSY_US: usize = 168;
    pub const RECEIVE_WINDOW_LIMITED_US: usize = 176;
    pub const SEND_BUFFER_LIMITED_US: usize = 184;
}

/// What TCP_INFO says; `None` where the socket is not TCP.
#[must_use]
pub fn tcp_info(socket: impl AsFd) -> Option<TcpInfo> {
    let raw = Raw::of(socket)?;
    // The kernel says "no round trip yet" with all bits set.
    let known = |us: u32| if us == u32::MAX { 0 } else { us };
    Some(TcpInfo {
        retransmits: u64::from(raw.u32(offset::RETRANSMITS)),
        rtt_us: raw.u32(offset::RTT_US),
        rtt_min_us: known(raw.u32(offset::RTT_MIN_US)),
        congestion_window_bytes: u64::from(raw.u32(offset::CONGESTION_WINDOW))
            * u64::from(raw.u32(offset::SEND_MSS)),
        delivery_rate_bytes_per_second: raw.u64(offset::DELIVERY_RATE),
        receive_window_limited_us: raw.u64(offset::RECEIVE_WINDOW_LIMITED_US),
        send_buffer_limited_us: raw.u64(offset::SEND_BUFFER_LIMITED_US),
        busy_us: raw.u64(offset::BUSY_US),
    })
}

/// Bytes that a fresh connection may send before its first acknowledgement,
/// in whole packets, and that its send buffer takes at once; 0 where the
/// socket is not TCP.
#[must_use]
pub fn first_window_bytes(socket: impl AsFd) -> usize {
    let socket = socket.as_fd();
    let Some(raw) = Raw::of(socket) else {
        return 0;
    };
    let packet_bytes = raw.u32(offset::SEND_MSS) as usize;
    let window = raw.u32(offset::CONGESTION_WINDOW);
    let packets = window.saturating_sub(raw.u32(offset::UNACKED)) as usize;
    // The buffer counts the kernel's overhead too, at most as much again.
    let buffer_bytes = sockopt::socket_send_buffer_size(socket).unwrap_or(0) / 2;
    packets.min(buffer_bytes / packet_bytes.max(1)) * packet_bytes
}

/// How long sent bytes have waited, at least, while the peer's kernel said
/// nothing and they were sent again and again; `None` while all is well. Past
/// [`crate::limits::TCP_USER_TIMEOUT_MILLIS`] the connection is dead. A peer
/// that is only slow to read answers window probes, and has nothing of ours
/// unacknowledged, so it is never told here.
#[must_use]
pub fn silence(socket: impl AsFd) -> Option<Duration> {
    let raw = Raw::of(socket)?;
    let backoff = raw.u8(offset::BACKOFF);
    if raw.u32(offset::UNACKED) == 0 || backoff == 0 {
        return None;
    }
    // Each retransmission doubled the time-out, so those before it lasted this
    // long together; the last acknowledgement alone could be an hour old when
    // the connection was idle.
    let timeout_us = u64::from(raw.u32(offset::RETRANSMIT_TIMEOUT_US));
    let waited = Duration::from_micros(timeout_us - (timeout_us >> backoff.min(63)));
    let last = Duration::from_millis(u64::from(raw.u32(offset::LAST_ACK_RECEIVED_MS)));
    Some(waited.min(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_used_connection_has_a_round_trip_and_a_window() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut dialled =
            TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (mut accepted, _) = listener.accept().expect("accept");
        dialled.write_all(&[1; 1000]).expect("write");
        accepted.read_exact(&mut [0; 1000]).expect("read");
        let info = tcp_info(&dialled).expect("TCP");
        assert!(info.rtt_us > 0 && info.congestion_window_bytes > 0);
        assert_eq!(silence(&accepted), None);
    }

    #[test]
    fn a_socket_that_is_not_tcp_has_none() {
        let (one, _two) = std::os::unix::net::UnixStream::pair().expect("pair");
        assert!(tcp_info(&one).is_none());
    }
}
