// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The data buffer of a command: guest memory in pieces.

use std::sync::Arc;

use hv_partition::GuestRam;
use parking_lot::RwLock;
use vmbus_proto::range::GpaRanges;

use crate::scsi::Failure;

const PAGE: u64 = vmbus_proto::PAGE_SIZE as u64;

/// Which way data may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From guest to disk.
    Out,
    /// From disk to guest.
    In,
    /// The request did not say: either.
    Unspecified,
}

/// What a command reads its data from and writes them to.
pub trait Buffer {
    /// Bytes.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies out of the buffer.
    ///
    /// # Errors
    /// [`Failure::Buffer`], [`Failure::Closed`].
    fn get(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure>;

    /// Copies into the buffer.
    ///
    /// # Errors
    /// [`Failure::Buffer`], [`Failure::Closed`].
    fn put(&self, offset: usize, data: &[u8]) -> Result<(), Failure>;

    /// Copies as much of `data` as the initiator takes and the buffer holds; how much that was.
    ///
    /// # Errors
    /// As [`Buffer::put`].
    fn put_allocated(&self, data: &[u8], allocation: usize) -> Result<u32, Failure> {
        let n = data.len().min(allocation).min(self.len());
        if n > 0 {
            self.put(0, &data[..n])?;
        }
        Ok(n as u32)
    }
}

/// Says whether the channel that a request came on is still open. While a thread copies to or from guest
/// memory it holds the gate, so once the gate is closed no byte of guest memory is touched any more: the
/// guest may use the pages for something else.
#[derive(Debug)]
pub struct Gate {
    open: RwLock<bool>,
}

impl Gate {
    /// An open gate.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            open: RwLock::new(true),
        })
    }

    /// Closes it; waits for a copy that is under way (a few hundred KiB at most), not for disks.
    pub fn close(&self) {
        *self.open.write() = false;
    }

    /// Whether it is open now.
    pub fn is_open(&self) -> bool {
        *self.open.read()
    }

    fn through<R>(&self, f: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
        let open = self.open.read();
        if !*open {
            return Err(Failure::Closed);
        }
        f()
    }
}

/// Guest memory that a request names.
#[derive(Clone)]
pub struct GuestBuffer {
    ram: GuestRam,
    gate: Arc<Gate>,
    /// The command's own gate, besides that of its channel.
    own: Option<Arc<Gate>>,
    direction: Direction,
    /// Guest-physical address and length, in order; neighbours are merged.
    pieces: Vec<(u64, usize)>,
    len: usize,
}

impl GuestBuffer {
    /// The first `len` bytes of `ranges`. `None` when they have fewer, or are not all RAM.
    pub fn new(
        ram: GuestRam,
        gate: Arc<Gate>,
        direction: Direction,
        ranges: Option<GpaRanges<'_>>,
        len: usize,
    ) -> Option<Self> {
        let mut pieces: Vec<(u64, usize)> = Vec::new();
        let mut left = len;
        for range in ranges.into_iter().flatten() {
            let mut in_range = left.min(range.byte_count as usize);
            let mut offset = u64::from(range.byte_offset);
            for pfn in range.pfns() {
                if in_range == 0 {
                    break;
                }
                let n = in_range.min((PAGE - offset) as usize);
                let gpa = pfn.checked_mul(PAGE)?.checked_add(offset)?;
                match pieces.last_mut() {
                    Some((start, size)) if start.checked_add(*size as u64) == Some(gpa) => {
                        *size += n;
                    }
                    _ => pieces.push((gpa, n)),
                }
                offset = 0;
                in_range -= n;
                left -= n;
            }
        }
        (left == 0 && pieces.iter().all(|(gpa, n)| ram.is_ram(*gpa, *n))).then_some(Self {
            ram,
            gate,
            own: None,
            direction,
            pieces,
            len,
        })
    }

    /// Puts the buffer behind a gate of its own, besides that of the channel.
    pub(crate) fn put_behind(&mut self, own: Arc<Gate>) {
        self.own = Some(own);
    }

    /// Whether guest memory can still be reached: the channel is open, and the command was not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.gate.is_open() && self.own.as_ref().is_none_or(|own| own.is_open())
    }

    fn through<R>(&self, f: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
        match &self.own {
            Some(own) => own.through(|| self.gate.through(f)),
            None => self.gate.through(f),
        }
    }

    /// The parts of guest memory that make up `n` bytes from `offset` on.
    fn parts(&self, offset: usize, n: usize) -> impl Iterator<Item = (u64, usize)> + '_ {
        let mut skip = offset;
        let mut left = n;
        self.pieces.iter().filter_map(move |(gpa, size)| {
            if skip >= *size {
                skip -= size;
                return None;
            }
            let take = (size - skip).min(left);
            let part = (gpa + skip as u64, take);
            skip = 0;
            left -= take;
            (take > 0).then_some(part)
        })
    }

    fn covers(&self, offset: usize, n: usize) -> Result<(), Failure> {
        match offset.checked_add(n) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Failure::Buffer),
        }
    }
}

