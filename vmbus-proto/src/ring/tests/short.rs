// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The short ways that disk requests take do what the long ones do.

use super::*;
use proptest::prelude::*;
use zerocopy::IntoBytes;

/// A ring whose indexes are `start` bytes in.
pub fn pair_at(start: u32) -> (Arc<TestRing>, Tx, Rx) {
    let (ring, mut tx, mut rx) = pair(4096);
    let mut left = start;
    while left > 0 {
        let len = if left > 4096 - 8 { left / 16 * 8 } else { left };
        tx.send_in_band(&payload(len as usize, 0xee), 1, false)
            .unwrap();
        let _ = tx.commit();
        read(&mut rx).unwrap();
        let _ = rx.commit();
        left -= len;
    }
    assert_eq!(tx.write_index(), start % 4096);
    (ring, tx, rx)
}

/// The short way. False when it cannot be taken.
fn put(
    tx: &mut Tx,
    keep: u32,
    range: GpaRangeHeader,
    pfns: impl Iterator<Item = u64>,
    id: u64,
    payload: [u64; 8],
) -> bool {
    let Some(room) = tx.begin_gpa_direct(keep, range) else {
        return false;
    };
    let pfns: Vec<u64> = pfns.collect();
    assert_eq!(room.pfns().len(), pfns.len());
    for (word, pfn) in room.pfns().iter().zip(&pfns) {
        word.store(*pfn, Ordering::Relaxed);
    }
    let packet = room.fill(id, &payload);
    tx.finish_gpa_direct(packet);
    true
}

proptest! {
    /// Wherever the packet lies it is the one that is written piece by piece. It is not written across the end of the ring, where this
    /// memory has no window.
    #[test]
    fn gpa_direct_is_the_same_packet(
        start in (3u32..511).prop_map(|n| n * 8),
        bytes in 1u32..80_000,
        offset in 0u32..4096,
        payload: [u64; 8],
        id: u64,
    ) {
        let range = GpaRangeHeader { byte_count: bytes, byte_offset: offset };
        let pfns: Vec<u64> = (0..u64::from(range.page_count())).map(|n| n * 3 + id % 7).collect();
        let (short_ring, mut short, mut rx) = pair_at(start);
        let (long_ring, mut long, _rx) = pair_at(start);

        let _ = short.free();
        let written = put(&mut short, 0, range, pfns.iter().copied(), id, payload);
        long.send_gpa_direct(range, pfns.iter().copied(), payload.as_bytes(), id).unwrap();
        prop_assert_eq!(written, start as usize + 32 + 8 * pfns.len() + 64 + 8 <= 4096);
        if !written {
            prop_assert!(!short.commit(), "nothing has happened");
            prop_assert_eq!(short.write_index(), start);
            return Ok(());
        }

        let _ = (short.commit(), long.commit());
        prop_assert_eq!(short.write_index(), long.write_index());
        for at in (0..4096).step_by(8) {
            prop_assert_eq!(short_ring.peek_data(at), long_ring.peek_data(at), "at {}", at);
        }
        let mut buffer = [0; 4096];
        let read = rx.read(&mut buffer).unwrap();
        let PacketKind::GpaDirect(ranges) = read.kind else { panic!("{read:?}") };
        prop_assert_eq!(ranges.iter().next().unwrap().pfns().collect::<Vec<_>>(), pfns);
        prop_assert_eq!(read.payload, payload.as_bytes());
    }

    /// What is taken is what the long way reads, and what is not taken is left for it.
    #[test]
    fn completions_are_the_same_packets(
        start in (3u32..511).prop_map(|n| n * 8),
        packets in proptest::collection::vec((0u8..4, 0usize..100, any::<u8>(), any::<bool>()), 1..12),
    ) {
        let (_ring, mut tx, mut rx) = pair_at(start);
        let (_ring2, mut tx2, mut rx2) = pair_at(start);
        for (n, (kind, len, fill, _)) in packets.iter().enumerate() {
            let len = if kind % 2 == 0 { 64 } else { *len };
            let bytes = vec![*fill; len];
            for tx in [&mut tx, &mut tx2] {
                match kind {
                    0 | 1 => tx.send_completion(n as u64, &bytes).unwrap(),
                    _ => tx.send_in_band(&bytes, n as u64, true).unwrap(),
                }
                let _ = tx.commit();
            }
        }
        let mut rx_start = start;
        for (kind, len, _, want) in packets {
            let expected = read(&mut rx2).unwrap();
            let taken = rx.take_completion(64, |id, head: &[u64; 4]| {
                want.then(|| (id, head.as_bytes().to_vec()))
            });
            // Nor is it taken from across the end.
            let whole = rx_start as usize + 16 + 64 + 8 <= 4096;
            let plain = whole && (kind == 0 || (kind == 1 && len.next_multiple_of(8) == 64));
            rx_start = (rx_start + 16 + 8 + expected.1.len().next_multiple_of(8) as u32) % 4096;
            prop_assert_eq!(taken.is_some(), plain && want);
            match taken {
                Some((id, head)) => {
                    prop_assert_eq!(id, expected.0);
                    prop_assert_eq!(&head[..], &expected.1[..32]);
                }
                None => prop_assert_eq!(read(&mut rx).unwrap(), expected),
            }
        }
        prop_assert!(rx.is_drained());
        prop_assert!(rx.take_completion(64, |_, _: &[u64; 4]| Some(())).is_none());
        prop_assert_eq!(rx.finish(), rx2.finish());
        prop_assert_eq!(rx.read_index(), rx2.read_index());
    }
}

