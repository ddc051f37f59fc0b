//! Histories that chance would not find: a very slow disk, and each word that is
//! owed and never said.
//!
//! Leaves to others: everything that a seed may bring. Invariant: no other fault
//! is about, so what ends a transfer here is what the test did.

use crate::rng::{MILLI, Rng};
use crate::scenario::{Fault, FileSpec, Phase, Scenario, Want, When};
use crate::world::World;
use haul_engine::limits;
use haul_engine::protocol::wire::{Data, Message};

/// Which words are meant.
type Words = fn(&Message) -> bool;

const SECOND: u64 = 1_000 * MILLI;

fn world(files: usize, bytes: usize, sender_dials: bool) -> World {
    let mut rng = Rng::new(files as u64);
    let mut file = || FileSpec {
        bytes: rng.bytes(bytes),
        data: Data::Everywhere,
        want: Want::Whole,
        stream: false,
        endless: false,
        folder: false,
    };
    let scenario = Scenario {
        chunk_bytes: 64,
        batches: vec![(0..files).map(|_| file()).collect()],
        descriptors: [100_000; 2],
        connections: 2,
        sender_dials,
        asks_again: false,
        name_parts: None,
        window_bytes: None,
        // Only where a test lets it strike.
        faults: vec![(When::Never, Fault::Cut)],
        zero_copy_once_in: 0,
        nanos_per_byte: 1_000,
    };
    World::of(Rng::new(1), scenario, None)
}

#[test]
fn hands_that_take_ten_minutes_are_waited_for() {
    for sender_dials in [true, false] {
        let mut world = world(limits::SEGMENT_ENTRIES_MAX, 1, sender_dials);
        world.hands_take = Some(600 * SECOND);
        world.play();
        assert_eq!(world.judge(), Vec::<String>::new());
        // Targets are made, sources looked at, and files settled.
        assert!(world.queue.now > 1_800 * SECOND, "{}", world.queue.now);
        assert_eq!(world.ends.sender, Some(Ok(())));
        assert_eq!(world.ends.receiver, Some(Ok(())));
    }
}

#[test]
fn a_word_that_is_dropped_ends_the_transfer_in_time() {
    let words: [(&str, Words); 7] = [
        ("Offer", |word| matches!(word, Message::Offer(_))),
        ("Answer", |word| matches!(word, Message::Answer(_))),
        ("Freed", |word| matches!(word, Message::Freed { .. })),
        ("Closed", |word| matches!(word, Message::Closed { .. })),
        // Who says Finished all the same is a liar.
        ("Settled", |word| {
            matches!(word, Message::Settled { .. } | Message::Finished { .. })
        }),
        ("Finish", |word| matches!(word, Message::Finish { .. })),
        ("Finished", |word| matches!(word, Message::Finished { .. })),
    ];
    for sender_dials in [true, false] {
        for (name, word) in words {
            let mut world = world(3, 10_000, sender_dials);
            if name == "Freed" {
                world.pending.push((0, Phase::Moving, 0));
            }
            world.drops = Some(word);
            world.play();
            assert_eq!(world.findings, Vec::<String>::new(), "{name}");
            // What was done before is told by heartbeats, 2 s apart.
            let wait = limits::WORD_WAIT_NANOS_MAX;
            let at = world.gave_up_at.expect(name);
            assert!((wait..wait + 6 * SECOND).contains(&at), "{name}: {at} ns");
        }
    }
}
