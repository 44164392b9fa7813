// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The interface of the hypervisor, as far as VMBus and its bring-up need it.
//!
//! Source: TLFS, cited by page and heading of the published HTML; names and numbers that the TLFS
//! leaves out are those of Linux' `include/hyperv/hvgdk_mini.h` and `hvhdk.h` ("hvgdk").

pub mod cpuid;
pub mod hypercall;
pub mod monitor;
pub mod msr;
pub mod synic;

pub use hypercall::{ConnectionId, HvStatus};
pub use synic::{EventFlags, HvMessage, MessageHeader, MessageType};
