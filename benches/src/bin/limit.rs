//! The limit reference: measures every bare mover in interleaved rounds and
//! prints all rows, the best marked.
//!
//! Leaves to others: the movers (`haul_benches::limit`). Invariant: each run
//! has a fresh target, which is compared with the source in the first round
//! and by its size in every later one, and is gone afterwards.

use clap::Parser;
use haul_benches::limit::{self, LimitJob, LimitLanding, LimitMethod, LimitOutcome, Sending};
use serde_json::{Value, json};
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const GIB: f64 = (1u64 << 30) as f64;

/// The fastest way that bytes can go from file to file over loopback here,
/// without framing and without checks: what haul is held against.
#[derive(Parser)]
struct LimitArguments {
    /// The file to move; a random one is made in the directory without it.
    #[arg(long)]
    source: Option<PathBuf>,
    /// Where the target (and a made source) lie.
    #[arg(long, default_value = "/dev/shm")]
    directory: PathBuf,
    /// Size of a made source, in bytes or with KiB, MiB, GiB, kB, MB, GB.
    #[arg(long, default_value = "587MiB", value_parser = size)]
    bytes: u64,
    /// Measured rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Discard what arrives in place of landing it.
    #[arg(long)]
    null: bool,
    /// fdatasync the target inside the measured time.
    #[arg(long, conflicts_with = "null")]
    durable: bool,
    /// Drop the source from the page cache before each run.
    #[arg(long)]
    cold: bool,
    /// Each measured run directly behind an unmeasured one, so that it finds
    /// memory that was touched just now.
    #[arg(long, conflicts_with = "cold")]
    twice: bool,
    /// Only rows with this text in their name; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// The connections' congestion control.
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// One JSON object on standard output in place of the table.
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        unit => return Err(format!("{unit} is no unit of size")),
    };
    let count: u64 = digits.parse().map_err(|_| format!("{text} is no size"))?;
    count
        .checked_mul(unit)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text} is out of range"))
}

/// One row: its runs, and the error that ended them.
struct Row {
    method: LimitMethod,
    runs: Vec<LimitOutcome>,
    error: Option<String>,
}

impl Row {
    fn median(&self, of: impl Fn(&LimitOutcome) -> f64) -> f64 {
        let mut values: Vec<f64> = self.runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::INFINITY,
            count => f64::midpoint(values[(count - 1) / 2], values[count / 2]),
        }
    }

    fn seconds(&self) -> f64 {
        self.median(|run| run.seconds)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = LimitArguments::parse();
    let directory = tempfile::Builder::new()
        .prefix("haul-limit-")
        .tempdir_in(&arguments.directory)?;
    let source = match &arguments.source {
        Some(path) => path.clone(),
        None => made_source(directory.path(), arguments.bytes)?,
    };
    let job = LimitJob {
        bytes: source.metadata()?.len(),
        source,
        target: (!arguments.null).then(|| directory.path().join("target")),
        durable: arguments.durable,
        cold: arguments.cold,
        congestion: arguments.congestion.clone(),
    };
    let mut rows: Vec<Row> = LimitMethod::matrix(arguments.durable)
        .into_iter()
        .filter(|method| {
            let name = method.name();
            arguments.only.is_empty() || arguments.only.iter().any(|only| name.contains(only))
        })
        .map(|method| Row {
            method,
            runs: Vec::new(),
            error: None,
        })
        .collect();
    if rows.is_empty() {
        return Err("no row has that text in its name".into());
    }
    for round in 0..arguments.rounds {
        measure_round(&job, &mut rows, round, arguments.twice)?;
    }
    // A failed row stays in the table but is never the best.
    rows.sort_by(|a, b| {
        let key = |row: &Row| (row.error.is_some(), row.seconds());
        key(a).0.cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1))
    });
    let mut output = io::stdout().lock();
    if arguments.json {
        writeln!(output, "{:#}", as_json(&job, &rows))?;
    } else {
        print_table(&mut output, &job, &rows)?;
    }
    match rows.iter().find_map(|row| row.error.as_ref()) {
        Some(error) => Err(error.clone().into()),
        None => Ok(()),
    }
}

/// Runs every row once. Each round starts at another row and every other one
/// runs backwards, so that no row always follows the same one.
fn measure_round(
    job: &LimitJob,
    rows: &mut [Row],
    round: u32,
    twice: bool,
) -> Result<(), Box<dyn Error>> {
    let count = rows.len();
    for step in 0..count {
        let place = (step + round as usize * 7) % count;
        let place = if round.is_multiple_of(2) {
            place
        } else {
            count - 1 - place
        };
        let row = &mut rows[place];
        if row.error.is_some() {
            continue;
        }
        if !job.cold {
            // Idle page cache is evicted within minutes.
            io::copy(&mut File::open(&job.source)?, &mut io::sink())?;
        }
        if twice && let Some(target) = &job.target {
            // What is wrong with it shows again below.
            let _ = limit::run(job, row.method);
            removed(target)?;
        }
        let mut done = limit::run(job, row.method);
        if let Some(target) = &job.target {
            let landed = if round == 0 {
                limit::verify(&job.source, target)
            } else {
                right_size(target, job.bytes)
            };
            done = done.and_then(|outcome| landed.map(|()| outcome));
            removed(target)?;
        }
        match done {
            Ok(outcome) => row.runs.push(outcome),
            Err(error) => row.error = Some(format!("{}: {error}", row.method.name())),
        }
    }
    Ok(())
}

