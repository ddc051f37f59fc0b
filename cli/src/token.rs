//! The token: the secret that peers prove, in a file that only its user can
//! read.
//!
//! Leaves to others: proving it. Invariant: a token is never printed and never
//! an argument, and a file that others can read is refused, not mended.

use crate::console::fault;
use haul_engine::kernel;
use haul_engine::options::Token;
use haul_engine::{Error, ErrorKind};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The environment's token, in hex.
pub const VARIABLE: &str = "HAUL_TOKEN";
/// Hex digits in a token.
const HEX_DIGITS: usize = 64;

/// A token and where it came from, for sentences.
pub struct FoundToken {
    /// The secret.
    pub token: Token,
    /// A file's name, or the variable's.
    pub origin: String,
}

/// A new token from the kernel's random numbers.
///
/// # Errors
/// The kernel gives none.
pub fn random() -> Result<Token, Error> {
    Ok(Token(kernel::random::random()?))
}

/// The token that a copy proves: `file`'s where it is given, else the
/// environment's, else that of a `serve` of the same user; `None` where there
/// is none of them.
///
/// # Errors
/// A token that was given, or found, cannot be used.
pub fn find(file: Option<&Path>) -> Result<Option<FoundToken>, Error> {
    if let Some(file) = file {
        return read(file).map(Some);
    }
    if let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) {
        let token = text.to_str().and_then(parse).ok_or_else(|| {
            Error::usage(format!(
                "{VARIABLE} does not hold a token of {HEX_DIGITS} hex digits"
            ))
        })?;
        return Ok(Some(FoundToken {
            token,
            origin: VARIABLE.to_owned(),
        }));
    }
    find_in(&places())
}

/// The token that a server asks for: `file`'s, where it is given (made if it
/// does not exist), else the user's own, made where there is none yet.
///
/// # Errors
/// The file cannot be used or made.
pub fn find_or_make(file: Option<&Path>) -> Result<FoundToken, Error> {
    let places = match file {
        Some(file) => vec![file.to_owned()],
        None => places(),
    };
    if let Some(found) = find_in(&places)? {
        return Ok(found);
    }
    let Some(place) = places.first() else {
        return Err(fault(
            "cannot choose a file for the token",
            "neither XDG_RUNTIME_DIR nor HOME is an absolute path",
        )
        .cure("name one with --token-file FILE"));
    };
    make(place, file.is_none())
}

/// Where a token may be, the best place first.
fn places() -> Vec<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    [
        absolute("XDG_RUNTIME_DIR").map(|path| path.join("haul/token")),
        absolute("HOME").map(|path| path.join(".local/state/haul/token")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The token of the first place that has one.
fn find_in(places: &[PathBuf]) -> Result<Option<FoundToken>, Error> {
    for place in places {
        // Asked before opening, so that a missing file is no error but one
        // that cannot be opened is.
        match std::fs::symlink_metadata(place) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            _ => return read(place).map(Some),
        }
    }
    Ok(None)
}

/// Reads `file`, which nobody but this user may read.
fn read(file: &Path) -> Result<FoundToken, Error> {
    let doing = || format!("cannot read the token file {}", file.display());
    let opened = OpenOptions::new()
        .read(true)
        // A FIFO in its place must not hang us.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(file)
        .map_err(|error| fault(doing(), error))?;
    let metadata = opened.metadata().map_err(|error| fault(doing(), error))?;
    if !metadata.is_file() {
        return Err(fault(doing(), "it is not a regular file"));
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(fault(doing(), "it belongs to another user"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(fault(
            doing(),
            format!("others can read it (mode {:04o})", metadata.mode() & 0o7777),
        )
        .cure(format!(
            "run chmod 600 {0}, or delete it and let haul serve write a new one",
            file.display()
        )));
    }
    let mut text = String::new();
    opened
        .take(4096)
        .read_to_string(&mut text)
        .map_err(|error| fault(doing(), error))?;
    let token = parse(&text).ok_or_else(|| {
        Error::new(
            ErrorKind::Local,
            format!("{}: it does not hold {HEX_DIGITS} hex digits", doing()),
        )
        .cure("delete it and let haul serve write a new one")
    })?;
    Ok(FoundToken {
        token,
        origin: file.display().to_string(),
    })
}

/// Writes a new token to `file`, or takes the one that another server wrote
/// there meanwhile. `own` folders are made, for this user only.
fn make(file: &Path, own: bool) -> Result<FoundToken, Error> {
    let doing = || format!("cannot make the token file {}", file.display());
    let local = |error: io::Error| fault(doing(), error);
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if own {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(local)?;
        let mode = std::fs::metadata(folder).map_err(local)?.mode();
        if mode & 0o022 != 0 {
            return Err(
                fault(doing(), format!("others can write to {}", folder.display()))
                    .cure(format!("run chmod 700 {}", folder.display())),
            );
        }
    }
    let token = random()?;
    // Complete under another name first: who finds the final name finds all
    // of the token. The link fails where the name exists, as O_EXCL would.
    let mut beside = file.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = write_new(&beside, &token).and_then(|()| std::fs::hard_link(&beside, file));
    let _ = std::fs::remove_file(&beside);
    match written {
        Ok(()) => Ok(FoundToken {
            token,
            origin: file.display().to_string(),
        }),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(file),
        Err(error) => Err(local(error)),
    }
}

/// A new file that only this user can read, with `token` in it.
fn write_new(file: &Path, token: &Token) -> io::Result<()> {
    let mut opened: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    opened.write_all(format!("{}\n", encode(token)).as_bytes())
}

/// `token` in hex.
fn encode(token: &Token) -> String {
    token.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The token in `text`: 64 hex digits and nothing else but space around them.
fn parse(text: &str) -> Option<Token> {
    let digits = text.trim().as_bytes();
    if digits.len() != HEX_DIGITS {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(Token(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_survives_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state/haul/token");
        let made = make(&file, true).expect("made");
        let read = read(&file).expect("read");
        assert!(made.token == read.token);
        assert!(random().expect("random") != made.token);
        let mode = |path: &Path| std::fs::metadata(path).expect("exists").mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(file.parent().expect("a folder")), 0o700);
        // A second server takes the token that is there.
        let again = make(&file, true).expect("taken");
        assert!(again.token == made.token);
        let names = std::fs::read_dir(file.parent().expect("a folder")).expect("listed");
        assert_eq!(names.count(), 1, "no file is left beside the token");
    }

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        make(&file, false).expect("made");
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("chmod");
            let error = read(&file).err().expect("refused");
            assert_eq!(error.kind, ErrorKind::Local);
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(read(folder.path()).is_err(), "a directory");
        let file = folder.path().join("token");
        for text in ["", "abc", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
            let mut opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&file)
                .expect("opened");
            opened.write_all(text.as_bytes()).expect("written");
            assert!(read(&file).is_err(), "{text}");
        }
        assert!(parse(&format!(" {}\n", "0f".repeat(32))).is_some());
    }

    #[test]
    fn a_missing_token_is_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = [folder.path().join("none"), folder.path().join("no/token")];
        assert!(find_in(&places).expect("looked").is_none());
    }
}
