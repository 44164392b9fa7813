// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What OIDs about checksum, large-send and receive-coalescing offload carry.
//!
//! Source: hyperv_net.h, `struct ndis_offload` and `struct ndis_offload_params`; the NDIS reference, `NDIS_OFFLOAD`
//! and `NDIS_OFFLOAD_PARAMETERS`; OpenVMM `rndisprot.rs`.

use core::fmt;
use zerocopy::{FromBytes, IntoBytes};
use zerocopy_derive::*;

use super::nvsp::NvspVersion;

open_enum! {
    /// Type of an NDIS structure (`NDIS_OBJECT_TYPE_*`).
    pub struct ObjectType(u8) {
        /// Structures without a type of their own.
        DEFAULT = 0x80,
        /// [`super::rss::RssCapabilities`].
        RSS_CAPABILITIES = 0x88,
        /// [`super::rss::RssParameters`].
        RSS_PARAMETERS = 0x89,
        /// [`Offload`].
        OFFLOAD = 0xa7,
        /// Encapsulation settings.
        OFFLOAD_ENCAPSULATION = 0xa8,
    }
}

/// Start of NDIS structures (`struct ndis_object_header`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ObjectHeader {
    /// What it is.
    pub object_type: ObjectType,
    /// Which fields it has.
    pub revision: u8,
    /// Bytes.
    pub size: u16,
}
assert_layout!(
    ObjectHeader,
    size = 4,
    object_type = 0,
    revision = 1,
    size = 2
);

/// Why bytes are not the NDIS structure expected. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadObject {
    /// Another type.
    Type(ObjectType),
    /// A revision that does not exist.
    Revision(u8),
    /// Shorter than the oldest revision, or than the structure itself says.
    Size {
        /// Claimed.
        claimed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// A part at an offset does not lie in what came.
    Part {
        /// Where it starts.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// A value out of its range.
    Value(u32),
}

impl fmt::Display for BadObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(object_type) => write!(f, "NDIS object of type {object_type:?}"),
            Self::Revision(revision) => write!(f, "NDIS object of revision {revision}"),
            Self::Size { claimed, available } => {
                write!(f, "NDIS object of size {claimed} in {available} bytes")
            }
            Self::Part { offset, len } => {
                write!(f, "NDIS object with a part of {len} bytes at {offset}")
            }
            Self::Value(value) => write!(f, "NDIS object with value {value:#x} out of range"),
        }
    }
}

impl core::error::Error for BadObject {}

/// Checks the header of `info` and copies as much of a `T` as there is; the rest is zero.
pub(super) fn read_object<T: FromBytes + IntoBytes>(
    info: &[u8],
    object_type: ObjectType,
    min_size: usize,
) -> Result<T, BadObject> {
    let available = info.len();
    let too_short = |claimed| BadObject::Size { claimed, available };
    let (header, _) = ObjectHeader::read_from_prefix(info).map_err(|_| too_short(0))?;
    if header.object_type != object_type {
        return Err(BadObject::Type(header.object_type));
    }
    if header.revision == 0 {
        return Err(BadObject::Revision(0));
    }
    let claimed = usize::from(header.size);
    let bytes = info.get(..claimed).ok_or(too_short(claimed))?;
    if claimed < min_size {
        return Err(too_short(claimed));
    }
    let mut object = T::new_zeroed();
    for (to, from) in object.as_mut_bytes().iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(object)
}

wire_flags! {
    /// Which checksums (`NDIS_TXCSUM_CAP_*`, `NDIS_RXCSUM_CAP_*`), in steps of two bits. Those of one protocol version; for
    /// IPv6, `IP_OPTIONS` means extension headers and there is no `IP`.
    pub struct ChecksumFlags(u32) {
        /// Packets with IP options or extension headers too.
        const IP_OPTIONS = 0x001;
        /// Segments with TCP options too.
        const TCP_OPTIONS = 0x004;
        /// TCP.
        const TCP = 0x010;
        /// UDP.
        const UDP = 0x040;
        /// The header of IPv4.
        const IP = 0x100;
    }
}

/// Encapsulation for which an offload is: Ethernet (`NDIS_OFFLOAD_ENCAP_8023`).
pub const ENCAPSULATION_802_3: u32 = 2;

/// Checksum offloads (`struct ndis_csum_offload`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ChecksumOffload {
    /// Encapsulation.
    pub ipv4_tx_encapsulation: u32,
    /// Filled in for the guest, IPv4.
    pub ipv4_tx: ChecksumFlags,
    /// Encapsulation.
    pub ipv4_rx_encapsulation: u32,
    /// Checked for the guest, IPv4.
    pub ipv4_rx: ChecksumFlags,
    /// Encapsulation.
    pub ipv6_tx_encapsulation: u32,
    /// Filled in for the guest, IPv6.
    pub ipv6_tx: ChecksumFlags,
    /// Encapsulation.
    pub ipv6_rx_encapsulation: u32,
    /// Checked for the guest, IPv6.
    pub ipv6_rx: ChecksumFlags,
}
assert_layout!(ChecksumOffload, size = 32, ipv4_tx = 4, ipv6_rx = 28);

