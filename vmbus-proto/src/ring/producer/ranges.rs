// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! GPA-direct packets with several ranges and a payload of a few words, for who sends many: the network.

use super::words::store_all;
use super::{store, PacketDescriptor, PacketFlags, PacketType, Producer, RingMemory, WriteError};
use crate::packet::GpaDirectHeader;
use crate::range::GpaRun;
use core::sync::atomic::AtomicU64;
use zerocopy::IntoBytes;

/// Words before the ranges: the descriptor, and how many ranges there are.
const HEAD_WORDS: usize = 3;

/// The ranges that were written by who was asked to by [`Producer::put_gpa_ranges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutRanges {
    /// How many there are.
    pub ranges: u32,
    /// Words that they take.
    pub words: u32,
}

/// The descriptor of a packet with `ranges`, which have `pages` pages together, and `payload` words of payload.
#[inline]
fn describe(
    ranges: &[GpaRun],
    pages: u64,
    payload: usize,
    transaction_id: u64,
) -> Result<PacketDescriptor, WriteError> {
    // In words. No sum of so many ranges of at most 2^21 pages as memory can hold is beyond 64 bits.
    let offset8 = pages
        .wrapping_add(ranges.len() as u64)
        .wrapping_add(HEAD_WORDS as u64);
    let len8 = offset8.wrapping_add(payload as u64);
    if len8 > u16::MAX.into() {
        return Err(WriteError::TooLarge);
    }
    if ranges.is_empty() {
        return Err(WriteError::WrongLength);
    }
    Ok(PacketDescriptor {
        packet_type: PacketType::DATA_USING_GPA_DIRECT,
        offset8: offset8 as u16,
        len8: len8 as u16,
        flags: PacketFlags::COMPLETION_REQUESTED,
        transaction_id,
    })
}

/// The words before the ranges.
#[inline(always)]
fn head(descriptor: &PacketDescriptor, ranges: u32) -> [u64; HEAD_WORDS] {
    let counts = GpaDirectHeader {
        reserved: 0,
        range_count: ranges,
    };
    [
        descriptor.low_word(),
        descriptor.transaction_id,
        counts.to_u64(),
    ]
}

impl<M: RingMemory> Producer<M> {
    /// Writes a GPA-direct packet with `ranges`, if `keep` bytes are free after it. A completion is asked for.
    ///
    /// # Errors
    /// See [`begin`](Self::begin); [`WriteError::Full`] also when fewer bytes would be left; [`WriteError::WrongLength`]
    /// when there is no range, or one of no bytes.
    #[inline]
    pub fn send_gpa_ranges<const N: usize>(
        &mut self,
        keep: u32,
        ranges: &[GpaRun],
        transaction_id: u64,
        payload: [u64; N],
    ) -> Result<(), WriteError> {
        let pages = ranges.iter().fold(0u64, |sum, run| {
            sum.wrapping_add(run.range.page_count().into())
        });
        let descriptor = describe(ranges, pages, N, transaction_id)?;
        self.reserve(descriptor.ring_len(), keep)?;
        if self.place_ranges(&descriptor, ranges, payload) {
            return Ok(());
        }
        // Nothing is wrapped at the end of the area: `write_far` takes that. Indexes and lengths are below 2^30.
        let start = self.next;
        // There are fewer ranges than words.
        let head = head(&descriptor, ranges.len() as u32);
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

    /// As [`send_gpa_ranges`](Self::send_gpa_ranges), in the fewest instructions: `write` puts the ranges where they go, up to `ROOM`
    /// words, each in little endian as in [`GpaRanges`](crate::range::GpaRanges), if it can. False when the packet is not written:
    /// the other way tells why, or does it, as when the peer's index has to be looked at or the memory has no
    /// [window](RingMemory::window).
    #[inline(always)] // Its callers are few, and count instructions.
    #[must_use]
    pub fn put_gpa_ranges<const ROOM: usize, const N: usize>(
        &mut self,
        keep: u32,
        transaction_id: u64,
        payload: [u64; N],
        write: impl FnOnce(&[AtomicU64; ROOM]) -> Option<PutRanges>,
    ) -> bool {
        const { assert!(HEAD_WORDS.wrapping_add(ROOM).wrapping_add(N) < u16::MAX as usize) };
        // Of the largest: what is beyond the ranges that there are is free as it was.
        let most = HEAD_WORDS
            .wrapping_add(ROOM)
            .wrapping_add(N)
            .wrapping_add(1)
            << 3;
        if (most as u64).wrapping_add(keep.into()) > self.free.into() || self.pending != 0 {
            return false;
        }
        let Some(window) = self.memory.window(self.next, most as u32) else {
            return false;
        };
        let Some((to_head, to_ranges)) = window.split_first_chunk::<HEAD_WORDS>() else {
            return false;
        };
        let Some(room) = to_ranges.first_chunk::<ROOM>() else {
            return false;
        };
        let Some(PutRanges { ranges, words }) = write(room) else {
            return false;
        };
        if ranges == 0 || words as usize > ROOM {
            return false;
        }
        let Some(rest) = to_ranges.get(words as usize..) else {
            return false;
        };
        let Some((to_payload, [trailer, ..])) = rest.split_first_chunk::<N>() else {
            return false;
        };
        // Below 2^16 by the assertion above.
        let offset8 = (words as u16).wrapping_add(HEAD_WORDS as u16);
        let descriptor = PacketDescriptor {
            packet_type: PacketType::DATA_USING_GPA_DIRECT,
            offset8,
            len8: offset8.wrapping_add(N as u16),
            flags: PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
        };
        store_all(to_head, &head(&descriptor, ranges));
        store_all(to_payload, &payload);
        store(trailer, u64::from(self.next) << 32);
        self.move_on(descriptor.ring_len());
        true
    }

    /// Writes the packet in place, for which there is room; false where the memory has no [window](RingMemory::window), or a range has
    /// no page.
    #[inline]
    fn place_ranges<const N: usize>(
        &mut self,
        descriptor: &PacketDescriptor,
        ranges: &[GpaRun],
        payload: [u64; N],
    ) -> bool {
        let Some(window) = self.memory.window(self.next, descriptor.ring_len()) else {
            return false;
        };
        let Some((to, rest)) = window.split_first_chunk::<HEAD_WORDS>() else {
            return false;
        };
        store_all(to, &head(descriptor, ranges.len() as u32));
        let Some(rest) = fill_ranges(rest, ranges) else {
            return false;
        };
        let Some((to, [trailer])) = rest.split_first_chunk::<N>() else {
            return false;
        };
        store_all(to, &payload);
        store(trailer, u64::from(self.next) << 32);
        self.move_on(descriptor.ring_len());
        true
    }
}

/// Writes ranges; returns the words behind them. `None` if there are too few words, or a range has no page.
#[inline]
fn fill_ranges<'r>(words: &'r [AtomicU64], ranges: &[GpaRun]) -> Option<&'r [AtomicU64]> {
    let mut rest = words;
    for GpaRun { range, first } in ranges {
        let (head, pages) = rest.split_first()?;
        let count = range.page_count() as usize;
        if count == 0 {
            return None;
        }
        let (pages, behind) = pages.split_at_checked(count)?;
        store(head, range.to_u64());
        let mut pfn = *first;
        for page in pages {
            store(page, pfn);
            pfn = pfn.wrapping_add(1);
        }
        rest = behind;
    }
    Some(rest)
}
