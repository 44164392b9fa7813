// SPDX-License-Identifier: GPL-2.0-only OR MIT

use std::time::Instant;

use hv_partition::{Partition, PostError};

use super::*;
use crate::msr::HYPERCALL_LOCKED;
use crate::testing::{config, partition, FakeMachine, RecordingSink};
use vmbus_proto::tlfs::msr;
use vmbus_proto::tlfs::synic::{Sint, StimerConfig};

const VP0: VpIndex = VpIndex(0);
const DIRECT: u64 = StimerConfig::DIRECT | StimerConfig::AUTO_ENABLE | (0xec << 4);

#[test]
fn the_hypercall_page_appears_and_gives_back_what_it_hid() {
    let (partition, _machine) = partition(1);
    partition.ram.write(0x4000, &[0x77; 8]).unwrap();
    partition.write_msr(VP0, msr::HYPERCALL, 0x4001).unwrap();
    assert_eq!(
        partition.read_msr(VP0, msr::HYPERCALL),
        Ok(0x4000),
        "not before the guest has identified itself"
    );
    partition.write_msr(VP0, msr::GUEST_OS_ID, 5).unwrap();
    partition.write_msr(VP0, msr::HYPERCALL, 0x4001).unwrap();
    let mut code = [0; 5];
    partition.ram.read(0x4000, &mut code).unwrap();
    assert_eq!(code, [0x0f, 0x01, 0xd9, 0xc3, 0]);
    // As before kexec: page off, identity off; the kernel's own page is whole again.
    partition.write_msr(VP0, msr::HYPERCALL, 0).unwrap();
    partition.ram.read(0x4000, &mut code).unwrap();
    assert_eq!(code, [0x77; 5]);
}

#[test]
fn clearing_the_identity_turns_the_page_off() {
    let (partition, _machine) = partition(1);
    partition.ram.write(0x4000, &[0x77; 8]).unwrap();
    partition.write_msr(VP0, msr::GUEST_OS_ID, 5).unwrap();
    partition.write_msr(VP0, msr::HYPERCALL, 0x4001).unwrap();
    partition.write_msr(VP0, msr::GUEST_OS_ID, 0).unwrap();
    assert_eq!(partition.read_msr(VP0, msr::HYPERCALL), Ok(0x4000));
    let mut byte = [0];
    partition.ram.read(0x4000, &mut byte).unwrap();
    assert_eq!(byte, [0x77]);
}

#[test]
fn a_locked_hypercall_msr_stays_until_reset() {
    let (partition, _machine) = partition(1);
    partition.write_msr(VP0, msr::GUEST_OS_ID, 5).unwrap();
    partition
        .write_msr(VP0, msr::HYPERCALL, 0x4000 | HYPERCALL_LOCKED | 1)
        .unwrap();
    assert_eq!(partition.write_msr(VP0, msr::HYPERCALL, 0), Err(Fault));
    partition.reset();
    assert_eq!(partition.read_msr(VP0, msr::HYPERCALL), Ok(0));
    assert!(partition.write_msr(VP0, msr::HYPERCALL, 0).is_ok());
}

#[test]
fn msrs_that_do_not_exist_or_are_read_only_fault() {
    let (partition, _machine) = partition(2);
    for number in [
        0x4000_0004,
        0x4000_0011,
        0x4000_0024,
        0x4000_0085,
        0x4000_00a0,
        0x4000_00b8,
        0x4000_00f0,
        0x4000_0106,
        0x4000_0118,
    ] {
        assert_eq!(
            partition.read_msr(VP0, number),
            Err(Fault),
            "rdmsr {number:#x}"
        );
        assert_eq!(
            partition.write_msr(VP0, number, 0),
            Err(Fault),
            "wrmsr {number:#x}"
        );
    }
    for number in [
        msr::VP_INDEX,
        msr::VP_RUNTIME,
        msr::TIME_REF_COUNT,
        msr::TSC_FREQUENCY,
        msr::APIC_FREQUENCY,
        msr::SVERSION,
    ] {
        assert_eq!(
            partition.write_msr(VP0, number, 1),
            Err(Fault),
            "{number:#x} is read-only"
        );
    }
    assert_eq!(
        partition.read_msr(VP0, msr::EOI),
        Err(Fault),
        "EOI is write-only"
    );
    assert_eq!(partition.counters.msr_faults.get(), 9 * 2 + 6 + 1);
    assert_eq!(partition.read_msr(VpIndex(1), msr::VP_INDEX), Ok(1));
    assert_eq!(partition.read_msr(VpIndex(1), msr::VP_RUNTIME), Ok(1001));
    assert_eq!(
        partition.read_msr(VP0, msr::APIC_FREQUENCY),
        Ok(1_000_000_000)
    );
}

