//! What a user may choose about a session and a transfer, in plain values.
//!
//! Leaves to others: parsing (the command line) and obeying (the rooms below).
//! Invariant: `Default` is what the command line does without an option.

pub mod names;

use crate::limits;
use names::NameList;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl std::fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How bytes leave for a socket (`--transmit`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transmit {
    /// Start on what the route suggests, move by what is measured.
    #[default]
    Auto,
    /// SENDMSG_ZC from the mapping.
    Zerocopy,
    /// Page-cache pages by reference, through a pipe.
    Splice,
    /// SENDMSG: the kernel copies into the socket.
    Copy,
}

/// The congestion control of the data connections (`--congestion`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// cubic on loopback and short paths, bbr on long or lossy ones where allowed.
    #[default]
    Auto,
    /// What tcp_available_congestion_control calls it; an error if it is refused.
    Named(String),
}

/// How connections to a peer are made; fixed for a pool's life.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Data connections to open.
    pub connections: u32,
    /// Data connections to open instead where a round trip takes more than
    /// [`limits::LONG_PATH_US`]; `None` opens as many as everywhere.
    pub connections_on_long_paths: Option<u32>,
    /// Both socket buffers in bytes; `None` leaves the kernel's autotuning on
    /// where its limits reach 4 MiB.
    pub socket_buffer_bytes: Option<u64>,
    /// Payload bytes per second over all connections together.
    pub rate_limit_bytes_per_second: Option<u64>,
    /// The local address to connect from.
    pub bind: Option<IpAddr>,
    /// The data connections' congestion control.
    pub congestion: Congestion,
    /// The token to prove; `None` tries without one.
    pub token: Option<Token>,
    /// Worker threads for each direction; `None` decides by the machine's cores.
    pub workers: Option<usize>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            connections: limits::CONNECTIONS_DEFAULT,
            connections_on_long_paths: None,
            socket_buffer_bytes: None,
            rate_limit_bytes_per_second: None,
            bind: None,
            congestion: Congestion::Auto,
            token: None,
            workers: None,
        }
    }
}

/// The secret that peers prove to each other; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub [u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// How trees are read, and what is kept of each entry besides its bytes, its mode
/// and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeOptions {
    /// To whom it belongs, as far as the receiver may.
    pub owners: bool,
    /// By number, also where both ends know a user's or a group's name.
    pub numeric_ids: bool,
    /// Extended attributes, access control lists and capabilities.
    pub attributes: bool,
    /// Directories on other file systems than that of their source are left empty.
    pub one_file_system: bool,
    /// What symbolic links lead to is copied in their place; below a server's root only
    /// those that stay there.
    pub follow: bool,
    /// Of the only source, a directory, what lists name.
    pub listed: bool,
    /// What is left out: the last rule that fits decides.
    pub filters: Vec<FilterRule>,
}

/// One rule of what is left out of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRule {
    /// As git's ignore files have them, from the directory that was named.
    pub pattern: String,
    /// What fits is left out; else it is taken, whatever an earlier rule said.
    pub excludes: bool,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            owners: true,
            numeric_ids: false,
            attributes: true,
            one_file_system: false,
            follow: false,
            listed: false,
            filters: Vec::new(),
        }
    }
}

/// What is written, by what the target has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRules {
    /// Files that the target has already.
    pub pass_over: PassOver,
    /// Nothing is made that is not there.
    pub only_existing: bool,
    /// Nothing is replaced that is there; directories are gone into.
    pub only_missing: bool,
    /// A file that is newer than its source stays.
    pub only_older: bool,
    /// What is superfluous goes in the end, and what is of another kind gives way.
    pub deletes: Option<DeleteRules>,
    /// What is of another kind gives way, directories with all that is in them.
    pub force: bool,
    /// Nothing is written; it is only told what would be done with each entry.
    pub only_tell: bool,
}

/// What is deleted in the end because the source has it not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRules {
    /// At most so many files and directories; where there are more, none.
    pub count_max: Option<u64>,
    /// What patterns leave out, too.
    pub left_out: bool,
    /// Also all of a target whose source is empty.
    pub everything: bool,
    /// Nothing goes; it is only told what would.
    pub only_tell: bool,
}

/// Which files are passed over because the target has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassOver {
    /// Those of the same size and modification time.
    #[default]
    Unchanged,
    /// Those that hold the same bytes, by the digests that both ends make.
    SameContent,
    /// None: every file is sent.
    Nothing,
}

