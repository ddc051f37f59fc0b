//! The first congestion window of a fresh connection on a long path.
//!
//! Leaves to others: when nothing else may be sent yet. Invariant: what is sent
//! is one whole frame of padding, or nothing.

use crate::error::{Error, Result};
use crate::kernel::socket;
use crate::limits;
use crate::protocol::frame::{FRAME_BYTES_MIN, FrameHeader};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::os::fd::BorrowedFd;

/// Fills the first window of a fresh connection with padding: its congestion
/// window opens while the Answer is on its way, a round trip earlier. With the
/// data connections dialled a round trip earlier, too, so that there is time
/// for it, 587 MiB over 1 Gbit/s and 50 ms took 5.58 s against 5.67 s (medians
/// of 6, interleaved; the ideal is 5.20 s).
pub(crate) fn fill(socket: BorrowedFd<'_>) -> Result<()> {
    let room = socket::first_window_bytes(socket).min(limits::PADDING_BYTES_MAX);
    let Some(payload_bytes) = room.checked_sub(FRAME_BYTES_MIN) else {
        return Ok(());
    };
    let mut frame = FrameHeader::padding(payload_bytes as u64).encode().to_vec();
    frame.resize(room, 0);
    let now = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let doing = "cannot use a data connection";
    match rustix::net::send(socket, &frame, now) {
        Ok(sent) if sent == room => Ok(()),
        // Half a frame cannot be taken back: it is dialled again.
        Ok(_) => Err(Error::peer(doing, "its buffer was full")),
        // Nothing was sent, and nothing has to be.
        Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(Error::peer(doing, errno)),
    }
}

/// True where a round trip takes so long that slow start is felt.
pub(crate) fn is_long(socket: BorrowedFd<'_>) -> bool {
    socket::tcp_info(socket).is_some_and(|info| info.rtt_us >= limits::LONG_PATH_US)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frame::HEADER_BYTES;
    use std::io::Read;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    #[test]
    fn a_first_window_is_one_whole_frame_of_padding() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let dialled =
            TcpStream::connect(listener.local_addr().expect("address")).expect("connects");
        let (mut accepted, _) = listener.accept().expect("accepts");
        assert!(!is_long(dialled.as_fd()), "a loopback");
        fill(dialled.as_fd()).expect("sent");
        dialled.shutdown(Shutdown::Write).expect("shut down");
        let mut bytes = Vec::new();
        accepted.read_to_end(&mut bytes).expect("read");
        let header = bytes.first_chunk::<HEADER_BYTES>().expect("a header");
        let header = FrameHeader::decode(header).expect("it decodes");
        assert!(header.is_padding());
        let length = HEADER_BYTES + header.table_bytes() + header.payload_bytes as usize;
        assert_eq!(bytes.len(), length);
        assert!(length <= limits::PADDING_BYTES_MAX);
    }
}
