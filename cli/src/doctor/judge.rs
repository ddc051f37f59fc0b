//! The judgements: what each thing on this machine means for haul.
//!
//! Leaves to others: looking, printing. Invariant: a finding that is not ok
//! has a cure, which is a command or a kernel to boot.

use super::finding::{Finding, Severity};
use crate::size::format_size;
use haul_engine::kernel::probe::{Autotuning, Machine, Nic};

/// Both buffers of a data connection should reach this, bytes.
const BUFFER_BYTES_WANTED: u64 = 4 * 1024 * 1024;
/// Zero-copy sends in flight of one worker, and some more, bytes.
const MEMLOCK_BYTES_WANTED: u64 = 64 * 1024 * 1024;
/// Descriptors that haul uses at most: for connections, and for files at once.
const FILES_WANTED: u64 = 4096;
/// What an unpatched round trip of a long path takes, seconds, for examples.
const LONG_PATH_SECONDS: f64 = 0.05;
/// … and one within a data center.
const SHORT_PATH_SECONDS: f64 = 0.001;

/// Every finding, the ones that stop haul first.
pub(super) fn judge(machine: &Machine) -> Vec<Finding> {
    let mut findings = vec![kernel(machine), uring(machine)];
    if machine.uring.works() {
        findings.push(zero_copy(machine));
        findings.push(operations(machine));
    }
    findings.extend([
        memlock(machine),
        buffers(
            "send buffers",
            "net.ipv4.tcp_wmem",
            "net.core.wmem_max",
            machine.tcp.send_autotuning,
            machine.tcp.send_option_max_bytes,
        ),
        buffers(
            "receive buffers",
            "net.ipv4.tcp_rmem",
            "net.core.rmem_max",
            machine.tcp.receive_autotuning,
            machine.tcp.receive_option_max_bytes,
        ),
        congestion(machine),
        files(machine),
    ]);
    findings.push(shared_memory(machine));
    findings.extend(machine.nics.iter().filter(|nic| in_use(nic)).map(nic));
    findings
}

/// A finding.
fn finding(
    topic: impl Into<String>,
    level: Severity,
    found: impl Into<String>,
    haul: impl Into<String>,
    cure: Option<String>,
) -> Finding {
    Finding {
        topic: topic.into(),
        level,
        found: found.into(),
        haul: haul.into(),
        cure,
    }
}

