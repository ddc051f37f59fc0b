//! What was typed: the subcommands, their options and their help.
//!
//! Leaves to others: everything that needs the disk, the network or another
//! option (each subcommand checks what it combines). Invariant: a value that
//! passed here is in its range, and what did not pass is one sentence.

use crate::clean::{self, CleanArguments};
use crate::console::When;
use crate::endpoint::{Endpoint, PORT_DEFAULT};
use crate::entries::EntryOptions;
use crate::size;
use crate::token::{self, FoundToken};
use crate::verify::{self, VerifyArguments};
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use haul_engine::Error;
use haul_engine::error::why;
use haul_engine::limits;
use haul_engine::options::{Congestion, CopyOptions, PassOver, PoolOptions, TargetRules, Transmit};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// What every page of help ends with.
const UNITS_HELP: &str = "\
Sizes:  a number of bytes, or with KiB, MiB, GiB (powers of 1024) or kB, MB, GB
        (powers of 1000). Rates: bytes per second, with the same suffixes.";

/// The exit codes, which scripts rely on.
const CODES_HELP: &str = "\
Exit codes:
  0    everything reached the level asked for
  1    a local fault at either end: disk full, permission, I/O
  2    usage
  3    connection or peer: refused, lost, broke the protocol
  4    incompatible versions, or a kernel without what is needed
  5    integrity: what arrived differs, the source changed while it was read, or a file is
       not as its manifest says
  6    not authorised
  23   some files failed, the rest are sealed
  130  interrupted (143 by SIGTERM, 129 by SIGHUP)";

/// Ways to copy.
const COPY_HELP: &str = "\
Endpoints:
  PATH                      a file of this machine; write ./a:b for a name with a colon
  haul://HOST[:PORT]/PATH   below the root of a haul serve (port 7400 unless named;
                            [::1] for IPv6; PATH is taken as it is typed)
  [USER@]HOST:PATH          haul over ssh (not built yet)
  -                         standard input as SOURCE, standard output as TARGET

Examples:
  haul copy disk.img /backup/                     both ends here, over loopback
  haul copy disk.img haul://server/images/        push, sealed on the server's disk
  haul copy -x /srv haul://new/                   a whole tree, as srv
  haul copy /srv/ haul://new/srv                  its contents; again: what changed
  haul copy --delete --dry-run /srv/ haul://new/srv   what a mirroring run would do
  haul copy haul://server/images/disk.img .       pull
  haul copy -n 8 --limit-rate 50MB big haul://server/big
  tar c dir | haul copy - haul://server/dir.tar   a stream of unknown length
  haul copy --json --verify a b | jq .goodput_bytes_per_second";

/// Ways to serve.
const SERVE_HELP: &str = "\
Examples:
  haul serve --root /srv/images                      this machine only: 127.0.0.1:7400
  haul serve --root /srv/images --listen '[::]:7400' every address, IPv4 and IPv6
  haul serve --root /srv --listen 10.0.0.5 --token-file /etc/haul/token

Every peer proves the token, on loopback too. Without --token-file it is kept in
$XDG_RUNTIME_DIR/haul/token, else $HOME/.local/state/haul/token, where the same
user's haul copy finds it; elsewhere give copy --token-file, or HAUL_TOKEN.";

/// Ways to measure.
const BENCH_HELP: &str = "\
Without options: 587 MiB made in a temporary folder, copied file to file to an
embedded receiver over loopback, checked, and compared afterwards.

Examples:
  haul bench
  haul bench --runs 5 --sweep connections=1,2,4,8:chunk=64KiB,256KiB,1MiB
  haul bench --source random --sink null --seconds 10
  haul bench --to haul://server --seconds 10 --interval 1     like iperf3 -c
  haul bench --to haul://server --seconds 10 --reverse        like iperf3 -c -R
  haul bench --json | jq .summary
A server must run with --allow-null for null sinks and generated sources.";

