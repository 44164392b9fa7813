// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Frames from the guest.

use std::collections::VecDeque;

use hv_net::{frame, Sent};
use hv_vmbus_host::device::{DeviceIo, RefTime, TICKS_PER_MS};
use hvctl::NetDirection;
use vmbus_proto::net::nvsp::{ChannelType, NvspStatus, SendRndisPacket, NO_SECTION};
use vmbus_proto::net::packet::{LargeSend, PacketInfo, ReceivedPacket, Receiver, TxChecksum};
use vmbus_proto::packet::{Packet, PacketKind};

use crate::buffers::read_ram;
use crate::faults::FrameHit;
use crate::nic::Nic;
use crate::offload::LSO_MAX_SIZE;
use crate::rndis::State;

/// Bytes of RNDIS messages in one packet: twice the largest that Linux sends, which is 64 KiB and headers.
const MAX_MESSAGES: usize = 256 << 10;
/// Frames in one packet at most: a guest is told 8.
const MAX_FRAMES: usize = 1024;
/// Bytes that wait for the back end; then the guest's rings are left alone.
const MAX_WAITING: usize = 1 << 20;
/// How long the back end may be full before frames are thrown away, as a switch does: so two guests that wait for each
/// other go on.
const PATIENCE: RefTime = 500 * TICKS_PER_MS;
/// The largest packet to be segmented counts from the IP header or from the frame's start, as guests understand it.
const LSO_SLACK: usize = 64;

/// What waits for the back end, in order.
enum Item {
    Frame(Vec<u8>),
    /// All frames of a packet have gone.
    Done {
        index: u16,
        epoch: u64,
        id: u64,
        status: NvspStatus,
    },
}

/// Why a frame is not sent.
enum Unfit {
    /// It is longer than the MTU allows. No violation: what a guest had queued before it took a smaller MTU comes after
    /// that, too.
    TooLong,
    /// It is not as its guest says.
    Wrong(String),
}

impl Unfit {
    fn not_offered(what: &str) -> Self {
        Self::Wrong(format!("{what}, which is not offered"))
    }
}

/// Frames from the guest on their way.
#[derive(Default)]
pub(crate) struct Tx {
    waiting: VecDeque<Item>,
    bytes: usize,
    /// Since when the back end has been full.
    full_since: Option<RefTime>,
    /// The messages at hand.
    buf: Vec<u8>,
}

impl Tx {
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= MAX_WAITING
    }

    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
        self.full_since = None;
    }

    pub(crate) fn deadline(&self) -> Option<RefTime> {
        self.full_since.map(|since| since.saturating_add(PATIENCE))
    }
}

impl Nic {
    /// RNDIS messages from the guest.
    pub(crate) fn on_rndis(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        packet: &Packet<'_>,
        message: &SendRndisPacket,
    ) {
        let mut buf = std::mem::take(&mut self.tx.buf);
        buf.clear();
        let status = match self.gather(io, packet, message, &mut buf) {
            Ok(()) if message.channel == ChannelType::CONTROL => {
                if index == 0 {
                    self.on_request(io, &buf);
                    NvspStatus::SUCCESS
                } else {
                    io.violation(format!("RNDIS request on sub-channel {index}"));
                    NvspStatus::FAIL
                }
            }
            Ok(()) => {
                self.queue(index).tx_messages += 1;
                self.on_frames(io, index, &buf)
            }
            Err(text) => {
                io.violation(text);
                self.counters.tx_malformed += 1;
                NvspStatus::FAIL
            }
        };
        self.tx.buf = buf;
        if !packet.descriptor.wants_completion() {
            return;
        }
        let (id, epoch) = (
            packet.transaction_id(),
            self.channel(index).map(|c| c.epoch),
        );
        let Some(epoch) = epoch else { return };
        if self.tx.waiting.is_empty() {
            self.complete_frames(io, index, epoch, id, status);
        } else {
            self.tx.waiting.push_back(Item::Done {
                index,
                epoch,
                id,
                status,
            });
        }
    }

