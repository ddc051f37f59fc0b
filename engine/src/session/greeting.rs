//! The deadline that the first bytes of a connection have, and their reading.
//!
//! Leaves to others: what they mean. Invariant: a peer that says nothing is
//! closed at its deadline by shutting its socket down, so that the pending read
//! completes and is awaited; nothing is read beyond what was asked for.

use crate::data::Clock;
use crate::error::Error;
use crate::protocol::session::GreetingTime;
use std::cell::Cell;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// Shuts a socket down unless the greeting is through in time.
pub(crate) struct Deadline {
    greeting: GreetingTime,
    passed: Rc<Cell<bool>>,
    timer: tokio::task::JoinHandle<()>,
}

impl Deadline {
    pub(crate) fn start(stream: Rc<TcpStream>, clock: Clock) -> Self {
        let greeting = GreetingTime::new(clock.now());
        let wait = Duration::from_nanos(greeting.due().saturating_sub(clock.now()));
        let passed = Rc::new(Cell::new(false));
        let mark = passed.clone();
        let timer = tokio_uring::spawn(async move {
            tokio::time::sleep(wait).await;
            mark.set(true);
            let _ = stream.shutdown(Shutdown::Both);
        });
        Self {
            greeting,
            passed,
            timer,
        }
    }

    /// The greeting is through.
    pub(crate) fn met(&self) {
        self.timer.abort();
    }

    /// The error, or that the peer was too slow where that caused it.
    pub(crate) fn explain(&self, error: Error, peer: &str) -> Error {
        let late = self.greeting.overdue(self.greeting.due(), peer);
        late.filter(|_| self.passed.get()).unwrap_or(error)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

/// Reads `N` bytes and not one more: what follows on a data connection is the
/// worker's.
pub(crate) async fn read_exact<const N: usize>(stream: &TcpStream) -> std::io::Result<[u8; N]> {
    let mut buffer = vec![0; N];
    let mut filled = 0;
    while filled < N {
        let (result, slice) = stream.read(buffer.slice(filled..N)).await;
        buffer = slice.into_inner();
        match result? {
            0 => return Err(std::io::Error::other("it closed the connection")),
            count => filled += count,
        }
    }
    let mut bytes = [0; N];
    bytes.copy_from_slice(&buffer);
    Ok(bytes)
}
