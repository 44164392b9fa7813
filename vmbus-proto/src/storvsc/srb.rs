// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! SCSI requests: the body of EXECUTE_SRB and of its completion, with the SRB (SCSI request block)
//! flags and status of Windows' SCSI port drivers.
//!
//! Source: storvsc_drv.c, `struct vmscsi_request`; OpenVMM `storvsp_protocol` and `scsi_defs`; names of the Windows
//! driver kit's `srb.h`.

use zerocopy_derive::*;

use super::wire::{NtStatus, BODY_SIZE};

/// Bytes of a command descriptor block at most (`STORVSC_MAX_CMD_LEN`). Longer commands cannot be sent.
pub const CDB_SIZE: usize = 16;

/// Bytes of sense data at most (`STORVSC_SENSE_BUFFER_SIZE`).
pub const SENSE_SIZE: usize = 20;

/// Seconds that a guest gives the host for a command (storvsc_drv.c, `storvsc_queuecommand`). Hosts do
/// not end commands by it.
pub const SRB_TIMEOUT_SECS: u32 = 60;

/// [`ScsiRequest::queue_tag`] of a command whose tag the host is to choose (`SP_UNTAGGED`).
pub const SP_UNTAGGED: u8 = 0xff;

/// [`ScsiRequest::queue_action`] of a command that may be reordered (`SRB_SIMPLE_TAG_REQUEST`).
pub const SRB_SIMPLE_TAG_REQUEST: u8 = 0x20;

wire_flags! {
    /// Flags of a SCSI request (storvsc_drv.c, "SRB Flag Bits").
    pub struct SrbFlags(u32) {
        /// `queue_action` holds.
        const QUEUE_ACTION_ENABLE = 0x0000_0002;
        /// Parallel SCSI, no meaning today.
        const DISABLE_DISCONNECT = 0x0000_0004;
        /// Parallel SCSI, no meaning today; Linux sets it always.
        const DISABLE_SYNCH_TRANSFER = 0x0000_0008;
        /// Go past a queue frozen by an error.
        const BYPASS_FROZEN_QUEUE = 0x0000_0010;
        /// No sense data are wanted with an error.
        const DISABLE_AUTOSENSE = 0x0000_0020;
        /// The device sends data.
        const DATA_IN = 0x0000_0040;
        /// The device receives data.
        const DATA_OUT = 0x0000_0080;
        /// An error is not to freeze the queue.
        const NO_QUEUE_FREEZE = 0x0000_0100;
        /// Windows' own.
        const ADAPTER_CACHE_ENABLE = 0x0000_0200;
        /// Windows' own.
        const FREE_SENSE_BUFFER = 0x0000_0400;
        /// Windows' own: part of entering D3.
        const D3_PROCESSING = 0x0000_0800;
        /// Windows' own.
        const IS_ACTIVE = 0x0001_0000;
        /// Windows' own.
        const ALLOCATED_FROM_ZONE = 0x0002_0000;
        /// Windows' own.
        const SGLIST_FROM_POOL = 0x0004_0000;
        /// Go past a locked queue.
        const BYPASS_LOCKED_QUEUE = 0x0008_0000;
        /// Windows' own.
        const NO_KEEP_AWAKE = 0x0010_0000;
        /// Windows' own.
        const PORT_DRIVER_ALLOCSENSE = 0x0020_0000;
        /// Windows' own.
        const PORT_DRIVER_SENSEHASPORT = 0x0040_0000;
        /// Windows' own.
        const DONT_START_NEXT_PACKET = 0x0080_0000;
    }
}

