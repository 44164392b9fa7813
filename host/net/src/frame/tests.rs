// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Frames made by etherparse, which fills in lengths and checksums by itself.

use super::*;
use etherparse::{IpFragOffset, Ipv4Header, Ipv6RawExtHeader, PacketBuilder, TcpHeader};
use proptest::prelude::*;
use vmbus_proto::net::packet::{LargeSend, RxChecksum, TxChecksum};
use vmbus_proto::net::rss::DEFAULT_KEY;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const B6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn timestamp(value: u32) -> Vec<u8> {
    let mut options = vec![1, 1, 8, 10];
    options.extend(value.to_be_bytes());
    options.extend(9u32.to_be_bytes());
    options
}

/// A TCP segment with the usual options.
fn tcp(v6: bool, sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC, [2; 6]);
    let builder = if v6 {
        builder.ipv6(A6, B6, 64)
    } else {
        builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut header = TcpHeader::new(1000, 2000, sequence, 500);
    header.set_options_raw(&timestamp(sequence)).unwrap();
    header.ack = flags & 0x10 != 0;
    header.psh = flags & 8 != 0;
    header.fin = flags & 1 != 0;
    header.cwr = flags & 0x80 != 0;
    header.acknowledgment_number = 77;
    let mut frame = Vec::new();
    builder.tcp_header(header).write(&mut frame, data).unwrap();
    frame
}

fn udp(v6: bool, data: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MAC, [2; 6]);
    let builder = if v6 {
        builder.ipv6(A6, B6, 64)
    } else {
        builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut frame = Vec::new();
    builder.udp(1000, 2000).write(&mut frame, data).unwrap();
    frame
}

/// Flags of a frame that is right.
fn right(v6: bool, transport: u32) -> RxChecksum {
    let ip = if v6 { 0 } else { RxChecksum::IP_SUCCEEDED };
    RxChecksum(ip | transport)
}

#[test]
fn checksums_are_checked_and_filled_in() {
    for v6 in [false, true] {
        let ip = if v6 {
            TxChecksum::IPV6
        } else {
            TxChecksum::IPV4
        };
        let transport_at = if v6 { 54 } else { 34 };
        for len in [1, 2, 99, 1400] {
            for (frame, wanted, at, good, bad) in [
                (
                    tcp(v6, 5, 0x10, &payload(len)),
                    TxChecksum::TCP,
                    16,
                    RxChecksum::TCP_SUCCEEDED,
                    RxChecksum::TCP_FAILED,
                ),
                (
                    udp(v6, &payload(len)),
                    TxChecksum::UDP,
                    6,
                    RxChecksum::UDP_SUCCEEDED,
                    RxChecksum::UDP_FAILED,
                ),
            ] {
                assert_eq!(check(&frame), right(v6, good));
                let mut open = frame.clone();
                // What Linux leaves there: the sum of the pseudo header.
                open[transport_at + at..][..2].copy_from_slice(&[0x12, 0x34]);
                assert_eq!(check(&open), right(v6, bad));
                if !v6 {
                    open[24..26].fill(0x55);
                    assert!(check(&open).any(RxChecksum::IP_FAILED));
                }
                let wanted = ip | wanted | TxChecksum::IP_HEADER;
                for said in [0, transport_at as u32] {
                    let mut filled = open.clone();
                    fill(&mut filled, TxChecksum::new(wanted, said)).unwrap();
                    assert_eq!(filled, frame);
                }
                // Padding of short frames does not count.
                let mut padded = frame.clone();
                padded.extend([0xee; 30]);
                assert_eq!(check(&padded), right(v6, good));
                let at = transport_at as u32 + 4;
                let wrong = fill(&mut open, TxChecksum::new(wanted, at));
                let (said, found) = (at as usize, transport_at);
                assert_eq!(wrong, Err(BadOffload::Offset { said, found }));
            }
        }
    }
}

#[test]
fn udp_without_checksum_and_with_one_of_zero() {
    let mut frame = udp(false, &payload(8));
    frame[40..42].fill(0);
    assert_eq!(check(&frame), right(false, 0));
    // Data that make the sum 0xffff, so the checksum 0: it is sent as 0xffff.
    let mut frame = udp(false, &[0, 0]);
    let sum = [frame[40], frame[41]];
    frame[42..44].copy_from_slice(&sum);
    let wanted = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::UDP, 34);
    fill(&mut frame, wanted).unwrap();
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert_eq!(check(&frame), right(false, RxChecksum::UDP_SUCCEEDED));
}

