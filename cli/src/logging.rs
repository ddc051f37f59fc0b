//! Diagnostics to standard error: -v, -vv and HAUL_LOG.
//!
//! Leaves to others: what is worth a line. Invariant: results never pass
//! through here, and a bad HAUL_LOG is an error, not a silent nothing.

use crate::console::{Console, usage};
use haul_engine::Error;
use std::io;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The environment's filter, in tracing's syntax: "debug", "haul_engine=trace".
pub const VARIABLE: &str = "HAUL_LOG";

/// Starts the diagnostics: HAUL_LOG's filter where it is set, else `verbose`
/// steps above `quietest`.
///
/// # Errors
/// HAUL_LOG is not a filter.
pub fn start(console: &Console, verbose: u8, quietest: Talk) -> Result<(), Error> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            usage(format!(
                "cannot use {VARIABLE}=\"{text}\" as a log filter: {error}"
            ))
            .cure("write a level (error, warn, info, debug, trace) or target=level")
        })?,
        _ => EnvFilter::new(filter_text(verbose, quietest)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(console.colour())
        .with_writer(Lines(console.clone()))
        .with_target(verbose > 1)
        .init();
    Ok(())
}

/// How much a subcommand says without -v.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// Nothing: what went wrong is in the error and the report.
    Quiet,
    /// What a server's log holds: sessions and transfers.
    Info,
}

/// The filter that -v's stand for.
fn filter_text(verbose: u8, quietest: Talk) -> &'static str {
    match (quietest, verbose) {
        (Talk::Quiet, 0) => "error",
        // "haul" alone would take haul_engine in; what a server logs of it
        // comes as events already.
        (Talk::Info, 0) => "error,haul=info,haul_engine=error",
        (Talk::Quiet, 1) => "warn,haul=info,haul_engine=info",
        (Talk::Quiet, 2) | (Talk::Info, 1) => "info,haul=debug,haul_engine=debug",
        _ => "debug,haul=trace,haul_engine=trace",
    }
}

/// Writes whole lines through the console, so that none tears the bar.
struct Lines(Console);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LogLine;

    fn make_writer(&'a self) -> LogLine {
        LogLine {
            console: self.0.clone(),
            text: Vec::new(),
        }
    }
}

/// One event's line, written when it is complete.
struct LogLine {
    console: Console,
    text: Vec<u8>,
}

impl io::Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.console
                .line(String::from_utf8_lossy(&self.text).trim_end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_a_filter() {
        for quietest in [Talk::Quiet, Talk::Info] {
            for verbose in 0..5 {
                let text = filter_text(verbose, quietest);
                assert!(EnvFilter::try_new(text).is_ok(), "{text}");
            }
        }
    }
}
