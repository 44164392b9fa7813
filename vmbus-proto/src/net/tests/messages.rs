// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! NVSP messages, RNDIS messages, NDIS structures.

use super::super::nvsp::*;
use super::super::offload::*;
use super::super::rndis::*;
use super::super::rss::*;
use crate::msg::GpadlId;
use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::IntoBytes;

#[test]
fn nvsp_messages_as_on_the_wire() {
    let message = NvspMessage::new(
        MessageType::SEND_RECV_BUF,
        &SendBuffer {
            gpadl: GpadlId(0xe1e10),
            id: RECEIVE_BUFFER_ID,
            reserved: 0,
        },
    );
    let bytes = message.bytes_for(NvspVersion::V6_1);
    assert_eq!(bytes.len(), 40);
    assert_eq!(
        bytes[..12],
        [101, 0, 0, 0, 0x10, 0x1e, 0x0e, 0, 0xfe, 0xca, 0, 0]
    );
    assert_eq!(message.bytes_for(NvspVersion::V6).len(), 28);
    let rndis = SendRndisPacket {
        channel: ChannelType::CONTROL,
        section_index: NO_SECTION,
        section_size: 9,
    };
    assert_eq!(
        rndis.words().as_bytes(),
        NvspMessage::new(MessageType::SEND_RNDIS_PKT, &rndis).as_bytes()
    );
    assert_eq!(
        rndis_complete_word(NvspStatus::FAIL).to_le_bytes(),
        [108, 0, 0, 0, 2, 0, 0, 0]
    );
}

#[test]
fn nvsp_messages_are_measured() {
    let types = (0..200u32).map(MessageType);
    for message_type in types {
        let size = 4 + message_type.body_size();
        let mut bytes = std::vec![0xff; size];
        bytes[..4].copy_from_slice(&message_type.0.to_le_bytes());
        let message = NvspMessage::parse(&bytes).unwrap();
        assert_eq!(message.as_bytes()[..size], bytes[..]);
        assert!(message.as_bytes()[size..].iter().all(|byte| *byte == 0));
        for len in 0..size {
            let message_type = (len >= 4).then_some(message_type);
            assert_eq!(
                NvspMessage::parse(&bytes[..len]),
                Err(TooShort { message_type, len })
            );
        }
        // Every type with a body is one of a version.
        assert!(size == 4 || message_type.since().is_some());
    }
}

#[test]
fn send_tables_of_all_hosts() {
    let mut entries = [0; SEND_TABLE_SIZE];
    for (entry, n) in entries.iter_mut().zip(3..) {
        *entry = n;
    }
    let table = SendTable::new(entries);
    let mut out = [0xff; MAX_TABLE_MESSAGE];
    for (form, version, right) in [
        (TableForm::Compact, NvspVersion::V5, true),
        (TableForm::Compact, NvspVersion::V6_1, true),
        (TableForm::Wide, NvspVersion::V5, true),
        (TableForm::Wide, NvspVersion::V6_1, true),
        (TableForm::WideWrongOffset, NvspVersion::V5, true),
        (TableForm::WideWrongOffset, NvspVersion::V6, true),
        // From 6.1 on the offset counts.
        (TableForm::WideWrongOffset, NvspVersion::V6_1, false),
    ] {
        let message = table.message(form, &mut out);
        let parsed = SendTable::parse(version, message).unwrap();
        assert_eq!(parsed == table, right, "{form:?} {version:?}");
        assert_eq!(
            Notice::parse(version, message),
            Ok(Notice::SendTable(parsed))
        );
    }
    let message = table.message(TableForm::Compact, &mut out).to_vec();
    assert_eq!(message.len(), 76);
    let with = |at: usize, value: u32| {
        let mut message = message.clone();
        message[at..][..4].copy_from_slice(&value.to_le_bytes());
        SendTable::parse(NvspVersion::V6_1, &message)
    };
    for count in [0, 15, 17, u32::MAX] {
        assert_eq!(with(4, count), Err(TableError::Count(count)));
    }
    for offset in [13, 76, 77, u32::MAX - 63, u32::MAX] {
        assert_eq!(with(8, offset), Err(TableError::Offset { offset, len: 76 }));
    }
    assert!(matches!(
        SendTable::parse(NvspVersion::V5, &message[..11]),
        Err(TableError::TooShort(_))
    ));
    // Entries that name no channel.
    assert_eq!(table.channel(0, 4), 3);
    assert_eq!(table.channel(2, 4), 1);
    assert_eq!(table.channel(0xffff_fff2, 4), 1);
    assert_eq!(table.channel(5, 0), 0);
    assert_eq!(SendTable::round_robin(3).entries()[..4], [0, 1, 2, 0]);
    assert_eq!(SendTable::round_robin(0).entries(), &[0; 16]);
}

