// SPDX-License-Identifier: GPL-2.0

//! Packets to the host.
//!
//! A packet that fits a section of the send buffer is copied there, with the RNDIS headers before it; when another one follows at
//! once (`xmit_more`) it waits, and those that follow are put behind it, so that one message and one signal serve them all. Others
//! stay where they are: the headers go before the packet's data, or into the section of packets that wait already, and the message
//! names the memory (GPA-direct).
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use hv_vmbus::{
    buffer::BufferWriter,
    channel::{Endpoint, GpaRun, PacketFlags, PacketType, RingProducer, SendError, WriteError},
    ratelimited,
};
use kernel::prelude::*;
use vmbus_proto::net::{
    nvsp::{ChannelType, SendRndisPacket, NO_SECTION},
    packet::{LargeSend, PacketHeader, PacketInfo, SliceSink, TxChecksum, Vlan, MAX_HEADER_SIZE},
};

use crate::{
    net::{
        packet::{Runs, Skb},
        queue::TxControl,
        xdp::FrameBytes,
        TxFlags, TxHeld, TxPacket,
    },
    queue::Queue,
    sections::Sections,
};

mod large;
mod short;

/// Room before packets that the headers of a large one take.
pub(crate) const HEADROOM: u32 = (MAX_HEADER_SIZE + 7) & !7;

/// Pages that a message may name, the headers' among them: what hosts take (C: `MAX_PAGE_BUFFER_COUNT`).
const MAX_PAGES: u32 = 32;
/// A queue is stopped when less than one part in so many of the ring is free, and woken above twice that.
const LOW_WATER: u32 = 10;
const HIGH_WATER: u32 = 5;

/// What is noted with a message in flight.
#[derive(Clone, Copy)]
pub(crate) struct Note {
    pub(crate) section: u16,
    pub(crate) packets: u16,
    pub(crate) bytes: u32,
    /// Counted by the byte queue limit.
    pub(crate) limited: bool,
}

impl Note {
    #[inline]
    fn to_u64(self) -> u64 {
        u64::from(self.section) << 48
            | u64::from(self.limited) << 47
            | u64::from(self.packets & 0x7fff) << 32
            | u64::from(self.bytes)
    }

    #[inline]
    pub(crate) fn from_u64(note: u64) -> Self {
        Self {
            section: (note >> 48) as u16,
            packets: (note >> 32) as u16 & 0x7fff,
            bytes: note as u32,
            limited: note >> 47 & 1 != 0,
        }
    }
}

/// Packets in a section that wait for more.
struct Batch {
    section: u16,
    /// Bytes of the section that are used.
    used: u32,
    packets: u16,
    bytes: u32,
    /// The last packet. Those before have been let go of; this one is kept until the host has taken all, so that sockets feel how
    /// fast the host is.
    skb: Option<Skb>,
}

/// What belongs to who holds the queue's lock.
pub(crate) struct TxState {
    batch: Option<Batch>,
}

impl TxState {
    pub(crate) fn new() -> Self {
        Self { batch: None }
    }

    pub(crate) fn forget(&mut self) {
        self.batch = None;
    }
}

/// A message to the host.
struct Message<'a> {
    /// The section it is in, or begins in, and how much of it.
    section: u16,
    section_bytes: u32,
    /// The rest.
    ranges: &'a [GpaRun],
    note: Note,
    /// Bytes that the byte queue limit is to hear of.
    limit: u32,
}

impl Message<'_> {
    /// Writes the ring packet.
    #[inline(always)]
    fn write(&self, ring: &mut RingProducer<'_>, id: u64) -> Result<(), WriteError> {
        let index = match self.section {
            Sections::NONE => NO_SECTION,
            section => section.into(),
        };
        let words = SendRndisPacket {
            channel: ChannelType::DATA,
            section_index: index,
            section_size: self.section_bytes,
        }
        .words();
        if self.ranges.is_empty() {
            let (kind, flags) = (PacketType::DATA_INBAND, PacketFlags::COMPLETION_REQUESTED);
            return ring.send_words(0, kind, flags, id, words);
        }
        ring.send_gpa_ranges(0, self.ranges, id, words)
    }
}

