// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Rings in guest memory, from the host's side.

use std::sync::atomic::{fence, Ordering};

use hv_partition::GuestRam;
use hvctl::RingField;

use crate::channel::SendError;

const PAGE: u32 = 4096;
/// Words of the control page (`hyperv.h`, `struct hv_ring_buffer`).
const WRITE: u64 = 0;
const READ: u64 = 4;
const MASK: u64 = 8;
const PENDING: u64 = 12;
/// What follows each packet: its start as the upper half of 8 bytes.
const TRAILER: u32 = 8;

/// Guest pages of one ring: a control page, and data pages in a circle.
pub(crate) struct RingMem {
    ram: GuestRam,
    control: u64,
    data: Vec<u64>,
}

impl RingMem {
    /// `None` when there is no data page.
    pub(crate) fn new(ram: GuestRam, pfns: &[u64]) -> Option<Self> {
        let (control, data) = pfns.split_first()?;
        if data.is_empty() {
            return None;
        }
        Some(Self { ram, control: control * u64::from(PAGE), data: data.iter().map(|p| p * u64::from(PAGE)).collect() })
    }

    fn len(&self) -> u32 {
        self.data.len() as u32 * PAGE
    }

    // All pages were checked to be RAM when the GPADL was made, and RAM does not go away.
    fn word(&self, at: u64) -> u32 {
        self.ram.load_u32(self.control + at, Ordering::Acquire).unwrap_or(0)
    }

    fn set_word(&self, at: u64, value: u32) {
        let _ = self.ram.store_u32(self.control + at, value, Ordering::Release);
    }

    fn pieces(&self, start: u32, len: u32) -> impl Iterator<Item = (u64, usize)> + '_ {
        let (mut at, mut left) = (start % self.len(), len);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let n = left.min(PAGE - at % PAGE);
            let gpa = self.data[(at / PAGE) as usize] + u64::from(at % PAGE);
            at = (at + n) % self.len();
            left -= n;
            Some((gpa, n as usize))
        })
    }

    fn read(&self, start: u32, buf: &mut [u8]) {
        let mut rest = buf;
        for (gpa, n) in self.pieces(start, rest.len() as u32) {
            let (piece, tail) = std::mem::take(&mut rest).split_at_mut(n);
            let _ = self.ram.read(gpa, piece);
            rest = tail;
        }
    }

    fn write(&self, start: u32, bytes: &[u8]) {
        let mut rest = bytes;
        for (gpa, n) in self.pieces(start, bytes.len() as u32) {
            let (piece, tail) = rest.split_at(n);
            let _ = self.ram.write(gpa, piece);
            rest = tail;
        }
    }

    fn corrupt(&self, field: RingField, value: u32) {
        let at = match field {
            RingField::Write => WRITE,
            RingField::Read => READ,
            RingField::Mask => MASK,
            RingField::Pending => PENDING,
        };
        self.set_word(at, value);
    }
}

/// Why a ring cannot be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("index {0:#x} is impossible")]
    BadIndex(u32),
    #[error("packet of {len} bytes with {header} bytes of header, {available} bytes in the ring")]
    BadPacket { header: u32, len: u32, available: u32 },
}

/// A packet's descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) packet_type: u16,
    pub(crate) flags: u16,
    pub(crate) transaction_id: u64,
    offset8: u16,
    len8: u16,
}

impl Descriptor {
    /// Bytes of header after the descriptor.
    pub(crate) fn header_len(&self) -> usize {
        usize::from(self.offset8) * 8 - 16
    }

    /// Bytes of the whole packet.
    pub(crate) fn len(&self) -> u32 {
        u32::from(self.len8) * 8
    }

    /// The bytes of a packet without extra header; `None` when it is too long for the descriptor.
    pub(crate) fn frame(packet_type: u16, flags: u16, transaction_id: u64, payload: &[u8]) -> Option<Vec<u8>> {
        let len = (16 + payload.len()).next_multiple_of(8);
        let len8 = u16::try_from(len / 8).ok()?;
        let mut bytes = Vec::with_capacity(len);
        for word in [packet_type, 2, len8, flags] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&transaction_id.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(len, 0);
        Some(bytes)
    }
}

/// The ring that the guest writes.
pub(crate) struct RingIn {
    mem: RingMem,
    /// Our index; the word in memory is only told to the guest.
    read: u32,
    /// Where this turn began.
    turn: u32,
}

impl RingIn {
    pub(crate) fn new(mem: RingMem) -> Result<Self, String> {
        let read = mem.word(READ);
        check_index(read, mem.len()).map_err(|e| format!("guest-to-host ring: {e}"))?;
        Ok(Self { mem, read, turn: read })
    }

    pub(crate) fn data_len(&self) -> u32 {
        self.mem.len()
    }

    pub(crate) fn begin(&mut self) {
        self.turn = self.read;
    }

