// SPDX-License-Identifier: GPL-2.0

//! Tasklets: functions called in softirq context, on the CPU that asked for it.

use kernel::{bindings, ffi::c_ulong, prelude::*, types::Opaque};

use crate::ffi;

/// A tasklet. Whoever owns it kills it before it goes.
#[pin_data]
pub(crate) struct Tasklet {
    #[pin]
    inner: Opaque<bindings::tasklet_struct>,
}

// SAFETY: Tasklets may be used from any CPU.
unsafe impl Send for Tasklet {}
// SAFETY: Tasklets may be used from any CPU.
unsafe impl Sync for Tasklet {}

impl Tasklet {
    /// A tasklet that calls `f` with the number that `data` makes of the tasklet's address.
    pub(crate) fn new(
        f: unsafe extern "C" fn(c_ulong),
        data: impl FnOnce(*mut Self) -> c_ulong,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::tasklet_struct| {
                // SAFETY: `slot` is valid for writing. CAST: The only field.
                unsafe { bindings::tasklet_init(slot, Some(f), data(slot.cast())) }
            }),
        })
    }

    /// Has the function called soon on this CPU; once, if it was asked for before and has not begun. Any context.
    #[inline]
    pub(crate) fn schedule(&self) {
        // SAFETY: Initialised by `new`, pinned.
        unsafe { ffi::hv_rs_tasklet_schedule(self.inner.get()) };
    }

    /// Waits until the function neither runs nor will. Nobody but the function itself may schedule it meanwhile. Process
    /// context.
    pub(crate) fn kill(&self) {
        // SAFETY: Initialised by `new`, pinned.
        unsafe { bindings::tasklet_kill(self.inner.get()) };
    }
}
