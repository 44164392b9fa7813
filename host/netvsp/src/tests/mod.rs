// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A guest's driver, played by a script, against the NIC: messages, rings and buffers are real.

mod frames;
mod hostile;
mod offloads;
mod requests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use hv_net::{Backend, BackendInfo, Sent, Waker};
use hv_vmbus_host::device::Device;
use hv_vmbus_host::testing::{Bench, GuestChannel, Heard};
use hv_vmbus_host::DeviceConfig;
use hvctl::{Command, NetFault, NetInfo};
use parking_lot::Mutex;
use vmbus_proto::msg::{GpadlId, Relid};
use vmbus_proto::net::client::{self, Client, Negotiated};
use vmbus_proto::net::nvsp::{
    message_type, rndis_complete_word, ChannelType, MessageType, NvspMessage, NvspStatus,
    NvspVersion, SendRndisPacket, StatusBody, NO_SECTION,
};
use vmbus_proto::net::packet::{PacketHeader, PacketInfo, ReceivedPacket, Receiver, SliceSink};
use vmbus_proto::net::rndis::{write_oid_request, HostMessage, Oid, PacketFilter, RndisType};
use vmbus_proto::net::setup::{self, Requests, Setup};
use vmbus_proto::packet::PacketType;
use zerocopy::IntoBytes;

use crate::{Nic, NicConfig};

/// First page of the receive buffer, and its pages.
const RECV: u64 = 256;
const RECV_PAGES: u64 = 128;
/// And of the send buffer.
const SEND: u64 = 400;
const SEND_PAGES: u64 = 16;
/// Pages for data beside the buffers.
const DATA: u64 = 500;

/// What the test sees of the wire.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) sent: Vec<Vec<u8>>,
    pub(super) incoming: VecDeque<Vec<u8>>,
    pub(super) full: bool,
    pub(super) down: bool,
    waker: Option<Waker>,
}

struct TestBackend(Arc<Mutex<Wire>>);

impl Backend for TestBackend {
    fn start(&mut self, waker: Waker) -> Result<(), String> {
        self.0.lock().waker = Some(waker);
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        let mut wire = self.0.lock();
        if wire.full {
            return Sent::Full;
        }
        wire.sent.push(frame.to_vec());
        Sent::Taken
    }

    fn receive(&mut self, frame: &mut Vec<u8>) -> bool {
        match self.0.lock().incoming.pop_front() {
            Some(next) => {
                *frame = next;
                true
            }
            None => false,
        }
    }

    fn link(&self) -> bool {
        !self.0.lock().down
    }

    fn info(&self) -> BackendInfo {
        BackendInfo {
            kind: "test".into(),
            counters: Vec::new(),
        }
    }
}

thread_local! {
    /// Where the next NIC is plugged in: a maker is a plain function.
    static NEXT_WIRE: std::cell::RefCell<Option<Arc<Mutex<Wire>>>> = const { std::cell::RefCell::new(None) };
}

fn make(config: &DeviceConfig) -> Option<Result<Box<dyn Device>, String>> {
    let wire = NEXT_WIRE.with(|next| next.borrow().clone())?;
    let config = NicConfig::parse(&config.name, &config.args)?;
    Some(config.map(|config| {
        Box::new(Nic::with_backend(config, Box::new(TestBackend(wire)))) as Box<dyn Device>
    }))
}

pub(super) struct Guest {
    pub(super) bench: Bench,
    /// Open channels by index.
    pub(super) channels: HashMap<u16, GuestChannel>,
    pub(super) wire: Arc<Mutex<Wire>>,
    pub(super) agreed: Option<Negotiated>,
    pub(super) device: Option<setup::Device>,
    recv: Option<GpadlId>,
    send: Option<GpadlId>,
    requests: Requests,
    next_id: u64,
    /// Completions of what the guest sent, by channel, and all else that was read.
    completions: HashMap<u16, VecDeque<(u64, NvspStatus)>>,
    heard: HashMap<u16, VecDeque<Heard>>,
}

/// A frame from the guest, or to it.
pub(super) fn frame(destination: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    let body = (0..len.saturating_sub(frame.len())).map(|i| (i % 251) as u8);
    frame.extend(body);
    frame
}

/// The NIC's address unless told otherwise.
pub(super) const MAC: [u8; 6] = [0x00, 0x15, 0x5d, 0, 0, 1];

