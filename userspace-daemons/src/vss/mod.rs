// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hv-vss-daemon`: the host's backups.
//!
//! On FREEZE: hooks, then every file system that can be frozen, those mounted deepest first, the root last. On THAW the other way
//! round. Whatever happens in between, it ends: the host gives up (the device is reset), the daemon is stopped, the limit
//! passes, or the daemon dies, upon which the [watchdog](watchdog) thaws.

mod freeze;
mod hooks;
mod mounts;
mod service;
pub mod watchdog;

pub use freeze::{Freezer, Kernel};
pub use hooks::{Hooks, Phase};
pub use mounts::{select, Mount, Selection};
pub use service::{recover, Daemon, Settings, StartWatchdog};
