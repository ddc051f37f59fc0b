//! `haul verify`: holds the files of a directory against a manifest.
//!
//! Leaves to others: reading and summing the files (the engine), and how a
//! manifest is written (manifest.rs). Invariant: what does not hold, and every
//! line that is none, is said and a failure of the command.

use crate::console::{Console, escaped, fault, require_output, usage};
use crate::interrupt::Interrupts;
use crate::manifest::{FoundLine, ManifestReader};
use crate::size::{format_rate, format_seconds, format_size};
use clap::{Args, ValueEnum};
use haul_engine::files::verify::{Verified, VerifyEntry, VerifyOutcome, verify_tree};
use haul_engine::kernel::standard::{Standard, was_closed};
use haul_engine::limits::FILES_TOLD_MAX;
use haul_engine::options::DigestKind;
use haul_engine::report::told_path;
use haul_engine::{Error, ErrorKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Some files are missing or cannot be read, none differs.
const PARTIAL: u8 = 23;
/// While a manifest does not come, it is looked so often whether to stop.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// What it means.
pub const HELP: &str = "\
A manifest has a line for each file: HEX, two blanks and a path, as b3sum and
sha256sum write it (with their escapes), or a JSON object with path, bytes, mtime
and blake3 or sha256, as cli/SCHEMA.md tells. Both may be mixed. Empty lines and
those that begin with # are passed over. Paths are below DIR; one that leads
outside is not looked for, and no symbolic link below DIR is followed.

Files that the manifest does not list are not looked at. A modification time that
is another, where the content holds, is counted as touched and no failure. A line
that is none, or whose end is missing because the manifest was cut off, is named,
and the rest is checked all the same. That a manifest ends too early between two
lines cannot be seen.

Examples:
  haul verify --manifest photos.b3 /backup/photos
  sha256sum -b *.img | ssh server haul verify --digest sha256 --manifest - /srv/images
  haul verify -q --json --manifest m.jsonl /srv | jq '.failed[].path'

It ends with 5 where files differ (another content or size, or no regular file),
else with 2 where lines are none, else with 23 where files are missing or cannot be
read.";

/// `haul verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Where the files are that the manifest lists
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The manifest; - is standard input
    #[arg(long, value_name = "FILE")]
    pub manifest: PathBuf,
    /// The digest of lines that do not say which theirs is
    #[arg(long, value_name = "KIND", value_enum, default_value = "blake3")]
    pub digest: DigestName,
    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Write one JSON object to standard output
    #[arg(long)]
    pub json: bool,
}

/// `--digest`'s values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DigestName {
    /// As b3sum computes it.
    Blake3,
    /// As sha256sum computes it.
    Sha256,
}

impl From<DigestName> for DigestKind {
    fn from(name: DigestName) -> Self {
        match name {
            DigestName::Blake3 => Self::Blake3,
            DigestName::Sha256 => Self::Sha256,
        }
    }
}

