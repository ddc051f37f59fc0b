//! The receiver against senders that lie, and the ends that the simulation
//! meets too rarely.
//!
//! Leaves to others: honest transfers (the simulation). Invariant: a lie is a
//! violation, never a panic.

use super::*;
use crate::error::ErrorKind;
use crate::protocol::wire::{Data, Entry, EntryKind, FileRange};
use proptest::prelude::*;

const TRANSFER: TransferId = TransferId([1; 16]);
const CHUNK: u32 = 64 * 1024;

fn offer(segment: SegmentId, sizes: &[u64], last: bool) -> Message {
    let entries = sizes.iter().map(|&size| Entry {
        name: b"file".to_vec(),
        kind: EntryKind::File,
        size,
        mode: 0o644,
        mtime_seconds: 0,
        mtime_nanos: 0,
        data: Data::Everywhere,
        ..Entry::default()
    });
    Message::Offer(Arc::new(Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer: TRANSFER,
        segment,
        last,
        entries: entries.collect(),
    }))
}

fn stream() -> Message {
    let Message::Offer(mut offer) = offer(0, &[0], true) else {
        panic!("it is an offer");
    };
    Arc::make_mut(&mut offer).entries[0].kind = EntryKind::Stream;
    Message::Offer(offer)
}

fn closed(stream_bytes: impl Into<Option<u64>>, recalls: u32) -> Message {
    Message::Closed {
        transfer: TRANSFER,
        segment: 0,
        files: vec![FileRange::one(0)],
        stream_bytes: stream_bytes.into(),
        recalls,
        touched: None,
    }
}

fn receiver() -> Receiver {
    Receiver::new(ReceiverConfig {
        deletes: false,
        transfer: TRANSFER,
        chunk_bytes: CHUNK,
        descriptors_max: 1 << 20,
    })
}

fn open(offer: Message, verdicts: Vec<Verdict>) -> Receiver {
    let mut receiver = receiver();
    hear(&mut receiver, offer);
    outputs(&mut receiver);
    receiver.prepared(0, verdicts);
    outputs(&mut receiver);
    receiver
}

fn hear(receiver: &mut Receiver, message: Message) {
    receiver.handle_message(0, message).expect("an honest word");
}

/// All outputs, with hands that discard at once.
fn outputs(receiver: &mut Receiver) -> Vec<ReceiverOutput> {
    let next = || {
        let output = receiver.poll(0);
        if let Some(ReceiverOutput::Discard { .. }) = output {
            receiver.discarded();
        }
        output
    };
    std::iter::from_fn(next).collect()
}

fn settles(outputs: &[ReceiverOutput]) -> bool {
    let is_settle = |output: &ReceiverOutput| matches!(output, ReceiverOutput::Settle { .. });
    outputs.iter().any(is_settle)
}

fn land(receiver: &mut Receiver, first: ChunkId, count: u64, bytes: u64) {
    receiver.chunks_landed(0, 0, ChunkRange { first, count }, bytes);
}

#[test]
fn a_sender_that_says_nothing_more_is_given_up_in_time() {
    // It is not looked at in every moment what is owed.
    let second = 1_000_000_000;
    let due = second + limits::WORD_WAIT_NANOS_MAX;
    let size = u64::from(CHUNK);
    let whole = open(offer(0, &[size], true), vec![Verdict::Whole]);
    let mut landed = open(offer(0, &[size], true), vec![Verdict::Whole]);
    land(&mut landed, 0, 1, size);
    let mut settling = open(offer(0, &[size], true), vec![Verdict::Whole]);
    land(&mut settling, 0, 1, size);
    hear(&mut settling, closed(None, 0));
    let streams = open(stream(), vec![Verdict::Whole]);
    for (mut receiver, is_due, state) in [
        (receiver(), true, "nothing offered"),
        (whole, false, "a chunk is missing"),
        (landed, true, "the sender's look is missing"),
        (settling, false, "the hands are at work"),
        (streams, false, "a stream ends when it ends"),
    ] {
        outputs(&mut receiver);
        receiver.peer_works();
        assert!(receiver.poll(second).is_none(), "{state}");
        assert!(receiver.poll(due - 1).is_none(), "{state}");
        // As long as it works on it, it is not given up.
        receiver.peer_works();
        let later = due + second;
        assert!(receiver.poll(later).is_none(), "{state}");
        let due = later + limits::WORD_WAIT_NANOS_MAX;
        assert!(receiver.poll(due - 1).is_none(), "{state}");
        let mut fails = false;
        while let Some(output) = receiver.poll(due) {
            fails |= matches!(output, ReceiverOutput::Message(Message::Abort { .. }));
        }
        assert_eq!(fails, is_due, "{state}");
    }
}

