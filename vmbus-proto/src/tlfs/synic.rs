// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Synthetic interrupt controller: messages, event flags, registers, synthetic timers
//! (TLFS, "Inter-Partition Communication" and "Timers").

use core::fmt;
use zerocopy_derive::*;

/// SINTs per VP (`HV_SYNIC_SINT_COUNT`).
pub const SINT_COUNT: usize = 16;

/// Synthetic timers per VP (`HV_SYNIC_STIMER_COUNT`).
pub const STIMER_COUNT: usize = 4;

/// Lowest vector a SINT may have (`HV_SYNIC_FIRST_VALID_VECTOR`).
pub const FIRST_VALID_VECTOR: u8 = 16;

/// Value of the SVERSION register (`HV_SYNIC_VERSION_1`).
pub const SYNIC_VERSION: u64 = 1;

/// Size of a message in bytes (`HV_MESSAGE_SIZE`).
pub const MESSAGE_SIZE: usize = 256;

/// Largest payload of a message in bytes (`HV_MESSAGE_PAYLOAD_BYTE_COUNT`).
pub const MAX_PAYLOAD_SIZE: usize = 240;

/// Event flags per SINT (`HV_EVENT_FLAGS_COUNT`).
pub const EVENT_FLAGS_COUNT: usize = 2048;

open_enum! {
    /// Type of a SynIC message (TLFS, "SynIC Message Types"). Types below 0x80000000 belong to
    /// the sender.
    pub struct MessageType(u32) {
        /// The slot is empty.
        NONE = 0x0000_0000,
        /// Access to unmapped memory (to a parent).
        UNMAPPED_GPA = 0x8000_0000,
        /// Access to memory under intercept (to a parent).
        GPA_INTERCEPT = 0x8000_0001,
        /// A synthetic timer expired; payload [`TimerPayload`].
        TIMER_EXPIRED = 0x8000_0010,
        /// An event log buffer is full.
        EVENT_LOG_BUFFER_COMPLETE = 0x8000_0040,
    }
}

wire_flags! {
    /// Flags of a message header (TLFS, `HV_MESSAGE_FLAGS`).
    pub struct MessageFlags(u8) {
        /// More messages wait for the slot: write EOM after emptying it.
        const PENDING = 1;
    }
}

/// Header of a message (TLFS, `HV_MESSAGE_HEADER`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct MessageHeader {
    /// Type; zero means that the slot is empty.
    pub message_type: MessageType,
    /// Bytes of payload, at most 240.
    pub payload_size: u8,
    /// See [`MessageFlags`].
    pub flags: MessageFlags,
    /// Zero.
    pub reserved: [u8; 2],
    /// Partition id of the sender, or the port on which the message came.
    pub origin: u64,
}

assert_layout!(
    MessageHeader,
    size = 16,
    message_type = 0,
    payload_size = 4,
    flags = 5,
    reserved = 6,
    origin = 8
);

/// A message in its slot of the message page (TLFS, `HV_MESSAGE`).
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct HvMessage {
    /// Type, size and origin.
    pub header: MessageHeader,
    /// Payload; only the first `header.payload_size` bytes count.
    pub payload: [u8; MAX_PAYLOAD_SIZE],
}

assert_layout!(HvMessage, size = MESSAGE_SIZE, header = 0, payload = 16);

impl HvMessage {
    /// A message with `payload`; `None` when that exceeds [`MAX_PAYLOAD_SIZE`].
    #[must_use]
    pub fn new(message_type: MessageType, origin: u64, payload: &[u8]) -> Option<Self> {
        let mut message = Self {
            header: MessageHeader {
                message_type,
                payload_size: u8::try_from(payload.len()).ok()?,
                origin,
                ..MessageHeader::default()
            },
            payload: [0; MAX_PAYLOAD_SIZE],
        };
        message
            .payload
            .get_mut(..payload.len())?
            .copy_from_slice(payload);
        Some(message)
    }

    /// The payload, or `None` when the header claims more than a message can hold.
    #[must_use]
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.get(..usize::from(self.header.payload_size))
    }
}

impl fmt::Debug for HvMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header.fmt(f)
    }
}

/// Offset in the message page of the slot of `sint`, or `None` for SINTs that do not exist.
#[must_use]
pub const fn message_slot_offset(sint: u8) -> Option<usize> {
    if (sint as usize) < SINT_COUNT {
        Some((sint as usize) << 8)
    } else {
        None
    }
}

/// Event flags of one SINT: 2048 bits (TLFS, `HV_SYNIC_EVENT_FLAGS`). Shared memory: what is read
/// or written here is a copy.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct EventFlags(pub [u64; 32]);

assert_layout!(EventFlags, size = 256);

