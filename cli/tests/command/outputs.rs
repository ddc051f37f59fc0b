//! Where results, reports and data go, and what is said where they cannot.
//!
//! Leaves to others: what is in them. Invariant: nothing that was asked for and
//! could not be given ends with 0.

use crate::support::{Folder, Ran, Server, bytes, run};
use std::process::Command;

/// haul run by a shell, which can close what `Command` cannot.
fn shell(folder: &Folder, line: &str) -> Ran {
    let mut command = folder.command("");
    let haul = command.get_program().to_owned();
    let mut shell = Command::new("sh");
    shell.args(["-c", &line.replace("haul", &haul.to_string_lossy())]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.current_dir(folder.path(""));
    command = shell;
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    run(command, Vec::new())
}

#[test]
fn a_closed_standard_output_takes_neither_data_nor_results() {
    let folder = Folder::new();
    folder.write("a", &bytes(300_000));
    for line in [
        "haul copy a - >&-",
        "haul copy --json a b >&-",
        "haul copy --events a b >&-",
        "haul copy --report - a b >&-",
        "haul bench --bytes 1MiB --runs 1 >&-",
        "haul doctor --json >&-",
        "haul doctor >&-",
        "haul completions bash >&-",
        "haul man >&-",
        "haul --help >&-",
        "haul --version >&-",
    ] {
        let ran = shell(&folder, line);
        assert_eq!(ran.code, 1, "{line}: {}", ran.stderr);
        let error = ran.error();
        assert!(
            error.ends_with("standard output: it is closed"),
            "{line}: {error}"
        );
        assert!(!folder.path("b").exists(), "{line}: something moved");
    }
}

#[test]
fn a_null_device_in_its_place_takes_both() {
    let folder = Folder::new();
    folder.write("a", &bytes(300_000));
    for line in [
        "haul copy a - >/dev/null",
        // As Python's subprocess.DEVNULL is opened, and the runtime's own.
        "haul copy a - 1<>/dev/null",
        "haul copy --json a b >/dev/null",
    ] {
        let ran = shell(&folder, line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    }
}

#[test]
fn a_closed_standard_error_spoils_nothing() {
    let folder = Folder::new();
    folder.write("a", &bytes(300_000));
    for line in ["haul copy -v a b 2>&-", "haul copy -vv a c 2>&- >&- <&-"] {
        let ran = shell(&folder, line);
        assert_eq!(ran.code, 0, "{line}");
    }
    assert_eq!(folder.read("b"), folder.read("a"));
    assert_eq!(folder.read("c"), folder.read("a"));
}

#[test]
fn what_cannot_be_written_is_a_failure() {
    let folder = Folder::new();
    folder.write("a", &bytes(300_000));
    std::os::unix::fs::symlink("/dev/full", folder.path("full.hlog")).expect("linked");
    std::os::unix::fs::symlink("/dev/full", folder.path("full.hgrm")).expect("linked");
    for line in [
        "haul copy a - >/dev/full",
        "haul copy --json a b >/dev/full",
        "haul copy --events a b >/dev/full",
        "haul copy --report - a b >/dev/full",
        "haul copy --report /dev/full a b",
        "haul copy -I --hdr-log full.hlog a b",
        "haul copy -I --hdr-log full.hgrm a b",
        "haul bench --bytes 1MiB --report /dev/full",
        "haul bench --bytes 1MiB >/dev/full",
        "haul doctor >/dev/full",
        "haul completions fish >/dev/full",
        "haul man copy >/dev/full",
        "haul copy --help >/dev/full",
    ] {
        let ran = shell(&folder, line);
        assert_eq!(ran.code, 1, "{line}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("no space left"),
            "{line}: {}",
            ran.stderr
        );
    }
}

#[test]
fn a_report_to_a_dash_is_standard_output() {
    let folder = Folder::new();
    folder.write("a", &bytes(300_000));
    for line in ["copy --report - a b", "bench --bytes 1MiB --report -"] {
        let ran = folder.must(line);
        let json: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("JSON only");
        assert_eq!(json["outcome"], "complete", "{line}");
    }
    assert!(!folder.path("-").exists());
    for line in [
        "copy --report - --json a b",
        "copy --report - --events a b",
        "copy --report - a -",
        "bench --bytes 1MiB --report - --json",
        "copy --hdr-log - a b",
    ] {
        assert_eq!(folder.haul(line).code, 2, "{line}");
    }
    assert!(!folder.path("-").exists());
}

#[test]
fn a_name_in_an_address_is_taken_as_it_is_typed() {
    let folder = Folder::new();
    folder.directory("root");
    let name = "100%41 %zz?x#y%";
    folder.write(&format!("root/{name}"), &bytes(1000));
    let server = Server::start(&folder, "--root root");
    let mut command = folder.command("copy");
    command.arg(server.url(name));
    command.arg("there");
    let ran = run(command, Vec::new());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(folder.read("there"), bytes(1000));
}
