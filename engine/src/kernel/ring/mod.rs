//! The ring room: the only user of io_uring beside tokio-uring's own.
//!
//! Leaves to others: what a result means. Invariants: the ring keeps what it
//! lent to the kernel until the operation's last completion, which is the one
//! without F_MORE, whatever the result says; dropping the ring cancels and
//! drains before any loan is released; the completion queue holds twice what
//! can be in flight, since a zero-copy send completes twice; a negative result
//! becomes an errno and gets no meaning here.
//!
//! Create the ring in the thread that uses it (SINGLE_ISSUER). Queue
//! operations, each with a token of the caller's choice, then
//! [`Ring::submit_and_wait`], then [`Ring::reap`].
//!
//! A stream socket has one send in progress at a time (several may await their
//! notification), because unlinked sends interleave their bytes. That rule is
//! the caller's: the ring knows descriptors, not streams.

mod loan;
mod operations;
#[cfg(test)]
mod tests;

pub use loan::{Handle, IoMessage, Loan, Owner, Slice};
pub use operations::SendMode;

use super::memory::{Arena, Region};
use crate::error::{Error, ErrorKind, Result};
use io_uring::{IoUring, cqueue, squeue, types};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A ring whose memory may not be locked is tried again for so long: what other
/// transfers of the user pin comes and goes within less.
const MEMORY_WAIT: Duration = Duration::from_secs(2);
/// … and this often.
const MEMORY_LOOK: Duration = Duration::from_millis(5);
/// One wait of this process was in vain, and no ring was made since: waiting for
/// each of many rings would only add up.
static WAITED_IN_VAIN: AtomicBool = AtomicBool::new(false);
/// Memory of one entry: a submission of 64 bytes and two completions of 16.
const ENTRY_BYTES: u64 = 96;
/// Entries of tokio-uring's own ring, by its default.
pub const RUNTIME_ENTRIES: u32 = 256;
/// Operations that one ring can have in flight, at most: the kernel's largest
/// completion queue (65,536) holds two completions of each.
pub const IN_FLIGHT_MAX: u32 = 32_768;
/// The result's bit that says a zero-copy send was copied all the same
/// (IORING_NOTIF_USAGE_ZC_COPIED).
const USAGE_COPIED: i32 = i32::MIN;
/// How long `Drop` waits for cancelled operations before it gives their loans
/// up for lost: memory that the kernel may still use is leaked, never freed.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(20);

/// What the kernel said about an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ended; the loan is back.
    Done(Result<u32, Errno>),
    /// A zero-copy send's result; its pages are the kernel's until
    /// [`Outcome::Released`].
    Sent(Result<u32, Errno>),
    /// A zero-copy send's notification; the loan is back.
    Released {
        /// The kernel copied the bytes all the same.
        copied: bool,
    },
}

/// One completion.
pub struct Completion {
    /// The caller's name for the operation.
    pub token: u64,
    /// What happened.
    pub outcome: Outcome,
    /// What was lent, with the last completion.
    pub loan: Loan,
}

/// What the kernel may be using.
struct RingFlight {
    token: u64,
    /// Own cancellations are not told.
    told: bool,
    loan: Loan,
    /// The descriptors it works on.
    handles: [Option<Handle>; 2],
}

/// One io_uring, for one thread.
pub struct Ring {
    io: IoUring,
    flights: Vec<Option<RingFlight>>,
    /// Places of `flights` that are free.
    free: Vec<u32>,
    /// True when the next operation waits for the one queued before it.
    link_next: bool,
    registered: Option<Arc<Region>>,
    system_calls: u64,
    /// Rings of SINGLE_ISSUER belong to their thread.
    _thread: PhantomData<*const ()>,
}

impl Ring {
    /// A ring for at most `in_flight_max` operations at a time, for the
    /// calling thread.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] with its cure when io_uring is switched off
    /// or too old; [`ErrorKind::Local`] for other refusals.
    pub fn new(in_flight_max: u32) -> Result<Self> {
        let in_flight_max = in_flight_max.clamp(1, IN_FLIGHT_MAX);
        let entries = in_flight_max.next_power_of_two();
        let build = || {
            IoUring::builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .setup_cqsize(entries * 2)
                .build(entries)
        };
        let io = when_memory_is_there(entries, build).map_err(|error| refused(&error))?;
        Ok(Self {
            io,
            flights: (0..in_flight_max).map(|_| None).collect(),
            free: (0..in_flight_max).rev().collect(),
            link_next: false,
            registered: None,
            // io_uring_setup and the mappings of its queues.
            system_calls: 3,
            _thread: PhantomData,
        })
    }

