//! Tests of reading back, by O_DIRECT and by dropped pages.
//!
//! Leaves to others: the code under test. Invariant: fresh directories only.

use super::*;
use crate::files::FileSystem;
use crate::files::scratch::{Mount, bytes, plan};
use std::fs::File;
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
            if !direct && FileSystem::of(file.as_fd()) == FileSystem::Memory {
                // Its pages are the only copy, and such targets are refused.
                continue;
            }
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
    let mut back = ReadBack::from_disk(file.as_fd()).expect("opens");
    let sum = back.sum(&plan(&[None], CHUNK), 0, 150_000);
    assert_eq!(sum, Ok(expected(&contents, CHUNK as usize)));
    let short = back.sum(&plan(&[Some(150_001)], CHUNK), 0, 150_001);
    assert_eq!(short, Err(None));
}

#[test]
fn neither_way_believes_the_page_cache() {
    let Some(mount) = Mount::disk("ext4", 64) else {
        return;
    };
    let marker = b"this sector is turned over by the reading test";
    let mut contents = bytes(500_000);
    contents[4096 * 40..][..marker.len()].copy_from_slice(marker);
    let path = mount.path().join("file");
    std::fs::write(&path, &contents).expect("write");
    let file = File::open(&path).expect("opens");
    file.sync_all().expect("fsync");
    mount.damage(marker);
    assert!(
        std::fs::read(&path).expect("reads") == contents,
        "is cached"
    );
    contents[4096 * 40] = !marker[0];
    let plan = plan(&[Some(500_000)], CHUNK);
    // The direct way first: the other one drops the good pages.
    for direct in [true, false] {
        let mut back = ReadBack::open_with(file.as_fd(), direct).expect("opens");
        let sum = back.sum(&plan, 0, 500_000);
        assert_eq!(sum, Ok(expected(&contents, CHUNK as usize)), "{direct}");
    }
}

#[test]
fn pages_that_stay_in_memory_are_not_taken_for_a_disk() {
    let Some(mount) = Mount::tmpfs(1 << 20) else {
        return;
    };
    let path = mount.path().join("file");
    std::fs::write(&path, bytes(5000)).expect("write");
    let file = File::open(&path).expect("opens");
    let mut back = ReadBack::open_with(file.as_fd(), false).expect("opens");
    let sum = back.sum(&plan(&[Some(5000)], CHUNK), 0, 5000);
    assert_eq!(sum, Err(Some(Errno::BUSY)));
}
