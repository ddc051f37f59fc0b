//! What goes wrong on the way, at either end, or in a peer's head.
//!
//! Leaves to others: faults inside the protocol (the simulation has those).
//! Invariant: a fault is either mended and reported, or a clear error that
//! leaves nothing behind.

use crate::support::{Harm, Site, TOKEN, assert_same, begin, connect, peer, push, relay};
use haul_engine::options::{CopyOptions, LocalSource, LocalTarget, PoolOptions, RemoteSource};
use haul_engine::options::{RemoteTarget, Token};
use haul_engine::{ErrorKind, Pool};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

#[test]
fn a_flipped_byte_is_found_sent_again_and_reported() {
    let site = Site::new();
    let source = site.source("source", 6_000_000);
    // Far behind the first frame's header and table: in a payload.
    let address = relay(site.address(), Harm::Flip(300_000));
    let mut pool = connect(address, |options| options.connections = 1);
    let report = push(&mut pool, &source, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    assert!(report.bytes.resent > 0, "{:?}", report.bytes);
    assert_same(&source, &site.root().join("target"));
}

#[test]
fn connections_cut_in_mid_chunk_cost_no_byte() {
    let site = Site::new();
    let source = site.source("source", 30_000_000);
    let address = relay(
        site.address(),
        Harm::Cut {
            connections: 3,
            bytes: 1_300_000,
        },
    );
    let mut pool = connect(address, |_| {});
    let report = push(&mut pool, &source, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    assert!(report.bytes.resent > 0, "{:?}", report.bytes);
    assert_same(&source, &site.root().join("target"));
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

#[test]
fn all_connections_lost_together_are_dialled_again() {
    const CONNECTIONS: u32 = 12;
    let site = Site::new();
    let source = site.source("source", 30_000_000);
    let address = relay(
        site.address(),
        Harm::Cut {
            connections: u64::from(CONNECTIONS),
            bytes: 1,
        },
    );
    let mut pool = connect(address, |options| {
        options.connections = CONNECTIONS;
        // Time enough for the last of them to join.
        options.rate_limit_bytes_per_second = Some(30_000_000);
    });
    let mut transfer = begin(&mut pool, &source, "target", &CopyOptions::default());
    let (mut joined, mut lost) = (0, 0);
    while !transfer.is_over() {
        match transfer.next_event(None) {
            Some(haul_engine::Event::ConnectionJoined { .. }) => joined += 1,
            Some(haul_engine::Event::ConnectionLost { .. }) => lost += 1,
            _ => {}
        }
    }
    assert_eq!(transfer.wait().error, None);
    assert_eq!((joined, lost), (2 * CONNECTIONS, CONNECTIONS));
    assert_same(&source, &site.root().join("target"));
}

#[test]
fn a_peer_that_takes_few_connections_in_is_not_pressed() {
    let site = Site::new();
    let source = site.source("source", 64_000_000);
    let address = relay(site.address(), Harm::Swallow(2));
    let mut pool = connect(address, |options| {
        // For longer than it waits for the other two.
        options.rate_limit_bytes_per_second = Some(8_000_000);
    });
    let mut transfer = begin(&mut pool, &source, "target", &CopyOptions::default());
    let mut joined = 0;
    while !transfer.is_over() {
        if let Some(haul_engine::Event::ConnectionJoined { .. }) = transfer.next_event(None) {
            joined += 1;
        }
    }
    let report = transfer.wait();
    assert_eq!(report.error, None);
    assert_eq!(joined, PoolOptions::default().connections);
    let sides = report.sender.expect("its report");
    let lost = sides.connections.iter().filter_map(|one| one.lost.as_ref());
    let told: Vec<_> = lost.collect();
    assert_eq!(told.len(), 2);
    assert!(
        told.iter().all(|why| why.contains("did not take it in")),
        "{told:?}"
    );
    assert_same(&source, &site.root().join("target"));
}

#[test]
fn connections_that_always_fail_end_the_transfer() {
    let site = Site::new();
    let source = site.source("source", 30_000_000);
    let address = relay(
        site.address(),
        Harm::Cut {
            connections: u64::MAX,
            bytes: 1,
        },
    );
    let mut pool = connect(address, |options| options.connections = 1);
    let report = push(&mut pool, &source, "target", &CopyOptions::default());
    assert_eq!(report.error.map(|error| error.kind), Some(ErrorKind::Peer));
    assert!(!site.root().join("target").exists());
}

#[test]
fn a_wrong_token_is_told_as_such() {
    let site = Site::new();
    let source = site.source("source", 1000);
    for token in [Some(Token([8; 32])), None] {
        let options = PoolOptions {
            token,
            ..PoolOptions::default()
        };
        let target = RemoteTarget::Path {
            make: false,
            path: b"target".to_vec(),
            directory: false,
        };
        let kind = match Pool::connect(&peer(site.address()), options) {
            Err(error) => Some(error.kind),
            Ok(mut pool) => {
                let sources = vec![LocalSource::Path(source.clone())];
                match pool.push(sources, target, &CopyOptions::default()) {
                    Err(error) => Some(error.kind),
                    Ok(transfer) => transfer.wait().error.map(|error| error.kind),
                }
            }
        };
        assert_eq!(kind, Some(ErrorKind::Unauthorised));
    }
    assert!(!site.root().join("target").exists());
}

#[test]
fn garbage_and_silence_do_not_disturb_a_server() {
    let site = Site::new();
    let mut open = Vec::new();
    for bytes in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"HAUL",
        &[0xff; 4096],
        b"HAUL\x01\x01\x01\0garbage",
    ] {
        let mut stream = TcpStream::connect(site.address()).expect("connects");
        // A server that already closed is as good.
        let _ = stream.write_all(bytes);
        open.push(stream);
    }
    let source = site.source("source", 100_000);
    let report = push(&mut site.pool(), &source, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    assert_same(&source, &site.root().join("target"));
}

#[test]
fn a_peer_of_another_version_is_refused_in_its_own_words() {
    let site = Site::new();
    let mut stream = TcpStream::connect(site.address()).expect("connects");
    stream.write_all(b"HAUL\x63\x63\x00\x00").expect("writes");
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer[..5], b"HAUL\0", "refused");
}

#[test]
fn a_port_that_is_not_hauls_is_told_as_such() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let _ = stream.write_all(b"SSH-2.0-other\r\n");
        let _ = stream.read(&mut [0; 64]);
    });
    let options = PoolOptions {
        token: Some(TOKEN),
        ..PoolOptions::default()
    };
    let error = Pool::connect(&peer(address), options)
        .err()
        .expect("an error");
    assert_eq!(error.kind, ErrorKind::Peer);
    thread.join().expect("the other program");
}

