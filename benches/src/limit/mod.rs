//! The limit reference: bare movers without framing, checks or protocol, whose
//! best is what haul is held against.
//!
//! Leaves to others: the rounds and the printing (bin/limit.rs), the loops
//! (`send`, `receive`, `ring`). Invariant: every mover carries all bytes of the
//! source over real sockets on loopback, to their own offsets, in one process.
//!
//! With N connections, stripe S of the file goes over connection S mod N: both
//! ends know that beforehand, so not a byte is spent on saying what comes.

mod method;
mod receive;
mod ring;
mod send;
mod share;

pub use method::{LimitLanding, LimitMethod, Sending};

use rustix::fs::Advice;
use rustix::time::ClockId;
use share::{BLOCK_BYTES, clock_seconds, died};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// What all rows of one measurement share.
#[derive(Clone, Debug)]
pub struct LimitJob {
    /// The file that is read.
    pub source: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// A path that does not exist yet; `None` discards what arrives.
    pub target: Option<PathBuf>,
    /// fdatasync at the end, inside the measured time.
    pub durable: bool,
    /// The source leaves the page cache first.
    pub cold: bool,
    /// The algorithm of every connection.
    pub congestion: String,
}

/// What one run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitOutcome {
    /// From before the first connection until the target is closed.
    pub seconds: f64,
    /// CPU time of the whole process meanwhile, ring workers included.
    pub cpu_seconds: f64,
    /// The sending threads' part of it, without ring workers.
    pub sender_cpu_seconds: f64,
}

/// Both ends of `count` connections over loopback, pair by pair.
fn connect(count: usize, congestion: &str) -> io::Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let sender = TcpStream::connect(address)?;
        rustix::net::sockopt::set_tcp_congestion(&sender, congestion)?;
        senders.push(sender);
        receivers.push(listener.accept()?.0);
    }
    Ok((senders, receivers))
}

/// Runs one row once. The target is left behind, for the caller to look at.
///
/// # Errors
/// Whatever a call of either end says, or a connection that ends early.
pub fn run(job: &LimitJob, method: LimitMethod) -> io::Result<LimitOutcome> {
    let source = File::open(&job.source)?;
    if job.cold {
        source.sync_all()?;
        rustix::fs::fadvise(&source, 0, None, Advice::DontNeed)?;
    }
    let target = job
        .target
        .as_ref()
        .map(|path| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path)
        })
        .transpose()?;

    let cpu_before = clock_seconds(ClockId::ProcessCPUTime);
    let started = Instant::now();
    let (senders, receivers) = connect(method.connections, &job.congestion)?;
    let sender_cpu_seconds = thread::scope(|scope| {
        let receiver =
            scope.spawn(|| receive::run(method.landing, &receivers, target.as_ref(), job.bytes));
        let sender = scope.spawn(|| {
            let sent = send::run(method.sending, &senders, &source, job.bytes);
            // The receiving end then sees the end rather than waiting for more.
            for socket in &senders {
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            sent
        });
        let received = receiver.join().unwrap_or_else(|_| Err(died("receiving")));
        for socket in &receivers {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        let sent = sender.join().unwrap_or_else(|_| Err(died("sending")));
        received.and(sent)
    })?;
    if let Some(target) = target.filter(|_| job.durable) {
        target.sync_data()?;
    }
    Ok(LimitOutcome {
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: clock_seconds(ClockId::ProcessCPUTime) - cpu_before,
        sender_cpu_seconds,
    })
}

/// Checks that the landed file is the source, byte for byte.
///
/// # Errors
/// A read error, or what differs.
pub fn verify(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (File::open(source)?, File::open(target)?);
    let bytes = source.metadata()?.len();
    let landed = target.metadata()?.len();
    if landed != bytes {
        return Err(io::Error::other(format!(
            "the target has {landed} bytes, the source {bytes}"
        )));
    }
    let (mut left, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let mut offset = 0;
    while offset < bytes {
        let count = (bytes - offset).min(BLOCK_BYTES as u64) as usize;
        source.read_exact_at(&mut left[..count], offset)?;
        target.read_exact_at(&mut right[..count], offset)?;
        if left[..count] != right[..count] {
            return Err(io::Error::other(format!(
                "the target differs from the source at or after byte {offset}"
            )));
        }
        offset += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::share::STRIPE_BYTES;
    use super::*;

    #[test]
    fn every_row_lands_the_file_as_it_is() {
        let directory = tempfile::tempdir().expect("a fresh directory");
        let source = directory.path().join("source");
        let bytes = 2 * STRIPE_BYTES + 12_345;
        let pattern: Vec<u8> = (0..bytes)
            .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
            .collect();
        std::fs::write(&source, pattern).expect("written");
        for (number, method) in LimitMethod::matrix(true).into_iter().enumerate() {
            let target = directory.path().join(format!("target-{number}"));
            let job = LimitJob {
                source: source.clone(),
                bytes,
                target: Some(target.clone()),
                durable: false,
                cold: false,
                congestion: "cubic".into(),
            };
            let name = method.name();
            match run(&job, method) {
                // Not every file system has direct writes.
                Err(error)
                    if method.landing == LimitLanding::RingDirect
                        && error.kind() == io::ErrorKind::InvalidInput => {}
                done => {
                    done.unwrap_or_else(|error| panic!("{name}: {error}"));
                    verify(&source, &target).unwrap_or_else(|error| panic!("{name}: {error}"));
                }
            }
            std::fs::remove_file(&target).expect("removed");
        }
    }
}
