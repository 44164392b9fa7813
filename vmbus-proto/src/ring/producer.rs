// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The writing side of a ring.

use super::{
    advance, check_size, distance, initialise, valid_index, ControlWord, RingError, RingMemory,
    WriteError, FEATURE_PENDING_SEND_SIZE,
};
use crate::packet::{
    GpaDirectHeader, PacketDescriptor, PacketFlags, PacketType, TransferPageHeader, TransferRange,
    DESCRIPTOR_SIZE, EXTRA_HEADER_SIZE, TRAILER_SIZE,
};
use crate::range::GpaRangeHeader;
use core::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

mod ranges;
mod words;

pub use ranges::PutRanges;

/// Writes packets into a ring.
///
/// Packets are written one by one and become visible together with [`commit`](Self::commit), which
/// says whether to signal the peer. Not for use by several threads at once: put it under a lock.
///
/// # Invariants
///
/// - `size` is the checked size of the data area.
/// - `next` and `committed` are multiples of 8 below `size`.
/// - The consumer may read up to `committed`; it has read, and will not read again, what starts at `next` and is `free` bytes
///   long, which is never all of the ring.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    size: u32,
    /// Where the next packet goes.
    next: u32,
    /// `write_index` as the consumer sees it. Never read back.
    committed: u32,
    /// Bytes free from `next` on, by the consumer's index when it was last looked at. Stale values only hide free space.
    free: u32,
    /// `pending_send_sz` as the consumer sees it.
    pending: u32,
}

impl<M: RingMemory> Producer<M> {
    /// Sets up an unused ring and becomes its producer. For the side that owns the memory (the
    /// guest), before the peer learns of it.
    ///
    /// # Errors
    /// [`RingError::BadSize`].
    pub fn init(memory: M) -> Result<Self, RingError> {
        let size = check_size(&memory)?;
        initialise(&memory);
        Ok(Self {
            memory,
            size,
            next: 0,
            committed: 0,
            free: size.wrapping_sub(8),
            pending: 0,
        })
    }

    /// Becomes the producer of a ring that the peer has set up (the host, at OPEN_CHANNEL), going on
    /// where the indexes say. Sets the feature bit and clears `pending_send_sz`, both of which are
    /// the producer's.
    ///
    /// # Errors
    /// [`RingError::BadSize`], [`RingError::BadWriteIndex`], [`RingError::BadReadIndex`].
    pub fn attach(memory: M) -> Result<Self, RingError> {
        let size = check_size(&memory)?;
        let next = memory.load_acquire(ControlWord::WriteIndex);
        if !valid_index(next, size) {
            return Err(RingError::BadWriteIndex { index: next });
        }
        let read = memory.load_acquire(ControlWord::ReadIndex);
        if !valid_index(read, size) {
            return Err(RingError::BadReadIndex { index: read });
        }
        memory.store(ControlWord::PendingSendSize, 0);
        memory.store_release(ControlWord::FeatureBits, FEATURE_PENDING_SEND_SIZE);
        Ok(Self {
            memory,
            size,
            next,
            committed: next,
            free: free_between(next, read, size),
            pending: 0,
        })
    }

    /// The memory of the ring.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Size of the data area in bytes.
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// `write_index` as the peer sees it.
    #[must_use]
    pub const fn write_index(&self) -> u32 {
        self.committed
    }

    /// Most bytes a packet can take in the ring, trailer included: 8 always stay free, so that full
    /// and empty differ.
    #[must_use]
    pub const fn max_ring_len(&self) -> u32 {
        self.size.wrapping_sub(8)
    }

