//! What is of one kind in place of what was of another: directories, and all else.
//!
//! Leaves to others: making what is new, and when the old goes. Invariant: a directory
//! gives way, or anything to a directory, only where the transfer may replace so much;
//! the name changes in one step, and the old thing is whole until then; what is
//! mounted somewhere, and what something is mounted in, stays.

use super::Identity;
use super::beneath::{DIRECTORY, kind_name, open_beneath_mount};
use super::temporary::{self, lock};
use super::tree::remove::{remove, weigh, why_not_removed};
use crate::error::{Error, Side, why};
use crate::kernel::descriptors::{Held, patiently};
use crate::options::TargetRules;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

const NOTHING: &str = "add --force to replace it with all that is in it";
const TOO_MUCH: &str = "raise --max-delete, or add --force";

/// What of another kind a transfer may replace.
#[derive(Debug, Default)]
pub struct Replacing {
    /// Files and directories that may go in all.
    most: Option<u64>,
    /// What patterns leave alone may be in a directory.
    keeps_left_out: bool,
    /// The rules leave alone what a directory would replace.
    keeps_files: bool,
    fsync: bool,
    /// Files and directories that give way so far.
    gone: AtomicU64,
}

/// Why something stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stays {
    why: String,
    cure: Option<&'static str>,
}

impl Stays {
    fn because(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            cure: None,
        }
    }

    /// A directory is there.
    #[must_use]
    pub fn directory() -> Self {
        Self::because("it is a directory")
    }

    /// What is of `kind`, and no directory, is there.
    #[must_use]
    pub fn no_directory(kind: FileType) -> Self {
        Self::because(format!("it is {}, and no directory", kind_name(kind)))
    }

    fn cured(self, cure: &'static str) -> Self {
        Self {
            cure: Some(cure),
            ..self
        }
    }

    fn errno(errno: Errno) -> Self {
        Self::because(why_not_removed(errno))
    }

    /// The refusal to do what `doing` says.
    #[must_use]
    pub fn error(self, doing: String) -> Error {
        let error = Error::local(doing, self.why).at(Side::Receiver);
        match self.cure {
            Some(cure) => error.cure(cure),
            None => error,
        }
    }
}

/// A directory that gave way: it has a temporary name, and is locked as what is being
/// written is.
#[derive(Debug)]
pub struct Replaced {
    temporary: String,
    _lock: OwnedFd,
    _held: Held,
}

impl Replacing {
    /// By the rules of a transfer; `filtered` where patterns leave something out.
    #[must_use]
    pub fn new(rules: &TargetRules, filtered: bool, fsync: bool) -> Self {
        let most = match (rules.force, rules.deletes) {
            (true, _) => Some(u64::MAX),
            (false, Some(deletes)) => Some(deletes.count_max.unwrap_or(u64::MAX)),
            (false, None) => None,
        };
        let spares = rules.deletes.is_some_and(|deletes| !deletes.left_out);
        Self {
            most,
            keeps_left_out: filtered && spares && !rules.force,
            keeps_files: rules.only_existing || rules.only_missing || rules.only_older,
            fsync,
            gone: AtomicU64::new(0),
        }
    }

    /// Files and directories that give way so far.
    #[must_use]
    pub fn gone(&self) -> u64 {
        self.gone.load(Ordering::Relaxed)
    }

    fn spend(&self, most: u64, count: u64) -> Result<(), Stays> {
        let add = |gone: u64| gone.checked_add(count).filter(|gone| *gone <= most);
        let spent = self
            .gone
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        spent.map(|_| ()).map_err(|_| too_much(most))
    }

    /// Whether the directory called `name` may give way; if so, it is counted.
    ///
    /// # Errors
    /// It stays.
    pub fn judge_directory(&self, folder: BorrowedFd<'_>, name: &[u8]) -> Result<(), Stays> {
        let (most, count) = self.weigh(folder, name)?;
        self.spend(most, count)
    }

    /// How much may go, and how much goes with that directory.
    fn weigh(&self, folder: BorrowedFd<'_>, name: &[u8]) -> Result<(u64, u64), Stays> {
        let Some(most) = self.most else {
            return Err(Stays::directory().cured(NOTHING));
        };
        if self.keeps_left_out {
            let why = "it is a directory, which may hold what --exclude leaves alone";
            return Err(Stays::because(why).cured("add --force or --delete-excluded"));
        }
        let count = weigh(folder, name, most, 0).map_err(Stays::errno)?.count;
        match count > most {
            true => Err(too_much(most)),
            false => Ok((most, count)),
        }
    }

    /// Whether what is of `kind`, and no directory, may give way to one.
    ///
    /// # Errors
    /// It stays.
    pub fn judge_file(&self, kind: FileType) -> Result<(), Stays> {
        let stays = Stays::no_directory(kind);
        match self.most {
            None => Err(stays.cured("add --force to replace it")),
            Some(_) if self.keeps_files => {
                Err(stays.cured("leave --existing, --ignore-existing and --update out"))
            }
            Some(0) => Err(too_much(0)),
            Some(_) => Ok(()),
        }
    }

    /// The same; if so, it is counted.
    ///
    /// # Errors
    /// It stays.
    pub fn count_file(&self, kind: FileType) -> Result<(), Stays> {
        self.judge_file(kind)?;
        self.spend(self.most.unwrap_or(0), 1)
    }

