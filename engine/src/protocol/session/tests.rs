//! A session's decisions, each in a history of its own.
//!
//! Leaves to others: what each part decides by itself (tested there), and two
//! sessions that meet (the simulation). Invariant: time passes only where a
//! test says so.

use super::*;
use crate::error::Side;
use crate::limits;
use crate::options::{RemoteTarget, Transmit};
use crate::protocol::wire::{CheckKind, Offer, Task};
use std::sync::Arc;

const SECOND: Nanos = 1_000_000_000;
const FIRST: TransferId = TransferId([1; 16]);
const SECOND_ONE: TransferId = TransferId([2; 16]);
const THIRD: TransferId = TransferId([3; 16]);

fn client(connections: usize) -> SessionMachine {
    let end = SessionEnd::Client {
        connections,
        dialling: 0,
        unproved: ErrorKind::Unauthorised,
    };
    let mut session = SessionMachine::new(0, end, "x".to_owned());
    session.proved();
    session
}

fn server() -> SessionMachine {
    SessionMachine::new(0, SessionEnd::Server, "x".to_owned())
}

fn outputs(session: &mut SessionMachine, now: Nanos) -> Vec<SessionOutput> {
    std::iter::from_fn(|| session.poll(now)).collect()
}

/// Lets time pass as a process that runs sees it; what was put out.
fn pass(session: &mut SessionMachine, from: Nanos, to: Nanos) -> Vec<SessionOutput> {
    let mut seen = Vec::new();
    let mut now = from;
    while now < to {
        now = (now + SECOND).min(to);
        seen.extend(outputs(session, now));
    }
    seen
}

fn begin(transfer: TransferId) -> Message {
    Message::Begin(Begin {
        tree: crate::options::TreeOptions::default(),
        rules: crate::options::TargetRules::default(),
        transfer,
        task: Task::Push {
            target: RemoteTarget::Null,
        },
        chunk_bytes: 65_536,
        check: CheckKind::Xxh3,
        fsync: true,
        verify: false,
        drop_cache: false,
        digest: None,
        transmit: Transmit::Auto,
        window_bytes: None,
        descriptors_max: None,
        rate_limit_bytes_per_second: None,
    })
}

fn offer(transfer: TransferId) -> Message {
    Message::Offer(Arc::new(Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer,
        segment: 0,
        last: true,
        entries: Vec::new(),
    }))
}

/// A client whose transfer has so many connections, all taken in.
fn carrying(connections: usize) -> SessionMachine {
    let mut session = client(connections);
    assert!(session.start(FIRST, Flow::FromDialler));
    let first = outputs(&mut session, 0);
    assert!(matches!(first[..], [SessionOutput::Dial { count }] if count == connections));
    for connection in 0..connections as ConnectionId {
        session.dialled(0, Ok(()));
        let joins = outputs(&mut session, 0);
        assert!(
            matches!(joins[..], [SessionOutput::Join { connection: number, .. }] if number == connection)
        );
        session.joined(0, connection);
        session.handle_message(0, Message::Joined { connection });
    }
    session
}

fn stop_of(outputs: &[SessionOutput]) -> Option<&Error> {
    outputs.iter().find_map(|output| match output {
        SessionOutput::Stop(error) => Some(error),
        _ => None,
    })
}

fn end_of(outputs: &[SessionOutput]) -> Option<&Option<Error>> {
    match outputs.last() {
        Some(SessionOutput::End(error)) => Some(error),
        _ => None,
    }
}

#[test]
fn what_was_dialled_early_joins_when_a_transfer_begins() {
    let end = SessionEnd::Client {
        connections: 3,
        dialling: 3,
        unproved: ErrorKind::Peer,
    };
    let mut session = SessionMachine::new(0, end, "x".to_owned());
    session.dialled(0, Ok(()));
    assert!(outputs(&mut session, 0).is_empty(), "nothing wants it yet");
    session.start(FIRST, Flow::ToDialler);
    session.dialled(0, Ok(()));
    let joins = outputs(&mut session, 0);
    assert!(
        matches!(
            joins[..],
            [
                SessionOutput::Join {
                    connection: 0,
                    flow: Flow::ToDialler
                },
                SessionOutput::Join { connection: 1, .. }
            ]
        ),
        "and none is dialled anew: {joins:?}"
    );
    assert!(!session.start(SECOND_ONE, Flow::ToDialler), "one at a time");
}

#[test]
fn connections_that_are_lost_are_dialled_after_a_wait() {
    let mut session = carrying(4);
    session.detached(0, 1, None);
    session.detached(0, 2, None);
    assert!(outputs(&mut session, 0).is_empty());
    let due = session.deadline();
    assert_eq!(due, SECOND / 10);
    let dials = outputs(&mut session, due);
    assert!(matches!(dials[..], [SessionOutput::Dial { count: 2 }]));
    // The transfer that is over misses nothing.
    session.detached(due, 0, None);
    session.transfer_ended();
    let later = pass(&mut session, due, 2 * SECOND - 1);
    assert!(later.is_empty(), "{later:?}");
}

