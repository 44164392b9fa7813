// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The server against guests that break the protocol.

use super::*;
use crate::storvsc::server::{Refusal, State};
use crate::storvsc::srb::{DataIn, ScsiAddress, ScsiRequest, SrbCode, Transfer};
use crate::storvsc::wire::{
    ChannelProperties, FcHbaData, Operation, PropertyFlags, ScsiPacket, SubChannelCount,
    VersionBody, VstorHeader,
};
use proptest::prelude::*;

const READ_10: [u8; 10] = [0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0];

fn lun(lun: u8) -> ScsiAddress {
    ScsiAddress {
        lun,
        ..ScsiAddress::default()
    }
}

fn read_of(len: u32) -> ScsiRequest {
    ScsiRequest::command(lun(1), &READ_10, Transfer::FromDevice(len), true).unwrap()
}

/// The words that describe one range of `len` bytes from the start of page 5.
fn range(len: u32) -> Vec<u64> {
    let pages = u64::from(len).div_ceil(4096);
    let mut words = std::vec![1u64 << 32, u64::from(len)];
    words.extend(5..5 + pages);
    words
}

fn execute(server: &mut Server, index: u16, ranges: &[u64], request: ScsiRequest) -> Verdict {
    let packet_type = if ranges.is_empty() {
        PacketType::DATA_INBAND
    } else {
        PacketType::DATA_USING_GPA_DIRECT
    };
    let bytes = ring_packet(packet_type, 7, ranges, ScsiPacket::execute(request).bytes());
    server.on_packet(index, &Packet::from_bytes(&bytes).unwrap())
}

