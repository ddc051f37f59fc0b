//! haul's engine: sessions, transfers and reports as a library.
//!
//! Leaves to others: arguments, printing, signals. Invariant: it never prints,
//! never exits, and installs one signal handler only, for SIGBUS, when the first
//! mapped file is sent (see [`kernel::fault`]): it hands on what is not haul's.

pub mod client;
pub mod data;
pub mod error;
pub mod files;
pub mod kernel;
pub mod limits;
pub mod options;
pub mod protocol;
pub mod reason;
pub mod report;
pub mod server;
pub mod session;

pub use client::pool::Pool;
pub use client::transfer::{StopHandle, Transfer};
pub use error::{Error, ErrorKind, Result, Side};
pub use files::reflink::Reflinks;
pub use options::PeerAddress;
pub use server::house::ServerEvent;
pub use server::listen::{Server, ServerStopHandle};
pub use session::event::{Event, Progress};
