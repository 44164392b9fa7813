// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the host does to frames for the guest.

use hv_net::frame::{check, fill, Layers};
use hvctl::NetFault;
use vmbus_proto::net::nvsp::NvspStatus;
use vmbus_proto::net::packet::{LargeSend, RxChecksum, TxChecksum, Vlan};
use vmbus_proto::net::rss::{toeplitz, write_parameters, HashInfo, RssFlags, DEFAULT_KEY};

use super::*;

/// An Ethernet, IPv4 and TCP header, 54 bytes, and a payload; checksums right.
fn tcp4(destination: [u8; 6], port: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    let total = (40 + payload.len()) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(port.to_be_bytes());
    frame.extend(5001u16.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(payload);
    let all = TxChecksum::IPV4 | TxChecksum::TCP | TxChecksum::IP_HEADER;
    fill(&mut frame, TxChecksum::new(all, 34)).expect("TCP");
    frame
}

const RIGHT: u32 = RxChecksum::IP_SUCCEEDED | RxChecksum::TCP_SUCCEEDED;
/// What a guest that has turned the IP header's off, as Linux does, is told of that.
const TOLD: u32 = RxChecksum::TCP_SUCCEEDED;

fn send(guest: &mut Guest, frame: &[u8], info: PacketInfo) -> NvspStatus {
    let message = Guest::rndis(frame, info, 0);
    let id = guest.send_direct(0, ChannelType::DATA, &message);
    let (got, status) = guest.completed(0).expect("a completion");
    assert_eq!(got, id);
    status
}

#[test]
fn checksums_are_filled_in() {
    let mut guest = Guest::running(&[], 1500);
    let good = tcp4([9; 6], 1, 7, b"abcdefghi");
    let mut blank = good.clone();
    blank[50..52].fill(0xee);
    let mut info = PacketInfo::NONE;
    info.set_tx_checksum(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34));
    assert_eq!(send(&mut guest, &blank, info), NvspStatus::SUCCESS);
    assert_eq!(guest.wire.lock().sent, std::slice::from_ref(&good));
    assert_eq!(guest.info().counters.tx_checksummed, 1);
    // An offset that is not the header's, and another protocol.
    for wrong in [
        TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 35),
        TxChecksum::new(TxChecksum::IPV4 | TxChecksum::UDP, 34),
        TxChecksum::new(TxChecksum::IPV6 | TxChecksum::TCP, 34),
    ] {
        info.set_tx_checksum(wrong);
        let before = guest.violations();
        send(&mut guest, &blank, info);
        assert_eq!(guest.violations(), before + 1);
    }
    assert_eq!(guest.wire.lock().sent.len(), 1);
    let mut guest = Guest::running(&[("offload", "none")], 1500);
    info.set_tx_checksum(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34));
    send(&mut guest, &blank, info);
    assert_eq!(guest.violations(), 1, "not offered");
}

#[test]
fn large_packets_are_cut_up() {
    let mut guest = Guest::running(&[], 1500);
    let payload: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    let large = tcp4([9; 6], 1, 1000, &payload);
    let mut info = PacketInfo::NONE;
    info.set_large_send(LargeSend::new(false, 1460, 34));
    info.set_vlan(Vlan::from_tci(0x2005));
    send(&mut guest, &large, info);
    let sent = std::mem::take(&mut guest.wire.lock().sent);
    assert_eq!(sent.len(), 7);
    let mut whole: Vec<u8> = Vec::new();
    for mut piece in sent {
        assert!(piece.len() <= 1518);
        assert_eq!(hv_net::frame::strip_vlan(&mut piece), Some(0x2005));
        assert_eq!(check(&piece), RxChecksum(RIGHT));
        let sequence = u32::from_be_bytes(piece[38..42].try_into().expect("four"));
        assert_eq!(sequence as usize, 1000 + whole.len());
        whole.extend(&piece[54..]);
    }
    assert_eq!(whole, payload);
    let info_now = guest.info();
    assert_eq!(
        (info_now.counters.tx_lso, info_now.counters.tx_vlan),
        (1, 1)
    );
    let queue = info_now.queues[0];
    assert_eq!((queue.tx_packets, queue.tx_frames), (1, 7));
    // Pieces larger than the MTU.
    let mut info = PacketInfo::NONE;
    info.set_large_send(LargeSend::new(false, 1461, 34));
    send(&mut guest, &large, info);
    assert_eq!(
        (guest.violations(), guest.info().counters.tx_too_long),
        (0, 1)
    );
    // Of no bytes, of another protocol, and by the old version.
    for wrong in [
        LargeSend::new(false, 0, 34),
        LargeSend::new(true, 1460, 34),
        LargeSend(1460 | (34 << 20)),
    ] {
        let mut info = PacketInfo::NONE;
        info.set_large_send(wrong);
        let before = guest.violations();
        send(&mut guest, &large, info);
        assert_eq!(guest.violations(), before + 1, "{wrong:?}");
    }
    assert!(guest.wire.lock().sent.is_empty());
}

