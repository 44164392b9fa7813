// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! How packets from the host are judged.

use super::*;
use crate::storvsc::completion::{
    classify, judge, opcode, succeeded, Incoming, IncomingError, Outcome, Sent,
};
use crate::storvsc::srb::{ScsiRequest, ScsiStatus, SrbCode, SrbStatus};
use crate::storvsc::wire::{Operation, ScsiPacket};
use proptest::prelude::*;

const READ: Sent = Sent {
    opcode: 0x28,
    transfer_len: 4096,
    fibre_channel: false,
};

/// Fixed-format sense data.
fn sense(key: u8, asc: u8, ascq: u8) -> [u8; 18] {
    let mut sense = [0; 18];
    (sense[0], sense[2], sense[7], sense[12], sense[13]) = (0x70, key, 10, asc, ascq);
    sense
}

fn completion(code: SrbCode, status: ScsiStatus, transferred: u32, sense: &[u8]) -> ScsiPacket {
    ScsiPacket::complete(ScsiRequest::result(code, status, transferred, sense))
}

fn outcome(sent: &Sent, packet: &ScsiPacket) -> Outcome {
    judge(sent, packet).outcome
}

#[test]
fn success_and_underrun() {
    let verdict = judge(
        &READ,
        &completion(SrbCode::SUCCESS, ScsiStatus::GOOD, 4096, &[]),
    );
    assert_eq!(verdict.outcome, Outcome::Status);
    assert_eq!((verdict.transferred, verdict.residual), (4096, 0));
    assert!(verdict.sense().is_empty());
    let verdict = judge(
        &READ,
        &completion(SrbCode::SUCCESS, ScsiStatus::GOOD, 512, &[]),
    );
    assert_eq!((verdict.transferred, verdict.residual), (512, 3584));
}

