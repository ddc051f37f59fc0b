//! The report for a person: a headline, and the tables of -v and of bench.
//!
//! Leaves to others: where it is written. Invariant: it says what was
//! measured; a send that the kernel copied is never called zero-copy.

use crate::outcome;
use crate::size::{format_rate, format_seconds, format_size};
use haul_engine::report::{ConnectionReport, Latencies, Latency, Level, Report};

/// "587 MiB in 0.52 s: 1184 MB/s (1129 MiB/s), sealed"
#[must_use]
pub fn headline(report: &Report) -> String {
    let mut text = format!(
        "{} in {}",
        format_size(report.bytes.landed),
        format_seconds(report.seconds.total)
    );
    if let Some(rate) = outcome::goodput(report).filter(|_| report.bytes.landed > 0) {
        text += &format!(": {}", format_rate(rate));
    }
    match report.level {
        Some(level) => text += &format!(", {}", level_words(level)),
        None if report.bytes.sealed > 0 => {
            text += &format!(", {} of it sealed", format_size(report.bytes.sealed));
        }
        None => text += ", nothing sealed",
    }
    let entries = &report.entries;
    if entries.entries > 1 {
        text += &format!(", {} entries", entries.entries);
    }
    if entries.unchanged > 0 && entries.entries > 1 {
        text += &format!(", {} of them unchanged", entries.unchanged);
    }
    if entries.deleted > 0 {
        text += &format!(", {} deleted", entries.deleted);
    }
    if entries.vanished > 0 {
        text += &format!(", {} vanished meanwhile", entries.vanished);
    }
    let holes = entries.hole_bytes;
    if holes > 0 {
        text += &format!(", {} of holes kept", format_size(holes));
    }
    if report.bytes.resent > 0 {
        text += &format!(", {} sent again", format_size(report.bytes.resent));
    }
    text
}

/// "587 MiB of 3 files share …", where any do.
#[must_use]
pub fn sharing(report: &Report) -> Option<String> {
    let (files, bytes) = (report.entries.shared, report.entries.shared_bytes);
    let bytes = format_size(bytes);
    match files {
        0 => None,
        1 => Some(format!(
            "1 file shares its blocks with its source: its {bytes} were not sent"
        )),
        _ => Some(format!(
            "{files} files share their blocks with their sources: their {bytes} were not sent"
        )),
    }
}

/// A level as the headline says it.
fn level_words(level: Level) -> &'static str {
    match level {
        Level::WouldMake
        | Level::WouldSendSize
        | Level::WouldSendTime
        | Level::WouldSendContent
        | Level::WouldSendAnyway
        | Level::WouldReplace
        | Level::WouldCorrect => "nothing was touched",
        Level::Placed => "placed (not synced to disk)",
        Level::Delivered => "delivered",
        Level::Sealed => "sealed",
        Level::Unchanged => "nothing to do",
    }
}

/// What -v and bench tell beneath the headline.
#[must_use]
pub fn details(report: &Report) -> String {
    let mut text = String::new();
    let seconds = &report.seconds;
    text += &format!(
        "time: first byte {}, moving {}, sealing {}\n",
        seconds
            .first_byte
            .map_or_else(|| "none".to_owned(), format_seconds),
        format_seconds(seconds.moving),
        format_seconds(seconds.sealing)
    );
    for (name, side) in [("sender", &report.sender), ("receiver", &report.receiver)] {
        if let Some(side) = side {
            text += &format!(
                "{name}: {}, {} system calls, {:.2} CPU seconds\n",
                if side.method.is_empty() {
                    "no file"
                } else {
                    &side.method
                },
                side.system_calls,
                side.cpu_nanos as f64 / 1e9
            );
        }
    }
    if let Some(zero_copy) = zero_copy(report) {
        text += &format!("{zero_copy}\n");
    }
    for note in outcome::notes(report) {
        text += &format!("note: {note}\n");
    }
    text += &connections(&outcome::connections(report));
    text += &latencies(&outcome::latencies(report));
    text
}