#[test]
fn offloads_that_do_not_fit_the_frame() {
    let want = |flags| TxChecksum::new(flags, 0);
    let mut frame = tcp(false, 1, 0x10, &payload(9));
    for (flags, error) in [
        (TxChecksum::IPV6 | TxChecksum::TCP, BadOffload::NotIp),
        (TxChecksum::TCP, BadOffload::NotIp),
        (TxChecksum::IPV4 | TxChecksum::UDP, BadOffload::NotTransport),
    ] {
        assert_eq!(fill(&mut frame, want(flags)), Err(error));
    }
    assert_eq!(fill(&mut frame, want(TxChecksum::IPV4)), Ok(()));
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    let all = want(TxChecksum::IPV4 | TxChecksum::TCP);
    assert_eq!(fill(&mut arp, all), Err(BadOffload::NotIp));
    assert_eq!(check(&arp), RxChecksum::default());
    assert!(segments(&arp, LargeSend::new(false, 100, 34)).is_err());
    let send = |ipv6, mss, at| segments(&frame, LargeSend::new(ipv6, mss, at)).map(|s| s.count());
    assert_eq!(send(false, 100, 34), Ok(1));
    assert_eq!(send(true, 100, 34), Err(BadOffload::NotIp));
    assert_eq!(send(false, 0, 34), Err(BadOffload::SegmentSize));
    let said = BadOffload::Offset {
        said: 38,
        found: 34,
    };
    assert_eq!(send(false, 100, 38), Err(said));
}

#[test]
fn fragments_have_no_ports_and_no_checksum() {
    let mut ip = Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, [1; 4], [2; 4]).unwrap();
    ip.more_fragments = true;
    ip.fragment_offset = IpFragOffset::try_new(0).unwrap();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, MAC)
        .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .udp(1, 2)
        .write(&mut frame, &payload(64))
        .unwrap();
    let layers = Layers::find(&frame).unwrap();
    assert!(layers.fragment);
    assert_eq!(check(&frame), right(false, 0));
    let wanted = HashInfo::IPV4 | HashInfo::UDP_IPV4;
    let hash = layers.hash(&frame, &DEFAULT_KEY, wanted);
    assert_eq!(hash, Some(toeplitz(&DEFAULT_KEY, &frame[26..34])));
    let wanted = TxChecksum::new(TxChecksum::IPV4 | TxChecksum::UDP, 0);
    assert_eq!(fill(&mut frame, wanted), Err(BadOffload::NotTransport));
}

#[test]
fn hashes_by_type() {
    // The first vectors of Microsoft, "Verifying the RSS Hash Calculation".
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, MAC)
        .ipv4([66, 9, 149, 187], [161, 142, 100, 80], 64)
        .tcp(2794, 1766, 0, 0)
        .write(&mut frame, &[])
        .unwrap();
    let layers = Layers::find(&frame).unwrap();
    let hash = |wanted| layers.hash(&frame, &DEFAULT_KEY, wanted);
    assert_eq!(hash(HashInfo::linux()), Some(0x51cc_c178));
    assert_eq!(hash(HashInfo::IPV4), Some(0x323e_8fc2));
    assert_eq!(hash(HashInfo::UDP_IPV4 | HashInfo::IPV6), None);
    let mut frame = udp(true, &payload(4));
    let layers = Layers::find(&frame).unwrap();
    let plain = toeplitz(&DEFAULT_KEY, &frame[22..54]);
    let with_ports = toeplitz(&DEFAULT_KEY, &frame[22..58]);
    let hash = |frame: &[u8], wanted| layers.hash(frame, &DEFAULT_KEY, wanted);
    assert_eq!(hash(&frame, HashInfo::linux()), Some(plain));
    assert_eq!(hash(&frame, HashInfo::UDP_IPV6), Some(with_ports));
    // A VLAN tag changes nothing but places.
    insert_vlan(&mut frame, 5);
    let layers = Layers::find(&frame).unwrap();
    assert_eq!((layers.ip_at, layers.transport_at), (18, 58));
    let hash = layers.hash(&frame, &DEFAULT_KEY, HashInfo::UDP_IPV6);
    assert_eq!(hash, Some(with_ports));
}

#[test]
fn vlan_tags_in_and_out() {
    let plain = udp(false, &payload(30));
    let mut frame = plain.clone();
    assert_eq!(strip_vlan(&mut frame), None);
    insert_vlan(&mut frame, 0xa064);
    assert_eq!(frame[12..18], [0x81, 0, 0xa0, 0x64, 8, 0]);
    insert_vlan(&mut frame, 7);
    assert_eq!(strip_vlan(&mut frame), Some(7), "the outer one");
    assert_eq!(strip_vlan(&mut frame), Some(0xa064));
    assert_eq!(frame, plain);
    for len in 0..18 {
        let mut short = vec![0x81; len];
        assert_eq!(strip_vlan(&mut short), None);
        insert_vlan(&mut short, 1);
        assert_eq!(short.len(), if len < 14 { len } else { len + 4 });
    }
}

