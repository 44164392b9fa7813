// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a hostile peer can write, each named.

use super::*;

#[test]
fn attack_index_out_of_range_or_unaligned() {
    for index in [4096, 4100, 1, 4, 7, 0x8000_0000, u32::MAX, u32::MAX - 7] {
        let (ring, mut tx, mut rx) = pair(4096);
        ring.poke(ControlWord::WriteIndex, index);
        assert_eq!(
            read(&mut rx).err(),
            Some(ReadError::Corrupt(RingError::BadWriteIndex { index }))
        );
        assert_eq!(
            rx.available(),
            Err(RingError::BadWriteIndex { index }),
            "{index:#x}"
        );
        assert_eq!(
            Consumer::attach(ring.clone()).err(),
            Some(RingError::BadWriteIndex { index })
        );
        ring.poke(ControlWord::ReadIndex, index);
        tx.send_in_band(&payload(4000, 0), 0, false).unwrap();
        assert!(!tx.commit());
        assert_eq!(
            tx.send_in_band(&payload(4000, 0), 0, false),
            Err(WriteError::Corrupt(RingError::BadReadIndex { index }))
        );
        assert_eq!(tx.free(), Err(RingError::BadReadIndex { index }));
        assert_eq!(
            tx.request_space(4000),
            Err(WriteError::Corrupt(RingError::BadReadIndex { index }))
        );
    }
}

/// The peer changes our own index: we neither read nor believe it.
#[test]
fn attack_own_index_changed() {
    let (ring, mut tx, mut rx) = pair(4096);
    tx.send_in_band(&[1; 8], 1, false).unwrap();
    let _ = tx.commit();
    assert_eq!(read(&mut rx).unwrap().0, 1);
    ring.poke(ControlWord::ReadIndex, 0xdead_beef);
    let _ = rx.commit();
    assert_eq!(ring.peek(ControlWord::ReadIndex), 32);
    ring.poke(ControlWord::WriteIndex, 0xdead_beef);
    tx.send_in_band(&[2; 8], 2, false).unwrap();
    let _ = tx.commit();
    assert_eq!(ring.peek(ControlWord::WriteIndex), 64);
    assert_eq!(read(&mut rx).unwrap(), (2, vec![2; 8]));
}

#[test]
fn attack_malformed_descriptors() {
    let word = |ty: u64, offset8: u64, len8: u64| ty | (offset8 << 16) | (len8 << 32);
    let cases: &[(&str, u64, u32, RingError)] = &[
        (
            "shorter than a descriptor",
            word(6, 2, 1),
            64,
            RingError::Packet(PacketError::TooShort { len: 8 }),
        ),
        (
            "no length",
            word(6, 2, 0),
            64,
            RingError::Packet(PacketError::TooShort { len: 0 }),
        ),
        (
            "payload within the descriptor",
            word(6, 1, 4),
            64,
            RingError::Packet(PacketError::BadOffset { offset: 8, len: 32 }),
        ),
        (
            "payload past the end",
            word(6, 5, 4),
            64,
            RingError::Packet(PacketError::BadOffset {
                offset: 40,
                len: 32,
            }),
        ),
        (
            "longer than what was written",
            word(6, 2, 8),
            64,
            RingError::Packet(PacketError::PastWriter {
                len: 64,
                available: 64,
            }),
        ),
        (
            "longest",
            word(6, 2, 0xffff),
            64,
            RingError::Packet(PacketError::PastWriter {
                len: 0xffff * 8,
                available: 64,
            }),
        ),
        (
            "less than a packet",
            word(6, 2, 2),
            16,
            RingError::Truncated { available: 16 },
        ),
        (
            "gpa direct without header",
            word(9, 2, 4),
            64,
            RingError::Packet(PacketError::NoExtraHeader),
        ),
        (
            "transfer pages without header",
            word(7, 2, 4),
            64,
            RingError::Packet(PacketError::NoExtraHeader),
        ),
    ];
    for &(name, low, write, error) in cases {
        let (ring, _tx, mut rx) = pair(4096);
        ring.poke_data(0, low);
        ring.poke(ControlWord::WriteIndex, write);
        for _ in 0..2 {
            assert_eq!(
                read(&mut rx).err(),
                Some(ReadError::Corrupt(error)),
                "{name}"
            );
        }
        assert!(!rx.commit(), "{name}: nothing was read");
    }
}

#[test]
fn attack_range_counts() {
    let (ring, _tx, mut rx) = pair(4096);
    // Transfer pages: 2 ranges claimed, room for 1.
    ring.poke_data(0, 7 | (4 << 16) | (4 << 32));
    ring.poke_data(16, 2 << 32);
    ring.poke(ControlWord::WriteIndex, 40);
    assert_eq!(
        read(&mut rx).err(),
        Some(ReadError::Corrupt(RingError::Packet(
            PacketError::TooManyTransferRanges { count: 2 }
        )))
    );
    // The count's product with 8 wraps 32 bits.
    ring.poke_data(16, 0x2000_0001 << 32);
    assert!(matches!(
        read(&mut rx).err(),
        Some(ReadError::Corrupt(RingError::Packet(
            PacketError::TooManyTransferRanges { .. }
        )))
    ));
    // GPA direct with as many ranges as a u32 holds.
    ring.poke_data(0, 9 | (4 << 16) | (4 << 32));
    ring.poke_data(16, 0xffff_ffff << 32);
    ring.poke_data(24, 1);
    assert_eq!(
        read(&mut rx).err(),
        Some(ReadError::Corrupt(RingError::Packet(PacketError::Ranges(
            crate::range::RangeError::Truncated { range: 0 }
        ))))
    );
}

/// The packet grows after it was looked at: the copy is of the length that was checked.
#[test]
fn attack_descriptor_changed_after_the_check() {
    let (ring, mut tx, mut rx) = pair(4096);
    tx.send_in_band(&[1; 16], 1, false).unwrap();
    let _ = tx.commit();
    let incoming = rx.peek().unwrap();
    ring.poke_data(0, 6 | (2 << 16) | (0xffff << 32));
    assert_eq!(incoming.descriptor.packet_len(), 32);
    let mut out = [0; 16];
    assert!(rx.copy(&incoming, 16, &mut out));
    assert_eq!(out, [1; 16]);
    assert!(!rx.copy(&incoming, 17, &mut out), "past the end");
    assert!(!rx.copy(&incoming, u32::MAX, &mut out), "sum wraps");
    rx.accept(&incoming);
    rx.accept(&incoming);
    assert!(!rx.copy(&incoming, 0, &mut out), "accepted");
    assert_eq!(read(&mut rx).err(), Some(ReadError::Empty));
    assert_eq!(rx.read_index(), 0);
    let _ = rx.commit();
    assert_eq!(rx.read_index(), 40);
}

#[test]
fn a_packet_too_large_for_the_buffer_stays() {
    let (_ring, mut tx, mut rx) = pair(4096);
    tx.send_in_band(&[1; 100], 1, false).unwrap();
    let _ = tx.commit();
    let mut small = [0; 119];
    assert_eq!(
        rx.read(&mut small),
        Err(ReadError::BufferTooSmall { needed: 120 })
    );
    assert_eq!(
        rx.read(&mut []),
        Err(ReadError::BufferTooSmall { needed: 120 })
    );
    assert_eq!(read(&mut rx).unwrap().0, 1);
}
