//! What a bench measures: its ends, its configurations, its amount.
//!
//! Leaves to others: making files, running. Invariant: a combination that
//! measures nothing, or not what was asked for, is refused here.

use super::figures::{Configuration, Setup};
use super::workshop::{Workshop, same};
use crate::arguments::{Auto, BenchArguments, SinkName};
use crate::console::{fault, usage};
use crate::endpoint::{Endpoint, ServerPath};
use crate::size::{format_seconds, format_size};
use haul_engine::options::{LocalSource, LocalTarget, Pattern, RemoteSource, RemoteTarget};
use haul_engine::report::Report;
use haul_engine::{Error, limits};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Bytes of a run unless asked otherwise: the transfer that haul was made for.
pub const BYTES_DEFAULT: u64 = 587 * 1024 * 1024;

/// Where a run's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BenchSource {
    /// A file that the bench makes, of so many bytes.
    Made(u64),
    /// A file of the user's; below the server's root where the server sends.
    File(PathBuf),
    /// Made on the fly; endless where a time was asked for.
    Generated(Pattern, Option<u64>),
}

/// What a bench measures.
#[derive(Clone, Debug)]
pub struct BenchPlan {
    /// The server; `None` is an embedded one.
    pub to: Option<ServerPath>,
    /// The server sends.
    pub reverse: bool,
    /// Where bytes come from.
    pub source: BenchSource,
    /// They are written to a file.
    pub to_file: bool,
    /// Every run is of one of these.
    pub configurations: Vec<Configuration>,
    /// Seconds of a run of an endless source.
    pub seconds: Option<f64>,
}

/// What one run asks the pool for.
pub enum BenchTarget {
    /// This end sends.
    Push(Vec<LocalSource>, RemoteTarget),
    /// The other end sends.
    Pull(Vec<RemoteSource>, LocalTarget),
}

impl BenchPlan {
    /// What was asked for.
    ///
    /// # Errors
    /// It makes no sense together.
    pub fn new(arguments: &BenchArguments) -> Result<Self, Error> {
        let to = match &arguments.to {
            None => None,
            Some(Endpoint::Server(server)) => Some(server.clone()),
            Some(other) => {
                return Err(usage(format!(
                    "cannot measure to {}: --to takes haul://HOST[:PORT][/PATH]",
                    other.display()
                )));
            }
        };
        let source = source(arguments, to.is_some())?;
        let generated = matches!(source, BenchSource::Generated(..));
        let to_file = match arguments.sink {
            Some(SinkName::File) => true,
            Some(SinkName::Null) => false,
            None => !(to.is_some() || generated),
        };
        let nameless = to.as_ref().is_some_and(|to| to.directory);
        if nameless && to_file && !arguments.reverse {
            return Err(
                usage("cannot write to the server without a name for the target")
                    .cure("write it as in --to haul://HOST/NAME, or use --sink null"),
            );
        }
        if arguments.transfer.verify && !to_file {
            return Err(usage(
                "cannot use --verify with a null sink: there is no disk to read back from",
            ));
        }
        Ok(Self {
            to,
            reverse: arguments.reverse,
            source,
            to_file,
            configurations: configurations(arguments),
            seconds: arguments.seconds,
        })
    }

    /// The source's file on this machine, where there is one.
    #[must_use]
    pub fn source_file(&self, workshop: &Workshop) -> Option<PathBuf> {
        match &self.source {
            BenchSource::Made(_) => Some(workshop.source()),
            BenchSource::File(path) if self.to.is_none() || !self.reverse => Some(path.clone()),
            BenchSource::File(_) | BenchSource::Generated(..) => None,
        }
    }

