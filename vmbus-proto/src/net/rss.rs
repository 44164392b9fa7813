// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Receive-side scaling: which channel a received frame goes to.
//!
//! The host hashes addresses and ports with the guest's key, and the low bits of the hash choose an entry of the guest's
//! indirection table: a channel number.
//!
//! Source: hyperv_net.h, `struct ndis_recv_scale_cap` and `_param`; the NDIS reference,
//! `NDIS_RECEIVE_SCALE_PARAMETERS`; Microsoft, "RSS Hashing Functions" and "Verifying the RSS Hash Calculation".

use zerocopy::{FromBytes, IntoBytes};
use zerocopy_derive::*;

use super::offload::{read_object, BadObject, ObjectHeader, ObjectType};

/// Bytes of the key (`NETVSC_HASH_KEYLEN`).
pub const KEY_SIZE: usize = 40;

/// Entries of the indirection table when the host does not say (hyperv_net.h, `ITAB_NUM`).
pub const DEFAULT_TABLE_SIZE: usize = 128;

/// Entries of the indirection table at most (hyperv_net.h, `ITAB_NUM_MAX`).
pub const MAX_TABLE_SIZE: usize = 256;

/// Microsoft's example key, with which Linux starts (`rndis_filter.c`, `netvsc_hash_key`).
pub const DEFAULT_KEY: [u8; KEY_SIZE] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

wire_flags! {
    /// What the host can do (`NDIS_RSS_CAPS_*`). The lowest byte holds hash functions, as in [`HashInfo`].
    pub struct RssCapabilityFlags(u32) {
        /// Toeplitz.
        const TOEPLITZ = 1;
        /// TCP over IPv4.
        const TCP_IPV4 = 0x100;
        /// TCP over IPv6.
        const TCP_IPV6 = 0x200;
        /// TCP over IPv6 with extension headers.
        const TCP_IPV6_EX = 0x400;
        /// UDP over IPv4.
        const UDP_IPV4 = 0x800;
        /// UDP over IPv6.
        const UDP_IPV6 = 0x1000;
    }
}

/// What the host can do about receive-side scaling (`struct ndis_recv_scale_cap`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RssCapabilities {
    /// Type RSS_CAPABILITIES, revision 2.
    pub header: ObjectHeader,
    /// Flags.
    pub flags: RssCapabilityFlags,
    /// Interrupts.
    pub interrupts: u32,
    /// Channels that can receive, the primary one among them.
    pub queues: u32,
    /// Entries of the indirection table.
    pub table_size: u16,
    /// Not sent: the structure has 18 bytes on the wire.
    pub padding: u16,
}
assert_layout!(
    RssCapabilities,
    size = 20,
    flags = 4,
    interrupts = 8,
    queues = 12,
    table_size = 16
);

impl RssCapabilities {
    /// Bytes on the wire.
    pub const WIRE_SIZE: usize = 18;

    /// What the guest sends with its query.
    #[must_use]
    pub fn for_query() -> Self {
        Self {
            header: ObjectHeader {
                object_type: ObjectType::RSS_CAPABILITIES,
                revision: 2,
                size: Self::WIRE_SIZE as u16,
            },
            ..Self::default()
        }
    }

    /// As sent.
    #[must_use]
    pub fn wire_bytes(&self) -> &[u8] {
        let bytes = self.as_bytes();
        bytes.get(..Self::WIRE_SIZE).unwrap_or(bytes)
    }

    /// Takes apart the host's answer.
    ///
    /// # Errors
    /// [`BadObject`].
    pub fn parse(info: &[u8]) -> Result<Self, BadObject> {
        // Hosts before Windows Server 2012 lack the last field; then it is zero.
        read_object(info, ObjectType::RSS_CAPABILITIES, 16)
    }

    /// Entries of the table to set: the host's number, or the usual one if that is none that Linux would take
    /// (`rndis_filter.c`, `rndis_filter_device_add`).
    #[must_use]
    pub const fn usable_table_size(&self) -> usize {
        let size = self.table_size as usize;
        if size == 0 || size > MAX_TABLE_SIZE {
            DEFAULT_TABLE_SIZE
        } else {
            size
        }
    }
}

