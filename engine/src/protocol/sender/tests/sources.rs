//! Looks at sources, and chunks that are called back.
//!
//! Leaves to others: where chunks go. Invariant: a source is closed only by a look
//! that began after its last reading.

use super::*;
use crate::protocol::check::FileSum;
use crate::protocol::wire::Touched;

#[test]
fn a_look_that_began_before_a_chunk_was_called_back_closes_nothing() {
    let (mut sender, runs_first) = moving(1, 1);
    sent(&mut sender, 0, runs_first[0]);
    assert!(has_look(&outputs(&mut sender)));
    hear(&mut sender, Message::Freed { connection: 0 });
    sender.connection_joined(0, 1);
    let again = runs(&outputs(&mut sender));
    sent(&mut sender, 1, again[0]);
    // The first look is still out: the second waits for it.
    assert!(!has_look(&outputs(&mut sender)));
    sender.looked(0, 0, unchanged(u64::from(CHUNK)));
    let after = outputs(&mut sender);
    assert!(has_look(&after) && closed_of(&after).is_none());
    sender.looked(0, 0, unchanged(u64::from(CHUNK)));
    assert_eq!(closed_of(&outputs(&mut sender)), Some(1));
}

#[test]
fn a_word_that_calls_back_what_landed_is_answered_by_the_word_again() {
    let (mut sender, first) = moving(2, 1);
    let mut all = first.clone();
    while let Some(run) = all.pop() {
        sent(&mut sender, 0, run);
        hear(&mut sender, landed(run.first, u64::from(run.count)));
        all.extend(runs(&outputs(&mut sender)));
    }
    sender.looked(0, 0, unchanged(2 * u64::from(CHUNK)));
    assert_eq!(closed_of(&outputs(&mut sender)), Some(0));
    // The receiver counts this word too, so the old one is stale to it.
    hear(
        &mut sender,
        Message::Drained {
            transfer: TRANSFER,
            segment: 0,
            chunks: ChunkRange { first: 0, count: 2 },
        },
    );
    let after = outputs(&mut sender);
    assert_eq!(closed_of(&after), Some(1));
    assert!(runs(&after).is_empty() && !has_look(&after));
}

#[test]
fn damage_is_judged_by_what_the_source_has_now() {
    for (found, resends) in [([0; 16], true), ([9; 16], false)] {
        let (mut sender, first) = moving(1, 1);
        let damaged = Message::Damaged {
            transfer: TRANSFER,
            segment: 0,
            chunk: 0,
        };
        // It may be heard before the run is told as sent.
        hear(&mut sender, damaged);
        assert!(outputs(&mut sender).is_empty());
        sent(&mut sender, 0, first[0]);
        let recheck = outputs(&mut sender);
        assert!(matches!(
            recheck[..],
            [SenderOutput::Recheck { chunk: 0, .. }]
        ));
        sender.rechecked(0, 0, is_now(found));
        let after = outputs(&mut sender);
        assert_eq!(runs(&after).len(), usize::from(resends));
        let changed = |output: &SenderOutput| {
            matches!(output, SenderOutput::Message(Message::Changed { .. }))
        };
        assert_eq!(after.iter().any(changed), !resends);
    }
}

#[test]
fn a_chunk_that_never_arrives_whole_fails_its_file_in_the_end() {
    let (mut sender, mut next) = moving(1, 1);
    for _ in 0..=limits::RESENDS_MAX {
        sent(&mut sender, 0, next[0]);
        hear(
            &mut sender,
            Message::Damaged {
                transfer: TRANSFER,
                segment: 0,
                chunk: 0,
            },
        );
        sender.rechecked(0, 0, is_now([0; 16]));
        // The look that the sending asked for comes back, and counts no more.
        sender.looked(0, 0, unchanged(u64::from(CHUNK)));
        let after = outputs(&mut sender);
        next = runs(&after);
        if next.is_empty() {
            let ended = after.iter().find_map(|output| match output {
                SenderOutput::FileEnded { result, .. } => Some(result.clone()),
                _ => None,
            });
            let kind = ended.and_then(Result::err).map(|error| error.kind);
            assert_eq!(kind, Some(ErrorKind::Integrity));
            return;
        }
    }
    panic!("it was sent again and again");
}

#[test]
fn what_a_look_found_is_said_whenever_the_word_is_said() {
    let (mut sender, runs) = moving(1, 2);
    sent(&mut sender, 0, runs[0]);
    outputs(&mut sender);
    let mut sum = FileSum::default();
    sum.add(0, b"what it holds now");
    let touched = Touched { mode: 0o600, sum };
    let looked = Looked {
        size: CHUNK.into(),
        touched: Some(touched),
    };
    sender.looked(0, 0, Ok(looked));
    let said = |sender: &mut Sender| {
        let said = outputs(sender).into_iter().find_map(|output| match output {
            SenderOutput::Message(Message::Closed { touched, .. }) => Some(touched),
            _ => None,
        });
        said.expect("the word is said")
    };
    assert_eq!(said(&mut sender), Some(touched));
    // A connection that is freed makes the word stale.
    hear(&mut sender, landed(0, 1));
    hear(&mut sender, Message::Freed { connection: 1 });
    assert_eq!(said(&mut sender), Some(touched));
    // What a later look finds counts instead.
    let (mut sender, runs) = moving(1, 1);
    sent(&mut sender, 0, runs[0]);
    sender.looked(0, 0, Ok(looked));
    assert_eq!(said(&mut sender), Some(touched));
    let damaged = Message::Damaged {
        transfer: TRANSFER,
        segment: 0,
        chunk: 0,
    };
    hear(&mut sender, damaged);
    sender.rechecked(0, 0, is_now([0; 16]));
    let again = super::runs(&outputs(&mut sender));
    sent(&mut sender, 0, again[0]);
    sender.looked(0, 0, unchanged(CHUNK.into()));
    assert_eq!(said(&mut sender), None);
}

#[test]
fn a_neighbour_that_changed_costs_no_other_file_of_the_chunk() {
    let (mut sender, runs) = moving_files(&[10, 20, 30], 1);
    let [run] = runs[..] else {
        panic!("one chunk: {runs:?}");
    };
    sent(&mut sender, 0, run);
    outputs(&mut sender);
    let damaged = Message::Damaged {
        transfer: TRANSFER,
        segment: 0,
        chunk: 0,
    };
    hear(&mut sender, damaged);
    let changed = Error::new(ErrorKind::Integrity, "the second file changed");
    let now = Rechecked {
        check: [9; 16],
        suspects: vec![(1, changed)],
    };
    sender.rechecked(0, 0, Ok(now));
    let after = outputs(&mut sender);
    let ended = |output: &SenderOutput| match output {
        SenderOutput::FileEnded { file, .. } => Some(*file),
        _ => None,
    };
    assert_eq!(after.iter().filter_map(ended).collect::<Vec<_>>(), [1]);
    assert_eq!(super::runs(&after), [run], "it is sent again");
}