#[test]
fn a_connection_that_is_not_taken_in_is_given_up() {
    let mut session = carrying(2);
    session.detached(0, 1, None);
    outputs(&mut session, SECOND / 10);
    session.dialled(SECOND, Ok(()));
    outputs(&mut session, SECOND);
    session.joined(SECOND, 2);
    let due = SECOND + limits::JOINED_WAIT_NANOS_MAX;
    session.handle_message(due, Message::Heartbeat { worked: 0 });
    let seen = pass(&mut session, SECOND, due - 1);
    let given_up = |output: &SessionOutput| matches!(output, SessionOutput::Detach { .. });
    assert!(!seen.iter().any(given_up), "{seen:?}");
    let seen = outputs(&mut session, due);
    let reason = seen.iter().find_map(|output| match output {
        SessionOutput::Detach { connection: 2, why } => Some(*why),
        _ => None,
    });
    assert_eq!(reason, Some(NOT_TAKEN_IN));
    // Others carry: such a peer is tried now and then.
    session.detached(due, 2, None);
    let seen = pass(&mut session, due, due + 19 * SECOND);
    let dials = |output: &SessionOutput| matches!(output, SessionOutput::Dial { .. });
    assert!(!seen.iter().any(dials), "{seen:?}");
    session.handle_message(due + 19 * SECOND, Message::Heartbeat { worked: 0 });
    let seen = pass(&mut session, due + 19 * SECOND, due + 30 * SECOND);
    assert!(seen.iter().any(dials), "{seen:?}");
}

#[test]
fn what_cannot_change_is_not_tried_again() {
    let mut session = client(4);
    session.start(FIRST, Flow::FromDialler);
    outputs(&mut session, 0);
    let own = Error::local("cannot set a send buffer of 9 bytes", "it is refused");
    session.dialled(0, Err(own.clone()));
    let seen = outputs(&mut session, 0);
    assert!(matches!(&seen[..], [SessionOutput::Stop(error)] if *error == own));
    assert!(session.deadline() >= SECOND, "no round of dials follows");
    // Nor is what a worker cannot do, or what cannot be joined, at either end.
    let mut session = carrying(2);
    let cut = Error::peer("cannot send", "it was reset");
    session.detached(0, 0, Some(cut));
    assert_eq!(stop_of(&outputs(&mut session, 0)), None);
    session.detached(0, 1, Some(own.clone()));
    let seen = outputs(&mut session, 0);
    assert_eq!(stop_of(&seen), Some(&own.clone().at(Side::Sender)));
    let mut session = client(1);
    session.start(FIRST, Flow::FromDialler);
    session.dialled(0, Ok(()));
    outputs(&mut session, 0);
    session.join_failed(0, 0, own.clone());
    assert_eq!(stop_of(&outputs(&mut session, 0)), Some(&own));
    let mut session = server();
    session.take_in(0, Flow::FromDialler).expect("a fresh one");
    session.join_failed(0, 0, own.clone());
    assert!(outputs(&mut session, 0).is_empty(), "no transfer wants it");
    session.handle_message(0, begin(FIRST));
    outputs(&mut session, 0);
    for (connection, passes) in [(1, true), (2, false)] {
        session
            .take_in(connection, Flow::FromDialler)
            .expect("a fresh one");
        session.join_failed(0, connection, own.clone().passing_when(passes));
        let seen = outputs(&mut session, 0);
        let at = stop_of(&seen).map(|error| error.side);
        assert_eq!(at, (!passes).then_some(Side::Receiver));
    }
}

#[test]
fn a_silent_peer_ends_session_and_transfer() {
    let mut session = carrying(1);
    let due = limits::SILENCE_NANOS_MAX;
    let seen = pass(&mut session, 0, due - 1);
    assert!(end_of(&seen).is_none());
    let heartbeat = |output: &&SessionOutput| {
        matches!(
            output,
            SessionOutput::Message(Message::Heartbeat { worked: 0 })
        )
    };
    assert_eq!(seen.iter().filter(heartbeat).count(), 9, "{seen:?}");
    let seen = outputs(&mut session, due);
    let error = stop_of(&seen).expect("the transfer is stopped");
    assert!(error.sentence.contains("silent for 20 s"), "{error}");
    assert_eq!(end_of(&seen), Some(&Some(error.clone())));
    assert!(outputs(&mut session, 2 * due).is_empty(), "it is over");
}

