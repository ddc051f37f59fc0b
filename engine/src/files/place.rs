//! Where a file goes: a held directory and the name in it.
//!
//! Leaves to others: creating and renaming there. Invariant: a name that came
//! from a peer is judged component by component and walked by openat2(2)
//! without links and without leaving the directory; what the local user typed
//! is followed as cp would.
//!
//! A symbolic link under a local target's last name is not followed: the
//! rename that seals the file replaces the link itself, since a final name
//! changes in one step or not at all. Below a served root links are neither
//! followed nor replaced.

use super::beneath::{
    DIRECTORY, check_name, check_path, kind_name, no_openat2, open_beneath, split, unfit,
    why_beneath,
};
use super::{require_space, shown};
use crate::error::{Error, Result, Side, why};
use crate::kernel::descriptors::patiently;
use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// A target as it was asked for, resolved once: a directory that takes files
/// inside it, or one file's name in a directory.
#[derive(Clone, Debug)]
pub struct ResolvedTarget {
    directory: Arc<OwnedFd>,
    /// `None`: entries keep their own names inside the directory.
    name: Option<Vec<u8>>,
    display: String,
    beneath: bool,
}

/// Where one file goes. Clones share the directory's descriptor.
#[derive(Clone, Debug)]
pub struct Place {
    directory: Arc<OwnedFd>,
    name: Vec<u8>,
    display: String,
    beneath: bool,
}

/// What sentences call the root, whose own name is not its peers' concern.
const ROOT: &str = "the root";

/// Opens the directory that a server serves; links in it are the server's own.
///
/// # Errors
/// [`crate::ErrorKind::Local`] when it is missing, unreadable or no directory.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|errno| {
        let display = shown(path.as_os_str().as_bytes());
        Error::local(format!("cannot serve {display}"), why(errno))
    })
}

/// Resolves a target that the local user typed, by cp's habits: an existing
/// directory takes files inside it; a trailing slash, or `directory_required`
/// (several sources), demands one; else the last component names the file and
/// its parent must exist.
///
/// # Errors
/// [`crate::ErrorKind::Local`], in one sentence, for each of these.
pub fn resolve_local(path: &Path, directory_required: bool) -> Result<ResolvedTarget> {
    let bytes = path.as_os_str().as_bytes();
    let display = shown(bytes);
    if bytes.is_empty() {
        return Err(Error::usage("the target's path is empty").at(Side::Receiver));
    }
    let directory_required = directory_required || bytes.ends_with(b"/");
    let open = |path: &Path| patiently(|| rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()));
    let inside = open(path);
    if let Some(found) = directory_or_refusal(inside, directory_required, &display, false)? {
        return Ok(found);
    }
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return Err(cannot_write(&display, "it names no file"));
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let directory = open(parent).map_err(|errno| {
        let parent = shown(parent.as_os_str().as_bytes());
        cannot_write(&display, format!("its directory {parent}: {}", why(errno)))
    })?;
    named(directory, name.as_bytes(), display, false)
}

/// Resolves a target that a peer named, relative to `root`; the empty path is
/// the root itself. Links are not followed.
///
/// # Errors
/// As [`resolve_local`]; [`crate::ErrorKind::Usage`] for a path that is
/// absolute or has empty, "." or ".." components.
pub fn resolve_beneath(
    root: BorrowedFd<'_>,
    path: &[u8],
    directory_required: bool,
) -> Result<ResolvedTarget> {
    let directory_required = directory_required || path.ends_with(b"/");
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let display = if path.is_empty() {
        ROOT.to_owned()
    } else {
        shown(path)
    };
    let open = |path: &[u8]| patiently(|| open_beneath(root, path, DIRECTORY));
    if path.is_empty() {
        let directory = open(b".").map_err(|errno| refusal(&display, errno))?;
        return Ok(inside(directory, display, true));
    }
    check_path(path)
        .map_err(|why| unfit(&format!("cannot write {display:?}"), why).at(Side::Receiver))?;
    let found = directory_or_refusal(open(path), directory_required, &display, true)?;
    if let Some(found) = found {
        return Ok(found);
    }
    let (parent, name) = split(path);
    let directory = open(parent).map_err(|errno| {
        cannot_write(&display, format!("its directory: {}", why_beneath(errno)))
    })?;
    named(directory, name, display, true)
}

