//! Bounded queues between threads, with an eventfd that wakes a sleeping reader.
//!
//! Leaves to others: what the values mean. Invariant: a value is never lost
//! while the reader lives; a busy reader costs the writer no system call,
//! because the eventfd is written only after the reader said that it sleeps.

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

struct QueueShared<T> {
    values: ArrayQueue<T>,
    event: OwnedFd,
    /// True exactly when the reader may be waiting on `event`.
    asleep: AtomicBool,
    reader_gone: AtomicBool,
    writers: AtomicUsize,
    /// Writes of `event` that nobody counted yet.
    signals: AtomicU64,
}

impl<T> QueueShared<T> {
    fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.signals.fetch_add(1, Ordering::Relaxed);
            // The counter cannot overflow: one write for each sleep.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

/// The writing end; clones write to the same queue.
pub struct Writer<T>(Arc<QueueShared<T>>);

/// The reading end.
pub struct Reader<T>(Arc<QueueShared<T>>);

/// The other end is gone; the value comes back.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone<T>(pub T);

/// A queue for at most `capacity` values.
///
/// # Errors
/// The errno of eventfd(2), as when no descriptor is left.
pub fn bounded<T>(capacity: usize) -> std::io::Result<(Writer<T>, Reader<T>)> {
    let shared = Arc::new(QueueShared {
        values: ArrayQueue::new(capacity),
        event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        asleep: AtomicBool::new(false),
        reader_gone: AtomicBool::new(false),
        writers: AtomicUsize::new(1),
        signals: AtomicU64::new(0),
    });
    Ok((Writer(shared.clone()), Reader(shared)))
}

impl<T> Writer<T> {
    /// Appends `value`; waits, a millisecond at a time, while the queue is full.
    ///
    /// # Errors
    /// [`Gone`] when the reader was dropped.
    pub fn send(&self, value: T) -> Result<(), Gone<T>> {
        let mut value = value;
        loop {
            if self.0.reader_gone.load(Ordering::Acquire) {
                return Err(Gone(value));
            }
            match self.0.values.push(value) {
                Ok(()) => {
                    self.0.wake();
                    return Ok(());
                }
                Err(back) => {
                    value = back;
                    self.0.wake();
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// System calls that waking the reader took since this was last asked, by
    /// all writers of the queue.
    #[must_use]
    pub fn take_signals(&self) -> u64 {
        self.0.signals.swap(0, Ordering::Relaxed)
    }

    /// Appends `value` if there is room.
    ///
    /// # Errors
    /// [`Gone`] with the value when there is none, or no reader.
    pub fn try_send(&self, value: T) -> Result<(), Gone<T>> {
        if self.0.reader_gone.load(Ordering::Acquire) {
            return Err(Gone(value));
        }
        let pushed = self.0.values.push(value).map_err(Gone);
        self.0.wake();
        pushed
    }
}

impl<T> Clone for Writer<T> {
    fn clone(&self) -> Self {
        self.0.writers.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl<T> Drop for Writer<T> {
    fn drop(&mut self) {
        if self.0.writers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.wake();
        }
    }
}

impl<T> Reader<T> {
    /// The oldest value, if any.
    #[must_use]
    pub fn try_recv(&self) -> Option<T> {
        self.0.values.pop()
    }

    /// True when no writer is left (values may be).
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.writers.load(Ordering::Acquire) == 0
    }

    /// Says that the reader is about to wait on the descriptor. Returns false
    /// when it must not, because a value came or the last writer left.
    #[must_use]
    pub fn sleep(&self) -> bool {
        self.0.asleep.store(true, Ordering::SeqCst);
        if !self.0.values.is_empty() || self.is_closed() {
            self.awake();
            return false;
        }
        true
    }

    /// Says that the reader no longer waits, and clears the descriptor.
    pub fn awake(&self) {
        if !self.0.asleep.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::read(&self.0.event, &mut [0u8; 8]);
        }
    }

    /// As [`Reader::awake`], when the descriptor was seen to be readable: a
    /// writer's late signal is cleared, too, which otherwise would end every
    /// later wait at once.
    pub fn woken(&self) {
        self.0.asleep.store(false, Ordering::SeqCst);
        let _ = rustix::io::read(&self.0.event, &mut [0u8; 8]);
    }

    /// Waits for a value; `None` when all writers are gone and it is empty, or
    /// after `timeout`.
    pub fn recv_timeout(&self, timeout: Option<Duration>) -> Option<T> {
        let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
        loop {
            if let Some(value) = self.try_recv() {
                return Some(value);
            }
            if self.is_closed() {
                return self.try_recv();
            }
            if !self.sleep() {
                continue;
            }
            let left = deadline
                .map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                self.awake();
                return self.try_recv();
            }
            let left = left.map(|left| rustix::event::Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let mut fds = [rustix::event::PollFd::new(
                &self.0.event,
                rustix::event::PollFlags::IN,
            )];
            // An interrupted wait is only a reason to look again.
            let _ = rustix::event::poll(&mut fds, left.as_ref());
            self.awake();
        }
    }
}

impl<T> AsFd for Reader<T> {
    /// Readable when a sleeping reader should look.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl<T> AsRawFd for Reader<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.0.reader_gone.store(true, Ordering::Release);
        while self.0.values.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cross_in_order_and_the_end_is_seen() {
        let (writer, reader) = bounded(4).expect("eventfd");
        let thread = std::thread::spawn(move || {
            for value in 0..1000 {
                writer.send(value).expect("reader lives");
            }
        });
        for value in 0..1000 {
            assert_eq!(reader.recv_timeout(None), Some(value));
        }
        assert_eq!(reader.recv_timeout(None), None);
        thread.join().expect("writer ends");
    }

    #[test]
    fn a_dropped_reader_gives_the_value_back() {
        let (writer, reader) = bounded(1).expect("eventfd");
        writer.send(1).expect("room");
        assert_eq!(writer.try_send(2), Err(Gone(2)));
        drop(reader);
        assert_eq!(writer.send(3), Err(Gone(3)));
    }

    #[test]
    fn a_wait_ends_at_its_timeout() {
        let (_writer, reader) = bounded::<u8>(1).expect("eventfd");
        assert_eq!(reader.recv_timeout(Some(Duration::from_millis(5))), None);
    }
}