#[test]
fn who_was_stopped_gives_everything_its_time_again() {
    let mut session = carrying(1);
    session.detached(0, 0, None);
    outputs(&mut session, SECOND / 10);
    session.dialled(SECOND, Ok(()));
    outputs(&mut session, SECOND);
    session.joined(SECOND, 1);
    let seen = outputs(&mut session, 100 * SECOND);
    assert!(end_of(&seen).is_none(), "{seen:?}");
    let given_up = |output: &SessionOutput| matches!(output, SessionOutput::Detach { .. });
    assert!(!seen.iter().any(given_up), "{seen:?}");
    assert!(matches!(seen.first(), Some(SessionOutput::PeerWorks)));
}

#[test]
fn the_peers_count_is_heard_when_it_changes() {
    let mut session = carrying(1);
    session.handle_message(0, Message::Heartbeat { worked: 0 });
    assert!(outputs(&mut session, 0).is_empty(), "it got no further");
    session.handle_message(0, Message::Heartbeat { worked: 4 });
    let seen = outputs(&mut session, 0);
    assert!(matches!(seen[..], [SessionOutput::PeerWorks]), "{seen:?}");
    session.worked(9);
    session.spoke(limits::HEARTBEAT_NANOS);
    let seen = outputs(&mut session, limits::HEARTBEAT_NANOS);
    assert!(matches!(
        seen[..],
        [SessionOutput::Message(Message::Heartbeat { worked: 9 })]
    ));
}

#[test]
fn a_server_without_a_proof_is_left() {
    let unproved = || {
        let end = SessionEnd::Client {
            connections: 1,
            dialling: 0,
            unproved: ErrorKind::Unauthorised,
        };
        SessionMachine::new(0, end, "x".to_owned())
    };
    let mut session = unproved();
    session.start(FIRST, Flow::FromDialler);
    outputs(&mut session, 0);
    let joined = Message::Joined { connection: 0 };
    assert!(session.handle_message(0, joined).is_none());
    let seen = outputs(&mut session, 0);
    assert!(matches!(
        &seen[..],
        [SessionOutput::Message(Message::Refuse(_)), SessionOutput::Stop(error), SessionOutput::End(Some(_))]
            if error.kind == ErrorKind::Unauthorised && error.sentence.contains("without a proof")
    ));
    let mut session = unproved();
    let due = limits::GREETING_WAIT_NANOS_MAX;
    session.handle_message(due - 1, Message::Heartbeat { worked: 0 });
    let seen = pass(&mut session, 0, due - 1);
    assert!(end_of(&seen).is_none(), "{seen:?}");
    let seen = outputs(&mut session, due);
    let error = end_of(&seen).and_then(Option::as_ref).expect("it is left");
    assert!(error.sentence.contains("in time"), "{error}");
    // Once is enough, and twice is too often.
    let mut session = unproved();
    assert!(session.handle_message(0, Message::Ready([0; 32])).is_some());
    session.proved();
    assert!(session.handle_message(0, Message::Ready([0; 32])).is_none());
    assert!(end_of(&outputs(&mut session, 0)).is_some());
}

#[test]
fn the_next_transfer_waits_for_the_last_ones_end() {
    let mut session = server();
    session.handle_message(0, begin(FIRST));
    assert!(matches!(
        outputs(&mut session, 0)[..],
        [SessionOutput::Begin(_)]
    ));
    assert!(session.handle_message(0, offer(FIRST)).is_some());
    session.handle_message(0, begin(SECOND_ONE));
    assert!(session.handle_message(0, offer(SECOND_ONE)).is_none());
    let late = Message::Landed {
        transfer: SECOND_ONE,
        segment: 0,
        chunks: Vec::new(),
    };
    assert!(session.handle_message(0, late).is_none());
    assert!(outputs(&mut session, 0).is_empty(), "kept");
    session.handle_message(0, begin(THIRD));
    let seen = outputs(&mut session, 0);
    assert!(
        matches!(&seen[..], [SessionOutput::Message(Message::Abort { transfer, .. })] if *transfer == THIRD)
    );
    session.transfer_ended();
    let seen = outputs(&mut session, 0);
    assert!(
        matches!(
            &seen[..],
            [SessionOutput::Begin(begin), SessionOutput::Transfer(Message::Offer(_))] if begin.transfer == SECOND_ONE
        ),
        "{seen:?}"
    );
    // What comes of the first is late, except for an offer, which is answered.
    let over = Message::EndStreams { transfer: FIRST };
    assert!(session.handle_message(0, over).is_none());
    assert!(outputs(&mut session, 0).is_empty());
    session.handle_message(0, offer(FIRST));
    let seen = outputs(&mut session, 0);
    assert!(
        matches!(&seen[..], [SessionOutput::Message(Message::Abort { transfer, .. })] if *transfer == FIRST)
    );
}

