// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! NVSP messages.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes};
use zerocopy_derive::*;

use crate::msg::GpadlId;

mod table;

pub use table::{SendTable, TableError, TableForm, MAX_TABLE_MESSAGE};

open_enum! {
    /// A version: major in the upper half, minor in the lower (hyperv_net.h, `NVSP_PROTOCOL_VERSION_*`; OpenVMM
    /// `protocol.rs`, `Version`).
    pub struct NvspVersion(u32) {
        /// Windows Server 2008.
        V1 = 0x0000_0002,
        /// Windows Server 2008 R2: SEND_NDIS_CONFIG.
        V2 = 0x0003_0002,
        /// Windows Server 2012: SR-IOV.
        V4 = 0x0004_0000,
        /// Windows Server 2012 R2: sub-channels.
        V5 = 0x0005_0000,
        /// Windows Server 2016.
        V6 = 0x0006_0000,
        /// Windows Server 2019: receive-segment coalescing.
        V6_1 = 0x0006_0001,
    }
}

impl NvspVersion {
    /// All versions spoken, newest first.
    pub const SPOKEN: [Self; 6] = [Self::V6_1, Self::V6, Self::V5, Self::V4, Self::V2, Self::V1];

    /// Whether the guest sends SEND_NDIS_CONFIG (`netvsc.c`, `negotiate_nvsp_ver`).
    #[must_use]
    pub fn has_ndis_config(self) -> bool {
        self >= Self::V2
    }

    /// Whether sub-channels can be asked for.
    #[must_use]
    pub fn has_subchannels(self) -> bool {
        self >= Self::V5
    }

    /// Bytes of a message: peers pad to this. Messages from a peer may be shorter, but never shorter than what
    /// they must hold (OpenVMM `protocol.rs`, `PACKET_SIZE_V1`, `PACKET_SIZE_V61`).
    #[must_use]
    pub fn message_size(self) -> usize {
        if self >= Self::V6_1 {
            MESSAGE_SIZE
        } else {
            MESSAGE_SIZE_V1
        }
    }

    /// The NDIS version that a Linux guest names: 6.1 up to NVSP 4, then 6.30 (`netvsc.c`, `netvsc_connect_vsp`).
    #[must_use]
    pub fn ndis_version(self) -> NdisVersion {
        NdisVersion {
            major: 6,
            minor: if self <= Self::V4 { 1 } else { 30 },
        }
    }

    /// Largest receive buffer in bytes that a host takes (hyperv_net.h, `NETVSC_RECEIVE_BUFFER_SIZE`, `_LEGACY`).
    #[must_use]
    pub fn max_receive_buffer(self) -> u32 {
        if self <= Self::V2 {
            15 << 20
        } else {
            31 << 20
        }
    }
}

/// Largest send buffer in bytes that a host takes (hyperv_net.h, `NETVSC_SEND_BUFFER_SIZE`).
pub const MAX_SEND_BUFFER: u32 = 15 << 20;

/// Size in bytes of a message since 6.1, and of Linux' messages in all versions (hyperv_net.h, `struct nvsp_message`).
pub const MESSAGE_SIZE: usize = 40;

/// Size in bytes of a message before 6.1.
pub const MESSAGE_SIZE_V1: usize = 28;

/// Bytes of a message's type.
pub const HEADER_SIZE: usize = 4;

/// The receive buffer's id, and the set id of transfer-page packets. Any would do; Linux' choice
/// (`NETVSC_RECEIVE_BUFFER_ID`).
pub const RECEIVE_BUFFER_ID: u16 = 0xcafe;

/// The send buffer's id (`NETVSC_SEND_BUFFER_ID`).
pub const SEND_BUFFER_ID: u16 = 0;

/// "No section": the data are elsewhere (hyperv_net.h, `struct nvsp_1_message_send_rndis_packet`).
pub const NO_SECTION: u32 = u32::MAX;

/// Ranges of one transfer-page packet at most, as Linux expects them: 375 frames, or 562 when one of them is
/// coalesced (hyperv_net.h, `NVSP_RSC_MAX`).
pub const MAX_TRANSFER_RANGES: usize = 562;

/// Entries of the send-indirection table (hyperv_net.h, `VRSS_SEND_TAB_SIZE`).
pub const SEND_TABLE_SIZE: usize = 16;

/// Channels of a device at most (hyperv_net.h, `VRSS_CHANNEL_MAX`).
pub const MAX_CHANNELS: u32 = 64;

