// SPDX-License-Identifier: GPL-2.0

//! Network devices: registration, state that the stack shows, and the driver's part.

use core::{marker::PhantomData, mem::ManuallyDrop, ptr::NonNull};
use kernel::{
    device::{Bound, Device},
    error::to_result,
    ffi::{c_int, c_void},
    prelude::*,
    sync::Arc,
    types::NotThreadSafe,
};

use super::{
    ethtool::{self, Ethtool},
    ffi,
    packet::{SkbRef, TxPacket},
    queue::{TxHeld, TxQueue},
    xdp::{Program, SetProgram, XdpFrames},
};

/// An Ethernet address.
pub(crate) type Address = [u8; 6];

/// The driver of a network device.
///
/// Unless it says otherwise, a method runs in process context under RTNL.
pub(crate) trait NetDriver: Ethtool + Send + Sync + 'static {
    /// The interface goes up.
    ///
    /// # Errors
    /// It stays down.
    fn open(&self, rtnl: &Rtnl) -> Result;

    /// The interface goes down. Called after a successful [`open`](Self::open) only.
    fn stop(&self, rtnl: &Rtnl) -> Result;

    /// Sends a packet. Bottom halves off, the queue's lock held.
    ///
    /// # Errors
    /// The packet, when there is no room: the queue was stopped, and the packet comes again when it is woken.
    fn transmit<'a>(
        &self,
        packet: TxPacket<'a>,
        queue: &mut TxHeld<'_>,
    ) -> Result<(), TxPacket<'a>>;

    /// The queue for a packet whose socket has none yet. Any number is fine. Bottom halves off.
    fn select_queue(&self, packet: &SkbRef<'_>) -> u16;

    /// Flags or addresses have changed that tell which packets to receive. Bottom halves off.
    fn set_rx_mode(&self);

    /// Changes the MTU, which is within the limits; [`NetDevice::set_mtu`] makes it known.
    ///
    /// # Errors
    /// The old one stays.
    fn change_mtu(&self, rtnl: &Rtnl, mtu: u32) -> Result;

    /// Changes the address, which is a valid one.
    ///
    /// # Errors
    /// The old one stays.
    fn set_address(&self, rtnl: &Rtnl, address: &Address) -> Result;

    /// Statistics. Any context.
    fn stats(&self, stats: &mut Stats);

    /// Of the features wanted, those that are possible now.
    fn fix_features(&self, rtnl: &Rtnl, wanted: Features) -> Features;

    /// Switches features on and off.
    ///
    /// # Errors
    /// They stay as they were.
    fn set_features(&self, rtnl: &Rtnl, features: Features) -> Result;

    /// A queue was stopped for seconds. Bottom halves off.
    fn tx_timeout(&self, queue: u32);

    /// Puts an XDP program in, or takes the present one out.
    ///
    /// # Errors
    /// With the reason for the user.
    fn set_xdp(&self, rtnl: &Rtnl, program: SetProgram<'_>) -> Result;

    /// Sends frames that were redirected here. Bottom halves off. Returns how many from the start on were taken.
    fn xdp_transmit(&self, frames: XdpFrames<'_>) -> u32;
}

/// Statistics of a device; see `struct rtnl_link_stats64`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) rx_packets: u64,
    pub(crate) tx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) multicast: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) tx_dropped: u64,
}

/// A feature (`NETIF_F_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Feature {
    ScatterGather = 0,
    Ipv4Checksum = 1,
    Ipv6Checksum = 2,
    RxChecksum = 3,
    Tso = 4,
    Tso6 = 5,
    Lro = 6,
    RxHash = 7,
    HighDma = 8,
    VlanTx = 9,
    VlanRx = 10,
}

/// A set of features; may hold some that [`Feature`] does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Features(u64);

impl Features {
    /// A set of those.
    pub(crate) fn of(features: &[Feature]) -> Self {
        features.iter().fold(Self(0), |set, f| set.with(*f))
    }

    fn bit(feature: Feature) -> u64 {
        ffi::hv_rs_net_feature(feature as u32)
    }

