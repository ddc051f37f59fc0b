//! What an entry has besides its bytes: mode, owner, times and attributes, as they
//! are kept at the receiver.
//!
//! Leaves to others: when. Invariant: what this user or this file system cannot keep
//! is counted by kind and never fails the entry; what a peer that proved nothing may
//! not give is not taken.

use super::attributes::{self, Bearer};
use super::owners::OwnerIds;
use super::place::Place;
use super::{Identity, reopening};
use crate::kernel::descriptors::patiently;
use crate::protocol::wire::{Attribute, Entry, Offer, Ownership};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// FAT, the coarsest, keeps every second one.
const ROUNDING_SECONDS_MAX: u64 = 2;

/// What this end of a transfer may keep, and what it could not.
pub struct Keeping {
    /// The peer proved who it is: owners and privileged attributes are taken.
    is_proved: bool,
    /// This user may give files away.
    is_root: bool,
    ids: Mutex<OwnerIds>,
    lost: Mutex<BTreeMap<String, u64>>,
    /// The device that was last seen to keep a time to the nanosecond; 0 of none.
    exact_device: AtomicU64,
}

impl std::fmt::Debug for Keeping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeping").finish_non_exhaustive()
    }
}

impl Keeping {
    /// `is_proved` says that the peer proved who it is.
    #[must_use]
    pub fn new(is_proved: bool) -> Arc<Self> {
        Arc::new(Self {
            is_proved,
            is_root: rustix::process::geteuid().is_root(),
            ids: Mutex::default(),
            lost: Mutex::default(),
            exact_device: AtomicU64::new(0),
        })
    }

    /// What was not kept, a sentence a kind.
    #[must_use]
    pub fn lost(&self) -> Vec<String> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let sentence = |(what, count): (&String, &u64)| {
            let entries = if *count == 1 { "entry" } else { "entries" };
            format!("{what} of {count} {entries} were not kept")
        };
        lost.iter().map(sentence).collect()
    }

    fn lose(&self, what: impl Into<String>) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        *lost.entry(what.into()).or_default() += 1;
    }

    fn lose_attribute(&self, name: &[u8], errno: Errno) {
        let class = name.split(|byte| *byte == b'.').next().unwrap_or(name);
        let class = match attributes::is_acl(name) {
            true => "access control lists".to_owned(),
            false => format!("extended attributes of the class {}", class.escape_ascii()),
        };
        let why = crate::error::why(errno);
        self.lose(format!("{class} ({why})"));
    }
}

/// What one entry has, by the numbers of this machine.
#[derive(Clone, Debug)]
pub struct Metadata {
    mode: u32,
    mtime: Timespec,
    owner: Option<Ownership>,
    attributes: Option<Vec<Attribute>>,
    keeping: Arc<Keeping>,
}

