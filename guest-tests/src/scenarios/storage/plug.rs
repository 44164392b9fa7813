// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Disks that come, go and grow; modules that come and go.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::{Command, Until};

use super::{
    add_ram, block, bus_dir, collect, disk, gone, module, nothing_in_flight, remove, storage_guest,
    tool_ok, tool_start, until_in_guest, IO_LIMIT, SCSI0,
};
use crate::disks::{Disk, Scratch};
use crate::memory::{no_leak, EXACT_SLABS};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{describe, Vm, SOON};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both(
            "luns",
            "64 disks on 4 controllers, each with its size and its data",
            luns,
        ),
        Scenario::both(
            "hot-plug",
            "disks added and removed many times under I/O",
            hot_plug,
        ),
        Scenario::both(
            "resize",
            "a disk grows while it is in use, seen within 2 s",
            resize,
        ),
        Scenario::both(
            "unmap",
            "what the guest gives back is free in the image",
            unmap,
        ),
        Scenario::both("ide", "the disk of a Generation 1 IDE controller", ide),
        Scenario::both(
            "reload",
            "the driver is loaded and unloaded many times; memory compared",
            reload,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn luns(ctx: &Ctx) -> Result<()> {
    const CONTROLLERS: u8 = 4;
    const LUNS: u8 = 16;
    let mut config = ctx.config().smp(2).memory(768);
    for controller in 0..CONTROLLERS {
        for lun in 0..LUNS {
            // Each has a size of its own, so that none is taken for another.
            let mib = 2 + u32::from(controller) * u32::from(LUNS) + u32::from(lun);
            config = config
                .disk(Disk::ram(&format!("{mib}M"), lun.into()).on(&format!("scsi{controller}")));
        }
    }
    storage_guest(ctx, config, |vm| {
        let mut names = Vec::new();
        let mut hosts = Vec::new();
        for controller in 0..CONTROLLERS {
            let device = format!("scsi{controller}");
            hosts.push(host_number(vm, &device)?);
            for lun in 0..LUNS {
                let name = block(vm, &device, lun)?;
                let mib = 2 + u64::from(controller) * u64::from(LUNS) + u64::from(lun);
                equal(
                    &format!("sectors of {device} LUN {lun}"),
                    vm.read(&format!("/sys/block/{name}/size"))?,
                    (mib * 2048).to_string(),
                )?;
                names.push((device.clone(), lun, name));
            }
        }
        // What people go by who name disks by host and unit. Letters are no such thing: sd looks at several disks at once. Nor are
        // hosts with C, whose driver takes several controllers at once (`PROBE_PREFER_ASYNCHRONOUS`).
        ensure!(
            hosts.is_sorted() || ctx.drivers == Drivers::C,
            "the controllers' SCSI hosts are {hosts:?}, not in the order of the host's offers"
        );
        // Each is written with its own name in one go, and all are read after that.
        let all: Vec<&str> = names.iter().map(|(_, _, name)| name.as_str()).collect();
        let all = all.join(" ");
        vm.sh(&format!("for d in {all}; do echo \"this is $d\" | dd of=/dev/$d bs=512 conv=sync,fsync 2>/dev/null || exit 1; done"))?;
        vm.sh("echo 3 > /proc/sys/vm/drop_caches")?;
        vm.sh(&format!("for d in {all}; do [ \"$(head -n 1 /dev/$d)\" = \"this is $d\" ] || {{ echo $d >&2; exit 1; }}; done"))?;
        for (device, lun, name) in &names {
            let counters = disk(vm, device, *lun)?.counters;
            ensure!(
                counters.writes >= 1,
                "the write to {name} did not come to {device} LUN {lun}"
            );
        }
        equal(
            "disks that lsscsi lists",
            tool_ok(vm, "lsscsi | grep -c disk")?.trim(),
            "64",
        )?;
        ctx.figure(format!("{} disks", names.len()));
        Ok(())
    })
}

/// The number of a controller's SCSI host.
fn host_number(vm: &Vm, device: &str) -> Result<u32> {
    let text = vm.sh(&format!("basename {}/host*", bus_dir(vm, device)?))?;
    let number = text.trim().strip_prefix("host");
    let number = number.with_context(|| format!("{device}: {text:?}"))?;
    Ok(number.parse()?)
}

fn hot_plug(ctx: &Ctx) -> Result<()> {
    let times: u32 = ctx.count(200, 10);
    let config = ctx.config().smp(2).disk(Disk::ram("64M", 0));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        let load = tool_start(
            vm,
            &format!("fio --name=load --filename=/dev/{name} --rw=randrw --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
                      --verify=crc32c --verify_state_save=0 --size=32m --time_based --runtime=3600 --output=/run/fio.out"),
            Duration::from_secs(3600),
        )?;
        let served = |vm: &Vm| disk(vm, SCSI0, 0).map(|d| d.counters.reads + d.counters.writes);
        let (begin, before) = (vm.time()?.monotonic_ns, served(vm)?);
        let mut seen = Vec::new();
        for round in 0..times {
            let lun = 1 + (round % 60) as u8;
            let mib = 4 + u64::from(round % 7);
            add_ram(vm, SCSI0, lun, mib)?;
            let name = block(vm, SCSI0, lun).with_context(|| format!("round {round}"))?;
            equal(
                "sectors",
                vm.read(&format!("/sys/block/{name}/size"))?,
                (mib * 2048).to_string(),
            )?;
            vm.sh(&format!(
                "dd if=/dev/{name} of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null"
            ))
            .or_else(|_| {
                tool_ok(
                    vm,
                    &format!("dd if=/dev/{name} of=/dev/null bs=64k count=1 iflag=direct"),
                )
            })?;
            seen.push(name);
            remove(vm, SCSI0, lun)?;
            gone(vm, SCSI0, lun).with_context(|| format!("round {round}"))?;
        }
        let ns = vm.time()?.monotonic_ns - begin;
        let ms = ns as f64 / 1e6 / f64::from(times);
        let load_rate = (served(vm)? - before) as f64 / (ns as f64 / 1e9);
        // SIGTERM lets fio end as it does when its time is up, with the last verification.
        vm.sh("kill $(pidof fio | tr ' ' '\\n' | sort -n | head -n 1)")?;
        let out = collect(vm, load, IO_LIMIT)?;
        ensure!(
            matches!(out.rc, Some(0 | 128)) && !vm.read("/run/fio.out")?.contains("verify:"),
            "fio: {} {}",
            describe(&out),
            vm.read("/run/fio.out")?
        );
        nothing_in_flight(vm)?;
        equal(
            "disks in the end",
            vm.sh("ls -d /sys/block/sd* | wc -l")?.trim(),
            "1",
        )?;
        ctx.figure(format!(
            "{times} times, {ms:.0} ms each beside {load_rate:.0} requests/s"
        ));
        Ok(())
    })
}

