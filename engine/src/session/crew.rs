//! The worker threads of one way, with the queues to and from them.
//!
//! Leaves to others: what they are told and what their events mean. Invariant:
//! a connection's commands all go to the same worker, in order.

use crate::data::Clock;
use crate::error::{Error, Result};
use crate::kernel::queue::{self, Reader, Writer};
use crate::limits;
use crate::protocol::ConnectionId;
use std::thread::JoinHandle;
use tokio::io::unix::AsyncFd;

/// Commands that wait for one worker, at most: runs ahead of every connection,
/// and a few that attach, detach and ask.
const COMMANDS_MAX: usize = limits::CONNECTIONS_MAX as usize * (limits::RUNS_AHEAD_MAX + 2) + 64;
/// Events that wait for the control plane; a full queue slows the workers down.
const EVENTS_MAX: usize = 4096;

/// Threads with their command queues.
type Threads<C> = Vec<(Writer<C>, JoinHandle<()>)>;

/// The workers of one way.
pub(crate) struct Crew<C, E> {
    threads: Threads<C>,
    events: AsyncFd<Reader<E>>,
}

impl<C, E> Crew<C, E> {
    /// Starts `count` workers, each named `name` and its number.
    ///
    /// # Errors
    /// No thread, no memory, or no ring on this machine.
    pub(crate) fn start(
        name: &str,
        count: usize,
        clock: Clock,
        spawn: impl Fn(&str, Reader<C>, Writer<E>, Clock) -> Result<JoinHandle<()>>,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| Error::local("cannot start worker threads", error);
        let (writer, reader) = queue::bounded(EVENTS_MAX).map_err(failed)?;
        let mut threads = Vec::new();
        for number in 0..count {
            let (commands, inbox) = queue::bounded(COMMANDS_MAX).map_err(failed)?;
            let thread = spawn(&format!("{name}-{number}"), inbox, writer.clone(), clock)?;
            threads.push((commands, thread));
        }
        Ok(Self {
            threads,
            events: watch(reader)?,
        })
    }

    /// Tells the connection's worker; false where that has ended, which told
    /// `Detached` for all it had.
    pub(crate) fn tell(&self, connection: ConnectionId, command: C) -> bool {
        let (commands, _) = &self.threads[connection as usize % self.threads.len()];
        commands.send(command).is_ok()
    }

    /// Tells every worker; returns how many there are.
    pub(crate) fn tell_all(&self, command: impl Fn() -> C) -> usize {
        self.threads
            .iter()
            .filter(|(commands, _)| commands.send(command()).is_ok())
            .count()
    }

    /// The next event of one of them.
    pub(crate) fn next(&self) -> Option<E> {
        self.events.get_ref().try_recv()
    }

    /// Waits until there is an event. May be dropped at any time.
    pub(crate) async fn ready(&self) {
        let events = self.events.get_ref();
        if !events.sleep() {
            if events.is_closed() {
                // All of them have ended, and told so: nothing more comes.
                return std::future::pending().await;
            }
            return;
        }
        // Only a runtime that shuts down makes this fail; then nothing is awaited.
        if let Ok(mut ready) = self.events.readable().await {
            ready.clear_ready();
        }
        events.awake();
    }

    /// Awaits the end of all, which were told to stop; blocks. The reader goes
    /// first: a worker must not wait on a full queue.
    pub(crate) fn into_joiner(self) -> Joiner<C> {
        Joiner(self.threads)
    }
}

/// The threads of a crew whose events nobody reads any more.
pub(crate) struct Joiner<C>(Threads<C>);

impl<C> Joiner<C> {
    /// Awaits them.
    pub(crate) fn join(self) {
        for (commands, thread) in self.0 {
            // A worker without a writer has nobody to serve and ends, too.
            drop(commands);
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// The reader, so that its descriptor can be awaited.
#[allow(
    deprecated,
    reason = "its successor is unsafe, and unsafe code stays in kernel/; what it asks for holds, as a \
              reader owns one eventfd for its whole life"
)]
fn watch<E>(reader: Reader<E>) -> Result<AsyncFd<Reader<E>>> {
    AsyncFd::new(reader).map_err(|error| Error::local("cannot wait for worker threads", error))
}

/// More than two connections, and so more than one worker, never helped on two
/// cores; a worker saturates one core and a peer's work needs others.
pub(crate) fn workers_by_cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 4).clamp(1, 4)
}
