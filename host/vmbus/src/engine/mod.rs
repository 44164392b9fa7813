// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The worker's state: server, channels, devices, and everything that waits. Each method does what there is to
//! do and returns; nothing here blocks, so tests drive it without threads.

mod command;
pub(crate) mod fault;
mod monitor;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hv_partition::{Machine, Partition, PostError, VpIndex};
use hvctl::Event;
use vmbus_proto::msg::{MessageBuffer, Relid, Status, VMBUS_MESSAGE_TYPE, VMBUS_SINT};
use vmbus_proto::packet::PacketKind;
use vmbus_proto::VmbusVersion;

use crate::channel::{Channel, OpenChannel, Received};
use crate::device::{Device, DeviceInfo, DeviceIo, RefTime, Requests};
use crate::inbox::{Client, Inbox, Input};
use crate::server::{Action, OfferId, OfferSpec, Server};
use crate::LogLevelSetter;
use fault::Faults;
use wait::Waits;

/// How often the host looks whether the VM is stopped.
const STOP_CHECK: Duration = Duration::from_millis(250);
/// Reference time that lags by more than this in one check shows that the VM was stopped.
const STOP_LAG: Duration = Duration::from_millis(100);
/// Two looks at a clock that are further apart were interrupted.
const CLOCKS_APART: Duration = Duration::from_millis(5);
/// How often the two clocks are read to get a pair that belongs together.
const CLOCK_TRIES: u32 = 5;
/// When a message is tried again that found the guest's queue full.
const POST_RETRY: Duration = Duration::from_millis(2);
/// Packets taken from one channel before others get their turn.
const PACKETS_PER_TURN: usize = 256;
/// Messages that wait for the guest above which it may not post more.
const MAX_OUTBOX: usize = 1024;

struct DeviceSlot {
    device: Box<dyn Device>,
    info: DeviceInfo,
    offers: Vec<OfferId>,
}

/// How a turn of reading a ring ended.
enum Turn {
    /// The ring is empty, or broken.
    Drained,
    /// The device takes no more for now.
    Held,
    /// Others are to have their turn.
    Over,
}

struct OutMessage {
    vp: VpIndex,
    message: MessageBuffer,
    not_before: Option<Instant>,
}

/// Watches reference time against the host's clock.
struct StopWatch {
    checked: Instant,
    reference: RefTime,
    lag: Duration,
}

/// Host counters beside those of channels.
#[derive(Default)]
struct HostCounters {
    messages_in: u64,
    messages_out: u64,
    messages_dropped: u64,
    message_retries: u64,
    signals: u64,
    unknown_signals_base: u64,
}

/// The engine. See the module's documentation.
pub(crate) struct Engine {
    server: Server,
    partition: Arc<dyn Partition>,
    machine: Arc<dyn Machine>,
    inbox: Arc<Inbox>,
    max_version: VmbusVersion,
    devices: Vec<DeviceSlot>,
    /// By [`OfferId`].
    channels: Vec<Channel>,
    /// By [`OfferId`]: index in `devices`, index of the channel in the device.
    owners: Vec<(usize, u16)>,
    requests: Requests,
    outbox: VecDeque<OutMessage>,
    outbox_retry: Option<Instant>,
    /// Channels with packets left when their turn was over.
    backlog: Vec<OfferId>,
    watchers: Vec<Watcher>,
    waits: Waits,
    faults: Faults,
    counters: HostCounters,
    partition_base: Vec<(String, u64)>,
    stop_watch: StopWatch,
    crashed: bool,
    set_log_level: Option<LogLevelSetter>,
    monitor_next: Option<Instant>,
    packet_buf: Vec<u8>,
    /// The host's monotonic clock.
    pub(crate) host_clock: Box<dyn Fn() -> Instant + Send>,
    /// Channels whose open result is not with the guest yet.
    corked: Vec<OfferId>,
}

struct Watcher {
    client: Client,
    lost: u64,
}

