// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Malformed messages, named after the attack.

use vmbus_proto::msg::{GpadlBody, ModifyConnection};

use super::*;

fn connected() -> Bench {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    bench.connect(VmbusVersion::V6_0);
    bench
}

/// Sends `bytes`; the violation must name `text`, and a GPADL must have been refused if `answered`.
fn refused(bench: &mut Bench, bytes: &[u8], text: &str, answered: bool) {
    let before = bench.violations();
    bench.raw(bytes);
    assert_eq!(bench.violations(), before + 1, "no violation for {text:?}");
    assert!(
        bench.last_violation().contains(text),
        "{:?} lacks {text:?}",
        bench.last_violation()
    );
    let heard = bench.heard();
    match heard[..] {
        [] => assert!(!answered, "{text}: not answered"),
        [HostMessage::GpadlCreated(g)] => assert!(answered && !g.status.is_success(), "{text}"),
        _ => panic!("{text}: {heard:?}"),
    }
}

/// A GPADL header with range data given word by word.
fn header(relid: u32, id: u32, range_buflen: u16, range_count: u16, words: &[u64]) -> Vec<u8> {
    let header = GpadlHeader {
        relid: Relid(relid),
        gpadl: GpadlId(id),
        range_buflen,
        range_count,
        ..GpadlHeader::blank()
    };
    let mut bytes = header.as_bytes().to_vec();
    words
        .iter()
        .for_each(|w| bytes.extend_from_slice(&w.to_le_bytes()));
    bytes
}

fn range(len: u32, offset: u32) -> u64 {
    u64::from(len) | (u64::from(offset) << 32)
}

#[test]
fn every_truncation_of_every_message_is_refused_or_harmless() {
    let open = OpenChannel {
        relid: Relid(1),
        ..OpenChannel::blank()
    };
    let messages: Vec<Vec<u8>> = vec![
        contact(VmbusVersion::V6_0).as_bytes().to_vec(),
        open.as_bytes().to_vec(),
        gpadl_header(1, 1, &[16, 17]).as_bytes().to_vec(),
        GpadlBody::blank().as_bytes().to_vec(),
        GpadlTeardown::blank().as_bytes().to_vec(),
        CloseChannel::blank().as_bytes().to_vec(),
        RelidReleased::blank().as_bytes().to_vec(),
        ModifyChannel::blank().as_bytes().to_vec(),
    ];
    for message in messages {
        let fixed = if message[0] == 8 { 20 } else { message.len() };
        for len in 0..fixed {
            let mut bench = connected();
            refused(&mut bench, &message[..len], "", false);
        }
    }
}

#[test]
fn unknown_and_host_only_types_are_refused() {
    let mut bench = connected();
    for message_type in [
        0u32,
        1,
        2,
        4,
        6,
        10,
        12,
        15,
        17,
        20,
        23,
        24,
        26,
        28,
        30,
        99,
        u32::MAX,
    ] {
        let mut bytes = [0u8; 240];
        bytes[..4].copy_from_slice(&message_type.to_le_bytes());
        refused(&mut bench, &bytes, "", false);
    }
    for message_type in [18u32, 19, 25, 27, 29] {
        let mut bytes = [0u8; 240];
        bytes[..4].copy_from_slice(&message_type.to_le_bytes());
        refused(&mut bench, &bytes, "", false);
    }
    bench
        .server
        .on_guest_message(4, 0x8000_0000, RequestOffers::blank().as_bytes());
    assert!(bench.last_violation().contains("SynIC message type"));
}

#[test]
fn gpadl_of_addresses_that_are_not_ram() {
    let mut bench = connected();
    for pfn in [PAGES, 1 << 40, u64::MAX, u64::MAX / 4096] {
        refused(
            &mut bench,
            gpadl_header(1, 1, &[16, pfn]).as_bytes(),
            "not RAM",
            true,
        );
    }
    assert_eq!(bench.server.gpadl_count(), 0);
}

