//! `haul completions SHELL`: what packagers install.
//!
//! Leaves to others: the definition of the options. Invariant: standard output
//! carries the script and nothing else.

use crate::arguments::{Arguments, CompletionsArguments};
use crate::console::Console;
use clap::CommandFactory;
use haul_engine::Error;

/// Runs `haul completions`.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(arguments: &CompletionsArguments, console: &Console) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "haul",
        &mut script,
    );
    console.result(String::from_utf8_lossy(&script).trim_end())
}
