// SPDX-License-Identifier: GPL-2.0

//! Guest shutdown: powers off, reboots or hibernates when the host asks.

use crate::ic::Service;
use hv_vmbus::{
    new_deferred, ratelimited,
    services::{
        deferred::{Deferred, Run},
        power,
    },
};
use kernel::{device, prelude::*, sync::aref::ARef};
use vmbus_proto::ic::{
    shutdown::{Action, Event, Guest},
    Negotiated, Outcome,
};

/// Carries out the host's shutdown requests.
pub(crate) struct Shutdown {
    can_hibernate: bool,
    hibernate: Deferred<SendUevent>,
}

impl Shutdown {
    /// For the device `dev`, whose uevent asks user space to hibernate.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(dev: &device::Device) -> Result<Self> {
        Ok(Self {
            can_hibernate: power::can_hibernate(),
            hibernate: new_deferred!(SendUevent(dev.into()), c"hv_utils_rs::hibernate")?,
        })
    }
}

impl Service for Shutdown {
    const NAME: &'static str = "Shutdown";
    type Session = Guest;
    type Event = Event;

    fn session(&self) -> Guest {
        Guest::new(self.can_hibernate)
    }

    fn on_packet(&self, session: &mut Guest, packet: &mut [u8]) -> Outcome<Event> {
        session.on_packet(packet)
    }

    fn on_event(&self, event: Event) -> Option<Negotiated> {
        let action = match event {
            Event::Negotiated(versions) => return Some(versions),
            Event::Request(action) => action,
        };
        // The lines are those of the C driver: test suites look for them.
        match action {
            Action::PowerOff => {
                ratelimited!(
                    pr_info,
                    "Shutdown request received - graceful shutdown initiated\n"
                );
                power::orderly_power_off();
            }
            Action::Reboot => {
                ratelimited!(
                    pr_info,
                    "Restart request received - graceful restart initiated\n"
                );
                power::orderly_reboot();
            }
            Action::Hibernate => {
                ratelimited!(pr_info, "Hibernation request received\n");
                self.hibernate.schedule();
            }
            Action::RefuseHibernate => {
                ratelimited!(pr_info, "Hibernation request received\n");
                ratelimited!(pr_info, "Hibernation is not supported - request refused\n");
            }
            Action::RefuseFlags(flags) => {
                ratelimited!(
                    pr_info,
                    "Shutdown request received - Invalid request, flags {:#x}\n",
                    flags.bits()
                );
            }
        }
        None
    }
}

/// Tells user space to hibernate; udev's rules decide how.
struct SendUevent(ARef<device::Device>);

impl Run for SendUevent {
    fn run(&self) -> Option<u32> {
        match power::send_uevent(&self.0, c"EVENT=hibernate") {
            Ok(()) => ratelimited!(pr_info, "Sent hibernation uevent\n"),
            Err(e) => ratelimited!(
                pr_err,
                "Hibernation uevent could not be sent: {}\n",
                e.to_errno()
            ),
        }
        None
    }
}
