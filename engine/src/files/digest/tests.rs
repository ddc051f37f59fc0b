//! Digests against the libraries' own, in every order of arrival.
//!
//! Leaves to others: trees of files (verify's tests). Invariant: what is expected
//! is computed by another way than what is tested.

use super::*;
use crate::files::scratch::bytes;
use proptest::prelude::*;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Mutex;

fn whole(bytes: &[u8]) -> Digest {
    Digest {
        kind: DigestKind::Blake3,
        bytes: blake3::hash(bytes).into(),
    }
}

/// The leaves of a file in chunks of `chunk_bytes`.
fn leaves(file: &[u8], chunk_bytes: usize) -> Vec<TreeLeaf> {
    let pieces = file.chunks(chunk_bytes).enumerate();
    pieces
        .map(|(number, piece)| TreeDigest::leaf((number * chunk_bytes) as u64, piece))
        .collect()
}

fn joined(leaves: impl IntoIterator<Item = TreeLeaf>, size: usize) -> Option<Digest> {
    let mut tree = TreeDigest::default();
    leaves.into_iter().for_each(|leaf| tree.add(leaf));
    tree.finish(size as u64)
}

/// A file, a power of two in bytes, and an order of arrival.
fn scattered() -> impl Strategy<Value = (usize, usize, Vec<prop::sample::Index>)> {
    let near = |(chunks, power, beyond): (usize, u32, i64)| {
        let size = (chunks << power) as i64 + beyond;
        (size.clamp(0, 3 << 20) as usize, 1_usize << power)
    };
    let edges = (0_usize..40, 10_u32..20, -2_i64..=2).prop_map(near);
    let anywhere = (0_usize..3 << 20, 10_u32..22).prop_map(|(size, power)| (size, 1 << power));
    let order = prop::collection::vec(any::<prop::sample::Index>(), 64);
    (prop_oneof![edges, anywhere], order).prop_map(|((size, chunk), order)| (size, chunk, order))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_in_any_order_make_the_files_digest((size, chunk, order) in scattered()) {
        let file = bytes(size);
        let mut left = leaves(&file, chunk);
        let mut order = order.iter().cycle();
        let mut tree = TreeDigest::default();
        while !left.is_empty() {
            prop_assert_eq!(tree.finish(size as u64), None);
            let at = order.next().expect("it goes on").index(left.len());
            tree.add(left.swap_remove(at));
        }
        prop_assert_eq!(tree.finish(size as u64), Some(whole(&file)));
        prop_assert_eq!(tree.finish(size as u64 + 1), None);
    }
}

#[test]
fn one_piece_that_is_the_whole_file_may_have_any_length() {
    for size in [0, 1, 1023, 1024, 1025, 3000, 65_536, 100_001] {
        let file = bytes(size);
        let alone = joined([TreeDigest::leaf(0, &file)], size);
        assert_eq!(alone, Some(whole(&file)), "{size}");
    }
    assert_eq!(TreeDigest::default().finish(0), Some(whole(b"")));
    // A stream's end may be told by a piece of nothing.
    let ended = [TreeDigest::leaf(0, b"all"), TreeDigest::leaf(3, b"")];
    assert_eq!(joined(ended, 3), Some(whole(b"all")));
}

#[test]
fn what_is_missing_twice_or_not_aligned_has_no_digest() {
    let file = bytes(10 * 4096 + 5);
    let all = leaves(&file, 4096);
    for missing in 0..all.len() {
        let mut some = all.clone();
        some.remove(missing);
        assert_eq!(joined(some, file.len()), None, "{missing}");
        let mut twice = all.clone();
        twice.push(all[missing].clone());
        assert_eq!(joined(twice, file.len()), None, "{missing}");
        // One that came twice does not make up for one that is as long and missing.
        let mut swapped = all.clone();
        swapped[missing] = all[(missing + 1) % 10].clone();
        assert_eq!(joined(swapped, file.len()), None, "{missing}");
    }
    let cut = |at: usize| {
        let (one, other) = file.split_at(at);
        [TreeDigest::leaf(0, one), TreeDigest::leaf(at as u64, other)]
    };
    assert_eq!(joined(cut(32_768), file.len()), Some(whole(&file)));
    for at in [1, 1000, 1024, 3 * 1024, 12_288, 32_767, 40_960] {
        assert_eq!(joined(cut(at), file.len()), None, "{at}");
    }
}

#[test]
fn of_pieces_in_order_few_values_are_kept() {
    let piece = bytes(1024);
    let mut tree = TreeDigest::default();
    for number in 0..10_000 {
        tree.add(TreeDigest::leaf(number * 1024, &piece));
        assert!(tree.part_count() <= 2 * 14, "{number}");
    }
    // From the end to the start, too.
    let mut tree = TreeDigest::default();
    for number in (0..10_000).rev() {
        tree.add(TreeDigest::leaf(number * 1024, &piece));
        assert!(tree.part_count() <= 2 * 14, "{number}");
    }
}

#[test]
fn several_threads_sum_one_file() {
    let file = bytes(5 * (1 << 18) + 77);
    let (tree, next) = (Mutex::new(TreeDigest::default()), Mutex::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let start = {
                        let mut next = next.lock().expect("held");
                        *next += 1 << 16;
                        *next - (1 << 16)
                    };
                    let Some(rest) = file.get(start..).filter(|rest| !rest.is_empty()) else {
                        return;
                    };
                    let leaf = TreeDigest::leaf(start as u64, &rest[..rest.len().min(1 << 16)]);
                    tree.lock().expect("held").add(leaf);
                }
            });
        }
    });
    let tree = tree.into_inner().expect("held");
    assert_eq!(tree.finish(file.len() as u64), Some(whole(&file)));
}

#[test]
fn a_file_that_is_read_has_the_digests_that_everybody_computes() {
    let go_on = AtomicBool::new(false);
    for size in [0, 1, 55, 64, 5000, READ_BYTES, 2 * READ_BYTES + 3] {
        let content = bytes(size);
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content).expect("written");
        let of = |size, kind| digest_of(file.as_fd(), size, kind, &go_on);
        assert_eq!(of(size as u64, DigestKind::Blake3), Ok(whole(&content)));
        let sha256 = of(size as u64, DigestKind::Sha256).expect("read");
        assert_eq!(sha256.bytes, <[u8; 32]>::from(Sha256::digest(&content)));
        let longer = of(size as u64 + 1, DigestKind::Sha256);
        assert_eq!(longer, Err(DigestFault::Short));
    }
    // FIPS 180-2, appendix B.1.
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"abc").expect("written");
    let abc = digest_of(file.as_fd(), 3, DigestKind::Sha256, &go_on).expect("read");
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(abc.hex(), known);
}

#[test]
fn a_read_that_fails_or_is_stopped_is_told_as_such() {
    let directory = tempfile::tempdir().expect("a folder");
    let opened = std::fs::File::open(directory.path()).expect("opened");
    let read = |stop| {
        digest_of(
            opened.as_fd(),
            5,
            DigestKind::Blake3,
            &AtomicBool::new(stop),
        )
    };
    assert_eq!(read(false), Err(DigestFault::Read(Errno::ISDIR)));
    assert_eq!(read(true), Err(DigestFault::Stopped));
}
