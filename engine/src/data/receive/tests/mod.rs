//! The worker over real rings, sockets and files, fed by a small writer of
//! frames.

mod cuts;
mod faults;
mod in_place;
mod landing;
mod ordered;

use super::spawn_with;
use super::windows::Pace;
use crate::data::{Clock, ReceiveCommand, ReceiveEvent, ReceiveSegment};
use crate::error::Error;
use crate::files::target::{Sink, Target};
use crate::kernel::queue::{Reader, Writer, bounded};
use crate::protocol::check::CheckSeed;
use crate::protocol::frame::FrameHeader;
use crate::protocol::ledger::{Admission, Ledger};
use crate::protocol::plan::Plan;
use crate::protocol::wire::{Answer, ChunkRange, Data, Entry, EntryKind, Offer, Verdict};
use crate::protocol::{ChunkId, ConnectionId, Nanos, TransferId};
use crate::report::SideReport;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const CHUNK: u32 = 64 * 1024;
const TRANSFER: TransferId = TransferId([9; 16]);
/// A test that waits longer than this for an event has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker and both of its queues.
struct Rig {
    commands: Option<Writer<ReceiveCommand>>,
    events: Reader<ReceiveEvent>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    /// A worker to which memory is never slow: how slow it is where the tests
    /// run is nobody's to know.
    fn new() -> Self {
        Self::with(Pace::with(Nanos::MAX))
    }

    fn with(pace: Pace) -> Self {
        let (commands, reader) = bounded(64).expect("queue");
        let (writer, events) = bounded(1024).expect("queue");
        let thread = spawn_with(
            "receive",
            reader,
            writer,
            Clock::start(),
            Arc::default(),
            pace,
        )
        .expect("a ring");
        Self {
            commands: Some(commands),
            events,
            thread: Some(thread),
        }
    }

    fn command(&self, command: ReceiveCommand) {
        let commands = self.commands.as_ref().expect("not ended");
        assert!(commands.send(command).is_ok(), "the worker lives");
    }

    /// A connection of that number; gives the sender's end.
    fn connect(&self, connection: ConnectionId) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let dialled = TcpStream::connect(address).expect("connects");
        let socket = OwnedFd::from(listener.accept().expect("accepts").0);
        self.command(ReceiveCommand::Attach { connection, socket });
        dialled
    }

    fn open(&self, segment: &Arc<ReceiveSegment>) {
        self.command(ReceiveCommand::Open(segment.clone()));
    }

    fn next(&self) -> ReceiveEvent {
        let event = self.events.recv_timeout(Some(PATIENCE));
        event.expect("an event within the time")
    }

    /// Waits until `chunks` landed; anything else fails the test.
    fn landed(&self, chunks: Range<ChunkId>) -> u64 {
        let (mut seen, mut total) = (crate::protocol::ranges::RangeSet::new(), 0);
        while !seen.contains(chunks.clone()) {
            match self.next() {
                ReceiveEvent::Landed { chunks, bytes, .. } => {
                    let range = chunks.first..chunks.first + chunks.count;
                    assert_eq!(seen.insert(range), chunks.count, "landed twice");
                    total += bytes;
                }
                other => panic!("{}", name(&other)),
            }
        }
        total
    }

    fn damaged(&self) -> ChunkId {
        match self.next() {
            ReceiveEvent::Damaged { chunk, .. } => chunk,
            other => panic!("{}", name(&other)),
        }
    }

    fn drained(&self) -> ChunkRange {
        match self.next() {
            ReceiveEvent::Drained { chunks, .. } => chunks,
            other => panic!("{}", name(&other)),
        }
    }

    fn failed(&self) -> (u32, Error) {
        match self.next() {
            ReceiveEvent::Failed { file, error, .. } => (file, error),
            other => panic!("{}", name(&other)),
        }
    }

    /// Waits for the end of a connection, whatever landed before.
    fn detached(&self) -> (ConnectionId, Option<Error>) {
        loop {
            match self.next() {
                ReceiveEvent::Detached { connection, cause } => return (connection, cause),
                ReceiveEvent::Landed { .. } => {}
                other => panic!("{}", name(&other)),
            }
        }
    }

    fn forgotten(&self) -> TransferId {
        loop {
            match self.next() {
                ReceiveEvent::Forgotten(transfer) => return transfer,
                ReceiveEvent::Landed { .. } => {}
                other => panic!("{}", name(&other)),
            }
        }
    }

    fn report(&self) -> Box<SideReport> {
        self.command(ReceiveCommand::Report);
        match self.next() {
            ReceiveEvent::Report(report) => report,
            other => panic!("{}", name(&other)),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.commands.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the worker ends well");
        }
    }
}

