// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hvctl`: asks the emulated host things and makes it do things.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hvctl::profile::{ProfileCounts, Symbols};
use hvctl::{
    Burst, Client, Command, Error, Fault, RingField, RingSide, SampleKind, ShutdownKind, Until,
};

#[cfg(test)]
mod cli_tests;
mod disk_cmd;
mod exchange_cmd;
mod net_cmd;
mod show;

/// Talks to the control socket of an emulated Hyper-V host.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// Path of the control socket (`control=` of the QEMU plugin).
    #[arg(long, short, env = "HVCTL_SOCKET")]
    socket: PathBuf,
    /// Print the host's answer as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    cmd: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Connection, version, guest.
    Status,
    /// Channels and their counters.
    Channels,
    /// All counters that are not zero.
    Counters,
    /// Count from zero again.
    ResetCounters,
    /// What the guest did against the protocol.
    Violations,
    /// Offer a device, or a sub-channel, that was rescinded.
    Offer {
        /// Name or instance GUID; NAME/INDEX for a sub-channel.
        device: String,
    },
    /// Take a device, or a sub-channel, away.
    Rescind {
        /// Name or instance GUID; NAME/INDEX for a sub-channel.
        device: String,
    },
    /// Wait for something to happen.
    Wait {
        /// Give up after this many seconds.
        #[arg(long, short, default_value_t = 30.0, global = true)]
        timeout: f64,
        #[command(subcommand)]
        until: WaitFor,
    },
    /// Heartbeat: statistics; change the interval; send a burst.
    Heartbeat {
        /// ms between beats; 0 stops them.
        #[arg(long)]
        interval: Option<u64>,
        /// Send this many beats at once.
        #[arg(long)]
        burst: Option<u32>,
        /// ms between the beats of a burst; 0: each when the one before was answered.
        #[arg(long, default_value_t = 0, requires = "burst")]
        every: u64,
    },
    /// Ask the guest to shut down, and wait for its answer.
    Shutdown {
        /// What it shall do.
        kind: Kind,
        /// Set the force bit.
        #[arg(long)]
        force: bool,
        /// Reason text.
        #[arg(long, default_value = "")]
        reason: String,
        /// Seconds to wait for the answer; 0: do not wait.
        #[arg(long, default_value_t = 10.0)]
        wait: f64,
    },
    /// Time synchronisation: statistics; send a sample.
    Timesync(Timesync),
    /// Disks of the storage controllers.
    Disk {
        #[command(subcommand)]
        what: disk_cmd::DiskCmd,
    },
    /// Synthetic NICs.
    Net {
        #[command(subcommand)]
        what: net_cmd::NetCmd,
    },
    /// Keys and network settings of the guest.
    Kvp(exchange_cmd::KvpArgs),
    /// Freeze and thaw the guest's file systems.
    Backup(exchange_cmd::BackupArgs),
    /// Copy a file into the guest.
    Copy(exchange_cmd::CopyArgs),
    /// Stop all virtual processors.
    Pause,
    /// Continue all virtual processors.
    Resume,
    /// Reset the VM.
    Reset,
    /// Power the VM off without asking the guest.
    PowerOff,
    /// Make the host misbehave.
    Fault {
        #[command(subcommand)]
        fault: FaultCmd,
    },
    /// Count guest instructions.
    Profile {
        /// Start afresh, or read what was counted.
        what: Profile,
        /// Show the counts per module and function, by the guest's /proc/kallsyms, read as root and copied to this file.
        #[arg(long, value_name = "FILE")]
        kallsyms: Option<PathBuf>,
    },
    /// Set the level of the host's log.
    LogLevel {
        /// error, warn, info, debug or trace.
        level: String,
    },
    /// Print events as they happen.
    Watch,
    /// Send a request given as JSON, such as '{"cmd":"status"}'.
    Raw {
        /// Without the id.
        request: String,
    },
}

#[derive(Args)]
struct Timesync {
    /// Send a sample of this kind.
    #[arg(long)]
    send: Option<SampleArg>,
    /// Add this many ms to the host's clock.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    offset_ms: i64,
    /// Instead of the host's clock: ms since 1970.
    #[arg(long, allow_negative_numbers = true)]
    unix_ms: Option<i64>,
    /// Use the offset for all later samples, too.
    #[arg(long)]
    keep: bool,
    /// ms between periodic samples; 0 stops them.
    #[arg(long)]
    interval: Option<u64>,
    /// Whether to send a forced sample when the VM was stopped.
    #[arg(long)]
    sync_after_stop: Option<bool>,
}

