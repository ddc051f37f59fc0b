//! The sender against receivers that lie, and the corners that the simulation
//! meets too rarely.
//!
//! Leaves to others: honest transfers (the simulation). Invariant: a lie is a
//! violation, never a panic.

mod sources;

use super::*;
use crate::protocol::plan::digest;
use crate::protocol::wire::{Answer, Data, EntryKind, FileRange, Verdict};
use crate::report::Level;
use proptest::prelude::*;

const TRANSFER: TransferId = TransferId([1; 16]);
const CHUNK: u32 = 64 * 1024;

fn entry(size: u64) -> Entry {
    Entry {
        name: b"file".to_vec(),
        kind: EntryKind::File,
        size,
        mode: 0o644,
        mtime_seconds: 0,
        mtime_nanos: 0,
        data: Data::Everywhere,
        ..Entry::default()
    }
}

fn answer(offer: &Offer, verdicts: Vec<Verdict>) -> Message {
    Message::Answer(Answer {
        transfer: TRANSFER,
        segment: offer.segment,
        digest: digest(offer, &verdicts),
        verdicts,
    })
}

fn outputs(sender: &mut Sender) -> Vec<SenderOutput> {
    let mut all = Vec::new();
    while let Some(output) = sender.poll(0) {
        // All sources are open.
        if let SenderOutput::Segment { segment, .. } = output {
            sender.opened(segment, Vec::new());
        }
        all.push(output);
    }
    all
}

fn runs(outputs: &[SenderOutput]) -> Vec<Run> {
    let runs = outputs.iter().filter_map(|output| match output {
        SenderOutput::Run { run, .. } => Some(*run),
        _ => None,
    });
    runs.collect()
}

fn has_look(outputs: &[SenderOutput]) -> bool {
    let is_look = |output: &SenderOutput| matches!(output, SenderOutput::Look { .. });
    outputs.iter().any(is_look)
}

fn closed_of(outputs: &[SenderOutput]) -> Option<u32> {
    outputs.iter().find_map(|output| match output {
        SenderOutput::Message(Message::Closed { recalls, .. }) => Some(*recalls),
        _ => None,
    })
}

/// A sender with one file of `chunks` chunks, answered; and its first runs.
fn moving(chunks: u64, connections: u32) -> (Sender, Vec<Run>) {
    moving_files(&[chunks * u64::from(CHUNK)], connections)
}

/// As [`moving`], with files of these sizes.
fn moving_files(sizes: &[u64], connections: u32) -> (Sender, Vec<Run>) {
    let mut sender = Sender::new(SenderConfig {
        deletes: false,
        may_hold: false,
        transfer: TRANSFER,
        chunk_bytes: CHUNK,
        window_bytes: None,
        bytes_per_second_max: None,
        descriptors_max: 4096,
        peer_descriptors_max: 4096,
    });
    for connection in 0..connections {
        sender.connection_joined(0, connection);
    }
    let entries: Vec<Entry> = sizes.iter().copied().map(entry).collect();
    sender.offer(entries.into(), true);
    let Some(SenderOutput::Message(Message::Offer(offer))) = sender.poll(0) else {
        panic!("an offer comes first");
    };
    let verdicts = vec![Verdict::Whole; sizes.len()];
    hear(&mut sender, answer(&offer, verdicts));
    let runs = runs(&outputs(&mut sender));
    (sender, runs)
}

fn hear(sender: &mut Sender, message: Message) {
    sender.handle_message(0, message).expect("an honest word");
}

fn landed(first: ChunkId, count: u64) -> Message {
    Message::Landed {
        transfer: TRANSFER,
        segment: 0,
        chunks: vec![ChunkRange { first, count }],
    }
}

fn sent(sender: &mut Sender, connection: ConnectionId, run: Run) {
    let checks = vec![[0; 16]; run.count as usize];
    sender.run_sent(0, connection, run, 0, checks);
}

/// What a look finds where nothing changed.
fn unchanged(size: u64) -> Result<Looked, Error> {
    Ok(Looked {
        size,
        touched: None,
    })
}

/// What a chunk's check is found to be, with nothing to lay that to.
fn is_now(check: Check) -> Result<Rechecked, Error> {
    Ok(Rechecked {
        check,
        suspects: Vec::new(),
    })
}

