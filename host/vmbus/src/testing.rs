// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A guest played by a script, on a host without threads: messages, rings and services are real, only the
//! processor is not there. Also for the tests of device models in other crates (feature `testing`).
#![allow(missing_docs)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hv_partition::{GuestRam, HypercallSink, Machine, Partition, PostError, VpIndex};
use hvctl::{Command, Reply};
use parking_lot::Mutex;
use vmbus_proto::gpadl::GpadlMessages;
use vmbus_proto::msg::{
    ChannelMessage, CloseChannel, GpadlHeader, GpadlId, GpadlTeardown, HostMessage,
    InitiateContact, MessageBuffer, OfferChannel, OpenChannel, Relid, RelidReleased, RequestOffers,
    TargetInfo,
};
use vmbus_proto::packet::{PacketFlags, PacketKind, PacketType, TransferRange};
use vmbus_proto::range::GpaRangeHeader;
use vmbus_proto::ring::{Consumer, Producer, ReadError};
use vmbus_proto::{FeatureFlags, VmbusVersion};
use zerocopy::IntoBytes;

use crate::engine::Engine;
use crate::inbox::{Client, Inbox, Input};
use crate::ring::RingPages;
use crate::{devices, DeviceConfig, DeviceMaker};

const PAGES: u64 = 1024;
pub(crate) const MONITOR_PAGE: u64 = 0x3000;

/// The hypervisor, as far as it is needed.
pub struct FakePartition {
    ram: GuestRam,
    vps: u32,
    reference: AtomicU64,
    pub(crate) messages: Mutex<VecDeque<(VpIndex, Vec<u8>)>>,
    /// Messages that fit before the queue is full.
    pub(crate) message_room: AtomicU32,
    pub(crate) events: Mutex<HashSet<(VpIndex, u16)>>,
    /// Called when an event flag is newly set: a vCPU that reacts at once.
    pub(crate) on_event: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Partition for FakePartition {
    fn vp_count(&self) -> u32 {
        self.vps
    }

    fn post_message(
        &self,
        vp: VpIndex,
        sint: u8,
        msg_type: u32,
        payload: &[u8],
    ) -> Result<(), PostError> {
        assert_eq!(msg_type, 1);
        assert_eq!(sint, 2);
        if vp.0 >= self.vps {
            return Err(PostError::InvalidVp);
        }
        let mut messages = self.messages.lock();
        if messages.len() >= self.message_room.load(Ordering::Relaxed) as usize {
            return Err(PostError::QueueFull);
        }
        messages.push_back((vp, payload.to_vec()));
        Ok(())
    }

    fn signal_event(&self, vp: VpIndex, sint: u8, flag: u16) -> Result<bool, PostError> {
        assert_eq!(sint, 2);
        if vp.0 >= self.vps {
            return Err(PostError::InvalidVp);
        }
        let new = self.events.lock().insert((vp, flag));
        if let Some(f) = self.on_event.lock().as_mut().filter(|_| new) {
            f();
        }
        Ok(new)
    }

    fn ram(&self) -> &GuestRam {
        &self.ram
    }

    fn reference_time(&self) -> u64 {
        self.reference.load(Ordering::Relaxed)
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![(
            "synic_messages".into(),
            100 + self.messages.lock().len() as u64,
        )]
    }

    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "guest_os_id": 7 })
    }

    fn profile_mark(&self) -> Result<(), String> {
        Err("no profile".into())
    }

    fn profile_read(&self) -> Result<serde_json::Value, String> {
        Err("no profile".into())
    }
}

/// Records what it is told to do.
#[derive(Default)]
pub struct FakeMachine {
    pub(crate) calls: Mutex<Vec<&'static str>>,
}

impl Machine for FakeMachine {
    fn interrupt(&self, _vp: VpIndex, _vector: u8) {}
    fn tsc(&self) -> u64 {
        0
    }
    fn tsc_frequency(&self) -> u64 {
        1_000_000_000
    }
    fn pause(&self) {
        self.calls.lock().push("pause");
    }
    fn resume(&self) {
        self.calls.lock().push("resume");
    }
    fn reset(&self) {
        self.calls.lock().push("reset");
    }
    fn power_off(&self) {
        self.calls.lock().push("power_off");
    }
}

