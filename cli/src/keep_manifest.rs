//! `haul copy --manifest`: a line for each file that the target holds now.
//!
//! Leaves to others: the lines' form (manifest.rs), and the digests (the engine).
//! Invariant: the file has its name when the copy is over, and lists what was sealed or
//! found the same until then; what keeps it from being written is an error of the copy.

use crate::arguments::is_output;
use crate::console::{fault, require_output};
use crate::manifest::{ManifestFormat, ManifestLine};
use haul_engine::Error;
use haul_engine::options::DigestKind;
use haul_engine::report::{FileReport, path_of_told};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// A manifest while it is written.
pub struct KeptManifest {
    path: PathBuf,
    /// Where it is until it is whole; nothing for standard output.
    partial: Option<PathBuf>,
    writer: BufWriter<File>,
    format: ManifestFormat,
    kind: DigestKind,
    /// What the target calls its only file.
    own_name: Vec<u8>,
    files: u64,
    failed: Option<io::Error>,
}

impl KeptManifest {
    /// A manifest in `path`; a target that names its only file calls it `own_name`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path, kind: DigestKind, own_name: Vec<u8>) -> Result<Self, Error> {
        let is_json = path
            .extension()
            .is_some_and(|suffix| suffix == "jsonl" || suffix == "json");
        let partial = (!is_output(path)).then(|| {
            let mut name = path.as_os_str().to_owned();
            name.push(".part");
            PathBuf::from(name)
        });
        let file = match &partial {
            Some(partial) => File::create(partial),
            None => {
                require_output("write the manifest to")?;
                let output = io::stdout();
                output.as_fd().try_clone_to_owned().map(File::from)
            }
        };
        Ok(Self {
            writer: BufWriter::new(file.map_err(|error| cannot_write(path, error))?),
            path: path.to_owned(),
            partial,
            format: match is_json {
                true => ManifestFormat::Json,
                false => ManifestFormat::Sum,
            },
            kind,
            own_name,
            files: 0,
            failed: None,
        })
    }

    /// A file ended.
    pub fn add(&mut self, file: &FileReport) {
        let (Some(digest), Some(_), None) = (file.digest, file.level, &self.failed) else {
            return;
        };
        let Some(path) = path_of_told(&file.name) else {
            return;
        };
        let line = ManifestLine {
            path: self.placed(path, file.is_renamed),
            bytes: file.bytes,
            mtime: file.mtime,
            digest,
        };
        match self.writer.write_all(&line.written(self.format)) {
            Ok(()) => self.files += 1,
            Err(error) => self.failed = Some(error),
        }
    }

    /// The path from the target on.
    fn placed(&self, path: Vec<u8>, is_renamed: bool) -> Vec<u8> {
        match path.iter().position(|byte| *byte == b'/') {
            _ if !is_renamed => path,
            Some(slash) => path[slash + 1..].to_vec(),
            None => self.own_name.clone(),
        }
    }

    /// Writes what is left and gives it its name; a sentence on it. None is kept of a
    /// copy that `has_failed` before any file was whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self, has_failed: bool) -> Result<Option<String>, Error> {
        if has_failed && self.files == 0 {
            if let Some(partial) = &self.partial {
                // An older manifest says more than an empty one.
                let _ = std::fs::remove_file(partial);
            }
            return Ok(None);
        }
        let shown = match &self.partial {
            Some(_) => self.path.display().to_string(),
            None => "on standard output".to_owned(),
        };
        let flushed = match self.failed.take() {
            Some(error) => Err(error),
            None => self.writer.flush(),
        };
        let named = flushed.and_then(|()| match &self.partial {
            Some(partial) => {
                self.writer.get_ref().sync_all()?;
                std::fs::rename(partial, &self.path)
            }
            None => Ok(()),
        });
        if let (Err(_), Some(partial)) = (&named, &self.partial) {
            // It is told that there is none.
            let _ = std::fs::remove_file(partial);
        }
        named.map_err(|error| cannot_write(&self.path, error))?;
        let files = match self.files {
            1 => "1 file".to_owned(),
            files => format!("{files} files"),
        };
        Ok(Some(match self.kind {
            DigestKind::Blake3 => format!("the manifest {shown} lists {files} by BLAKE3"),
            DigestKind::Sha256 => format!(
                "the manifest {shown} lists {files} by SHA-256, for which each was read back"
            ),
        }))
    }
}

fn cannot_write(path: &Path, error: io::Error) -> Error {
    let name = match is_output(path) {
        true => "standard output".to_owned(),
        false => path.display().to_string(),
    };
    fault(format!("cannot write the manifest to {name}"), error)
}
