// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The ring algorithm, one implementation for both sides.
//!
//! A ring is a page of control words and a data area used in circles, in memory that both sides can
//! write at any time. A channel has two: one per direction. [`Producer`] writes packets into one,
//! [`Consumer`] reads them; each is generic over [`RingMemory`], which is all that differs between
//! kernel, host and tests.
//!
//! # Trust
//!
//! The peer's index is loaded, checked, and only then used; our own index is kept here and never read
//! back; a packet is copied once and judged in the copy. So the peer can send rubbish, but
//! nothing else. A [`RingError`] means that it broke the protocol: close the channel.
//!
//! # Signals
//!
//! Hosts throttle guests that signal without need, so both rules are exact:
//!
//! - a write signals if the reader's interrupt mask is clear and the ring was empty before
//!   (Linux `ring_buffer.c`, `hv_signal_on_write`);
//! - a read signals if the writer waits for space (`pending_send_sz`) and this read made the free
//!   space cross that mark (Linux `ring_buffer.c`, `hv_pkt_iter_close`).
//!
//! # Barriers
//!
//! | here | orders | pairs with |
//! | --- | --- | --- |
//! | release in `Producer::commit` | packet before `write_index` | acquire in `Consumer::peek` |
//! | full in `Producer::commit` | `write_index` before loads of mask, `read_index` | full in `Consumer::finish` |
//! | release in `Consumer::commit` | packet copied before `read_index` | acquire in `Producer::begin` |
//! | full in `Consumer::commit`, `finish` | `read_index` (and mask) before loads of `pending_send_sz`, `write_index` | full in `Producer::commit`, `request_space` |
//! | full in `Producer::request_space` | `pending_send_sz` before load of `read_index` | full in `Consumer::commit` |

use core::{fmt, sync::atomic::AtomicU64};

use crate::packet::PacketError;
use crate::PAGE_SIZE;

mod consumer;
mod producer;
#[cfg(test)]
mod tests;

pub use consumer::{load_word, Consumer, Drained, Incoming, PacketView, Shown, Step};
pub use producer::{Filled, GpaDirectRoom, PacketWriter, Producer, PutRanges};

/// Size in bytes of the page of control words that precedes a ring's data.
pub const CONTROL_SIZE: usize = PAGE_SIZE;

/// Largest data area this crate handles, in bytes: sums of two indexes fit 32 bits.
pub const MAX_DATA_SIZE: u32 = 1 << 30;

/// Bit 0 of [`ControlWord::FeatureBits`]: the ring's producer sets `pending_send_sz` when it waits
/// for space, and its consumer is to signal (`hyperv.h`, `feat_pending_send_sz`).
pub const FEATURE_PENDING_SEND_SIZE: u32 = 1;

/// A 32-bit word in the control page (`struct hv_ring_buffer`). The value is its offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ControlWord {
    /// Where the producer writes next. Written by the producer.
    WriteIndex = 0,
    /// Where the consumer reads next. Written by the consumer.
    ReadIndex = 4,
    /// Not zero: the consumer wants no signal. Written by the consumer.
    InterruptMask = 8,
    /// Bytes the producer waits for, or 0. Written by the producer.
    PendingSendSize = 12,
    /// See [`FEATURE_PENDING_SEND_SIZE`]. Written by the producer.
    FeatureBits = 64,
}

impl ControlWord {
    /// Offset in bytes in the control page.
    #[must_use]
    pub const fn offset(self) -> usize {
        self as usize
    }
}

/// The memory of one ring.
///
/// Shared with the peer, which may change any of it at any time; so no method hands out
/// references into it but to atomics. Data offsets are relative to the data area. Callers keep
/// `offset < data_size()` and `bytes.len() <= data_size()`; data that reach beyond the end of the area go on
/// at its start. Implementations must stay memory-safe for any arguments.
pub trait RingMemory {
    /// Size of the data area in bytes, the same at every call.
    fn data_size(&self) -> u32;

    /// Loads a control word, untorn, without ordering.
    fn load(&self, word: ControlWord) -> u32;

    /// Loads a control word, untorn; later accesses stay after it.
    fn load_acquire(&self, word: ControlWord) -> u32;

    /// Stores a control word, untorn, without ordering.
    fn store(&self, word: ControlWord, value: u32);

