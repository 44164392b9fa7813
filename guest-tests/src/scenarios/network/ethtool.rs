// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What ethtool, ip and sysfs say and take: the contract that tools outside this project count on, and the same output with
//! either driver.

use anyhow::{bail, ensure, Context, Result};

use super::{by_queue, cards::exchange, net, statistics, wire_guest, Echo, NET0};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::programs::{open_channels, tool, tool_ok, until};
use crate::vm::SOON;
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    let mut all: Vec<_> = Scenario::both(
        "ethtool",
        "settings that people and tools count on: read, changed, read back",
        contract,
    )
    .into();
    all.push(Scenario::new(
        "ethtool-as-c",
        "output of ethtool, ip and sysfs is that of the C driver",
        as_c,
    ));
    all
}

/// Value behind the first line that begins with `key`.
fn value(text: &str, key: &str) -> Result<String> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(key))
        .map(|rest| rest.trim_start_matches(':').trim().to_owned())
        .with_context(|| format!("no {key:?} in {text}"))
}

fn contract(ctx: &Ctx) -> Result<()> {
    const QUEUES: usize = 4;
    wire_guest(ctx, ctx.config().smp(QUEUES as u32), |vm, name, wire| {
        let ethtool = |args: &str| tool_ok(vm, &format!("ethtool {}", args.replace('@', name)));
        let _echo = Echo::start(vm)?;
        until("the channels", SOON, || {
            Ok(open_channels(vm, NET0)? == QUEUES)
        })?;
        // Who it is.
        let info = ethtool("-i @")?;
        ensure!(
            value(&info, "driver")?.starts_with("hv_netvsc"),
            "driver of {info}"
        );
        equal(
            "firmware-version",
            value(&info, "firmware-version")?.as_str(),
            "N/A",
        )?;
        // The link: what the host says, full duplex; other settings than the speed of the link are not taken.
        let link = ethtool("@")?;
        equal("speed", value(&link, "Speed")?.as_str(), "10000Mb/s")?;
        equal("duplex", value(&link, "Duplex")?.as_str(), "Full")?;
        equal("link", value(&link, "Link detected")?.as_str(), "yes")?;
        // Rings: sections of the shared buffers.
        let rings = ethtool("-g @")?;
        let (most, now) = rings
            .split_once("Current hardware settings")
            .context("ethtool -g")?;
        let [most, now]: [Vec<u32>; 2] = [most, now].map(|part| {
            ["RX", "TX"]
                .iter()
                .filter_map(|key| value(part, &format!("{key}:")).ok()?.parse().ok())
                .collect()
        });
        ensure!(
            most.len() == 2
                && now.len() == 2
                && most.iter().zip(&now).all(|(most, now)| most > now),
            "rings: {rings}"
        );
        for (rx, tx) in [(now[0] / 2, now[1] / 2), (now[0] * 2, now[1] * 2)] {
            if rx > most[0] || tx > most[1] {
                continue;
            }
            ethtool(&format!("-G @ rx {rx} tx {tx}"))?;
            let read = ethtool("-g @")?;
            let (_, now) = read
                .split_once("Current hardware settings")
                .context("ethtool -g")?;
            equal("rx ring read back", value(now, "RX:")?, rx.to_string())?;
            equal("tx ring read back", value(now, "TX:")?, tx.to_string())?;
            let buffers = net(vm, NET0)?.buffers;
            equal("receive sections at the host", buffers.recv_sections, rx)?;
            equal("send sections at the host", buffers.send_sections, tx)?;
            exchange(vm, wire, 20)?;
        }
        ethtool(&format!("-G @ rx {} tx {}", now[0], now[1]))?;
        // Features that can be changed, both ways.
        for feature in ["lro", "gro", "rx", "tx", "tso", "sg"] {
            for state in ["off", "on"] {
                ethtool(&format!("-K @ {feature} {state}"))?;
                exchange(vm, wire, 5).with_context(|| format!("{feature} {state}"))?;
            }
        }
        for (long, short) in [
            ("large-receive-offload", "lro"),
            ("generic-receive-offload", "gro"),
            ("tcp-segmentation-offload", "tso"),
        ] {
            for state in ["off", "on"] {
                ethtool(&format!("-K @ {short} {state}"))?;
                equal(long, value(&ethtool("-k @")?, long)?.as_str(), state)?;
            }
        }
        // Level of the hash: addresses, or ports as well.
        for kind in ["tcp4", "tcp6", "udp4", "udp6"] {
            for fields in ["sd", "sdfn"] {
                ethtool(&format!("-N @ rx-flow-hash {kind} {fields}"))?;
                let read = ethtool(&format!("-n @ rx-flow-hash {kind}"))?;
                equal(
                    &format!("{kind} hashed by its ports"),
                    read.contains("L4 bytes 0 & 1"),
                    fields == "sdfn",
                )?;
            }
        }
        ethtool("-N @ rx-flow-hash udp4 sdfn")?;
        // Message level.
        ethtool("-s @ msglvl 0x3f")?;
        ensure!(
            ethtool("@")?.contains("(63)"),
            "the message level is not read back"
        );
        // No idle queue under many flows.
        let before = by_queue(&statistics(vm, name)?, "rx_queue_", "_packets");
        exchange(vm, wire, 400)?;
        let after = by_queue(&statistics(vm, name)?, "rx_queue_", "_packets");
        equal("queues with counters", after.len(), QUEUES)?;
        ensure!(
            after
                .iter()
                .zip(&before)
                .all(|(after, before)| after > before),
            "a queue is idle: {before:?}, {after:?}"
        );
        // The counters of the queues are those of the interface.
        let all = statistics(vm, name)?;
        let sum = |way: &str, what: &str| {
            by_queue(&all, &format!("{way}_queue_"), what)
                .iter()
                .sum::<u64>()
        };
        for (way, file) in [("rx", "rx_packets"), ("tx", "tx_packets")] {
            let total: u64 = vm
                .read(&format!("/sys/class/net/{name}/statistics/{file}"))?
                .parse()?;
            equal(
                &format!("{file} over all queues"),
                sum(way, "_packets"),
                total,
            )?;
        }
        let at_host = net(vm, NET0)?;
        let host: u64 = at_host.queues.iter().map(|queue| queue.tx_packets).sum();
        ensure!(
            host >= sum("tx", "_packets"),
            "the host saw {host} packets, the guest sent {}",
            sum("tx", "_packets")
        );
        Ok(())
    })
}

