// SPDX-License-Identifier: GPL-2.0

//! The device's channels, and which of them a command takes.
#![forbid(unsafe_code)]

use hv_vmbus::{
    channel::{Channel, Open, SharedSender},
    services::{cpu, rcu::RcuCell},
};
use kernel::{new_mutex, prelude::*, sync::Mutex};

use crate::{
    adapter::ChannelHandler,
    ring_avail_percent_lowater,
    scsi::{way_bits, WAYS},
};

/// The primary channel's way. See [`Link::way`].
pub(crate) const PRIMARY: u32 = 0;

/// An open channel as commands see it.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) sender: SharedSender,
    /// Number of the channel among those of the device.
    pub(crate) way: u32,
    /// The same as part of the ids of the commands that go by it.
    pub(crate) way_bits: u64,
    node: i32,
    /// Bytes of the outgoing ring that are to stay free while there are other channels.
    pub(crate) low_water: u32,
}

/// Which channel to take. Replaced as a whole when channels come, go or move.
pub(crate) struct Map {
    /// The primary channel comes first. Empty when it is closed.
    links: KVec<Link>,
    /// The same for each CPU: the own ones. Empty as `links` is.
    by_cpu: KVec<Link>,
}

impl Map {
    const fn empty() -> Self {
        Self {
            links: KVec::new(),
            by_cpu: KVec::new(),
        }
    }

    /// The primary channel, if it is open.
    #[inline]
    pub(crate) fn primary(&self) -> Option<&Link> {
        self.links.first()
    }

    /// The channel of `way`.
    pub(crate) fn of_way(&self, way: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.way == way)
    }

    /// The channel for commands from `cpu`: its own, else one of its NUMA node, else any.
    #[inline]
    pub(crate) fn own(&self, cpu: u32) -> Option<&Link> {
        self.by_cpu.get(cpu as usize)
    }

    /// All channels but `own`, those of its NUMA node first, beginning after it so that load is spread.
    pub(crate) fn others<'a>(&'a self, own: &'a Link) -> impl Iterator<Item = &'a Link> {
        let at = self
            .links
            .iter()
            .position(|link| link.way == own.way)
            .map_or(0, |at| at + 1);
        let (before, after) = self.links.split_at(at.min(self.links.len()));
        // Not as methods: `pin_init` has others of the same name.
        let ring = move || Iterator::chain(after.iter(), before);
        let near = ring().filter(|link| link.node == own.node);
        let far = ring().filter(|link| link.node != own.node);
        Iterator::chain(near, far).filter(|link| link.way != own.way)
    }
}

struct Channels {
    primary: Option<Channel<Open<ChannelHandler>>>,
    subs: KVec<Sub>,
    /// Subchannels that are wanted at most. 0 before the host was asked, and once the channels were closed.
    wanted: usize,
    last_way: u32,
}

struct Sub {
    way: u32,
    channel: Channel<Open<ChannelHandler>>,
}

impl Sub {
    fn is_usable(&self) -> bool {
        !self.channel.is_rescinded() && !self.channel.handler().is_broken()
    }
}

impl Channels {
    /// Subchannels, but for those that the host has taken back and that `update` has not let go of yet: an offer may take
    /// their place before.
    fn usable(&self) -> usize {
        self.subs.iter().filter(|sub| sub.is_usable()).count()
    }
}

/// See the [module's documentation](self).
#[pin_data]
pub(crate) struct Links {
    pub(crate) map: RcuCell<Map>,
    // Not taken by callbacks of channels: closing a channel under it waits for them.
    #[pin]
    channels: Mutex<Channels>,
}

