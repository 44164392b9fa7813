// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Hypercalls: control word, status codes, and the inputs of the calls that VMBus uses.

use core::fmt;
use zerocopy_derive::*;

use super::synic::MAX_PAYLOAD_SIZE;

open_enum! {
    /// Call code, bits 15:0 of the control word (TLFS, "Hypercall Reference").
    pub struct HypercallCode(u16) {
        /// HvCallFlushVirtualAddressSpace.
        FLUSH_VIRTUAL_ADDRESS_SPACE = 0x0002,
        /// HvCallFlushVirtualAddressList.
        FLUSH_VIRTUAL_ADDRESS_LIST = 0x0003,
        /// HvCallNotifyLongSpinWait.
        NOTIFY_LONG_SPIN_WAIT = 0x0008,
        /// HvCallSendSyntheticClusterIpi.
        SEND_IPI = 0x000b,
        /// HvCallFlushVirtualAddressSpaceEx.
        FLUSH_VIRTUAL_ADDRESS_SPACE_EX = 0x0013,
        /// HvCallFlushVirtualAddressListEx.
        FLUSH_VIRTUAL_ADDRESS_LIST_EX = 0x0014,
        /// HvCallSendSyntheticClusterIpiEx.
        SEND_IPI_EX = 0x0015,
        /// HvCallGetPartitionId.
        GET_PARTITION_ID = 0x0046,
        /// HvCallGetVpRegisters.
        GET_VP_REGISTERS = 0x0050,
        /// HvCallSetVpRegisters.
        SET_VP_REGISTERS = 0x0051,
        /// HvCallPostMessage.
        POST_MESSAGE = 0x005c,
        /// HvCallSignalEvent.
        SIGNAL_EVENT = 0x005d,
        /// HvCallPostDebugData.
        POST_DEBUG_DATA = 0x0069,
        /// HvCallRetrieveDebugData.
        RETRIEVE_DEBUG_DATA = 0x006a,
        /// HvCallResetDebugSession.
        RESET_DEBUG_SESSION = 0x006b,
        /// HvCallRetargetDeviceInterrupt.
        RETARGET_DEVICE_INTERRUPT = 0x007e,
        /// HvCallGetVpIndexFromApicId.
        GET_VP_INDEX_FROM_APIC_ID = 0x009a,
        /// HvExtCallQueryCapabilities: first of the extended calls.
        EXT_QUERY_CAPABILITIES = 0x8001,
        /// HvExtCallGetBootZeroedMemory.
        EXT_GET_BOOT_ZEROED_MEMORY = 0x8002,
        /// HvExtCallMemoryHeatHint.
        EXT_MEMORY_HEAT_HINT = 0x8003,
    }
}

/// Hypercall control word, the first input (TLFS, "Hypercall Interface", "Hypercall Inputs").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HypercallControl(pub u64);

impl HypercallControl {
    /// Bit 16: input is in registers, not in memory.
    pub const FAST: u64 = 1 << 16;
    /// Bits that must be zero: 31:27 but for the nested bit, 47:44, 63:60.
    pub const RESERVED: u64 = 0x0000_0000_7800_0000 | 0x0000_f000_0000_0000 | 0xf000_0000_0000_0000;

    /// A call without repetitions and without variable header.
    #[must_use]
    pub const fn simple(code: HypercallCode, fast: bool) -> Self {
        Self(code.0 as u64 | if fast { Self::FAST } else { 0 })
    }

    /// Call code, bits 15:0.
    #[must_use]
    pub const fn code(self) -> HypercallCode {
        HypercallCode(self.0 as u16)
    }

    /// Whether the input is in registers.
    #[must_use]
    pub const fn is_fast(self) -> bool {
        self.0 & Self::FAST != 0
    }

    /// Size of the variable header in units of 8 bytes, bits 26:17.
    #[must_use]
    pub const fn variable_header_qwords(self) -> u16 {
        ((self.0 >> 17) & 0x3ff) as u16
    }

