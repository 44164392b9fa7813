// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! RNDIS messages other than frames: set-up, queries and sets of objects (OIDs), indications.
//!
//! A guest asks, with a request id of its choice, by a message in a send section or in its own memory; the host
//! answers by a message in the receive buffer. Offsets within messages count from byte 8.
//!
//! Source: \[MS-RNDIS\] 2.2; `include/linux/rndis.h`; hyperv_net.h; `ntddndis.h` for OIDs.

use core::fmt;
use zerocopy::FromBytes;
use zerocopy_derive::*;

use super::packet::{RNDIS_HEADER_SIZE, RNDIS_MSG_PACKET};

mod config;
mod write;

pub use config::{
    network_address_parameter, ConfigParameter, ConfigType, ParsedParameter, NETWORK_ADDRESS,
    NETWORK_ADDRESS_SIZE,
};
pub use write::{write_indicate, write_message, write_oid_request, write_query_complete};

/// Version that both sides name (`RNDIS_MAJOR_VERSION`); the minor one is 0.
pub const MAJOR_VERSION: u32 = 1;

/// `max_transfer_size` that Linux names (`rndis_filter.c`, `rndis_filter_init_device`).
pub const GUEST_MAX_TRANSFER: u32 = 0x4000;

open_enum! {
    /// What a message is (`RNDIS_MSG_*`).
    pub struct RndisType(u32) {
        /// A frame: see [`super::packet`].
        PACKET = RNDIS_MSG_PACKET,
        /// Guest: starts.
        INIT = 2,
        /// Guest: stops. No answer.
        HALT = 3,
        /// Guest: what is an object's value?
        QUERY = 4,
        /// Guest: this is an object's value.
        SET = 5,
        /// Guest: drop all that waits.
        RESET = 6,
        /// Host: something has happened.
        INDICATE = 7,
        /// Either: are you there?
        KEEPALIVE = 8,
        /// Guest: as SET; the answer has data.
        SET_EX = 9,
        /// Answer.
        INIT_C = COMPLETION | 2,
        /// Answer.
        QUERY_C = COMPLETION | 4,
        /// Answer.
        SET_C = COMPLETION | 5,
        /// Answer.
        RESET_C = COMPLETION | 6,
        /// Answer.
        KEEPALIVE_C = COMPLETION | 8,
        /// Answer.
        SET_EX_C = COMPLETION | 9,
    }
}

/// Bit of the answers' types.
const COMPLETION: u32 = 1 << 31;

open_enum! {
    /// How a request went, or what has happened (`RNDIS_STATUS_*`).
    pub struct RndisStatus(u32) {
        /// Done.
        SUCCESS = 0,
        /// Will be done.
        PENDING = 0x0000_0103,
        /// Link up.
        MEDIA_CONNECT = 0x4001_000b,
        /// Link down.
        MEDIA_DISCONNECT = 0x4001_000c,
        /// The speed has changed: 32 bits follow, in units of 100 bit/s.
        LINK_SPEED_CHANGE = 0x4001_0013,
        /// The adapter is on another network: addresses may have to be asked for again.
        NETWORK_CHANGE = 0x4001_0018,
        /// Offloads in use have changed ([`super::offload::Offload`] follows).
        TASK_OFFLOAD_CURRENT_CONFIG = 0x4002_0006,
        /// The answer does not fit.
        BUFFER_OVERFLOW = 0x8000_0005,
        /// Not done.
        FAILURE = 0xc000_0001,
        /// No memory.
        RESOURCES = 0xc000_009a,
        /// Not supported; hosts say so for unknown objects too.
        NOT_SUPPORTED = 0xc000_00bb,
        /// No such version.
        BAD_VERSION = 0xc001_0004,
        /// The length is wrong.
        INVALID_LENGTH = 0xc001_0014,
        /// The value is wrong.
        INVALID_DATA = 0xc001_0015,
        /// The buffer is too small.
        BUFFER_TOO_SHORT = 0xc001_0016,
        /// No such object.
        INVALID_OID = 0xc001_0017,
        /// Gone.
        ADAPTER_REMOVED = 0xc001_0018,
    }
}

