// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The SCSI target: a direct-access block device, as Hyper-V's virtual disk shows itself. CDB and data buffer
//! in, data and sense out; it knows neither VMBus nor guests.
//!
//! Sources: SPC-4 and SBC-3 of T10; for what Hyper-V answers, OpenVMM `scsidisk` and `storvsp`.

pub mod cdb;
pub mod disk;
pub mod inquiry;
mod mode;
mod reservation;
pub mod sense;
#[cfg(test)]
mod tests;

pub use cdb::{Cdb, CDB_SIZE};
pub use disk::{Disk, DiskConfig, Patience};
pub use sense::{Failure, Outcome, Sense};
