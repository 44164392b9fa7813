// SPDX-License-Identifier: GPL-2.0

//! XDP: programs that see a frame before the stack does.

use core::{marker::PhantomData, mem::ManuallyDrop, ptr, ptr::NonNull};
use hv_vmbus::buffer::BufferSlice;
use kernel::{bindings, prelude::*};

use super::{
    device::NetDevice,
    ffi,
    packet::{RxPacket, TxPacket},
};

/// A reference to a program.
///
/// # Invariants
/// A reference of `raw` is owned.
pub(crate) struct Program {
    raw: NonNull<ffi::BpfProg>,
}

// SAFETY: Programs are reference-counted, and may be used from any thread.
unsafe impl Send for Program {}
// SAFETY: As above.
unsafe impl Sync for Program {}

impl Program {
    pub(super) fn into_raw(self) -> *mut ffi::BpfProg {
        ManuallyDrop::new(self).raw.as_ptr()
    }
}

impl Clone for Program {
    fn clone(&self) -> Self {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_prog_add(self.raw.as_ptr(), 1) };
        Self { raw: self.raw }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: The reference is owned.
        unsafe { ffi::hv_rs_prog_put(self.raw.as_ptr()) };
    }
}

/// A request to put a program in, or to take it out.
pub(crate) struct SetProgram<'a> {
    program: Option<Program>,
    message: *mut ffi::ExtAck,
    _call: PhantomData<&'a ()>,
}

impl SetProgram<'_> {
    /// # Safety
    /// `program` is valid, and a reference is the caller's to give; `message` is null or valid during `'a`.
    pub(super) unsafe fn new(
        program: Option<NonNull<ffi::BpfProg>>,
        message: *mut ffi::ExtAck,
    ) -> Self {
        Self {
            // INVARIANT: By the requirement.
            program: program.map(|raw| Program { raw }),
            message,
            _call: PhantomData,
        }
    }

    /// Gives the request to `f`. A reference is the kernel's again when that fails.
    pub(super) fn give_to(self, f: impl FnOnce(Self) -> Result) -> Result {
        // One for `f`, one for whom it comes back to.
        let back = self.program.clone();
        let result = f(self);
        if let (Err(_), Some(program)) = (&result, &back) {
            // Not dropped with `back`.
            core::mem::forget(program.clone());
        }
        result
    }

    /// The program; `None` takes the present one out.
    pub(crate) fn program(&self) -> Option<&Program> {
        self.program.as_ref()
    }

    /// Refuses, since frames of the present MTU do not fit a page.
    pub(crate) fn mtu_too_large(&self) -> Error {
        self.refuse(0)
    }

    /// Refuses, since frames may be put together from several.
    pub(crate) fn lro_is_on(&self) -> Error {
        self.refuse(1)
    }

    fn refuse(&self, why: u32) -> Error {
        // SAFETY: Null or valid during the call that this was made for.
        unsafe { ffi::hv_rs_xdp_message(self.message, why) };
        Error::from_errno(-(bindings::EOPNOTSUPP as i32))
    }
}

/// What a program says is to be done with a frame.
pub(crate) enum Verdict {
    /// Hand it to the stack; `None` without memory.
    Pass(Option<RxPacket>),
    /// Send it back.
    Tx(Frame),
    /// Nothing: it goes elsewhere.
    Redirected,
    /// Nothing: it is gone.
    Dropped,
}

impl Verdict {
    /// # Safety
    /// `page` is the caller's to give unless `action` is `XDP_REDIRECT`; `len` bytes from `offset` on are initialised.
    pub(super) unsafe fn new(
        action: u32,
        page: NonNull<bindings::page>,
        offset: u32,
        len: u32,
    ) -> Self {
        const PASS: u32 = 2;
        const TX: u32 = 3;
        const REDIRECT: u32 = 4;
        // INVARIANT: By the requirement.
        let frame = || Frame { page, offset, len };
        match action {
            PASS => {
                // SAFETY: By the requirement; the page is given away.
                let skb = unsafe { ffi::hv_rs_xdp_skb(page.as_ptr(), offset, len) };
                // SAFETY: The packet is ours, and complete: its contents are not written through this.
                let packet = |skb| unsafe { RxPacket::new(skb, NonNull::dangling(), len, len) };
                Self::Pass(NonNull::new(skb).map(packet))
            }
            TX => Self::Tx(frame()),
            REDIRECT => Self::Redirected,
            _ => {
                drop(frame());
                Self::Dropped
            }
        }
    }
}

