// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Backup: asks the guest to freeze and to thaw its file systems. Copying the disks meanwhile is the caller's affair.

use hvctl::{BackupOp, BackupReply, Command};
use vmbus_proto::ic::vss::{self, Body, Operation, BODY_SIZE, MAX_BODY, VERSIONS};
use vmbus_proto::ic::MessageType;
use vmbus_proto::packet::Packet;
use zerocopy::IntoBytes;

use super::exchange::{closed, json, later, Exchange};
use super::ic;
use crate::device::{Control, Device, DeviceInfo, DeviceIo, RefTime};

/// The device model.
pub(super) struct Vss {
    /// With the token of the command.
    exchange: Exchange<u64>,
}

impl Vss {
    /// Arguments: those of [`ic::Ic::new`].
    pub(super) fn new(args: &[(String, String)]) -> Result<Self, String> {
        Ok(Self {
            exchange: Exchange::new(
                "vss",
                ic::CLASS_VSS,
                ic::instance::VSS,
                MessageType::VSS,
                VERSIONS,
                args,
            )?,
        })
    }
}

/// The body of a request, as long as Hyper-V's. No disks are named in FREEZE: Linux freezes all it has.
fn body(op: BackupOp) -> Vec<u8> {
    let (operation, len) = match op {
        BackupOp::Check => (Operation::HOT_BACKUP, BODY_SIZE),
        BackupOp::DmInfo => (Operation::GET_DM_INFO, BODY_SIZE),
        BackupOp::Freeze => (Operation::FREEZE, MAX_BODY),
        BackupOp::Thaw => (Operation::THAW, BODY_SIZE),
        BackupOp::Complete => (Operation::BACKUP_COMPLETE, BODY_SIZE),
    };
    let mut body = Body::new(operation).as_bytes().to_vec();
    body.resize(len, 0);
    body
}

impl Device for Vss {
    fn info(&self) -> DeviceInfo {
        self.exchange.info()
    }

    fn opened(&mut self, io: &mut DeviceIo<'_>, _index: u16) -> Result<(), String> {
        self.exchange.ic.opened(io);
        Ok(())
    }

    fn closed(&mut self, io: &mut DeviceIo<'_>, _index: u16) {
        for token in self.exchange.closed() {
            io.complete(token, closed("vss"));
        }
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, _index: u16, packet: &Packet<'_>) {
        let Some((token, status, body)) = self.exchange.answered(io, packet) else {
            return;
        };
        let flags = match vss::answer_flags(body) {
            Ok(flags) => flags,
            // A request that was cut short has no flags to answer with.
            Err(_) if !status.is_ok() => 0,
            Err(e) => {
                io.violation(format!("answer: {e}"));
                0
            }
        };
        io.complete(
            token,
            json(BackupReply {
                status: status.get(),
                flags,
            }),
        );
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        self.exchange.ic.poll(io);
    }

    fn deadline(&self) -> Option<RefTime> {
        None
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        let Command::Backup { op, how } = cmd else {
            return Control::NotMine;
        };
        let token = self.exchange.token();
        later(self.exchange.ask(io, &body(*op), how, token), token, how)
    }

    fn agreed(&self) -> Option<String> {
        self.exchange.ic.agreed()
    }
}
