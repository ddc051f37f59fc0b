//! `haul copy`: which ends there are, and the transfer between them.
//!
//! Leaves to others: following and telling (follow.rs). Invariant: what cannot
//! be meant or is not built is refused before anything is connected or made.

use crate::arguments::{Auto, CopyArguments, OutputOptions, is_output};
use crate::console::{Console, fault, require_output, usage};
use crate::embedded::{self, Embedded};
use crate::endpoint::Endpoint;
use crate::events::Events;
use crate::follow::{self, Outputs};
use crate::interrupt::Interrupts;
use crate::progress::{Sealing, Shown};
use haul_engine::kernel::standard::{Standard, was_closed};
use haul_engine::limits;
use haul_engine::options;
use haul_engine::options::{
    CopyOptions, LocalSource, LocalTarget, PoolOptions, RemoteSource, RemoteTarget,
};
use haul_engine::report::Report;
use haul_engine::{Error, ErrorKind, PeerAddress, Pool, Side, Transfer};
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Which way the bytes go.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    /// From here to a server.
    Push {
        peer: PeerAddress,
        sources: Vec<LocalSource>,
        target: RemoteTarget,
    },
    /// From a server to here.
    Pull {
        peer: PeerAddress,
        sources: Vec<RemoteSource>,
        target: LocalTarget,
    },
    /// From here to here: pushed to an embedded server beside the target.
    Here {
        sources: Vec<LocalSource>,
        target: PathBuf,
        directory: bool,
        make: bool,
    },
    /// A file of this machine to standard output.
    Out { source: PathBuf },
}

/// Runs `haul copy`; the exit code.
pub fn run(
    arguments: &CopyArguments,
    verbose: u8,
    console: &Console,
    interrupts: &Interrupts,
) -> u8 {
    let mut output = arguments.output.clone();
    if arguments.target == Endpoint::Standard {
        // The data's place: the refusal of a mixture is no data either.
        output.json = false;
        output.events = false;
    }
    let began = Instant::now();
    let mut events = Events::new(console, output.events);
    let mut outputs = None;
    let report = Route::plan(arguments)
        .and_then(|route| {
            refuse_shared_outputs(arguments, &output)?;
            // Made only when the copy makes sense, but before anything moves.
            outputs = Some(Outputs::create(&output)?);
            carry(route, arguments, console, interrupts, &mut events)
        })
        .unwrap_or_else(|error| Report::failed(error, began.elapsed()));
    follow::tell(
        &report,
        outputs,
        &mut events,
        &output,
        verbose,
        console,
        interrupts.exit_code(),
    )
}

impl Route {
    /// What the endpoints mean together.
    fn plan(arguments: &CopyArguments) -> Result<Self, Error> {
        let (sources, target) = (arguments.sources.as_slice(), &arguments.target);
        refuse_ssh(sources.iter().chain([target]))?;
        refuse_unnamed(sources, target)?;
        if sources.contains(&Endpoint::Standard) && was_closed(Standard::Input) {
            return Err(fault("cannot read standard input", "it is closed"));
        }
        match target {
            Endpoint::Standard => {
                refuse_mixed_output(arguments)?;
                require_output("write to")?;
            }
            _ => refuse_same_names(sources)?,
        }
        match (local_sources(sources)?, target) {
            (Some(sources), Endpoint::Server(to)) => Ok(Self::Push {
                peer: to.peer.clone(),
                target: RemoteTarget::Path {
                    path: to.path.clone(),
                    directory: to.directory || sources.len() > 1,
                    make: sources.iter().any(is_contents),
                },
                sources,
            }),
            (Some(sources), Endpoint::Local(to)) => Ok(Self::Here {
                make: sources.iter().any(is_contents),
                directory: sources.len() > 1 || ends_in_slash(to),
                target: to.clone(),
                sources,
            }),
            (Some(sources), Endpoint::Standard) => match sources.into_iter().next() {
                Some(LocalSource::Path(source)) => Ok(Self::Out { source }),
                _ => Err(usage(
                    "cannot copy standard input to standard output: one end must be a file or a server",
                )),
            },
            (None, Endpoint::Server(_)) => Err(usage(
                "cannot copy from server to server: third-party copies are not built yet",
            )
            .cure("copy to this machine first, or run haul copy on one of the servers")),
            (None, Endpoint::Standard) => Self::pull(sources, LocalTarget::Stdout),
            (None, Endpoint::Local(to)) => Self::pull(
                sources,
                LocalTarget::Path {
                    path: to.clone(),
                    directory: sources.len() > 1 || ends_in_slash(to),
                    make: sources
                        .iter()
                        .any(|source| matches!(source, Endpoint::Server(from) if from.directory)),
                },
            ),
            (_, Endpoint::Ssh(typed)) => Err(not_built_ssh(typed)),
        }
    }

