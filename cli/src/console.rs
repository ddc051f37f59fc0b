//! The terminal: whole lines to standard error past the progress bar, results
//! to standard output, colour only where somebody sees it.
//!
//! Leaves to others: what is said. Invariant: standard output carries results
//! only, and every error is one line.

use haul_engine::kernel::standard::{Standard, was_closed};
use haul_engine::{Error, ErrorKind};
use indicatif::ProgressBar;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// When to do something that suits a terminal only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// Where standard error is a terminal.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// The terminal, shared by whoever writes to it.
#[derive(Clone)]
pub struct Console {
    colour: bool,
    /// The bar that lines must be written above, while there is one.
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Console {
    /// A console whose errors are coloured as `colour` says.
    #[must_use]
    pub fn new(colour: When) -> Self {
        let colour = match colour {
            When::Always => true,
            When::Never => false,
            // https://no-color.org: set and not empty means no colour.
            When::Auto => {
                io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Self {
            colour,
            bar: Arc::default(),
        }
    }

    /// True when colour is wanted on standard error.
    #[must_use]
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Lines go above `bar` from now on; `None` when there is no bar any more.
    pub fn set_bar(&self, bar: Option<ProgressBar>) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    /// Writes `text` and a line's end to standard error.
    pub fn line(&self, text: &str) {
        let write = || {
            // A standard error that cannot be written to leaves nobody to tell.
            let _ = writeln!(io::stderr().lock(), "{text}");
        };
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        match bar.as_ref() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Writes one error: `haul: sentence`.
    pub fn error(&self, error: &Error) {
        // A peer's words are in there: no control character of theirs reaches
        // the terminal, and the error stays one line.
        let sentence = printable(&error.to_string());
        if self.colour {
            self.line(&format!("\u{1b}[1;31mhaul:\u{1b}[0m {sentence}"));
        } else {
            self.line(&format!("haul: {sentence}"));
        }
    }

    /// Writes `text` and a line's end to standard output, at once.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub fn result(&self, text: &str) -> Result<(), Error> {
        require_output("write the result to")?;
        let mut output = io::stdout().lock();
        writeln!(output, "{text}")
            .and_then(|()| output.flush())
            .map_err(|error| fault("cannot write the result to standard output", error))
    }
}

/// `text` on one line, its control characters replaced.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Bytes that are no text or control the terminal, as \x1b: one line, and what
/// differs stays different.
#[must_use]
pub fn escaped(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if printable(text) == text && !text.contains('\\') => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}

/// What is written to a standard output that was closed at the start would go
/// nowhere, without a word.
///
/// # Errors
/// It was.
pub fn require_output(doing: &str) -> Result<(), Error> {
    match was_closed(Standard::Output) {
        true => Err(fault(
            format!("cannot {doing} standard output"),
            "it is closed",
        )),
        false => Ok(()),
    }
}

/// Closes a file that results were written to.
///
/// # Errors
/// What a file system tells only then.
pub fn close(file: std::fs::File) -> io::Result<()> {
    match file.sync_data() {
        // A pipe, a terminal or a device has nothing to sync.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// A mistake in what was asked for that only the command line can see.
#[must_use]
pub fn usage(sentence: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, sentence)
}

/// A local fault: `doing` is "cannot open /x/y", `why` is the system's reason.
#[must_use]
pub fn fault(doing: impl Display, why: impl Display) -> Error {
    Error::local(doing, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_without_its_number() {
        let missing = io::Error::from_raw_os_error(2);
        assert_eq!(
            fault("cannot open x", missing).to_string(),
            "cannot open x: no such file or directory"
        );
    }

    #[test]
    fn an_error_is_one_line_without_escapes() {
        assert_eq!(printable("a\nb\u{1b}[2Jc\t"), "a b\u{fffd}[2Jc ");
    }

    #[test]
    fn what_differs_stays_different_on_one_line() {
        assert_eq!(escaped("dir/ä b".as_bytes()), "dir/ä b");
        let odd: [&[u8]; 4] = [b"a\nb", b"a\\nb", b"a\xffb", "a\u{fffd}b".as_bytes()];
        let told: Vec<String> = odd.iter().map(|path| escaped(path)).collect();
        for (number, one) in told.iter().enumerate() {
            assert!(!one.contains('\n'));
            assert!(!told[number + 1..].contains(one), "{one}");
        }
    }
}
