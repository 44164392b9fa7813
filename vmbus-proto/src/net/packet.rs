// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The RNDIS message that carries a frame, and the per-packet information (PPI) in it.
//!
//! ```text
//!  0          8                       44
//!  +----------+-----------------------+-----------------+--------------+---------+
//!  |type, len | data, PPI: where, size| PPI, 16 bytes … | frame        | padding |
//!  +----------+-----------------------+-----------------+--------------+---------+
//! ```
//!
//! Offsets count from byte 8, the start of the RNDIS packet. Both sides read a message with
//! [`ReceivedPacket::read`], each byte of the headers once, and write one with [`PacketHeader::write`].
//!
//! Source: hyperv_net.h, `struct rndis_packet` and following; \[MS-RNDIS\] 2.2.14; `ntddndis.h` and `ndis/nbl*.h` for
//! what PPIs hold.

use core::fmt;
use zerocopy::IntoBytes;

mod contents;

pub use contents::{LargeSend, PacketId, RxChecksum, TxChecksum, Vlan};

/// Bytes of type and length, which start every RNDIS message.
pub const RNDIS_HEADER_SIZE: u32 = 8;

/// Bytes of the packet's description, from which its offsets count.
pub const RNDIS_PACKET_SIZE: u32 = 36;

/// Bytes before the PPIs.
pub const FIXED_SIZE: u32 = RNDIS_HEADER_SIZE + RNDIS_PACKET_SIZE;

/// Bytes of a PPI with its 32 bits of content.
pub const PPI_SIZE: u32 = 16;

/// Bytes of a PPI before its content.
const PPI_HEADER_SIZE: u32 = 12;

/// Bytes that [`PacketHeader::write`] writes at most: room for all five PPIs.
pub const MAX_HEADER_SIZE: u32 = FIXED_SIZE + 5 * PPI_SIZE;

/// Bytes of an Ethernet header: no frame is shorter.
pub const ETHERNET_HEADER_SIZE: u32 = 14;

/// Type of the message (`RNDIS_MSG_PACKET`).
pub const RNDIS_MSG_PACKET: u32 = 1;

/// PPIs of one packet at most. Real ones have at most five; a host that sends thousands of empty ones would keep
/// a processor busy for nothing.
pub const MAX_PPIS: u32 = 16;

open_enum! {
    /// What a PPI holds (`enum ndis_per_pkt_info_type`; that of NDIS 5, with additions).
    pub struct PpiType(u32) {
        /// [`TxChecksum`] or [`RxChecksum`].
        CHECKSUM = 0,
        /// IPsec.
        IPSEC = 1,
        /// [`LargeSend`].
        LARGE_SEND = 2,
        /// Classification handle.
        CLASSIFICATION = 3,
        /// List of fragments.
        SG_LIST = 5,
        /// [`Vlan`].
        VLAN = 6,
        /// Original packet.
        ORIGINAL_PACKET = 7,
        /// The hash of receive-side scaling, in either direction (once the id to cancel a packet).
        HASH = 8,
        /// Original list.
        ORIGINAL_LIST = 9,
        /// Cached list.
        CACHED_LIST = 10,
        /// Padding of short packets.
        SHORT_PADDING = 11,
        /// [`PacketId`]. Bit 31 tells the types that Hyper-V has added from those of NDIS
        /// (`struct rndis_per_packet_info`, `internal`).
        PACKET_ID = INTERNAL | 1,
    }
}

/// See [`PpiType::PACKET_ID`].
const INTERNAL: u32 = 1 << 31;

/// The PPIs of a packet. Of a type that comes twice the first counts, as with Linux.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketInfo {
    present: u32,
    checksum: u32,
    large_send: u32,
    vlan: u32,
    hash: u32,
    id: u32,
}

const HAS_CHECKSUM: u32 = 1 << 0;
const HAS_LARGE_SEND: u32 = 1 << 1;
const HAS_VLAN: u32 = 1 << 2;
const HAS_HASH: u32 = 1 << 3;
const HAS_ID: u32 = 1 << 4;
/// How many of these there are.
const PPI_KINDS: u32 = 5;