/// Large-send offload (`struct ndis_lsov2_offload`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct LargeSendOffload {
    /// Encapsulation; 0: none for IPv4.
    pub ipv4_encapsulation: u32,
    /// Bytes of a segment at most.
    pub ipv4_max_size: u32,
    /// Pieces at least.
    pub ipv4_min_segments: u32,
    /// Encapsulation; 0: none for IPv6.
    pub ipv6_encapsulation: u32,
    /// Bytes of a segment at most.
    pub ipv6_max_size: u32,
    /// Pieces at least.
    pub ipv6_min_segments: u32,
    /// IP_OPTIONS (extension headers) and TCP_OPTIONS alone.
    pub ipv6_options: ChecksumFlags,
}
assert_layout!(
    LargeSendOffload,
    size = 28,
    ipv4_max_size = 4,
    ipv6_encapsulation = 12,
    ipv6_options = 24
);

/// What can be offloaded, or is (`struct ndis_offload`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Offload {
    /// Type OFFLOAD.
    pub header: ObjectHeader,
    /// Checksums.
    pub checksum: ChecksumOffload,
    /// Version 1 of large send, which nobody offers.
    pub lso_v1: [u32; 4],
    /// IPsec, which nobody offers.
    pub ipsec_v1: [u32; 7],
    /// Large send.
    pub lso_v2: LargeSendOffload,
    /// Unused.
    pub flags: u32,
    /// Since revision 2: IPsec, which nobody offers.
    pub ipsec_v2: [u32; 8],
    /// Since revision 3: received segments of IPv4 may be coalesced.
    pub rsc_ipv4: u8,
    /// Received segments of IPv6 may be coalesced.
    pub rsc_ipv6: u8,
    /// Zero.
    pub padding: [u8; 2],
    /// Encapsulated packets (NVGRE), which Linux does not know.
    pub encapsulated: [u32; 2],
}
assert_layout!(
    Offload,
    size = 156,
    checksum = 4,
    lso_v2 = 80,
    flags = 108,
    ipsec_v2 = 112,
    rsc_ipv4 = 144,
    rsc_ipv6 = 145,
    encapsulated = 148
);

impl Offload {
    /// Bytes of revision 1 (`NDIS_OFFLOAD_SIZE_6_0`), the least there can be.
    pub const SIZE_REVISION_1: usize = 112;
    /// Bytes of revision 2 (`NDIS_OFFLOAD_SIZE_6_1`).
    pub const SIZE_REVISION_2: usize = 144;

    /// The structure that the guest sends with its query to say how much it knows (`rndis_filter.c`,
    /// `rndis_filter_query_device`). Send the first `header.size` bytes.
    #[must_use]
    pub fn for_query(version: NvspVersion) -> Self {
        let (revision, size) = if version >= NvspVersion::V5 {
            (3, core::mem::size_of::<Self>())
        } else if version >= NvspVersion::V4 {
            (2, Self::SIZE_REVISION_2)
        } else {
            (1, Self::SIZE_REVISION_1)
        };
        Self {
            header: ObjectHeader {
                object_type: ObjectType::OFFLOAD,
                revision,
                size: size as u16,
            },
            ..Self::default()
        }
    }

    /// Its first `header.size` bytes.
    #[must_use]
    pub fn sized_bytes(&self) -> &[u8] {
        let bytes = self.as_bytes();
        bytes.get(..self.header.size.into()).unwrap_or(bytes)
    }

    /// Takes apart the host's answer. What its revision lacks is zero: not there.
    ///
    /// # Errors
    /// [`BadObject`].
    pub fn parse(info: &[u8]) -> Result<Self, BadObject> {
        read_object(info, ObjectType::OFFLOAD, Self::SIZE_REVISION_1)
    }

    /// Whether both protocol versions can be coalesced; Linux uses neither or both.
    #[must_use]
    pub const fn has_rsc(&self) -> bool {
        self.rsc_ipv4 != 0 && self.rsc_ipv6 != 0
    }
}

open_enum! {
    /// Setting of a checksum offload (`NDIS_OFFLOAD_PARAMETERS_*`).
    pub struct ChecksumSetting(u8) {
        /// As it was.
        NO_CHANGE = 0,
        /// Neither.
        DISABLED = 1,
        /// Fill in, do not check.
        TX = 2,
        /// Check, do not fill in.
        RX = 3,
        /// Both.
        TX_RX = 4,
    }
}

