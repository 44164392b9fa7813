// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What administrators rely on: limits, counts, parameters and sysfs, as with the C driver.

use std::collections::BTreeMap;

use anyhow::{ensure, Result};

use super::{block, bus_dir, module, open_channels, scsi_pattern, storage_guest, SCSI0};
use crate::disks::Disk;
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::Vm;
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = vec![Scenario::new(
        "sysfs-as-c",
        "the controller's, the disk's and the queue's attributes and the module's parameters, file by file",
        sysfs_as_c,
    )];
    all.extend(Scenario::both(
        "contract",
        "channel counts, time-outs, parameters, and which CPUs serve I/O",
        contract,
    ));
    all
}

/// Files that tell of one run and not of a driver.
const OF_THE_RUN: [&str; 8] = [
    "iodone_cnt",
    "iorequest_cnt",
    "ioerr_cnt",
    "iotmo_cnt",
    "host_busy",
    "device_busy",
    "stat",
    "inflight",
];

fn attributes(vm: &Vm) -> Result<BTreeMap<String, String>> {
    let name = block(vm, SCSI0, 0)?;
    let device = vm
        .sh(&format!("ls -d {}", scsi_pattern(vm, SCSI0, 0)?))?
        .trim()
        .to_owned();
    let host = vm
        .sh(&format!(
            "ls -d {}/host*/scsi_host/host*",
            bus_dir(vm, SCSI0)?
        ))?
        .trim()
        .to_owned();
    let parameters = format!("/sys/module/{}/parameters", module(vm.config.drivers)?);
    let mut all = BTreeMap::new();
    for (label, dir, depth) in [
        ("host", host, 1),
        ("device", device, 1),
        ("queue", format!("/sys/block/{name}/queue"), 2),
        ("disk", format!("/sys/block/{name}"), 1),
        ("parameters", parameters, 1),
    ] {
        for entry in vm.tree(&dir, depth)? {
            let file = entry.path.rsplit('/').next().unwrap_or_default();
            if entry.kind != "file" || OF_THE_RUN.contains(&file) {
                continue;
            }
            let value = entry
                .data
                .map(|data| data.text())
                .or(entry.err)
                .unwrap_or_default();
            all.insert(
                format!("{label}/{}", entry.path),
                format!("{:o} {}", entry.mode, value.trim()),
            );
        }
    }
    Ok(all)
}

fn sysfs_as_c(ctx: &Ctx) -> Result<()> {
    let run = |drivers: Drivers| {
        let config = ctx
            .config_for(drivers.name(), drivers)
            .smp(4)
            .disk(Disk::ram("16M", 0));
        storage_guest(ctx, config, attributes)
    };
    let c = run(Drivers::C)?;
    let rust = run(Drivers::Rust)?;
    let mut different = Vec::new();
    for key in c
        .keys()
        .chain(rust.keys().filter(|key| !c.contains_key(*key)))
    {
        let (c, rust) = (c.get(key), rust.get(key));
        if c != rust {
            different.push(format!("{key}: C {c:?}, Rust {rust:?}"));
        }
    }
    ensure!(
        different.is_empty(),
        "{} of {} files differ: {}",
        different.len(),
        c.len(),
        different.join("; ")
    );
    ensure!(c.len() > 80, "only {} files compared", c.len());
    ctx.figure(format!("{} files alike", c.len()));
    Ok(())
}

fn contract(ctx: &Ctx) -> Result<()> {
    const CPUS: u32 = 5;
    const SUB_CHANNELS: u32 = 2;
    let config = ctx
        .config()
        .smp(CPUS)
        .memory(768)
        .controller(SCSI0, &format!("subchannels={SUB_CHANNELS}"))
        .disk(Disk::ram("32M", 0))
        .disk(Disk::ram("8M", 7));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        // One channel for each CPU, as far as the host has them.
        let wanted = 1 + SUB_CHANNELS.min(CPUS - 1) as usize;
        super::until("sub-channels are open", crate::vm::SOON, || {
            Ok(open_channels(vm, SCSI0)? >= wanted)
        })?;
        equal("channels", open_channels(vm, SCSI0)?, wanted)?;
        equal(
            "time-out of the disk in seconds",
            vm.read(&format!("/sys/block/{name}/device/timeout"))?
                .as_str(),
            "180",
        )?;
        equal(
            "LUN 7",
            vm.read(&format!("/sys/block/{}/size", block(vm, SCSI0, 7)?))?
                .as_str(),
            "16384",
        )?;
        equal(
            "transport's name",
            vm.sh("cat /sys/class/scsi_host/host*/proc_name")?.trim(),
            "storvsc_host",
        )?;
        let queues = vm.sh(&format!("ls -d /sys/block/{name}/mq/* | wc -l"))?;
        equal("hardware queues", queues.trim(), CPUS.to_string().as_str())?;
        // Every channel takes part, and their interrupts go to several CPUs.
        let before = super::super::connect::hyperv_interrupts(vm)?;
        super::tool_ok(
            vm,
            &format!("fio --name=all --filename=/dev/{name} --rw=randread --bs=4k --iodepth=8 --numjobs={CPUS} --cpus_allowed=0-{} \
                      --cpus_allowed_policy=split --ioengine=libaio --direct=1 --size=2m", CPUS - 1),
        )?;
        let after = super::super::connect::hyperv_interrupts(vm)?;
        let busy = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| *after - *before >= 10)
            .count();
        ensure!(
            busy >= wanted,
            "interrupts under load came to {busy} CPUs, for {wanted} channels"
        );
        for channel in vm.host().channels()? {
            ensure!(
                channel.device != SCSI0
                    || channel.relid.is_none()
                    || channel.counters.packets_in >= 10,
                "sub-channel {} took no commands",
                channel.subchannel
            );
        }
        // How many commands the host is given at once: 90 % of what the rings of one channel for each
        // four CPUs take; a parameter says for how many.
        let can_queue = || -> Result<u32> {
            let text = vm.sh(&format!(
                "cat {}/host*/scsi_host/host*/can_queue",
                bus_dir(vm, SCSI0)?
            ))?;
            Ok(text.trim().parse()?)
        };
        let with_default = can_queue()?;
        let module = module(ctx.drivers)?;
        vm.unload(module)?;
        vm.load_with(module, "storvsc_vcpus_per_sub_channel=1")?;
        block(vm, SCSI0, 0)?;
        let ratio = f64::from(can_queue()?) / f64::from(with_default);
        ensure!(
            (2.45..2.55).contains(&ratio),
            "can_queue grew {ratio:.2} times from {with_default}, not 5/2 times"
        );
        ctx.figure(format!(
            "{wanted} channels on {CPUS} CPUs, interrupts on {busy} CPUs"
        ));
        Ok(())
    })
}
