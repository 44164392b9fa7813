// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Backup (VSS, volume shadow copy): the host asks the guest to freeze its file systems, copies the disks, and asks it to thaw them.
//!
//! [`HOT_BACKUP`](Operation::HOT_BACKUP) asks whether the guest can do that, [`FREEZE`](Operation::FREEZE) is answered when all file systems stand
//! still, [`THAW`](Operation::THAW) when they move again. A guest whose THAW never comes thaws by itself.
//!
//! Driver and daemon exchange [`DeviceMessage`]s through `/dev/vmbus/hv_vss`: the daemon writes its registration
//! ([`DeviceMessage::REGISTER`]), reads [`REGISTERED`] (4 bytes), then reads requests and writes each back with a status in it.
//!
//! Sources: Linux `include/uapi/linux/hyperv.h` (`struct hv_vss_msg`), `drivers/hv/hv_snapshot.c`; OpenVMM `hyperv_ic_protocol` for the
//! longer messages.

use super::field::FieldError;
use super::{IcVersion, Status};
use crate::guid::Guid;
use core::mem::size_of;
use zerocopy::little_endian::U32;
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// VSS 5.0 of Windows Server 2012 R2, the first that freezes (Linux: `VSS_VERSION`).
pub const VERSION_5_0: IcVersion = IcVersion::new(5, 0);
/// What we speak.
pub const VERSIONS: &[IcVersion] = &[VERSION_5_0];

open_enum! {
    /// What is asked for (Linux: `enum hv_vss_op`, and the registration numbers of the daemon).
    #[derive(zerocopy_derive::Unaligned)]
    pub struct Operation(u8) {
        /// A snapshot is made of the host's volumes. Nothing for Linux to do.
        CREATE = 0,
        /// A snapshot is gone. Nothing for Linux to do.
        DELETE = 1,
        /// Can the guest be backed up while it runs?
        HOT_BACKUP = 2,
        /// Does the guest have disks that the host cannot copy?
        GET_DM_INFO = 3,
        /// The backup is done.
        BACKUP_COMPLETE = 4,
        /// Freeze the file systems.
        FREEZE = 5,
        /// Thaw them.
        THAW = 6,
        /// Windows: recover the snapshot, which Linux does not need.
        AUTO_RECOVER = 7,
        /// Device only: a daemon registers that wants no answer to that (Linux: `VSS_OP_REGISTER`).
        REGISTER_OLD = 128,
        /// Device only: a daemon registers (Linux: `VSS_OP_REGISTER1`).
        REGISTER = 129,
    }
}

/// Answer to HOT_BACKUP: the guest needs no automatic recovery (Linux: `VSS_HBU_NO_AUTO_RECOVERY`).
pub const NO_AUTO_RECOVERY: u32 = 5;

/// Start of every body (Linux: `struct hv_vss_msg`), and with that all that a guest reads and writes.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct Body {
    /// What is asked for.
    pub operation: Operation,
    /// Zero.
    pub reserved: [u8; 7],
    /// By operation; in the answers to HOT_BACKUP and GET_DM_INFO what was asked for.
    pub flags: U32,
}
assert_layout!(Body, size = 12, operation = 0, flags = 8);

impl Body {
    /// A request of `operation`.
    pub const fn new(operation: Operation) -> Self {
        Self {
            operation,
            reserved: [0; 7],
            flags: U32::new(0),
        }
    }
}

/// A disk of the guest, in FREEZE (OpenVMM: `LunInfo`). Linux freezes all file systems and reads none of these.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Lun {
    /// SCSI or IDE.
    pub bus_type: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Instance of the controller.
    pub controller: [u8; size_of::<Guid>()],
    /// Port.
    pub port: u8,
    /// SCSI target.
    pub target: u8,
    /// SCSI unit.
    pub lun: u8,
    /// Zero.
    pub reserved2: u8,
}
assert_layout!(Lun, size = 24, controller = 4, port = 20, lun = 22);

/// Disks in a FREEZE (OpenVMM: `MAX_VHD_COUNT`).
pub const MAX_LUNS: usize = 260;

