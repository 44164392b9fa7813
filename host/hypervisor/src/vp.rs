// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! One virtual processor: its synthetic interrupt controller and timers (TLFS, "Virtual Interrupt
//! Controller").
//!
//! Message slots and event flags lie in guest memory and are used by the guest while the host
//! writes, so all accesses to slot headers and flags are atomic. Interrupts are returned to the
//! caller and raised after the lock is dropped: raising one may need QEMU's lock, whose holder may
//! be waiting for ours (reset).

use std::collections::VecDeque;
use std::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering};

use hv_partition::{GuestRam, PostError, VpIndex};
use parking_lot::Mutex;
use vmbus_proto::tlfs::msr;
use vmbus_proto::tlfs::synic::{
    event_flag_position, message_slot_offset, HvMessage, MessageFlags, MessageHeader, MessageType,
    Scontrol, Simp, Sint, TimerPayload, FIRST_VALID_VECTOR, MAX_PAYLOAD_SIZE, SINT_COUNT,
    STIMER_COUNT, SYNIC_VERSION,
};
use zerocopy::IntoBytes;

use crate::counters::{Counter, Counters};
use crate::overlay::Overlay;
use crate::stimer::{Expiry, Timer};

/// Messages that may wait per SINT; more are refused.
pub(crate) const QUEUE_LIMIT: usize = 256;

/// Offset of the flags in a message slot.
const FLAGS_OFFSET: u64 = std::mem::offset_of!(MessageHeader, flags) as u64;
/// Bytes of the type, which begins a slot.
const TYPE_SIZE: u64 = 4;

/// A #GP(0) in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general protection fault")]
pub struct Fault;

/// A message that waits for its slot.
enum Queued {
    Posted {
        kind: u32,
        payload: Vec<u8>,
    },
    /// Expiration of the timer of that index, due at that time.
    Timer {
        index: u8,
        due: u64,
    },
}

struct State {
    scontrol: u64,
    simp_msr: u64,
    simp: Overlay,
    siefp_msr: u64,
    siefp: Overlay,
    assist_msr: u64,
    assist: Overlay,
    sints: [u64; SINT_COUNT],
    queues: [VecDeque<Queued>; SINT_COUNT],
    timers: [Timer; STIMER_COUNT],
}

impl Default for State {
    fn default() -> Self {
        Self {
            scontrol: 0,
            simp_msr: 0,
            simp: Overlay::default(),
            siefp_msr: 0,
            siefp: Overlay::default(),
            assist_msr: 0,
            assist: Overlay::default(),
            // TLFS: all SINTs are masked at VP creation.
            sints: [Sint::MASKED; SINT_COUNT],
            queues: Default::default(),
            timers: Default::default(),
        }
    }
}

/// Interrupt vectors to raise on the VP once no lock is held.
pub(crate) type Vectors = Vec<u8>;

/// Counts per VP.
#[derive(Default)]
pub(crate) struct VpCounters {
    pub(crate) interrupts: Counter,
    pub(crate) messages: Counter,
    pub(crate) eom: Counter,
    pub(crate) hypercalls: Counter,
}

