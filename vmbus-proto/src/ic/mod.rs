// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Integration components (IC): heartbeat, guest shutdown, time synchronisation, key-value pairs, backup, file copy.
//!
//! An IC is a VMBus channel in message pipe mode. The host asks, the guest answers each request with one message of the
//! same length: the request itself, with the response flag, a status and the service's own result written into it. The
//! first request after the channel has opened is the version negotiation ([`negotiate`]).
//!
//! A message in a packet's payload:
//!
//! ```text
//! PipeHeader (8) | IcHeader (20) | body: NegotiateHeader + versions, or the service's message
//! ```
//!
//! Guest: one [`Session`] for each service, inside [`heartbeat::Guest`], [`shutdown::Guest`] and [`timesync::Guest`]. Host:
//! [`negotiate::propose`], [`write_request`] and [`parse_response`].
//!
//! The packet is a private copy of what the peer wrote. All functions check every length and count against that copy.
//!
//! Sources: Linux `include/linux/hyperv.h` and `include/uapi/linux/hyperv.h` (`struct vmbuspipe_hdr`, `struct icmsg_hdr` and what follows them) for the
//! formats; the host's use of the flags as in Microsoft's OpenVMM, `vm/devices/hyperv_ic`.

use core::fmt;
use core::mem::size_of;
use static_assertions::{const_assert, const_assert_eq};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub mod exchange;
pub mod fcopy;
pub mod field;
pub mod heartbeat;
pub mod kvp;
pub mod negotiate;
pub mod shutdown;
pub mod text;
pub mod timesync;
pub mod vss;

pub use negotiate::{Negotiated, Session};

#[cfg(test)]
mod data_tests;
#[cfg(test)]
mod tests;

/// Header of a message in a message pipe channel (Linux: `struct vmbuspipe_hdr`).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
pub struct PipeHeader {
    /// [`PipeHeader::DATA`] for a whole message. Linux calls the field `flags` and only echoes it.
    pub packet_type: U32,
    /// Bytes of the message after this header, without the padding at the packet's end.
    pub message_size: U32,
}
const_assert_eq!(size_of::<PipeHeader>(), 8);

impl PipeHeader {
    /// `packet_type` of a whole message (OpenVMM `vmbus_ring`: `PIPE_PACKET_TYPE_DATA`).
    pub const DATA: u32 = 1;
}

/// A framework or service version.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
pub struct IcVersion {
    major: U16,
    minor: U16,
}
const_assert_eq!(size_of::<IcVersion>(), 4);

impl IcVersion {
    /// Version `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self {
            major: U16::new(major),
            minor: U16::new(minor),
        }
    }

    /// Major number.
    pub const fn major(self) -> u16 {
        self.major.get()
    }

    /// Minor number.
    pub const fn minor(self) -> u16 {
        self.minor.get()
    }
}

impl Ord for IcVersion {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.major(), self.minor()).cmp(&(other.major(), other.minor()))
    }
}

impl PartialOrd for IcVersion {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for IcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for IcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// IC framework 3.0, of Windows Server 2008 R2 and later (Linux: `UTIL_FW_VERSION`).
pub const FRAMEWORK_3_0: IcVersion = IcVersion::new(3, 0);
/// IC framework 1.0, of Windows Server 2008 (Linux: `UTIL_WS2K8_FW_VERSION`).
pub const FRAMEWORK_1_0: IcVersion = IcVersion::new(1, 0);
/// The framework versions that we speak, best first.
pub const FRAMEWORK_VERSIONS: &[IcVersion] = &[FRAMEWORK_3_0, FRAMEWORK_1_0];

/// What a message is about (Linux: `ICMSGTYPE_*`). Chosen by the peer, so open.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct MessageType(U16);

impl MessageType {
    /// Version negotiation.
    pub const NEGOTIATE: Self = Self::new(0);
    /// Heartbeat.
    pub const HEARTBEAT: Self = Self::new(1);
    /// Key-value pair exchange.
    pub const KVP_EXCHANGE: Self = Self::new(2);
    /// Power off, reboot, hibernate.
    pub const SHUTDOWN: Self = Self::new(3);
    /// Time synchronisation.
    pub const TIMESYNC: Self = Self::new(4);
    /// Volume shadow copy.
    pub const VSS: Self = Self::new(5);
    /// File copy from host to guest.
    pub const FCOPY: Self = Self::new(7);

