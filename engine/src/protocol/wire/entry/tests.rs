//! Tests of offers: which come in, and that they come in as they were.
//!
//! Leaves to others: the other messages. Invariant: an offer is made here by hand, and
//! read as a peer's is.

use super::*;
use crate::protocol::TransferId;
use crate::protocol::wire::tests::read_all;
use crate::protocol::wire::{Listing, Message, Names, encode};
use proptest::prelude::*;

fn folder(parent: FolderId, name: &[u8]) -> Folder {
    Folder {
        parent,
        name: name.to_vec(),
    }
}

fn named_in(name: String) -> NamedIn {
    NamedIn {
        folder: 2,
        name: name.into_bytes(),
    }
}

pub(in crate::protocol::wire) fn offer() -> impl Strategy<Value = Offer> {
    let link = |name: String| EntryKind::HardLink(named_in(name), 7);
    let kind = prop_oneof![
        Just(EntryKind::File),
        Just(EntryKind::Directory),
        Just(EntryKind::Fifo),
        "[a-z/.]{1,9}".prop_map(|text| EntryKind::Symlink(text.into_bytes())),
        "[a-z]{1,9}".prop_map(link),
        any::<[u32; 2]>().prop_map(|[major, minor]| EntryKind::CharacterDevice(major, minor)),
        any::<[u32; 2]>().prop_map(|[major, minor]| EntryKind::BlockDevice(major, minor)),
    ];
    let attribute = ("[a-z.]{1,9}", prop::collection::vec(any::<u8>(), 0..9));
    let attribute = attribute.prop_map(|(name, value)| Attribute {
        name: name.into_bytes(),
        value,
    });
    let entry = (
        "[a-z.]{1,8}x",
        (kind, 0..1u64 << 50),
        any::<u32>(),
        (any::<i64>(), 0..1_000_000_000u32),
        (
            prop::option::of(any::<[u8; 32]>()),
            prop::option::of([0..u32::MAX, 0..u32::MAX]),
            prop::option::of(prop::collection::vec(attribute, 0..3)),
        ),
        0..3u32,
    )
        .prop_map(
            |(name, (kind, size), mode, time, (content, owner, attributes), folder)| Entry {
                folder,
                name: name.into_bytes(),
                size: if kind == EntryKind::File { size } else { 0 },
                kind,
                mode,
                mtime_seconds: time.0,
                mtime_nanos: time.1,
                owner: owner.map(|[user, group]| Ownership { user, group }),
                attributes,
                content,
                data: Data::Everywhere,
            },
        );
    let files = (
        any::<[u8; 16]>(),
        any::<u32>(),
        any::<bool>(),
        prop::collection::vec(entry, 0..5),
    );
    let name = |id, name: &[u8]| IdName {
        id,
        name: name.to_vec(),
    };
    files.prop_map(move |(transfer, segment, last, entries)| Offer {
        folders: vec![folder(0, b"one"), folder(1, b"in it")],
        users: vec![name(0, b"root"), name(1000, b"somebody")],
        groups: vec![name(0, b"wheel")],
        transfer: TransferId(transfer),
        segment,
        last,
        entries,
    })
}

