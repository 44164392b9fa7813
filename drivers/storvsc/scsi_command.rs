// SPDX-License-Identifier: GPL-2.0

//! A SCSI command in the hands of a host driver.

use core::{
    mem::ManuallyDrop,
    ops::Range,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};
use kernel::{bindings, ffi::c_int};

use super::scsi_ffi::{
    layout,
    scsi_dma_unmap,
    scsi_done,
    ScsiCommand, //
};

/// Bytes of the longest command that hosts know.
pub(crate) const MAX_CDB: usize = 16;

/// Size of a command's sense buffer (`SCSI_SENSE_BUFFERSIZE`).
const SENSE_BUFFER: usize = 96;

/// What the host adapter, not the device, says about a command's end (`DID_*` of `scsi_status.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum HostByte {
    /// The device's status tells.
    Ok = 0x00,
    /// There is no such device any more.
    NoConnect = 0x01,
    /// Could not be sent; tried again, a limited number of times.
    BusBusy = 0x02,
    /// Not for this host.
    Abort = 0x05,
    /// Failed.
    Error = 0x07,
    /// Ended by a reset.
    Reset = 0x08,
    /// A command passed through failed; whoever sent it looks into it.
    PassThrough = 0x0a,
    /// To be sent once more, as if it had never been.
    Requeue = 0x0d,
}

/// Which way the data of a command go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToDevice,
    FromDevice,
    None,
}

/// A command that SCSI has handed to the driver. It is completed once, or given back: dropping it completes it
/// with [`HostByte::Error`].
///
/// # Invariants
///
/// `raw` is a started command, whose data, if any, are mapped for DMA; it belongs to the holder alone. If it has not been sent, its
/// scatter list has `segments` entries that are mapped.
pub(crate) struct Command {
    raw: NonNull<ScsiCommand>,
    segments: u32,
}

// SAFETY: A command may be completed from any thread and context.
unsafe impl Send for Command {}

impl Command {
    /// # Safety
    /// See the type's invariant: the command is handed to the result.
    #[inline]
    pub(super) unsafe fn new(raw: NonNull<ScsiCommand>, segments: u32) -> Self {
        // INVARIANT: By the requirement.
        Self { raw, segments }
    }

