// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The reading side of a ring.

use super::{
    advance, check_size, distance, initialise, valid_index, ControlWord, ReadError, RingError,
    RingMemory, FEATURE_PENDING_SEND_SIZE,
};
use crate::packet::{
    Packet, PacketDescriptor, PacketFlags, PacketType, DESCRIPTOR_SIZE, TRAILER_SIZE,
};
use core::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

mod view;
pub use view::{load_word, PacketView, Shown, Step};

/// Reads packets from a ring.
///
/// Packets are read one by one; their space is given back together with [`commit`](Self::commit) or
/// [`finish`](Self::finish). The loop of a reader:
///
/// ```text
/// rx.mask();
/// loop {
///     while budget { match rx.read(&mut buffer) { Ok(packet) => …, Err(Empty) => break, … } }
///     let drained = rx.finish();
///     if drained.signal { signal the peer }
///     if !drained.more { break }
///     rx.mask();
/// }
/// ```
///
/// A reader that stops while the ring holds packets must come back by itself: the peer signals
/// only when the ring turns from empty to not empty.
///
/// # Invariants
///
/// - `size` is the checked size of the data area.
/// - `next`, `committed` and `cached_write` are multiples of 8 below `size`.
/// - Packets lie from `next` up to `cached_write`.
#[derive(Debug)]
pub struct Consumer<M> {
    memory: M,
    size: u32,
    /// Where the next packet starts.
    next: u32,
    /// `read_index` as the producer sees it. Never read back.
    committed: u32,
    /// The producer's index when it was last looked at. Stale values only hide packets.
    cached_write: u32,
    /// Whether the producer was told not to signal.
    masked: bool,
}

/// A packet in the ring whose descriptor was copied and checked. Valid until it is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// The copy.
    pub descriptor: PacketDescriptor,
    /// Where the packet starts.
    at: u32,
}

/// Outcome of [`Consumer::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the peer may wait for a signal, packets may wait for the reader"]
pub struct Drained {
    /// The peer waits for space and there is enough now: signal it.
    pub signal: bool,
    /// There are packets, or the ring is corrupt: read again (and find out).
    pub more: bool,
}