fn cut_up(frame: &[u8], wanted: LargeSend) -> Vec<Vec<u8>> {
    let mut segments = segments(frame, wanted).unwrap();
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    while segments.next_into(&mut piece) {
        pieces.push(piece.clone());
    }
    assert_eq!(pieces.len(), segments.count());
    pieces
}

fn coalesce(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Coalesced> {
    let mut coalescer = Coalescer::default();
    let mut done = Vec::new();
    for frame in frames {
        coalescer.push(frame, None, &mut |frame| done.push(frame));
    }
    coalescer.flush(&mut |frame| done.push(frame));
    assert!(coalescer.is_empty());
    done
}

#[test]
fn segments_are_cut_up_and_put_together() {
    for v6 in [false, true] {
        let headers = if v6 { 14 + 40 + 32 } else { 14 + 20 + 32 };
        for (len, mss) in [
            (1, 1448),
            (1448, 1448),
            (1449, 1448),
            (60_000, 1428),
            (5000, 536),
        ] {
            let data = payload(len);
            let whole = tcp(v6, u32::MAX - 1000, 0x10 | 8 | 0x80, &data);
            let mut frame = whole.clone();
            // As Linux leaves it: no length, no checksum.
            if v6 {
                frame[18..20].fill(0);
            } else {
                frame[16..18].fill(0);
                frame[24..26].fill(0);
            }
            let at = if v6 { 54 } else { 34 };
            let pieces = cut_up(&frame, LargeSend::new(v6, mss as u32, at));
            assert_eq!(pieces.len(), len.div_ceil(mss));
            for (n, piece) in pieces.iter().enumerate() {
                assert_eq!(check(piece), right(v6, RxChecksum::TCP_SUCCEEDED));
                assert!(piece.len() <= headers + mss);
                let (first, last) = (n == 0, n == pieces.len() - 1);
                let flags = piece[at as usize + 13];
                assert_eq!(flags & 0x80 != 0, first, "CWR");
                assert_eq!(flags & 8 != 0, last, "PSH");
                if !v6 {
                    assert_eq!(u16::from_be_bytes([piece[18], piece[19]]), n as u16);
                }
            }
            let together: Vec<u8> = pieces.iter().flat_map(|p| p[headers..].to_vec()).collect();
            assert!(together == data);

            // Without CWR, which must not be coalesced.
            let plain = tcp(v6, u32::MAX - 1000, 0x10 | 8, &data);
            let pieces = cut_up(&plain, LargeSend::new(v6, mss as u32, at));
            let count = pieces.len() as u32;
            let mut merged = coalesce(pieces);
            assert_eq!(merged.len(), 1);
            let mut merged = merged.remove(0);
            assert_eq!(merged.segments, count);
            assert_eq!(
                merged.checksum.any(RxChecksum::TCP_VALUE_INVALID),
                count > 1
            );
            assert!(merged.checksum.any(RxChecksum::TCP_SUCCEEDED));
            // TCP's checksum apart it is what was cut up.
            let flags = if v6 {
                TxChecksum::IPV6
            } else {
                TxChecksum::IPV4
            };
            let wanted = TxChecksum::new(flags | TxChecksum::TCP, 0);
            fill(&mut merged.frame, wanted).unwrap();
            assert!(merged.frame == plain);
        }
    }
}

#[test]
fn what_must_not_be_coalesced_comes_as_it_is() {
    let data = payload(100);
    let first = tcp(false, 0, 0x10, &data);
    let broken = {
        let mut frame = tcp(false, 100, 0x10, &data);
        frame[80] ^= 1;
        frame
    };
    let other_ttl = {
        let mut frame = tcp(false, 100, 0x10, &data);
        frame[22] = 63;
        let layers = Layers::find(&frame).unwrap();
        super::checksum::fill_ipv4(&mut frame, &layers);
        frame
    };
    for (name, second) in [
        ("gap", tcp(false, 101, 0x10, &data)),
        ("again", first.clone()),
        ("FIN", tcp(false, 100, 0x11, &data)),
        ("no ACK", tcp(false, 100, 0, &data)),
        ("no data", tcp(false, 100, 0x10, &[])),
        ("wrong checksum", broken),
        ("other time to live", other_ttl),
    ] {
        let frames = [first.clone(), second.clone()];
        let done = coalesce(frames.clone());
        let got: Vec<_> = done.iter().map(|frame| frame.frame.clone()).collect();
        assert!(got == frames, "{name}");
        assert!(done.iter().all(|frame| frame.segments == 1), "{name}");
    }
    // Other flows do not disturb.
    let others = (0..20).map(|n| udp(n % 2 == 0, &payload(n)));
    let mut frames: Vec<_> = others.collect();
    frames.insert(3, first.clone());
    frames.insert(9, tcp(false, 100, 0x10, &data));
    let done = coalesce(frames);
    assert_eq!(done.len(), 21);
    assert!(done.iter().any(|frame| frame.segments == 2));
    // PSH hands over at once, tags keep apart.
    let mut coalescer = Coalescer::default();
    let mut done = Vec::new();
    coalescer.push(first.clone(), Some(1), &mut |frame| done.push(frame));
    coalescer.push(tcp(false, 100, 0x10, &data), None, &mut |f| done.push(f));
    assert!(done.is_empty());
    coalescer.push(tcp(false, 200, 0x18, &data), None, &mut |f| done.push(f));
    assert_eq!(done[0].segments, 2);
    coalescer.flush(&mut |frame| done.push(frame));
    assert_eq!((done[1].segments, done[1].vlan), (1, Some(1)));
}

#[test]
fn not_more_than_an_ip_packet_holds() {
    let data = payload(1448);
    let frames = (0..100).map(|n| tcp(true, n * 1448, 0x10, &data));
    let done = coalesce(frames);
    assert_eq!(done.iter().map(|frame| frame.segments).sum::<u32>(), 100);
    for frame in &done {
        assert!(frame.frame.len() - 14 <= MAX_COALESCED);
        let layers = Layers::find(&frame.frame).unwrap();
        assert!(!layers.cut && layers.end == frame.frame.len());
    }
}

#[test]
fn extension_headers_are_passed() {
    let mut frame = Vec::new();
    let mut headers = etherparse::IpHeaders::Ipv6(
        etherparse::Ipv6Header {
            source: A6,
            destination: B6,
            hop_limit: 1,
            ..Default::default()
        },
        etherparse::Ipv6Extensions {
            hop_by_hop_options: Some(
                Ipv6RawExtHeader::new_raw(etherparse::IpNumber::UDP, &[5, 2, 0, 0, 1, 0]).unwrap(),
            ),
            ..Default::default()
        },
    );
    headers.set_next_headers(etherparse::IpNumber::UDP);
    PacketBuilder::ethernet2(MAC, MAC)
        .ip(headers)
        .udp(5, 6)
        .write(&mut frame, &payload(50))
        .unwrap();
    let layers = Layers::find(&frame).unwrap();
    assert_eq!(layers.transport_at, 62);
    assert_eq!(check(&frame), right(true, RxChecksum::UDP_SUCCEEDED));
}

proptest! {
    #[test]
    fn hostile_frames(
        kind in 0usize..6,
        len in 0usize..2000,
        changes in proptest::collection::vec((0usize..100, any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        offload in any::<u32>(),
        mss in 0u32..3000,
    ) {
        let data = payload(len);
        let mut frame = match kind {
            0 => tcp(false, 9, 0x10, &data),
            1 => tcp(true, 9, 0x10, &data),
            2 => udp(false, &data),
            3 => udp(true, &data),
            4 => { let mut frame = tcp(false, 9, 0x10, &data); insert_vlan(&mut frame, 3); frame }
            _ => data,
        };
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) { *byte = value; }
        }
        frame.truncate(cut.index(frame.len() + 1));
        let _ = check(&frame);
        let _ = fill(&mut frame.clone(), TxChecksum(offload));
        let wanted = LargeSend::new(offload & 1 != 0, mss, if offload & 2 != 0 { 34 } else { 0 });
        if let Ok(mut segments) = segments(&frame, wanted) {
            let mut piece = Vec::new();
            let mut total = 0;
            while segments.next_into(&mut piece) {
                total += 1;
                prop_assert!(piece.len() <= 65535 + 200);
            }
            prop_assert_eq!(total, segments.count());
        }
        if let Some(layers) = Layers::find(&frame) {
            prop_assert!(layers.ip_at < layers.transport_at && layers.transport_at <= layers.end && layers.end <= frame.len());
            let _ = layers.hash(&frame, &DEFAULT_KEY, HashInfo::from_bits_retain(offload));
        }
        let done = coalesce([frame.clone(), frame.clone()]);
        prop_assert!(done.iter().map(|frame| frame.segments).sum::<u32>() == 2);
        let mut tagged = frame;
        let _ = strip_vlan(&mut tagged);
    }
}