#[test]
fn what_a_peer_names_stays_below_the_root() {
    let site = Site::new();
    let outside = site.source("outside", 1000);
    let link = |to: &Path, name: &str| {
        std::os::unix::fs::symlink(to, site.root().join(name)).expect("a link");
    };
    link(&outside, "link");
    // What the last component's own refusal of links does not see.
    link(site.directory.path(), "above");
    let mut pool = site.pool();
    for path in [
        "../outside",
        "/etc/passwd",
        "link",
        "above/outside",
        "a/../../outside",
    ] {
        let target = LocalTarget::Path {
            make: false,
            path: site.directory.path().join("got"),
            directory: false,
        };
        let report = pool
            .pull(
                vec![RemoteSource::Path(path.into())],
                target,
                &CopyOptions::default(),
            )
            .expect("a transfer")
            .wait();
        let error = report.error.expect("it is not read");
        assert_eq!(error.side, haul_engine::Side::Sender, "{path:?}: {error}");
        let refused = ["a symbolic link", "cannot read"];
        let said = refused.iter().any(|words| error.sentence.contains(words));
        assert!(said, "{path:?}: {error}");
    }
    for path in ["../x", "/x", "above/x", "a/../../x", "link/../../x"] {
        let report = push(&mut pool, &outside, path, &CopyOptions::default());
        let error = report.error.expect("it is not written");
        assert_eq!(error.side, haul_engine::Side::Receiver, "{path:?}: {error}");
        assert!(!site.directory.path().join("x").exists(), "{path:?}");
    }
    assert!(!site.directory.path().join("got").exists());
    assert!(!site.directory.path().join("x").exists());
}

#[test]
fn a_source_that_shrinks_is_never_sealed() {
    let site = Site::new();
    let source = site.source("source", 60_000_000);
    let mut pool = connect(site.address(), |options| {
        options.rate_limit_bytes_per_second = Some(30_000_000);
    });
    let mut transfer = begin(&mut pool, &source, "target", &CopyOptions::default());
    let mut cut = false;
    while !transfer.is_over() {
        if let Some(haul_engine::Event::Progress(progress)) = transfer.next_event(None)
            && progress.landed_bytes > 0
            && !cut
        {
            cut = true;
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&source)
                .expect("the source");
            file.set_len(20_000_000).expect("shrinks");
        }
    }
    assert!(cut);
    let report = transfer.wait();
    assert_eq!(
        report.error.map(|error| error.kind),
        Some(ErrorKind::Integrity)
    );
    assert!(!site.root().join("target").exists());
    assert_eq!(site.leftovers(), Vec::<String>::new());
}

#[test]
fn a_missing_source_is_refused_and_contents_get_a_directory() {
    let site = Site::new();
    let mut pool = site.pool();
    let missing = site.directory.path().join("missing");
    let report = push(&mut pool, &missing, "target", &CopyOptions::default());
    assert!(report.error.is_some());
    assert!(!site.root().join("target").exists());
    // A directory's contents have names of their own: their target is made.
    let folder = site.directory.path().join("folder");
    std::fs::create_dir(&folder).expect("made");
    for name in ["a", "b"] {
        std::fs::write(folder.join(name), name).expect("written");
    }
    let contents = folder.join("");
    let report = push(&mut pool, &contents, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    for name in ["a", "b"] {
        let arrived = std::fs::read(site.root().join("target").join(name));
        assert_eq!(arrived.expect("there"), name.as_bytes());
    }
}
