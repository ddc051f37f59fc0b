//! Clients that proved themselves and then speak by hand: sense or none.
//!
//! Leaves to others: those that prove nothing (impostor.rs). Invariant: each
//! gets an answer in words, and the server serves the next.

use crate::support::{Site, TOKEN, assert_same, push, skip};
use haul_engine::Error;
use haul_engine::limits::CHUNK_BYTES_DEFAULT;
use haul_engine::options::{CopyOptions, RemoteTarget, Transmit};
use haul_engine::protocol::TransferId;
use haul_engine::protocol::handshake::{ClientHandshake, FirstBytes};
use haul_engine::protocol::wire::{
    Begin, CheckKind, Data, Entry, EntryKind, Message, MessageReader, Offer, Task, encode,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

/// The control connection of a client that was let in.
struct Client {
    stream: TcpStream,
    reader: MessageReader,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).expect("connects");
        let wait = Some(Duration::from_secs(20));
        stream.set_read_timeout(wait).expect("set");
        let mut first = FirstBytes {
            preamble: *b"HAUL\x01\x01\0\0",
            reply: [0; 8],
        };
        stream.write_all(&first.preamble).expect("writes");
        stream.read_exact(&mut first.reply).expect("a reply");
        let mut client = Self {
            stream,
            reader: MessageReader::new(),
        };
        let (mut handshake, hello) =
            ClientHandshake::new(Some(TOKEN.0), [9; 32], "a test".to_owned());
        client.say(&Message::Hello(hello));
        let Message::Welcome(welcome) = client.hear() else {
            panic!("a welcome comes first");
        };
        let proof = handshake.welcomed(&first, welcome).expect("it makes sense");
        client.say(&Message::Proof(proof));
        assert!(matches!(client.hear(), Message::Ready(_)));
        client
    }

    fn say(&mut self, message: &Message) {
        self.stream.write_all(&encode(message)).expect("writes");
    }

    /// The next word that is no heartbeat.
    fn hear(&mut self) -> Message {
        let mut buffer = [0; 4096];
        loop {
            match self.reader.next().expect("honest words") {
                Some(Message::Heartbeat { .. }) => {}
                Some(message) => return message,
                None => {
                    let count = self.stream.read(&mut buffer).expect("a word in time");
                    assert!(count > 0, "a word before the end");
                    self.reader.push(&buffer[..count]);
                }
            }
        }
    }

    /// How far the server says to be with what it owes.
    fn hear_count(&mut self) -> u64 {
        let mut buffer = [0; 4096];
        loop {
            match self.reader.next().expect("honest words") {
                Some(Message::Heartbeat { worked }) => return worked,
                Some(other) => panic!("no heartbeat: {other:?}"),
                None => {
                    let count = self.stream.read(&mut buffer).expect("a word in time");
                    assert!(count > 0, "a word before the end");
                    self.reader.push(&buffer[..count]);
                }
            }
        }
    }

    fn refused(&mut self) -> Error {
        match self.hear() {
            Message::Refuse(error) => error,
            other => panic!("no refusal: {other:?}"),
        }
    }
}

/// An ext4 of its own on which the kernel holds every call that writes.
struct Frozen(tempfile::TempDir);

impl Frozen {
    /// `None`, said aloud, where none can be made.
    fn new() -> Option<Self> {
        let frozen = Self(tempfile::tempdir().expect("a fresh directory"));
        let image = std::fs::File::create(frozen.path("image")).expect("an image");
        image.set_len(16 << 20).expect("its size");
        std::fs::create_dir(frozen.path("mount")).expect("a mount point");
        let (image, mount) = (frozen.path("image"), frozen.path("mount"));
        let steps = [
            vec!["mkfs.ext4", "-q", &image],
            vec!["mount", "-o", "loop", &image, &mount],
            vec!["fsfreeze", "-f", &mount],
        ];
        if steps.iter().all(|step| run(step)) {
            return Some(frozen);
        }
        let why = "no file system can be mounted and frozen here";
        skip(why);
        None
    }