#[test]
fn what_an_honest_sender_cannot_say_is_a_violation() {
    let size = 3 * u64::from(CHUNK);
    let lies = [
        offer(0, &[1], true),
        offer(2, &[1], true),
        closed(None, 1),
        closed(size, 0),
        Message::Closed {
            transfer: TRANSFER,
            segment: 0,
            files: vec![FileRange { first: 0, count: 2 }],
            stream_bytes: None,
            recalls: 0,
            touched: None,
        },
        Message::Closed {
            transfer: TRANSFER,
            segment: 5,
            files: vec![FileRange::one(0)],
            stream_bytes: None,
            recalls: 0,
            touched: None,
        },
        Message::Changed {
            transfer: TRANSFER,
            segment: 0,
            file: 1,
            error: Error::usage("no"),
        },
        Message::Void {
            transfer: TRANSFER,
            segment: 0,
            file: 0,
            chunks: ChunkRange {
                first: u64::MAX,
                count: u64::MAX,
            },
            error: Error::usage("no"),
        },
        Message::Finish {
            transfer: TRANSFER,
            report: Box::default(),
        },
        Message::Landed {
            transfer: TRANSFER,
            segment: 0,
            chunks: Vec::new(),
        },
        Message::Abort {
            transfer: TransferId([2; 16]),
            error: Error::usage("no"),
        },
        Message::Heartbeat { worked: 0 },
    ];
    for lie in lies {
        let mut receiver = open(offer(0, &[size], false), vec![Verdict::Whole]);
        let said = format!("{lie:?}");
        assert!(receiver.handle_message(0, lie).is_err(), "{said}");
        receiver.stop(Error::usage("a liar"));
        let ends = outputs(&mut receiver);
        let discards = |output: &ReceiverOutput| matches!(output, ReceiverOutput::Discard { .. });
        assert!(ends.iter().any(discards), "{said}");
        let last = ends.last();
        assert!(matches!(last, Some(ReceiverOutput::Failed(_))), "{said}");
        assert!(receiver.poll(0).is_none());
    }
}

#[test]
fn nothing_follows_the_last_segment_and_only_so_many_are_open() {
    let mut receiver = receiver();
    hear(&mut receiver, offer(0, &[1], true));
    assert!(receiver.handle_message(0, offer(1, &[1], true)).is_err());

    let mut receiver = self::receiver();
    let open_max = limits::SEGMENTS_OPEN_MAX as u32;
    for segment in 0..open_max {
        hear(&mut receiver, offer(segment, &[1], false));
    }
    let more = offer(open_max, &[1], false);
    assert!(receiver.handle_message(0, more).is_err());
}

#[test]
fn only_a_word_that_heard_everything_settles() {
    let size = 2 * u64::from(CHUNK);
    let mut receiver = open(offer(0, &[size], true), vec![Verdict::Whole]);
    hear(&mut receiver, closed(None, 0));
    land(&mut receiver, 0, 1, u64::from(CHUNK));
    receiver.chunk_damaged(0, 1);
    receiver.connection_reaped(4);
    receiver.connection_reaped(4);
    land(&mut receiver, 1, 1, u64::from(CHUNK));
    assert!(!settles(&outputs(&mut receiver)), "the word is stale");
    hear(&mut receiver, closed(None, 1));
    assert!(
        !settles(&outputs(&mut receiver)),
        "it did not hear of the connection"
    );
    hear(&mut receiver, closed(None, 2));
    assert!(settles(&outputs(&mut receiver)));
}

#[test]
fn acknowledgements_are_one_word_and_come_before_the_word_that_frees() {
    let mut receiver = open(offer(0, &[1 << 30], true), vec![Verdict::Whole]);
    for first in [0, 2, 1, 7] {
        land(&mut receiver, first, 1, u64::from(CHUNK));
    }
    receiver.connection_reaped(0);
    let said: Vec<Message> = outputs(&mut receiver)
        .into_iter()
        .filter_map(|output| match output {
            ReceiverOutput::Message(message) => Some(message),
            _ => None,
        })
        .collect();
    let [
        Message::Landed { chunks, .. },
        Message::Freed { connection: 0 },
    ] = &said[..]
    else {
        panic!("{said:?}");
    };
    let range = |first, count| ChunkRange { first, count };
    assert_eq!(chunks, &[range(0, 3), range(7, 1)]);
}