#[test]
fn notices_and_completions() {
    let vf = VfAssociation {
        allocated: 1,
        serial: 42,
    };
    let message = NvspMessage::new(MessageType::SEND_VF_ASSOCIATION, &vf);
    assert_eq!(
        Notice::parse(NvspVersion::V6_1, message.as_bytes()),
        Ok(Notice::Vf(vf))
    );
    assert_eq!(
        Notice::parse(NvspVersion::V6_1, &999u32.to_le_bytes()),
        Ok(Notice::Ignored(MessageType(999)))
    );
    assert_eq!(Completion::parse(&[]), Ok(Completion::Empty));
    assert_eq!(
        Completion::parse(rndis_complete_word(NvspStatus::SUCCESS).as_bytes()),
        Ok(Completion::Rndis(NvspStatus::SUCCESS))
    );
    // A completion that is cut.
    for len in 1..8 {
        let word = rndis_complete_word(NvspStatus::SUCCESS);
        assert!(Completion::parse(&word.as_bytes()[..len]).is_err());
    }
    let init = InitComplete {
        status: NvspStatus::SUCCESS,
        ..InitComplete::default()
    };
    let message = NvspMessage::new(MessageType::INIT_COMPLETE, &init);
    assert_eq!(
        Completion::parse(message.as_bytes()),
        Ok(Completion::Answer(message))
    );
}

#[test]
fn queries_and_answers() {
    let mut out = [0; 64];
    let len = write_oid_request(&mut out, RndisType::QUERY, 7, Oid::GEN_LINK_SPEED, &[]).unwrap();
    assert_eq!(len, 28);
    assert_eq!(
        GuestMessage::parse(&out[..len]),
        Ok(GuestMessage::Query {
            request_id: 7,
            oid: Oid::GEN_LINK_SPEED,
            info: &[],
        })
    );
    let filter = PacketFilter::for_interface(false, true, true);
    let len = write_oid_request(
        &mut out,
        RndisType::SET,
        8,
        Oid::GEN_CURRENT_PACKET_FILTER,
        filter.as_bytes(),
    )
    .unwrap();
    // As rndis_filter_set_packet_filter writes it.
    let expected: Vec<u8> = [5u32, 32, 8, 0x0001_010e, 4, 20, 0, 0xd]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(out[..len], expected);
    let len = write_query_complete(&mut out, 7, RndisStatus::SUCCESS, &[1, 2, 3]).unwrap();
    let answer = HostMessage::parse(&out[..len]).unwrap();
    assert_eq!(answer.request_id(), Some(7));
    assert_eq!(
        answer,
        HostMessage::QueryComplete {
            request_id: 7,
            status: RndisStatus::SUCCESS,
            info: &[1, 2, 3],
        }
    );
    assert_eq!(
        write_query_complete(&mut out[..26], 7, RndisStatus::SUCCESS, &[1, 2, 3]),
        None
    );
}

