// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the storage driver: the commands in flight and their ids, with two threads and with a device that answers what
//! it likes, and the signals that are owed for commands that come together. Part of `hv_storvsc_rs` on kernels with KUnit, and run when
//! it is loaded (`docs/testing.md`).

use core::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use hv_vmbus::services::deferred::Run;
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{Arc, SpinLock},
    time::{delay::fsleep, Delta},
};

use super::{
    scsi_ffi::{layout, ScsiCommand},
    way_bits, Command, Slots, WAYS,
};
use crate::batches::Batches;

/// A hardware queue, as far as commands look at it.
struct Queue(KVVec<u64>);

impl Queue {
    fn new(number: u32) -> Result<Self> {
        let mut words = KVVec::from_elem(0, layout::QUEUE_NUMBER / 8 + 1, GFP_KERNEL)?;
        // SAFETY: The words go so far.
        unsafe {
            let member = words.as_mut_ptr().byte_add(layout::QUEUE_NUMBER);
            member.cast::<u32>().write(number);
        }
        Ok(Self(words))
    }
}

/// A command that SCSI has handed over, as far as places look at it: its queue and its tag. It is never completed.
struct Fake(KVVec<u64>);

impl Fake {
    /// The queue must outlive it.
    fn new(queue: &Queue, tag: u32) -> Result<Self> {
        // The request, and behind it more than is read of a command here.
        let mut words = KVVec::from_elem(0u64, layout::REQUEST_SIZE / 8 + 64, GFP_KERNEL)?;
        let request = words.as_mut_ptr();
        // SAFETY: The words go so far.
        unsafe {
            request
                .byte_add(layout::REQUEST_TAG)
                .cast::<u32>()
                .write(tag);
            let member = request.byte_add(layout::REQUEST_QUEUE);
            member.cast::<*const u64>().write(queue.0.as_ptr());
        }
        Ok(Self(words))
    }

    fn raw(&self) -> NonNull<ScsiCommand> {
        let request = self.0.as_ptr().cast_mut();
        // SAFETY: The words go so far.
        unsafe { NonNull::new_unchecked(request.byte_add(layout::REQUEST_SIZE).cast()) }
    }

    /// To be given up by `into_raw`, not dropped: that would complete it.
    fn command(&self) -> Command {
        // SAFETY: Only its queue and its tag are asked for here, and both are there.
        unsafe { Command::from_raw(self.raw()) }
    }
}

/// Commands of two queues with `depth` tags each, and places for them.
struct Bench {
    slots: Slots,
    fakes: KVVec<Fake>,
    queues: [Queue; 2],
}

impl Bench {
    fn new(depth: u32) -> Result<Self> {
        let queues = [Queue::new(0)?, Queue::new(1)?];
        let mut fakes = KVVec::new();
        for queue in &queues {
            for tag in 0..depth {
                fakes.push(Fake::new(queue, tag)?, GFP_KERNEL)?;
            }
        }
        Ok(Self {
            slots: Slots::new(2, depth)?,
            fakes,
            queues,
        })
    }

    /// Puts a command into its place.
    fn park(&self, fake: &Fake, way: u32) -> Option<u64> {
        match self.slots.ticket(fake.command(), way_bits(way)) {
            Ok(ticket) => {
                let id = ticket.id();
                ticket.park();
                Some(id)
            }
            Err(command) => {
                command.into_raw();
                None
            }
        }
    }

    /// What has the id, by its address.
    fn take(&self, id: u64) -> Option<NonNull<ScsiCommand>> {
        self.slots.take(id).map(Command::into_raw)
    }
}

#[kunit_tests(hv_storvsc_slots)]
mod slots {
    use super::*;

    #[test]
    fn each_tag_of_each_queue_has_its_place() -> Result {
        let bench = Bench::new(16)?;
        let mut ids = KVVec::new();
        for fake in &bench.fakes {
            let id = bench.park(fake, 1).ok_or(EINVAL)?;
            assert!(!ids.contains(&id));
            ids.push(id, GFP_KERNEL)?;
        }
        assert!(!bench.slots.is_empty());
        for (fake, id) in Iterator::zip(bench.fakes.iter(), &ids) {
            assert_eq!(bench.take(*id), Some(fake.raw()));
        }
        assert!(bench.slots.is_empty());
        Ok(())
    }

    #[test]
    fn an_id_is_good_once() -> Result {
        let bench = Bench::new(1)?;
        let mut before = KVVec::new();
        for _ in 0..100 {
            let id = bench.park(&bench.fakes[0], 2).ok_or(EINVAL)?;
            for old in &before {
                assert_eq!(bench.take(*old), None);
            }
            assert_eq!(bench.take(id), Some(bench.fakes[0].raw()));
            assert_eq!(bench.take(id), None);
            before.push(id, GFP_KERNEL)?;
        }
        Ok(())
    }