    /// The type with number `raw`.
    pub const fn new(raw: u16) -> Self {
        Self(U16::new(raw))
    }

    /// The number on the wire.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageType({})", self.get())
    }
}

/// Result of a request: a Windows `HRESULT`. Chosen by the peer, so open.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct Status(U32);

impl Status {
    /// Done (Linux: `HV_S_OK`).
    pub const OK: Self = Self::new(0);
    /// Not done (Linux: `HV_E_FAIL`).
    pub const FAIL: Self = Self::new(0x8000_4005);
    /// Nothing more to enumerate (Linux: `HV_S_CONT`).
    pub const NO_MORE_ITEMS: Self = Self::new(0x8007_0103);
    /// Not supported (Linux: `HV_ERROR_NOT_SUPPORTED`).
    pub const NOT_SUPPORTED: Self = Self::new(0x8007_0032);
    /// The disk is full (Linux: `HV_ERROR_DISK_FULL`).
    pub const DISK_FULL: Self = Self::new(0x8007_0070);
    /// There is such a file already (Linux: `HV_ERROR_ALREADY_EXISTS`).
    pub const ALREADY_EXISTS: Self = Self::new(0x8007_0050);
    /// No such adapter (Linux: `HV_GUID_NOTFOUND`).
    pub const GUID_NOT_FOUND: Self = Self::new(0x8004_1002);
    /// A field of the request is out of range (Linux: `HV_INVALIDARG`).
    pub const INVALID_ARGUMENT: Self = Self::new(0x8007_0057);
    /// Nobody in the guest serves the request (Linux: `HV_ERROR_DEVICE_NOT_CONNECTED`).
    pub const NOT_CONNECTED: Self = Self::new(0x8007_048f);

    /// The status with code `raw`.
    pub const fn new(raw: u32) -> Self {
        Self(U32::new(raw))
    }

    /// The code on the wire.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Whether the code tells of success: an `HRESULT` without the severity bit.
    pub const fn is_ok(self) -> bool {
        self.get() & 0x8000_0000 == 0
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#010x})", self.get())
    }
}

/// Flags of a message (Linux: `ICMSGHDRFLAG_*`). Unknown bits are kept.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct IcFlags(u8);

impl IcFlags {
    /// The message is part of an exchange of request and response.
    pub const TRANSACTION: Self = Self(1);
    /// The message is a request.
    pub const REQUEST: Self = Self(2);
    /// The message is a response.
    pub const RESPONSE: Self = Self(4);
    /// What a request carries.
    pub const ASK: Self = Self(Self::TRANSACTION.0 | Self::REQUEST.0);
    /// What a response carries.
    pub const ANSWER: Self = Self(Self::TRANSACTION.0 | Self::RESPONSE.0);

    /// The flags with the bits of `raw`.
    pub const fn from_bits(raw: u8) -> Self {
        Self(raw)
    }

    /// The bits on the wire.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for IcFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IcFlags({:#04x})", self.0)
    }
}

/// Header of every IC message (Linux: `struct icmsg_hdr`).
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
pub struct IcHeader {
    /// Negotiated framework version; 0.0 in the negotiation.
    pub framework_version: IcVersion,
    /// What the message is about.
    pub message_type: MessageType,
    /// Negotiated version of the service; 0.0 in the negotiation.
    pub message_version: IcVersion,
    /// Bytes of the body. Linux does not read it; nor do we, since the packet's length is what bounds the body.
    pub message_size: U16,
    /// Result, in a response.
    pub status: Status,
    /// Chosen by the host, echoed by the guest.
    pub transaction_id: u8,
    /// Request or response.
    pub flags: IcFlags,
    /// Zero.
    pub reserved: [u8; 2],
}
const_assert_eq!(size_of::<IcHeader>(), 20);
const_assert_eq!(core::mem::offset_of!(IcHeader, message_type), 4);
const_assert_eq!(core::mem::offset_of!(IcHeader, message_version), 6);
const_assert_eq!(core::mem::offset_of!(IcHeader, message_size), 10);
const_assert_eq!(core::mem::offset_of!(IcHeader, status), 12);
const_assert_eq!(core::mem::offset_of!(IcHeader, transaction_id), 16);
const_assert_eq!(core::mem::offset_of!(IcHeader, flags), 17);