    /// How many more operations can be queued now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// How many operations have not seen their last completion.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// System calls that this ring made since the last time this was asked.
    pub fn take_system_calls(&mut self) -> u64 {
        std::mem::take(&mut self.system_calls)
    }

    /// True when the kernel knows SENDMSG_ZC (6.1) here.
    #[must_use]
    pub fn knows_zero_copy(&self) -> bool {
        let mut probe = io_uring::register::Probe::new();
        self.io.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(io_uring::opcode::SendMsgZc::CODE)
    }

    /// Registers an arena, once: reads and writes of its blocks skip pinning
    /// their pages from now on.
    ///
    /// # Errors
    /// The errno: ENOMEM means that RLIMIT_MEMLOCK is too small. Everything
    /// works without, only slower.
    pub fn register(&mut self, arena: &Arena) -> Result<(), Errno> {
        if self.registered.is_some() {
            return Err(Errno::BUSY);
        }
        let region = arena.region().clone();
        self.system_calls += 1;
        // SAFETY: the region stays mapped while `registered` holds it, which
        // is until after the ring is closed (see `Drop`).
        unsafe { self.io.submitter().register_buffers(&[region.as_iovec()]) }
            .map_err(|error| errno(&error))?;
        self.registered = Some(region);
        Ok(())
    }

    /// Submits what is queued and waits until `completions` can be reaped, or
    /// until `timeout`. With 0 it does not wait, and makes no call when there
    /// is nothing to submit and nothing to run.
    ///
    /// # Errors
    /// The errno of io_uring_enter(2). Interruption, the timeout and a full
    /// completion queue are none: look again.
    pub fn submit_and_wait(
        &mut self,
        completions: usize,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        self.link_next = false;
        let ready = self.io.completion().len();
        let queue = self.io.submission();
        let quiet = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if quiet && ready >= completions {
            return Ok(());
        }
        self.system_calls += 1;
        let submitter = self.io.submitter();
        let entered = match timeout {
            Some(timeout) if completions > 0 => {
                let timeout = types::Timespec::from(timeout);
                let arguments = types::SubmitArgs::new().timespec(&timeout);
                submitter.submit_with_args(completions, &arguments)
            }
            _ => submitter.submit_and_wait(completions),
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match errno(&error) {
                Errno::INTR | Errno::TIME | Errno::BUSY | Errno::AGAIN => Ok(()),
                other => Err(other),
            },
        }
    }

    /// Appends all completions that are there to `completions`.
    pub fn reap(&mut self, completions: &mut Vec<Completion>) {
        let (flights, free) = (&mut self.flights, &mut self.free);
        for entry in self.io.completion() {
            let place = entry.user_data() as usize;
            let more = cqueue::more(entry.flags());
            let Some(flight) = flights.get_mut(place).and_then(Option::as_mut) else {
                // The kernel never invents a completion; nothing is lent there.
                continue;
            };
            let (token, told) = (flight.token, flight.told);
            let outcome = outcome(&entry, more);
            let loan = if more {
                Loan::None
            } else {
                free.push(place as u32);
                flights[place]
                    .take()
                    .map_or(Loan::None, |flight| flight.loan)
            };
            if told {
                completions.push(Completion {
                    token,
                    outcome,
                    loan,
                });
            }
        }
    }

    /// Queues `entry`, keeping `loan` and `handles` until its last completion.
    ///
    /// # Safety
    /// Every address in `entry` must stay valid while `loan` and `handles` are
    /// kept, and nothing may write (for addresses that the kernel fills:
    /// touch) them meanwhile.
    ///
    /// # Panics
    /// If there is no [`Ring::room`] (own invariant).
    unsafe fn queue(
        &mut self,
        entry: squeue::Entry,
        token: u64,
        told: bool,
        loan: Loan,
        handles: [Option<Handle>; 2],
    ) {
        let place = self
            .free
            .pop()
            .expect("callers queue no more than there is room for");
        self.flights[place as usize] = Some(RingFlight {
            token,
            told,
            loan,
            handles,
        });
        let mut entry = entry.user_data(u64::from(place));
        if std::mem::take(&mut self.link_next) {
            entry = entry.flags(squeue::Flags::IO_LINK);
        }
        // SAFETY: the caller's promise, and the loan now lives in `flights`
        // until `reap` sees the last completion.
        let pushed = unsafe { self.io.submission().push(&entry) };
        // One entry for each place in flight fits.
        pushed.expect("the submission queue holds all that can be in flight");
    }

