// SPDX-License-Identifier: GPL-2.0

//! The interface: what users have set, and what stays while the device is attached anew.
//!
//! A virtual function (SR-IOV) that takes over an interface's traffic would be known here, beside the session: the host's notice about
//! it comes to [`Shared::on_vf`], packets to send would turn off in [`Interface::transmit`]. This driver does not tell the
//! host that it could use one.
//!
//! # Locks
//!
//! In this order; each may be skipped: RTNL → [`Nic::state`] → a turn at [`Control`](crate::control::Control). What packets need is
//! in [`Shared`], or found through [`Nic::session`], without a lock.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use hv_vmbus::{
    channel::{Channel, Offered},
    new_deferred,
    services::{deferred::Deferred, rcu::RcuCell},
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    time::{Instant, Monotonic},
};
use vmbus_proto::net::{
    nvsp::{SendTable, VfAssociation, MAX_CHANNELS, SEND_TABLE_SIZE},
    rndis::LinkEvent,
    rss::{DEFAULT_KEY, KEY_SIZE, MAX_TABLE_SIZE},
};

use crate::{
    chores::{Event, Events},
    configure,
    net::{
        device::{default_queues, message_level, Address, XdpProgram},
        packet::SkbRef,
        xdp::{SetProgram, XdpFrames},
        Feature, Features, NetDevice, NetDriver, Rtnl, Stats, TxHeld, TxPacket,
    },
    session::Session,
    stats::{EthStats, QueueStats},
};

/// Sections of the default size in the receive and the send buffer (C: `NETVSC_DEFAULT_RX`, `NETVSC_DEFAULT_TX`).
pub(crate) const RECEIVE_SECTION: u32 = 1728;
pub(crate) const SEND_SECTION: u32 = 6144;
const RECEIVE_BUFFER: u32 = 16 << 20;
const SEND_BUFFER: u32 = 1 << 20;

/// Queues at first, if the machine has CPUs for them (C: `VRSS_CHANNEL_DEFAULT`).
const DEFAULT_QUEUES: u32 = 16;

/// Kinds of messages that are logged by default (`NETIF_MSG_*`: DRV, PROBE, LINK, IFDOWN, IFUP, RX_ERR, TX_ERR).
const DEFAULT_LEVEL: u32 = 0x1 | 0x2 | 0x4 | 0x10 | 0x20 | 0x40 | 0x80;

/// Ports count for the hash of all protocols, but in fragments (C: `HV_DEFAULT_L4HASH`).
const DEFAULT_L4_HASH: u32 = 0xf;

/// Features that depend on the host.
fn offloads() -> Features {
    Features::of(&[
        Feature::RxChecksum,
        Feature::Ipv4Checksum,
        Feature::Ipv6Checksum,
        Feature::Tso,
        Feature::Tso6,
        Feature::ScatterGather,
        Feature::RxHash,
        Feature::Lro,
    ])
}

/// What the hot paths share with the rest.
pub(crate) struct Shared {
    pub(crate) dev: Arc<NetDevice>,
    queues: KVec<QueueStats>,
    /// Of queues that there are not.
    nobody: QueueStats,
    pub(crate) eth: EthStats,
    /// Channel for each value of the low bits of a hash.
    send_table: [AtomicU32; SEND_TABLE_SIZE],
    /// Packets may be handed to the stack.
    receiving: AtomicBool,
    wants_hash: AtomicBool,
    wants_checksum: AtomicBool,
    pub(crate) events: Events,
    pub(crate) broken: AtomicBool,
    /// In Mbit/s; `u32::MAX` when it is not known.
    pub(crate) speed: AtomicU32,
    pub(crate) duplex: AtomicU8,
}

