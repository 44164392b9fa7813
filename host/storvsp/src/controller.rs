// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A storage controller: its channels, its disks, and the commands between them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use hv_vmbus_host::device::{Control, Device, DeviceInfo, DeviceIo, RefTime};
use hv_vmbus_host::SendError;
use hvctl::{Command, DiskInfo, Event, MalformedCompletion};
use vmbus_proto::class;
use vmbus_proto::msg::{OfferFlags, USER_DATA_SIZE};
use vmbus_proto::packet::{Packet, PacketFlags, PacketKind, PacketType};
use vmbus_proto::storvsc::server::{Answer, Config, Server, Verdict};
use vmbus_proto::storvsc::srb::{ScsiAddress, Transfer};
use vmbus_proto::storvsc::wire::{IdeOfferProperties, PropertyFlags};
use vmbus_proto::storvsc::{
    Operation, ScsiPacket, ScsiRequest, SrbCode, VstorPacket, CDB_SIZE, VSTOR_PACKET_SIZE,
};
use zerocopy::IntoBytes;

use crate::args::{ControllerConfig, Kind};
use crate::buffer::{Direction, Gate, GuestBuffer};
use crate::control::make_disk;
use crate::faults::{Faults, Hit, REORDER_TICKS};
use crate::pool::{Finished, Job, Pool};
use crate::request::{InFlight, ReplyTo, Request, Slot};
use crate::scsi::cdb::op;
use crate::scsi::{inquiry, Cdb, Failure, Outcome, Patience, Sense};

mod resets;

use resets::{Given, Resetting};

/// Requests of one channel without a completion, beyond which further ones are dropped: a guest that reads no
/// completions must not fill the host's memory. Linux has at most some 1,400 with the largest ring that it uses.
const MAX_OUTSTANDING: usize = 8192;
/// A malformed completion that is cut has this many bytes.
const SHORT: usize = 16;
/// A transaction id that no guest gives.
const UNKNOWN_ID: u64 = 0x6e6f_7375_6368_6964;

/// A packet that waits for room in the ring.
struct Out {
    packet_type: PacketType,
    id: u64,
    bytes: [u8; VSTOR_PACKET_SIZE],
    len: usize,
}

/// One opening of a channel.
struct Chan {
    gate: Arc<Gate>,
    out: VecDeque<Out>,
    outstanding: usize,
}

/// A command that is done, but whose completion is held back.
struct Held {
    request: Request,
    outcome: Outcome,
}

/// The device model. See the crate's documentation.
pub struct Controller {
    pub(crate) info: DeviceInfo,
    kind: Kind,
    config: Config,
    fast: bool,
    threads: usize,
    pub(crate) slots: BTreeMap<(u8, u8), Arc<Slot>>,
    protocol: Server,
    channels: Vec<Option<Chan>>,
    pool: Option<Pool<Job>>,
    /// Number of the next command for the pool, and those that it has.
    next_job: u64,
    jobs: BTreeMap<u64, Given>,
    /// Commands that the pool has still, but the guest has not since a reset, by number, and the lines that they are in.
    recalled: BTreeMap<u64, usize>,
    /// How many of them are in each line; none is 0.
    recalled_by_line: HashMap<usize, usize>,
    /// Later ones of these lines: what a disk does for a command from before a reset comes before what it does after that.
    behind: VecDeque<Request>,
    pub(crate) faults: Faults,
    /// Not begun, for a stall.
    stalled: VecDeque<Request>,
    /// Done during a stall.
    stalled_done: VecDeque<Held>,
    /// By the time at which they are due, and a number that tells them apart.
    delayed: BTreeMap<(RefTime, u64), Held>,
    next_delayed: u64,
    lost: Vec<Request>,
    reorder: Vec<Held>,
    reorder_until: Option<RefTime>,
    resetting: Vec<Resetting>,
}