open_enum! {
    /// What a message is (hyperv_net.h, `NVSP_MSG*_TYPE_*`). Those of TCP chimney are long gone and not named.
    pub struct MessageType(u32) {
        /// Guest: which versions it speaks.
        INIT = 1,
        /// Host: whether it does.
        INIT_COMPLETE = 2,
        /// Guest: its NDIS version. No answer needed.
        SEND_NDIS_VER = 100,
        /// Guest: the receive buffer.
        SEND_RECV_BUF = 101,
        /// Host: its sections.
        SEND_RECV_BUF_COMPLETE = 102,
        /// Guest: takes the receive buffer back.
        REVOKE_RECV_BUF = 103,
        /// Guest: the send buffer.
        SEND_SEND_BUF = 104,
        /// Host: size of its sections.
        SEND_SEND_BUF_COMPLETE = 105,
        /// Guest: takes the send buffer back.
        REVOKE_SEND_BUF = 106,
        /// Both: RNDIS messages.
        SEND_RNDIS_PKT = 107,
        /// Both: done with them.
        SEND_RNDIS_PKT_COMPLETE = 108,
        /// Guest, from 2: MTU and capabilities. No answer needed.
        SEND_NDIS_CONFIG = 125,
        /// Host, from 4: a virtual function came or went.
        SEND_VF_ASSOCIATION = 128,
        /// Guest, from 4: use the virtual function or not. Answered by an empty completion.
        SWITCH_DATA_PATH = 129,
        /// Deprecated.
        UPLINK_CONNECT_STATE = 130,
        /// Guest, from 5: an OID query without RNDIS; Linux has no use for it.
        OID_QUERY_EX = 131,
        /// Host: the answer.
        OID_QUERY_EX_COMPLETE = 132,
        /// Guest, from 5: sub-channels wanted. Host: sub-channels given.
        SUBCHANNEL = 133,
        /// Host, from 5: which channel to send on.
        SEND_INDIRECTION_TABLE = 134,
        /// Both, from 6: PacketDirect; Linux has no use for it.
        PD_API = 135,
        /// Both, from 6: PacketDirect.
        PD_POST_BATCH = 136,
    }
}

open_enum! {
    /// How a request went (hyperv_net.h, `NVSP_STAT_*`).
    pub struct NvspStatus(u32) {
        /// Not decided; a host refuses a version so (OpenVMM `netvsp`, `initialize`).
        NONE = 0,
        /// Done.
        SUCCESS = 1,
        /// Not done.
        FAIL = 2,
        /// Version too new.
        PROTOCOL_TOO_NEW = 3,
        /// Version too old.
        PROTOCOL_TOO_OLD = 4,
        /// The RNDIS message is malformed.
        INVALID_RNDIS_PKT = 5,
        /// Try again.
        BUSY = 6,
        /// Not supported in this version.
        PROTOCOL_UNSUPPORTED = 7,
    }
}

open_enum! {
    /// Which of RNDIS' two pipes a message belongs to.
    pub struct ChannelType(u32) {
        /// Frames.
        DATA = 0,
        /// All else.
        CONTROL = 1,
    }
}

open_enum! {
    /// Which way frames take (`enum nvsp_vm_datapath`).
    pub struct DataPath(u32) {
        /// This device.
        SYNTHETIC = 0,
        /// The virtual function.
        VF = 1,
    }
}

open_enum! {
    /// What to do with sub-channels (`enum nvsp_subchannel_operation`).
    pub struct SubchannelOperation(u32) {
        /// Offer some.
        ALLOCATE = 1,
    }
}

wire_flags! {
    /// What the guest can do (`struct nvsp_2_vsc_capability`).
    pub struct NdisCapabilities(u64) {
        /// VM queues.
        const VMQ = 1 << 0;
        /// TCP chimney.
        const CHIMNEY = 1 << 1;
        /// A virtual function beside this device.
        const SRIOV = 1 << 2;
        /// VLAN tags as per-packet information.
        const IEEE_8021Q = 1 << 3;
        /// Correlation ids.
        const CORRELATION_ID = 1 << 4;
        /// Teaming; makes the host tell changes of the link speed.
        const TEAMING = 1 << 5;
        /// Virtual subnet ids.
        const VIRTUAL_SUBNET_ID = 1 << 6;
        /// Several ranges of one packet may be parts of one large segment.
        const RSC = 1 << 7;
    }
}

/// INIT (`struct nvsp_message_init`). Only hosts of the first version look at more than the first field.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Init {
    /// Oldest version spoken.
    pub min: NvspVersion,
    /// Newest; the same, as the guest asks for one after the other.
    pub max: NvspVersion,
}
assert_layout!(Init, size = 8, min = 0, max = 4);

