// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Guests that send rubbish.

use proptest::prelude::*;
use vmbus_proto::net::nvsp::{NvspStatus, SendBuffer};

use super::*;

/// What RNDIS offsets count from.
const HEADER: usize = 8;

#[test]
fn attack_malformed_rndis_packets() {
    let mut guest = Guest::running(&[], 1500);
    let good = Guest::rndis(&frame([9; 6], 60), PacketInfo::NONE, 0);
    let patched = |offset: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let len = good.len() as u32;
    let mut count = 0;
    for bytes in [
        patched(0, 2),
        patched(4, 0),
        patched(4, 43),
        patched(4, len + 1),
        patched(4, u32::MAX),
        patched(8, 0),
        patched(8, len),
        patched(8, u32::MAX),
        patched(12, 0),
        patched(12, 13),
        patched(12, len - 43),
        patched(12, u32::MAX),
        patched(16, 1),
        patched(20, 1),
        patched(24, 1),
        patched(36, 1),
        {
            let mut bytes = patched(28, 8);
            bytes[32..36].copy_from_slice(&16u32.to_le_bytes());
            bytes
        },
        {
            let mut bytes = patched(28, u32::MAX);
            bytes[32..36].copy_from_slice(&16u32.to_le_bytes());
            bytes
        },
        good[..good.len() - 1].to_vec(),
        good[..HEADER].to_vec(),
        vec![0; 1],
        // A good one, and then rubbish.
        [&good[..], &[1, 0, 0, 0]].concat(),
    ] {
        count += 1;
        guest.send_direct(0, ChannelType::DATA, &bytes);
        assert!(guest.completed(0).is_some(), "attack {count} is answered");
        assert_eq!(guest.violations(), count, "attack {count} is counted");
    }
    assert_eq!(
        guest.wire.lock().sent.len(),
        1,
        "the good one before rubbish"
    );
    // What a guest had queued before it took a smaller MTU is lost, and nothing else.
    let long = Guest::rndis(&frame([9; 6], 1515), PacketInfo::NONE, 0);
    let id = guest.send_direct(0, ChannelType::DATA, &long);
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    let lost = guest.info().counters.tx_too_long;
    assert_eq!((guest.violations(), lost), (count, 1));
    assert_eq!(guest.wire.lock().sent.len(), 1);
    let id = guest.send_direct(0, ChannelType::DATA, &good);
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
}

#[test]
fn attack_send_sections() {
    let mut guest = Guest::running(&[], 1500);
    let sections = guest.agreed().send;
    let mut count = 0;
    for (section, len) in [
        (sections.count, 60),
        (u32::MAX - 1, 60),
        (0, sections.size + 1),
        (0, u32::MAX),
        (0, 0),
        (NO_SECTION, 100),
    ] {
        count += 1;
        let id = guest.send_section_message(0, section, len);
        let (got, status) = guest.completed(0).expect("answered");
        assert_eq!(got, id);
        assert_ne!(status, NvspStatus::SUCCESS, "{section} {len}");
        assert_eq!(guest.violations(), count);
    }
    assert!(guest.wire.lock().sent.is_empty());
}

#[test]
fn attack_pages_that_are_not_ram() {
    let mut guest = Guest::running(&[], 1500);
    let packet = SendRndisPacket {
        channel: ChannelType::DATA,
        section_index: NO_SECTION,
        section_size: 0,
    };
    let message = NvspMessage::new(MessageType::SEND_RNDIS_PKT, &packet);
    let mut count = 0;
    for pages in [
        (0, 100, &[u64::MAX][..]),
        (0, 100, &[1 << 40]),
        (4000, 200, &[DATA, u64::MAX / 4096]),
        (0, 300 << 10, &[DATA; 75]),
    ] {
        count += 1;
        let channel = guest.channels.get_mut(&0).expect("open");
        guest
            .bench
            .transmit_gpa(channel, count, message.as_bytes(), pages);
        assert_eq!(guest.completed(0), Some((count, NvspStatus::FAIL)));
        assert_eq!(guest.violations(), count);
    }
}

#[test]
fn attack_messages_out_of_order() {
    let mut guest = Guest::opened(&[]);
    let rndis = NvspMessage::new(MessageType::SEND_RNDIS_PKT, &SendRndisPacket::default());
    let buffer = NvspMessage::new(MessageType::SEND_RECV_BUF, &SendBuffer::default());
    for message in [rndis, buffer, client::request_subchannels(1)] {
        let before = guest.violations();
        let answer = guest.ask(message.as_bytes());
        assert!(!answer.is_empty(), "the guest is told");
        assert_eq!(guest.violations(), before + 1);
    }
    guest.negotiate(1500);
    let mut before = guest.violations();
    for message in [
        NvspMessage::new(MessageType::INIT, &[NvspVersion::V6_1.0; 2]),
        buffer,
        NvspMessage::new(MessageType::SEND_SEND_BUF, &SendBuffer::default()),
        NvspMessage::new(MessageType::SEND_NDIS_CONFIG, &[1514u32, 0, 0, 0]),
        NvspMessage::new(MessageType::SEND_NDIS_VER, &[6u32, 30]),
        NvspMessage::new(MessageType::REVOKE_RECV_BUF, &1u16),
        NvspMessage::new(MessageType::SEND_RECV_BUF_COMPLETE, &[1u32; 6]),
        NvspMessage::new(MessageType::SUBCHANNEL, &[2u32, 1]),
        NvspMessage::new(MessageType(99), &0u32),
        NvspMessage::new(MessageType(200), &0u32),
    ] {
        guest.ask(message.as_bytes());
        before += 1;
        assert_eq!(guest.violations(), before, "{message:?}");
    }
    guest.set_up();
    // A frame before RNDIS INITIALIZE, on a sub-channel a request, and so on.
    let mut fresh = Guest::connected(&[], 1500);
    let good = Guest::rndis(&frame([9; 6], 60), PacketInfo::NONE, 0);
    let id = fresh.send_direct(0, ChannelType::DATA, &good);
    assert_eq!(fresh.completed(0), Some((id, NvspStatus::FAIL)));
    assert_eq!(fresh.violations(), 1);
    fresh.set_up();
    fresh.open_subchannels(1);
    let id = fresh.send_direct(1, ChannelType::CONTROL, &[4; 64]);
    assert_eq!(fresh.completed(1), Some((id, NvspStatus::FAIL)));
    let id = fresh.send_direct(1, ChannelType(7), &good);
    assert_eq!(fresh.completed(1), Some((id, NvspStatus::FAIL)));
    assert_eq!(fresh.violations(), 3);
}

