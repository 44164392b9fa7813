// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Small decisions and tables that several parts share.

use core::fmt;
use core::ops::DerefMut;

use crate::msg::OfferChannel;
use crate::tlfs::monitor::MonitorPosition;

/// How a guest tells the host that a channel's ring has turned from empty to not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalMethod {
    /// Set the channel's bit in the guest-to-host half of the interrupt page (unless `dedicated`), then
    /// HvCallSignalEvent with the offer's connection id.
    Hypercall {
        /// The channel has its own interrupt: leave the interrupt page alone.
        dedicated: bool,
    },
    /// Set the channel's bit in the interrupt page, then its trigger in the guest-to-host monitor page;
    /// the hypervisor signals within the latency the page states.
    Monitor(MonitorPosition),
}

/// How to signal for a channel (Linux `channel.c`, `vmbus_setevent`; `connection.c`,
/// `vmbus_set_event`). `low_latency`: the driver does not want to wait for the monitor's scan.
#[must_use]
pub const fn signal_method(offer: &OfferChannel, low_latency: bool) -> SignalMethod {
    if !low_latency {
        if let Some(id) = offer.monitor_id() {
            if let Some(position) = MonitorPosition::new(id) {
                return SignalMethod::Monitor(position);
            }
        }
    }
    SignalMethod::Hypercall {
        dedicated: offer.has_dedicated_interrupt(),
    }
}

/// One request that waits for its completion, or a free place for one. See [`RequestTable`].
#[derive(Clone, Copy, Debug)]
pub struct RequestSlot<T> {
    /// Counts the requests that the place has had: part of the transaction id.
    generation: u32,
    /// Next free place, when free.
    next: u32,
    /// The request.
    value: Option<T>,
}

impl<T> RequestSlot<T> {
    /// A free place.
    pub const FREE: Self = Self {
        generation: 0,
        next: END,
        value: None,
    };
}

const END: u32 = u32::MAX;

/// Maps transaction ids to the requests that wait for their completion.
///
/// The peer returns ids as it likes, so an id names a place and how often that was used: the id of a
/// completed request never finds the next one. Id 0 is never given out. All operations take constant
/// time. The caller provides the storage, one [`RequestSlot`] per request: a vector or a mutable slice.
#[derive(Debug)]
pub struct RequestTable<S> {
    slots: S,
    free: u32,
    used: u32,
}

/// All places are taken. Not a fault: try again when a request has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

impl fmt::Display for TableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no transaction id is free")
    }
}

impl core::error::Error for TableFull {}

/// A transaction id that belongs to no request: made up, or completed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownId(pub u64);

impl fmt::Display for UnknownId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction id {:#x} belongs to no request", self.0)
    }
}

impl core::error::Error for UnknownId {}

impl<T, S: DerefMut<Target = [RequestSlot<T>]>> RequestTable<S> {
    /// A table with the places of `slots`, at most 2^31; further ones stay unused. Requests that they
    /// hold are forgotten.
    pub fn new(mut slots: S) -> Self {
        let mut free = END;
        let places = slots.iter_mut().zip(0..1 << 31).rev();
        for (slot, index) in places {
            slot.value = None;
            slot.next = free;
            free = index;
        }
        Self {
            slots,
            free,
            used: 0,
        }
    }

