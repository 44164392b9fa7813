// SPDX-License-Identifier: GPL-2.0

//! A device on the bus: one offer of the host, as the driver core and drivers see it.

use core::{marker::PhantomData, mem::offset_of, ptr::NonNull};
use kernel::{
    bindings, device,
    prelude::*,
    sync::{
        aref::AlwaysRefCounted,
        Arc, //
    },
    types::Opaque,
};
use vmbus_proto::{guid::Guid, msg::Relid};

use crate::{
    bus,
    chan::Chan,
    channel::{Channel, Offered, Subchannels},
    ffi,
};

/// What a device is to the driver core (C: `struct hv_device`).
///
/// # Invariants
/// `chan` lives as long as the struct: it is released with it.
#[repr(C)]
#[doc(hidden)]
pub struct RawDevice {
    dev: bindings::device,
    dma_parms: bindings::device_dma_parameters,
    dma_mask: u64,
    chan: Arc<Chan>,
}

/// A device on the VMBus.
///
/// The context `Ctx` says what is known of the device when the reference was made: in `Core` a driver callback runs, with
/// the device lock held; in `Bound` the device is bound to the caller's driver; `Normal` promises nothing.
///
/// # Invariants
/// A valid, initialised [`RawDevice`].
#[repr(transparent)]
pub struct Device<Ctx: device::DeviceContext = device::Normal>(Opaque<RawDevice>, PhantomData<Ctx>);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    /// The device that embeds `dev`.
    ///
    /// # Safety
    /// `dev` is the `dev` field of a `RawDevice` that stays valid for `'a`, and the context is as `Ctx` says.
    pub(crate) unsafe fn from_core<'a>(dev: *mut bindings::device) -> &'a Self {
        const { assert!(offset_of!(RawDevice, dev) == 0) };
        // SAFETY: The field comes first; the rest is required of the caller.
        unsafe { &*dev.cast() }
    }

    fn as_raw(&self) -> *mut bindings::device {
        // SAFETY: By the type's invariant the struct is valid; this only forms a field's address.
        unsafe { &raw mut (*self.0.get()).dev }
    }

    pub(crate) fn chan(&self) -> &Arc<Chan> {
        // SAFETY: By the type's invariant the struct is valid, and `chan` is never changed.
        unsafe { &(*self.0.get()).chan }
    }

    /// Class GUID of the offer.
    pub fn class(&self) -> Guid {
        self.chan().offer.class_id
    }

    /// Instance GUID of the offer; also the device's name.
    pub fn instance(&self) -> Guid {
        self.chan().offer.instance_id
    }

    /// Number of the primary channel.
    pub fn relid(&self) -> Relid {
        self.chan().relid()
    }

    /// Data that the host attached to the offer (see [`vmbus_proto::msg::OfferChannel::user_data`]).
    pub fn offer_data(&self) -> &[u8] {
        &self.chan().offer.user_data
    }

    /// Whether the host has taken the device away.
    pub fn is_rescinded(&self) -> bool {
        self.chan().is_rescinded()
    }

    /// Version of the protocol spoken with the host.
    pub fn vmbus_version(&self) -> vmbus_proto::version::VmbusVersion {
        self.chan().conn.version()
    }

    /// Closes what the driver left open, and waits until no callback runs any more. Process context.
    pub(crate) fn close_channels(&self) {
        self.chan().end_binding();
    }
}

impl<'a> Device<device::Core<'a>> {
    /// Takes the device's primary channel, to open it.
    ///
    /// # Errors
    /// `EBUSY` when it was taken before and not dropped yet; `ENODEV` when the host has taken the device away.
    pub fn channel(&self) -> Result<Channel<Offered>> {
        Channel::take(self.chan())
    }

    /// Has `handler` called for each subchannel that the host offers from now on, until the device is unbound or another
    /// handler is set. Called before the driver asks its host for subchannels.
    #[doc(alias = "vmbus_set_sc_create_callback")]
    pub fn on_subchannels(&self, handler: Arc<dyn Subchannels>) {
        self.chan().set_subchannels(handler);
    }

