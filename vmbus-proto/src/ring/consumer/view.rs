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

/// What is to become of a packet that [`Consumer::take_while`] shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was taken. Show the next.
    Next,
    /// It was taken. Show no more.
    Stop,
    /// It is not wanted: nothing has happened. Show no more.
    Leave,
}

/// Why [`Consumer::take_while`] shows no more packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// There are none.
    All,
    /// [`Step::Stop`].
    Enough,
    /// The next one is not wanted, or cannot be shown: it is malformed, the ring is broken, or the memory has no
    /// [window](RingMemory::window). [`Consumer::peek`] tells what there is.
    Left,
}

/// Copies a word of a [`PacketView`], in the byte order of this machine.
#[inline(always)]
#[must_use]
pub fn load_word(word: &AtomicU64) -> u64 {
    u64::from_le(word.load(Ordering::Relaxed))
}

impl<M: RingMemory> Consumer<M> {
    /// Shows `take` one packet after the other where it lies, and moves on behind those that it takes.
    #[inline(always)] // Its callers are few, and count instructions.
    pub fn take_while(&mut self, mut take: impl FnMut(&PacketView<'_>) -> Step) -> Shown {
        loop {
            if self.next == self.cached_write {
                if self.refresh().is_err() {
                    return Shown::Left;
                }
                if self.next == self.cached_write {
                    return Shown::All;
                }
            }
            // All that is looked at lies in these words, and so within what the producer says it has written.
            let available = distance(self.next, self.cached_write, self.size);
            let Some(window) = self.memory.window(self.next, available) else {
                return Shown::Left;
            };
            let mut rest = window;
            let end = loop {
                let Some((packet, behind)) = split_packet(rest) else {
                    break Shown::Left;
                };
                match take(&packet) {
                    Step::Next => rest = behind,
                    Step::Stop => {
                        rest = behind;
                        break Shown::Enough;
                    }
                    Step::Leave => break Shown::Left,
                }
                if rest.is_empty() {
                    break Shown::All;
                }
            };
            // `rest` is the end of `window`, which has less than 2^29 words.
            let taken = window.len().wrapping_sub(rest.len()) as u32;
            self.next = advance(self.next, taken << 3, self.size);
            if end != Shown::All {
                return end;
            }
        }
    }
}

/// The packet at the start of `words`, and what follows it; `None` unless it lies in them with its trailer.
#[inline(always)]
fn split_packet(words: &[AtomicU64]) -> Option<(PacketView<'_>, &[AtomicU64])> {
    let ([first, id], rest) = words.split_first_chunk::<2>()?;
    // The one look at the descriptor. Without the id, which needs no check.
    let descriptor = PacketDescriptor::from_words(load_word(first), 0);
    let extra = usize::from(descriptor.offset8).checked_sub(2)?;
    let payload = usize::from(descriptor.len8).checked_sub(usize::from(descriptor.offset8))?;
    let (extra, rest) = rest.split_at_checked(extra)?;
    let (payload, rest) = rest.split_at_checked(payload)?;
    let (_trailer, behind) = rest.split_first()?;
    let packet = PacketView {
        packet_type: descriptor.packet_type,
        transaction_id: load_word(id),
        extra,
        payload,
    };
    Some((packet, behind))
}