impl Engine {
    pub(crate) fn new(
        max_version: VmbusVersion,
        partition: Arc<dyn Partition>,
        machine: Arc<dyn Machine>,
        inbox: Arc<Inbox>,
        set_log_level: Option<LogLevelSetter>,
    ) -> Self {
        let server = Server::new(max_version, partition.vp_count(), partition.ram().clone());
        let stop_watch = StopWatch {
            checked: Instant::now(),
            reference: partition.reference_time(),
            lag: Duration::ZERO,
        };
        Self {
            server,
            partition,
            machine,
            inbox,
            max_version,
            devices: Vec::new(),
            channels: Vec::new(),
            owners: Vec::new(),
            requests: Requests::default(),
            outbox: VecDeque::new(),
            outbox_retry: None,
            backlog: Vec::new(),
            watchers: Vec::new(),
            waits: Waits::default(),
            faults: Faults::default(),
            counters: HostCounters::default(),
            partition_base: Vec::new(),
            stop_watch,
            crashed: false,
            set_log_level,
            monitor_next: None,
            packet_buf: Vec::new(),
            host_clock: Box::new(Instant::now),
            corked: Vec::new(),
        }
    }

    /// Adds a device and offers it.
    pub(crate) fn add_device(&mut self, device: Box<dyn Device>) {
        let info = device.info();
        let mut offers = Vec::new();
        for index in 0..=info.max_subchannels {
            let spec = OfferSpec {
                name: info.name.clone(),
                class: info.class,
                instance: info.instance,
                subchannel: index,
                flags: info.flags,
                mmio_megabytes: info.mmio_megabytes,
                user_data: info.user_data,
                monitored: info.monitored,
            };
            let id = self.server.add_offer(spec, index == 0);
            self.channels.push(Channel::default());
            self.owners.push((self.devices.len(), index));
            offers.push(id);
        }
        self.devices.push(DeviceSlot {
            device,
            info,
            offers,
        });
        self.run_actions();
    }

