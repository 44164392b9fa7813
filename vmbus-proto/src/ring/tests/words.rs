// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The short ways that frames take do what the long ones do.

use super::short::pair_at;
use super::*;
use crate::packet::GpaDirectHeader;
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
        short.send_words(0, packet_type, flags, id, payload).unwrap();
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
            .map(|(byte_count, byte_offset, pfn)| (GpaRangeHeader { byte_count, byte_offset }, pfn))
            .collect();
        let (short_ring, mut short, mut rx) = pair_at(start);
        let (long_ring, mut long, _rx2) = pair_at(start);
        short.send_gpa_ranges(0, &ranges, id, payload).unwrap();
        let extra = 8 + ranges.iter().map(|(range, _)| range.encoded_len()).sum::<usize>();
        let mut packet = long
            .begin(PacketType::DATA_USING_GPA_DIRECT, PacketFlags::COMPLETION_REQUESTED, id, extra, 40)
            .unwrap();
        let head = GpaDirectHeader { reserved: 0, range_count: ranges.len() as u32 };
        packet.put(head.as_bytes()).unwrap();
        for (range, pfn) in &ranges {
            packet.put_u64(range.to_u64()).unwrap();
            for page in 0..u64::from(range.page_count()) {
                packet.put_u64(pfn + page).unwrap();
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
    let range = GpaRangeHeader {
        byte_count: u32::MAX,
        byte_offset: 0,
    };
    let nothing = tx.send_gpa_ranges(0, &[], 1, [0; 5]);
    assert_eq!(nothing, Err(WriteError::WrongLength));
    let huge = tx.send_gpa_ranges(0, &[(range, 0)], 1, [0; 5]);
    assert_eq!(huge, Err(WriteError::TooLarge));
    let large = GpaRangeHeader {
        byte_count: 4096 * 500,
        byte_offset: 0,
    };
    let large = tx.send_gpa_ranges(0, &[(large, 0)], 1, [0; 5]);
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
