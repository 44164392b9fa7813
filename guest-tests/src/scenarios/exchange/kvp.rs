// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Key-value pairs: every operation, with both stacks and both daemons.

use anyhow::{ensure, Context, Result};
use hvctl::{KvpKind, KvpOp, KvpPair, KvpPool};

use super::{
    config, debian, each_cell, guest, installed, kvp, status_is, with_devices, Daemons, Running,
    NO_ADAPTER, NO_MORE,
};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = each_cell("kvp", "every operation of key-value pairs", operations);
    all.extend(Scenario::both(
        "kvp-old",
        "hosts that speak key-value pairs up to 3.0 and 1.0",
        old_hosts,
    ));
    all
}

fn old_hosts(ctx: &Ctx) -> Result<()> {
    for (max, framework, agreed) in [("3.0", "3.0", "3.0/3.0"), ("1.0", "1.0", "1.0/1.0")] {
        let config = ctx.config_for(max, ctx.drivers);
        let config = with_devices(config, &format!("kvp:max={max}:framework={framework}"));
        guest(ctx, config, |vm| {
            let daemon = Running::serving(vm, "kvp")?;
            equal(
                "versions",
                vm.host().channel("kvp")?.agreed.as_deref(),
                Some(agreed),
            )?;
            let auto = enumerate(vm, KvpPool::Auto)?;
            let keys: Vec<_> = auto.iter().map(|pair| pair.key.as_str()).collect();
            equal("keys about the guest", keys, AUTO_KEYS.to_vec())?;
            set(vm, "key", "value", KvpKind::Text)?;
            let pairs = enumerate(vm, KvpPool::External)?;
            equal("key", value_of(&pairs, "key").as_deref(), Some("value"))?;
            status_is("delete", delete(vm, "key")?, 0)?;
            daemon.kill().map(drop)
        })?;
    }
    Ok(())
}

/// Keys that every guest tells (Linux: `enum hv_kvp_exchg_pool`'s table in `hyperv.h`).
const AUTO_KEYS: [&str; 10] = [
    "FullyQualifiedDomainName",
    "IntegrationServicesVersion",
    "NetworkAddressIPv4",
    "NetworkAddressIPv6",
    "OSBuildNumber",
    "OSName",
    "OSMajorVersion",
    "OSMinorVersion",
    "OSVersion",
    "ProcessorArchitecture",
];

fn enumerate(vm: &Vm, pool: KvpPool) -> Result<Vec<KvpPair>> {
    let reply = kvp(vm, KvpOp::Enumerate { pool, index: None })?;
    status_is("enumerate", reply.status, 0)?;
    Ok(reply.pairs)
}

fn value_of(pairs: &[KvpPair], key: &str) -> Option<String> {
    pairs
        .iter()
        .find(|pair| pair.key == key)
        .map(|pair| pair.value.clone())
}

fn set(vm: &Vm, key: &str, value: &str, kind: KvpKind) -> Result<()> {
    let reply = kvp(
        vm,
        KvpOp::Set {
            pool: KvpPool::External,
            key: key.into(),
            value: value.into(),
            kind,
        },
    )?;
    status_is(&format!("set {key}"), reply.status, 0)
}

fn delete(vm: &Vm, key: &str) -> Result<u32> {
    let pool = KvpPool::External;
    let key = key.to_owned();
    Ok(kvp(vm, KvpOp::Delete { pool, key })?.status)
}