    /// Bit 31: addressed to the hypervisor below the nested one.
    #[must_use]
    pub const fn is_nested(self) -> bool {
        self.0 & (1 << 31) != 0
    }

    /// Repetitions in all, bits 43:32.
    #[must_use]
    pub const fn rep_count(self) -> u16 {
        ((self.0 >> 32) & 0xfff) as u16
    }

    /// Repetition to start with, bits 59:48.
    #[must_use]
    pub const fn rep_start(self) -> u16 {
        ((self.0 >> 48) & 0xfff) as u16
    }

    /// Whether a reserved bit is set.
    #[must_use]
    pub const fn has_reserved(self) -> bool {
        self.0 & Self::RESERVED != 0
    }
}

impl fmt::Debug for HypercallControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}{}",
            self.code(),
            if self.is_fast() { " (fast)" } else { "" }
        )
    }
}

/// Hypercall result word: status in bits 15:0, repetitions done in bits 43:32
/// (TLFS, "Hypercall Interface", "Hypercall Outputs").
#[must_use]
pub const fn hypercall_result(status: HvStatus, reps_done: u16) -> u64 {
    (status.0 as u64) | (((reps_done & 0xfff) as u64) << 32)
}

open_enum! {
    /// HV_STATUS: outcome of a hypercall (TLFS, "Hypercall Status Codes").
    pub struct HvStatus(u16) {
        /// Done.
        SUCCESS = 0x0000,
        /// The call code is unknown or not permitted.
        INVALID_HYPERCALL_CODE = 0x0002,
        /// The control word is malformed (reserved bits, repetitions, fast form not supported).
        INVALID_HYPERCALL_INPUT = 0x0003,
        /// An input or output address is not 8-byte aligned or crosses a page.
        INVALID_ALIGNMENT = 0x0004,
        /// A parameter is out of range.
        INVALID_PARAMETER = 0x0005,
        /// The caller lacks the privilege.
        ACCESS_DENIED = 0x0006,
        /// The partition is in the wrong state.
        INVALID_PARTITION_STATE = 0x0007,
        /// Not allowed now.
        OPERATION_DENIED = 0x0008,
        /// No such property.
        UNKNOWN_PROPERTY = 0x0009,
        /// The property cannot have that value.
        PROPERTY_VALUE_OUT_OF_RANGE = 0x000a,
        /// The hypervisor has too little memory.
        INSUFFICIENT_MEMORY = 0x000b,
        /// No such partition.
        INVALID_PARTITION_ID = 0x000d,
        /// No such VP.
        INVALID_VP_INDEX = 0x000e,
        /// Not found.
        NOT_FOUND = 0x0010,
        /// No such port.
        INVALID_PORT_ID = 0x0011,
        /// No such connection, or its type does not fit the call.
        INVALID_CONNECTION_ID = 0x0012,
        /// The target has no free message buffer; try again later.
        INSUFFICIENT_BUFFERS = 0x0013,
        /// An earlier interrupt has not been acknowledged.
        NOT_ACKNOWLEDGED = 0x0014,
        /// The VP is in the wrong state.
        INVALID_VP_STATE = 0x0015,
        /// Out of some resource.
        NO_RESOURCES = 0x001d,
        /// The processor lacks a feature.
        PROCESSOR_FEATURE_NOT_SUPPORTED = 0x0020,
        /// The SynIC does not accept it (message page or SINT disabled).
        INVALID_SYNIC_STATE = 0x0018,
        /// A register cannot have that value.
        INVALID_REGISTER_VALUE = 0x0050,
        /// Timed out.
        TIME_OUT = 0x0078,
    }
}

impl HvStatus {
    /// The status in a hypercall's result word, bits 15:0.
    #[must_use]
    pub const fn from_result(result: u64) -> Self {
        Self(result as u16)
    }

