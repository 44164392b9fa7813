// SPDX-License-Identifier: GPL-2.0

//! Time synchronisation: sets the clock when the host orders it, and offers the host's clock as a PTP clock otherwise.

use crate::{ic::Service, timesync_implicit};
use hv_vmbus::{
    new_deferred, ratelimited,
    services::{
        clock::{self, SampleCell},
        deferred::{Deferred, Run},
        ptp::{PtpClock, ReadClock},
    },
};
use kernel::{prelude::*, sync::Arc};
use vmbus_proto::ic::{
    timesync::{Action, Event, Guest, IgnoreReason, Now, UnixNanos},
    Negotiated, Outcome,
};

/// The host's clock, as far as its samples tell.
pub(crate) struct HostClock {
    sample: SampleCell,
}

impl HostClock {
    /// A clock without a sample.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let sample = SampleCell::new()?;
        Ok(Arc::new(Self { sample }, GFP_KERNEL)?)
    }

    /// Makes the clock readable in user space, as `/dev/ptpN` named "hyperv" (chrony looks for that name).
    ///
    /// The rest works without: a failure is logged and that is all.
    pub(crate) fn register_ptp(self: &Arc<Self>) -> Option<PtpClock<Self>> {
        match PtpClock::register(c"hyperv", self.clone()) {
            Ok(ptp) => Some(ptp),
            Err(e) => {
                pr_err!("cannot register PTP clock: {}\n", e.to_errno());
                None
            }
        }
    }
}

impl HostClock {
    /// Forgets the sample: after hibernation reference time begins anew, and an old sample would look
    /// as if it had just been taken.
    pub(crate) fn forget(&self) {
        self.sample.set(None);
    }
}

impl ReadClock for HostClock {
    fn read(&self) -> Option<UnixNanos> {
        let sample = self.sample.get()?;
        // Read after the sample was: it cannot be from the future then.
        let now = clock::reference_time();
        sample.is_fresh(now).then(|| sample.at(now)).flatten()
    }
}

/// Follows the host's time samples.
pub(crate) struct Timesync {
    clock: Arc<HostClock>,
    step: Deferred<Step>,
}

impl Timesync {
    /// Keeps the samples in `clock`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(clock: Arc<HostClock>) -> Result<Self> {
        Ok(Self {
            step: new_deferred!(Step(clock.clone()), c"hv_utils_rs::step")?,
            clock,
        })
    }
}

impl Service for Timesync {
    const NAME: &'static str = "TimeSync";
    type Session = Guest;
    type Event = Event;

    fn session(&self) -> Guest {
        Guest::new()
    }

    fn on_packet(&self, session: &mut Guest, packet: &mut [u8]) -> Outcome<Event> {
        let now = Now {
            reference: clock::reference_time(),
            wall: clock::real_time(),
        };
        session.on_packet(packet, now, timesync_implicit.get())
    }

    fn on_event(&self, event: Event) -> Option<Negotiated> {
        let action = match event {
            Event::Negotiated(versions) => return Some(versions),
            Event::Sample(action) => action,
        };
        match action {
            Action::Step(sample) => {
                self.clock.sample.set(Some(sample));
                self.step.schedule();
            }
            Action::Note(sample) => self.clock.sample.set(Some(sample)),
            Action::Ignore(IgnoreReason::OutOfRange) => {
                ratelimited!(
                    pr_err,
                    "TimeSync IC: sample ignored, its time cannot be a clock's\n"
                );
            }
        }
        None
    }
}

/// Sets the real-time clock to the host's. Other CPUs are told, which only process context may do; the latest sample counts.
struct Step(Arc<HostClock>);

impl Run for Step {
    fn run(&self) -> Option<u32> {
        let sample = self.0.sample.get()?;
        let before = clock::real_time();
        let time = sample.at(clock::reference_time())?;
        match clock::set_real_time(time) {
            Ok(()) => {
                // CAST: Both are less than 2^63.
                let ms = (time.get() as i64 - before as i64) / 1_000_000;
                ratelimited!(
                    pr_info,
                    "TimeSync IC: clock set to the host's, {} ms away\n",
                    ms
                );
            }
            Err(e) => ratelimited!(
                pr_err,
                "TimeSync IC: clock cannot be set to {} ns: {}\n",
                time.get(),
                e.to_errno()
            ),
        }
        None
    }
}
