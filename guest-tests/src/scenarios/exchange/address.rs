// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The host sets the guest's addresses, as at failover: what both daemons hand to a distribution's `hv_set_ifconfig`, and what
//! becomes of it.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};
use hvctl::{IpSettings, KvpOp};

use super::{config, guest, installed, kvp, status_is, Daemons, Running, FAIL, NO_ADAPTER};
use crate::net::{Backend, Nic};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::network::interface;
use crate::vm::{Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    Scenario::both(
        "set-ip",
        "addresses set by the host: hv_set_ifconfig gets the same files from both daemons, and the interface what they say",
        set_ip,
    )
    .into()
}

/// A distribution's script: keeps both files, and sets what the first says.
const SCRIPT: &str = r#"#!/bin/sh
set -e
test $# = 2
mkdir -p /run/set
cp "$1" /run/set/ifcfg
cp "$2" /run/set/keyfile
. "$1"
ip address flush dev "$DEVICE" scope global
ip link set "$DEVICE" up
[ "$BOOTPROTO" != dhcp ] || exit 0
[ -z "$IPADDR0" ] || ip address add "$IPADDR0/$NETMASK0" dev "$DEVICE"
[ -z "$IPADDR1" ] || ip address add "$IPADDR1/$NETMASK1" dev "$DEVICE"
[ -z "$IPV6ADDR" ] || ip address add "$IPV6ADDR/$IPV6NETMASK" dev "$DEVICE" nodad
[ -z "$GATEWAY" ] || ip route replace default via "$GATEWAY" dev "$DEVICE"
"#;

/// Settings in turn: name, settings, addresses that the interface has then.
fn turns(adapter: &str) -> Vec<(&'static str, IpSettings, &'static [&'static str])> {
    let base = IpSettings {
        adapter: adapter.into(),
        family: 1,
        ..IpSettings::default()
    };
    vec![
        (
            "one",
            IpSettings {
                addresses: "192.0.2.5".into(),
                subnets: "255.255.255.0".into(),
                gateways: "192.0.2.1".into(),
                dns: "192.0.2.53".into(),
                ..base.clone()
            },
            &["192.0.2.5/24"],
        ),
        (
            "many",
            IpSettings {
                family: 3,
                addresses: "192.0.2.6;198.51.100.7;2001:db8::6".into(),
                subnets: "255.255.255.0;255.255.254.0;64".into(),
                gateways: "192.0.2.1;2001:db8::1".into(),
                dns: "192.0.2.53;2001:db8::53".into(),
                ..base.clone()
            },
            &["192.0.2.6/24", "198.51.100.7/23", "2001:db8::6/64"],
        ),
        ("dhcp", IpSettings { dhcp: true, ..base }, &[]),
    ]
}

/// Lines of a file without the order in which sections or keys come.
fn lines(text: &str) -> Vec<String> {
    let mut section = "";
    let mut all = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if line.starts_with('[') {
            section = line;
        } else {
            all.push(format!("{section}{line}"));
        }
    }
    all.sort();
    all
}

fn global(vm: &Vm, interface: &str) -> Result<Vec<String>> {
    let text = vm.sh(&format!(
        "chroot /debian ip -o address show dev {interface} scope global"
    ))?;
    let mut all: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
        .collect();
    all.sort();
    Ok(all)
}

fn set_ip(ctx: &Ctx) -> Result<()> {
    let config = config(ctx).nic(Nic::new(Backend::None));
    guest(ctx, config, |vm| {
        installed(vm, Daemons::Debian)?;
        let interface = interface(vm, "net0")?;
        let guid = vm.read(&format!("/sys/class/net/{interface}/device/device_id"))?;
        let mac = vm
            .read(&format!("/sys/class/net/{interface}/address"))?
            .to_uppercase();
        vm.write("/run/hv_set_ifconfig", SCRIPT)?;
        vm.sh(
            "chmod 755 /run/hv_set_ifconfig; d=/debian/usr/libexec/hypervkvpd; mkdir /run/scripts; \
             cp $d/* /run/scripts/; cp /run/hv_set_ifconfig /run/scripts/; mount --bind /run/scripts $d",
        )?;
        let mut files: BTreeMap<(&str, &str), Vec<Vec<String>>> = BTreeMap::new();
        for daemons in Daemons::ALL {
            let daemon = Running::start(vm, &daemons.command("kvp"))?;
            vm.host().wait_negotiated("kvp", SOON)?;
            for (name, settings, addresses) in turns(&guid) {
                let what = format!("{daemons:?} {name}");
                vm.sh("rm -rf /run/set")?;
                let reply = kvp(vm, KvpOp::SetIp(settings)).context(what.clone())?;
                status_is(&what, reply.status, 0)?;
                for file in ["ifcfg", "keyfile"] {
                    let text = vm.sh(&format!("cat /run/set/{file}"))?;
                    files.entry((name, file)).or_default().push(lines(&text));
                }
                equal(
                    &what,
                    global(vm, &interface)?,
                    addresses.to_vec().iter().map(|a| (*a).to_owned()).collect(),
                )?;
                // What was set is told.
                let get = KvpOp::GetIp {
                    adapter: mac.clone(),
                    family: 0,
                };
                let reply = kvp(vm, get).context(what.clone())?;
                status_is(&what, reply.status, 0)?;
                let told = reply.ip.context("no settings in the answer")?;
                for address in addresses {
                    let bare = address.split('/').next().unwrap_or_default();
                    ensure!(
                        told.addresses.split(';').any(|a| a == bare),
                        "{what}: {bare} is not in {told:?}"
                    );
                }
            }
            // A script that fails is an error for the host, and what is no address never reaches one.
            vm.sh("rm -rf /run/set")?;
            let mut bad = turns(&guid).remove(0).1;
            bad.addresses = "192.0.2.5$(reboot)".into();
            if daemons == Daemons::Ours {
                let reply = kvp(vm, KvpOp::SetIp(bad.clone()))?;
                ensure!(reply.status != 0, "no address was accepted");
                equal(
                    "script run",
                    vm.sh("ls -d /run/set 2>/dev/null || :")?.as_str(),
                    "",
                )?;
            }
            bad = turns(&guid).remove(0).1;
            bad.adapter = "{00000000-1111-2222-3333-444444444444}".into();
            let reply = kvp(vm, KvpOp::SetIp(bad.clone()))?;
            status_is("unknown adapter", reply.status, NO_ADAPTER)?;
            vm.sh("mv /run/scripts/hv_set_ifconfig /run/scripts/away; printf '#!/bin/sh\\nexit 3\\n' >/run/scripts/hv_set_ifconfig; chmod 755 /run/scripts/hv_set_ifconfig")?;
            bad.adapter = guid.clone();
            let reply = kvp(vm, KvpOp::SetIp(bad))?;
            status_is("script that fails", reply.status, FAIL)?;
            vm.sh("mv /run/scripts/away /run/scripts/hv_set_ifconfig")?;
            daemon.kill()?;
        }
        for ((name, file), both) in files {
            let [ours, debian] = &both[..] else {
                anyhow::bail!("{name}: {} daemons", both.len())
            };
            equal(
                &format!("{file} of {name}, ours beside Debian's"),
                ours,
                debian,
            )?;
        }
        Ok(())
    })
}
