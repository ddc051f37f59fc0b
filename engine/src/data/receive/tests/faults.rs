//! Damage, duplicates, cuts, garbage, full disks and forgotten transfers.

use super::*;
use crate::error::{Error, ErrorKind};
use crate::limits::BLOCK_BYTES;
use crate::protocol::SegmentId;

const CHUNK_BYTES: usize = CHUNK as usize;

#[test]
fn a_flipped_byte_is_damage_of_its_chunk_only_and_a_resend_lands() {
    let rig = Rig::new();
    let size = 5 * u64::from(CHUNK) + 9;
    let (segment, file) = file_segment(size);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(size);
    let mut bytes = frame(&segment, 0..6, &all);
    let table = bytes.len() - all.len();
    bytes[table + 2 * CHUNK_BYTES + 17] ^= 1;
    socket.write_all(&bytes).expect("written");
    assert_eq!(rig.damaged(), 2);
    assert_eq!(rig.landed(0..2), 2 * u64::from(CHUNK));
    assert_eq!(rig.landed(3..6), 2 * u64::from(CHUNK) + 9);
    send(&mut socket, &segment, 2..3, &all);
    assert_eq!(rig.landed(2..3), u64::from(CHUNK));
    assert!(contents(&file) == all);
}

#[test]
fn a_swapped_pair_of_chunks_is_damage_of_both() {
    let rig = Rig::new();
    let (segment, _file) = file_segment(2 * u64::from(CHUNK));
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(2 * u64::from(CHUNK));
    let mut bytes = frame(&segment, 0..2, &all);
    let table = bytes.len() - all.len();
    bytes[table..].rotate_left(CHUNK_BYTES);
    socket.write_all(&bytes).expect("written");
    assert_eq!((rig.damaged(), rig.damaged()), (0, 1));
}

#[test]
fn what_landed_is_drained_and_never_written_again() {
    let rig = Rig::new();
    let (segment, file) = file_segment(3 * u64::from(CHUNK));
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(3 * u64::from(CHUNK));
    send(&mut socket, &segment, 0..3, &all);
    rig.landed(0..3);
    // Another content with true checks: only the ledger can refuse it.
    let other = vec![0; all.len()];
    send(&mut socket, &segment, 0..3, &other);
    assert_eq!(rig.drained(), ChunkRange { first: 0, count: 3 });
    assert!(contents(&file) == all);
}

#[test]
fn what_is_granted_elsewhere_is_drained_until_that_connection_is_reaped() {
    let rig = Rig::new();
    let size = 4 * u64::from(CHUNK);
    let (segment, file) = file_segment(size);
    rig.open(&segment);
    let all = payload(size);
    let mut first = rig.connect(1);
    let bytes = frame(&segment, 0..4, &all);
    // Cut in mid-chunk, and the connection stays.
    first
        .write_all(&bytes[..bytes.len() - 100])
        .expect("written");
    while segment.ledger.lock().expect("unpoisoned").granted() == 0 {
        std::thread::yield_now();
    }
    let mut second = rig.connect(2);
    send(&mut second, &segment, 1..2, &all);
    assert_eq!(rig.drained(), ChunkRange { first: 1, count: 1 });
    rig.command(ReceiveCommand::Detach {
        connection: 1,
        cause: Error::peer("gave it up", "as the test wants"),
    });
    let (connection, cause) = rig.detached();
    let told = cause.expect("the reason that was given").to_string();
    assert_eq!(
        (connection, told.as_str()),
        (1, "gave it up: as the test wants")
    );
    assert_eq!(segment.ledger.lock().expect("unpoisoned").granted(), 0);
    send(&mut second, &segment, 0..4, &all);
    assert_eq!(rig.landed(0..4), size);
    assert!(contents(&file) == all);
}

#[test]
fn a_connection_cut_in_mid_chunk_is_detached_and_its_grants_return() {
    let rig = Rig::new();
    let (segment, _file) = file_segment(4 * u64::from(CHUNK));
    rig.open(&segment);
    let mut socket = rig.connect(7);
    let bytes = frame(&segment, 0..4, &payload(4 * u64::from(CHUNK)));
    socket
        .write_all(&bytes[..bytes.len() - 100])
        .expect("written");
    drop(socket);
    let (connection, cause) = rig.detached();
    assert_eq!(connection, 7);
    assert_eq!(cause.expect("a cause").kind, ErrorKind::Peer);
    assert_eq!(admit(&segment, 8, 0..4), Admission::Write);
}

