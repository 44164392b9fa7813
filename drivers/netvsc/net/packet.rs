// SPDX-License-Identifier: GPL-2.0

//! Packets: `struct sk_buff`, to send and received.

use core::{
    marker::PhantomData,
    mem::{ManuallyDrop, MaybeUninit},
    ptr,
    ptr::NonNull,
    slice,
    sync::atomic::AtomicU64,
};
use hv_vmbus::{
    buffer::BufferSlice,
    channel::{GpaRun, PutRanges},
};
use kernel::{bindings, ffi::c_int, prelude::*};

use super::ffi;

/// What is to be done about a packet to send, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TxFlags(u32);

impl TxFlags {
    /// The frame is to get a VLAN tag: [`TxPacket::vlan_tci`].
    pub(crate) const VLAN: u32 = 1 << 0;
    /// The frame has a VLAN tag: [`TxPacket::take_vlan`].
    pub(crate) const VLAN_INSIDE: u32 = 1 << 1;
    /// The packet is to be cut into segments.
    pub(crate) const GSO: u32 = 1 << 2;
    /// The transport checksum is to be filled in.
    pub(crate) const PARTIAL: u32 = 1 << 3;
    /// What the packet is, when one of the two before is set.
    pub(crate) const IPV4: u32 = 1 << 4;
    /// Likewise.
    pub(crate) const IPV6: u32 = 1 << 5;
    /// Likewise.
    pub(crate) const TCP: u32 = 1 << 6;
    /// Likewise.
    pub(crate) const UDP: u32 = 1 << 7;
    /// Another packet for the queue follows at once.
    pub(crate) const MORE: u32 = 1 << 8;

    /// Whether one of `flags` is set.
    #[inline]
    pub(crate) fn any(self, flags: u32) -> bool {
        self.0 & flags != 0
    }

    /// Those of `flags` that are set.
    #[inline]
    pub(crate) fn of(self, flags: u32) -> u32 {
        self.0 & flags
    }
}

/// Pieces of memory of a packet: its head and its fragments.
const MAX_RUNS: usize = 18;

/// Where the memory of a packet is: headers before it, which may be elsewhere, and its pieces.
///
/// # Invariants
/// Those from `from` up to `end` are initialised; `from` is 0 or 1, and not more than `end`.
pub(crate) struct Runs {
    // Not zeroed: there are few of them in most packets.
    runs: [MaybeUninit<GpaRun>; MAX_RUNS + 1],
    from: usize,
    end: usize,
}

impl Runs {
    /// None.
    #[inline]
    pub(crate) fn new() -> Self {
        // INVARIANT: None is said to be initialised.
        Self {
            runs: [const { MaybeUninit::uninit() }; MAX_RUNS + 1],
            from: 1,
            end: 1,
        }
    }

    /// All, in the order of what they hold.
    #[inline]
    pub(crate) fn all(&self) -> &[GpaRun] {
        let runs = self.runs.get(self.from..self.end).unwrap_or(&[]);
        // SAFETY: Initialised by the type's invariant; `MaybeUninit` has the layout of what it may hold.
        unsafe { slice::from_raw_parts(runs.as_ptr().cast(), runs.len()) }
    }
}

/// A packet, owned. Freed on drop, as one that was lost.
///
/// # Invariants
/// `raw` is owned.
pub(crate) struct Skb {
    raw: NonNull<ffi::SkBuff>,
}

// SAFETY: Packets belong to no thread.
unsafe impl Send for Skb {}

impl Skb {
    /// # Safety
    /// The packet is the caller's, who gives it away.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<ffi::SkBuff>) -> Self {
        // INVARIANT: By the requirement.
        Self { raw }
    }

    #[inline]
    pub(super) fn into_raw(self) -> NonNull<ffi::SkBuff> {
        ManuallyDrop::new(self).raw
    }

    /// Frees the packet, as one that was sent. `budget`: of the poll that this runs in, 0 elsewhere.
    #[inline]
    pub(crate) fn consume(self, budget: u32) {
        // SAFETY: The packet is owned, and not used any more.
        unsafe { ffi::napi_consume_skb(self.into_raw().as_ptr(), budget as c_int) };
    }
}

impl Drop for Skb {
    fn drop(&mut self) {
        // SAFETY: The packet is owned.
        unsafe { ffi::hv_rs_skb_drop(self.raw.as_ptr()) };
    }
}

/// A packet to send that belongs to somebody else, in a callback.
///
/// # Invariants
/// `raw` is a packet that stays during `'a`.
pub(crate) struct SkbRef<'a> {
    raw: *mut ffi::SkBuff,
    _packet: PhantomData<&'a ()>,
}