/// The directory, nothing where the path may name a file, or why not.
fn directory_or_refusal(
    opened: rustix::io::Result<OwnedFd>,
    directory_required: bool,
    display: &str,
    beneath: bool,
) -> Result<Option<ResolvedTarget>> {
    match opened {
        Ok(directory) => Ok(Some(inside(directory, display.to_owned(), beneath))),
        Err(Errno::NOENT) if directory_required => {
            Err(cannot_write(display, "there is no such directory").cure("create it first"))
        }
        Err(Errno::NOTDIR) if directory_required => {
            Err(cannot_write(display, "it is not a directory"))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(refusal(display, errno)),
    }
}

fn inside(directory: OwnedFd, display: String, beneath: bool) -> ResolvedTarget {
    ResolvedTarget {
        directory: Arc::new(directory),
        name: None,
        display,
        beneath,
    }
}

fn named(
    directory: OwnedFd,
    name: &[u8],
    display: String,
    beneath: bool,
) -> Result<ResolvedTarget> {
    check_name(name).map_err(|why| cannot_write(&display, why))?;
    let destination = ResolvedTarget {
        directory: Arc::new(directory),
        name: Some(name.to_vec()),
        display,
        beneath,
    };
    // What stands there is judged now, before anything is opened for it.
    destination.place(name)?;
    Ok(destination)
}

impl ResolvedTarget {
    /// True when entries go inside a directory under their own names.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.name.is_none()
    }

    /// What sentences call it: the target as it was given.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.display
    }

    /// Where the entry called `entry_name` goes. Its name is not used where
    /// the target names a file.
    ///
    /// # Errors
    /// A name that is no plain path, a parent that is missing or a link, an
    /// existing directory or special file where the file is meant.
    pub fn place(&self, entry_name: &[u8]) -> Result<Place> {
        let place = match &self.name {
            Some(name) => Place {
                directory: self.directory.clone(),
                name: name.clone(),
                display: self.display.clone(),
                beneath: self.beneath,
            },
            None => self.place_inside(entry_name)?,
        };
        place.refuse_occupied()?;
        Ok(place)
    }

    fn place_inside(&self, entry_name: &[u8]) -> Result<Place> {
        let display = match self.display.as_str() {
            ROOT => shown(entry_name),
            folder => format!("{}/{}", folder.trim_end_matches('/'), shown(entry_name)),
        };
        check_path(entry_name).map_err(|why| {
            Error::peer(
                format!("cannot write a file called {:?}", shown(entry_name)),
                why,
            )
            .at(Side::Receiver)
        })?;
        let (parent, name) = split(entry_name);
        let directory = if parent == b"." {
            self.directory.clone()
        } else {
            let opened = patiently(|| open_beneath(self.directory.as_fd(), parent, DIRECTORY));
            Arc::new(opened.map_err(|errno| {
                cannot_write(&display, format!("its directory: {}", why_beneath(errno)))
            })?)
        };
        Ok(Place {
            directory,
            name: name.to_vec(),
            display,
            beneath: self.beneath,
        })
    }

    /// Refuses, before anything is written, `bytes` that the file system of
    /// the target has no room for.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Local`], with how much is missing.
    pub fn require_space(&self, bytes: u64) -> Result<()> {
        require_space(self.directory.as_fd(), &self.display, bytes)
    }
}

impl Place {
    /// The held directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The final name in it: one component.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What sentences call it.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.display
    }

    /// Refuses what must not be replaced by a file.
    fn refuse_occupied(&self) -> Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = match rustix::fs::statat(&self.directory, &self.name[..], flags) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(refusal(&self.display, errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(()),
            FileType::Symlink if !self.beneath => Ok(()),
            FileType::Symlink => Err(cannot_write(
                &self.display,
                "it is a symbolic link, and links below the root are left alone",
            )),
            FileType::Directory => Err(cannot_write(&self.display, "it is a directory")),
            other => Err(cannot_write(
                &self.display,
                format!("it is {}, which a file would replace", kind_name(other)),
            )
            .cure("write to standard output, -, instead")),
        }
    }
}

fn refusal(display: &str, errno: Errno) -> Error {
    match errno {
        Errno::NOSYS => no_openat2().at(Side::Receiver),
        errno => cannot_write(display, why_beneath(errno)),
    }
}

fn cannot_write(display: &str, why: impl std::fmt::Display) -> Error {
    Error::local(format!("cannot write {display}"), why).at(Side::Receiver)
}

#[cfg(test)]
mod tests;