#[derive(Subcommand)]
enum WaitFor {
    /// Offers are delivered.
    Connected,
    /// The guest has no connection.
    Disconnected,
    /// The device's channel is open.
    Open {
        /// Name or instance GUID.
        device: String,
    },
    /// The device's channel is not open.
    Closed {
        /// Name or instance GUID.
        device: String,
    },
    /// The guest has given the relid of the rescinded device back.
    Released {
        /// Name or instance GUID.
        device: String,
    },
    /// The device's versions are agreed on.
    Negotiated {
        /// Name or instance GUID.
        device: String,
    },
    /// The NIC's driver is ready for frames.
    NetRunning {
        /// Name or instance GUID.
        device: String,
    },
    /// This many heartbeats were answered.
    Beats {
        /// How many.
        count: u64,
    },
    /// The guest reported a crash.
    Crash,
    /// There are this many violations.
    Violations {
        /// How many.
        count: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    PowerOff,
    Reboot,
    Hibernate,
}

#[derive(Clone, Copy, ValueEnum)]
enum SampleArg {
    Probe,
    Sync,
    Sample,
}

#[derive(Clone, Copy, ValueEnum)]
enum Profile {
    Mark,
    Read,
}

#[derive(Clone, Copy, ValueEnum)]
enum Side {
    GuestToHost,
    HostToGuest,
}

#[derive(Clone, Copy, ValueEnum)]
enum Field {
    Write,
    Read,
    Mask,
    Pending,
}

#[derive(Subcommand)]
enum FaultCmd {
    /// Drop a channel message to the guest.
    DropMessage {
        /// Let this many pass first.
        #[arg(default_value_t = 0)]
        skip: u32,
    },
    /// Delay the next channel messages to the guest.
    DelayMessages {
        /// How many.
        count: u32,
        /// By how many ms.
        ms: u64,
    },
    /// Send the next channel message twice.
    DuplicateMessage,
    /// Post these bytes to the guest.
    PostMessage {
        /// Hexadecimal.
        hex: String,
        /// SynIC message type.
        #[arg(long, default_value_t = 1)]
        msg_type: u32,
        /// Virtual processor.
        #[arg(long, default_value_t = 0)]
        vp: u32,
    },
    /// Refuse the guest's next messages with an HV_STATUS (19: insufficient buffers).
    RefusePost {
        /// How many.
        count: u32,
        /// HV_STATUS.
        #[arg(default_value_t = 19)]
        status: u16,
    },
    /// Refuse the next opens.
    RefuseOpen {
        /// How many.
        count: u32,
        /// Status.
        #[arg(default_value_t = 0x8000_ffff)]
        status: u32,
    },
    /// Refuse the next GPADLs.
    RefuseGpadl {
        /// How many.
        count: u32,
        /// Status.
        #[arg(default_value_t = 0x8000_ffff)]
        status: u32,
    },
    /// Overwrite a word of a ring's control page.
    CorruptRing {
        /// Name or instance GUID.
        device: String,
        /// Which ring.
        side: Side,
        /// Which word.
        field: Field,
        /// New value.
        value: u32,
    },
    /// Send a packet on an open channel.
    SendPacket {
        /// Name or instance GUID.
        device: String,
        /// Packet type; 6 is in-band data.
        packet_type: u16,
        /// Payload, hexadecimal.
        hex: String,
        /// 1 asks for a completion.
        #[arg(long, default_value_t = 0)]
        flags: u16,
        /// Transaction id.
        #[arg(long, default_value_t = 0)]
        transaction_id: u64,
    },
    /// Put bytes into the ring as they are.
    SendRaw {
        /// Name or instance GUID.
        device: String,
        /// Hexadecimal.
        hex: String,
    },
    /// Set an event flag that no channel asked for.
    SignalEvent {
        /// Virtual processor.
        vp: u32,
        /// Bit number.
        flag: u16,
    },
    /// Stop reading a device's ring.
    Stall {
        /// Name or instance GUID.
        device: String,
    },
    /// Read it again.
    Unstall {
        /// Name or instance GUID.
        device: String,
    },
}

fn ms(seconds: f64) -> u64 {
    // Saturates; NaN and negative numbers become 0.
    (seconds * 1000.0) as u64
}

fn fault(cmd: FaultCmd) -> Fault {
    match cmd {
        FaultCmd::DropMessage { skip } => Fault::DropMessage { skip },
        FaultCmd::DelayMessages { count, ms } => Fault::DelayMessages { count, ms },
        FaultCmd::DuplicateMessage => Fault::DuplicateMessage,
        FaultCmd::PostMessage { hex, msg_type, vp } => Fault::PostMessage { hex, msg_type, vp },
        FaultCmd::RefusePost { count, status } => Fault::RefusePost { count, status },
        FaultCmd::RefuseOpen { count, status } => Fault::RefuseOpen { count, status },
        FaultCmd::RefuseGpadl { count, status } => Fault::RefuseGpadl { count, status },
        FaultCmd::CorruptRing {
            device,
            side,
            field,
            value,
        } => Fault::CorruptRing {
            device,
            ring: match side {
                Side::GuestToHost => RingSide::GuestToHost,
                Side::HostToGuest => RingSide::HostToGuest,
            },
            field: match field {
                Field::Write => RingField::Write,
                Field::Read => RingField::Read,
                Field::Mask => RingField::Mask,
                Field::Pending => RingField::Pending,
            },
            value,
        },
        FaultCmd::SendPacket {
            device,
            packet_type,
            hex,
            flags,
            transaction_id,
        } => Fault::SendPacket {
            device,
            packet_type,
            flags,
            transaction_id,
            hex,
        },
        FaultCmd::SendRaw { device, hex } => Fault::SendRaw { device, hex },
        FaultCmd::SignalEvent { vp, flag } => Fault::SignalEvent { vp, flag },
        FaultCmd::Stall { device } => Fault::StallDevice { device, on: true },
        FaultCmd::Unstall { device } => Fault::StallDevice { device, on: false },
    }
}

fn until(cmd: WaitFor) -> Until {
    match cmd {
        WaitFor::Connected => Until::Connected,
        WaitFor::Disconnected => Until::Disconnected,
        WaitFor::Open { device } => Until::ChannelOpen { device },
        WaitFor::Closed { device } => Until::ChannelClosed { device },
        WaitFor::Released { device } => Until::Released { device },
        WaitFor::Negotiated { device } => Until::Negotiated { device },
        WaitFor::NetRunning { device } => Until::NetRunning { device },
        WaitFor::Beats { count } => Until::Beats { count },
        WaitFor::Crash => Until::GuestCrash,
        WaitFor::Violations { count } => Until::Violations { count },
    }
}

fn command(cmd: Cmd) -> Result<Command, Error> {
    Ok(match cmd {
        Cmd::Status => Command::Status,
        Cmd::Channels => Command::Channels,
        Cmd::Counters => Command::Counters,
        Cmd::ResetCounters => Command::ResetCounters,
        Cmd::Violations => Command::Violations,
        Cmd::Offer { device } => Command::Offer { device },
        Cmd::Rescind { device } => Command::Rescind { device },
        Cmd::Wait {
            timeout,
            until: what,
        } => Command::Wait {
            until: until(what),
            timeout_ms: ms(timeout),
        },
        Cmd::Heartbeat {
            interval,
            burst,
            every,
        } => Command::Heartbeat {
            interval_ms: interval,
            burst: burst.map(|count| Burst {
                count,
                every_ms: every,
            }),
        },
        Cmd::Shutdown {
            kind,
            force,
            reason,
            wait,
        } => Command::Shutdown {
            kind: match kind {
                Kind::PowerOff => ShutdownKind::PowerOff,
                Kind::Reboot => ShutdownKind::Reboot,
                Kind::Hibernate => ShutdownKind::Hibernate,
            },
            force,
            reason,
            wait_ms: (wait > 0.0).then(|| ms(wait)),
        },
        Cmd::Timesync(t) => Command::Timesync {
            send: t.send.map(|kind| match kind {
                SampleArg::Probe => SampleKind::Probe,
                SampleArg::Sync => SampleKind::Sync,
                SampleArg::Sample => SampleKind::Sample,
            }),
            offset_ms: t.offset_ms,
            unix_ms: t.unix_ms,
            keep: t.keep,
            interval_ms: t.interval,
            sync_after_stop: t.sync_after_stop,
        },
        Cmd::Disk { what } => disk_cmd::command(what),
        Cmd::Net { what } => net_cmd::command(what),
        Cmd::Kvp(args) => exchange_cmd::kvp(args),
        Cmd::Backup(args) => exchange_cmd::backup(args),
        Cmd::Copy(args) => exchange_cmd::copy(args)?,
        Cmd::Pause => Command::Pause,
        Cmd::Resume => Command::Resume,
        Cmd::Reset => Command::Reset,
        Cmd::PowerOff => Command::PowerOff,
        Cmd::Fault { fault: cmd } => Command::Fault { fault: fault(cmd) },
        Cmd::Profile {
            what: Profile::Mark,
            ..
        } => Command::ProfileMark,
        Cmd::Profile {
            what: Profile::Read,
            ..
        } => Command::ProfileRead,
        Cmd::LogLevel { level } => Command::LogLevel { level },
        Cmd::Watch => Command::Watch,
        Cmd::Raw { request } => {
            serde_json::from_str(&request).map_err(|e| Error::Garbled(e.to_string()))?
        }
    })
}

fn run(cli: Cli) -> Result<(), Error> {
    let human = show::for_command(&cli.cmd);
    let symbols = match &cli.cmd {
        Cmd::Profile {
            what: Profile::Read,
            kallsyms: Some(path),
        } => Some(symbols(path)?),
        _ => None,
    };
    let cmd = command(cli.cmd)?;
    let mut client = Client::connect(&cli.socket)?;
    if cmd == Command::Watch {
        let mut watch = client.watch()?;
        loop {
            let event = watch.next_event()?;
            let line = serde_json::to_string(&event).map_err(|e| Error::Garbled(e.to_string()))?;
            show::line(&if cli.json { line } else { show::event(&event) });
        }
    }
    let answer = client.call(cmd)?;
    let text = match symbols {
        Some(symbols) if !cli.json => report(&symbols, answer)?,
        _ if cli.json => answer.to_string(),
        _ => human(&answer),
    };
    if !text.is_empty() {
        show::line(&text);
    }
    Ok(())
}

fn symbols(path: &Path) -> Result<Symbols, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::Refused(format!("{}: {e}", path.display())))?;
    Symbols::parse(&text).map_err(|e| Error::Refused(format!("{}: {e}", path.display())))
}

