// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Answers to queries. Constants and forms are those of NDIS (`ntddndis.h`); values follow Hyper-V, as OpenVMM
//! (`netvsp`, `handle_oid_query`) gives them.

use vmbus_proto::net::offload::{ObjectHeader, ObjectType};
use vmbus_proto::net::packet::ETHERNET_HEADER_SIZE;
use vmbus_proto::net::rndis::{Oid, RndisStatus};
use vmbus_proto::net::rss::{RssCapabilities, RssCapabilityFlags};
use zerocopy::IntoBytes;

use crate::offload::Enabled;
use crate::rndis::{Link, Rndis, MAX_MULTICAST};

/// Frames have no connections (`RNDIS_DF_CONNECTIONLESS`).
pub(crate) const DF_CONNECTIONLESS: u32 = 1;
/// Ethernet (`RNDIS_MEDIUM_802_3`).
pub(crate) const MEDIUM_802_3: u32 = 0;
/// The vendor: start of Microsoft's addresses.
const VENDOR_ID: u32 = 0x0015_5d00;
/// Version 1.0 of a driver.
const DRIVER_VERSION: u16 = 0x0100;
/// Space for frames, which means nothing to a virtual NIC.
const BUFFER_SPACE: u32 = 256 << 10;
/// `NDIS_MAC_OPTION_*`: lookahead is copied, transfers do not pend, no loopback, priorities, VLANs.
const MAC_OPTIONS: u32 = 0x1 | 0x4 | 0x8 | 0x20 | 0x40;
/// Characters of a friendly name, with its end.
const NAME_UNITS: usize = 256;
/// Bytes of NDIS_OFFLOAD_ENCAPSULATION.
const ENCAPSULATION_SIZE: u16 = 28;
/// NDIS_OFFLOAD_SUPPORTED, NDIS_OFFLOAD_SET_ON.
const SUPPORTED: u32 = 1;
const SET_ON: u32 = 1;
/// NDIS_ENCAPSULATION_IEEE_802_3.
const ENCAPSULATION_802_3: u32 = 2;

/// Queries that any guest may make.
const COMMON: &[Oid] = &[
    Oid::GEN_SUPPORTED_LIST,
    Oid::GEN_HARDWARE_STATUS,
    Oid::GEN_MEDIA_SUPPORTED,
    Oid::GEN_MEDIA_IN_USE,
    Oid::GEN_MAXIMUM_LOOKAHEAD,
    Oid::GEN_CURRENT_LOOKAHEAD,
    Oid::GEN_MAXIMUM_FRAME_SIZE,
    Oid::GEN_MAXIMUM_TOTAL_SIZE,
    Oid::GEN_TRANSMIT_BLOCK_SIZE,
    Oid::GEN_RECEIVE_BLOCK_SIZE,
    Oid::GEN_LINK_SPEED,
    Oid::GEN_TRANSMIT_BUFFER_SPACE,
    Oid::GEN_RECEIVE_BUFFER_SPACE,
    Oid::GEN_VENDOR_ID,
    Oid::GEN_VENDOR_DESCRIPTION,
    Oid::GEN_VENDOR_DRIVER_VERSION,
    Oid::GEN_DRIVER_VERSION,
    Oid::GEN_CURRENT_PACKET_FILTER,
    Oid::GEN_MAC_OPTIONS,
    Oid::GEN_MEDIA_CONNECT_STATUS,
    Oid::GEN_MAXIMUM_SEND_PACKETS,
    Oid::GEN_NETWORK_LAYER_ADDRESSES,
    Oid::GEN_FRIENDLY_NAME,
    Oid::IEEE_802_3_PERMANENT_ADDRESS,
    Oid::IEEE_802_3_CURRENT_ADDRESS,
    Oid::IEEE_802_3_MULTICAST_LIST,
    Oid::IEEE_802_3_MAXIMUM_LIST_SIZE,
    Oid::IEEE_802_3_RCV_ERROR_ALIGNMENT,
    Oid::IEEE_802_3_XMIT_ONE_COLLISION,
    Oid::IEEE_802_3_XMIT_MORE_COLLISIONS,
    Oid::GEN_RNDIS_CONFIG_PARAMETER,
];