/// INIT_COMPLETE (`struct nvsp_message_init_complete`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct InitComplete {
    /// The version for 1, else 0xffffffff (OpenVMM `protocol.rs`). Not to be used.
    pub version: u32,
    /// Ranges that one GPA-direct packet may have; 34 with OpenVMM.
    pub max_mdl_chain: u32,
    /// Whether the version is spoken.
    pub status: NvspStatus,
}
assert_layout!(
    InitComplete,
    size = 12,
    version = 0,
    max_mdl_chain = 4,
    status = 8
);

/// SEND_NDIS_VER (`struct nvsp_1_message_send_ndis_version`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct NdisVersion {
    /// 6.
    pub major: u32,
    /// In decimal: 30 for 6.30.
    pub minor: u32,
}
assert_layout!(NdisVersion, size = 8, major = 0, minor = 4);

/// SEND_NDIS_CONFIG (`struct nvsp_2_send_ndis_config`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct NdisConfig {
    /// MTU plus the 14 bytes of the Ethernet header.
    pub mtu: u32,
    /// Zero.
    pub reserved: u32,
    /// See [`NdisCapabilities`].
    pub capabilities: NdisCapabilities,
}
assert_layout!(
    NdisConfig,
    size = 16,
    mtu = 0,
    reserved = 4,
    capabilities = 8
);

/// SEND_RECV_BUF and SEND_SEND_BUF (`struct nvsp_1_message_send_receive_buffer`, `…_send_send_buffer`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SendBuffer {
    /// The buffer.
    pub gpadl: GpadlId,
    /// Its name from now on.
    pub id: u16,
    /// Zero.
    pub reserved: u16,
}
assert_layout!(SendBuffer, size = 8, gpadl = 0, id = 4, reserved = 6);

/// REVOKE_RECV_BUF and REVOKE_SEND_BUF.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RevokeBuffer {
    /// The buffer's name.
    pub id: u16,
}
assert_layout!(RevokeBuffer, size = 2);

/// A run of sections of the receive buffer (`struct nvsp_1_receive_buffer_section`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ReceiveSections {
    /// Where it starts.
    pub offset: u32,
    /// Bytes of each section.
    pub size: u32,
    /// How many.
    pub count: u32,
    /// Where it ends.
    pub end: u32,
}
assert_layout!(
    ReceiveSections,
    size = 16,
    offset = 0,
    size = 4,
    count = 8,
    end = 12
);

/// SEND_RECV_BUF_COMPLETE with one run of sections: "no VSP has ever sent more" (OpenVMM `protocol.rs`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SendReceiveBufferComplete {
    /// How it went.
    pub status: NvspStatus,
    /// Runs.
    pub runs: u32,
    /// The first.
    pub first: ReceiveSections,
}
assert_layout!(
    SendReceiveBufferComplete,
    size = 24,
    status = 0,
    runs = 4,
    first = 8
);

/// SEND_SEND_BUF_COMPLETE (`struct nvsp_1_message_send_send_buffer_complete`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SendSendBufferComplete {
    /// How it went.
    pub status: NvspStatus,
    /// Bytes of each section; the buffer holds as many as fit.
    pub section_size: u32,
}
assert_layout!(
    SendSendBufferComplete,
    size = 8,
    status = 0,
    section_size = 4
);

/// SEND_RNDIS_PKT (`struct nvsp_1_message_send_rndis_packet`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SendRndisPacket {
    /// What it carries.
    pub channel: ChannelType,
    /// The send section that holds the message or its start; [`NO_SECTION`] for none, and from the host.
    pub section_index: u32,
    /// Bytes in the section.
    pub section_size: u32,
}
assert_layout!(
    SendRndisPacket,
    size = 12,
    channel = 0,
    section_index = 4,
    section_size = 8
);

impl SendRndisPacket {
    /// The whole message as the words of a ring packet's payload: [`MESSAGE_SIZE`] bytes.
    #[inline]
    #[must_use]
    pub const fn words(self) -> [u64; MESSAGE_SIZE >> 3] {
        [
            MessageType::SEND_RNDIS_PKT.0 as u64 | ((self.channel.0 as u64) << 32),
            self.section_index as u64 | ((self.section_size as u64) << 32),
            0,
            0,
            0,
        ]
    }
}

/// SEND_RNDIS_PKT_COMPLETE, SWITCH_DATA_PATH and others with nothing but one number.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct StatusBody {
    /// How it went.
    pub status: NvspStatus,
}
assert_layout!(StatusBody, size = 4);

