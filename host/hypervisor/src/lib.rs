// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The hypervisor half of the emulated Hyper-V host: CPUID, synthetic MSRs, hypercalls, SynIC and
//! synthetic timers, after Microsoft's Hypervisor Top-Level Functional Specification (TLFS).
//!
//! Nothing here knows QEMU (see [`hv_partition::Machine`] and [`Processors`]) or VMBus (see
//! [`hv_partition::HypercallSink`]).
#![forbid(unsafe_code)]

mod counters;
mod cpuid;
mod hypercall;
mod msr;
mod overlay;
mod partition;
mod stimer;
#[cfg(test)]
mod testing;
mod time;
mod vp;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use hv_partition::{GuestRam, HypercallSink, Machine, VpIndex};
use parking_lot::{Condvar, Mutex};

use counters::Counters;
use msr::PartitionRegisters;
use time::ReferenceClock;
use vp::{Vectors, Vp};

pub use hypercall::Hypercall;
pub use vmbus_proto::tlfs;
pub use vp::Fault;

/// What the hypervisor needs of the virtual processors beyond [`Machine`].
pub trait Processors: Send + Sync {
    /// APIC id of a VP. May be called from any thread.
    fn apic_id(&self, vp: VpIndex) -> u32;

    /// Time that `vp` has run, in 100 ns. Called on that VP's thread.
    fn runtime(&self, vp: VpIndex) -> u64;

    /// Reads the 32-bit local APIC register at `offset` (as in the APIC's MMIO page). Called on
    /// that VP's thread.
    fn apic_read(&self, vp: VpIndex, offset: u16) -> u32;

    /// Writes a local APIC register, as [`Self::apic_read`].
    fn apic_write(&self, vp: VpIndex, offset: u16, value: u32);
}

/// The instruction counter of the machine, when it has one.
pub trait Profiler: Send + Sync {
    /// Starts counting afresh.
    fn mark(&self);

    /// Counts since the last mark, as JSON (see `Partition::profile_read`).
    fn read(&self) -> serde_json::Value;
}

/// The parts from which a partition is made.
pub struct Config {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Its processors.
    pub processors: Arc<dyn Processors>,
    /// Number of VPs, at least 1.
    pub vp_count: u32,
    /// Guest memory.
    pub ram: GuestRam,
    /// Instruction counter, if the VM was started with one.
    pub profiler: Option<Arc<dyn Profiler>>,
}

/// Bytes of a hypervisor page.
pub(crate) const PAGE_SIZE: usize = 4096;

pub(crate) struct Shared {
    machine: Arc<dyn Machine>,
    processors: Arc<dyn Processors>,
    ram: GuestRam,
    profiler: Option<Arc<dyn Profiler>>,
    vps: Vec<Vp>,
    registers: Mutex<PartitionRegisters>,
    /// Whether the guest has established the hypercall interface; kept apart from `registers` for
    /// the hypercall path.
    hypercalls_enabled: AtomicBool,
    /// Guest TSC at the last reset.
    start_tsc: AtomicU64,
    /// Scale of the reference clock, computed when first needed: measuring the TSC takes time.
    scale: OnceLock<u64>,
    counters: Counters,
    sink: OnceLock<Arc<dyn HypercallSink>>,
    timer: Mutex<TimerThread>,
    timer_wake: Condvar,
    /// Reference time until which the timer thread sleeps; 0 while it is awake.
    armed: AtomicU64,
}

/// What the timer thread is told.
struct TimerThread {
    /// The VM runs: reference time moves.
    running: bool,
    stop: bool,
}

/// A partition: one guest's hypervisor. Implements [`hv_partition::Partition`].
pub struct Hypervisor {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Hypervisor {
    /// Makes a partition in its reset state and starts its timer thread, which inherits the
    /// caller's signal mask.
    pub fn new(config: Config) -> Arc<Self> {
        let shared = Arc::new(Shared::new(config));
        let timers = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("hv-timers".into())
            .spawn(move || while timers.timer_round() {});
        Arc::new(Self {
            shared,
            thread: Mutex::new(thread.ok()),
        })
    }

    /// Connects the VMBus half, once; later calls are ignored. Without it, no connection id exists.
    pub fn set_sink(&self, sink: Arc<dyn HypercallSink>) {
        let _ = self.shared.sink.set(sink);
    }

    /// CPUID `function` as EAX, EBX, ECX, EDX; `None`: not a leaf of the hypervisor, the processor
    /// answers.
    pub fn cpuid(&self, function: u32) -> Option<[u32; 4]> {
        let answer = cpuid::answer(function, self.shared.vps.len() as u32)?;
        self.shared.counters.cpuid.add();
        Some(answer)
    }

    /// RDMSR on `vp`'s thread. Only for MSRs of [`tlfs::msr::FIRST`]..=[`tlfs::msr::LAST`].
    ///
    /// # Errors
    /// [`Fault`]: the guest gets #GP(0).
    pub fn read_msr(&self, vp: VpIndex, msr: u32) -> Result<u64, Fault> {
        self.shared.read_msr(vp, msr)
    }