/// haul moves files between Linux servers as fast as the link, the disk and
/// the kernel allow, and says honestly how it went.
#[derive(Debug, Parser)]
#[command(name = "haul", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = CODES_HELP, subcommand_required = true, arg_required_else_help = false)]
pub struct Arguments {
    /// What applies to every subcommand.
    #[command(flatten)]
    pub general: General,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every subcommand.
#[derive(Clone, Debug, Args)]
pub struct General {
    /// Say more on standard error (-vv: still more; HAUL_LOG=FILTER: exactly that)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Colour the messages
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub color: When,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy files and whole directories, in either direction
    #[command(after_help = format!("{COPY_HELP}\n\n{UNITS_HELP}\n\n{CODES_HELP}"))]
    Copy(CopyArguments),
    /// Accept transfers below a folder
    #[command(after_help = format!("{SERVE_HELP}\n\n{UNITS_HELP}\n\n{CODES_HELP}"))]
    Serve(ServeArguments),
    /// Measure: file to file over loopback, or to a server
    #[command(after_help = format!("{BENCH_HELP}\n\n{UNITS_HELP}\n\n{CODES_HELP}"))]
    Bench(BenchArguments),
    /// Remove temporary files that no running transfer holds
    #[command(after_help = format!("{}\n\n{CODES_HELP}", clean::HELP))]
    Clean(CleanArguments),
    /// Hold the files of a directory against a manifest of their digests
    #[command(after_help = format!("{}\n\n{CODES_HELP}", verify::HELP))]
    Verify(VerifyArguments),
    /// What this kernel and machine offer, what slows haul here, and the cures
    Doctor(DoctorArguments),
    /// Write a shell's completions to standard output
    Completions(CompletionsArguments),
    /// Write the manual page (of a subcommand) to standard output
    Man(ManArguments),
}

/// `haul copy`.
#[derive(Debug, Args)]
pub struct CopyArguments {
    /// What to copy: files, directories, or with a slash at its end a directory's contents
    #[arg(required = true, value_name = "SOURCE")]
    #[arg(value_parser = OsStringValueParser::new().try_map(|text| Endpoint::parse(&text)))]
    pub sources: Vec<Endpoint>,
    /// Where to; several sources need a directory
    #[arg(value_name = "TARGET")]
    #[arg(value_parser = OsStringValueParser::new().try_map(|text| Endpoint::parse(&text)))]
    pub target: Endpoint,
    /// What of trees and entries.
    #[command(flatten)]
    pub entries: EntryOptions,
    /// How.
    #[command(flatten)]
    pub transfer: TransferOptions,
    /// What to tell.
    #[command(flatten)]
    pub output: OutputOptions,
}

/// How bytes move; the same for `copy` and `bench`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Transfer")]
pub struct TransferOptions {
    /// Data connections, 1 to 128; auto is 4, 1 for a copy within this machine, 8 where a round
    /// trip takes over 10 ms
    #[arg(short = 'n', long, value_name = "N|auto", default_value = "auto")]
    #[arg(value_parser = parse_connections)]
    pub connections: Auto<u32>,
    /// Unit of scheduling and checking: a power of two from 64KiB to 4MiB
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = parse_chunk)]
    pub chunk_size: u32,
    /// How bytes leave; auto moves each connection by what is measured
    #[arg(long, value_name = "PATH", value_enum, default_value = "auto")]
    pub transmit: TransmitName,
    /// Both socket buffers; auto leaves the kernel's autotuning on where it reaches 4MiB
    #[arg(long, value_name = "auto|SIZE", default_value = "auto", value_parser = parse_buffer)]
    pub socket_buffer: Auto<u64>,
    /// Payload bytes per second, over all connections together (at most one for each 2 MB/s)
    #[arg(long, value_name = "RATE", value_parser = size::parse_rate)]
    pub limit_rate: Option<u64>,
    /// The local address to connect from
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub bind: Option<IpAddr>,
    /// Congestion control of the data connections
    #[arg(long, value_name = "auto|NAME", default_value = "auto", value_parser = parse_congestion)]
    pub congestion: Auto<String>,
    /// Neither file nor folder is synced: the file ends as placed, not sealed
    #[arg(long)]
    pub no_fsync: bool,
    /// Read the target back from its disk and compare
    #[arg(long)]
    pub verify: bool,
    /// Leave neither end's page cache full
    #[arg(long)]
    pub drop_cache: bool,
    /// The token to prove (else HAUL_TOKEN, else the one that serve left for this user)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Prove no token, for servers with --allow-unauthenticated
    #[arg(long, conflicts_with = "token_file")]
    pub no_token: bool,
}

