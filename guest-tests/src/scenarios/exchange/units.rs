// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The daemons as a distribution runs them: under systemd, from our unit files, on a Debian system whose root is frozen with the rest.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::{BackupOp, IpSettings, KvpOp, KvpPool};

use super::frozen::{until_it_waits, until_served};
use super::{backup, config, kvp, status_is};
use crate::disks::Scratch;
use crate::net::{Backend, Nic};
use crate::runner::{equal, Ctx, Scenario};
use crate::scenarios::network::interface;
use crate::scenarios::storage::boot::{fsck, on_disk};
use crate::vm::{describe, Vm, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    let mut rust = Scenario::new(
        "units",
        "Debian with our daemons under systemd: exposure, memory, wakeups; / frozen, copied and whole; addresses set through networkd",
        units,
    );
    rust.drivers = Some(Drivers::Rust);
    vec![rust]
}

/// What `systemd-analyze security` may say of ours at most, in the order of [`UNITS`]. Debian's are at 6 and more.
const EXPOSURE: [f64; 3] = [2.9, 3.9, 2.4];

/// Resident and private memory that a daemon of ours may have at most, in KiB.
const MEMORY: (u64, u64) = (4608, 2048);

/// Our units, and the name of the daemon in each.
const UNITS: [(&str, &str); 3] = [
    (
        "hv-kvp-daemon",
        include_str!("../../../../userspace-daemons/systemd/hv-kvp-daemon.service"),
    ),
    (
        "hv-vss-daemon",
        include_str!("../../../../userspace-daemons/systemd/hv-vss-daemon.service"),
    ),
    (
        "hv-fcopy-daemon",
        include_str!("../../../../userspace-daemons/systemd/hv-fcopy-daemon.service"),
    ),
];

/// A file of networkd for the card as an installer writes it.
const LINK: &str =
    "[Match]\nDriver=hv_netvsc\n\n[Network]\nAddress=10.0.0.2/24\nLinkLocalAddressing=no\n";

/// What `systemd-analyze security` says of units in a directory, in the order of [`UNITS`].
fn exposure(vm: &Vm, files: &[String]) -> Result<Vec<f64>> {
    let text = vm.sh(&format!(
        "systemd-analyze security --no-pager --offline=true {} 2>&1 | sed -n 's/.*exposure level for [^:]*: \\([0-9.]*\\).*/\\1/p'",
        files.join(" ")
    ))?;
    let figures: Vec<f64> = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| text.clone())?;
    equal("figures of exposure", figures.len(), files.len())?;
    Ok(figures)
}

/// Resident memory of a process in KiB, private memory in KiB, and how often it has woken up.
fn cost(vm: &Vm, pid: &str) -> Result<(u64, u64, u64)> {
    let text = vm.sh(&format!(
        "awk '/^VmRSS/ {{print $2}}' /proc/{pid}/status; awk '/^Private/ {{s += $2}} END {{print s}}' /proc/{pid}/smaps_rollup; \
         awk '/ctxt_switches/ {{s += $2}} END {{print s}}' /proc/{pid}/status"
    ))?;
    let numbers: Vec<u64> = text
        .lines()
        .map(|line| line.trim().parse())
        .collect::<Result<_, _>>()
        .with_context(|| text.clone())?;
    match numbers[..] {
        [rss, private, switches] => Ok((rss, private, switches)),
        _ => anyhow::bail!("figures of process {pid}: {text}"),
    }
}

/// What processes cost in a stretch in which nobody asks anything.
struct Idle {
    /// Times that any of them has woken up.
    woken: u64,
    /// Name, resident and private memory in KiB of each.
    memory: Vec<(String, u64, u64)>,
}

fn idle(ctx: &Ctx, vm: &Vm, what: &str, pids: &[(String, String)]) -> Result<Idle> {
    let mut before = Vec::new();
    for (_, pid) in pids {
        before.push(cost(vm, pid)?);
    }
    let seconds = ctx.count(60, 3);
    vm.sh(&format!("sleep {seconds}"))?;
    let mut woken = 0;
    let mut memory = Vec::new();
    for ((name, pid), (.., switches)) in pids.iter().zip(before) {
        let (rss, private, now) = cost(vm, pid)?;
        woken += now - switches;
        memory.push((name.clone(), rss, private));
    }
    let words: Vec<_> = memory
        .iter()
        .map(|(name, rss, private)| format!("{name} {rss} KiB ({private} private)"))
        .collect();
    ctx.figure(format!(
        "{what}: {}; {woken} wakeups in {seconds} s",
        words.join(", ")
    ));
    Ok(Idle { woken, memory })
}

