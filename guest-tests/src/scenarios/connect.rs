// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Connecting: protocol versions and numbers of CPUs.

use anyhow::{Context, Result};

use crate::runner::{ensure, equal, Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::Drivers;

/// Every version that the in-tree driver speaks.
pub const VERSIONS: [&str; 7] = ["4.0", "4.1", "5.0", "5.1", "5.2", "5.3", "6.0"];

/// Between heartbeats that shall take an interrupt each.
pub const PACE_MS: u64 = 20;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for version in VERSIONS {
        all.push(Scenario::new(
            &format!("connect-{version}"),
            &format!("the host accepts at most VMBus {version}: connect, negotiate services, answer heartbeats"),
            move |ctx| connect(ctx, version),
        ));
    }
    for cpus in [1, 2, 4, 8] {
        all.push(Scenario::new(
            &format!("cpus-{cpus}"),
            &format!("{cpus} CPUs: heartbeats answered with the channel on each CPU in turn"),
            move |ctx| cpus_in_turn(ctx, cpus),
        ));
    }
    all.push(Scenario::new(
        "max-version",
        "module parameter max_version limits what the guest asks for",
        max_version,
    ));
    all
}

fn connect(ctx: &Ctx, version: &str) -> Result<()> {
    ctx.connected(ctx.config().vmbus(version), |vm| {
        agreed_version(vm, version)?;
        devices_are_there(vm)?;
        vm.beats(10)?;
        let opens: u64 = vm
            .host()
            .counters()?
            .channels
            .values()
            .map(|channel| channel.opens)
            .sum();
        ctx.figure(format!(
            "boot {:.1} s, {opens} channels opened",
            vm.boot_time.as_secs_f64()
        ));
        Ok(())
    })
}

/// The guest says the version that the host agreed to.
fn agreed_version(vm: &Vm, version: &str) -> Result<()> {
    // The words that users' tools search for.
    vm.log(&format!("Vmbus version:{version}"), 0, SOON)?;
    let status = vm.host().status()?;
    equal(
        "version at the host",
        status.version.as_deref(),
        Some(version),
    )?;
    ensure(
        status.connected(),
        format!("host's state: {:?}", status.state),
    )
}

/// Every device that the host offers, and no other, is on the bus.
pub fn devices_are_there(vm: &Vm) -> Result<()> {
    let mut offered: Vec<String> = vm
        .host()
        .channels()?
        .into_iter()
        .filter(|channel| channel.subchannel == 0)
        .map(|c| c.instance)
        .collect();
    offered.sort();
    let listed = vm.sh("ls /sys/bus/vmbus/devices")?;
    let mut found: Vec<String> = listed.split_whitespace().map(str::to_owned).collect();
    found.sort();
    equal("devices on the bus", found, offered)
}

fn cpus_in_turn(ctx: &Ctx, cpus: u32) -> Result<()> {
    ctx.connected(ctx.config().smp(cpus), |vm| {
        equal("CPUs online", vm.sh("nproc")?.trim(), cpus.to_string().as_str())?;
        let channel = vm.host().channel("heartbeat")?;
        let relid = channel.relid.context("heartbeat has no relid")?;
        let cpu_file = format!("/sys/bus/vmbus/devices/{}/channels/{relid}/cpu", channel.instance);
        let beats = ctx.count(200, 20);
        let mut longest = 0;
        for cpu in 0..cpus {
            if cpus > 1 {
                vm.write(&cpu_file, &cpu.to_string())?;
            }
            equal("target CPU in sysfs", vm.read(&cpu_file)?, cpu.to_string())?;
            let before = hyperv_interrupts(vm)?;
            let status = vm.paced_beats(beats, PACE_MS)?;
            longest = longest.max(status.max_rtt_us.unwrap_or(0));
            let after = hyperv_interrupts(vm)?;
            let here = after[cpu as usize] - before[cpu as usize];
            ensure(
                here >= u64::from(beats) / 2,
                format!(
                    "{beats} heartbeats gave only {here} interrupts on CPU {cpu} (before {before:?}, after {after:?})"
                ),
            )?;
        }
        ctx.figure(format!("{beats} beats on each CPU, longest {longest} us"));
        Ok(())
    })
}

/// The line HYP of `/proc/interrupts`: Hyper-V callback interrupts, by CPU.
pub fn hyperv_interrupts(vm: &Vm) -> Result<Vec<u64>> {
    interrupts(vm, "HYP:")?.context("no line HYP in /proc/interrupts")
}

/// A line of `/proc/interrupts` by its label. None when the kernel does not use that interrupt.
pub fn interrupts(vm: &Vm, label: &str) -> Result<Option<Vec<u64>>> {
    let table = vm.read("/proc/interrupts")?;
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(label));
    Ok(line.map(|line| {
        line.split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect()
    }))
}

fn max_version(ctx: &Ctx) -> Result<()> {
    // 5.2 as the parameter wants it: major << 16 | minor.
    let value = (5 << 16) | 2;
    let version = "5.2";
    match ctx.drivers {
        Drivers::C => ctx.connected(
            ctx.config()
                .cmdline(&format!("hv_vmbus.max_version={value}")),
            |vm| agreed_version(vm, version),
        ),
        _ => ctx.booted(ctx.config(), |vm| {
            vm.load_with("hv_vmbus_rs", &format!("max_version={value}"))?;
            vm.host().wait_connected(SOON)?;
            agreed_version(vm, version)
        }),
    }
}
