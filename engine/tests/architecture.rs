//! The house's rules as programs, each also run on a sample that breaks it.
//!
//! Leaves to others: style that the compiler, clippy and rustfmt judge.
//! Invariant: a rule is a function from files to complaints, so that it can be
//! tested itself.

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/code.rs"]
mod code;

use circles::circles;
use code::{beyond_supers, children, names, types, without_comments_and_literals, without_tests};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Lines of code (no blanks, no comments) of one file, at most.
const CODE_LINES_MAX: usize = 600;

/// The rooms of the engine, lowest first; the order of imports. Rooms of one
/// rank may see each other, except for those that stand apart.
const ROOMS: [(&str, u8); 12] = [
    ("limits", 0),
    ("reason", 0),
    ("error", 1),
    ("options", 1),
    ("report", 1),
    ("protocol", 2),
    ("kernel", 2),
    ("files", 3),
    ("data", 4),
    ("session", 5),
    ("client", 6),
    ("server", 6),
];
const LIB_RANK: u8 = 7;
/// Pairs that never see each other: the two pillars, and the two ends.
const APART: [[&str; 2]; 2] = [["protocol", "kernel"], ["client", "server"]];
/// The control plane.
const ASYNC_FOLDERS: [&str; 3] = [
    "engine/src/session/",
    "engine/src/client/",
    "engine/src/server/",
];

/// What would bring a descriptor, a clock or a thread into the protocol.
const IMPURE_STD: [&str; 7] = ["time", "net", "fs", "thread", "os", "process", "env"];
const IMPURE_CRATES: [&str; 6] = [
    "rustix", "socket2", "memmap2", "io_uring", "tokio", "tempfile",
];

/// One source file of the workspace.
struct SourceFile {
    /// Relative to the workspace.
    path: String,
    text: String,
    /// `text` without comments and literals.
    code: String,
}

impl SourceFile {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code: without_comments_and_literals(text),
        }
    }

    /// The engine's room that it is part of; "lib" for lib.rs; `None` outside.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("engine/src/")?;
        let room = inside.split('/').next()?;
        Some(room.strip_suffix(".rs").unwrap_or(room))
    }
}

type Rule = fn(&[SourceFile]) -> Vec<String>;

fn rank(room: &str) -> Option<u8> {
    let known = ROOMS.iter().find(|(name, _)| *name == room);
    known
        .map(|(_, rank)| *rank)
        .or((room == "lib").then_some(LIB_RANK))
}

/// What lib.rs re-exports, by the room it comes from.
fn exports(files: &[SourceFile]) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    let lib = files.iter().find(|file| file.path == "engine/src/lib.rs");
    let statements = lib.map_or("", |lib| &lib.code).split(';');
    for statement in statements {
        let Some(path) = statement.trim().strip_prefix("pub use ") else {
            continue;
        };
        let room = path.split("::").next().unwrap_or_default();
        for name in names(path) {
            exports.insert(name.to_owned(), room.to_owned());
        }
    }
    exports
}

fn imports_go_down(files: &[SourceFile]) -> Vec<String> {
    let exports = exports(files);
    let mut complaints = Vec::new();
    for file in files {
        let Some(room) = file.room() else {
            continue;
        };
        let Some(own) = rank(room) else {
            complaints.push(format!(
                "{}: no such room in the order of imports",
                file.path
            ));
            continue;
        };
        let mut seen = children(&file.code, "crate");
        seen.extend(
            beyond_supers(&file.code)
                .into_iter()
                .filter(|name| rank(name).is_some()),
        );
        for name in seen {
            let other = exports.get(&name).map_or(name.as_str(), String::as_str);
            let allowed = match rank(other) {
                Some(_) if other == room => true,
                Some(_)
                    if APART
                        .iter()
                        .any(|pair| pair.contains(&other) && pair.contains(&room)) =>
                {
                    false
                }
                Some(rank) => rank <= own,
                None => false,
            };
            if !allowed {
                complaints.push(format!("{}: {room} imports {name} ({other})", file.path));
            }
        }
    }
    complaints
}

/// Files outside `folders` that say one of `words` in code.
fn only_in(files: &[SourceFile], folders: &[&str], words: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    let is_outside =
        |file: &&SourceFile| !folders.iter().any(|folder| file.path.starts_with(folder));
    for file in files.iter().filter(is_outside) {
        let names = names(&file.code);
        for word in words.iter().filter(|word| names.contains(*word)) {
            complaints.push(format!(
                "{}: {word} belongs to {}",
                file.path,
                folders.join(", ")
            ));
        }
    }
    complaints
}

fn unsafe_only_in_kernel(files: &[SourceFile]) -> Vec<String> {
    only_in(
        files,
        &["engine/src/kernel/"],
        &["unsafe", "libc", "io_uring"],
    )
}

