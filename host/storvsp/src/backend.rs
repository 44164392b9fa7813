// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Where the blocks of a disk are kept: a raw image file, or memory of the host behind a file descriptor
//! (memfd), so that there is one way to read, write and give space back.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{fallocate, FallocateFlags, FlockOperation, MemfdFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use crate::cache::{Cache, Medium};

/// Why a disk cannot be had, for people.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The image cannot be opened, made, measured or resized.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another disk, of this host or another, uses it.
    #[error("{}: in use by another disk", .0.display())]
    InUse(PathBuf),
    /// Directories, sockets and the like.
    #[error("{}: neither a file nor a block device", .0.display())]
    NotAFile(PathBuf),
    /// A RAM disk cannot be made.
    #[error("RAM disk: {0}")]
    Ram(std::io::Error),
}

/// Most slices that one system call takes (`IOV_MAX` is 1024; more are cut, which is allowed for).
const MAX_SLICES: usize = 64;

/// Bytes of repeated blocks that go into the cache at a time.
const PIECE: usize = 1 << 20;

/// The store. All offsets and lengths are bytes; every method may be called from any thread.
#[derive(Debug)]
pub struct Backend {
    file: File,
    /// `None`: a RAM disk.
    path: Option<PathBuf>,
    read_only: bool,
    size: AtomicU64,
    /// The file system cannot punch holes; found out by trying.
    no_holes: AtomicBool,
    /// Nor read only what is cached.
    no_wait_unknown: AtomicBool,
    /// A volatile write cache, if the disk has one.
    cache: Option<Mutex<Cache>>,
    /// The power was cut: nothing works any more.
    off: AtomicBool,
}

impl Medium for File {
    fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn write(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.write_all_at(buf, offset)
    }
}

