//! Where a file goes: a held directory and the name in it.
//!
//! Leaves to others: creating and renaming there. Invariant: a name that came
//! from a peer is judged component by component and walked by openat2(2)
//! without links and without leaving the directory; what the local user typed
//! is followed as cp would.
//!
//! A symbolic link under a target's last name is not followed: the rename that
//! seals the file replaces the link itself, since a final name changes in one step
//! or not at all. Below a served root no link is followed.

use super::beneath::{
    DIRECTORY, check_name, check_path, kind_name, no_openat2, open_beneath, split, unfit,
    why_beneath,
};
use super::claim::{Claim, Claimant, ClaimedBy};
use super::folder::HeldFolder;
use super::replace::{Replaced, Replacing, Stays, take_name};
use super::{reopening, require_space, show, shown};
use crate::error::{Error, Result, Side, why};
use crate::kernel::descriptors::patiently;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// A target as it was asked for, resolved once: a directory that takes files
/// inside it, or one file's name in a directory.
#[derive(Clone, Debug)]
pub struct ResolvedTarget {
    directory: Arc<HeldFolder>,
    /// `None`: entries keep their own names inside the directory.
    name: Option<Vec<u8>>,
    display: String,
    claimant: Option<Arc<Claimant>>,
}

/// Where one file goes. Clones share the directory's descriptor.
#[derive(Clone, Debug)]
pub struct Place {
    directory: Arc<HeldFolder>,
    name: Vec<u8>,
    display: String,
    claimant: Option<Arc<Claimant>>,
    claim: Option<Arc<Claim>>,
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
/// (several sources), demands one, which `make` makes where it is missing; else the last component names the file and
/// its parent must exist.
///
/// # Errors
/// [`crate::ErrorKind::Local`], in one sentence, for each of these.
pub fn resolve_local(path: &Path, directory_required: bool, make: bool) -> Result<ResolvedTarget> {
    let bytes = path.as_os_str().as_bytes();
    let display = shown(bytes);
    if bytes.is_empty() {
        return Err(Error::usage("the target's path is empty").at(Side::Receiver));
    }
    let directory_required = directory_required || bytes.ends_with(b"/");
    let open = |path: &Path| patiently(|| rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()));
    let inside = open(path);
    if let Some(found) = directory_or_refusal(inside, directory_required && !make, &display)? {
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
    match make {
        true => made(directory, name.as_bytes(), display),
        false => named(directory, name.as_bytes(), display),
    }
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
    make: bool,
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
        return Ok(inside(directory, display));
    }
    check_path(path)
        .map_err(|why| unfit(&format!("cannot write {display:?}"), why).at(Side::Receiver))?;
    let found = directory_or_refusal(open(path), directory_required && !make, &display)?;
    if let Some(found) = found {
        return Ok(found);
    }
    let (parent, name) = split(path);
    let directory = open(parent).map_err(|errno| {
        cannot_write(&display, format!("its directory: {}", why_beneath(errno)))
    })?;
    match make {
        true => made(directory, name, display),
        false => named(directory, name, display),
    }
}

