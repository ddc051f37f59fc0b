//! To be written.

use super::{Clock, SendCommand, SendEvents};
/// TEMP
pub fn spawn(
    _: &str,
    _: crate::kernel::queue::Reader<SendCommand>,
    _: SendEvents,
    _: Clock,
) -> crate::Result<std::thread::JoinHandle<()>> {
    Ok(std::thread::spawn(|| ()))
}
