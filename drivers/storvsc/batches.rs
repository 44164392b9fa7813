// SPDX-License-Identifier: GPL-2.0

//! Commands that come together, of which the host hears once.
//!
//! The block layer often sends several commands in a row, and says of each but the last that more come. The host is signalled
//! with the last, or when the block layer says that it comes no more (`commit_rqs`). In between the sender may have moved to another
//! CPU, and so to another channel: so each hardware queue notes the channel that owes the host a signal.
//!
//! No command is left behind:
//!
//! - A command is sent without signal only while its queue names its channel ([`may_owe`](Batches::may_owe), under the ring's lock).
//! - Who ends the row either signals on that channel itself, or takes the name out ([`take`](Batches::take)) and then, under the ring's lock,
//!   gives the signal that is owed. A sender that had the name before has written its command by then, or names the channel anew.
//! - The block layer ends each row: it sends a command that may not wait, or calls `commit_rqs`; it freezes a queue, and so waits for rows, before
//!   it quiesces it. All commands but those that are passed through
//!   reach the driver ([`Command::may_wait`](crate::scsi::Command::may_wait)).
//! - When a channel is closed its commands end, signalled or not.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};
use kernel::prelude::*;

/// See the [module's documentation](self).
pub(crate) struct Batches {
    /// For each hardware queue the way of a channel, plus 1, that may owe a signal for its commands; 0: none does.
    // Release and acquire: who takes a name out finds its channel in the map of channels that it reads after that.
    owing: KVVec<AtomicU32>,
}

impl Batches {
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(queues: u32) -> Result<Self> {
        let mut owing = KVVec::with_capacity(queues as usize, GFP_KERNEL)?;
        for _ in 0..queues {
            owing.push(AtomicU32::new(0), GFP_KERNEL)?;
        }
        Ok(Self { owing })
    }

    /// Whether the channel of `way` may owe a signal for a command of `queue`. Under the lock of the channel's ring.
    #[inline]
    pub(crate) fn may_owe(&self, queue: u32, way: u32) -> bool {
        let Some(owing) = self.owing.get(queue as usize) else {
            return false;
        };
        let this = way.wrapping_add(1);
        owing.load(Ordering::Relaxed) == this
            || owing
                .compare_exchange(0, this, Ordering::Release, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether another channel than that of `way` may owe a signal for commands of `queue`.
    #[inline]
    pub(crate) fn is_owed_elsewhere(&self, queue: u32, way: u32) -> bool {
        self.owing.get(queue as usize).is_some_and(|owing| {
            let owing = owing.load(Ordering::Relaxed);
            owing != 0 && owing != way.wrapping_add(1)
        })
    }

    /// The way of the channel that may owe a signal for commands of `queue`; the caller has it given.
    pub(crate) fn take(&self, queue: u32) -> Option<u32> {
        self.owing
            .get(queue as usize)?
            .swap(0, Ordering::Acquire)
            .checked_sub(1)
    }
}
