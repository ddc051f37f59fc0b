//! Follows one transfer to its end: progress, events, signals; then tells how
//! it went.
//!
//! Leaves to others: starting it. Invariant: whatever happened, there is one
//! report, and it is written everywhere it was asked for.

use crate::arguments::{OutputOptions, is_output};
use crate::console::{Console, close, fault, require_output, usage};
use crate::embedded::Embedded;
use crate::events::Events;
use crate::hlog::HdrLog;
use crate::interrupt::{Interrupts, STOP_WAIT};
use crate::outcome::{self, ReportJson};
use crate::progress::Shown;
use crate::table;
use haul_engine::report::Report;
use haul_engine::{Error, ErrorKind, Event, PeerAddress, Pool, Progress, Side, Transfer};
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

/// How a transfer was followed to its end.
pub struct Followed {
    /// What it came to.
    pub report: Report,
    /// False where its end did not come in time after a signal: threads of it may
    /// wait for what never comes, so that nobody may wait for them.
    pub is_over: bool,
}

/// Closes what a transfer ran on. Where the transfer still runs, or closing takes
/// too long after a signal, the process ends without that: a file call that the
/// kernel holds is waited for by nobody.
pub fn let_go(
    pool: Pool,
    beside: Option<Embedded>,
    is_over: bool,
    interrupts: &Interrupts,
    console: &Console,
) {
    let close = move || {
        pool.close();
        beside.into_iter().for_each(Embedded::stop);
    };
    if !is_over {
        // Its report says so.
        std::mem::forget(close);
    } else if !within_stop_wait(close, interrupts) {
        console.line("haul: a disk does not answer: a temporary file .haul-* may be left there");
    }
}

/// Does `close`, and goes on without it once a signal's stop is overdue; true when
/// it was done.
fn within_stop_wait(close: impl FnOnce() + Send + 'static, interrupts: &Interrupts) -> bool {
    let (closed, is_closed) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("haul-close".to_owned());
    let started = thread.spawn(move || {
        close();
        drop(closed);
    });
    if started.is_err() {
        // What could not be handed over was dropped, which stops it as well: how the
        // transfer went is not changed by that.
        return true;
    }
    while is_closed.recv_timeout(LOOK_AGAIN) == Err(RecvTimeoutError::Timeout) {
        if interrupts.is_overdue() {
            return false;
        }
    }
    true
}

/// How often it is looked whether a stop takes too long.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Follows `transfer` until it is over, or asks it to finish after `finish_after`;
/// `seen` is shown every progress.
pub fn follow(
    mut transfer: Transfer,
    interrupts: &Interrupts,
    shown: &mut Shown,
    events: &mut Events,
    finish_after: Option<Duration>,
    mut seen: impl FnMut(&Progress),
) -> Followed {
    let stop = transfer.stop_handle();
    interrupts.on_stop(move || stop.stop());
    let began = Instant::now();
    let mut finish_after = finish_after;
    let mut last = Progress::default();
    while !transfer.is_over() {
        let timeout = finish_after.map(|all| all.saturating_sub(began.elapsed()));
        if timeout == Some(Duration::ZERO) {
            finish_after = None;
            transfer.stop_handle().finish();
            continue;
        }
        let timeout = timeout.map_or(LOOK_AGAIN, |timeout| timeout.min(LOOK_AGAIN));
        if interrupts.is_overdue() {
            return Followed {
                report: overdue(&last, began.elapsed()),
                is_over: false,
            };
        }
        let Some(event) = transfer.next_event(Some(timeout)) else {
            continue;
        };
        events.tell(&event);
        match &event {
            Event::Progress(progress) => {
                last = progress.clone();
                shown.update(progress);
                seen(progress);
            }
            Event::ConnectionLost { connection, why } => {
                tracing::info!("data connection {connection} was lost: {why}");
            }
            Event::ConnectionJoined { connection } => {
                tracing::debug!("data connection {connection} joined");
            }
            Event::Note(text) => tracing::info!("{text}"),
            Event::Planned { .. } | Event::FileEnded(_) | Event::Deleted(_) => {}
        }
    }
    Followed {
        report: transfer.wait(),
        is_over: true,
    }
}

/// The report of a transfer whose end did not come in time after a signal.
fn overdue(last: &Progress, elapsed: Duration) -> Report {
    let error = Error::new(
        ErrorKind::Interrupted,
        format!(
            "the transfer was interrupted, and did not end within {} s: a disk does not answer",
            STOP_WAIT.as_secs()
        ),
    )
    .cure("a temporary file .haul-* may be left beside the target");
    let mut report = Report::failed(error, elapsed);
    report.bytes.landed = last.landed_bytes;
    report.bytes.planned = last.planned_bytes.unwrap_or(0);
    report
}

