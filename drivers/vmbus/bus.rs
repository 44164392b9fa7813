// SPDX-License-Identifier: GPL-2.0

//! The Linux bus named `vmbus`.

use core::cell::UnsafeCell;
use kernel::{bindings, error::to_result, ffi::c_int, prelude::*};

use crate::{
    connection::Connection,
    device::Device,
    driver::{self, RawDriver},
    ffi, sysfs,
};

/// The bus as the driver core sees it. The driver core takes it as `const`, and never writes it.
#[repr(transparent)]
struct BusType(UnsafeCell<bindings::bus_type>);

// SAFETY: Written by `register` before anybody else sees it, read only after that.
unsafe impl Sync for BusType {}

/// Hibernation only: with suspend-to-idle the devices go on, or nothing could wake the VM.
struct PmOps(UnsafeCell<bindings::dev_pm_ops>);

// SAFETY: As for `BusType`.
unsafe impl Sync for PmOps {}

static PM: PmOps = PmOps(UnsafeCell::new(pin_init::zeroed()));

static BUS: BusType = BusType(UnsafeCell::new(pin_init::zeroed()));

/// The bus, for the driver core.
pub(crate) fn bus_type() -> *const bindings::bus_type {
    BUS.0.get()
}

/// A registered bus; unregistered on drop.
pub(crate) struct Registration(());

impl Registration {
    /// Registers the bus. There is only one, so this is called once per module life.
    pub(crate) fn new() -> Result<Self> {
        let bus = BUS.0.get();
        // SAFETY: Nobody knows of the bus yet.
        unsafe {
            (*bus).name = c"vmbus".as_char_ptr();
            (*bus).match_ = Some(driver::match_callback);
            (*bus).probe = Some(driver::probe_callback);
            (*bus).remove = Some(driver::remove_callback);
            (*bus).uevent = Some(uevent);
            (*bus).dma_configure = Some(dma_configure);
            [(*bus).bus_groups, (*bus).drv_groups, (*bus).dev_groups] =
                sysfs::groups().map(|g| g.cast_const());
            (*bus).driver_override = true;
            let pm = PM.0.get();
            (*pm).freeze_noirq = Some(driver::suspend_callback);
            (*pm).thaw_noirq = Some(driver::resume_callback);
            (*pm).poweroff_noirq = Some(driver::suspend_callback);
            (*pm).restore_noirq = Some(driver::resume_callback);
            (*bus).pm = pm;
        }
        // SAFETY: The bus is filled in, and stays until it is unregistered.
        to_result(unsafe { bindings::bus_register(bus) })?;
        Ok(Self(()))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: The bus was registered by `new`.
        unsafe { bindings::bus_unregister(BUS.0.get()) };
    }
}

/// Registers a driver with the bus.
///
/// # Safety
/// `drv` is filled in but for the bus, pinned, and stays valid until it is unregistered.
pub(crate) unsafe fn register_driver(drv: *mut RawDriver) -> Result {
    // The module that has the driver depends on this one, so the connection is there if it ever was.
    if Connection::global().is_none() {
        return Err(ENODEV);
    }
    // SAFETY: By the requirement.
    unsafe {
        (*drv).driver.bus = BUS.0.get();
        to_result(bindings::driver_register(&raw mut (*drv).driver))
    }
}

/// # Safety
/// Called by the driver core, with a device of this bus.
unsafe extern "C" fn uevent(
    dev: *const bindings::device,
    env: *mut bindings::kobj_uevent_env,
) -> c_int {
    // SAFETY: By the requirement.
    let class = unsafe { Device::<kernel::device::Normal>::from_core(dev.cast_mut()) }.class();
    // SAFETY: `env` is the driver core's; the GUID has 16 bytes.
    unsafe { ffi::hv_rs_uevent_modalias(env, class.0.as_ptr()) }
}

/// # Safety
/// Called by the driver core, with a device of this bus.
unsafe extern "C" fn dma_configure(dev: *mut bindings::device) -> c_int {
    // SAFETY: By the requirement. x86 is always coherent.
    unsafe { ffi::hv_setup_dma_ops(dev, true) };
    0
}
