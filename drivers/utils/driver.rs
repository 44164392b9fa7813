// SPDX-License-Identifier: GPL-2.0

//! The driver `hv_utils`: finds out which service a device is.

use crate::{
    heartbeat::Heartbeat,
    ic::{self, Ic},
    shutdown::Shutdown,
    timesync::{HostClock, Timesync},
};
use hv_vmbus::{
    device::Device,
    driver::{DeviceId, Driver, IdTable},
    services::ptp::PtpClock,
};
use kernel::{device::Core, prelude::*};
use vmbus_proto::class;

/// The services that this driver has.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Shutdown,
    Timesync,
    Heartbeat,
}

hv_vmbus::vmbus_device_table!(
    ID_TABLE,
    Kind,
    [
        (DeviceId::new(class::SHUTDOWN), Kind::Shutdown),
        (DeviceId::new(class::TIMESYNC), Kind::Timesync),
        (DeviceId::new(class::HEARTBEAT), Kind::Heartbeat),
    ]
);

/// The driver.
pub(crate) struct UtilsDriver;

/// A bound device. Dropping it closes the channel, and waits for what the service still does.
#[allow(dead_code)] // Held for their drop.
pub(crate) enum Utility {
    Shutdown(Ic<Shutdown>),
    // The channel is closed before the clock goes.
    Timesync(Ic<Timesync>, Option<PtpClock<HostClock>>),
    Heartbeat(Ic<Heartbeat>),
}

impl Utility {
    fn new(dev: &Device<Core<'_>>, kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Shutdown => Self::Shutdown(ic::open(dev, Shutdown::new(dev.as_ref())?)?),
            Kind::Timesync => {
                let clock = HostClock::new()?;
                let ptp = clock.register_ptp();
                Self::Timesync(ic::open(dev, Timesync::new(clock)?)?, ptp)
            }
            Kind::Heartbeat => Self::Heartbeat(ic::open(dev, Heartbeat)?),
        })
    }
}

impl Driver for UtilsDriver {
    type IdInfo = Kind;
    type Data<'bound> = Utility;

    const NAME: &'static CStr = c"hv_utils";
    const ID_TABLE: IdTable<Kind> = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
        id_info: Option<&'bound Kind>,
    ) -> impl PinInit<Utility, Error> + 'bound {
        // Without an entry in the table (a class that the user added) nothing tells which service speaks on the channel.
        id_info
            .ok_or(ENODEV)
            .and_then(|kind| Utility::new(dev, *kind))
    }
}