#[test]
fn gpadl_whose_counts_lie() {
    let mut bench = connected();
    let cases: [(Vec<u8>, &str); 9] = [
        (header(1, 1, 0, 0, &[]), "without ranges"),
        (header(1, 1, 16, 0, &[range(4096, 0), 16]), "without ranges"),
        (header(1, 1, 8, 1, &[range(4096, 0)]), "bytes of range data"),
        (
            header(1, 1, 12, 1, &[range(4096, 0), 16]),
            "bytes of range data",
        ),
        (
            header(1, 1, 16, 200, &[range(4096, 0), 16]),
            "bytes of range data",
        ),
        (
            header(1, 1, 16, 1, &[range(8192, 0), 16]),
            "end within range",
        ),
        (
            header(1, 1, 16, 1, &[range(u32::MAX, 4095), 16]),
            "end within range",
        ),
        (header(1, 1, 16, 1, &[range(0, 0), 16]), "no bytes"),
        (
            header(1, 1, 16, 1, &[range(4096, 4096), 16]),
            "of its first page",
        ),
    ];
    for (bytes, text) in cases {
        refused(&mut bench, &bytes, text, true);
    }
    // The second of two ranges is short.
    refused(
        &mut bench,
        &header(1, 1, 32, 2, &[range(4096, 0), 16, range(8192, 0), 17]),
        "end within range",
        true,
    );
    assert_eq!(bench.server.gpadl_count(), 0);
}

#[test]
fn gpadl_for_a_channel_that_is_not_offered() {
    let mut bench = connected();
    for relid in [0, 4, 2047, 2048, u32::MAX] {
        refused(
            &mut bench,
            gpadl_header(relid, 1, &[16]).as_bytes(),
            "not offered",
            true,
        );
    }
}

#[test]
fn gpadl_id_used_twice_and_across_channels() {
    let mut bench = connected();
    bench.gpadl(1, 5, 2);
    bench.heard();
    refused(
        &mut bench,
        gpadl_header(1, 5, &[30]).as_bytes(),
        "in use",
        true,
    );
    refused(
        &mut bench,
        gpadl_header(2, 5, &[30]).as_bytes(),
        "in use",
        true,
    );
    let gpadl = bench
        .server
        .gpadl(OfferId(0), GpadlId(5))
        .expect("unharmed");
    assert_eq!(gpadl[0].pfns, [16, 17]);
    assert!(bench.server.gpadl(OfferId(1), GpadlId(5)).is_none());
}

#[test]
fn gpadl_body_out_of_the_blue_or_after_the_end() {
    let mut bench = connected();
    let body = |id: u32, words: &[u64]| {
        let mut bytes = GpadlBody {
            gpadl: GpadlId(id),
            ..GpadlBody::blank()
        }
        .as_bytes()
        .to_vec();
        words
            .iter()
            .for_each(|w| bytes.extend_from_slice(&w.to_le_bytes()));
        bytes
    };
    refused(&mut bench, &body(5, &[16]), "no header", false);
    bench.raw(&header(1, 5, 24, 1, &[range(8192, 0), 16]));
    assert!(bench.heard().is_empty());
    bench.raw(&body(5, &[17]));
    assert!(matches!(bench.heard()[..], [HostMessage::GpadlCreated(g)] if g.status.is_success()));
    refused(&mut bench, &body(5, &[18]), "after the last", false);
    // A body with nothing in it would let a guest keep a GPADL unfinished for ever.
    bench.raw(&header(1, 6, 24, 1, &[range(8192, 0), 16]));
    refused(&mut bench, &body(6, &[]), "without range data", true);
    refused(&mut bench, &body(6, &[17]), "no header", false);
}

#[test]
fn gpadl_that_is_never_finished_cannot_be_used_or_torn_down() {
    let mut bench = connected();
    bench.raw(&header(1, 5, 72, 1, &[range(8 * 4096, 0), 16]));
    bench.open(1, 5, 4);
    assert!(
        matches!(bench.heard()[..], [HostMessage::OpenChannelResult(o)] if !o.status.is_success())
    );
    bench.teardown(1, 5);
    assert!(bench.heard().is_empty());
    assert_eq!(bench.violations(), 2);
}

