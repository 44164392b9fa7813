// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The initialization: client and server in one process, and the client against hosts that lie.

use super::*;
use crate::storvsc::client::{
    Client, Config as ClientConfig, InitError, Negotiated, State, Step, MAX_TRANSFER_BYTES,
};
use crate::storvsc::wire::{
    ChannelProperties, FcHbaData, FcNames, Operation, PropertyFlags, SubChannelCount, VersionBody,
    BODY_SIZE,
};
use proptest::prelude::*;

fn client_config() -> ClientConfig {
    ClientConfig {
        newest: StorVersion::V6_2,
        fibre_channel: false,
        sub_channels: 7,
    }
}

const FC: FcHbaData = FcHbaData {
    primary_active: 1,
    reserved: [0; 3],
    primary_port_wwn: [0x20, 0, 0, 0, 0, 0, 0, 1],
    primary_node_wwn: [0x20, 0, 0, 0, 0, 0, 0, 2],
    secondary_port_wwn: [0x20, 0, 0, 0, 0, 0, 0, 3],
    secondary_node_wwn: [0x20, 0, 0, 0, 0, 0, 0, 4],
};

/// Runs the initialization between the two; the answers pass through `tamper`, which gets the
/// operation asked for. Gives the operations sent and the outcome.
fn connect(
    client: ClientConfig,
    server: Config,
    mut tamper: impl FnMut(Operation, Vec<u8>) -> Vec<u8>,
) -> (Vec<Operation>, Result<Negotiated, InitError>) {
    let mut server = Server::new(server);
    let mut client = Client::new(client);
    let mut packet = client.start();
    let mut sent = Vec::new();
    loop {
        let operation = packet.header.operation;
        sent.push(operation);
        assert!(sent.len() < 10, "no end: {sent:?}");
        let answer = match send(&mut server, 0, packet.bytes()) {
            Verdict::Answer(answer)
            | Verdict::Ready(answer, _)
            | Verdict::Refuse(_, Some(answer)) => answer,
            Verdict::CreateSubChannels { pending, .. } => pending.answer(NtStatus::SUCCESS),
            other => panic!("{other:?}"),
        };
        match client.on_answer(&tamper(operation, answer.as_bytes().to_vec())) {
            Ok(Step::Send(next)) => packet = next,
            Ok(Step::Ready(negotiated)) => {
                assert_eq!(client.state(), State::Ready);
                assert!(server.is_ready());
                assert_eq!(server.version(), Some(negotiated.version));
                return (sent, Ok(negotiated));
            }
            Err(error) => {
                assert_eq!(client.state(), State::Failed);
                return (sent, Err(error));
            }
        }
    }
}

#[test]
fn newest_version_with_sub_channels() {
    let (sent, outcome) = connect(client_config(), server_config(), |_, a| a);
    assert_eq!(
        sent,
        [
            Operation::BEGIN_INITIALIZATION,
            Operation::QUERY_PROTOCOL_VERSION,
            Operation::QUERY_PROPERTIES,
            Operation::END_INITIALIZATION,
            Operation::CREATE_SUB_CHANNELS,
        ]
    );
    assert_eq!(
        outcome,
        Ok(Negotiated {
            version: StorVersion::V6_2,
            max_transfer_bytes: 0x4_0000,
            sub_channels: 3,
            sub_channels_refused: None,
            fc_names: None,
        })
    );
}

#[test]
fn older_host_and_older_guest() {
    let old_host = Config {
        newest: StorVersion::V6_0,
        ..server_config()
    };
    let (sent, outcome) = connect(client_config(), old_host, |_, a| a);
    assert_eq!(outcome.unwrap().version, StorVersion::V6_0);
    let queries = sent
        .iter()
        .filter(|o| **o == Operation::QUERY_PROTOCOL_VERSION);
    assert_eq!(queries.count(), 2);

    let old_guest = ClientConfig {
        newest: StorVersion::V6_0,
        ..client_config()
    };
    let (sent, outcome) = connect(old_guest, server_config(), |_, a| a);
    assert_eq!(outcome.unwrap().version, StorVersion::V6_0);
    assert_eq!(sent.len(), 5);

    let ancient_host = Config {
        newest: StorVersion::V5_1,
        ..server_config()
    };
    let (_, outcome) = connect(client_config(), ancient_host, |_, a| a);
    assert_eq!(outcome, Err(InitError::NoCommonVersion));
}

#[test]
fn sub_channels_are_what_both_can_do() {
    for (guest, host, expected) in [(0, 3, 0), (1, 3, 1), (3, 3, 3), (9, 3, 3), (9, 0, 0)] {
        let client = ClientConfig {
            sub_channels: guest,
            ..client_config()
        };
        let server = Config {
            max_sub_channels: host,
            ..server_config()
        };
        let (sent, outcome) = connect(client, server, |_, a| a);
        assert_eq!(outcome.unwrap().sub_channels, expected, "{guest} {host}");
        assert_eq!(sent.len() == 5, expected > 0);
    }
}

