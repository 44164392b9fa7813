// SPDX-License-Identifier: GPL-2.0

//! Binding to a device: probe, removal, hibernation.
#![forbid(unsafe_code)]

use hv_vmbus::{
    channel::{Channel, Offered, Subchannels},
    device::Device,
    driver::{DeviceId, Driver, IdTable},
};
use kernel::{
    device::Core,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};
use vmbus_proto::{class, net::nvsp::MAX_CHANNELS};

use crate::{
    configure,
    net::{Feature, Features, NetDevice, Registration, Rtnl},
    nic::Interface,
    session::Session,
    tx::HEADROOM,
};

hv_vmbus::vmbus_device_table!(ID_TABLE, (), [(DeviceId::new(class::NIC), ())]);

/// MTU before the host has said anything.
const DEFAULT_MTU: u32 = 1500;

/// Takes subchannels.
struct Opener(Arc<Interface>);

impl Subchannels for Opener {
    fn offered(&self, channel: Channel<Offered>) {
        let session = self.0.nic().expecting.lock().clone();
        if let Some(session) = session {
            session.add_subchannel(channel);
        }
    }
}

/// A bound device.
pub(crate) struct Netvsc {
    interface: Arc<Interface>,
    // Dropped by `shut_down`.
    registration: Pin<KBox<Mutex<Option<Registration<Interface>>>>>,
}

impl Netvsc {
    fn new(dev: &Device<Core<'_>>) -> Result<Self> {
        let net = NetDevice::new(dev.as_ref(), MAX_CHANNELS, HEADROOM)?;
        let interface = Interface::new(net.clone(), dev.channel()?)?;
        dev.on_subchannels(Arc::new(Opener(interface.clone()), GFP_KERNEL)?);
        let this = Self {
            interface,
            registration: KBox::pin_init(
                new_mutex!(None, "hv_netvsc_rs::registration"),
                GFP_KERNEL,
            )?,
        };
        // Before the host is asked for anything: interfaces are named in the order in which they are registered.
        let rtnl = Rtnl::lock();
        net.set_mtu_limits(DEFAULT_MTU, 0, 0);
        net.set_features(&rtnl, Features::of(&[Feature::Lro]));
        let nic = this.interface.nic();
        let session = {
            let mut state = nic.state.lock();
            configure::attach(&this.interface, &rtnl, &mut state)?
        };
        this.describe(&rtnl, &net, &session);
        session
            .link
            .tx_off
            .store(false, core::sync::atomic::Ordering::SeqCst);
        let registration = net.clone().register(&rtnl, this.interface.clone())?;
        nic.shared.note_features(net.features());
        nic.shared.set_receiving(true);
        *this.registration.lock() = Some(registration);
        drop(rtnl);
        Ok(this)
    }

    /// Tells the stack what the device is.
    fn describe(&self, rtnl: &Rtnl, net: &NetDevice, session: &Session) {
        net.set_address(&session.device.mac);
        let (min, max) = configure::mtu_limits(session.agreed.version);
        net.set_mtu_limits(net.mtu(), min, max);
        let always = [Feature::HighDma, Feature::VlanTx, Feature::VlanRx];
        let features = net.hw_features().union(Features::of(&always));
        net.set_features(rtnl, features);
        net.set_vlan_features(rtnl, features);
        let mut name = [0; 256];
        let len = utf8_name(&session.name, &mut name);
        let name = name.get(..len).unwrap_or(&[]);
        // What hosts say who were not told anything.
        if !name.is_empty() && name != b"Network Adapter" && !net.has_alias() {
            // A convenience.
            let _ = net.set_alias(rtnl, name);
        }
    }

    /// Takes everything apart; may be called again.
    fn shut_down(&self) {
        let interface = &self.interface;
        let nic = interface.nic();
        interface.cancel_chores();
        if let Some(session) = nic.current() {
            let rtnl = Rtnl::lock();
            let mut state = nic.state.lock();
            state.config.program = None;
            configure::detach(nic, &rtnl, &mut state, &session);
            // Its buffers want the channel, which goes with the state.
            drop(session);
        }
        nic.shared.set_receiving(false);
        let registration = self.registration.lock().take();
        // Takes the interface down, which finds no device.
        drop(registration);
        interface.cancel_chores();
        let mut state = nic.state.lock();
        let channel = state.channel.take();
        drop(state);
        drop(channel);
    }
}

impl Drop for Netvsc {
    fn drop(&mut self) {
        // After `unbind` there is nothing left to do.
        self.shut_down();
    }
}

/// A name in UTF-16 as UTF-8; returns its length. What does not fit is cut.
fn utf8_name(utf16: &[u8], out: &mut [u8]) -> usize {
    let units = utf16
        .chunks_exact(2)
        .filter_map(|unit| unit.try_into().ok())
        .map(u16::from_le_bytes)
        .take_while(|unit| *unit != 0);
    let mut len = 0;
    for c in char::decode_utf16(units) {
        let c = c.unwrap_or(char::REPLACEMENT_CHARACTER);
        let mut bytes = [0; 4];
        let encoded = c.encode_utf8(&mut bytes).as_bytes();
        let Some(place) = out.get_mut(len..len + encoded.len()) else {
            break;
        };
        for (to, from) in place.iter_mut().zip(encoded) {
            *to = *from;
        }
        len += encoded.len();
    }
    len
}

/// The driver.
pub(crate) struct NetvscDriver;

impl Driver for NetvscDriver {
    type IdInfo = ();
    type Data<'bound> = Netvsc;

    const NAME: &'static CStr = c"hv_netvsc";
    const ID_TABLE: IdTable<()> = &ID_TABLE;
    const PROBE_IN_ORDER: bool = true;

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
        _id_info: Option<&'bound ()>,
    ) -> impl PinInit<Netvsc, Error> + 'bound {
        Netvsc::new(dev)
    }

    fn unbind<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Netvsc>) {
        this.shut_down();
    }

    fn suspend<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Netvsc>) -> Result {
        let interface = &this.interface;
        interface.cancel_chores();
        let nic = interface.nic();
        let rtnl = Rtnl::lock();
        let session = nic.current().ok_or(ENODEV)?;
        let mut state = nic.state.lock();
        configure::detach(nic, &rtnl, &mut state, &session);
        drop(session);
        // The image must not hold it.
        let channel = state.channel.take();
        drop(state);
        drop(channel);
        Ok(())
    }

    fn resume<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Netvsc>) -> Result {
        let nic = this.interface.nic();
        let rtnl = Rtnl::lock();
        let mut state = nic.state.lock();
        let state = &mut *state;
        state.channel = Some(dev.channel()?);
        let session = configure::attach(&this.interface, &rtnl, state)?;
        configure::go_on(nic, &rtnl, state, &session)
    }
}
