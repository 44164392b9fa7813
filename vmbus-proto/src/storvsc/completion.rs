// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the guest makes of a packet from the host: whose it is, and how a command went.
//!
//! The host is hostile: nothing here trusts a length, and no packet leaves a command undecided. The
//! owner finds the command by the transaction id, which it checks against those in flight, and
//! completes it by the [`Verdict`] whatever that is.

use core::fmt;
use zerocopy::FromBytes;

use super::srb::{ScsiStatus, SrbCode, SENSE_SIZE};
use super::wire::{Operation, ScsiPacket, VSTOR_PACKET_SIZE};

/// SCSI operation codes that change how a completion is judged.
pub mod opcode {
    /// TEST UNIT READY.
    pub const TEST_UNIT_READY: u8 = 0x00;
    /// INQUIRY.
    pub const INQUIRY: u8 = 0x12;
    /// MODE SENSE (6).
    pub const MODE_SENSE: u8 = 0x1a;
    /// MODE SENSE (10).
    pub const MODE_SENSE_10: u8 = 0x5a;
    /// PERSISTENT RESERVE IN.
    pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    /// ATA PASS-THROUGH (16).
    pub const ATA_16: u8 = 0x85;
    /// ATA PASS-THROUGH (12).
    pub const ATA_12: u8 = 0xa1;
    /// MAINTENANCE IN.
    pub const MAINTENANCE_IN: u8 = 0xa3;
}

/// Whose a packet from the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Answer to the request with the packet's transaction id; it has [`VSTOR_PACKET_SIZE`] bytes. The id may
    /// be made up.
    Answer,
    /// Devices came or went: look which (ENUMERATE_BUS).
    Rescan,
    /// Devices went: look which (REMOVE_DEVICE).
    Removed,
    /// A notice of a kind that this driver does not know. No fault: hosts learn new ones.
    Ignored(Operation),
}

/// What is wrong with a packet from the host. Report it, rate-limited, and go on. One variant per cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncomingError {
    /// Too short. With an id that is not 0 it may be meant for a command in flight, which it does not
    /// complete: the host may yet answer, or the channel be rescinded.
    TooShort {
        /// Bytes that came.
        len: usize,
        /// Bytes there must be.
        min: usize,
    },
    /// An answer without an id.
    AnswerToNothing(Operation),
}

impl fmt::Display for IncomingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { len, min } => {
                write!(f, "packet of {len} bytes, {min} are the least")
            }
            Self::AnswerToNothing(operation) => write!(f, "{operation:?} with transaction id 0"),
        }
    }
}

impl core::error::Error for IncomingError {}

/// Tells whose the packet with this id and payload is. The kind of ring packet says nothing: Linux goes
/// by the id alone (storvsc_drv.c, `storvsc_on_channel_callback`).
///
/// # Errors
/// [`IncomingError`].
#[inline]
pub fn classify(transaction_id: u64, payload: &[u8]) -> Result<Incoming, IncomingError> {
    if transaction_id != 0 {
        return if payload.len() >= VSTOR_PACKET_SIZE {
            Ok(Incoming::Answer)
        } else {
            Err(IncomingError::TooShort {
                len: payload.len(),
                min: VSTOR_PACKET_SIZE,
            })
        };
    }
    let (operation, _) =
        Operation::read_from_prefix(payload).map_err(|_| IncomingError::TooShort {
            len: payload.len(),
            min: core::mem::size_of::<Operation>(),
        })?;
    match operation {
        Operation::ENUMERATE_BUS => Ok(Incoming::Rescan),
        Operation::REMOVE_DEVICE => Ok(Incoming::Removed),
        // Names of Fibre Channel adapters are read at initialization alone: Linux refuses them here.
        Operation::COMPLETE_IO | Operation::FCHBA_DATA => {
            Err(IncomingError::AnswerToNothing(operation))
        }
        other => Ok(Incoming::Ignored(other)),
    }
}

/// What the guest has kept of a command that the host is to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// First byte of the command.
    pub opcode: u8,
    /// Bytes to transfer.
    pub transfer_len: u32,
    /// The device is a Fibre Channel adapter.
    pub fibre_channel: bool,
}