fn tokio_only_in_the_control_plane(files: &[SourceFile]) -> Vec<String> {
    only_in(files, &ASYNC_FOLDERS, &["tokio", "tokio_uring"])
}

/// The crates whose files must not import each other in a circle.
const CRATES: [&str; 3] = ["engine/src/", "cli/src/", "benches/src/"];
fn no_circles(files: &[SourceFile]) -> Vec<String> {
    let circles = CRATES.iter().flat_map(|source| circles(files, source));
    circles
        .map(|circle| format!("a circle of imports: {}", circle.join(", ")))
        .collect()
}

fn protocol_is_pure(files: &[SourceFile]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.room() == Some("protocol")) {
        let names = names(&file.code);
        for std in children(&file.code, "std") {
            if IMPURE_STD.contains(&std.as_str()) {
                complaints.push(format!("{}: std::{std} in the protocol", file.path));
            }
        }
        for impure in IMPURE_CRATES
            .iter()
            .filter(|impure| names.contains(*impure))
        {
            complaints.push(format!("{}: {impure} in the protocol", file.path));
        }
    }
    complaints
}

fn files_open_with_their_role(files: &[SourceFile]) -> Vec<String> {
    let mute = files.iter().filter(|file| !file.text.starts_with("//! "));
    mute.map(|file| format!("{}: does not open with //!", file.path))
        .collect()
}

fn files_stay_small(files: &[SourceFile]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let lines = file.code.lines().filter(|line| !line.trim().is_empty());
        let lines = lines.count();
        if lines > CODE_LINES_MAX {
            complaints.push(format!("{}: {lines} lines of code", file.path));
        }
    }
    complaints
}

/// True for files that are compiled for tests only.
fn is_of_tests(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs")
}

/// Who reads a name of a type knows what it is, wherever it stands.
fn types_have_names_of_their_own(files: &[SourceFile]) -> Vec<String> {
    let mut homes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for file in files.iter().filter(|file| !is_of_tests(&file.path)) {
        for name in types(&without_tests(&file.code)) {
            homes.entry(name).or_default().push(&file.path);
        }
    }
    homes.retain(|_, paths| paths.len() > 1);
    let said = homes.iter();
    said.map(|(name, paths)| format!("{name} is defined in {}", paths.join(" and ")))
        .collect()
}

/// The words in backticks of a page, outside of fenced blocks.
fn spans(page: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut spans = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

fn is_path(span: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-/".contains(letter);
    let ends = [".rs", ".md", ".toml"];
    span.chars().all(plain)
        && !span.starts_with('/')
        && (span.contains('/') || ends.iter().any(|end| span.ends_with(end)))
}

fn is_test_name(span: &str) -> bool {
    let plain =
        |letter: char| letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit();
    span.chars().all(plain) && span.matches('_').count() >= 3
}

/// The page names every folder with source in it, no path that is missing,
/// and no test that is missing.
fn the_page_is_true(
    page: &str,
    files: &[SourceFile],
    exists: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut complaints = Vec::new();
    let spans = spans(page);
    // A folder that holds nothing but the tests of the file above is part of it.
    let folders: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file.path.rsplit_once('/'))
        .filter(|(_, name)| *name != "tests.rs")
        .map(|(folder, _)| folder)
        .collect();
    for folder in folders {
        if !spans
            .iter()
            .any(|span| span.trim_end_matches('/') == folder)
        {
            complaints.push(format!("ARCHITECTURE.md does not name {folder}/"));
        }
    }
    for path in spans.iter().filter(|span| is_path(span)) {
        if !exists(path) {
            complaints.push(format!("ARCHITECTURE.md names {path}, which is missing"));
        }
    }
    for test in spans.iter().filter(|span| is_test_name(span)) {
        let needle = format!("fn {test}(");
        if !files.iter().any(|file| file.code.contains(&needle)) {
            complaints.push(format!(
                "ARCHITECTURE.md names the test {test}, which is missing"
            ));
        }
    }
    complaints
}

fn workspace() -> PathBuf {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    engine.parent().expect("the workspace").to_path_buf()
}