impl<M: RingMemory> Consumer<M> {
    /// Sets up an unused ring and becomes its consumer. For the side that owns the memory (the
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
            cached_write: 0,
            masked: false,
        })
    }

    /// Becomes the consumer of a ring that the peer has set up (the host, at OPEN_CHANNEL), going on
    /// where the indexes say, with signals on. Read once before waiting for the first signal: packets
    /// may be there already.
    ///
    /// # Errors
    /// [`RingError::BadSize`], [`RingError::BadWriteIndex`], [`RingError::BadReadIndex`].
    pub fn attach(memory: M) -> Result<Self, RingError> {
        let size = check_size(&memory)?;
        let next = memory.load_acquire(ControlWord::ReadIndex);
        if !valid_index(next, size) {
            return Err(RingError::BadReadIndex { index: next });
        }
        memory.store_and_fence(ControlWord::InterruptMask, 0);
        let cached_write = memory.load_acquire(ControlWord::WriteIndex);
        if !valid_index(cached_write, size) {
            return Err(RingError::BadWriteIndex {
                index: cached_write,
            });
        }
        Ok(Self {
            memory,
            size,
            next,
            committed: next,
            cached_write,
            masked: false,
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

    /// `read_index` as the peer sees it.
    #[must_use]
    pub const fn read_index(&self) -> u32 {
        self.committed
    }

    /// Whether a quarter of the ring has been read but not given back: [`commit`](Self::commit) before reading on.
    /// A reader whose peer writes as fast as it reads may never find the ring empty; without this it would
    /// fill up, with nothing in it.
    #[inline]
    #[must_use]
    pub const fn should_commit(&self) -> bool {
        distance(self.committed, self.next, self.size) >= self.size / 4
    }

    /// Looks at the producer's index.
    #[inline]
    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: packets are read after the index that covers them.
        let index = self.memory.load_acquire(ControlWord::WriteIndex);
        if !valid_index(index, self.size) {
            return Err(RingError::BadWriteIndex { index });
        }
        self.cached_write = index;
        Ok(())
    }

    /// Bytes to read now, trailers included.
    ///
    /// # Errors
    /// [`RingError::BadWriteIndex`].
    #[inline]
    pub fn available(&mut self) -> Result<u32, RingError> {
        self.refresh()?;
        Ok(distance(self.next, self.cached_write, self.size))
    }

    /// The next packet, left in the ring: copy what is wanted with [`copy`](Self::copy), then
    /// [`accept`](Self::accept) it.
    ///
    /// # Errors
    /// [`ReadError::Empty`], [`ReadError::Corrupt`].
    #[inline]
    pub fn peek(&mut self) -> Result<Incoming, ReadError> {
        if self.next == self.cached_write {
            self.refresh()?;
            if self.next == self.cached_write {
                return Err(ReadError::Empty);
            }
        }
        let available = distance(self.next, self.cached_write, self.size);
        if available < DESCRIPTOR_SIZE.wrapping_add(TRAILER_SIZE) {
            return Err(RingError::Truncated { available }.into());
        }
        // The one look at the descriptor.
        let [first, second] = self.memory.read_u64_pair(self.next);
        let descriptor = PacketDescriptor::from_words(first, second);
        descriptor.check(available).map_err(RingError::Packet)?;
        Ok(Incoming {
            descriptor,
            at: self.next,
        })
    }

    /// Shows `take` the transaction id and the first `N` words of the payload of the next packet, if that is a completion
    /// with a payload of `payload` bytes; moves on if that returns something. Else nothing has happened, and
    /// [`peek`](Self::peek) tells what there is; so also where the memory has no [window](RingMemory::window). For readers of many
    /// packets of one kind: with constant arguments most checks are none.
    #[inline]
    pub fn take_completion<const N: usize, R>(
        &mut self,
        payload: u32,
        take: impl FnOnce(u64, &[u64; N]) -> Option<R>,
    ) -> Option<R> {
        let expected = PacketDescriptor::new(
            PacketType::COMPLETION,
            PacketFlags::empty(),
            0,
            0,
            payload as usize,
        )?;
        if self.next == self.cached_write {
            self.refresh().ok()?;
        }
        // Of an empty ring there are 0, of a broken one perhaps fewer than its next packet needs.
        if distance(self.next, self.cached_write, self.size) < expected.ring_len() {
            return None;
        }
        let after = advance(self.next, expected.ring_len(), self.size);
        let window = self.memory.window(self.next, expected.ring_len())?;
        let ([first, id], rest) = window.split_first_chunk::<2>()?;
        let get = |word: &AtomicU64| u64::from_le(word.load(Ordering::Relaxed));
        if get(first) != expected.low_word() || N > payload as usize >> 3 {
            return None;
        }
        let transaction_id = get(id);
        let mut words = [0; N];
        for (to, word) in words.iter_mut().zip(rest.first_chunk::<N>()?) {
            *to = get(word);
        }
        let taken = take(transaction_id, &words)?;
        self.next = after;
        Some(taken)
    }

    /// Whether all packets that were there when the producer's index was last looked at have been read:
    /// [`finish`](Self::finish) tells whether there are more.
    #[inline]
    #[must_use]
    pub const fn is_drained(&self) -> bool {
        self.next == self.cached_write
    }

    /// Copies bytes of a packet, from `offset` within it on. What lies in the ring may change between
    /// two copies: look at each byte of a packet once.
    ///
    /// Returns `false`, with `out` unchanged, when the packet does not reach that far or has been
    /// accepted.
    #[inline]
    #[must_use]
    pub fn copy(&self, packet: &Incoming, offset: u32, out: &mut [u8]) -> bool {
        let fits = u32::try_from(out.len())
            .ok()
            .and_then(|len| offset.checked_add(len))
            .is_some_and(|end| end <= packet.descriptor.packet_len());
        if !fits || packet.at != self.next {
            return false;
        }
        self.memory.read(advance(packet.at, offset, self.size), out);
        true
    }

    /// As [`copy`](Self::copy), of `N` words; `None` when the packet does not reach that far or has been accepted.
    #[inline]
    #[must_use]
    pub fn copy_words<const N: usize>(&self, packet: &Incoming, offset: u32) -> Option<[u64; N]> {
        let mut words = [0; N];
        self.copy(packet, offset, words.as_mut_bytes())
            .then_some(words)
    }

    /// Moves on to the packet after `packet`. Does nothing when that has been accepted before.
    #[inline]
    pub fn accept(&mut self, packet: &Incoming) {
        if packet.at == self.next {
            self.next = advance(self.next, packet.descriptor.ring_len(), self.size);
        }
    }

    /// Copies the next packet into `buffer`, takes the copy apart and moves on.
    ///
    /// # Errors
    /// [`ReadError::Empty`]; [`ReadError::BufferTooSmall`], with the packet left in the ring;
    /// [`ReadError::Corrupt`].
    #[inline]
    pub fn read<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Packet<'b>, ReadError> {
        let incoming = self.peek()?;
        let descriptor = incoming.descriptor;
        let needed = descriptor.packet_len();
        let Some(bytes) = buffer.get_mut(..needed as usize) else {
            return Err(ReadError::BufferTooSmall { needed });
        };
        // A checked descriptor is never longer than the packet.
        let Some((head, rest)) = bytes.split_first_chunk_mut::<{ DESCRIPTOR_SIZE as usize }>()
        else {
            return Err(ReadError::BufferTooSmall { needed });
        };
        // The copy holds the descriptor that was checked, not what is in the ring by now.
        if descriptor.write_to(head).is_err() {
            return Err(ReadError::BufferTooSmall { needed });
        }
        self.memory
            .read(advance(incoming.at, DESCRIPTOR_SIZE, self.size), rest);
        let packet = Packet::parse(descriptor, bytes).map_err(RingError::Packet)?;
        self.accept(&incoming);
        Ok(packet)
    }

    /// Gives the space of the packets read back to the peer. Returns whether it must be signalled.
    ///
    /// For use between packets of a long batch; end with [`finish`](Self::finish).
    #[inline]
    #[must_use = "the peer may wait for the signal"]
    pub fn commit(&mut self) -> bool {
        let old = self.committed;
        if old == self.next {
            return false;
        }
        self.committed = self.next;
        // Release: packets are copied before their space is given back. Full barrier: see
        // `must_signal`.
        self.memory
            .store_and_fence(ControlWord::ReadIndex, self.next);
        self.must_signal(old)
    }

    /// Gives the space of the packets read back, lets the peer signal again, and looks whether it has
    /// written since. The end of every reader's turn.
    #[inline]
    pub fn finish(&mut self) -> Drained {
        let old = self.committed;
        self.committed = self.next;
        if self.masked {
            self.masked = false;
            if old != self.next {
                self.memory.store_release(ControlWord::ReadIndex, self.next);
            }
            // Full barrier: mask and index before the loads below; the producer stores its index
            // and then looks at both, with a full barrier between.
            self.memory.store_and_fence(ControlWord::InterruptMask, 0);
        } else if old != self.next {
            self.memory
                .store_and_fence(ControlWord::ReadIndex, self.next);
        }
        let signal = old != self.next && self.must_signal(old);
        let more = self.memory.load_acquire(ControlWord::WriteIndex) != self.next;
        Drained { signal, more }
    }

    /// Whether the producer waits for space that the move from `old` to `committed` gave it. Called
    /// after a full barrier that follows the store of `read_index`: the producer stores its
    /// request and then looks at our index.
    #[inline]
    fn must_signal(&self, old: u32) -> bool {
        // Acquire: the request is looked at before the index.
        let pending = self.memory.load_acquire(ControlWord::PendingSendSize);
        if pending == 0 {
            return false;
        }
        self.crosses(old, pending)
    }

    #[cold]
    fn crosses(&self, old: u32, pending: u32) -> bool {
        // Writers without the feature poll; a signal would surprise them.
        if self.memory.load(ControlWord::FeatureBits) & FEATURE_PENDING_SEND_SIZE == 0 {
            return false;
        }
        let write = self.memory.load(ControlWord::WriteIndex);
        if !valid_index(write, self.size) {
            // Reported by the next read.
            return false;
        }
        let free = |read| self.size.wrapping_sub(distance(read, write, self.size));
        // "More than": exactly filling the ring would make it look empty.
        free(old) <= pending && free(self.committed) > pending
    }

    /// Asks the peer not to signal. Takes effect eventually: no barrier, since a signal too many does
    /// no harm.
    #[inline]
    pub fn mask(&mut self) {
        self.masked = true;
        self.memory.store(ControlWord::InterruptMask, 1);
    }

    /// Whether the peer was asked not to signal.
    #[must_use]
    pub const fn is_masked(&self) -> bool {
        self.masked
    }
}
