// SPDX-License-Identifier: GPL-2.0-only OR MIT

use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;

const SIMP: u64 = 0x2000;
const SIEFP: u64 = 0x3000;
const SINT: u8 = 2;
const VECTOR: u8 = 0xf3;
const SLOT: u64 = SIMP + SINT as u64 * 256;
const NONE: [u8; 0] = [];

struct Guest {
    vp: Vp,
    ram: GuestRam,
    counters: Counters,
}

impl Guest {
    /// A VP with message page, event page and SINT 2 on.
    fn new() -> Self {
        let guest = Self {
            vp: Vp::new(VpIndex(0)),
            ram: GuestRam::for_tests(0x8000),
            counters: Counters::default(),
        };
        guest.write(msr::SIMP, SIMP | 1).unwrap();
        guest.write(msr::SIEFP, SIEFP | 1).unwrap();
        guest
            .write(msr::SINT0 + u32::from(SINT), VECTOR.into())
            .unwrap();
        guest.write(msr::SCONTROL, 1).unwrap();
        guest
    }

    fn write(&self, number: u32, value: u64) -> Result<Vectors, Fault> {
        self.vp
            .write_msr(number, value, 0, &self.ram, &self.counters)
    }

    fn post(&self, kind: u32, payload: &[u8]) -> Result<Vectors, PostError> {
        self.vp
            .post(SINT, kind, payload, 0, &self.ram, &self.counters)
    }

    fn signal(&self, flag: u16) -> Result<(bool, Vectors), PostError> {
        self.vp.signal(SINT, flag, &self.ram, &self.counters)
    }

    /// Type, payload size, flags and first payload byte of the slot.
    fn slot(&self) -> (u32, u8, u8, u8) {
        let mut bytes = [0; 17];
        self.ram.read(SLOT, &mut bytes).unwrap();
        (
            u32::from_le_bytes(bytes[..4].try_into().unwrap()),
            bytes[4],
            bytes[5],
            bytes[16],
        )
    }

    /// Takes a message as Linux does (`vmbus_signal_eom`): clears the type, looks at the pending
    /// flag, writes EOM.
    fn consume(&self) -> Vectors {
        self.ram.store_u32(SLOT, 0, Ordering::SeqCst).unwrap();
        fence(Ordering::SeqCst);
        let mut flags = [0];
        self.ram.read(SLOT + FLAGS_OFFSET, &mut flags).unwrap();
        if flags[0] & MessageFlags::PENDING.bits() != 0 {
            self.write(msr::EOM, 0).unwrap()
        } else {
            Vectors::new()
        }
    }
}

#[test]
fn a_message_fills_its_slot_and_interrupts() {
    let guest = Guest::new();
    assert_eq!(guest.post(1, &[0x55, 1, 2]), Ok(vec![VECTOR]));
    assert_eq!(guest.slot(), (1, 3, 0, 0x55));
    assert_eq!(
        (
            guest.counters.synic_messages.get(),
            guest.counters.synic_interrupts.get()
        ),
        (1, 1)
    );
}

#[test]
fn the_next_message_waits_for_eom_and_order_is_kept() {
    let guest = Guest::new();
    guest.post(1, &[1]).unwrap();
    assert_eq!(guest.post(1, &[2]), Ok(vec![]), "the slot is occupied");
    assert_eq!(
        guest.slot(),
        (1, 1, MessageFlags::PENDING.bits(), 1),
        "the guest is told that more waits"
    );
    guest.post(1, &[3]).unwrap();
    assert_eq!(guest.consume(), [VECTOR]);
    assert_eq!(
        guest.slot(),
        (1, 1, MessageFlags::PENDING.bits(), 2),
        "pending is set from the start when more waits"
    );
    assert_eq!(guest.consume(), [VECTOR]);
    assert_eq!(guest.slot(), (1, 1, 0, 3));
    assert_eq!(guest.consume(), NONE);
    assert_eq!(guest.counters.eom.get(), 2);
}

#[test]
fn eom_without_need_is_harmless() {
    let guest = Guest::new();
    guest.post(1, &[1]).unwrap();
    assert_eq!(guest.write(msr::EOM, 0), Ok(vec![]));
    assert_eq!(guest.slot().0, 1);
}

