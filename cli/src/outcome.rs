//! What a transfer came to: the exit code and the JSON report (schema in
//! cli/SCHEMA.md).
//!
//! Leaves to others: measuring (the engine), tables for people (table.rs).
//! Invariant: a stage or a side that was not measured is null, never zero;
//! every field of the schema is always there.

use haul_engine::report::{
    Bytes, ConnectionReport, EntryCounts, ErrorReport, FileReport, Latencies, Latency, Level,
    Report, Seconds, SideReport,
};
use haul_engine::{Error, ErrorKind};
use serde::Serialize;

/// How it ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeWord {
    /// Everything reached the level asked for.
    Complete,
    /// Some files failed, the rest are sealed.
    Partial,
    /// Stopped by a signal.
    Interrupted,
    /// It failed.
    Failed,
}

/// The final JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct ReportJson {
    /// How it ended.
    pub outcome: OutcomeWord,
    /// The process's exit code.
    pub exit_code: u8,
    /// The first error.
    pub error: Option<ErrorReport>,
    /// The level that every file reached.
    pub level: Option<Level>,
    /// The peer proved the token.
    pub authenticated: bool,
    /// Byte counts.
    pub bytes: Bytes,
    /// Times.
    pub seconds: Seconds,
    /// Landed bytes over the total time; null where no time passed.
    pub goodput_bytes_per_second: Option<f64>,
    /// The chunk size in use; null where nothing was planned.
    pub chunk_bytes: Option<u32>,
    /// Entries, by what became of them.
    pub entries: EntryCounts,
    /// The files, of many a part.
    pub files: Vec<FileReport>,
    /// Each data connection, the sender's view first.
    pub connections: Vec<ConnectionReport>,
    /// What zero-copy sends came to.
    pub zero_copy: ZeroCopy,
    /// Of each end's data plane.
    pub system_calls: Sides<u64>,
    /// Of each end's data plane.
    pub cpu_seconds: Sides<f64>,
    /// How each end read or landed.
    pub methods: Sides<String>,
    /// Each stage, microseconds.
    pub latency: LatencyJson,
    /// What was left to haul and decided.
    pub notes: Vec<String>,
    /// What of the entries an end could not keep, a sentence a kind, and what it could
    /// not remove of directories that gave way.
    pub lost: Vec<String>,
}

/// The sender's zero-copy sends; null where the sender could not tell.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ZeroCopy {
    /// Sent without a copy.
    pub sent_bytes: Option<u64>,
    /// Asked to go without, and copied by the kernel all the same.
    pub copied_bytes: Option<u64>,
}

/// One value of each end.
#[derive(Clone, Debug, Serialize)]
pub struct Sides<T> {
    /// The end that reads.
    pub sender: Option<T>,
    /// The end that writes.
    pub receiver: Option<T>,
}

/// The five stages.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyJson {
    /// A send operation.
    pub send: Option<StageJson>,
    /// A zero-copy notification.
    pub release: Option<StageJson>,
    /// A chunk's acknowledgement.
    pub landed: Option<StageJson>,
    /// A file write.
    pub write: Option<StageJson>,
    /// An fsync.
    pub sync: Option<StageJson>,
}

/// One stage, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct StageJson {
    /// What one value stands for.
    pub of: &'static str,
    /// How many values.
    pub count: u64,
    /// The smallest.
    pub min_us: f64,
    /// The mean.
    pub mean_us: f64,
    /// Half are at most this.
    pub p50_us: f64,
    /// 90 % are at most this.
    pub p90_us: f64,
    /// 99 % are at most this.
    pub p99_us: f64,
    /// 99.9 % are at most this.
    pub p999_us: f64,
    /// The largest.
    pub max_us: f64,
}

/// The exit code that `report` means; `signalled` is that of a signal that came.
#[must_use]
pub fn exit_code(error: Option<&Error>, signalled: Option<u8>) -> u8 {
    match error {
        None => 0,
        // SIGTERM's code differs from SIGINT's; the engine knows only of a stop.
        Some(error) if error.kind == ErrorKind::Interrupted => {
            signalled.unwrap_or(error.exit_code())
        }
        Some(error) => error.exit_code(),
    }
}

/// Both ends' histograms together: each stage happens at one end.
#[must_use]
pub fn latencies(report: &Report) -> Latencies {
    let mut all = Latencies::default();
    for side in [&report.sender, &report.receiver].into_iter().flatten() {
        all.merge(&side.latencies);
    }
    all
}

/// Landed bytes over the total time; `None` of a failure before any landed.
#[must_use]
pub fn goodput(report: &Report) -> Option<f64> {
    let moved = report.bytes.landed > 0 || report.error.is_none();
    let seconds = report.seconds.total;
    (moved && seconds > 0.0).then(|| report.bytes.landed as f64 / seconds)
}

