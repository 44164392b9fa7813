// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Arguments of a NIC, as the plugin gets them: `net0:backend=passt:mtu=9000:offload=-rsc`.

use hvctl::parse_size;
use vmbus_proto::net::nvsp::{NvspVersion, TableForm, MAX_CHANNELS};
use vmbus_proto::net::rss::{DEFAULT_TABLE_SIZE, MAX_TABLE_SIZE};
use vmbus_proto::net::server::DEFAULT_MTU;
use vmbus_proto::net::MacAddress;
use vmbus_proto::Guid;

use crate::offload::Offloads;

/// NICs that have a name.
const MAX_NICS: u8 = 8;
/// Largest MTU that Linux lets one set: 65535 less the Ethernet header (`hyperv_net.h`, `NETVSC_MTU`).
pub(crate) const MAX_MTU: u32 = 65521;
/// Bytes of a send section, as Hyper-V has it.
const SEND_SECTION: u32 = 6144;
/// Mbit/s, as Hyper-V's virtual switches say.
const SPEED: u32 = 10_000;

/// How a NIC shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicConfig {
    /// `net0` and so on.
    pub name: String,
    /// Instance GUID.
    pub instance: Guid,
    /// Permanent address.
    pub mac: MacAddress,
    /// Largest MTU that the guest may choose.
    pub max_mtu: u32,
    /// Newest protocol version.
    pub newest: NvspVersion,
    /// Sub-channels that the guest may ask for.
    pub max_subchannels: u16,
    /// What the host offers to do.
    pub offloads: Offloads,
    /// Mbit/s that the guest is told.
    pub speed: u32,
    /// Whether there is a link at the start.
    pub link: bool,
    /// Friendly name.
    pub friendly_name: String,
    /// Bytes of a send section.
    pub send_section: u32,
    /// Entries of the indirection table for received frames.
    pub table: u16,
    /// How a send-indirection table is laid out.
    pub table_form: TableForm,
    /// Receive sections at most.
    pub recv_sections: u32,
    /// Whether the guest may change its address.
    pub mac_change: bool,
    /// As [`hv_net::open`] takes it.
    pub backend: String,
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

/// A version by the name that people use.
pub(crate) fn version_name(version: NvspVersion) -> &'static str {
    match version {
        NvspVersion::V1 => "1",
        NvspVersion::V2 => "2",
        NvspVersion::V4 => "4",
        NvspVersion::V5 => "5",
        NvspVersion::V6 => "6.0",
        _ => "6.1",
    }
}

fn parse_version(value: &str) -> Result<NvspVersion, String> {
    NvspVersion::SPOKEN
        .into_iter()
        .find(|v| version_name(*v) == value)
        .ok_or_else(|| {
            let known = NvspVersion::SPOKEN.map(version_name).join(", ");
            format!("'{value}' is not one of {known}")
        })
}

fn parse_mac(value: &str) -> Result<MacAddress, String> {
    let bad = || format!("'{value}' is not a unicast address such as 00-15-5d-00-00-01");
    let mut mac = [0; 6];
    let mut words = value.split('-');
    for byte in &mut mac {
        *byte = words
            .next()
            .filter(|w| w.len() == 2)
            .and_then(|w| u8::from_str_radix(w, 16).ok())
            .ok_or_else(bad)?;
    }
    if words.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(bad());
    }
    Ok(mac)
}

/// An address as people write it here.
pub(crate) fn mac_text(mac: &MacAddress) -> String {
    mac.map(|byte| format!("{byte:02x}")).join("-")
}

/// Instance GUID from the address, as Azure makes it.
fn instance(mac: &MacAddress) -> Guid {
    let [a, b, c, d, e, f] = *mac;
    let d1 = u32::from_be_bytes([a, b, c, d]);
    let d2 = u16::from_be_bytes([e, f]);
    let d3 = u16::from_be_bytes([a, b]);
    Guid::new(d1, d2, d3, [c, d, e, f, a, b, c, d])
}

impl NicConfig {
    /// A NIC with nothing set, by its name; `None` when the name is not one of a NIC.
    pub fn named(name: &str) -> Option<Self> {
        let n = match *name.strip_prefix("net")?.as_bytes() {
            [d @ b'0'..=b'9'] if d - b'0' < MAX_NICS => d - b'0',
            _ => return None,
        };
        let mac = [0x00, 0x15, 0x5d, 0, 0, n + 1];
        Some(Self {
            name: name.into(),
            instance: instance(&mac),
            mac,
            max_mtu: MAX_MTU,
            newest: NvspVersion::V6_1,
            max_subchannels: MAX_CHANNELS as u16 - 1,
            offloads: Offloads::ALL,
            speed: SPEED,
            link: true,
            friendly_name: "Network Adapter".into(),
            send_section: SEND_SECTION,
            table: DEFAULT_TABLE_SIZE as u16,
            table_form: TableForm::Compact,
            recv_sections: u32::MAX,
            mac_change: true,
            backend: "echo".into(),
        })
    }

