// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Small decisions and tables that several parts share.

use crate::msg::OfferChannel;
use crate::tlfs::monitor::MonitorPosition;

/// How a guest tells the host that a channel's ring has turned from empty to not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalMethod {
    /// Set the channel's bit in the guest-to-host half of the interrupt page (unless `dedicated`), then
    /// HvCallSignalEvent with the offer's connection id.
    Hypercall {
        /// The channel has its own interrupt: leave the interrupt page alone.
        dedicated: bool,
    },
    /// Set the channel's bit in the interrupt page, then its trigger in the guest-to-host monitor page;
    /// the hypervisor signals within the latency the page states.
    Monitor(MonitorPosition),
}

/// How to signal for a channel (Linux `channel.c`, `vmbus_setevent`; `connection.c`,
/// `vmbus_set_event`). `low_latency`: the driver does not want to wait for the monitor's scan.
#[must_use]
pub const fn signal_method(offer: &OfferChannel, low_latency: bool) -> SignalMethod {
    if !low_latency {
        if let Some(id) = offer.monitor_id() {
            if let Some(position) = MonitorPosition::new(id) {
                return SignalMethod::Monitor(position);
            }
        }
    }
    SignalMethod::Hypercall {
        dedicated: offer.has_dedicated_interrupt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::ChannelMessage;

    #[test]
    fn signal_methods() {
        let mut offer = OfferChannel::blank();
        let hypercall = |dedicated| SignalMethod::Hypercall { dedicated };
        assert_eq!(signal_method(&offer, false), hypercall(false));
        offer.is_dedicated = 0xffff;
        assert_eq!(signal_method(&offer, false), hypercall(true));
        offer.monitor_id = 33;
        assert_eq!(
            signal_method(&offer, false),
            hypercall(true),
            "not allocated"
        );
        offer.monitor_allocated = 1;
        let position = MonitorPosition { group: 1, bit: 1 };
        assert_eq!(
            signal_method(&offer, false),
            SignalMethod::Monitor(position)
        );
        assert_eq!(signal_method(&offer, true), hypercall(true));
        offer.monitor_id = 128;
        assert_eq!(
            signal_method(&offer, false),
            hypercall(true),
            "no such trigger"
        );
    }
}
