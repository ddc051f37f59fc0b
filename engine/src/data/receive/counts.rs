//! What a receiving worker counts between two reports.
//!
//! Leaves to others: asking. Invariant: each report holds what happened since
//! the one before, so their sum is the whole.

use crate::data::thread;
use crate::protocol::Nanos;
use crate::report::{ConnectionReport, Latencies, SideReport};

/// System calls of one connection's report: three socket options and TCP_INFO,
/// and the two sysctls, each opened, read to its end and closed.
const CALLS_OF_A_REPORT: u64 = 12;

/// Ways that bytes landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMethod {
    /// pwrite in the worker's thread.
    Here,
    /// A ring write through the page cache.
    Ring,
    /// A ring write past the page cache.
    Direct,
    /// Counted and forgotten.
    Null,
    /// Standard output.
    Ordered,
    /// Received into the file's own huge pages.
    InPlace,
}

const METHODS: [(WriteMethod, &str); 6] = [
    (WriteMethod::Direct, "direct write"),
    (WriteMethod::Here, "buffered write"),
    (WriteMethod::Ring, "buffered ring write"),
    (WriteMethod::Null, "discarded"),
    (WriteMethod::Ordered, "in order"),
    (WriteMethod::InPlace, "in place on huge pages"),
];

/// Counts since the last report.
#[derive(Default)]
pub struct Counts {
    /// System calls beside the ring's own.
    pub system_calls: u64,
    latencies: Latencies,
    used: [bool; METHODS.len()],
    notes: Vec<String>,
    /// Connections that went since the last report.
    gone: Vec<ConnectionReport>,
    /// The thread's CPU time at the last report.
    cpu_nanos: u64,
}

impl Counts {
    /// One file write took `nanos`.
    pub fn wrote(&mut self, method: WriteMethod, nanos: Nanos) {
        self.used(method);
        self.latencies.write.record(nanos, 1);
    }

    /// Bytes landed that way.
    pub fn used(&mut self, method: WriteMethod) {
        self.used[method as usize] = true;
    }

    /// Something that haul decided; said once for each report.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// A connection goes.
    pub fn gone(&mut self, connection: ConnectionReport) {
        self.system_calls += CALLS_OF_A_REPORT;
        self.gone.push(connection);
    }

    /// The report; counts start again.
    pub fn take(
        &mut self,
        ring_calls: u64,
        connections: impl Iterator<Item = ConnectionReport>,
    ) -> Box<SideReport> {
        let cpu_nanos = thread::cpu_nanos();
        connections.for_each(|connection| self.gone(connection));
        let reports = std::mem::take(&mut self.gone);
        let used = std::mem::take(&mut self.used);
        let names: Vec<_> = METHODS
            .iter()
            .filter(|(method, _)| used[*method as usize])
            .map(|(_, name)| *name)
            .collect();
        let report = SideReport {
            system_calls: std::mem::take(&mut self.system_calls) + ring_calls + 1,
            cpu_nanos: cpu_nanos - self.cpu_nanos,
            latencies: std::mem::take(&mut self.latencies),
            connections: reports,
            method: names.join(", "),
            notes: std::mem::take(&mut self.notes),
            ..SideReport::default()
        };
        self.cpu_nanos = cpu_nanos;
        Box::new(report)
    }
}
