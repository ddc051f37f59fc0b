//! The ends of a copy that are on this machine: where they lie, and that they are not
//! each other.
//!
//! Leaves to others: the copy. Invariant: nothing is made or opened here.

use crate::arguments::{CopyArguments, OutputOptions, is_output};
use crate::console::{fault, usage};
use crate::endpoint::Endpoint;
use crate::entries::ReflinkName;
use haul_engine::Error;
use haul_engine::options::{self, LocalSource, RemoteTarget};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A local target as a root and what is below it.
pub fn place(target: &Path, directory: bool, make: bool) -> Result<(PathBuf, RemoteTarget), Error> {
    let failed = |path: &Path, error: std::io::Error| {
        fault(format!("cannot copy to {}", path.display()), error)
    };
    if target.is_dir() {
        let root = target
            .canonicalize()
            .map_err(|error| failed(target, error))?;
        let inside = RemoteTarget::Path {
            path: Vec::new(),
            directory: true,
            make: false,
        };
        return Ok((root, inside));
    }
    if directory && !make {
        return Err(match target.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fault(format!("cannot copy into {}", target.display()), error)
                    .cure("make the directory first")
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotADirectory => {
                fault(format!("cannot copy into {}", target.display()), error)
            }
            Ok(_) | Err(_) => {
                let doing = format!("cannot copy into {}", target.display());
                fault(doing, "it is not a directory")
            }
        });
    }
    let Some(name) = target.file_name() else {
        return Err(usage(format!(
            "cannot copy to {}: it names no file",
            target.display()
        )));
    };
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let unusable = |error| {
        fault(
            format!(
                "cannot copy to {}: its directory {} cannot be used",
                target.display(),
                parent.display()
            ),
            error,
        )
    };
    let root = parent.canonicalize().map_err(unusable)?;
    if !root.is_dir() {
        return Err(unusable(std::io::ErrorKind::NotADirectory.into()));
    }
    let beside = RemoteTarget::Path {
        path: name.as_bytes().to_vec(),
        directory: false,
        make,
    };
    Ok((root, beside))
}

/// A local source as its folder and its name there, symbolic links followed:
/// the local user asked for what they point to.
pub fn resolved(source: &Path) -> Result<(PathBuf, Vec<u8>), Error> {
    let whole = source
        .canonicalize()
        .map_err(|error| fault(format!("cannot open {}", source.display()), error))?;
    match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => Ok((parent.to_owned(), name.as_bytes().to_vec())),
        _ => Err(usage(format!(
            "cannot copy {} to standard output: it is a directory",
            source.display()
        ))),
    }
}

/// Blocks are shared between files of this machine, and cannot be verified.
pub fn refuse_sharing(arguments: &CopyArguments) -> Result<(), Error> {
    if arguments.entries.reflink != ReflinkName::Always {
        return Ok(());
    }
    let mut ends = arguments.sources.iter().chain([&arguments.target]);
    if !ends.all(|end| matches!(end, Endpoint::Local(_))) {
        return Err(usage(
            "cannot use --reflink always here: only a copy within this machine can share blocks",
        )
        .cure("leave it out"));
    }
    if arguments.transfer.verify {
        return Err(usage(
            "cannot use --reflink always with --verify: nothing is written that could be read back",
        )
        .cure("leave one of them out"));
    }
    Ok(())
}

/// A file that is told into is no end of the copy, nor told into twice.
pub fn refuse_shared_outputs(
    arguments: &CopyArguments,
    output: &OutputOptions,
) -> Result<(), Error> {
    let local = |endpoint: &Endpoint| match endpoint {
        Endpoint::Local(path) => Some(path.clone()),
        _ => None,
    };
    let target = local(&arguments.target);
    let mut taken: Vec<PathBuf> = arguments.sources.iter().filter_map(local).collect();
    if let Some(target) = target.filter(|target| target.is_dir()) {
        let inside = |source: &PathBuf| source.file_name().map(|name| target.join(name));
        taken.extend(taken.iter().filter_map(inside).collect::<Vec<_>>());
    } else {
        taken.extend(local(&arguments.target));
    }
    for (option, path) in [
        ("--report", &output.report),
        ("--hdr-log", &output.hdr_log),
        ("--manifest", &arguments.entries.manifest),
    ] {
        let Some(path) = path.as_ref().filter(|path| !is_output(path)) else {
            continue;
        };
        if taken.iter().any(|other| is_same_file(path, other)) {
            let path = path.display();
            return Err(usage(format!(
                "cannot write {option} to {path}: it is used otherwise by this copy"
            )));
        }
        taken.push(path.clone());
    }
    Ok(())
}

/// True when both are one file, or will be one when they are made.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    let place = |path: &Path| {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some((parent, path.file_name()?.to_owned()))
    };
    match (identity(one), identity(other)) {
        (Some(one), Some(other)) => one == other,
        (None, None) => place(one).is_some_and(|one| place(other) == Some(one)),
        _ => false,
    }
}

/// The paths among `sources`, each with where it lands.
fn landing_places<'a>(
    sources: &'a [LocalSource],
    target: &'a Path,
) -> impl Iterator<Item = (&'a Path, PathBuf)> {
    sources.iter().filter_map(|named| {
        let LocalSource::Path(source) = named else {
            return None;
        };
        let end = match source.file_name() {
            Some(name) if target.is_dir() && !is_contents(named) => target.join(name),
            _ => target.to_owned(),
        };
        Some((source.as_path(), end))
    })
}

/// cp's rule: a file is not copied onto itself, nor a directory into itself.
pub fn refuse_onto_itself(sources: &[LocalSource], target: &Path) -> Result<(), Error> {
    for (source, end) in landing_places(sources, target) {
        if source.is_dir() && lies_in(&end, source) {
            return Err(usage(format!(
                "cannot copy the directory {} into itself: {} lies in it",
                source.display(),
                end.display()
            )));
        }
        if end.exists() && is_same_file(source, &end) {
            return Err(usage(format!(
                "cannot copy {} onto itself: {} is the same file",
                source.display(),
                end.display()
            )));
        }
    }
    Ok(())
}

/// What `option` removes from the target must not be the source.
pub fn refuse_deleting_source(
    option: &str,
    sources: &[LocalSource],
    target: &Path,
) -> Result<(), Error> {
    for (source, end) in landing_places(sources, target) {
        if end.is_dir() && lies_in(source, &end) {
            return Err(usage(format!(
                "cannot use {option}: the source {} lies in {}, and could be deleted itself",
                source.display(),
                end.display()
            )));
        }
    }
    Ok(())
}

/// True where `path`, which may be missing, is `directory` or lies in it.
fn lies_in(path: &Path, directory: &Path) -> bool {
    let Ok(directory) = directory.canonicalize() else {
        return false;
    };
    // What is missing lies in what is there of its path.
    let here = Path::new(".").canonicalize().unwrap_or_default();
    let whole = here.join(path);
    let found = whole.ancestors().find_map(|part| part.canonicalize().ok());
    found.is_some_and(|found| found.starts_with(&directory))
}

/// A trailing slash says that it must be a directory.
pub fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// True of a directory whose contents are meant: its name is not used.
pub fn is_contents(source: &LocalSource) -> bool {
    match source {
        LocalSource::Path(path) => options::is_contents(path.as_os_str().as_bytes()),
        _ => false,
    }
}
