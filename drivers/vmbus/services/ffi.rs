// SPDX-License-Identifier: GPL-2.0

//! The functions of `services/shim.c`. Kept the same as the C side by hand.

use kernel::{
    bindings,
    ffi::{c_char, c_int, c_void},
};

/// `struct hv_rs_ptp` of the shim.
#[repr(C)]
pub(super) struct Ptp {
    _opaque: [u8; 0],
}

/// `struct hv_rs_node` of the shim.
#[repr(C)]
pub(super) struct Node {
    _opaque: [u8; 0],
}

/// `struct hv_rs_node_ops` of the shim.
#[repr(C)]
pub(super) struct NodeOps {
    pub(super) open: unsafe extern "C" fn(data: *const c_void) -> c_int,
    pub(super) release: unsafe extern "C" fn(data: *const c_void),
    pub(super) read: unsafe extern "C" fn(*const c_void, *mut c_char, usize) -> isize,
    pub(super) write: unsafe extern "C" fn(*const c_void, *const c_char, usize) -> isize,
    pub(super) put: unsafe extern "C" fn(data: *const c_void),
}

/// Reads a clock in ns since 1970; 0, or a negative errno.
pub(super) type PtpRead = unsafe extern "C" fn(data: *const c_void, ns: *mut u64) -> c_int;

// The kernel's types have members without size in some configurations.
#[allow(improper_ctypes)]
unsafe extern "C" {
    pub(super) safe fn hv_rs_reference_time() -> u64;
    pub(super) safe fn hv_rs_online_cpus() -> u32;
    pub(super) safe fn hv_rs_present_cpus() -> u32;
    pub(super) safe fn hv_rs_orderly_poweroff();
    pub(super) safe fn hv_rs_orderly_reboot();
    pub(super) safe fn hv_rs_can_hibernate() -> bool;
    pub(super) fn hv_rs_ptp_register(
        name: *const c_char,
        read: PtpRead,
        data: *const c_void,
    ) -> *mut Ptp;
    pub(super) fn hv_rs_ptp_unregister(ptp: *mut Ptp);
    pub(super) fn hv_rs_delayed_work_init(
        work: *mut bindings::delayed_work,
        function: unsafe extern "C" fn(work: *mut bindings::work_struct),
        name: *const c_char,
        key: *mut bindings::lock_class_key,
    );
    /// `dev` is a `struct device`.
    pub(super) fn hv_rs_uevent(dev: *mut c_void, var: *const c_char) -> c_int;
    /// Null when there is no memory.
    pub(super) safe fn hv_rs_node_new() -> *mut Node;
    pub(super) fn hv_rs_node_put(node: *mut Node);
    pub(super) fn hv_rs_node_set(node: *mut Node, readiness: u32);
    /// `module` is a `struct module`. Takes the reference to `data` if it returns 0.
    pub(super) fn hv_rs_node_register(
        node: *mut Node,
        name: *const c_char,
        module: *mut c_void,
        ops: *const NodeOps,
        data: *const c_void,
    ) -> c_int;
    pub(super) fn hv_rs_node_unregister(node: *mut Node);
}