    fn path(&self, name: &str) -> String {
        let path = self.0.path().join(name);
        path.to_str().expect("text").to_owned()
    }

    fn thaw(&self) {
        run(&["fsfreeze", "-u", &self.path("mount")]);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // A test that failed left it as it was.
        self.thaw();
        run(&["umount", "-l", &self.path("mount")]);
    }
}

fn run(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    let output = command.args(&words[1..]).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_call_that_the_kernel_holds_is_told_as_work() {
    let Some(frozen) = Frozen::new() else {
        return;
    };
    let site = Site::with(|options| options.root = frozen.path("mount").into());
    let mut client = Client::connect(site.address());
    let transfer = TransferId([5; 16]);
    let path = b"target".to_vec();
    client.say(&Message::Begin(Begin {
        tree: haul_engine::options::TreeOptions::default(),
        rules: haul_engine::options::TargetRules::default(),
        transfer,
        task: Task::Push {
            target: RemoteTarget::Path {
                make: false,
                path,
                directory: false,
            },
        },
        chunk_bytes: CHUNK_BYTES_DEFAULT,
        check: CheckKind::Xxh3,
        fsync: true,
        verify: false,
        drop_cache: false,
        digest: None,
        transmit: Transmit::Auto,
        window_bytes: None,
        descriptors_max: None,
        rate_limit_bytes_per_second: None,
    }));
    client.say(&Message::Offer(offer(transfer).into()));
    assert!(matches!(client.hear(), Message::Begun { .. }));
    // It makes the target, and gets no further.
    let told = [(); 3].map(|()| client.hear_count());
    assert!(told.is_sorted_by(|one, next| one < next), "{told:?}");
    frozen.thaw();
    assert!(matches!(client.hear(), Message::Answer(_)));
    // Nothing is owed now, and nothing is told to be done.
    client.hear_count();
    assert_eq!(client.hear_count(), client.hear_count());
    drop(client);
    drop(site);
}

#[test]
fn who_breaks_the_protocol_hears_how() {
    let site = Site::new();
    // An unknown tag that must be known, a body that is too long, one that is none.
    let envelope = |bytes: u32, tag: u16| {
        let mut envelope = bytes.to_le_bytes().to_vec();
        envelope.extend_from_slice(&tag.to_le_bytes());
        envelope.extend_from_slice(&[0; 2]);
        envelope
    };
    let nonsense = [
        envelope(0, 999),
        envelope(5_000_000, 34),
        [envelope(4, 34), vec![255; 4]].concat(),
    ];
    for words in nonsense {
        let mut client = Client::connect(site.address());
        // Something stays unread behind it.
        let words = [words, vec![0; 10_000]].concat();
        client.stream.write_all(&words).expect("writes");
        let error = client.refused();
        assert!(error.sentence.contains("broke the protocol"), "{error}");
    }
    let source = site.source("source", 100_000);
    let report = push(&mut site.pool(), &source, "target", &CopyOptions::default());
    assert_eq!(report.error, None);
    assert_same(&source, &site.root().join("target"));
}

#[test]
fn an_offer_of_no_transfer_is_answered() {
    let site = Site::new();
    let mut client = Client::connect(site.address());
    let transfer = TransferId([5; 16]);
    client.say(&Message::Offer(offer(transfer).into()));
    let Message::Abort { transfer: of, .. } = client.hear() else {
        panic!("it is given up");
    };
    assert_eq!(of, transfer);
}

/// One file of a byte.
fn offer(transfer: TransferId) -> Offer {
    let entry = Entry {
        name: b"file".to_vec(),
        kind: EntryKind::File,
        size: 1,
        mode: 0o644,
        mtime_seconds: 0,
        mtime_nanos: 0,
        data: Data::Everywhere,
        ..Entry::default()
    };
    Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer,
        segment: 0,
        last: true,
        entries: vec![entry],
    }
}