pub(crate) struct Vp {
    pub(crate) index: VpIndex,
    state: Mutex<State>,
    /// Reference time of the earliest timer, `u64::MAX` for none. Written under `state`.
    next_due: AtomicU64,
    /// Whether some SINT has its auto-EOI bit set. Written under `state`, by this VP only.
    auto_eoi: AtomicBool,
    pub(crate) counters: VpCounters,
    /// Lets a test act as the guest in the middle of a delivery.
    #[cfg(test)]
    slot_found_occupied: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Vp {
    pub(crate) fn new(index: VpIndex) -> Self {
        Self {
            index,
            state: Mutex::default(),
            next_due: AtomicU64::new(u64::MAX),
            auto_eoi: AtomicBool::new(false),
            counters: VpCounters::default(),
            #[cfg(test)]
            slot_found_occupied: Mutex::default(),
        }
    }

    /// State as after power-on. RAM is left alone.
    pub(crate) fn reset(&self) {
        let mut state = self.state.lock();
        state.simp.forget();
        state.siefp.forget();
        state.assist.forget();
        *state = State::default();
        self.next_due.store(u64::MAX, Ordering::SeqCst);
        self.auto_eoi.store(false, Ordering::Relaxed);
    }

    /// Whether the hypervisor performs the EOI of `vector` on this VP. Called on this VP's thread
    /// for every interrupt.
    pub(crate) fn auto_eoi(&self, vector: impl FnOnce() -> Option<u8>) -> bool {
        // Relaxed: the register was written on this thread.
        if !self.auto_eoi.load(Ordering::Relaxed) {
            return false;
        }
        let Some(vector) = vector() else { return false };
        let auto = |sint: &u64| sint & (Sint::AUTO_EOI | Sint::MASKED) == Sint::AUTO_EOI;
        self.state
            .lock()
            .sints
            .iter()
            .any(|sint| auto(sint) && *sint as u8 == vector)
    }

    /// Reference time at which the earliest timer is due.
    pub(crate) fn next_due(&self) -> u64 {
        // SeqCst: one side of the Dekker pattern with the timer thread's `armed`.
        self.next_due.load(Ordering::SeqCst)
    }

    pub(crate) fn read_msr(&self, number: u32) -> Result<u64, Fault> {
        let state = self.state.lock();
        Ok(match number {
            msr::VP_ASSIST_PAGE => state.assist_msr,
            msr::SCONTROL => state.scontrol,
            msr::SVERSION => SYNIC_VERSION,
            msr::SIEFP => state.siefp_msr,
            msr::SIMP => state.simp_msr,
            msr::EOM => 0,
            msr::SINT0..=msr::SINT15 => state.sints[(number - msr::SINT0) as usize],
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => {
                let offset = number - msr::STIMER0_CONFIG;
                let timer = &state.timers[(offset / 2) as usize];
                if offset % 2 == 0 {
                    timer.config()
                } else {
                    timer.count()
                }
            }
            _ => return Err(Fault),
        })
    }

    /// Writes one of the MSRs of this VP at reference time `now`; the interrupts that follow are
    /// returned.
    pub(crate) fn write_msr(
        &self,
        number: u32,
        value: u64,
        now: u64,
        ram: &GuestRam,
        counters: &Counters,
    ) -> Result<Vectors, Fault> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut vectors = Vectors::new();
        match number {
            msr::VP_ASSIST_PAGE => {
                place(&mut state.assist, value, ram)?;
                state.assist_msr = value;
            }
            msr::SCONTROL => state.scontrol = value,
            msr::SIEFP => {
                place(&mut state.siefp, value, ram)?;
                state.siefp_msr = value;
            }
            msr::SIMP => {
                place(&mut state.simp, value, ram)?;
                state.simp_msr = value;
            }
            msr::EOM => {
                counters.eom.add();
                self.counters.eom.add();
            }
            msr::SINT0..=msr::SINT15 => {
                // TLFS: vectors 0..=15 are not valid for a SINT that may interrupt.
                if value & Sint::MASKED == 0 && (value as u8) < FIRST_VALID_VECTOR {
                    return Err(Fault);
                }
                state.sints[(number - msr::SINT0) as usize] = value;
                let any = state.sints.iter().any(|sint| sint & Sint::AUTO_EOI != 0);
                self.auto_eoi.store(any, Ordering::Relaxed);
            }
            msr::STIMER0_CONFIG..=msr::STIMER3_COUNT => {
                let offset = number - msr::STIMER0_CONFIG;
                let timer = &mut state.timers[(offset / 2) as usize];
                if offset % 2 == 0 {
                    timer.set_config(value, now);
                } else {
                    timer.set_count(value, now);
                }
                self.run_timers(state, now, ram, counters, &mut vectors);
                return Ok(vectors);
            }
            _ => return Err(Fault),
        }
        // Whatever the write was, messages that wait may have become deliverable.
        for sint in 0..SINT_COUNT {
            self.deliver(state, sint, now, ram, counters, &mut vectors);
        }
        Ok(vectors)
    }

