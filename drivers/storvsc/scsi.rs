// SPDX-License-Identifier: GPL-2.0

//! SCSI hosts: what a host adapter's driver is to the kernel's SCSI layer, safe to use.
//!
//! ```text
//! ScsiHost::new ──> register ──> Registration ── queue, reset, configure are called ── drop: no command is left
//! ```
//!
//! The only place of this module with unsafe code, besides its siblings `scsi_*.rs` and the shim. There is one type of drivers,
//! [`Adapter`], so that what is done for each command is one function.

use core::ptr::NonNull;
use kernel::{
    device::Device,
    error::to_result,
    ffi::{c_int, c_void},
    prelude::*,
    sync::Arc,
};

use crate::adapter::Adapter;

#[cfg(CONFIG_KUNIT = "y")]
#[path = "../../kunit/storvsc.rs"]
mod kunit;
#[path = "scsi_command.rs"]
mod scsi_command;
#[path = "scsi_ffi.rs"]
mod scsi_ffi;
#[path = "scsi_slots.rs"]
mod scsi_slots;

pub(crate) use scsi_command::{Address, Command, Direction, HostByte, MAX_CDB};
pub(crate) use scsi_slots::{way_bits, Slots, WAYS};

/// The driver of a host adapter.
pub(crate) trait HostDriver: Send + Sync + 'static {
    /// Takes a command, to be completed soon or late. Any context that may take spinlocks; several calls at once.
    ///
    /// # Errors
    /// The command, when there is no room for it now: SCSI tries again after one of this host's commands has completed, or after
    /// some milliseconds.
    fn queue(&self, command: Command) -> Result<(), Command>;

    /// No further command follows those of this hardware queue that [may wait](Command::may_wait), which `queue` took before. Context as of
    /// `queue`.
    fn commit(&self, queue: u32);

    /// Resets the adapter, since a command failed in a way that nothing else helps against, or since the user asks for it.
    /// When this returns true, no command that was in flight before still is. Process context.
    fn reset(&self) -> bool;

    /// Sets what is particular to a device that SCSI has found. Process context.
    fn configure(&self, disk: &mut DeviceSettings);
}

/// `queuecommand` of all hosts.
///
/// # Safety
/// Called by the SCSI layer, for a host that [`ScsiHost::register`] has registered, and a started command.
#[no_mangle]
unsafe extern "C" fn hv_rs_scsi_queuecommand(
    shost: *mut scsi_ffi::ScsiHost,
    command: *mut scsi_ffi::ScsiCommand,
) -> c_int {
    // "Host": SCSI tries again after some milliseconds, even if no command of this device is in flight.
    const BUSY: c_int = scsi_ffi::layout::HOST_BUSY as c_int;
    // SAFETY: A new command.
    let Ok(segments) = u32::try_from(unsafe { scsi_ffi::scsi_dma_map(command) }) else {
        return BUSY;
    };
    // SAFETY: By the requirement.
    let driver = unsafe { driver(shost) };
    // SAFETY: By the requirement, and mapped; never null.
    let command = unsafe { Command::new(NonNull::new_unchecked(command), segments) };
    match driver.queue(command) {
        Ok(()) => 0,
        Err(command) => {
            let raw = command.into_raw();
            // SAFETY: Mapped above. It goes back to the caller.
            unsafe { scsi_ffi::scsi_dma_unmap(raw.as_ptr()) };
            BUSY
        }
    }
}

/// `commit_rqs` of all hosts.
///
/// # Safety
/// Called by the SCSI layer, for a host that [`ScsiHost::register`] has registered.
#[no_mangle]
unsafe extern "C" fn hv_rs_scsi_commit_rqs(shost: *mut scsi_ffi::ScsiHost, queue: u16) {
    // SAFETY: By the requirement.
    unsafe { driver(shost) }.commit(queue.into());
}