fn resize(ctx: &Ctx) -> Result<()> {
    let image = Scratch::blank(&ctx.env.scratch(), 64 << 20)?;
    let config = ctx.config().smp(2).disk(Disk::file(image.path(), 0));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        tool_ok(
            vm,
            &format!(
                "mkfs.ext4 -q /dev/{name} && mkdir -p /run/fs && mount -t ext4 /dev/{name} /run/fs"
            ),
        )?;
        let mut times = Vec::new();
        // After each notice the drivers have SCSI look for disks, which takes seconds on a busy machine: each change is made when that
        // is over. Who writes this waits for it, and has SCSI look at the disk alone.
        let scanned = format!(
            "echo 0 0 0 | tee {}/host*/scsi_host/host*/scan",
            bus_dir(vm, SCSI0)?
        );
        for mib in [96u64, 128, 200, 320, 1024] {
            vm.sh(&scanned)?;
            let begin = std::time::Instant::now();
            vm.host().call(Command::DiskResize {
                device: SCSI0.into(),
                lun: 0,
                target: 0,
                size: mib << 20,
                notify: true,
            })?;
            until_in_guest(
                vm,
                &format!("[ $(cat /sys/block/{name}/size) = {} ]", mib * 2048),
                SOON,
            )
            .with_context(|| format!("the disk did not grow to {mib} MiB"))?;
            times.push(begin.elapsed());
        }
        // The machine may be busy with something else for one of them.
        times.sort();
        let median = times[times.len() / 2];
        ensure!(
            median < Duration::from_secs(2),
            "the new size was seen after {:.1} s (median)",
            median.as_secs_f64()
        );
        // The file system grows into it while it is mounted.
        tool_ok(vm, &format!("resize2fs /dev/{name} && cp -r /debian/usr/lib/systemd /run/fs/ 2>/dev/null || cp -r /usr/lib/systemd /run/fs/"))?;
        tool_ok(vm, &format!("umount /run/fs && e2fsck -fn /dev/{name}"))?;
        ctx.figure(format!(
            "seen after {:.0} ms (median), {:.0} ms at most",
            median.as_secs_f64() * 1e3,
            times[times.len() - 1].as_secs_f64() * 1e3
        ));
        Ok(())
    })
}

