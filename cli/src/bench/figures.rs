//! A bench's figures: runs, intervals, summaries, as JSON (schema in
//! cli/SCHEMA.md) and as a table.
//!
//! Leaves to others: measuring. Invariant: a summary is of complete runs only,
//! and the intervals of a run add up to what landed in it.

use crate::outcome::{self, OutcomeWord, ReportJson};
use crate::size::{format_connections, format_rate, format_seconds, format_size};
use haul_engine::report::{ConnectionProgress, ConnectionReport, ErrorReport, Report, TcpInfo};
use haul_engine::{Error, ErrorKind, Progress};
use serde::Serialize;

/// What a run is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Configuration {
    /// Data connections.
    pub connections: u32,
    /// The chunk size in bytes.
    pub chunk_bytes: u32,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// The server; null for the embedded one.
    pub peer: Option<String>,
    /// push or pull.
    pub direction: &'static str,
    /// Where bytes came from.
    pub source: String,
    /// file or null.
    pub sink: &'static str,
    /// Of one run; null for an endless source.
    pub bytes: Option<u64>,
    /// Of one run of an endless source.
    pub seconds: Option<f64>,
    /// Where files were made.
    pub directory: Option<String>,
    /// haul's version.
    pub version: &'static str,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunFigures {
    /// Its number, from 1.
    pub run: u32,
    /// What it was measured with.
    pub configuration: Configuration,
    /// The target was read back and is the source.
    pub compared: Option<bool>,
    /// Its report.
    #[serde(flatten)]
    pub report: ReportJson,
}

/// One interval of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Interval {
    /// The run's number.
    pub run: u32,
    /// Seconds since the run's start.
    pub start: f64,
    /// Seconds since the run's start.
    pub end: f64,
    /// Landed between them.
    pub bytes: u64,
    /// The rate between them; null where no time passed.
    pub bytes_per_second: Option<f64>,
    /// Each connection.
    pub connections: Vec<IntervalConnection>,
}

/// One connection in an interval.
#[derive(Clone, Debug, Serialize)]
pub struct IntervalConnection {
    /// Its number.
    pub connection: u32,
    /// Payload bytes in the interval.
    pub bytes: u64,
    /// At the interval's end.
    pub tcp: Option<TcpInfo>,
}

/// Intervals in lines; nothing where the run was shorter than two.
#[must_use]
pub fn interval_table(intervals: &[Interval]) -> String {
    if intervals.len() < 2 {
        return String::new();
    }
    let line = |one: &Interval| {
        format!(
            "{:>7.2} to {:>7.2} s  {:>10}  {}",
            one.start,
            one.end,
            format_size(one.bytes),
            one.bytes_per_second.map_or_else(String::new, format_rate),
        )
    };
    let lines: Vec<String> = intervals.iter().map(line).collect();
    lines.join("\n")
}

/// The spread of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half are at most this.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// All complete runs of one configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Data connections.
    pub connections: u32,
    /// The chunk size in bytes.
    pub chunk_bytes: u32,
    /// Complete runs.
    pub runs: usize,
    /// Landed bytes over the total time.
    pub goodput_bytes_per_second: Option<Spread>,
    /// The total time.
    pub seconds: Option<Spread>,
    /// Of both ends' data planes; null where one could not tell.
    pub cpu_seconds_per_gib: Option<Spread>,
}

/// The final JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct BenchJson {
    outcome: OutcomeWord,
    exit_code: u8,
    error: Option<ErrorReport>,
    /// What was measured; null where it made no sense.
    pub setup: Option<Setup>,
    /// Every run.
    pub runs: Vec<RunFigures>,
    /// Every run's intervals.
    pub intervals: Vec<Interval>,
    configurations: Vec<Summary>,
    summary: Option<Summary>,
}

impl Default for BenchJson {
    fn default() -> Self {
        Self {
            outcome: OutcomeWord::Complete,
            exit_code: 0,
            error: None,
            setup: None,
            runs: Vec::new(),
            intervals: Vec::new(),
            configurations: Vec::new(),
            summary: None,
        }
    }
}

impl BenchJson {
    /// The same with how it ended.
    pub fn with_end(&mut self, error: Option<&Error>, signalled: Option<u8>) -> &Self {
        self.exit_code = outcome::exit_code(error, signalled);
        self.error = error_json(error);
        self.outcome = match error.map(|error| error.kind) {
            None => OutcomeWord::Complete,
            Some(ErrorKind::Interrupted) => OutcomeWord::Interrupted,
            Some(_) => OutcomeWord::Failed,
        };
        self
    }

