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
        "placement",
        "channels that carry load: spread over NUMA nodes and CPUs, none on isolated CPUs",
        placement,
    ));
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

/// CPU and NUMA node of each channel of class SCSI, in the order of the offers. No driver is loaded for them.
fn placed(vm: &Vm) -> Result<Vec<(u32, i32)>> {
    let mut channels = vm.host().channels()?;
    channels.retain(|channel| channel.device.starts_with("scsi"));
    channels.sort_by_key(|channel| channel.relid);
    let mut all = Vec::new();
    for channel in channels {
        let dir = format!("/sys/bus/vmbus/devices/{}", channel.instance);
        let mapping = vm.read(&format!("{dir}/channel_vp_mapping"))?;
        let (_, cpu) = mapping.split_once(':').context(mapping.clone())?;
        all.push((cpu.parse()?, vm.read(&format!("{dir}/numa_node"))?.parse()?));
    }
    Ok(all)
}

fn placement(ctx: &Ctx) -> Result<()> {
    let config = |part: &str| {
        let mut config = ctx.config_for(part, ctx.drivers).smp(4);
        config.devices = [
            "heartbeat",
            "shutdown",
            "timesync",
            "scsi0",
            "scsi1",
            "scsi2",
            "scsi3",
        ]
        .map(str::to_owned)
        .to_vec();
        // The host maps guest memory as one block, so one node has all of it.
        let memory = format!("memory-backend-ram,id=all,size={}M", config.memory);
        let numa = [
            "-smp",
            "sockets=2,cores=2,threads=1",
            "-object",
            &memory,
            "-numa",
            "node,nodeid=0,cpus=0-1,memdev=all",
            "-numa",
            "node,nodeid=1,cpus=2-3",
        ];
        config.qemu_args = numa.map(str::to_owned).to_vec();
        config
    };
    ctx.connected(config("all"), |vm| {
        let placed = placed(vm)?;
        ctx.figure(format!("CPU, node: {placed:?}"));
        let mut cpus: Vec<u32> = placed.iter().map(|(cpu, _)| *cpu).collect();
        cpus.sort_unstable();
        equal("CPUs of four channels", cpus, vec![0, 1, 2, 3])?;
        ensure(
            placed[0].1 != placed[1].1,
            format!("the first two channels are on one node: {placed:?}"),
        )
    })?;
    ctx.connected(
        config("isolated").cmdline("isolcpus=managed_irq,1-2"),
        |vm| {
            let mut cpus: Vec<u32> = placed(vm)?.iter().map(|(cpu, _)| *cpu).collect();
            cpus.sort_unstable();
            equal("CPUs with 1 and 2 isolated", cpus, vec![0, 0, 3, 3])
        },
    )
}

fn max_version(ctx: &Ctx) -> Result<()> {
    // 5.2 as the parameter wants it: major << 16 | minor.
    let value = (5 << 16) | 2;
    let version = "5.2";
    let shown = |vm: &Vm, module: &str| {
        equal(
            "max_version in sysfs",
            vm.read(&format!("/sys/module/{module}/parameters/max_version"))?,
            value.to_string(),
        )
    };
    match ctx.drivers {
        Drivers::C => ctx.connected(
            ctx.config()
                .cmdline(&format!("hv_vmbus.max_version={value}")),
            |vm| {
                shown(vm, "hv_vmbus")?;
                agreed_version(vm, version)
            },
        ),
        _ => ctx.booted(ctx.config(), |vm| {
            vm.load_with("hv_vmbus_rs", &format!("max_version={value}"))?;
            vm.host().wait_connected(SOON)?;
            shown(vm, "hv_vmbus_rs")?;
            agreed_version(vm, version)
        }),
    }
}