macro_rules! info_accessors {
    ($( $(#[$meta:meta])* $flag:ident, $field:ident, $set:ident: $t:ident; )*) => {
        $(
            $(#[$meta])*
            #[inline]
            #[must_use]
            pub const fn $field(&self) -> Option<$t> {
                if self.present & $flag != 0 {
                    Some($t(self.$field))
                } else {
                    None
                }
            }

            /// Sets what the method of that name returns.
            #[inline]
            pub fn $set(&mut self, value: $t) {
                self.present |= $flag;
                self.$field = value.0;
            }
        )*
    };
}

impl PacketInfo {
    /// No PPI.
    pub const NONE: Self = Self {
        present: 0,
        checksum: 0,
        large_send: 0,
        vlan: 0,
        hash: 0,
        id: 0,
    };

    info_accessors! {
        /// A segment to cut up; guest to host.
        HAS_LARGE_SEND, large_send, set_large_send: LargeSend;
        /// The VLAN tag, which the frame does not hold.
        HAS_VLAN, vlan, set_vlan: Vlan;
        /// Part of a segment; host to guest.
        HAS_ID, id, set_id: PacketId;
    }

    /// What to do about checksums; guest to host.
    #[inline]
    #[must_use]
    pub const fn tx_checksum(&self) -> Option<TxChecksum> {
        if self.present & HAS_CHECKSUM != 0 {
            Some(TxChecksum(self.checksum))
        } else {
            None
        }
    }

    /// What was found about checksums; host to guest.
    #[inline]
    #[must_use]
    pub const fn rx_checksum(&self) -> Option<RxChecksum> {
        if self.present & HAS_CHECKSUM != 0 {
            Some(RxChecksum(self.checksum))
        } else {
            None
        }
    }

    /// Sets [`tx_checksum`](Self::tx_checksum).
    #[inline]
    pub fn set_tx_checksum(&mut self, checksum: TxChecksum) {
        self.present |= HAS_CHECKSUM;
        self.checksum = checksum.0;
    }

    /// Sets [`rx_checksum`](Self::rx_checksum).
    #[inline]
    pub fn set_rx_checksum(&mut self, checksum: RxChecksum) {
        self.present |= HAS_CHECKSUM;
        self.checksum = checksum.0;
    }

    /// The hash that chose the queue.
    #[inline]
    #[must_use]
    pub const fn hash(&self) -> Option<u32> {
        if self.present & HAS_HASH != 0 {
            Some(self.hash)
        } else {
            None
        }
    }

    /// Sets [`hash`](Self::hash).
    #[inline]
    pub fn set_hash(&mut self, hash: u32) {
        self.present |= HAS_HASH;
        self.hash = hash;
    }

    /// Bytes of the PPIs.
    #[inline(always)]
    #[must_use]
    pub const fn size(&self) -> u32 {
        // At most five. Not `count_ones`, for which there is no instruction everywhere, and of which nothing is left out where some
        // PPIs are never set.
        let mut count = 0u32;
        let mut bit = 0;
        while bit < PPI_KINDS {
            count = count.wrapping_add((self.present >> bit) & 1);
            bit = bit.wrapping_add(1);
        }
        count.wrapping_mul(PPI_SIZE)
    }

    #[inline(always)]
    fn take(&mut self, ppi_type: PpiType, value: u32) {
        let (flag, field) = match ppi_type {
            PpiType::CHECKSUM => (HAS_CHECKSUM, &mut self.checksum),
            PpiType::LARGE_SEND => (HAS_LARGE_SEND, &mut self.large_send),
            PpiType::VLAN => (HAS_VLAN, &mut self.vlan),
            PpiType::HASH => (HAS_HASH, &mut self.hash),
            PpiType::PACKET_ID => (HAS_ID, &mut self.id),
            // Others say nothing to us.
            _ => return,
        };
        if self.present & flag == 0 {
            self.present |= flag;
            *field = value;
        }
    }
}

impl fmt::Debug for PacketInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (flag, name, value) in [
            (HAS_CHECKSUM, "checksum", self.checksum),
            (HAS_LARGE_SEND, "large_send", self.large_send),
            (HAS_VLAN, "vlan", self.vlan),
            (HAS_HASH, "hash", self.hash),
            (HAS_ID, "id", self.id),
        ] {
            if self.present & flag != 0 {
                map.entry(&name, &format_args!("{value:#x}"));
            }
        }
        map.finish()
    }
}

/// A message in memory that the peer can write at any time. Each call copies bytes out; a reader that copies each
/// byte once cannot be fooled by a peer that changes them in between.
pub trait MessageMemory {
    /// `N` words from `offset` bytes within the message, which need not be a multiple of 8. `None` unless all of them lie
    /// in the message.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]>;
}

impl MessageMemory for [u8] {
    #[inline]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let mut words = [0; N];
        let mut rest = self.get(offset as usize..)?;
        for word in &mut words {
            let (chunk, after) = rest.split_first_chunk::<8>()?;
            *word = u64::from_le_bytes(*chunk);
            rest = after;
        }
        Some(words)
    }
}

