//! TCP sockets: what is set on them, and what is in force afterwards.
//!
//! Leaves to others: accepting, reading and writing. Invariant: what was asked
//! for by name is in force when `Ok` comes back; what was left to haul and
//! could not be had is a note, and names the sysctl that would help.
//!
//! | option | control connection | data connection |
//! | --- | --- | --- |
//! | TCP_NODELAY | on: messages are small and waited for | on: a frame of a few small files is small, too |
//! | SO_SNDBUF, SO_RCVBUF | left alone | left to autotuning, unless asked or its maximum is below 4 MiB |
//! | TCP_CONGESTION | left alone | cubic on loopback and short paths, else bbr where allowed |
//! | TCP_NOTSENT_LOWAT | left alone | 512 KiB on real paths, so that bytes stay re-assignable |
//! | SO_MAX_PACING_RATE | left alone | the connection's share of `--limit-rate` |
//! | TCP_USER_TIMEOUT | 15 s | not set: see [`prepare_data`] |
//! | SO_KEEPALIVE | on | on |

mod connect;
mod handle;
mod info;
mod passing;

pub use connect::{dial, listen};
pub use handle::{duplicate, set_pacing};
pub use info::{first_window_bytes, silence, tcp_info};

use crate::error::{Error, Result};
use crate::kernel::probe::{autotuning_seen, sysctl};
use crate::limits;
use crate::options::Congestion;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// Buffer limit that every data connection should have at least, in bytes.
pub const BUFFER_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Unsent bytes that a data connection's send buffer holds on a real path: what
/// is queued there cannot be handed to another connection.
const NOT_SENT_BYTES: i32 = 512 * 1024;
/// A round trip below this is a short path: a machine in the next rack, where
/// cubic costs less CPU and fills the link.
const SHORT_PATH_US: u32 = 1_000;

/// What is asked of data connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// SO_SNDBUF in bytes; `None` leaves it to autotuning where that reaches 4 MiB.
    pub send_buffer_bytes: Option<u64>,
    /// SO_RCVBUF in bytes; `None` as above.
    pub receive_buffer_bytes: Option<u64>,
    /// The congestion control of what this end sends.
    pub congestion: Congestion,
    /// The most that this connection sends, bytes per second.
    pub pacing_bytes_per_second: Option<u64>,
}

/// What is in force on a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketFacts {
    /// The limit of the send buffer in bytes: autotuning's maximum, or SO_SNDBUF.
    pub send_buffer_bytes: u64,
    /// The limit of the receive buffer in bytes: autotuning's maximum, or SO_RCVBUF.
    pub receive_buffer_bytes: u64,
    /// The algorithm in force; empty where the socket is not TCP.
    pub congestion_control: String,
}

/// A direction of a socket's buffering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Send,
    Receive,
}

impl Direction {
    const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }

    /// The sysctl whose third number is autotuning's maximum.
    const fn autotuning(self) -> &'static str {
        match self {
            Self::Send => "net.ipv4.tcp_wmem",
            Self::Receive => "net.ipv4.tcp_rmem",
        }
    }

    /// The sysctl that caps the option.
    const fn cap(self) -> &'static str {
        match self {
            Self::Send => "net.core.wmem_max",
            Self::Receive => "net.core.rmem_max",
        }
    }

    fn get(self, socket: BorrowedFd<'_>) -> u64 {
        let bytes = match self {
            Self::Send => sockopt::socket_send_buffer_size(socket),
            Self::Receive => sockopt::socket_recv_buffer_size(socket),
        };
        bytes.unwrap_or(0) as u64
    }

    /// Sets the option beyond its cap where CAP_NET_ADMIN lets it, else up to it.
    fn set(self, socket: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
        let bytes = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(i32::MAX as usize / 2);
        let forced = match self {
            Self::Send => sockopt::set_socket_send_buffer_size_force(socket, bytes),
            Self::Receive => sockopt::set_socket_recv_buffer_size_force(socket, bytes),
        };
        match (forced, self) {
            (Ok(()), _) => Ok(()),
            (Err(_), Self::Send) => sockopt::set_socket_send_buffer_size(socket, bytes),
            (Err(_), Self::Receive) => sockopt::set_socket_recv_buffer_size(socket, bytes),
        }
    }
}