/// Where a packet goes.
#[derive(Clone, Copy)]
enum Way {
    /// Behind those that wait.
    Append,
    /// Its headers behind those that wait.
    AppendHeaders,
    /// Into a section of its own.
    Copy(u16),
    /// Not into a section.
    Direct,
}

/// Why a packet was not sent.
enum Failed {
    /// No room: the queue was stopped. Try again.
    Full,
    /// It cannot be: let go of it.
    Lost,
}

impl Queue {
    /// What the host is to do about `packet`. `None`: the packet cannot be sent.
    #[inline]
    fn packet_info(&self, packet: &mut TxPacket<'_>) -> Option<PacketInfo> {
        let eth = &self.link.shared.eth;
        let mut info = PacketInfo::NONE;
        if packet.flags().any(TxFlags::VLAN_INSIDE) && packet.take_vlan().is_err() {
            eth.vlan_error.bump();
            return None;
        }
        let flags = packet.flags();
        if packet.hash() != 0 && self.link.queues.load(Ordering::Relaxed) > 1 {
            info.set_hash(packet.hash());
        }
        if flags.any(TxFlags::VLAN) {
            info.set_vlan(Vlan::from_tci(packet.vlan_tci()));
        }
        if flags.any(TxFlags::GSO) {
            info.set_large_send(LargeSend::new(
                flags.any(TxFlags::IPV6),
                packet.segment_size().into(),
                packet.transport_offset().into(),
            ));
        } else if flags.any(TxFlags::PARTIAL) {
            match self.checksum_flags(flags) {
                Some(what) => {
                    let offset = packet.transport_offset().into();
                    info.set_tx_checksum(TxChecksum::new(what, offset));
                }
                None => packet.fill_checksum().ok()?,
            }
        }
        Some(info)
    }

    /// How to ask the host for the checksum; `None` when it does not fill in such.
    #[inline]
    fn checksum_flags(&self, flags: TxFlags) -> Option<u32> {
        let what = checksums::kind(flags);
        (self.link.checksums.load(Ordering::Relaxed) >> what & 1 != 0).then_some(what)
    }