    /// Looks at the consumer's index.
    #[inline]
    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: the consumer has copied what it says it has read before we overwrite it.
        let index = self.memory.load_acquire(ControlWord::ReadIndex);
        if !valid_index(index, self.size) {
            return Err(RingError::BadReadIndex { index });
        }
        self.free = free_between(self.next, index, self.size);
        Ok(())
    }

    /// Bytes free now for packets with their trailers.
    ///
    /// # Errors
    /// [`RingError::BadReadIndex`].
    pub fn free(&mut self) -> Result<u32, RingError> {
        self.refresh()?;
        Ok(self.free)
    }

    /// Whether more than `bytes` are free for packets with their trailers. Looks at the peer's index only when what it was
    /// before does not say so.
    ///
    /// # Errors
    /// [`RingError::BadReadIndex`].
    #[inline]
    pub fn has_room(&mut self, bytes: u32) -> Result<bool, RingError> {
        if self.free > bytes {
            return Ok(true);
        }
        Ok(self.free()? > bytes)
    }

    /// Starts a packet with `extra` bytes of extra header (a multiple of 8) and `payload` bytes of
    /// payload, which the caller then writes through the [`PacketWriter`].
    ///
    /// # Errors
    /// [`WriteError::Full`] and [`WriteError::TooLarge`] for want of space,
    /// [`WriteError::WrongLength`] when `extra` is no multiple of 8, [`WriteError::Corrupt`]. The ring
    /// is unchanged then.
    #[inline]
    pub fn begin(
        &mut self,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        extra: usize,
        payload: usize,
    ) -> Result<PacketWriter<'_, M>, WriteError> {
        if extra & 7 != 0 {
            return Err(WriteError::WrongLength);
        }
        let descriptor = PacketDescriptor::new(packet_type, flags, transaction_id, extra, payload)
            .ok_or(WriteError::TooLarge)?;
        self.reserve(descriptor.ring_len(), 0)?;
        let start = self.next;
        self.memory.write_u64(start, descriptor.low_word());
        self.memory
            .write_u64(advance(start, 8, self.size), transaction_id);
        Ok(PacketWriter {
            at: advance(start, DESCRIPTOR_SIZE, self.size),
            // Both below 2^20: a descriptor counts in 16 bits of 8 bytes.
            left: extra.wrapping_add(payload) as u32,
            padding: descriptor
                .packet_len()
                .wrapping_sub(DESCRIPTOR_SIZE)
                .wrapping_sub(extra.wrapping_add(payload) as u32),
            ring: self,
        })
    }

    /// Sees to it that a packet with its trailer, `needed` bytes, can be written, and `keep` bytes are free after that.
    #[inline]
    fn reserve(&mut self, needed: u32, keep: u32) -> Result<(), WriteError> {
        if u64::from(needed).wrapping_add(keep.into()) > self.free.into() {
            self.make_room(needed, keep)?;
        }
        if self.pending != 0 {
            // The packet that waited, or one before it, has its space.
            self.cancel_space_request();
        }
        Ok(())
    }

    #[cold]
    fn make_room(&mut self, needed: u32, keep: u32) -> Result<(), WriteError> {
        if needed > self.max_ring_len() {
            return Err(WriteError::TooLarge);
        }
        self.refresh()?;
        let all = needed.saturating_add(keep);
        if all > self.free {
            return Err(WriteError::Full {
                needed: all.min(self.max_ring_len()),
            });
        }
        Ok(())
    }

    /// Writes a packet whose data are all in `payload`; with `completion`, the peer is asked for an
    /// answer.
    ///
    /// # Errors
    /// See [`begin`](Self::begin).
    #[inline]
    pub fn send_in_band(
        &mut self,
        payload: &[u8],
        transaction_id: u64,
        completion: bool,
    ) -> Result<(), WriteError> {
        let flags = if completion {
            PacketFlags::COMPLETION_REQUESTED
        } else {
            PacketFlags::empty()
        };
        let mut packet = self.begin(
            PacketType::DATA_INBAND,
            flags,
            transaction_id,
            0,
            payload.len(),
        )?;
        packet.put(payload)?;
        packet.finish()
    }

    /// Answers the packet with `transaction_id`.
    ///
    /// # Errors
    /// See [`begin`](Self::begin).
    #[inline]
    pub fn send_completion(
        &mut self,
        transaction_id: u64,
        payload: &[u8],
    ) -> Result<(), WriteError> {
        let mut packet = self.begin(
            PacketType::COMPLETION,
            PacketFlags::empty(),
            transaction_id,
            0,
            payload.len(),
        )?;
        packet.put(payload)?;
        packet.finish()
    }

    /// Writes a packet with one range of guest memory, whose page frame numbers `pfns` gives: as
    /// many as [`GpaRangeHeader::page_count`] says. A completion is asked for. For several
    /// ranges use [`begin`](Self::begin).
    ///
    /// # Errors
    /// See [`begin`](Self::begin); [`WriteError::WrongLength`] when `pfns` are too few or too many.
    #[inline]
    pub fn send_gpa_direct(
        &mut self,
        range: GpaRangeHeader,
        pfns: impl IntoIterator<Item = u64>,
        payload: &[u8],
        transaction_id: u64,
    ) -> Result<(), WriteError> {
        let pages = range.page_count();
        let mut packet = self.begin(
            PacketType::DATA_USING_GPA_DIRECT,
            PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
            range.encoded_len().wrapping_add(EXTRA_HEADER_SIZE as usize),
            payload.len(),
        )?;
        packet.put_u64(ONE_RANGE.to_u64())?;
        packet.put_u64(range.to_u64())?;
        let mut count = 0u32;
        for pfn in pfns {
            count = count.wrapping_add(1);
            if count > pages {
                return Err(WriteError::WrongLength);
            }
            packet.put_u64(pfn)?;
        }
        if count != pages {
            return Err(WriteError::WrongLength);
        }
        packet.put(payload)?;
        packet.finish()
    }

    /// As [`send_gpa_direct`](Self::send_gpa_direct), for who sends much: room for the packet with `N` words of payload, if `keep`
    /// bytes are free after it, for who has other channels. To be filled in and given to
    /// [`finish_gpa_direct`](Self::finish_gpa_direct). `None` when the other way is to be taken, which tells what is wrong or does
    /// it: when there is no room or the peer's index has to be looked at, or the memory has no [window](RingMemory::window).
    #[inline(always)] // Its callers are few, and count instructions.
    #[must_use]
    pub fn begin_gpa_direct<const N: usize>(
        &self,
        keep: u32,
        range: GpaRangeHeader,
    ) -> Option<GpaDirectRoom<'_, N>> {
        const HEAD_WORDS: usize = 4;
        // In words: at most 2^20 pages, and what an array can have.
        let pages = range.page_count();
        let offset8 = u64::from(pages).wrapping_add(HEAD_WORDS as u64);
        let len8 = offset8.wrapping_add(N as u64);
        if len8 > u16::MAX.into() {
            return None;
        }
        let descriptor = PacketDescriptor {
            packet_type: PacketType::DATA_USING_GPA_DIRECT,
            offset8: offset8 as u16,
            len8: len8 as u16,
            flags: PacketFlags::COMPLETION_REQUESTED,
            transaction_id: 0,
        };
        let ring_len = descriptor.ring_len();
        if u64::from(ring_len).wrapping_add(keep.into()) > self.free.into() || self.pending != 0 {
            return None;
        }
        let window = self.memory.window(self.next, ring_len)?;
        let ([low, id, one_range, range_word], rest) = window.split_first_chunk::<HEAD_WORDS>()?;
        let (pfns, rest) = rest.split_at_checked(pages as usize)?;
        let (payload, [trailer]) = rest.split_first_chunk::<N>()? else {
            return None;
        };
        store(low, descriptor.low_word());
        store(one_range, ONE_RANGE.to_u64());
        store(range_word, range.to_u64());
        store(trailer, u64::from(self.next) << 32);
        Some(GpaDirectRoom {
            id,
            pfns,
            payload,
            ring_len,
        })
    }

    /// Ends the packet for which [`begin_gpa_direct`](Self::begin_gpa_direct) found room, and which has been filled in; nothing
    /// was written in between.
    #[inline(always)]
    pub fn finish_gpa_direct(&mut self, packet: Filled) {
        self.move_on(packet.ring_len);
    }

    /// Ends a packet of `len` bytes, trailer included, for which there is room.
    #[inline]
    fn move_on(&mut self, len: u32) {
        self.next = advance(self.next, len, self.size);
        self.free = self.free.wrapping_sub(len);
    }

    /// Writes what follows the last byte of a packet, which ends before `at`.
    #[inline]
    fn end_packet(&mut self, at: u32, padding: u32) {
        // No byte of the padding may show what the memory held before.
        if padding != 0 {
            if let Some(zeroes) = [0u8; 7].get(..padding as usize) {
                self.memory.write(at, zeroes);
            }
        }
        let trailer = advance(at, padding, self.size);
        self.memory.write_u64(trailer, u64::from(self.next) << 32);
        let after = advance(trailer, TRAILER_SIZE, self.size);
        self.move_on(distance(self.next, after, self.size));
    }

    /// Writes a packet whose data are in `ranges` of the shared buffer `set_id`. A completion is asked
    /// for.
    ///
    /// # Errors
    /// See [`begin`](Self::begin).
    pub fn send_transfer_pages(
        &mut self,
        set_id: u16,
        ranges: &[TransferRange],
        payload: &[u8],
        transaction_id: u64,
    ) -> Result<(), WriteError> {
        let bytes = ranges.as_bytes();
        let range_count = u32::try_from(ranges.len()).map_err(|_| WriteError::TooLarge)?;
        let mut packet = self.begin(
            PacketType::DATA_USING_XFER_PAGES,
            PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
            bytes.len().saturating_add(EXTRA_HEADER_SIZE as usize),
            payload.len(),
        )?;
        packet.put(
            TransferPageHeader {
                set_id,
                range_count,
                ..TransferPageHeader::default()
            }
            .as_bytes(),
        )?;
        packet.put(bytes)?;
        packet.put(payload)?;
        packet.finish()
    }

    /// Makes the packets written since the last commit visible. Returns whether the peer must be
    /// signalled: the caller does so after releasing its lock, if it likes.
    #[inline]
    #[must_use = "the peer may wait for the signal"]
    pub fn commit(&mut self) -> bool {
        let old = self.committed;
        if old == self.next {
            return false;
        }
        self.committed = self.next;
        // Release: packets before the index. Full barrier: the index before the loads below; the
        // consumer clears its mask, stores its index, and then looks at ours, with a full barrier
        // between. So at least one of the two sees the other's store.
        self.memory
            .store_and_fence(ControlWord::WriteIndex, self.next);
        // Acquire: the mask is looked at before the index.
        if self.memory.load_acquire(ControlWord::InterruptMask) != 0 {
            return false;
        }
        // An index out of range differs from ours; it is reported when we next need space.
        self.memory.load(ControlWord::ReadIndex) == old
    }

    /// Whether the consumer has read all that was committed: then it need not be told of any of it.
    pub fn is_read(&self) -> bool {
        self.memory.load(ControlWord::ReadIndex) == self.committed
    }

    /// Forgets the packets written since the last commit.
    pub fn revert(&mut self) {
        self.free = self
            .free
            .wrapping_add(distance(self.committed, self.next, self.size));
        self.next = self.committed;
    }

    /// After [`WriteError::Full`]: asks the consumer to signal once `needed` bytes (as that error
    /// says) are free. Returns `true` when they are already: try again at once, no signal will
    /// come. The request ends with the next packet written, or with
    /// [`cancel_space_request`](Self::cancel_space_request).
    ///
    /// Packets not yet committed cannot be read, so commit first.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`], [`WriteError::Corrupt`].
    pub fn request_space(&mut self, needed: u32) -> Result<bool, WriteError> {
        if needed > self.max_ring_len() {
            return Err(WriteError::TooLarge);
        }
        self.pending = needed;
        // Full barrier: the consumer stores its index, then looks at our request; we store the
        // request, then look at its index.
        self.memory
            .store_and_fence(ControlWord::PendingSendSize, needed);
        self.refresh()?;
        if needed <= self.free {
            self.cancel_space_request();
            return Ok(true);
        }
        Ok(false)
    }

    /// Takes the request of [`request_space`](Self::request_space) back.
    pub fn cancel_space_request(&mut self) {
        self.pending = 0;
        self.memory.store(ControlWord::PendingSendSize, 0);
    }
}

