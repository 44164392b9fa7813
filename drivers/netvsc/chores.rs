// SPDX-License-Identifier: GPL-2.0

//! What has to be done in process context: link changes, and the filter of packets received.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use hv_vmbus::services::deferred::Run;
use kernel::{
    prelude::*,
    time::{Delta, Instant, Monotonic},
};
use vmbus_proto::net::rndis::PacketFilter;

use crate::{
    configure::{transmit_off, transmit_on},
    net::Rtnl,
    nic::{KBoxed, Nic},
    session::Session,
};

/// Milliseconds between link changes: the kernel tells of one in a second.
const LINK_CHANGE_MS: u32 = 2000;

/// What the host says of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Up,
    Down,
    /// Another network: down and up.
    NetworkChange,
}

impl Event {
    const fn code(self) -> u64 {
        match self {
            Self::Up => 1,
            Self::Down => 2,
            Self::NetworkChange => 3,
        }
    }
}

/// Events that wait, two bits each, the oldest lowest.
pub(crate) struct Events(AtomicU64);

impl Events {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds an event. When 32 wait the last gives way to it: what counts is how it ends. Any context.
    pub(crate) fn push(&self, event: Event) {
        self.update(|events| {
            let used = u64::BITS - events.leading_zeros();
            let at = used.next_multiple_of(2).min(62);
            events & !(3 << at) | event.code() << at
        });
    }

    /// Puts an event before the others, of which the last may get lost.
    fn push_front(&self, event: Event) {
        self.update(|events| events << 2 | event.code());
    }

    /// The oldest.
    fn pop(&self) -> Option<Event> {
        match self.update(|events| events >> 2) & 3 {
            1 => Some(Event::Up),
            2 => Some(Event::Down),
            3 => Some(Event::NetworkChange),
            _ => None,
        }
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    /// Returns what was before.
    fn update(&self, change: impl Fn(u64) -> u64) -> u64 {
        let result = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |events| {
                Some(change(events))
            });
        result.unwrap_or_else(|events| events)
    }
}

impl Run for KBoxed {
    fn run(&self) -> Option<u32> {
        let nic: &Nic = &self.0;
        let session = nic.current()?;
        if nic.filter_changed.swap(false, Ordering::AcqRel) {
            update_filter(nic, &session);
        }
        if !nic.shared.events.is_empty() || nic.shared.broken.load(Ordering::Acquire) {
            change_link(nic, &session);
        }
        None
    }
}

/// Tells the host which packets are wanted.
fn update_filter(nic: &Nic, session: &Session) {
    let flags = nic.shared.dev.rx_flags();
    let filter = PacketFilter::for_interface(flags.promiscuous, flags.multicast, flags.broadcast);
    let result = session.set_filter(filter, || nic.filtering.load(Ordering::Acquire));
    if let Err(e) = result {
        if e != ENODEV {
            pr_warn!("the packet filter cannot be set: {}\n", e.to_errno());
        }
    }
}

/// Does what the oldest event asks for.
fn change_link(nic: &Nic, session: &Session) {
    let interface = &session.link.interface;
    let dev = &nic.shared.dev;
    // Who has the lock may wait for this to end.
    let Some(rtnl) = Rtnl::try_lock() else {
        interface.do_chores_after(LINK_CHANGE_MS);
        return;
    };
    let mut state = nic.state.lock();
    if nic.shared.broken.swap(false, Ordering::AcqRel) {
        pr_err!(
            "{}: the host has broken a ring; the interface is dead\n",
            dev.name()
        );
        state.link_up = false;
        dev.set_carrier(&rtnl, false);
        transmit_off(nic, session);
        return;
    }
    let pause = Delta::from_millis(LINK_CHANGE_MS.into());
    let now = Instant::<Monotonic>::now();
    if let Some(last) = state.last_link_change {
        let since = now - last;
        if since < pause {
            let left = (pause - since)
                .as_millis()
                .saturating_add(1)
                .clamp(1, LINK_CHANGE_MS.into());
            interface.do_chores_after(left as u32);
            return;
        }
    }
    let Some(event) = nic.shared.events.pop() else {
        return;
    };
    state.last_link_change = Some(now);
    match event {
        Event::Up if !state.link_up => {
            state.link_up = true;
            dev.set_carrier(&rtnl, true);
            transmit_on(nic, session);
        }
        Event::Up => dev.notify_peers(&rtnl),
        Event::Down | Event::NetworkChange if !state.link_up => {}
        Event::Down => {
            state.link_up = false;
            dev.set_carrier(&rtnl, false);
            transmit_off(nic, session);
        }
        Event::NetworkChange => {
            state.link_up = false;
            dev.set_carrier(&rtnl, false);
            transmit_off(nic, session);
            nic.shared.events.push_front(Event::Up);
        }
    }
    drop(state);
    if !nic.shared.events.is_empty() {
        interface.do_chores_after(LINK_CHANGE_MS);
    }
}
