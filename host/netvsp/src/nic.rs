// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A NIC: its channels, its buffers, and what comes and goes on them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use hv_net::frame::Coalescer;
use hv_net::Backend;
use hv_vmbus_host::device::{Control, Device, DeviceInfo, DeviceIo, RefTime};
use hvctl::{Command, Event, NetCounters, NetInfo, NetMessage, NetQueue, NetState};
use vmbus_proto::class;
use vmbus_proto::msg::{GpadlId, OfferFlags, USER_DATA_SIZE};
use vmbus_proto::net::nvsp::{
    ChannelType, MessageType, NdisCapabilities, NdisVersion, NvspMessage, NvspStatus, NvspVersion,
    ReceiveSections, SendRndisPacket, SendTable, TableForm, VfAssociation, MAX_TABLE_MESSAGE,
    NO_SECTION, SEND_TABLE_SIZE,
};
use vmbus_proto::net::packet::ETHERNET_HEADER_SIZE;
use vmbus_proto::net::rndis::RndisStatus;
use vmbus_proto::net::server::{Answer, BufferOffer, Config, Server, Verdict};
use vmbus_proto::packet::{Packet, PacketFlags, PacketType, TransferPageHeader, TransferRange};
use zerocopy::IntoBytes;

use crate::args::{version_name, NicConfig};
use crate::buffers::{Pages, RecvBuffer, SendBuffer};
use crate::faults::Faults;
use crate::post::{Message, Outbox};
use crate::rndis::{indication, Facts, Link, Outcome, Rndis, State};
use crate::rx::{Rx, RxFrame};
use crate::tx::Tx;

/// Bytes of a receive section beside the frame: headers, and what Hyper-V adds to 1500 to make 1728.
const SECTION_OVERHEAD: u32 = 214;
/// Answers that wait for a receive section at most.
const MAX_ANSWERS: usize = 64;

/// One opening of a channel.
pub(crate) struct Chan {
    /// Tells openings apart.
    pub(crate) epoch: u64,
    pub(crate) outbox: Outbox,
    /// Frames for the guest.
    pub(crate) waiting: VecDeque<RxFrame>,
    /// Segments that are put together.
    pub(crate) coalescer: Coalescer,
    /// The guest took nothing for too long: frames are thrown away until it does.
    pub(crate) choked: bool,
}

/// The device model. See the crate's documentation.
pub struct Nic {
    pub(crate) info: DeviceInfo,
    pub(crate) config: NicConfig,
    server: Config,
    pub(crate) protocol: Server,
    pub(crate) rndis: Rndis,
    pub(crate) recv: Option<RecvBuffer>,
    pub(crate) send: Option<SendBuffer>,
    pub(crate) channels: Vec<Option<Chan>>,
    epochs: u64,
    /// By channel.
    pub(crate) queues: Vec<NetQueue>,
    pub(crate) counters: NetCounters,
    pub(crate) faults: Faults,
    pub(crate) backend: Box<dyn Backend>,
    started: bool,
    woken: Arc<AtomicBool>,
    /// What the host's administrator wants, and the speed.
    pub(crate) link: Link,
    /// What the guest was told last.
    pub(crate) link_told: bool,
    /// Answers and indications that wait for a section.
    answers: VecDeque<(NetMessage, Vec<u8>)>,
    /// Sub-channels that the guest asked for.
    wanted: u16,
    pub(crate) send_table: Vec<u32>,
    running_told: bool,
    pub(crate) rx: Rx,
    pub(crate) tx: Tx,
}

impl Nic {
    /// Makes a NIC.
    ///
    /// # Errors
    /// A sentence about a back end that cannot be had.
    pub fn new(config: NicConfig) -> Result<Self, String> {
        let backend = hv_net::open(&config.backend)?;
        Ok(Self::with_backend(config, backend))
    }