#[test]
fn attack_lengths_of_answers() {
    let mut good = [0; 40];
    let len = write_query_complete(&mut good, 7, RndisStatus::SUCCESS, &[9; 12]).unwrap();
    let with = |field: usize, value: u32| {
        let mut message = good;
        message[field * 4..][..4].copy_from_slice(&value.to_le_bytes());
        HostMessage::parse(&message[..len]).map(|_| ())
    };
    let message_type = RndisType::QUERY_C;
    for claimed in [0, 7, 37, u32::MAX] {
        assert_eq!(
            with(1, claimed),
            Err(BadMessage::Length {
                message_type,
                claimed,
                available: 36
            })
        );
    }
    assert_eq!(
        with(1, 23),
        Err(BadMessage::TooShort {
            message_type,
            len: 23
        })
    );
    for len in [13, u32::MAX, u32::MAX - 15] {
        assert_eq!(
            with(4, len),
            Err(BadMessage::Info {
                message_type,
                offset: 16,
                len
            })
        );
    }
    for offset in [0, 15, 17, 28, u32::MAX, u32::MAX - 11] {
        assert_eq!(
            with(5, offset),
            Err(BadMessage::Info {
                message_type,
                offset,
                len: 12
            })
        );
    }
    assert_eq!(with(0, 4), Err(BadMessage::Unexpected(RndisType::QUERY)));
    assert_eq!(with(0, 1), Err(BadMessage::Unexpected(RndisType::PACKET)));
}

#[test]
fn indications() {
    let mut out = [0; 32];
    let len = write_indicate(&mut out, RndisStatus::MEDIA_CONNECT, &[]).unwrap();
    let event = |bytes: &[u8]| match HostMessage::parse(bytes) {
        Ok(HostMessage::Indicate { status, buffer }) => Ok(LinkEvent::new(status, buffer)),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e),
    };
    assert_eq!(event(&out[..len]), Ok(LinkEvent::Up));
    let speed = 100_000_000u32;
    let len = write_indicate(
        &mut out,
        RndisStatus::LINK_SPEED_CHANGE,
        &speed.to_le_bytes(),
    )
    .unwrap();
    assert_eq!(event(&out[..len]), Ok(LinkEvent::Speed(speed)));
    // Hosts before Windows Server 2016 do not count the speed.
    out[4..8].copy_from_slice(&20u32.to_le_bytes());
    assert_eq!(event(&out[..len]), Ok(LinkEvent::Speed(speed)));
    assert!(matches!(
        event(&out[..len - 1]),
        Err(BadMessage::Info { .. })
    ));
    let len = write_indicate(&mut out, RndisStatus::LINK_SPEED_CHANGE, &[1, 2, 3]).unwrap();
    assert_eq!(
        event(&out[..len]),
        Ok(LinkEvent::Other(RndisStatus::LINK_SPEED_CHANGE))
    );
}

