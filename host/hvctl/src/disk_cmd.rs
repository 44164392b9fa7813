// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hvctl disk`: disks of the storage controllers.

use clap::{Args, Subcommand, ValueEnum};
use hvctl::{Command, DiskFault, DiskNotice, DiskSpec, MalformedCompletion};

#[derive(Subcommand)]
pub(crate) enum DiskCmd {
    /// All disks and their counters.
    List,
    /// Add a disk.
    Add {
        #[command(flatten)]
        at: Place,
        /// Raw image or block device.
        #[arg(long, required_unless_present = "ram", conflicts_with = "ram")]
        file: Option<String>,
        /// RAM disk of this size.
        #[arg(long, value_parser = size)]
        ram: Option<u64>,
        /// Make or extend the image to this size.
        #[arg(long, value_parser = size, conflicts_with = "ram")]
        size: Option<u64>,
        /// Refuse writes.
        #[arg(long)]
        read_only: bool,
        /// Bytes in a block: 512 or 4096.
        #[arg(long, default_value_t = 512)]
        sector: u32,
        /// The guest cannot give blocks back.
        #[arg(long)]
        no_discard: bool,
        /// Keep writes in memory until the guest flushes them.
        #[arg(long)]
        volatile: bool,
    },
    /// Take a disk away.
    Remove {
        #[command(flatten)]
        at: Place,
    },
    /// Change the size of a disk.
    Resize {
        #[command(flatten)]
        at: Place,
        /// New size, such as 2G.
        #[arg(value_parser = size)]
        size: u64,
    },
    /// Cut the power of a disk with a volatile cache: what was not flushed is lost.
    Cut {
        #[command(flatten)]
        at: Place,
        /// Let about half of the sectors survive; the number says which.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Send a notice to the guest's driver.
    Notify {
        /// Controller, such as scsi0.
        device: String,
        /// Which.
        what: Notice,
    },
    /// Make a controller misbehave.
    Fault {
        /// Controller, such as scsi0.
        device: String,
        /// Only for commands to this logical unit.
        #[arg(long)]
        lun: Option<u8>,
        /// Only for commands with this operation code, such as 0x28.
        #[arg(long, value_parser = byte)]
        opcode: Option<u8>,
        /// Hit so many commands; 0: all until cleared.
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Let so many pass before.
        #[arg(long, default_value_t = 0)]
        skip: u32,
        #[command(subcommand)]
        kind: FaultKind,
    },
}

#[derive(Args)]
pub(crate) struct Place {
    /// Controller, such as scsi0.
    device: String,
    /// Logical unit.
    lun: u8,
    /// SCSI target.
    #[arg(long, default_value_t = 0)]
    target: u8,
    /// Do not tell the guest.
    #[arg(long)]
    no_notify: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Notice {
    Enumerate,
    Remove,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum How {
    Short,
    IdZero,
    UnknownId,
    Twice,
    Sense,
    Transfer,
    Operation,
}

#[derive(Subcommand)]
pub(crate) enum FaultKind {
    /// End commands with a status instead of carrying them out.
    Status {
        /// SRB status; 4 is ERROR, 0x20 INVALID_LUN.
        #[arg(long, value_parser = byte, default_value = "4")]
        srb: u8,
        /// SCSI status; 2 is CHECK CONDITION.
        #[arg(long, value_parser = byte, default_value = "2")]
        scsi: u8,
        /// Sense key, code and qualifier in hexadecimal, such as 3/11/0.
        #[arg(long, value_parser = sense)]
        sense: Option<[u8; 3]>,
    },
    /// Complete commands later.
    Delay {
        /// By so many ms.
        ms: u64,
    },
    /// Never complete commands.
    Lose,
    /// Do nothing for some time.
    Stall {
        /// ms; 0 ends a stall.
        ms: u64,
    },
    /// Complete commands out of order.
    Reorder {
        /// So many at a time; 0 ends it.
        window: u32,
    },
    /// Complete commands wrongly.
    Malformed {
        /// In what way.
        how: How,
    },
    /// Forget all faults of the controller.
    Clear,
}

/// Reads a number, decimal or hexadecimal with 0x.
fn byte(text: &str) -> Result<u8, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected 0 to 255 or 0x0 to 0xff".into())
}

fn sense(text: &str) -> Result<[u8; 3], String> {
    let parts: Option<Vec<u8>> = text
        .split('/')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    parts
        .and_then(|parts| parts.try_into().ok())
        .ok_or_else(|| "expected three hexadecimal numbers, such as 3/11/0".into())
}

/// Reads a size such as 4096, 64M or 2G.
fn size(text: &str) -> Result<u64, String> {
    hvctl::parse_size(text)
}

pub(crate) fn command(cmd: DiskCmd) -> Command {
    match cmd {
        DiskCmd::List => Command::Disks,
        DiskCmd::Add {
            at,
            file,
            ram,
            size,
            read_only,
            sector,
            no_discard,
            volatile,
        } => Command::DiskAdd {
            device: at.device,
            lun: at.lun,
            target: at.target,
            disk: DiskSpec {
                file,
                ram: ram.is_some(),
                size: ram.or(size),
                read_only,
                sector,
                discard: !no_discard,
                volatile,
            },
            notify: !at.no_notify,
        },
        DiskCmd::Remove { at } => Command::DiskRemove {
            device: at.device,
            lun: at.lun,
            target: at.target,
            notify: !at.no_notify,
        },
        DiskCmd::Resize { at, size } => Command::DiskResize {
            device: at.device,
            lun: at.lun,
            target: at.target,
            size,
            notify: !at.no_notify,
        },
        DiskCmd::Cut { at, seed } => Command::DiskCut {
            device: at.device,
            lun: at.lun,
            target: at.target,
            seed,
        },
        DiskCmd::Notify { device, what } => Command::DiskNotify {
            device,
            what: match what {
                Notice::Enumerate => DiskNotice::Enumerate,
                Notice::Remove => DiskNotice::Remove,
            },
        },
        DiskCmd::Fault {
            device,
            lun,
            opcode,
            count,
            skip,
            kind,
        } => Command::DiskFault {
            device,
            lun,
            opcode,
            count,
            skip,
            fault: match kind {
                FaultKind::Status { srb, scsi, sense } => DiskFault::Status { srb, scsi, sense },
                FaultKind::Delay { ms } => DiskFault::Delay { ms },
                FaultKind::Lose => DiskFault::Lose,
                FaultKind::Stall { ms } => DiskFault::Stall { ms },
                FaultKind::Reorder { window } => DiskFault::Reorder { window },
                FaultKind::Malformed { how } => DiskFault::Malformed {
                    how: match how {
                        How::Short => MalformedCompletion::Short,
                        How::IdZero => MalformedCompletion::IdZero,
                        How::UnknownId => MalformedCompletion::UnknownId,
                        How::Twice => MalformedCompletion::Twice,
                        How::Sense => MalformedCompletion::Sense,
                        How::Transfer => MalformedCompletion::Transfer,
                        How::Operation => MalformedCompletion::Operation,
                    },
                },
                FaultKind::Clear => DiskFault::Clear,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_or_refused() {
        assert_eq!(byte("0x2a"), Ok(0x2a));
        assert_eq!(byte("42"), Ok(42));
        assert!(byte("256").is_err() && byte("2a").is_err());
        assert_eq!(sense("3/11/0"), Ok([3, 0x11, 0]));
        assert!(sense("3/11").is_err() && sense("3/11/0/0").is_err() && sense("x/0/0").is_err());
    }
}
