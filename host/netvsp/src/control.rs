// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Control commands, and the NIC for people.

use std::fmt::Write;

use hv_vmbus_host::device::{Control, DeviceIo};
use hvctl::{Command, NetBuffers, NetCounters, NetInfo, NetLink, NetQueue, NetRss, NetState};
use serde_json::Value;
use vmbus_proto::net::nvsp::NdisCapabilities;
use vmbus_proto::net::packet::{PacketInfo, ETHERNET_HEADER_SIZE};
use vmbus_proto::net::rndis::RndisStatus;
use vmbus_proto::Guid;

use crate::args::{mac_text, version_name};
use crate::faults::Armed;
use crate::nic::Nic;

fn bytes(hex: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    if digits.len() % 2 != 0 {
        return Err("odd number of hexadecimal digits".into());
    }
    digits
        .chunks_exact(2)
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .and_then(|text| u8::from_str_radix(text, 16).ok())
                .ok_or_else(|| "not hexadecimal digits".to_owned())
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Never fails: a String grows.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

impl Nic {
    fn is_called(&self, name: &str) -> bool {
        name == self.info.name || Guid::parse(name).is_ok_and(|guid| guid == self.info.instance)
    }

    pub(crate) fn on_control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        match cmd {
            Command::NetLink { device, .. }
            | Command::NetTable { device, .. }
            | Command::NetInject { device, .. }
            | Command::NetVf { device, .. }
            | Command::NetFault { device, .. }
                if self.is_called(device) => {}
            _ => return Control::NotMine,
        }
        let result = self.carry_out(io, cmd);
        self.pump(io);
        match result {
            Ok(()) => Control::Done(Value::Null),
            Err(text) => Control::Failed(text),
        }
    }

    fn carry_out(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Result<(), String> {
        let name = self.info.name.clone();
        let no_driver = || format!("{name}: no driver is ready for that");
        match cmd {
            Command::NetLink { link, speed, .. } => {
                match link {
                    Some(NetLink::Up) => self.link.up = true,
                    Some(NetLink::Down) => self.link.up = false,
                    Some(NetLink::Change) => {
                        if !self.indicate(RndisStatus::NETWORK_CHANGE, &[]) {
                            return Err(no_driver());
                        }
                    }
                    None => {}
                }
                self.check_link();
                if let Some(speed) = *speed {
                    self.link.speed = speed;
                    // In units of 100 bit/s; told to guests that said they want to know (`netvsc.c`,
                    // `negotiate_nvsp_ver`).
                    let units = speed.saturating_mul(10_000);
                    let capabilities = self.protocol.capabilities();
                    if capabilities.contains(NdisCapabilities::TEAMING) {
                        self.indicate(RndisStatus::LINK_SPEED_CHANGE, &units.to_le_bytes());
                    }
                }
                Ok(())
            }
            Command::NetTable { table, .. } => {
                if table.is_empty() {
                    return Err("a table without entries".into());
                }
                if self.post_send_table(io, table) {
                    Ok(())
                } else {
                    Err(no_driver())
                }
            }
            Command::NetVf { serial, .. } => {
                if self.post_vf(io, *serial) {
                    Ok(())
                } else {
                    Err(no_driver())
                }
            }
            Command::NetInject {
                hex, queue, ppi, ..
            } => {
                let frame = bytes(hex)?;
                let ppi = ppi.as_deref().map(bytes).transpose()?;
                let room = self.recv.as_ref().map_or(0, |r| r.section as usize);
                if frame.len() < ETHERNET_HEADER_SIZE as usize {
                    return Err("a frame without an Ethernet header".into());
                }
                if ppi.as_ref().map_or(0, Vec::len) + frame.len() + 128 > room {
                    return Err(format!("{name}: does not fit in a receive section"));
                }
                let index = queue.unwrap_or(0);
                if self.channel(index).is_none() {
                    return Err(format!("{name}: channel {index} is not open"));
                }
                self.queue_frame(io, index, frame, PacketInfo::NONE, ppi);
                Ok(())
            }
            Command::NetFault {
                direction,
                queue,
                count,
                skip,
                fault,
                ..
            } => {
                let was_ready = !self.is_stalled();
                let now = io.now();
                let armed = self
                    .faults
                    .arm(*direction, *queue, *count, *skip, fault, now)?;
                if armed == Armed::Release {
                    if matches!(fault, hvctl::NetFault::Clear) {
                        self.release_delayed(io);
                    }
                    self.release_all(io);
                    if !was_ready {
                        self.resume_all(io);
                    }
                }
                Ok(())
            }
            _ => Err("not a command for NICs".into()),
        }
    }

    /// The NIC for people.
    pub(crate) fn describe(&self, state: NetState) -> NetInfo {
        let backend = self.backend.info();
        let link = self.link_now();
        let mut buffers = NetBuffers::default();
        if let Some(recv) = &self.recv {
            buffers.recv_bytes = recv.pages.len() as u64;
            buffers.recv_sections = recv.count;
            buffers.recv_section_size = recv.section;
            buffers.recv_free = recv.free();
        }
        if let Some(send) = &self.send {
            buffers.send_bytes = send.pages.len() as u64;
            buffers.send_sections = send.count;
            buffers.send_section_size = send.section;
        }
        let rss = self.rndis.rss.as_ref().map(|rss| NetRss {
            hash_info: rss.hash.bits(),
            key: hex(&rss.key),
            table: rss.table.clone(),
        });
        let queues = self.queues.iter().zip(&self.channels);
        NetInfo {
            device: self.info.name.clone(),
            mac: mac_text(&self.rndis.new_mac.unwrap_or(self.config.mac)),
            state,
            nvsp: self.protocol.version().map(|v| version_name(v).to_owned()),
            ndis: self
                .protocol
                .ndis_version()
                .map(|v| format!("{}.{}", v.major, v.minor)),
            mtu: self.protocol.mtu(),
            max_mtu: self.config.max_mtu,
            link: link.up,
            speed: link.speed,
            filter: self.rndis.filter.bits(),
            multicast: self.rndis.multicast.iter().map(mac_text).collect(),
            capabilities: self.protocol.capabilities().bits(),
            offloads_offered: self.config.offloads.names(),
            offloads: self.rndis.enabled.names(),
            rss,
            send_table: self.send_table.clone(),
            buffers,
            backend: backend.kind,
            backend_counters: backend
                .counters
                .into_iter()
                .map(|(name, n)| (name.to_owned(), n))
                .collect(),
            counters: NetCounters {
                injected: self.faults.count,
                ..self.counters
            },
            queues: queues
                .filter(|(queue, _)| {
                    let blank = NetQueue {
                        index: queue.index,
                        ..NetQueue::default()
                    };
                    **queue != blank
                })
                .map(|(queue, chan)| NetQueue {
                    rx_held: self.recv.as_ref().map_or(0, |r| r.held_by(queue.index)),
                    rx_waiting: chan.as_ref().map_or(0, |c| c.waiting.len() as u32),
                    ..*queue
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_read_or_refused() {
        assert_eq!(bytes("00 ff1A"), Ok(vec![0, 0xff, 0x1a]));
        assert_eq!(hex(&[0, 0xff]), "00ff");
        for bad in ["0", "0g", "é0"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