impl Guest {
    /// Connects and opens the NIC, without a handshake.
    pub(super) fn opened(args: &[(&str, &str)]) -> Self {
        let wire = Arc::new(Mutex::new(Wire::default()));
        NEXT_WIRE.with(|next| *next.borrow_mut() = Some(wire.clone()));
        let config = DeviceConfig {
            name: "net0".into(),
            args: args
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        };
        let mut bench = Bench::with_makers(&[config], &[make]);
        bench.connect();
        let primary = bench.open("net", 3);
        Self {
            bench,
            channels: HashMap::from([(0, primary)]),
            wire,
            agreed: None,
            device: None,
            recv: None,
            send: None,
            requests: Requests::default(),
            next_id: 1000,
            completions: HashMap::new(),
            heard: HashMap::new(),
        }
    }

    /// A guest that has its buffers and asks for nothing more.
    pub(super) fn connected(args: &[(&str, &str)], mtu: u32) -> Self {
        let mut guest = Self::opened(args);
        guest.negotiate(mtu);
        guest
    }

    /// A guest for which frames go through, and that has read all there was.
    pub(super) fn running(args: &[(&str, &str)], mtu: u32) -> Self {
        let mut guest = Self::connected(args, mtu);
        guest.set_up();
        guest.set_filter(PacketFilter::for_interface(false, true, true));
        guest.ignore();
        guest
    }

    /// Gives back what waits unread.
    pub(super) fn ignore(&mut self) {
        while let Some(heard) = self.hear(0) {
            if heard.packet_type == PacketType::DATA_USING_XFER_PAGES {
                self.give_back(0, heard.id);
            }
        }
    }

    pub(super) fn relid(&self) -> Relid {
        self.bench.relid("net", 0).expect("offered")
    }

    pub(super) fn negotiate(&mut self, mtu: u32) {
        let mut client = Client::new(client::Config {
            newest: NvspVersion::V6_1,
            mtu,
            sriov: false,
            isolated: false,
            receive_bytes: (RECV_PAGES * 4096) as u32,
            send_bytes: (SEND_PAGES * 4096) as u32,
        });
        let mut step = client.start();
        self.agreed = Some(loop {
            step = match step.expect("a good step") {
                client::Step::Request(message) => {
                    let answer = self.ask(message.as_bytes());
                    client.on_answer(&answer)
                }
                client::Step::Notice(message) => {
                    self.notify(message.as_bytes());
                    client.sent()
                }
                client::Step::ShareReceive(_) => {
                    let pages: Vec<u64> = (RECV..RECV + RECV_PAGES).collect();
                    let gpadl = self.bench.share(self.relid(), &pages);
                    self.recv = Some(gpadl);
                    client.shared(gpadl)
                }
                client::Step::ShareSend(_) => {
                    let pages: Vec<u64> = (SEND..SEND + SEND_PAGES).collect();
                    let gpadl = self.bench.share(self.relid(), &pages);
                    self.send = Some(gpadl);
                    client.shared(gpadl)
                }
                client::Step::Ready(agreed) => break agreed,
            };
        });
    }

    pub(super) fn agreed(&self) -> Negotiated {
        self.agreed.expect("a handshake")
    }

    /// RNDIS until frames could flow.
    pub(super) fn set_up(&mut self) {
        let version = self.agreed().version;
        let mut machine = Setup::new(setup::Config { version, rsc: true });
        let mut out = [0; 2048];
        let mut len = machine
            .start(&mut self.requests, &mut out)
            .expect("a request");
        self.device = Some(loop {
            self.control(&out[..len]);
            let answer = self.control_answer().expect("an answer");
            let message = HostMessage::parse(&answer).expect("a good answer");
            match machine
                .on_message(&mut self.requests, &message, &mut out)
                .expect("a good answer")
            {
                setup::Step::Send { len: next, .. } => len = next,
                setup::Step::Ready(device) => break device,
                setup::Step::NotMine => panic!("{message:?}"),
            }
        });
    }

