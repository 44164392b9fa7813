// SPDX-License-Identifier: GPL-2.0

//! Drivers of VMBus devices: the [`Driver`] trait and how it hangs on the driver core.

use core::{marker::PhantomData, mem::offset_of, ptr};
use kernel::{
    bindings,
    device,
    device_id::RawDeviceId,
    driver,
    error::from_result,
    ffi::{c_int, c_ulong},
    new_mutex,
    prelude::*,
    sync::Mutex,
    types::Opaque,
    ThisModule, //
};
use vmbus_proto::guid::Guid;

use crate::{bus, compat, device::Device};

/// Entry of a driver's id table as modpost and the driver core see it (C: `struct hv_vmbus_device_id`).
#[repr(C)]
#[derive(Clone, Copy)]
#[doc(hidden)]
pub struct RawId {
    guid: [u8; 16],
    driver_data: c_ulong,
}

// scripts/mod/file2alias.c reads the table with the C type.
const _: () = assert!(size_of::<RawId>() == 24);

/// The class of devices that a driver is for: one entry of its id table.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct DeviceId(RawId);

impl DeviceId {
    /// Devices whose offer carries the class GUID `class` (see [`vmbus_proto::class`]).
    pub const fn new(class: Guid) -> Self {
        Self(RawId {
            guid: class.0,
            driver_data: 0,
        })
    }
}

// SAFETY: `DeviceId` is a transparent wrapper of `RawId`.
unsafe impl RawDeviceId for DeviceId {
    type RawType = RawId;
}

compat::impl_device_id_index!(DeviceId, RawId, driver_data);

/// Type of a driver's id table; made by [`vmbus_device_table!`](crate::vmbus_device_table).
pub type IdTable<T> = &'static dyn kernel::device_id::IdTable<DeviceId, T>;

/// Declares a kernel module that consists of one VMBus driver.
///
/// ```ignore
/// hv_vmbus::module_vmbus_driver! {
///     type: HeartbeatDriver,
///     name: "hv_heartbeat_rs",
///     authors: ["…"],
///     description: "…",
///     license: "GPL",
/// }
/// ```
#[macro_export]
macro_rules! module_vmbus_driver {
    ($($f:tt)*) => {
        ::kernel::module_driver!(<T>, $crate::driver::Adapter<T>, { $($f)* });
    };
}

/// A driver of VMBus devices.
///
/// The bus binds it to each device whose class is in [`ID_TABLE`](Self::ID_TABLE), or was added by writing to `new_id` or
/// `driver_override` in sysfs.
///
/// # Life of a binding
///
/// 1. [`probe`](Self::probe) takes the device's channel ([`Device::channel`]), opens it and returns the private data, which
///    normally owns the [`Channel`](crate::channel::Channel).
/// 2. Channel callbacks run (see [`Handler`](crate::channel::Handler)) until the channel is closed.
/// 3. On removal of the driver, the device or the host's offer: [`unbind`](Self::unbind); then the bus closes whatever
///    channels are still open, after which no callback runs; then the private data is dropped.
///
/// When the host has taken the device away (rescind), operations on its channel fail with `ENODEV` from that moment on,
/// and waits end; `unbind` follows soon.
pub trait Driver {
    /// Information kept with each entry of the id table.
    type IdInfo: 'static;

    /// Private data of a binding. May borrow what lives as long as the device is bound.
    type Data<'bound>: Send + 'bound;

    /// Name of the driver in sysfs (`/sys/bus/vmbus/drivers/NAME`).
    const NAME: &'static CStr;

    /// Devices must be probed one after the other, in the order of the host's offers, whatever the user says: for drivers
    /// whose devices are named by their order.
    const PROBE_IN_ORDER: bool = false;

    /// Classes that the driver is for.
    const ID_TABLE: IdTable<Self::IdInfo>;

