//! `--events`: a JSON object a line while a transfer runs (schema in
//! cli/SCHEMA.md).
//!
//! Leaves to others: when something happens. Invariant: the last event of a
//! transfer is `finished`, and nothing of that transfer follows it.

use crate::console::Console;
use crate::dry_run::DryRun;
use crate::keep_manifest::KeptManifest;
use crate::outcome::{OutcomeWord, ReportJson};
use haul_engine::report::{ConnectionProgress, FileReport};
use haul_engine::{Error, Event};
use serde::Serialize;

/// One line.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum EventLine<'a> {
    Planned {
        run: Option<u32>,
        files: u64,
        bytes: Option<u64>,
    },
    Progress {
        run: Option<u32>,
        seconds: f64,
        landed_bytes: u64,
        planned_bytes: Option<u64>,
        found_bytes: u64,
        stage: &'static str,
        files: u64,
        ended_files: u64,
        connections: &'a [ConnectionProgress],
    },
    File {
        run: Option<u32>,
        #[serde(flatten)]
        file: &'a FileReport,
    },
    Deleted {
        run: Option<u32>,
        name: &'a str,
    },
    ConnectionLost {
        run: Option<u32>,
        connection: u32,
        why: &'a str,
    },
    ConnectionJoined {
        run: Option<u32>,
        connection: u32,
    },
    Note {
        run: Option<u32>,
        text: &'a str,
    },
    Finished {
        run: Option<u32>,
        outcome: OutcomeWord,
        exit_code: u8,
        landed_bytes: u64,
        seconds: f64,
    },
}

/// Where events are written, if they are wanted.
pub struct Events {
    console: Console,
    wanted: bool,
    /// Which run of a bench they are of.
    run: Option<u32>,
    /// The first failure to write; nothing is written after it.
    failed: Option<Error>,
    /// Where nothing is to be touched: what would be.
    dry_run: Option<DryRun>,
    manifest: Option<KeptManifest>,
}

impl Events {
    /// Events to standard output where they are `wanted`.
    #[must_use]
    pub fn new(console: &Console, wanted: bool) -> Self {
        Self {
            console: console.clone(),
            wanted,
            run: None,
            failed: None,
            dry_run: None,
            manifest: None,
        }
    }

    /// What would be done is listed, too.
    pub fn list(&mut self, dry_run: DryRun) {
        self.dry_run = Some(dry_run);
    }

    /// Files are listed in a manifest, too.
    pub fn keep(&mut self, manifest: KeptManifest) {
        self.manifest = Some(manifest);
    }

    /// Closes the manifest of a copy, where there is one; a sentence on it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn close_manifest(&mut self, has_failed: bool) -> Result<Option<String>, Error> {
        let manifest = self.manifest.take();
        manifest.map_or(Ok(None), |manifest| manifest.finish(has_failed))
    }

    /// What a dry run came to, where this is one; so much would be deleted.
    #[must_use]
    pub fn dry_totals(&self, deleted: u64) -> Option<String> {
        self.dry_run.as_ref().map(|dry_run| dry_run.totals(deleted))
    }

    /// The events that follow are of run number `run`.
    pub fn of_run(&mut self, run: u32) {
        self.run = Some(run);
    }

    /// Writes one event of the engine's.
    pub fn tell(&mut self, event: &Event) {
        let run = self.run;
        if let Some(dry_run) = &mut self.dry_run {
            dry_run.tell(event);
        }
        if let (Some(manifest), Event::FileEnded(file)) = (&mut self.manifest, event) {
            manifest.add(file);
        }
        self.write(&match event {
            Event::Planned { files, bytes } => EventLine::Planned {
                run,
                files: *files,
                bytes: *bytes,
            },
            Event::Progress(progress) => EventLine::Progress {
                run,
                seconds: progress.seconds,
                landed_bytes: progress.landed_bytes,
                planned_bytes: progress.planned_bytes,
                found_bytes: progress.found_bytes,
                stage: match (progress.deleted, progress.is_sealing()) {
                    (Some(_), _) => "deleting",
                    (None, true) => "sealing",
                    (None, false) if progress.is_scanning() => "scanning",
                    (None, false) => "moving",
                },
                files: progress.files,
                ended_files: progress.ended_files,
                connections: &progress.connections,
            },
            Event::FileEnded(file) => EventLine::File { run, file },
            Event::Deleted(name) => EventLine::Deleted { run, name },
            Event::ConnectionLost { connection, why } => EventLine::ConnectionLost {
                run,
                connection: *connection,
                why,
            },
            Event::ConnectionJoined { connection } => EventLine::ConnectionJoined {
                run,
                connection: *connection,
            },
            Event::Note(text) => EventLine::Note { run, text },
        });
    }

    /// Writes the last event of a transfer.
    pub fn finished(&mut self, report: &ReportJson) {
        self.write(&EventLine::Finished {
            run: self.run,
            outcome: report.outcome,
            exit_code: report.exit_code,
            landed_bytes: report.bytes.landed,
            seconds: report.seconds.total,
        });
    }

    /// The first failure to write an event.
    pub fn failure(&mut self) -> Option<Error> {
        let dry_run = self.dry_run.as_mut().and_then(DryRun::failure);
        self.failed.take().or(dry_run)
    }

    fn write(&mut self, line: &EventLine<'_>) {
        if !self.wanted || self.failed.is_some() {
            return;
        }
        let text = serde_json::to_string(line).expect("plain values serialize");
        self.failed = self.console.result(&text).err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_object_with_its_name() {
        let line = serde_json::to_value(EventLine::ConnectionLost {
            run: Some(2),
            connection: 7,
            why: "reset",
        })
        .expect("JSON");
        assert_eq!(
            line,
            serde_json::json!({
                "event": "connection_lost", "run": 2, "connection": 7, "why": "reset"
            })
        );
    }

    #[test]
    fn every_event_is_in_the_schema() {
        let text = include_str!("../SCHEMA.md");
        for name in [
            "planned",
            "progress",
            "file",
            "connection_lost",
            "connection_joined",
            "note",
            "finished",
        ] {
            assert!(text.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}
