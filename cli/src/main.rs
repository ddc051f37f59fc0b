//! The `haul` command: arguments in, one exit code out.
fn main() {}
