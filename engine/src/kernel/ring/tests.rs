//! The ring's rules against the real kernel.

use super::super::memory::{Block, Window};
use super::super::page::PAGE_BYTES;
use super::*;
use crate::kernel::fault::watched;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

fn pair() -> (Handle, Handle) {
    let (a, b) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a pair");
    (a.into(), b.into())
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let dialled = TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
    (dialled, listener.accept().expect("accepts").0)
}

fn handle(stream: &TcpStream) -> Handle {
    OwnedFd::from(stream.try_clone().expect("cloned")).into()
}

/// Waits until `count` completions came.
fn wait(ring: &mut Ring, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count {
        ring.submit_and_wait(1, None).expect("waits");
        ring.reap(&mut completions);
    }
    assert_eq!(completions.len(), count);
    completions
}

fn message(head: &[u8], slices: Vec<Slice>) -> Box<IoMessage> {
    let mut message = Box::<IoMessage>::default();
    message.head.extend_from_slice(head);
    message.slices = slices;
    message
}

#[test]
fn a_message_arrives_in_order_and_all_loans_come_back() {
    let mut ring = Ring::new(8).expect("a ring");
    let (arena, mut blocks) = Arena::new(PAGE_BYTES, 2, false).expect("mapped");
    ring.register(&arena).expect("registered");
    let mut source = blocks.pop().expect("two blocks");
    Arc::get_mut(&mut source).expect("unshared").as_mut_slice()[..5].copy_from_slice(b"block");
    let slices = vec![
        Slice::new(Owner::Block(source.clone()), 0..5),
        Slice::new(Owner::Vector(Arc::new(b"xbytesx".to_vec())), 1..6),
        Slice::new(Owner::Vector(Arc::new(b"vector".to_vec())), 0..6),
    ];
    let (a, b) = pair();
    ring.send(&a, message(b"head", slices), SendMode::default(), 1);
    ring.receive(&b, blocks.remove(0), 10..30, true, 2);
    assert_eq!((ring.in_flight(), ring.room()), (2, 6));
    let mut completions = wait(&mut ring, 2);
    completions.sort_by_key(|completion| completion.token);
    assert!(
        completions
            .iter()
            .all(|completion| completion.outcome == Outcome::Done(Ok(20)))
    );
    let received = completions.pop().expect("two").loan.into_block();
    assert_eq!(
        &received.expect("a block").as_slice()[10..30],
        b"headblockbytesvector"
    );
    let sent = completions.pop().expect("two").loan.into_message();
    assert_eq!(sent.expect("a message").bytes(), 20);
    assert_eq!((ring.in_flight(), Arc::strong_count(&source)), (0, 1));
}

#[test]
fn the_rest_of_a_message_begins_where_it_stopped() {
    let mut first = message(
        b"head",
        vec![Slice::new(Owner::Vector(Arc::new(b"tail".to_vec())), 0..4)],
    );
    let mut ring = Ring::new(4).expect("a ring");
    let (a, b) = pair();
    first.advance(3);
    assert_eq!(first.bytes(), 5);
    ring.send(&a, first, SendMode::default(), 1);
    let sent = wait(&mut ring, 1).remove(0).loan.into_message();
    let mut first = sent.expect("a message");
    first.advance(3);
    assert_eq!(first.bytes(), 2);
    ring.send(&a, first, SendMode::default(), 1);
    wait(&mut ring, 1);
    let mut bytes = [0; 16];
    let count = rustix::io::read(&b, &mut bytes).expect("read");
    assert_eq!(&bytes[..count], b"dtailil");
}

#[test]
fn files_are_written_and_read_at_offsets_with_and_without_registration() {
    for register in [false, true] {
        let mut ring = Ring::new(4).expect("a ring");
        let (arena, mut blocks) = Arena::new(PAGE_BYTES, 2, false).expect("mapped");
        if register {
            ring.register(&arena).expect("registered");
            assert_eq!(ring.register(&arena), Err(Errno::BUSY));
        }
        let file: Handle = OwnedFd::from(tempfile::tempfile().expect("a file")).into();
        let mut block = blocks.remove(0);
        Arc::get_mut(&mut block).expect("unshared").as_mut_slice()[3..7].copy_from_slice(b"data");
        ring.write(&file, Slice::new(Owner::Block(block), 3..7), 100, 1);
        let written = wait(&mut ring, 1).remove(0);
        assert_eq!(written.outcome, Outcome::Done(Ok(4)));
        assert!(matches!(written.loan, Loan::Slice(_)));
        ring.read(&file, blocks.remove(0), 0..50, 99, 2);
        let read = wait(&mut ring, 1).remove(0);
        assert_eq!(read.outcome, Outcome::Done(Ok(5)));
        assert_eq!(
            &read.loan.into_block().expect("a block").as_slice()[..5],
            b"\0data"
        );
        ring.forget_pages(&file, 0, 104, 3);
        assert_eq!(wait(&mut ring, 1)[0].outcome, Outcome::Done(Ok(0)));
    }
}