pub fn fake_partition(vps: u32) -> Arc<FakePartition> {
    Arc::new(FakePartition {
        ram: GuestRam::for_tests((PAGES * 4096) as usize),
        vps,
        reference: AtomicU64::new(10_000_000),
        messages: Mutex::default(),
        message_room: AtomicU32::new(1000),
        events: Mutex::default(),
        on_event: Mutex::default(),
    })
}

pub fn contact() -> InitiateContact {
    let target = TargetInfo {
        sint: 2,
        vtl: 0,
        reserved: [0; 2],
        features: FeatureFlags::empty(),
    };
    InitiateContact {
        version: VmbusVersion::V6_0,
        interrupt_page_or_target: target.to_u64(),
        monitor_page1: 0x2000,
        monitor_page2: MONITOR_PAGE,
        ..InitiateContact::blank()
    }
}

/// The guest's end of an open channel.
pub struct GuestChannel {
    pub(crate) relid: u32,
    gpadl: u32,
    pub(crate) tx: Producer<RingPages>,
    pub(crate) rx: Consumer<RingPages>,
}

/// A packet from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    pub packet_type: PacketType,
    pub flags: PacketFlags,
    pub id: u64,
    /// Of a transfer-page packet: the id of the buffer, and ranges in it.
    pub ranges: Option<(u16, Vec<TransferRange>)>,
    pub payload: Vec<u8>,
}

/// Host and guest.
pub struct Bench {
    pub(crate) engine: Engine,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) partition: Arc<FakePartition>,
    pub machine: Arc<FakeMachine>,
    pub(crate) now: Instant,
    /// What the engine sees of it.
    pub(crate) clock: Arc<Mutex<Instant>>,
    pub(crate) offers: HashMap<String, OfferChannel>,
    /// Relids by class and index.
    relids: HashMap<(String, u16), Relid>,
    client: Client,
    lines: Receiver<String>,
    next_id: u64,
    next_page: u64,
    next_gpadl: u32,
}

impl Bench {
    pub fn new(device_configs: &[DeviceConfig]) -> Self {
        Self::with_makers(device_configs, &[])
    }

    /// With device models of other crates.
    pub fn with_makers(device_configs: &[DeviceConfig], makers: &[DeviceMaker]) -> Self {
        let partition = fake_partition(4);
        let machine = Arc::new(FakeMachine::default());
        let inbox = Arc::new(Inbox::new());
        let mut engine = Engine::new(
            VmbusVersion::V6_0,
            partition.clone(),
            machine.clone(),
            inbox.clone(),
            None,
        );
        let now = Instant::now();
        let clock = Arc::new(Mutex::new(now));
        let read = clock.clone();
        engine.host_clock = Box::new(move || *read.lock());
        for config in device_configs {
            engine.add_device(devices::make(config, makers).expect("a known device"));
        }
        let (sender, lines) = sync_channel(1000);
        Self {
            engine,
            inbox,
            partition,
            machine,
            now,
            clock,
            offers: HashMap::new(),
            relids: HashMap::new(),
            client: Client::new(sender),
            lines,
            next_id: 1,
            next_page: 16,
            next_gpadl: 0xe1e10,
        }
    }

    /// As the worker thread: takes what came in.
    pub fn run(&mut self) {
        // In the past: nothing is waited for.
        let taken = self.inbox.take(Instant::now(), self.engine.has_room());
        for input in taken.inputs {
            self.engine.input(input, self.now);
        }
        for (relid, count) in taken.signals {
            self.engine.signal(relid, count, self.now);
        }
        self.engine.tick(self.now);
    }

    /// Lets time pass, for the host and, unless the VM is `stopped`, for the guest.
    pub fn pass(&mut self, ms: u64, stopped: bool) {
        for _ in 0..ms.div_ceil(10) {
            self.now += Duration::from_millis(10);
            *self.clock.lock() = self.now;
            if !stopped {
                self.partition
                    .reference
                    .fetch_add(100_000, Ordering::Relaxed);
            }
            self.run();
        }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        assert_eq!(self.inbox.post_message(VpIndex(0), 4, 1, bytes), 0);
        self.run();
    }

