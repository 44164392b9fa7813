// SPDX-License-Identifier: GPL-2.0

//! The ACPI device `VMBus`: says that there is a VMBus, and which addresses its devices may use for MMIO.

use core::{cell::UnsafeCell, ptr};
use kernel::{
    bindings,
    error::to_result,
    ffi::{c_int, c_void},
    prelude::*,
    sync::Arc,
};

use crate::{connection::Connection, ffi};

/// Address windows below this are of no use (`vmbus_walk_resources`).
const LOWEST: u64 = 0x10_0000;
/// Where the virtual TPM is; windows end before it.
const VTPM: u64 = 0xfed4_0000;

/// A window of addresses for MMIO, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// What was found.
struct Found {
    parent: *mut bindings::device,
    windows: KVec<Window>,
}

/// The driver as the driver core sees it, and where its probe callback leaves what it found.
#[repr(C)]
struct PlatformDriver {
    driver: UnsafeCell<bindings::platform_driver>,
    ids: UnsafeCell<[bindings::acpi_device_id; 3]>,
    pm: UnsafeCell<bindings::dev_pm_ops>,
    found: UnsafeCell<Option<Found>>,
}

// SAFETY: Written by `Registration::new` before the driver core knows of it, and by `probe`, which the registration waits
// for; read after that. Module load is serialised.
unsafe impl Sync for PlatformDriver {}

static DRIVER: PlatformDriver = PlatformDriver {
    driver: UnsafeCell::new(pin_init::zeroed()),
    ids: UnsafeCell::new([pin_init::zeroed(); 3]),
    pm: UnsafeCell::new(pin_init::zeroed()),
    found: UnsafeCell::new(None),
};

/// Binding to the ACPI device; undone on drop.
pub(crate) struct Registration {
    /// For devices with MMIO; none of those is driven yet.
    _windows: KVec<Window>,
}

impl Registration {
    /// Binds to the ACPI device, and makes it the parent of the connection's devices.
    ///
    /// # Errors
    /// `ENODEV` when there is none.
    pub(crate) fn new(conn: &Arc<Connection>, module: &'static ThisModule) -> Result<Self> {
        // SAFETY: Nobody else knows of the driver yet.
        unsafe {
            let ids = &mut *DRIVER.ids.get();
            for (id, name) in ids.iter_mut().zip([b"VMBUS", b"VMBus"]) {
                for (to, from) in id.id.iter_mut().zip(name) {
                    *to = *from;
                }
            }
            // Hibernation only: with suspend-to-idle the connection stays, or nothing could wake the VM. The `noirq` stage, as
            // the devices' callbacks, which come before.
            let pm = DRIVER.pm.get();
            (*pm).freeze_noirq = Some(suspend);
            (*pm).thaw_noirq = Some(resume);
            (*pm).poweroff_noirq = Some(suspend);
            (*pm).restore_noirq = Some(resume);
            let drv = DRIVER.driver.get();
            *drv = pin_init::zeroed();
            (*drv).probe = Some(probe);
            (*drv).driver.name = c"vmbus".as_char_ptr();
            (*drv).driver.acpi_match_table = ids.as_ptr();
            (*drv).driver.pm = DRIVER.pm.get();
            (*drv).driver.probe_type = bindings::probe_type_PROBE_FORCE_SYNCHRONOUS;
        }
        // SAFETY: The driver is filled in, and stays until it is unregistered. Probing is synchronous.
        to_result(unsafe {
            bindings::__platform_driver_register(
                DRIVER.driver.get(),
                module.as_ptr(),
                c"hv_vmbus_rs".as_char_ptr(),
            )
        })?;
        // SAFETY: `probe` is over.
        let found = unsafe { (*DRIVER.found.get()).take() };
        match found {
            Some(found) => {
                conn.set_parent(found.parent);
                Ok(Self {
                    _windows: found.windows,
                })
            }
            None => {
                // SAFETY: Registered above.
                unsafe { bindings::platform_driver_unregister(DRIVER.driver.get()) };
                Err(ENODEV)
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: Registered by `new`.
        unsafe { bindings::platform_driver_unregister(DRIVER.driver.get()) };
    }
}

/// # Safety
/// Called by the driver core.
unsafe extern "C" fn probe(pdev: *mut bindings::platform_device) -> c_int {
    // SAFETY: By the requirement.
    let parent = unsafe { ffi::hv_rs_acpi_companion_dev(pdev) };
    if parent.is_null() {
        return ENODEV.to_errno();
    }
    let mut windows = KVec::<Window>::new();
    // SAFETY: By the requirement; `windows` is what the callbacks take, and stays during the call.
    let ret = unsafe {
        ffi::hv_rs_walk_windows(
            pdev,
            add_window,
            ptr::from_mut(&mut windows).cast(),
            has_windows,
        )
    };
    if ret != 0 {
        return ret;
    }
    // SAFETY: `new` waits for this function; there is one ACPI device, and probing is serialised by its lock.
    unsafe { *DRIVER.found.get() = Some(Found { parent, windows }) };
    0
}

/// # Safety
/// `ctx` is the list of `probe`.
unsafe extern "C" fn add_window(ctx: *mut c_void, start: u64, end: u64) {
    // SAFETY: By the requirement.
    let windows = unsafe { &mut *ctx.cast::<KVec<Window>>() };
    if end < LOWEST || end < start {
        return;
    }
    let end = if start < VTPM && end >= VTPM {
        VTPM - 1
    } else {
        end
    };
    if windows.push(Window { start, end }, GFP_KERNEL).is_err() {
        pr_warn!("no memory to note an MMIO window\n");
    }
}

/// # Safety
/// `ctx` is the list of `probe`.
unsafe extern "C" fn has_windows(ctx: *mut c_void) -> bool {
    // SAFETY: By the requirement.
    !unsafe { &*ctx.cast::<KVec<Window>>() }.is_empty()
}

/// # Safety
/// Called by the driver core.
unsafe extern "C" fn suspend(_dev: *mut bindings::device) -> c_int {
    Connection::global().map_or(0, |conn| {
        conn.suspend().map_or_else(|e| e.to_errno(), |()| 0)
    })
}

/// # Safety
/// Called by the driver core.
unsafe extern "C" fn resume(_dev: *mut bindings::device) -> c_int {
    Connection::global().map_or(0, |conn| {
        conn.resume().map_or_else(|e| e.to_errno(), |()| 0)
    })
}
