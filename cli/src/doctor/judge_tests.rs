//! Tests of doctor's judgements on machines made for the purpose.
//!
//! Leaves to others: looking at the real one. Invariant: every level other
//! than ok comes with a cure.

use super::super::finding::worst;
use super::*;

/// A machine on which nothing is to be bettered.
fn good() -> Machine {
    let mut machine = Machine::look();
    machine.kernel_release = "6.12.3-generic".to_owned();
    machine.uring.refused = None;
    machine.uring.disabled = Some(0);
    machine.uring.deferred_work = true;
    for operation in &mut machine.uring.operations {
        operation.supported = true;
    }
    machine.memlock.exempt = true;
    let tuned = Some(Autotuning {
        min_bytes: 4_096,
        start_bytes: 65_536,
        max_bytes: 6 << 20,
    });
    machine.tcp.send_autotuning = tuned;
    machine.tcp.receive_autotuning = tuned;
    machine.tcp.congestion_available = vec!["cubic".to_owned(), "bbr".to_owned()];
    machine.tcp.congestion_allowed = vec!["cubic".to_owned(), "bbr".to_owned()];
    machine.files.open_hard = Some(65_536);
    machine.huge_pages.shmem = Some("never".to_owned());
    machine.nics.retain(|nic| nic.name == "lo");
    machine
}

/// The one finding of `machine` that is not ok.
fn only_bad(machine: &Machine) -> Finding {
    let bad: Vec<Finding> = judge(machine)
        .into_iter()
        .filter(|finding| finding.level != Severity::Ok)
        .collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(bad[0].cure.is_some(), "{bad:?}");
    bad[0].clone()
}

#[test]
fn a_good_machine_is_ok() {
    let findings = judge(&good());
    assert_eq!(worst(&findings), Severity::Ok, "{findings:?}");
}

#[test]
fn a_forbidden_ring_stops_haul_and_names_the_sysctl() {
    let mut machine = good();
    machine.uring.refused = Some("Operation not permitted".to_owned());
    machine.uring.disabled = Some(2);
    let bad = only_bad(&machine);
    assert_eq!(bad.level, Severity::Stop);
    assert_eq!(
        bad.cure.as_deref(),
        Some("sysctl -w kernel.io_uring_disabled=0")
    );
    machine.uring.disabled = Some(0);
    machine.uring.seccomp_mode = Some(2);
    assert!(only_bad(&machine).found.contains("seccomp"));
}

#[test]
fn an_old_kernel_stops_haul() {
    let mut machine = good();
    machine.kernel_release = "5.15.0-91-generic".to_owned();
    assert_eq!(only_bad(&machine).level, Severity::Stop);
    machine.kernel_release = "6.1.0".to_owned();
    assert_eq!(only_bad(&machine).level, Severity::Slow);
}

#[test]
fn small_limits_are_slow_and_have_a_command() {
    let mut machine = good();
    machine.memlock.exempt = false;
    machine.memlock.soft_bytes = Some(8 << 20);
    machine.memlock.hard_bytes = Some(8 << 20);
    let bad = only_bad(&machine);
    assert!(bad.cure.is_some_and(|cure| cure.contains("prlimit")));
    // 8 MiB a round trip.
    assert!(
        bad.haul
            .contains("at most 8389 MB/s at 1 ms round trip, 168 MB/s at 50 ms")
    );
    let mut machine = good();
    machine.tcp.send_autotuning = Some(Autotuning {
        min_bytes: 4_096,
        start_bytes: 16_384,
        max_bytes: 1 << 20,
    });
    assert_eq!(
        only_bad(&machine).cure.as_deref(),
        Some("sysctl -w net.ipv4.tcp_wmem=\"4096 16384 4194304\"")
    );
    let mut machine = good();
    machine.files.open_hard = Some(1024);
    assert_eq!(
        only_bad(&machine).cure.as_deref(),
        Some("sudo prlimit --pid $$ --nofile=4096:4096")
    );
}

#[test]
fn bbr_that_is_missing_or_not_allowed_is_slow() {
    let mut machine = good();
    machine.tcp.congestion_available = vec!["cubic".to_owned()];
    assert_eq!(only_bad(&machine).cure.as_deref(), Some("modprobe tcp_bbr"));
    let mut machine = good();
    machine.tcp.net_admin = false;
    machine.tcp.congestion_allowed = vec!["reno".to_owned(), "cubic".to_owned()];
    assert!(
        only_bad(&machine)
            .cure
            .is_some_and(|cure| cure.contains("reno cubic bbr"))
    );
}

#[test]
fn an_interface_without_offloads_names_ethtool() {
    let mut machine = good();
    let mut eth = machine.nics[0].clone();
    eth.name = "eth0".to_owned();
    eth.is_virtual = false;
    eth.state = Some("up".to_owned());
    eth.offloads.scatter_gather = Some(false);
    eth.offloads.tcp_segmentation = Some(false);
    eth.offloads.generic_segmentation = Some(true);
    eth.offloads.generic_receive = None;
    machine.nics.push(eth);
    assert_eq!(
        only_bad(&machine).cure.as_deref(),
        Some("ethtool -K eth0 sg on tso on")
    );
}

#[test]
fn denied_huge_pages_slow_what_lands_on_tmpfs() {
    let mut machine = good();
    machine.huge_pages.shmem = Some("deny".to_owned());
    let bad = only_bad(&machine);
    assert_eq!((bad.level, bad.topic.as_str()), (Severity::Slow, "tmpfs"));
    // A kernel without them is as good as it gets.
    machine.huge_pages.shmem = None;
    assert_eq!(worst(&judge(&machine)), Severity::Ok);
}
