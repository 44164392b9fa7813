// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The network half of the emulated Hyper-V host ("netvsp"): synthetic NICs, as device models of `hv-vmbus-host`.
//!
//! ```text
//! engine's worker ── packet ──> nic ── vmbus_proto::net::server   order, lengths, versions
//!                                ├─ rndis, oid                     requests
//!                                ├─ tx: sections, pages ──> frames ──> hv_net::Backend
//!                                └─ rx: filter, RSS <────── frames <── hv_net::Backend
//!                 <── packets ── post: order, room, faults
//! ```
//!
//! The engine's worker never waits here, and neither does a back end: what has to wait for a file descriptor has a
//! thread of its own.
#![forbid(unsafe_code)]

mod args;
mod buffers;
mod control;
mod faults;
mod nic;
mod offload;
mod oid;
mod post;
mod rndis;
mod rx;
#[cfg(test)]
mod tests;
mod tx;

use hv_vmbus_host::device::Device;
use hv_vmbus_host::DeviceConfig;

pub use args::NicConfig;
pub use nic::Nic;
pub use offload::Offloads;

/// Makes the NIC that `config` names, `net0` … `net7`. `None`: the name is not one of these.
///
/// # Errors
/// A sentence for the user, about an argument or a back end that cannot be had.
pub fn make(config: &DeviceConfig) -> Option<Result<Box<dyn Device>, String>> {
    let nic = NicConfig::parse(&config.name, &config.args)?.and_then(Nic::new);
    Some(nic.map(|nic| Box::new(nic) as Box<dyn Device>))
}
