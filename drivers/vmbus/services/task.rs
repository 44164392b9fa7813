// SPDX-License-Identifier: GPL-2.0

//! A piece of work in process context that also looks after time limits.

use core::marker::PhantomData;
use kernel::{
    ffi::{c_long, c_void},
    prelude::*,
    sync::Arc,
};

use super::ffi;

/// What a [`Task`] does.
pub trait Step: Send + Sync + 'static {
    /// Does what there is to do. In process context, may sleep; one call at a time. Must not drop the [`Task`].
    ///
    /// Returns after how many milliseconds to call again if nobody calls [`Task::schedule`] before; `None`: not at all.
    fn step(&self) -> Option<u32>;
}

/// A task that can be scheduled any number of times, and calls itself again after the time that it wished. Dropping it waits
/// until it does not run any more: drop it in a context that may sleep, and not under a lock that the task takes.
pub struct Task<T: Step> {
    // INVARIANT: Made by `hv_rs_task_new` with `step::<T>` and a pointer to a `T` of which the task has a reference.
    raw: *mut ffi::Task,
    data: *const T,
    _owns: PhantomData<Arc<T>>,
}

// SAFETY: A work item may be used from any thread, and `Step` asks the same of the data.
unsafe impl<T: Step> Send for Task<T> {}
// SAFETY: As above.
unsafe impl<T: Step> Sync for Task<T> {}

impl<T: Step> Task<T> {
    /// A task that is not scheduled.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(data: Arc<T>) -> Result<Self> {
        let data = Arc::into_raw(data);
        // SAFETY: `step::<T>` takes a pointer to a `T`; the reference that `into_raw` gave keeps it until `drop`, after
        // the work was cancelled.
        let raw = unsafe { ffi::hv_rs_task_new(step::<T>, data.cast()) };
        if raw.is_null() {
            // SAFETY: From `into_raw` above, and nobody else uses it.
            drop(unsafe { Arc::from_raw(data) });
            return Err(ENOMEM);
        }
        // INVARIANT: As just made.
        Ok(Self {
            raw,
            data,
            _owns: PhantomData,
        })
    }

    /// Has [`Step::step`] called soon. Any context but NMI.
    pub fn schedule(&self) {
        // SAFETY: By the invariant valid, until `drop`.
        unsafe { ffi::hv_rs_task_schedule(self.raw) };
    }
}

impl<T: Step> Drop for Task<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant valid; `drop` runs once. No call is under way afterwards.
        unsafe { ffi::hv_rs_task_free(self.raw) };
        // SAFETY: The reference of `new`, which nobody uses any more.
        drop(unsafe { Arc::from_raw(self.data) });
    }
}

/// # Safety
///
/// `data` must point to a `T`.
unsafe extern "C" fn step<T: Step>(data: *const c_void) -> c_long {
    // SAFETY: By the requirement of this function.
    let data = unsafe { &*data.cast::<T>() };
    // CAST: 32 bits fit.
    data.step().map_or(-1, |ms| ms as c_long)
}
