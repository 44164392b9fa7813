// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The buffers that the guest shares, and which sections of the receive buffer it holds.

use std::collections::HashMap;

use hv_partition::GuestRam;
use hv_vmbus_host::server::SharedGpadl;
use vmbus_proto::msg::GpadlId;

const PAGE: usize = vmbus_proto::PAGE_SIZE;

/// A GPADL of one range. All of its pages were found to be RAM when it was made.
pub(crate) struct Pages {
    pub(crate) id: GpadlId,
    ram: GuestRam,
    gpadl: SharedGpadl,
}

impl Pages {
    /// `None`: it has several ranges.
    pub(crate) fn new(ram: GuestRam, id: GpadlId, gpadl: SharedGpadl) -> Option<Self> {
        (gpadl.len() == 1).then_some(Self { id, ram, gpadl })
    }

    pub(crate) fn len(&self) -> usize {
        self.gpadl.first().map_or(0, |range| range.len as usize)
    }

    /// Guest-physical addresses and lengths of `len` bytes from `offset` on; `None` beyond the end.
    fn pieces(&self, offset: usize, len: usize) -> Option<impl Iterator<Item = (u64, usize)> + '_> {
        let range = self.gpadl.first()?;
        if offset.checked_add(len)? > range.len as usize {
            return None;
        }
        let mut at = offset + range.offset as usize;
        let mut left = len;
        Some(std::iter::from_fn(move || {
            let within = at % PAGE;
            let n = left.min(PAGE - within);
            if n == 0 {
                return None;
            }
            let gpa = *range.pfns.get(at / PAGE)? * PAGE as u64 + within as u64;
            at += n;
            left -= n;
            Some((gpa, n))
        }))
    }

    /// Appends `len` bytes from `offset` on to `out`; whether they are there.
    pub(crate) fn read(&self, offset: usize, len: usize, out: &mut Vec<u8>) -> bool {
        let Some(pieces) = self.pieces(offset, len) else {
            return false;
        };
        for (gpa, n) in pieces {
            if !read_ram(&self.ram, gpa, n, out) {
                return false;
            }
        }
        true
    }

    /// Writes at `offset`; whether there is room.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(pieces) = self.pieces(offset, bytes.len()) else {
            return false;
        };
        let mut rest = bytes;
        for (gpa, n) in pieces {
            let (piece, tail) = rest.split_at(n);
            if self.ram.write(gpa, piece).is_err() {
                return false;
            }
            rest = tail;
        }
        true
    }
}

/// Appends guest memory to `out`; whether it is RAM.
pub(crate) fn read_ram(ram: &GuestRam, gpa: u64, len: usize, out: &mut Vec<u8>) -> bool {
    let at = out.len();
    out.resize(at + len, 0);
    ram.read(gpa, &mut out[at..]).is_ok()
}

/// Sections that answers to requests may use and frames may not, if there are enough: a guest that holds all
/// sections with frames must still be heard (OpenVMM `netvsp`, `RX_RESERVED_CONTROL_BUFFERS`).
const RESERVED: u32 = 16;

/// The receive buffer.
pub(crate) struct RecvBuffer {
    pub(crate) pages: Pages,
    /// Its name in transfer-page packets.
    pub(crate) id: u16,
    pub(crate) section: u32,
    pub(crate) count: u32,
    free: Vec<u32>,
    reserved: u32,
    /// What the guest holds: channel and transaction id, with the sections.
    held: HashMap<(u16, u64), Vec<u32>>,
    /// Sections that each channel holds.
    by_channel: Vec<u32>,
}

impl RecvBuffer {
    /// Cuts the buffer into sections of `section` bytes, at most `most`. `None`: there is room for fewer than two.
    pub(crate) fn new(
        pages: Pages,
        id: u16,
        section: u32,
        most: u32,
        channels: usize,
    ) -> Option<Self> {
        let count = u32::try_from(pages.len() / section as usize)
            .ok()?
            .min(most);
        if count < 2 {
            return None;
        }
        Some(Self {
            pages,
            id,
            section,
            count,
            // The lowest are used first.
            free: (0..count).rev().collect(),
            reserved: RESERVED.min(count / 2),
            held: HashMap::new(),
            by_channel: vec![0; channels],
        })
    }

    pub(crate) fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Sections that the guest holds of a channel.
    pub(crate) fn held_by(&self, channel: u16) -> u32 {
        self.by_channel
            .get(usize::from(channel))
            .copied()
            .unwrap_or(0)
    }

    /// How many sections frames on `channel` may take now, if `open` channels share them: one that gives nothing back
    /// must not starve the others.
    pub(crate) fn allowance(&self, channel: u16, open: u32) -> u32 {
        let share = (self.count - self.reserved) / open.max(1);
        let share = share.max(1).saturating_sub(self.held_by(channel));
        share.min(self.free().saturating_sub(self.reserved))
    }

