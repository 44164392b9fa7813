// SPDX-License-Identifier: GPL-2.0

//! Commands on their way to the host and back.
//!
//! A command gets a place ([`Slots`]), is written into the ring of a channel in one go, and is completed from the interrupt in
//! which the host's answer is found; no memory is allocated for it and no lock is taken but the ring's. Whatever happens it is
//! completed once: by the host's answer; when its channel goes, broken or taken away; or by a reset after which the host owes nothing.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use hv_vmbus::{
    channel::{
        CallbackMode, GpaRangeHeader, Handler, InRing, Receiver, RingProducer, SendError, Signal,
        WriteError,
    },
    log::Show,
    ratelimited,
    services::{cpu, deferred::Deferred, reply::Reply},
};
use kernel::{new_mutex, prelude::*, sync::Arc, sync::Mutex};
use vmbus_proto::storvsc::{
    completion::{classify, judge, opcode, succeeded, Incoming, Outcome, Sent, Verdict},
    srb::{ScsiAddress, ScsiStatus, Transfer},
    wire::{NtStatus, Operation, ScsiPacket, StorVersion, VstorPacket, VSTOR_PACKET_SIZE},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    batches::Batches,
    chores::Chores,
    links::{Link, Links, Map, PRIMARY},
    logging_level,
    scsi::{
        Command, DeviceSettings, Direction, HostByte, HostDriver, Limits, ScsiHost, Slots, MAX_CDB,
    },
};

/// Milliseconds that the host has for an answer to a control request, and that a command has before SCSI looks after it.
pub(crate) const TIMEOUT_MS: u32 = 180_000;

/// Milliseconds after a reset in which answers that are on their way are waited for.
const RESET_GRACE_MS: u32 = 30_000;

/// Ids of control requests, as the C driver's. No place has them.
const CONTROL_ID: u64 = u64::MAX;
const RESET_ID: u64 = u64::MAX - 1;

/// Answers taken in one interrupt, or in one turn of the softirq: less than 2 ms' worth.
const BUDGET: u32 = 256;

/// Words of an answer that [`succeeded`] looks at: half of it.
const HEAD_WORDS: usize = VSTOR_PACKET_SIZE / 16;

/// The kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Scsi,
    Ide,
    FibreChannel,
}

/// How logging of failures is switched (C: `STORVSC_LOGGING_*`).
const LOG_ERROR: i32 = 1;
const LOG_WARN: i32 = 2;

/// Why the host will not answer.
type Answer = Result<VstorPacket>;

/// A device.
#[pin_data]
pub(crate) struct Adapter {
    kind: Kind,
    port: u8,
    slots: Slots,
    batches: Batches,
    pub(crate) links: Arc<Links>,
    pub(crate) chores: Deferred<Chores>,
    /// The primary channel was taken away or is broken, or the device is being removed: nothing is sent any more.
    gone: AtomicBool,
    /// Version of the protocol spoken.
    version: AtomicU32,
    /// Held over a control request.
    #[pin]
    control: Mutex<()>,
    #[pin]
    answer: Reply<Answer>,
    #[pin]
    reset_answer: Reply<Answer>,
    /// Somebody waits for all commands in flight.
    draining: AtomicBool,
    #[pin]
    drained: Reply<()>,
}

