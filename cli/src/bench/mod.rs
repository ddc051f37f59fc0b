//! `haul bench`: measures whole transfers, over real sockets always.
//!
//! Leaves to others: what is measured (plan.rs), the files (workshop.rs), the
//! figures (figures.rs). Invariant: a figure is of a run that was complete,
//! and every file that a bench made is gone when it ends.

mod figures;
mod plan;
mod workshop;

use crate::arguments::BenchArguments;
use crate::console::{Console, require_output};
use crate::embedded::Embedded;
use crate::events::Events;
use crate::follow::{self, Outputs};
use crate::interrupt::Interrupts;
use crate::outcome::{self, ReportJson};
use crate::progress::{Sealing, Shown};
use crate::size::{format_connections, format_size};
use crate::table;
use figures::{BenchJson, Configuration, Intervals, RunFigures};
use haul_engine::options::{PoolOptions, Token};
use haul_engine::report::Report;
use haul_engine::{Error, ErrorKind, PeerAddress, Pool};
use plan::{BenchPlan, BenchTarget};
use std::time::{Duration, Instant, SystemTime};
use workshop::Workshop;

/// Runs `haul bench`; the exit code.
pub fn run(
    arguments: &BenchArguments,
    verbose: u8,
    console: &Console,
    interrupts: &Interrupts,
) -> u8 {
    let mut bench = Bench {
        arguments,
        verbose,
        console,
        interrupts,
        events: Events::new(console, arguments.output.events),
        told: BenchJson::default(),
        unsaid: None,
    };
    let ended = bench.measure();
    bench.tell_end(ended)
}

/// A bench at work.
struct Bench<'a> {
    arguments: &'a BenchArguments,
    verbose: u8,
    console: &'a Console,
    interrupts: &'a Interrupts,
    events: Events,
    told: BenchJson,
    /// The first failure to write the human report.
    unsaid: Option<Error>,
}

/// Where the runs go.
struct BenchServer {
    peer: PeerAddress,
    token: Option<Token>,
    embedded: Option<Embedded>,
}

