//! Name look-up and connecting, each off the control thread; the resolver has
//! its own deadlines, a connect ours.
//!
//! Leaves to others: what is said on the connection. Invariant: a connect that
//! ran out of time leaves no socket behind.

use crate::error::{Error, Result};
use crate::kernel::socket::{self, SocketOptions};
use crate::limits;
use crate::options::PeerAddress;
use crate::session::hands::blocking;
use crate::session::inbox::Inner;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// The addresses of `peer`, in the resolver's order.
pub(super) async fn resolve(peer: &PeerAddress) -> Result<Vec<SocketAddr>> {
    let (host, port) = (peer.host.clone(), peer.port);
    let failed = |why: String| Err(Error::peer(format!("cannot resolve {}", peer.host), why));
    let found = blocking(move || {
        (host.as_str(), port)
            .to_socket_addrs()
            .map(|found| found.collect::<Vec<_>>())
    });
    match found.await {
        Ok(Ok(addresses)) if addresses.is_empty() => failed("the name has no address".to_owned()),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => failed(error.to_string()),
        Err(error) => failed(error.to_string()),
    }
}

/// Connects to the first of `addresses` that answers, from `bind` where given.
pub(super) async fn connect(
    addresses: Vec<SocketAddr>,
    bind: Option<IpAddr>,
    options: SocketOptions,
) -> Result<(OwnedFd, SocketAddr)> {
    blocking(move || connect_first(&addresses, bind, &options)).await?
}

/// Dials `count` connections at once; each comes as `Inner::Dialled`.
pub(super) fn dial_all(
    address: SocketAddr,
    bind: Option<IpAddr>,
    sockets: &SocketOptions,
    count: usize,
    inner: &UnboundedSender<Inner>,
) {
    for _ in 0..count {
        let (sockets, inner) = (sockets.clone(), inner.clone());
        tokio_uring::spawn(async move {
            let dialled = connect(vec![address], bind, sockets).await;
            // A session that ended wants no connection.
            let _ = inner.send(Inner::Dialled(dialled.map(|(socket, _)| socket)));
        });
    }
}

fn connect_first(
    addresses: &[SocketAddr],
    bind: Option<IpAddr>,
    options: &SocketOptions,
) -> Result<(OwnedFd, SocketAddr)> {
    let wait = Duration::from_nanos(limits::CONNECT_WAIT_NANOS_MAX);
    let usable =
        |address: &&SocketAddr| bind.is_none_or(|bind| bind.is_ipv4() == address.is_ipv4());
    let mut last = None;
    for address in addresses.iter().filter(usable) {
        match socket::dial(*address, bind, options, wait) {
            Ok(socket) => return Ok((socket, *address)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::usage("cannot connect: the peer has no address of the family of the one to bind")
    }))
}
