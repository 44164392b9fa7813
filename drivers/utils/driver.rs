// SPDX-License-Identifier: GPL-2.0

//! The driver `hv_utils`: finds out which service a device is.

use crate::{
    exchange::Exchange,
    heartbeat::Heartbeat,
    ic::{self, Ic, Service},
    shutdown::Shutdown,
    timesync::{HostClock, Timesync},
};
use hv_vmbus::{
    device::Device,
    driver::{DeviceId, Driver, IdTable},
    services::ptp::PtpClock,
};
use kernel::{
    device::Core,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex}, //
};
use vmbus_proto::{
    class,
    ic::exchange::{Fcopy, Kvp, Vss}, //
};

/// The services that this driver has.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Shutdown,
    Timesync,
    Heartbeat,
    Kvp,
    Vss,
    Fcopy,
}

hv_vmbus::vmbus_device_table!(
    ID_TABLE,
    Kind,
    [
        (DeviceId::new(class::SHUTDOWN), Kind::Shutdown),
        (DeviceId::new(class::TIMESYNC), Kind::Timesync),
        (DeviceId::new(class::HEARTBEAT), Kind::Heartbeat),
        (DeviceId::new(class::KVP), Kind::Kvp),
        (DeviceId::new(class::VSS), Kind::Vss),
        (DeviceId::new(class::FCOPY), Kind::Fcopy),
    ]
);

/// The driver.
pub(crate) struct UtilsDriver;

/// The channel of a service: closed while the system hibernates.
type Slot<S> = Pin<KBox<Mutex<Option<Ic<S>>>>>;

fn slot<S: Service>(ic: Ic<S>) -> Result<Slot<S>> {
    KBox::pin_init(new_mutex!(Some(ic), "hv_utils_rs::slot"), GFP_KERNEL)
}

/// A bound device. Dropping it closes the channel, and waits for what the service still does.
pub(crate) enum Utility {
    Shutdown(Slot<Shutdown>),
    Timesync {
        // Closed before the clock goes.
        ic: Slot<Timesync>,
        clock: Arc<HostClock>,
        _ptp: Option<PtpClock<HostClock>>,
    },
    Heartbeat(Slot<Heartbeat>),
    Kvp(Exchange<Kvp>),
    Vss(Exchange<Vss>),
    Fcopy(Exchange<Fcopy>),
}

impl Utility {
    fn new(dev: &Device<Core<'_>>, kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Shutdown => Self::Shutdown(slot(ic::open(dev, Shutdown::new(dev.as_ref())?)?)?),
            Kind::Timesync => {
                let clock = HostClock::new()?;
                let ptp = clock.register_ptp();
                Self::Timesync {
                    ic: slot(ic::open(dev, Timesync::new(clock.clone())?)?)?,
                    clock,
                    _ptp: ptp,
                }
            }
            Kind::Heartbeat => Self::Heartbeat(slot(ic::open(dev, Heartbeat)?)?),
            Kind::Kvp => Self::Kvp(Exchange::new(dev)?),
            Kind::Vss => Self::Vss(Exchange::new(dev)?),
            Kind::Fcopy => Self::Fcopy(Exchange::new(dev)?),
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
    fn suspend<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Utility>) -> Result {
        match &*this {
            Utility::Shutdown(ic) => *ic.lock() = None,
            Utility::Timesync { ic, clock, .. } => {
                *ic.lock() = None;
                clock.forget();
            }
            Utility::Heartbeat(ic) => *ic.lock() = None,
            Utility::Kvp(exchange) => exchange.suspend(),
            Utility::Vss(exchange) => exchange.suspend(),
            Utility::Fcopy(exchange) => exchange.suspend(),
        }
        Ok(())
    }

    fn resume<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Utility>) -> Result {
        match &*this {
            Utility::Shutdown(ic) => {
                *ic.lock() = Some(ic::open(dev, Shutdown::new(dev.as_ref())?)?);
            }
            Utility::Timesync { ic, clock, .. } => {
                *ic.lock() = Some(ic::open(dev, Timesync::new(clock.clone())?)?);
            }
            Utility::Heartbeat(ic) => *ic.lock() = Some(ic::open(dev, Heartbeat)?),
            Utility::Kvp(exchange) => exchange.open(dev)?,
            Utility::Vss(exchange) => exchange.open(dev)?,
            Utility::Fcopy(exchange) => exchange.open(dev)?,
        }
        Ok(())
    }
}