/// Bytes from `next` on that are free when the consumer is at `read`: from 0 to `size - 8`, since 8 always stay free.
#[inline]
const fn free_between(next: u32, read: u32, size: u32) -> u32 {
    size.wrapping_sub(distance(read, next, size))
        .wrapping_sub(8)
}

/// Extra header of a packet with one range.
const ONE_RANGE: GpaDirectHeader = GpaDirectHeader {
    reserved: 0,
    range_count: 1,
};

impl GpaDirectHeader {
    /// As a 64-bit word.
    const fn to_u64(self) -> u64 {
        self.reserved as u64 | ((self.range_count as u64) << 32)
    }
}

/// Stores a word in the peer's byte order.
#[inline(always)]
fn store(word: &AtomicU64, value: u64) {
    word.store(value.to_le(), Ordering::Relaxed);
}

/// Room in the ring for a packet with one range of guest memory, from [`Producer::begin_gpa_direct`]. What is written does not
/// exist for the peer before the packet is finished.
#[derive(Debug)]
pub struct GpaDirectRoom<'r, const N: usize> {
    id: &'r AtomicU64,
    pfns: &'r [AtomicU64],
    payload: &'r [AtomicU64; N],
    ring_len: u32,
}

/// That a packet is whole but for being finished.
#[derive(Debug)]
pub struct Filled {
    ring_len: u32,
}

