// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a NIC does to frames: where the headers are, checksums, cutting segments up and putting them together, VLAN tags,
//! and the hash of receive-side scaling.
//!
//! Frames come from guests and from networks; nothing here trusts what they say of themselves.

mod checksum;
mod coalesce;
mod segment;
#[cfg(test)]
mod tests;

pub use checksum::{check, fill, BadOffload};
pub use coalesce::{Coalesced, Coalescer, MAX_COALESCED};
pub use segment::{segments, Segments};

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket};
use vmbus_proto::net::rss::{toeplitz, HashInfo, KEY_SIZE};

/// Bytes of an Ethernet header without VLAN tag.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
pub const VLAN_TAG: usize = 4;
/// The Ethernet type of VLAN tags.
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// 4.
    V4,
    /// 6.
    V6,
}

/// What IP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Something else.
    Other(u8),
}

/// Where the headers of an IP packet are in its frame. All offsets lie in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Version.
    pub ip: Ip,
    /// Where the IP header starts.
    pub ip_at: usize,
    /// What it carries.
    pub transport: Transport,
    /// Where that starts, behind options and extension headers.
    pub transport_at: usize,
    /// Where the IP packet ends; padding of short frames may follow.
    pub end: usize,
    /// It is part of a larger packet, so what it carries may have no header.
    pub fragment: bool,
    /// IP says that there is more than the frame holds.
    pub cut: bool,
}

impl Layers {
    /// Finds the headers, behind VLAN tags if there are some. `None`: not IP, or not well-formed. A length of zero in the IP
    /// header, as in segments to be cut up, stands for all of the frame.
    #[must_use]
    pub fn find(frame: &[u8]) -> Option<Self> {
        let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
        let place = |part: &[u8]| (part.as_ptr() as usize).wrapping_sub(frame.as_ptr() as usize);
        let (ip, header, payload) = match packet.net.as_ref()? {
            LaxNetSlice::Ipv4(slice) => (Ip::V4, place(slice.header().slice()), slice.payload()),
            LaxNetSlice::Ipv6(slice) => (Ip::V6, place(slice.header().slice()), slice.payload()),
            LaxNetSlice::Arp(_) => return None,
        };
        let transport_at = place(payload.payload);
        let end = transport_at.checked_add(payload.payload.len())?;
        if transport_at <= header || end > frame.len() {
            return None;
        }
        Some(Self {
            ip,
            ip_at: header,
            transport: match payload.ip_number {
                IpNumber::TCP => Transport::Tcp,
                IpNumber::UDP => Transport::Udp,
                other => Transport::Other(other.0),
            },
            transport_at,
            end,
            fragment: payload.fragmented,
            cut: payload.incomplete,
        })
    }

    /// The addresses, source first.
    fn addresses<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let range = match self.ip {
            Ip::V4 => self.ip_at + 12..self.ip_at + 20,
            Ip::V6 => self.ip_at + 8..self.ip_at + 40,
        };
        frame.get(range).unwrap_or(&[])
    }

    /// The ports of TCP and UDP, source first.
    fn ports<'f>(&self, frame: &'f [u8]) -> Option<&'f [u8]> {
        match self.transport {
            Transport::Tcp | Transport::Udp if !self.fragment => {
                let range = self.transport_at..self.transport_at + 4;
                frame
                    .get(range)
                    .filter(|_| self.transport_at + 4 <= self.end)
            }
            _ => None,
        }
    }

    /// The hash that chooses the channel, by the best of the types that the guest wants. `None`: none of them fits.
    #[must_use]
    pub fn hash(&self, frame: &[u8], key: &[u8; KEY_SIZE], wanted: HashInfo) -> Option<u32> {
        let (plain, with_ports) = match (self.ip, self.transport) {
            (Ip::V4, Transport::Tcp) => (HashInfo::IPV4, HashInfo::TCP_IPV4),
            (Ip::V4, Transport::Udp) => (HashInfo::IPV4, HashInfo::UDP_IPV4),
            (Ip::V4, Transport::Other(_)) => (HashInfo::IPV4, HashInfo::empty()),
            (Ip::V6, Transport::Tcp) => (HashInfo::IPV6, HashInfo::TCP_IPV6),
            (Ip::V6, Transport::Udp) => (HashInfo::IPV6, HashInfo::UDP_IPV6),
            (Ip::V6, Transport::Other(_)) => (HashInfo::IPV6, HashInfo::empty()),
        };
        let mut input = [0; 36];
        let addresses = self.addresses(frame);
        input.get_mut(..addresses.len())?.copy_from_slice(addresses);
        let mut len = addresses.len();
        match self.ports(frame) {
            Some(ports) if wanted.intersects(with_ports) => {
                input.get_mut(len..len + 4)?.copy_from_slice(ports);
                len += 4;
            }
            _ if wanted.intersects(plain) => {}
            _ => return None,
        }
        Some(toeplitz(key, &input[..len]))
    }
}

/// Takes the VLAN tag out of a frame and returns its tag control information; of several, the outer one.
pub fn strip_vlan(frame: &mut Vec<u8>) -> Option<u16> {
    let tag = frame.get(12..12 + VLAN_TAG)?;
    if tag[..2] != ETHERTYPE_VLAN || frame.len() < ETHERNET + VLAN_TAG {
        return None;
    }
    let tci = u16::from_be_bytes([tag[2], tag[3]]);
    frame.drain(12..12 + VLAN_TAG);
    Some(tci)
}

/// Puts a VLAN tag into a frame, which has at least an Ethernet header; else nothing is done.
pub fn insert_vlan(frame: &mut Vec<u8>, tci: u16) {
    if frame.len() >= ETHERNET {
        let tci = tci.to_be_bytes();
        let tag = [ETHERTYPE_VLAN[0], ETHERTYPE_VLAN[1], tci[0], tci[1]];
        frame.splice(12..12, tag);
    }
}
