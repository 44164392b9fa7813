// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A file of our own for systemd-networkd (systemd.network(5)), sorted before those of netplan and of administrators' habit.

use std::fmt::Write;
use std::path::Path;

use super::plan::command;
use super::{Change, Config, Interface, Plan};

/// Where D-Bus is, if it is. networkctl(1) has its orders carried out by it.
const BUS: &str = "run/dbus/system_bus_socket";

pub(super) fn plan(root: &Path, interface: &Interface, config: &Config) -> Plan {
    let name = &interface.name;
    let after = if root.join(BUS).exists() {
        vec![
            command(&["networkctl", "reload"]),
            command(&["networkctl", "reconfigure", name]),
        ]
    } else {
        // A small system may be without. systemctl(1) has a way of its own to systemd. Not reload: before systemd 254 that is networkctl.
        vec![command(&[
            "systemctl",
            "restart",
            "systemd-networkd.service",
        ])]
    };
    Plan {
        changes: vec![Change {
            path: format!("/etc/systemd/network/05-hyperv-{name}.network").into(),
            mode: 0o644,
            contents: file(interface, config),
        }],
        after,
        ..Plan::default()
    }
}

fn file(interface: &Interface, config: &Config) -> String {
    let mut text = String::from(
        "# Written by hv-kvp-daemon as the Hyper-V host asked; replaced at its next request.\n",
    );
    // By name, too: a virtual function has the same address.
    let _ = writeln!(
        text,
        "[Match]\nName={}\nMACAddress={}",
        interface.name, interface.mac
    );
    let dhcp = if config.dhcp { "ipv4" } else { "no" };
    let _ = writeln!(text, "\n[Network]\nDHCP={dhcp}");
    if config.addresses(true).next().is_some() {
        text += "IPv6AcceptRA=no\n";
    }
    for (address, prefix) in &config.addresses {
        let _ = writeln!(text, "Address={address}/{prefix}");
    }
    for dns in &config.dns {
        let _ = writeln!(text, "DNS={dns}");
    }
    for v6 in [false, true] {
        for (i, gateway) in config.gateways(v6).enumerate() {
            let _ = writeln!(text, "\n[Route]\nGateway={gateway}\nMetric={}", 100 + i);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::managers::tests::eth0;
    use super::*;

    #[test]
    fn the_bus_decides() {
        let root = tempfile::tempdir().unwrap();
        let commands = || plan(root.path(), &eth0(), &Config::default()).after;
        assert_eq!(
            commands(),
            [["systemctl", "restart", "systemd-networkd.service"]]
        );
        std::fs::create_dir_all(root.path().join("run/dbus")).unwrap();
        std::fs::write(root.path().join(BUS), "").unwrap();
        assert_eq!(
            commands(),
            [
                command(&["networkctl", "reload"]),
                command(&["networkctl", "reconfigure", "eth0"])
            ]
        );
    }

    #[test]
    fn both_families() {
        let config = Config {
            dhcp: false,
            addresses: vec![
                ("10.0.0.5".parse().unwrap(), 24),
                ("fd00::5".parse().unwrap(), 64),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            dns: vec!["1.1.1.1".parse().unwrap()],
        };
        let text = file(&eth0(), &config);
        assert!(text.ends_with(
            "[Match]\nName=eth0\nMACAddress=00:15:5D:00:00:0A\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n\
             Address=10.0.0.5/24\nAddress=fd00::5/64\nDNS=1.1.1.1\n\n[Route]\nGateway=10.0.0.1\nMetric=100\n\
             \n[Route]\nGateway=fd00::1\nMetric=100\n"
        ), "{text}");
        let dhcp = Config {
            dhcp: true,
            ..Config::default()
        };
        assert!(file(&eth0(), &dhcp).ends_with("[Network]\nDHCP=ipv4\n"));
    }
}
