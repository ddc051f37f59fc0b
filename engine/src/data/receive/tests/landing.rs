//! What arrives whole lands byte-exact.

use super::*;
use crate::data::receive::landing::goes_direct;
use crate::limits::BLOCK_BYTES;

#[test]
fn sizes_at_and_around_each_boundary_land_byte_exact() {
    let (chunk, block) = (u64::from(CHUNK), BLOCK_BYTES as u64);
    let rig = Rig::new();
    let sizes = [
        1,
        63,
        64,
        4095,
        4096,
        4097,
        chunk - 1,
        chunk,
        chunk + 1,
        block - 1,
        block,
        block + 1,
        3 * block + chunk + 7,
    ];
    for (number, size) in sizes.into_iter().enumerate() {
        let (segment, file) = file_segment(size);
        let mut socket = rig.connect(number as ConnectionId);
        rig.command(ReceiveCommand::Open(segment.clone()));
        let all = payload(size);
        let count = segment.plan.chunk_count().expect("a file");
        send(&mut socket, &segment, 0..count, &all);
        assert_eq!(rig.landed(0..count), size);
        assert!(contents(&file) == all, "{size} bytes differ");
        drop(socket);
        assert_eq!(rig.detached(), (number as ConnectionId, None));
    }
}

#[test]
fn frames_that_trickle_in_land() {
    let rig = Rig::new();
    let (segment, file) = file_segment(200_000);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    socket.set_nodelay(true).expect("set");
    let all = payload(200_000);
    let mut bytes = frame(&segment, 0..2, part(&segment, &(0..2), &all));
    bytes.extend(frame(&segment, 2..4, part(&segment, &(2..4), &all)));
    // The seams fall into the header, the table and payloads.
    let (mut rest, mut size) = (&bytes[..], 1);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(size.min(rest.len()));
        socket.write_all(now).expect("written");
        std::thread::yield_now();
        rest = later;
        size = size * 2 + 1;
    }
    assert_eq!(rig.landed(0..4), 200_000);
    assert!(contents(&file) == all);
}

#[test]
fn runs_over_several_connections_land_each_once() {
    let rig = Rig::new();
    let size = 6 * BLOCK_BYTES as u64 + 100;
    let (segment, file) = file_segment(size);
    rig.open(&segment);
    let all = payload(size);
    let count = segment.plan.chunk_count().expect("a file");
    let senders: Vec<_> = (0..4)
        .map(|number| {
            let (mut socket, segment, all) = (rig.connect(number), segment.clone(), all.clone());
            std::thread::spawn(move || {
                let mine = (0..count).filter(|chunk| chunk % 4 == u64::from(number));
                for chunk in mine {
                    send(&mut socket, &segment, chunk..chunk + 1, &all);
                }
                socket
            })
        })
        .collect();
    assert_eq!(rig.landed(0..count), size);
    assert!(contents(&file) == all);
    // The connections stay: the report tells of those that are there.
    let _sockets: Vec<_> = senders
        .into_iter()
        .map(|sender| sender.join().expect("sent"))
        .collect();
    let report = rig.report();
    let bytes: u64 = report.connections.iter().map(|c| c.bytes).sum();
    assert_eq!(bytes, size);
    assert!(report.system_calls > 0 && !report.latencies.write.is_empty());
    assert!(report.connections.iter().all(|c| c.tcp.is_some()));
}

#[test]
fn small_files_packed_into_one_chunk_land_apart() {
    let rig = Rig::new();
    let sizes = [10, 5000, 1, u64::from(CHUNK) + 3, 40_000, 20_000, 7];
    let (files, targets): (Vec<_>, Vec<_>) = sizes.iter().map(|_| file_target()).unzip();
    let segment = segment(plan(EntryKind::File, &sizes, CHUNK), targets);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let count = segment.plan.chunk_count().expect("files");
    let all = payload(segment.plan.wanted_bytes());
    socket
        .write_all(&frame(&segment, 0..count, &all))
        .expect("written");
    assert_eq!(rig.landed(0..count), all.len() as u64);
    let mut start = 0;
    for (file, size) in files.iter().zip(sizes) {
        let end = start + size as usize;
        assert!(contents(file) == all[start..end]);
        start = end;
    }
}

