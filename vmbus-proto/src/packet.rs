// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Packets in a ring: descriptor, optional extra header, payload padded to 8 bytes, trailer.
//!
//! ```text
//!  0        16             offset8*8         len8*8      len8*8+8
//!  +----------+--------------+-----------------+----------+
//!  |descriptor| extra header | payload, padding| trailer  |
//!  +----------+--------------+-----------------+----------+
//! ```
//!
//! Source: `hyperv.h`, `struct vmpacket_descriptor` and following; OpenVMM `vmbus_ring`.

use core::fmt;
use zerocopy::FromBytes;
use zerocopy_derive::*;

use crate::range::{GpaRanges, RangeError};

/// Size in bytes of [`PacketDescriptor`].
pub const DESCRIPTOR_SIZE: u32 = 16;

/// Bytes after each packet: zero, then the index at which the packet starts
/// (`ring_buffer.c`, `VMBUS_PKT_TRAILER`). Readers do not need it.
pub const TRAILER_SIZE: u32 = 8;

/// Size in bytes of the extra header of GPA-direct and transfer-page packets before their ranges.
pub const EXTRA_HEADER_SIZE: u32 = 8;

/// Largest packet in bytes, trailer excluded: what `len8` can say.
pub const MAX_PACKET_SIZE: u32 = 0xffff * 8;

open_enum! {
    /// Type of a packet (`enum vmbus_packet_type`).
    pub struct PacketType(u16) {
        /// Not a packet.
        INVALID = 0x0,
        /// Unused today.
        SYNCH = 0x1,
        /// Unused today.
        ADD_XFER_PAGESET = 0x2,
        /// Unused today.
        RM_XFER_PAGESET = 0x3,
        /// Unused today.
        ESTABLISH_GPADL = 0x4,
        /// Unused today.
        TEARDOWN_GPADL = 0x5,
        /// All data are in the packet.
        DATA_INBAND = 0x6,
        /// Data are in ranges of a buffer shared before (network receive).
        DATA_USING_XFER_PAGES = 0x7,
        /// Unused today.
        DATA_USING_GPADL = 0x8,
        /// Data are in guest memory named by page (storage, network send).
        DATA_USING_GPA_DIRECT = 0x9,
        /// Unused today.
        CANCEL_REQUEST = 0xa,
        /// Answer to a packet that asked for one.
        COMPLETION = 0xb,
        /// Unused today.
        DATA_USING_ADDITIONAL_PACKET = 0xc,
        /// Unused today.
        ADDITIONAL_DATA = 0xd,
    }
}

wire_flags! {
    /// Flags of a packet.
    pub struct PacketFlags(u16) {
        /// The receiver is to answer with a completion that carries the transaction id
        /// (`VMBUS_DATA_PACKET_FLAG_COMPLETION_REQUESTED`).
        const COMPLETION_REQUESTED = 1;
    }
}

/// Start of every packet (`struct vmpacket_descriptor`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct PacketDescriptor {
    /// What the packet is.
    pub packet_type: PacketType,
    /// Offset of the payload, in units of 8 bytes.
    pub offset8: u16,
    /// Size without trailer, in units of 8 bytes.
    pub len8: u16,
    /// See [`PacketFlags`].
    pub flags: PacketFlags,
    /// Returned in the completion. Chosen by the sender, opaque to the receiver.
    pub transaction_id: u64,
}

assert_layout!(
    PacketDescriptor,
    size = 16,
    packet_type = 0,
    offset8 = 2,
    len8 = 4,
    flags = 6,
    transaction_id = 8
);

/// Why bytes are not a packet. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketError {
    /// The packet is smaller than its descriptor.
    TooShort {
        /// Size claimed, in bytes.
        len: u32,
    },
    /// The payload starts within the descriptor or after the end.
    BadOffset {
        /// Offset claimed, in bytes.
        offset: u32,
        /// Size claimed, in bytes.
        len: u32,
    },
    /// The packet and its trailer exceed what the sender has written.
    PastWriter {
        /// Size claimed, in bytes.
        len: u32,
        /// Bytes there are.
        available: u32,
    },
    /// The extra header that the type requires does not fit before the payload.
    NoExtraHeader,
    /// The ranges of a GPA-direct packet are malformed.
    Ranges(RangeError),
    /// A transfer-page packet claims more ranges than fit before the payload.
    TooManyTransferRanges {
        /// Ranges claimed.
        count: u32,
    },
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { len } => write!(f, "packet of {len} bytes"),
            Self::BadOffset { offset, len } => {
                write!(f, "payload at offset {offset} of a packet of {len} bytes")
            }
            Self::PastWriter { len, available } => {
                write!(f, "packet of {len} bytes with {available} in the ring")
            }
            Self::NoExtraHeader => f.write_str("extra header missing"),
            Self::Ranges(e) => write!(f, "GPA-direct ranges: {e}"),
            Self::TooManyTransferRanges { count } => {
                write!(f, "{count} transfer ranges do not fit the packet")
            }
        }
    }
}