#[test]
fn names_and_sizes_are_checked_where_they_come_in() {
    let read = |entry: Entry, count: usize| {
        let offer = Offer {
            folders: Vec::new(),
            users: Vec::new(),
            groups: Vec::new(),
            transfer: TransferId([0; 16]),
            segment: 0,
            last: true,
            entries: vec![entry; count],
        };
        read_all(&encode(&Message::Offer(offer.into())), &[9999]).is_ok()
    };
    let good = Entry {
        name: b"a".to_vec(),
        kind: EntryKind::File,
        size: 1,
        mode: 0,
        mtime_seconds: 0,
        mtime_nanos: 0,
        data: Data::Everywhere,
        ..Entry::default()
    };
    assert!(read(good.clone(), 3));
    for name in ["", "/", "/a", "a/", "a/b", ".", "..", "a\0b"] {
        let name = name.as_bytes().to_vec();
        assert!(
            !read(
                Entry {
                    name: name.clone(),
                    ..good.clone()
                },
                1
            ),
            "{name:?}"
        );
    }
    let long = Entry {
        name: vec![b'x'; limits::NAME_BYTES_MAX + 1],
        ..good.clone()
    };
    assert!(!read(long, 1));
    let huge = Entry {
        size: i64::MAX as u64,
        ..good.clone()
    };
    assert!(read(huge.clone(), 1));
    assert!(!read(huge, 2), "their sum is beyond what an offset can say");
    let stream = Entry {
        kind: EntryKind::Stream,
        size: 0,
        ..good.clone()
    };
    assert!(read(stream.clone(), 1));
    assert!(!read(stream.clone(), 2));
    assert!(!read(Entry { size: 1, ..stream }, 1));
    assert!(!read(good.clone(), limits::SEGMENT_ENTRIES_MAX + 1));
    let empty = Entry { size: 0, ..good };
    let of_kind = |kind| Entry {
        kind,
        ..empty.clone()
    };
    let attribute = |name: &[u8], bytes| Attribute {
        name: name.to_vec(),
        value: vec![0; bytes],
    };
    let with = |all: Vec<Attribute>| Entry {
        attributes: Some(all),
        ..empty.clone()
    };
    let top = Entry {
        name: Vec::new(),
        ..of_kind(EntryKind::Directory)
    };
    assert!(read(top.clone(), 1), "the target itself");
    let much = limits::ENTRY_ATTRIBUTES_BYTES_MAX;
    let owner = |user| Entry {
        owner: Some(Ownership { user, group: 0 }),
        ..empty.clone()
    };
    assert!(read(owner(0), 1) && read(with(vec![attribute(b"user.a", 99)]), 1));
    for lie in [
        Entry {
            folder: 1,
            ..empty.clone()
        },
        Entry {
            kind: EntryKind::Fifo,
            ..top
        },
        of_kind(EntryKind::Symlink(Vec::new())),
        of_kind(EntryKind::Symlink(b"a\0".to_vec())),
        of_kind(EntryKind::Symlink(vec![
            b'a';
            limits::SYMLINK_BYTES_MAX + 1
        ])),
        of_kind(EntryKind::HardLink(named_in("in no folder".to_owned()), 1)),
        owner(u32::MAX),
        with(vec![attribute(b"", 1)]),
        with(vec![attribute(b"user.a", much)]),
        with(vec![
            attribute(b"user.a", 0);
            limits::ENTRY_ATTRIBUTES_MAX + 1
        ]),
    ] {
        assert!(!read(lie.clone(), 1), "{lie:?}");
    }
}

#[test]
fn directories_are_named_behind_those_that_they_lie_in() {
    let read = |folders: Vec<Folder>| {
        let offer = Offer {
            transfer: TransferId([1; 16]),
            segment: 0,
            last: true,
            folders,
            entries: Vec::new(),
            users: Vec::new(),
            groups: Vec::new(),
        };
        read_all(&encode(&Message::Offer(offer.into())), &[9999]).is_ok()
    };
    assert!(read(vec![
        folder(0, b"a"),
        folder(1, b"b"),
        folder(0, b"c")
    ]));
    for lie in [
        folder(1, b"a"),
        folder(9, b"a"),
        folder(0, b".."),
        folder(0, b"a/b"),
    ] {
        assert!(!read(vec![lie.clone()]), "{lie:?}");
    }
    assert!(!read(vec![
        folder(0, b"a");
        limits::SEGMENT_FOLDERS_MAX + 1
    ]));
}

#[test]
fn names_lie_in_directories_of_their_message() {
    let read = |folder, names: Vec<Vec<u8>>| {
        let names = Names {
            transfer: TransferId([1; 16]),
            number: 0,
            folders: vec![super::Folder {
                parent: 0,
                name: b"a".to_vec(),
            }],
            listings: vec![Listing {
                folder,
                above: 0,
                names,
                complete: true,
            }],
            last: true,
        };
        read_all(&encode(&Message::Names(Box::new(names))), &[9999]).is_ok()
    };
    assert!(read(0, vec![b"x".to_vec()]) && read(1, Vec::new()));
    assert!(!read(2, vec![b"x".to_vec()]));
    for lie in [&b""[..], b"..", b"a/b", b"a\0"] {
        assert!(!read(1, vec![lie.to_vec()]), "{}", lie.escape_ascii());
    }
    assert!(!read(0, vec![b"x".to_vec(); limits::NAMES_MAX + 1]));
}
