//! Standard input as a source: read by a thread of its own, cut into chunks,
//! kept until the receiver acknowledged them.
//!
//! Leaves to others: when a chunk is sent and when it may be forgotten.
//! Invariant: at most [`limits::STREAM_WINDOW_BYTES`] are kept, and the thread
//! ends soon after [`StreamSource::stop`] or the drop, whatever it waits for.

use super::now;
use crate::error::{Error, Result, Side, why};
use crate::limits;
use crate::protocol::ChunkId;
use crate::protocol::wire::{ChunkRange, Data, Entry, EntryKind};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One kept chunk; clones share the bytes, which stay until the last is dropped.
#[derive(Clone, Debug)]
pub struct StreamChunk(Arc<Vec<u8>>);

impl Deref for StreamChunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<StreamChunk> for Arc<Vec<u8>> {
    fn from(chunk: StreamChunk) -> Self {
        chunk.0
    }
}

/// What the reading thread tells after each chunk and at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamNews {
    /// Full chunks read so far.
    pub complete_chunks: u64,
    /// All bytes, once the end was read; a remainder above the full chunks is
    /// the short last one.
    pub end_bytes: Option<u64>,
    /// Why reading failed; nothing follows.
    pub error: Option<Error>,
}

#[derive(Default)]
struct ReadingState {
    kept: BTreeMap<ChunkId, StreamChunk>,
    /// Buffers of forgotten chunks, to be filled again.
    spare: Vec<Vec<u8>>,
    read_bytes: u64,
    stopped: bool,
}

struct StreamShared {
    state: Mutex<ReadingState>,
    room: Condvar,
    /// Written once, when the thread is to end.
    stop: OwnedFd,
}

impl StreamShared {
    fn lock(&self) -> MutexGuard<'_, ReadingState> {
        // No code panics while it holds the lock with a broken state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that is being read.
pub struct StreamSource {
    shared: Arc<StreamShared>,
    display: String,
    started: (i64, u32),
}

impl StreamSource {
    /// Reads `input` until its end on a thread of its own. `tell` is called on
    /// that thread after each full chunk, at the end, and on an error; it must
    /// not wait for this stream.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Local`] when no thread or descriptor is left.
    pub fn start(
        input: OwnedFd,
        display: &str,
        chunk_bytes: u32,
        tell: impl FnMut(StreamNews) + Send + 'static,
    ) -> Result<Self> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::local(format!("cannot read {display}"), error).at(Side::Sender)
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| failed(&why(errno)))?;
        let shared = Arc::new(StreamShared {
            state: Mutex::new(ReadingState::default()),
            room: Condvar::new(),
            stop,
        });
        let reader = StreamReader {
            shared: shared.clone(),
            input,
            display: display.to_owned(),
            chunk_bytes: chunk_bytes as usize,
            chunks_max: (limits::STREAM_WINDOW_BYTES / u64::from(chunk_bytes)).max(1) as usize,
        };
        // Detached: a thread inside read(2) of a pipe that somebody else
        // emptied cannot be joined, and it holds nothing but its own buffers.
        std::thread::Builder::new()
            .name("haul-stream".to_owned())
            .spawn(move || reader.run(tell))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            shared,
            display: display.to_owned(),
            started: now(),
        })
    }

    /// Reads this process's standard input; as [`StreamSource::start`].
    ///
    /// # Errors
    /// As [`StreamSource::start`].
    pub fn stdin(chunk_bytes: u32, tell: impl FnMut(StreamNews) + Send + 'static) -> Result<Self> {
        use std::os::fd::AsFd;
        let input = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::local("cannot read standard input", error).at(Side::Sender))?;
        Self::start(input, "standard input", chunk_bytes, tell)
    }

    /// The bytes of `chunk`, while it is kept; the last one may be short.
    #[must_use]
    pub fn chunk(&self, chunk: ChunkId) -> Option<StreamChunk> {
        self.shared.lock().kept.get(&chunk).cloned()
    }

    /// The receiver has these chunks: they are forgotten, and more is read.
    pub fn release(&self, chunks: ChunkRange) {
        let mut state = self.shared.lock();
        let end = chunks.first.saturating_add(chunks.count);
        let mut later = state.kept.split_off(&chunks.first);
        let mut beyond = later.split_off(&end);
        state.kept.append(&mut beyond);
        for chunk in later.into_values() {
            // A chunk that a worker still holds is freed by its last holder.
            if let Ok(buffer) = Arc::try_unwrap(chunk.0)
                && state.spare.len() < 4
            {
                state.spare.push(buffer);
            }
        }
        drop(state);
        self.shared.room.notify_one();
    }

    /// Ends the reading; chunks already kept stay readable.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.room.notify_one();
        // The counter cannot overflow by a few stops.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
    }

    /// Bytes read so far: a stream is read once, so that it cannot differ.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.shared.lock().read_bytes
    }

    /// What sentences call it.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.display
    }

    /// As it is offered.
    #[must_use]
    pub fn entry(&self) -> Entry {
        Entry {
            name: b"stdin".to_vec(),
            kind: EntryKind::Stream,
            size: 0,
            mode: 0o644,
            mtime_seconds: self.started.0,
            mtime_nanos: self.started.1,
            data: Data::Everywhere,
            ..Entry::default()
        }
    }
}

