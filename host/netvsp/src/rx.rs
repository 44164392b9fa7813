// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Frames for the guest.

use std::collections::BTreeMap;

use hv_net::frame::{self, Coalesced, Ip, Layers, VLAN_TAG};
use hv_vmbus_host::device::{DeviceIo, RefTime, TICKS_PER_MS};
use hvctl::{NetDirection, NetMessage};
use vmbus_proto::net::packet::{
    PacketHeader, PacketId, PacketInfo, RxChecksum, SliceSink, TxChecksum, Vlan,
    ETHERNET_HEADER_SIZE, FIXED_SIZE, MAX_HEADER_SIZE,
};
use vmbus_proto::packet::TransferRange;

use crate::faults::{slot, FrameHit, REORDER_TICKS};
use crate::nic::Nic;
use crate::rndis::State;

/// Frames in one transfer-page packet at most, as Hyper-V does (OpenVMM `netvsp`, `NVSP_MAX_PACKETS_PER_RECEIVE`).
const MAX_RANGES: usize = 375;
/// Frames of a channel that wait, after which none are taken from the back end.
const MAX_WAITING: usize = 512;
/// Frames taken from the back end before others get their turn.
const PULL_BUDGET: usize = 512;
/// How long a frame waits for the guest before it is thrown away.
const PATIENCE: RefTime = 1000 * TICKS_PER_MS;

/// A frame for the guest, or several that were coalesced.
pub(crate) struct RxFrame {
    data: Vec<u8>,
    info: PacketInfo,
    /// Per-packet information in place of `info`.
    raw_info: Option<Vec<u8>>,
    /// Thrown away then.
    expires: RefTime,
}

/// A frame that a fault holds back.
struct Held {
    direction: NetDirection,
    index: u16,
    frame: Vec<u8>,
}

/// Frames on their way, and those that faults hold back.
#[derive(Default)]
pub(crate) struct Rx {
    /// By the time at which they are due, and a number that tells them apart.
    delayed: BTreeMap<(RefTime, u64), Held>,
    next_delayed: u64,
    /// To the guest, from it.
    reorder: [Vec<(u16, Vec<u8>)>; 2],
    reorder_until: Option<RefTime>,
    pub(crate) buf: Vec<u8>,
    scratch: Vec<u8>,
    next_packet_id: u16,
}

impl Rx {
    pub(crate) fn forget(&mut self) {
        self.delayed.clear();
        self.reorder = Default::default();
        self.reorder_until = None;
    }

    pub(crate) fn delay(
        &mut self,
        due: RefTime,
        direction: NetDirection,
        index: u16,
        frame: Vec<u8>,
    ) {
        let held = Held {
            direction,
            index,
            frame,
        };
        self.delayed.insert((due, self.next_delayed), held);
        self.next_delayed += 1;
    }

    /// When something is due that a fault holds back.
    pub(crate) fn fault_deadline(&self) -> Option<RefTime> {
        let delayed = self.delayed.first_key_value().map(|((due, _), _)| *due);
        [delayed, self.reorder_until].into_iter().flatten().min()
    }
}

impl Nic {
    /// Takes frames from the back end, as long as the guest takes them from us.
    pub(crate) fn pull(&mut self, io: &mut DeviceIo<'_>) {
        let mut buf = std::mem::take(&mut self.rx.buf);
        for n in 0.. {
            let full = self
                .channels
                .iter()
                .flatten()
                .any(|chan| chan.waiting.len() >= MAX_WAITING);
            if full {
                // Looked at again when the guest gives sections back.
                break;
            }
            if n == PULL_BUDGET {
                io.waker().wake();
                break;
            }
            if !self.backend.receive(&mut buf) {
                break;
            }
            self.arrive(io, &buf);
        }
        self.rx.buf = buf;
        self.flush_coalesced(io);
    }

    /// A frame from the back end.
    fn arrive(&mut self, io: &mut DeviceIo<'_>, frame: &[u8]) {
        if !self.rndis.is_running() || self.recv.is_none() || !self.link_now().up {
            self.counters.rx_not_running += 1;
            return;
        }
        let Some(destination) = frame.first_chunk::<6>() else {
            self.counters.rx_filtered += 1;
            return;
        };
        let tagged = frame.get(12..14) == Some(&[0x81, 0]);
        if frame.len() > self.rndis.max_frame() + if tagged { VLAN_TAG } else { 0 } {
            self.counters.rx_too_long += 1;
            return;
        }
        if frame.len() < ETHERNET_HEADER_SIZE as usize || !self.rndis.wants(*destination) {
            self.counters.rx_filtered += 1;
            return;
        }
        let index = self.classify(frame);
        let mut frame = frame.to_vec();
        match self.faults.on_frame(NetDirection::Rx, index) {
            None => {}
            Some(FrameHit::Drop) => return,
            Some(FrameHit::Delay(ticks)) => {
                self.rx
                    .delay(io.now() + ticks, NetDirection::Rx, index, frame);
                return;
            }
            Some(FrameHit::Duplicate) => self.reorder_rx(io, index, frame.clone()),
            Some(FrameHit::Corrupt) => {
                if let Some(byte) = frame.last_mut() {
                    *byte ^= 0xff;
                }
            }
        }
        self.reorder_rx(io, index, frame);
    }

