//! `haul serve`, pushed to and pulled from by real copies.
//!
//! Leaves to others: tokens that are refused (usage.rs). Invariant: ports are
//! the kernel's choice, and the server says them.

use crate::support::{Folder, Server, bytes};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

fn ready() -> (Folder, Server) {
    let folder = Folder::new();
    folder.directory("root");
    let server = Server::start(&folder, "--root root");
    (folder, server)
}

#[test]
fn push_and_pull_over_one_server() {
    let (folder, server) = ready();
    let content = bytes(5_000_001);
    folder.write("a", &content);
    folder.must(&format!("copy a {}", server.url("b")));
    assert!(folder.read("root/b") == content);
    folder.must(&format!("copy {} c", server.url("b")));
    assert!(folder.read("c") == content);
    // Into the root, and into a directory below it.
    folder.directory("root/sub");
    folder.must(&format!("copy a {}", server.url("")));
    folder.must(&format!("copy a c {}", server.url("sub/")));
    assert_eq!(folder.names("root"), ["a", "b", "sub"]);
    assert_eq!(folder.names("root/sub"), ["a", "c"]);
    // Several back into a directory here.
    folder.directory("back");
    folder.must(&format!(
        "copy {} {} back",
        server.url("a"),
        server.url("sub/c")
    ));
    assert!(folder.read("back/c") == content);
    let ran = folder.must(&format!("copy {} -", server.url("b")));
    assert!(ran.stdout == content);
    let (code, output) = server.stop(Signal::TERM);
    assert_eq!(code, 0);
    assert!(output.is_empty(), "results only, and serve has none");
}

#[test]
fn a_server_that_is_stopped_says_what_it_cut_off() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let (folder, server) = ready();
        folder.write("long", &bytes(20_000_000));
        let line = format!("copy --limit-rate 1MB long {}", server.url("long"));
        let copies: Vec<_> = (0..2)
            .map(|number| {
                let mut command = folder.command(&format!("{line}{number}"));
                let child = command.stderr(Stdio::null()).spawn().expect("started");
                server.wait_for("session opened");
                child
            })
            .collect();
        // Both transfers run once something of theirs is there.
        while folder
            .names("root")
            .iter()
            .filter(|name| name.starts_with(".haul-"))
            .count()
            < 2
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (ended, said) = server.stop_and_hear(signal);
        assert_eq!(ended, code, "{said}");
        assert!(said.contains("stopped; 2 transfers were cut off"), "{said}");
        for mut copy in copies {
            let status = copy.wait().expect("ended");
            assert_eq!(status.code(), Some(3), "it lost its peer");
        }
        assert!(
            !folder
                .names("root")
                .iter()
                .any(|name| name.starts_with(".haul-"))
        );
    }
}

#[test]
fn the_token_file_is_for_its_user_only() {
    let (folder, server) = ready();
    let line = server.wait_for("token file ");
    let path = folder.path("runtime/haul/token");
    assert!(line.ends_with(&path.display().to_string()), "{line}");
    let mode = path.metadata().expect("a token").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = folder.read("runtime/haul/token");
    let (code, _) = server.stop(Signal::INT);
    assert_eq!(code, 0);
    // The next server keeps the token; one that others can read is refused.
    drop(Server::start(&folder, "--root root"));
    assert_eq!(folder.read("runtime/haul/token"), token);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("chmod");
    let ran = folder.haul("serve --root root --listen 127.0.0.1:0");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.error().contains("chmod 600"), "{}", ran.stderr);
}

#[test]
fn standard_input_streams_to_a_server() {
    let (folder, server) = ready();
    let content = bytes(3_000_007);
    let line = format!("copy --json - {}", server.url("s"));
    let ran = folder.haul_with(&line, content.clone());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(folder.read("root/s") == content);
    assert_eq!(ran.json()["files"][0]["bytes"], 3_000_007);
}

