// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Tests of the channel messages: table, lengths, tails, hostile bytes.

use super::*;
use crate::guid::Guid;
use std::vec::Vec;

/// A message of `len` bytes: header, then 1, 2, 3, …
fn message(message_type: MessageType, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
    let header = MessageHeader {
        message_type,
        padding: 0xffff_ffff,
    };
    let n = len.min(8);
    bytes[..n].copy_from_slice(&header.as_bytes()[..n]);
    bytes
}

fn parse(direction: Direction, bytes: &[u8]) -> Result<MessageType, ParseError> {
    match direction {
        Direction::ToHost => GuestMessage::parse(bytes).map(|m| m.message_type()),
        Direction::ToGuest => HostMessage::parse(bytes).map(|m| m.message_type()),
    }
}

fn other(direction: Direction) -> Direction {
    match direction {
        Direction::ToHost => Direction::ToGuest,
        Direction::ToGuest => Direction::ToHost,
    }
}

/// Sizes of the C structs (`hyperv.h`; from 18 on as OpenVMM has them), written out apart from the
/// definitions.
#[test]
fn least_sizes() {
    let sizes: Vec<_> = MESSAGES
        .iter()
        .map(|m| (m.message_type.0, m.min_size))
        .collect();
    assert_eq!(
        sizes,
        [
            (1, 196),
            (2, 12),
            (3, 8),
            (4, 8),
            (5, 148),
            (6, 20),
            (7, 12),
            (8, 20),
            (9, 16),
            (10, 20),
            (11, 16),
            (12, 12),
            (13, 12),
            (14, 40),
            (15, 16),
            (16, 8),
            (17, 8),
            (18, 28),
            (19, 20),
            (20, 12),
            (21, 40),
            (22, 16),
            (23, 44),
            (24, 16),
            (25, 24),
            (26, 9),
            (27, 8),
            (28, 8),
            (29, 8),
        ]
    );
}

/// Each type at, below and above each length that matters, in both directions.
#[test]
fn lengths_and_directions_of_every_message() {
    for info in MESSAGES {
        let t = info.message_type;
        for len in [info.min_size, info.min_size + 1, MAX_MESSAGE_SIZE] {
            let bytes = message(t, len);
            assert_eq!(parse(info.direction, &bytes), Ok(t), "{t:?} {len}");
            assert_eq!(
                parse(other(info.direction), &bytes),
                Err(ParseError::WrongDirection(t))
            );
        }
        for len in 8..info.min_size {
            assert_eq!(
                parse(info.direction, &message(t, len)),
                Err(ParseError::TooShort {
                    message_type: t,
                    len,
                    min: info.min_size
                })
            );
        }
        assert_eq!(
            parse(info.direction, &message(t, 241)),
            Err(ParseError::TooLong { len: 241 })
        );
        for len in 0..8 {
            assert_eq!(
                parse(info.direction, &message(t, len)),
                Err(ParseError::NoHeader { len })
            );
        }
    }
}

#[test]
fn attack_unknown_types() {
    for t in [0, 30, 31, 0x100, 0x8000_0001, u32::MAX] {
        for direction in [Direction::ToHost, Direction::ToGuest] {
            assert_eq!(
                parse(direction, &message(MessageType(t), 240)),
                Err(ParseError::UnknownType(MessageType(t)))
            );
        }
    }
}

#[test]
fn types_by_version() {
    let all = FeatureFlags::from_bits_retain(!0);
    let allowed = |version, features| -> Vec<u32> {
        MESSAGES
            .iter()
            .filter(|m| m.message_type.allowed_at(version, features))
            .map(|m| m.message_type.0)
            .collect()
    };
    let v40: Vec<u32> = (1..=21).collect();
    assert_eq!(allowed(VmbusVersion::V4_0, all), v40);
    let v41: Vec<u32> = (1..=23).collect();
    assert_eq!(allowed(VmbusVersion::V4_1, all), v41);
    assert_eq!(allowed(VmbusVersion::V5_2, all), v41);
    let v53: Vec<u32> = (1..=24).collect();
    assert_eq!(allowed(VmbusVersion::V5_3, all), v53);
    assert_eq!(allowed(VmbusVersion::V6_0, NONE), v53);
    assert_eq!(
        allowed(VmbusVersion::V6_0, FeatureFlags::MODIFY_CONNECTION),
        (1..=26).collect::<Vec<u32>>()
    );
    assert_eq!(
        allowed(VmbusVersion::V6_0, all),
        (1..=29).collect::<Vec<u32>>()
    );
    assert!(!MessageType(30).allowed_at(VmbusVersion::V6_0, all));
}