/// The word that completes RNDIS messages: type and status, 8 bytes, as Linux sends it (`netvsc.c`,
/// `send_recv_completions`).
#[inline]
#[must_use]
pub const fn rndis_complete_word(status: NvspStatus) -> u64 {
    MessageType::SEND_RNDIS_PKT_COMPLETE.0 as u64 | ((status.0 as u64) << 32)
}

/// SEND_VF_ASSOCIATION (`struct nvsp_4_send_vf_association`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct VfAssociation {
    /// 1: there is one; 0: no more.
    pub allocated: u32,
    /// Its serial number, which the PCI slot shows.
    pub serial: u32,
}
assert_layout!(VfAssociation, size = 8, allocated = 0, serial = 4);

/// SWITCH_DATA_PATH (`struct nvsp_4_sw_datapath`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SwitchDataPath {
    /// Which to use.
    pub active: DataPath,
}
assert_layout!(SwitchDataPath, size = 4);

/// SUBCHANNEL from the guest (`struct nvsp_5_subchannel_request`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SubchannelRequest {
    /// ALLOCATE.
    pub operation: SubchannelOperation,
    /// How many, the primary channel not counted.
    pub count: u32,
}
assert_layout!(SubchannelRequest, size = 8, operation = 0, count = 4);

/// SUBCHANNEL from the host (`struct nvsp_5_subchannel_complete`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SubchannelComplete {
    /// How it went.
    pub status: NvspStatus,
    /// How many are offered.
    pub count: u32,
}
assert_layout!(SubchannelComplete, size = 8, status = 0, count = 4);

/// Start of SEND_INDIRECTION_TABLE (`struct nvsp_5_send_indirect_table`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SendTableHeader {
    /// Entries, each 32 bits.
    pub count: u32,
    /// Where the entries start, from the start of the message.
    pub offset: u32,
}
assert_layout!(SendTableHeader, size = 8, count = 0, offset = 4);

/// A message at its full size.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct NvspMessage {
    /// What it is.
    pub message_type: MessageType,
    /// By type; what a short message lacks is zero.
    pub body: [u8; MESSAGE_SIZE - HEADER_SIZE],
}
assert_layout!(NvspMessage, size = MESSAGE_SIZE, message_type = 0, body = 4);

impl NvspMessage {
    /// A message with a body of one of this module's types.
    #[must_use]
    pub fn new<T: IntoBytes + Immutable>(message_type: MessageType, body: &T) -> Self {
        const { assert!(core::mem::size_of::<T>() <= MESSAGE_SIZE - HEADER_SIZE) };
        let mut message = Self {
            message_type,
            body: [0; MESSAGE_SIZE - HEADER_SIZE],
        };
        // It fits: asserted above.
        let _ = body.write_to_prefix(&mut message.body);
        message
    }

    /// The body as one of this module's types. Meant for messages that [`parse`](Self::parse) has measured.
    #[must_use]
    pub fn body_as<T: FromBytes>(&self) -> T {
        const { assert!(core::mem::size_of::<T>() <= MESSAGE_SIZE - HEADER_SIZE) };
        match T::read_from_prefix(&self.body) {
            Ok((body, _)) => body,
            // It fits: asserted above.
            Err(_) => T::new_zeroed(),
        }
    }

    /// Copies a message, measured against what its type must hold. Of an unknown type only the type itself must
    /// be there.
    ///
    /// # Errors
    /// [`TooShort`].
    pub fn parse(payload: &[u8]) -> Result<Self, TooShort> {
        let len = payload.len();
        let (message_type, body) =
            MessageType::read_from_prefix(payload).map_err(|_| TooShort {
                message_type: None,
                len,
            })?;
        if body.len() < message_type.body_size() {
            return Err(TooShort {
                message_type: Some(message_type),
                len,
            });
        }
        let mut message = Self {
            message_type,
            body: [0; MESSAGE_SIZE - HEADER_SIZE],
        };
        for (to, from) in message.body.iter_mut().zip(body) {
            *to = *from;
        }
        Ok(message)
    }

    /// The message as sent in `version`: see [`NvspVersion::message_size`].
    #[must_use]
    pub fn bytes_for(&self, version: NvspVersion) -> &[u8] {
        let bytes = self.as_bytes();
        bytes.get(..version.message_size()).unwrap_or(bytes)
    }
}

impl fmt::Debug for NvspMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:02x?}", self.message_type, self.body)
    }
}

