// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The machine: interrupts, time, stop and continue, reset, through QEMU.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hv_hypervisor::Processors;
use hv_partition::{Machine, VpIndex};

use crate::api::{self, Api, Variables};

/// Guest-physical base of message-signalled interrupts.
const MSI_BASE: u64 = 0xfee0_0000;
/// `MEMTXATTRS_UNSPECIFIED` would be bit 32; zero attributes are what a bus master without an id
/// sends.
const NO_ATTRIBUTES: u64 = 0;
/// Shortest time over which the TSC is measured.
const MEASURE: Duration = Duration::from_millis(50);

/// QEMU as a machine.
pub struct QemuMachine {
    api: Api,
    variables: Variables,
    apic_ids: Vec<u32>,
    /// From when on the frequency is measured.
    start: TscSample,
    frequency: OnceLock<u64>,
}

// SAFETY: the pointers are addresses of QEMU's global variables, which live as long as the process;
// every function used is one that QEMU allows from any thread (see each use).
unsafe impl Send for QemuMachine {}
// SAFETY: as above; there is no interior mutability but the `OnceLock`.
unsafe impl Sync for QemuMachine {}

impl QemuMachine {
    /// Takes the machine as it is when its initialisation is done.
    pub fn new(api: Api, variables: Variables, vp_count: u32, start: TscSample) -> Self {
        let apic_ids = (0..vp_count)
            .map(|index| {
                // SAFETY: the machine exists, and is an X86MachineState since the target is x86_64
                // and TCG's `microvm`, `pc` and `q35` are all derived from it.
                unsafe { (api.x86_cpu_apic_id_from_index)(*variables.current_machine, index) }
            })
            .collect();
        Self {
            api,
            variables,
            apic_ids,
            start,
            frequency: OnceLock::new(),
        }
    }

    /// Runs `f` on QEMU's main loop, soon.
    fn on_main_loop(&self, f: unsafe extern "C" fn(*mut c_void), name: &'static std::ffi::CStr) {
        // SAFETY: scheduling a bottom half is thread-safe; `f` takes no argument; the name is
        // static.
        unsafe {
            let context = (self.api.qemu_get_aio_context)();
            (self.api.aio_bh_schedule_oneshot_full)(
                context,
                f,
                std::ptr::null_mut(),
                name.as_ptr(),
            );
        }
    }
}

