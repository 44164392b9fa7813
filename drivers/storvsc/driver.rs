// SPDX-License-Identifier: GPL-2.0

//! Binding to a device: probe, removal, hibernation.
#![forbid(unsafe_code)]

use hv_vmbus::{
    channel::{Channel, Offered, OpenParams, Subchannels},
    device::Device,
    driver::{DeviceId, Driver, IdTable},
    log::Show,
    services::cpu,
};
use kernel::{
    device::Core,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex}, //
};
use vmbus_proto::{
    class,
    storvsc::{
        client::{Client, Config, Negotiated, Step},
        wire::{IdeAddress, StorVersion},
    },
};

use crate::{
    adapter::{Adapter, ChannelHandler, Kind},
    links::PRIMARY,
    ring_avail_percent_lowater,
    scsi::{Address, Limits, Registration, ScsiHost},
    storvsc_max_hw_queues, storvsc_ringbuffer_size, storvsc_vcpus_per_sub_channel,
};

hv_vmbus::vmbus_device_table!(
    ID_TABLE,
    Kind,
    [
        (DeviceId::new(class::SCSI), Kind::Scsi),
        (DeviceId::new(class::IDE), Kind::Ide),
        (DeviceId::new(class::FC), Kind::FibreChannel),
    ]
);

const PAGE: u32 = 4096;

/// User data of OPEN_CHANNEL: properties that only the host fills in.
const USER_DATA: [u8; 24] = [0; 24];

/// Size in bytes of each ring, header page included (C: `VMBUS_RING_SIZE`).
fn ring_bytes() -> u32 {
    let asked = storvsc_ringbuffer_size.get_unsigned().min(16 << 20);
    // Small sizes are of the data alone.
    let header = if asked >= 8 * PAGE { 0 } else { PAGE };
    (asked + header)
        .next_multiple_of(PAGE)
        .clamp(2 * PAGE, 16 << 20)
}

/// Commands that a channel's ring holds for certain (C: `max_outstanding_req_per_channel`).
fn commands_per_channel() -> u32 {
    // A packet with 32 page frame numbers.
    const PACKET: u32 = 360;
    (ring_bytes() - PAGE) / PACKET
}

/// The limits of a host, but for those that the device itself sets.
fn limits(kind: Kind, single: Address) -> Limits {
    // As the C driver's. An IDE controller's one disk is at a place of its own.
    let (max_channel, max_id, max_lun) = match kind {
        Kind::Scsi => (7, 2, 255),
        Kind::FibreChannel => (7, 128, 255),
        Kind::Ide => (0, single.target + 1, 64),
    };
    let present = cpu::present().max(1);
    if storvsc_max_hw_queues.get_unsigned() > present {
        pr_warn!("storvsc_max_hw_queues is out of range: set to its default\n");
        storvsc_max_hw_queues.set(0);
    }
    let hw_queues = match (kind, storvsc_max_hw_queues.get_unsigned()) {
        (Kind::Ide, _) => 1,
        (_, 0) => present,
        (_, queues) => queues,
    };
    let channels = if kind == Kind::Ide {
        1
    } else {
        let ratio = storvsc_vcpus_per_sub_channel.get().max(1) as u32;
        (cpu::online().max(1) - 1) / ratio + 1
    };
    let percent = 100 - ring_avail_percent_lowater.get_unsigned().min(99);
    let all = u64::from(commands_per_channel()) * u64::from(channels) * u64::from(percent) / 100;
    Limits {
        // The block layer has no more tags.
        can_queue: all.clamp(1, 10240) as u32,
        hw_queues,
        max_sectors: 0,
        max_segments: 0,
        max_channel,
        max_id,
        max_lun,
    }
}

/// Opens `channel`'s rings.
fn params() -> OpenParams<'static> {
    let ring = ring_bytes() as usize;
    OpenParams {
        send_ring: ring,
        recv_ring: ring,
        user_data: &USER_DATA,
    }
}

/// Opens subchannels.
struct Opener {
    adapter: Arc<Adapter>,
}

impl Subchannels for Opener {
    fn offered(&self, channel: Channel<Offered>) {
        let links = &self.adapter.links;
        // More than were asked for stay closed.
        let Some(way) = links.new_way() else {
            return;
        };
        let handler = Ok::<_, Error>(ChannelHandler::new(self.adapter.clone(), way));
        let result = channel
            .open(&params(), handler)
            .and_then(|channel| links.add_subchannel(way, channel));
        if let Err(e) = result {
            // One that the host took back meanwhile is no fault.
            if e != ENODEV {
                pr_err!("a subchannel cannot be used: {}\n", e.to_errno());
            }
        }
    }
}

/// A bound device.
pub(crate) struct Storage {
    adapter: Arc<Adapter>,
    // Dropped by `shut_down`.
    registration: Pin<KBox<Mutex<Option<Registration>>>>,
}