    pub fn send<M: ChannelMessage>(&mut self, message: M) {
        self.raw(message.as_bytes());
    }

    /// The next channel message, taken from the queue.
    pub fn heard(&mut self) -> Option<HostMessage> {
        let (_, bytes) = self.partition.messages.lock().pop_front()?;
        Some(HostMessage::parse(&bytes).expect("host sends what parses"))
    }

    pub fn connect(&mut self) {
        self.send(contact());
        assert!(matches!(
            self.heard(),
            Some(HostMessage::VersionResponse(_))
        ));
        self.send(RequestOffers::blank());
        self.take_offers();
    }

    /// Reads offers; whether they ended with the mark.
    pub fn take_offers(&mut self) -> bool {
        while let Some(message) = self.heard() {
            match message {
                HostMessage::OfferChannel(offer) => {
                    let name = vmbus_proto::class::class_of(&offer.class_id).name;
                    self.relids
                        .insert((name.into(), offer.subchannel_index), offer.relid);
                    self.offers.insert(name.into(), offer);
                }
                HostMessage::AllOffersDelivered(_) => return true,
                other => panic!("{other:?}"),
            }
        }
        false
    }

    /// Guest memory. Pages from 16 on are used for rings, from the lowest on.
    pub fn ram(&self) -> &GuestRam {
        &self.partition.ram
    }

    /// Waits until a device's thread has called for the worker, and runs it.
    pub fn wait_and_run(&mut self) {
        let taken = self.inbox.take(
            Instant::now() + Duration::from_secs(10),
            self.engine.has_room(),
        );
        for input in taken.inputs {
            self.engine.input(input, self.now);
        }
        for (relid, count) in taken.signals {
            self.engine.signal(relid, count, self.now);
        }
        self.engine.tick(self.now);
    }

    /// The relid of channel `index` of the device of class `name`, as offered last.
    pub fn relid(&self, name: &str, index: u16) -> Option<Relid> {
        self.relids.get(&(name.to_owned(), index)).copied()
    }

    /// Shares pages by a GPADL of channel `relid`.
    pub fn share(&mut self, relid: Relid, pfns: &[u64]) -> GpadlId {
        let gpadl = GpadlId(self.next_gpadl);
        self.next_gpadl += 1;
        let bytes = pfns.len() as u32 * 4096;
        let messages = GpadlMessages::new(relid, gpadl, 0, bytes, pfns.iter().copied());
        for message in messages.expect("a GPADL") {
            self.raw(message.as_bytes());
        }
        assert!(
            matches!(self.heard(), Some(HostMessage::GpadlCreated(g)) if g.status.is_success())
        );
        gpadl
    }

    /// Takes a GPADL back.
    pub fn unshare(&mut self, relid: Relid, gpadl: GpadlId) {
        self.send(GpadlTeardown {
            relid,
            gpadl,
            ..GpadlTeardown::blank()
        });
        let heard = self.heard();
        assert!(
            matches!(heard, Some(HostMessage::GpadlTorndown(t)) if t.gpadl == gpadl),
            "{heard:?}"
        );
    }

    /// Opens the channel of class `name` with rings of `pages` pages each.
    pub fn open(&mut self, name: &str, pages: u64) -> GuestChannel {
        let relid = self.offers[name].relid;
        self.open_relid(relid, pages)
    }