/// Sets a control connection's options.
///
/// # Errors
/// A socket that is not TCP, or not connected any more.
pub fn prepare_control(socket: impl AsFd) -> Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)
        .map_err(|errno| Error::peer("cannot prepare the control connection", errno))?;
    // Both ends of a control connection always read, so a window that stays
    // closed means a dead peer: the time-out is right here.
    let _ = sockopt::set_tcp_user_timeout(socket, limits::TCP_USER_TIMEOUT_MILLIS);
    keep_alive(socket);
    Ok(())
}

/// Sets a data connection's options; the notes are for the report.
///
/// TCP_USER_TIMEOUT is not among them: it also ends a connection whose peer
/// answers every window probe and is only slow to read (measured: a full
/// window under a time-out of 3 s is ETIMEDOUT after 3.5 s), and a receiver may
/// well wait for its disk or for the reader of its standard output.
/// [`silence`] tells a dead peer from a slow one.
///
/// # Errors
/// What was asked for by name and is refused, with the sysctl that allows it.
pub fn prepare_data(socket: impl AsFd, options: &SocketOptions) -> Result<Vec<String>> {
    let socket = socket.as_fd();
    let mut notes = Vec::new();
    // A ring waits for such a socket itself; O_NONBLOCK would only turn its
    // waits into EAGAIN.
    rustix::io::ioctl_fionbio(socket, false)
        .map_err(|errno| Error::local("cannot prepare a data connection", errno))?;
    set_buffers(socket, options, &mut notes)?;
    set_congestion(socket, &options.congestion, &mut notes)?;
    if is_tcp(socket) {
        // With Nagle's algorithm the end of each frame waits until all before it
        // was acknowledged, up to the 40 ms of a delayed acknowledgement: 500
        // small files under 64 descriptors took 5.5 s so, and 0.14 s without.
        sockopt::set_tcp_nodelay(socket, true)
            .map_err(|errno| Error::local("cannot prepare a data connection", errno))?;
    }
    if !is_local(socket) {
        // Not worth a failed transfer: without it more bytes are sent again
        // when the connection is lost.
        let _ = set_option(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            NOT_SENT_BYTES,
        );
    }
    if let Some(rate) = options.pacing_bytes_per_second {
        set_option(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, rate)
            .map_err(|errno| Error::local("cannot limit a data connection's rate", errno))?;
    }
    keep_alive(socket);
    Ok(notes)
}

fn keep_alive(socket: BorrowedFd<'_>) {
    // An idle connection whose peer vanished is found in about 20 s; nothing
    // else depends on it, so a refusal does not matter.
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepintvl(socket, Duration::from_secs(3));
    let _ = sockopt::set_tcp_keepcnt(socket, 4);
}

/// Sets both buffers; for the receive side to count in the window's scale this
/// comes before listen or connect.
fn set_buffers(
    socket: BorrowedFd<'_>,
    options: &SocketOptions,
    notes: &mut Vec<String>,
) -> Result<()> {
    let wanted = [
        (Direction::Send, options.send_buffer_bytes),
        (Direction::Receive, options.receive_buffer_bytes),
    ];
    for (direction, bytes) in wanted {
        match bytes {
            Some(bytes) => set_buffer_asked(socket, direction, bytes)?,
            None => notes.extend(set_buffer_auto(socket, direction)),
        }
    }
    Ok(())
}

fn set_buffer_asked(socket: BorrowedFd<'_>, direction: Direction, bytes: u64) -> Result<()> {
    let doing = format!("cannot set a {} buffer of {bytes} bytes", direction.name());
    direction
        .set(socket, bytes)
        .map_err(|errno| Error::local(&doing, errno))?;
    // The kernel doubles what it is given, for its own overhead.
    let got = direction.get(socket) / 2;
    if got >= bytes {
        return Ok(());
    }
    let why = format!("the kernel's limit is {got} bytes");
    Err(Error::local(doing, why).cure(format!("run `sysctl -w {}={bytes}`", direction.cap())))
}