/// Body of FREEZE as Hyper-V sends it (OpenVMM: `Message2`; its length is in Linux' header, too).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct FreezeBody {
    /// FREEZE.
    pub operation: Operation,
    /// Zero.
    pub reserved: [u8; 7],
    /// Full, copy, differential…: as in Windows' VSS.
    pub backup_type: U32,
    /// Zero.
    pub flags: U32,
    /// How many of `luns` count.
    pub lun_count: U32,
    /// The disks that are backed up.
    pub luns: [Lun; MAX_LUNS],
}
assert_layout!(
    FreezeBody,
    size = 6260,
    backup_type = 8,
    lun_count = 16,
    luns = 20
);

/// Bytes of the other bodies as Hyper-V sends them (OpenVMM: `VssMessage`).
pub const BODY_SIZE: usize = 39;

/// The longest body that a guest is ready for. AUTO_RECOVER would be longer, and than the ring; it is not sent to Linux.
pub const MAX_BODY: usize = size_of::<FreezeBody>();

/// What a request asks of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// For the daemon: FREEZE, THAW or HOT_BACKUP.
    Daemon(Operation),
    /// Answer: there are no disks that the host cannot copy.
    GetDmInfo,
    /// Nothing to do but to answer.
    Nothing,
}

/// Guest: checks a request.
///
/// # Errors
///
/// [`FieldError::TooShort`], [`FieldError::Operation`].
pub fn parse(body: &[u8]) -> Result<Request, FieldError> {
    let (body, _) = Body::read_from_prefix(body).map_err(|_| FieldError::TooShort {
        need: size_of::<Body>(),
        have: body.len(),
    })?;
    match body.operation {
        Operation::FREEZE | Operation::THAW | Operation::HOT_BACKUP => {
            Ok(Request::Daemon(body.operation))
        }
        Operation::GET_DM_INFO => Ok(Request::GetDmInfo),
        Operation::CREATE | Operation::DELETE | Operation::BACKUP_COMPLETE => Ok(Request::Nothing),
        other => Err(FieldError::Operation(u32::from(other.0))),
    }
}

/// Guest: writes the flags of the answer into the request.
pub fn write_flags(body: &mut [u8], flags: u32) {
    if let Ok((body, _)) = Body::mut_from_prefix(body) {
        body.flags = U32::new(flags);
    }
}

/// Host: the flags in an answer.
///
/// # Errors
///
/// [`FieldError::TooShort`].
pub fn answer_flags(body: &[u8]) -> Result<u32, FieldError> {
    match Body::read_from_prefix(body) {
        Ok((body, _)) => Ok(body.flags.get()),
        Err(_) => Err(FieldError::TooShort {
            need: size_of::<Body>(),
            have: body.len(),
        }),
    }
}

/// The driver's answer to [`DeviceMessage::REGISTER`]: 4 bytes, [`Operation::REGISTER`].
pub const REGISTERED: u32 = Operation::REGISTER.0 as u32;

/// A message of `/dev/vmbus/hv_vss` (Linux: `struct hv_vss_msg`).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct DeviceMessage {
    /// The operation; in an answer, the status.
    head: U32,
    /// Part of the operation's header.
    reserved: U32,
    /// Zero; in the answer to HOT_BACKUP the driver sets its own.
    flags: U32,
}
assert_layout!(DeviceMessage, size = 12, head = 0, flags = 8);

impl DeviceMessage {
    /// Bytes of each message.
    pub const SIZE: usize = size_of::<Self>();

    /// What a daemon writes first.
    pub const REGISTER: Self = Self::request(Operation::REGISTER);

    /// A message that asks for `operation`.
    pub const fn request(operation: Operation) -> Self {
        Self {
            head: U32::from_bytes([operation.0, 0, 0, 0]),
            reserved: U32::new(0),
            flags: U32::new(0),
        }
    }

    /// Daemon: the answer to a request.
    ///
    /// The C driver looks at the lowest byte as if it were still the operation: a status must not end in 0x80 or 0x81, and one that ends
    /// in 2 sets flags that are of no use without success. None in [`Status`] does.
    #[must_use]
    pub const fn answer(mut self, status: Status) -> Self {
        self.head = U32::new(status.get());
        self
    }

    /// The operation, in a request or a registration.
    pub fn operation(&self) -> Operation {
        let [operation, ..] = self.head.get().to_le_bytes();
        Operation(operation)
    }

    /// The status, in an answer.
    pub fn status(&self) -> Status {
        Status::new(self.head.get())
    }
}
