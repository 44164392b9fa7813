// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Receive-segment coalescing: TCP segments that follow each other become one, as large as an IP packet can be.
//!
//! The rules are those of Microsoft ("Rules for Coalescing TCP/IP Segments"): only segments with data and no flags but ACK
//! and PSH, of one flow, in order, with right checksums, the same IP header but for length, id and checksum, and the same
//! options; timestamps may differ, and the last one is kept.

use vmbus_proto::net::packet::RxChecksum;

use super::checksum::check;
use super::{Ip, Layers, Transport};

/// Bytes of a coalesced IP packet at most: what its length can say.
pub const MAX_COALESCED: usize = u16::MAX as usize;

/// Segments under way at once.
const MAX_FLOWS: usize = 8;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// A frame for the guest.
#[derive(Debug)]
pub struct Coalesced {
    /// The frame, VLAN tag taken out.
    pub frame: Vec<u8>,
    /// Tag control information of that tag.
    pub vlan: Option<u16>,
    /// What its checksums are worth; those of a coalesced segment count as right although TCP's is not filled in.
    pub checksum: RxChecksum,
    /// Segments that it is made of; 1 when it came as it is.
    pub segments: u32,
}

/// One segment that more may be added to.
struct Flow {
    merged: Coalesced,
    layers: Layers,
    /// Where the payload starts.
    payload: usize,
    /// Sequence number that the next segment has.
    next: u32,
}

/// Puts segments together. Whatever is handed in comes out, in order within its flow.
#[derive(Default)]
pub struct Coalescer {
    flows: Vec<Flow>,
}

/// What makes a segment fit for coalescing.
struct Candidate {
    layers: Layers,
    payload: usize,
    sequence: u32,
    push: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u32::from_be_bytes(*word))
}

/// Options of TCP: none, or padding and one timestamp as all stacks write it (RFC 7323, appendix A).
fn options_are_plain(options: &[u8]) -> bool {
    options.is_empty() || (options.len() == 12 && options[..4] == [1, 1, 8, 10])
}

impl Candidate {
    fn new(frame: &[u8], checksum: RxChecksum) -> Option<Self> {
        let layers = Layers::find(frame)?;
        let right = match layers.ip {
            Ip::V4 => RxChecksum::IP_SUCCEEDED | RxChecksum::TCP_SUCCEEDED,
            Ip::V6 => RxChecksum::TCP_SUCCEEDED,
        };
        let ip_header = layers.transport_at - layers.ip_at;
        let plain_ip = match layers.ip {
            Ip::V4 => ip_header == 20,
            Ip::V6 => ip_header == 40,
        };
        if layers.transport != Transport::Tcp
            || layers.fragment
            || layers.cut
            || !plain_ip
            || checksum.0 & right != right
        {
            return None;
        }
        let tcp = &frame[layers.transport_at..layers.end];
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        let flags = *tcp.get(13)?;
        if tcp.len() <= header || flags & !PSH != ACK || !options_are_plain(tcp.get(20..header)?) {
            return None;
        }
        Some(Self {
            layers,
            payload: layers.transport_at + header,
            sequence: u32_at(tcp, 4),
            push: flags & PSH != 0,
        })
    }
}

impl Flow {
    /// Whether the frame belongs to the flow, in whatever order.
    fn is_same_flow(&self, vlan: Option<u16>, frame: &[u8], layers: &Layers) -> bool {
        self.merged.vlan == vlan
            && self.layers.ip == layers.ip
            && self.layers.transport == layers.transport
            && self.layers.addresses(&self.merged.frame) == layers.addresses(frame)
            && self.layers.ports(&self.merged.frame) == layers.ports(frame)
    }