    /// Ends that: when this returns the handler does not run any more, and will not. Not from the handler.
    pub fn ignore_subchannels(&self) {
        self.chan().clear_subchannels();
    }
}

impl Device<device::Normal> {
    /// Registers a device for `chan` with the driver core, which may probe a driver at once. Returns a reference that
    /// [`unregister`](Self::unregister) wants back. Process context, sleeps.
    pub(crate) fn register(
        chan: Arc<Chan>,
        parent: *mut bindings::device,
    ) -> Result<NonNull<Self>> {
        let instance = chan.offer.instance_id;
        let raw = KBox::new(
            RawDevice {
                dev: bindings::device::default(),
                dma_parms: bindings::device_dma_parameters::default(),
                dma_mask: 0,
                chan,
            },
            GFP_KERNEL,
        )?;
        let raw = KBox::into_raw(raw);
        // SAFETY: The struct was just allocated, zeroed where C wants it, and nobody else knows of it. From
        // `device_initialize` on it is released by `release`.
        let dev = unsafe {
            let dev = &raw mut (*raw).dev;
            (*dev).bus = bus::bus_type();
            (*dev).parent = parent;
            (*dev).release = Some(Self::release);
            bindings::device_initialize(dev);
            ffi::hv_rs_dma_setup(dev, &raw mut (*raw).dma_parms, &raw mut (*raw).dma_mask);
            dev
        };
        // SAFETY: `dev` is initialised and not added yet.
        let mut ret = unsafe { ffi::hv_rs_dev_set_name(dev, instance.0.as_ptr()) };
        if ret == 0 {
            // SAFETY: As above, and it has a name.
            ret = unsafe { bindings::device_add(dev) };
        }
        if ret != 0 {
            // SAFETY: Gives back the reference of `device_initialize`; the device is not used after it.
            unsafe { bindings::put_device(dev) };
            return Err(Error::from_errno(ret));
        }
        // SAFETY: `dev` is not null.
        Ok(unsafe { NonNull::new_unchecked(dev.cast()) })
    }

    /// Unbinds the device from its driver and takes it off the bus. Process context, sleeps.
    ///
    /// # Safety
    /// `this` came from [`register`](Self::register), and is not used any more.
    pub(crate) unsafe fn unregister(this: NonNull<Self>) {
        // SAFETY: The device is registered by the requirement.
        unsafe { bindings::device_unregister(this.as_ptr().cast()) };
    }

    /// # Safety
    /// Called by the driver core, for the last reference to a device that `register` allocated.
    unsafe extern "C" fn release(dev: *mut bindings::device) {
        // SAFETY: By the requirement: nobody else has the `RawDevice`, whose first field `dev` is.
        drop(unsafe { KBox::from_raw(dev.cast::<RawDevice>()) });
    }
}

// SAFETY: `Device` is a transparent wrapper of a type that does not depend on `Ctx`.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

// SAFETY: Devices are reference-counted by the driver core.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        // SAFETY: The reference shows that the count is not zero.
        unsafe { bindings::get_device(self.as_raw()) };
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference; `dev` is the first field.
        unsafe { bindings::put_device(obj.as_ptr().cast()) };
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type's invariant, the embedded `struct device` is valid, in the same context.
        unsafe { device::Device::from_raw(self.as_raw()) }
    }
}

// SAFETY: The offset is that of the embedded `struct device`.
unsafe impl<Ctx: device::DeviceContext> device::AsBusDevice<Ctx> for Device<Ctx> {
    const OFFSET: usize = offset_of!(RawDevice, dev);
}

// SAFETY: A `Device` may be released from any thread.
unsafe impl Send for Device {}
// SAFETY: All methods of `Device<Normal>` may be called from any thread.
unsafe impl Sync for Device {}
// SAFETY: As for `Device<Normal>`; `Bound` is only a marker.
unsafe impl Sync for Device<device::Bound> {}