impl Buffer for GuestBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
        self.covers(offset, out.len())?;
        if self.direction == Direction::In {
            return Err(Failure::Buffer);
        }
        self.through(|| {
            let mut at = 0;
            for (gpa, n) in self.parts(offset, out.len()) {
                self.ram
                    .read(gpa, &mut out[at..at + n])
                    .map_err(|_| Failure::Buffer)?;
                at += n;
            }
            Ok(())
        })
    }

    fn put(&self, offset: usize, data: &[u8]) -> Result<(), Failure> {
        self.covers(offset, data.len())?;
        if self.direction == Direction::Out {
            return Err(Failure::Buffer);
        }
        self.through(|| {
            let mut at = 0;
            for (gpa, n) in self.parts(offset, data.len()) {
                self.ram
                    .write(gpa, &data[at..at + n])
                    .map_err(|_| Failure::Buffer)?;
                at += n;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use parking_lot::Mutex;

    /// A buffer in plain memory.
    pub(crate) struct VecBuffer(pub(crate) Mutex<Vec<u8>>);

    impl VecBuffer {
        pub(crate) fn zeroed(len: usize) -> Self {
            Self(Mutex::new(vec![0; len]))
        }

        pub(crate) fn of(data: &[u8]) -> Self {
            Self(Mutex::new(data.to_vec()))
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            self.0.lock().clone()
        }
    }

    impl Buffer for VecBuffer {
        fn len(&self) -> usize {
            self.0.lock().len()
        }

        fn get(&self, offset: usize, out: &mut [u8]) -> Result<(), Failure> {
            let data = self.0.lock();
            let from = data
                .get(offset..offset + out.len())
                .ok_or(Failure::Buffer)?;
            out.copy_from_slice(from);
            Ok(())
        }

        fn put(&self, offset: usize, bytes: &[u8]) -> Result<(), Failure> {
            let mut data = self.0.lock();
            let to = data
                .get_mut(offset..offset + bytes.len())
                .ok_or(Failure::Buffer)?;
            to.copy_from_slice(bytes);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One range of `len` bytes at `offset` in `pfns`, as a packet carries it.
    fn range(len: u32, offset: u32, pfns: &[u64]) -> Vec<u8> {
        let mut data = Vec::new();
        data.extend(len.to_le_bytes());
        data.extend(offset.to_le_bytes());
        pfns.iter().for_each(|pfn| data.extend(pfn.to_le_bytes()));
        data
    }

    fn buffer(
        ram: &GuestRam,
        direction: Direction,
        data: &[u8],
        len: usize,
    ) -> Option<GuestBuffer> {
        let ranges = GpaRanges::parse(data, 1).expect("a range");
        GuestBuffer::new(ram.clone(), Gate::new(), direction, Some(ranges), len)
    }

    #[test]
    fn bytes_go_to_their_pages_in_order() {
        let ram = GuestRam::for_tests(0x10000);
        let data = range(0x1800, 0xc00, &[3, 4, 9]);
        let buffer = buffer(&ram, Direction::Unspecified, &data, 0x1800).expect("RAM");
        assert_eq!(buffer.pieces, [(0x3c00, 0x1400), (0x9000, 0x400)]);
        let bytes: Vec<u8> = (0..0x1800u32).map(|i| (i * 7 % 251) as u8).collect();
        buffer.put(0, &bytes).expect("put");
        let mut page = [0; 4];
        ram.read(0x9000, &mut page).expect("RAM");
        assert_eq!(page, bytes[0x1400..0x1404]);
        let mut back = vec![0; 0x700];
        buffer.get(0x1100, &mut back).expect("get");
        assert_eq!(back, bytes[0x1100..]);
        assert_eq!(
            buffer.get(0x1101, &mut back),
            Err(Failure::Buffer),
            "beyond the end"
        );
        assert_eq!(buffer.put(usize::MAX, &[0]), Err(Failure::Buffer));
    }

    #[test]
    fn attack_ranges_that_are_not_ram_or_too_short() {
        let ram = GuestRam::for_tests(0x10000);
        for (len, offset, pfns, wanted) in [
            (0x1000, 0, &[0x10][..], 0x1000),
            (0x1000, 0, &[u64::MAX], 0x1000),
            (0x1000, 0, &[u64::MAX / 4096], 0x1000),
            (0x1000, 0, &[1], 0x1001),
            (0x1000, 4095, &[1, 0xfff_ffff], 2),
        ] {
            let data = range(len, offset, pfns);
            assert!(
                buffer(&ram, Direction::In, &data, wanted).is_none(),
                "{len:#x} {offset:#x} {pfns:x?}"
            );
        }
        assert!(GuestBuffer::new(ram.clone(), Gate::new(), Direction::In, None, 1).is_none());
        assert!(GuestBuffer::new(ram, Gate::new(), Direction::In, None, 0).is_some());
    }

    #[test]
    fn directions_and_a_closed_gate_are_kept() {
        let ram = GuestRam::for_tests(0x10000);
        let data = range(0x200, 0, &[1]);
        let out = buffer(&ram, Direction::Out, &data, 0x200).expect("RAM");
        assert_eq!(out.put(0, &[1]), Err(Failure::Buffer));
        let into = buffer(&ram, Direction::In, &data, 0x200).expect("RAM");
        assert_eq!(into.get(0, &mut [0]), Err(Failure::Buffer));
        assert_eq!(into.put(0, &[1]), Ok(()));
        into.gate.close();
        assert_eq!(into.put(0, &[2]), Err(Failure::Closed));
        let mut byte = [0];
        ram.read(0x1000, &mut byte).expect("RAM");
        assert_eq!(byte, [1], "nothing was written through the closed gate");
        let mut recalled = buffer(&ram, Direction::In, &data, 0x200).expect("RAM");
        let own = Gate::new();
        recalled.put_behind(own.clone());
        assert_eq!(recalled.put(0, &[3]), Ok(()));
        assert!(recalled.is_open());
        own.close();
        assert!(!recalled.is_open());
        assert_eq!(recalled.put(0, &[4]), Err(Failure::Closed));
    }
}
