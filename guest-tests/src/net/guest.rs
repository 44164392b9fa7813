// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Inside the guest.

use anyhow::{ensure, Result};

use crate::vm::{describe, Vm, SOON};

/// What udhcpc calls: sets what it was given.
const DHCP_SCRIPT: &str = "#!/bin/sh
[ \"$1\" = bound ] || [ \"$1\" = renew ] || exit 0
ip addr add $ip/$mask dev $interface
for router in $router; do ip route add default via $router; done
for server in $dns; do echo nameserver $server; done > /etc/resolv.conf
";

/// Sets an interface up and gets it an address by DHCP: by udhcpc in the initramfs, by dhcpcd in Debian. The address, with its
/// length.
///
/// # Errors
/// The client's words.
pub fn dhcp(vm: &Vm, name: &str) -> Result<String> {
    let client = if vm.config.root.is_some() {
        format!("dhcpcd --waitip 4 {name}")
    } else {
        vm.write("/tmp/dhcp", DHCP_SCRIPT)?;
        format!(
            "chmod 755 /tmp/dhcp && ip link set {name} up && udhcpc -i {name} -f -n -q -t 30 -T 1 -s /tmp/dhcp"
        )
    };
    let out = vm.run(&client, SOON * 2)?;
    ensure!(out.rc == Some(0), "DHCP on {name}: {}", describe(&out));
    let shown = vm.sh(&format!(
        "ip -4 -o addr show dev {name} | awk '{{ print $4 }}'"
    ))?;
    Ok(shown.trim().to_owned())
}