impl core::error::Error for PacketError {}

impl PacketDescriptor {
    /// The descriptor of a packet with `extra` bytes of extra header (a multiple of 8) and
    /// `payload` bytes of payload. `None` when the packet would exceed [`MAX_PACKET_SIZE`] or
    /// `extra` is no multiple of 8.
    #[inline]
    #[must_use]
    pub fn new(
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        extra: usize,
        payload: usize,
    ) -> Option<Self> {
        if extra & 7 != 0 {
            return None;
        }
        let offset = extra.checked_add(DESCRIPTOR_SIZE as usize)?;
        let len = offset.checked_add(payload)?.checked_add(7)?;
        Some(Self {
            packet_type,
            offset8: u16::try_from(offset >> 3).ok()?,
            len8: u16::try_from(len >> 3).ok()?,
            flags,
            transaction_id,
        })
    }

    /// Size of the packet in bytes, descriptor and padding included, trailer excluded.
    #[inline]
    #[must_use]
    pub const fn packet_len(&self) -> u32 {
        (self.len8 as u32) << 3
    }

    /// Bytes the packet takes in the ring: with its trailer.
    #[inline]
    #[must_use]
    pub const fn ring_len(&self) -> u32 {
        self.packet_len().wrapping_add(TRAILER_SIZE)
    }

    /// Offset of the payload in bytes.
    #[inline]
    #[must_use]
    pub const fn payload_offset(&self) -> u32 {
        (self.offset8 as u32) << 3
    }

    /// Size of the payload in bytes, padding included; 0 when the descriptor is malformed.
    #[inline]
    #[must_use]
    pub const fn payload_len(&self) -> u32 {
        self.packet_len().saturating_sub(self.payload_offset())
    }

    /// Whether the sender wants a completion.
    #[inline]
    #[must_use]
    pub const fn wants_completion(&self) -> bool {
        self.flags.contains(PacketFlags::COMPLETION_REQUESTED)
    }

    /// The first eight bytes as an integer.
    #[inline]
    #[must_use]
    pub const fn low_word(&self) -> u64 {
        self.packet_type.0 as u64
            | ((self.offset8 as u64) << 16)
            | ((self.len8 as u64) << 32)
            | ((self.flags.bits() as u64) << 48)
    }

    /// The descriptor from its two words.
    #[inline]
    #[must_use]
    pub const fn from_words(low: u64, transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType(low as u16),
            offset8: (low >> 16) as u16,
            len8: (low >> 32) as u16,
            flags: PacketFlags::from_bits_retain((low >> 48) as u16),
            transaction_id,
        }
    }

    /// Checks the lengths against the `available` bytes of the ring, trailer included.
    ///
    /// # Errors
    /// [`PacketError::TooShort`], [`PacketError::BadOffset`], [`PacketError::PastWriter`].
    #[inline]
    pub const fn check(&self, available: u32) -> Result<(), PacketError> {
        let len = self.packet_len();
        if len < DESCRIPTOR_SIZE {
            return Err(PacketError::TooShort { len });
        }
        let offset = self.payload_offset();
        if offset < DESCRIPTOR_SIZE || offset > len {
            return Err(PacketError::BadOffset { offset, len });
        }
        if self.ring_len() > available {
            return Err(PacketError::PastWriter { len, available });
        }
        Ok(())
    }
}

/// Extra header of a GPA-direct packet; ranges follow (`struct vmdata_gpa_direct`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct GpaDirectHeader {
    /// Unused; senders may leave rubbish.
    pub reserved: u32,
    /// Ranges that follow.
    pub range_count: u32,
}

assert_layout!(GpaDirectHeader, size = 8, reserved = 0, range_count = 4);

/// Extra header of a transfer-page packet; ranges follow (`struct vmtransfer_page_packet_header`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct TransferPageHeader {
    /// The buffer: an id that the device's protocol agreed on.
    pub set_id: u16,
    /// Whether the sender owns the set; unused.
    pub sender_owns_set: u8,
    /// Unused; senders may leave rubbish.
    pub reserved: u8,
    /// Ranges that follow.
    pub range_count: u32,
}

assert_layout!(
    TransferPageHeader,
    size = 8,
    set_id = 0,
    sender_owns_set = 2,
    range_count = 4
);

/// A range of a transfer-page packet (`struct vmtransfer_page_range`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct TransferRange {
    /// Bytes in the range.
    pub byte_count: u32,
    /// Offset in the buffer. Whether the range lies in the buffer is for the user to check.
    pub byte_offset: u32,
}

assert_layout!(TransferRange, size = 8, byte_count = 0, byte_offset = 4);

/// The ranges of a transfer-page packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TransferRanges<'a> {
    data: &'a [u8],
}

