// SPDX-License-Identifier: GPL-2.0

//! NAPI: polling a device from softirq, with its interrupts masked.

use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicBool, Ordering},
};
use kernel::{ffi::c_void, prelude::*, sync::Arc};

use super::{
    device::{NetDevice, Rtnl},
    ffi,
    packet::{PacketType, RxInfo, RxPacket, XdpPage},
    xdp::{Program, Verdict},
};

/// What is polled.
pub(crate) trait Poller: Send + Sync + 'static {
    /// What only polls use.
    type State: Send + 'static;

    /// Takes at most [`Poll::budget`] packets from the device, and returns how many these were. When there are no more, calls
    /// [`Poll::complete`] and has the device interrupt again, and returns less than the budget. Softirq context; one call at a
    /// time.
    fn poll(&self, state: &mut Self::State, napi: &mut Poll<'_>) -> u32;
}

/// What a context's polls get.
struct Polled<T: Poller> {
    poller: Arc<T>,
    /// Belongs to the poll in progress, of which there is one at a time.
    state: UnsafeCell<T::State>,
}

/// A NAPI context of a receive queue. Dropped in process context, disabled.
///
/// # Invariants
/// `raw` is a context that polls `_polled`; enabled while `enabled` says so.
pub(crate) struct Napi<T: Poller> {
    raw: NonNull<ffi::Napi>,
    enabled: AtomicBool,
    // Kept as long as it is polled.
    _dev: Arc<NetDevice>,
    _polled: KBox<Polled<T>>,
}

// SAFETY: NAPI contexts may be used from any thread.
unsafe impl<T: Poller> Send for Napi<T> {}
// SAFETY: The methods that need a lock ask for it.
unsafe impl<T: Poller> Sync for Napi<T> {}

impl<T: Poller> Napi<T> {
    /// A context for queue `queue`, disabled. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(
        _rtnl: &Rtnl,
        dev: &Arc<NetDevice>,
        queue: u16,
        poller: Arc<T>,
        state: T::State,
    ) -> Result<Arc<Self>> {
        let polled = Polled {
            poller,
            state: UnsafeCell::new(state),
        };
        let polled = KBox::new(polled, GFP_KERNEL)?;
        let data = core::ptr::from_ref::<Polled<T>>(&polled).cast::<c_void>();
        // SAFETY: The device and `data` are valid, and kept longer than the context.
        let raw = unsafe { ffi::hv_rs_napi_new(dev.raw(), queue, data, poll::<T>) };
        // INVARIANT: Just made.
        let this = Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            enabled: AtomicBool::new(false),
            _dev: dev.clone(),
            _polled: polled,
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// Allows polling. May sleep.
    pub(crate) fn enable(&self, _rtnl: &Rtnl) {
        if !self.enabled.swap(true, Ordering::AcqRel) {
            // SAFETY: By the type's invariant; was disabled.
            unsafe { ffi::hv_rs_napi_enable(self.raw.as_ptr()) };
        }
    }

    /// Ends polling, and waits for a poll in progress. May sleep.
    pub(crate) fn disable(&self, _rtnl: &Rtnl) {
        if self.enabled.swap(false, Ordering::AcqRel) {
            // SAFETY: By the type's invariant; was enabled.
            unsafe { ffi::hv_rs_napi_disable(self.raw.as_ptr()) };
        }
    }

    /// Has the device polled, soon; or once more, if it is being polled. Any context. While disabled this does nothing.
    #[inline]
    pub(crate) fn schedule(&self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_napi_schedule(self.raw.as_ptr()) };
    }

    /// Sets the XDP program that [`Poll::run_xdp`] runs.
    pub(crate) fn set_program(&self, _rtnl: &Rtnl, program: Option<Program>) {
        let raw = program.map_or(core::ptr::null_mut(), Program::into_raw);
        // SAFETY: By the type's invariant; a reference of the program is given away; the lock is held.
        unsafe { ffi::hv_rs_napi_set_prog(self.raw.as_ptr(), raw) };
    }
}

