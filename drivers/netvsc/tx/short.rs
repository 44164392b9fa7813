// SPDX-License-Identifier: GPL-2.0

//! The way of most packets to the host.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use hv_vmbus::{
    buffer::BufferWriter,
    channel::{PacketFlags, PacketType},
};
use vmbus_proto::net::{
    nvsp::{ChannelType, SendRndisPacket},
    packet::{PacketHeader, PacketInfo, TxChecksum},
};

use super::{keep_packet, Note, LOW_WATER};
use crate::{
    net::{TxFlags, TxHeld, TxPacket},
    queue::Queue,
};

impl Queue {
    /// The way of most packets, in the fewest instructions: alone, into a section of its own, with no more to tell the host than a
    /// hash and a checksum. A packet that cannot go like this comes back, and nothing has happened: the long way tells why, or sends
    /// it.
    #[inline(always)]
    pub(super) fn transmit_short<'p>(
        &self,
        packet: TxPacket<'p>,
        held: &mut TxHeld<'_>,
    ) -> Result<(), TxPacket<'p>> {
        const SPECIAL: u32 = TxFlags::VLAN | TxFlags::VLAN_INSIDE | TxFlags::GSO | TxFlags::MORE;
        let flags = packet.flags();
        if flags.any(SPECIAL) {
            return Err(packet);
        }
        let link = &*self.link;
        let (Some(endpoint), Some(sections), Some((state, mut queue))) =
            (self.endpoint.get(), link.sections.get(), self.tx.get(held))
        else {
            return Err(packet);
        };
        if state.batch.is_some() {
            return Err(packet);
        }
        let mut info = PacketInfo::NONE;
        if packet.hash() != 0 && link.queues.load(Ordering::Relaxed) > 1 {
            info.set_hash(packet.hash());
        }
        if flags.any(TxFlags::PARTIAL) {
            let Some(what) = self.checksum_flags(flags) else {
                return Err(packet);
            };
            info.set_tx_checksum(TxChecksum::new(what, packet.transport_offset().into()));
        }
        let bytes = packet.len();
        let header = PacketHeader {
            data_len: bytes,
            padding: 0,
            info,
        };
        let section_bytes = header.message_len();
        if section_bytes > sections.size() {
            return Err(packet);
        }
        let Some(ticket) = self.in_flight.ticket() else {
            return Err(packet);
        };
        let Some(section) = sections.take(self.index.into()) else {
            return Err(packet);
        };
        let copied = sections.slice(section, 0).is_some_and(|to| {
            let mut writer = BufferWriter::new(to);
            header.write(&mut writer);
            packet.copy_to(writer.rest())
        });
        let words = SendRndisPacket {
            channel: ChannelType::DATA,
            section_index: section.into(),
            section_size: section_bytes,
        }
        .words();
        let sender = endpoint.sender();
        let sending = if copied { sender.begin() } else { None };
        let Some(mut sending) = sending else {
            sections.free(section);
            return Err(packet);
        };
        let (kind, flags) = (PacketType::DATA_INBAND, PacketFlags::COMPLETION_REQUESTED);
        let mut ring = sending.ring();
        // The long way stops the queue when there would not be more than that.
        let keep = ring.size() / LOW_WATER;
        if !ring.put_words(keep, kind, flags, ticket.id(), words) {
            drop(sending);
            sections.free(section);
            return Err(packet);
        }
        let note = Note {
            section,
            packets: 1,
            bytes,
            limited: true,
        };
        // Before it is parked: from then on a host that guesses the id can complete it.
        queue.sent(bytes, false);
        ticket.park(keep_packet(packet), note.to_u64());
        sending.commit();
        Ok(())
    }
}