    /// Runs the timers at reference time `now`.
    pub(crate) fn expire(&self, now: u64, ram: &GuestRam, counters: &Counters) -> Vectors {
        let mut vectors = Vectors::new();
        self.run_timers(&mut self.state.lock(), now, ram, counters, &mut vectors);
        vectors
    }

    fn run_timers(
        &self,
        state: &mut State,
        now: u64,
        ram: &GuestRam,
        counters: &Counters,
        vectors: &mut Vectors,
    ) {
        for index in 0..STIMER_COUNT {
            while let Some(expiry) = state.timers[index].expire(now) {
                counters.stimer_expirations.add();
                match expiry {
                    Expiry::Interrupt(vector) => {
                        counters.stimer_interrupts.add();
                        self.counters.interrupts.add();
                        vectors.push(vector);
                    }
                    Expiry::Message { sint, due } => {
                        let index = index as u8;
                        let queue = &mut state.queues[usize::from(sint)];
                        // A timer owns one message: an expiration while it waits is not queued
                        // again (TLFS, "Synthetic Timer Expiration Messages").
                        let waits = queue
                            .iter()
                            .any(|m| matches!(m, Queued::Timer { index: i, .. } if *i == index));
                        if !waits {
                            queue.push_back(Queued::Timer { index, due });
                            self.deliver(state, usize::from(sint), now, ram, counters, vectors);
                        }
                    }
                }
            }
        }
        let due = state
            .timers
            .iter()
            .filter_map(Timer::due)
            .min()
            .unwrap_or(u64::MAX);
        self.next_due.store(due, Ordering::SeqCst);
    }

    /// Queues a message and delivers it if its slot is free.
    pub(crate) fn post(
        &self,
        sint: u8,
        kind: u32,
        payload: &[u8],
        now: u64,
        ram: &GuestRam,
        counters: &Counters,
    ) -> Result<Vectors, PostError> {
        let mut vectors = Vectors::new();
        let result = (|| {
            if payload.len() > MAX_PAYLOAD_SIZE {
                return Err(PostError::TooLong);
            }
            let mut state = self.state.lock();
            if usize::from(sint) >= SINT_COUNT || !state.can_message(usize::from(sint)) {
                return Err(PostError::NotEnabled);
            }
            if state.queues[usize::from(sint)].len() >= QUEUE_LIMIT {
                return Err(PostError::QueueFull);
            }
            state.queues[usize::from(sint)].push_back(Queued::Posted {
                kind,
                payload: payload.to_vec(),
            });
            self.deliver(
                &mut state,
                usize::from(sint),
                now,
                ram,
                counters,
                &mut vectors,
            );
            Ok(())
        })();
        if result.is_err() {
            counters.synic_messages_refused.add();
        }
        result.map(|()| vectors)
    }

