//! What this kernel and machine offer.
//!
//! Leaves to others: judging it and telling the cures. Invariant: looking
//! changes nothing, and what cannot be read is `None`.

mod nic;
mod text;
mod uring;

pub use nic::{Nic, Offloads};
pub use text::sysctl;
pub use uring::{Operation, Uring};

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use text::{line, number};

/// Everything that `haul doctor` tells, as plain data.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernel's release, as uname(2) says it.
    pub kernel_release: String,
    /// Processors that this process may use.
    pub processors: usize,
    /// Main memory in bytes.
    pub memory_bytes: Option<u64>,
    /// io_uring.
    pub uring: Uring,
    /// Memory that may be pinned.
    pub memlock: Memlock,
    /// TCP's limits.
    pub tcp: Tcp,
    /// Open files.
    pub files: Files,
    /// Huge pages.
    pub huge_pages: HugePages,
    /// Network interfaces, loopback included, by name.
    pub nics: Vec<Nic>,
}

/// RLIMIT_MEMLOCK, which zero-copy sends in flight are charged to.
#[derive(Clone, Debug, Serialize)]
pub struct Memlock {
    /// In force, bytes; `None` is unlimited.
    pub soft_bytes: Option<u64>,
    /// What an unprivileged process may raise it to; `None` is unlimited.
    pub hard_bytes: Option<u64>,
    /// CAP_IPC_LOCK: the limit does not count.
    pub exempt: bool,
}

/// The three numbers of tcp_wmem or tcp_rmem, bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Autotuning {
    /// Guaranteed under memory pressure.
    pub min_bytes: u64,
    /// Where a connection starts.
    pub start_bytes: u64,
    /// Where it ends.
    pub max_bytes: u64,
}

/// TCP's limits and algorithms.
#[derive(Clone, Debug, Serialize)]
pub struct Tcp {
    /// net.core.wmem_max: the cap of SO_SNDBUF, bytes.
    pub send_option_max_bytes: Option<u64>,
    /// net.core.rmem_max: the cap of SO_RCVBUF, bytes.
    pub receive_option_max_bytes: Option<u64>,
    /// net.ipv4.tcp_wmem.
    pub send_autotuning: Option<Autotuning>,
    /// net.ipv4.tcp_rmem.
    pub receive_autotuning: Option<Autotuning>,
    /// The default congestion control.
    pub congestion_default: Option<String>,
    /// Loaded algorithms.
    pub congestion_available: Vec<String>,
    /// Those that any user may choose.
    pub congestion_allowed: Vec<String>,
    /// CAP_NET_ADMIN: every available algorithm, and buffers beyond the caps.
    pub net_admin: bool,
}

/// Limits of open files.
#[derive(Clone, Debug, Serialize)]
pub struct Files {
    /// RLIMIT_NOFILE in force; `None` is unlimited.
    pub open_soft: Option<u64>,
    /// What it may be raised to; `None` is unlimited.
    pub open_hard: Option<u64>,
    /// fs.file-max, for the whole machine.
    pub open_system: Option<u64>,
}

/// The kernel's choices for huge pages: the word in brackets.
#[derive(Clone, Debug, Serialize)]
pub struct HugePages {
    /// For anonymous memory: always, madvise or never.
    pub anonymous: Option<String>,
    /// For memory that is shared (shmem_enabled); `deny` forbids it on every
    /// tmpfs, too.
    pub shmem: Option<String>,
}

impl Machine {
    /// Looks at everything once; takes a few milliseconds.
    #[must_use]
    pub fn look() -> Self {
        let capabilities = effective_capabilities();
        let has = |bit: u32| capabilities & (1 << bit) != 0;
        let memlock = getrlimit(Resource::Memlock);
        let open = getrlimit(Resource::Nofile);
        Self {
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            uring: Uring::look(),
            memlock: Memlock {
                soft_bytes: memlock.current,
                hard_bytes: memlock.maximum,
                exempt: has(CAP_IPC_LOCK),
            },
            tcp: Tcp::look(has(CAP_NET_ADMIN)),
            files: Files {
                open_soft: open.current,
                open_hard: open.maximum,
                open_system: number("fs.file-max"),
            },
            huge_pages: HugePages {
                anonymous: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
                shmem: chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
            },
            nics: Nic::look_all(),
        }
    }
}

/// linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
/// linux/capability.h
const CAP_IPC_LOCK: u32 = 14;

impl Tcp {
    fn look(net_admin: bool) -> Self {
        let words = |name: &str| -> Vec<String> {
            sysctl(name)
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        Self {
            send_option_max_bytes: number("net.core.wmem_max"),
            receive_option_max_bytes: number("net.core.rmem_max"),
            send_autotuning: autotuning("net.ipv4.tcp_wmem"),
            receive_autotuning: autotuning("net.ipv4.tcp_rmem"),
            congestion_default: sysctl("net.ipv4.tcp_congestion_control"),
            congestion_available: words("net.ipv4.tcp_available_congestion_control"),
            congestion_allowed: words("net.ipv4.tcp_allowed_congestion_control"),
            net_admin,
        }
    }
}

/// tcp_wmem's or tcp_rmem's three numbers, as they were when this process first
/// asked: workers ask for every connection, and must not pay three calls each.
#[must_use]
pub fn autotuning_seen(name: &'static str) -> Option<Autotuning> {
    static SEEN: Mutex<BTreeMap<&'static str, Option<Autotuning>>> = Mutex::new(BTreeMap::new());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    *seen.entry(name).or_insert_with(|| autotuning(name))
}

/// tcp_wmem's or tcp_rmem's three numbers.
#[must_use]
pub fn autotuning(name: &str) -> Option<Autotuning> {
    let text = sysctl(name)?;
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    Some(Autotuning {
        min_bytes: numbers.next()?,
        start_bytes: numbers.next()?,
        max_bytes: numbers.next()?,
    })
}

/// The word in brackets, as in "always [madvise] never".
fn chosen(path: &str) -> Option<String> {
    let text = line(path)?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn memory_bytes() -> Option<u64> {
    let text = line("/proc/meminfo")?;
    let total = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn effective_capabilities() -> u64 {
    let status = line("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_this_machine_and_serializes() {
        let machine = Machine::look();
        assert!(machine.processors >= 1);
        assert!(
            machine
                .kernel_release
                .starts_with(|c: char| c.is_ascii_digit())
        );
        assert!(machine.nics.iter().any(|nic| nic.name == "lo"));
        assert!(machine.tcp.send_autotuning.is_some());
        let json = serde_json::to_value(&machine).expect("plain data");
        assert!(json["uring"]["operations"].is_array());
    }

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "always [madvise] never\n").expect("write");
        let path = file.path().to_str().expect("plain path");
        assert_eq!(chosen(path).as_deref(), Some("madvise"));
    }
}
