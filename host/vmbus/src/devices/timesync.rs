// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Time synchronisation: tells the guest the host's time, and when its clock must be set at once.

use hvctl::{Command, SampleKind, TimesyncStatus};
use vmbus_proto::ic::timesync::{HostTime, SampleFlags, SampleV1, SampleV4, VERSIONS, VERSION_4_0};
use vmbus_proto::ic::MessageType;
use vmbus_proto::packet::Packet;
use zerocopy::IntoBytes;

use super::ic::{self, Ic, Incoming};
use crate::channel::SendError;
use crate::device::{Control, Device, DeviceInfo, DeviceIo, RefTime, TICKS_PER_MS};

/// Hyper-V's interval (OpenVMM `timesync.rs`).
const INTERVAL_MS: u64 = 5000;

/// Samples whose answers are recognised. Rings of 12 KiB, as Linux has, hold some 150 of them.
const MAX_OUTSTANDING: usize = 4096;

/// The device model.
pub(super) struct Timesync {
    ic: Ic,
    interval_ms: u64,
    next_sample: Option<RefTime>,
    sync_after_stop: bool,
    offset_ms: i64,
    /// Requests without an answer.
    outstanding: Vec<u64>,
    /// A forced sample that found the ring full.
    sync_later: bool,
    counts: TimesyncStatus,
}

impl Timesync {
    pub(super) fn new(args: &[(String, String)]) -> Result<Self, String> {
        Ok(Self {
            ic: Ic::new(
                "timesync",
                ic::CLASS_TIMESYNC,
                ic::instance::TIMESYNC,
                MessageType::TIMESYNC,
                VERSIONS,
                args,
            )?,
            interval_ms: INTERVAL_MS,
            next_sample: None,
            sync_after_stop: true,
            offset_ms: 0,
            outstanding: Vec::new(),
            sync_later: false,
            counts: TimesyncStatus::default(),
        })
    }

    fn schedule_next(&mut self, now: RefTime) {
        self.next_sample =
            (self.interval_ms > 0).then(|| now + self.interval_ms.saturating_mul(TICKS_PER_MS));
    }

    fn send(
        &mut self,
        io: &mut DeviceIo<'_>,
        kind: SampleKind,
        offset_ms: i64,
        unix_ms: Option<i64>,
    ) -> Result<(), SendError> {
        let agreed = self.ic.negotiated().ok_or(SendError::Closed)?;
        let (reference, unix_ns) = io.clocks();
        let base = unix_ms.map_or(i128::from(unix_ns), |ms| i128::from(ms) * 1_000_000);
        let unix =
            u64::try_from((base + i128::from(offset_ms) * 1_000_000).max(0)).unwrap_or(u64::MAX);
        let time = HostTime::from_unix(unix);
        let flags = match kind {
            SampleKind::Probe => SampleFlags::PROBE,
            SampleKind::Sync => SampleFlags::SYNC,
            SampleKind::Sample => SampleFlags::SAMPLE,
        };
        let id = if agreed.message >= VERSION_4_0 {
            let sample = SampleV4 {
                parent_time: time.0.into(),
                vm_reference_time: reference.into(),
                flags,
                leap_indicator: 0,
                stratum: 0,
                reserved: [0; 3],
            };
            self.ic.request(io, sample.as_bytes())?
        } else {
            let sample = SampleV1 {
                parent_time: time.0.into(),
                child_time: 0.into(),
                round_trip_time: 0.into(),
                flags,
            };
            self.ic.request(io, sample.as_bytes())?
        };
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push(id);
        self.counts.sent += 1;
        self.counts.syncs += u64::from(kind == SampleKind::Sync);
        Ok(())
    }

    /// A sample on the device's own account.
    fn send_own(&mut self, io: &mut DeviceIo<'_>, kind: SampleKind) {
        match self.send(io, kind, self.offset_ms, None) {
            Ok(()) | Err(SendError::Closed) => {}
            Err(SendError::Full) => self.sync_later |= kind == SampleKind::Sync,
            Err(e) => tracing::warn!("timesync: {e}"),
        }
    }

    fn status(&self) -> TimesyncStatus {
        TimesyncStatus {
            interval_ms: self.interval_ms,
            offset_ms: self.offset_ms,
            agreed: self.ic.agreed(),
            ..self.counts.clone()
        }
    }
}

impl Device for Timesync {
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
        self.next_sample = None;
        self.sync_later = false;
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, _index: u16, packet: &Packet<'_>) {
        match self.ic.packet(io, packet) {
            Incoming::Negotiated => {
                // The first sample sets the clock (OpenVMM; `hv_util.c`, above `adj_guesttime`).
                self.send_own(io, SampleKind::Sync);
                self.schedule_next(io.now());
            }
            Incoming::Answer(answer) => {
                match self.outstanding.iter().position(|id| *id == answer.id) {
                    Some(at) => {
                        self.outstanding.remove(at);
                        self.counts.answered += 1;
                    }
                    None => io.violation(format!(
                        "sample {} was answered twice or far too late",
                        answer.id
                    )),
                }
            }
            Incoming::Nothing => {}
        }
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        self.ic.poll(io);
        let now = io.now();
        if std::mem::take(&mut self.sync_later) {
            self.send_own(io, SampleKind::Sync);
        }
        if self.next_sample.is_some_and(|due| due <= now) {
            // A guest that does not answer gets no more of what it does not read.
            if self.outstanding.is_empty() {
                self.send_own(io, SampleKind::Sample);
            }
            self.schedule_next(now);
        }
    }

    fn deadline(&self) -> Option<RefTime> {
        self.next_sample
    }

    fn resumed(&mut self, io: &mut DeviceIo<'_>, _stopped_ms: u64) {
        self.counts.stops_seen += 1;
        if self.sync_after_stop {
            self.send_own(io, SampleKind::Sync);
        }
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        let Command::Timesync {
            send,
            offset_ms,
            unix_ms,
            keep,
            interval_ms,
            sync_after_stop,
        } = cmd
        else {
            return Control::NotMine;
        };
        if *keep {
            self.offset_ms = *offset_ms;
        }
        if let Some(ms) = interval_ms {
            self.interval_ms = *ms;
            if self.ic.negotiated().is_some() {
                self.schedule_next(io.now());
            }
        }
        if let Some(on) = sync_after_stop {
            self.sync_after_stop = *on;
        }
        if let Some(kind) = send {
            if self.ic.negotiated().is_none() {
                return Control::Failed("timesync: the guest's service is not negotiated".into());
            }
            if let Err(e) = self.send(io, *kind, *offset_ms, *unix_ms) {
                return Control::Failed(format!("timesync: {e}"));
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

    fn reset_counters(&mut self) {
        self.counts = TimesyncStatus::default();
    }
}
