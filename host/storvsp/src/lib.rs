// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The storage half of the emulated Hyper-V host ("storvsp"): synthetic SCSI controllers and accelerated IDE disks,
//! as device models of `hv-vmbus-host`.
//!
//! ```text
//! engine's worker ── packet ──> controller ── vmbus_proto::storvsc::server   order, lengths, versions
//!                                  │  ├─ faults      what shall go wrong
//!                                  │  └─ at once ──────────────┐
//!                                  └─ pool: worker threads ──> scsi::Disk ──> backend: image or memory
//!                   <── completion ── controller <── wake ──┘    │
//!                                                              buffer: guest memory, behind the channel's gate
//! ```
//!
//! The engine's worker never waits here: what may have to wait for a disk goes to the pool.
#![forbid(unsafe_code)]

mod args;
mod backend;
mod buffer;
mod cache;
mod control;
mod controller;
mod faults;
mod pool;
mod request;
pub mod scsi;
#[cfg(test)]
mod tests;

use hv_vmbus_host::device::Device;
use hv_vmbus_host::DeviceConfig;

pub use args::{ControllerConfig, Kind};
pub use backend::{Backend, BackendError};
pub use buffer::{Buffer, Direction, Gate, GuestBuffer};
pub use controller::Controller;

/// Makes the device model that `config` names: `scsi0` … `scsi9`, `ide0` … `ide3`. `None`: the name is
/// not one of these.
///
/// # Errors
/// A sentence for the user, about an argument or a disk that cannot be had.
pub fn make(config: &DeviceConfig) -> Option<Result<Box<dyn Device>, String>> {
    let controller = ControllerConfig::parse(&config.name, &config.args)?
        .and_then(|config| Controller::new(&config));
    Some(controller.map(|c| Box::new(c) as Box<dyn Device>))
}