impl Bench<'_> {
    /// Every run of every configuration; stops at the first that fails.
    fn measure(&mut self) -> Result<(), Error> {
        let plan = BenchPlan::new(self.arguments)?;
        require_output("write the result to")?;
        let mut outputs = Outputs::create(&self.arguments.output)?;
        let quit = self.interrupts.clone();
        let arguments = self.arguments;
        let workshop =
            plan.open_workshop(arguments.directory.as_deref(), arguments.transfer.verify)?;
        // A signal before the first transfer ends the process, but not before
        // the files are gone.
        let made = workshop.folder();
        self.interrupts.on_stop(move || {
            if let Some(folder) = made {
                let _ = std::fs::remove_dir_all(folder);
            }
            quit.exit();
        });
        self.told.setup = Some(plan.setup(&workshop));
        self.say(&plan.sentence(&workshop));
        let ended = plan
            .make_source(&workshop)
            .and_then(|()| self.measure_all(&plan, &workshop, &mut outputs));
        self.told.summarize();
        let told = self
            .told
            .with_end(ended.as_ref().err(), self.interrupts.exit_code());
        let json = serde_json::to_string_pretty(told).expect("plain values serialize");
        let written = outputs.finish(&json);
        ended.and(written)
    }

    /// The runs, up to the first that fails.
    fn measure_all(
        &mut self,
        plan: &BenchPlan,
        workshop: &Workshop,
        outputs: &mut Outputs,
    ) -> Result<(), Error> {
        let runs = self.arguments.runs;
        let mut number = 0;
        for configuration in &plan.configurations {
            for _ in 0..runs {
                number += 1;
                let (began, asked) = (SystemTime::now(), Instant::now());
                self.events.of_run(number);
                let report = self
                    .one(plan, workshop, *configuration, number)
                    .unwrap_or_else(|error| Report::failed(error, asked.elapsed()));
                let compared = plan.compare(workshop, number, &report);
                workshop.remove_target(number);
                let prefix = if plan.configurations.len() as u32 * runs > 1 {
                    format!("run-{number}.")
                } else {
                    String::new()
                };
                outputs.add(&prefix, began, &report)?;
                self.record(*configuration, number, &report, compared)?;
            }
        }
        Ok(())
    }

    /// One transfer, over connections of its own.
    fn one(
        &mut self,
        plan: &BenchPlan,
        workshop: &Workshop,
        configuration: Configuration,
        number: u32,
    ) -> Result<Report, Error> {
        let mut pool_options = self.arguments.transfer.pool();
        pool_options.connections = configuration.connections;
        let mut options = self.arguments.transfer.copy();
        options.chunk_bytes = configuration.chunk_bytes;
        let server = self.server(plan, workshop, &pool_options)?;
        pool_options.token = server.token.clone();
        let mut pool = Pool::connect(&server.peer, pool_options)?;
        let transfer = match plan.target(workshop, number) {
            BenchTarget::Push(sources, target) => pool.push(sources, target, &options)?,
            BenchTarget::Pull(sources, target) => pool.pull(sources, target, &options)?,
        };
        let mut intervals = Intervals::new(number, self.arguments.interval);
        let output = &self.arguments.output;
        let sealing = Sealing::of(&options);
        let mut shown = Shown::new(self.console, output.progress, output.quiet, sealing);
        let followed = follow::follow(
            transfer,
            self.interrupts,
            &mut shown,
            &mut self.events,
            self.arguments.seconds.map(Duration::from_secs_f64),
            |progress| intervals.add(progress),
        );
        drop(shown);
        let report = followed.report;
        self.told.intervals.extend(intervals.finish(&report));
        let (beside, is_over) = (server.embedded, followed.is_over);
        follow::let_go(pool, beside, is_over, self.interrupts, self.console);
        Ok(report)
    }

    /// The server of one run: the one that was named, or a new embedded one.
    fn server(
        &self,
        plan: &BenchPlan,
        workshop: &Workshop,
        options: &PoolOptions,
    ) -> Result<BenchServer, Error> {
        if let Some(to) = &plan.to {
            let found = self.arguments.transfer.token()?;
            return Ok(BenchServer {
                peer: to.peer.clone(),
                token: found.map(|found| found.token),
                embedded: None,
            });
        }
        let embedded = Embedded::start(plan.root(workshop), None, options)?;
        Ok(BenchServer {
            peer: embedded.peer().clone(),
            token: Some(embedded.token()),
            embedded: Some(embedded),
        })
    }

    /// Keeps and tells one run; an error where it failed.
    fn record(
        &mut self,
        configuration: Configuration,
        number: u32,
        report: &Report,
        compared: Option<bool>,
    ) -> Result<(), Error> {
        let json = ReportJson::new(report, self.interrupts.exit_code());
        self.events.finished(&json);
        follow::errors(report, self.console);
        let is_interrupted =
            matches!(&report.error, Some(error) if error.kind == ErrorKind::Interrupted);
        if report.error.is_none() || is_interrupted {
            let compared = match compared {
                Some(true) => ", target compared",
                _ if is_interrupted => " when it was interrupted",
                _ => "",
            };
            self.say(&format!(
                "run {number}: {}, {} chunks: {}{compared}",
                format_connections(configuration.connections),
                format_size(configuration.chunk_bytes.into()),
                table::headline(report)
            ));
            if self.verbose > 0 || self.is_single() {
                let of_run = self.told.intervals.iter();
                let own: Vec<_> = of_run.filter(|one| one.run == number).cloned().collect();
                let intervals = figures::interval_table(&own);
                if !intervals.is_empty() {
                    self.say(&intervals);
                }
                self.say(table::details(report).trim_end());
            }
        }
        self.told.runs.push(RunFigures {
            run: number,
            configuration,
            compared,
            report: json,
        });
        match (&report.error, compared) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(false)) => {
                let error = Error::new(
                    ErrorKind::Integrity,
                    format!("run {number} was complete, but its target differs from its source"),
                );
                self.console.error(&error);
                Err(error)
            }
            (None, _) => Ok(()),
        }
    }

    /// True when there is one run only, whose details are the result.
    fn is_single(&self) -> bool {
        let sweep = self.arguments.sweep.as_ref().map_or(1, |sweep| {
            sweep.connections.len().max(1) * sweep.chunk_bytes.len().max(1)
        });
        self.arguments.runs == 1 && sweep == 1
    }

    /// The human report: the result, unless JSON is.
    fn say(&mut self, text: &str) {
        let output = &self.arguments.output;
        if output.is_for_programs() {
            if !output.quiet {
                self.console.line(text);
            }
        } else if self.unsaid.is_none() {
            self.unsaid = self.console.result(text).err();
        }
    }

    /// The end of everything: the summary or the error, the JSON, the exit code.
    fn tell_end(mut self, ended: Result<(), Error>) -> u8 {
        let signalled = self.interrupts.exit_code();
        let mut code = outcome::exit_code(ended.as_ref().err(), signalled);
        if let Err(error) = &ended {
            let told = self.told.runs.last().is_some_and(|run| run.is_failed());
            if !told {
                self.console.error(error);
            }
        }
        let is_interrupted = matches!(&ended, Err(error) if error.kind == ErrorKind::Interrupted);
        // What was measured until then was measured.
        let table = self.told.table();
        if !self.is_single() && !table.is_empty() && (ended.is_ok() || is_interrupted) {
            self.say(&table);
        }
        if self.arguments.output.json {
            let told = self.told.with_end(ended.as_ref().err(), signalled);
            let line = serde_json::to_string(told).expect("plain values serialize");
            if let Err(error) = self.console.result(&line) {
                self.console.error(&error);
                code = code.max(error.exit_code());
            }
        }
        for error in [self.unsaid.take(), self.events.failure()]
            .into_iter()
            .flatten()
        {
            self.console.error(&error);
            code = code.max(error.exit_code());
        }
        code
    }
}

impl RunFigures {
    /// True when the run's error was told with it.
    fn is_failed(&self) -> bool {
        self.report.error.is_some() || self.compared == Some(false)
    }
}