#[test]
fn what_an_honest_receiver_cannot_say_is_a_violation() {
    let settled = Message::Settled {
        transfer: TRANSFER,
        segment: 0,
        files: vec![FileRange::one(0)],
        level: Level::Sealed,
    };
    let damaged = |chunk| Message::Damaged {
        transfer: TRANSFER,
        segment: 0,
        chunk,
    };
    let drained = |first, count| Message::Drained {
        transfer: TRANSFER,
        segment: 0,
        chunks: ChunkRange { first, count },
    };
    let offer = Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer: TRANSFER,
        segment: 0,
        last: true,
        entries: vec![entry(0)],
    };
    let lies = [
        // More than one run's worth, so some of it was never handed out.
        landed(0, 1000),
        landed(999, 1),
        landed(u64::MAX, u64::MAX),
        landed(0, 0),
        damaged(999),
        damaged(u64::MAX),
        drained(990, 10),
        drained(u64::MAX, 2),
        settled.clone(),
        Message::Settled {
            transfer: TRANSFER,
            segment: 0,
            files: vec![FileRange { first: 6, count: 2 }],
            level: Level::Sealed,
        },
        Message::Settled {
            transfer: TRANSFER,
            segment: 9,
            files: vec![FileRange::one(0)],
            level: Level::Sealed,
        },
        Message::Failed {
            transfer: TRANSFER,
            segment: 0,
            file: 1,
            error: Error::usage("no"),
        },
        Message::Finished {
            transfer: TRANSFER,
            report: Box::default(),
        },
        Message::Abort {
            transfer: TransferId([2; 16]),
            error: Error::usage("no"),
        },
        answer(&offer, vec![Verdict::Whole]),
        Message::Offer(offer.clone().into()),
        Message::Heartbeat { worked: 0 },
    ];
    for lie in lies {
        let (mut sender, _) = moving(1000, 1);
        let said = format!("{lie:?}");
        assert!(sender.handle_message(0, lie).is_err(), "{said}");
        // The caller then stops, and that is the end of it.
        sender.stop(Error::usage("a liar"));
        let last = outputs(&mut sender).pop();
        assert!(matches!(last, Some(SenderOutput::Failed(_))), "{said}");
        assert!(sender.handle_message(0, settled.clone()).is_ok());
        assert!(sender.poll(0).is_none());
    }
}

#[test]
fn an_answer_has_to_be_to_what_was_offered() {
    for spoil in [
        |answer: &mut Answer| answer.digest[0] ^= 1,
        |answer: &mut Answer| answer.verdicts.push(Verdict::Skip),
        |answer: &mut Answer| answer.segment = 3,
        |answer: &mut Answer| {
            answer.verdicts[0] = Verdict::Ranges(vec![crate::protocol::wire::ByteRange {
                start: 5,
                end: u64::MAX,
            }]);
        },
    ] {
        let mut sender = Sender::new(SenderConfig {
            deletes: false,
            may_hold: false,
            transfer: TRANSFER,
            chunk_bytes: CHUNK,
            window_bytes: None,
            bytes_per_second_max: None,
            descriptors_max: 4096,
            peer_descriptors_max: 4096,
        });
        sender.offer(vec![entry(10)].into(), true);
        let Some(SenderOutput::Message(Message::Offer(offer))) = sender.poll(0) else {
            panic!("an offer comes first");
        };
        let Message::Answer(mut answer) = answer(&offer, vec![Verdict::Whole]) else {
            panic!("it is an answer");
        };
        spoil(&mut answer);
        let heard = sender.handle_message(0, Message::Answer(answer));
        assert!(heard.is_err());
    }
}

#[test]
fn what_shares_blocks_is_looked_at_again_and_only_where_they_were_lent() {
    for may_hold in [true, false] {
        let mut sender = Sender::new(SenderConfig {
            deletes: false,
            may_hold,
            transfer: TRANSFER,
            chunk_bytes: CHUNK,
            window_bytes: None,
            bytes_per_second_max: None,
            descriptors_max: 4096,
            peer_descriptors_max: 4096,
        });
        sender.connection_joined(0, 0);
        sender.offer(vec![entry(1000)].into(), true);
        let Some(SenderOutput::Message(Message::Offer(offer))) = sender.poll(0) else {
            panic!("an offer comes first");
        };
        let heard = sender.handle_message(0, answer(&offer, vec![Verdict::Held]));
        assert_eq!(heard.is_ok(), may_hold, "{heard:?}");
        if !may_hold {
            continue;
        }
        let settled = Message::Settled {
            transfer: TRANSFER,
            segment: 0,
            files: vec![FileRange { first: 0, count: 1 }],
            level: Level::Sealed,
        };
        let out = outputs(&mut sender);
        assert!(runs(&out).is_empty() && has_look(&out), "{out:?}");
        assert_eq!(closed_of(&out), None);
        let early = sender.handle_message(0, settled.clone());
        assert!(early.is_err(), "nothing is settled before the look");
        sender.looked(0, 0, unchanged(1000));
        assert!(closed_of(&outputs(&mut sender)).is_some());
        hear(&mut sender, settled);
        let out = outputs(&mut sender);
        let is_end = |output: &SenderOutput| {
            let ended = SenderOutput::FileEnded {
                segment: 0,
                file: 0,
                size: Some(1000),
                result: Ok(Level::Sealed),
            };
            format!("{output:?}") == format!("{ended:?}")
        };
        assert!(out.iter().any(is_end), "{out:?}");
        assert_eq!(sender.counts(), Bytes::default(), "no byte moved");
    }
}

