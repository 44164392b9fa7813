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
        // The shorter way is not taken when there are too many words, nor when the room for the most words lies across the end of the
        // ring, where this memory has no window.
        let _ = short.free();
        let words: usize = ranges.iter().map(|run| run.range.encoded_len() / 8).sum();
        if !short.put_gpa_ranges(0, id, payload, |to: &[AtomicU64; 60]| put(&ranges, to)) {
            prop_assert!(words > 60 || start + 8 * (3 + 60 + 5 + 1) > 4096);
            short.send_gpa_ranges(0, &ranges, id, payload).unwrap();
        }
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

/// Writes ranges into words, as is asked of who has them written in place.
fn put(ranges: &[GpaRun], to: &[AtomicU64]) -> Option<PutRanges> {
    let mut words = 0;
    let mut put = |word: u64| {
        to.get(words)?.store(word.to_le(), Ordering::Relaxed);
        words += 1;
        Some(())
    };
    for GpaRun { range, first } in ranges {
        put(range.to_u64())?;
        for page in 0..u64::from(range.page_count()) {
            put(first + page)?;
        }
    }
    Some(PutRanges {
        ranges: ranges.len() as u32,
        words: words as u32,
    })
}

/// What the shorter way refuses is not written, and the longer way is not disturbed.
#[test]
fn ranges_that_are_not_put() {
    let (_ring, mut tx, mut rx) = pair(4096);
    let run = GpaRun {
        range: GpaRangeHeader {
            byte_count: 1,
            byte_offset: 0,
        },
        first: 7,
    };
    let written = |ranges, words| Some(PutRanges { ranges, words });
    let send = |tx: &mut Tx, keep, answer| {
        tx.put_gpa_ranges(keep, 1, [0; 5], |to: &[AtomicU64; 2]| {
            assert_eq!(put(&[run], to), written(1, 2));
            answer
        })
    };
    let good = written(1, 2);
    for bad in [None, written(0, 0), written(1, 3), written(1, u32::MAX)] {
        assert!(!send(&mut tx, 0, bad), "{bad:?}");
    }
    // 3 + 2 + 5 + 1 words. One byte more than is left after that is not there.
    let keep = 4088 - 8 * 11;
    assert!(!send(&mut tx, keep + 1, good));
    assert!(send(&mut tx, keep, good));
    let _ = tx.commit();
    // Who has asked for space takes that back, which is the other way's.
    assert_eq!(tx.request_space(4088), Ok(false));
    assert!(!send(&mut tx, 0, good));
    tx.send_gpa_ranges(0, &[run], 2, [0; 5]).unwrap();
    let _ = tx.commit();
    for id in [1, 2] {
        assert_eq!(read(&mut rx).unwrap().0, id);
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
            let taken = take_one(&mut rx, |packet| {
                seen = true;
                want.then(|| (packet.packet_type(), packet.transaction_id(), bytes(packet.extra()), bytes(packet.payload())))
            });
            match taken {
                Ok((kind, id, extra, payload)) => {
                    prop_assert_eq!(kind, expected.descriptor.packet_type);
                    prop_assert_eq!(id, expected.descriptor.transaction_id);
                    prop_assert_eq!(extra.len() as u32, expected.descriptor.payload_offset() - 16);
                    prop_assert_eq!(&payload[..], expected.payload);
                }
                // Nor is it shown when something lies across the end of the ring, where this memory has no window.
                Err(left) => {
                    prop_assert!(left == Shown::Left && !(seen && *want));
                    let mut buffer = [0; 4096];
                    prop_assert_eq!(rx.read(&mut buffer).unwrap(), expected);
                }
            }
        }
        prop_assert_eq!(take_one(&mut rx, |_| Some(())), Err(Shown::All));
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
            let shown = take_one(&mut fresh, |packet| Some(packet.extra().len() + packet.payload().len() + 3));
            let peeked = Consumer::attach(ring.clone()).unwrap().peek();
            prop_assert_eq!(shown.is_ok(), peeked.is_ok(), "{:?}", peeked);
            prop_assert_eq!(shown == Err(Shown::All), written == 0);
            if let Ok(words) = shown {
                prop_assert!(words <= written as usize);
                prop_assert_eq!(words * 8, peeked.unwrap().descriptor.ring_len() as usize);
            }
        }
        for index in [1, 4096, u32::MAX] {
            ring.poke(ControlWord::WriteIndex, index);
            prop_assert_eq!(take_one(&mut rx, |_| Some(())), Err(Shown::Left));
        }
    }

    /// Many in one go: each is shown once, in order; what is left is shown again, or read the long way.
    #[test]
    fn many_packets_in_place(
        start in (3u32..511).prop_map(|n| n * 8),
        sizes in proptest::collection::vec(0usize..100, 1..25),
        steps in proptest::collection::vec(0u8..8, 1..40),
    ) {
        let (_ring, mut tx, mut rx) = pair_at(start);
        for (n, len) in sizes.iter().enumerate() {
            tx.send_in_band(&vec![n as u8; *len], n as u64, false).unwrap();
        }
        let _ = tx.commit();
        let mut steps = steps.into_iter();
        let mut next = 0;
        while next < sizes.len() {
            let before = next;
            let mut last = None;
            let shown = rx.take_while(|packet| {
                assert!(matches!(last, None | Some(Step::Next)), "shown after {last:?}");
                assert_eq!(packet.transaction_id(), next as u64);
                assert_eq!(packet.payload().len(), sizes[next].div_ceil(8));
                let step = match steps.next() {
                    Some(0) => Step::Stop,
                    Some(1) => Step::Leave,
                    _ => Step::Next,
                };
                next += usize::from(step != Step::Leave);
                last = Some(step);
                step
            });
            let expected = match last {
                Some(Step::Stop) => Shown::Enough,
                Some(Step::Next) => Shown::All,
                // None when the rest lies across the end of the ring, where this memory has no window.
                Some(Step::Leave) | None => Shown::Left,
            };
            prop_assert_eq!(shown, expected);
            prop_assert_eq!(shown == Shown::All, next == sizes.len() && last == Some(Step::Next));
            if next == before {
                prop_assert_eq!(read(&mut rx).unwrap().0, next as u64);
                next += 1;
            }
        }
        prop_assert_eq!(rx.take_while(|_| panic!("nothing is left")), Shown::All);
        let _ = rx.commit();
        prop_assert_eq!(rx.read_index(), tx.write_index());
    }
}

/// What `take` makes of the next packet, or why it has taken none.
fn take_one<R>(
    rx: &mut Rx,
    mut take: impl FnMut(&PacketView<'_>) -> Option<R>,
) -> Result<R, Shown> {
    let mut taken = None;
    let shown = rx.take_while(|packet| {
        taken = take(packet);
        if taken.is_some() {
            Step::Stop
        } else {
            Step::Leave
        }
    });
    match taken {
        Some(taken) => {
            assert_eq!(shown, Shown::Enough);
            Ok(taken)
        }
        None => Err(shown),
    }
}
