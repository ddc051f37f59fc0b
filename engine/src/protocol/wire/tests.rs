//! Properties of the codec: what is encoded decodes back, whatever the pieces;
//! what was never encoded is refused, and never costs a panic or memory.
//!
//! Leaves to others: what messages do. Invariant: every variant is generated,
//! which the count of tags in the table proves.

use super::entry::tests::offer;
use super::*;
use crate::error::{Error, ErrorKind, Side};
use crate::limits;
use crate::options::names::{NameEnd, ReadNames};
use crate::options::{DigestKind, Pattern, RemoteSource, RemoteTarget, Transmit};
use crate::protocol::TransferId;
use crate::protocol::check::FileSum;
use crate::report::{ConnectionReport, Digest, Level, SideReport, TcpInfo};
use proptest::prelude::*;
use proptest::strategy::Union;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 äß:/'-]{0,40}"
}

fn error() -> impl Strategy<Value = Error> {
    use ErrorKind::*;
    let kinds = vec![
        Local,
        Usage,
        Peer,
        Incompatible,
        Integrity,
        Unauthorised,
        Partial,
        Interrupted,
    ];
    let sides = vec![Side::Sender, Side::Receiver, Side::Caller];
    (
        prop::sample::select(kinds),
        prop::sample::select(sides),
        text(),
        prop::option::of(text()),
        any::<bool>(),
    )
        .prop_map(|(kind, side, sentence, cure, passes)| Error {
            kind,
            side,
            sentence,
            cure,
            passes,
        })
}

fn report() -> impl Strategy<Value = Box<SideReport>> {
    (
        any::<[u64; 4]>(),
        text(),
        prop::collection::vec(text(), 0..3),
        prop::collection::vec(text(), 0..3),
    )
        .prop_map(|(numbers, method, notes, lost)| {
            let mut report = SideReport {
                system_calls: numbers[0],
                cpu_nanos: numbers[1],
                zero_copy_sent_bytes: numbers[2],
                method,
                notes,
                lost,
                ..SideReport::default()
            };
            report.latencies.landed.record(numbers[3] % 1_000_000, 3);
            report.connections.push(ConnectionReport {
                path: "copy".into(),
                tcp: Some(TcpInfo::default()),
                ..ConnectionReport::default()
            });
            Box::new(report)
        })
}

fn begin() -> impl Strategy<Value = Begin> {
    let push =
        (prop::collection::vec(any::<u8>(), 0..20), any::<bool>()).prop_map(|(path, directory)| {
            Task::Push {
                target: RemoteTarget::Path {
                    path,
                    directory,
                    make: !directory,
                },
            }
        });
    let list = ReadNames::new(b"a/b\nc/\n", NameEnd::Newline, "a list").expect("names");
    let pull = prop::collection::vec(any::<u8>(), 0..20).prop_map(move |path| Task::Pull {
        sources: vec![
            RemoteSource::Path(path),
            RemoteSource::Names(list.names.clone()),
            RemoteSource::Generated {
                pattern: Pattern::Zero,
                bytes: Some(5),
            },
        ],
        last: false,
    });
    let null = Just(Task::Push {
        target: RemoteTarget::Null,
    });
    let task = prop_oneof![push, pull, null];
    (
        any::<[u8; 16]>().prop_filter("padding's", |name| *name != [0; 16]),
        task,
        16u32..=22,
        any::<[bool; 3]>(),
        any::<[Option<u64>; 2]>(),
    )
        .prop_map(|(transfer, task, power, flags, limits)| Begin {
            tree: crate::options::TreeOptions::default(),
            rules: crate::options::TargetRules {
                force: flags[2],
                ..crate::options::TargetRules::default()
            },
            transfer: TransferId(transfer),
            task,
            chunk_bytes: 1 << power,
            check: CheckKind::Xxh3,
            fsync: flags[0],
            verify: flags[1],
            drop_cache: flags[2],
            digest: flags[0].then_some(DigestKind::Sha256),
            transmit: Transmit::Splice,
            window_bytes: limits[0],
            descriptors_max: limits[0].map(|limit| limit as u32),
            rate_limit_bytes_per_second: limits[1],
        })
}

fn answer() -> impl Strategy<Value = Answer> {
    let range = any::<[u64; 2]>().prop_map(|[start, end]| ByteRange { start, end });
    let verdict = prop_oneof![
        Just(Verdict::Skip),
        Just(Verdict::Whole),
        Just(Verdict::Held),
        prop::collection::vec(range, 0..4).prop_map(Verdict::Ranges),
        error().prop_map(Verdict::Refused),
    ];
    (
        any::<[u8; 16]>(),
        any::<u32>(),
        prop::collection::vec(verdict, 0..5),
        any::<[u8; 16]>(),
    )
        .prop_map(|(transfer, segment, verdicts, digest)| Answer {
            transfer: TransferId(transfer),
            segment,
            verdicts,
            digest,
        })
}

