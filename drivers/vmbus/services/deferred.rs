// SPDX-License-Identifier: GPL-2.0

//! Work that is handed from an interrupt to process context, and is over when its owner is gone.
//!
//! `kernel::workqueue` keeps a queued item alive by a reference count, so that the item's function may run after the driver
//! or even the module is gone. Here the owner waits instead, as C drivers do with `cancel_work_sync()`.

use core::marker::PhantomPinned;
use kernel::{
    bindings, container_of, prelude::*, sync::LockClassKey, time::msecs_to_jiffies, types::Opaque,
};

use super::ffi;

/// What [`Deferred`] runs.
pub trait Run: Send + Sync + 'static {
    /// Runs in process context, may sleep, one call at a time. Must not drop the [`Deferred`] that it belongs to.
    ///
    /// Returns after how many milliseconds to run again if nobody schedules the work before; `None`: not at all.
    fn run(&self) -> Option<u32>;
}

/// A piece of work that can be scheduled any number of times. Dropping it waits until it does not run and is not queued.
///
/// Drop it in a context that may sleep.
pub struct Deferred<T: Run>(Pin<KBox<Inner<T>>>);

#[pin_data]
struct Inner<T> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    job: T,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A work item may be used from any thread, and `Run` asks the same of the job.
unsafe impl<T: Run> Send for Deferred<T> {}
// SAFETY: As above.
unsafe impl<T: Run> Sync for Deferred<T> {}

impl<T: Run> Deferred<T> {
    /// Work that does `job`. Use [`new_deferred!`](crate::new_deferred), which makes up the lockdep key.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(job: T, name: &'static CStr, key: Pin<&'static LockClassKey>) -> Result<Self> {
        // CAST: `LockClassKey` is a transparent wrapper.
        let key: *mut bindings::lock_class_key =
            core::ptr::from_ref(key.get_ref()).cast_mut().cast();
        let inner = KBox::pin_init(
            pin_init!(Inner {
                work <- Opaque::ffi_init(|slot| {
                    // SAFETY: `slot` is valid for writing; `name` and `key` live for ever. The function gets only
                    // work items that are in an `Inner<T>`, as this one is.
                    unsafe {
                        ffi::hv_rs_delayed_work_init(slot, run::<T>, name.as_char_ptr(), key)
                    }
                }),
                job,
                _pin: PhantomPinned,
            }),
            GFP_KERNEL,
        )?;
        Ok(Self(inner))
    }

    /// Queues the work, to begin at once; false if it was queued already and has not begun. Any context but NMI.
    pub fn schedule(&self) -> bool {
        // SAFETY: The item was initialised in `new`, is pinned, and stays until `drop` has cancelled it.
        !unsafe {
            bindings::mod_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as kernel::ffi::c_int,
                bindings::system_percpu_wq,
                self.0.work.get(),
                0,
            )
        }
    }

    /// Queues the work, to begin in `ms` milliseconds; false, with nothing done, if it was queued already and has not begun. Any
    /// context but NMI.
    pub fn schedule_after(&self, ms: u32) -> bool {
        self.0.queue_after(ms)
    }

    /// Takes the work off the queue, and waits if it runs. May sleep.
    pub fn cancel(&self) {
        // SAFETY: The item was initialised in `new`.
        unsafe { bindings::cancel_delayed_work_sync(self.0.work.get()) };
    }

    /// The job.
    pub fn job(&self) -> &T {
        &self.0.job
    }
}

impl<T> Inner<T> {
    fn queue_after(&self, ms: u32) -> bool {
        // SAFETY: The item was initialised in `new`, is pinned, and stays until `drop` has cancelled it.
        unsafe {
            bindings::queue_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as kernel::ffi::c_int,
                bindings::system_percpu_wq,
                self.work.get(),
                msecs_to_jiffies(ms),
            )
        }
    }
}

impl<T: Run> Drop for Deferred<T> {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// # Safety
///
/// `work` must be the work item of the `work` field of an `Inner<T>` that stays valid during the call.
unsafe extern "C" fn run<T: Run>(work: *mut bindings::work_struct) {
    // SAFETY: By the requirement of this function; no more than addresses are computed.
    let delayed = unsafe { container_of!(work, bindings::delayed_work, work) };
    let work = Opaque::cast_from(delayed);
    // SAFETY: By the requirement of this function.
    let inner = unsafe { &*container_of!(work, Inner<T>, work) };
    if let Some(ms) = inner.job.run() {
        // Does nothing if it is queued already: who has scheduled it meanwhile wants it to run now.
        inner.queue_after(ms);
    }
}

/// `Deferred::new` with the lockdep class of the place where it is written.
#[macro_export]
macro_rules! new_deferred {
    ($job:expr, $name:expr) => {
        $crate::services::deferred::Deferred::new($job, $name, ::kernel::static_lock_class!())
    };
}
