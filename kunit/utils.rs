// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the utilities: their services and the clock in a kernel, and the desk between host and daemon with two threads
//! at it. Part of `hv_utils_rs` on kernels with KUnit, and run when it is loaded (`docs/testing.md`).

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hv_vmbus::services::{
    clock::{self, SampleCell},
    deferred::Run,
    ptp::ReadClock,
};
use kernel::time::{delay::fsleep, Delta};
use vmbus_proto::ic::{
    split,
    timesync::{ClockSample, HostTime, RefTime, SampleFlags},
    write_request, IcVersion, MessageType, Negotiated, Outcome, HEADERS_SIZE,
};

use super::*;
use crate::{
    heartbeat::Heartbeat,
    ic::Service as Answering,
    timesync::{HostClock, Timesync},
};

const FRAMEWORK: IcVersion = IcVersion::new(3, 0);

/// A packet of the host.
fn packet(version: IcVersion, kind: MessageType, body: &[u8]) -> Result<KVVec<u8>> {
    let mut packet = KVVec::from_elem(0u8, HEADERS_SIZE + body.len(), GFP_KERNEL)?;
    let versions = Negotiated {
        framework: FRAMEWORK,
        message: version,
    };
    write_request(&mut packet, versions, kind, 1, body).map_err(|_| EINVAL)?;
    Ok(packet)
}