#[test]
fn padding_after_a_gpadl_is_ignored() {
    let mut bench = connected();
    let mut bytes = gpadl_header(1, 5, &[16, 17]).as_bytes().to_vec();
    bytes.resize(240, 0xff);
    bench.raw(&bytes);
    assert!(matches!(bench.heard()[..], [HostMessage::GpadlCreated(g)] if g.status.is_success()));
    assert_eq!(bench.violations(), 0);
}

#[test]
fn hoarding_gpadls_is_bounded() {
    let mut bench = connected();
    for id in 0..5000 {
        bench.raw(&header(1, id, 65528, 1, &[range(8190 * 4096, 0), 16]));
    }
    assert!(bench.server.gpadl_count() <= 4096);
    assert!(bench.server.gpadl_pages() <= 1 << 20);
    assert!(bench.last_violation().contains("more GPADLs"));
}

#[test]
fn teardown_of_what_is_not_there_or_not_yours() {
    let mut bench = connected();
    bench.gpadl(1, 5, 2);
    bench.heard();
    let down = |relid: u32, id: u32| GpadlTeardown {
        relid: Relid(relid),
        gpadl: GpadlId(id),
        ..GpadlTeardown::blank()
    };
    refused(&mut bench, down(1, 6).as_bytes(), "does not exist", false);
    refused(
        &mut bench,
        down(2, 5).as_bytes(),
        "belongs to relid 1",
        false,
    );
    refused(&mut bench, down(77, 5).as_bytes(), "not offered", false);
    bench.teardown(1, 5);
    bench.heard();
    refused(&mut bench, down(1, 5).as_bytes(), "does not exist", false);
}

#[test]
fn open_with_a_ring_that_is_none() {
    let mut bench = connected();
    bench.gpadl(1, 5, 8);
    bench.gpadl(2, 6, 8);
    bench.gpadl(1, 7, 3);
    // Two ranges; an offset in the first page; no whole pages.
    bench.raw(&header(
        1,
        8,
        32,
        2,
        &[range(4096, 0), 16, range(4096, 0), 17],
    ));
    bench.raw(&header(
        1,
        9,
        40,
        1,
        &[range(4 * 4096 - 8, 8), 16, 17, 18, 19],
    ));
    bench.raw(&header(
        1,
        10,
        40,
        1,
        &[range(4 * 4096 - 8, 0), 16, 17, 18, 19],
    ));
    bench.heard();
    for (gpadl, offset, text) in [
        (99, 4, "not a live GPADL"),
        (6, 4, "not a live GPADL"),
        (5, 0, "ring offset 0"),
        (5, 1, "ring offset 1"),
        (5, 7, "ring offset 7"),
        (5, 8, "ring offset 8"),
        (5, u32::MAX, "ring offset"),
        (7, 2, "ring offset 2"),
        (8, 1, "2 ranges"),
        (9, 2, "whole pages"),
        (10, 2, "whole pages"),
    ] {
        let before = bench.violations();
        bench.open(1, gpadl, offset);
        assert_eq!(bench.violations(), before + 1, "{text}");
        assert!(
            bench.last_violation().contains(text),
            "{:?} lacks {text:?}",
            bench.last_violation()
        );
        assert!(
            matches!(bench.heard()[..], [HostMessage::OpenChannelResult(o)] if !o.status.is_success())
        );
    }
    bench.open(1, 5, 6);
    assert!(
        matches!(bench.heard()[..], [HostMessage::OpenChannelResult(o)] if o.status.is_success())
    );
}

#[test]
fn interrupts_for_processors_that_do_not_exist() {
    let mut bench = connected();
    bench.gpadl(1, 5, 8);
    bench.heard();
    let open = |target_vp| OpenChannel {
        relid: Relid(1),
        ring_gpadl: GpadlId(5),
        downstream_page_offset: 4,
        target_vp,
        ..OpenChannel::blank()
    };
    bench.send(open(VPS));
    assert!(
        matches!(bench.heard()[..], [HostMessage::OpenChannelResult(o)] if !o.status.is_success())
    );
    bench.send(open(u32::MAX));
    assert!(
        matches!(bench.heard()[..], [HostMessage::OpenChannelResult(o)] if o.status.is_success())
    );
    assert_eq!(bench.violations(), 1);
    // Interrupts that were turned off at the open stay off, and cannot be turned off later.
    bench.modify(1, 0);
    bench.modify(1, u32::MAX);
    bench.modify(1, VPS);
    let heard = bench.heard();
    assert_eq!(heard.len(), 3);
    assert!(heard
        .iter()
        .all(|m| matches!(m, HostMessage::ModifyChannelResponse(r) if !r.status.is_success())));
    assert_eq!(bench.violations(), 4);
}

