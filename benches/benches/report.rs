//! Micro-benches of the latency histograms.
//!
//! Leaves to others: reading the clock. Invariant: values spread as latencies
//! do, over several orders of magnitude.

#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]

use criterion::{Criterion, criterion_group, criterion_main};
use haul_engine::report::{Latencies, Latency};
use std::hint::black_box;
use std::time::Duration;

fn histogram(criterion: &mut Criterion) {
    // A multiplicative walk from 1 µs to some ms, the same in each run.
    let values: Vec<u64> = (0..1024u64)
        .map(|i| (1_000 << ((i.wrapping_mul(0x9E37_79B9) >> 7) & 0xF)) | i)
        .collect();
    let mut group = criterion.benchmark_group("histogram");
    group.bench_function("record", |b| {
        let mut latency = Latency::default();
        let mut next = 0;
        b.iter(|| {
            next = (next + 1) & 1023;
            latency.record(black_box(values[next]), 1);
        });
    });
    let mut all = Latencies::default();
    for value in &values {
        all.send.record(*value, 1);
        all.landed.record(*value, 1);
    }
    group.bench_function("merge all five stages", |b| {
        let mut sum = Latencies::default();
        b.iter(|| sum.merge(black_box(&all)));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = histogram
}
criterion_main!(benches);
