//! What goes wrong, and how connections end.

use super::*;
use crate::error::Error;

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
        let error = error.expect("its source is there to be named");
        assert_eq!((file, error.kind), (0, crate::ErrorKind::Integrity));
        assert!(error.sentence.contains("was cut short"), "{error}");
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
                SendEvent::Void {
                    error: Some(error), ..
                } => {
                    assert_eq!(error.kind, crate::ErrorKind::Integrity);
                    assert!(error.sentence.contains("was cut short"), "{error}");
                    told = true;
                }
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
            cause: Error::peer("gave it up", "as the test wants"),
        });
        let (connection, cause) = bench.detached();
        let told = cause.expect("the reason that was given").to_string();
        assert_eq!(
            (connection, told.as_str()),
            (1, "gave it up: as the test wants"),
            "{transmit:?}"
        );
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
fn what_stuck_connections_read_ahead_leaves_blocks_to_the_others() {
    let mut files = Files::new();
    let bytes = pattern(32 * 1024 * 1024, 9);
    let (path, _) = files.add(&bytes);
    let mut source = FileSource::open_local(&path).expect("opened");
    // Read into blocks, not mapped, where its file system knows O_DIRECT.
    source.prefer_direct();
    let segment = segment(vec![Source::File(source)], Transmit::Copy);
    let bench = Bench::start();
    let stuck: Vec<_> = (0..2).map(|connection| bench.attach(connection)).collect();
    for connection in 0..2 {
        for run in 0..2 {
            bench.run(connection, &segment, run * 128, 128);
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    let mut peer = bench.attach(99);
    peer.set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set");
    bench.run(99, &segment, 0, 128);
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
        cause: Error::peer("gave it up", "as the test wants"),
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