/// What is told, and where to.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputOptions {
    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Show progress of landed bytes; without a terminal, always writes a line a second
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub progress: When,
    /// Write one final JSON object to standard output
    #[arg(long)]
    pub json: bool,
    /// Write a JSON object a line to standard output while it runs
    #[arg(long)]
    pub events: bool,
    /// Write the final JSON object to FILE, too; - is standard output
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write the latencies to FILE.hlog (interval log) or FILE.hgrm (percentiles)
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
}

impl OutputOptions {
    /// True where the report's JSON goes to standard output by name.
    #[must_use]
    pub fn reports_to_output(&self) -> bool {
        self.report.as_deref().is_some_and(is_output)
    }

    /// True where standard output carries something for programs.
    #[must_use]
    pub fn is_for_programs(&self) -> bool {
        self.json || self.events || self.reports_to_output()
    }
}

/// `-`, which names standard output.
#[must_use]
pub fn is_output(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// `haul serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Nothing outside DIR is listed, read or written
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// Where to listen, any number of times: ADDR or ADDR:PORT, an IPv6 address
    /// in brackets; port 0 lets the kernel choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400", value_parser = parse_listen)]
    pub listen: Vec<Listen>,
    /// The token that peers prove; written there if FILE does not exist
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve peers without a token, too
    #[arg(long)]
    pub allow_unauthenticated: bool,
    /// Serve null sinks and generated sources, too (for haul bench --to)
    #[arg(long)]
    pub allow_null: bool,
    /// Both socket buffers
    #[arg(long, value_name = "auto|SIZE", default_value = "auto", value_parser = parse_buffer)]
    pub socket_buffer: Auto<u64>,
    /// Congestion control of the data connections when this end sends
    #[arg(long, value_name = "auto|NAME", default_value = "auto", value_parser = parse_congestion)]
    pub congestion: Auto<String>,
    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// `haul bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// A server to measure to; without it an embedded receiver on loopback
    #[arg(long, value_name = "haul://HOST[:PORT][/PATH]")]
    #[arg(value_parser = OsStringValueParser::new().try_map(|text| Endpoint::parse(&text)))]
    pub to: Option<Endpoint>,
    /// Where bytes come from: a file, random or zero [default: a file made for it; random
    /// with --to or --seconds]
    #[arg(long, value_name = "FILE|random|zero")]
    pub source: Option<PathBuf>,
    /// Where bytes go [default: file; null with --to or --seconds]
    #[arg(long, value_enum, value_name = "file|null")]
    pub sink: Option<SinkName>,
    /// Send for T seconds (a generated source)
    #[arg(long, value_name = "T", value_parser = size::parse_seconds, conflicts_with = "bytes")]
    pub seconds: Option<f64>,
    /// Send SIZE bytes [default: 587MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub bytes: Option<u64>,
    /// Runs of each configuration
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// Seconds of one interval in the report
    #[arg(long, value_name = "T", default_value = "1", value_parser = size::parse_seconds)]
    pub interval: f64,
    /// Measure the other direction: the server, or the embedded end, sends
    #[arg(long)]
    pub reverse: bool,
    /// Every combination: connections=1,2,4:chunk=64KiB,1MiB
    #[arg(long, value_name = "KEY=A,B:KEY=A,B", value_parser = parse_sweep)]
    pub sweep: Option<Sweep>,
    /// Where files are made [default: /dev/shm where it has room, else TMPDIR]
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// How.
    #[command(flatten)]
    pub transfer: TransferOptions,
    /// What to tell.
    #[command(flatten)]
    pub output: OutputOptions,
}

