// SPDX-License-Identifier: GPL-2.0

//! The ends of the kernel: kexec, crash, panic. The host must let go of our memory before another kernel uses it.
//! And hibernation, as far as it concerns the boot CPU; for the rest see `Connection::suspend`.

use core::ptr;
use kernel::{
    bindings,
    error::to_result,
    ffi::{c_int, c_ulong, c_void},
    prelude::*,
    types::Opaque,
};

use crate::{connection::Connection, cpus, ffi, services::cpu, synic};

/// Handlers for kexec, crash and panic; taken back on drop.
#[pin_data(PinnedDrop)]
pub(crate) struct Handlers {
    #[pin]
    panic: Opaque<bindings::notifier_block>,
}

// SAFETY: Only registered and unregistered.
unsafe impl Send for Handlers {}
// SAFETY: Only registered and unregistered.
unsafe impl Sync for Handlers {}

impl Handlers {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            panic <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writing, and pinned until `drop` unregisters it.
                unsafe {
                    ptr::write(slot, pin_init::zeroed());
                    (*slot).notifier_call = Some(on_panic);
                    // Almost last: others may still want devices.
                    (*slot).priority = c_int::MIN + 1;
                    to_result(ffi::hv_rs_panic_register(slot))?;
                    ffi::hv_setup_kexec_handler(on_kexec);
                    ffi::hv_setup_crash_handler(on_crash);
                    ffi::hv_rs_syscore_register();
                }
                Ok::<(), Error>(())
            }),
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Handlers {
    fn drop(self: Pin<&mut Self>) {
        ffi::hv_rs_syscore_unregister();
        ffi::hv_remove_kexec_handler();
        ffi::hv_remove_crash_handler();
        // SAFETY: Registered by `new`.
        unsafe { ffi::hv_rs_panic_unregister(self.panic.get()) };
    }
}

/// # Safety
/// Called in process context before another kernel is started.
unsafe extern "C" fn on_kexec() {
    if let Some(conn) = Connection::global() {
        conn.unload();
    }
    cpus::remove();
}

/// # Safety
/// Called on the CPU that crashed, with the others stopped, before the crash kernel is started.
unsafe extern "C" fn on_crash(_regs: *mut bindings::pt_regs) {
    if let Some(conn) = Connection::global() {
        conn.unload_atomic();
    }
    // The other CPUs cannot be reached any more.
    // SAFETY: No requirements but to run on the CPU.
    unsafe { ffi::hv_stimer_cleanup(cpu::current()) };
    synic::disable_this_cpu();
}

/// # Safety
/// Called by the panic notifier chain.
unsafe extern "C" fn on_panic(
    _nb: *mut bindings::notifier_block,
    _action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    if let Some(conn) = Connection::global() {
        conn.unload_atomic();
    }
    0
}

/// # Safety
/// Called by `shim.c` on the boot CPU, with interrupts off.
#[no_mangle]
unsafe extern "C" fn hv_rs_synic_suspend() -> c_int {
    synic::disable_this_cpu();
    0
}

/// # Safety
/// As for `hv_rs_synic_suspend`, after it.
#[no_mangle]
unsafe extern "C" fn hv_rs_synic_resume() {
    if let Some(conn) = Connection::global() {
        // Its pages were allocated when the CPU first came online, so this cannot fail.
        let _ = conn.synic.enable_this_cpu(cpu::current());
    }
}
