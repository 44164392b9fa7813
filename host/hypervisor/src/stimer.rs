// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! One synthetic timer (TLFS, "Synthetic Timers"): decides when it expires, does no I/O.

use vmbus_proto::tlfs::synic::StimerConfig;

/// Bits of a configuration that exist; the others read as zero.
const VALID: u64 = 0xf | (0xff << 4) | StimerConfig::DIRECT | (0xf << 16);

/// What an expiration does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// Direct mode: raise this vector.
    Interrupt(u8),
    /// Message mode: send HvMessageTimerExpired to this SINT. `due` is the reference time at which
    /// the timer was due.
    Message { sint: u8, due: u64 },
}

/// Registers and state of one timer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timer {
    config: StimerConfig,
    count: u64,
    /// Reference time of the next expiration, while counting.
    due: Option<u64>,
}

impl Timer {
    pub(crate) fn config(&self) -> u64 {
        self.config.0
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Reference time of the next expiration, `None` when stopped.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due
    }

    /// HV_X64_MSR_STIMERx_CONFIG. A message-mode timer without a SINT (SINTx = 0) cannot be enabled.
    pub(crate) fn set_config(&mut self, value: u64, now: u64) {
        let config = StimerConfig(value & VALID);
        self.config = config.with_enabled(config.enabled() && has_target(config));
        self.start(now);
    }

    /// HV_X64_MSR_STIMERx_COUNT: absolute expiration time, or the period of a periodic timer. Zero
    /// stops.
    pub(crate) fn set_count(&mut self, value: u64, now: u64) {
        self.count = value;
        if value == 0 {
            self.config = self.config.with_enabled(false);
        } else if self.config.auto_enable() && has_target(self.config) {
            self.config = self.config.with_enabled(true);
        }
        self.start(now);
    }

    fn start(&mut self, now: u64) {
        self.due = if !self.config.enabled() || self.count == 0 {
            None
        } else if self.config.periodic() {
            Some(now.saturating_add(self.count))
        } else {
            Some(self.count)
        };
    }

    /// The expiration that is due at `now`, if any. Call again until `None`: a periodic timer that is
    /// late expires once per missed period unless it is lazy; after [`Self::CATCH_UP`] missed periods
    /// the rest are dropped.
    pub(crate) fn expire(&mut self, now: u64) -> Option<Expiry> {
        let due = self.due.filter(|due| *due <= now)?;
        if self.config.periodic() {
            let next = due.saturating_add(self.count);
            let late = self.config.lazy() || now - due > self.count.saturating_mul(Self::CATCH_UP);
            let restart = late && next <= now;
            self.due = Some(if restart {
                now.saturating_add(self.count)
            } else {
                next
            });
        } else {
            self.config = self.config.with_enabled(false);
            self.due = None;
        }
        Some(if self.config.direct() {
            Expiry::Interrupt(self.config.vector())
        } else {
            Expiry::Message {
                sint: self.config.sint(),
                due,
            }
        })
    }

    /// Missed periods that are made up for.
    const CATCH_UP: u64 = 16;
}

/// Whether an expiration would reach anything.
fn has_target(config: StimerConfig) -> bool {
    config.direct() || config.sint() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT: u64 = StimerConfig::DIRECT | (0xec << 4);

    #[test]
    fn one_shot_expires_once_at_its_count() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | StimerConfig::ENABLE, 0);
        timer.set_count(500, 100);
        assert_eq!(timer.expire(499), None);
        assert_eq!(timer.expire(500), Some(Expiry::Interrupt(0xec)));
        assert_eq!(
            timer.config() & StimerConfig::ENABLE,
            0,
            "a one-shot disables itself"
        );
        assert_eq!((timer.expire(10_000), timer.due()), (None, None));
    }

    #[test]
    fn a_count_in_the_past_expires_at_once() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | StimerConfig::AUTO_ENABLE, 0);
        timer.set_count(1, 1000);
        assert_eq!(timer.expire(1000), Some(Expiry::Interrupt(0xec)));
    }

    #[test]
    fn auto_enable_starts_on_count_and_zero_stops() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT, 0);
        timer.set_count(5, 0);
        assert_eq!(timer.due(), None, "not enabled, no auto-enable");
        timer.set_config(DIRECT | StimerConfig::AUTO_ENABLE, 0);
        timer.set_count(5, 0);
        assert_eq!(timer.due(), Some(5));
        timer.set_count(0, 0);
        assert_eq!(
            (timer.due(), timer.config() & StimerConfig::ENABLE),
            (None, 0)
        );
    }

    #[test]
    fn periodic_catches_up_unless_lazy() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | StimerConfig::PERIODIC | StimerConfig::ENABLE, 0);
        timer.set_count(100, 0);
        let late: Vec<_> = std::iter::from_fn(|| timer.expire(350)).collect();
        assert_eq!((late.len(), timer.due()), (3, Some(400)));
        let mut lazy = Timer::default();
        lazy.set_config(
            DIRECT | StimerConfig::PERIODIC | StimerConfig::LAZY | StimerConfig::ENABLE,
            0,
        );
        lazy.set_count(100, 0);
        let late: Vec<_> = std::iter::from_fn(|| lazy.expire(350)).collect();
        assert_eq!((late.len(), lazy.due()), (1, Some(450)));
    }

    #[test]
    fn a_tiny_period_does_not_expire_for_ever() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | StimerConfig::PERIODIC | StimerConfig::ENABLE, 0);
        timer.set_count(1, 0);
        assert!(std::iter::from_fn(|| timer.expire(1 << 40)).count() < 32);
    }

    #[test]
    fn message_mode_needs_a_sint() {
        let mut timer = Timer::default();
        timer.set_config(StimerConfig::ENABLE | StimerConfig::AUTO_ENABLE, 0);
        timer.set_count(10, 0);
        assert_eq!(
            (timer.due(), timer.config() & StimerConfig::ENABLE),
            (None, 0)
        );
        timer.set_config(StimerConfig::ENABLE | (3 << 16), 0);
        assert_eq!(timer.expire(10), Some(Expiry::Message { sint: 3, due: 10 }));
    }
}
