// SPDX-License-Identifier: GPL-2.0

//! The way of most packets that the host cuts into segments.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use hv_vmbus::channel::PutRanges;
use vmbus_proto::net::{
    nvsp::{ChannelType, SendRndisPacket, NO_SECTION},
    packet::{LargeSend, PacketHeader, PacketInfo, SliceSink},
};

use super::{keep_packet, Note, HEADROOM, LOW_WATER, MAX_PAGES};
use crate::{
    net::{TxFlags, TxHeld, TxPacket},
    queue::Queue,
    sections::Sections,
};

/// Words that the ranges of a packet may take: the pages, and as many that stand before them.
const MAX_WORDS: usize = 2 * MAX_PAGES as usize;

impl Queue {
    /// The way of most packets that the host cuts into segments, in the fewest instructions: no other waits, and there is no more to
    /// tell the host than a hash. A packet that cannot go like this comes back, and can be sent as if nothing had happened: the long
    /// way tells why, or sends it.
    #[inline(always)]
    pub(super) fn transmit_large<'p>(
        &self,
        mut packet: TxPacket<'p>,
        held: &mut TxHeld<'_>,
    ) -> Result<(), TxPacket<'p>> {
        const KIND: u32 = TxFlags::VLAN | TxFlags::VLAN_INSIDE | TxFlags::GSO;
        let flags = packet.flags();
        if flags.of(KIND) != TxFlags::GSO {
            return Err(packet);
        }
        let link = &*self.link;
        let (Some(endpoint), Some((state, mut queue))) = (self.endpoint.get(), self.tx.get(held))
        else {
            return Err(packet);
        };
        if state.batch.is_some() {
            return Err(packet);
        }
        let Some(ticket) = self.in_flight.ticket() else {
            return Err(packet);
        };
        let mut info = PacketInfo::NONE;
        if packet.hash() != 0 && link.queues.load(Ordering::Relaxed) > 1 {
            info.set_hash(packet.hash());
        }
        info.set_large_send(LargeSend::new(
            flags.any(TxFlags::IPV6),
            packet.segment_size().into(),
            packet.transport_offset().into(),
        ));
        let bytes = packet.len();
        let header = PacketHeader {
            data_len: bytes,
            padding: 0,
            info,
        };
        let Some(room) = packet.make_room::<{ HEADROOM as usize }>() else {
            return Err(packet);
        };
        header.write(&mut SliceSink(room));
        let size = header.size();
        let words = SendRndisPacket {
            channel: ChannelType::DATA,
            section_index: NO_SECTION,
            section_size: 0,
        }
        .words();
        let Some(mut sending) = endpoint.sender().begin() else {
            return Err(packet);
        };
        let mut ring = sending.ring();
        // The long way stops the queue when there would not be more than that.
        let keep = ring.size() / LOW_WATER;
        let put = |to: &[AtomicU64; MAX_WORDS]| {
            let pages = |put: &PutRanges| put.words.wrapping_sub(put.ranges);
            packet
                .put_ranges(size, to)
                .filter(|put| pages(put) <= MAX_PAGES)
        };
        if !ring.put_gpa_ranges(keep, ticket.id(), words, put) {
            drop(sending);
            return Err(packet);
        }
        let note = Note {
            section: Sections::NONE,
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
