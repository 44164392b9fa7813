// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the network driver: the packets in flight and their ids, with two threads and with a device that answers
//! what it likes. Part of `hv_netvsc_rs` on kernels with KUnit, and run when it is loaded (`docs/testing.md`).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hv_vmbus::services::deferred::Run;
use kernel::{
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta},
};

use crate::net::in_flight::InFlight;

/// Ids on their way from the thread that sends to the one that completes: a device that answers in any order.
struct Wire {
    ids: KVVec<AtomicU64>,
    sent: AtomicU32,
}

impl Wire {
    fn new(len: usize) -> Result<Self> {
        let mut ids = KVVec::with_capacity(len, GFP_KERNEL)?;
        for _ in 0..len {
            ids.push(AtomicU64::new(0), GFP_KERNEL)?;
        }
        Ok(Self {
            ids,
            sent: AtomicU32::new(0),
        })
    }
}

/// What the sending thread does.
struct Sender {
    table: Arc<InFlight>,
    wire: Arc<Wire>,
}

impl Run for Sender {
    fn run(&self) -> Option<u32> {
        for (note, place) in self.wire.ids.iter().enumerate() {
            let id = loop {
                match park(&self.table, note as u64) {
                    Some(id) => break id,
                    None => fsleep(Delta::from_micros(20)),
                }
            };
            place.store(id, Ordering::Relaxed);
            self.wire.sent.store(note as u32 + 1, Ordering::Release);
        }
        None
    }
}

/// Parks a packet that is none, under `note`.
fn park(table: &InFlight, note: u64) -> Option<u64> {
    let ticket = table.ticket()?;
    let id = ticket.id();
    ticket.park(None, note);
    Some(id)
}

#[kunit_tests(hv_netvsc_in_flight)]
mod in_flight {
    use super::*;

    #[test]
    fn every_place_is_given_once() -> Result {
        let table = InFlight::new(64)?;
        let mut ids = KVVec::with_capacity(64, GFP_KERNEL)?;
        while let Some(id) = park(&table, ids.len() as u64) {
            assert!(!ids.contains(&id));
            ids.push(id, GFP_KERNEL)?;
        }
        assert_eq!(ids.len(), 64);
        assert_eq!(table.count(), 64);
        for (note, id) in ids.iter().enumerate() {
            assert_eq!(table.take(*id).map(|done| done.note), Some(note as u64));
        }
        assert_eq!(table.count(), 0);
        Ok(())
    }

    #[test]
    fn an_id_is_good_once() -> Result {
        let table = InFlight::new(4)?;
        let mut before = KVVec::new();
        for round in 0..100u64 {
            let id = park(&table, round).ok_or(EBUSY)?;
            for old in &before {
                assert!(table.take(*old).is_none());
            }
            assert!(table.take(id).is_some());
            assert!(table.take(id).is_none());
            before.push(id, GFP_KERNEL)?;
        }
        Ok(())
    }

    #[test]
    fn ids_that_nobody_gave_are_refused() -> Result {
        let table = InFlight::new(4)?;
        let id = park(&table, 7).ok_or(EBUSY)?;
        for bit in 0..64 {
            assert!(table.take(id ^ (1 << bit)).is_none());
        }
        for wrong in [0, u64::MAX, u32::MAX.into(), id & !0xffff_ffff] {
            assert!(table.take(wrong).is_none());
        }
        assert_eq!(table.take(id).map(|done| done.note), Some(7));
        Ok(())
    }

    #[test]
    fn what_is_left_is_taken_at_the_end() -> Result {
        let table = InFlight::new(8)?;
        for note in 0..5 {
            park(&table, note).ok_or(EBUSY)?;
        }
        let mut notes = [false; 5];
        table.take_all(|done| notes[done.note as usize] = true);
        assert!(notes.iter().all(|&seen| seen));
        assert_eq!(table.count(), 0);
        Ok(())
    }

    #[test]
    fn sizes_that_no_device_has_are_refused() -> Result {
        assert!(InFlight::new(u32::MAX).is_err());
        assert!(InFlight::new((1 << 20) + 1).is_err());
        Ok(())
    }

    /// One thread sends, another completes, backwards in pieces: each packet comes back once, with its note.
    #[test]
    fn two_threads_lose_nothing() -> Result {
        const PACKETS: u32 = 20_000;
        let table = Arc::new(InFlight::new(32)?, GFP_KERNEL)?;
        let wire = Arc::new(Wire::new(PACKETS as usize)?, GFP_KERNEL)?;
        let sender = hv_vmbus::new_deferred!(
            Sender {
                table: table.clone(),
                wire: wire.clone(),
            },
            c"hv_kunit"
        )?;
        sender.schedule();
        let mut done = 0;
        while done < PACKETS {
            let sent = wire.sent.load(Ordering::Acquire);
            for note in (done..sent).rev() {
                let id = wire.ids[note as usize].load(Ordering::Relaxed);
                assert_eq!(table.take(id).map(|done| done.note), Some(note.into()));
            }
            if sent == done {
                fsleep(Delta::from_micros(20));
            }
            done = sent;
        }
        assert_eq!(table.count(), 0);
        Ok(())
    }
}