fn name(event: &ReceiveEvent) -> String {
    match event {
        ReceiveEvent::Landed { chunks, .. } => format!("landed {chunks:?}"),
        ReceiveEvent::Damaged { chunk, .. } => format!("damaged {chunk}"),
        ReceiveEvent::Drained { chunks, .. } => format!("drained {chunks:?}"),
        ReceiveEvent::Failed { error, .. } => format!("failed: {error}"),
        ReceiveEvent::Forgotten(_) => "forgotten".to_owned(),
        ReceiveEvent::Detached { cause, .. } => format!("detached: {cause:?}"),
        ReceiveEvent::Report(_) => "a report".to_owned(),
    }
}

fn plan(kind: EntryKind, sizes: &[u64], chunk_bytes: u32) -> Plan {
    let entry = |(place, size): (usize, &u64)| Entry {
        name: format!("file{place}").into_bytes(),
        kind: kind.clone(),
        size: *size,
        mode: 0o644,
        mtime_seconds: 0,
        mtime_nanos: 0,
        data: Data::Everywhere,
        ..Entry::default()
    };
    let offer = Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer: TRANSFER,
        segment: 0,
        last: true,
        entries: sizes.iter().enumerate().map(entry).collect(),
    };
    let answer = Answer {
        transfer: TRANSFER,
        segment: 0,
        verdicts: vec![Verdict::Whole; sizes.len()],
        digest: [0; 16],
    };
    Plan::new(&offer, &answer, chunk_bytes).expect("a plan")
}

fn segment(plan: Plan, targets: Vec<Target>) -> Arc<ReceiveSegment> {
    Arc::new(ReceiveSegment {
        transfer: TRANSFER,
        segment: 0,
        seed: CheckSeed::new(TRANSFER, 0, plan.digest()),
        plan,
        ledger: Mutex::new(Ledger::new()),
        targets: targets
            .into_iter()
            .map(|target| Some(Arc::new(target)))
            .collect(),
        keeps_sums: false,
        in_order: AtomicU64::new(0),
    })
}

/// One file of `bytes` without a name; its descriptor stays readable.
fn file_segment(bytes: u64) -> (Arc<ReceiveSegment>, std::fs::File) {
    let (file, target) = file_target();
    (
        segment(plan(EntryKind::File, &[bytes], CHUNK), vec![target]),
        file,
    )
}

fn file_target() -> (std::fs::File, Target) {
    let file = tempfile::tempfile().expect("a file");
    let fd = OwnedFd::from(file.try_clone().expect("cloned"));
    let target = Target::of_sink(Sink::File { fd, direct: None }, "/target");
    (file, target)
}

/// Bytes that differ from chunk to chunk.
fn payload(bytes: u64) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// The frame of `chunks`, whose payload is `bytes`.
fn frame(segment: &ReceiveSegment, chunks: Range<ChunkId>, bytes: &[u8]) -> Vec<u8> {
    let count = (chunks.end - chunks.start) as u32;
    let header = FrameHeader {
        transfer: segment.transfer,
        segment: segment.segment,
        first: chunks.start,
        count,
        payload_bytes: bytes.len() as u64,
    };
    let mut frame = header.encode().to_vec();
    let mut start = 0;
    for chunk in chunks {
        let end = (start + segment.plan.chunk_len(chunk) as usize).min(bytes.len());
        frame.extend(segment.seed.check(chunk, &bytes[start..end]));
        start = end;
    }
    frame.extend(bytes);
    frame
}

/// The part of a single file's bytes that `chunks` hold.
fn part<'a>(segment: &ReceiveSegment, chunks: &Range<ChunkId>, all: &'a [u8]) -> &'a [u8] {
    let start = chunks.start as usize * CHUNK as usize;
    let bytes = segment
        .plan
        .run_bytes(chunks.start, (chunks.end - chunks.start) as u32);
    &all[start..(start + bytes as usize).min(all.len())]
}

/// Sends `chunks` of a single file.
fn send(socket: &mut TcpStream, segment: &ReceiveSegment, chunks: Range<ChunkId>, all: &[u8]) {
    let bytes = part(segment, &chunks, all);
    socket
        .write_all(&frame(segment, chunks, bytes))
        .expect("written");
}

fn contents(file: &std::fs::File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().expect("a size").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

fn admit(segment: &ReceiveSegment, connection: ConnectionId, chunks: Range<ChunkId>) -> Admission {
    let mut ledger = segment.ledger.lock().expect("unpoisoned");
    ledger.admit(connection, chunks)
}
