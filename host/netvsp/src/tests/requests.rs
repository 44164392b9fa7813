// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The handshake, and what the RNDIS device answers.

use hvctl::{NetLink, NetState};
use vmbus_proto::net::nvsp::{NvspStatus, StatusBody};
use vmbus_proto::net::rndis::{network_address_parameter, LinkEvent, RndisStatus};
use vmbus_proto::net::rss::{write_parameters, HashInfo, RssFlags, DEFAULT_KEY};

use super::*;

#[test]
fn every_version_is_agreed_on_and_leads_to_frames() {
    for (name, version) in [
        ("1", NvspVersion::V1),
        ("2", NvspVersion::V2),
        ("4", NvspVersion::V4),
        ("5", NvspVersion::V5),
        ("6.0", NvspVersion::V6),
        ("6.1", NvspVersion::V6_1),
    ] {
        let mut guest = Guest::running(&[("max", name)], 9000);
        let info = guest.info();
        assert_eq!(guest.agreed().version, version);
        assert_eq!(info.nvsp.as_deref(), Some(name));
        assert_eq!(info.state, NetState::Running);
        // Version 1 has no NDIS configuration.
        let mtu = if version == NvspVersion::V1 {
            1500
        } else {
            9000
        };
        assert_eq!(
            (info.mtu, guest.agreed().receive.size >= mtu + 14),
            (mtu, true)
        );
        let device = guest.device.expect("set up");
        assert_eq!((device.mac, device.max_mtu), (MAC, Some(mtu)));
        assert!(device.link_up);
        assert_eq!(guest.violations(), 0, "{:?}", guest.bench.violations());
        guest.arrive(&[frame(MAC, 60)]);
        assert_eq!(guest.frames(0).len(), 1, "{name}");
    }
}

#[test]
fn an_mtu_beyond_the_limit_gives_the_default() {
    let mut guest = Guest::connected(&[("mtu", "9000")], 9001);
    assert_eq!(guest.info().mtu, 1500);
    assert_eq!(guest.agreed().receive.size, 1728, "as on Hyper-V");
    let mut guest = Guest::connected(&[], 65521);
    assert_eq!(guest.info().mtu, 65521);
}

#[test]
fn the_handshake_can_be_gone_through_again() {
    let mut guest = Guest::running(&[], 1500);
    guest.open_subchannels(3);
    let relid = guest.relid();
    for index in [3, 2, 1, 0] {
        let channel = guest.channels.remove(&index).expect("open");
        guest.bench.close(&channel);
    }
    for index in 1..=3 {
        let relid = guest.bench.relid("net", index).expect("offered");
        guest.bench.release(relid.0);
    }
    for gpadl in [guest.recv.take(), guest.send.take()] {
        guest.bench.unshare(relid, gpadl.expect("shared"));
    }
    assert_eq!(guest.info().state, NetState::Closed);
    let primary = guest.bench.open_relid(relid, 4);
    guest.channels.insert(0, primary);
    guest.negotiate(9000);
    guest.set_up();
    guest.set_filter(PacketFilter::DIRECTED);
    assert_eq!(guest.info().mtu, 9000);
    guest.arrive(&[frame(MAC, 9000)]);
    assert_eq!(guest.frames(0).len(), 1);
    assert_eq!(guest.violations(), 0, "{:?}", guest.bench.violations());
}

#[test]
fn buffers_are_revoked_and_then_left_alone() {
    let mut guest = Guest::running(&[], 1500);
    let relid = guest.relid();
    guest.notify(client::revoke_receive_buffer().as_bytes());
    guest.notify(client::revoke_send_buffer().as_bytes());
    assert_eq!(guest.info().buffers, hvctl::NetBuffers::default());
    guest.arrive(&[frame(MAC, 60)]);
    assert!(guest.frames(0).is_empty());
    assert_eq!(guest.info().counters.rx_not_running, 1);
    let (recv, send) = (guest.recv.take().expect("shared"), guest.send.take());
    guest.bench.unshare(relid, recv);
    guest.bench.unshare(relid, send.expect("shared"));
    assert_eq!(guest.violations(), 0);
}