impl ChecksumSetting {
    /// Whether to fill in and whether to check; `None` for no change and unknown values.
    #[must_use]
    pub const fn tx_rx(self) -> Option<(bool, bool)> {
        match self {
            Self::DISABLED => Some((false, false)),
            Self::TX => Some((true, false)),
            Self::RX => Some((false, true)),
            Self::TX_RX => Some((true, true)),
            _ => None,
        }
    }
}

open_enum! {
    /// Setting of another offload.
    pub struct Setting(u8) {
        /// As it was.
        NO_CHANGE = 0,
        /// Off.
        DISABLED = 1,
        /// On.
        ENABLED = 2,
    }
}

impl Setting {
    /// On or off.
    #[must_use]
    pub const fn from_bool(on: bool) -> Self {
        if on {
            Self::ENABLED
        } else {
            Self::DISABLED
        }
    }

    /// Whether on; `None` for no change and unknown values.
    #[must_use]
    pub const fn is_on(self) -> Option<bool> {
        match self {
            Self::DISABLED => Some(false),
            Self::ENABLED => Some(true),
            _ => None,
        }
    }
}

/// What to offload (`struct ndis_offload_params`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct OffloadParameters {
    /// Type DEFAULT.
    pub header: ObjectHeader,
    /// Header of IPv4.
    pub ipv4: ChecksumSetting,
    /// TCP over IPv4.
    pub tcp_ipv4: ChecksumSetting,
    /// UDP over IPv4.
    pub udp_ipv4: ChecksumSetting,
    /// TCP over IPv6.
    pub tcp_ipv6: ChecksumSetting,
    /// UDP over IPv6.
    pub udp_ipv6: ChecksumSetting,
    /// Version 1 of large send.
    pub lso_v1: Setting,
    /// IPsec.
    pub ipsec_v1: u8,
    /// Large send over IPv4.
    pub lso_v2_ipv4: Setting,
    /// Large send over IPv6.
    pub lso_v2_ipv6: Setting,
    /// TCP connections.
    pub tcp_connection_ipv4: u8,
    /// TCP connections.
    pub tcp_connection_ipv6: u8,
    /// Zero.
    pub reserved: u8,
    /// Unused.
    pub flags: u32,
    /// IPsec.
    pub ipsec_v2: u8,
    /// IPsec.
    pub ipsec_v2_ipv4: u8,
    /// Coalescing, IPv4.
    pub rsc_ipv4: Setting,
    /// Coalescing, IPv6.
    pub rsc_ipv6: Setting,
    /// Encapsulated packets.
    pub encapsulated: u8,
    /// Encapsulations.
    pub encapsulation_types: u8,
    /// Zero.
    pub padding: [u8; 2],
}
assert_layout!(
    OffloadParameters,
    size = 28,
    ipv4 = 4,
    lso_v1 = 9,
    lso_v2_ipv4 = 11,
    reserved = 15,
    flags = 16,
    ipsec_v2 = 20,
    rsc_ipv4 = 22,
    encapsulation_types = 25
);

impl OffloadParameters {
    /// Bytes that the oldest revision has.
    pub const SIZE_REVISION_1: usize = 20;
    /// Bytes that Linux sends up to NVSP 4 (hyperv_net.h, `VERSION_4_OFFLOAD_SIZE`).
    pub const SIZE_VERSION_4: usize = 22;

    /// Makes the structure ready to be sent: header, and no word of UDP and coalescing to hosts that know neither
    /// (`rndis_filter.c`, `rndis_filter_set_offload_params`). Send [`sized_bytes`](Self::sized_bytes).
    #[must_use]
    pub fn for_version(mut self, version: NvspVersion) -> Self {
        let size = if version <= NvspVersion::V4 {
            self.udp_ipv4 = ChecksumSetting::NO_CHANGE;
            self.udp_ipv6 = ChecksumSetting::NO_CHANGE;
            Self::SIZE_VERSION_4
        } else {
            core::mem::size_of::<Self>()
        };
        self.header = ObjectHeader {
            object_type: ObjectType::DEFAULT,
            revision: 3,
            size: size as u16,
        };
        self
    }

    /// Its first `header.size` bytes.
    #[must_use]
    pub fn sized_bytes(&self) -> &[u8] {
        let bytes = self.as_bytes();
        bytes.get(..self.header.size.into()).unwrap_or(bytes)
    }

    /// Takes apart what a guest has sent. What it lacks is zero: no change.
    ///
    /// # Errors
    /// [`BadObject`].
    pub fn parse(info: &[u8]) -> Result<Self, BadObject> {
        read_object(info, ObjectType::DEFAULT, Self::SIZE_REVISION_1)
    }
}
