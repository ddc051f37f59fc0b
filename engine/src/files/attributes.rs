//! Extended attributes: access control lists and capabilities among them.
//!
//! Leaves to others: which of them are kept. Invariant: what is read is all of them
//! or an error, and never more than a segment takes.

use super::reopening;
use crate::error::{Error, Result, why};
use crate::kernel::xattr;
use crate::limits;
use crate::protocol::wire::Attribute;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// Whose attributes are meant.
#[derive(Clone, Copy)]
pub enum Bearer<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A name in a directory, which may be a link or a special file, and is not
    /// followed.
    Name(BorrowedFd<'a>, &'a [u8]),
    /// A file that is held without being open (O_PATH).
    Held(BorrowedFd<'a>),
}

impl Bearer<'_> {
    /// A path to a name, by the directory's descriptor, for kernels that lack the calls
    /// that take both (before 6.13): of a copy that found nothing to do in 100,000 files
    /// the way through /proc was 30 % of the CPU time.
    fn path(directory: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
        let mut path = reopening(directory).into_bytes();
        path.reserve_exact(name.len() + 1);
        path.push(b'/');
        path.extend_from_slice(name);
        path
    }

    fn list(self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Open(fd) => rustix::fs::flistxattr(fd, buffer),
            Self::Name(directory, name) => xattr::list_at(directory, name, buffer)
                .unwrap_or_else(|| rustix::fs::llistxattr(Self::path(directory, name), buffer)),
            Self::Held(fd) => rustix::fs::listxattr(reopening(fd), buffer),
        }
    }

    fn get(self, attribute: &[u8], buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Open(fd) => rustix::fs::fgetxattr(fd, attribute, buffer),
            Self::Name(directory, name) => xattr::get_at(directory, name, attribute, buffer)
                .unwrap_or_else(|| {
                    rustix::fs::lgetxattr(Self::path(directory, name), attribute, buffer)
                }),
            Self::Held(fd) => rustix::fs::getxattr(reopening(fd), attribute, buffer),
        }
    }

    fn set(self, attribute: &Attribute) -> rustix::io::Result<()> {
        let (name, value) = (&attribute.name[..], &attribute.value[..]);
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Name(directory, file) => {
                let path = Self::path(directory, file);
                rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            }
            Self::Held(fd) => rustix::fs::setxattr(reopening(fd), name, value, XattrFlags::empty()),
        }
    }

    fn remove(self, attribute: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Open(fd) => rustix::fs::fremovexattr(fd, attribute),
            Self::Name(directory, name) => {
                rustix::fs::lremovexattr(Self::path(directory, name), attribute)
            }
            Self::Held(fd) => rustix::fs::removexattr(reopening(fd), attribute),
        }
    }
}

/// All of them, by name. A file system that has none, has none.
///
/// # Errors
/// They cannot be read, or are more than are carried.
pub fn read(bearer: Bearer<'_>, display: &str) -> Result<Vec<Attribute>> {
    let failed = |errno: Errno| {
        Error::local(
            format!("cannot read the extended attributes of {display}"),
            why(errno),
        )
    };
    // Nearly always there are none, which one call with a small buffer tells.
    if bearer.list(&mut [0; 256]) == Ok(0) {
        return Ok(Vec::new());
    }
    let mut names = vec![0; 1024];
    let listed = loop {
        match bearer.list(&mut names) {
            Ok(bytes) => break bytes,
            Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(Errno::RANGE) if names.len() < limits::ENTRY_ATTRIBUTES_BYTES_MAX => {
                names.resize(64 * 1024, 0);
                if bearer.list(&mut names) == Err(Errno::RANGE) {
                    return Err(too_many(display));
                }
            }
            Err(errno) => return Err(failed(errno)),
        }
    };
    names.truncate(listed);
    let mut attributes = Vec::new();
    let (mut bytes, mut value) = (0, Vec::new());
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // A value has at most 64 KiB.
        value.resize(64 * 1024, 0);
        let found = match bearer.get(name, &mut value) {
            Ok(found) => found,
            // Removed since, or listed to those only who may not read it.
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        bytes += name.len() + found;
        if bytes > limits::ENTRY_ATTRIBUTES_BYTES_MAX
            || attributes.len() == limits::ENTRY_ATTRIBUTES_MAX
        {
            return Err(too_many(display));
        }
        attributes.push(Attribute {
            name: name.to_vec(),
            value: value[..found].to_vec(),
        });
    }
    attributes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(attributes)
}

fn too_many(display: &str) -> Error {
    let most = limits::ENTRY_ATTRIBUTES_BYTES_MAX / 1024;
    Error::local(
        format!("cannot copy {display}"),
        format!("its extended attributes have more than {most} KiB"),
    )
}

/// Sets those of `wanted` for which `now` is true, and gives those that could not be.
pub fn write<'a>(
    bearer: Bearer<'_>,
    wanted: &'a [Attribute],
    now: impl Fn(&Attribute) -> bool,
) -> Vec<(&'a Attribute, Errno)> {
    let due = wanted.iter().filter(|attribute| now(attribute));
    due.filter_map(|attribute| {
        let errno = bearer.set(attribute).err()?;
        Some((attribute, errno))
    })
    .collect()
}

/// Removes what `found` has and `wanted` has not; what cannot be removed stays.
pub fn remove_others(bearer: Bearer<'_>, found: &[Attribute], wanted: &[Attribute]) {
    for attribute in found {
        if wanted.iter().all(|other| other.name != attribute.name) {
            let _ = bearer.remove(&attribute.name);
        }
    }
}

/// True of an access control list, which changes the permission bits.
#[must_use]
pub fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// True of what only a privileged user may set.
#[must_use]
pub fn is_privileged(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name.starts_with(b"trusted.")
}

/// An open file's attributes.
pub fn of(fd: &impl AsFd) -> Bearer<'_> {
    Bearer::Open(fd.as_fd())
}