    /// Makes a NIC that is plugged into `backend`.
    pub fn with_backend(config: NicConfig, backend: Box<dyn Backend>) -> Self {
        let server = Config {
            newest: config.newest,
            max_mtu: config.max_mtu,
            max_sub_channels: config.max_subchannels,
        };
        let channels = usize::from(config.max_subchannels) + 1;
        let protocol = Server::new(server);
        let link = Link {
            up: config.link,
            speed: config.speed,
        };
        Self {
            info: DeviceInfo {
                name: config.name.clone(),
                class: class::NIC,
                instance: config.instance,
                flags: OfferFlags::empty(),
                user_data: [0; USER_DATA_SIZE],
                mmio_megabytes: 0,
                monitored: false,
                max_subchannels: config.max_subchannels,
            },
            server,
            rndis: Rndis::new(facts(&config, &protocol)),
            protocol,
            recv: None,
            send: None,
            channels: (0..channels).map(|_| None).collect(),
            epochs: 0,
            queues: (0..)
                .take(channels)
                .map(|index| NetQueue {
                    index,
                    ..NetQueue::default()
                })
                .collect(),
            counters: NetCounters::default(),
            faults: Faults::default(),
            backend,
            started: false,
            woken: Arc::new(AtomicBool::new(false)),
            link,
            link_told: config.link,
            answers: VecDeque::new(),
            wanted: 0,
            send_table: Vec::new(),
            running_told: false,
            rx: Rx::default(),
            tx: Tx::default(),
            config,
        }
    }

    fn version(&self) -> NvspVersion {
        self.protocol.version().unwrap_or(NvspVersion::V1)
    }

    /// What the guest is to be told about the link.
    pub(crate) fn link_now(&self) -> Link {
        Link {
            up: self.link.up && self.backend.link(),
            ..self.link
        }
    }

    pub(crate) fn open_channels(&self) -> u32 {
        self.channels.iter().flatten().count() as u32
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.faults.stalled_until.is_some()
    }

    pub(crate) fn channel(&mut self, index: u16) -> Option<&mut Chan> {
        self.channels.get_mut(usize::from(index))?.as_mut()
    }

    pub(crate) fn queue(&mut self, index: u16) -> &mut NetQueue {
        &mut self.queues[usize::from(index)]
    }

    /// Sends a message on a channel, behind those that wait.
    pub(crate) fn post(&mut self, io: &mut DeviceIo<'_>, index: u16, message: Message) {
        let held = message.transfer.is_some().then_some(message.id);
        let Some(Some(chan)) = self.channels.get_mut(usize::from(index)) else {
            return;
        };
        let posted = chan.outbox.post(io, index, message, &mut self.faults);
        // The guest will never give back what it never gets.
        if let (false, Some(id), Some(recv)) = (posted, held, &mut self.recv) {
            recv.release(index, id);
        }
    }

    /// Completes a packet, if it asked for that.
    fn complete(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        packet: &Packet<'_>,
        answer: &Answer,
    ) {
        if packet.descriptor.wants_completion() {
            let kind = answer_kind(answer);
            let message = Message::completion(kind, packet.transaction_id(), answer.as_bytes());
            self.post(io, index, message);
        }
    }

    /// Completes frames of the guest, by the channel's epoch and the transaction id.
    pub(crate) fn complete_frames(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        epoch: u64,
        id: u64,
        status: NvspStatus,
    ) {
        if self.channel(index).is_some_and(|c| c.epoch == epoch) {
            let answer = self.protocol.rndis_complete(status);
            let message = Message::completion(NetMessage::SendCompletion, id, answer.as_bytes());
            self.post(io, index, message);
        }
    }

    fn on_receive_buffer(&mut self, io: &mut DeviceIo<'_>, offer: BufferOffer) -> Answer {
        let section =
            (self.protocol.mtu() + ETHERNET_HEADER_SIZE + SECTION_OVERHEAD).next_multiple_of(8);
        let buffer = io
            .gpadl(offer.gpadl)
            .and_then(|gpadl| Pages::new(io.ram().clone(), offer.gpadl, gpadl))
            .filter(|pages| pages.len() <= self.version().max_receive_buffer() as usize)
            .and_then(|pages| {
                RecvBuffer::new(
                    pages,
                    offer.id,
                    section,
                    self.config.recv_sections,
                    self.channels.len(),
                )
            });
        let Some(buffer) = buffer else {
            io.violation(format!("receive buffer {} cannot be used", offer.gpadl));
            return self.protocol.receive_buffer(None);
        };
        let sections = ReceiveSections {
            offset: 0,
            size: buffer.section,
            count: buffer.count,
            end: buffer.section * buffer.count,
        };
        self.recv = Some(buffer);
        self.protocol.receive_buffer(Some(sections))
    }

    fn on_send_buffer(&mut self, io: &mut DeviceIo<'_>, offer: BufferOffer) -> Answer {
        let section = self.config.send_section;
        let buffer = io
            .gpadl(offer.gpadl)
            .and_then(|gpadl| Pages::new(io.ram().clone(), offer.gpadl, gpadl))
            .and_then(|pages| SendBuffer::new(pages, section));
        let Some(buffer) = buffer else {
            io.violation(format!("send buffer {} cannot be used", offer.gpadl));
            return self.protocol.send_buffer(None);
        };
        self.send = Some(buffer);
        self.protocol.send_buffer(Some(section))
    }

