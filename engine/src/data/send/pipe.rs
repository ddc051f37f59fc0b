//! The pipe that a connection splices through, and the chain in it.
//!
//! Leaves to others: queueing its steps. Invariant: one chain at a time goes
//! through a pipe.

use crate::kernel::page::PAGE_BYTES;
use crate::kernel::ring::Handle;
use rustix::io::Errno;

/// Bytes that a pipe is asked to hold: 1 MiB a splice moved 4.2 GiB/s at
/// 0.34–0.38 CPU seconds per GiB (one connection, loopback, both ends).
const PIPE_BYTES: usize = 1024 * 1024;

/// Steps of one chain, at most: a run of 8 MiB through pipes of 64 KiB, the
/// system's default. Users who hold many pipes get smaller ones, and what their
/// chains do not reach goes by copy.
pub const STEPS_MAX: usize = 144;

/// One operation of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpliceStep {
    /// Header and table.
    Head,
    /// From the file into the pipe.
    In,
    /// From the pipe into the socket.
    Out,
}

/// A connection's pipe and the chain in it.
pub struct Pipe {
    pub reading: Handle,
    pub writing: Handle,
    bytes: usize,
    pub chain: Chain,
}

/// What a chain did so far.
#[derive(Default)]
pub struct Chain {
    /// The load that goes.
    pub load: usize,
    /// Operations whose completion is due.
    pub due: usize,
    /// Bytes of its head that went.
    pub head: u64,
    /// Bytes that came into the pipe.
    pub taken: u64,
    /// Bytes that left it.
    pub given: u64,
    /// What ended the connection.
    pub error: Option<Errno>,
}

impl Pipe {
    /// An empty one.
    ///
    /// # Errors
    /// The errno of pipe2(2), or of asking for its size.
    pub fn new() -> Result<Self, Errno> {
        let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // Unprivileged users may be held to less: then more steps do it.
        let bytes = rustix::pipe::fcntl_setpipe_size(&writing, PIPE_BYTES)
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(&writing))?;
        Ok(Self {
            reading: reading.into(),
            writing: writing.into(),
            bytes,
            chain: Chain::default(),
        })
    }

    /// Completions that the chain in it still waits for.
    pub fn due(&self) -> usize {
        self.chain.due
    }

    /// Bytes of one step from `offset`: a pipe holds whole pages, and one that
    /// begins inside a page takes a page more.
    pub fn step_bytes(&self, offset: u64, left: u64) -> usize {
        let inside = offset % PAGE_BYTES as u64;
        let room = if inside == 0 {
            self.bytes
        } else {
            self.bytes - PAGE_BYTES
        };
        left.min(room as u64) as usize
    }
}
