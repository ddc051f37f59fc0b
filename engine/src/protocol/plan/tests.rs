//! The plan's properties over random files and verdicts, and its boundaries.
//!
//! Leaves to others: what moves. Invariant: bytes are counted one by one, not
//! by the arithmetic that is tested.

use super::*;
use crate::error::Error;
use crate::protocol::TransferId;
use crate::protocol::wire::Entry;
use proptest::prelude::*;

const CHUNK: u32 = 64;

fn offer(sizes: &[u64]) -> Offer {
    let entries = sizes.iter().map(|&size| Entry {
        name: b"file".to_vec(),
        kind: EntryKind::File,
        size,
        mode: 0,
        mtime_seconds: 0,
        mtime_nanos: 0,
        data: Data::Everywhere,
        ..Entry::default()
    });
    Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer: TransferId([3; 16]),
        segment: 4,
        last: true,
        entries: entries.collect(),
    }
}

fn plan(offer: &Offer, verdicts: Vec<Verdict>) -> Result<Plan, Violation> {
    let answer = Answer {
        transfer: offer.transfer,
        segment: offer.segment,
        digest: digest(offer, &verdicts),
        verdicts,
    };
    Plan::new(offer, &answer, CHUNK)
}

fn whole(sizes: &[u64]) -> Plan {
    plan(&offer(sizes), vec![Verdict::Whole; sizes.len()]).expect("whole files always fit")
}

/// A file's size and what is wanted of it.
fn file() -> impl Strategy<Value = (u64, Verdict)> {
    let size = prop_oneof![0u64..CHUNK.into(), 0u64..600, Just(64u64), Just(128)];
    (
        size,
        0..7,
        prop::collection::vec((1u64..90, 1u64..200), 0..5),
    )
        .prop_map(|(size, kind, gaps)| {
            let verdict = match kind {
                0 => Verdict::Skip,
                1 => Verdict::Refused(Error::usage("no")),
                2 | 3 => Verdict::Whole,
                4 => Verdict::Held,
                _ => {
                    let mut ranges = Vec::new();
                    let mut at = 0;
                    for (gap, bytes) in gaps {
                        let (start, end) = (at + gap - 1, at + gap - 1 + bytes);
                        if end <= size {
                            ranges.push(ByteRange { start, end });
                            at = end + 1;
                        }
                    }
                    Verdict::Ranges(ranges)
                }
            };
            (size, verdict)
        })
}