/// Says of every error that happened at the server, which is the transfer's
/// `side`, that it was there: the names in it are of the server's machine.
pub fn name_server(report: &mut Report, server: &PeerAddress, side: Side) {
    let there = |text: &str| format!("on {server}: {text}");
    let mut first = None;
    for file in &mut report.files {
        if let Some(error) = file.error.as_mut().filter(|error| error.side == side) {
            let said = std::mem::take(&mut error.message);
            error.message = there(&said);
            first.get_or_insert((said, error.message.clone()));
        }
    }
    let Some(error) = report.error.as_mut().filter(|error| error.side == side) else {
        return;
    };
    match first {
        // One for several files quotes the first of theirs.
        Some((said, named)) if error.sentence.contains(&said) => {
            error.sentence = error.sentence.replacen(&said, &named, 1);
        }
        _ => error.sentence = there(&error.sentence),
    }
}

/// The files that the report is written to, made before anything moves.
pub struct Outputs {
    report: Option<(PathBuf, File)>,
    hdr_log: Option<HdrLog>,
    began: SystemTime,
}

impl Outputs {
    /// Makes the files that were asked for.
    ///
    /// # Errors
    /// One of them cannot be made.
    pub fn create(options: &OutputOptions) -> Result<Self, Error> {
        if options.reports_to_output() && (options.json || options.events) {
            let also = if options.json { "--json" } else { "--events" };
            return Err(usage(format!(
                "cannot use --report - with {also}: both write to standard output"
            ))
            .cure("leave one out, or name a file"));
        }
        if options.is_for_programs() {
            require_output("write the result to")?;
        }
        let report = match &options.report {
            None => None,
            Some(path) => Some((
                path.clone(),
                create_report(path).map_err(|error| report_failed(path, &error))?,
            )),
        };
        let hdr_log = options.hdr_log.as_deref().map(HdrLog::create).transpose()?;
        Ok(Self {
            report,
            hdr_log,
            began: SystemTime::now(),
        })
    }

    /// Adds the latencies of one transfer that began at `began`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, prefix: &str, began: SystemTime, report: &Report) -> Result<(), Error> {
        match &mut self.hdr_log {
            None => Ok(()),
            Some(log) => log.add(
                prefix,
                began,
                report.seconds.total,
                &outcome::latencies(report),
            ),
        }
    }

    /// Writes the final JSON and closes the files.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub fn finish(self, json: &str) -> Result<(), Error> {
        if let Some((path, mut file)) = self.report {
            // A disk that is full or gone may say so only when the file is closed.
            writeln!(file, "{json}")
                .and_then(|()| close(file))
                .map_err(|error| report_failed(&path, &error))?;
        }
        self.hdr_log.map_or(Ok(()), HdrLog::finish)
    }
}

fn create_report(path: &Path) -> std::io::Result<File> {
    match is_output(path) {
        true => std::io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map(File::from),
        false => File::create(path),
    }
}

/// The error of a report that cannot be written.
fn report_failed(path: &Path, error: &std::io::Error) -> Error {
    let name = match is_output(path) {
        true => "standard output".to_owned(),
        false => path.display().to_string(),
    };
    fault(format!("cannot write the report to {name}"), error)
}

/// Tells of a copy's end everywhere it was asked for; the exit code.
pub fn tell(
    report: &Report,
    outputs: Option<Outputs>,
    events: &mut Events,
    options: &OutputOptions,
    verbose: u8,
    console: &Console,
    signalled: Option<u8>,
) -> u8 {
    let json = ReportJson::new(report, signalled);
    errors(report, console);
    // A copy that failed has its one sentence; what it left is in the report.
    let has_result = match report.error.as_ref().map(|error| error.kind) {
        None | Some(ErrorKind::Partial | ErrorKind::Interrupted) => true,
        Some(_) => verbose > 0,
    };
    let (manifest, unlisted) = match events.close_manifest(report.error.is_some()) {
        Ok(sentence) => (sentence, None),
        Err(error) => (None, Some(error)),
    };
    if has_result && !options.quiet {
        let totals = events.dry_totals(report.entries.deleted);
        let headline = totals.unwrap_or_else(|| table::headline(report));
        console.line(&format!("haul: {headline}"));
        if let Some(sharing) = table::sharing(report) {
            console.line(&format!("haul: {sharing}"));
        }
        for line in outcome::lost(report).iter().chain(&manifest) {
            console.line(&format!("haul: {line}"));
        }
        if verbose > 0 {
            console.line(table::details(report).trim_end());
        }
    }
    events.finished(&json);
    let written = outputs.map_or(Ok(()), |mut outputs| {
        let began = outputs.began;
        outputs
            .add("", began, report)
            .and_then(|()| outputs.finish(&json.to_pretty()))
    });
    let printed = if options.json {
        console.result(&json.to_line())
    } else {
        Ok(())
    };
    let mut code = json.exit_code;
    let failed = [written.err(), printed.err(), events.failure(), unlisted];
    for error in failed.into_iter().flatten() {
        // What kept the copy from beginning was said.
        if report.error.as_ref() != Some(&error) {
            console.error(&error);
        }
        // What was copied is copied; but a report that was asked for and could
        // not be given is a failure of this command.
        if code == 0 {
            code = error.exit_code();
        }
    }
    code
}

