// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Heartbeat: asks the guest every two seconds whether it is alive.

use hvctl::{Burst, Command, HeartbeatStatus};
use vmbus_proto::ic::heartbeat::{check_answer, HeartbeatMessage, VERSIONS};
use vmbus_proto::ic::MessageType;
use vmbus_proto::packet::Packet;
use zerocopy::IntoBytes;

use super::ic::{self, Ic, Incoming};
use crate::channel::SendError;
use crate::device::{Control, Device, DeviceInfo, DeviceIo, RefTime, TICKS_PER_MS};

/// Hyper-V's interval (`hv_util.c`, above `heartbeat_onchannelcallback`).
const INTERVAL_MS: u64 = 2000;
/// How long an answer may take before its beat counts as missed (a guest whose processors share a busy machine may not
/// run for seconds), and before the next beat of a burst is sent although there is no answer or no room.
const PATIENCE_MS: u64 = 10_000;

/// Beats whose answers are recognised. Rings of 12 KiB, as Linux has, hold 128 of them.
const MAX_OUTSTANDING: usize = 4096;

struct Outstanding {
    id: u64,
    sequence: u64,
    sent: RefTime,
    /// Counted as missed already.
    missed: bool,
}

/// When the beat of `burst` after one at `now` is sent at the latest: without an interval, an answer brings it earlier.
fn next_of_burst(burst: &Burst, now: RefTime) -> RefTime {
    let wait = if burst.every_ms == 0 {
        PATIENCE_MS
    } else {
        burst.every_ms
    };
    now + wait.saturating_mul(TICKS_PER_MS)
}

/// The device model.
pub(super) struct Heartbeat {
    ic: Ic,
    interval_ms: u64,
    burst: Option<Burst>,
    next_beat: Option<RefTime>,
    next_burst: Option<RefTime>,
    /// When a beat of the burst first found no room, while it waits for some.
    full_since: Option<RefTime>,
    sequence: u64,
    outstanding: Vec<Outstanding>,
    counts: HeartbeatStatus,
}

impl Heartbeat {
    pub(super) fn new(args: &[(String, String)]) -> Result<Self, String> {
        Ok(Self {
            ic: Ic::new(
                "heartbeat",
                ic::CLASS_HEARTBEAT,
                ic::instance::HEARTBEAT,
                MessageType::HEARTBEAT,
                VERSIONS,
                args,
            )?,
            interval_ms: INTERVAL_MS,
            burst: None,
            next_beat: None,
            next_burst: None,
            full_since: None,
            sequence: 0,
            outstanding: Vec::new(),
            counts: HeartbeatStatus::default(),
        })
    }

    /// Counts what was not answered in time.
    fn note_missed(&mut self, now: RefTime) {
        // A beat whose answer is not here when the next is sent was missed, unless the next comes soon: on a
        // busy machine a guest may not run for some hundred milliseconds.
        let late = |o: &&mut Outstanding| now.saturating_sub(o.sent) >= PATIENCE_MS * TICKS_PER_MS;
        for old in self
            .outstanding
            .iter_mut()
            .filter(|o| !o.missed)
            .filter(late)
        {
            old.missed = true;
            self.counts.missed += 1;
        }
    }

    fn beat(&mut self, io: &mut DeviceIo<'_>) -> Result<(), SendError> {
        let now = io.now();
        self.note_missed(now);
        let id = self
            .ic
            .request(io, HeartbeatMessage::request(self.sequence).as_bytes())?;
        // Answers that come late are still recognised. More than fit in rings of the usual size are not kept.
        if self.outstanding.len() >= MAX_OUTSTANDING {
            let oldest = self.outstanding.remove(0);
            self.counts.missed += u64::from(!oldest.missed);
        }
        self.outstanding.push(Outstanding {
            id,
            sequence: self.sequence,
            sent: now,
            missed: false,
        });
        self.sequence = self.sequence.wrapping_add(1);
        self.counts.sent += 1;
        Ok(())
    }

    /// A beat of the usual pace: a guest that leaves no room in its ring misses it.
    fn regular_beat(&mut self, io: &mut DeviceIo<'_>) {
        if self.beat(io) == Err(SendError::Full) {
            self.counts.sent += 1;
            self.counts.missed += 1;
        }
    }

    fn schedule_next(&mut self, now: RefTime) {
        self.next_beat =
            (self.interval_ms > 0).then(|| now + self.interval_ms.saturating_mul(TICKS_PER_MS));
    }

    fn burst_beat(&mut self, io: &mut DeviceIo<'_>) {
        let Some(mut burst) = self.burst else { return };
        let now = io.now();
        match self.beat(io) {
            Ok(()) => {}
            // The guest reads as fast as we write and has not given room back yet: `poll` is called when it does.
            Err(SendError::Full) if self.full_since.is_none() => {
                self.full_since = Some(now);
                self.next_burst = Some(now + PATIENCE_MS * TICKS_PER_MS);
                return;
            }
            Err(SendError::Full) => {
                let since = self.full_since.unwrap_or(now);
                if now.saturating_sub(since) < PATIENCE_MS * TICKS_PER_MS {
                    return;
                }
                // It does not read its ring.
                self.counts.sent += 1;
                self.counts.missed += 1;
            }
            Err(_) => burst.count = 0,
        }
        self.full_since = None;
        burst.count = burst.count.saturating_sub(1);
        self.burst = Some(burst);
        if burst.count == 0 {
            self.burst = None;
            self.next_burst = None;
            // The interval starts anew, so that a beat of the burst has its time to be answered.
            self.schedule_next(now);
        } else {
            self.next_burst = Some(next_of_burst(&burst, now));
        }
    }

