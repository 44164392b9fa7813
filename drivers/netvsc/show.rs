// SPDX-License-Identifier: GPL-2.0

//! What ethtool shows and changes.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use hv_vmbus::services::cpu;
use kernel::prelude::*;
use vmbus_proto::net::nvsp::MAX_SEND_BUFFER;

use crate::{
    configure,
    net::{
        ethtool::{Channels, Ethtool, Flow, Names, Rings, HASH_L3, HASH_L4},
        Rtnl,
    },
    nic::Interface,
    session::Session,
    stats::EthStats,
};

/// Of a virtual function, which this driver does not use.
const VF_STATS: [&str; 5] = [
    "vf_rx_packets",
    "vf_rx_bytes",
    "vf_tx_packets",
    "vf_tx_bytes",
    "vf_tx_dropped",
];

/// Of each queue, as they come.
const QUEUE_STATS: [(&str, &str); 8] = [
    ("tx", "packets"),
    ("tx", "bytes"),
    ("tx", "xdp_xmit"),
    ("rx", "packets"),
    ("rx", "bytes"),
    ("rx", "xdp_drop"),
    ("rx", "xdp_redirect"),
    ("rx", "xdp_tx"),
];

/// Of each CPU.
const CPU_STATS: [&str; 8] = [
    "rx_packets",
    "rx_bytes",
    "tx_packets",
    "tx_bytes",
    "vf_rx_packets",
    "vf_rx_bytes",
    "vf_tx_packets",
    "vf_tx_bytes",
];

/// The version of what [`Ethtool::registers`] shows.
const REGISTERS_VERSION: u32 = 1;

/// Places for packets in the buffers.
pub(crate) fn rings(session: &Session) -> Rings {
    let (receive, send) = (session.agreed.receive, session.agreed.send);
    let max_receive = session.agreed.version.max_receive_buffer();
    Rings {
        rx_max: max_receive / receive.size.max(1),
        tx_max: MAX_SEND_BUFFER / send.size.max(1),
        rx: receive.count,
        tx: send.count,
    }
}

/// The bit of a flow in the set of those for which ports count.
fn l4_bit(flow: Flow) -> Option<u32> {
    match flow {
        Flow::TCP4 => Some(1 << 0),
        Flow::UDP4 => Some(1 << 1),
        Flow::TCP6 => Some(1 << 2),
        Flow::UDP6 => Some(1 << 3),
        _ => None,
    }
}

impl Interface {
    fn queue_count(&self) -> u32 {
        self.nic()
            .current()
            .map_or(0, |session| session.link.queues.load(Ordering::Relaxed))
    }
}

impl Ethtool for Interface {
    fn registers(&self, registers: &mut [u32]) -> u32 {
        for (to, from) in registers.iter_mut().zip(self.nic().shared.send_table()) {
            *to = from;
        }
        REGISTERS_VERSION
    }

    fn message_level(&self) -> u32 {
        self.nic().message_level()
    }

    fn set_message_level(&self, level: u32) {
        self.nic().set_message_level(level);
    }

    fn stat_count(&self) -> u32 {
        let queues = self.queue_count() as usize * QUEUE_STATS.len();
        let cpus = cpu::present() as usize * CPU_STATS.len();
        (EthStats::NAMES.len() + VF_STATS.len() + queues + cpus) as u32
    }

    fn stat_names(&self, names: &mut Names<'_>) {
        for name in Iterator::chain(EthStats::NAMES.iter(), &VF_STATS) {
            names.add(fmt!("{}", *name));
        }
        for queue in 0..self.queue_count() {
            for (direction, what) in QUEUE_STATS {
                names.add(fmt!("{}_queue_{}_{}", direction, queue, what));
            }
        }
        for cpu in 0..cpu::present() {
            for what in CPU_STATS {
                names.add(fmt!("cpu{}_{}", cpu, what));
            }
        }
    }

    fn stat_values(&self, values: &mut [u64]) {
        let nic = self.nic();
        let Some(session) = nic.current() else {
            return;
        };
        let present = cpu::present();
        let queues = session.link.queues.load(Ordering::Relaxed);
        let mut out = values.iter_mut();
        let mut put = |value: u64| {
            if let Some(place) = out.next() {
                *place = value;
            }
        };
        nic.shared.eth.values().for_each(&mut put);
        VF_STATS.iter().for_each(|_| put(0));
        for index in 0..queues {
            let s = nic.shared.queue_stats(index as u16);
            for counter in [
                &s.tx_packets,
                &s.tx_bytes,
                &s.tx_xdp_xmit,
                &s.rx_packets,
                &s.rx_bytes,
                &s.rx_xdp_drop,
                &s.rx_xdp_redirect,
                &s.rx_xdp_tx,
            ] {
                put(counter.get());
            }
        }
        for cpu in 0..present {
            let mut sums = [0u64; CPU_STATS.len()];
            for queue in session.queues.iter().take(queues as usize) {
                if queue.cpu() == cpu {
                    let s = queue.stats();
                    let own = [&s.rx_packets, &s.rx_bytes, &s.tx_packets, &s.tx_bytes];
                    for (sum, counter) in sums.iter_mut().zip(own) {
                        *sum += counter.get();
                    }
                }
            }
            sums.into_iter().for_each(&mut put);
        }
    }