    /// A pull of `sources`, which must all be of one server.
    fn pull(sources: &[Endpoint], target: LocalTarget) -> Result<Self, Error> {
        let mut paths = Vec::new();
        let mut peers: Vec<&PeerAddress> = Vec::new();
        for source in sources {
            if let Endpoint::Server(from) = source {
                peers.push(&from.peer);
                let mut path = from.path.clone();
                if from.directory {
                    path.push(b'/');
                }
                paths.push(RemoteSource::Path(path));
            }
        }
        match peers.split_first() {
            Some((first, rest)) if rest.iter().all(|peer| peer == first) => Ok(Self::Pull {
                peer: (*first).clone(),
                sources: paths,
                target,
            }),
            _ => Err(usage("cannot copy from several servers at once")
                .cure("run one haul copy for each")),
        }
    }
}

/// `[USER@]HOST:PATH` is understood and refused.
fn refuse_ssh<'a>(mut endpoints: impl Iterator<Item = &'a Endpoint>) -> Result<(), Error> {
    match endpoints.find_map(|endpoint| match endpoint {
        Endpoint::Ssh(typed) => Some(typed),
        _ => None,
    }) {
        Some(typed) => Err(not_built_ssh(typed)),
        None => Ok(()),
    }
}

/// The refusal of one such endpoint.
fn not_built_ssh(typed: &str) -> Error {
    usage(format!(
        "cannot copy to or from {typed}: starting haul over ssh is not built yet"
    ))
    .cure(format!(
        "run haul serve there and write haul://HOST/PATH, or ./{typed} for a file of that name"
    ))
}

/// Standard input has no name of its own, and standard output takes one source.
fn refuse_unnamed(sources: &[Endpoint], target: &Endpoint) -> Result<(), Error> {
    if matches!(target, Endpoint::Standard) && sources.len() > 1 {
        return Err(usage(
            "cannot copy several sources to standard output: several sources need a directory",
        ));
    }
    if !sources.contains(&Endpoint::Standard) {
        return Ok(());
    }
    let into_directory = sources.len() > 1
        || match target {
            Endpoint::Local(to) => ends_in_slash(to) || to.is_dir(),
            Endpoint::Server(to) => to.directory,
            Endpoint::Standard | Endpoint::Ssh(_) => false,
        };
    if into_directory {
        return Err(
            usage("cannot copy standard input into a directory: it has no name there")
                .cure("name the target file, as in DIRECTORY/NAME"),
        );
    }
    Ok(())
}

/// What standard output carries cannot be both data and results.
fn refuse_mixed_output(arguments: &CopyArguments) -> Result<(), Error> {
    for (asked, option) in [
        (arguments.output.json, "--json"),
        (arguments.output.events, "--events"),
        (arguments.output.reports_to_output(), "--report -"),
    ] {
        if asked {
            return Err(usage(format!(
                "cannot use {option} with the target -: standard output carries the data"
            ))
            .cure("write the report to a file with --report FILE"));
        }
    }
    if arguments.transfer.verify {
        return Err(usage(
            "cannot use --verify with the target -: there is no disk to read back from",
        ));
    }
    Ok(())
}

