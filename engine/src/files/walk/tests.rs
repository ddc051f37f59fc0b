//! Tests of the walk: parts, and what cannot be opened among others.
//!
//! Leaves to others: opening one file (source). Invariant: fresh directories
//! only.

use super::*;
use crate::limits;
use std::path::PathBuf;

fn walk_of(names: impl IntoIterator<Item = impl Into<NamedSource>>) -> Walk {
    Walk::new(
        Reach::User,
        names,
        true,
        TreeOptions::default(),
        false,
        limits::CHUNK_BYTES_MIN,
    )
    .expect("no patterns")
}

fn local(paths: &[PathBuf]) -> Walk {
    walk_of(paths.iter().cloned().map(LocalSource::Path))
}

fn files(directory: &Path, count: usize) -> Vec<PathBuf> {
    let path = |number| directory.join(format!("f{number:03}"));
    let paths: Vec<_> = (0..count).map(path).collect();
    for path in &paths {
        std::fs::write(path, "x").expect("written");
    }
    paths
}

#[test]
fn every_name_is_opened_once_in_parts_of_the_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let paths = files(directory.path(), 25);
    let mut walk = local(&paths);
    let mut names = Vec::new();
    while !walk.is_empty() {
        let batch = walk.next_batch(8, true).expect("opened");
        assert!((1..=8).contains(&batch.sources.len()) && !batch.ran_out);
        names.extend(batch.offered.entries.into_iter().map(|entry| entry.name));
    }
    let wanted: Vec<_> = (0..25).map(|n| format!("f{n:03}").into_bytes()).collect();
    assert_eq!(names, wanted);
    assert!(
        walk.next_batch(8, true)
            .expect("nothing")
            .sources
            .is_empty()
    );
}

#[test]
fn one_of_several_fails_alone_and_one_alone_fails_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut paths = files(directory.path(), 3);
    paths[0] = directory.path().join("missing");
    std::fs::create_dir(directory.path().join("d")).expect("made");
    paths[2] = directory.path().join("f001/below");
    let batch = local(&paths).next_batch(100, true).expect("opened");
    let is_missing = |source: &Arc<Source>| matches!(**source, Source::Missing(_));
    let missing: Vec<_> = batch.sources.iter().map(is_missing).collect();
    assert_eq!(missing, [true, false, true]);
    for path in [&paths[0], &paths[2]] {
        let alone = local(std::slice::from_ref(path)).next_batch(100, true);
        assert!(alone.is_err(), "{}", path.display());
    }
}

#[test]
fn a_stream_is_a_part_of_its_own() {
    let endless = NamedSource::Generated {
        pattern: Pattern::Zero,
        bytes: None,
    };
    let some = NamedSource::Generated {
        pattern: Pattern::Zero,
        bytes: Some(5),
    };
    let names = [some.clone(), some.clone(), endless.clone(), endless, some];
    let mut walk = walk_of(names);
    let mut counts = Vec::new();
    while !walk.is_empty() {
        counts.push(walk.next_batch(100, true).expect("made").sources.len());
    }
    assert_eq!(counts, [2, 1, 1, 1]);
}
