// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Numbers of the Hypervisor Top-Level Functional Specification ("TLFS", Microsoft, version 6.0b
//! and the pages at learn.microsoft.com/virtualization/hyper-v-on-windows/tlfs) that this crate
//! emulates. Names follow the TLFS and `include/hyperv/hvgdk_mini.h` of Linux.

/// Bytes of a hypervisor page.
pub const PAGE_SIZE: usize = 4096;
/// Synthetic interrupt sources per VP.
pub const SINT_COUNT: usize = 16;
/// Synthetic timers per VP.
pub const STIMER_COUNT: usize = 4;
/// Event flags per SINT (TLFS "SynIC Event Flags": 256 bytes).
pub const EVENT_FLAGS_COUNT: u16 = 2048;
/// Bytes of one message slot (TLFS `HV_MESSAGE`).
pub const MESSAGE_SIZE: usize = 256;
/// Largest payload of a message (TLFS `HV_MESSAGE_PAYLOAD_BYTE_COUNT`).
pub const MESSAGE_PAYLOAD_MAX: usize = 240;

/// CPUID leaves, TLFS "Feature and Interface Discovery".
pub mod cpuid {
    /// First leaf of the hypervisor range.
    pub const FIRST: u32 = 0x4000_0000;
    /// Last leaf of the hypervisor range that is answered here.
    pub const LAST: u32 = 0x4000_00ff;
    /// Vendor and highest leaf.
    pub const VENDOR: u32 = 0x4000_0000;
    /// Interface signature.
    pub const INTERFACE: u32 = 0x4000_0001;
    /// Version.
    pub const VERSION: u32 = 0x4000_0002;
    /// Features: EAX/EBX are `HV_PARTITION_PRIVILEGE_MASK`.
    pub const FEATURES: u32 = 0x4000_0003;
    /// Implementation recommendations.
    pub const RECOMMENDATIONS: u32 = 0x4000_0004;
    /// Implementation limits.
    pub const LIMITS: u32 = 0x4000_0005;
    /// Hardware features in use.
    pub const HARDWARE: u32 = 0x4000_0006;
}

/// Synthetic MSRs.
pub mod msr {
    /// First MSR of the range that is ours.
    pub const FIRST: u32 = 0x4000_0000;
    /// Last MSR of the range that is ours.
    pub const LAST: u32 = 0x4000_1fff;
    /// HV_X64_MSR_GUEST_OS_ID
    pub const GUEST_OS_ID: u32 = 0x4000_0000;
    /// HV_X64_MSR_HYPERCALL
    pub const HYPERCALL: u32 = 0x4000_0001;
    /// HV_X64_MSR_VP_INDEX
    pub const VP_INDEX: u32 = 0x4000_0002;
    /// HV_X64_MSR_RESET
    pub const RESET: u32 = 0x4000_0003;
    /// HV_X64_MSR_VP_RUNTIME
    pub const VP_RUNTIME: u32 = 0x4000_0010;
    /// HV_X64_MSR_TIME_REF_COUNT
    pub const TIME_REF_COUNT: u32 = 0x4000_0020;
    /// HV_X64_MSR_REFERENCE_TSC
    pub const REFERENCE_TSC: u32 = 0x4000_0021;
    /// HV_X64_MSR_TSC_FREQUENCY
    pub const TSC_FREQUENCY: u32 = 0x4000_0022;
    /// HV_X64_MSR_APIC_FREQUENCY
    pub const APIC_FREQUENCY: u32 = 0x4000_0023;
    /// HV_X64_MSR_EOI
    pub const EOI: u32 = 0x4000_0070;
    /// HV_X64_MSR_ICR
    pub const ICR: u32 = 0x4000_0071;
    /// HV_X64_MSR_TPR
    pub const TPR: u32 = 0x4000_0072;
    /// HV_X64_MSR_VP_ASSIST_PAGE
    pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
    /// HV_X64_MSR_SCONTROL
    pub const SCONTROL: u32 = 0x4000_0080;
    /// HV_X64_MSR_SVERSION
    pub const SVERSION: u32 = 0x4000_0081;
    /// HV_X64_MSR_SIEFP
    pub const SIEFP: u32 = 0x4000_0082;
    /// HV_X64_MSR_SIMP
    pub const SIMP: u32 = 0x4000_0083;
    /// HV_X64_MSR_EOM
    pub const EOM: u32 = 0x4000_0084;
    /// HV_X64_MSR_SINT0, the first of sixteen
    pub const SINT0: u32 = 0x4000_0090;
    /// HV_X64_MSR_SINT15
    pub const SINT15: u32 = 0x4000_009f;
    /// HV_X64_MSR_STIMER0_CONFIG; even offsets are configurations, odd ones counts
    pub const STIMER0_CONFIG: u32 = 0x4000_00b0;
    /// HV_X64_MSR_STIMER3_COUNT
    pub const STIMER3_COUNT: u32 = 0x4000_00b7;
    /// HV_X64_MSR_CRASH_P0, the first of five
    pub const CRASH_P0: u32 = 0x4000_0100;
    /// HV_X64_MSR_CRASH_P4
    pub const CRASH_P4: u32 = 0x4000_0104;
    /// HV_X64_MSR_CRASH_CTL
    pub const CRASH_CTL: u32 = 0x4000_0105;
}