    /// Takes a section.
    pub(crate) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// The guest holds `sections` until it completes transaction `id` on `channel`.
    pub(crate) fn hold(&mut self, channel: u16, id: u64, sections: Vec<u32>) {
        if let Some(n) = self.by_channel.get_mut(usize::from(channel)) {
            *n += sections.len() as u32;
        }
        self.held.insert((channel, id), sections);
    }

    /// The guest completed a transaction; whether it held something by it.
    pub(crate) fn release(&mut self, channel: u16, id: u64) -> bool {
        let Some(sections) = self.held.remove(&(channel, id)) else {
            return false;
        };
        if let Some(n) = self.by_channel.get_mut(usize::from(channel)) {
            *n -= sections.len() as u32;
        }
        self.free.extend(sections);
        true
    }

    /// A channel is closed: the guest holds nothing of it any more.
    pub(crate) fn release_channel(&mut self, channel: u16) {
        let ids: Vec<(u16, u64)> = self
            .held
            .keys()
            .filter(|(c, _)| *c == channel)
            .copied()
            .collect();
        for (channel, id) in ids {
            self.release(channel, id);
        }
    }

    /// Offset of a section in the buffer.
    pub(crate) fn offset(&self, section: u32) -> u32 {
        // Within the GPADL, whose size is a u32.
        section * self.section
    }
}

/// The send buffer.
pub(crate) struct SendBuffer {
    pub(crate) pages: Pages,
    pub(crate) section: u32,
    pub(crate) count: u32,
}

impl SendBuffer {
    pub(crate) fn new(pages: Pages, section: u32) -> Option<Self> {
        let count = u32::try_from(pages.len() / section as usize).ok()?;
        (count > 0).then_some(Self {
            pages,
            section,
            count,
        })
    }

    /// Appends the first `len` bytes of a section to `out`; whether it has as many.
    pub(crate) fn read(&self, index: u32, len: u32, out: &mut Vec<u8>) -> bool {
        index < self.count
            && len <= self.section
            && self
                .pages
                .read(index as usize * self.section as usize, len as usize, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_vmbus_host::server::GpadlRange;
    use std::sync::Arc;

    fn pages(ram: &GuestRam, offset: u32, len: u32, pfns: &[u64]) -> Pages {
        let range = GpadlRange {
            len,
            offset,
            pfns: pfns.to_vec(),
        };
        Pages::new(ram.clone(), GpadlId(1), Arc::from(vec![range])).expect("one range")
    }

    #[test]
    fn bytes_go_to_their_pages() {
        let ram = GuestRam::for_tests(0x10000);
        let pages = pages(&ram, 0x100, 0x1800, &[3, 9]);
        let bytes: Vec<u8> = (0..0x1000u32).map(|i| (i * 7) as u8).collect();
        assert!(pages.write(0x800, &bytes));
        let mut back = Vec::new();
        assert!(pages.read(0x800, bytes.len(), &mut back));
        assert_eq!(back, bytes);
        let mut piece = [0; 2];
        ram.read(0x9000, &mut piece).expect("RAM");
        assert_eq!(piece, bytes[0x700..0x702]);
        assert!(!pages.write(0x801, &bytes), "beyond the end");
        assert!(!pages.read(usize::MAX, 2, &mut back));
    }

    #[test]
    fn a_channel_takes_its_share_and_gives_back_what_it_holds() {
        let ram = GuestRam::for_tests(0x100_000);
        let pfns: Vec<u64> = (16..116).collect();
        let pages = pages(&ram, 0, 100 * 4096, &pfns);
        let mut buffer = RecvBuffer::new(pages, 7, 4096, u32::MAX, 3).expect("room");
        assert_eq!((buffer.count, buffer.free()), (100, 100));
        assert_eq!(buffer.allowance(0, 1), 84);
        assert_eq!(buffer.allowance(0, 2), 42);
        let sections: Vec<u32> = (0..42).map(|_| buffer.take().expect("free")).collect();
        buffer.hold(0, 5, sections);
        assert_eq!((buffer.allowance(0, 2), buffer.allowance(1, 2)), (0, 42));
        assert!(!buffer.release(1, 5), "another channel");
        assert!(buffer.release(0, 5));
        assert!(!buffer.release(0, 5), "twice");
        assert_eq!(buffer.free(), 100);
        let section = buffer.take().expect("free");
        buffer.hold(2, 1, vec![section]);
        buffer.release_channel(2);
        assert_eq!((buffer.free(), buffer.held_by(2)), (100, 0));
    }

    #[test]
    fn attack_send_sections_that_do_not_exist() {
        let ram = GuestRam::for_tests(0x10000);
        let buffer = SendBuffer::new(pages(&ram, 0, 0x3000, &[1, 2, 3]), 0x1800).expect("room");
        let mut out = Vec::new();
        assert_eq!(buffer.count, 2);
        assert!(buffer.read(1, 0x1800, &mut out));
        for (index, len) in [(2, 1), (u32::MAX, 0), (0, 0x1801), (1, u32::MAX)] {
            assert!(!buffer.read(index, len, &mut out), "{index} {len}");
        }
    }
}