    fn reorder_rx(&mut self, io: &mut DeviceIo<'_>, index: u16, frame: Vec<u8>) {
        if !self.hold_for_reorder(io, NetDirection::Rx, index, &frame) {
            self.accept(io, index, frame);
        }
    }

    /// Holds a frame back if frames are to be reordered; whether it did.
    pub(crate) fn hold_for_reorder(
        &mut self,
        io: &mut DeviceIo<'_>,
        direction: NetDirection,
        index: u16,
        frame: &[u8],
    ) -> bool {
        let window = self.faults.window[slot(direction)];
        if window <= 1 {
            return false;
        }
        self.faults.count += 1;
        let held = &mut self.rx.reorder[slot(direction)];
        held.push((index, frame.to_vec()));
        if held.len() >= window {
            self.release_reordered(io, direction);
        } else if self.rx.reorder_until.is_none() {
            self.rx.reorder_until = Some(io.now() + REORDER_TICKS);
        }
        true
    }

    fn release_reordered(&mut self, io: &mut DeviceIo<'_>, direction: NetDirection) {
        for (index, frame) in std::mem::take(&mut self.rx.reorder[slot(direction)])
            .into_iter()
            .rev()
        {
            self.go_on(io, direction, index, frame);
        }
    }

    fn go_on(
        &mut self,
        io: &mut DeviceIo<'_>,
        direction: NetDirection,
        index: u16,
        frame: Vec<u8>,
    ) {
        match direction {
            NetDirection::Rx => self.accept(io, index, frame),
            NetDirection::Tx => self.send_frame(frame),
        }
    }

    /// Goes on with what faults held back, as far as it is due.
    pub(crate) fn check_faults(&mut self, io: &mut DeviceIo<'_>) {
        let now = io.now();
        if self.faults.stalled_until.is_some_and(|t| t <= now) {
            self.faults.stalled_until = None;
        }
        while let Some(entry) = self.rx.delayed.first_entry().filter(|e| e.key().0 <= now) {
            let Held {
                direction,
                index,
                frame,
            } = entry.remove();
            self.go_on(io, direction, index, frame);
        }
        if self.rx.reorder_until.is_some_and(|t| t <= now) {
            self.release_all(io);
        }
    }

    /// Goes on with all frames that wait for others to be reordered with.
    pub(crate) fn release_all(&mut self, io: &mut DeviceIo<'_>) {
        self.rx.reorder_until = None;
        self.release_reordered(io, NetDirection::Rx);
        self.release_reordered(io, NetDirection::Tx);
    }

    /// Goes on with all delayed frames.
    pub(crate) fn release_delayed(&mut self, io: &mut DeviceIo<'_>) {
        for (_, held) in std::mem::take(&mut self.rx.delayed) {
            self.go_on(io, held.direction, held.index, held.frame);
        }
    }

    /// The hash of a frame, if the guest wants frames spread and one can be had.
    fn hash(&self, frame: &[u8], layers: Option<&Layers>) -> Option<u32> {
        let rss = self.rndis.rss.as_ref()?;
        layers?.hash(frame, &rss.key, rss.hash)
    }

    /// The channel for a frame: the primary one for what cannot be hashed.
    fn classify(&self, frame: &[u8]) -> u16 {
        let Some(rss) = &self.rndis.rss else { return 0 };
        let hash = self.hash(frame, Layers::find(frame).as_ref());
        let entry = hash.and_then(|hash| rss.table.get(hash as usize % rss.table.len()));
        entry
            .copied()
            .filter(|index| {
                let chan = self.channels.get(usize::from(*index));
                chan.is_some_and(Option::is_some)
            })
            .unwrap_or(0)
    }

