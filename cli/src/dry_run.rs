//! What a dry run lists: a line for each thing that would be done, and the totals.
//!
//! Leaves to others: finding out (the engine). Invariant: the lines are results, on
//! standard output; of what would stay as it is there is none.

use crate::console::Console;
use crate::size::format_size;
use haul_engine::report::{EntryReportKind, FileReport, Level};
use haul_engine::{Error, Event};

/// The lines of one dry run.
pub struct DryRun {
    console: Console,
    /// Lines are wanted, and not JSON in their place.
    has_lines: bool,
    made: u64,
    sent: u64,
    sent_bytes: u64,
    replaced: u64,
    corrected: u64,
    failed: Option<Error>,
}

impl DryRun {
    /// Nothing is listed yet; `has_lines` unless standard output is a program's.
    #[must_use]
    pub fn new(console: &Console, has_lines: bool) -> Self {
        Self {
            console: console.clone(),
            has_lines,
            made: 0,
            sent: 0,
            sent_bytes: 0,
            replaced: 0,
            corrected: 0,
            failed: None,
        }
    }

    /// Lists what an event tells.
    pub fn tell(&mut self, event: &Event) {
        match event {
            Event::FileEnded(file) => self.file(file),
            Event::Deleted(name) => self.line(&format!("delete   {name}")),
            _ => {}
        }
    }

    fn file(&mut self, file: &FileReport) {
        let Some(level) = file.level else { return };
        let name = match file.name.as_str() {
            "" => ".",
            name => name,
        };
        // Another name of a file costs nothing.
        let bytes = match file.kind {
            EntryReportKind::HardLink => 0,
            _ => file.bytes.unwrap_or(0),
        };
        let text = match level {
            Level::WouldMake => {
                self.made += 1;
                self.sent_bytes += bytes;
                format!("make     {name}")
            }
            Level::WouldSendSize
            | Level::WouldSendTime
            | Level::WouldSendContent
            | Level::WouldSendAnyway => {
                self.sent += 1;
                self.sent_bytes += bytes;
                let why = match level {
                    Level::WouldSendSize => "its size differs",
                    Level::WouldSendTime => "its time differs",
                    Level::WouldSendContent => "its content differs",
                    _ => "it is there, with its size and time",
                };
                format!("send     {name} ({why})")
            }
            Level::WouldReplace => {
                self.replaced += 1;
                self.sent_bytes += bytes;
                format!("replace  {name} (something else is there)")
            }
            Level::WouldCorrect => {
                self.corrected += 1;
                format!("correct  {name} (mode, owner, time or attributes)")
            }
            _ => return,
        };
        self.line(&text);
    }

    fn line(&mut self, text: &str) {
        if self.has_lines && self.failed.is_none() {
            self.failed = self.console.result(text).err();
        }
    }

    /// The totals, in a sentence.
    #[must_use]
    pub fn totals(&self, deleted: u64) -> String {
        format!(
            "dry run: {} to make, {} to send, {} to replace, {} to correct, {deleted} to delete; {} of data; nothing was touched",
            self.made,
            self.sent,
            self.replaced,
            self.corrected,
            format_size(self.sent_bytes)
        )
    }

    /// The first line that could not be written.
    pub fn failure(&mut self) -> Option<Error> {
        self.failed.take()
    }
}
