// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Data exchange: key-value pairs, backup, file copy.

use serde::{Deserialize, Serialize};

fn half_minute() -> u64 {
    // The guest's driver gives its daemon 30 s.
    40_000
}

/// How a request is sent, beside what it asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sending {
    /// Waits at most this long for the guest's answer.
    #[serde(default = "half_minute")]
    pub wait_ms: u64,
    /// Overwrites bytes of the request's body, to see what the guest makes of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patch: Vec<Patch>,
    /// Sends only so many bytes of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<usize>,
    /// Sends it though the guest has not answered the last one.
    #[serde(default)]
    pub force: bool,
}

impl Default for Sending {
    fn default() -> Self {
        Self {
            wait_ms: half_minute(),
            patch: Vec::new(),
            cut: None,
            force: false,
        }
    }
}

/// Bytes of a body to overwrite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Offset in the body.
    pub at: usize,
    /// The bytes, hexadecimal.
    pub hex: String,
}

/// A set of keys, by its number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvpPool {
    /// Written by the host.
    External,
    /// Written in the guest.
    Guest,
    /// About the guest.
    Auto,
    /// About the host.
    AutoExternal,
    /// Not exchanged.
    AutoInternal,
}

impl KvpPool {
    /// Number in the protocol.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// How a value is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvpKind {
    /// Text.
    #[default]
    Text,
    /// Number of 32 bits.
    U32,
    /// Number of 64 bits.
    U64,
}

/// Network settings of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSettings {
    /// GUID of the adapter in braces.
    pub adapter: String,
    /// 0: none in particular, 1: IPv4, 2: IPv6, 3: both.
    #[serde(default)]
    pub family: u8,
    /// Addresses come from DHCP.
    #[serde(default)]
    pub dhcp: bool,
    /// Addresses, separated by semicolons, as are the other lists.
    #[serde(default)]
    pub addresses: String,
    /// Masks or prefix lengths.
    #[serde(default)]
    pub subnets: String,
    /// Gateways.
    #[serde(default)]
    pub gateways: String,
    /// Name servers.
    #[serde(default)]
    pub dns: String,
}

/// A request of the key-value pair service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "op",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum KvpOp {
    /// The value of a key.
    Get {
        /// Where.
        pool: KvpPool,
        /// The key.
        key: String,
    },
    /// Makes or changes a key.
    Set {
        /// Where.
        pool: KvpPool,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// How it is sent.
        #[serde(default)]
        kind: KvpKind,
    },
    /// Removes a key.
    Delete {
        /// Where.
        pool: KvpPool,
        /// The key.
        key: String,
    },
    /// All keys of a pool, or the one with an index.
    Enumerate {
        /// Which.
        pool: KvpPool,
        /// Only this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        index: Option<u32>,
    },
    /// Network settings of an adapter.
    GetIp {
        /// MAC address as `02:15:5D:00:00:01`, or GUID in braces.
        adapter: String,
        /// As in [`IpSettings`].
        #[serde(default)]
        family: u8,
    },
    /// Changes network settings.
    SetIp(IpSettings),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvpPair {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// Answer to [`Command::Kvp`](crate::Command::Kvp).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvpReply {
    /// The guest's status; 0: done. After an enumeration of all 0, if it ended with "no more items".
    pub status: u32,
    /// What was got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What was enumerated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<KvpPair>,
    /// Network settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpSettings>,
}

/// A request of the backup service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupOp {
    /// Can the guest be backed up while it runs?
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

/// Answer to [`Command::Backup`](crate::Command::Backup).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupReply {
    /// The guest's status; 0: done.
    pub status: u32,
    /// Flags of the answer.
    pub flags: u32,
}

/// Answer to [`Command::Copy`](crate::Command::Copy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReply {
    /// The guest's status; 0: done.
    pub status: u32,
    /// Bytes that the guest took.
    pub bytes: u64,
}

/// What a status of the guest means, as far as the services use it (Linux: `HV_*` in `hyperv.h`).
pub fn status_text(status: u32) -> &'static str {
    match status {
        0 => "done",
        0x8000_4005 => "failed",
        0x8007_0103 => "no such item, or no more",
        0x8007_0032 => "not supported",
        0x8007_0050 => "exists already",
        0x8007_0057 => "invalid argument",
        0x8007_0070 => "disk full",
        0x8007_048f => "nobody serves the request",
        0x8004_1002 => "no such adapter",
        _ => "error",
    }
}
