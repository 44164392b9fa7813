// SPDX-License-Identifier: GPL-2.0

//! Hyper-V utilities.

use kernel::prelude::*;

struct Utils;

impl kernel::Module for Utils {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Utils)
    }
}

module! {
    type: Utils,
    name: "hv_utils_rs",
    authors: ["hyperv-rs contributors"],
    description: "utils",
    license: "GPL",
}
