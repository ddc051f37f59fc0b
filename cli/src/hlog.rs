//! `--hdr-log`: the histograms as an interval log (.hlog) or as percentile
//! distributions (.hgrm).
//!
//! Leaves to others: what was timed. Invariant: an interval log holds the very
//! histograms that were recorded, in nanoseconds, so that its readers tell the
//! same counts and percentiles; percentile tables are in microseconds, as the
//! JSON is; every file opens with what the readers of its format expect.

use crate::console::{close, fault};
use haul_engine::Error;
use haul_engine::report::{Latencies, Latency};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The line that names the columns of an interval log.
const LEGEND: &str =
    "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"";
/// The version of the interval log's format that has tags.
const VERSION: &str = "#[Histogram log format version 1.3]";

/// What `Interval_Max` is divided by, as the format's other writers do.
const NANOS_PER_MILLI: f64 = 1e6;

/// Which of the two formats, by the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// A line for each stage and run.
    IntervalLog,
    /// A table for each stage and run.
    Percentiles,
}

/// An open `--hdr-log` file.
pub struct HdrLog {
    path: PathBuf,
    format: Format,
    output: BufWriter<File>,
    started: SystemTime,
}

impl HdrLog {
    /// Makes `path` before anything moves, so that a name that cannot be
    /// written fails early.
    ///
    /// # Errors
    /// The name ends in neither .hlog nor .hgrm, or the file cannot be made.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("hlog") => Format::IntervalLog,
            Some("hgrm") => Format::Percentiles,
            _ => {
                return Err(Error::usage(format!(
                    "cannot tell the format of --hdr-log {}",
                    path.display()
                ))
                .cure("end its name in .hlog or .hgrm"));
            }
        };
        let file = File::create(path).map_err(|error| failed(path, &error))?;
        let mut log = Self {
            path: path.to_owned(),
            format,
            output: BufWriter::new(file),
            started: SystemTime::now(),
        };
        if format == Format::IntervalLog {
            write_header(&mut log.output, log.started).map_err(|error| failed(path, &error))?;
        }
        Ok(log)
    }

    /// Adds one transfer that began at `began`; `prefix` tells runs apart.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(
        &mut self,
        prefix: &str,
        began: SystemTime,
        seconds: f64,
        all: &Latencies,
    ) -> Result<(), Error> {
        let start = began.duration_since(self.started).unwrap_or_default();
        let length = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        for (name, of, latency) in all.stages() {
            if latency.is_empty() {
                continue;
            }
            let stage = format!("{prefix}{name}");
            match self.format {
                Format::IntervalLog => {
                    let values = latency.histogram();
                    write_interval(&mut self.output, &stage, of, (start, length), values)
                }
                Format::Percentiles => write_percentiles(&mut self.output, &stage, of, latency),
            }
            .map_err(|error| failed(&self.path, &error))?;
        }
        Ok(())
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<(), Error> {
        let Self { path, output, .. } = self;
        // A disk that is full or gone may say so only when the file is closed.
        output
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(close)
            .map_err(|error| failed(&path, &error))
    }
}

/// The error of a file that cannot be written.
fn failed(path: &Path, error: &io::Error) -> Error {
    fault(
        format!("cannot write the latencies to {}", path.display()),
        error,
    )
}

/// The lines that an interval log begins with.
fn write_header(output: &mut impl Write, started: SystemTime) -> io::Result<()> {
    writeln!(output, "{VERSION}")?;
    writeln!(
        output,
        "#[haul {}; values are nanoseconds, Interval_Max is milliseconds]",
        env!("CARGO_PKG_VERSION")
    )?;
    IntervalLogWriterBuilder::new()
        .with_start_time(started)
        .with_max_value_divisor(NANOS_PER_MILLI)
        .begin_log_with(output, &mut V2DeflateSerializer::new())?;
    writeln!(output, "{LEGEND}")
}

/// One stage of one transfer: a comment and an interval.
fn write_interval(
    output: &mut impl Write,
    stage: &str,
    of: &str,
    (start, length): (Duration, Duration),
    values: &Histogram<u64>,
) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .with_max_value_divisor(NANOS_PER_MILLI)
        .begin_log_with(output, &mut serializer)?;
    writer.write_comment(&format!("{stage}: {of}, nanoseconds"))?;
    writer
        .write_histogram(values, start, length, Tag::new(stage))
        .map_err(|error| io::Error::other(format!("{error:?}")))
}