#[test]
fn a_receiver_that_does_not_answer_is_given_up_in_time() {
    let (mut sender, _) = moving(1, 1);
    let due = limits::WORD_WAIT_NANOS_MAX;
    assert!(
        sender.poll(2 * due).is_none(),
        "what lands takes what it takes"
    );
    let mut offering = Sender::new(sender.config);
    offering.offer(vec![entry(1)].into(), true);
    assert_eq!(outputs(&mut offering).len(), 1, "the offer");
    let mut naming = Sender::new(offering.config);
    naming.names_are_due(true);
    let (mut losing, _) = moving(9, 1);
    losing.connection_lost(0, 0);
    outputs(&mut losing);
    // All of it landed, and its end is owed.
    let (mut closed, runs) = moving(1, 1);
    sent(&mut closed, 0, runs[0]);
    outputs(&mut closed);
    closed.looked(0, 0, unchanged(u64::from(CHUNK)));
    hear(&mut closed, landed(0, 1));
    outputs(&mut closed);
    for mut sender in [offering, naming, losing, closed] {
        let began = 1_000_000_000;
        sender.peer_works();
        assert!(sender.poll(began).is_none());
        assert!(sender.poll(began + due - 1).is_none());
        // Whoever works on it may take all the time it needs.
        sender.peer_works();
        let later = began + due + began;
        assert!(sender.poll(later).is_none());
        let due = later + due;
        assert!(sender.poll(due - 1).is_none());
        let last: Vec<_> = std::iter::from_fn(|| sender.poll(due)).collect();
        assert!(
            matches!(last.last(), Some(SenderOutput::Failed(error)) if error.kind == ErrorKind::Peer)
        );
    }
}

#[test]
fn a_run_that_goes_out_is_work_though_its_file_failed() {
    let (mut sender, runs) = moving(4, 1);
    assert!(sender.is_sending());
    let error = Error::local("cannot write", "no space left");
    let failed = Message::Failed {
        transfer: TRANSFER,
        segment: 0,
        file: 0,
        error,
    };
    hear(&mut sender, failed);
    let finishes = |output: &SenderOutput| matches!(output, SenderOutput::Finish);
    // The receiver, which waits for the last word, hears that meanwhile.
    assert!(!outputs(&mut sender).iter().any(finishes) && sender.is_sending());
    runs.iter().for_each(|run| sent(&mut sender, 0, *run));
    assert!(outputs(&mut sender).iter().any(finishes) && !sender.is_sending());
}

#[test]
fn an_acknowledgement_counts_once_and_a_connection_is_freed_once() {
    let (mut sender, runs) = moving(1000, 1);
    let run = runs[0];
    hear(&mut sender, landed(run.first, 1));
    assert!(sender.handle_message(0, landed(run.first, 1)).is_err());
    assert_eq!(sender.counts().landed, u64::from(CHUNK));
    let freed = Message::Freed { connection: 0 };
    hear(&mut sender, freed.clone());
    let unlanded = u64::from(run.count - 1) * u64::from(CHUNK);
    assert_eq!(sender.counts().resent, unlanded);
    // It may be said twice where it went between two transfers, not more often.
    hear(&mut sender, freed.clone());
    assert_eq!(sender.counts().resent, unlanded);
    assert!(sender.handle_message(0, freed).is_err());
}

#[test]
fn a_lost_connections_chunks_wait_until_it_is_freed() {
    let (mut sender, first) = moving(1000, 1);
    sent(&mut sender, 0, first[0]);
    hear(&mut sender, landed(first[0].first, 2));
    sender.connection_lost(0, 0);
    sender.connection_joined(0, 1);
    let next = runs(&outputs(&mut sender));
    let taken = first[1].first + u64::from(first[1].count);
    assert!(next.iter().all(|run| run.first >= taken), "{next:?}");
    hear(&mut sender, Message::Freed { connection: 0 });
    next.iter().for_each(|run| sent(&mut sender, 1, *run));
    let again = runs(&outputs(&mut sender));
    assert_eq!(again[0].first, first[0].first + 2, "and they go first");
    // The freed connection is told to nobody as lost, and its number is used up.
    sender.connection_joined(0, 0);
    let after = outputs(&mut sender);
    let is_close =
        |output: &SenderOutput| matches!(output, SenderOutput::CloseConnection { connection: 0 });
    assert!(after.iter().any(is_close));
}

