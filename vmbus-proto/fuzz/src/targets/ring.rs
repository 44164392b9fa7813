// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Rings and the packets in them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use arbitrary::Unstructured;
use vmbus_proto::packet::{Packet, PacketKind};
use vmbus_proto::range::GpaRanges;
use vmbus_proto::ring::{Consumer, ControlWord, Producer, RingMemory};

use super::steps;

/// Bytes of the data area.
const SIZE: usize = 4096;

/// A ring that a single thread plays both sides of.
struct Memory {
    control: [Cell<u32>; 32],
    data: RefCell<Vec<u8>>,
}

/// One side's view of it.
#[derive(Clone)]
struct View(Rc<Memory>);

impl View {
    fn new() -> Self {
        Self(Rc::new(Memory {
            control: std::array::from_fn(|_| Cell::new(0)),
            data: RefCell::new(vec![0; SIZE]),
        }))
    }

    fn word(&self, word: ControlWord) -> &Cell<u32> {
        &self.0.control[word.offset() / 4]
    }
}

impl RingMemory for View {
    fn data_size(&self) -> u32 {
        SIZE as u32
    }
    fn load(&self, word: ControlWord) -> u32 {
        self.word(word).get()
    }
    fn load_acquire(&self, word: ControlWord) -> u32 {
        self.word(word).get()
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.word(word).set(value);
    }
    fn store_release(&self, word: ControlWord, value: u32) {
        self.word(word).set(value);
    }
    fn full_barrier(&self) {}
    fn read(&self, offset: u32, out: &mut [u8]) {
        assert!((offset as usize) < SIZE && out.len() <= SIZE);
        let data = self.0.data.borrow();
        for (at, byte) in out.iter_mut().enumerate() {
            *byte = data[(offset as usize + at) % SIZE];
        }
    }
    fn write(&self, offset: u32, bytes: &[u8]) {
        assert!((offset as usize) < SIZE && bytes.len() <= SIZE);
        let mut data = self.0.data.borrow_mut();
        for (at, byte) in bytes.iter().enumerate() {
            data[(offset as usize + at) % SIZE] = *byte;
        }
    }
    fn window(&self, _: u32, _: u32) -> Option<&[AtomicU64]> {
        None
    }
    fn read_u64(&self, offset: u32) -> u64 {
        let mut word = [0; 8];
        assert_eq!(offset % 8, 0);
        self.read(offset, &mut word);
        u64::from_le_bytes(word)
    }
    fn write_u64(&self, offset: u32, value: u64) {
        assert_eq!(offset % 8, 0);
        self.write(offset, &value.to_le_bytes());
    }
}

/// The other side changes control words and data while ours reads and writes. Whatever it does, nothing outside the
/// ring is asked for ([`View`] panics), and what is read fits the buffer.
pub fn hostile_peer(data: &[u8]) {
    let ring = View::new();
    let mut producer = Producer::init(ring.clone()).expect("a page is a ring");
    let mut consumer = Consumer::init(ring.clone()).expect("a page is a ring");
    let mut buffer = vec![0; SIZE];
    let words = [
        ControlWord::WriteIndex,
        ControlWord::ReadIndex,
        ControlWord::InterruptMask,
        ControlWord::PendingSendSize,
    ];
    steps(data, |input| {
        match input.int_in_range(0..=8)? {
            0 | 1 => {
                let word = *input.choose(&words)?;
                let mut value: u32 = input.arbitrary()?;
                // Else most are refused for the same reason.
                if input.arbitrary()? {
                    value = (value % SIZE as u32) & !7;
                }
                ring.store(word, value);
            }
            2 | 3 => {
                let at = input.int_in_range(0..=SIZE as u32 / 8 - 1)? * 8;
                ring.write_u64(at, input.arbitrary()?);
            }
            4 => {
                let len = input.int_in_range(0..=buffer.len())?;
                if let Ok(packet) = consumer.read(&mut buffer[..len]) {
                    assert!(packet.payload.len() <= len);
                }
            }
            5 => {
                if let Ok(packet) = consumer.peek() {
                    let offset = input.arbitrary()?;
                    let mut out = [0; 64];
                    let _ = consumer.copy(&packet, offset, &mut out);
                    let _ = consumer.copy_words::<3>(&packet, offset);
                    consumer.accept(&packet);
                }
            }
            6 => {
                let _ = consumer.commit();
                let _ = consumer.finish();
            }
            7 => {
                let len = input.int_in_range(0..=SIZE)?;
                let _ = producer.send_in_band(&buffer[..len], input.arbitrary()?, false);
                let _ = producer.commit();
            }
            _ => {
                let _ = producer.request_space(input.int_in_range(0..=2 * SIZE as u32)?);
                assert!(producer.free().unwrap_or(0) < SIZE as u32);
            }
        }
        Ok(())
    });
}

/// One packet as it was copied out of a ring.
pub fn packets(data: &[u8]) {
    let bytes = super::packet(&mut Unstructured::new(data), SIZE).unwrap_or_default();
    if let Ok(packet) = Packet::from_bytes(&bytes) {
        match packet.kind {
            PacketKind::GpaDirect(ranges) => ranges_hold(&ranges),
            PacketKind::TransferPages { ranges, .. } => {
                assert_eq!(ranges.iter().count(), ranges.len());
            }
            _ => {}
        }
    }
    if let Some((count, rest)) = data.split_first_chunk::<4>() {
        if let Ok(ranges) = GpaRanges::parse(rest, u32::from_le_bytes(*count)) {
            ranges_hold(&ranges);
        }
    }
}

fn ranges_hold(ranges: &GpaRanges<'_>) {
    let mut total = 0;
    for range in ranges.iter() {
        let bytes: u64 = range.pieces().map(|(_, len)| u64::from(len)).sum();
        assert_eq!(range.pfns().len(), range.page_count());
        assert!(range.pieces().all(|(_, len)| len <= 4096));
        total += bytes;
    }
    assert_eq!(total, ranges.total_bytes());
}