    /// Takes what came in.
    pub(crate) fn input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Post(post) => {
                self.counters.messages_in += 1;
                self.server
                    .on_guest_message(post.connection_id, post.msg_type, &post.payload);
            }
            Input::Reset => {
                self.server.reset();
                self.outbox.clear();
            }
            Input::Crash => {
                self.crashed = true;
                self.tell(&Event::GuestCrash);
            }
            Input::Control { client, id, cmd } => self.command(client, id, cmd, now),
            Input::Wake { device } => self.poll_device(device),
        }
        self.settle(now);
    }

    /// The guest signalled a channel `count` times.
    pub(crate) fn signal(&mut self, relid: Relid, count: u32, now: Instant) {
        self.counters.signals += u64::from(count);
        if let Some(id) = self.server.offer_of(relid) {
            self.service(id, count);
        }
        self.settle(now);
    }

    /// Does what is due at `now`.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.check_stopped(now);
        let reference = self.partition.reference_time();
        for i in 0..self.devices.len() {
            if self.devices[i]
                .device
                .deadline()
                .is_some_and(|d| d <= reference)
            {
                self.poll_device(i);
            }
        }
        for id in std::mem::take(&mut self.backlog) {
            self.service(id, 0);
        }
        self.scan_monitor(now);
        self.settle(now);
    }

    /// Whether the guest takes its answers: one that posts and reads nothing must not fill the host's memory.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.len() < MAX_OUTBOX
    }

    /// When [`Engine::tick`] has to be called next.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        if !self.backlog.is_empty() {
            return now;
        }
        let mut deadline = self.stop_watch.checked + STOP_CHECK;
        let reference = self.partition.reference_time();
        for slot in &self.devices {
            if let Some(due) = slot.device.deadline() {
                // At least 1 ms: while the VM is stopped, reference time does not come closer.
                let ticks = due
                    .saturating_sub(reference)
                    .max(crate::device::TICKS_PER_MS);
                deadline = deadline.min(now + Duration::from_nanos(ticks.saturating_mul(100)));
            }
        }
        for other in [self.outbox_retry, self.waits.deadline(), self.monitor_next]
            .into_iter()
            .flatten()
        {
            deadline = deadline.min(other);
        }
        deadline
    }

    fn settle(&mut self, now: Instant) {
        self.run_actions();
        self.flush_outbox(now);
        if self.outbox.is_empty() {
            // All open results are with the guest.
            for id in std::mem::take(&mut self.corked) {
                self.channels[id.0].uncork(&*self.partition);
            }
        }
        self.check_waits(now);
    }

    /// Carries out what server and devices left to do.
    fn run_actions(&mut self) {
        loop {
            while let Some(action) = self.server.next_action() {
                self.run_action(action);
            }
            let requests = std::mem::take(&mut self.requests);
            let idle = requests.violations.is_empty()
                && requests.completions.is_empty()
                && requests.subchannels.is_empty();
            for id in requests.resumed {
                if !self.backlog.contains(&id) {
                    self.backlog.push(id);
                }
            }
            for text in requests.violations {
                self.server.violation(text);
            }
            for event in requests.events {
                self.tell(&event);
            }
            for (token, result) in requests.completions {
                self.waits.complete(token, result);
            }
            for (device, count) in requests.subchannels {
                let offers: Vec<OfferId> = self.devices[device]
                    .offers
                    .iter()
                    .copied()
                    .skip(1)
                    .take(usize::from(count))
                    .collect();
                offers.into_iter().for_each(|id| self.server.offer(id));
            }
            if idle {
                break;
            }
        }
    }

    fn run_action(&mut self, action: Action) {
        match action {
            Action::Post { vp, message } => self.post(vp, message),
            Action::Open { offer, params } => {
                let (device, index) = self.owners[offer.0];
                let relid = Relid(u32::from(params.event_flag));
                let opened =
                    OpenChannel::new(self.partition.ram().clone(), &params).and_then(|open| {
                        self.channels[offer.0].set_open(open);
                        // Before the device may send: the guest answers what it sends at once, from its interrupt, and a
                        // signal that is refused is never repeated.
                        self.inbox.open(relid);
                        self.corked.push(offer);
                        let result =
                            self.with_device(device, |device, io| device.opened(io, index));
                        if result.is_err() {
                            self.inbox.close(relid);
                            self.channels[offer.0].set_closed();
                        }
                        result
                    });
                let status = match opened {
                    Ok(()) => Status::SUCCESS,
                    Err(text) => {
                        tracing::warn!("{}: open refused: {text}", self.devices[device].info.name);
                        Status::UNSUCCESSFUL
                    }
                };
                self.server.open_complete(offer, status);
            }
            Action::Close { offer } => {
                if let Some(relid) = self.channels[offer.0].relid() {
                    self.inbox.close(relid);
                }
                if self.channels[offer.0].set_closed() {
                    let (device, index) = self.owners[offer.0];
                    self.with_device(device, |device, io| device.closed(io, index));
                }
            }
            Action::Retarget { offer, vp } => self.channels[offer.0].retarget(vp),
            Action::GpadlGone { offer, id } => {
                let (device, index) = self.owners[offer.0];
                if index == 0 {
                    self.with_device(device, |device, io| device.gpadl_gone(io, id));
                }
            }
            Action::Event(event) => self.tell(&event),
        }
    }

    fn with_device<R>(
        &mut self,
        index: usize,
        f: impl FnOnce(&mut dyn Device, &mut DeviceIo<'_>) -> R,
    ) -> R {
        let (now, unix_ns) = self.clocks();
        let slot = &mut self.devices[index];
        let mut io = DeviceIo {
            device: index,
            name: &slot.info.name,
            offers: &slot.offers,
            channels: &mut self.channels,
            partition: &*self.partition,
            inbox: &self.inbox,
            requests: &mut self.requests,
            server: &self.server,
            now,
            unix_ns,
        };
        f(&mut *slot.device, &mut io)
    }

    /// Reference time and the host's clock in ns since 1970, read together.
    fn clocks(&self) -> (RefTime, u64) {
        let mut best = (u64::MAX, 0, 0);
        for _ in 0..CLOCK_TRIES {
            let before = self.partition.reference_time();
            let unix = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let apart = self.partition.reference_time().saturating_sub(before);
            if apart < best.0 {
                let unix = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
                best = (apart, before + apart / 2, unix);
            }
            // A look takes well below a microsecond, unless the worker lost its processor meanwhile.
            if apart < 100 {
                break;
            }
        }
        (best.1, best.2)
    }

    fn poll_device(&mut self, index: usize) {
        self.with_device(index, |device, io| device.poll(io));
    }

    /// Reads the channel's ring and hands the packets to its device.
    fn service(&mut self, id: OfferId, signals: u32) {
        let (device, index) = self.owners[id.0];
        if self.faults.stalled.contains(&id) {
            return;
        }
        let partition = self.partition.clone();
        let mut buf = std::mem::take(&mut self.packet_buf);
        self.channels[id.0].begin_service(signals);
        let mut turn = 0;
        let finished = loop {
            if turn == PACKETS_PER_TURN {
                break Turn::Over;
            }
            if !self.devices[device].device.is_ready(index) {
                break Turn::Held;
            }
            turn += 1;
            match self.channels[id.0].receive(&*partition, &mut buf) {
                Received::Packet(packet)
                    if packet.kind == PacketKind::Completion
                        && !self.channels[id.0].complete(packet.transaction_id()) =>
                {
                    let (name, id) = (&self.devices[device].info.name, packet.transaction_id());
                    self.server.violation(format!(
                        "{name}: completion of packet {id:#x} that asked for none"
                    ));
                }
                Received::Packet(packet) => {
                    self.with_device(device, |device, io| device.packet(io, index, &packet));
                    // The packet may have led to the channel's end.
                    self.run_actions();
                }
                Received::Nothing => break Turn::Drained,
                Received::Broken(text) => {
                    let name = &self.devices[device].info.name;
                    self.server.violation(format!("{name}: {text}"));
                    break Turn::Drained;
                }
            }
        };
        self.packet_buf = buf;
        if turn > 0 {
            self.with_device(device, |device, io| device.drained(io, index));
        }
        match finished {
            Turn::Drained => self.channels[id.0].end_service(),
            // Signals stay masked: the device says when it goes on.
            Turn::Held => self.channels[id.0].pause_service(&*partition),
            Turn::Over => {
                self.channels[id.0].pause_service(&*partition);
                self.backlog.push(id);
            }
        }
        if self.channels[id.0].take_room() {
            // The guest made room that a device waits for.
            self.poll_device(device);
        }
    }

    fn tell(&mut self, event: &Event) {
        tracing::debug!(?event);
        self.watchers.retain_mut(|w| {
            if w.lost > 0 {
                match w.client.event(&Event::Lost { count: w.lost }) {
                    Ok(true) => w.lost = 0,
                    Ok(false) => {
                        w.lost += 1;
                        return true;
                    }
                    Err(()) => return false,
                }
            }
            match w.client.event(event) {
                Ok(sent) => {
                    w.lost += u64::from(!sent);
                    true
                }
                Err(()) => false,
            }
        });
    }

    fn post(&mut self, vp: VpIndex, message: MessageBuffer) {
        let now = Instant::now();
        for not_before in self.faults.on_message(now) {
            self.outbox.push_back(OutMessage {
                vp,
                message,
                not_before,
            });
        }
    }

    fn flush_outbox(&mut self, now: Instant) {
        self.outbox_retry = None;
        while let Some(out) = self.outbox.front() {
            if let Some(when) = out.not_before.filter(|w| *w > now) {
                self.outbox_retry = Some(when);
                return;
            }
            match self.partition.post_message(
                out.vp,
                VMBUS_SINT,
                VMBUS_MESSAGE_TYPE,
                out.message.as_bytes(),
            ) {
                Ok(()) => self.counters.messages_out += 1,
                Err(PostError::QueueFull) => {
                    self.counters.message_retries += 1;
                    self.outbox_retry = Some(now + POST_RETRY);
                    return;
                }
                Err(e) => {
                    tracing::warn!("message {:?} to VP {} dropped: {e}", out.message, out.vp.0);
                    self.counters.messages_dropped += 1;
                }
            }
            self.outbox.pop_front();
        }
    }

    /// Compares the two clocks: a VM that was stopped has less reference time behind it.
    fn check_stopped(&mut self, now: Instant) {
        if now.saturating_duration_since(self.stop_watch.checked) < STOP_CHECK {
            return;
        }
        // Both clocks at one time: a worker that lost its processor between the two looks would find a
        // stop that was none.
        let before = (self.host_clock)();
        let reference = self.partition.reference_time();
        if (self.host_clock)().saturating_duration_since(before) > CLOCKS_APART {
            return;
        }
        let now = before;
        let watch = &mut self.stop_watch;
        let real = now.saturating_duration_since(watch.checked);
        if reference < watch.reference {
            // Reference time begins anew at a reset, which is not a stop.
            *watch = StopWatch {
                checked: now,
                reference,
                lag: Duration::ZERO,
            };
            return;
        }
        let passed = Duration::from_nanos(
            reference
                .saturating_sub(watch.reference)
                .saturating_mul(100),
        );
        let lag = real.saturating_sub(passed);
        watch.checked = now;
        watch.reference = reference;
        if lag > STOP_LAG {
            // Stopped for all of the time or for a part of it. The end is told when a check finds no lag:
            // a part at the beginning looks like one at the end.
            watch.lag += lag;
            return;
        }
        if watch.lag.is_zero() {
            return;
        }
        let ms = u64::try_from(std::mem::take(&mut watch.lag).as_millis()).unwrap_or(u64::MAX);
        tracing::info!("the VM was stopped for {ms} ms");
        self.tell(&Event::StopSeen { ms });
        for i in 0..self.devices.len() {
            self.with_device(i, |device, io| device.resumed(io, ms));
        }
    }
}
