// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A logical unit: carries out commands on its store.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::cdb::{op, Blocks, Cdb, CDB_SIZE};
use super::inquiry::{self, DiskId, Facts, MAX_UNMAP_DESCRIPTORS, MAX_WRITE_SAME_BYTES};
use super::mode;
use super::reservation::Reservations;
use super::sense::{Failure, Outcome, Sense};
use crate::backend::Backend;
use crate::buffer::Buffer;

/// Data are moved in pieces of this many bytes.
const CHUNK: usize = 256 << 10;
/// Extents in one answer to GET LBA STATUS.
const MAX_EXTENTS: usize = 256;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's buffer of [`CHUNK`] bytes.
fn with_scratch<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with(|cell| {
        let mut scratch = cell.take();
        scratch.resize(CHUNK, 0);
        let result = f(&mut scratch);
        cell.replace(scratch);
        result
    })
}

/// Whether a command may wait for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// No: give up instead.
    Now,
    /// Yes.
    Wait,
}

/// How a disk shall be.
#[derive(Clone, Copy, Debug)]
pub struct DiskConfig {
    /// Log2 of the bytes in a block: 9 or 12.
    pub shift: u32,
    /// Blocks can be given back.
    pub discard: bool,
    /// Tells it apart.
    pub id: DiskId,
}

/// What was done, since the start or since reset.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub commands: AtomicU64,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub bytes_read: AtomicU64,
    pub bytes_written: AtomicU64,
    pub flushes: AtomicU64,
    pub discards: AtomicU64,
    pub bytes_discarded: AtomicU64,
    pub errors: AtomicU64,
}

