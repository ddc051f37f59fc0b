//! Tests of reading back, by O_DIRECT and by dropped pages.
//!
//! Leaves to others: the code under test. Invariant: fresh directories only.

use super::*;
use crate::files::scratch::{bytes, plan};
use std::io::Write;

const CHUNK: u32 = 65_536;

fn expected(contents: &[u8], pieces: usize) -> FileSum {
    let mut sum = FileSum::default();
    for (at, piece) in contents.chunks(pieces).enumerate() {
        sum.add((at * pieces) as u64, piece);
    }
    sum
}

#[test]
fn both_ways_give_the_receivers_sum() {
    for size in [0, 1, 4095, 4096, 4097, 65_537, 5_000_000] {
        let mut file = tempfile::tempfile().expect("file");
        let contents = bytes(size);
        file.write_all(&contents).expect("write");
        file.sync_all().expect("fsync");
        let plan = plan(&[Some(size as u64)], CHUNK);
        let wanted = expected(&contents, CHUNK as usize);
        for direct in [true, false] {
            let mut back = ReadBack::open_with(file.as_fd(), direct).expect("opens");
            let sum = back.sum(&plan, 0, size as u64);
            assert_eq!(sum, Ok(wanted), "{size}, direct {direct}");
        }
    }
}

#[test]
fn a_stream_is_read_to_its_size_and_a_short_file_is_told() {
    let mut file = tempfile::tempfile().expect("file");
    let contents = bytes(150_000);
    file.write_all(&contents).expect("write");
    file.sync_all().expect("fsync");
    let mut back = ReadBack::open(file.as_fd()).expect("opens");
    let sum = back.sum(&plan(&[None], CHUNK), 0, 150_000);
    assert_eq!(sum, Ok(expected(&contents, CHUNK as usize)));
    let short = back.sum(&plan(&[Some(150_001)], CHUNK), 0, 150_001);
    assert_eq!(short, Err(None));
}