    /// WRMSR on `vp`'s thread, as [`Self::read_msr`].
    ///
    /// # Errors
    /// [`Fault`]: the guest gets #GP(0).
    pub fn write_msr(&self, vp: VpIndex, msr: u32, value: u64) -> Result<(), Fault> {
        self.shared.write_msr(vp, msr, value)
    }

    /// A hypercall on `vp`'s thread; returns the result value. `None`: the guest gets #UD, since it
    /// has not enabled hypercalls.
    pub fn hypercall(&self, vp: VpIndex, hypercall: Hypercall) -> Option<u64> {
        self.shared.hypercall(vp, hypercall)
    }

    /// `vp` has just taken an external interrupt; called on its thread, before it executes the
    /// handler. Performs the EOI of interrupts from SINTs with auto-EOI, which guests may still use
    /// although it is deprecated.
    pub fn interrupt_taken(&self, vp: VpIndex) {
        self.shared.interrupt_taken(vp);
    }

    /// The machine was reset: everything the guest has set up is forgotten. Called while no VP
    /// runs.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// The VM was stopped or continued: reference time stands still or moves.
    pub fn set_running(&self, running: bool) {
        self.shared.timer.lock().running = running;
        self.shared.timer_wake.notify_one();
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.shared.timer.lock().stop = true;
        self.shared.timer_wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn new(config: Config) -> Self {
        let Config {
            machine,
            processors,
            vp_count,
            ram,
            profiler,
        } = config;
        let shared = Self {
            vps: (0..vp_count).map(|index| Vp::new(VpIndex(index))).collect(),
            machine,
            processors,
            ram,
            profiler,
            registers: Mutex::default(),
            hypercalls_enabled: AtomicBool::new(false),
            start_tsc: AtomicU64::new(0),
            scale: OnceLock::new(),
            counters: Counters::default(),
            sink: OnceLock::new(),
            timer: Mutex::new(TimerThread {
                running: true,
                stop: false,
            }),
            timer_wake: Condvar::new(),
            armed: AtomicU64::new(0),
        };
        shared.reset();
        shared
    }

    fn reset(&self) {
        self.counters.resets.add();
        self.hypercalls_enabled.store(false, Ordering::Release);
        self.registers.lock().reset();
        for vp in &self.vps {
            vp.reset();
        }
        self.start_tsc.store(self.machine.tsc(), Ordering::Release);
        if let Some(sink) = self.sink.get() {
            sink.reset();
        }
    }

    fn hypercalls_enabled(&self) -> bool {
        self.hypercalls_enabled.load(Ordering::Acquire)
    }

    fn clock(&self) -> ReferenceClock {
        let scale = *self
            .scale
            .get_or_init(|| ReferenceClock::starting_at(0, self.machine.tsc_frequency()).scale);
        ReferenceClock::with_scale(self.start_tsc.load(Ordering::Acquire), scale)
    }

    fn now(&self) -> u64 {
        self.clock().at(self.machine.tsc())
    }

    /// Raises interrupts; no lock of ours may be held.
    fn raise(&self, vp: VpIndex, vectors: Vectors) {
        for vector in vectors {
            self.machine.interrupt(vp, vector);
        }
    }

    /// Tells the timer thread that `vp`'s timers changed.
    fn timers_changed(&self, vp: &Vp) {
        // SeqCst: `next_due` was stored before; the timer thread stores `armed` and then looks at
        // `next_due`.
        if vp.next_due() < self.armed.load(Ordering::SeqCst) {
            // Taking the lock makes sure that the thread is waiting, not about to.
            drop(self.timer.lock());
            self.timer_wake.notify_one();
        }
    }

    fn earliest(&self) -> u64 {
        self.vps.iter().map(Vp::next_due).min().unwrap_or(u64::MAX)
    }

    /// Runs all timers that are due.
    fn expire_timers(&self) {
        let now = self.now();
        for vp in self.vps.iter().filter(|vp| vp.next_due() <= now) {
            let vectors = vp.expire(now, &self.ram, &self.counters);
            self.raise(vp.index, vectors);
        }
    }

    /// One round of the timer thread; `false` when it shall end.
    fn timer_round(&self) -> bool {
        let mut control = self.timer.lock();
        if control.stop {
            return false;
        }
        let due = if control.running {
            self.earliest()
        } else {
            u64::MAX
        };
        self.armed
            .store(if control.running { due } else { 0 }, Ordering::SeqCst);
        if control.running && self.earliest() < due {
            return true;
        }
        if due == u64::MAX {
            self.timer_wake.wait(&mut control);
        } else {
            let now = self.now();
            if now < due {
                let wait = Duration::from_nanos((due - now).saturating_mul(100));
                self.timer_wake
                    .wait_for(&mut control, wait.min(Duration::from_secs(3600)));
            }
        }
        self.armed.store(0, Ordering::SeqCst);
        let running = control.running;
        drop(control);
        if running && self.earliest() != u64::MAX {
            self.expire_timers();
        }
        true
    }
}

#[cfg(test)]
mod tests;
