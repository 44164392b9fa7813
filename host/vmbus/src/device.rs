// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What a device model is, and what it can do.

use std::sync::Arc;

use hv_partition::{GuestRam, Partition};
use hvctl::{Command, DiskInfo, Event, NetInfo};
use vmbus_proto::msg::{GpadlId, OfferFlags, USER_DATA_SIZE};
use vmbus_proto::packet::{Packet, PacketFlags, PacketType, TransferPageHeader, TransferRange};
use vmbus_proto::Guid;
use zerocopy::IntoBytes;

use crate::channel::{Channel, Outgoing, SendError};
use crate::inbox::{Inbox, Input};
use crate::server::{OfferId, Server, SharedGpadl};

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

    /// Whether the device takes packets from the channel now. What is in the ring stays there meanwhile;
    /// [`DeviceIo::resume`] has the channel looked at again.
    fn is_ready(&self, index: u16) -> bool {
        let _ = index;
        true
    }

    /// All packets that there were have been taken from a channel, for now: the end of a batch.
    fn drained(&mut self, io: &mut DeviceIo<'_>, index: u16) {
        let _ = (io, index);
    }

    /// A GPADL of the device's primary channel is no more. From here on its pages must not be touched.
    fn gpadl_gone(&mut self, io: &mut DeviceIo<'_>, id: GpadlId) {
        let _ = (io, id);
    }

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

    /// A NIC, for `nets`.
    fn net(&self) -> Option<NetInfo> {
        None
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

/// A device's token, so that those of different devices differ.
pub(crate) fn global_token(device: usize, token: u64) -> u64 {
    ((device as u64) << 48) ^ token
}

/// What devices leave for the engine.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) violations: Vec<String>,
    pub(crate) events: Vec<Event>,
    pub(crate) completions: Vec<(u64, Result<serde_json::Value, String>)>,
    /// Sub-channels to offer: device, how many in all.
    pub(crate) subchannels: Vec<(usize, u16)>,
    /// Channels that may have packets left in their rings.
    pub(crate) resumed: Vec<OfferId>,
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
    pub(crate) server: &'a Server,
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
        self.put(index, packet_type, flags, transaction_id, payload)?;
        self.commit(index);
        Ok(())
    }

    /// Writes a packet, which the guest sees after the next [`DeviceIo::commit`] or [`DeviceIo::send`].
    ///
    /// # Errors
    /// As [`DeviceIo::send`]. When the ring is full, what was put before has been committed.
    pub fn put(
        &mut self,
        index: u16,
        packet_type: PacketType,
        flags: PacketFlags,
        transaction_id: u64,
        payload: &[u8],
    ) -> Result<(), SendError> {
        self.put_packet(
            index,
            &Outgoing {
                packet_type,
                flags,
                transaction_id,
                extra: [&[], &[]],
                payload,
            },
        )
    }

    /// Writes a packet whose data are in `ranges` of a buffer, as [`DeviceIo::put`]. The guest is asked for a completion.
    /// That the header counts the ranges rightly is the caller's affair.
    ///
    /// # Errors
    /// As [`DeviceIo::put`].
    pub fn put_transfer_pages(
        &mut self,
        index: u16,
        header: TransferPageHeader,
        ranges: &[TransferRange],
        transaction_id: u64,
        payload: &[u8],
    ) -> Result<(), SendError> {
        self.put_packet(
            index,
            &Outgoing {
                packet_type: PacketType::DATA_USING_XFER_PAGES,
                flags: PacketFlags::COMPLETION_REQUESTED,
                transaction_id,
                extra: [header.as_bytes(), ranges.as_bytes()],
                payload,
            },
        )
    }

    fn put_packet(&mut self, index: u16, packet: &Outgoing<'_>) -> Result<(), SendError> {
        let partition = self.partition;
        let channel = self.channel(index).ok_or(SendError::Closed)?;
        let was_broken = channel.is_broken();
        let result = channel.put(partition, packet);
        if result == Err(SendError::Broken) && !was_broken {
            self.violation("host-to-guest ring: read index is impossible");
        }
        result
    }

    /// Shows the guest what was put, and signals it if the ring says so.
    pub fn commit(&mut self, index: u16) {
        let partition = self.partition;
        if let Some(channel) = self.channel(index) {
            channel.commit(partition);
        }
    }

    /// Gives the guest the room of the packets that were taken so far, before the turn ends.
    pub fn give_room(&mut self, index: u16) {
        let partition = self.partition;
        if let Some(channel) = self.channel(index) {
            channel.pause_service(partition);
        }
    }

    /// Has packets taken from the channel again, after [`Device::is_ready`] said no.
    pub fn resume(&mut self, index: u16) {
        if let Some(id) = self.offers.get(usize::from(index)) {
            self.requests.resumed.push(*id);
        }
    }

    /// The pages of a live GPADL of the device's primary channel.
    pub fn gpadl(&self, id: GpadlId) -> Option<SharedGpadl> {
        self.server.gpadl(*self.offers.first()?, id)
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
        self.requests
            .completions
            .push((global_token(self.device, token), result));
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
