//! Extended attributes of a name in a directory, by the calls that take both.
//!
//! Leaves to others: what the attributes mean, and what is done where the kernel lacks
//! the calls (before Linux 6.13). Invariant: a link is not followed.

use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// These have the same numbers on every architecture that haul builds for.
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;

/// A name has at most 255 bytes, and a NUL behind it.
const NAME_BYTES: usize = 256;

/// `struct xattr_args` of linux/xattr.h.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// The kernel lacks the calls, or a filter around this process does.
static IS_MISSING: AtomicBool = AtomicBool::new(false);

/// Reads the names of all attributes of `name` in `directory`, as llistxattr(2) does, and
/// gives how many bytes they take; nothing where the kernel has no such call.
///
/// # Errors
/// The errno.
pub fn list_at(
    directory: BorrowedFd<'_>,
    name: &[u8],
    buffer: &mut [u8],
) -> Option<rustix::io::Result<usize>> {
    call(name, |name| {
        // SAFETY: the name ends in a NUL and the buffer is lent for the call, which
        // writes at most its length.
        unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                directory.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        }
    })
}

/// Reads one attribute of `name` in `directory`, as lgetxattr(2) does; nothing where
/// the kernel has no such call.
///
/// # Errors
/// The errno.
pub fn get_at(
    directory: BorrowedFd<'_>,
    name: &[u8],
    attribute: &[u8],
    buffer: &mut [u8],
) -> Option<rustix::io::Result<usize>> {
    let Some(attribute) = terminated(attribute) else {
        return Some(Err(Errno::RANGE));
    };
    let arguments = XattrArgs {
        value: buffer.as_mut_ptr() as u64,
        // Longer values than 64 KiB there are none.
        size: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
        flags: 0,
    };
    call(name, |name| {
        // SAFETY: both names end in a NUL, the arguments are as long as is said,
        // and the buffer that they name is lent for the call, which
        // writes at most its length.
        unsafe {
            libc::syscall(
                SYS_GETXATTRAT,
                directory.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                attribute.as_ptr(),
                &raw const arguments,
                size_of::<XattrArgs>(),
            )
        }
    })
}

fn call(
    name: &[u8],
    call: impl FnOnce(&[u8; NAME_BYTES]) -> libc::c_long,
) -> Option<rustix::io::Result<usize>> {
    if IS_MISSING.load(Ordering::Relaxed) {
        return None;
    }
    let Some(name) = terminated(name) else {
        return Some(Err(Errno::NAMETOOLONG));
    };
    match call(&name) {
        // It is not negative.
        bytes @ 0.. => Some(Ok(bytes as usize)),
        _ => match std::io::Error::last_os_error().raw_os_error() {
            // EPERM is what older container filters say of calls that they do not know.
            Some(libc::ENOSYS | libc::EPERM) => {
                IS_MISSING.store(true, Ordering::Relaxed);
                None
            }
            errno => Some(Err(errno.map_or(Errno::IO, Errno::from_raw_os_error))),
        },
    }
}

/// The name with a NUL behind it, unless it is too long or holds one.
fn terminated(name: &[u8]) -> Option<[u8; NAME_BYTES]> {
    let mut text = [0; NAME_BYTES];
    let fits = name.len() < NAME_BYTES && !name.contains(&0);
    text.get_mut(..name.len())?.copy_from_slice(name);
    fits.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::XattrFlags;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_of_a_name_are_those_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = std::fs::File::open(folder.path()).expect("opened");
        let file = std::fs::File::create(folder.path().join("file")).expect("made");
        let mut names = [0; 512];
        let Some(listed) = list_at(directory.as_fd(), b"file", &mut names) else {
            return crate::kernel::skip("listxattrat(2) is not here");
        };
        let before = listed.expect("listed");
        if rustix::fs::fsetxattr(&file, "user.colour", b"blue", XattrFlags::empty()).is_err() {
            return crate::kernel::skip("the file system has no user attributes");
        }
        let bytes = list_at(directory.as_fd(), b"file", &mut names).expect("known");
        assert_eq!(bytes, Ok(before + b"user.colour\0".len()));
        let mut value = [0; 64];
        let got = |name: &[u8], attribute: &[u8], value: &mut [u8]| {
            get_at(directory.as_fd(), name, attribute, value).expect("known")
        };
        assert_eq!(got(b"file", b"user.colour", &mut value), Ok(4));
        assert_eq!(&value[..4], b"blue");
        assert_eq!(got(b"file", b"user.none", &mut value), Err(Errno::NODATA));
        assert_eq!(
            got(b"file", b"user.colour", &mut value[..2]),
            Err(Errno::RANGE)
        );
        assert_eq!(
            got(b"missing", b"user.colour", &mut value),
            Err(Errno::NOENT)
        );
        // What it leads to has the attribute, the link has not.
        std::os::unix::fs::symlink("file", folder.path().join("link")).expect("linked");
        assert!(got(b"link", b"user.colour", &mut value).is_err());
        let long = [b'x'; 256];
        let listed = list_at(directory.as_fd(), &long, &mut names);
        assert_eq!(listed, Some(Err(Errno::NAMETOOLONG)));
    }
}
