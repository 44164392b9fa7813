// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Large-send offload: one TCP segment larger than the link takes, cut into ones that fit.

use vmbus_proto::net::packet::LargeSend;

use super::checksum::{fill_ipv4, fill_transport, BadOffload};
use super::{Ip, Layers, Transport};

/// Flags of TCP (RFC 9293, 3.1; RFC 3168, 6.1): only the last piece has FIN and PSH, only the first CWR.
const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Cuts up `frame` as its guest wants, one piece at a time.
///
/// # Errors
/// [`BadOffload`]: the frame is not to be sent.
pub fn segments(frame: &[u8], wanted: LargeSend) -> Result<Segments<'_>, BadOffload> {
    let layers = Layers::find(frame).ok_or(BadOffload::NotIp)?;
    let is_ipv6 = layers.ip == Ip::V6;
    if is_ipv6 != wanted.is_ipv6() {
        return Err(BadOffload::NotIp);
    }
    // The guest leaves the length of the IP packet open: it is all of the frame.
    let layers = Layers {
        end: frame.len(),
        ..layers
    };
    let tcp = frame.get(layers.transport_at..).unwrap_or(&[]);
    if layers.transport != Transport::Tcp || layers.fragment || tcp.len() < 20 {
        return Err(BadOffload::NotTransport);
    }
    let said = wanted.tcp_offset() as usize;
    if said != 0 && said != layers.transport_at {
        return Err(BadOffload::Offset {
            said,
            found: layers.transport_at,
        });
    }
    let tcp_header = usize::from(tcp[12] >> 4) * 4;
    if tcp_header < 20 || tcp_header > tcp.len() {
        return Err(BadOffload::NotTransport);
    }
    let size = wanted.mss() as usize;
    if size == 0 {
        return Err(BadOffload::SegmentSize);
    }
    let headers = layers.transport_at + tcp_header;
    // What no IP packet can hold stays one byte below the limit of its length field.
    let room = usize::from(u16::MAX).saturating_sub(headers - layers.ip_at);
    Ok(Segments {
        frame,
        layers,
        headers,
        size: size.min(room).max(1),
        at: headers,
        started: false,
    })
}

/// See [`segments`].
#[derive(Clone, Debug)]
pub struct Segments<'f> {
    frame: &'f [u8],
    layers: Layers,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of payload of each piece.
    size: usize,
    /// Where the payload of the next one starts.
    at: usize,
    started: bool,
}

impl Segments<'_> {
    /// How many pieces there are in all: at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.frame.len() - self.headers).div_ceil(self.size).max(1)
    }

    /// Writes the next piece, a whole frame, to `out`. `false`: there is none.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> bool {
        let len = self.frame.len();
        if self.at >= len && self.started {
            return false;
        }
        let first = !self.started;
        self.started = true;
        let start = self.at;
        let end = start.saturating_add(self.size).min(len);
        self.at = end;
        out.clear();
        out.extend_from_slice(&self.frame[..self.headers]);
        out.extend_from_slice(&self.frame[start..end]);

        let layers = Layers {
            end: out.len(),
            ..self.layers
        };
        let before = start - self.headers;
        let tcp = &mut out[layers.transport_at..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let sequence = sequence.wrapping_add(before as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if end < len {
            tcp[13] &= !FIN_PSH;
        }
        if !first {
            tcp[13] &= !CWR;
        }
        let ip = &mut out[layers.ip_at..];
        match layers.ip {
            Ip::V4 => {
                let total = ip.len() as u16;
                ip[2..4].copy_from_slice(&total.to_be_bytes());
                // Each piece has an id of its own.
                let id = u16::from_be_bytes([ip[4], ip[5]]);
                let id = id.wrapping_add((before / self.size) as u16);
                ip[4..6].copy_from_slice(&id.to_be_bytes());
                fill_ipv4(out, &layers);
            }
            Ip::V6 => {
                let payload = (ip.len() - 40) as u16;
                ip[4..6].copy_from_slice(&payload.to_be_bytes());
            }
        }
        fill_transport(out, &layers);
        true
    }
}