    /// A request to the RNDIS device, a private copy.
    pub(crate) fn on_request(&mut self, io: &mut DeviceIo<'_>, bytes: &[u8]) {
        if self.answers.len() >= MAX_ANSWERS {
            io.violation(format!(
                "more than {MAX_ANSWERS} requests without an answer taken"
            ));
            return;
        }
        if self.rndis.state == State::Fresh {
            // What was agreed on since the channel was opened.
            let new_mac = self.rndis.new_mac;
            self.rndis.facts = facts(&self.config, &self.protocol);
            self.rndis.new_mac = new_mac;
        }
        let before = self.rndis.state;
        let link = self.link_now();
        let Outcome {
            answer,
            indication,
            refused,
            violation,
        } = self.rndis.on_message(bytes, link);
        if let Some(text) = violation {
            io.violation(text);
        }
        if before != State::Initialized && self.rndis.state == State::Initialized {
            self.link_told = link.up;
            io.event(Event::Negotiated {
                device: self.info.name.clone(),
                agreed: version_name(self.version()).into(),
            });
        }
        self.counters.requests += u64::from(answer.is_some());
        self.counters.requests_refused += u64::from(refused);
        self.answers
            .extend(answer.map(|bytes| (NetMessage::Answer, bytes)));
        self.answers
            .extend(indication.map(|bytes| (NetMessage::Indication, bytes)));
        self.tell_running(io);
    }

    /// Tells watchers whether frames go through.
    fn tell_running(&mut self, io: &mut DeviceIo<'_>) {
        let running = self.rndis.is_running();
        if running != self.running_told {
            self.running_told = running;
            io.event(Event::NetRunning {
                device: self.info.name.clone(),
                running,
            });
        }
    }

    /// Queues a status indication; whether there is a driver to read it.
    pub(crate) fn indicate(&mut self, status: RndisStatus, buffer: &[u8]) -> bool {
        if self.rndis.state != State::Initialized {
            return false;
        }
        self.answers
            .extend(indication(status, buffer).map(|bytes| (NetMessage::Indication, bytes)));
        true
    }

    /// Tells the guest of a link that changed.
    pub(crate) fn check_link(&mut self) {
        let up = self.link_now().up;
        if up != self.link_told {
            let status = if up {
                RndisStatus::MEDIA_CONNECT
            } else {
                RndisStatus::MEDIA_DISCONNECT
            };
            if self.indicate(status, &[]) {
                self.link_told = up;
            }
        }
    }

    /// Sends a send-indirection table; whether there is a driver that knows of it.
    pub(crate) fn post_send_table(&mut self, io: &mut DeviceIo<'_>, entries: &[u32]) -> bool {
        if !self.protocol.version().is_some_and(|v| v.has_subchannels()) {
            return false;
        }
        let mut table = [0; SEND_TABLE_SIZE];
        for (to, from) in table.iter_mut().zip(entries.iter().cycle()) {
            *to = *from;
        }
        self.send_table = table.to_vec();
        let mut message = [0; MAX_TABLE_MESSAGE];
        let bytes = SendTable::new(table).message(self.config.table_form, &mut message);
        self.post(io, 0, Message::notice(NetMessage::SendTable, bytes));
        true
    }

    pub(crate) fn post_vf(&mut self, io: &mut DeviceIo<'_>, serial: Option<u32>) -> bool {
        if self.version() < NvspVersion::V4 {
            return false;
        }
        let body = VfAssociation {
            allocated: u32::from(serial.is_some()),
            serial: serial.unwrap_or(0),
        };
        let message = NvspMessage::new(MessageType::SEND_VF_ASSOCIATION, &body);
        let bytes = message.bytes_for(self.version()).to_vec();
        self.post(io, 0, Message::notice(NetMessage::Vf, &bytes));
        true
    }

