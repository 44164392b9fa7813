// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The hypervisor's CPUID leaves (TLFS, "Feature and Interface Discovery").

use crate::tlfs::cpuid as leaf;

/// `HV_PARTITION_PRIVILEGE_MASK` low half (leaf 0x40000003 EAX): which MSRs the guest may use.
pub mod features_eax {
    /// AccessVpRunTimeReg
    pub const VP_RUNTIME: u32 = 1 << 0;
    /// AccessPartitionReferenceCounter
    pub const REFERENCE_COUNTER: u32 = 1 << 1;
    /// AccessSynicRegs
    pub const SYNIC: u32 = 1 << 2;
    /// AccessSyntheticTimerRegs
    pub const STIMERS: u32 = 1 << 3;
    /// AccessIntrCtrlRegs: EOI, ICR, TPR and the VP assist page
    pub const APIC: u32 = 1 << 4;
    /// AccessHypercallMsrs
    pub const HYPERCALL: u32 = 1 << 5;
    /// AccessVpIndex
    pub const VP_INDEX: u32 = 1 << 6;
    /// AccessResetReg
    pub const RESET: u32 = 1 << 7;
    /// AccessPartitionReferenceTsc
    pub const REFERENCE_TSC: u32 = 1 << 9;
    /// AccessFrequencyRegs
    pub const FREQUENCY: u32 = 1 << 11;
}

/// `HV_PARTITION_PRIVILEGE_MASK` high half (leaf 0x40000003 EBX): which hypercalls the guest may
/// make.
pub mod features_ebx {
    /// PostMessages
    pub const POST_MESSAGES: u32 = 1 << 4;
    /// SignalEvents
    pub const SIGNAL_EVENTS: u32 = 1 << 5;
    /// EnableExtendedHypercalls
    pub const EXTENDED_HYPERCALLS: u32 = 1 << 20;
}

/// Leaf 0x40000003 EDX: what else exists.
pub mod features_edx {
    /// Frequency MSRs exist.
    pub const FREQUENCY: u32 = 1 << 8;
    /// Guest crash MSRs exist.
    pub const CRASH: u32 = 1 << 10;
    /// SINT polling mode exists.
    pub const SINT_POLLING: u32 = 1 << 17;
    /// The hypercall MSR can be locked.
    pub const HYPERCALL_LOCK: u32 = 1 << 18;
    /// Synthetic timers can interrupt directly.
    pub const DIRECT_STIMERS: u32 = 1 << 19;
}

/// Leaf 0x40000004 EAX: what the guest should prefer.
pub mod hints_eax {
    /// Relaxed timing: no watchdogs that assume real time.
    pub const RELAXED_TIMING: u32 = 1 << 5;
    /// AutoEOI is deprecated.
    pub const DEPRECATE_AUTO_EOI: u32 = 1 << 9;
}

/// The answer to CPUID `function` for a partition of `vp_count` virtual processors, as EAX, EBX,
/// ECX, EDX; `None` when the leaf is not of the hypervisor range, so that the processor must
/// answer.
///
/// All of 0x40000000..=0x400000ff is answered, with zeros where the TLFS defines nothing: a
/// machine's own answer there (KVM's, Xen's, or the highest basic leaf as real processors give)
/// would be taken for Hyper-V's. In particular the leaves 0x40000080..0x40000082 of the
/// virtualization stack must read as zero: no confidential VMBus.
pub fn answer(function: u32, vp_count: u32) -> Option<[u32; 4]> {
    if !(leaf::FIRST..=leaf::LAST).contains(&function) {
        return None;
    }
    let word = |text: &[u8; 4]| u32::from_le_bytes(*text);
    Some(match function {
        leaf::VENDOR => [leaf::HARDWARE, word(b"Micr"), word(b"osof"), word(b"t Hv")],
        leaf::INTERFACE => [word(b"Hv#1"), 0, 0, 0],
        // Build 26100 of version 10.0, the one of Windows Server 2025, which is the first with
        // VMBus 6.0; ECX service pack 0, EDX service branch 0, number 0.
        leaf::VERSION => [26100, 10 << 16, 0, 0],
        leaf::FEATURES => {
            let eax = features_eax::VP_RUNTIME
                | features_eax::REFERENCE_COUNTER
                | features_eax::SYNIC
                | features_eax::STIMERS
                | features_eax::APIC
                | features_eax::HYPERCALL
                | features_eax::VP_INDEX
                | features_eax::RESET
                | features_eax::REFERENCE_TSC
                | features_eax::FREQUENCY;
            let ebx = features_ebx::POST_MESSAGES
                | features_ebx::SIGNAL_EVENTS
                | features_ebx::EXTENDED_HYPERCALLS;
            let edx = features_edx::FREQUENCY
                | features_edx::CRASH
                | features_edx::SINT_POLLING
                | features_edx::HYPERCALL_LOCK
                | features_edx::DIRECT_STIMERS;
            [eax, ebx, 0, edx]
        }
        // EBX: spin this often before HvCallNotifyLongSpinWait; all ones: never.
        // ECX: physical address bits, 0: not told.
        leaf::RECOMMENDATIONS => [
            hints_eax::RELAXED_TIMING | hints_eax::DEPRECATE_AUTO_EOI,
            u32::MAX,
            0,
            0,
        ],
        // EAX virtual processors, EBX logical processors, ECX physical interrupt vectors for
        // remapping.
        leaf::LIMITS => [vp_count, vp_count, 0, 0],
        _ => [0; 4],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_one_of_the_tlfs() {
        // TLFS, HvCpuIdFunction...: vendor id "Microsoft Hv" in EBX, ECX, EDX; EAX the highest
        // leaf, >= 0x40000005.
        let [max, b, c, d] = answer(0x4000_0000, 4).unwrap();
        assert!(
            (0x4000_0005..0x4000_000a).contains(&max),
            "leaf 0x4000000a would announce nested features"
        );
        let text: Vec<u8> = [b, c, d].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(text, b"Microsoft Hv");
        assert_eq!(answer(0x4000_0001, 4).unwrap(), [0x3123_7648, 0, 0, 0]);
        // Bits, counted by hand from the TLFS tables.
        let [eax, ebx, ecx, edx] = answer(0x4000_0003, 4).unwrap();
        assert_eq!(eax, 0b1010_1111_1111);
        assert_eq!(ebx, 0x0010_0030);
        assert_eq!(ecx, 0);
        assert_eq!(edx, 0x000e_0500);
        let [eax, ebx, ..] = answer(0x4000_0004, 4).unwrap();
        assert_eq!(eax, 0x220);
        assert_eq!(ebx, 0xffff_ffff);
        assert_eq!(answer(0x4000_0005, 4).unwrap(), [4, 4, 0, 0]);
    }

    #[test]
    fn the_whole_range_is_answered_and_nothing_else() {
        for function in 0x4000_0007..=0x4000_00ff {
            assert_eq!(answer(function, 1), Some([0; 4]), "{function:#x}");
        }
        for function in [0, 1, 0x3fff_ffff, 0x4000_0100, 0x8000_0000, u32::MAX] {
            assert_eq!(answer(function, 1), None, "{function:#x}");
        }
    }

    #[test]
    fn nothing_confidential_is_offered() {
        const ISOLATION: u32 = 1 << 22;
        assert_eq!(answer(0x4000_0003, 1).unwrap()[1] & ISOLATION, 0);
        assert_eq!(answer(0x4000_0082, 1).unwrap(), [0; 4]);
    }
}
