// SPDX-License-Identifier: GPL-2.0

//! A read-only PTP clock (`/dev/ptpN`).

use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::{c_int, c_void},
    prelude::*,
    sync::Arc,
};
use vmbus_proto::ic::timesync::UnixNanos;

use super::ffi;

/// What a [`PtpClock`] shows.
pub trait ReadClock: Send + Sync + 'static {
    /// Reads the clock. May be called from several threads at once, in process context.
    ///
    /// `None`: it does not know the time (any more), and user space gets `ESTALE`.
    fn read(&self) -> Option<UnixNanos>;
}

/// A registered clock. Every operation but reading fails with `EOPNOTSUPP`.
///
/// Dropping it takes the clock away and waits for readers; may sleep. Open file descriptors stay, and fail.
pub struct PtpClock<T: ReadClock> {
    // INVARIANT: Registered, with a pointer to what `clock` points to as its data.
    ptp: *mut ffi::Ptp,
    clock: Arc<T>,
}

// SAFETY: The registration belongs to no thread, and `ReadClock` asks the same of the data.
unsafe impl<T: ReadClock> Send for PtpClock<T> {}
// SAFETY: A shared reference gives access to the data only.
unsafe impl<T: ReadClock> Sync for PtpClock<T> {}

impl<T: ReadClock> PtpClock<T> {
    /// Registers a clock. `name` is shown in `clock_name`, cut at 31 bytes. May sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if the kernel has no PTP clocks, `ENOMEM`, and what the PTP core returns.
    pub fn register(name: &'static CStr, clock: Arc<T>) -> Result<Self> {
        let data = core::ptr::from_ref::<T>(&clock).cast::<c_void>();
        // SAFETY: `read::<T>` takes a pointer to a `T`. The data stays valid until the clock is unregistered, as `Self`
        // holds a reference until then; if `Self` is forgotten, that reference is never given back.
        let ptp = unsafe { register(name, read::<T>, data) }?;
        Ok(Self { ptp, clock })
    }

    /// What the clock shows.
    pub fn clock(&self) -> &T {
        &self.clock
    }
}

impl<T: ReadClock> Drop for PtpClock<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant, registered; `drop` runs once. No reader is left afterwards, and only then `clock` goes.
        unsafe { unregister(self.ptp) };
    }
}

/// # Safety
///
/// `data` must point to a `T`, `ns` must be valid for writing.
unsafe extern "C" fn read<T: ReadClock>(data: *const c_void, ns: *mut u64) -> c_int {
    // SAFETY: By the requirement of this function.
    let clock = unsafe { &*data.cast::<T>() };
    match clock.read() {
        Some(time) => {
            // SAFETY: By the requirement of this function.
            unsafe { ns.write(time.get()) };
            0
        }
        // CAST: A small number.
        None => -(bindings::ESTALE as c_int),
    }
}

// The shim's functions are not exported, so what generic code calls must stay in this module: hence not inlined.

/// # Safety
///
/// `data` must be what `read` expects until the clock is unregistered.
#[inline(never)]
unsafe fn register(
    name: &'static CStr,
    read: ffi::PtpRead,
    data: *const c_void,
) -> Result<*mut ffi::Ptp> {
    // SAFETY: `name` is a C string; the rest by the requirement of this function.
    from_err_ptr(unsafe { ffi::hv_rs_ptp_register(name.as_char_ptr(), read, data) })
}

/// # Safety
///
/// `ptp` must be registered, and is invalid afterwards.
#[inline(never)]
unsafe fn unregister(ptp: *mut ffi::Ptp) {
    // SAFETY: By the requirement of this function.
    unsafe { ffi::hv_rs_ptp_unregister(ptp) };
}
