//! What this kernel and machine offer.
//!
//! Leaves to others: judging it and telling the cures. Invariant: looking
//! changes nothing, and what cannot be read is `None`.

/// A sysctl's text by its dotted name, trimmed.
#[must_use]
pub fn sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}
