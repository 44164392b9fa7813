// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A disk's volatile write cache: what was written stays in memory until the disk is told to flush, and is lost when the power
//! fails. Real disks have one; without it no test can tell whether a guest flushes what it must.

use std::collections::BTreeMap;

/// What a disk writes as a whole, whatever happens: the smallest block that there is.
const SECTOR: usize = 512;

/// Sectors above which all are written out (64 MiB): no disk's cache is endless, and any may write when it likes.
const MOST: usize = (64 << 20) / SECTOR;

/// Bytes written to the store in one piece at most.
const PIECE: usize = 1 << 20;

/// What a cache lies before. Offsets and lengths in bytes.
pub trait Medium {
    /// Reads all of `buf`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()>;
    /// Writes all of `buf`.
    fn write(&self, offset: u64, buf: &[u8]) -> std::io::Result<()>;
}

/// The cache. See the [module's documentation](self).
#[derive(Debug, Default)]
pub struct Cache {
    /// Contents of sectors that differ from the medium, by number.
    sectors: BTreeMap<u64, Box<[u8; SECTOR]>>,
}

/// The sectors that a range touches: number, the part of the range, and where in the sector that begins.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let from = (at % SECTOR as u64) as usize;
        let end = len.min(done + SECTOR - from);
        let part = done..end;
        done = end;
        Some((at / SECTOR as u64, part, from))
    })
}

impl Cache {
    /// Bytes that would be lost.
    pub fn len(&self) -> u64 {
        (self.sectors.len() * SECTOR) as u64
    }

    /// Puts what is cached over what was read from the medium.
    pub fn overlay(&self, offset: u64, buf: &mut [u8]) {
        if self.sectors.is_empty() {
            return;
        }
        for (number, part, from) in parts(offset, buf.len()) {
            if let Some(sector) = self.sectors.get(&number) {
                let len = part.len();
                buf[part].copy_from_slice(&sector[from..from + len]);
            }
        }
    }

    /// Keeps `data`.
    ///
    /// # Errors
    /// The medium's: of a sector that is written in part the rest is read, and what is too much is written out.
    pub fn write(&mut self, medium: &impl Medium, offset: u64, data: &[u8]) -> std::io::Result<()> {
        for (number, part, from) in parts(offset, data.len()) {
            let len = part.len();
            let sector = match self.sectors.entry(number) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let mut sector = Box::new([0; SECTOR]);
                    if len < SECTOR {
                        medium.read(number * SECTOR as u64, &mut sector[..])?;
                    }
                    entry.insert(sector)
                }
            };
            sector[from..from + len].copy_from_slice(&data[part]);
        }
        if self.sectors.len() > MOST {
            self.write_out(medium)?;
        }
        Ok(())
    }

    /// Writes `data` past the cache.
    ///
    /// # Errors
    /// The medium's.
    pub fn write_through(
        &mut self,
        medium: &impl Medium,
        offset: u64,
        data: &[u8],
    ) -> std::io::Result<()> {
        medium.write(offset, data)?;
        for (number, part, from) in parts(offset, data.len()) {
            let len = part.len();
            if len == SECTOR {
                self.sectors.remove(&number);
            } else if let Some(sector) = self.sectors.get_mut(&number) {
                sector[from..from + len].copy_from_slice(&data[part]);
            }
        }
        Ok(())
    }

    /// Writes all to the medium. What cannot be written stays.
    ///
    /// # Errors
    /// The medium's.
    pub fn write_out(&mut self, medium: &impl Medium) -> std::io::Result<()> {
        while let Some((&first, _)) = self.sectors.first_key_value() {
            let mut run = Vec::new();
            for (number, sector) in self.sectors.range(first..) {
                if *number != first + (run.len() / SECTOR) as u64 || run.len() >= PIECE {
                    break;
                }
                run.extend_from_slice(&sector[..]);
            }
            medium.write(first * SECTOR as u64, &run)?;
            for number in first..first + (run.len() / SECTOR) as u64 {
                self.sectors.remove(&number);
            }
        }
        Ok(())
    }

    /// The power fails: each sector that was not flushed is lost, or with `seed` every other one on the average, in no order.
    /// Bytes kept and lost.
    ///
    /// # Errors
    /// The medium's.
    pub fn cut(&mut self, medium: &impl Medium, seed: Option<u64>) -> std::io::Result<(u64, u64)> {
        let all = self.len();
        match seed {
            None => self.sectors.clear(),
            Some(seed) => self.sectors.retain(|number, _| mix(seed, *number) & 1 == 1),
        }
        let kept = self.len();
        self.write_out(medium)?;
        Ok((kept, all - kept))
    }
}

