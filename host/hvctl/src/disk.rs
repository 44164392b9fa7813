// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Disks of the storage controllers: what can be asked of them, and how they can be made to misbehave.

use serde::{Deserialize, Serialize};

/// A disk to be added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Raw image or block device; absent: a RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// A RAM disk. One of `file` and `ram` must be given.
    #[serde(default)]
    pub ram: bool,
    /// Bytes. A RAM disk must have it; an image is made, or extended (sparse), to have as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Bytes in a block: 512 or 4096.
    #[serde(default = "sector")]
    pub sector: u32,
    /// The guest may give blocks back (UNMAP).
    #[serde(default = "yes")]
    pub discard: bool,
    /// Writes are kept in memory until the guest flushes them; see [`Command::DiskCut`](crate::Command::DiskCut).
    #[serde(default)]
    pub volatile: bool,
}

/// What a power cut has done to what a disk had not flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCutAnswer {
    /// Bytes that reached the medium all the same.
    pub kept: u64,
    /// Bytes lost.
    pub lost: u64,
}

/// One disk. Answer to `disks` is an array of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Name of the controller.
    pub device: String,
    /// SCSI target.
    pub target: u8,
    /// Logical unit.
    pub lun: u8,
    /// Image; none: RAM.
    pub file: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes that the store takes up, holes left out.
    pub allocated: u64,
    /// Bytes that a power cut would take: written to a volatile cache, and not flushed.
    #[serde(default)]
    pub unflushed: u64,
    /// Bytes in a block.
    pub sector: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The guest may give blocks back.
    pub discard: bool,
    /// Serial number (VPD page 80).
    pub serial: String,
    /// What it has done.
    pub counters: DiskCounters,
}

/// Counters of one disk, since it was added or since `reset-counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Commands carried out, of every kind.
    pub commands: u64,
    /// READ commands.
    pub reads: u64,
    /// WRITE commands, and WRITE SAME that wrote.
    pub writes: u64,
    /// Bytes of those.
    pub bytes_read: u64,
    /// Bytes of those.
    pub bytes_written: u64,
    /// SYNCHRONIZE CACHE and stops.
    pub flushes: u64,
    /// Ranges given back.
    pub discards: u64,
    /// Bytes of those.
    pub bytes_discarded: u64,
    /// Commands that failed, unit attentions and injected errors left out.
    pub errors: u64,
    /// Commands answered by an injected fault instead of being carried out.
    pub injected: u64,
    /// Commands without a completion at present.
    pub in_flight: u64,
    /// The most there have been.
    pub max_in_flight: u64,
}

/// A notice to the guest's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskNotice {
    /// ENUMERATE_BUS
    Enumerate,
    /// REMOVE_DEVICE
    Remove,
}

/// What a fault does to the commands that it hits, or to a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case"
)]
pub enum DiskFault {
    /// The command is not carried out and ends like this.
    Status {
        /// SRB status without flags; 4 is ERROR. The flag for valid sense data is set if there are some.
        srb: u8,
        /// SCSI status; 2 is CHECK CONDITION.
        scsi: u8,
        /// Sense key, additional sense code, qualifier.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sense: Option<[u8; 3]>,
    },
    /// The completion comes this much later.
    Delay {
        /// Milliseconds, of the guest's time.
        ms: u64,
    },
    /// The command is carried out, but its completion never comes; a reset by the guest ends it.
    Lose,
    /// The controller does nothing for this long; 0 ends a stall.
    Stall {
        /// Milliseconds, of the guest's time.
        ms: u64,
    },
    /// Completions are held until there are `window` of them, or for 20 ms, and sent in reverse order.
    Reorder {
        /// How many; 0 or 1 ends it.
        window: u32,
    },
    /// A malformed completion.
    Malformed {
        /// In what way.
        how: MalformedCompletion,
    },
    /// Forgets all faults of the controller, and sends what they held up.
    Clear,
}

/// Ways in which a completion can be wrong. Where the right completion follows, a careful driver is none the
/// worse for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MalformedCompletion {
    /// A packet cut to 16 bytes, before the right one.
    Short,
    /// One with transaction id 0, before the right one.
    IdZero,
    /// One with an id that was never given, before the right one.
    UnknownId,
    /// The right one twice.
    Twice,
    /// The right one, but with 255 bytes of sense data stated.
    Sense,
    /// The right one, but with 4 GiB - 1 stated as transferred.
    Transfer,
    /// One that is no COMPLETE_IO, before the right one.
    Operation,
}

/// Reads a size such as `4096`, `64M` or `2G`.
///
/// # Errors
/// A sentence.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a size such as 4096, 64M or 2G");
    let (digits, shift) = match text.strip_suffix(|c: char| "KMGTkmgt".contains(c)) {
        None => (text, 0),
        Some(digits) => match text.as_bytes()[digits.len()].to_ascii_uppercase() {
            b'K' => (digits, 10),
            b'M' => (digits, 20),
            b'G' => (digits, 30),
            _ => (digits, 40),
        },
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

fn sector() -> u32 {
    512
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_refused() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("8k", 8192),
            ("64M", 64 << 20),
            ("2G", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size));
        }
        for bad in ["", "M", "-1", "1X", "1.5G", "99999999T", "1MM"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
