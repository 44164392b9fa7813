// SPDX-License-Identifier: GPL-2.0

//! What ethtool shows and changes.

use core::marker::PhantomData;
use kernel::{
    ffi::{c_int, c_void},
    fmt,
    prelude::*,
};

use super::{
    device::{errno, NetDriver, Rtnl},
    ffi,
};

/// Queues: how many of them there are, and how many there can be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Channels {
    pub(crate) max: u32,
    pub(crate) count: u32,
}

/// Places for packets in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rings {
    pub(crate) rx_max: u32,
    pub(crate) tx_max: u32,
    pub(crate) rx: u32,
    pub(crate) tx: u32,
}

/// A kind of packet (`TCP_V4_FLOW` and its like).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow(pub(crate) u32);

impl Flow {
    pub(crate) const TCP4: Self = Self(0x01);
    pub(crate) const UDP4: Self = Self(0x02);
    pub(crate) const TCP6: Self = Self(0x05);
    pub(crate) const UDP6: Self = Self(0x06);
    pub(crate) const IPV4: Self = Self(0x10);
    pub(crate) const IPV6: Self = Self(0x11);
}

/// Addresses count for a flow's hash (`RXH_IP_SRC | RXH_IP_DST`).
pub(crate) const HASH_L3: u32 = 0x30;
/// Ports count, too (`RXH_L4_B_0_1 | RXH_L4_B_2_3`).
pub(crate) const HASH_L4: u32 = 0xc0;

/// What a driver tells ethtool. All in process context, under RTNL.
pub(crate) trait Ethtool {
    /// Fills in the registers; returns the version of their layout.
    fn registers(&self, registers: &mut [u32]) -> u32;

    fn message_level(&self) -> u32;

    fn set_message_level(&self, level: u32);

    /// How many statistics there are. Does not change under RTNL.
    fn stat_count(&self) -> u32;

    /// Their names, in order.
    fn stat_names(&self, names: &mut Names<'_>);

    /// Their values.
    fn stat_values(&self, values: &mut [u64]);

    fn channels(&self) -> Channels;

    /// # Errors
    /// They stay as they were.
    fn set_channels(&self, rtnl: &Rtnl, count: u32) -> Result;

    /// Entries of the table by which the hash of a packet gives its receive queue.
    fn rss_table_size(&self) -> u32;

    /// That table and the key of the hash, as far as they are asked for.
    ///
    /// # Errors
    /// `ENODEV`.
    fn rss(&self, table: Option<&mut [u32]>, key: Option<&mut [u8]>) -> Result;

    /// Changes what is given of them.
    ///
    /// # Errors
    /// They stay as they were.
    fn set_rss(&self, rtnl: &Rtnl, table: Option<&[u32]>, key: Option<&[u8]>) -> Result;

    /// What counts for the hash of a flow.
    fn hash_fields(&self, flow: Flow) -> u32;

    /// # Errors
    /// `EOPNOTSUPP`.
    fn set_hash_fields(&self, flow: Flow, fields: u32) -> Result;

    /// Mbit/s, or `u32::MAX`, and whether duplex (`DUPLEX_*`).
    fn link(&self) -> (u32, u8);

    fn set_link(&self, speed: u32, duplex: u8);

    fn rings(&self) -> Rings;

    /// # Errors
    /// They stay as they were.
    fn set_rings(&self, rtnl: &Rtnl, rx: u32, tx: u32) -> Result;
}

/// Names of 32 bytes each.
pub(crate) struct Names<'a> {
    left: core::slice::IterMut<'a, [u8; 32]>,
}

impl Names<'_> {
    /// Adds a name; what is too long is cut.
    pub(crate) fn add(&mut self, name: fmt::Arguments<'_>) {
        let Some(place) = self.left.next() else {
            return;
        };
        *place = [0; 32];
        // Zero at the end, always.
        let (text, _) = place.split_at_mut(31);
        let mut writer = Writer { left: text };
        let _ = fmt::Write::write_fmt(&mut writer, name);
    }
}

struct Writer<'a> {
    left: &'a mut [u8],
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let len = s.len().min(self.left.len());
        let left = core::mem::take(&mut self.left);
        let (to, rest) = left.split_at_mut(len);
        for (to, from) in to.iter_mut().zip(s.bytes()) {
            *to = from;
        }
        self.left = rest;
        Ok(())
    }
}

/// The operations of a driver as C calls them.
pub(super) struct Ops<T>(PhantomData<T>);

impl<T: NetDriver> Ops<T> {
    /// # Safety
    /// `data` is a `T` that lives for `'a`.
    unsafe fn driver<'a>(data: *const c_void) -> &'a T {
        // SAFETY: By the requirement.
        unsafe { &*data.cast::<T>() }
    }
}

#[allow(clippy::missing_safety_doc)] // Of all of them: see `ffi::RawOps`; `data` is a `T`.
impl<T: NetDriver> Ops<T> {
    pub(super) unsafe extern "C" fn regs(data: *const c_void, regs: *mut u32, count: u32) -> u32 {
        // SAFETY: By the requirement.
        let (driver, regs) = unsafe {
            regs.write_bytes(0, count as usize);
            (
                Self::driver(data),
                core::slice::from_raw_parts_mut(regs, count as usize),
            )
        };
        driver.registers(regs)
    }

