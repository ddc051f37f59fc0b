//! A control connection's two halves: messages in, messages out.
//!
//! Leaves to others: what the messages mean, and how long to wait for them.
//! Invariant: no read or write is ever dropped while the kernel works on it;
//! a channel ends by shutting its socket down and awaiting both halves.

use crate::error::Error;
use crate::protocol::wire::{self, Message, MessageReader};
use std::cell::Cell;
use std::net::Shutdown;
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot};
use tokio_uring::net::TcpStream;

/// Bytes that may wait for a peer that does not read, before it counts as lost.
const BACKLOG_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages read and not yet handled: beyond that the peer has to wait.
const MESSAGES_AHEAD_MAX: usize = 64;
/// One read's buffer.
const READ_BYTES: usize = 64 * 1024;

/// What comes in.
pub(crate) enum Incoming {
    Message(Box<Message>),
    /// Nothing more comes: a clean end has no error.
    Closed(Option<Error>),
}

/// The writing half, and the handle on the connection.
pub(crate) struct Channel {
    stream: Rc<TcpStream>,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    backlog_bytes: Rc<Cell<usize>>,
    sent: Cell<bool>,
    trust: Cell<Option<oneshot::Sender<()>>>,
}

impl Channel {
    /// Starts both halves on this thread. `peer` is named in sentences.
    pub(crate) fn start(stream: Rc<TcpStream>, peer: &str) -> (Self, mpsc::Receiver<Incoming>) {
        let (incoming, inbox) = mpsc::channel(MESSAGES_AHEAD_MAX);
        let (outgoing, queue) = mpsc::unbounded_channel();
        let backlog_bytes = Rc::new(Cell::new(0));
        let (trust, trusted) = oneshot::channel();
        tokio_uring::spawn(read(stream.clone(), incoming, trusted, peer.to_owned()));
        tokio_uring::spawn(write(stream.clone(), queue, backlog_bytes.clone()));
        let trust = Cell::new(Some(trust));
        (
            Self {
                stream,
                outgoing,
                backlog_bytes,
                sent: Cell::new(false),
                trust,
            },
            inbox,
        )
    }

    /// The peer's proof holds: what it sent behind it is read now, and its
    /// messages may be long.
    pub(crate) fn trust(&self) {
        if let Some(trust) = self.trust.take() {
            // A reader that ended needs no trust.
            let _ = trust.send(());
        }
    }

    /// Queues a message; the reader learns of a connection that is gone.
    pub(crate) fn send(&self, message: &Message) {
        let bytes = wire::encode(message);
        self.sent.set(true);
        self.backlog_bytes
            .set(self.backlog_bytes.get() + bytes.len());
        if self.backlog_bytes.get() > BACKLOG_BYTES_MAX {
            self.close();
            return;
        }
        // The queue closes only after the socket broke, which the reader tells.
        let _ = self.outgoing.send(bytes);
    }

    /// True when something was sent since the last call: no heartbeat is due.
    pub(crate) fn take_sent(&self) -> bool {
        self.sent.replace(false)
    }

    /// True when all that was queued is in the socket.
    pub(crate) fn is_flushed(&self) -> bool {
        self.backlog_bytes.get() == 0
    }

    /// Ends the writing half, once it is flushed: the peer reads to the end.
    pub(crate) fn close_writing(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends both halves.
    pub(crate) fn close(&self) {
        // Already shut down is as good.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}

async fn read(
    stream: Rc<TcpStream>,
    incoming: mpsc::Sender<Incoming>,
    trusted: oneshot::Receiver<()>,
    peer: String,
) {
    let mut messages = MessageReader::greeting();
    let mut trusted = Some(trusted);
    let mut buffer = vec![0; READ_BYTES];
    let mut nonsense = false;
    let end = 'connection: loop {
        let (result, back) = stream.read(buffer).await;
        buffer = back;
        match result {
            Ok(0) => break None,
            Ok(count) => messages.push(&buffer[..count]),
            Err(error) => break Some(Error::peer(format!("lost the connection to {peer}"), error)),
        }
        loop {
            match messages.next() {
                Ok(None) => break,
                Ok(Some(message)) => {
                    let proof = matches!(message, Message::Proof(_) | Message::Ready(_));
                    if incoming
                        .send(Incoming::Message(Box::new(message)))
                        .await
                        .is_err()
                    {
                        break 'connection None;
                    }
                    // Nothing behind a proof is looked at before it holds.
                    if proof && let Some(trusted) = trusted.take() {
                        if trusted.await.is_err() {
                            break 'connection None;
                        }
                        messages.trust();
                    }
                }
                Err(violation) => {
                    nonsense = true;
                    break 'connection Some(Error::peer(
                        format!("cannot go on with {peer}"),
                        violation,
                    ));
                }
            }
        }
    };
    if !nonsense {
        let _ = stream.shutdown(Shutdown::Both);
    }
    let _ = incoming.send(Incoming::Closed(end)).await;
    // Its peer is to read why: a connection that is closed with something unread
    // is reset, and takes the last words with it.
    while nonsense {
        let (result, back) = stream.read(buffer).await;
        buffer = back;
        nonsense = matches!(result, Ok(1..));
    }
}

async fn write(
    stream: Rc<TcpStream>,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    backlog_bytes: Rc<Cell<usize>>,
) {
    while let Some(bytes) = queue.recv().await {
        let mut batch = bytes;
        // Everything that waits goes in one write.
        while let Ok(more) = queue.try_recv() {
            batch.extend_from_slice(&more);
        }
        let count = batch.len();
        let (result, _) = stream.write_all(batch).await;
        backlog_bytes.set(backlog_bytes.get() - count);
        if result.is_err() {
            // The reading half sees the same end and tells it.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}
