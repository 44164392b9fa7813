// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What shall go wrong, and with which frames and messages.

use hv_vmbus_host::device::{RefTime, TICKS_PER_MS};
use hvctl::{NetDirection, NetFault, NetMessage, NetPart};
use vmbus_proto::packet::{PacketFlags, PacketType, TransferRange};
use zerocopy::{FromBytes, IntoBytes};

use crate::post::Message;

/// Bytes of [`NetPart::Packet`].
const PACKET_PART: usize = 16;
/// A delay or stall longer than a day is cut.
const MAX_MS: u64 = 86_400_000;
/// How long frames are held for reordering.
pub(crate) const REORDER_TICKS: RefTime = 20 * TICKS_PER_MS;

/// What happens to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameHit {
    Drop,
    Delay(RefTime),
    Duplicate,
    Corrupt,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Once,
    Twice,
}

#[derive(Clone, Copy, Debug)]
enum MessageHit {
    Patch {
        part: NetPart,
        offset: u32,
        width: u8,
        value: u64,
    },
    Cut {
        part: NetPart,
        len: u32,
    },
    Repeat,
    Lose,
}

/// How often, and on which channel.
struct Rule<W, H> {
    what: W,
    queue: Option<u16>,
    skip: u32,
    /// `None`: all.
    left: Option<u32>,
    hit: H,
}

impl<W, H: Copy> Rule<W, H> {
    /// The hit of the first rule that `matches`, counted.
    fn first(rules: &mut Vec<Self>, queue: u16, matches: impl Fn(&Self) -> bool) -> Option<H> {
        let at = rules.iter_mut().position(|rule| {
            let wanted = rule.queue.is_none_or(|q| q == queue) && matches(rule);
            if wanted && rule.skip > 0 {
                rule.skip -= 1;
                return false;
            }
            wanted
        })?;
        let rule = &mut rules[at];
        let hit = rule.hit;
        if let Some(left) = &mut rule.left {
            *left -= 1;
            if *left == 0 {
                rules.remove(at);
            }
        }
        Some(hit)
    }
}

/// What is armed.
#[derive(Default)]
pub(crate) struct Faults {
    frames: Vec<Rule<Option<NetDirection>, FrameHit>>,
    messages: Vec<Rule<NetMessage, MessageHit>>,
    /// Sent when a channel is opened next.
    early: Vec<Rule<NetMessage, ()>>,
    /// Nothing is done before.
    pub(crate) stalled_until: Option<RefTime>,
    /// Frames are held until there are so many: to the guest, from it.
    pub(crate) window: [usize; 2],
    /// Frames and messages that were hit.
    pub(crate) count: u64,
    /// Transaction ids that were given instead of others.
    aliases: Vec<(u16, u64, u64)>,
    /// Transactions that the guest completes once more.
    repeated: Vec<(u16, u64)>,
}

/// What a new fault asks of the NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Armed {
    /// Nothing.
    Later,
    /// What was held up may go on.
    Release,
}

pub(crate) fn slot(direction: NetDirection) -> usize {
    match direction {
        NetDirection::Rx => 0,
        NetDirection::Tx => 1,
    }
}

