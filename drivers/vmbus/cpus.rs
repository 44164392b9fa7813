// SPDX-License-Identifier: GPL-2.0

//! CPUs that come and go.

use core::sync::atomic::{AtomicI32, Ordering};
use kernel::{
    bindings,
    error::to_result,
    ffi::{c_int, c_uint},
    prelude::*,
    types::NotThreadSafe,
};

use crate::connection::Connection;

/// While it exists no CPU comes or goes. Not to be nested.
pub(crate) struct CpusReadGuard(NotThreadSafe);

/// Keeps CPUs from coming and going. May sleep.
pub(crate) fn read_lock() -> CpusReadGuard {
    // SAFETY: May sleep; released by the guard.
    unsafe { bindings::cpus_read_lock() };
    CpusReadGuard(NotThreadSafe)
}

impl Drop for CpusReadGuard {
    fn drop(&mut self) {
        // SAFETY: The guard's existence means that the lock is held.
        unsafe { bindings::cpus_read_unlock() };
    }
}

/// The CPU hotplug state, once set up; negative before.
static STATE: AtomicI32 = AtomicI32::new(-1);

/// Has [`Connection::cpu_online`] called on each CPU that is online and on each that comes online,
/// [`Connection::cpu_offline`] on each that goes. Process context.
///
/// # Errors
/// That of the first CPU that failed; undone on the others.
pub(crate) fn setup() -> Result {
    // SAFETY: The callbacks stay valid until `remove`, which comes before the module goes.
    let state = unsafe {
        bindings::__cpuhp_setup_state(
            bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
            c"hyperv/vmbus_rs:online".as_char_ptr(),
            true,
            Some(online),
            Some(offline),
            false,
        )
    };
    if state < 0 {
        return to_result(state);
    }
    STATE.store(state, Ordering::Relaxed);
    Ok(())
}

/// Undoes [`setup`], once: calls `cpu_offline` on each CPU that is online. Process context.
pub(crate) fn remove() {
    let state = STATE.swap(-1, Ordering::Relaxed);
    if state >= 0 {
        // SAFETY: The state was set up, and is removed once.
        unsafe { bindings::__cpuhp_remove_state(state as bindings::cpuhp_state, true) };
    }
}

/// # Safety
/// None: `unsafe` is what the kernel takes.
unsafe extern "C" fn online(cpu: c_uint) -> c_int {
    match Connection::global() {
        Some(conn) => conn.cpu_online(cpu).map_or_else(|e| e.to_errno(), |()| 0),
        None => 0,
    }
}

/// # Safety
/// None: `unsafe` is what the kernel takes.
unsafe extern "C" fn offline(cpu: c_uint) -> c_int {
    match Connection::global() {
        Some(conn) => conn.cpu_offline(cpu).map_or_else(|e| e.to_errno(), |()| 0),
        None => 0,
    }
}