#[test]
fn a_buffer_that_is_torn_down_is_left_alone() {
    let mut guest = Guest::running(&[], 1500);
    let (relid, recv) = (guest.relid(), guest.recv.take().expect("shared"));
    guest.bench.unshare(relid, recv);
    assert_eq!(guest.violations(), 1);
    guest.arrive(&[frame(MAC, 60)]);
    assert!(guest.frames(0).is_empty());
    let id = guest.send_section(0, 0, &Guest::rndis(&frame(MAC, 60), PacketInfo::NONE, 0));
    assert_eq!(guest.completed(0), Some((id, NvspStatus::FAIL)));
}

#[test]
fn queries_are_answered_as_hyper_v_does() {
    let mut guest = Guest::running(&[("name", "blue"), ("speed", "40000")], 1500);
    let word = |n: u32| Ok(n.to_le_bytes().to_vec());
    for (oid, value) in [
        (Oid::GEN_MAXIMUM_FRAME_SIZE, word(1500)),
        (Oid::GEN_MAXIMUM_TOTAL_SIZE, word(1514)),
        (Oid::GEN_LINK_SPEED, word(400_000_000)),
        (Oid::GEN_MEDIA_CONNECT_STATUS, word(0)),
        (Oid::GEN_CURRENT_PACKET_FILTER, word(0xd)),
        (Oid::IEEE_802_3_CURRENT_ADDRESS, Ok(MAC.to_vec())),
        (Oid(0x7777_7777), Err(RndisStatus::NOT_SUPPORTED.0)),
    ] {
        assert_eq!(guest.query(oid), value, "{oid:?}");
    }
    let name = guest.query(Oid::GEN_FRIENDLY_NAME).expect("a name");
    assert_eq!((name.len(), &name[..9]), (512, &b"b\0l\0u\0e\0\0"[..]));
    let list = guest.query(Oid::GEN_SUPPORTED_LIST).expect("a list");
    for oid in list.chunks_exact(4) {
        let oid = Oid(u32::from_le_bytes(oid.try_into().expect("four bytes")));
        let settable = [
            Oid::GEN_NETWORK_LAYER_ADDRESSES,
            Oid::GEN_RNDIS_CONFIG_PARAMETER,
            Oid::GEN_LINK_PARAMETERS,
            Oid::TCP_OFFLOAD_PARAMETERS,
            Oid::GEN_RECEIVE_SCALE_PARAMETERS,
        ];
        assert!(
            guest.query(oid).is_ok() != settable.contains(&oid),
            "{oid:?}"
        );
    }
    let info = guest.info();
    assert!(info.counters.requests > 50 && info.counters.requests_refused >= 1);
}

#[test]
fn rss_is_set_kept_and_turned_off() {
    let mut guest = Guest::running(&[("table", "64"), ("subchannels", "3")], 1500);
    let device = guest.device.expect("set up");
    let rss = device.rss.expect("RSS");
    assert_eq!((rss.queues, rss.table_size), (4, 64));
    let mut set = |flags, entries: &[u32], hash| {
        let mut out = [0; 2048];
        let table = entries.iter().copied();
        let len = write_parameters(&mut out, flags, hash, table, &DEFAULT_KEY).expect("room");
        let status = guest.set_oid(Oid::GEN_RECEIVE_SCALE_PARAMETERS, &out[..len]);
        (status, guest.info().rss)
    };
    let linux = HashInfo::linux();
    let (status, rss) = set(RssFlags::empty(), &[0, 1, 2, 3], linux);
    assert_eq!((status, rss.expect("on").table), (0, vec![0, 1, 2, 3]));
    let (status, _) = set(RssFlags::empty(), &[0, 4], linux);
    assert_ne!(status, 0, "a channel that cannot be");
    let (status, _) = set(RssFlags::empty(), &[0; 65], linux);
    assert_ne!(status, 0, "a larger table than there is");
    let (status, rss) = set(RssFlags::TABLE_UNCHANGED, &[9], linux);
    assert_eq!((status, rss.expect("on").table), (0, vec![0, 1, 2, 3]));
    assert_eq!(set(RssFlags::DISABLE, &[0], linux), (0, None));
    let (status, rss) = set(RssFlags::empty(), &[3], HashInfo::empty());
    assert_eq!((status, rss), (0, None), "no hash function");
}