/// Where the flag `flag` of `sint` is in the event flags page: offset of the 64-bit word that
/// holds it (a multiple of 8), and its bit in that word. `None` when either does not exist.
#[must_use]
pub const fn event_flag_position(sint: u8, flag: u16) -> Option<(usize, u32)> {
    if (sint as usize) < SINT_COUNT && (flag as usize) < EVENT_FLAGS_COUNT {
        let word = ((sint as usize) << 8) | ((flag as usize >> 6) << 3);
        Some((word, flag as u32 & 63))
    } else {
        None
    }
}

/// Payload of [`MessageType::TIMER_EXPIRED`] (TLFS, "Synthetic Timer Expiration Messages").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct TimerPayload {
    /// Which timer, 0 to 3.
    pub timer_index: u32,
    /// Zero.
    pub reserved: u32,
    /// When the timer expired, reference time in 100 ns.
    pub expiration_time: u64,
    /// When the message was put into the slot, reference time in 100 ns.
    pub delivery_time: u64,
}

assert_layout!(
    TimerPayload,
    size = 24,
    timer_index = 0,
    expiration_time = 8,
    delivery_time = 16
);

/// Defines a 64-bit register as a newtype with accessors.
macro_rules! page_register {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// Bit 0.
            pub const ENABLE: u64 = 1;

            /// The register with the page of guest-physical address `gpa` (whose low 12 bits are
            /// dropped), keeping the preserved bits 11:1.
            #[must_use]
            pub const fn with_page(self, gpa: u64, enabled: bool) -> Self {
                Self((self.0 & 0xffe) | (gpa & !0xfff) | enabled as u64)
            }

            /// Whether the page is in use.
            #[must_use]
            pub const fn enabled(self) -> bool {
                self.0 & Self::ENABLE != 0
            }

            /// Guest-physical address of the page.
            #[must_use]
            pub const fn gpa(self) -> u64 {
                self.0 & !0xfff
            }
        }
    };
}

page_register! {
    /// SIMP: address of the message page, one slot of 256 bytes per SINT (TLFS, "SIMP Register").
    Simp
}
page_register! {
    /// SIEFP: address of the event flags page (TLFS, "SIEFP Register").
    Siefp
}
page_register! {
    /// Hypercall page register (TLFS, "Establishing the Hypercall Interface").
    HypercallMsr
}
page_register! {
    /// Reference TSC page register (TLFS, "Partition Reference Time Enlightenment").
    ReferenceTscMsr
}
page_register! {
    /// VP assist page register (TLFS, "Virtual Processor Assist Page").
    VpAssistPageMsr
}

/// SCONTROL: SynIC enabled in bit 0, other bits preserved (TLFS, "SCONTROL Register").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Scontrol(pub u64);

impl Scontrol {
    /// Bit 0.
    pub const ENABLE: u64 = 1;

    /// The register with the enable bit set or cleared.
    #[must_use]
    pub const fn with_enabled(self, enabled: bool) -> Self {
        Self((self.0 & !Self::ENABLE) | enabled as u64)
    }

    /// Whether messages and events may be delivered.
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }
}

/// SINTx: one of 16 interrupt sources (TLFS, "SINTx Registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sint(pub u64);

impl Sint {
    /// Bits 7:0.
    pub const VECTOR: u64 = 0xff;
    /// Bit 16: no interrupt is raised; messages and flags are still delivered.
    pub const MASKED: u64 = 1 << 16;
    /// Bit 17: the interrupt is acknowledged implicitly.
    pub const AUTO_EOI: u64 = 1 << 17;
    /// Bit 18: polling mode, delivery without interrupt.
    pub const POLLING: u64 = 1 << 18;
    /// Bit 19: raise an intercept message instead of an interrupt (hvgdk `as_intercept`).
    pub const AS_INTERCEPT: u64 = 1 << 19;
    /// Bit 20: the SINT belongs to the paravisor (hvgdk `proxy`).
    pub const PROXY: u64 = 1 << 20;
    /// Value after reset: masked, vector 0.
    pub const RESET: Self = Self(Self::MASKED);

    /// The register with `vector` and the given bits; reserved bits are kept.
    #[must_use]
    pub const fn with(self, vector: u8, masked: bool, auto_eoi: bool) -> Self {
        let clear = Self::VECTOR | Self::MASKED | Self::AUTO_EOI;
        Self(
            (self.0 & !clear)
                | vector as u64
                | if masked { Self::MASKED } else { 0 }
                | if auto_eoi { Self::AUTO_EOI } else { 0 },
        )
    }

    /// Vector to raise.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Whether interrupts are held back.
    #[must_use]
    pub const fn masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// Whether the interrupt needs no EOI.
    #[must_use]
    pub const fn auto_eoi(self) -> bool {
        self.0 & Self::AUTO_EOI != 0
    }

    /// Whether the SINT is polled.
    #[must_use]
    pub const fn polling(self) -> bool {
        self.0 & Self::POLLING != 0
    }
}

