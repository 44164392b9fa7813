// SPDX-License-Identifier: GPL-2.0

//! A channel as a queue: packets in both directions, polled by one NAPI context. `rx` and `tx` hold the two directions.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use hv_vmbus::{
    buffer::Buffer,
    channel::{CallbackMode, Endpoint, Handler},
    services::{cpu, once::Once},
};
use kernel::{prelude::*, sync::Arc};
use vmbus_proto::net::nvsp::NvspVersion;

use crate::{
    control::Control,
    net::{in_flight::InFlight, queue::TxCell, Napi, NetDevice, TxQueue},
    nic::{Interface, Shared},
    sections::Sections,
    stats::QueueStats,
    tx::TxState,
};

/// Packets that a channel may hold at a time: as many as fit a ring of the default size, two cache lines each.
const MAX_IN_FLIGHT: u32 = 4096;

/// What the queues of an attached device share.
#[pin_data]
pub(crate) struct Link {
    pub(crate) shared: Arc<Shared>,
    // A cycle of references while the device is attached; detaching ends it.
    pub(crate) interface: Arc<Interface>,
    #[pin]
    pub(crate) control: Control,
    version: AtomicU32,
    /// The receive buffer. What the host names as received must lie in it.
    pub(crate) receive: Once<Buffer>,
    pub(crate) sections: Once<Sections>,
    /// Packets that one message to the host may carry, and what each of them is aligned to.
    pub(crate) max_packets: AtomicU32,
    pub(crate) alignment: AtomicU32,
    /// Queues in use.
    pub(crate) queues: AtomicU32,
    /// Which packets' checksums the host fills in: see `tx::checksums`.
    pub(crate) checksums: AtomicU32,
    /// Queues must not be woken.
    pub(crate) tx_off: AtomicBool,
}

impl Link {
    /// Of a device that is not known to the host yet.
    pub(crate) fn new(interface: &Arc<Interface>) -> Result<Arc<Self>> {
        let control = Control::new()?;
        let (shared, interface) = (interface.nic().shared.clone(), interface.clone());
        Arc::pin_init(
            pin_init!(Self {
                shared,
                interface,
                control <- control,
                version: AtomicU32::new(0),
                receive: Once::new(),
                sections: Once::new(),
                max_packets: AtomicU32::new(1),
                alignment: AtomicU32::new(8),
                queues: AtomicU32::new(1),
                checksums: AtomicU32::new(0),
                tx_off: AtomicBool::new(true),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn version(&self) -> NvspVersion {
        NvspVersion(self.version.load(Ordering::Relaxed))
    }

    pub(crate) fn set_version(&self, version: NvspVersion) {
        self.version.store(version.0, Ordering::Relaxed);
    }
}

/// A queue.
pub(crate) struct Queue {
    pub(crate) index: u16,
    pub(crate) link: Arc<Link>,
    /// The channel, from when it is open on.
    pub(crate) endpoint: Once<Endpoint>,
    pub(crate) txq: TxQueue,
    pub(crate) tx: TxCell<TxState>,
    pub(crate) in_flight: InFlight,
    /// The queue was stopped for want of room, or packets wait for room; the poll starts it again, or sends them.
    pub(crate) stopped: AtomicBool,
    /// An XDP program is in.
    pub(crate) xdp: AtomicBool,
}

impl Queue {
    /// Queue `index` of `dev`, which has no channel yet.
    pub(crate) fn new(link: &Arc<Link>, dev: &Arc<NetDevice>, index: u16) -> Result<Arc<Self>> {
        let txq = dev.queue(index.into()).ok_or(EINVAL)?;
        let tx = TxCell::new(&txq, TxState::new());
        let this = Self {
            index,
            link: link.clone(),
            endpoint: Once::new(),
            txq,
            tx,
            in_flight: InFlight::new(MAX_IN_FLIGHT)?,
            stopped: AtomicBool::new(false),
            xdp: AtomicBool::new(false),
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// The queue's counters.
    #[inline]
    pub(crate) fn stats(&self) -> &QueueStats {
        self.link.shared.queue_stats(self.index)
    }

    /// CPU that the host interrupts for the queue.
    pub(crate) fn cpu(&self) -> u32 {
        self.endpoint
            .get()
            .map_or_else(cpu::current, |endpoint| endpoint.sender().target_cpu())
    }

    /// Lets go of all packets that the host has not completed. The channel is closed, or will take no more; nothing is polled.
    pub(crate) fn forget_sent(&self) {
        let mut held = self.txq.lock_bh();
        if let Some((tx, _)) = self.tx.get(&mut held) {
            tx.forget();
        }
        drop(held);
        self.in_flight.take_all(drop);
        self.txq.reset();
    }
}

/// What a channel calls.
pub(crate) struct Signal {
    pub(crate) napi: Arc<Napi<Queue>>,
}

impl Handler for Signal {
    const MODE: CallbackMode = CallbackMode::Poll;

    fn on_signal(self: Pin<&Self>) {
        self.napi.schedule();
    }
}
