// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the bus: what only a kernel can show, with its own pages, mappings, work queues and timers. Part of
//! `hv_vmbus_rs` on kernels with KUnit, and run when it is loaded (`docs/testing.md`).

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kernel::{
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, msecs_to_jiffies, Delta},
};

use crate::{
    memory::{RingMap, SharedPages},
    ring::RingView,
    services::deferred::Run,
    sync::Event,
    workqueue::OwnedQueue,
};

/// Time for something that is not meant to wait for anything, on a slow machine.
const LONG: u32 = 60_000;

/// A ring of `pages` pages of data, both of whose ends are here.
struct TestRing {
    // Before the pages: a mapping must not outlive them.
    map: RingMap,
    _pages: SharedPages,
}

impl TestRing {
    fn new(pages: usize) -> Result<Self> {
        let shared = SharedPages::new(-1, pages + 1)?;
        let map = shared.map_ring(0, pages + 1)?;
        Ok(Self {
            map,
            _pages: shared,
        })
    }

    fn view(&self) -> RingView {
        // SAFETY: The tests drop their views before the ring.
        unsafe { RingView::new(&self.map) }
    }
}

/// An event that may be shared.
fn event() -> Result<Arc<Event>> {
    Ok(Arc::pin_init(Event::new(), GFP_KERNEL)?)
}

/// Work that counts its calls, and runs again until it was called `until` times.
struct Counter {
    calls: AtomicU32,
    until: u32,
    every_ms: u32,
    done: Arc<Event>,
}

impl Counter {
    /// One that was not called yet, and what it signals at the end.
    fn new(until: u32, every_ms: u32) -> Result<(Self, Arc<Event>)> {
        let done = event()?;
        let counter = Self {
            calls: AtomicU32::new(0),
            until,
            every_ms,
            done: done.clone(),
        };
        Ok((counter, done))
    }
}

impl Run for Counter {
    fn run(&self) -> Option<u32> {
        let calls = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if calls < self.until {
            return Some(self.every_ms);
        }
        self.done.signal();
        None
    }
}

/// Work that takes its time.
struct Slow {
    begun: Arc<Event>,
    over: AtomicBool,
}

impl Run for Slow {
    fn run(&self) -> Option<u32> {
        self.begun.signal();
        fsleep(Delta::from_millis(100));
        self.over.store(true, Ordering::SeqCst);
        None
    }
}

#[kunit_tests(hv_vmbus_memory)]
mod memory {
    use super::*;
    use crate::{buffer::OutPage, memory::PAGE};

    #[test]
    fn pages_are_as_many_as_asked_for_and_distinct() -> Result {
        for count in [1, 2, 3, 17, 511, 1025] {
            let pages = SharedPages::new(-1, count)?;
            assert_eq!(pages.len(), count);
            let mut pfns = KVVec::with_capacity(count, GFP_KERNEL)?;
            for pfn in pages.pfns() {
                pfns.push(pfn, GFP_KERNEL)?;
            }
            assert_eq!(pfns.len(), count);
            pfns.sort_unstable();
            assert!(pfns.windows(2).all(|pair| pair[0] < pair[1]));
        }
        Ok(())
    }

    #[test]
    fn pages_are_zeroed() -> Result {
        // Twice: the second time they have been used.
        for _ in 0..2 {
            let pages = SharedPages::new(-1, 9)?;
            let base = pages.map_all()?;
            for at in 0..9 * PAGE {
                // SAFETY: Nine pages are mapped.
                let byte = unsafe { base.as_ptr().add(at) };
                // SAFETY: As above; nobody else uses them.
                assert!(unsafe { byte.read() } == 0);
                // SAFETY: As above.
                unsafe { byte.write(0xff) };
            }
            // SAFETY: The mapping that was just made; nobody uses it after this.
            unsafe { crate::ffi::hv_rs_vunmap(base.as_ptr().cast()) };
        }
        Ok(())
    }

    #[test]
    fn the_data_of_a_ring_are_mapped_twice() -> Result {
        let pages = SharedPages::new(-1, 6)?;
        // Two pages that are another ring's.
        let map = pages.map_ring(2, 4)?;
        assert_eq!(map.data_len(), 3 * PAGE);
        let (header, data) = (map.header().as_ptr(), map.data().as_ptr());
        for at in (0..3 * PAGE).step_by(509) {
            // SAFETY: The data are mapped twice, one copy after the other.
            unsafe {
                data.add(at).write(at as u8 | 1);
                assert_eq!(data.add(at + 3 * PAGE).read(), at as u8 | 1);
                data.add(at + 3 * PAGE).write(!(at as u8));
                assert_eq!(data.add(at).read(), !(at as u8));
            }
        }
        for at in 0..PAGE {
            // SAFETY: The header is a page.
            assert_eq!(unsafe { header.add(at).read() }, 0);
        }
        Ok(())
    }

