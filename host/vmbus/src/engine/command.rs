// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The commands of the control socket.

use std::collections::BTreeMap;
use std::time::Instant;

use hvctl::{ChannelCounters, ChannelInfo, Command, Counters, Status, Violations};
use serde::Serialize;
use serde_json::Value;

use super::{Engine, Watcher};
use crate::device::Control;
use crate::inbox::Client;
use crate::server::OfferId;

fn json<T: Serialize>(value: T) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|e| e.to_string())
}

impl Engine {
    /// Answers a command, now or later.
    pub(super) fn command(&mut self, client: Client, id: u64, cmd: Command, now: Instant) {
        let result = match cmd {
            Command::Wait { until, timeout_ms } => {
                self.waits.until(client, id, until, timeout_ms, now);
                return;
            }
            Command::Watch => {
                client.reply(id, Ok(Value::Null));
                self.watchers.push(Watcher { client, lost: 0 });
                return;
            }
            other => match self.simple_command(&other) {
                Some(result) => result,
                None => match self.device_command(&other) {
                    Control::NotMine => Err(match &other {
                        Command::DiskAdd { device, .. }
                        | Command::DiskRemove { device, .. }
                        | Command::DiskResize { device, .. }
                        | Command::DiskCut { device, .. }
                        | Command::DiskNotify { device, .. }
                        | Command::DiskFault { device, .. } => {
                            format!("no storage controller {device:?}")
                        }
                        Command::NetLink { device, .. }
                        | Command::NetTable { device, .. }
                        | Command::NetInject { device, .. }
                        | Command::NetVf { device, .. }
                        | Command::NetFault { device, .. } => format!("no NIC {device:?}"),
                        other => format!("no device here knows {other:?}"),
                    }),
                    Control::Done(value) => Ok(value),
                    Control::Failed(text) => Err(text),
                    Control::Later { token, timeout_ms } => {
                        self.waits.token(client, id, token, timeout_ms, now);
                        return;
                    }
                },
            },
        };
        client.reply(id, result);
    }

    fn device_command(&mut self, cmd: &Command) -> Control {
        for i in 0..self.devices.len() {
            match self.with_device(i, |device, io| device.control(io, cmd)) {
                Control::NotMine => {}
                Control::Later { token, timeout_ms } => {
                    return Control::Later {
                        token: crate::device::global_token(i, token),
                        timeout_ms,
                    }
                }
                other => return other,
            }
        }
        Control::NotMine
    }

    /// Commands of the host itself that are answered at once.
    fn simple_command(&mut self, cmd: &Command) -> Option<Result<Value, String>> {
        Some(match cmd {
            Command::Status => json(self.status()),
            Command::Channels => json(self.channel_infos()),
            Command::Counters => json(self.counters()),
            Command::ResetCounters => {
                self.reset_counters();
                Ok(Value::Null)
            }
            Command::Violations => json(self.violations()),
            Command::Disks => {
                let disks = self.devices.iter().flat_map(|slot| slot.device.disks());
                json(disks.collect::<Vec<_>>())
            }
            Command::Nets => {
                let nets = self.devices.iter().filter_map(|slot| slot.device.net());
                json(nets.collect::<Vec<_>>())
            }
            Command::Offer { device } => self.named_channels(device).map(|offers| {
                if let Some(first) = offers.first() {
                    self.server.offer(*first);
                }
                Value::Null
            }),
            Command::Rescind { device } => self.named_channels(device).map(|offers| {
                // Sub-channels first, as they depend on the primary one.
                offers
                    .into_iter()
                    .rev()
                    .for_each(|id| self.server.rescind(id));
                Value::Null
            }),
            Command::Pause => {
                self.machine.pause();
                Ok(Value::Null)
            }
            Command::Resume => {
                self.machine.resume();
                Ok(Value::Null)
            }
            Command::Reset => {
                self.machine.reset();
                Ok(Value::Null)
            }
            Command::PowerOff => {
                self.machine.power_off();
                Ok(Value::Null)
            }
            Command::Fault { fault } => self.inject(fault).map(|()| Value::Null),
            Command::ProfileMark => self.partition.profile_mark().map(|()| Value::Null),
            Command::ProfileRead => self.partition.profile_read(),
            Command::LogLevel { level } => match &self.set_log_level {
                Some(set) => set(level).map(|()| Value::Null),
                None => Err("this host has no log".into()),
            },
            _ => return None,
        })
    }