    /// Puts an empty directory in place of what is of `kind` there, its owner's alone.
    ///
    /// # Errors
    /// It stays.
    pub fn by_directory(
        &self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        kind: FileType,
    ) -> Result<(), Stays> {
        self.count_file(kind)?;
        let (temporary, lock) = make_directory(folder)?;
        let gone = exchange(folder, &temporary, name).and_then(|()| {
            self.drop_file(folder, &temporary).inspect_err(|_| {
                // What came back is whole, as it was.
                let _ = exchange(folder, &temporary, name);
            })
        });
        if gone.is_err() {
            // It is empty, or another directory, which stays.
            let _ = rustix::fs::unlinkat(folder, &temporary, AtFlags::REMOVEDIR);
        }
        drop(lock);
        gone
    }

    /// Removes what a directory has replaced, once that is durable.
    fn drop_file(&self, folder: BorrowedFd<'_>, temporary: &str) -> Result<(), Stays> {
        if self.fsync {
            rustix::fs::fsync(folder).map_err(Stays::errno)?;
        }
        rustix::fs::unlinkat(folder, temporary, AtFlags::empty()).map_err(Stays::errno)
    }

    /// Puts what is called `temporary` in place of the directory called `name`.
    fn directory(
        &self,
        folder: BorrowedFd<'_>,
        temporary: &str,
        name: &[u8],
    ) -> Result<Replaced, Stays> {
        let open = || open_beneath_mount(folder, name, DIRECTORY | OFlags::NOFOLLOW);
        let old = patiently(open).map_err(Stays::errno)?;
        // Nobody cleans up what has a temporary name and is locked. Where there are no
        // locks, nobody cleans up.
        let _ = lock(&old);
        self.weigh(folder, name)?;
        exchange(folder, temporary, name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let now = rustix::fs::statat(folder, temporary, flags).map(|stat| Identity::of(&stat));
        let was = rustix::fs::fstat(&old).map(|stat| Identity::of(&stat));
        if now != was {
            exchange(folder, temporary, name)?;
            return Err(Stays::because("something else came in its place"));
        }
        Ok(Replaced {
            temporary: temporary.to_owned(),
            _lock: old,
            _held: Held::new(1),
        })
    }
}

/// Gives what is called `temporary` its `name`; the directory that was there, if so.
///
/// # Errors
/// What was there stays, and `temporary` is called so.
pub fn take_name(
    folder: BorrowedFd<'_>,
    temporary: &str,
    name: &[u8],
    replacing: Option<&Replacing>,
) -> Result<Option<Replaced>, Stays> {
    match (
        rustix::fs::renameat(folder, temporary, folder, name),
        replacing,
    ) {
        (Ok(()), _) => Ok(None),
        (Err(Errno::ISDIR), Some(replacing)) => {
            replacing.directory(folder, temporary, name).map(Some)
        }
        (Err(errno), _) => Err(Stays::because(why(errno))),
    }
}

impl Replaced {
    /// Removes the old directory, which lies in `folder`.
    ///
    /// # Errors
    /// Why not all of it, as a clause.
    pub fn remove(&self, folder: BorrowedFd<'_>) -> Result<(), String> {
        let mut removed = 0;
        remove(folder, self.temporary.as_bytes(), &mut removed, 0).map_err(why_not_removed)
    }

    /// What it is called.
    #[must_use]
    pub fn temporary(&self) -> &str {
        &self.temporary
    }
}

fn too_much(most: u64) -> Stays {
    let why = format!("more than {most} files and directories would go");
    Stays::because(why).cured(TOO_MUCH)
}

/// Two names for each other's things, in one step.
fn exchange(folder: BorrowedFd<'_>, temporary: &str, name: &[u8]) -> Result<(), Stays> {
    let exchanged =
        rustix::fs::renameat_with(folder, temporary, folder, name, RenameFlags::EXCHANGE);
    exchanged.map_err(|errno| match errno {
        // A union says EXDEV of a directory that lies in a lower layer.
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV => {
            let why = "its file system cannot exchange two names in one step";
            Stays::because(why).cured("remove what is there first")
        }
        Errno::BUSY => Stays::because("a file system is mounted there"),
        errno => Stays::errno(errno),
    })
}

/// An empty directory under a temporary name, locked until it is closed.
fn make_directory(folder: BorrowedFd<'_>) -> Result<(String, OwnedFd), Stays> {
    let make = |name: &str| rustix::fs::mkdirat(folder, name, Mode::RWXU);
    let temporary = temporary::named(make).map_err(|error| match error {
        temporary::NotMade::Errno(errno) => Stays::errno(errno),
        temporary::NotMade::Error(error) => Stays::because(error.sentence),
    })?;
    let flags = DIRECTORY | OFlags::NOFOLLOW;
    let open = || rustix::fs::openat(folder, &temporary, flags, Mode::empty());
    match patiently(open) {
        Ok(fd) => {
            // Who cleaned it up before makes the exchange fail.
            let _ = lock(fd.as_fd());
            Ok((temporary, fd))
        }
        Err(errno) => {
            let _ = rustix::fs::unlinkat(folder, &temporary, AtFlags::REMOVEDIR);
            Err(Stays::errno(errno))
        }
    }
}

#[cfg(test)]
mod tests;
