//! What `haul doctor` finds, one topic at a time.
//!
//! Leaves to others: judging and printing. Invariant: levels are ordered, the
//! worst last.

use serde::Serialize;

/// What a finding means for haul.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing to better.
    Ok,
    /// haul works, and would be faster.
    Slow,
    /// haul cannot work.
    Stop,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub topic: String,
    /// What it means.
    pub level: Severity,
    /// What is there.
    pub found: String,
    /// What haul does about it.
    pub haul: String,
    /// The command that betters it.
    pub cure: Option<String>,
}

/// The worst level among `findings`.
#[must_use]
pub fn worst(findings: &[Finding]) -> Severity {
    findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Severity::Ok)
}
