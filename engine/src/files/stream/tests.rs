//! Tests of streams: order, the window, the ends.
//!
//! Leaves to others: the code under test. Invariant: no test waits without an
//! end, and none judges a time.

use super::*;
use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

const CHUNK: u32 = 65_536;
/// Long enough that only a hang reaches it.
const HANG: Duration = Duration::from_secs(30);

fn piped() -> (File, StreamSource, Receiver<StreamNews>) {
    let (read, write) = rustix::pipe::pipe().expect("pipe");
    let (tell, news) = channel();
    let tell = move |what| {
        // The test may have seen enough.
        let _ = tell.send(what);
    };
    let stream = StreamSource::start(read, "a pipe", CHUNK, tell).expect("starts");
    (File::from(write), stream, news)
}

#[test]
fn chunks_come_in_order_with_a_short_last_one() {
    for size in [0, 1, 65_535, 65_536, 65_537, 200_000] {
        let (mut write, stream, news) = piped();
        let bytes = crate::files::scratch::bytes(size);
        let copy = bytes.clone();
        let writer = std::thread::spawn(move || write.write_all(&copy));
        let mut last = None;
        while let Ok(what) = news.recv_timeout(HANG) {
            last = Some(what);
        }
        let last = last.expect("an end");
        assert_eq!(last.end_bytes, Some(size as u64), "{size}");
        assert_eq!(last.complete_chunks, size as u64 / u64::from(CHUNK));
        assert_eq!(last.error, None);
        let chunks = (size as u64).div_ceil(u64::from(CHUNK));
        let all: Vec<u8> = (0..chunks)
            .flat_map(|chunk| stream.chunk(chunk).expect("kept").to_vec())
            .collect();
        assert!(all == bytes, "{size}");
        assert!(stream.chunk(chunks).is_none());
        assert_eq!(stream.read_bytes(), size as u64);
        writer.join().expect("writer").expect("writes");
    }
}

#[test]
fn no_more_than_the_window_is_kept() {
    let (mut write, stream, news) = piped();
    let writer = std::thread::spawn(move || {
        let chunk = vec![7; CHUNK as usize];
        while write.write_all(&chunk).is_ok() {}
    });
    let window = limits::STREAM_WINDOW_BYTES / u64::from(CHUNK);
    for chunk in 1..=window {
        let what = news.recv_timeout(HANG).expect("news");
        assert_eq!(what.complete_chunks, chunk);
    }
    let quiet = news.recv_timeout(Duration::from_millis(200));
    assert_eq!(quiet, Err(RecvTimeoutError::Timeout), "the window is full");
    assert!(stream.chunk(window).is_none());

    // What is acknowledged out of order makes room as well.
    let held = stream.chunk(5).expect("kept");
    stream.release(ChunkRange { first: 5, count: 3 });
    for chunk in window + 1..=window + 3 {
        let what = news.recv_timeout(HANG).expect("news");
        assert_eq!(what.complete_chunks, chunk);
    }
    assert!(stream.chunk(5).is_none() && stream.chunk(4).is_some() && stream.chunk(8).is_some());
    assert_eq!(
        held.len(),
        CHUNK as usize,
        "a worker's copy outlives the release"
    );
    // Releasing what is not there changes nothing.
    stream.release(ChunkRange { first: 5, count: 3 });
    stream.release(ChunkRange {
        first: u64::MAX,
        count: u64::MAX,
    });

    // The thread waits for room now, and ends all the same.
    drop(stream);
    assert_eq!(news.recv_timeout(HANG), Err(RecvTimeoutError::Disconnected));
    // Its end of the pipe is closed, so that the writer fails.
    writer.join().expect("writer ends");
}

#[test]
fn an_abort_ends_a_thread_that_waits_for_input() {
    let (mut write, stream, news) = piped();
    write.write_all(b"half a chunk").expect("writes");
    stream.stop();
    assert_eq!(news.recv_timeout(HANG), Err(RecvTimeoutError::Disconnected));
    drop(stream);
    let (_write, stream, news) = piped();
    drop(stream);
    assert_eq!(news.recv_timeout(HANG), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_read_error_is_told() {
    let directory = tempfile::tempdir().expect("directory");
    let input = File::open(directory.path()).expect("opens");
    let (tell, news) = channel();
    let tell = move |what| drop(tell.send(what));
    let _stream = StreamSource::start(input.into(), "a directory", CHUNK, tell).expect("starts");
    let what: StreamNews = news.recv_timeout(HANG).expect("news");
    let error = what.error.expect("an error").to_string();
    assert_eq!(error, "cannot read a directory: is a directory");
    assert_eq!(what.end_bytes, None);
}
