// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Arguments of a controller, as the plugin gets them: `scsi0:lun0=/image;ro:lun1=ram;size=64M:max=6.0`.

use hvctl::{parse_size, DiskSpec};
use vmbus_proto::storvsc::wire::IdeAddress;
use vmbus_proto::storvsc::StorVersion;
use vmbus_proto::Guid;

/// Bytes that one command may transfer unless told otherwise (OpenVMM `storvsp`, `process_primary`).
const MAX_TRANSFER: u32 = 256 << 10;
const MAX_SUBCHANNELS: u16 = 16;
const THREADS: usize = 4;

/// What a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Synthetic SCSI controller.
    Scsi,
    /// Accelerated IDE disk of a generation 1 VM.
    Ide(IdeAddress),
}

/// How a controller shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// `scsi0` and so on.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Instance GUID.
    pub instance: Guid,
    /// Newest protocol version.
    pub newest: StorVersion,
    /// Sub-channels that the guest may ask for.
    pub max_subchannels: u16,
    /// Threads that work on the disks.
    pub threads: usize,
    /// Bytes that one command may transfer.
    pub max_transfer: u32,
    /// Whether commands that need not wait are carried out at once.
    pub fast: bool,
    /// Target, logical unit and disk.
    pub disks: Vec<(u8, u8, DiskSpec)>,
}

fn on_off(value: &str) -> Result<bool, String> {
    match value {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err(format!("'{value}': expected on or off")),
    }
}

fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    value: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    match value.parse() {
        Ok(n) if n >= least && n <= most => Ok(n),
        _ => Err(format!(
            "'{value}': expected a number from {least} to {most}"
        )),
    }
}

/// Reads a disk: `PATH` or `ram`, then options joined by `;`.
fn parse_disk(text: &str) -> Result<DiskSpec, String> {
    let mut words = text.split(';');
    let mut disk = DiskSpec {
        sector: 512,
        discard: true,
        ..DiskSpec::default()
    };
    match words.next().filter(|w| !w.is_empty()) {
        None => return Err("disk without a path".into()),
        Some("ram") => disk.ram = true,
        Some(path) => disk.file = Some(path.into()),
    }
    for word in words {
        match word.split_once('=') {
            None if word == "ro" => disk.read_only = true,
            Some(("size", value)) => disk.size = Some(parse_size(value)?),
            Some(("sector", value)) => disk.sector = number(value, 512, 4096)?,
            Some(("discard", value)) => disk.discard = on_off(value)?,
            Some(("cache", "volatile")) => disk.volatile = true,
            _ => {
                return Err(format!(
                    "disk option '{word}': expected ro, size=, sector=, discard= or cache=volatile"
                ))
            }
        }
    }
    Ok(disk)
}

/// Takes `lunN` or `tTlunN` apart.
fn parse_place(key: &str) -> Option<(u8, u8)> {
    let (target, lun) = match key.strip_prefix('t') {
        None => (0, key.strip_prefix("lun")?),
        Some(rest) => {
            let (target, lun) = rest.split_once("lun")?;
            (target.parse().ok()?, lun)
        }
    };
    Some((target, lun.parse().ok()?))
}

fn parse_version(value: &str) -> Result<StorVersion, String> {
    StorVersion::SPOKEN
        .into_iter()
        .find(|v| v.to_string() == value)
        .ok_or_else(|| {
            let known: Vec<String> = StorVersion::SPOKEN
                .iter()
                .map(ToString::to_string)
                .collect();
            format!(
                "storage protocol '{value}' is not one of {}",
                known.join(", ")
            )
        })
}

impl ControllerConfig {
    /// A controller without disks, by its name; `None` when the name is not one of a controller.
    pub fn named(name: &str) -> Option<Self> {
        let digit = |rest: &str| match *rest.as_bytes() {
            [d @ b'0'..=b'9'] => Some(d - b'0'),
            _ => None,
        };
        let (kind, instance) = if let Some(rest) = name.strip_prefix("scsi") {
            // Instance GUIDs as Azure has them.
            let d1 = 0xf8b3_781a + u32::from(digit(rest)?);
            let d4 = [0xa1, 0xc3, 0x63, 0xd8, 0x06, 0xec, 0x15, 0xbb];
            (Kind::Scsi, Guid::new(d1, 0x1e82, 0x4818, d4))
        } else {
            let n = digit(name.strip_prefix("ide")?).filter(|n| *n < 4)?;
            let address = IdeAddress {
                path: u32::from(n / 2),
                target: u16::from(n % 2),
            };
            (Kind::Ide(address), address.to_instance())
        };
        Some(Self {
            name: name.into(),
            kind,
            instance,
            newest: StorVersion::V6_2,
            max_subchannels: if kind == Kind::Scsi {
                MAX_SUBCHANNELS
            } else {
                0
            },
            threads: THREADS,
            max_transfer: MAX_TRANSFER,
            fast: true,
            disks: Vec::new(),
        })
    }

