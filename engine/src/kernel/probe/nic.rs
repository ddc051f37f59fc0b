//! Network interfaces: what decides whether zero-copy and large segments pay.
//!
//! Leaves to others: which interface a route takes. Invariant: only reads
//! /sys/class/net and asks with ethtool's read-only commands.

use super::text::line;
use rustix::net::{AddressFamily, SocketType, socket};
use serde::Serialize;
use std::os::fd::{AsRawFd, OwnedFd};

/// One network interface.
#[derive(Clone, Debug, Serialize)]
pub struct Nic {
    /// As ip-link(8) shows it.
    pub name: String,
    /// Largest packet, bytes.
    pub mtu_bytes: Option<u32>,
    /// Megabits per second, where the driver says.
    pub speed_mbit: Option<u32>,
    /// up, down, unknown…
    pub state: Option<String>,
    /// The driver's name; `None` for loopback, bridges, tunnels.
    pub driver: Option<String>,
    /// No device behind it: zero-copy sends are copied there.
    pub is_virtual: bool,
    /// What it takes over from the processor.
    pub offloads: Offloads,
}

/// Offloads; `None` where the driver does not tell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Offloads {
    /// Scatter-gather: without it zero-copy sends are copied.
    pub scatter_gather: Option<bool>,
    /// TCP segmentation in the device.
    pub tcp_segmentation: Option<bool>,
    /// Generic segmentation in the kernel.
    pub generic_segmentation: Option<bool>,
    /// Generic receive aggregation.
    pub generic_receive: Option<bool>,
}

/// linux/ethtool.h
mod command {
    pub const GET_SCATTER_GATHER: u32 = 0x18;
    pub const GET_TSO: u32 = 0x1e;
    pub const GET_GSO: u32 = 0x23;
    pub const GET_GRO: u32 = 0x2b;
}
/// linux/sockios.h
const SIOCETHTOOL: libc::Ioctl = 0x8946;

impl Nic {
    pub(super) fn look_all() -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir("/sys/class/net") else {
            return Vec::new();
        };
        let asker = socket(AddressFamily::INET, SocketType::DGRAM, None).ok();
        let mut nics: Vec<Self> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            // Files such as bonding_masters lie there too.
            .filter(|name| line(&format!("/sys/class/net/{name}/mtu")).is_some())
            .map(|name| Self::look(name, asker.as_ref()))
            .collect();
        nics.sort_by(|a, b| a.name.cmp(&b.name));
        nics
    }

    fn look(name: String, asker: Option<&OwnedFd>) -> Self {
        let folder = format!("/sys/class/net/{name}");
        let file = |what: &str| line(&format!("{folder}/{what}"));
        let driver = std::fs::read_link(format!("{folder}/device/driver"))
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let ask = |command: u32| ethtool(asker?, &name, command);
        Self {
            mtu_bytes: file("mtu").and_then(|text| text.parse().ok()),
            // An unknown speed reads as -1 or is an error.
            speed_mbit: file("speed").and_then(|text| text.parse().ok()),
            state: file("operstate"),
            is_virtual: !std::path::Path::new(&format!("{folder}/device")).exists(),
            driver,
            offloads: Offloads {
                scatter_gather: ask(command::GET_SCATTER_GATHER),
                tcp_segmentation: ask(command::GET_TSO),
                generic_segmentation: ask(command::GET_GSO),
                generic_receive: ask(command::GET_GRO),
            },
            name,
        }
    }
}

/// struct ethtool_value
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Asks for one boolean.
fn ethtool(asker: &OwnedFd, name: &str, command: u32) -> Option<bool> {
    if name.len() >= libc::IFNAMSIZ {
        return None;
    }
    let mut value = Value { command, data: 0 };
    // SAFETY: `ifreq` is plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the commands above read and write one `ethtool_value` through
    // ifru_data, and `value` and `request` outlive the call.
    let result = unsafe { libc::ioctl(asker.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    (result == 0).then_some(value.data != 0)
}