    fn status(&self) -> HeartbeatStatus {
        HeartbeatStatus {
            interval_ms: self.interval_ms,
            burst_left: self.burst.map_or(0, |b| b.count),
            agreed: self.ic.agreed(),
            ..self.counts.clone()
        }
    }
}

impl Device for Heartbeat {
    fn info(&self) -> DeviceInfo {
        self.ic.info()
    }

    fn opened(&mut self, io: &mut DeviceIo<'_>, _index: u16) -> Result<(), String> {
        self.ic.opened(io);
        Ok(())
    }

    fn closed(&mut self, _io: &mut DeviceIo<'_>, _index: u16) {
        self.ic.closed();
        self.outstanding.clear();
        self.next_beat = None;
        self.next_burst = None;
        self.full_since = None;
        self.burst = None;
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, _index: u16, packet: &Packet<'_>) {
        let answer = match self.ic.packet(io, packet) {
            Incoming::Negotiated => {
                if self.interval_ms > 0 {
                    self.regular_beat(io);
                }
                self.schedule_next(io.now());
                return;
            }
            Incoming::Answer(answer) => answer,
            Incoming::Nothing => return,
        };
        let Some(at) = self.outstanding.iter().position(|o| o.id == answer.id) else {
            io.violation(format!(
                "beat {} was answered twice or far too late",
                answer.id
            ));
            return;
        };
        let beat = self.outstanding.remove(at);
        match check_answer(answer.body, beat.sequence) {
            Ok(Some(_state)) if answer.status.is_ok() => {
                if !beat.missed {
                    self.counts.answered += 1;
                }
                let rtt = io.now().saturating_sub(beat.sent) / 10;
                self.counts.last_rtt_us = Some(rtt);
                self.counts.max_rtt_us = self.counts.max_rtt_us.max(Some(rtt));
            }
            Ok(Some(_)) => {
                self.counts.missed += u64::from(!beat.missed);
                io.violation(format!("beat refused with status {:?}", answer.status));
            }
            Ok(None) => {
                self.counts.missed += u64::from(!beat.missed);
                io.violation(format!(
                    "answer to beat {} has a wrong sequence number",
                    beat.sequence
                ));
            }
            Err(e) => {
                self.counts.missed += u64::from(!beat.missed);
                io.violation(format!("answer to beat {}: {e:?}", beat.sequence));
            }
        }
        if self.burst.is_some_and(|b| b.every_ms == 0) && self.outstanding.is_empty() {
            self.burst_beat(io);
        }
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        self.ic.poll(io);
        let now = io.now();
        if self.full_since.is_some() || self.next_burst.is_some_and(|due| due <= now) {
            self.burst_beat(io);
        }
        if self.next_beat.is_some_and(|due| due <= now) {
            if self.burst.is_none() {
                self.regular_beat(io);
            }
            self.schedule_next(now);
        }
    }

    fn deadline(&self) -> Option<RefTime> {
        [self.next_beat, self.next_burst]
            .into_iter()
            .flatten()
            .min()
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        let Command::Heartbeat { interval_ms, burst } = cmd else {
            return Control::NotMine;
        };
        if (interval_ms.is_some() || burst.is_some()) && self.ic.negotiated().is_none() {
            if let Some(ms) = interval_ms {
                self.interval_ms = *ms;
            }
            if burst.is_some() {
                return Control::Failed("heartbeat: the guest's service is not negotiated".into());
            }
        } else {
            if let Some(ms) = interval_ms {
                self.interval_ms = *ms;
                self.schedule_next(io.now());
            }
            if let Some(burst) = burst.filter(|b| b.count > 0) {
                self.burst = Some(burst);
                self.full_since = None;
                // A beat under way is waited for: its answer or its patience starts the burst.
                if self.outstanding.iter().all(|o| o.missed) {
                    self.outstanding.clear();
                    self.burst_beat(io);
                } else {
                    self.next_burst = Some(next_of_burst(&burst, io.now()));
                }
            }
        }
        match serde_json::to_value(self.status()) {
            Ok(value) => Control::Done(value),
            Err(e) => Control::Failed(e.to_string()),
        }
    }

    fn agreed(&self) -> Option<String> {
        self.ic.agreed()
    }

    fn beats(&self) -> Option<u64> {
        Some(self.counts.answered)
    }

    fn reset_counters(&mut self) {
        self.counts = HeartbeatStatus::default();
        // What is under way belongs to the old counts.
        self.outstanding.iter_mut().for_each(|o| o.missed = true);
    }
}
