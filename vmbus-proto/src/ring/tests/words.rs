// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The short ways that frames take do what the long ones do.

use super::short::pair_at;
use super::*;
use crate::packet::{GpaDirectHeader, TransferRange};
use crate::range::GpaRun;
use proptest::prelude::*;
use zerocopy::IntoBytes;

fn same(a: &TestRing, b: &TestRing) -> Result<(), TestCaseError> {
    for at in (0..4096).step_by(8) {
        prop_assert_eq!(a.peek_data(at), b.peek_data(at), "at {}", at);
    }
    Ok(())
}

proptest! {
    #[test]
    fn payloads_of_words(
        start in (3u32..511).prop_map(|n| n * 8),
        payload: [u64; 5],
        id: u64,
        completion: bool,
        wanted: bool,
    ) {
        let (short_ring, mut short, _rx) = pair_at(start);
        let (long_ring, mut long, _rx2) = pair_at(start);
        let packet_type = if completion { PacketType::COMPLETION } else { PacketType::DATA_INBAND };
        let flags = if wanted { PacketFlags::COMPLETION_REQUESTED } else { PacketFlags::empty() };
        // The shorter way is not taken across the end of the ring, where this memory has no window.
        let _ = short.free();
        if !short.put_words(0, packet_type, flags, id, payload) {
            prop_assert!(start > 4096 - 64);
            short.send_words(0, packet_type, flags, id, payload).unwrap();
        }
        let mut packet = long.begin(packet_type, flags, id, 0, 40).unwrap();
        packet.put(payload.as_bytes()).unwrap();
        packet.finish().unwrap();
        let _ = (short.commit(), long.commit());
        prop_assert_eq!(short.write_index(), long.write_index());
        same(&short_ring, &long_ring)?;
    }

    #[test]
    fn several_ranges(
        start in (3u32..511).prop_map(|n| n * 8),
        ranges in proptest::collection::vec((1u32..20_000, 0u32..4096, 0u64..1 << 50), 1..20),
        payload: [u64; 5],
        id: u64,
    ) {
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(byte_count, byte_offset, first)| GpaRun { range: GpaRangeHeader { byte_count, byte_offset }, first })
            .collect();
        let (short_ring, mut short, mut rx) = pair_at(start);
        let (long_ring, mut long, _rx2) = pair_at(start);
        short.send_gpa_ranges(0, &ranges, id, payload).unwrap();
        let extra = 8 + ranges.iter().map(|run| run.range.encoded_len()).sum::<usize>();
        let mut packet = long
            .begin(PacketType::DATA_USING_GPA_DIRECT, PacketFlags::COMPLETION_REQUESTED, id, extra, 40)
            .unwrap();
        let head = GpaDirectHeader { reserved: 0, range_count: ranges.len() as u32 };
        packet.put(head.as_bytes()).unwrap();
        for GpaRun { range, first } in &ranges {
            packet.put_u64(range.to_u64()).unwrap();
            for page in 0..u64::from(range.page_count()) {
                packet.put_u64(first + page).unwrap();
            }
        }
        packet.put(payload.as_bytes()).unwrap();
        packet.finish().unwrap();
        let _ = (short.commit(), long.commit());
        prop_assert_eq!(short.write_index(), long.write_index());
        same(&short_ring, &long_ring)?;
        let mut buffer = [0; 4096];
        let read = rx.read(&mut buffer).unwrap();
        let PacketKind::GpaDirect(found) = read.kind else { panic!("{read:?}") };
        prop_assert_eq!(found.len() as usize, ranges.len());
    }
}

#[test]
fn room_and_nonsense() {
    let (_ring, mut tx, mut rx) = pair(4096);
    let words = |tx: &mut Tx, keep| {
        tx.send_words(
            keep,
            PacketType::DATA_INBAND,
            PacketFlags::empty(),
            1,
            [0; 5],
        )
    };
    let mut sent = 0;
    while words(&mut tx, 1000).is_ok() {
        sent += 1;
    }
    // 16 + 40 + 8 bytes; 4088 can be used.
    assert_eq!(sent, (4088 - 1000) / 64);
    let mut send = |ranges: &[u32]| {
        let run = |byte_count: &u32| GpaRun {
            range: GpaRangeHeader {
                byte_count: *byte_count,
                byte_offset: 0,
            },
            first: 7,
        };
        let runs: Vec<_> = ranges.iter().map(run).collect();
        tx.send_gpa_ranges(0, &runs, 1, [0; 5])
    };
    assert_eq!(send(&[]), Err(WriteError::WrongLength));
    assert_eq!(send(&[4096, 0]), Err(WriteError::WrongLength));
    assert_eq!(send(&[u32::MAX]), Err(WriteError::TooLarge));
    let large = send(&[4096 * 500]);
    assert!(matches!(
        large,
        Err(WriteError::Full { .. } | WriteError::TooLarge)
    ));
    let _ = tx.commit();
    for _ in 0..sent {
        read(&mut rx).unwrap();
    }
    assert_eq!(read(&mut rx), Err(ReadError::Empty));
}