/// Tails are there only whole.
#[test]
fn optional_tails() {
    for (len, expect) in [(148, false), (155, false), (156, true), (240, true)] {
        let bytes = message(MessageType::OPEN_CHANNEL, len);
        let Ok(GuestMessage::OpenChannel { extra, .. }) = GuestMessage::parse(&bytes) else {
            panic!()
        };
        assert_eq!(extra.is_some(), expect, "{len}");
        if let Some(extra) = extra {
            assert_eq!(
                extra.connection_id,
                u32::from_le_bytes([148, 149, 150, 151])
            );
            assert_eq!(extra.event_flag, u16::from_le_bytes([152, 153]));
            assert_eq!(extra.flags.bits(), u16::from_le_bytes([154, 155]));
        }
    }
    for (len, expect) in [(40, false), (55, false), (56, true)] {
        let bytes = message(MessageType::INITIATE_CONTACT, len);
        let Ok(GuestMessage::InitiateContact { client_id, .. }) = GuestMessage::parse(&bytes)
        else {
            panic!()
        };
        assert_eq!(client_id.is_some(), expect, "{len}");
        let bytes = message(MessageType::TL_CONNECT_REQUEST, len);
        let Ok(GuestMessage::TlConnectRequest { silo_id, .. }) = GuestMessage::parse(&bytes) else {
            panic!()
        };
        assert_eq!(silo_id.is_some(), expect, "{len}");
    }
    for (len, features, monitor) in [
        (16, false, false),
        (19, false, false),
        (20, true, false),
        (39, true, false),
        (40, true, true),
    ] {
        let bytes = message(MessageType::VERSION_RESPONSE, len);
        let Ok(HostMessage::VersionResponse(answer)) = HostMessage::parse(&bytes) else {
            panic!()
        };
        assert_eq!(answer.features.is_some(), features, "{len}");
        assert_eq!(answer.monitor.is_some(), monitor, "{len}");
        if let Some(m) = answer.monitor {
            assert_eq!(m.parent_to_child[0], u32::from_le_bytes([24, 25, 26, 27]));
            assert_eq!(m.child_to_parent[1], u32::from_le_bytes([36, 37, 38, 39]));
        }
    }
}

#[test]
fn data_of_gpadl_messages_start_after_the_fixed_part() {
    let bytes = message(MessageType::GPADL_HEADER, 240);
    let Ok(GuestMessage::GpadlHeader { data, .. }) = GuestMessage::parse(&bytes) else {
        panic!()
    };
    assert_eq!((data.len(), data[0]), (220, 20));
    let bytes = message(MessageType::GPADL_BODY, 16);
    let Ok(GuestMessage::GpadlBody { data, .. }) = GuestMessage::parse(&bytes) else {
        panic!()
    };
    assert!(data.is_empty());
}

#[test]
fn fields_of_an_offer() {
    let mut offer = OfferChannel::blank();
    assert_eq!(offer.header.message_type, MessageType::OFFER_CHANNEL);
    assert!(!offer.is_subchannel() && !offer.is_hvsock() && !offer.has_dedicated_interrupt());
    assert_eq!((offer.monitor_id(), offer.pipe_mode()), (None, None));
    offer.monitor_id = 127;
    offer.monitor_allocated = 0xff;
    offer.is_dedicated = 3;
    offer.flags = OfferFlags::NAMED_PIPE_MODE | OfferFlags::TLNPI_PROVIDER;
    offer.user_data[0] = 4;
    assert!(offer.is_hvsock() && offer.has_dedicated_interrupt());
    assert_eq!(offer.monitor_id(), Some(127));
    assert_eq!(offer.pipe_mode(), Some(PipeMode::MESSAGE));
    offer.monitor_id = 128;
    assert_eq!(offer.monitor_id(), None, "the page has 128 triggers");
    offer.flags = OfferFlags::from_bits_retain(0x8000);
    let bytes = MessageBuffer::from_message(&offer);
    let Ok(HostMessage::OfferChannel(back)) = HostMessage::parse(bytes.as_bytes()) else {
        panic!()
    };
    assert_eq!(back.flags.bits(), 0x8000, "unknown flags survive");
}

#[test]
fn target_of_initiate_contact() {
    let info = TargetInfo {
        sint: 2,
        vtl: 1,
        reserved: [0; 2],
        features: FeatureFlags::CLIENT_ID,
    };
    assert_eq!(info.to_u64(), 0x8_0000_0102);
    assert_eq!(TargetInfo::from_u64(info.to_u64()), info);
    // As the struct lies in memory.
    assert_eq!(info.as_bytes(), info.to_u64().to_le_bytes());
    assert_eq!(TargetInfo::from_u64(0xffff_0000), TargetInfo::from_u64(0));
    let mut m = InitiateContact::blank();
    m.interrupt_page_or_target = info.to_u64();
    for (version, target, page, features) in [
        (VmbusVersion::V4_1, false, true, 0),
        (VmbusVersion::V5_0, true, false, 0),
        (VmbusVersion::V5_3, true, false, 0),
        (VmbusVersion::V6_0, true, false, 8),
    ] {
        m.version = version;
        assert_eq!(m.target_info().is_some(), target);
        assert_eq!(m.interrupt_page().is_some(), page);
        assert_eq!(m.features().bits(), features);
    }
}

