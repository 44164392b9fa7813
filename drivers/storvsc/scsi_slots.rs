// SPDX-License-Identifier: GPL-2.0

//! The commands that a device has, by the ids under which it will complete them.
//!
//! The device returns ids as it likes. So an id names a place, how often that was used, and by which way the command went; the
//! place holds the id of the command in flight, and whoever exchanges that for one without a place has the command. One atomic
//! operation, no lock, and each command is completed once.
//!
//! ```text
//! 63       44 43     32 31          0
//! +----------+---------+------------+
//! | use      | way     | place + 1  |
//! +----------+---------+------------+
//! ```

use core::{
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};
use kernel::prelude::*;

use super::{
    scsi_command::Command,
    scsi_ffi::ScsiCommand, //
};

const WAY_SHIFT: u32 = 32;
const USE_SHIFT: u32 = 44;

/// Ways are below this.
pub(crate) const WAYS: u32 = 1 << (USE_SHIFT - WAY_SHIFT);

/// The part of an id that counts.
const USES: u64 = u64::MAX << USE_SHIFT;

/// The part of an id that tells of `way`.
#[inline]
pub(crate) const fn way_bits(way: u32) -> u64 {
    ((way & (WAYS - 1)) as u64) << WAY_SHIFT
}

/// Place for the command with one tag of one queue.
struct Slot {
    /// Id of the command that is in flight, or that of the last one with nothing but the count of uses.
    id: AtomicU64,
    // INVARIANT: While `id` names a place, a command that belongs to who takes that from it.
    command: AtomicPtr<ScsiCommand>,
}

/// Whether `id` is that of a command.
#[inline]
const fn in_flight(id: u64) -> bool {
    id as u32 != 0
}

/// See the [module's documentation](self).
pub(crate) struct Slots {
    slots: KVVec<Slot>,
    depth: u32,
}

impl Slots {
    /// Places for `queues` hardware queues with `depth` tags each.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` when there are too many.
    pub(crate) fn new(queues: u32, depth: u32) -> Result<Self> {
        let count = queues
            .checked_mul(depth)
            .filter(|count| *count < u32::MAX)
            .ok_or(EINVAL)?;
        let mut slots = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
        for _ in 0..count {
            slots.push(
                Slot {
                    id: AtomicU64::new(0),
                    command: AtomicPtr::new(ptr::null_mut()),
                },
                GFP_KERNEL,
            )?;
        }
        Ok(Self { slots, depth })
    }

    /// A place for `command`, before it is sent by the way of these [bits](way_bits).
    ///
    /// # Errors
    /// The command, when there is no such place: it is not one of these queues.
    #[inline]
    pub(crate) fn ticket(&self, command: Command, way_bits: u64) -> Result<Ticket<'_>, Command> {
        let (queue, tag) = (command.queue(), command.tag());
        if tag >= self.depth {
            return Err(command);
        }
        let place = queue.wrapping_mul(self.depth).wrapping_add(tag);
        let Some(slot) = self.slots.get(place as usize) else {
            return Err(command);
        };
        // Only who holds the tag's command changes the id of a place that has none in flight.
        let uses = (slot.id.load(Ordering::Relaxed) & USES).wrapping_add(1 << USE_SHIFT);
        // Nothing is carried: the place is below the number of places, which is below 2^32.
        let id = (uses | way_bits)
            .wrapping_add(u64::from(place))
            .wrapping_add(1);
        Ok(Ticket { slot, id, command })
    }

    /// The command with `id`, which is not in flight any more. `None` when no command is in flight under this id: the device
    /// made it up, or has used it before.
    #[inline]
    pub(crate) fn take(&self, id: u64) -> Option<Command> {
        let slot = self.slots.get((id as u32).checked_sub(1)? as usize)?;
        slot.take(id)
    }

    /// Takes all commands that are in flight on `way`, or on any. None may be added meanwhile that should be taken.
    pub(crate) fn take_all(&self, way: Option<u32>, mut each: impl FnMut(Command)) {
        for slot in &self.slots {
            let id = slot.id.load(Ordering::Acquire);
            let of_way = |way: u32| id & way_bits(WAYS - 1) == way_bits(way);
            if in_flight(id) && way.is_none_or(of_way) {
                if let Some(command) = slot.take(id) {
                    each(command);
                }
            }
        }
    }

    /// Whether no command is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots
            .iter()
            .all(|slot| !in_flight(slot.id.load(Ordering::SeqCst)))
    }
}

impl Slot {
    /// `id` names a place.
    #[inline]
    fn take(&self, id: u64) -> Option<Command> {
        // Acquire pairs with the release in `Ticket::park`. SeqCst: who waits for all places to be empty is looked for after
        // this, and looks at the places after having said so.
        self.id
            .compare_exchange(id, id & USES, Ordering::SeqCst, Ordering::Relaxed)
            .ok()?;
        let command = self.command.load(Ordering::Relaxed);
        // SAFETY: By the field's invariant: this took the place out of the id.
        Some(unsafe { Command::from_raw(NonNull::new_unchecked(command)) })
    }
}

/// A command that has a place; see [`Slots::ticket`].
///
/// # Invariants
/// `command` is the one of the tag and queue that `slot` is for. There is one at a time, by the rules of the block layer, so nobody else
/// puts anything into the place.
pub(crate) struct Ticket<'a> {
    slot: &'a Slot,
    id: u64,
    command: Command,
}

impl Ticket<'_> {
    /// Under which id the device is to complete the command.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The command.
    #[inline]
    pub(crate) fn command(&self) -> &Command {
        &self.command
    }

    /// The command, which was not sent after all.
    #[inline]
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Puts the command into its place: from now on it may be completed.
    #[inline]
    pub(crate) fn park(self) {
        self.slot
            .command
            .store(self.command.into_raw().as_ptr(), Ordering::Relaxed);
        // INVARIANT: Ownership is handed to who takes the place out of the id. Release: the command is there before its id.
        self.slot.id.store(self.id, Ordering::Release);
    }
}