    /// Reads a NIC's arguments; `None` when the name is not one of a NIC.
    pub fn parse(name: &str, args: &[(String, String)]) -> Option<Result<Self, String>> {
        let mut config = Self::named(name)?;
        for (key, value) in args {
            if let Err(text) = config.set(key, value) {
                return Some(Err(format!("{key}: {text}")));
            }
        }
        if let Some((_, value)) = args.iter().find(|(key, _)| key == "instance") {
            match Guid::parse(value) {
                Ok(guid) => config.instance = guid,
                Err(_) => return Some(Err(format!("instance: '{value}' is not a GUID"))),
            }
        }
        Some(Ok(config))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "backend" => self.backend = value.into(),
            "mac" => {
                self.mac = parse_mac(value)?;
                self.instance = instance(&self.mac);
            }
            "mac-change" => self.mac_change = on_off(value)?,
            "mtu" => self.max_mtu = number(value, DEFAULT_MTU, MAX_MTU)?,
            "max" => self.newest = parse_version(value)?,
            "subchannels" => self.max_subchannels = number(value, 0, MAX_CHANNELS as u16 - 1)?,
            "offload" => self.offloads = Offloads::parse(value)?,
            "speed" => self.speed = number(value, 1, 400_000)?,
            "link" => self.link = on_off(value)?,
            "name" => {
                // What OID_GEN_FRIENDLY_NAME has room for, with its end.
                if value.encode_utf16().count() > 255 {
                    return Err("longer than 255 characters".into());
                }
                self.friendly_name = value.into();
            }
            "send-section" => {
                let bytes = parse_size(value)?;
                self.send_section = u32::try_from(bytes)
                    .ok()
                    .filter(|n| (2048..=1 << 20).contains(n) && n % 8 == 0)
                    .ok_or("expected a multiple of 8 from 2K to 1M")?;
            }
            "table" => self.table = number(value, 1, MAX_TABLE_SIZE as u16)?,
            "send-table" => {
                self.table_form = match value {
                    "compact" => TableForm::Compact,
                    "wide" => TableForm::Wide,
                    "wrong-offset" => TableForm::WideWrongOffset,
                    _ => return Err("expected compact, wide or wrong-offset".into()),
                }
            }
            "recv-sections" => self.recv_sections = number(value, 2, u32::MAX)?,
            // Looked at when the address is known, which it does not depend on.
            "instance" => {}
            _ => {
                return Err(
                    "expected backend=, mac=, mac-change=, mtu=, max=, subchannels=, offload=, speed=, link=, name=, \
                     send-section=, send-table=, table=, recv-sections= or instance="
                        .into(),
                )
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, args: &[(&str, &str)]) -> Result<NicConfig, String> {
        let args: Vec<(String, String)> = args
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        NicConfig::parse(name, &args).expect("a NIC's name")
    }

    #[test]
    fn documented_arguments_are_read() {
        let config = parse(
            "net1",
            &[
                ("backend", "tap;hv0"),
                ("mtu", "9000"),
                ("max", "5"),
                ("subchannels", "0"),
                ("offload", "-rsc;-lso6"),
                ("speed", "1000"),
                ("link", "off"),
                ("name", "blue"),
                ("send-section", "4K"),
                ("table", "64"),
                ("send-table", "wrong-offset"),
                ("recv-sections", "20"),
            ],
        )
        .expect("reads");
        assert_eq!(mac_text(&config.mac), "00-15-5d-00-00-02");
        assert_eq!(
            config.instance.to_string(),
            "00155d00-0002-0015-5d00-000200155d00"
        );
        assert_eq!((config.max_mtu, config.newest), (9000, NvspVersion::V5));
        assert!(config.offloads.lso4 && !config.offloads.lso6 && !config.offloads.rsc);
        assert!(!config.link && config.max_subchannels == 0 && config.send_section == 4096);
        let other = parse("net0", &[("mac", "02-00-00-aA-bb-cc")]).expect("reads");
        assert_eq!(other.mac, [2, 0, 0, 0xaa, 0xbb, 0xcc]);
        assert_ne!(other.instance, parse("net0", &[]).expect("reads").instance);
        let given = "00000001-0002-0003-0405-060708090a0b";
        let both = [("instance", given), ("mac", "02-00-00-00-00-01")];
        assert_eq!(
            parse("net0", &both).expect("reads").instance.to_string(),
            given
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (key, value, part) in [
            ("mac", "00:15:5d:00:00:01", "unicast address"),
            ("mac", "01-15-5d-00-00-01", "unicast address"),
            ("mac", "00-15-5d-00-00-01-02", "unicast address"),
            ("mtu", "1499", "from 1500"),
            ("mtu", "65522", "to 65521"),
            ("max", "3", "6.1, 6.0, 5, 4, 2, 1"),
            ("subchannels", "64", "to 63"),
            ("offload", "lso5", "lso5"),
            ("send-section", "1000", "multiple of 8"),
            ("send-table", "x", "wrong-offset"),
            ("instance", "x", "not a GUID"),
            ("colour", "blue", "expected backend="),
        ] {
            let error = parse("net0", &[(key, value)]).expect_err("refused");
            assert!(error.contains(part), "{key}={value}: {error}");
        }
        for name in ["net", "net8", "net10", "nets", "scsi0"] {
            assert!(NicConfig::named(name).is_none(), "{name}");
        }
    }
}
