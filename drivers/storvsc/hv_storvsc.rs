// SPDX-License-Identifier: GPL-2.0

//! Driver of Hyper-V's storage devices: synthetic SCSI controllers, the disks behind the IDE controller of generation 1 VMs, and
//! virtual Fibre Channel adapters.
//!
//! | module | holds |
//! | --- | --- |
//! | `driver` | binding to a device: probe, removal, hibernation |
//! | `adapter` | commands on their way to the host and back |
//! | `links` | the device's channels, and which of them a command takes |
//! | `chores` | what completions cause to be done in process context |
//! | `scsi` | the kernel's SCSI layer, made safe; the only unsafe code |
#![deny(unsafe_code)]

mod adapter;
mod batches;
mod chores;
mod driver;
mod links;
#[allow(unsafe_code)]
mod scsi;

hv_vmbus::module_param_int!(
    logging_level,
    int,
    1,
    0o644,
    "Logging level, 0 - None, 1 - Error (default), 2 - Warning."
);
hv_vmbus::module_param_int!(
    storvsc_ringbuffer_size,
    int,
    128 * 1024,
    0o444,
    "Ring buffer size (bytes)"
);
hv_vmbus::module_param_int!(
    storvsc_max_hw_queues,
    uint,
    0,
    0o644,
    "Maximum number of hardware queues"
);
hv_vmbus::module_param_int!(
    storvsc_vcpus_per_sub_channel,
    int,
    4,
    0o444,
    "Ratio of VCPUs to subchannels"
);
hv_vmbus::module_param_int!(
    ring_avail_percent_lowater,
    int,
    10,
    0o444,
    "Select a channel if available ring size > this in percent"
);

hv_vmbus::module_vmbus_driver! {
    type: driver::StorvscDriver,
    name: "hv_storvsc_rs",
    authors: ["hyperv-rs contributors"],
    description: "Hyper-V virtual storage driver",
    license: "GPL",
}
