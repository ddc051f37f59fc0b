//! Wrong usage and bad input: one sentence, the right exit code, nothing done.
//!
//! Leaves to others: what works. Invariant: no row leaves a file behind.

use crate::support::{Folder, Server, bytes};
use std::io::{Read, Write};
use std::net::TcpListener;

#[test]
fn each_mistake_has_its_exit_code() {
    let folder = Folder::new();
    folder.write("a", &bytes(100));
    folder.write("b", b"old");
    folder.directory("d");
    folder.directory("no-write");
    let before = folder.names(".");
    for (line, code) in [
        ("", 2),
        ("carry a c", 2),
        ("copy a", 2),
        ("copy -n 0 a c", 2),
        ("copy --chunk-size 1 a c", 2),
        ("copy --nonsense a c", 2),
        ("copy host:a c", 2),
        ("copy a haul://h:0/c", 2),
        ("copy haul://127.0.0.1:1/a haul://127.0.0.1:1/c", 2),
        ("copy a b c", 1),
        ("copy a d b", 1),
        ("copy d d/c", 2),
        ("copy d -", 2),
        ("copy a a", 2),
        ("copy --json a -", 2),
        ("copy --verify a -", 2),
        ("copy - -", 2),
        ("copy --hdr-log x.txt a c", 2),
        ("copy --report none/r.json a c", 1),
        ("copy --report a a c", 2),
        ("copy --report c a ./c", 2),
        ("copy --report d/a a d", 2),
        ("copy --report r.hlog --hdr-log r.hlog a c", 2),
        ("copy missing c", 1),
        ("copy a none/c", 1),
        ("copy a /dev/null", 1),
        ("copy --token-file missing a haul://127.0.0.1:1/c", 1),
        ("copy a haul://127.0.0.1:1/c", 3),
        ("copy haul://127.0.0.1:1/a c", 3),
        ("copy a haul://no.such.host.invalid/c", 3),
        ("serve --root missing --listen 127.0.0.1:0", 1),
        ("serve --root a --listen 127.0.0.1:0", 1),
        ("bench --to d", 2),
        ("bench --source a --seconds 1", 2),
        ("man nothing", 2),
        ("completions cmd", 2),
    ] {
        let ran = folder.haul(line);
        assert_eq!(ran.code, code, "haul {line}: {}", ran.stderr);
        assert!(ran.error().len() > 20, "haul {line}: {}", ran.stderr);
        assert!(
            ran.stdout.is_empty() || line.starts_with("bench"),
            "haul {line}"
        );
    }
    let mut after = folder.names(".");
    // serve made its token before it found the root missing.
    after.retain(|name| name != "runtime");
    assert_eq!(after, before);
    assert_eq!(folder.read("b"), b"old");
}

#[test]
fn a_port_that_is_not_haul_s_is_a_peer_s_fault() {
    let folder = Folder::new();
    folder.write("a", &bytes(100));
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let other = std::thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            let mut stream = stream.expect("accepted");
            let mut preamble = [0; 8];
            let _ = stream.read_exact(&mut preamble);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let ran = folder.haul(&format!("copy a haul://127.0.0.1:{port}/b"));
    assert!(matches!(ran.code, 3 | 4), "{}: {}", ran.code, ran.stderr);
    assert!(ran.error().contains(&port.to_string()), "{}", ran.stderr);
    other.join().expect("the other server");
}

#[test]
fn a_wrong_or_missing_token_is_not_authorised() {
    let folder = Folder::new();
    folder.directory("root");
    folder.write("a", &bytes(100));
    let server = Server::start(&folder, "--root root --token-file right");
    let ran = folder.haul(&format!("copy a {}", server.url("b")));
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    let mut command = folder.command(&format!("copy a {}", server.url("b")));
    command.env("HAUL_TOKEN", "ab".repeat(32));
    let ran = crate::support::run(command, Vec::new());
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.error().contains("HAUL_TOKEN"), "{}", ran.stderr);
    assert!(folder.names("root").is_empty());
    // And the right one, by variable.
    let token = String::from_utf8(folder.read("right")).expect("text");
    let mut command = folder.command(&format!("copy a {}", server.url("b")));
    command.env("HAUL_TOKEN", token.trim());
    let ran = crate::support::run(command, Vec::new());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!ran.stderr.contains(token.trim()), "a token is never shown");
}

#[test]
fn nothing_outside_the_root_is_reached() {
    let folder = Folder::new();
    folder.directory("root");
    folder.write("secret", &bytes(100));
    std::os::unix::fs::symlink("../secret", folder.path("root/link")).expect("linked");
    let server = Server::start(&folder, "--root root");
    for path in ["../secret", "link", "%2e%2e/secret", "/../../etc/hostname"] {
        let ran = folder.haul(&format!("copy {} got", server.url(path)));
        assert!(matches!(ran.code, 1..=3), "{path}: {}", ran.stderr);
    }
    for path in ["../escaped", "link/x", "a/../../escaped"] {
        let ran = folder.haul(&format!("copy secret {}", server.url(path)));
        assert!(matches!(ran.code, 1..=3), "{path}: {}", ran.stderr);
    }
    assert!(!folder.path("got").exists() && !folder.path("escaped").exists());
}

#[test]
fn help_and_versions_go_to_standard_output() {
    let folder = Folder::new();
    for line in [
        "--help",
        "--version",
        "copy --help",
        "serve -h",
        "bench --help",
        "man",
        "man copy",
        "completions bash",
        "completions zsh",
    ] {
        let ran = folder.must(line);
        assert!(!ran.stdout.is_empty() && ran.stderr.is_empty(), "{line}");
    }
    let help = String::from_utf8(folder.must("copy --help").stdout).expect("text");
    for word in ["Exit codes", "KiB", "haul://HOST", "130"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn doctor_tells_and_exits_by_what_it_found() {
    let folder = Folder::new();
    let ran = folder.haul("doctor --json");
    let json = ran.json();
    assert_eq!(
        i64::from(ran.code),
        json["exit_code"].as_i64().expect("a code")
    );
    let findings = json["findings"].as_array().expect("findings");
    assert!(findings.len() > 5);
    for finding in findings {
        let slow = finding["level"] != "ok";
        assert!(!slow || finding["cure"].is_string(), "{finding}");
    }
    let told = folder.haul("doctor");
    assert!(String::from_utf8_lossy(&told.stdout).contains("io_uring"));
}
