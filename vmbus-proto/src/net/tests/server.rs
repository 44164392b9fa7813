// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The host's machine against scripted packets.

use std::vec::Vec;

use zerocopy::IntoBytes;

use crate::msg::GpadlId;
use crate::net::nvsp::{
    ChannelType, InitComplete, MessageType, NvspMessage, NvspStatus, NvspVersion, ReceiveSections,
    SendBuffer, SendReceiveBufferComplete, SendRndisPacket, SubchannelComplete,
};
use crate::net::server::{Answer, Config, Refusal, Server, Verdict, DEFAULT_MTU};
use crate::packet::{Packet, PacketDescriptor, PacketFlags, PacketType};

const CONFIG: Config = Config {
    newest: NvspVersion::V6_1,
    max_mtu: 9000,
    max_sub_channels: 3,
};

fn packet(
    packet_type: PacketType,
    payload: &[u8],
    f: impl FnOnce(&Packet<'_>) -> Verdict,
) -> Verdict {
    let flags = PacketFlags::COMPLETION_REQUESTED;
    let descriptor = PacketDescriptor::new(packet_type, flags, 1, 0, payload.len()).unwrap();
    let mut bytes = Vec::from([0; 16]);
    bytes.extend_from_slice(payload);
    bytes.resize(descriptor.packet_len() as usize, 0);
    f(&Packet::parse(descriptor, &bytes).unwrap())
}

fn tell(server: &mut Server, index: u16, payload: &[u8]) -> Verdict {
    packet(PacketType::DATA_INBAND, payload, |p| {
        server.on_packet(index, p)
    })
}

fn init(version: NvspVersion) -> NvspMessage {
    NvspMessage::new(MessageType::INIT, &[version.0; 2])
}

fn read(answer: &Answer) -> NvspMessage {
    NvspMessage::parse(answer.as_bytes()).unwrap()
}

fn buffer(message_type: MessageType, id: u16) -> NvspMessage {
    let offer = SendBuffer {
        gpadl: GpadlId(7),
        id,
        reserved: 0,
    };
    NvspMessage::new(message_type, &offer)
}

/// A server up to its buffers.
fn ready() -> Server {
    let mut server = Server::new(CONFIG);
    let _ = tell(&mut server, 0, init(NvspVersion::V6_1).as_bytes());
    let config = NvspMessage::new(MessageType::SEND_NDIS_CONFIG, &[1514u32, 0, 0, 0]);
    let _ = tell(&mut server, 0, config.as_bytes());
    let ndis = NvspMessage::new(MessageType::SEND_NDIS_VER, &[6u32, 30]);
    let _ = tell(&mut server, 0, ndis.as_bytes());
    let offer = buffer(MessageType::SEND_RECV_BUF, 0xcafe);
    assert!(matches!(
        tell(&mut server, 0, offer.as_bytes()),
        Verdict::ReceiveBuffer(offer) if offer.gpadl == GpadlId(7) && offer.id == 0xcafe
    ));
    let answer = server.receive_buffer(Some(ReceiveSections {
        offset: 0,
        size: 1728,
        count: 10,
        end: 17280,
    }));
    let body: SendReceiveBufferComplete = read(&answer).body_as();
    assert_eq!(
        (body.status, body.runs, body.first.count),
        (NvspStatus::SUCCESS, 1, 10)
    );
    server
}

#[test]
fn versions_are_agreed_on_newest_first_and_refused_as_hosts_do() {
    for newest in NvspVersion::SPOKEN {
        let mut server = Server::new(Config { newest, ..CONFIG });
        for asked in NvspVersion::SPOKEN {
            let verdict = tell(&mut server, 0, init(asked).as_bytes());
            let (answer, spoken) = match verdict {
                Verdict::Agreed(answer, version) => {
                    assert_eq!(version, asked);
                    (answer, true)
                }
                Verdict::Refuse(refusal, Some(answer)) => {
                    assert!(!refusal.is_violation());
                    (answer, false)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(spoken, asked <= newest, "{asked:?} of {newest:?}");
            let body: InitComplete = read(&answer).body_as();
            let status = if spoken {
                NvspStatus::SUCCESS
            } else {
                NvspStatus::NONE
            };
            assert_eq!(body.status, status);
            // Messages grew with 6.1.
            let len = if asked == NvspVersion::V6_1 && spoken {
                40
            } else {
                28
            };
            assert_eq!(answer.as_bytes().len(), len);
            if spoken {
                break;
            }
        }
        assert_eq!(server.version(), Some(newest));
    }
    let mut server = Server::new(CONFIG);
    let unknown = init(NvspVersion(0x7_0000));
    assert!(matches!(
        tell(&mut server, 0, unknown.as_bytes()),
        Verdict::Refuse(Refusal::Version(_), Some(_))
    ));
}

#[test]
fn an_mtu_that_cannot_be_gives_the_default() {
    for (asked, mtu) in [
        (1514, 1500),
        (9014, 9000),
        (9015, 1500),
        (13, 1500),
        (0, 1500),
        (590, 1500),
    ] {
        let mut server = Server::new(CONFIG);
        let _ = tell(&mut server, 0, init(NvspVersion::V6_1).as_bytes());
        let config = NvspMessage::new(MessageType::SEND_NDIS_CONFIG, &[asked, 0, 0x88, 0]);
        assert_eq!(
            tell(&mut server, 0, config.as_bytes()),
            Verdict::Answer(Answer::EMPTY)
        );
        assert_eq!((server.mtu(), server.capabilities().bits()), (mtu, 0x88));
    }
    assert_eq!(Server::new(CONFIG).mtu(), DEFAULT_MTU);
}

#[test]
fn messages_of_newer_versions_are_unknown_to_older_ones() {
    for (message_type, since) in [
        (MessageType::SEND_NDIS_CONFIG, NvspVersion::V2),
        (MessageType::SWITCH_DATA_PATH, NvspVersion::V4),
        (MessageType::SUBCHANNEL, NvspVersion::V5),
    ] {
        for version in NvspVersion::SPOKEN {
            let mut server = Server::new(CONFIG);
            let _ = tell(&mut server, 0, init(version).as_bytes());
            let message = NvspMessage::new(message_type, &[1u32, 1, 0, 0]);
            let verdict = tell(&mut server, 0, message.as_bytes());
            let refused = matches!(verdict, Verdict::Refuse(Refusal::Unexpected(_), Some(_)));
            assert_eq!(refused, version < since, "{message_type:?} in {version:?}");
        }
    }
}

#[test]
fn sub_channels_are_granted_or_not() {
    for (count, granted) in [
        (0u32, false),
        (1, true),
        (3, true),
        (4, false),
        (u32::MAX, false),
    ] {
        let mut server = ready();
        let message = NvspMessage::new(MessageType::SUBCHANNEL, &[1, count]);
        let answer = match tell(&mut server, 0, message.as_bytes()) {
            Verdict::SubChannels { count: n, answer } => {
                assert_eq!(u32::from(n), count);
                answer
            }
            Verdict::Refuse(refusal, Some(answer)) => {
                assert!(!refusal.is_violation());
                answer
            }
            other => panic!("{other:?}"),
        };
        let body: SubchannelComplete = read(&answer).body_as();
        assert_eq!(body.status == NvspStatus::SUCCESS, granted);
        assert_eq!(body.count, if granted { count } else { 0 });
    }
}

#[test]
fn buffers_come_once_and_go_by_their_name() {
    let mut server = ready();
    assert_eq!(server.receive_buffer_id(), Some(0xcafe));
    let again = buffer(MessageType::SEND_RECV_BUF, 1);
    assert!(matches!(
        tell(&mut server, 0, again.as_bytes()),
        Verdict::Refuse(Refusal::Again(_), Some(_))
    ));
    // A buffer that is refused leaves room for another.
    for _ in 0..2 {
        let offer = buffer(MessageType::SEND_SEND_BUF, 0);
        assert!(matches!(
            tell(&mut server, 0, offer.as_bytes()),
            Verdict::SendBuffer(_)
        ));
        let refused = server.send_buffer(None);
        assert_eq!(
            read(&refused).body_as::<[u32; 2]>(),
            [NvspStatus::FAIL.0, 0]
        );
        assert!(!server.has_send_buffer());
    }
    let other = NvspMessage::new(MessageType::REVOKE_RECV_BUF, &[0x1234u16, 0]);
    assert!(matches!(
        tell(&mut server, 0, other.as_bytes()),
        Verdict::Refuse(Refusal::BufferId(0x1234), _)
    ));
    let own = NvspMessage::new(MessageType::REVOKE_RECV_BUF, &[0xcafeu16, 0]);
    assert_eq!(
        tell(&mut server, 0, own.as_bytes()),
        Verdict::RevokeReceiveBuffer
    );
    assert_eq!(server.receive_buffer_id(), None);
    assert!(matches!(
        tell(&mut server, 0, own.as_bytes()),
        Verdict::Refuse(Refusal::OutOfOrder(_), _)
    ));
}

#[test]
fn attack_messages_of_every_type_and_length() {
    for prepared in [Server::new(CONFIG), ready()] {
        for t in 0..140u32 {
            for len in 0..48 {
                for index in [0, 1] {
                    for packet_type in [
                        PacketType::DATA_INBAND,
                        PacketType::COMPLETION,
                        PacketType(0x55),
                    ] {
                        let mut server = prepared;
                        let mut payload = Vec::from(t.to_le_bytes());
                        payload.resize(48, 0xff);
                        payload.truncate(len);
                        let verdict = packet(packet_type, &payload, |p| server.on_packet(index, p));
                        if let Verdict::Rndis(p) = verdict {
                            panic!("{p:?} although the channel type is none");
                        }
                    }
                }
            }
        }
    }
    // On a sub-channel RNDIS messages alone.
    let mut server = ready();
    let frames = SendRndisPacket {
        channel: ChannelType::DATA,
        section_index: 0,
        section_size: 60,
    };
    let message = NvspMessage::new(MessageType::SEND_RNDIS_PKT, &frames);
    assert_eq!(
        tell(&mut server, 1, message.as_bytes()),
        Verdict::Rndis(frames)
    );
    let more = NvspMessage::new(MessageType::SUBCHANNEL, &[1u32, 1]);
    assert!(matches!(
        tell(&mut server, 1, more.as_bytes()),
        Verdict::Refuse(Refusal::OnSubChannel(_), Some(_))
    ));
}