/// Every .rs file of the workspace that is the project's own.
fn source_files() -> Vec<SourceFile> {
    let root = workspace();
    let mut folders = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("lists") {
            let path = entry.expect("entry").path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.expect("names are text");
            if path.is_dir() && path != root.join("target") && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let relative = path.strip_prefix(&root).expect("below the workspace");
                let relative = relative.to_str().expect("names are text");
                let text = std::fs::read_to_string(&path).expect("reads");
                files.push(SourceFile::new(relative, &text));
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(files.len() > 20, "the walk found the workspace");
    files
}

/// No complaint about the workspace, and one about each bad sample.
fn holds(rule: Rule, bad: &[(&str, &str)]) {
    let lib = SourceFile::new(
        "engine/src/lib.rs",
        "pub use error::{Error, Result};\npub use client::Pool;",
    );
    let mut sample = vec![lib];
    for (path, text) in bad {
        sample.push(SourceFile::new(path, text));
        let complaints = rule(&sample);
        let named = complaints.iter().any(|complaint| complaint.contains(path));
        assert!(named, "the rule lets {path} pass: {text}");
        sample.pop();
    }
    let complaints = rule(&source_files());
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The rule has nothing against these.
fn allows(rule: Rule, good: &[(&str, &str)]) {
    let lib = (
        "engine/src/lib.rs",
        "//! Lib.\npub use error::{Error, Result};",
    );
    let sample: Vec<_> = good
        .iter()
        .chain([&lib])
        .map(|(path, text)| SourceFile::new(path, text))
        .collect();
    assert_eq!(rule(&sample), Vec::<String>::new());
}

#[test]
fn imports_go_down_only() {
    holds(
        imports_go_down,
        &[
            ("engine/src/limits.rs", "use crate::error::Error;"),
            (
                "engine/src/error.rs",
                "use crate::{limits, protocol::wire};",
            ),
            (
                "engine/src/protocol/wire/mod.rs",
                "use crate::kernel::ring;",
            ),
            ("engine/src/kernel/ring.rs", "use crate::protocol::Run;"),
            (
                "engine/src/files/place.rs",
                "fn f() { crate::data::Clock::start(); }",
            ),
            ("engine/src/data/send.rs", "use crate::Pool;"),
            (
                "engine/src/files/place.rs",
                "use super::super::client::pool;",
            ),
            ("engine/src/attic/mod.rs", "use crate::limits;"),
            ("engine/src/session/life.rs", "use crate::client::role;"),
            ("engine/src/client/pool.rs", "use crate::server::listen;"),
        ],
    );
    allows(
        imports_go_down,
        &[
            (
                "engine/src/files/place.rs",
                "use crate::{Error, kernel::file, protocol::wire};",
            ),
            (
                "engine/src/report.rs",
                "//! crate::client\nuse crate::error::Error;",
            ),
            (
                "engine/src/data/send.rs",
                "use crate::files::source::Source;",
            ),
            ("cli/src/main.rs", "use crate::arguments;"),
        ],
    );
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sample = |files: &[(&str, &str)]| -> Vec<SourceFile> {
        let files = files.iter();
        files
            .map(|(path, text)| SourceFile::new(path, text))
            .collect()
    };
    let (one, other) = ("engine/src/files/one.rs", "engine/src/files/other.rs");
    let parent = "engine/src/files/mod.rs";
    for bad in [
        [
            (one, "use super::other::Other;"),
            (other, "use super::one::One;"),
        ],
        [
            (one, "fn f() { super::other::g() }"),
            (other, "use crate::files::one;"),
        ],
        [
            (one, "use super::Kind;"),
            (parent, "mod one; fn f() { one::g() }"),
        ],
        [
            (one, "use super::Kind;"),
            (parent, "mod one; pub use one::One; fn f(_: One) {}"),
        ],
        [
            ("cli/src/main.rs", "mod a; fn main() { a::run() }"),
            ("cli/src/a.rs", "use crate::helper;"),
        ],
        [
            ("benches/src/lib.rs", "pub mod a; use a::f;"),
            ("benches/src/a.rs", "use super::g;"),
        ],
    ] {
        let complaints = no_circles(&sample(&bad));
        assert_eq!(complaints.len(), 1, "{bad:?}: {complaints:?}");
        for (path, _) in bad {
            assert!(complaints[0].contains(path), "{complaints:?}");
        }
    }
    for good in [
        // What is lent out, and what is there for tests, ties nothing.
        [
            (one, "use super::Kind;"),
            (parent, "mod one; pub use one::One; struct Kind;"),
        ],
        [
            (one, "use super::other::Other;"),
            (
                other,
                "#[cfg(test)]\nmod tests { use super::super::one::One; }",
            ),
        ],
        [
            (one, "use super::other::Other;"),
            (other, "// use super::one::One;"),
        ],
    ] {
        assert_eq!(no_circles(&sample(&good)), Vec::<String>::new());
    }

    let complaints = no_circles(&source_files());
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn unsafe_and_libc_stay_in_the_kernel_room() {
    holds(
        unsafe_only_in_kernel,
        &[
            ("engine/src/data/send.rs", "fn f() { unsafe { g() } }"),
            ("cli/src/main.rs", "use libc::c_int;"),
            ("engine/src/data/send.rs", "use io_uring::IoUring;"),
        ],
    );
    allows(
        unsafe_only_in_kernel,
        &[
            (
                "engine/src/kernel/ring.rs",
                "unsafe fn f() { libc::read() }",
            ),
            (
                "engine/src/data/send.rs",
                "// unsafe\nconst WHY: &str = \"libc\";",
            ),
        ],
    );
}

#[test]
fn tokio_stays_in_the_control_plane() {
    let bad = [
        ("engine/src/files/stream.rs", "use tokio::sync::mpsc;"),
        ("cli/src/main.rs", "fn main() { tokio_uring::start(f) }"),
    ];
    holds(tokio_only_in_the_control_plane, &bad);
    allows(
        tokio_only_in_the_control_plane,
        &[("engine/src/client/pool.rs", "use tokio::sync::mpsc;")],
    );
}

#[test]
fn the_protocol_has_no_descriptor_clock_or_thread() {
    holds(
        protocol_is_pure,
        &[
            ("engine/src/protocol/plan.rs", "use std::time::Instant;"),
            ("engine/src/protocol/plan.rs", "use std::{fmt, fs};"),
            (
                "engine/src/protocol/plan.rs",
                "fn f() { std::thread::yield_now() }",
            ),
            (
                "engine/src/protocol/wire/mod.rs",
                "use std::os::fd::OwnedFd;",
            ),
            ("engine/src/protocol/wire/mod.rs", "use std::net::IpAddr;"),
            ("engine/src/protocol/wire/mod.rs", "use rustix::fs;"),
        ],
    );
    allows(
        protocol_is_pure,
        &[
            (
                "engine/src/protocol/plan.rs",
                "use std::collections::BTreeMap;",
            ),
            ("engine/src/data/mod.rs", "use std::time::Instant;"),
        ],
    );
}

#[test]
fn every_file_opens_with_its_role() {
    holds(
        files_open_with_their_role,
        &[
            ("engine/src/data/send.rs", "use a;\n//! Late."),
            ("engine/src/data/send.rs", ""),
            ("benches/src/lib.rs", "// Not a doc.\n"),
        ],
    );
}

#[test]
fn no_file_is_longer_than_a_person_reads() {
    let long = "let x = 1;\n".repeat(CODE_LINES_MAX + 1);
    holds(files_stay_small, &[("engine/src/data/send.rs", &long)]);
    let told = "// Why.\n\n".repeat(CODE_LINES_MAX) + "let x = 1;";
    allows(files_stay_small, &[("engine/src/data/send.rs", &told)]);
}

#[test]
fn each_name_of_a_type_means_one_thing() {
    let sample = [
        SourceFile::new(
            "engine/src/data/send/worker.rs",
            "//! A.\npub struct Worker;",
        ),
        SourceFile::new(
            "engine/src/data/receive/worker.rs",
            "//! B.\nenum Worker { On }",
        ),
    ];
    let complaints = types_have_names_of_their_own(&sample);
    assert_eq!(
        complaints,
        [
            "Worker is defined in engine/src/data/send/worker.rs and engine/src/data/receive/worker.rs"
        ]
    );
    allows(
        types_have_names_of_their_own,
        &[
            (
                "engine/src/a.rs",
                "pub struct One;\nimpl Deref for One {\n    type Target = u8;\n}",
            ),
            (
                "engine/src/b.rs",
                "type Target = u8; // struct One\nconst S: &str = \"struct One\";",
            ),
            ("engine/src/a/tests.rs", "struct One;"),
            ("engine/src/c.rs", "#[cfg(test)]\nmod tests { struct One; }"),
        ],
    );
    holds(types_have_names_of_their_own, &[]);
}

#[test]
fn the_architecture_page_is_true() {
    let sample = [
        SourceFile::new("engine/src/data/mod.rs", ""),
        SourceFile::new("engine/tests/it.rs", "fn it_is_a_test() {}"),
    ];
    let good = "`engine/src/data/` `engine/tests` `it_is_a_test` `/proc/self` `a b/c`\n\
                ```\n`no/such/path`\n```\n";
    let exists = |path: &str| path.starts_with("engine/");
    assert_eq!(
        the_page_is_true(good, &sample, exists),
        Vec::<String>::new()
    );
    for (bad, complaint) in [
        ("`engine/tests/`", "does not name engine/src/data/"),
        (
            "`engine/src/data` `engine/tests` `cli/src/gone.rs`",
            "gone.rs, which is missing",
        ),
        (
            "`engine/src/data` `engine/tests` `it_was_a_test`",
            "it_was_a_test, which is missing",
        ),
    ] {
        let complaints = the_page_is_true(bad, &sample, exists).join("\n");
        assert!(complaints.contains(complaint), "{bad}: {complaints}");
    }

    let root = workspace();
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the page");
    let complaints = the_page_is_true(&page, &source_files(), |path| root.join(path).exists());
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
