// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A command on its way from the guest's packet to its completion.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use vmbus_proto::storvsc::srb::ScsiAddress;

use crate::buffer::{Gate, GuestBuffer};
use crate::faults::Hit;
use crate::scsi::{Disk, CDB_SIZE};

/// Where a completion goes: back on the channel that the request came on, while that is the same opening of
/// it.
#[derive(Clone, Debug)]
pub(crate) struct ReplyTo {
    pub(crate) index: u16,
    pub(crate) gate: Arc<Gate>,
    pub(crate) id: u64,
}

/// A disk in its place.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) disk: Disk,
    pub(crate) in_flight: AtomicU64,
    pub(crate) max_in_flight: AtomicU64,
    pub(crate) injected: AtomicU64,
}

impl Slot {
    pub(crate) fn new(disk: Disk) -> Arc<Self> {
        Arc::new(Self {
            disk,
            in_flight: AtomicU64::new(0),
            max_in_flight: AtomicU64::new(0),
            injected: AtomicU64::new(0),
        })
    }
}

/// A command counted as in flight at its disk until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(pub(crate) Arc<Slot>);

impl InFlight {
    pub(crate) fn new(slot: Arc<Slot>) -> Self {
        let now = slot.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        slot.max_in_flight.fetch_max(now, Ordering::Relaxed);
        Self(slot)
    }
}

impl InFlight {
    /// See [`Request::line`].
    pub(crate) fn line(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A command.
pub(crate) struct Request {
    pub(crate) reply: ReplyTo,
    pub(crate) address: ScsiAddress,
    pub(crate) cdb: [u8; CDB_SIZE],
    pub(crate) buffer: GuestBuffer,
    /// What shall go wrong.
    pub(crate) hit: Option<Hit>,
    /// Its disk; `None` when there is none, or not yet looked up.
    pub(crate) disk: Option<InFlight>,
}

impl Request {
    /// Which line of the pool it stands in: where the disk is in memory. It stays there as long as the command, or what came of it.
    pub(crate) fn line(&self) -> usize {
        self.disk.as_ref().map_or(0, InFlight::line)
    }
}