#[test]
fn disabled_parts_refuse_messages_and_flags() {
    for (number, value) in [
        (msr::SCONTROL, 0),
        (msr::SIMP, 0),
        (msr::SINT0 + 2, Sint::MASKED | 0xf3),
        (msr::SINT0 + 2, Sint::PROXY | 0xf3),
    ] {
        let guest = Guest::new();
        guest.write(number, value).unwrap();
        assert_eq!(
            guest.post(1, &[1]),
            Err(PostError::NotEnabled),
            "{number:#x} = {value:#x}"
        );
        if number != msr::SIMP {
            assert_eq!(
                guest.signal(3),
                Err(PostError::NotEnabled),
                "{number:#x} = {value:#x}"
            );
        }
    }
    let guest = Guest::new();
    guest.write(msr::SIEFP, 0).unwrap();
    assert_eq!(guest.signal(3), Err(PostError::NotEnabled));
    let fresh = Vp::new(VpIndex(0));
    assert_eq!(
        fresh.post(2, 1, &[1], 0, &guest.ram, &guest.counters),
        Err(PostError::NotEnabled)
    );
}

#[test]
fn messages_that_wait_survive_masking() {
    let guest = Guest::new();
    guest.post(1, &[1]).unwrap();
    guest.post(1, &[2]).unwrap();
    guest.write(msr::SINT0 + 2, Sint::MASKED | 0xf3).unwrap();
    assert_eq!(guest.consume(), NONE, "masked: no delivery on EOM");
    assert_eq!(
        guest.write(msr::SINT0 + 2, 0xf4),
        Ok(vec![0xf4]),
        "delivered when unmasked, with the new vector"
    );
    assert_eq!(guest.slot().3, 2);
}

#[test]
fn polling_delivers_without_interrupt() {
    let guest = Guest::new();
    guest.write(msr::SINT0 + 2, Sint::POLLING | 0xf3).unwrap();
    assert_eq!(guest.post(1, &[9]), Ok(vec![]));
    assert_eq!(guest.slot().0, 1);
    assert_eq!(guest.signal(0), Ok((true, vec![])));
}

#[test]
fn the_queue_is_bounded_and_payloads_too() {
    let guest = Guest::new();
    for _ in 0..=QUEUE_LIMIT {
        guest.post(1, &[1]).unwrap();
    }
    assert_eq!(guest.post(1, &[1]), Err(PostError::QueueFull));
    guest.consume();
    assert!(guest.post(1, &[1]).is_ok());
    assert_eq!(guest.post(1, &[0; 241]), Err(PostError::TooLong));
    assert_eq!(
        guest.vp.post(16, 1, &[1], 0, &guest.ram, &guest.counters),
        Err(PostError::NotEnabled)
    );
    assert_eq!(guest.counters.synic_messages_refused.get(), 3);
}

#[test]
fn vectors_below_sixteen_fault_unless_masked() {
    let guest = Guest::new();
    assert_eq!(guest.write(msr::SINT0, 15), Err(Fault));
    assert!(guest.write(msr::SINT0, 16).is_ok());
    assert!(guest.write(msr::SINT0, Sint::MASKED | 15).is_ok());
    assert_eq!(guest.vp.read_msr(msr::SINT0), Ok(Sint::MASKED | 15));
}

#[test]
fn pages_outside_ram_fault_and_change_nothing() {
    let guest = Guest::new();
    assert_eq!(guest.write(msr::SIMP, 0x1_0000_0000 | 1), Err(Fault));
    assert_eq!(guest.vp.read_msr(msr::SIMP), Ok(SIMP | 1));
    assert!(guest.post(1, &[1]).is_ok());
}

#[test]
fn event_flags_lie_where_the_tlfs_says() {
    let guest = Guest::new();
    assert_eq!(guest.signal(0), Ok((true, vec![VECTOR])));
    assert_eq!(
        guest.signal(0),
        Ok((false, vec![])),
        "already set: no second interrupt"
    );
    assert_eq!(guest.signal(2047), Ok((true, vec![VECTOR])));
    assert_eq!(guest.signal(2048), Err(PostError::NotEnabled));
    let mut area = [0; 256];
    guest.ram.read(SIEFP + 2 * 256, &mut area).unwrap();
    assert_eq!((area[0], area[255]), (1, 0x80));
    assert_eq!(area.iter().map(|byte| byte.count_ones()).sum::<u32>(), 2);
    assert_eq!(
        (
            guest.counters.synic_events.get(),
            guest.counters.synic_events_merged.get()
        ),
        (2, 1)
    );
}

