// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Time synchronisation: the host sends samples of its clock; some are orders to set the guest's.
//!
//! From 4.0 on a sample also holds the partition's reference time (the guest's Hyper-V clock source, 100 ns units) of the moment it
//! was taken, so that the way to the guest costs no precision: host time now = host time then + (reference now − reference then).

use super::{IcError, IcVersion, MessageType, Negotiated, Outcome, Session, Status};
use core::mem::size_of;
use static_assertions::const_assert_eq;
use zerocopy::little_endian::U64;
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Time sync 4.0 (Linux: `TS_VERSION`), the first with [`SampleV4`].
pub const VERSION_4_0: IcVersion = IcVersion::new(4, 0);
/// Time sync 3.0 (Linux: `TS_VERSION_3`).
pub const VERSION_3_0: IcVersion = IcVersion::new(3, 0);
/// Time sync 1.0 (Linux: `TS_VERSION_1`).
pub const VERSION_1_0: IcVersion = IcVersion::new(1, 0);
/// What we speak, best first.
pub const VERSIONS: &[IcVersion] = &[VERSION_4_0, VERSION_3_0, VERSION_1_0];

/// What a sample is for (Linux: `ICTIMESYNCFLAG_*`). Unknown bits are kept.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct SampleFlags(u8);

impl SampleFlags {
    /// No bit: the host measures the round trip.
    pub const PROBE: Self = Self(0);
    /// Set the clock now: after boot, resume, restore, migration.
    pub const SYNC: Self = Self(1);
    /// A sample for whoever disciplines the clock; not an order.
    pub const SAMPLE: Self = Self(2);

    /// The flags with the bits of `raw`.
    pub const fn from_bits(raw: u8) -> Self {
        Self(raw)
    }

    /// The bits on the wire.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Body before 4.0 (Linux: `struct ictimesync_data`).
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct SampleV1 {
    /// The host's clock, [`HostTime`].
    pub parent_time: U64,
    /// Not used.
    pub child_time: U64,
    /// Round trip that the host measured, 100 ns units. Linux does not use it; nor do we.
    pub round_trip_time: U64,
    /// What the sample is for.
    pub flags: SampleFlags,
}
const_assert_eq!(size_of::<SampleV1>(), 25);
const_assert_eq!(core::mem::offset_of!(SampleV1, flags), 24);

/// Body from 4.0 on (Linux: `struct ictimesync_ref_data`). OpenVMM sends two more reserved bytes; only these are required.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
pub struct SampleV4 {
    /// The host's clock, [`HostTime`].
    pub parent_time: U64,
    /// The partition's reference time at that moment, [`RefTime`].
    pub vm_reference_time: U64,
    /// What the sample is for.
    pub flags: SampleFlags,
    /// NTP leap indicator of the host's clock.
    pub leap_indicator: u8,
    /// NTP stratum of the host's clock.
    pub stratum: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
const_assert_eq!(size_of::<SampleV4>(), 22);
const_assert_eq!(core::mem::offset_of!(SampleV4, flags), 16);

/// Reference time of the partition: 100 ns units since it was created (TLFS, `HV_X64_MSR_TIME_REF_COUNT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RefTime(pub u64);

/// The host's clock: 100 ns units since 1 January 1601 UTC, without leap seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostTime(pub u64);

/// Nanoseconds since 1 January 1970 UTC, as the guest's real-time clock counts. Never negative, and never beyond what
/// Linux lets a clock be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixNanos(u64);

/// 1 January 1970 as a [`HostTime`] (Linux: `WLTIMEDELTA`).
pub const UNIX_EPOCH: HostTime = HostTime(116_444_736_000_000_000);

/// Nanoseconds in a unit of reference and host time.
const NS_PER_TICK: u64 = 100;

/// Latest time that Linux lets the clock be set to, in nanoseconds (`TIME_SETTOD_SEC_MAX`: 30 years, "a typical uptime", before
/// a signed 64-bit count of nanoseconds overflows).
const MAX_UNIX_NANOS: u64 = (9_223_372_036 - 30 * 365 * 24 * 3600) * 1_000_000_000;

impl UnixNanos {
    /// `ns` nanoseconds since 1970, or `None` outside the range that a clock can be set to.
    pub const fn new(ns: u64) -> Option<Self> {
        if ns < MAX_UNIX_NANOS {
            Some(Self(ns))
        } else {
            None
        }
    }

    /// The count of nanoseconds.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl HostTime {
    /// The same moment as the guest counts it; `None` before 1970 or beyond the range.
    pub const fn to_unix(self) -> Option<UnixNanos> {
        let Some(ticks) = self.0.checked_sub(UNIX_EPOCH.0) else {
            return None;
        };
        match ticks.checked_mul(NS_PER_TICK) {
            Some(ns) => UnixNanos::new(ns),
            None => None,
        }
    }

