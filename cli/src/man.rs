//! `haul man [COMMAND]`: the manual pages that packagers install.
//!
//! Leaves to others: the text, which is the help's. Invariant: standard output
//! carries one page and nothing else.

use crate::arguments::{Arguments, ManArguments};
use crate::console::{Console, fault, usage};
use clap::CommandFactory;
use haul_engine::Error;

/// Runs `haul man`.
///
/// # Errors
/// There is no such subcommand, or standard output cannot be written to.
pub fn run(arguments: &ManArguments, console: &Console) -> Result<(), Error> {
    let mut whole = Arguments::command();
    // Fills the subcommands' usage lines and inherited options in.
    whole.build();
    let command = match &arguments.command {
        None => whole,
        Some(name) => whole
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| {
                usage(format!("there is no page for \"{name}\""))
                    .cure("name copy, serve, bench, clean, verify, doctor, completions or man")
            })?
            .display_name(format!("haul-{name}"))
            .bin_name(format!("haul {name}")),
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .source(concat!("haul ", env!("CARGO_PKG_VERSION")))
        .render(&mut page)
        .map_err(|error| fault("cannot write the manual page", error))?;
    console.result(String::from_utf8_lossy(&page).trim_end())
}
