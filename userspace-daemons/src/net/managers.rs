// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Who manages an interface, and whether by DHCP. Read from files that the managers leave in `/run` and `/etc`, so that a
//! question of the host costs no process.

use std::fs;
use std::path::{Path, PathBuf};

use super::Interface;

/// What configures interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// NetworkManager.
    NetworkManager,
    /// systemd-networkd.
    Networkd,
    /// ifupdown (`/etc/network/interfaces`).
    Ifupdown,
}

/// The manager of an interface: who has it now, else who runs at all.
#[must_use]
pub fn of(root: &Path, interface: &Interface) -> Option<Manager> {
    let has = |file: &str| root.join(file).exists();
    if nm_device(root, interface).is_some_and(|d| value(&d, "device", "managed") != Some("false")) {
        return Some(Manager::NetworkManager);
    }
    if networkd_state(root, interface).is_some_and(|s| s != "unmanaged") {
        return Some(Manager::Networkd);
    }
    if logical_name(root, &interface.name).is_some()
        || stanzas(root).iter().any(|s| s.interface == interface.name)
    {
        return Some(Manager::Ifupdown);
    }
    if has("run/NetworkManager/devices") {
        Some(Manager::NetworkManager)
    } else if has("run/systemd/netif/links") {
        Some(Manager::Networkd)
    } else if has("sbin/ifup") || has("usr/sbin/ifup") {
        Some(Manager::Ifupdown)
    } else {
        None
    }
}

/// Whether IPv4 of the interface is configured by DHCP.
#[must_use]
pub fn uses_dhcp(root: &Path, interface: &Interface) -> bool {
    let has = |file: String| root.join(file).exists();
    match of(root, interface) {
        Some(Manager::NetworkManager) => {
            return nm_device(root, interface)
                .and_then(|d| value(&d, "device", "connection-uuid").map(str::to_owned))
                .and_then(|uuid| nm_connection(root, &uuid))
                // Without a file of its own it is a connection that NetworkManager made up, which uses DHCP.
                .is_none_or(|c| value(&c, "ipv4", "method").unwrap_or("auto") == "auto");
        }
        // networkd keeps a lease while its DHCPv4 client has one.
        Some(Manager::Networkd) => {
            return has(format!("run/systemd/netif/leases/{}", interface.index))
        }
        Some(Manager::Ifupdown) => {
            let name = logical_name(root, &interface.name).unwrap_or(interface.name.clone());
            if let Some(stanza) = stanzas(root)
                .iter()
                .find(|s| s.interface == name && s.family == "inet")
            {
                return stanza.method == "dhcp";
            }
        }
        None => {}
    }
    if let Ok(text) = fs::read_to_string(
        root.join("etc/sysconfig/network-scripts/ifcfg-".to_owned() + &interface.name),
    ) {
        return text.to_ascii_lowercase().contains("dhcp");
    }
    // A client on its own.
    let name = &interface.name;
    has(format!("run/dhcpcd/{name}-4.pid"))
        || has(format!("run/dhcpcd/{name}.pid"))
        || has(format!("run/dhclient.{name}.pid"))
        || has(format!("run/dhclient-{name}.pid"))
        || has(format!("run/udhcpc.{name}.pid"))
}

/// Value of `key` in `[section]` of an INI file.
fn value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            inside = name.strip_suffix(']') == Some(section);
        } else if inside {
            match line.split_once('=') {
                Some((k, v)) if k.trim() == key => return Some(v.trim()),
                _ => {}
            }
        }
    }
    None
}

/// NetworkManager's file about a device that it knows.
fn nm_device(root: &Path, interface: &Interface) -> Option<String> {
    fs::read_to_string(root.join(format!("run/NetworkManager/devices/{}", interface.index))).ok()
}

/// The profile with `uuid`.
fn nm_connection(root: &Path, uuid: &str) -> Option<String> {
    [
        "etc/NetworkManager/system-connections",
        "run/NetworkManager/system-connections",
        "usr/lib/NetworkManager/system-connections",
    ]
    .iter()
    .flat_map(|directory| files_in(&root.join(directory)))
    .filter_map(|path| fs::read_to_string(path).ok())
    .find(|text| value(text, "connection", "uuid") == Some(uuid))
}

/// `ADMIN_STATE` of networkd's file about a link.
fn networkd_state(root: &Path, interface: &Interface) -> Option<String> {
    let path = format!("run/systemd/netif/links/{}", interface.index);
    let text = fs::read_to_string(root.join(path)).ok()?;
    let state = text.lines().find_map(|l| l.strip_prefix("ADMIN_STATE="))?;
    Some(state.to_owned())
}