#[test]
fn a_connection_that_the_receiver_freed_first_is_closed_here() {
    let (mut sender, first) = moving(1000, 2);
    hear(&mut sender, Message::Freed { connection: 0 });
    let after = outputs(&mut sender);
    let is_close =
        |output: &SenderOutput| matches!(output, SenderOutput::CloseConnection { connection: 0 });
    assert!(after.iter().any(is_close));
    // What its worker still tells, and its own loss, mean nothing any more.
    sent(&mut sender, 0, first[0]);
    sender.connection_lost(0, 0);
    assert!(
        outputs(&mut sender)
            .iter()
            .all(|output| !matches!(output, SenderOutput::Message(Message::Lost { .. })))
    );
}

#[test]
fn a_terabyte_costs_no_memory_by_chunks() {
    let (mut sender, mut next) = moving(1 << 24, 1);
    let mut handed = 0;
    for _ in 0..200 {
        for run in std::mem::take(&mut next) {
            handed += u64::from(run.count);
            sent(&mut sender, 0, run);
            hear(&mut sender, landed(run.first, u64::from(run.count)));
        }
        next = runs(&outputs(&mut sender));
    }
    assert!(handed > 1000);
    let Some(SendingSegment::Moving(work)) = sender.segments.get(&0) else {
        panic!("it goes on");
    };
    assert!(work.flights.len() <= limits::RUNS_AHEAD_MAX);
    assert!(work.remembered() <= 4, "{}", work.remembered());
}

#[test]
fn saturated_connections_get_full_runs() {
    let (mut sender, next) = moving(1 << 24, 1);
    for (index, run) in (1..).zip(&next) {
        let now = index * 1_000_000;
        let checks = vec![[0; 16]; run.count as usize];
        sender.run_sent(now, 0, *run, now - 500_000, checks);
        let word = landed(run.first, u64::from(run.count));
        sender.handle_message(now, word).expect("an honest word");
    }
    let full = limits::RUN_BYTES_MAX / u64::from(CHUNK);
    let next = runs(&outputs(&mut sender));
    assert!(
        next.iter().all(|run| u64::from(run.count) == full),
        "{next:?}"
    );
}

/// Plays `chunks` chunks over connections of these rates, 1 ms away; gives how
/// many runs it took, and when each connection was done.
fn race(chunks: u64, bytes_per_second: &[u64]) -> (usize, Vec<Nanos>) {
    let (mut sender, _) = moving(chunks, 0);
    for connection in 0..bytes_per_second.len() as u32 {
        sender.connection_joined(0, connection);
    }
    let mut free_at = vec![0; bytes_per_second.len()];
    // By time: what was sent, and what landed a millisecond later.
    let mut events: BTreeMap<(Nanos, usize), (ConnectionId, Run, Nanos, bool)> = BTreeMap::new();
    let (mut now, mut count) = (0, 0);
    loop {
        while let Some(output) = sender.poll(now) {
            let SenderOutput::Run {
                connection, run, ..
            } = output
            else {
                continue;
            };
            count += 1;
            let rate = bytes_per_second[connection as usize];
            let bytes = u64::from(run.count) * u64::from(CHUNK);
            let free = &mut free_at[connection as usize];
            let start = now.max(*free);
            *free = start + bytes * 1_000_000_000 / rate;
            events.insert((*free, count * 2), (connection, run, start, false));
            events.insert(
                (*free + 1_000_000, count * 2 + 1),
                (connection, run, start, true),
            );
        }
        let Some(((time, _), (connection, run, start, is_landed))) = events.pop_first() else {
            return (count, free_at);
        };
        now = time;
        if is_landed {
            let word = landed(run.first, u64::from(run.count));
            sender.handle_message(now, word).expect("an honest word");
        } else {
            let checks = vec![[0; 16]; run.count as usize];
            sender.run_sent(now, connection, run, start, checks);
        }
    }
}

