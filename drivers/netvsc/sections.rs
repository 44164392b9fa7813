// SPDX-License-Identifier: GPL-2.0

//! The send buffer: sections that packets are copied into.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use hv_vmbus::buffer::{Buffer, BufferSlice};
use kernel::prelude::*;

/// The send buffer.
pub(crate) struct Sections {
    buffer: Buffer,
    size: u32,
    count: u32,
    /// A bit for each section, set while it is taken; bits beyond the last are always set.
    taken: KVec<AtomicU64>,
}

impl Sections {
    /// `count` sections of `size` bytes each in `buffer`, all free. May sleep.
    pub(crate) fn new(buffer: Buffer, size: u32, count: u32) -> Result<Self> {
        let fits = u64::from(size) * u64::from(count) <= buffer.len() as u64;
        if !fits || count >= Self::NONE.into() {
            return Err(EINVAL);
        }
        let words = count.div_ceil(64);
        let mut taken = KVec::with_capacity(words as usize, GFP_KERNEL)?;
        for word in 0..words {
            let used = (count - word * 64).min(64);
            let beyond = if used == 64 { 0 } else { !0 << used };
            taken.push(AtomicU64::new(beyond), GFP_KERNEL)?;
        }
        Ok(Self {
            buffer,
            size,
            count,
            taken,
        })
    }

    /// The number that no section has.
    pub(crate) const NONE: u16 = u16::MAX;

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Takes a free section. `near` spreads those who search.
    #[inline(always)]
    pub(crate) fn take(&self, near: usize) -> Option<u16> {
        let words = self.taken.len();
        let mut at = if near < words { near } else { 0 };
        for _ in 0..words {
            let word = self.taken.get(at)?;
            let mut free = !word.load(Ordering::Relaxed);
            while free != 0 {
                let bit = free.trailing_zeros();
                // Acquire pairs with the release in `free`.
                if word.fetch_or(1 << bit, Ordering::Acquire) & (1 << bit) == 0 {
                    return Some((at as u32 * 64 + bit) as u16);
                }
                free &= free - 1;
            }
            at += 1;
            if at == words {
                at = 0;
            }
        }
        None
    }

    /// Gives a section back that nobody uses any more. [`NONE`](Self::NONE) is ignored.
    #[inline(always)]
    pub(crate) fn free(&self, section: u16) {
        let section = u32::from(section);
        if section < self.count {
            if let Some(word) = self.taken.get(section as usize / 64) {
                word.fetch_and(!(1 << (section % 64)), Ordering::Release);
            }
        }
    }

    /// A section's memory from `offset` on.
    #[inline(always)]
    pub(crate) fn slice(&self, section: u16, offset: u32) -> Option<BufferSlice<'_>> {
        let left = self.size.checked_sub(offset)?;
        // Less than 2^32 by the checks in `new`, if there is such a section; refused otherwise.
        let start = u64::from(section) * u64::from(self.size) + u64::from(offset);
        self.buffer.slice(start as usize, left as usize)
    }
}