wire_flags! {
    /// What is new in a setting (`NDIS_RSS_PARAM_FLAG_*`).
    pub struct RssFlags(u16) {
        /// The first processor is as it was.
        const BASE_CPU_UNCHANGED = 1;
        /// The hash function is as it was.
        const HASH_INFO_UNCHANGED = 2;
        /// The table is as it was.
        const TABLE_UNCHANGED = 4;
        /// The key is as it was.
        const KEY_UNCHANGED = 8;
        /// No receive-side scaling.
        const DISABLE = 0x10;
    }
}

wire_flags! {
    /// Hash function and what it is for (`NDIS_HASH_*`).
    pub struct HashInfo(u32) {
        /// Toeplitz.
        const TOEPLITZ = 1;
        /// Addresses of IPv4.
        const IPV4 = 0x100;
        /// Addresses and ports of TCP over IPv4.
        const TCP_IPV4 = 0x200;
        /// Addresses of IPv6.
        const IPV6 = 0x400;
        /// Addresses of IPv6 with extension headers.
        const IPV6_EX = 0x800;
        /// Addresses and ports of TCP over IPv6.
        const TCP_IPV6 = 0x1000;
        /// Addresses and ports of TCP over IPv6 with extension headers.
        const TCP_IPV6_EX = 0x2000;
        /// Addresses and ports of UDP over IPv4.
        const UDP_IPV4 = 0x4000;
        /// Addresses and ports of UDP over IPv6.
        const UDP_IPV6 = 0x8000;
    }
}

impl HashInfo {
    /// What Linux asks for (`rndis_filter.c`, `rndis_set_rss_param_msg`).
    #[must_use]
    pub fn linux() -> Self {
        Self::TOEPLITZ | Self::IPV4 | Self::TCP_IPV4 | Self::IPV6 | Self::TCP_IPV6
    }
}

/// Start of a setting (`struct ndis_recv_scale_param`); table and key follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RssParameters {
    /// Type RSS_PARAMETERS, revision 2. Hosts do not look (OpenVMM `netvsp`, `oid_set_rss_parameters`).
    pub header: ObjectHeader,
    /// What is new.
    pub flags: RssFlags,
    /// Unused.
    pub base_cpu: u16,
    /// Hash function.
    pub hash: HashInfo,
    /// Bytes of the table.
    pub table_len: u16,
    /// Zero.
    pub padding0: u16,
    /// Where the table starts: entries of 32 bits.
    pub table_offset: u32,
    /// Bytes of the key.
    pub key_len: u16,
    /// Zero.
    pub padding1: u16,
    /// Where the key starts.
    pub key_offset: u32,
    /// Unused.
    pub masks_offset: u32,
    /// Unused.
    pub masks_count: u32,
    /// Unused.
    pub masks_entry_size: u32,
}
assert_layout!(
    RssParameters,
    size = 40,
    flags = 4,
    hash = 8,
    table_len = 12,
    table_offset = 16,
    key_len = 20,
    key_offset = 24,
    masks_offset = 28
);

/// Bytes of a setting at most.
pub const MAX_PARAMETERS: usize = 40 + 4 * MAX_TABLE_SIZE + KEY_SIZE;

/// Writes a setting with a table and key and returns its size. `None` when `out` is too small or the table too large.
#[must_use]
pub fn write_parameters(
    out: &mut [u8],
    flags: RssFlags,
    hash: HashInfo,
    table: impl ExactSizeIterator<Item = u32>,
    key: &[u8; KEY_SIZE],
) -> Option<usize> {
    const FIXED: usize = core::mem::size_of::<RssParameters>();
    if table.len() > MAX_TABLE_SIZE {
        return None;
    }
    let table_len = table.len().checked_mul(4)?;
    let key_at = FIXED.checked_add(table_len)?;
    let len = key_at.checked_add(KEY_SIZE)?;
    let out = out.get_mut(..len)?;
    let parameters = RssParameters {
        header: ObjectHeader {
            object_type: ObjectType::RSS_PARAMETERS,
            revision: 2,
            size: FIXED as u16,
        },
        flags,
        hash,
        table_len: u16::try_from(table_len).ok()?,
        table_offset: FIXED as u32,
        key_len: KEY_SIZE as u16,
        key_offset: u32::try_from(key_at).ok()?,
        ..RssParameters::default()
    };
    parameters.write_to_prefix(out).ok()?;
    let places = out.get_mut(FIXED..key_at)?.chunks_exact_mut(4);
    for (place, entry) in places.zip(table) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
    out.get_mut(key_at..)?.copy_from_slice(key);
    Some(len)
}