proptest! {
    #[test]
    fn every_wanted_byte_is_in_exactly_one_chunk(files in prop::collection::vec(file(), 0..12)) {
        let (sizes, verdicts): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        let offer = offer(&sizes);
        let plan = plan(&offer, verdicts.clone()).expect("the verdicts are in order");
        let count = plan.chunk_count().expect("no stream");
        let mut times: Vec<Vec<u32>> = sizes.iter().map(|&size| vec![0; size as usize]).collect();
        let mut total = 0;
        for chunk in 0..count {
            let mut bytes = 0;
            for piece in plan.pieces(chunk, 1) {
                prop_assert_eq!(piece.run_offset, bytes);
                prop_assert!(piece.bytes > 0);
                bytes += piece.bytes;
                let end = piece.file_offset + piece.bytes;
                for byte in piece.file_offset..end {
                    times[piece.file as usize][byte as usize] += 1;
                }
            }
            prop_assert!(bytes > 0 && bytes <= u64::from(CHUNK));
            prop_assert_eq!(bytes, u64::from(plan.chunk_len(chunk)));
            prop_assert_eq!(bytes, plan.run_bytes(chunk, 1));
            prop_assert!(plan.contains(chunk, count - chunk));
            total += bytes;
        }
        prop_assert!(!plan.contains(count, 1) && !plan.contains(0, count + 1) && !plan.contains(0, 0));
        prop_assert_eq!(total, plan.wanted_bytes());
        for ((times, verdict), file) in times.iter().zip(&verdicts).zip(0..) {
            let mut wanted = vec![0; times.len()];
            match verdict {
                Verdict::Whole => wanted.fill(1),
                Verdict::Ranges(ranges) => ranges
                    .iter()
                    .for_each(|range| wanted[range.start as usize..range.end as usize].fill(1)),
                Verdict::Skip | Verdict::Refused(_) | Verdict::Would(_) | Verdict::Held => {}
            }
            prop_assert_eq!(times, &wanted);
            prop_assert_eq!(plan.bytes_of(file), u64::from(wanted.iter().sum::<u32>()));
        }
    }

    #[test]
    fn a_run_is_its_chunks_one_after_another(
        files in prop::collection::vec(file(), 0..12), first in 0u64..40, count in 1u32..20,
    ) {
        let (sizes, verdicts): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        let plan = plan(&offer(&sizes), verdicts).expect("the verdicts are in order");
        let chunk_count = plan.chunk_count().expect("no stream");
        prop_assume!(chunk_count > 0);
        let first = first % chunk_count;
        let count = count.min((chunk_count - first) as u32);
        let chunks = first..first + u64::from(count);
        // Byte by byte, since neighbours of one file come as one piece.
        let bytes = |pieces: Vec<Piece>| -> Vec<(FileId, u64)> {
            let bytes = pieces.into_iter().flat_map(|piece| {
                (piece.file_offset..piece.file_offset + piece.bytes).map(move |at| (piece.file, at))
            });
            bytes.collect()
        };
        let run = bytes(plan.pieces(first, count).collect());
        let single: Vec<_> =
            chunks.clone().flat_map(|chunk| bytes(plan.pieces(chunk, 1).collect())).collect();
        prop_assert_eq!(&run, &single);
        prop_assert_eq!(run.len() as u64, plan.run_bytes(first, count));
        let lens: u64 = chunks.clone().map(|chunk| u64::from(plan.chunk_len(chunk))).sum();
        prop_assert_eq!(lens, run.len() as u64);
        let mut files: Vec<FileId> = run.iter().map(|(file, _)| *file).collect();
        files.dedup();
        prop_assert_eq!(plan.files_of(chunks).collect::<Vec<_>>(), files);
    }

    #[test]
    fn shares_of_all_chunks_add_up_and_name_the_chunks(files in prop::collection::vec(file(), 0..12), cut in 0u64..30) {
        let (sizes, verdicts): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        let plan = plan(&offer(&sizes), verdicts).expect("the verdicts are in order");
        let count = plan.chunk_count().expect("no stream");
        let cut = cut.min(count);
        let mut shares = vec![0; sizes.len()];
        for (file, share) in plan.shares(0..cut).chain(plan.shares(cut..count)) {
            shares[file as usize] += share;
        }
        for (file, share) in (0..).zip(shares) {
            prop_assert_eq!(plan.shares_of(file), Some(share));
            let chunks: Vec<ChunkId> = plan.chunks_of(file).flatten().collect();
            prop_assert_eq!(chunks.len() as u64, share);
            let held = |chunk: &ChunkId| plan.files_of(*chunk..*chunk + 1).any(|other| other == file);
            prop_assert!(chunks.iter().all(held));
        }
    }

    #[test]
    fn any_verdict_gives_a_plan_or_a_violation(
        size: u64, ranges in prop::collection::vec(any::<[u64; 2]>(), 0..4), wide: bool,
    ) {
        let ranges = ranges.iter().map(|&[start, end]| ByteRange { start, end }).collect();
        let verdicts = vec![Verdict::Whole, Verdict::Ranges(ranges)];
        let sizes = if wide { [u64::MAX, size] } else { [7, size] };
        if let Ok(plan) = plan(&offer(&sizes), verdicts) {
            prop_assert!(plan.wanted_bytes() <= limits::SEGMENT_BYTES_MAX);
        }
    }
}

