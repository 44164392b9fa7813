// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Guest RAM as both halves of the host see it.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

/// Told after the host wrote to a range, so that translated code of that range is discarded.
pub trait CodeCoherence: Send + Sync {
    /// Called after `len` bytes at `gpa` were written by the host. After and not before: code that
    /// a virtual processor translates between the call and the write would stay stale for ever.
    fn written(&self, gpa: u64, len: usize);
}

/// For tests: no translated code exists.
#[derive(Debug, Default)]
pub struct NoCode;

impl CodeCoherence for NoCode {
    fn written(&self, _gpa: u64, _len: usize) {}
}

/// A guest-physical access that cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// Some byte of the range is not guest RAM.
    #[error("guest-physical range {0:#x}+{1:#x} is not RAM")]
    NotRam(u64, usize),
    /// The address is not aligned for the atomic access.
    #[error("guest-physical address {0:#x} is not aligned")]
    Unaligned(u64),
}

/// Guest RAM: bounds-checked, racy by nature (the guest runs meanwhile), never borrowed.
#[derive(Clone)]
pub struct GuestRam {
    mem: GuestMemoryMmap,
    code: Arc<dyn CodeCoherence>,
}

impl GuestRam {
    /// Wraps mapped guest memory.
    pub fn new(mem: GuestMemoryMmap, code: Arc<dyn CodeCoherence>) -> Self {
        Self { mem, code }
    }

    /// Anonymous memory of `size` bytes at address 0, for tests.
    ///
    /// # Panics
    /// When the memory cannot be mapped.
    pub fn for_tests(size: usize) -> Self {
        let mem =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).expect("map test memory");
        Self::new(mem, Arc::new(NoCode))
    }

    /// Copies guest memory out.
    ///
    /// # Errors
    /// [`RamError::NotRam`]; then `buf` is unspecified.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), RamError> {
        self.mem
            .read_slice(buf, GuestAddress(gpa))
            .map_err(|_| RamError::NotRam(gpa, buf.len()))
    }

    /// Copies into guest memory, keeping translated code coherent.
    ///
    /// # Errors
    /// [`RamError::NotRam`]; nothing or a prefix has been written.
    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<(), RamError> {
        let result = self
            .mem
            .write_slice(buf, GuestAddress(gpa))
            .map_err(|_| RamError::NotRam(gpa, buf.len()));
        self.code.written(gpa, buf.len());
        result
    }

    /// Whether the whole range is RAM.
    pub fn is_ram(&self, gpa: u64, len: usize) -> bool {
        self.mem.check_range(GuestAddress(gpa), len)
    }

    fn with_u32<R>(&self, gpa: u64, f: impl FnOnce(&AtomicU32) -> R) -> Result<R, RamError> {
        if gpa % 4 != 0 {
            return Err(RamError::Unaligned(gpa));
        }
        let slice = self
            .mem
            .get_slice(GuestAddress(gpa), 4)
            .map_err(|_| RamError::NotRam(gpa, 4))?;
        let atomic = slice
            .get_atomic_ref::<AtomicU32>(0)
            .map_err(|_| RamError::Unaligned(gpa))?;
        Ok(f(atomic))
    }

    /// Atomic 32-bit load.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn load_u32(&self, gpa: u64, order: Ordering) -> Result<u32, RamError> {
        self.with_u32(gpa, |a| a.load(order))
    }

    /// Atomic 32-bit store. For data structures only: does not discard translated code.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn store_u32(&self, gpa: u64, value: u32, order: Ordering) -> Result<(), RamError> {
        self.with_u32(gpa, |a| a.store(value, order))
    }

    /// Atomic 32-bit OR; returns the value before.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn fetch_or_u32(&self, gpa: u64, bits: u32, order: Ordering) -> Result<u32, RamError> {
        self.with_u32(gpa, |a| a.fetch_or(bits, order))
    }

    /// Atomic 32-bit AND; returns the value before.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn fetch_and_u32(&self, gpa: u64, bits: u32, order: Ordering) -> Result<u32, RamError> {
        self.with_u32(gpa, |a| a.fetch_and(bits, order))
    }

    /// Atomic 64-bit load.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn load_u64(&self, gpa: u64, order: Ordering) -> Result<u64, RamError> {
        if gpa % 8 != 0 {
            return Err(RamError::Unaligned(gpa));
        }
        let slice = self
            .mem
            .get_slice(GuestAddress(gpa), 8)
            .map_err(|_| RamError::NotRam(gpa, 8))?;
        let atomic = slice
            .get_atomic_ref::<AtomicU64>(0)
            .map_err(|_| RamError::Unaligned(gpa))?;
        Ok(atomic.load(order))
    }

    /// Atomic 8-bit OR; returns the value before.
    ///
    /// # Errors
    /// [`RamError`].
    pub fn fetch_or_u8(&self, gpa: u64, bits: u8, order: Ordering) -> Result<u8, RamError> {
        let slice = self
            .mem
            .get_slice(GuestAddress(gpa), 1)
            .map_err(|_| RamError::NotRam(gpa, 1))?;
        let atomic = slice
            .get_atomic_ref::<AtomicU8>(0)
            .map_err(|_| RamError::Unaligned(gpa))?;
        Ok(atomic.fetch_or(bits, order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_alignment_are_checked() {
        let ram = GuestRam::for_tests(0x2000);
        assert_eq!(
            ram.write(0x1ffe, &[1, 2, 3]),
            Err(RamError::NotRam(0x1ffe, 3))
        );
        assert_eq!(
            ram.load_u32(2, Ordering::Relaxed),
            Err(RamError::Unaligned(2))
        );
        assert_eq!(ram.fetch_or_u32(0x1000, 5, Ordering::SeqCst), Ok(0));
        assert_eq!(ram.load_u32(0x1000, Ordering::SeqCst), Ok(5));
        assert!(!ram.is_ram(0x1fff, 2));
    }
}
