// SPDX-License-Identifier: GPL-2.0

//! Contents of the sysfs files. Names and modes are in `sysfs_files.c`; what the files say is that of the C driver, which users
//! and tools (`lsvmbus`, udev rules, cloud agents) read.

use core::{
    ffi::CStr as CoreCStr,
    fmt::Write,
    mem::offset_of,
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
};
use kernel::{
    bindings, device,
    error::to_result,
    ffi::{c_char, c_int},
    prelude::*,
    str::Formatter,
    sync::Arc,
};
use vmbus_proto::{
    guid::Guid,
    ring::{ControlWord, RingMemory},
};

use crate::{chan::Chan, device::Device, driver::RawDriver, ffi, memory::PAGE, ring::RingView};

// The kernel's types have members without size in some configurations.
#[allow(improper_ctypes)]
unsafe extern "C" {
    safe fn hv_rs_bus_groups() -> *mut *const bindings::attribute_group;
    safe fn hv_rs_drv_groups() -> *mut *const bindings::attribute_group;
    safe fn hv_rs_dev_groups() -> *mut *const bindings::attribute_group;
    fn hv_rs_channel_add(
        kobj: *mut bindings::kobject,
        parent: *mut bindings::kset,
        number: u32,
    ) -> c_int;
    fn hv_rs_channel_del(kobj: *mut bindings::kobject);
    fn hv_rs_channels_kset(dev: *mut bindings::device) -> *mut bindings::kset;
}

/// Attribute groups of the bus, its drivers and its devices.
pub(crate) fn groups() -> [*mut *const bindings::attribute_group; 3] {
    [hv_rs_bus_groups(), hv_rs_drv_groups(), hv_rs_dev_groups()]
}

/// The vendor number that all devices show: that of PCI for Microsoft.
const VENDOR: u32 = 0x1414;

