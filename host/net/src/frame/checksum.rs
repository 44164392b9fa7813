// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Checksums, filled in and checked (RFC 1071, 9293, 768, 8200).

use std::fmt;

use etherparse::checksum::Sum16BitWords;
use vmbus_proto::net::packet::{RxChecksum, TxChecksum};

use super::{Ip, Layers, Transport};

/// Why a frame cannot be offloaded as its guest wants. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOffload {
    /// Not an IP packet, or one of the other version.
    NotIp,
    /// IP carries something else, or the header is cut.
    NotTransport,
    /// The guest says that the transport header is elsewhere than it is.
    Offset {
        /// What it says.
        said: usize,
        /// Where the header is.
        found: usize,
    },
    /// Pieces of no bytes.
    SegmentSize,
}

impl fmt::Display for BadOffload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIp => f.write_str("offload of a frame that is not IP of that version"),
            Self::NotTransport => f.write_str("offload of a packet that is not of that kind"),
            Self::Offset { said, found } => {
                write!(f, "transport header said to be at {said}, is at {found}")
            }
            Self::SegmentSize => f.write_str("segments of no bytes"),
        }
    }
}

impl std::error::Error for BadOffload {}

/// Where TCP has its checksum.
const TCP_CHECKSUM: usize = 16;
/// Where UDP has its checksum.
const UDP_CHECKSUM: usize = 6;
/// Where IPv4 has its checksum.
const IPV4_CHECKSUM: usize = 10;

/// The sum over addresses, protocol and length.
fn pseudo_header(frame: &[u8], layers: &Layers, protocol: u8, len: usize) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new().add_slice(layers.addresses(frame));
    sum = sum.add_2bytes([0, protocol]);
    sum.add_4bytes((len as u32).to_be_bytes())
}

/// Fills in the checksum of the IPv4 header.
pub(super) fn fill_ipv4(frame: &mut [u8], layers: &Layers) {
    let Some(len) = frame.get(layers.ip_at).map(|b| usize::from(b & 15) * 4) else {
        return;
    };
    let Some(header) = frame.get_mut(layers.ip_at..layers.ip_at + len) else {
        return;
    };
    header[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].fill(0);
    let sum = Sum16BitWords::new().add_slice(header).ones_complement();
    // The sum is in the order of the frame's bytes.
    header[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// Fills in the checksum of TCP or UDP up to the end of the IP packet.
pub(super) fn fill_transport(frame: &mut [u8], layers: &Layers) {
    let (protocol, at) = match layers.transport {
        Transport::Tcp => (6, TCP_CHECKSUM),
        Transport::Udp => (17, UDP_CHECKSUM),
        Transport::Other(_) => return,
    };
    let len = layers.end - layers.transport_at;
    if len < at + 2 {
        return;
    }
    let sum = pseudo_header(frame, layers, protocol, len);
    let Some(message) = frame.get_mut(layers.transport_at..layers.end) else {
        return;
    };
    message[at..at + 2].fill(0);
    let sum = sum.add_slice(message);
    let checksum = if layers.transport == Transport::Udp {
        // Zero means that there is none.
        sum.to_ones_complement_with_no_zero()
    } else {
        sum.ones_complement()
    };
    message[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
}

/// Fills in the checksums that the guest asks for.
///
/// # Errors
/// [`BadOffload`]; the frame is as it was, and not to be sent.
pub fn fill(frame: &mut [u8], wanted: TxChecksum) -> Result<(), BadOffload> {
    let tcp = wanted.has(TxChecksum::TCP);
    let udp = wanted.has(TxChecksum::UDP);
    let header = wanted.has(TxChecksum::IP_HEADER);
    if !(tcp || udp || header) {
        return Ok(());
    }
    let layers = Layers::find(frame).ok_or(BadOffload::NotIp)?;
    let ip = match layers.ip {
        Ip::V4 => TxChecksum::IPV4,
        Ip::V6 => TxChecksum::IPV6,
    };
    if !wanted.has(ip) {
        return Err(BadOffload::NotIp);
    }
    if tcp || udp {
        let (transport, header) = if tcp {
            (Transport::Tcp, 20)
        } else {
            (Transport::Udp, 8)
        };
        let len = layers.end - layers.transport_at;
        if layers.transport != transport || layers.fragment || layers.cut || len < header {
            return Err(BadOffload::NotTransport);
        }
        let said = wanted.transport_offset() as usize;
        if said != 0 && said != layers.transport_at {
            return Err(BadOffload::Offset {
                said,
                found: layers.transport_at,
            });
        }
        fill_transport(frame, &layers);
    }
    if header && layers.ip == Ip::V4 {
        fill_ipv4(frame, &layers);
    }
    Ok(())
}

/// What a frame's checksums are worth. Nothing is said of fragments, of packets that are cut, and of UDP without one.
#[must_use]
pub fn check(frame: &[u8]) -> RxChecksum {
    let Some(layers) = Layers::find(frame) else {
        return RxChecksum::default();
    };
    let mut found = 0;
    let mut say = |right: bool, succeeded: u32, failed: u32| {
        found |= if right { succeeded } else { failed };
    };
    if layers.ip == Ip::V4 {
        let len = frame
            .get(layers.ip_at)
            .map_or(0, |first| usize::from(first & 15) * 4);
        let header = frame.get(layers.ip_at..layers.ip_at + len).unwrap_or(&[]);
        let right = Sum16BitWords::new().add_slice(header).ones_complement() == 0;
        say(right, RxChecksum::IP_SUCCEEDED, RxChecksum::IP_FAILED);
    }
    let message = &frame[layers.transport_at..layers.end];
    if layers.fragment || layers.cut {
        return RxChecksum(found);
    }
    let right = |protocol| {
        pseudo_header(frame, &layers, protocol, message.len())
            .add_slice(message)
            .ones_complement()
            == 0
    };
    match layers.transport {
        Transport::Tcp if message.len() >= 20 => {
            say(right(6), RxChecksum::TCP_SUCCEEDED, RxChecksum::TCP_FAILED);
        }
        Transport::Udp if message.len() >= 8 && message[UDP_CHECKSUM..8] != [0, 0] => {
            say(right(17), RxChecksum::UDP_SUCCEEDED, RxChecksum::UDP_FAILED);
        }
        _ => {}
    }
    RxChecksum(found)
}