    pub(crate) fn mask(&self, on: bool) {
        self.mem.set_word(MASK, on.into());
        // Pairs with the guest's barrier between its write index and its look at the mask.
        fence(Ordering::SeqCst);
    }

    fn available(&self) -> Result<u32, ReadError> {
        let write = self.mem.word(WRITE);
        check_index(write, self.mem.len())?;
        Ok((write + self.mem.len() - self.read) % self.mem.len())
    }

    pub(crate) fn is_empty(&self) -> Result<bool, ReadError> {
        Ok(self.available()? == 0)
    }

    pub(crate) fn read(&mut self, buf: &mut Vec<u8>) -> Result<Option<Descriptor>, ReadError> {
        let available = self.available()?;
        if available == 0 {
            return Ok(None);
        }
        if available < 16 + TRAILER {
            return Err(ReadError::BadPacket { header: 0, len: 0, available });
        }
        let mut raw = [0; 16];
        self.mem.read(self.read, &mut raw);
        let word = |i: usize| u16::from_le_bytes([raw[i], raw[i + 1]]);
        let mut id = [0; 8];
        id.copy_from_slice(&raw[8..]);
        let descriptor = Descriptor {
            packet_type: word(0),
            offset8: word(2),
            len8: word(4),
            flags: word(6),
            transaction_id: u64::from_le_bytes(id),
        };
        let (header, len) = (u32::from(descriptor.offset8) * 8, descriptor.len());
        if header < 16 || len < header || len + TRAILER > available {
            return Err(ReadError::BadPacket { header, len, available });
        }
        buf.clear();
        buf.resize(len as usize - 16, 0);
        self.mem.read(self.read + 16, buf);
        self.read = (self.read + len + TRAILER) % self.mem.len();
        self.mem.set_word(READ, self.read);
        Ok(Some(descriptor))
    }

    /// Whether the guest waits for room that this turn made (`ring_buffer.c`, `hv_pkt_iter_close`).
    pub(crate) fn guest_waits_for_room(&mut self) -> bool {
        // The read index must be visible before the look at what the guest waits for.
        fence(Ordering::SeqCst);
        let len = self.mem.len();
        let wanted = self.mem.word(PENDING);
        let write = self.mem.word(WRITE);
        if wanted == 0 || write >= len || self.turn == self.read {
            return false;
        }
        let room = |read: u32| len - (write + len - read) % len;
        let before = room(self.turn);
        self.turn = self.read;
        room(self.read) > wanted && before <= wanted
    }

    pub(crate) fn corrupt(&self, field: RingField, value: u32) {
        self.mem.corrupt(field, value);
    }
}

/// The ring that the host writes.
pub(crate) struct RingOut {
    mem: RingMem,
    write: u32,
    wanted: u32,
}

impl RingOut {
    pub(crate) fn new(mem: RingMem) -> Result<Self, String> {
        let write = mem.word(WRITE);
        check_index(write, mem.len()).map_err(|e| format!("host-to-guest ring: {e}"))?;
        Ok(Self { mem, write, wanted: 0 })
    }

    pub(crate) fn data_len(&self) -> u32 {
        self.mem.len()
    }

    fn room(&self) -> Option<u32> {
        let read = self.mem.word(READ);
        check_index(read, self.mem.len()).ok()?;
        Some(self.mem.len() - (self.write + self.mem.len() - read) % self.mem.len())
    }

    /// Writes a packet; whether the guest wants a signal.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<bool, SendError> {
        let total = bytes.len() as u32 + TRAILER;
        if total >= self.mem.len() {
            return Err(SendError::TooLarge);
        }
        // One byte stays free: equal indices mean empty.
        if self.room().ok_or(SendError::Broken)? <= total {
            self.wanted = total;
            self.mem.set_word(PENDING, total);
            // Pairs with the guest's barrier between its read index and its look at this word.
            fence(Ordering::SeqCst);
            if self.room().ok_or(SendError::Broken)? <= total {
                return Err(SendError::Full);
            }
        }
        self.wanted = 0;
        self.mem.set_word(PENDING, 0);
        let start = self.write;
        self.mem.write(start, bytes);
        self.mem.write(start + bytes.len() as u32, &(u64::from(start) << 32).to_le_bytes());
        self.write = (start + total) % self.mem.len();
        self.mem.set_word(WRITE, self.write);
        // Pairs with the guest's barrier between unmasking and its last look at the write index.
        fence(Ordering::SeqCst);
        Ok(self.mem.word(MASK) == 0 && self.mem.word(READ) == start)
    }

    /// Whether there is now the room that was missing.
    pub(crate) fn has_wanted_room(&self) -> bool {
        self.room().is_some_and(|room| room > self.wanted)
    }

    pub(crate) fn corrupt(&self, field: RingField, value: u32) {
        self.mem.corrupt(field, value);
    }
}

fn check_index(index: u32, len: u32) -> Result<(), ReadError> {
    if index >= len || index % 8 != 0 {
        return Err(ReadError::BadIndex(index));
    }
    Ok(())
}
