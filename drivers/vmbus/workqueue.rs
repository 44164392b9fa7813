// SPDX-License-Identifier: GPL-2.0

//! Work queues of our own.

use core::ptr::NonNull;
use kernel::{bindings, prelude::*, workqueue::Queue};

/// A work queue; drained and destroyed on drop.
///
/// # Invariants
/// A valid queue that is owned.
pub(crate) struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work queues may be used from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: Work queues may be used from any thread.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// A queue whose items run one after the other, in the order in which they were queued.
    pub(crate) fn ordered(name: &'static CStr) -> Result<Self> {
        Self::new(name, bindings::wq_flags___WQ_ORDERED, 1)
    }

    /// A queue whose items run all at once.
    pub(crate) fn concurrent(name: &'static CStr) -> Result<Self> {
        Self::new(name, 0, 0)
    }

    fn new(name: &'static CStr, flags: u32, max_active: i32) -> Result<Self> {
        // SAFETY: The format takes one string.
        let raw = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND | flags,
                max_active,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: Just allocated.
        Ok(Self(NonNull::new(raw).ok_or(ENOMEM)?))
    }

    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: By the type's invariant; the queue lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Waits until the items queued before this call are done. Process context, not from an item.
    pub(crate) fn flush(&self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