impl Links {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            map: RcuCell::new(Map::empty())?,
            channels <- new_mutex!(
                Channels {
                    primary: None,
                    subs: KVec::new(),
                    wanted: 0,
                    last_way: PRIMARY,
                },
                "hv_storvsc_rs::channels"
            ),
        }? Error)
    }

    /// Takes the open primary channel in. May sleep.
    pub(crate) fn set_primary(&self, channel: Channel<Open<ChannelHandler>>) -> Result {
        self.channels.lock().primary = Some(channel);
        self.update()
    }

    /// Takes in up to `count` subchannels from now on.
    pub(crate) fn want_subchannels(&self, count: u16) {
        self.channels.lock().wanted = count.into();
    }

    /// A way for one more subchannel; `None` when no more are wanted.
    pub(crate) fn new_way(&self) -> Option<u32> {
        let mut channels = self.channels.lock();
        if channels.usable() >= channels.wanted {
            return None;
        }
        loop {
            let way = channels.last_way % (WAYS - 1) + 1;
            channels.last_way = way;
            if channels.subs.iter().all(|sub| sub.way != way) {
                return Some(way);
            }
        }
    }

    /// Takes an open subchannel in; closes it when it is not wanted any more. May sleep.
    pub(crate) fn add_subchannel(
        &self,
        way: u32,
        channel: Channel<Open<ChannelHandler>>,
    ) -> Result {
        let mut channels = self.channels.lock();
        if channels.usable() >= channels.wanted {
            drop(channels);
            drop(channel);
            return Ok(());
        }
        channels.subs.push(Sub { way, channel }, GFP_KERNEL)?;
        drop(channels);
        self.update()
    }

    /// Makes the map again, from the channels that are usable now; lets go of the others. May sleep.
    pub(crate) fn update(&self) -> Result {
        let mut channels = self.channels.lock();
        let mut gone = KVec::new();
        // Without the primary channel the others are of no use. A rescinded one stays: the device goes with it.
        let broken = channels
            .primary
            .as_ref()
            .is_some_and(|primary| primary.handler().is_broken());
        let primary = channels.primary.take_if(|_| broken);
        while let Some(at) = channels
            .subs
            .iter()
            .position(|sub| broken || !sub.is_usable())
        {
            gone.reserve(1, GFP_KERNEL)?;
            if let Ok(sub) = channels.subs.remove(at) {
                gone.push(sub, GFP_KERNEL)?;
            }
        }
        let map = Self::make_map(&channels)?;
        self.map.replace(map)?;
        drop(channels);
        // Closed, if the bus has not done so yet. What was in flight on them ends with their handlers.
        drop(gone);
        drop(primary);
        Ok(())
    }

    fn make_map(channels: &Channels) -> Result<Map> {
        let Some(primary) = &channels.primary else {
            return Ok(Map::empty());
        };
        let mut links = KVec::with_capacity(1 + channels.subs.len(), GFP_KERNEL)?;
        let all = Iterator::chain(
            core::iter::once((PRIMARY, primary)),
            channels.subs.iter().map(|sub| (sub.way, &sub.channel)),
        );
        let mut cpus = KVec::with_capacity(1 + channels.subs.len(), GFP_KERNEL)?;
        for (way, channel) in all {
            let target = channel.target_cpu();
            cpus.push(target, GFP_KERNEL)?;
            links.push(
                Link {
                    sender: channel.shared_sender(),
                    way,
                    way_bits: way_bits(way),
                    node: cpu::node(target),
                    low_water: channel.sender().ring_size() / 128
                        * ring_avail_percent_lowater.get_unsigned().min(100),
                },
                GFP_KERNEL,
            )?;
        }
        let count = cpu::ids();
        let mut by_cpu = KVec::with_capacity(count as usize, GFP_KERNEL)?;
        for cpu in 0..count {
            let own = cpus.iter().position(|target| *target == cpu);
            let index = own.unwrap_or_else(|| Self::spread(&links, cpu));
            if let Some(link) = links.get(index) {
                by_cpu.push(link.clone(), GFP_KERNEL)?;
            }
        }
        Ok(Map { links, by_cpu })
    }

    /// The channel for a CPU that none interrupts: CPUs of a node share its channels evenly.
    fn spread(links: &[Link], cpu: u32) -> usize {
        let node = cpu::node(cpu);
        let near = links.iter().filter(|link| link.node == node).count();
        let usable = |link: &Link| near == 0 || link.node == node;
        let count = if near == 0 { links.len() } else { near };
        let nth = cpu as usize % count.max(1);
        links
            .iter()
            .enumerate()
            .filter(|(_, link)| usable(link))
            .nth(nth)
            .map_or(0, |(index, _)| index)
    }

    /// Closes all channels, and waits until no callback runs. No subchannel is taken in after this. May sleep.
    pub(crate) fn close(&self) {
        let mut channels = self.channels.lock();
        channels.wanted = 0;
        let subs = core::mem::replace(&mut channels.subs, KVec::new());
        let primary = channels.primary.take();
        drop(channels);
        // Subchannels first, as the host expects.
        drop(subs);
        drop(primary);
        // Without memory senders that fail stay in the map.
        let _ = self.map.replace(Map::empty());
    }
}
