// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The ring's barriers under every interleaving and reordering that the C11 memory model allows.
//!
//! Each side sleeps when it has nothing to do, and only the other's signal wakes it: where a barrier is
//! missing some execution ends with both asleep, and loom reports the deadlock.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p vmbus-proto --test loom --release
//! ```
#![cfg(loom)]

use loom::sync::atomic::{fence, AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Notify};
use loom::thread;
use vmbus_proto::ring::{Consumer, ControlWord, Producer, ReadError, RingMemory, WriteError};

/// Words of data that are modelled; the rest is payload, of which nothing is asserted here.
const WORDS: [u32; 5] = [0, 8, 24, 32, 4088];

/// A ring of one page.
struct LoomRing {
    control: [AtomicU32; 5],
    data: [AtomicU64; WORDS.len()],
}

impl LoomRing {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            control: Default::default(),
            data: Default::default(),
        })
    }

    fn word(&self, word: ControlWord) -> &AtomicU32 {
        let index = match word {
            ControlWord::WriteIndex => 0,
            ControlWord::ReadIndex => 1,
            ControlWord::InterruptMask => 2,
            ControlWord::PendingSendSize => 3,
            ControlWord::FeatureBits => 4,
        };
        &self.control[index]
    }

    fn slot(&self, offset: u32) -> Option<&AtomicU64> {
        let index = WORDS.iter().position(|w| *w == offset)?;
        Some(&self.data[index])
    }
}

struct Memory(Arc<LoomRing>);

impl RingMemory for Memory {
    fn data_size(&self) -> u32 {
        4096
    }
    fn load(&self, word: ControlWord) -> u32 {
        self.0.word(word).load(Ordering::Relaxed)
    }
    fn load_acquire(&self, word: ControlWord) -> u32 {
        self.0.word(word).load(Ordering::Acquire)
    }
    fn store(&self, word: ControlWord, value: u32) {
        self.0.word(word).store(value, Ordering::Relaxed);
    }
    fn store_release(&self, word: ControlWord, value: u32) {
        self.0.word(word).store(value, Ordering::Release);
    }
    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
    fn read(&self, _offset: u32, _out: &mut [u8]) {}
    fn write(&self, _offset: u32, _bytes: &[u8]) {}
    fn read_u64(&self, offset: u32) -> u64 {
        self.0
            .slot(offset)
            .expect("a modelled word")
            .load(Ordering::Relaxed)
    }
    fn write_u64(&self, offset: u32, value: u64) {
        // Trailers are not modelled: nobody reads them.
        if let Some(slot) = self.0.slot(offset) {
            slot.store(value, Ordering::Relaxed);
        }
    }
}

type Tx = Producer<Memory>;
type Rx = Consumer<Memory>;

/// Runs `writer` and `reader` on one ring, with a signal for each direction.
fn model(writer: fn(&mut Tx, &Notify, &Notify), reader: fn(&mut Rx, &Notify, &Notify)) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let ring = LoomRing::new();
        let mut tx = Producer::init(Memory(ring.clone())).unwrap();
        let mut rx = Consumer::attach(Memory(ring)).unwrap();
        let data = Arc::new(Notify::new());
        let space = Arc::new(Notify::new());
        let (data2, space2) = (data.clone(), space.clone());
        let thread = thread::spawn(move || writer(&mut tx, &data2, &space2));
        reader(&mut rx, &data, &space);
        thread.join().unwrap();
    });
}

/// Two packets, each committed on its own.
fn write_two(tx: &mut Tx, data: &Notify, _space: &Notify) {
    for id in 1..=2 {
        tx.send_in_band(&[], id, false).unwrap();
        if tx.commit() {
            data.notify();
        }
    }
}

/// Reads two packets in order; sleeps when there is none.
fn read_two(rx: &mut Rx, data: &Notify, space: &Notify, mask: bool) {
    let mut buffer = [0; 4096];
    let mut next = 1;
    loop {
        if mask {
            rx.mask();
        }
        loop {
            match rx.read(&mut buffer) {
                Ok(packet) => {
                    assert_eq!(packet.transaction_id(), next);
                    next += 1;
                }
                Err(ReadError::Empty) => break,
                Err(e) => panic!("{e}"),
            }
        }
        let drained = rx.finish();
        if drained.signal {
            space.notify();
        }
        if next > 2 {
            return;
        }
        if !drained.more {
            data.wait();
        }
    }
}

/// The writer's index against the reader's mask.
#[test]
fn no_signal_is_lost_with_masking() {
    model(write_two, |rx, data, space| read_two(rx, data, space, true));
}

/// The writer's index against the reader's.
#[test]
fn no_signal_is_lost_without_masking() {
    model(write_two, |rx, data, space| {
        read_two(rx, data, space, false)
    });
}

/// The writer's request for space against the reader's index.
#[test]
fn no_signal_for_space_is_lost() {
    model(
        |tx, data, space| {
            // The first fills the ring, the second starts in its last word.
            let large = [0; 4064];
            for id in 1..=2 {
                loop {
                    match tx.send_in_band(&large, id, false) {
                        Ok(()) => break,
                        Err(WriteError::Full { needed }) => {
                            if !tx.request_space(needed).unwrap() {
                                space.wait();
                            }
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
                if tx.commit() {
                    data.notify();
                }
            }
        },
        |rx, data, space| read_two(rx, data, space, true),
    );
}