/// Runs `haul verify`; the exit code.
///
/// # Errors
/// DIR or the manifest cannot be opened, the manifest lists nothing, or standard
/// output cannot be written to.
pub fn run(
    arguments: &VerifyArguments,
    console: &Console,
    interrupts: &Interrupts,
) -> Result<u8, Error> {
    if arguments.json {
        require_output("write the result to")?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (manifest, name) = open(&arguments.manifest)?;
    let flag = stop.clone();
    interrupts.on_stop(move || flag.store(true, Ordering::Relaxed));
    let input = PatientInput {
        input: manifest,
        stop: stop.clone(),
    };
    let mut feed = ManifestFeed {
        reader: ManifestReader::new(BufReader::new(input), arguments.digest.into()),
        console,
        name: &name,
        stop: &stop,
        bad_lines: 0,
        failure: None,
    };
    let mut failed = Vec::new();
    let start = Instant::now();
    let verified = verify_tree(&arguments.directory, &mut feed, &stop, |entry, outcome| {
        if let VerifyOutcome::Unfit(why) = outcome {
            console.error(&bad_line(&name, entry.number, why));
        } else if let Some((word, error)) = failure_of(entry, outcome) {
            console.error(&error);
            if failed.len() < FILES_TOLD_MAX {
                failed.push(FailedFile {
                    path: told_path(&entry.path),
                    what: word,
                    message: error.to_string(),
                });
            }
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let (bad_lines, failure) = (feed.bad_lines + verified.unfit, feed.failure);
    let files = verified.files - verified.unfit;
    let signalled = interrupts.exit_code();
    if let Some(error) = &failure {
        console.error(error);
    } else if signalled.is_none() && files + bad_lines == 0 {
        return Err(usage(format!(
            "there is nothing to check: {name} lists no file"
        )));
    }
    if signalled.is_some() {
        let sentence = "stopped before every file was checked";
        console.error(&Error::new(ErrorKind::Interrupted, sentence));
    }
    let result = VerifyResult {
        exit_code: signalled.unwrap_or_else(|| exit_code(&verified, bad_lines, failure.as_ref())),
        files,
        verified,
        bad_lines,
        seconds,
        failed,
    };
    if arguments.json {
        console.result(&result.json())?;
    }
    if !arguments.quiet {
        console.line(&format!("haul: {}", result.sentence()));
    }
    Ok(result.exit_code)
}

/// The manifest, and what sentences call it.
fn open(path: &Path) -> Result<(File, String), Error> {
    if path.as_os_str() == "-" {
        let name = "standard input".to_owned();
        if was_closed(Standard::Input) {
            return Err(fault(format!("cannot read {name}"), "it is closed"));
        }
        let copy = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 0)
            .map_err(|errno| fault(format!("cannot read {name}"), errno))?;
        return Ok((copy.into(), name));
    }
    let name = escaped(path.as_os_str().as_encoded_bytes());
    let file = File::open(path).map_err(|error| fault(format!("cannot open {name}"), error))?;
    Ok((file, name))
}

/// What is not as the manifest says, in a word and in a sentence.
fn failure_of(entry: &VerifyEntry, outcome: &VerifyOutcome) -> Option<(&'static str, Error)> {
    let path = escaped(&entry.path);
    let differs = |why: String| Error::new(ErrorKind::Integrity, format!("{path} differs: {why}"));
    Some(match outcome {
        VerifyOutcome::Holds { .. } | VerifyOutcome::Unfit(_) => return None,
        VerifyOutcome::Differs => {
            let kind = entry.digest.kind;
            let why = format!("its {kind} digest is not the manifest's");
            ("differs", differs(why))
        }
        VerifyOutcome::OtherSize { found, listed } => {
            let why = format!("it has {found} bytes, and the manifest says {listed}");
            ("other_size", differs(why))
        }
        VerifyOutcome::NotRegular(why) => ("not_regular", differs(why.clone())),
        VerifyOutcome::Missing => {
            let error = Error::new(ErrorKind::Partial, format!("{path} is missing"));
            ("missing", error)
        }
        VerifyOutcome::Unreadable(error) => ("unreadable", error.clone()),
    })
}

fn bad_line(manifest: &str, number: u64, why: &str) -> Error {
    usage(format!(
        "line {number} of {manifest} is no line of a manifest: {why}"
    ))
}

/// What scripts rely on.
fn exit_code(verified: &Verified, bad_lines: u64, failure: Option<&Error>) -> u8 {
    if verified.differing > 0 {
        return ErrorKind::Integrity.exit_code();
    }
    match failure {
        Some(error) => error.exit_code(),
        None if bad_lines > 0 => ErrorKind::Usage.exit_code(),
        None if verified.missing + verified.unreadable > 0 => PARTIAL,
        None => 0,
    }
}

/// The manifest's lines as the engine takes them; what is none is said here.
struct ManifestFeed<'a, R> {
    reader: ManifestReader<R>,
    console: &'a Console,
    name: &'a str,
    stop: &'a AtomicBool,
    bad_lines: u64,
    /// Why the manifest could not be read to its end.
    failure: Option<Error>,
}

impl<R: BufRead> Iterator for ManifestFeed<'_, R> {
    type Item = VerifyEntry;

    fn next(&mut self) -> Option<VerifyEntry> {
        loop {
            let found = match self.reader.next_line() {
                Ok(found) => found,
                Err(error) => {
                    self.failure = Some(fault(format!("cannot read {}", self.name), error));
                    None
                }
            };
            // Who stops cuts the manifest off where it is.
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let FoundLine {
                number,
                line,
                is_cut,
            } = found?;
            let wrong = match &line {
                Err(why) => Some(why.as_str()),
                Ok(_) if is_cut => Some("its end is missing, as if the manifest was cut off"),
                Ok(_) => None,
            };
            if let Some(why) = wrong {
                self.bad_lines += 1;
                self.console.error(&bad_line(self.name, number, why));
            }
            if let Ok(line) = line {
                return Some(VerifyEntry {
                    number,
                    path: line.path,
                    digest: line.digest,
                    bytes: line.bytes,
                    mtime: line.mtime,
                });
            }
        }
    }
}

/// An input that ends when it is to stop, also while nothing comes.
struct PatientInput {
    input: File,
    stop: Arc<AtomicBool>,
}

impl Read for PatientInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(0);
            }
            let ready = poll(
                &mut [PollFd::new(&self.input, PollFlags::IN)],
                Some(&LOOK_AGAIN),
            );
            match ready {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.input.read(buffer),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// What a check came to.
struct VerifyResult {
    exit_code: u8,
    /// Files that were looked at.
    files: u64,
    verified: Verified,
    bad_lines: u64,
    seconds: f64,
    failed: Vec<FailedFile>,
}

/// One file that does not hold, for programs.
#[derive(Serialize)]
struct FailedFile {
    path: String,
    what: &'static str,
    message: String,
}

impl VerifyResult {
    fn bytes_per_second(&self) -> f64 {
        // A clock that did not move measured nothing.
        self.verified.bytes as f64 / self.seconds.max(1e-9)
    }

    fn sentence(&self) -> String {
        let verified = &self.verified;
        let files = match self.files {
            1 => "1 file".to_owned(),
            count => format!("{count} files"),
        };
        let mut text = format!(
            "checked {files}, {} in {}, {}: ",
            format_size(verified.bytes),
            format_seconds(self.seconds),
            format_rate(self.bytes_per_second())
        );
        let counts = [
            (verified.differing, "differ", "differs"),
            (verified.missing, "missing", "missing"),
            (verified.unreadable, "unreadable", "unreadable"),
            (self.bad_lines, "bad lines", "bad line"),
            (verified.touched, "touched", "touched"),
        ];
        let mut parts = vec![match verified.held == self.files && self.bad_lines == 0 {
            true => "all hold".to_owned(),
            false => format!("{} hold", verified.held),
        }];
        for (count, many, one) in counts {
            match count {
                0 => {}
                1 => parts.push(format!("1 {one}")),
                count => parts.push(format!("{count} {many}")),
            }
        }
        text += &parts.join(", ");
        text
    }

    fn json(&self) -> String {
        let verified = &self.verified;
        serde_json::json!({
            "exit_code": self.exit_code,
            "files": self.files,
            "bytes": verified.bytes,
            "seconds": self.seconds,
            "bytes_per_second": self.bytes_per_second(),
            "held": verified.held,
            "touched": verified.touched,
            "differing": verified.differing,
            "missing": verified.missing,
            "unreadable": verified.unreadable,
            "bad_lines": self.bad_lines,
            "failed": self.failed,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(verified: Verified, bad_lines: u64) -> VerifyResult {
        VerifyResult {
            exit_code: exit_code(&verified, bad_lines, None),
            files: verified.files,
            verified,
            bad_lines,
            seconds: 2.0,
            failed: Vec::new(),
        }
    }

    #[test]
    fn the_worst_decides_the_code() {
        let code = |differing, missing, unreadable, bad_lines| {
            let verified = Verified {
                differing,
                missing,
                unreadable,
                ..Verified::default()
            };
            result(verified, bad_lines).exit_code
        };
        assert_eq!(code(0, 0, 0, 0), 0);
        assert_eq!(code(0, 1, 0, 0), 23);
        assert_eq!(code(0, 0, 1, 0), 23);
        assert_eq!(code(0, 1, 1, 1), 2);
        assert_eq!(code(1, 1, 1, 1), 5);
        let failure = fault("cannot read m", "it is closed");
        let cut = exit_code(&Verified::default(), 3, Some(&failure));
        assert_eq!(cut, 1);
    }

    #[test]
    fn the_sentence_tells_what_there_is() {
        let mut verified = Verified {
            files: 3,
            held: 3,
            bytes: 4_000_000,
            ..Verified::default()
        };
        let told = result(verified, 0).sentence();
        assert_eq!(
            told,
            "checked 3 files, 3.8 MiB in 2.00 s, 2.00 MB/s (1.91 MiB/s): all hold"
        );
        verified.files = 8;
        verified.differing = 1;
        verified.missing = 3;
        verified.unreadable = 1;
        verified.touched = 2;
        let told = result(verified, 1).sentence();
        assert!(
            told.ends_with("3 hold, 1 differs, 3 missing, 1 unreadable, 1 bad line, 2 touched"),
            "{told}"
        );
    }
}
