// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Requests that are answered later: `wait`, and commands that a device completes.

use std::time::{Duration, Instant};

use hvctl::{NetState, Until};

use super::Engine;
use crate::inbox::Client;
use crate::server::OfferId;

/// A day: what a longer time limit is cut to.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

enum For {
    /// A condition.
    Until(Until),
    /// A device's completion.
    Token(u64),
}

struct Waiting {
    client: Client,
    id: u64,
    what: For,
    deadline: Instant,
    limit: Duration,
}

/// All requests that wait.
#[derive(Default)]
pub(super) struct Waits {
    list: Vec<Waiting>,
}

fn limit(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms).min(MAX_WAIT)
}

impl Waits {
    pub(super) fn until(
        &mut self,
        client: Client,
        id: u64,
        until: Until,
        timeout_ms: u64,
        now: Instant,
    ) {
        let limit = limit(timeout_ms);
        self.list.push(Waiting {
            client,
            id,
            what: For::Until(until),
            deadline: now + limit,
            limit,
        });
    }

    pub(super) fn token(
        &mut self,
        client: Client,
        id: u64,
        token: u64,
        timeout_ms: u64,
        now: Instant,
    ) {
        let limit = limit(timeout_ms);
        self.list.push(Waiting {
            client,
            id,
            what: For::Token(token),
            deadline: now + limit,
            limit,
        });
    }

    pub(super) fn complete(&mut self, token: u64, result: Result<serde_json::Value, String>) {
        if let Some(at) = self
            .list
            .iter()
            .position(|w| matches!(w.what, For::Token(t) if t == token))
        {
            let waiting = self.list.swap_remove(at);
            waiting.client.reply(waiting.id, result);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.list.iter().map(|w| w.deadline).min()
    }
}

impl Engine {
    /// Answers the waits whose condition holds or whose time is over.
    pub(super) fn check_waits(&mut self, now: Instant) {
        let mut list = std::mem::take(&mut self.waits.list);
        list.retain(|w| {
            let done = match &w.what {
                For::Until(until) => match self.holds(until) {
                    Ok(done) => done,
                    Err(text) => {
                        w.client.reply(w.id, Err(text));
                        return false;
                    }
                },
                For::Token(_) => false,
            };
            if done {
                w.client.reply(w.id, Ok(serde_json::Value::Null));
                return false;
            }
            if w.deadline <= now {
                let what = match &w.what {
                    For::Until(until) => format!("{until:?}"),
                    For::Token(_) => "the guest's answer".into(),
                };
                w.client.reply(
                    w.id,
                    Err(format!(
                        "timed out after {} ms waiting for {what}",
                        w.limit.as_millis()
                    )),
                );
                return false;
            }
            true
        });
        list.append(&mut self.waits.list);
        self.waits.list = list;
    }

    fn holds(&self, until: &Until) -> Result<bool, String> {
        Ok(match until {
            Until::Connected => self.server.offers_delivered(),
            Until::Disconnected => self.server.version().is_none(),
            Until::ChannelOpen { device } => self.server.is_open(self.primary(device)?),
            Until::ChannelClosed { device } => !self.server.is_open(self.primary(device)?),
            Until::Released { device } => !self.server.is_revoked(self.primary(device)?),
            Until::Negotiated { device } => self.devices[self.find_device(device)?]
                .device
                .agreed()
                .is_some(),
            Until::NetRunning { device } => self.devices[self.find_device(device)?]
                .device
                .net()
                .is_some_and(|net| net.state == NetState::Running),
            Until::Beats { count } => {
                self.devices
                    .iter()
                    .filter_map(|d| d.device.beats())
                    .sum::<u64>()
                    >= *count
            }
            Until::GuestCrash => self.crashed,
            Until::Violations { count } => self.server.violations().count() >= *count,
        })
    }

    /// Index of the device with this name or instance GUID.
    pub(super) fn find_device(&self, name: &str) -> Result<usize, String> {
        let guid = vmbus_proto::Guid::parse(name).ok();
        self.devices
            .iter()
            .position(|d| d.info.name == name || Some(d.info.instance) == guid)
            .ok_or_else(|| {
                let names: Vec<&str> = self.devices.iter().map(|d| d.info.name.as_str()).collect();
                format!("no device {name:?}; there are {}", names.join(", "))
            })
    }

    /// The primary channel of a device.
    pub(super) fn primary(&self, name: &str) -> Result<OfferId, String> {
        Ok(self.devices[self.find_device(name)?].offers[0])
    }
}