/// Removes a target, which a mover that failed early did not make.
fn removed(target: &Path) -> io::Result<()> {
    match std::fs::remove_file(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn right_size(target: &Path, bytes: u64) -> io::Result<()> {
    let landed = target.metadata()?.len();
    if landed == bytes {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "the target has {landed} bytes, the source {bytes}"
        )))
    }
}

/// A file of incompressible bytes, on its disk before the first round.
fn made_source(directory: &Path, bytes: u64) -> io::Result<PathBuf> {
    let path = directory.join("source");
    let mut file = File::create_new(&path)?;
    let mut random = File::open("/dev/urandom")?.take(bytes);
    io::copy(&mut random, &mut file)?;
    file.sync_all()?;
    Ok(path)
}

fn print_table(output: &mut impl Write, job: &LimitJob, rows: &[Row]) -> io::Result<()> {
    let bytes = job.bytes as f64;
    writeln!(
        output,
        "{:.0} MiB from {}{}{}{}; {} over loopback, which copies what is sent",
        bytes / f64::from(1 << 20),
        job.source.display(),
        if job.cold { ", cold" } else { ", warm" },
        if job.target.is_some() {
            ", landed"
        } else {
            ", discarded"
        },
        if job.durable { " and synced" } else { "" },
        job.congestion,
    )?;
    writeln!(
        output,
        "  {:<46} {:>8} {:>15} {:>8} {:>10} {:>7} {:>9}",
        "sending > landing, connections",
        "wall s",
        "min-max",
        "GiB/s",
        "CPU s/GiB",
        "sender",
        "receiver"
    )?;
    for (place, row) in rows.iter().enumerate() {
        let name = row.method.name();
        if let Some(error) = &row.error {
            writeln!(output, "  {name:<46} failed: {error}")?;
            continue;
        }
        let wall = row.seconds();
        let least = row
            .runs
            .iter()
            .map(|r| r.seconds)
            .fold(f64::INFINITY, f64::min);
        let most = row.runs.iter().map(|r| r.seconds).fold(0.0, f64::max);
        let cpu = row.median(|run| run.cpu_seconds) * GIB / bytes;
        let sender = row.median(|run| run.sender_cpu_seconds) * GIB / bytes;
        let mark = if place == 0 { '*' } else { ' ' };
        writeln!(
            output,
            "{mark} {name:<46} {wall:>8.3} {:>15} {:>8.2} {cpu:>10.3} {sender:>7.3} {:>9.3}",
            format!("{least:.3}-{most:.3}"),
            bytes / GIB / wall,
            cpu - sender,
        )?;
    }
    writeln!(
        output,
        "* the limit reference. CPU counts the whole process, ring workers included;\n  \
         a ring worker's time stands with the receiver."
    )
}

fn as_json(job: &LimitJob, rows: &[Row]) -> Value {
    let told: Vec<Value> = rows
        .iter()
        .map(|row| {
            let good = !row.runs.is_empty();
            json!({
                "name": row.method.name(),
                "sending": match row.method.sending {
                    Sending::Sendfile => "sendfile",
                    Sending::Buffer => "buffer",
                    Sending::Mapping => "mapping",
                },
                "landing": match row.method.landing {
                    LimitLanding::Splice => "splice",
                    LimitLanding::RingWrite => "ring_write",
                    LimitLanding::Pwrite => "pwrite",
                    LimitLanding::RingDirect => "ring_direct",
                },
                "connections": row.method.connections,
                "error": row.error,
                "seconds": good.then(|| row.seconds()),
                "goodput_bytes_per_second": good.then(|| job.bytes as f64 / row.seconds()),
                "cpu_seconds_per_gib":
                    good.then(|| row.median(|run| run.cpu_seconds) * GIB / job.bytes as f64),
                "runs": row.runs.iter().map(|run| json!({
                    "seconds": run.seconds,
                    "cpu_seconds": run.cpu_seconds,
                    "sender_cpu_seconds": run.sender_cpu_seconds,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "bytes": job.bytes,
        "cold": job.cold,
        "durable": job.durable,
        "discarded": job.target.is_none(),
        "congestion_control": job.congestion,
        "best": rows.first().filter(|row| row.error.is_none()).map(|row| row.method.name()),
        "rows": told,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_apart_by_their_unit() {
        assert_eq!(size("587MiB"), Ok(587 << 20));
        assert_eq!(size("587MB"), Ok(587_000_000));
        assert_eq!(size("1"), Ok(1));
        assert!(size("0").is_err() && size("5 furlongs").is_err() && size("").is_err());
    }
}
