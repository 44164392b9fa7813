// SPDX-License-Identifier: GPL-2.0

//! The device from the opening of its channel to the closing: what client and host agree on, buffers, queues.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};
use hv_vmbus::{
    channel::{Channel, Endpoint, Offered, Open, OpenParams},
    log::Show,
    services::{cpu, reply::Reply},
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    time::{delay::fsleep, Delta},
};
use vmbus_proto::net::{
    client::{self, Client, Negotiated},
    nvsp::{NvspVersion, MAX_CHANNELS},
    rndis::{write_message, HostMessage, PacketFilter, RndisType},
    rss::{write_parameters, HashInfo, RssFlags, KEY_SIZE, MAX_PARAMETERS},
    setup::{self, Device, Setup},
    Oid,
};

use crate::{
    net::{Napi, NetDevice, Rtnl},
    nic::Interface,
    queue::{Link, Queue, Signal},
    ring_size,
    rx::RxState,
    sections::Sections,
};

const PAGE: usize = 4096;
const MIN_RING_PAGES: u32 = 64;
const MAX_RING_PAGES: u32 = 4096;

/// Seconds that subchannels may take to come, and to be opened.
const SUBCHANNELS_S: u32 = 20;

/// How often, and after how many milliseconds, rings are looked at that are to run empty.
const DRAIN_TRIES: u32 = 2000;
const DRAIN_MS: i64 = 5;

/// Opens a channel's rings.
fn params() -> OpenParams<'static> {
    if ring_size.get_unsigned() < MIN_RING_PAGES {
        ring_size.set(MIN_RING_PAGES as i32);
        pr_info!("Increased ring_size to {} (min allowed)\n", MIN_RING_PAGES);
    }
    let pages = ring_size.get_unsigned().min(MAX_RING_PAGES) as usize;
    OpenParams {
        send_ring: pages * PAGE,
        recv_ring: pages * PAGE,
        user_data: &[],
    }
}

/// What to agree on.
pub(crate) struct Wanted {
    pub(crate) queues: u32,
    pub(crate) receive_bytes: u32,
    pub(crate) send_bytes: u32,
    pub(crate) lro: bool,
}

/// An attached device.
#[pin_data]
pub(crate) struct Session {
    pub(crate) link: Arc<Link>,
    pub(crate) queues: KVec<Arc<Queue>>,
    pub(crate) napis: KVec<Arc<Napi<Queue>>>,
    pub(crate) device: Device,
    pub(crate) agreed: Negotiated,
    /// The name that the host shows for the device, in UTF-16.
    pub(crate) name: KVec<u8>,
    pub(crate) max_queues: u32,
    /// The filter that the host was given last.
    filter: AtomicU32,
    #[pin]
    channels: Mutex<Channels>,
    /// Subchannels that are open, and are to be.
    open: AtomicU32,
    expected: AtomicU32,
    #[pin]
    all_open: Reply<()>,
}

struct Channels {
    // Closed before the primary one, as the host expects.
    subs: KVec<Channel<Open<Signal>>>,
    primary: Option<Channel<Open<Signal>>>,
}

/// What there is of a session before everything is agreed on.
struct Parts {
    link: Arc<Link>,
    queues: KVec<Arc<Queue>>,
    napis: KVec<Arc<Napi<Queue>>>,
    primary: Channel<Open<Signal>>,
}

impl Parts {
    fn add_queue(&mut self, rtnl: &Rtnl, dev: &Arc<NetDevice>, index: u16) -> Result {
        self.queues.reserve(1, GFP_KERNEL)?;
        self.napis.reserve(1, GFP_KERNEL)?;
        let (queue, napi) = new_queue(rtnl, &self.link, dev, index)?;
        self.queues.push(queue, GFP_KERNEL)?;
        self.napis.push(napi, GFP_KERNEL)?;
        Ok(())
    }

    fn endpoint(&self) -> Endpoint {
        self.primary.endpoint()
    }

