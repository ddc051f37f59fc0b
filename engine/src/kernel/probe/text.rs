//! The small text files by which the kernel tells about itself.
//!
//! Leaves to others: what they mean. Invariant: what cannot be read is `None`.

/// A sysctl's text by its dotted name, trimmed.
#[must_use]
pub fn sysctl(name: &str) -> Option<String> {
    line(&format!("/proc/sys/{}", name.replace('.', "/")))
}

/// A sysctl that is one number.
pub(super) fn number(name: &str) -> Option<u64> {
    sysctl(name)?.parse().ok()
}

/// A small file's text, trimmed.
pub(super) fn line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}