impl Backend {
    /// Opens an image. `size`: makes the file if there is none, and extends it (sparse) if it is smaller.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn open(path: &Path, size: Option<u64>, read_only: bool) -> Result<Self, BackendError> {
        let failed = |source: std::io::Error| BackendError::File {
            path: path.to_path_buf(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .create(size.is_some() && !read_only)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BackendError::NotAFile(path.to_path_buf()));
        }
        // Two writers of one image would destroy it.
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match rustix::fs::flock(&file, lock) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BackendError::InUse(path.to_path_buf())),
            Err(e) => return Err(failed(e.into())),
        }
        // Also right for block devices, whose metadata have no length.
        let mut now = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
        if let Some(size) = size.filter(|size| *size > now && kind.is_file() && !read_only) {
            file.set_len(size).map_err(failed)?;
            now = size;
        }
        Ok(Self {
            file,
            path: Some(path.to_path_buf()),
            read_only,
            size: AtomicU64::new(now),
            no_holes: AtomicBool::new(false),
            no_wait_unknown: AtomicBool::new(false),
            cache: None,
            off: AtomicBool::new(false),
        })
    }

    /// A disk in the host's memory, which is taken as blocks are written.
    ///
    /// # Errors
    /// [`BackendError::Ram`].
    pub fn ram(size: u64, read_only: bool) -> Result<Self, BackendError> {
        let fd = rustix::fs::memfd_create("hv-ram-disk", MemfdFlags::CLOEXEC)
            .map_err(|e| BackendError::Ram(e.into()))?;
        let file = File::from(fd);
        file.set_len(size).map_err(BackendError::Ram)?;
        Ok(Self {
            file,
            path: None,
            read_only,
            size: AtomicU64::new(size),
            no_holes: AtomicBool::new(false),
            no_wait_unknown: AtomicBool::new(false),
            cache: None,
            off: AtomicBool::new(false),
        })
    }

    /// With a volatile write cache.
    #[must_use]
    pub fn with_cache(mut self) -> Self {
        self.cache = Some(Mutex::default());
        self
    }

    /// Whether there is a volatile write cache.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    fn cache(&self) -> Option<MutexGuard<'_, Cache>> {
        // What a panic has left is as good as what a power cut leaves.
        let cache = self.cache.as_ref()?;
        Some(cache.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes the cache out, as a disk may at any time.
    fn write_out(&self) -> std::io::Result<()> {
        match self.cache() {
            Some(mut cache) => cache.write_out(&self.file),
            None => Ok(()),
        }
    }

    fn check_power(&self) -> std::io::Result<()> {
        if self.off.load(Ordering::Acquire) {
            return Err(Errno::IO.into());
        }
        Ok(())
    }

    /// Cuts the power: what the cache holds is lost, or with `seed` a part of it, and all commands fail from now on. Bytes
    /// that reached the medium, and bytes that are lost; `None`: without a cache there is nothing to lose.
    ///
    /// # Errors
    /// From the system.
    pub fn cut_power(&self, seed: Option<u64>) -> std::io::Result<Option<(u64, u64)>> {
        let Some(mut cache) = self.cache() else {
            return Ok(None);
        };
        // Under the lock: no write comes after this.
        self.off.store(true, Ordering::Release);
        cache.cut(&self.file, seed).map(Some)
    }

    /// Bytes that a power cut would take.
    pub fn unflushed(&self) -> u64 {
        self.cache().map_or(0, |cache| cache.len())
    }

    /// The image; `None` for a RAM disk.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether nothing here ever waits for a device.
    pub fn is_ram(&self) -> bool {
        self.path.is_none()
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Bytes that the store takes up, holes left out.
    pub fn allocated(&self) -> u64 {
        rustix::fs::fstat(&self.file).map_or(0, |stat| (stat.st_blocks as u64).saturating_mul(512))
    }

    /// Grows (sparse) or cuts the store.
    ///
    /// # Errors
    /// From the system.
    pub fn resize(&self, size: u64) -> std::io::Result<()> {
        if self.read_only {
            return Err(Errno::ROFS.into());
        }
        self.write_out()?;
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// Reads all of `buf`.
    ///
    /// # Errors
    /// From the system; beyond the end of a store that was cut meanwhile.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.check_power()?;
        let cache = self.cache();
        self.file.read_exact_at(buf, offset)?;
        if let Some(cache) = cache {
            cache.overlay(offset, buf);
        }
        Ok(())
    }

    /// Reads all of `buf` if that can be done without waiting; whether it could.
    ///
    /// # Errors
    /// As [`Backend::read`].
    pub fn read_now(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<bool> {
        if self.is_ram() {
            return self.read(offset, buf).map(|()| true);
        }
        if self.no_wait_unknown.load(Ordering::Relaxed) || self.has_cache() {
            return Ok(false);
        }
        let len = buf.len();
        let mut slices = [IoSliceMut::new(buf)];
        match rustix::io::preadv2(&self.file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
            // A part is in the page cache: the thread that may wait reads all.
            Ok(n) => Ok(n == len),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::OPNOTSUPP) => {
                self.no_wait_unknown.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Writes all of `buf`. `durable`: it is on the medium when this returns.
    ///
    /// # Errors
    /// From the system.
    pub fn write(&self, offset: u64, buf: &[u8], durable: bool) -> std::io::Result<()> {
        self.write_repeated(offset, buf, 1, durable)
    }

    /// Writes `block` `count` times, one after the other.
    ///
    /// # Errors
    /// From the system.
    pub fn write_repeated(
        &self,
        mut offset: u64,
        block: &[u8],
        count: u64,
        durable: bool,
    ) -> std::io::Result<()> {
        let mut cache = self.cache();
        // Under the lock.
        self.check_power()?;
        if let Some(cache) = cache.as_mut().filter(|_| !block.is_empty()) {
            // In pieces: a guest may ask for terabytes of the same block.
            let (mut left, most) = (count, (PIECE / block.len()).max(1) as u64);
            while left > 0 {
                let piece = block.repeat(left.min(most) as usize);
                if durable {
                    cache.write_through(&self.file, offset, &piece)?;
                } else {
                    cache.write(&self.file, offset, &piece)?;
                }
                offset += piece.len() as u64;
                left = left.saturating_sub(most);
            }
            return if durable {
                self.file.sync_data()
            } else {
                Ok(())
            };
        }
        let flags = if durable && !self.is_ram() {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        let mut left = (block.len() as u64).saturating_mul(count);
        // Bytes of the block that the last call has written already.
        let mut skip = 0;
        while left > 0 {
            let full = (left + skip as u64).div_ceil(block.len() as u64);
            let slices: Vec<IoSlice<'_>> = (0..full.min(MAX_SLICES as u64))
                .map(|i| IoSlice::new(if i == 0 { &block[skip..] } else { block }))
                .collect();
            let n = match rustix::io::pwritev2(&self.file, &slices, offset, flags) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            offset += n as u64;
            left = left.saturating_sub(n as u64);
            skip = (skip + n) % block.len();
        }
        Ok(())
    }

    /// Lets another disk have the image, although commands may still be at work on it here. They are no danger: a
    /// guest that is told of a new disk has seen the end of its commands to the old one.
    pub fn give_up(&self) {
        if let Err(error) = self.write_out() {
            tracing::warn!(%error, path = ?self.path, "the cache is lost");
        }
        // Fails only where locks are not supported, and then there is none.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// From the system.
    pub fn flush(&self) -> std::io::Result<()> {
        self.check_power()?;
        if self.read_only {
            return Ok(());
        }
        self.write_out()?;
        if self.is_ram() {
            return Ok(());
        }
        self.file.sync_data()
    }

    /// Gives the space of a range back; it reads as zeroes then. `false`: the file system cannot do that,
    /// nothing has changed.
    ///
    /// # Errors
    /// From the system.
    pub fn punch(&self, offset: u64, len: u64) -> std::io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        if self.no_holes.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let mut cache = self.cache();
        self.check_power()?;
        if let Some(cache) = &mut cache {
            cache.write_out(&self.file)?;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                    self.no_holes.store(true, Ordering::Relaxed);
                    tracing::warn!(path = ?self.path, "no holes can be made in this image; discards do nothing");
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// From `offset` on: whether there are data, and up to where that is so.
    ///
    /// # Errors
    /// From the system.
    pub fn extent(&self, offset: u64) -> std::io::Result<(bool, u64)> {
        let size = self.size();
        self.check_power()?;
        self.write_out()?;
        // The file's own position is not used by anything else.
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) if at > offset => Ok((false, at.min(size))),
            Ok(_) => match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(end) => Ok((true, end.min(size))),
                Err(e) => Err(e.into()),
            },
            // No data up to the end.
            Err(Errno::NXIO) => Ok((false, size)),
            // Not a file system with holes.
            Err(Errno::INVAL) => Ok((true, size)),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, size: u64) -> Backend {
        Backend::open(&dir.path().join("image"), Some(size), false).expect("opens")
    }

    #[test]
    fn both_kinds_read_back_what_was_written() {
        let dir = tempfile::tempdir().expect("dir");
        for disk in [
            file(&dir, 1 << 20),
            Backend::ram(1 << 20, false).expect("ram"),
        ] {
            assert_eq!(disk.size(), 1 << 20);
            disk.write(4096, &[7; 8192], true).expect("writes");
            disk.write_repeated(65536, &[1, 2, 3], 1000, false)
                .expect("writes");
            disk.flush().expect("flushes");
            let mut back = [9; 8193];
            disk.read(4096, &mut back).expect("reads");
            assert_eq!((back[0], back[8191], back[8192]), (7, 7, 0));
            let mut back = [9; 3001];
            disk.read(65536, &mut back).expect("reads");
            assert!(back[..3000].chunks(3).all(|c| c == [1, 2, 3]));
            assert_eq!(back[3000], 0);
            // Not every file system knows how to read without waiting.
            let mut now = [9; 3001];
            if disk.read_now(65536, &mut now).expect("reads or not") {
                assert_eq!(now, back);
            } else {
                assert!(!disk.is_ram());
            }
            assert!(
                disk.read((1 << 20) - 1, &mut [0; 2]).is_err(),
                "beyond the end"
            );
        }
    }

    #[test]
    fn a_volatile_cache_loses_what_was_not_made_durable() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("image");
        let disk = file(&dir, 1 << 20).with_cache();
        let on_medium =
            |at: usize, len: usize| std::fs::read(&path).expect("image")[at..at + len].to_vec();
        disk.write(0, &[1; 512], false).expect("writes");
        disk.write(512, &[2; 512], false).expect("writes");
        assert_eq!(on_medium(0, 1024), [0; 1024]);
        disk.flush().expect("flushes");
        assert_eq!(on_medium(0, 1024), [[1; 512], [2; 512]].concat());
        disk.write(0, &[3; 512], true).expect("FUA");
        assert_eq!(on_medium(0, 512), [3; 512]);
        disk.write_repeated(0, &[4; 512], 4, false).expect("writes");
        assert_eq!(disk.punch(1024, 512).ok(), Some(true));
        disk.write(512, &[5; 512], false).expect("writes");
        let mut back = [9; 2048];
        disk.read(0, &mut back).expect("reads");
        let expected = [[4; 512], [5; 512], [0; 512], [4; 512]].concat();
        assert_eq!(back[..], expected[..]);
        assert_eq!(disk.cut_power(None).ok(), Some(Some((0, 512))));
        // Giving space back wrote the rest out before.
        assert_eq!(
            on_medium(0, 2048),
            [[4; 512], [4; 512], [0; 512], [4; 512]].concat()
        );
        assert!(disk.read(0, &mut back).is_err() && disk.flush().is_err());
        assert!(disk.write(0, &[6; 512], false).is_err() && disk.punch(0, 512).is_err());
        assert_eq!(
            Backend::ram(4096, false).expect("ram").cut_power(None).ok(),
            Some(None)
        );
    }

    #[test]
    fn holes_give_space_back_and_read_as_zeroes() {
        let disk = Backend::ram(1 << 20, false).expect("ram");
        disk.write(0, &[1; 1 << 16], false).expect("writes");
        assert_eq!(disk.allocated(), 1 << 16);
        assert_eq!(disk.extent(0).ok(), Some((true, 1 << 16)));
        assert_eq!(disk.punch(0, 1 << 15).ok(), Some(true));
        assert_eq!(disk.allocated(), 1 << 15);
        assert_eq!(disk.extent(0).ok(), Some((false, 1 << 15)));
        assert_eq!(disk.extent(1 << 16).ok(), Some((false, 1 << 20)));
        let mut back = [9; 512];
        disk.read(100, &mut back).expect("reads");
        assert_eq!(back, [0; 512]);
    }

    #[test]
    fn an_image_has_one_writer_or_many_readers() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("image");
        let writer = Backend::open(&path, Some(4096), false).expect("opens");
        for read_only in [true, false] {
            assert!(matches!(
                Backend::open(&path, None, read_only),
                Err(BackendError::InUse(_))
            ));
        }
        writer.give_up();
        let other = Backend::open(&path, None, false).expect("given up");
        drop((writer, other));
        let one = Backend::open(&path, None, true).expect("opens");
        let two = Backend::open(&path, None, true).expect("opens");
        assert!(one.write(0, &[1], false).is_err() && two.resize(0).is_err());
        assert!(matches!(
            Backend::open(dir.path(), None, true),
            Err(BackendError::NotAFile(_))
        ));
        assert!(matches!(
            Backend::open(&dir.path().join("none"), None, false),
            Err(BackendError::File { .. })
        ));
    }
}
