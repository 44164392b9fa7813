// SPDX-License-Identifier: GPL-2.0

//! A value that is read without a lock and replaced as a whole (RCU).

use core::{
    ops::Deref,
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::{bindings, prelude::*, sync::rcu};

/// Waits until all RCU read-side sections that run now, interrupt handlers among them, have ended. May sleep; not in a read-side
/// section.
///
/// Expedited: a device that is taken away takes several of these, one after the other, and an ordinary one lasts tens of
/// milliseconds on a quiet system. They are rare, and the price is an interrupt on each CPU that is not idle.
pub fn synchronize() {
    // SAFETY: May sleep, as this may.
    unsafe { bindings::synchronize_rcu_expedited() };
}

/// A value that any number of readers use while it is being replaced: each sees the old or the new one.
///
/// # Invariants
///
/// `value` came from `KBox::into_raw`, and is valid until a grace period after it was taken out.
pub struct RcuCell<T: Send + Sync> {
    value: AtomicPtr<T>,
}

impl<T: Send + Sync> RcuCell<T> {
    /// A cell that holds `value`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(value: T) -> Result<Self> {
        // INVARIANT: From `KBox::into_raw`.
        Ok(Self {
            value: AtomicPtr::new(KBox::into_raw(KBox::new(value, GFP_KERNEL)?)),
        })
    }

    /// The value now. Any context; the guard must not be held while sleeping.
    #[inline]
    pub fn read(&self) -> RcuRef<'_, T> {
        let guard = rcu::read_lock();
        // SAFETY: By the type's invariant it is not null, and stays valid as long as this read-side section, which the
        // result keeps open. Acquire pairs with the release in `replace`.
        let value = unsafe { NonNull::new_unchecked(self.value.load(Ordering::Acquire)) };
        RcuRef {
            value,
            _guard: guard,
            _cell: core::marker::PhantomData,
        }
    }

    /// Puts `value` in, waits until nobody uses the old one, and drops that. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: the old value stays.
    pub fn replace(&self, value: T) -> Result {
        let new = KBox::into_raw(KBox::new(value, GFP_KERNEL)?);
        // INVARIANT: From `KBox::into_raw`.
        let old = self.value.swap(new, Ordering::AcqRel);
        synchronize();
        // SAFETY: By the type's invariant; it was taken out by this call alone, and no reader is left.
        drop(unsafe { KBox::from_raw(old) });
        Ok(())
    }
}

impl<T: Send + Sync> Drop for RcuCell<T> {
    fn drop(&mut self) {
        let value = core::mem::replace(self.value.get_mut(), ptr::null_mut());
        // SAFETY: By the type's invariant; guards borrow the cell, so there is none.
        drop(unsafe { KBox::from_raw(value) });
    }
}

/// A value in use; see [`RcuCell::read`].
pub struct RcuRef<'a, T: Send + Sync> {
    // INVARIANT: Valid as long as `_guard` exists.
    value: NonNull<T>,
    _guard: rcu::Guard,
    _cell: core::marker::PhantomData<&'a RcuCell<T>>,
}

impl<T: Send + Sync> Deref for RcuRef<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the field's invariant.
        unsafe { self.value.as_ref() }
    }
}