fn level() -> impl Strategy<Value = Level> {
    prop::sample::select(vec![Level::Placed, Level::Delivered, Level::Sealed])
}

fn chunks() -> impl Strategy<Value = ChunkRange> {
    any::<[u64; 2]>().prop_map(|[first, count]| ChunkRange { first, count })
}

/// Messages of sessions and connections.
fn session_message() -> Union<BoxedStrategy<Message>> {
    let hello = (any::<u64>(), any::<[u8; 32]>(), any::<bool>(), text());
    let welcome = (any::<[u64; 2]>(), any::<[u8; 32]>(), any::<bool>(), text());
    prop_oneof![
        hello
            .prop_map(
                |(features, nonce, has_token, software)| Message::Hello(Hello {
                    features,
                    nonce,
                    has_token,
                    software,
                })
            )
            .boxed(),
        welcome
            .prop_map(|(numbers, nonce, needs_token, software)| {
                Message::Welcome(Welcome {
                    features: numbers[0],
                    nonce,
                    needs_token,
                    session: numbers[1],
                    software,
                })
            })
            .boxed(),
        any::<[u8; 32]>().prop_map(Message::Proof).boxed(),
        any::<[u8; 32]>().prop_map(Message::Ready).boxed(),
        error().prop_map(Message::Refuse).boxed(),
        any::<u64>()
            .prop_map(|worked| Message::Heartbeat { worked })
            .boxed(),
        any::<u32>()
            .prop_map(|connection| Message::Joined { connection })
            .boxed(),
        any::<u32>()
            .prop_map(|connection| Message::Lost { connection })
            .boxed(),
        any::<u32>()
            .prop_map(|connection| Message::Freed { connection })
            .boxed(),
        begin().prop_map(Message::Begin).boxed(),
        offer()
            .prop_map(|offer| Message::Offer(offer.into()))
            .boxed(),
        answer().prop_map(Message::Answer).boxed(),
    ]
}

fn touched(mode: u32, bytes: &[u8]) -> Touched {
    let mut sum = FileSum::default();
    sum.add(0, bytes);
    Touched { mode, sum }
}