proptest! {
    /// What is taken is what the long way reads, and what is not taken is left for it.
    #[test]
    fn packets_in_place(
        start in (3u32..511).prop_map(|n| n * 8),
        packets in proptest::collection::vec((0u8..3, 0usize..100, 1usize..5, any::<u8>(), any::<bool>()), 1..12),
    ) {
        let (_ring, mut tx, mut rx) = pair_at(start);
        let (_ring2, mut tx2, mut rx2) = pair_at(start);
        for (n, (kind, len, ranges, fill, _)) in packets.iter().enumerate() {
            let bytes = vec![*fill; *len];
            let ranges = vec![TransferRange { byte_count: 5, byte_offset: 9 }; *ranges];
            for tx in [&mut tx, &mut tx2] {
                match kind {
                    0 => tx.send_completion(n as u64, &bytes).unwrap(),
                    1 => tx.send_in_band(&bytes, n as u64, true).unwrap(),
                    _ => tx.send_transfer_pages(3, &ranges, &bytes, n as u64).unwrap(),
                }
                let _ = tx.commit();
            }
        }
        for (_, _, _, _, want) in &packets {
            let mut buffer = [0; 4096];
            let expected = rx2.read(&mut buffer).unwrap();
            let bytes = |words: &[AtomicU64]| words.iter().flat_map(|w| load_word(w).to_le_bytes()).collect::<Vec<_>>();
            let mut seen = false;
            let taken = rx.take(|packet| {
                seen = true;
                want.then(|| (packet.packet_type(), packet.transaction_id(), bytes(packet.extra()), bytes(packet.payload())))
            });
            match taken {
                Taken::Yes((kind, id, extra, payload)) => {
                    prop_assert_eq!(kind, expected.descriptor.packet_type);
                    prop_assert_eq!(id, expected.descriptor.transaction_id);
                    prop_assert_eq!(extra.len() as u32, expected.descriptor.payload_offset() - 16);
                    prop_assert_eq!(&payload[..], expected.payload);
                }
                // Nor is it shown when something lies across the end of the ring, where this memory has no window.
                left => {
                    prop_assert!(left == Taken::Left && !(seen && *want));
                    let mut buffer = [0; 4096];
                    prop_assert_eq!(rx.read(&mut buffer).unwrap(), expected);
                }
            }
        }
        prop_assert_eq!(rx.take(|_| Some(())), Taken::Empty);
        prop_assert_eq!(rx.finish(), rx2.finish());
        prop_assert_eq!(rx.read_index(), rx2.read_index());
    }

    /// Whatever the peer writes, what is shown lies within what it says it has written, and nothing else is accepted.
    #[test]
    fn attack_descriptors_in_place(first: u64, small in any::<[u8; 4]>(), written in 0u32..60) {
        let (ring, _tx, mut rx) = pair(4096);
        for head in [first, u64::from_le_bytes([small[0], 0, small[1] % 8, 0, small[2] % 32, 0, small[3], 0])] {
            ring.poke_data(0, head);
            ring.poke(ControlWord::WriteIndex, 0);
            let mut fresh = Consumer::attach(ring.clone()).unwrap();
            ring.poke(ControlWord::WriteIndex, written * 8);
            let shown = fresh.take(|packet| Some(packet.extra().len() + packet.payload().len() + 3));
            let peeked = Consumer::attach(ring.clone()).unwrap().peek();
            prop_assert_eq!(matches!(shown, Taken::Yes(_)), peeked.is_ok(), "{:?}", peeked);
            prop_assert_eq!(shown == Taken::Empty, written == 0);
            if let Taken::Yes(words) = shown {
                prop_assert!(words <= written as usize);
                prop_assert_eq!(words * 8, peeked.unwrap().descriptor.ring_len() as usize);
            }
        }
        for index in [1, 4096, u32::MAX] {
            ring.poke(ControlWord::WriteIndex, index);
            prop_assert_eq!(rx.take(|_| Some(())), Taken::Left);
        }
    }
}