#[test]
fn fast_connections_get_few_runs_and_slow_ones_finish_together() {
    // 587 MiB over four connections of a saturated loopback.
    let chunks = 587 * 1024 * 1024 / u64::from(CHUNK);
    let (count, _) = race(chunks, &[500_000_000; 4]);
    let full = 587 / 4 + 1;
    assert!(count < full * 6 / 5, "{count} runs, {full} full ones");
    // Held to 10 MB/s each, and one to a quarter of that.
    for rates in [
        [10_000_000; 4],
        [10_000_000, 10_000_000, 10_000_000, 2_500_000],
    ] {
        let (_, done) = race(chunks / 8, &rates);
        let (first, last) = (done.iter().min(), done.iter().max());
        let apart = last.zip(first).map(|(last, first)| last - first);
        assert!(apart < Some(100_000_000), "{done:?}");
        let ideal = chunks / 8 * u64::from(CHUNK) * 1000 / rates.iter().sum::<u64>();
        let took = last.map(|nanos| nanos / 1_000_000);
        assert!(
            took < Some(ideal * 102 / 100 + 50),
            "{took:?} ms for {ideal}"
        );
    }
}

#[test]
fn no_more_segments_are_open_than_the_limit() {
    let mut sender = Sender::new(SenderConfig {
        deletes: false,
        may_hold: false,
        transfer: TRANSFER,
        chunk_bytes: CHUNK,
        window_bytes: None,
        bytes_per_second_max: None,
        descriptors_max: 4096,
        peer_descriptors_max: 4096,
    });
    for _ in 0..limits::SEGMENTS_OPEN_MAX + 3 {
        sender.offer(vec![entry(0)].into(), false);
    }
    assert!(sender.room() == 0);
    assert_eq!(outputs(&mut sender).len(), limits::SEGMENTS_OPEN_MAX);
    sender.stop(Error::usage("enough"));
    let ends = outputs(&mut sender);
    let is_end = |output: &&SenderOutput| matches!(output, SenderOutput::FileEnded { .. });
    assert_eq!(
        ends.iter().filter(is_end).count(),
        limits::SEGMENTS_OPEN_MAX + 3,
        "each file ends once, offered or not"
    );
}

/// Words of a receiver that has lost its mind, about small numbers, so that
/// many of them nearly make sense.
fn mad_word() -> impl Strategy<Value = Message> {
    (0..9, 0u32..3, 0u64..24, 0u64..6).prop_map(|(kind, small, first, count)| {
        let (transfer, segment) = (TRANSFER, small / 2);
        let (file, chunks) = (small, ChunkRange { first, count });
        match kind {
            0 => Message::Freed { connection: small },
            1..4 => Message::Landed {
                transfer,
                segment,
                chunks: vec![chunks],
            },
            4 => Message::Damaged {
                transfer,
                segment,
                chunk: first,
            },
            5 => Message::Drained {
                transfer,
                segment,
                chunks,
            },
            6 => Message::Settled {
                transfer,
                segment,
                files: vec![FileRange::one(file)],
                level: Level::Sealed,
            },
            7 => Message::Failed {
                transfer,
                segment,
                file,
                error: Error::usage("mad"),
            },
            _ => Message::Finished {
                transfer,
                report: Box::default(),
            },
        }
    })
}

proptest! {
    #[test]
    fn no_order_of_words_is_a_panic_or_counts_twice(
        words in prop::collection::vec((mad_word(), any::<[bool; 4]>()), 0..40),
    ) {
        let (mut sender, first) = moving(20, 3);
        let mut unsent: VecDeque<Run> = first.into();
        for (word, [send, look, recheck, lose]) in words {
            if let Some(run) = unsent.front().copied().filter(|_| send) {
                unsent.pop_front();
                (0..3).for_each(|connection| sent(&mut sender, connection, run));
            }
            // What makes no sense changes nothing that goes on: the caller may
            // stop, but the next word must not find it broken.
            let _ = sender.handle_message(0, word);
            if lose {
                sender.connection_lost(0, 1);
            }
            for output in outputs(&mut sender) {
                match output {
                    SenderOutput::Run { run, .. } => unsent.push_back(run),
                    SenderOutput::Look { segment, files } if look => {
                        for file in files {
                            sender.looked(segment, file, unchanged(20 * u64::from(CHUNK)));
                        }
                    }
                    SenderOutput::Recheck { segment, chunk } if recheck => {
                        sender.rechecked(segment, chunk, is_now([0; 16]));
                    }
                    SenderOutput::Finish => sender.finish(SideReport::default()),
                    _ => {}
                }
            }
            let counts = sender.counts();
            prop_assert!(counts.landed <= counts.planned && counts.sealed <= counts.landed);
        }
    }
}
