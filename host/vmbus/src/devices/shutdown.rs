// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Guest shutdown: asks the guest to power off, reboot or hibernate.

use hvctl::{Command, Event, ShutdownKind, ShutdownReply};
use vmbus_proto::ic::shutdown::{ShutdownFlags, ShutdownMessage, VERSIONS, VERSION_3_2};
use vmbus_proto::ic::MessageType;
use vmbus_proto::packet::Packet;
use zerocopy::IntoBytes;

use super::ic::{self, Ic, Incoming};
use crate::device::{Control, Device, DeviceInfo, DeviceIo, RefTime};

/// Seconds that the guest is given; Hyper-V's integration service sends 120.
const TIMEOUT_SECONDS: u32 = 120;

/// The device model.
pub(super) struct Shutdown {
    ic: Ic,
    /// Requests without an answer.
    outstanding: Vec<u64>,
}

impl Shutdown {
    pub(super) fn new(args: &[(String, String)]) -> Result<Self, String> {
        Ok(Self {
            ic: Ic::new(
                "shutdown",
                ic::CLASS_SHUTDOWN,
                ic::instance::SHUTDOWN,
                MessageType::SHUTDOWN,
                VERSIONS,
                args,
            )?,
            outstanding: Vec::new(),
        })
    }
}

impl Device for Shutdown {
    fn info(&self) -> DeviceInfo {
        self.ic.info()
    }

    fn opened(&mut self, io: &mut DeviceIo<'_>, _index: u16) -> Result<(), String> {
        self.ic.opened(io);
        Ok(())
    }

    fn closed(&mut self, io: &mut DeviceIo<'_>, _index: u16) {
        self.ic.closed();
        for id in self.outstanding.drain(..) {
            io.complete(
                id,
                Err("shutdown: the guest closed the channel without an answer".into()),
            );
        }
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, _index: u16, packet: &Packet<'_>) {
        let Incoming::Answer(answer) = self.ic.packet(io, packet) else {
            return;
        };
        let Some(at) = self.outstanding.iter().position(|id| *id == answer.id) else {
            io.violation(format!("request {} was answered twice", answer.id));
            return;
        };
        self.outstanding.remove(at);
        let status = answer.status.get();
        io.event(Event::ShutdownAnswered { status });
        let reply = serde_json::to_value(ShutdownReply {
            status: Some(status),
        })
        .map_err(|e| e.to_string());
        io.complete(answer.id, reply);
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        self.ic.poll(io);
    }

    fn deadline(&self) -> Option<RefTime> {
        None
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        let Command::Shutdown {
            kind,
            force,
            reason,
            wait_ms,
        } = cmd
        else {
            return Control::NotMine;
        };
        let Some(agreed) = self.ic.negotiated() else {
            return Control::Failed("shutdown: the guest's service is not negotiated".into());
        };
        if *kind == ShutdownKind::Hibernate && agreed.message < VERSION_3_2 {
            return Control::Failed(format!(
                "shutdown: version {} has no hibernation",
                agreed.message
            ));
        }
        let mut flags = match kind {
            ShutdownKind::PowerOff => ShutdownFlags::POWER_OFF,
            ShutdownKind::Reboot => ShutdownFlags::RESTART,
            ShutdownKind::Hibernate => ShutdownFlags::HIBERNATE,
        };
        if *force {
            flags = flags.with(ShutdownFlags::FORCE);
        }
        let message = ShutdownMessage::request(flags, TIMEOUT_SECONDS, reason.as_bytes());
        match self.ic.request(io, message.as_bytes()) {
            Ok(id) => {
                self.outstanding.push(id);
                match wait_ms {
                    Some(timeout_ms) => Control::Later {
                        token: id,
                        timeout_ms: *timeout_ms,
                    },
                    None => match serde_json::to_value(ShutdownReply::default()) {
                        Ok(value) => Control::Done(value),
                        Err(e) => Control::Failed(e.to_string()),
                    },
                }
            }
            Err(e) => Control::Failed(format!("shutdown: {e}")),
        }
    }

    fn agreed(&self) -> Option<String> {
        self.ic.agreed()
    }
}
