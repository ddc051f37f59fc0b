//! Every kind of source on every path.

use super::*;
use std::sync::mpsc;

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
        let (connection, run, count) = bench.sent();
        assert_eq!(
            (connection, run.first, count),
            (1, 0, 64 * u64::from(CHUNK))
        );
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
    let generated = Generated::new(Pattern::Random, Some(4 * 1024 * 1024), 12);
    let segment = segment(vec![Source::Generated(generated)], Transmit::Copy);
    let bench = Bench::start();
    let mut peer = bench.attach(1);
    let reader = std::thread::spawn({
        let segment = segment.clone();
        move || (0..72).for_each(|_| drop(frame(&mut peer, &segment)))
    });
    for run in 0..72 {
        // Two blocks each, more than the pool has: without them back, the last
        // runs would wait for ever.
        bench.run(1, &segment, run % 56, 8);
        bench.sent();
    }
    reader.join().expect("reads");
}
