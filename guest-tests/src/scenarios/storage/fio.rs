// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Every byte is checked: fio writes blocks with their checksum and reads them back, while much goes on around it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use hvctl::{Command, DiskFault};

use super::{
    add_ram, block, collect, fault, gone, nothing_in_flight, open_channels, remove, storage_guest,
    tool_ok, tool_start, IO_LIMIT, SCSI0,
};
use crate::disks::{Disk, Scratch};
use crate::runner::{Ctx, Scenario, Skip};
use crate::vm::{describe, Vm};
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    [1, 4, 8]
        .into_iter()
        .flat_map(|cpus| {
            Scenario::both(
                &format!("fio-{cpus}cpu"),
                &format!(
                    "fio with checksums, raw and ext4, on {cpus} CPUs while CPUs, sub-channels and disks come and go and \
                     the host answers late and out of order"
                ),
                move |ctx| verify(ctx, cpus),
            )
        })
        .collect()
}

/// Eight jobs at once. `SIZE` is that of each job; `RAW` and `DIR` are where.
const JOBS: &str = "\
[global]
verify=crc32c
verify_fatal=1
do_verify=1
verify_state_save=0
size=SIZE
bssplit=512/25:4k/40:16k/20:128k/14:1m/1
ioengine=libaio
direct=1
fallocate=none
[raw-random]
filename=RAW
rw=randwrite
iodepth=64
iodepth_batch_submit=16
numjobs=2
offset_increment=SIZE
[raw-sequential]
filename=RAW
rw=write
bssplit=
bs=1m
iodepth=8
offset=STEP2
[raw-mixed]
filename=RAW
rw=randrw
iodepth=16
offset=STEP3
[ext4-random]
directory=DIR
rw=randwrite
bssplit=4k/60:16k/20:128k/20
iodepth=32
numjobs=2
[ext4-buffered]
directory=DIR
rw=randwrite
ioengine=psync
direct=0
fsync=64
[ext4-sequential]
directory=DIR
rw=write
bssplit=
bs=64k
ioengine=psync
direct=0
end_fsync=1
";

fn verify(ctx: &Ctx, cpus: u32) -> Result<()> {
    // The reference is looked at closely in the full run only.
    if !ctx.full && ctx.drivers == Drivers::C && cpus != 4 {
        return Err(Skip("C on 1 and 8 CPUs: with --full".into()).into());
    }
    let mib: u64 = ctx.count(48, 3);
    let image = Scratch::blank(&ctx.env.scratch(), (8 * (mib + 16)) << 20)?;
    let mut config = ctx
        .config()
        .smp(cpus)
        .memory(1024)
        .disk(Disk::ram(&format!("{}M", 5 * mib), 0))
        .disk(Disk::file(image.path(), 1));
    // One channel for each CPU, to have some that can go.
    config.storage_parameters = "storvsc_vcpus_per_sub_channel=1".into();
    storage_guest(ctx, config, |vm| {
        let (raw, fs) = (block(vm, SCSI0, 0)?, block(vm, SCSI0, 1)?);
        tool_ok(
            vm,
            &format!(
                "mkfs.ext4 -q /dev/{fs} && mkdir -p /run/fs && mount -t ext4 /dev/{fs} /run/fs"
            ),
        )?;
        let jobs = JOBS
            .replace("SIZE", &format!("{mib}m"))
            .replace("RAW", &format!("/dev/{raw}"))
            .replace("DIR", "/run/fs")
            .replace("STEP2", &format!("{}m", 2 * mib))
            .replace("STEP3", &format!("{}m", 3 * mib));
        vm.write("/run/jobs", &jobs)?;
        let limit = ctx.count(8, 1) * IO_LIMIT;
        let handle = tool_start(
            vm,
            "fio --output-format=terse --output=/run/fio.out /run/jobs",
            limit,
        )?;
        let done = AtomicBool::new(false);
        let disturbances = AtomicU32::new(0);
        let (out, disturbed) = thread::scope(|scope| {
            let disturber = scope.spawn(|| disturb(vm, cpus, &done, &disturbances));
            let out = collect(vm, handle, limit);
            done.store(true, Ordering::Relaxed);
            let disturbed = disturber
                .join()
                .unwrap_or_else(|_| bail!("the disturber panicked"));
            (out, disturbed)
        });
        let out = out?;
        ensure!(out.rc == Some(0), "fio: {}", describe(&out));
        disturbed?;
        nothing_in_flight(vm)?;
        // What is on the disk, and not in the page cache.
        tool_ok(vm, &format!("umount /run/fs && e2fsck -fn /dev/{fs}"))?;
        let (read, written) = totals(&vm.read("/run/fio.out")?)?;
        ensure!(written >= 7 * mib * 1024, "fio wrote only {written} KiB");
        ensure!(
            read >= written * 9 / 10,
            "fio read back only {read} of {written} KiB"
        );
        ctx.figure(format!(
            "{} MiB written, {} MiB read back, {} disturbances",
            written / 1024,
            read / 1024,
            disturbances.load(Ordering::Relaxed)
        ));
        Ok(())
    })
}

