// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Key-value pair exchange: asks the guest for keys and network settings, as Hyper-V's management does.

use hvctl::{Command, IpSettings, KvpKind, KvpOp, KvpPair, KvpPool, KvpReply, Sending};
use vmbus_proto::ic::kvp::{
    wire::{self, Answer},
    AddressFamily, IpConfig, Operation, Pool, Request, Value, VERSIONS, VERSION_4_0,
};
use vmbus_proto::ic::text::Utf16;
use vmbus_proto::ic::{MessageType, Status};
use vmbus_proto::packet::Packet;

use super::exchange::{closed, json, later, Exchange};
use super::ic::{self};
use crate::device::{Control, Device, DeviceInfo, DeviceIo, RefTime};

/// The most keys of a pool that are asked for: a guest that never says "no more" is broken.
const MAX_KEYS: u32 = 4096;

/// A request on its way.
struct Job {
    token: u64,
    operation: Operation,
    /// An enumeration of all keys goes on after this one.
    all: Option<(KvpPool, u32)>,
    reply: KvpReply,
    how: Sending,
}

/// The device model.
pub(super) struct Kvp {
    exchange: Exchange<Job>,
}

fn string(text: Utf16<'_>) -> Result<String, String> {
    text.chars()
        .collect::<Result<_, _>>()
        .map_err(|e| format!("text in the answer: {e}"))
}

/// The body of a request.
fn body(op: &KvpOp) -> Result<(Operation, Vec<u8>), String> {
    let pool = |p: &KvpPool| Pool(p.number());
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|e| format!("kvp: value {text:?}: {e}"))
    };
    let request = match op {
        KvpOp::Get { pool: p, key } => Request::Get { pool: pool(p), key },
        KvpOp::Set {
            pool: p,
            key,
            value,
            kind,
        } => Request::Set {
            pool: pool(p),
            key,
            value: match kind {
                KvpKind::Text => Value::Text(value),
                KvpKind::U32 => Value::U32(
                    u32::try_from(number(value)?)
                        .map_err(|_| format!("kvp: value {value} is more than 32 bits"))?,
                ),
                KvpKind::U64 => Value::U64(number(value)?),
            },
        },
        KvpOp::Delete { pool: p, key } => Request::Delete { pool: pool(p), key },
        KvpOp::Enumerate { pool: p, index } => Request::Enumerate {
            pool: pool(p),
            index: index.unwrap_or(0),
        },
        KvpOp::GetIp { adapter, family } => Request::GetIp {
            adapter,
            family: AddressFamily(*family),
        },
        KvpOp::SetIp(ip) => Request::SetIp(IpConfig {
            adapter: &ip.adapter,
            family: AddressFamily(ip.family),
            dhcp: ip.dhcp,
            addresses: &ip.addresses,
            subnets: &ip.subnets,
            gateways: &ip.gateways,
            dns: &ip.dns,
        }),
    };
    let mut out = Box::new([0; wire::MAX_BODY]);
    let len = wire::write(&request, &mut out).map_err(|e| format!("kvp: {e}"))?;
    Ok((request.operation(), out[..len].to_vec()))
}

impl Job {
    /// Takes what a successful answer brought.
    fn take(&mut self, body: &[u8]) -> Result<(), String> {
        match wire::parse_answer(self.operation, body).map_err(|e| e.to_string())? {
            Answer::Done => {}
            Answer::Pair {
                key: Some(key),
                value,
            } => self.reply.pairs.push(KvpPair {
                key: string(key)?,
                value: string(value)?,
            }),
            Answer::Pair { key: None, value } => self.reply.value = Some(string(value)?),
            Answer::Ip {
                adapter,
                family,
                dhcp,
                addresses,
                subnets,
                gateways,
                dns,
            } => {
                self.reply.ip = Some(IpSettings {
                    adapter: string(adapter)?,
                    family: family.0,
                    dhcp,
                    addresses: string(addresses)?,
                    subnets: string(subnets)?,
                    gateways: string(gateways)?,
                    dns: string(dns)?,
                });
            }
        }
        Ok(())
    }
}

impl Kvp {
    /// Arguments: those of [`ic::Ic::new`].
    pub(super) fn new(args: &[(String, String)]) -> Result<Self, String> {
        Ok(Self {
            exchange: Exchange::new(
                "kvp",
                ic::CLASS_KVP,
                ic::instance::KVP,
                MessageType::KVP_EXCHANGE,
                VERSIONS,
                args,
            )?,
        })
    }

    fn finish(&mut self, io: &mut DeviceIo<'_>, mut job: Job, status: Status, body: &[u8]) {
        if status.is_ok() {
            if let Err(e) = job.take(body) {
                io.violation(format!("answer to {:?}: {e}", job.operation));
                io.complete(job.token, Err(format!("kvp: {e}")));
                return;
            }
            if let Some((pool, index)) = job.all {
                self.go_on(io, job, pool, index + 1);
                return;
            }
        }
        job.reply.status = match (job.all, status) {
            (Some(_), Status::NO_MORE_ITEMS) => 0,
            _ => status.get(),
        };
        io.complete(job.token, json(job.reply));
    }

    fn go_on(&mut self, io: &mut DeviceIo<'_>, mut job: Job, pool: KvpPool, index: u32) {
        let token = job.token;
        if index >= MAX_KEYS {
            io.violation(format!("{MAX_KEYS} keys in {pool:?}, and no end"));
            io.complete(token, Err("kvp: the enumeration does not end".into()));
            return;
        }
        job.all = Some((pool, index));
        let how = job.how.clone();
        let sent = body(&KvpOp::Enumerate {
            pool,
            index: Some(index),
        })
        .and_then(|(_, body)| self.exchange.ask(io, &body, &how, job));
        if let Err(e) = sent {
            io.complete(token, Err(e));
        }
    }
}

impl Device for Kvp {
    fn info(&self) -> DeviceInfo {
        self.exchange.info()
    }

    fn opened(&mut self, io: &mut DeviceIo<'_>, _index: u16) -> Result<(), String> {
        self.exchange.ic.opened(io);
        Ok(())
    }

    fn closed(&mut self, io: &mut DeviceIo<'_>, _index: u16) {
        for job in self.exchange.closed() {
            io.complete(job.token, closed("kvp"));
        }
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, _index: u16, packet: &Packet<'_>) {
        if let Some((job, status, body)) = self.exchange.answered(io, packet) {
            self.finish(io, job, status, body);
        }
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        self.exchange.ic.poll(io);
    }

    fn deadline(&self) -> Option<RefTime> {
        None
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        let Command::Kvp { op, how } = cmd else {
            return Control::NotMine;
        };
        let (operation, bytes) = match body(op) {
            Ok(x) => x,
            Err(text) => return Control::Failed(text),
        };
        if matches!(op, KvpOp::GetIp { .. } | KvpOp::SetIp(_))
            && !how.force
            && self
                .exchange
                .ic
                .negotiated()
                .is_some_and(|n| n.message < VERSION_4_0)
        {
            return Control::Failed("kvp: network settings came with version 4.0".into());
        }
        let token = self.exchange.token();
        let job = Job {
            token,
            operation,
            all: match op {
                KvpOp::Enumerate { pool, index: None } => Some((*pool, 0)),
                _ => None,
            },
            reply: KvpReply::default(),
            how: how.clone(),
        };
        later(self.exchange.ask(io, &bytes, how, job), token, how)
    }

    fn agreed(&self) -> Option<String> {
        self.exchange.ic.agreed()
    }
}