impl Drop for StreamSource {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's own things.
struct StreamReader {
    shared: Arc<StreamShared>,
    input: OwnedFd,
    display: String,
    chunk_bytes: usize,
    chunks_max: usize,
}

impl StreamReader {
    fn run(self, mut tell: impl FnMut(StreamNews)) {
        let mut news = StreamNews {
            complete_chunks: 0,
            end_bytes: None,
            error: None,
        };
        while let Some(mut buffer) = self.room() {
            let outcome = self.fill(&mut buffer);
            let bytes = buffer.len() as u64;
            let full = buffer.len() == self.chunk_bytes;
            match outcome {
                Ok(false) => return,
                Ok(true) => {}
                Err(errno) => {
                    let doing = format!("cannot read {}", self.display);
                    news.error = Some(Error::local(doing, why(errno)).at(Side::Sender));
                    return tell(news);
                }
            }
            let mut state = self.shared.lock();
            state.read_bytes += bytes;
            if !full {
                news.end_bytes = Some(state.read_bytes);
            }
            if bytes > 0 {
                let chunk = StreamChunk(Arc::new(buffer));
                state.kept.insert(news.complete_chunks, chunk);
            }
            drop(state);
            if !full {
                return tell(news);
            }
            news.complete_chunks += 1;
            tell(news.clone());
        }
    }

    /// An empty buffer, once a chunk more may be kept; `None` when stopped.
    fn room(&self) -> Option<Vec<u8>> {
        let mut state = self.shared.lock();
        while state.kept.len() >= self.chunks_max && !state.stopped {
            state = self
                .shared
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return None;
        }
        let mut buffer = state.spare.pop().unwrap_or_default();
        buffer.clear();
        Some(buffer)
    }

    /// Reads until a chunk is full or the input ends; false when stopped.
    fn fill(&self, buffer: &mut Vec<u8>) -> rustix::io::Result<bool> {
        buffer.resize(self.chunk_bytes, 0);
        let mut filled = 0;
        while filled < self.chunk_bytes {
            if !self.wait()? {
                return Ok(false);
            }
            match rustix::io::read(&self.input, &mut buffer[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                // Another process may have set O_NONBLOCK on the shared input.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        buffer.truncate(filled);
        Ok(true)
    }

    /// Waits for input; false when the stop came first.
    fn wait(&self) -> rustix::io::Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(&self.shared.stop, PollFlags::IN),
                PollFd::new(&self.input, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(false),
                // A hang-up or an error is told by the read that follows.
                Ok(_) if !fds[1].revents().is_empty() => return Ok(true),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests;
