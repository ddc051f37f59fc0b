//! What the tests of this folder share: plans, entries, and file systems of
//! their own.
//!
//! Leaves to others: all assertions. Invariant: a mount is taken down with its
//! value, and where none can be made the test says so and passes.

use crate::protocol::TransferId;
use crate::protocol::plan::Plan;
use crate::protocol::wire::{Answer, Data, Entry, EntryKind, Offer, Verdict};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file of `size` as a sender offers it.
pub fn entry(name: &str, size: u64) -> Entry {
    Entry {
        name: name.as_bytes().to_vec(),
        kind: EntryKind::File,
        size,
        mode: 0o640,
        mtime_seconds: 1_234_567_890,
        mtime_nanos: 123_456_789,
        data: Data::Everywhere,
        ..Entry::default()
    }
}

/// The plan of whole files of these sizes, or of one stream.
pub fn plan(sizes: &[Option<u64>], chunk_bytes: u32) -> Plan {
    plan_of(sizes, chunk_bytes, &Verdict::Whole)
}

/// The same where the receiver says so of each.
pub fn plan_of(sizes: &[Option<u64>], chunk_bytes: u32, verdict: &Verdict) -> Plan {
    let entries = sizes.iter().map(|size| {
        let mut entry = entry("file", size.unwrap_or(0));
        if size.is_none() {
            entry.kind = EntryKind::Stream;
        }
        entry
    });
    let offer = Offer {
        folders: Vec::new(),
        users: Vec::new(),
        groups: Vec::new(),
        transfer: TransferId([1; 16]),
        segment: 0,
        last: true,
        entries: entries.collect(),
    };
    let answer = Answer {
        transfer: TransferId([1; 16]),
        segment: 0,
        verdicts: vec![verdict.clone(); sizes.len()],
        digest: [0; 16],
    };
    Plan::new(&offer, &answer, chunk_bytes).expect("a plan")
}

/// Bytes that differ from place to place.
pub fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .expect("lists")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("text")
        })
        .filter(|name| name != "lost+found")
        .collect();
    names.sort();
    names
}

/// The whole of a held file.
pub fn contents(file: &impl AsFd) -> Vec<u8> {
    let fd: OwnedFd = file.as_fd().try_clone_to_owned().expect("a descriptor");
    let mut all = Vec::new();
    let mut file = File::from(fd);
    std::io::Seek::rewind(&mut file).expect("seeks");
    file.read_to_end(&mut all).expect("reads");
    all
}

/// Runs a command silently; true when it succeeded.
pub fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A file system of the test's own.
pub struct Mount {
    directory: tempfile::TempDir,
}

impl Mount {
    /// A tmpfs of `bytes`; `None`, said aloud, without the right to mount.
    pub fn tmpfs(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("directory");
        let mount = Self { directory };
        std::fs::create_dir(mount.path()).expect("mount point");
        let size = format!("size={bytes}");
        let point = mount.path();
        let point = point.to_str().expect("text");
        if run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", point]) {
            return Some(mount);
        }
        crate::kernel::skip("no tmpfs can be mounted here");
        None
    }

    /// "ext4" or "xfs" in a file of `mebibytes`; `None`, said aloud, where it
    /// cannot be made.
    pub fn disk(kind: &str, mebibytes: u64) -> Option<Self> {
        Self::disk_made_with(kind, mebibytes, &[])
    }

    /// The same, with options for mkfs.
    pub fn disk_made_with(kind: &str, mebibytes: u64, options: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().expect("directory");
        let mount = Self { directory };
        let image = mount.image();
        let file = File::create(&image).expect("image");
        file.set_len(mebibytes << 20).expect("length");
        std::fs::create_dir(mount.path()).expect("mount point");
        let (image, point) = (image.to_str().expect("text"), mount.path());
        let point = point.to_str().expect("text");
        let make = format!("mkfs.{kind}");
        let made = run(&make, &[&["-q", image], options].concat());
        if made && run("mount", &["-o", "loop", "-t", kind, image, point]) {
            return Some(mount);
        }
        crate::kernel::skip(&format!("no {kind} can be made and mounted here"));
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    /// The file that it lies in.
    pub fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Turns over one byte of each sector of the image that starts with
    /// `marker`, below every cache of the mounted file system.
    pub fn damage(&self, marker: &[u8]) {
        let open = File::options().read(true).write(true).open(self.image());
        let image = open.expect("image");
        let mut all = vec![0; image.metadata().expect("metadata").len() as usize];
        image.read_exact_at(&mut all, 0).expect("reads");
        let mut found = false;
        for (sector, bytes) in all.chunks(512).enumerate() {
            if bytes.starts_with(marker) {
                let place = sector as u64 * 512;
                image.write_all_at(&[!marker[0]], place).expect("writes");
                found = true;
            }
        }
        assert!(found, "the marker is on the disk");
    }

    /// Makes it read-only.
    pub fn freeze(&self) -> bool {
        let point = self.path();
        run(
            "mount",
            &["-o", "remount,ro", point.to_str().expect("text")],
        )
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let point = self.path();
        run("umount", &["-l", point.to_str().expect("text")]);
    }
}