/// The host's time stamp counter, on which QEMU's guest TSC is based (`cpu_get_host_ticks`).
fn host_tsc() -> u64 {
    // SAFETY: RDTSC is available on every x86-64 processor and is not disabled for user space by
    // Linux by default.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The TSC and the time at one moment.
#[derive(Clone, Copy)]
pub struct TscSample {
    tsc: u64,
    time: Instant,
}

impl TscSample {
    /// The best of a few tries, since the thread may be preempted between the two readings.
    pub fn now() -> Self {
        let sample = || {
            let before = host_tsc();
            let time = Instant::now();
            let after = host_tsc();
            (
                after - before,
                Self {
                    tsc: before + (after - before) / 2,
                    time,
                },
            )
        };
        let (_, best) = (0..8)
            .map(|_| sample())
            .min_by_key(|(width, _)| *width)
            .unwrap_or_else(sample);
        best
    }
}

thread_local! {
    /// Whether this thread belongs to QEMU, which has registered it with RCU.
    static QEMU_THREAD: Cell<bool> = const { Cell::new(false) };
    /// Registration of a thread of ours.
    static RCU: Rcu = Rcu::register();
}

/// Tells that the calling thread is QEMU's own.
pub fn mark_qemu_thread() {
    QEMU_THREAD.with(|flag| flag.set(true));
}

/// Keeps a thread of ours registered with QEMU's RCU, so that the memory map that it walks is not
/// freed meanwhile.
struct Rcu(Option<unsafe extern "C" fn()>);

impl Rcu {
    fn register() -> Self {
        let Some(plugin) = crate::plugin() else {
            return Self(None);
        };
        // SAFETY: the thread is not registered: it is not QEMU's, and this runs once per thread.
        unsafe { (plugin.api.rcu_register_thread)() };
        Self(Some(plugin.api.rcu_unregister_thread))
    }
}

impl Drop for Rcu {
    fn drop(&mut self) {
        if let Some(unregister) = self.0 {
            // SAFETY: registered by `register`, once; the thread is ending and holds no RCU read
            // lock.
            unsafe { unregister() }
        }
    }
}

/// Makes sure that QEMU's RCU knows the calling thread.
pub fn with_rcu_thread() {
    if !QEMU_THREAD.with(Cell::get) {
        RCU.with(|_| ());
    }
}

unsafe extern "C" fn continue_vm(_: *mut c_void) {
    if let Some(plugin) = crate::plugin() {
        // SAFETY: runs on the main loop, which holds QEMU's lock.
        unsafe { (plugin.api.vm_start)() }
    }
}

impl Machine for QemuMachine {
    fn interrupt(&self, vp: VpIndex, vector: u8) {
        let Some(apic_id) = self.apic_ids.get(vp.0 as usize) else {
            return;
        };
        with_rcu_thread();
        let message = u32::from(vector).to_le_bytes();
        let address = MSI_BASE | (u64::from(*apic_id) << 12);
        // SAFETY: `address_space_memory` is QEMU's system memory; the buffer has 4 bytes; the
        // thread is known to RCU. The function takes QEMU's lock itself when the caller does not
        // hold it.
        unsafe {
            (self.api.address_space_write)(
                self.variables.address_space_memory,
                address,
                NO_ATTRIBUTES,
                message.as_ptr().cast(),
                4,
            );
        }
    }

    fn tsc(&self) -> u64 {
        // SAFETY: takes QEMU's own clock lock; allowed from any thread.
        unsafe { (self.api.cpus_get_elapsed_ticks)() as u64 }
    }

    fn tsc_frequency(&self) -> u64 {
        *self.frequency.get_or_init(|| {
            if let Some(rest) = MEASURE.checked_sub(self.start.time.elapsed()) {
                std::thread::sleep(rest);
            }
            let end = TscSample::now();
            let elapsed = end.time - self.start.time;
            let ticks = end.tsc.wrapping_sub(self.start.tsc);
            let frequency = u128::from(ticks) * 1_000_000_000 / elapsed.as_nanos().max(1);
            // Whole kHz: a measurement over so short a time knows no more, and guests print it.
            let frequency = (frequency as u64 + 500) / 1000 * 1000;
            tracing::info!(frequency, "TSC measured over {elapsed:?}");
            frequency
        })
    }

    fn pause(&self) {
        // SAFETY: both take their own lock; made for callers outside the main loop (QEMU's
        // `vm_stop`).
        unsafe {
            (self.api.qemu_system_vmstop_request_prepare)();
            (self.api.qemu_system_vmstop_request)(api::RUN_STATE_PAUSED);
        }
    }

    fn resume(&self) {
        self.on_main_loop(continue_vm, c"hv-continue");
    }

    fn reset(&self) {
        // SAFETY: sets a flag and wakes the main loop; on a vCPU's thread it also makes that vCPU
        // stop.
        unsafe { (self.api.qemu_system_reset_request)(api::SHUTDOWN_HOST_QMP_SYSTEM_RESET) }
    }

    fn power_off(&self) {
        // SAFETY: sets a flag and wakes the main loop.
        unsafe { (self.api.qemu_system_shutdown_request)(api::SHUTDOWN_HOST_QMP_QUIT) }
    }
}

impl Processors for QemuMachine {
    fn apic_id(&self, vp: VpIndex) -> u32 {
        self.apic_ids
            .get(vp.0 as usize)
            .copied()
            .unwrap_or(u32::MAX)
    }

    fn runtime(&self, _vp: VpIndex) -> u64 {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is valid for writing. On the VP's own thread, whose CPU time is the VP's.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        time.tv_sec as u64 * 10_000_000 + time.tv_nsec as u64 / 100
    }

    fn apic_read(&self, _vp: VpIndex, offset: u16) -> u32 {
        let mut value = [0; 4];
        // SAFETY: as `interrupt`. On the VP's own thread, so that QEMU's APIC page is that VP's.
        unsafe {
            (self.api.address_space_read_full)(
                self.variables.address_space_memory,
                MSI_BASE + u64::from(offset),
                NO_ATTRIBUTES,
                value.as_mut_ptr().cast(),
                4,
            );
        }
        u32::from_le_bytes(value)
    }

    fn apic_write(&self, _vp: VpIndex, offset: u16, value: u32) {
        let value = value.to_le_bytes();
        // SAFETY: as `apic_read`.
        unsafe {
            (self.api.address_space_write)(
                self.variables.address_space_memory,
                MSI_BASE + u64::from(offset),
                NO_ATTRIBUTES,
                value.as_ptr().cast(),
                4,
            );
        }
    }
}
