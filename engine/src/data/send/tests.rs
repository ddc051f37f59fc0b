//! The worker against real rings, sockets and files.

use super::super::{Clock, SendCommand, SendEvent, SendSegment};
use super::*;
use crate::files::generated::Generated;
use crate::files::source::FileSource;
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

    fn sent(&self) -> (u32, Run, u64, bool) {
        match self.event() {
            SendEvent::Sent {
                connection,
                run,
                bytes,
                frozen,
                checks,
                ..
            } => {
                assert_eq!(checks.len(), run.count as usize);
                (connection, run, bytes, frozen)
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

fn segment(sources: Vec<Source>, transmit: Transmit) -> Arc<SendSegment> {
    let offer = Offer {
        transfer: TRANSFER,
        segment: 3,
        last: true,
        entries: sources.iter().map(Source::entry).collect(),
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

#[test]
fn frames_carry_exactly_the_files_bytes_on_every_path() {
    let bytes = pattern(5 * 1024 * 1024 + 77, 1);
    for transmit in [
        Transmit::Auto,
        Transmit::Copy,
        Transmit::Zerocopy,
        Transmit::Splice,
    ] {
        let mut files = Files::new();
        let segment = segment(vec![files.add(&bytes).1], transmit);
        let bench = Bench::start();
        let mut peer = bench.attach(1);
        let chunks = segment.plan.chunk_count().expect("known");
        bench.run(1, &segment, 0, 64);
        bench.run(1, &segment, 64, (chunks - 64) as u32);
        let (first, mut got) = frame(&mut peer, &segment);
        let (second, rest) = frame(&mut peer, &segment);
        got.extend(rest);
        assert!(got == bytes, "{transmit:?}");
        assert_eq!((first.count, second.first), (64, 64));
        let (connection, run, count, frozen) = bench.sent();
        assert_eq!(
            (connection, run.first, count),
            (1, 0, 64 * u64::from(CHUNK))
        );
        let copies = matches!(transmit, Transmit::Auto | Transmit::Copy);
        assert_eq!(frozen, copies);
        bench.sent();
        let report = bench.report();
        let path = match transmit {
            Transmit::Auto | Transmit::Copy => "copy",
            Transmit::Zerocopy => "zerocopy",
            Transmit::Splice => "splice",
        };
        assert_eq!(report.connections[0].path, path);
        assert_eq!(report.connections[0].bytes, bytes.len() as u64);
        assert!(report.system_calls > 0 && !report.latencies.send.is_empty());
        // Loopback copies, and says so.
        let zero_copy = transmit == Transmit::Zerocopy;
        assert_eq!(report.zero_copy_copied_bytes > 0, zero_copy);
        assert_eq!(report.latencies.release.is_empty(), !zero_copy);
        assert_eq!(report.zero_copy_sent_bytes, 0);
        assert_eq!(bench.report().connections[0].bytes, 0, "since the last");
        let ends = bench.stop();
        assert!(matches!(ends[0], SendEvent::Detached { cause: None, .. }));
    }
}

#[test]
fn small_files_are_packed_in_order() {
    let mut files = Files::new();
    let (mut sources, mut contents) = (Vec::new(), Vec::new());
    for seed in 0..1800 {
        // More in one chunk than one message has places for.
        let bytes = if seed < 1500 { 1 + seed % 20 } else { seed };
        let content = pattern(bytes, seed as u64);
        let generated = Generated::new(Pattern::Random, Some(bytes as u64), seed as u64);
        sources.push(match seed % 9 {
            0 => files.add(&content).1,
            _ => Source::Generated(generated),
        });
        contents.push(content);
    }
    let segment = segment(sources, Transmit::Auto);
    let bench = Bench::start();
    let mut peer = bench.attach(1);
    let chunks = segment.plan.chunk_count().expect("known");
    assert!(chunks > 1);
    bench.run(1, &segment, 0, chunks as u32);
    assert!(frame(&mut peer, &segment).1 == contents.concat());
    bench.sent();
    // The cut blocks came back whole.
    bench.run(1, &segment, 0, 1);
    frame(&mut peer, &segment);
    bench.sent();
}

#[test]
fn a_short_source_is_filled_with_zeros_and_told() {
    for transmit in [Transmit::Copy, Transmit::Zerocopy, Transmit::Splice] {
        let mut files = Files::new();
        let bytes = pattern(20 * CHUNK as usize, 2);
        let (path, source) = files.add(&bytes);
        let segment = segment(vec![source], transmit);
        let kept = 5 * CHUNK as usize + 100;
        let file = std::fs::File::options().write(true).open(path);
        file.expect("opened").set_len(kept as u64).expect("cut");
        let bench = Bench::start();
        let mut peer = bench.attach(1);
        bench.run(1, &segment, 0, 20);
        let (file, chunks, error) = bench.void();
        assert_eq!((file, error), (0, None));
        let void = ChunkRange {
            first: 5,
            count: 15,
        };
        assert_eq!(chunks, void);
        let (_, payload) = frame(&mut peer, &segment);
        assert!(payload[..kept] == bytes[..kept]);
        assert!(payload[kept..].iter().all(|byte| *byte == 0));
        bench.sent();
    }
}

#[test]
fn a_source_cut_off_while_it_is_sent_costs_no_connection() {
    for transmit in [Transmit::Copy, Transmit::Zerocopy, Transmit::Splice] {
        let mut files = Files::new();
        let bytes = pattern(16 * 1024 * 1024, 2);
        let (path, source) = files.add(&bytes);
        let segment = segment(vec![source], transmit);
        let bench = Bench::start();
        let mut peer = bench.attach(1);
        for run in 0..4 {
            bench.run(1, &segment, run * 64, 64);
        }
        // The socket is full by then, with the next run's checks computed.
        peer.read_exact(&mut [0; HEADER_BYTES]).expect("a header");
        std::thread::sleep(Duration::from_millis(50));
        let file = std::fs::File::options().write(true).open(path);
        file.expect("opened").set_len(100).expect("cut");
        let mut first = vec![0; 64 * (CHUNK as usize + 16)];
        peer.read_exact(&mut first).expect("a frame");
        let mut void = Vec::new();
        for _ in 1..4 {
            let (_, payload, wrong) = judged_frame(&mut peer, &segment);
            assert_eq!(payload.len(), 64 * CHUNK as usize);
            void.extend(wrong);
        }
        // Whatever the moment was: the last run was read after the cut, or
        // its pages were gone; no filler goes untold.
        bench.command(SendCommand::Stop);
        let mut told = false;
        let mut sent = 0;
        while let Some(event) = bench.events.recv_timeout(Some(Duration::from_secs(10))) {
            match event {
                SendEvent::Void { error: None, .. } => told = true,
                SendEvent::Sent { .. } => sent += 1,
                SendEvent::Detached { cause, .. } => {
                    assert_eq!(cause, None);
                    break;
                }
                _ => panic!("something else"),
            }
        }
        assert!(told || void.is_empty(), "{transmit:?}");
        assert!(sent <= 4);
    }
}

#[test]
fn a_small_memlock_limit_loses_nothing() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let run = || {
        // Capabilities are a thread's own, and the worker inherits them.
        if let Ok(mut sets) = capabilities(None) {
            sets.effective.remove(CapabilitySet::IPC_LOCK);
            set_capabilities(None, sets).expect("fewer are always granted");
        }
        let mut files = Files::new();
        let bytes = pattern(16 * 1024 * 1024, 11);
        let segment = segment(vec![files.add(&bytes).1], Transmit::Zerocopy);
        let bench = Bench::start();
        let mut peers: Vec<_> = (0..4).map(|connection| bench.attach(connection)).collect();
        for connection in 0..4 {
            bench.run(connection, &segment, u64::from(connection) * 64, 64);
        }
        // With nobody reading, four runs of 4 MiB want more than 8 MiB pinned.
        std::thread::sleep(Duration::from_millis(50));
        let mut got = vec![0; bytes.len()];
        let readers: Vec<_> = peers
            .drain(..)
            .map(|mut peer| {
                let segment = segment.clone();
                std::thread::spawn(move || (frame(&mut peer, &segment), peer))
            })
            .collect();
        for reader in readers {
            let ((header, payload), _peer) = reader.join().expect("reads");
            let start = header.first as usize * CHUNK as usize;
            got[start..start + payload.len()].copy_from_slice(&payload);
        }
        assert!(got == bytes);
    };
    std::thread::spawn(run).join().expect("holds");
}

#[test]
fn generated_bytes_are_sent_and_splice_refuses_them() {
    let generated = || Generated::new(Pattern::Random, Some(300_000), 5);
    let mut bytes = vec![0; 300_000];
    generated().fill(0, &mut bytes);
    let segment_of = |transmit| segment(vec![Source::Generated(generated())], transmit);
    for transmit in [Transmit::Auto, Transmit::Zerocopy] {
        let bench = Bench::start();
        let mut peer = bench.attach(1);
        let segment = segment_of(transmit);
        bench.run(1, &segment, 0, 5);
        assert!(frame(&mut peer, &segment).1 == bytes);
        bench.sent();
    }
    let refused = refuses(Transmit::Splice, &Source::Generated(generated()));
    assert!(refused.is_some_and(|error| error.kind == ErrorKind::Usage));
    let bench = Bench::start();
    let mut peer = bench.attach(1);
    let segment = segment_of(Transmit::Splice);
    bench.run(1, &segment, 0, 5);
    let (_, chunks, error) = bench.void();
    assert_eq!((chunks.first, chunks.count), (0, 5));
    assert!(error.is_some_and(|error| error.cure.is_some()));
    frame(&mut peer, &segment);
    bench.sent();
}

#[test]
fn a_streams_tail_is_as_short_as_it_is() {
    let endless = Generated::new(Pattern::Random, None, 6);
    let mut bytes = vec![0; CHUNK as usize + 10];
    endless.fill(u64::from(CHUNK), &mut bytes);
    let segment = segment(vec![Source::Generated(endless)], Transmit::Auto);
    assert!(segment.plan.is_stream());
    let bench = Bench::start();
    let mut peer = bench.attach(1);
    bench.run_bytes(1, &segment, 1, 2, Some(u64::from(CHUNK) + 10));
    let (header, payload) = frame(&mut peer, &segment);
    assert_eq!((header.first, header.count), (1, 2));
    assert!(payload == bytes);
    assert_eq!(bench.sent().2, u64::from(CHUNK) + 10);
}

#[test]
fn a_piped_stream_is_sent_from_what_it_keeps() {
    use crate::files::stream::StreamSource;
    use std::io::Write;
    let bytes = pattern(2 * CHUNK as usize + 500, 7);
    let (reading, writing) = std::io::pipe().expect("a pipe");
    let (tell, told) = mpsc::channel();
    let stream = StreamSource::start(OwnedFd::from(reading), "a pipe", CHUNK, move |news| {
        let _ = tell.send(news);
    })
    .expect("a stream");
    let content = bytes.clone();
    let writer = std::thread::spawn(move || {
        let mut writing = writing;
        writing.write_all(&content).expect("written");
    });
    while told.recv().expect("news").end_bytes.is_none() {}
    writer.join().expect("writes");
    let segment = segment(vec![Source::Stream(stream)], Transmit::Auto);
    let bench = Bench::start();
    let mut peer = bench.attach(1);
    bench.run_bytes(1, &segment, 0, 3, Some(bytes.len() as u64));
    assert!(frame(&mut peer, &segment).1 == bytes);
    bench.sent();
    // A chunk that was forgotten cannot be sent again.
    if let Some(Source::Stream(stream)) = segment.sources[0].as_deref() {
        stream.release(ChunkRange { first: 0, count: 1 });
    }
    bench.run(1, &segment, 0, 1);
    assert!(bench.void().2.is_some());
    assert!(frame(&mut peer, &segment).1.iter().all(|byte| *byte == 0));
}

#[test]
fn a_peer_that_closes_in_mid_run_detaches_the_connection() {
    for transmit in [Transmit::Copy, Transmit::Zerocopy, Transmit::Splice] {
        let mut files = Files::new();
        let segment = segment(vec![files.add(&pattern(16 * 1024 * 1024, 3)).1], transmit);
        let bench = Bench::start();
        let (mut dying, mut living) = (bench.attach(1), bench.attach(2));
        bench.run(1, &segment, 0, 64);
        bench.run(1, &segment, 64, 64);
        dying.read_exact(&mut [0; 1000]).expect("a beginning");
        drop(dying);
        let (connection, cause) = bench.detached();
        assert_eq!(connection, 1);
        let cause = cause.expect("a cause");
        assert_eq!(cause.kind, ErrorKind::Peer, "{cause}");
        // The other connection does not notice.
        bench.run(2, &segment, 200, 2);
        assert_eq!(frame(&mut living, &segment).0.first, 200);
        assert_eq!(bench.sent().0, 2);
    }
}

#[test]
fn an_idle_connection_notices_its_peers_end() {
    let bench = Bench::start();
    drop(bench.attach(4));
    let (connection, cause) = bench.detached();
    assert_eq!(connection, 4);
    assert!(cause.expect("a cause").sentence.contains("closed"));
}

#[test]
fn a_graceful_detach_finishes_what_was_handed_over() {
    for transmit in [Transmit::Copy, Transmit::Zerocopy, Transmit::Splice] {
        let mut files = Files::new();
        let bytes = pattern(8 * 1024 * 1024, 4);
        let segment = segment(vec![files.add(&bytes).1], transmit);
        let bench = Bench::start();
        let mut peer = bench.attach(1);
        bench.run(1, &segment, 0, 64);
        bench.run(1, &segment, 64, 64);
        bench.command(SendCommand::Detach {
            connection: 1,
            graceful: true,
        });
        let mut got = frame(&mut peer, &segment).1;
        got.extend(frame(&mut peer, &segment).1);
        assert!(got == bytes);
        assert_eq!(peer.read(&mut [0; 1]).expect("the end"), 0);
        bench.sent();
        bench.sent();
        assert!(matches!(bench.detached(), (1, None)));
    }
}

#[test]
fn a_detach_at_once_drains_a_blocked_send() {
    for transmit in [Transmit::Copy, Transmit::Zerocopy, Transmit::Splice] {
        let mut files = Files::new();
        let segment = segment(vec![files.add(&pattern(32 * 1024 * 1024, 4)).1], transmit);
        let bench = Bench::start();
        let mut peer = bench.attach(1);
        for run in 0..8 {
            bench.run(1, &segment, run * 64, 64);
        }
        // Nobody reads on: the socket fills up and the send blocks.
        peer.read_exact(&mut [0; 1000]).expect("a beginning");
        bench.command(SendCommand::Detach {
            connection: 1,
            graceful: false,
        });
        assert!(matches!(bench.detached(), (1, None)), "{transmit:?}");
    }
}

#[test]
fn many_connections_share_one_worker() {
    let mut files = Files::new();
    let bytes = pattern(40 * 4 * CHUNK as usize, 8);
    let segment = segment(vec![files.add(&bytes).1], Transmit::Auto);
    let bench = Bench::start();
    let mut peers: Vec<_> = (0..40).map(|connection| bench.attach(connection)).collect();
    for connection in 0..40 {
        bench.run(connection, &segment, u64::from(connection) * 4, 2);
        bench.run(connection, &segment, u64::from(connection) * 4 + 2, 2);
    }
    let mut got = vec![0; bytes.len()];
    for peer in &mut peers {
        for _ in 0..2 {
            let (header, payload) = frame(peer, &segment);
            let start = header.first as usize * CHUNK as usize;
            got[start..start + payload.len()].copy_from_slice(&payload);
        }
    }
    assert!(got == bytes);
    for _ in 0..80 {
        bench.sent();
    }
    assert_eq!(bench.report().connections.len(), 40);
    assert_eq!(bench.stop().len(), 40);
}

#[test]
fn every_block_comes_back() {
    for transmit in [Transmit::Copy, Transmit::Zerocopy, Transmit::Splice] {
        let mut files = Files::new();
        let bytes = pattern(4 * 1024 * 1024, 12);
        let segment = segment(vec![files.add(&bytes).1], transmit);
        let bench = Bench::start();
        let mut peer = bench.attach(1);
        let reader = std::thread::spawn({
            let segment = segment.clone();
            move || (0..48).for_each(|_| drop(frame(&mut peer, &segment)))
        });
        for run in 0..48 {
            // Two blocks each: 96 in all, the whole pool.
            bench.run(1, &segment, run, 8);
            bench.sent();
        }
        // With blocks missing, later runs would have been sent from mappings.
        let method = match transmit {
            Transmit::Zerocopy => "mapping",
            _ => "buffered read",
        };
        assert_eq!(bench.report().method, method);
        reader.join().expect("reads");
    }
}

#[test]
fn stuck_connections_do_not_hold_all_blocks() {
    let mut files = Files::new();
    let bytes = pattern(32 * 1024 * 1024, 9);
    let segment = segment(vec![files.add(&bytes).1], Transmit::Copy);
    let bench = Bench::start();
    // Nobody reads from these, and each has more than its socket takes.
    let stuck: Vec<_> = (0..12).map(|connection| bench.attach(connection)).collect();
    for connection in 0..12 {
        for run in 0..2 {
            bench.run(connection, &segment, run * 64, 64);
        }
    }
    let mut peer = bench.attach(99);
    bench.run(99, &segment, 0, 64);
    let (_, payload) = frame(&mut peer, &segment);
    assert!(payload == bytes[..payload.len()]);
    drop(stuck);
}

#[test]
fn commands_for_a_connection_that_is_gone_are_nothing() {
    let mut files = Files::new();
    let segment = segment(vec![files.add(&pattern(1000, 1)).1], Transmit::Auto);
    let bench = Bench::start();
    bench.run(7, &segment, 0, 1);
    bench.command(SendCommand::Detach {
        connection: 7,
        graceful: true,
    });
    assert!(bench.stop().is_empty());
}

#[test]
fn a_worker_ends_when_its_control_plane_is_gone() {
    let mut bench = Bench::start();
    let _peer = bench.attach(1);
    let thread = bench.thread.take().expect("once");
    drop(bench);
    thread.join().expect("no panic");
}