    #[test]
    fn a_ring_beyond_the_pages_is_refused() -> Result {
        let pages = SharedPages::new(-1, 4)?;
        assert!(pages.map_ring(0, 0).is_err());
        assert!(pages.map_ring(0, 5).is_err());
        assert!(pages.map_ring(3, 2).is_err());
        assert!(pages.map_ring(4, 1).is_err());
        assert!(pages.map_ring(usize::MAX, 2).is_err());
        assert!(pages.map_ring(0, 4).is_ok());
        Ok(())
    }

    #[test]
    fn a_page_to_send_takes_a_page_and_no_more() -> Result {
        let mut page = OutPage::new()?;
        let bytes = KVVec::from_elem(0x5au8, PAGE + 1, GFP_KERNEL)?;
        assert!(page.write(&bytes[..PAGE]));
        assert!(page.write(&[]));
        assert!(!page.write(&bytes));
        assert!(page.pfn() != 0);
        Ok(())
    }
}

#[kunit_tests(hv_vmbus_ring)]
mod ring {
    use super::*;
    use crate::memory::PAGE;
    use vmbus_proto::ring::{
        Consumer, ControlWord, Producer, ReadError, RingError, RingMemory, WriteError,
    };

    /// Bytes of the longest message of [`fill`].
    const LONGEST: usize = 1500;

    /// Message number `n`: its length and its bytes follow from its number.
    fn fill(n: u32, buffer: &mut [u8]) -> &mut [u8] {
        let len = 8 + (n as usize * 37) % (LONGEST - 8);
        let message = &mut buffer[..len];
        for (at, byte) in message.iter_mut().enumerate() {
            *byte = (n as usize).wrapping_mul(31).wrapping_add(at * 7) as u8;
        }
        message
    }

    /// Sends message `n` when there is room.
    fn send(producer: &mut Producer<RingView>, n: u32, buffer: &mut [u8]) -> Result<bool> {
        match producer.send_in_band(fill(n, buffer), n.into(), false) {
            Ok(()) => Ok(true),
            Err(WriteError::Full { .. }) => Ok(false),
            Err(_) => Err(EIO),
        }
    }

    /// Takes the next message, which must be number `n`, when there is one.
    fn receive(
        consumer: &mut Consumer<RingView>,
        n: u32,
        buffer: &mut [u8],
        expected: &mut [u8],
    ) -> Result<bool> {
        match consumer.read(buffer) {
            Ok(packet) => {
                let expected = fill(n, expected);
                let same = packet.descriptor.transaction_id == u64::from(n)
                    && packet.payload.get(..expected.len()) == Some(&*expected);
                if same {
                    Ok(true)
                } else {
                    Err(EBADMSG)
                }
            }
            Err(ReadError::Empty) => Ok(false),
            Err(_) => Err(EIO),
        }
    }

    #[test]
    fn messages_of_every_length_go_round_and_round() -> Result {
        let ring = TestRing::new(2)?;
        let mut producer = Producer::init(ring.view()).map_err(|_| EIO)?;
        let mut consumer = Consumer::attach(ring.view()).map_err(|_| EIO)?;
        let mut buffer = KVVec::from_elem(0u8, 2 * LONGEST, GFP_KERNEL)?;
        let mut expected = KVVec::from_elem(0u8, LONGEST, GFP_KERNEL)?;
        let (mut sent, mut received) = (0, 0);
        while received < 3000 {
            while sent < 3000 && send(&mut producer, sent, &mut buffer)? {
                sent += 1;
            }
            let _ = producer.commit();
            while receive(&mut consumer, received, &mut buffer, &mut expected)? {
                received += 1;
            }
            let _ = consumer.finish();
        }
        assert_eq!(sent, received);
        Ok(())
    }

