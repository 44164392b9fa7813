// SPDX-License-Identifier: GPL-2.0

//! The functions and structures of the C files. Layouts are asserted on both sides; each call site argues its safety.

use core::mem::offset_of;
use hv_vmbus::channel::GpaRun;
use kernel::{
    bindings,
    ffi::{c_char, c_int, c_void},
};

macro_rules! opaque {
    ($($(#[$meta:meta])* $name:ident;)*) => { $(
        $(#[$meta])*
        #[repr(C)]
        pub(super) struct $name {
            _opaque: [u8; 0],
        }
    )* };
}

opaque! {
    /// `struct net_device`.
    NetDevice;
    /// `struct netdev_queue`.
    TxQueue;
    /// `struct sk_buff`.
    SkBuff;
    /// `struct hv_rs_napi`.
    Napi;
    /// `struct bpf_prog`.
    BpfProg;
    /// `struct xdp_frame`.
    XdpFrame;
    /// `struct netlink_ext_ack`.
    ExtAck;
}

/// `struct hv_rs_tx`.
#[repr(C)]
pub(super) struct RawTx {
    pub(super) skb: *mut SkBuff,
    pub(super) txq: *mut TxQueue,
    pub(super) data: *const u8,
    pub(super) len: u32,
    pub(super) headlen: u32,
    pub(super) hash: u32,
    pub(super) flags: u32,
    pub(super) queue: u16,
    pub(super) vlan_tci: u16,
    pub(super) gso_size: u16,
    pub(super) transport: u16,
    pub(super) room: u32,
    pub(super) head: *mut u8,
}

const _: () = {
    assert!(size_of::<RawTx>() == 64);
    assert!(offset_of!(RawTx, txq) == 8);
    assert!(offset_of!(RawTx, data) == 16);
    assert!(offset_of!(RawTx, len) == 24);
    assert!(offset_of!(RawTx, headlen) == 28);
    assert!(offset_of!(RawTx, hash) == 32);
    assert!(offset_of!(RawTx, flags) == 36);
    assert!(offset_of!(RawTx, queue) == 40);
    assert!(offset_of!(RawTx, vlan_tci) == 42);
    assert!(offset_of!(RawTx, gso_size) == 44);
    assert!(offset_of!(RawTx, transport) == 46);
    assert!(offset_of!(RawTx, room) == 48);
    assert!(offset_of!(RawTx, head) == 56);
};

/// `struct hv_rs_put`.
#[repr(C)]
pub(super) struct RawPut {
    pub(super) ranges: u32,
    pub(super) words: u32,
}

const _: () = {
    assert!(size_of::<RawPut>() == 8);
    assert!(offset_of!(RawPut, words) == 4);
};

/// `struct hv_rs_rx`.
#[repr(C)]
pub(super) struct RawRx {
    pub(super) hash: u32,
    pub(super) vlan_tci: u16,
    pub(super) queue: u16,
    pub(super) flags: u32,
}

const _: () = {
    assert!(size_of::<RawRx>() == 12);
    assert!(offset_of!(RawRx, vlan_tci) == 4);
    assert!(offset_of!(RawRx, queue) == 6);
    assert!(offset_of!(RawRx, flags) == 8);
};

/// `struct hv_rs_net_stats`.
#[repr(C)]
#[derive(Default)]
pub(super) struct RawStats {
    pub(super) rx_packets: u64,
    pub(super) tx_packets: u64,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    pub(super) multicast: u64,
    pub(super) rx_dropped: u64,
    pub(super) tx_dropped: u64,
}

const _: () = assert!(size_of::<RawStats>() == 56);

/// `struct hv_rs_ring`.
#[repr(C)]
pub(super) struct RawRing {
    pub(super) rx_max: u32,
    pub(super) tx_max: u32,
    pub(super) rx: u32,
    pub(super) tx: u32,
}

/// `struct hv_rs_channels`.
#[repr(C)]
pub(super) struct RawChannels {
    pub(super) max: u32,
    pub(super) count: u32,
}

/// `struct hv_rs_net_ops`.
///
/// # Safety
/// Each is called with the `data` given with the operations, and pointers that are valid during the call: for as many elements
/// as the number after them says, to one element otherwise; null where the comment says so. Those without a comment run in
/// process context under RTNL.
#[repr(C)]
pub(super) struct RawOps {
    pub(super) open: unsafe extern "C" fn(*const c_void) -> c_int,
    pub(super) stop: unsafe extern "C" fn(*const c_void) -> c_int,
    /// With the queue's lock held. The packet is given away, unless the result is [`TX_BUSY`].
    pub(super) xmit: unsafe extern "C" fn(*const c_void, *mut RawTx) -> c_int,
    /// Bottom halves off.
    pub(super) select_queue: unsafe extern "C" fn(*const c_void, *mut SkBuff) -> u16,
    /// Bottom halves off.
    pub(super) set_rx_mode: unsafe extern "C" fn(*const c_void),
    pub(super) change_mtu: unsafe extern "C" fn(*const c_void, u32) -> c_int,
    pub(super) set_address: unsafe extern "C" fn(*const c_void, *const [u8; 6]) -> c_int,
    /// Any context.
    pub(super) stats: unsafe extern "C" fn(*const c_void, *mut RawStats),
    pub(super) fix_features: unsafe extern "C" fn(*const c_void, u64) -> u64,
    pub(super) set_features: unsafe extern "C" fn(*const c_void, u64) -> c_int,
    /// Bottom halves off.
    pub(super) tx_timeout: unsafe extern "C" fn(*const c_void, u32),
    /// Program and message may be null. A reference of the program is given away when the result is 0.
    pub(super) set_xdp: unsafe extern "C" fn(*const c_void, *mut BpfProg, *mut ExtAck) -> c_int,
    /// Bottom halves off. As many frames as the result says are given away.
    pub(super) xdp_xmit: unsafe extern "C" fn(*const c_void, u32, *mut *mut XdpFrame) -> c_int,
    pub(super) regs: unsafe extern "C" fn(*const c_void, *mut u32, u32) -> u32,
    pub(super) msg_level: unsafe extern "C" fn(*const c_void) -> u32,
    pub(super) set_msg_level: unsafe extern "C" fn(*const c_void, u32),
    pub(super) stat_count: unsafe extern "C" fn(*const c_void) -> u32,
    /// Names of 32 bytes each.
    pub(super) stat_names: unsafe extern "C" fn(*const c_void, *mut [u8; 32], u32),
    pub(super) stat_values: unsafe extern "C" fn(*const c_void, *mut u64, u32),
    pub(super) channels: unsafe extern "C" fn(*const c_void, *mut RawChannels),
    pub(super) set_channels: unsafe extern "C" fn(*const c_void, u32) -> c_int,
    pub(super) rx_rings: unsafe extern "C" fn(*const c_void) -> u32,
    pub(super) rss_table_size: unsafe extern "C" fn(*const c_void) -> u32,
    /// Table and key may be null.
    pub(super) rss: unsafe extern "C" fn(*const c_void, *mut u32, u32, *mut u8, u32) -> c_int,
    /// Table and key may be null.
    pub(super) set_rss:
        unsafe extern "C" fn(*const c_void, *const u32, u32, *const u8, u32) -> c_int,
    pub(super) hash_fields: unsafe extern "C" fn(*const c_void, u32) -> u32,
    pub(super) set_hash_fields: unsafe extern "C" fn(*const c_void, u32, u32) -> c_int,
    pub(super) speed: unsafe extern "C" fn(*const c_void) -> u32,
    pub(super) duplex: unsafe extern "C" fn(*const c_void) -> u8,
    pub(super) set_link: unsafe extern "C" fn(*const c_void, u32, u8) -> c_int,
    pub(super) ring: unsafe extern "C" fn(*const c_void, *mut RawRing),
    pub(super) set_ring: unsafe extern "C" fn(*const c_void, u32, u32) -> c_int,
}

const _: () = assert!(size_of::<RawOps>() == 32 * 8);

/// `NETDEV_TX_OK`, `NETDEV_TX_BUSY`.
pub(super) const TX_OK: c_int = 0;
pub(super) const TX_BUSY: c_int = 0x10;

// The kernel's types have members without size in some configurations.
#[allow(improper_ctypes)]
unsafe extern "C" {
    pub(super) safe fn hv_rs_net_feature(which: u32) -> u64;
    pub(super) fn hv_rs_netdev_alloc(parent: *mut c_void, queues: u32, room: u32)
        -> *mut NetDevice;
    pub(super) fn hv_rs_netdev_free(dev: *mut NetDevice);
    pub(super) fn hv_rs_netdev_register(
        dev: *mut NetDevice,
        ops: *const RawOps,
        data: *const c_void,
    ) -> c_int;
    pub(super) fn hv_rs_netdev_unregister(dev: *mut NetDevice);
    pub(super) fn hv_rs_netdev_set_mtu_limits(dev: *mut NetDevice, mtu: u32, min: u32, max: u32);
    pub(super) fn hv_rs_netdev_set_mtu(dev: *mut NetDevice, mtu: u32);
    pub(super) fn hv_rs_netdev_mtu(dev: *const NetDevice) -> u32;
    pub(super) fn hv_rs_netdev_flags(dev: *const NetDevice) -> u32;
    pub(super) fn hv_rs_netdev_has_multicast(dev: *mut NetDevice) -> bool;
    pub(super) fn hv_rs_netdev_set_address(dev: *mut NetDevice, address: *const [u8; 6]);
    pub(super) fn hv_rs_netdev_features(dev: *const NetDevice) -> u64;
    pub(super) fn hv_rs_netdev_hw_features(dev: *const NetDevice) -> u64;
    pub(super) fn hv_rs_netdev_set_features(dev: *mut NetDevice, features: u64);
    pub(super) fn hv_rs_netdev_set_hw_features(dev: *mut NetDevice, features: u64);
    pub(super) fn hv_rs_netdev_set_vlan_features(dev: *mut NetDevice, features: u64);
    pub(super) fn hv_rs_netdev_set_tso_max(dev: *mut NetDevice, bytes: u32);
    pub(super) fn hv_rs_netdev_running(dev: *const NetDevice) -> bool;
    pub(super) fn hv_rs_netdev_has_alias(dev: *const NetDevice) -> bool;
    pub(super) fn hv_rs_netdev_rss_configured(dev: *const NetDevice) -> bool;
    pub(super) fn hv_rs_netdev_carrier(dev: *mut NetDevice, on: bool);
    pub(super) fn hv_rs_netdev_tx_disable(dev: *mut NetDevice);
    pub(super) fn hv_rs_netdev_tx_wake_all(dev: *mut NetDevice);
    pub(super) fn hv_rs_netdev_attach(dev: *mut NetDevice, on: bool);
    pub(super) fn hv_rs_netdev_set_queues(dev: *mut NetDevice, count: u32) -> c_int;
    pub(super) fn hv_rs_netdev_txq(dev: *mut NetDevice, index: u32) -> *mut TxQueue;
    pub(super) fn hv_rs_netdev_name(dev: *const NetDevice) -> *const c_char;
    pub(super) safe fn hv_rs_net_msg_init(debug: c_int, preset: u32) -> u32;
    pub(super) safe fn hv_rs_rtnl_trylock() -> bool;
    pub(super) safe fn hv_rs_default_rss_queues() -> u32;

    pub(super) fn hv_rs_txq_sent(q: *mut TxQueue, bytes: u32, more: bool) -> bool;
    pub(super) fn hv_rs_txq_completed(q: *mut TxQueue, packets: u32, bytes: u32);
    pub(super) fn hv_rs_txq_reset(q: *mut TxQueue);
    pub(super) fn hv_rs_txq_stop(q: *mut TxQueue);
    pub(super) fn hv_rs_txq_wake(q: *mut TxQueue);
    pub(super) fn hv_rs_txq_stopped(q: *const TxQueue) -> bool;
    pub(super) fn hv_rs_txq_blocked(q: *const TxQueue) -> bool;
    pub(super) fn hv_rs_txq_lock(q: *mut TxQueue);
    pub(super) fn hv_rs_txq_unlock(q: *mut TxQueue);
    pub(super) fn hv_rs_txq_lock_bh(q: *mut TxQueue);
    pub(super) fn hv_rs_txq_unlock_bh(q: *mut TxQueue);

    pub(super) fn hv_rs_tx_look(tx: *mut RawTx);
    pub(super) fn hv_rs_skb_flow_hash(skb: *mut SkBuff, l4: u32) -> u32;
    pub(super) fn hv_rs_skb_copy_bits(
        skb: *const SkBuff,
        offset: u32,
        to: *mut u8,
        len: u32,
    ) -> c_int;
    pub(super) fn hv_rs_tx_prepare(tx: *mut RawTx, room: u32) -> c_int;
    pub(super) fn hv_rs_tx_put_ranges(
        tx: *const RawTx,
        header: u32,
        to: *mut u64,
        max: u32,
    ) -> RawPut;
    pub(super) fn hv_rs_range_of(at: *const c_void, len: u32, range: *mut GpaRun);
    pub(super) fn hv_rs_skb_ranges(
        skb: *const SkBuff,
        ranges: *mut GpaRun,
        max: u32,
        max_pages: u32,
    ) -> u32;
    pub(super) fn hv_rs_skb_linearize(skb: *mut SkBuff) -> c_int;
    pub(super) fn hv_rs_skb_checksum_help(skb: *mut SkBuff) -> c_int;
    pub(super) fn hv_rs_skb_take_vlan(skb: *mut SkBuff) -> c_int;
    pub(super) fn hv_rs_skb_drop(skb: *mut SkBuff);

    pub(super) fn hv_rs_rx_alloc(napi: *mut Napi, len: u32, data: *mut *mut u8) -> *mut SkBuff;
    pub(super) fn hv_rs_rx_free(skb: *mut SkBuff);
    pub(super) fn hv_rs_rx_deliver(napi: *mut Napi, skb: *mut SkBuff, rx: *const RawRx) -> c_int;

    pub(super) fn hv_rs_napi_new(
        dev: *mut NetDevice,
        queue: u16,
        data: *const c_void,
        poll: unsafe extern "C" fn(*const c_void, *mut Napi, u32) -> u32,
    ) -> *mut Napi;
    pub(super) fn hv_rs_napi_enable(napi: *mut Napi);
    pub(super) fn hv_rs_napi_disable(napi: *mut Napi);
    pub(super) fn hv_rs_napi_free(napi: *mut Napi);
    pub(super) fn hv_rs_napi_schedule(napi: *mut Napi);
    pub(super) fn hv_rs_napi_schedule_prep(napi: *mut Napi) -> bool;
    pub(super) fn hv_rs_napi_schedule_prepared(napi: *mut Napi);
    pub(super) fn hv_rs_napi_complete(napi: *mut Napi, done: u32) -> bool;
    pub(super) fn hv_rs_napi_set_prog(napi: *mut Napi, prog: *mut BpfProg);

    pub(super) fn hv_rs_xdp_frame(
        frames: *mut *mut XdpFrame,
        i: u32,
        data: *mut *const u8,
        len: *mut u32,
    );
    pub(super) fn hv_rs_xdp_frame_return(frames: *mut *mut XdpFrame, i: u32);
    pub(super) fn hv_rs_xdp_message(extack: *mut ExtAck, which: u32);
    pub(super) safe fn hv_rs_xdp_max_frame() -> u32;
    pub(super) fn hv_rs_prog_add(prog: *mut BpfProg, n: u32);
    pub(super) fn hv_rs_prog_put(prog: *mut BpfProg);
    pub(super) safe fn hv_rs_xdp_page() -> *mut bindings::page;
    pub(super) fn hv_rs_xdp_page_free(page: *mut bindings::page);
    pub(super) fn hv_rs_xdp_page_data(page: *mut bindings::page) -> *mut u8;
    pub(super) fn hv_rs_xdp_run(
        napi: *mut Napi,
        page: *mut bindings::page,
        offset: *mut u32,
        len: *mut u32,
    ) -> u32;
    pub(super) fn hv_rs_xdp_copy(
        dev: *mut NetDevice,
        data: *const u8,
        len: u32,
        room: u32,
    ) -> *mut SkBuff;
    pub(super) fn hv_rs_xdp_skb(page: *mut bindings::page, offset: u32, len: u32) -> *mut SkBuff;

    // Exported by the network core.
    pub(super) fn napi_consume_skb(skb: *mut SkBuff, budget: c_int);
    pub(super) safe fn rtnl_lock();
    pub(super) fn rtnl_unlock();
    pub(super) fn __netdev_notify_peers(dev: *mut NetDevice);
    pub(super) fn dev_set_alias(dev: *mut NetDevice, alias: *const c_char, len: usize) -> c_int;
}