fn operations(ctx: &Ctx, daemons: Daemons) -> Result<()> {
    guest(ctx, config(ctx), |vm| {
        installed(vm, daemons)?;
        let daemon = Running::start(vm, &daemons.command("kvp"))?;
        // The driver answers the negotiation when there is a daemon.
        vm.host().wait_negotiated("kvp", SOON)?;
        equal(
            "versions",
            vm.host().channel("kvp")?.agreed.as_deref(),
            Some("3.0/4.0"),
        )?;

        let auto = enumerate(vm, KvpPool::Auto)?;
        let keys: Vec<_> = auto.iter().map(|pair| pair.key.as_str()).collect();
        equal("keys about the guest", keys, AUTO_KEYS.to_vec())?;
        equal(
            "architecture",
            value_of(&auto, "ProcessorArchitecture").as_deref(),
            Some("x86_64"),
        )?;
        let name = value_of(&auto, "OSName").unwrap_or_default();
        ensure!(name.contains("Debian"), "OSName is {name:?}");

        // Written by the host: seen in the pool and in its file.
        set(vm, "Grüße", "ein Wert mit ü", KvpKind::Text)?;
        set(vm, "n32", "4294967295", KvpKind::U32)?;
        set(vm, "n64", "18446744073709551615", KvpKind::U64)?;
        let pairs = enumerate(vm, KvpPool::External)?;
        for (key, value) in [
            ("Grüße", "ein Wert mit ü"),
            ("n32", "4294967295"),
            ("n64", "18446744073709551615"),
        ] {
            equal(key, value_of(&pairs, key).as_deref(), Some(value))?;
        }
        let file = "/var/lib/hyperv/.kvp_pool_0";
        equal(
            "size and mode of the pool's file",
            debian(vm, &format!("stat -c '%s %a' {file}"))?.trim(),
            &format!("{} 644", 3 * 2560),
        )?;
        set(vm, "n32", "changed", KvpKind::Text)?;
        let pairs = enumerate(vm, KvpPool::External)?;
        equal("pairs after a change", pairs.len(), 3)?;
        equal("n32", value_of(&pairs, "n32").as_deref(), Some("changed"))?;

        let got = kvp(
            vm,
            KvpOp::Get {
                pool: KvpPool::External,
                key: "Grüße".into(),
            },
        )?;
        status_is("get", got.status, 0)?;
        // With both sides from C the value is lost: the driver gives the daemon no room for it.
        let lost = ctx.drivers == Drivers::C && daemons == Daemons::Debian;
        equal(
            "value got",
            got.value.as_deref(),
            Some(if lost { "" } else { "ein Wert mit ü" }),
        )?;

        status_is("delete", delete(vm, "n64")?, 0)?;
        equal("left", enumerate(vm, KvpPool::External)?.len(), 2)?;
        let status = delete(vm, "n64")?;
        status_is("delete what is not there", status, NO_MORE)?;

        // Written in the guest, in records of fixed size.
        let count = ctx.count(250, 60);
        debian(
            vm,
            &format!(
                "i=0; while [ $i -lt {count} ]; do printf 'key%03d' $i | dd bs=512 conv=sync status=none; \
                 printf 'value%03d' $i | dd bs=2048 conv=sync status=none; i=$((i+1)); done > /var/lib/hyperv/.kvp_pool_1"
            ),
        )?;
        let pairs = enumerate(vm, KvpPool::Guest)?;
        equal("records of the guest", pairs.len(), count)?;
        equal(
            "the last",
            value_of(&pairs, &format!("key{:03}", count - 1)),
            Some(format!("value{:03}", count - 1)),
        )?;

        // Network settings of an adapter, by its MAC address.
        vm.sh("modprobe dummy")?;
        debian(
            vm,
            "set -e; ip link set dummy0 address 02:15:5d:00:00:01; ip address add 10.9.8.7/24 dev dummy0; ip link set dummy0 up",
        )?;
        let reply = kvp(
            vm,
            KvpOp::GetIp {
                adapter: "02:15:5D:00:00:01".into(),
                family: 0,
            },
        )?;
        status_is("get-ip", reply.status, 0)?;
        let ip = reply.ip.context("no settings in the answer")?;
        ensure!(ip.addresses.contains("10.9.8.7"), "addresses: {ip:?}");
        let mut nobody = ip.clone();
        nobody.adapter = "{00000000-1111-2222-3333-444444444444}".into();
        nobody.family = 1;
        let reply = kvp(vm, KvpOp::SetIp(nobody))?;
        status_is("set-ip of an unknown adapter", reply.status, NO_ADAPTER)?;

        // One process at a time.
        let second = vm.run("cat /dev/vmbus/hv_kvp", SOON)?;
        ensure!(
            second.stderr.text().contains("busy"),
            "a second open: {}",
            crate::vm::describe(&second)
        );

        // A daemon that was killed: the next one goes on.
        daemon.kill()?;
        let daemon = Running::start(vm, &daemons.command("kvp"))?;
        equal(
            "keys of the next daemon",
            enumerate(vm, KvpPool::External)?.len(),
            2,
        )?;
        daemon.kill()?;
        ctx.figure(format!("{count} records"));
        Ok(())
    })
}
