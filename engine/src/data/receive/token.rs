//! Names of operations: the kind above, the place's number below.
//!
//! Leaves to others: what is in that place. Invariant: two operations in flight
//! have different names.

const KIND: u32 = 56;
/// The command queue became readable.
pub const COMMANDS: u64 = 0;

/// What an operation was.
pub enum Of {
    /// [`COMMANDS`].
    Commands,
    /// A receive of the connection in that place.
    Receive(usize),
    /// That write of a block.
    Write(usize),
    /// A write of that stream.
    Ordered(usize),
    /// The gathering of that window.
    Gather(usize),
}

/// A receive.
pub fn receive(slot: usize) -> u64 {
    1 << KIND | slot as u64
}
/// A write of a block.
pub fn write(number: usize) -> u64 {
    2 << KIND | number as u64
}
/// A write of a stream.
pub fn ordered(number: usize) -> u64 {
    3 << KIND | number as u64
}
/// The gathering of a window.
pub fn gather(number: usize) -> u64 {
    4 << KIND | number as u64
}
/// What it names.
pub fn of(token: u64) -> Of {
    let number = (token & ((1 << KIND) - 1)) as usize;
    match token >> KIND {
        1 => Of::Receive(number),
        2 => Of::Write(number),
        3 => Of::Ordered(number),
        4 => Of::Gather(number),
        _ => Of::Commands,
    }
}
