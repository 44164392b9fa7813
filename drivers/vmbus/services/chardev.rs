// SPDX-License-Identifier: GPL-2.0

//! Device nodes through which a daemon exchanges whole messages: `read`, `write`, `poll`, and who opens and closes.
//!
//! `kernel::miscdevice` has no `poll`, and its files do not know the data of the device that they belong to.

use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::{c_char, c_int, c_void},
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice, UserSliceReader, UserSliceWriter},
    ThisModule,
};

use super::ffi;

/// What becomes of system calls on a node. All in process context, and may sleep; several at a time.
pub trait Files: Send + Sync + 'static {
    /// A file is opened.
    ///
    /// # Errors
    ///
    /// What `open` shall return.
    fn open(&self) -> Result;

    /// A file that was opened is closed.
    fn release(&self);

    /// A file is read, and the node was found readable or gone.
    ///
    /// # Errors
    ///
    /// What `read` shall return.
    fn read(&self, to: &mut UserSliceWriter) -> Result<usize>;

    /// A file is written.
    ///
    /// # Errors
    ///
    /// What `write` shall return.
    fn write(&self, from: &mut UserSliceReader) -> Result<usize>;
}

/// What `poll` tells, and whether `read` waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Nothing to read: `read` waits (`EAGAIN` for files that are not to block).
    Nothing,
    /// There is something to read: `EPOLLIN`.
    Message,
    /// The device goes away: `EPOLLERR | EPOLLHUP`; `read` does not wait.
    Gone,
}

/// The state that readers of a node wait for.
pub struct Signal {
    // INVARIANT: From `hv_rs_node_new`, with a reference that `drop` gives back.
    raw: *mut ffi::Node,
}

// SAFETY: The C side has its own locks.
unsafe impl Send for Signal {}
// SAFETY: As above.
unsafe impl Sync for Signal {}

impl Signal {
    /// A signal that says [`Readiness::Nothing`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let raw = ffi::hv_rs_node_new();
        if raw.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: As just made.
        Ok(Self { raw })
    }

    /// Changes what is said, and wakes who waits. Any context but NMI. [`Readiness::Gone`] is for ever.
    pub fn set(&self, readiness: Readiness) {
        let value = match readiness {
            Readiness::Nothing => 0,
            Readiness::Message => 1,
            Readiness::Gone => 2,
        };
        // SAFETY: By the invariant.
        unsafe { ffi::hv_rs_node_set(self.raw, value) };
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        // SAFETY: By the invariant; not used any more.
        unsafe { ffi::hv_rs_node_put(self.raw) };
    }
}

/// A device node. Dropping it takes the node away, after [`Readiness::Gone`] was set: files that are open stay, and keep the data and the module.
/// May sleep.
pub struct Node<T: Files> {
    // INVARIANT: Registered by `hv_rs_node_register` with the functions of `T` and a reference to a `T`.
    raw: *mut ffi::Node,
    _data: PhantomData<Arc<T>>,
}

// SAFETY: The C side has its own locks, and `Files` asks the same of the data.
unsafe impl<T: Files> Send for Node<T> {}
// SAFETY: As above.
unsafe impl<T: Files> Sync for Node<T> {}

impl<T: Files> Node<T> {
    const OPS: ffi::NodeOps = ffi::NodeOps {
        open: open::<T>,
        release: release::<T>,
        read: read::<T>,
        write: write::<T>,
        put: put::<T>,
    };

    /// Makes the node `/dev/NAME`, for root alone. `signal` must be one that no node has used. May sleep.
    ///
    /// # Errors
    ///
    /// `EEXIST` and what else the kernel returns.
    pub fn register(
        name: &'static CStr,
        module: &'static ThisModule,
        signal: &Signal,
        data: Arc<T>,
    ) -> Result<Self> {
        let data = Arc::into_raw(data);
        // SAFETY: `signal` is valid. `OPS` lives for ever and takes pointers to a `T`, of which the C side gets a reference that
        // it gives back by `put` when neither node nor files are left. The module that these functions are in is `module` or one that it
        // depends on, so it stays while there are files.
        let ret = unsafe {
            ffi::hv_rs_node_register(
                signal.raw,
                name.as_char_ptr(),
                module.as_ptr().cast(),
                &Self::OPS,
                data.cast(),
            )
        };
        if let Err(e) = to_result(ret) {
            // SAFETY: The reference of above, which the C side did not take.
            drop(unsafe { Arc::from_raw(data) });
            return Err(e);
        }
        // INVARIANT: As just registered.
        Ok(Self {
            raw: signal.raw,
            _data: PhantomData,
        })
    }
}

impl<T: Files> Drop for Node<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant; `drop` runs once.
        unsafe { ffi::hv_rs_node_unregister(self.raw) };
    }
}

fn code(result: Result<usize>) -> isize {
    match result {
        // CAST: Never more than `count`, which the kernel keeps below `isize::MAX`.
        Ok(n) => n as isize,
        // CAST: A small number.
        Err(e) => e.to_errno() as isize,
    }
}

/// # Safety
///
/// `data` must point to a `T`.
unsafe extern "C" fn open<T: Files>(data: *const c_void) -> c_int {
    // SAFETY: By the requirement of this function.
    match unsafe { &*data.cast::<T>() }.open() {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

/// # Safety
///
/// `data` must point to a `T`.
unsafe extern "C" fn release<T: Files>(data: *const c_void) {
    // SAFETY: By the requirement of this function.
    unsafe { &*data.cast::<T>() }.release();
}

/// # Safety
///
/// `data` must point to a `T`.
unsafe extern "C" fn read<T: Files>(data: *const c_void, user: *mut c_char, len: usize) -> isize {
    let mut to = UserSlice::new(UserPtr::from_ptr(user.cast()), len).writer();
    // SAFETY: By the requirement of this function.
    code(unsafe { &*data.cast::<T>() }.read(&mut to))
}

/// # Safety
///
/// `data` must point to a `T`.
unsafe extern "C" fn write<T: Files>(
    data: *const c_void,
    user: *const c_char,
    len: usize,
) -> isize {
    let mut from = UserSlice::new(UserPtr::from_ptr(user.cast_mut().cast()), len).reader();
    // SAFETY: By the requirement of this function.
    code(unsafe { &*data.cast::<T>() }.write(&mut from))
}

/// # Safety
///
/// `data` must be from `Arc::<T>::into_raw`, and is not used any more.
unsafe extern "C" fn put<T: Files>(data: *const c_void) {
    // SAFETY: By the requirement of this function.
    drop(unsafe { Arc::<T>::from_raw(data.cast()) });
}
