//! Trees that chance made, through the library, both ways.
//!
//! Leaves to others: attributes and file systems (the command line's tests, with other
//! tools as judges). Invariant: what is compared is read by the standard library alone.

use crate::support::Site;
use haul_engine::options::{
    CopyOptions, DeleteRules, LocalSource, LocalTarget, RemoteSource, RemoteTarget, TargetRules,
};
use haul_engine::report::Level;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One name of a tree.
#[derive(Clone, Debug)]
enum Made {
    Directory(Vec<(OsString, Made)>, u32),
    File(usize, u32),
    Symlink(OsString),
    /// Another name of some file.
    HardLink(usize),
}

fn name() -> impl Strategy<Value = OsString> {
    // Any byte but those that no name has.
    let byte = any::<u8>().prop_filter("no name has it", |byte| *byte != 0 && *byte != b'/');
    let bytes = prop::collection::vec(byte, 1..12);
    prop_oneof![
        "[a-z.]{1,9}x".prop_map(OsString::from),
        bytes.prop_map(|mut bytes| {
            bytes.push(b'_');
            OsString::from_vec(bytes)
        }),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let size = prop_oneof![Just(0usize), 1..300usize, 1..200_000usize];
    let leaf = prop_oneof![
        6 => (size, 0..0o1000u32).prop_map(|(size, mode)| Made::File(size, mode | 0o400)),
        1 => name().prop_map(Made::Symlink),
        1 => any::<usize>().prop_map(Made::HardLink),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        let names = prop::collection::vec((name(), inner), 0..8);
        (names, 0..0o1000u32).prop_map(|(names, mode)| Made::Directory(names, mode | 0o700))
    })
}

/// Makes `what` at `path`; files that were made are linked to by number.
fn make(path: &Path, what: &Made, files: &mut Vec<PathBuf>) {
    if path.symlink_metadata().is_ok() {
        return;
    }
    let chmod = |mode: u32| {
        let bits = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, bits).expect("chmod");
    };
    match what {
        Made::Directory(names, mode) => {
            std::fs::create_dir(path).expect("made");
            for (name, inner) in names {
                make(&path.join(name), inner, files);
            }
            chmod(*mode);
        }
        Made::File(size, mode) => {
            let bytes: Vec<u8> = (0..*size).map(|at| (at * 31 + size) as u8).collect();
            std::fs::write(path, bytes).expect("written");
            chmod(*mode);
            files.push(path.to_owned());
        }
        Made::Symlink(text) => std::os::unix::fs::symlink(text, path).expect("linked"),
        Made::HardLink(_) if files.is_empty() => {}
        Made::HardLink(number) => {
            let first = &files[number % files.len()];
            std::fs::hard_link(first, path).expect("linked");
        }
    }
}

/// What is told of one name: kind and mode, time, what it holds, and the first name of
/// the same inode.
type Told = (u32, i64, i64, Vec<u8>, PathBuf);

fn told(root: &Path) -> BTreeMap<PathBuf, Told> {
    let (mut all, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().expect("looked at");
        let holds = if meta.is_dir() {
            let listed = std::fs::read_dir(&path).expect("listed");
            left.extend(listed.map(|entry| entry.expect("an entry").path()));
            Vec::new()
        } else if meta.is_symlink() {
            std::fs::read_link(&path)
                .expect("a link")
                .as_os_str()
                .as_bytes()
                .to_vec()
        } else {
            std::fs::read(&path).expect("read")
        };
        let own = path.strip_prefix(root).expect("below").to_owned();
        let value = (
            meta.mode(),
            meta.mtime(),
            meta.mtime_nsec(),
            holds,
            own.clone(),
        );
        all.insert(own, (meta.ino(), value));
    }
    let mut firsts: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for (path, (inode, _)) in &all {
        firsts.entry(*inode).or_insert_with(|| path.clone());
    }
    let with_first = |(path, (inode, mut value)): (PathBuf, (u64, Told))| {
        value.4.clone_from(&firsts[&inode]);
        (path, value)
    };
    all.into_iter().map(with_first).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_tree_arrives_as_it_is_and_its_second_copy_sends_nothing(
        names in prop::collection::vec((name(), made()), 0..8),
        superfluous in made(),
        pulls in any::<bool>(),
    ) {
        let site = Site::new();
        let (source, target) = match pulls {
            true => (site.root().join("tree"), site.directory.path().join("copy")),
            false => (site.directory.path().join("tree"), site.root().join("copy")),
        };
        make(&source, &Made::Directory(names, 0o755), &mut Vec::new());
        let mut pool = site.pool();
        let mut options = CopyOptions::default();
        let mut copy = |options: &CopyOptions| {
            let transfer = if pulls {
                let to = LocalTarget::Path {
                    path: target.clone(),
                    directory: false,
                    make: true,
                };
                pool.pull(vec![RemoteSource::Path(b"tree/".to_vec())], to, options)
            } else {
                let to = RemoteTarget::Path {
                    path: b"copy".to_vec(),
                    directory: false,
                    make: true,
                };
                pool.push(vec![LocalSource::Path(source.join(""))], to, options)
            };
            transfer.expect("a transfer").wait()
        };
        let report = copy(&options);
        prop_assert_eq!(report.error, None);
        prop_assert_eq!(report.level, Some(Level::Sealed));
        let wanted = told(&source);
        prop_assert_eq!(report.entries.entries as usize, wanted.len());
        prop_assert_eq!(told(&target), wanted.clone());

        let report = copy(&options);
        prop_assert_eq!(report.error, None);
        prop_assert_eq!((report.bytes.planned, report.bytes.landed), (0, 0));
        prop_assert_eq!(told(&target), wanted.clone());

        make(&target.join("superfluous"), &superfluous, &mut Vec::new());
        let went = told(&target).len() - wanted.len();
        options.rules = TargetRules {
            deletes: Some(DeleteRules {
                everything: true,
                ..DeleteRules::default()
            }),
            ..TargetRules::default()
        };
        let report = copy(&options);
        prop_assert_eq!(report.error, None);
        prop_assert_eq!(report.entries.deleted as usize, went);
        prop_assert_eq!(told(&target), wanted);
    }
}
