// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The VMBus half of the emulated Hyper-V host: server, device models, control socket.
#![forbid(unsafe_code)]

mod host;

pub use host::{DeviceConfig, Host, HostConfig, LogLevelSetter, StartError};
