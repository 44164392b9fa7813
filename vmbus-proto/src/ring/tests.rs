// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Tests of the ring: boundaries, attacks, an exhaustive model, two threads, the short ways of storage.

mod attacks;
mod model;
mod short;
mod signals;
mod words;

use core::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
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
        let offset = offset as usize;
        assert!(offset < size && out.len() <= size);
        let mut at = offset;
        for chunk in out.chunks_mut(8) {
            if at % 8 == 0 {
                let word = self.data[at % size / 8].load(Ordering::Relaxed);
                chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            } else {
                for (i, byte) in chunk.iter_mut().enumerate() {
                    let at = (at + i) % size;
                    *byte = self.data[at / 8].load(Ordering::Relaxed).to_le_bytes()[at % 8];
                }
            }
            at += 8;
        }
    }
    fn write(&self, offset: u32, bytes: &[u8]) {
        let size = self.data.len() * 8;
        let offset = offset as usize;
        assert!(offset < size && bytes.len() <= size);
        let mut at = offset;
        for chunk in bytes.chunks(8) {
            if let (0, Ok(word)) = (at % 8, <[u8; 8]>::try_from(chunk)) {
                self.data[at % size / 8].store(u64::from_le_bytes(word), Ordering::Relaxed);
            } else {
                for (i, byte) in chunk.iter().enumerate() {
                    let at = (at + i) % size;
                    let mut word = self.data[at / 8].load(Ordering::Relaxed).to_le_bytes();
                    word[at % 8] = *byte;
                    self.data[at / 8].store(u64::from_le_bytes(word), Ordering::Relaxed);
                }
            }
            at += 8;
        }
    }
    // Not across the end: so both ways are tested.
    fn window(&self, offset: u32, len: u32) -> Option<&[AtomicU64]> {
        assert!(offset % 8 == 0 && len % 8 == 0);
        self.data
            .get(offset as usize / 8..(offset + len) as usize / 8)
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

/// A reader that never finds the ring empty is told to give room back in time.
#[test]
fn a_writer_as_fast_as_the_reader_never_finds_the_ring_full() {
    let (_ring, mut tx, mut rx) = pair(4096);
    for id in 0..1000 {
        tx.send_in_band(&payload(64, 1), id, false).unwrap();
        let _ = tx.commit();
        if rx.should_commit() {
            assert!(!rx.commit());
        }
        assert_eq!(read(&mut rx).unwrap().0, id);
    }
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