#[test]
fn contact_for_another_world() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    let target = |sint, vtl, features| {
        TargetInfo {
            sint,
            vtl,
            reserved: [0; 2],
            features,
        }
        .to_u64()
    };
    let none = FeatureFlags::empty();
    for (m, text) in [
        (
            InitiateContact {
                target_vp: VPS,
                ..contact(VmbusVersion::V6_0)
            },
            "target VP",
        ),
        (
            InitiateContact {
                interrupt_page_or_target: target(2, 2, none),
                ..contact(VmbusVersion::V6_0)
            },
            "VTL 2",
        ),
        (
            InitiateContact {
                interrupt_page_or_target: target(5, 0, none),
                ..contact(VmbusVersion::V6_0)
            },
            "SINT 5",
        ),
        (
            InitiateContact {
                interrupt_page_or_target: target(2, 0, FeatureFlags::CLIENT_ID),
                ..contact(VmbusVersion::V6_0)
            },
            "client id",
        ),
    ] {
        refused(&mut bench, m.as_bytes(), text, false);
    }
    for (p1, p2) in [
        (0x2000, 0),
        (0, 0x3000),
        (0x2001, 0x3000),
        (0x2000, PAGES * 4096),
        (u64::MAX - 4095, 0x3000),
    ] {
        let before = bench.violations();
        bench.send(InitiateContact {
            monitor_page1: p1,
            monitor_page2: p2,
            ..contact(VmbusVersion::V6_0)
        });
        assert_eq!(bench.violations(), before + 1);
        assert!(
            matches!(bench.heard()[..], [HostMessage::VersionResponse(v)] if v.base.connection_state.0 != 0)
        );
        assert_eq!(bench.server.version(), None);
    }
}

#[test]
fn a_refused_contact_leaves_the_connection_alone_if_it_was_not_meant_for_us() {
    let mut bench = connected();
    let target = TargetInfo {
        sint: 2,
        vtl: 1,
        reserved: [0; 2],
        features: FeatureFlags::empty(),
    }
    .to_u64();
    bench.send(InitiateContact {
        interrupt_page_or_target: target,
        ..contact(VmbusVersion::V6_0)
    });
    assert_eq!(bench.server.version(), Some(VmbusVersion::V6_0));
    assert_eq!(bench.violations(), 1);
}

#[test]
fn modify_connection_must_name_both_pages_or_none() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    let mut m = contact(VmbusVersion::V6_0);
    m.interrupt_page_or_target = TargetInfo {
        sint: 2,
        vtl: 0,
        reserved: [0; 2],
        features: FeatureFlags::MODIFY_CONNECTION,
    }
    .to_u64();
    bench.send(m);
    bench.heard();
    for (p1, p2, ok) in [
        (0x4000, 0x5000, true),
        (0x4000, 0, false),
        (0, 0, true),
        (0x4000, 0x5008, false),
    ] {
        bench.send(ModifyConnection {
            monitor_page1: p1,
            monitor_page2: p2,
            ..ModifyConnection::blank()
        });
        let heard = bench.heard();
        assert!(
            matches!(heard[..], [HostMessage::ModifyConnectionResponse(s)] if (s.0 == 0) == ok),
            "{heard:?}"
        );
    }
    assert_eq!(bench.server.monitor_pages(), None);
    assert_eq!(bench.violations(), 2);
}

#[test]
fn the_violation_log_is_bounded() {
    let mut bench = Bench::new(VmbusVersion::V6_0);
    for _ in 0..1000 {
        bench.close(1);
    }
    assert_eq!(bench.violations(), 1000);
    assert_eq!(bench.server.violations().texts().count(), 64);
}
