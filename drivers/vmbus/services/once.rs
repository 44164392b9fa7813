// SPDX-License-Identifier: GPL-2.0

//! A value that is set once. The kernel's `SetOnce` reads its state through a function of the kernel; this is for values that are
//! read for each packet.

use core::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    sync::atomic::{AtomicU32, Ordering},
};

/// Nothing is in.
const EMPTY: u32 = 0;
/// Somebody puts the value in.
const BUSY: u32 = 1;
/// The value is in.
const FULL: u32 = 2;

/// See the [module's documentation](self).
///
/// # Invariants
///
/// - `state` goes from `EMPTY` to `BUSY` to `FULL`, and nowhere else.
/// - `value` is written by who has made the state `BUSY` alone, and is initialised and not written any more once that is `FULL`.
pub struct Once<T> {
    state: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: Who has a reference can put a value in, which moves it to another thread for its end.
unsafe impl<T: Send> Send for Once<T> {}
// SAFETY: As above, and hands out shared references.
unsafe impl<T: Send + Sync> Sync for Once<T> {}

impl<T> Once<T> {
    /// Without a value.
    pub const fn new() -> Self {
        // INVARIANT: Empty.
        Self {
            state: AtomicU32::new(EMPTY),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// The value, if it was set.
    #[inline(always)]
    pub fn get(&self) -> Option<&T> {
        // Acquire pairs with the release in `set`.
        if self.state.load(Ordering::Acquire) != FULL {
            return None;
        }
        // SAFETY: Initialised, and not written any more, by the type's invariants.
        Some(unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// Sets the value. False: it was set before, or is being set; `value` is dropped.
    pub fn set(&self, value: T) -> bool {
        let begun = self
            .state
            .compare_exchange(EMPTY, BUSY, Ordering::Relaxed, Ordering::Relaxed);
        if begun.is_err() {
            return false;
        }
        // SAFETY: The state was made `BUSY` here, so nobody else reads or writes it.
        unsafe { (*self.value.get()).write(value) };
        // INVARIANT: Just initialised.
        self.state.store(FULL, Ordering::Release);
        true
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        if *self.state.get_mut() == FULL {
            // SAFETY: Initialised by the type's invariants, and not used after this.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}
