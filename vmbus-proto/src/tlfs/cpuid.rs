// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! CPUID leaves of the hypervisor and their bits (TLFS, "Feature and Interface Discovery").

/// Leaf 1, ECX bit 31: a hypervisor is present.
pub const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// EAX: highest hypervisor leaf; EBX, ECX, EDX: [`VENDOR_SIGNATURE`].
pub const VENDOR_AND_MAX_FUNCTIONS: u32 = 0x4000_0000;
/// EAX: [`INTERFACE_SIGNATURE`].
pub const INTERFACE: u32 = 0x4000_0001;
/// Version of the hypervisor: EAX build, EBX major and minor, ECX service pack, EDX branch.
pub const VERSION: u32 = 0x4000_0002;
/// EAX, EBX: privileges ([`Privileges`]); EDX: [`Features`].
pub const FEATURES: u32 = 0x4000_0003;
/// EAX: [`Recommendations`]; EBX: spin-wait retries.
pub const ENLIGHTENMENT_INFO: u32 = 0x4000_0004;
/// Limits: EAX VPs, EBX logical processors, ECX interrupt vectors.
pub const IMPLEMENTATION_LIMITS: u32 = 0x4000_0005;
/// Hardware features in use by the hypervisor.
pub const HARDWARE_FEATURES: u32 = 0x4000_0006;
/// CPU management; of the root partition.
pub const CPU_MANAGEMENT_FEATURES: u32 = 0x4000_0007;
/// Nested virtualisation.
pub const NESTED_FEATURES: u32 = 0x4000_000a;
/// Isolation of the VM from its host; valid with [`Privileges::ISOLATION`].
pub const ISOLATION_CONFIG: u32 = 0x4000_000c;
/// First leaf of the virtualisation stack (hvgdk `HYPERV_CPUID_VIRT_STACK_INTERFACE`).
pub const VIRT_STACK_INTERFACE: u32 = 0x4000_0081;
/// Properties of the virtualisation stack.
pub const VIRT_STACK_PROPERTIES: u32 = 0x4000_0082;
/// All hypervisor leaves lie from [`VENDOR_AND_MAX_FUNCTIONS`] to here.
pub const LAST_HYPERVISOR_LEAF: u32 = 0x4000_00ff;

/// "Microsoft Hv" in EBX, ECX, EDX.
pub const VENDOR_SIGNATURE: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];
/// "Hv#1".
pub const INTERFACE_SIGNATURE: u32 = 0x3123_7648;
/// "VS#1" in EAX of [`VIRT_STACK_INTERFACE`].
pub const VIRT_STACK_SIGNATURE: u32 = 0x3123_5356;

wire_flags! {
    /// HV_PARTITION_PRIVILEGE_MASK: EAX (low) and EBX (high) of [`FEATURES`].
    pub struct Privileges(u64) {
        /// VP run time MSR.
        const VP_RUNTIME = 1 << 0;
        /// Partition reference counter MSR.
        const TIME_REF_COUNT = 1 << 1;
        /// SynIC MSRs.
        const SYNIC = 1 << 2;
        /// Synthetic timer MSRs.
        const SYNTHETIC_TIMERS = 1 << 3;
        /// APIC access MSRs.
        const APIC_ACCESS = 1 << 4;
        /// Guest OS id and hypercall MSRs.
        const HYPERCALL = 1 << 5;
        /// VP index MSR.
        const VP_INDEX = 1 << 6;
        /// Reset MSR.
        const RESET = 1 << 7;
        /// Reference TSC page MSR.
        const REFERENCE_TSC = 1 << 9;
        /// Guest idle MSR.
        const GUEST_IDLE = 1 << 10;
        /// Frequency MSRs.
        const FREQUENCY_MSRS = 1 << 11;
        /// Re-enlightenment MSRs.
        const REENLIGHTENMENT = 1 << 13;
        /// TSC invariant control MSR.
        const TSC_INVARIANT = 1 << 15;
        /// HvCallPostMessage.
        const POST_MESSAGES = 1 << 36;
        /// HvCallSignalEvent.
        const SIGNAL_EVENTS = 1 << 37;
        /// Extended hypercalls.
        const EXTENDED_HYPERCALLS = 1 << 52;
        /// The VM is isolated from its host.
        const ISOLATION = 1 << 54;
    }
}

wire_flags! {
    /// EDX of [`FEATURES`].
    pub struct Features(u32) {
        /// Hypercall input in XMM registers.
        const XMM_INPUT = 1 << 4;
        /// Virtual guest idle state.
        const GUEST_IDLE_STATE = 1 << 5;
        /// Frequency MSRs exist.
        const FREQUENCY_MSRS = 1 << 8;
        /// Crash MSRs exist.
        const CRASH_MSRS = 1 << 10;
        /// Hypercall output in XMM registers.
        const XMM_OUTPUT = 1 << 15;
        /// SINTs have a polling mode.
        const SINT_POLLING = 1 << 17;
        /// The hypercall MSR can be locked.
        const HYPERCALL_MSR_LOCK = 1 << 18;
        /// Timers may raise a vector directly.
        const STIMER_DIRECT_MODE = 1 << 19;
    }
}

wire_flags! {
    /// EAX of [`ENLIGHTENMENT_INFO`]: what the hypervisor recommends.
    pub struct Recommendations(u32) {
        /// Hypercall for switching address spaces.
        const ADDRESS_SPACE_SWITCH = 1 << 0;
        /// Hypercall for local TLB flushes.
        const LOCAL_TLB_FLUSH = 1 << 1;
        /// Hypercall for remote TLB flushes.
        const REMOTE_TLB_FLUSH = 1 << 2;
        /// MSRs for APIC access.
        const APIC_MSRS = 1 << 3;
        /// MSR for reset.
        const RESET_MSR = 1 << 4;
        /// Watchdogs should be lenient.
        const RELAXED_TIMING = 1 << 5;
        /// Do not use AutoEOI.
        const DEPRECATE_AUTO_EOI = 1 << 9;
        /// Hypercall for IPIs.
        const CLUSTER_IPI = 1 << 10;
        /// Hypercalls with sparse VP sets.
        const EX_PROCESSOR_MASKS = 1 << 11;
        /// The hypervisor is nested.
        const NESTED = 1 << 12;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_spell_their_text() {
        let vendor: std::vec::Vec<u8> = VENDOR_SIGNATURE
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(vendor, b"Microsoft Hv");
        assert_eq!(&INTERFACE_SIGNATURE.to_le_bytes(), b"Hv#1");
        assert_eq!(&VIRT_STACK_SIGNATURE.to_le_bytes(), b"VS#1");
    }
}