/// Leaves autotuning on where its maximum reaches 4 MiB; elsewhere takes the
/// larger of it and what the option can have, and says what would help.
fn set_buffer_auto(socket: BorrowedFd<'_>, direction: Direction) -> Option<String> {
    let maximum = autotuning_max(direction)?;
    if maximum >= BUFFER_BYTES_MIN || !is_tcp(socket) {
        return None;
    }
    let cap = sysctl(direction.cap())?.parse::<u64>().ok()?;
    // The kernel doubles the option for its own overhead, so a cap of more
    // than half of autotuning's maximum gives more than autotuning would.
    if 2 * cap > maximum {
        let _ = direction.set(socket, BUFFER_BYTES_MIN.min(cap));
    }
    let got = direction.get(socket).max(maximum);
    let now = autotuning_seen(direction.autotuning())?;
    let (low, start) = (now.min_bytes, now.start_bytes);
    Some(format!(
        "the {} buffers are limited to {got} bytes: `sysctl -w {}=\"{low} {start} {BUFFER_BYTES_MIN}\"` lets them grow",
        direction.name(),
        direction.autotuning(),
    ))
}

fn autotuning_max(direction: Direction) -> Option<u64> {
    Some(autotuning_seen(direction.autotuning())?.max_bytes)
}

fn set_congestion(
    socket: BorrowedFd<'_>,
    wanted: &Congestion,
    notes: &mut Vec<String>,
) -> Result<()> {
    let name = match wanted {
        Congestion::Named(name) => {
            return sockopt::set_tcp_congestion(socket, name)
                .map_err(|errno| refused_congestion(name, errno));
        }
        Congestion::Auto if is_short(socket) => "cubic",
        Congestion::Auto => "bbr",
    };
    let Ok(current) = sockopt::tcp_congestion(socket) else {
        return Ok(());
    };
    if current == name || sockopt::set_tcp_congestion(socket, name).is_ok() {
        return Ok(());
    }
    if name == "bbr" {
        notes.push(format!(
            "congestion control is {current}, as bbr is not allowed here: on a long or lossy path \
             `modprobe tcp_bbr; sysctl -w net.ipv4.tcp_allowed_congestion_control=\"{current} bbr\"` helps"
        ));
    } else if current == "bbr" {
        // Measured on loopback: 0.49 CPU seconds a GiB with bbr, whose pacing
        // runs timers, 0.34 with cubic.
        notes.push(
            "congestion control is bbr, as cubic is not allowed here: on a short path it costs a third \
             less CPU (`modprobe tcp_cubic; sysctl -w net.ipv4.tcp_allowed_congestion_control=\"bbr cubic\"`)"
                .to_owned(),
        );
    }
    Ok(())
}

fn refused_congestion(name: &str, errno: Errno) -> Error {
    let doing = format!("cannot use the congestion control {name}");
    match errno {
        Errno::PERM => Error::local(doing, "it is not allowed to all users").cure(format!(
            "run `sysctl -w net.ipv4.tcp_allowed_congestion_control=\"{} {name}\"`",
            sysctl("net.ipv4.tcp_allowed_congestion_control").unwrap_or_default()
        )),
        Errno::NOENT => Error::local(doing, "this kernel does not have it").cure(format!(
            "run `modprobe tcp_{name}` or choose one of: {}",
            sysctl("net.ipv4.tcp_available_congestion_control").unwrap_or_default()
        )),
        errno => Error::local(doing, errno),
    }
}

/// True when nothing but a short way lies between the ends.
fn is_short(socket: BorrowedFd<'_>) -> bool {
    let rtt_us = || tcp_info(socket).map(|info| info.rtt_min_us.min(info.rtt_us));
    is_local(socket) || rtt_us().is_some_and(|us| us > 0 && us < SHORT_PATH_US)
}

/// True when both ends are this machine (and this network namespace): loopback,
/// the same address at both ends, or no internet address at all.
#[must_use]
pub fn is_local(socket: impl AsFd) -> bool {
    let socket = socket.as_fd();
    let ip = |address: rustix::net::SocketAddrAny| {
        SocketAddr::try_from(address)
            .ok()
            .map(|address| address.ip().to_canonical())
    };
    let own = rustix::net::getsockname(socket).ok().and_then(ip);
    let peer = rustix::net::getpeername(socket).ok().flatten().and_then(ip);
    match (own, peer) {
        (None, None) => true,
        (Some(own), Some(peer)) => own == peer || IpAddr::is_loopback(&peer),
        _ => false,
    }
}

