// SPDX-License-Identifier: GPL-2.0

//! A SCSI command in the hands of a host driver.

use core::{mem::ManuallyDrop, ptr::NonNull};
use kernel::{bindings, ffi::c_int};

use super::scsi_ffi::{
    hv_rs_scsi_done,
    hv_rs_scsi_sense_buffer,
    RawCommand, //
};

/// Bytes of the longest command that a host of this layer takes.
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
/// The private area of a started command whose data, if any, are mapped for DMA; it belongs to the holder alone.
#[repr(transparent)]
pub(crate) struct Command(NonNull<RawCommand>);

// SAFETY: A command may be completed from any thread and context.
unsafe impl Send for Command {}

impl Command {
    /// # Safety
    /// See the type's invariant: the command is handed to the result.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<RawCommand>) -> Self {
        // INVARIANT: By the requirement.
        Self(raw)
    }

    /// Gives up ownership.
    #[inline]
    pub(super) fn into_raw(self) -> NonNull<RawCommand> {
        ManuallyDrop::new(self).0
    }

    #[inline]
    pub(super) fn raw(&self) -> &RawCommand {
        // SAFETY: Valid by the type's invariant, and not written while the command exists.
        unsafe { self.0.as_ref() }
    }

    /// Bytes of the command descriptor block.
    #[inline]
    pub(crate) fn cdb_len(&self) -> u8 {
        self.raw().cdb_len
    }

    /// The command descriptor block, with the zeroes that SCSI puts behind it, or cut to as many bytes.
    #[inline]
    pub(crate) fn cdb(&self) -> &[u8; MAX_CDB] {
        // SAFETY: Points to the command's `cmnd`, which has 32 bytes (asserted in the shim) and does not change before it is over.
        unsafe { &*self.raw().cdb.cast() }
    }

    /// First byte of the command descriptor block.
    #[inline]
    pub(crate) fn opcode(&self) -> u8 {
        // SAFETY: As in `cdb`.
        unsafe { self.raw().cdb.read() }
    }

    /// Bytes of data.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.raw().length
    }

    /// Which way the data go. `None` when SCSI asks for something that hosts of this layer do not do.
    #[inline]
    pub(crate) fn direction(&self) -> Option<Direction> {
        // `enum dma_data_direction`; the values are asserted in the shim.
        match self.raw().direction {
            1 => Some(Direction::ToDevice),
            2 => Some(Direction::FromDevice),
            3 => Some(Direction::None),
            _ => None,
        }
    }

    /// Whether the device queues commands.
    #[inline]
    pub(crate) fn tagged(&self) -> bool {
        self.raw().tagged != 0
    }

    /// Where the command goes: channel (bus), target, logical unit.
    #[inline]
    pub(crate) fn address(&self) -> Address {
        let [_, channel, target, lun] = self.raw().address.to_le_bytes();
        Address {
            channel: channel.into(),
            target: target.into(),
            lun: lun.into(),
        }
    }

    /// The CPU on which SCSI has queued the command.
    #[inline]
    pub(crate) fn cpu(&self) -> u32 {
        self.raw().cpu
    }

    /// Number of the command among those of its queue that can be in flight.
    #[inline]
    pub(crate) fn tag(&self) -> u16 {
        self.raw().tag
    }

    /// Offset of the first byte of the data in its page.
    #[inline]
    pub(crate) fn page_offset(&self) -> u32 {
        let raw = self.raw();
        if raw.sg_count == 0 {
            return 0;
        }
        // SAFETY: There is a first entry.
        (unsafe { (*raw.sg).dma_address } as u32) & 4095
    }

    /// Bus page frame numbers, of 4 KiB, of the data, in order.
    #[inline]
    pub(crate) fn pfns(&self) -> Pfns<'_> {
        let raw = self.raw();
        Pfns {
            next: 0,
            end: 0,
            sg: raw.sg,
            left: raw.sg_count,
            _command: core::marker::PhantomData,
        }
    }

    /// Ends the command. `status`: what the device says, counts with [`HostByte::Ok`]; `residual`: bytes that were to be
    /// transferred and were not. Any context.
    #[inline]
    pub(crate) fn complete(self, host: HostByte, status: u8, residual: u32) {
        let result = c_int::from(host as u8) << 16 | c_int::from(status);
        // SAFETY: By the type's invariant, and the command is not used after this.
        unsafe { hv_rs_scsi_done(self.into_raw().as_ptr(), result, residual) };
    }

    /// Gives the command sense data, to be looked at after it has ended. What does not fit is cut.
    pub(crate) fn set_sense(&mut self, sense: &[u8]) {
        let len = sense.len().min(SENSE_BUFFER);
        // SAFETY: By the type's invariant; the buffer has that many bytes, and is nobody else's before the command is over.
        unsafe {
            core::ptr::copy_nonoverlapping(
                sense.as_ptr(),
                hv_rs_scsi_sense_buffer(self.0.as_ptr()),
                len,
            )
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
        let residual = self.raw().length;
        // SAFETY: By the type's invariant; the command is not used after this.
        unsafe {
            hv_rs_scsi_done(
                self.0.as_ptr(),
                c_int::from(HostByte::Error as u8) << 16,
                residual,
            )
        };
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
    next: u64,
    end: u64,
    // INVARIANT: When `left` is not 0, an entry of the list of a command that lives during `'a`, of which there are `left`
    // from here on.
    sg: *mut bindings::scatterlist,
    left: u32,
    _command: core::marker::PhantomData<&'a Command>,
}

impl Iterator for Pfns<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        while self.next == self.end {
            if self.left == 0 {
                return None;
            }
            // SAFETY: By the field's invariant.
            let (address, len) = unsafe { ((*self.sg).dma_address, dma_len(self.sg)) };
            self.left -= 1;
            if self.left != 0 {
                // SAFETY: By the field's invariant, and there is a further entry.
                self.sg = unsafe { bindings::sg_next(self.sg) };
            }
            self.next = address >> 12;
            // An address plus a length of memory that is mapped does not wrap.
            self.end = address.wrapping_add(u64::from(len)).wrapping_add(4095) >> 12;
        }
        let pfn = self.next;
        self.next = pfn.wrapping_add(1);
        Some(pfn)
    }

    // The same in fewer instructions, for who wants all.
    #[inline]
    fn fold<B, F: FnMut(B, u64) -> B>(self, init: B, mut f: F) -> B {
        let mut all = init;
        for pfn in self.next..self.end {
            all = f(all, pfn);
        }
        let mut sg = self.sg;
        for after in (0..self.left).rev() {
            // SAFETY: By the field's invariant.
            let (address, len) = unsafe { ((*sg).dma_address, dma_len(sg)) };
            if after != 0 {
                // SAFETY: By the field's invariant, and there is a further entry.
                sg = unsafe { bindings::sg_next(sg) };
            }
            // An address plus a length of memory that is mapped does not wrap.
            let end = address.wrapping_add(u64::from(len)).wrapping_add(4095) >> 12;
            for pfn in address >> 12..end {
                all = f(all, pfn);
            }
        }
        all
    }
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