impl SkbRef<'_> {
    /// # Safety
    /// `raw` is a packet that stays during `'a`.
    pub(super) unsafe fn new(raw: *mut ffi::SkBuff) -> Self {
        Self {
            raw,
            _packet: PhantomData,
        }
    }

    /// A hash of the packet's flow, or 0. `l4` says for which protocols ports count: TCP and UDP over IPv4, then over IPv6, from
    /// bit 0 on.
    pub(crate) fn flow_hash(&self, l4: u32) -> u32 {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_skb_flow_hash(self.raw, l4) }
    }
}

/// A packet to send, owned, with what is to be known of it. Dropped as one that was lost.
///
/// # Invariants
/// `tx` describes its packet, which is owned; `room` bytes from `head` on are the packet's, before its frame, and may be written.
pub(crate) struct TxPacket<'a> {
    tx: &'a mut ffi::RawTx,
}

impl<'a> TxPacket<'a> {
    /// # Safety
    /// The packet is given away by the caller.
    #[inline]
    pub(super) unsafe fn from_raw(tx: &'a mut ffi::RawTx) -> Self {
        // INVARIANT: By the requirement; the caller has filled in the rest.
        Self { tx }
    }

    /// Bytes of the frame.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.tx.len
    }

    #[inline]
    pub(crate) fn flags(&self) -> TxFlags {
        TxFlags(self.tx.flags)
    }

    /// Number of the queue that it was given for.
    #[inline]
    pub(crate) fn queue(&self) -> u16 {
        self.tx.queue
    }

    /// A hash of the packet's flow; 0 when it is not known.
    #[inline]
    pub(crate) fn hash(&self) -> u32 {
        self.tx.hash
    }

    /// With [`TxFlags::VLAN`]: the tag's contents.
    #[inline]
    pub(crate) fn vlan_tci(&self) -> u16 {
        self.tx.vlan_tci
    }

    /// With [`TxFlags::GSO`]: bytes of data in each segment.
    #[inline]
    pub(crate) fn segment_size(&self) -> u16 {
        self.tx.gso_size
    }

    /// With [`TxFlags::GSO`] or [`TxFlags::PARTIAL`]: where the transport header is.
    #[inline]
    pub(crate) fn transport_offset(&self) -> u16 {
        self.tx.transport
    }

    /// Copies the frame to `to`; false, with rubbish there, when there is no room for it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn copy_to(&self, to: BufferSlice<'_>) -> bool {
        let (len, linear) = (self.tx.len as usize, self.tx.headlen as usize);
        if len > to.len() {
            return false;
        }
        // SAFETY: `linear` bytes are at `data` by the type's invariant, and are at most `len`; the destination is as long, and
        // nobody has a reference to it. Both kinds of memory may be written meanwhile by others, which leaves rubbish in the copy.
        unsafe { ptr::copy_nonoverlapping(self.tx.data, to.as_ptr(), linear) };
        len == linear || self.copy_rest(to)
    }

    #[inline(never)]
    fn copy_rest(&self, to: BufferSlice<'_>) -> bool {
        let Some(rest) = to.slice(
            self.tx.headlen as usize,
            (self.tx.len - self.tx.headlen) as usize,
        ) else {
            return false;
        };
        // SAFETY: By the type's invariant; the destination is long enough.
        let ret = unsafe {
            ffi::hv_rs_skb_copy_bits(
                self.tx.skb,
                self.tx.headlen,
                rest.as_ptr(),
                rest.len() as u32,
            )
        };
        ret == 0
    }

    /// Moves the VLAN tag at the frame's start, if there is one, into [`vlan_tci`](Self::vlan_tci).
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` when the frame is too short.
    pub(crate) fn take_vlan(&mut self) -> Result {
        // SAFETY: By the type's invariant.
        let ret = unsafe { ffi::hv_rs_skb_take_vlan(self.tx.skb) };
        self.look();
        kernel::error::to_result(ret)
    }

    /// Fills in the transport checksum.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` when the packet is malformed.
    pub(crate) fn fill_checksum(&mut self) -> Result {
        // SAFETY: By the type's invariant.
        let ret = unsafe { ffi::hv_rs_skb_checksum_help(self.tx.skb) };
        self.look();
        kernel::error::to_result(ret)
    }

    /// Brings the frame into one piece of memory.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn linearize(&mut self) -> Result {
        // SAFETY: By the type's invariant.
        let ret = unsafe { ffi::hv_rs_skb_linearize(self.tx.skb) };
        self.look();
        kernel::error::to_result(ret)
    }

    /// Copies the headers if others see them, and makes `room` bytes before the frame writable. For a packet to be cut into segments,
    /// readies its headers for a device that does so.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn prepare_headers(&mut self, room: u32) -> Result {
        // SAFETY: By the type's invariant, which this keeps.
        kernel::error::to_result(unsafe { ffi::hv_rs_tx_prepare(self.tx, room) })
    }

    /// Has `write` write `len` bytes of headers before the frame, and puts where they are before `runs`. False: there is no room.
    /// After [`prepare_headers`](Self::prepare_headers).
    #[must_use]
    pub(crate) fn write_header(
        &mut self,
        runs: &mut Runs,
        len: u32,
        write: impl FnOnce(&mut [u8]),
    ) -> bool {
        if len == 0 || len > self.tx.room {
            return false;
        }
        // SAFETY: `room` bytes from `head` on may be written by the type's invariant, and nobody else knows of them.
        write(unsafe { slice::from_raw_parts_mut(self.tx.head, len as usize) });
        // SAFETY: As above; a packet's head is mapped linearly. The place is one of `runs`.
        unsafe {
            ffi::hv_rs_range_of(self.tx.head.cast(), len, runs.runs.as_mut_ptr().cast());
        }
        // INVARIANT: Just written.
        runs.from = 0;
        true
    }

    /// As [`prepare_headers`](Self::prepare_headers), for who sends many; returns the room. `None`: there is no memory.
    #[inline(always)]
    #[must_use]
    pub(crate) fn make_room<const ROOM: usize>(&mut self) -> Option<&mut [u8; ROOM]> {
        // SAFETY: By the type's invariant, which this keeps.
        if unsafe { ffi::hv_rs_tx_prepare(self.tx, ROOM as u32) } != 0 {
            return None;
        }
        // SAFETY: `ROOM` bytes from `head` on may be written, as was just asked for, and nobody else knows of them. It is not null.
        Some(unsafe { &mut *self.tx.head.cast() })
    }

    /// Writes ranges, as a GPA-direct packet has them, into `to`: the first `header` bytes of the room before the frame, which there
    /// is, and the frame. `None`: there are too few words. After [`make_room`](Self::make_room).
    #[inline(always)]
    #[must_use]
    pub(crate) fn put_ranges(&self, header: u32, to: &[AtomicU64]) -> Option<PutRanges> {
        // SAFETY: By the type's invariant; so many words are there, which may be written through shared references, and which
        // nobody reads or writes who does not expect that.
        let put = unsafe {
            let words = to.as_ptr().cast_mut().cast();
            ffi::hv_rs_tx_put_ranges(self.tx, header, words, to.len() as u32)
        };
        (put.ranges != 0).then_some(PutRanges {
            ranges: put.ranges,
            words: put.words,
        })
    }

    /// Finds out where the frame is, unless it takes more than `max_pages` pages, or more pieces than there may be: false.
    #[must_use]
    pub(crate) fn find_memory(&self, runs: &mut Runs, max_pages: u32) -> bool {
        // SAFETY: By the type's invariant; there are as many places behind the first.
        let count = unsafe {
            ffi::hv_rs_skb_ranges(
                self.tx.skb,
                runs.runs.as_mut_ptr().cast::<GpaRun>().add(1),
                MAX_RUNS as u32,
                max_pages,
            )
        };
        // INVARIANT: So many were written, not more than there are places for.
        (runs.from, runs.end) = (1, 1 + count as usize);
        count != 0
    }

    /// Looks again at what the packet is. Whether more follow is not the packet's business.
    fn look(&mut self) {
        let more = self.tx.flags & TxFlags::MORE;
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_tx_look(self.tx) };
        self.tx.flags |= more;
    }

    /// The packet alone, to be kept until it is sent.
    #[inline]
    pub(crate) fn into_skb(self) -> Skb {
        // SAFETY: A packet is never null.
        let raw = unsafe { NonNull::new_unchecked(ManuallyDrop::new(self).tx.skb) };
        // SAFETY: Owned by the type's invariant, and given away.
        unsafe { Skb::from_raw(raw) }
    }
}

