//! SIGINT, SIGTERM and SIGHUP: the first stops cleanly, the second ends at once.
//!
//! Leaves to others: what stopping means. Invariant: after the first signal
//! every stop that is or will be registered is called, exactly once, and the
//! process ends, cleanly or not.

use crate::console::fault;
use haul_engine::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A clean stop has so long before it is told as it stands; whoever sent the one
/// signal, such as timeout(1) or a service manager, must not wait for ever.
pub const STOP_WAIT: Duration = Duration::from_secs(10);
/// Telling has so long: what it is written to may take nothing any more.
const TELL_WAIT: Duration = Duration::from_secs(5);

/// Signals that come so soon after the first are the same request: timeout(1)
/// signals a process and then the group that it is in.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// What to call when a signal comes.
type StopCall = Box<dyn FnOnce() + Send>;

/// What the signal's thread and the commands share.
#[derive(Default)]
struct Signalled {
    /// The first signal that came, and when.
    signal: Option<(i32, Instant)>,
    /// What it stops.
    stop: Option<StopCall>,
}

/// The signals of this process.
#[derive(Clone, Default)]
pub struct Interrupts(Arc<Mutex<Signalled>>);

impl Interrupts {
    /// Takes SIGINT, SIGTERM and SIGHUP over, on a thread of its own, and makes a
    /// write beyond the limit of a file's size (`ulimit -f`) an error.
    ///
    /// # Errors
    /// The system refuses the handler or the thread.
    pub fn take_over() -> Result<Self, Error> {
        let interrupts = Self::default();
        let failed = |error| fault("cannot watch for signals", error);
        let mut wanted = vec![SIGINT, SIGTERM];
        if !is_ignored(SIGHUP) {
            wanted.push(SIGHUP);
        }
        let mut signals = Signals::new(wanted).map_err(failed)?;
        // With a handler in place the write says EFBIG.
        signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed)?;
        let shared = interrupts.clone();
        std::thread::Builder::new()
            .name("haul-signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    shared.signalled(signal);
                    end_late(signal);
                }
            })
            .map_err(|error| fault("cannot start the signals' thread", error))?;
        Ok(interrupts)
    }

    /// `stop` is what the first signal calls from now on; at once where it came.
    pub fn on_stop(&self, stop: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.signal.is_some() {
            drop(state);
            stop();
        } else {
            state.stop = Some(Box::new(stop));
        }
    }

    /// The exit code of the signal that came: 130, 143 or 129.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.signal.map(|(signal, _)| exit_code(signal))
    }

    /// True when a signal came so long ago that a clean stop is not awaited any
    /// longer.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .signal
            .is_some_and(|(_, since)| since.elapsed() >= STOP_WAIT)
    }

    /// A signal that came so long ago that no stop is awaited.
    #[cfg(test)]
    pub fn overdue() -> Self {
        let interrupts = Self::default();
        let since = Instant::now()
            .checked_sub(STOP_WAIT)
            .expect("a machine up for seconds");
        let state = Signalled {
            signal: Some((SIGTERM, since)),
            stop: None,
        };
        *interrupts.0.lock().expect("fresh") = state;
        interrupts
    }

    /// Ends the process at once with the signal's exit code.
    pub fn exit(&self) {
        if let Some(code) = self.exit_code() {
            signal_hook::low_level::exit(i32::from(code));
        }
    }

    /// What the thread does with one signal.
    fn signalled(&self, signal: i32) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((first, since)) = state.signal {
            if since.elapsed() < SAME_SIGNAL {
                return;
            }
            // The clean stop takes too long for them, whatever it is doing.
            signal_hook::low_level::exit(i32::from(exit_code(first)));
        }
        state.signal = Some((signal, Instant::now()));
        let stop = state.stop.take();
        drop(state);
        if let Some(stop) = stop {
            stop();
        }
    }
}

/// Ends the process when even telling of a late stop after `signal` takes too long.
fn end_late(signal: i32) {
    let late = move || {
        std::thread::sleep(STOP_WAIT + TELL_WAIT);
        signal_hook::low_level::exit(i32::from(exit_code(signal)));
    };
    // Without the thread a second signal is still heard.
    let _ = std::thread::Builder::new()
        .name("haul-late".to_owned())
        .spawn(late);
}

/// What the shell calls a process that `signal` ended.
fn exit_code(signal: i32) -> u8 {
    match signal {
        SIGTERM => 143,
        SIGHUP => 129,
        _ => 130,
    }
}

/// True where whoever started this process had it ignore `signal`, as nohup(1)
/// does with SIGHUP.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_stop_is_called_before_and_after_the_signal() {
        let interrupts = Interrupts::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let count = |calls: &Arc<AtomicUsize>| {
            let calls = calls.clone();
            move || {
                calls.fetch_add(1, Ordering::SeqCst);
            }
        };
        interrupts.on_stop(count(&calls));
        assert_eq!(interrupts.exit_code(), None);
        interrupts.signalled(SIGTERM);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        interrupts.on_stop(count(&calls));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        assert_eq!(interrupts.exit_code(), Some(143));
        // The same request again, not a second one.
        interrupts.signalled(SIGINT);
        assert_eq!(interrupts.exit_code(), Some(143));
        assert_eq!(exit_code(SIGINT), 130);
    }
}