/// The driver of a host.
///
/// # Safety
/// `shost` is a host that [`ScsiHost::register`] has registered, and is so while the result is used.
#[inline(always)]
unsafe fn driver<'a>(shost: *mut scsi_ffi::ScsiHost) -> &'a Adapter {
    // SAFETY: What `hv_rs_scsi_host_add` has put there: an `Adapter`, which stays until the host is unregistered.
    unsafe {
        let data = shost.byte_add(scsi_ffi::layout::HOST_DATA);
        &*data.cast::<*const Adapter>().read()
    }
}

/// Settings of a device; see [`HostDriver::configure`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceSettings {
    /// Vendor by INQUIRY, padded with blanks.
    pub(crate) vendor: [u8; 8],
    /// After how many milliseconds a command counts as late.
    pub(crate) timeout_ms: u32,
    /// Version of SCSI that the device claims (`SCSI_SPC_3` and its like).
    pub(crate) scsi_level: u8,
    /// The device does not know REPORT SUPPORTED OPERATION CODES.
    pub(crate) no_report_opcodes: bool,
    /// The device does not know WRITE SAME.
    pub(crate) no_write_same: bool,
}

/// Limits of a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Commands in flight in each hardware queue.
    pub(crate) can_queue: u32,
    /// Hardware queues.
    pub(crate) hw_queues: u32,
    /// Sectors of 512 bytes that a command transfers at most.
    pub(crate) max_sectors: u32,
    /// Pieces of memory of a command at most.
    pub(crate) max_segments: u32,
    /// Highest channel (bus), and how many targets and logical units there can be.
    pub(crate) max_channel: u32,
    pub(crate) max_id: u32,
    pub(crate) max_lun: u64,
}

/// A host, known to the driver alone at first. Held by whoever may want a scan; methods on a host that is not registered (any
/// more) do nothing.
///
/// # Invariants
/// `raw` is a host of which a reference is owned.
pub(crate) struct ScsiHost {
    raw: NonNull<scsi_ffi::ScsiHost>,
}

// SAFETY: Hosts are reference-counted, and may be used from any thread.
unsafe impl Send for ScsiHost {}
// SAFETY: As above.
unsafe impl Sync for ScsiHost {}