impl Drop for TxPacket<'_> {
    fn drop(&mut self) {
        // SAFETY: The packet is owned by the type's invariant.
        unsafe { ffi::hv_rs_skb_drop(self.tx.skb) };
    }
}

/// What the device says of a packet received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RxInfo {
    pub(crate) hash: Option<u32>,
    pub(crate) vlan_tci: Option<u16>,
    /// The transport checksum is right.
    pub(crate) checksum_ok: bool,
    /// The IPv4 header is right, but for its checksum, which is to be computed.
    pub(crate) fix_ip_checksum: bool,
}

impl RxInfo {
    #[inline]
    pub(super) fn to_raw(self, queue: u16) -> ffi::RawRx {
        let mut flags = 0;
        if self.hash.is_some() {
            flags |= 1;
        }
        if self.vlan_tci.is_some() {
            flags |= 2;
        }
        if self.checksum_ok {
            flags |= 4;
        }
        if self.fix_ip_checksum {
            flags |= 8;
        }
        ffi::RawRx {
            hash: self.hash.unwrap_or(0),
            vlan_tci: self.vlan_tci.unwrap_or(0),
            queue,
            flags,
        }
    }
}

/// To whom a packet received was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PacketType {
    Broadcast,
    Multicast,
    Other,
}

/// A packet received, in the making: of a fixed number of bytes, all of which the driver writes before it is
/// [delivered](super::Poll::deliver).
///
/// # Invariants
/// `raw` is owned; `len` bytes from `data` on are its contents.
pub(crate) struct RxPacket {
    raw: NonNull<ffi::SkBuff>,
    data: NonNull<u8>,
    len: u32,
    written: u32,
}

