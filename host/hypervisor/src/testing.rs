// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A machine for tests: a clock that is set by hand, interrupts that are written down.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use hv_partition::{GuestRam, HypercallSink, Machine, VpIndex};
use parking_lot::{Condvar, Mutex};
use vmbus_proto::tlfs::hypercall::HvStatus;

use crate::{Config, Processors, Shared};

/// 256 TSC ticks per unit of reference time, so that the fake clock is exact.
pub(crate) const TSC_FREQUENCY: u64 = 2_560_000_000;
/// Guest RAM of the tests.
pub(crate) const RAM_SIZE: usize = 0x10_0000;

#[derive(Default)]
pub(crate) struct FakeMachine {
    tsc: AtomicU64,
    interrupts: Mutex<Vec<(u32, u8)>>,
    raised: Condvar,
    pub(crate) resets: AtomicUsize,
    pub(crate) apic: Mutex<Vec<(u16, u32)>>,
    /// Vector in service.
    pub(crate) in_service: Mutex<Option<u8>>,
}

impl FakeMachine {
    /// Sets reference time, in units of 100 ns since the machine's start.
    pub(crate) fn set_time(&self, time: u64) {
        self.tsc.store(time * 256, Ordering::SeqCst);
    }

    /// Interrupts since the last call.
    pub(crate) fn take(&self) -> Vec<(u32, u8)> {
        std::mem::take(&mut self.interrupts.lock())
    }

    /// Waits for an interrupt, for ten seconds at most.
    pub(crate) fn wait(&self) -> Option<(u32, u8)> {
        let mut interrupts = self.interrupts.lock();
        if interrupts.is_empty() {
            self.raised
                .wait_for(&mut interrupts, std::time::Duration::from_secs(10));
        }
        (!interrupts.is_empty()).then(|| interrupts.remove(0))
    }
}

impl Machine for FakeMachine {
    fn interrupt(&self, vp: VpIndex, vector: u8) {
        self.interrupts.lock().push((vp.0, vector));
        self.raised.notify_all();
    }
    fn tsc(&self) -> u64 {
        self.tsc.load(Ordering::SeqCst)
    }
    fn tsc_frequency(&self) -> u64 {
        TSC_FREQUENCY
    }
    fn pause(&self) {}
    fn resume(&self) {}
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn power_off(&self) {}
}

impl Processors for FakeMachine {
    /// APIC ids with a gap, so that they are not VP indices.
    fn apic_id(&self, vp: VpIndex) -> u32 {
        vp.0 * 2
    }
    fn runtime(&self, vp: VpIndex) -> u64 {
        1000 + u64::from(vp.0)
    }
    fn apic_read(&self, _vp: VpIndex, offset: u16) -> u32 {
        if (0x100..0x180).contains(&offset) {
            let vector = u16::from(self.in_service.lock().unwrap_or(0));
            return u32::from(vector / 32 == (offset - 0x100) / 16 && vector != 0) << (vector % 32);
        }
        u32::from(offset)
    }
    fn apic_write(&self, _vp: VpIndex, offset: u16, value: u32) {
        self.apic.lock().push((offset, value));
    }
}

/// VP, connection id, message type, payload.
type Posted = (u32, u32, u32, Vec<u8>);

/// What a guest sent to connection ids.
#[derive(Default)]
pub(crate) struct RecordingSink {
    pub(crate) messages: Mutex<Vec<Posted>>,
    pub(crate) events: Mutex<Vec<(u32, u32, u16)>>,
    pub(crate) resets: AtomicUsize,
    pub(crate) crashes: AtomicUsize,
}

/// The connection id that [`RecordingSink`] knows.
pub(crate) const CONNECTION: u32 = 4;

impl HypercallSink for RecordingSink {
    fn post_message(&self, vp: VpIndex, connection_id: u32, msg_type: u32, payload: &[u8]) -> u16 {
        self.messages
            .lock()
            .push((vp.0, connection_id, msg_type, payload.to_vec()));
        if connection_id == CONNECTION {
            HvStatus::SUCCESS.0
        } else {
            HvStatus::INVALID_CONNECTION_ID.0
        }
    }
    fn signal_event(&self, vp: VpIndex, connection_id: u32, flag: u16) -> u16 {
        self.events.lock().push((vp.0, connection_id, flag));
        if connection_id == CONNECTION {
            HvStatus::SUCCESS.0
        } else {
            HvStatus::INVALID_CONNECTION_ID.0
        }
    }
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn guest_crashed(&self) {
        self.crashes.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) fn config(machine: &Arc<FakeMachine>, vp_count: u32) -> Config {
    Config {
        machine: machine.clone(),
        processors: machine.clone(),
        vp_count,
        ram: GuestRam::for_tests(RAM_SIZE),
        profiler: None,
    }
}

/// A partition without its timer thread.
pub(crate) fn partition(vp_count: u32) -> (Shared, Arc<FakeMachine>) {
    let machine = Arc::new(FakeMachine::default());
    (Shared::new(config(&machine, vp_count)), machine)
}
