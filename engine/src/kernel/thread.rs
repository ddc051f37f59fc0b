//! What a thread of the data plane sets for itself.
//!
//! Leaves to others: starting threads. Invariant: nothing here reaches beyond
//! the calling thread; the process's signal handlers stay its own.

/// Blocks SIGPIPE and SIGXFSZ in the calling thread: a write into a pipe
/// without a reader, or beyond the limit of `ulimit -f`, then only answers
/// EPIPE or EFBIG, whatever the process made of these signals.
pub fn block_write_signals() {
    // SAFETY: the set is initialised by sigemptyset before it is read, and it
    // lives across all calls; the mask is the calling thread's own.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGPIPE);
        libc::sigaddset(&raw mut set, libc::SIGXFSZ);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}