#[test]
fn a_zero_copy_send_completes_twice_and_loopback_says_it_copied() {
    let mut ring = Ring::new(4).expect("a ring");
    assert!(ring.knows_zero_copy());
    let (dialled, mut accepted) = tcp();
    let bytes = vec![7u8; 100_000];
    let slice = Slice::new(Owner::Vector(Arc::new(bytes.clone())), 0..bytes.len());
    let mode = SendMode {
        zero_copy: true,
        more: false,
    };
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 100_000];
        accepted.read_exact(&mut got).expect("read");
        got
    });
    ring.send(&handle(&dialled), message(b"", vec![slice]), mode, 9);
    let mut completions = wait(&mut ring, 2).into_iter();
    let sent = completions.next().expect("two");
    assert_eq!(sent.outcome, Outcome::Sent(Ok(100_000)));
    assert!(matches!(sent.loan, Loan::None));
    let released = completions.next().expect("two");
    assert_eq!(released.outcome, Outcome::Released { copied: true });
    assert!(released.loan.into_message().is_some());
    assert_eq!(reader.join().expect("reads"), bytes);
}

#[test]
fn a_failed_zero_copy_send_gives_its_errno_and_its_loan() {
    let mut ring = Ring::new(4).expect("a ring");
    let (dialled, accepted) = tcp();
    drop(accepted);
    dialled.shutdown(std::net::Shutdown::Both).expect("shut");
    let mode = SendMode {
        zero_copy: true,
        more: false,
    };
    ring.send(&handle(&dialled), message(b"gone", Vec::new()), mode, 1);
    let (mut result, mut back) = (None, false);
    while !back {
        ring.submit_and_wait(1, None).expect("waits");
        let mut completions = Vec::new();
        ring.reap(&mut completions);
        for completion in completions {
            match completion.outcome {
                Outcome::Done(this) | Outcome::Sent(this) => result = Some(this),
                Outcome::Released { .. } => {}
            }
            back |= completion.loan.into_message().is_some();
        }
    }
    assert_eq!(result, Some(Err(Errno::PIPE)));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_window_is_sent_and_populated_and_its_missing_end_is_an_error_not_a_signal() {
    let mut ring = Ring::new(4).expect("a ring");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&[3; PAGE_BYTES * 40 + 10]).expect("written");
    let window = Arc::new(Window::map(file.as_fd(), 0, PAGE_BYTES * 80).expect("mapped"));
    ring.populate(window.clone(), 0..PAGE_BYTES * 41, 1);
    assert_eq!(wait(&mut ring, 1)[0].outcome, Outcome::Done(Ok(0)));
    ring.populate(window.clone(), 0..PAGE_BYTES * 80, 1);
    assert_eq!(
        wait(&mut ring, 1)[0].outcome,
        Outcome::Done(Err(Errno::FAULT))
    );
    let (dialled, mut accepted) = tcp();
    let all = Slice::new(Owner::Window(window), 0..PAGE_BYTES * 80);
    ring.send(
        &handle(&dialled),
        message(b"head", vec![all]),
        SendMode::default(),
        2,
    );
    let sent = wait(&mut ring, 1).remove(0);
    // A short count, and exact. The kernel stops up to a socket page (32 KiB)
    // before the hole; a hole in the first one is EFAULT.
    let Outcome::Done(Ok(count)) = sent.outcome else {
        panic!("{:?}", sent.outcome);
    };
    assert!((PAGE_BYTES * 32..=4 + PAGE_BYTES * 41).contains(&(count as usize)));
    drop(dialled);
    let mut got = Vec::new();
    accepted.read_to_end(&mut got).expect("read");
    assert_eq!(got.len(), count as usize);
}

#[test]
fn a_window_that_left_the_page_table_shows_its_file_all_the_same() {
    let mut ring = Ring::new(4).expect("a ring");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&[7; PAGE_BYTES * 8]).expect("written");
    let window = Arc::new(Window::map(file.as_fd(), 0, PAGE_BYTES * 8).expect("mapped"));
    ring.populate(window.clone(), 0..PAGE_BYTES * 8, 1);
    ring.unpopulate(window.clone(), 2);
    for done in wait(&mut ring, 2) {
        assert_eq!(done.outcome, Outcome::Done(Ok(0)));
    }
    let all = Slice::new(Owner::Window(window), 0..PAGE_BYTES * 8);
    let looked = watched(|watch| all.bytes(watch).iter().all(|byte| *byte == 7));
    assert_eq!(looked, Some((true, false)));
}

#[test]
fn a_chain_of_splices_moves_a_file_into_a_socket() {
    let mut ring = Ring::new(4).expect("a ring");
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(b"..spliced").expect("written");
    let file: Handle = OwnedFd::from(file).into();
    let (reading, writing) = rustix::pipe::pipe().expect("a pipe");
    let (reading, writing): (Handle, Handle) = (reading.into(), writing.into());
    let (a, b) = pair();
    ring.send(&a, message(b"head ", Vec::new()), SendMode::default(), 1);
    ring.link();
    ring.splice((&file, Some(2)), (&writing, None), 7, false, 2);
    ring.link();
    ring.splice((&reading, None), (&a, None), 7, false, 3);
    let mut outcomes: Vec<_> = wait(&mut ring, 3)
        .into_iter()
        .map(|completion| (completion.token, completion.outcome))
        .collect();
    outcomes.sort_by_key(|outcome| outcome.0);
    assert_eq!(outcomes[2].1, Outcome::Done(Ok(7)));
    let mut bytes = [0; 32];
    let count = rustix::io::read(&b, &mut bytes).expect("read");
    assert_eq!(&bytes[..count], b"head spliced");
}