    /// Computes the summaries of the runs so far.
    pub fn summarize(&mut self) {
        let mut seen: Vec<Configuration> = Vec::new();
        for run in &self.runs {
            if !seen.contains(&run.configuration) {
                seen.push(run.configuration);
            }
        }
        self.configurations = seen
            .into_iter()
            .map(|configuration| Summary::new(configuration, &self.runs))
            .collect();
        let goodput = |summary: &Summary| {
            summary
                .goodput_bytes_per_second
                .map_or(f64::NEG_INFINITY, |spread| spread.median)
        };
        self.summary = self
            .configurations
            .iter()
            .filter(|summary| summary.runs > 0)
            .max_by(|one, other| goodput(one).total_cmp(&goodput(other)))
            .cloned();
    }

    /// The summaries for a person.
    #[must_use]
    pub fn table(&self) -> String {
        let lines: Vec<String> = self
            .configurations
            .iter()
            .filter_map(|summary| {
                let goodput = summary.goodput_bytes_per_second?;
                let seconds = summary.seconds?;
                let cpu = summary.cpu_seconds_per_gib.map_or_else(String::new, |cpu| {
                    format!(", {:.2} CPU seconds a GiB", cpu.median)
                });
                Some(format!(
                    "{}, {} chunks: median {} of {} runs ({} to {} MB/s), {}{cpu}",
                    format_connections(summary.connections),
                    format_size(summary.chunk_bytes.into()),
                    format_rate(goodput.median),
                    summary.runs,
                    (goodput.min / 1e6).round(),
                    (goodput.max / 1e6).round(),
                    format_seconds(seconds.median),
                ))
            })
            .collect();
        lines.join("\n")
    }
}

impl Summary {
    /// Of the complete ones of `runs` with `configuration`.
    fn new(configuration: Configuration, runs: &[RunFigures]) -> Self {
        let complete: Vec<&ReportJson> = runs
            .iter()
            .filter(|run| run.configuration == configuration && run.compared != Some(false))
            .map(|run| &run.report)
            .filter(|report| report.outcome == OutcomeWord::Complete)
            .collect();
        let spread = |figure: &dyn Fn(&ReportJson) -> Option<f64>| {
            Spread::new(
                complete
                    .iter()
                    .filter_map(|report| figure(report))
                    .collect(),
            )
        };
        Self {
            connections: configuration.connections,
            chunk_bytes: configuration.chunk_bytes,
            runs: complete.len(),
            goodput_bytes_per_second: spread(&|report| report.goodput_bytes_per_second),
            seconds: spread(&|report| Some(report.seconds.total)),
            cpu_seconds_per_gib: spread(&|report| {
                let cpu = report.cpu_seconds.sender? + report.cpu_seconds.receiver?;
                let gib = report.bytes.landed as f64 / (1024.0 * 1024.0 * 1024.0);
                (gib > 0.0).then(|| cpu / gib)
            }),
        }
    }
}