impl Counters {
    /// Counts from zero again.
    pub fn reset(&self) {
        for counter in [
            &self.commands,
            &self.reads,
            &self.writes,
            &self.bytes_read,
            &self.bytes_written,
            &self.flushes,
            &self.discards,
            &self.bytes_discarded,
            &self.errors,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// A logical unit.
#[derive(Debug)]
pub struct Disk {
    store: Backend,
    config: DiskConfig,
    write_cache: AtomicBool,
    /// Told to the next command.
    attention: Mutex<Option<Sense>>,
    reservations: Mutex<Reservations>,
    counters: Counters,
}

/// A command is stopped: with an outcome, or because it would have to wait.
enum Stop {
    Failed(Failure),
    WouldWait,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Sense> for Stop {
    fn from(sense: Sense) -> Self {
        Self::Failed(Failure::Check(sense))
    }
}

/// Bytes moved, or why not.
type Done = Result<u32, Stop>;

fn read_error(e: &std::io::Error) -> Failure {
    tracing::debug!("disk: read: {e}");
    Failure::Check(Sense::READ_ERROR)
}

fn write_error(e: &std::io::Error) -> Failure {
    tracing::debug!("disk: write: {e}");
    match Errno::from_io_error(e) {
        Some(Errno::NOSPC | Errno::DQUOT) => Failure::Check(Sense::NO_SPACE),
        _ => Failure::Check(Sense::WRITE_ERROR),
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Disk {
    /// A disk on `store`. `None` when the store has no whole block.
    pub fn new(store: Backend, config: DiskConfig) -> Option<Self> {
        (store.size() >> config.shift > 0).then(|| Self {
            store,
            config,
            write_cache: AtomicBool::new(true),
            attention: Mutex::new(None),
            reservations: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Where its blocks are.
    pub fn store(&self) -> &Backend {
        &self.store
    }

    /// How it is.
    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// What it has done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Blocks.
    pub fn blocks(&self) -> u64 {
        self.store.size() >> self.config.shift
    }

    /// Changes the size, which the next command is told of.
    ///
    /// # Errors
    /// From the system, or because no block would be left.
    pub fn resize(&self, bytes: u64) -> std::io::Result<()> {
        if bytes >> self.config.shift == 0 {
            return Err(Errno::INVAL.into());
        }
        self.store.resize(bytes)?;
        *self.attention.lock() = Some(Sense::CAPACITY_CHANGED);
        Ok(())
    }

    /// Carries out a command. `None`: it would have to wait, and `patience` forbids that; nothing was changed
    /// but perhaps the buffer, and the command may be carried out anew.
    pub fn execute(
        &self,
        cdb: &[u8; CDB_SIZE],
        buffer: &dyn Buffer,
        patience: Patience,
    ) -> Option<Outcome> {
        let outcome = match self.try_execute(cdb, buffer, patience) {
            Ok(transferred) => Outcome::good(transferred),
            Err(Stop::WouldWait) => return None,
            Err(Stop::Failed(failure)) => failure.into(),
        };
        add(&self.counters.commands, 1);
        if outcome.is_error() && outcome.sense != Some(Sense::CAPACITY_CHANGED) {
            add(&self.counters.errors, 1);
        }
        Some(outcome)
    }

    fn try_execute(&self, raw: &[u8; CDB_SIZE], buffer: &dyn Buffer, patience: Patience) -> Done {
        // SAM-5, 5.14: these do not report a unit attention.
        if !matches!(raw[0], op::INQUIRY | op::REPORT_LUNS | op::REQUEST_SENSE) {
            if let Some(sense) = self.attention.lock().take() {
                return Err(sense.into());
            }
        }
        let cdb = Cdb::parse(raw)?;
        // Commands that use the store.
        match cdb {
            Cdb::Read { blocks } => return self.read(blocks, buffer, patience),
            Cdb::Write { blocks, fua } => return self.write(blocks, fua, buffer, patience),
            Cdb::Verify { blocks, compare } => {
                return self.verify(blocks, compare, buffer, patience)
            }
            Cdb::WriteSame {
                blocks,
                unmap,
                no_data,
            } => return self.write_same(blocks, unmap, no_data, buffer, patience),
            Cdb::Unmap { length } => return self.unmap(length, buffer, patience),
            Cdb::SynchronizeCache { blocks } => {
                self.check(blocks)?;
                return self.flush(patience);
            }
            Cdb::StartStop {
                stop,
                load_eject: false,
            } if stop => return self.flush(patience),
            Cdb::GetLbaStatus { lba, allocation } => {
                self.may_wait(patience)?;
                let data = self.lba_status(lba)?;
                return Ok(buffer.put_allocated(&data, allocation)?);
            }
            _ => {}
        }
        self.control(cdb, buffer)
    }

    /// Commands that do not use the store.
    fn control(&self, cdb: Cdb, buffer: &dyn Buffer) -> Done {
        let shift = self.config.shift;
        let (data, allocation) = match cdb {
            Cdb::TestUnitReady | Cdb::NoEffect => return Ok(0),
            Cdb::StartStop { load_eject, .. } => {
                return if load_eject {
                    Err(Sense::INVALID_FIELD_IN_CDB.into())
                } else {
                    Ok(0)
                }
            }
            Cdb::SendDiagnostic { self_test, length } => {
                return if self_test && length == 0 {
                    Ok(0)
                } else {
                    Err(Sense::INVALID_FIELD_IN_CDB.into())
                }
            }
            Cdb::RequestSense {
                descriptor,
                allocation,
            } => {
                let sense = self.attention.lock().take().unwrap_or(Sense::NONE);
                let data = if descriptor {
                    sense.descriptor().to_vec()
                } else {
                    sense.fixed().to_vec()
                };
                (data, allocation)
            }
            Cdb::Inquiry { page, allocation } => {
                let data = match page {
                    None => inquiry::standard(),
                    Some(code) => self.facts().page(code)?,
                };
                (data, allocation)
            }
            Cdb::ModeSense {
                long,
                control,
                page,
                subpage,
                allocation,
            } => {
                let (ro, cache) = (
                    self.store.is_read_only(),
                    self.write_cache.load(Ordering::Relaxed),
                );
                (
                    mode::sense(long, control, page, subpage, ro, cache)?,
                    allocation,
                )
            }
            Cdb::ModeSelect { long, save, length } => {
                if save {
                    return Err(Sense::INVALID_FIELD_IN_CDB.into());
                }
                let list = list(buffer, length)?;
                if let Some(on) = mode::select(long, &list)? {
                    self.write_cache.store(on, Ordering::Relaxed);
                }
                return Ok(length as u32);
            }
            Cdb::ReadCapacity10 => {
                let last = u32::try_from(self.blocks() - 1).unwrap_or(u32::MAX);
                let mut data = last.to_be_bytes().to_vec();
                data.extend((1u32 << shift).to_be_bytes());
                (data, usize::MAX)
            }
            Cdb::ReadCapacity16 { allocation } => {
                let mut data = vec![0; 32];
                data[..8].copy_from_slice(&(self.blocks() - 1).to_be_bytes());
                data[8..12].copy_from_slice(&(1u32 << shift).to_be_bytes());
                // Blocks of 4096 bytes below.
                data[13] = (12 - shift) as u8;
                // LBPME. That blocks read as zeroes when given back is true but not promised, as on Hyper-V.
                data[14] = if self.config.discard { 0x80 } else { 0 };
                (data, allocation)
            }
            Cdb::PersistentReserveIn { action, allocation } => {
                (self.reservations.lock().report(action)?, allocation)
            }
            Cdb::PersistentReserveOut {
                action,
                scope_type,
                length,
            } => {
                let list = list(buffer, length)?;
                self.reservations.lock().change(action, scope_type, &list)?;
                return Ok(length as u32);
            }
            // Answered by the controller, which knows the others.
            Cdb::ReportLuns { .. } => return Err(Sense::INVALID_OPCODE.into()),
            Cdb::Read { .. }
            | Cdb::Write { .. }
            | Cdb::Verify { .. }
            | Cdb::WriteSame { .. }
            | Cdb::Unmap { .. }
            | Cdb::SynchronizeCache { .. }
            | Cdb::GetLbaStatus { .. } => return Err(Sense::INVALID_OPCODE.into()),
        };
        Ok(buffer.put_allocated(&data, allocation)?)
    }

    fn facts(&self) -> Facts {
        Facts {
            id: self.config.id,
            shift: self.config.shift,
            blocks: self.blocks(),
            discard: self.config.discard,
        }
    }

    /// Where the blocks are in the store: offset and length in bytes.
    fn check(&self, blocks: Blocks) -> Result<(u64, u64), Sense> {
        let end = blocks.lba.checked_add(u64::from(blocks.count));
        // A command without blocks may name the block after the last one as little as one with blocks.
        let first_ok = blocks.lba < self.blocks();
        match end {
            Some(end) if end <= self.blocks() && first_ok => Ok((
                blocks.lba << self.config.shift,
                u64::from(blocks.count) << self.config.shift,
            )),
            _ => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }

    /// As `check`, for data that must all be in the buffer (OpenVMM `validate_data_cdb`).
    fn check_data(&self, blocks: Blocks, buffer: &dyn Buffer) -> Result<(u64, usize), Sense> {
        let (offset, len) = self.check(blocks)?;
        match usize::try_from(len) {
            Ok(len) if len <= buffer.len() => Ok((offset, len)),
            _ => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }

    fn may_wait(&self, patience: Patience) -> Result<(), Stop> {
        if patience == Patience::Now && !self.store.is_ram() {
            return Err(Stop::WouldWait);
        }
        Ok(())
    }

    fn writable(&self) -> Result<(), Sense> {
        if self.store.is_read_only() {
            return Err(Sense::WRITE_PROTECTED);
        }
        Ok(())
    }

    fn read(&self, blocks: Blocks, buffer: &dyn Buffer, patience: Patience) -> Done {
        let (offset, len) = self.check_data(blocks, buffer)?;
        with_scratch(|scratch| {
            let mut at = 0;
            while at < len {
                let piece = &mut scratch[..CHUNK.min(len - at)];
                let from = offset + at as u64;
                match patience {
                    Patience::Wait => self.store.read(from, piece).map_err(|e| read_error(&e))?,
                    Patience::Now => {
                        if !self
                            .store
                            .read_now(from, piece)
                            .map_err(|e| read_error(&e))?
                        {
                            return Err(Stop::WouldWait);
                        }
                    }
                }
                buffer.put(at, piece)?;
                at += piece.len();
            }
            Ok::<_, Stop>(())
        })?;
        add(&self.counters.reads, 1);
        add(&self.counters.bytes_read, len as u64);
        Ok(len as u32)
    }

    fn write(&self, blocks: Blocks, fua: bool, buffer: &dyn Buffer, patience: Patience) -> Done {
        let (offset, len) = self.check_data(blocks, buffer)?;
        self.writable()?;
        self.may_wait(patience)?;
        let durable = fua || !self.write_cache.load(Ordering::Relaxed);
        with_scratch(|scratch| {
            let mut at = 0;
            while at < len {
                let piece = &mut scratch[..CHUNK.min(len - at)];
                buffer.get(at, piece)?;
                self.store
                    .write(offset + at as u64, piece, durable)
                    .map_err(|e| write_error(&e))?;
                at += piece.len();
            }
            Ok::<_, Stop>(())
        })?;
        add(&self.counters.writes, 1);
        add(&self.counters.bytes_written, len as u64);
        Ok(len as u32)
    }

    fn verify(&self, blocks: Blocks, compare: u8, buffer: &dyn Buffer, patience: Patience) -> Done {
        let (offset, len) = self.check(blocks)?;
        let block = 1usize << self.config.shift;
        if compare == 0 || blocks.count == 0 {
            return Ok(0);
        }
        let given = if compare == 1 { len } else { block as u64 };
        let given = usize::try_from(given).unwrap_or(usize::MAX);
        if given > buffer.len() {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        self.may_wait(patience)?;
        let mut medium = vec![0; CHUNK];
        with_scratch(|expected| {
            let mut at = 0u64;
            if compare != 1 {
                buffer.get(0, &mut expected[..block])?;
                let (first, rest) = expected.split_at_mut(block);
                rest.chunks_mut(block)
                    .for_each(|c| c.copy_from_slice(first));
            }
            while at < len {
                let n = CHUNK.min((len - at) as usize);
                if compare == 1 {
                    buffer.get(at as usize, &mut expected[..n])?;
                }
                self.store
                    .read(offset + at, &mut medium[..n])
                    .map_err(|e| read_error(&e))?;
                if medium[..n] != expected[..n] {
                    return Err(Sense::MISCOMPARE.into());
                }
                at += n as u64;
            }
            Ok::<_, Stop>(())
        })?;
        Ok(given as u32)
    }

    fn flush(&self, patience: Patience) -> Done {
        self.may_wait(patience)?;
        self.store.flush().map_err(|e| write_error(&e))?;
        add(&self.counters.flushes, 1);
        Ok(0)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool, Stop> {
        let punched = self.store.punch(offset, len).map_err(|e| write_error(&e))?;
        add(&self.counters.discards, 1);
        add(
            &self.counters.bytes_discarded,
            if punched { len } else { 0 },
        );
        Ok(punched)
    }

    fn write_same(
        &self,
        mut blocks: Blocks,
        unmap: bool,
        no_data: bool,
        buffer: &dyn Buffer,
        patience: Patience,
    ) -> Done {
        if blocks.count == 0 {
            // SBC-3: up to the last block.
            let rest = self.blocks().saturating_sub(blocks.lba);
            blocks.count = u32::try_from(rest).unwrap_or(u32::MAX);
        }
        let (offset, len) = self.check(blocks)?;
        self.writable()?;
        // The limit is stated in VPD page b0.
        if len > MAX_WRITE_SAME_BYTES || (unmap && !self.config.discard) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut block = vec![0; 1 << self.config.shift];
        if !no_data {
            if buffer.len() < block.len() {
                return Err(Sense::INVALID_FIELD_IN_CDB.into());
            }
            buffer.get(0, &mut block)?;
        }
        self.may_wait(patience)?;
        let moved = if no_data { 0 } else { block.len() as u32 };
        // A hole reads as zeroes, so it does for no other data.
        if unmap && block.iter().all(|b| *b == 0) && self.discard(offset, len)? {
            return Ok(moved);
        }
        let durable = !self.write_cache.load(Ordering::Relaxed);
        self.store
            .write_repeated(offset, &block, u64::from(blocks.count), durable)
            .map_err(|e| write_error(&e))?;
        add(&self.counters.writes, 1);
        add(&self.counters.bytes_written, len);
        Ok(moved)
    }

    fn unmap(&self, length: usize, buffer: &dyn Buffer, patience: Patience) -> Done {
        if !self.config.discard {
            return Err(Sense::INVALID_OPCODE.into());
        }
        if length == 0 {
            return Ok(0);
        }
        self.writable()?;
        let list = list(buffer, length)?;
        let Some((header, descriptors)) = list.split_at_checked(8) else {
            return Err(Sense::PARAMETER_LIST_LENGTH.into());
        };
        // SBC-3, 5.28.2: no more than the list holds; a part of a descriptor counts for nothing.
        let stated = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let descriptors = &descriptors[..stated.min(descriptors.len())];
        if descriptors.len() / 16 > MAX_UNMAP_DESCRIPTORS {
            return Err(Sense::INVALID_FIELD_IN_LIST.into());
        }
        let mut ranges = Vec::with_capacity(descriptors.len() / 16);
        for d in descriptors.chunks_exact(16) {
            let lba = d[..8].iter().fold(0, |n, b| (n << 8) | u64::from(*b));
            let count = d[8..12].iter().fold(0, |n, b| (n << 8) | u32::from(*b));
            // All are checked before the first is given back.
            if count > 0 {
                ranges.push(self.check(Blocks { lba, count })?);
            }
        }
        self.may_wait(patience)?;
        for (offset, len) in ranges {
            self.discard(offset, len)?;
        }
        Ok(length as u32)
    }

    /// Parameter data of GET LBA STATUS.
    fn lba_status(&self, lba: u64) -> Result<Vec<u8>, Stop> {
        let shift = self.config.shift;
        self.check(Blocks { lba, count: 0 })?;
        let end = self.blocks();
        let mut data = vec![0; 8];
        let mut at = lba;
        for _ in 0..MAX_EXTENTS {
            if at >= end {
                break;
            }
            let (mapped, until) = self.store.extent(at << shift).map_err(|e| read_error(&e))?;
            // A block that is partly a hole counts as mapped.
            let mut until = if mapped {
                until.div_ceil(1 << shift)
            } else {
                until >> shift
            };
            let mapped = mapped || until <= at;
            until = until.clamp(at + 1, end.max(at + 1));
            let count = u32::try_from(until - at).unwrap_or(u32::MAX);
            data.extend(at.to_be_bytes());
            data.extend(count.to_be_bytes());
            data.extend([u8::from(!mapped), 0, 0, 0]);
            at += u64::from(count);
        }
        let len = (data.len() - 4) as u32;
        data[..4].copy_from_slice(&len.to_be_bytes());
        Ok(data)
    }
}

/// The parameter list of a command.
fn list(buffer: &dyn Buffer, length: usize) -> Result<Vec<u8>, Failure> {
    if length > buffer.len() {
        return Err(Failure::Check(Sense::PARAMETER_LIST_LENGTH));
    }
    let mut list = vec![0; length];
    if length > 0 {
        buffer.get(0, &mut list)?;
    }
    Ok(list)
}