    /// Bytes that the bench's own files take.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        let source = match &self.source {
            BenchSource::Made(bytes) => *bytes,
            _ => 0,
        };
        let here = self.to.is_none() || self.reverse;
        let target = match &self.source {
            _ if !self.to_file || !here => 0,
            BenchSource::Made(bytes) | BenchSource::Generated(_, Some(bytes)) => *bytes,
            BenchSource::File(path) => path.metadata().map_or(0, |metadata| metadata.len()),
            BenchSource::Generated(_, None) => BYTES_DEFAULT,
        };
        source.saturating_add(target)
    }

    /// The folder that this takes, in `asked` or where it suits, on a disk where
    /// `disk` says so.
    ///
    /// # Errors
    /// There is no room, or the folder cannot be made.
    pub fn open_workshop(&self, asked: Option<&Path>, disk: bool) -> Result<Workshop, Error> {
        let bytes = self.bytes_on_disk();
        let is_wanted = bytes > 0 || self.to_file;
        Workshop::open(is_wanted.then_some(bytes), asked, disk)
    }

    /// Makes the source in `workshop` where one is to be made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn make_source(&self, workshop: &Workshop) -> Result<(), Error> {
        match self.source {
            BenchSource::Made(bytes) => workshop.make_source(bytes),
            BenchSource::File(_) | BenchSource::Generated(..) => Ok(()),
        }
    }

    /// True when run `number`'s target in `workshop` is its source; `None` where
    /// the run failed, or one of them cannot be read here.
    #[must_use]
    pub fn compare(&self, workshop: &Workshop, number: u32, report: &Report) -> Option<bool> {
        if report.error.is_some() || !self.to_file || (self.to.is_some() && !self.reverse) {
            return None;
        }
        same(&self.source_file(workshop)?, &workshop.target(number)).ok()
    }

    /// The embedded server's root.
    #[must_use]
    pub fn root(&self, workshop: &Workshop) -> PathBuf {
        match (&self.source, self.reverse) {
            // It sends the user's file, and writes nothing.
            (BenchSource::File(path), true) => path
                .parent()
                .map_or_else(|| PathBuf::from("/"), Path::to_owned),
            _ => workshop.root(),
        }
    }

    /// What run `number` asks the pool for.
    #[must_use]
    pub fn target(&self, workshop: &Workshop, number: u32) -> BenchTarget {
        if self.reverse {
            let source = match &self.source {
                BenchSource::Made(_) => RemoteSource::Path(Workshop::SOURCE.as_bytes().to_vec()),
                BenchSource::File(path) if self.to.is_some() => {
                    let path = path.as_os_str().as_bytes();
                    RemoteSource::Path(path.strip_prefix(b"/").unwrap_or(path).to_vec())
                }
                BenchSource::File(path) => RemoteSource::Path(
                    path.file_name()
                        .map(|name| name.as_bytes().to_vec())
                        .unwrap_or_default(),
                ),
                BenchSource::Generated(pattern, bytes) => RemoteSource::Generated {
                    pattern: *pattern,
                    bytes: *bytes,
                },
            };
            let target = if self.to_file {
                LocalTarget::Path {
                    path: workshop.target(number),
                    directory: false,
                    make: false,
                }
            } else {
                LocalTarget::Null
            };
            return BenchTarget::Pull(vec![source], target);
        }
        let source = match &self.source {
            BenchSource::Made(_) => LocalSource::Path(workshop.source()),
            BenchSource::File(path) => LocalSource::Path(path.clone()),
            BenchSource::Generated(pattern, bytes) => LocalSource::Generated {
                pattern: *pattern,
                bytes: *bytes,
            },
        };
        let target = match (&self.to, self.to_file) {
            (_, false) => RemoteTarget::Null,
            (Some(to), true) => RemoteTarget::Path {
                path: to.path.clone(),
                directory: false,
                make: false,
            },
            (None, true) => RemoteTarget::Path {
                path: Workshop::target_name(number).into_bytes(),
                directory: false,
                make: false,
            },
        };
        BenchTarget::Push(vec![source], target)
    }

    /// The JSON's `setup`.
    #[must_use]
    pub fn setup(&self, workshop: &Workshop) -> Setup {
        Setup {
            peer: self.to.as_ref().map(ServerPath::display),
            direction: if self.reverse { "pull" } else { "push" },
            source: match &self.source {
                BenchSource::Made(_) => "file".to_owned(),
                BenchSource::File(path) => path.display().to_string(),
                BenchSource::Generated(Pattern::Random, _) => "random".to_owned(),
                BenchSource::Generated(Pattern::Zero, _) => "zero".to_owned(),
            },
            sink: if self.to_file { "file" } else { "null" },
            bytes: match &self.source {
                BenchSource::Made(bytes) => Some(*bytes),
                BenchSource::File(path) => path.metadata().ok().map(|metadata| metadata.len()),
                BenchSource::Generated(_, bytes) => *bytes,
            },
            seconds: self.seconds,
            directory: workshop.folder().map(|path| path.display().to_string()),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// What is about to be measured, in a sentence.
    #[must_use]
    pub fn sentence(&self, workshop: &Workshop) -> String {
        let setup = self.setup(workshop);
        let amount = match (setup.bytes, self.seconds) {
            (_, Some(seconds)) => format_seconds(seconds),
            (Some(bytes), None) => format_size(bytes),
            (None, None) => "all".to_owned(),
        };
        let source = match &self.source {
            BenchSource::Made(_) => "a file".to_owned(),
            BenchSource::File(path) => path.display().to_string(),
            BenchSource::Generated(Pattern::Random, _) => "generated random bytes".to_owned(),
            BenchSource::Generated(Pattern::Zero, _) => "generated zeros".to_owned(),
        };
        let sink = if self.to_file {
            "a file"
        } else {
            "a null sink"
        };
        let peer = match &self.to {
            Some(to) => to.display(),
            None => "an embedded server on loopback".to_owned(),
        };
        let way = if self.reverse { "from" } else { "to" };
        // A file at a server lies where the server puts it.
        let here = self.to.is_none() || matches!(self.source, BenchSource::Made(_));
        let folder = match (workshop.folder().filter(|_| here), workshop.choice()) {
            (Some(folder), Some(choice)) => format!(", in {} ({choice})", folder.display()),
            (Some(folder), None) => format!(", in {}", folder.display()),
            (None, _) => String::new(),
        };
        format!("{amount} of {source} into {sink}, {way} {peer}{folder}")
    }
}

/// Where bytes come from.
fn source(arguments: &BenchArguments, remote: bool) -> Result<BenchSource, Error> {
    let endless = arguments.seconds.is_some();
    let amount = if endless {
        None
    } else {
        Some(arguments.bytes.unwrap_or(BYTES_DEFAULT))
    };
    let Some(named) = &arguments.source else {
        return Ok(match amount {
            Some(bytes) if !remote => BenchSource::Made(bytes),
            amount => BenchSource::Generated(Pattern::Random, amount),
        });
    };
    match named.as_os_str().as_bytes() {
        b"random" => Ok(BenchSource::Generated(Pattern::Random, amount)),
        b"zero" => Ok(BenchSource::Generated(Pattern::Zero, amount)),
        _ if endless => Err(usage("cannot send a file for a time: it has an end")
            .cure("use --source random or zero with --seconds")),
        _ if arguments.bytes.is_some() => Err(usage(
            "cannot use --bytes with a file of yours: it has a size",
        )
        .cure("use --source random or zero with --bytes, or no --source")),
        _ if remote && arguments.reverse => Ok(BenchSource::File(named.clone())),
        _ => {
            let path = named
                .canonicalize()
                .map_err(|error| fault(format!("cannot open {}", named.display()), error))?;
            if path.is_file() {
                Ok(BenchSource::File(path))
            } else {
                Err(usage(format!(
                    "cannot measure with {}: it is not a regular file",
                    named.display()
                )))
            }
        }
    }
}

/// Every combination of the sweep, or the one of the options.
fn configurations(arguments: &BenchArguments) -> Vec<Configuration> {
    let sweep = arguments.sweep.clone().unwrap_or_default();
    let connections = if sweep.connections.is_empty() {
        vec![match arguments.transfer.connections {
            Auto::Value(count) => count,
            Auto::Auto => limits::CONNECTIONS_DEFAULT,
        }]
    } else {
        sweep.connections
    };
    let chunks = if sweep.chunk_bytes.is_empty() {
        vec![arguments.transfer.chunk_size]
    } else {
        sweep.chunk_bytes
    };
    connections
        .iter()
        .flat_map(|count| {
            chunks.iter().map(|chunk| Configuration {
                connections: *count,
                chunk_bytes: *chunk,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser;

    fn plan(line: &str) -> Result<BenchPlan, Error> {
        let arguments = Arguments::try_parse_from(line.split_whitespace()).expect("arguments");
        match arguments.command {
            Command::Bench(bench) => BenchPlan::new(&bench),
            _ => unreachable!("a bench"),
        }
    }

    #[test]
    fn the_default_is_file_to_file() {
        let plan = plan("haul bench").expect("a plan");
        assert_eq!(plan.source, BenchSource::Made(615_514_112));
        assert!(plan.to_file && !plan.reverse && plan.to.is_none());
        assert_eq!(plan.configurations.len(), 1);
        assert_eq!(plan.bytes_on_disk(), 2 * 615_514_112);
    }

    #[test]
    fn a_time_and_a_server_mean_generated_bytes_into_nothing() {
        for line in [
            "haul bench --seconds 3",
            "haul bench --to haul://h --seconds 3",
        ] {
            let plan = plan(line).expect(line);
            assert_eq!(plan.source, BenchSource::Generated(Pattern::Random, None));
            assert!(!plan.to_file);
            assert_eq!(plan.bytes_on_disk(), 0);
        }
        let to = plan("haul bench --to haul://h --bytes 1MiB --source zero").expect("a plan");
        assert_eq!(
            to.source,
            BenchSource::Generated(Pattern::Zero, Some(1 << 20))
        );
    }

    #[test]
    fn a_sweep_is_every_combination() {
        let plan = plan("haul bench --sweep connections=1,2,4:chunk=64KiB,1MiB").expect("a plan");
        assert_eq!(plan.configurations.len(), 6);
        assert_eq!(plan.configurations[1].connections, 1);
        assert_eq!(plan.configurations[1].chunk_bytes, 1 << 20);
    }

    #[test]
    fn what_measures_nothing_is_refused() {
        for (line, code) in [
            ("haul bench --to /tmp", 2),
            ("haul bench --to host:x", 2),
            ("haul bench --to haul://h --sink file", 2),
            ("haul bench --source /tmp --seconds 1", 2),
            ("haul bench --source /tmp --bytes 1MiB", 2),
            ("haul bench --source /tmp", 2),
            ("haul bench --source /nowhere/at/all", 1),
            ("haul bench --verify --sink null", 2),
        ] {
            assert_eq!(plan(line).expect_err(line).exit_code(), code, "{line}");
        }
    }
}
