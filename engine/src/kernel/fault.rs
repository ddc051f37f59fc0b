//! Touching mapped files in user code without dying of SIGBUS.
//!
//! Leaves to others: mapping, and what a cut-off file means. Invariant: a page
//! that its file no longer has reads as zeros inside [`watched`] and swallows
//! what is written to it, and the caller learns of it; every other SIGBUS goes
//! where it went before.
//!
//! A check has to read the bytes that are sent. Read through the mapping they
//! cost no copy, but a file that is truncated meanwhile answers with SIGBUS,
//! and no system call can rule that out beforehand. So this is the one signal
//! handler that haul installs, once, when the first mapped file is sent, or
//! received into. It
//! only acts for a thread that is inside [`watched`] and hands everything else
//! to the handler that was there before.

use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};

thread_local! {
    /// True exactly while this thread is inside [`watched`].
    static WATCHING: AtomicBool = const { AtomicBool::new(false) };
    /// A page was replaced since the watch began.
    static FAULTED: AtomicBool = const { AtomicBool::new(false) };
}

fn set(flag: &'static std::thread::LocalKey<AtomicBool>, value: bool) {
    flag.with(|flag| flag.store(value, Ordering::Relaxed));
}

fn get(flag: &'static std::thread::LocalKey<AtomicBool>) -> bool {
    flag.with(|flag| flag.load(Ordering::Relaxed))
}

/// What SIGBUS did before.
static BEFORE: OnceLock<Option<Before>> = OnceLock::new();

struct Before(libc::sigaction);

// SAFETY: a `sigaction` is plain numbers and a code address, and is only read.
unsafe impl Send for Before {}
// SAFETY: as above.
unsafe impl Sync for Before {}

/// The right to touch mapped bytes: there is one inside [`watched`] only, and
/// it stays on its thread.
pub struct Watch(PhantomData<*const ()>);

/// Runs `read`, in which mapped files may be touched. The second value is true
/// when a page was missing, and zeros stood in its place. `None` when the
/// handler cannot be installed.
pub fn watched<R>(read: impl FnOnce(&Watch) -> R) -> Option<(R, bool)> {
    BEFORE.get_or_init(install).as_ref()?;
    set(&WATCHING, true);
    set(&FAULTED, false);
    // The handler runs between any two instructions, so the compiler may
    // neither answer for it from what was set here nor move a read out of the
    // watch (seen: in an optimized build it told of no fault).
    compiler_fence(Ordering::SeqCst);
    let end = End;
    let result = black_box(read(&Watch(PhantomData)));
    drop(end);
    Some((result, get(&FAULTED)))
}

/// Ends the watch, on a panic too.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        set(&WATCHING, false);
    }
}

fn install() -> Option<Before> {
    // SAFETY: all zeros is a valid `sigaction`; the handler has the signature
    // that SA_SIGINFO asks for and calls only what is safe in a handler. The
    // alternate stack is used where a thread has one, as Rust's threads do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        let mut before: libc::sigaction = std::mem::zeroed();
        let installed = libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before);
        (installed == 0).then_some(Before(before))
    }
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo for SA_SIGINFO, and SIGBUS has
    // an address.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    if code == libc::BUS_ADRERR && get(&WATCHING) && replace_page(address) {
        set(&FAULTED, true);
        return;
    }
    pass_on(signal, info, context);
}

/// Puts a page of zeros where the file has none.
fn replace_page(address: usize) -> bool {
    let page_bytes = super::page::PAGE_BYTES;
    let page = address - address % page_bytes;
    // SAFETY: inside a watch the only memory that can raise SIGBUS is a mapped
    // window, which nothing else refers to as memory of its own; replacing a
    // page of it by private zeros is undone when the window is unmapped. mmap
    // is a plain system call, safe in a handler.
    let mapped = unsafe {
        libc::mmap(
            page as *mut libc::c_void,
            page_bytes,
            // Writable, for a window that is received into: what is written
            // there is lost, and the caller learns of it.
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Does what was done before haul came.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().and_then(Option::as_ref);
    let before = before.map_or(libc::SIG_DFL, |before| before.0.sa_sigaction);
    if before == libc::SIG_DFL || before == libc::SIG_IGN {
        // The default is restored, and the instruction that faulted is made
        // again: the process dies of it as it would have.
        // SAFETY: signal(2) is safe in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: a handler that is neither of the two constants is a function; one
    // without SA_SIGINFO takes the first argument and ignores the others, which
    // the C calling convention allows.
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
        unsafe { std::mem::transmute(before) };
    handler(signal, info, context);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::memory::Window;
    use crate::kernel::page::PAGE_BYTES;
    use crate::kernel::ring::{Owner, Slice};
    use std::os::fd::AsFd;
    use std::sync::Arc;

    #[test]
    fn a_file_that_is_cut_off_reads_as_zeros_and_is_told() {
        let file = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut &file, &vec![7; 4 * PAGE_BYTES]).expect("written");
        let window = Arc::new(Window::map(file.as_fd(), 0, 4 * PAGE_BYTES).expect("mapped"));
        let slice = Slice::new(Owner::Window(window), 0..4 * PAGE_BYTES);
        let whole = watched(|watch| slice.bytes(watch).iter().all(|byte| *byte == 7));
        assert_eq!(whole, Some((true, false)));
        file.set_len(PAGE_BYTES as u64).expect("cut off");
        let cut = watched(|watch| {
            let bytes = slice.bytes(watch);
            (bytes[0], bytes[PAGE_BYTES], bytes[3 * PAGE_BYTES])
        });
        assert_eq!(cut, Some(((7, 0, 0), true)));
        // The next watch starts afresh.
        assert_eq!(watched(|_| ()), Some(((), false)));
    }
}