open_enum! {
    /// Names of objects (`RNDIS_OID_*`, `OID_*`).
    pub struct Oid(u32) {
        /// All OIDs that can be queried or set.
        GEN_SUPPORTED_LIST = 0x0001_0101,
        /// 0: ready.
        GEN_HARDWARE_STATUS = 0x0001_0102,
        /// 0: 802.3.
        GEN_MEDIA_SUPPORTED = 0x0001_0103,
        /// 0: 802.3.
        GEN_MEDIA_IN_USE = 0x0001_0104,
        /// Bytes.
        GEN_MAXIMUM_LOOKAHEAD = 0x0001_0105,
        /// MTU.
        GEN_MAXIMUM_FRAME_SIZE = 0x0001_0106,
        /// In units of 100 bit/s.
        GEN_LINK_SPEED = 0x0001_0107,
        /// Bytes.
        GEN_TRANSMIT_BUFFER_SPACE = 0x0001_0108,
        /// Bytes.
        GEN_RECEIVE_BUFFER_SPACE = 0x0001_0109,
        /// Bytes.
        GEN_TRANSMIT_BLOCK_SIZE = 0x0001_010a,
        /// Bytes.
        GEN_RECEIVE_BLOCK_SIZE = 0x0001_010b,
        /// Vendor's first bytes of MAC addresses.
        GEN_VENDOR_ID = 0x0001_010c,
        /// Text.
        GEN_VENDOR_DESCRIPTION = 0x0001_010d,
        /// See [`PacketFilter`].
        GEN_CURRENT_PACKET_FILTER = 0x0001_010e,
        /// Bytes.
        GEN_CURRENT_LOOKAHEAD = 0x0001_010f,
        /// NDIS version of the driver.
        GEN_DRIVER_VERSION = 0x0001_0110,
        /// MTU and Ethernet header.
        GEN_MAXIMUM_TOTAL_SIZE = 0x0001_0111,
        /// Flags.
        GEN_PROTOCOL_OPTIONS = 0x0001_0112,
        /// Flags.
        GEN_MAC_OPTIONS = 0x0001_0113,
        /// 0: link up; 1: link down.
        GEN_MEDIA_CONNECT_STATUS = 0x0001_0114,
        /// Packets of one message.
        GEN_MAXIMUM_SEND_PACKETS = 0x0001_0115,
        /// Version.
        GEN_VENDOR_DRIVER_VERSION = 0x0001_0116,
        /// Addresses of the guest.
        GEN_NETWORK_LAYER_ADDRESSES = 0x0001_0118,
        /// 0: unspecified.
        GEN_PHYSICAL_MEDIUM = 0x0001_0202,
        /// [`super::rss::RssCapabilities`].
        GEN_RECEIVE_SCALE_CAPABILITIES = 0x0001_0203,
        /// [`super::rss::RssParameters`].
        GEN_RECEIVE_SCALE_PARAMETERS = 0x0001_0204,
        /// Bit/s, 64 bits each way.
        GEN_MAX_LINK_SPEED = 0x0001_0206,
        /// State and speed.
        GEN_LINK_STATE = 0x0001_0207,
        /// Settings.
        GEN_LINK_PARAMETERS = 0x0001_0208,
        /// Text.
        GEN_MACHINE_NAME = 0x0001_021a,
        /// [`ConfigParameter`].
        GEN_RNDIS_CONFIG_PARAMETER = 0x0001_021b,
        /// Frames sent.
        GEN_XMIT_OK = 0x0002_0101,
        /// Frames received.
        GEN_RCV_OK = 0x0002_0102,
        /// Frames not sent.
        GEN_XMIT_ERROR = 0x0002_0103,
        /// Frames not received.
        GEN_RCV_ERROR = 0x0002_0104,
        /// Frames dropped for want of room.
        GEN_RCV_NO_BUFFER = 0x0002_0105,
        /// UTF-16 text of 256 units at most.
        GEN_FRIENDLY_NAME = 0x0002_0216,
        /// Bytes received, 64 bits.
        GEN_BYTES_RCV = 0x0002_0219,
        /// Bytes sent, 64 bits.
        GEN_BYTES_XMIT = 0x0002_021a,
        /// The MAC address that the device was made with.
        IEEE_802_3_PERMANENT_ADDRESS = 0x0101_0101,
        /// The MAC address in use.
        IEEE_802_3_CURRENT_ADDRESS = 0x0101_0102,
        /// MAC addresses to receive.
        IEEE_802_3_MULTICAST_LIST = 0x0101_0103,
        /// Length of that list at most.
        IEEE_802_3_MAXIMUM_LIST_SIZE = 0x0101_0104,
        /// Which encapsulation offloads are for.
        OFFLOAD_ENCAPSULATION = 0x0101_010a,
        /// Count.
        IEEE_802_3_RCV_ERROR_ALIGNMENT = 0x0102_0101,
        /// Count.
        IEEE_802_3_XMIT_ONE_COLLISION = 0x0102_0102,
        /// Count.
        IEEE_802_3_XMIT_MORE_COLLISIONS = 0x0102_0103,
        /// [`super::offload::Offload`] in use.
        TCP_OFFLOAD_CURRENT_CONFIG = 0xfc01_020b,
        /// [`super::offload::OffloadParameters`].
        TCP_OFFLOAD_PARAMETERS = 0xfc01_020c,
        /// [`super::offload::Offload`] that there is.
        TCP_OFFLOAD_HARDWARE_CAPABILITIES = 0xfc01_020d,
    }
}