    /// Binds to `dev`. Process context, may sleep and may wait for the host; messages from the host, channel callbacks
    /// and offers are processed meanwhile.
    ///
    /// `id_info` is that of the matching entry of [`ID_TABLE`](Self::ID_TABLE), `None` when the user bound the device by
    /// `new_id` or `driver_override` and its class is not in the table.
    fn probe<'bound>(
        dev: &'bound Device<device::Core<'_>>,
        id_info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// Takes leave of `dev`; the private data is dropped after this. Process context, may sleep. Only needed for work
    /// that wants the device; the rest belongs into `Drop` of the data.
    fn unbind<'bound>(dev: &'bound Device<device::Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (dev, this);
    }

    /// The system is about to hibernate. Process context, may sleep; device interrupts are off but the hypervisor's.
    /// The driver closes its channel: the image must not hold an open one.
    ///
    /// # Errors
    /// Any error stops the hibernation. The default refuses, since a driver that does not know about it would lose its
    /// channel.
    fn suspend<'bound>(
        dev: &'bound Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let _ = (dev, this);
        Err(compat::eopnotsupp())
    }

    /// The system is back from hibernation, or the hibernation was given up. Process context, may sleep. The driver takes
    /// the channel again and opens it.
    ///
    /// # Errors
    /// The device stays bound but unusable.
    fn resume<'bound>(
        dev: &'bound Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let _ = (dev, this);
        Err(compat::eopnotsupp())
    }
}

type ProbeFn = unsafe fn(dev: &Device<device::CoreInternal<'_>>, id: *const RawId) -> Result;
type RemoveFn = unsafe fn(dev: &Device<device::CoreInternal<'_>>);
type PmFn = unsafe fn(dev: &Device<device::CoreInternal<'_>>) -> Result;

/// Class GUIDs that the user gave a driver by `new_id`.
#[pin_data]
pub(crate) struct DynamicIds {
    #[pin]
    pub(crate) guids: Mutex<KVec<Guid>>,
}

impl DynamicIds {
    /// None yet.
    // Not in the generic code above it, of which each driver's module has a copy: lockdep takes a name elsewhere in memory
    // for another name, and the class is one.
    #[inline(never)]
    fn new() -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self { guids <- new_mutex!(KVec::new(), "hv_vmbus_rs::new_id") }),
            GFP_KERNEL,
        )
    }
}

/// What a driver is to the bus (C: `struct hv_driver`).
#[repr(C)]
#[doc(hidden)]
pub struct RawDriver {
    pub(crate) driver: bindings::device_driver,
    pub(crate) ids: *const RawId,
    pub(crate) dynamic_ids: Option<Pin<KBox<DynamicIds>>>,
    pub(crate) probe: Option<ProbeFn>,
    pub(crate) remove: Option<RemoveFn>,
    pub(crate) suspend: Option<PmFn>,
    pub(crate) resume: Option<PmFn>,
}

impl Default for RawDriver {
    fn default() -> Self {
        Self {
            driver: bindings::device_driver::default(),
            ids: ptr::null(),
            dynamic_ids: None,
            probe: None,
            remove: None,
            suspend: None,
            resume: None,
        }
    }
}

impl RawDriver {
    /// The driver that embeds `drv`.
    ///
    /// # Safety
    /// `drv` is the `driver` field of a registered `RawDriver`, which stays registered for `'a`.
    pub(crate) unsafe fn from_core<'a>(drv: *const bindings::device_driver) -> &'a Self {
        const { assert!(offset_of!(RawDriver, driver) == 0) };
        // SAFETY: The field comes first, and the driver lives for `'a` by the requirement.
        unsafe { &*drv.cast() }
    }

    /// The entry of the static table for `class`; null when there is none.
    pub(crate) fn static_id(&self, class: &Guid) -> *const RawId {
        let mut id = self.ids;
        if id.is_null() {
            return id;
        }
        loop {
            // SAFETY: `ids` points to an array that ends with an all-zero entry, and the walk stops there.
            let guid = unsafe { (*id).guid };
            if Guid(guid).is_zero() {
                return ptr::null();
            }
            if Guid(guid) == *class {
                return id;
            }
            // SAFETY: This was not the last entry.
            id = unsafe { id.add(1) };
        }
    }

