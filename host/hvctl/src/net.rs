// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Synthetic NICs: what can be asked of them, and how they can be made to misbehave.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How far the guest's driver has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetState {
    /// The channel is not open.
    #[default]
    Closed,
    /// NVSP is not agreed on yet, or buffers are missing.
    Connecting,
    /// Buffers are there; RNDIS is not initialised.
    Connected,
    /// RNDIS is initialised; the packet filter lets nothing pass.
    Initialized,
    /// Frames are received.
    Running,
}

/// One NIC. Answer to `nets` is an array of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetInfo {
    /// Name of the device.
    pub device: String,
    /// Address, `00-15-5d-00-00-01`.
    pub mac: String,
    /// How far the driver has come.
    pub state: NetState,
    /// NVSP version agreed on.
    pub nvsp: Option<String>,
    /// NDIS version that the driver named.
    pub ndis: Option<String>,
    /// Largest IP packet, as the driver asked for.
    pub mtu: u32,
    /// The largest that it may ask for.
    pub max_mtu: u32,
    /// Whether the guest is told that there is a link.
    pub link: bool,
    /// Mbit/s that the guest is told.
    pub speed: u32,
    /// Packet filter (`NDIS_PACKET_TYPE_*`).
    pub filter: u32,
    /// Multicast list.
    pub multicast: Vec<String>,
    /// Optional capabilities that the driver named in its NDIS configuration.
    pub capabilities: u64,
    /// Offloads that the host has.
    pub offloads_offered: Vec<String>,
    /// Offloads that the guest has turned on: `tcp4-tx`, `tcp4-rx`, `lso4`, `rsc4` and so on.
    pub offloads: Vec<String>,
    /// Receive side scaling, if the guest has turned it on.
    pub rss: Option<NetRss>,
    /// Send-indirection table, as the guest was told last.
    pub send_table: Vec<u32>,
    /// Buffers shared by the guest.
    pub buffers: NetBuffers,
    /// As on the command line.
    pub backend: String,
    /// What the back end counted by itself.
    pub backend_counters: BTreeMap<String, u64>,
    /// Counters of the whole NIC.
    pub counters: NetCounters,
    /// Channels, the primary one first, as far as they were ever open.
    pub queues: Vec<NetQueue>,
}

/// Receive side scaling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetRss {
    /// Hash function and types (`NDIS_HASH_*`).
    pub hash_info: u32,
    /// Secret key in hexadecimal digits.
    pub key: String,
    /// Indirection table: channel for each hash.
    pub table: Vec<u16>,
}

/// Buffers shared by the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetBuffers {
    /// Bytes of the receive buffer; 0: none.
    pub recv_bytes: u64,
    /// Sections of it.
    pub recv_sections: u32,
    /// Bytes in each.
    pub recv_section_size: u32,
    /// Sections that the guest does not hold.
    pub recv_free: u32,
    /// Bytes of the send buffer; 0: none.
    pub send_bytes: u64,
    /// Sections of it.
    pub send_sections: u32,
    /// Bytes in each.
    pub send_section_size: u32,
}

