// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hvctl net`: synthetic NICs.

use clap::{Subcommand, ValueEnum};
use hvctl::{Command, NetDirection, NetFault, NetField, NetLink, NetMessage, NetPart, NET_FIELDS};

#[derive(Subcommand)]
pub(crate) enum NetCmd {
    /// All NICs and their counters.
    List,
    /// Change the link.
    Link {
        /// NIC, such as net0.
        device: String,
        /// How.
        #[arg(required_unless_present = "speed")]
        link: Option<Link>,
        /// New speed in Mbit/s.
        #[arg(long)]
        speed: Option<u32>,
    },
    /// Send a send-indirection table.
    Table {
        /// NIC, such as net0.
        device: String,
        /// Channel for each entry, such as 0,1,2,3.
        #[arg(value_delimiter = ',')]
        table: Vec<u32>,
    },
    /// Bring a frame to the guest.
    Inject {
        /// NIC, such as net0.
        device: String,
        /// The frame in hexadecimal digits.
        #[arg(long)]
        hex: String,
        /// On this channel.
        #[arg(long)]
        queue: Option<u16>,
        /// Per-packet information in hexadecimal digits.
        #[arg(long)]
        ppi: Option<String>,
    },
    /// Tell the guest of a virtual function, or that it is gone.
    Vf {
        /// NIC, such as net0.
        device: String,
        /// Its serial number.
        #[arg(long, required_unless_present = "gone")]
        serial: Option<u32>,
        /// It is gone.
        #[arg(long, conflicts_with = "serial")]
        gone: bool,
    },
    /// Make a NIC misbehave.
    Fault {
        /// NIC, such as net0.
        device: String,
        /// Only for frames that go this way, seen from the guest.
        #[arg(long)]
        dir: Option<Direction>,
        /// Only on this channel.
        #[arg(long)]
        queue: Option<u16>,
        /// Hit so many frames or messages; 0: all until cleared.
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// Let so many pass before.
        #[arg(long, default_value_t = 0)]
        skip: u32,
        #[command(subcommand)]
        kind: FaultKind,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Link {
    Up,
    Down,
    Change,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Direction {
    Rx,
    Tx,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Message {
    Data,
    Answer,
    Indication,
    SendCompletion,
    InitCompletion,
    RecvBufCompletion,
    SendBufCompletion,
    SubchannelCompletion,
    SendTable,
    Vf,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Part {
    Packet,
    Ranges,
    Nvsp,
    Rndis,
}

#[derive(Subcommand)]
pub(crate) enum FaultKind {
    /// Lose frames.
    Drop,
    /// Frames come later.
    Delay {
        /// By so many ms.
        ms: u64,
    },
    /// Frames come twice.
    Duplicate,
    /// Frames come out of order.
    Reorder {
        /// So many at a time; 0 ends it.
        window: u32,
    },
    /// Change the last byte of frames.
    Corrupt,
    /// Neither read rings nor write to them for some time.
    Stall {
        /// ms; 0 ends a stall.
        ms: u64,
    },
    /// Overwrite a field of a message to the guest.
    Patch {
        /// Message.
        message: Message,
        /// Field; `hvctl net fault NIC patch data list x` names them all.
        #[arg(value_parser = net_field)]
        field: &'static NetField,
        /// New value, decimal or 0x….
        #[arg(value_parser = number)]
        value: u64,
    },
    /// End a message to the guest early.
    Cut {
        /// Message.
        message: Message,
        /// Part of it.
        part: Part,
        /// Bytes that are left.
        len: u32,
    },
    /// Send a message to the guest twice.
    Repeat {
        /// Message.
        message: Message,
    },
    /// Do not send a message to the guest.
    Lose {
        /// Message.
        message: Message,
    },
    /// Send a message that nobody asked for as soon as a channel is open.
    Early {
        /// Message.
        message: Message,
    },
    /// Forget all faults of the NIC.
    Clear,
}

fn net_field(text: &str) -> Result<&'static NetField, String> {
    NetField::named(text).ok_or_else(|| {
        let names: Vec<&str> = NET_FIELDS.iter().map(|f| f.name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn number(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected a number, such as 42 or 0x2a".into())
}

fn message(message: Message) -> NetMessage {
    match message {
        Message::Data => NetMessage::Data,
        Message::Answer => NetMessage::Answer,
        Message::Indication => NetMessage::Indication,
        Message::SendCompletion => NetMessage::SendCompletion,
        Message::InitCompletion => NetMessage::InitCompletion,
        Message::RecvBufCompletion => NetMessage::RecvBufCompletion,
        Message::SendBufCompletion => NetMessage::SendBufCompletion,
        Message::SubchannelCompletion => NetMessage::SubchannelCompletion,
        Message::SendTable => NetMessage::SendTable,
        Message::Vf => NetMessage::Vf,
    }
}

fn fault(kind: FaultKind) -> NetFault {
    match kind {
        FaultKind::Drop => NetFault::Drop,
        FaultKind::Delay { ms } => NetFault::Delay { ms },
        FaultKind::Duplicate => NetFault::Duplicate,
        FaultKind::Reorder { window } => NetFault::Reorder { window },
        FaultKind::Corrupt => NetFault::Corrupt,
        FaultKind::Stall { ms } => NetFault::Stall { ms },
        FaultKind::Patch {
            message: m,
            field,
            value,
        } => field.patch(message(m), value),
        FaultKind::Cut {
            message: m,
            part,
            len,
        } => NetFault::Cut {
            message: message(m),
            part: match part {
                Part::Packet => NetPart::Packet,
                Part::Ranges => NetPart::Ranges,
                Part::Nvsp => NetPart::Nvsp,
                Part::Rndis => NetPart::Rndis,
            },
            len,
        },
        FaultKind::Repeat { message: m } => NetFault::Repeat {
            message: message(m),
        },
        FaultKind::Lose { message: m } => NetFault::Lose {
            message: message(m),
        },
        FaultKind::Early { message: m } => NetFault::Early {
            message: message(m),
        },
        FaultKind::Clear => NetFault::Clear,
    }
}

pub(crate) fn command(cmd: NetCmd) -> Command {
    match cmd {
        NetCmd::List => Command::Nets,
        NetCmd::Link {
            device,
            link,
            speed,
        } => Command::NetLink {
            device,
            link: link.map(|link| match link {
                Link::Up => NetLink::Up,
                Link::Down => NetLink::Down,
                Link::Change => NetLink::Change,
            }),
            speed,
        },
        NetCmd::Table { device, table } => Command::NetTable { device, table },
        NetCmd::Inject {
            device,
            hex,
            queue,
            ppi,
        } => Command::NetInject {
            device,
            hex,
            queue,
            ppi,
        },
        NetCmd::Vf { device, serial, .. } => Command::NetVf { device, serial },
        NetCmd::Fault {
            device,
            dir,
            queue,
            count,
            skip,
            kind,
        } => Command::NetFault {
            device,
            direction: dir.map(|dir| match dir {
                Direction::Rx => NetDirection::Rx,
                Direction::Tx => NetDirection::Tx,
            }),
            queue,
            count,
            skip,
            fault: fault(kind),
        },
    }
}