    /// Cancels everything and waits for the last completions. Returns false
    /// when some did not come in time.
    fn drain(&mut self) -> bool {
        let started = Instant::now();
        let mut forgotten = Vec::new();
        let mut resets = 0;
        loop {
            // Whatever is still queued goes first: it was lent, too.
            let _ = self.submit_and_wait(0, None);
            self.reap(&mut forgotten);
            forgotten.clear();
            if self.in_flight() == 0 {
                return true;
            }
            if started.elapsed() > DRAIN_WAIT_MAX {
                return false;
            }
            self.system_calls += 1;
            // Fails when nothing could be cancelled: then there is only the wait.
            let _ = self.io.submitter().register_sync_cancel(
                Some(types::Timespec::new().nsec(1_000_000)),
                types::CancelBuilder::any(),
            );
            // A zero-copy send's notification comes when the peer has
            // acknowledged, which may be never: a reset ends it.
            if resets < 2 {
                self.reset_sending();
                resets += 1;
            }
            if self
                .submit_and_wait(1, Some(Duration::from_millis(20)))
                .is_err()
            {
                return false;
            }
        }
    }

    /// Resets the sockets of zero-copy sends in flight.
    fn reset_sending(&mut self) {
        for flight in self.flights.iter().flatten() {
            if let (Loan::Message(_), [Some(socket), _]) = (&flight.loan, &flight.handles) {
                self.system_calls += 1;
                // Not a TCP socket, or gone already: then nothing pends there.
                let _ = reset_socket(socket);
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.drain() {
            // The kernel may still read or write these: never free them.
            std::mem::forget(std::mem::take(&mut self.flights));
            std::mem::forget(self.registered.take());
        }
        if self.registered.is_some() {
            let _ = self.io.submitter().unregister_buffers();
        }
    }
}

/// Ends a TCP connection at once: what is unsent is forgotten, the peer gets a
/// reset, and pending zero-copy notifications come.
///
/// # Errors
/// The errno of connect(2).
pub fn reset_socket(socket: &Handle) -> Result<(), Errno> {
    // SAFETY: sockaddr is plain data for which all zeros are valid.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    // SAFETY: the address lives across the call and its true length is given.
    let done = unsafe {
        libc::connect(
            socket.raw(),
            &raw const address,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(errno(&std::io::Error::last_os_error()))
    }
}

fn outcome(entry: &cqueue::Entry, more: bool) -> Outcome {
    if cqueue::notif(entry.flags()) {
        return Outcome::Released {
            copied: entry.result() & USAGE_COPIED != 0,
        };
    }
    let result = match entry.result() {
        count if count >= 0 => Ok(count as u32),
        negative => Err(Errno::from_raw_os_error(-negative)),
    };
    if more {
        Outcome::Sent(result)
    } else {
        Outcome::Done(result)
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Builds a ring of `entries`; where its memory may not be locked, though it could
/// be if nothing else were, again and again for a while: rings are charged to
/// what zero-copy sends of the same user pin for moments.
///
/// # Errors
/// As `build`.
pub fn when_memory_is_there<T>(entries: u32, build: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let may_lock = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    let may_come = may_lock >= u64::from(entries) * ENTRY_BYTES;
    let may_come = may_come && !WAITED_IN_VAIN.load(Ordering::Relaxed);
    let began = Instant::now();
    loop {
        match build() {
            Err(error) if errno(&error) == Errno::NOMEM && may_come => {
                if began.elapsed() >= MEMORY_WAIT {
                    WAITED_IN_VAIN.store(true, Ordering::Relaxed);
                    return Err(error);
                }
                std::thread::sleep(MEMORY_LOOK);
            }
            Ok(ring) => {
                WAITED_IN_VAIN.store(false, Ordering::Relaxed);
                return Ok(ring);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Why a ring could not be made, and the cure.
pub fn refused(error: &std::io::Error) -> Error {
    let doing = "cannot create an io_uring";
    match errno(error) {
        Errno::NOSYS => Error::new(
            ErrorKind::Incompatible,
            format!("{doing}: this kernel is built without it"),
        )
        .cure("use a kernel of version 6.1 or later with CONFIG_IO_URING"),
        Errno::PERM => Error::new(
            ErrorKind::Incompatible,
            format!("{doing}: it is switched off on this machine"),
        )
        .cure("run `sysctl -w kernel.io_uring_disabled=0`, or allow it in the container's seccomp profile"),
        Errno::INVAL => Error::new(
            ErrorKind::Incompatible,
            format!("{doing}: this kernel lacks SINGLE_ISSUER or DEFER_TASKRUN"),
        )
        .cure("use a kernel of version 6.1 or later"),
        Errno::NOMEM => Error::local(doing, "too little memory may be locked")
            .cure("raise RLIMIT_MEMLOCK (`ulimit -l`)"),
        other => Error::local(doing, other),
    }
}
