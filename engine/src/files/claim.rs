//! The final names that are being written in this process, and by which transfer.
//!
//! Leaves to others: what is written. Invariant: a name is claimed by one writer at a
//! time, and its claim goes with whoever holds it, however that ends; who waits for a
//! claim waits for so long at most as its transfer has patience.

use super::Identity;
use super::folder::HeldFolder;
use super::replace::Replacing;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long all files of a transfer together wait for names that another writes: a
/// transfer that was cut off lets go of its own once its last writes are through.
const PATIENCE: Duration = Duration::from_secs(5);

/// A name in a directory.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ClaimedName {
    directory: Identity,
    name: Box<[u8]>,
}

/// All names that are claimed, each with the number of its claimant.
#[derive(Default)]
struct ClaimTable {
    names: HashMap<Arc<ClaimedName>, u64>,
    /// Threads that wait until one is free; to wake nobody costs a call, too.
    waiting: usize,
}

static TABLE: LazyLock<Mutex<ClaimTable>> = LazyLock::new(Mutex::default);
static FREED: Condvar = Condvar::new();
static CLAIMANTS: AtomicU64 = AtomicU64::new(0);

fn table() -> MutexGuard<'static, ClaimTable> {
    // Each change of it is one call.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A transfer, as who writes.
#[derive(Debug)]
pub struct Claimant {
    number: u64,
    patience: Mutex<Duration>,
    replacing: Replacing,
}

/// Whose a name is that cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimedBy {
    /// The same transfer's.
    Itself,
    /// Another's.
    Another,
}

/// A name that nobody else writes until this is dropped or let go of.
#[derive(Debug)]
pub struct Claim {
    name: Arc<ClaimedName>,
    is_over: AtomicBool,
}

impl Default for Claimant {
    fn default() -> Self {
        Self {
            number: CLAIMANTS.fetch_add(1, Ordering::Relaxed),
            patience: Mutex::new(PATIENCE),
            replacing: Replacing::default(),
        }
    }
}

impl Claimant {
    /// One that may replace so much.
    #[must_use]
    pub fn new(replacing: Replacing) -> Self {
        Self {
            replacing,
            ..Self::default()
        }
    }

    /// What it may replace.
    #[must_use]
    pub fn replacing(&self) -> &Replacing {
        &self.replacing
    }

    /// Claims `name` in `folder`; blocks while another transfer has it and this one is
    /// patient.
    ///
    /// # Errors
    /// Somebody has it.
    pub fn claim(&self, folder: &HeldFolder, name: &[u8]) -> Result<Claim, ClaimedBy> {
        let name = Arc::new(ClaimedName {
            directory: folder.identity(),
            name: name.into(),
        });
        let mut table = table();
        let mut holder = table.names.get(&name).copied();
        if holder.is_some_and(|holder| holder != self.number) {
            table = self.wait(table, &name);
            holder = table.names.get(&name).copied();
        }
        match holder {
            Some(holder) if holder == self.number => return Err(ClaimedBy::Itself),
            Some(_) => return Err(ClaimedBy::Another),
            None => table.names.insert(name.clone(), self.number),
        };
        Ok(Claim {
            name,
            is_over: AtomicBool::new(false),
        })
    }

    /// Waits until nobody has `name`, or patience is over.
    fn wait(
        &self,
        mut table: MutexGuard<'static, ClaimTable>,
        name: &ClaimedName,
    ) -> MutexGuard<'static, ClaimTable> {
        let began = Instant::now();
        let most = *self.patience();
        table.waiting += 1;
        let is_taken = |table: &mut ClaimTable| table.names.contains_key(name);
        let waited = FREED.wait_timeout_while(table, most, is_taken);
        let (mut table, _) = waited.unwrap_or_else(PoisonError::into_inner);
        table.waiting -= 1;
        let mut patience = self.patience();
        *patience = patience.saturating_sub(began.elapsed());
        table
    }

    fn patience(&self) -> MutexGuard<'_, Duration> {
        self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// The name is written, or will not be.
    pub fn let_go(&self) {
        if self.is_over.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut table = table();
        table.names.remove(&self.name);
        let is_awaited = table.waiting > 0;
        drop(table);
        if is_awaited {
            FREED.notify_all();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn held(path: &std::path::Path) -> HeldFolder {
        HeldFolder::found(File::open(path).expect("a folder").into())
    }

    fn impatient() -> Claimant {
        Claimant {
            patience: Mutex::default(),
            ..Claimant::default()
        }
    }

    #[test]
    fn a_name_is_one_writers_until_that_lets_go_of_it() {
        let (one, two) = (tempfile::tempdir(), tempfile::tempdir());
        let (one, two) = (one.expect("a folder"), two.expect("a folder"));
        let (first, second) = (impatient(), impatient());
        let claim = first.claim(&held(one.path()), b"a").expect("free");
        // By whatever descriptor the directory is held.
        let folder = held(one.path());
        assert_eq!(
            second.claim(&folder, b"a").expect_err("taken"),
            ClaimedBy::Another
        );
        assert_eq!(
            first.claim(&folder, b"a").expect_err("taken"),
            ClaimedBy::Itself
        );
        let others = [
            second.claim(&folder, b"b"),
            second.claim(&held(two.path()), b"a"),
        ];
        assert!(others.iter().all(Result::is_ok));
        claim.let_go();
        let next = second.claim(&folder, b"a").expect("free");
        // Who let go once takes nothing from the next.
        claim.let_go();
        drop(claim);
        assert_eq!(
            first.claim(&folder, b"a").expect_err("taken"),
            ClaimedBy::Another
        );
        drop(next);
        assert!(first.claim(&folder, b"a").is_ok());
    }

    #[test]
    fn who_waits_gets_the_name_when_it_is_free() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = impatient();
        let claim = first.claim(&held(folder.path()), b"a").expect("free");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let patient = Claimant {
                    patience: Mutex::new(Duration::from_secs(3600)),
                    ..Claimant::default()
                };
                patient.claim(&held(folder.path()), b"a").is_ok()
            });
            while table().waiting == 0 {
                std::thread::yield_now();
            }
            drop(claim);
            assert!(waiting.join().expect("no panic"));
        });
    }

    #[test]
    fn patience_is_for_all_files_of_a_transfer_together() {
        let folder = tempfile::tempdir().expect("a folder");
        let _claim = impatient().claim(&held(folder.path()), b"a").expect("free");
        let second = Claimant {
            patience: Mutex::new(Duration::from_millis(10)),
            ..Claimant::default()
        };
        let taken = second.claim(&held(folder.path()), b"a");
        assert_eq!(taken.expect_err("taken"), ClaimedBy::Another);
        assert_eq!(*second.patience(), Duration::ZERO);
    }
}