    /// Reads a controller's arguments; `None` when the name is not one of a controller.
    pub fn parse(name: &str, args: &[(String, String)]) -> Option<Result<Self, String>> {
        let mut config = Self::named(name)?;
        for (key, value) in args {
            if let Err(text) = config.set(key, value) {
                return Some(Err(format!("{key}: {text}")));
            }
        }
        Some(Ok(config))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, self.kind) {
            ("max", _) => self.newest = parse_version(value)?,
            ("threads", _) => self.threads = number(value, 1, 64)?,
            ("fast", _) => self.fast = on_off(value)?,
            ("max-transfer", _) => {
                let bytes = parse_size(value)?;
                // The guest needs room for a page at each end of what it transfers.
                self.max_transfer = u32::try_from(bytes)
                    .ok()
                    .filter(|n| (8192..=16 << 20).contains(n) && n % 4096 == 0)
                    .ok_or("expected a multiple of 4K from 8K to 16M")?;
            }
            ("subchannels", Kind::Scsi) => self.max_subchannels = number(value, 0, 255)?,
            ("instance", Kind::Scsi) => {
                self.instance =
                    Guid::parse(value).map_err(|_| format!("'{value}' is not a GUID"))?;
            }
            ("disk", Kind::Ide(at)) => self.disks = vec![(at.target as u8, 0, parse_disk(value)?)],
            (place, Kind::Scsi) => {
                let (target, lun) = parse_place(place).ok_or(
                    "expected lunN=, tTlunN=, max=, subchannels=, threads=, max-transfer=, fast= or instance=",
                )?;
                if self.disks.iter().any(|(t, l, _)| (*t, *l) == (target, lun)) {
                    return Err("given twice".into());
                }
                self.disks.push((target, lun, parse_disk(value)?));
            }
            _ => return Err("expected disk=, max=, threads=, max-transfer= or fast=".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, args: &[(&str, &str)]) -> Result<ControllerConfig, String> {
        let args: Vec<(String, String)> = args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        ControllerConfig::parse(name, &args).expect("a controller's name")
    }

    #[test]
    fn documented_arguments_are_read() {
        let config = parse(
            "scsi1",
            &[
                ("lun0", "/a b.img;ro"),
                ("lun2", "/c.img;cache=volatile"),
                ("t1lun255", "ram;size=64M;sector=4096;discard=off"),
                ("max", "6.0"),
                ("subchannels", "0"),
                ("threads", "1"),
                ("max-transfer", "1M"),
                ("fast", "off"),
            ],
        )
        .expect("reads");
        assert_eq!(
            config.instance.to_string(),
            "f8b3781b-1e82-4818-a1c3-63d806ec15bb"
        );
        assert_eq!(
            (config.newest, config.max_transfer),
            (StorVersion::V6_0, 1 << 20)
        );
        assert!(!config.fast && config.max_subchannels == 0 && config.threads == 1);
        assert!(config.disks[1].2.volatile);
        let (target, lun, disk) = &config.disks[2];
        assert_eq!(
            (*target, *lun, disk.size, disk.sector),
            (1, 255, Some(64 << 20), 4096)
        );
        assert!(disk.ram && !disk.discard && !disk.volatile);
        assert!(config.disks[0].2.read_only);
        let ide = parse("ide3", &[("disk", "/x")]).expect("reads");
        assert_eq!(
            ide.instance.to_string(),
            "00000001-0001-8899-0000-000000000000"
        );
        assert_eq!((ide.disks[0].0, ide.disks[0].1), (1, 0));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (name, key, value, part) in [
            ("scsi0", "lun256", "/x", "expected lunN="),
            ("scsi0", "lun", "/x", "expected lunN="),
            ("scsi0", "lun0", "", "without a path"),
            ("scsi0", "lun0", "/x;rw", "disk option 'rw'"),
            ("scsi0", "lun0", "/x;cache=on", "cache=volatile"),
            ("scsi0", "lun0", "/x;size=1X", "not a size"),
            ("scsi0", "lun0", "/x;size=99999999T", "not a size"),
            ("scsi0", "max", "5.1", "6.2, 6.0"),
            ("scsi0", "threads", "0", "from 1 to 64"),
            ("scsi0", "max-transfer", "4097", "multiple of 4K"),
            ("scsi0", "disk", "/x", "expected lunN="),
            ("ide0", "lun0", "/x", "expected disk="),
            ("ide0", "subchannels", "1", "expected disk="),
        ] {
            let error = parse(name, &[(key, value)]).expect_err("refused");
            assert!(error.contains(part), "{key}={value}: {error}");
        }
        for name in ["scsi", "scsi10", "ide4", "sata0", "heartbeat"] {
            assert!(ControllerConfig::named(name).is_none(), "{name}");
        }
        assert!(parse("scsi0", &[("lun0", "/x"), ("lun0", "/y")]).is_err());
    }
}