    /// Sends a packet. See [`NetDriver::transmit`](crate::net::NetDriver::transmit).
    #[inline(always)]
    pub(crate) fn transmit<'p>(
        &self,
        packet: TxPacket<'p>,
        held: &mut TxHeld<'_>,
    ) -> Result<(), TxPacket<'p>> {
        match self.transmit_short(packet, held) {
            Ok(()) => Ok(()),
            Err(packet) => self.transmit_long(packet, held),
        }
    }

    /// Sends what has no short way.
    #[inline(never)]
    fn transmit_long<'p>(
        &self,
        packet: TxPacket<'p>,
        held: &mut TxHeld<'_>,
    ) -> Result<(), TxPacket<'p>> {
        match self.transmit_large(packet, held) {
            Ok(()) => Ok(()),
            Err(packet) => self.transmit_any(packet, held),
        }
    }

    /// Sends any packet.
    #[inline(never)]
    fn transmit_any<'p>(
        &self,
        mut packet: TxPacket<'p>,
        held: &mut TxHeld<'_>,
    ) -> Result<(), TxPacket<'p>> {
        let eth = &self.link.shared.eth;
        let (Some(endpoint), Some(sections), Some((state, mut queue))) = (
            self.endpoint.get(),
            self.link.sections.get(),
            self.tx.get(held),
        ) else {
            eth.tx_dropped.bump();
            return Ok(());
        };
        let Some(info) = self.packet_info(&mut packet) else {
            return self.not_sent(Failed::Lost, packet, state, &mut queue, endpoint);
        };
        let header = PacketHeader {
            data_len: packet.len(),
            padding: 0,
            info,
        };
        let way = self.choose(&packet, &header, state, sections);
        let result = match way {
            Way::Append | Way::Copy(_) if !packet.flags().any(TxFlags::GSO) => {
                self.send_copy(packet, header, way, state, &mut queue, endpoint, sections)
            }
            _ => self.send_in_place(packet, header, way, state, &mut queue, endpoint, sections),
        };
        result.or_else(|(e, packet)| self.not_sent(e, packet, state, &mut queue, endpoint))
    }

    /// What becomes of a packet that was not sent.
    #[cold]
    fn not_sent<'p>(
        &self,
        why: Failed,
        packet: TxPacket<'p>,
        state: &mut TxState,
        queue: &mut TxControl<'_>,
        endpoint: &Endpoint,
    ) -> Result<(), TxPacket<'p>> {
        let eth = &self.link.shared.eth;
        if let Failed::Full = why {
            if queue.is_stopped() {
                eth.tx_busy.bump();
                return Err(packet);
            }
            // Nothing is in flight whose completion would wake the queue.
            eth.tx_no_space.bump();
        }
        eth.tx_dropped.bump();
        // Others may have waited for this one, and it may be the last for long.
        self.flush_or_keep(state, queue, endpoint);
        Ok(())
    }

    /// Chooses the way of a packet. A section that this takes is the caller's to free.
    #[inline]
    fn choose(
        &self,
        packet: &TxPacket<'_>,
        header: &PacketHeader,
        state: &TxState,
        sections: &Sections,
    ) -> Way {
        let align = self.link.alignment.load(Ordering::Relaxed);
        let max = self.link.max_packets.load(Ordering::Relaxed);
        let size = sections.size();
        // Lengths are below 2^20, the alignment is at most 4096.
        let len = header.message_len().wrapping_add(align);
        // Headers that are to be changed are copied first, which the copy into a section would not need.
        let small = len < size && !packet.flags().any(TxFlags::GSO);
        if let Some(batch) = &state.batch {
            if u32::from(batch.packets) < max {
                if small && batch.used.wrapping_add(len) < size {
                    return Way::Append;
                }
                if !small && batch.used.wrapping_add(header.size()) < size {
                    return Way::AppendHeaders;
                }
            }
        }
        if small {
            match sections.take(self.index.into()) {
                Some(section) => return Way::Copy(section),
                None => self.link.shared.eth.tx_send_full.bump(),
            }
        }
        Way::Direct
    }

    /// Copies a packet into a section, and sends that, or waits for more.
    #[inline]
    #[allow(clippy::too_many_arguments)] // One caller; it would be a structure of one use.
    fn send_copy<'p>(
        &self,
        packet: TxPacket<'p>,
        mut header: PacketHeader,
        way: Way,
        state: &mut TxState,
        queue: &mut TxControl<'_>,
        endpoint: &Endpoint,
        sections: &Sections,
    ) -> Result<(), (Failed, TxPacket<'p>)> {
        let (section, used, fresh) = match (way, &state.batch) {
            (Way::Copy(section), Some(_)) => {
                // Those before it go first.
                if let Err(e) = self.flush(state, queue, endpoint) {
                    sections.free(section);
                    return Err((e, packet));
                }
                (section, 0, section)
            }
            (Way::Copy(section), None) => (section, 0, section),
            (_, Some(batch)) => (batch.section, batch.used, Sections::NONE),
            (_, None) => return Err((Failed::Lost, packet)),
        };
        let more = packet.flags().any(TxFlags::MORE) && !queue.is_blocked();
        if more {
            let align = self.link.alignment.load(Ordering::Relaxed);
            header.padding = header.message_len().wrapping_neg() & align.wrapping_sub(1);
        }
        let copied = sections.slice(section, used).is_some_and(|to| {
            let mut writer = BufferWriter::new(to);
            header.write(&mut writer);
            let rest = writer.rest();
            packet.copy_to(rest)
                && (header.padding == 0
                    || rest
                        .slice(packet.len() as usize, header.padding as usize)
                        .is_some_and(|to| clear(to)))
        });
        if !copied {
            sections.free(fresh);
            return Err((Failed::Lost, packet));
        }
        let bytes = packet.len();
        let (before_packets, before_bytes) = state
            .batch
            .as_ref()
            .map_or((0, 0), |batch| (batch.packets, batch.bytes));
        let used = used.wrapping_add(header.message_len());
        if more {
            let old = state.batch.replace(Batch {
                section,
                used,
                packets: before_packets.wrapping_add(1),
                bytes: before_bytes.wrapping_add(bytes),
                skb: Some(packet.into_skb()),
            });
            if let Some(skb) = old.and_then(|old| old.skb) {
                skb.consume(0);
            }
            if queue.sent(bytes, true) {
                self.flush_or_keep(state, queue, endpoint);
            }
            return Ok(());
        }
        let message = Message {
            section,
            section_bytes: used,
            ranges: &[],
            note: Note {
                section,
                packets: before_packets.wrapping_add(1),
                bytes: before_bytes.wrapping_add(bytes),
                limited: true,
            },
            limit: bytes,
        };
        match self.send(packet, keep_packet, &message, queue, endpoint) {
            Ok(()) => {
                if let Some(skb) = state.batch.take().and_then(|batch| batch.skb) {
                    skb.consume(0);
                }
                Ok(())
            }
            Err(e) => {
                sections.free(fresh);
                Err(e)
            }
        }
    }

    /// Sends a packet that stays where it is.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)] // As above.
    fn send_in_place<'p>(
        &self,
        mut packet: TxPacket<'p>,
        header: PacketHeader,
        way: Way,
        state: &mut TxState,
        queue: &mut TxControl<'_>,
        endpoint: &Endpoint,
        sections: &Sections,
    ) -> Result<(), (Failed, TxPacket<'p>)> {
        let with_batch = matches!(way, Way::AppendHeaders) && state.batch.is_some();
        if !with_batch && state.batch.is_some() {
            if let Err(e) = self.flush(state, queue, endpoint) {
                return Err((e, packet));
            }
        }
        let mut runs = Runs::new();
        if self.find_memory(&mut packet, &mut runs).is_none() {
            return Err((Failed::Lost, packet));
        }
        // First the headers, if they are not in a section.
        let (section, section_bytes, used) = match &state.batch {
            Some(batch) if with_batch => {
                let Some(to) = sections.slice(batch.section, batch.used) else {
                    return Err((Failed::Lost, packet));
                };
                header.write(&mut BufferWriter::new(to));
                (batch.section, batch.used.wrapping_add(header.size()), true)
            }
            _ => {
                let put = packet.write_header(&mut runs, header.size(), |room| {
                    header.write(&mut SliceSink(room));
                });
                if !put {
                    return Err((Failed::Lost, packet));
                }
                (Sections::NONE, 0, false)
            }
        };
        let (before_packets, before_bytes) = match &state.batch {
            Some(batch) if used => (batch.packets, batch.bytes),
            _ => (0, 0),
        };
        let len = packet.len();
        let message = Message {
            section,
            section_bytes,
            ranges: runs.all(),
            note: Note {
                section,
                packets: before_packets.wrapping_add(1),
                bytes: before_bytes.wrapping_add(len),
                limited: true,
            },
            limit: len,
        };
        self.send(packet, keep_packet, &message, queue, endpoint)?;
        if let Some(skb) = state.batch.take().and_then(|batch| batch.skb) {
            skb.consume(0);
        }
        Ok(())
    }

    /// Readies the headers of `packet`, with room before it, and finds out where its memory is. `None`: it cannot be sent.
    fn find_memory(&self, packet: &mut TxPacket<'_>, runs: &mut Runs) -> Option<()> {
        let eth = &self.link.shared.eth;
        // Two for the headers.
        let max_pages = MAX_PAGES - 2;
        let mut linear = false;
        loop {
            if packet.prepare_headers(HEADROOM).is_err() {
                eth.tx_no_memory.bump();
                return None;
            }
            if packet.find_memory(runs, max_pages) {
                return Some(());
            }
            if linear {
                eth.tx_too_big.bump();
                return None;
            }
            eth.tx_scattered.bump();
            if packet.linearize().is_err() {
                eth.tx_no_memory.bump();
                return None;
            }
            linear = true;
        }
    }

    /// Sends the packets that wait, if there are any.
    fn flush(
        &self,
        state: &mut TxState,
        queue: &mut TxControl<'_>,
        endpoint: &Endpoint,
    ) -> Result<(), Failed> {
        let Some(mut batch) = state.batch.take() else {
            return Ok(());
        };
        let message = Message {
            section: batch.section,
            section_bytes: batch.used,
            ranges: &[],
            note: Note {
                section: batch.section,
                packets: batch.packets,
                bytes: batch.bytes,
                limited: true,
            },
            limit: 0,
        };
        match self.send(batch.skb.take(), |skb| skb, &message, queue, endpoint) {
            Ok(()) => Ok(()),
            Err((e, skb)) => {
                // Whether for later or for ever: detaching lets go of it.
                batch.skb = skb;
                state.batch = Some(batch);
                Err(e)
            }
        }
    }

    /// Sends the packets that wait, if there are any. They stay where they are when there is no room; the poll sends them then.
    fn flush_or_keep(&self, state: &mut TxState, queue: &mut TxControl<'_>, endpoint: &Endpoint) {
        // A queue that was not stopped for it has nothing in flight: whatever comes next from the host is an occasion.
        if let Err(Failed::Full) = self.flush(state, queue, endpoint) {
            // The last completion may have come meanwhile, and there is room, but nothing more to come.
            if !queue.is_stopped() && self.flush(state, queue, endpoint).is_ok() {
                return;
            }
            self.stopped.store(true, Ordering::SeqCst);
        }
    }

    /// Sends a message. `packet` is kept, as what `keep` makes of it, until the host has completed the message.
    #[inline(always)] // A caller for each kind of message, whose constants make it short.
    fn send<P>(
        &self,
        packet: P,
        keep: impl FnOnce(P) -> Option<Skb>,
        message: &Message<'_>,
        queue: &mut TxControl<'_>,
        endpoint: &Endpoint,
    ) -> Result<(), (Failed, P)> {
        let Some(ticket) = self.in_flight.ticket() else {
            self.stop(queue);
            return Err((Failed::Full, packet));
        };
        let Some(mut sending) = endpoint.sender().begin() else {
            return Err((Failed::Lost, packet));
        };
        let mut ring = sending.ring();
        if let Err(e) = message.write(&mut ring, ticket.id()) {
            let e = sending.fail(e);
            return Err((self.send_failed(e, queue), packet));
        }
        // Nothing fails from here on. What is counted at its completion is counted before it is parked: from then on a host that
        // guesses the id can complete it.
        if message.limit != 0 {
            queue.sent(message.limit, false);
        }
        ticket.park(keep(packet), message.note.to_u64());
        let mark = ring.size() / LOW_WATER;
        let low = !matches!(ring.has_room(mark), Ok(true));
        sending.commit();
        if low {
            self.stop(queue);
        }
        Ok(())
    }

    #[cold]
    fn send_failed(&self, e: SendError, queue: &mut TxControl<'_>) -> Failed {
        if let SendError::Full { .. } = e {
            self.stop(queue);
            return Failed::Full;
        }
        if e != SendError::Closed {
            let errno = Error::from(e).to_errno();
            ratelimited!(pr_err, "a packet cannot be sent: {}\n", errno);
        }
        Failed::Lost
    }

    /// Stops the queue until the poll finds room.
    #[cold]
    fn stop(&self, queue: &mut TxControl<'_>) {
        let eth = &self.link.shared.eth;
        queue.stop();
        eth.stop_queue.bump();
        // SeqCst, here, in `wake`, and for what `count` reads: either the poll that takes the last completion sees that the queue is
        // stopped, or this sees that nothing is in flight.
        self.stopped.store(true, Ordering::SeqCst);
        if self.in_flight.count() == 0
            && !self.link.tx_off.load(Ordering::Relaxed)
            && self.stopped.swap(false, Ordering::SeqCst)
        {
            queue.wake();
            eth.wake_queue.bump();
        }
    }

    /// Starts the queue again if there is room. In the poll, after completions were taken.
    #[inline]
    pub(crate) fn wake(&self, endpoint: &Endpoint) {
        if self.stopped.load(Ordering::SeqCst) {
            self.wake_stopped(endpoint);
        }
    }

    #[cold]
    fn wake_stopped(&self, endpoint: &Endpoint) {
        let sender = endpoint.sender();
        let room = sender.free_bytes() > sender.ring_size() / HIGH_WATER;
        if !(room || self.in_flight.count() == 0) || self.link.tx_off.load(Ordering::Relaxed) {
            return;
        }
        let mut held = self.txq.lock();
        let Some((state, mut queue)) = self.tx.get(&mut held) else {
            return;
        };
        // Who turns it on stops the queues under their locks after that: one that was stopped so stays stopped.
        if self.link.tx_off.load(Ordering::Relaxed) {
            return;
        }
        self.stopped.store(false, Ordering::SeqCst);
        // Stops the queue again if there is no room after all.
        self.flush_or_keep(state, &mut queue, endpoint);
        if !self.stopped.load(Ordering::SeqCst) && queue.is_stopped() {
            queue.wake();
            self.link.shared.eth.wake_queue.bump();
        }
    }

    /// Sends a frame that is copied. False: it was not sent.
    pub(crate) fn send_frame(&self, frame: FrameBytes<'_>, held: &mut TxHeld<'_>) -> bool {
        let (Some(endpoint), Some(sections), Some((state, mut queue))) = (
            self.endpoint.get(),
            self.link.sections.get(),
            self.tx.get(held),
        ) else {
            return false;
        };
        let header = PacketHeader {
            data_len: frame.len(),
            padding: 0,
            info: PacketInfo::NONE,
        };
        let section = if header.message_len() <= sections.size() {
            let section = sections.take(self.index.into());
            if section.is_none() {
                // A poll may bounce more frames than there are sections before it comes to their completions.
                self.link.shared.eth.tx_send_full.bump();
            }
            section
        } else {
            None
        };
        let Some(section) = section else {
            let sent = frame.with_packet(&self.link.shared.dev, HEADROOM, |packet| {
                let way = Way::Direct;
                self.send_in_place(packet, header, way, state, &mut queue, endpoint, sections)
                    .is_ok()
            });
            if sent != Some(true) {
                self.flush_or_keep(state, &mut queue, endpoint);
            }
            return sent == Some(true);
        };
        let copied = sections.slice(section, 0).is_some_and(|to| {
            let mut writer = BufferWriter::new(to);
            header.write(&mut writer);
            frame.copy_to(writer.rest())
        });
        let message = Message {
            section,
            section_bytes: header.message_len(),
            ranges: &[],
            note: Note {
                section,
                packets: 1,
                bytes: frame.len(),
                limited: false,
            },
            limit: 0,
        };
        let sent = copied
            && self
                .send((), |()| None, &message, &mut queue, endpoint)
                .is_ok();
        if !sent {
            sections.free(section);
            // The queue may have been stopped and woken for it; then no poll looks after packets that waited before.
            self.flush_or_keep(state, &mut queue, endpoint);
        }
        sent
    }
}