/// Two sources of one name would end as one file.
fn refuse_same_names(sources: &[Endpoint]) -> Result<(), Error> {
    let mut names = HashSet::new();
    for source in sources {
        let name = match source {
            // A directory's contents have names of their own.
            Endpoint::Local(path) if is_contents(&LocalSource::Path(path.clone())) => None,
            Endpoint::Server(server) if server.directory => None,
            Endpoint::Local(path) => path.file_name().map(OsStrExt::as_bytes),
            Endpoint::Server(server) => server.file_name(),
            Endpoint::Standard | Endpoint::Ssh(_) => None,
        };
        if name.is_some_and(|name| !names.insert(name.to_vec())) {
            return Err(usage(format!(
                "cannot copy {} and another source of the same name into one directory",
                source.display()
            )));
        }
    }
    Ok(())
}

/// The sources where all are of this machine; `None` where all are servers'.
fn local_sources(sources: &[Endpoint]) -> Result<Option<Vec<LocalSource>>, Error> {
    let local: Vec<LocalSource> = sources
        .iter()
        .filter_map(|source| match source {
            Endpoint::Local(path) => Some(LocalSource::Path(path.clone())),
            Endpoint::Standard => Some(LocalSource::Stdin),
            Endpoint::Server(_) | Endpoint::Ssh(_) => None,
        })
        .collect();
    match local.len() {
        0 => Ok(None),
        count if count == sources.len() => Ok(Some(local)),
        _ => Err(
            usage("cannot copy from this machine and from a server at once")
                .cure("run one haul copy for each"),
        ),
    }
}

/// A trailing slash says that it must be a directory.
fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// True of a directory whose contents are meant: its name is not used.
fn is_contents(source: &LocalSource) -> bool {
    match source {
        LocalSource::Path(path) => options::is_contents(path.as_os_str().as_bytes()),
        _ => false,
    }
}

/// Connects the two ends and carries the bytes.
fn carry(
    route: Route,
    arguments: &CopyArguments,
    console: &Console,
    interrupts: &Interrupts,
    events: &mut Events,
) -> Result<Report, Error> {
    // Nothing has moved yet, so that there is nothing to stop cleanly.
    let quit = interrupts.clone();
    let said = console.clone();
    interrupts.on_stop(move || {
        said.line("haul: interrupted before anything was sent");
        quit.exit();
    });
    let options = CopyOptions {
        tree: arguments.entries.tree()?,
        rules: arguments.entries.rules(),
        file_events: arguments.output.events,
        ..arguments.transfer.copy()
    };
    let mut pool_options = arguments.transfer.pool();
    if arguments.transfer.connections == Auto::Auto {
        pool_options.connections_on_long_paths = Some(limits::CONNECTIONS_ON_LONG_PATHS);
    }
    let mut beside = None;
    let (peer, origin) = match &route {
        Route::Push { peer, .. } | Route::Pull { peer, .. } => {
            let found = arguments.transfer.token()?;
            let origin = found.as_ref().map(|found| found.origin.clone());
            pool_options.token = found.map(|found| found.token);
            (peer.clone(), Some(origin))
        }
        Route::Here { .. } | Route::Out { .. } => {
            if arguments.transfer.connections == Auto::Auto {
                pool_options.connections = embedded::CONNECTIONS_AUTO;
            }
            let (root, target) = (route.root()?, route.local_target());
            let server = Embedded::start(root, target, &pool_options)?;
            pool_options.token = Some(server.token());
            let peer = server.peer().clone();
            beside = Some(server);
            (peer, None)
        }
    };
    if route.is_in_order() {
        // One worker sees every byte, so that they leave in their order.
        pool_options.workers = Some(1);
    }
    let explain = |error| match &origin {
        Some(origin) => explain_token(error, origin.as_deref()),
        None => error,
    };
    let remote = route.remote_side();
    let mut pool = connect(&peer, pool_options).map_err(&explain)?;
    let transfer = route.start(&mut pool, &options).map_err(&explain)?;
    let output = &arguments.output;
    let sealing = Sealing::of(&options);
    let mut shown = Shown::new(console, output.progress, output.quiet, sealing);
    let followed = follow::follow(transfer, interrupts, &mut shown, events, None, |_| {});
    let mut report = followed.report;
    drop(shown);
    report.error = report.error.map(explain);
    let vanished = report.entries.vanished;
    if arguments.entries.strict && vanished > 0 && report.error.is_none() {
        let sentence = format!("{vanished} files vanished before they were read");
        report.error = Some(Error::new(ErrorKind::Partial, sentence).at(Side::Sender));
    }
    if let Some(side) = remote {
        follow::name_server(&mut report, &peer, side);
    }
    follow::let_go(pool, beside, followed.is_over, interrupts, console);
    Ok(report)
}

