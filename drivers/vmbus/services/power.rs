// SPDX-License-Identifier: GPL-2.0

//! Power off, reboot and hibernation, carried out by user space.

use kernel::{device::Device, error::to_result, prelude::*};

use super::ffi;

/// Asks user space to shut down and power off; powers off at once if that cannot be started. Any context: a work item of the
/// kernel does it.
#[doc(alias = "orderly_poweroff")]
#[inline(never)]
pub fn orderly_power_off() {
    ffi::hv_rs_orderly_poweroff();
}

/// Asks user space to shut down and reboot; reboots at once if that cannot be started. Any context, as above.
#[inline(never)]
pub fn orderly_reboot() {
    ffi::hv_rs_orderly_reboot();
}

/// Whether this VM can hibernate: it has the ACPI state S4, and is not the root partition.
#[doc(alias = "hv_is_hibernation_supported")]
#[inline(never)]
pub fn can_hibernate() -> bool {
    ffi::hv_rs_can_hibernate()
}

/// Sends a "change" uevent of `dev` with the variable `var`, written `KEY=value`. May sleep.
///
/// # Errors
///
/// `ENOMEM`, and what else the kernel returns.
#[doc(alias = "kobject_uevent_env")]
#[inline(never)]
pub fn send_uevent(dev: &Device, var: &'static CStr) -> Result {
    // CAST: `Device` is a transparent wrapper of `struct device`.
    let dev = core::ptr::from_ref(dev).cast_mut().cast();
    // SAFETY: `dev` is valid as it was made from a reference; `var` lives for ever and is only read.
    to_result(unsafe { ffi::hv_rs_uevent(dev, var.as_char_ptr()) })
}