    #[test]
    fn two_threads_lose_nothing() -> Result {
        const MESSAGES: u32 = 20_000;
        let ring = Arc::new(TestRing::new(1)?, GFP_KERNEL)?;
        let queue = OwnedQueue::concurrent(c"hv_kunit")?;
        let failed = Arc::new(AtomicBool::new(false), GFP_KERNEL)?;
        let done = event()?;
        let mut consumer = Consumer::init(ring.view()).map_err(|_| EIO)?;
        let mut producer = Producer::attach(ring.view()).map_err(|_| EIO)?;
        {
            let (ring, failed, done) = (ring.clone(), failed.clone(), done.clone());
            queue.queue().try_spawn(GFP_KERNEL, move || {
                let mut buffer = [0u8; LONGEST];
                let mut sent = 0;
                while sent < MESSAGES && !failed.load(Ordering::Relaxed) {
                    match send(&mut producer, sent, &mut buffer) {
                        Ok(true) => sent += 1,
                        Ok(false) => {
                            let _ = producer.commit();
                            fsleep(Delta::from_micros(50));
                        }
                        Err(_) => failed.store(true, Ordering::Relaxed),
                    }
                }
                let _ = producer.commit();
                drop(ring);
                done.signal();
            })?;
        }
        let mut buffer = KVVec::from_elem(0u8, 2 * LONGEST, GFP_KERNEL)?;
        let mut expected = KVVec::from_elem(0u8, LONGEST, GFP_KERNEL)?;
        let mut received = 0;
        while received < MESSAGES && !failed.load(Ordering::Relaxed) {
            match receive(&mut consumer, received, &mut buffer, &mut expected) {
                Ok(true) => received += 1,
                Ok(false) => {
                    let _ = consumer.finish();
                    fsleep(Delta::from_micros(50));
                }
                Err(_) => failed.store(true, Ordering::Relaxed),
            }
        }
        let ended = done.wait_timeout(msecs_to_jiffies(LONG));
        queue.flush();
        assert!(ended);
        assert_eq!(received, MESSAGES);
        Ok(())
    }

    #[test]
    fn indices_out_of_the_ring_are_errors() -> Result {
        let ring = TestRing::new(1)?;
        let view = ring.view();
        let size = PAGE as u32;
        for index in [size, size + 8, 4, 1, u32::MAX, u32::MAX - 7, 1 << 31] {
            let mut consumer = Consumer::init(view).map_err(|_| EIO)?;
            view.store(ControlWord::WriteIndex, index);
            assert!(matches!(
                consumer.peek(),
                Err(ReadError::Corrupt(RingError::BadWriteIndex { .. }))
            ));
            let mut producer = Producer::init(view).map_err(|_| EIO)?;
            view.store(ControlWord::ReadIndex, index);
            let mut buffer = KVVec::from_elem(0u8, LONGEST, GFP_KERNEL)?;
            // It trusts what it saw last until it needs room.
            let refused = (0..100).any(|n| send(&mut producer, n, &mut buffer).is_err());
            assert!(refused);
        }
        Ok(())
    }

    #[test]
    fn packets_longer_than_what_is_there_are_errors() -> Result {
        let ring = TestRing::new(1)?;
        let view = ring.view();
        let mut buffer = KVVec::from_elem(0u8, 2 * PAGE, GFP_KERNEL)?;
        // Lengths of header and packet, in units of 8 bytes: the descriptor's second and third 16 bits.
        for (header, whole) in [
            (2, 3),
            (2, 0xffff),
            (0xffff, 0xffff),
            (0, 0),
            (1, 2),
            (3, 2),
        ] {
            Consumer::init(view).map_err(|_| EIO)?;
            // What is there: a packet of 16 bytes and its trailer, across the end of the ring.
            view.write_u64(PAGE as u32 - 8, 6 | header << 16 | whole << 32);
            view.store(ControlWord::ReadIndex, PAGE as u32 - 8);
            view.store(ControlWord::WriteIndex, 16);
            let mut consumer = Consumer::attach(view).map_err(|_| EIO)?;
            assert!(matches!(
                consumer.read(&mut buffer),
                Err(ReadError::Corrupt(_))
            ));
        }
        Ok(())
    }
}

#[kunit_tests(hv_vmbus_waiting)]
mod waiting {
    use super::*;
    use crate::{
        inbox::{Inbox, Node},
        tasklet::Tasklet,
        waiter::Waiter,
    };
    use kernel::ffi::c_ulong;

    #[test]
    fn the_first_answer_counts() -> Result {
        let waiter = KBox::pin_init(Waiter::<u32>::new(), GFP_KERNEL)?;
        waiter.expect();
        waiter.answer(1);
        waiter.answer(2);
        assert_eq!(waiter.wait(&"a test"), Some(1));
        Ok(())
    }

