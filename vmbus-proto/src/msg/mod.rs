// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The VMBus channel messages of versions 4.0 to 6.0.
//!
//! A message is the payload of a SynIC message of type [`VMBUS_MESSAGE_TYPE`], at most
//! [`MAX_MESSAGE_SIZE`] bytes. Layouts are those of `hyperv.h` (`struct vmbus_channel_*`), those
//! of 6.0's optional tails of OpenVMM's `vmbus_core/src/protocol.rs`.
//!
//! Structs are named after the message; [`ChannelMessage::blank`] gives one with its header filled
//! in and all else zero. [`HostMessage`] and [`GuestMessage`] parse what arrives, by direction.

use core::fmt;
use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use zerocopy_derive::*;

use crate::version::{FeatureFlags, VmbusVersion};

mod guest;
mod host;
mod parse;
#[cfg(test)]
mod tests;

pub use guest::*;
pub use host::*;
pub use parse::*;

/// SynIC message type of all VMBus messages, both ways (Linux `connection.c`, `vmbus_post_msg`).
pub const VMBUS_MESSAGE_TYPE: u32 = 1;

/// Largest message in bytes: the payload of a SynIC message (`HV_MESSAGE_PAYLOAD_BYTE_COUNT`).
pub const MAX_MESSAGE_SIZE: usize = 240;

/// SINT on which the host posts messages and channel events (`hyperv_vmbus.h`,
/// `VMBUS_MESSAGE_SINT`).
pub const VMBUS_SINT: u8 = 2;

/// Connection id for messages of versions before 5.0 (`VMBUS_MESSAGE_CONNECTION_ID`).
pub const MESSAGE_CONNECTION_ID: u32 = 1;

/// Connection id for INITIATE_CONTACT from version 5.0 on (`VMBUS_MESSAGE_CONNECTION_ID_4`).
pub const MESSAGE_CONNECTION_ID_4: u32 = 4;

/// Connection id for INITIATE_CONTACT of a guest in VTL 2 (`VMBUS_MESSAGE_CONNECTION_ID_REDIRECT`).
pub const MESSAGE_CONNECTION_ID_REDIRECT: u32 = 0x80_0074;

/// Connection id for events of channels without one of their own (`VMBUS_EVENT_CONNECTION_ID`).
pub const EVENT_CONNECTION_ID: u32 = 2;

/// Relids are below this: one event flag each (TLFS, SynIC event flags: 2048 per SINT).
pub const MAX_CHANNELS: u32 = 2048;

/// Bytes of user data in offers and open requests (`MAX_USER_DEFINED_BYTES`).
pub const USER_DATA_SIZE: usize = 120;