/// Bits of `HV_X64_MSR_HYPERCALL`, of the overlay registers and of `HV_X64_MSR_CRASH_CTL`.
pub mod bits {
    /// Enable bit of the hypercall, reference TSC, SIMP, SIEFP and VP assist registers, and of
    /// SCONTROL.
    pub const ENABLE: u64 = 1;
    /// Locked bit of the hypercall register.
    pub const HYPERCALL_LOCKED: u64 = 2;
    /// Page number field of the overlay registers (in place).
    pub const GPA_MASK: u64 = !0xfff;
    /// Reserved bits of SIMP, SIEFP and the reference TSC register: preserved, not acted upon.
    pub const OVERLAY_RESERVED: u64 = 0xffe;
    /// SINT: no delivery.
    pub const SINT_MASKED: u64 = 1 << 16;
    /// SINT: the hypervisor performs the EOI.
    pub const SINT_AUTO_EOI: u64 = 1 << 17;
    /// SINT: deliver messages and flags, but no interrupt.
    pub const SINT_POLLING: u64 = 1 << 18;
    /// SINT: proxied to a doorbell.
    pub const SINT_PROXY: u64 = 1 << 20;
    /// CRASH_CTL: parameters are valid, tell the host.
    pub const CRASH_NOTIFY: u64 = 1 << 63;
    /// CRASH_CTL: P3 is the address and P4 the length of a text (Linux
    /// `HV_CRASH_CTL_CRASH_NOTIFY_MSG`).
    pub const CRASH_MESSAGE: u64 = 1 << 62;
    /// Timer: counting.
    pub const STIMER_ENABLED: u64 = 1;
    /// Timer: periodic.
    pub const STIMER_PERIODIC: u64 = 1 << 1;
    /// Timer: expirations may be dropped when late.
    pub const STIMER_LAZY: u64 = 1 << 2;
    /// Timer: writing a count enables.
    pub const STIMER_AUTO_ENABLE: u64 = 1 << 3;
    /// Timer: interrupt instead of message.
    pub const STIMER_DIRECT: u64 = 1 << 12;
    /// Bits of a timer configuration that exist.
    pub const STIMER_VALID: u64 = 0xf | 0xff << 4 | 1 << 12 | 0xf << 16;
}

/// Hypercall codes (TLFS "Hypercall Reference").
pub mod call {
    /// HvCallNotifyLongSpinWait
    pub const NOTIFY_LONG_SPIN_WAIT: u16 = 0x0008;
    /// HvCallPostMessage
    pub const POST_MESSAGE: u16 = 0x005c;
    /// HvCallSignalEvent
    pub const SIGNAL_EVENT: u16 = 0x005d;
    /// HvCallGetVpIndexFromApicId
    pub const GET_VP_INDEX_FROM_APIC_ID: u16 = 0x009a;
    /// HvExtCallQueryCapabilities
    pub const EXT_QUERY_CAPABILITIES: u16 = 0x8001;
}

/// HV_STATUS values (TLFS "Hypercall Status Codes").
pub mod status {
    /// HV_STATUS_SUCCESS
    pub const SUCCESS: u16 = 0x0000;
    /// HV_STATUS_INVALID_HYPERCALL_CODE
    pub const INVALID_HYPERCALL_CODE: u16 = 0x0002;
    /// HV_STATUS_INVALID_HYPERCALL_INPUT
    pub const INVALID_HYPERCALL_INPUT: u16 = 0x0003;
    /// HV_STATUS_INVALID_ALIGNMENT
    pub const INVALID_ALIGNMENT: u16 = 0x0004;
    /// HV_STATUS_INVALID_PARAMETER
    pub const INVALID_PARAMETER: u16 = 0x0005;
    /// HV_STATUS_ACCESS_DENIED
    pub const ACCESS_DENIED: u16 = 0x0006;
    /// HV_STATUS_INVALID_PARTITION_ID
    pub const INVALID_PARTITION_ID: u16 = 0x000d;
    /// HV_STATUS_INVALID_PORT_ID
    pub const INVALID_PORT_ID: u16 = 0x0011;
    /// HV_STATUS_INVALID_CONNECTION_ID
    pub const INVALID_CONNECTION_ID: u16 = 0x0012;
    /// HV_STATUS_INSUFFICIENT_BUFFERS
    pub const INSUFFICIENT_BUFFERS: u16 = 0x0013;
    /// HV_STATUS_INVALID_VP_INDEX
    pub const INVALID_VP_INDEX: u16 = 0x000e;
}

/// HvMessageTypeTimerExpired (TLFS "SynIC Message Types").
pub const MESSAGE_TIMER_EXPIRED: u32 = 0x8000_0010;
/// Message types with this bit belong to the hypervisor; guests may not post them.
pub const MESSAGE_TYPE_HYPERVISOR: u32 = 0x8000_0000;
/// HV_PARTITION_ID_SELF
pub const PARTITION_ID_SELF: u64 = u64::MAX;
