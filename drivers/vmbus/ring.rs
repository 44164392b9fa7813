// SPDX-License-Identifier: GPL-2.0

//! Ring memory in the kernel's address space.

use core::{
    ptr::{self, NonNull},
    sync::atomic::{fence, AtomicU32, AtomicU64, Ordering},
};
use vmbus_proto::ring::{ControlWord, RingMemory};

use crate::memory::{RingMap, PAGE};

/// A view of a mapped ring. Does not keep the mapping alive: who holds a view sees to that.
///
/// # Invariants
/// `header` is the start of a [`RingMap`]'s header page, `data` of its data, which is `size` bytes long and mapped twice in a
/// row. Both stay mapped while the view is in use.
#[derive(Clone, Copy, Debug)]
#[doc(hidden)]
pub struct RingView {
    header: NonNull<u8>,
    data: NonNull<u8>,
    size: u32,
}

// SAFETY: Mapped kernel memory is the same from every thread; accesses are atomic, or copies that tolerate races.
unsafe impl Send for RingView {}
// SAFETY: As above.
unsafe impl Sync for RingView {}

impl RingView {
    /// # Safety
    /// `map` outlives the use of the view and all its copies.
    pub(crate) unsafe fn new(map: &RingMap) -> Self {
        // INVARIANT: By the requirement.
        Self {
            header: map.header(),
            data: map.data(),
            size: map.data_len() as u32,
        }
    }

    #[inline]
    fn word(&self, word: ControlWord) -> &AtomicU32 {
        const { assert!(ControlWord::FeatureBits.offset() + 4 <= PAGE) };
        // SAFETY: The word lies in the mapped header page, 4-byte aligned; both sides access it as a whole.
        unsafe { AtomicU32::from_ptr(self.header.as_ptr().add(word.offset()).cast()) }
    }

    /// Bytes of the data that were written and not read, at most all; the host's index may be anything.
    pub(crate) fn used(&self) -> u32 {
        let read = self.load(ControlWord::ReadIndex);
        let write = self.load(ControlWord::WriteIndex);
        if write >= read {
            (write - read).min(self.size)
        } else {
            self.size.saturating_sub(read - write)
        }
    }

    /// Whether `len` bytes from `offset` on are mapped: up to one size beyond the end, by the second mapping.
    #[inline]
    fn covers(&self, offset: u32, len: usize) -> bool {
        offset < self.size && len <= self.size as usize
    }
}

impl RingMemory for RingView {
    #[inline]
    fn data_size(&self) -> u32 {
        self.size
    }

    #[inline]
    fn load(&self, word: ControlWord) -> u32 {
        self.word(word).load(Ordering::Relaxed)
    }

    #[inline]
    fn load_acquire(&self, word: ControlWord) -> u32 {
        self.word(word).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, word: ControlWord, value: u32) {
        self.word(word).store(value, Ordering::Relaxed);
    }

    #[inline]
    fn store_release(&self, word: ControlWord, value: u32) {
        self.word(word).store(value, Ordering::Release);
    }

    #[inline]
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline]
    fn store_and_fence(&self, word: ControlWord, value: u32) {
        // An exchange is a full barrier on x86.
        self.word(word).swap(value, Ordering::SeqCst);
    }

    #[inline]
    fn read(&self, offset: u32, out: &mut [u8]) {
        if !self.covers(offset, out.len()) {
            debug_assert!(false);
            return;
        }
        // SAFETY: The source is mapped, as just checked. The host may write it meanwhile: then the copy holds rubbish, which
        // is all that can happen. `out` is ours alone.
        unsafe {
            ptr::copy_nonoverlapping(
                self.data.as_ptr().add(offset as usize),
                out.as_mut_ptr(),
                out.len(),
            )
        };
    }

    #[inline]
    fn write(&self, offset: u32, bytes: &[u8]) {
        if !self.covers(offset, bytes.len()) {
            debug_assert!(false);
            return;
        }
        // SAFETY: The destination is mapped, as just checked; no reference to it exists.
        unsafe {
            ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.data.as_ptr().add(offset as usize),
                bytes.len(),
            )
        };
    }

    #[inline]
    fn read_u64(&self, offset: u32) -> u64 {
        if offset & 7 != 0 || !self.covers(offset, 8) {
            debug_assert!(false);
            return 0;
        }
        // SAFETY: Mapped, as just checked, and aligned.
        unsafe { AtomicU64::from_ptr(self.data.as_ptr().add(offset as usize).cast()) }
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn read_u64_pair(&self, offset: u32) -> [u64; 2] {
        let offset = offset & !7;
        if !self.covers(offset, 16) {
            debug_assert!(false);
            return [0; 2];
        }
        // SAFETY: Mapped, as just checked, beyond the end by the second mapping, and aligned.
        unsafe {
            let first = self.data.as_ptr().add(offset as usize).cast();
            [
                AtomicU64::from_ptr(first).load(Ordering::Relaxed),
                AtomicU64::from_ptr(first.add(1)).load(Ordering::Relaxed),
            ]
        }
    }

    #[inline]
    fn window(&self, offset: u32, len: u32) -> Option<&[AtomicU64]> {
        if (offset | len) & 7 != 0 || !self.covers(offset, len as usize) {
            return None;
        }
        // SAFETY: Mapped, as just checked, beyond the end by the second mapping, and aligned; the host's accesses to words are as
        // good as atomic.
        Some(unsafe {
            core::slice::from_raw_parts(
                self.data.as_ptr().add(offset as usize).cast_const().cast(),
                len as usize / 8,
            )
        })
    }

    #[inline]
    fn write_far(&self, offset: u32, bytes: &[u8]) {
        if offset as usize + bytes.len() > 2 * self.size as usize {
            debug_assert!(false);
            return;
        }
        // SAFETY: The destination lies in one of the two mappings or both, as just checked; no reference to it exists but to
        // atomics, which nobody uses now.
        unsafe {
            ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.data.as_ptr().add(offset as usize),
                bytes.len(),
            )
        };
    }
}