    /// Agrees with the host on the protocol, and shares the buffers.
    fn negotiate(&self, wanted: &Wanted) -> Result<Negotiated> {
        let link = &self.link;
        let endpoint = self.endpoint();
        let turn = link.control.turn(&endpoint);
        let mut client = Client::new(client::Config {
            newest: NvspVersion::V6_1,
            mtu: link.shared.dev.mtu(),
            sriov: false,
            isolated: false,
            receive_bytes: wanted.receive_bytes,
            send_bytes: wanted.send_bytes,
        });
        let mut send = None;
        let mut step = client.start();
        let agreed = loop {
            step = match step {
                Ok(client::Step::Request(message)) => {
                    let answer = turn.request(&message)?;
                    client.on_answer(answer.as_bytes())
                }
                Ok(client::Step::Notice(message)) => {
                    turn.notice(&message)?;
                    client.sent()
                }
                Ok(client::Step::ShareReceive(bytes)) => {
                    let buffer = self.primary.share_buffer(bytes as usize)?;
                    let id = buffer.id();
                    link.receive.set(buffer);
                    // Notices are understood by it, and may come as soon as the host has the buffer.
                    link.set_version(client.version());
                    client.shared(id)
                }
                Ok(client::Step::ShareSend(bytes)) => {
                    let buffer = self.primary.share_buffer(bytes as usize)?;
                    let id = buffer.id();
                    send = Some(buffer);
                    client.shared(id)
                }
                Ok(client::Step::Ready(agreed)) => break agreed,
                Err(e) => {
                    pr_err!("the host cannot be used: {}\n", Show(e));
                    return Err(EIO);
                }
            };
        };
        let sections = Sections::new(
            send.ok_or(EIO)?,
            agreed.send.size,
            agreed.send.count.min(u32::from(u16::MAX) - 1),
        )?;
        link.sections.set(sections);
        Ok(agreed)
    }

    /// Asks the host what the device is and can do, and sets what it is to do.
    fn set_up(&self, version: NvspVersion, lro: bool) -> Result<(Device, KVec<u8>)> {
        let link = &self.link;
        let endpoint = self.endpoint();
        let mut turn = link.control.turn(&endpoint);
        let mut setup = Setup::new(setup::Config { version, rsc: lro });
        let mut name = KVec::new();
        let failed = |e| {
            pr_err!("the device cannot be used: {}\n", Show(e));
            EIO
        };
        let desk = &mut *turn.desk;
        let mut len = setup
            .start(&mut desk.requests, &mut desk.out)
            .map_err(failed)?;
        loop {
            let answer = turn.ask(len)?;
            let message = HostMessage::parse(&answer).map_err(|e| {
                pr_err!("the device cannot be used: {}\n", Show(e));
                EIO
            })?;
            let desk = &mut *turn.desk;
            let step = setup.on_message(&mut desk.requests, &message, &mut desk.out);
            match step.map_err(failed)? {
                setup::Step::Send { len: next, name: n } => {
                    len = next;
                    if let Some(n) = n {
                        name.extend_from_slice(n, GFP_KERNEL)?;
                    }
                }
                setup::Step::Ready(device) => return Ok((device, name)),
                setup::Step::NotMine => return Err(EIO),
            }
        }
    }

    fn finish(
        &mut self,
        rtnl: &Rtnl,
        dev: &Arc<NetDevice>,
        wanted: &Wanted,
    ) -> Result<(Negotiated, Device, KVec<u8>, u32)> {
        let agreed = self.negotiate(wanted)?;
        let (device, name) = self.set_up(agreed.version, wanted.lro)?;
        let link = &self.link;
        link.max_packets
            .store(device.max_packets, Ordering::Relaxed);
        link.alignment.store(device.alignment, Ordering::Relaxed);
        let max_queues = device
            .rss
            .map_or(1, |rss| rss.queues.min(cpu::online()).min(MAX_CHANNELS))
            .max(1);
        for index in 1..wanted.queues.min(max_queues) {
            self.add_queue(rtnl, dev, index as u16)?;
        }
        Ok((agreed, device, name, max_queues))
    }
}

fn new_queue(
    rtnl: &Rtnl,
    link: &Arc<Link>,
    dev: &Arc<NetDevice>,
    index: u16,
) -> Result<(Arc<Queue>, Arc<Napi<Queue>>)> {
    let queue = Queue::new(link, dev, index)?;
    let napi = Napi::new(rtnl, dev, index, queue.clone(), RxState::new()?)?;
    // Before the channel is opened: the host may signal it at once.
    napi.enable(rtnl);
    Ok((queue, napi))
}

impl Session {
    /// Opens the device. Subchannels come after this: see [`open_subchannels`](Self::open_subchannels).
    ///
    /// # Errors
    /// With the channel, to try again.
    pub(crate) fn new(
        rtnl: &Rtnl,
        interface: &Arc<Interface>,
        channel: Channel<Offered>,
        wanted: &Wanted,
    ) -> Result<Arc<Self>, (Error, Option<Channel<Offered>>)> {
        let dev = &interface.nic().shared.dev;
        let first = Link::new(interface).and_then(|link| {
            let (queue, napi) = new_queue(rtnl, &link, dev, 0)?;
            let mut queues = KVec::with_capacity(1, GFP_KERNEL)?;
            queues.push(queue, GFP_KERNEL)?;
            let mut napis = KVec::with_capacity(1, GFP_KERNEL)?;
            napis.push(napi.clone(), GFP_KERNEL)?;
            Ok((link, queues, napis, napi))
        });
        let (link, queues, napis, napi) = match first {
            Ok(first) => first,
            Err(e) => return Err((e, Some(channel))),
        };
        let signal = Ok::<_, Error>(Signal { napi: napi.clone() });
        let primary = match channel.try_open(&params(), signal) {
            Ok(primary) => primary,
            Err((e, channel)) => {
                napi.disable(rtnl);
                return Err((e, Some(channel)));
            }
        };
        if let Some(queue) = queues.first() {
            queue.endpoint.set(primary.endpoint());
        }
        // What came before the endpoint was known.
        napi.schedule();
        let mut parts = Parts {
            link,
            queues,
            napis,
            primary,
        };
        match parts.finish(rtnl, dev, wanted) {
            Ok(done) => Self::from_parts(parts, done).map_err(|e| (e, None)),
            Err(e) => {
                for napi in &parts.napis {
                    napi.disable(rtnl);
                }
                Err((e, Some(parts.primary.close())))
            }
        }
    }

