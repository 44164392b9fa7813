// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Boots test guests under the emulated host and looks at them from both sides.
//!
//! [`Vm`] is one guest: QEMU with the host plugin, the agent inside, the host's control socket outside,
//! and a watcher on the console. [`scenarios`] are the guest tests, written once and run for the
//! Rust modules (suite `guest`) and for the in-tree C drivers (suite `reference`). The binaries
//! `hv-test`, `hv-bench`, `hv-demo` and `hv-vm` are what `scripts/test`, `scripts/bench`, `scripts/demo` and `scripts/vm`
//! start.
#![forbid(unsafe_code)]

pub mod agent;
pub mod bench;
pub mod console;
pub mod cpio;
pub mod demo;
pub mod disks;
pub mod env;
pub mod interactive;
pub mod ktap;
mod launch;
pub mod memory;
pub mod net;
pub mod patience;
pub mod qmp;
pub mod runner;
pub mod scenarios;
pub mod unit;
pub mod vm;

pub use env::Env;
pub use vm::{Drivers, Vm, VmConfig};
