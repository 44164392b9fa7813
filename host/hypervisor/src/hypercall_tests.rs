// SPDX-License-Identifier: GPL-2.0-only OR MIT

use std::sync::Arc;

use super::*;
use crate::testing::{partition, FakeMachine, RecordingSink, CONNECTION};
use vmbus_proto::tlfs::msr;

const INPUT: u64 = 0x5000;
const OUTPUT: u64 = 0x6000;

struct Caller {
    partition: Shared,
    _machine: Arc<FakeMachine>,
    sink: Arc<RecordingSink>,
}

impl Caller {
    fn new() -> Self {
        let (partition, machine) = partition(4);
        let sink = Arc::new(RecordingSink::default());
        partition.sink.set(sink.clone()).ok().unwrap();
        partition
            .write_msr(VpIndex(0), msr::GUEST_OS_ID, 0x8100 << 48)
            .unwrap();
        partition
            .write_msr(VpIndex(0), msr::HYPERCALL, 0x4000 | 1)
            .unwrap();
        Self {
            partition,
            _machine: machine,
            sink,
        }
    }

    /// Result of a call by VP 1.
    fn call(&self, control: u64, input: u64, output: u64) -> u64 {
        self.partition
            .hypercall(
                VpIndex(1),
                Hypercall {
                    control,
                    input,
                    output,
                },
            )
            .unwrap()
    }

    /// A message input block at `gpa`.
    fn message(&self, gpa: u64, connection: u32, kind: u32, size: u32, first: u8) {
        let mut block = [0; 256];
        block[..4].copy_from_slice(&connection.to_le_bytes());
        block[8..12].copy_from_slice(&kind.to_le_bytes());
        block[12..16].copy_from_slice(&size.to_le_bytes());
        block[16] = first;
        self.partition.ram.write(gpa, &block).unwrap();
    }
}

const FAST: u64 = 1 << 16;
const POST: u64 = HypercallCode::POST_MESSAGE.0 as u64;
const SIGNAL: u64 = HypercallCode::SIGNAL_EVENT.0 as u64;
const APIC: u64 = HypercallCode::GET_VP_INDEX_FROM_APIC_ID.0 as u64;

#[test]
fn status_codes_are_those_of_the_tlfs() {
    let caller = Caller::new();
    caller.message(INPUT, CONNECTION, 1, 8, 0);
    caller.message(INPUT + 0x800, CONNECTION, 1, 241, 0);
    caller.message(INPUT + 0xa00, CONNECTION, 0, 8, 0);
    caller.message(INPUT + 0xc00, CONNECTION, 0x8000_0001, 8, 0);
    caller.message(INPUT + 0xe00, 77, 1, 8, 0);
    let fast_signal = |connection: u64| connection;
    for (name, control, input, output, status) in [
        ("post", POST, INPUT, 0, 0x0000),
        ("payload of 241 bytes", POST, INPUT + 0x800, 0, 0x0005),
        ("message type 0", POST, INPUT + 0xa00, 0, 0x0005),
        (
            "message type of the hypervisor",
            POST,
            INPUT + 0xc00,
            0,
            0x0005,
        ),
        ("unknown connection", POST, INPUT + 0xe00, 0, 0x0012),
        ("input not aligned to 8", POST, INPUT + 4, 0, 0x0004),
        ("input across a page", POST, INPUT + 0xf08, 0, 0x0004),
        ("input not RAM", POST, 0xffff_f000, 0, 0x0004),
        ("input at the end of addresses", POST, !7, 0, 0x0004),
        (
            "fast call whose input does not fit",
            POST | FAST,
            0,
            0,
            0x0003,
        ),
        (
            "rep count on a simple call",
            POST | (1 << 32),
            INPUT,
            0,
            0x0003,
        ),
        (
            "rep start on a simple call",
            POST | (1 << 48),
            INPUT,
            0,
            0x0003,
        ),
        ("variable header", POST | (1 << 17), INPUT, 0, 0x0003),
        ("reserved bit 27", POST | (1 << 27), INPUT, 0, 0x0003),
        ("nested", POST | (1 << 31), INPUT, 0, 0x0003),
        ("reserved bit 44", POST | (1 << 44), INPUT, 0, 0x0003),
        ("reserved bit 63", POST | (1 << 63), INPUT, 0, 0x0003),
        (
            "fast signal",
            SIGNAL | FAST,
            fast_signal(CONNECTION.into()),
            0,
            0x0000,
        ),
        (
            "fast signal, unknown connection",
            SIGNAL | FAST,
            fast_signal(99),
            0,
            0x0012,
        ),
        ("slow signal", SIGNAL, INPUT, 0, 0x0000),
        (
            "long spin wait",
            u64::from(HypercallCode::NOTIFY_LONG_SPIN_WAIT.0) | FAST,
            4096,
            0,
            0x0000,
        ),
        (
            "extended capabilities",
            u64::from(HypercallCode::EXT_QUERY_CAPABILITIES.0),
            0,
            OUTPUT,
            0x0000,
        ),
        (
            "output not aligned",
            u64::from(HypercallCode::EXT_QUERY_CAPABILITIES.0),
            0,
            OUTPUT + 4,
            0x0004,
        ),
        (
            "output of a fast call",
            u64::from(HypercallCode::EXT_QUERY_CAPABILITIES.0) | FAST,
            0,
            OUTPUT,
            0x0003,
        ),
        ("unknown code", 0x0fff, INPUT, 0, 0x0002),
        ("code 0", 0, INPUT, 0, 0x0002),
        ("flush, which is not recommended", 0x0002, INPUT, 0, 0x0002),
        ("create partition", 0x0040, INPUT, 0, 0x0006),
        ("get VP registers", 0x0050, INPUT, OUTPUT, 0x0006),
        ("rep call without reps", APIC, INPUT, OUTPUT, 0x0003),
        (
            "rep start behind count",
            APIC | (1 << 32) | (1 << 48),
            INPUT,
            OUTPUT,
            0x0003,
        ),
    ] {
        assert_eq!(caller.call(control, input, output), status, "{name}");
    }
}

