//! `--files-from`: the list of names that is copied of a directory.
//!
//! Leaves to others: what its names are (the engine). Invariant: the whole list was
//! read and judged before anything is connected or made.

use crate::arguments::is_output;
use crate::console::{Console, fault, usage};
use crate::endpoint::Endpoint;
use haul_engine::Error;
use haul_engine::options::names::{NameEnd, ReadNames};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Reads the list in `path`, or on standard input where that is "-".
///
/// # Errors
/// It cannot be read; a name in it is none, or leads outside.
pub fn read(path: &Path, ends_in_nul: bool) -> Result<ReadNames, Error> {
    let display = match is_output(path) {
        true => "the list on standard input".to_owned(),
        false => path.display().to_string(),
    };
    let cannot = |error| fault(format!("cannot read {display}"), error);
    let mut text = Vec::new();
    match is_output(path) {
        true => std::io::stdin().lock().read_to_end(&mut text),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut text)),
    }
    .map_err(cannot)?;
    let end = match ends_in_nul {
        true => NameEnd::Nul,
        false => NameEnd::Newline,
    };
    let read = ReadNames::new(&text, end, &display)?;
    if read.is_cut && ends_in_nul {
        return Err(usage(format!(
            "cannot use {display}: no NUL ends its last name, so that it was cut off, or its names end in newlines"
        ))
        .cure("make the list again, or leave -0 out"));
    }
    Ok(read)
}

/// Says what is odd about a list.
pub fn tell(read: &ReadNames, console: &Console) {
    if read.repeated > 0 {
        let (names, stand) = match read.repeated {
            1 => ("name", "stands"),
            _ => ("names", "stand"),
        };
        console.line(&format!(
            "haul: {} {names} that {stand} in the list twice, or in a directory that is copied whole: copied once",
            read.repeated
        ));
    }
    if read.is_cut {
        console.line("haul: no newline ends the last name of the list: it may be cut off");
    }
}

/// The directory that a list's names are in, as its contents are copied.
///
/// # Errors
/// There are several sources, or a stream.
pub fn directory(sources: &[Endpoint]) -> Result<Endpoint, Error> {
    let refused = || {
        usage("cannot use --files-from with this SOURCE: it names what is copied of one directory")
    };
    match sources {
        [Endpoint::Local(path)] => {
            let mut path = path.as_os_str().to_owned().into_vec();
            path.push(b'/');
            let path = std::ffi::OsStr::from_bytes(&path);
            Ok(Endpoint::Local(path.into()))
        }
        [Endpoint::Server(server)] => {
            let mut server = server.clone();
            server.directory = true;
            Ok(Endpoint::Server(server))
        }
        _ => Err(refused()),
    }
}