/// The directory, nothing where the path may name a file, or why not.
fn directory_or_refusal(
    opened: rustix::io::Result<OwnedFd>,
    directory_required: bool,
    display: &str,
) -> Result<Option<ResolvedTarget>> {
    match opened {
        Ok(directory) => Ok(Some(inside(directory, display.to_owned()))),
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

fn inside(directory: OwnedFd, display: String) -> ResolvedTarget {
    ResolvedTarget {
        directory: Arc::new(HeldFolder::found(directory)),
        name: None,
        display,
        claimant: None,
    }
}

/// A directory that takes what is copied inside it, made where it is missing.
fn made(parent: OwnedFd, name: &[u8], display: String) -> Result<ResolvedTarget> {
    let place = Place {
        directory: Arc::new(HeldFolder::found(parent)),
        name: name.to_vec(),
        display: display.clone(),
        claimant: None,
        claim: None,
    };
    let folder = open_or_make(&place)?;
    Ok(ResolvedTarget {
        directory: folder,
        name: None,
        display,
        claimant: None,
    })
}

/// The directory of that place, made where it is missing; its owner may use it from
/// now on, whatever its bits.
///
/// # Errors
/// It cannot be made or opened, or something else is there.
pub fn open_or_make(place: &Place) -> Result<Arc<HeldFolder>> {
    let (parent, name) = (place.directory(), place.name());
    let open = || {
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        patiently(|| rustix::fs::openat(parent, name, flags, Mode::empty()))
    };
    let is_made = match place.folder().is_fresh() {
        // It is missing, nearly always.
        true => place.make_directory()?,
        false => false,
    };
    let mut opened = open();
    let mut is_made_now = is_made;
    if opened.as_ref().is_err_and(|errno| *errno == Errno::NOENT) {
        is_made_now = place.make_directory()?;
        opened = open();
    }
    if opened.as_ref().is_err_and(|errno| *errno == Errno::ACCESS) && make_usable(place) {
        opened = open();
    }
    if let (Err(Errno::NOTDIR | Errno::LOOP), Some(_)) = (&opened, place.replacing()) {
        place.clone().claimed()?.give_way_to_directory()?;
        is_made_now = true;
        opened = open();
    }
    let fd = opened.map_err(|errno| {
        let why = match errno {
            Errno::NOTDIR | Errno::LOOP => "something else is in its place".to_owned(),
            errno => why(errno),
        };
        let doing = format!("cannot open the directory {}", place.display());
        Error::local(doing, why).at(Side::Receiver)
    })?;
    if is_made_now {
        return Ok(Arc::new(HeldFolder::made(fd, place.directory.clone())));
    }
    if !rustix::process::geteuid().is_root() {
        let is_shut = |stat: &Stat| stat.st_mode & 0o300 != 0o300;
        if rustix::fs::fstat(&fd).is_ok_and(|stat| is_shut(&stat)) {
            make_usable(place);
        }
    }
    Ok(Arc::new(HeldFolder::found(fd)))
}

/// Lets this user into a directory of its own, which gets its bits in the end.
fn make_usable(place: &Place) -> bool {
    let (parent, name) = (place.directory(), place.name());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(held) = rustix::fs::openat(parent, name, flags, Mode::empty()) else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(&held) else {
        return false;
    };
    // Only its owner may, which is all that is wanted.
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777) | Mode::RWXU;
    rustix::fs::chmod(reopening(held.as_fd()), mode).is_ok()
}

fn named(directory: OwnedFd, name: &[u8], display: String) -> Result<ResolvedTarget> {
    check_name(name).map_err(|why| cannot_write(&display, why))?;
    let destination = ResolvedTarget {
        directory: Arc::new(HeldFolder::found(directory)),
        name: Some(name.to_vec()),
        display,
        claimant: None,
    };
    // What stands there is judged now, before anything is opened for it.
    destination.place(name)?;
    Ok(destination)
}

impl ResolvedTarget {
    /// The same; `claimant` writes there.
    #[must_use]
    pub fn written_by(self, claimant: Arc<Claimant>) -> Self {
        Self {
            claimant: Some(claimant),
            ..self
        }
    }

    /// Who writes there, where that was said.
    #[must_use]
    pub fn claimant(&self) -> Option<&Arc<Claimant>> {
        self.claimant.as_ref()
    }

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
    /// A name that is no plain one, an existing directory or special file where the
    /// file is meant.
    pub fn place(&self, entry_name: &[u8]) -> Result<Place> {
        let place = self.place_of(entry_name)?;
        place.refuse_occupied()?;
        Ok(place)
    }

    /// The same, whatever is there.
    ///
    /// # Errors
    /// A name that is no plain one.
    pub fn place_of(&self, entry_name: &[u8]) -> Result<Place> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None if entry_name.is_empty() => Vec::new(),
            None => {
                let place = Place::inside(self.directory.clone(), entry_name, &self.display)?;
                return Ok(place.written_by(self.claimant()));
            }
        };
        Ok(Place {
            directory: self.directory.clone(),
            name,
            display: self.display.clone(),
            claimant: self.claimant.clone(),
            claim: None,
        })
    }

    /// The name of what is copied, where the target gives it another: that of the
    /// only source.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// The directory itself.
    #[must_use]
    pub fn folder(&self) -> &Arc<HeldFolder> {
        &self.directory
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
    /// `name` in `directory`, which sentences call `display`.
    ///
    /// # Errors
    /// A name that is no plain one.
    pub fn inside(directory: Arc<HeldFolder>, name: &[u8], display: &str) -> Result<Self> {
        Self::of(directory, name, display_in(display, name))
    }

    /// The same, which sentences call `display`.
    ///
    /// # Errors
    /// A name that is no plain one.
    pub fn of(directory: Arc<HeldFolder>, name: &[u8], display: String) -> Result<Self> {
        check_name(name).map_err(|why| {
            Error::peer(format!("cannot write a file called {:?}", shown(name)), why)
                .at(Side::Receiver)
        })?;
        Ok(Self {
            directory,
            name: name.to_vec(),
            display,
            claimant: None,
            claim: None,
        })
    }

    /// The same; `claimant` writes it.
    #[must_use]
    pub fn written_by(self, claimant: Option<&Arc<Claimant>>) -> Self {
        Self {
            claimant: claimant.cloned(),
            ..self
        }
    }

    /// The same, which nobody else in this process writes until the last clone is
    /// dropped, or it got its name. Blocks, a few seconds at most, while another does.
    ///
    /// # Errors
    /// Another transfer, or another entry of this one, writes it.
    pub fn claimed(self) -> Result<Self> {
        let Some(claimant) = &self.claimant else {
            return Ok(self);
        };
        let claim = claimant.claim(&self.directory, &self.name);
        let claim = claim.map_err(|taken| match taken {
            ClaimedBy::Another => cannot_write(&self.display, "another transfer is writing it")
                .cure("copy it again when that one is over"),
            ClaimedBy::Itself => {
                cannot_write(&self.display, "another source of this copy has that name")
                    .cure("copy one after the other, or to different names")
            }
        })?;
        Ok(Self {
            claim: Some(Arc::new(claim)),
            ..self
        })
    }

    /// What of another kind may give way to it; nothing for the target itself, and
    /// where nobody said.
    #[must_use]
    pub fn replacing(&self) -> Option<&Replacing> {
        let claimant = self.claimant.as_deref().filter(|_| !self.name.is_empty());
        claimant.map(Claimant::replacing)
    }

    /// Whether the directory that is there may give way to what is none; if so, it is
    /// counted.
    ///
    /// # Errors
    /// It stays.
    pub fn judge_directory(&self) -> std::result::Result<(), Stays> {
        let replacing = self.replacing().ok_or_else(Stays::directory)?;
        replacing.judge_directory(self.directory(), &self.name)
    }

    /// Whether what is there, of `kind`, may give way to a directory; if so, it is
    /// counted.
    ///
    /// # Errors
    /// It stays.
    pub fn judge_file(&self, kind: FileType) -> std::result::Result<(), Stays> {
        let replacing = self.replacing().ok_or_else(|| Stays::no_directory(kind))?;
        replacing.count_file(kind)
    }

    /// Whether no directory is there, as far as a dry run can tell: what is there
    /// instead would give way.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn would_be_made(&self) -> Result<bool> {
        let Some(stat) = self.occupant()? else {
            return Ok(true);
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let gives_way = |replacing: &Replacing| replacing.judge_file(kind).is_ok();
        Ok(kind != FileType::Directory && self.replacing().is_some_and(gives_way))
    }

    /// Puts an empty directory in place of what is none.
    ///
    /// # Errors
    /// What is there stays.
    pub fn give_way_to_directory(&self) -> Result<()> {
        let Some(stat) = self.occupant()? else {
            return self.make_directory().map(|_| ());
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let replacing = self.replacing().ok_or_else(|| Stays::no_directory(kind));
        let given = replacing.and_then(|replacing| {
            let (folder, name) = (self.directory(), &self.name[..]);
            replacing.by_directory(folder, name, kind)
        });
        given.map_err(|stays| stays.error(format!("cannot make the directory {}", self.display)))
    }

    /// Gives what is called `temporary` its name, which others may write from then on;
    /// the directory that gave way, if so.
    ///
    /// # Errors
    /// What is there stays.
    pub fn take_name(&self, temporary: &str) -> std::result::Result<Option<Replaced>, Stays> {
        let replaced = take_name(self.directory(), temporary, &self.name, self.replacing())?;
        self.let_go();
        Ok(replaced)
    }

    /// Others may write it: it has its name, or will not get it.
    pub(super) fn let_go(&self) {
        if let Some(claim) = &self.claim {
            claim.let_go();
        }
    }

    /// The held directory.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The same, with what is known of it.
    #[must_use]
    pub fn folder(&self) -> &HeldFolder {
        &self.directory
    }

    /// The final name in it: one component, or empty for the directory itself.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What sentences call it.
    #[must_use]
    pub fn display(&self) -> &str {
        &self.display
    }

    /// Says that a call on it failed.
    #[must_use]
    pub fn failed(&self, doing: &str, errno: Errno) -> Error {
        Error::local(format!("cannot {doing} {}", self.display), why(errno)).at(Side::Receiver)
    }

    /// What stands there, links not followed.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn occupant(&self) -> Result<Option<Stat>> {
        if self.name.is_empty() {
            let looked = rustix::fs::fstat(self.directory());
            return looked
                .map(Some)
                .map_err(|errno| refusal(&self.display, errno));
        }
        if self.directory.is_fresh() {
            return Ok(None);
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statat(self.directory(), &self.name[..], flags) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(refusal(&self.display, errno)),
        }
    }

    /// Makes a directory there, unless there is one; it is its owner's alone until it
    /// gets its own bits.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_directory(&self) -> Result<bool> {
        match rustix::fs::mkdirat(self.directory(), &self.name[..], Mode::RWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => {
                let doing = format!("cannot make the directory {}", self.display);
                Err(Error::local(doing, why(errno)).at(Side::Receiver))
            }
        }
    }

    /// Refuses what must not be replaced by a file; gives the file that is there.
    ///
    /// # Errors
    /// A directory that stays or a special file is there.
    pub fn refuse_occupied(&self) -> Result<Option<Stat>> {
        let Some(stat) = self.occupant()? else {
            return Ok(None);
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Some(stat)),
            FileType::Symlink => Ok(None),
            FileType::Directory => self
                .judge_directory()
                .map(|()| None)
                .map_err(|stays| stays.error(format!("cannot write {}", self.display))),
            other => Err(cannot_write(
                &self.display,
                format!("it is {}, which a file would replace", kind_name(other)),
            )
            .cure("write to standard output, -, instead")),
        }
    }
}

/// What sentences call `name` in the directory that they call `folder`.
pub(super) fn display_in(folder: &str, name: &[u8]) -> String {
    if folder == ROOT {
        return shown(name);
    }
    let folder = folder.trim_end_matches('/');
    // In one piece: each file of a tree has one.
    let mut display = String::with_capacity(folder.len() + 1 + name.len());
    display.push_str(folder);
    display.push('/');
    show(name, &mut display);
    display
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
