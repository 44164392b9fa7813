// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The RNDIS device: what the guest asks and sets.

use vmbus_proto::net::nvsp::NdisVersion;
use vmbus_proto::net::offload::OffloadParameters;
use vmbus_proto::net::packet::ETHERNET_HEADER_SIZE;
use vmbus_proto::net::rndis::{
    write_indicate, write_message, write_query_complete, GuestMessage, InitializeComplete, Oid,
    PacketFilter, ParsedParameter, ResetComplete, RndisStatus, RndisType, StatusComplete,
    MAJOR_VERSION,
};
use vmbus_proto::net::rss::{table_entries, HashInfo, RssSetting, KEY_SIZE};
use vmbus_proto::net::MacAddress;
use zerocopy::IntoBytes;

use crate::offload::{Enabled, Offloads};
use crate::oid;

/// Frames in one message from the guest, and their alignment as a power of two, that the guest is told (OpenVMM
/// `netvsp`, `handle_rndis_control_message`; Hyper-V says the same).
const MAX_PACKETS: u32 = 8;
const ALIGNMENT_SHIFT: u32 = 3;
const MAX_TRANSFER: u32 = 0xefff_ffff;
/// Multicast addresses that are kept; a guest that needs more is to receive all (OID_802_3_MAXIMUM_LIST_SIZE).
pub(crate) const MAX_MULTICAST: usize = 32;
/// Largest answer: it has to fit in a receive section.
const MAX_ANSWER: usize = 1600;

/// How far RNDIS has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// No INITIALIZE yet.
    #[default]
    Fresh,
    /// Requests and frames are taken.
    Initialized,
    /// After HALT: frames are thrown away.
    Halted,
}

/// Receive side scaling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rss {
    pub(crate) hash: HashInfo,
    pub(crate) key: [u8; KEY_SIZE],
    pub(crate) table: Vec<u16>,
}

/// What does not change, or is agreed on before RNDIS begins.
pub(crate) struct Facts {
    pub(crate) mac: MacAddress,
    pub(crate) mac_change: bool,
    pub(crate) mtu: u32,
    pub(crate) ndis: NdisVersion,
    pub(crate) offloads: Offloads,
    /// Whether the guest knows of coalescing.
    pub(crate) rsc: bool,
    pub(crate) channels: u16,
    pub(crate) table: u16,
    pub(crate) friendly_name: String,
}

/// What changes by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) up: bool,
    /// Mbit/s.
    pub(crate) speed: u32,
}

/// What a message led to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// RNDIS message to the guest.
    pub(crate) answer: Option<Vec<u8>>,
    /// Another one, a status indication, after it.
    pub(crate) indication: Option<Vec<u8>>,
    /// The request was refused.
    pub(crate) refused: bool,
    /// The guest broke the protocol.
    pub(crate) violation: Option<String>,
}

/// The device, from one opening of the channel to the next.
pub(crate) struct Rndis {
    pub(crate) facts: Facts,
    pub(crate) state: State,
    pub(crate) filter: PacketFilter,
    pub(crate) multicast: Vec<MacAddress>,
    pub(crate) enabled: Enabled,
    pub(crate) rss: Option<Rss>,
    /// The last that the guest set, for settings that leave parts as they were.
    last_rss: Option<Rss>,
    /// Address that the guest set.
    pub(crate) new_mac: Option<MacAddress>,
}

