//! Tests that cannot run on this machine say so.
//!
//! Leaves to others: what they need. Invariant: no test passes in silence that
//! did not run; continuous integration counts them and wants none.

/// Says why a test did nothing, and notes it where `HAUL_SKIPPED` says.
pub(crate) fn skip(why: &str) {
    use std::io::Write;
    // Past the capture of a test's output: who passes without having run says so.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
    if let Some(list) = std::env::var_os("HAUL_SKIPPED") {
        let list = std::fs::File::options()
            .append(true)
            .create(true)
            .open(list);
        let said = list.and_then(|mut list| writeln!(list, "{why}"));
        said.expect("HAUL_SKIPPED names a file that can be written");
    }
}