    /// Stores a control word, untorn; earlier accesses stay before it.
    fn store_release(&self, word: ControlWord, value: u32);

    /// Full barrier: earlier stores before later loads.
    fn full_barrier(&self);

    /// [`store_release`](Self::store_release), then [`full_barrier`](Self::full_barrier); on x86
    /// one `xchg` does both.
    fn store_and_fence(&self, word: ControlWord, value: u32) {
        self.store_release(word, value);
        self.full_barrier();
    }

    /// Copies `out.len()` bytes out of the data area from `offset` on.
    fn read(&self, offset: u32, out: &mut [u8]);

    /// Copies `bytes` into the data area from `offset` on.
    fn write(&self, offset: u32, bytes: &[u8]);

    /// The `len` bytes of the data area from `offset` on, both multiples of 8, as words in the peer's byte order (little endian):
    /// for who would have many small pieces checked one by one. `None`: they cannot be had like this; use [`read`](Self::read) and
    /// [`write`](Self::write). Where the area is mapped twice in a row they always can, across its end, too.
    #[inline]
    fn window(&self, offset: u32, len: u32) -> Option<&[AtomicU64]> {
        let _ = (offset, len);
        None
    }

    /// As [`write`](Self::write), for one piece of several that follow each other and are no longer than
    /// the data area together: `offset` counts from the start of the area, and for the later pieces may lie beyond its end.
    /// Where the area is mapped twice in a row, there is nothing to wrap.
    #[inline]
    fn write_far(&self, offset: u32, bytes: &[u8]) {
        let size = self.data_size();
        self.write(
            if offset >= size {
                offset.wrapping_sub(size)
            } else {
                offset
            },
            bytes,
        );
    }

    /// Loads the 8 bytes at `offset`, a multiple of 8.
    fn read_u64(&self, offset: u32) -> u64 {
        let mut bytes = [0; 8];
        self.read(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Loads the 16 bytes at `offset`, a multiple of 8, as two words. They go on at the start of the data area when
    /// `offset` is its last word.
    fn read_u64_pair(&self, offset: u32) -> [u64; 2] {
        [
            self.read_u64(offset),
            self.read_u64(advance(offset, 8, self.data_size())),
        ]
    }

    /// Stores 8 bytes at `offset`, a multiple of 8.
    #[inline]
    fn write_u64(&self, offset: u32, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }
}

impl<M: RingMemory + ?Sized> RingMemory for &M {
    fn data_size(&self) -> u32 {
        (**self).data_size()
    }
    fn load(&self, word: ControlWord) -> u32 {
        (**self).load(word)
    }
    fn load_acquire(&self, word: ControlWord) -> u32 {
        (**self).load_acquire(word)
    }
    fn store(&self, word: ControlWord, value: u32) {
        (**self).store(word, value);
    }
    fn store_release(&self, word: ControlWord, value: u32) {
        (**self).store_release(word, value);
    }
    fn full_barrier(&self) {
        (**self).full_barrier();
    }
    fn store_and_fence(&self, word: ControlWord, value: u32) {
        (**self).store_and_fence(word, value);
    }
    fn read(&self, offset: u32, out: &mut [u8]) {
        (**self).read(offset, out);
    }
    fn write(&self, offset: u32, bytes: &[u8]) {
        (**self).write(offset, bytes);
    }
    fn write_far(&self, offset: u32, bytes: &[u8]) {
        (**self).write_far(offset, bytes);
    }
    fn window(&self, offset: u32, len: u32) -> Option<&[AtomicU64]> {
        (**self).window(offset, len)
    }
    fn read_u64(&self, offset: u32) -> u64 {
        (**self).read_u64(offset)
    }
    fn read_u64_pair(&self, offset: u32) -> [u64; 2] {
        (**self).read_u64_pair(offset)
    }
    fn write_u64(&self, offset: u32, value: u64) {
        (**self).write_u64(offset, value);
    }
}

/// The ring is broken, by the peer or (sizes) by who set it up. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingError {
    /// The data area is empty, no multiple of 4096, or above [`MAX_DATA_SIZE`].
    BadSize {
        /// Its size in bytes.
        size: u32,
    },
    /// `write_index` lies outside the data area or is no multiple of 8.
    BadWriteIndex {
        /// The value found.
        index: u32,
    },
    /// `read_index` lies outside the data area or is no multiple of 8.
    BadReadIndex {
        /// The value found.
        index: u32,
    },
    /// The ring holds fewer bytes than the smallest packet has.
    Truncated {
        /// Bytes there are.
        available: u32,
    },
    /// The next packet is malformed.
    Packet(PacketError),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadSize { size } => write!(f, "ring data area of {size} bytes"),
            Self::BadWriteIndex { index } => write!(f, "write index {index} out of range"),
            Self::BadReadIndex { index } => write!(f, "read index {index} out of range"),
            Self::Truncated { available } => {
                write!(f, "{available} bytes in the ring are no packet")
            }
            Self::Packet(e) => write!(f, "malformed packet: {e}"),
        }
    }
}