/// The sender's view of each connection, with the receive buffer that the
/// receiver has; the receiver's own view where the sender could not tell.
#[must_use]
pub fn connections(report: &Report) -> Vec<ConnectionReport> {
    let (Some(sender), Some(receiver)) = (&report.sender, &report.receiver) else {
        return [&report.sender, &report.receiver]
            .into_iter()
            .flatten()
            .flat_map(|side| side.connections.clone())
            .collect();
    };
    let mut joined = sender.connections.clone();
    for connection in &mut joined {
        let other = receiver
            .connections
            .iter()
            .find(|other| other.connection == connection.connection);
        if let Some(other) = other.filter(|other| other.receive_buffer_bytes > 0) {
            connection.receive_buffer_bytes = other.receive_buffer_bytes;
        }
    }
    joined
}

/// What the ends could not keep of the entries, each once.
#[must_use]
pub fn lost(report: &Report) -> Vec<String> {
    let sides = [&report.sender, &report.receiver];
    let mut lost: Vec<String> = sides
        .into_iter()
        .flatten()
        .flat_map(|side| side.lost.iter().cloned())
        .collect();
    lost.dedup();
    lost
}

/// The notes of both ends, each with whose it is; a note that both give, once.
#[must_use]
pub fn notes(report: &Report) -> Vec<String> {
    let of = |side: &Option<SideReport>, name: &str| -> Vec<String> {
        side.iter()
            .flat_map(|side| &side.notes)
            .map(|note| format!("{name}: {note}"))
            .collect()
    };
    let mut notes = of(&report.sender, "sender");
    notes.extend(of(&report.receiver, "receiver"));
    let mut seen = std::collections::HashSet::new();
    notes.retain(|note| seen.insert(note.clone()));
    notes
}

impl ReportJson {
    /// The JSON of `report`.
    #[must_use]
    pub fn new(report: &Report, signalled: Option<u8>) -> Self {
        let exit_code = exit_code(report.error.as_ref(), signalled);
        Self {
            outcome: match report.error.as_ref().map(|error| error.kind) {
                None => OutcomeWord::Complete,
                Some(ErrorKind::Partial) => OutcomeWord::Partial,
                Some(ErrorKind::Interrupted) => OutcomeWord::Interrupted,
                Some(_) => OutcomeWord::Failed,
            },
            exit_code,
            error: report.error.as_ref().map(ErrorReport::from),
            level: report.level,
            authenticated: report.authenticated,
            bytes: report.bytes,
            seconds: report.seconds,
            goodput_bytes_per_second: goodput(report),
            chunk_bytes: (report.chunk_bytes > 0).then_some(report.chunk_bytes),
            entries: report.entries,
            files: report.files.clone(),
            connections: connections(report),
            zero_copy: ZeroCopy {
                sent_bytes: report.sender.as_ref().map(|side| side.zero_copy_sent_bytes),
                copied_bytes: report
                    .sender
                    .as_ref()
                    .map(|side| side.zero_copy_copied_bytes),
            },
            system_calls: sides(report, |side| side.system_calls),
            cpu_seconds: sides(report, |side| side.cpu_nanos as f64 / 1e9),
            methods: sides(report, |side| side.method.clone()),
            latency: LatencyJson::new(&latencies(report)),
            notes: notes(report),
            lost: lost(report),
        }
    }

    /// On one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Plain values only: nothing here can fail to serialize.
        serde_json::to_string(self).expect("plain values serialize")
    }

    /// On many lines, for a file.
    #[must_use]
    pub fn to_pretty(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain values serialize")
    }
}

/// `value` of each end that could tell.
fn sides<T>(report: &Report, value: impl Fn(&SideReport) -> T) -> Sides<T> {
    Sides {
        sender: report.sender.as_ref().map(&value),
        receiver: report.receiver.as_ref().map(&value),
    }
}

impl LatencyJson {
    /// The stages that occurred; the others are null.
    #[must_use]
    pub fn new(all: &Latencies) -> Self {
        let [send, release, landed, write, sync] = all
            .stages()
            .map(|(_, of, latency)| StageJson::new(of, latency));
        Self {
            send,
            release,
            landed,
            write,
            sync,
        }
    }
}

impl StageJson {
    /// One stage; `None` where it did not occur.
    #[must_use]
    pub fn new(of: &'static str, latency: &Latency) -> Option<Self> {
        if latency.is_empty() {
            return None;
        }
        let at = |quantile: f64| micros(latency.at(quantile) as f64);
        Some(Self {
            of,
            count: latency.count(),
            min_us: micros(latency.min() as f64),
            mean_us: micros(latency.mean()),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(latency.max() as f64),
        })
    }
}

/// Nanoseconds as microseconds with three decimals.
fn micros(nanos: f64) -> f64 {
    nanos.round() / 1_000.0
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
pub mod tests;
