// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The user space half of Hyper-V's data exchange, backup and file copy services.
//!
//! | program | device | modules |
//! | --- | --- | --- |
//! | `hv-kvp-daemon` | `/dev/vmbus/hv_kvp` | [`kvp`]: pools, facts about the system; [`net`]: addresses |
//! | `hv-vss-daemon` | `/dev/vmbus/hv_vss` | [`vss`]: mounts, freezing, hooks, the watchdog |
//! | `hv-fcopy-daemon` | `/dev/vmbus/hv_fcopy`, or the channel's rings through UIO | [`fcopy`] |
//!
//! Shared: [`logging`], [`program`] (options, background, signals, readiness), [`device`] (opening, reopening). What a service
//! does with a message is separate from where messages come from, so that tests feed the services
//! through sockets and scratch directories.
//!
//! Messages come from the kernel, which hands on what the host said. Both are checked: nothing in a message can make
//! a daemon panic, write outside of its directories, or stop serving.
#![deny(unsafe_code)]

pub mod commands;
pub mod device;
pub mod fcopy;
pub mod files;
pub mod kvp;
pub mod logging;
pub mod net;
pub mod program;
pub mod vss;
