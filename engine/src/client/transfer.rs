//! One transfer as its caller holds it: events while it runs, a report at the end.
//!
//! Leaves to others: making it happen. Invariant: a transfer gives exactly one
//! report, after which no event follows, and dropping it stops it.

use crate::error::Error;
use crate::protocol::TransferId;
use crate::report::Report;
use crate::session::event::{Event, Update};
use crate::session::inbox::{Inner, StopHow};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Stops a transfer from any thread.
#[derive(Clone)]
pub struct StopHandle {
    transfer: TransferId,
    session: UnboundedSender<Inner>,
}

impl StopHandle {
    /// Interrupts the transfer: it ends with [`crate::ErrorKind::Interrupted`].
    pub fn stop(&self) {
        // A transfer that is over needs no stop.
        let _ = self
            .session
            .send(Inner::Stop(self.transfer, StopHow::Interrupt));
    }

    /// Ends an endless generated source where it is; the transfer completes.
    pub fn finish(&self) {
        let _ = self
            .session
            .send(Inner::Stop(self.transfer, StopHow::Finish));
    }
}

/// A running transfer.
pub struct Transfer {
    updates: mpsc::Receiver<Update>,
    stop: StopHandle,
    report: Option<Box<Report>>,
    /// Why the session ended, if it did so before it heard of the transfer.
    ended: Arc<Mutex<Option<Error>>>,
    began: Instant,
}

impl Transfer {
    pub(super) fn new(
        updates: mpsc::Receiver<Update>,
        transfer: TransferId,
        session: UnboundedSender<Inner>,
        ended: Arc<Mutex<Option<Error>>>,
    ) -> Self {
        let stop = StopHandle { transfer, session };
        Self {
            updates,
            stop,
            report: None,
            ended,
            began: Instant::now(),
        }
    }

    /// The next event; `None` after `timeout`, or when the transfer is over
    /// (then [`Transfer::is_over`] is true).
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Option<Event> {
        if self.report.is_some() {
            return None;
        }
        let update = match timeout {
            Some(timeout) => match self.updates.recv_timeout(timeout) {
                Ok(update) => update,
                Err(mpsc::RecvTimeoutError::Timeout) => return None,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    Update::Report(Box::new(self.abandoned()))
                }
            },
            None => self
                .updates
                .recv()
                .unwrap_or_else(|_| Update::Report(Box::new(self.abandoned()))),
        };
        match update {
            Update::Event(event) => Some(event),
            Update::Report(report) => {
                self.report = Some(report);
                None
            }
        }
    }

    /// The report when the session was gone before it could give one.
    fn abandoned(&self) -> Report {
        let ended = self
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let error = ended.unwrap_or_else(|| {
            Error::peer("cannot go on with the transfer", "the session has ended")
        });
        Report::failed(error, self.began.elapsed())
    }

    /// True exactly when the report is there.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.report.is_some()
    }

    /// A handle that stops it from another thread or a signal's thread.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Waits for the end; the report holds the error, if there is one.
    #[must_use]
    pub fn wait(mut self) -> Report {
        loop {
            if let Some(report) = self.report.take() {
                return *report;
            }
            let _ = self.next_event(None);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.stop();
    }
}