    /// Queues a frame on its channel, perhaps together with others.
    fn accept(&mut self, io: &mut DeviceIo<'_>, index: u16, mut frame: Vec<u8>) {
        let tci = if self.rndis.facts.offloads.vlan {
            frame::strip_vlan(&mut frame)
        } else {
            None
        };
        let enabled = &self.rndis.enabled;
        let coalesce = (enabled.rsc4 || enabled.rsc6)
            && match Layers::find(&frame) {
                Some(layers) if layers.ip == Ip::V4 => enabled.rsc4,
                Some(_) => enabled.rsc6,
                None => false,
            };
        if !coalesce {
            let checksum = frame::check(&frame);
            self.queue_checked(io, index, frame, tci, checksum);
            return;
        }
        let Some(chan) = self.channel(index) else {
            return;
        };
        let mut ready = Vec::new();
        chan.coalescer
            .push(frame, tci, &mut |merged| ready.push(merged));
        self.queue_merged(io, index, ready);
    }

    /// Queues what was held to be coalesced: the end of a batch.
    fn flush_coalesced(&mut self, io: &mut DeviceIo<'_>) {
        for index in 0..self.channels.len() as u16 {
            let Some(chan) = self.channel(index) else {
                continue;
            };
            if chan.coalescer.is_empty() {
                continue;
            }
            let mut ready = Vec::new();
            chan.coalescer.flush(&mut |merged| ready.push(merged));
            self.queue_merged(io, index, ready);
        }
    }

    fn queue_merged(&mut self, io: &mut DeviceIo<'_>, index: u16, ready: Vec<Coalesced>) {
        for mut merged in ready {
            if merged.segments > 1 {
                self.counters.rx_coalesced += u64::from(merged.segments);
                // A guest may have been told not to trust what the host says of checksums.
                if let Some(layers) = Layers::find(&merged.frame) {
                    let ip = match layers.ip {
                        Ip::V4 => TxChecksum::IPV4,
                        Ip::V6 => TxChecksum::IPV6,
                    };
                    let wanted = TxChecksum::new(ip | TxChecksum::TCP, 0);
                    let _ = frame::fill(&mut merged.frame, wanted);
                }
            }
            self.queue_checked(io, index, merged.frame, merged.vlan, merged.checksum);
        }
    }

    /// Queues a frame without VLAN tag, with what is known of it.
    fn queue_checked(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        frame: Vec<u8>,
        tci: Option<u16>,
        checksum: RxChecksum,
    ) {
        const FAILED: u32 = RxChecksum::IP_FAILED | RxChecksum::TCP_FAILED | RxChecksum::UDP_FAILED;
        let layers = Layers::find(&frame);
        let mut info = PacketInfo::NONE;
        if let Some(hash) = self.hash(&frame, layers.as_ref()) {
            info.set_hash(hash);
        }
        if let Some(tci) = tci {
            info.set_vlan(Vlan::from_tci(tci));
        }
        if let Some(layers) = layers {
            let enabled = &self.rndis.enabled;
            let (ip, tcp, udp) = match layers.ip {
                Ip::V4 => (enabled.ip4.rx, enabled.tcp4.rx, enabled.udp4.rx),
                Ip::V6 => (false, enabled.tcp6.rx, enabled.udp6.rx),
            };
            let mut told = 0;
            for (on, flags) in [
                (ip, RxChecksum::IP_SUCCEEDED | RxChecksum::IP_FAILED),
                (tcp, RxChecksum::TCP_SUCCEEDED | RxChecksum::TCP_FAILED),
                (udp, RxChecksum::UDP_SUCCEEDED | RxChecksum::UDP_FAILED),
            ] {
                if on {
                    told |= checksum.0 & flags;
                }
            }
            self.counters.rx_bad_checksum += u64::from(told & FAILED != 0);
            if told != 0 {
                info.set_rx_checksum(RxChecksum(told));
            }
        }
        self.queue_frame(io, index, frame, info, None);
    }

    pub(crate) fn queue_frame(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        data: Vec<u8>,
        info: PacketInfo,
        raw_info: Option<Vec<u8>>,
    ) {
        let index = if self.channel(index).is_some() {
            index
        } else {
            0
        };
        let (open, stalled) = (self.open_channels(), self.is_stalled());
        let allowed = match &self.recv {
            Some(recv) if !stalled => recv.allowance(index, open),
            _ => 0,
        };
        let Some(chan) = self.channel(index) else {
            return;
        };
        // What choked it may be over without a completion.
        chan.choked &= allowed == 0 || !chan.outbox.is_clear();
        if chan.choked {
            self.counters.rx_no_buffer += 1;
            return;
        }
        chan.waiting.push_back(RxFrame {
            data,
            info,
            raw_info,
            expires: io.now() + PATIENCE,
        });
    }

