// SPDX-License-Identifier: GPL-2.0

//! Drivers of Hyper-V's utility devices: heartbeat, guest shutdown, time synchronisation, key-value pairs, backup, file
//! copy.
#![cfg_attr(not(CONFIG_KUNIT = "y"), forbid(unsafe_code))]
#![cfg_attr(CONFIG_KUNIT = "y", deny(unsafe_code))]

mod driver;
mod exchange;
mod heartbeat;
mod ic;
mod shutdown;
mod timesync;

hv_vmbus::module_param_bool!(
    timesync_implicit,
    "If set treat SAMPLE as SYNC when clock is behind"
);

hv_vmbus::module_vmbus_driver! {
    type: driver::UtilsDriver,
    name: "hv_utils_rs",
    authors: ["hyperv-rs contributors"],
    description: "Hyper-V Utilities",
    license: "GPL",
}