#[test]
fn a_streams_length_has_to_be_what_landed() {
    let chunk = u64::from(CHUNK);
    let mut receiver = open(stream(), vec![Verdict::Whole]);
    land(&mut receiver, 0, 1, chunk);
    land(&mut receiver, 1, 1, 10);
    hear(&mut receiver, closed(chunk + 10, 0));
    assert!(settles(&outputs(&mut receiver)));

    let mut receiver = open(stream(), vec![Verdict::Whole]);
    land(&mut receiver, 0, 1, chunk);
    land(&mut receiver, 1, 1, 10);
    assert!(
        receiver.handle_message(0, closed(chunk, 0)).is_err(),
        "shorter than what landed"
    );

    let mut receiver = open(stream(), vec![Verdict::Whole]);
    land(&mut receiver, 0, 1, 10);
    land(&mut receiver, 1, 1, chunk);
    hear(&mut receiver, closed(2 * chunk, 0));
    let ends = outputs(&mut receiver);
    assert!(!settles(&ends));
    let kind = ends.iter().find_map(|output| match output {
        ReceiverOutput::FileEnded {
            result: Err(error), ..
        } => Some(error.kind),
        _ => None,
    });
    assert_eq!(
        kind,
        Some(ErrorKind::Integrity),
        "a short chunk in the middle"
    );
}

#[test]
fn an_end_waits_for_the_hands_and_leaves_nothing_behind() {
    // One segment is being prepared, and of the other one file is being settled.
    let mut receiver = open(offer(0, &[0, 5], false), vec![Verdict::Whole; 2]);
    hear(&mut receiver, closed(None, 0));
    hear(&mut receiver, offer(1, &[7, 7], true));
    assert!(settles(&outputs(&mut receiver)));
    let error = Error::new(ErrorKind::Interrupted, "the user stopped it");
    hear(
        &mut receiver,
        Message::Abort {
            transfer: TRANSFER,
            error,
        },
    );
    let failed = |outputs: &[ReceiverOutput]| {
        let is_failed = |output: &ReceiverOutput| matches!(output, ReceiverOutput::Failed(_));
        outputs.iter().any(is_failed)
    };
    assert!(!failed(&outputs(&mut receiver)));
    receiver.settled(0, 0, Ok(Level::Sealed));
    assert!(!failed(&outputs(&mut receiver)));
    let refused = Verdict::Refused(Error::usage("no"));
    receiver.prepared(1, vec![Verdict::Whole, refused]);
    let ends = outputs(&mut receiver);
    let discard = |output: &ReceiverOutput| {
        matches!(
            output,
            ReceiverOutput::Discard {
                segment: 1,
                file: 0
            }
        )
    };
    assert!(ends.iter().any(discard));
    assert!(matches!(ends.last(), Some(ReceiverOutput::Failed(_))));
}

#[test]
fn the_last_word_waits_for_what_is_being_removed() {
    let failed = || Message::Changed {
        transfer: TRANSFER,
        segment: 0,
        file: 0,
        error: Error::usage("it changed"),
    };
    let slow_hands = |receiver: &mut Receiver| -> Vec<ReceiverOutput> {
        std::iter::from_fn(|| receiver.poll(0)).collect()
    };
    let finishes = |outputs: &[ReceiverOutput]| {
        let is_finish = |output: &ReceiverOutput| matches!(output, ReceiverOutput::Finish);
        outputs.iter().any(is_finish)
    };

    let mut receiver = open(offer(0, &[5], true), vec![Verdict::Whole]);
    hear(&mut receiver, failed());
    assert!(!finishes(&slow_hands(&mut receiver)));
    // The sender need not wait: its report comes in between.
    hear(
        &mut receiver,
        Message::Finish {
            transfer: TRANSFER,
            report: Box::default(),
        },
    );
    assert!(!finishes(&slow_hands(&mut receiver)));
    receiver.discarded();
    assert!(finishes(&slow_hands(&mut receiver)));

    let mut receiver = open(offer(0, &[5], true), vec![Verdict::Whole]);
    hear(&mut receiver, failed());
    slow_hands(&mut receiver);
    receiver.stop(Error::usage("no more"));
    let is_failed = |output: &ReceiverOutput| matches!(output, ReceiverOutput::Failed(_));
    assert!(!slow_hands(&mut receiver).iter().any(is_failed));
    receiver.discarded();
    let ends = slow_hands(&mut receiver);
    assert!(ends.iter().any(is_failed) && !finishes(&ends));
}