impl core::error::Error for RingError {}

/// Why nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// The ring is empty. Not a fault.
    Empty,
    /// The next packet does not fit the caller's buffer; it stays in the ring.
    BufferTooSmall {
        /// Bytes the packet needs.
        needed: u32,
    },
    /// The peer broke the protocol.
    Corrupt(RingError),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("ring empty"),
            Self::BufferTooSmall { needed } => {
                write!(f, "packet of {needed} bytes does not fit the buffer")
            }
            Self::Corrupt(e) => write!(f, "ring corrupt: {e}"),
        }
    }
}

impl core::error::Error for ReadError {}

impl From<RingError> for ReadError {
    fn from(e: RingError) -> Self {
        Self::Corrupt(e)
    }
}

/// Why nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Too little free space. Not a fault: try again when the consumer has read, see
    /// [`Producer::request_space`].
    Full {
        /// Bytes the packet takes in the ring, for [`Producer::request_space`].
        needed: u32,
    },
    /// The packet never fits the ring.
    TooLarge,
    /// The caller's mistake: what it wrote is not what it announced.
    WrongLength,
    /// The peer broke the protocol.
    Corrupt(RingError),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { needed } => write!(f, "ring has no {needed} bytes free"),
            Self::TooLarge => f.write_str("packet larger than the ring"),
            Self::WrongLength => f.write_str("packet parts differ from the length announced"),
            Self::Corrupt(e) => write!(f, "ring corrupt: {e}"),
        }
    }
}

impl core::error::Error for WriteError {}

impl From<RingError> for WriteError {
    fn from(e: RingError) -> Self {
        Self::Corrupt(e)
    }
}

/// Whether an index of the peer can be used.
#[inline]
const fn valid_index(index: u32, size: u32) -> bool {
    index < size && index & 7 == 0
}

/// `index + len` in a ring of `size`; both are at most `size`, which is at most [`MAX_DATA_SIZE`].
#[inline]
const fn advance(index: u32, len: u32, size: u32) -> u32 {
    let sum = index.wrapping_add(len);
    if sum >= size {
        sum.wrapping_sub(size)
    } else {
        sum
    }
}

/// Bytes from `from` forward to `to`; 0 when they are equal.
#[inline]
const fn distance(from: u32, to: u32, size: u32) -> u32 {
    if to >= from {
        to.wrapping_sub(from)
    } else {
        size.wrapping_sub(from).wrapping_add(to)
    }
}

/// Checks the size of the data area.
fn check_size<M: RingMemory>(memory: &M) -> Result<u32, RingError> {
    let size = memory.data_size();
    if size == 0 || size as usize % PAGE_SIZE != 0 || size > MAX_DATA_SIZE {
        return Err(RingError::BadSize { size });
    }
    Ok(size)
}

/// Sets the control words of a ring that nobody uses yet: empty, unmasked, no one waiting, and the
/// feature bit set, as Linux does for both rings of a channel (`hv_ringbuffer_init`).
fn initialise<M: RingMemory>(memory: &M) {
    memory.store(ControlWord::WriteIndex, 0);
    memory.store(ControlWord::ReadIndex, 0);
    memory.store(ControlWord::InterruptMask, 0);
    memory.store(ControlWord::PendingSendSize, 0);
    memory.store_release(ControlWord::FeatureBits, FEATURE_PENDING_SEND_SIZE);
}