#[test]
fn attack_buffers_that_cannot_be() {
    let mut guest = Guest::opened(&[]);
    let init = NvspMessage::new(MessageType::INIT, &[NvspVersion::V6_1.0; 2]);
    guest.ask(init.as_bytes());
    let config = NvspMessage::new(MessageType::SEND_NDIS_CONFIG, &[9014u32, 0, 0, 0]);
    guest.ask(config.as_bytes());
    let relid = guest.relid();
    let small = guest.bench.share(relid, &[RECV]);
    let mut count = 0;
    for gpadl in [GpadlId(0), GpadlId(0xffff_ffff), small] {
        count += 1;
        let offer = SendBuffer {
            gpadl,
            id: 7,
            reserved: 0,
        };
        let message = NvspMessage::new(MessageType::SEND_RECV_BUF, &offer);
        let answer = guest.ask(message.as_bytes());
        assert_eq!(answer[4..8], NvspStatus::FAIL.0.to_le_bytes());
        assert_eq!(guest.violations(), count);
    }
    // Another one may be offered then.
    let pages: Vec<u64> = (RECV..RECV + 8).collect();
    let gpadl = guest.bench.share(relid, &pages);
    let offer = SendBuffer {
        gpadl,
        id: 7,
        reserved: 0,
    };
    let answer = guest.ask(NvspMessage::new(MessageType::SEND_RECV_BUF, &offer).as_bytes());
    assert_eq!(answer[4..8], NvspStatus::SUCCESS.0.to_le_bytes());
}

#[test]
fn attack_requests() {
    let mut guest = Guest::running(&[], 1500);
    let mut out = [0; 64];
    let len = write_oid_request(&mut out, RndisType::QUERY, 1, Oid::GEN_LINK_SPEED, &[]);
    let good = out[..len.expect("room")].to_vec();
    let patched = |offset: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let mut count = 0;
    for bytes in [
        patched(0, 0),
        patched(0, 1),
        patched(0, 0x8000_0004),
        patched(0, 0x8000_0008),
        patched(4, 0),
        patched(4, 20),
        patched(4, u32::MAX),
        patched(16, 4),
        patched(16, u32::MAX),
        vec![4],
    ] {
        count += 1;
        guest.control(&bytes);
        assert_eq!(guest.violations(), count, "{bytes:02x?}");
    }
    assert!(guest.query(Oid::GEN_LINK_SPEED).is_ok());
    // A guest that takes no answers.
    for _ in 0..200 {
        guest.control_silently(&good);
    }
    assert!(guest.violations() > count);
    assert!(guest.info().buffers.recv_free > 0);
}

#[test]
fn attack_completions() {
    let mut guest = Guest::running(&[], 1500);
    guest.open_subchannels(1);
    while guest.hear(0).is_some() {}
    guest.arrive(&[frame(MAC, 60)]);
    let (id, _) = guest.hear_rndis(0).expect("a frame");
    let mut count = guest.violations();
    guest.give_back(1, id);
    count += 1;
    assert_eq!(guest.violations(), count, "on another channel");
    guest.give_back(0, id);
    assert_eq!(guest.violations(), count);
    guest.give_back(0, id);
    count += 1;
    assert_eq!(guest.violations(), count, "twice");
    guest.give_back(0, u64::MAX);
    assert_eq!(guest.violations(), count + 1, "of nothing");
}

impl Guest {
    /// Sends a request and reads no answer.
    fn control_silently(&mut self, message: &[u8]) {
        self.send_direct(0, ChannelType::CONTROL, message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the guest sends, the host neither panics nor stops answering those that behave.
    #[test]
    fn attack_any_bytes(
        payload in proptest::collection::vec(any::<u8>(), 0..80),
        body in proptest::collection::vec(any::<u8>(), 1..300),
        kind in 0u32..140,
        control in any::<bool>(),
        patch in proptest::collection::vec((0usize..100, any::<u32>()), 0..4),
    ) {
        let mut guest = Guest::running(&[], 1500);
        let mut message = kind.to_le_bytes().to_vec();
        message.extend(payload);
        guest.notify(&message);
        while guest.hear(0).is_some() {}
        let mut bytes = Guest::rndis(&frame([9; 6], 60), PacketInfo::NONE, 0);
        bytes.extend(body);
        for (offset, value) in patch {
            bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        let channel = if control { ChannelType::CONTROL } else { ChannelType::DATA };
        guest.send_direct(0, channel, &bytes);
        while guest.hear(0).is_some() {}
        guest.info();
    }
}
