// SPDX-License-Identifier: GPL-2.0

//! The partition's reference time and the real-time clock.

use kernel::{bindings, error::to_result, prelude::*};
use vmbus_proto::ic::timesync::{ClockSample, RefTime, UnixNanos};

use super::ffi;
use crate::sync::{new_irq_lock, IrqLock};

/// The partition's reference time, from the TSC page where there is one. Any context.
#[inline(never)]
pub fn reference_time() -> RefTime {
    RefTime(ffi::hv_rs_reference_time())
}

/// The real-time clock in ns since 1970. Any context but NMI.
#[inline(never)]
pub fn real_time() -> u64 {
    // SAFETY: Safe to call outside of NMI context.
    let ns = unsafe { bindings::ktime_get_real() };
    // The kernel keeps its clock after 1970.
    u64::try_from(ns).unwrap_or(0)
}

/// Steps the real-time clock. Process context, since other CPUs are told.
///
/// # Errors
///
/// `EINVAL` if the kernel refuses the time: it must not be before its own start, counted from 1970.
#[inline(never)]
pub fn set_real_time(to: UnixNanos) -> Result {
    const SECOND: u64 = 1_000_000_000;
    let ts = bindings::timespec64 {
        // CAST: `UnixNanos` is less than 2^63 ns.
        tv_sec: (to.get() / SECOND) as i64,
        tv_nsec: (to.get() % SECOND) as isize,
    };
    // SAFETY: `ts` is valid for reading.
    to_result(unsafe { bindings::do_settimeofday64(&ts) })
}

/// The latest sample of the host's clock: written by the channel's callback, read in any context but NMI.
pub struct SampleCell(Pin<KBox<IrqLock<Option<ClockSample>>>>);

impl SampleCell {
    /// A cell without a sample. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[inline(never)]
    pub fn new() -> Result<Self> {
        let cell = new_irq_lock!(None, c"hv_vmbus_rs::SampleCell");
        Ok(Self(KBox::pin_init(cell, GFP_KERNEL)?))
    }

    /// The sample, if there is one.
    #[inline(never)]
    pub fn get(&self) -> Option<ClockSample> {
        *self.0.lock()
    }

    /// Replaces the sample.
    #[inline(never)]
    pub fn set(&self, sample: Option<ClockSample>) {
        *self.0.lock() = sample;
    }
}