#[test]
fn the_buffer_takes_240_bytes_and_no_more() {
    let mut buffer = MessageBuffer::new();
    assert_eq!(buffer.message_type(), MessageType::INVALID);
    assert_eq!(buffer.append(&[1; 241]), Err(MessageTooLong));
    assert_eq!(buffer.append(&[1; 239]), Ok(()));
    assert_eq!(buffer.append(&[2; 2]), Err(MessageTooLong));
    assert_eq!(buffer.append(&[2]), Ok(()));
    assert_eq!(buffer.append(&[]), Ok(()));
    assert_eq!(buffer.append(&[3]), Err(MessageTooLong));
    assert_eq!(buffer.as_bytes().len(), 240);
    assert_eq!(buffer.as_bytes()[238..], [1, 2]);
}

#[test]
fn open_enums_keep_and_show_what_they_do_not_know() {
    assert_eq!(std::format!("{:?}", MessageType(5)), "OPEN_CHANNEL");
    assert_eq!(std::format!("{:?}", MessageType(99)), "MessageType(0x63)");
    assert!(Status(0).is_success() && !Status(1).is_success());
    assert!(Relid(1).is_valid() && Relid(2047).is_valid());
    assert!(!Relid(0).is_valid() && !Relid(2048).is_valid() && !Relid::INVALID.is_valid());
}

proptest::proptest! {
    /// No bytes make a parser panic, and what parses is of the type in the header.
    #[test]
    fn rubbish(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..260), t in 0u32..32) {
        if let Some(head) = bytes.get_mut(..4) {
            head.copy_from_slice(&t.to_le_bytes());
        }
        for direction in [Direction::ToHost, Direction::ToGuest] {
            if let Ok(got) = parse(direction, &bytes) {
                proptest::prop_assert_eq!(got.0, t);
                proptest::prop_assert_eq!(got.info().map(|i| i.direction), Some(direction));
            }
        }
    }

    /// What is built is parsed again, field by field.
    #[test]
    fn round_trip(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 240)) {
        macro_rules! check {
            ($parse:path: $($ty:ident),*) => { $( {
                let mut m = $ty::read_from_prefix(&bytes).unwrap().0;
                m.header = $ty::blank().header;
                let buffer = MessageBuffer::from(&m);
                proptest::prop_assert_eq!($parse(buffer.as_bytes()), Ok(HostOrGuest::$ty(m)));
            } )* };
        }
        use HostMessage as HostOrGuest;
        check!(HostMessage::parse: OfferChannel, RescindChannelOffer, AllOffersDelivered, OpenChannelResult,
            GpadlCreated, GpadlTorndown, UnloadResponse, CloseReservedResponse, TlConnectResult,
            ModifyChannelResponse, PauseResponse);
        {
            use GuestMessage as HostOrGuest;
            check!(GuestMessage::parse: RequestOffers, CloseChannel, GpadlTeardown, RelidReleased, Unload,
                OpenReservedChannel, CloseReservedChannel, ModifyChannel, ModifyConnection, Pause, Resume);
        }
    }
}

#[test]
fn messages_with_tails_round_trip() {
    let open = OpenChannel {
        relid: Relid(3),
        user_data: [7; USER_DATA_SIZE],
        ..OpenChannel::blank()
    };
    let extra = OpenChannelExtra {
        connection_id: 9,
        event_flag: 10,
        flags: OpenChannelFlags::REDIRECT_INTERRUPT,
    };
    let mut buffer = MessageBuffer::from(&open);
    buffer.append(extra.as_bytes()).unwrap();
    assert_eq!(
        GuestMessage::parse(buffer.as_bytes()),
        Ok(GuestMessage::OpenChannel {
            base: open,
            extra: Some(extra)
        })
    );
    let contact = InitiateContact {
        version: VmbusVersion::V6_0,
        ..InitiateContact::blank()
    };
    let id = Guid([5; 16]);
    let mut buffer = MessageBuffer::from(&contact);
    buffer.append(id.as_bytes()).unwrap();
    assert_eq!(
        GuestMessage::parse(buffer.as_bytes()),
        Ok(GuestMessage::InitiateContact {
            base: contact,
            client_id: Some(id)
        })
    );
    let response = ModifyConnectionResponse {
        connection_state: ConnectionState::FAILED_LOW_RESOURCES,
        ..ModifyConnectionResponse::blank()
    };
    assert_eq!(
        HostMessage::parse(MessageBuffer::from(&response).as_bytes()),
        Ok(HostMessage::ModifyConnectionResponse(
            ConnectionState::FAILED_LOW_RESOURCES
        ))
    );
}