    /// Whether the segment can be added: the next one, with headers that differ in nothing that would be lost.
    fn takes(&self, frame: &[u8], next: &Candidate) -> bool {
        let first = &self.merged.frame;
        let ours = &first[self.layers.ip_at..];
        let theirs = &frame[next.layers.ip_at..];
        let same_ip = match self.layers.ip {
            // Version and header length, type of service; flags; time to live and protocol.
            Ip::V4 => ours[..2] == theirs[..2] && ours[6..10] == theirs[6..10],
            // Version, class, flow; next header, hop limit.
            Ip::V6 => ours[..4] == theirs[..4] && ours[6..8] == theirs[6..8],
        };
        let payload = next.layers.end - next.payload;
        let total = first.len() - self.layers.ip_at + payload;
        same_ip
            && first[..self.layers.ip_at] == frame[..next.layers.ip_at]
            && self.payload == next.payload
            && self.next == next.sequence
            && total <= MAX_COALESCED
    }

    fn add(&mut self, frame: &[u8], next: &Candidate) {
        let (to, from) = (self.layers.transport_at, next.layers.transport_at);
        // Acknowledgement, window and timestamp of the last one.
        self.merged.frame[to + 8..to + 12].copy_from_slice(&frame[from + 8..from + 12]);
        self.merged.frame[to + 14..to + 16].copy_from_slice(&frame[from + 14..from + 16]);
        self.merged.frame[to + 20..self.payload].copy_from_slice(&frame[from + 20..next.payload]);
        if next.push {
            self.merged.frame[to + 13] |= PSH;
        }
        let payload = &frame[next.payload..next.layers.end];
        self.merged.frame.extend_from_slice(payload);
        self.merged.segments += 1;
        self.next = self.next.wrapping_add(payload.len() as u32);
    }

    /// Ends the flow: lengths and the IPv4 checksum are made right.
    fn finish(mut self) -> Coalesced {
        if self.merged.segments > 1 {
            let total = self.merged.frame.len() - self.layers.ip_at;
            let ip = &mut self.merged.frame[self.layers.ip_at..];
            match self.layers.ip {
                Ip::V4 => ip[2..4].copy_from_slice(&(total as u16).to_be_bytes()),
                Ip::V6 => ip[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes()),
            }
            if self.layers.ip == Ip::V4 {
                super::checksum::fill_ipv4(&mut self.merged.frame, &self.layers);
            }
            self.merged.checksum.0 |= RxChecksum::TCP_VALUE_INVALID;
        }
        self.merged
    }
}

impl Coalescer {
    /// Takes a frame without VLAN tag and hands to `out` what can no longer be added to; perhaps the frame itself.
    pub fn push(&mut self, mut frame: Vec<u8>, vlan: Option<u16>, out: &mut impl FnMut(Coalesced)) {
        let checksum = check(&frame);
        let candidate = Candidate::new(&frame, checksum);
        let layers = match &candidate {
            Some(candidate) => Some(candidate.layers),
            None => Layers::find(&frame),
        };
        let flow = layers.and_then(|layers| {
            self.flows
                .iter()
                .position(|flow| flow.is_same_flow(vlan, &frame, &layers))
        });
        if let Some(index) = flow {
            match &candidate {
                Some(next) if self.flows[index].takes(&frame, next) => {
                    self.flows[index].add(&frame, next);
                    // What the sender wants to have handed over is.
                    if next.push {
                        out(self.flows.remove(index).finish());
                    }
                    return;
                }
                // Nothing overtakes within a flow.
                _ => out(self.flows.remove(index).finish()),
            }
        }
        let Some(candidate) = candidate else {
            out(Coalesced {
                frame,
                vlan,
                checksum,
                segments: 1,
            });
            return;
        };
        let push = candidate.push;
        // Padding would lie between the segments.
        frame.truncate(candidate.layers.end);
        let flow = Flow {
            layers: candidate.layers,
            payload: candidate.payload,
            next: candidate
                .sequence
                .wrapping_add((frame.len() - candidate.payload) as u32),
            merged: Coalesced {
                frame,
                vlan,
                checksum,
                segments: 1,
            },
        };
        if push {
            out(flow.finish());
            return;
        }
        if self.flows.len() >= MAX_FLOWS {
            out(self.flows.remove(0).finish());
        }
        self.flows.push(flow);
    }

    /// Hands out all that is held: the end of a batch. What waits longer costs time.
    pub fn flush(&mut self, out: &mut impl FnMut(Coalesced)) {
        for flow in self.flows.drain(..) {
            out(flow.finish());
        }
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}