/// Connects to `peer`.
fn connect(peer: &PeerAddress, options: PoolOptions) -> Result<Pool, Error> {
    tracing::debug!(
        "connecting to {} port {} with {} data connections",
        peer.host,
        peer.port,
        options.connections
    );
    Pool::connect(peer, options)
}

/// A refused token, with where it came from. What a file lacks authority for
/// has its cure in its sentence.
fn explain_token(error: Error, origin: Option<&str>) -> Error {
    if error.kind != ErrorKind::Unauthorised || error.cure.is_none() {
        return error;
    }
    error.cure(match origin {
        Some(origin) => format!(
            "the token was that of {origin}; give the server's with --token-file FILE or HAUL_TOKEN"
        ),
        None => {
            "no token was proved; give the server's with --token-file FILE or HAUL_TOKEN".to_owned()
        }
    })
}

impl Route {
    /// True when the bytes must leave in their order.
    fn is_in_order(&self) -> bool {
        matches!(
            self,
            Self::Out { .. }
                | Self::Pull {
                    target: LocalTarget::Stdout,
                    ..
                }
        )
    }

    /// Which side a server elsewhere is, where there is one.
    fn remote_side(&self) -> Option<Side> {
        match self {
            Self::Push { .. } => Some(Side::Receiver),
            Self::Pull { .. } => Some(Side::Sender),
            Self::Here { .. } | Self::Out { .. } => None,
        }
    }

    /// The embedded server's root.
    fn root(&self) -> Result<PathBuf, Error> {
        match self {
            Self::Here {
                sources,
                target,
                directory,
                make,
            } => {
                let (root, _) = place(target, *directory, *make)?;
                refuse_onto_itself(sources, target)?;
                Ok(root)
            }
            Self::Out { source } => Ok(resolved(source)?.0),
            Self::Push { .. } | Self::Pull { .. } => Err(usage("this copy has no embedded server")),
        }
    }

    /// Where the embedded server puts what is pushed: as the user typed it.
    fn local_target(&self) -> Option<LocalTarget> {
        match self {
            Self::Here {
                target,
                directory,
                make,
                ..
            } => Some(LocalTarget::Path {
                path: target.clone(),
                directory: *directory,
                make: *make,
            }),
            _ => None,
        }
    }

    /// Starts the transfer over `pool`.
    fn start(
        self,
        pool: &mut Pool,
        options: &haul_engine::options::CopyOptions,
    ) -> Result<Transfer, Error> {
        match self {
            Self::Push {
                sources, target, ..
            } => pool.push(sources, target, options),
            Self::Pull {
                sources, target, ..
            } => pool.pull(sources, target, options),
            Self::Here {
                sources,
                target,
                directory,
                make,
            } => {
                let (_, target) = place(&target, directory, make)?;
                pool.push(sources, target, options)
            }
            Self::Out { source } => {
                let (_, name) = resolved(&source)?;
                pool.pull(vec![RemoteSource::Path(name)], LocalTarget::Stdout, options)
            }
        }
    }
}

/// A local target as a root and what is below it.
fn place(target: &Path, directory: bool, make: bool) -> Result<(PathBuf, RemoteTarget), Error> {
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
fn resolved(source: &Path) -> Result<(PathBuf, Vec<u8>), Error> {
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

/// A file that is told into is no end of the copy, nor told into twice.
fn refuse_shared_outputs(arguments: &CopyArguments, output: &OutputOptions) -> Result<(), Error> {
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
    for (option, path) in [("--report", &output.report), ("--hdr-log", &output.hdr_log)] {
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

/// cp's rule: a file is not copied onto itself, nor a directory into itself.
fn refuse_onto_itself(sources: &[LocalSource], target: &Path) -> Result<(), Error> {
    for named in sources {
        let LocalSource::Path(source) = named else {
            continue;
        };
        let end = match source.file_name() {
            Some(name) if target.is_dir() && !is_contents(named) => target.join(name),
            _ => target.to_owned(),
        };
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

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