/// The kernel's version: deferred completions need 6.1.
fn kernel(machine: &Machine) -> Finding {
    let release = &machine.kernel_release;
    let found = format!(
        "Linux {release}, {} processors{}",
        machine.processors,
        machine
            .memory_bytes
            .map_or_else(String::new, |bytes| format!(", {}", format_size(bytes)))
    );
    match version(release) {
        Some(version) if version < (6, 1) => finding(
            "kernel",
            Severity::Stop,
            found,
            "needs Linux 6.1 or later for its rings",
            Some("install a kernel of 6.1 or later, and boot it".to_owned()),
        ),
        Some(version) if version < (6, 2) => finding(
            "kernel",
            Severity::Slow,
            found,
            "works; whether zero-copy sends were copied cannot be told before Linux 6.2",
            Some("install a kernel of 6.2 or later, and boot it".to_owned()),
        ),
        _ => finding(
            "kernel",
            Severity::Ok,
            found,
            "has all that haul uses",
            None,
        ),
    }
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether a ring can be made.
fn uring(machine: &Machine) -> Finding {
    let uring = &machine.uring;
    let Some(refused) = &uring.refused else {
        if uring.deferred_work {
            return finding(
                "io_uring",
                Severity::Ok,
                "rings with deferred completions can be made",
                "one ring for each worker thread",
                None,
            );
        }
        return finding(
            "io_uring",
            Severity::Stop,
            "rings can be made, but not with SINGLE_ISSUER and DEFER_TASKRUN",
            "cannot work without them",
            Some("install a kernel of 6.1 or later, and boot it".to_owned()),
        );
    };
    if uring.locks_too_much {
        return finding(
            "io_uring",
            Severity::Stop,
            "the rings of a copy lock more memory than RLIMIT_MEMLOCK allows",
            "cannot make its rings",
            Some(format!(
                "sudo prlimit --pid $$ --memlock={MEMLOCK_BYTES_WANTED}:{MEMLOCK_BYTES_WANTED}"
            )),
        );
    }
    let (why, cure) = match (uring.disabled, uring.seccomp_mode) {
        (Some(2), _) => (
            "kernel.io_uring_disabled is 2".to_owned(),
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        (Some(1), _) => (
            "kernel.io_uring_disabled is 1: only root and one group may".to_owned(),
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        (_, Some(2)) => (
            "a seccomp filter is in force, as containers have it".to_owned(),
            "start the container with --security-opt seccomp=unconfined, or with a profile that allows io_uring_setup, io_uring_enter and io_uring_register",
        ),
        _ => (
            "no sysctl forbids it".to_owned(),
            "boot a kernel built with CONFIG_IO_URING=y",
        ),
    };
    finding(
        "io_uring",
        Severity::Stop,
        format!("a ring cannot be made ({refused}); {why}"),
        "cannot work without io_uring",
        Some(cure.to_owned()),
    )
}

/// Zero-copy sends.
fn zero_copy(machine: &Machine) -> Finding {
    if machine.uring.supports("SENDMSG_ZC") {
        finding(
            "zero-copy sends",
            Severity::Ok,
            "SENDMSG_ZC is there",
            "used where the route's interface does not copy them (loopback, veth and interfaces without scatter-gather do)",
            None,
        )
    } else {
        finding(
            "zero-copy sends",
            Severity::Slow,
            "SENDMSG_ZC is missing",
            "sends with SENDMSG, which copies",
            Some("install a kernel of 6.1 or later, and boot it".to_owned()),
        )
    }
}

/// The operations that every transfer uses, and those that some do.
fn operations(machine: &Machine) -> Finding {
    let missing = |names: &[&'static str]| -> Vec<&'static str> {
        names
            .iter()
            .copied()
            .filter(|name| !machine.uring.supports(name))
            .collect()
    };
    let needed = missing(&["RECV", "SENDMSG", "WRITE", "POLL_ADD", "ASYNC_CANCEL"]);
    let useful = missing(&[
        "READ_FIXED",
        "WRITE_FIXED",
        "MADVISE",
        "SPLICE",
        "FALLOCATE",
    ]);
    let cure = Some("install a kernel of 6.1 or later, and boot it".to_owned());
    if !needed.is_empty() {
        finding(
            "ring operations",
            Severity::Stop,
            format!("missing: {}", needed.join(", ")),
            "cannot work without them",
            cure,
        )
    } else if !useful.is_empty() {
        finding(
            "ring operations",
            Severity::Slow,
            format!("missing: {}", useful.join(", ")),
            "takes the next best way",
            cure,
        )
    } else {
        finding(
            "ring operations",
            Severity::Ok,
            "all that haul uses are there",
            "chooses by what is measured",
            None,
        )
    }
}

/// Memory that zero-copy sends may pin.
fn memlock(machine: &Machine) -> Finding {
    let limit = &machine.memlock;
    let topic = "memory lock";
    if limit.exempt {
        return finding(
            topic,
            Severity::Ok,
            "CAP_IPC_LOCK: the limit does not count",
            "pins what zero-copy sends and registered buffers need",
            None,
        );
    }
    let Some(bytes) = limit.soft_bytes else {
        return finding(
            topic,
            Severity::Ok,
            "unlimited",
            "pins what zero-copy sends and registered buffers need",
            None,
        );
    };
    let found = format!("RLIMIT_MEMLOCK is {}", format_size(bytes));
    if bytes >= MEMLOCK_BYTES_WANTED {
        return finding(
            topic,
            Severity::Ok,
            found,
            "pins what zero-copy sends and registered buffers need",
            None,
        );
    }
    let within = limit
        .hard_bytes
        .is_none_or(|hard| hard >= MEMLOCK_BYTES_WANTED);
    finding(
        topic,
        Severity::Slow,
        found,
        format!(
            "fits zero-copy sends to it, which all transfers of this user share: at most {:.0} MB/s at {:.0} ms round trip, {:.0} MB/s at {:.0} ms; reads into plain buffers",
            bytes as f64 / SHORT_PATH_SECONDS / 1e6,
            SHORT_PATH_SECONDS * 1e3,
            bytes as f64 / LONG_PATH_SECONDS / 1e6,
            LONG_PATH_SECONDS * 1e3,
        ),
        Some(if within {
            format!("ulimit -l {}", MEMLOCK_BYTES_WANTED / 1024)
        } else {
            format!("sudo prlimit --pid $$ --memlock={MEMLOCK_BYTES_WANTED}:{MEMLOCK_BYTES_WANTED}")
        }),
    )
}

/// One direction's socket buffers.
fn buffers(
    topic: &str,
    tuned_name: &str,
    option_name: &str,
    tuned: Option<Autotuning>,
    option_max: Option<u64>,
) -> Finding {
    let Some(tuned) = tuned else {
        return finding(
            topic,
            Severity::Slow,
            format!("{tuned_name} cannot be read"),
            "leaves the kernel's autotuning on",
            None,
        );
    };
    let found = format!(
        "{tuned_name} ends at {}{}",
        format_size(tuned.max_bytes),
        option_max.map_or_else(String::new, |bytes| format!(
            ", {option_name} is {}",
            format_size(bytes)
        ))
    );
    let cure = |bytes: u64| {
        format!(
            "sysctl -w {tuned_name}=\"{} {} {bytes}\"",
            tuned.min_bytes, tuned.start_bytes
        )
    };
    if tuned.max_bytes >= BUFFER_BYTES_WANTED {
        // Half of a receive buffer is the kernel's own bookkeeping, so that
        // this is an upper bound.
        let rate = tuned.max_bytes as f64 / LONG_PATH_SECONDS / 1e6;
        return finding(
            topic,
            Severity::Ok,
            found,
            format!(
                "leaves autotuning on; at most {rate:.0} MB/s a connection at {:.0} ms round trip, so give -n more on long fast paths",
                LONG_PATH_SECONDS * 1e3
            ),
            None,
        );
    }
    let set = option_max.unwrap_or(0);
    finding(
        topic,
        Severity::Slow,
        found,
        if set > tuned.max_bytes {
            format!(
                "sets the buffers itself, to at most {}, where autotuning ends lower",
                format_size(set)
            )
        } else {
            "leaves autotuning on, which ends there".to_owned()
        },
        Some(cure(BUFFER_BYTES_WANTED)),
    )
}

/// bbr for long or lossy paths.
fn congestion(machine: &Machine) -> Finding {
    let tcp = &machine.tcp;
    let topic = "congestion control";
    let found = format!(
        "{} by default; available: {}",
        tcp.congestion_default.as_deref().unwrap_or("unknown"),
        tcp.congestion_available.join(", ")
    );
    let has = |names: &[String]| names.iter().any(|name| name == "bbr");
    if !has(&tcp.congestion_available) {
        return finding(
            topic,
            Severity::Slow,
            found,
            "uses what there is; on long paths with loss bbr carries many times more",
            Some("modprobe tcp_bbr".to_owned()),
        );
    }
    if !tcp.net_admin && !has(&tcp.congestion_allowed) {
        let mut allowed = tcp.congestion_allowed.clone();
        allowed.push("bbr".to_owned());
        return finding(
            topic,
            Severity::Slow,
            found,
            "may not choose bbr here, and uses the default",
            Some(format!(
                "sysctl -w net.ipv4.tcp_allowed_congestion_control=\"{}\"",
                allowed.join(" ")
            )),
        );
    }
    finding(
        topic,
        Severity::Ok,
        found,
        "chooses cubic on loopback and short paths, bbr on long or lossy ones",
        None,
    )
}

/// Descriptors, of which haul takes as many as the hard limit allows.
fn files(machine: &Machine) -> Finding {
    let topic = "open files";
    let found = match machine.files.open_hard {
        Some(limit) => format!("RLIMIT_NOFILE can be raised to {limit}"),
        None => "unlimited".to_owned(),
    };
    match machine.files.open_hard {
        Some(limit) if limit < FILES_WANTED => finding(
            topic,
            Severity::Slow,
            found,
            "raises it so far, opens fewer files at once, and may have fewer connections or sessions",
            Some(format!(
                "sudo prlimit --pid $$ --nofile={FILES_WANTED}:{FILES_WANTED}"
            )),
        ),
        _ => finding(
            topic,
            Severity::Ok,
            found,
            "raises it so far: one or two for each file of a copy, a few for each connection",
            None,
        ),
    }
}

/// Whether files on tmpfs can be gathered into huge pages, which only `deny`
/// forbids, whatever the mount says.
fn shared_memory(machine: &Machine) -> Finding {
    let shmem = machine.huge_pages.shmem.as_deref();
    let writes = "receives what lands on tmpfs in buffers and writes it, which takes longer";
    match shmem {
        None => finding(
            "tmpfs",
            // Only another kernel betters it.
            Severity::Ok,
            "this kernel is built without transparent huge pages".to_owned(),
            writes,
            None,
        ),
        Some("deny") => finding(
            "tmpfs",
            Severity::Slow,
            "transparent_hugepage/shmem_enabled is deny".to_owned(),
            writes,
            Some("echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled".to_owned()),
        ),
        Some(setting) => finding(
            "tmpfs",
            Severity::Ok,
            format!("transparent_hugepage/shmem_enabled is {setting}"),
            "receives files of 4 MiB and more in place on huge pages there",
            None,
        ),
    }
}

/// Interfaces that carry something.
fn in_use(nic: &Nic) -> bool {
    nic.state.as_deref() != Some("down")
}

/// One interface.
fn nic(nic: &Nic) -> Finding {
    let topic = format!("interface {}", nic.name);
    let mut found = Vec::new();
    if let Some(driver) = &nic.driver {
        found.push(driver.clone());
    }
    if let Some(mtu) = nic.mtu_bytes {
        found.push(format!("MTU {mtu}"));
    }
    if let Some(speed) = nic.speed_mbit {
        found.push(format!("{speed} Mbit/s"));
    }
    let offload = |name: &str, value: Option<bool>| {
        value.map(|on| format!("{name} {}", if on { "on" } else { "off" }))
    };
    found.extend(
        [
            offload("scatter-gather", nic.offloads.scatter_gather),
            offload("TSO", nic.offloads.tcp_segmentation),
            offload("GSO", nic.offloads.generic_segmentation),
            offload("GRO", nic.offloads.generic_receive),
        ]
        .into_iter()
        .flatten(),
    );
    let found = found.join(", ");
    let off: Vec<&str> = [
        ("sg", nic.offloads.scatter_gather),
        ("tso", nic.offloads.tcp_segmentation),
        ("gso", nic.offloads.generic_segmentation),
        ("gro", nic.offloads.generic_receive),
    ]
    .into_iter()
    .filter(|(_, value)| *value == Some(false))
    .map(|(name, _)| name)
    .collect();
    if nic.is_virtual {
        return finding(
            topic,
            Severity::Ok,
            found,
            "no device is behind it: the kernel copies zero-copy sends here, so haul copies them itself",
            None,
        );
    }
    if off.is_empty() {
        return finding(
            topic,
            Severity::Ok,
            found,
            "zero-copy sends can pay here",
            None,
        );
    }
    let haul = if off.contains(&"sg") {
        "the kernel copies zero-copy sends here; more CPU time for each byte"
    } else {
        "more CPU time for each byte"
    };
    let switches: Vec<String> = off.iter().map(|name| format!("{name} on")).collect();
    finding(
        topic,
        Severity::Slow,
        found,
        haul,
        Some(format!("ethtool -K {} {}", nic.name, switches.join(" "))),
    )
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