impl Faults {
    /// Arms a fault. `count` 0: for all until cleared.
    pub(crate) fn arm(
        &mut self,
        direction: Option<NetDirection>,
        queue: Option<u16>,
        count: u32,
        skip: u32,
        fault: &NetFault,
        now: RefTime,
    ) -> Result<Armed, String> {
        let ticks = |ms: u64| ms.min(MAX_MS) * TICKS_PER_MS;
        let left = (count > 0).then_some(count);
        let frame = match *fault {
            NetFault::Stall { ms: 0 } => {
                self.stalled_until = None;
                return Ok(Armed::Release);
            }
            NetFault::Stall { ms } => {
                self.stalled_until = Some(now.saturating_add(ticks(ms)));
                return Ok(Armed::Later);
            }
            NetFault::Reorder { window } => {
                for d in [NetDirection::Rx, NetDirection::Tx] {
                    if direction.is_none_or(|wanted| wanted == d) {
                        self.window[slot(d)] = window.min(1024) as usize;
                    }
                }
                return Ok(Armed::Release);
            }
            NetFault::Clear => {
                let count = self.count;
                *self = Self {
                    count,
                    aliases: std::mem::take(&mut self.aliases),
                    repeated: std::mem::take(&mut self.repeated),
                    ..Self::default()
                };
                return Ok(Armed::Release);
            }
            NetFault::Drop => Some(FrameHit::Drop),
            NetFault::Delay { ms } => Some(FrameHit::Delay(ticks(ms))),
            NetFault::Duplicate => Some(FrameHit::Duplicate),
            NetFault::Corrupt => Some(FrameHit::Corrupt),
            _ => None,
        };
        if let Some(hit) = frame {
            self.frames.push(Rule {
                what: direction,
                queue,
                skip,
                left,
                hit,
            });
            return Ok(Armed::Later);
        }
        let (message, hit) = match *fault {
            NetFault::Patch {
                message,
                part,
                offset,
                width,
                value,
            } => {
                if !matches!(width, 1 | 2 | 4 | 8) {
                    return Err(format!("width {width}: expected 1, 2, 4 or 8"));
                }
                let hit = MessageHit::Patch {
                    part,
                    offset,
                    width,
                    value,
                };
                (message, hit)
            }
            NetFault::Cut { message, part, len } => {
                // Without a whole descriptor there is no packet.
                if part == NetPart::Packet && (len as usize) < PACKET_PART {
                    return Err(format!("a packet has {PACKET_PART} bytes at least"));
                }
                (message, MessageHit::Cut { part, len })
            }
            NetFault::Repeat { message } => (message, MessageHit::Repeat),
            NetFault::Lose { message } => (message, MessageHit::Lose),
            NetFault::Early { message } => {
                self.early.push(Rule {
                    what: message,
                    queue,
                    skip,
                    left: Some(left.unwrap_or(u32::MAX)),
                    hit: (),
                });
                return Ok(Armed::Later);
            }
            _ => return Err("not a fault of messages".into()),
        };
        self.messages.push(Rule {
            what: message,
            queue,
            skip,
            left,
            hit,
        });
        Ok(Armed::Later)
    }

    /// What happens to a frame.
    pub(crate) fn on_frame(&mut self, direction: NetDirection, queue: u16) -> Option<FrameHit> {
        if self.frames.is_empty() {
            return None;
        }
        let hit = Rule::first(&mut self.frames, queue, |rule| {
            rule.what.is_none_or(|d| d == direction)
        });
        self.count += u64::from(hit.is_some());
        hit
    }

    /// Messages to be sent at once on a channel that was opened.
    pub(crate) fn on_open(&mut self, queue: u16) -> Vec<NetMessage> {
        let mut list = Vec::new();
        for message in [
            NetMessage::Data,
            NetMessage::Answer,
            NetMessage::Indication,
            NetMessage::SendCompletion,
            NetMessage::InitCompletion,
            NetMessage::RecvBufCompletion,
            NetMessage::SendBufCompletion,
            NetMessage::SubchannelCompletion,
            NetMessage::SendTable,
            NetMessage::Vf,
        ] {
            if Rule::first(&mut self.early, queue, |rule| rule.what == message).is_some() {
                self.count += 1;
                list.push(message);
            }
        }
        list
    }

    /// Whether a message is to be changed before it is in the receive buffer; then changes it.
    pub(crate) fn on_rndis(&mut self, queue: u16, kind: NetMessage, rndis: &mut Vec<u8>) {
        if self.messages.is_empty() {
            return;
        }
        let hit = Rule::first(&mut self.messages, queue, |rule| {
            rule.what == kind
                && rule.hit.part() == Some(NetPart::Rndis)
                && rule.hit.changes(rndis.len())
        });
        match hit {
            Some(MessageHit::Patch {
                offset,
                width,
                value,
                ..
            }) => {
                self.count += 1;
                patch(rndis, offset, width, value);
            }
            Some(MessageHit::Cut { len, .. }) => {
                self.count += 1;
                rndis.truncate(len as usize);
            }
            _ => {}
        }
    }