impl<'a> TransferRanges<'a> {
    /// Number of ranges.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.data.len() >> 3
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = TransferRange> + 'a {
        self.data
            .chunks_exact(8)
            .map(|chunk| TransferRange::read_from_bytes(chunk).unwrap_or_default())
    }
}

impl fmt::Debug for TransferRanges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A checked packet in a private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The descriptor as copied and checked.
    pub descriptor: PacketDescriptor,
    /// What lies between descriptor and payload, by type.
    pub kind: PacketKind<'a>,
    /// The payload; up to 7 bytes of padding cannot be told apart.
    pub payload: &'a [u8],
}

/// See [`Packet::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind<'a> {
    /// All data are in the payload.
    InBand,
    /// Answer to the packet with this transaction id.
    Completion,
    /// Data are in guest memory.
    GpaDirect(GpaRanges<'a>),
    /// Data are in a shared buffer.
    TransferPages {
        /// The buffer.
        set_id: u16,
        /// Where in the buffer.
        ranges: TransferRanges<'a>,
    },
    /// A type that nobody uses today; `extra` is what lies before the payload.
    Other {
        /// The type.
        packet_type: PacketType,
        /// Bytes between descriptor and payload.
        extra: &'a [u8],
    },
}

impl<'a> Packet<'a> {
    /// Takes apart a packet. `descriptor` has passed [`PacketDescriptor::check`]; `bytes` is a
    /// private copy of the packet from its first byte; of its first 16, the descriptor's own
    /// place, nothing is read.
    ///
    /// # Errors
    /// [`PacketError`], also when `bytes` are fewer than the descriptor says.
    #[inline]
    pub fn parse(descriptor: PacketDescriptor, bytes: &'a [u8]) -> Result<Self, PacketError> {
        let bad_offset = PacketError::BadOffset {
            offset: descriptor.payload_offset(),
            len: descriptor.packet_len(),
        };
        let (extra, payload) = bytes
            .get(..descriptor.packet_len() as usize)
            .and_then(|packet| packet.split_at_checked(descriptor.payload_offset() as usize))
            .ok_or(bad_offset)?;
        let extra = extra.get(DESCRIPTOR_SIZE as usize..).ok_or(bad_offset)?;
        let kind = match descriptor.packet_type {
            PacketType::DATA_INBAND => PacketKind::InBand,
            PacketType::COMPLETION => PacketKind::Completion,
            PacketType::DATA_USING_GPA_DIRECT => {
                let (header, ranges) = GpaDirectHeader::read_from_prefix(extra)
                    .map_err(|_| PacketError::NoExtraHeader)?;
                PacketKind::GpaDirect(
                    GpaRanges::parse(ranges, header.range_count).map_err(PacketError::Ranges)?,
                )
            }
            PacketType::DATA_USING_XFER_PAGES => {
                let (header, ranges) = TransferPageHeader::read_from_prefix(extra)
                    .map_err(|_| PacketError::NoExtraHeader)?;
                let count = header.range_count;
                let data = (count as usize)
                    .checked_mul(8)
                    .and_then(|len| ranges.get(..len))
                    .ok_or(PacketError::TooManyTransferRanges { count })?;
                PacketKind::TransferPages {
                    set_id: header.set_id,
                    ranges: TransferRanges { data },
                }
            }
            packet_type => PacketKind::Other { packet_type, extra },
        };
        Ok(Self {
            descriptor,
            kind,
            payload,
        })
    }

    /// Checks and takes apart a packet that `bytes`, a private copy, holds from its first byte. The
    /// trailer need not be there.
    ///
    /// # Errors
    /// [`PacketError`].
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let available = u32::try_from(bytes.len())
            .unwrap_or(u32::MAX)
            .saturating_add(TRAILER_SIZE);
        let (descriptor, _) =
            PacketDescriptor::read_from_prefix(bytes).map_err(|_| PacketError::TooShort {
                len: bytes.len() as u32,
            })?;
        descriptor.check(available)?;
        Self::parse(descriptor, bytes)
    }

    /// Identifies the request that this packet makes or answers.
    #[must_use]
    pub const fn transaction_id(&self) -> u64 {
        self.descriptor.transaction_id
    }

    /// Whether the sender wants a completion.
    #[inline]
    #[must_use]
    pub const fn wants_completion(&self) -> bool {
        self.descriptor.wants_completion()
    }
}

/// Ring space in bytes that a packet with `extra` bytes of extra header and `payload` bytes of
/// payload takes, trailer included; what [`crate::ring::Producer::request_space`] wants. `None`
/// when no packet can be that large.
#[must_use]
pub fn ring_space(extra: usize, payload: usize) -> Option<u32> {
    PacketDescriptor::new(
        PacketType::DATA_INBAND,
        PacketFlags::empty(),
        0,
        extra,
        payload,
    )
    .map(|d| d.ring_len())
}