/// What is kept of a packet.
fn keep_packet(packet: TxPacket<'_>) -> Option<Skb> {
    Some(packet.into_skb())
}

/// Zeroes what is behind a packet, up to the next.
#[cold]
fn clear(to: hv_vmbus::buffer::BufferSlice<'_>) -> bool {
    let zeroes = [0; 64];
    let mut left = to;
    while !left.is_empty() {
        let len = left.len().min(zeroes.len());
        let Some(part) = zeroes.get(..len) else {
            return false;
        };
        if !left.write(part) {
            return false;
        }
        let Some(rest) = left.slice(len, left.len() - len) else {
            return false;
        };
        left = rest;
    }
    true
}

/// Kinds of packets whose checksums the host fills in: a bit for each sum of [`TxChecksum`]'s flags.
pub(crate) mod checksums {
    use super::{TxChecksum, TxFlags};

    pub(crate) const TCP4: u32 = 1 << (TxChecksum::IPV4 | TxChecksum::TCP);
    pub(crate) const UDP4: u32 = 1 << (TxChecksum::IPV4 | TxChecksum::UDP);
    pub(crate) const TCP6: u32 = 1 << (TxChecksum::IPV6 | TxChecksum::TCP);
    pub(crate) const UDP6: u32 = 1 << (TxChecksum::IPV6 | TxChecksum::UDP);

    const SHIFT: u32 = TxFlags::IPV4.trailing_zeros();
    const KINDS: u32 = TxFlags::IPV4 | TxFlags::IPV6 | TxFlags::TCP | TxFlags::UDP;
    // So that no table is needed.
    const _: () = assert!(
        TxFlags::IPV4 >> SHIFT == TxChecksum::IPV4
            && TxFlags::IPV6 >> SHIFT == TxChecksum::IPV6
            && TxFlags::TCP >> SHIFT == TxChecksum::TCP
            && TxFlags::UDP >> SHIFT == TxChecksum::UDP
            && KINDS >> SHIFT < u32::BITS
    );

    /// What packets with `flags` are, in the flags of [`TxChecksum`]: below 32.
    #[inline]
    pub(super) fn kind(flags: TxFlags) -> u32 {
        flags.of(KINDS) >> SHIFT
    }
}