/// Files whose errors are written, at most.
const ERRORS_TOLD_MAX: usize = 40;

/// Writes the files' errors, then the transfer's, each once.
pub fn errors(report: &Report, console: &Console) {
    let whole = report.error.as_ref();
    let mut lines = file_errors(report);
    // The terminal keeps what matters; the report has a thousand of them.
    let left_out = lines.len().saturating_sub(ERRORS_TOLD_MAX);
    lines.truncate(ERRORS_TOLD_MAX);
    let told = lines.len() as u64 + u64::from(whole.is_some());
    let left_out = (left_out as u64).max(report.entries.failed.saturating_sub(told));
    if left_out > 0 && lines.len() == ERRORS_TOLD_MAX {
        lines.push(format!(
            "{left_out} more failed; --json and --report FILE tell of up to 1000"
        ));
    }
    for line in lines {
        console.line(&format!("haul: {}", crate::console::printable(&line)));
    }
    if let Some(error) = whole {
        console.error(error);
    }
}

/// What is to be said of single files beside the transfer's error.
fn file_errors(report: &Report) -> Vec<String> {
    let whole = report.error.as_ref().map(|error| error.sentence.as_str());
    let failed = || {
        report
            .files
            .iter()
            .filter_map(|file| Some((file, file.error.as_ref()?)))
    };
    let Some((first, why)) = failed().next() else {
        return Vec::new();
    };
    let is_alike = failed().count() == report.files.len()
        && failed().all(|(_, error)| error.message == why.message);
    let (mut lines, mut said) = (Vec::new(), HashSet::new());
    for (file, error) in failed() {
        let text = &error.message;
        let is_named = text.contains(&file.name);
        let is_quoted = whole.is_some_and(|whole| whole.contains(text))
            && (is_named || is_alike || std::ptr::eq(file, first));
        // The transfer's own error may know a better cure than its copy here.
        let is_whole = is_quoted || whole.is_some_and(|whole| text.starts_with(whole));
        let line = match is_named {
            true => text.clone(),
            false => format!("{}: {text}", file.name),
        };
        if !is_whole && said.insert(line.clone()) {
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use haul_engine::report::{EntryReportKind, ErrorReport, FileReport};
    use std::time::Duration;

    fn report(whole: &str, files: &[(&str, &str)]) -> Report {
        let file = |(name, why): &(&str, &str)| FileReport {
            name: (*name).to_owned(),
            kind: EntryReportKind::File,
            bytes: None,
            hole_bytes: 0,
            shared_bytes: 0,
            level: None,
            error: Some(ErrorReport::from(&Error::new(ErrorKind::Local, *why))),
            digest: None,
            mtime: None,
            is_renamed: false,
        };
        let mut report = Report::failed(Error::new(ErrorKind::Partial, whole), Duration::ZERO);
        report.files = files.iter().map(file).collect();
        report
    }

    #[test]
    fn a_close_that_hangs_is_waited_for_until_the_stop_is_overdue() {
        let closed = within_stop_wait(|| (), &Interrupts::overdue());
        assert!(closed, "it was quick");
        let (_holds, held) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = held.recv();
        };
        assert!(!within_stop_wait(hangs, &Interrupts::overdue()));
    }

    #[test]
    fn each_file_that_failed_is_named_once() {
        let whole = "2 of 3 files failed; the first: a: it changed";
        let mut some = report(whole, &[("a", "it changed"), ("b", "it changed")]);
        some.files.push(FileReport {
            error: None,
            ..some.files[0].clone()
        });
        assert_eq!(file_errors(&some), ["b: it changed"]);
        let all = report(
            "2 of 2 files failed; the first: a: no such directory d",
            &[("a", "no such directory d"), ("b", "no such directory d")],
        );
        assert!(file_errors(&all).is_empty(), "all for one reason");
        let named = report(
            "2 of 2 files failed; the first: cannot open a",
            &[("a", "cannot open a"), ("b", "cannot open b")],
        );
        assert_eq!(file_errors(&named), ["cannot open b"]);
        let lost = report(
            "lost S",
            &[("a", "lost S; try again"), ("b", "lost S; try again")],
        );
        assert!(file_errors(&lost).is_empty());
    }

    #[test]
    fn what_failed_at_the_server_is_said_to_be_there() {
        let server = PeerAddress {
            host: "h".to_owned(),
            port: 7,
        };
        let mut there = report(
            "2 of 2 files failed; the first: no a",
            &[("a", "no a"), ("b", "no b")],
        );
        for file in &mut there.files {
            file.error.as_mut().expect("set").side = Side::Sender;
        }
        there.error = there.error.map(|error| error.at(Side::Sender));
        name_server(&mut there, &server, Side::Sender);
        let told = there.error.as_ref().expect("set").sentence.as_str();
        assert_eq!(told, "2 of 2 files failed; the first: on h:7: no a");
        assert_eq!(file_errors(&there), ["on h:7: no b"]);
        let untouched = there.error.clone();
        name_server(&mut there, &server, Side::Receiver);
        assert_eq!(there.error, untouched);
    }
}
