//! haul's engine: sessions, transfers and reports as a library.
//!
//! Leaves to others: arguments, printing, signals. Invariant: it never prints,
//! never exits, and installs one signal handler only, for SIGBUS, when the first
//! mapped file is sent (see [`kernel::fault`]): it hands on what is not haul's.

pub mod control;
pub mod data;
pub mod error;
pub mod files;
pub mod kernel;
pub mod limits;
pub mod options;
pub mod protocol;
pub mod report;

pub use control::pool::{PeerAddress, Pool};
pub use control::server::{Server, ServerEvent, ServerStopHandle};
pub use control::transfer::{Event, Progress, StopHandle, Transfer};
pub use error::{Error, ErrorKind, Result, Side};