#[test]
fn what_is_held_is_in_no_chunk_and_in_pieces_all_the_same() {
    let chunk = u64::from(CHUNK);
    let mut offer = offer(&[10, 2 * chunk + 1, 500, 0]);
    offer.entries[2].data = Data::Ranges(vec![
        ByteRange { start: 7, end: 9 },
        ByteRange {
            start: 100,
            end: 100 + chunk + 5,
        },
    ]);
    let mut verdicts = vec![Verdict::Held; 4];
    verdicts[0] = Verdict::Whole;
    let plan = self::plan(&offer, verdicts.clone()).expect("files");
    assert_eq!((plan.chunk_count(), plan.wanted_bytes()), (Some(1), 10));
    assert_eq!(
        [0, 1, 2, 3].map(|file| plan.is_held(file)),
        [false, true, true, false]
    );
    let pieces = |file| -> Vec<(u64, u64)> {
        let pieces = plan.held_pieces(file);
        pieces.map(|piece| (piece.start, piece.end)).collect()
    };
    assert_eq!(pieces(1), [(0, 64), (64, 128), (128, 129)]);
    assert_eq!(pieces(2), [(7, 9), (100, 164), (164, 169)]);
    assert!(pieces(0).is_empty() && pieces(3).is_empty());
    assert_eq!(plan.shares_of(1), Some(0));
    verdicts[0] = Verdict::Held;
    let other = self::plan(&offer, verdicts.clone()).expect("files");
    assert_ne!(other.digest(), plan.digest());
    for kind in [EntryKind::Directory, EntryKind::Fifo, EntryKind::Stream] {
        offer.entries[0].kind = kind;
        assert!(self::plan(&offer, verdicts.clone()).is_err());
        offer.entries.truncate(1);
        assert!(self::plan(&offer, vec![Verdict::Held]).is_err(), "alone");
    }
}

#[test]
fn sizes_at_every_boundary() {
    let chunk = u64::from(CHUNK);
    for (size, lens) in [
        (0, vec![]),
        (1, vec![1]),
        (chunk - 1, vec![63]),
        (chunk, vec![64]),
        (chunk + 1, vec![64, 1]),
        (2 * chunk, vec![64, 64]),
    ] {
        let plan = whole(&[size]);
        let count = plan.chunk_count().expect("no stream");
        let found: Vec<u32> = (0..count).map(|chunk| plan.chunk_len(chunk)).collect();
        assert_eq!(found, lens, "{size} bytes");
    }
}

#[test]
fn small_files_share_a_chunk_and_a_large_one_starts_its_own() {
    let plan = whole(&[30, 0, 30, 30, 130, 4, 60]);
    let place = |file| plan.chunks_of(file).next();
    // The third does not fit any more, and the large one shares with nobody.
    assert_eq!([place(0), place(2)], [Some(0..1), Some(0..1)]);
    assert_eq!(place(1), None);
    assert_eq!(place(3), Some(1..2));
    assert_eq!(place(4), Some(2..5));
    assert_eq!([place(5), place(6)], [Some(5..6), Some(5..6)]);
    assert_eq!(plan.chunk_count(), Some(6));
    assert_eq!(plan.files_of(0..2).collect::<Vec<_>>(), [0, 2, 3]);
}

#[test]
fn the_digest_knows_all_that_the_layout_depends_on() {
    let base = offer(&[10, 20]);
    let wants = [Verdict::Whole, Verdict::Whole];
    let mut digests = vec![digest(&base, &wants)];
    for change in [
        |offer: &mut Offer| offer.transfer.0[0] ^= 1,
        |offer: &mut Offer| offer.segment += 1,
        |offer: &mut Offer| offer.entries[0].size += 1,
        |offer: &mut Offer| offer.entries[1].name = b"other".to_vec(),
        |offer: &mut Offer| offer.entries[1].kind = EntryKind::Stream,
    ] {
        let mut other = base.clone();
        change(&mut other);
        digests.push(digest(&other, &wants));
    }
    let range = Verdict::Ranges(vec![ByteRange { start: 0, end: 10 }]);
    for verdict in [Verdict::Skip, Verdict::Refused(Error::usage("no")), range] {
        digests.push(digest(&base, &[verdict, Verdict::Whole]));
    }
    let count = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), count);
}