    /// A command that has been sent.
    ///
    /// # Safety
    /// See the type's invariant: the command is handed to the result.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<ScsiCommand>) -> Self {
        // INVARIANT: By the requirement.
        Self { raw, segments: 0 }
    }

    /// Gives up ownership.
    #[inline]
    pub(super) fn into_raw(self) -> NonNull<ScsiCommand> {
        ManuallyDrop::new(self).raw
    }

    /// # Safety
    /// At `offset` the structure has a `T`, which does not change while the driver has the command.
    #[inline(always)]
    unsafe fn get<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: By the requirement; the command is valid by the type's invariant.
        unsafe { self.raw.as_ptr().byte_add(offset).cast::<T>().read() }
    }

    /// As [`get`](Self::get), from the command's request, which lies before it.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn get_of_request<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: By the requirement; each command is part of a request.
        unsafe {
            let request = self.raw.as_ptr().byte_sub(layout::REQUEST_SIZE);
            request.byte_add(offset).cast::<T>().read()
        }
    }

    /// Bytes of the command descriptor block, at most 32.
    #[inline]
    pub(crate) fn cdb_len(&self) -> u8 {
        // SAFETY: A member.
        unsafe { self.get::<u16>(layout::COMMAND_CDB_LEN) as u8 }
    }

    /// The command descriptor block, its first [`MAX_CDB`] bytes, with the zeroes that SCSI puts behind it.
    #[inline]
    pub(crate) fn cdb(&self) -> [u32; MAX_CDB / 4] {
        // SAFETY: A member has this size and alignment, or more, and does not change before the command is over.
        unsafe { self.get(layout::COMMAND_CDB) }
    }

    /// First byte of the command descriptor block.
    #[inline]
    pub(crate) fn opcode(&self) -> u8 {
        // SAFETY: As in `cdb`.
        unsafe { self.get(layout::COMMAND_CDB) }
    }

    /// Bytes of data.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        // SAFETY: A member.
        unsafe { self.get(layout::COMMAND_LENGTH) }
    }

    /// Which way the data go; `None` also when SCSI asks for something that hosts of this layer do not do.
    #[inline]
    pub(crate) fn direction(&self) -> Direction {
        // `enum dma_data_direction`; the values are asserted in `scsi_layout.c`.
        // SAFETY: A member.
        match unsafe { self.get::<u32>(layout::COMMAND_DIRECTION) } {
            1 => Direction::ToDevice,
            2 => Direction::FromDevice,
            _ => Direction::None,
        }
    }

    /// What the shim has noted of the device.
    #[inline]
    fn device(&self) -> u64 {
        // SAFETY: Members; the device stays while it has commands.
        unsafe {
            let device: *const u8 = self.get(layout::COMMAND_DEVICE);
            device.add(layout::DEVICE_HOSTDATA).cast::<u64>().read()
        }
    }

    /// Whether the device is one that SCSI has: not one that it only looks for, nor one that it is removing.
    pub(crate) fn device_stays(&self) -> bool {
        // SDEV_CREATED, SDEV_CANCEL, SDEV_DEL and SDEV_CREATED_BLOCK; asserted in `scsi_layout.c`.
        const COMING_OR_GOING: [u32; 4] = [1, 3, 4, 9];
        // SAFETY: Members; the device stays while it has commands. The state changes meanwhile, as a whole.
        let state = unsafe {
            let device: *const u8 = self.get(layout::COMMAND_DEVICE);
            device
                .add(layout::DEVICE_STATE)
                .cast::<u32>()
                .read_volatile()
        };
        !COMING_OR_GOING.contains(&state)
    }

    /// Whether the device queues commands.
    #[inline]
    pub(crate) fn tagged(&self) -> bool {
        self.device() >> 32 != 0
    }

    /// Low byte of the host's number, channel (bus), target, logical unit.
    #[inline]
    pub(crate) fn address_bytes(&self) -> [u8; 4] {
        (self.device() as u32).to_le_bytes()
    }

    /// Where the command goes: channel (bus), target, logical unit.
    #[inline]
    pub(crate) fn address(&self) -> Address {
        let [_, channel, target, lun] = self.address_bytes();
        Address {
            channel: channel.into(),
            target: target.into(),
            lun: lun.into(),
        }
    }

    /// Whether the command may wait for a later one of the same queue, with which the host hears of both. SCSI says then that more
    /// commands come, and sends one of them to the driver, or calls [`HostDriver::commit`](super::HostDriver::commit).
    ///
    /// Not so with those that are passed through: of the commands that follow, SCSI itself ends those for a device that is being removed
    /// (`scsi_dispatch_cmd`, SDEV_DEL), and tells the driver nothing. When that comes, no others are in flight any more: the disk's driver
    /// has been unbound, which waits for them.
    #[inline]
    pub(crate) fn may_wait(&self) -> bool {
        const LAST: u32 = 1 << 2;
        // Operations to the device, in and out, in the byte that tells the operation.
        const PASS_THROUGH: [u8; 2] = [34, 35];
        // SAFETY: Members; asserted in `scsi_layout.c`.
        unsafe {
            self.get::<u32>(layout::COMMAND_FLAGS) & LAST == 0
                && !PASS_THROUGH
                    .contains(&(self.get_of_request::<u32>(layout::REQUEST_FLAGS) as u8))
        }
    }

    /// Number of the hardware queue.
    #[inline]
    pub(crate) fn queue(&self) -> u32 {
        // SAFETY: Members; a started request has a queue, which stays while it has requests.
        unsafe {
            let queue: *const u8 = self.get_of_request(layout::REQUEST_QUEUE);
            queue.add(layout::QUEUE_NUMBER).cast::<u32>().read()
        }
    }

    /// Number of the command among those of its queue that can be in flight.
    #[inline]
    pub(crate) fn tag(&self) -> u32 {
        // SAFETY: A member.
        unsafe { self.get_of_request(layout::REQUEST_TAG) }
    }

    /// Whether there is anything to transfer.
    #[inline]
    pub(crate) fn has_data(&self) -> bool {
        self.segments != 0
    }

    #[inline]
    fn sg(&self) -> *mut bindings::scatterlist {
        // SAFETY: A member.
        unsafe { self.get(layout::COMMAND_SG) }
    }

    /// Offset of the first byte of the data in its page.
    #[inline]
    pub(crate) fn page_offset(&self) -> u32 {
        if self.segments == 0 {
            return 0;
        }
        // SAFETY: There is a first entry.
        (unsafe { (*self.sg()).dma_address } as u32) & 4095
    }

    /// Bus page frame numbers, of 4 KiB, of the data, in order.
    #[inline]
    pub(crate) fn pfns(&self) -> Pfns<'_> {
        Pfns {
            pages: 0..0,
            sg: self.sg(),
            left: self.segments,
            _command: core::marker::PhantomData,
        }
    }

    /// Stores what [`pfns`](Self::pfns) yields, in little endian. False when that is not as long as `words`.
    #[inline(always)]
    pub(crate) fn store_pfns(&self, words: &[AtomicU64]) -> bool {
        if self.segments == 1 {
            if let [word] = words {
                // SAFETY: There is a first entry.
                let pages = unsafe { pages(self.sg()) };
                word.store(pages.start.to_le(), Ordering::Relaxed);
                return pages.end.wrapping_sub(pages.start) == 1;
            }
        }
        Self::store_all_pfns(self.pfns(), words)
    }

    #[inline(never)]
    fn store_all_pfns(mut pfns: Pfns<'_>, words: &[AtomicU64]) -> bool {
        // By entry, not by page: mostly each page has one of its own, and `Pfns::next` would look at the end of each twice.
        let mut words = words.iter();
        while pfns.enter() {
            for pfn in pfns.pages.clone() {
                let Some(word) = words.next() else {
                    return false;
                };
                word.store(pfn.to_le(), Ordering::Relaxed);
            }
        }
        words.next().is_none()
    }

    /// Ends a command that was handed over.
    ///
    /// # Safety
    /// The command was [given up](Self::into_raw), and is not used after this.
    #[inline]
    unsafe fn end(raw: NonNull<ScsiCommand>, result: c_int, residual: u32) {
        let raw = raw.as_ptr();
        // SAFETY: By the requirement, and the type's invariant; members of these types.
        unsafe {
            scsi_dma_unmap(raw);
            raw.byte_add(layout::COMMAND_RESULT)
                .cast::<c_int>()
                .write(result);
            raw.byte_add(layout::COMMAND_RESIDUAL)
                .cast::<u32>()
                .write(residual);
            scsi_done(raw);
        }
    }

    /// Ends the command. `status`: what the device says, counts with [`HostByte::Ok`]; `residual`: bytes that were to be
    /// transferred and were not. Any context.
    #[inline]
    pub(crate) fn complete(self, host: HostByte, status: u8, residual: u32) {
        let result = c_int::from(host as u8) << 16 | c_int::from(status);
        // SAFETY: Given up here.
        unsafe { Self::end(self.into_raw(), result, residual) };
    }

    /// Gives the command sense data, to be looked at after it has ended. What does not fit is cut.
    pub(crate) fn set_sense(&mut self, sense: &[u8]) {
        let len = sense.len().min(SENSE_BUFFER);
        // SAFETY: A member; the buffer has that many bytes, and is nobody else's before the command is over.
        unsafe {
            let buffer: *mut u8 = self.get(layout::COMMAND_SENSE);
            core::ptr::copy_nonoverlapping(sense.as_ptr(), buffer, len)
        };
    }

    /// Ends the command without a word from the device. Any context.
    pub(crate) fn fail(self, host: HostByte) {
        let residual = self.len();
        self.complete(host, 0, residual);
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        let residual = self.len();
        // SAFETY: Dropped: nobody uses it after this.
        unsafe { Self::end(self.raw, c_int::from(HostByte::Error as u8) << 16, residual) };
    }
}