/// KiB read and written by all jobs (fio's terse format, version 3: fields 6 and 47).
fn totals(terse: &str) -> Result<(u64, u64)> {
    let mut sums = (0, 0);
    for line in terse.lines().filter(|line| line.starts_with("3;")) {
        let field = |number: usize| -> Result<u64> {
            let text = line
                .split(';')
                .nth(number - 1)
                .context("a short line of fio")?;
            text.parse()
                .with_context(|| format!("fio's field {number}: {text:?}"))
        };
        sums = (sums.0 + field(6)?, sums.1 + field(47)?);
    }
    Ok(sums)
}

/// One kind of disturbance after the other, until told to stop; at least once each.
fn disturb(vm: &Vm, cpus: u32, done: &AtomicBool, count: &AtomicU32) -> Result<()> {
    let mut round = 0;
    loop {
        for kind in 0..5 {
            match kind {
                0 => fault(vm, None, 1, DiskFault::Reorder { window: 8 })?,
                1 => fault(vm, None, 200, DiskFault::Delay { ms: 20 })?,
                2 if cpus > 1 => {
                    let cpu = 1 + round % (cpus - 1);
                    let online = format!("/sys/devices/system/cpu/cpu{cpu}/online");
                    vm.write(&online, "0")
                        .with_context(|| format!("CPU {cpu} offline"))?;
                    vm.write(&online, "1")
                        .with_context(|| format!("CPU {cpu} online"))?;
                }
                // With C the commands that a sub-channel has when it goes never end (its rescind is handled by
                // the bus alone, which knows nothing of them).
                3 if vm.config.drivers == Drivers::Rust && open_channels(vm, SCSI0)? > 1 => {
                    subchannel(vm)?;
                }
                4 => {
                    add_ram(vm, SCSI0, 9, 8)?;
                    block(vm, SCSI0, 9)?;
                    remove(vm, SCSI0, 9)?;
                    gone(vm, SCSI0, 9)?;
                }
                _ => continue,
            }
            count.fetch_add(1, Ordering::Relaxed);
            if round > 0 && done.load(Ordering::Relaxed) {
                fault(vm, None, 1, DiskFault::Clear)?;
                return Ok(());
            }
        }
        round += 1;
    }
}

/// Takes a sub-channel away under load and gives it back.
fn subchannel(vm: &Vm) -> Result<()> {
    let before = open_channels(vm, SCSI0)?;
    let device = format!("{SCSI0}/1");
    vm.host().call(Command::Rescind {
        device: device.clone(),
    })?;
    super::until("one channel less", Duration::from_secs(60), || {
        Ok(open_channels(vm, SCSI0)? < before)
    })?;
    vm.host().call(Command::Offer { device })?;
    super::until("the channel is back", Duration::from_secs(60), || {
        Ok(open_channels(vm, SCSI0)? == before)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn sums_of_terse_lines() {
        let line = |read: u32, written: u32| {
            let mut fields = vec!["3".to_owned(); 130];
            fields[5] = read.to_string();
            fields[46] = written.to_string();
            fields.join(";")
        };
        let text = format!("fio: note\n{}\n{}\n", line(5, 7), line(1, 2));
        assert_eq!(super::totals(&text).unwrap(), (6, 9));
        assert!(super::totals("3;x").is_err());
    }
}