/// How a command went, in terms of no SCSI layer. In braces what Linux' C driver sets as host byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The SCSI status and the sense data tell (none). Covers success.
    Status,
    /// The capacity has changed: look at the device again, and repeat the command (`DID_REQUEUE`).
    CapacityChanged,
    /// A parameter of the device has changed, such as the size of a discard: look at the device again, and
    /// repeat the command (`DID_REQUEUE`).
    ParametersChanged,
    /// The logical unit has gone: end the command and remove the device (`DID_NO_CONNECT`).
    NoLun,
    /// There is no such bus, target or adapter: end the command (`DID_NO_CONNECT`; C takes it for the SCSI
    /// status, so mostly for success with no data).
    NoDevice,
    /// The host is busy: repeat the command a limited number of times (`DID_BUS_BUSY`; C takes it for
    /// the SCSI status).
    Busy,
    /// A pass-through command that the host does not know (`DID_PASSTHROUGH`).
    PassThrough,
    /// The host failed (`DID_ERROR`).
    Error,
    /// The host broke the protocol: report it, rate-limited, and end the command (`DID_ERROR`).
    Broken(Operation),
}

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict {
    /// What to do.
    pub outcome: Outcome,
    /// The device's status; [`ScsiStatus::GOOD`] when it gave none.
    pub scsi_status: ScsiStatus,
    /// The SRB status, for the log.
    pub srb_status: super::srb::SrbStatus,
    /// Bytes transferred, at most as many as were to be.
    pub transferred: u32,
    /// Bytes that were to be transferred and were not.
    pub residual: u32,
    /// Bytes of `sense_data` that hold.
    pub sense_len: u8,
    /// Sense data.
    pub sense_data: [u8; SENSE_SIZE],
}

impl Verdict {
    /// The sense data; empty when there are none.
    #[inline]
    #[must_use]
    pub fn sense(&self) -> &[u8] {
        self.sense_data
            .get(..usize::from(self.sense_len))
            .unwrap_or(&[])
    }
}

/// Additional sense code and qualifier of sense data in fixed or descriptor format (SPC-4, 4.5).
fn additional_sense(sense: &[u8]) -> Option<(u8, u8)> {
    match *sense.first()? & 0x7f {
        0x70 | 0x71 => Some((*sense.get(12)?, *sense.get(13)?)),
        0x72 | 0x73 => Some((*sense.get(2)?, *sense.get(3)?)),
        _ => None,
    }
}

/// Commands that hosts are known to fail without reason; their failure is taken for success with what data
/// there are (storvsc_drv.c, `storvsc_host_mishandles_cmd`: INQUIRY page 80h, MODE SENSE page
/// 1Ch; for Fibre Channel what passes through to the device).
const fn host_mishandles(sent: &Sent) -> bool {
    match sent.opcode {
        opcode::INQUIRY | opcode::MODE_SENSE | opcode::MODE_SENSE_10 => true,
        opcode::MAINTENANCE_IN | opcode::PERSISTENT_RESERVE_IN => sent.fibre_channel,
        _ => false,
    }
}

/// Bytes transferred, as the host says, if `head` is the start (32 bytes) of an answer to a command that all went well with:
/// no error, no flags, no sense data. That is how nearly all commands end. `None`: judge the whole answer.
#[inline]
#[must_use]
pub const fn succeeded(head: &[u64; 4]) -> Option<u32> {
    let [first, second, _, fourth] = *head;
    // Of the second word the upper two bytes are the SRB status and the SCSI status.
    const STATUS: u64 = u16::from_le_bytes([SrbCode::SUCCESS.0, ScsiStatus::GOOD.0]) as u64;
    if first as u32 == Operation::COMPLETE_IO.0 && second >> 48 == STATUS {
        Some(fourth as u32)
    } else {
        None
    }
}

/// Judges the answer to the command `sent`. `packet` is a private copy, of the length that [`classify`] has
/// checked.
///
/// Differs from the C driver where that takes a failure for success: a status without meaning there,
/// or an SRB error whose SCSI status is GOOD, is an error here. Flags beside the SRB code of
/// success do not spoil the success, and a missing logical unit is reported for INQUIRY as well.
#[inline]
pub fn judge(sent: &Sent, packet: &ScsiPacket) -> Verdict {
    let request = &packet.request;
    if packet.header.operation == Operation::COMPLETE_IO
        && request.srb_status.0 == SrbCode::SUCCESS.0
        && request.scsi_status == ScsiStatus::GOOD
    {
        // The way that nearly all commands take.
        let transferred = request.data_transfer_length.min(sent.transfer_len);
        return Verdict {
            outcome: Outcome::Status,
            scsi_status: ScsiStatus::GOOD,
            srb_status: request.srb_status,
            transferred,
            residual: sent.transfer_len.wrapping_sub(transferred),
            sense_len: 0,
            sense_data: [0; SENSE_SIZE],
        };
    }
    judge_failure(sent, packet)
}

