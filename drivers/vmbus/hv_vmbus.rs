// SPDX-License-Identifier: GPL-2.0

//! VMBus client.

use kernel::prelude::*;

struct Vmbus;

/// A.
#[inline(never)]
pub fn hello() -> u32 {
    5
}

impl kernel::Module for Vmbus {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        pr_info!("hello\n");
        Ok(Vmbus)
    }
}

module! {
    type: Vmbus,
    name: "hv_vmbus_rs",
    authors: ["hyperv-rs contributors"],
    description: "VMBus client for Hyper-V guests",
    license: "GPL",
}
