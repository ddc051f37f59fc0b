//! The real binary in fresh folders: what it copies, writes and answers.
//!
//! Leaves to others: the library's own tests, and what needs a network.
//! Invariant: every test has its own folder and its own ports, and leaves no
//! process behind.

mod benches;
mod cleaning;
mod collisions;
mod contents;
mod copies;
mod descriptors;
mod faults;
mod holes;
mod kinds;
mod limits;
mod lists;
mod manifests;
mod mount;
mod outputs;
mod rates;
mod reflink;
mod reports;
mod rules;
mod servers;
mod stops;
mod support;
mod touched;
mod trees;
mod usage;
mod verify;