#[test]
fn checksums_are_looked_at_and_told() {
    let mut guest = Guest::running(&[("offload", "-rsc")], 1500);
    let good = tcp4(MAC, 1, 7, b"abcdefghi");
    guest.arrive(std::slice::from_ref(&good));
    assert_eq!(guest.frames(0)[0].1.rx_checksum(), Some(RxChecksum(TOLD)));
    guest.fault(1, NetFault::Corrupt);
    guest.arrive(std::slice::from_ref(&good));
    let told = guest.frames(0)[0].1.rx_checksum().expect("told");
    assert_eq!(told, RxChecksum(RxChecksum::TCP_FAILED));
    assert_eq!(guest.info().counters.rx_bad_checksum, 1);
    let mut guest = Guest::running(&[("offload", "none")], 1500);
    guest.arrive(std::slice::from_ref(&good));
    assert_eq!(guest.frames(0)[0].1.rx_checksum(), None);
}

#[test]
fn vlan_tags_go_out_of_the_frame_if_the_guest_knows_of_it() {
    let mut tagged = frame(MAC, 60);
    hv_net::frame::insert_vlan(&mut tagged, 0x3007);
    let mut guest = Guest::running(&[], 1500);
    guest.arrive(std::slice::from_ref(&tagged));
    let (data, info) = guest.frames(0).remove(0);
    assert_eq!(data, frame(MAC, 60));
    assert_eq!(info.vlan().map(|v| v.tci()), Some(0x3007));
    let mut guest = Guest::running(&[("offload", "-vlan")], 1500);
    guest.arrive(std::slice::from_ref(&tagged));
    let (data, info) = guest.frames(0).remove(0);
    assert_eq!((data, info.vlan()), (tagged, None));
}

#[test]
fn segments_are_put_together_over_several_sections() {
    let mut guest = Guest::running(&[], 1500);
    let payload: Vec<u8> = (0..7300u32).map(|i| (i % 249) as u8).collect();
    let parts: Vec<Vec<u8>> = payload
        .chunks(1460)
        .enumerate()
        .map(|(n, part)| tcp4(MAC, 1, 1000 + n as u32 * 1460, part))
        .collect();
    guest.arrive(&parts);
    let (id, messages) = guest.hear_rndis(0).expect("frames");
    guest.give_back(0, id);
    let mut whole = Vec::new();
    for (n, message) in messages.iter().enumerate() {
        let len = message.len() as u32;
        let packet = ReceivedPacket::read(message.as_slice(), len, Receiver::Guest).expect("good");
        let part = packet.info.id().expect("part of a packet");
        assert!(part.is_part());
        assert_eq!(
            (part.is_first(), part.is_last()),
            (n == 0, n + 1 == messages.len())
        );
        assert_eq!(packet.info.rx_checksum(), Some(RxChecksum(TOLD)));
        let start = packet.data_offset as usize;
        whole.extend(&message[start..start + packet.data_len as usize]);
    }
    assert!(messages.len() > 1);
    assert_eq!(whole[54..], payload);
    assert_eq!(
        check(&whole),
        RxChecksum(RIGHT),
        "also without trust in what is told"
    );
    let info = guest.info();
    assert_eq!(
        (info.counters.rx_coalesced, info.queues[0].rx_packets),
        (5, 1)
    );
    // What is not in order comes as it is.
    guest.arrive(&[parts[1].clone(), parts[0].clone()]);
    assert_eq!(guest.frames(0).len(), 2);
    // A guest of version 6.0 gets what came.
    let mut old = Guest::running(&[("max", "6.0")], 1500);
    old.arrive(&parts);
    assert_eq!(old.frames(0).len(), 5);
}

#[test]
fn frames_are_spread_by_the_guests_key_and_table() {
    let mut guest = Guest::running(&[("subchannels", "3"), ("offload", "-rsc")], 1500);
    guest.open_subchannels(3);
    guest.ignore();
    let table = [3u32, 1, 2, 0];
    let mut set = [0; 1024];
    let mut key = DEFAULT_KEY;
    key[3] ^= 0x55;
    let len = write_parameters(
        &mut set,
        RssFlags::empty(),
        HashInfo::linux(),
        table.into_iter(),
        &key,
    );
    let set = &set[..len.expect("room")];
    assert_eq!(guest.set_oid(Oid::GEN_RECEIVE_SCALE_PARAMETERS, set), 0);
    let frames: Vec<Vec<u8>> = (1..200).map(|port| tcp4(MAC, port, 1, b"x")).collect();
    guest.arrive(&frames);
    let mut count = 0;
    for index in 0..4u16 {
        let got = guest.frames(index);
        assert!(got.len() > 20, "channel {index} has {}", got.len());
        count += got.len();
        assert_eq!(
            guest.info().queues[usize::from(index)].rx_packets,
            got.len() as u64
        );
        for (data, info) in got {
            let hash = toeplitz(&key, &data[26..38]);
            assert_eq!(info.hash(), Some(hash));
            assert_eq!(table[hash as usize % 4], u32::from(index));
            let layers = Layers::find(&data).expect("TCP");
            assert_eq!(layers.hash(&data, &key, HashInfo::linux()), Some(hash));
        }
    }
    assert_eq!(count, 199);
    // What has no hash goes to the primary channel, and so does what is meant for a closed one.
    guest.arrive(&[frame(MAC, 60)]);
    assert_eq!(guest.frames(0).len(), 1);
    let channel = guest.channels.remove(&2).expect("open");
    guest.bench.close(&channel);
    guest.arrive(&frames);
    let lens: Vec<usize> = [0, 1, 3].map(|i| guest.frames(i).len()).into();
    assert_eq!(lens.iter().sum::<usize>(), 199);
    assert_eq!(guest.violations(), 0);
}