/// What is in force now.
#[must_use]
pub fn facts(socket: impl AsFd) -> SocketFacts {
    let socket = socket.as_fd();
    let tcp = is_tcp(socket);
    // Bit 0: the send buffer was set by hand, bit 1: the receive buffer.
    let locked = get_option::<u32>(socket, libc::SOL_SOCKET, libc::SO_BUF_LOCK).unwrap_or(3);
    let limit = |direction: Direction, bit: u32| {
        let tuned = tcp && locked & bit == 0;
        let maximum = if tuned {
            autotuning_max(direction)
        } else {
            None
        };
        maximum.unwrap_or_else(|| direction.get(socket))
    };
    SocketFacts {
        send_buffer_bytes: limit(Direction::Send, 1),
        receive_buffer_bytes: limit(Direction::Receive, 2),
        congestion_control: sockopt::tcp_congestion(socket).unwrap_or_default(),
    }
}

/// Ends both directions: every operation that waits on the socket completes.
/// A socket that is already closed by the peer is no error.
pub fn shutdown(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// Ends the writing half: the peer reads what was sent, then end of file.
pub fn shutdown_write(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
}

fn is_tcp(socket: BorrowedFd<'_>) -> bool {
    // IPPROTO_TCP options answer only on TCP sockets.
    sockopt::tcp_nodelay(socket).is_ok()
}

/// A plain integer that socket options are made of.
trait Plain: Copy + Default {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u64 {}

fn set_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: T,
) -> Result<(), Errno> {
    // SAFETY: the pointer and the length are those of `value`, which outlives
    // the call, and the kernel only reads them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(())
    }
}

fn get_option<T: Plain>(socket: BorrowedFd<'_>, level: i32, name: i32) -> Option<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, and every
    // bit pattern of a `Plain` integer is valid.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of::<T>()).then_some(value)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let dialled = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (dialled, listener.accept().expect("accept").0)
    }

    #[test]
    fn buffers_that_were_asked_for_are_read_back() {
        let (socket, _peer) = pair();
        let options = SocketOptions {
            send_buffer_bytes: Some(100_000),
            receive_buffer_bytes: Some(60_000),
            ..SocketOptions::default()
        };
        prepare_data(&socket, &options).expect("allowed");
        let facts = facts(&socket);
        assert_eq!(facts.send_buffer_bytes, 200_000);
        assert_eq!(facts.receive_buffer_bytes, 120_000);
    }

    #[test]
    fn left_alone_the_limit_is_autotunings() {
        let (socket, _peer) = pair();
        prepare_data(&socket, &SocketOptions::default()).expect("nothing asked");
        let facts = facts(&socket);
        if autotuning_max(Direction::Send).is_some_and(|bytes| bytes >= BUFFER_BYTES_MIN) {
            assert_eq!(
                Some(facts.send_buffer_bytes),
                autotuning_max(Direction::Send)
            );
        }
        assert!(!facts.congestion_control.is_empty());
    }

    #[test]
    fn an_unknown_congestion_control_is_an_error_with_a_cure() {
        let (socket, _peer) = pair();
        let options = SocketOptions {
            congestion: Congestion::Named("nosuch".to_owned()),
            ..SocketOptions::default()
        };
        let error = prepare_data(&socket, &options).expect_err("refused");
        assert!(error.sentence.contains("nosuch"), "{error}");
        assert!(error.cure.is_some());
    }

    #[test]
    fn a_named_congestion_control_is_in_force() {
        let (socket, _peer) = pair();
        let options = SocketOptions {
            congestion: Congestion::Named("reno".to_owned()),
            ..SocketOptions::default()
        };
        prepare_data(&socket, &options).expect("reno is always there");
        assert_eq!(facts(&socket).congestion_control, "reno");
    }

    #[test]
    fn a_shutdown_is_read_as_the_end() {
        use std::io::Read;
        let (mut socket, peer) = pair();
        assert!(is_local(&socket));
        prepare_control(&socket).expect("TCP");
        shutdown(&peer);
        assert_eq!(socket.read(&mut [0; 8]).expect("end"), 0);
    }
}
