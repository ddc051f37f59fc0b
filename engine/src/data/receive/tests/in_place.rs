//! Targets in memory that payload is received straight into.

use super::*;
use crate::error::ErrorKind;
use crate::kernel::page::HUGE_PAGE_BYTES;

const MIB: u64 = 1024 * 1024;
const IN_PLACE: &str = "in place on huge pages";

/// One file of `bytes` in memory without a name.
pub(super) fn memory_segment(bytes: u64) -> (Arc<ReceiveSegment>, std::fs::File) {
    let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    in_place_segment(file, bytes)
}

fn in_place_segment(file: std::fs::File, bytes: u64) -> (Arc<ReceiveSegment>, std::fs::File) {
    let fd = OwnedFd::from(file.try_clone().expect("cloned"));
    let target = Target::in_memory(Sink::File { fd, direct: None }, bytes, "/target");
    let plan = plan(EntryKind::File, &[bytes], CHUNK);
    (segment(plan, vec![target]), file)
}

/// True where this kernel can make huge pages at all.
fn has_huge_pages() -> bool {
    let here = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
    if !here {
        crate::kernel::skip("this kernel is built without transparent huge pages");
    }
    here
}

#[test]
fn sizes_around_huge_pages_and_windows_land_byte_exact() {
    let sizes = [
        4 * MIB,
        4 * MIB + 1,
        6 * MIB - 1,
        16 * MIB,
        18 * MIB + u64::from(CHUNK) + 7,
    ];
    for size in sizes {
        // A worker of its own: after a slow window it writes for a while.
        let rig = Rig::new();
        let (segment, file) = memory_segment(size);
        let mut socket = rig.connect(1);
        rig.open(&segment);
        let all = payload(size);
        let count = segment.plan.chunk_count().expect("a file");
        // Runs that begin and end anywhere.
        let mut start = 0;
        while start < count {
            let end = (start + 37).min(count);
            send(&mut socket, &segment, start..end, &all);
            start = end;
        }
        assert_eq!(rig.landed(0..count), size);
        assert!(contents(&file) == all, "{size} bytes differ");
        if has_huge_pages() {
            let method = rig.report().method;
            assert!(method.contains(IN_PLACE), "{size} bytes by {method}");
        }
    }
}

#[test]
fn where_memory_is_slow_to_get_its_windows_are_written() {
    // Every first huge page takes longer than no time at all.
    let rig = Rig::with(Pace::with(0));
    let size = 40 * MIB + 5;
    let (segment, file) = memory_segment(size);
    let mut socket = rig.connect(1);
    rig.open(&segment);
    let all = payload(size);
    let count = segment.plan.chunk_count().expect("a file");
    let mut start = 0;
    while start < count {
        let end = (start + 64).min(count);
        send(&mut socket, &segment, start..end, &all);
        start = end;
    }
    assert_eq!(rig.landed(0..count), size);
    assert!(contents(&file) == all);
    if has_huge_pages() {
        let method = rig.report().method;
        assert!(method.contains("write"), "{method}");
        assert!(!method.contains(IN_PLACE), "{method}");
    }
}

#[test]
fn the_largest_chunks_land_in_place_too() {
    let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let fd = OwnedFd::from(file.try_clone().expect("cloned"));
    let size = 9 * MIB + 1;
    let target = Target::in_memory(Sink::File { fd, direct: None }, size, "/target");
    let plan = plan(EntryKind::File, &[size], crate::limits::CHUNK_BYTES_MAX);
    let segment = segment(plan, vec![target]);
    let rig = Rig::new();
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(size);
    let bytes = frame(&segment, 0..2, &all[..8 * MIB as usize]);
    socket.write_all(&bytes).expect("written");
    let bytes = frame(&segment, 2..3, &all[8 * MIB as usize..]);
    socket.write_all(&bytes).expect("written");
    assert_eq!(rig.landed(0..3), size);
    assert!(contents(&file) == all);
    if has_huge_pages() {
        let method = rig.report().method;
        assert!(method.contains(IN_PLACE), "{method}");
    }
}

#[test]
fn bytes_that_are_there_survive_the_making_of_a_window() {
    use std::os::unix::fs::FileExt;
    let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    let size = 4 * MIB;
    let all = payload(size);
    // The first of each huge page, and somewhere inside, as another worker may
    // have landed them.
    for at in [0, MIB, 2 * MIB, 3 * MIB] {
        let at = at as usize;
        file.write_all_at(&all[at..at + CHUNK as usize], at as u64)
            .expect("written");
    }
    let (segment, file) = in_place_segment(file, size);
    let rig = Rig::new();
    rig.open(&segment);
    let mut socket = rig.connect(1);
    // Only the last chunk comes here.
    let count = segment.plan.chunk_count().expect("a file");
    send(&mut socket, &segment, count - 1..count, &all);
    rig.landed(count - 1..count);
    let found = contents(&file);
    for at in [0, MIB, 2 * MIB, 3 * MIB] {
        let range = at as usize..(at + u64::from(CHUNK)) as usize;
        assert!(found[range.clone()] == all[range], "bytes from {at} differ");
    }
}