    /// Host: the moment that the guest counts as `ns` nanoseconds since 1970. Every such count fits.
    pub const fn from_unix(ns: u64) -> Self {
        Self(UNIX_EPOCH.0.saturating_add(ns / NS_PER_TICK))
    }
}

/// A sample of the host's clock, tied to the partition's reference time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSample {
    host: HostTime,
    taken: RefTime,
}

/// A sample older than this tells the PTP clock nothing any more: 600 s, in units of reference time (Linux:
/// `HOST_TIMESYNC_DELAY_THRESH`).
pub const FRESH_TICKS: u64 = 600 * 10_000_000;

/// How far the guest must be behind for `timesync_implicit` to make an order of a sample: 5 s, in nanoseconds.
pub const IMPLICIT_BEHIND_NS: u64 = 5_000_000_000;

impl ClockSample {
    /// The host's clock showed `host` when the reference time was `taken`.
    pub const fn new(host: HostTime, taken: RefTime) -> Self {
        Self { host, taken }
    }

    /// What the host's clock shows when the reference time is `now`; `None` if that is out of range.
    ///
    /// A sample from the future, which only a confused host sends, counts as taken now: its time is still the best there is.
    pub const fn at(&self, now: RefTime) -> Option<UnixNanos> {
        match self.host.0.checked_add(self.age(now)) {
            Some(host) => HostTime(host).to_unix(),
            None => None,
        }
    }

    /// Age in units of reference time.
    pub const fn age(&self, now: RefTime) -> u64 {
        now.0.saturating_sub(self.taken.0)
    }

    /// Whether the sample is recent enough for the PTP clock.
    pub const fn is_fresh(&self, now: RefTime) -> bool {
        self.age(now) <= FRESH_TICKS
    }
}

/// What the guest's clocks show when a sample is handled.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Reference time, read as late as possible.
    pub reference: RefTime,
    /// The guest's real-time clock, nanoseconds since 1970.
    pub wall: u64,
}

/// What to do with a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keep the sample for the PTP clock and set the real-time clock to [`ClockSample::at`], however far that is: after a long
    /// pause the distance is the reason for the order, not a sign that something is wrong.
    Step(ClockSample),
    /// Keep the sample for the PTP clock.
    Note(ClockSample),
    /// Do nothing and keep the older sample.
    Ignore(IgnoreReason),
}

/// Why a sample is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IgnoreReason {
    /// Before 1970, or later than a clock can be set to.
    OutOfRange,
}

impl Action {
    /// Decides on a sample. `implicit` is the module parameter `timesync_implicit`: a guest that is 5 s or more behind takes each sample as
    /// an order, for hosts that forget the mark after a resume.
    pub const fn decide(sample: ClockSample, flags: SampleFlags, now: Now, implicit: bool) -> Self {
        let Some(host) = sample.at(now.reference) else {
            return Self::Ignore(IgnoreReason::OutOfRange);
        };
        let behind = host.get().saturating_sub(now.wall);
        if flags.contains(SampleFlags::SYNC) || (implicit && behind >= IMPLICIT_BEHIND_NS) {
            Self::Step(sample)
        } else {
            Self::Note(sample)
        }
    }

    /// What the host is told.
    pub const fn status(self) -> Status {
        match self {
            Self::Step(_) | Self::Note(_) => Status::OK,
            Self::Ignore(_) => Status::FAIL,
        }
    }
}

/// What a packet brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Versions were agreed.
    Negotiated(Negotiated),
    /// A sample.
    Sample(Action),
}

/// Reads the body of a sample in the form that `version` has. Before 4.0 it counts as taken at `now`.
///
/// # Errors
///
/// [`IcError::TooShort`].
pub fn parse_sample(
    body: &[u8],
    version: IcVersion,
    now: RefTime,
) -> Result<(ClockSample, SampleFlags), IcError> {
    let short = |size: usize| IcError::short_body(size, body.len());
    if version >= VERSION_4_0 {
        let (m, _) = SampleV4::read_from_prefix(body).map_err(|_| short(size_of::<SampleV4>()))?;
        let sample = ClockSample::new(
            HostTime(m.parent_time.get()),
            RefTime(m.vm_reference_time.get()),
        );
        Ok((sample, m.flags))
    } else {
        let (m, _) = SampleV1::read_from_prefix(body).map_err(|_| short(size_of::<SampleV1>()))?;
        Ok((
            ClockSample::new(HostTime(m.parent_time.get()), now),
            m.flags,
        ))
    }
}

/// The guest's side of one open time sync channel.
#[derive(Clone, Copy, Debug)]
pub struct Guest(Session);

impl Guest {
    /// A channel that has just been opened.
    pub const fn new() -> Self {
        Self(Session::new(MessageType::TIMESYNC, VERSIONS))
    }

    /// Handles one packet and turns it into its answer.
    pub fn on_packet(&mut self, packet: &mut [u8], now: Now, implicit: bool) -> Outcome<Event> {
        self.0.on_packet(packet, Event::Negotiated, |agreed, body| {
            let (sample, flags) = parse_sample(body, agreed.message, now.reference)?;
            let action = Action::decide(sample, flags, now, implicit);
            Ok((action.status(), Event::Sample(action)))
        })
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}