fn units(ctx: &Ctx) -> Result<()> {
    let image = ctx.env.debian_copy()?;
    let copy = Scratch::blank(&ctx.env.scratch(), 0)?;
    // Not as in the others, the image is no disk for tools, but the root.
    let mut config = on_disk(config(ctx), image.path()).nic(Nic::new(Backend::None));
    config.tools = false;
    // systemd takes a machine that says Hyper-V by CPUID and QEMU by DMI for QEMU's, and our units start on Hyper-V only.
    config.qemu_args.extend(
        [
            "-smbios",
            "type=1,manufacturer=Microsoft Corporation,product=Virtual Machine",
        ]
        .map(String::from),
    );
    ctx.booted(config, |vm| {
        vm.load_drivers()?;
        let state = vm.wait_system()?;
        equal("state of the system", state.as_str(), "running")?;

        // Debian's units first, for comparison; our image has them masked.
        let theirs = UNITS.map(|(name, _)| {
            let name = name.replace("fcopy", "fcopy-uio");
            format!("/run/theirs/{name}.service")
        });
        vm.sh("mkdir /run/theirs && cp /usr/lib/systemd/system/hv-*.service /run/theirs/")?;
        let theirs = exposure(vm, &theirs)?;
        vm.sh(
            "cp /run/hyperv-rs/hv-*-daemon /usr/sbin/ && chmod 755 /usr/sbin/hv-*-daemon; \
             rm -f /etc/systemd/system/hv-*-daemon.service",
        )?;
        let ours = UNITS.map(|(name, _)| format!("/etc/systemd/system/{name}.service"));
        for (file, (_, text)) in ours.iter().zip(UNITS) {
            vm.write(file, text)?;
        }
        let ours = exposure(vm, &ours)?;
        ctx.figure(format!(
            "exposure (kvp, vss, fcopy): ours {ours:?}, Debian's {theirs:?}"
        ));
        for ((figure, most), (name, _)) in ours.iter().zip(EXPOSURE).zip(UNITS) {
            ensure!(*figure <= most, "exposure of {name}: {figure}, at most {most} is wanted");
        }

        vm.sh("systemctl daemon-reload && systemctl start hv-kvp-daemon hv-vss-daemon hv-fcopy-daemon")?;
        for (name, _) in UNITS {
            active(vm, name)?;
        }
        for service in ["kvp", "vss", "fcopy"] {
            vm.host().wait_negotiated(service, SOON)?;
        }
        let mut pids = Vec::new();
        for (name, _) in UNITS {
            let pid = vm.sh(&format!("systemctl show -P MainPID {name}"))?;
            pids.push((name.to_owned(), pid.trim().to_owned()));
        }
        let watchdog = vm.sh(&format!("cat /proc/{0}/task/{0}/children", pids[1].1))?;
        let pid = watchdog.split_whitespace().next();
        let pid = pid.context("hv-vss-daemon has no watchdog")?;
        pids.push(("its watchdog".into(), pid.into()));

        equal("flags of the check", until_served(vm)?, 5)?;
        let keys = KvpOp::Enumerate {
            pool: KvpPool::Auto,
            index: None,
        };
        let reply = kvp(vm, keys.clone())?;
        status_is("enumerate", reply.status, 0)?;
        equal("keys", reply.pairs.len(), 10)?;

        backup_of_root(vm, image.path(), copy.path())?;
        fsck(copy.path())?;
        networkd(vm)?;

        let idle_ours = idle(ctx, vm, "ours", &pids)?;
        equal("wakeups of daemons that nobody asks", idle_ours.woken, 0)?;
        for (name, rss, private) in idle_ours.memory {
            ensure!(
                rss <= MEMORY.0 && private <= MEMORY.1,
                "{name}: {rss} KiB ({private} private), at most {MEMORY:?} are wanted"
            );
        }

        // Killed: systemd starts them anew, and a freeze does not outlive them.
        status_is("freeze", backup(vm, BackupOp::Freeze)?.status, 0)?;
        vm.sh("systemctl kill -s KILL --kill-whom=main hv-vss-daemon hv-kvp-daemon")?;
        let out = vm.run("touch /root/thawed && sync /root/thawed", SOON)?;
        ensure!(out.rc == Some(0), "/ stays frozen: {}", describe(&out));
        until_served(vm)?;
        status_is("enumerate", kvp(vm, keys)?.status, 0)?;
        for (name, _) in UNITS {
            active(vm, name)?;
        }

        vm.sh("systemctl stop hv-kvp-daemon hv-vss-daemon hv-fcopy-daemon")?;
        let mut pids = Vec::new();
        for service in ["kvp", "vss"] {
            let pid = vm.sh(&format!(
                "/usr/sbin/hv_{service}_daemon -n >/dev/null 2>&1 & echo $!"
            ))?;
            pids.push((format!("hv_{service}_daemon"), pid.trim().to_owned()));
        }
        until_served(vm)?;
        idle(ctx, vm, "Debian's", &pids)?;
        for (_, pid) in pids {
            vm.sh(&format!("kill {pid}"))?;
        }
        vm.sh("journalctl --no-pager -o cat -u hv-kvp-daemon -u hv-vss-daemon | tail -n 40 >/dev/console")?;
        Ok(())
    })
}

