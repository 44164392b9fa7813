// SPDX-License-Identifier: GPL-2.0

//! What comes from the host: packets received, and completions of those sent.
//!
//! A message in the ring names RNDIS messages in the receive buffer. The host may change both at any time: lengths and offsets are
//! copied, checked and used in the copy, and a frame is copied once, into the packet that the stack gets.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use hv_vmbus::{
    buffer::{Buffer, BufferSlice},
    channel::{
        load_word, Endpoint, InRing, PacketFlags, PacketType, PacketView, SendError, Shown, Step,
        WriteError,
    },
    log::Show,
    ratelimited,
};
use kernel::prelude::*;
use vmbus_proto::net::{
    nvsp::{
        rndis_complete_word, MessageType, Notice, NvspStatus, MAX_TABLE_MESSAGE,
        MAX_TRANSFER_RANGES, RECEIVE_BUFFER_ID,
    },
    packet::{BadPacket, PacketId, PacketInfo, Receiver, RxChecksum, ETHERNET_HEADER_SIZE},
    rndis::{HostMessage, LinkEvent},
    share::Share,
    ReceivedPacket,
};

use crate::{
    net::{
        packet::{PacketType as Audience, XdpPage},
        xdp::Verdict,
        Poll, Poller, RxInfo,
    },
    queue::Queue,
    sections::Sections,
    tx::Note,
};

/// Completions of received packets that are sent together.
const COMPLETIONS: usize = 64;

/// Messages taken from the ring in one poll at most, for each packet of the budget: completions of sent packets do not count as such.
const MESSAGES: u32 = 4;

/// Bytes of the longest RNDIS message that is no frame.
const MAX_CONTROL: usize = 4096;

/// Bytes of the longest frame, in one piece or put together from several: with the longest IP packet. The stack counts on no more.
const MAX_FRAME: u32 = 65535 + ETHERNET_HEADER_SIZE + 4;

/// A segment that the host hands over in parts, whose frames have been checked.
struct Coalesced {
    parts: KVec<(u32, u32)>,
    bytes: u32,
    info: PacketInfo,
}

/// What belongs to the poll.
pub(crate) struct RxState {
    /// Transaction ids of received packets that are to be completed, with how it went.
    completions: KVec<(u64, NvspStatus)>,
    coalesced: Coalesced,
    /// How far the message at the ring's beginning was taken.
    share: Share,
    /// This poll has taken so many packets of a message, and left it in the ring with others.
    left_in_ring: Option<u32>,
    /// Private copies of messages that are no frames.
    scratch: KVec<u8>,
    tally: Tally,
}

/// What a poll has counted.
#[derive(Default)]
struct Tally {
    /// Messages whose packets were sent.
    messages: u32,
    /// Those of them that the byte queue limit does not know of.
    unlimited_messages: u32,
    unlimited_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
    rx_packets: u64,
    rx_bytes: u64,
    rx_multicast: u64,
}

impl RxState {
    pub(crate) fn new() -> Result<Self> {
        let mut scratch = KVec::with_capacity(MAX_CONTROL, GFP_KERNEL)?;
        scratch.resize(MAX_CONTROL, 0, GFP_KERNEL)?;
        Ok(Self {
            completions: KVec::with_capacity(COMPLETIONS, GFP_KERNEL)?,
            coalesced: Coalesced {
                parts: KVec::with_capacity(MAX_TRANSFER_RANGES, GFP_KERNEL)?,
                bytes: 0,
                info: PacketInfo::NONE,
            },
            share: Share::new(),
            left_in_ring: None,
            scratch,
            tally: Tally::default(),
        })
    }
}

impl Coalesced {
    fn clear(&mut self) {
        self.parts.clear();
        self.bytes = 0;
    }

    /// Adds a part; false when there are too many.
    fn push(&mut self, offset: u32, len: u32) -> bool {
        let bytes = self.bytes.saturating_add(len);
        if bytes > MAX_FRAME || self.parts.len() >= self.parts.capacity() {
            return false;
        }
        self.bytes = bytes;
        self.parts.push_within_capacity((offset, len)).is_ok()
    }
}