    pub(crate) fn has(self, feature: Feature) -> bool {
        self.0 & Self::bit(feature) != 0
    }

    pub(crate) fn with(self, feature: Feature) -> Self {
        Self(self.0 | Self::bit(feature))
    }

    pub(crate) fn without(self, feature: Feature) -> Self {
        Self(self.0 & !Self::bit(feature))
    }

    /// In this one or the other.
    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// In this one and not in the other.
    pub(crate) fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(super) fn raw(self) -> u64 {
        self.0
    }
}

/// Proof that RTNL, the lock of network configuration, is held.
pub(crate) struct Rtnl(NotThreadSafe);

impl Rtnl {
    /// Takes the lock. May sleep.
    pub(crate) fn lock() -> Self {
        ffi::rtnl_lock();
        Self(NotThreadSafe)
    }

    /// Takes the lock, if nobody has it. For work that somebody waits for who has it.
    pub(crate) fn try_lock() -> Option<Self> {
        // Made only with the lock: dropping it gives the lock back, whoever has it.
        ffi::hv_rs_rtnl_trylock().then(|| Self(NotThreadSafe))
    }

    /// # Safety
    /// The lock is held as long as the result exists.
    pub(super) unsafe fn assume() -> ManuallyDrop<Self> {
        ManuallyDrop::new(Self(NotThreadSafe))
    }
}

impl Drop for Rtnl {
    fn drop(&mut self) {
        // SAFETY: The lock is held.
        unsafe { ffi::rtnl_unlock() };
    }
}

/// How many queues a device should have that can have many.
pub(crate) fn default_queues() -> u32 {
    ffi::hv_rs_default_rss_queues()
}

/// The messages that a device logs (`NETIF_MSG_*`), by a module parameter `debug` and a default.
pub(crate) fn message_level(debug: i32, default: u32) -> u32 {
    ffi::hv_rs_net_msg_init(debug, default)
}

/// A network device. The memory stays as long as the value; methods on a device that is not registered (any more) do no harm.
///
/// # Invariants
/// `raw` is a device that is freed by nobody else.
pub(crate) struct NetDevice {
    raw: NonNull<ffi::NetDevice>,
}

// SAFETY: Network devices may be used from any thread.
unsafe impl Send for NetDevice {}
// SAFETY: The methods that need a lock ask for it.
unsafe impl Sync for NetDevice {}

impl NetDevice {
    /// A device whose DMA `parent` does, with up to `queues` queues, of which one is used at first. Packets to send have `headroom`
    /// bytes before them, mostly. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(parent: &Device<Bound>, queues: u32, headroom: u32) -> Result<Arc<Self>> {
        // CAST: `Device` is a transparent wrapper of `struct device`.
        let parent = core::ptr::from_ref(parent).cast_mut().cast::<c_void>();
        // SAFETY: `parent` is valid, and the driver core keeps it until its children are gone.
        let raw = unsafe { ffi::hv_rs_netdev_alloc(parent, queues, headroom) };
        // INVARIANT: Just allocated.
        let this = Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    pub(super) fn raw(&self) -> *mut ffi::NetDevice {
        self.raw.as_ptr()
    }

    /// Registers the device with the stack, which may call `driver` before this returns. A device can be registered once.
    ///
    /// # Errors
    /// Those of the network core.
    pub(crate) fn register<T: NetDriver>(
        self: Arc<Self>,
        _rtnl: &Rtnl,
        driver: Arc<T>,
    ) -> Result<Registration<T>> {
        let data = core::ptr::from_ref::<T>(&driver).cast::<c_void>();
        // SAFETY: The operations live for ever and take a `T`; `data` stays as long as the registration, which unregisters the
        // device first.
        to_result(unsafe {
            ffi::hv_rs_netdev_register(self.raw(), &raw const *Ops::<T>::OPS, data)
        })?;
        Ok(Registration {
            dev: self,
            _driver: driver,
        })
    }

