// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The suite `storage`: SCSI disks of the emulated host. Tests that end in `-rust` and `-c` are the same test with
//! either stack; the others compare the two or ask for more than the C driver gives.

pub(crate) mod boot;
mod compare;
mod errors;
mod fio;
mod hostile;
mod plug;
mod tools;

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use guest_agent::{Command as Ask, Output, Spawned};
use hvctl::{ChannelState, Command, DiskFault, DiskInfo, DiskSpec};

use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{describe, Vm, SOON};
use crate::{Drivers, VmConfig};

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(boot::scenarios());
    all.extend(fio::scenarios());
    all.extend(plug::scenarios());
    all.extend(errors::scenarios());
    all.extend(tools::scenarios());
    all.extend(hostile::scenarios());
    all.extend(compare::scenarios());
    all
}

/// The controller that most tests use.
const SCSI0: &str = "scsi0";

/// For I/O that an idle machine does in seconds.
const IO_LIMIT: Duration = Duration::from_secs(300);

/// How often the state of the other side is looked at while there is no event to wait for.
const LOOK: Duration = Duration::from_millis(50);

/// A guest in its initramfs with the storage drivers, and the programs of the Debian image below /debian.
fn storage_guest<T>(ctx: &Ctx, config: VmConfig, test: impl FnOnce(&Vm) -> Result<T>) -> Result<T> {
    ctx.booted(config.storage(), |vm| {
        vm.tools()?;
        // C's disks need what Debian loads by itself, too.
        vm.sh("modprobe sd_mod; modprobe sg")?;
        vm.load_drivers()?;
        wait_controllers(vm)?;
        test(vm)
    })
}

/// Waits until the guest has opened every storage controller and has found the disks that are there.
fn wait_controllers(vm: &Vm) -> Result<()> {
    for disk in disks(vm)? {
        block(vm, &disk.device, disk.lun)?;
    }
    Ok(())
}

/// The host's disks.
fn disks(vm: &Vm) -> Result<Vec<DiskInfo>> {
    let value = vm.host().call(Command::Disks)?;
    serde_json::from_value(value).context("disks")
}

/// One disk of the host.
fn disk(vm: &Vm, device: &str, lun: u8) -> Result<DiskInfo> {
    disks(vm)?
        .into_iter()
        .find(|disk| disk.device == device && disk.lun == lun)
        .with_context(|| format!("the host has no disk {lun} on {device}"))
}

/// Adds a RAM disk of some MiB.
fn add_ram(vm: &Vm, device: &str, lun: u8, mib: u64) -> Result<()> {
    let disk = DiskSpec {
        ram: true,
        size: Some(mib << 20),
        sector: 512,
        discard: true,
        ..DiskSpec::default()
    };
    let command = Command::DiskAdd {
        device: device.into(),
        lun,
        target: 0,
        disk,
        notify: true,
    };
    vm.host().call(command)?;
    Ok(())
}

fn remove(vm: &Vm, device: &str, lun: u8) -> Result<()> {
    let command = Command::DiskRemove {
        device: device.into(),
        lun,
        target: 0,
        notify: true,
    };
    vm.host().call(command)?;
    Ok(())
}

/// Makes a controller misbehave towards the next `count` commands, of one kind if `opcode` says so.
fn fault(vm: &Vm, opcode: Option<u8>, count: u32, fault: DiskFault) -> Result<()> {
    let command = Command::DiskFault {
        device: SCSI0.into(),
        lun: None,
        opcode,
        count,
        skip: 0,
        fault,
    };
    vm.host().call(command)?;
    Ok(())
}

/// Waits until `done` says so; for states of the host that have no event.
fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begin = Instant::now();
    while !done()? {
        ensure!(
            begin.elapsed() < limit,
            "not within {} s: {what}",
            limit.as_secs()
        );
        std::thread::sleep(LOOK);
    }
    Ok(begin.elapsed())
}

/// Waits in the guest until a shell condition holds. The time that took, by the guest's clock, to some 20 ms.
fn until_in_guest(vm: &Vm, condition: &str, limit: Duration) -> Result<Duration> {
    let script = format!("until {condition}; do sleep 0.02; done");
    let out = vm.run(&script, limit)?;
    ensure!(
        !out.killed,
        "not within {} s in the guest: {condition}",
        limit.as_secs()
    );
    ensure!(
        out.rc == Some(0),
        "in the guest: {condition}: {}",
        describe(&out)
    );
    Ok(Duration::from_micros(out.elapsed_us))
}

