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
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
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

    /// The number of its file system.
    pub(super) fn device(&self) -> u64 {
        self.identity.device()
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

    /// Looks whether it is what it was, where nothing of it is wanted.
    ///
    /// # Errors
    /// As [`Later::open`].
    pub fn look(&self) -> Result<u64> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let looked = rustix::fs::statat(&self.folder, &self.name[..], flags);
        let stat = looked.map_err(|errno| self.cannot_open(errno))?;
        match Identity::of(&stat) == self.identity && self.stamp.is_of(&stat) {
            true => Ok(self.size()),
            false => Err(self.changed()),
        }
    }

    fn changed(&self) -> Error {
        let sentence = format!(
            "{} is not as it was when its directory was read: it changed meanwhile",
            self.display
        );
        Error::new(ErrorKind::Integrity, sentence)
            .cure("copy it again when nothing writes to it")
            .at(Side::Sender)
    }

    fn cannot_open(&self, errno: Errno) -> Error {
        let mut error = Error::local(format!("cannot open {}", self.display), why(errno));
        if errno == Errno::NOENT {
            error.kind = ErrorKind::Vanished;
        }
        error.at(Side::Sender)
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`ErrorKind::Vanished`] where it is gone, [`ErrorKind::Integrity`] where it
    /// changed or another has its name, else the system's reason; and whether only a
    /// descriptor was missing.
    pub fn open(&self) -> Result<FileSource, NotOpened> {
        let mut opened = self.open_as_it_is()?;
        opened.ask_the_cache();
        Ok(opened)
    }

    /// The same for what is not to be read: how much of it is cached is not asked.
    ///
    /// # Errors
    /// As [`Later::open`].
    pub fn open_as_it_is(&self) -> Result<FileSource, NotOpened> {
        let (fd, stat) = self.open_fd()?;
        if Identity::of(&stat) != self.identity || !self.stamp.is_of(&stat) {
            return Err(self.changed().into());
        }
        let known = (self.data.clone(), self.filled_bytes);
        let file_system = self.folder.file_system();
        let name = self.name.clone();
        Ok(FileSource::hold_as_it_is(
            fd,
            &stat,
            file_system,
            known,
            name,
            self.display.clone(),
        )?)
    }

    fn open_fd(&self) -> Result<(OwnedFd, Stat), NotOpened> {
        let refused = |errno: Errno| match errno.is_exhaustion() {
            true => NotOpened::Exhausted(self.cannot_open(errno)),
            false => NotOpened::Refused(self.cannot_open(errno)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn later(directory: &Path, name: &str) -> Later {
        let fd = std::fs::File::open(directory).expect("opened");
        let folder = Arc::new(HeldFolder::found(fd.into()));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(&folder, name, flags).expect("there");
        Later::new(folder, name.as_bytes(), format!("dir/{name}"), &stat).expect("looked at")
    }

    #[test]
    fn it_is_opened_only_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, "some").expect("written");
        let known = later(directory.path(), "file");
        assert_eq!(known.look(), Ok(4));
        let opened = known.open().expect("opened");
        assert_eq!((opened.size(), opened.display()), (4, "dir/file"));
        std::fs::write(&path, "longer").expect("written");
        for error in [
            known.look().expect_err("it changed"),
            known.open().expect_err("it changed").into(),
        ] {
            assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
        }
        std::fs::remove_file(&path).expect("removed");
        for error in [
            known.look().expect_err("it is gone"),
            known.open().expect_err("it is gone").into(),
        ] {
            assert_eq!(error.kind, ErrorKind::Vanished, "{error}");
        }
        // What has its name by now is neither waited for nor followed.
        let fifo = path.to_str().expect("text");
        assert!(crate::files::scratch::run("mkfifo", &[fifo]));
        let error = Error::from(known.open().expect_err("a FIFO"));
        assert!(error.sentence.contains("a FIFO by now"), "{error}");
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("/etc/passwd", &path).expect("linked");
        assert!(known.open().is_err());
    }

    #[test]
    fn holes_are_told_before_it_is_opened() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let file = std::fs::File::create(&path).expect("made");
        file.set_len(1 << 24).expect("sized");
        let known = later(directory.path(), "file");
        assert_eq!(known.data(), &Data::Ranges(Vec::new()));
        assert!(known.open().expect("opened").has_holes());
    }
}
