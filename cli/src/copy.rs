//! `haul copy`: which ends there are, and the transfer between them.
//!
//! Leaves to others: following and telling (follow.rs). Invariant: what cannot
//! be meant or is not built is refused before anything is connected or made.

use crate::arguments::{Auto, CopyArguments, is_output};
use crate::console::{Console, fault, require_output, usage};
use crate::dry_run::DryRun;
use crate::embedded::{self, Embedded};
use crate::endpoint::Endpoint;
use crate::ends::{
    ends_in_slash, is_contents, place, refuse_deleting_source, refuse_onto_itself,
    refuse_shared_outputs, refuse_sharing, resolved,
};
use crate::events::Events;
use crate::follow::{self, Outputs};
use crate::interrupt::Interrupts;
use crate::keep_manifest::KeptManifest;
use crate::listed;
use crate::progress::{Sealing, Shown};
use haul_engine::kernel::standard::{Standard, was_closed};
use haul_engine::limits;
use haul_engine::options;
use haul_engine::options::names::{NameList, ReadNames};
use haul_engine::options::{
    CopyOptions, LocalSource, LocalTarget, PoolOptions, RemoteSource, RemoteTarget, TreeOptions,
};
use haul_engine::report::Report;
use haul_engine::{Error, ErrorKind, PeerAddress, Pool, Side, Transfer};
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
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
    if arguments.entries.dry_run {
        events.list(DryRun::new(console, !output.is_for_programs()));
    }
    let mut outputs = None;
    let report = Route::plan(arguments)
        .and_then(|route| {
            let list = arguments.entries.files_from.as_deref();
            let list = list.map(|path| listed::read(path, arguments.entries.null));
            let list = list.transpose()?;
            refuse_shared_outputs(arguments, &output)?;
            // Made only when the copy makes sense, but before anything moves.
            outputs = Some(Outputs::create(&output)?);
            if let Some(path) = &arguments.entries.manifest {
                let kind = arguments.entries.digest.into();
                events.keep(KeptManifest::create(path, kind, own_name(arguments))?);
            }
            carry(route, list, arguments, console, interrupts, &mut events)
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
        let target = &arguments.target;
        let of_list = match arguments.entries.files_from {
            Some(_) => Some([listed::directory(&arguments.sources)?]),
            None => None,
        };
        let sources = of_list.as_ref().map_or(&arguments.sources[..], |one| one);
        refuse_ssh(sources.iter().chain([target]))?;
        refuse_unnamed(sources, target)?;
        refuse_deleting(arguments)?;
        refuse_two_outputs(arguments)?;
        refuse_sharing(arguments)?;
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
        let local = local_sources(sources)?;
        let removing = match &arguments.entries {
            entries if entries.delete => Some("--delete"),
            entries => entries.force.then_some("--force"),
        };
        if let (Some(option), Some(sources), Endpoint::Local(to)) = (removing, &local, target) {
            refuse_deleting_source(option, sources, to)?;
        }
        match (local, target) {
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

/// What is superfluous is told by one source for each directory of the target.
fn refuse_deleting(arguments: &CopyArguments) -> Result<(), Error> {
    let is_stream = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Standard);
    let is_streamed = || {
        arguments
            .sources
            .iter()
            .chain([&arguments.target])
            .any(is_stream)
    };
    if arguments.entries.dry_run && is_streamed() {
        return Err(usage(
            "cannot use --dry-run with a stream: what comes is not known before",
        ));
    }
    if !arguments.entries.delete {
        return Ok(());
    }
    if is_streamed() {
        return Err(usage(
            "cannot use --delete with a stream: only directories hold names",
        ));
    }
    let is_contents = |endpoint: &Endpoint| match endpoint {
        Endpoint::Local(path) => options::is_contents(path.as_os_str().as_bytes()),
        Endpoint::Server(server) => server.directory,
        Endpoint::Standard | Endpoint::Ssh(_) => false,
    };
    if arguments.sources.len() > 1 && arguments.sources.iter().any(is_contents) {
        return Err(usage(
            "cannot use --delete with a directory's contents and another source: each would delete the other's",
        )
        .cure("run one haul copy for each, into a directory of its own"));
    }
    Ok(())
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

/// Standard output takes one thing for programs.
fn refuse_two_outputs(arguments: &CopyArguments) -> Result<(), Error> {
    let manifest = arguments.entries.manifest.as_deref();
    if manifest.is_some_and(is_output) && arguments.output.is_for_programs() {
        return Err(usage(
            "cannot use --manifest - with --json, --events or --report -: both write to standard output",
        )
        .cure("leave one out, or name a file"));
    }
    Ok(())
}

/// The last component of a target, which may be its only file's name.
fn own_name(arguments: &CopyArguments) -> Vec<u8> {
    let name = match &arguments.target {
        Endpoint::Local(path) => path.file_name().map(OsStrExt::as_bytes),
        Endpoint::Server(server) => server.file_name(),
        Endpoint::Standard | Endpoint::Ssh(_) => None,
    };
    name.unwrap_or_default().to_vec()
}

/// What standard output carries cannot be both data and results.
fn refuse_mixed_output(arguments: &CopyArguments) -> Result<(), Error> {
    for (asked, option) in [
        (arguments.output.json, "--json"),
        (arguments.output.events, "--events"),
        (arguments.output.reports_to_output(), "--report -"),
        (arguments.entries.manifest.is_some(), "--manifest"),
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

/// Connects the two ends and carries the bytes.
fn carry(
    route: Route,
    list: Option<ReadNames>,
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
    if let Some(list) = list.as_ref().filter(|_| !arguments.output.quiet) {
        listed::tell(list, console);
    }
    // All of it is a copy without a list.
    let names = list.filter(|list| !list.is_whole).map(|list| list.names);
    let options = CopyOptions {
        tree: TreeOptions {
            listed: names.is_some(),
            ..arguments.entries.tree()?
        },
        rules: arguments.entries.rules(),
        file_events: arguments.output.events
            || arguments.entries.dry_run
            || arguments.entries.manifest.is_some(),
        digest: arguments.entries.digest(),
        reflink: arguments.entries.reflink(),
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
    let route = match names {
        Some(names) => route.with_names(names),
        None => route,
    };
    if let Some(beside) = &beside {
        pool.share_blocks(beside.reflinks());
    }
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

    /// The same, of what `names` names in its only directory.
    fn with_names(mut self, names: NameList) -> Self {
        match &mut self {
            Self::Push { sources, .. } | Self::Here { sources, .. } => {
                sources.push(LocalSource::Names(names));
            }
            Self::Pull { sources, .. } => sources.push(RemoteSource::Names(names)),
            Self::Out { .. } => {}
        }
        self
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

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