/// What comes of an RNDIS message.
type Outcome = Result<(), ()>;

impl Poller for Queue {
    type State = RxState;

    fn poll(&self, state: &mut RxState, napi: &mut Poll<'_>) -> u32 {
        let budget = napi.budget();
        if budget == 0 {
            // netpoll, of any queue, and of none that it has scheduled: nothing may be received, and who masks the interrupt has to
            // unmask it.
            return 0;
        }
        let Some(endpoint) = self.endpoint.get() else {
            // Not open yet; who opens it has it polled then. Interrupts stay masked.
            napi.complete(0);
            return 0;
        };
        let Some(mut rx) = endpoint.try_receiver() else {
            // The poll before has not quite ended, on another CPU.
            return budget;
        };
        rx.mask_interrupts();
        let mut done = 0;
        let mut left = budget.wrapping_mul(MESSAGES);
        let mut drained = false;
        let mut broken = false;
        while done < budget && left != 0 {
            if state.completions.len() == COMPLETIONS && !self.send_completions(state, endpoint) {
                break;
            }
            let shown = rx.take_while(|packet| {
                left = left.wrapping_sub(1);
                let room = budget.wrapping_sub(done);
                let Some(packets) = self.on_packet(packet, room, state, napi) else {
                    return Step::Leave;
                };
                done = packets.saturating_add(done);
                if done < budget && left != 0 && state.completions.len() < COMPLETIONS {
                    Step::Next
                } else {
                    Step::Stop
                }
            });
            match shown {
                Shown::Enough => {}
                Shown::All => {
                    drained = true;
                    break;
                }
                Shown::Left => {
                    if let Some(packets) = state.left_in_ring.take() {
                        // The next poll goes on with it.
                        done = packets.saturating_add(done);
                        break;
                    }
                    let other = rx.next_with(|message| self.on_message(message, state));
                    if other.is_err() {
                        broken = true;
                        break;
                    }
                }
            }
        }
        self.count(&mut state.tally);
        self.wake(endpoint);
        if broken {
            // The bus has logged why. Nothing more can be had from the channel.
            self.link.control.set_gone();
            self.link.shared.note_broken(&self.link.interface);
            napi.complete(0);
            return 0;
        }
        let settled = state.completions.is_empty() || self.send_completions(state, endpoint);
        if endpoint.is_rescinded() && drained {
            self.link.control.set_gone();
        }
        if !drained || !settled || done >= budget {
            return budget;
        }
        if napi.complete(done) && rx.finish() && napi.prepare_resume() {
            rx.mask_interrupts();
            drop(rx);
            napi.resume();
        }
        done
    }
}

impl Queue {
    /// Sends the completions of received packets. False: not all of them, for want of room.
    #[inline]
    fn send_completions(&self, state: &mut RxState, endpoint: &Endpoint) -> bool {
        if let Some(mut sending) = endpoint.sender().begin() {
            let mut ring = sending.ring();
            let all = state.completions.iter().all(|(id, status)| {
                let word = [rndis_complete_word(*status)];
                ring.put_words(0, PacketType::COMPLETION, PacketFlags::empty(), *id, word)
            });
            if all {
                sending.commit();
                state.completions.clear();
                return true;
            }
        }
        // None was sent.
        self.send_some_completions(state, endpoint)
    }