/// Bytes before a message's body (Linux: `ICMSG_HDR`).
pub const HEADERS_SIZE: usize = size_of::<PipeHeader>() + size_of::<IcHeader>();
const_assert_eq!(HEADERS_SIZE, 28);

/// The longest request of the services in this module: a shutdown with its text. A receiver's buffer should be a page, as
/// in Linux, so that a longer request can still be refused with an answer.
pub const MAX_MESSAGE_SIZE: usize = HEADERS_SIZE + size_of::<shutdown::ShutdownMessage>();
const_assert!(MAX_MESSAGE_SIZE <= 4096);

/// What is wrong with a message. One variant for each cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcError {
    /// Shorter than its headers or its fixed part: `need` bytes of packet, `have` bytes there.
    TooShort {
        /// Bytes that the message must have at least, headers included.
        need: usize,
        /// Bytes that it has.
        have: usize,
    },
    /// The pipe header promises more bytes than the packet holds.
    PipeLength {
        /// Bytes promised after the pipe header.
        claimed: u32,
        /// Bytes there.
        have: usize,
    },
    /// The peer that has to ask sent a response, or the other way round.
    Direction(IcFlags),
    /// A message of a service that does not live on this channel.
    UnknownType(MessageType),
    /// A service's message before versions were agreed.
    NotNegotiated,
    /// More versions in a list than the protocol allows.
    TooManyVersions {
        /// Count of the framework list.
        framework: u16,
        /// Count of the service's list.
        message: u16,
    },
    /// The version lists are longer than the packet.
    VersionListTruncated {
        /// Count of the framework list.
        framework: u16,
        /// Count of the service's list.
        message: u16,
    },
    /// No framework version in common.
    NoFrameworkVersion,
    /// No version of the service in common.
    NoMessageVersion,
    /// The answer to a negotiation picks something that was not proposed.
    NotProposed(Negotiated),
    /// A field of a request of the data exchange services.
    Field(field::FieldError),
    /// The buffer for an outgoing message is too small: `need` bytes.
    BufferTooSmall {
        /// Bytes needed.
        need: usize,
    },
}

impl fmt::Display for IcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { need, have } => {
                write!(f, "message too short: {have} bytes, {need} needed")
            }
            Self::PipeLength { claimed, have } => {
                write!(f, "pipe header claims {claimed} bytes, packet has {have}")
            }
            Self::Direction(flags) => write!(
                f,
                "message in the wrong direction, flags {:#x}",
                flags.bits()
            ),
            Self::UnknownType(t) => write!(f, "invalid message type {}", t.get()),
            Self::NotNegotiated => write!(f, "message before version negotiation"),
            Self::TooManyVersions { framework, message } => {
                write!(
                    f,
                    "too many versions: {framework} framework, {message} message"
                )
            }
            Self::VersionListTruncated { framework, message } => {
                write!(
                    f,
                    "version lists exceed the packet: {framework} framework, {message} message"
                )
            }
            Self::NoFrameworkVersion => write!(f, "no common framework version"),
            Self::NoMessageVersion => write!(f, "no common message version"),
            Self::NotProposed(n) => {
                write!(f, "answer {} / {} was not proposed", n.framework, n.message)
            }
            Self::Field(e) => fmt::Display::fmt(e, f),
            Self::BufferTooSmall { need } => write!(f, "buffer too small, {need} bytes needed"),
        }
    }
}

impl IcError {
    /// A body of `have` bytes where `need` are wanted.
    pub(crate) const fn short_body(need: usize, have: usize) -> Self {
        Self::TooShort {
            need: HEADERS_SIZE.saturating_add(need),
            have: HEADERS_SIZE.saturating_add(have),
        }
    }
}

