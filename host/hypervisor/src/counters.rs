// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What happened, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count of events. Statistics only: orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of a partition that are not per VP; read by name through
        /// `Partition::counters`.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $($(#[$doc])* pub(crate) $name: Counter),* }

        impl Counters {
            pub(crate) fn list(&self) -> Vec<(String, u64)> {
                vec![$((stringify!($name).to_owned(), self.$name.get())),*]
            }
        }
    };
}

counters! {
    /// HvCallPostMessage, whatever its result.
    hypercall_post_message,
    /// HvCallSignalEvent, whatever its result.
    hypercall_signal_event,
    /// HvCallNotifyLongSpinWait.
    hypercall_notify_long_spin_wait,
    /// HvCallGetVpIndexFromApicId.
    hypercall_get_vp_index_from_apic_id,
    /// HvExtCallQueryCapabilities.
    hypercall_ext_query_capabilities,
    /// Hypercalls with any other code.
    hypercall_other,
    /// Hypercalls that returned anything but success.
    hypercall_failed,
    /// Of all hypercalls, the fast ones.
    hypercall_fast,
    /// Messages written into a guest's slot.
    synic_messages,
    /// Messages that found their slot occupied and waited for an EOM.
    synic_messages_waited,
    /// Messages refused: queue full, not enabled, too long.
    synic_messages_refused,
    /// Event flags that went from clear to set.
    synic_events,
    /// Event flags that were already set.
    synic_events_merged,
    /// Interrupts for messages and event flags.
    synic_interrupts,
    /// EOIs performed for SINTs with auto-EOI.
    auto_eoi,
    /// Writes to EOM.
    eom,
    /// Synthetic timer expirations.
    stimer_expirations,
    /// Of those, direct interrupts.
    stimer_interrupts,
    /// Reads of synthetic MSRs.
    msr_reads,
    /// Writes of synthetic MSRs.
    msr_writes,
    /// Accesses to synthetic MSRs that ended in #GP.
    msr_faults,
    /// CPUID leaves of the hypervisor range.
    cpuid,
    /// Times the hypercall page was enabled.
    hypercall_page_enabled,
    /// Times the guest reported a crash.
    crashes,
    /// Resets of the partition, the one at start included.
    resets,
}