/// Who reads a message: the sides trust lengths differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// A guest: one message per range of the receive buffer, and the range is the bound, as with Linux
    /// (`rndis_filter.c`, `rndis_filter_receive_data`).
    Guest,
    /// A host: messages may follow each other, so each is bound by its length. Out-of-band data and virtual
    /// connections are refused (OpenVMM `netvsp`, `handle_rndis_packet_message`).
    Host,
}

/// Why an RNDIS message carries no frame. Drop it and count. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPacket {
    /// Too short for the headers and an Ethernet header.
    TooShort {
        /// Bytes there are.
        len: u32,
    },
    /// Not RNDIS_MSG_PACKET.
    Type(u32),
    /// The message claims to be longer than the memory it is in, or shorter than its headers.
    Length {
        /// Claimed.
        claimed: u32,
        /// Bytes there are.
        available: u32,
    },
    /// The frame starts within the headers or does not lie in the message.
    Data {
        /// Where it starts, from byte 8.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// The frame has no Ethernet header.
    ShortFrame {
        /// Bytes.
        len: u32,
    },
    /// The PPIs start within the headers or do not lie in the message.
    PpiList {
        /// Where they start, from byte 8.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// A PPI is smaller than its header or goes beyond the list.
    PpiSize {
        /// Bytes claimed.
        size: u32,
        /// Bytes left in the list.
        left: u32,
    },
    /// A PPI's content does not lie in it.
    PpiOffset {
        /// Where it starts, from the PPI's start.
        offset: u32,
        /// Bytes of the PPI.
        size: u32,
    },
    /// More than [`MAX_PPIS`].
    TooManyPpis,
    /// Out-of-band data or a virtual connection, which Ethernet has not.
    OutOfBand,
}

impl fmt::Display for BadPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { len } => write!(f, "RNDIS packet of {len} bytes"),
            Self::Type(message_type) => {
                write!(f, "RNDIS message {message_type:#x} in place of a packet")
            }
            Self::Length { claimed, available } => {
                write!(f, "RNDIS packet of length {claimed} in {available} bytes")
            }
            Self::Data { offset, len } => write!(f, "frame of {len} bytes at {offset}"),
            Self::ShortFrame { len } => write!(f, "frame of {len} bytes"),
            Self::PpiList { offset, len } => {
                write!(f, "per-packet information of {len} bytes at {offset}")
            }
            Self::PpiSize { size, left } => {
                write!(f, "per-packet information of size {size} in {left} bytes")
            }
            Self::PpiOffset { offset, size } => {
                write!(f, "content at {offset} of information of size {size}")
            }
            Self::TooManyPpis => write!(f, "more than {MAX_PPIS} per-packet informations"),
            Self::OutOfBand => f.write_str("out-of-band data or virtual connection"),
        }
    }
}

impl core::error::Error for BadPacket {}

/// A frame in an RNDIS message: where it is and what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedPacket {
    /// Where the frame starts, from the message's first byte.
    pub data_offset: u32,
    /// Bytes of the frame: at least an Ethernet header. They lie in the message.
    pub data_len: u32,
    /// Bytes of the message; where the next one starts, when several follow each other.
    pub message_len: u32,
    /// Its PPIs.
    pub info: PacketInfo,
}

#[inline]
const fn low(word: u64) -> u32 {
    word as u32
}

#[inline]
const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