    /// All channels of a device, by its name or instance GUID, or the sub-channel that `NAME/INDEX` names.
    fn named_channels(&self, name: &str) -> Result<Vec<OfferId>, String> {
        let Some((name, index)) = name.split_once('/') else {
            return Ok(self.devices[self.find_device(name)?].offers.clone());
        };
        let slot = &self.devices[self.find_device(name)?];
        index
            .parse()
            .ok()
            .filter(|index| *index > 0)
            .and_then(|index: usize| slot.offers.get(index))
            .map(|id| vec![*id])
            .ok_or_else(|| {
                let last = slot.offers.len() - 1;
                format!("{name}: no sub-channel {index:?}; they count from 1 to {last}")
            })
    }

    fn status(&self) -> Status {
        Status {
            state: self.server.connection_state(),
            version: self.server.version().map(|v| v.to_string()),
            max_version: self.max_version.to_string(),
            message_vp: self.server.message_vp().map(|vp| vp.0),
            connects: self.server.connects,
            unloads: self.server.unloads,
            gpadls: self.server.gpadl_count() as u64,
            violations: self.server.violations().count(),
            vp_count: self.partition.vp_count(),
            reference_time: self.partition.reference_time(),
            partition: self.partition.status(),
        }
    }

    fn channel_infos(&self) -> Vec<ChannelInfo> {
        let mut list = Vec::new();
        for slot in &self.devices {
            for (index, id) in slot.offers.iter().enumerate() {
                let (state, relid) = self.server.channel_state(*id);
                if index > 0 && relid.is_none() {
                    continue;
                }
                let channel = &self.channels[id.0];
                let (out, input) = channel.ring_sizes().unzip();
                list.push(ChannelInfo {
                    device: slot.info.name.clone(),
                    class: slot.info.class.to_string(),
                    instance: slot.info.instance.to_string(),
                    subchannel: index as u16,
                    relid: relid.map(|r| r.0),
                    connection_id: relid.map(crate::server::connection_id),
                    state,
                    target_vp: channel.target_vp().map(|vp| vp.0),
                    monitor: channel.monitor_id().is_some(),
                    out_ring_bytes: out,
                    in_ring_bytes: input,
                    agreed: if index == 0 {
                        slot.device.agreed()
                    } else {
                        None
                    },
                    counters: channel.counters(),
                });
            }
        }
        list
    }

    fn counters(&self) -> Counters {
        let sum = |of: fn(&ChannelCounters) -> u64| {
            self.channels.iter().map(|c| of(&c.counters())).sum::<u64>()
        };
        let host = [
            ("messages_in", self.counters.messages_in),
            ("messages_out", self.counters.messages_out),
            ("messages_dropped", self.counters.messages_dropped),
            ("message_retries", self.counters.message_retries),
            ("signals", self.counters.signals),
            (
                "unknown_signals",
                self.inbox.unknown_signals() - self.counters.unknown_signals_base,
            ),
            ("unneeded_signals", sum(|c| c.unneeded_signals)),
            ("unneeded_interrupts", sum(|c| c.unneeded_interrupts)),
            ("violations", self.server.violations().count()),
        ];
        let base: BTreeMap<&str, u64> = self
            .partition_base
            .iter()
            .map(|(k, v)| (k.as_str(), *v))
            .collect();
        let partition = self
            .partition
            .counters()
            .into_iter()
            .map(|(k, v)| {
                let from = base.get(k.as_str()).copied().unwrap_or(0);
                (k, v.saturating_sub(from))
            })
            .collect();
        let mut channels = BTreeMap::new();
        for slot in &self.devices {
            for (index, id) in slot.offers.iter().enumerate() {
                let name = match index {
                    0 => slot.info.name.clone(),
                    n => format!("{}.{n}", slot.info.name),
                };
                let counters = self.channels[id.0].counters();
                if index == 0 || counters.opens > 0 {
                    channels.insert(name, counters);
                }
            }
        }
        Counters {
            host: host.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            partition,
            channels,
        }
    }

    fn reset_counters(&mut self) {
        self.partition_base = self.partition.counters();
        self.counters = super::HostCounters {
            unknown_signals_base: self.inbox.unknown_signals(),
            ..super::HostCounters::default()
        };
        self.channels.iter_mut().for_each(|c| c.reset_counters());
        self.devices
            .iter_mut()
            .for_each(|d| d.device.reset_counters());
        self.server.clear_violations();
        self.crashed = false;
    }

    fn violations(&self) -> Violations {
        let log = self.server.violations();
        Violations {
            count: log.count(),
            texts: log.texts().map(str::to_owned).collect(),
            unneeded_signals: self
                .channels
                .iter()
                .map(|c| c.counters().unneeded_signals)
                .sum(),
        }
    }
}