wire_flags! {
    /// Which frames the guest wants (`NDIS_PACKET_TYPE_*`).
    pub struct PacketFilter(u32) {
        /// Those to its own address.
        const DIRECTED = 1 << 0;
        /// Those to addresses in the multicast list.
        const MULTICAST = 1 << 1;
        /// Those to any multicast address.
        const ALL_MULTICAST = 1 << 2;
        /// Those to all.
        const BROADCAST = 1 << 3;
        /// All.
        const PROMISCUOUS = 1 << 5;
    }
}

impl PacketFilter {
    /// What an interface wants by its flags and whether it has multicast addresses (`rndis_filter.c`, `rndis_set_multicast`).
    #[must_use]
    pub fn for_interface(promiscuous: bool, multicast: bool, broadcast: bool) -> Self {
        if promiscuous {
            return Self::PROMISCUOUS;
        }
        let mut filter = Self::DIRECTED;
        if multicast {
            filter |= Self::ALL_MULTICAST;
        }
        if broadcast {
            filter |= Self::BROADCAST;
        }
        filter
    }
}

/// Body of INIT (`struct rndis_initialize_request`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Initialize {
    /// Returned in the answer.
    pub request_id: u32,
    /// 1.
    pub major: u32,
    /// 0.
    pub minor: u32,
    /// Bytes of a message to the guest at most; hosts do not keep to it.
    pub max_transfer_size: u32,
}
assert_layout!(
    Initialize,
    size = 16,
    request_id = 0,
    major = 4,
    minor = 8,
    max_transfer_size = 12
);

/// Body of INIT_C (`struct rndis_initialize_complete`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct InitializeComplete {
    /// Of the request.
    pub request_id: u32,
    /// How it went.
    pub status: RndisStatus,
    /// 1.
    pub major: u32,
    /// 0.
    pub minor: u32,
    /// 1: connectionless.
    pub device_flags: u32,
    /// 0: 802.3.
    pub medium: u32,
    /// Packets that one message to the host may carry, one behind the other.
    pub max_packets: u32,
    /// Bytes of such a message at most.
    pub max_transfer_size: u32,
    /// Packets start at multiples of two to this power.
    pub alignment_shift: u32,
    /// Unused.
    pub af_list_offset: u32,
    /// Unused.
    pub af_list_size: u32,
}
assert_layout!(
    InitializeComplete,
    size = 44,
    status = 4,
    max_packets = 24,
    max_transfer_size = 28,
    alignment_shift = 32,
    af_list_size = 40
);