open_enum! {
    /// Result of a SCSI request: the lower six bits of [`SrbStatus`] (OpenVMM `SrbStatus`; Linux tests a
    /// part of them).
    pub struct SrbCode(u8) {
        /// Not yet known. In a completion: the host did not carry out the request.
        PENDING = 0x00,
        /// Done.
        SUCCESS = 0x01,
        /// Aborted.
        ABORTED = 0x02,
        /// Could not be aborted.
        ABORT_FAILED = 0x03,
        /// The device reported an error: see SCSI status and sense data.
        ERROR = 0x04,
        /// The device or the host is busy.
        BUSY = 0x05,
        /// The request is wrong.
        INVALID_REQUEST = 0x06,
        /// No such bus.
        INVALID_PATH_ID = 0x07,
        /// No such device.
        NO_DEVICE = 0x08,
        /// Took too long.
        TIMEOUT = 0x09,
        /// The target does not answer.
        SELECTION_TIMEOUT = 0x0a,
        /// Took too long.
        COMMAND_TIMEOUT = 0x0b,
        /// Parallel SCSI.
        MESSAGE_REJECTED = 0x0d,
        /// Ended by a reset of the bus.
        BUS_RESET = 0x0e,
        /// Parallel SCSI.
        PARITY_ERROR = 0x0f,
        /// Sense data could not be had.
        REQUEST_SENSE_FAILED = 0x10,
        /// No host adapter.
        NO_HBA = 0x11,
        /// Fewer data than the buffer holds, or more: the transfer length tells.
        DATA_OVERRUN = 0x12,
        /// Parallel SCSI.
        UNEXPECTED_BUS_FREE = 0x13,
        /// Parallel SCSI.
        PHASE_SEQUENCE_FAILURE = 0x14,
        /// [`super::ScsiRequest::length`] is wrong.
        BAD_SRB_BLOCK_LENGTH = 0x15,
        /// Flushed from a frozen queue.
        REQUEST_FLUSHED = 0x16,
        /// No such logical unit.
        INVALID_LUN = 0x20,
        /// No such target.
        INVALID_TARGET_ID = 0x21,
        /// Not a function of the adapter.
        BAD_FUNCTION = 0x22,
        /// The adapter is recovering.
        ERROR_RECOVERY = 0x23,
        /// No power.
        NOT_POWERED = 0x24,
        /// No link.
        LINK_DOWN = 0x25,
        /// The host failed.
        INTERNAL_ERROR = 0x30,
    }
}

impl SrbCode {
    /// The status of the vstor packet that goes with the code. Guests do not look at it; OpenVMM
    /// (`convert_srb_status_to_nt_status`) sends the same.
    #[must_use]
    pub const fn nt_status(self) -> NtStatus {
        match self {
            Self::SUCCESS => NtStatus::SUCCESS,
            Self::ABORTED => NtStatus::CANCELLED,
            Self::BUSY => NtStatus::DEVICE_BUSY,
            Self::NO_DEVICE | Self::NO_HBA | Self::INVALID_LUN | Self::INVALID_TARGET_ID => {
                NtStatus::DEVICE_DOES_NOT_EXIST
            }
            Self::TIMEOUT | Self::COMMAND_TIMEOUT => NtStatus::IO_TIMEOUT,
            Self::SELECTION_TIMEOUT => NtStatus::DEVICE_NOT_CONNECTED,
            Self::DATA_OVERRUN => NtStatus::BUFFER_OVERFLOW,
            Self::BAD_SRB_BLOCK_LENGTH | Self::BAD_FUNCTION => NtStatus::INVALID_DEVICE_REQUEST,
            Self::REQUEST_FLUSHED => NtStatus::UNSUCCESSFUL,
            _ => NtStatus::IO_DEVICE_ERROR,
        }
    }
}

/// Result of a SCSI request with its two flags (storvsc_drv.c, "SRB status codes and masks").
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(transparent)]
pub struct SrbStatus(pub u8);

impl SrbStatus {
    /// Sense data are in the request (`SRB_STATUS_AUTOSENSE_VALID`).
    pub const AUTOSENSE_VALID: u8 = 0x80;
    /// The queue stands until released (`SRB_STATUS_QUEUE_FROZEN`). Hyper-V does not freeze queues.
    pub const QUEUE_FROZEN: u8 = 0x40;

    /// A status without flags.
    #[must_use]
    pub const fn new(code: SrbCode) -> Self {
        Self(code.0)
    }

    /// The status with [`Self::AUTOSENSE_VALID`].
    #[must_use]
    pub const fn with_autosense(self) -> Self {
        Self(self.0 | Self::AUTOSENSE_VALID)
    }