    #[test]
    fn ids_that_nobody_gave_are_refused() -> Result {
        let bench = Bench::new(4)?;
        let id = bench.park(&bench.fakes[1], 3).ok_or(EINVAL)?;
        for bit in 0..64 {
            assert_eq!(bench.take(id ^ (1 << bit)), None);
        }
        for wrong in [0, u64::MAX, u32::MAX.into(), id & !0xffff_ffff] {
            assert_eq!(bench.take(wrong), None);
        }
        assert_eq!(bench.take(id), Some(bench.fakes[1].raw()));
        Ok(())
    }

    #[test]
    fn commands_without_a_place_are_given_back() -> Result {
        let bench = Bench::new(4)?;
        let third = Queue::new(2)?;
        for (queue, tag) in [
            (&bench.queues[0], 4),
            (&bench.queues[1], u32::MAX),
            (&third, 0),
        ] {
            assert_eq!(bench.park(&Fake::new(queue, tag)?, 0), None);
        }
        let last = Queue::new(u32::MAX)?;
        assert_eq!(bench.park(&Fake::new(&last, 3)?, 0), None);
        assert!(bench.slots.is_empty());
        assert!(Slots::new(u32::MAX, 2).is_err());
        Ok(())
    }

    #[test]
    fn those_of_one_way_are_taken_alone() -> Result {
        let bench = Bench::new(8)?;
        for (at, fake) in bench.fakes.iter().enumerate() {
            bench.park(fake, [0, 5, WAYS - 1][at % 3]).ok_or(EINVAL)?;
        }
        for (way, expected) in [
            (Some(5), 5),
            (Some(5), 0),
            (Some(7), 0),
            (None, 11),
            (None, 0),
        ] {
            let mut count = 0;
            bench.slots.take_all(way, |command| {
                command.into_raw();
                count += 1;
            });
            assert_eq!(count, expected);
        }
        assert!(bench.slots.is_empty());
        Ok(())
    }

    /// What two threads share.
    struct Shared {
        bench: Bench,
        /// The id of each command, in the order in which they are sent.
        ids: KVVec<AtomicU64>,
        sent: AtomicU32,
        /// Whether the block layer has the tag, by place in `Bench::fakes`.
        free: KVVec<AtomicBool>,
    }

    struct Sender(Arc<Shared>);

    impl Run for Sender {
        fn run(&self) -> Option<u32> {
            let Shared {
                bench,
                ids,
                sent,
                free,
            } = &*self.0;
            for (n, id) in ids.iter().enumerate() {
                let place = n % free.len();
                while !free[place].swap(false, Ordering::Acquire) {
                    fsleep(Delta::from_micros(20));
                }
                let new = bench.park(&bench.fakes[place], n as u32 % 3).unwrap_or(0);
                id.store(new, Ordering::Relaxed);
                sent.store(n as u32 + 1, Ordering::Release);
            }
            None
        }
    }

    /// One thread sends; the other completes what it was sent, backwards in pieces, and what it was not sent.
    #[test]
    fn two_threads_complete_each_command_once() -> Result {
        const COMMANDS: u32 = 20_000;
        let bench = Bench::new(16)?;
        let mut free = KVVec::new();
        for _ in &bench.fakes {
            free.push(AtomicBool::new(true), GFP_KERNEL)?;
        }
        let mut ids = KVVec::with_capacity(COMMANDS as usize, GFP_KERNEL)?;
        for _ in 0..COMMANDS {
            ids.push(AtomicU64::new(0), GFP_KERNEL)?;
        }
        let shared = Arc::new(
            Shared {
                bench,
                ids,
                sent: AtomicU32::new(0),
                free,
            },
            GFP_KERNEL,
        )?;
        let sender = hv_vmbus::new_deferred!(Sender(shared.clone()), c"hv_kunit")?;
        sender.schedule();
        let mut done = 0;
        while done < COMMANDS {
            let sent = shared.sent.load(Ordering::Acquire);
            for n in (done..sent).rev() {
                let place = n as usize % shared.free.len();
                let id = shared.ids[n as usize].load(Ordering::Relaxed);
                let raw = shared.bench.take(id);
                assert_eq!(raw, Some(shared.bench.fakes[place].raw()));
                // A second completion, and one of the use that follows.
                assert_eq!(shared.bench.take(id), None);
                shared.free[place].store(true, Ordering::Release);
            }
            if sent == done {
                fsleep(Delta::from_micros(20));
            }
            done = sent;
        }
        assert!(shared.bench.slots.is_empty());
        Ok(())
    }
}