impl<T: Poller> Drop for Napi<T> {
    fn drop(&mut self) {
        if *self.enabled.get_mut() {
            // If it is not to be had somebody has it, who may be the caller; that it is held is all that is wanted.
            let _rtnl = Rtnl::try_lock();
            // SAFETY: By the type's invariant.
            unsafe { ffi::hv_rs_napi_disable(self.raw.as_ptr()) };
        }
        // SAFETY: No program runs any more; by the type's invariant.
        unsafe { ffi::hv_rs_napi_set_prog(self.raw.as_ptr(), core::ptr::null_mut()) };
        // SAFETY: Disabled, and not used after this.
        unsafe { ffi::hv_rs_napi_free(self.raw.as_ptr()) };
    }
}

/// # Safety
/// Called in a poll of `napi`, which polls the `Polled<T>` at `data`.
unsafe extern "C" fn poll<T: Poller>(
    data: *const c_void,
    napi: *mut ffi::Napi,
    budget: u32,
) -> u32 {
    // SAFETY: By the requirement; it outlives the context.
    let polled = unsafe { &*data.cast::<Polled<T>>() };
    // SAFETY: There is one poll of a context at a time.
    let state = unsafe { &mut *polled.state.get() };
    let mut poll = Poll {
        raw: napi,
        budget,
        _poll: PhantomData,
    };
    polled.poller.poll(state, &mut poll)
}

/// A poll in progress.
///
/// # Invariants
/// `raw` is being polled, on this CPU, as long as this exists.
pub(crate) struct Poll<'a> {
    raw: *mut ffi::Napi,
    budget: u32,
    _poll: PhantomData<&'a mut ()>,
}

impl Poll<'_> {
    /// Packets that may be received; 0 when netpoll asks for what can be done without receiving.
    #[inline]
    pub(crate) fn budget(&self) -> u32 {
        self.budget
    }

    /// Ends polling after `done` packets, fewer than the budget. False: it goes on in a moment, so the device must not interrupt.
    #[inline]
    pub(crate) fn complete(&mut self, done: u32) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_napi_complete(self.raw, done) }
    }

    /// After [`complete`](Self::complete): begins again, unless somebody else has. True when it was this: mask the device's
    /// interrupts, then call [`resume`](Self::resume).
    pub(crate) fn prepare_resume(&mut self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_napi_schedule_prep(self.raw) }
    }

    /// See [`prepare_resume`](Self::prepare_resume).
    pub(crate) fn resume(&mut self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_napi_schedule_prepared(self.raw) };
    }

    /// A packet of `len` bytes, to be filled; `None` without memory.
    #[inline]
    pub(crate) fn new_packet(&mut self, len: u32) -> Option<RxPacket> {
        let mut data = core::ptr::null_mut();
        // SAFETY: In a poll, by the type's invariant.
        let skb = unsafe { ffi::hv_rs_rx_alloc(self.raw, len, &mut data) };
        // SAFETY: The packet is ours; its contents are at `data`.
        Some(unsafe { RxPacket::new(NonNull::new(skb)?, NonNull::new(data)?, len, 0) })
    }

    /// Hands a packet, an Ethernet frame, to the stack. `None`: it was not complete, or contradicts `info`, and is gone.
    #[inline(always)]
    pub(crate) fn deliver(
        &mut self,
        packet: RxPacket,
        info: &RxInfo,
        queue: u16,
    ) -> Option<PacketType> {
        if !packet.is_complete() {
            return None;
        }
        let raw = info.to_raw(queue);
        // SAFETY: In a poll, by the type's invariant; the packet is given away.
        match unsafe { ffi::hv_rs_rx_deliver(self.raw, packet.into_raw().as_ptr(), &raw) } {
            1 => Some(PacketType::Broadcast),
            2 => Some(PacketType::Multicast),
            -1 => None,
            _ => Some(PacketType::Other),
        }
    }

    /// Runs the XDP program on a frame.
    pub(crate) fn run_xdp(&mut self, page: XdpPage) -> Verdict {
        let page = core::mem::ManuallyDrop::new(page);
        let (mut offset, mut len) = (0, page.len);
        let raw = page.page.as_ptr();
        // SAFETY: In a poll, by the type's invariant; the page holds `len` bytes.
        let action = unsafe { ffi::hv_rs_xdp_run(self.raw, raw, &mut offset, &mut len) };
        // SAFETY: The page is still ours where it was not redirected, and used once below.
        unsafe { Verdict::new(action, page.page, offset, len) }
    }
}