    /// Sends as many completions as there is room for.
    #[cold]
    fn send_some_completions(&self, state: &mut RxState, endpoint: &Endpoint) -> bool {
        let mut count = 0;
        let sent = endpoint.sender().send_with(|ring| {
            for (id, status) in &state.completions {
                let word = rndis_complete_word(*status);
                let (kind, flags) = (PacketType::COMPLETION, PacketFlags::empty());
                match ring.send_words(0, kind, flags, *id, [word]) {
                    Ok(()) => count += 1,
                    // Those before it are sent.
                    Err(WriteError::Full { .. }) if count != 0 => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        });
        match sent {
            Ok(()) if count == state.completions.len() => {
                state.completions.clear();
                true
            }
            Ok(()) => {
                let mut left = count;
                state.completions.retain(|_| {
                    let sent = left != 0;
                    left = left.saturating_sub(1);
                    !sent
                });
                self.link.shared.eth.rx_comp_busy.bump();
                false
            }
            Err(SendError::Full { .. }) => {
                self.link.shared.eth.rx_comp_busy.bump();
                false
            }
            // Nobody waits for them any more.
            Err(_) => {
                state.completions.clear();
                true
            }
        }
    }

    /// Takes what comes often: messages about packets, received, `room` at most, or sent. Returns how many packets were received by it;
    /// `None` for all else, and, with `left_in_ring` in `state`, when packets of it are left.
    #[inline(always)]
    fn on_packet(
        &self,
        packet: &PacketView<'_>,
        room: u32,
        state: &mut RxState,
        napi: &mut Poll<'_>,
    ) -> Option<u32> {
        match packet.packet_type() {
            PacketType::DATA_USING_XFER_PAGES => {
                let Some((packets, status)) = self.on_transfer(packet, room, state, napi) else {
                    if state.left_in_ring.is_some() {
                        return None;
                    }
                    // Not such a message, so that no sections are to be given back.
                    self.malformed();
                    return Some(0);
                };
                let done = (packet.transaction_id(), status);
                // There is room: looked for before.
                let _ = state.completions.push_within_capacity(done);
                Some(packets)
            }
            PacketType::COMPLETION => self.on_sent(packet, state, napi).then_some(0),
            _ => None,
        }
    }

    /// Takes what comes seldom.
    #[cold]
    fn on_message(&self, message: &InRing<'_>, state: &mut RxState) {
        let descriptor = message.descriptor();
        match descriptor.packet_type {
            PacketType::COMPLETION => {
                let len = message.copy_payload(&mut state.scratch);
                let payload = state.scratch.get(..len).unwrap_or(&[]);
                let id = descriptor.transaction_id;
                if !self.link.control.on_completion(id, payload) {
                    self.malformed();
                }
            }
            PacketType::DATA_INBAND => self.on_notice(message, state),
            _ => self.malformed(),
        }
    }

    /// Adds up what a poll has counted.
    #[inline]
    fn count(&self, tally: &mut Tally) {
        if tally.messages != 0 {
            let limited = tally.messages.saturating_sub(tally.unlimited_messages);
            if limited != 0 {
                let bytes = tally.tx_bytes.saturating_sub(tally.unlimited_bytes);
                // A poll takes less than 2^32 bytes: some hundred messages.
                self.txq.completed(limited, bytes as u32);
            }
            let stats = self.stats();
            stats.tx_packets.add(tally.tx_packets);
            stats.tx_bytes.add(tally.tx_bytes);
        }
        if tally.rx_packets != 0 {
            let stats = self.stats();
            stats.rx_packets.add(tally.rx_packets);
            stats.rx_bytes.add(tally.rx_bytes);
            stats.rx_multicast.add(tally.rx_multicast);
        }
        *tally = Tally::default();
    }

    /// The host broke the rules. Counted; the log would be a way to fill the guest's disk.
    #[cold]
    fn malformed(&self) {
        self.link.shared.eth.rx_malformed.bump();
    }

    /// Takes the completion of packets that were sent; false if it is that of something else.
    #[inline(always)]
    fn on_sent(&self, packet: &PacketView<'_>, state: &mut RxState, napi: &mut Poll<'_>) -> bool {
        let [word, ..] = packet.payload() else {
            return false;
        };
        if load_word(word) as u32 != MessageType::SEND_RNDIS_PKT_COMPLETE.0 {
            return false;
        }
        let Some(done) = self.in_flight.take(packet.transaction_id()) else {
            return false;
        };
        let note = Note::from_u64(done.note);
        if note.section != Sections::NONE {
            if let Some(sections) = self.link.sections.get() {
                sections.free(note.section);
            }
        }
        let tally = &mut state.tally;
        tally.messages = tally.messages.wrapping_add(1);
        tally.tx_packets = tally.tx_packets.wrapping_add(note.packets.into());
        tally.tx_bytes = tally.tx_bytes.wrapping_add(note.bytes.into());
        if !note.limited {
            tally.unlimited_messages = tally.unlimited_messages.wrapping_add(1);
            tally.unlimited_bytes = tally.unlimited_bytes.wrapping_add(note.bytes.into());
        }
        if let Some(skb) = done.skb {
            skb.consume(napi.budget());
        }
        true
    }

    #[cold]
    fn on_notice(&self, message: &InRing<'_>, state: &mut RxState) {
        let Some(room) = state.scratch.get_mut(..MAX_TABLE_MESSAGE) else {
            return;
        };
        let len = message.copy_payload(room);
        let payload = room.get(..len).unwrap_or(&[]);
        match Notice::parse(self.link.version(), payload) {
            Ok(Notice::SendTable(table)) => self.link.shared.set_send_table(&table),
            Ok(Notice::Vf(vf)) => self.link.shared.on_vf(&vf),
            Ok(Notice::DataPath(_) | Notice::Ignored(_)) => {}
            Err(e) => {
                self.malformed();
                ratelimited!(pr_warn, "notice from the host: {}\n", Show(e));
            }
        }
    }

    /// Takes a message about received packets, `room` of them at most. Returns how many these are, and what to tell the host; `None` when
    /// it is malformed, or, with `left_in_ring` in `state`, when there are more.
    #[inline(always)]
    fn on_transfer(
        &self,
        packet: &PacketView<'_>,
        room: u32,
        state: &mut RxState,
        napi: &mut Poll<'_>,
    ) -> Option<(u32, NvspStatus)> {
        // Behind the descriptor: the header, and the ranges.
        let ([header, ranges @ ..], [kind, ..], Some(buffer)) =
            (packet.extra(), packet.payload(), self.link.receive.get())
        else {
            return None;
        };
        let header = load_word(header);
        let count = (header >> 32) as u32;
        let ranges: &[AtomicU64] = ranges.get(..count as usize)?;
        let good = header as u16 == RECEIVE_BUFFER_ID
            && load_word(kind) as u32 == MessageType::SEND_RNDIS_PKT.0
            && !ranges.is_empty();
        if !good {
            return None;
        }
        if !state.share.is_whole(ranges.len(), room) {
            return self.on_part_of_transfer(
                packet.transaction_id(),
                buffer,
                ranges,
                room,
                state,
                napi,
            );
        }
        let status = self.on_ranges(buffer, ranges, state, napi);
        Some((count, self.end_of_ranges(status, state)))
    }

    /// As [`on_transfer`](Self::on_transfer), for a message with more ranges than the poll may take, of which hosts may send tens of
    /// thousands: takes as many as that, and leaves the others for the polls to come.
    #[cold]
    fn on_part_of_transfer(
        &self,
        id: u64,
        buffer: &Buffer,
        ranges: &[AtomicU64],
        room: u32,
        state: &mut RxState,
        napi: &mut Poll<'_>,
    ) -> Option<(u32, NvspStatus)> {
        let part = state.share.begin(id, ranges.len(), room);
        let now = ranges.get(part.ranges()).unwrap_or(&[]);
        let packets = now.len() as u32;
        let status = self.on_ranges(buffer, now, state, napi);
        let Some(status) = part.end(&mut state.share, status) else {
            state.left_in_ring = Some(packets);
            return None;
        };
        Some((packets, self.end_of_ranges(status, state)))
    }

    /// Takes the RNDIS messages in `ranges` of the receive buffer. Returns what to tell the host.
    #[inline(always)]
    fn on_ranges(
        &self,
        buffer: &Buffer,
        ranges: &[AtomicU64],
        state: &mut RxState,
        napi: &mut Poll<'_>,
    ) -> NvspStatus {
        let mut status = NvspStatus::SUCCESS;
        for range in ranges {
            let range = load_word(range);
            let (len, offset) = (range as u32, (range >> 32) as u32);
            if self.on_range(buffer, offset, len, state, napi).is_err() {
                state.coalesced.clear();
                status = NvspStatus::FAIL;
            }
        }
        status
    }

    /// After the last range of a message. Returns what to tell the host.
    #[inline(always)]
    fn end_of_ranges(&self, status: NvspStatus, state: &mut RxState) -> NvspStatus {
        // Parts of a segment come together.
        if !state.coalesced.parts.is_empty() {
            state.coalesced.clear();
            self.malformed();
            return NvspStatus::FAIL;
        }
        status
    }

    /// Takes the RNDIS message in `len` bytes of the receive buffer from `offset` on.
    #[inline(always)]
    fn on_range(
        &self,
        buffer: &Buffer,
        offset: u32,
        len: u32,
        state: &mut RxState,
        napi: &mut Poll<'_>,
    ) -> Outcome {
        let Some(memory) = buffer.slice(offset as usize, len as usize) else {
            self.malformed();
            return Err(());
        };
        let packet = match ReceivedPacket::read(&memory, len, Receiver::Guest) {
            Ok(packet) => packet,
            Err(e) => return self.on_other(e, memory, state),
        };
        let start = packet.data_offset;
        // The receive buffer would hold frames of megabytes.
        if packet.data_len > MAX_FRAME {
            self.malformed();
            return Err(());
        }
        if let Some(id) = packet.info.id().filter(|id| id.is_part()) {
            return self.on_part(buffer, offset, &packet, id, state, napi);
        }
        if !state.coalesced.parts.is_empty() {
            state.coalesced.clear();
            self.malformed();
        }
        match memory.slice(start as usize, packet.data_len as usize) {
            Some(frame) => self.on_frame(frame, &packet.info, &mut state.tally, napi),
            None => Err(()),
        }
    }

    /// Takes a part of a segment.
    #[inline(always)]
    fn on_part(
        &self,
        buffer: &Buffer,
        offset: u32,
        packet: &ReceivedPacket,
        id: PacketId,
        state: &mut RxState,
        napi: &mut Poll<'_>,
    ) -> Outcome {
        let coalesced = &mut state.coalesced;
        if id.is_first() {
            coalesced.clear();
            coalesced.info = packet.info;
        } else if coalesced.parts.is_empty() {
            self.malformed();
            return Err(());
        }
        // Inside the buffer, as the message is.
        if !coalesced.push(offset.saturating_add(packet.data_offset), packet.data_len) {
            self.malformed();
            return Err(());
        }
        if !id.is_last() {
            return Ok(());
        }
        let result = self.deliver_parts(buffer, coalesced, &mut state.tally, napi);
        coalesced.clear();
        result
    }

    #[inline(never)]
    fn deliver_parts(
        &self,
        buffer: &Buffer,
        parts: &Coalesced,
        tally: &mut Tally,
        napi: &mut Poll<'_>,
    ) -> Outcome {
        if !self.link.shared.is_receiving() {
            return Err(());
        }
        // Programs see single frames alone; who puts one in switches this off.
        if self.xdp.load(Ordering::Relaxed) && parts.parts.len() > 1 {
            self.stats().rx_xdp_drop.add(1);
            return Ok(());
        }
        let Some(mut packet) = napi.new_packet(parts.bytes) else {
            self.link.shared.eth.rx_no_memory.bump();
            return Err(());
        };
        for (offset, len) in &parts.parts {
            let copied = buffer
                .slice(*offset as usize, *len as usize)
                .is_some_and(|part| packet.append(part));
            if !copied {
                return Err(());
            }
        }
        self.deliver(packet, parts.bytes, &parts.info, tally, napi)
    }

    /// Takes a frame.
    #[inline(always)]
    fn on_frame(
        &self,
        frame: BufferSlice<'_>,
        info: &PacketInfo,
        tally: &mut Tally,
        napi: &mut Poll<'_>,
    ) -> Outcome {
        if !self.link.shared.is_receiving() {
            return Err(());
        }
        if self.xdp.load(Ordering::Relaxed) {
            return self.on_xdp_frame(frame, info, tally, napi);
        }
        let len = frame.len() as u32;
        let Some(mut packet) = napi.new_packet(len) else {
            self.link.shared.eth.rx_no_memory.bump();
            return Err(());
        };
        if !packet.append(frame) {
            return Err(());
        }
        self.deliver(packet, len, info, tally, napi)
    }

    #[inline(always)]
    fn deliver(
        &self,
        packet: crate::net::packet::RxPacket,
        len: u32,
        info: &PacketInfo,
        tally: &mut Tally,
        napi: &mut Poll<'_>,
    ) -> Outcome {
        let shared = &self.link.shared;
        let checksum = info.rx_checksum();
        let any = |flags| checksum.is_some_and(|checksum| checksum.any(flags));
        let rx = RxInfo {
            hash: info.hash().filter(|_| shared.wants_hash()),
            vlan_tci: info.vlan().map(|vlan| vlan.tci()),
            checksum_ok: any(RxChecksum::TCP_SUCCEEDED | RxChecksum::UDP_SUCCEEDED)
                && shared.wants_checksum(),
            fix_ip_checksum: any(RxChecksum::IP_VALUE_INVALID) && any(RxChecksum::IP_SUCCEEDED),
        };
        let Some(audience) = napi.deliver(packet, &rx, self.index) else {
            shared.eth.rx_dropped.bump();
            return Err(());
        };
        tally.rx_packets = tally.rx_packets.wrapping_add(1);
        tally.rx_bytes = tally.rx_bytes.wrapping_add(len.into());
        if audience != Audience::Other {
            tally.rx_multicast = tally.rx_multicast.wrapping_add(1);
        }
        Ok(())
    }

    /// Shows a frame to the XDP program.
    #[inline(never)]
    fn on_xdp_frame(
        &self,
        frame: BufferSlice<'_>,
        info: &PacketInfo,
        tally: &mut Tally,
        napi: &mut Poll<'_>,
    ) -> Outcome {
        let stats = self.stats();
        let len = frame.len() as u32;
        let longest = self.link.shared.dev.mtu() + ETHERNET_HEADER_SIZE;
        let page = XdpPage::new().filter(|_| len <= longest);
        let Some(page) = page.and_then(|mut page| page.fill(frame).then_some(page)) else {
            stats.rx_xdp_drop.add(1);
            return Ok(());
        };
        let count = || {
            stats.rx_packets.add(1);
            stats.rx_bytes.add(len.into());
        };
        match napi.run_xdp(page) {
            Verdict::Pass(Some(packet)) => self.deliver(packet, len, info, tally, napi),
            Verdict::Pass(None) => {
                self.link.shared.eth.rx_no_memory.bump();
                Err(())
            }
            Verdict::Tx(frame) => {
                stats.rx_xdp_tx.add(1);
                count();
                let mut held = self.txq.lock();
                if !self.send_frame((&frame).into(), &mut held) {
                    self.link.shared.eth.tx_dropped.bump();
                }
                Ok(())
            }
            Verdict::Redirected => {
                stats.rx_xdp_redirect.add(1);
                count();
                Ok(())
            }
            Verdict::Dropped => {
                stats.rx_xdp_drop.add(1);
                Ok(())
            }
        }
    }

    /// Takes an RNDIS message that is no good frame: `why`.
    #[cold]
    fn on_other(&self, why: BadPacket, memory: BufferSlice<'_>, state: &mut RxState) -> Outcome {
        if let BadPacket::Type(_) | BadPacket::TooShort { .. } = why {
            let len = memory.len().min(state.scratch.len());
            let Some(bytes) = state.scratch.get_mut(..len) else {
                return Err(());
            };
            if !memory.read(bytes) {
                return Err(());
            }
            let bytes = &*bytes;
            if let Ok(message) = HostMessage::parse(bytes) {
                return self.on_control(&message, bytes);
            }
        }
        self.malformed();
        Err(())
    }

    fn on_control(&self, message: &HostMessage<'_>, bytes: &[u8]) -> Outcome {
        match message {
            HostMessage::Indicate { status, buffer } => {
                let event = LinkEvent::new(*status, buffer);
                self.link.shared.on_link_event(event, &self.link.interface);
            }
            // Hosts of this device are not known to ask.
            HostMessage::Keepalive { .. } => {}
            answer => {
                if !self.link.control.on_answer(answer, bytes) {
                    self.malformed();
                }
            }
        }
        Ok(())
    }
}