/// `haul doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Write one JSON object to standard output
    #[arg(long)]
    pub json: bool,
}

/// `haul completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `haul man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// The subcommand whose page to write; haul's own without one
    pub command: Option<String>,
}

/// A value, or haul's own choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auto<T> {
    /// haul chooses.
    Auto,
    /// The user chose.
    Value(T),
}

impl<T: Clone> Auto<T> {
    /// What the user chose.
    #[must_use]
    pub fn chosen(&self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Value(value) => Some(value.clone()),
        }
    }
}

/// `--transmit`'s values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransmitName {
    /// By what is measured.
    Auto,
    /// SENDMSG_ZC from the mapping.
    Zerocopy,
    /// Page-cache pages by reference.
    Splice,
    /// The kernel copies into the socket.
    Copy,
}

/// `--sink`'s values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SinkName {
    /// A file, deleted afterwards where it is this machine's.
    File,
    /// Verified, counted and forgotten.
    Null,
}

/// The addresses of one `--listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen(pub Vec<SocketAddr>);

/// What `--sweep` varies; empty where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Counts of connections.
    pub connections: Vec<u32>,
    /// Chunk sizes in bytes.
    pub chunk_bytes: Vec<u32>,
}

impl TransferOptions {
    /// The token to prove to a server.
    ///
    /// # Errors
    /// One that was given, or found, cannot be used.
    pub fn token(&self) -> Result<Option<FoundToken>, Error> {
        if self.no_token {
            return Ok(None);
        }
        token::find(self.token_file.as_deref())
    }

    /// The pool's half of the options, without the token.
    #[must_use]
    pub fn pool(&self) -> PoolOptions {
        PoolOptions {
            connections: self
                .connections
                .chosen()
                .unwrap_or(limits::CONNECTIONS_DEFAULT),
            socket_buffer_bytes: self.socket_buffer.chosen(),
            rate_limit_bytes_per_second: self.limit_rate,
            bind: self.bind,
            congestion: congestion(&self.congestion),
            ..PoolOptions::default()
        }
    }

    /// The copy's half.
    #[must_use]
    pub fn copy(&self) -> CopyOptions {
        CopyOptions {
            chunk_bytes: self.chunk_size,
            transmit: match self.transmit {
                TransmitName::Auto => Transmit::Auto,
                TransmitName::Zerocopy => Transmit::Zerocopy,
                TransmitName::Splice => Transmit::Splice,
                TransmitName::Copy => Transmit::Copy,
            },
            fsync: !self.no_fsync,
            verify: self.verify,
            drop_cache: self.drop_cache,
            digest: None,
            // Whoever measures sends everything.
            rules: TargetRules {
                pass_over: PassOver::Nothing,
                ..TargetRules::default()
            },
            ..CopyOptions::default()
        }
    }
}

/// The engine's words for `--congestion`.
#[must_use]
pub fn congestion(choice: &Auto<String>) -> Congestion {
    match choice {
        Auto::Auto => Congestion::Auto,
        Auto::Value(name) => Congestion::Named(name.clone()),
    }
}

/// `-n`.
fn parse_connections(text: &str) -> Result<Auto<u32>, String> {
    if text == "auto" {
        return Ok(Auto::Auto);
    }
    match text.parse::<u32>() {
        Ok(count) if (1..=limits::CONNECTIONS_MAX).contains(&count) => Ok(Auto::Value(count)),
        _ => Err(format!("write 1 to {} or auto", limits::CONNECTIONS_MAX)),
    }
}