    /// Sets MTU and limits of a device that is not registered yet.
    pub(crate) fn set_mtu_limits(&self, mtu: u32, min: u32, max: u32) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_set_mtu_limits(self.raw(), mtu, min, max) };
    }

    /// Makes a change of the MTU known.
    pub(crate) fn set_mtu(&self, _rtnl: &Rtnl, mtu: u32) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_set_mtu(self.raw(), mtu) };
    }

    pub(crate) fn mtu(&self) -> u32 {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_mtu(self.raw()) }
    }

    /// `IFF_PROMISC`, `IFF_ALLMULTI`, `IFF_BROADCAST`.
    pub(crate) fn rx_flags(&self) -> RxFlags {
        // SAFETY: By the type's invariant.
        let flags = unsafe { ffi::hv_rs_netdev_flags(self.raw()) };
        // SAFETY: By the type's invariant; looks at one number.
        let multicast = unsafe { ffi::hv_rs_netdev_has_multicast(self.raw()) };
        RxFlags {
            promiscuous: flags & 0x100 != 0,
            multicast: multicast || flags & 0x200 != 0,
            broadcast: flags & 0x2 != 0,
        }
    }

    /// Sets the address of a device that is not registered yet.
    pub(crate) fn set_address(&self, address: &Address) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_set_address(self.raw(), address) };
    }

    /// The features that are on.
    pub(crate) fn features(&self) -> Features {
        // SAFETY: By the type's invariant.
        Features(unsafe { ffi::hv_rs_netdev_features(self.raw()) })
    }

    /// The features that users may switch.
    pub(crate) fn hw_features(&self) -> Features {
        // SAFETY: By the type's invariant.
        Features(unsafe { ffi::hv_rs_netdev_hw_features(self.raw()) })
    }

    /// Switches features on and off without a word to the driver.
    pub(crate) fn set_features(&self, _rtnl: &Rtnl, features: Features) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_set_features(self.raw(), features.0) };
    }

    /// Sets the features that users may switch.
    pub(crate) fn set_hw_features(&self, _rtnl: &Rtnl, features: Features) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_set_hw_features(self.raw(), features.0) };
    }

    /// Sets the features that VLAN devices on top of it have.
    pub(crate) fn set_vlan_features(&self, _rtnl: &Rtnl, features: Features) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_set_vlan_features(self.raw(), features.0) };
    }

    /// Sets how much the device takes to cut into segments.
    pub(crate) fn set_tso_max(&self, _rtnl: &Rtnl, bytes: u32) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_set_tso_max(self.raw(), bytes) };
    }

    /// Whether the interface is up.
    pub(crate) fn is_running(&self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_running(self.raw()) }
    }

    /// Whether somebody has given the device a second name.
    pub(crate) fn has_alias(&self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_has_alias(self.raw()) }
    }

    /// Gives the device a second name. May sleep.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` when it is too long.
    pub(crate) fn set_alias(&self, _rtnl: &Rtnl, alias: &[u8]) -> Result {
        // SAFETY: By the type's invariant; `alias` is copied.
        let ret = unsafe { ffi::dev_set_alias(self.raw(), alias.as_ptr().cast(), alias.len()) };
        // The length, when it went well.
        to_result(ret.min(0))
    }

    /// Whether the user has set the table by which packets go to receive queues.
    pub(crate) fn is_rss_configured(&self) -> bool {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_rss_configured(self.raw()) }
    }

    /// Shows whether there is a link.
    pub(crate) fn set_carrier(&self, _rtnl: &Rtnl, on: bool) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_carrier(self.raw(), on) };
    }

    /// Has the world told where the device is, as after a change of the link.
    pub(crate) fn notify_peers(&self, _rtnl: &Rtnl) {
        // SAFETY: By the type's invariant; the lock is held.
        unsafe { ffi::__netdev_notify_peers(self.raw()) };
    }

    /// Stops all queues, and waits for packets that are just being sent. May sleep.
    pub(crate) fn disable_transmit(&self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_tx_disable(self.raw()) };
    }

    /// Starts all queues.
    pub(crate) fn wake_queues(&self) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_tx_wake_all(self.raw()) };
    }

    /// Tells the stack that the device is there (again), or not: queues stop, and configuration is refused.
    pub(crate) fn set_present(&self, _rtnl: &Rtnl, present: bool) {
        // SAFETY: By the type's invariant.
        unsafe { ffi::hv_rs_netdev_attach(self.raw(), present) };
    }

    /// Sets how many queues are in use, of each kind. May sleep.
    ///
    /// # Errors
    /// `EINVAL` for none or too many; `ENOMEM`.
    pub(crate) fn set_queues(&self, _rtnl: &Rtnl, count: u32) -> Result {
        // SAFETY: By the type's invariant; the lock is held.
        to_result(unsafe { ffi::hv_rs_netdev_set_queues(self.raw(), count) })
    }

    /// Transmit queue `index`; `None` when there is none.
    pub(crate) fn queue(self: &Arc<Self>, index: u32) -> Option<TxQueue> {
        // SAFETY: By the type's invariant.
        let raw = unsafe { ffi::hv_rs_netdev_txq(self.raw(), index) };
        Some(TxQueue::new(self.clone(), NonNull::new(raw)?))
    }

    /// The device's name, for the log: it may change at any time.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: By the type's invariant; names are in the device's own memory, and end with a zero however they change.
        unsafe { CStr::from_char_ptr(ffi::hv_rs_netdev_name(self.raw()).cast()) }
    }
}