impl Adapter {
    /// An adapter with no channel yet, of the SCSI host `host`.
    pub(crate) fn new(kind: Kind, host: Arc<ScsiHost>, limits: &Limits) -> Result<Arc<Self>> {
        let links = Arc::pin_init(Links::new(), GFP_KERNEL)?;
        let port = host.number() as u8;
        let chores = Chores::new(host, links.clone(), limits, kind == Kind::Ide)?;
        let chores = hv_vmbus::new_deferred!(chores, c"hv_storvsc_rs::chores")?;
        let slots = Slots::new(limits.hw_queues, limits.can_queue)?;
        let batches = Batches::new(limits.hw_queues)?;
        Arc::pin_init(
            pin_init!(Self {
                kind,
                port,
                slots,
                batches,
                links,
                chores,
                gone: AtomicBool::new(false),
                version: AtomicU32::new(0),
                control <- new_mutex!((), "hv_storvsc_rs::control"),
                answer <- Reply::new(),
                reset_answer <- Reply::new(),
                draining: AtomicBool::new(false),
                drained <- Reply::new(),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn set_version(&self, version: StorVersion) {
        self.version.store(version.0.into(), Ordering::Relaxed);
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    // --- Sending.

    /// The packet that asks the host for `command`, as words.
    #[inline(always)]
    fn request(command: &Command) -> [u64; VSTOR_PACKET_SIZE / 8] {
        let [port, path, target, lun] = command.address_bytes();
        let address = ScsiAddress {
            port,
            path,
            target,
            lun,
        };
        let transfer = match command.direction() {
            Direction::FromDevice => Transfer::FromDevice(command.len()),
            Direction::ToDevice => Transfer::ToDevice(command.len()),
            Direction::None => Transfer::None,
        };
        let (cdb, cdb_len) = (command.cdb(), command.cdb_len());
        ScsiPacket::execute_words(address, cdb, cdb_len, transfer, command.tagged())
    }

    /// Where the data of `command` are.
    #[inline(always)]
    fn range(command: &Command) -> GpaRangeHeader {
        GpaRangeHeader {
            byte_count: command.len(),
            byte_offset: command.page_offset(),
        }
    }

    /// Gives the signal that is owed for commands of a hardware queue.
    #[cold]
    fn settle(&self, queue: u32) {
        let Some(way) = self.batches.take(queue) else {
            return;
        };
        // Read after the name was taken: an older map may not have the channel yet. One that is not there any more owes nothing.
        if let Some(link) = self.links.map.read().of_way(way) {
            link.sender.sender().signal_owed();
        }
    }

    /// Writes `command` into the ring of `link`, which leaves so much room that nothing needs a look: nearly all commands go
    /// like this. A function of its own that calls no other, so that all it needs is in registers.
    ///
    /// # Errors
    /// The command, when it is not like that.
    #[inline(never)]
    fn write(
        &self,
        link: &Link,
        ring: &mut RingProducer<'_>,
        command: Command,
    ) -> Result<(), Command> {
        if !command.has_data() {
            return Err(command);
        }
        let ticket = self.slots.ticket(command, link.way_bits)?;
        let (command, id) = (ticket.command(), ticket.id());
        let room = ring.begin_gpa_direct(link.low_water, Self::range(command));
        let packet = match room {
            Some(room) if command.store_pfns(room.pfns()) => room.fill(id, &Self::request(command)),
            _ => return Err(ticket.into_command()),
        };
        ring.finish_gpa_direct(packet);
        // The last thing before the host can see the packet, and under the ring's lock: who forbids sending finds each command that
        // was sent before in its place.
        ticket.park();
        Ok(())
    }

    /// Sends any `command` by `link`, if `low_water` bytes of the ring are free after that.
    fn send(
        &self,
        link: &Link,
        command: Command,
        low_water: u32,
    ) -> Result<(), (SendError, Command)> {
        link.sender.sender().send_value(command, |ring, command| {
            let ticket = match self.slots.ticket(command, link.way_bits) {
                Ok(ticket) => ticket,
                Err(command) => return Err((WriteError::WrongLength, command)),
            };
            let (command, id) = (ticket.command(), ticket.id());
            let packet = Self::request(command);
            let written = if command.has_data() {
                ring.send_gpa_direct(Self::range(command), command.pfns(), packet.as_bytes(), id)
            } else {
                ring.send_in_band(packet.as_bytes(), id, true)
            };
            // Else what was written is taken back.
            let kept = written.and_then(|()| match low_water {
                0 => Ok(()),
                needed if ring.has_room(needed)? => Ok(()),
                needed => Err(WriteError::Full { needed }),
            });
            match kept {
                Ok(()) => {
                    ticket.park();
                    Ok(())
                }
                Err(e) => Err((e, ticket.into_command())),
            }
        })
    }

    /// Tries the own channel, then the other ones, and then the primary or the own to the last byte.
    #[cold]
    fn send_otherwise(&self, map: &Map, own: &Link, command: Command) -> Result<(), Command> {
        let (mut error, mut command) = match self.send(own, command, own.low_water) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        for link in map.others(own) {
            match self.send(link, command, link.low_water) {
                Ok(()) => return Ok(()),
                Err((_, back)) => command = back,
            }
        }
        let last = match (error, map.primary()) {
            (SendError::Closed | SendError::Broken, Some(primary)) => primary,
            _ => own,
        };
        match self.send(last, command, 0) {
            Ok(()) => return Ok(()),
            Err((e, back)) => (command, error) = (back, e),
        }
        match error {
            SendError::Full { .. } => Err(command),
            SendError::Closed | SendError::Broken => self.not_sent(command),
            SendError::Invalid => {
                command.fail(HostByte::Error);
                Ok(())
            }
        }
    }

    /// There is no channel for `command`: for good, or since the system hibernates or a channel is being exchanged.
    #[cold]
    fn not_sent(&self, command: Command) -> Result<(), Command> {
        if self.is_gone() {
            command.fail(HostByte::NoConnect);
            Ok(())
        } else {
            Err(command)
        }
    }

    // --- Receiving. Interrupt or softirq context.

    /// The command that an answer with this id and this start (32 bytes) ends well, and how many bytes were transferred; `None`,
    /// and nothing has happened, when it does not.
    #[inline]
    fn take_good(&self, id: u64, head: &[u64; HEAD_WORDS]) -> Option<(Command, u32)> {
        let transferred = succeeded(head)?;
        Some((self.slots.take(id)?, transferred))
    }

    /// Sees to any packet.
    #[cold]
    fn on_any(&self, packet: &InRing<'_>) {
        let len = packet.descriptor().payload_len() as usize;
        let id = packet.descriptor().transaction_id;
        // All, or when it is shorter the first word, which is all that short ones have.
        let payload = packet.words(0).or_else(|| {
            packet.words(0).map(|[word]| {
                let mut words = [0; VSTOR_PACKET_SIZE / 8];
                words[0] = word;
                words
            })
        });
        let packet: ScsiPacket = zerocopy::transmute!(payload.unwrap_or_default());
        let there = packet.bytes().get(..len).unwrap_or(packet.bytes());
        self.on_packet(id, there, &packet);
    }

    #[cold]
    fn on_packet(&self, id: u64, payload: &[u8], packet: &ScsiPacket) {
        match classify(id, payload) {
            // The host still has the command, and its memory: the true answer may yet come.
            Ok(Incoming::Answer)
                if packet.header.operation != Operation::COMPLETE_IO
                    && !matches!(id, CONTROL_ID | RESET_ID) =>
            {
                ratelimited!(
                    pr_err,
                    "a command is answered with {:?}; ignored\n",
                    Debug(packet.header.operation)
                );
            }
            Ok(Incoming::Answer) => match self.slots.take(id) {
                Some(command) => self.complete(command, packet),
                None => self.on_other_answer(id, payload),
            },
            Ok(Incoming::Rescan) => {
                self.chores.job().note_scan();
                self.chores.schedule();
            }
            Ok(Incoming::Removed) => {
                self.chores.job().note_test();
                self.chores.schedule();
            }
            Ok(Incoming::Ignored(operation)) => {
                ratelimited!(
                    pr_info,
                    "notice {:?} of the host is ignored\n",
                    Debug(operation)
                );
            }
            Err(e) => {
                ratelimited!(pr_err, "packet with id {:#x}: {}\n", id, Show(e));
            }
        }
    }

    #[cold]
    fn on_other_answer(&self, id: u64, payload: &[u8]) {
        let reply = match id {
            CONTROL_ID => &self.answer,
            RESET_ID => &self.reset_answer,
            _ => {
                ratelimited!(pr_err, "answer with id {:#x}, which no request has\n", id);
                return;
            }
        };
        let packet = VstorPacket::read_from_prefix(payload);
        reply.answer(packet.map(|(packet, _)| packet).map_err(|_| EIO));
    }

    fn complete(&self, command: Command, packet: &ScsiPacket) {
        let sent = Sent {
            opcode: command.opcode(),
            transfer_len: command.len(),
            fibre_channel: self.kind == Kind::FibreChannel,
        };
        let verdict = judge(&sent, packet);
        if verdict.outcome == Outcome::Status && verdict.scsi_status == ScsiStatus::GOOD {
            self.complete_well(command, verdict.transferred);
        } else {
            self.complete_failed(command, &verdict, packet.header.status);
            self.after_one();
        }
    }

    #[inline]
    fn complete_well(&self, command: Command, transferred: u32) {
        let residual = command.len().saturating_sub(transferred);
        command.complete(HostByte::Ok, 0, residual);
        self.after_one();
    }

    #[inline]
    fn after_one(&self) {
        // SeqCst: after the command was taken out of its place; see `drain`.
        if self.draining.load(Ordering::SeqCst) {
            self.drained.answer(());
        }
    }

    #[cold]
    fn complete_failed(&self, mut command: Command, verdict: &Verdict, host: NtStatus) {
        let at = command.address();
        let opcode = command.opcode();
        // How absent devices answer those who look for devices is no news.
        let level = match opcode {
            opcode::TEST_UNIT_READY | opcode::INQUIRY => LOG_WARN,
            _ => LOG_ERROR,
        };
        if logging_level.get() >= level {
            ratelimited!(
                pr_warn,
                "{}:{}:{}:{}: tag#{} cmd {:#x} status: scsi {:#x} srb {:#x} host {:#x}\n",
                self.port,
                at.channel,
                at.target,
                at.lun,
                command.tag(),
                opcode,
                verdict.scsi_status.0,
                verdict.srb_status.0,
                host.0
            );
        }
        command.set_sense(verdict.sense());
        let chores = self.chores.job();
        let (byte, chore) = match verdict.outcome {
            Outcome::Status => (HostByte::Ok, false),
            Outcome::CapacityChanged | Outcome::ParametersChanged => {
                chores.note_changed(at);
                (HostByte::Requeue, true)
            }
            // Where a device is being removed, which flushes its cache, another one may be by the time that the chore is done.
            Outcome::NoLun if !command.device_stays() => (HostByte::NoConnect, false),
            Outcome::NoLun => {
                chores.note_gone(at);
                (HostByte::NoConnect, true)
            }
            Outcome::NoDevice => (HostByte::NoConnect, false),
            Outcome::Busy => (HostByte::BusBusy, false),
            Outcome::PassThrough => (HostByte::PassThrough, false),
            Outcome::Error => (HostByte::Error, false),
            Outcome::Broken(operation) => {
                ratelimited!(
                    pr_err,
                    "a command is answered with {:?}\n",
                    Debug(operation)
                );
                (HostByte::Error, false)
            }
        };
        command.complete(byte, verdict.scsi_status.0, verdict.residual);
        if chore {
            self.chores.schedule();
        }
    }

    /// The host has taken the channel of `way` away, and all that it had to say was read. May be called more than once.
    #[cold]
    fn on_way_rescinded(&self, way: u32) {
        if way == PRIMARY {
            self.set_gone();
        }
        self.end_way(way);
        self.chores.job().note_channels();
        self.chores.schedule();
    }

    /// Ends the commands that went by `way`, by which nothing can be sent any more, and from which no answer comes. The host
    /// does not use their memory any more.
    #[cold]
    fn end_way(&self, way: u32) {
        // While there are other channels the commands take those.
        let byte = if self.is_gone() {
            HostByte::NoConnect
        } else {
            HostByte::Requeue
        };
        self.slots.take_all(Some(way), |command| command.fail(byte));
        self.after_fail();
    }

    fn after_fail(&self) {
        if self.draining.load(Ordering::SeqCst) {
            self.drained.answer(());
        }
    }

    /// Nothing is sent any more, and nobody waits for an answer in vain.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.answer.answer(Err(ENODEV));
        self.reset_answer.answer(Err(ENODEV));
    }

    /// Ends all commands in flight. The channels are closed.
    pub(crate) fn fail_all(&self) {
        self.slots
            .take_all(None, |command| command.fail(HostByte::NoConnect));
        self.after_fail();
    }

    // --- Control. Process context.

    /// Sends a control request by the primary channel, and waits for the answer.
    ///
    /// # Errors
    /// `ENODEV` when the channel has gone, `ETIMEDOUT` when no answer came, and why the request was not sent.
    pub(crate) fn ask(&self, packet: &VstorPacket) -> Result<VstorPacket> {
        let _one = self.control.lock();
        self.ask_with(packet, CONTROL_ID, &self.answer)
    }

    fn ask_with(
        &self,
        packet: &VstorPacket,
        id: u64,
        reply: &Reply<Answer>,
    ) -> Result<VstorPacket> {
        reply.expect();
        // After `expect`, so that one of the two sees the other.
        if self.is_gone() {
            return Err(ENODEV);
        }
        {
            let map = self.links.map.read();
            let primary = map.primary().ok_or(ENODEV)?;
            primary
                .sender
                .sender()
                .send_inband(packet.bytes(), id, true)?;
        }
        reply.wait(TIMEOUT_MS).ok_or(ETIMEDOUT)?
    }

    /// Waits until no command is in flight.
    pub(crate) fn drain_all(&self) {
        let _one = self.control.lock();
        self.drain(None);
    }

    /// Under `control`. Waits until no command is in flight, `ms` milliseconds at most if there is a limit. Returns whether that is so.
    fn drain(&self, ms: Option<u32>) -> bool {
        const STEP_MS: u32 = 1000;
        // SeqCst: said before the places are looked at.
        self.draining.store(true, Ordering::SeqCst);
        let mut left = ms;
        let empty = loop {
            self.drained.expect();
            if self.slots.is_empty() {
                break true;
            }
            if left == Some(0) {
                break false;
            }
            // Woken by each completion; the time that is lost by that is not counted.
            if self.drained.wait(STEP_MS).is_none() {
                left = left.map(|ms| ms.saturating_sub(STEP_MS));
            }
        };
        self.draining.store(false, Ordering::SeqCst);
        empty
    }
}

impl HostDriver for Adapter {
    #[inline]
    fn queue(&self, command: Command) -> Result<(), Command> {
        let (queue, may_wait) = (command.queue(), command.may_wait());
        let map = self.links.map.read();
        let Some(own) = map.own(cpu::current()) else {
            return self.not_sent(command);
        };
        if usize::from(command.cdb_len()) > MAX_CDB {
            command.fail(HostByte::Abort);
            self.settle(queue);
            return Ok(());
        }
        let sent = own
            .sender
            .sender()
            .try_send_value(command, |ring, command| {
                self.write(own, ring, command)?;
                if may_wait && self.batches.may_owe(queue, own.way) {
                    return Ok(Signal::Later);
                }
                Ok(Signal::Now)
            });
        match sent {
            Ok(()) if may_wait || !self.batches.is_owed_elsewhere(queue, own.way) => Ok(()),
            Ok(()) => {
                self.settle(queue);
                Ok(())
            }
            Err(command) => {
                let sent = self.send_otherwise(&map, own, command);
                self.settle(queue);
                sent
            }
        }
    }

    fn commit(&self, queue: u32) {
        self.settle(queue);
    }

    fn reset(&self) -> bool {
        let _one = self.control.lock();
        let address = ScsiAddress {
            port: 0,
            path: 0,
            target: 0,
            lun: 0,
        };
        let packet = ScsiPacket::reset(Operation::RESET_BUS, address);
        let Ok((packet, _)) = VstorPacket::read_from_prefix(packet.bytes()) else {
            return false;
        };
        match self.ask_with(&packet, RESET_ID, &self.reset_answer) {
            Ok(answer) if answer.header.status == NtStatus::SUCCESS => {}
            Ok(answer) => {
                pr_err!("the host refuses a reset: {:#x}\n", answer.header.status.0);
                return false;
            }
            // All commands have ended, or are about to.
            Err(e) if e == ENODEV => return false,
            Err(e) => {
                pr_err!("the host does not reset: {}\n", e.to_errno());
                return false;
            }
        }
        // The host has let go of all commands; answers to some may still be in the rings.
        if !self.drain(Some(RESET_GRACE_MS)) {
            pr_err!("the host has lost commands; they are ended\n");
            self.slots
                .take_all(None, |command| command.fail(HostByte::Reset));
        }
        true
    }

    fn configure(&self, disk: &mut DeviceSettings) {
        const SPC_3: u8 = 6;
        disk.timeout_ms = TIMEOUT_MS;
        // Hosts do not know REPORT SUPPORTED OPERATION CODES.
        disk.no_report_opcodes = true;
        disk.no_write_same = true;
        let version = StorVersion(self.version.load(Ordering::Relaxed) as u16);
        if disk.vendor.starts_with(b"Msft") {
            if version == StorVersion::V6_0 {
                // Claims SPC-2, and does what SPC-3 says.
                disk.scsi_level = SPC_3;
            }
            if version >= StorVersion::V6_2 {
                disk.no_write_same = false;
            }
        }
    }
}

/// What a channel calls.
pub(crate) struct ChannelHandler {
    adapter: Arc<Adapter>,
    way: u32,
    broken: AtomicBool,
}

impl ChannelHandler {
    pub(crate) fn new(adapter: Arc<Adapter>, way: u32) -> Self {
        Self {
            adapter,
            way,
            broken: AtomicBool::new(false),
        }
    }

    /// Whether the host has broken the incoming ring: no answer can be had from the channel.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Has the channel closed; its commands end then, when the host does not use their memory any more. The bus has logged why.
    #[cold]
    fn on_broken(&self) {
        self.broken.store(true, Ordering::Release);
        if self.way == PRIMARY {
            self.adapter.set_gone();
        }
        self.adapter.chores.job().note_channels();
        self.adapter.chores.schedule();
    }
}

impl Drop for ChannelHandler {
    fn drop(&mut self) {
        // The channel is closed: nothing was sent since, and nothing will be answered.
        self.adapter.end_way(self.way);
    }
}

impl Handler for ChannelHandler {
    // An answer takes little time, and a tasklet would cost more than the rest.
    const MODE: CallbackMode = CallbackMode::Isr;

    fn on_channel(self: Pin<&Self>, rx: &mut Receiver<'_>) {
        // Before looking into the ring: what is in it then is all.
        let rescinded = rx.is_rescinded();
        let mut left = BUDGET;
        loop {
            // Nearly all packets are such, and all of the same form.
            let good = rx.take_completion(VSTOR_PACKET_SIZE as u32, |id, head| {
                self.adapter.take_good(id, head)
            });
            if let Some((command, transferred)) = good {
                self.adapter.complete_well(command, transferred);
            } else {
                match rx.next_with(|packet| self.adapter.on_any(packet)) {
                    Ok(_) => {}
                    Err(_) => return self.on_broken(),
                }
            }
            if rx.is_drained() {
                // Several answers at once: while the system sees to them more will come. They are looked for then, and need no
                // interrupt.
                if left < BUDGET && !rescinded {
                    rx.mask_interrupts();
                    rx.call_again();
                    return;
                }
                if !rx.finish() {
                    break;
                }
            }
            left -= 1;
            if left == 0 {
                rx.call_again();
                return;
            }
        }
        if rescinded {
            self.adapter.on_way_rescinded(self.way);
        }
    }

    fn on_moved(self: Pin<&Self>) {
        self.adapter.chores.job().note_channels();
        self.adapter.chores.schedule();
    }
}

/// Prints a value of another crate in its `Debug` form.
struct Debug<T>(T);

impl<T: core::fmt::Debug> kernel::fmt::Debug for Debug<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}
