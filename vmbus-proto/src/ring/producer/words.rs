// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Packets whose payload is a few words, for who sends many: the network. Written in few and large pieces, whose sizes the
//! compiler knows.

use super::{store, PacketDescriptor, PacketFlags, PacketType, Producer, RingMemory, WriteError};
use crate::packet::DESCRIPTOR_SIZE;
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
        if fill(packet, head, payload).is_none() {
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

    #[inline]
    pub(super) fn end_words(&mut self, start: u32, descriptor: &PacketDescriptor) {
        let trailer = start.wrapping_add(descriptor.packet_len());
        self.memory
            .write_far(trailer, &(u64::from(start) << 32).to_le_bytes());
        self.move_on(descriptor.ring_len());
    }
}

/// Writes a packet but for its trailer into its words; `None` if these are too few.
#[inline(always)]
fn fill<const H: usize, const N: usize>(
    words: &[AtomicU64],
    head: [u64; H],
    payload: [u64; N],
) -> Option<()> {
    let (to, rest) = words.split_first_chunk::<H>()?;
    store_all(to, &head);
    store_all(rest.first_chunk::<N>()?, &payload);
    Some(())
}

#[inline(always)]
pub(super) fn store_all<const N: usize>(to: &[AtomicU64; N], words: &[u64; N]) {
    for (to, word) in to.iter().zip(words) {
        store(to, *word);
    }
}
