// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Packets looked at where they lie, for who reads many of several kinds: the network.

use super::{advance, distance, Consumer, RingMemory};
use crate::packet::{PacketDescriptor, PacketType};
use core::sync::atomic::{AtomicU64, Ordering};

/// A packet in the ring; its descriptor was copied, and the lengths in it were checked. The peer may change the rest at any time:
/// load each word once, and look at the copy.
#[derive(Clone, Copy, Debug)]
pub struct PacketView<'r> {
    packet_type: PacketType,
    transaction_id: u64,
    extra: &'r [AtomicU64],
    payload: &'r [AtomicU64],
}

impl<'r> PacketView<'r> {
    /// Kind of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn packet_type(&self) -> PacketType {
        self.packet_type
    }

    /// Its transaction id.
    #[inline(always)]
    #[must_use]
    pub const fn transaction_id(&self) -> u64 {
        self.transaction_id
    }

    /// The words between descriptor and payload.
    #[inline(always)]
    #[must_use]
    pub const fn extra(&self) -> &'r [AtomicU64] {
        self.extra
    }

    /// The words of the payload, padding included.
    #[inline(always)]
    #[must_use]
    pub const fn payload(&self) -> &'r [AtomicU64] {
        self.payload
    }
}

/// What became of the next packet; see [`Consumer::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken<R> {
    /// It was taken.
    Yes(R),
    /// It was not wanted, or cannot be shown: it is malformed, the ring is broken, or the memory has no
    /// [window](RingMemory::window). [`Consumer::peek`] tells what there is.
    Left,
    /// There is none.
    Empty,
}

/// Copies a word of a [`PacketView`], in the byte order of this machine.
#[inline(always)]
#[must_use]
pub fn load_word(word: &AtomicU64) -> u64 {
    u64::from_le(word.load(Ordering::Relaxed))
}

impl<M: RingMemory> Consumer<M> {
    /// Shows `take` the next packet where it lies; moves on if that returns something. Else nothing has happened.
    #[inline(always)] // Its callers are few, and count instructions.
    pub fn take<R>(&mut self, take: impl FnOnce(&PacketView<'_>) -> Option<R>) -> Taken<R> {
        if self.next == self.cached_write {
            if self.refresh().is_err() {
                return Taken::Left;
            }
            if self.next == self.cached_write {
                return Taken::Empty;
            }
        }
        match self.take_next(take) {
            Some(taken) => Taken::Yes(taken),
            None => Taken::Left,
        }
    }

    #[inline(always)]
    fn take_next<R>(&mut self, take: impl FnOnce(&PacketView<'_>) -> Option<R>) -> Option<R> {
        // All that is looked at lies in these words, and so within what the producer says it has written.
        let available = distance(self.next, self.cached_write, self.size);
        let window = self.memory.window(self.next, available)?;
        let ([first, id], rest) = window.split_first_chunk::<2>()?;
        // The one look at the descriptor. Without the id, which needs no check.
        let descriptor = PacketDescriptor::from_words(load_word(first), 0);
        let extra = usize::from(descriptor.offset8).checked_sub(2)?;
        let payload = usize::from(descriptor.len8).checked_sub(usize::from(descriptor.offset8))?;
        let (extra, rest) = rest.split_at_checked(extra)?;
        let (payload, rest) = rest.split_at_checked(payload)?;
        // The trailer.
        if rest.is_empty() {
            return None;
        }
        let taken = take(&PacketView {
            packet_type: descriptor.packet_type,
            transaction_id: load_word(id),
            extra,
            payload,
        })?;
        self.next = advance(self.next, descriptor.ring_len(), self.size);
        Some(taken)
    }
}
