//! haul where the system grants it little: lockable memory, pipes, descriptors.
//!
//! Leaves to others: what is copied. Invariant: whatever is short, a command
//! ends, with the file or with a sentence. The limits are set by prlimit(1) and
//! setpriv(1); without these two nothing is tested here.

use crate::support::{Folder, Ran, Server, bytes, can_limit};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is pinned counts for all of a user's processes: one test at a time.
static PINNING: Mutex<()> = Mutex::new(());

/// A test's turn; `None` where nothing can be limited.
fn turn() -> Option<MutexGuard<'static, ()>> {
    // Another test that failed left nothing behind.
    can_limit().then(|| PINNING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// haul in the folder without root's privileges, and with `limits` of prlimit(1).
fn limited(folder: &Folder, limits: &str, arguments: &str) -> Ran {
    let mut command = Command::new("prlimit");
    command.args(limits.split_whitespace());
    if rustix::process::geteuid().is_root() {
        // A user without capabilities has no bounding set to drop either.
        command.args(["setpriv", "--bounding-set=-all"]);
    }
    folder.haul_by(command, arguments)
}

#[test]
fn zero_copy_ends_where_no_memory_can_be_pinned() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    folder.write("a", &bytes(48 * 1024 * 1024));
    // Rings are charged to the limit as well, by kernels in their own ways: the
    // first limit that they fit into has no room for the smallest piece.
    let words = "copy -q --no-fsync --transmit zerocopy -n 4 a b";
    let refused = (0..1_000_000).step_by(60_000).find_map(|memlock| {
        let ran = limited(&folder, &format!("--memlock={memlock}"), words);
        let names_ring = ran.code == 1 && ran.error().contains("io_uring");
        (!names_ring).then_some(ran)
    });
    let ran = refused.expect("they fit into a megabyte");
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.error().contains("without a copy"), "{}", ran.stderr);
    assert_eq!(folder.names("."), ["a"], "nothing is left");
}

#[test]
fn zero_copy_is_fitted_to_the_memory_that_may_be_pinned() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    let content = bytes(64 * 1024 * 1024);
    folder.write("a", &content);
    // The second takes its share of the same user's limit, also from itself.
    for (memlock, at_once) in [
        ("8388608", 1),
        ("8388608", 3),
        ("1048576", 1),
        ("2097152", 2),
    ] {
        for connections in [1, 8] {
            std::thread::scope(|scope| {
                for number in 0..at_once {
                    let (folder, content) = (&folder, &content);
                    scope.spawn(move || {
                        let words = format!(
                            "copy -I -q --json --no-fsync --transmit zerocopy -n {connections} a b{number}"
                        );
                        let limit = format!("--memlock={memlock}");
                        let ran = limited(folder, &limit, &words);
                        let what = format!("{memlock}, {at_once}, {connections}");
                        assert_eq!(ran.code, 0, "{what}: {}", ran.stderr);
                        assert!(folder.read(&format!("b{number}")) == *content, "{what}");
                        let json = ran.json();
                        let bytes = |name: &str| json["zero_copy"][name].as_u64().unwrap_or(0);
                        let went = bytes("sent_bytes") + bytes("copied_bytes");
                        assert!(went >= content.len() as u64, "{what}: {json}");
                        assert!(json["notes"].to_string().contains("RLIMIT_MEMLOCK"), "{what}: {json}");
                    });
                }
            });
        }
    }
}

#[test]
fn an_unreadable_source_is_refused() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    folder.write("secret", b"x");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(folder.path("secret"), mode).expect("chmod");
    // Root itself reads everything.
    let ran = limited(&folder, "--core=0", "copy -q secret b");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let error = ran.error();
    assert!(
        error.contains("cannot open secret: permission denied"),
        "{error}"
    );
    assert_eq!(folder.names("."), ["secret"]);
}