/// What zero-copy sends came to; `None` where there were none.
fn zero_copy(report: &Report) -> Option<String> {
    let side = report.sender.as_ref()?;
    let (sent, copied) = (side.zero_copy_sent_bytes, side.zero_copy_copied_bytes);
    match (sent, copied) {
        (0, 0) => None,
        (0, copied) => Some(format!(
            "zero-copy sends: the kernel copied all {} of them",
            format_size(copied)
        )),
        (sent, 0) => Some(format!(
            "zero-copy sends: {} without a copy",
            format_size(sent)
        )),
        (sent, copied) => Some(format!(
            "zero-copy sends: {} without a copy, the kernel copied {}",
            format_size(sent),
            format_size(copied)
        )),
    }
}

/// One row for each connection.
fn connections(all: &[ConnectionReport]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut rows = vec![
        [
            "connection",
            "bytes",
            "path",
            "congestion",
            "buffers",
            "rtt",
            "retransmits",
            "",
        ]
        .map(str::to_owned),
    ];
    for one in all {
        let tcp = one.tcp.as_ref();
        rows.push([
            one.connection.to_string(),
            format_size(one.bytes),
            one.path.clone(),
            one.congestion_control.clone(),
            format!(
                "{} / {}",
                format_size(one.send_buffer_bytes),
                format_size(one.receive_buffer_bytes)
            ),
            tcp.map_or_else(String::new, |tcp| format!("{} µs", tcp.rtt_us)),
            tcp.map_or_else(String::new, |tcp| tcp.retransmits.to_string()),
            one.lost
                .as_ref()
                .map_or_else(String::new, |why| format!("lost: {why}")),
        ]);
    }
    columns(&rows)
}

/// One row for each stage that occurred, in microseconds.
#[must_use]
pub fn latencies(all: &Latencies) -> String {
    let mut rows = vec![
        [
            "latency µs",
            "count",
            "min",
            "mean",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "max",
            "one value is",
        ]
        .map(str::to_owned),
    ];
    for (name, of, latency) in all.stages() {
        if !latency.is_empty() {
            rows.push(stage(name, of, latency));
        }
    }
    if rows.len() == 1 {
        return String::new();
    }
    columns(&rows)
}

/// One stage's row.
fn stage(name: &str, of: &str, latency: &Latency) -> [String; 10] {
    let at = |quantile: f64| micros(latency.at(quantile) as f64);
    [
        name.to_owned(),
        latency.count().to_string(),
        micros(latency.min() as f64),
        micros(latency.mean()),
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        micros(latency.max() as f64),
        of.to_owned(),
    ]
}

/// Nanoseconds as microseconds for a person.
fn micros(nanos: f64) -> String {
    let micros = nanos / 1_000.0;
    if micros < 100.0 {
        format!("{micros:.1}")
    } else {
        format!("{micros:.0}")
    }
}

/// `rows` in columns: the first and the last to the left, the rest to the right.
fn columns<const COUNT: usize>(rows: &[[String; COUNT]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COUNT).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[column] - cell.chars().count());
            if column == 0 {
                line += &format!("{cell}{padding}");
            } else if column == COUNT - 1 {
                line += &format!("  {cell}");
            } else {
                line += &format!("  {padding}{cell}");
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::tests::full_report;

    #[test]
    fn the_headline_counts_landed_bytes() {
        let mut report = full_report();
        report.bytes.landed = 615_514_112;
        assert_eq!(
            headline(&report),
            "587 MiB in 0.50 s: 1231 MB/s (1174 MiB/s), sealed"
        );
        report.level = Some(Level::Placed);
        report.bytes.resent = 1_024;
        assert!(headline(&report).ends_with("placed (not synced to disk), 1 KiB sent again"));
        report.level = None;
        assert!(headline(&report).contains("1 KiB of it sealed"));
    }

    #[test]
    fn copied_bytes_are_never_called_zero_copy() {
        let told = details(&full_report());
        assert!(told.contains("the kernel copied all 1 KiB"), "{told}");
        assert!(!told.contains("without a copy"), "{told}");
    }

    #[test]
    fn stages_that_did_not_occur_have_no_row() {
        let mut all = Latencies::default();
        assert_eq!(latencies(&all), "");
        all.sync.record(2_000_000, 1);
        let told = latencies(&all);
        assert_eq!(told.lines().count(), 2, "{told}");
        assert!(told.contains("one fsync"), "{told}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bb", "c"], ["aaa", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "a    bb  c\naaa   b\n");
    }
}
