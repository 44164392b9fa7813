// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-kvp-daemon`: the host's "Data Exchange".
//!
//! Messages are [`vmbus_proto::ic::kvp::DeviceMessage`]s.

mod ip;
mod pool;
mod service;
mod system;

pub use ip::{entries, parse_addresses, IpInfo};
pub use pool::{Pools, Record, DIRECTORY};
pub use service::{Daemon, Service};
pub use system::{System, KEYS};