#[test]
fn splice_goes_through_pipes_of_any_size() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    let content = bytes(96 * 1024 * 1024 + 5);
    folder.write("a", &content);
    // A user who holds more than 64 MiB of pipes gets pipes of two pages.
    let pipes: Vec<_> = (0..66)
        .map_while(|_| {
            let pipe = std::io::pipe().ok()?;
            rustix::pipe::fcntl_setpipe_size(&pipe.1, 1024 * 1024).ok()?;
            Some(pipe)
        })
        .collect();
    for connections in [1, 4] {
        let words = format!("copy -q --no-fsync --transmit splice -n {connections} a b");
        let ran = limited(&folder, "--core=0", &words);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(folder.read("b") == content);
    }
    drop(pipes);
}

#[test]
fn a_copy_that_gets_few_descriptors_ends_with_a_sentence() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    let content = bytes(6 * 1024 * 1024);
    folder.write("a", &content);
    for files in 4..84 {
        let limits = format!("--nofile={files}");
        let words = "copy -q --no-fsync --transmit splice -n 4 a b";
        let ran = limited(&folder, &limits, words);
        if ran.code == 0 {
            assert!(files > 32, "more are needed");
            assert!(folder.read("b") == content);
        } else {
            assert!(files < 80, "{files} descriptors: {}", ran.stderr);
            assert!(!ran.error().is_empty(), "{files} descriptors");
            assert!(!folder.path("b").exists(), "{files} descriptors");
        }
        let _ = std::fs::remove_file(folder.path("b"));
    }
}

#[test]
fn what_the_kernel_refuses_is_not_tried_again() {
    let folder = Folder::new();
    folder.write("a", &bytes(100_000));
    folder.directory("root");
    let server = Server::start(&folder, "--root root");
    folder.must(&format!("copy -q a {}", server.url("there")));
    // More than any kernel gives, whoever asks.
    for words in [
        "a b".to_owned(),
        format!("a {}", server.url("b")),
        format!("{} b", server.url("there")),
    ] {
        let ran = folder.haul(&format!("copy --socket-buffer 1GiB {words}"));
        assert_eq!(ran.code, 1, "{words}: {}", ran.stderr);
        let error = ran.error();
        assert!(error.contains("cannot set a"), "{words}: {error}");
        assert!(error.contains("sysctl"), "{words}: {error}");
        // Its own words, and not those of the last of many rounds.
        assert!(!error.contains("in a row"), "{words}: {error}");
        assert!(!folder.path("b").exists() && !folder.path("root/b").exists());
    }
}

#[test]
fn more_files_than_the_soft_limit_are_copied() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    folder.directory("many");
    folder.directory("there");
    let names: Vec<_> = (0..300).map(|number| format!("many/{number}")).collect();
    names.iter().for_each(|name| folder.write(name, &bytes(10)));
    let words = format!("copy -q {} there/", names.join(" "));
    let ran = limited(&folder, "--nofile=128:4096", &words);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(folder.names("there").len(), names.len());
}

#[test]
fn a_limit_of_file_sizes_is_told_and_leaves_nothing() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    folder.write("a", &bytes(3_000_000));
    let ran = limited(&folder, "--fsize=1000000", "copy -q a b");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(!ran.error().is_empty());
    assert_eq!(folder.names("."), ["a"]);
}

#[test]
fn little_lockable_memory_is_a_sentence() {
    let Some(_turn) = turn() else {
        return;
    };
    let folder = Folder::new();
    folder.write("a", &bytes(100_000));
    for bytes in [0, 8_000, 64_000, 128_000, 256_000] {
        let limits = format!("--memlock={bytes}");
        let ran = limited(&folder, &limits, "copy -q a b");
        // Kernels differ in what they charge for a ring.
        if ran.code != 0 {
            assert!(ran.error().contains("RLIMIT_MEMLOCK"), "{}", ran.stderr);
            let told = limited(&folder, &limits, "doctor");
            assert_ne!(told.code, 0, "{bytes}: doctor says so, too");
        }
    }
}