impl ReceivedPacket {
    /// Takes apart and checks the message that starts at `memory`'s first byte, of which `available` bytes may be
    /// used; `memory` allows no less.
    ///
    /// # Errors
    /// [`BadPacket`].
    #[inline(always)] // Read for each packet.
    pub fn read<M: MessageMemory + ?Sized>(
        memory: &M,
        available: u32,
        receiver: Receiver,
    ) -> Result<Self, BadPacket> {
        // The sixth word holds the last field, which means nothing, and the first bytes behind it: a PPI's or the
        // frame's.
        const WORDS: usize = 6;
        if available < FIXED_SIZE.wrapping_add(ETHERNET_HEADER_SIZE) {
            return Err(BadPacket::TooShort { len: available });
        }
        let [kind, data, oob, oob_ppi, ppi_vc, _]: [u64; WORDS] = memory
            .words(0)
            .ok_or(BadPacket::TooShort { len: available })?;
        if low(kind) != RNDIS_MSG_PACKET {
            return Err(BadPacket::Type(low(kind)));
        }
        let message_len = high(kind);
        if message_len > available || message_len < FIXED_SIZE {
            return Err(BadPacket::Length {
                claimed: message_len,
                available,
            });
        }
        let end = match receiver {
            Receiver::Guest => available,
            Receiver::Host => {
                if oob != 0 || low(oob_ppi) != 0 || high(ppi_vc) != 0 {
                    return Err(BadPacket::OutOfBand);
                }
                message_len
            }
        }
        // At least 44, from the checks above.
        .wrapping_sub(RNDIS_HEADER_SIZE);

        let (offset, len) = (low(data), high(data));
        if offset < RNDIS_PACKET_SIZE || offset > end || len > end.wrapping_sub(offset) {
            return Err(BadPacket::Data { offset, len });
        }
        if len < ETHERNET_HEADER_SIZE {
            return Err(BadPacket::ShortFrame { len });
        }
        let mut packet = Self {
            // Both are at most `end`, to which the header has just been added again.
            data_offset: offset.wrapping_add(RNDIS_HEADER_SIZE),
            data_len: len,
            message_len,
            info: PacketInfo::NONE,
        };
        let (ppi_offset, ppi_len) = (high(oob_ppi), low(ppi_vc));
        // A list of no bytes may be said to start anywhere: Linux says 36.
        if ppi_len != 0 && ppi_offset != 0 {
            if ppi_offset < RNDIS_PACKET_SIZE
                || ppi_offset > end
                || ppi_len > end.wrapping_sub(ppi_offset)
            {
                return Err(BadPacket::PpiList {
                    offset: ppi_offset,
                    len: ppi_len,
                });
            }
            packet.info = read_ppis(memory, ppi_offset.wrapping_add(RNDIS_HEADER_SIZE), ppi_len)?;
        }
        Ok(packet)
    }
}

/// Reads the `len` bytes of PPIs at `at`; they lie in the message.
#[inline(always)] // Read for each packet.
fn read_ppis<M: MessageMemory + ?Sized>(
    memory: &M,
    mut at: u32,
    len: u32,
) -> Result<PacketInfo, BadPacket> {
    let mut info = PacketInfo::NONE;
    let mut left = len;
    for _ in 0..MAX_PPIS {
        if left == 0 {
            return Ok(info);
        }
        // One with no content at the very end of a message cannot be read so; nobody sends that.
        let truncated = BadPacket::PpiSize { size: 0, left };
        if left < PPI_HEADER_SIZE {
            return Err(truncated);
        }
        let [size_type, offset_value] = memory.words::<2>(at).ok_or(truncated)?;
        let (size, ppi_type) = (low(size_type), PpiType(high(size_type)));
        let offset = low(offset_value);
        if size == PPI_SIZE && offset == PPI_HEADER_SIZE && left >= PPI_SIZE {
            // As hosts send them.
            info.take(ppi_type, high(offset_value));
        } else {
            info = read_odd_ppi(memory, at, left, [size_type, offset_value], info)?;
        }
        // Within the list: size is at most left.
        left = left.wrapping_sub(size);
        at = at.wrapping_add(size);
    }
    if left == 0 {
        Ok(info)
    } else {
        Err(BadPacket::TooManyPpis)
    }
}