#[test]
fn mac_address_as_parameter() {
    let mac = [0x00, 0x15, 0x5d, 0xab, 0xcd, 0xef];
    let mut info = network_address_parameter(mac);
    assert_eq!(info[..20], {
        let words = [20u32, 28, 2, 48, 24];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes
    });
    let text: Vec<u16> = info[20..]
        .chunks(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .collect();
    assert_eq!(
        std::string::String::from_utf16(&text).unwrap(),
        "NetworkAddress00155dabcdef"
    );
    let parameter = ParsedParameter::parse(&info).unwrap();
    assert_eq!(parameter.network_address(), Some(mac));
    assert!(!parameter.is_named("NetworkAddresS"));
    info[48] = b'x';
    assert_eq!(
        ParsedParameter::parse(&info).unwrap().network_address(),
        None
    );
    info[16] = 25;
    assert_eq!(ParsedParameter::parse(&info), None);
}

#[test]
fn offload_structures() {
    for (version, revision, size) in [
        (NvspVersion::V2, 1, 112),
        (NvspVersion::V4, 2, 144),
        (NvspVersion::V5, 3, 156),
    ] {
        let query = Offload::for_query(version);
        assert_eq!(query.sized_bytes().len(), size);
        assert_eq!(query.header.revision, revision);
        assert_eq!(Offload::parse(query.sized_bytes()), Ok(query));
    }
    let mut offload = Offload::for_query(NvspVersion::V6_1);
    offload.rsc_ipv4 = 1;
    assert!(!offload.has_rsc());
    offload.rsc_ipv6 = 1;
    assert!(offload.has_rsc());
    // An older host: what it lacks is not there.
    offload.header.size = 112;
    assert!(!Offload::parse(offload.as_bytes()).unwrap().has_rsc());
    offload.header.size = 111;
    assert_eq!(
        Offload::parse(offload.as_bytes()),
        Err(BadObject::Size {
            claimed: 111,
            available: 156
        })
    );
    offload.header.size = 157;
    assert!(matches!(
        Offload::parse(offload.as_bytes()),
        Err(BadObject::Size { .. })
    ));
    offload.header.size = 156;
    offload.header.revision = 0;
    assert_eq!(
        Offload::parse(offload.as_bytes()),
        Err(BadObject::Revision(0))
    );
    offload.header.object_type = ObjectType::DEFAULT;
    assert_eq!(
        Offload::parse(offload.as_bytes()),
        Err(BadObject::Type(ObjectType::DEFAULT))
    );
    assert!(Offload::parse(&[]).is_err());

    let parameters = OffloadParameters {
        udp_ipv4: ChecksumSetting::TX_RX,
        tcp_ipv4: ChecksumSetting::TX,
        rsc_ipv4: Setting::ENABLED,
        ..OffloadParameters::default()
    };
    let new = parameters.for_version(NvspVersion::V5);
    assert_eq!(OffloadParameters::parse(new.sized_bytes()), Ok(new));
    let old = parameters.for_version(NvspVersion::V4);
    assert_eq!(old.sized_bytes().len(), 22);
    let parsed = OffloadParameters::parse(old.sized_bytes()).unwrap();
    assert_eq!(parsed.udp_ipv4, ChecksumSetting::NO_CHANGE);
    assert_eq!(parsed.tcp_ipv4.tx_rx(), Some((true, false)));
    assert_eq!(parsed.rsc_ipv4.is_on(), None);
}

/// Microsoft, "Verifying the RSS Hash Calculation": all its vectors.
#[test]
fn toeplitz_vectors() {
    let v4 = |source: [u8; 4], from: u16, destination: [u8; 4], to: u16| {
        let mut input = Vec::new();
        input.extend(source);
        input.extend(destination);
        let addresses = toeplitz(&DEFAULT_KEY, &input);
        input.extend(from.to_be_bytes());
        input.extend(to.to_be_bytes());
        (addresses, toeplitz(&DEFAULT_KEY, &input))
    };
    assert_eq!(
        v4([66, 9, 149, 187], 2794, [161, 142, 100, 80], 1766),
        (0x323e_8fc2, 0x51cc_c178)
    );
    assert_eq!(
        v4([199, 92, 111, 2], 14230, [65, 69, 140, 83], 4739),
        (0xd718_262a, 0xc626_b0ea)
    );
    assert_eq!(
        v4([24, 19, 198, 95], 12898, [12, 22, 207, 184], 38024),
        (0xd2d0_a5de, 0x5c2b_394a)
    );
    assert_eq!(
        v4([38, 27, 205, 30], 48228, [209, 142, 163, 6], 2217),
        (0x8298_9176, 0xafc7_327f)
    );
    assert_eq!(
        v4([153, 39, 163, 191], 44251, [202, 188, 127, 2], 1303),
        (0x5d18_09c5, 0x10e8_28a2)
    );
    let v6 = |source: &str, from: u16, destination: &str, to: u16| {
        let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let mut input = Vec::new();
        input.extend(address(source));
        input.extend(address(destination));
        let addresses = toeplitz(&DEFAULT_KEY, &input);
        input.extend(from.to_be_bytes());
        input.extend(to.to_be_bytes());
        (addresses, toeplitz(&DEFAULT_KEY, &input))
    };
    assert_eq!(
        v6("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766),
        (0x2cc1_8cd5, 0x4020_7d3d)
    );
    assert_eq!(
        v6("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739),
        (0x0f0c_461c, 0xdde5_1bbf)
    );
    assert_eq!(
        v6(
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            "fe80::200:f8ff:fe21:67cf",
            38024
        ),
        (0x4b61_e985, 0x02d1_feef)
    );
}

#[test]
fn rss_settings() {
    let mut out = [0; MAX_PARAMETERS];
    let table: Vec<u32> = (0..128).map(|n| n % 4).collect();
    let len = write_parameters(
        &mut out,
        RssFlags::empty(),
        HashInfo::linux(),
        table.iter().copied(),
        &DEFAULT_KEY,
    )
    .unwrap();
    assert_eq!(len, 40 + 512 + 40);
    let RssSetting::Enable {
        hash,
        table: Some(entries),
        key,
    } = RssSetting::parse(&out[..len], 4).unwrap()
    else {
        panic!("not enabled");
    };
    assert_eq!(hash, Some(HashInfo::linux()));
    assert_eq!(key, Some(DEFAULT_KEY));
    assert_eq!(table_entries(entries).collect::<Vec<_>>(), table);
    // A channel that does not exist.
    assert_eq!(RssSetting::parse(&out[..len], 3), Err(BadObject::Value(3)));
    let with = |at: usize, value: u32| {
        let mut info = out;
        let bytes = value.to_le_bytes();
        info[at..][..4].copy_from_slice(&bytes);
        RssSetting::parse(&info[..len], 4).map(|setting| setting == RssSetting::Disable)
    };
    assert_eq!(with(4, 0x10), Ok(true), "disable");
    assert_eq!(with(8, 0x700), Ok(true), "no hash function");
    for table_len in [0, 3, 1028] {
        assert_eq!(with(12, table_len), Err(BadObject::Value(table_len)));
    }
    for key_len in [0, 39, 41] {
        assert_eq!(with(20, key_len), Err(BadObject::Value(key_len)));
    }
    for offset in [81, 1000, u32::MAX] {
        assert_eq!(
            with(16, offset),
            Err(BadObject::Part { offset, len: 512 }),
            "table"
        );
    }
    for offset in [553, u32::MAX] {
        assert_eq!(
            with(24, offset),
            Err(BadObject::Part { offset, len: 40 }),
            "key"
        );
    }
    assert!(RssSetting::parse(&out[..39], 4).is_err());
    assert!(write_parameters(
        &mut out,
        RssFlags::empty(),
        HashInfo::linux(),
        [0; 257].into_iter(),
        &DEFAULT_KEY
    )
    .is_none());

    let mut capabilities = RssCapabilities::for_query();
    assert_eq!(capabilities.wire_bytes().len(), 18);
    assert_eq!(capabilities.usable_table_size(), 128);
    capabilities.table_size = 256;
    let parsed = RssCapabilities::parse(capabilities.wire_bytes()).unwrap();
    assert_eq!(parsed.usable_table_size(), 256);
    capabilities.table_size = 257;
    assert_eq!(capabilities.usable_table_size(), 128);
}

proptest! {
    #[test]
    fn hostile_messages(bytes in proptest::collection::vec(any::<u8>(), 0..128), message_type in 0u32..12, answer in any::<bool>(), len in 0u32..128) {
        let mut bytes = bytes;
        if bytes.len() >= 8 {
            let answer = if answer { 1 << 31 } else { 0 };
            bytes[..4].copy_from_slice(&(message_type | answer).to_le_bytes());
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
        }
        let _ = HostMessage::parse(&bytes);
        let _ = GuestMessage::parse(&bytes);
        for version in NvspVersion::SPOKEN {
            let _ = Notice::parse(version, &bytes);
        }
        let _ = Completion::parse(&bytes);
        let _ = Offload::parse(&bytes);
        let _ = OffloadParameters::parse(&bytes);
        let _ = RssCapabilities::parse(&bytes);
        let _ = RssSetting::parse(&bytes, 8);
        let _ = ParsedParameter::parse(&bytes).map(|parameter| parameter.network_address());
    }
}
