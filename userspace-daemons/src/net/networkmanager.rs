// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A profile of our own for NetworkManager (nm-settings-keyfile(5)), preferred to others of the interface.

use std::fmt::Write;

use super::plan::program;
use super::{Change, Config, Interface, Plan};

/// Profiles of the interface that others made stay, with less priority (999 is the highest).
const PRIORITY: u32 = 999;

pub(super) fn plan(interface: &Interface, config: &Config) -> Plan {
    let name = &interface.name;
    let id = format!("hyperv-{name}");
    let path = format!("/etc/NetworkManager/system-connections/{id}.nmconnection");
    Plan {
        after: vec![
            program(&["nmcli", "connection", "load", &path]),
            program(&["nmcli", "connection", "up", "id", &id, "ifname", name]),
        ],
        changes: vec![Change {
            path: path.into(),
            // NetworkManager ignores profiles that others can read.
            mode: 0o600,
            contents: keyfile(&id, interface, config),
        }],
        ..Plan::default()
    }
}

fn keyfile(id: &str, interface: &Interface, config: &Config) -> String {
    let mut text = String::from(
        "# Written by hv-kvp-daemon as the Hyper-V host asked; replaced at its next request.\n",
    );
    text += &format!("[connection]\nid={id}\n");
    if let Some(guid) = &interface.guid {
        // The adapter's own number: the same profile at each request.
        text += &format!("uuid={guid}\n");
    }
    text += &format!(
        "type=ethernet\ninterface-name={}\nautoconnect=true\nautoconnect-priority={PRIORITY}\n",
        interface.name
    );
    text += &format!("\n[ethernet]\nmac-address={}\n", interface.mac);
    for v6 in [false, true] {
        let has_addresses = config.addresses(v6).next().is_some();
        let method = match (v6, has_addresses) {
            (false, _) if config.dhcp => "auto",
            (_, true) => "manual",
            (false, false) => "disabled",
            // The host's DHCP flag is IPv4's; router advertisements stay allowed.
            (true, false) => "auto",
        };
        text += &format!(
            "\n[{}]\nmethod={method}\n",
            if v6 { "ipv6" } else { "ipv4" }
        );
        for (i, (address, prefix)) in config.addresses(v6).enumerate() {
            let _ = writeln!(text, "address{}={address}/{prefix}", i + 1);
        }
        let any = if v6 { "::/0" } else { "0.0.0.0/0" };
        for (i, gateway) in config.gateways(v6).enumerate() {
            match i {
                // A static address has the first gateway for its own; with DHCP it has to be a route.
                0 if method == "manual" => _ = writeln!(text, "gateway={gateway}"),
                _ => _ = writeln!(text, "route{}={any},{gateway},{}", i + 1, 100 + i),
            }
        }
        let dns: Vec<String> = config.dns(v6).map(|a| a.to_string()).collect();
        if !dns.is_empty() && method != "disabled" {
            let _ = writeln!(text, "dns={};", dns.join(";"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::managers::tests::eth0;
    use super::*;

    #[test]
    fn static_and_dhcp() {
        let config = Config {
            dhcp: false,
            addresses: vec![
                ("10.0.0.5".parse().unwrap(), 24),
                ("10.0.1.5".parse().unwrap(), 16),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()],
            dns: vec!["1.1.1.1".parse().unwrap(), "9.9.9.9".parse().unwrap()],
        };
        let plan = plan(&eth0(), &config);
        let text = &plan.changes[0].contents;
        assert!(text.contains(
            "[ipv4]\nmethod=manual\naddress1=10.0.0.5/24\naddress2=10.0.1.5/16\ngateway=10.0.0.1\n\
             route2=0.0.0.0/0,10.0.0.2,101\ndns=1.1.1.1;9.9.9.9;\n\n[ipv6]\nmethod=auto\n"
        ), "{text}");
        assert!(text.contains("uuid=f8615163-0001-1000-2000-00155d00000a"));
        let text = keyfile(
            "x",
            &eth0(),
            &Config {
                dhcp: true,
                ..Config::default()
            },
        );
        assert!(text.contains("[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\n"));
        let text = keyfile("x", &eth0(), &Config::default());
        assert!(text.contains("[ipv4]\nmethod=disabled\n"));
    }
}