#[test]
fn refused_sub_channels_leave_the_primary_channel() {
    let (_, outcome) = connect(client_config(), server_config(), |op, answer| {
        if op == Operation::CREATE_SUB_CHANNELS {
            VstorPacket::answer(NtStatus::UNSUCCESSFUL).bytes().to_vec()
        } else {
            answer
        }
    });
    let negotiated = outcome.unwrap();
    assert_eq!(negotiated.sub_channels, 0);
    assert_eq!(
        negotiated.sub_channels_refused,
        Some(NtStatus::UNSUCCESSFUL)
    );
}

#[test]
fn fibre_channel_names() {
    let client = ClientConfig {
        fibre_channel: true,
        ..client_config()
    };
    let names = |fc| {
        let server = Config {
            fc: Some(fc),
            ..server_config()
        };
        let (sent, outcome) = connect(client, server, |_, a| a);
        assert_eq!(sent[3], Operation::FCHBA_DATA);
        outcome.unwrap().fc_names
    };
    let primary = FcNames {
        node: 0x2000_0000_0000_0002,
        port: 0x2000_0000_0000_0001,
    };
    assert_eq!(names(FC), Some(primary));
    let secondary = FcNames {
        node: 0x2000_0000_0000_0004,
        port: 0x2000_0000_0000_0003,
    };
    let other = FcHbaData {
        primary_active: 0,
        ..FC
    };
    assert_eq!(names(other), Some(secondary));
    // A SCSI controller has none.
    let (_, outcome) = connect(client, server_config(), |_, a| a);
    assert_eq!(
        outcome,
        Err(InitError::Refused {
            state: State::FcNames,
            status: NtStatus::INVALID_DEVICE_REQUEST
        })
    );
}

#[test]
fn a_second_start_begins_anew() {
    let mut client = Client::new(client_config());
    assert_eq!(client.on_answer(&[0; 64]), Err(InitError::NothingSent));
    assert_eq!(client.state(), State::Idle);
    let _ = client.start();
    assert!(client.on_answer(&[]).is_err());
    assert_eq!(client.on_answer(&[0; 64]), Err(InitError::NothingSent));
    let first = client.start();
    assert_eq!(first.header.operation, Operation::BEGIN_INITIALIZATION);
    assert_eq!(client.state(), State::Begin);
}

#[test]
fn attack_transfer_limits() {
    let limit = |bytes: u32| {
        let (_, outcome) = connect(client_config(), server_config(), |op, answer| {
            if op == Operation::QUERY_PROPERTIES {
                let lie = ChannelProperties {
                    max_transfer_bytes: bytes,
                    ..ChannelProperties::default()
                };
                VstorPacket::answer(NtStatus::SUCCESS)
                    .with_body(&lie)
                    .bytes()
                    .to_vec()
            } else {
                answer
            }
        });
        outcome.map(|n| n.max_transfer_bytes)
    };
    for bytes in [0, 1, 511, 4095] {
        assert_eq!(limit(bytes), Err(InitError::TransferTooSmall { bytes }));
    }
    assert_eq!(limit(4096), Ok(4096));
    assert_eq!(limit(8191), Ok(4096));
    assert_eq!(limit(0x8_0000), Ok(0x8_0000));
    assert_eq!(limit(u32::MAX), Ok(MAX_TRANSFER_BYTES));
    // A transfer of that size, off by one byte from a page, still fits a packet.
    let pages = (MAX_TRANSFER_BYTES as usize / 4096) + 1;
    assert!(PacketDescriptor::new(
        PacketType::DATA_USING_GPA_DIRECT,
        PacketFlags::empty(),
        1,
        16 + 8 * pages,
        64
    )
    .is_some());
}

#[test]
fn attack_more_sub_channels_than_asked_for() {
    let lie = ChannelProperties {
        max_sub_channels: u16::MAX,
        flags: PropertyFlags::MULTI_CHANNEL,
        max_transfer_bytes: 0x4_0000,
        ..ChannelProperties::default()
    };
    let mut client = Client::new(client_config());
    let _ = client.start();
    let ok = VstorPacket::answer(NtStatus::SUCCESS);
    let _ = client.on_answer(ok.bytes()).unwrap();
    let _ = client.on_answer(ok.bytes()).unwrap();
    let _ = client.on_answer(ok.with_body(&lie).bytes()).unwrap();
    let Ok(Step::Send(packet)) = client.on_answer(ok.bytes()) else {
        panic!("no CREATE_SUB_CHANNELS");
    };
    assert_eq!(packet.body_as::<SubChannelCount>().count, 7);
}

