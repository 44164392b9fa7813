// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! All sequences of operations, two threads, and properties.

use super::*;
use std::collections::VecDeque;

/// Every sequence of operations of both sides, up to a length, against a model that knows nothing of
/// indexes.
#[test]
fn exhaustive_model() {
    #[derive(Clone, Copy, Debug)]
    enum Op {
        Write(usize),
        CommitWrite,
        Read,
        CommitRead,
        Mask,
        Finish,
    }
    const OPS: [Op; 7] = [
        Op::Write(1360),
        Op::Write(2048),
        Op::CommitWrite,
        Op::Read,
        Op::CommitRead,
        Op::Mask,
        Op::Finish,
    ];
    const LENGTH: u32 = 5;
    let mut buffer = vec![0; 4096];
    // A start away from 0 makes the second packet wrap.
    for start in [0u64, 1, 2] {
        for code in 0..OPS.len().pow(LENGTH) {
            let (_ring, mut tx, mut rx) = pair(4096);
            for _ in 0..start {
                tx.send_in_band(&payload(1360, 0), 0, false).unwrap();
                assert!(tx.commit());
                rx.read(&mut buffer).unwrap();
                assert!(!rx.commit());
            }
            // (id, size) of packets written, visible, and read but not given back.
            let (mut hidden, mut visible) = (VecDeque::new(), VecDeque::new());
            let mut kept: usize = 0;
            let mut masked = false;
            let mut used = 0usize;
            let mut id = 0;
            let mut rest = code;
            for _ in 0..LENGTH {
                let op = OPS[rest % OPS.len()];
                rest /= OPS.len();
                match op {
                    Op::Write(size) => {
                        id += 1;
                        let fits = used + size <= 4096 - 8;
                        let result = tx.send_in_band(&payload(size, id as u8), id, false);
                        if fits {
                            assert_eq!(result, Ok(()), "{code}");
                            hidden.push_back((id, size));
                            used += size;
                        } else {
                            assert_eq!(
                                result,
                                Err(WriteError::Full {
                                    needed: size as u32
                                })
                            );
                        }
                    }
                    Op::CommitWrite => {
                        let empty = visible.is_empty() && kept == 0;
                        let expect = !hidden.is_empty() && empty && !masked;
                        assert_eq!(tx.commit(), expect, "{code}");
                        visible.append(&mut hidden);
                    }
                    Op::Read => match (rx.read(&mut buffer), visible.pop_front()) {
                        (Ok(packet), Some((id, size))) => {
                            assert_eq!(packet.transaction_id(), id);
                            assert_eq!(packet.payload, payload(size, id as u8));
                            kept += size;
                        }
                        (Err(ReadError::Empty), None) => {}
                        other => panic!("{code}: {other:?}"),
                    },
                    Op::CommitRead => {
                        assert!(!rx.commit(), "nobody waits for space");
                        used -= kept;
                        kept = 0;
                    }
                    Op::Mask => {
                        rx.mask();
                        masked = true;
                    }
                    Op::Finish => {
                        let drained = rx.finish();
                        assert_eq!(drained.more, !visible.is_empty(), "{code}");
                        assert!(!drained.signal);
                        used -= kept;
                        kept = 0;
                        masked = false;
                    }
                }
            }
        }
    }
}

/// A bell that one thread rings and the other waits for. Waiting is limited, so that a lost signal
/// fails the test.
struct Bell {
    rung: std::sync::Mutex<u64>,
    changed: std::sync::Condvar,
}

impl Bell {
    fn new() -> Self {
        Self {
            rung: std::sync::Mutex::new(0),
            changed: std::sync::Condvar::new(),
        }
    }
    fn ring(&self) {
        *self.rung.lock().unwrap() += 1;
        self.changed.notify_one();
    }
    /// Waits for a ring since the last call and returns how many there were.
    fn wait(&self) -> u64 {
        let guard = self.rung.lock().unwrap();
        let limit = std::time::Duration::from_secs(30);
        let (mut guard, result) = self
            .changed
            .wait_timeout_while(guard, limit, |rung| *rung == 0)
            .unwrap();
        assert!(!result.timed_out(), "signal lost");
        core::mem::take(&mut *guard)
    }
}

