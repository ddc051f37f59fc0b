//! Removing temporary files that nobody writes to any more, and directories that gave
//! way to something and were not removed.
//!
//! Leaves to others: when, and what is told. Invariant: only regular files and
//! directories with a temporary file's name go, only while they are locked here, so
//! never one that a running transfer has; no link is followed, and nothing that is
//! mounted goes.

use super::beneath::{DIRECTORY, open_beneath_mount};
use super::temporary::{is_temporary, lock};
use super::tree::remove::{remove, weigh, why_not_removed};
use super::{Identity, shown};
use crate::error::{Error, Result, why};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What may go.
#[derive(Clone, Copy, Debug, Default)]
pub struct CleanOptions {
    /// Only what was not written to for so long.
    pub older_than: Option<Duration>,
    /// Nothing goes: it is only told.
    pub dry_run: bool,
    /// What is mounted below is left alone.
    pub one_file_system: bool,
}

/// What was found below a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Files and directories that went (or would), each with all that is in it.
    pub removed: u64,
    /// Bytes that they took.
    pub removed_bytes: u64,
    /// Files that somebody writes to, or that cannot be locked.
    pub held: u64,
    /// Files that are too young.
    pub younger: u64,
    /// Files that could not be removed, and directories that could not be read.
    pub failed: u64,
}

/// One thing that was done.
#[derive(Clone, Debug)]
pub enum CleanEvent {
    /// This file or directory went (or would): its path, and the bytes that it took.
    Removed(Vec<u8>, u64),
    /// Something could not be done.
    Failed(Error),
}

/// Removes what nobody holds below `root`; `tell` hears each step.
///
/// # Errors
/// `root` itself is no directory that can be read.
pub fn clean(
    root: &Path,
    options: CleanOptions,
    mut tell: impl FnMut(CleanEvent),
) -> Result<Cleaned> {
    let path = root.as_os_str().as_bytes().to_vec();
    let cannot = |errno: Errno| Error::local(format!("cannot clean {}", shown(&path)), why(errno));
    let opened = rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty()).map_err(cannot)?;
    let device = rustix::fs::fstat(&opened).map_err(cannot)?.st_dev;
    let mut sweep = CleanSweep {
        options,
        device,
        now: SystemTime::now(),
        cleaned: Cleaned::default(),
        tell: &mut tell,
    };
    // Directories on the way down, each with those in it that are still to come.
    let mut way = vec![sweep.enter(opened, path)];
    while let Some(level) = way.last_mut() {
        let Some(name) = level.left.pop() else {
            way.pop();
            continue;
        };
        let path = joined(&level.path, &name);
        if let Some(directory) = sweep.descend(level.directory.as_fd(), &name, &path) {
            let level = sweep.enter(directory, path);
            way.push(level);
        }
    }
    Ok(sweep.cleaned)
}

/// A directory on the way down.
struct SweepLevel {
    directory: OwnedFd,
    path: Vec<u8>,
    left: Vec<Vec<u8>>,
}

struct CleanSweep<'a> {
    options: CleanOptions,
    device: u64,
    now: SystemTime,
    cleaned: Cleaned,
    tell: &'a mut dyn FnMut(CleanEvent),
}