/// A setting, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RssSetting<'a> {
    /// No receive-side scaling: all frames to the primary channel.
    Disable,
    /// As it says. `None`: as it was.
    Enable {
        /// Hash function.
        hash: Option<HashInfo>,
        /// Entries of four bytes, at least one; each below the number of channels.
        table: Option<&'a [u8]>,
        /// The key.
        key: Option<[u8; KEY_SIZE]>,
    },
}

impl<'a> RssSetting<'a> {
    /// Takes apart what a guest has sent, to a device with `channels` channels. The header is not looked at, as
    /// guests send rubbish in it.
    ///
    /// # Errors
    /// [`BadObject`].
    pub fn parse(info: &'a [u8], channels: u32) -> Result<Self, BadObject> {
        let (parameters, _) =
            RssParameters::read_from_prefix(info).map_err(|_| BadObject::Size {
                claimed: core::mem::size_of::<RssParameters>(),
                available: info.len(),
            })?;
        let flags = parameters.flags;
        let function = parameters.hash.bits() & 0xff;
        let hash_changes = !flags.contains(RssFlags::HASH_INFO_UNCHANGED);
        if flags.contains(RssFlags::DISABLE) || (hash_changes && function == 0) {
            return Ok(Self::Disable);
        }
        let part = |offset: u32, len: u16| {
            info.get(offset as usize..)
                .and_then(|rest| rest.get(..len.into()))
                .ok_or(BadObject::Part {
                    offset,
                    len: len.into(),
                })
        };
        let table = if flags.contains(RssFlags::TABLE_UNCHANGED) {
            None
        } else {
            let len = parameters.table_len;
            if len == 0 || len & 3 != 0 || usize::from(len) > MAX_TABLE_SIZE << 2 {
                return Err(BadObject::Value(len.into()));
            }
            let table = part(parameters.table_offset, len)?;
            if let Some(entry) = table_entries(table).find(|entry| *entry >= channels) {
                return Err(BadObject::Value(entry));
            }
            Some(table)
        };
        let key = if flags.contains(RssFlags::KEY_UNCHANGED) {
            None
        } else {
            if usize::from(parameters.key_len) != KEY_SIZE {
                return Err(BadObject::Value(parameters.key_len.into()));
            }
            let key = part(parameters.key_offset, parameters.key_len)?;
            key.first_chunk::<KEY_SIZE>().copied()
        };
        Ok(Self::Enable {
            hash: hash_changes.then_some(parameters.hash),
            table,
            key,
        })
    }
}

/// The entries of a table, as found in [`RssSetting::Enable`].
pub fn table_entries(table: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    table.chunks_exact(4).map(|entry| {
        entry
            .first_chunk::<4>()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    })
}

/// The Toeplitz hash of `input`, at most 36 bytes: source address, destination address, source port, destination port, as
/// they are in the packet. Bytes beyond are ignored.
#[must_use]
pub fn toeplitz(key: &[u8; KEY_SIZE], input: &[u8]) -> u32 {
    let mut following = key.iter().copied();
    // The 32 bits of the key that are added for the next bit of input, and after them the next eight.
    let mut window = 0u64;
    for _ in 0..4 {
        window = (window << 8) | u64::from(following.next().unwrap_or(0));
    }
    let mut hash = 0u32;
    for byte in input.iter().take(KEY_SIZE - 4) {
        window = (window << 8) | u64::from(following.next().unwrap_or(0));
        for bit in 0..8u32 {
            if byte & (0x80 >> bit) != 0 {
                hash ^= (window >> 8u32.wrapping_sub(bit)) as u32;
            }
        }
    }
    hash
}
