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
use zerocopy::IntoBytes;

mod words;

/// Writes packets into a ring.
///
/// Packets are written one by one and become visible together with [`commit`](Self::commit), which
/// says whether to signal the peer. Not for use by several threads at once: put it under a lock.
///
/// # Invariants
///
/// - `size` is the checked size of the data area.
/// - `next`, `committed` and `cached_read` are multiples of 8 below `size`.
/// - The consumer may read from `cached_read` (or later) up to `committed`; what is free starts at
///   `next` and ends before `cached_read`, and is never all of the ring.
#[derive(Debug)]
pub struct Producer<M> {
    memory: M,
    size: u32,
    /// Where the next packet goes.
    next: u32,
    /// `write_index` as the consumer sees it. Never read back.
    committed: u32,
    /// The consumer's index when it was last looked at. Stale values only hide free space.
    cached_read: u32,
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
            cached_read: 0,
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
        let cached_read = memory.load_acquire(ControlWord::ReadIndex);
        if !valid_index(cached_read, size) {
            return Err(RingError::BadReadIndex { index: cached_read });
        }
        memory.store(ControlWord::PendingSendSize, 0);
        memory.store_release(ControlWord::FeatureBits, FEATURE_PENDING_SEND_SIZE);
        Ok(Self {
            memory,
            size,
            next,
            committed: next,
            cached_read,
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

    /// Bytes free for packets (with trailers), by the consumer's index as last seen.
    #[inline]
    const fn cached_free(&self) -> u32 {
        // From 8 to `size`; one unit of 8 always stays free.
        self.size
            .wrapping_sub(distance(self.cached_read, self.next, self.size))
            .wrapping_sub(8)
    }

    /// Looks at the consumer's index.
    #[inline]
    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: the consumer has copied what it says it has read before we overwrite it.
        let index = self.memory.load_acquire(ControlWord::ReadIndex);
        if !valid_index(index, self.size) {
            return Err(RingError::BadReadIndex { index });
        }
        self.cached_read = index;
        Ok(())
    }

    /// Bytes free now for packets with their trailers.
    ///
    /// # Errors
    /// [`RingError::BadReadIndex`].
    pub fn free(&mut self) -> Result<u32, RingError> {
        self.refresh()?;
        Ok(self.cached_free())
    }

    /// Whether more than `bytes` are free for packets with their trailers. Looks at the peer's index only when what it was
    /// before does not say so.
    ///
    /// # Errors
    /// [`RingError::BadReadIndex`].
    #[inline]
    pub fn has_room(&mut self, bytes: u32) -> Result<bool, RingError> {
        if self.cached_free() > bytes {
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
        if needed.saturating_add(keep) > self.cached_free() {
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
        if all > self.cached_free() {
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

    /// As [`send_gpa_direct`](Self::send_gpa_direct), for who sends much: with the payload in words, and if `keep` bytes are
    /// free after it, for who has other channels. `payload` is called once there is room. Writes few and large pieces,
    /// whose sizes the compiler knows.
    ///
    /// # Errors
    /// As there; [`WriteError::Full`] also when fewer bytes would be left; [`WriteError::WrongLength`] also when there is no
    /// payload.
    #[inline(always)] // Its callers are few, and count instructions.
    pub fn send_gpa_direct_keeping<const N: usize>(
        &mut self,
        keep: u32,
        range: GpaRangeHeader,
        pfns: impl IntoIterator<Item = u64>,
        transaction_id: u64,
        payload: impl FnOnce() -> Option<[u64; N]>,
    ) -> Result<(), WriteError> {
        const HEAD_WORDS: u32 = 4;
        // In words: at most 2^20 pages, and what an array can have.
        let pages = range.page_count();
        let offset8 = u64::from(pages).wrapping_add(HEAD_WORDS.into());
        let len8 = offset8.wrapping_add(N as u64);
        if len8 > u16::MAX.into() {
            return Err(WriteError::TooLarge);
        }
        let descriptor = PacketDescriptor {
            packet_type: PacketType::DATA_USING_GPA_DIRECT,
            offset8: offset8 as u16,
            len8: len8 as u16,
            flags: PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
        };
        self.reserve(descriptor.ring_len(), keep)?;
        // Nothing is wrapped at the end of the area: `write_far` takes that. Indexes and lengths are below 2^30.
        let start = self.next;
        let head: [u64; HEAD_WORDS as usize] = [
            descriptor.low_word(),
            transaction_id,
            ONE_RANGE.to_u64(),
            range.to_u64(),
        ];
        self.memory.write_far(start, head.as_bytes());
        let payload = payload().ok_or(WriteError::WrongLength)?;
        let at = start.wrapping_add(descriptor.payload_offset());
        self.memory.write_far(at, payload.as_bytes());
        let trailer = start.wrapping_add(descriptor.packet_len());
        self.memory
            .write_far(trailer, &((start as u64) << 32).to_le_bytes());
        // Not `for`: an iterator over lists in lists does this with fewer instructions.
        let first = start.wrapping_add(HEAD_WORDS.wrapping_mul(8));
        let end = pfns.into_iter().fold(first, |to, pfn| {
            if to < at {
                self.memory.write_far(to, &pfn.to_le_bytes());
            }
            to.saturating_add(8)
        });
        if end != at {
            return Err(WriteError::WrongLength);
        }
        self.next = advance(start, descriptor.ring_len(), self.size);
        Ok(())
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
        self.memory.write_u64(trailer, (self.next as u64) << 32);
        self.next = advance(trailer, TRAILER_SIZE, self.size);
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

    /// Forgets the packets written since the last commit.
    pub fn revert(&mut self) {
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
        if needed <= self.cached_free() {
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