    /// When frames are thrown away.
    pub(crate) fn expiry(&self) -> Option<RefTime> {
        let fronts = self.channels.iter().flatten();
        fronts
            .filter_map(|chan| chan.waiting.front().map(|frame| frame.expires))
            .min()
    }

    /// Throws away what the guest did not take for too long.
    pub(crate) fn expire(&mut self, io: &mut DeviceIo<'_>) {
        if self.is_stalled() {
            return;
        }
        let now = io.now();
        for chan in self.channels.iter_mut().flatten() {
            let old = chan
                .waiting
                .front()
                .is_some_and(|frame| frame.expires <= now);
            if old {
                self.counters.rx_no_buffer += chan.waiting.len() as u64;
                chan.waiting.clear();
                chan.choked = true;
            }
        }
    }

    /// Sends waiting frames to the guest, as far as there are sections and room in the rings.
    pub(crate) fn deliver(&mut self, io: &mut DeviceIo<'_>) {
        if self.rndis.state != State::Initialized {
            return;
        }
        for index in 0..self.channels.len() as u16 {
            while self.deliver_packet(io, index) {}
        }
    }

    /// Sends one packet with as many frames as it can hold; whether to go on.
    fn deliver_packet(&mut self, io: &mut DeviceIo<'_>, index: u16) -> bool {
        let open = self.open_channels();
        let Some(Some(chan)) = self.channels.get_mut(usize::from(index)) else {
            return false;
        };
        if chan.waiting.is_empty() {
            return false;
        }
        if !chan.outbox.is_clear() {
            self.counters.rx_ring_full += 1;
            return false;
        }
        let Some(recv) = &mut self.recv else {
            return false;
        };
        let mut allowed = (recv.allowance(index, open) as usize).min(MAX_RANGES);
        // A frame needs several sections when it was coalesced.
        let room = (recv.section - MAX_HEADER_SIZE) as usize;
        let mut sections = Vec::new();
        let mut ranges = Vec::new();
        while let Some(frame) = chan.waiting.front() {
            let parts = frame.data.len().div_ceil(room).max(1);
            if parts > allowed {
                break;
            }
            allowed -= parts;
            let Some(frame) = chan.waiting.pop_front() else {
                break;
            };
            let queue = &mut self.queues[usize::from(index)];
            queue.rx_packets += 1;
            queue.rx_bytes += frame.data.len() as u64;
            let packet_id = self.rx.next_packet_id;
            if parts > 1 {
                self.rx.next_packet_id = packet_id.wrapping_add(1);
            }
            for (n, part) in frame.data.chunks(room).enumerate() {
                let mut info = frame.info;
                if parts > 1 {
                    info.set_id(PacketId::part(packet_id, n == 0, n + 1 == parts));
                }
                let Some(section) = recv.take() else { break };
                let scratch = &mut self.rx.scratch;
                write_message(scratch, part, info, frame.raw_info.as_deref());
                if ranges.is_empty() {
                    self.faults.on_rndis(index, NetMessage::Data, scratch);
                }
                let offset = recv.offset(section);
                let fits = scratch.len().min(recv.section as usize);
                recv.pages.write(offset as usize, &scratch[..fits]);
                sections.push(section);
                ranges.push(TransferRange {
                    byte_count: fits as u32,
                    byte_offset: offset,
                });
            }
        }
        if ranges.is_empty() {
            self.counters.rx_starved += 1;
            return false;
        }
        self.queue(index).rx_messages += 1;
        self.post_ranges(io, index, NetMessage::Data, sections, ranges);
        true
    }
}

/// Puts an RNDIS message with a frame, or a part of one, into `out`.
fn write_message(out: &mut Vec<u8>, data: &[u8], info: PacketInfo, raw_info: Option<&[u8]>) {
    let header = PacketHeader {
        data_len: data.len() as u32,
        padding: 0,
        info: if raw_info.is_some() {
            PacketInfo::NONE
        } else {
            info
        },
    };
    out.clear();
    out.resize(header.size() as usize, 0);
    header.write(&mut SliceSink(out));
    let mut put = |at: usize, value: u32| {
        out[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    if let Some(raw) = raw_info {
        let len = raw.len() as u32;
        // Length of the message; where the frame starts, from byte 8; bytes of information, at 36 from byte 8.
        put(4, header.message_len() + len);
        put(8, FIXED_SIZE - 8 + len);
        put(28, FIXED_SIZE - 8);
        put(32, len);
        out.extend_from_slice(raw);
    }
    out.extend_from_slice(data);
}