    /// The code without the flags.
    #[inline]
    #[must_use]
    pub const fn code(self) -> SrbCode {
        SrbCode(self.0 & !(Self::AUTOSENSE_VALID | Self::QUEUE_FROZEN))
    }

    /// Whether sense data are in the request.
    #[inline]
    #[must_use]
    pub const fn autosense_valid(self) -> bool {
        self.0 & Self::AUTOSENSE_VALID != 0
    }

    /// Whether the queue stands.
    #[must_use]
    pub const fn queue_frozen(self) -> bool {
        self.0 & Self::QUEUE_FROZEN != 0
    }
}

open_enum! {
    /// Which way data go ([`ScsiRequest::data_in`]; storvsc_drv.c, `enum storvsc_request_type`).
    pub struct DataIn(u8) {
        /// From the guest to the device.
        WRITE = 0,
        /// From the device to the guest.
        READ = 1,
        /// There are none.
        UNKNOWN = 2,
    }
}

open_enum! {
    /// SCSI status byte (SAM-5, 5.3.1).
    pub struct ScsiStatus(u8) {
        /// Done.
        GOOD = 0x00,
        /// See the sense data.
        CHECK_CONDITION = 0x02,
        /// Done, and a condition is met.
        CONDITION_MET = 0x04,
        /// Try again.
        BUSY = 0x08,
        /// Another initiator holds a reservation.
        RESERVATION_CONFLICT = 0x18,
        /// The device's queue is full: try again.
        TASK_SET_FULL = 0x28,
        /// An auto contingent allegiance is active.
        ACA_ACTIVE = 0x30,
        /// Aborted by another initiator.
        TASK_ABORTED = 0x40,
    }
}

/// A logical unit.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
)]
#[repr(C)]
pub struct ScsiAddress {
    /// Number of the controller in the guest. Means nothing to the host.
    pub port: u8,
    /// Bus.
    pub path: u8,
    /// Target.
    pub target: u8,
    /// Logical unit.
    pub lun: u8,
}

/// A SCSI request (`struct vmscsi_request`).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct ScsiRequest {
    /// Size of this struct.
    pub length: u16,
    /// Completion: how the request went.
    pub srb_status: SrbStatus,
    /// Completion: SCSI status of the device.
    pub scsi_status: ScsiStatus,
    /// Whom the command is for.
    pub address: ScsiAddress,
    /// Bytes of `payload` that are the command descriptor block.
    pub cdb_length: u8,
    /// Request: room for sense data. Completion: bytes of sense data.
    pub sense_info_length: u8,
    /// Which way data go.
    pub data_in: DataIn,
    /// Zero.
    pub reserved: u8,
    /// Request: bytes to transfer. Completion: bytes transferred.
    pub data_transfer_length: u32,
    /// Request: the command descriptor block. Completion: sense data, which overwrite it.
    pub payload: [u8; SENSE_SIZE],
    /// Zero. This and what follows came with version 5.1.
    pub reserve: u16,
    /// Tag, or [`SP_UNTAGGED`].
    pub queue_tag: u8,
    /// Kind of tag, if [`SrbFlags::QUEUE_ACTION_ENABLE`].
    pub queue_action: u8,
    /// See [`SrbFlags`].
    pub srb_flags: SrbFlags,
    /// Seconds that the guest gives the host.
    pub time_out_value: u32,
    /// Hint for sorting; 0.
    pub queue_sort_key: u32,
}

assert_layout!(
    ScsiRequest,
    size = BODY_SIZE,
    srb_status = 2,
    scsi_status = 3,
    address = 4,
    cdb_length = 8,
    sense_info_length = 9,
    data_in = 10,
    data_transfer_length = 12,
    payload = 16,
    reserve = 36,
    queue_tag = 38,
    queue_action = 39,
    srb_flags = 40,
    time_out_value = 44,
    queue_sort_key = 48
);

/// Which way the data of a command go, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// From device to guest: this many bytes.
    FromDevice(u32),
    /// From guest to device: this many bytes.
    ToDevice(u32),
}