#[test]
fn garbage_detaches_with_the_reason() {
    let rig = Rig::new();
    let mut socket = rig.connect(1);
    socket.write_all(&[0x55; 64]).expect("written");
    let (_, cause) = rig.detached();
    let cause = cause.expect("a cause");
    assert_eq!(cause.kind, ErrorKind::Peer);
    assert!(cause.sentence.contains("a data frame"), "{cause}");
}

#[test]
fn frames_that_the_plan_does_not_have_detach() {
    let rig = Rig::new();
    let (segment, _file) = file_segment(2 * u64::from(CHUNK));
    rig.open(&segment);
    let header = |segment: SegmentId, first, count, payload_bytes| FrameHeader {
        transfer: TRANSFER,
        segment,
        first,
        count,
        payload_bytes,
    };
    let size = 2 * u64::from(CHUNK);
    let wrong = [
        header(0, 0, 2, size - 1),
        header(0, 1, 2, size),
        header(0, u64::MAX, 1, 1),
        header(1, 0, 2, size),
    ];
    for (number, header) in wrong.into_iter().enumerate() {
        let mut socket = rig.connect(number as ConnectionId);
        socket.write_all(&header.encode()).expect("written");
        let table = vec![0; 16 * header.count as usize];
        socket.write_all(&table).expect("written");
        let (connection, cause) = rig.detached();
        assert_eq!(connection, number as ConnectionId);
        assert_eq!(cause.expect("a cause").kind, ErrorKind::Peer);
    }
    assert_eq!(segment.ledger.lock().expect("unpoisoned").granted(), 0);
}

#[test]
fn a_forgotten_transfers_frames_are_read_and_forgotten() {
    let rig = Rig::new();
    let (segment, _file) = file_segment(2 * u64::from(CHUNK));
    rig.open(&segment);
    rig.command(ReceiveCommand::Forget(TRANSFER));
    assert_eq!(rig.forgotten(), TRANSFER);
    assert_eq!(Arc::strong_count(&segment), 1);
    let mut socket = rig.connect(1);
    send(&mut socket, &segment, 0..2, &payload(2 * u64::from(CHUNK)));
    drop(socket);
    assert_eq!(rig.detached(), (1, None));
}

#[test]
fn padding_is_read_and_forgotten_and_what_follows_lands() {
    let rig = Rig::new();
    let size = 2 * u64::from(CHUNK);
    let (segment, file) = file_segment(size);
    let mut socket = rig.connect(1);
    // Before any segment is open, as on a fresh connection, and between frames.
    let mut padding = FrameHeader::padding(14_000).encode().to_vec();
    padding.resize(padding.len() + 16 + 14_000, 7);
    socket.write_all(&padding).expect("written");
    rig.open(&segment);
    let all = payload(size);
    send(&mut socket, &segment, 0..1, &all);
    socket.write_all(&padding).expect("written");
    send(&mut socket, &segment, 1..2, &all);
    assert_eq!(rig.landed(0..2), size);
    assert!(contents(&file) == all);
}

#[test]
fn a_closed_segment_lets_its_targets_go_and_ignores_its_frames() {
    let rig = Rig::new();
    let (segment, file) = file_segment(2 * u64::from(CHUNK));
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(2 * u64::from(CHUNK));
    send(&mut socket, &segment, 0..2, &all);
    rig.landed(0..2);
    rig.command(ReceiveCommand::Close {
        transfer: TRANSFER,
        segment: 0,
    });
    // Its answer says that the worker has read the command before.
    rig.report();
    send(&mut socket, &segment, 0..2, &vec![1; all.len()]);
    drop(socket);
    assert_eq!(rig.detached(), (1, None));
    assert_eq!(Arc::strong_count(&segment), 1);
    assert!(contents(&file) == all);
}