/// Counters of a NIC, since it was made or since `reset-counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Frames from the back end that the guest's packet filter did not want.
    pub rx_filtered: u64,
    /// Frames from the back end that were larger than the guest's MTU allows.
    pub rx_too_long: u64,
    /// Frames from the back end for a guest that was not running.
    pub rx_not_running: u64,
    /// Frames lost because the guest held all sections, or did not read its ring, for too long.
    pub rx_no_buffer: u64,
    /// Times that all sections were found in use.
    pub rx_starved: u64,
    /// Times that the guest's ring was found full.
    pub rx_ring_full: u64,
    /// Segments that were delivered as part of a larger packet (RSC).
    pub rx_coalesced: u64,
    /// Frames whose checksum was found wrong, and told so.
    pub rx_bad_checksum: u64,
    /// Receive completions with a status that says failure.
    pub rx_refused: u64,
    /// RNDIS packets that the guest sent wrongly.
    pub tx_malformed: u64,
    /// Frames, or packets to be segmented, that were longer than the MTU allows.
    pub tx_too_long: u64,
    /// Packets that the host segmented (LSO).
    pub tx_lso: u64,
    /// Packets whose checksums the host filled in.
    pub tx_checksummed: u64,
    /// Frames with a VLAN tag in their per-packet information.
    pub tx_vlan: u64,
    /// Frames that the back end lost.
    pub tx_dropped: u64,
    /// Times that the back end was full.
    pub tx_stalled: u64,
    /// Packets sent while the link was down.
    pub tx_no_link: u64,
    /// Packets by send section.
    pub tx_sections: u64,
    /// Packets with data named by page.
    pub tx_gpa_direct: u64,
    /// RNDIS queries, sets and other requests answered.
    pub requests: u64,
    /// Those that were refused.
    pub requests_refused: u64,
    /// Frames and packets that an injected fault hit.
    pub injected: u64,
}

/// One channel of a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetQueue {
    /// 0: the primary channel.
    pub index: u16,
    /// Whether it is open.
    pub open: bool,
    /// Frames to the guest; a packet that was put together from segments (RSC) counts once.
    pub rx_packets: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
    /// Transfer-page packets that they were in.
    pub rx_messages: u64,
    /// Sections that the guest holds.
    pub rx_held: u32,
    /// Frames that wait.
    pub rx_waiting: u32,
    /// RNDIS packets from the guest; one to be segmented counts once.
    pub tx_packets: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Packets in the ring that they were in.
    pub tx_messages: u64,
    /// Frames that became of them.
    pub tx_frames: u64,
}

/// A change of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetLink {
    /// There is a link.
    Up,
    /// There is none.
    Down,
    /// The NIC was plugged in elsewhere: the guest is to take up its addresses anew.
    Change,
}

/// Which way, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetDirection {
    /// To the guest.
    Rx,
    /// From the guest.
    Tx,
}

/// A message to the guest that a fault can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetMessage {
    /// Transfer-page packet with frames.
    Data,
    /// Transfer-page packet with the answer to an RNDIS request.
    Answer,
    /// Transfer-page packet with a status indication.
    Indication,
    /// Completion of a packet with frames from the guest.
    SendCompletion,
    /// Completion of INIT.
    InitCompletion,
    /// Completion of SEND_RECEIVE_BUFFER.
    RecvBufCompletion,
    /// Completion of SEND_SEND_BUFFER.
    SendBufCompletion,
    /// Completion of a request for sub-channels.
    SubchannelCompletion,
    /// Send-indirection table.
    SendTable,
    /// VF association.
    Vf,
}

/// Where in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetPart {
    /// The packet: type at 0, flags at 6, transaction id at 8, as in its descriptor.
    Packet,
    /// Transfer-page header: buffer id at 0, number of ranges at 4; length and offset of the first range at 8 and 12.
    Ranges,
    /// The NVSP message: type at 0.
    Nvsp,
    /// The (first) RNDIS message, in the receive buffer: type at 0, length at 4.
    Rndis,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum NetFault {
    /// The frame is lost.
    Drop,
    /// It comes later.
    Delay {
        /// Milliseconds, of the guest's time.
        ms: u64,
    },
    /// It comes twice.
    Duplicate,
    /// Frames are held until there are `window` of them, or for 20 ms, and go on in reverse order.
    Reorder {
        /// How many; 0 or 1 ends it.
        window: u32,
    },
    /// The last byte of the frame is changed.
    Corrupt,
    /// The NIC neither reads rings nor writes to them for this long; 0 ends a stall.
    Stall {
        /// Milliseconds, of the guest's time.
        ms: u64,
    },
    /// A field of a message to the guest is overwritten: of the next one that has it.
    Patch {
        /// Which message.
        message: NetMessage,
        /// Where in it.
        part: NetPart,
        /// Offset in that part.
        offset: u32,
        /// Bytes: 1, 2, 4 or 8.
        width: u8,
        /// New value, little-endian.
        value: u64,
    },
    /// A message to the guest ends early: the next one that is longer.
    Cut {
        /// Which message.
        message: NetMessage,
        /// Where.
        part: NetPart,
        /// Bytes that are left of that part.
        len: u32,
    },
    /// A message to the guest is sent twice.
    Repeat {
        /// Which message.
        message: NetMessage,
    },
    /// A message to the guest is not sent.
    Lose {
        /// Which message.
        message: NetMessage,
    },
    /// A message that nobody asked for is sent as soon as a channel is open, before anything else.
    Early {
        /// Which message.
        message: NetMessage,
    },
    /// Forgets all faults of the NIC, and goes on with what they held up.
    Clear,
}

