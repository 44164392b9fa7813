// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The message that carries a frame.

use super::super::packet::*;
use proptest::prelude::*;
use std::vec::Vec;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A message as the C driver of Linux writes it: a VLAN tag and a checksum to fill in.
fn linux_packet() -> Vec<u8> {
    let mut message = words(&[
        1,
        44 + 32 + 60,
        36 + 32,
        60,
        0,
        0,
        0,
        36,
        32,
        0,
        0, // the packet
        16,
        6,
        12,
        0x0000_0645, // VLAN 0x64, priority 5
        16,
        0,
        12,
        (34 << 16) | 0b101, // TCP over IPv4 at 34
    ]);
    message.extend((0..60).map(|n| n as u8));
    message
}

fn read(message: &[u8], receiver: Receiver) -> Result<ReceivedPacket, BadPacket> {
    ReceivedPacket::read(message, message.len() as u32, receiver)
}

/// `linux_packet` with one 32-bit word changed.
fn with(index: usize, value: u32) -> Vec<u8> {
    let mut message = linux_packet();
    message[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
    message
}

#[test]
fn a_packet_of_linux() {
    let message = linux_packet();
    for receiver in [Receiver::Guest, Receiver::Host] {
        let packet = read(&message, receiver).unwrap();
        assert_eq!((packet.data_offset, packet.data_len), (76, 60));
        assert_eq!(packet.message_len as usize, message.len());
        let vlan = packet.info.vlan().unwrap();
        assert_eq!((vlan.id(), vlan.tci()), (0x64, 0xa064));
        let checksum = packet.info.tx_checksum().unwrap();
        assert!(checksum.has(TxChecksum::IPV4 | TxChecksum::TCP));
        assert!(!checksum.has(TxChecksum::UDP));
        assert_eq!(checksum.transport_offset(), 34);
        assert_eq!(packet.info.hash(), None);
        assert_eq!(packet.info.large_send(), None);
    }
}

#[test]
fn written_as_linux_writes_it() {
    let mut info = PacketInfo::NONE;
    info.set_vlan(Vlan::from_tci(0xa064));
    info.set_tx_checksum(TxChecksum::new(TxChecksum::IPV4 | TxChecksum::TCP, 34));
    let header = PacketHeader {
        data_len: 60,
        padding: 0,
        info,
    };
    let mut out = [0; MAX_HEADER_SIZE as usize];
    header.write(&mut SliceSink(&mut out));
    assert_eq!(header.size(), 76);
    assert_eq!(out[..76], linux_packet()[..76]);
}

#[test]
fn all_information_comes_back() {
    let mut info = PacketInfo::NONE;
    info.set_hash(0xdead_beef);
    info.set_vlan(Vlan::from_tci(0xffff));
    info.set_large_send(LargeSend::new(true, 1440, 54));
    info.set_rx_checksum(RxChecksum(RxChecksum::TCP_SUCCEEDED));
    info.set_id(PacketId::part(7, true, false));
    let header = PacketHeader {
        data_len: 14,
        padding: 6,
        info,
    };
    assert_eq!(header.size(), MAX_HEADER_SIZE);
    let mut out = std::vec![0; header.message_len() as usize];
    header.write(&mut SliceSink(&mut out));
    let packet = read(&out, Receiver::Guest).unwrap();
    assert_eq!(packet.info, info);
    assert_eq!(packet.data_offset, header.size());
    assert_eq!(packet.message_len, out.len() as u32);
    let large = packet.info.large_send().unwrap();
    assert!(large.is_v2() && large.is_ipv6());
    assert_eq!((large.mss(), large.tcp_offset()), (1440, 54));
    let id = packet.info.id().unwrap();
    assert!(id.is_part() && id.is_first() && !id.is_last());
    assert_eq!(id.id(), 7);
    assert_eq!(packet.info.vlan().unwrap().tci(), 0xffff);
}

#[test]
fn vlan_tags_of_all_kinds() {
    for tci in 0..=u16::MAX {
        let vlan = Vlan::from_tci(tci);
        assert_eq!(vlan.tci(), tci);
        assert_eq!(vlan.id(), tci & 0xfff);
    }
    // hyperv_net.h: pri:3, cfi:1, vlanid:12 from the lowest bit on.
    assert_eq!(Vlan::from_tci(0xe000), Vlan(7));
    assert_eq!(Vlan::from_tci(0x1000), Vlan(8));
    assert_eq!(Vlan::from_tci(0x0001), Vlan(16));
}

#[test]
fn attack_every_field() {
    use BadPacket::*;
    let len = linux_packet().len() as u32;
    let cases: &[(&str, Vec<u8>, BadPacket)] = &[
        ("type", with(0, 7), Type(7)),
        (
            "message longer than its memory",
            with(1, len + 1),
            Length {
                claimed: len + 1,
                available: len,
            },
        ),
        (
            "message of huge length",
            with(1, u32::MAX),
            Length {
                claimed: u32::MAX,
                available: len,
            },
        ),
        (
            "message shorter than its headers",
            with(1, 43),
            Length {
                claimed: 43,
                available: len,
            },
        ),
        (
            "frame within the headers",
            with(2, 35),
            Data {
                offset: 35,
                len: 60,
            },
        ),
        ("frame at 0", with(2, 0), Data { offset: 0, len: 60 }),
        (
            "frame one byte too far",
            with(2, 69),
            Data {
                offset: 69,
                len: 60,
            },
        ),
        (
            "frame far away",
            with(2, u32::MAX),
            Data {
                offset: u32::MAX,
                len: 60,
            },
        ),
        (
            "frame one byte too long",
            with(3, 61),
            Data {
                offset: 68,
                len: 61,
            },
        ),
        (
            "frame whose end wraps",
            with(3, u32::MAX - 67),
            Data {
                offset: 68,
                len: u32::MAX - 67,
            },
        ),
        ("frame of nothing", with(3, 0), ShortFrame { len: 0 }),
        ("frame of 13 bytes", with(3, 13), ShortFrame { len: 13 }),
        (
            "information within the headers",
            with(7, 35),
            PpiList {
                offset: 35,
                len: 32,
            },
        ),
        (
            "information far away",
            with(7, u32::MAX),
            PpiList {
                offset: u32::MAX,
                len: 32,
            },
        ),
        (
            "information beyond the message",
            with(7, len - 8 - 31),
            PpiList {
                offset: len - 39,
                len: 32,
            },
        ),
        (
            "information of huge size",
            with(8, u32::MAX),
            PpiList {
                offset: 36,
                len: u32::MAX,
            },
        ),
        (
            "information of 11 bytes",
            with(8, 11),
            PpiSize { size: 0, left: 11 },
        ),
        // rndis_get_ppi of the C driver never ends on these two.
        ("size 0", with(11, 0), PpiSize { size: 0, left: 32 }),
        (
            "size beyond the list",
            with(11, 33),
            PpiSize { size: 33, left: 32 },
        ),
        ("size of 11", with(11, 11), PpiSize { size: 11, left: 32 }),
        (
            "size that leaves 4 bytes",
            with(11, 28),
            PpiSize { size: 0, left: 4 },
        ),
        (
            "content beyond its information",
            with(13, 17),
            PpiOffset {
                offset: 17,
                size: 16,
            },
        ),
        (
            "content half beyond",
            with(13, 14),
            PpiOffset {
                offset: 14,
                size: 16,
            },
        ),
        (
            "content in the header",
            with(13, 8),
            PpiOffset {
                offset: 8,
                size: 16,
            },
        ),
        (
            "content far away",
            with(13, u32::MAX),
            PpiOffset {
                offset: u32::MAX,
                size: 16,
            },
        ),
        (
            "known type without content",
            with(11, 12),
            PpiOffset {
                offset: 12,
                size: 12,
            },
        ),
    ];
    for (name, message, error) in cases {
        assert_eq!(read(message, Receiver::Guest), Err(*error), "{name}");
        assert_eq!(read(message, Receiver::Host), Err(*error), "{name}, host");
    }
    for field in [4, 5, 6, 9] {
        let message = with(field, 1);
        assert_eq!(read(&message, Receiver::Host), Err(OutOfBand), "{field}");
        read(&message, Receiver::Guest).unwrap();
    }
    for len in 0..58 {
        let message = &linux_packet()[..len];
        assert_eq!(
            read(message, Receiver::Guest),
            Err(TooShort { len: len as u32 })
        );
    }
}

#[test]
fn a_guest_goes_by_the_range_a_host_by_the_message() {
    // Two messages behind each other: the first says that its frame lies in the second.
    let mut message = with(2, 36 + 32 + 60);
    message.extend(linux_packet());
    assert!(read(&message, Receiver::Guest).is_ok());
    assert_eq!(
        read(&message, Receiver::Host),
        Err(BadPacket::Data {
            offset: 128,
            len: 60
        })
    );
}

#[test]
fn attack_thousands_of_empty_informations() {
    let count = 1000u32;
    let len = 44 + 12 * count + 60;
    let mut message = words(&[1, len, 36 + 12 * count, 60, 0, 0, 0, 36, 12 * count, 0, 0]);
    for _ in 0..count {
        message.extend(words(&[12, 99, 12]));
    }
    message.extend([0; 60]);
    assert_eq!(read(&message, Receiver::Guest), Err(BadPacket::TooManyPpis));
}

#[test]
fn unknown_and_odd_information() {
    // An unknown type of 20 bytes, a hash whose content lies 4 bytes further than usual, the same type once more.
    let ppis = words(&[20, 77, 16, 1, 2, 20, 8, 16, 0, 0xabcd, 16, 8, 12, 0x1111]);
    let size = ppis.len() as u32;
    let mut message = words(&[1, 44 + size + 14, 36 + size, 14, 0, 0, 0, 36, size, 0, 0]);
    message.extend(ppis);
    message.extend([0; 14]);
    let packet = read(&message, Receiver::Guest).unwrap();
    assert_eq!(packet.info.hash(), Some(0xabcd), "the first counts");
    // The internal and the public type 1 are not the same.
    let ppis = words(&[16, 1, 12, 0x700, 16, (1 << 31) | 1, 12, 0x301]);
    let size = ppis.len() as u32;
    let mut message = words(&[1, 44 + size + 14, 36 + size, 14, 0, 0, 0, 36, size, 0, 0]);
    message.extend(ppis);
    message.extend([0; 14]);
    let id = read(&message, Receiver::Guest).unwrap().info.id().unwrap();
    assert!(id.is_part() && id.is_first() && !id.is_last());
    // No bytes of information, wherever they are said to be.
    let mut message = with(8, 0);
    message[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        read(&message, Receiver::Guest).unwrap().info,
        PacketInfo::NONE
    );
}

/// Memory that tells how often each byte was read.
struct Counting<'a> {
    bytes: &'a [u8],
    reads: std::cell::RefCell<Vec<u32>>,
}

