//! File systems of a test's own; they need root.
//!
//! Leaves to others: what is done on them. Invariant: each is unmounted with its
//! value, and one that was frozen is thawed before.

use crate::support::{Folder, skip};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own below a fresh folder, unmounted with this.
pub struct Mount(pub Folder);

impl Mount {
    /// None, said aloud, where it cannot be made here.
    pub fn new(kind: &str) -> Option<Self> {
        Self::made_with(kind, &[])
    }

    /// The same, with options for mkfs.
    pub fn made_with(kind: &str, options: &[&str]) -> Option<Self> {
        let folder = Folder::new();
        folder.directory("mount");
        let run = |program: &str, arguments: &[&str]| {
            let done = Command::new(program).args(arguments).output();
            done.is_ok_and(|done| done.status.success())
        };
        let (image, point) = (folder.path("image"), folder.path("mount"));
        let (image, point) = (image.to_string_lossy(), point.to_string_lossy());
        let mounted = match kind {
            "tmpfs" => run(
                "mount",
                &["-t", "tmpfs", "-o", "size=300m", "tmpfs", &point],
            ),
            // By a process of its own, which wants a block device; given up at once, that
            // goes with the mount.
            "exfat" => {
                File::create(&*image)
                    .and_then(|file| file.set_len(300 << 20))
                    .expect("an image");
                let loops = Command::new("losetup")
                    .args(["-f", "--show", &image])
                    .output();
                let device = loops.map(|loops| String::from_utf8_lossy(&loops.stdout).into_owned());
                let device = device.unwrap_or_default();
                let device = device.trim();
                let mounted = run("/usr/sbin/mkfs.exfat", &[&image])
                    && run("/usr/sbin/mount.exfat-fuse", &[device, &point]);
                run("losetup", &["-d", device]);
                mounted
            }
            _ => {
                File::create(&*image)
                    .and_then(|file| file.set_len(400 << 20))
                    .expect("an image");
                let make = format!("/usr/sbin/mkfs.{kind}");
                run(&make, &[&["-q", &image], options].concat())
                    && run("mount", &["-o", "loop", "-t", kind, &image, &point])
            }
        };
        if !mounted {
            skip(&format!("no {kind} can be made and mounted here"));
            return None;
        }
        Some(Self(folder))
    }

    /// Every write waits in the kernel from now on, until what comes back is
    /// dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        self.freezer("-f");
        Frozen(self)
    }

    fn freezer(&self, how: &str) {
        let done = Command::new("/usr/sbin/fsfreeze")
            .arg(how)
            .arg(self.0.path("mount"))
            .status();
        assert!(done.expect("fsfreeze").success(), "fsfreeze {how}");
    }
}

/// What is mounted a second time, unmounted with this.
pub struct Bound(PathBuf);

impl Bound {
    /// Shows `from` at `to`.
    pub fn new(from: &Path, to: PathBuf) -> Self {
        let mut bind = Command::new("mount");
        bind.arg("--bind").arg(from).arg(&to);
        assert!(bind.status().expect("mount").success());
        Self(to)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A file system while it is frozen.
pub struct Frozen<'a>(&'a Mount);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.freezer("-u");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let point = self.0.path("mount");
        let done = Command::new("umount").arg(&point).output();
        if !done.is_ok_and(|done| done.status.success()) {
            // A process that was killed may not be gone yet: it goes with that.
            let _ = Command::new("umount").arg("-l").arg(&point).output();
        }
    }
}
