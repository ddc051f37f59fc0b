//! Servers and clients that know no token.
//!
//! Leaves to others: honest peers. Invariant: what such a peer says is well
//! formed, so that only the missing proof can stop it.

use crate::support::{Site, TOKEN, peer, push};
use haul_engine::options::{CopyOptions, PoolOptions};
use haul_engine::protocol::plan;
use haul_engine::protocol::wire::{
    Answer, Flow, Hello, Join, Message, MessageReader, Verdict, Welcome, encode,
};
use haul_engine::{ErrorKind, Pool};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A server that welcomes everybody and says neither Ready nor Joined. It answers
/// what it is asked as an honest one would.
struct Impostor {
    address: SocketAddr,
    seen: Arc<Seen>,
}

/// What came to it.
#[derive(Default)]
struct Seen {
    payload: AtomicBool,
    data_connections: AtomicU32,
}

impl Impostor {
    /// `answers` what comes after the hello.
    fn start(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let seen = shared.clone();
                std::thread::spawn(move || Self::take(stream, &seen, answers));
            }
        });
        Self { address, seen }
    }

    fn take(mut stream: TcpStream, seen: &Seen, answers: bool) {
        let mut preamble = [0; 8];
        if stream.read_exact(&mut preamble).is_err() {
            return;
        }
        if preamble[6] == 0 {
            return Self::talk(stream, answers);
        }
        seen.data_connections.fetch_add(1, Ordering::Relaxed);
        // A join and padding are shorter than the source below.
        let mut bytes = 0;
        let mut buffer = [0; 65_536];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            bytes += count;
            seen.payload.fetch_or(bytes > 300_000, Ordering::Relaxed);
        }
    }

    fn talk(mut stream: TcpStream, answers: bool) {
        stream.write_all(b"HAUL\x01\x01\x01\0").expect("writes");
        let mut reader = MessageReader::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            reader.push(&buffer[..count]);
            while let Ok(Some(message)) = reader.next() {
                let greets = matches!(message, Message::Hello(_));
                if let Some(answer) = Self::answer(message).filter(|_| greets || answers)
                    && stream.write_all(&encode(&answer)).is_err()
                {
                    return;
                }
            }
        }
    }

    fn answer(message: Message) -> Option<Message> {
        match message {
            Message::Hello(_) => Some(Message::Welcome(Welcome {
                features: 0,
                nonce: [3; 32],
                needs_token: true,
                session: 77,
                software: "an impostor".to_owned(),
            })),
            Message::Begin(begin) => Some(Message::Begun {
                transfer: begin.transfer,
                window_bytes: None,
                descriptors_max: None,
            }),
            Message::Offer(offer) => {
                let verdicts = vec![Verdict::Whole; offer.entries.len()];
                Some(Message::Answer(Answer {
                    transfer: offer.transfer,
                    segment: offer.segment,
                    digest: plan::digest(&offer, &verdicts),
                    verdicts,
                }))
            }
            _ => None,
        }
    }
}

#[test]
fn a_server_that_proves_nothing_gets_no_payload() {
    let site = Site::new();
    let source = site.source("source", 3_000_000);
    let impostor = Impostor::start(true);
    let options = PoolOptions {
        token: Some(TOKEN),
        ..PoolOptions::default()
    };
    let mut pool = Pool::connect(&peer(impostor.address), options).expect("it is welcomed");
    let report = push(&mut pool, &source, "target", &CopyOptions::default());
    let error = report.error.expect("it is refused");
    assert_eq!(error.kind, ErrorKind::Unauthorised, "{error}");
    assert!(!report.authenticated);
    assert!(!impostor.seen.payload.load(Ordering::Relaxed));
}

#[test]
fn a_connection_that_is_not_taken_in_is_dialled_again() {
    let site = Site::new();
    let source = site.source("source", 3_000_000);
    let silent = Impostor::start(false);
    let options = PoolOptions {
        token: Some(TOKEN),
        ..PoolOptions::default()
    };
    let connections = options.connections;
    let mut pool = Pool::connect(&peer(silent.address), options).expect("it is welcomed");
    // That lasts until the proof is overdue, too.
    let report = push(&mut pool, &source, "target", &CopyOptions::default());
    assert!(report.error.is_some());
    let dialled = silent.seen.data_connections.load(Ordering::Relaxed);
    assert!(dialled > connections, "{dialled} dialled");
}