impl Spread {
    /// Of `values`; `None` of none.
    fn new(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            (values[middle - 1] + values[middle]) / 2.0
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

/// Cuts a run's progress into intervals.
pub struct Intervals {
    run: u32,
    length_seconds: f64,
    /// Where the open interval began.
    start_seconds: f64,
    start_bytes: u64,
    start_connections: Vec<ConnectionProgress>,
    /// When it is to end: a multiple of the length, so that what is seen late
    /// does not make the next ones late.
    due_seconds: f64,
    done: Vec<Interval>,
}

impl Intervals {
    /// Of run number `run`, each of `length_seconds`.
    #[must_use]
    pub fn new(run: u32, length_seconds: f64) -> Self {
        Self {
            run,
            length_seconds,
            start_seconds: 0.0,
            start_bytes: 0,
            start_connections: Vec::new(),
            due_seconds: length_seconds,
            done: Vec::new(),
        }
    }

    /// How far the run is; ends the open interval where it is long enough.
    pub fn add(&mut self, progress: &Progress) {
        if progress.seconds >= self.due_seconds {
            self.cut(
                progress.seconds,
                progress.landed_bytes,
                progress.connections.clone(),
            );
            let passed = (progress.seconds / self.length_seconds).floor();
            self.due_seconds = (passed + 1.0) * self.length_seconds;
        }
    }

    /// All intervals, the last one ending with the run.
    #[must_use]
    pub fn finish(mut self, report: &Report) -> Vec<Interval> {
        let (seconds, bytes) = (report.seconds.total, report.bytes.landed);
        if bytes > self.start_bytes || (self.done.is_empty() && seconds > 0.0) {
            let now = |one: ConnectionReport| ConnectionProgress {
                connection: one.connection,
                bytes: one.bytes,
                tcp: one.tcp,
            };
            let connections = outcome::connections(report).into_iter().map(now);
            self.cut(seconds, bytes, connections.collect());
        }
        self.done
    }

    fn cut(&mut self, seconds: f64, bytes: u64, connections: Vec<ConnectionProgress>) {
        let landed = bytes.saturating_sub(self.start_bytes);
        let length = seconds - self.start_seconds;
        let before = |number: u32| {
            self.start_connections
                .iter()
                .find(|one| one.connection == number)
                .map_or(0, |one| one.bytes)
        };
        let interval = Interval {
            run: self.run,
            start: self.start_seconds,
            end: seconds,
            bytes: landed,
            bytes_per_second: (length > 0.0).then(|| landed as f64 / length),
            connections: connections
                .iter()
                .map(|one| IntervalConnection {
                    connection: one.connection,
                    bytes: one.bytes.saturating_sub(before(one.connection)),
                    tcp: one.tcp.clone(),
                })
                .collect(),
        };
        self.done.push(interval);
        self.start_seconds = seconds;
        self.start_bytes = bytes;
        self.start_connections = connections;
    }
}

/// The error as the JSON tells it.
fn error_json(error: Option<&Error>) -> Option<ErrorReport> {
    error.map(ErrorReport::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::tests::full_report;

    fn run(number: u32, connections: u32, goodput: f64) -> RunFigures {
        let mut report = full_report();
        report.error = None;
        let mut json = ReportJson::new(&report, None);
        json.goodput_bytes_per_second = Some(goodput);
        RunFigures {
            run: number,
            configuration: Configuration {
                connections,
                chunk_bytes: 65_536,
            },
            compared: Some(true),
            report: json,
        }
    }

    #[test]
    fn the_summary_is_the_best_median_of_complete_runs() {
        let mut bench = BenchJson {
            runs: vec![
                run(1, 1, 10.0),
                run(2, 1, 30.0),
                run(3, 4, 25.0),
                run(4, 4, 27.0),
                run(5, 4, 1_000.0),
            ],
            ..BenchJson::default()
        };
        bench.runs[4].compared = Some(false);
        bench.summarize();
        let best = bench.summary.as_ref().expect("a summary");
        assert_eq!((best.connections, best.runs), (4, 2));
        let spread = best.goodput_bytes_per_second.expect("figures");
        assert_eq!((spread.median, spread.min, spread.max), (26.0, 25.0, 27.0));
        assert_eq!(bench.configurations.len(), 2);
        assert_eq!(bench.table().lines().count(), 2);
    }

    #[test]
    fn the_median_of_an_odd_count_is_the_middle() {
        let spread = Spread::new(vec![9.0, 1.0, 2.0]).expect("figures");
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 9.0));
        assert_eq!(Spread::new(Vec::new()), None);
    }

    #[test]
    fn intervals_add_up_to_what_landed() {
        let mut intervals = Intervals::new(1, 1.0);
        for tenth in 1..=25_u32 {
            intervals.add(&Progress {
                landed_bytes: u64::from(tenth) * 10,
                planned_bytes: Some(260),
                files: 1,
                ended_files: 0,
                seconds: f64::from(tenth) / 10.0,
                connections: Vec::new(),
                ..Progress::default()
            });
        }
        let mut report = full_report();
        report.bytes.landed = 260;
        report.seconds.total = 2.6;
        let cut = intervals.finish(&report);
        assert_eq!(cut.len(), 3);
        assert_eq!(cut.iter().map(|one| one.bytes).sum::<u64>(), 260);
        assert!(cut.windows(2).all(|two| two[0].end == two[1].start));
        assert_eq!(cut[2].end, 2.6);
        assert_eq!(interval_table(&cut).lines().count(), 3);
        assert_eq!(interval_table(&cut[..1]), "", "the run itself says it");
    }

    #[test]
    fn an_interval_that_is_seen_late_makes_no_other_late() {
        let mut intervals = Intervals::new(1, 1.0);
        for seconds in [0.9, 1.09, 1.95, 2.05, 4.5, 5.0] {
            intervals.add(&Progress {
                landed_bytes: 1,
                planned_bytes: None,
                files: 1,
                ended_files: 0,
                seconds,
                connections: Vec::new(),
                ..Progress::default()
            });
        }
        let mut report = full_report();
        report.bytes.landed = 9;
        report.seconds.total = 5.5;
        let ends: Vec<f64> = intervals
            .finish(&report)
            .iter()
            .map(|one| one.end)
            .collect();
        assert_eq!(ends, [1.09, 2.05, 4.5, 5.0, 5.5]);
    }

    #[test]
    fn the_json_has_the_harness_s_fields() {
        let mut bench = BenchJson {
            runs: vec![run(1, 1, 10.0)],
            ..BenchJson::default()
        };
        bench.summarize();
        let json = serde_json::to_value(bench.with_end(None, None)).expect("JSON");
        for path in [
            "/outcome",
            "/exit_code",
            "/setup",
            "/intervals",
            "/configurations/0/seconds/median",
            "/summary/goodput_bytes_per_second/median",
            "/runs/0/run",
            "/runs/0/configuration/chunk_bytes",
            "/runs/0/compared",
            "/runs/0/connections/0/tcp/rtt_us",
            "/runs/0/latency/send/p99_us",
        ] {
            assert!(json.pointer(path).is_some(), "{path}");
        }
    }
}
