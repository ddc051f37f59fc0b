//! The worker against real rings, sockets and files.

mod faults;
mod paths;

use super::super::SendSegment;
use super::*;
use crate::files::generated::Generated;
use crate::files::regular::FileSource;
use crate::kernel::queue::{Writer, bounded};
use crate::options::Pattern;
use crate::protocol::check::CheckSeed;
use crate::protocol::frame::{FrameHeader, HEADER_BYTES};
use crate::protocol::plan::{self, Plan};
use crate::protocol::wire::{Answer, ChunkRange, Offer, Verdict};
use crate::protocol::{Run, TransferId};
use crate::report::SideReport;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const CHUNK: u32 = 64 * 1024;
const TRANSFER: TransferId = TransferId([9; 16]);

/// A worker under test.
struct Bench {
    commands: Writer<SendCommand>,
    events: Reader<SendEvent>,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    fn start() -> Self {
        let (commands, inbox) = bounded(256).expect("a queue");
        let (outbox, events) = bounded(256).expect("a queue");
        let thread = spawn("send-test", inbox, outbox, Clock::start()).expect("a worker");
        Self {
            commands,
            events,
            thread: Some(thread),
        }
    }

    fn command(&self, command: SendCommand) {
        self.commands.send(command).ok().expect("the worker lives");
    }

    fn attach(&self, connection: u32) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let dialled = TcpStream::connect(address).expect("connects");
        let socket = OwnedFd::from(dialled);
        self.command(SendCommand::Attach { connection, socket });
        listener.accept().expect("accepts").0
    }

    fn run(&self, connection: u32, segment: &Arc<SendSegment>, first: u64, count: u32) {
        self.run_bytes(connection, segment, first, count, None);
    }

    fn run_bytes(
        &self,
        connection: u32,
        segment: &Arc<SendSegment>,
        first: u64,
        count: u32,
        bytes: Option<u64>,
    ) {
        self.command(SendCommand::Run {
            connection,
            segment: segment.clone(),
            run: Run {
                segment: segment.segment,
                first,
                count,
            },
            bytes,
        });
    }

    fn event(&self) -> SendEvent {
        let event = self.events.recv_timeout(Some(Duration::from_secs(30)));
        event.expect("an event in time")
    }

    fn sent(&self) -> (u32, Run, u64) {
        match self.event() {
            SendEvent::Sent {
                connection,
                run,
                bytes,
                checks,
                ..
            } => {
                assert_eq!(checks.len(), run.count as usize);
                (connection, run, bytes)
            }
            SendEvent::Void { chunks, error, .. } => panic!("void {chunks:?} {error:?}"),
            SendEvent::Detached { cause, .. } => panic!("detached {cause:?}"),
            SendEvent::Report(_) => panic!("report"),
        }
    }

    fn void(&self) -> (u32, ChunkRange, Option<Error>) {
        match self.event() {
            SendEvent::Void {
                file,
                chunks,
                error,
                ..
            } => (file, chunks, error),
            _ => panic!("something else than void"),
        }
    }

    fn detached(&self) -> (u32, Option<Error>) {
        loop {
            match self.event() {
                SendEvent::Detached { connection, cause } => return (connection, cause),
                SendEvent::Sent { .. } | SendEvent::Void { .. } => {}
                SendEvent::Report(_) => panic!("report"),
            }
        }
    }

    fn report(&self) -> Box<SideReport> {
        self.command(SendCommand::Report);
        match self.event() {
            SendEvent::Report(report) => report,
            _ => panic!("something else than a report"),
        }
    }

    /// Ends the worker; what it told in the end.
    fn stop(mut self) -> Vec<SendEvent> {
        self.command(SendCommand::Stop);
        let thread = self.thread.take().expect("once");
        thread.join().expect("no panic");
        std::iter::from_fn(|| self.events.try_recv()).collect()
    }
}

/// Bytes that differ everywhere.
fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    Generated::new(Pattern::Random, None, seed).fill(0, &mut buffer);
    buffer
}

struct Files {
    directory: tempfile::TempDir,
    count: usize,
}

impl Files {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            count: 0,
        }
    }

    fn add(&mut self, bytes: &[u8]) -> (PathBuf, Source) {
        self.count += 1;
        let path = self.directory.path().join(format!("source-{}", self.count));
        std::fs::write(&path, bytes).expect("written");
        let source = FileSource::open_local(&path).expect("opened");
        (path, Source::File(source))
    }
}

/// As it is offered.
fn entry_of(source: &Source) -> crate::protocol::wire::Entry {
    match source {
        Source::File(file) => file.entry(),
        Source::Generated(generated) => generated.entry(),
        Source::Stream(stream) => stream.entry(),
        Source::Missing(missing) => missing.entry().clone(),
        Source::Later(_) | Source::Node(_) => crate::protocol::wire::Entry::default(),
    }
}

fn segment(sources: Vec<Source>, transmit: Transmit) -> Arc<SendSegment> {
    let offer = Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer: TRANSFER,
        segment: 3,
        last: true,
        entries: sources.iter().map(entry_of).collect(),
    };
    let verdicts = vec![Verdict::Whole; sources.len()];
    let digest = plan::digest(&offer, &verdicts);
    let answer = Answer {
        transfer: TRANSFER,
        segment: 3,
        verdicts,
        digest,
    };
    Arc::new(SendSegment {
        transfer: TRANSFER,
        segment: 3,
        plan: Plan::new(&offer, &answer, CHUNK).expect("a plan"),
        seed: CheckSeed::new(TRANSFER, 3, &digest),
        sources: sources
            .into_iter()
            .map(|source| Some(Arc::new(source)))
            .collect(),
        transmit,
        drop_cache: false,
    })
}

/// Reads one frame, and checks its checks.
fn frame(stream: &mut TcpStream, segment: &SendSegment) -> (FrameHeader, Vec<u8>) {
    let (header, payload, wrong) = judged_frame(stream, segment);
    assert_eq!(wrong, [0; 0]);
    (header, payload)
}

/// Reads one frame; also the chunks whose check does not hold.
fn judged_frame(stream: &mut TcpStream, segment: &SendSegment) -> (FrameHeader, Vec<u8>, Vec<u64>) {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).expect("a header");
    let header = FrameHeader::decode(&header).expect("decodes");
    assert_eq!(header.transfer, TRANSFER);
    let mut table = vec![0; header.table_bytes()];
    stream.read_exact(&mut table).expect("a table");
    let mut payload = vec![0; header.payload_bytes as usize];
    stream.read_exact(&mut payload).expect("a payload");
    let mut rest = payload.as_slice();
    let mut wrong = Vec::new();
    for (index, check) in table.chunks(16).enumerate() {
        let chunk = header.first + index as u64;
        let bytes = rest.len().min(segment.plan.chunk_len(chunk) as usize);
        let (own, behind) = rest.split_at(bytes);
        rest = behind;
        if segment.seed.check(chunk, own) != check {
            wrong.push(chunk);
        }
    }
    assert!(rest.is_empty());
    (header, payload, wrong)
}