/// `--chunk-size`.
fn parse_chunk(text: &str) -> Result<u32, String> {
    let bytes = size::parse_size(text)?;
    let range = u64::from(limits::CHUNK_BYTES_MIN)..=u64::from(limits::CHUNK_BYTES_MAX);
    match u32::try_from(bytes) {
        Ok(chunk) if chunk.is_power_of_two() && range.contains(&bytes) => Ok(chunk),
        _ => Err(format!(
            "a chunk is a power of two from {} to {}",
            size::format_size(limits::CHUNK_BYTES_MIN.into()),
            size::format_size(limits::CHUNK_BYTES_MAX.into())
        )),
    }
}

/// `--socket-buffer`: what setsockopt's int can say.
fn parse_buffer(text: &str) -> Result<Auto<u64>, String> {
    if text == "auto" {
        return Ok(Auto::Auto);
    }
    match size::parse_size(text)? {
        bytes @ 4_096..=1_073_741_824 => Ok(Auto::Value(bytes)),
        _ => Err("a socket buffer is 4 KiB to 1 GiB, or auto".to_owned()),
    }
}

/// `--bind`.
fn parse_address(text: &str) -> Result<IpAddr, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse()
        .map_err(|_| "write an IPv4 or IPv6 address without a port".to_owned())
}

/// `--congestion`: what the kernel could call an algorithm.
fn parse_congestion(text: &str) -> Result<Auto<String>, String> {
    if text == "auto" {
        return Ok(Auto::Auto);
    }
    let plausible = (1..=15).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if plausible {
        Ok(Auto::Value(text.to_owned()))
    } else {
        Err(
            "write auto, or a name from /proc/sys/net/ipv4/tcp_available_congestion_control"
                .to_owned(),
        )
    }
}

/// `--bytes`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    match size::parse_size(text)? {
        0 => Err("0 bytes measure nothing".to_owned()),
        bytes => Ok(bytes),
    }
}

/// `--listen`: an address with or without a port, or a name.
fn parse_listen(text: &str) -> Result<Listen, String> {
    if let Ok(address) = parse_address(text) {
        return Ok(Listen(vec![SocketAddr::new(address, PORT_DEFAULT)]));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Listen(vec![address]));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (
            host,
            port.parse::<u16>()
                .map_err(|_| format!("\"{port}\" is not a port from 0 to 65535"))?,
        ),
        None => (text, PORT_DEFAULT),
    };
    if host.is_empty() || host.contains([':', '[', ']']) {
        return Err(
            "write ADDR, ADDR:PORT, [V6] or [V6]:PORT; [::]:7400 is every address".to_owned(),
        );
    }
    let mut addresses: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("cannot resolve \"{host}\": {}", why(error)))?
        .collect();
    addresses.dedup();
    Ok(Listen(addresses))
}

/// `--sweep`.
fn parse_sweep(text: &str) -> Result<Sweep, String> {
    let mut sweep = Sweep::default();
    for part in text.split(':') {
        let (key, values) = part
            .split_once('=')
            .ok_or_else(|| format!("\"{part}\" is not KEY=A,B; keys are connections and chunk"))?;
        for value in values.split(',') {
            match key {
                "connections" => match parse_connections(value)? {
                    Auto::Value(count) => sweep.connections.push(count),
                    Auto::Auto => return Err("a sweep needs numbers, not auto".to_owned()),
                },
                "chunk" => sweep.chunk_bytes.push(parse_chunk(value)?),
                _ => {
                    return Err(format!(
                        "\"{key}\" cannot be swept; keys are connections and chunk"
                    ));
                }
            }
        }
    }
    Ok(sweep)
}

/// "haul copy", from the first subcommand that was typed.
pub fn used_command(typed: &[OsString]) -> String {
    let definition = Arguments::command();
    typed
        .iter()
        .skip(1)
        .filter_map(|word| definition.find_subcommand(word))
        .map(|subcommand| format!("haul {}", subcommand.get_name()))
        .next()
        .unwrap_or_else(|| "haul".to_owned())
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