impl ScsiHost {
    /// A new host. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let raw = NonNull::new(scsi_ffi::hv_rs_scsi_host_alloc()).ok_or(ENOMEM)?;
        // INVARIANT: Just allocated.
        Ok(Arc::new(Self { raw }, GFP_KERNEL)?)
    }

    /// Number of the host: N of `/sys/class/scsi_host/hostN`.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: By the type's invariant.
        unsafe { scsi_ffi::hv_rs_scsi_host_number(self.raw.as_ptr()) }
    }

    /// Registers the host, a child of `dev`, which does the DMA and is bound to the caller's driver. A host can be
    /// registered once. May sleep.
    ///
    /// # Errors
    /// Those of the SCSI layer.
    pub(crate) fn register(
        self: Arc<Self>,
        dev: &Device<kernel::device::Bound>,
        limits: &Limits,
        driver: Arc<Adapter>,
    ) -> Result<Registration> {
        let raw_limits = scsi_ffi::RawLimits {
            can_queue: limits.can_queue,
            hw_queues: limits.hw_queues,
            max_sectors: limits.max_sectors,
            max_segments: limits.max_segments,
            max_channel: limits.max_channel,
            max_id: limits.max_id,
            max_lun: limits.max_lun,
            // All that SCSI has room for: else it would end longer ones without telling the driver, who may be waiting for the
            // last one of several.
            max_cmd_len: 32,
            dma_align_mask: 4095,
        };
        // CAST: `Device` is a transparent wrapper of `struct device`.
        let dev = core::ptr::from_ref(dev).cast_mut().cast::<c_void>();
        let data = core::ptr::from_ref::<Adapter>(&driver).cast::<c_void>();
        // SAFETY: All are valid; the operations live for ever, and take an `Adapter`. `data` stays as long as the
        // registration, which unregisters the host first.
        to_result(unsafe {
            scsi_ffi::hv_rs_scsi_host_add(
                self.raw.as_ptr(),
                dev,
                &raw const raw_limits,
                &raw const OPS,
                data,
            )
        })?;
        Ok(Registration {
            host: self,
            _driver: driver,
        })
    }

    /// Looks for devices. May sleep; may go on after it has returned.
    pub(crate) fn scan(&self) {
        // SAFETY: By the type's invariant.
        unsafe { scsi_ffi::hv_rs_scsi_scan(self.raw.as_ptr()) };
    }

    /// Sends each device a TEST UNIT READY, for the sake of what its completion tells. May sleep.
    pub(crate) fn test_all(&self) {
        // SAFETY: By the type's invariant.
        unsafe { scsi_ffi::hv_rs_scsi_test_all(self.raw.as_ptr()) };
    }

    /// Adds the one device at `at`. May sleep.
    ///
    /// # Errors
    /// `ENODEV` when there is none.
    pub(crate) fn add_device(&self, at: Address) -> Result {
        // SAFETY: By the type's invariant.
        to_result(unsafe {
            scsi_ffi::hv_rs_scsi_add_device(self.raw.as_ptr(), at.channel, at.target, at.lun)
        })
    }

    /// Removes the device at `at`, if there is one. May sleep.
    pub(crate) fn remove_device(&self, at: Address) {
        // SAFETY: By the type's invariant.
        unsafe {
            scsi_ffi::hv_rs_scsi_remove_device(self.raw.as_ptr(), at.channel, at.target, at.lun)
        };
    }

    /// Asks the device at `at`, if there is one, for its capacity and parameters again. May sleep.
    pub(crate) fn rescan_device(&self, at: Address) {
        // SAFETY: By the type's invariant.
        unsafe {
            scsi_ffi::hv_rs_scsi_rescan_device(self.raw.as_ptr(), at.channel, at.target, at.lun)
        };
    }
}

impl Drop for ScsiHost {
    fn drop(&mut self) {
        // SAFETY: The reference is owned by the type's invariant.
        unsafe { scsi_ffi::hv_rs_scsi_host_put(self.raw.as_ptr()) };
    }
}

/// A registered host. Dropping it removes its devices, waits until all their commands have completed, and unregisters it;
/// no operation of the driver is called after that.
pub(crate) struct Registration {
    host: Arc<ScsiHost>,
    // Until then the operations use it.
    _driver: Arc<Adapter>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: Registered, once.
        unsafe { scsi_ffi::hv_rs_scsi_host_remove(self.host.raw.as_ptr()) };
    }
}

/// The operations of a driver that C calls.
static OPS: scsi_ffi::RawOps = scsi_ffi::RawOps { reset, configure };

/// # Safety
/// See [`scsi_ffi::RawOps`]; `data` is an `Adapter`.
unsafe extern "C" fn reset(data: *const c_void) -> bool {
    // SAFETY: By the requirement.
    unsafe { &*data.cast::<Adapter>() }.reset()
}

/// # Safety
/// See [`scsi_ffi::RawOps`]; `data` is an `Adapter`.
unsafe extern "C" fn configure(data: *const c_void, device: *mut scsi_ffi::RawDevice) {
    // SAFETY: By the requirement.
    let (driver, raw) = unsafe { (&*data.cast::<Adapter>(), &mut *device) };
    let mut settings = DeviceSettings {
        vendor: raw.vendor,
        timeout_ms: raw.timeout_ms,
        scsi_level: raw.scsi_level,
        no_report_opcodes: raw.no_report_opcodes != 0,
        no_write_same: raw.no_write_same != 0,
    };
    driver.configure(&mut settings);
    raw.timeout_ms = settings.timeout_ms;
    raw.scsi_level = settings.scsi_level;
    raw.no_report_opcodes = settings.no_report_opcodes.into();
    raw.no_write_same = settings.no_write_same.into();
}