#[test]
fn a_failed_write_fails_its_file_and_the_others_land() {
    let rig = Rig::new();
    let sizes = [1000, 3 * u64::from(CHUNK), 1000, 500];
    let (files, mut targets): (Vec<_>, Vec<_>) = sizes.iter().map(|_| file_target()).unzip();
    // Descriptors that cannot be written: of a packed file and of a large one.
    for failing in [1, 2] {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").expect("opened"));
        targets[failing] = Target::of_sink(Sink::File { fd, direct: None }, "/target");
    }
    let segment = segment(plan(EntryKind::File, &sizes, CHUNK), targets);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(segment.plan.wanted_bytes());
    let count = segment.plan.chunk_count().expect("files");
    assert_eq!(count, 5);
    socket
        .write_all(&frame(&segment, 0..count, &all))
        .expect("written");
    let mut failed = [rig.failed(), rig.failed()];
    failed.sort_by_key(|(file, _)| *file);
    assert_eq!(failed.each_ref().map(|(file, _)| *file), [1, 2]);
    for (_, error) in failed {
        assert_eq!(error.kind, ErrorKind::Local);
        assert!(error.sentence.contains("/target"), "{error}");
    }
    // The chunks of the large file do not land; the shared ones do.
    rig.landed(0..1);
    rig.landed(4..5);
    assert!(contents(&files[0]) == all[..1000]);
    assert!(contents(&files[3]) == all[all.len() - 500..]);
    let granted = segment.ledger.lock().expect("unpoisoned").granted();
    assert_eq!(granted, 0);
}

#[test]
fn a_full_file_system_is_a_sentence_with_a_cure() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        let ended = command.args(arguments).arg(directory.path()).output();
        ended.is_ok_and(|output| output.status.success())
    };
    if !run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs"]) {
        crate::kernel::skip("mounting a small file system needs root");
        return;
    }
    let file = std::fs::File::create(directory.path().join("file")).expect("created");
    let sink = Sink::File {
        fd: OwnedFd::from(file),
        direct: None,
    };
    let size = 2 * BLOCK_BYTES as u64;
    let target = Target::of_sink(sink, "/full/file");
    let segment = segment(plan(EntryKind::File, &[size], CHUNK), vec![target]);
    let rig = Rig::new();
    rig.open(&segment);
    let mut socket = rig.connect(1);
    send(&mut socket, &segment, 0..16, &payload(size));
    let (_, error) = rig.failed();
    assert!(error.sentence.contains("/full/file"), "{error}");
    assert!(error.cure.is_some_and(|cure| cure.contains("space")));
    drop(rig);
    drop(segment);
    assert!(run("umount", &[]));
}

#[test]
fn a_stop_ends_a_worker_with_connections_in_mid_frame() {
    let rig = Rig::new();
    let size = 40 * BLOCK_BYTES as u64;
    let (segment, _file) = file_segment(size);
    rig.open(&segment);
    let all = payload(size);
    let mut sockets: Vec<_> = (0..8).map(|number| rig.connect(number)).collect();
    for (socket, block) in sockets.iter_mut().zip(0..) {
        let chunks = block * 16..block * 16 + 16;
        let bytes = frame(&segment, chunks.clone(), part(&segment, &chunks, &all));
        // Half a frame: a receive is in flight on each.
        socket
            .write_all(&bytes[..bytes.len() / 2])
            .expect("written");
    }
    rig.command(ReceiveCommand::Stop);
    let mut numbers: Vec<_> = sockets.iter().map(|_| rig.detached().0).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..8).collect::<Vec<_>>());
    assert_eq!(segment.ledger.lock().expect("unpoisoned").granted(), 0);
}

#[test]
fn more_connections_than_there_may_be_are_refused() {
    let rig = Rig::new();
    let most = 2 * crate::limits::CONNECTIONS_MAX;
    let sockets: Vec<_> = (0..most + 3).map(|number| rig.connect(number)).collect();
    for refused in most..most + 3 {
        let (connection, cause) = rig.detached();
        assert_eq!(connection, refused);
        assert!(cause.is_some());
    }
    assert_eq!(rig.report().connections.len(), most as usize);
    drop(sockets);
}

#[test]
fn a_chunk_beyond_the_largest_file_fails_its_file() {
    let rig = Rig::new();
    let (_file, target) = file_target();
    let segment = segment(plan(EntryKind::Stream, &[0], CHUNK), vec![target]);
    let last = i64::MAX as u64 / u64::from(CHUNK) + 1;
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let bytes = frame(&segment, last..last + 1, &payload(u64::from(CHUNK)));
    socket.write_all(&bytes).expect("written");
    let (file, error) = rig.failed();
    assert_eq!((file, error.kind), (0, ErrorKind::Local));
}