/// Two threads, each asleep whenever it has nothing to do and woken by signals alone.
#[test]
fn two_threads_lose_no_packet_and_no_signal() {
    const PACKETS: u64 = if cfg!(miri) { 200 } else { 40_000 };
    let (_ring, mut tx, mut rx) = pair(4096);
    let data = Arc::new(Bell::new());
    let space = Arc::new(Bell::new());
    let (data2, space2) = (data.clone(), space.clone());
    let writer = std::thread::spawn(move || {
        let mut rings = 0u64;
        for i in 0..PACKETS {
            let body = payload(24 + (i as usize * 7 % 90) * 8, i as u8);
            loop {
                match tx.send_in_band(&body, i, false) {
                    Ok(()) => break,
                    Err(WriteError::Full { needed }) => {
                        if tx.commit() {
                            data2.ring();
                            rings += 1;
                        }
                        if !tx.request_space(needed).unwrap() {
                            space2.wait();
                        }
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            if i % 3 == 0 && tx.commit() {
                data2.ring();
                rings += 1;
            }
        }
        if tx.commit() {
            data2.ring();
            rings += 1;
        }
        rings
    });
    let mut buffer = [0; 1024];
    let mut expect = 0;
    while expect < PACKETS {
        // Masked in every other turn: both ways of reading must be safe.
        if expect % 2 == 0 {
            rx.mask();
        }
        for _ in 0..5 {
            match rx.read(&mut buffer) {
                Ok(packet) => {
                    assert_eq!(packet.transaction_id(), expect);
                    assert!(packet.payload.iter().all(|b| *b == expect as u8));
                    expect += 1;
                }
                Err(ReadError::Empty) => break,
                Err(e) => panic!("{e}"),
            }
        }
        let drained = rx.finish();
        if drained.signal {
            space.ring();
        }
        if !drained.more && expect < PACKETS {
            data.wait();
        }
    }
    let rings = writer.join().unwrap();
    assert!(rings <= PACKETS / 3 + PACKETS / 2, "{rings} signals");
}

proptest::proptest! {
    /// Whatever bytes the ring holds and wherever the writer claims to be, reading ends in an error or
    /// in packets that lie within what was written.
    #[test]
    fn rubbish_never_reads_past_the_writer(
        words in proptest::collection::vec(proptest::prelude::any::<u64>(), 32),
        write in 0u32..33,
    ) {
        let ring = TestRing::new(4096);
        let mut rx = Consumer::init(ring.clone()).unwrap();
        for (i, word) in words.iter().enumerate() {
            // Lengths that have a chance.
            ring.poke_data(i * 8, word & 0xffff_001f_0007_000f);
        }
        ring.poke(ControlWord::WriteIndex, write * 8);
        let mut buffer = [0; 4096];
        let mut total = 0;
        while let Ok(packet) = rx.read(&mut buffer) {
            total += packet.descriptor.ring_len();
            proptest::prop_assert!(total <= write * 8);
        }
    }

    /// Packets of any size and kind come out as they went in.
    #[test]
    fn round_trip(
        packets in proptest::collection::vec(
            (proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), 0u64..9, 0u32..4),
            1..60,
        ),
    ) {
        let (_ring, mut tx, mut rx) = pair(4096);
        let mut buffer = [0; 4096];
        for (id, (body, pages, kind)) in packets.iter().enumerate() {
            let id = id as u64;
            match kind {
                0 => tx.send_in_band(body, id, true).unwrap(),
                1 => tx.send_completion(id, body).unwrap(),
                2 => tx.send_gpa_direct(
                    GpaRangeHeader { byte_count: 4096 * (*pages as u32 + 1), byte_offset: 0 },
                    0..=*pages, body, id,
                ).unwrap(),
                _ => tx.send_transfer_pages(
                    9, &vec![TransferRange { byte_count: 1, byte_offset: 2 }; *pages as usize], body, id,
                ).unwrap(),
            }
            let _ = tx.commit();
            let packet = rx.read(&mut buffer).unwrap();
            proptest::prop_assert_eq!(packet.transaction_id(), id);
            proptest::prop_assert_eq!(&packet.payload[..body.len()], &body[..]);
            proptest::prop_assert!(packet.payload[body.len()..].iter().all(|b| *b == 0));
            proptest::prop_assert!(packet.payload.len() < body.len() + 8);
            match packet.kind {
                PacketKind::GpaDirect(r) =>
                    proptest::prop_assert!(r.iter().next().unwrap().pfns().eq(0..=*pages)),
                PacketKind::TransferPages { ranges, .. } =>
                    proptest::prop_assert_eq!(ranges.len() as u64, *pages),
                _ => {}
            }
            let _ = rx.finish();
        }
    }
}