#[test]
fn a_stream_has_no_end_and_is_alone() {
    let mut stream = offer(&[0]);
    stream.entries[0].kind = EntryKind::Stream;
    let plan_of = |verdict| plan(&stream, vec![verdict]);
    let plan_whole = plan_of(Verdict::Whole).expect("a stream");
    assert_eq!(
        (plan_whole.chunk_count(), plan_whole.shares_of(0)),
        (None, None)
    );
    assert_eq!(plan_whole.chunk_len(1 << 40), CHUNK);
    assert_eq!(plan_whole.shares(3..9).collect::<Vec<_>>(), [(0, 6)]);
    assert!(plan_whole.contains(0, 1 << 40) && !plan_whole.contains(u64::MAX, 1));
    let skipped = plan_of(Verdict::Skip).expect("nothing is wanted");
    assert_eq!(skipped.chunk_count(), Some(0));
    let range = ByteRange { start: 0, end: 1 };
    assert!(plan_of(Verdict::Ranges(vec![range])).is_err());
    let mut among = offer(&[0, 5]);
    among.entries[0].kind = EntryKind::Stream;
    assert!(plan(&among, vec![Verdict::Whole; 2]).is_err());
}

#[test]
fn ranges_are_ascending_apart_and_inside() {
    let range = |start, end| ByteRange { start, end };
    let with = |ranges| plan(&offer(&[100]), vec![Verdict::Ranges(ranges)]);
    assert!(with(vec![range(0, 10), range(11, 100)]).is_ok());
    for bad in [
        vec![range(0, 101)],
        vec![range(5, 5)],
        vec![range(9, 5)],
        vec![range(0, 10), range(10, 20)],
        vec![range(20, 30), range(0, 10)],
    ] {
        assert!(with(bad).is_err());
    }
    assert!(plan(&offer(&[1]), vec![]).is_err());
}

/// Data in some of 64 places of 10 bytes, by the bits of `places`.
fn data(places: u64) -> Data {
    let mut ranges: Vec<ByteRange> = Vec::new();
    for place in (0..64).filter(|place| places >> place & 1 == 1) {
        let (start, end) = (place * 10, place * 10 + 10);
        match ranges.last_mut().filter(|last| last.end == start) {
            Some(last) => last.end = end,
            None => ranges.push(ByteRange { start, end }),
        }
    }
    Data::Ranges(ranges)
}

proptest! {
    #[test]
    fn every_wanted_byte_of_data_is_in_one_chunk_and_no_hole_is(
        places in prop::collection::vec(any::<u64>(), 1..5),
        wanted in prop::option::of((0u64..300, 1u64..340)),
    ) {
        let mut offer = offer(&vec![640; places.len()]);
        for (entry, places) in offer.entries.iter_mut().zip(&places) {
            entry.data = data(*places);
        }
        let verdict = wanted.map_or(Verdict::Whole, |(start, bytes)| {
            Verdict::Ranges(vec![ByteRange { start, end: start + bytes }])
        });
        let plan = plan(&offer, vec![verdict; places.len()]).expect("it fits");
        let mut covered = vec![[0_u8; 640]; places.len()];
        for piece in plan.pieces_of(0..plan.chunk_count().expect("files")) {
            let (from, to) = (piece.file_offset, piece.file_offset + piece.bytes);
            covered[piece.file as usize][from as usize..to as usize].iter_mut().for_each(|byte| *byte += 1);
        }
        let (start, end) = wanted.map_or((0, 640), |(start, bytes)| (start, start + bytes));
        for (covered, places) in covered.iter().zip(&places) {
            for (at, count) in (0u64..).zip(covered) {
                let is_data = places >> (at / 10) & 1 == 1;
                let is_wanted = (start..end).contains(&at);
                prop_assert_eq!(*count, u8::from(is_data && is_wanted), "byte {}", at);
            }
        }
        let planned: u64 = (0..places.len()).map(|file| plan.bytes_of(file as u32)).sum();
        prop_assert_eq!(plan.wanted_bytes(), planned);
    }

    #[test]
    fn a_plan_of_other_data_has_another_digest(one in any::<u64>(), other in any::<u64>()) {
        let mut offers = [offer(&[640]), offer(&[640])];
        offers[0].entries[0].data = data(one);
        offers[1].entries[0].data = data(other);
        let [one_digest, other_digest] = offers.map(|offer| digest(&offer, &[Verdict::Whole]));
        prop_assert_eq!(one_digest == other_digest, one == other);
    }
}