#[test]
fn the_apic_msrs_reach_the_apic() {
    let (partition, machine) = partition(1);
    partition.write_msr(VP0, msr::EOI, 0).unwrap();
    partition
        .write_msr(VP0, msr::ICR, 0x0300_0000_0000_40fb)
        .unwrap();
    partition.write_msr(VP0, msr::TPR, 0x20).unwrap();
    assert_eq!(
        *machine.apic.lock(),
        [
            (0xb0, 0),
            (0x310, 0x0300_0000),
            (0x300, 0x40fb),
            (0x80, 0x20)
        ]
    );
    assert_eq!(partition.read_msr(VP0, msr::ICR), Ok((0x310 << 32) | 0x300));
}

#[test]
fn auto_eoi_is_performed_for_its_own_vector_only() {
    let (partition, machine) = partition(1);
    let taken = |vector| {
        *machine.in_service.lock() = Some(vector);
        partition.interrupt_taken(VP0);
        std::mem::take(&mut *machine.apic.lock())
    };
    assert_eq!(taken(0xf3), []);
    partition
        .write_msr(VP0, msr::SINT0 + 2, Sint::AUTO_EOI | 0xf3)
        .unwrap();
    assert_eq!(taken(0xf3), [(0xb0, 0)]);
    assert_eq!(taken(0xec), []);
    assert_eq!(taken(0xf5), []);
    partition
        .write_msr(VP0, msr::SINT0 + 2, Sint::AUTO_EOI | Sint::MASKED | 0xf3)
        .unwrap();
    assert_eq!(taken(0xf3), []);
    partition.write_msr(VP0, msr::SINT0 + 2, 0xf3).unwrap();
    assert_eq!(taken(0xf3), []);
    assert_eq!(partition.counters.auto_eoi.get(), 1);
}

#[test]
fn reference_time_counts_from_reset_and_the_page_agrees() {
    let (partition, machine) = partition(1);
    machine.set_time(5_000);
    assert_eq!(partition.read_msr(VP0, msr::TIME_REF_COUNT), Ok(5_000));
    partition.reset();
    assert_eq!(partition.read_msr(VP0, msr::TIME_REF_COUNT), Ok(0));
    machine.set_time(5_123);
    assert_eq!(partition.read_msr(VP0, msr::TIME_REF_COUNT), Ok(123));
    partition
        .write_msr(VP0, msr::REFERENCE_TSC, 0x7001)
        .unwrap();
    let mut page = [0; 24];
    partition.ram.read(0x7000, &mut page).unwrap();
    let scale = u64::from_le_bytes(page[8..16].try_into().unwrap());
    let offset = i64::from_le_bytes(page[16..24].try_into().unwrap());
    assert_ne!(page[..4], [0; 4], "sequence 0 would mean: do not use");
    let tsc = machine.tsc();
    assert_eq!(
        ((u128::from(tsc) * u128::from(scale)) >> 64) as i64 + offset,
        123
    );
}

#[test]
fn a_crash_is_told_with_its_text() {
    let (partition, _machine) = partition(2);
    let sink = Arc::new(RecordingSink::default());
    partition.sink.set(sink.clone()).ok().unwrap();
    partition
        .ram
        .write(0x8000, b"Kernel panic - not syncing: why\n\0\0")
        .unwrap();
    for (n, value) in [1, 2, 3, 0x8000, 34].into_iter().enumerate() {
        partition
            .write_msr(VpIndex(1), msr::CRASH_P0 + n as u32, value)
            .unwrap();
    }
    assert_eq!(partition.read_msr(VP0, msr::CRASH_P4), Ok(34));
    partition
        .write_msr(
            VpIndex(1),
            msr::CRASH_CTL,
            msr::CRASH_NOTIFY | msr::CRASH_NOTIFY_MSG,
        )
        .unwrap();
    assert_eq!(sink.crashes.load(Ordering::SeqCst), 1);
    partition.reset();
    let registers = partition.registers.lock();
    let crash = &registers.crashes[0];
    assert_eq!((crash.vp, crash.parameters), (1, [1, 2, 3, 0x8000, 34]));
    assert_eq!(
        crash.text.as_deref(),
        Some("Kernel panic - not syncing: why\n")
    );
}

#[test]
fn a_crash_text_outside_ram_is_left_out() {
    let (partition, _machine) = partition(1);
    partition
        .write_msr(VP0, msr::CRASH_P0 + 3, u64::MAX - 5)
        .unwrap();
    partition
        .write_msr(VP0, msr::CRASH_P0 + 4, u64::MAX)
        .unwrap();
    partition
        .write_msr(
            VP0,
            msr::CRASH_CTL,
            msr::CRASH_NOTIFY | msr::CRASH_NOTIFY_MSG,
        )
        .unwrap();
    assert_eq!(partition.registers.lock().crashes[0].text, None);
}