    /// Whether the call was done.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// Whether HvCallPostMessage may be tried again after a delay: Linux does so for exactly these
    /// (`connection.c`, `vmbus_post_msg`). An invalid connection id is among them as hosts
    /// return it while the connection is being set up; for INITIATE_CONTACT it rather means that
    /// the version is not supported.
    #[must_use]
    pub const fn is_transient_for_post(self) -> bool {
        matches!(
            self,
            Self::INVALID_CONNECTION_ID | Self::INSUFFICIENT_MEMORY | Self::INSUFFICIENT_BUFFERS
        )
    }
}

/// Connection id: 24 bits (TLFS, "Inter-Partition Communication", `HV_CONNECTION_ID`).
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
)]
#[repr(transparent)]
pub struct ConnectionId(pub u32);

impl ConnectionId {
    /// Whether the reserved upper 8 bits are zero.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 >> 24 == 0
    }
}

/// Input of HvCallPostMessage in memory (TLFS, "HvCallPostMessage"; `hyperv_vmbus.h`,
/// `struct hv_input_post_message`). Lies within one page, 8-byte aligned.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PostMessageInput {
    /// Where the message goes.
    pub connection_id: ConnectionId,
    /// Zero.
    pub reserved: u32,
    /// Type, bit 31 clear: types with the bit set are the hypervisor's.
    pub message_type: u32,
    /// Bytes of `payload` used, at most 240.
    pub payload_size: u32,
    /// The message.
    pub payload: [u8; MAX_PAYLOAD_SIZE],
}

assert_layout!(
    PostMessageInput,
    size = 256,
    connection_id = 0,
    reserved = 4,
    message_type = 8,
    payload_size = 12,
    payload = 16
);

/// Bytes of [`PostMessageInput`] before the payload.
pub const POST_MESSAGE_HEADER_SIZE: usize = 16;

/// Input of HvCallSignalEvent (TLFS, "HvCallSignalEvent"): in memory, or for the fast form in the
/// first input register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SignalEventInput {
    /// Where the event goes.
    pub connection_id: ConnectionId,
    /// Flag relative to the port's base flag.
    pub flag: u16,
    /// Zero.
    pub reserved: u16,
}

assert_layout!(
    SignalEventInput,
    size = 8,
    connection_id = 0,
    flag = 4,
    reserved = 6
);

impl SignalEventInput {
    /// As the register of the fast form.
    #[must_use]
    pub const fn to_u64(self) -> u64 {
        self.connection_id.0 as u64 | ((self.flag as u64) << 32) | ((self.reserved as u64) << 48)
    }

    /// From the register of the fast form.
    #[must_use]
    pub const fn from_u64(value: u64) -> Self {
        Self {
            connection_id: ConnectionId(value as u32),
            flag: (value >> 32) as u16,
            reserved: (value >> 48) as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_word_fields() {
        let c = HypercallControl::simple(HypercallCode::SIGNAL_EVENT, true);
        assert_eq!(c.0, 0x1_005d);
        assert!(c.is_fast() && !c.has_reserved());
        let c = HypercallControl(0x0123_0456_0002_0013 | 0x8000_0000);
        assert_eq!(c.rep_start(), 0x123);
        assert_eq!(c.rep_count(), 0x456);
        assert_eq!(c.variable_header_qwords(), 1);
        assert!(c.is_nested() && !c.has_reserved() && !c.is_fast());
        for bit in [27, 30, 44, 47, 60, 63] {
            assert!(HypercallControl(1 << bit).has_reserved(), "bit {bit}");
        }
    }

    #[test]
    fn signal_event_register_is_the_memory_form() {
        let input = SignalEventInput {
            connection_id: ConnectionId(0x00ab_cdef),
            flag: 0x1234,
            reserved: 0,
        };
        let mut bytes = [0; 8];
        zerocopy::IntoBytes::write_to(&input, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), input.to_u64());
        assert_eq!(SignalEventInput::from_u64(input.to_u64()), input);
    }

    #[test]
    fn result_word() {
        let r = hypercall_result(HvStatus::INSUFFICIENT_BUFFERS, 3);
        assert_eq!(r, 0x3_0000_0013);
        assert_eq!(HvStatus::from_result(r), HvStatus::INSUFFICIENT_BUFFERS);
    }
}
