// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Frames both ways: batches, room, order, and injected faults.

use hvctl::{NetDirection, NetField, NetMessage, NetPart};
use vmbus_proto::net::nvsp::NvspStatus;

use super::*;

#[test]
fn frames_come_in_batches_and_their_sections_go_back() {
    let mut guest = Guest::running(&[], 1500);
    let before = guest.info().buffers.recv_free;
    let many: Vec<Vec<u8>> = (0..100).map(|n| frame(MAC, 60 + n)).collect();
    guest.arrive(&many);
    let (id, messages) = guest.hear_rndis(0).expect("frames");
    assert_eq!(messages.len(), 100, "in one packet");
    assert_eq!(guest.info().buffers.recv_free, before - 100);
    assert_eq!(guest.info().queues[0].rx_held, 100);
    guest.give_back(0, id);
    let info = guest.info();
    assert_eq!(info.buffers.recv_free, before);
    assert_eq!(
        (info.queues[0].rx_packets, info.queues[0].rx_messages),
        (100, 1)
    );
    guest.arrive(&many);
    let got: Vec<Vec<u8>> = guest.frames(0).into_iter().map(|(f, _)| f).collect();
    assert_eq!(got, many, "whole and in order");
}

#[test]
fn a_guest_that_gives_nothing_back_gets_no_more_and_loses_nothing_at_once() {
    let mut guest = Guest::running(&[("recv-sections", "20")], 1500);
    let many: Vec<Vec<u8>> = (0..50).map(|n| frame(MAC, 60 + n)).collect();
    guest.arrive(&many);
    let (first, messages) = guest.hear_rndis(0).expect("frames");
    assert_eq!(messages.len(), 10, "half are kept for answers");
    assert!(guest.hear_rndis(0).is_none());
    let info = guest.info();
    assert_eq!(
        (info.queues[0].rx_held, info.queues[0].rx_waiting),
        (10, 40)
    );
    assert!(info.counters.rx_starved > 0);
    // Requests are still answered.
    assert!(guest.query(Oid::GEN_LINK_SPEED).is_ok());
    guest.give_back(0, first);
    assert_eq!(guest.frames(0).len(), 40);
    assert_eq!(guest.info().counters.rx_no_buffer, 0);
    // For too long: then they are thrown away, and counted.
    guest.arrive(&many);
    let (id, _) = guest.hear_rndis(0).expect("frames");
    guest.bench.pass(2000, false);
    guest.arrive(&many);
    assert_eq!(guest.info().counters.rx_no_buffer, 40 + 50);
    guest.give_back(0, id);
    guest.arrive(&many[..5]);
    assert_eq!(guest.frames(0).len(), 5, "and then it goes on");
    assert_eq!(guest.violations(), 0);
}

#[test]
fn the_back_end_is_left_alone_while_the_guest_takes_nothing() {
    let mut guest = Guest::running(&[("recv-sections", "20")], 1500);
    let many: Vec<Vec<u8>> = (0..2000).map(|_| frame(MAC, 60)).collect();
    guest.arrive(&many);
    let left = guest.wire.lock().incoming.len();
    assert!(left > 1000, "{left}");
    assert_eq!(guest.frames(0).len(), 2000);
    assert_eq!(guest.info().counters.rx_no_buffer, 0);
}

#[test]
fn a_full_ring_holds_frames_back_and_goes_on_when_there_is_room() {
    let mut guest = Guest::running(&[], 1500);
    // Each packet takes 80 bytes of a ring of two pages.
    for n in 0..500 {
        guest.arrive(&[frame(MAC, 60 + n)]);
        if guest.info().counters.rx_ring_full > 0 {
            break;
        }
    }
    assert!(guest.info().counters.rx_ring_full > 0);
    let waiting = guest.info().queues[0].rx_waiting;
    assert!(waiting > 0);
    let got = guest.frames(0).len() as u64;
    assert_eq!(got, guest.info().queues[0].rx_packets);
    assert_eq!(guest.violations(), 0);
    assert_eq!(guest.bench.violations().unneeded_signals, 0);
}

#[test]
fn frames_that_are_too_long_or_come_too_early_are_counted() {
    let mut guest = Guest::connected(&[], 1500);
    guest.arrive(&[frame(MAC, 60)]);
    guest.set_up();
    guest.arrive(&[frame(MAC, 60)]);
    assert_eq!(guest.info().counters.rx_not_running, 2);
    guest.set_filter(PacketFilter::DIRECTED);
    let mut tagged = frame(MAC, 1518);
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    guest.arrive(&[
        frame(MAC, 1514),
        frame(MAC, 1515),
        tagged,
        vec![0; 5],
        Vec::new(),
    ]);
    assert_eq!(guest.frames(0).len(), 2);
    let counters = guest.info().counters;
    assert_eq!((counters.rx_too_long, counters.rx_filtered), (1, 2));
}