    /// What becomes of a message; changes it.
    pub(crate) fn on_message(&mut self, queue: u16, message: &mut Message) -> Fate {
        if self.messages.is_empty() {
            return Fate::Once;
        }
        let kind = message.kind;
        let hit = Rule::first(&mut self.messages, queue, |rule| {
            let ranges = ranges_len(message);
            let len = match (rule.hit, rule.hit.part()) {
                (_, Some(NetPart::Rndis)) => return false,
                (MessageHit::Cut { .. }, Some(NetPart::Packet)) => {
                    PACKET_PART + ranges + message.payload.len()
                }
                (_, Some(NetPart::Packet)) => PACKET_PART,
                (_, Some(NetPart::Ranges)) => ranges,
                (_, Some(NetPart::Nvsp) | None) => message.payload.len(),
            };
            rule.what == kind && rule.hit.changes(len)
        });
        let Some(hit) = hit else { return Fate::Once };
        self.count += 1;
        let asked = message.transfer.is_some();
        match hit {
            MessageHit::Lose => return Fate::Lost,
            MessageHit::Repeat => {
                if asked {
                    self.repeated.push((queue, message.id));
                }
                return Fate::Twice;
            }
            MessageHit::Cut {
                part: NetPart::Ranges,
                len,
            } => cut_ranges(message, len as usize),
            MessageHit::Cut {
                part: NetPart::Packet,
                len,
            } => {
                let left = (len as usize).saturating_sub(PACKET_PART);
                let payload = left.saturating_sub(ranges_len(message));
                message.payload.truncate(payload);
                cut_ranges(message, left);
            }
            MessageHit::Cut { len, .. } => message.payload.truncate(len as usize),
            MessageHit::Patch {
                part,
                offset,
                width,
                value,
            } => {
                let id = message.id;
                patch_message(message, part, offset, width, value);
                if asked && message.id != id {
                    self.aliases.push((queue, message.id, id));
                }
            }
        }
        Fate::Once
    }

    /// The guest may complete a transaction that is none.
    pub(crate) fn allow(&mut self, queue: u16, id: u64) {
        self.repeated.push((queue, id));
    }

    /// The transaction that the guest means by an id.
    pub(crate) fn real_id(&mut self, queue: u16, id: u64) -> u64 {
        let found = self
            .aliases
            .iter()
            .position(|(q, alias, _)| (*q, *alias) == (queue, id));
        found.map_or(id, |at| self.aliases.swap_remove(at).2)
    }

    /// Whether a transaction may be completed that is completed already.
    pub(crate) fn take_repeated(&mut self, queue: u16, id: u64) -> bool {
        let found = self.repeated.iter().position(|r| *r == (queue, id));
        found.is_some_and(|at| {
            self.repeated.swap_remove(at);
            true
        })
    }

    /// A channel is closed.
    pub(crate) fn forget_channel(&mut self, queue: u16) {
        self.aliases.retain(|(q, ..)| *q != queue);
        self.repeated.retain(|(q, _)| *q != queue);
    }
}

impl MessageHit {
    fn part(&self) -> Option<NetPart> {
        match self {
            Self::Patch { part, .. } | Self::Cut { part, .. } => Some(*part),
            Self::Repeat | Self::Lose => None,
        }
    }

    /// Whether a part of `len` bytes has what this changes. If not, the fault waits for a message that has.
    fn changes(&self, len: usize) -> bool {
        match *self {
            Self::Patch { offset, width, .. } => {
                (offset as usize).saturating_add(width.into()) <= len
            }
            Self::Cut { len: left, .. } => (left as usize) < len,
            Self::Repeat | Self::Lose => true,
        }
    }
}

/// Bytes of [`NetPart::Ranges`].
fn ranges_len(message: &Message) -> usize {
    message.transfer.as_ref().map_or(0, |(header, ranges)| {
        header.as_bytes().len() + ranges.as_bytes().len()
    })
}

/// Leaves the ranges that `len` bytes have room for, behind their header, which stays.
fn cut_ranges(message: &mut Message, len: usize) {
    if let Some((header, ranges)) = &mut message.transfer {
        let left = len.saturating_sub(header.as_bytes().len());
        ranges.truncate(left / size_of::<TransferRange>());
    }
}