/// A field of a message to the guest, for [`NetFault::Patch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetField {
    /// Its name on `hvctl`'s command line.
    pub name: &'static str,
    /// In which messages it is.
    pub messages: &'static [NetMessage],
    /// Where in them.
    pub part: NetPart,
    /// Offset in that part.
    pub offset: u32,
    /// Bytes.
    pub width: u8,
}

use NetMessage as M;
const TRANSFER: &[M] = &[M::Data, M::Answer, M::Indication];
const ALL: &[M] = &[
    M::Data,
    M::Answer,
    M::Indication,
    M::SendCompletion,
    M::InitCompletion,
    M::RecvBufCompletion,
    M::SendBufCompletion,
    M::SubchannelCompletion,
    M::SendTable,
    M::Vf,
];

const fn field(
    name: &'static str,
    messages: &'static [NetMessage],
    part: NetPart,
    offset: u32,
    width: u8,
) -> NetField {
    NetField {
        name,
        messages,
        part,
        offset,
        width,
    }
}

/// Every field of the messages that the host sends (Linux, `hyperv.h`, `hyperv_net.h`, `linux/rndis.h`).
pub const NET_FIELDS: &[NetField] = &[
    field("packet-type", ALL, NetPart::Packet, 0, 2),
    field("packet-flags", ALL, NetPart::Packet, 6, 2),
    field("transaction-id", ALL, NetPart::Packet, 8, 8),
    field("set-id", TRANSFER, NetPart::Ranges, 0, 2),
    field("range-count", TRANSFER, NetPart::Ranges, 4, 4),
    field("range-length", TRANSFER, NetPart::Ranges, 8, 4),
    field("range-offset", TRANSFER, NetPart::Ranges, 12, 4),
    field("nvsp-type", ALL, NetPart::Nvsp, 0, 4),
    field("channel-type", TRANSFER, NetPart::Nvsp, 4, 4),
    field("section-index", TRANSFER, NetPart::Nvsp, 8, 4),
    field("section-size", TRANSFER, NetPart::Nvsp, 12, 4),
    field("rndis-type", TRANSFER, NetPart::Rndis, 0, 4),
    field("rndis-length", TRANSFER, NetPart::Rndis, 4, 4),
    field("data-offset", &[M::Data], NetPart::Rndis, 8, 4),
    field("data-length", &[M::Data], NetPart::Rndis, 12, 4),
    field("oob-offset", &[M::Data], NetPart::Rndis, 16, 4),
    field("oob-length", &[M::Data], NetPart::Rndis, 20, 4),
    field("oob-count", &[M::Data], NetPart::Rndis, 24, 4),
    field("ppi-offset", &[M::Data], NetPart::Rndis, 28, 4),
    field("ppi-length", &[M::Data], NetPart::Rndis, 32, 4),
    field("vc-handle", &[M::Data], NetPart::Rndis, 36, 4),
    field("reserved", &[M::Data], NetPart::Rndis, 40, 4),
    field("ppi-size", &[M::Data], NetPart::Rndis, 44, 4),
    field("ppi-type", &[M::Data], NetPart::Rndis, 48, 4),
    field("ppi-data-offset", &[M::Data], NetPart::Rndis, 52, 4),
    field("ppi-value", &[M::Data], NetPart::Rndis, 56, 4),
    field("request-id", &[M::Answer], NetPart::Rndis, 8, 4),
    field("answer-status", &[M::Answer], NetPart::Rndis, 12, 4),
    field("info-length", &[M::Answer], NetPart::Rndis, 16, 4),
    field("info-offset", &[M::Answer], NetPart::Rndis, 20, 4),
    field("max-packets", &[M::Answer], NetPart::Rndis, 32, 4),
    field("max-transfer", &[M::Answer], NetPart::Rndis, 36, 4),
    field("alignment", &[M::Answer], NetPart::Rndis, 40, 4),
    field("indicated-status", &[M::Indication], NetPart::Rndis, 8, 4),
    field("status-length", &[M::Indication], NetPart::Rndis, 12, 4),
    field("status-offset", &[M::Indication], NetPart::Rndis, 16, 4),
    field("send-status", &[M::SendCompletion], NetPart::Nvsp, 4, 4),
    field("version", &[M::InitCompletion], NetPart::Nvsp, 4, 4),
    field("max-mdl", &[M::InitCompletion], NetPart::Nvsp, 8, 4),
    field("init-status", &[M::InitCompletion], NetPart::Nvsp, 12, 4),
    field(
        "buffer-status",
        &[M::RecvBufCompletion, M::SendBufCompletion],
        NetPart::Nvsp,
        4,
        4,
    ),
    field(
        "section-count",
        &[M::RecvBufCompletion],
        NetPart::Nvsp,
        8,
        4,
    ),
    field(
        "section-offset",
        &[M::RecvBufCompletion],
        NetPart::Nvsp,
        12,
        4,
    ),
    field(
        "suballocation-size",
        &[M::RecvBufCompletion],
        NetPart::Nvsp,
        16,
        4,
    ),
    field(
        "suballocation-count",
        &[M::RecvBufCompletion],
        NetPart::Nvsp,
        20,
        4,
    ),
    field("section-end", &[M::RecvBufCompletion], NetPart::Nvsp, 24, 4),
    field(
        "send-section-size",
        &[M::SendBufCompletion],
        NetPart::Nvsp,
        8,
        4,
    ),
    field(
        "subchannel-status",
        &[M::SubchannelCompletion],
        NetPart::Nvsp,
        4,
        4,
    ),
    field(
        "subchannel-count",
        &[M::SubchannelCompletion],
        NetPart::Nvsp,
        8,
        4,
    ),
    field("table-count", &[M::SendTable], NetPart::Nvsp, 4, 4),
    field("table-offset", &[M::SendTable], NetPart::Nvsp, 8, 4),
    field("table-entry", &[M::SendTable], NetPart::Nvsp, 12, 4),
    field("vf-allocated", &[M::Vf], NetPart::Nvsp, 4, 4),
    field("vf-serial", &[M::Vf], NetPart::Nvsp, 8, 4),
];

impl NetField {
    /// The field with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        NET_FIELDS.iter().find(|field| field.name == name)
    }

    /// Overwrites the field in a message.
    pub fn patch(&self, message: NetMessage, value: u64) -> NetFault {
        NetFault::Patch {
            message,
            part: self.part,
            offset: self.offset,
            width: self.width,
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_are_unique_and_their_places_too() {
        for (n, field) in NET_FIELDS.iter().enumerate() {
            assert_eq!(NetField::named(field.name), Some(field));
            for other in &NET_FIELDS[..n] {
                let same_place = (field.part, field.offset) == (other.part, other.offset);
                let same_message = field.messages.iter().any(|m| other.messages.contains(m));
                assert!(
                    !(same_place && same_message),
                    "{} {}",
                    field.name,
                    other.name
                );
            }
        }
    }
}
