// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The hypervisor's CPUID leaves (TLFS, "Feature and Interface Discovery").

use vmbus_proto::tlfs::cpuid::{
    self as leaf, Features, Privileges, Recommendations, INTERFACE_SIGNATURE, VENDOR_SIGNATURE,
};

/// What the partition may do. No isolation: not a confidential VM.
const PRIVILEGES: Privileges = Privileges::VP_RUNTIME
    .union(Privileges::TIME_REF_COUNT)
    .union(Privileges::SYNIC)
    .union(Privileges::SYNTHETIC_TIMERS)
    .union(Privileges::APIC_ACCESS)
    .union(Privileges::HYPERCALL)
    .union(Privileges::VP_INDEX)
    .union(Privileges::RESET)
    .union(Privileges::REFERENCE_TSC)
    .union(Privileges::FREQUENCY_MSRS)
    .union(Privileges::POST_MESSAGES)
    .union(Privileges::SIGNAL_EVENTS)
    .union(Privileges::EXTENDED_HYPERCALLS);

const FEATURES: Features = Features::FREQUENCY_MSRS
    .union(Features::CRASH_MSRS)
    .union(Features::SINT_POLLING)
    .union(Features::HYPERCALL_MSR_LOCK)
    .union(Features::STIMER_DIRECT_MODE);

const RECOMMENDATIONS: Recommendations =
    Recommendations::RELAXED_TIMING.union(Recommendations::DEPRECATE_AUTO_EOI);

/// Spins before HvCallNotifyLongSpinWait: never.
const SPIN_RETRIES: u32 = u32::MAX;

/// The answer to CPUID `function` for a partition of `vp_count` virtual processors, as EAX, EBX,
/// ECX, EDX; `None` when the leaf is not of the hypervisor range, so that the processor must
/// answer.
///
/// All of 0x40000000..=0x400000ff is answered, with zeros where the TLFS defines nothing: a
/// machine's own answer there (KVM's, Xen's, or the highest basic leaf as real processors give)
/// would be taken for Hyper-V's. In particular the leaves 0x40000080..0x40000082 of the
/// virtualization stack must read as zero: no confidential VMBus.
pub fn answer(function: u32, vp_count: u32) -> Option<[u32; 4]> {
    if !(leaf::VENDOR_AND_MAX_FUNCTIONS..=leaf::LAST_HYPERVISOR_LEAF).contains(&function) {
        return None;
    }
    let [vendor_b, vendor_c, vendor_d] = VENDOR_SIGNATURE;
    Some(match function {
        leaf::VENDOR_AND_MAX_FUNCTIONS => [leaf::HARDWARE_FEATURES, vendor_b, vendor_c, vendor_d],
        leaf::INTERFACE => [INTERFACE_SIGNATURE, 0, 0, 0],
        // Build 26100 of version 10.0, the one of Windows Server 2025, which is the first with
        // VMBus 6.0; service pack 0, branch 0.
        leaf::VERSION => [26100, 10 << 16, 0, 0],
        leaf::FEATURES => {
            let privileges = PRIVILEGES.bits();
            [
                privileges as u32,
                (privileges >> 32) as u32,
                0,
                FEATURES.bits(),
            ]
        }
        // ECX: physical address bits, 0: not told.
        leaf::ENLIGHTENMENT_INFO => [RECOMMENDATIONS.bits(), SPIN_RETRIES, 0, 0],
        leaf::IMPLEMENTATION_LIMITS => [vp_count, vp_count, 0, 0],
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