    /// Writes RNDIS messages to sections and sends them, one range each. `sections` are taken already.
    pub(crate) fn post_ranges(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        kind: NetMessage,
        sections: Vec<u32>,
        ranges: Vec<TransferRange>,
    ) {
        let (Some(recv), Some(first)) = (&mut self.recv, sections.first().copied()) else {
            return;
        };
        let channel = if kind == NetMessage::Data {
            ChannelType::DATA
        } else {
            ChannelType::CONTROL
        };
        let body = SendRndisPacket {
            channel,
            section_index: NO_SECTION,
            section_size: 0,
        };
        let header = TransferPageHeader {
            set_id: recv.id,
            range_count: ranges.len() as u32,
            ..TransferPageHeader::default()
        };
        let id = u64::from(first);
        recv.hold(index, id, sections);
        let payload = NvspMessage::new(MessageType::SEND_RNDIS_PKT, &body);
        let message = Message {
            kind,
            packet_type: PacketType::DATA_USING_XFER_PAGES,
            flags: PacketFlags::COMPLETION_REQUESTED,
            id,
            transfer: Some((header, ranges)),
            payload: payload.bytes_for(self.version()).to_vec(),
        };
        self.post(io, index, message);
    }

    /// Sends answers, as far as there are sections and room in the ring.
    fn post_answers(&mut self, io: &mut DeviceIo<'_>) {
        while !self.answers.is_empty() {
            if !self.channel(0).is_some_and(|c| c.outbox.is_clear()) {
                return;
            }
            let Some(recv) = &mut self.recv else { return };
            let Some(section) = recv.take() else {
                self.counters.rx_starved += 1;
                return;
            };
            let Some((kind, mut bytes)) = self.answers.pop_front() else {
                return;
            };
            self.faults.on_rndis(0, kind, &mut bytes);
            let offset = recv.offset(section);
            recv.pages.write(offset as usize, &bytes);
            let range = TransferRange {
                byte_count: bytes.len() as u32,
                byte_offset: offset,
            };
            self.post_ranges(io, 0, kind, vec![section], vec![range]);
        }
    }

    /// Goes on with all that waits.
    pub(crate) fn pump(&mut self, io: &mut DeviceIo<'_>) {
        if self.is_stalled() {
            return;
        }
        for (index, chan) in (0..).zip(&mut self.channels) {
            if let Some(chan) = chan {
                chan.outbox.flush(io, index);
            }
        }
        self.post_answers(io);
        self.flush_tx(io);
        self.pull(io);
        self.deliver(io);
        for (index, chan) in (0..).zip(&mut self.channels) {
            if let Some(chan) = chan {
                chan.outbox.commit(io, index);
            }
        }
    }

    /// Everything that a guest's driver had.
    fn forget_driver(&mut self) {
        self.protocol = Server::new(self.server);
        let new_mac = self.rndis.new_mac;
        self.rndis = Rndis::new(facts(&self.config, &self.protocol));
        self.rndis.new_mac = new_mac;
        self.recv = None;
        self.send = None;
        self.answers.clear();
        self.wanted = 0;
        self.send_table.clear();
        self.rx.forget();
        self.tx.forget();
    }

    /// Messages that nobody asked for, at the opening of a channel.
    fn post_early(&mut self, io: &mut DeviceIo<'_>, index: u16) {
        for kind in self.faults.on_open(index) {
            let message = early(kind, self.recv.as_ref().map(|r| r.id));
            if message.transfer.is_some() {
                self.faults.allow(index, message.id);
            }
            self.post(io, index, message);
        }
        if let Some(chan) = self.channel(index) {
            chan.outbox.commit(io, index);
        }
    }

    fn state(&self) -> NetState {
        if self.channels[0].is_none() {
            NetState::Closed
        } else if self.rndis.is_running() {
            NetState::Running
        } else if self.rndis.state == State::Initialized {
            NetState::Initialized
        } else if self.recv.is_some() {
            NetState::Connected
        } else {
            NetState::Connecting
        }
    }
}

fn facts(config: &NicConfig, protocol: &Server) -> Facts {
    let capabilities = protocol.capabilities();
    let version = protocol.version().unwrap_or(NvspVersion::V1);
    let mut offloads = config.offloads;
    offloads.vlan &= capabilities.contains(NdisCapabilities::IEEE_8021Q);
    Facts {
        mac: config.mac,
        mac_change: config.mac_change,
        mtu: protocol.mtu(),
        ndis: protocol
            .ndis_version()
            .unwrap_or(NdisVersion { major: 5, minor: 0 }),
        offloads,
        rsc: version >= NvspVersion::V6_1 && capabilities.contains(NdisCapabilities::RSC),
        channels: config.max_subchannels + 1,
        table: config.table,
        friendly_name: config.friendly_name.clone(),
    }
}

