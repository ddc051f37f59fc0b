//! A server in a fresh directory, files to copy, and a relay that harms what
//! passes through it.
//!
//! Leaves to others: what is expected. Invariant: every port is chosen by the
//! kernel, every directory is fresh and gone at the end.

use haul_engine::options::{Congestion, CopyOptions, LocalSource, PoolOptions, RemoteTarget};
use haul_engine::options::{ServeOptions, Token};
use haul_engine::report::Report;
use haul_engine::{PeerAddress, Pool, Server, Transfer};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The token of all servers here.
pub const TOKEN: Token = Token([7; 32]);

/// A server with its root, and a directory for sources.
pub struct Site {
    pub directory: tempfile::TempDir,
    pub server: Server,
}

impl Site {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut ServeOptions)) -> Self {
        let directory = tempfile::tempdir().expect("a fresh directory");
        std::fs::create_dir(directory.path().join("root")).expect("a root");
        let mut options = ServeOptions {
            root: directory.path().join("root"),
            local_target: None,
            listen: vec!["127.0.0.1:0".parse().expect("an address")],
            token: Some(TOKEN),
            allow_unauthenticated: false,
            allow_null: true,
            socket_buffer_bytes: None,
            congestion: Congestion::Auto,
            workers: None,
        };
        change(&mut options);
        let server = Server::bind(options).expect("a server");
        Self { directory, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.local_addresses()[0]
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A source of `bytes` bytes that differ from place to place.
    pub fn source(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, noise(bytes)).expect("a source");
        path
    }

    pub fn pool(&self) -> Pool {
        connect(self.address(), |_| {})
    }

    /// Names in the root that no test asked for.
    pub fn leftovers(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.root()).expect("the root");
        names
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .filter(|name| name.starts_with(".haul-"))
            .collect()
    }
}

/// A pool to `address`.
pub fn connect(address: SocketAddr, change: impl FnOnce(&mut PoolOptions)) -> Pool {
    let mut options = PoolOptions {
        token: Some(TOKEN),
        ..PoolOptions::default()
    };
    change(&mut options);
    Pool::connect(&peer(address), options).expect("a pool")
}

pub fn peer(address: SocketAddr) -> PeerAddress {
    PeerAddress {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

/// Bytes without a period, cheap to make.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ bytes as u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// Begins to push one file to `name`.
pub fn begin(pool: &mut Pool, source: &Path, name: &str, options: &CopyOptions) -> Transfer {
    let target = RemoteTarget::Path {
        make: false,
        path: name.into(),
        directory: false,
    };
    pool.push(vec![LocalSource::Path(source.into())], target, options)
        .expect("a transfer")
}

/// Pushes one file to `name` and waits.
pub fn push(pool: &mut Pool, source: &Path, name: &str, options: &CopyOptions) -> Report {
    begin(pool, source, name, options).wait()
}

/// The files' bytes are the same.
pub fn assert_same(source: &Path, target: &Path) {
    let (source, target) = (
        std::fs::read(source).expect("the source"),
        std::fs::read(target).expect("the target"),
    );
    assert!(
        source == target,
        "{} bytes against {}",
        source.len(),
        target.len()
    );
}

/// What a relay does to the bytes that data connections carry to the server.
#[derive(Clone, Copy)]
pub enum Harm {
    /// Flips one bit of the byte at this offset of the first connection.
    Flip(u64),
    /// Cuts each of the first `connections` connections after so many bytes.
    Cut { connections: u64, bytes: u64 },
    /// Lets so many connections through and takes the others in for nobody.
    Swallow(u64),
}

/// Starts a relay in front of `server`; its threads end with the connections.
pub fn relay(server: SocketAddr, harm: Harm) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a relay");
    let address = listener.local_addr().expect("its address");
    let data_connections = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(server)) else {
                return;
            };
            let count = data_connections.clone();
            let (back_from, back_to) = (clone(&server), clone(&client));
            std::thread::spawn(move || carry(back_from, back_to, |_, _| true));
            std::thread::spawn(move || forward(client, server, harm, &count));
        }
    });
    address
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a second descriptor")
}

/// Only data connections are harmed: the preamble's seventh byte tells them.
fn forward(mut client: TcpStream, mut server: TcpStream, harm: Harm, count: &AtomicU64) {
    let mut preamble = [0; 8];
    if client.read_exact(&mut preamble).is_err() {
        return;
    }
    let number = (preamble[6] == 1).then(|| count.fetch_add(1, Ordering::SeqCst));
    if matches!((harm, number), (Harm::Swallow(through), Some(number)) if number >= through) {
        let _ = std::io::copy(&mut client, &mut std::io::sink());
        return;
    }
    if server.write_all(&preamble).is_err() {
        return;
    }
    carry(client, server, |offset, bytes| match (harm, number) {
        (Harm::Flip(at), Some(0)) => {
            if (offset..offset + bytes.len() as u64).contains(&at) {
                bytes[(at - offset) as usize] ^= 4;
            }
            true
        }
        (
            Harm::Cut {
                connections,
                bytes: limit,
            },
            Some(number),
        ) if number < connections => offset + (bytes.len() as u64) < limit,
        _ => true,
    });
}

/// Carries bytes until either end closes or `pass` says no.
fn carry(mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(u64, &mut [u8]) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(count) if count > 0 => {
                if !pass(offset, &mut buffer[..count]) || to.write_all(&buffer[..count]).is_err() {
                    break;
                }
                offset += count as u64;
            }
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Says why a test did nothing, and notes it where `HAUL_SKIPPED` says.
pub fn skip(why: &str) {
    use std::io::Write;
    // Past the capture of a test's output: who passes without having run says so.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
    if let Some(list) = std::env::var_os("HAUL_SKIPPED") {
        let list = std::fs::File::options()
            .append(true)
            .create(true)
            .open(list);
        let said = list.and_then(|mut list| writeln!(list, "{why}"));
        said.expect("HAUL_SKIPPED names a file that can be written");
    }
}