/// A client that greets and proves nothing: its connection and its session.
fn unproved(address: SocketAddr) -> (TcpStream, u64) {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.write_all(b"HAUL\x01\x01\0\0").expect("writes");
    let hello = Hello {
        features: 0,
        nonce: [5; 32],
        has_token: true,
        software: "an impostor".to_owned(),
    };
    let hello = encode(&Message::Hello(hello));
    stream.write_all(&hello).expect("writes");
    stream.read_exact(&mut [0; 8]).expect("a reply");
    let mut reader = MessageReader::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).expect("a welcome");
        reader.push(&buffer[..count]);
        if let Ok(Some(Message::Welcome(welcome))) = reader.next() {
            return (stream, welcome.session);
        }
    }
}

#[test]
fn data_connections_without_a_proof_are_closed_at_once() {
    let site = Site::new();
    let (_control, session) = unproved(site.address());
    for connection in 0..5 {
        let mut stream = TcpStream::connect(site.address()).expect("connects");
        let join = Join {
            session,
            connection,
            flow: Flow::FromDialler,
            nonce: [1; 16],
            proof: [0; 32],
        };
        let mut words = b"HAUL\x01\x01\x01\0".to_vec();
        words.extend_from_slice(&join.encode());
        stream.write_all(&words).expect("writes");
        // Its session has seconds left to prove itself; this one has not.
        let wait = std::time::Duration::from_secs(5);
        stream.set_read_timeout(Some(wait)).expect("set");
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0)), "it is closed");
    }
}

#[test]
fn clients_that_prove_nothing_take_no_sessions() {
    let site = Site::new();
    let idle: Vec<_> = (0..haul_engine::limits::SESSIONS_MAX)
        .map(|_| unproved(site.address()))
        .collect();
    let source = site.source("source", 100_000);
    let report = push(&mut site.pool(), &source, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    drop(idle);
}

#[test]
fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let site = Site::new();
    let crowd: Vec<_> = (0..haul_engine::limits::GREETINGS_MAX + 40)
        .map(|_| TcpStream::connect(site.address()).expect("connects"))
        .collect();
    let source = site.source("source", 100_000);
    let report = push(&mut site.pool(), &source, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    drop(crowd);
}

/// Passes one control connection on to a server, with a byte changed of what one
/// side says first; gives its own address.
fn middleman(
    server: SocketAddr,
    change: impl Fn(&mut [u8; 8], bool) + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let Ok(mut there) = TcpStream::connect(server) else {
                return;
            };
            let mut first = [0; 8];
            // Data connections of a session that nobody let in say nothing.
            if client.read_exact(&mut first).is_err() {
                continue;
            }
            let is_control = first[6] == 0;
            change(&mut first, true);
            let _ = there.write_all(&first);
            if is_control && there.read_exact(&mut first).is_ok() {
                change(&mut first, false);
                let _ = client.write_all(&first);
            }
            let (mut up, mut down) = (
                client.try_clone().expect("cloned"),
                there.try_clone().expect("cloned"),
            );
            std::thread::spawn(move || std::io::copy(&mut client, &mut there));
            std::thread::spawn(move || std::io::copy(&mut down, &mut up));
        }
    });
    address
}

#[test]
fn a_version_cannot_be_talked_down_on_the_way() {
    let site = Site::new();
    let source = site.source("a", 1000);
    let copy = |address: SocketAddr| {
        let options = PoolOptions {
            token: Some(TOKEN),
            ..PoolOptions::default()
        };
        let mut pool = Pool::connect(&peer(address), options)?;
        let report = push(&mut pool, &source, "b", &CopyOptions::default());
        report.error.map_or(Ok(()), Err)
    };
    let honest = middleman(site.address(), |_, _| ());
    copy(honest).expect("who only passes on changes nothing");
    // As a middleman would if there were a version to hide: every end still finds
    // one that it speaks.
    let of_dialler = |first: &mut [u8; 8], dialler: bool| {
        if dialler {
            first[5] = 2;
        }
    };
    let of_accepter = |first: &mut [u8; 8], dialler: bool| {
        if !dialler {
            first[6] = 2;
        }
    };
    for error in [
        copy(middleman(site.address(), of_dialler)),
        copy(middleman(site.address(), of_accepter)),
    ] {
        let error = error.expect_err("it is found");
        assert_eq!(error.kind, ErrorKind::Unauthorised, "{error}");
    }
}
