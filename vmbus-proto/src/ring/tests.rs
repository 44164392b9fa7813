// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Tests of the ring: boundaries, attacks, an exhaustive model, two threads.

use core::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::packet::{PacketFlags, PacketKind, PacketType, TransferRange};
use crate::range::GpaRangeHeader;

/// A ring in memory that two threads may share.
pub struct TestRing {
    control: [AtomicU32; 17],
    data: Vec<AtomicU64>,
}

impl TestRing {
    pub fn new(size: usize) -> Arc<Self> {
        let mut data = Vec::new();
        data.resize_with(size / 8, || AtomicU64::new(0xa5a5_a5a5_a5a5_a5a5));
        Arc::new(Self {
            control: [const { AtomicU32::new(0xffff_ffff) }; 17],
            data,
        })
    }

    /// What the peer does to a control word.
    pub fn poke(&self, word: ControlWord, value: u32) {
        self.control[word.offset() / 4].store(value, Ordering::SeqCst);
    }

    pub fn peek(&self, word: ControlWord) -> u32 {
        self.control[word.offset() / 4].load(Ordering::SeqCst)
    }

    /// What the peer does to the data.
    pub fn poke_data(&self, offset: usize, value: u64) {
        self.data[offset / 8].store(value, Ordering::SeqCst);
    }

    pub fn peek_data(&self, offset: usize) -> u64 {
        self.data[offset / 8].load(Ordering::SeqCst)
    }
}