/// Body of QUERY and SET (`struct rndis_query_request`, `struct rndis_set_request`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct OidRequest {
    /// Returned in the answer.
    pub request_id: u32,
    /// The object.
    pub oid: Oid,
    /// Bytes of data.
    pub info_len: u32,
    /// Where they start, from byte 8.
    pub info_offset: u32,
    /// 0.
    pub vc_handle: u32,
}
assert_layout!(
    OidRequest,
    size = 20,
    request_id = 0,
    oid = 4,
    info_len = 8,
    info_offset = 12,
    vc_handle = 16
);

/// Body of QUERY_C (`struct rndis_query_complete`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct QueryComplete {
    /// Of the request.
    pub request_id: u32,
    /// How it went.
    pub status: RndisStatus,
    /// Bytes of data.
    pub info_len: u32,
    /// Where they start, from byte 8.
    pub info_offset: u32,
}
assert_layout!(
    QueryComplete,
    size = 16,
    request_id = 0,
    status = 4,
    info_len = 8,
    info_offset = 12
);

/// Body of SET_C and KEEPALIVE_C.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct StatusComplete {
    /// Of the request.
    pub request_id: u32,
    /// How it went.
    pub status: RndisStatus,
}
assert_layout!(StatusComplete, size = 8, request_id = 0, status = 4);

/// Body of RESET_C (`struct rndis_reset_complete`), which has no request id.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ResetComplete {
    /// How it went.
    pub status: RndisStatus,
    /// 1: filter and multicast list must be set again.
    pub addressing_reset: u32,
}
assert_layout!(ResetComplete, size = 8, status = 0, addressing_reset = 4);

/// Body of INDICATE (`struct rndis_indicate_status`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Indicate {
    /// What has happened.
    pub status: RndisStatus,
    /// Bytes of data.
    pub buffer_len: u32,
    /// Where they start, from byte 8.
    pub buffer_offset: u32,
}
assert_layout!(
    Indicate,
    size = 12,
    status = 0,
    buffer_len = 4,
    buffer_offset = 8
);

/// A message from the guest other than a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage<'a> {
    /// INIT.
    Initialize(Initialize),
    /// HALT; no answer.
    Halt,
    /// QUERY.
    Query {
        /// For the answer.
        request_id: u32,
        /// The object.
        oid: Oid,
        /// What the guest says to it, for some objects the largest structure that it knows.
        info: &'a [u8],
    },
    /// SET.
    Set {
        /// For the answer.
        request_id: u32,
        /// The object.
        oid: Oid,
        /// Its value.
        info: &'a [u8],
    },
    /// RESET.
    Reset,
    /// KEEPALIVE.
    Keepalive {
        /// For the answer.
        request_id: u32,
    },
    /// Answer to the host's KEEPALIVE.
    KeepaliveComplete(StatusComplete),
}

/// A message from the host other than a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage<'a> {
    /// INIT_C.
    InitializeComplete(InitializeComplete),
    /// QUERY_C.
    QueryComplete {
        /// Of the request.
        request_id: u32,
        /// How it went.
        status: RndisStatus,
        /// The value.
        info: &'a [u8],
    },
    /// SET_C.
    SetComplete(StatusComplete),
    /// RESET_C.
    ResetComplete(ResetComplete),
    /// KEEPALIVE_C.
    KeepaliveComplete(StatusComplete),
    /// INDICATE.
    Indicate {
        /// What has happened.
        status: RndisStatus,
        /// Data with it.
        buffer: &'a [u8],
    },
    /// KEEPALIVE: to be answered.
    Keepalive {
        /// For the answer.
        request_id: u32,
    },
}