    /// Opens a channel with rings of `pages` pages each.
    pub fn open_relid(&mut self, relid: Relid, pages: u64) -> GuestChannel {
        let pfns: Vec<u64> = (self.next_page..self.next_page + 2 * pages).collect();
        self.next_page += 2 * pages;
        let gpadl = GpadlId(self.next_gpadl);
        self.next_gpadl += 1;
        let header = GpadlHeader {
            relid,
            gpadl,
            range_buflen: (8 + pfns.len() * 8) as u16,
            range_count: 1,
            ..GpadlHeader::blank()
        };
        let mut message = MessageBuffer::from_message(&header);
        let range = GpaRangeHeader {
            byte_count: pfns.len() as u32 * 4096,
            byte_offset: 0,
        };
        message.append(range.as_bytes()).expect("fits");
        pfns.iter()
            .for_each(|pfn| message.append(&pfn.to_le_bytes()).expect("fits"));
        self.raw(message.as_bytes());
        assert!(
            matches!(self.heard(), Some(HostMessage::GpadlCreated(g)) if g.status.is_success())
        );
        let (tx, rx) = pfns.split_at(pages as usize);
        let ring = |pfns| RingPages::new(self.partition.ram.clone(), pfns).expect("ring");
        let channel = GuestChannel {
            relid: relid.0,
            gpadl: gpadl.0,
            tx: Producer::init(ring(tx)).expect("ring"),
            rx: Consumer::init(ring(rx)).expect("ring"),
        };
        self.send(OpenChannel {
            relid,
            ring_gpadl: gpadl,
            target_vp: 1,
            downstream_page_offset: pages as u32,
            ..OpenChannel::blank()
        });
        assert!(
            matches!(self.heard(), Some(HostMessage::OpenChannelResult(o)) if o.status.is_success())
        );
        channel
    }

    pub fn close(&mut self, channel: &GuestChannel) {
        let (relid, gpadl) = (Relid(channel.relid), GpadlId(channel.gpadl));
        self.send(CloseChannel {
            relid,
            ..CloseChannel::blank()
        });
        self.send(GpadlTeardown {
            relid,
            gpadl,
            ..GpadlTeardown::blank()
        });
        // Sub-channels go with their primary channel.
        let heard = loop {
            match self.heard() {
                Some(HostMessage::RescindChannelOffer(_)) => {}
                other => break other,
            }
        };
        assert!(
            matches!(heard, Some(HostMessage::GpadlTorndown(t)) if t.gpadl == gpadl),
            "{heard:?}"
        );
    }

    pub fn release(&mut self, relid: u32) {
        self.send(RelidReleased {
            relid: Relid(relid),
            ..RelidReleased::blank()
        });
    }

    /// The guest's HvCallSignalEvent for the channel.
    pub fn signal(&mut self, relid: u32) -> u16 {
        let status = self.inbox.signal_event(VpIndex(0), 0x2000 | relid, 0);
        self.run();
        status
    }

    /// The next packet's transaction id and payload.
    pub fn receive(&mut self, channel: &mut GuestChannel) -> Option<(u64, Vec<u8>)> {
        let mut buf = vec![0; 65536];
        match channel.rx.read(&mut buf) {
            Ok(packet) => {
                let got = (packet.transaction_id(), packet.payload.to_vec());
                let drained = channel.rx.finish();
                self.partition
                    .events
                    .lock()
                    .remove(&(VpIndex(1), channel.relid as u16));
                if drained.signal {
                    self.signal(channel.relid);
                }
                Some(got)
            }
            Err(ReadError::Empty) => {
                let _ = channel.rx.finish();
                None
            }
            Err(e) => panic!("host wrote {e}"),
        }
    }

    /// The next packet, as it is.
    pub fn receive_packet(&mut self, channel: &mut GuestChannel) -> Option<Heard> {
        let mut buf = vec![0; 65536];
        let heard = match channel.rx.read(&mut buf) {
            Ok(packet) => Heard {
                packet_type: packet.descriptor.packet_type,
                flags: packet.descriptor.flags,
                id: packet.transaction_id(),
                ranges: match packet.kind {
                    PacketKind::TransferPages { set_id, ranges } => {
                        Some((set_id, ranges.iter().collect()))
                    }
                    _ => None,
                },
                payload: packet.payload.to_vec(),
            },
            Err(ReadError::Empty) => {
                let _ = channel.rx.finish();
                return None;
            }
            Err(e) => panic!("host wrote {e}"),
        };
        let drained = channel.rx.finish();
        self.partition
            .events
            .lock()
            .remove(&(VpIndex(1), channel.relid as u16));
        if drained.signal {
            self.signal(channel.relid);
        }
        Some(heard)
    }

