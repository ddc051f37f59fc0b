//! A file of a tree that was looked at and is opened when it is wanted.
//!
//! Leaves to others: reading it. Invariant: it takes no descriptor of its own until
//! then, and is opened only if it is the file that was looked at, unchanged.

use super::extents::data_of;
use super::folder::HeldFolder;
use super::regular::{FileSource, NotOpened, Stamp, may_have_holes};
use super::{Identity, beneath::kind_name};
use crate::error::{Error, ErrorKind, Result, Side, why};
use crate::kernel::descriptors::Exhaustion;
use crate::protocol::wire::Data;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What is remembered of it.
pub struct Later {
    folder: Arc<HeldFolder>,
    name: Vec<u8>,
    display: String,
    stamp: Stamp,
    identity: Identity,
    data: Data,
    filled_bytes: u64,
}

impl Later {
    /// The regular file `name` in `folder`, which has `stat`; it is opened for a
    /// moment where it may have holes.
    ///
    /// # Errors
    /// Such a file cannot be opened.
    pub fn new(folder: Arc<HeldFolder>, name: &[u8], display: String, stat: &Stat) -> Result<Self> {
        let mut later = Self {
            folder,
            name: name.to_vec(),
            display,
            stamp: Stamp::of(stat),
            identity: Identity::of(stat),
            data: Data::Everywhere,
            filled_bytes: 0,
        };
        if may_have_holes(stat) {
            let (fd, _) = later.open_fd().map_err(Error::from)?;
            (later.data, later.filled_bytes) = data_of(fd.as_fd(), later.stamp.size());
        }
        Ok(later)
    }

    /// Bytes when it was looked at.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.stamp.size()
    }

    /// Where it has data.
    #[must_use]
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// What sentences call it.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.display
    }

    /// As [`FileSource::filled_bytes`].
    #[must_use]
    pub fn filled_bytes(&self) -> u64 {
        self.filled_bytes
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`ErrorKind::Vanished`] where it is gone, [`ErrorKind::Integrity`] where it
    /// changed or another has its name, else the system's reason; and whether only a
    /// descriptor was missing.
    pub fn open(&self) -> Result<FileSource, NotOpened> {
        let (fd, stat) = self.open_fd()?;
        if Identity::of(&stat) != self.identity || !self.stamp.is_of(&stat) {
            let sentence = format!(
                "{} is not as it was when its directory was read: it changed meanwhile",
                self.display
            );
            return Err(Error::new(ErrorKind::Integrity, sentence)
                .cure("copy it again when nothing writes to it")
                .at(Side::Sender)
                .into());
        }
        let known = (self.data.clone(), self.filled_bytes);
        let file_system = self.folder.file_system();
        let name = self.name.clone();
        Ok(FileSource::hold(
            fd,
            &stat,
            file_system,
            known,
            name,
            self.display.clone(),
        )?)
    }

    fn open_fd(&self) -> Result<(OwnedFd, Stat), NotOpened> {
        let refused = |errno: Errno| {
            let kind = match errno {
                Errno::NOENT => ErrorKind::Vanished,
                _ => ErrorKind::Local,
            };
            let mut error = Error::local(format!("cannot open {}", self.display), why(errno));
            error.kind = kind;
            match errno.is_exhaustion() {
                true => NotOpened::Exhausted(error.at(Side::Sender)),
                false => NotOpened::Refused(error.at(Side::Sender)),
            }
        };
        // It was a regular file; what has its name by now must not be waited for.
        let flags =
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.folder, &self.name[..], flags, Mode::empty())
            .map_err(refused)?;
        let stat = rustix::fs::fstat(&fd).map_err(refused)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            let why = format!("it is {} by now", kind_name(kind));
            let error = Error::local(format!("cannot open {}", self.display), why);
            return Err(error.at(Side::Sender).into());
        }
        // The flag would only make the ring give up on reads that wait for the disk.
        rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map_err(refused)?;
        Ok((fd, stat))
    }
}
