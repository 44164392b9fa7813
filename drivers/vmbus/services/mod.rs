// SPDX-License-Identifier: GPL-2.0

//! What the drivers of the utility devices need of the kernel, and `kernel` does not have: safe layers over single functions.
//! Nothing here knows VMBus.

pub mod chardev;
pub mod clock;
pub mod cpu;
pub mod deferred;
mod ffi;
pub mod once;
pub mod param;
pub mod power;
pub mod ptp;
pub mod rcu;
pub mod reply;