/// The directory of a device on the guest's bus.
fn bus_dir(vm: &Vm, device: &str) -> Result<String> {
    let channel = vm.host().channel(device)?;
    Ok(format!("/sys/bus/vmbus/devices/{}", channel.instance))
}

/// Shell pattern for the SCSI device of a LUN.
fn scsi_pattern(vm: &Vm, device: &str, lun: u8) -> Result<String> {
    Ok(format!(
        "{}/host*/target*/[0-9]*:0:0:{lun}",
        bus_dir(vm, device)?
    ))
}

/// The name of a disk in the guest, such as `sda`; waits for it.
fn block(vm: &Vm, device: &str, lun: u8) -> Result<String> {
    let pattern = format!("{}/block", scsi_pattern(vm, device, lun)?);
    until_in_guest(vm, &format!("ls {pattern} >/dev/null 2>&1"), SOON)
        .with_context(|| format!("disk {lun} of {device} did not come"))?;
    let name = vm.sh(&format!("ls {pattern}"))?.trim().to_owned();
    ensure!(
        !name.contains(char::is_whitespace),
        "disk {lun} of {device} has several names: {name}"
    );
    // The node comes after the directory.
    until_in_guest(vm, &format!("test -b /dev/{name}"), SOON)?;
    Ok(name)
}

/// Waits until the guest has no trace of a disk any more.
fn gone(vm: &Vm, device: &str, lun: u8) -> Result<Duration> {
    let pattern = scsi_pattern(vm, device, lun)?;
    until_in_guest(vm, &format!("! ls -d {pattern} >/dev/null 2>&1"), SOON)
        .with_context(|| format!("disk {lun} of {device} did not go"))
}

/// Runs a program of the Debian image in the guest.
fn tool(vm: &Vm, command: &str) -> Result<Output> {
    tool_within(vm, command, IO_LIMIT)
}

fn tool_within(vm: &Vm, command: &str, limit: Duration) -> Result<Output> {
    let quoted = command.replace('\'', r"'\''");
    vm.run(
        &format!("LC_ALL=C chroot /debian /bin/sh -c '{quoted}'"),
        limit,
    )
}

/// Runs a program of the Debian image that must succeed; its standard output.
fn tool_ok(vm: &Vm, command: &str) -> Result<String> {
    let out = tool(vm, command)?;
    ensure!(out.rc == Some(0), "{command}: {}", describe(&out));
    Ok(out.stdout.text())
}

/// Starts a program of the Debian image.
fn tool_start(vm: &Vm, command: &str, limit: Duration) -> Result<u64> {
    let argv = ["chroot", "/debian", "/bin/sh", "-c", command]
        .map(String::from)
        .to_vec();
    let spawned: Spawned = vm.agent.call(
        Ask::Spawn {
            argv,
            timeout_ms: limit.as_millis() as u64,
        },
        SOON,
    )?;
    Ok(spawned.handle)
}

/// Waits for a program that was started.
fn collect(vm: &Vm, handle: u64, limit: Duration) -> Result<Output> {
    vm.agent.call(
        Ask::Collect {
            handle,
            kill: false,
        },
        limit + SOON,
    )
}

/// Nothing is left undone on either side.
fn nothing_in_flight(vm: &Vm) -> Result<()> {
    until("no command in flight at the host", SOON, || {
        Ok(disks(vm)?.iter().all(|disk| disk.counters.in_flight == 0))
    })?;
    let left =
        vm.sh("cat /sys/block/sd*/inflight /dev/null | tr -s ' ' '\\n' | grep -v '^0*$' | wc -l")?;
    equal(
        "disks with requests in flight in the guest",
        left.trim(),
        "0",
    )
}

/// Channels of a controller that are open at the host, the primary one included.
fn open_channels(vm: &Vm, device: &str) -> Result<usize> {
    let channels = vm.host().channels()?;
    Ok(channels
        .iter()
        .filter(|channel| channel.device == device && channel.state == ChannelState::Open)
        .count())
}

/// The driver's module, for sysfs.
fn module(drivers: Drivers) -> Result<&'static str> {
    match drivers.storage_modules() {
        [module] => Ok(module),
        _ => bail!("no storage module"),
    }
}