    fn from_parts(parts: Parts, done: (Negotiated, Device, KVec<u8>, u32)) -> Result<Arc<Self>> {
        let (agreed, device, name, max_queues) = done;
        let channels = Channels {
            subs: KVec::new(),
            primary: Some(parts.primary),
        };
        Arc::pin_init(
            pin_init!(Self {
                link: parts.link,
                queues: parts.queues,
                napis: parts.napis,
                device,
                agreed,
                name,
                max_queues,
                filter: AtomicU32::new(0),
                channels <- new_mutex!(channels, "hv_netvsc_rs::channels"),
                open: AtomicU32::new(0),
                expected: AtomicU32::new(0),
                all_open <- Reply::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// The primary channel's ends.
    pub(crate) fn endpoint(&self) -> Result<&Endpoint> {
        let first = self.queues.first().ok_or(ENODEV)?;
        first.endpoint.get().ok_or(ENODEV)
    }

    /// Queues that have a channel: those before the first that has none.
    pub(crate) fn usable_queues(&self) -> u32 {
        let usable = |queue: &&Arc<Queue>| queue.endpoint.get().is_some();
        self.queues.iter().take_while(usable).count() as u32
    }

    /// Has the host offer a channel for each further queue, and waits until they are open. What does not come is not waited for for
    /// long, and is not used.
    pub(crate) fn open_subchannels(&self) -> Result {
        let asked = self.queues.len() as u32 - 1;
        if asked == 0 {
            return Ok(());
        }
        self.all_open.expect();
        self.expected.store(asked, Ordering::SeqCst);
        let turn = self.link.control.turn(self.endpoint()?);
        let answer = turn.request(&client::request_subchannels(asked))?;
        drop(turn);
        let granted = client::subchannels_granted(answer.as_bytes(), asked).map_err(|e| {
            pr_err!("sub channel request failed: {}\n", Show(e));
            EIO
        })?;
        self.expected.store(granted, Ordering::SeqCst);
        for _ in 0..SUBCHANNELS_S {
            let all = self.open.load(Ordering::SeqCst) >= granted;
            if all || self.link.control.is_gone() || self.all_open.wait(1000).is_some() {
                break;
            }
        }
        let open = self.open.load(Ordering::SeqCst);
        if open < granted {
            pr_warn!(
                "{} of {} sub channels did not come\n",
                granted - open,
                granted
            );
        }
        Ok(())
    }

    /// Takes a subchannel, if there is a queue for it.
    pub(crate) fn add_subchannel(&self, channel: Channel<Offered>) {
        let index = usize::from(channel.index());
        let (Some(queue), Some(napi)) = (self.queues.get(index), self.napis.get(index)) else {
            return;
        };
        if index == 0 || queue.endpoint.get().is_some() {
            return;
        }
        let signal = Ok::<_, Error>(Signal { napi: napi.clone() });
        let added = channel.open(&params(), signal).and_then(|channel| {
            let endpoint = channel.endpoint();
            let mut channels = self.channels.lock();
            if channels.primary.is_none() {
                // Closed meanwhile; so is this one, when it is dropped.
                return Err(ENODEV);
            }
            channels.subs.push(channel, GFP_KERNEL)?;
            drop(channels);
            queue.endpoint.set(endpoint);
            Ok(())
        });
        match added {
            Ok(()) => {
                // What came before the endpoint was known.
                napi.schedule();
            }
            Err(e) if e == ENODEV => {}
            Err(e) => pr_notice!("sub channel open failed: {}\n", e.to_errno()),
        }
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        if open >= self.expected.load(Ordering::SeqCst) {
            self.all_open.answer(());
        }
    }

    /// Tells the host which packets are wanted, if it does not know. `may` is asked when it is this caller's turn.
    pub(crate) fn set_filter(&self, filter: PacketFilter, may: impl FnOnce() -> bool) -> Result {
        let mut turn = self.link.control.turn(self.endpoint()?);
        if !may() || self.filter.load(Ordering::Relaxed) == filter.bits() {
            return Ok(());
        }
        turn.set(Oid::GEN_CURRENT_PACKET_FILTER, &filter.bits().to_le_bytes())?;
        self.filter.store(filter.bits(), Ordering::Relaxed);
        Ok(())
    }

    /// Sets table and key of receive-side scaling.
    pub(crate) fn set_rss(&self, table: &[u32], key: &[u8; KEY_SIZE]) -> Result {
        let mut info = KVec::with_capacity(MAX_PARAMETERS, GFP_KERNEL)?;
        info.resize(MAX_PARAMETERS, 0, GFP_KERNEL)?;
        let mut turn = self.link.control.turn(self.endpoint()?);
        // Switched off first, as hosts are used to.
        for flags in [RssFlags::DISABLE, RssFlags::empty()] {
            let len = write_parameters(
                &mut info,
                flags,
                HashInfo::linux(),
                table.iter().copied(),
                key,
            )
            .ok_or(EINVAL)?;
            let result = turn.set(
                Oid::GEN_RECEIVE_SCALE_PARAMETERS,
                info.get(..len).unwrap_or(&[]),
            );
            if flags.is_empty() {
                result?;
            }
        }
        Ok(())
    }

    /// Waits until both rings of all queues are empty, for 10 s at most.
    ///
    /// # Errors
    /// `ETIMEDOUT`.
    pub(crate) fn drain(&self) -> Result {
        for _ in 0..DRAIN_TRIES {
            let idle = self.queues.iter().all(|queue| {
                queue
                    .endpoint
                    .get()
                    .is_none_or(|endpoint| endpoint.is_idle() || endpoint.is_rescinded())
            });
            if idle {
                return Ok(());
            }
            fsleep(Delta::from_millis(DRAIN_MS));
        }
        Err(ETIMEDOUT)
    }

    /// Ends everything, and gives the primary channel back. Nothing is sent any more; the stack knows. `None`: ended before.
    pub(crate) fn close(&self, rtnl: &Rtnl) -> Option<Channel<Offered>> {
        let link = &self.link;
        self.halt();
        link.control.set_gone();
        for napi in &self.napis {
            napi.disable(rtnl);
        }
        let mut channels = self.channels.lock();
        let primary = channels.primary.take();
        let subs = core::mem::replace(&mut channels.subs, KVec::new());
        drop(channels);
        drop(subs);
        let channel = primary.map(Channel::close);
        for queue in &self.queues {
            queue.forget_sent();
        }
        channel
    }

    /// Tells the host that the device is not used any more, and waits for a while until it has let go of all packets.
    fn halt(&self) {
        let link = &self.link;
        let Ok(endpoint) = self.endpoint() else {
            return;
        };
        if endpoint.is_rescinded() || link.control.is_gone() {
            return;
        }
        let mut turn = link.control.turn(endpoint);
        let desk = &mut *turn.desk;
        let id = desk.requests.begin();
        if let Some(len) = write_message(&mut desk.out, RndisType::HALT, &id, &[]) {
            // No answer comes; a host that does not take it will see the channel close.
            let _ = turn.send(len);
        }
        for _ in 0..DRAIN_TRIES {
            let idle = self.queues.iter().all(|queue| queue.in_flight.count() == 0);
            if idle || endpoint.is_rescinded() || link.control.is_gone() {
                break;
            }
            fsleep(Delta::from_millis(DRAIN_MS));
        }
        let _ = turn.notice(&client::revoke_receive_buffer());
        let _ = turn.notice(&client::revoke_send_buffer());
    }

    /// The offloads that the host can do, and the largest packet that it cuts up.
    pub(crate) fn has(&self, feature: setup::Features) -> bool {
        self.device.features.contains(feature)
    }

    /// Sets the address that the host lets through.
    pub(crate) fn set(&self, oid: Oid, info: &[u8]) -> Result {
        let mut turn = self.link.control.turn(self.endpoint()?);
        turn.set(oid, info)
    }

    /// As [`set`](Self::set), of a structure.
    pub(crate) fn set_offloads(
        &self,
        parameters: &vmbus_proto::net::offload::OffloadParameters,
    ) -> Result {
        self.set(Oid::TCP_OFFLOAD_PARAMETERS, parameters.sized_bytes())
    }

    /// Which packets' checksums the host fills in, as bits of `tx::checksums`.
    pub(crate) fn checksums(&self) -> u32 {
        use crate::tx::checksums;
        [
            (setup::Features::TX_TCP4, checksums::TCP4),
            (setup::Features::TX_UDP4, checksums::UDP4),
            (setup::Features::TX_TCP6, checksums::TCP6),
            (setup::Features::TX_UDP6, checksums::UDP6),
        ]
        .into_iter()
        .filter(|(feature, _)| self.has(*feature))
        .fold(0, |all, (_, bit)| all | bit)
    }
}