/// The host's offer of one version.
fn negotiation(version: IcVersion) -> Result<KVVec<u8>> {
    let mut body = [0u8; 16];
    // How many of each, four bytes of nothing, the framework's version, the service's.
    let words = [
        1,
        1,
        0,
        0,
        FRAMEWORK.major(),
        FRAMEWORK.minor(),
        version.major(),
        version.minor(),
    ];
    for (to, word) in Iterator::zip(body.chunks_exact_mut(2), words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    packet(version, MessageType::NEGOTIATE, &body)
}

/// Opens a session of `service`, with this version.
fn agreed<S: Answering>(service: &S, version: IcVersion) -> Result<S::Session> {
    let mut session = service.session();
    let mut packet = negotiation(version)?;
    let Outcome { reply, event } = service.on_packet(&mut session, &mut packet);
    let versions = event.ok().and_then(|event| service.on_event(event));
    match versions {
        Some(versions) if reply && versions.message == version => Ok(session),
        _ => Err(EPROTO),
    }
}

#[kunit_tests(hv_utils_services)]
mod services {
    use super::*;

    #[test]
    fn a_beat_is_answered_with_the_next_number() -> Result {
        let version = IcVersion::new(3, 0);
        let mut session = agreed(&Heartbeat, version)?;
        for number in [0u64, 41, u64::MAX] {
            let mut body = [0u8; 40];
            body[..8].copy_from_slice(&number.to_le_bytes());
            let mut beat = packet(version, MessageType::HEARTBEAT, &body)?;
            let outcome = Heartbeat.on_packet(&mut session, &mut beat);
            assert!(outcome.reply && outcome.event.is_ok());
            let (_, body) = split(&beat).map_err(|_| EPROTO)?;
            assert_eq!(body[..8], number.wrapping_add(1).to_le_bytes());
        }
        Ok(())
    }

    #[test]
    fn packets_of_every_length_are_survived() -> Result {
        let version = IcVersion::new(4, 0);
        let clock = HostClock::new()?;
        let service = Timesync::new(clock.clone())?;
        let mut session = agreed(&service, version)?;
        // A sample, cut everywhere; the length that the headers state stays.
        let whole = packet(version, MessageType::TIMESYNC, &[0xff; 24])?;
        for len in 0..whole.len() {
            let mut cut = KVVec::new();
            cut.extend_from_slice(&whole[..len], GFP_KERNEL)?;
            let outcome = service.on_packet(&mut session, &mut cut);
            assert!(outcome.event.is_err());
        }
        assert!(clock.read().is_none());
        Ok(())
    }

    /// 2017-07-14, in nanoseconds since 1970.
    const THEN: u64 = 1_500_000_000_000_000_000;

    #[test]
    fn a_sample_makes_the_clock_go() -> Result {
        let version = IcVersion::new(4, 0);
        let clock = HostClock::new()?;
        assert!(clock.read().is_none());
        let service = Timesync::new(clock.clone())?;
        let mut session = agreed(&service, version)?;
        let mut body = [0u8; 24];
        body[..8].copy_from_slice(&HostTime::from_unix(THEN).0.to_le_bytes());
        body[8..16].copy_from_slice(&clock::reference_time().0.to_le_bytes());
        // No order to set the clock.
        body[16] = SampleFlags::SAMPLE.bits();
        let mut sample = packet(version, MessageType::TIMESYNC, &body)?;
        let Outcome { reply, event } = service.on_packet(&mut session, &mut sample);
        assert!(reply);
        let event = event.map_err(|_| EPROTO)?;
        assert!(service.on_event(event).is_none());
        let mut last = THEN;
        for _ in 0..100 {
            let now = clock.read().ok_or(ENODATA)?.get();
            assert!(now >= last && now < THEN + 600_000_000_000);
            last = now;
        }
        fsleep(Delta::from_millis(20));
        let now = clock.read().ok_or(ENODATA)?.get();
        assert!(now >= last + 20_000_000);
        clock.forget();
        assert!(clock.read().is_none());
        Ok(())
    }

    /// Both halves of a sample follow from its number.
    fn numbered(n: u64) -> ClockSample {
        ClockSample::new(HostTime(n.wrapping_mul(3)), RefTime(n))
    }

    struct Writer {
        cell: SampleCell,
        over: AtomicBool,
    }

    impl Run for Writer {
        fn run(&self) -> Option<u32> {
            for n in 0..50_000 {
                self.cell.set(Some(numbered(n)));
            }
            self.over.store(true, Ordering::Release);
            None
        }
    }

    #[test]
    fn samples_are_read_whole() -> Result {
        let writer = hv_vmbus::new_deferred!(
            Writer {
                cell: SampleCell::new()?,
                over: AtomicBool::new(false),
            },
            c"hv_kunit"
        )?;
        writer.schedule();
        let mut last = 0;
        while !writer.job().over.load(Ordering::Acquire) {
            for _ in 0..1000 {
                if let Some(sample) = writer.job().cell.get() {
                    let taken = u64::MAX - sample.age(RefTime(u64::MAX));
                    assert!(sample == numbered(taken) && taken >= last);
                    last = taken;
                }
            }
            fsleep(Delta::from_micros(20));
        }
        assert!(writer.job().cell.get() == Some(numbered(49_999)));
        Ok(())
    }
}

/// A desk, its task and its node's operations, without a channel.
fn front<S: Daemon>() -> Result<Arc<Front<S>>> {
    let desk = Desk::<S>::new()?;
    let task = Arc::new(new_deferred!(Work(desk.clone()), c"hv_kunit")?, GFP_KERNEL)?;
    Ok(Arc::new(Front { desk, task }, GFP_KERNEL)?)
}

#[kunit_tests(hv_utils_desk)]
mod desk {
    use super::*;

    #[test]
    fn one_process_at_a_time() -> Result {
        let front = front::<Vss>()?;
        for _ in 0..3 {
            assert_eq!(front.open(), Ok(()));
            assert_eq!(front.open(), Err(EBUSY));
            front.release();
        }
        Ok(())
    }

    #[test]
    fn a_device_that_goes_away_is_closed_to_all() -> Result {
        let front = front::<Kvp>()?;
        front.open()?;
        front.desk.leave();
        assert_eq!(front.open(), Err(EBADF));
        front.release();
        assert_eq!(front.open(), Err(EBADF));
        Ok(())
    }

    #[test]
    fn without_a_channel_no_answer_waits() -> Result {
        let front = front::<Fcopy>()?;
        {
            let mut state = front.desk.state.lock();
            let packet = negotiation(IcVersion::new(1, 1))?;
            let len = packet.len();
            state.buffers.packet[..len].copy_from_slice(&packet);
            let State {
                machine, buffers, ..
            } = state.deref_mut();
            let step = machine.on_packet(front.desk.now(), len, 7, buffers);
            assert!(step.reply.is_some());
            front.desk.settle(&mut state, step);
            assert!(state.unsent.is_none());
        }
        Ok(())
    }

    /// A daemon that opens and closes the node as fast as it can.
    struct Restless {
        front: Arc<Front<Vss>>,
        opened: AtomicU32,
        over: AtomicBool,
    }

    impl Run for Restless {
        fn run(&self) -> Option<u32> {
            for _ in 0..5_000 {
                if self.front.open().is_ok() {
                    self.opened.fetch_add(1, Ordering::Relaxed);
                    self.front.release();
                }
            }
            self.over.store(true, Ordering::Release);
            None
        }
    }

    /// The channel is closed and its interrupt comes, while a daemon comes and goes.
    #[test]
    fn daemon_and_channel_do_not_disturb_each_other() -> Result {
        let front = front::<Vss>()?;
        let daemon = hv_vmbus::new_deferred!(
            Restless {
                front: front.clone(),
                opened: AtomicU32::new(0),
                over: AtomicBool::new(false),
            },
            c"hv_kunit"
        )?;
        daemon.schedule();
        while !daemon.job().over.load(Ordering::Acquire) {
            front.desk.detach();
            front.task.schedule();
            fsleep(Delta::from_micros(50));
        }
        assert_eq!(daemon.job().opened.load(Ordering::Relaxed), 5_000);
        assert_eq!(front.open(), Ok(()));
        front.release();
        Ok(())
    }

    #[test]
    fn nodes_come_and_go() -> Result {
        for _ in 0..20 {
            let front = front::<Vss>()?;
            let node = Node::register(
                c"hv_kunit",
                hv_vmbus::this_module!(),
                &front.desk.signal,
                front.clone(),
            )?;
            front.desk.leave();
            drop(node);
        }
        Ok(())
    }
}