#[test]
fn frames_go_out_by_section_by_page_and_by_both() {
    let mut guest = Guest::running(&[], 1500);
    let (a, b) = (frame([9; 6], 60), frame([9; 6], 1514));
    let one = Guest::rndis(&a, PacketInfo::NONE, 0);
    let id = guest.send_section(0, 3, &one);
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    let two = Guest::rndis(&b, PacketInfo::NONE, 0);
    let id = guest.send_direct(0, ChannelType::DATA, &two);
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    // Several, padded to eight bytes, as Linux batches them.
    let mut batch = Vec::new();
    for frame in [&a, &b, &a] {
        let len = Guest::rndis(frame, PacketInfo::NONE, 0).len();
        let padding = (len.next_multiple_of(8) - len) as u32;
        batch.extend(Guest::rndis(frame, PacketInfo::NONE, padding));
    }
    let id = guest.send_section(0, 5, &batch);
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    let sent = std::mem::take(&mut guest.wire.lock().sent);
    assert_eq!(
        sent,
        [a.clone(), b.clone(), a.clone(), b.clone(), a.clone()]
    );
    // The last one's headers in a section, its frame in pages.
    let start = two.len() - b.len();
    let at = SEND * 4096;
    let mut section = batch.clone();
    section.extend(&two[..start]);
    guest.bench.ram().write(at, &section).expect("RAM");
    guest.bench.ram().write(DATA * 4096, &b).expect("RAM");
    let packet = SendRndisPacket {
        channel: ChannelType::DATA,
        section_index: 0,
        section_size: section.len() as u32,
    };
    let message = NvspMessage::new(MessageType::SEND_RNDIS_PKT, &packet);
    let channel = guest.channels.get_mut(&0).expect("open");
    let pages = (0, b.len() as u32, &[DATA][..]);
    guest
        .bench
        .transmit_gpa(channel, 77, message.as_bytes(), pages);
    assert_eq!(guest.completed(0), Some((77, NvspStatus::SUCCESS)));
    assert_eq!(guest.wire.lock().sent, [a.clone(), b.clone(), a, b]);
    let info = guest.info();
    assert_eq!(
        (info.queues[0].tx_packets, info.counters.tx_sections),
        (9, 3)
    );
    assert_eq!(guest.violations(), 0);
}

#[test]
fn a_full_back_end_holds_completions_and_then_the_ring_back() {
    let mut guest = Guest::running(&[], 65521);
    guest.wire.lock().full = true;
    let big = Guest::rndis(&frame([9; 6], 60_000), PacketInfo::NONE, 0);
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(guest.send_direct(0, ChannelType::DATA, &big));
    }
    assert_eq!(guest.completed(0), None);
    let taken = guest.info().queues[0].tx_packets;
    assert!(
        (15..25).contains(&taken),
        "{taken} taken, then the ring is left alone"
    );
    guest.wire.lock().full = false;
    guest.wake();
    guest.bench.run();
    assert_eq!(guest.wire.lock().sent.len(), 30);
    for id in ids {
        assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    }
    assert_eq!(guest.bench.violations().unneeded_signals, 0);
    // Full for too long: frames are lost, as at a switch, and the guest goes on.
    guest.wire.lock().full = true;
    let id = guest.send_direct(0, ChannelType::DATA, &big);
    guest.bench.pass(1000, false);
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    assert_eq!(guest.info().counters.tx_dropped, 1);
}

#[test]
fn frames_on_a_sub_channel_are_completed_there() {
    let mut guest = Guest::running(&[], 1500);
    guest.open_subchannels(2);
    let message = Guest::rndis(&frame([9; 6], 60), PacketInfo::NONE, 0);
    let id = guest.send_section(2, 0, &message);
    assert_eq!(guest.completed(2), Some((id, NvspStatus::SUCCESS)));
    let info = guest.info();
    let packets: Vec<u64> = info.queues.iter().map(|q| q.tx_packets).collect();
    assert_eq!(packets, [0, 0, 1]);
    assert_eq!(guest.violations(), 0);
}