impl Storage {
    fn new(dev: &Device<Core<'_>>, kind: Kind) -> Result<Self> {
        let ide = IdeAddress::from_instance(&dev.instance());
        let single = Address {
            channel: 0,
            target: ide.target.into(),
            lun: 0,
        };
        let host = ScsiHost::new()?;
        let mut limits = limits(kind, single);
        let this = Self {
            adapter: Adapter::new(kind, host.clone(), &limits)?,
            registration: KBox::pin_init(
                new_mutex!(None, "hv_storvsc_rs::registration"),
                GFP_KERNEL,
            )?,
        };
        let agreed = this.connect(dev, kind)?;
        let mut bytes = agreed.max_transfer_bytes;
        if kind == Kind::FibreChannel {
            bytes = bytes.min(512 * 1024);
        }
        limits.max_sectors = bytes / 512;
        limits.max_segments = bytes / PAGE + 1;
        let registration = host
            .clone()
            .register(dev.as_ref(), &limits, this.adapter.clone())?;
        *this.registration.lock() = Some(registration);
        if kind == Kind::Ide {
            host.add_device(single)?;
        } else {
            host.scan();
        }
        Ok(this)
    }

    /// Opens the primary channel and agrees with the host on everything. Subchannels come by themselves.
    fn connect(&self, dev: &Device<Core<'_>>, kind: Kind) -> Result<Negotiated> {
        let adapter = &self.adapter;
        let handler = Ok::<_, Error>(ChannelHandler::new(adapter.clone(), PRIMARY));
        let channel = dev.channel()?.open(&params(), handler)?;
        adapter.links.set_primary(channel)?;
        let result = self.negotiate(dev, kind);
        if result.is_err() {
            adapter.links.close();
        }
        result
    }

    fn negotiate(&self, dev: &Device<Core<'_>>, kind: Kind) -> Result<Negotiated> {
        let adapter = &self.adapter;
        let wanted = u16::try_from(cpu::online().saturating_sub(1)).unwrap_or(u16::MAX);
        // They may be offered before the host says that they will be.
        adapter.links.want_subchannels(wanted);
        let opener = Opener {
            adapter: adapter.clone(),
        };
        dev.on_subchannels(Arc::new(opener, GFP_KERNEL)?);
        let mut client = Client::new(Config {
            newest: StorVersion::V6_2,
            fibre_channel: kind == Kind::FibreChannel,
            sub_channels: wanted,
        });
        let mut packet = client.start();
        loop {
            let answer = adapter.ask(&packet)?;
            match client.on_answer(answer.bytes()) {
                Ok(Step::Send(next)) => packet = next,
                Ok(Step::Ready(agreed)) => {
                    adapter.links.want_subchannels(agreed.sub_channels);
                    adapter.set_version(agreed.version);
                    return Ok(agreed);
                }
                Err(e) => {
                    pr_err!("the host cannot be used: {}\n", Show(e));
                    return Err(EIO);
                }
            }
        }
    }

    /// Takes everything apart; may be called again. `lost`: the host answers no more.
    fn shut_down(&self, lost: bool) {
        let adapter = &self.adapter;
        if lost {
            adapter.set_gone();
            adapter.links.close();
            adapter.fail_all();
        }
        adapter.chores.cancel();
        // Waits for the commands in flight. Caches are flushed, if there is a host to do it.
        let registration = self.registration.lock().take();
        drop(registration);
        adapter.set_gone();
        adapter.links.close();
        adapter.fail_all();
        // What completions asked for meanwhile.
        adapter.chores.cancel();
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // After `unbind` there is nothing left to do.
        self.shut_down(false);
    }
}

/// The driver.
pub(crate) struct StorvscDriver;

impl Driver for StorvscDriver {
    type IdInfo = Kind;
    type Data<'bound> = Storage;

    const NAME: &'static CStr = c"hv_storvsc";
    const ID_TABLE: IdTable<Kind> = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
        id_info: Option<&'bound Kind>,
    ) -> impl PinInit<Storage, Error> + 'bound {
        // A class that the user added: nothing tells what it speaks.
        id_info
            .ok_or(ENODEV)
            .and_then(|kind| Storage::new(dev, *kind))
    }

    fn unbind<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Storage>) {
        this.shut_down(dev.is_rescinded());
    }

    fn suspend<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Storage>) -> Result {
        this.adapter.drain_all();
        this.adapter.chores.cancel();
        this.adapter.links.close();
        Ok(())
    }

    fn resume<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Storage>) -> Result {
        // Commands fail from then on, rather than wait for ever.
        let gone = |_: &Error| this.adapter.set_gone();
        this.connect(dev, this.adapter.kind())
            .map(|_| ())
            .inspect_err(gone)
    }
}
