//! The descriptors of this process: how many there are, how many of them files
//! may take, and waiting for one where others took them.
//!
//! Leaves to others: opening, and what an entry takes. Invariant: what the
//! shares promise and what is open besides never exceeds the limit when a share
//! is taken; what others open later is met by waiting while anything is given
//! back, and told when nothing is.

use crate::error::{self, Error};
use crate::limits;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Kept back for what opens a descriptor for a moment: a directory, /proc, a
/// name service.
const SPARE: usize = 6;
/// How long nobody gives a descriptor back before that is told.
const PATIENCE: Duration = Duration::from_secs(5);
/// Other processes tell nobody when they give one back.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is promised to shares, and how much of it is open.
#[derive(Debug, Default)]
struct Account {
    promised: usize,
    held: usize,
    /// How often some were given back.
    releases: u64,
    /// How often that had been when somebody waited in vain for the next time.
    in_vain: Option<u64>,
    /// Who waits for the next time: to wake nobody would be a system call for each
    /// file that is closed.
    waiting: usize,
}

static ACCOUNT: Mutex<Account> = Mutex::new(Account {
    promised: 0,
    held: 0,
    releases: 0,
    in_vain: None,
    waiting: 0,
});
static RELEASED: Condvar = Condvar::new();

fn account() -> MutexGuard<'static, Account> {
    ACCOUNT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Descriptors that this process may have open: its soft limit, within
/// [`limits::DESCRIPTORS_MAX`].
#[must_use]
pub fn limit() -> usize {
    let most = limits::DESCRIPTORS_MAX as usize;
    let soft = getrlimit(Resource::Nofile).current;
    soft.and_then(|soft| usize::try_from(soft).ok())
        .map_or(most, |soft| soft.min(most))
}

/// How many of the first `limit` descriptors are open.
fn open_count(limit: usize) -> usize {
    let mut all: Vec<libc::pollfd> = (0..limit)
        .map(|number| libc::pollfd {
            // At most DESCRIPTORS_MAX.
            fd: number as i32,
            events: 0,
            revents: 0,
        })
        .collect();
    // SAFETY: the pointer and the count are those of one vector, which lives
    // across the call; polling for nothing changes no file, and a descriptor
    // that is not open is only told as such.
    let answered = unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, 0) };
    if answered < 0 {
        // As if all were open: what is promised then is the least.
        return limit;
    }
    let is_open = |asked: &&libc::pollfd| asked.revents & libc::POLLNVAL == 0;
    all.iter().filter(is_open).count()
}

/// Descriptors that are neither open nor promised, less a few.
#[must_use]
pub fn free() -> usize {
    free_beside(&account())
}

fn free_beside(account: &Account) -> usize {
    let limit = limit();
    let unopened = account.promised.saturating_sub(account.held);
    limit.saturating_sub(open_count(limit) + unopened + SPARE)
}

/// Descriptors that files may take, promised until it is dropped.
#[derive(Debug)]
pub struct Share {
    count: u32,
    /// What of them is promised to this share; the others are to the one that
    /// it was grown from.
    promised: usize,
}

impl Share {
    /// The least that a session has for the files of its transfers.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Local`] where that is not free.
    pub fn least() -> error::Result<Self> {
        let mut account = account();
        let least = limits::DESCRIPTORS_FIRST;
        if free_beside(&account) < least as usize {
            return Err(exhausted("cannot open files for a transfer"));
        }
        account.promised += least as usize;
        Ok(Self {
            count: least,
            promised: least as usize,
        })
    }

    /// These and more, `want` in all at most: half of what is free, so that the
    /// next transfer, or the other end of this one, finds some as well. `ahead`
    /// are still to be opened for other ends than files. It lives no longer than
    /// this one.
    #[must_use]
    pub fn grown(&self, want: usize, ahead: usize) -> Self {
        let mut account = account();
        let free = free_beside(&account).saturating_sub(ahead);
        // Every session that a server may have finds the least.
        let kept = (limits::DESCRIPTORS_FIRST as usize * limits::SESSIONS_MAX).min(limit() / 8);
        let wanted = want.saturating_sub(self.count as usize);
        let more = wanted.min(free.saturating_sub(kept) / 2);
        account.promised += more;
        Self {
            // Within DESCRIPTORS_MAX.
            count: self.count + more as u32,
            promised: more,
        }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut account = account();
        account.promised = account.promised.saturating_sub(self.promised);
    }
}

/// Why something cannot be done for want of descriptors, and the cure.
#[must_use]
pub fn exhausted(doing: &str) -> Error {
    let limit = limit();
    let why = format!("this process may open {limit} files, and too few of them are left");
    Error::local(doing, why)
        .cure("raise the limit of open files (`ulimit -n`), or use fewer connections")
}

