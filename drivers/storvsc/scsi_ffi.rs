// SPDX-License-Identifier: GPL-2.0

//! The functions and structures of `scsi_shim.c`. Layouts are asserted on both sides; each call site argues its safety.

use core::mem::offset_of;
use kernel::ffi::{c_int, c_void};

/// `struct Scsi_Host`.
#[repr(C)]
pub(super) struct ScsiHost {
    _opaque: [u8; 0],
}

/// `struct scsi_cmnd`. Its members are at the offsets of [`layout`].
#[repr(C)]
pub(super) struct ScsiCommand {
    _opaque: [u8; 0],
}

/// Offsets in bytes, and sizes, of this kernel's structures; see `scsi_layout.c`.
pub(super) mod layout {
    include!(concat!(
        env!("HV_RS_GENERATED"),
        "/drivers/storvsc/scsi_layout.rs"
    ));
}

/// `struct hv_rs_scsi_device`.
#[repr(C)]
pub(super) struct RawDevice {
    pub(super) vendor: [u8; 8],
    pub(super) timeout_ms: u32,
    pub(super) scsi_level: u8,
    pub(super) no_report_opcodes: u8,
    pub(super) no_write_same: u8,
    pub(super) _reserved: u8,
}

const _: () = {
    assert!(size_of::<RawDevice>() == 16);
    assert!(offset_of!(RawDevice, timeout_ms) == 8);
    assert!(offset_of!(RawDevice, scsi_level) == 12);
    assert!(offset_of!(RawDevice, no_write_same) == 14);
};

/// `struct hv_rs_scsi_limits`.
#[repr(C)]
pub(super) struct RawLimits {
    pub(super) can_queue: u32,
    pub(super) hw_queues: u32,
    pub(super) max_sectors: u32,
    pub(super) max_segments: u32,
    pub(super) max_channel: u32,
    pub(super) max_id: u32,
    pub(super) max_lun: u64,
    pub(super) max_cmd_len: u32,
    pub(super) dma_align_mask: u32,
}

const _: () = {
    assert!(size_of::<RawLimits>() == 40);
    assert!(offset_of!(RawLimits, max_lun) == 24);
    assert!(offset_of!(RawLimits, dma_align_mask) == 36);
};

/// `struct hv_rs_scsi_ops`.
#[repr(C)]
pub(super) struct RawOps {
    /// # Safety
    /// `data` as given with the operations. Process context.
    pub(super) reset: unsafe extern "C" fn(data: *const c_void) -> bool,
    /// # Safety
    /// `data` as given with the operations; `device` is valid during the call. Process context.
    pub(super) configure: unsafe extern "C" fn(data: *const c_void, device: *mut RawDevice),
}

const _: () = assert!(size_of::<RawOps>() == 16);

unsafe extern "C" {
    // Of the kernel's.
    pub(super) fn scsi_dma_map(command: *mut ScsiCommand) -> c_int;
    pub(super) fn scsi_dma_unmap(command: *mut ScsiCommand);
    pub(super) fn scsi_done(command: *mut ScsiCommand);

    pub(super) safe fn hv_rs_scsi_host_alloc() -> *mut ScsiHost;
    pub(super) fn hv_rs_scsi_host_put(host: *mut ScsiHost);
    pub(super) fn hv_rs_scsi_host_number(host: *mut ScsiHost) -> u32;
    pub(super) fn hv_rs_scsi_host_add(
        host: *mut ScsiHost,
        dev: *mut c_void,
        limits: *const RawLimits,
        ops: *const RawOps,
        data: *const c_void,
    ) -> c_int;
    pub(super) fn hv_rs_scsi_host_remove(host: *mut ScsiHost);
    pub(super) fn hv_rs_scsi_scan(host: *mut ScsiHost);
    pub(super) fn hv_rs_scsi_test_all(host: *mut ScsiHost);
    pub(super) fn hv_rs_scsi_add_device(
        host: *mut ScsiHost,
        channel: u32,
        target: u32,
        lun: u64,
    ) -> c_int;
    pub(super) fn hv_rs_scsi_remove_device(
        host: *mut ScsiHost,
        channel: u32,
        target: u32,
        lun: u64,
    );
    pub(super) fn hv_rs_scsi_rescan_device(
        host: *mut ScsiHost,
        channel: u32,
        target: u32,
        lun: u64,
    );
}