impl Transfer {
    /// Bytes.
    #[inline]
    #[must_use]
    pub const fn len(self) -> u32 {
        match self {
            Self::None => 0,
            Self::FromDevice(len) | Self::ToDevice(len) => len,
        }
    }

    /// Whether there are no data.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl ScsiRequest {
    /// A guest's request to carry out the command `cdb` on `address`, as Linux' driver makes it
    /// (`storvsc_queuecommand`). `tagged`: the device queues commands. `None` when the command is empty or
    /// longer than [`CDB_SIZE`].
    #[inline]
    #[must_use]
    pub fn command(
        address: ScsiAddress,
        cdb: &[u8],
        transfer: Transfer,
        tagged: bool,
    ) -> Option<Self> {
        if cdb.is_empty() || cdb.len() > CDB_SIZE {
            return None;
        }
        let mut payload = [0; SENSE_SIZE];
        payload.get_mut(..cdb.len())?.copy_from_slice(cdb);
        let (data_in, mut srb_flags) = match transfer {
            Transfer::None => (DataIn::UNKNOWN, SrbFlags::DISABLE_SYNCH_TRANSFER),
            Transfer::FromDevice(_) => (
                DataIn::READ,
                SrbFlags::DISABLE_SYNCH_TRANSFER.union(SrbFlags::DATA_IN),
            ),
            Transfer::ToDevice(_) => (
                DataIn::WRITE,
                SrbFlags::DISABLE_SYNCH_TRANSFER.union(SrbFlags::DATA_OUT),
            ),
        };
        let (mut queue_tag, mut queue_action) = (0, 0);
        if tagged {
            srb_flags = srb_flags
                .union(SrbFlags::QUEUE_ACTION_ENABLE)
                .union(SrbFlags::NO_QUEUE_FREEZE);
            queue_tag = SP_UNTAGGED;
            queue_action = SRB_SIMPLE_TAG_REQUEST;
        }
        Some(Self {
            length: BODY_SIZE as u16,
            srb_status: SrbStatus::new(SrbCode::PENDING),
            scsi_status: ScsiStatus::GOOD,
            address,
            cdb_length: cdb.len() as u8,
            sense_info_length: SENSE_SIZE as u8,
            data_in,
            reserved: 0,
            data_transfer_length: transfer.len(),
            payload,
            reserve: 0,
            queue_tag,
            queue_action,
            srb_flags,
            time_out_value: SRB_TIMEOUT_SECS,
            queue_sort_key: 0,
        })
    }

    /// Host: how the request went. `transferred`: bytes of data; `sense`: sense data, cut to [`SENSE_SIZE`],
    /// empty when there are none.
    #[must_use]
    pub fn result(code: SrbCode, scsi_status: ScsiStatus, transferred: u32, sense: &[u8]) -> Self {
        let mut payload = [0; SENSE_SIZE];
        for (to, from) in payload.iter_mut().zip(sense) {
            *to = *from;
        }
        let srb_status = SrbStatus::new(code);
        Self {
            length: BODY_SIZE as u16,
            srb_status: if sense.is_empty() {
                srb_status
            } else {
                srb_status.with_autosense()
            },
            scsi_status,
            sense_info_length: sense.len().min(SENSE_SIZE) as u8,
            data_transfer_length: transferred,
            payload,
            ..Self::default()
        }
    }

    /// The command descriptor block: as many bytes as the sender says, but no more than there can be.
    #[inline]
    #[must_use]
    pub fn cdb(&self) -> &[u8] {
        let len = usize::from(self.cdb_length).min(CDB_SIZE);
        self.payload.get(..len).unwrap_or(&[])
    }

    /// Completion: the sense data, if there are: as many bytes as the host says, but no more than there can
    /// be.
    #[inline]
    #[must_use]
    pub fn sense(&self) -> Option<&[u8]> {
        if !self.srb_status.autosense_valid() {
            return None;
        }
        let len = usize::from(self.sense_info_length).min(SENSE_SIZE);
        self.payload.get(..len)
    }
}
