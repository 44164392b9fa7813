// SPDX-License-Identifier: GPL-2.0

//! Which CPUs there are.

use super::ffi;

/// Number of the CPU that this runs on; a moment later it may be another.
#[inline]
pub fn current() -> u32 {
    let cpu: u32;
    // What `raw_smp_processor_id` is; a call of a C function costs more.
    // SAFETY: Reads this CPU's instance of the kernel's `cpu_number`.
    unsafe {
        core::arch::asm!(
            "mov {:e}, dword ptr gs:[rip + cpu_number]",
            out(reg) cpu,
            options(readonly, nostack, preserves_flags)
        );
    }
    cpu
}

/// CPU numbers are below this.
pub fn ids() -> u32 {
    crate::ffi::hv_rs_nr_cpu_ids()
}

/// CPUs that are online.
pub fn online() -> u32 {
    ffi::hv_rs_online_cpus()
}

/// CPUs that are there, online or not.
pub fn present() -> u32 {
    ffi::hv_rs_present_cpus()
}

/// NUMA node of `cpu`; -1 when there is no such CPU.
pub fn node(cpu: u32) -> i32 {
    if cpu >= ids() {
        return -1;
    }
    // SAFETY: Such a CPU may exist, and has an entry in the kernel's tables.
    unsafe { crate::ffi::hv_rs_cpu_to_node(cpu) }
}
