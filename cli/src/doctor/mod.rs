//! `haul doctor`: what this kernel and machine offer, what haul does with it,
//! and the commands that better it.
//!
//! Leaves to others: looking (the engine's probe). Invariant: a finding is ok,
//! slow or stop by what haul would do here, and a cure is a command that can
//! be pasted.

mod finding;
mod judge;

use crate::arguments::DoctorArguments;
use crate::console::Console;
use finding::{Finding, Severity, worst};
use haul_engine::kernel::probe::Machine;
use haul_engine::{Error, ErrorKind};
use serde::Serialize;

/// The JSON of `--json`.
#[derive(Serialize)]
struct DoctorJson<'a> {
    /// The worst of the findings.
    level: Severity,
    /// The process's exit code.
    exit_code: u8,
    /// All of them.
    findings: &'a [Finding],
    /// What they were judged by.
    machine: &'a Machine,
}

/// Runs `haul doctor`; the exit code: 4 where haul cannot work here.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(arguments: &DoctorArguments, console: &Console) -> Result<u8, Error> {
    let machine = Machine::look();
    let findings = judge::judge(&machine);
    let level = worst(&findings);
    let exit_code = match level {
        Severity::Stop => ErrorKind::Incompatible.exit_code(),
        Severity::Ok | Severity::Slow => 0,
    };
    if arguments.json {
        let json = DoctorJson {
            level,
            exit_code,
            findings: &findings,
            machine: &machine,
        };
        console.result(&serde_json::to_string(&json).expect("plain values serialize"))?;
    } else {
        console.result(told(&machine, &findings).trim_end())?;
    }
    Ok(exit_code)
}

/// The findings for a person.
fn told(machine: &Machine, findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Severity::Ok => "ok  ",
            Severity::Slow => "slow",
            Severity::Stop => "STOP",
        };
        text += &format!("{mark}  {}: {}\n", finding.topic, finding.found);
        text += &format!("      haul: {}\n", finding.haul);
        if let Some(cure) = &finding.cure {
            text += &format!("      try:  {cure}\n");
        }
    }
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    text += &match (count(Severity::Stop), count(Severity::Slow)) {
        (0, 0) => format!("haul has what it needs on Linux {}", machine.kernel_release),
        (0, slow) => format!(
            "haul works here; {slow} finding{} would make it faster",
            if slow == 1 { "" } else { "s" }
        ),
        (_, _) => "haul cannot work here until what is marked STOP is cured".to_owned(),
    };
    text
}
