// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Monitor pages: the guest sets a bit instead of making a hypercall, and the host looks now and then.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Engine;
use crate::server::OfferId;

/// How often the host looks, while an open channel is signalled this way. Linux reckons with about 100 µs
/// for its latency; a wake-up of the worker costs the guest CPU time here, so ten times as long.
const SCAN: Duration = Duration::from_millis(1);

/// Offset of trigger group 0 in the monitor page; the groups of 8 bytes begin with the word of pending bits
/// (`hyperv.h`, `struct hv_monitor_page`).
const TRIGGER_GROUPS: u64 = 8;
const GROUPS: u64 = 4;

impl Engine {
    /// Takes the guest's trigger bits, when it is time.
    pub(super) fn scan_monitor(&mut self, now: Instant) {
        let monitored: Vec<(u8, usize)> = self
            .channels
            .iter()
            .enumerate()
            .filter_map(|(i, c)| Some((c.monitor_id()?, i)))
            .collect();
        let Some(pages) = self
            .server
            .monitor_pages()
            .filter(|_| !monitored.is_empty())
        else {
            self.monitor_next = None;
            return;
        };
        if self.monitor_next.is_some_and(|next| next > now) {
            return;
        }
        self.monitor_next = Some(now + SCAN);
        for group in 0..GROUPS {
            let gpa = pages.child_to_parent + TRIGGER_GROUPS + group * 8;
            let ram = self.partition.ram();
            // The page was checked to be RAM when the guest named it. The load spares the guest's
            // cache line when nothing is set.
            if ram.load_u32(gpa, Ordering::Relaxed).unwrap_or(0) == 0 {
                continue;
            }
            // Acquire: what the guest wrote to its ring before it set the bit is seen.
            let bits = ram.fetch_and_u32(gpa, 0, Ordering::AcqRel).unwrap_or(0);
            for bit in 0..32u8 {
                if (bits >> bit) & 1 == 0 {
                    continue;
                }
                let id = group as u8 * 32 + bit;
                match monitored.iter().find(|(m, _)| *m == id) {
                    Some(&(_, channel)) => {
                        self.channels[channel].count_monitor_signal();
                        self.counters.signals += 1;
                        self.service(OfferId(channel), 1);
                    }
                    // A channel that was closed after the guest set its bit.
                    None => tracing::debug!("monitor bit {id} without an open channel"),
                }
            }
        }
    }
}
