//! The control plane: one thread of tokio-uring for each pool or server.
//!
//! Leaves to others: file work (blocking threads) and bulk bytes (the data
//! plane). Invariant: it waits for nothing but sockets, timers and queues.

pub mod pool;
pub mod server;
pub mod transfer;