impl RingMemory for Arc<TestRing> {
    fn data_size(&self) -> u32 {
        (self.data.len() * 8) as u32
    }
    fn load(&self, word: ControlWord) -> u32 {
        self.control[word.offset() / 4].load(Ordering::Relaxed)
    }
    fn load_acquire(&self, word: ControlWord) -> u32 {
        self.control[word.offset() / 4].load(Ordering::Acquire)
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.control[word.offset() / 4].store(value, Ordering::Relaxed);
    }
    fn store_release(&self, word: ControlWord, value: u32) {
        self.control[word.offset() / 4].store(value, Ordering::Release);
    }
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn read(&self, offset: u32, out: &mut [u8]) {
        let size = self.data.len() * 8;
        assert!((offset as usize) < size && out.len() <= size);
        for (i, byte) in out.iter_mut().enumerate() {
            let at = (offset as usize + i) % size;
            *byte = self.data[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8];
        }
    }
    fn write(&self, offset: u32, bytes: &[u8]) {
        let size = self.data.len() * 8;
        assert!((offset as usize) < size && bytes.len() <= size);
        for (i, byte) in bytes.iter().enumerate() {
            let at = (offset as usize + i) % size;
            let mut word = self.data[at / 8].load(Ordering::Relaxed).to_le_bytes();
            word[at % 8] = *byte;
            self.data[at / 8].store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }
    fn read_u64(&self, offset: u32) -> u64 {
        assert_eq!(offset % 8, 0);
        self.data[offset as usize / 8].load(Ordering::Relaxed)
    }
    fn write_u64(&self, offset: u32, value: u64) {
        assert_eq!(offset % 8, 0);
        self.data[offset as usize / 8].store(value, Ordering::Relaxed);
    }
}

type Tx = Producer<Arc<TestRing>>;
type Rx = Consumer<Arc<TestRing>>;

/// A ring with the guest writing and the host reading.
fn pair(size: usize) -> (Arc<TestRing>, Tx, Rx) {
    let ring = TestRing::new(size);
    let tx = Producer::init(ring.clone()).unwrap();
    let rx = Consumer::attach(ring.clone()).unwrap();
    (ring, tx, rx)
}

/// A payload that takes `ring_len` bytes in the ring.
fn payload(ring_len: usize, fill: u8) -> Vec<u8> {
    vec![fill; ring_len - 24]
}

fn read(rx: &mut Rx) -> Result<(u64, Vec<u8>), ReadError> {
    let mut buffer = [0; 4096];
    rx.read(&mut buffer)
        .map(|p| (p.transaction_id(), p.payload.to_vec()))
}

#[test]
fn a_fresh_ring_has_its_words_set() {
    let (ring, _tx, mut rx) = pair(4096);
    for word in [
        ControlWord::WriteIndex,
        ControlWord::ReadIndex,
        ControlWord::InterruptMask,
        ControlWord::PendingSendSize,
    ] {
        assert_eq!(ring.peek(word), 0, "{word:?}");
    }
    assert_eq!(ring.peek(ControlWord::FeatureBits), 1);
    assert_eq!(rx.peek().unwrap_err(), ReadError::Empty);
}

#[test]
fn sizes_that_are_no_ring() {
    for size in [0, 8, 4088, 4104, 6144] {
        let ring = TestRing::new(size);
        let expect = RingError::BadSize { size: size as u32 };
        assert_eq!(Producer::init(ring.clone()).err(), Some(expect));
        assert_eq!(Producer::attach(ring.clone()).err(), Some(expect));
        assert_eq!(Consumer::init(ring.clone()).err(), Some(expect));
        assert_eq!(Consumer::attach(ring).err(), Some(expect));
    }
}

/// The bytes on the ring, against a packet written out by hand.
#[test]
fn layout_of_a_packet() {
    let (ring, mut tx, _rx) = pair(4096);
    tx.send_in_band(&[1; 8], 0x1122, true).unwrap();
    tx.send_in_band(&[0xff; 5], 0x3344, false).unwrap();
    assert_eq!(
        ring.peek(ControlWord::WriteIndex),
        0,
        "invisible before the commit"
    );
    assert!(tx.commit());
    assert_eq!(ring.peek(ControlWord::WriteIndex), 64);
    // Type 6, offset 2, length 3, flag 1.
    assert_eq!(ring.peek_data(0), 0x0001_0003_0002_0006);
    assert_eq!(ring.peek_data(8), 0x1122);
    assert_eq!(ring.peek_data(16), 0x0101_0101_0101_0101);
    assert_eq!(ring.peek_data(24), 0);
    assert_eq!(ring.peek_data(32), 0x0000_0003_0002_0006);
    assert_eq!(ring.peek_data(40), 0x3344);
    assert_eq!(
        ring.peek_data(48),
        0x0000_00ff_ffff_ffff,
        "padding is zero, not what the memory held"
    );
    assert_eq!(ring.peek_data(56), 32 << 32, "trailer names the start");
}

#[test]
fn kinds_of_packets_arrive_as_sent() {
    let (_ring, mut tx, mut rx) = pair(4096);
    let range = GpaRangeHeader {
        byte_count: 8192,
        byte_offset: 100,
    };
    let transfer = [TransferRange {
        byte_count: 1500,
        byte_offset: 3000,
    }; 3];
    tx.send_gpa_direct(range, [10, 20, 30], b"command!", 1)
        .unwrap();
    tx.send_transfer_pages(0xcafe, &transfer, b"rndis", 2)
        .unwrap();
    tx.send_completion(3, b"").unwrap();
    let _ = tx.commit();
    let mut buffer = [0; 4096];

    let packet = rx.read(&mut buffer).unwrap();
    assert_eq!(packet.payload, b"command!");
    assert!(packet.wants_completion());
    let PacketKind::GpaDirect(ranges) = packet.kind else {
        panic!("{packet:?}")
    };
    let ranges: Vec<_> = ranges.iter().collect();
    assert_eq!((ranges[0].byte_offset, ranges[0].byte_count), (100, 8192));
    assert_eq!(ranges[0].pfns().collect::<Vec<_>>(), [10, 20, 30]);

    let packet = rx.read(&mut buffer).unwrap();
    assert_eq!(&packet.payload[..5], b"rndis");
    let PacketKind::TransferPages { set_id, ranges } = packet.kind else {
        panic!("{packet:?}")
    };
    assert_eq!(set_id, 0xcafe);
    assert_eq!(ranges.iter().collect::<Vec<_>>(), transfer);

    let packet = rx.read(&mut buffer).unwrap();
    assert_eq!(packet.kind, PacketKind::Completion);
    assert_eq!(packet.transaction_id(), 3);
    assert!(packet.payload.is_empty() && !packet.wants_completion());
    assert_eq!(rx.read(&mut buffer), Err(ReadError::Empty));
}

/// Packets whose pages differ from what was announced never reach the ring.
#[test]
fn wrong_number_of_pages() {
    let (ring, mut tx, _rx) = pair(4096);
    let range = GpaRangeHeader {
        byte_count: 4097,
        byte_offset: 0,
    };
    for pfns in [&[1][..], &[1, 2, 3]] {
        assert_eq!(
            tx.send_gpa_direct(range, pfns.iter().copied(), &[0; 64], 0),
            Err(WriteError::WrongLength)
        );
    }
    let mut packet = tx
        .begin(PacketType::DATA_INBAND, PacketFlags::empty(), 0, 0, 4)
        .unwrap();
    assert_eq!(packet.put(&[0; 5]), Err(WriteError::WrongLength));
    assert_eq!(packet.put_u64(0), Err(WriteError::WrongLength));
    assert_eq!(packet.finish(), Err(WriteError::WrongLength));
    assert_eq!(
        tx.begin(PacketType::DATA_INBAND, PacketFlags::empty(), 0, 7, 0)
            .err(),
        Some(WriteError::WrongLength)
    );
    assert!(!tx.commit(), "nothing to commit");
    assert_eq!(ring.peek(ControlWord::WriteIndex), 0);
}

#[test]
fn full_and_too_large() {
    let (_ring, mut tx, mut rx) = pair(4096);
    assert_eq!(
        tx.send_in_band(&payload(4096, 0), 0, false),
        Err(WriteError::TooLarge)
    );
    assert_eq!(
        tx.send_in_band(&vec![0; 1 << 20], 0, false),
        Err(WriteError::TooLarge)
    );
    tx.send_in_band(&payload(4088, 1), 7, false).unwrap();
    assert_eq!(
        tx.send_in_band(&[], 0, false),
        Err(WriteError::Full { needed: 24 })
    );
    assert_eq!(tx.free(), Ok(0));
    assert!(tx.commit());
    assert_eq!(read(&mut rx).unwrap().0, 7);
    assert_eq!(
        tx.send_in_band(&[], 0, false),
        Err(WriteError::Full { needed: 24 }),
        "read but not committed"
    );
    assert!(!rx.commit());
    tx.send_in_band(&payload(4088, 2), 8, false).unwrap();
    assert!(tx.commit());
    assert_eq!(read(&mut rx).unwrap(), (8, payload(4088, 2)));
}

/// Every start position of a packet in the ring, so every way to wrap.
#[test]
fn wraps_at_every_position() {
    let (_ring, mut tx, mut rx) = pair(4096);
    for i in 0..1024u64 {
        let body: Vec<u8> = (0..(i % 61)).map(|b| (b + i) as u8).collect();
        tx.send_in_band(&body, i, false).unwrap();
        tx.send_gpa_direct(
            GpaRangeHeader {
                byte_count: 4096 * 3,
                byte_offset: 0,
            },
            [i, i + 1, i + 2],
            &body,
            i,
        )
        .unwrap();
        let _ = tx.commit();
        let (id, got) = read(&mut rx).unwrap();
        assert_eq!((id, &got[..body.len()]), (i, &body[..]));
        let mut buffer = [0; 256];
        let packet = rx.read(&mut buffer).unwrap();
        let PacketKind::GpaDirect(ranges) = packet.kind else {
            panic!("{packet:?}")
        };
        let pfns: Vec<_> = ranges.iter().next().unwrap().pfns().collect();
        assert_eq!(pfns, [i, i + 1, i + 2]);
        assert_eq!(&packet.payload[..body.len()], &body[..]);
        let _ = rx.commit();
    }
}

// Attacks: what a hostile peer can write, each named.

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

// Signals.

#[test]
fn signal_only_when_the_ring_was_empty_and_unmasked() {
    let (_ring, mut tx, mut rx) = pair(4096);
    let send = |tx: &mut Tx| {
        tx.send_in_band(&[0; 8], 0, false).unwrap();
        tx.commit()
    };
    assert!(!tx.commit(), "nothing written");
    assert!(send(&mut tx), "empty before");
    assert!(!send(&mut tx), "not empty");
    read(&mut rx).unwrap();
    read(&mut rx).unwrap();
    assert!(!send(&mut tx), "read, but the index does not say so yet");
    assert!(!rx.commit());
    read(&mut rx).unwrap();
    let drained = rx.finish();
    assert!(!drained.more);
    rx.mask();
    assert!(rx.is_masked());
    assert!(!send(&mut tx), "masked");
    assert_eq!(
        rx.finish(),
        Drained {
            signal: false,
            more: true
        },
        "written while masked"
    );
    assert!(!send(&mut tx), "unmasked, but not empty");
    read(&mut rx).unwrap();
    read(&mut rx).unwrap();
    assert!(!rx.finish().more);
    assert!(send(&mut tx), "empty and unmasked");
}

#[test]
fn signal_for_space_only_when_it_crosses_the_mark() {
    let (ring, mut tx, mut rx) = pair(4096);
    // Four packets of 1000: 96 bytes free, of which 88 usable.
    for i in 0..4 {
        tx.send_in_band(&payload(1000, 0), i, false).unwrap();
    }
    let _ = tx.commit();
    let Err(WriteError::Full { needed }) = tx.send_in_band(&payload(2000, 0), 4, false) else {
        panic!()
    };
    assert_eq!(needed, 2000);
    assert_eq!(tx.request_space(needed), Ok(false));
    assert_eq!(ring.peek(ControlWord::PendingSendSize), 2000);
    let mut step = || {
        read(&mut rx).unwrap();
        rx.commit()
    };
    assert!(!step(), "1096 free");
    assert!(step(), "2096 free: crosses 2000");
    assert!(!step(), "3096 free: had enough before");
    tx.send_in_band(&payload(2000, 0), 4, false).unwrap();
    assert_eq!(
        ring.peek(ControlWord::PendingSendSize),
        0,
        "request over with the write"
    );
}

/// The signal comes exactly when the write that waits can succeed.
#[test]
fn signal_for_space_at_the_boundary() {
    for (free_after, enough) in [(1992, false), (2000, true), (2008, true)] {
        let (_ring, mut tx, mut rx) = pair(4096);
        tx.send_in_band(&payload(free_after, 0), 0, false).unwrap();
        tx.send_in_band(&payload(4096 - free_after - 8, 0), 1, false)
            .unwrap();
        let _ = tx.commit();
        assert_eq!(tx.free(), Ok(0));
        assert_eq!(tx.request_space(2000), Ok(false));
        read(&mut rx).unwrap();
        assert_eq!(rx.commit(), enough, "{free_after}");
        let again = tx.send_in_band(&payload(2000, 0), 2, false);
        assert_eq!(again.is_ok(), enough, "{free_after}");
    }
}

#[test]
fn space_there_already_needs_no_signal() {
    let (ring, mut tx, mut rx) = pair(4096);
    tx.send_in_band(&payload(4000, 0), 0, false).unwrap();
    let _ = tx.commit();
    assert!(matches!(
        tx.send_in_band(&payload(1000, 0), 0, false),
        Err(WriteError::Full { .. })
    ));
    // The consumer reads between the failure and the request.
    read(&mut rx).unwrap();
    assert!(!rx.commit());
    assert_eq!(tx.request_space(1000), Ok(true));
    assert_eq!(ring.peek(ControlWord::PendingSendSize), 0);
    assert_eq!(tx.request_space(4096), Err(WriteError::TooLarge));
}

#[test]
fn writers_without_the_feature_are_not_signalled() {
    let (ring, mut tx, mut rx) = pair(4096);
    tx.send_in_band(&payload(4000, 0), 0, false).unwrap();
    let _ = tx.commit();
    assert_eq!(tx.request_space(1000), Ok(false));
    ring.poke(ControlWord::FeatureBits, 0);
    read(&mut rx).unwrap();
    assert!(!rx.commit());
}

/// Some writers ask for the ring's size minus one, meaning "when it is empty".
#[test]
fn pending_size_of_the_whole_ring() {
    let (ring, mut tx, mut rx) = pair(4096);
    for i in 0..2 {
        tx.send_in_band(&payload(1000, 0), i, false).unwrap();
    }
    let _ = tx.commit();
    ring.poke(ControlWord::PendingSendSize, 4095);
    read(&mut rx).unwrap();
    assert!(!rx.commit());
    read(&mut rx).unwrap();
    assert!(rx.commit());
    ring.poke(ControlWord::PendingSendSize, u32::MAX);
    tx.send_in_band(&[], 0, false).unwrap();
    let _ = tx.commit();
    read(&mut rx).unwrap();
    assert!(!rx.commit(), "more than the ring has: never");
}

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