    /// Whether the user added `class` by `new_id`.
    pub(crate) fn has_dynamic_id(&self, class: &Guid) -> bool {
        self.dynamic_ids
            .as_ref()
            .is_some_and(|d| d.guids.lock().contains(class))
    }
}

/// Hangs a [`Driver`] on the driver core. See "Implementing Bus Devices" in [`kernel::device`].
pub struct Adapter<T: Driver>(PhantomData<T>);

// SAFETY: `RawDriver` is `repr(C)`, `DriverData` is what `probe_callback` stores, the offset is that of the field.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = RawDriver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(RawDriver, driver);
}

// SAFETY: `unregister` undoes `register`.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        reg: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        let dynamic_ids = DynamicIds::new()?;
        let drv = reg.get();
        // SAFETY: `reg` is valid, and nobody else knows of it before it is registered.
        unsafe {
            (*drv).driver.name = T::NAME.as_char_ptr();
            (*drv).driver.owner = module.as_ptr();
            (*drv).driver.mod_name = name.as_char_ptr();
            if T::PROBE_IN_ORDER {
                (*drv).driver.probe_type = bindings::probe_type_PROBE_FORCE_SYNCHRONOUS;
            }
            (*drv).ids = T::ID_TABLE.as_ptr();
            (*drv).dynamic_ids = Some(dynamic_ids);
            (*drv).probe = Some(Self::probe_callback);
            (*drv).remove = Some(Self::remove_callback);
            (*drv).suspend = Some(Self::suspend_callback);
            (*drv).resume = Some(Self::resume_callback);
        }
        // SAFETY: The fields are set, and `reg` stays pinned and valid until `unregister` by the caller's promise.
        let result = unsafe { bus::register_driver(drv) };
        if result.is_err() {
            // SAFETY: The driver core does not know the driver (any more).
            unsafe { (*drv).dynamic_ids = None };
        }
        result
    }

    unsafe fn unregister(reg: &Opaque<Self::DriverType>) {
        // SAFETY: `reg` was registered by the caller's promise.
        unsafe { bindings::driver_unregister(&raw mut (*reg.get()).driver) };
        // SAFETY: Nobody knows of the driver any more.
        unsafe { (*reg.get()).dynamic_ids = None };
    }
}

impl<T: Driver> Adapter<T> {
    /// # Safety
    /// `dev` is being bound to this driver; `id` is null or points into `T::ID_TABLE`.
    unsafe fn probe_callback(dev: &Device<device::CoreInternal<'_>>, id: *const RawId) -> Result {
        // SAFETY: By the requirement.
        let info = unsafe { compat::id_info(T::ID_TABLE, id.cast::<DeviceId>()) };
        let data = T::probe(dev, info);
        dev.as_ref().set_drvdata(data)
    }

