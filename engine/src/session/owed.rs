//! Reports that workers were asked for.
//!
//! Leaves to others: asking. Invariant: a debt ends: by the last report, or by
//! its time.

use crate::protocol::Nanos;

/// A worker that was asked for its counts gives them within this time, or died
/// between the question and the answer.
const REPORT_WAIT_NANOS: Nanos = 10_000_000_000;

/// Reports that workers owe.
pub(crate) struct Owed {
    count: usize,
    until: Nanos,
}

impl Owed {
    /// Of `count` workers that were asked now.
    pub(crate) fn new(count: usize, now: Nanos) -> Self {
        let until = now.saturating_add(REPORT_WAIT_NANOS);
        Self { count, until }
    }

    /// One came.
    pub(crate) fn came(&mut self) {
        self.count = self.count.saturating_sub(1);
    }

    /// Takes the debt away where nothing more comes; true where it did so.
    pub(crate) fn take_paid(owed: &mut Option<Self>, now: Nanos) -> bool {
        let is_paid = |owed: &mut Self| owed.count == 0 || now >= owed.until;
        owed.take_if(is_paid).is_some()
    }
}
