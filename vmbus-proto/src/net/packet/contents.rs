// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What PPIs hold.

/// What the host is to do about checksums (`struct ndis_tcp_ip_checksum_info`, `transmit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct TxChecksum(pub u32);

impl TxChecksum {
    /// The packet is IPv4.
    pub const IPV4: u32 = 1 << 0;
    /// The packet is IPv6.
    pub const IPV6: u32 = 1 << 1;
    /// Fill in the TCP checksum.
    pub const TCP: u32 = 1 << 2;
    /// Fill in the UDP checksum.
    pub const UDP: u32 = 1 << 3;
    /// Fill in the checksum of the IPv4 header.
    pub const IP_HEADER: u32 = 1 << 4;

    /// `flags` with the offset of the TCP or UDP header in the frame (10 bits).
    #[inline]
    #[must_use]
    pub const fn new(flags: u32, transport_offset: u32) -> Self {
        Self(flags | ((transport_offset & 0x3ff) << 16))
    }

    /// Whether all of `flags` are set.
    #[inline]
    #[must_use]
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }

    /// Where the TCP or UDP header starts in the frame; 0 when the sender does not say.
    #[inline]
    #[must_use]
    pub const fn transport_offset(self) -> u32 {
        (self.0 >> 16) & 0x3ff
    }
}

/// What the host found about checksums (`struct ndis_tcp_ip_checksum_info`, `receive`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct RxChecksum(pub u32);

impl RxChecksum {
    /// The TCP checksum is wrong.
    pub const TCP_FAILED: u32 = 1 << 0;
    /// The UDP checksum is wrong.
    pub const UDP_FAILED: u32 = 1 << 1;
    /// The checksum of the IPv4 header is wrong.
    pub const IP_FAILED: u32 = 1 << 2;
    /// The TCP checksum is right.
    pub const TCP_SUCCEEDED: u32 = 1 << 3;
    /// The UDP checksum is right.
    pub const UDP_SUCCEEDED: u32 = 1 << 4;
    /// The checksum of the IPv4 header is right.
    pub const IP_SUCCEEDED: u32 = 1 << 5;
    /// The guest's own packet.
    pub const LOOPBACK: u32 = 1 << 6;
    /// The TCP checksum is not filled in (a coalesced segment, or one that never left the machine).
    pub const TCP_VALUE_INVALID: u32 = 1 << 7;
    /// The checksum of the IPv4 header is not filled in.
    pub const IP_VALUE_INVALID: u32 = 1 << 8;

    /// Whether any of `flags` is set.
    #[inline]
    #[must_use]
    pub const fn any(self, flags: u32) -> bool {
        self.0 & flags != 0
    }
}

/// A TCP segment to cut up (`struct ndis_tcp_lso_info`, `lso_v2_transmit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct LargeSend(pub u32);

impl LargeSend {
    const V2: u32 = 1 << 30;
    const IS_IPV6: u32 = 1 << 31;

    /// A segment with the TCP header at `tcp_offset` in the frame (10 bits), to be cut into pieces of `mss` bytes
    /// (20 bits).
    #[inline]
    #[must_use]
    pub const fn new(ipv6: bool, mss: u32, tcp_offset: u32) -> Self {
        let version = if ipv6 { Self::IS_IPV6 } else { 0 };
        Self((mss & 0xf_ffff) | ((tcp_offset & 0x3ff) << 20) | Self::V2 | version)
    }

    /// Bytes of TCP payload of each piece.
    #[inline]
    #[must_use]
    pub const fn mss(self) -> u32 {
        self.0 & 0xf_ffff
    }

    /// Where the TCP header starts in the frame.
    #[inline]
    #[must_use]
    pub const fn tcp_offset(self) -> u32 {
        (self.0 >> 20) & 0x3ff
    }

    /// Whether this is version 2 of the offload, the only one there is today.
    #[inline]
    #[must_use]
    pub const fn is_v2(self) -> bool {
        self.0 & Self::V2 != 0
    }

    /// Whether the packet is IPv6, else IPv4.
    #[inline]
    #[must_use]
    pub const fn is_ipv6(self) -> bool {
        self.0 & Self::IS_IPV6 != 0
    }
}

/// A VLAN tag (`struct ndis_pkt_8021q_info`). Not laid out as in the frame: there the priority comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Vlan(pub u32);

impl Vlan {
    /// From the tag control information of a frame: priority, DEI, id from the highest bit on.
    #[inline]
    #[must_use]
    pub const fn from_tci(tci: u16) -> Self {
        let tci = tci as u32;
        Self((tci >> 13) | ((tci >> 9) & 8) | ((tci & 0xfff) << 4))
    }

    /// As the tag control information of a frame.
    #[inline]
    #[must_use]
    pub const fn tci(self) -> u16 {
        (((self.0 & 7) << 13) | ((self.0 & 8) << 9) | ((self.0 >> 4) & 0xfff)) as u16
    }

    /// The VLAN's id.
    #[inline]
    #[must_use]
    pub const fn id(self) -> u16 {
        ((self.0 >> 4) & 0xfff) as u16
    }
}

/// Which part of a coalesced segment a packet carries (`struct rndis_pktinfo_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct PacketId(pub u32);

impl PacketId {
    const VERSION_1: u32 = 1;
    const PART: u32 = 1 << 8;
    const FIRST: u32 = 1 << 9;
    const LAST: u32 = 1 << 10;

    /// A part of the segment `id`.
    #[must_use]
    pub const fn part(id: u16, first: bool, last: bool) -> Self {
        let first = if first { Self::FIRST } else { 0 };
        let last = if last { Self::LAST } else { 0 };
        Self(Self::VERSION_1 | Self::PART | first | last | ((id as u32) << 16))
    }

    /// Whether the packet is part of a segment that several packets carry (`RNDIS_PKTINFO_SUBALLOC`).
    #[inline]
    #[must_use]
    pub const fn is_part(self) -> bool {
        self.0 & Self::PART != 0
    }

    /// Whether it is the first.
    #[inline]
    #[must_use]
    pub const fn is_first(self) -> bool {
        self.0 & Self::FIRST != 0
    }

    /// Whether it is the last.
    #[inline]
    #[must_use]
    pub const fn is_last(self) -> bool {
        self.0 & Self::LAST != 0
    }

    /// The segment.
    #[must_use]
    pub const fn id(self) -> u16 {
        (self.0 >> 16) as u16
    }
}