#[test]
fn a_congestion_control_that_cannot_be_had_is_told_at_the_start() {
    let folder = Folder::new();
    let ran = folder.haul("serve --root . --listen 127.0.0.1:0 --congestion nosuch");
    assert_ne!(ran.code, 0);
    assert!(ran.error().contains("nosuch"), "{}", ran.stderr);
}

#[test]
fn what_the_server_cannot_do_is_told_at_its_side() {
    let (folder, server) = ready();
    folder.write("a", &bytes(10));
    folder.directory("root/d");
    for (line, code) in [
        (format!("copy --json {} c", server.url("missing")), 1),
        (format!("copy --json a {}", server.url("none/c")), 1),
        (format!("copy --json a {}", server.url("missing/")), 1),
    ] {
        let ran = folder.haul(&line);
        assert_eq!(ran.code, code, "{line}: {}", ran.stderr);
        let json = ran.json();
        assert_eq!(json["exit_code"], code);
        assert!(json["error"]["side"].is_string(), "{json}");
        let there = format!("haul: on {}: ", server.address);
        assert!(ran.error().starts_with(&there), "{}", ran.stderr);
        assert_eq!(ran.error().matches(" on ").count(), 1, "{}", ran.stderr);
    }
    assert!(!folder.path("c").exists());
}

#[test]
fn one_of_several_that_the_server_lacks_fails_alone() {
    let (folder, server) = ready();
    folder.write("root/a", &bytes(100_000));
    folder.directory("d");
    let (a, missing) = (server.url("a"), server.url("missing"));
    let ran = folder.haul(&format!("copy -q {missing} {a} d"));
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let told = format!(
        "haul: 1 of 2 files failed; the first: on {}: cannot open missing: no such file or directory",
        server.address
    );
    assert_eq!(ran.error(), told);
    assert_eq!(folder.names("d"), ["a"]);
    folder.write("b", &bytes(10));
    let ran = folder.haul(&format!("copy -q gone b {}", server.url("")));
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    assert!(ran.error().contains("cannot open gone"), "{}", ran.stderr);
    assert_eq!(folder.names("root"), ["a", "b"]);
}

#[test]
fn what_is_not_known_yet_is_null_and_what_is_left_to_haul_is_noted() {
    let (folder, server) = ready();
    folder.write("root/a", &bytes(100_000));
    let line = format!(
        "copy -n 4 --limit-rate 3MB --events --report r {} b",
        server.url("a")
    );
    let ran = folder.must(&line);
    let told = String::from_utf8(ran.stdout).expect("text");
    let planned: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|event: &Value| event["event"] == "planned")
        .collect();
    assert!(
        planned.iter().all(|event| event["bytes"] != 0),
        "{planned:?}"
    );
    assert_eq!(planned.last().expect("one")["bytes"], 100_000);
    let report: Value = serde_json::from_slice(&folder.read("r")).expect("a report");
    assert!(
        report["notes"].to_string().contains("1 of 4 connections"),
        "{report}"
    );
}

#[test]
fn one_of_several_that_fails_leaves_the_rest_sealed() {
    let (folder, server) = ready();
    for name in ["a", "taken", "z"] {
        folder.write(name, &bytes(100_000));
    }
    // A directory has the second one's name.
    folder.directory("root/taken");
    let ran = folder.haul(&format!("copy --json a taken z {}", server.url("")));
    assert_eq!(ran.code, 23, "{}", ran.stderr);
    let json = ran.json();
    assert_eq!(json["outcome"], "partial");
    assert_eq!(json["bytes"]["sealed"], 200_000);
    for (place, level) in [Value::from("sealed"), Value::Null, Value::from("sealed")]
        .iter()
        .enumerate()
    {
        assert_eq!(&json["files"][place]["level"], level, "{json}");
    }
    assert!(ran.stderr.contains("taken"), "{}", ran.stderr);
    assert_eq!(folder.names("root"), ["a", "taken", "z"]);
}