    /// Requests in flight.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.used
    }

    /// Whether no request is in flight.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Keeps `value` and returns the transaction id to send.
    ///
    /// # Errors
    /// [`TableFull`].
    #[inline]
    pub fn insert(&mut self, value: T) -> Result<u64, TableFull> {
        let index = self.free;
        let slot = self.slots.get_mut(index as usize).ok_or(TableFull)?;
        self.free = slot.next;
        slot.value = Some(value);
        self.used = self.used.wrapping_add(1);
        Ok((u64::from(slot.generation) << 32) | u64::from(index).wrapping_add(1))
    }

    /// Takes out the request with `id`: it has completed, or could not be sent.
    ///
    /// # Errors
    /// [`UnknownId`]: the peer made the id up or completes twice.
    #[inline]
    pub fn remove(&mut self, id: u64) -> Result<T, UnknownId> {
        let unknown = UnknownId(id);
        // Ids count from 1.
        let index = (id as u32).checked_sub(1).ok_or(unknown)?;
        let slot = self.slots.get_mut(index as usize).ok_or(unknown)?;
        if slot.generation != (id >> 32) as u32 {
            return Err(unknown);
        }
        let value = slot.value.take().ok_or(unknown)?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next = self.free;
        self.free = index;
        self.used = self.used.wrapping_sub(1);
        Ok(value)
    }

    /// Looks at the request with `id`.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&T> {
        let index = (id as u32).checked_sub(1)?;
        let slot = self.slots.get(index as usize)?;
        if slot.generation == (id >> 32) as u32 {
            slot.value.as_ref()
        } else {
            None
        }
    }

    /// Takes out all requests, for a channel that closes: their completions will not come.
    pub fn drain(&mut self, mut each: impl FnMut(T)) {
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else {
                break;
            };
            if let Some(value) = slot.value.take() {
                slot.generation = slot.generation.wrapping_add(1);
                slot.next = self.free;
                self.free = index as u32;
                self.used = self.used.wrapping_sub(1);
                each(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::ChannelMessage;
    use std::collections::HashMap;
    use std::vec::Vec;

    fn table(size: usize) -> RequestTable<Vec<RequestSlot<u32>>> {
        RequestTable::new(std::vec![RequestSlot::FREE; size])
    }

    #[test]
    fn signal_methods() {
        let mut offer = OfferChannel::blank();
        let hypercall = |dedicated| SignalMethod::Hypercall { dedicated };
        assert_eq!(signal_method(&offer, false), hypercall(false));
        offer.is_dedicated = 0xffff;
        assert_eq!(signal_method(&offer, false), hypercall(true));
        offer.monitor_id = 33;
        assert_eq!(
            signal_method(&offer, false),
            hypercall(true),
            "not allocated"
        );
        offer.monitor_allocated = 1;
        let position = MonitorPosition { group: 1, bit: 1 };
        assert_eq!(
            signal_method(&offer, false),
            SignalMethod::Monitor(position)
        );
        assert_eq!(signal_method(&offer, true), hypercall(true));
        offer.monitor_id = 128;
        assert_eq!(
            signal_method(&offer, false),
            hypercall(true),
            "no such trigger"
        );
    }

    #[test]
    fn full_and_empty() {
        let mut none = table(0);
        assert_eq!(none.insert(1), Err(TableFull));
        assert_eq!(none.remove(1), Err(UnknownId(1)));
        let mut two = table(2);
        let a = two.insert(10).unwrap();
        let b = two.insert(20).unwrap();
        assert_eq!(two.insert(30), Err(TableFull));
        assert!(a != b && a != 0 && b != 0);
        assert_eq!(two.get(b), Some(&20));
        assert_eq!(two.remove(a), Ok(10));
        assert_eq!(two.len(), 1);
        two.insert(30).unwrap();
        let mut rest = Vec::new();
        two.drain(|v| rest.push(v));
        rest.sort();
        assert_eq!(rest, [20, 30]);
        assert!(two.is_empty());
        assert_eq!(two.remove(b), Err(UnknownId(b)), "drained");
        two.insert(1).unwrap();
        two.insert(2).unwrap();
        assert_eq!(two.insert(3), Err(TableFull));
    }

    #[test]
    fn attack_made_up_and_repeated_ids() {
        let mut t = table(4);
        let a = t.insert(1).unwrap();
        for id in [0, 5, u64::MAX, 1 << 32, a | (1 << 63), a + 1, 0xffff_ffff] {
            assert_eq!(t.remove(id), Err(UnknownId(id)), "{id:#x}");
            assert_eq!(t.get(id), None);
        }
        assert_eq!(t.remove(a), Ok(1));
        assert_eq!(t.remove(a), Err(UnknownId(a)), "twice");
        // The place is used again; the old id does not find the new request.
        let b = t.insert(2).unwrap();
        assert_eq!(b as u32, a as u32);
        assert_eq!(t.remove(a), Err(UnknownId(a)));
        assert_eq!(t.remove(b), Ok(2));
    }

    proptest::proptest! {
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec((proptest::bool::ANY, 0usize..8), 0..200)) {
            let mut t = table(6);
            let mut model = HashMap::new();
            let mut ids = Vec::new();
            for (n, (insert, pick)) in ops.into_iter().enumerate() {
                if insert {
                    match t.insert(n as u32) {
                        Ok(id) => {
                            proptest::prop_assert!(model.insert(id, n as u32).is_none());
                            ids.push(id);
                        }
                        Err(TableFull) => proptest::prop_assert_eq!(model.len(), 6),
                    }
                } else if let Some(&id) = ids.get(pick) {
                    proptest::prop_assert_eq!(t.remove(id).ok(), model.remove(&id));
                }
                proptest::prop_assert_eq!(t.len() as usize, model.len());
            }
        }
    }
}