impl<const N: usize> GpaDirectRoom<'_, N> {
    /// Where the page frame numbers go, in little endian: as many as [`GpaRangeHeader::page_count`] says.
    #[inline(always)]
    #[must_use]
    pub fn pfns(&self) -> &[AtomicU64] {
        self.pfns
    }

    /// Writes the rest.
    #[inline(always)]
    #[must_use]
    pub fn fill(self, transaction_id: u64, payload: &[u64; N]) -> Filled {
        store(self.id, transaction_id);
        for (word, value) in self.payload.iter().zip(payload) {
            store(word, *value);
        }
        Filled {
            ring_len: self.ring_len,
        }
    }
}

/// A packet in the making, from [`Producer::begin`]. Write the extra header, then the payload, then
/// call [`finish`](Self::finish). Dropped before that, the packet does not exist.
#[derive(Debug)]
pub struct PacketWriter<'r, M: RingMemory> {
    ring: &'r mut Producer<M>,
    /// Where the next byte goes, below the ring's size.
    at: u32,
    /// Bytes announced and not yet written.
    left: u32,
    /// Zero bytes after the payload.
    padding: u32,
}

impl<M: RingMemory> PacketWriter<'_, M> {
    /// Appends bytes.
    ///
    /// # Errors
    /// [`WriteError::WrongLength`] when more are written than announced.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let len = u32::try_from(bytes.len()).map_err(|_| WriteError::WrongLength)?;
        self.left = self.left.checked_sub(len).ok_or(WriteError::WrongLength)?;
        self.ring.memory.write(self.at, bytes);
        self.at = advance(self.at, len, self.ring.size);
        Ok(())
    }

    /// Appends a 64-bit word, such as a page frame number.
    ///
    /// # Errors
    /// [`WriteError::WrongLength`] when more are written than announced.
    #[inline]
    pub fn put_u64(&mut self, word: u64) -> Result<(), WriteError> {
        if self.at & 7 != 0 {
            return self.put(&word.to_le_bytes());
        }
        self.left = self.left.checked_sub(8).ok_or(WriteError::WrongLength)?;
        self.ring.memory.write_u64(self.at, word);
        self.at = advance(self.at, 8, self.ring.size);
        Ok(())
    }

    /// Ends the packet: padding and trailer. It becomes visible with [`Producer::commit`].
    ///
    /// # Errors
    /// [`WriteError::WrongLength`] when fewer bytes were written than announced; the packet does
    /// not exist then.
    #[inline]
    pub fn finish(self) -> Result<(), WriteError> {
        if self.left != 0 {
            return Err(WriteError::WrongLength);
        }
        self.ring.end_packet(self.at, self.padding);
        Ok(())
    }
}
