//! Names that are removed with all that is below them.
//!
//! Leaves to others: which, and when. Invariant: no link is followed, and no other
//! file system that is mounted below is gone into.

use crate::error::why;
use crate::files::beneath::{DIRECTORY, open_beneath_mount};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What getdents64(2) fills at once.
const LISTING_BYTES: usize = 64 * 1024;
/// Directories that are gone into to delete what is in them, one inside another.
const DEPTH_MAX: usize = 1024;

/// What would go with a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burden {
    /// Files and directories, itself included.
    pub count: u64,
    /// What they take on their disk.
    pub bytes: u64,
}

/// Why what is below a name cannot be removed, as a clause.
pub fn why_not_removed(errno: Errno) -> String {
    match errno {
        Errno::XDEV => "a file system is mounted in it".to_owned(),
        errno => why(errno),
    }
}

/// A directory's names, and what each is.
pub(super) fn list(directory: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut buffer = Vec::with_capacity(LISTING_BYTES);
    let mut listing = RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let looked = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(looked.st_mode)
            }
            kind => kind,
        };
        names.push((name.to_vec(), kind));
    }
    Ok(names)
}

/// The directory of that name, which is no link; nothing where it is none. What is
/// mounted there is another's, and is never gone into.
fn enter(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
    match open_beneath_mount(folder, name, DIRECTORY | OFlags::NOFOLLOW) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// How many files and directories would go with that name, counted to `most` and a few.
pub(super) fn count(folder: BorrowedFd<'_>, name: &[u8], most: u64, depth: usize) -> u64 {
    let inside = match enter(folder, name) {
        Ok(Some(inside)) if depth < DEPTH_MAX => inside,
        _ => return 1,
    };
    let mut all: u64 = 1;
    for (name, kind) in list(&inside).unwrap_or_default() {
        if all > most {
            break;
        }
        all += match kind {
            FileType::Directory => count(inside.as_fd(), &name, most, depth + 1),
            _ => 1,
        };
    }
    all
}

/// Removes a name and all below it; `removed` counts.
pub fn remove(
    folder: BorrowedFd<'_>,
    name: &[u8],
    removed: &mut u64,
    depth: usize,
) -> rustix::io::Result<()> {
    let unlink = |flags| match rustix::fs::unlinkat(folder, name, flags) {
        // Somebody else did what is wanted.
        Err(Errno::NOENT) => Ok(()),
        result => result,
    };
    match unlink(AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => {
            *removed += u64::from(result.is_ok());
            return result;
        }
    }
    if depth == DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let Some(inside) = enter(folder, name)? else {
        return Err(Errno::PERM);
    };
    for (name, _) in list(&inside)? {
        remove(inside.as_fd(), &name, removed, depth + 1)?;
    }
    unlink(AtFlags::REMOVEDIR)?;
    *removed += 1;
    Ok(())
}

/// All that would go with the directory of that name, counted to `most` and a few.
///
/// # Errors
/// `EXDEV` where something is mounted at it or below it; `ENOTDIR` where it is no
/// directory; a directory below cannot be read.
pub fn weigh(
    folder: BorrowedFd<'_>,
    name: &[u8],
    most: u64,
    depth: usize,
) -> rustix::io::Result<Burden> {
    let inside = enter(folder, name)?.ok_or(Errno::NOTDIR)?;
    if depth == DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let mut all = Burden { count: 1, bytes: 0 };
    for (name, kind) in list(&inside)? {
        if all.count > most {
            break;
        }
        let one = match kind {
            FileType::Directory => weigh(inside.as_fd(), &name, most, depth + 1)?,
            _ => weigh_file(inside.as_fd(), &name)?,
        };
        all.count += one.count;
        all.bytes = all.bytes.saturating_add(one.bytes);
    }
    Ok(all)
}

fn weigh_file(folder: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Burden> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let facts = match rustix::fs::statx(folder, name, flags, StatxFlags::BLOCKS) {
        Ok(facts) => facts,
        // It went meanwhile.
        Err(Errno::NOENT) => return Ok(Burden::default()),
        Err(errno) => return Err(errno),
    };
    // A file, too, can be mounted over another.
    if facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::XDEV);
    }
    Ok(Burden {
        count: 1,
        bytes: facts.stx_blocks.saturating_mul(512),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_goes_with_a_name_is_weighed_before_and_goes_without_following_links() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("old/a/b")).expect("made");
        fs::create_dir(at("kept")).expect("made");
        fs::write(at("kept/file"), "x").expect("written");
        fs::write(at("old/a/file"), [1; 5000]).expect("written");
        std::os::unix::fs::symlink(at("kept"), at("old/link")).expect("linked");
        let held = fs::File::open(folder.path()).expect("opened");
        let weighed = weigh(held.as_fd(), b"old", u64::MAX, 0).expect("weighed");
        assert_eq!(weighed.count, 5);
        assert!(weighed.bytes >= 5000, "{weighed:?}");
        assert_eq!(count(held.as_fd(), b"old", u64::MAX, 0), weighed.count);
        assert!(weigh(held.as_fd(), b"old", 2, 0).expect("weighed").count > 2);
        let link = weigh(held.as_fd(), b"old/link", u64::MAX, 0);
        assert_eq!(link, Err(Errno::NOTDIR));
        let mut removed = 0;
        assert_eq!(remove(held.as_fd(), b"old", &mut removed, 0), Ok(()));
        assert_eq!(removed, weighed.count);
        assert!(!at("old").exists() && at("kept/file").exists());
    }
}