fn answer_kind(answer: &Answer) -> NetMessage {
    match answer.message_type() {
        Some(MessageType::INIT_COMPLETE) => NetMessage::InitCompletion,
        Some(MessageType::SEND_RECV_BUF_COMPLETE) => NetMessage::RecvBufCompletion,
        Some(MessageType::SEND_SEND_BUF_COMPLETE) => NetMessage::SendBufCompletion,
        Some(MessageType::SUBCHANNEL) => NetMessage::SubchannelCompletion,
        _ => NetMessage::SendCompletion,
    }
}

/// A message out of the blue.
fn early(kind: NetMessage, set_id: Option<u16>) -> Message {
    /// A transaction id that no guest gives.
    const UNKNOWN_ID: u64 = 0x6e6f_7375_6368_6964;
    let rndis = |channel| Message {
        kind,
        packet_type: PacketType::DATA_USING_XFER_PAGES,
        flags: PacketFlags::COMPLETION_REQUESTED,
        id: UNKNOWN_ID,
        transfer: Some((
            TransferPageHeader {
                set_id: set_id.unwrap_or(vmbus_proto::net::nvsp::RECEIVE_BUFFER_ID),
                range_count: 1,
                ..TransferPageHeader::default()
            },
            vec![TransferRange {
                byte_count: 64,
                byte_offset: 0,
            }],
        )),
        payload: NvspMessage::new(
            MessageType::SEND_RNDIS_PKT,
            &SendRndisPacket {
                channel,
                section_index: NO_SECTION,
                section_size: 0,
            },
        )
        .as_bytes()
        .to_vec(),
    };
    let completion = |message_type| {
        let message = NvspMessage::new(message_type, &[1u32, 1, 0, 1728, 9000, 0]);
        Message::completion(kind, UNKNOWN_ID, message.as_bytes())
    };
    match kind {
        NetMessage::Data => rndis(ChannelType::DATA),
        NetMessage::Answer | NetMessage::Indication => rndis(ChannelType::CONTROL),
        NetMessage::SendCompletion => completion(MessageType::SEND_RNDIS_PKT_COMPLETE),
        NetMessage::InitCompletion => completion(MessageType::INIT_COMPLETE),
        NetMessage::RecvBufCompletion => completion(MessageType::SEND_RECV_BUF_COMPLETE),
        NetMessage::SendBufCompletion => completion(MessageType::SEND_SEND_BUF_COMPLETE),
        NetMessage::SubchannelCompletion => completion(MessageType::SUBCHANNEL),
        NetMessage::SendTable => {
            let mut out = [0; MAX_TABLE_MESSAGE];
            let bytes = SendTable::round_robin(1).message(TableForm::Compact, &mut out);
            Message::notice(kind, bytes)
        }
        NetMessage::Vf => {
            let body = VfAssociation::default();
            let message = NvspMessage::new(MessageType::SEND_VF_ASSOCIATION, &body);
            Message::notice(kind, message.as_bytes())
        }
    }
}

impl Device for Nic {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn opened(&mut self, io: &mut DeviceIo<'_>, index: u16) -> Result<(), String> {
        if !self.started {
            let (waker, woken) = (io.waker(), self.woken.clone());
            self.backend.start(Arc::new(move || {
                // One call until the device has looked is enough.
                if !woken.swap(true, Ordering::AcqRel) {
                    waker.wake();
                }
            }))?;
            self.started = true;
        }
        self.epochs += 1;
        let slot = self
            .channels
            .get_mut(usize::from(index))
            .ok_or("no such channel")?;
        *slot = Some(Chan {
            epoch: self.epochs,
            outbox: Outbox::default(),
            waiting: VecDeque::new(),
            coalescer: Coalescer::default(),
            choked: false,
        });
        self.queue(index).open = true;
        if index == 0 {
            self.forget_driver();
        }
        self.post_early(io, index);
        if index > 0 && self.wanted > 0 && self.open_channels() == u32::from(self.wanted) + 1 {
            // Spread the guest's frames over what is open now (OpenVMM `netvsp`, `guest_send_indirection_table`).
            let entries: Vec<u32> = (0..=u32::from(self.wanted)).collect();
            self.post_send_table(io, &entries);
            self.pump(io);
        }
        Ok(())
    }