#[test]
fn no_word_overtakes_its_transfers_begin() {
    let mut session = server();
    session.handle_message(0, begin(FIRST));
    assert!(session.handle_message(0, offer(FIRST)).is_none());
    let lost = Message::Lost { connection: 0 };
    assert!(session.handle_message(0, lost).is_none());
    let seen = outputs(&mut session, 0);
    assert!(
        matches!(
            seen[..],
            [
                SessionOutput::Begin(_),
                SessionOutput::Transfer(Message::Offer(_)),
                SessionOutput::Transfer(Message::Lost { .. })
            ]
        ),
        "{seen:?}"
    );
    assert!(session.handle_message(0, offer(FIRST)).is_some());
}

#[test]
fn what_is_kept_for_the_next_transfer_is_bounded() {
    let mut session = server();
    session.handle_message(0, begin(FIRST));
    session.handle_message(0, begin(SECOND_ONE));
    for _ in 0..1000 {
        session.handle_message(0, offer(SECOND_ONE));
    }
    session.transfer_ended();
    let seen = outputs(&mut session, 0);
    let kept = |output: &&SessionOutput| matches!(output, SessionOutput::Transfer(_));
    let most = limits::SEGMENTS_AT_WORK + 2;
    assert_eq!(seen.iter().filter(kept).count(), most);
}

#[test]
fn only_a_client_begins() {
    for message in [begin(FIRST), Message::EndStreams { transfer: FIRST }] {
        let mut session = client(1);
        assert!(session.handle_message(0, message).is_none());
        let seen = outputs(&mut session, 0);
        let error = end_of(&seen).and_then(Option::as_ref).expect("it is left");
        assert!(error.sentence.contains("belongs to no transfer"), "{error}");
    }
}

#[test]
fn a_server_that_closes_says_so() {
    let mut session = server();
    session.handle_message(0, begin(FIRST));
    outputs(&mut session, 0);
    session.close();
    let seen = outputs(&mut session, 0);
    let error = stop_of(&seen).expect("the transfer is stopped");
    assert!(error.sentence.contains("the server was stopped"), "{error}");
    let says = |output: &SessionOutput| matches!(output, SessionOutput::Message(Message::Refuse(told)) if told == error);
    assert!(seen.iter().any(says));
    assert_eq!(end_of(&seen), Some(&None));
    session.transfer_ended();
    session.handle_message(0, begin(SECOND_ONE));
    assert!(outputs(&mut session, 0).is_empty(), "it takes no more");
}

#[test]
fn an_error_that_is_told_is_the_peers() {
    let refused = Error::local("cannot write /x", "no space left");
    let mut session = carrying(1);
    session.handle_message(0, Message::Refuse(refused.clone()));
    let seen = outputs(&mut session, 0);
    assert_eq!(stop_of(&seen).map(|error| error.side), Some(Side::Receiver));
    let mut session = server();
    session.handle_message(0, begin(FIRST));
    outputs(&mut session, 0);
    let abort = Message::Abort {
        transfer: FIRST,
        error: refused,
    };
    let Some(Message::Abort { error, .. }) = session.handle_message(0, abort) else {
        panic!("it is the transfer's");
    };
    assert_eq!(error.side, Side::Sender);
}

#[test]
fn a_connection_that_the_peer_gave_up_does_not_join_later() {
    let mut session = server();
    session.take_in(0, Flow::FromDialler).expect("a fresh one");
    session.joined(0, 0);
    let seen = outputs(&mut session, 0);
    assert!(matches!(
        seen[..],
        [SessionOutput::Message(Message::Joined { connection: 0 })]
    ));
    for connection in 0..2 {
        session.handle_message(0, Message::Lost { connection });
    }
    let seen = outputs(&mut session, 0);
    assert!(matches!(
        seen[..],
        [SessionOutput::Detach { connection: 0, .. }]
    ));
    assert!(session.take_in(1, Flow::FromDialler).is_err());
}

#[test]
fn connections_of_the_other_way_make_room() {
    let most = limits::CONNECTIONS_MAX as usize;
    let mut session = carrying(most);
    session.transfer_ended();
    session.start(SECOND_ONE, Flow::ToDialler);
    let seen = outputs(&mut session, 0);
    let given_up = |output: &&SessionOutput| matches!(output, SessionOutput::Detach { .. });
    assert_eq!(seen.iter().filter(given_up).count(), most);
    session.dialled(0, Ok(()));
    assert!(outputs(&mut session, 0).is_empty(), "there is no room yet");
    session.detached(0, 5, None);
    let seen = outputs(&mut session, 0);
    assert!(matches!(
        seen[..],
        [SessionOutput::Join {
            flow: Flow::ToDialler,
            ..
        }]
    ));
}