open_enum! {
    /// Type of a channel message (`enum vmbus_channel_message_type`; from 25 on OpenVMM).
    pub struct MessageType(u32) {
        /// Not a message.
        INVALID = 0,
        /// Host: a channel is on offer.
        OFFER_CHANNEL = 1,
        /// Host: an offer is taken back.
        RESCIND_CHANNEL_OFFER = 2,
        /// Guest: send the offers.
        REQUEST_OFFERS = 3,
        /// Host: all offers present at the time of the request have been sent.
        ALL_OFFERS_DELIVERED = 4,
        /// Guest: open a channel.
        OPEN_CHANNEL = 5,
        /// Host: outcome of an open.
        OPEN_CHANNEL_RESULT = 6,
        /// Guest: close a channel; not answered.
        CLOSE_CHANNEL = 7,
        /// Guest: create a GPADL, first part.
        GPADL_HEADER = 8,
        /// Guest: further PFNs of a GPADL.
        GPADL_BODY = 9,
        /// Host: outcome of a GPADL's creation.
        GPADL_CREATED = 10,
        /// Guest: give a GPADL back.
        GPADL_TEARDOWN = 11,
        /// Host: the GPADL is not used any more.
        GPADL_TORNDOWN = 12,
        /// Guest: done with a rescinded channel; its relid may be used again.
        RELID_RELEASED = 13,
        /// Guest: connect with this version.
        INITIATE_CONTACT = 14,
        /// Host: answer to INITIATE_CONTACT.
        VERSION_RESPONSE = 15,
        /// Guest: disconnect.
        UNLOAD = 16,
        /// Host: disconnected.
        UNLOAD_RESPONSE = 17,
        /// Guest: open a channel without an offer (OpenVMM).
        OPEN_RESERVED_CHANNEL = 18,
        /// Guest: close such a channel (OpenVMM).
        CLOSE_RESERVED_CHANNEL = 19,
        /// Host: such a channel is closed (OpenVMM).
        CLOSE_RESERVED_RESPONSE = 20,
        /// Guest: connect an hv_sock to a service of the host.
        TL_CONNECT_REQUEST = 21,
        /// Guest: move a channel's interrupt to another VP.
        MODIFY_CHANNEL = 22,
        /// Host: outcome of a TL_CONNECT_REQUEST that failed.
        TL_CONNECT_RESULT = 23,
        /// Host: outcome of MODIFY_CHANNEL.
        MODIFY_CHANNEL_RESPONSE = 24,
        /// Guest: change the monitor pages.
        MODIFY_CONNECTION = 25,
        /// Host: outcome of MODIFY_CONNECTION.
        MODIFY_CONNECTION_RESPONSE = 26,
        /// Guest: send no further messages.
        PAUSE = 27,
        /// Host: the last message before the pause.
        PAUSE_RESPONSE = 28,
        /// Guest: send messages again.
        RESUME = 29,
    }
}

/// What every message starts with (`struct vmbus_channel_message_header`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MessageHeader {
    /// Type of the message.
    pub message_type: MessageType,
    /// Unused; zero when sent, ignored when received.
    pub padding: u32,
}

assert_layout!(MessageHeader, size = 8, message_type = 0, padding = 4);

/// A channel as host and guest name it to each other for the life of an offer (C: `child_relid`).
/// From 1 to 2047; also the channel's event flag.
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
pub struct Relid(pub u32);

impl Relid {
    /// Stands for "no channel" in memory; never on the wire (C: `INVALID_RELID`).
    pub const INVALID: Self = Self(u32::MAX);

    /// Whether the value can name a channel: not zero and within the event flags.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 != 0 && self.0 < MAX_CHANNELS
    }
}

impl fmt::Display for Relid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Handle of a GPADL, chosen by the guest. Zero is not used.
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
pub struct GpadlId(pub u32);

impl fmt::Display for GpadlId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

open_enum! {
    /// Status in the host's answers: zero, or a Windows NTSTATUS or HRESULT.
    pub struct Status(u32) {
        /// Done.
        SUCCESS = 0,
        /// Failed without a reason given (OpenVMM `STATUS_UNSUCCESSFUL`).
        UNSUCCESSFUL = 0x8000_ffff,
        /// An hv_sock service refused (OpenVMM `STATUS_CONNECTION_REFUSED`).
        CONNECTION_REFUSED = 0xc000_0236,
    }
}

impl Status {
    /// Whether the request was done. Only zero is; other values of NTSTATUS severity "success" are
    /// treated as failures, as Linux does.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }
}

/// A channel message of fixed size (variable tails follow it in the buffer).
pub trait ChannelMessage: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    /// The type in the header.
    const TYPE: MessageType;

    /// A message of all zeroes but for the header.
    #[must_use]
    fn blank() -> Self;
}