impl Shared {
    fn new(dev: Arc<NetDevice>) -> Result<Arc<Self>> {
        let mut queues = KVec::with_capacity(MAX_CHANNELS as usize, GFP_KERNEL)?;
        for _ in 0..MAX_CHANNELS {
            queues.push(QueueStats::default(), GFP_KERNEL)?;
        }
        let this = Self {
            dev,
            queues,
            nobody: QueueStats::default(),
            eth: EthStats::default(),
            send_table: [const { AtomicU32::new(0) }; SEND_TABLE_SIZE],
            receiving: AtomicBool::new(false),
            wants_hash: AtomicBool::new(true),
            wants_checksum: AtomicBool::new(true),
            events: Events::new(),
            broken: AtomicBool::new(false),
            speed: AtomicU32::new(u32::MAX),
            duplex: AtomicU8::new(1),
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    #[inline]
    pub(crate) fn queue_stats(&self, index: u16) -> &QueueStats {
        self.queues.get(usize::from(index)).unwrap_or(&self.nobody)
    }

    #[inline]
    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::Relaxed)
    }

    pub(crate) fn set_receiving(&self, on: bool) {
        self.receiving.store(on, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn wants_hash(&self) -> bool {
        self.wants_hash.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn wants_checksum(&self) -> bool {
        self.wants_checksum.load(Ordering::Relaxed)
    }

    /// Notes what is wanted of packets received.
    pub(crate) fn note_features(&self, features: Features) {
        self.wants_hash
            .store(features.has(Feature::RxHash), Ordering::Relaxed);
        self.wants_checksum
            .store(features.has(Feature::RxChecksum), Ordering::Relaxed);
    }

    pub(crate) fn set_send_table(&self, table: &SendTable) {
        for (to, from) in self.send_table.iter().zip(table.entries()) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    pub(crate) fn send_table(&self) -> impl Iterator<Item = u32> + '_ {
        self.send_table.iter().map(|e| e.load(Ordering::Relaxed))
    }

    /// The host speaks about a virtual function of this interface. Softirq context.
    pub(crate) fn on_vf(&self, vf: &VfAssociation) {
        let what = if vf.allocated != 0 {
            "added"
        } else {
            "removed"
        };
        pr_info!("VF slot {} {}\n", vf.serial, what);
    }

    /// The host speaks about the link. Softirq context.
    pub(crate) fn on_link_event(&self, event: LinkEvent, interface: &Interface) {
        let event = match event {
            LinkEvent::Speed(speed) => {
                self.speed.store(speed / 10_000, Ordering::Relaxed);
                return;
            }
            LinkEvent::Up => Event::Up,
            LinkEvent::Down => Event::Down,
            LinkEvent::NetworkChange => Event::NetworkChange,
            LinkEvent::Other(_) => return,
        };
        self.events.push(event);
        interface.do_chores();
    }

    /// The host has broken a channel's ring. Softirq context.
    pub(crate) fn note_broken(&self, interface: &Interface) {
        self.broken.store(true, Ordering::Release);
        interface.do_chores();
    }
}

/// What users can set, and the host has to be told anew when the device is attached.
pub(crate) struct Config {
    pub(crate) queues: u32,
    pub(crate) receive_bytes: u32,
    pub(crate) send_bytes: u32,
    pub(crate) key: [u8; KEY_SIZE],
    pub(crate) table: KVec<u32>,
    pub(crate) program: Option<XdpProgram>,
}

/// What changes under RTNL.
pub(crate) struct State {
    /// The primary channel, while the device is detached.
    pub(crate) channel: Option<Channel<Offered>>,
    pub(crate) config: Config,
    pub(crate) max_queues: u32,
    pub(crate) link_up: bool,
    pub(crate) last_link_change: Option<Instant<Monotonic>>,
}

/// See the [module's documentation](self).
#[pin_data]
pub(crate) struct Nic {
    pub(crate) shared: Arc<Shared>,
    /// The attached device.
    pub(crate) session: RcuCell<Option<Arc<Session>>>,
    /// The device that waits for subchannels.
    #[pin]
    pub(crate) expecting: Mutex<Option<Arc<Session>>>,
    #[pin]
    pub(crate) state: Mutex<State>,
    level: AtomicU32,
    pub(crate) l4_hash: AtomicU32,
    /// The interface is up: the host is to be told which packets are wanted.
    pub(crate) filtering: AtomicBool,
    /// These have changed.
    pub(crate) filter_changed: AtomicBool,
    /// When the device was last found stuck, in queues and times.
    pub(crate) timeouts: AtomicU64,
}

/// The driver of a network device.
pub(crate) struct Interface(Deferred<KBoxed>);

/// The interface, where it stays.
pub(crate) struct KBoxed(pub(crate) Pin<KBox<Nic>>);

impl Interface {
    /// Of a device that is not attached yet; `channel` is its primary channel. May sleep.
    pub(crate) fn new(dev: Arc<NetDevice>, channel: Channel<Offered>) -> Result<Arc<Self>> {
        let shared = Shared::new(dev)?;
        let state = State {
            channel: Some(channel),
            config: Config {
                queues: DEFAULT_QUEUES.max(default_queues()),
                receive_bytes: RECEIVE_BUFFER / RECEIVE_SECTION * RECEIVE_SECTION,
                send_bytes: SEND_BUFFER / SEND_SECTION * SEND_SECTION,
                key: DEFAULT_KEY,
                table: KVec::with_capacity(MAX_TABLE_SIZE, GFP_KERNEL)?,
                program: None,
            },
            max_queues: 1,
            link_up: false,
            last_link_change: None,
        };
        let session = RcuCell::new(None)?;
        let nic = KBox::pin_init(
            pin_init!(Nic {
                shared,
                session,
                expecting <- new_mutex!(None, "hv_netvsc_rs::expecting"),
                state <- new_mutex!(state, "hv_netvsc_rs::state"),
                level: AtomicU32::new(message_level(crate::debug.get(), DEFAULT_LEVEL)),
                l4_hash: AtomicU32::new(DEFAULT_L4_HASH),
                filtering: AtomicBool::new(false),
                filter_changed: AtomicBool::new(false),
                timeouts: AtomicU64::new(0),
            }),
            GFP_KERNEL,
        )?;
        let chores = new_deferred!(KBoxed(nic), c"hv_netvsc_rs::chores")?;
        Ok(Arc::new(Self(chores), GFP_KERNEL)?)
    }

    pub(crate) fn nic(&self) -> &Nic {
        &self.0.job().0
    }

    /// Has the chores done now.
    pub(crate) fn do_chores(&self) {
        self.0.schedule();
    }

    /// Has the chores done in `ms` milliseconds.
    pub(crate) fn do_chores_after(&self, ms: u32) {
        self.0.schedule_after(ms);
    }

    /// Waits until no chores are being done, nor will be. May sleep; not under RTNL.
    pub(crate) fn cancel_chores(&self) {
        self.0.cancel();
    }
}

impl Nic {
    /// The attached device; for who may sleep.
    pub(crate) fn current(&self) -> Option<Arc<Session>> {
        self.session.read().clone()
    }

    pub(crate) fn message_level(&self) -> u32 {
        self.level.load(Ordering::Relaxed)
    }

    pub(crate) fn set_message_level(&self, level: u32) {
        self.level.store(level, Ordering::Relaxed);
    }

    /// Sets the features that users may switch by what the host can.
    pub(crate) fn set_offloads(&self, rtnl: &Rtnl, can: Features) {
        let dev = &self.shared.dev;
        let hw = dev.hw_features().minus(offloads()).union(can);
        dev.set_hw_features(rtnl, hw);
        // What has gone is off.
        let gone = offloads().minus(can);
        dev.set_features(rtnl, dev.features().minus(gone));
        self.shared.note_features(dev.features());
    }
}

impl NetDriver for Interface {
    fn open(&self, rtnl: &Rtnl) -> Result {
        configure::open(self.nic(), rtnl)
    }

    fn stop(&self, rtnl: &Rtnl) -> Result {
        configure::stop(self.nic(), rtnl)
    }

    #[inline]
    fn transmit<'a>(
        &self,
        packet: TxPacket<'a>,
        queue: &mut TxHeld<'_>,
    ) -> Result<(), TxPacket<'a>> {
        let nic = self.nic();
        let session = nic.session.read();
        let index = usize::from(packet.queue());
        match session.as_ref().and_then(|s| s.queues.get(index)) {
            Some(to) => to.transmit(packet, queue),
            None => {
                nic.shared.eth.tx_dropped.bump();
                Ok(())
            }
        }
    }

    fn select_queue(&self, packet: &SkbRef<'_>) -> u16 {
        let nic = self.nic();
        let hash = packet.flow_hash(nic.l4_hash.load(Ordering::Relaxed));
        let entry = hash as usize & (SEND_TABLE_SIZE - 1);
        let queue = nic.shared.send_table.get(entry);
        // Hosts name channels below 64; the stack takes what is too large modulo the number of queues.
        queue.map_or(0, |queue| queue.load(Ordering::Relaxed) as u16)
    }

    fn set_rx_mode(&self) {
        self.nic().filter_changed.store(true, Ordering::Release);
        self.do_chores();
    }

    fn change_mtu(&self, rtnl: &Rtnl, mtu: u32) -> Result {
        configure::change_mtu(self.nic(), rtnl, mtu)
    }

    fn set_address(&self, _rtnl: &Rtnl, address: &Address) -> Result {
        configure::set_address(self.nic(), address)
    }

    fn stats(&self, stats: &mut Stats) {
        let shared = &self.nic().shared;
        for queue in &shared.queues {
            stats.rx_packets += queue.rx_packets.get();
            stats.rx_bytes += queue.rx_bytes.get();
            stats.tx_packets += queue.tx_packets.get();
            stats.tx_bytes += queue.tx_bytes.get();
            stats.multicast += queue.rx_multicast.get();
        }
        stats.tx_dropped = shared.eth.tx_dropped.get();
        stats.rx_dropped = shared.eth.rx_dropped.get();
    }

    fn fix_features(&self, _rtnl: &Rtnl, wanted: Features) -> Features {
        let nic = self.nic();
        if wanted.has(Feature::Lro) && nic.state.lock().config.program.is_some() {
            pr_info!("Skip LRO - unsupported with XDP\n");
            return wanted.without(Feature::Lro);
        }
        wanted
    }

    fn set_features(&self, rtnl: &Rtnl, features: Features) -> Result {
        configure::set_features(self.nic(), rtnl, features)
    }

    fn tx_timeout(&self, queue: u32) {
        let nic = self.nic();
        nic.timeouts.fetch_add(1, Ordering::Relaxed);
        let session = nic.session.read();
        // An interrupt may have been lost.
        if let Some(napi) = session.as_ref().and_then(|s| s.napis.get(queue as usize)) {
            napi.schedule();
        }
    }

    fn set_xdp(&self, rtnl: &Rtnl, program: SetProgram<'_>) -> Result {
        configure::set_xdp(self.nic(), rtnl, program)
    }

    fn xdp_transmit(&self, frames: XdpFrames<'_>) -> u32 {
        let nic = self.nic();
        let session = nic.session.read();
        let Some(session) = session.as_ref() else {
            return 0;
        };
        if session.link.tx_off.load(Ordering::Relaxed) {
            return 0;
        }
        let queues = session.link.queues.load(Ordering::Relaxed).max(1);
        let index = hv_vmbus::services::cpu::current() % queues;
        let Some(queue) = session.queues.get(index as usize) else {
            return 0;
        };
        let mut held = queue.txq.lock();
        let sent = frames.send_each(|frame| queue.send_frame(frame, &mut held));
        queue.stats().tx_xdp_xmit.add(sent.into());
        sent
    }
}