    /// Copies the messages: what is in a send section, and then what is in the packet's ranges (`netvsc.c`, `netvsc_send`:
    /// the last message's headers may be in the section and its frame in ranges).
    fn gather(
        &mut self,
        io: &DeviceIo<'_>,
        packet: &Packet<'_>,
        message: &SendRndisPacket,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let (section, len) = (message.section_index, message.section_size);
        if section != NO_SECTION {
            let good = self
                .send
                .as_ref()
                .is_some_and(|send| send.read(section, len, out));
            if !good {
                return Err(format!("{len} bytes of send section {section}"));
            }
            self.counters.tx_sections += 1;
        }
        if let PacketKind::GpaDirect(ranges) = packet.kind {
            if ranges.total_bytes() > (MAX_MESSAGES - out.len()) as u64 {
                return Err(format!("{} bytes in pages", ranges.total_bytes()));
            }
            for range in ranges.iter() {
                let mut offset = u64::from(range.byte_offset);
                let mut left = range.byte_count as usize;
                for pfn in range.pfns() {
                    let n = left.min(vmbus_proto::PAGE_SIZE - offset as usize);
                    let gpa = pfn.checked_mul(vmbus_proto::PAGE_SIZE as u64);
                    if !gpa.is_some_and(|gpa| read_ram(io.ram(), gpa + offset, n, out)) {
                        return Err(format!("page frame {pfn:#x} is not RAM"));
                    }
                    left -= n;
                    offset = 0;
                }
            }
            self.counters.tx_gpa_direct += 1;
        }
        Ok(())
    }

    /// Takes frames apart and sends them.
    fn on_frames(&mut self, io: &mut DeviceIo<'_>, index: u16, messages: &[u8]) -> NvspStatus {
        match self.rndis.state {
            State::Initialized => {}
            // What was on its way when HALT came on another channel.
            State::Halted => return NvspStatus::SUCCESS,
            State::Fresh => {
                io.violation("frames before RNDIS INITIALIZE");
                return NvspStatus::FAIL;
            }
        }
        let mut rest = messages;
        for n in 0.. {
            let read = if n < MAX_FRAMES {
                ReceivedPacket::read(rest, rest.len() as u32, Receiver::Host)
                    .map_err(|e| e.to_string())
            } else {
                Err(format!("more than {MAX_FRAMES} frames in a packet"))
            };
            let packet = match read {
                Ok(packet) => packet,
                Err(text) => {
                    io.violation(text);
                    self.counters.tx_malformed += 1;
                    return NvspStatus::INVALID_RNDIS_PKT;
                }
            };
            let start = packet.data_offset as usize;
            // They lie in the message.
            let frame = &rest[start..start + packet.data_len as usize];
            self.on_frame(io, index, frame, &packet.info);
            rest = &rest[packet.message_len as usize..];
            if rest.is_empty() {
                break;
            }
        }
        NvspStatus::SUCCESS
    }

    /// A frame, or a packet to make frames of.
    fn on_frame(&mut self, io: &mut DeviceIo<'_>, index: u16, frame: &[u8], info: &PacketInfo) {
        let queue = self.queue(index);
        queue.tx_packets += 1;
        queue.tx_bytes += frame.len() as u64;
        if !self.link_now().up {
            self.counters.tx_no_link += 1;
            return;
        }
        match self.finish(io, index, frame, info) {
            Ok(()) => {}
            Err(Unfit::TooLong) => self.counters.tx_too_long += 1,
            Err(Unfit::Wrong(text)) => {
                io.violation(text);
                self.counters.tx_malformed += 1;
            }
        }
    }

    /// Does to a frame what its guest wants done, and sends it.
    fn finish(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        frame: &[u8],
        info: &PacketInfo,
    ) -> Result<(), Unfit> {
        let tag = info.vlan().map(|vlan| vlan.tci());
        if tag.is_some() {
            if !self.rndis.facts.offloads.vlan {
                return Err(Unfit::not_offered("VLAN tag as per-packet information"));
            }
            self.counters.tx_vlan += 1;
        }
        let tagged = frame.get(12..14) == Some(&[0x81, 0]);
        let most = self.rndis.max_frame() + if tagged { frame::VLAN_TAG } else { 0 };
        if let Some(large) = info.large_send() {
            return self.segment(io, index, frame, large, tag, most);
        }
        if frame.len() > most {
            return Err(Unfit::TooLong);
        }
        let mut frame = frame.to_vec();
        if let Some(checksum) = info.tx_checksum() {
            let offered = &self.config.offloads;
            for (flags, on) in [
                (TxChecksum::IPV4 | TxChecksum::TCP, offered.tcp4),
                (TxChecksum::IPV6 | TxChecksum::TCP, offered.tcp6),
                (TxChecksum::IPV4 | TxChecksum::UDP, offered.udp4),
                (TxChecksum::IPV6 | TxChecksum::UDP, offered.udp6),
                (TxChecksum::IPV4 | TxChecksum::IP_HEADER, offered.ip4),
            ] {
                if checksum.0 & flags == flags && !on {
                    return Err(Unfit::not_offered("checksum to be filled in"));
                }
            }
            frame::fill(&mut frame, checksum)
                .map_err(|e| Unfit::Wrong(format!("checksum: {e}")))?;
            self.counters.tx_checksummed += 1;
        }
        self.tag_and_wire(io, index, frame, tag);
        Ok(())
    }