#[test]
fn an_answer_fits_into_one_message() {
    let long = "x".repeat(5000);
    let entries = limits::SEGMENT_ENTRIES_MAX;
    let refused = Verdict::Refused(Error::usage(&*long).cure(&*long));
    let mut verdicts = vec![refused; entries - 40];
    let ranges: Vec<_> = (0..limits::VERDICT_RANGES_MAX as u64)
        .map(|at| crate::protocol::wire::ByteRange {
            start: (1 << 40) + at * 2,
            end: (1 << 40) + at * 2 + 1,
        })
        .collect();
    verdicts.extend(vec![Verdict::Ranges(ranges); 40]);
    let sizes = vec![1 << 41; entries];
    let mut receiver = receiver();
    hear(&mut receiver, offer(0, &sizes, true));
    outputs(&mut receiver);
    receiver.prepared(0, verdicts);
    let answer = outputs(&mut receiver)
        .into_iter()
        .find_map(|output| match output {
            ReceiverOutput::Message(message @ Message::Answer(_)) => Some(message),
            _ => None,
        });
    let bytes = crate::protocol::wire::encode(&answer.expect("it is answered"));
    let mut reader = crate::protocol::wire::MessageReader::new();
    reader.push(&bytes);
    assert!(matches!(reader.next(), Ok(Some(Message::Answer(_)))));
}

/// Words of a sender that has lost its mind, about small numbers, so that many
/// of them nearly make sense.
fn mad_word() -> impl Strategy<Value = Message> {
    (0..8, 0u32..3, 0u32..3, 0u64..4).prop_map(|(kind, segment, file, chunk)| {
        let transfer = TRANSFER;
        let size = chunk * u64::from(CHUNK);
        let error = Error::usage("mad");
        let chunks = ChunkRange {
            first: chunk,
            count: 1,
        };
        match kind {
            0 => offer(segment, &[size, 0], segment == 2),
            1..4 => Message::Closed {
                transfer,
                segment,
                files: vec![FileRange::one(file)],
                stream_bytes: (chunk == 3).then_some(size),
                recalls: segment,
                touched: None,
            },
            4 => Message::Changed {
                transfer,
                segment,
                file,
                error,
            },
            5 => Message::Void {
                transfer,
                segment,
                file,
                chunks,
                error,
            },
            6 => Message::Lost { connection: file },
            _ => Message::Finish {
                transfer,
                report: Box::default(),
            },
        }
    })
}

proptest! {
    #[test]
    fn no_order_of_words_is_a_panic_or_settles_what_did_not_land(
        words in prop::collection::vec((mad_word(), 0u64..6, any::<[bool; 4]>()), 0..40),
    ) {
        let mut receiver = receiver();
        hear(&mut receiver, offer(0, &[3 * u64::from(CHUNK), 5], false));
        outputs(&mut receiver);
        receiver.prepared(0, vec![Verdict::Whole; 2]);
        let mut landed = RangeSet::new();
        for (word, chunk, [land_it, damage, reap, settle]) in words {
            let _ = receiver.handle_message(0, word);
            if land_it && chunk < 4 && landed.insert(chunk..chunk + 1) == 1 {
                land(&mut receiver, chunk, 1, u64::from(CHUNK));
            }
            if damage && chunk < 4 && !landed.contains(chunk..chunk + 1) {
                receiver.chunk_damaged(0, chunk);
            }
            if reap {
                receiver.connection_reaped(chunk as ConnectionId);
            }
            for output in outputs(&mut receiver) {
                match output {
                    ReceiverOutput::Prepare { offer } => {
                        receiver.prepared(offer.segment, vec![Verdict::Whole; 2]);
                    }
                    ReceiverOutput::Settle { segment, files } => {
                        for FileToSettle { file, .. } in files {
                            let needed = if file == 0 { 0..3 } else { 3..4 };
                            prop_assert!(segment > 0 || landed.contains(needed));
                            if settle {
                                receiver.settled(segment, file, Ok(Level::Sealed));
                            }
                        }
                    }
                    ReceiverOutput::Finish => receiver.finish(SideReport::default()),
                    _ => {}
                }
            }
        }
    }
}