/// The configuration that ifupdown has applied to an interface (ifup's `-o`/`=`).
pub(super) fn logical_name(root: &Path, interface: &str) -> Option<String> {
    let text = [
        format!("run/network/ifstate.{interface}"),
        "run/network/ifstate".into(),
    ]
    .iter()
    .filter_map(|file| fs::read_to_string(root.join(file)).ok())
    .collect::<Vec<_>>()
    .join("\n");
    text.lines().find_map(|line| {
        let (physical, logical) = line.trim().split_once('=')?;
        (physical == interface && !logical.is_empty()).then(|| logical.to_owned())
    })
}

/// An `iface` stanza of interfaces(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stanza {
    /// Where it is.
    pub file: PathBuf,
    /// Logical interface.
    pub interface: String,
    /// `inet`, `inet6`, …
    pub family: String,
    /// `static`, `dhcp`, …
    pub method: String,
}

/// All `iface` stanzas.
pub(super) fn stanzas(root: &Path) -> Vec<Stanza> {
    let mut list = Vec::new();
    for path in interfaces_files(root) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("iface") {
                if let (Some(interface), Some(family), Some(method)) =
                    (words.next(), words.next(), words.next())
                {
                    list.push(Stanza {
                        file: path.clone(),
                        interface: interface.into(),
                        family: family.into(),
                        method: method.into(),
                    });
                }
            }
        }
    }
    list
}

/// `/etc/network/interfaces` and what it sources.
pub(super) fn interfaces_files(root: &Path) -> Vec<PathBuf> {
    let main = root.join("etc/network/interfaces");
    let text = fs::read_to_string(&main).unwrap_or_default();
    let mut list = vec![main];
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let directory = match (words.next(), words.next()) {
            (Some("source" | "source-directory"), Some(pattern)) => {
                // A pattern's last part is `*` in practice; other patterns are taken to mean the same.
                let pattern = Path::new("/etc/network").join(pattern);
                let path = pattern.strip_prefix("/").unwrap_or(&pattern).to_owned();
                let has_glob = path.to_string_lossy().contains(['*', '?', '[']);
                match has_glob {
                    true => path.parent().map(Path::to_owned),
                    false => Some(path),
                }
            }
            _ => None,
        };
        if let Some(path) = directory.map(|d| root.join(d)) {
            if path.is_dir() {
                list.extend(files_in(&path));
            } else {
                list.push(path);
            }
        }
    }
    list
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    list.sort();
    list
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn eth0() -> Interface {
        Interface {
            name: "eth0".into(),
            index: 2,
            mac: "00:15:5D:00:00:0A".into(),
            guid: Some("f8615163-0001-1000-2000-00155d00000a".into()),
        }
    }

    pub fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn network_manager() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(
            root,
            "run/NetworkManager/devices/2",
            "[device]\nmanaged=true\nconnection-uuid=u1\n",
        );
        assert_eq!(of(root, &eth0()), Some(Manager::NetworkManager));
        assert!(uses_dhcp(root, &eth0()));
        write(
            root,
            "etc/NetworkManager/system-connections/a.nmconnection",
            "[connection]\nuuid=u1\n[ipv6]\nmethod=auto\n[ipv4]\nmethod=manual\n",
        );
        assert!(!uses_dhcp(root, &eth0()));
        write(
            root,
            "run/NetworkManager/devices/2",
            "[device]\nmanaged=false\n",
        );
        write(
            root,
            "run/systemd/netif/links/2",
            "ADMIN_STATE=configured\n",
        );
        assert_eq!(of(root, &eth0()), Some(Manager::Networkd));
    }

    #[test]
    fn networkd() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(of(root, &eth0()), None);
        write(
            root,
            "run/systemd/netif/links/2",
            "# x\nADMIN_STATE=configured\n",
        );
        assert_eq!(of(root, &eth0()), Some(Manager::Networkd));
        assert!(!uses_dhcp(root, &eth0()));
        write(root, "run/systemd/netif/leases/2", "ADDRESS=10.0.0.5\n");
        assert!(uses_dhcp(root, &eth0()));
    }

    #[test]
    fn ifupdown() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(
            root,
            "etc/network/interfaces",
            "source /etc/network/interfaces.d/*\nauto lo\n",
        );
        write(
            root,
            "etc/network/interfaces.d/eth0",
            "auto eth0\niface eth0 inet dhcp\n",
        );
        // The links of a networkd that manages nothing here do not count.
        write(root, "run/systemd/netif/links/2", "ADMIN_STATE=unmanaged\n");
        assert_eq!(of(root, &eth0()), Some(Manager::Ifupdown));
        assert!(uses_dhcp(root, &eth0()));
        write(
            root,
            "etc/network/interfaces.d/x",
            "iface work inet static\n",
        );
        write(root, "run/network/ifstate.eth0", "eth0=work\n");
        assert!(!uses_dhcp(root, &eth0()));
    }
}
