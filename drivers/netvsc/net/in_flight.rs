// SPDX-License-Identifier: GPL-2.0

//! The packets that a device has, by the ids under which it will complete them.
//!
//! The device returns ids as it likes. So an id names a place and how often that was used; the place holds the id of the packet in
//! flight, and whoever exchanges that for 0 has the packet. One atomic operation, no lock, and each packet is completed once.
//!
//! ```text
//! 63           32 31          0
//! +--------------+------------+
//! | use          | place + 1  |
//! +--------------+------------+
//! ```
//!
//! Free places are in a ring: who sends takes them out at one end, who completes puts them in at the other.

use core::{
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
};
use kernel::prelude::*;

use super::{ffi, packet::Skb};

/// Place for a packet.
struct Slot {
    /// Id of the packet that is in flight, or 0.
    id: AtomicU64,
    // INVARIANT: While `id` is not 0, null or a packet that belongs to who sets it to 0.
    skb: AtomicPtr<ffi::SkBuff>,
    note: AtomicU64,
    /// Counts the uses of the place. Only who has taken it out of the ring of free places writes.
    uses: AtomicU32,
}

/// See the [module's documentation](self).
pub(crate) struct InFlight {
    slots: KVVec<Slot>,
    /// Free places plus 1; 0 where there is none. As many as slots, a power of two.
    free: KVVec<AtomicU32>,
    /// Where the next free place is taken out. Written by who sends.
    head: AtomicU32,
    /// Where the next is put in.
    tail: AtomicU32,
}

impl InFlight {
    /// Places for `count` packets, rounded up to a power of two. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` for too many.
    pub(crate) fn new(count: u32) -> Result<Self> {
        let count = count
            .checked_next_power_of_two()
            .filter(|count| *count <= 1 << 20)
            .ok_or(EINVAL)?;
        let mut slots = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
        let mut free = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
        for place in 0..count {
            let slot = Slot {
                id: AtomicU64::new(0),
                skb: AtomicPtr::new(ptr::null_mut()),
                note: AtomicU64::new(0),
                uses: AtomicU32::new(0),
            };
            slots.push(slot, GFP_KERNEL)?;
            free.push(AtomicU32::new(place + 1), GFP_KERNEL)?;
        }
        Ok(Self {
            slots,
            free,
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
        })
    }

    #[inline(always)]
    fn free_at(&self, index: u32) -> Option<&AtomicU32> {
        // A power of two.
        self.free
            .get(index as usize & self.free.len().wrapping_sub(1))
    }

    /// A place for a packet, before it is sent; `None` when all are taken. One call at a time, and one ticket.
    #[inline(always)]
    pub(crate) fn ticket(&self) -> Option<Ticket<'_>> {
        let head = self.head.load(Ordering::Relaxed);
        // Acquire pairs with the release in `take`: what the place held was taken before.
        let place = self.free_at(head)?.load(Ordering::Acquire).checked_sub(1)?;
        let slot = self.slots.get(place as usize)?;
        let uses = slot.uses.load(Ordering::Relaxed).wrapping_add(1);
        Some(Ticket {
            table: self,
            slot,
            head,
            id: u64::from(uses) << 32 | u64::from(place + 1),
        })
    }

    /// The packet with `id`, which is not in flight any more, and the note that came with it. `None` when no packet is in flight
    /// under this id: the device made it up, or has used it before.
    #[inline(always)]
    pub(crate) fn take(&self, id: u64) -> Option<Done> {
        let place = id as u32;
        // No id of a place is 0, which says that nothing is in flight: 0 - 1 is beyond all places.
        let slot = self.slots.get(place.wrapping_sub(1) as usize)?;
        // Acquire pairs with the release in `park`.
        slot.id
            .compare_exchange(id, 0, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        // SAFETY: By the field's invariant: this exchanged the id for 0.
        let owned = |skb| unsafe { Skb::from_raw(skb) };
        let done = Done {
            skb: NonNull::new(slot.skb.load(Ordering::Relaxed)).map(owned),
            note: slot.note.load(Ordering::Relaxed),
        };
        // As many entries as places: the one at the tail is empty. SeqCst: see `count`.
        let tail = self.tail.fetch_add(1, Ordering::SeqCst);
        if let Some(entry) = self.free_at(tail) {
            entry.store(place, Ordering::Release);
        }
        Some(done)
    }

    /// Takes all packets that are in flight. None may be added meanwhile.
    pub(crate) fn take_all(&self, mut each: impl FnMut(Done)) {
        for slot in &self.slots {
            let id = slot.id.load(Ordering::Acquire);
            if id != 0 {
                if let Some(done) = self.take(id) {
                    each(done);
                }
            }
        }
    }

    /// Packets in flight. Exact for who sends, for others about so.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        // Two threads, each of which writes one thing and reads the other's: who stops a queue says so, and then looks here whether
        // anything is in flight; who completes moves the tail, in `take`, and then looks whether the queue is stopped. All four are
        // SeqCst, so there is one order of them all, and whoever comes last in it sees what the other wrote.
        let tail = self.tail.load(Ordering::SeqCst);
        // Only who sends moves the head: the stopper's own.
        self.head.load(Ordering::Relaxed).wrapping_sub(tail)
    }
}

/// A packet that the device has completed; see [`InFlight::take`].
pub(crate) struct Done {
    /// The packet, if one was kept.
    pub(crate) skb: Option<Skb>,
    /// What was noted with it.
    pub(crate) note: u64,
}

/// A place for a packet; see [`InFlight::ticket`].
pub(crate) struct Ticket<'a> {
    table: &'a InFlight,
    slot: &'a Slot,
    head: u32,
    id: u64,
}

impl Ticket<'_> {
    /// Under which id the device is to complete the packet.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Puts a packet into the place: from now on it may be completed.
    #[inline(always)]
    pub(crate) fn park(self, skb: Option<Skb>, note: u64) {
        let raw = skb.map_or(ptr::null_mut(), |skb| skb.into_raw().as_ptr());
        self.slot.skb.store(raw, Ordering::Relaxed);
        self.slot.note.store(note, Ordering::Relaxed);
        self.slot
            .uses
            .store((self.id >> 32) as u32, Ordering::Relaxed);
        if let Some(entry) = self.table.free_at(self.head) {
            entry.store(0, Ordering::Relaxed);
        }
        self.table
            .head
            .store(self.head.wrapping_add(1), Ordering::Relaxed);
        // INVARIANT: Ownership is handed to who sets the id to 0. Release: the packet is there before its id.
        self.slot.id.store(self.id, Ordering::Release);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Lost.
        self.take_all(drop);
    }
}