    /// # Safety
    /// `dev` was bound to this driver by a successful `probe_callback`.
    unsafe fn remove_callback(dev: &Device<device::CoreInternal<'_>>) {
        // SAFETY: `probe_callback` stored data of this type, and the device is not unbound yet.
        let data = unsafe { dev.as_ref().drvdata_borrow::<T::Data<'_>>() };
        T::unbind(dev, data);
    }

    /// # Safety
    /// As for `remove_callback`.
    unsafe fn suspend_callback(dev: &Device<device::CoreInternal<'_>>) -> Result {
        // SAFETY: As in `remove_callback`.
        let data = unsafe { dev.as_ref().drvdata_borrow::<T::Data<'_>>() };
        T::suspend(dev, data)
    }

    /// # Safety
    /// As for `remove_callback`.
    unsafe fn resume_callback(dev: &Device<device::CoreInternal<'_>>) -> Result {
        // SAFETY: As in `remove_callback`.
        let data = unsafe { dev.as_ref().drvdata_borrow::<T::Data<'_>>() };
        T::resume(dev, data)
    }
}

/// The bus' `match` callback.
///
/// # Safety
/// Called by the driver core, with a device and a driver of this bus.
pub(crate) unsafe extern "C" fn match_callback(
    dev: *mut bindings::device,
    drv: *const bindings::device_driver,
) -> c_int {
    // SAFETY: By the requirement; the driver core keeps both during the call.
    let (vdev, vdrv) = unsafe {
        (
            Device::<device::Normal>::from_core(dev),
            RawDriver::from_core(drv),
        )
    };
    // SAFETY: As above.
    match unsafe { crate::ffi::hv_rs_match_driver_override(dev, drv) } {
        0 => 0,
        over if over > 0 => 1,
        _ => {
            let class = vdev.class();
            c_int::from(vdrv.has_dynamic_id(&class) || !vdrv.static_id(&class).is_null())
        }
    }
}

/// The bus' `probe` callback.
///
/// # Safety
/// Called by the driver core, with a device of this bus that has a driver of this bus.
pub(crate) unsafe extern "C" fn probe_callback(dev: *mut bindings::device) -> c_int {
    // SAFETY: By the requirement.
    let vdev = unsafe { Device::<device::CoreInternal<'_>>::from_core(dev) };
    // SAFETY: By the requirement.
    let vdrv = unsafe { RawDriver::from_core((*dev).driver) };
    from_result(|| {
        let Some(probe) = vdrv.probe else {
            return Err(ENODEV);
        };
        // SAFETY: The driver core is binding the two, and the id comes from the driver's own table.
        let result = unsafe { probe(vdev, vdrv.static_id(&vdev.class())) };
        if let Err(e) = result {
            // A channel that the driver opened and forgot must not outlive the failed probe.
            vdev.close_channels();
            return Err(e);
        }
        Ok(0)
    })
}

/// The bus' `remove` callback. The driver core drops the private data right after it.
///
/// # Safety
/// Called by the driver core, with a bound device of this bus.
pub(crate) unsafe extern "C" fn remove_callback(dev: *mut bindings::device) {
    // SAFETY: By the requirement.
    let vdev = unsafe { Device::<device::CoreInternal<'_>>::from_core(dev) };
    // SAFETY: By the requirement.
    let drv = unsafe { (*dev).driver };
    if drv.is_null() {
        return;
    }
    // SAFETY: By the requirement.
    let vdrv = unsafe { RawDriver::from_core(drv) };
    if let Some(remove) = vdrv.remove {
        // SAFETY: The device is bound to this driver.
        unsafe { remove(vdev) };
    }
    // From here on no callback of the driver runs, whatever it did with its channels.
    vdev.close_channels();
}

/// Runs a power management callback of the driver of `dev`; devices without a driver have nothing to do.
///
/// # Safety
/// Called by the driver core, with a device of this bus, the device lock held.
unsafe fn pm(dev: *mut bindings::device, callback: fn(&RawDriver) -> Option<PmFn>) -> c_int {
    // SAFETY: By the requirement.
    let drv = unsafe { (*dev).driver };
    if drv.is_null() {
        return 0;
    }
    // SAFETY: By the requirement.
    let (vdev, vdrv) = unsafe {
        (
            Device::<device::CoreInternal<'_>>::from_core(dev),
            RawDriver::from_core(drv),
        )
    };
    from_result(|| {
        if let Some(callback) = callback(vdrv) {
            // SAFETY: The device is bound to this driver.
            unsafe { callback(vdev)? };
        }
        Ok(0)
    })
}

/// The bus' callback before an image is made or the machine is left to one.
///
/// # Safety
/// See `pm`.
pub(crate) unsafe extern "C" fn suspend_callback(dev: *mut bindings::device) -> c_int {
    // SAFETY: By the requirement.
    unsafe { pm(dev, |drv| drv.suspend) }
}

/// The bus' callback after that.
///
/// # Safety
/// See `pm`.
pub(crate) unsafe extern "C" fn resume_callback(dev: *mut bindings::device) -> c_int {
    // SAFETY: By the requirement.
    unsafe { pm(dev, |drv| drv.resume) }
}