fn refusal(verdict: Verdict) -> Refusal {
    match verdict {
        Verdict::Refuse(refusal, Some(answer)) => {
            assert_eq!(answer.status(), refusal.status());
            assert_eq!(status(answer.as_bytes()), refusal.status());
            assert_ne!(answer.status(), NtStatus::SUCCESS);
            refusal
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn properties_tell_the_configuration() {
    for (max, flags) in [
        (3, PropertyFlags::MULTI_CHANNEL),
        (0, PropertyFlags::empty()),
    ] {
        let mut server = Server::new(Config {
            max_sub_channels: max,
            ..server_config()
        });
        let version = VersionBody {
            version: StorVersion::V6_0,
            revision: 0,
        };
        let _ = send(
            &mut server,
            0,
            VstorPacket::request(Operation::BEGIN_INITIALIZATION).bytes(),
        );
        let query = VstorPacket::request(Operation::QUERY_PROTOCOL_VERSION).with_body(&version);
        let _ = send(&mut server, 0, query.bytes());
        assert_eq!(server.version(), Some(StorVersion::V6_0));
        let Verdict::Answer(answer) = send(
            &mut server,
            0,
            VstorPacket::request(Operation::QUERY_PROPERTIES).bytes(),
        ) else {
            panic!("not answered");
        };
        let answer = VstorPacket::read_from_bytes(answer.as_bytes()).unwrap();
        let properties: ChannelProperties = answer.body_as();
        assert_eq!(properties.max_sub_channels, max);
        assert_eq!(properties.flags, flags);
        assert_eq!(properties.max_transfer_bytes, 0x4_0000);
    }
}

#[test]
fn answers_have_the_size_of_the_request() {
    // OpenVMM's test of the same: 50 bytes become 56 by the padding of the ring.
    for (len, answered) in [(16, 16), (48, 48), (50, 56), (56, 56), (64, 64), (72, 64)] {
        let mut server = Server::new(server_config());
        let mut bytes = VstorPacket::request(Operation::BEGIN_INITIALIZATION)
            .bytes()
            .to_vec();
        bytes.resize(len, 0);
        let Verdict::Answer(answer) = send(&mut server, 0, &bytes) else {
            panic!("not answered");
        };
        assert_eq!(answer.as_bytes().len(), answered);
    }
}

#[test]
fn attack_wrong_order() {
    let all = [
        Operation::QUERY_PROTOCOL_VERSION,
        Operation::QUERY_PROPERTIES,
        Operation::END_INITIALIZATION,
        Operation::CREATE_SUB_CHANNELS,
        Operation::EXECUTE_SRB,
        Operation::RESET_BUS,
    ];
    for operation in all {
        let mut server = Server::new(server_config());
        let packet = VstorPacket::request(operation);
        assert_eq!(
            refusal(send(&mut server, 0, packet.bytes())),
            Refusal::WrongState {
                operation,
                state: State::Begin
            }
        );
        assert_eq!(server.state(), State::Begin);
    }
    let mut server = ready_server(server_config());
    for operation in [
        Operation::BEGIN_INITIALIZATION,
        Operation::QUERY_PROTOCOL_VERSION,
        Operation::QUERY_PROPERTIES,
        Operation::END_INITIALIZATION,
    ] {
        assert!(matches!(
            refusal(send(
                &mut server,
                0,
                VstorPacket::request(operation).bytes()
            )),
            Refusal::WrongState { .. }
        ));
        assert!(server.is_ready());
    }
}

#[test]
fn attack_versions() {
    let mut server = Server::new(server_config());
    let _ = send(
        &mut server,
        0,
        VstorPacket::request(Operation::BEGIN_INITIALIZATION).bytes(),
    );
    for version in [0, 0x0200, 0x0402, 0x0501, 0x0601, 0x0603, 0xffff] {
        let body = VersionBody {
            version: StorVersion(version),
            revision: 0,
        };
        let packet = VstorPacket::request(Operation::QUERY_PROTOCOL_VERSION).with_body(&body);
        let refusal = refusal(send(&mut server, 0, packet.bytes()));
        assert_eq!(refusal, Refusal::Version(StorVersion(version)));
        assert_eq!(refusal.status(), NtStatus::REVISION_MISMATCH);
        assert!(!refusal.is_violation());
        assert_eq!(server.state(), State::Version);
    }
}

#[test]
fn attack_host_operations_and_rubbish() {
    let mut server = ready_server(server_config());
    for operation in [0, 1, 2, 11, 12, 14, 99, u32::MAX] {
        let operation = Operation(operation);
        assert_eq!(
            refusal(send(
                &mut server,
                0,
                VstorPacket::request(operation).bytes()
            )),
            Refusal::UnknownOperation(operation)
        );
    }
}

#[test]
fn attack_packets_that_cannot_be_answered() {
    let mut server = ready_server(server_config());
    let payload = ScsiPacket::execute(read_of(0));
    let judge = |server: &mut Server, bytes: &[u8]| match server
        .on_packet(0, &Packet::from_bytes(bytes).unwrap())
    {
        Verdict::Refuse(refusal, None) => refusal,
        other => panic!("{other:?}"),
    };
    let inband = |id| ring_packet(PacketType::DATA_INBAND, id, &[], payload.bytes());
    assert_eq!(judge(&mut server, &inband(0)), Refusal::NotTransactional);
    let mut silent = inband(1);
    silent[6] = 0;
    assert_eq!(judge(&mut server, &silent), Refusal::NotTransactional);
    let completion = ring_packet(PacketType::COMPLETION, 1, &[], payload.bytes());
    assert_eq!(judge(&mut server, &completion), Refusal::Completion);
    let odd = ring_packet(PacketType::CANCEL_REQUEST, 1, &[], payload.bytes());
    assert_eq!(judge(&mut server, &odd), Refusal::PacketType);
    let cut = ring_packet(PacketType::DATA_INBAND, 1, &[], &[3, 0, 0, 0]);
    assert!(matches!(
        judge(&mut server, &cut),
        Refusal::TooShort {
            operation: None,
            len: 8
        }
    ));
}

#[test]
fn attack_short_bodies() {
    let mut server = ready_server(server_config());
    for len in [16, 48, 56] {
        let packet = ScsiPacket::execute(read_of(0));
        let bytes = &packet.bytes()[..len];
        assert!(matches!(
            refusal(send(&mut server, 0, bytes)),
            Refusal::TooShort { operation: Some(Operation::EXECUTE_SRB), len: l } if l == len
        ));
    }
    // A header alone (padded to 16 bytes) resets without an address.
    let reset = VstorPacket::request(Operation::RESET_BUS);
    let Verdict::Reset {
        address, pending, ..
    } = send(&mut server, 0, &reset.bytes()[..12])
    else {
        panic!("refused");
    };
    assert_eq!(address, ScsiAddress::default());
    assert_eq!(pending.answer(NtStatus::SUCCESS).as_bytes().len(), 16);
}

#[test]
fn attack_sub_channels() {
    let mut server = ready_server(server_config());
    let create = |count| {
        VstorPacket::request(Operation::CREATE_SUB_CHANNELS).with_body(&SubChannelCount { count })
    };
    for count in [0, 4, u16::MAX] {
        assert_eq!(
            refusal(send(&mut server, 0, create(count).bytes())),
            Refusal::SubChannelCount { count, max: 3 }
        );
    }
    assert!(matches!(
        send(&mut server, 0, create(3).bytes()),
        Verdict::CreateSubChannels { count: 3, .. }
    ));
    // The protocol runs on the primary channel; a sub-channel carries commands.
    for operation in [
        Operation::BEGIN_INITIALIZATION,
        Operation::QUERY_PROTOCOL_VERSION,
        Operation::QUERY_PROPERTIES,
        Operation::END_INITIALIZATION,
        Operation::CREATE_SUB_CHANNELS,
        Operation::FCHBA_DATA,
    ] {
        assert_eq!(
            refusal(send(
                &mut server,
                1,
                VstorPacket::request(operation).bytes()
            )),
            Refusal::NotOnSubChannel(operation)
        );
    }
    assert!(matches!(
        execute(&mut server, 1, &range(4096), read_of(4096)),
        Verdict::Execute {
            transfer: Transfer::FromDevice(4096),
            ..
        }
    ));
}

#[test]
fn sub_channels_before_the_end_are_allowed() {
    let mut server = Server::new(Config {
        fc: Some(FcHbaData::default()),
        ..server_config()
    });
    server = {
        let version = VersionBody {
            version: StorVersion::V6_2,
            revision: 0,
        };
        for packet in [
            VstorPacket::request(Operation::BEGIN_INITIALIZATION),
            VstorPacket::request(Operation::QUERY_PROTOCOL_VERSION).with_body(&version),
            VstorPacket::request(Operation::QUERY_PROPERTIES),
            VstorPacket::request(Operation::FCHBA_DATA),
        ] {
            assert!(matches!(
                send(&mut server, 0, packet.bytes()),
                Verdict::Answer(_)
            ));
        }
        server
    };
    let create = VstorPacket::request(Operation::CREATE_SUB_CHANNELS)
        .with_body(&SubChannelCount { count: 2 });
    assert!(matches!(
        send(&mut server, 0, create.bytes()),
        Verdict::CreateSubChannels { count: 2, .. }
    ));
    let end = VstorPacket::request(Operation::END_INITIALIZATION);
    assert!(matches!(
        send(&mut server, 0, end.bytes()),
        Verdict::Ready(_, StorVersion::V6_2)
    ));
}

#[test]
fn attack_lengths_of_commands() {
    let mut server = ready_server(server_config());
    let good = read_of(4096);
    let with = |change: &dyn Fn(&mut ScsiRequest)| {
        let mut request = good;
        change(&mut request);
        request
    };
    let cases = [
        (
            with(&|r| r.length = 36),
            range(4096),
            Refusal::RequestLength(36),
        ),
        (
            with(&|r| r.cdb_length = 0),
            range(4096),
            Refusal::CdbLength(0),
        ),
        (
            with(&|r| r.cdb_length = 17),
            range(4096),
            Refusal::CdbLength(17),
        ),
        (
            good,
            range(4095),
            Refusal::DataBeyondRange {
                transfer: 4096,
                range: 4095,
            },
        ),
        (
            good,
            Vec::new(),
            Refusal::DataBeyondRange {
                transfer: 4096,
                range: 0,
            },
        ),
        (
            good,
            std::vec![2 << 32, 2048, 5, 2048, 6],
            Refusal::Ranges(2),
        ),
        (
            with(&|r| r.data_transfer_length = 0x4_0001),
            range(0x4_1000),
            Refusal::TransferTooLarge {
                transfer: 0x4_0001,
                max: 0x4_0000,
            },
        ),
        (
            with(&|r| r.data_in = DataIn::UNKNOWN),
            range(4096),
            Refusal::Direction(DataIn::UNKNOWN),
        ),
        (
            with(&|r| r.data_in = DataIn(0xff)),
            range(4096),
            Refusal::Direction(DataIn(0xff)),
        ),
    ];
    for (request, ranges, expected) in cases {
        let verdict = execute(&mut server, 0, &ranges, request);
        let Verdict::Refuse(_, Some(answer)) = verdict else {
            panic!("{verdict:?}");
        };
        // A refused command must not look like a success to a guest that reads the SRB status alone.
        let answer = ScsiPacket::read_from_bytes(answer.as_bytes()).unwrap();
        assert_eq!(answer.request.srb_status.code(), SrbCode::INVALID_REQUEST);
        assert_eq!(refusal(verdict), expected);
    }
    // A range larger than the transfer is fine, and so is a direction without data.
    assert!(matches!(
        execute(&mut server, 0, &range(8192), good),
        Verdict::Execute {
            transfer: Transfer::FromDevice(4096),
            ..
        }
    ));
    assert!(matches!(
        execute(&mut server, 0, &[], with(&|r| r.data_transfer_length = 0)),
        Verdict::Execute {
            transfer: Transfer::None,
            ..
        }
    ));
}

#[test]
fn commands_arrive_as_linux_sends_them() {
    let mut server = ready_server(server_config());
    let verdict = execute(&mut server, 0, &range(4096), read_of(4096));
    let Verdict::Execute { request, .. } = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(request.cdb(), READ_10);
    assert_eq!(request.address.lun, 1);
    // The C driver's bytes for the same command (storvsc_drv.c, storvsc_queuecommand, storvsc_do_io).
    assert_eq!(
        ScsiPacket::execute(request).bytes()[..],
        [
            3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // EXECUTE_SRB, REQUEST_COMPLETION, 0
            52, 0, 0, 0, // length, SRB and SCSI status
            0, 0, 0, 1, // port, path, target, LUN
            10, 20, 1, 0, // CDB and sense length, READ_TYPE
            0, 0x10, 0, 0, // 4096 bytes
            0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // CDB
            0, 0, 0xff, 0x20, // untagged, simple
            0x4a, 1, 0, 0, // QUEUE_ACTION | DISABLE_SYNCH | DATA_IN | NO_QUEUE_FREEZE
            60, 0, 0, 0, 0, 0, 0, 0, // time-out, sort key
        ]
    );
}

proptest! {
    /// The quick way to the bytes of a command gives the same bytes.
    #[test]
    fn words_are_the_packet(
        address in any::<[u8; 4]>(),
        cdb in proptest::collection::vec(any::<u8>(), 0..20),
        direction in 0u8..3,
        len: u32,
        tagged: bool,
    ) {
        let [port, path, target, lun] = address;
        let address = ScsiAddress { port, path, target, lun };
        let transfer = match direction {
            0 => Transfer::None,
            1 => Transfer::FromDevice(len),
            _ => Transfer::ToDevice(len),
        };
        let mut padded = [0u8; 16];
        for (to, from) in padded.iter_mut().zip(&cdb) {
            *to = *from;
        }
        let padded = zerocopy::transmute!(padded);
        let words = ScsiPacket::execute_words(address, padded, cdb.len() as u8, transfer, tagged);
        if let Some(request) = ScsiRequest::command(address, &cdb, transfer, tagged) {
            let packet = ScsiPacket::execute(request);
            prop_assert_eq!(words.as_bytes(), &packet.bytes()[..]);
        } else {
            prop_assert!(cdb.is_empty() || cdb.len() > 16);
        }
    }

    /// No packet upsets the server; what it lets through is within bounds.
    #[test]
    fn survives_any_packet(
        packets in proptest::collection::vec(
            (0u16..2, 0u32..16, 0u8..14, any::<bool>(), 0u32..10000,
             proptest::collection::vec(any::<u8>(), 0..64)),
            0..40),
        start_ready: bool,
    ) {
        let mut server = if start_ready {
            ready_server(server_config())
        } else {
            Server::new(server_config())
        };
        for (index, operation, kind, sane, len, mut body) in packets {
            let mut payload = VstorHeader {
                operation: Operation(operation),
                ..VstorHeader::default()
            }.as_bytes().to_vec();
            if sane && body.len() >= 52 {
                body[..2].copy_from_slice(&52u16.to_le_bytes());
                body[8] = 10;
                body[10] &= 1;
                body[12..16].copy_from_slice(&(len + 100).to_le_bytes());
            }
            payload.extend_from_slice(&body);
            let (packet_type, ranges) = if kind == 9 {
                (PacketType::DATA_USING_GPA_DIRECT, range(len + 1))
            } else {
                (PacketType(kind.into()), Vec::new())
            };
            let bytes = ring_packet(packet_type, 1, &ranges, &payload);
            let Ok(packet) = Packet::from_bytes(&bytes) else { continue };
            let before = server.state();
            match server.on_packet(index, &packet) {
                Verdict::Refuse(refusal, answer) => {
                    prop_assert_eq!(server.state(), before, "{}", refusal);
                    if let Some(answer) = answer {
                        prop_assert!(answer.as_bytes().len() <= 64);
                        prop_assert!(answer.status() != NtStatus::SUCCESS);
                    }
                }
                Verdict::Execute { request, transfer } => {
                    prop_assert!(matches!(before, State::Ready(_)));
                    prop_assert!((1..=16).contains(&request.cdb().len()));
                    prop_assert!(transfer.len() <= 0x4_0000);
                    if !transfer.is_empty() {
                        prop_assert!(kind == 9 && transfer.len() <= len + 1);
                    }
                }
                Verdict::Reset { .. } => prop_assert!(matches!(before, State::Ready(_))),
                Verdict::CreateSubChannels { count, .. } => prop_assert!((1..=3).contains(&count)),
                Verdict::Answer(answer) | Verdict::Ready(answer, _) => {
                    prop_assert_eq!(index, 0);
                    prop_assert_eq!(answer.status(), NtStatus::SUCCESS);
                }
            }
        }
    }
}