fn unmap(ctx: &Ctx) -> Result<()> {
    const MIB: u64 = 64;
    let image = Scratch::blank(&ctx.env.scratch(), MIB << 20)?;
    let config = ctx.config().disk(Disk::file(image.path(), 0));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        let allocated = |vm: &Vm| Ok::<_, anyhow::Error>(disk(vm, SCSI0, 0)?.allocated >> 20);
        tool_ok(
            vm,
            &format!("dd if=/dev/urandom of=/dev/{name} bs=1M count=48 oflag=direct"),
        )?;
        let full = allocated(vm)?;
        ensure!(
            full >= 48,
            "the image takes {full} MiB after 48 were written"
        );
        tool_ok(vm, &format!("blkdiscard -o 16M -l 16M /dev/{name}"))?;
        let part = allocated(vm)?;
        ensure!(
            full - part >= 15,
            "16 MiB were given back, the image went from {full} to {part} MiB"
        );
        // The rest of the data is as it was, and what was given back reads as zeros.
        tool_ok(vm, &format!("cmp -n 16777216 /dev/{name} /dev/zero >/dev/null 2>&1 && exit 1; \
             dd if=/dev/{name} bs=1M skip=16 count=16 iflag=direct 2>/dev/null | cmp -n 16777216 - /dev/zero"))?;
        tool_ok(vm, &format!("mkfs.ext4 -q /dev/{name} && mkdir -p /run/fs && mount -t ext4 /dev/{name} /run/fs \
             && dd if=/dev/urandom of=/run/fs/file bs=1M count=32 && sync"))?;
        let with_file = allocated(vm)?;
        tool_ok(vm, "rm /run/fs/file && sync && fstrim -v /run/fs")?;
        let trimmed = allocated(vm)?;
        ensure!(
            with_file - trimmed >= 30,
            "fstrim: the image went from {with_file} to {trimmed} MiB"
        );
        tool_ok(vm, &format!("umount /run/fs && e2fsck -fn /dev/{name}"))?;
        let counters = disk(vm, SCSI0, 0)?.counters;
        ctx.figure(format!(
            "{full} → {part} MiB by blkdiscard, {with_file} → {trimmed} by fstrim, {} ranges",
            counters.discards
        ));
        Ok(())
    })
}

fn ide(ctx: &Ctx) -> Result<()> {
    let image = Scratch::blank(&ctx.env.scratch(), 64 << 20)?;
    let config = ctx
        .config()
        .smp(2)
        .disk(Disk::file(image.path(), 0).on("ide0"));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, "ide0", 0)?;
        equal(
            "driver",
            vm.sh(&format!(
                "cat /sys/block/{name}/device/../../scsi_host/host*/proc_name"
            ))?
            .trim(),
            "storvsc_host",
        )?;
        let out = tool_ok(
            vm,
            &format!("fio --name=ide --filename=/dev/{name} --rw=randwrite --bsrange=512-256k --iodepth=16 --ioengine=libaio --direct=1 \
                      --verify=crc32c --verify_fatal=1 --verify_state_save=0 --size=8m"),
        )?;
        ensure!(out.contains("err= 0"), "fio: {out}");
        nothing_in_flight(vm)
    })
}

/// Cycles in a window that is long enough for what the CPUs' own lists do not to count.
const LONG_WINDOW: u32 = 13;

fn reload(ctx: &Ctx) -> Result<()> {
    let per_window = ctx.count(LONG_WINDOW, 2);
    let config = ctx
        .config()
        .smp(2)
        .cmdline(EXACT_SLABS)
        .disk(Disk::ram("16M", 0))
        .disk(Disk::ram("16M", 3));
    let module = module(ctx.drivers)?;
    let with_bus = ctx.drivers == Drivers::Rust;
    storage_guest(ctx, config, |vm| {
        let one = || -> Result<()> {
            let name = block(vm, SCSI0, 0)?;
            block(vm, SCSI0, 3)?;
            vm.sh(&format!("dd if=/dev/{name} of=/dev/null bs=64k count=4 2>/dev/null; dd if=/dev/zero of=/dev/{name} bs=64k count=4 conv=fsync 2>/dev/null"))?;
            if with_bus {
                vm.unload_drivers()?;
                vm.host().wait(Until::Disconnected, SOON)?;
                equal("GPADLs left at the host", vm.host().status()?.gpadls, 0)?;
                vm.load_drivers()
            } else {
                vm.unload(module)?;
                equal(
                    "open channels of the controller",
                    super::open_channels(vm, SCSI0)?,
                    0,
                )?;
                vm.load(module)
            }
        };
        for _ in 0..2 {
            one()?;
        }
        let steady = no_leak(vm, per_window, LONG_WINDOW, one)?;
        ctx.figure(format!("{} times", steady.cycles));
        Ok(())
    })
}