fn patch(bytes: &mut [u8], offset: u32, width: u8, value: u64) {
    let value = value.to_le_bytes();
    for (n, byte) in value.iter().take(width.into()).enumerate() {
        if let Some(to) = bytes.get_mut((offset as usize).saturating_add(n)) {
            *to = *byte;
        }
    }
}

fn patch_message(message: &mut Message, part: NetPart, offset: u32, width: u8, value: u64) {
    match part {
        NetPart::Packet => {
            // As in a descriptor; lengths are the ring's.
            let mut bytes = [0; PACKET_PART];
            bytes[..2].copy_from_slice(message.packet_type.as_bytes());
            bytes[6..8].copy_from_slice(message.flags.as_bytes());
            bytes[8..].copy_from_slice(&message.id.to_le_bytes());
            patch(&mut bytes, offset, width, value);
            message.packet_type = PacketType(u16::from_le_bytes([bytes[0], bytes[1]]));
            message.flags = PacketFlags::from_bits_retain(u16::from_le_bytes([bytes[6], bytes[7]]));
            if let Ok([_, id]) = <[u64; 2]>::read_from_bytes(&bytes) {
                message.id = id;
            }
        }
        NetPart::Ranges => {
            let Some((header, ranges)) = &mut message.transfer else {
                return;
            };
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend_from_slice(ranges.as_bytes());
            patch(&mut bytes, offset, width, value);
            if let Ok((new, rest)) = FromBytes::read_from_prefix(&bytes) {
                *header = new;
                *ranges = rest
                    .chunks_exact(size_of::<TransferRange>())
                    .filter_map(|range| TransferRange::read_from_bytes(range).ok())
                    .collect();
            }
        }
        NetPart::Nvsp => patch(&mut message.payload, offset, width, value),
        NetPart::Rndis => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus_proto::packet::TransferPageHeader;

    /// A packet of 16 + 24 + 40 bytes: descriptor, two ranges behind their header, NVSP message.
    fn data() -> Message {
        let range = TransferRange {
            byte_count: 60,
            byte_offset: 0,
        };
        let header = TransferPageHeader::read_from_bytes(&[0; 8]).expect("eight bytes");
        Message {
            transfer: Some((header, vec![range; 2])),
            ..Message::notice(NetMessage::Data, &[7; 40])
        }
    }

    fn armed(len: u32) -> Faults {
        let mut faults = Faults::default();
        let cut = NetFault::Cut {
            message: NetMessage::Data,
            part: NetPart::Packet,
            len,
        };
        let armed = faults.arm(None, None, 1, 0, &cut, 0);
        assert_eq!(armed, Ok(Armed::Later));
        faults
    }

    #[test]
    fn a_packet_is_cut_anywhere_behind_its_descriptor() {
        for (len, ranges, payload) in [
            (79, 2, 39),
            (60, 2, 20),
            (40, 2, 0),
            (39, 1, 0),
            (24, 0, 0),
            (16, 0, 0),
        ] {
            let (mut faults, mut message) = (armed(len), data());
            assert_eq!(faults.on_message(0, &mut message), Fate::Once);
            assert_eq!(faults.count, 1, "cut to {len}");
            let (_, left) = message.transfer.expect("ranges");
            assert_eq!((left.len(), message.payload.len()), (ranges, payload));
        }
        // As long as that it is already: the fault waits for a longer one.
        let (mut faults, mut message) = (armed(80), data());
        faults.on_message(0, &mut message);
        assert_eq!((faults.count, message.payload.len()), (0, 40));
        message.payload.push(7);
        faults.on_message(0, &mut message);
        assert_eq!((faults.count, message.payload.len()), (1, 40));
    }

    #[test]
    fn without_a_descriptor_there_is_no_packet() {
        let cut = NetFault::Cut {
            message: NetMessage::Data,
            part: NetPart::Packet,
            len: 15,
        };
        assert!(Faults::default().arm(None, None, 1, 0, &cut, 0).is_err());
    }
}