/// A call that failed, and what it was to do.
pub type Failed = (&'static str, Errno);

impl Metadata {
    /// What `entry` of `offer` has.
    #[must_use]
    pub fn of(entry: &Entry, offer: &Offer, keeping: &Arc<Keeping>) -> Self {
        let mut ids = keeping.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = entry.owner.filter(|_| keeping.is_proved);
        let owner = owner.map(|owner| ids.here(owner, &offer.users, &offer.groups));
        drop(ids);
        Self {
            owner,
            ..Self::plain(entry, keeping)
        }
    }

    /// The same, by the sender's numbers.
    #[must_use]
    pub fn plain(entry: &Entry, keeping: &Arc<Keeping>) -> Self {
        if !keeping.is_proved && entry.owner.is_some() {
            keeping.lose("the owners (the peer proved no token)");
        }
        let may = |attribute: &Attribute| {
            let may = keeping.is_proved || !attributes::is_privileged(&attribute.name);
            if !may {
                keeping.lose("the privileged attributes (the peer proved no token)");
            }
            may
        };
        let attributes = entry.attributes.as_ref().map(|all| {
            let taken = all.iter().filter(|attribute| may(attribute));
            taken.cloned().collect()
        });
        Self {
            mode: entry.mode & 0o7777,
            mtime: Timespec {
                tv_sec: entry.mtime_seconds,
                tv_nsec: i64::from(entry.mtime_nanos.min(999_999_999)) as _,
            },
            owner: entry.owner.filter(|_| keeping.is_proved),
            attributes,
            keeping: keeping.clone(),
        }
    }

    /// Permission bits.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode
    }

    fn times(&self) -> Timestamps {
        Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: self.mtime,
        }
    }

    /// True where the modification time is the same, as exactly as the file system
    /// of `stat` keeps it.
    #[must_use]
    pub fn has_time_of(&self, stat: &Stat) -> bool {
        #[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
        let (seconds, nanos) = (stat.st_mtime as i64, stat.st_mtime_nsec as i64);
        #[allow(clippy::unnecessary_cast)]
        let wanted = self.mtime.tv_nsec as i64;
        seconds == self.mtime.tv_sec && is_rounded(nanos, wanted)
    }

    /// Counts a time that was `set` on `device` and is not what `look` finds: file
    /// systems round times, and clamp those out of their range, without a word.
    fn time_set(
        &self,
        device: u64,
        set: rustix::io::Result<()>,
        look: impl FnOnce() -> rustix::io::Result<Stat>,
    ) -> Result<(), Failed> {
        set.map_err(|errno| ("set the modification time of", errno))?;
        let wanted = self.mtime;
        let is_common = (0..=i64::from(i32::MAX)).contains(&wanted.tv_sec);
        let is_exact = self.keeping.exact_device.load(Ordering::Relaxed) == device;
        if is_common && (is_exact || wanted.tv_nsec == 0) {
            return Ok(());
        }
        let stat = look().map_err(|errno| ("look at", errno))?;
        #[allow(clippy::unnecessary_cast)] // The fields differ in type between architectures.
        let (seconds, nanos) = (stat.st_mtime as i64, stat.st_mtime_nsec as i64);
        #[allow(clippy::unnecessary_cast)]
        let wanted_nanos = wanted.tv_nsec as i64;
        if seconds.abs_diff(wanted.tv_sec) > ROUNDING_SECONDS_MAX {
            self.keeping
                .lose("the modification times (out of the file system's range)");
        } else if (seconds, nanos) != (wanted.tv_sec, wanted_nanos) {
            self.keeping
                .lose("the exact modification times (the file system rounds them)");
        } else if nanos % 100 != 0 {
            // Units of 100 ns are the finest that are not nanoseconds (NTFS, SMB).
            self.keeping.exact_device.store(device, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives an open file or directory all of it, with the permission bits `mode`;
    /// `stat` is what it has. `inherits` says that it may have got an access control
    /// list from its directory.
    ///
    /// # Errors
    /// The times or the bits cannot be set, though this file system has some.
    pub fn apply(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        mode: u32,
        inherits: bool,
    ) -> Result<(), Failed> {
        let bearer = Bearer::Open(fd);
        // An owner's change takes capabilities away, and the bits may keep this user
        // from setting attributes.
        self.write_attributes(bearer, |attribute| !needs_owner(attribute), inherits);
        self.give(stat, |user, group| rustix::fs::fchown(fd, user, group));
        self.write_attributes(bearer, needs_owner, false);
        self.bits_set(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)))?;
        let set = rustix::fs::futimens(fd, &self.times());
        self.time_set(stat.st_dev, set, || rustix::fs::fstat(fd))
    }

    /// Gives a link or a special file all of it by its name, which is not followed.
    /// `has_bits` of what has permission bits of its own.
    ///
    /// # Errors
    /// As [`Metadata::apply`].
    pub fn apply_to_name(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        has_bits: bool,
    ) -> Result<(), Failed> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let look = rustix::fs::statat(directory, name, flags);
        let stat = look.map_err(|errno| ("look at", errno))?;
        let bearer = Bearer::Name(directory, name);
        self.give(&stat, |user, group| {
            rustix::fs::chownat(directory, name, user, group, flags)
        });
        self.write_attributes(bearer, |_| true, false);
        if has_bits {
            // It was just made under a name that nobody knows.
            let bits = Mode::from_raw_mode(self.mode);
            self.bits_set(rustix::fs::chmodat(directory, name, bits, AtFlags::empty()))?;
        }
        let set = rustix::fs::utimensat(directory, name, &self.times(), flags);
        self.time_set(stat.st_dev, set, || {
            rustix::fs::statat(directory, name, flags)
        })
    }

    /// True of a regular file of `size` bytes that has this time: it is passed over.
    #[must_use]
    pub fn is_of_unchanged(&self, size: u64, stat: &Stat) -> bool {
        // Regular files have no negative size.
        stat.st_size as u64 == size && self.has_time_of(stat)
    }

    /// True where what is at `place` needs no correction.
    #[must_use]
    pub fn is_kept(&self, place: &Place, stat: &Stat) -> bool {
        self.is_kept_by(Bearer::Name(place.directory(), place.name()), stat)
    }

    /// Corrects what a file that is passed over has otherwise, its time included where
    /// its content was compared.
    ///
    /// # Errors
    /// As [`Metadata::apply`].
    pub fn correct(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
    ) -> Result<(), Failed> {
        let has_time = self.has_time_of(stat);
        if has_time && self.is_kept_by(Bearer::Name(directory, name), stat) {
            return Ok(());
        }
        // A name may be another's by now: what is changed is the file that was seen.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = patiently(|| rustix::fs::openat(directory, name, flags, Mode::empty()));
        let held = opened.map_err(|errno| ("open", errno))?;
        let now = rustix::fs::fstat(&held).map_err(|errno| ("look at", errno))?;
        if Identity::of(&now) != Identity::of(stat) {
            return Err(("correct what is kept of", Errno::AGAIN));
        }
        let path = reopening(held.as_fd());
        self.give(stat, |user, group| rustix::fs::chown(&path, user, group));
        let bearer = Bearer::Held(held.as_fd());
        self.write_attributes(bearer, |_| true, true);
        self.bits_set(rustix::fs::chmod(&path, Mode::from_raw_mode(self.mode)))?;
        if has_time {
            return Ok(());
        }
        let set = rustix::fs::utimensat(rustix::fs::CWD, &path, &self.times(), AtFlags::empty());
        self.time_set(stat.st_dev, set, || rustix::fs::fstat(&held))
    }

    /// True where nothing but the time is to be set of what has `stat`.
    #[must_use]
    pub fn is_kept_by(&self, bearer: Bearer<'_>, stat: &Stat) -> bool {
        let has_bits =
            rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Symlink;
        (!has_bits || stat.st_mode & 0o7777 == self.mode)
            && self.owner_to_set(stat).is_none()
            && self.has_attributes(bearer)
    }

    fn has_attributes(&self, bearer: Bearer<'_>) -> bool {
        let Some(wanted) = &self.attributes else {
            return true;
        };
        let kept = |all: Vec<Attribute>| -> Vec<Attribute> {
            let may =
                |one: &Attribute| self.keeping.is_root || !attributes::is_privileged(&one.name);
            all.into_iter().filter(may).collect()
        };
        attributes::read(bearer, "").is_ok_and(|found| kept(found) == kept(wanted.clone()))
    }

    /// Whom it has to be given to, where it is another's and this user may.
    fn owner_to_set(&self, stat: &Stat) -> Option<(Option<Uid>, Option<Gid>)> {
        let owner = self.owner?;
        let user =
            (owner.user != stat.st_uid && self.keeping.is_root).then(|| Uid::from_raw(owner.user));
        let group = (owner.group != stat.st_gid && self.may_have(owner.group))
            .then(|| Gid::from_raw(owner.group));
        (user.is_some() || group.is_some()).then_some((user, group))
    }

    /// Root may give to any group, others to those that they are in.
    fn may_have(&self, group: u32) -> bool {
        let is_in = || {
            let own = rustix::process::getegid().as_raw() == group;
            let groups = rustix::process::getgroups().unwrap_or_default();
            own || groups.iter().any(|one| one.as_raw() == group)
        };
        self.keeping.is_root || is_in()
    }

    /// Gives it away by `give`, as far as this user may.
    fn give(&self, stat: &Stat, give: impl Fn(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>) {
        let Some(owner) = self.owner else {
            return;
        };
        let given = match self.owner_to_set(stat) {
            Some((user, group)) => give(user, group),
            None => Ok(()),
        };
        let keeps_user = self.keeping.is_root || owner.user == stat.st_uid;
        let keeps_group = owner.group == stat.st_gid || self.may_have(owner.group);
        if let Err(errno) = given {
            let why = crate::error::why(errno);
            self.keeping.lose(format!("the owners ({why})"));
        } else if !keeps_user || !keeps_group {
            self.keeping
                .lose("the owners (only root may give files away)");
        }
    }

    fn bits_set(&self, result: rustix::io::Result<()>) -> Result<(), Failed> {
        match result {
            // A file system that has none.
            Err(errno @ (Errno::PERM | Errno::NOTSUP)) => {
                let why = crate::error::why(errno);
                self.keeping.lose(format!("the permission bits ({why})"));
                Ok(())
            }
            result => result.map_err(|errno| ("set the mode of", errno)),
        }
    }

    /// Sets those for which `now` is true; with `clean` takes others away before.
    fn write_attributes(&self, bearer: Bearer<'_>, now: impl Fn(&Attribute) -> bool, clean: bool) {
        let Some(wanted) = &self.attributes else {
            return;
        };
        if clean && let Ok(found) = attributes::read(bearer, "") {
            attributes::remove_others(bearer, &found, wanted);
        }
        for (attribute, errno) in attributes::write(bearer, wanted, now) {
            self.keeping.lose_attribute(&attribute.name, errno);
        }
    }
}