    fn channels(&self) -> Channels {
        self.nic()
            .current()
            .map_or_else(Channels::default, |session| Channels {
                max: session.max_queues,
                count: session.link.queues.load(Ordering::Relaxed),
            })
    }

    fn set_channels(&self, rtnl: &Rtnl, count: u32) -> Result {
        configure::set_queues(self.nic(), rtnl, count)
    }

    fn rss_table_size(&self) -> u32 {
        self.nic().state.lock().config.table.len() as u32
    }

    fn rss(&self, table: Option<&mut [u32]>, key: Option<&mut [u8]>) -> Result {
        let nic = self.nic();
        if nic.current().is_none() {
            return Err(ENODEV);
        }
        let state = nic.state.lock();
        if let Some(table) = table {
            for (to, from) in table.iter_mut().zip(&state.config.table) {
                *to = *from;
            }
        }
        if let Some(key) = key {
            for (to, from) in key.iter_mut().zip(&state.config.key) {
                *to = *from;
            }
        }
        Ok(())
    }

    fn set_rss(&self, _rtnl: &Rtnl, table: Option<&[u32]>, key: Option<&[u8]>) -> Result {
        let nic = self.nic();
        let session = nic.current().ok_or(ENODEV)?;
        let queues = session.link.queues.load(Ordering::Relaxed);
        let mut state = nic.state.lock();
        let config = &mut state.config;
        if config.table.is_empty() {
            return Err(Error::from_errno(
                -(kernel::bindings::EOPNOTSUPP as kernel::ffi::c_int),
            ));
        }
        if table.is_some_and(|table| table.iter().any(|queue| *queue >= queues)) {
            return Err(EINVAL);
        }
        if table.is_none() && key.is_none() {
            return Ok(());
        }
        let mut new_key = config.key;
        for (to, from) in new_key.iter_mut().zip(key.unwrap_or(&[])) {
            *to = *from;
        }
        session.set_rss(table.unwrap_or(&config.table), &new_key)?;
        config.key = new_key;
        for (to, from) in config.table.iter_mut().zip(table.unwrap_or(&[])) {
            *to = *from;
        }
        Ok(())
    }

    fn hash_fields(&self, flow: Flow) -> u32 {
        let ports = self.nic().l4_hash.load(Ordering::Relaxed);
        match (l4_bit(flow), flow) {
            (Some(bit), _) if ports & bit != 0 => HASH_L3 | HASH_L4,
            (Some(_), _) | (None, Flow::IPV4 | Flow::IPV6) => HASH_L3,
            _ => 0,
        }
    }

    fn set_hash_fields(&self, flow: Flow, fields: u32) -> Result {
        let unsupported = Error::from_errno(-(kernel::bindings::EOPNOTSUPP as kernel::ffi::c_int));
        let bit = l4_bit(flow).ok_or(unsupported)?;
        let ports = &self.nic().l4_hash;
        match fields {
            HASH_L3 => ports.fetch_and(!bit, Ordering::Relaxed),
            all if all == HASH_L3 | HASH_L4 => ports.fetch_or(bit, Ordering::Relaxed),
            _ => return Err(unsupported),
        };
        Ok(())
    }

    fn link(&self) -> (u32, u8) {
        let shared = &self.nic().shared;
        (
            shared.speed.load(Ordering::Relaxed),
            shared.duplex.load(Ordering::Relaxed),
        )
    }

    fn set_link(&self, speed: u32, duplex: u8) {
        let shared = &self.nic().shared;
        shared.speed.store(speed, Ordering::Relaxed);
        shared.duplex.store(duplex, Ordering::Relaxed);
    }

    fn rings(&self) -> Rings {
        self.nic()
            .current()
            .map_or_else(Rings::default, |session| rings(&session))
    }

    fn set_rings(&self, rtnl: &Rtnl, rx: u32, tx: u32) -> Result {
        configure::set_rings(self.nic(), rtnl, rx, tx)
    }
}