impl RxPacket {
    /// # Safety
    /// The packet is the caller's, who gives it away; `len` bytes from `data` on are its contents, the first `written` of which are
    /// initialised.
    #[inline]
    pub(super) unsafe fn new(
        raw: NonNull<ffi::SkBuff>,
        data: NonNull<u8>,
        len: u32,
        written: u32,
    ) -> Self {
        Self {
            raw,
            data,
            len,
            written,
        }
    }

    /// Copies `from` behind what was copied before; false, with nothing copied, when there is no room.
    #[inline(always)]
    #[must_use]
    pub(crate) fn append(&mut self, from: BufferSlice<'_>) -> bool {
        let left = (self.len - self.written) as usize;
        if from.len() > left {
            return false;
        }
        // SAFETY: Source and destination are as long; the packet is ours alone. The host may write the source meanwhile: then the
        // packet holds rubbish.
        unsafe {
            ptr::copy_nonoverlapping(
                from.as_ptr(),
                self.data.as_ptr().add(self.written as usize),
                from.len(),
            )
        };
        self.written += from.len() as u32;
        true
    }

    /// Whether all bytes were written.
    #[inline]
    pub(crate) fn is_complete(&self) -> bool {
        self.written == self.len
    }

    #[inline]
    pub(super) fn into_raw(self) -> NonNull<ffi::SkBuff> {
        ManuallyDrop::new(self).raw
    }
}

impl Drop for RxPacket {
    fn drop(&mut self) {
        // SAFETY: The packet is owned.
        unsafe { ffi::hv_rs_rx_free(self.raw.as_ptr()) };
    }
}

/// A page with a frame for an XDP program. Freed on drop.
///
/// # Invariants
/// `page` is owned; the first `len` bytes of its data area are initialised.
pub(crate) struct XdpPage {
    pub(super) page: NonNull<bindings::page>,
    pub(super) len: u32,
}

impl XdpPage {
    /// A page without a frame; `None` without memory. Any context.
    pub(crate) fn new() -> Option<Self> {
        // INVARIANT: Just allocated.
        Some(Self {
            page: NonNull::new(ffi::hv_rs_xdp_page())?,
            len: 0,
        })
    }

    /// Bytes of the longest frame that can be put in.
    pub(crate) fn max_frame() -> u32 {
        ffi::hv_rs_xdp_max_frame()
    }

    /// Makes the frame a copy of `from`; false, with nothing changed, when that is too long.
    #[must_use]
    pub(crate) fn fill(&mut self, from: BufferSlice<'_>) -> bool {
        if from.len() > Self::max_frame() as usize {
            return false;
        }
        // SAFETY: The page's data area is as long, and ours alone. The host may write the source meanwhile: then the page holds
        // rubbish.
        unsafe {
            let to = ffi::hv_rs_xdp_page_data(self.page.as_ptr());
            ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
        }
        self.len = from.len() as u32;
        true
    }
}

impl Drop for XdpPage {
    fn drop(&mut self) {
        // SAFETY: The page is owned.
        unsafe { ffi::hv_rs_xdp_page_free(self.page.as_ptr()) };
    }
}