/// A unit that must be at work.
fn active(vm: &Vm, name: &str) -> Result<()> {
    let out = vm.run(&format!("systemctl is-active {name}"), SOON)?;
    ensure!(
        out.rc == Some(0),
        "{name} is not at work: {}",
        vm.sh(&format!(
            "systemctl status --no-pager --full {name}; systemd-detect-virt; true"
        ))?
    );
    Ok(())
}

/// Freezes all, copies the disk, thaws.
fn backup_of_root(vm: &Vm, image: &std::path::Path, copy: &std::path::Path) -> Result<()> {
    vm.sh("echo before >/root/before")?;
    status_is("freeze", backup(vm, BackupOp::Freeze)?.status, 0)?;
    // The agent is in memory: it can look while nothing can be written.
    let pid = vm.sh("(echo late >/root/late) >/dev/null 2>&1 & echo $!")?;
    let pid = pid.trim().parse().context(pid)?;
    ensure!(until_it_waits(vm, pid)?, "/ is not frozen");
    super::backup::copy(image, copy)?;
    status_is("thaw", backup(vm, BackupOp::Thaw)?.status, 0)?;
    let begin = std::time::Instant::now();
    while vm.run("test -s /root/late", SOON)?.rc != Some(0) {
        ensure!(begin.elapsed() < SOON, "/ is still frozen after the thaw");
    }
    let look = |file: &str| -> Result<String> {
        let out = std::process::Command::new("debugfs")
            .args(["-R", &format!("cat {file}")])
            .arg(copy)
            .output()
            .context("debugfs")?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    equal(
        "written before the freeze",
        look("/root/before")?.as_str(),
        "before",
    )?;
    equal("written after it", look("/root/late")?.as_str(), "")
}

/// The host sets an address while systemd-networkd has the card.
fn networkd(vm: &Vm) -> Result<()> {
    vm.write("/etc/systemd/network/70-installer.network", LINK)?;
    vm.sh(
        "rm -f /etc/systemd/system/systemd-networkd.service /etc/systemd/system/systemd-networkd.socket; \
         systemctl daemon-reload && systemctl start systemd-networkd",
    )?;
    let interface = interface(vm, "net0")?;
    let has = |address: &str| -> Result<()> {
        let begin = std::time::Instant::now();
        loop {
            let text = vm.sh(&format!("ip -o address show dev {interface}"))?;
            if text.contains(address) {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < Duration::from_secs(30),
                "no {address}: {text}"
            );
        }
    };
    has("10.0.0.2/24")?;
    let guid = vm.read(&format!("/sys/class/net/{interface}/device/device_id"))?;
    let settings = IpSettings {
        adapter: guid,
        family: 1,
        addresses: "10.0.0.77".into(),
        subnets: "255.255.255.0".into(),
        gateways: "10.0.0.1".into(),
        dns: "10.0.0.1".into(),
        ..IpSettings::default()
    };
    let reply = kvp(vm, KvpOp::SetIp(settings))?;
    if reply.status != 0 {
        let journal = vm.sh("journalctl --no-pager -o cat -u hv-kvp-daemon | tail -n 20")?;
        anyhow::bail!("set-ip: status {:#x}: {journal}", reply.status);
    }
    has("10.0.0.77/24")?;
    let text = vm.sh(&format!("ip -o address show dev {interface}"))?;
    ensure!(
        !text.contains("10.0.0.2/"),
        "the old address is still there: {text}"
    );
    // And at the next boot.
    vm.sh("systemctl restart systemd-networkd")?;
    has("10.0.0.77/24")?;
    vm.sh("systemctl stop systemd-networkd.socket systemd-networkd")
        .map(drop)
}