    /// Cuts up a large packet.
    fn segment(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        frame: &[u8],
        large: LargeSend,
        tag: Option<u16>,
        most: usize,
    ) -> Result<(), Unfit> {
        let offered = &self.config.offloads;
        let on = if large.is_ipv6() {
            offered.lso6
        } else {
            offered.lso4
        };
        if !on || !large.is_v2() {
            return Err(Unfit::not_offered("packet to be segmented"));
        }
        if frame.len() > LSO_MAX_SIZE as usize + LSO_SLACK {
            let text = format!("packet of {} bytes to be segmented", frame.len());
            return Err(Unfit::Wrong(text));
        }
        let mut pieces =
            frame::segments(frame, large).map_err(|e| Unfit::Wrong(format!("large send: {e}")))?;
        let mut piece = Vec::new();
        while pieces.next_into(&mut piece) {
            if piece.len() > most {
                return Err(Unfit::TooLong);
            }
            self.tag_and_wire(io, index, std::mem::take(&mut piece), tag);
        }
        self.counters.tx_lso += 1;
        Ok(())
    }

    fn tag_and_wire(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        mut frame: Vec<u8>,
        tag: Option<u16>,
    ) {
        if let Some(tci) = tag {
            frame::insert_vlan(&mut frame, tci);
        }
        self.wire(io, index, frame);
    }

    /// A finished frame, which a fault may hit.
    pub(crate) fn wire(&mut self, io: &mut DeviceIo<'_>, index: u16, mut frame: Vec<u8>) {
        self.queue(index).tx_frames += 1;
        match self.faults.on_frame(NetDirection::Tx, index) {
            None => {}
            Some(FrameHit::Drop) => return,
            Some(FrameHit::Delay(ticks)) => {
                self.rx
                    .delay(io.now() + ticks, NetDirection::Tx, index, frame);
                return;
            }
            Some(FrameHit::Duplicate) => self.reorder_tx(io, index, frame.clone()),
            Some(FrameHit::Corrupt) => {
                if let Some(byte) = frame.last_mut() {
                    *byte ^= 0xff;
                }
            }
        }
        self.reorder_tx(io, index, frame);
    }

    fn reorder_tx(&mut self, io: &mut DeviceIo<'_>, index: u16, frame: Vec<u8>) {
        if self.hold_for_reorder(io, NetDirection::Tx, index, &frame) {
            return;
        }
        self.send_frame(frame);
    }

    /// Gives a frame to the back end, or queues it behind those that wait.
    pub(crate) fn send_frame(&mut self, frame: Vec<u8>) {
        if self.tx.waiting.is_empty() {
            match self.backend.send(&frame) {
                Sent::Taken => return,
                Sent::Dropped => {
                    self.counters.tx_dropped += 1;
                    return;
                }
                Sent::Full => self.counters.tx_stalled += 1,
            }
        }
        self.tx.bytes += frame.len();
        self.tx.waiting.push_back(Item::Frame(frame));
    }

    /// Goes on with what waits for the back end.
    pub(crate) fn flush_tx(&mut self, io: &mut DeviceIo<'_>) {
        let was_full = self.tx.is_full();
        while let Some(item) = self.tx.waiting.pop_front() {
            let frame = match item {
                Item::Done {
                    index,
                    epoch,
                    id,
                    status,
                } => {
                    self.complete_frames(io, index, epoch, id, status);
                    continue;
                }
                Item::Frame(frame) => frame,
            };
            match self.backend.send(&frame) {
                Sent::Taken => {}
                Sent::Dropped => self.counters.tx_dropped += 1,
                Sent::Full => {
                    let now = io.now();
                    let since = *self.tx.full_since.get_or_insert(now);
                    if now.saturating_sub(since) < PATIENCE {
                        self.tx.waiting.push_front(Item::Frame(frame));
                        break;
                    }
                    self.counters.tx_dropped += 1;
                    self.tx.bytes -= frame.len();
                    continue;
                }
            }
            self.tx.full_since = None;
            self.tx.bytes -= frame.len();
        }
        if self.tx.waiting.is_empty() {
            self.tx.full_since = None;
        }
        if was_full && !self.tx.is_full() {
            self.resume_all(io);
        }
    }

    /// Has all rings looked at again.
    pub(crate) fn resume_all(&mut self, io: &mut DeviceIo<'_>) {
        for (index, chan) in (0..).zip(&self.channels) {
            if chan.is_some() {
                io.resume(index);
            }
        }
    }
}
