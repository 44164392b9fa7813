// SPDX-License-Identifier: GPL-2.0

//! What completions and notices cause to be done in process context: scans, removal of devices, changes of the channels.
//!
//! Whoever asks for something notes it in a bit, which costs no memory and cannot fail, and schedules the work.
#![forbid(unsafe_code)]

use core::{
    num::NonZeroU64,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};
use hv_vmbus::services::deferred::Run;
use kernel::{prelude::*, sync::Arc};

use crate::{
    links::Links,
    scsi::{Address, Limits, ScsiHost},
};

/// A bit for each logical unit that a host can have.
struct Bits {
    words: KVVec<AtomicU64>,
    max_id: NonZeroU64,
    max_lun: NonZeroU64,
}

impl Bits {
    fn new(limits: &Limits) -> Result<Self> {
        let count = u64::from(limits.max_channel + 1) * u64::from(limits.max_id) * limits.max_lun;
        let words = usize::try_from(count.div_ceil(64)).map_err(|_| EINVAL)?;
        let mut list = KVVec::with_capacity(words, GFP_KERNEL)?;
        for _ in 0..words {
            list.push(AtomicU64::new(0), GFP_KERNEL)?;
        }
        Ok(Self {
            words: list,
            max_id: NonZeroU64::new(limits.max_id.into()).ok_or(EINVAL)?,
            max_lun: NonZeroU64::new(limits.max_lun).ok_or(EINVAL)?,
        })
    }

    /// False when there is no such logical unit.
    fn set(&self, at: Address) -> bool {
        let (max_id, max_lun) = (self.max_id.get(), self.max_lun.get());
        if u64::from(at.target) >= max_id || at.lun >= max_lun {
            return false;
        }
        let index = (u64::from(at.channel) * max_id + u64::from(at.target)) * max_lun + at.lun;
        let Some(word) = self.words.get((index / 64) as usize) else {
            return false;
        };
        word.fetch_or(1 << (index % 64), Ordering::AcqRel);
        true
    }

    /// Clears the bits, and calls `each` for those that were set.
    fn take(&self, mut each: impl FnMut(Address)) {
        for (number, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let index = number as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                let target = index / self.max_lun;
                each(Address {
                    channel: (target / self.max_id) as u32,
                    target: (target % self.max_id) as u32,
                    lun: index % self.max_lun,
                });
            }
        }
    }
}

/// The work. See the [module's documentation](self).
pub(crate) struct Chores {
    host: Arc<ScsiHost>,
    links: Arc<Links>,
    /// The device is one disk, at a place of its own: the host is not scanned.
    single: bool,
    test: AtomicBool,
    scan: AtomicBool,
    channels: AtomicBool,
    gone: Bits,
    changed: Bits,
}

impl Chores {
    pub(crate) fn new(
        host: Arc<ScsiHost>,
        links: Arc<Links>,
        limits: &Limits,
        single: bool,
    ) -> Result<Self> {
        Ok(Self {
            host,
            links,
            single,
            test: AtomicBool::new(false),
            scan: AtomicBool::new(false),
            channels: AtomicBool::new(false),
            gone: Bits::new(limits)?,
            changed: Bits::new(limits)?,
        })
    }

    /// Notes that devices went. The caller schedules the work; likewise below.
    ///
    /// No scan, which would find none of them (the C driver scans). While it lasts, removals and further scans wait for it; and if
    /// the host has one disk left, the block layer stops that twice for each place where there is none, to share the tags with what SCSI
    /// asks there (`blk_mq_update_tag_set_shared`): more than a second beside I/O.
    pub(crate) fn note_test(&self) {
        self.test.store(true, Ordering::Release);
    }

    /// Notes that devices came or went.
    pub(crate) fn note_scan(&self) {
        self.scan.store(true, Ordering::Release);
    }

    /// Notes that channels went, or moved.
    pub(crate) fn note_channels(&self) {
        self.channels.store(true, Ordering::Release);
    }

    /// Notes that a device is gone.
    pub(crate) fn note_gone(&self, at: Address) {
        if !self.gone.set(at) {
            self.note_scan();
        }
    }

    /// Notes that a device's capacity or parameters have changed.
    pub(crate) fn note_changed(&self, at: Address) {
        if !self.changed.set(at) {
            self.note_scan();
        }
    }
}

impl Run for Chores {
    fn run(&self) -> Option<u32> {
        if self.channels.swap(false, Ordering::AcqRel) {
            if let Err(e) = self.links.update() {
                pr_err!("channels cannot be changed: {}\n", e.to_errno());
            }
        }
        let scan = self.scan.swap(false, Ordering::AcqRel);
        let test = self.test.swap(false, Ordering::AcqRel);
        let known = || {
            self.gone.take(|at| self.host.remove_device(at));
            self.changed.take(|at| self.host.rescan_device(at));
        };
        // First what is known: the test waits for every device.
        known();
        if scan || test {
            // Devices that are gone, or have changed, answer so, and are noted then.
            self.host.test_all();
            // Before the scan, which may find another device in the place of one that is gone, which removals would wait for, and which
            // takes a second or more on a busy machine: a new size is seen before that.
            known();
        }
        if scan && !self.single {
            self.host.scan();
        }
        None
    }
}