#[test]
fn null_sinks_need_the_server_s_leave() {
    let (folder, server) = ready();
    let bench = |server: &Server| format!("bench --json --bytes 1MiB --to {}", server.url(""));
    let ran = folder.haul(&bench(&server));
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("--allow-null"), "{}", ran.stderr);
    drop(server);
    let server = Server::start(&folder, "--root root --allow-null");
    let json = folder.must(&bench(&server)).json();
    assert_eq!(json["runs"][0]["bytes"]["landed"], 1_048_576);
    assert_eq!(json["runs"][0]["level"], "delivered");
    let reverse = folder.must(&format!("{} --reverse", bench(&server))).json();
    assert_eq!(reverse["setup"]["direction"], "pull");
}

#[test]
fn a_server_without_authentication_says_so() {
    let folder = Folder::new();
    folder.directory("root");
    folder.write("a", &bytes(10));
    let server = Server::start(
        &folder,
        "--root root --allow-unauthenticated --token-file elsewhere",
    );
    server.wait_for("without a token");
    let json = folder
        .must(&format!("copy --json a {}", server.url("b")))
        .json();
    assert_eq!(json["authenticated"], false);
    // A token of its own is in the way, unless it is left at home.
    folder.write("other", "0f".repeat(32).as_bytes());
    let set = Permissions::from_mode(0o600);
    std::fs::set_permissions(folder.path("other"), set).expect("set");
    let ran = folder.haul(&format!("copy -q --token-file other a {}", server.url("c")));
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    folder.must(&format!("copy -q --no-token a {}", server.url("c")));
    // Privileges are not taken from nobody.
    let set = Permissions::from_mode(0o4755);
    std::fs::set_permissions(folder.path("a"), set).expect("set");
    let ran = folder.haul(&format!("copy -q --no-token a {}", server.url("d")));
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.error().contains("set-user-ID"), "{}", ran.stderr);
    assert_eq!(folder.names("root"), ["b", "c"]);
}

#[test]
fn a_stream_goes_to_a_file_not_into_a_directory() {
    let (folder, server) = ready();
    folder.directory("root/sub");
    for url in [server.url("sub"), server.url("sub/")] {
        let ran = folder.haul_with(&format!("copy - {url}"), bytes(1000));
        assert_eq!(ran.code, 2, "{url}: {}", ran.stderr);
    }
    assert!(folder.names("root/sub").is_empty());
}

#[test]
fn a_server_that_is_stopped_says_so() {
    let (folder, server) = ready();
    folder.write("a", &bytes(20_000_000));
    let line = format!("copy -q --limit-rate 2MB a {}", server.url("x"));
    let child = folder.command(&line).spawn().expect("started");
    server.wait_for("session");
    std::thread::sleep(std::time::Duration::from_millis(500));
    server.stop(rustix::process::Signal::TERM);
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("the server was stopped"), "{said}");
    assert!(folder.names("root").is_empty());
}

/// As many refusals cost a few lines of the log, and none is lost in it.
#[test]
fn a_crowd_that_is_refused_does_not_flood_the_log() {
    const CROWD: u64 = 2_500;
    let control = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    // A data connection of no session: its preamble and a join.
    let mut data = b"HAUL\x01\x01\x01\x00".to_vec();
    data.resize(8 + 64, 7);
    for words in [control, data] {
        let (folder, server) = ready();
        for _ in 0..CROWD {
            let mut stream = TcpStream::connect(&server.address).expect("connects");
            stream.write_all(&words).expect("written");
            // Until it was refused.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
        let (_, said) = server.stop_and_hear(Signal::TERM);
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("refused"))
            .collect();
        assert!((2..=10).contains(&lines.len()), "{said}");
        let counted: u64 = lines
            .iter()
            .filter_map(|line| {
                line.split("refused ")
                    .nth(1)?
                    .split(' ')
                    .next()?
                    .parse::<u64>()
                    .ok()
            })
            .sum();
        let first = lines
            .iter()
            .filter(|line| line.contains(": refused: "))
            .count() as u64;
        assert_eq!(counted + first, CROWD, "{said}");
        drop(folder);
    }
}
