// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Guest pages as the memory of a ring.

use std::sync::atomic::{fence, Ordering};

use hv_partition::GuestRam;
use vmbus_proto::ring::{ControlWord, RingMemory};

const PAGE: u32 = vmbus_proto::PAGE_SIZE as u32;

/// Guest pages of one ring: a control page, and data pages in a circle. All were checked to be RAM when their
/// GPADL was made, and RAM does not go away; should an access fail all the same, loads give zeroes.
pub(crate) struct RingPages {
    ram: GuestRam,
    control: u64,
    data: Vec<u64>,
}

impl RingPages {
    /// `None` when there is no data page, or more than 1 GiB of them.
    pub(crate) fn new(ram: GuestRam, pfns: &[u64]) -> Option<Self> {
        let gpa = |pfn: &u64| pfn.checked_mul(u64::from(PAGE));
        let (control, data) = pfns.split_first()?;
        if data.is_empty() || data.len() > (vmbus_proto::ring::MAX_DATA_SIZE / PAGE) as usize {
            return None;
        }
        Some(Self {
            ram,
            control: gpa(control)?,
            data: data.iter().map(gpa).collect::<Option<_>>()?,
        })
    }

    /// The run of `len` bytes from `start` on, piece by piece: guest-physical address and length.
    fn pieces(&self, start: u32, len: usize) -> impl Iterator<Item = (u64, usize)> + '_ {
        let size = self.data_size();
        let (mut at, mut left) = (start % size, len.min(size as usize));
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let n = left.min((PAGE - at % PAGE) as usize);
            let gpa = self.data.get((at / PAGE) as usize)? + u64::from(at % PAGE);
            at = (at + n as u32) % size;
            left -= n;
            Some((gpa, n))
        })
    }

    fn word(&self, word: ControlWord) -> u64 {
        self.control + word.offset() as u64
    }
}

impl RingMemory for RingPages {
    fn data_size(&self) -> u32 {
        self.data.len() as u32 * PAGE
    }

    fn load(&self, word: ControlWord) -> u32 {
        self.ram
            .load_u32(self.word(word), Ordering::Relaxed)
            .unwrap_or(0)
    }

    fn load_acquire(&self, word: ControlWord) -> u32 {
        self.ram
            .load_u32(self.word(word), Ordering::Acquire)
            .unwrap_or(0)
    }

    fn store(&self, word: ControlWord, value: u32) {
        let _ = self
            .ram
            .store_u32(self.word(word), value, Ordering::Relaxed);
    }

    fn store_release(&self, word: ControlWord, value: u32) {
        let _ = self
            .ram
            .store_u32(self.word(word), value, Ordering::Release);
    }

    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }

    fn read(&self, offset: u32, out: &mut [u8]) {
        let mut rest = out;
        for (gpa, n) in self.pieces(offset, rest.len()) {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(n);
            if self.ram.read(gpa, piece).is_err() {
                piece.fill(0);
            }
            rest = tail;
        }
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        let mut rest = bytes;
        for (gpa, n) in self.pieces(offset, bytes.len()) {
            let (piece, tail) = rest.split_at(n);
            let _ = self.ram.write(gpa, piece);
            rest = tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_go_around_scattered_pages() {
        let ram = GuestRam::for_tests(0x10000);
        let ring = RingPages::new(ram.clone(), &[1, 9, 3]).expect("two data pages");
        assert_eq!(ring.data_size(), 0x2000);
        let bytes: Vec<u8> = (0..0x1800u32).map(|i| (i * 7) as u8).collect();
        ring.write(0x1ffc, &bytes);
        let mut back = vec![0; bytes.len()];
        ring.read(0x1ffc, &mut back);
        assert_eq!(back, bytes);
        let mut piece = [0; 4];
        ram.read(0x3ffc, &mut piece).expect("RAM");
        assert_eq!(piece, bytes[..4]);
        ram.read(0x9000, &mut piece).expect("RAM");
        assert_eq!(piece, bytes[4..8]);
        ring.store(ControlWord::FeatureBits, 5);
        assert_eq!(ram.load_u32(0x1040, Ordering::Relaxed), Ok(5));
    }

    #[test]
    fn no_ring_without_data_or_with_impossible_addresses() {
        let ram = GuestRam::for_tests(0x4000);
        assert!(RingPages::new(ram.clone(), &[]).is_none());
        assert!(RingPages::new(ram.clone(), &[1]).is_none());
        assert!(RingPages::new(ram, &[1, u64::MAX]).is_none());
    }
}
