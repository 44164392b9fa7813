// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Numbers of the synthetic MSRs (TLFS, "Synthetic MSRs"; hvgdk `HV_X64_MSR_*`).

macro_rules! msrs {
    ($( $(#[$meta:meta])* $name:ident = $value:literal; )*) => {
        $( $(#[$meta])* pub const $name: u32 = $value; )*

        /// The name of an MSR, for logs.
        #[must_use]
        pub const fn name(msr: u32) -> Option<&'static str> {
            match msr {
                $( $name => Some(stringify!($name)), )*
                _ => None,
            }
        }
    };
}

msrs! {
    /// Identity of the guest OS; zero disables hypercalls.
    GUEST_OS_ID = 0x4000_0000;
    /// Hypercall page.
    HYPERCALL = 0x4000_0001;
    /// Index of this VP; read only.
    VP_INDEX = 0x4000_0002;
    /// Write 1 to reset the machine.
    RESET = 0x4000_0003;
    /// Run time of this VP, 100 ns; read only.
    VP_RUNTIME = 0x4000_0010;
    /// Partition reference time, 100 ns; read only.
    TIME_REF_COUNT = 0x4000_0020;
    /// Reference TSC page.
    REFERENCE_TSC = 0x4000_0021;
    /// TSC frequency in Hz; read only.
    TSC_FREQUENCY = 0x4000_0022;
    /// APIC timer frequency in Hz; read only.
    APIC_FREQUENCY = 0x4000_0023;
    /// Fast access to the APIC's EOI; write only.
    EOI = 0x4000_0070;
    /// Fast access to the APIC's ICR.
    ICR = 0x4000_0071;
    /// Fast access to the APIC's TPR.
    TPR = 0x4000_0072;
    /// VP assist page.
    VP_ASSIST_PAGE = 0x4000_0073;
    /// SynIC control.
    SCONTROL = 0x4000_0080;
    /// SynIC version; read only.
    SVERSION = 0x4000_0081;
    /// Event flags page.
    SIEFP = 0x4000_0082;
    /// Message page.
    SIMP = 0x4000_0083;
    /// End of message; write only.
    EOM = 0x4000_0084;
    /// Event ring page of a parent (hvgdk `SIRBP`).
    SIRBP = 0x4000_0085;
    /// First of 16 SINT registers.
    SINT0 = 0x4000_0090;
    /// SINT of VMBus.
    SINT2 = 0x4000_0092;
    /// Last SINT register.
    SINT15 = 0x4000_009f;
    /// First of four pairs of timer registers: configuration, then count.
    STIMER0_CONFIG = 0x4000_00b0;
    /// Count of the first timer.
    STIMER0_COUNT = 0x4000_00b1;
    /// Count of the last timer.
    STIMER3_COUNT = 0x4000_00b7;
    /// Reading it idles the VP.
    GUEST_IDLE = 0x4000_00f0;
    /// First of five crash parameters.
    CRASH_P0 = 0x4000_0100;
    /// Second.
    CRASH_P1 = 0x4000_0101;
    /// Third.
    CRASH_P2 = 0x4000_0102;
    /// Fourth; Linux: guest-physical address of the panic text.
    CRASH_P3 = 0x4000_0103;
    /// Fifth; Linux: length of the panic text in bytes.
    CRASH_P4 = 0x4000_0104;
    /// Writing it reports a crash.
    CRASH_CTL = 0x4000_0105;
    /// Interrupt after migration.
    REENLIGHTENMENT_CONTROL = 0x4000_0106;
    /// TSC emulation after migration.
    TSC_EMULATION_CONTROL = 0x4000_0107;
    /// State of TSC emulation.
    TSC_EMULATION_STATUS = 0x4000_0108;
    /// Show the invariant TSC in CPUID.
    TSC_INVARIANT_CONTROL = 0x4000_0118;
}

/// Synthetic MSRs lie from here …
pub const FIRST: u32 = 0x4000_0000;
/// … to here.
pub const LAST: u32 = 0x4000_ffff;

/// Bit 62 of CRASH_CTL: parameters P3 and P4 describe a text
/// (hvgdk `HV_CRASH_CTL_CRASH_NOTIFY_MSG`).
pub const CRASH_NOTIFY_MSG: u64 = 1 << 62;
/// Bit 63 of CRASH_CTL: the guest has crashed (hvgdk `HV_CRASH_CTL_CRASH_NOTIFY`).
pub const CRASH_NOTIFY: u64 = 1 << 63;