#[test]
fn offloads_are_turned_on_as_far_as_they_are_offered() {
    let all = Guest::running(&[], 1500).info();
    for name in [
        "tcp4-tx", "tcp6-rx", "udp4-tx", "lso4", "lso6", "rsc4", "rsc6",
    ] {
        assert!(all.offloads.iter().any(|n| n == name), "{name}");
    }
    let some = Guest::running(&[("offload", "tcp4;lso4")], 1500).info();
    assert_eq!(some.offloads, ["tcp4-tx", "tcp4-rx", "lso4"]);
    let none = Guest::running(&[("offload", "none")], 1500).info();
    assert!(none.offloads.is_empty());
    // Version 5 knows of no coalescing.
    let old = Guest::running(&[("max", "5")], 1500).info();
    assert!(!old.offloads.iter().any(|n| n.starts_with("rsc")));
}

#[test]
fn the_address_changes_if_it_may() {
    let new = [2, 1, 2, 3, 4, 5];
    let mut guest = Guest::running(&[], 1500);
    let set = network_address_parameter(new);
    assert_eq!(guest.set_oid(Oid::GEN_RNDIS_CONFIG_PARAMETER, &set), 0);
    guest.arrive(&[frame(new, 60), frame(MAC, 61), frame([2; 6], 62)]);
    let lens: Vec<usize> = guest.frames(0).iter().map(|(f, _)| f.len()).collect();
    assert_eq!(lens, [60, 61]);
    let multicast = network_address_parameter([3, 1, 2, 3, 4, 5]);
    assert_ne!(
        guest.set_oid(Oid::GEN_RNDIS_CONFIG_PARAMETER, &multicast),
        0
    );
    let mut guest = Guest::running(&[("mac-change", "off")], 1500);
    assert_ne!(guest.set_oid(Oid::GEN_RNDIS_CONFIG_PARAMETER, &set), 0);
}

#[test]
fn the_packet_filter_and_the_multicast_list_are_kept() {
    let group = [1, 0, 0x5e, 0, 0, 1];
    let other = [1, 0, 0x5e, 0, 0, 2];
    let all = [
        frame(MAC, 60),
        frame([0xff; 6], 61),
        frame(group, 62),
        frame(other, 63),
        frame([2; 6], 64),
    ];
    let mut guest = Guest::running(&[], 1500);
    for (filter, list, lens) in [
        (PacketFilter::DIRECTED, &[][..], vec![60]),
        (PacketFilter::BROADCAST, &[], vec![61]),
        (PacketFilter::ALL_MULTICAST, &[], vec![62, 63]),
        (PacketFilter::MULTICAST, &group, vec![62]),
        (PacketFilter::MULTICAST, &[], vec![]),
        (PacketFilter::PROMISCUOUS, &[], vec![60, 61, 62, 63, 64]),
        (PacketFilter::empty(), &[], vec![]),
    ] {
        assert_eq!(guest.set_oid(Oid::IEEE_802_3_MULTICAST_LIST, list), 0);
        guest.set_filter(filter);
        guest.arrive(&all);
        let got: Vec<usize> = guest.frames(0).iter().map(|(f, _)| f.len()).collect();
        assert_eq!(got, lens, "{filter:?}");
    }
    assert_ne!(guest.set_oid(Oid::IEEE_802_3_MULTICAST_LIST, &[1; 5]), 0);
    assert_ne!(guest.set_oid(Oid::IEEE_802_3_MULTICAST_LIST, &[2; 6]), 0);
}

fn link(guest: &mut Guest, link: Option<NetLink>, speed: Option<u32>) {
    let cmd = Command::NetLink {
        device: "net0".into(),
        link,
        speed,
    };
    guest.bench.control(cmd).expect("done");
}

