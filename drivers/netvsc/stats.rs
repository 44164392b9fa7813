// SPDX-License-Identifier: GPL-2.0

//! Counters. They outlive the channel: changing a setting resets none.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer at a time, or of which a count may get lost.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Not atomic as a whole, which would cost.
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        let old = self.0.load(Ordering::Relaxed);
        self.0.store(old.wrapping_add(count), Ordering::Relaxed);
    }

    /// For counters with several writers.
    #[inline]
    pub(crate) fn bump(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of a queue.
#[derive(Default)]
pub(crate) struct QueueStats {
    pub(crate) tx_packets: Counter,
    pub(crate) tx_bytes: Counter,
    pub(crate) tx_xdp_xmit: Counter,
    pub(crate) rx_packets: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) rx_multicast: Counter,
    pub(crate) rx_xdp_drop: Counter,
    pub(crate) rx_xdp_redirect: Counter,
    pub(crate) rx_xdp_tx: Counter,
}

macro_rules! eth_stats {
    ($($name:ident,)*) => {
        /// Counters of rare events, as `ethtool -S` names them.
        #[derive(Default)]
        pub(crate) struct EthStats {
            $(pub(crate) $name: Counter,)*
            /// Messages from the host that break the rules.
            pub(crate) rx_malformed: Counter,
            pub(crate) tx_dropped: Counter,
            pub(crate) rx_dropped: Counter,
        }

        impl EthStats {
            /// The names in the order of the values.
            pub(crate) const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// The values.
            pub(crate) fn values(&self) -> impl Iterator<Item = u64> + '_ {
                [$(&self.$name,)*].into_iter().map(Counter::get)
            }
        }
    };
}

eth_stats! {
    tx_scattered,
    tx_no_memory,
    tx_no_space,
    tx_too_big,
    tx_busy,
    tx_send_full,
    rx_comp_busy,
    rx_no_memory,
    stop_queue,
    wake_queue,
    vlan_error,
}