#[test]
fn a_null_sink_lands_without_a_write() {
    let rig = Rig::new();
    let size = 3 * BLOCK_BYTES as u64;
    let target = Target::of_sink(Sink::Null, "the null sink");
    let segment = segment(plan(EntryKind::File, &[size], CHUNK), vec![target]);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let count = segment.plan.chunk_count().expect("a file");
    send(&mut socket, &segment, 0..count, &payload(size));
    assert_eq!(rig.landed(0..count), size);
    let report = rig.report();
    assert!(report.latencies.write.is_empty());
    assert_eq!(report.method, "discarded");
}

#[test]
fn the_largest_chunks_fit_a_block() {
    let rig = Rig::new();
    let size = 9 * 1024 * 1024 + 1;
    let (file, target) = file_target();
    let plan = plan(EntryKind::File, &[size], crate::limits::CHUNK_BYTES_MAX);
    let segment = segment(plan, vec![target]);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(size);
    let mut start = 0;
    for chunk in 0..3 {
        let end = start + segment.plan.chunk_len(chunk) as usize;
        let bytes = frame(&segment, chunk..chunk + 1, &all[start..end]);
        socket.write_all(&bytes).expect("written");
        start = end;
    }
    assert_eq!(rig.landed(0..3), size);
    assert!(contents(&file) == all);
}

#[test]
fn a_direct_descriptor_takes_the_aligned_part() {
    let directory = tempfile::tempdir_in(".").expect("a directory beside the code");
    let path = directory.path().join("file");
    let open = |flags| {
        let all = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE | flags;
        rustix::fs::open(&path, all, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
    };
    let fd = open(rustix::fs::OFlags::empty()).expect("opened");
    let Ok(direct) = open(rustix::fs::OFlags::DIRECT) else {
        return crate::kernel::skip("the file system of temporary files has no O_DIRECT");
    };
    let size = 2 * BLOCK_BYTES as u64 + u64::from(CHUNK) + 4096 + 5;
    let file = std::fs::File::from(fd.try_clone().expect("cloned"));
    let sink = Sink::File {
        fd,
        direct: Some(direct),
    };
    let target = Target::of_sink(sink, "/target");
    let segment = segment(plan(EntryKind::File, &[size], CHUNK), vec![target]);
    let rig = Rig::new();
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(size);
    let count = segment.plan.chunk_count().expect("a file");
    send(&mut socket, &segment, 0..count, &all);
    assert_eq!(rig.landed(0..count), size);
    assert!(contents(&file) == all);
    assert!(rig.report().method.contains("direct write"));
}

#[test]
fn the_page_cache_helps_a_disk_that_falls_behind() {
    use crate::limits::{BLOCKS_BYTES_MAX, DIRECT_BYTES_AHEAD_MAX};
    assert!(goes_direct(false, DIRECT_BYTES_AHEAD_MAX - BLOCK_BYTES));
    assert!(!goes_direct(false, DIRECT_BYTES_AHEAD_MAX));
    assert!(goes_direct(true, BLOCKS_BYTES_MAX), "it waits for its disk");
}

#[test]
fn a_stream_ends_with_a_short_chunk() {
    let rig = Rig::new();
    let (file, target) = file_target();
    let segment = segment(plan(EntryKind::Stream, &[0], CHUNK), vec![target]);
    rig.open(&segment);
    let mut socket = rig.connect(1);
    let all = payload(u64::from(CHUNK) * 3 + 100);
    let cut = 2 * CHUNK as usize;
    socket
        .write_all(&frame(&segment, 2..4, &all[cut..]))
        .expect("written");
    socket
        .write_all(&frame(&segment, 0..2, &all[..cut]))
        .expect("written");
    assert_eq!(rig.landed(0..4), all.len() as u64);
    assert!(contents(&file) == all);
}