/// True where `kept` is `wanted` rounded down to the coarsest decimal unit that
/// `kept` is a multiple of: seconds (old ext), milliseconds, 100 ns (NTFS, SMB), 1 ns.
fn is_rounded(kept: i64, wanted: i64) -> bool {
    let mut unit = 1_000_000_000;
    while kept % unit != 0 {
        unit /= 10;
    }
    wanted - wanted % unit == kept
}

/// An owner's change and the permission bits come before these.
fn needs_owner(attribute: &Attribute) -> bool {
    attributes::is_acl(&attribute.name) || attribute.name.starts_with(b"security.")
}

#[cfg(test)]
mod tests {
    use super::is_rounded;

    #[test]
    fn a_time_is_the_same_as_exactly_as_it_is_kept() {
        for kept in [
            123_456_789,
            123_456_700,
            123_456_000,
            123_000_000,
            120_000_000,
            0,
        ] {
            assert!(is_rounded(kept, 123_456_789), "{kept}");
        }
        for kept in [
            123_456_788,
            123_456_790,
            123_456_800,
            124_000_000,
            1,
            999_999_999,
        ] {
            assert!(!is_rounded(kept, 123_456_789), "{kept}");
        }
        assert!(is_rounded(0, 0) && !is_rounded(1, 0) && !is_rounded(500_000_000, 0));
    }
}
