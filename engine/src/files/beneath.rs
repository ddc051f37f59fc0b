//! Names that came from a peer: which are taken, and how they are walked.
//!
//! Leaves to others: what is opened and made there. Invariant: a name is judged
//! component by component, and openat2(2) walks it without links and without
//! leaving the directory that it starts from.

use crate::error::{Error, ErrorKind, why};
use crate::limits;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// How a held directory is opened.
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// How a peer's path is walked.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

const TOO_LONG_NAME: &str = "the name is too long: it has more than 255 bytes";
const TOO_LONG_PATH: &str = "the path is too long: it has 4096 bytes or more";

/// Opens what `path` names below `directory`.
pub(super) fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    retried(|| rustix::fs::openat2(directory, path, flags, Mode::empty(), BENEATH))
}

/// The same, refused (`EXDEV`) where something is mounted on the way.
pub(super) fn open_beneath_mount(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let how = BENEATH.union(ResolveFlags::NO_XDEV);
    retried(|| rustix::fs::openat2(directory, path, flags, Mode::empty(), how))
}

/// Opens what `path` names below `directory`, along links that stay there.
pub(super) fn open_below_root(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
    retried(|| rustix::fs::openat2(directory, path, flags, Mode::empty(), how))
}

/// Calls again what a rename on the way made the kernel unsure about.
fn retried(open: impl Fn() -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    for _ in 0..8 {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    open()
}

/// Why a walk below a directory failed, as a clause.
pub(super) fn why_beneath(errno: Errno) -> String {
    match errno {
        Errno::LOOP => "a symbolic link is in the way, and links are not followed there".to_owned(),
        Errno::XDEV => "it leads outside".to_owned(),
        errno => why(errno),
    }
}

/// The kernel, or a filter around this process, does not offer openat2(2).
pub(super) fn no_openat2() -> Error {
    Error::new(
        ErrorKind::Incompatible,
        "cannot stay below the root: openat2(2) is not offered here",
    )
    .cure("use Linux 5.6 or later without a filter on openat2")
}

/// Judges a path that came from a peer: components joined by '/', each a plain
/// name.
pub(super) fn check_path(path: &[u8]) -> std::result::Result<(), &'static str> {
    if path.len() >= limits::PATH_BYTES_MAX {
        return Err(TOO_LONG_PATH);
    }
    if path.first() == Some(&b'/') {
        return Err("the path is absolute");
    }
    path.split(|byte| *byte == b'/').try_for_each(check_name)
}

/// Judges one component of such a path.
pub(super) fn check_name(name: &[u8]) -> std::result::Result<(), &'static str> {
    match name {
        b"" => Err("the name is empty"),
        b"." => Err("\".\" names no file"),
        b".." => Err("\"..\" is not followed"),
        name if name.contains(&0) => Err("the name holds a NUL byte"),
        name if name.contains(&b'/') => Err("the name holds a slash"),
        name if name.len() > limits::NAME_BYTES_MAX => Err(TOO_LONG_NAME),
        _ => Ok(()),
    }
}

/// The refusal of a path that came from a peer, which `why` says is not taken.
pub(super) fn unfit(doing: &str, why: &'static str) -> Error {
    let sentence = format!("{doing} below the root: {why}");
    match why {
        // No file system has such a name, and says so where the path is not judged.
        TOO_LONG_NAME | TOO_LONG_PATH => Error::new(ErrorKind::Local, sentence),
        _ => Error::usage(sentence),
    }
}

/// A checked path's parent ("." for a single name) and last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b".", path),
    }
}

/// What a special file is called.
pub(super) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "of an unknown kind",
    }
}