impl MessageMemory for Counting<'_> {
    fn words<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let words = self.bytes.words(offset)?;
        let mut reads = self.reads.borrow_mut();
        for count in &mut reads[offset as usize..][..8 * N] {
            *count += 1;
        }
        Some(words)
    }
}

proptest! {
    #[test]
    fn hostile_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), small in any::<[u8; 11]>(), host in any::<bool>()) {
        // Values that are often nearly right.
        for (field, value) in small.iter().enumerate() {
            if let Some(word) = bytes.get_mut(field * 4..field * 4 + 4) {
                word.copy_from_slice(&u32::from(*value).to_le_bytes());
            }
        }
        if let Some(message_type) = bytes.get_mut(0) {
            *message_type = 1;
        }
        let receiver = if host { Receiver::Host } else { Receiver::Guest };
        if let Ok(packet) = read(&bytes, receiver) {
            let end = packet.data_offset as usize + packet.data_len as usize;
            prop_assert!(end <= bytes.len());
            prop_assert!(packet.data_len >= 14 && packet.data_offset >= 44);
            prop_assert!(packet.message_len as usize <= bytes.len());
        }
    }

    #[test]
    fn what_is_written_is_read(data_len in 14u32..100, padding in 0u32..8, present in 0u32..32, values in any::<[u32; 5]>()) {
        let mut info = PacketInfo::NONE;
        if present & 1 != 0 { info.set_hash(values[0]); }
        if present & 2 != 0 { info.set_vlan(Vlan(values[1])); }
        if present & 4 != 0 { info.set_large_send(LargeSend(values[2])); }
        if present & 8 != 0 { info.set_tx_checksum(TxChecksum(values[3])); }
        if present & 16 != 0 { info.set_id(PacketId(values[4])); }
        let header = PacketHeader { data_len, padding, info };
        let mut bytes = std::vec![0; header.message_len() as usize];
        header.write(&mut SliceSink(&mut bytes));
        let memory = Counting { bytes: &bytes, reads: std::vec![0; bytes.len()].into() };
        let packet = ReceivedPacket::read(&memory, bytes.len() as u32, Receiver::Host).unwrap();
        prop_assert_eq!(packet.info, info);
        prop_assert_eq!(packet.data_len, data_len);
        prop_assert_eq!(packet.data_offset, header.size());
        // No byte of consequence twice; the sixth word reaches 4 bytes into what follows and nobody looks at those.
        for (at, count) in memory.reads.borrow().iter().enumerate() {
            let max = if (44..48).contains(&at) { 2 } else { 1 };
            prop_assert!(*count <= max, "byte {} read {} times", at, count);
        }
    }
}