    /// Completes a packet of the host.
    pub fn complete(&mut self, channel: &mut GuestChannel, id: u64, payload: &[u8]) {
        channel.tx.send_completion(id, payload).expect("room");
        if channel.tx.commit() {
            self.signal(channel.relid);
        } else {
            self.run();
        }
    }

    /// Whether the guest has been signalled for the channel since it last read a packet.
    pub fn is_signalled(&self, channel: &GuestChannel) -> bool {
        let event = (VpIndex(1), channel.relid as u16);
        self.partition.events.lock().contains(&event)
    }

    /// Sends a packet and signals if the ring says so.
    pub fn transmit(&mut self, channel: &mut GuestChannel, id: u64, payload: &[u8]) {
        channel.tx.send_in_band(payload, id, false).expect("room");
        if channel.tx.commit() {
            assert_eq!(self.signal(channel.relid), 0);
        } else {
            self.run();
        }
    }

    /// Sends a packet that wants a completion, with its data in one GPA range: offset in the first page, length,
    /// pages.
    pub fn transmit_gpa(
        &mut self,
        channel: &mut GuestChannel,
        id: u64,
        payload: &[u8],
        (byte_offset, byte_count, pfns): (u32, u32, &[u64]),
    ) {
        let header = GpaRangeHeader {
            byte_count,
            byte_offset,
        };
        let extra = 8 + 8 + 8 * pfns.len();
        let writer = channel.tx.begin(
            PacketType::DATA_USING_GPA_DIRECT,
            PacketFlags::COMPLETION_REQUESTED,
            id,
            extra,
            payload.len(),
        );
        let mut writer = writer.expect("room");
        writer.put(&[0, 0, 0, 0, 1, 0, 0, 0]).expect("length");
        writer.put(header.as_bytes()).expect("length");
        for pfn in pfns {
            writer.put(&pfn.to_le_bytes()).expect("length");
        }
        writer.put(payload).expect("length");
        writer.finish().expect("length");
        if channel.tx.commit() {
            self.signal(channel.relid);
        } else {
            self.run();
        }
    }

    /// Sends a packet that wants a completion.
    pub fn transmit_request(&mut self, channel: &mut GuestChannel, id: u64, payload: &[u8]) {
        channel.tx.send_in_band(payload, id, true).expect("room");
        if channel.tx.commit() {
            self.signal(channel.relid);
        } else {
            self.run();
        }
    }

    /// Sends a packet of another type.
    pub fn transmit_type(
        &mut self,
        channel: &mut GuestChannel,
        packet_type: PacketType,
        payload: &[u8],
    ) {
        let writer = channel
            .tx
            .begin(packet_type, PacketFlags::empty(), 1, 0, payload.len());
        let mut writer = writer.expect("room");
        writer.put(payload).expect("length");
        writer.finish().expect("length");
        if channel.tx.commit() {
            self.signal(channel.relid);
        }
    }

    /// Sends a control command; its answer comes by [`Bench::answer`].
    pub fn ask(&mut self, cmd: Command) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.inbox.push(Input::Control {
            client: self.client.clone(),
            id,
            cmd,
        });
        self.run();
        id
    }

    /// The answer to request `id`, if it is there; lines before it are dropped.
    pub fn answer(&mut self, id: u64) -> Option<Result<serde_json::Value, String>> {
        while let Ok(line) = self.lines.try_recv() {
            if let Ok(reply) = serde_json::from_str::<Reply>(&line) {
                if reply.id == id {
                    return Some(match reply.err {
                        Some(err) => Err(err),
                        None => Ok(reply.ok.unwrap_or_default()),
                    });
                }
            }
        }
        None
    }

    /// Sends a command that is answered at once.
    pub fn control(&mut self, cmd: Command) -> Result<serde_json::Value, String> {
        let id = self.ask(cmd);
        self.answer(id).expect("answered at once")
    }

    /// All lines that wait, such as events.
    pub fn all_lines(&mut self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    pub fn violations(&mut self) -> hvctl::Violations {
        let value = self.control(Command::Violations).expect("violations");
        serde_json::from_value(value).expect("violations")
    }
}
