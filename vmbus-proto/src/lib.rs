// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The wire formats and the I/O-free decisions of VMBus, shared by guest, host and daemons.
//!
//! Nothing here does I/O, allocates or waits. What the peer sends is parsed from a private copy
//! into checked values; what the peer chooses (types, status codes, flags) stays open: a newtype
//! with constants or flags that keep unknown bits.
//!
//! | module | holds |
//! | --- | --- |
//! | [`guid`], [`class`] | GUIDs and the device classes that VMBus offers |
//! | [`version`] | protocol versions, what each can do, feature flags |
//! | [`tlfs`] | the hypervisor interface: hypercalls, SynIC, MSRs, CPUID, monitor page |
//! | [`msg`] | the VMBus channel messages |
//! | [`gpadl`] | sending and reassembling GPADLs |
//! | [`packet`], [`range`], [`ring`] | ring packets and the ring algorithm, for both sides |
//! | [`connection`], [`channel`] | the client's state machines |
//! | [`placement`] | which CPU takes the interrupts of a channel |
//! | [`util`] | small decisions and tables shared by several modules |
//! | [`ic`] | integration components: heartbeat, shutdown, timesync, KVP, VSS, file copy |
//! | [`net`] | network: the synthetic adapter, NVSP and RNDIS |
//! | [`storvsc`] | storage: SCSI, IDE and Fibre Channel controllers |
//!
//! Sources are cited at each definition: "TLFS" is Microsoft's *Hypervisor Top Level Functional
//! Specification* (by page and heading of the published HTML), `hyperv.h` is Linux'
//! `include/linux/hyperv.h`, "OpenVMM" is Microsoft's open-source VMM.
#![cfg_attr(not(CONFIG_RUST), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(test)]
extern crate std;

// The wire is little-endian and the structs below hold native integers.
#[cfg(not(target_endian = "little"))]
compile_error!("vmbus-proto supports little-endian machines only");

#[macro_use]
mod macros;

pub mod channel;
pub mod class;
pub mod connection;
pub mod gpadl;
pub mod guid;
pub mod ic;
pub mod msg;
pub mod net;
pub mod packet;
pub mod placement;
pub mod range;
pub mod ring;
pub mod storvsc;
pub mod tlfs;
pub mod util;
pub mod version;

pub use guid::Guid;
pub use version::{FeatureFlags, VmbusVersion};

/// Size in bytes of the page in which all VMBus addresses and sizes are counted, whatever the
/// page size of the guest (`HV_HYP_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;