#[kunit_tests(hv_storvsc_batches)]
mod batches {
    use super::*;

    /// Commands in the ring of each channel that the host has not been told of.
    #[pin_data]
    struct Rings {
        #[pin]
        first: SpinLock<u32>,
        #[pin]
        second: SpinLock<u32>,
        batches: Batches,
    }

    impl Rings {
        fn new() -> Result<Arc<Self>> {
            let batches = Batches::new(2)?;
            Ok(Arc::pin_init(
                pin_init!(Self {
                    first <- new_spinlock!(0, "hv_kunit::first"),
                    second <- new_spinlock!(0, "hv_kunit::second"),
                    batches,
                }),
                GFP_KERNEL,
            )?)
        }

        fn ring(&self, way: u32) -> &SpinLock<u32> {
            if way == 0 {
                &self.first
            } else {
                &self.second
            }
        }

        /// As `Adapter::queue`.
        fn send(&self, queue: u32, way: u32, may_wait: bool) {
            {
                let mut waiting = self.ring(way).lock();
                *waiting += 1;
                if !(may_wait && self.batches.may_owe(queue, way)) {
                    *waiting = 0;
                }
            }
            if !may_wait && self.batches.is_owed_elsewhere(queue, way) {
                self.settle(queue);
            }
        }

        /// As `Adapter::settle`.
        fn settle(&self, queue: u32) {
            if let Some(way) = self.batches.take(queue) {
                *self.ring(way).lock() = 0;
            }
        }

        fn waiting(&self) -> [u32; 2] {
            [*self.first.lock(), *self.second.lock()]
        }
    }

    #[test]
    fn a_row_on_one_channel_owes_until_its_end() -> Result {
        let rings = Rings::new()?;
        for _ in 0..3 {
            rings.send(0, 1, true);
        }
        assert_eq!(rings.waiting(), [0, 3]);
        // Of another queue: it says nothing of this one.
        rings.settle(1);
        assert_eq!(rings.waiting(), [0, 3]);
        rings.settle(0);
        assert_eq!(rings.waiting(), [0, 0]);
        Ok(())
    }

    #[test]
    fn a_row_that_moves_to_another_channel_is_not_forgotten() -> Result {
        let rings = Rings::new()?;
        rings.send(0, 0, true);
        rings.send(0, 1, true);
        // Only one channel may owe: the second was signalled at once.
        assert_eq!(rings.waiting(), [1, 0]);
        rings.send(0, 1, false);
        assert_eq!(rings.waiting(), [0, 0]);
        assert!(rings.batches.take(0).is_none());
        Ok(())
    }

    #[test]
    fn a_queue_that_is_none_owes_nothing() -> Result {
        let rings = Rings::new()?;
        assert!(!rings.batches.may_owe(2, 0));
        assert!(!rings.batches.is_owed_elsewhere(2, 0));
        assert!(rings.batches.take(2).is_none());
        rings.send(2, 0, true);
        assert_eq!(rings.waiting(), [0, 0]);
        Ok(())
    }

    /// Rows of commands that change channels, and end now with a command, now without one.
    fn rows(rings: &Rings, seed: u32) {
        let mut state = seed;
        for _ in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (queue, way) = (state >> 30 & 1, state >> 29 & 1);
            match state >> 26 & 7 {
                0 => rings.settle(queue),
                1 => rings.send(queue, way, false),
                _ => rings.send(queue, way, true),
            }
        }
        rings.settle(0);
        rings.settle(1);
    }

    struct Other {
        rings: Arc<Rings>,
        over: AtomicBool,
    }

    impl Run for Other {
        fn run(&self) -> Option<u32> {
            rows(&self.rings, 1);
            self.over.store(true, Ordering::Release);
            None
        }
    }

    /// Two threads send by the same queues and channels: when the last row of each has ended, the host knows of everything.
    #[test]
    fn two_threads_leave_no_command_behind() -> Result {
        let rings = Rings::new()?;
        let other = hv_vmbus::new_deferred!(
            Other {
                rings: rings.clone(),
                over: AtomicBool::new(false),
            },
            c"hv_kunit"
        )?;
        for round in 0..5 {
            other.job().over.store(false, Ordering::Relaxed);
            other.schedule();
            rows(&rings, 1000 + round);
            while !other.job().over.load(Ordering::Acquire) {
                fsleep(Delta::from_millis(1));
            }
            assert_eq!(rings.waiting(), [0, 0]);
        }
        Ok(())
    }
}
