// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! One synthetic timer (TLFS, "Synthetic Timers"): decides when it expires, does no I/O.

use crate::tlfs::bits;

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
    config: u64,
    count: u64,
    /// Reference time of the next expiration, while counting.
    due: Option<u64>,
}

impl Timer {
    pub(crate) fn config(&self) -> u64 {
        self.config
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Reference time of the next expiration, `None` when stopped.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due
    }

    fn sint(&self) -> u8 {
        (self.config >> 16 & 0xf) as u8
    }

    fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    /// HV_X64_MSR_STIMERx_CONFIG. A message-mode timer without a SINT (SINTx = 0) cannot be
    /// enabled.
    pub(crate) fn set_config(&mut self, value: u64, now: u64) {
        self.config = value & bits::STIMER_VALID;
        if !self.has(bits::STIMER_DIRECT) && self.sint() == 0 {
            self.config &= !bits::STIMER_ENABLED;
        }
        self.start(now);
    }

    /// HV_X64_MSR_STIMERx_COUNT: absolute expiration time, or the period of a periodic timer. Zero
    /// stops.
    pub(crate) fn set_count(&mut self, value: u64, now: u64) {
        self.count = value;
        if value == 0 {
            self.config &= !bits::STIMER_ENABLED;
        } else if self.has(bits::STIMER_AUTO_ENABLE)
            && (self.has(bits::STIMER_DIRECT) || self.sint() != 0)
        {
            self.config |= bits::STIMER_ENABLED;
        }
        self.start(now);
    }

    fn start(&mut self, now: u64) {
        self.due = if !self.has(bits::STIMER_ENABLED) || self.count == 0 {
            None
        } else if self.has(bits::STIMER_PERIODIC) {
            Some(now.saturating_add(self.count))
        } else {
            Some(self.count)
        };
    }

    /// The expiration that is due at `now`, if any. Call again until `None`: a periodic timer that
    /// is late expires once per missed period unless it is lazy; after [`Self::CATCH_UP`] missed
    /// periods the rest are dropped.
    pub(crate) fn expire(&mut self, now: u64) -> Option<Expiry> {
        let due = self.due.filter(|due| *due <= now)?;
        if self.has(bits::STIMER_PERIODIC) {
            let next = due.saturating_add(self.count);
            let late = self.has(bits::STIMER_LAZY)
                || now - due > self.count.saturating_mul(Self::CATCH_UP);
            self.due = Some(if late && next <= now {
                now.saturating_add(self.count)
            } else {
                next
            });
        } else {
            self.config &= !bits::STIMER_ENABLED;
            self.due = None;
        }
        Some(if self.has(bits::STIMER_DIRECT) {
            Expiry::Interrupt((self.config >> 4) as u8)
        } else {
            Expiry::Message {
                sint: self.sint(),
                due,
            }
        })
    }

    /// Missed periods that are made up for.
    const CATCH_UP: u64 = 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECT: u64 = bits::STIMER_DIRECT | 0xec << 4;

    #[test]
    fn one_shot_expires_once_at_its_count() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | bits::STIMER_ENABLED, 0);
        timer.set_count(500, 100);
        assert_eq!(timer.expire(499), None);
        assert_eq!(timer.expire(500), Some(Expiry::Interrupt(0xec)));
        assert_eq!(
            timer.config() & bits::STIMER_ENABLED,
            0,
            "a one-shot disables itself"
        );
        assert_eq!((timer.expire(10_000), timer.due()), (None, None));
    }

    #[test]
    fn a_count_in_the_past_expires_at_once() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | bits::STIMER_AUTO_ENABLE, 0);
        timer.set_count(1, 1000);
        assert_eq!(timer.expire(1000), Some(Expiry::Interrupt(0xec)));
    }

    #[test]
    fn auto_enable_starts_on_count_and_zero_stops() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT, 0);
        timer.set_count(5, 0);
        assert_eq!(timer.due(), None, "not enabled, no auto-enable");
        timer.set_config(DIRECT | bits::STIMER_AUTO_ENABLE, 0);
        timer.set_count(5, 0);
        assert_eq!(timer.due(), Some(5));
        timer.set_count(0, 0);
        assert_eq!(
            (timer.due(), timer.config() & bits::STIMER_ENABLED),
            (None, 0)
        );
    }

    #[test]
    fn periodic_catches_up_unless_lazy() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | bits::STIMER_PERIODIC | bits::STIMER_ENABLED, 0);
        timer.set_count(100, 0);
        let late: Vec<_> = std::iter::from_fn(|| timer.expire(350)).collect();
        assert_eq!((late.len(), timer.due()), (3, Some(400)));
        let mut lazy = Timer::default();
        lazy.set_config(
            DIRECT | bits::STIMER_PERIODIC | bits::STIMER_LAZY | bits::STIMER_ENABLED,
            0,
        );
        lazy.set_count(100, 0);
        let late: Vec<_> = std::iter::from_fn(|| lazy.expire(350)).collect();
        assert_eq!((late.len(), lazy.due()), (1, Some(450)));
    }

    #[test]
    fn a_tiny_period_does_not_expire_for_ever() {
        let mut timer = Timer::default();
        timer.set_config(DIRECT | bits::STIMER_PERIODIC | bits::STIMER_ENABLED, 0);
        timer.set_count(1, 0);
        assert!(std::iter::from_fn(|| timer.expire(1 << 40)).count() < 32);
    }

    #[test]
    fn message_mode_needs_a_sint() {
        let mut timer = Timer::default();
        timer.set_config(bits::STIMER_ENABLED | bits::STIMER_AUTO_ENABLE, 0);
        timer.set_count(10, 0);
        assert_eq!(
            (timer.due(), timer.config() & bits::STIMER_ENABLED),
            (None, 0)
        );
        timer.set_config(bits::STIMER_ENABLED | 3 << 16, 0);
        assert_eq!(timer.expire(10), Some(Expiry::Message { sint: 3, due: 10 }));
    }
}
