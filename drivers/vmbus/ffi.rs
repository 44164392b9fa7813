// SPDX-License-Identifier: GPL-2.0

//! The functions of `shim.c`, and those of the kernel that `kernel::bindings` does not have.
//!
//! Kept the same as the C side by hand; each call site argues its safety.

use kernel::{
    bindings,
    ffi::{c_char, c_int, c_uint, c_ulong, c_void},
};

/// What the shim knows of the machine (C: `struct hv_rs_features`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Features {
    /// The kernel runs on Hyper-V and has set up the hypercall page.
    pub(crate) hyperv: bool,
    /// This is the root partition.
    pub(crate) root_partition: bool,
    /// Hyper-V itself runs in a VM.
    pub(crate) nested: bool,
    /// The VM is confidential, or has a paravisor.
    pub(crate) isolated: bool,
    /// SINTs should acknowledge interrupts by themselves.
    pub(crate) auto_eoi: bool,
    /// Interrupt vector of the hypervisor callback.
    pub(crate) callback_vector: u8,
    /// Virtual trust level of this kernel.
    pub(crate) vtl: u8,
}

// The kernel's types have members without size in some configurations.
#[allow(improper_ctypes)]
unsafe extern "C" {
    pub(crate) safe fn hv_rs_c_bus_exists() -> bool;

    #[cfg(CONFIG_TRACE_IRQFLAGS)]
    pub(crate) safe fn hv_rs_hardirq_threaded();

    pub(crate) fn hv_rs_lock_init(
        lock: *mut bindings::raw_spinlock,
        name: *const c_char,
        key: *mut bindings::lock_class_key,
    );
    pub(crate) fn hv_rs_lock(lock: *mut bindings::raw_spinlock) -> c_ulong;
    pub(crate) fn hv_rs_unlock(lock: *mut bindings::raw_spinlock, flags: c_ulong);

    pub(crate) fn hv_rs_features(features: *mut Features);
    pub(crate) safe fn hv_rs_hibernation_supported() -> bool;
    pub(crate) fn hv_rs_vp_index(cpu: c_uint) -> u32;
    pub(crate) fn hv_rs_hypercall(code: u16, input: *const c_void, len: usize) -> u16;
    pub(crate) fn hv_rs_fast_hypercall(code: u16, input: u64) -> u16;

    pub(crate) fn hv_rs_tasklet_schedule(t: *mut bindings::tasklet_struct);

    pub(crate) safe fn hv_rs_nr_cpu_ids() -> c_uint;
    pub(crate) safe fn hv_rs_cpu_usable(cpu: c_uint) -> bool;
    pub(crate) fn hv_rs_cpu_to_node(cpu: c_uint) -> c_int;
    pub(crate) fn hv_rs_alloc_pages(node: c_int, order: c_uint, quiet: bool)
        -> *mut bindings::page;
    pub(crate) fn hv_rs_free_pages(page: *mut bindings::page, order: c_uint);
    pub(crate) fn hv_rs_page_pfn(page: *mut bindings::page) -> u64;
    pub(crate) fn hv_rs_page_address(page: *mut bindings::page) -> *mut c_void;
    pub(crate) fn hv_rs_vmap(pages: *mut *mut bindings::page, count: c_uint) -> *mut c_void;
    pub(crate) fn hv_rs_vunmap(address: *mut c_void);

    pub(crate) fn hv_rs_dma_setup(
        dev: *mut bindings::device,
        parms: *mut bindings::device_dma_parameters,
        mask: *mut u64,
    );
    pub(crate) fn hv_rs_dev_set_name(dev: *mut bindings::device, guid: *const u8) -> c_int;
    pub(crate) fn hv_rs_uevent_modalias(
        env: *mut bindings::kobj_uevent_env,
        guid: *const u8,
    ) -> c_int;
    pub(crate) fn hv_rs_match_driver_override(
        dev: *mut bindings::device,
        drv: *const bindings::device_driver,
    ) -> c_int;
    pub(crate) fn hv_rs_panic_register(nb: *mut bindings::notifier_block) -> c_int;
    pub(crate) fn hv_rs_panic_unregister(nb: *mut bindings::notifier_block);
    pub(crate) safe fn hv_rs_syscore_register();
    pub(crate) safe fn hv_rs_syscore_unregister();

    pub(crate) fn hv_rs_acpi_companion_dev(
        pdev: *mut bindings::platform_device,
    ) -> *mut bindings::device;
    pub(crate) fn hv_rs_walk_windows(
        pdev: *mut bindings::platform_device,
        range: unsafe extern "C" fn(ctx: *mut c_void, start: u64, end: u64),
        ctx: *mut c_void,
        found: unsafe extern "C" fn(ctx: *mut c_void) -> bool,
    ) -> c_int;

    // Exported by the kernel's Hyper-V code (arch/x86/kernel/cpu/mshyperv.c, drivers/hv/hv_common.c,
    // drivers/clocksource/hyperv_timer.c).
    pub(crate) fn hv_get_msr(reg: c_uint) -> u64;
    pub(crate) fn hv_set_msr(reg: c_uint, value: u64);
    pub(crate) fn hv_setup_vmbus_handler(handler: unsafe extern "C" fn());
    pub(crate) safe fn hv_remove_vmbus_handler();
    pub(crate) fn hv_setup_kexec_handler(handler: unsafe extern "C" fn());
    pub(crate) safe fn hv_remove_kexec_handler();
    pub(crate) fn hv_setup_crash_handler(
        handler: unsafe extern "C" fn(regs: *mut bindings::pt_regs),
    );
    pub(crate) safe fn hv_remove_crash_handler();
    pub(crate) fn hv_stimer_cleanup(cpu: c_uint) -> c_int;
    pub(crate) fn hv_setup_dma_ops(dev: *mut bindings::device, coherent: bool);
}
