// SPDX-License-Identifier: GPL-2.0

//! Locks and events that interrupt handlers may use.

use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};
use kernel::{
    bindings,
    prelude::*,
    sync::LockClassKey,
    time::Jiffies,
    types::{NotThreadSafe, Opaque},
};

use crate::ffi;

/// A spinlock that turns interrupts off while held, and never sleeps, not even with PREEMPT_RT: it may be taken in
/// any context but NMI. Hold it for short, bounded work only.
#[pin_data]
pub(crate) struct IrqLock<T> {
    #[pin]
    raw: Opaque<bindings::raw_spinlock>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock lets one thread at a time reach the data.
unsafe impl<T: Send> Sync for IrqLock<T> {}
// SAFETY: Nothing in the lock is tied to a thread while it is not held.
unsafe impl<T: Send> Send for IrqLock<T> {}

impl<T> IrqLock<T> {
    /// A new lock. `name` and `key` are for lockdep.
    pub(crate) fn new(
        data: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        // CAST: `LockClassKey` is a transparent wrapper.
        let key = core::ptr::from_ref(key.get_ref()).cast_mut().cast();
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writing; `name` and `key` live for ever.
                unsafe { ffi::hv_rs_lock_init(slot, name.as_char_ptr(), key) }
            }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the lock. Any context but NMI.
    #[inline]
    pub(crate) fn lock(&self) -> IrqGuard<'_, T> {
        // SAFETY: The lock was initialised by `new` and is pinned.
        let flags = unsafe { ffi::hv_rs_lock(self.raw.get()) };
        IrqGuard {
            lock: self,
            flags,
            _not_send: NotThreadSafe,
        }
    }
}

/// Proof that an [`IrqLock`] is held.
pub(crate) struct IrqGuard<'a, T> {
    lock: &'a IrqLock<T>,
    flags: usize,
    _not_send: NotThreadSafe,
}

impl<T> Deref for IrqGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The guard's existence means that the lock is held.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for IrqGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The guard's existence means that the lock is held, and `&mut` that this is the only way in.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for IrqGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The lock is held, and `flags` is what taking it returned.
        unsafe { ffi::hv_rs_unlock(self.lock.raw.get(), self.flags) };
    }
}

/// `IrqLock::new` with the lockdep class of the place where it is written.
macro_rules! new_irq_lock {
    ($data:expr, $name:expr) => {{
        // A static, of which there is one also where the place is in generic code, of which each module has a copy: lockdep
        // takes a name elsewhere in memory for another name.
        static NAME: &::kernel::str::CStr = $name;
        $crate::sync::IrqLock::new($data, NAME, ::kernel::static_lock_class!())
    }};
}
pub(crate) use new_irq_lock;

/// An event that happens once: waiters sleep until it was signalled (C: `struct completion`).
#[pin_data]
pub(crate) struct Event {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A completion has its own lock.
unsafe impl Send for Event {}
// SAFETY: A completion has its own lock.
unsafe impl Sync for Event {}

impl Event {
    /// An event that has not happened.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid for writing.
                unsafe { bindings::init_completion(slot) }
            }),
        })
    }

    /// Tells all waiters, present and future. Any context but NMI.
    pub(crate) fn signal(&self) {
        // SAFETY: The completion was initialised by `new` and is pinned.
        unsafe { bindings::complete_all(self.inner.get()) };
    }

    /// Makes the event one that has not happened. The caller sees to it that nobody waits or signals.
    pub(crate) fn reset(&self) {
        // SAFETY: The completion was initialised by `new`; nobody else touches `done` now.
        unsafe { (&raw mut (*self.inner.get()).done).write_volatile(0) };
    }

    /// Sleeps until it happens; false when `timeout` passed first. May sleep.
    #[must_use]
    pub(crate) fn wait_timeout(&self, timeout: Jiffies) -> bool {
        // SAFETY: The completion was initialised by `new` and is pinned.
        unsafe { bindings::wait_for_completion_timeout(self.inner.get(), timeout) != 0 }
    }

    /// Sleeps until it happens. For events that are certain to come. May sleep.
    pub(crate) fn wait(&self) {
        // SAFETY: The completion was initialised by `new` and is pinned.
        unsafe { bindings::wait_for_completion(self.inner.get()) };
    }
}
