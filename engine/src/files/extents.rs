//! Where a file has data, and where it has holes.
//!
//! Leaves to others: reading the data. Invariant: nothing is touched that could
//! give a hole storage, and a byte that is told to be a hole reads as zero.

use crate::limits::DATA_RANGES_MAX;
use crate::protocol::wire::{ByteRange, Data};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Where the first `size` bytes of `file` have data, and how many bytes of holes
/// count as data because there are too many of them to be told.
///
/// A file system that cannot tell has data everywhere.
#[must_use]
pub fn data_of(file: BorrowedFd<'_>, size: u64) -> (Data, u64) {
    let mut ranges = Ranges::default();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // Nothing but a hole is left.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return (Data::Everywhere, 0),
        };
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(_) => return (Data::Everywhere, 0),
        };
        if end <= start {
            // It was cut off meanwhile, which the last look tells.
            break;
        }
        ranges.add(ByteRange { start, end });
        at = end;
    }
    ranges.finish(size)
}

/// Ranges while they are found, in bounded memory.
#[derive(Default)]
struct Ranges {
    found: Vec<ByteRange>,
    filled: u64,
}

impl Ranges {
    fn add(&mut self, range: ByteRange) {
        match self.found.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => self.found.push(range),
        }
        if self.found.len() >= 2 * DATA_RANGES_MAX {
            self.thin();
        }
    }

    fn finish(mut self, size: u64) -> (Data, u64) {
        if self.found.len() > DATA_RANGES_MAX {
            self.thin();
        }
        let whole = ByteRange {
            start: 0,
            end: size,
        };
        match self.found.as_slice() {
            [only] if *only == whole => (Data::Everywhere, self.filled),
            _ => (Data::Ranges(self.found), self.filled),
        }
    }

    /// Half as many as may be told: the smallest holes become data.
    fn thin(&mut self) {
        let gap = |pair: &[ByteRange]| pair[1].start - pair[0].end;
        let mut gaps: Vec<u64> = self.found.windows(2).map(gap).collect();
        // As many as are too many, and so the largest of them.
        let place = (self.found.len() - DATA_RANGES_MAX / 2).min(gaps.len() - 1);
        let (_, largest, _) = gaps.select_nth_unstable(place);
        let largest = *largest;
        let mut kept: Vec<ByteRange> = Vec::with_capacity(DATA_RANGES_MAX);
        for range in self.found.drain(..) {
            match kept.last_mut() {
                Some(last) if range.start - last.end <= largest => {
                    self.filled += range.start - last.end;
                    last.end = range.end;
                }
                _ => kept.push(range),
            }
        }
        self.found = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn data_and_holes_are_told_apart_and_stay_as_they_are() {
        for folder in ["/dev/shm", "."] {
            let file = tempfile::tempfile_in(folder).expect("a file");
            let all = |size| data_of(file.as_fd(), size);
            assert_eq!(all(0), (Data::Ranges(Vec::new()), 0));
            file.set_len(100 << 20).expect("sized");
            assert_eq!(all(100 << 20).0, Data::Ranges(Vec::new()), "{folder}");
            // Two pages of every kernel's size, in a block of every file system's.
            file.write_all_at(&[7; 1 << 16], 1 << 20).expect("written");
            file.write_all_at(&[7; 10], (100 << 20) - 10)
                .expect("written");
            let Data::Ranges(ranges) = all(100 << 20).0 else {
                panic!("it has holes");
            };
            assert_eq!(ranges.len(), 2, "{folder}: {ranges:?}");
            assert_eq!(ranges[0], range(1 << 20, (1 << 20) + (1 << 16)), "{folder}");
            assert_eq!(ranges[1].end, 100 << 20, "{folder}");
            let blocks = file.metadata().expect("looked at").blocks();
            assert!(blocks < 1000, "{folder}: {blocks} blocks");
            file.set_len(1 << 16).expect("cut");
            file.write_all_at(&[7; 1 << 16], 0).expect("written");
            assert_eq!(all(1 << 16), (Data::Everywhere, 0), "{folder}");
        }
    }

    #[test]
    fn too_many_holes_are_told_more_coarsely() {
        let mut ranges = Ranges::default();
        // Holes of 1 and of 1000 bytes in turn.
        let (mut at, mut data) = (5, 0);
        let count = 5 * DATA_RANGES_MAX as u64;
        for number in 0..count {
            ranges.add(range(at, at + 2));
            data += 2;
            at += 2 + if number % 2 == 0 { 1 } else { 1000 };
        }
        let (told, filled) = ranges.finish(at);
        let Data::Ranges(told) = told else {
            panic!("it has holes");
        };
        assert!(told.len() <= DATA_RANGES_MAX, "{}", told.len());
        assert!(told.windows(2).all(|pair| pair[0].end < pair[1].start));
        let told_bytes: u64 = told.iter().map(|range| range.end - range.start).sum();
        assert_eq!(told_bytes, data + filled, "every byte of data is in there");
        assert_eq!(told[0].start, 5);
    }
}
