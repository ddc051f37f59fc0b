//! What io_uring can do here.
//!
//! Leaves to others: which of it haul needs. Invariant: a ring that is created
//! to look is gone when the look ends.

use super::text::{line, sysctl};
use io_uring::{IoUring, Probe, opcode};
use serde::Serialize;

/// io_uring on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Uring {
    /// kernel.io_uring_disabled: 0 anybody, 1 a group and root, 2 nobody;
    /// `None` on kernels before 6.6.
    pub disabled: Option<u32>,
    /// The errno of creating a ring, in words; `None` when it worked.
    pub refused: Option<String>,
    /// … for want of lockable memory.
    pub locks_too_much: bool,
    /// A ring with SINGLE_ISSUER and DEFER_TASKRUN can be made (Linux 6.1).
    pub deferred_work: bool,
    /// The operations that haul knows how to use.
    pub operations: Vec<Operation>,
    /// Processes of a seccomp filter (containers) often refuse rings: mode 2.
    pub seccomp_mode: Option<u32>,
}

/// One operation.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// As the kernel's header calls it, without IORING_OP_.
    pub name: &'static str,
    /// This kernel has it.
    pub supported: bool,
}

/// The operations that haul uses or can use.
const OPERATIONS: [(&str, u8); 14] = [
    ("RECV", opcode::Recv::CODE),
    ("RECVMSG", opcode::RecvMsg::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("SEND_ZC", opcode::SendZc::CODE),
    ("SENDMSG_ZC", opcode::SendMsgZc::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("WRITE", opcode::Write::CODE),
    ("SPLICE", opcode::Splice::CODE),
    ("MADVISE", opcode::Madvise::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("MSG_RING", opcode::MsgRingData::CODE),
];

/// Entries of the rings of a copy within one machine: two of the control plane,
/// one that receives, one that sends.
const RINGS_ENTRIES: [u32; 4] = [256, 256, 1024, 2048];

impl Uring {
    pub(super) fn look() -> Self {
        let mut probe = Probe::new();
        // All at once: what they lock is counted together.
        let rings: std::io::Result<Vec<IoUring>> = RINGS_ENTRIES
            .into_iter()
            .map(|entries| IoUring::builder().setup_cqsize(entries * 2).build(entries))
            .collect();
        let (refused, locks_too_much) = match rings.as_deref() {
            Ok([ring, ..]) => {
                // A kernel before 5.6 has no probe, and supports none of these.
                let _ = ring.submitter().register_probe(&mut probe);
                (None, false)
            }
            Ok([]) => (None, false),
            Err(error) => {
                let errno = rustix::io::Errno::from_io_error(error);
                (
                    Some(error.to_string()),
                    errno == Some(rustix::io::Errno::NOMEM),
                )
            }
        };
        drop(rings);
        let deferred: std::io::Result<IoUring> = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .build(4);
        Self {
            disabled: sysctl("kernel.io_uring_disabled").and_then(|text| text.parse().ok()),
            refused,
            locks_too_much,
            deferred_work: deferred.is_ok(),
            operations: OPERATIONS
                .map(|(name, code)| Operation {
                    name,
                    supported: probe.is_supported(code),
                })
                .to_vec(),
            seccomp_mode: seccomp_mode(),
        }
    }

    /// True when a ring can be made here at all.
    #[must_use]
    pub fn works(&self) -> bool {
        self.refused.is_none()
    }

    /// True when this kernel has the operation of that name.
    #[must_use]
    pub fn supports(&self, name: &str) -> bool {
        self.operations
            .iter()
            .any(|operation| operation.name == name && operation.supported)
    }
}

fn seccomp_mode() -> Option<u32> {
    let status = line("/proc/self/status")?;
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))?;
    mode.trim().parse().ok()
}
