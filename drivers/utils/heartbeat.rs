// SPDX-License-Identifier: GPL-2.0

//! Heartbeat: tells the host that the guest lives.

use crate::ic::Service;
use vmbus_proto::ic::{
    heartbeat::{Event, Guest},
    Negotiated, Outcome,
};

/// Answers the host's heartbeats.
pub(crate) struct Heartbeat;

impl Service for Heartbeat {
    const NAME: &'static str = "Heartbeat";
    type Session = Guest;
    type Event = Event;

    fn session(&self) -> Guest {
        Guest::new()
    }

    fn on_packet(&self, session: &mut Guest, packet: &mut [u8]) -> Outcome<Event> {
        session.on_packet(packet)
    }

    fn on_event(&self, event: Event) -> Option<Negotiated> {
        match event {
            Event::Negotiated(versions) => Some(versions),
            Event::Beat(_) => None,
        }
    }
}