    #[test]
    fn an_answer_to_an_earlier_request_is_forgotten() -> Result {
        let waiter = KBox::pin_init(Waiter::<u32>::new(), GFP_KERNEL)?;
        waiter.expect();
        waiter.answer(1);
        waiter.expect();
        assert_eq!(waiter.wait_timeout(msecs_to_jiffies(20)), None);
        waiter.answer(3);
        assert_eq!(waiter.wait_timeout(msecs_to_jiffies(LONG)), Some(3));
        Ok(())
    }

    #[test]
    fn an_answer_from_another_thread_wakes() -> Result {
        let waiter = Arc::pin_init(Waiter::<u32>::new(), GFP_KERNEL)?;
        let queue = OwnedQueue::ordered(c"hv_kunit")?;
        for n in 0..200 {
            waiter.expect();
            let to = waiter.clone();
            queue.queue().try_spawn(GFP_KERNEL, move || to.answer(n))?;
            assert_eq!(waiter.wait_timeout(msecs_to_jiffies(LONG)), Some(n));
        }
        Ok(())
    }

    #[test]
    fn items_keep_the_order_of_who_puts_them_in() -> Result {
        const EACH: u32 = 2_000;
        let inbox = Arc::pin_init(Inbox::<(u32, u32)>::new(), GFP_KERNEL)?;
        let queue = OwnedQueue::concurrent(c"hv_kunit")?;
        for who in 0..2u32 {
            let to = inbox.clone();
            queue.queue().try_spawn(GFP_KERNEL, move || {
                for n in 0..EACH {
                    if let Ok(node) = Node::new((who, n)) {
                        to.push(node);
                    }
                }
            })?;
        }
        let mut next = [0; 2];
        let mut rounds = 0;
        while next != [EACH; 2] && rounds < LONG {
            for (who, n) in inbox.take() {
                assert_eq!(n, next[who as usize]);
                next[who as usize] += 1;
            }
            fsleep(Delta::from_millis(1));
            rounds += 1;
        }
        queue.flush();
        assert_eq!(next, [EACH; 2]);
        assert!(inbox.take().is_empty());
        Ok(())
    }

    #[test]
    fn deferred_work_runs_as_often_as_it_asks() -> Result {
        let (counter, done) = Counter::new(5, 10)?;
        let work = crate::new_deferred!(counter, c"hv_kunit")?;
        assert!(work.schedule());
        assert!(done.wait_timeout(msecs_to_jiffies(LONG)));
        work.cancel();
        assert_eq!(work.job().calls.load(Ordering::SeqCst), 5);
        Ok(())
    }

    #[test]
    fn deferred_work_that_was_dropped_does_not_run() -> Result {
        let (counter, done) = Counter::new(1, 0)?;
        let work = crate::new_deferred!(counter, c"hv_kunit")?;
        assert!(work.schedule_after(50));
        // It is queued already.
        assert!(!work.schedule_after(50));
        drop(work);
        assert!(!done.wait_timeout(msecs_to_jiffies(200)));
        Ok(())
    }

    #[test]
    fn cancelling_waits_for_work_that_runs() -> Result {
        let begun = event()?;
        let slow = Slow {
            begun: begun.clone(),
            over: AtomicBool::new(false),
        };
        let work = crate::new_deferred!(slow, c"hv_kunit")?;
        assert!(work.schedule());
        assert!(begun.wait_timeout(msecs_to_jiffies(LONG)));
        work.cancel();
        assert!(work.job().over.load(Ordering::SeqCst));
        Ok(())
    }

    /// # Safety
    /// `data` is the address of an [`Event`] that lives until the tasklet was killed.
    unsafe extern "C" fn signal(data: c_ulong) {
        // SAFETY: By the requirement.
        unsafe { &*(data as *const Event) }.signal();
    }

    #[test]
    fn a_tasklet_runs_when_scheduled() -> Result {
        let event = event()?;
        let address = &raw const *event as c_ulong;
        let tasklet = KBox::pin_init(Tasklet::new(signal, |_| address), GFP_KERNEL)?;
        for _ in 0..100 {
            event.reset();
            tasklet.schedule();
            assert!(event.wait_timeout(msecs_to_jiffies(LONG)));
            tasklet.kill();
        }
        Ok(())
    }
}