impl Rndis {
    pub(crate) fn new(facts: Facts) -> Self {
        Self {
            enabled: Enabled::new(&facts.offloads),
            facts,
            state: State::Fresh,
            filter: PacketFilter::empty(),
            multicast: Vec::new(),
            rss: None,
            last_rss: None,
            new_mac: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Initialized && !self.filter.is_empty()
    }

    /// Takes a message, a private copy.
    pub(crate) fn on_message(&mut self, bytes: &[u8], link: Link) -> Outcome {
        let message = match GuestMessage::parse(bytes) {
            Ok(message) => message,
            Err(e) => {
                return Outcome {
                    violation: Some(e.to_string()),
                    ..Outcome::default()
                }
            }
        };
        let mut out = Outcome::default();
        let needs_init = !matches!(
            message,
            GuestMessage::Initialize(_) | GuestMessage::Halt | GuestMessage::Keepalive { .. }
        );
        if needs_init && self.state != State::Initialized {
            out.violation = Some("RNDIS request before INITIALIZE".into());
        }
        let usable = out.violation.is_none();
        match message {
            GuestMessage::Initialize(init) => {
                let mut status = RndisStatus::SUCCESS;
                if self.state == State::Initialized {
                    out.violation = Some("RNDIS INITIALIZE again".into());
                    status = RndisStatus::FAILURE;
                } else if init.major < MAJOR_VERSION {
                    status = RndisStatus::BAD_VERSION;
                } else {
                    self.state = State::Initialized;
                }
                out.refused = status != RndisStatus::SUCCESS;
                out.answer = message_of(
                    RndisType::INIT_C,
                    &InitializeComplete {
                        request_id: init.request_id,
                        status,
                        major: MAJOR_VERSION,
                        minor: 0,
                        device_flags: oid::DF_CONNECTIONLESS,
                        medium: oid::MEDIUM_802_3,
                        max_packets: MAX_PACKETS,
                        max_transfer_size: MAX_TRANSFER,
                        alignment_shift: ALIGNMENT_SHIFT,
                        af_list_offset: 0,
                        af_list_size: 0,
                    },
                );
            }
            GuestMessage::Halt => {
                self.state = State::Halted;
                self.filter = PacketFilter::empty();
            }
            GuestMessage::Query {
                request_id, oid, ..
            } => {
                let result = if usable {
                    oid::query(self, oid, link)
                } else {
                    Err(RndisStatus::FAILURE)
                };
                let (status, info) = match result {
                    Ok(info) => (RndisStatus::SUCCESS, info),
                    Err(status) => (status, Vec::new()),
                };
                out.refused = status != RndisStatus::SUCCESS;
                let mut answer = vec![0; MAX_ANSWER];
                out.answer =
                    write_query_complete(&mut answer, request_id, status, &info).map(|n| {
                        answer.truncate(n);
                        answer
                    });
            }
            GuestMessage::Set {
                request_id,
                oid,
                info,
            } => {
                let status = if usable {
                    self.set(oid, info, &mut out)
                } else {
                    RndisStatus::FAILURE
                };
                out.refused = status != RndisStatus::SUCCESS;
                out.answer = message_of(RndisType::SET_C, &StatusComplete { request_id, status });
            }
            GuestMessage::Reset => {
                // Everything as after INITIALIZE (MS-RNDIS 2.2.11: the host is to set filter and multicast list anew).
                if usable {
                    self.filter = PacketFilter::empty();
                    self.multicast.clear();
                }
                let status = if usable {
                    RndisStatus::SUCCESS
                } else {
                    RndisStatus::FAILURE
                };
                out.answer = message_of(
                    RndisType::RESET_C,
                    &ResetComplete {
                        status,
                        addressing_reset: 1,
                    },
                );
            }
            GuestMessage::Keepalive { request_id } => {
                let status = RndisStatus::SUCCESS;
                out.answer = message_of(
                    RndisType::KEEPALIVE_C,
                    &StatusComplete { request_id, status },
                );
            }
            // The host asks for none.
            GuestMessage::KeepaliveComplete(_) => {
                out.violation = Some("RNDIS KEEPALIVE_CMPLT that nobody asked for".into());
            }
        }
        out
    }

    fn set(&mut self, oid: Oid, info: &[u8], out: &mut Outcome) -> RndisStatus {
        match oid {
            Oid::GEN_CURRENT_PACKET_FILTER => match info.first_chunk::<4>() {
                Some(bits) => {
                    self.filter = PacketFilter::from_bits_retain(u32::from_le_bytes(*bits));
                    RndisStatus::SUCCESS
                }
                None => RndisStatus::INVALID_LENGTH,
            },
            Oid::IEEE_802_3_MULTICAST_LIST => {
                if info.len() % 6 != 0 {
                    return RndisStatus::INVALID_LENGTH;
                }
                let list: Vec<MacAddress> = info
                    .chunks_exact(6)
                    .filter_map(|mac| mac.try_into().ok())
                    .collect();
                if list.len() > MAX_MULTICAST {
                    return RndisStatus::RESOURCES;
                }
                if list.iter().any(|mac| mac[0] & 1 == 0) {
                    return RndisStatus::INVALID_DATA;
                }
                self.multicast = list;
                RndisStatus::SUCCESS
            }
            Oid::TCP_OFFLOAD_PARAMETERS => match OffloadParameters::parse(info) {
                Ok(wanted) => {
                    let mut offered = self.facts.offloads;
                    offered.rsc &= self.facts.rsc;
                    self.enabled.set(&wanted, &offered);
                    let now = self.enabled.describe(self.facts.ndis);
                    out.indication =
                        indication(RndisStatus::TASK_OFFLOAD_CURRENT_CONFIG, now.sized_bytes());
                    RndisStatus::SUCCESS
                }
                Err(_) => RndisStatus::INVALID_DATA,
            },
            Oid::OFFLOAD_ENCAPSULATION => oid::set_encapsulation(info),
            Oid::GEN_RECEIVE_SCALE_PARAMETERS => self.set_rss(info),
            Oid::GEN_RNDIS_CONFIG_PARAMETER => match ParsedParameter::parse(info) {
                Some(parameter) => match parameter.network_address() {
                    Some(_) if !self.facts.mac_change => RndisStatus::NOT_SUPPORTED,
                    Some(mac) if mac[0] & 1 != 0 || mac == [0; 6] => RndisStatus::INVALID_DATA,
                    Some(mac) => {
                        self.new_mac = Some(mac);
                        RndisStatus::SUCCESS
                    }
                    // Other parameters are settings of a Windows driver, and taken as such.
                    None => RndisStatus::SUCCESS,
                },
                None => RndisStatus::INVALID_DATA,
            },
            // What the host could do with these, it does not.
            Oid::GEN_NETWORK_LAYER_ADDRESSES | Oid::GEN_CURRENT_LOOKAHEAD => RndisStatus::SUCCESS,
            Oid::GEN_LINK_PARAMETERS => RndisStatus::SUCCESS,
            _ => RndisStatus::NOT_SUPPORTED,
        }
    }

    fn set_rss(&mut self, info: &[u8]) -> RndisStatus {
        let (hash, table, key) = match RssSetting::parse(info, self.facts.channels.into()) {
            Ok(RssSetting::Disable) => {
                self.rss = None;
                return RndisStatus::SUCCESS;
            }
            Ok(RssSetting::Enable { hash, table, key }) => (hash, table, key),
            Err(_) => return RndisStatus::INVALID_DATA,
        };
        let last = self.last_rss.as_ref();
        let hash = hash.or(last.map(|rss| rss.hash));
        let key = key.or(last.map(|rss| rss.key));
        let table = match table {
            Some(table) if table.len() / 4 <= usize::from(self.facts.table) => {
                Some(table_entries(table).map(|entry| entry as u16).collect())
            }
            Some(_) => None,
            None => last.map(|rss| rss.table.clone()),
        };
        let (Some(hash), Some(key), Some(table)) = (hash, key, table) else {
            return RndisStatus::INVALID_DATA;
        };
        if !hash.contains(HashInfo::TOEPLITZ) {
            return RndisStatus::NOT_SUPPORTED;
        }
        let rss = Rss { hash, key, table };
        self.last_rss = Some(rss.clone());
        self.rss = Some(rss);
        RndisStatus::SUCCESS
    }

    /// Whether the guest wants to see a frame with this destination.
    pub(crate) fn wants(&self, destination: MacAddress) -> bool {
        let filter = self.filter;
        if filter.contains(PacketFilter::PROMISCUOUS) {
            return true;
        }
        if destination == [0xff; 6] {
            return filter.contains(PacketFilter::BROADCAST);
        }
        if destination[0] & 1 != 0 {
            return filter.contains(PacketFilter::ALL_MULTICAST)
                || (filter.contains(PacketFilter::MULTICAST)
                    && self.multicast.contains(&destination));
        }
        filter.contains(PacketFilter::DIRECTED)
            && (destination == self.facts.mac || Some(destination) == self.new_mac)
    }

    /// Largest frame without VLAN tag.
    pub(crate) fn max_frame(&self) -> usize {
        (self.facts.mtu + ETHERNET_HEADER_SIZE) as usize
    }
}

fn message_of<T: IntoBytes + zerocopy::Immutable>(kind: RndisType, body: &T) -> Option<Vec<u8>> {
    let mut out = vec![0; 64];
    let n = write_message(&mut out, kind, body, &[])?;
    out.truncate(n);
    Some(out)
}

/// A status indication.
pub(crate) fn indication(status: RndisStatus, buffer: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; 64 + buffer.len()];
    let n = write_indicate(&mut out, status, buffer)?;
    out.truncate(n);
    Some(out)
}