/// What one copy asks for.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// A power of two from [`limits::CHUNK_BYTES_MIN`] to [`limits::CHUNK_BYTES_MAX`].
    pub chunk_bytes: u32,
    /// How bytes leave.
    pub transmit: Transmit,
    /// fsync before the rename, and the directory after it.
    pub fsync: bool,
    /// Read the target back from its disk and compare.
    pub verify: bool,
    /// Leave neither end's page cache full.
    pub drop_cache: bool,
    /// Each file's end tells its digest, which the receiver makes as it lands.
    pub digest: Option<DigestKind>,
    /// What of trees and entries.
    pub tree: TreeOptions,
    /// What is written, by what the target has.
    pub rules: TargetRules,
    /// Each file's end is an event.
    pub file_events: bool,
    /// Of a push: whether files share their blocks with their sources.
    pub reflink: Reflink,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            chunk_bytes: limits::CHUNK_BYTES_DEFAULT,
            transmit: Transmit::Auto,
            fsync: true,
            verify: false,
            drop_cache: false,
            digest: None,
            tree: TreeOptions::default(),
            rules: TargetRules::default(),
            file_events: true,
            reflink: Reflink::Auto,
        }
    }
}

/// How a file's digest is computed; each has 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DigestKind {
    /// BLAKE3, of which many threads can compute parts.
    #[default]
    Blake3,
    /// SHA-256, which only one thread can compute, from the first byte on.
    Sha256,
}

impl DigestKind {
    /// What programs call it: "blake3" or "sha256".
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }
}

impl std::fmt::Display for DigestKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blake3 => "BLAKE3",
            Self::Sha256 => "SHA-256",
        })
    }
}

/// Whether files share their blocks with their sources, by FICLONE, where the peer is a
/// server in this process that was given the same [`Reflinks`](crate::Reflinks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reflink {
    /// Where it is possible; others are copied. With [`CopyOptions::verify`] none do, as
    /// only what was written can be read back.
    #[default]
    Auto,
    /// A file that cannot fails.
    Always,
    /// None do.
    Never,
}

/// What generated bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Incompressible bytes, the same for the same offset.
    Random,
    /// Zeros.
    Zero,
}

/// Where the local end's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalSource {
    /// A file or a directory; one that ends in a slash means its contents.
    Path(PathBuf),
    /// Names in the directory before it, with [`TreeOptions::listed`].
    Names(NameList),
    /// Standard input, or any descriptor's stream, of unknown length.
    Stdin,
    /// Bytes made on the fly; `None` goes on until the transfer is stopped by
    /// [`crate::StopHandle::finish`].
    Generated {
        /// What they look like.
        pattern: Pattern,
        /// How many.
        bytes: Option<u64>,
    },
}

/// True of a path that means what is in a directory: it ends in a slash, or names the
/// directory by where it is.
#[must_use]
pub fn is_contents(path: &[u8]) -> bool {
    let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    matches!(last, b"" | b"." | b"..")
}

/// Where the local end's bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTarget {
    /// A file, or a directory that takes the files inside it.
    Path {
        /// As typed.
        path: PathBuf,
        /// Several sources, or a trailing slash: it must be a directory.
        directory: bool,
        /// A missing directory is made: where a source's contents go.
        make: bool,
    },
    /// Standard output, in order.
    Stdout,
    /// Verified, counted and forgotten.
    Null,
}

/// What a peer is asked to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemoteSource {
    /// A file or a directory below the peer's root; one that ends in a slash means its
    /// contents, and a slash alone those of the root.
    Path(Vec<u8>),
    /// Names in the directory before it, with [`TreeOptions::listed`].
    Names(NameList),
    /// Bytes made on the fly; as [`LocalSource::Generated`].
    Generated {
        /// What they look like.
        pattern: Pattern,
        /// How many.
        bytes: Option<u64>,
    },
}

/// Where a peer is asked to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemoteTarget {
    /// A file or a directory below the peer's root.
    Path {
        /// Relative to the root; empty is the root itself.
        path: Vec<u8>,
        /// It must be a directory.
        directory: bool,
        /// A missing directory is made: where a source's contents go.
        make: bool,
    },
    /// Verified, counted and forgotten; the peer must allow it.
    Null,
}

/// What a server offers.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Nothing outside is listed, read or written.
    pub root: PathBuf,
    /// Where every push goes, whatever its peer names: for a server within the
    /// process that asks for the copy.
    pub local_target: Option<LocalTarget>,
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: Vec<std::net::SocketAddr>,
    /// What every peer must prove; `None` only with `allow_unauthenticated`.
    pub token: Option<Token>,
    /// Peers without a token are served too.
    pub allow_unauthenticated: bool,
    /// Null sinks and generated sources are served: measuring costs no disk.
    pub allow_null: bool,
    /// Both socket buffers in bytes; `None` leaves autotuning on.
    pub socket_buffer_bytes: Option<u64>,
    /// The data connections' congestion control when this end sends.
    pub congestion: Congestion,
    /// Worker threads of each session and direction; `None` decides.
    pub workers: Option<usize>,
}
