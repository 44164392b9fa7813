// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Measurements that compare driver stacks: each runs all stacks in turn, several times over, and reports
//! medians as a table and as JSON.

pub mod counts;
pub mod network;
pub mod peer;
pub mod report;
pub mod storage;

use std::fmt;

use crate::Drivers;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often.
    pub runs: u32,
    /// Only workloads whose name contains this.
    pub filter: Option<String>,
    /// Only these stacks.
    pub stacks: Vec<Stack>,
    /// Leave out the guests that are timed.
    pub no_timing: bool,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Stack {
    /// This project's modules.
    Rust,
    /// The kernel's own drivers for Hyper-V.
    C,
    /// The kernel's virtio drivers, on QEMU's devices.
    Virtio,
}

impl Stack {
    /// All, in the order in which they run.
    pub const ALL: [Self; 3] = [Self::Rust, Self::C, Self::Virtio];

    /// What serves the VMBus in the guest.
    pub fn drivers(self) -> Drivers {
        match self {
            Self::Rust => Drivers::Rust,
            Self::C => Drivers::C,
            Self::Virtio => Drivers::None,
        }
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::Virtio => "virtio",
        })
    }
}

/// Functions of the in-tree `hv_vmbus`, which is part of the kernel image. Those of the architecture
/// (`hv_do_hypercall` and so on), which both stacks use, are not among them.
pub fn is_c_bus(function: &str) -> bool {
    const STARTS: [&str; 10] = [
        "vmbus_",
        "__vmbus_",
        "hv_ringbuffer_",
        "hv_pkt_iter_",
        "__hv_pkt_iter_",
        "hv_post_message",
        "hv_copyto_ring",
        "hv_get_bytes_to_read",
        "hv_signal_on_write",
        "relid2channel",
    ];
    STARTS.iter().any(|start| function.starts_with(start))
}

/// Functions of the virtio core and its PCI transport, where those are part of the kernel image.
pub fn is_virtio_bus(function: &str) -> bool {
    const STARTS: [&str; 7] = [
        "virtio_",
        "virtqueue_",
        "__virtqueue_",
        "vring_",
        "__vring_",
        "vp_",
        "detach_buf_",
    ];
    STARTS.iter().any(|start| function.starts_with(start))
}