/// Defines messages: layout, documentation, assertions on size and offsets, [`ChannelMessage`].
macro_rules! messages {
    ($(
        $(#[$meta:meta])*
        $name:ident = $type:ident, size $size:literal {
            $( $(#[$fmeta:meta])* $field:ident: $fty:ty = $off:literal, )*
        }
    )*) => { $(
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy_derive::FromBytes, zerocopy_derive::IntoBytes,
            zerocopy_derive::KnownLayout, zerocopy_derive::Immutable,
        )]
        #[repr(C)]
        pub struct $name {
            /// Names the type of the message.
            pub header: $crate::msg::MessageHeader,
            $( $(#[$fmeta])* pub $field: $fty, )*
        }

        assert_layout!($name, size = $size, header = 0 $(, $field = $off)*);
        static_assertions::const_assert!($size <= $crate::msg::MAX_MESSAGE_SIZE);

        impl $crate::msg::ChannelMessage for $name {
            const TYPE: $crate::msg::MessageType = $crate::msg::MessageType::$type;

            fn blank() -> Self {
                let mut message = <Self as zerocopy::FromZeros>::new_zeroed();
                message.header.message_type = Self::TYPE;
                message
            }
        }
    )* };
}
pub(crate) use messages;

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the host.
    ToHost,
    /// From the host to the guest.
    ToGuest,
}

/// A row of the table of messages: what must hold before a message is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageInfo {
    /// The type described.
    pub message_type: MessageType,
    /// Who sends it.
    pub direction: Direction,
    /// Least size in bytes, header included. Longer messages are accepted and the rest ignored:
    /// later versions append fields.
    pub min_size: usize,
    /// First version that has the message. Messages of older protocols say 4.0, the oldest spoken.
    pub since: VmbusVersion,
    /// Features that must have been negotiated.
    pub features: FeatureFlags,
}

macro_rules! table {
    ($( $type:ident, $dir:ident, $size:expr, $since:ident, $features:expr; )*) => {
        /// All messages, by type.
        pub const MESSAGES: &[MessageInfo] = &[ $( MessageInfo {
            message_type: MessageType::$type,
            direction: Direction::$dir,
            min_size: $size,
            since: VmbusVersion::$since,
            features: $features,
        }, )* ];
    };
}

/// The wire form ends after the state; the struct is padded.
const MODIFY_CONNECTION_RESPONSE_MIN: usize = 9;

const NONE: FeatureFlags = FeatureFlags::empty();

table! {
    OFFER_CHANNEL, ToGuest, size_of::<OfferChannel>(), V4_0, NONE;
    RESCIND_CHANNEL_OFFER, ToGuest, size_of::<RescindChannelOffer>(), V4_0, NONE;
    REQUEST_OFFERS, ToHost, size_of::<RequestOffers>(), V4_0, NONE;
    ALL_OFFERS_DELIVERED, ToGuest, size_of::<AllOffersDelivered>(), V4_0, NONE;
    OPEN_CHANNEL, ToHost, size_of::<OpenChannel>(), V4_0, NONE;
    OPEN_CHANNEL_RESULT, ToGuest, size_of::<OpenChannelResult>(), V4_0, NONE;
    CLOSE_CHANNEL, ToHost, size_of::<CloseChannel>(), V4_0, NONE;
    GPADL_HEADER, ToHost, size_of::<GpadlHeader>(), V4_0, NONE;
    GPADL_BODY, ToHost, size_of::<GpadlBody>(), V4_0, NONE;
    GPADL_CREATED, ToGuest, size_of::<GpadlCreated>(), V4_0, NONE;
    GPADL_TEARDOWN, ToHost, size_of::<GpadlTeardown>(), V4_0, NONE;
    GPADL_TORNDOWN, ToGuest, size_of::<GpadlTorndown>(), V4_0, NONE;
    RELID_RELEASED, ToHost, size_of::<RelidReleased>(), V4_0, NONE;
    INITIATE_CONTACT, ToHost, size_of::<InitiateContact>(), V4_0, NONE;
    VERSION_RESPONSE, ToGuest, size_of::<VersionResponse>(), V4_0, NONE;
    UNLOAD, ToHost, size_of::<Unload>(), V4_0, NONE;
    UNLOAD_RESPONSE, ToGuest, size_of::<UnloadResponse>(), V4_0, NONE;
    OPEN_RESERVED_CHANNEL, ToHost, size_of::<OpenReservedChannel>(), V4_0, NONE;
    CLOSE_RESERVED_CHANNEL, ToHost, size_of::<CloseReservedChannel>(), V4_0, NONE;
    CLOSE_RESERVED_RESPONSE, ToGuest, size_of::<CloseReservedResponse>(), V4_0, NONE;
    TL_CONNECT_REQUEST, ToHost, size_of::<TlConnectRequest>(), V4_0, NONE;
    MODIFY_CHANNEL, ToHost, size_of::<ModifyChannel>(), V4_1, NONE;
    TL_CONNECT_RESULT, ToGuest, size_of::<TlConnectResult>(), V4_1, NONE;
    MODIFY_CHANNEL_RESPONSE, ToGuest, size_of::<ModifyChannelResponse>(), V5_3, NONE;
    MODIFY_CONNECTION, ToHost, size_of::<ModifyConnection>(), V6_0, FeatureFlags::MODIFY_CONNECTION;
    MODIFY_CONNECTION_RESPONSE, ToGuest, MODIFY_CONNECTION_RESPONSE_MIN, V6_0, FeatureFlags::MODIFY_CONNECTION;
    PAUSE, ToHost, size_of::<Pause>(), V6_0, FeatureFlags::PAUSE_RESUME;
    PAUSE_RESPONSE, ToGuest, size_of::<PauseResponse>(), V6_0, FeatureFlags::PAUSE_RESUME;
    RESUME, ToHost, size_of::<Resume>(), V6_0, FeatureFlags::PAUSE_RESUME;
}

impl MessageType {
    /// The type's row in [`MESSAGES`], if there is one.
    #[must_use]
    pub fn info(self) -> Option<&'static MessageInfo> {
        MESSAGES.iter().find(|info| info.message_type == self)
    }

    /// Whether the type may be used on a connection of `version` that negotiated `features`.
    /// INITIATE_CONTACT, VERSION_RESPONSE, UNLOAD and UNLOAD_RESPONSE always may.
    #[must_use]
    pub fn allowed_at(self, version: VmbusVersion, features: FeatureFlags) -> bool {
        self.info()
            .is_some_and(|info| version >= info.since && features.contains(info.features))
    }
}

