// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Packets whose payload is a few words, for who sends many: the network. Written in few and large pieces, whose sizes the
//! compiler knows.

use super::{store, PacketDescriptor, PacketFlags, PacketType, Producer, RingMemory, WriteError};
use crate::packet::{GpaDirectHeader, DESCRIPTOR_SIZE};
use crate::range::GpaRun;
use core::sync::atomic::AtomicU64;
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
        if self.place_words(&descriptor, transaction_id, payload) {
            return Ok(());
        }
        let start = self.next;
        let head = [descriptor.low_word(), transaction_id];
        // Nothing is wrapped at the end of the area: `write_far` takes that. Indexes and lengths are below 2^30.
        self.memory.write_far(start, head.as_bytes());
        let at = start.wrapping_add(DESCRIPTOR_SIZE);
        self.memory.write_far(at, payload.as_bytes());
        self.end_words(start, &descriptor);
        Ok(())
    }

    /// As [`send_words`](Self::send_words), in the fewest instructions. False when the packet is not written: the other way tells why,
    /// or does it, as when the peer's index has to be looked at or the memory has no [window](RingMemory::window).
    #[inline(always)] // Its callers are few, and count instructions.
    #[must_use]
    pub fn put_words<const N: usize>(
        &mut self,
        keep: u32,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: [u64; N],
    ) -> bool {
        let Some(descriptor) = PacketDescriptor::new(packet_type, flags, transaction_id, 0, N << 3)
        else {
            return false;
        };
        let len = descriptor.ring_len();
        if u64::from(len).wrapping_add(keep.into()) > self.free.into() || self.pending != 0 {
            return false;
        }
        self.place_words(&descriptor, transaction_id, payload)
    }

    /// Writes the packet in place, for which there is room; false where the memory has no [window](RingMemory::window).
    #[inline(always)]
    fn place_words<const N: usize>(
        &mut self,
        descriptor: &PacketDescriptor,
        transaction_id: u64,
        payload: [u64; N],
    ) -> bool {
        let Some((packet, [trailer])) = self.split_words(descriptor) else {
            return false;
        };
        let head = [descriptor.low_word(), transaction_id];
        if fill(packet, head, &[], payload).is_none() {
            return false;
        }
        store(trailer, u64::from(self.next) << 32);
        self.move_on(descriptor.ring_len());
        true
    }

    /// The words of a packet to write, for which there is room, and its trailer; `None` where the memory has no
    /// [window](RingMemory::window).
    #[inline(always)]
    fn split_words(&self, descriptor: &PacketDescriptor) -> Option<(&[AtomicU64], &[AtomicU64])> {
        let window = self.memory.window(self.next, descriptor.ring_len())?;
        window.split_at_checked(usize::from(descriptor.len8))
    }

    /// Writes a GPA-direct packet with `ranges`, if `keep` bytes are free after it. A completion is asked for.
    ///
    /// # Errors
    /// See [`begin`](Self::begin); [`WriteError::Full`] also when fewer bytes would be left; [`WriteError::WrongLength`]
    /// when there is no range, or one of no bytes.
    #[inline(always)] // Its callers are few, and count instructions.
    pub fn send_gpa_ranges<const N: usize>(
        &mut self,
        keep: u32,
        ranges: &[GpaRun],
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        // In words. No sum of so many ranges of at most 2^21 pages as memory can hold is beyond 64 bits.
        const HEAD_WORDS: u64 = 3;
        let words = |run: &GpaRun| u64::from(run.range.page_count()).wrapping_add(1);
        let offset8 = ranges
            .iter()
            .fold(HEAD_WORDS, |sum, run| sum.wrapping_add(words(run)));
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
        if let Some((packet, [trailer])) = self.split_words(&descriptor) {
            if fill(packet, head, ranges, payload).is_some() {
                store(trailer, u64::from(start) << 32);
                self.move_on(descriptor.ring_len());
                return Ok(());
            }
        }
        // Nothing is wrapped at the end of the area: `write_far` takes that. Indexes and lengths are below 2^30.
        self.memory.write_far(start, head.as_bytes());
        let mut at = start.wrapping_add((HEAD_WORDS as u32) << 3);
        for GpaRun { range, first } in ranges {
            if range.page_count() == 0 {
                return Err(WriteError::WrongLength);
            }
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
            .write_far(trailer, &(u64::from(start) << 32).to_le_bytes());
        self.move_on(descriptor.ring_len());
    }
}

/// Writes a packet but for its trailer into its words; `None` if these are not as many as it takes.
#[inline(always)]
fn fill<const H: usize, const N: usize>(
    words: &[AtomicU64],
    head: [u64; H],
    ranges: &[GpaRun],
    payload: [u64; N],
) -> Option<()> {
    let (to, rest) = words.split_first_chunk::<H>()?;
    store_all(to, &head);
    // One by one: cheaper than to split off what each range takes, as most have few pages.
    let mut to = rest.iter();
    for GpaRun { range, first } in ranges {
        store(to.next()?, range.to_u64());
        let pages = range.page_count();
        // Said to be wrong where there is time for it.
        if pages == 0 {
            return None;
        }
        let mut pfn = *first;
        for _ in 0..pages {
            store(to.next()?, pfn);
            pfn = pfn.wrapping_add(1);
        }
    }
    store_all(to.as_slice().first_chunk::<N>()?, &payload);
    Some(())
}

#[inline(always)]
fn store_all<const N: usize>(to: &[AtomicU64; N], words: &[u64; N]) {
    for (to, word) in to.iter().zip(words) {
        store(to, *word);
    }
}