    /// Moves the oldest waiting message of `sint` into the slot if that is free; otherwise sees to
    /// it that the guest writes EOM when it frees the slot.
    fn deliver(
        &self,
        state: &mut State,
        sint: usize,
        now: u64,
        ram: &GuestRam,
        counters: &Counters,
        vectors: &mut Vectors,
    ) {
        if state.queues[sint].is_empty() || !state.can_message(sint) {
            return;
        }
        let Some(simp) = state.simp.gpa() else { return };
        let Some(slot) = message_slot_offset(sint as u8).map(|offset| simp + offset as u64) else {
            return;
        };
        let Ok(mut occupied) = ram.load_u32(slot, Ordering::SeqCst).map(|kind| kind != 0) else {
            return;
        };
        if occupied {
            counters.synic_messages_waited.add();
            #[cfg(test)]
            if let Some(guest) = &*self.slot_found_occupied.lock() {
                guest();
            }
            // Dekker: we set "pending", then look at the slot; the guest clears the slot, then
            // looks at "pending" (Linux vmbus_signal_eom). At least one of the two sees the other's
            // write.
            if ram
                .fetch_or_u8(
                    slot + FLAGS_OFFSET,
                    MessageFlags::PENDING.bits(),
                    Ordering::SeqCst,
                )
                .is_err()
            {
                return;
            }
            fence(Ordering::SeqCst);
            occupied = ram.load_u32(slot, Ordering::SeqCst) != Ok(0);
        }
        if occupied {
            return;
        }
        let Some(message) = state.queues[sint].pop_front() else {
            return;
        };
        let message = match message {
            Queued::Posted { kind, payload } => HvMessage::new(MessageType(kind), 0, &payload),
            Queued::Timer { index, due } => {
                let payload = TimerPayload {
                    timer_index: index.into(),
                    reserved: 0,
                    expiration_time: due,
                    delivery_time: now,
                };
                HvMessage::new(MessageType::TIMER_EXPIRED, 0, payload.as_bytes())
            }
        };
        let Some(mut message) = message else { return };
        if !state.queues[sint].is_empty() {
            message.header.flags = MessageFlags::PENDING;
        }
        // The type makes the message visible and comes last; Release pairs with the guest's read of
        // the type. A free slot belongs to us, so that the plain write cannot meet the guest's.
        let kind = message.header.message_type;
        if ram
            .write(slot + TYPE_SIZE, &message.as_bytes()[TYPE_SIZE as usize..])
            .is_err()
            || ram.store_u32(slot, kind.0, Ordering::Release).is_err()
        {
            return;
        }
        counters.synic_messages.add();
        self.counters.messages.add();
        self.interrupt(state.sints[sint], counters, vectors);
    }

    fn interrupt(&self, sint: u64, counters: &Counters, vectors: &mut Vectors) {
        if sint & Sint::POLLING == 0 {
            counters.synic_interrupts.add();
            self.counters.interrupts.add();
            vectors.push(sint as u8);
        }
    }

    /// Sets event flag `flag` of `sint`; returns whether it was clear, and the interrupts to raise.
    pub(crate) fn signal(
        &self,
        sint: u8,
        flag: u16,
        ram: &GuestRam,
        counters: &Counters,
    ) -> Result<(bool, Vectors), PostError> {
        let state = self.state.lock();
        let (offset, bit) = event_flag_position(sint, flag).ok_or(PostError::NotEnabled)?;
        let sint = usize::from(sint);
        if !state.is_open(sint) {
            return Err(PostError::NotEnabled);
        }
        let siefp = state.siefp.gpa().ok_or(PostError::NotEnabled)?;
        // The half of the 64-bit word that holds the flag; all sizes of atomics are coherent.
        let word = siefp + offset as u64 + u64::from(bit / 32 * 4);
        let bit = 1 << (bit % 32);
        // SeqCst: what the flag announces is written before; the guest clears the flag before it
        // looks.
        let before = ram
            .fetch_or_u32(word, bit, Ordering::SeqCst)
            .map_err(|_| PostError::NotEnabled)?;
        let mut vectors = Vectors::new();
        if before & bit != 0 {
            counters.synic_events_merged.add();
            return Ok((false, vectors));
        }
        counters.synic_events.add();
        self.interrupt(state.sints[sint], counters, &mut vectors);
        Ok((true, vectors))
    }
}

impl State {
    /// Whether the SynIC is on and the SINT takes deliveries from the hypervisor.
    fn is_open(&self, sint: usize) -> bool {
        Scontrol(self.scontrol).enabled() && self.sints[sint] & (Sint::MASKED | Sint::PROXY) == 0
    }

    fn can_message(&self, sint: usize) -> bool {
        self.is_open(sint) && self.simp.gpa().is_some()
    }
}

/// Places an overlay as its register says: SIMP, SIEFP and the VP assist page have one layout.
fn place(overlay: &mut Overlay, register: u64, ram: &GuestRam) -> Result<(), Fault> {
    let register = Simp(register);
    let gpa = register.enabled().then_some(register.gpa());
    overlay.place(ram, gpa).map_err(|_| Fault)
}

#[cfg(test)]
#[path = "vp_tests.rs"]
mod tests;
