// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A host that sends what it must not: no crash, no command lost, no byte wrong.

use anyhow::{ensure, Context, Result};
use hvctl::{Command, DiskFault, DiskNotice, MalformedCompletion};

use super::{
    block, collect, disk, fault, nothing_in_flight, storage_guest, tool_ok, tool_start, IO_LIMIT,
    SCSI0,
};
use crate::disks::Disk;
use crate::runner::{Ctx, Scenario};
use crate::vm::describe;
use crate::Drivers;

pub fn scenarios() -> Vec<Scenario> {
    [
        Scenario::both(
            "malformed",
            "completions that are short, doubled, unasked for, or state impossible lengths",
            malformed,
        ),
        Scenario::both(
            "notices",
            "a flood of notices that the bus has changed, under I/O",
            notices,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const ALL: [MalformedCompletion; 7] = [
    MalformedCompletion::Short,
    MalformedCompletion::IdZero,
    MalformedCompletion::UnknownId,
    MalformedCompletion::Twice,
    MalformedCompletion::Sense,
    MalformedCompletion::Transfer,
    MalformedCompletion::Operation,
];

const FIO: &str = "fio --name=hostile --rw=randrw --bssplit=4k/70:64k/30 --iodepth=16 --ioengine=libaio --direct=1 \
                   --verify=crc32c --verify_fatal=1 --verify_state_save=0 --size=4m";

fn malformed(ctx: &Ctx) -> Result<()> {
    let count = ctx.count(2000, 100);
    let config = ctx.config().smp(2).disk(Disk::ram("16M", 0));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        for how in ALL {
            let before = disk(vm, SCSI0, 0)?.counters;
            fault(vm, None, count, DiskFault::Malformed { how })?;
            let mut runs = 0;
            // Until the host has sent them all.
            loop {
                let handle = tool_start(vm, &format!("{FIO} --filename=/dev/{name}"), IO_LIMIT)?;
                let out = collect(vm, handle, IO_LIMIT)
                    .with_context(|| format!("{how:?}: a command was lost"))?;
                // The C driver ends a command with an error for a packet that is no completion of it.
                let error = out.stderr.text().contains("Input/output error");
                let lenient = ctx.drivers == Drivers::C && how == MalformedCompletion::Operation;
                ensure!(
                    out.rc == Some(0) || lenient && error,
                    "{how:?}: fio: {}",
                    describe(&out)
                );
                runs += 1;
                let after = disk(vm, SCSI0, 0)?.counters;
                if after.commands - before.commands > u64::from(count) {
                    break;
                }
                ensure!(runs < 1000, "{how:?}: the host sent too few");
            }
            fault(vm, None, 1, DiskFault::Clear)?;
            nothing_in_flight(vm).with_context(|| format!("{how:?}"))?;
            tool_ok(vm, &format!("{FIO} --filename=/dev/{name}"))
                .with_context(|| format!("after {how:?}"))?;
        }
        ctx.figure(format!("{count} of each of {} kinds", ALL.len()));
        Ok(())
    })
}

fn notices(ctx: &Ctx) -> Result<()> {
    let count = ctx.count(2000, 100);
    let config = ctx.config().smp(2).disk(Disk::ram("16M", 0));
    storage_guest(ctx, config, |vm| {
        let name = block(vm, SCSI0, 0)?;
        let handle = tool_start(
            vm,
            &format!("{FIO} --filename=/dev/{name} --loops=3"),
            IO_LIMIT,
        )?;
        for number in 0..count {
            let what = if number % 2 == 0 {
                DiskNotice::Enumerate
            } else {
                DiskNotice::Remove
            };
            vm.host().call(Command::DiskNotify {
                device: SCSI0.into(),
                what,
            })?;
        }
        let out = collect(vm, handle, IO_LIMIT)?;
        ensure!(out.rc == Some(0), "fio: {}", describe(&out));
        // The disk that was there all the time still is, under its name.
        ensure!(
            block(vm, SCSI0, 0)? == name,
            "the disk has another name now"
        );
        nothing_in_flight(vm)?;
        ctx.figure(format!("{count} notices"));
        Ok(())
    })
}
