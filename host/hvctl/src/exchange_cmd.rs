// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! `hvctl kvp`, `hvctl backup`, `hvctl copy`: data exchange.

use clap::{Args, Subcommand, ValueEnum};
use hvctl::{BackupOp, Command, Error, IpSettings, KvpKind, KvpOp, KvpPool, Patch, Sending};

#[derive(Args)]
pub(crate) struct How {
    /// Seconds to wait for the guest's answer.
    #[arg(long, global = true)]
    wait: Option<f64>,
    /// Overwrite bytes of the request: OFFSET:HEX.
    #[arg(long, global = true, value_parser = patch, value_name = "OFFSET:HEX")]
    patch: Vec<Patch>,
    /// Send only so many bytes of the request.
    #[arg(long, global = true)]
    cut: Option<usize>,
    /// Send it though the last request is not answered yet.
    #[arg(long, global = true)]
    force: bool,
}

impl How {
    fn sending(self, default_wait: f64) -> Sending {
        Sending {
            wait_ms: (self.wait.unwrap_or(default_wait) * 1000.0) as u64,
            patch: self.patch,
            cut: self.cut,
            force: self.force,
        }
    }
}

fn patch(text: &str) -> Result<Patch, String> {
    let (at, hex) = text.split_once(':').ok_or("write OFFSET:HEX")?;
    Ok(Patch {
        at: at.parse().map_err(|e| format!("{at}: {e}"))?,
        hex: hex.into(),
    })
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Pool {
    External,
    Guest,
    Auto,
    AutoExternal,
    AutoInternal,
}

impl From<Pool> for KvpPool {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::External => Self::External,
            Pool::Guest => Self::Guest,
            Pool::Auto => Self::Auto,
            Pool::AutoExternal => Self::AutoExternal,
            Pool::AutoInternal => Self::AutoInternal,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Text,
    U32,
    U64,
}

#[derive(Args)]
pub(crate) struct KvpArgs {
    #[command(flatten)]
    how: How,
    #[command(subcommand)]
    what: KvpCmd,
}

#[derive(Subcommand)]
enum KvpCmd {
    /// The value of a key.
    Get {
        key: String,
        #[arg(long, value_enum, default_value = "guest")]
        pool: Pool,
    },
    /// Make or change a key.
    Set {
        key: String,
        value: String,
        #[arg(long, value_enum, default_value = "external")]
        pool: Pool,
        /// How the value is sent.
        #[arg(long, value_enum, default_value = "text")]
        kind: Kind,
    },
    /// Remove a key.
    Delete {
        key: String,
        #[arg(long, value_enum, default_value = "external")]
        pool: Pool,
    },
    /// All keys of a pool.
    Enumerate {
        #[arg(long, value_enum, default_value = "auto")]
        pool: Pool,
        /// Only the one with this index.
        #[arg(long)]
        index: Option<u32>,
    },
    /// Network settings of an adapter.
    GetIp {
        /// MAC address as 02:15:5D:00:00:01, or GUID in braces.
        adapter: String,
        /// 1: IPv4, 2: IPv6, 3: both.
        #[arg(long, default_value_t = 0)]
        family: u8,
    },
    /// Change network settings of an adapter.
    SetIp {
        /// GUID of the adapter's device in braces.
        adapter: String,
        /// Addresses, separated by semicolons, as are all lists here.
        #[arg(long, default_value = "", required_unless_present = "dhcp")]
        address: String,
        /// Masks or prefix lengths.
        #[arg(long, default_value = "")]
        subnet: String,
        /// Gateways.
        #[arg(long, default_value = "")]
        gateway: String,
        /// Name servers.
        #[arg(long, default_value = "")]
        dns: String,
        /// Addresses come from DHCP.
        #[arg(long)]
        dhcp: bool,
        /// 1: IPv4, 2: IPv6, 3: both.
        #[arg(long, default_value_t = 1)]
        family: u8,
    },
}

pub(crate) fn kvp(args: KvpArgs) -> Command {
    let op = match args.what {
        KvpCmd::Get { key, pool } => KvpOp::Get {
            pool: pool.into(),
            key,
        },
        KvpCmd::Set {
            key,
            value,
            pool,
            kind,
        } => KvpOp::Set {
            pool: pool.into(),
            key,
            value,
            kind: match kind {
                Kind::Text => KvpKind::Text,
                Kind::U32 => KvpKind::U32,
                Kind::U64 => KvpKind::U64,
            },
        },
        KvpCmd::Delete { key, pool } => KvpOp::Delete {
            pool: pool.into(),
            key,
        },
        KvpCmd::Enumerate { pool, index } => KvpOp::Enumerate {
            pool: pool.into(),
            index,
        },
        KvpCmd::GetIp { adapter, family } => KvpOp::GetIp { adapter, family },
        KvpCmd::SetIp {
            adapter,
            address,
            subnet,
            gateway,
            dns,
            dhcp,
            family,
        } => KvpOp::SetIp(IpSettings {
            adapter,
            family,
            dhcp,
            addresses: address,
            subnets: subnet,
            gateways: gateway,
            dns,
        }),
    };
    Command::Kvp {
        op,
        how: args.how.sending(40.0),
    }
}

#[derive(Args)]
pub(crate) struct BackupArgs {
    /// What to ask of the guest.
    #[arg(value_enum)]
    what: Backup,
    #[command(flatten)]
    how: How,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backup {
    /// Can it be backed up while it runs?
    Check,
    /// Does it have disks that the host cannot copy?
    DmInfo,
    /// Freeze the file systems.
    Freeze,
    /// Thaw them.
    Thaw,
    /// The backup is done.
    Complete,
}

pub(crate) fn backup(args: BackupArgs) -> Command {
    let (op, wait) = match args.what {
        Backup::Check => (BackupOp::Check, 40.0),
        Backup::DmInfo => (BackupOp::DmInfo, 40.0),
        // A guest may take 15 minutes.
        Backup::Freeze => (BackupOp::Freeze, 910.0),
        Backup::Thaw => (BackupOp::Thaw, 40.0),
        Backup::Complete => (BackupOp::Complete, 40.0),
    };
    Command::Backup {
        op,
        how: args.how.sending(wait),
    }
}

#[derive(Args)]
pub(crate) struct CopyArgs {
    /// File of the host.
    file: std::path::PathBuf,
    /// Where in the guest: an absolute path, or a directory that ends in a slash.
    dest: String,
    /// Replace a file that exists.
    #[arg(long)]
    overwrite: bool,
    /// Create the directories on the way.
    #[arg(long)]
    create_path: bool,
    /// Cancel after so many bytes.
    #[arg(long)]
    cancel_after: Option<u64>,
    #[command(flatten)]
    how: How,
}

pub(crate) fn copy(args: CopyArgs) -> Result<Command, Error> {
    // The host may run in another directory.
    let file = std::path::absolute(&args.file)
        .map_err(|e| Error::Refused(format!("{}: {e}", args.file.display())))?;
    let (directory, name) = match args.dest.rsplit_once('/') {
        Some((directory, name)) => (directory, name),
        None => return Err(Error::Refused(format!("{}: no absolute path", args.dest))),
    };
    let name = match name {
        "" => file
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
        name => name.to_owned(),
    };
    Ok(Command::Copy {
        file: file.to_string_lossy().into_owned(),
        directory: if directory.is_empty() {
            "/".into()
        } else {
            directory.to_owned()
        },
        name,
        overwrite: args.overwrite,
        create_path: args.create_path,
        cancel_after: args.cancel_after,
        how: args.how.sending(900.0),
    })
}