/// A tmpfs of its own, unmounted at the end, also of a test that failed.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where one may not mount.
    fn with(options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let words = ["-t", "tmpfs", "-o", options, "tmpfs"];
        let mounted = Self::run("mount", &words, directory.path());
        mounted.then_some(Self(directory))
    }

    fn run(program: &str, arguments: &[&str], path: &std::path::Path) -> bool {
        let mut command = std::process::Command::new(program);
        let ended = command.args(arguments).arg(path).output();
        ended.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What is open in it keeps a failed test's file system until it closes.
        let gone = Self::run("umount", &["--lazy"], self.0.path());
        assert!(gone || std::thread::panicking(), "unmounted");
    }
}

#[test]
fn every_kind_of_memory_file_system_keeps_what_is_received() {
    // A huge page that fallocate(2) left unfilled is mapped as it is by
    // MADV_COLLAPSE, and what is received into it reads as zeros (Linux 6.18).
    for options in [
        "huge=always",
        "huge=within_size",
        "huge=advise",
        "huge=never",
    ] {
        let Some(mounted) = Mounted::with(options) else {
            crate::kernel::skip(&format!("mounting a file system with {options} needs root"));
            continue;
        };
        let path = mounted.0.path().join("file");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("created");
        let size = 18 * MIB + 3 * u64::from(CHUNK) + 7;
        let (segment, file) = in_place_segment(file, size);
        let rig = Rig::new();
        rig.open(&segment);
        let mut socket = rig.connect(1);
        let all = payload(size);
        let count = segment.plan.chunk_count().expect("a file");
        for start in (0..count).step_by(64) {
            send(&mut socket, &segment, start..(start + 64).min(count), &all);
        }
        assert_eq!(rig.landed(0..count), size);
        assert!(contents(&file) == all, "{options}");
    }
}

#[test]
fn damage_in_place_is_told_and_the_resend_lands() {
    let rig = Rig::new();
    let (segment, file) = memory_segment(4 * MIB);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(4 * MIB);
    let mut bytes = frame(&segment, 0..64, &all);
    let table = bytes.len() - all.len();
    bytes[table + 20 * CHUNK as usize + 17] ^= 1;
    socket.write_all(&bytes).expect("written");
    rig.landed(0..16);
    assert_eq!(rig.damaged(), 20);
    rig.landed(21..64);
    send(&mut socket, &segment, 20..21, &all);
    assert_eq!(rig.landed(20..21), u64::from(CHUNK));
    assert!(contents(&file) == all);
}

#[test]
fn a_target_cut_off_under_its_window_fails_and_is_no_crash() {
    let rig = Rig::new();
    let (segment, file) = memory_segment(8 * MIB);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(8 * MIB);
    send(&mut socket, &segment, 0..16, &all);
    rig.landed(0..16);
    file.set_len(HUGE_PAGE_BYTES as u64).expect("cut off");
    let bytes = frame(&segment, 64..80, part(&segment, &(64..80), &all));
    // The worker may have closed the connection before it has all of it.
    let _ = socket.write_all(&bytes);
    let (failed, error) = rig.failed();
    if has_huge_pages() {
        assert_eq!((failed, error.kind), (0, ErrorKind::Local));
        assert!(error.sentence.contains("cut off"), "{error}");
        let (connection, cause) = rig.detached();
        assert_eq!((connection, cause.is_some()), (1, true));
        let granted = segment.ledger.lock().expect("unpoisoned").granted();
        assert_eq!(granted, 0);
    }
}

#[test]
fn a_transfer_is_forgotten_while_a_receive_in_place_waits() {
    let rig = Rig::new();
    let (segment, _file) = memory_segment(4 * MIB);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(4 * MIB);
    let bytes = frame(&segment, 0..64, &all);
    let half = bytes.len() / 2;
    socket.write_all(&bytes[..half]).expect("written");
    rig.landed(0..16);
    rig.command(ReceiveCommand::Forget(TRANSFER));
    assert_eq!(rig.forgotten(), TRANSFER);
    assert_eq!(Arc::strong_count(&segment), 1, "nothing holds its targets");
    // The rest is read and forgotten, and the connection serves the next.
    socket.write_all(&bytes[half..]).expect("written");
    drop(socket);
    assert_eq!(rig.detached(), (1, None));
}

#[test]
fn where_huge_pages_are_refused_the_bytes_are_written() {
    // Not a file in memory: the kernel refuses to gather it.
    let file = tempfile::tempfile_in(".").expect("a file beside the code");
    let size = 6 * MIB;
    let (segment, file) = in_place_segment(file, size);
    let rig = Rig::new();
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(size);
    let count = segment.plan.chunk_count().expect("a file");
    send(&mut socket, &segment, 0..count, &all);
    assert_eq!(rig.landed(0..count), size);
    assert!(contents(&file) == all);
    let report = rig.report();
    assert!(!report.method.contains(IN_PLACE), "{}", report.method);
    assert!(report.notes.iter().any(|note| note.contains("huge pages")));
}