impl CleanSweep<'_> {
    /// Cleans one directory; those below it are left to come.
    fn enter(&mut self, directory: OwnedFd, path: Vec<u8>) -> SweepLevel {
        let mut left = Vec::new();
        match self.list(directory.as_fd(), &path, &mut left) {
            Ok(()) => {}
            Err(errno) => self.failed(&format!("read the directory {}", shown(&path)), errno),
        }
        SweepLevel {
            directory,
            path,
            left,
        }
    }

    fn list(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &[u8],
        left: &mut Vec<Vec<u8>>,
    ) -> rustix::io::Result<()> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(directory, name),
                kind => kind,
            };
            match kind {
                FileType::Directory | FileType::RegularFile if is_temporary(name) => {
                    if let Err(errno) = self.consider(directory, name, kind, path) {
                        let path = joined(path, name);
                        self.failed(&format!("remove {}", shown(&path)), errno);
                    }
                }
                FileType::Directory => left.push(name.to_vec()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes one temporary file, or a directory of such a name, unless somebody has it
    /// or it is too young.
    fn consider(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        kind: FileType,
        path: &[u8],
    ) -> rustix::io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // What is mounted there is no transfer's.
        let file = match open_beneath_mount(directory, name, flags) {
            Ok(file) => file,
            // It was sealed or removed meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if !lock(&file).unwrap_or(false) {
            self.cleaned.held += 1;
            return Ok(());
        }
        let stat = rustix::fs::fstat(&file)?;
        let now = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) => now,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if Identity::of(&now) != Identity::of(&stat)
            || FileType::from_raw_mode(stat.st_mode) != kind
        {
            // The name is another file's by now, which is not locked here.
            self.cleaned.held += 1;
            return Ok(());
        }
        if self.is_younger(&stat) {
            self.cleaned.younger += 1;
            return Ok(());
        }
        let bytes = match kind {
            FileType::Directory => weigh(directory, name, u64::MAX, 0)?.bytes,
            _ => u64::try_from(stat.st_blocks)
                .unwrap_or(0)
                .saturating_mul(512),
        };
        if !self.options.dry_run {
            remove(directory, name, &mut 0, 0)?;
        }
        self.cleaned.removed += 1;
        self.cleaned.removed_bytes += bytes;
        (self.tell)(CleanEvent::Removed(joined(path, name), bytes));
        Ok(())
    }

    fn is_younger(&self, stat: &rustix::fs::Stat) -> bool {
        let Some(age) = self.options.older_than else {
            return false;
        };
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        let written = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        // What was written in the future is young.
        written.is_none_or(|written| {
            self.now
                .duration_since(written)
                .is_ok_and(|since| since < age)
                || written > self.now
        })
    }

    /// Opens a directory that is to be cleaned.
    fn descend(&mut self, directory: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Option<OwnedFd> {
        let opened =
            rustix::fs::openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                .and_then(|opened| Ok((rustix::fs::fstat(&opened)?.st_dev, opened)));
        match opened {
            Ok((device, _)) if self.options.one_file_system && device != self.device => None,
            Ok((_, opened)) => Some(opened),
            // Gone or replaced meanwhile.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(errno) => {
                self.failed(&format!("read the directory {}", shown(path)), errno);
                None
            }
        }
    }

    fn failed(&mut self, doing: &str, errno: Errno) {
        self.cleaned.failed += 1;
        let error = Error::local(format!("cannot {doing}"), why_not_removed(errno));
        (self.tell)(CleanEvent::Failed(error));
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = path.to_vec();
    if !joined.ends_with(b"/") {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// What a file system does not say in its listing.
fn kind_of(directory: BorrowedFd<'_>, name: &[u8]) -> FileType {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_or(FileType::Unknown, |stat| {
            FileType::from_raw_mode(stat.st_mode)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NAME: &str = ".haul-0123456789abcdef";

    fn run(root: &Path, options: CleanOptions) -> (Cleaned, Vec<String>) {
        let mut told = Vec::new();
        let cleaned = clean(root, options, |event| {
            if let CleanEvent::Removed(path, _) = event {
                told.push(String::from_utf8_lossy(&path).into_owned());
            }
        });
        told.sort();
        (cleaned.expect("a directory"), told)
    }

    #[test]
    fn what_nobody_holds_goes_at_any_depth_and_nothing_else() {
        let root = tempfile::tempdir().expect("a folder");
        let deep = root.path().join("a/b");
        fs::create_dir_all(&deep).expect("made");
        for folder in [root.path(), &deep] {
            fs::write(folder.join(NAME), [1; 5000]).expect("written");
            fs::write(folder.join(".haul-0123"), "x").expect("written");
            fs::write(folder.join("kept"), "x").expect("written");
        }
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join(NAME), "x").expect("written");
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).expect("linked");
        let name = ".haul-00000000000000";
        std::os::unix::fs::symlink("kept", root.path().join(format!("{name}02"))).expect("linked");
        let held = fs::File::create(deep.join(format!("{name}03"))).expect("made");
        assert_eq!(lock(&held), Ok(true));

        let dry = CleanOptions {
            dry_run: true,
            ..CleanOptions::default()
        };
        let (would, told) = run(root.path(), dry);
        assert_eq!((would.removed, would.held, told.len()), (2, 1, 2));
        assert!(deep.join(NAME).exists());
        let (cleaned, told_again) = run(root.path(), CleanOptions::default());
        assert_eq!((cleaned, told_again), (would, told));
        assert!(cleaned.removed_bytes >= 10_000, "{cleaned:?}");
        assert!(!deep.join(NAME).exists() && !root.path().join(NAME).exists());
        assert!(outside.path().join(NAME).exists(), "no link is followed");
        assert!(deep.join("kept").exists() && root.path().join(".haul-0123").exists());
        drop(held);
        assert_eq!(run(root.path(), CleanOptions::default()).0.removed, 1);
    }

    #[test]
    fn a_directory_that_gave_way_goes_whole_unless_somebody_is_at_it() {
        let root = tempfile::tempdir().expect("a folder");
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("kept")).expect("made");
        fs::write(at("kept/file"), "x").expect("written");
        fs::create_dir_all(at(NAME).join("deep/er")).expect("made");
        fs::write(at(NAME).join("deep/file"), [1; 5000]).expect("written");
        std::os::unix::fs::symlink(at("kept"), at(NAME).join("deep/link")).expect("linked");
        let held = fs::File::open(at(NAME)).expect("opened");
        assert_eq!(lock(&held), Ok(true));
        let (cleaned, _) = run(root.path(), CleanOptions::default());
        assert_eq!((cleaned.removed, cleaned.held), (0, 1));
        drop(held);
        let dry = CleanOptions {
            dry_run: true,
            ..CleanOptions::default()
        };
        let would = run(root.path(), dry);
        assert!(at(NAME).join("deep/file").exists());
        assert_eq!(run(root.path(), CleanOptions::default()), would);
        assert_eq!(would.0.removed, 1);
        assert!(would.0.removed_bytes >= 5000, "{would:?}");
        assert_eq!(fs::read_dir(root.path()).expect("listed").count(), 1);
        assert!(at("kept/file").exists(), "no link is followed");
    }

    #[test]
    fn what_something_is_mounted_in_stays() {
        let Some(mount) = crate::files::scratch::Mount::tmpfs(1 << 20) else {
            return;
        };
        let root = tempfile::tempdir().expect("a folder");
        let inner = root.path().join(NAME).join("inner");
        fs::create_dir_all(&inner).expect("made");
        fs::write(mount.path().join("precious"), "x").expect("written");
        let bind = |from: &Path, to: &Path| {
            let (from, to) = (from.to_str().expect("text"), to.to_str().expect("text"));
            assert!(crate::files::scratch::run("mount", &["--bind", from, to]));
        };
        for at in [inner, root.path().join(NAME)] {
            bind(&mount.path(), &at);
            let (cleaned, _) = run(root.path(), CleanOptions::default());
            let at_text = at.to_str().expect("text");
            assert!(crate::files::scratch::run("umount", &[at_text]));
            assert_eq!((cleaned.removed, cleaned.failed), (0, 1), "{at_text}");
        }
        assert!(mount.path().join("precious").exists());
        assert_eq!(run(root.path(), CleanOptions::default()).0.removed, 1);
    }

    #[test]
    fn the_young_stay() {
        let root = tempfile::tempdir().expect("a folder");
        for (digit, hours) in [(1, 3_u64), (2, 1)] {
            let file = fs::File::create(root.path().join(format!(".haul-000000000000000{digit}")));
            let then = SystemTime::now() - Duration::from_secs(hours * 3600);
            file.and_then(|file| file.set_modified(then)).expect("made");
        }
        let options = CleanOptions {
            older_than: Some(Duration::from_secs(2 * 3600)),
            ..CleanOptions::default()
        };
        let (cleaned, told) = run(root.path(), options);
        assert_eq!((cleaned.removed, cleaned.younger), (1, 1));
        assert!(told[0].ends_with('1'), "{told:?}");
        let missing = clean(&root.path().join("none"), options, |_| ());
        let error = missing.expect_err("it is not there");
        assert!(
            error.sentence.contains("no such file or directory"),
            "{error}"
        );
    }
}