#[test]
fn attack_short_and_wrong_answers() {
    for operation in [
        Operation::BEGIN_INITIALIZATION,
        Operation::QUERY_PROTOCOL_VERSION,
        Operation::QUERY_PROPERTIES,
        Operation::END_INITIALIZATION,
        Operation::CREATE_SUB_CHANNELS,
    ] {
        for len in [0, 4, 12, 48, 63] {
            let (sent, outcome) = connect(client_config(), server_config(), |op, mut answer| {
                if op == operation {
                    answer.truncate(len);
                }
                answer
            });
            assert_eq!(sent.last(), Some(&operation));
            assert!(
                matches!(outcome, Err(InitError::ShortAnswer { len: l, .. }) if l == len),
                "{operation:?}: {outcome:?}"
            );
        }
        let (_, outcome) = connect(client_config(), server_config(), |op, mut answer| {
            if op == operation {
                answer[0] = Operation::ENUMERATE_BUS.0 as u8;
            }
            answer
        });
        assert!(matches!(
            outcome,
            Err(InitError::NotAnAnswer {
                operation: Operation::ENUMERATE_BUS,
                ..
            })
        ));
    }
}

#[test]
fn attack_refuses_every_version() {
    let mut client = Client::new(client_config());
    let _ = client.start();
    let _ = client
        .on_answer(VstorPacket::answer(NtStatus::SUCCESS).bytes())
        .unwrap();
    // The refusal names another version, which counts for nothing.
    let refusal = VstorPacket::answer(NtStatus::REVISION_MISMATCH).with_body(&VersionBody {
        version: StorVersion(0xffff),
        revision: 0xffff,
    });
    let Ok(Step::Send(packet)) = client.on_answer(refusal.bytes()) else {
        panic!("gave up early");
    };
    assert_eq!(packet.body_as::<VersionBody>().version, StorVersion::V6_0);
    assert_eq!(
        client.on_answer(refusal.bytes()),
        Err(InitError::NoCommonVersion)
    );
}

proptest! {
    /// Whatever a host answers, the client ends after at most seven packets, and what it agrees to
    /// can be used.
    #[test]
    fn ends_whatever_the_host_answers(
        answers in proptest::collection::vec(
            (any::<bool>(), 0u32..16, prop_oneof![Just(0u32), any::<u32>()],
             proptest::collection::vec(any::<u8>(), BODY_SIZE - 2..BODY_SIZE + 2)),
            8),
        fibre_channel: bool,
        sub_channels: u16,
    ) {
        let config = ClientConfig { fibre_channel, sub_channels, ..client_config() };
        let mut client = Client::new(config);
        let _ = client.start();
        let mut steps = 0;
        for (valid, operation, status, body) in answers {
            let operation = if valid { 1 } else { operation };
            let mut bytes = Vec::new();
            for word in [operation, 0, status] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(&body);
            let before = client.state();
            match client.on_answer(&bytes) {
                Ok(Step::Send(packet)) => {
                    prop_assert!(client.state() != before);
                    prop_assert_eq!(packet.header.flags.bits(), 1);
                    if packet.header.operation == Operation::CREATE_SUB_CHANNELS {
                        let count = packet.body_as::<SubChannelCount>().count;
                        prop_assert!(count > 0 && count <= sub_channels);
                    }
                }
                Ok(Step::Ready(n)) => {
                    prop_assert!(n.max_transfer_bytes >= 4096);
                    prop_assert!(n.max_transfer_bytes <= MAX_TRANSFER_BYTES);
                    prop_assert_eq!(n.max_transfer_bytes % 4096, 0);
                    prop_assert!(n.sub_channels <= sub_channels);
                    prop_assert!(StorVersion::SPOKEN.contains(&n.version));
                    prop_assert_eq!(n.fc_names.is_some(), fibre_channel);
                    break;
                }
                Err(InitError::NothingSent) => prop_assert!(false, "asked without need"),
                Err(_) => {
                    prop_assert_eq!(client.state(), State::Failed);
                    break;
                }
            }
            steps += 1;
        }
        prop_assert!(steps < 7);
    }

    /// A host that answers as agreed is understood whatever the two can do.
    #[test]
    fn client_and_server_agree(
        guest in 0u16..20, host in 0u16..20, old_host: bool, old_guest: bool,
        bytes in 4096u32..=u32::MAX, fibre_channel: bool,
    ) {
        let pick = |old| if old { StorVersion::V6_0 } else { StorVersion::V6_2 };
        let client = ClientConfig { newest: pick(old_guest), fibre_channel, sub_channels: guest };
        let server = Config {
            newest: pick(old_host),
            max_transfer_bytes: bytes,
            max_sub_channels: host,
            fc: fibre_channel.then_some(FC),
        };
        let (_, outcome) = connect(client, server, |_, a| a);
        let n = outcome.unwrap();
        prop_assert_eq!(n.version, pick(old_guest || old_host));
        prop_assert_eq!(n.sub_channels, guest.min(host));
        prop_assert_eq!(n.max_transfer_bytes, (bytes & !4095).min(MAX_TRANSFER_BYTES));
    }
}