/// Writes into a sysfs buffer, which is a page.
///
/// # Safety
/// `buf` is the buffer that sysfs gave.
unsafe fn emit(buf: *mut c_char, f: impl FnOnce(&mut Formatter<'_>) -> Result) -> isize {
    // SAFETY: By the requirement nobody else uses the page. One byte stays for a terminating zero.
    let mut out = Formatter::new(unsafe { core::slice::from_raw_parts_mut(buf.cast(), PAGE - 1) });
    match f(&mut out) {
        Ok(()) => out.bytes_written().min(PAGE - 1) as isize,
        Err(e) => e.to_errno() as isize,
    }
}

macro_rules! line {
    ($out:expr, $($arg:tt)*) => {
        writeln!($out, $($arg)*).map_err(|_| ENOSPC)
    };
}

/// # Safety
/// `name` is a string of `sysfs_files.c`.
unsafe fn name<'a>(name: *const c_char) -> &'a [u8] {
    // SAFETY: By the requirement.
    unsafe { CoreCStr::from_char_ptr(name) }.to_bytes()
}

/// # Safety
/// Called by `sysfs_files.c` on behalf of sysfs.
#[no_mangle]
unsafe extern "C" fn hv_rs_bus_show(_name: *const c_char, buf: *mut c_char) -> isize {
    // SAFETY: By the requirement.
    unsafe {
        emit(buf, |out| {
            line!(out, "{}", u32::from(ffi::hv_rs_hibernation_supported()))
        })
    }
}

/// `new_id` and `remove_id`: a GUID.
///
/// # Safety
/// Called by `sysfs_files.c` on behalf of sysfs, with a driver of this bus.
#[no_mangle]
unsafe extern "C" fn hv_rs_driver_store(
    drv: *mut bindings::device_driver,
    file: *const c_char,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the requirement.
    let (file, text) = unsafe {
        (
            name(file),
            core::slice::from_raw_parts(buf.cast::<u8>(), count),
        )
    };
    // SAFETY: By the requirement; sysfs keeps the driver during the call.
    let driver = unsafe { RawDriver::from_core(drv) };
    let store = || -> Result {
        // As the C driver: what follows the GUID does not matter.
        let text = core::str::from_utf8(text.get(..36).ok_or(EINVAL)?).map_err(|_| EINVAL)?;
        let class = Guid::parse(text).map_err(|_| EINVAL)?;
        let ids = driver.dynamic_ids.as_ref().ok_or(ENODEV)?;
        if file == b"new_id" {
            let mut guids = ids.guids.lock();
            if guids.contains(&class) {
                return Err(EEXIST);
            }
            guids.push(class, GFP_KERNEL)?;
            drop(guids);
            // SAFETY: By the requirement.
            to_result(unsafe { bindings::driver_attach(drv) })
        } else {
            let mut guids = ids.guids.lock();
            let before = guids.len();
            guids.retain(|g| *g != class);
            if guids.len() == before {
                return Err(ENODEV);
            }
            Ok(())
        }
    };
    store().map_or_else(|e| e.to_errno() as isize, |()| count as isize)
}

/// # Safety
/// Called by `sysfs_files.c`, with a device of this bus.
#[no_mangle]
unsafe extern "C" fn hv_rs_device_has_monitor(dev: *mut bindings::device) -> bool {
    // SAFETY: By the requirement.
    unsafe { Device::<device::Normal>::from_core(dev) }
        .chan()
        .monitor()
        .is_some()
}

/// # Safety
/// Called by `sysfs_files.c` on behalf of sysfs, with a device of this bus.
#[no_mangle]
unsafe extern "C" fn hv_rs_device_show(
    dev: *mut bindings::device,
    file: *const c_char,
    buf: *mut c_char,
) -> isize {
    // SAFETY: By the requirement; sysfs keeps the device during the call.
    let (dev, file) = unsafe { (Device::<device::Normal>::from_core(dev), name(file)) };
    // SAFETY: By the requirement.
    unsafe { emit(buf, |out| show_device(dev.chan(), file, out)) }
}

fn show_device(chan: &Arc<Chan>, file: &[u8], out: &mut Formatter<'_>) -> Result {
    let offer = chan.current_offer();
    match file {
        b"id" => line!(out, "{}", offer.relid),
        b"state" => line!(out, "{}", chan.state_number()),
        b"class_id" => line!(out, "{{{}}}", offer.class_id),
        b"device_id" => line!(out, "{{{}}}", offer.instance_id),
        b"modalias" => line!(out, "vmbus:{}", offer.class_id.memory_hex()),
        b"vendor" => line!(out, "{:#x}", VENDOR),
        b"device" => line!(out, "{:#x}", chan.class.device_type.0),
        // SAFETY: The CPU exists.
        b"numa_node" => line!(out, "{}", unsafe {
            ffi::hv_rs_cpu_to_node(chan.target_cpu())
        }),
        b"monitor_id" => line!(out, "{}", offer.monitor_id),
        b"channel_vp_mapping" => {
            for c in &chan.conn.channels()? {
                let sub = c.primary.as_ref().is_some_and(|p| Arc::ptr_eq(p, chan));
                if sub || Arc::ptr_eq(c, chan) {
                    line!(out, "{}:{}", c.relid(), c.target_cpu())?;
                }
            }
            Ok(())
        }
        _ => {
            if let Some(rest) = file.strip_prefix(b"server_monitor_") {
                return show_monitor(chan, false, rest, out);
            }
            if let Some(rest) = file.strip_prefix(b"client_monitor_") {
                return show_monitor(chan, true, rest, out);
            }
            if let Some(rest) = file.strip_prefix(b"out_") {
                return show_ring(chan, true, rest, out);
            }
            match file.strip_prefix(b"in_") {
                Some(rest) => show_ring(chan, false, rest, out),
                None => Err(EIO),
            }
        }
    }
}

fn show_monitor(chan: &Chan, to_host: bool, what: &[u8], out: &mut Formatter<'_>) -> Result {
    let position = chan.monitor().ok_or(ENODEV)?;
    let page = chan.conn.monitor_page(to_host);
    // SAFETY: All three are inside the page and aligned; the host may write them at any time.
    let (pending, latency, connection) = unsafe {
        (
            AtomicU32::from_ptr(page.add(position.pending_offset()).cast()).load(Ordering::Relaxed),
            AtomicU16::from_ptr(page.add(position.latency_offset()).cast()).load(Ordering::Relaxed),
            AtomicU32::from_ptr(page.add(position.parameter_offset()).cast())
                .load(Ordering::Relaxed),
        )
    };
    match what {
        b"pending" => line!(out, "{}", pending as i32),
        b"latency" => line!(out, "{}", latency),
        // 24 bits.
        b"conn_id" => line!(out, "{}", connection & 0xff_ffff),
        _ => Err(EIO),
    }
}

/// Bytes to read and to write of a ring.
fn available(ring: &RingView) -> (u32, u32) {
    let used = ring.used();
    (used, ring.data_size() - used)
}

fn show_ring(chan: &Chan, outgoing: bool, what: &[u8], out: &mut Formatter<'_>) -> Result {
    // Read first, format after: the section must be short.
    let value = chan
        .with_core(|core| {
            let ring = core.view(outgoing);
            Some(match what {
                b"intr_mask" => ring.load(ControlWord::InterruptMask),
                b"read_index" => ring.load(ControlWord::ReadIndex),
                b"write_index" => ring.load(ControlWord::WriteIndex),
                b"read_bytes_avail" => available(&ring).0,
                b"write_bytes_avail" => available(&ring).1,
                _ => return None,
            })
        })
        // Not open.
        .ok_or(EINVAL)?;
    line!(out, "{}", value.ok_or(EIO)?)
}

/// The directory `channels` of a device, with one directory for its primary channel. Removed on drop.
pub(crate) struct ChannelDir {
    kset: NonNull<bindings::kset>,
    channel: NonNull<ChannelObject>,
}

/// A channel as sysfs sees it.
///
/// # Invariants
/// Released by `hv_rs_channel_release` with its last reference.
#[repr(C)]
struct ChannelObject {
    kobj: bindings::kobject,
    chan: Arc<Chan>,
}

impl ChannelObject {
    /// Adds `chan` below `kset`. To be taken away with `hv_rs_channel_del`.
    ///
    /// # Safety
    /// `kset` is valid, and stays so while the object is in it.
    unsafe fn add(kset: NonNull<bindings::kset>, chan: &Arc<Chan>) -> Result<NonNull<Self>> {
        let object = KBox::new(
            Self {
                kobj: bindings::kobject::default(),
                chan: chan.clone(),
            },
            GFP_KERNEL,
        )?;
        let object = KBox::into_raw(object);
        // SAFETY: The object is zeroed and ours; from here on it is released by its reference count.
        to_result(unsafe {
            hv_rs_channel_add(&raw mut (*object).kobj, kset.as_ptr(), chan.relid().0)
        })?;
        // SAFETY: From `KBox::into_raw`.
        Ok(unsafe { NonNull::new_unchecked(object) })
    }
}

impl ChannelDir {
    /// # Safety
    /// `dev` is registered, and stays so until the directory is dropped.
    pub(crate) unsafe fn new(dev: NonNull<Device>, chan: &Arc<Chan>) -> Result<Self> {
        // SAFETY: By the requirement; a `Device` starts with its `struct device`.
        let kset = unsafe { hv_rs_channels_kset(dev.as_ptr().cast()) };
        let kset = NonNull::new(kset).ok_or(ENOMEM)?;
        // SAFETY: The set was just made; it goes after the channel.
        match unsafe { ChannelObject::add(kset, chan) } {
            Ok(channel) => Ok(Self { kset, channel }),
            Err(e) => {
                // SAFETY: The set was just made.
                unsafe { bindings::kset_unregister(kset.as_ptr()) };
                Err(e)
            }
        }
    }
}

impl Drop for ChannelDir {
    fn drop(&mut self) {
        // SAFETY: Added by `new`, removed once.
        unsafe {
            hv_rs_channel_del(self.channel.as_ptr().cast());
            bindings::kset_unregister(self.kset.as_ptr());
        }
    }
}

/// The directory of a subchannel in its device's `channels`. Removed on drop, which comes before that of [`ChannelDir`].
pub(crate) struct SubchannelDir(NonNull<ChannelObject>);

impl SubchannelDir {
    pub(crate) fn new(parent: &ChannelDir, chan: &Arc<Chan>) -> Result<Self> {
        // SAFETY: The set exists as long as `parent`, which is dropped later.
        let object = unsafe { ChannelObject::add(parent.kset, chan) }?;
        Ok(Self(object))
    }

    /// Whether it is that of `chan`.
    pub(crate) fn is_of(&self, chan: &Arc<Chan>) -> bool {
        // SAFETY: The object has a reference until drop; the field is never changed.
        Arc::ptr_eq(unsafe { &(*self.0.as_ptr()).chan }, chan)
    }
}

impl Drop for SubchannelDir {
    fn drop(&mut self) {
        // SAFETY: Added by `new`, removed once.
        unsafe { hv_rs_channel_del(self.0.as_ptr().cast()) };
    }
}

/// # Safety
/// `kobj` is the first field of a `ChannelObject` that stays during `'a`.
unsafe fn channel<'a>(kobj: *mut bindings::kobject) -> &'a Arc<Chan> {
    const { assert!(offset_of!(ChannelObject, kobj) == 0) };
    // SAFETY: By the requirement.
    unsafe { &(*kobj.cast::<ChannelObject>()).chan }
}

/// # Safety
/// Called by the driver core for the last reference.
#[no_mangle]
unsafe extern "C" fn hv_rs_channel_release(kobj: *mut bindings::kobject) {
    // SAFETY: Allocated by `ChannelDir::new`.
    drop(unsafe { KBox::from_raw(kobj.cast::<ChannelObject>()) });
}

/// # Safety
/// Called by `sysfs_files.c`, with a channel's object.
#[no_mangle]
unsafe extern "C" fn hv_rs_channel_has_monitor(kobj: *mut bindings::kobject) -> bool {
    // SAFETY: By the requirement.
    unsafe { channel(kobj) }.monitor().is_some()
}

/// # Safety
/// Called by `sysfs_files.c` on behalf of sysfs, with a channel's object.
#[no_mangle]
unsafe extern "C" fn hv_rs_channel_show(
    kobj: *mut bindings::kobject,
    file: *const c_char,
    buf: *mut c_char,
) -> isize {
    // SAFETY: By the requirement; sysfs keeps the object during the call.
    let (chan, file) = unsafe { (channel(kobj), name(file)) };
    // SAFETY: By the requirement.
    unsafe { emit(buf, |out| show_channel(chan, file, out)) }
}

fn show_channel(chan: &Chan, file: &[u8], out: &mut Formatter<'_>) -> Result {
    let count = |c: &core::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    match file {
        b"out_mask" => show_ring(chan, true, b"intr_mask", out),
        b"in_mask" => show_ring(chan, false, b"intr_mask", out),
        b"read_avail" => show_ring(chan, false, b"read_bytes_avail", out),
        b"write_avail" => show_ring(chan, true, b"write_bytes_avail", out),
        b"cpu" => line!(out, "{}", chan.target_cpu()),
        b"pending" => show_monitor(chan, true, b"pending", out),
        b"latency" => show_monitor(chan, true, b"latency", out),
        b"interrupts" => line!(out, "{}", count(&chan.interrupts)),
        b"events" => line!(out, "{}", count(&chan.signals)),
        b"intr_in_full" => line!(out, "{}", count(&chan.intr_in_full)),
        b"intr_out_empty" => line!(out, "{}", count(&chan.intr_out_empty)),
        b"out_full_first" => line!(out, "{}", count(&chan.out_full_first)),
        b"out_full_total" => line!(out, "{}", count(&chan.out_full_total)),
        b"monitor_id" => line!(out, "{}", chan.current_offer().monitor_id),
        b"subchannel_id" => line!(out, "{}", chan.offer.subchannel_index),
        _ => Err(EIO),
    }
}

/// `cpu`: moves the channel's interrupts.
///
/// # Safety
/// Called by `sysfs_files.c` on behalf of sysfs, with a channel's object.
#[no_mangle]
unsafe extern "C" fn hv_rs_channel_store(
    kobj: *mut bindings::kobject,
    file: *const c_char,
    buf: *const c_char,
    count: usize,
) -> isize {
    // SAFETY: By the requirement; sysfs keeps the object during the call.
    let (chan, file, text) = unsafe {
        (
            channel(kobj),
            name(file),
            core::slice::from_raw_parts(buf.cast::<u8>(), count),
        )
    };
    let store = || -> Result {
        if file != b"cpu" {
            return Err(EIO);
        }
        let cpu = core::str::from_utf8(text)
            .ok()
            .and_then(|t| t.trim().parse::<u32>().ok())
            .ok_or(EIO)?;
        let _cpus = crate::cpus::read_lock();
        chan.set_cpu(cpu)
    };
    store().map_or_else(|e| e.to_errno() as isize, |()| count as isize)
}