#[test]
fn page_frame_numbers_are_counted() {
    let range = GpaRangeHeader {
        byte_count: 8192,
        byte_offset: 0,
    };
    for count in [0u64, 1, 3, 100] {
        let (_ring, mut tx, mut rx) = pair(4096);
        let wrong = Err(WriteError::WrongLength);
        assert_eq!(tx.send_gpa_direct(range, 0..count, &[1; 64], 9), wrong);
        assert!(!tx.commit(), "nothing was sent");
        assert_eq!(read(&mut rx), Err(ReadError::Empty));
    }
    let (_ring, tx, _rx) = pair(4096);
    let huge = GpaRangeHeader {
        byte_count: u32::MAX,
        byte_offset: 4095,
    };
    assert!(tx.begin_gpa_direct::<8>(0, huge).is_none());
}

#[test]
fn room_is_kept() {
    let range = GpaRangeHeader {
        byte_count: 4096,
        byte_offset: 0,
    };
    // 16 + 8 + 8 + 8 + 64 + 8 bytes; 4088 can be used.
    const LEN: u32 = 112;
    let send = |tx: &mut Tx, keep| put(tx, keep, range, [5].into_iter(), 1, [0; 8]);
    let (_ring, mut tx, mut rx) = pair(4096);
    let mut sent = 0;
    while send(&mut tx, 1000) {
        sent += 1;
    }
    assert_eq!(sent, (4088 - 1000) / LEN);
    assert!(send(&mut tx, 0), "there is room, but not so much");
    assert!(!send(&mut tx, u32::MAX), "more than the ring has");
    let _ = tx.commit();
    for _ in 0..=sent {
        read(&mut rx).unwrap();
    }
    let _ = rx.commit();
    assert!(!send(&mut tx, 1000), "the reader's index is not looked at");
    assert!(tx.has_room(1000).unwrap(), "but here");
    assert!(send(&mut tx, 1000));
    assert!(!tx.request_space(4088).unwrap());
    assert!(
        !send(&mut tx, 0),
        "a request for space is left to the long way"
    );
    tx.cancel_space_request();
    assert!(send(&mut tx, 1000));
}

#[test]
fn attack_completions_that_are_none() {
    // Of 64 bytes, but the ring holds less than that.
    let (ring, _tx, mut rx) = pair(4096);
    ring.poke_data(0, 0x000a_0002_000b);
    for written in [8, 24, 80, 88] {
        ring.poke(ControlWord::WriteIndex, 0);
        let mut fresh = Consumer::attach(ring.clone()).unwrap();
        ring.poke(ControlWord::WriteIndex, written);
        let taken = fresh.take_completion(64, |_, _: &[u64; 4]| Some(()));
        assert_eq!(taken.is_some(), written == 88);
        if taken.is_none() {
            assert!(matches!(fresh.peek(), Err(ReadError::Corrupt(_))));
        }
    }
    // An index that is none.
    for index in [1, 4096, u32::MAX] {
        ring.poke(ControlWord::WriteIndex, index);
        assert!(rx.take_completion(64, |_, _: &[u64; 4]| Some(())).is_none());
        assert_eq!(
            rx.peek().unwrap_err(),
            ReadError::Corrupt(RingError::BadWriteIndex { index })
        );
    }
    // More words than the payload has are never given.
    let (_ring, mut tx, mut rx) = pair(4096);
    tx.send_completion(1, &[0; 16]).unwrap();
    let _ = tx.commit();
    assert!(rx.take_completion(16, |_, _: &[u64; 3]| Some(())).is_none());
    assert!(rx.take_completion(16, |_, _: &[u64; 2]| Some(())).is_some());
}