impl Drop for NetDevice {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant; a registration would hold a reference.
        unsafe { ffi::hv_rs_netdev_free(self.raw()) };
    }
}

/// Which packets are wanted; see [`NetDevice::rx_flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RxFlags {
    pub(crate) promiscuous: bool,
    pub(crate) multicast: bool,
    pub(crate) broadcast: bool,
}

/// A registered device. Dropping it takes the interface down and unregisters it; no method of the driver is called after that.
/// Not under RTNL.
pub(crate) struct Registration<T: NetDriver> {
    dev: Arc<NetDevice>,
    // Until then the operations use it.
    _driver: Arc<T>,
}

impl<T: NetDriver> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Registered, once.
        unsafe { ffi::hv_rs_netdev_unregister(self.dev.raw()) };
    }
}

/// The operations of a driver as C calls them.
struct Ops<T>(PhantomData<T>);

impl<T: NetDriver> Ops<T> {
    const OPS: &'static ffi::RawOps = &ffi::RawOps {
        open: Self::open,
        stop: Self::stop,
        xmit: Self::xmit,
        select_queue: Self::select_queue,
        set_rx_mode: Self::set_rx_mode,
        change_mtu: Self::change_mtu,
        set_address: Self::set_address,
        stats: Self::stats,
        fix_features: Self::fix_features,
        set_features: Self::set_features,
        tx_timeout: Self::tx_timeout,
        set_xdp: Self::set_xdp,
        xdp_xmit: Self::xdp_xmit,
        regs: ethtool::Ops::<T>::regs,
        msg_level: ethtool::Ops::<T>::msg_level,
        set_msg_level: ethtool::Ops::<T>::set_msg_level,
        stat_count: ethtool::Ops::<T>::stat_count,
        stat_names: ethtool::Ops::<T>::stat_names,
        stat_values: ethtool::Ops::<T>::stat_values,
        channels: ethtool::Ops::<T>::channels,
        set_channels: ethtool::Ops::<T>::set_channels,
        rx_rings: ethtool::Ops::<T>::rx_rings,
        rss_table_size: ethtool::Ops::<T>::rss_table_size,
        rss: ethtool::Ops::<T>::rss,
        set_rss: ethtool::Ops::<T>::set_rss,
        hash_fields: ethtool::Ops::<T>::hash_fields,
        set_hash_fields: ethtool::Ops::<T>::set_hash_fields,
        speed: ethtool::Ops::<T>::speed,
        duplex: ethtool::Ops::<T>::duplex,
        set_link: ethtool::Ops::<T>::set_link,
        ring: ethtool::Ops::<T>::ring,
        set_ring: ethtool::Ops::<T>::set_ring,
    };

    /// # Safety
    /// `data` is a `T` that lives for `'a`.
    #[inline]
    unsafe fn driver<'a>(data: *const c_void) -> &'a T {
        // SAFETY: By the requirement.
        unsafe { &*data.cast::<T>() }
    }
}

