//! Micro-benches of the protocol's rooms: frame header, messages, ledger, plan
//! and checks.
//!
//! Leaves to others: anything with a socket or a file. Invariant: each bench
//! does what the data plane or the control plane does per frame, message, run
//! or chunk, so that its time can be set against a chunk's.

#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use haul_engine::limits;
use haul_engine::protocol::TransferId;
use haul_engine::protocol::check::CheckSeed;
use haul_engine::protocol::frame::FrameHeader;
use haul_engine::protocol::ledger::Ledger;
use haul_engine::protocol::plan::{Plan, digest};
use haul_engine::protocol::wire::{
    Answer, ChunkRange, Data, Entry, EntryKind, Message, MessageReader, Offer, Verdict, encode,
};
use std::hint::black_box;
use std::time::Duration;

const TRANSFER: TransferId = TransferId([7; 16]);
/// The main job's chunks: 587 MiB by the default chunk size.
const CHUNKS: u64 = 587 * 4;
/// Chunks of one run.
const RUN: u64 = limits::RUN_BYTES_MAX / limits::CHUNK_BYTES_DEFAULT as u64;

fn frame(criterion: &mut Criterion) {
    let header = FrameHeader {
        transfer: TRANSFER,
        segment: 3,
        first: 1_000,
        count: RUN as u32,
        payload_bytes: limits::RUN_BYTES_MAX,
    };
    let bytes = header.encode();
    let mut group = criterion.benchmark_group("frame header");
    group.bench_function("encode", |b| b.iter(|| black_box(&header).encode()));
    group.bench_function("decode", |b| {
        b.iter(|| FrameHeader::decode(black_box(&bytes)))
    });
    group.finish();
}

fn messages(criterion: &mut Criterion) {
    let landed = Message::Landed {
        transfer: TRANSFER,
        segment: 3,
        chunks: (0..16)
            .map(|i| ChunkRange {
                first: i * 64,
                count: RUN,
            })
            .collect(),
    };
    let offer = Message::Offer(offer(4_096, 64 * 1024).into());
    let mut group = criterion.benchmark_group("message");
    for (name, message) in [("landed, 16 ranges", landed), ("offer, 4096 files", offer)] {
        let bytes = encode(&message);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::new("encode", name), |b| {
            b.iter(|| encode(black_box(&message)));
        });
        group.bench_function(BenchmarkId::new("decode", name), |b| {
            b.iter(|| {
                let mut reader = MessageReader::default();
                reader.push(black_box(&bytes));
                reader.next()
            });
        });
    }
    group.finish();
}

fn ledger(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger");
    group.throughput(Throughput::Elements(CHUNKS));
    // Four connections take runs in turn and land them a little out of order,
    // as a transfer of the main job's size does.
    group.bench_function("admit and land, 2348 chunks in runs of 16", |b| {
        b.iter_batched(
            Ledger::new,
            |mut ledger| {
                let runs = CHUNKS.div_ceil(RUN);
                for run in 0..runs {
                    let chunks = run * RUN..((run + 1) * RUN).min(CHUNKS);
                    let _ = ledger.admit((run % 4) as u32, chunks);
                }
                for run in (0..runs).map(|run| (run ^ 1).min(runs - 1)) {
                    let chunks = run * RUN..((run + 1) * RUN).min(CHUNKS);
                    let _ = ledger.land((run % 4) as u32, chunks);
                }
                ledger
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    for (name, files, bytes) in [
        ("one file of 587 MiB", 1, 587 << 20),
        ("4096 files of 4 KiB", 4_096, 4_096),
    ] {
        let offer = offer(files, bytes);
        let verdicts = vec![Verdict::Whole; files];
        let answer = Answer {
            transfer: TRANSFER,
            segment: 0,
            digest: digest(&offer, &verdicts),
            verdicts,
        };
        group.bench_function(BenchmarkId::new("new", name), |b| {
            b.iter(|| Plan::new(&offer, black_box(&answer), limits::CHUNK_BYTES_DEFAULT));
        });
        let plan = Plan::new(&offer, &answer, limits::CHUNK_BYTES_DEFAULT)
            .expect("an answer to its own offer");
        let count = plan.chunk_count().unwrap_or(1).min(RUN) as u32;
        group.bench_function(BenchmarkId::new("pieces of a run", name), |b| {
            b.iter(|| {
                plan.pieces(black_box(0), count)
                    .map(|p| p.bytes)
                    .sum::<u64>()
            });
        });
    }
    group.finish();
}

fn check(criterion: &mut Criterion) {
    let seed = CheckSeed::new(TRANSFER, 3, &[5; 16]);
    let mut group = criterion.benchmark_group("check");
    for kib in [64, 256, 1024] {
        let payload: Vec<u8> = (0..kib * 1024u32).map(|i| ((i * 31) >> 3) as u8).collect();
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{kib} KiB")), |b| {
            b.iter(|| seed.check(black_box(9), black_box(&payload)));
        });
    }
    group.finish();
}

/// `files` files of `bytes` each.
fn offer(files: usize, bytes: u64) -> Offer {
    Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer: TRANSFER,
        segment: 0,
        last: true,
        entries: (0..files)
            .map(|i| Entry {
                name: format!("directory/file-{i:05}").into_bytes(),
                kind: EntryKind::File,
                size: bytes,
                mode: 0o644,
                mtime_seconds: 1_700_000_000,
                mtime_nanos: 5,
                data: Data::Everywhere,
                ..Entry::default()
            })
            .collect(),
    }
}

criterion_group! {
    name = benches;
    // Short: these show orders of magnitude and gross regressions.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = frame, messages, ledger, plan, check
}
criterion_main!(benches);