/// A command, and how its output is made comparable.
type Compared = (&'static str, fn(&str) -> String);

/// What is compared.
const COMPARED: &[Compared] = &[
    ("ethtool @", same),
    ("ethtool -i @", identity),
    ("ethtool -k @", same),
    ("ethtool -l @", same),
    ("ethtool -g @", same),
    ("ethtool -a @", same),
    ("ethtool -c @", same),
    ("ethtool -x @", no_key),
    ("ethtool -n @ rx-flow-hash tcp4", same),
    ("ethtool -n @ rx-flow-hash tcp6", same),
    ("ethtool -n @ rx-flow-hash udp4", same),
    ("ethtool -n @ rx-flow-hash udp6", same),
    ("ethtool -n @", same),
    ("ethtool -T @", same),
    ("ethtool -P @", same),
    ("ethtool -S @", names),
    ("ethtool -d @", same),
    ("ethtool -e @", same),
    ("ethtool -m @", same),
    ("ethtool -t @", same),
    ("ethtool --show-priv-flags @", same),
    ("ethtool --show-eee @", same),
    ("ethtool --show-fec @", same),
    ("ethtool --phy-statistics @", same),
    ("ethtool -r @", same),
    ("ethtool -p @ 1", same),
    ("ethtool -L @ rx 2 tx 2", same),
    ("ethtool -L @ combined 65", same),
    ("ethtool -G @ rx 99999999", same),
    ("ethtool -N @ rx-flow-hash tcp4 v", same),
    ("ethtool -N @ rx-flow-hash ether d", same),
    ("ethtool -N @ flow-type udp4 action 1", same),
    ("ethtool -X @ weight 1 1 1 1 1 1", same),
    ("ethtool -X @ hfunc xor", same),
    ("ethtool -s @ speed 100 duplex half", same),
    ("ethtool -s @ autoneg on", same),
    ("ethtool -K @ ntuple on", same),
    ("ethtool -C @ rx-usecs 10", same),
    ("ip -d link show @ | sed \"s/ifindex [0-9]*//\"", same),
    ("ip link set @ mtu 65522", same),
    ("ip link set @ mtu 67", same),
    ("ip link set @ address 01:00:00:00:00:01", same),
    ("cd /sys/class/net/@ && grep -s . addr_assign_type addr_len broadcast carrier dev_id dev_port dormant duplex flags gro_flush_timeout \
      ifalias link_mode mtu name_assign_type netdev_group operstate proto_down speed testing threaded tx_queue_len type", same),
    ("cd /sys/class/net/@ && find . -type d | sort", same),
    ("cd /sys/class/net/@ && find . -type f | sort", same),
    ("ls /sys/class/net/@/device/ | sort", same),
    ("cat /sys/class/net/@/queues/*/xps_cpus 2>&1", same),
    ("bpftool -j net show dev @ 2>&1 | head -c 2000", same),
];

fn same(text: &str) -> String {
    text.to_owned()
}

/// The module has a name of its own; its version is that of the kernel.
fn identity(text: &str) -> String {
    text.replace("hv_netvsc_rs", "hv_netvsc")
}

/// Names of counters without their values.
fn names(text: &str) -> String {
    text.lines()
        .map(|line| line.split(": ").next().unwrap_or_default().to_owned() + "\n")
        .collect()
}

/// The key is random.
fn no_key(text: &str) -> String {
    text.lines()
        .filter(|line| line.matches(':').count() < 20)
        .map(|line| line.to_owned() + "\n")
        .collect()
}

fn collected(ctx: &Ctx, drivers: Drivers) -> Result<Vec<String>> {
    wire_guest(
        ctx,
        ctx.config_for(drivers.name(), drivers).smp(4),
        |vm, name, _| {
            until("the channels", SOON, || Ok(open_channels(vm, NET0)? == 4))?;
            COMPARED
                .iter()
                .map(|(command, comparable)| {
                    let out = tool(vm, &command.replace('@', name))?;
                    let text = [out.stdout.text(), out.stderr.text()].concat();
                    Ok(format!("status {:?}\n{}", out.rc, comparable(&text)))
                })
                .collect()
        },
    )
}

fn as_c(ctx: &Ctx) -> Result<()> {
    let c = collected(ctx, Drivers::C)?;
    let rust = collected(ctx, Drivers::Rust)?;
    let mut different = Vec::new();
    for ((command, _), (rust, c)) in COMPARED.iter().zip(rust.iter().zip(&c)) {
        if rust != c {
            different.push(format!("{command}:\n{}", difference(rust, c)));
        }
    }
    if !different.is_empty() {
        bail!(
            "{} of {} outputs differ (- C, + Rust):\n{}",
            different.len(),
            COMPARED.len(),
            different.join("\n")
        );
    }
    ctx.figure(format!("{} commands", COMPARED.len()));
    Ok(())
}

/// Lines that only one of them has.
fn difference(rust: &str, c: &str) -> String {
    let only = |sign: char, a: &str, b: &str| -> String {
        let others: Vec<_> = b.lines().collect();
        let lines: Vec<_> = a
            .lines()
            .filter(|line| !others.contains(line))
            .map(|line| {
                format!(
                    "  {sign} {line}
"
                )
            })
            .collect();
        lines.concat()
    };
    let text = only('-', c, rust) + &only('+', rust, c);
    if text.is_empty() {
        "  the same lines in another order\n".into()
    } else {
        text
    }
}