#[allow(clippy::missing_safety_doc)] // Of all of them: see `ffi::RawOps`; `data` is a `T`.
impl<T: NetDriver> Ops<T> {
    unsafe extern "C" fn open(data: *const c_void) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        errno(driver.open(&rtnl))
    }

    unsafe extern "C" fn stop(data: *const c_void) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        errno(driver.stop(&rtnl))
    }

    unsafe extern "C" fn xmit(data: *const c_void, tx: *mut ffi::RawTx) -> c_int {
        // SAFETY: By the requirement.
        let (driver, tx) = unsafe { (Self::driver(data), &mut *tx) };
        // SAFETY: The queue is the packet's, and its lock is held during the call.
        let mut queue = unsafe { TxHeld::new(NonNull::new_unchecked(tx.txq)) };
        // SAFETY: The packet is given to us.
        let packet = unsafe { TxPacket::from_raw(tx) };
        match driver.transmit(packet, &mut queue) {
            Ok(()) => ffi::TX_OK,
            Err(packet) => {
                // Given back to the caller.
                core::mem::forget(packet);
                ffi::TX_BUSY
            }
        }
    }

    unsafe extern "C" fn select_queue(data: *const c_void, skb: *mut ffi::SkBuff) -> u16 {
        // SAFETY: By the requirement; the packet stays during the call.
        let (driver, packet) = unsafe { (Self::driver(data), SkbRef::new(skb)) };
        driver.select_queue(&packet)
    }

    unsafe extern "C" fn set_rx_mode(data: *const c_void) {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.set_rx_mode();
    }

    unsafe extern "C" fn change_mtu(data: *const c_void, mtu: u32) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        errno(driver.change_mtu(&rtnl, mtu))
    }

    unsafe extern "C" fn set_address(data: *const c_void, address: *const Address) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl, address) =
            unsafe { (Self::driver(data), Rtnl::assume(), address.read()) };
        errno(driver.set_address(&rtnl, &address))
    }

    unsafe extern "C" fn stats(data: *const c_void, raw: *mut ffi::RawStats) {
        let mut stats = Stats::default();
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.stats(&mut stats);
        let out = ffi::RawStats {
            rx_packets: stats.rx_packets,
            tx_packets: stats.tx_packets,
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            multicast: stats.multicast,
            rx_dropped: stats.rx_dropped,
            tx_dropped: stats.tx_dropped,
        };
        // SAFETY: By the requirement.
        unsafe { raw.write(out) };
    }

    unsafe extern "C" fn fix_features(data: *const c_void, features: u64) -> u64 {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        driver
            .fix_features(&rtnl, Features::from_raw(features))
            .raw()
    }

    unsafe extern "C" fn set_features(data: *const c_void, features: u64) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        errno(driver.set_features(&rtnl, Features::from_raw(features)))
    }

    unsafe extern "C" fn tx_timeout(data: *const c_void, queue: u32) {
        // SAFETY: By the requirement.
        unsafe { Self::driver(data) }.tx_timeout(queue);
    }

    unsafe extern "C" fn set_xdp(
        data: *const c_void,
        program: *mut ffi::BpfProg,
        message: *mut ffi::ExtAck,
    ) -> c_int {
        // SAFETY: By the requirement.
        let (driver, rtnl) = unsafe { (Self::driver(data), Rtnl::assume()) };
        // SAFETY: A reference of the program is given to us if this succeeds; `SetProgram` sees to that.
        let program = unsafe { SetProgram::new(NonNull::new(program), message) };
        errno(program.give_to(|p| driver.set_xdp(&rtnl, p)))
    }

    unsafe extern "C" fn xdp_xmit(
        data: *const c_void,
        count: u32,
        frames: *mut *mut ffi::XdpFrame,
    ) -> c_int {
        // SAFETY: By the requirement.
        let (driver, frames) = unsafe { (Self::driver(data), XdpFrames::new(frames, count)) };
        driver.xdp_transmit(frames).min(count) as c_int
    }
}

pub(super) fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

/// A program that is in use on a device.
pub(crate) type XdpProgram = Program;
