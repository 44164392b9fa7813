// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Packets whose payload is a few words, for who sends many: the network. Written in few and large pieces, whose sizes the
//! compiler knows.

use super::{
    GpaRangeHeader, PacketDescriptor, PacketFlags, PacketType, Producer, RingMemory, WriteError,
};
use crate::packet::{GpaDirectHeader, DESCRIPTOR_SIZE};
use zerocopy::IntoBytes;

impl<M: RingMemory> Producer<M> {
    /// Writes a packet of `packet_type` with no extra header, if `keep` bytes are free after it.
    ///
    /// # Errors
    /// See [`begin`](Self::begin); [`WriteError::Full`] also when fewer bytes would be left.
    #[inline]
    pub fn send_words<const N: usize>(
        &mut self,
        keep: u32,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        let descriptor = PacketDescriptor::new(packet_type, flags, transaction_id, 0, N << 3)
            .ok_or(WriteError::TooLarge)?;
        self.reserve(descriptor.ring_len(), keep)?;
        // Nothing is wrapped at the end of the area: `write_far` takes that. Indexes and lengths are below 2^30.
        let start = self.next;
        let head = [descriptor.low_word(), transaction_id];
        self.memory.write_far(start, head.as_bytes());
        let at = start.wrapping_add(DESCRIPTOR_SIZE);
        self.memory.write_far(at, payload.as_bytes());
        self.end_words(start, &descriptor);
        Ok(())
    }

    /// Writes a GPA-direct packet with `ranges`, if `keep` bytes are free after it. The pages of a range follow each other
    /// from the page frame number beside it. A completion is asked for.
    ///
    /// # Errors
    /// See [`begin`](Self::begin); [`WriteError::Full`] also when fewer bytes would be left; [`WriteError::WrongLength`]
    /// when there is no range.
    #[inline]
    pub fn send_gpa_ranges<const N: usize>(
        &mut self,
        keep: u32,
        ranges: &[(GpaRangeHeader, u64)],
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        // In words. No sum of so many ranges of at most 2^21 pages as memory can hold is beyond 64 bits.
        const HEAD_WORDS: u64 = 3;
        let words = |range: &GpaRangeHeader| u64::from(range.page_count()).wrapping_add(1);
        let offset8 = ranges
            .iter()
            .fold(HEAD_WORDS, |sum, (range, _)| sum.wrapping_add(words(range)));
        let len8 = offset8.wrapping_add(N as u64);
        if len8 > u16::MAX.into() {
            return Err(WriteError::TooLarge);
        }
        if ranges.is_empty() {
            return Err(WriteError::WrongLength);
        }
        let descriptor = PacketDescriptor {
            packet_type: PacketType::DATA_USING_GPA_DIRECT,
            offset8: offset8 as u16,
            len8: len8 as u16,
            flags: PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
        };
        self.reserve(descriptor.ring_len(), keep)?;
        let start = self.next;
        let counts = GpaDirectHeader {
            reserved: 0,
            // Fewer than there are words.
            range_count: ranges.len() as u32,
        };
        let head: [u64; HEAD_WORDS as usize] =
            [descriptor.low_word(), transaction_id, counts.to_u64()];
        self.memory.write_far(start, head.as_bytes());
        let mut at = start.wrapping_add((HEAD_WORDS as u32) << 3);
        for (range, first) in ranges {
            // Most ranges are of one page.
            self.memory
                .write_far(at, [range.to_u64(), *first].as_bytes());
            at = at.wrapping_add(16);
            for page in 1..u64::from(range.page_count()) {
                self.memory
                    .write_far(at, &first.wrapping_add(page).to_le_bytes());
                at = at.wrapping_add(8);
            }
        }
        self.memory.write_far(at, payload.as_bytes());
        self.end_words(start, &descriptor);
        Ok(())
    }

    #[inline]
    fn end_words(&mut self, start: u32, descriptor: &PacketDescriptor) {
        let trailer = start.wrapping_add(descriptor.packet_len());
        self.memory
            .write_far(trailer, &((start as u64) << 32).to_le_bytes());
        self.move_on(descriptor.ring_len());
    }
}