impl Controller {
    /// Makes a controller and its disks.
    ///
    /// # Errors
    /// A sentence about a disk that cannot be had.
    pub fn new(config: &ControllerConfig) -> Result<Self, String> {
        let mut user_data = [0; USER_DATA_SIZE];
        if let Kind::Ide(at) = config.kind {
            let properties = IdeOfferProperties {
                path_id: at.path as u8,
                target_id: at.target as u8,
                flags: PropertyFlags::IDE_DEVICE,
                ..IdeOfferProperties::default()
            };
            let bytes = properties.as_bytes();
            user_data[..bytes.len()].copy_from_slice(bytes);
        }
        let mut slots = BTreeMap::new();
        for (target, lun, spec) in &config.disks {
            let disk = make_disk(&config.name, *target, *lun, spec)?;
            slots.insert((*target, *lun), Slot::new(disk));
        }
        let server = Config {
            newest: config.newest,
            max_transfer_bytes: config.max_transfer,
            max_sub_channels: config.max_subchannels,
            fc: None,
        };
        Ok(Self {
            info: DeviceInfo {
                name: config.name.clone(),
                class: match config.kind {
                    Kind::Scsi => class::SCSI,
                    Kind::Ide(_) => class::IDE,
                },
                instance: config.instance,
                flags: OfferFlags::empty(),
                user_data,
                mmio_megabytes: 0,
                monitored: false,
                max_subchannels: config.max_subchannels,
            },
            kind: config.kind,
            config: server,
            fast: config.fast,
            threads: config.threads,
            slots,
            protocol: Server::new(server),
            channels: (0..=config.max_subchannels).map(|_| None).collect(),
            pool: None,
            next_job: 0,
            jobs: BTreeMap::new(),
            recalled: BTreeMap::new(),
            recalled_by_line: HashMap::new(),
            behind: VecDeque::new(),
            faults: Faults::default(),
            stalled: VecDeque::new(),
            stalled_done: VecDeque::new(),
            delayed: BTreeMap::new(),
            next_delayed: 0,
            lost: Vec::new(),
            reorder: Vec::new(),
            reorder_until: None,
            resetting: Vec::new(),
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn channel(&mut self, reply: &ReplyTo) -> Option<&mut Chan> {
        self.channels
            .get_mut(usize::from(reply.index))?
            .as_mut()
            .filter(|c| Arc::ptr_eq(&c.gate, &reply.gate))
    }

    /// Sends a packet, or queues it behind those that wait for room.
    fn send(&mut self, io: &mut DeviceIo<'_>, index: u16, out: Out) {
        let Some(Some(channel)) = self.channels.get_mut(usize::from(index)) else {
            return;
        };
        if !channel.out.is_empty() {
            channel.out.push_back(out);
            return;
        }
        if let Some(out) = try_send(io, index, out) {
            channel.out.push_back(out);
        }
    }

    fn answer(&mut self, io: &mut DeviceIo<'_>, index: u16, id: u64, answer: &Answer) {
        let bytes = answer.as_bytes();
        let mut out = Out {
            packet_type: PacketType::COMPLETION,
            id,
            bytes: [0; VSTOR_PACKET_SIZE],
            len: bytes.len(),
        };
        out.bytes[..bytes.len()].copy_from_slice(bytes);
        self.send(io, index, out);
    }

    /// Sends a notice; whether there is a driver to read it.
    pub(crate) fn notify(&mut self, io: &mut DeviceIo<'_>, operation: Operation) -> bool {
        if !self.protocol.is_ready() || !io.is_open(0) {
            return false;
        }
        let packet = VstorPacket::notice(operation);
        let mut bytes = [0; VSTOR_PACKET_SIZE];
        bytes.copy_from_slice(packet.as_bytes());
        self.send(
            io,
            0,
            Out {
                packet_type: PacketType::DATA_INBAND,
                id: 0,
                bytes,
                len: bytes.len(),
            },
        );
        true
    }

    /// A command that has passed the protocol's checks.
    fn execute(
        &mut self,
        io: &mut DeviceIo<'_>,
        index: u16,
        packet: &Packet<'_>,
        scsi: &ScsiRequest,
        transfer: Transfer,
    ) {
        let Some(Some(channel)) = self.channels.get_mut(usize::from(index)) else {
            return;
        };
        if channel.outstanding >= MAX_OUTSTANDING {
            io.violation(format!(
                "more than {MAX_OUTSTANDING} commands without completion on channel {index}"
            ));
            return;
        }
        channel.outstanding += 1;
        let gate = channel.gate.clone();
        let (direction, len) = match transfer {
            Transfer::None => (Direction::Unspecified, 0),
            Transfer::FromDevice(len) => (Direction::In, len),
            Transfer::ToDevice(len) => (Direction::Out, len),
        };
        let mut cdb = [0; CDB_SIZE];
        let given = scsi.cdb();
        cdb[..given.len()].copy_from_slice(given);
        let ranges = match packet.kind {
            PacketKind::GpaDirect(ranges) => Some(ranges),
            _ => None,
        };
        let make = |ranges, len: u32| {
            GuestBuffer::new(
                io.ram().clone(),
                gate.clone(),
                direction,
                ranges,
                len as usize,
            )
        };
        let (buffer, valid) = match make(ranges, len) {
            Some(buffer) => (Some(buffer), true),
            None => (make(None, 0), false),
        };
        let Some(buffer) = buffer else { return };
        let request = Request {
            reply: ReplyTo {
                index,
                gate: gate.clone(),
                id: packet.transaction_id(),
            },
            address: scsi.address,
            cdb,
            buffer,
            hit: self.faults.hit(scsi.address.lun, cdb[0]),
            disk: None,
        };
        if !valid {
            io.violation(format!("command {:#04x}: data are not in RAM", cdb[0]));
            self.finish(io, request, Failure::Buffer.into());
            return;
        }
        if self.faults.stalled_until.is_some() {
            let mut request = request;
            request.disk = self.disk(request.address).cloned().map(InFlight::new);
            self.stalled.push_back(request);
            return;
        }
        self.start(io, request);
    }

    /// The disk that an address names. On IDE the path is that of the IDE channel, and is not looked at.
    fn disk(&self, address: ScsiAddress) -> Option<&Arc<Slot>> {
        if self.kind == Kind::Scsi && address.path != 0 {
            return None;
        }
        self.slots.get(&(address.target, address.lun))
    }

    /// Begins a command, and ends it if it need not wait.
    fn start(&mut self, io: &mut DeviceIo<'_>, mut request: Request) {
        // Looked up anew after a stall: the disk may have gone, or another one come.
        let slot = self.disk(request.address);
        let known = request.disk.as_ref().map(|d| &d.0);
        if slot.map(Arc::as_ptr) != known.map(Arc::as_ptr) {
            request.disk = slot.cloned().map(InFlight::new);
        }
        if let Some(Hit::Outcome(outcome)) = request.hit {
            if let Some(disk) = &request.disk {
                disk.0
                    .injected
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            self.finish(io, request, outcome);
            return;
        }
        if request.cdb[0] == op::REPORT_LUNS {
            let outcome = self.report_luns(&request);
            self.finish(io, request, outcome);
            return;
        }
        let Some(in_flight) = &request.disk else {
            let outcome = absent(&request);
            self.finish(io, request, outcome);
            return;
        };
        // Commands that do not touch the store are carried out at once in any case.
        let uses_store = uses_store(request.cdb[0]);
        if uses_store && self.is_recalled(in_flight.line()) {
            self.behind.push_back(request);
            return;
        }
        let patient = !self.fast && uses_store;
        if !patient {
            let disk = &in_flight.0.disk;
            if let Some(outcome) = disk.execute(&request.cdb, &request.buffer, Patience::Now) {
                self.finish(io, request, outcome);
                return;
            }
        }
        self.hand_over(io, request);
    }

    /// Gives a command to the pool.
    fn hand_over(&mut self, io: &mut DeviceIo<'_>, request: Request) {
        if self.pool.is_none() {
            let waker = io.waker();
            match Pool::start(&self.info.name, self.threads, move || waker.wake()) {
                Ok(pool) => self.pool = Some(pool),
                Err(e) => {
                    tracing::error!("{}: threads: {e}", self.info.name);
                    let outcome = Outcome {
                        srb_code: SrbCode::INTERNAL_ERROR,
                        ..Outcome::good(0)
                    };
                    self.finish(io, request, outcome);
                    return;
                }
            }
        }
        let number = self.next_job;
        self.next_job += 1;
        let own = Gate::new();
        let given = Given {
            reply: request.reply.clone(),
            address: request.address,
            own: own.clone(),
            line: request.line(),
        };
        self.jobs.insert(number, given);
        if let Some(pool) = &self.pool {
            let mut request = request;
            request.buffer.put_behind(own);
            pool.push(Job { number, request });
        }
    }

    /// LUNs of the target, as Hyper-V lists them (OpenVMM `storvsp`, `execute_scsi`).
    fn report_luns(&self, request: &Request) -> Outcome {
        let Ok(Cdb::ReportLuns { select, allocation }) = Cdb::parse(&request.cdb) else {
            return Outcome::check(Sense::INVALID_FIELD_IN_CDB);
        };
        // 1: well-known logical units, of which there are none.
        if select > 2 {
            return Outcome::check(Sense::INVALID_FIELD_IN_CDB);
        }
        let luns: Vec<u8> = self
            .slots
            .keys()
            .filter(|_| select != 1)
            .filter(|(target, lun)| {
                let address = ScsiAddress {
                    target: *target,
                    lun: *lun,
                    ..request.address
                };
                *target == request.address.target && self.disk(address).is_some()
            })
            .map(|(_, lun)| *lun)
            .collect();
        let mut data = ((luns.len() * 8) as u32).to_be_bytes().to_vec();
        data.extend([0; 4]);
        for lun in luns {
            data.extend([0, lun, 0, 0, 0, 0, 0, 0]);
        }
        put(request, &data, allocation)
    }

    /// A command is done: completes it, unless the completion is to be held back.
    fn finish(&mut self, io: &mut DeviceIo<'_>, request: Request, outcome: Outcome) {
        if !request.reply.gate.is_open() {
            // Closed while a thread was at work on it.
            return;
        }
        match request.hit {
            Some(Hit::Lose) => {
                self.lost.push(request);
                return;
            }
            Some(Hit::Delay(ticks)) => {
                let key = (io.now().saturating_add(ticks), self.next_delayed);
                self.next_delayed += 1;
                self.delayed.insert(key, Held { request, outcome });
                return;
            }
            _ => {}
        }
        self.deliver(io, Held { request, outcome });
    }

    /// Completes a command, unless the controller is stalled or completions are reordered.
    fn deliver(&mut self, io: &mut DeviceIo<'_>, held: Held) {
        if self.faults.stalled_until.is_some() {
            self.stalled_done.push_back(held);
        } else if self.faults.window > 1 {
            self.reorder.push(held);
            if self.reorder.len() >= self.faults.window {
                self.release_reordered(io);
            } else if self.reorder_until.is_none() {
                self.reorder_until = Some(io.now() + REORDER_TICKS);
            }
        } else {
            self.complete(io, held);
        }
    }

    fn release_reordered(&mut self, io: &mut DeviceIo<'_>) {
        self.reorder_until = None;
        for held in std::mem::take(&mut self.reorder).into_iter().rev() {
            self.complete(io, held);
        }
    }

    /// Sends a completion.
    fn complete(&mut self, io: &mut DeviceIo<'_>, held: Held) {
        let Held { request, outcome } = held;
        let how = match request.hit {
            Some(Hit::Malformed(how)) => Some(how),
            _ => None,
        };
        self.send_completion(io, &request.reply, how, outcome);
    }

    /// Sends a completion, malformed as asked for.
    fn send_completion(
        &mut self,
        io: &mut DeviceIo<'_>,
        reply: &ReplyTo,
        how: Option<MalformedCompletion>,
        outcome: Outcome,
    ) {
        let Some(channel) = self.channel(reply) else {
            return;
        };
        channel.outstanding = channel.outstanding.saturating_sub(1);
        let mut packet = ScsiPacket::complete(outcome.to_request());
        match how {
            Some(MalformedCompletion::Sense) => packet.request.sense_info_length = 255,
            Some(MalformedCompletion::Transfer) => {
                packet.request.data_transfer_length = u32::MAX;
            }
            _ => {}
        }
        let (index, id) = (reply.index, reply.id);
        let mut out = Out {
            packet_type: PacketType::COMPLETION,
            id,
            bytes: [0; VSTOR_PACKET_SIZE],
            len: VSTOR_PACKET_SIZE,
        };
        out.bytes.copy_from_slice(packet.as_bytes());
        let wrong = match how {
            Some(MalformedCompletion::Short) => Some(Out {
                len: SHORT,
                ..out.copy()
            }),
            Some(MalformedCompletion::IdZero) => Some(Out {
                id: 0,
                ..out.copy()
            }),
            Some(MalformedCompletion::UnknownId) => Some(Out {
                id: UNKNOWN_ID,
                ..out.copy()
            }),
            Some(MalformedCompletion::Twice) => Some(out.copy()),
            Some(MalformedCompletion::Operation) => {
                let mut wrong = packet;
                wrong.header.operation = Operation::EXECUTE_SRB;
                let mut out = out.copy();
                out.bytes.copy_from_slice(wrong.as_bytes());
                Some(out)
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.send(io, index, wrong);
        }
        self.send(io, index, out);
    }

    /// Goes on with what a stall held up.
    pub(crate) fn release(&mut self, io: &mut DeviceIo<'_>) {
        for held in std::mem::take(&mut self.stalled_done) {
            self.deliver(io, held);
        }
        for request in std::mem::take(&mut self.stalled) {
            self.start(io, request);
        }
        if self.faults.window <= 1 {
            self.release_reordered(io);
        }
    }

    /// Completes what a cleared fault held back for good.
    pub(crate) fn release_all(&mut self, io: &mut DeviceIo<'_>) {
        for (_, held) in std::mem::take(&mut self.delayed) {
            self.deliver(io, held);
        }
        for request in std::mem::take(&mut self.lost) {
            let outcome = Outcome {
                srb_code: SrbCode::ABORTED,
                ..Outcome::good(0)
            };
            self.deliver(io, Held { request, outcome });
        }
        self.release(io);
    }

    /// All disks, for people and tests.
    pub(crate) fn disk_infos(&self) -> Vec<DiskInfo> {
        self.slots
            .iter()
            .map(|((target, lun), slot)| crate::control::info(&self.info.name, *target, *lun, slot))
            .collect()
    }
}

impl Out {
    fn copy(&self) -> Self {
        Self { ..*self }
    }
}

/// The packet again, if there is no room for it now. One that can never be sent is dropped.
fn try_send(io: &mut DeviceIo<'_>, index: u16, out: Out) -> Option<Out> {
    let flags = PacketFlags::empty();
    match io.send(index, out.packet_type, flags, out.id, &out.bytes[..out.len]) {
        Err(SendError::Full) => Some(out),
        _ => None,
    }
}

fn uses_store(opcode: u8) -> bool {
    matches!(
        opcode,
        op::READ_6
            | op::READ_10
            | op::READ_12
            | op::READ_16
            | op::WRITE_6
            | op::WRITE_10
            | op::WRITE_12
            | op::WRITE_16
            | op::VERIFY_10
            | op::VERIFY_12
            | op::VERIFY_16
            | op::SYNCHRONIZE_CACHE_10
            | op::SYNCHRONIZE_CACHE_16
            | op::UNMAP
            | op::WRITE_SAME_10
            | op::WRITE_SAME_16
    )
}

fn put(request: &Request, data: &[u8], allocation: usize) -> Outcome {
    use crate::buffer::Buffer;
    match request.buffer.put_allocated(data, allocation) {
        Ok(n) => Outcome::good(n),
        Err(failure) => failure.into(),
    }
}

/// What a logical unit that is not there answers (OpenVMM `storvsp`, `execute_scsi`).
fn absent(request: &Request) -> Outcome {
    if request.cdb[0] != op::INQUIRY {
        return Outcome::invalid_lun();
    }
    match Cdb::parse(&request.cdb) {
        Ok(Cdb::Inquiry {
            page: None,
            allocation,
        }) => put(request, &inquiry::absent(request.address.lun), allocation),
        _ => Outcome::check(Sense::INVALID_FIELD_IN_CDB),
    }
}

impl Device for Controller {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn opened(&mut self, _io: &mut DeviceIo<'_>, index: u16) -> Result<(), String> {
        let slot = self
            .channels
            .get_mut(usize::from(index))
            .ok_or("no such channel")?;
        *slot = Some(Chan {
            gate: Gate::new(),
            out: VecDeque::new(),
            outstanding: 0,
        });
        if index == 0 {
            self.protocol = Server::new(self.config);
        }
        Ok(())
    }

    fn closed(&mut self, _io: &mut DeviceIo<'_>, index: u16) {
        let Some(channel) = self
            .channels
            .get_mut(usize::from(index))
            .and_then(Option::take)
        else {
            return;
        };
        // From here on no byte of the guest's memory is touched for this channel.
        channel.gate.close();
        let alive = |r: &Request| r.reply.gate.is_open();
        self.stalled.retain(alive);
        self.behind.retain(alive);
        self.stalled_done.retain(|h| alive(&h.request));
        self.delayed.retain(|_, h| alive(&h.request));
        self.lost.retain(alive);
        self.reorder.retain(|h| alive(&h.request));
        self.resetting.retain(|r| r.reply.gate.is_open());
        if index == 0 {
            self.protocol = Server::new(self.config);
        }
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, index: u16, packet: &Packet<'_>) {
        let id = packet.transaction_id();
        match self.protocol.on_packet(index, packet) {
            Verdict::Execute { request, transfer } => {
                self.execute(io, index, packet, &request, transfer);
            }
            Verdict::Answer(answer) => self.answer(io, index, id, &answer),
            Verdict::Ready(answer, version) => {
                self.answer(io, index, id, &answer);
                io.event(Event::Negotiated {
                    device: self.info.name.clone(),
                    agreed: version.to_string(),
                });
            }
            Verdict::CreateSubChannels { count, pending } => {
                let answer = pending.answer(vmbus_proto::storvsc::NtStatus::SUCCESS);
                self.answer(io, index, id, &answer);
                io.offer_subchannels(count);
            }
            Verdict::Reset {
                operation,
                address,
                pending,
            } => {
                if let Some(Some(channel)) = self.channels.get(usize::from(index)) {
                    let reply = ReplyTo {
                        index,
                        gate: channel.gate.clone(),
                        id,
                    };
                    self.reset(io, reply, operation, address, pending);
                }
            }
            Verdict::Refuse(refusal, answer) => {
                if refusal.is_violation() {
                    io.violation(refusal.to_string());
                }
                if let Some(answer) = answer {
                    self.answer(io, index, id, &answer);
                }
            }
        }
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        let finished = self
            .pool
            .as_ref()
            .map_or_else(Vec::new, Pool::take_finished);
        let mut lines_free = false;
        for Finished {
            number,
            request,
            outcome,
        } in finished
        {
            if let Some(line) = self.recalled.remove(&number) {
                drop(request);
                lines_free |= self.recalled_is_done(line);
            } else {
                self.jobs.remove(&number);
                self.finish(io, request, outcome);
            }
        }
        if lines_free {
            self.start_behind(io);
        }
        let now = io.now();
        while let Some(entry) = self.delayed.first_entry().filter(|e| e.key().0 <= now) {
            let held = entry.remove();
            self.deliver(io, held);
        }
        if self.reorder_until.is_some_and(|t| t <= now) {
            self.release_reordered(io);
        }
        if self.faults.stalled_until.is_some_and(|t| t <= now) {
            self.faults.stalled_until = None;
            self.release(io);
        }
        if !self.resetting.is_empty() {
            self.answer_resets(io);
        }
        for (index, channel) in (0..).zip(&mut self.channels) {
            let Some(channel) = channel else { continue };
            while let Some(out) = channel.out.pop_front() {
                if let Some(out) = try_send(io, index, out) {
                    channel.out.push_front(out);
                    break;
                }
            }
        }
    }

    fn deadline(&self) -> Option<RefTime> {
        [
            self.delayed.first_key_value().map(|((due, _), _)| *due),
            self.reorder_until,
            self.faults.stalled_until,
            self.resetting.iter().map(|r| r.until).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        self.on_control(io, cmd)
    }

    fn disks(&self) -> Vec<DiskInfo> {
        self.disk_infos()
    }

    fn agreed(&self) -> Option<String> {
        self.protocol
            .version()
            .filter(|_| self.protocol.is_ready())
            .map(|v| v.to_string())
    }

    fn reset_counters(&mut self) {
        for slot in self.slots.values() {
            crate::control::reset_counters(slot);
        }
    }
}