#[test]
fn faults_hit_frames() {
    let mut guest = Guest::running(&[], 1500);
    let (a, b, c) = (frame(MAC, 60), frame(MAC, 61), frame(MAC, 62));
    let all = [a.clone(), b.clone(), c.clone()];
    let get = |guest: &mut Guest| -> Vec<Vec<u8>> {
        guest.arrive(&all);
        guest.frames(0).into_iter().map(|(f, _)| f).collect()
    };
    guest.fault(1, NetFault::Drop);
    assert_eq!(get(&mut guest), [b.clone(), c.clone()]);
    guest.fault(1, NetFault::Duplicate);
    assert_eq!(
        get(&mut guest),
        [a.clone(), a.clone(), b.clone(), c.clone()]
    );
    guest.fault(1, NetFault::Corrupt);
    let got = get(&mut guest);
    assert_eq!(got[0][..59], a[..59]);
    assert_eq!(got[0][59], !a[59]);
    guest.fault(1, NetFault::Delay { ms: 50 });
    assert_eq!(get(&mut guest), [b.clone(), c.clone()]);
    guest.bench.pass(60, false);
    assert_eq!(guest.frames(0).len(), 1);
    guest.fault(1, NetFault::Reorder { window: 3 });
    assert_eq!(get(&mut guest), [c.clone(), b.clone(), a.clone()]);
    guest.fault(1, NetFault::Clear);
    assert_eq!(get(&mut guest), all);
    // From the guest.
    let cmd = Command::NetFault {
        device: "net0".into(),
        direction: Some(NetDirection::Tx),
        queue: None,
        count: 1,
        skip: 0,
        fault: NetFault::Drop,
    };
    guest.bench.control(cmd).expect("a fault");
    assert_eq!(get(&mut guest), all, "not to the guest");
    let message = Guest::rndis(&frame([9; 6], 60), PacketInfo::NONE, 0);
    for _ in 0..2 {
        let id = guest.send_section(0, 0, &message);
        assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    }
    assert_eq!(guest.wire.lock().sent.len(), 1);
    assert!(guest.info().counters.injected >= 8);
}

#[test]
fn a_stalled_nic_does_nothing_and_goes_on() {
    let mut guest = Guest::running(&[], 1500);
    guest.fault(1, NetFault::Stall { ms: 100 });
    guest.arrive(&[frame(MAC, 60)]);
    let message = Guest::rndis(&frame([9; 6], 60), PacketInfo::NONE, 0);
    let id = guest.send_section(0, 0, &message);
    assert_eq!((guest.hear(0), guest.completed(0)), (None, None));
    guest.bench.pass(120, false);
    assert_eq!(guest.frames(0).len(), 1);
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    // A long one loses nothing.
    let inject = Command::NetInject {
        device: "net0".into(),
        hex: "ff".repeat(60),
        queue: None,
        ppi: None,
    };
    guest.fault(1, NetFault::Stall { ms: 3000 });
    for _ in 0..3 {
        guest.bench.control(inject.clone()).expect("done");
    }
    guest.bench.pass(2900, false);
    assert_eq!(guest.frames(0).len(), 0);
    guest.bench.pass(200, false);
    assert_eq!(guest.frames(0).len(), 3);
    assert_eq!(guest.info().counters.rx_no_buffer, 0);
    assert_eq!(guest.bench.violations().unneeded_signals, 0);
}

#[test]
fn a_fault_waits_for_a_message_that_has_what_it_changes() {
    let mut guest = Guest::running(&[], 1500);
    guest.fault(
        1,
        NetFault::Cut {
            message: NetMessage::Data,
            part: NetPart::Rndis,
            len: 300,
        },
    );
    for (len, hits) in [(60, 0), (1000, 1)] {
        guest.arrive(&[frame(MAC, len)]);
        let (id, messages) = guest.hear_rndis(0).expect("a frame");
        assert_eq!(messages[0].len() == 300, hits == 1, "a frame of {len}");
        assert_eq!(guest.info().counters.injected, hits);
        guest.give_back(0, id);
    }
    // Of completions none has ranges.
    let range = NetField::named("range-length").expect("a field");
    guest.fault(1, range.patch(NetMessage::SendCompletion, 0));
    guest.send_section(0, 3, &Guest::rndis(&frame([9; 6], 60), PacketInfo::NONE, 0));
    assert!(guest.completed(0).is_some());
    assert_eq!(guest.info().counters.injected, 1);
}

