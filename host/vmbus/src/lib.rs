// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The VMBus half of the emulated Hyper-V host: server, device models, control socket.
//!
//! ```text
//! vCPU threads ── HypercallSink ──> inbox ──> worker thread: engine ── Partition ──> guest
//! control clients ── lines ───────────^                      ├─ server    channel messages, no I/O
//!                                                            ├─ channels  rings in guest memory
//!                                                            └─ devices   heartbeat, shutdown, timesync
//! ```
//!
//! One worker thread does all the work, so nothing in it needs a lock, and no vCPU thread ever waits for it.
#![forbid(unsafe_code)]

mod channel;
mod control;
pub mod device;
mod devices;
mod engine;
mod host;
mod inbox;
mod ring;
pub mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use channel::SendError;
pub use host::{DeviceConfig, DeviceMaker, Host, HostConfig, LogLevelSetter, StartError};
