//! The `haul` command: arguments in, one exit code out.
//!
//! Leaves to others: what each subcommand does. Invariant: this is the only
//! place that ends the process, but for a second signal.

mod arguments;
mod bench;
mod clean;
mod completions;
mod console;
mod copy;
mod doctor;
mod dry_run;
mod embedded;
mod endpoint;
mod ends;
mod entries;
mod events;
mod follow;
mod hlog;
mod interrupt;
mod keep_manifest;
mod listed;
mod logging;
mod man;
mod manifest;
mod mistake;
mod outcome;
mod progress;
mod refusals;
mod serve;
mod size;
mod table;
mod token;
mod verify;

use arguments::{Arguments, Command};
use clap::Parser;
use console::{Console, When};
use haul_engine::Error;
use interrupt::Interrupts;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    keep_quiet_about_threads();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => return ExitCode::from(refused(&told)),
    };
    let console = Console::new(arguments.general.color);
    ExitCode::from(run(&arguments, &console).unwrap_or_else(|error| {
        console.error(&error);
        error.exit_code()
    }))
}

/// Help and versions go where clap sends them; a refusal is one sentence.
fn refused(told: &clap::Error) -> u8 {
    if told.use_stderr() {
        Console::new(When::Auto).error(&console::usage(mistake::sentence(
            told,
            &std::env::args_os().collect::<Vec<_>>(),
        )));
        return 2;
    }
    let printed = console::require_output("write the help to").and_then(|()| {
        let flushed = told.print().and_then(|()| std::io::stdout().flush());
        flushed.map_err(|error| console::fault("cannot write the help to standard output", error))
    });
    match printed {
        Ok(()) => 0,
        Err(error) => {
            Console::new(When::Auto).error(&error);
            error.exit_code()
        }
    }
}

/// What was typed, done; the exit code.
fn run(arguments: &Arguments, console: &Console) -> Result<u8, Error> {
    let verbose = arguments.general.verbose;
    let quietest = quietest(&arguments.command);
    logging::start(console, verbose, quietest)?;
    raise_open_files();
    match &arguments.command {
        Command::Copy(copy) => Ok(copy::run(copy, verbose, console, &Interrupts::take_over()?)),
        Command::Bench(bench) => Ok(bench::run(
            bench,
            verbose,
            console,
            &Interrupts::take_over()?,
        )),
        Command::Serve(serve) => serve::run(serve, console, &Interrupts::take_over()?),
        Command::Clean(clean) => clean::run(clean, console),
        Command::Verify(verify) => verify::run(verify, console, &Interrupts::take_over()?),
        Command::Doctor(doctor) => doctor::run(doctor, console),
        Command::Completions(completions) => completions::run(completions, console).map(|()| 0),
        Command::Man(man) => man::run(man, console).map(|()| 0),
    }
}

/// The runtime panics where no thread can be started, and the engine makes a
/// sentence of it: nothing is left to say there.
fn keep_quiet_about_threads() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>();
        if !message.is_some_and(|message| message.starts_with("OS can't spawn worker thread")) {
            told(panic);
        }
    }));
}

/// As many descriptors as this user may have: every file of a copy has one or
/// two, every connection a few.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        // Where it is refused, what runs out is told.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// How much is logged without -v.
fn quietest(command: &Command) -> logging::Talk {
    match command {
        Command::Serve(serve) if !serve.quiet => logging::Talk::Info,
        _ => logging::Talk::Quiet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_logs_its_sessions_unless_it_is_to_be_quiet() {
        let level = |line: &str| {
            let arguments = Arguments::try_parse_from(line.split(' ')).expect("a command line");
            quietest(&arguments.command)
        };
        assert_eq!(level("haul serve --root ."), logging::Talk::Info);
        assert_eq!(level("haul serve --root . -q"), logging::Talk::Quiet);
        assert_eq!(level("haul copy a b"), logging::Talk::Quiet);
    }
}