#[test]
fn reset_forgets_the_guest_and_tells_the_vmbus_half() {
    let (partition, machine) = partition(1);
    let sink = Arc::new(RecordingSink::default());
    partition.sink.set(sink.clone()).ok().unwrap();
    partition.write_msr(VP0, msr::GUEST_OS_ID, 5).unwrap();
    partition.write_msr(VP0, msr::SIMP, 0x2001).unwrap();
    partition.write_msr(VP0, msr::SINT0 + 2, 0xf3).unwrap();
    partition.write_msr(VP0, msr::SCONTROL, 1).unwrap();
    partition
        .write_msr(VP0, msr::STIMER0_CONFIG, DIRECT)
        .unwrap();
    partition
        .write_msr(VP0, msr::STIMER0_CONFIG + 1, 1_000)
        .unwrap();
    partition.post(VP0, 2, 1, &[1]).unwrap();
    partition.post(VP0, 2, 1, &[2]).unwrap();
    machine.take();
    partition.reset();
    assert_eq!(sink.resets.load(Ordering::SeqCst), 1);
    for number in [
        msr::GUEST_OS_ID,
        msr::SIMP,
        msr::SCONTROL,
        msr::STIMER0_CONFIG,
        msr::STIMER0_CONFIG + 1,
    ] {
        assert_eq!(partition.read_msr(VP0, number), Ok(0), "{number:#x}");
    }
    assert_eq!(partition.read_msr(VP0, msr::SINT0 + 2), Ok(Sint::MASKED));
    assert_eq!(partition.post(VP0, 2, 1, &[3]), Err(PostError::NotEnabled));
    machine.set_time(1 << 30);
    partition.expire_timers();
    assert_eq!(machine.take(), []);
    // The message that waited is gone: a new guest gets its own first.
    partition.write_msr(VP0, msr::SIMP, 0x2001).unwrap();
    partition.write_msr(VP0, msr::SINT0 + 2, 0xf3).unwrap();
    partition
        .ram
        .store_u32(0x2000 + 512, 0, Ordering::SeqCst)
        .unwrap();
    partition.write_msr(VP0, msr::SCONTROL, 1).unwrap();
    assert_eq!(machine.take(), []);
}

#[test]
fn the_reset_msr_resets_the_machine() {
    let (partition, machine) = partition(1);
    partition.write_msr(VP0, msr::RESET, 0).unwrap();
    assert_eq!(machine.resets.load(Ordering::SeqCst), 0);
    partition.write_msr(VP0, msr::RESET, 1).unwrap();
    assert_eq!(machine.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn timers_interrupt_their_own_vp() {
    let (partition, machine) = partition(2);
    partition
        .write_msr(VpIndex(1), msr::STIMER0_CONFIG, DIRECT)
        .unwrap();
    partition
        .write_msr(VpIndex(1), msr::STIMER0_CONFIG + 1, 700)
        .unwrap();
    machine.set_time(699);
    partition.expire_timers();
    assert_eq!(machine.take(), []);
    machine.set_time(700);
    partition.expire_timers();
    assert_eq!(machine.take(), [(1, 0xec)]);
    partition.expire_timers();
    assert_eq!(machine.take(), []);
    // A time in the past expires in the write itself.
    partition
        .write_msr(VpIndex(1), msr::STIMER0_CONFIG + 1, 1)
        .unwrap();
    assert_eq!(machine.take(), [(1, 0xec)]);
}

#[test]
fn the_timer_thread_sees_earlier_timers_and_stops_with_the_vm() {
    let machine = Arc::new(FakeMachine::default());
    let hypervisor = Hypervisor::new(config(&machine, 2));
    let write = |vp, number, value| hypervisor.write_msr(VpIndex(vp), number, value).unwrap();
    write(0, msr::STIMER0_CONFIG, DIRECT);
    write(1, msr::STIMER0_CONFIG, DIRECT);
    // An hour away, so that the thread sleeps; then one that is near.
    write(0, msr::STIMER0_CONFIG + 1, 36_000_000_000);
    write(1, msr::STIMER0_CONFIG + 1, 100_000);
    machine.set_time(100_000);
    let start = Instant::now();
    assert_eq!(machine.wait(), Some((1, 0xec)));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "the thread slept through"
    );
    hypervisor.set_running(false);
    write(1, msr::STIMER0_CONFIG + 1, 200_000);
    machine.set_time(200_000);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(machine.take(), [], "a stopped VM's timers do not expire");
    hypervisor.set_running(true);
    assert_eq!(machine.wait(), Some((1, 0xec)));
}

#[test]
fn counters_and_status_tell_what_happened() {
    let machine = Arc::new(FakeMachine::default());
    let hypervisor = Hypervisor::new(config(&machine, 1));
    hypervisor.cpuid(0x4000_0000);
    hypervisor.write_msr(VP0, msr::GUEST_OS_ID, 0x1234).unwrap();
    let counters = hypervisor.counters();
    let value = |name: &str| {
        counters
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| *value)
    };
    assert_eq!(
        (value("cpuid"), value("msr_writes"), value("vp0_interrupts")),
        (Some(1), Some(1), Some(0))
    );
    assert_eq!(hypervisor.status()["guest_os_id"], 0x1234);
    assert!(hypervisor.profile_mark().is_err());
    assert_eq!(
        hypervisor.post_message(VpIndex(9), 2, 1, &[]),
        Err(PostError::InvalidVp)
    );
}
