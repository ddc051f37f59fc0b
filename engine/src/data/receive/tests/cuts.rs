//! Guarantee 2 under fire: connections cut at any byte, duplicates on others.

use super::*;
use crate::limits::BLOCK_BYTES;
use crate::protocol::ranges::RangeSet;
use std::net::Shutdown;

/// A small generator of numbers, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What came back of one round: chunks that landed, connections that ended.
fn collect(rig: &Rig, landed: &mut RangeSet, connections: u32) {
    let mut left = connections;
    while left > 0 {
        match rig.next() {
            ReceiveEvent::Landed { chunks, .. } => {
                let range = chunks.first..chunks.first + chunks.count;
                assert_eq!(landed.insert(range), chunks.count, "landed twice");
            }
            ReceiveEvent::Drained { .. } => {}
            ReceiveEvent::Detached { .. } => left -= 1,
            other => panic!("{}", name(&other)),
        }
    }
}

#[test]
fn connections_cut_anywhere_never_spoil_what_landed() {
    cut_anywhere(BLOCK_BYTES as u64, file_segment);
}

#[test]
fn connections_cut_anywhere_never_spoil_what_landed_in_place() {
    cut_anywhere(4 * BLOCK_BYTES as u64, in_place::memory_segment);
}

/// `make` makes a segment of one file of that size.
fn cut_anywhere(least: u64, make: fn(u64) -> (Arc<ReceiveSegment>, std::fs::File)) {
    const CONNECTIONS: u32 = 4;
    for seed in 1..=3 {
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ seed);
        let rig = Rig::new();
        let size = least + 5 * u64::from(CHUNK) + dice.roll(u64::from(CHUNK));
        let (segment, file) = make(size);
        rig.open(&segment);
        let all = Arc::new(payload(size));
        let count = segment.plan.chunk_count().expect("a file");
        let (mut landed, mut number) = (RangeSet::new(), 0);
        while !landed.contains(0..count) {
            let missing = landed.missing(0..count);
            let senders: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    // Chosen without a look at the others: many runs overlap.
                    let hole = &missing[dice.roll(missing.len() as u64) as usize];
                    let first = hole.start + dice.roll(hole.end - hole.start);
                    let chunks = first..(first + 1 + dice.roll(12)).min(count);
                    let bytes = frame(&segment, chunks.clone(), part(&segment, &chunks, &all));
                    let whole = dice.roll(3) > 0;
                    let end = if whole {
                        bytes.len()
                    } else {
                        dice.roll(bytes.len() as u64) as usize
                    };
                    number += 1;
                    let mut socket = rig.connect(number);
                    std::thread::spawn(move || {
                        // The worker may have ended it first.
                        let _ = socket.write_all(&bytes[..end]);
                        let _ = socket.shutdown(Shutdown::Write);
                        socket
                    })
                })
                .collect();
            collect(&rig, &mut landed, CONNECTIONS);
            let ledger = segment.ledger.lock().expect("unpoisoned");
            assert_eq!(ledger.granted(), 0, "all grants returned");
            assert_eq!(*ledger.landed(), landed);
            drop(ledger);
            for sender in senders {
                sender.join().expect("sent");
            }
        }
        assert!(contents(&file) == *all, "seed {seed}");
    }
}