/// Says that descriptors of a share are open, as long as it lives.
#[derive(Debug)]
pub struct Held {
    count: usize,
}

impl Held {
    /// So many are open from now on.
    #[must_use]
    pub fn new(count: usize) -> Self {
        account().held += count;
        Self { count }
    }

    /// One more is.
    pub fn add(&mut self) {
        account().held += 1;
        self.count += 1;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut account = account();
        account.held = account.held.saturating_sub(self.count);
        account.releases += 1;
        let is_awaited = account.waiting > 0;
        drop(account);
        if is_awaited {
            RELEASED.notify_all();
        }
    }
}

/// What says that every descriptor is in use.
pub trait Exhaustion {
    /// True where it does.
    fn is_exhaustion(&self) -> bool;
}

impl Exhaustion for Errno {
    fn is_exhaustion(&self) -> bool {
        matches!(*self, Self::MFILE | Self::NFILE)
    }
}

/// Opens by `open`, again and again while every descriptor is in use and some
/// are given back now and then.
///
/// # Errors
/// Those of `open`.
pub fn patiently<T, E: Exhaustion>(mut open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    match open() {
        Err(error) if error.is_exhaustion() => patiently_for(PATIENCE, open),
        result => result,
    }
}

fn patiently_for<T, E: Exhaustion>(
    patience: Duration,
    mut open: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut seen = account().releases;
    let mut until = Instant::now() + patience;
    loop {
        match open() {
            Err(error) if error.is_exhaustion() => {
                let mut account = account();
                // Who comes after one that waited in vain need not do so, too.
                let is_vain = account.in_vain == Some(account.releases);
                if is_vain || Instant::now() >= until {
                    account.in_vain = Some(account.releases);
                    return Err(error);
                }
            }
            result => return result,
        }
        let mut waiting = account();
        waiting.waiting += 1;
        let (mut account, _) = RELEASED
            .wait_timeout_while(waiting, LOOK_AGAIN, |account| account.releases == seen)
            .unwrap_or_else(PoisonError::into_inner);
        account.waiting -= 1;
        if account.releases != seen {
            seen = account.releases;
            until = Instant::now() + patience;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn open_descriptors_are_counted() {
        let limit = limit();
        assert!(limit > 64 && limit <= limits::DESCRIPTORS_MAX as usize);
        // Other tests open and close some meanwhile, but not hundreds.
        let before = open_count(limit);
        let files: Vec<_> = (0..300)
            .map(|_| std::fs::File::open("/dev/null").expect("opened"))
            .collect();
        let with = open_count(limit);
        assert!(with > before + 200, "{before} and 300 are not {with}");
        drop(files);
        assert!(open_count(limit) + 200 < with);
    }

    #[test]
    fn shares_leave_something_for_the_next() {
        let all = limit();
        let least = limits::DESCRIPTORS_FIRST;
        let sessions: Vec<_> = (0..limits::SESSIONS_MAX / 2)
            .map(|_| Share::least().expect("the least is left"))
            .collect();
        let grown = sessions.iter().map(|share| share.grown(usize::MAX, 0));
        let grown: Vec<_> = grown.collect();
        assert!(grown[0].count() > least && grown[0].count() as usize <= all / 2);
        let promised: usize = sessions
            .iter()
            .chain(&grown)
            .map(|share| share.promised)
            .sum();
        let counted: usize = grown.iter().map(|share| share.count() as usize).sum();
        assert!(promised == counted && promised <= all);
        assert_eq!(sessions[0].grown(usize::MAX, all).count(), least);
        assert!(Share::least().is_ok(), "there is room for another session");
        drop(grown);
        assert_eq!(sessions[0].grown(6, 0).count(), 6);
    }

    #[test]
    fn who_finds_no_descriptor_waits_while_some_are_given_back() {
        let tries = Cell::new(0);
        let open = || {
            tries.set(tries.get() + 1);
            drop(Held::new(1));
            if tries.get() < 5 {
                Err(Errno::MFILE)
            } else {
                Ok(())
            }
        };
        assert_eq!(patiently_for(Duration::from_secs(60), open), Ok(()));
        assert_eq!(tries.get(), 5);
        let refused = patiently_for(Duration::ZERO, || Err::<(), _>(Errno::NFILE));
        assert_eq!(refused, Err(Errno::NFILE));
        // Any other reason is told at once.
        let other = patiently_for(Duration::from_secs(60), || Err::<(), _>(Errno::NOENT));
        assert_eq!(other, Err(Errno::NOENT));
    }
}
