//! What both ends of a session share: the control channel, the data connections
//! and their workers, and the transfer that runs on them.
//!
//! Leaves to others: dialling and starting transfers (client), accepting and
//! opening what a peer names (server), file work (blocking threads) and bulk
//! bytes (the data plane). Invariant: it waits for nothing but sockets, timers
//! and queues, and knows neither client nor server: they are its `role::Role`.

pub(crate) mod channel;
pub(crate) mod core;
mod crew;
pub(crate) mod destination;
pub mod event;
mod first_window;
pub(crate) mod greeting;
pub(crate) mod hands;
pub(crate) mod inbox;
pub(crate) mod life;
pub(crate) mod links;
mod owed;
mod past;
pub(crate) mod receiving_half;
pub(crate) mod role;
pub(crate) mod running;
pub(crate) mod runtime;
pub(crate) mod sending_half;
pub(crate) mod tally;

/// This software, as the peer is told.
pub(crate) fn software() -> String {
    concat!("haul ", env!("CARGO_PKG_VERSION")).to_owned()
}