/// And with NDIS 6.
const NDIS_6: &[Oid] = &[
    Oid::GEN_LINK_PARAMETERS,
    Oid::GEN_LINK_STATE,
    Oid::GEN_MAX_LINK_SPEED,
    Oid::TCP_OFFLOAD_PARAMETERS,
    Oid::OFFLOAD_ENCAPSULATION,
    Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES,
    Oid::TCP_OFFLOAD_CURRENT_CONFIG,
];

/// And with NDIS 6.30.
const NDIS_6_30: &[Oid] = &[
    Oid::GEN_RECEIVE_SCALE_CAPABILITIES,
    Oid::GEN_RECEIVE_SCALE_PARAMETERS,
];

fn words<const N: usize>(words: [u32; N]) -> Result<Vec<u8>, RndisStatus> {
    Ok(words.as_bytes().to_vec())
}

fn header(object_type: ObjectType, size: u16) -> [u8; 4] {
    let header = ObjectHeader {
        object_type,
        revision: 1,
        size,
    };
    let mut bytes = [0; 4];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

/// Answers a query.
pub(crate) fn query(rndis: &Rndis, oid: Oid, link: Link) -> Result<Vec<u8>, RndisStatus> {
    let facts = &rndis.facts;
    let ndis_6 = facts.ndis.major >= 6;
    let ndis_6_30 = facts.ndis.major > 6 || (ndis_6 && facts.ndis.minor >= 30);
    if (NDIS_6.contains(&oid) && !ndis_6) || (NDIS_6_30.contains(&oid) && !ndis_6_30) {
        return Err(RndisStatus::NOT_SUPPORTED);
    }
    let bits_per_second = u64::from(link.speed) * 1_000_000;
    match oid {
        Oid::GEN_SUPPORTED_LIST => {
            let mut list = COMMON.to_vec();
            if ndis_6 {
                list.extend(NDIS_6);
            }
            if ndis_6_30 {
                list.extend(NDIS_6_30);
            }
            Ok(list.iter().flat_map(|oid| oid.0.to_le_bytes()).collect())
        }
        // NdisHardwareStatusReady; no errors, no collisions.
        Oid::GEN_HARDWARE_STATUS
        | Oid::IEEE_802_3_RCV_ERROR_ALIGNMENT
        | Oid::IEEE_802_3_XMIT_ONE_COLLISION
        | Oid::IEEE_802_3_XMIT_MORE_COLLISIONS => words([0]),
        Oid::GEN_MEDIA_SUPPORTED | Oid::GEN_MEDIA_IN_USE => words([MEDIUM_802_3]),
        Oid::GEN_MAXIMUM_LOOKAHEAD | Oid::GEN_CURRENT_LOOKAHEAD | Oid::GEN_MAXIMUM_FRAME_SIZE => {
            words([facts.mtu])
        }
        Oid::GEN_MAXIMUM_TOTAL_SIZE
        | Oid::GEN_TRANSMIT_BLOCK_SIZE
        | Oid::GEN_RECEIVE_BLOCK_SIZE => words([facts.mtu + ETHERNET_HEADER_SIZE]),
        // In units of 100 bit/s, as much as there is room for.
        Oid::GEN_LINK_SPEED => words([u32::try_from(bits_per_second / 100).unwrap_or(u32::MAX)]),
        Oid::GEN_TRANSMIT_BUFFER_SPACE | Oid::GEN_RECEIVE_BUFFER_SPACE => words([BUFFER_SPACE]),
        Oid::GEN_VENDOR_ID => words([VENDOR_ID]),
        Oid::GEN_VENDOR_DESCRIPTION => Ok(b"Microsoft Corporation".to_vec()),
        Oid::GEN_VENDOR_DRIVER_VERSION | Oid::GEN_DRIVER_VERSION => {
            Ok(DRIVER_VERSION.as_bytes().to_vec())
        }
        Oid::GEN_CURRENT_PACKET_FILTER => words([rndis.filter.bits()]),
        Oid::GEN_MAC_OPTIONS => words([MAC_OPTIONS]),
        // NdisMediaStateConnected is 0.
        Oid::GEN_MEDIA_CONNECT_STATUS => words([u32::from(!link.up)]),
        Oid::GEN_MAXIMUM_SEND_PACKETS => words([u32::MAX]),
        Oid::GEN_FRIENDLY_NAME => {
            let mut name: Vec<u8> = facts
                .friendly_name
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect();
            name.resize(NAME_UNITS * 2, 0);
            Ok(name)
        }
        Oid::IEEE_802_3_PERMANENT_ADDRESS => Ok(facts.mac.to_vec()),
        Oid::IEEE_802_3_CURRENT_ADDRESS => Ok(rndis.new_mac.unwrap_or(facts.mac).to_vec()),
        Oid::IEEE_802_3_MULTICAST_LIST => Ok(rndis.multicast.concat()),
        Oid::IEEE_802_3_MAXIMUM_LIST_SIZE => words([MAX_MULTICAST as u32]),
        Oid::GEN_LINK_STATE => {
            // NDIS_LINK_STATE: connected or not, duplex unknown, speeds, no pause, no negotiation.
            let mut out = header(ObjectType::DEFAULT, 40).to_vec();
            let connected = if link.up { 1 } else { 2 };
            out.extend([connected, 0, 0u32].as_bytes());
            out.extend([bits_per_second; 2].as_bytes());
            out.extend([0u32; 2].as_bytes());
            Ok(out)
        }
        Oid::GEN_MAX_LINK_SPEED => Ok([bits_per_second; 2].as_bytes().to_vec()),
        Oid::TCP_OFFLOAD_HARDWARE_CAPABILITIES => {
            let all = Enabled::capabilities(&facts.offloads, facts.rsc);
            Ok(all.describe(facts.ndis).sized_bytes().to_vec())
        }
        Oid::TCP_OFFLOAD_CURRENT_CONFIG => {
            Ok(rndis.enabled.describe(facts.ndis).sized_bytes().to_vec())
        }
        Oid::OFFLOAD_ENCAPSULATION => {
            let mut out = header(ObjectType::OFFLOAD_ENCAPSULATION, ENCAPSULATION_SIZE).to_vec();
            let one = [SUPPORTED, ENCAPSULATION_802_3, ETHERNET_HEADER_SIZE];
            out.extend(one.as_bytes());
            out.extend(one.as_bytes());
            Ok(out)
        }
        Oid::GEN_RECEIVE_SCALE_CAPABILITIES => {
            let capabilities = RssCapabilities {
                flags: RssCapabilityFlags::TOEPLITZ
                    | RssCapabilityFlags::TCP_IPV4
                    | RssCapabilityFlags::TCP_IPV6,
                interrupts: 1,
                queues: facts.channels.into(),
                table_size: facts.table,
                ..RssCapabilities::for_query()
            };
            Ok(capabilities.wire_bytes().to_vec())
        }
        _ => Err(RndisStatus::NOT_SUPPORTED),
    }
}

/// OID_OFFLOAD_ENCAPSULATION: nothing but Ethernet can be set.
pub(crate) fn set_encapsulation(info: &[u8]) -> RndisStatus {
    let words: Vec<u32> = info
        .chunks_exact(4)
        .filter_map(|w| w.try_into().ok().map(u32::from_le_bytes))
        .collect();
    let [_, on4, kind4, header4, on6, kind6, header6, ..] = *words.as_slice() else {
        return RndisStatus::INVALID_LENGTH;
    };
    if info.first() != Some(&ObjectType::OFFLOAD_ENCAPSULATION.0) {
        return RndisStatus::INVALID_DATA;
    }
    let ethernet = (ENCAPSULATION_802_3, ETHERNET_HEADER_SIZE);
    if (on4 == SET_ON && (kind4, header4) != ethernet)
        || (on6 == SET_ON && (kind6, header6) != ethernet)
    {
        return RndisStatus::NOT_SUPPORTED;
    }
    RndisStatus::SUCCESS
}