/// One stage of one transfer: a percentile distribution, as HdrHistogram's
/// outputPercentileDistribution writes it.
fn write_percentiles(
    output: &mut impl Write,
    stage: &str,
    of: &str,
    latency: &Latency,
) -> io::Result<()> {
    let micros = |nanos: f64| nanos / 1_000.0;
    let values = latency.histogram();
    writeln!(output, "#[{stage}: {of}, microseconds]")?;
    writeln!(
        output,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut total = 0;
    for step in values.iter_quantiles(5) {
        total += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let value = micros(latency.clamped(step.value_iterated_to()) as f64);
        if quantile < 1.0 {
            writeln!(
                output,
                "{value:>12.3} {quantile:>14.12} {total:>10} {:>14.2}",
                1.0 / (1.0 - quantile)
            )?;
        } else {
            writeln!(output, "{value:>12.3} {quantile:>14.12} {total:>10}")?;
        }
    }
    writeln!(
        output,
        "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]",
        micros(latency.mean()),
        micros(deviation(latency))
    )?;
    writeln!(
        output,
        "#[Max     = {:>12.3}, Total count    = {:>12}]",
        micros(latency.max() as f64),
        latency.count()
    )?;
    writeln!(
        output,
        "#[Buckets = {:>12}, SubBuckets     = {:>12}]\n",
        values.buckets(),
        // At two digits a sub-bucket tells 2 × 10² values apart, rounded up to a
        // power of two.
        256
    )
}

/// The standard deviation in nanoseconds; none where all are equal, though a
/// bucket has a width.
fn deviation(latency: &Latency) -> f64 {
    if latency.min() == latency.max() {
        return 0.0;
    }
    latency.histogram().stdev()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn some() -> Latencies {
        let mut all = Latencies::default();
        all.send.record(12_345_000, 90);
        all.send.record(50_000_000, 10);
        all.sync.record(400, 1);
        all
    }

    fn write(name: &str) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        let mut log = HdrLog::create(&path).expect("made");
        log.add("", SystemTime::now(), 1.5, &some()).expect("added");
        log.finish().expect("written");
        std::fs::read_to_string(path).expect("read")
    }

    #[test]
    fn an_interval_log_has_its_version_and_legend() {
        let text = write("x.hlog");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], VERSION);
        assert!(lines[2].starts_with("#[StartTime: "), "{}", lines[2]);
        assert_eq!(lines[4], LEGEND);
        let send = lines.iter().find(|line| line.starts_with("Tag=send,0."));
        let max = send
            .and_then(|line| line.split(',').nth(3))
            .expect("a column");
        let max: f64 = max.parse().expect("a number");
        assert!((50.0..51.0).contains(&max), "{max} ms");
        // The crate's reader has no rule for the legend, as other readers have.
        let entries = text.replace(&format!("{LEGEND}\n"), "");
        let tags: Vec<String> = IntervalLogIterator::new(entries.as_bytes())
            .filter_map(|entry| match entry.expect("parsed") {
                LogEntry::Interval(interval) => {
                    assert_eq!(interval.duration(), Duration::from_millis(1_500));
                    interval.tag().map(|tag| tag.as_str().to_owned())
                }
                _ => None,
            })
            .collect();
        assert_eq!(tags, ["send", "sync"]);
    }

    /// The histograms of an interval log by tag, as a reader gets them: base64,
    /// then the compressed V2 encoding.
    fn read_back(text: &str) -> Vec<(String, Histogram<u64>)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("Tag="));
        lines
            .map(|line| {
                let fields: Vec<&str> = line.split(',').collect();
                let encoded = base64(fields[4]);
                let read = Deserializer::new().deserialize(&mut encoded.as_slice());
                (fields[0].to_owned(), read.expect("it is a histogram"))
            })
            .collect()
    }

    fn base64(text: &str) -> Vec<u8> {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let letters = text.trim().bytes().filter(|letter| *letter != b'=');
        let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
        for letter in letters {
            let value = LETTERS.iter().position(|other| *other == letter);
            bits = bits << 6 | value.expect("base64") as u32;
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    }

    #[test]
    fn an_interval_log_keeps_the_histograms_exactly() {
        let all = some();
        let back = read_back(&write("x.hlog"));
        let tags: Vec<&str> = back.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["send", "sync"]);
        for ((_, back), own) in back.iter().zip([&all.send, &all.sync]) {
            let own = own.histogram();
            assert_eq!(back.len(), own.len());
            for quantile in [0.0, 0.5, 0.9, 0.91, 0.99, 0.999, 1.0] {
                let at = |values: &Histogram<u64>| values.value_at_quantile(quantile);
                assert_eq!(at(back), at(own), "at {quantile}");
            }
        }
    }

    #[test]
    fn a_single_value_is_its_own_edges_in_a_percentile_table() {
        let text = write("x.hgrm");
        let sync = text.split("#[sync:").nth(1).expect("a table");
        let steps: Vec<&str> = sync
            .lines()
            .filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert!(!steps.is_empty());
        assert!(steps.iter().all(|value| *value == "0.400"), "{steps:?}");
        assert!(sync.contains("#[Max     =        0.400, Total count    =            1]"));
        assert!(sync.contains("StdDeviation   =        0.000]"), "{sync}");
    }

    #[test]
    fn a_percentile_distribution_ends_at_one() {
        let text = write("x.hgrm");
        assert!(text.contains("Value     Percentile TotalCount 1/(1-Percentile)"));
        let last = text
            .lines()
            .rfind(|line| line.contains(" 1.000000000000 "))
            .expect("the last step");
        assert!(last.trim_end().ends_with(" 1"), "{last}");
        assert_eq!(text.matches("#[Mean    =").count(), 2);
    }

    #[test]
    fn another_name_is_a_usage_error() {
        let error = HdrLog::create(Path::new("/tmp/x.txt"))
            .err()
            .expect("refused");
        assert_eq!(error.exit_code(), 2);
    }
}