#[test]
fn only_plain_success_takes_the_short_way() {
    let head = |packet: &ScsiPacket| {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(packet.bytes().chunks(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        succeeded(&words)
    };
    let good = completion(SrbCode::SUCCESS, ScsiStatus::GOOD, 4095, &[]);
    assert_eq!(head(&good), Some(4095));
    let mut packet = good;
    packet.header.operation = Operation::ENUMERATE_BUS;
    assert_eq!(head(&packet), None);
    let mut packet = good;
    packet.request.srb_status = packet.request.srb_status.with_autosense();
    assert_eq!(head(&packet), None);
    for (code, status) in [
        (SrbCode::ERROR, ScsiStatus::GOOD),
        (SrbCode::PENDING, ScsiStatus::GOOD),
        (SrbCode::SUCCESS, ScsiStatus::BUSY),
    ] {
        assert_eq!(head(&completion(code, status, 0, &[])), None);
    }
}

#[test]
fn flags_do_not_spoil_a_success() {
    for flags in [SrbStatus::QUEUE_FROZEN, SrbStatus::AUTOSENSE_VALID, 0xc0] {
        let mut packet = completion(SrbCode::SUCCESS, ScsiStatus::GOOD, 4096, &[]);
        packet.request.srb_status.0 |= flags;
        let verdict = judge(&READ, &packet);
        assert_eq!(verdict.outcome, Outcome::Status);
        assert_eq!((verdict.residual, verdict.sense_len), (0, 0));
    }
}

#[test]
fn sense_data_reach_the_caller() {
    let bytes = sense(3, 0x11, 0);
    let packet = completion(SrbCode::ERROR, ScsiStatus::CHECK_CONDITION, 4096, &bytes);
    let verdict = judge(&READ, &packet);
    assert_eq!(verdict.outcome, Outcome::Status);
    assert_eq!(verdict.scsi_status, ScsiStatus::CHECK_CONDITION);
    assert_eq!(verdict.sense(), bytes);
    assert_eq!((verdict.transferred, verdict.residual), (0, 4096));
    // Without the flag the bytes are no sense data, and nothing explains the failure.
    let mut packet = packet;
    packet.request.srb_status = SrbStatus::new(SrbCode::ERROR);
    let verdict = judge(&READ, &packet);
    assert_eq!(verdict.outcome, Outcome::Error);
    assert!(verdict.sense().is_empty());
}

#[test]
fn sense_codes_that_ask_for_a_look() {
    let check = |asc, ascq| {
        let bytes = sense(6, asc, ascq);
        let fixed = outcome(
            &READ,
            &completion(SrbCode::ERROR, ScsiStatus::CHECK_CONDITION, 0, &bytes),
        );
        let descriptor = [0x72, 6, asc, ascq, 0, 0, 0, 0];
        let packet = completion(SrbCode::ERROR, ScsiStatus::CHECK_CONDITION, 0, &descriptor);
        assert_eq!(outcome(&READ, &packet), fixed);
        fixed
    };
    assert_eq!(check(0x2a, 0x09), Outcome::CapacityChanged);
    assert_eq!(check(0x2a, 0x01), Outcome::Status);
    assert_eq!(check(0x3f, 0x01), Outcome::ParametersChanged);
    assert_eq!(check(0x3f, 0x03), Outcome::Status);
    assert_eq!(check(0x3f, 0x0e), Outcome::Status);
    assert_eq!(check(0x29, 0x00), Outcome::Status);
}

#[test]
fn srb_codes() {
    let cases = [
        (SrbCode::PENDING, Outcome::Error),
        (SrbCode::ABORTED, Outcome::Error),
        (SrbCode::ERROR, Outcome::Error),
        (SrbCode::BUSY, Outcome::Busy),
        (SrbCode::INVALID_REQUEST, Outcome::Error),
        (SrbCode::INVALID_PATH_ID, Outcome::NoDevice),
        (SrbCode::NO_DEVICE, Outcome::NoDevice),
        (SrbCode::TIMEOUT, Outcome::Error),
        (SrbCode::SELECTION_TIMEOUT, Outcome::Error),
        (SrbCode::BUS_RESET, Outcome::Error),
        (SrbCode::DATA_OVERRUN, Outcome::Error),
        (SrbCode::INVALID_LUN, Outcome::NoLun),
        (SrbCode::INVALID_TARGET_ID, Outcome::NoDevice),
        (SrbCode::INTERNAL_ERROR, Outcome::Error),
        (SrbCode(0x3f), Outcome::Error),
    ];
    for (code, expected) in cases {
        let packet = completion(code, ScsiStatus::GOOD, 4096, &[]);
        let verdict = judge(&READ, &packet);
        assert_eq!(verdict.outcome, expected, "{code:?}");
        let transferred = if code == SrbCode::DATA_OVERRUN {
            4096
        } else {
            0
        };
        assert_eq!(verdict.transferred, transferred, "{code:?}");
        assert_eq!(packet.header.status, code.nt_status());
    }
}

#[test]
fn device_status_without_sense() {
    for status in [
        ScsiStatus::BUSY,
        ScsiStatus::RESERVATION_CONFLICT,
        ScsiStatus::TASK_SET_FULL,
    ] {
        for code in [SrbCode::SUCCESS, SrbCode::ERROR] {
            let verdict = judge(&READ, &completion(code, status, 0, &[]));
            assert_eq!(verdict.outcome, Outcome::Status);
            assert_eq!(verdict.scsi_status, status);
        }
    }
}

#[test]
fn special_commands() {
    let with = |opcode, fibre_channel| Sent {
        opcode,
        fibre_channel,
        ..READ
    };
    let error = completion(SrbCode::ERROR, ScsiStatus::GOOD, 36, &[]);
    for op in [opcode::ATA_12, opcode::ATA_16] {
        assert_eq!(outcome(&with(op, false), &error), Outcome::PassThrough);
    }
    let ready = with(opcode::TEST_UNIT_READY, false);
    assert_eq!(outcome(&ready, &error), Outcome::Status);
    for (op, fc) in [
        (opcode::INQUIRY, false),
        (opcode::MODE_SENSE, false),
        (opcode::MODE_SENSE_10, false),
        (opcode::MAINTENANCE_IN, true),
        (opcode::PERSISTENT_RESERVE_IN, true),
    ] {
        let verdict = judge(&with(op, fc), &error);
        assert_eq!(verdict.outcome, Outcome::Status);
        assert_eq!(verdict.scsi_status, ScsiStatus::GOOD);
        assert_eq!(verdict.transferred, 36);
        let gone = completion(SrbCode::INVALID_LUN, ScsiStatus::GOOD, 0, &[]);
        assert_eq!(outcome(&with(op, fc), &gone), Outcome::NoLun);
    }
    for op in [opcode::MAINTENANCE_IN, opcode::PERSISTENT_RESERVE_IN] {
        assert_eq!(outcome(&with(op, false), &error), Outcome::Error);
    }
}

#[test]
fn attack_lengths_beyond_the_request() {
    let mut packet = completion(SrbCode::SUCCESS, ScsiStatus::GOOD, u32::MAX, &[]);
    let verdict = judge(&READ, &packet);
    assert_eq!((verdict.transferred, verdict.residual), (4096, 0));
    packet = completion(
        SrbCode::ERROR,
        ScsiStatus::CHECK_CONDITION,
        0,
        &sense(5, 0x24, 0),
    );
    packet.request.sense_info_length = 255;
    assert_eq!(judge(&READ, &packet).sense().len(), 20);
    packet.request.sense_info_length = 0;
    assert_eq!(outcome(&READ, &packet), Outcome::Error);
    packet.request.sense_info_length = 3;
    assert_eq!(judge(&READ, &packet).sense().len(), 3);
}

#[test]
fn attack_answer_that_is_none() {
    let mut packet = completion(SrbCode::SUCCESS, ScsiStatus::GOOD, 4096, &[]);
    for operation in [
        Operation(0),
        Operation::ENUMERATE_BUS,
        Operation::EXECUTE_SRB,
    ] {
        packet.header.operation = operation;
        let verdict = judge(&READ, &packet);
        assert_eq!(verdict.outcome, Outcome::Broken(operation));
        assert_eq!((verdict.transferred, verdict.residual), (0, 4096));
    }
}

#[test]
fn packets_are_told_apart_by_id() {
    let notice = |operation| VstorPacket::notice(operation);
    for (operation, meant) in [
        (Operation::ENUMERATE_BUS, Incoming::Rescan),
        (Operation::REMOVE_DEVICE, Incoming::Removed),
    ] {
        assert_eq!(classify(0, notice(operation).bytes()), Ok(meant));
        // Four bytes are enough for a notice.
        assert_eq!(classify(0, &operation.0.to_le_bytes()), Ok(meant));
    }
    assert_eq!(
        classify(0, notice(Operation::EVENT_NOTIFICATION).bytes()),
        Ok(Incoming::Ignored(Operation::EVENT_NOTIFICATION))
    );
    assert_eq!(classify(1, &[0; 64]), Ok(Incoming::Answer));
}

#[test]
fn attack_id_zero_and_short_packets() {
    for operation in [Operation::COMPLETE_IO, Operation::FCHBA_DATA] {
        assert_eq!(
            classify(0, VstorPacket::notice(operation).bytes()),
            Err(IncomingError::AnswerToNothing(operation))
        );
    }
    for len in 0..64 {
        assert_eq!(
            classify(9, &[0; 64][..len]),
            Err(IncomingError::TooShort { len, min: 64 })
        );
    }
    for len in 0..4 {
        assert!(classify(0, &[11; 4][..len]).is_err());
    }
}

proptest! {
    /// Whatever bytes a host sends, lengths stay in bounds, and GOOD without an error comes of success alone.
    #[test]
    fn verdicts_stay_in_bounds(
        bytes in proptest::array::uniform32(any::<u8>()),
        rest in proptest::array::uniform32(any::<u8>()),
        answer: bool, opcode: u8, transfer_len: u32, fibre_channel: bool,
    ) {
        let mut all = bytes.to_vec();
        all.extend_from_slice(&rest);
        if answer {
            all[..4].copy_from_slice(&1u32.to_le_bytes());
        }
        let packet = ScsiPacket::read_from_bytes(&all).unwrap();
        let sent = Sent { opcode, transfer_len, fibre_channel };
        let verdict = judge(&sent, &packet);
        prop_assert!(verdict.transferred <= transfer_len);
        prop_assert_eq!(verdict.transferred + verdict.residual, transfer_len);
        prop_assert!(verdict.sense().len() <= 20);
        prop_assert_eq!(verdict.sense().len(), usize::from(verdict.sense_len));
        // The short way judges likewise, and only what needs no more judging.
        let words: Vec<u64> = all[..32]
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        if let Some(transferred) = succeeded(words.first_chunk().unwrap()) {
            prop_assert_eq!(verdict.outcome, Outcome::Status);
            prop_assert_eq!(verdict.scsi_status, ScsiStatus::GOOD);
            prop_assert_eq!(transferred.min(transfer_len), verdict.transferred);
        }
        let forgiven = matches!(opcode, 0x00 | 0x12 | 0x1a | 0x5a) || fibre_channel;
        if verdict.outcome == Outcome::Status && verdict.scsi_status == ScsiStatus::GOOD && !forgiven {
            prop_assert_eq!(packet.request.srb_status.code(), SrbCode::SUCCESS);
            prop_assert_eq!(packet.header.operation, Operation::COMPLETE_IO);
        }
    }
}