    fn closed(&mut self, io: &mut DeviceIo<'_>, index: u16) {
        let Some(chan) = self
            .channels
            .get_mut(usize::from(index))
            .and_then(Option::take)
        else {
            return;
        };
        self.counters.rx_not_running += chan.waiting.len() as u64;
        self.queue(index).open = false;
        self.faults.forget_channel(index);
        if index == 0 {
            self.forget_driver();
            self.tell_running(io);
        } else if let Some(recv) = &mut self.recv {
            recv.release_channel(index);
        }
    }

    fn gpadl_gone(&mut self, io: &mut DeviceIo<'_>, id: GpadlId) {
        if self.recv.as_ref().is_some_and(|r| r.pages.id == id) {
            self.recv = None;
            self.protocol.receive_buffer_gone();
            if io.is_open(0) {
                io.violation("receive buffer was torn down before it was revoked");
            }
        }
        if self.send.as_ref().is_some_and(|s| s.pages.id == id) {
            self.send = None;
            self.protocol.send_buffer_gone();
            if io.is_open(0) {
                io.violation("send buffer was torn down before it was revoked");
            }
        }
    }

    fn is_ready(&self, _index: u16) -> bool {
        !self.is_stalled() && !self.tx.is_full()
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, index: u16, packet: &Packet<'_>) {
        match self.protocol.on_packet(index, packet) {
            Verdict::Rndis(rndis) => self.on_rndis(io, index, packet, &rndis),
            Verdict::RndisComplete(status) => {
                let id = self.faults.real_id(index, packet.transaction_id());
                let Some(recv) = &mut self.recv else { return };
                if !recv.release(index, id) {
                    if !self.faults.take_repeated(index, id) {
                        io.violation(format!("completion of {id:#x}, which holds nothing"));
                    }
                    return;
                }
                self.counters.rx_refused += u64::from(status != NvspStatus::SUCCESS);
                if let Some(chan) = self.channel(index) {
                    chan.choked = false;
                }
            }
            Verdict::Answer(answer) => self.complete(io, index, packet, &answer),
            Verdict::Agreed(answer, _) => self.complete(io, index, packet, &answer),
            Verdict::ReceiveBuffer(offer) => {
                let answer = self.on_receive_buffer(io, offer);
                self.complete(io, index, packet, &answer);
            }
            Verdict::SendBuffer(offer) => {
                let answer = self.on_send_buffer(io, offer);
                self.complete(io, index, packet, &answer);
            }
            Verdict::RevokeReceiveBuffer => {
                self.recv = None;
                self.complete(io, index, packet, &Answer::EMPTY);
            }
            Verdict::RevokeSendBuffer => {
                self.send = None;
                self.complete(io, index, packet, &Answer::EMPTY);
            }
            Verdict::SubChannels { count, answer } => {
                self.wanted = count;
                self.complete(io, index, packet, &answer);
                io.offer_subchannels(count);
            }
            Verdict::SwitchDataPath(_) => self.complete(io, index, packet, &Answer::EMPTY),
            Verdict::NoticeComplete => {}
            Verdict::Refuse(refusal, answer) => {
                if refusal.is_violation() {
                    io.violation(refusal.to_string());
                }
                if let Some(answer) = answer {
                    self.complete(io, index, packet, &answer);
                }
            }
        }
    }

    fn drained(&mut self, io: &mut DeviceIo<'_>, _index: u16) {
        self.backend.flush();
        self.pump(io);
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        self.woken.store(false, Ordering::Release);
        let was_ready = self.is_ready(0);
        self.check_link();
        self.check_faults(io);
        self.pump(io);
        self.expire(io);
        self.backend.flush();
        if !was_ready && self.is_ready(0) {
            self.resume_all(io);
        }
    }

    fn deadline(&self) -> Option<RefTime> {
        let faults = [self.faults.stalled_until, self.rx.fault_deadline()];
        // Nothing is thrown away for a stall's sake.
        let patience = if self.is_stalled() {
            [None, None]
        } else {
            [self.expiry(), self.tx.deadline()]
        };
        faults.into_iter().chain(patience).flatten().min()
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        self.on_control(io, cmd)
    }

    fn net(&self) -> Option<NetInfo> {
        Some(self.describe(self.state()))
    }

    fn agreed(&self) -> Option<String> {
        (self.rndis.state == State::Initialized).then(|| version_name(self.version()).to_owned())
    }

    fn reset_counters(&mut self) {
        self.counters = NetCounters::default();
        self.faults.count = 0;
        for queue in &mut self.queues {
            *queue = NetQueue {
                index: queue.index,
                open: queue.open,
                ..NetQueue::default()
            };
        }
    }
}
