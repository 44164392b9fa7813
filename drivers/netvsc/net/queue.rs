// SPDX-License-Identifier: GPL-2.0

//! Transmit queues.

use core::{cell::UnsafeCell, marker::PhantomData, ops::Deref, ops::DerefMut, ptr::NonNull};
use kernel::{sync::Arc, types::NotThreadSafe};

use super::{device::NetDevice, ffi};

/// A transmit queue of a device.
///
/// # Invariants
/// `raw` is a queue of `_dev`, and stays as long as that.
pub(crate) struct TxQueue {
    raw: NonNull<ffi::TxQueue>,
    _dev: Arc<NetDevice>,
}

// SAFETY: Queues may be used from any thread; what needs the lock is in `TxHeld`.
unsafe impl Send for TxQueue {}
// SAFETY: As above.
unsafe impl Sync for TxQueue {}

impl TxQueue {
    // INVARIANT: The caller passes a queue of `dev`.
    pub(super) fn new(dev: Arc<NetDevice>, raw: NonNull<ffi::TxQueue>) -> Self {
        Self { raw, _dev: dev }
    }

    /// Takes the lock that is held over [`NetDriver::transmit`](super::NetDriver::transmit). With bottom halves off only: in NAPI,
    /// or in another callback that says so.
    #[inline]
    pub(crate) fn lock(&self) -> TxLocked<'_> {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_lock(self.raw.as_ptr()) };
        TxLocked {
            // SAFETY: The lock was just taken, and is given back when the result is dropped.
            held: unsafe { TxHeld::new(self.raw) },
            bh: false,
        }
    }

    /// As [`lock`](Self::lock), in process context.
    pub(crate) fn lock_bh(&self) -> TxLocked<'_> {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_lock_bh(self.raw.as_ptr()) };
        TxLocked {
            // SAFETY: The lock was just taken, and is given back when the result is dropped.
            held: unsafe { TxHeld::new(self.raw) },
            bh: true,
        }
    }

    /// Tells the byte queue limit that the device is done with so much. One call at a time.
    #[inline]
    pub(crate) fn completed(&self, packets: u32, bytes: u32) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_completed(self.raw.as_ptr(), packets, bytes) };
    }

    /// Makes the byte queue limit forget what the device has. Nothing may be sent or completed meanwhile.
    pub(crate) fn reset(&self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_reset(self.raw.as_ptr()) };
    }
}

/// A transmit queue whose lock is held.
///
/// # Invariants
/// There is no other `TxHeld` of the queue as long as this exists.
pub(crate) struct TxHeld<'a>(TxControl<'a>);

impl TxHeld<'_> {
    /// # Safety
    /// The lock of `raw` is held during `'a`, by the caller, who makes no other of it.
    #[inline]
    pub(super) unsafe fn new(raw: NonNull<ffi::TxQueue>) -> Self {
        Self(TxControl {
            raw,
            _lock: PhantomData,
            _not_send: NotThreadSafe,
        })
    }
}

/// What may be done with a transmit queue whose lock is held.
///
/// # Invariants
/// The lock of `raw` is held as long as this exists.
pub(crate) struct TxControl<'a> {
    raw: NonNull<ffi::TxQueue>,
    _lock: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl TxControl<'_> {
    /// Tells the byte queue limit that the device is about to get `bytes` more. With `more`, another packet follows at once; false:
    /// it may be waited for before the device is told.
    #[inline]
    pub(crate) fn sent(&mut self, bytes: u32, more: bool) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_sent(self.raw.as_ptr(), bytes, more) }
    }

    /// Stops the queue: no packet is sent until it is woken.
    pub(crate) fn stop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_stop(self.raw.as_ptr()) };
    }

    /// Starts the queue again.
    pub(crate) fn wake(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_wake(self.raw.as_ptr()) };
    }

    /// Whether the driver has stopped the queue.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_stopped(self.raw.as_ptr()) }
    }

    /// Whether no packet follows, since the driver or the byte queue limit has stopped the queue.
    #[inline]
    pub(crate) fn is_blocked(&self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_txq_blocked(self.raw.as_ptr()) }
    }
}

/// The lock of a transmit queue, given back on drop; see [`TxQueue::lock`].
pub(crate) struct TxLocked<'a> {
    held: TxHeld<'a>,
    bh: bool,
}

impl<'a> Deref for TxLocked<'a> {
    type Target = TxHeld<'a>;

    #[inline]
    fn deref(&self) -> &TxHeld<'a> {
        &self.held
    }
}

impl DerefMut for TxLocked<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.held
    }
}

impl Drop for TxLocked<'_> {
    fn drop(&mut self) {
        let raw = self.held.0.raw.as_ptr();
        if self.bh {
            // SAFETY: Taken by `lock_bh`.
            unsafe { ffi::hv_rs_txq_unlock_bh(raw) };
        } else {
            // SAFETY: Taken by `lock`.
            unsafe { ffi::hv_rs_txq_unlock(raw) };
        }
    }
}

/// A value that belongs to a transmit queue: who holds that one's lock has it.
pub(crate) struct TxCell<T> {
    queue: NonNull<ffi::TxQueue>,
    value: UnsafeCell<T>,
}

// SAFETY: The queue's lock, which may be taken by any thread, makes it so that one has the value at a time. The pointer is only
// compared.
unsafe impl<T: Send> Send for TxCell<T> {}
// SAFETY: As above.
unsafe impl<T: Send> Sync for TxCell<T> {}

impl<T> TxCell<T> {
    /// A value under the lock of `queue`.
    pub(crate) fn new(queue: &TxQueue, value: T) -> Self {
        Self {
            queue: queue.raw,
            value: UnsafeCell::new(value),
        }
    }

    /// The value, and the queue; `None` when `held` is another queue.
    #[inline]
    pub(crate) fn get<'a>(
        &'a self,
        held: &'a mut TxHeld<'_>,
    ) -> Option<(&'a mut T, TxControl<'a>)> {
        if held.0.raw != self.queue {
            return None;
        }
        // SAFETY: The lock is held, there is one `TxHeld` of it, and that is borrowed as long as the result.
        let value = unsafe { &mut *self.value.get() };
        // INVARIANT: `held` is borrowed as long as this exists.
        let control = TxControl {
            raw: self.queue,
            _lock: PhantomData,
            _not_send: NotThreadSafe,
        };
        Some((value, control))
    }
}