#[test]
fn a_cancelled_operation_still_completes() {
    let mut ring = Ring::new(4).expect("a ring");
    let (_arena, mut blocks) = Arena::new(PAGE_BYTES, 1, false).expect("mapped");
    let (a, _b) = pair();
    ring.receive(&a, blocks.remove(0), 0..10, true, 5);
    ring.submit_and_wait(0, None).expect("submits");
    ring.cancel(5);
    let completion = wait(&mut ring, 1).remove(0);
    assert_eq!(completion.outcome, Outcome::Done(Err(Errno::CANCELED)));
    assert!(completion.loan.into_block().is_some());
    // The cancellation's own completion is not told.
    while ring.in_flight() > 0 {
        ring.submit_and_wait(1, None).expect("waits");
        let mut completions = Vec::new();
        ring.reap(&mut completions);
        assert!(completions.is_empty());
    }
}

#[test]
fn a_wait_ends_at_its_timeout_and_calls_are_counted() {
    let mut ring = Ring::new(4).expect("a ring");
    assert!(ring.take_system_calls() > 0);
    // Nothing to do and nothing to wait for: no call.
    ring.submit_and_wait(0, None).expect("submits");
    assert_eq!(ring.take_system_calls(), 0);
    let (a, b) = pair();
    ring.poll_readable(&a, 1);
    ring.submit_and_wait(1, Some(Duration::from_millis(5)))
        .expect("waits");
    assert_eq!(ring.take_system_calls(), 1);
    rustix::io::write(&b, b"x").expect("written");
    assert_eq!(wait(&mut ring, 1)[0].token, 1);
}

#[test]
fn dropping_a_ring_drains_what_is_in_flight() {
    let mut ring = Ring::new(16).expect("a ring");
    let (_arena, blocks) = Arena::new(PAGE_BYTES, 4, false).expect("mapped");
    let (a, b) = pair();
    for (token, block) in blocks.into_iter().enumerate() {
        ring.receive(&a, block, 0..PAGE_BYTES, true, token as u64);
    }
    let (dialled, accepted) = tcp();
    let kept = Arc::new(vec![1u8; 64 << 20]);
    for mode in [false, true] {
        // Far more than the socket takes: blocked in the kernel.
        let slice = Slice::new(Owner::Vector(kept.clone()), 0..kept.len());
        let mode = SendMode {
            zero_copy: mode,
            more: false,
        };
        ring.send(&handle(&dialled), message(b"", vec![slice]), mode, 9);
    }
    ring.submit_and_wait(0, None).expect("submits");
    // Queued and never submitted: lent all the same.
    ring.poll_readable(&b, 10);
    assert_eq!(ring.in_flight(), 7);
    assert_eq!(Arc::strong_count(&kept), 3);
    drop(ring);
    assert_eq!(Arc::strong_count(&kept), 1);
    drop(accepted);
}

#[test]
fn a_message_is_cut_anywhere_and_blocks_come_back_whole() {
    let pattern: Vec<u8> = (0..40).collect();
    let bytes_of = |message: &IoMessage| {
        let slices = message.slices.iter().flat_map(|slice| slice.as_bytes());
        [
            &[message.head.as_slice()],
            slices.collect::<Vec<_>>().as_slice(),
        ]
        .concat()
        .concat()
    };
    for at in 1..39 {
        let (_arena, mut blocks) = Arena::new(4096, 1, false).expect("mapped");
        let mut block = blocks.pop().expect("one");
        let whole = Arc::get_mut(&mut block).expect("ours").as_mut_slice();
        whole[100..120].copy_from_slice(&pattern[15..35]);
        let vector = |range: std::ops::Range<usize>| {
            let vector = Arc::new(pattern.clone());
            Slice::new(Owner::Vector(vector), range)
        };
        let mut front = *message(
            &pattern[..5],
            vec![
                vector(5..15),
                Slice::new(Owner::Block(block), 100..120),
                vector(35..39),
            ],
        );
        let mut rest = IoMessage::default();
        if at < front.bytes() {
            front.cut(at, &mut rest);
        }
        assert_eq!(front.bytes(), at);
        assert_eq!(bytes_of(&front), pattern[..at]);
        assert_eq!(bytes_of(&rest), pattern[at..39]);
        let slices = front.slices.into_iter().chain(rest.slices);
        let parts = slices.filter_map(|slice| match slice.into_owner() {
            Owner::Block(block) => Some(block),
            _ => None,
        });
        let joined = parts.reduce(Block::join).expect("a block");
        assert_eq!(joined.len(), 4096, "{at}");
    }
}
