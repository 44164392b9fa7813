// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A file of our own for ifupdown (interfaces(5)).
//!
//! Other files may already say how the interface is configured, and ifupdown would do both. So ours is a logical interface, with a
//! mapping that makes ifup choose it: the physical interface's other stanzas are then not looked at, and stay as they are.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::plan::Program;
use super::{managers, Change, Config, Interface, Plan, SetError};

pub(super) fn plan(root: &Path, interface: &Interface, config: &Config) -> Result<Plan, SetError> {
    let name = &interface.name;
    let path = PathBuf::from(format!("/etc/network/interfaces.d/hyperv-{name}"));
    let files = managers::interfaces_files(root);
    check_sourced(root)?;
    let ours = root.join(path.strip_prefix("/").unwrap_or(&path));
    if let Some(other) = files
        .iter()
        .filter(|&f| *f != ours)
        .find(|&f| maps(f, name))
    {
        let text = format!("{} has a mapping for {name}; remove it", other.display());
        return Err(SetError::Unmanaged(text));
    }
    let run = |program: &str| Program {
        words: vec![program.into(), "--force".into(), name.clone()],
        // For a DHCP client that ifup starts.
        apart: root.join("run/systemd/system").exists(),
    };
    let mut plan = Plan {
        before: vec![run("ifdown")],
        changes: vec![Change {
            path,
            mode: 0o644,
            contents: file(interface, config),
        }],
        after: vec![run("ifup")],
        ..Plan::default()
    };
    let resolvconf = [
        "sbin/resolvconf",
        "usr/sbin/resolvconf",
        "usr/bin/resolvconf",
    ];
    if !config.dns.is_empty() && !resolvconf.iter().any(|file| root.join(file).exists()) {
        plan.warnings
            .push("no resolvconf is installed: name servers will not be used".into());
    }
    Ok(plan)
}

/// Whether `/etc/network/interfaces` reads our directory.
fn check_sourced(root: &Path) -> Result<(), SetError> {
    let text = fs::read_to_string(root.join("etc/network/interfaces")).unwrap_or_default();
    let sourced = text.lines().any(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("source" | "source-directory"))
            && words.next().is_some_and(|w| w.contains("interfaces.d"))
    });
    if sourced {
        return Ok(());
    }
    Err(SetError::Unmanaged(
        "/etc/network/interfaces does not read interfaces.d; add the line `source /etc/network/interfaces.d/*`".into(),
    ))
}

/// Whether a file has a mapping for the interface.
fn maps(file: &Path, interface: &str) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("mapping") && words.any(|word| word == interface)
    })
}

fn file(interface: &Interface, config: &Config) -> String {
    let name = &interface.name;
    let logical = format!("hyperv-{name}");
    let mut text = String::from(
        "# Written by hv-kvp-daemon as the Hyper-V host asked; replaced at its next request.\n",
    );
    // ifup gives the script the interface's name and the `map` line: grep prints the line.
    let _ = writeln!(
        text,
        "auto {name}\nmapping {name}\n    script grep\n    map {logical}"
    );
    for v6 in [false, true] {
        let family = if v6 { "inet6" } else { "inet" };
        let addresses: Vec<_> = config.addresses(v6).collect();
        if !v6 && config.dhcp {
            let _ = writeln!(text, "\niface {logical} inet dhcp");
            for (address, prefix) in &addresses {
                let _ = writeln!(text, "    up ip addr add {address}/{prefix} dev {name}");
            }
        } else if addresses.is_empty() {
            let _ = writeln!(
                text,
                "\niface {logical} {family} {}",
                if v6 { "auto" } else { "manual" }
            );
        }
        if !(addresses.is_empty() || !v6 && config.dhcp) {
            for (i, (address, prefix)) in addresses.iter().enumerate() {
                let _ = writeln!(
                    text,
                    "\niface {logical} {family} static\n    address {address}/{prefix}"
                );
                if let (0, Some(gateway)) = (i, config.gateways(v6).next()) {
                    let _ = writeln!(text, "    gateway {gateway}");
                }
            }
        }
        let used = usize::from(!addresses.is_empty() && (v6 || !config.dhcp));
        for (i, gateway) in config.gateways(v6).enumerate().skip(used) {
            let version = if v6 { 6 } else { 4 };
            let _ = writeln!(
                text,
                "    up ip -{version} route add default via {gateway} dev {name} metric {}",
                100 + i
            );
        }
        let dns: Vec<String> = config.dns(v6).map(|a| a.to_string()).collect();
        if !dns.is_empty() {
            let _ = writeln!(text, "    dns-nameservers {}", dns.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::managers::tests::{eth0, write};
    use super::*;

    fn config() -> Config {
        Config {
            dhcp: false,
            addresses: vec![
                ("10.0.0.5".parse().unwrap(), 24),
                ("10.0.1.5".parse().unwrap(), 24),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            dns: vec!["1.1.1.1".parse().unwrap(), "fd00::53".parse().unwrap()],
        }
    }

    #[test]
    fn a_logical_interface_of_our_own() {
        let text = file(&eth0(), &config());
        assert!(text.ends_with(
            "auto eth0\nmapping eth0\n    script grep\n    map hyperv-eth0\n\
             \niface hyperv-eth0 inet static\n    address 10.0.0.5/24\n    gateway 10.0.0.1\n\
             \niface hyperv-eth0 inet static\n    address 10.0.1.5/24\n    dns-nameservers 1.1.1.1\n\
             \niface hyperv-eth0 inet6 auto\n    dns-nameservers fd00::53\n"
        ), "{text}");
        let dhcp = Config {
            dhcp: true,
            ..Config::default()
        };
        let text = file(&eth0(), &dhcp);
        assert!(text.contains("\niface hyperv-eth0 inet dhcp\n") && !text.contains("static"));
    }

    #[test]
    fn refused_where_it_would_have_no_effect() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "etc/network/interfaces", "iface eth0 inet dhcp\n");
        assert!(plan(root, &eth0(), &config()).is_err());
        write(
            root,
            "etc/network/interfaces",
            "source-directory interfaces.d\niface eth0 inet dhcp\n",
        );
        let made = plan(root, &eth0(), &config()).unwrap();
        assert_eq!(made.warnings.len(), 1);
        write(
            root,
            "etc/network/interfaces.d/hyperv-eth0",
            &made.changes[0].contents,
        );
        plan(root, &eth0(), &config()).unwrap();
        write(
            root,
            "etc/network/interfaces.d/roam",
            "mapping eth1 eth0\n script x\n",
        );
        assert!(plan(root, &eth0(), &config()).is_err());
    }
}