impl HostMessage<'_> {
    /// The request that this answers, if it answers one that had an id.
    #[must_use]
    pub const fn request_id(&self) -> Option<u32> {
        match self {
            Self::InitializeComplete(m) => Some(m.request_id),
            Self::QueryComplete { request_id, .. } => Some(*request_id),
            Self::SetComplete(m) | Self::KeepaliveComplete(m) => Some(m.request_id),
            Self::ResetComplete(_) | Self::Indicate { .. } | Self::Keepalive { .. } => None,
        }
    }
}

/// Why bytes are not an RNDIS message that may come. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadMessage {
    /// Not even type and length.
    NoHeader {
        /// Bytes there are.
        len: usize,
    },
    /// The message claims to be longer than what came, or shorter than its header.
    Length {
        /// Type.
        message_type: RndisType,
        /// Claimed.
        claimed: u32,
        /// Bytes there are.
        available: usize,
    },
    /// Shorter than the type's body.
    TooShort {
        /// Type.
        message_type: RndisType,
        /// Bytes there are.
        len: usize,
    },
    /// The data do not lie behind the body and in the message.
    Info {
        /// Type.
        message_type: RndisType,
        /// Where they start, from byte 8.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// A type that the peer does not send, a frame among them.
    Unexpected(RndisType),
}

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader { len } => write!(f, "RNDIS message of {len} bytes"),
            Self::Length {
                message_type,
                claimed,
                available,
            } => write!(
                f,
                "RNDIS {message_type:?} of length {claimed} in {available} bytes"
            ),
            Self::TooShort { message_type, len } => {
                write!(f, "RNDIS {message_type:?} of {len} bytes")
            }
            Self::Info {
                message_type,
                offset,
                len,
            } => write!(f, "RNDIS {message_type:?} with {len} bytes at {offset}"),
            Self::Unexpected(message_type) => write!(f, "unexpected RNDIS {message_type:?}"),
        }
    }
}

impl core::error::Error for BadMessage {}

/// A message measured: its type, what follows byte 8 up to its end, and up to the end of what came.
struct Raw<'a> {
    message_type: RndisType,
    body: &'a [u8],
    all: &'a [u8],
}

impl<'a> Raw<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, BadMessage> {
        let no_header = BadMessage::NoHeader { len: bytes.len() };
        let ([message_type, claimed], all) =
            <[u32; 2]>::read_from_prefix(bytes).map_err(|_| no_header)?;
        let message_type = RndisType(message_type);
        let body = (claimed as usize)
            .checked_sub(RNDIS_HEADER_SIZE as usize)
            .and_then(|len| all.get(..len))
            .ok_or(BadMessage::Length {
                message_type,
                claimed,
                available: bytes.len(),
            })?;
        Ok(Self {
            message_type,
            body,
            all,
        })
    }

    fn body<T: FromBytes>(&self) -> Result<T, BadMessage> {
        T::read_from_prefix(self.body)
            .map(|(body, _)| body)
            .map_err(|_| BadMessage::TooShort {
                message_type: self.message_type,
                len: self.body.len().saturating_add(RNDIS_HEADER_SIZE as usize),
            })
    }

    /// `len` bytes at `offset` of `within`, behind a body of `fixed` bytes. No bytes may be said to lie anywhere.
    fn info(
        &self,
        within: &'a [u8],
        fixed: usize,
        offset: u32,
        len: u32,
    ) -> Result<&'a [u8], BadMessage> {
        if len == 0 {
            return Ok(&[]);
        }
        let bad = BadMessage::Info {
            message_type: self.message_type,
            offset,
            len,
        };
        if (offset as usize) < fixed {
            return Err(bad);
        }
        within
            .get(offset as usize..)
            .and_then(|rest| rest.get(..len as usize))
            .ok_or(bad)
    }

    fn oid_request(&self) -> Result<(OidRequest, &'a [u8]), BadMessage> {
        let request: OidRequest = self.body()?;
        let fixed = core::mem::size_of::<OidRequest>();
        let info = self.info(self.body, fixed, request.info_offset, request.info_len)?;
        Ok((request, info))
    }
}