/// Messages of one transfer, by number.
fn transfer_message() -> impl Strategy<Value = Message> {
    let places = (
        any::<[u8; 16]>().prop_map(TransferId),
        any::<[u32; 3]>(),
        any::<[u64; 2]>(),
        prop::collection::vec(chunks(), 1..5),
    );
    let words = (error(), level(), report());
    (0..19, places, words).prop_map(
        |(
            kind,
            (transfer, [segment, file, recalls], [chunk, size], ranges),
            (error, level, report),
        )| {
            let chunks = ranges[0];
            match kind {
                0 => Message::Begun {
                    transfer,
                    window_bytes: Some(size),
                    descriptors_max: Some(file),
                },
                1 => Message::Landed {
                    transfer,
                    segment,
                    chunks: ranges,
                },
                2 => Message::Damaged {
                    transfer,
                    segment,
                    chunk,
                },
                3 => Message::Drained {
                    transfer,
                    segment,
                    chunks,
                },
                4 => Message::Void {
                    transfer,
                    segment,
                    file,
                    chunks,
                    error,
                },
                5 => Message::Closed {
                    transfer,
                    segment,
                    files: vec![FileRange::one(file)],
                    stream_bytes: (recalls % 3 == 0).then_some(size),
                    recalls,
                    touched: (recalls % 2 == 0).then(|| touched(segment, &size.to_le_bytes())),
                },
                6 => Message::Changed {
                    transfer,
                    segment,
                    file,
                    error,
                },
                7 => Message::Settled {
                    transfer,
                    segment,
                    files: vec![FileRange::one(file), FileRange::one(segment)],
                    level,
                },
                8 => Message::Failed {
                    transfer,
                    segment,
                    file,
                    error,
                },
                9 => Message::Finish { transfer, report },
                10 => Message::Finished { transfer, report },
                11 => Message::Abort { transfer, error },
                12 => Message::EndStreams { transfer },
                13 => Message::More { transfer },
                14 => Message::Sources(Sources {
                    transfer,
                    sources: vec![RemoteSource::Path(vec![5; 7]); file as usize % 9],
                    last: file.is_multiple_of(2),
                }),
                15 => Message::Names(Box::new(Names {
                    transfer,
                    number: segment,
                    folders: vec![Folder {
                        parent: 0,
                        name: b"one".to_vec(),
                    }],
                    listings: vec![Listing {
                        folder: file % 2,
                        above: recalls,
                        names: vec![b"a name".to_vec(), vec![0xff; 255]],
                        complete: file.is_multiple_of(3),
                    }],
                    last: file.is_multiple_of(2),
                })),
                16 => Message::Deleted {
                    transfer,
                    number: segment,
                    deletions: Box::new(Deletions {
                        count: size,
                        paths: vec![b"a/b".to_vec()],
                        failed: vec![error],
                        more: recalls % 2 == 0,
                    }),
                },
                17 => Message::Digests(Digests {
                    transfer,
                    segment,
                    is_renamed: recalls % 2 == 0,
                    digests: vec![(
                        file,
                        Digest {
                            kind: DigestKind::Blake3,
                            bytes: [size as u8; 32],
                        },
                    )],
                }),
                _ => Message::Begun {
                    transfer,
                    window_bytes: None,
                    descriptors_max: None,
                },
            }
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![session_message(), transfer_message()]
}

/// An envelope of our own making.
fn envelope(tag: u16, flags: u16, body_bytes: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = body_bytes.to_le_bytes().to_vec();
    bytes.extend(tag.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Reads all there is, in pieces of these lengths.
pub(super) fn read_all(
    bytes: &[u8],
    cuts: &[usize],
) -> Result<Vec<Message>, crate::protocol::Violation> {
    let mut reader = MessageReader::new();
    let (mut messages, mut rest) = (Vec::new(), bytes);
    let mut cuts = cuts.iter().copied().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().unwrap_or(1).clamp(1, rest.len());
        reader.push(&rest[..cut]);
        rest = &rest[cut..];
        while let Some(message) = reader.next()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

proptest! {
    #[test]
    fn every_message_decodes_back_whatever_the_pieces(
        messages in prop::collection::vec(message(), 1..5),
        cuts in prop::collection::vec(1usize..200, 1..6),
        optional in prop::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut bytes = Vec::new();
        for message in &messages {
            bytes.extend(encode(message));
            // What a newer peer adds is skipped.
            bytes.extend(envelope(9999, 1, optional.len() as u32, &optional));
        }
        let read = read_all(&bytes, &cuts).expect("what was encoded");
        prop_assert_eq!(read.len(), messages.len());
        for (read, message) in read.iter().zip(&messages) {
            prop_assert_eq!(encode(read), encode(message));
            // A histogram's exact extremes stay at home; all else is the same.
            if !matches!(message, Message::Finish { .. } | Message::Finished { .. }) {
                prop_assert_eq!(format!("{read:?}"), format!("{message:?}"));
            }
            prop_assert_eq!(read.transfer(), message.transfer());
        }
    }

    #[test]
    fn garbage_is_refused_and_never_a_panic(
        tag in 0u16..64,
        flags in 0u16..2,
        body in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(1usize..50, 1..4),
    ) {
        // Under a good envelope, so that every body's decoder meets it.
        if let Ok(messages) = read_all(&envelope(tag, flags, body.len() as u32, &body), &cuts) {
            for message in messages {
                let _ = encode(&message);
            }
        }
        let _ = read_all(&body, &cuts);
    }

    #[test]
    fn a_damaged_message_is_refused_or_another_message(
        message in message(), at: prop::sample::Index, flip in 1u8..,
    ) {
        let mut bytes = encode(&message);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(messages) = read_all(&bytes, &[7]) {
            messages.iter().for_each(|message| drop(encode(message)));
        }
    }
}

#[test]
fn every_tag_of_the_table_is_generated() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2000 {
        let message = message()
            .new_tree(&mut runner)
            .expect("generates")
            .current();
        seen.insert(u16::from_le_bytes(
            encode(&message)[4..6].try_into().expect("two bytes"),
        ));
    }
    let known: std::collections::BTreeSet<u16> =
        (0..=u16::MAX).filter(|&tag| codec::is_known(tag)).collect();
    assert_eq!(seen, known);
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let lost = encode(&Message::Lost { connection: 300 });
    assert_eq!(lost, [2, 0, 0, 0, 19, 0, 0, 0, 0xac, 0x02]);
    let damaged = encode(&Message::Damaged {
        transfer: TransferId([7; 16]),
        segment: 1,
        chunk: 128,
    });
    let mut expected = vec![19, 0, 0, 0, 37, 0, 0, 0];
    expected.extend([7; 16]);
    expected.extend([1, 0x80, 0x01]);
    assert_eq!(damaged, expected);
    let heartbeat = Message::Heartbeat { worked: 129 };
    assert_eq!(encode(&heartbeat), [2, 0, 0, 0, 6, 0, 0, 0, 0x81, 0x01]);
}

#[test]
fn a_long_body_is_refused_by_its_announcement() {
    let mut reader = MessageReader::new();
    reader.push(&envelope(6, 0, limits::MESSAGE_BYTES_MAX as u32 + 1, &[]));
    assert!(reader.next().is_err());
    let mut greeting = MessageReader::greeting();
    greeting.push(&envelope(
        1,
        0,
        limits::GREETING_MESSAGE_BYTES_MAX as u32 + 1,
        &[],
    ));
    assert!(greeting.next().is_err());
    greeting = MessageReader::greeting();
    greeting.trust();
    greeting.push(&envelope(
        1,
        0,
        limits::GREETING_MESSAGE_BYTES_MAX as u32 + 1,
        &[],
    ));
    assert!(matches!(greeting.next(), Ok(None)));
    // Not even an optional one of a tag that nobody knows.
    let mut reader = MessageReader::new();
    reader.push(&envelope(9999, 1, u32::MAX, &[]));
    assert!(reader.next().is_err());
}

#[test]
fn an_unknown_message_is_refused_unless_it_is_optional() {
    assert!(read_all(&envelope(9999, 0, 3, b"abc"), &[1]).is_err());
    let mut bytes = envelope(9999, 1, 300, &[5; 300]);
    bytes.extend(encode(&Message::Heartbeat { worked: 7 }));
    let read = read_all(&bytes, &[3]).expect("skipped");
    assert!(matches!(read[..], [Message::Heartbeat { worked: 7 }]));
    // A body that goes on behind its message is no message.
    assert!(read_all(&envelope(6, 0, 2, b"xx"), &[9]).is_err());
}

#[test]
fn a_transfer_cannot_take_the_name_of_padding() {
    let read = |transfer| {
        let begin = Begin {
            tree: crate::options::TreeOptions::default(),
            rules: crate::options::TargetRules::default(),
            transfer,
            task: Task::Push {
                target: RemoteTarget::Null,
            },
            chunk_bytes: limits::CHUNK_BYTES_MIN,
            check: CheckKind::Xxh3,
            fsync: false,
            verify: false,
            drop_cache: false,
            digest: None,
            transmit: Transmit::Auto,
            window_bytes: None,
            descriptors_max: None,
            rate_limit_bytes_per_second: None,
        };
        read_all(&encode(&Message::Begin(begin)), &[9999]).is_ok()
    };
    assert!(read(TransferId([1; 16])));
    assert!(!read(TransferId::PADDING));
}

#[test]
fn a_list_is_cut_off_while_it_is_read() {
    // Transfer, segment, and a list of verdicts of one byte each.
    let list = |count: usize| {
        let mut body = vec![0; 17];
        let mut rest = count;
        while rest >= 0x80 {
            body.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        body.push(rest as u8);
        body.extend(vec![0; count + 16]);
        read_all(&envelope(35, 0, body.len() as u32, &body), &[usize::MAX])
    };
    assert!(list(limits::SEGMENT_ENTRIES_MAX).is_ok());
    let error = list(4_000_000).expect_err("more verdicts than files");
    assert!(error.got.contains("that make none"), "{error}");
}

#[test]
fn what_people_will_read_cannot_steer_their_terminal() {
    let error = Error::usage(format!("\x1b[31mred\n{}", "ä".repeat(5000)));
    let read = read_all(&encode(&Message::Refuse(error)), &[64]).expect("it decodes");
    let [Message::Refuse(error)] = &read[..] else {
        panic!("{read:?}");
    };
    assert!(!error.sentence.chars().any(char::is_control));
    // Each of the two that steer became three bytes.
    assert!(error.sentence.len() <= limits::TEXT_BYTES_MAX + 4);
}

#[test]
fn a_reports_lists_are_cut_while_they_are_read() {
    let report = Box::new(SideReport {
        notes: vec![String::new(); 1_000_000],
        lost: vec![String::new(); 1_000_000],
        ..SideReport::default()
    });
    let mut reader = MessageReader::new();
    reader.push(&encode(&Message::Finish {
        transfer: TransferId([1; 16]),
        report,
    }));
    let Ok(Some(Message::Finish { report, .. })) = reader.next() else {
        panic!("a report");
    };
    assert_eq!(report.notes.len(), limits::NOTES_MAX);
    assert!(report.notes.capacity() <= 2 * limits::NOTES_MAX);
    assert_eq!(report.lost.len(), limits::NOTES_MAX);
    assert!(report.lost.capacity() <= 2 * limits::NOTES_MAX);
}