/// A frame in a page, owned.
///
/// # Invariants
/// `page` is owned; `len` bytes from `offset` on are initialised.
pub(crate) struct Frame {
    page: NonNull<bindings::page>,
    offset: u32,
    len: u32,
}

impl Frame {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // The offset is relative to the page, the address that is known to its data area.
        let headroom = 256usize;
        // SAFETY: By the type's invariant; the page is ours alone.
        unsafe {
            let data = ffi::hv_rs_xdp_page_data(self.page.as_ptr());
            let start = data.sub(headroom).add(self.offset as usize);
            core::slice::from_raw_parts(start, self.len as usize)
        }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: The page is owned.
        unsafe { ffi::hv_rs_xdp_page_free(self.page.as_ptr()) };
    }
}

/// Frames that were redirected to a device; see [`NetDriver::xdp_transmit`](super::NetDriver::xdp_transmit).
///
/// # Invariants
/// `frames` are `count` frames, which stay during `'a`; the first `taken` of them are the driver's.
pub(crate) struct XdpFrames<'a> {
    frames: *mut *mut ffi::XdpFrame,
    count: u32,
    _call: PhantomData<&'a ()>,
}

impl XdpFrames<'_> {
    /// # Safety
    /// `frames` are `count` frames, valid during `'a`.
    pub(super) unsafe fn new(frames: *mut *mut ffi::XdpFrame, count: u32) -> Self {
        Self {
            frames,
            count,
            _call: PhantomData,
        }
    }

    /// Gives the frames one by one to `send`, until that says no, and frees those that it took. Returns how many these were.
    pub(crate) fn send_each(self, mut send: impl FnMut(FrameBytes<'_>) -> bool) -> u32 {
        for i in 0..self.count {
            let (mut data, mut len) = (ptr::null(), 0);
            // SAFETY: By the type's invariant.
            unsafe { ffi::hv_rs_xdp_frame(self.frames, i, &mut data, &mut len) };
            let bytes = FrameBytes {
                data,
                len,
                _frame: PhantomData,
            };
            if !send(bytes) {
                return i;
            }
            // SAFETY: By the type's invariant; a frame that was taken is ours.
            unsafe { ffi::hv_rs_xdp_frame_return(self.frames, i) };
        }
        self.count
    }
}

/// The bytes of a frame.
///
/// # Invariants
/// `len` bytes from `data` on are valid during `'a`.
#[derive(Clone, Copy)]
pub(crate) struct FrameBytes<'a> {
    data: *const u8,
    len: u32,
    _frame: PhantomData<&'a ()>,
}

impl<'a> FrameBytes<'a> {
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Copies the frame to `to`; false when there is no room for it.
    #[must_use]
    pub(crate) fn copy_to(&self, to: BufferSlice<'_>) -> bool {
        if self.len as usize > to.len() {
            return false;
        }
        // SAFETY: Source and destination are as long, by the invariants of both types.
        unsafe { ptr::copy_nonoverlapping(self.data, to.as_ptr(), self.len as usize) };
        true
    }

    /// Gives a packet of `dev` with a copy of the frame, and `room` bytes before it, to `f`. `None` without memory.
    pub(crate) fn with_packet<R>(
        &self,
        dev: &NetDevice,
        room: u32,
        f: impl FnOnce(TxPacket<'_>) -> R,
    ) -> Option<R> {
        let mut tx = ffi::RawTx {
            // SAFETY: The device is there, and the frame by the type's invariant.
            skb: unsafe { ffi::hv_rs_xdp_copy(dev.raw(), self.data, self.len, room) },
            txq: ptr::null_mut(),
            data: ptr::null(),
            len: 0,
            headlen: 0,
            hash: 0,
            flags: 0,
            queue: 0,
            vlan_tci: 0,
            gso_size: 0,
            transport: 0,
            room: 0,
            head: ptr::null_mut(),
        };
        if tx.skb.is_null() {
            return None;
        }
        // SAFETY: The packet is there.
        unsafe { ffi::hv_rs_tx_look(&mut tx) };
        // SAFETY: The packet is ours, and was just described; `f` gets it.
        Some(f(unsafe { TxPacket::from_raw(&mut tx) }))
    }
}

impl<'a> From<&'a Frame> for FrameBytes<'a> {
    fn from(frame: &'a Frame) -> Self {
        let bytes = frame.bytes();
        // INVARIANT: A slice is valid.
        Self {
            data: bytes.as_ptr(),
            len: bytes.len() as u32,
            _frame: PhantomData,
        }
    }
}