impl<'a> GuestMessage<'a> {
    /// Takes apart and checks a message, a private copy of which `bytes` holds.
    ///
    /// # Errors
    /// [`BadMessage`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadMessage> {
        let raw = Raw::new(bytes)?;
        Ok(match raw.message_type {
            RndisType::INIT => Self::Initialize(raw.body()?),
            // Linux' HALT has an id, which nobody needs.
            RndisType::HALT => Self::Halt,
            RndisType::QUERY => {
                let (request, info) = raw.oid_request()?;
                Self::Query {
                    request_id: request.request_id,
                    oid: request.oid,
                    info,
                }
            }
            RndisType::SET => {
                let (request, info) = raw.oid_request()?;
                Self::Set {
                    request_id: request.request_id,
                    oid: request.oid,
                    info,
                }
            }
            RndisType::RESET => Self::Reset,
            RndisType::KEEPALIVE => Self::Keepalive {
                request_id: raw.body()?,
            },
            RndisType::KEEPALIVE_C => Self::KeepaliveComplete(raw.body()?),
            other => return Err(BadMessage::Unexpected(other)),
        })
    }
}

impl<'a> HostMessage<'a> {
    /// Takes apart and checks a message, a private copy of which `bytes` holds: the whole range, as hosts before
    /// Windows Server 2016 do not count the data of INDICATE (`netvsc_drv.c`, `netvsc_linkstatus_callback`).
    ///
    /// # Errors
    /// [`BadMessage`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadMessage> {
        let raw = Raw::new(bytes)?;
        Ok(match raw.message_type {
            RndisType::INIT_C => Self::InitializeComplete(raw.body()?),
            RndisType::QUERY_C => {
                let answer: QueryComplete = raw.body()?;
                let fixed = core::mem::size_of::<QueryComplete>();
                let info = raw.info(raw.body, fixed, answer.info_offset, answer.info_len)?;
                Self::QueryComplete {
                    request_id: answer.request_id,
                    status: answer.status,
                    info,
                }
            }
            RndisType::SET_C => Self::SetComplete(raw.body()?),
            RndisType::RESET_C => Self::ResetComplete(raw.body()?),
            RndisType::KEEPALIVE_C => Self::KeepaliveComplete(raw.body()?),
            RndisType::INDICATE => {
                let indicate: Indicate = raw.body()?;
                let fixed = core::mem::size_of::<Indicate>();
                let buffer =
                    raw.info(raw.all, fixed, indicate.buffer_offset, indicate.buffer_len)?;
                Self::Indicate {
                    status: indicate.status,
                    buffer,
                }
            }
            RndisType::KEEPALIVE => Self::Keepalive {
                request_id: raw.body()?,
            },
            other => return Err(BadMessage::Unexpected(other)),
        })
    }
}

/// What the guest makes of an indication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Link up.
    Up,
    /// Link down.
    Down,
    /// Another network: down, then up.
    NetworkChange,
    /// The speed, in units of 100 bit/s.
    Speed(u32),
    /// Of no interest.
    Other(RndisStatus),
}

impl LinkEvent {
    /// From what [`HostMessage::Indicate`] holds. A speed without its four bytes is of no interest.
    #[must_use]
    pub fn new(status: RndisStatus, buffer: &[u8]) -> Self {
        match status {
            RndisStatus::MEDIA_CONNECT => Self::Up,
            RndisStatus::MEDIA_DISCONNECT => Self::Down,
            RndisStatus::NETWORK_CHANGE => Self::NetworkChange,
            RndisStatus::LINK_SPEED_CHANGE => match u32::read_from_prefix(buffer) {
                Ok((speed, _)) => Self::Speed(speed),
                Err(_) => Self::Other(status),
            },
            other => Self::Other(other),
        }
    }
}