    /// Sends an in-band message that wants an answer, and returns it.
    pub(super) fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.next_id += 1;
        let id = self.next_id;
        self.read(0);
        let channel = self.channels.get_mut(&0).expect("open");
        self.bench.transmit_request(channel, id, message);
        let heard = self.bench.receive_packet(channel).expect("an answer");
        assert_eq!((heard.packet_type, heard.id), (PacketType::COMPLETION, id));
        heard.payload
    }

    /// Sends an in-band message that wants none.
    pub(super) fn notify(&mut self, message: &[u8]) {
        let channel = self.channels.get_mut(&0).expect("open");
        self.bench.transmit(channel, u64::MAX - 2, message);
    }

    /// Sends RNDIS messages in pages; the transaction id.
    pub(super) fn send_direct(
        &mut self,
        index: u16,
        channel_type: ChannelType,
        messages: &[u8],
    ) -> u64 {
        self.bench
            .ram()
            .write(DATA * 4096 + 0x10, messages)
            .expect("RAM");
        let pages: Vec<u64> =
            (DATA..DATA + (messages.len() as u64 + 0x10).div_ceil(4096)).collect();
        let packet = SendRndisPacket {
            channel: channel_type,
            section_index: NO_SECTION,
            section_size: 0,
        };
        let message = NvspMessage::new(MessageType::SEND_RNDIS_PKT, &packet);
        self.next_id += 1;
        let channel = self.channels.get_mut(&index).expect("open");
        self.bench.transmit_gpa(
            channel,
            self.next_id,
            message.as_bytes(),
            (0x10, messages.len() as u32, &pages),
        );
        self.next_id
    }

    /// Sends RNDIS messages in a send section; the transaction id.
    pub(super) fn send_section(&mut self, index: u16, section: u32, messages: &[u8]) -> u64 {
        let at = SEND * 4096 + u64::from(section * self.agreed().send.size);
        self.bench.ram().write(at, messages).expect("RAM");
        self.send_section_message(index, section, messages.len() as u32)
    }

    pub(super) fn send_section_message(&mut self, index: u16, section: u32, len: u32) -> u64 {
        let packet = SendRndisPacket {
            channel: ChannelType::DATA,
            section_index: section,
            section_size: len,
        };
        let message = NvspMessage::new(MessageType::SEND_RNDIS_PKT, &packet);
        self.next_id += 1;
        let channel = self.channels.get_mut(&index).expect("open");
        self.bench
            .transmit_request(channel, self.next_id, message.as_bytes());
        self.next_id
    }

    /// Sends a request to the RNDIS device.
    pub(super) fn control(&mut self, message: &[u8]) {
        let id = self.send_direct(0, ChannelType::CONTROL, message);
        assert_eq!(self.completed(0), Some((id, NvspStatus::SUCCESS)));
    }

    /// Reads all there is.
    fn read(&mut self, index: u16) {
        let Some(channel) = self.channels.get_mut(&index) else {
            return;
        };
        while let Some(heard) = self.bench.receive_packet(channel) {
            let completes = heard.packet_type == PacketType::COMPLETION
                && message_type(&heard.payload) == Some(MessageType::SEND_RNDIS_PKT_COMPLETE);
            if completes {
                let body = NvspMessage::parse(&heard.payload).expect("whole");
                let status = body.body_as::<StatusBody>().status;
                let list = self.completions.entry(index).or_default();
                list.push_back((heard.id, status));
            } else {
                self.heard.entry(index).or_default().push_back(heard);
            }
        }
    }

    /// The next packet on a channel that is no completion of a send.
    pub(super) fn hear(&mut self, index: u16) -> Option<Heard> {
        self.read(index);
        self.heard.get_mut(&index)?.pop_front()
    }

    /// The next completion of a send, if there is one.
    pub(super) fn completed(&mut self, index: u16) -> Option<(u64, NvspStatus)> {
        self.read(index);
        self.completions.get_mut(&index)?.pop_front()
    }

    /// What is in the receive buffer.
    pub(super) fn recv_bytes(&self, offset: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.bench
            .ram()
            .read(RECV * 4096 + u64::from(offset), &mut bytes)
            .expect("RAM");
        bytes
    }

    /// The next transfer-page packet: its id and its RNDIS messages. Not completed.
    pub(super) fn hear_rndis(&mut self, index: u16) -> Option<(u64, Vec<Vec<u8>>)> {
        let heard = self.hear(index)?;
        assert_eq!(heard.packet_type, PacketType::DATA_USING_XFER_PAGES);
        assert_eq!(heard.flags.bits(), 1);
        let (_, ranges) = heard.ranges.expect("ranges");
        let messages = ranges
            .iter()
            .map(|range| self.recv_bytes(range.byte_offset, range.byte_count))
            .collect();
        Some((heard.id, messages))
    }

    pub(super) fn give_back(&mut self, index: u16, id: u64) {
        let word = rndis_complete_word(NvspStatus::SUCCESS);
        let channel = self.channels.get_mut(&index).expect("open");
        self.bench.complete(channel, id, &word.to_le_bytes());
    }

    /// The next answer of the RNDIS device; given back.
    pub(super) fn control_answer(&mut self) -> Option<Vec<u8>> {
        loop {
            let (id, mut messages) = self.hear_rndis(0)?;
            self.give_back(0, id);
            assert_eq!(messages.len(), 1);
            let message = messages.pop()?;
            if message[..4] != RndisType::INDICATE.0.to_le_bytes() {
                return Some(message);
            }
        }
    }

    /// Sets an OID; the status.
    pub(super) fn set_oid(&mut self, oid: Oid, info: &[u8]) -> u32 {
        let mut out = [0; 4096];
        let id = self.requests.begin();
        let len = write_oid_request(&mut out, RndisType::SET, id, oid, info).expect("room");
        self.control(&out[..len]);
        let answer = self.control_answer().expect("an answer");
        assert_eq!(answer[..4], RndisType::SET_C.0.to_le_bytes());
        assert_eq!(answer[8..12], id.to_le_bytes());
        u32::from_le_bytes([answer[12], answer[13], answer[14], answer[15]])
    }

    /// Queries an OID.
    pub(super) fn query(&mut self, oid: Oid) -> Result<Vec<u8>, u32> {
        let mut out = [0; 256];
        let id = self.requests.begin();
        let len = write_oid_request(&mut out, RndisType::QUERY, id, oid, &[]).expect("room");
        self.control(&out[..len]);
        let answer = self.control_answer().expect("an answer");
        match HostMessage::parse(&answer).expect("a good answer") {
            HostMessage::QueryComplete {
                request_id,
                status,
                info,
            } => {
                assert_eq!(request_id, id);
                if status.0 == 0 {
                    Ok(info.to_vec())
                } else {
                    Err(status.0)
                }
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn set_filter(&mut self, filter: PacketFilter) {
        let status = self.set_oid(Oid::GEN_CURRENT_PACKET_FILTER, &filter.bits().to_le_bytes());
        assert_eq!(status, 0);
    }

    /// An RNDIS message with a frame.
    pub(super) fn rndis(frame: &[u8], info: PacketInfo, padding: u32) -> Vec<u8> {
        let header = PacketHeader {
            data_len: frame.len() as u32,
            padding,
            info,
        };
        let mut out = vec![0; header.size() as usize];
        header.write(&mut SliceSink(&mut out));
        out.extend_from_slice(frame);
        out.resize(out.len() + padding as usize, 0);
        out
    }

    /// A frame comes over the wire.
    pub(super) fn arrive(&mut self, frames: &[Vec<u8>]) {
        let waker = {
            let mut wire = self.wire.lock();
            wire.incoming.extend(frames.iter().cloned());
            wire.waker.clone()
        };
        waker.expect("started")();
        self.bench.run();
    }

    pub(super) fn wake(&mut self) {
        let waker = self.wire.lock().waker.clone();
        waker.expect("started")();
        self.bench.run();
    }

    /// All frames that wait for the guest on a channel, with their information; given back.
    pub(super) fn frames(&mut self, index: u16) -> Vec<(Vec<u8>, PacketInfo)> {
        let mut frames = Vec::new();
        while let Some((id, messages)) = self.hear_rndis(index) {
            for message in messages {
                let len = message.len() as u32;
                let packet = ReceivedPacket::read(message.as_slice(), len, Receiver::Guest)
                    .expect("a good packet");
                let start = packet.data_offset as usize;
                let data = message[start..start + packet.data_len as usize].to_vec();
                frames.push((data, packet.info));
            }
            self.give_back(index, id);
        }
        frames
    }

    /// Opens sub-channels.
    pub(super) fn open_subchannels(&mut self, count: u32) {
        let answer = self.ask(client::request_subchannels(count).as_bytes());
        assert_eq!(client::subchannels_granted(&answer, count), Ok(count));
        assert!(!self.bench.take_offers());
        for index in 1..=count as u16 {
            let relid = self.bench.relid("net", index).expect("offered");
            let channel = self.bench.open_relid(relid, 2);
            self.channels.insert(index, channel);
        }
    }

    pub(super) fn info(&mut self) -> NetInfo {
        let value = self.bench.control(Command::Nets).expect("nets");
        let mut list: Vec<NetInfo> = serde_json::from_value(value).expect("nets");
        list.pop().expect("a NIC")
    }

    pub(super) fn fault(&mut self, count: u32, fault: NetFault) {
        let cmd = Command::NetFault {
            device: "net0".into(),
            direction: None,
            queue: None,
            count,
            skip: 0,
            fault,
        };
        self.bench.control(cmd).expect("a fault");
    }

    pub(super) fn violations(&mut self) -> u64 {
        self.bench.violations().count
    }
}
