// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The contract between the three parts of the emulated host.
//!
//! ```text
//!   hv-host-qemu  implements  Machine            (QEMU: memory, interrupts, stop/cont, reset)
//!   hv-hypervisor implements  Partition          (SynIC, hypercalls, reference time)
//!   hv-vmbus-host implements  HypercallSink      (what arrives on connection ids)
//! ```
//!
//! Nothing here knows QEMU, and nothing here knows VMBus. All traits are called from any thread
//! unless a method says otherwise.
#![forbid(unsafe_code)]

mod ram;

pub use ram::{CodeCoherence, GuestRam, NoCode, RamError};

/// Index of a virtual processor (TLFS: VP index). Equal to QEMU's CPU index here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VpIndex(pub u32);

/// Why a SynIC message could not be accepted for delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The VP does not exist.
    #[error("no such virtual processor")]
    InvalidVp,
    /// SCONTROL, SIMP or the SINT is not enabled by the guest. The message is dropped.
    #[error("SynIC, message page or SINT not enabled by the guest")]
    NotEnabled,
    /// The VP's queue of undelivered messages is full (the guest does not consume).
    #[error("message queue full")]
    QueueFull,
    /// The payload exceeds 240 bytes.
    #[error("payload larger than 240 bytes")]
    TooLong,
}

/// The hypervisor half, as seen by devices of the host.
pub trait Partition: Send + Sync {
    /// Number of virtual processors, fixed for the life of the VM.
    fn vp_count(&self) -> u32;

    /// Queues a SynIC message (at most 240 bytes of payload) for `vp`, `sint`. Delivered in
    /// order; the message pending flag and EOM follow the TLFS. Never blocks.
    ///
    /// # Errors
    /// See [`PostError`].
    fn post_message(
        &self,
        vp: VpIndex,
        sint: u8,
        msg_type: u32,
        payload: &[u8],
    ) -> Result<(), PostError>;

    /// Sets bit `flag` (0..2048) in the event flags of `vp`, `sint`, and raises the SINT's
    /// interrupt when the bit was clear before. Returns whether the bit was clear.
    ///
    /// # Errors
    /// [`PostError::InvalidVp`], [`PostError::NotEnabled`].
    fn signal_event(&self, vp: VpIndex, sint: u8, flag: u16) -> Result<bool, PostError>;

    /// Guest memory.
    fn ram(&self) -> &GuestRam;

    /// Partition reference time in 100 ns units (TLFS: HV_X64_MSR_TIME_REF_COUNT). Stands still
    /// while the VM is stopped.
    fn reference_time(&self) -> u64;

    /// A snapshot of the counters of the hypervisor half, by name (`hypercall_post_message`,
    /// `hypercall_signal_event`, `synic_messages`, `synic_interrupts`, `eom`, …).
    fn counters(&self) -> Vec<(String, u64)>;

    /// Facts for people and tests (guest OS id, crash parameters P0..P4 and text, …) as a JSON
    /// object.
    fn status(&self) -> serde_json::Value;

    /// Starts counting guest instructions afresh (see `scripts/vm --profile`).
    ///
    /// # Errors
    /// A sentence when the VM was not started with profiling.
    fn profile_mark(&self) -> Result<(), String>;

    /// Guest instructions executed since the last mark, by code page or symbol range, as JSON.
    ///
    /// # Errors
    /// A sentence when the VM was not started with profiling.
    fn profile_read(&self) -> Result<serde_json::Value, String>;
}

/// Result of a hypercall: the HV_STATUS of the TLFS (0 = success).
pub type HvStatus = u16;

/// What the guest sends to connection ids, implemented by the VMBus half. Called on the vCPU's
/// thread: must not block and must not call back into QEMU.
pub trait HypercallSink: Send + Sync {
    /// HvCallPostMessage, after the hypervisor half has validated the hypercall itself. `payload`
    /// is at most 240 bytes.
    fn post_message(
        &self,
        vp: VpIndex,
        connection_id: u32,
        msg_type: u32,
        payload: &[u8],
    ) -> HvStatus;

    /// HvCallSignalEvent.
    fn signal_event(&self, vp: VpIndex, connection_id: u32, flag: u16) -> HvStatus;

    /// The whole VM was reset: forget the guest. Called on QEMU's main thread, which holds QEMU's
    /// lock while the virtual processors stand still: must not wait for a thread that raises an
    /// interrupt.
    ///
    /// Turning the hypercall page off (kexec, hibernation) is not a reset: VMBus has its own
    /// unload.
    fn reset(&self);

    /// The guest reported a crash (HV_X64_MSR_CRASH_CTL was written with the notify bit). Details
    /// are in [`Partition::status`] by then.
    fn guest_crashed(&self) {}
}

/// What QEMU (or a test) provides to the hypervisor half and to the control socket.
pub trait Machine: Send + Sync {
    /// Raises an edge interrupt with `vector` on the local APIC of `vp`.
    fn interrupt(&self, vp: VpIndex, vector: u8);

    /// Guest TSC now, in ticks; stands still while the VM is stopped.
    fn tsc(&self) -> u64;

    /// Guest TSC frequency in Hz.
    fn tsc_frequency(&self) -> u64;

    /// Stops all vCPUs (as QMP `stop`). Asynchronous.
    fn pause(&self);

    /// Continues all vCPUs (as QMP `cont`). Asynchronous.
    fn resume(&self);

    /// Guest-requested or host-forced hard reset. Asynchronous.
    fn reset(&self);

    /// Powers the VM off and ends QEMU. Asynchronous.
    fn power_off(&self);
}
