// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Monitor page: deferred signalling without a hypercall.
//!
//! The guest sets a channel's bit in a trigger group; the hypervisor scans the page every so often
//! (latency, about 100 µs) and signals the host for each bit set (TLFS, "Monitored
//! Notifications"; `hyperv_vmbus.h`, `struct hv_monitor_page`).

use zerocopy_derive::*;

use super::hypercall::ConnectionId;

/// Trigger groups per page.
pub const GROUPS: usize = 4;
/// Triggers per group.
pub const TRIGGERS_PER_GROUP: usize = 32;

/// One trigger group: 32 triggers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct TriggerGroup {
    /// Bit set by the sender, cleared when signalled.
    pub pending: u32,
    /// Bit set by the hypervisor when it saw the trigger.
    pub armed: u32,
}

assert_layout!(TriggerGroup, size = 8, pending = 0, armed = 4);

/// Whom a trigger signals.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct MonitorParameter {
    /// Connection to signal.
    pub connection_id: ConnectionId,
    /// Flag to signal.
    pub flag: u16,
    /// Zero.
    pub reserved: u16,
}

assert_layout!(
    MonitorParameter,
    size = 8,
    connection_id = 0,
    flag = 4,
    reserved = 6
);

/// The page.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MonitorPage {
    /// Bits 3:0 enable the groups.
    pub trigger_state: u32,
    /// Zero.
    pub reserved1: u32,
    /// The triggers.
    pub trigger_group: [TriggerGroup; GROUPS],
    /// Zero.
    pub reserved2: [u64; 3],
    /// When the hypervisor looks next.
    pub next_check_time: [[i32; TRIGGERS_PER_GROUP]; GROUPS],
    /// Latency of each trigger, 100 ns.
    pub latency: [[u16; TRIGGERS_PER_GROUP]; GROUPS],
    /// Zero.
    pub reserved3: [u64; 32],
    /// Whom each trigger signals.
    pub parameter: [[MonitorParameter; TRIGGERS_PER_GROUP]; GROUPS],
    /// Zero.
    pub reserved4: [u8; 1984],
}

assert_layout!(
    MonitorPage,
    size = 4096,
    trigger_state = 0,
    trigger_group = 8,
    reserved2 = 0x28,
    next_check_time = 0x40,
    latency = 0x240,
    reserved3 = 0x340,
    parameter = 0x440,
    reserved4 = 0x840,
);

/// Position of a monitor id (0 to 127, from an offer) in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonitorPosition {
    /// Group, 0 to 3.
    pub group: u8,
    /// Bit in the group, 0 to 31.
    pub bit: u8,
}

impl MonitorPosition {
    /// The position of `monitor_id`, or `None` when the page has no such trigger.
    #[must_use]
    pub const fn new(monitor_id: u8) -> Option<Self> {
        if monitor_id < 128 {
            Some(Self {
                group: monitor_id >> 5,
                bit: monitor_id & 31,
            })
        } else {
            None
        }
    }

    /// Offset in the page of the group's `pending` word.
    #[must_use]
    pub const fn pending_offset(self) -> usize {
        8_usize.wrapping_add((self.group as usize & 3) << 3)
    }

    /// Offset in the page of the trigger's latency (16 bits).
    #[must_use]
    pub const fn latency_offset(self) -> usize {
        0x240_usize.wrapping_add(self.index() << 1)
    }

    /// Offset in the page of the trigger's [`MonitorParameter`].
    #[must_use]
    pub const fn parameter_offset(self) -> usize {
        0x440_usize.wrapping_add(self.index() << 3)
    }

    const fn index(self) -> usize {
        ((self.group as usize & 3) << 5) | (self.bit as usize & 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        let p = MonitorPosition::new(0).unwrap();
        assert_eq!((p.group, p.bit, p.pending_offset()), (0, 0, 8));
        let p = MonitorPosition::new(127).unwrap();
        assert_eq!((p.group, p.bit), (3, 31));
        // Group 1 starts at 0x10, not at 8 | 8.
        let p = MonitorPosition::new(32).unwrap();
        assert_eq!(
            p.pending_offset(),
            core::mem::offset_of!(MonitorPage, trigger_group) + 8
        );
        assert_eq!(MonitorPosition::new(128), None);
    }
}