impl Default for Sint {
    fn default() -> Self {
        Self::RESET
    }
}

/// STIMERx_CONFIG (TLFS, "Timers", "Synthetic Timer Configuration Register").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct StimerConfig(pub u64);

impl StimerConfig {
    /// Bit 0: the timer runs.
    pub const ENABLE: u64 = 1;
    /// Bit 1: expires again and again.
    pub const PERIODIC: u64 = 1 << 1;
    /// Bit 2: need not be delivered before the VP runs anyway.
    pub const LAZY: u64 = 1 << 2;
    /// Bit 3: writing the count enables the timer.
    pub const AUTO_ENABLE: u64 = 1 << 3;
    /// Bit 12: raise the vector of bits 11:4 instead of sending a message.
    pub const DIRECT: u64 = 1 << 12;

    /// Whether the timer runs.
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    /// Whether the timer is periodic: the count is a period, not a point in time.
    #[must_use]
    pub const fn periodic(self) -> bool {
        self.0 & Self::PERIODIC != 0
    }

    /// Whether delivery may wait for the VP.
    #[must_use]
    pub const fn lazy(self) -> bool {
        self.0 & Self::LAZY != 0
    }

    /// Whether a write of the count enables the timer.
    #[must_use]
    pub const fn auto_enable(self) -> bool {
        self.0 & Self::AUTO_ENABLE != 0
    }

    /// Whether expiry raises a vector instead of sending a message.
    #[must_use]
    pub const fn direct(self) -> bool {
        self.0 & Self::DIRECT != 0
    }

    /// Vector of direct mode, bits 11:4.
    #[must_use]
    pub const fn vector(self) -> u8 {
        (self.0 >> 4) as u8
    }

    /// SINT of message mode, bits 19:16. Zero keeps the timer from being enabled.
    #[must_use]
    pub const fn sint(self) -> u8 {
        ((self.0 >> 16) & 0xf) as u8
    }

    /// The register with the enable bit set or cleared.
    #[must_use]
    pub const fn with_enabled(self, enabled: bool) -> Self {
        Self((self.0 & !Self::ENABLE) | enabled as u64)
    }
}

/// Reference TSC page: time = ((tsc * scale) >> 64) + offset, in 100 ns
/// (TLFS, "Partition Reference TSC Mechanism").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ReferenceTscPage {
    /// Changes with every update; 0 means: read the MSR instead.
    pub sequence: u32,
    /// Zero.
    pub reserved: u32,
    /// Multiplier, 64 fractional bits.
    pub scale: u64,
    /// Added after scaling, 100 ns.
    pub offset: i64,
}

assert_layout!(
    ReferenceTscPage,
    size = 24,
    sequence = 0,
    scale = 8,
    offset = 16
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_flag_positions() {
        assert_eq!(event_flag_position(0, 0), Some((0, 0)));
        assert_eq!(event_flag_position(2, 1), Some((512, 1)));
        assert_eq!(event_flag_position(2, 64), Some((520, 0)));
        assert_eq!(event_flag_position(15, 2047), Some((4088, 63)));
        assert_eq!(event_flag_position(16, 0), None);
        assert_eq!(event_flag_position(0, 2048), None);
    }

    #[test]
    fn oversized_payload_claimed_by_the_sender() {
        let mut message = HvMessage::new(MessageType(1), 0, &[7; 240]).unwrap();
        assert_eq!(message.payload().map(<[u8]>::len), Some(240));
        message.header.payload_size = 241;
        assert_eq!(message.payload(), None);
        assert!(HvMessage::new(MessageType(1), 0, &[0; 241]).is_none());
        assert!(HvMessage::new(MessageType(1), 0, &[0; 256]).is_none());
    }

    #[test]
    fn sint_register_keeps_reserved_bits() {
        let sint = Sint(0xdead_0000_0000_0000).with(0xf3, false, false);
        assert_eq!(sint.0, 0xdead_0000_0000_00f3);
        assert!(Sint::RESET.masked());
        assert_eq!(sint.with(0xf4, true, true).0, 0xdead_0000_0003_00f4);
    }

    #[test]
    fn page_registers_keep_preserved_bits() {
        let simp = Simp(0xabc).with_page(0x1234_5678, true);
        assert_eq!(simp.0, 0x1234_5abd);
        assert_eq!(simp.gpa(), 0x1234_5000);
        assert!(simp.enabled());
        assert!(!simp.with_page(0, false).enabled());
    }

    #[test]
    fn stimer_config_fields() {
        let c = StimerConfig(0x0002_1f31 | StimerConfig::AUTO_ENABLE);
        assert!(c.enabled() && c.auto_enable() && c.direct() && !c.periodic());
        assert_eq!(c.vector(), 0xf3);
        assert_eq!(c.sint(), 2);
    }
}