/// A number that is as good as random for each pair (splitmix64).
fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Ram(RefCell<Vec<u8>>);

    impl Ram {
        fn new(len: usize) -> Self {
            Self(RefCell::new(vec![0xee; len]))
        }
    }

    impl Medium for Ram {
        fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
            let at = offset as usize;
            buf.copy_from_slice(&self.0.borrow()[at..at + buf.len()]);
            Ok(())
        }
        fn write(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
            let at = offset as usize;
            self.0.borrow_mut()[at..at + buf.len()].copy_from_slice(buf);
            Ok(())
        }
    }

    fn read(cache: &Cache, ram: &Ram, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        ram.read(offset, &mut buf).expect("reads");
        cache.overlay(offset, &mut buf);
        buf
    }

    #[test]
    fn what_is_written_is_read_and_reaches_the_medium_when_flushed() {
        let (mut cache, ram) = (Cache::default(), Ram::new(8192));
        // Across sectors, and parts of them.
        cache.write(&ram, 500, &[1; 1100]).expect("writes");
        cache.write(&ram, 600, &[2; 10]).expect("writes");
        let mut expected = vec![0xee; 8192];
        expected[500..1600].fill(1);
        expected[600..610].fill(2);
        assert_eq!(read(&cache, &ram, 0, 8192), expected);
        assert_eq!(read(&cache, &ram, 511, 90), expected[511..601]);
        assert_eq!(
            *ram.0.borrow(),
            vec![0xee; 8192],
            "nothing is on the medium"
        );
        assert_eq!(cache.len(), 4 * 512);
        cache.write_out(&ram).expect("writes");
        assert_eq!(*ram.0.borrow(), expected);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn a_power_cut_loses_what_was_not_flushed() {
        let ram = Ram::new(1 << 20);
        let mut cache = Cache::default();
        cache.write(&ram, 0, &[1; 512]).expect("writes");
        cache.write_out(&ram).expect("flushes");
        cache.write(&ram, 0, &[2; 4096]).expect("writes");
        assert_eq!(cache.cut(&ram, None).expect("cut"), (0, 4096));
        assert_eq!(
            ram.0.borrow()[..512],
            [1; 512],
            "the flushed version is there"
        );
        assert_eq!(ram.0.borrow()[512..4096], [0xee; 3584]);
        assert_eq!(read(&cache, &ram, 0, 512), [1; 512]);
    }

    #[test]
    fn some_sectors_survive_as_the_seed_says() {
        let outcome = |seed| {
            let (mut cache, ram) = (Cache::default(), Ram::new(1 << 20));
            cache.write(&ram, 0, &vec![3; 1 << 20]).expect("writes");
            let (kept, lost) = cache.cut(&ram, Some(seed)).expect("cut");
            assert_eq!(kept + lost, 1 << 20);
            assert!(
                (kept as i64 - (1 << 19)).abs() < 1 << 17,
                "{kept} bytes kept"
            );
            let bytes = ram.0.into_inner();
            for sector in bytes.chunks(512) {
                assert!(sector == [3; 512] || sector == [0xee; 512], "torn");
            }
            bytes
        };
        assert_eq!(outcome(7), outcome(7));
        assert_ne!(outcome(7), outcome(8));
    }

    #[test]
    fn what_is_written_through_takes_nothing_else_along() {
        let (mut cache, ram) = (Cache::default(), Ram::new(4096));
        cache.write(&ram, 0, &[1; 2048]).expect("writes");
        cache.write_through(&ram, 512, &[2; 600]).expect("writes");
        let mut expected = [[1; 512], [2; 512], [1; 512], [1; 512]].concat();
        expected[1024..1112].fill(2);
        assert_eq!(read(&cache, &ram, 0, 2048), expected);
        assert_eq!(cache.cut(&ram, None).expect("cut"), (0, 3 * 512));
        assert_eq!(ram.0.borrow()[..512], [0xee; 512]);
        assert_eq!(ram.0.borrow()[512..1112], [2; 600]);
    }

    #[test]
    fn it_is_not_endless() {
        let (mut cache, ram) = (Cache::default(), Ram::new(MOST * SECTOR + 4096));
        let data = vec![9; MOST * SECTOR];
        cache.write(&ram, 0, &data).expect("writes");
        assert_eq!(cache.len(), data.len() as u64);
        cache
            .write(&ram, data.len() as u64, &[9; 512])
            .expect("writes");
        assert_eq!(cache.len(), 0, "all was written out");
        assert_eq!(
            ram.0.borrow()[..data.len() + 512],
            vec![9; data.len() + 512]
        );
    }
}