fn report(symbols: &Symbols, answer: serde_json::Value) -> Result<String, Error> {
    let counts: ProfileCounts =
        serde_json::from_value(answer).map_err(|e| Error::Garbled(e.to_string()))?;
    Ok(symbols
        .report(&counts)
        .map_err(|e| Error::Garbled(e.to_string()))?
        .to_string())
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hvctl: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Command {
        let args = ["hvctl", "--socket", "s"]
            .into_iter()
            .chain(args.split_whitespace());
        command(Cli::try_parse_from(args).expect("parses").cmd).expect("is a command")
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_become_requests() {
        assert_eq!(
            parse("wait --timeout 1.5 open heartbeat"),
            Command::Wait {
                until: Until::ChannelOpen {
                    device: "heartbeat".into()
                },
                timeout_ms: 1500
            }
        );
        assert_eq!(
            parse("shutdown hibernate --force --wait 0"),
            Command::Shutdown {
                kind: ShutdownKind::Hibernate,
                force: true,
                reason: String::new(),
                wait_ms: None
            }
        );
        assert_eq!(
            parse("heartbeat --burst 100 --every 20"),
            Command::Heartbeat {
                interval_ms: None,
                burst: Some(Burst {
                    count: 100,
                    every_ms: 20
                })
            }
        );
        assert_eq!(
            parse("fault corrupt-ring timesync host-to-guest write 4294967295"),
            Command::Fault {
                fault: Fault::CorruptRing {
                    device: "timesync".into(),
                    ring: RingSide::HostToGuest,
                    field: RingField::Write,
                    value: u32::MAX
                }
            }
        );
        assert_eq!(
            parse("disk resize scsi1 7 2G --target 1 --no-notify"),
            Command::DiskResize {
                device: "scsi1".into(),
                lun: 7,
                target: 1,
                size: 2 << 30,
                notify: false
            }
        );
        assert_eq!(
            parse("disk fault scsi0 --opcode 0x28 --skip 2 status --sense 3/11/0"),
            Command::DiskFault {
                device: "scsi0".into(),
                lun: None,
                opcode: Some(0x28),
                count: 1,
                skip: 2,
                fault: hvctl::DiskFault::Status {
                    srb: 4,
                    scsi: 2,
                    sense: Some([3, 0x11, 0])
                }
            }
        );
        assert_eq!(
            parse("net fault net0 --queue 2 --count 0 patch data range-count 0xffffffff"),
            Command::NetFault {
                device: "net0".into(),
                direction: None,
                queue: Some(2),
                count: 0,
                skip: 0,
                fault: hvctl::NetFault::Patch {
                    message: hvctl::NetMessage::Data,
                    part: hvctl::NetPart::Ranges,
                    offset: 4,
                    width: 4,
                    value: 0xffff_ffff
                }
            }
        );
        assert_eq!(
            parse("net table net1 0,1,1"),
            Command::NetTable {
                device: "net1".into(),
                table: vec![0, 1, 1]
            }
        );
        assert!(matches!(
            parse("timesync --send sync --offset-ms -5000"),
            Command::Timesync {
                offset_ms: -5000,
                ..
            }
        ));
    }

    #[test]
    fn a_missing_socket_gives_one_clear_line() {
        let cli =
            Cli::try_parse_from(["hvctl", "-s", "/nonexistent/socket", "status"]).expect("parses");
        let text = run(cli).expect_err("no host").to_string();
        assert!(
            text.starts_with("no host listens on /nonexistent/socket"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }
}
