//! Dialling and listening, with the options that must be set before either.
//!
//! Leaves to others: greeting, accepting, resolving names. Invariant: a dial
//! ends by its deadline, and a listener for `[::]` takes IPv4 as well unless
//! the same port is listened on there by name.

use super::passing::passes;
use super::{SocketOptions, set_buffers, set_congestion, set_option};
use crate::error::{Error, Result};
use crate::options::Congestion;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// SYN retransmissions of one connect: 1 + 2 + 4 + 8 s, a little beyond
/// [`crate::limits::CONNECT_WAIT_NANOS_MAX`], which ends it.
const SYN_RETRIES: i32 = 3;
/// Connections that wait to be accepted: a pool opens all of its own at once.
const BACKLOG: i32 = 1024;

/// Connects to `address`, from `bind` where given, within `wait`; blocks.
/// The buffers of `options` are set before, as the window's scale depends on
/// them; the rest is [`super::prepare_data`]'s.
///
/// # Errors
/// An address that does not answer, refuses, or cannot be reached from `bind`.
pub fn dial(
    address: SocketAddr,
    bind: Option<IpAddr>,
    options: &SocketOptions,
    wait: Duration,
) -> Result<OwnedFd> {
    let doing = || format!("cannot connect to {address}");
    let failed = |doing: String, error: &std::io::Error| {
        Error::local(doing, error).passing_when(passes(error))
    };
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(|error| failed(doing(), &error))?;
    if let Some(ip) = bind {
        socket
            .bind(&SocketAddr::new(ip, 0).into())
            .map_err(|error| failed(format!("{} from {ip}", doing()), &error))?;
    }
    // Notes come once, from `prepare_data`.
    set_buffers(socket.as_fd(), options, &mut Vec::new())?;
    let _ = set_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_SYNCNT,
        SYN_RETRIES,
    );
    match socket.connect_timeout(&address.into(), wait) {
        Ok(()) => Ok(socket.into()),
        Err(error) => Err(not_connected(doing(), &error, wait)),
    }
}

fn not_connected(doing: String, error: &std::io::Error, wait: Duration) -> Error {
    use std::io::ErrorKind as Kind;
    let failed = match error.kind() {
        Kind::ConnectionRefused => Error::peer(doing, "connection refused")
            .cure("start `haul serve` there or check the port"),
        Kind::TimedOut => Error::peer(doing, format!("no answer in {} s", wait.as_secs()))
            .cure("check the address, the route and firewalls on the way"),
        _ => Error::peer(doing, error),
    };
    failed.passing_when(passes(error))
}

/// Listens on every address of `addresses`; port 0 lets the kernel choose.
/// The buffers of `options` are set before, as accepted sockets inherit them.
///
/// # Errors
/// An address that is taken, not this machine's, or privileged.
pub fn listen(addresses: &[SocketAddr], options: &SocketOptions) -> Result<Vec<TcpListener>> {
    addresses
        .iter()
        .map(|&address| listen_on(address, addresses, options))
        .collect()
}

fn listen_on(
    address: SocketAddr,
    all: &[SocketAddr],
    options: &SocketOptions,
) -> Result<TcpListener> {
    let failed = |error: std::io::Error| not_listening(address, &error);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(failed)?;
    // A restarted server takes its port although old connections linger.
    socket.set_reuse_address(true).map_err(failed)?;
    if address.is_ipv6() {
        let also_ipv4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        let alone = !all
            .iter()
            .any(|other| other.is_ipv4() && other.port() == also_ipv4.port());
        let dual = alone && address.ip().is_unspecified();
        socket.set_only_v6(!dual).map_err(failed)?;
    }
    set_buffers(socket.as_fd(), options, &mut Vec::new())?;
    if let Congestion::Named(_) = &options.congestion {
        // One that cannot be had is told now, not to each peer.
        set_congestion(socket.as_fd(), &options.congestion, &mut Vec::new())?;
    }
    socket.bind(&address.into()).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    Ok(socket.into())
}

fn not_listening(address: SocketAddr, error: &std::io::Error) -> Error {
    use std::io::ErrorKind as Kind;
    let refused = Error::local(format!("cannot listen on {address}"), error);
    match error.kind() {
        Kind::AddrInUse => refused.cure("choose another port with --listen"),
        Kind::AddrNotAvailable => refused.cure("choose an address of this machine with --listen"),
        Kind::PermissionDenied => refused.cure("choose a port of 1024 or more with --listen"),
        _ => refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use std::net::Ipv6Addr;

    const WAIT: Duration = Duration::from_secs(10);

    #[test]
    fn dials_what_listens_and_names_what_does_not() {
        let options = SocketOptions::default();
        let listeners =
            listen(&["127.0.0.1:0".parse().expect("address")], &options).expect("listen");
        let address = listeners[0].local_addr().expect("address");
        let bind = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        dial(address, bind, &options, WAIT).expect("connect");
        let taken = listen(&[address], &options).expect_err("taken");
        assert!(taken.sentence.contains(&address.to_string()), "{taken}");
        drop(listeners);
        let error = dial(address, None, &options, WAIT).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Peer);
        assert!(error.cure.is_some() && error.passes, "{error}");
        // No wait makes the kernel take it.
        let options = SocketOptions {
            send_buffer_bytes: Some(1 << 40),
            ..SocketOptions::default()
        };
        let error = dial(address, None, &options, WAIT).expect_err("refused");
        assert_eq!((error.kind, error.passes), (ErrorKind::Local, false));
    }

    #[test]
    fn the_unspecified_ipv6_address_takes_ipv4_too() {
        let options = SocketOptions::default();
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
        let Ok(listeners) = listen(&[any], &options) else {
            return crate::kernel::skip("this machine has no IPv6");
        };
        let port = listeners[0].local_addr().expect("address").port();
        dial(
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            None,
            &options,
            WAIT,
        )
        .expect("IPv4");
        dial(
            SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port),
            None,
            &options,
            WAIT,
        )
        .expect("IPv6");
    }
}