    pub(super) unsafe extern "C" fn msg_level(data: *const c_void) -> u32 {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.message_level()
    }

    pub(super) unsafe extern "C" fn set_msg_level(data: *const c_void, level: u32) {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.set_message_level(level);
    }

    pub(super) unsafe extern "C" fn stat_count(data: *const c_void) -> u32 {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.stat_count()
    }

    pub(super) unsafe extern "C" fn stat_names(
        data: *const c_void,
        names: *mut [u8; 32],
        count: u32,
    ) {
        // SAFETY: By the requirement.
        let (driver, names) = unsafe {
            names.write_bytes(0, count as usize);
            (
                Self::driver(data),
                core::slice::from_raw_parts_mut(names, count as usize),
            )
        };
        driver.stat_names(&mut Names {
            left: names.iter_mut(),
        });
    }

    pub(super) unsafe extern "C" fn stat_values(data: *const c_void, values: *mut u64, count: u32) {
        // SAFETY: By the requirement.
        let (driver, values) = unsafe {
            values.write_bytes(0, count as usize);
            (
                Self::driver(data),
                core::slice::from_raw_parts_mut(values, count as usize),
            )
        };
        driver.stat_values(values);
    }

    pub(super) unsafe extern "C" fn channels(data: *const c_void, out: *mut ffi::RawChannels) {
        // SAFETY: By the requirement.
        let channels = unsafe { Self::driver(data) }.channels();
        // SAFETY: By the requirement.
        unsafe {
            out.write(ffi::RawChannels {
                max: channels.max,
                count: channels.count,
            })
        };
    }

    pub(super) unsafe extern "C" fn set_channels(data: *const c_void, count: u32) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        errno(driver.set_channels(&rtnl, count))
    }

    pub(super) unsafe extern "C" fn rx_rings(data: *const c_void) -> u32 {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.channels().count
    }

    pub(super) unsafe extern "C" fn rss_table_size(data: *const c_void) -> u32 {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.rss_table_size()
    }

    pub(super) unsafe extern "C" fn rss(
        data: *const c_void,
        table: *mut u32,
        entries: u32,
        key: *mut u8,
        key_len: u32,
    ) -> c_int {
        // SAFETY: By the requirement.
        let (driver, table, key) = unsafe {
            (
                Self::driver(data),
                slice_mut(table, entries),
                slice_mut(key, key_len),
            )
        };
        errno(driver.rss(table, key))
    }

    pub(super) unsafe extern "C" fn set_rss(
        data: *const c_void,
        table: *const u32,
        entries: u32,
        key: *const u8,
        key_len: u32,
    ) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl, table, key) = unsafe {
            (
                Self::driver(data),
                Rtnl::assume(),
                slice(table, entries),
                slice(key, key_len),
            )
        };
        errno(driver.set_rss(&rtnl, table, key))
    }

    pub(super) unsafe extern "C" fn hash_fields(data: *const c_void, flow: u32) -> u32 {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.hash_fields(Flow(flow))
    }

    pub(super) unsafe extern "C" fn set_hash_fields(
        data: *const c_void,
        flow: u32,
        fields: u32,
    ) -> c_int {
        // SAFETY: By the requirement.
        errno(unsafe { Self::driver(data) }.set_hash_fields(Flow(flow), fields))
    }

    pub(super) unsafe extern "C" fn speed(data: *const c_void) -> u32 {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.link().0
    }

    pub(super) unsafe extern "C" fn duplex(data: *const c_void) -> u8 {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.link().1
    }

    pub(super) unsafe extern "C" fn set_link(data: *const c_void, speed: u32, duplex: u8) -> c_int {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.set_link(speed, duplex);
        0
    }

    pub(super) unsafe extern "C" fn ring(data: *const c_void, out: *mut ffi::RawRing) {
        // SAFETY: By the requirement.
        let rings = unsafe { Self::driver(data) }.rings();
        let raw = ffi::RawRing {
            rx_max: rings.rx_max,
            tx_max: rings.tx_max,
            rx: rings.rx,
            tx: rings.tx,
        };
        // SAFETY: By the requirement.
        unsafe { out.write(raw) };
    }

    pub(super) unsafe extern "C" fn set_ring(data: *const c_void, rx: u32, tx: u32) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        errno(driver.set_rings(&rtnl, rx, tx))
    }
}

/// # Safety
/// `start` is null, or `len` elements from it on may be written during `'a`.
unsafe fn slice_mut<'a, E: Default>(start: *mut E, len: u32) -> Option<&'a mut [E]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: By the requirement; zero is a value of the numbers that this is used with.
    unsafe { start.write_bytes(0, len as usize) };
    // SAFETY: By the requirement.
    Some(unsafe { core::slice::from_raw_parts_mut(start, len as usize) })
}

/// # Safety
/// `start` is null, or `len` elements from it on are valid and not written during `'a`.
unsafe fn slice<'a, E>(start: *const E, len: u32) -> Option<&'a [E]> {
    // SAFETY: By the requirement.
    (!start.is_null()).then(|| unsafe { core::slice::from_raw_parts(start, len as usize) })
}
