//! Standard output takes bytes in order, whatever order they arrive in.

use super::*;
use std::io::Read;

fn pipe_segment(kind: EntryKind, size: u64) -> (Arc<ReceiveSegment>, std::fs::File) {
    let (reading, writing) = rustix::pipe::pipe().expect("a pipe");
    let target = Target::of_sink(Sink::Stdout(writing), "standard output");
    let segment = segment(plan(kind, &[size], CHUNK), vec![target]);
    (segment, std::fs::File::from(reading))
}

fn read(mut pipe: std::fs::File, bytes: usize) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = vec![0; bytes];
        pipe.read_exact(&mut all).expect("read");
        all
    })
}

#[test]
fn chunks_in_any_order_come_out_in_order() {
    let rig = Rig::new();
    let size = 20 * u64::from(CHUNK) + 11;
    let (segment, pipe) = pipe_segment(EntryKind::Stream, 0);
    let all = payload(size);
    let reader = read(pipe, all.len());
    rig.open(&segment);
    let (mut one, mut two) = (rig.connect(1), rig.connect(2));
    for first in (0..21u64).rev().step_by(3) {
        let chunks = first.saturating_sub(2)..first + 1;
        let socket = if first % 2 == 0 { &mut one } else { &mut two };
        send(socket, &segment, chunks, &all);
    }
    assert_eq!(rig.landed(0..21), size);
    assert!(reader.join().expect("read") == all);
}

#[test]
fn two_workers_take_turns() {
    let (left, right) = (Rig::new(), Rig::new());
    let size = 16 * u64::from(CHUNK);
    let (segment, pipe) = pipe_segment(EntryKind::File, size);
    let all = payload(size);
    let reader = read(pipe, all.len());
    left.open(&segment);
    right.open(&segment);
    let (mut one, mut two) = (left.connect(1), right.connect(2));
    for chunk in 0..16 {
        let socket = if chunk % 2 == 0 { &mut two } else { &mut one };
        send(socket, &segment, chunk..chunk + 1, &all);
    }
    assert!(reader.join().expect("read") == all);
}

#[test]
fn a_reader_that_went_fails_the_file() {
    let rig = Rig::new();
    let (segment, pipe) = pipe_segment(EntryKind::File, 3 * u64::from(CHUNK));
    drop(pipe);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(3 * u64::from(CHUNK));
    send(&mut socket, &segment, 0..2, &all);
    let (file, error) = rig.failed();
    assert_eq!(file, 0);
    assert!(error.sentence.contains("standard output"), "{error}");
    send(&mut socket, &segment, 2..3, &all);
    drop(socket);
    assert_eq!(rig.detached(), (1, None));
}

#[test]
fn what_is_held_for_a_lost_connection_is_sent_again() {
    let rig = Rig::new();
    let size = 4 * u64::from(CHUNK);
    let (segment, pipe) = pipe_segment(EntryKind::File, size);
    let all = payload(size);
    let reader = read(pipe, all.len());
    rig.open(&segment);
    let mut lost = rig.connect(1);
    // Ahead of their turn, so they are held, not written.
    send(&mut lost, &segment, 2..4, &all);
    drop(lost);
    assert_eq!(rig.detached(), (1, None));
    assert_eq!(segment.ledger.lock().expect("unpoisoned").granted(), 0);
    let mut socket = rig.connect(2);
    send(&mut socket, &segment, 0..4, &all);
    assert_eq!(rig.landed(0..4), size);
    assert!(reader.join().expect("read") == all);
}

#[test]
fn a_reader_that_never_reads_cannot_hold_a_forgotten_transfer() {
    let rig = Rig::new();
    let size = 32 * u64::from(CHUNK);
    let (segment, pipe) = pipe_segment(EntryKind::File, size);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    send(&mut socket, &segment, 0..32, &payload(size));
    // Its grants were given, so the first write blocks soon or already does.
    while segment.ledger.lock().expect("unpoisoned").granted() == 0 {
        std::thread::yield_now();
    }
    rig.command(ReceiveCommand::Forget(TRANSFER));
    assert_eq!(rig.forgotten(), TRANSFER);
    drop(pipe);
}