#[cold]
fn judge_failure(sent: &Sent, packet: &ScsiPacket) -> Verdict {
    let request = &packet.request;
    let srb_status = request.srb_status;
    let mut verdict = Verdict {
        outcome: Outcome::Error,
        scsi_status: request.scsi_status,
        srb_status,
        transferred: 0,
        residual: sent.transfer_len,
        sense_len: 0,
        sense_data: [0; SENSE_SIZE],
    };
    if packet.header.operation != Operation::COMPLETE_IO {
        verdict.outcome = Outcome::Broken(packet.header.operation);
        verdict.scsi_status = ScsiStatus::GOOD;
        return verdict;
    }
    let code = srb_status.code();
    let transferred = request.data_transfer_length.min(sent.transfer_len);

    let absent = match code {
        SrbCode::INVALID_LUN => Some(Outcome::NoLun),
        SrbCode::NO_DEVICE
        | SrbCode::NO_HBA
        | SrbCode::INVALID_PATH_ID
        | SrbCode::INVALID_TARGET_ID => Some(Outcome::NoDevice),
        _ => None,
    };
    if let Some(outcome) = absent {
        verdict.outcome = outcome;
        return verdict;
    }

    if host_mishandles(sent) {
        verdict.outcome = Outcome::Status;
        verdict.scsi_status = ScsiStatus::GOOD;
        verdict.transferred = transferred;
        verdict.residual = sent.transfer_len.wrapping_sub(transferred);
        return verdict;
    }

    // Sense data hold if both the SRB and the SCSI status say so.
    if request.scsi_status == ScsiStatus::CHECK_CONDITION {
        if let Some(sense) = request.sense() {
            for (to, from) in verdict.sense_data.iter_mut().zip(sense) {
                *to = *from;
            }
            verdict.sense_len = sense.len() as u8;
        }
    }
    // Only of these does the transfer length hold.
    if matches!(code, SrbCode::SUCCESS | SrbCode::DATA_OVERRUN) {
        verdict.transferred = transferred;
        verdict.residual = sent.transfer_len.wrapping_sub(transferred);
    }

    verdict.outcome = match code {
        SrbCode::SUCCESS => Outcome::Status,
        SrbCode::BUSY => Outcome::Busy,
        SrbCode::ERROR
        | SrbCode::ABORTED
        | SrbCode::INVALID_REQUEST
        | SrbCode::INTERNAL_ERROR
        | SrbCode::TIMEOUT
        | SrbCode::SELECTION_TIMEOUT
        | SrbCode::BUS_RESET
        | SrbCode::DATA_OVERRUN => failed(sent, &verdict),
        _ => Outcome::Error,
    };
    verdict
}

/// What to do about an SRB code that C calls an error (`storvsc_handle_error`).
fn failed(sent: &Sent, verdict: &Verdict) -> Outcome {
    if verdict.sense_len > 0 {
        return match additional_sense(verdict.sense()) {
            Some((0x2a, 0x09)) => Outcome::CapacityChanged,
            // 3f/03 "inquiry data has changed" and 3f/0e "reported LUNs data has changed" are for the SCSI
            // layer.
            Some((0x3f, qualifier)) if qualifier != 0x03 && qualifier != 0x0e => {
                Outcome::ParametersChanged
            }
            _ => Outcome::Status,
        };
    }
    match sent.opcode {
        opcode::ATA_12 | opcode::ATA_16 => Outcome::PassThrough,
        // Some hosts answer so for devices that are ready; the SCSI status tells.
        opcode::TEST_UNIT_READY => Outcome::Status,
        // A device's status that is not GOOD tells by itself, such as RESERVATION CONFLICT.
        _ if is_device_status(verdict.scsi_status) => Outcome::Status,
        _ => Outcome::Error,
    }
}

/// Whether a SCSI status explains a failure without sense data.
const fn is_device_status(status: ScsiStatus) -> bool {
    matches!(
        status,
        ScsiStatus::BUSY | ScsiStatus::RESERVATION_CONFLICT | ScsiStatus::TASK_SET_FULL
    )
}