#[test]
fn what_the_guest_sends_arrives() {
    let caller = Caller::new();
    caller.message(INPUT, CONNECTION, 1, 3, 0xab);
    caller.call(POST, INPUT, 0);
    assert_eq!(
        *caller.sink.messages.lock(),
        [(1, CONNECTION, 1, vec![0xab, 0, 0])]
    );
    caller.call(SIGNAL | FAST, u64::from(CONNECTION) | (0x1234 << 32), 0);
    assert_eq!(*caller.sink.events.lock(), [(1, CONNECTION, 0x1234)]);
    let counters = &caller.partition.counters;
    assert_eq!(
        (
            counters.hypercall_post_message.get(),
            counters.hypercall_signal_event.get()
        ),
        (1, 1)
    );
    assert_eq!(
        (
            counters.hypercall_fast.get(),
            counters.hypercall_failed.get()
        ),
        (1, 0)
    );
}

#[test]
fn a_message_may_end_with_its_page() {
    let caller = Caller::new();
    caller.message(INPUT + 0xf00, CONNECTION, 1, 240, 1);
    assert_eq!(caller.call(POST, INPUT + 0xf00, 0), 0);
    assert_eq!(caller.sink.messages.lock()[0].3.len(), 240);
}

#[test]
fn repetitions_that_were_done_are_counted() {
    let caller = Caller::new();
    let mut input = [0; 32];
    input[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for (rep, apic_id) in [6u32, 2, 7, 0].into_iter().enumerate() {
        input[16 + 4 * rep..20 + 4 * rep].copy_from_slice(&apic_id.to_le_bytes());
    }
    caller.partition.ram.write(INPUT, &input).unwrap();
    // Element 2 names no VP: two are done.
    assert_eq!(
        caller.call(APIC | (4 << 32), INPUT, OUTPUT),
        0x0005 | (2 << 32)
    );
    // Started at element 3: all four are done at the end.
    assert_eq!(
        caller.call(APIC | (4 << 32) | (3 << 48), INPUT, OUTPUT),
        4 << 32
    );
    let mut output = [0xff; 16];
    caller.partition.ram.read(OUTPUT, &mut output).unwrap();
    assert_eq!(output, [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    caller.partition.ram.write(INPUT, &[1]).unwrap();
    assert_eq!(
        caller.call(APIC | (1 << 32), INPUT, OUTPUT),
        0x0006,
        "another partition"
    );
}

#[test]
fn without_the_interface_there_is_no_hypercall() {
    let caller = Caller::new();
    let fast = Hypercall {
        control: SIGNAL | FAST,
        input: CONNECTION.into(),
        output: 0,
    };
    assert!(caller.partition.hypercall(VpIndex(0), fast).is_some());
    caller
        .partition
        .write_msr(VpIndex(0), msr::HYPERCALL, 0x4000)
        .unwrap();
    assert_eq!(caller.partition.hypercall(VpIndex(0), fast), None);
    caller
        .partition
        .write_msr(VpIndex(0), msr::HYPERCALL, 0x4001)
        .unwrap();
    assert!(caller.partition.hypercall(VpIndex(0), fast).is_some());
    caller
        .partition
        .write_msr(VpIndex(0), msr::GUEST_OS_ID, 0)
        .unwrap();
    assert_eq!(caller.partition.hypercall(VpIndex(0), fast), None);
}

#[test]
fn without_a_vmbus_half_no_connection_exists() {
    let (partition, _machine) = partition(1);
    partition
        .write_msr(VpIndex(0), msr::GUEST_OS_ID, 1)
        .unwrap();
    partition
        .write_msr(VpIndex(0), msr::HYPERCALL, 0x4000 | 1)
        .unwrap();
    let call = Hypercall {
        control: SIGNAL | FAST,
        input: CONNECTION.into(),
        output: 0,
    };
    assert_eq!(partition.hypercall(VpIndex(0), call), Some(0x0012));
}
