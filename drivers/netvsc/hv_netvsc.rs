// SPDX-License-Identifier: GPL-2.0

//! Driver of Hyper-V's synthetic network adapter.
//!
//! | module | holds |
//! | --- | --- |
//! | `driver` | binding to a device: probe, removal, hibernation |
//! | `nic` | the interface: what users set, and what stays when the channel is opened anew |
//! | `configure` | attaching and detaching: everything that must be done anew when a setting changes |
//! | `show` | ethtool, statistics |
//! | `chores` | link changes and the packet filter, in process context |
//! | `session` | the device from the opening of its channel to the closing: buffers, queues |
//! | `control` | questions to the host and their answers |
//! | `queue` | a channel as a queue in both directions; `rx` and `tx` are its parts |
//! | `sections` | the send buffer |
//! | `stats` | counters |
//! | `net` | the kernel's network stack, made safe; the only unsafe code |
#![deny(unsafe_code)]

mod chores;
mod configure;
mod control;
mod driver;
#[cfg(CONFIG_KUNIT = "y")]
#[allow(unsafe_code)] // What `kunit_tests` makes of it.
#[path = "../../kunit/netvsc.rs"]
mod kunit;
#[allow(unsafe_code)]
mod net;
mod nic;
mod queue;
mod rx;
mod sections;
mod session;
mod show;
mod stats;
mod tx;

hv_vmbus::module_param_int!(
    ring_size,
    uint,
    128,
    0o444,
    "Ring buffer size (# of 4K pages)"
);
hv_vmbus::module_param_int!(debug, int, -1, 0o444, "Debug level (0=none,...,16=all)");

hv_vmbus::module_vmbus_driver! {
    type: driver::NetvscDriver,
    name: "hv_netvsc_rs",
    authors: ["hyperv-rs contributors"],
    description: "Hyper-V network driver",
    license: "GPL",
}
