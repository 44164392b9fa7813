// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What addresses the guest has, from the kernel's own lists.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use log::debug;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, which needs no quoting in files or commands.
    pub name: String,
    /// The kernel's number.
    pub index: u32,
    /// MAC address in capitals, as the host writes it.
    pub mac: String,
    /// GUID of the VMBus device without braces, in small letters; none for a NIC of another bus.
    pub guid: Option<String>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network's part.
    pub prefix: u8,
}

impl Address {
    /// Its bit in `addr_family` of a message (`ADDR_FAMILY_IPV4`, `ADDR_FAMILY_IPV6`).
    #[must_use]
    pub fn family(&self) -> u8 {
        if self.ip.is_ipv4() {
            1
        } else {
            2
        }
    }

    /// The mask as the C daemon tells it: dotted for IPv4, `/64` for IPv6.
    #[must_use]
    pub fn mask(&self) -> String {
        match self.ip {
            IpAddr::V4(_) => {
                let bits = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix))
                    .unwrap_or(0);
                Ipv4Addr::from(bits).to_string()
            }
            IpAddr::V6(_) => format!("/{}", self.prefix),
        }
    }
}

/// All addresses of a family but the loopback's, separated by `;`.
#[must_use]
pub fn all_addresses(family: Family) -> String {
    let list: Vec<String> = addresses(None)
        .into_iter()
        .filter(|a| a.ip.is_ipv6() == (family == Family::V6))
        .map(|a| a.ip.to_string())
        .collect();
    list.join(";")
}

/// Addresses of one interface, or of all but the loopback.
#[must_use]
pub fn addresses(interface: Option<&str>) -> Vec<Address> {
    let all = match getifaddrs() {
        Ok(all) => all,
        Err(error) => {
            debug!("getifaddrs: {error}");
            return Vec::new();
        }
    };
    all.filter(|entry| !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter(|entry| {
            // An alias ("eth0:1") is an address of its interface.
            let name = entry.interface_name.split(':').next();
            interface.is_none() || name == interface
        })
        .filter_map(|entry| {
            let (address, mask) = (entry.address?, entry.netmask);
            if let Some(v4) = address.as_sockaddr_in() {
                let mask = mask
                    .as_ref()
                    .and_then(|m| m.as_sockaddr_in())
                    .map(|m| m.ip());
                return Some(Address {
                    ip: v4.ip().into(),
                    prefix: mask
                        .map_or(32, |m| u8::try_from(m.to_bits().count_ones()).unwrap_or(32)),
                });
            }
            let v6 = address.as_sockaddr_in6()?;
            let mask = mask
                .as_ref()
                .and_then(|m| m.as_sockaddr_in6())
                .map(|m| m.ip());
            Some(Address {
                ip: v6.ip().into(),
                prefix: mask.map_or(128, |m| {
                    u8::try_from(m.to_bits().count_ones()).unwrap_or(128)
                }),
            })
        })
        .collect()
}

/// All interfaces with a hardware address.
#[must_use]
pub fn interfaces(root: &Path) -> Vec<Interface> {
    let directory = root.join("sys/class/net");
    let mut list: Vec<Interface> = fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| interface(root, &entry.file_name().into_string().ok()?))
        .collect();
    list.sort_by_key(|i| i.index);
    list
}

/// The interface with `name`. None: there is none, or its name has characters that files and commands would trip over.
#[must_use]
pub fn interface(root: &Path, name: &str) -> Option<Interface> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if name.is_empty() || name.starts_with(['-', '.']) || !name.chars().all(plain) {
        return None;
    }
    let directory = root.join("sys/class/net").join(name);
    let read = |file: &str| {
        let text = fs::read_to_string(directory.join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    Some(Interface {
        name: name.to_owned(),
        index: read("ifindex")?.parse().ok()?,
        mac: read("address")?.to_ascii_uppercase(),
        guid: read("device/device_id").map(|id| bare(&id)),
    })
}

/// The interfaces of an adapter, which the host names by MAC address when it asks and by the VMBus device's GUID when it sets.
#[must_use]
pub fn by_adapter(root: &Path, adapter: &str) -> Vec<Interface> {
    let (mac, guid) = (adapter.trim().replace('-', ":"), bare(adapter));
    interfaces(root)
        .into_iter()
        .filter(|i| i.mac.eq_ignore_ascii_case(&mac) || i.guid.as_ref() == Some(&guid))
        .collect()
}

/// A GUID without braces, in small letters.
fn bare(guid: &str) -> String {
    guid.trim()
        .trim_start_matches('{')
        .trim_end_matches('}')
        .to_ascii_lowercase()
}

/// Default gateways of an interface, from the main routing tables. Of an IPv4 route with several next hops the kernel lists
/// the first there.
#[must_use]
pub fn gateways(root: &Path, interface: &str) -> Vec<String> {
    let mut found: Vec<(u32, IpAddr)> = Vec::new();
    if let Ok(text) = fs::read_to_string(root.join("proc/net/route")) {
        found.extend(text.lines().filter_map(|line| gateway_v4(line, interface)));
    }
    if let Ok(text) = fs::read_to_string(root.join("proc/net/ipv6_route")) {
        found.extend(text.lines().filter_map(|line| gateway_v6(line, interface)));
    }
    // IPv4 first, then by metric.
    found.sort_by_key(|(metric, ip)| (ip.is_ipv6(), *metric));
    let mut list: Vec<String> = found.into_iter().map(|(_, ip)| ip.to_string()).collect();
    list.dedup();
    list
}

/// `RTF_GATEWAY` of linux/route.h.
const GATEWAY: u32 = 2;

/// A line of `/proc/net/route`: Iface Destination Gateway Flags RefCnt Use Metric Mask …
fn gateway_v4(line: &str, interface: &str) -> Option<(u32, IpAddr)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let hex = |i: usize| u32::from_str_radix(fields.get(i)?, 16).ok();
    let default = hex(1)? == 0 && hex(7)? == 0 && hex(3)? & GATEWAY != 0;
    if *fields.first()? != interface || !default {
        return None;
    }
    // The bytes of an address in memory, printed as one number.
    let ip = Ipv4Addr::from(hex(2)?.to_ne_bytes());
    Some((fields.get(6)?.parse().ok()?, ip.into()))
}

