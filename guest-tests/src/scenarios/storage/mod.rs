// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The suite `storage`: SCSI disks of the emulated host. Tests that end in `-rust` and `-c` are the same test with
//! either stack; the others compare the two or ask for more than the C driver gives.

pub(crate) mod boot;
mod compare;
mod cut;
mod errors;
mod fio;
mod hostile;
mod plug;
mod tools;

use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use hvctl::{Command, DiskFault, DiskInfo, DiskSpec};

use super::programs::{
    bus_dir, collect, open_channels, tool, tool_ok, tool_start, tool_within, until, until_in_guest,
    IO_LIMIT,
};
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{Vm, SOON};
use crate::{Drivers, VmConfig};

pub fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(boot::scenarios());
    all.extend(fio::scenarios());
    all.extend(plug::scenarios());
    all.extend(cut::scenarios());
    all.extend(errors::scenarios());
    all.extend(tools::scenarios());
    all.extend(hostile::scenarios());
    all.extend(compare::scenarios());
    all
}

/// The controller that most tests use.
const SCSI0: &str = "scsi0";

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
    fault_on(vm, SCSI0, opcode, count, fault)
}

/// The same of any controller. A `count` of 0: all commands.
pub(crate) fn fault_on(
    vm: &Vm,
    device: &str,
    opcode: Option<u8>,
    count: u32,
    fault: DiskFault,
) -> Result<()> {
    let command = Command::DiskFault {
        device: device.into(),
        lun: None,
        opcode,
        count,
        skip: 0,
        fault,
    };
    vm.host().call(command)?;
    Ok(())
}

/// Shell pattern for the SCSI device of a LUN.
fn scsi_pattern(vm: &Vm, device: &str, lun: u8) -> Result<String> {
    Ok(format!(
        "{}/host*/target*/[0-9]*:0:0:{lun}",
        bus_dir(vm, device)?
    ))
}

/// The name of a disk in the guest, such as `sda`; waits for it.
pub(crate) fn block(vm: &Vm, device: &str, lun: u8) -> Result<String> {
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

/// Nothing is left undone on either side.
pub(crate) fn nothing_in_flight(vm: &Vm) -> Result<()> {
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

/// The driver's module, for sysfs.
fn module(drivers: Drivers) -> Result<&'static str> {
    match drivers.storage_modules() {
        [module] => Ok(module),
        _ => bail!("no storage module"),
    }
}