impl MessageType {
    /// Bytes of body that a message of the type must have.
    #[must_use]
    pub const fn body_size(self) -> usize {
        match self {
            Self::INIT
            | Self::SEND_NDIS_VER
            | Self::SEND_SEND_BUF_COMPLETE
            | Self::SEND_VF_ASSOCIATION
            | Self::OID_QUERY_EX
            | Self::OID_QUERY_EX_COMPLETE
            | Self::SUBCHANNEL
            | Self::SEND_INDIRECTION_TABLE => 8,
            // The two bytes after the id were not always sent (hyperv_net.h has none).
            Self::SEND_RECV_BUF | Self::SEND_SEND_BUF => 6,
            Self::INIT_COMPLETE | Self::SEND_RNDIS_PKT => 12,
            Self::SEND_RECV_BUF_COMPLETE => 24,
            Self::REVOKE_RECV_BUF | Self::REVOKE_SEND_BUF => 2,
            Self::SEND_RNDIS_PKT_COMPLETE | Self::SWITCH_DATA_PATH | Self::PD_API => 4,
            Self::SEND_NDIS_CONFIG => 16,
            _ => 0,
        }
    }

    /// The oldest version that knows the type; `None` for unknown types.
    #[must_use]
    pub const fn since(self) -> Option<NvspVersion> {
        match self.0 {
            1 | 2 | 100..=108 => Some(NvspVersion::V1),
            109..=127 => Some(NvspVersion::V2),
            128..=130 => Some(NvspVersion::V4),
            131..=134 => Some(NvspVersion::V5),
            135..=136 => Some(NvspVersion::V6),
            _ => None,
        }
    }
}

/// A message is shorter than what it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooShort {
    /// Its type; `None` when even that is cut.
    pub message_type: Option<MessageType>,
    /// Bytes that came.
    pub len: usize,
}

impl fmt::Display for TooShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message_type {
            Some(message_type) => write!(f, "{message_type:?} of {} bytes", self.len),
            None => write!(f, "NVSP message of {} bytes", self.len),
        }
    }
}

impl core::error::Error for TooShort {}

/// What a host sends in-band, on its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Send as it says from now on.
    SendTable(SendTable),
    /// A virtual function came or went.
    Vf(VfAssociation),
    /// The host has gone back to the synthetic path, or would like to be told.
    DataPath(DataPath),
    /// A type that this driver does not know. No fault: hosts learn new ones.
    Ignored(MessageType),
}

impl Notice {
    /// Takes apart the payload, a private copy, of an in-band packet from the host.
    ///
    /// # Errors
    /// [`TableError`], of which [`TableError::TooShort`] speaks for other types too.
    pub fn parse(version: NvspVersion, payload: &[u8]) -> Result<Self, TableError> {
        let message = NvspMessage::parse(payload).map_err(TableError::TooShort)?;
        Ok(match message.message_type {
            MessageType::SEND_INDIRECTION_TABLE => {
                Self::SendTable(SendTable::parse(version, payload)?)
            }
            MessageType::SEND_VF_ASSOCIATION => Self::Vf(message.body_as()),
            MessageType::SWITCH_DATA_PATH => {
                Self::DataPath(message.body_as::<SwitchDataPath>().active)
            }
            other => Self::Ignored(other),
        })
    }
}

/// What a completion says, before it is known whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Nothing: SWITCH_DATA_PATH and messages that need no answer are completed so.
    Empty,
    /// RNDIS messages were taken, or not.
    Rndis(NvspStatus),
    /// The answer to a request of the set-up.
    Answer(NvspMessage),
}

impl Completion {
    /// Takes apart the payload, a private copy, of a completion packet.
    ///
    /// # Errors
    /// [`TooShort`].
    #[inline]
    pub fn parse(payload: &[u8]) -> Result<Self, TooShort> {
        // Nearly all are of this kind, and 8 bytes are all there is to look at.
        if let Some((word, _)) = payload.split_first_chunk::<8>() {
            let word = u64::from_le_bytes(*word);
            if word as u32 == MessageType::SEND_RNDIS_PKT_COMPLETE.0 {
                return Ok(Self::Rndis(NvspStatus((word >> 32) as u32)));
            }
        }
        if payload.is_empty() {
            return Ok(Self::Empty);
        }
        NvspMessage::parse(payload).map(Self::Answer)
    }
}

/// The type of a message, if there is one.
#[inline]
#[must_use]
pub fn message_type(payload: &[u8]) -> Option<MessageType> {
    payload
        .split_first_chunk::<4>()
        .map(|(word, _)| MessageType(u32::from_le_bytes(*word)))
}