fn event(guest: &mut Guest) -> Option<LinkEvent> {
    let (id, messages) = guest.hear_rndis(0)?;
    guest.give_back(0, id);
    match HostMessage::parse(&messages[0]).expect("a good message") {
        HostMessage::Indicate { status, buffer } => Some(LinkEvent::new(status, buffer)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn links_come_and_go() {
    let mut guest = Guest::running(&[], 1500);
    while event(&mut guest).is_some() {}
    link(&mut guest, Some(NetLink::Down), None);
    assert_eq!(event(&mut guest), Some(LinkEvent::Down));
    guest.arrive(&[frame(MAC, 60)]);
    assert_eq!(event(&mut guest), None, "no frames without a link");
    let id = guest.send_direct(
        0,
        ChannelType::DATA,
        &Guest::rndis(&frame(MAC, 60), PacketInfo::NONE, 0),
    );
    assert_eq!(guest.completed(0), Some((id, NvspStatus::SUCCESS)));
    assert!(guest.wire.lock().sent.is_empty());
    link(&mut guest, Some(NetLink::Down), None);
    assert_eq!(event(&mut guest), None, "told once");
    link(&mut guest, Some(NetLink::Up), None);
    assert_eq!(event(&mut guest), Some(LinkEvent::Up));
    link(&mut guest, Some(NetLink::Change), None);
    assert_eq!(event(&mut guest), Some(LinkEvent::NetworkChange));
    link(&mut guest, None, Some(2500));
    assert_eq!(event(&mut guest), Some(LinkEvent::Speed(25_000_000)));
    // The other end goes.
    guest.wire.lock().down = true;
    guest.wake();
    assert_eq!(event(&mut guest), Some(LinkEvent::Down));
}

#[test]
fn a_link_that_is_down_at_first_is_told_so() {
    let mut guest = Guest::running(&[("link", "off")], 1500);
    assert!(!guest.device.expect("set up").link_up);
    while event(&mut guest).is_some() {}
    link(&mut guest, Some(NetLink::Up), None);
    assert_eq!(event(&mut guest), Some(LinkEvent::Up));
}

#[test]
fn sub_channels_bring_a_send_table() {
    let mut guest = Guest::running(&[("subchannels", "4")], 1500);
    while guest.hear(0).is_some() {}
    let refused = guest.ask(client::request_subchannels(5).as_bytes());
    assert!(client::subchannels_granted(&refused, 5).is_err());
    guest.open_subchannels(2);
    let heard = guest.hear(0).expect("a table");
    let table = vmbus_proto::net::nvsp::SendTable::parse(NvspVersion::V6_1, &heard.payload);
    assert_eq!(
        table.expect("good").entries(),
        &[0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    );
    assert_eq!(guest.info().send_table.len(), 16);
    assert_eq!(guest.violations(), 0);
}

#[test]
fn completions_that_were_not_asked_for_do_not_come() {
    let mut guest = Guest::running(&[], 1500);
    while guest.hear(0).is_some() {}
    let bytes = Guest::rndis(&frame(MAC, 60), PacketInfo::NONE, 0);
    guest.bench.ram().write(SEND * 4096, &bytes).expect("RAM");
    let packet = SendRndisPacket {
        channel: ChannelType::DATA,
        section_index: 0,
        section_size: bytes.len() as u32,
    };
    guest.notify(NvspMessage::new(MessageType::SEND_RNDIS_PKT, &packet).as_bytes());
    assert_eq!(guest.wire.lock().sent.len(), 1);
    assert_eq!(guest.hear(0), None);
    // And an unknown status in a completion is the guest's affair.
    guest.arrive(&[frame(MAC, 60)]);
    let (id, _) = guest.hear_rndis(0).expect("a frame");
    let refused = NvspMessage::new(
        MessageType::SEND_RNDIS_PKT_COMPLETE,
        &StatusBody {
            status: NvspStatus(77),
        },
    );
    let channel = guest.channels.get_mut(&0).expect("open");
    guest.bench.complete(channel, id, refused.as_bytes());
    assert_eq!(guest.info().counters.rx_refused, 1);
    assert_eq!(guest.violations(), 0);
}
