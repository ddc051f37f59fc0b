//! A bench's folder: the source it makes, the targets it deletes.
//!
//! Leaves to others: measuring. Invariant: everything is below one new folder
//! that only this user can enter, and dropping the workshop removes it.

use crate::console::{fault, usage};
use crate::size::format_size;
use haul_engine::Error;
use haul_engine::files::{self, FileSystem};
use haul_engine::kernel::random::random;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Bytes that are made, read and compared at once.
const BLOCK_BYTES: usize = 1024 * 1024;
/// Memory and space that a bench leaves free, in percent of what it takes.
const SPARE_PERCENT: u64 = 25;

/// The folder.
pub struct Workshop {
    folder: Option<PathBuf>,
    /// Why there, where haul chose.
    choice: Option<&'static str>,
}

impl Workshop {
    /// The source's name in the folder.
    pub const SOURCE: &'static str = "source";

    /// Makes a folder with room for `bytes`, in `asked` or where it suits, on a
    /// disk where `disk` says so; none for `None`, where nothing is written here.
    ///
    /// # Errors
    /// There is no room, or the folder cannot be made.
    pub fn open(bytes: Option<u64>, asked: Option<&Path>, disk: bool) -> Result<Self, Error> {
        let Some(bytes) = bytes else {
            return Ok(Self {
                folder: None,
                choice: None,
            });
        };
        let (parent, choice) = match asked {
            Some(parent) => (parent.to_owned(), None),
            None if disk => (
                std::env::temp_dir(),
                Some("the folder for temporary files, as --verify needs a disk"),
            ),
            None => choose(bytes),
        };
        let parent = parent.canonicalize().map_err(|error| {
            fault(
                format!("cannot use {} for the bench's files", parent.display()),
                error,
            )
        })?;
        if let Some(free) = free_bytes(&parent).filter(|free| *free < bytes) {
            return Err(fault(
                format!("cannot make the bench's files in {}", parent.display()),
                format!(
                    "they take {} and {} are free",
                    format_size(bytes),
                    format_size(free)
                ),
            )
            .cure("name another folder with --directory DIR, or fewer bytes with --bytes SIZE"));
        }
        Ok(Self {
            folder: Some(new_folder(&parent)?),
            choice,
        })
    }

    /// Where it is, where there is one.
    #[must_use]
    pub fn folder(&self) -> Option<PathBuf> {
        self.folder.clone()
    }

    /// Why there, where haul chose.
    #[must_use]
    pub fn choice(&self) -> Option<&'static str> {
        self.choice
    }

    /// An embedded server's root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// The source's path.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        self.root().join(Self::SOURCE)
    }

    /// The target's name in run `number`.
    #[must_use]
    pub fn target_name(number: u32) -> String {
        format!("target-{number}")
    }

    /// The target's path in run `number`.
    #[must_use]
    pub fn target(&self, number: u32) -> PathBuf {
        self.root().join(Self::target_name(number))
    }

    /// Makes the source, of `bytes`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn make_source(&self, bytes: u64) -> Result<(), Error> {
        let path = self.source();
        write_random(&path, bytes)
            .map_err(|error| fault(format!("cannot make the source {}", path.display()), error))
    }

    /// Deletes run `number`'s target: the next one meets the same disk.
    pub fn remove_target(&self, number: u32) {
        if self.folder.is_some() {
            let _ = std::fs::remove_file(self.target(number));
        }
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder
            && let Err(error) = std::fs::remove_dir_all(folder)
        {
            tracing::warn!(
                "{}",
                fault(format!("cannot remove {}", folder.display()), error)
            );
        }
    }
}

/// /dev/shm where it is a tmpfs with room and memory behind it, else the
/// folder for temporary files.
fn choose(bytes: u64) -> (PathBuf, Option<&'static str>) {
    let shared = Path::new("/dev/shm");
    let wanted = bytes.saturating_add(bytes / 100 * SPARE_PERCENT);
    let roomy = is_in_memory(shared)
        && free_bytes(shared).is_none_or(|free| free >= wanted)
        && available_memory_bytes().is_some_and(|free| free >= wanted);
    if roomy {
        return (
            shared.to_owned(),
            Some("a tmpfs; --directory DIR measures a disk"),
        );
    }
    (
        std::env::temp_dir(),
        Some("the folder for temporary files; /dev/shm is no tmpfs with room"),
    )
}

/// True when `path` is in memory.
fn is_in_memory(path: &Path) -> bool {
    File::open(path).is_ok_and(|folder| FileSystem::of(folder.as_fd()) == FileSystem::Memory)
}

/// Bytes that this user may still write below `path`, where they are counted.
fn free_bytes(path: &Path) -> Option<u64> {
    files::free_bytes(File::open(path).ok()?.as_fd())
}

/// Memory that can be had without swapping.
fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A new folder in `parent`, for this user only.
fn new_folder(parent: &Path) -> Result<PathBuf, Error> {
    let failed = |error: io::Error| {
        fault(
            format!("cannot make a folder in {}", parent.display()),
            error,
        )
    };
    for _ in 0..16 {
        let name = u32::from_ne_bytes(random()?);
        let folder = parent.join(format!("haul-bench-{name:08x}"));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(usage(format!(
        "cannot find a free name for a folder in {}",
        parent.display()
    )))
}

/// Writes `bytes` that no file system can compress or share.
fn write_random(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut left = bytes;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&next_random(&mut state).to_le_bytes());
        }
        let count = usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
        file.write_all(&block[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// splitmix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// True when both files hold the same bytes.
///
/// # Errors
/// One of them cannot be read.
pub fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        match other.read_exact(&mut right[..count]) {
            Ok(()) if left[..count] == right[..count] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_compared_to_their_last_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let bytes = BLOCK_BYTES as u64 + 7;
        write_random(&path("a"), bytes).expect("written");
        std::fs::copy(path("a"), path("b")).expect("copied");
        assert!(same(&path("a"), &path("b")).expect("compared"));
        let mut changed = std::fs::read(path("a")).expect("read");
        *changed.last_mut().expect("a byte") ^= 1;
        std::fs::write(path("c"), &changed).expect("written");
        assert!(!same(&path("a"), &path("c")).expect("compared"));
        changed.pop();
        std::fs::write(path("d"), &changed).expect("written");
        assert!(!same(&path("a"), &path("d")).expect("compared"));
        assert!(same(&path("a"), &path("none")).is_err());
    }

    #[test]
    fn a_workshop_leaves_nothing() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = new_folder(parent.path()).expect("made");
        std::fs::write(folder.join("x"), "x").expect("written");
        drop(Workshop {
            folder: Some(folder.clone()),
            choice: None,
        });
        assert!(!folder.exists());
    }

    #[test]
    fn the_kinds_of_file_systems_are_told_apart() {
        assert!(!is_in_memory(Path::new("/proc")));
        assert!(free_bytes(Path::new("/")).is_some());
        assert!(available_memory_bytes().is_some_and(|bytes| bytes > 0));
    }
}
