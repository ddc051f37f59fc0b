//! The dialler's first bytes on a control connection.
//!
//! Leaves to others: its deadline, and the messages behind the hello.
//! Invariant: nothing is read beyond the reply.

use crate::error::{Error, ErrorKind, Result};
use crate::protocol::handshake::FirstBytes;
use crate::protocol::wire::{
    self, ConnectionRole, Hello, Message, PREAMBLE_BYTES, Preamble, PreambleReply, VERSION_MAX,
    VERSION_MIN,
};
use crate::session::greeting::read_exact;
use tokio_uring::net::TcpStream;

/// The dialler's preamble on a control connection, its hello right behind,
/// which saves a round trip, and the answer to the preamble;
/// gives what both began with.
pub(super) async fn say_hello(stream: &TcpStream, peer: &str, hello: Hello) -> Result<FirstBytes> {
    let doing = || format!("cannot greet {peer}");
    let preamble = Preamble::ours(ConnectionRole::Control).encode();
    let mut words = preamble.to_vec();
    words.extend_from_slice(&wire::encode(&Message::Hello(hello)));
    let (sent, _) = stream.write_all(words).await;
    sent.map_err(|error| Error::peer(doing(), error))?;
    let reply_bytes: [u8; PREAMBLE_BYTES] = read_exact(stream).await.map_err(|error| {
        Error::peer(doing(), error).cure("check that `haul serve` listens on that port")
    })?;
    let reply = PreambleReply::decode(&reply_bytes).map_err(|_| {
        Error::peer(doing(), "what answers there is not haul")
            .cure("check that `haul serve` listens on that port")
    })?;
    if reply
        .version
        .is_none_or(|version| !(VERSION_MIN..=VERSION_MAX).contains(&version))
    {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!(
                "cannot talk to {peer}: it speaks protocol versions {} to {}, this haul {VERSION_MIN} to {VERSION_MAX}",
                reply.version_min, reply.version_max
            ),
        )
        .cure("install the same version at both ends"));
    }
    Ok(FirstBytes {
        preamble,
        reply: reply_bytes,
    })
}