/// A line of `/proc/net/ipv6_route`: destination, its prefix, source, its prefix, gateway, metric, references, use, flags, name.
fn gateway_v6(line: &str, interface: &str) -> Option<(u32, IpAddr)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let hex = |i: usize| u128::from_str_radix(fields.get(i)?, 16).ok();
    let default = hex(0)? == 0 && hex(1)? == 0 && hex(8)? & u128::from(GATEWAY) != 0;
    if *fields.get(9)? != interface || !default {
        return None;
    }
    let ip = Ipv6Addr::from(hex(4)?);
    Some((u32::try_from(hex(5)?).ok()?, ip.into()))
}

/// Name servers in use. Where resolv.conf(5) names a stub on this machine, those behind it.
#[must_use]
pub fn name_servers(root: &Path) -> Vec<String> {
    let mut best = Vec::new();
    for file in [
        "etc/resolv.conf",
        "run/systemd/resolve/resolv.conf",
        "run/NetworkManager/no-stub-resolv.conf",
        "run/NetworkManager/resolv.conf",
    ] {
        let Ok(text) = fs::read_to_string(root.join(file)) else {
            continue;
        };
        let servers: Vec<IpAddr> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nameserver"))
            .filter_map(|rest| {
                rest.split_whitespace()
                    .next()?
                    .split('%')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        let local = servers.iter().all(IpAddr::is_loopback);
        if best.is_empty() || !local {
            best = servers.iter().map(ToString::to_string).collect();
        }
        if !best.is_empty() && !local {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks() {
        let v4 = |prefix| Address {
            ip: Ipv4Addr::LOCALHOST.into(),
            prefix,
        };
        assert_eq!(v4(24).mask(), "255.255.255.0");
        assert_eq!(v4(32).mask(), "255.255.255.255");
        assert_eq!(v4(0).mask(), "0.0.0.0");
        let v6 = Address {
            ip: Ipv6Addr::LOCALHOST.into(),
            prefix: 64,
        };
        assert_eq!(v6.mask(), "/64");
    }

    #[test]
    fn default_gateways_of_the_interface_only() {
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("proc/net");
        fs::create_dir_all(&net).unwrap();
        fs::write(
            net.join("route"),
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
             eth0\t00000000\t0202000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
             eth0\t00000000\t0102000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth1\t00000000\t0103000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t0002000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n",
        )
        .unwrap();
        fs::write(
            net.join("ipv6_route"),
            "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n\
             00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo\n",
        )
        .unwrap();
        assert_eq!(
            gateways(root.path(), "eth0"),
            ["10.0.2.1", "10.0.2.2", "fe80::1"]
        );
        assert_eq!(gateways(root.path(), "eth"), [""; 0]);
    }

    #[test]
    fn servers_behind_a_local_stub() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["etc", "run/systemd/resolve"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let conf = root.path().join("etc/resolv.conf");
        fs::write(&conf, "nameserver 127.0.0.53\n").unwrap();
        assert_eq!(name_servers(root.path()), ["127.0.0.53"]);
        fs::write(
            root.path().join("run/systemd/resolve/resolv.conf"),
            "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver bad\n",
        )
        .unwrap();
        assert_eq!(name_servers(root.path()), ["192.0.2.1", "fe80::1"]);
        fs::write(&conf, "search x\nnameserver\t192.0.2.9\n").unwrap();
        assert_eq!(name_servers(root.path()), ["192.0.2.9"]);
    }

    #[test]
    fn adapters_by_mac_and_guid() {
        let root = tempfile::tempdir().unwrap();
        for (name, index, guid) in [("eth0", 2, true), ("enP1", 3, false), ("br'0", 4, false)] {
            let directory = root.path().join("sys/class/net").join(name);
            fs::create_dir_all(directory.join("device")).unwrap();
            fs::write(directory.join("ifindex"), format!("{index}\n")).unwrap();
            fs::write(directory.join("address"), "00:15:5d:00:00:0a\n").unwrap();
            if guid {
                fs::write(
                    directory.join("device/device_id"),
                    "{f8615163-0001-1000-2000-00155d00000a}\n",
                )
                .unwrap();
            }
        }
        let names = |adapter: &str| -> Vec<String> {
            by_adapter(root.path(), adapter)
                .into_iter()
                .map(|i| i.name)
                .collect()
        };
        assert_eq!(names("00:15:5D:00:00:0A"), ["eth0", "enP1"]);
        assert_eq!(names("00-15-5d-00-00-0a"), ["eth0", "enP1"]);
        assert_eq!(names("{F8615163-0001-1000-2000-00155D00000A}"), ["eth0"]);
        assert_eq!(names("f8615163-0001-1000-2000-00155d00000a"), ["eth0"]);
        assert_eq!(names(""), [""; 0]);
        assert_eq!(names("../../etc"), [""; 0]);
    }

    proptest! {
        #[test]
        fn lines_of_any_form(line in ".{0,80}") {
            let _ = gateway_v4(&line, "eth0");
            let _ = gateway_v6(&line, "eth0");
        }
    }
}