/// What the guest does with a packet.
///
/// `reply` and `event` are independent: a refused request has an error to log, and still an answer to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcome<E> {
    /// Send the packet, as it is now and in the length it was received, as the response with the same request id. False
    /// when the packet has no header to answer with, or is itself a response.
    pub reply: bool,
    /// What happened. An error is worth a rate-limited line in the log and nothing else.
    pub event: Result<E, IcError>,
}

/// Splits a packet into headers and body.
///
/// # Errors
///
/// [`IcError::TooShort`] without complete headers, [`IcError::PipeLength`] if the pipe header promises more than there is.
pub fn split(packet: &[u8]) -> Result<(&IcHeader, &[u8]), IcError> {
    let have = packet.len();
    let short = IcError::TooShort {
        need: HEADERS_SIZE,
        have,
    };
    let (pipe, rest) = PipeHeader::ref_from_prefix(packet).map_err(|_| short)?;
    let (header, body) = IcHeader::ref_from_prefix(rest).map_err(|_| short)?;
    check_pipe(pipe, rest.len())?;
    Ok((header, body))
}

/// [`split`] for a packet that will be turned into its own answer.
///
/// # Errors
///
/// As [`split`].
pub fn split_mut(packet: &mut [u8]) -> Result<(&mut IcHeader, &mut [u8]), IcError> {
    let have = packet.len();
    let short = IcError::TooShort {
        need: HEADERS_SIZE,
        have,
    };
    let (pipe, rest) = PipeHeader::ref_from_prefix(packet).map_err(|_| short)?;
    check_pipe(pipe, rest.len())?;
    let rest = packet.get_mut(size_of::<PipeHeader>()..).ok_or(short)?;
    IcHeader::mut_from_prefix(rest).map_err(|_| short)
}

fn check_pipe(pipe: &PipeHeader, have: usize) -> Result<(), IcError> {
    let claimed = pipe.message_size.get();
    match usize::try_from(claimed) {
        Ok(n) if n <= have => Ok(()),
        _ => Err(IcError::PipeLength { claimed, have }),
    }
}

/// Host: writes a request of a service and returns the packet's length.
///
/// # Errors
///
/// [`IcError::BufferTooSmall`] if `out` cannot hold headers and `body` (at most 65,535 bytes).
pub fn write_request(
    out: &mut [u8],
    versions: Negotiated,
    message_type: MessageType,
    transaction_id: u8,
    body: &[u8],
) -> Result<usize, IcError> {
    let need = HEADERS_SIZE.saturating_add(body.len());
    let small = IcError::BufferTooSmall { need };
    let size = u16::try_from(body.len()).map_err(|_| small)?;
    let packet = out.get_mut(..need).ok_or(small)?;
    let pipe = PipeHeader {
        packet_type: U32::new(PipeHeader::DATA),
        message_size: U32::new(u32::from(size).saturating_add(size_of::<IcHeader>() as u32)),
    };
    let header = IcHeader {
        framework_version: versions.framework,
        message_type,
        message_version: versions.message,
        message_size: U16::new(size),
        status: Status::OK,
        transaction_id,
        flags: IcFlags::ASK,
        reserved: [0; 2],
    };
    let (p, rest) = packet
        .split_at_mut_checked(size_of::<PipeHeader>())
        .ok_or(small)?;
    let (h, b) = rest
        .split_at_mut_checked(size_of::<IcHeader>())
        .ok_or(small)?;
    pipe.write_to(p).map_err(|_| small)?;
    header.write_to(h).map_err(|_| small)?;
    body.write_to(b).map_err(|_| small)?;
    Ok(need)
}

/// Host: checks that a packet from the guest is a response and splits it.
///
/// The caller matches type and transaction id with its request: a late answer to an earlier request is no fault.
///
/// # Errors
///
/// As [`split`], and [`IcError::Direction`] for what is not a response.
pub fn parse_response(packet: &[u8]) -> Result<(&IcHeader, &[u8]), IcError> {
    let (header, body) = split(packet)?;
    if !header.flags.contains(IcFlags::ANSWER) {
        return Err(IcError::Direction(header.flags));
    }
    Ok((header, body))
}