/// A message in the making: up to [`MAX_MESSAGE_SIZE`] bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct MessageBuffer {
    bytes: [u8; MAX_MESSAGE_SIZE],
    len: usize,
}

/// A message would exceed [`MAX_MESSAGE_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageTooLong;

impl fmt::Display for MessageTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("message larger than 240 bytes")
    }
}

impl core::error::Error for MessageTooLong {}

impl MessageBuffer {
    /// A buffer of no bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; MAX_MESSAGE_SIZE],
            len: 0,
        }
    }

    /// A buffer that holds `message`.
    #[must_use]
    pub fn from_message<M: ChannelMessage>(message: &M) -> Self {
        let mut buffer = Self::new();
        // No message is larger than the buffer: asserted where each is defined.
        let _ = buffer.append(message.as_bytes());
        buffer
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`MessageTooLong`] when they do not fit; the buffer is unchanged then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), MessageTooLong> {
        let end = self.len.checked_add(bytes.len()).ok_or(MessageTooLong)?;
        self.bytes
            .get_mut(self.len..end)
            .ok_or(MessageTooLong)?
            .copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// The message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Type of the message; [`MessageType::INVALID`] for an empty buffer.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        MessageHeader::read_from_prefix(self.as_bytes())
            .map_or(MessageType::INVALID, |(header, _)| header.message_type)
    }
}

impl Default for MessageBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<[u8]> for MessageBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for MessageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}[{} bytes]", self.message_type(), self.len)
    }
}

impl<M: ChannelMessage> From<&M> for MessageBuffer {
    fn from(message: &M) -> Self {
        Self::from_message(message)
    }
}
