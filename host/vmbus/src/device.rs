// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a device model is, and what it can do.

use std::sync::Arc;

use hv_partition::{GuestRam, Partition};
use hvctl::{Command, DiskInfo, Event};
use vmbus_proto::msg::{OfferFlags, USER_DATA_SIZE};
use vmbus_proto::packet::{Packet, PacketFlags, PacketType};
use vmbus_proto::Guid;

use crate::channel::{Channel, SendError};
use crate::inbox::{Inbox, Input};
use crate::server::OfferId;

/// Partition reference time in units of 100 ns. Devices schedule by it, so that nothing falls due while
/// the VM is stopped.
pub type RefTime = u64;

/// Units of [`RefTime`] in a millisecond.
pub const TICKS_PER_MS: u64 = 10_000;

/// What is offered for a device.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Name on the command line and in the control protocol.
    pub name: String,
    /// Interface type.
    pub class: Guid,
    /// Instance GUID, unique among devices.
    pub instance: Guid,
    /// Flags of the offer.
    pub flags: OfferFlags,
    /// The device's bytes in the offer.
    pub user_data: [u8; USER_DATA_SIZE],
    /// MMIO the device needs, in MiB.
    pub mmio_megabytes: u16,
    /// Whether the guest shall signal by monitor page.
    pub monitored: bool,
    /// Sub-channels the device may offer beside its primary channel.
    pub max_subchannels: u16,
}

/// What became of a control command that was for this device.
pub enum Control {
    /// Not for this device.
    NotMine,
    /// Done.
    Done(serde_json::Value),
    /// Refused, with a sentence.
    Failed(String),
    /// Answered later by [`DeviceIo::complete`] with the token given.
    Later {
        /// Chosen by the device.
        token: u64,
        /// How long the client waits.
        timeout_ms: u64,
    },
}

/// A device model. All methods are called on the worker thread and must not block; a model with work that
/// takes time has threads of its own and a [`Waker`].
pub trait Device: Send {
    /// What is offered. Constant.
    fn info(&self) -> DeviceInfo;

    /// The guest opened a channel (0: the primary one). An error refuses the open.
    ///
    /// # Errors
    /// A sentence for the log.
    fn opened(&mut self, io: &mut DeviceIo<'_>, index: u16) -> Result<(), String>;

    /// The channel is closed, by the guest, a rescind or a reset.
    fn closed(&mut self, io: &mut DeviceIo<'_>, index: u16);

    /// A packet came, a private copy.
    fn packet(&mut self, io: &mut DeviceIo<'_>, index: u16, packet: &Packet<'_>);

    /// [`Device::deadline`] is over, a [`Waker`] was used, or a full ring has room again.
    fn poll(&mut self, io: &mut DeviceIo<'_>);

    /// When to call [`Device::poll`] next.
    fn deadline(&self) -> Option<RefTime>;

    /// The VM runs again after it was stopped for `stopped_ms`.
    fn resumed(&mut self, io: &mut DeviceIo<'_>, stopped_ms: u64) {
        let _ = (io, stopped_ms);
    }

    /// A control command that the host itself does not know.
    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        let _ = (io, cmd);
        Control::NotMine
    }

    /// Versions agreed on with the guest's driver, for people, once they are.
    fn agreed(&self) -> Option<String> {
        None
    }

    /// Disks of a storage controller, for `disks`.
    fn disks(&self) -> Vec<DiskInfo> {
        Vec::new()
    }

    /// Heartbeats answered, for `wait beats`.
    fn beats(&self) -> Option<u64> {
        None
    }

    /// Counts from zero again.
    fn reset_counters(&mut self) {}
}

/// Lets a device's own thread have [`Device::poll`] called.
#[derive(Clone)]
pub struct Waker {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) device: usize,
}

impl Waker {
    /// Has [`Device::poll`] called soon. Any thread.
    pub fn wake(&self) {
        self.inbox.push(Input::Wake {
            device: self.device,
        });
    }
}

/// What devices leave for the engine.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) violations: Vec<String>,
    pub(crate) events: Vec<Event>,
    pub(crate) completions: Vec<(u64, Result<serde_json::Value, String>)>,
    /// Sub-channels to offer: device, how many in all.
    pub(crate) subchannels: Vec<(usize, u16)>,
}

/// A device's access to its channels and to the machine, for the length of one call.
pub struct DeviceIo<'a> {
    pub(crate) device: usize,
    pub(crate) name: &'a str,
    pub(crate) offers: &'a [OfferId],
    pub(crate) channels: &'a mut [Channel],
    pub(crate) partition: &'a dyn Partition,
    pub(crate) inbox: &'a Arc<Inbox>,
    pub(crate) requests: &'a mut Requests,
    pub(crate) now: RefTime,
    pub(crate) unix_ns: u64,
}

impl DeviceIo<'_> {
    /// Reference time of this call.
    pub fn now(&self) -> RefTime {
        self.now
    }

    /// Reference time and the host's clock (ns since 1970-01-01 UTC), read together just now.
    pub fn clocks(&self) -> (RefTime, u64) {
        (self.now, self.unix_ns)
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        self.partition.ram()
    }

    fn channel(&mut self, index: u16) -> Option<&mut Channel> {
        self.channels
            .get_mut(self.offers.get(usize::from(index))?.0)
    }

    /// Whether the channel is open.
    pub fn is_open(&self, index: u16) -> bool {
        self.offers
            .get(usize::from(index))
            .and_then(|id| self.channels.get(id.0))
            .is_some_and(Channel::is_open)
    }

    /// Sends a packet, and signals the guest if the ring says so.
    ///
    /// # Errors
    /// [`SendError::Full`]: try again in [`Device::poll`], which is called when there is room.
    pub fn send(
        &mut self,
        index: u16,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let partition = self.partition;
        let channel = self.channel(index).ok_or(SendError::Closed)?;
        let was_broken = channel.is_broken();
        let result = channel.send(partition, packet_type, flags, transaction_id, payload);
        if result == Err(SendError::Broken) && !was_broken {
            self.violation("host-to-guest ring: read index is impossible");
        }
        result
    }

    /// Records a violation by the guest's driver.
    pub fn violation(&mut self, text: impl Into<String>) {
        let text = format!("{}: {}", self.name, text.into());
        self.requests.violations.push(text);
    }

    /// Tells watchers.
    pub fn event(&mut self, event: Event) {
        self.requests.events.push(event);
    }

    /// Answers a control command that was answered with [`Control::Later`].
    pub fn complete(&mut self, token: u64, result: Result<serde_json::Value, String>) {
        self.requests.completions.push((token, result));
    }

    /// Offers sub-channels 1 to `count`.
    pub fn offer_subchannels(&mut self, count: u16) {
        self.requests.subchannels.push((self.device, count));
    }

    /// For the device's own threads.
    pub fn waker(&self) -> Waker {
        Waker {
            inbox: self.inbox.clone(),
            device: self.device,
        }
    }
}