/// A logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) channel: u32,
    pub(crate) target: u32,
    pub(crate) lun: u64,
}

/// See [`Command::pfns`].
pub(crate) struct Pfns<'a> {
    /// Of the last entry that was looked at.
    pages: Range<u64>,
    // INVARIANT: When `left` is not 0, an entry of the list of a command that lives during `'a`, of which there are `left`
    // from here on.
    sg: *mut bindings::scatterlist,
    left: u32,
    _command: core::marker::PhantomData<&'a Command>,
}

impl Pfns<'_> {
    /// Goes on to the next entry. False when there is none.
    #[inline]
    fn enter(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        // SAFETY: By the field's invariant.
        self.pages = unsafe { pages(self.sg) };
        self.left = self.left.wrapping_sub(1);
        if self.left != 0 {
            // SAFETY: By the field's invariant, and there is a further entry.
            self.sg = unsafe { bindings::sg_next(self.sg) };
        }
        true
    }
}

impl Iterator for Pfns<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        loop {
            if let Some(pfn) = Iterator::next(&mut self.pages) {
                return Some(pfn);
            }
            if !self.enter() {
                return None;
            }
        }
    }
}

/// Page frame numbers of an entry's memory.
///
/// # Safety
/// `sg` is a valid entry that is mapped for DMA.
#[inline]
unsafe fn pages(sg: *const bindings::scatterlist) -> Range<u64> {
    // SAFETY: By the requirement.
    let (address, len) = unsafe { ((*sg).dma_address, dma_len(sg)) };
    // An address plus a length of memory that is mapped does not wrap.
    let end = address.wrapping_add(u64::from(len)).wrapping_add(4095);
    address >> 12..end >> 12
}

/// # Safety
/// `sg` is a valid entry that is mapped for DMA.
#[inline]
unsafe fn dma_len(sg: *const bindings::scatterlist) -> u32 {
    #[cfg(CONFIG_NEED_SG_DMA_LENGTH)]
    // SAFETY: By the requirement.
    let len = unsafe { (*sg).dma_length };
    #[cfg(not(CONFIG_NEED_SG_DMA_LENGTH))]
    // SAFETY: By the requirement.
    let len = unsafe { (*sg).length };
    len
}