/// The PPI at `at`, of which the first words were read and up to `left` bytes are there, that is not as hosts usually send it.
#[cold]
fn read_odd_ppi<M: MessageMemory + ?Sized>(
    memory: &M,
    at: u32,
    left: u32,
    [size_type, offset_value]: [u64; 2],
    mut info: PacketInfo,
) -> Result<PacketInfo, BadPacket> {
    let (size, ppi_type) = (low(size_type), PpiType(high(size_type)));
    let offset = low(offset_value);
    if size < PPI_HEADER_SIZE || size > left {
        return Err(BadPacket::PpiSize { size, left });
    }
    if offset > size {
        return Err(BadPacket::PpiOffset { offset, size });
    }
    if offset == PPI_HEADER_SIZE && size >= PPI_SIZE {
        info.take(ppi_type, high(offset_value));
        return Ok(info);
    }
    let bad_offset = BadPacket::PpiOffset { offset, size };
    let known = matches!(
        ppi_type,
        PpiType::CHECKSUM
            | PpiType::LARGE_SEND
            | PpiType::VLAN
            | PpiType::HASH
            | PpiType::PACKET_ID
    );
    if !known {
        return Ok(info);
    }
    // `offset` is at most `size`.
    if offset < PPI_HEADER_SIZE || size.wrapping_sub(offset) < 4 {
        return Err(bad_offset);
    }
    // The four bytes before the content belong to the same PPI, so these eight lie in the message.
    let [word] = memory
        .words::<1>(at.wrapping_add(offset).wrapping_sub(4))
        .ok_or(bad_offset)?;
    info.take(ppi_type, high(word));
    Ok(info)
}

/// Takes words in ascending order: a send section, the room before a frame's data, a vector.
pub trait WordSink {
    /// The next `N` words, little-endian. Those of one call fit together or not at all.
    fn put<const N: usize>(&mut self, words: [u32; N]);
}

/// A sink for tests and for hosts, which check the size themselves. What does not fit is dropped.
#[derive(Debug)]
pub struct SliceSink<'a>(pub &'a mut [u8]);

impl WordSink for SliceSink<'_> {
    #[inline]
    fn put<const N: usize>(&mut self, words: [u32; N]) {
        let words = words.map(u32::to_le);
        let rest = core::mem::take(&mut self.0);
        if let Some((to, after)) = rest.split_at_mut_checked(size_of_val(&words)) {
            to.copy_from_slice(words.as_bytes());
            self.0 = after;
        }
    }
}

/// The headers of a message to send: the frame follows them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// Bytes of the frame.
    pub data_len: u32,
    /// Bytes of padding after the frame. Messages that others follow are padded to the alignment that the host asks
    /// for (`netvsc.c`, `netvsc_copy_to_send_buf`).
    pub padding: u32,
    /// PPIs.
    pub info: PacketInfo,
}

impl PacketHeader {
    /// Bytes that [`write`](Self::write) writes; where the frame starts. At most [`MAX_HEADER_SIZE`].
    #[inline(always)]
    #[must_use]
    pub const fn size(&self) -> u32 {
        // At most 44 + 80.
        FIXED_SIZE.wrapping_add(self.info.size())
    }

    /// Bytes of the whole message.
    #[inline(always)]
    #[must_use]
    pub const fn message_len(&self) -> u32 {
        self.size()
            .saturating_add(self.data_len)
            .saturating_add(self.padding)
    }

    /// Writes the headers, [`size`](Self::size) bytes, in the order of Linux: hash, VLAN, large send, checksum; then a
    /// host's packet id.
    #[inline(always)] // Its callers are few, and count instructions.
    pub fn write(&self, sink: &mut impl WordSink) {
        let info = &self.info;
        let ppi_len = info.size();
        // With an offset but no PPI Linux complains (`rndis_filter.c`, `rndis_get_ppi`).
        let ppi_offset = if ppi_len == 0 { 0 } else { RNDIS_PACKET_SIZE };
        sink.put([
            RNDIS_MSG_PACKET,
            self.message_len(),
            // Where the frame starts, from byte 8, and its size.
            RNDIS_PACKET_SIZE.wrapping_add(ppi_len),
            self.data_len,
            // No out-of-band data.
            0,
            0,
            0,
            ppi_offset,
            ppi_len,
            0,
            0,
        ]);
        let mut put = |flag: u32, ppi_type: PpiType, value: u32| {
            if info.present & flag != 0 {
                sink.put([PPI_SIZE, ppi_type.0, PPI_HEADER_SIZE, value]);
            }
        };
        put(HAS_HASH, PpiType::HASH, info.hash);
        put(HAS_VLAN, PpiType::VLAN, info.vlan);
        put(HAS_LARGE_SEND, PpiType::LARGE_SEND, info.large_send);
        put(HAS_CHECKSUM, PpiType::CHECKSUM, info.checksum);
        put(HAS_ID, PpiType::PACKET_ID, info.id);
    }
}
