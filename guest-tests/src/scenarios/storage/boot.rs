// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A Debian system whose root disk hangs on the synthetic controller.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hvctl::ShutdownKind;

use super::{
    cut::{self, Writer},
    module,
};
use crate::disks::Disk;
use crate::runner::{equal, Ctx, Scenario};
use crate::vm::{Vm, SOON, SYSTEM_LIMIT};
use crate::VmConfig;

pub fn scenarios() -> Vec<Scenario> {
    Scenario::both(
        "debian",
        "Debian boots from /dev/sda; power cuts with journal replay and clean shutdowns; fsck finds nothing",
        cycles,
    )
    .into()
}

fn cycles(ctx: &Ctx) -> Result<()> {
    let image = ctx.env.debian_copy()?;
    // Each pair is a power cut and a clean shutdown.
    let pairs: u32 = ctx.count(20, 1);
    let mut boots = Vec::new();
    let mut files = 0;
    let (mut kept, mut lost) = (0, 0);
    for pair in 0..pairs {
        let mut told = 0;
        let config = system(ctx, &format!("{pair}-cut"), image.path());
        ctx.booted(config, |vm| {
            boots.push(boot(vm, pair > 0)?);
            let writer = writer(vm);
            writer.loose()?;
            told = writer.write(12)?;
            let answer = cut::power_cut(vm, 0, (pair % 2 == 0).then_some(pair.into()))?;
            kept += answer.kept;
            lost += answer.lost;
            Ok(())
        })?;
        let config = system(ctx, &format!("{pair}-shutdown"), image.path());
        ctx.booted(config, |vm| {
            boots.push(boot(vm, true)?);
            let console = vm.console.as_ref().context("console")?;
            console
                .wait("recovery complete", 0, SOON)
                .context("the journal was not replayed")?;
            let whole = writer(vm).check(told)?;
            ensure!(
                whole >= 8,
                "only {whole} files are left of those that were synced before the power cut"
            );
            writer(vm).write(4)?;
            files += 12 + 4;
            shut_down(vm)
        })?;
        fsck(image.path())?;
    }
    boots.sort();
    ctx.figure(format!(
        "{} boots, multi-user.target after {:.1} s (median), {files} files through {pairs} power cuts that took {} KiB and left {} KiB of what was not flushed",
        boots.len(),
        boots[boots.len() / 2].as_secs_f64(),
        lost >> 10,
        kept >> 10
    ));
    Ok(())
}

/// What writes in the system.
fn writer(vm: &Vm) -> Writer<'_> {
    Writer {
        vm,
        root: "/",
        dir: "/var/lib",
    }
}

/// A guest that boots from this image, as a disk that loses what was not flushed.
fn system(ctx: &Ctx, part: &str, image: &Path) -> VmConfig {
    let disk = Disk::file(image, 0).option("cache=volatile");
    let config = ctx.config_for(part, ctx.drivers).smp(2);
    config.memory(768).disk(disk).root("/dev/sda")
}

/// A guest that boots from this image, on a disk that keeps all.
pub fn on_disk(config: VmConfig, image: &Path) -> VmConfig {
    let config = config.memory(768);
    config.disk(Disk::file(image, 0)).root("/dev/sda")
}

/// Waits for the system and looks whether it is what it should be. The time since QEMU's start.
pub fn boot(vm: &Vm, again: bool) -> Result<Duration> {
    let begin = std::time::Instant::now();
    vm.load_drivers()?;
    let state = vm.wait_system()?;
    let took = vm.boot_time + begin.elapsed();
    ensure!(
        state == "running",
        "the system is {state:?}: {}",
        vm.sh("systemctl list-units --failed --plain --no-legend; true")?
    );
    vm.sh("systemctl is-active multi-user.target")?;
    equal(
        "root file system",
        vm.sh("findmnt -no SOURCE,FSTYPE /")?
            .split_whitespace()
            .collect::<Vec<_>>(),
        vec!["/dev/sda", "ext4"],
    )?;
    vm.sh("findmnt -no OPTIONS / | grep -qw rw")?;
    let loaded = vm.sh("cut -d' ' -f1 /proc/modules")?;
    let wanted = module(vm.config.drivers)?;
    ensure!(
        loaded.lines().any(|name| name == wanted),
        "{wanted} is not loaded"
    );
    equal(
        "driver of the root disk",
        vm.sh("cat /sys/block/sda/device/../../scsi_host/host*/proc_name")?
            .trim(),
        "storvsc_host",
    )?;
    if again {
        vm.sh("test -s /var/lib/hv/sums")?;
    }
    Ok(took)
}

/// The host asks for a power off; the system stops its services, unmounts, and is off.
pub fn shut_down(vm: &Vm) -> Result<()> {
    let reply = vm.host().shutdown(ShutdownKind::PowerOff, false, SOON)?;
    equal(
        "the guest's answer to the shutdown request",
        reply.status,
        Some(0),
    )?;
    let event = vm.qmp.event("SHUTDOWN", SYSTEM_LIMIT)?;
    equal(
        "end of the VM",
        event["data"]["reason"].as_str(),
        Some("guest-shutdown"),
    )
}

/// Checks a file system that is not in use.
pub fn fsck(image: &Path) -> Result<()> {
    let out = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(image)
        .output()
        .context("e2fsck")?;
    let text = [out.stdout, out.stderr].concat();
    ensure!(
        out.status.code() == Some(0),
        "e2fsck: {}: {}",
        out.status,
        String::from_utf8_lossy(&text).trim()
    );
    Ok(())
}