#[test]
fn any_field_of_a_message_can_be_overwritten() {
    let mut guest = Guest::running(&[], 1500);
    let field = |name| NetField::named(name).expect("a field");
    guest.fault(1, field("data-length").patch(NetMessage::Data, 0x1234_5678));
    guest.arrive(&[frame(MAC, 60)]);
    let (id, messages) = guest.hear_rndis(0).expect("a frame");
    assert_eq!(messages[0][12..16], 0x1234_5678u32.to_le_bytes());
    guest.give_back(0, id);
    guest.fault(1, field("range-count").patch(NetMessage::Data, 1));
    guest.arrive(&[frame(MAC, 60), frame(MAC, 61)]);
    let (id, messages) = guest.hear_rndis(0).expect("a frame");
    assert_eq!(messages.len(), 1, "of two");
    guest.give_back(0, id);
    guest.fault(1, field("transaction-id").patch(NetMessage::Data, 0xdead));
    guest.arrive(&[frame(MAC, 60)]);
    let (id, _) = guest.hear_rndis(0).expect("a frame");
    assert_eq!(id, 0xdead);
    let free = guest.info().buffers.recv_free;
    guest.give_back(0, id);
    assert_eq!(
        guest.info().buffers.recv_free,
        free + 1,
        "and is known again"
    );
    guest.fault(1, field("section-index").patch(NetMessage::Data, 7));
    guest.arrive(&[frame(MAC, 60)]);
    let heard = guest.hear(0).expect("a packet");
    assert_eq!(heard.payload[8..12], [7, 0, 0, 0]);
    guest.give_back(0, heard.id);
    guest.fault(
        1,
        NetFault::Cut {
            message: NetMessage::Data,
            part: NetPart::Rndis,
            len: 7,
        },
    );
    guest.arrive(&[frame(MAC, 60)]);
    let (id, messages) = guest.hear_rndis(0).expect("a packet");
    assert_eq!(messages[0].len(), 7);
    guest.give_back(0, id);
    guest.fault(
        1,
        NetFault::Repeat {
            message: NetMessage::Data,
        },
    );
    guest.arrive(&[frame(MAC, 60)]);
    assert_eq!(guest.frames(0).len(), 2);
    guest.fault(
        1,
        NetFault::Lose {
            message: NetMessage::Data,
        },
    );
    let free = guest.info().buffers.recv_free;
    guest.arrive(&[frame(MAC, 60)]);
    assert_eq!(
        (guest.frames(0).len(), guest.info().buffers.recv_free),
        (0, free)
    );
    assert_eq!(guest.violations(), 0, "{:?}", guest.bench.violations());
}

#[test]
fn messages_come_early_on_request() {
    let mut guest = Guest::opened(&[]);
    let primary = guest.channels.remove(&0).expect("open");
    guest.bench.close(&primary);
    for message in [
        NetMessage::Data,
        NetMessage::SendTable,
        NetMessage::InitCompletion,
    ] {
        guest.fault(1, NetFault::Early { message });
    }
    let primary = guest.bench.open("net", 4);
    guest.channels.insert(0, primary);
    let kinds: Vec<PacketType> =
        std::iter::from_fn(|| guest.hear(0).map(|heard| heard.packet_type)).collect();
    assert_eq!(
        kinds,
        [
            PacketType::DATA_USING_XFER_PAGES,
            PacketType::COMPLETION,
            PacketType::DATA_INBAND
        ]
    );
}

#[test]
fn an_injected_frame_comes_as_it_is() {
    let mut guest = Guest::running(&[], 1500);
    let inject = |hex: &str, queue, ppi: Option<&str>| Command::NetInject {
        device: "net0".into(),
        hex: hex.into(),
        queue,
        ppi: ppi.map(str::to_owned),
    };
    let hex = "ff".repeat(60);
    // One PPI of 16 bytes: VLAN 5.
    let ppi = "10000000 06000000 0c000000 50000000";
    guest
        .bench
        .control(inject(&hex, None, Some(ppi)))
        .expect("done");
    let frames = guest.frames(0);
    assert_eq!(frames[0].0, [0xff; 60]);
    assert_eq!(frames[0].1.vlan().map(|v| v.id()), Some(5));
    for bad in [
        inject("00", None, None),
        inject("0", None, None),
        inject(&hex, Some(1), None),
        inject(&"00".repeat(1700), None, None),
    ] {
        assert!(guest.bench.control(bad).is_err());
    }
}

#[test]
fn one_signal_is_enough_for_many_frames() {
    let mut guest = Guest::running(&[], 1500);
    while guest.hear(0).is_some() {}
    let before = guest.bench.control(Command::Counters).expect("counters");
    let many: Vec<Vec<u8>> = (0..800).map(|_| frame(MAC, 60)).collect();
    guest.arrive(&many);
    let after = guest.bench.control(Command::Counters).expect("counters");
    let count = |v: &serde_json::Value| v["channels"]["net0"]["interrupts"].as_u64();
    assert_eq!(count(&after), count(&before).map(|n| n + 1));
    assert!(guest.bench.is_signalled(&guest.channels[&0]));
}
