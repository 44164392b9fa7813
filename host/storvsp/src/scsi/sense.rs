// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a command ends with: SCSI status, SRB status, sense data.

use vmbus_proto::storvsc::srb::ScsiStatus;
use vmbus_proto::storvsc::{ScsiRequest, SrbCode};

/// Sense key, additional sense code and its qualifier (SPC-4, 4.5.6 and annex F).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
}

/// Bytes of fixed-format sense data as this target makes it.
pub const SENSE_SIZE: usize = 18;

impl Sense {
    /// Nothing to say.
    pub const NONE: Self = Self::new(0x0, 0x00, 0x00);
    /// Reading the medium failed.
    pub const READ_ERROR: Self = Self::new(0x3, 0x11, 0x00);
    /// Writing the medium failed.
    pub const WRITE_ERROR: Self = Self::new(0x3, 0x0c, 0x00);
    /// The list is shorter than it must be, or than it says.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(0x5, 0x1a, 0x00);
    /// No such command.
    pub const INVALID_OPCODE: Self = Self::new(0x5, 0x20, 0x00);
    /// LBA out of range.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(0x5, 0x21, 0x00);
    /// The command has a field that this target does not take.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(0x5, 0x24, 0x00);
    /// So has the list that came with it.
    pub const INVALID_FIELD_IN_LIST: Self = Self::new(0x5, 0x26, 0x00);
    /// A reservation that is not there cannot be released.
    pub const INVALID_RELEASE: Self = Self::new(0x5, 0x26, 0x04);
    /// Mode pages are not kept.
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(0x5, 0x39, 0x00);
    /// Capacity data has changed.
    pub const CAPACITY_CHANGED: Self = Self::new(0x6, 0x2a, 0x09);
    /// The medium is write-protected.
    pub const WRITE_PROTECTED: Self = Self::new(0x7, 0x27, 0x00);
    /// A thin disk has run out of space.
    pub const NO_SPACE: Self = Self::new(0x7, 0x27, 0x07);
    /// Medium and data differ.
    pub const MISCOMPARE: Self = Self::new(0xe, 0x1d, 0x00);

    /// Sense by its numbers.
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq }
    }

    /// Fixed format, current error (SPC-4, 4.5.3).
    pub const fn fixed(self) -> [u8; SENSE_SIZE] {
        let mut data = [0; SENSE_SIZE];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = (SENSE_SIZE - 8) as u8;
        data[12] = self.asc;
        data[13] = self.ascq;
        data
    }

    /// Descriptor format, current error (SPC-4, 4.5.2).
    pub const fn descriptor(self) -> [u8; 8] {
        [0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0]
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Of the port.
    pub srb_code: SrbCode,
    /// Of the logical unit.
    pub scsi_status: ScsiStatus,
    /// With CHECK CONDITION.
    pub sense: Option<Sense>,
    /// Bytes moved, either way.
    pub transferred: u32,
}

impl Outcome {
    /// Done, with this many bytes moved.
    pub const fn good(transferred: u32) -> Self {
        Self {
            srb_code: SrbCode::SUCCESS,
            scsi_status: ScsiStatus::GOOD,
            sense: None,
            transferred,
        }
    }

    /// Failed. The SRB status is what Hyper-V gives (OpenVMM `scsidisk`, `process_result`): INVALID_REQUEST
    /// for an illegal request, ERROR for the rest.
    pub fn check(sense: Sense) -> Self {
        Self {
            srb_code: if sense.key == 0x5 {
                SrbCode::INVALID_REQUEST
            } else {
                SrbCode::ERROR
            },
            scsi_status: ScsiStatus::CHECK_CONDITION,
            sense: Some(sense),
            transferred: 0,
        }
    }

    /// No such logical unit (OpenVMM `storvsp`, `execute_scsi`).
    pub const fn invalid_lun() -> Self {
        Self {
            srb_code: SrbCode::INVALID_LUN,
            scsi_status: ScsiStatus::CHECK_CONDITION,
            sense: None,
            transferred: 0,
        }
    }

    /// As the completion carries it.
    pub fn to_request(self) -> ScsiRequest {
        let sense = self.sense.map(Sense::fixed);
        let sense = sense.as_ref().map_or(&[][..], |s| &s[..]);
        ScsiRequest::result(self.srb_code, self.scsi_status, self.transferred, sense)
    }

    /// Whether it failed.
    pub fn is_error(&self) -> bool {
        self.srb_code != SrbCode::SUCCESS || self.scsi_status != ScsiStatus::GOOD
    }
}

/// Why a command fails, on the way to its [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With sense data.
    Check(Sense),
    /// Held by a reservation.
    ReservationConflict,
    /// The data buffer is not RAM, or is for the other direction.
    Buffer,
    /// The channel was closed meanwhile; nobody waits for the outcome.
    Closed,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Check(sense) => Self::check(sense),
            Failure::ReservationConflict => Self {
                srb_code: SrbCode::ERROR,
                scsi_status: ScsiStatus::RESERVATION_CONFLICT,
                sense: None,
                transferred: 0,
            },
            Failure::Buffer => Self::check(Sense::INVALID_FIELD_IN_CDB),
            Failure::Closed => Self {
                srb_code: SrbCode::ABORTED,
                scsi_status: ScsiStatus::GOOD,
                sense: None,
                transferred: 0,
            },
        }
    }
}
