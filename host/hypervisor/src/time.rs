// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Partition reference time: 100 ns units since the last reset, computed from the guest's TSC.
//!
//! The reference counter MSR, the reference TSC page, the timers and the host use this one formula
//! (TLFS, "Partition Reference Time Enlightenment"): `time = ((tsc * scale) >> 64) + offset`, so
//! that they can never disagree.

use vmbus_proto::tlfs::synic::ReferenceTscPage;

/// How reference time follows from the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceClock {
    /// TscScale of the reference TSC page: 2^64 * 10 MHz / TSC frequency.
    pub scale: u64,
    /// TscOffset of the reference TSC page, in 100 ns; makes time 0 at reset.
    pub offset: i64,
}

/// Units of reference time per second.
pub const REFERENCE_HZ: u64 = 10_000_000;

impl ReferenceClock {
    /// A clock that reads 0 at `tsc`. `frequency` in Hz; frequencies of 10 MHz and below are taken
    /// as just above, since the TLFS's scale cannot express them.
    pub fn starting_at(tsc: u64, frequency: u64) -> Self {
        let scale =
            ((u128::from(REFERENCE_HZ) << 64) / u128::from(frequency.max(REFERENCE_HZ + 1))) as u64;
        Self::with_scale(tsc, scale)
    }

    /// As [`Self::starting_at`], with a scale computed before.
    pub fn with_scale(tsc: u64, scale: u64) -> Self {
        Self {
            scale,
            offset: (scaled(tsc, scale) as i64).wrapping_neg(),
        }
    }

    /// Reference time at `tsc`.
    pub fn at(&self, tsc: u64) -> u64 {
        scaled(tsc, self.scale).wrapping_add(self.offset as u64)
    }

    /// The page of HV_X64_MSR_REFERENCE_TSC.
    pub fn page(&self, sequence: u32) -> ReferenceTscPage {
        ReferenceTscPage {
            sequence,
            reserved: 0,
            scale: self.scale,
            offset: self.offset,
        }
    }
}

fn scaled(tsc: u64, scale: u64) -> u64 {
    ((u128::from(tsc) * u128::from(scale)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_at_zero_and_ticks_at_ten_megahertz() {
        let frequency = 2_899_999_871;
        for base in [0, 12_345, u64::MAX / 7] {
            let clock = ReferenceClock::starting_at(base, frequency);
            assert_eq!(clock.at(base), 0);
            let hour = clock.at(base + 3600 * frequency);
            assert!(
                hour.abs_diff(3600 * REFERENCE_HZ) <= 16,
                "{hour} after an hour"
            );
        }
    }

    #[test]
    fn what_the_guest_computes_from_the_page_is_what_the_host_says() {
        let clock = ReferenceClock::starting_at(777_777_777_777, 2_000_000_001);
        let page = clock.page(1);
        for tsc in [777_777_777_777, 888_888_888_888, 1 << 60] {
            let guest = (((u128::from(tsc) * u128::from(page.scale)) >> 64) as i64)
                .wrapping_add(page.offset) as u64;
            assert_eq!(guest, clock.at(tsc));
        }
    }

    #[test]
    fn a_hostile_frequency_does_not_divide_by_zero() {
        assert!(ReferenceClock::starting_at(5, 0).scale > 0);
    }
}