#[test]
fn timer_messages_carry_both_times_and_do_not_pile_up() {
    let guest = Guest::new();
    let config = vmbus_proto::tlfs::synic::StimerConfig::ENABLE
        | vmbus_proto::tlfs::synic::StimerConfig::PERIODIC
        | (u64::from(SINT) << 16);
    let at = |number, value, now| {
        guest
            .vp
            .write_msr(number, value, now, &guest.ram, &guest.counters)
            .unwrap()
    };
    at(msr::STIMER0_CONFIG + 2, config, 0);
    at(msr::STIMER0_CONFIG + 3, 100, 0);
    assert_eq!(guest.vp.next_due(), 100);
    assert_eq!(
        guest.vp.expire(105, &guest.ram, &guest.counters),
        vec![VECTOR]
    );
    let mut bytes = [0; 40];
    guest.ram.read(SLOT, &mut bytes).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(
        u32::from_le_bytes(bytes[..4].try_into().unwrap()),
        MessageType::TIMER_EXPIRED.0
    );
    assert_eq!(
        (word(16), word(24), word(32)),
        (1, 100, 105),
        "timer index, due, delivered"
    );
    // The slot stays occupied while ten periods pass: one message waits, not ten.
    assert_eq!(guest.vp.expire(1105, &guest.ram, &guest.counters), NONE);
    assert_eq!(guest.consume(), [VECTOR]);
    assert_eq!(guest.consume(), NONE);
}

/// The guest frees the slot between the host's look at it and the host's setting of "pending", and
/// so writes no EOM: the host must look again, or the message stays where it is for ever.
#[test]
fn a_slot_freed_at_the_worst_moment_is_filled() {
    let guest = Arc::new(Guest::new());
    guest.post(1, &[1]).unwrap();
    let ram = guest.ram.clone();
    *guest.vp.slot_found_occupied.lock() = Some(Box::new(move || {
        let mut flags = [0];
        ram.store_u32(SLOT, 0, Ordering::SeqCst).unwrap();
        ram.read(SLOT + FLAGS_OFFSET, &mut flags).unwrap();
        assert_eq!(flags[0], 0, "the guest sees no reason for an EOM");
    }));
    assert_eq!(guest.post(1, &[2]), Ok(vec![VECTOR]));
    assert_eq!(guest.slot(), (1, 1, 0, 2));
}

/// Host and guest run against each other. The host posts two messages and then waits until the
/// guest has taken both, so that no later post can repair a lost message, interrupt or EOM: the
/// guest would wait for ever.
#[test]
fn no_message_is_lost_between_two_threads() {
    const PAIRS: u32 = 2_000;
    let guest = Guest::new();
    let (interrupts, taken) = (AtomicU64::new(0), AtomicU64::new(0));
    let give_up = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..PAIRS * 2 {
                let vectors = guest.post(1, &n.to_le_bytes()).unwrap();
                interrupts.fetch_add(vectors.len() as u64, Ordering::SeqCst);
                while n % 2 == 1 && taken.load(Ordering::SeqCst) <= n.into() {
                    assert!(Instant::now() < give_up, "message {n} is not taken");
                    std::thread::yield_now();
                }
            }
        });
        let mut handled = 0;
        let mut expected = 0;
        let mut progress = Instant::now();
        while expected < PAIRS * 2 {
            // The guest looks at the slot only when interrupted, once per interrupt.
            if interrupts.load(Ordering::SeqCst) == handled {
                if progress.elapsed() > Duration::from_secs(5) {
                    taken.store(u64::MAX, Ordering::SeqCst);
                    panic!("stuck before message {expected}");
                }
                std::thread::yield_now();
                continue;
            }
            handled += 1;
            progress = Instant::now();
            if guest.slot().0 == 0 {
                continue;
            }
            let mut bytes = [0; 4];
            guest.ram.read(SLOT + 16, &mut bytes).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), expected, "order");
            expected += 1;
            interrupts.fetch_add(guest.consume().len() as u64, Ordering::SeqCst);
            taken.store(expected.into(), Ordering::SeqCst);
        }
    });
    assert_eq!(guest.counters.synic_messages.get(), u64::from(PAIRS * 2));
}

/// A flag that is set while the guest clears others is seen, now or by another interrupt.
#[test]
fn no_event_is_lost_between_two_threads() {
    const SIGNALS: u64 = 50_000;
    let guest = Guest::new();
    let (interrupts, produced) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..SIGNALS {
                produced.fetch_add(1, Ordering::SeqCst);
                let (_, vectors) = guest.signal(5).unwrap();
                interrupts.fetch_add(vectors.len() as u64, Ordering::SeqCst);
            }
        });
        let (mut handled, mut seen) = (0, 0);
        let mut progress = Instant::now();
        while seen < SIGNALS {
            if interrupts.load(Ordering::SeqCst) == handled {
                assert!(
                    progress.elapsed() < Duration::from_secs(10),
                    "stuck at {seen}"
                );
                std::thread::yield_now();
                continue;
            }
            handled += 1;
            progress = Instant::now();
            if guest
                .ram
                .fetch_and_u32(SIEFP + 2 * 256, !(1 << 5), Ordering::SeqCst)
                .unwrap()
                & (1 << 5)
                != 0
            {
                seen = produced.load(Ordering::SeqCst);
            }
        }
    });
}
